"""Images and poses as published: one file per data set, and `validate`."""

from pipeline import lazy_names

__all__ = [
    "Coco",
    "Human36M",
    "Human36MImages",
    "MixedSource",
    "MotionBertClips",
    "MpiInf3dhp",
    "MpiInf3dhpImages",
    "Mpii",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Coco": "coco",
        "Human36M": "human36m",
        "Human36MImages": "human36m_images",
        "MixedSource": "mixed",
        "MotionBertClips": "motionbert",
        "MpiInf3dhp": "mpi_inf_3dhp",
        "MpiInf3dhpImages": "mpi_inf_3dhp",
        "Mpii": "mpii",
    },
)
