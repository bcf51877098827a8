"""BlazePose's person detector: an image to the square crops around the people in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from pipeline.errors import DataError
from pipeline.files.tflite import TfliteGraph, read_tflite
from pipeline.predict.blazepose import CORNER, describe, to_images
from pipeline.predict.square_crops import (
    Floats,
    box_overlaps,
    crops_from_points,
    cut_crops,
    to_image,
    whole_image,
)
from pipeline.predict.tflite_network import TfliteNetwork

GRIDS = ((28, 2), (14, 2), (7, 6))
"""Cells along each side of the image, and anchors in each cell."""

POINTS = 4
"""Middle of the hips, a point that gives size and rotation, and the same two of the upper body."""


@dataclass(frozen=True)
class People:
    """People that the detector found in an image, the most certain one first.

    Args:
        crops: Centre x, y, side and angle of the crop around each person, (N, 4).
        score: Probability that this is a person, (N,).
        boxes: x, y, width, height of the box that the detector gives, pixels, (N, 4).
        points: The detector's points, pixels, (N, 4, 2).
    """

    crops: Floats
    score: Floats
    boxes: Floats
    points: Floats


def make_anchors(size: int) -> Floats:
    """Centres of the cells of all grids, once per anchor, in pixels, (2254, 2).

    >>> make_anchors(224)[[0, 1, 2, 1568, 2253]].tolist()
    [[4.0, 4.0], [4.0, 4.0], [12.0, 4.0], [8.0, 8.0], [208.0, 208.0]]
    """
    found = []
    for cells, repeats in GRIDS:
        centres = (np.arange(cells) + 0.5) * (size / cells)
        y, x = np.meshgrid(centres, centres, indexing="ij")
        found.append(np.repeat(np.stack([x, y], -1).reshape(-1, 2), repeats, axis=0))
    return np.concatenate(found)


def merge_overlapping(
    boxes: Floats, points: Floats, score: Floats, overlap: float = 0.3
) -> tuple[Floats, Floats, Floats]:
    """Weighted non-maximum suppression: overlapping detections become their mean.

    The most certain detection is merged with all that overlap it, each weighted by its score, and
    keeps its own score; then the next one that is left.

    Args:
        boxes: Left, top, right, bottom, (N, 4).
        points: Points that are averaged with the boxes, (N, P, 2).
        score: Score of each detection, (N,).
        overlap: Intersection over union above which two detections are one.

    Returns:
        Boxes, points and scores, the highest score first.
    """
    order = np.argsort(-score, kind="stable")
    merged = []
    while len(order):
        same = box_overlaps(boxes[order[0]], boxes[order]) > overlap
        same[0] = True
        members = order[same]
        share = score[members] / score[members].sum()
        mean_points = np.tensordot(share, points[members], 1)
        merged.append((share @ boxes[members], mean_points, score[members[0]]))
        order = order[~same]
    if not merged:
        return boxes[:0], points[:0], score[:0]
    return tuple(np.stack(part) for part in zip(*merged, strict=True))  # type: ignore[return-value]


class PersonDetector(nn.Module):
    """BlazePose's detector of people.

    Args:
        graph: Graph of the weight file.

    Raises:
        DataError: If the graph is not that of the detector.

    Source: Bazarevsky et al., BlazePose (2020), and the weight file.
    """

    anchors: Tensor

    def __init__(self, graph: TfliteGraph) -> None:
        super().__init__()
        self.digest = graph.digest
        """SHA-256 of the weight file."""
        shape, outputs = describe(graph)
        self.size = shape[1] if len(shape) == 4 else 0
        """Side of the squares in pixels."""
        anchors = make_anchors(224)
        wanted = ((1, len(anchors), 4 + 2 * POINTS), (1, len(anchors), 1))
        if shape != (1, 224, 224, 3) or sorted(outputs) != sorted(wanted):
            raise DataError(
                f"{graph.path}: is no person detector of BlazePose; it turns {shape} into "
                f"{', '.join(map(str, outputs))}"
            )
        self.network = TfliteNetwork(graph, [outputs.index(shape) for shape in wanted])
        self.register_buffer("anchors", torch.from_numpy(anchors).float())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes and points (B, 2254, 12) about the anchors, and logits (B, 2254, 1), of RGB images.

        Args:
            images: -1 to 1, (B, 3, 224, 224).
        """
        return self.network(images)

    @torch.inference_mode()
    def find_people(
        self, squares: NDArray[np.uint8], threshold: float = 0.5
    ) -> list[tuple[Floats, Floats, Floats]]:
        """Detections in square images, before overlapping ones are merged.

        Args:
            squares: RGB, uint8, (N, 224, 224, 3).
            threshold: Lowest score.

        Returns:
            For each square, in its pixels: boxes as left, top, right, bottom (M, 4), points
            (M, 4, 2) and scores (M,).
        """
        images = to_images(squares, self.size, self.anchors.device)
        found, logits = (x.float() for x in self(images / 127.5 - 1))
        points = (
            found.reshape(*found.shape[:2], 2 + POINTS, 2) + self.anchors[:, None]
        ).double() - CORNER
        half = found[..., 2:4].double() / 2
        centre = points[:, :, 0]
        boxes = torch.cat([centre - half, centre + half], dim=-1).cpu().numpy()
        score = logits[..., 0].double().clamp(-100, 100).sigmoid().cpu().numpy()
        rest = points[:, :, 2:].cpu().numpy()
        return [(boxes[i][k], rest[i][k], score[i][k]) for i, k in enumerate(score >= threshold)]


def load_person_detector(path: Path, device: str = "cpu") -> PersonDetector:
    """The detector of a weight file, `pose_detection.tflite`.

    Args:
        path: Weight file.
        device: Device of torch.

    Raises:
        DataError: If the file is missing, damaged, or holds another network.
    """
    return PersonDetector(read_tflite(path)).eval().to(device)


def detect_people(
    detector: PersonDetector,
    image: NDArray[np.uint8],
    squares: ArrayLike | None = None,
    *,
    threshold: float = 0.5,
) -> People:
    """People in an image.

    Args:
        detector: The detector.
        image: RGB, uint8, (H, W, 3).
        squares: Parts of the image that the detector looks at, as crops (S, 4); None for the whole
            image. It finds people from a fifth of a square upwards: `overlapping_squares` finds
            smaller ones, and squares turned by quarters people who are not upright.
        threshold: Lowest score.
    """
    height, width = image.shape[:2]
    squares = whole_image(width, height) if squares is None else np.asarray(squares, np.float64)
    found = detector.find_people(cut_crops(image, squares, detector.size), threshold)
    corners, points, score = [np.empty((0, 4))], [np.empty((0, POINTS, 2))], [np.empty(0)]
    for square, (boxes, some, scores) in zip(squares, found, strict=True):
        x, y = boxes[:, [0, 2, 2, 0]], boxes[:, [1, 1, 3, 3]]
        turned = to_image(np.stack([x, y], axis=-1), square, detector.size)
        corners.append(np.concatenate([turned.min(axis=1), turned.max(axis=1)], axis=1))
        points.append(to_image(some, square, detector.size))
        score.append(scores)
    merged = merge_overlapping(
        np.concatenate(corners), np.concatenate(points), np.concatenate(score)
    )
    boxes = np.concatenate([merged[0][:, :2], merged[0][:, 2:] - merged[0][:, :2]], axis=1)
    return People(crops_from_points(merged[1][:, :2]), merged[2], boxes, merged[1])
