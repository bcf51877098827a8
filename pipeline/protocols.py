"""Numbers as their benchmarks define them: 3DPCK and AUC, PCKh, OKS-AP."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import DataError
from pipeline.metrics import MILLIMETRES, _check, _Exact, _tensor
from pipeline.skeleton import MPI3DHP17, MPII16, Skeleton

_LIMBS = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
_SIDES = ("left", "right")
_COUNTED_3D = ("head", "thorax", *(f"{side}_{limb}" for limb in _LIMBS for side in _SIDES))

THRESHOLDS_MM = tuple(range(0, 151, 5))
"""Of the AUC of MPI-INF-3DHP; the last one is that of 3DPCK."""

SIGMAS = np.array(
    [0.026] + [0.025] * 2 + [0.035] * 2 + [0.079] * 2 + [0.072] * 2 + [0.062] * 2
    + [0.107] * 2 + [0.087] * 2 + [0.089] * 2
)  # fmt: skip
"""Spread of people's labels for each joint of COCO17, in parts of the square root of the area."""

AP_NAMES = ("AP", "AP50", "AP75", "AP-M", "AP-L", "AR", "AR50", "AR75", "AR-M", "AR-L")
"""COCO's ten numbers in its own order."""


def joints_of_3dpck(skeleton: Skeleton = MPI3DHP17) -> tuple[int, ...]:
    """Indices of the 14 joints that MPI-INF-3DHP counts: top of the head, neck and the limbs.

    Raises:
        DataError: If the joint set lacks one.
    """
    missing = [name for name in _COUNTED_3D if name not in skeleton.vocabulary]
    if missing:
        raise DataError(f"{skeleton.name} has no {', '.join(missing)}; 3DPCK counts them")
    return tuple(skeleton.vocabulary[name] for name in _COUNTED_3D)


def scored_joints(skeleton: Skeleton, count: int = 17, *, root: bool = True) -> tuple[int, ...]:
    """Indices of the joints that an error is a mean over.

    Args:
        skeleton: The joint set.
        count: 17 for all of a set, 16 without the nose, 14 without pelvis, spine and nose.
        root: Whether the root, whose error is zero in root-relative poses, counts.

    Raises:
        DataError: If the joint set does not have that many.

    >>> [len(scored_joints(MPI3DHP17, count, root=False)) for count in (17, 16, 14)]
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

    >>> pair = np.zeros((2, 17, 3))
    >>> moved = pair + np.array([[[0.0]], [[0.15]]]) * np.array([0.0, 0.0, 1.0])
    >>> [round(31 * share, 6) for share in pck3d(moved, pair)]
    [15.5, 15.0]
    """
    metric = PCK3D(skeleton)
    metric.update(_tensor(predicted), _tensor(target))
    shares = metric.compute()
    return shares["pck3d@150mm"], shares["auc"]


class PCK3D(_Exact):
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
        self.skeleton, self.joints = skeleton, joints_of_3dpck(skeleton)
        zeros = torch.zeros(len(THRESHOLDS_MM), dtype=torch.int64)
        self.add_state("found", zeros, dist_reduce_fx="sum")
        self.add_state("counted", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, target: Tensor, valid: Tensor | None = None) -> None:
        """Add poses, metres, (..., J, 3); `valid`, (...), says which of them count.

        Raises:
            ValueError: If a shape is not as said.
        """
        frames = predicted.shape[:-2]
        _check((*frames, len(self.skeleton), 3), predicted=predicted, target=target)
        _check(frames, valid=valid)
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


class PCKh(_Exact):
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
        _check((B, J, 2), predicted=predicted, target=target)
        _check((B,), head=head)
        _check((B, J), labelled=labelled)
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


