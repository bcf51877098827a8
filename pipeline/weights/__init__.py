"""Published weights: read safely, matched by name, imported as checkpoints."""

from pipeline import lazy_names

__all__ = ["import_weights", "load_published", "read_published", "read_statistics", "weights_in"]

__getattr__ = lazy_names(
    __name__,
    {
        "import_weights": "importing",
        "load_published": "matching",
        "read_published": "published_files",
        "read_statistics": "matching",
        "weights_in": "published_files",
    },
)
