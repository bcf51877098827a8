"""`heatlift robustness`: errors of a lifter with hidden joints, dropped frames and noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.cli.tables import print_table
from pipeline.dashboard import canvas, charts, media
from pipeline.errors import NonFiniteError, UsageError
from pipeline.files import writing
from pipeline.lift.clips import smooth as smooth_over_time
from pipeline.lift.corruption import add_detection_noise, drop_frames, hide_joints
from pipeline.lift.module import LiftModule, lifting_parts
from pipeline.lift.sequences import (
    PreparedSequence,
    exact_joints2d,
    prepare_sequence,
    require_joints3d,
)
from pipeline.metrics.motion_table import PoseErrorTable
from pipeline.skeleton import make_conversion
from pipeline.sources import MotionSource, Split
from pipeline.training.checkpoints import load_module
from pipeline.training.console import print_line
from pipeline.training.protocol import join_parts

LEVELS: dict[str, tuple[float, ...]] = {
    "joints hidden": (0.0, 0.1, 0.2, 0.4, 0.6),
    "frames dropped": (0.0, 0.1, 0.2, 0.4, 0.6),
    "noise": (0.0, 0.5, 1.0, 1.5, 2.0),
}
"""Corruption of the 2D input -> its levels: shares, or factors of the benchmark's noise."""

Clip = tuple[NDArray[np.float32], NDArray[np.bool_]]
"""Normalised 2D, (T, J, 2), and visibility, (T, J)."""


@dataclass(frozen=True)
class Point:
    """Errors at one level of one corruption.

    Args:
        corruption: Kind of corruption, a key of `LEVELS`.
        level: Share of joints or frames, or factor of the noise.
        smooth: Standard deviation of the Gaussian that smooths the predictions, frames; 0 for none.
        mpjpe: MPJPE, millimetres.
        mpjve: MPJVE, millimetres per frame; NaN for single images, which have no motion.
    """

    corruption: str
    level: float
    smooth: float
    mpjpe: float
    mpjve: float


def robustness(
    source: MotionSource,
    checkpoint: str,
    *,
    detections: str = "noisy",
    every: int = 4,
    seed: int = 0,
) -> None:
    """Measure a trained lifter on corrupted 2D; print a table, write robustness.csv and .png.

    The files are written to the folder of the run. Flip test and smoothing are those of the
    checkpoint; every valid frame of the videos is evaluated.

    Args:
        source: Data source of the motion, usually given by a config: `-c data/mocap`.
        checkpoint: Checkpoint of a lifter.
        detections: 2D input in which joints are hidden and frames are dropped: exact or noisy.
        every: Use every N-th video of the test split; 1 for all.
        seed: Seed of the noise, of hidden joints and of dropped frames.

    Raises:
        UsageError: If `detections` is neither exact nor noisy, or `every` is below 1.
    """
    path = Path(checkpoint).resolve()
    module: LiftModule = load_module(path, (LiftModule,))
    points = measure_robustness(module, source, detections=detections, every=every, seed=seed)
    folder = path.parents[1] if path.parent.name == "checkpoints" else path.parent
    write_points(folder, points)
    shown = f"one video in {every}" if every > 1 else "all videos"
    seeds = f"2D {detections}, seed {seed}; {len(module.net.skeleton)} joints, root-relative, mm"
    lifting = lifting_parts(module) | {"model.frames": "every valid frame"}
    print_line(
        f"test split of {source.describe()}, {shown}; {seeds}; {join_parts(lifting)}; "
        f"weights: {module.weights}"
    )
    rows = [(point.corruption, f"{point.level:g}", f"{point.mpjpe:.1f}") for point in points]
    print_table(("corruption", "level", "MPJPE, mm"), rows, right=("level", "MPJPE, mm"))
    print_line(f"written: {folder / 'robustness.csv'} and robustness.png")


