"""Stage 1: images to heatmaps to 2D joints."""

from pipeline import lazy_names

__all__ = ["HRNet", "HeatmapDataModule", "HeatmapModule", "SimpleBaseline"]

__getattr__ = lazy_names(
    __name__,
    {
        "HRNet": "hrnet",
        "HeatmapDataModule": "data",
        "HeatmapModule": "module",
        "SimpleBaseline": "simple_baseline",
    },
)
