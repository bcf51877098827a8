"""The cache of 2D detections between the 2D stages and lifting; detections made by other tools."""

from pipeline import lazy_names

__all__ = [
    "Detections",
    "detect",
    "detect_sequences",
    "export_detections",
    "get_detections",
    "load_detector",
    "read_detections_file",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Detections": "exchange",
        "detect": "cache",
        "detect_sequences": "cache",
        "get_detections": "cache",
        "export_detections": "exchange",
        "read_detections_file": "exchange",
        "load_detector": "cache",
    },
)
