"""The fixed names of all metrics and panels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """A number that the loggers get.

    Args:
        name: As logged, `<split>/<quantity>`.
        unit: What it is counted in.
        meaning: One line for people.
        goal: Which way is better, or none where there is no better.
    """

    name: str
    unit: str
    meaning: str
    goal: Literal["min", "max"] | None = None


_POSE = (
    ("mpjpe", "distance of joints to their exact places, both root-relative"),
    ("p_mpjpe", "the same after the best rotation, scale and shift of each pose"),
    ("n_mpjpe", "the same after the best scale of each pose"),
    ("mpjve", "error of the joints' movement from frame to frame"),
    ("acceleration", "error of the change of that movement"),
)


_EVALUATED = (
    Metric("loss", "-", "what training minimises, on data it has not seen", "min"),
    Metric("pck_0.05", "share", "joints within 0.05 of the longer side of the joints' box", "max"),
    Metric("pck_0.1", "share", "joints within 0.1 of the longer side of the joints' box", "max"),
    Metric("pck_0.2", "share", "joints within 0.2 of the longer side of the joints' box", "max"),
    Metric("pckh_0.5", "share", "joints within half a head size (MPII)", "max"),
    Metric("oks_ap", "share", "average precision over object joint similarity (COCO)", "max"),
    *(Metric(f"{name}_mm", "mm", f"{what}; mean over frames", "min") for name, what in _POSE),
    *(
        Metric(f"{name}_action_mean_mm", "mm", f"{what}; mean over actions", "min")
        for name, what in _POSE
    ),
    *(
        Metric(f"mean_pose_{name}_mm", "mm", f"{what}; of the mean pose in every frame")
        for name, what in _POSE
    ),
    Metric("of_mean_pose", "share", "MPJPE as a share of the mean pose's", "min"),
    Metric("pck3d_150mm", "share", "joints within 150 mm of their exact places", "max"),
    Metric("auc3d", "share", "area under 3D PCK from 0 to 150 mm", "max"),
)


METRICS: tuple[Metric, ...] = (
    Metric("train/loss", "-", "what training minimises", "min"),
    Metric("train/loss_position", "m", "part of the loss: positions", "min"),
    Metric("train/loss_scale", "m", "part of the loss: positions after the best scale", "min"),
    Metric("train/loss_velocity", "m", "part of the loss: velocities", "min"),
    Metric("train/loss_smoothness", "m", "part of the loss: jerkiness over time", "min"),
    Metric("train/delta", "-", "how much the attention of a SAN adds to what it was given"),
    Metric("train/lr", "-", "learning rate of the first group of weights"),
    Metric("train/grad_norm", "-", "length of the gradient before clipping"),
    Metric("train/samples_per_s", "1/s", "samples trained on per second, all processes together"),
    *(
        Metric(f"{split}/{metric.name}", metric.unit, metric.meaning, metric.goal)
        for split in ("val", "test")
        for metric in _EVALUATED
    ),
    *(
        Metric(f"test/subset_{name}_mm", "mm", f"{what}; of frames 0 and 1 of every 16", "min")
        for name, what in _POSE[:4]
    ),
)
"""Every number with a fixed name; docs/dashboards.md lists the same."""


@dataclass(frozen=True)
class Panel:
    """An image, video or table that the loggers get.

    Args:
        name: As logged; `<split>` stands for val or test.
        kind: Image, video or table.
        stage: Which stage shows it.
        meaning: One line for people.
    """

    name: str
    kind: Literal["image", "video", "table"]
    stage: str
    meaning: str


PANELS: tuple[Panel, ...] = (
    Panel("<split>/heatmaps", "image", "heatmap", "exact joints, heatmaps, detection with errors"),
    Panel("<split>/heatmap_sheet", "image", "heatmap", "every heatmap of one image, with its peak"),
    Panel("<split>/pck_per_joint", "image", "heatmap", "PCK@0.1 of each joint as bars"),
    Panel("<split>/oks_ap", "table", "heatmap", "COCO's ten numbers"),
    Panel("<split>/pckh_0.5", "table", "heatmap", "PCKh@0.5 of each part of the body (MPII)"),
    Panel("<split>/relations", "image", "integral", "how much each joint attends to each other"),
    Panel("<split>/corruption", "image", "pretrain", "exact 2D beside what the network was given"),
    Panel(
        "<split>/recovered", "image", "pretrain", "3D recovered from corrupted 2D, truth in grey"
    ),
    Panel(
        "<split>/poses",
        "image",
        "lift",
        "a pose of the worst, middle and best clip, front and side, truth in grey",
    ),
    Panel(
        "<split>/motion",
        "image",
        "lift",
        "frames of the worst clip, front and side, truth in grey",
    ),
    Panel("<split>/per_action", "image", "lift", "MPJPE of each action as bars"),
    Panel("<split>/per_joint", "image", "lift", "MPJPE of each joint as bars"),
    Panel("<split>/per_action", "table", "lift", "all errors of each action, and both means"),
    Panel("<split>/per_joint", "table", "lift", "MPJPE of each joint"),
    Panel("<split>/worst_clip_<n>", "video", "lift", "the clips with the largest errors"),
    Panel("weights", "table", "lift", "weights loaded from pretraining, kept, dropped"),
)
"""Every panel with a fixed name; docs/dashboards.md lists the same."""
