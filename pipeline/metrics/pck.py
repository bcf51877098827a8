"""PCK, PCKh, 3DPCK and AUC: shares of joints that are found within a threshold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.metrics.exact_metric import ExactSumMetric
from pipeline.metrics.functional import MILLIMETRES, as_tensor, check_shapes
from pipeline.metrics.joint_subsets import LIMB_JOINTS, SIDES, joints_3dpck
from pipeline.skeleton import MPI3DHP17, MPII16, Skeleton


class PCK(ExactSumMetric):
    """Share of joints found within a fraction of the person's size (correct keypoints, PCK).

    PCK@a = mean of [|predicted - target| <= a scale] over the joints that count.

    Args:
        joints: Names of the joints.
        thresholds: Fractions a of the person's size.
    """

    higher_is_better = True
    is_differentiable = False
    found: Tensor
    counted: Tensor

    def __init__(
        self, joints: Sequence[str], thresholds: Sequence[float] = (0.05, 0.1, 0.2)
    ) -> None:
        super().__init__()
        self.joints, self.thresholds = tuple(joints), tuple(thresholds)
        shape = (len(self.thresholds), len(self.joints))
        self.add_state("found", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("counted", torch.zeros(shape[1], dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self, predicted: Tensor, target: Tensor, scale: Tensor, counted: Tensor | None = None
    ) -> None:
        """Add images.

        Args:
            predicted: Predicted joints, pixels, (B, J, 2); NaN is not found.
            target: True joints, pixels, (B, J, 2).
            scale: The person's size in pixels, (B,).
            counted: Whether a joint counts, (B, J); none for all.

        Raises:
            ValueError: If an array has another shape.
        """
        B, J = len(predicted), len(self.joints)
        check_shapes((B, J, 2), predicted=predicted, target=target)
        check_shapes((B,), scale=scale)
        check_shapes((B, J), counted=counted)
        distance = torch.linalg.vector_norm(predicted.double() - target.double(), dim=-1)
        use = torch.ones_like(distance, dtype=torch.bool) if counted is None else counted.bool()
        use = use & (scale > 0)[:, None]  # a box of one labelled joint has no size
        limits = torch.outer(scale.new_tensor(self.thresholds, dtype=torch.float64), scale.double())
        self.found += ((distance <= limits[..., None]) & use).sum(1)
        self.counted += use.sum(0)

    def compute(self) -> dict[str, float]:
        """Shares from 0 to 1: `pck@0.05` of all joints, `pck@0.05/nose` of one; NaN without any."""
        report = {}
        shares = self.found.double() / self.counted
        total = self.found.sum(1).double() / self.counted.sum()
        for k, threshold in enumerate(self.thresholds):
            report[f"pck@{threshold:g}"] = total[k].item()
            for j, joint in enumerate(self.joints):
                report[f"pck@{threshold:g}/{joint}"] = shares[k, j].item()
        return report


class PCKPerSource(ExactSumMetric):
    """`PCK` of all joints and of the limb joints, for each source of a mixture of data sets.

    Args:
        sources: Names of the sources.
        joints: Names of the joints.
        thresholds: Fractions of the person's size.
    """

    higher_is_better = True
    is_differentiable = False
    found: Tensor
    counted: Tensor
    images: Tensor

    def __init__(
        self,
        sources: Sequence[str],
        joints: Sequence[str],
        thresholds: Sequence[float] = (0.05, 0.1, 0.2),
    ) -> None:
        super().__init__()
        self.sources, self.joints = tuple(sources), tuple(joints)
        self.thresholds = tuple(thresholds)
        limbs = {f"{side}_{joint}" for joint in LIMB_JOINTS for side in SIDES}
        self.limbs = [j for j, name in enumerate(self.joints) if name in limbs]
        shape = (len(self.sources), len(self.thresholds), len(self.joints))
        self.add_state("found", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")
        zeros = torch.zeros(shape[0], shape[2], dtype=torch.int64)
        self.add_state("counted", zeros, dist_reduce_fx="sum")
        self.add_state("images", zeros[:, 0].clone(), dist_reduce_fx="sum")

    def update(
        self, source: Tensor, predicted: Tensor, target: Tensor, scale: Tensor, counted: Tensor
    ) -> None:
        """Add images.

        Args:
            source: Index of the source of each image, (B,).
            predicted: Predicted joints, pixels, (B, J, 2); NaN is not found.
            target: True joints, pixels, (B, J, 2).
            scale: The person's size in pixels, (B,).
            counted: Whether a joint counts, (B, J).
        """
        for number in source.unique().tolist():
            chosen = source == number
            hits = PCK(self.joints, self.thresholds).to(self.found.device)
            hits.update(predicted[chosen], target[chosen], scale[chosen], counted[chosen])
            self.found[number] += hits.found
            self.counted[number] += hits.counted
            self.images[number] += chosen.sum()

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of `compute`."""
        shares = [f"pck@{threshold:g}" for threshold in self.thresholds]
        limbs = [f"limb {share}" for share in shares]
        return ("source", "images", "joints", *shares, "limb joints", *limbs)

    def compute(self) -> list[tuple[str | int | float, ...]]:
        """A row per source: its name, images, joints and their shares in per cent, limb joints."""
        rows: list[tuple[str | int | float, ...]] = []
        for number, name in enumerate(self.sources):
            row: list[str | int | float] = [name, int(self.images[number])]
            for joints in (list(range(len(self.joints))), self.limbs):
                total = self.counted[number, joints].sum()
                shares = 100 * self.found[number][:, joints].sum(1).double() / total
                row += [int(total), *shares.tolist()]
            rows.append(tuple(row))
        return rows


