"""Stage 2: motion capture to corrupted 2D to 3D; its weights start lifting."""

from pipeline import lazy_names

__all__ = ["PretrainDataModule", "PretrainModule"]

__getattr__ = lazy_names(__name__, {"PretrainDataModule": "data", "PretrainModule": "module"})
