from trainers import trainer

__all__ = ["trainer"]
