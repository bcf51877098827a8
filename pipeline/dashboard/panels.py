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
    best_effort,
    show_bars,
    show_image,
    show_table,
    show_video,
)
from pipeline.metrics.motion_table import QUANTITIES, MotionReport
from pipeline.skeleton import H36M17, Skeleton
from pipeline.training.transfer import WeightsReport


@best_effort
def heatmap_panels(
    trainer: pl.Trainer,
    examples: Sequence[Mapping[str, Any]],
    skeleton: Skeleton,
    *,
    split: str = "val",
) -> None:
    """Show what the 2D stage sees: `<split>/heatmaps`, and `<split>/heatmap_sheet` of one example.

    Args:
        trainer: Its `default_root_dir` is the run folder.
        examples: Crops, as `HeatmapModule.examples` keeps them: `image` (H, W, 3) RGB, `heatmaps`
            (J, H/4, W/4), detected `joints2d` and exact `truth` (J, 2) in pixels of the crop (NaN
            where unlabelled), `score` (J,), and the `name` of the sample.
        skeleton: The joint set.
        split: val or test.
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
    what = "Exact joints, heatmaps, detection; orange left, blue right, red the error."
    show_image(trainer, f"{split}/heatmaps", canvas.contact_sheet(panels, 2), what)
    first = examples[0]
    sheet = heatmap_images.draw_heatmap_sheet(first["image"], first["heatmaps"], skeleton)
    what = f"Every heatmap of sample {first['name']}, with its peak."
    show_image(trainer, f"{split}/heatmap_sheet", sheet, what)


@best_effort
def pck_panel(
    trainer: pl.Trainer, report: Mapping[str, float], skeleton: Skeleton, split: str
) -> None:
    shares = [100 * report[f"pck@0.1/{joint}"] for joint in skeleton.joints]
    show_bars(
        trainer,
        f"{split}/pck_per_joint",
        skeleton.joints,
        shares,
        unit="%",
        title="PCK@0.1",
        mean=100 * report["pck@0.1"],
    )


@best_effort
def relations_panel(
    trainer: pl.Trainer,
    relations: NDArray[Any],
    skeleton: Skeleton,
    delta: float,
    *,
    split: str = "val",
) -> None:
    """Show how much each joint (row) attends to each other, (J, J): `<split>/relations`.

    Args:
        trainer: Its `default_root_dir` is the run folder.
        relations: 1 where attention is as if spread evenly.
        skeleton: The joint set.
        delta: How much the attention adds.
        split: val or test.
    """
    image = charts.draw_matrix(skeleton.joints, relations, f"attention, delta {delta:.3g}")
    what = "Each row is what a joint looks at; 1: as if all places were looked at alike."
    show_image(trainer, f"{split}/relations", image, what)


@dataclass(frozen=True, eq=False)
class LiftedClip:
    """One clip that went through a lifter.

    Args:
        name: Of the sequence.
        predicted: Root-relative joints in the camera frame, metres, (T, J, 3).
        target: The truth, (T, J, 3).
        error: MPJPE of the clip in millimetres.
        joints2d: What the lifter was given, in any unit, (T, J, C), or none.
        exact2d: The exact 2D where `joints2d` was corrupted, (T, J, C), or none.
        score: Trust in each joint given, (T, J), 0 where it was hidden; or none.
        images: What the camera saw, one RGB image per frame, or none.
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
    def given2d(self) -> NDArray[np.float64] | None:
        """`joints2d` as (T, J, 2) with hidden joints left out."""
        if self.joints2d is None:
            return None
        given = np.array(self.joints2d[..., :2], np.float64)
        if self.score is not None:
            given[self.score <= 0] = np.nan
        return given


