"""ONNX files as estimators of 2D joints in crops, or of people and their joints in whole images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from pipeline.errors import DataError
from pipeline.files.onnx_files import read_onnx
from pipeline.heatmap import targets
from pipeline.heatmap.crop import apply_affine, crop_matrix, cut_image, invert_affine
from pipeline.predict.estimators import (
    Estimates,
    Estimator,
    StageEstimator,
    crop_matrices,
    nobody,
    upright_crops,
    upright_estimates,
)
from pipeline.predict.onnx_network import OnnxNetwork, import_onnxruntime
from pipeline.predict.onnx_own import make_own_estimator
from pipeline.predict.onnx_spec import OnnxSpec, recognise
from pipeline.predict.square_crops import Floats, box_overlaps

VERSION = 1
"""Raised whenever the same file and settings would give other joints than before."""

GREY = 114
"""Colour around a whole image, as RTMO and YOLO are trained with."""

LOWEST = 0.25
"""Lowest score of a person in a whole image; new people need the threshold of the finder."""

OVERLAP = 0.7
"""Intersection over union above which two boxes of YOLO are one person, as ultralytics has it."""

CANDIDATES = 1000
"""Largest number of boxes that are compared, the surest ones."""

FARTHEST = 1e5
"""Pixels; joints that are farther away, or nowhere, get the score 0."""

SAME_PERSON = 0.3
"""Intersection over union from which a person found in the whole image is the one of a crop."""


class _OnnxEstimator:
    """What both kinds of ONNX estimators have; see `Estimator`."""

    def __init__(self, network: OnnxNetwork, spec: OnnxSpec, name: str, digest: str) -> None:
        self.network, self.spec, self.name, self.digest = network, spec, name, digest
        self.skeleton, self.licence = spec.skeleton, spec.licence
        self.notes: tuple[str, ...] = ()
        """Sentences for the user: what was assumed about the file."""

    def settings(self) -> dict[str, Any]:
        """See `Estimator.settings`."""
        return {
            "estimator": "onnx",
            "version": VERSION,
            "presence": False,  # a mean of scores, or the score of a box: both may be low
            "provider": self.network.provider,
            **self.spec.settings(),
        }

    def _run(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Outputs for RGB images, uint8, (N, H, W, 3), of the size that the network takes."""
        spec = self.spec
        pixels = images[..., ::-1] if spec.channels == "BGR" else images
        scaled = pixels.astype(np.float32)
        scaled -= np.array(spec.mean, np.float32)
        scaled /= np.array(spec.std, np.float32)
        return self.network.run(scaled.transpose(0, 3, 1, 2), spec.outputs)

    def _shape_error(self, arrays: list[NDArray[np.float32]]) -> DataError:
        shapes = ", ".join(str(array.shape) for array in arrays)
        return DataError(
            f"{self.network.path}: gives {shapes}, which is not {self.spec.kind} of "
            f"{self.spec.count} joints for images {self.spec.input_size}; give its kind, joints "
            "and input_size in the .yaml file beside it"
        )


class CropOnnxEstimator(_OnnxEstimator):
    """RTMPose and networks with heatmaps: joints in upright crops of people.

    Args:
        network: The network.
        spec: What it is, of kind simcc or heatmaps.
        name: Name for people.
        digest: SHA-256 of the file.
    """

    def crops_of_boxes(self, boxes: Floats) -> Floats:
        """See `Estimator.crops_of_boxes`."""
        return upright_crops(boxes, self.spec.input_size, self.spec.padding)

    def estimate(self, image: NDArray[np.uint8], crops: Floats) -> Estimates:
        """See `Estimator.estimate`."""
        if not len(crops):
            return nobody(self.skeleton)
        size, padding = self.spec.input_size, self.spec.padding
        matrices = crop_matrices(crops, size)
        images = np.stack([cut_image(image, matrix, size) for matrix in matrices])
        outputs = self._run(images)
        simcc = self.spec.kind == "simcc"
        joints, score = self._read_vectors(*outputs) if simcc else self._read_maps(*outputs)
        known = np.isfinite(score)
        score = np.where(known, np.clip(score, 0, 1), 0).astype(np.float32)
        joints2d = apply_affine(invert_affine(matrices), joints).astype(np.float32)
        kept = len(self.skeleton)
        return upright_estimates(joints2d[:, :kept], score[:, :kept], crops, size, padding)

    def _read_vectors(
        self, x: NDArray[np.float32], y: NDArray[np.float32]
    ) -> tuple[Floats, NDArray[np.float32]]:
        """Joints in pixels of the crop, (N, J, 2), and scores, (N, J), of one vector per axis.

        Source: RTMPose (Jiang et al. 2023), with two bins per pixel; the score is the lower one of
        the two peaks.
        """
        ratios = [v.shape[2] / side for v, side in zip((x, y), self.spec.input_size, strict=True)]
        if x.shape[1] != self.spec.count or y.shape[1] != x.shape[1] or ratios[0] != ratios[1]:
            raise self._shape_error([x, y])
        joints = np.stack([x.argmax(axis=2), y.argmax(axis=2)], axis=-1) / ratios[0]
        return joints, np.minimum(x.max(axis=2), y.max(axis=2))

    def _read_maps(self, maps: NDArray[np.float32]) -> tuple[Floats, NDArray[np.float32]]:
        """Joints in pixels of the crop, (N, J, 2), and scores, (N, J), of heatmaps."""
        width, height = self.spec.input_size
        rows, columns = maps.shape[2:]
        if maps.shape[1] != self.spec.count or (4 * columns, 4 * rows) != (width, height):
            raise self._shape_error([maps])
        cells, score = targets.decode_quarter(torch.from_numpy(np.ascontiguousarray(maps)))
        if self.spec.cells == "udp":
            scale = np.array([(width - 1) / (columns - 1), (height - 1) / (rows - 1)])
            return cells.numpy() * scale, score.numpy()
        exact = self.spec.cells == "exact"
        offset = targets.EXACT_CELLS if exact else targets.PUBLISHED_CELLS
        return targets.to_pixels(cells, offset=offset).double().numpy(), score.numpy()


