"""Estimators of 2D joints: one protocol for BlazePose, our own 2D stages and ONNX files."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from pipeline.heatmap.crop import apply_affine, crop_matrix, cut_image, invert_affine, tight_boxes
from pipeline.heatmap.image_stage import ImageStage
from pipeline.predict.blazepose import BlazePose
from pipeline.predict.person_detector import PersonDetector, detect_people
from pipeline.predict.square_crops import Floats, cut_crops, overlapping_squares
from pipeline.skeleton import BLAZEPOSE33, Skeleton

SURE = 0.3
"""Score from which a joint counts for the crop of the next frame."""


@dataclass(frozen=True, eq=False)
class Estimates:
    """2D joints that an estimator finds in N crops of an image.

    Args:
        joints2d: Pixels of the image, (N, J, 2).
        score: Score of each joint, 0 to 1, (N, J).
        presence: Score of the person as a whole, 0 to 1, (N,).
        next_crops: Crops around the same people for the next frame, (N, 4).
    """

    joints2d: NDArray[np.float32]
    score: NDArray[np.float32]
    presence: NDArray[np.float32]
    next_crops: Floats

    def __getitem__(self, rows: Any) -> Estimates:
        """Some of the people."""
        parts = {f.name: getattr(self, f.name)[rows] for f in dataclasses.fields(self)}
        return Estimates(**parts)


class Estimator(Protocol):
    """What finds the 2D joints of people in crops of an image.

    A crop is (x, y, side, angle): its centre and its longer side in pixels of the image, and the
    angle in radians by which it is turned clockwise on the screen.

    Attributes:
        name: Name for people.
        skeleton: Joint set.
        digest: SHA-256 of the weights.
        licence: Licence of the weights; "" if it is not known.

    It may also have `notes`, a tuple of sentences for the user: what was assumed about it.
    """

    name: str
    skeleton: Skeleton
    digest: str
    licence: str

    def settings(self) -> dict[str, Any]:
        """Everything besides the weights that affects the joints, as plain types."""
        ...

    def crops_of_boxes(self, boxes: Floats) -> Floats:
        """Crops that show boxes x, y, width, height, (N, 4) -> (N, 4)."""
        ...

    def estimate(self, image: NDArray[np.uint8], crops: Floats) -> Estimates:
        """Find the joints of the people in crops of an image.

        Args:
            image: RGB, uint8, (H, W, 3).
            crops: Crops, (N, 4); N may be 0.
        """
        ...


def estimator_facts(estimator: Estimator) -> dict[str, str]:
    """Facts of an estimator for the file of a motion."""
    return {
        "name": estimator.name,
        "digest": estimator.digest,
        "licence": estimator.licence,
        "joints": estimator.skeleton.name,
    }


class BlazePoseEstimator:
    """A landmark network of BlazePose as an estimator.

    Args:
        network: The network.
        name: Name for people, such as `blazepose-full`.
    """

    skeleton = BLAZEPOSE33
    licence = "Apache-2.0"

    def __init__(self, network: BlazePose, name: str) -> None:
        self.network, self.name, self.digest = network, name, network.digest

    def settings(self) -> dict[str, Any]:
        """See `Estimator.settings`."""
        return {"estimator": "blazepose", "version": 1}

    def crops_of_boxes(self, boxes: Floats) -> Floats:
        """See `Estimator.crops_of_boxes`."""
        side = 1.25 * boxes[:, 2:].max(axis=1, initial=0, keepdims=True)
        return np.concatenate([boxes[:, :2] + boxes[:, 2:] / 2, side, 0 * side], axis=1)

    def estimate(self, image: NDArray[np.uint8], crops: Floats) -> Estimates:
        """See `Estimator.estimate`."""
        if not len(crops):
            return nobody(self.skeleton)
        size = self.network.size
        found = self.network.find_joints(cut_crops(image, crops, size)).in_image(crops, size)
        return Estimates(
            found.joints2d.astype(np.float32),
            found.score.astype(np.float32),
            found.presence.astype(np.float32),
            found.next_crops(),
        )


class StageEstimator:
    """A trained or imported 2D stage (heatmap or integral) as an estimator.

    Args:
        module: The stage, in evaluation mode on its device.
        name: Name for people.
        digest: Digest of its weights.
    """

    licence: str = ""
    notes: tuple[str, ...] = ()

    def __init__(self, module: ImageStage, name: str, digest: str) -> None:
        self.module, self.name, self.digest = module, name, digest
        self.skeleton = module.skeleton
        self.size, self.padding = module.input_size, module.padding

    def settings(self) -> dict[str, Any]:
        """See `Estimator.settings`."""
        return {"estimator": "stage", "presence": False, **self.module.settings()}

    def crops_of_boxes(self, boxes: Floats) -> Floats:
        """See `Estimator.crops_of_boxes`."""
        return upright_crops(boxes, self.size, self.padding)

    def estimate(self, image: NDArray[np.uint8], crops: Floats) -> Estimates:
        """See `Estimator.estimate`."""
        if not len(crops):
            return nobody(self.skeleton)
        matrices = crop_matrices(crops, self.size)
        images = np.stack([cut_image(image, matrix, self.size) for matrix in matrices])
        with torch.inference_mode():
            joints, score = self.module.detect(torch.from_numpy(images).to(self.module.device))
        in_crops, scores = joints.float().cpu().numpy(), score.float().cpu().numpy()
        joints2d = apply_affine(invert_affine(matrices), in_crops).astype(np.float32)
        return upright_estimates(joints2d, np.clip(scores, 0, 1), crops, self.size, self.padding)


def upright_crops(boxes: ArrayLike, size: tuple[int, int], padding: float) -> Floats:
    """Upright crops around boxes, (N, 4), as networks with upright crops are trained.

    Args:
        boxes: x, y, width, height, (N, 4).
        size: Width and height of the network's input.
        padding: Size of a crop relative to the box.
    """
    boxes = np.asarray(boxes, np.float64)
    width, height = size
    shown = np.maximum(boxes[:, 2] / width, boxes[:, 3] / height) * padding * max(size)
    centre = boxes[:, :2] + boxes[:, 2:] / 2
    return np.concatenate([centre, np.maximum(shown, 1)[:, None], 0 * shown[:, None]], axis=1)


def crop_matrices(crops: Floats, size: tuple[int, int]) -> Floats:
    """Affine maps from pixels of the image to pixels of crops of this size, (N, 2, 3)."""
    extent = crops[:, 2:3] * (np.asarray(size) / max(size))
    boxes = np.concatenate([crops[:, :2] - extent / 2, extent], axis=1)
    return crop_matrix(boxes, size, padding=1, rotation=-np.rad2deg(crops[:, 3]))


def upright_estimates(
    joints2d: NDArray[np.float32],
    score: NDArray[np.float32],
    crops: Floats,
    size: tuple[int, int],
    padding: float,
) -> Estimates:
    """Estimates of a network with upright crops; the next crop is around the joints it is sure of.

    Args:
        joints2d: Pixels of the image, (N, J, 2).
        score: Scores of the joints, (N, J).
        crops: The crops they were found in, (N, 4); they stay where fewer than four joints are
            sure.
        size: Width and height of the network's input.
        padding: Size of a crop relative to the person's box.
    """
    sure = score >= SURE
    boxes = tight_boxes(joints2d, sure)
    few = sure.sum(axis=1) < 4
    following = upright_crops(np.where(few[:, None], 0.0, boxes), size, padding)
    return Estimates(
        joints2d,
        score.astype(np.float32),
        score.mean(axis=1).astype(np.float32),
        np.where(few[:, None], crops, following),
    )


def nobody(skeleton: Skeleton) -> Estimates:
    """Estimates of no person."""
    J = len(skeleton)
    return Estimates(
        np.zeros((0, J, 2), np.float32),
        np.zeros((0, J), np.float32),
        np.zeros(0, np.float32),
        np.zeros((0, 4)),
    )


class PersonFinder(Protocol):
    """What finds people in an image, as crops for an estimator."""

    def settings(self) -> dict[str, Any]:
        """Everything that affects the people, as plain types."""
        ...

    def find(self, image: NDArray[np.uint8], index: int, estimator: Estimator) -> Floats:
        """Crops of people for the estimator, (N, 4), the surest first.

        Args:
            image: RGB, uint8, (H, W, 3).
            index: Number of the frame in the source.
            estimator: Estimator that gets the crops.
        """
        ...


class BlazePoseFinder:
    """BlazePose's person detector on overlapping squares.

    Args:
        detector: The detector.
        threshold: Lowest score of a person.
    """

    def __init__(self, detector: PersonDetector, threshold: float) -> None:
        self.detector, self.threshold = detector, threshold

    def settings(self) -> dict[str, Any]:
        """See `PersonFinder.settings`."""
        return {"finder": self.detector.digest, "threshold": self.threshold, "version": 1}

    def find(self, image: NDArray[np.uint8], index: int, estimator: Estimator) -> Floats:
        """See `PersonFinder.find`."""
        height, width = image.shape[:2]
        ratio = max(width, height) / min(width, height)
        squares = overlapping_squares(width, height, max(1, int(np.ceil(2 * ratio)) - 1))
        people = detect_people(self.detector, image, squares, threshold=self.threshold)
        if isinstance(estimator, BlazePoseEstimator):
            return people.crops
        return estimator.crops_of_boxes(body_boxes(people.crops))


def body_boxes(crops: Floats) -> Floats:
    """Boxes x, y, width, height that hold the people of BlazePose's crops, (N, 4).

    A crop is about 1.25 times as large as a person with outstretched limbs.
    """
    side = crops[:, 2:3] / 1.25
    return np.concatenate([crops[:, :2] - side / 2, side, side], axis=1)


class WholeImage:
    """The whole image as the box of the only person, where no person detector is there."""

    notes = (
        "the whole image is taken for one person, because there is no person detector "
        "(--boxes, or heatlift weights get blazepose)",
    )

    def settings(self) -> dict[str, Any]:
        """See `PersonFinder.settings`."""
        return {"finder": "whole image"}

    def find(self, image: NDArray[np.uint8], index: int, estimator: Estimator) -> Floats:
        """See `PersonFinder.find`."""
        height, width = image.shape[:2]
        return estimator.crops_of_boxes(np.array([[0.0, 0.0, width, height]]))


class BoxesOfFile:
    """People's boxes from a file, for each frame.

    Args:
        boxes: Number of the frame -> boxes x, y, width, height, (N, 4).
        digest: SHA-256 of the file.
    """

    def __init__(self, boxes: dict[int, Floats], digest: str) -> None:
        self.boxes, self.digest = boxes, digest

    def settings(self) -> dict[str, Any]:
        """See `PersonFinder.settings`."""
        return {"finder": "boxes", "digest": self.digest}

    def find(self, image: NDArray[np.uint8], index: int, estimator: Estimator) -> Floats:
        """See `PersonFinder.find`."""
        return estimator.crops_of_boxes(self.boxes.get(index, np.zeros((0, 4))))
