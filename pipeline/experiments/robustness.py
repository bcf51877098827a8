"""How a lifter's error grows with hidden joints, dropped frames and noise: table and image."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.dashboard import canvas, charts, media
from pipeline.errors import UsageError
from pipeline.files import writing
from pipeline.lift.corruption import detection_noise, drop_frames, hide_joints
from pipeline.lift.module import LiftModule
from pipeline.lift.sequences import (
    PreparedSequence,
    exact_joints2d,
    prepare_sequence,
    require_joints3d,
)
from pipeline.metrics.motion_table import MotionTable
from pipeline.skeleton import conversion
from pipeline.sources import MotionSource, Split
from pipeline.training.checkpoints import load_module
from pipeline.training.console import print_line

LEVELS: dict[str, tuple[float, ...]] = {
    "joints hidden": (0.0, 0.1, 0.2, 0.4, 0.6),
    "frames dropped": (0.0, 0.1, 0.2, 0.4, 0.6),
    "noise": (0.0, 0.5, 1.0, 1.5, 2.0),
}
"""What is done to the 2D input, and how much: shares, and factors on the benchmark's noise."""


@dataclass(frozen=True)
class Point:
    """Errors at one level of one corruption.

    Args:
        corruption: A key of `LEVELS`.
        level: How much.
        mpjpe: Millimetres.
        mpjve: Millimetres per frame.
    """

    corruption: str
    level: float
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
    """Measure a trained lifter on corrupted 2D: a table, `robustness.csv` and `.png` in its run.

    Args:
        source: Where the motion comes from.
        checkpoint: Of a lifter.
        detections: Which 2D joints are hidden in and frames dropped from: `exact` or `noisy`.
        every: Take every so manieth video of the test split.
        seed: Of noise and of what is hidden.

    Raises:
        UsageError: If `detections` is neither, or `every` is below 1.
    """
    path = Path(checkpoint).resolve()
    module: LiftModule = load_module(path, (LiftModule,))
    points = measure_robustness(module, source, detections=detections, every=every, seed=seed)
    folder = path.parents[1] if path.parent.name == "checkpoints" else path.parent
    write_points(folder, points)
    print_line(robustness_table(points))
    print_line(f"written: {folder / 'robustness.csv'} and robustness.png")


def robustness_table(points: Sequence[Point]) -> str:
    """Errors as lines of text: one for each corruption, MPJPE in millimetres by level.

    >>> print(robustness_table([Point("noise", 0.0, 41.25, 3.0), Point("noise", 0.5, 50.0, 3.0)]))
    MPJPE, mm
    noise           0: 41.2  0.5: 50.0
    """
    lines = ["MPJPE, mm"]
    for corruption in dict.fromkeys(point.corruption for point in points):
        found = [p for p in points if p.corruption == corruption]
        lines.append(f"{corruption:<15} " + "  ".join(f"{p.level:g}: {p.mpjpe:.1f}" for p in found))
    return "\n".join(lines)


def measure_robustness(
    module: LiftModule,
    source: MotionSource,
    *,
    detections: str = "noisy",
    split: Split = "test",
    every: int = 4,
    seed: int = 0,
    levels: dict[str, tuple[float, ...]] = LEVELS,
) -> list[Point]:
    """Errors of a lifter under every corruption at every level; arguments as of `robustness`.

    Hidden joints and dropped frames are drawn for each video (`pipeline.lift.corruption`). Noise is
    exact 2D plus the factor times what the benchmark's noise adds to it; its missing joints stay missing.
    """
    if detections not in ("exact", "noisy"):
        raise UsageError(f"detections is {detections}; robustness is measured on exact or noisy 2D")
    if every < 1:
        raise UsageError(f"every is {every}; give 1 for all videos, 4 for a quarter of them")
    exact, noisy = [], []
    for s in source.sequences(split)[::every]:
        skeleton = module.net.skeleton
        joints2d = conversion(s.skeleton, skeleton).joints(exact_joints2d(s))
        found, score = detection_noise(joints2d, s.fps, seed, s.name)
        exact.append(prepare_sequence(s, skeleton, joints2d, np.ones(score.shape)))
        noisy.append(prepare_sequence(s, skeleton, found, score))
    given = exact if detections == "exact" else noisy
    points = []
    for corruption, steps in levels.items():
        for level in steps:
            made = _CORRUPTIONS[corruption](given, exact, noisy, level, seed)
            points.append(_point(module, corruption, level, made, given))
    return points


Clip = tuple[NDArray[np.float32], NDArray[np.bool_]]
"""Normalised 2D (T, J, 2), and what is visible (T, J)."""


def _hidden(
    given: Sequence[PreparedSequence],
    exact: Sequence[PreparedSequence],
    noisy: Sequence[PreparedSequence],
    level: float,
    seed: int,
) -> Iterator[Clip]:
    for t in given:
        yield t.joints2d, hide_joints(t.visible, level, seed, t.sequence.name)


def _dropped(
    given: Sequence[PreparedSequence],
    exact: Sequence[PreparedSequence],
    noisy: Sequence[PreparedSequence],
    level: float,
    seed: int,
) -> Iterator[Clip]:
    for t in given:
        yield t.joints2d, drop_frames(t.visible, level, seed, t.sequence.name)


def _noise(
    given: Sequence[PreparedSequence],
    exact: Sequence[PreparedSequence],
    noisy: Sequence[PreparedSequence],
    level: float,
    seed: int,
) -> Iterator[Clip]:
    for t, n in zip(exact, noisy, strict=True):
        moved = t.joints2d + np.float32(level) * (n.joints2d - t.joints2d)
        yield (moved, n.visible) if level else (t.joints2d, t.visible)


_CORRUPTIONS: dict[str, Callable[..., Iterator[Clip]]] = {
    "joints hidden": _hidden,
    "frames dropped": _dropped,
    "noise": _noise,
}


def _point(
    module: LiftModule,
    corruption: str,
    level: float,
    clips: Iterator[Clip],
    sequences: Sequence[PreparedSequence],
) -> Point:
    table = MotionTable(("all",), module.net.skeleton.joints)
    for (joints2d, visible), t in zip(clips, sequences, strict=True):
        shown = np.where(visible[..., None], joints2d, np.float32(0))
        with torch.no_grad():
            lifted, among = module.lift_evaluated(
                torch.from_numpy(shown), torch.from_numpy(visible)
            )
        table.update(0, lifted, require_joints3d(t), t.valid & among.numpy())
    mean = table.compute().frame_mean
    return Point(corruption, level, mean["mpjpe"], mean["mpjve"])


def write_points(folder: Path, points: Sequence[Point]) -> None:
    """Write `robustness.csv` and `robustness.png` into a folder."""
    with writing.atomic_path(folder / "robustness.csv") as path, path.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("corruption", "level", "mpjpe_mm", "mpjve_mm"))
        rows.writerows((p.corruption, p.level, p.mpjpe, p.mpjve) for p in points)
    media.write_png(folder / "robustness.png", draw_robustness({"": points}))


def read_points(folder: Path) -> list[Point]:
    """What `write_points` left in a folder; nothing if it did not."""
    path = folder / "robustness.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [
            Point(row["corruption"], *(float(row[k]) for k in ("level", "mpjpe_mm", "mpjve_mm")))
            for row in csv.DictReader(file)
        ]


def draw_robustness(lifters: Mapping[str, Sequence[Point]]) -> NDArray[np.uint8]:
    """MPJPE against level, one panel for each corruption and one line for each lifter."""
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
