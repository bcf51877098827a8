"""Motion: what `heatlift predict` finds in a video, and the files that it is written to."""

from pipeline import lazy_names

__all__ = ["Motion", "PersonMotion"]

__getattr__ = lazy_names(__name__, {"Motion": "motion", "PersonMotion": "motion"})
