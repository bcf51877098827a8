"""Object keypoint similarity and average precision, as COCO defines them."""

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
from pipeline.metrics.modules import ExactMetric

SIGMAS = np.array(
    [0.026] + [0.025] * 2 + [0.035] * 2 + [0.079] * 2 + [0.072] * 2 + [0.062] * 2
    + [0.107] * 2 + [0.087] * 2 + [0.089] * 2
)  # fmt: skip
"""Spread of people's labels for each joint of COCO17, in parts of the square root of the area."""


AP_NAMES = ("AP", "AP50", "AP75", "AP-M", "AP-L", "AR", "AR50", "AR75", "AR-M", "AR-L")
"""COCO's ten numbers in its own order."""


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
    """Indices of the people of one image that are nobody twice, best score first.

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


def rescore(
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
    """COCO's ten numbers for people found on its images, by pycocotools.

    Args:
        annotations: COCO's annotation file, or its content.
        image_ids: Image of each person, (N,).
        joints: Pixels and score, COCO17, (N, 17, 3).
        scores: Of each person, (N,).

    Returns:
        `AP_NAMES` -> share from 0 to 1; -1 where nobody of that size is labelled. Of the people in
        an image the best 20 count.

    Raises:
        DataError: If an image is not of this annotation file.
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
                f"{_name(annotations)}: has no image {unknown[0]}; the people found are on others"
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
        benchmark_metric = COCOeval(truth, truth.loadRes(people) if people else found, "keypoints")
        benchmark_metric.evaluate()
        benchmark_metric.accumulate()
        benchmark_metric.summarize()
    return dict(zip(AP_NAMES, map(float, benchmark_metric.stats), strict=True))


def _name(annotations: Path | dict[str, Any]) -> str:
    return str(annotations) if isinstance(annotations, Path) else "annotations"


class OksAP(ExactMetric):
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
            image_ids: Image of each person, (B,).
            joints: Pixels and score, COCO17, (B, 17, 3).
            scores: Of each person (see `rescore`), (B,).
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
