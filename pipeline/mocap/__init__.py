"""Motion capture and embedded people: readers, the open benchmark, the renderer."""

from pipeline import lazy_names

__all__ = ["Mocap", "Synthetic"]

__getattr__ = lazy_names(__name__, {"Mocap": "motion_capture", "Synthetic": "synthetic"})