class WholeImageOnnxEstimator(_OnnxEstimator):
    """RTMO and YOLO-pose: all people of an image with their joints, found at once.

    The network runs once per image: what it finds is kept until another image comes. Each crop
    that is asked for gets the person who overlaps it most, each person at most once; a crop
    without a person has presence 0.

    Args:
        network: The network.
        spec: What it is, of kind rtmo or yolo.
        name: Name for people.
        digest: SHA-256 of the file.
    """

    def __init__(self, network: OnnxNetwork, spec: OnnxSpec, name: str, digest: str) -> None:
        super().__init__(network, spec, name, digest)
        self._image: NDArray[np.uint8] | None = None
        self._people = nobody(self.skeleton)

    def crops_of_boxes(self, boxes: Floats) -> Floats:
        """See `Estimator.crops_of_boxes`."""
        return upright_crops(boxes, (1, 1), 1.0)

    def estimate(self, image: NDArray[np.uint8], crops: Floats) -> Estimates:
        """See `Estimator.estimate`."""
        if not len(crops):
            return nobody(self.skeleton)
        people = self.find_people(image)
        found = Estimates(
            np.zeros((len(crops), len(self.skeleton), 2), np.float32),
            np.zeros((len(crops), len(self.skeleton)), np.float32),
            np.zeros(len(crops), np.float32),
            np.array(crops, np.float64),
        )
        theirs = _corners(people.next_crops)
        overlaps = np.array([box_overlaps(box, theirs) for box in _corners(found.next_crops)])
        for row, person in zip(*linear_sum_assignment(-overlaps), strict=True):
            if overlaps[row, person] >= SAME_PERSON:
                found.joints2d[row] = people.joints2d[person]
                found.score[row] = people.score[person]
                found.presence[row] = people.presence[person]
                found.next_crops[row] = people.next_crops[person]
        return found

    def find_people(self, image: NDArray[np.uint8]) -> Estimates:
        """All people in an image, the surest first; `next_crops` are around their boxes.

        Args:
            image: RGB, uint8, (H, W, 3).
        """
        if self._image is None or not np.array_equal(self._image, image):
            self._people, self._image = self._find(image), image.copy()
        return self._people

    def _find(self, image: NDArray[np.uint8]) -> Estimates:
        """Run the network on an image."""
        size = self.spec.input_size
        matrix = whole_image_matrix(image.shape[1::-1], size, self.spec.kind == "yolo")
        shown = cv2.warpAffine(
            image, matrix, size, flags=cv2.INTER_LINEAR, borderValue=(GREY, GREY, GREY)
        )
        outputs = self._run(np.asarray(shown, np.uint8)[None])
        read = self._read_yolo if self.spec.kind == "yolo" else self._read_rtmo
        corners, presence, joints = read(outputs)
        kept = keep_people(corners, presence)
        corners, joints = corners[kept].reshape(-1, 2, 2), joints[kept, : len(self.skeleton)]
        known = (np.abs(joints) < FARTHEST).all(axis=2, keepdims=True)
        nowhere = np.pad(corners.mean(axis=1), ((0, 0), (0, 1)))[:, None]  # mid-box, score 0
        joints = np.where(known, joints, nowhere)
        back = invert_affine(matrix)
        joints2d = apply_affine(back, joints[..., :2])
        boxes = apply_affine(back, corners)
        boxes = np.concatenate([boxes[:, 0], boxes[:, 1] - boxes[:, 0]], axis=1)
        return Estimates(
            joints2d.astype(np.float32),
            np.clip(joints[..., 2], 0, 1).astype(np.float32),
            np.clip(presence[kept], 0, 1).astype(np.float32),
            self.crops_of_boxes(boxes),
        )

    def _read_rtmo(self, outputs: list[NDArray[np.float32]]) -> tuple[Floats, Floats, Floats]:
        """Corners (N, 4), scores (N,), and joints with scores (N, J, 3), pixels of the input."""
        boxes, joints = outputs
        if boxes.shape[2:] != (5,) or joints.shape[1:] != (boxes.shape[1], self.spec.count, 3):
            raise self._shape_error(outputs)
        return boxes[0, :, :4].astype(float), boxes[0, :, 4].astype(float), joints[0].astype(float)

    def _read_yolo(self, outputs: list[NDArray[np.float32]]) -> tuple[Floats, Floats, Floats]:
        """The same of columns with centre, width, height, score and joints of each person."""
        (found,) = outputs
        columns = found[0].T.astype(float)
        values, rest = divmod(found.shape[1] - 5, self.spec.count)
        if rest or values not in (2, 3):
            raise self._shape_error(outputs)
        centre, half, presence = columns[:, :2], columns[:, 2:4] / 2, columns[:, 4]
        joints = columns[:, 5:].reshape(len(columns), self.spec.count, values)
        if values == 2:  # without scores of joints: that of the person
            scores = np.broadcast_to(presence[:, None, None], (*joints.shape[:2], 1))
            joints = np.concatenate([joints, scores], axis=2)
        return np.concatenate([centre - half, centre + half], axis=1), presence, joints