def measure_robustness(
    module: LiftModule,
    source: MotionSource,
    *,
    detections: str = "noisy",
    split: Split = "test",
    every: int = 4,
    seed: int = 0,
    smooth: Sequence[float] | None = None,
    levels: dict[str, tuple[float, ...]] = LEVELS,
) -> list[Point]:
    """Measure the errors of a lifter for every corruption at every level.

    Hidden joints and dropped frames are drawn for each video (`pipeline.lift.corruption`). For
    noise, the 2D input is exact 2D plus a factor times the difference between the benchmark's
    noisy 2D and exact 2D; the joints that are missing in noisy 2D are missing.

    Args:
        module: The lifter.
        source: Data source of the motion.
        detections: See `robustness`.
        split: Split of the source.
        every: See `robustness`.
        seed: See `robustness`.
        smooth: Standard deviations of the Gaussian that smooths the predictions, frames, 0 for
            none; there are points for each. By default that of the lifter alone.
        levels: Levels of each corruption, as in `LEVELS`.

    Raises:
        UsageError: See `robustness`.
    """
    if detections not in ("exact", "noisy"):
        raise UsageError(f"detections is {detections}; robustness is measured on exact or noisy 2D")
    if every < 1:
        raise UsageError(f"every is {every}; give 1 for all videos, 4 for a quarter of them")
    deviations = [module.smooth] if smooth is None else list(smooth)
    skeleton = module.net.skeleton
    exact, noisy = [], []
    for sequence in source.sequences(split)[::every]:
        joints2d = make_conversion(sequence.skeleton, skeleton).joints(exact_joints2d(sequence))
        noisy2d, score = add_detection_noise(joints2d, sequence.fps, seed, sequence.name)
        exact.append(prepare_sequence(sequence, skeleton, joints2d, np.ones(score.shape)))
        noisy.append(prepare_sequence(sequence, skeleton, noisy2d, score))
    chosen = exact if detections == "exact" else noisy
    points = []
    for corruption, corruption_levels in levels.items():
        for level in corruption_levels:
            if corruption == "noise":
                clips = _scale_noise(exact, noisy, level)
            else:
                clips = _remove_joints(chosen, corruption, level, seed)
            means = _measure_level(module, clips, chosen, deviations)
            points += [
                Point(corruption, level, deviation, mean["mpjpe"], mean.get("mpjve", math.nan))
                for deviation, mean in zip(deviations, means, strict=True)
            ]
    return points


def _remove_joints(
    sequences: Sequence[PreparedSequence], corruption: str, level: float, seed: int
) -> Iterator[Clip]:
    """Hide joints or drop frames in the 2D joints of all sequences."""
    remove = {"joints hidden": hide_joints, "frames dropped": drop_frames}[corruption]
    for prepared in sequences:
        visible = remove(prepared.visible, level, seed, prepared.sequence.name)
        yield prepared.joints2d, visible


def _scale_noise(
    exact: Sequence[PreparedSequence], noisy: Sequence[PreparedSequence], factor: float
) -> Iterator[Clip]:
    """Add the difference between noisy and exact 2D, times a factor, to exact 2D."""
    for without, with_noise in zip(exact, noisy, strict=True):
        if factor:
            difference = with_noise.joints2d - without.joints2d
            yield without.joints2d + np.float32(factor) * difference, with_noise.visible
        else:
            yield without.joints2d, without.visible


def _measure_level(
    module: LiftModule,
    clips: Iterator[Clip],
    sequences: Sequence[PreparedSequence],
    deviations: Sequence[float],
) -> list[dict[str, float]]:
    """Lift corrupted clips once; return their mean errors for each deviation of the smoothing."""
    joints = module.net.skeleton.joints
    tables = [PoseErrorTable(("all",), joints) for _ in deviations]
    for (joints2d, visible), prepared in zip(clips, sequences, strict=True):
        visible2d = np.where(visible[..., None], joints2d, np.float32(0))
        with torch.no_grad():
            lifted = module.lift_unsmoothed(torch.from_numpy(visible2d), torch.from_numpy(visible))
        for table, deviation in zip(tables, deviations, strict=True):
            predicted = smooth_over_time(lifted, deviation) if deviation else lifted
            table.update(0, predicted, require_joints3d(prepared), prepared.valid)
    means = [table.compute().frame_mean for table in tables]
    if not all(math.isfinite(mean.get("mpjpe", math.nan)) for mean in means):
        raise NonFiniteError("an error on corrupted 2D is not finite; check the weights")
    return means


def write_points(folder: Path, points: Sequence[Point]) -> None:
    """Write `robustness.csv` and `robustness.png` into a folder."""
    rows: list[tuple[object, ...]] = [
        ("corruption", "level", "smooth_frames", "mpjpe_mm", "mpjve_mm")
    ]
    for p in points:
        mpjve = "" if math.isnan(p.mpjve) else p.mpjve
        rows.append((p.corruption, p.level, p.smooth, p.mpjpe, mpjve))
    writing.write_csv(folder / "robustness.csv", rows)
    media.write_png(folder / "robustness.png", draw_robustness({"": points}))


def draw_robustness(lifters: Mapping[str, Sequence[Point]]) -> NDArray[np.uint8]:
    """Draw MPJPE over the level: one panel per corruption, one line per lifter.

    Args:
        lifters: Label -> points of a lifter.
    """
    panels = []
    for corruption in LEVELS:
        series = {
            name or "MPJPE": (
                [p.level for p in points if p.corruption == corruption],
                [p.mpjpe for p in points if p.corruption == corruption],
            )
            for name, points in lifters.items()
        }
        unit = "factor" if corruption == "noise" else "share"
        panels.append(charts.draw_curves(series, f"{corruption}, {unit}", "MPJPE, mm", corruption))
    return canvas.contact_sheet(panels, 1)
