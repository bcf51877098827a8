"""The cache of 2D detections between the 2D stages and lifting; detections made by other tools."""

from pipeline import lazy_names

__all__ = [
    "Detections",
    "detect",
    "detect_sequences",
    "export_detections",
    "load_detector",
    "load_or_detect",
    "read_detections_file",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Detections": "exchange",
        "detect": "cache",
        "detect_sequences": "cache",
        "load_or_detect": "cache",
        "export_detections": "exchange",
        "read_detections_file": "exchange",
        "load_detector": "cache",
    },
)
