"""Panels: what each stage shows of its validation and test."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
from numpy.typing import NDArray

from pipeline.dashboard import canvas, charts, heatmap_images, skeletons
from pipeline.dashboard.show import (
    MAX_VIDEO_FRAMES,
    log_bars,
    log_image,
    log_table,
    log_video,
    warn_on_failure,
)
from pipeline.metrics.motion_table import PoseErrorReport
from pipeline.skeleton import H36M17, Skeleton
from pipeline.training.transfer import WeightsReport


@warn_on_failure
def log_heatmap_panels(
    trainer: pl.Trainer,
    examples: Sequence[Mapping[str, Any]],
    skeleton: Skeleton,
    *,
    split: str = "val",
) -> None:
    """Show the output of the 2D stage: `<split>/heatmaps`, and `<split>/heatmap_sheet`.

    Args:
        trainer: Trainer; its `default_root_dir` is the run folder.
        examples: Crops from `HeatmapModule.examples`: `image` (H, W, 3) RGB, `heatmaps`
            (J, H/4, W/4), detected `joints2d` and true `truth` (J, 2) in pixels of the crop (NaN
            where unlabelled), `score` (J,), and the `name` of the sample.
        skeleton: Joint set.
        split: Split, val or test.
    """
    if not examples:
        return
    panels = [
        heatmap_images.draw_detection(
            example["image"],
            example["heatmaps"],
            example["joints2d"],
            example["truth"],
            skeleton,
            score=example["score"],
            size=256,
        )
        for example in examples
    ]
    caption = "True joints, heatmaps, detected joints; orange left, blue right, red the error."
    log_image(trainer, f"{split}/heatmaps", canvas.contact_sheet(panels, 2), caption)
    first = examples[0]
    sheet = heatmap_images.draw_heatmap_sheet(first["image"], first["heatmaps"], skeleton)
    caption = f"Every heatmap of sample {first['name']}, with the value of its peak."
    log_image(trainer, f"{split}/heatmap_sheet", sheet, caption)


@warn_on_failure
def log_pck_panel(
    trainer: pl.Trainer, report: Mapping[str, float], skeleton: Skeleton, split: str
) -> None:
    """Show PCK@0.1 of each joint as bars: `<split>/pck_per_joint`."""
    shares = [100 * report[f"pck@0.1/{joint}"] for joint in skeleton.joints]
    log_bars(
        trainer,
        f"{split}/pck_per_joint",
        skeleton.joints,
        shares,
        unit="%",
        title="PCK@0.1",
        mean=100 * report["pck@0.1"],
    )


@warn_on_failure
def log_relations_panel(
    trainer: pl.Trainer,
    relations: NDArray[Any],
    skeleton: Skeleton,
    delta: float,
    *,
    split: str = "val",
) -> None:
    """Show the attention between joints: `<split>/relations`.

    Args:
        trainer: Trainer; its `default_root_dir` is the run folder.
        relations: Attention of each joint (row) to each joint (column), (J, J); 1 means as much
            as if all positions got equal attention.
        skeleton: Joint set.
        delta: Weight of the attention output.
        split: Split, val or test.
    """
    image = charts.draw_matrix(skeleton.joints, relations, f"attention, delta {delta:.3g}")
    caption = "Each row: attention of one joint; 1: as much as if spread evenly over all positions."
    log_image(trainer, f"{split}/relations", image, caption)


@dataclass(frozen=True, eq=False)
class LiftedClip:
    """One clip with the prediction of a lifter.

    Args:
        name: Name of the sequence.
        predicted: Predicted root-relative joints in the camera frame, metres, (T, J, 3).
        target: True joints, (T, J, 3).
        error: MPJPE of the clip in millimetres.
        joints2d: 2D input of the lifter, in any unit, (T, J, C), or None.
        exact2d: Exact 2D if `joints2d` was corrupted, (T, J, C), or None.
        score: Score of each input joint, (T, J), 0 where hidden; or None.
        images: RGB images of the camera, one per frame, or None.
        fps: Frames per second, Hz.
    """

    name: str
    predicted: NDArray[Any]
    target: NDArray[Any]
    error: float
    joints2d: NDArray[Any] | None = None
    exact2d: NDArray[Any] | None = None
    score: NDArray[Any] | None = None
    images: Sequence[canvas.Image] | None = None
    fps: float = 25.0

    @property
    def title(self) -> str:
        """Name and error."""
        return f"{self.name}  {self.error:.1f} mm"

    @property
    def visible2d(self) -> NDArray[np.float64] | None:
        """`joints2d` as (T, J, 2), NaN where hidden."""
        if self.joints2d is None:
            return None
        visible = np.array(self.joints2d[..., :2], np.float64)
        if self.score is not None:
            visible[self.score <= 0] = np.nan
        return visible


@warn_on_failure
def log_lift_panels(
    trainer: pl.Trainer,
    clips: Sequence[LiftedClip],
    report: PoseErrorReport,
    skeleton: Skeleton = H36M17,
    *,
    split: str = "test",
    videos: int = 3,
) -> None:
    """Show the results of a lifter: errors per action and joint, poses, and the worst clips.

    Args:
        trainer: Trainer; its `default_root_dir` is the run folder.
        clips: Clips to show, including the worst, the median and the best.
        report: Errors over the whole split.
        skeleton: Joint set.
        split: Split, val or test.
        videos: Number of worst clips written as videos.
    """
    _report_panels(trainer, report, split)
    # A clip whose error is NaN ranks first.
    ranked = sorted(clips, key=lambda clip: -np.nan_to_num(clip.error, nan=np.inf))
    if not ranked:
        return
    poses = []
    for label, clip in (
        ("worst", ranked[0]),
        ("median", ranked[len(ranked) // 2]),
        ("best", ranked[-1]),
    ):
        t = len(clip.predicted) // 2
        views = skeletons.draw_views3d(clip.predicted[t], clip.target[t], skeleton, size=256)
        poses.append(canvas.add_title(views, f"{label}: {clip.title}"))
    caption = "Worst, median and best of the clips shown; prediction in colour, truth in grey."
    log_image(trainer, f"{split}/poses", canvas.place_side_by_side(*poses), caption)
    worst = ranked[0]
    strip = skeletons.draw_motion_strip(
        worst.predicted, worst.target, skeleton, images=worst.images
    )
    log_image(
        trainer,
        f"{split}/motion",
        canvas.add_title(strip, worst.title),
        f"{worst.title}; truth in grey.",
    )
    for rank, clip in enumerate(ranked[:videos], start=1):
        every = math.ceil(len(clip.predicted) / MAX_VIDEO_FRAMES)
        frames = skeletons.draw_clip(
            clip.predicted,
            clip.target,
            skeleton,
            images=clip.images,
            joints2d=clip.visible2d,
            title=clip.title,
            every=every,
        )
        caption = f"{clip.title}; prediction in colour, truth in grey."
        log_video(trainer, f"{split}/worst_clip_{rank}", frames, clip.fps / every, caption)


def _report_panels(trainer: pl.Trainer, report: PoseErrorReport, split: str) -> None:
    names = report.quantities
    rows = [(row.name, row.frames, *(getattr(row, q) for q in names)) for row in report.rows]
    frames = sum(row.frames for row in report.rows)
    rows.append(("mean over frames", frames, *report.frame_mean.values()))
    rows.append(("mean over actions", frames, *report.action_mean.values()))
    columns = ["action", "frames", *(f"{q}_mm" for q in names)]
    log_table(trainer, f"{split}/per_action", columns, rows)
    actions = [row.name for row in report.rows]
    errors = [row.mpjpe for row in report.rows]
    title = "MPJPE per action"
    log_bars(trainer, f"{split}/per_action", actions, errors, unit="mm", title=title)
    joints = report.per_joint
    log_table(trainer, f"{split}/per_joint", ["joint", "mpjpe_mm"], list(joints.items()))
    title = "MPJPE per joint"
    log_bars(
        trainer, f"{split}/per_joint", list(joints), list(joints.values()), unit="mm", title=title
    )


@warn_on_failure
def log_pretrain_panels(
    trainer: pl.Trainer,
    clips: Sequence[LiftedClip],
    skeleton: Skeleton = H36M17,
    *,
    split: str = "val",
) -> None:
    """Show the middle frame of each clip of pretraining.

    `<split>/corruption`: exact 2D and corrupted input. `<split>/recovered`: recovered and true 3D.
    """
    recovered, corrupted = [], []
    for clip in clips:
        t = len(clip.predicted) // 2
        views = skeletons.draw_views3d(clip.predicted[t], clip.target[t], skeleton, size=230)
        recovered.append(canvas.add_title(views, clip.title))
        if clip.visible2d is None or clip.exact2d is None:
            continue
        exact = clip.exact2d[t, :, :2]
        bounds = skeletons.bounding_square(exact)
        pair = [
            skeletons.draw_joints2d_alone(exact, skeleton, bounds=bounds, size=230),
            skeletons.draw_joints2d_alone(
                clip.visible2d[t], skeleton, truth=exact, bounds=bounds, size=230
            ),
        ]
        sheet = canvas.contact_sheet(pair, 2, ["exact 2D", "input, exact in grey"])
        corrupted.append(canvas.add_title(sheet, clip.name))
    if corrupted:
        caption = "Exact 2D and the input of the network: joints moved, hidden joints missing."
        log_image(trainer, f"{split}/corruption", canvas.contact_sheet(corrupted, 2), caption)
    if recovered:
        caption = "3D recovered from corrupted 2D in colour, truth in grey."
        log_image(trainer, f"{split}/recovered", canvas.contact_sheet(recovered, 2), caption)


@warn_on_failure
def log_weights_panel(trainer: pl.Trainer, report: WeightsReport) -> None:
    """Show which weights were loaded, kept and dropped: the table `weights`."""
    groups = (("loaded", report.loaded), ("kept", report.kept), ("dropped", report.dropped))
    rows = [(name, status) for status, names in groups for name in names]
    log_table(trainer, "weights", ["weight", "status"], rows)