def oks(
    joints: NDArray[np.floating], others: NDArray[np.floating], area: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Similarity of one person's joints to those of others, from 0 to 1, (N,).

    Args:
        joints: Pixels, COCO17, (17, 2).
        others: Pixels, (N, 17, 2).
        area: Square pixels that distances are relative to, (N,).

    Source: COCO's definition, mean of exp(-d^2 / (2 area (2 sigma)^2)) over the joints.
    """
    square = ((others.astype(np.float64) - joints) ** 2).sum(-1)
    spread = 2.0 * np.asarray(area, np.float64)[:, None] * (2.0 * SIGMAS) ** 2
    return np.exp(-square / np.maximum(spread, np.spacing(1.0))).mean(-1)


def oks_nms(
    joints: NDArray[np.floating],
    scores: NDArray[np.floating],
    areas: NDArray[np.floating],
    *,
    threshold: float = 0.9,
) -> NDArray[np.int64]:
    """Indices of the people of one picture that are nobody twice, best score first.

    Args:
        joints: Pixels, COCO17, (N, 17, 2).
        scores: Of each person, (N,).
        areas: Of each person's box in square pixels, (N,).
        threshold: A person more similar than this to a better one is left out.

    Source: Papandreou et al. 2017, section 3.4; similarity relative to the mean of the two areas.
    """
    order = np.argsort(-np.asarray(scores), kind="stable")
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        near = oks(joints[best], joints[order], (areas[best] + areas[order]) / 2)
        order = order[near <= threshold]
    return np.array(kept, np.int64)


def rescored(
    box_score: NDArray[np.floating], joint_score: NDArray[np.floating], *, threshold: float = 0.2
) -> NDArray[np.float64]:
    """Score of a person: that of the box times the mean of the joints above the threshold, (N,).

    Args:
        box_score: (N,).
        joint_score: (N, J).
        threshold: Joints with less do not count; with none the score is 0.

    Source: Xiao et al. 2018, as used for COCO's table by the simple baseline and HRNet.
    """
    counts = joint_score > threshold
    total = np.where(counts, joint_score, 0.0).sum(-1, dtype=np.float64)
    return np.asarray(box_score, np.float64) * total / np.maximum(counts.sum(-1), 1)


def oks_ap(
    annotations: Path | dict[str, Any],
    image_ids: NDArray[np.integer],
    joints: NDArray[np.floating],
    scores: NDArray[np.floating],
) -> dict[str, float]:
    """COCO's ten numbers for people found on its pictures, by pycocotools.

    Args:
        annotations: COCO's annotation file, or its content.
        image_ids: Picture of each person, (N,).
        joints: Pixels and score, COCO17, (N, 17, 3).
        scores: Of each person, (N,).

    Returns:
        `AP_NAMES` -> share from 0 to 1; -1 where nobody of that size is labelled. Of the people in
        a picture the best 20 count.

    Raises:
        DataError: If a picture is not of this annotation file.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = COCO(str(annotations) if isinstance(annotations, Path) else None)
        if isinstance(annotations, dict):
            truth.dataset = annotations
            truth.createIndex()
        unknown = sorted(set(map(int, image_ids)) - set(truth.getImgIds()))
        if unknown:
            raise DataError(
                f"{_name(annotations)}: has no picture {unknown[0]}; the people found are on others"
            )
        people = [
            {"image_id": int(i), "category_id": 1, "keypoints": flat, "score": float(score)}
            for i, flat, score in zip(
                image_ids,
                joints.reshape(len(joints), 3 * len(SIGMAS)).tolist(),
                scores,
                strict=True,
            )
        ]
        found = COCO()  # of nobody: loadRes takes no empty list
        found.dataset = {**truth.dataset, "annotations": []}
        found.createIndex()
        judge = COCOeval(truth, truth.loadRes(people) if people else found, "keypoints")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return dict(zip(AP_NAMES, map(float, judge.stats), strict=True))


def _name(annotations: Path | dict[str, Any]) -> str:
    return str(annotations) if isinstance(annotations, Path) else "annotations"


class OksAP(_Exact):
    """COCO's ten numbers over all people that came, in any order and from any process.

    Args:
        annotations: COCO's annotation file.
        nms: Leave out who is more similar than this to a better one (see `oks_nms`); none for all.
    """

    higher_is_better = True
    is_differentiable = False
    rows: list[Tensor]

    def __init__(self, annotations: str, *, nms: float | None = 0.9) -> None:
        super().__init__()
        self.annotations, self.nms = Path(annotations), nms
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, image_ids: Tensor, joints: Tensor, scores: Tensor, areas: Tensor) -> None:
        """Add people.

        Args:
            image_ids: Picture of each person, (B,).
            joints: Pixels and score, COCO17, (B, 17, 3).
            scores: Of each person (see `rescored`), (B,).
            areas: Of each person's box in square pixels, (B,).
        """
        heads = torch.stack([part.double() for part in (image_ids, scores, areas)], dim=1)
        self.rows.append(torch.cat([heads, joints.double().flatten(1)], dim=1))

    def compute(self) -> dict[str, float]:
        """`AP`, `AP50`, …: shares from 0 to 1; see `oks_ap`."""
        parts: Sequence[Tensor] = self.rows if isinstance(self.rows, list) else [self.rows]
        width = 3 + 3 * len(SIGMAS)
        rows = torch.cat([torch.zeros(0, width, dtype=torch.float64), *(p.cpu() for p in parts)])
        found = rows.numpy()
        found = found[np.lexsort(found.T[::-1])]  # the same for any order of arrival
        ids, scores, areas = found[:, 0].astype(np.int64), found[:, 1], found[:, 2]
        joints = found[:, 3:].reshape(-1, len(SIGMAS), 3)
        if self.nms is not None and len(ids):
            starts = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]])
            groups = np.split(np.arange(len(ids)), starts[1:])
            kept = np.concatenate(
                [
                    group[
                        oks_nms(
                            joints[group, :, :2], scores[group], areas[group], threshold=self.nms
                        )
                    ]
                    for group in groups
                ]
            )
            ids, scores, joints = ids[kept], scores[kept], joints[kept]
        return oks_ap(self.annotations, ids, joints, scores)
