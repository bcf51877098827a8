"""Benchmark metrics of a 2D stage: OKS-AP on people of COCO, PCKh on people of MPII."""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.metrics.oks import OksAP, rescore
from pipeline.metrics.pck import PCKh
from pipeline.skeleton import COCO17, MPII16, Conversion, Skeleton, make_conversion
from pipeline.sources import CocoGroundTruth, GroundTruth, MpiiGroundTruth

JOINT_SCORE = 0.2
"""A person's score is the mean over joints above this score (the simple baseline's constant)."""

OKS_NMS = 0.9
"""People with a larger OKS than this are one person (the simple baseline's constant)."""


class BenchmarkMetric(Protocol):
    """Protocol of the metrics of one benchmark, for any order of samples and any processes.

    Samples that the benchmark has no ground truth of are ignored.

    Attributes:
        name: Name in logs, without the split.
        title: Name in tables and printed lines.
    """

    name: str
    title: str

    def protocol(self) -> str:
        """Evaluation protocol, one line."""
        ...

    def update(self, index: Tensor, joints2d: Tensor, score: Tensor, area: Tensor) -> None:
        """Add the joints found in a batch of samples.

        Args:
            index: Indices of the samples in the source, (B,).
            joints2d: Joints found, pixels of the whole images, (B, J, 2).
            score: Scores of the joints, (B, J).
            area: Area that each crop shows, square pixels of the whole images, (B,).
        """
        ...

    def compute(self) -> tuple[float, dict[str, float]]:
        """The main metric, and all metrics by name; shares from 0 to 1."""
        ...


class CocoMetric:
    """COCO's ten metrics, AP first; see `pipeline.metrics.oks.OksAP`.

    OKS-NMS compares people relative to the areas of their crops: the box, made as wide or as high
    as the network's input, times the padding per side.

    Source: Xiao et al. 2018 and Sun et al. 2019, whose published numbers come from this chain.

    Args:
        truth: Ground truth of the samples of COCO.
        skeleton: Joint set of the joints found; joints of COCO17 that it lacks count as missed.
        device: Device of the metric's state.
    """

    name = "oks_ap"
    title = "OKS-AP"

    def __init__(self, truth: CocoGroundTruth, skeleton: Skeleton, device: torch.device) -> None:
        self.truth, self.conversion = truth, make_conversion(skeleton, COCO17, allow_missing=True)
        self.metric = OksAP(truth.annotations, nms=OKS_NMS).to(device)

    def protocol(self) -> str:
        """See `BenchmarkMetric`."""
        return (
            f"COCO's ten numbers, {self.truth.about}, {_describe_joints(self.conversion)}, "
            f"rescored by joints above {JOINT_SCORE}, OKS-NMS {OKS_NMS} on the areas of the crops"
        )

    def update(self, index: Tensor, joints2d: Tensor, score: Tensor, area: Tensor) -> None:
        """See `BenchmarkMetric`."""
        places, rows = _find_rows(self.truth, index)
        joints, scores = _convert(self.conversion, joints2d, score, places)
        people = (
            self.truth.image_ids[rows],
            np.concatenate([np.nan_to_num(joints), scores[..., None]], axis=-1),
            rescore(self.truth.scores[rows], scores, threshold=JOINT_SCORE),
            area.double().cpu().numpy()[places],
        )
        self.metric.update(*(torch.from_numpy(array).to(index.device) for array in people))

    def compute(self) -> tuple[float, dict[str, float]]:
        """See `BenchmarkMetric`."""
        report = self.metric.compute()
        return report["AP"], report


class MpiiMetric:
    """PCKh at 0.5, the mean and each joint; see `pipeline.metrics.pck.PCKh`.

    Args:
        truth: Ground truth of the samples of MPII.
        skeleton: Joint set of the joints found; joints of MPII16 that it lacks count as missed.
        device: Device of the metric's state.
    """

    name = "pckh_0.5"
    title = "PCKh@0.5"

    def __init__(self, truth: MpiiGroundTruth, skeleton: Skeleton, device: torch.device) -> None:
        self.truth, self.conversion = truth, make_conversion(skeleton, MPII16, allow_missing=True)
        self.metric = PCKh(0.5).to(device)

    def protocol(self) -> str:
        """See `BenchmarkMetric`."""
        return (
            f"MPII's PCKh@0.5, {self.truth.about}, {_describe_joints(self.conversion)}, mean "
            "without pelvis and thorax"
        )

    def update(self, index: Tensor, joints2d: Tensor, score: Tensor, area: Tensor) -> None:
        """See `BenchmarkMetric`."""
        places, rows = _find_rows(self.truth, index)
        joints, _ = _convert(self.conversion, joints2d, score, places)
        truth = self.truth
        people = (joints, truth.joints2d[rows], truth.head[rows], truth.labelled[rows])
        self.metric.update(*(torch.from_numpy(array) for array in people))

    def compute(self) -> tuple[float, dict[str, float]]:
        """See `BenchmarkMetric`."""
        report = self.metric.compute()
        return report["mean"], report


def make_benchmark_metrics(
    truths: Many[GroundTruth], skeleton: Skeleton, device: torch.device
) -> list[BenchmarkMetric]:
    """Make the benchmark metric of each ground truth.

    Args:
        truths: Ground truths of the samples of a split.
        skeleton: Joint set of the joints found.
        device: Device of the metrics' states.
    """
    return [
        CocoMetric(truth, skeleton, device)
        if isinstance(truth, CocoGroundTruth)
        else MpiiMetric(truth, skeleton, device)
        for truth in truths
    ]


def _describe_joints(conversion: Conversion) -> str:
    if not conversion.missing:
        return f"{len(conversion.target)} joints"
    return f"{len(conversion.target)} joints, counted as missed: {', '.join(conversion.missing)}"


def _find_rows(truth: GroundTruth, index: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Samples of a batch that a ground truth has: their places in the batch, their rows in it."""
    samples = index.cpu().numpy()
    rows = np.searchsorted(truth.rows, samples).clip(max=max(len(truth.rows) - 1, 0))
    places = np.flatnonzero(truth.rows[rows] == samples) if len(truth.rows) else rows[:0]
    return places, rows[places]


def _convert(
    conversion: Conversion, joints2d: Tensor, score: Tensor, places: NDArray[np.int64]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Joints and scores at these places of a batch in the benchmark's joint set, float64."""
    joints = conversion.joints(joints2d.double().cpu().numpy()[places])
    return joints, conversion.score(score.double().cpu().numpy()[places])