def whole_image_matrix(image: tuple[int, ...], size: tuple[int, int], centred: bool) -> Floats:
    """Affine map from pixels of an image to those of a network's input that shows all of it.

    >>> whole_image_matrix((1280, 640), (640, 640), centred=False).tolist()
    [[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]]
    >>> whole_image_matrix((1280, 640), (640, 640), centred=True).tolist()
    [[0.5, 0.0, -0.25], [0.0, 0.5, 159.75]]

    Args:
        image: Width and height of the image.
        size: Width and height of the input.
        centred: Whether the image is in the middle of the input, or at its top left.
    """
    if centred:
        return crop_matrix((-0.5, -0.5, *image[:2]), size, padding=1) + 0.0  # no negative zeros
    scale = min(size[0] / image[0], size[1] / image[1])
    return np.array([[scale, 0.0, 0.0], [0.0, scale, 0.0]])


def keep_people(corners: Floats, presence: Floats) -> NDArray[np.intp]:
    """Rows of the people that are kept, the surest first: non-maximum suppression.

    Args:
        corners: Left, top, right, bottom of each box, (N, 4).
        presence: Score of each, (N,).
    """
    finite = np.isfinite(corners).all(axis=1) & np.isfinite(presence)
    sides = np.where(finite[:, None], corners[:, 2:] - corners[:, :2], 0)
    rows = np.flatnonzero(finite & (presence >= LOWEST) & (sides > 0).all(axis=1))
    rows = rows[np.argsort(-presence[rows], kind="stable")][:CANDIDATES]
    kept: list[int] = []
    while len(rows):
        kept.append(int(rows[0]))
        rows = rows[1:][box_overlaps(corners[rows[0]], corners[rows[1:]]) <= OVERLAP]
    return np.array(kept, np.intp)


def _corners(crops: Floats) -> Floats:
    """Left, top, right, bottom of upright square crops, (N, 4)."""
    half = crops[:, 2:3] / 2
    return np.concatenate([crops[:, :2] - half, crops[:, :2] + half], axis=1)


class OwnPeopleFinder:
    """The people that an estimator of whole images finds itself.

    Args:
        estimator: The estimator.
        threshold: Lowest score of a person.
    """

    def __init__(self, estimator: WholeImageOnnxEstimator, threshold: float) -> None:
        self.estimator, self.threshold = estimator, threshold

    def settings(self) -> dict[str, Any]:
        """See `PersonFinder.settings`."""
        return {"finder": self.estimator.digest, "threshold": self.threshold, "version": VERSION}

    def find(self, image: NDArray[np.uint8], index: int, estimator: Estimator) -> Floats:
        """See `PersonFinder.find`."""
        people = self.estimator.find_people(image)
        return people.next_crops[people.presence >= self.threshold]


def load_onnx(
    path: Path, device: str, joints: str | None = None
) -> CropOnnxEstimator | WholeImageOnnxEstimator | StageEstimator:
    """Load an ONNX file as an estimator: one that Heatlift exported, or one of others.

    Args:
        path: The file; `FILE.yaml` beside `FILE.onnx` tells what it is, if it is there.
        device: Device of torch: the CPU, or cuda where onnxruntime has it.
        joints: Joint set, instead of that of the file.

    Raises:
        DataError: If the file is damaged, unknown, or refers to other files.
        UsageError: If onnxruntime is not installed.
    """
    import_onnxruntime(str(path))
    file = read_onnx(path)
    network = OnnxNetwork(file, device)
    if own := make_own_estimator(network, file):
        return own
    spec, notes = recognise(network, joints)
    kind = WholeImageOnnxEstimator if spec.finds_people else CropOnnxEstimator
    estimator = kind(network, spec, path.stem, file.digest)
    estimator.notes = (*network.notes, *notes)
    return estimator
