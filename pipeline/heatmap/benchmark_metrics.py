"""COCO's and MPII's own numbers of a 2D stage, added up while it looks at their people."""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.metrics.oks import OksAP, rescore
from pipeline.metrics.pck import PCKh
from pipeline.skeleton import COCO17, MPII16, Conversion, Skeleton, conversion
from pipeline.sources import CocoGroundTruth, GroundTruth, MpiiGroundTruth

JOINT_SCORE = 0.2
"""Joints below this score do not count for a person's score (the simple baseline's constant)."""
OKS_NMS = 0.9
"""People more alike than this are one person (the simple baseline's constant)."""


class BenchmarkMetric(Protocol):
    """Adds up one benchmark's numbers, in any order and over any number of processes."""

    name: str
    title: str

    def protocol(self) -> str:
        """What the numbers are numbers of."""
        ...

    def update(self, index: Tensor, joints2d: Tensor, score: Tensor) -> None:
        """Add what was found: samples (B,), pixels of whole images (B, J, 2), scores (B, J)."""
        ...

    def compute(self) -> tuple[float, dict[str, float]]:
        """The number that stands for all, and all; shares."""
        ...


class CocoMetric:
    """COCO's ten numbers; see `pipeline.metrics.oks.OksAP`.

    Args:
        truth: Of the samples.
        skeleton: Joint set of what is found; joints of COCO17 that it lacks count as missed.
        device: Where sums are kept.
    """

    name = "oks_ap"
    title = "OKS-AP"

    def __init__(self, truth: CocoGroundTruth, skeleton: Skeleton, device: torch.device) -> None:
        self.truth, self.way = truth, conversion(skeleton, COCO17, allow_missing=True)
        self.metric = OksAP(truth.annotations, nms=OKS_NMS).to(device)

    def protocol(self) -> str:
        """What the numbers are numbers of."""
        return (
            f"COCO's ten numbers, {self.truth.about}, {_counted(self.way)}, rescored by joints "
            f"above {JOINT_SCORE}, OKS-NMS {OKS_NMS}"
        )

    def update(self, index: Tensor, joints2d: Tensor, score: Tensor) -> None:
        """See `BenchmarkMetric`."""
        mine, rows = _known(self.truth, index)
        joints, scores = _as(self.way, joints2d, score, mine)
        people = np.concatenate([np.nan_to_num(joints), scores[..., None]], axis=-1)
        box = self.truth.scores[rows]
        found = (
            self.truth.image_ids[rows],
            people,
            rescore(box, scores, threshold=JOINT_SCORE),
            self.truth.areas[rows],
        )
        self.metric.update(*(torch.from_numpy(part).to(index.device) for part in found))

    def compute(self) -> tuple[float, dict[str, float]]:
        """See `BenchmarkMetric`."""
        report = self.metric.compute()
        return report["AP"], report


class MpiiMetric:
    """PCKh at 0.5; see `pipeline.metrics.pck.PCKh`.

    Args:
        truth: Of the samples.
        skeleton: Joint set of what is found; joints of MPII16 that it lacks count as missed.
        device: Where sums are kept.
    """

    name = "pckh_0.5"
    title = "PCKh@0.5"

    def __init__(self, truth: MpiiGroundTruth, skeleton: Skeleton, device: torch.device) -> None:
        self.truth, self.way = truth, conversion(skeleton, MPII16, allow_missing=True)
        self.metric = PCKh(0.5).to(device)

    def protocol(self) -> str:
        """What the numbers are numbers of."""
        return (
            f"MPII's PCKh@0.5, {self.truth.about}, {_counted(self.way)}, mean without pelvis and "
            "thorax"
        )

    def update(self, index: Tensor, joints2d: Tensor, score: Tensor) -> None:
        """See `BenchmarkMetric`."""
        mine, rows = _known(self.truth, index)
        joints, _ = _as(self.way, joints2d, score, mine)
        truth = (self.truth.joints2d, self.truth.head, self.truth.labelled)
        self.metric.update(
            *(torch.from_numpy(part) for part in (joints, *(array[rows] for array in truth)))
        )

    def compute(self) -> tuple[float, dict[str, float]]:
        """See `BenchmarkMetric`."""
        report = self.metric.compute()
        return report["mean"], report


def make_benchmark_metrics(
    truths: Many[GroundTruth], skeleton: Skeleton, device: torch.device
) -> list[BenchmarkMetric]:
    """Who benchmark_metrics the samples that these truths are about."""
    return [
        CocoMetric(truth, skeleton, device)
        if isinstance(truth, CocoGroundTruth)
        else MpiiMetric(truth, skeleton, device)
        for truth in truths
    ]


def _counted(way: Conversion) -> str:
    if not way.missing:
        return f"{len(way.target)} joints"
    return f"{len(way.target)} joints, missed for want of them: {', '.join(way.missing)}"


def _known(truth: GroundTruth, index: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which of the samples a truth is about, as places in the batch, and their rows in it."""
    wanted = index.cpu().numpy()
    rows = np.searchsorted(truth.rows, wanted).clip(max=max(len(truth.rows) - 1, 0))
    mine = np.flatnonzero(truth.rows[rows] == wanted) if len(truth.rows) else rows[:0]
    return mine, rows[mine]


def _as(
    way: Conversion, joints2d: Tensor, score: Tensor, mine: NDArray[np.int64]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    joints = way.joints(joints2d.double().cpu().numpy()[mine])
    return joints, way.score(score.double().cpu().numpy()[mine])
