"""Images, charts, videos, index.html and W&B."""

from pipeline import lazy_names

__all__ = ["METRICS", "PANELS", "Dashboard", "LiftedClip"]

__getattr__ = lazy_names(
    __name__,
    {"Dashboard": "callback", "LiftedClip": "panels", "METRICS": "catalog", "PANELS": "catalog"},
)
