"""Crops: the affine map from an image to the input of a network, and its augmentation."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline import rng
from pipeline.skeleton import Skeleton

Floats = NDArray[np.float64]

LUMINANCE = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in the brightness (ITU-R BT.601)."""

NOISE_BANK = 1 << 21
"""Size of the bank that noise is cut from: more than twice what a 512 x 512 crop needs."""

LOWER_BODY = ("pelvis", "hip", "knee", "ankle")
"""Parts of the names of the joints of the lower half of the body."""


def crop_matrix(
    box: ArrayLike,
    size: tuple[int, int],
    *,
    padding: float = 1.25,
    rotation: ArrayLike = 0.0,
    scale: ArrayLike = 1.0,
    shift: ArrayLike = (0.0, 0.0),
    flip: ArrayLike = False,
) -> Floats:
    """Affine map from pixels of an image to pixels of a crop around a box.

    Convention:
        Integer coordinates are pixel centres. The centre of the box, (x + w/2, y + h/2), maps to
        the centre of the crop, ((W-1)/2, (H-1)/2). The crop shows the smallest upright rectangle
        with its aspect ratio around the box, enlarged by `padding`. A 100 x 100 box at (0,
        0) without padding is shown at half size in a 50 x 50 crop:

        >>> matrix = crop_matrix((0, 0, 100, 100), (50, 50), padding=1)
        >>> apply_affine(matrix, [[50.0, 50.0], [60.0, 50.0]]).tolist()
        [[24.5, 24.5], [29.5, 24.5]]

    Args:
        box: x, y, width, height in pixels, (..., 4); sides below one pixel count as one.
        size: Width W and height H of the crop in pixels.
        padding: Size of the crop relative to the box.
        rotation: Angle in degrees by which the person is rotated in the crop, from x towards y
            (clockwise on the screen), (...).
        scale: Further factor on the size: above 1 the person gets smaller, (...).
        shift: Translation of the person as a share of the crop's width and height, (..., 2).
        flip: Whether the crop is mirrored, x -> W-1-x, as the last step, (...).

    Returns:
        Similarity, mirrored where flipped, (..., 2, 3).

    Source: Sun et al. 2019, section 4.1 (aspect ratio, 1.25). Differs from the published code:
    pixel centres, not corners.
    """
    corner, extent = np.split(np.asarray(box, np.float64), 2, axis=-1)
    target = np.asarray(size, np.float64)
    sides = np.maximum(extent, 1.0)
    shown = np.maximum(sides[..., 0], sides[..., 1] * (target[0] / target[1])) * padding
    zoom = target[0] / (shown * np.asarray(scale, np.float64))
    angle = np.deg2rad(np.asarray(rotation, np.float64))
    cosine, sine = np.broadcast_arrays(zoom * np.cos(angle), zoom * np.sin(angle))
    linear = np.stack([cosine, -sine, sine, cosine], axis=-1).reshape(*cosine.shape, 2, 2)
    centre = (target - 1) / 2 + np.asarray(shift, np.float64) * target
    offset = centre - (linear @ (corner + extent / 2)[..., None])[..., 0]
    mirror = np.asarray(flip, bool)
    matrix = np.empty((*np.broadcast_shapes(offset.shape[:-1], mirror.shape), 2, 3))
    matrix[..., :2], matrix[..., 2] = linear, offset
    mirrored = np.concatenate([-matrix[..., :1, :], matrix[..., 1:, :]], axis=-2)
    mirrored[..., 0, 2] += target[0] - 1
    return np.where(mirror[..., None, None], mirrored, matrix)


def apply_affine(matrix: Floats, points: ArrayLike) -> Floats:
    """Transform points by affine maps.

    Args:
        matrix: Affine maps, (..., 2, 3).
        points: Pixels, (..., N, 2); NaN stays NaN.

    Returns:
        Pixels, (..., N, 2).
    """
    linear = np.asarray(points, np.float64) @ np.swapaxes(matrix[..., :2], -1, -2)
    return linear + matrix[..., None, :, 2]


def invert_affine(matrix: Floats) -> Floats:
    """Inverse affine maps, from pixels of crops to pixels of images, (..., 2, 3).

    >>> invert_affine(crop_matrix((0, 0, 100, 100), (50, 50), padding=1))[0].tolist()
    [2.0, 0.0, 1.0]
    """
    linear = np.linalg.inv(matrix[..., :2]) + 0.0  # no negative zeros
    return np.concatenate([linear, -linear @ matrix[..., 2:]], axis=-1)