THRESHOLDS_MM = tuple(range(0, 151, 5))
"""Thresholds of MPI-INF-3DHP's AUC in millimetres; the last one is that of 3DPCK."""


def pck3d(
    predicted: NDArray | Tensor, target: NDArray | Tensor, *, skeleton: Skeleton = MPI3DHP17
) -> tuple[float, float]:
    """3DPCK at 150 mm and AUC of poses that are compared as given, shares from 0 to 1.

    Convention:
        3DPCK = mean of [|predicted - target| < 150 mm] over 14 joints. AUC is its mean over the
        thresholds 0, 5, …, 150 mm, of which the first finds none. One of two poses exact, the other
        0.15 m away in all its joints: 3DPCK 0.5, AUC 15 / 31.

    Args:
        predicted: Predicted joints, metres, (..., J, 3).
        target: True joints, metres, (..., J, 3).
        skeleton: The joint set of both.

    Source: Mehta et al. 2017, Monocular 3D Human Pose Estimation In The Wild.

    >>> import numpy as np
    >>> pair = np.zeros((2, 17, 3))
    >>> moved = pair + np.array([[[0.0]], [[0.15]]]) * np.array([0.0, 0.0, 1.0])
    >>> [round(31 * share, 6) for share in pck3d(moved, pair)]
    [15.5, 15.0]
    """
    metric = PCK3D(skeleton)
    metric.update(as_tensor(predicted), as_tensor(target))
    shares = metric.compute()
    return shares["pck3d@150mm"], shares["auc"]


