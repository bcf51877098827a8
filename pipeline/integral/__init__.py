"""Stage 1b: images to 3D heatmaps to 3D joints (SAN)."""

from pipeline import lazy_names

__all__ = ["SAN", "IntegralDataModule", "IntegralModule"]

__getattr__ = lazy_names(
    __name__, {"IntegralDataModule": "data", "IntegralModule": "module", "SAN": "san"}
)