def cut_image(
    image: NDArray[np.uint8], matrix: ArrayLike, size: tuple[int, int]
) -> NDArray[np.uint8]:
    """What a crop shows of an image, black outside it.

    Args:
        image: uint8, (H, W, 3).
        matrix: Affine map from pixels of the image to pixels of the crop, (2, 3).
        size: Width and height of the crop in pixels.

    Returns:
        uint8, (H', W', 3).
    """
    return cv2.warpAffine(  # type: ignore[return-value]
        image, np.asarray(matrix, np.float64), size, flags=cv2.INTER_LINEAR
    )


@dataclass(frozen=True)
class Augmentation:
    """Random variation of training crops. The defaults are HRNet's for COCO.

    Args:
        flip: Probability of mirroring, from 0 to 1.
        rotation: Standard deviation of the rotation in degrees, clipped at twice that.
        rotation_chance: Probability of any rotation, from 0 to 1.
        scale: Standard deviation of the scale factor around 1, clipped at once that.
        shift: Largest shift as a share of the crop's sides, drawn uniformly.
        half_body: Probability of showing only the upper or the lower body where more than eight
            joints are labelled, from 0 to 1; a person of whom only one half is labelled shows that.
        quarter_turns: Add a rotation of 0, 90, 180 or 270 degrees.
        patches: Probability of covering a rectangle with one colour, from 0 to 1.
        colour: Strength of changes of brightness, contrast, saturation and tint; 0 for none.
        noise: Standard deviation of Gaussian noise in grey levels; 0 for none.

    Source: Sun et al. 2019, section 4.1 (flip, rotation, scale, half body); paper 002 (colour,
    noise, quarter turns); paper 004 (shift).
    """

    flip: float = 0.5
    rotation: float = 45.0
    rotation_chance: float = 0.6
    scale: float = 0.35
    shift: float = 0.0
    half_body: float = 0.3
    quarter_turns: bool = False
    patches: float = 0.0
    colour: float = 0.0
    noise: float = 0.0


def tight_boxes(joints2d: ArrayLike, counted: NDArray[np.bool_]) -> Floats:
    """Smallest upright boxes around the joints that count.

    Args:
        joints2d: Pixels, (..., J, 2).
        counted: Whether a joint counts, (..., J).

    Returns:
        x, y, width, height, (..., 4); NaN where no joint counts.
    """
    joints2d = np.asarray(joints2d, np.float64)
    low = np.where(counted[..., None], joints2d, np.inf).min(axis=-2)
    high = np.where(counted[..., None], joints2d, -np.inf).max(axis=-2)
    box = np.concatenate([low, high - low], axis=-1)
    return np.where(np.any(counted, axis=-1, keepdims=True), box, np.nan)


def augmented_matrices(
    boxes: NDArray[np.floating],
    joints2d: NDArray[np.floating],
    labelled: NDArray[np.bool_],
    size: tuple[int, int],
    *,
    skeleton: Skeleton,
    augmentation: Augmentation,
    padding: float,
    key: tuple[int, int, NDArray[np.int64]],
) -> tuple[Floats, NDArray[np.bool_]]:
    """Crop matrices of training samples, each with random numbers from its own key.

    Args:
        boxes: x, y, width, height in pixels of the image, (B, 4).
        joints2d: Pixels of the image, (B, J, 2).
        labelled: Whether a joint is labelled, (B, J); half-body boxes are around those.
        size: Width and height of the crops in pixels.
        skeleton: The joint set of J.
        augmentation: Random variation of the crops.
        padding: Size of a crop relative to its box.
        key: Seed, epoch and sample indices (B,).

    Returns:
        Matrices (B, 2, 3), and whether each crop is mirrored (B,): there left and right joints must
        be swapped.
    """
    a = augmentation
    flip, rotate, quarter, halve, upper, *where = rng.uniform("crop", *key, lanes=7).T
    angle, zoom = rng.normal("crop", *key, lanes=2).T
    rotation = np.clip(angle, -2, 2) * a.rotation * (rotate < a.rotation_chance)
    if a.quarter_turns:
        rotation = rotation + 90.0 * np.floor(4 * quarter)
    half = _half_body_boxes(joints2d, labelled, skeleton, upper)
    halved = (halve < a.half_body) & (labelled.sum(axis=1) > 8) & np.isfinite(half).all(axis=1)
    mirrored = flip < a.flip
    matrices = crop_matrix(
        np.where(halved[..., None], half, boxes),
        size,
        padding=padding,
        rotation=rotation,
        scale=1.0 + a.scale * np.clip(zoom, -1, 1),
        shift=a.shift * (2.0 * np.stack(where, axis=-1) - 1.0),
        flip=mirrored,
    )
    return matrices, mirrored


