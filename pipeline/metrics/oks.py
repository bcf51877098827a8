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
from pipeline.metrics.exact_metric import ExactSumMetric

SIGMAS = np.array(
    [0.026] + [0.025] * 2 + [0.035] * 2 + [0.079] * 2 + [0.072] * 2 + [0.062] * 2
    + [0.107] * 2 + [0.087] * 2 + [0.089] * 2
)  # fmt: skip
"""Deviation of COCO's labels per joint of COCO17, relative to the square root of the area."""

AP_NAMES = ("AP", "AP50", "AP75", "AP-M", "AP-L", "AR", "AR50", "AR75", "AR-M", "AR-L")
"""COCO's ten numbers in its own order."""


def oks(
    joints: NDArray[np.floating], others: NDArray[np.floating], area: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Object keypoint similarity of one person's joints to those of others, from 0 to 1, (N,).

    OKS = mean of exp(-d^2 / (2 area (2 sigma)^2)) over the joints, d their distance in pixels.

    Args:
        joints: Joints of one person, pixels, COCO17, (17, 2).
        others: Joints of the others, pixels, (N, 17, 2).
        area: Area that distances are relative to, square pixels, (N,).

    Source: COCO's definition.
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
    """Non-maximum suppression by OKS: indices of the people of one image to keep, best score first.

    Args:
        joints: Joints, pixels, COCO17, (N, 17, 2).
        scores: Score of each person, (N,).
        areas: Area of each person in square pixels, (N,); in published numbers that of the crop.
        threshold: A person with a larger OKS than this to a better one is left out.

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
    """Score of each person, (N,): box score times the mean score of joints above the threshold.

    Args:
        box_score: Score of each box, (N,).
        joint_score: Scores of the joints, (N, J).
        threshold: Score that a joint must exceed to count; if none does, the person's score is 0.

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
    """COCO's ten metrics of people detected on its images, computed by pycocotools.

    Args:
        annotations: COCO's annotation file, or its content.
        image_ids: Image of each person, (N,).
        joints: x, y in pixels and score of each joint, COCO17, (N, 17, 3).
        scores: Score of each person, (N,).

    Returns:
        Each of `AP_NAMES` as a share from 0 to 1; -1 where nobody of that size is labelled. Of the
        people in an image the 20 with the best scores count.

    Raises:
        DataError: If an image is not in the annotations.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    name = str(annotations) if isinstance(annotations, Path) else "annotations"
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = COCO(str(annotations) if isinstance(annotations, Path) else None)
        if isinstance(annotations, dict):
            people_of_truth = [dict(person) for person in annotations["annotations"]]
            truth.dataset = {**annotations, "annotations": people_of_truth}  # it writes into them
            truth.createIndex()
        unknown = sorted(set(map(int, image_ids)) - set(truth.getImgIds()))
        if unknown:
            raise DataError(f"{name}: has no image {unknown[0]}; the people found are on others")
        people = [
            {"image_id": int(i), "category_id": 1, "keypoints": flat, "score": float(score)}
            for i, flat, score in zip(
                image_ids,
                joints.reshape(len(joints), 3 * len(SIGMAS)).tolist(),
                scores,
                strict=True,
            )
        ]
        if people:
            detected = truth.loadRes(people)
        else:  # loadRes takes no empty list
            detected = COCO()
            detected.dataset = {**truth.dataset, "annotations": []}
            detected.createIndex()
        evaluation = COCOeval(truth, detected, "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(AP_NAMES, map(float, evaluation.stats), strict=True))


class OksAP(ExactSumMetric):
    """COCO's ten metrics of all people that `update` was called with, in any order and process.

    Args:
        annotations: Path of COCO's annotation file, or its content.
        nms: Threshold of `oks_nms`, applied to the people of each image; none to keep all.
    """

    higher_is_better = True
    is_differentiable = False
    rows: list[Tensor]

    def __init__(self, annotations: str | dict[str, Any], *, nms: float | None = 0.9) -> None:
        super().__init__()
        self.annotations = Path(annotations) if isinstance(annotations, str) else annotations
        self.nms = nms
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, image_ids: Tensor, joints: Tensor, scores: Tensor, areas: Tensor) -> None:
        """Add people.

        Args:
            image_ids: Image of each person, (B,).
            joints: x, y in pixels and score of each joint, COCO17, (B, 17, 3).
            scores: Score of each person (see `rescore`), (B,).
            areas: Area of each person for `oks_nms`, square pixels, (B,).
        """
        columns = torch.stack([part.double() for part in (image_ids, scores, areas)], dim=1)
        self.rows.append(torch.cat([columns, joints.double().flatten(1)], dim=1))

    def compute(self) -> dict[str, float]:
        """`AP`, `AP50`, … as shares from 0 to 1; see `oks_ap`."""
        parts: Sequence[Tensor] = self.rows if isinstance(self.rows, list) else [self.rows]
        width = 3 + 3 * len(SIGMAS)
        rows = torch.cat([torch.zeros(0, width, dtype=torch.float64), *(p.cpu() for p in parts)])
        people = rows.numpy()
        people = people[np.lexsort(people.T[::-1])]  # the same for any order of arrival
        ids, scores, areas = people[:, 0].astype(np.int64), people[:, 1], people[:, 2]
        joints = people[:, 3:].reshape(-1, len(SIGMAS), 3)
        if self.nms is not None and len(ids):
            kept = _suppress_per_image(ids, joints, scores, areas, threshold=self.nms)
            ids, scores, joints = ids[kept], scores[kept], joints[kept]
        return oks_ap(self.annotations, ids, joints, scores)


def _suppress_per_image(
    image_ids: NDArray[np.int64],
    joints: NDArray[np.float64],
    scores: NDArray[np.float64],
    areas: NDArray[np.float64],
    *,
    threshold: float,
) -> NDArray[np.int64]:
    """Indices of the people that `oks_nms` keeps in each image; `image_ids` are sorted."""
    starts = np.flatnonzero(np.r_[True, image_ids[1:] != image_ids[:-1]])
    kept = []
    for image in np.split(np.arange(len(image_ids)), starts[1:]):
        best = oks_nms(joints[image, :, :2], scores[image], areas[image], threshold=threshold)
        kept.append(image[best])
    return np.concatenate(kept)
