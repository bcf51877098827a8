"""PCK, PCKh, 3DPCK and AUC."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import DataError
from pipeline.metrics.functional import MILLIMETRES, as_tensor, check_shapes
from pipeline.metrics.modules import ExactMetric
from pipeline.skeleton import MPI3DHP17, MPII16, Skeleton


class PCK(ExactMetric):
    """Share of joints that are found within a part of the person's size.

    Args:
        joints: Names of the joints.
        thresholds: Parts of the size; a joint counts as found up to and including it.
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
            predicted: Pixels, (B, J, 2); NaN is not found.
            target: Pixels, (B, J, 2).
            scale: The person's size in pixels, (B,).
            counted: Joints that count, (B, J); none for all.

        Raises:
            ValueError: If a shape is not as said.
        """
        B, J = len(predicted), len(self.joints)
        check_shapes((B, J, 2), predicted=predicted, target=target)
        check_shapes((B,), scale=scale)
        check_shapes((B, J), counted=counted)
        distance = torch.linalg.vector_norm(predicted.double() - target.double(), dim=-1)
        use = torch.ones_like(distance, dtype=torch.bool) if counted is None else counted.bool()
        limits = torch.outer(scale.new_tensor(self.thresholds, dtype=torch.float64), scale.double())
        self.found += ((distance <= limits[..., None]) & use).sum(1)
        self.counted += use.sum(0)

    def compute(self) -> dict[str, float]:
        """`pck@0.05` -> share of all joints, `pck@0.05/nose` -> of one; NaN where none counted."""
        report = {}
        shares = self.found.double() / self.counted
        total = self.found.sum(1).double() / self.counted.sum()
        for k, threshold in enumerate(self.thresholds):
            report[f"pck@{threshold:g}"] = total[k].item()
            for j, joint in enumerate(self.joints):
                report[f"pck@{threshold:g}/{joint}"] = shares[k, j].item()
        return report


_LIMBS = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")


_SIDES = ("left", "right")


_COUNTED_3D = ("head", "thorax", *(f"{side}_{limb}" for limb in _LIMBS for side in _SIDES))


THRESHOLDS_MM = tuple(range(0, 151, 5))
"""Of the AUC of MPI-INF-3DHP; the last one is that of 3DPCK."""


def joints_3dpck(skeleton: Skeleton = MPI3DHP17) -> tuple[int, ...]:
    """Indices of the 14 joints that MPI-INF-3DHP counts: top of the head, neck and the limbs.

    Raises:
        DataError: If the joint set lacks one.
    """
    missing = [name for name in _COUNTED_3D if name not in skeleton.vocabulary]
    if missing:
        raise DataError(f"{skeleton.name} has no {', '.join(missing)}; 3DPCK counts them")
    return tuple(skeleton.vocabulary[name] for name in _COUNTED_3D)


def evaluated_joints(skeleton: Skeleton, count: int = 17, *, root: bool = True) -> tuple[int, ...]:
    """Indices of the joints that an error is a mean over.

    Args:
        skeleton: The joint set.
        count: 17 for all of a set, 16 without the nose, 14 without pelvis, spine and nose.
        root: Whether the root, whose error is zero in root-relative poses, counts.

    Raises:
        DataError: If the joint set does not have that many.

    >>> [len(evaluated_joints(MPI3DHP17, count, root=False)) for count in (17, 16, 14)]
    [16, 15, 14]
    """
    dropped: tuple[str, ...] = {17: (), 16: ("nose",), 14: ("pelvis", "spine", "nose")}[count]
    kept = [index for name, index in skeleton.vocabulary.items() if name not in dropped]
    if dropped and len(kept) != count:
        raise DataError(f"{skeleton.name} has {len(kept)} of the {count} joints to be scored")
    return tuple(index for index in kept if root or index != skeleton.root)


def pck3d(
    predicted: NDArray | Tensor, target: NDArray | Tensor, *, skeleton: Skeleton = MPI3DHP17
) -> tuple[float, float]:
    """3DPCK at 150 mm and AUC, as shares, of poses compared as given.

    Convention:
        A joint counts as found if its error is strictly below the threshold; AUC is the mean over
        0, 5, …, 150 mm, of which the first finds none. 14 joints count. One of two poses exact, the
        other 0.15 m away in all its joints: 3DPCK 0.5, AUC 15 / 31.

    Args:
        predicted: Metres, (..., J, 3).
        target: Metres, (..., J, 3).
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


class PCK3D(ExactMetric):
    """3DPCK at 150 mm and AUC over all that came; see `pck3d`.

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
        """Add poses, metres, (..., J, 3); `valid`, (...), says which of them count.

        Raises:
            ValueError: If a shape is not as said.
        """
        frames = predicted.shape[:-2]
        check_shapes((*frames, len(self.skeleton), 3), predicted=predicted, target=target)
        check_shapes(frames, valid=valid)
        if valid is not None:
            predicted, target = predicted[valid.bool()], target[valid.bool()]
        counted = list(self.joints)
        difference = predicted[..., counted, :].double() - target[..., counted, :].double()
        error = torch.linalg.vector_norm(difference, dim=-1).flatten() * MILLIMETRES
        # a difference of 0.15 m carries the rounding of its two positions: 1 nm decides nothing
        limits = torch.tensor(THRESHOLDS_MM, dtype=torch.float64, device=error.device) - 1e-6
        places = torch.searchsorted(limits, error, right=True)
        found = torch.bincount(places, minlength=len(limits) + 1)[:-1].cumsum(0)
        self.found += found.to(self.found.device)
        self.counted += error.numel()

    def compute(self) -> dict[str, float]:
        """`pck3d@150mm` and `auc`, shares from 0 to 1; NaN if nothing came."""
        shares = self.found.double() / self.counted
        return {"pck3d@150mm": shares[-1].item(), "auc": shares.mean().item()}


class PCKh(ExactMetric):
    """Share of MPII's joints found within a part of the head's size.

    Convention:
        The head's size is 0.6 times the diagonal of its box. A joint counts as found up to and
        including the threshold. The mean is over labelled joints without pelvis and thorax.

    Args:
        threshold: Part of the head's size.

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
            predicted: Pixels, MPII16, (B, 16, 2); NaN is not found.
            target: Pixels, (B, 16, 2).
            head: Diagonal of the head box in pixels, (B,).
            labelled: Joints that count, (B, 16).

        Raises:
            ValueError: If a shape is not as said.
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
        for limb in _LIMBS:
            pair = [shares[MPII16.index(f"{side}_{limb}")] for side in _SIDES]
            report[limb] = (0.5 * (pair[0] + pair[1])).item()
        rest = [j for j, name in enumerate(MPII16.joints) if name not in ("pelvis", "thorax")]
        report["mean"] = (self.found[rest].sum().double() / self.counted[rest].sum()).item()
        return report