class PCK3D(ExactSumMetric):
    """3DPCK at 150 mm and AUC of everything that `update` was called with; see `pck3d`.

    Args:
        skeleton: The joint set of the poses.
    """

    higher_is_better = True
    is_differentiable = False
    found: Tensor
    counted: Tensor

    def __init__(self, skeleton: Skeleton = MPI3DHP17) -> None:
        super().__init__()
        self.skeleton, self.joints = skeleton, joints_3dpck(skeleton)
        zeros = torch.zeros(len(THRESHOLDS_MM), dtype=torch.int64)
        self.add_state("found", zeros, dist_reduce_fx="sum")
        self.add_state("counted", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, target: Tensor, valid: Tensor | None = None) -> None:
        """Add poses.

        Args:
            predicted: Predicted joints, metres, (..., J, 3).
            target: True joints, metres, (..., J, 3).
            valid: Whether a pose counts, (...); none for all.

        Raises:
            ValueError: If an array has another shape.
        """
        frames = predicted.shape[:-2]
        check_shapes((*frames, len(self.skeleton), 3), predicted=predicted, target=target)
        check_shapes(frames, valid=valid)
        if valid is not None:
            predicted, target = predicted[valid.bool()], target[valid.bool()]
        counted = list(self.joints)
        difference = predicted[..., counted, :].double() - target[..., counted, :].double()
        error = torch.linalg.vector_norm(difference, dim=-1).flatten() * MILLIMETRES
        # A distance of 0.15 m has rounding errors: within 1 nm of a threshold it is not below it.
        limits = torch.tensor(THRESHOLDS_MM, dtype=torch.float64, device=error.device) - 1e-6
        places = torch.searchsorted(limits, error, right=True)
        found = torch.bincount(places, minlength=len(limits) + 1)[:-1].cumsum(0)
        self.found += found.to(self.found.device)
        self.counted += error.numel()

    def compute(self) -> dict[str, float]:
        """`pck3d@150mm` and `auc`, shares from 0 to 1; NaN before the first update."""
        shares = self.found.double() / self.counted
        return {"pck3d@150mm": shares[-1].item(), "auc": shares.mean().item()}


class PCKh(ExactSumMetric):
    """Share of MPII's joints found within a fraction of the head's size.

    Convention:
        PCKh@a = mean of [|predicted - target| <= 0.6 a diagonal of the head box] over the labelled
        joints without pelvis and thorax.

    Args:
        threshold: Fraction a of the head's size.

    Source: Andriluka et al. 2014, 2D Human Pose Estimation: New Benchmark and State of the Art
    Analysis, with the constants of its evaluation script.
    """

    higher_is_better = True
    is_differentiable = False
    found: Tensor
    counted: Tensor

    def __init__(self, threshold: float = 0.5) -> None:
        super().__init__()
        self.threshold = threshold
        zeros = torch.zeros(len(MPII16), dtype=torch.int64)
        self.add_state("found", zeros, dist_reduce_fx="sum")
        self.add_state("counted", zeros.clone(), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, target: Tensor, head: Tensor, labelled: Tensor) -> None:
        """Add people.

        Args:
            predicted: Predicted joints, pixels, MPII16, (B, 16, 2); NaN is not found.
            target: True joints, pixels, (B, 16, 2).
            head: Diagonal of the head box in pixels, (B,).
            labelled: Whether a joint counts, (B, 16).

        Raises:
            ValueError: If an array has another shape.
        """
        B, J = len(predicted), len(MPII16)
        check_shapes((B, J, 2), predicted=predicted, target=target)
        check_shapes((B,), head=head)
        check_shapes((B, J), labelled=labelled)
        distance = torch.linalg.vector_norm(predicted.double() - target.double(), dim=-1)
        near = distance <= self.threshold * 0.6 * head.double()[:, None]
        counts = labelled.bool()
        self.found += (near & counts).sum(0).to(self.found.device)
        self.counted += counts.sum(0).to(self.counted.device)

    def compute(self) -> dict[str, float]:
        """`head`, `shoulder`, … and `mean`, shares from 0 to 1; NaN where nothing was labelled."""
        shares = self.found.double() / self.counted
        report = {"head": shares[MPII16.index("head_top")].item()}
        for joint in LIMB_JOINTS:
            left, right = (shares[MPII16.index(f"{side}_{joint}")] for side in SIDES)
            report[joint] = (0.5 * (left + right)).item()
        rest = [j for j, name in enumerate(MPII16.joints) if name not in ("pelvis", "thorax")]
        report["mean"] = (self.found[rest].sum().double() / self.counted[rest].sum()).item()
        return report
