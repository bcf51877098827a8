"""The fixed names of all metrics and panels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """A metric that is logged.

    Args:
        name: Name in the logs, `<split>/<quantity>`.
        unit: Unit of the values, - if none.
        meaning: Description, one line.
        goal: min if lower is better, max if higher is better, None if neither.
    """

    name: str
    unit: str
    meaning: str
    goal: Literal["min", "max"] | None = None


_POSE = (
    ("mpjpe", "distance between predicted and true joints, both root-relative"),
    ("p_mpjpe", "MPJPE after the best rotation, scale and shift of each pose"),
    ("n_mpjpe", "MPJPE after the best scale of each pose"),
    ("mpjve", "error of the joint velocities between frames"),
    ("acceleration", "error of the joint accelerations between frames"),
)

_RIGID = "MPJPE after the best rotation and shift of each pose, without scale (integral)"

_EVALUATED = (
    Metric("loss", "-", "training loss on this split", "min"),
    Metric("pck_0.05", "share", "joints within 0.05 of the longer side of the joints' box", "max"),
    Metric("pck_0.1", "share", "joints within 0.1 of the longer side of the joints' box", "max"),
    Metric("pck_0.2", "share", "joints within 0.2 of the longer side of the joints' box", "max"),
    Metric("pckh_0.5", "share", "joints within half a head size (MPII)", "max"),
    Metric("oks_ap", "share", "average precision over object joint similarity (COCO)", "max"),
    *(Metric(f"{name}_mm", "mm", f"{what}; mean over frames", "min") for name, what in _POSE),
    Metric("rigid_mpjpe_mm", "mm", f"{_RIGID}; mean over frames", "min"),
    Metric("rigid_mpjpe_action_mean_mm", "mm", f"{_RIGID}; mean over actions", "min"),
    *(
        Metric(f"{name}_action_mean_mm", "mm", f"{what}; mean over actions", "min")
        for name, what in _POSE
    ),
    *(
        Metric(f"mean_pose_{name}_mm", "mm", f"{what}; for the mean pose in every frame")
        for name, what in _POSE
    ),
    Metric("of_mean_pose", "share", "MPJPE divided by the MPJPE of the mean pose", "min"),
    Metric("pck3d_150mm", "share", "joints within 150 mm of their true positions", "max"),
    Metric("auc3d", "share", "area under 3D PCK from 0 to 150 mm", "max"),
)


METRICS: tuple[Metric, ...] = (
    Metric("train/loss", "-", "training loss", "min"),
    Metric("train/loss_position", "m", "part of the loss: positions", "min"),
    Metric("train/loss_scale", "m", "part of the loss: positions after the best scale", "min"),
    Metric("train/loss_velocity", "m", "part of the loss: velocities", "min"),
    Metric("train/loss_smoothness", "m", "part of the loss: smoothness over time", "min"),
    Metric("train/delta", "-", "weight of the attention output in a SAN; 0 at the start"),
    Metric("train/lr", "-", "learning rate of the first parameter group"),
    Metric("train/grad_norm", "-", "norm of the gradient before clipping"),
    Metric("train/samples_per_s", "1/s", "training samples per second, all processes together"),
    Metric("train/cpu_s", "s", "CPU time of training so far; in rows of `heatlift results`"),
    *(
        Metric(f"{split}/{metric.name}", metric.unit, metric.meaning, metric.goal)
        for split in ("val", "test")
        for metric in _EVALUATED
    ),
    *(
        Metric(f"test/subset_{name}_mm", "mm", f"{what}; frames 0 and 1 of every 16", "min")
        for name, what in _POSE[:4]
    ),
)
"""Every metric with a fixed name; docs/dashboards.md lists the same."""


@dataclass(frozen=True)
class Panel:
    """An image, video or table that is logged.

    Args:
        name: Name in the logs; `<split>` stands for val or test.
        kind: Image, video or table.
        stage: Name of the stage that shows it, or all.
        meaning: Description, one line.
    """

    name: str
    kind: Literal["image", "video", "table"]
    stage: str
    meaning: str


PANELS: tuple[Panel, ...] = (
    Panel(
        "<split>/heatmaps", "image", "heatmap", "true joints, heatmaps, detected joints with errors"
    ),
    Panel(
        "<split>/heatmap_sheet",
        "image",
        "heatmap",
        "every heatmap of one image, with the value of its peak",
    ),
    Panel("<split>/pck_per_joint", "image", "heatmap", "PCK@0.1 of each joint as bars"),
    Panel(
        "<split>/pck_per_source",
        "table",
        "heatmap",
        "PCK of all joints and of the limb joints for each source of a mixture",
    ),
    Panel("<split>/oks_ap", "table", "heatmap", "the ten metrics of COCO"),
    Panel("<split>/pckh_0.5", "table", "heatmap", "PCKh@0.5 of each body part (MPII)"),
    Panel("<split>/relations", "image", "integral", "attention between each pair of joints"),
    Panel("<split>/corruption", "image", "pretrain", "exact 2D beside the corrupted input"),
    Panel(
        "<split>/recovered", "image", "pretrain", "3D recovered from corrupted 2D, truth in grey"
    ),
    Panel(
        "<split>/poses",
        "image",
        "lift",
        "one pose of the worst, median and best clip, front and side, truth in grey",
    ),
    Panel(
        "<split>/motion",
        "image",
        "lift",
        "frames of the worst clip, front and side, truth in grey",
    ),
    Panel("<split>/per_action", "image", "lift", "MPJPE of each action as bars"),
    Panel("<split>/per_joint", "image", "lift", "MPJPE of each joint as bars"),
    Panel(
        "<split>/per_action",
        "table",
        "lift",
        "all errors of each action, mean over frames, mean over actions",
    ),
    Panel("<split>/per_joint", "table", "lift", "MPJPE of each joint"),
    Panel("<split>/worst_clip_<n>", "video", "lift", "the clips with the largest errors"),
    Panel("predictions", "table", "all", "files of `predict`: name, frames or samples, mean score"),
    Panel("predict/poses_<n>", "image", "all", "poses of the first three files of `predict`"),
    Panel("predict/clip_1", "video", "lift", "2D input and lifted joints of the first sequence"),
    Panel("weights", "table", "lift", "weights loaded from pretraining, kept, dropped"),
)
"""Every panel with a fixed name; docs/dashboards.md lists the same."""