def _half_body_boxes(
    joints2d: NDArray[np.floating],
    labelled: NDArray[np.bool_],
    skeleton: Skeleton,
    upper: Floats,
) -> Floats:
    """Boxes 1.2 times the extent of the upper body (probability 0.7) or of the lower body.

    Where fewer than three joints of that half are labelled it is the other half; NaN where both
    have fewer.

    Differs from HRNet's code: the box is centred on the extent of the joints, not on their mean.
    """
    lower = np.array([any(part in name for part in LOWER_BODY) for name in skeleton.joints])
    half = np.where((upper < 0.7)[:, None], ~lower, lower)
    has_few = (labelled & half).sum(axis=1) < 3
    counted = labelled & (half ^ has_few[:, None])
    boxes = tight_boxes(joints2d, counted & (counted.sum(axis=1) > 2)[:, None])
    corner, extent = np.split(boxes, 2, axis=1)
    return np.concatenate([corner - 0.1 * extent, 1.2 * extent], axis=1)


def augment_images(
    images: NDArray[np.uint8],
    *,
    augmentation: Augmentation,
    key: tuple[int, int, NDArray[np.int64]],
) -> NDArray[np.uint8]:
    """Vary the colours of crops, add noise and patches, with random numbers from each crop's key.

    Args:
        images: RGB, uint8, (B, H, W, 3); not changed.
        augmentation: Random variation of the crops.
        key: Seed, epoch and sample indices (B,).

    Returns:
        RGB, uint8, (B, H, W, 3); `images` themselves if the augmentation does not change them.
    """
    a = augmentation
    if not (a.colour or a.patches or a.noise):
        return images
    height, width = images.shape[1:3]
    matrices = _colour_matrices(a.colour, key)
    draws = rng.uniform("patch", *key, lanes=8)
    colours = np.floor(256 * draws[:, 5:])
    sides = np.floor((0.1 + 0.2 * draws[:, 1:3]) * (width, height)).astype(int)
    corners = np.floor(draws[:, 3:5] * (np.array([width, height]) - sides)).astype(int)
    starts = rng.random_bits("noise", *key, lanes=1)[:, 0]
    varied = np.empty_like(images)
    for i, image in enumerate(images):
        if a.colour:
            image = cv2.transform(image, matrices[i])
        if a.noise:
            bank = _noise_bank(a.noise, max(NOISE_BANK, 2 * image.size))
            start = starts[i] % (len(bank) - image.size)
            noise = bank[start:][: image.size].reshape(image.shape)
            image = cv2.add(image, noise, dtype=cv2.CV_8U)
        varied[i] = image
        if draws[i, 0] < a.patches:
            (x, y), (w, h) = corners[i], sides[i]
            varied[i, y : y + h, x : x + w] = colours[i]
    return varied


@functools.lru_cache(maxsize=2)
def _noise_bank(deviation: float, size: int) -> NDArray[np.int16]:
    """Noise in grey levels that crops take pieces of: drawing it per crop would be too slow."""
    bank = rng.make_generator("noise").standard_normal(size, np.float32)
    return np.round(deviation * bank).astype(np.int16)


def _colour_matrices(strength: float, key: tuple[int, int, NDArray[np.int64]]) -> Floats:
    """Tint, contrast, saturation and brightness as one affine map of RGB, (B, 3, 4)."""
    draws = strength * rng.uniform("colour", *key, lanes=6, low=-1.0, high=1.0)
    saturation, contrast, brightness = (1 + draws[:, 0], 1 + draws[:, 1], 128 * draws[:, 2])
    grey = np.ones((3, 1)) * LUMINANCE
    mixed = saturation[:, None, None] * np.eye(3) + (1 - saturation)[:, None, None] * grey
    tint = 1 + 0.5 * draws[:, 3:]
    linear = (contrast[:, None] * tint)[:, :, None] * mixed
    offset = np.repeat((128 * (1 - contrast) + brightness)[:, None, None], 3, axis=1)
    return np.concatenate([linear, offset], axis=2)
