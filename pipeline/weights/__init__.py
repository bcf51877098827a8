"""Published weights: read safely, matched by name, imported as checkpoints."""

from pipeline import lazy_names

__all__ = [
    "extract_weights",
    "import_weights",
    "load_published",
    "read_published",
    "read_statistics",
]

__getattr__ = lazy_names(
    __name__,
    {
        "import_weights": "importing",
        "load_published": "matching",
        "read_published": "published_files",
        "read_statistics": "matching",
        "extract_weights": "published_files",
    },
)
