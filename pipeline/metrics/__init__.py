"""Metrics: errors of poses and motion in millimetres, and the shares that benchmarks define."""

from pipeline import lazy_names

__all__ = [
    "MILLIMETRES",
    "MPJPE",
    "MPJVE",
    "NMPJPE",
    "PCK",
    "PCK3D",
    "PMPJPE",
    "QUANTITIES",
    "OksAP",
    "PCKh",
    "PoseErrorReport",
    "PoseErrorTable",
    "acceleration_error",
    "evaluated_joints",
    "mpjpe",
    "mpjve",
    "n_mpjpe",
    "p_mpjpe",
    "procrustes",
    "root_relative",
]

__getattr__ = lazy_names(
    __name__,
    {
        "MILLIMETRES": "functional",
        "MPJPE": "pose_metrics",
        "MPJVE": "pose_metrics",
        "PoseErrorReport": "motion_table",
        "PoseErrorTable": "motion_table",
        "NMPJPE": "pose_metrics",
        "OksAP": "oks",
        "PCK": "pck",
        "PCK3D": "pck",
        "PCKh": "pck",
        "PMPJPE": "pose_metrics",
        "QUANTITIES": "motion_table",
        "acceleration_error": "functional",
        "evaluated_joints": "joint_subsets",
        "mpjpe": "functional",
        "mpjve": "functional",
        "n_mpjpe": "functional",
        "p_mpjpe": "functional",
        "procrustes": "functional",
        "root_relative": "functional",
    },
)