@best_effort
def lift_panels(
    trainer: pl.Trainer,
    clips: Sequence[LiftedClip],
    report: MotionReport,
    skeleton: Skeleton = H36M17,
    *,
    split: str = "test",
    videos: int = 3,
) -> None:
    """Show how well a lifter does: errors per action and joint, poses, motion, the worst clips.

    Args:
        trainer: Its `default_root_dir` is the run folder.
        clips: Some clips, the worst, the middle and the best among them.
        report: Errors over the whole split.
        skeleton: The joint set.
        split: val or test.
        videos: How many of the worst clips become videos.
    """
    _report_panels(trainer, report, split)
    # A clip whose error is NaN is the worst of all.
    ranked = sorted(clips, key=lambda clip: -np.nan_to_num(clip.error, nan=np.inf))
    if not ranked:
        return
    poses = []
    for word, clip in (
        ("worst", ranked[0]),
        ("middle", ranked[len(ranked) // 2]),
        ("best", ranked[-1]),
    ):
        t = len(clip.predicted) // 2
        views = skeletons.draw_views3d(clip.predicted[t], clip.target[t], skeleton, size=256)
        poses.append(canvas.add_title(views, f"{word}: {clip.title}"))
    what = "Of the clips shown; prediction in colour, truth in grey."
    show_image(trainer, f"{split}/poses", canvas.place_side_by_side(*poses), what)
    worst = ranked[0]
    strip = skeletons.draw_motion_strip(
        worst.predicted, worst.target, skeleton, images=worst.images
    )
    show_image(
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
            joints2d=clip.given2d,
            title=clip.title,
            every=every,
        )
        caption = f"{clip.title}; prediction in colour, truth in grey."
        show_video(trainer, f"{split}/worst_clip_{rank}", frames, clip.fps / every, caption)


def _report_panels(trainer: pl.Trainer, report: MotionReport, split: str) -> None:
    rows = [(row.name, row.frames, *(getattr(row, q) for q in QUANTITIES)) for row in report.rows]
    frames = sum(row.frames for row in report.rows)
    rows.append(("mean over frames", frames, *(report.frame_mean[q] for q in QUANTITIES)))
    rows.append(("mean over actions", frames, *(report.action_mean[q] for q in QUANTITIES)))
    columns = ["action", "frames", *(f"{q}_mm" for q in QUANTITIES)]
    show_table(trainer, f"{split}/per_action", columns, rows)
    actions = [row.name for row in report.rows]
    errors = [row.mpjpe for row in report.rows]
    title = "MPJPE per action"
    show_bars(trainer, f"{split}/per_action", actions, errors, unit="mm", title=title)
    joints = report.per_joint
    show_table(trainer, f"{split}/per_joint", ["joint", "mpjpe_mm"], list(joints.items()))
    title = "MPJPE per joint"
    show_bars(
        trainer, f"{split}/per_joint", list(joints), list(joints.values()), unit="mm", title=title
    )


@best_effort
def pretrain_panels(
    trainer: pl.Trainer,
    clips: Sequence[LiftedClip],
    skeleton: Skeleton = H36M17,
    *,
    split: str = "val",
) -> None:
    """Show what pretraining does to the middle frame of each clip.

    `<split>/corruption`: exact 2D beside what was given. `<split>/recovered`: 3D beside the truth.
    """
    recovered, given = [], []
    for clip in clips:
        t = len(clip.predicted) // 2
        views = skeletons.draw_views3d(clip.predicted[t], clip.target[t], skeleton, size=230)
        recovered.append(canvas.add_title(views, clip.title))
        if clip.given2d is None or clip.exact2d is None:
            continue
        exact = clip.exact2d[t, :, :2]
        bounds = skeletons.bounding_square(exact)
        pair = [
            skeletons.draw_joints2d_alone(exact, skeleton, bounds=bounds, size=230),
            skeletons.draw_joints2d_alone(
                clip.given2d[t], skeleton, truth=exact, bounds=bounds, size=230
            ),
        ]
        sheet = canvas.contact_sheet(pair, 2, ["exact 2D", "given, exact in grey"])
        given.append(canvas.add_title(sheet, clip.name))
    if given:
        what = "What the network is given beside the exact 2D: joints moved, hidden ones missing."
        show_image(trainer, f"{split}/corruption", canvas.contact_sheet(given, 2), what)
    if recovered:
        what = "3D recovered from corrupted 2D in colour, truth in grey."
        show_image(trainer, f"{split}/recovered", canvas.contact_sheet(recovered, 2), what)


@best_effort
def weights_panel(trainer: pl.Trainer, report: WeightsReport) -> None:
    """Show which weights were loaded, which are new, which were left over: the table `weights`."""
    fates = (("loaded", report.loaded), ("kept", report.kept), ("dropped", report.dropped))
    rows = [(name, fate) for fate, names in fates for name in names]
    show_table(trainer, "weights", ["weight", "what became of it"], rows)
