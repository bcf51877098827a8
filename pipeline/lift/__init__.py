"""Stage 3: 2D clips to 3D clips."""

from pipeline import lazy_names

__all__ = [
    "Cascade",
    "CentredLifter",
    "CombinedDeepLearner",
    "LiftDataModule",
    "LiftModule",
    "Lifter",
    "Martinez",
    "MixSTE",
    "PoseFormer",
    "StridedLifter",
    "VideoPose3D",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Cascade": "combined",
        "CentredLifter": "centred",
        "CombinedDeepLearner": "combined",
        "LiftDataModule": "data",
        "LiftModule": "module",
        "Lifter": "lifter",
        "Martinez": "martinez",
        "MixSTE": "mixste",
        "PoseFormer": "poseformer",
        "StridedLifter": "strided",
        "VideoPose3D": "videopose3d",
    },
)
