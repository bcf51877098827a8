"""Cameras: world to camera to pixels to normalised 2D and back, lens distortion, random cameras."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline import rng
from pipeline.errors import DataError
from pipeline.skeleton import H36M17

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array", NDArray[np.floating], "torch.Tensor")
"""NumPy array or tensor; a function returns the kind that it gets. Arrays become float64; tensors
keep type and device, and integer tensors become float32."""


CAMERA_FRAME = "camera: x right, y down, z forward"
"""Frame of reference of a camera, as files with poses name it."""

PIXEL_FRAME = "pixels of the whole image: origin top-left, x right, y down"
"""Frame of reference of an image, as files with poses name it."""


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera with lens distortion and a pose in the world.

    Convention:
        World: metres, z up. Camera: x right, y down, z forward. A world point X is at `rotation @
        (X - centre)` in the camera frame. Pixels: origin top-left, integer coordinates are pixel
        centres.

    Args:
        rotation: World to camera, (3, 3), float64.
        centre: Position in the world, metres, (3,).
        focal: Focal lengths fx, fy in pixels, (2,).
        principal: Principal point cx, cy in pixels, (2,).
        size: Width and height of the image in pixels.
        distortion: k1, k2, p1, p2, k3 in OpenCV's order, (5,).
        lens: Distortion formula: OpenCV's or Human3.6M's.
    """

    rotation: NDArray[np.float64]
    centre: NDArray[np.float64]
    focal: NDArray[np.float64]
    principal: NDArray[np.float64]
    size: tuple[int, int]
    distortion: NDArray[np.float64]
    lens: Literal["opencv", "human36m"] = "opencv"


def check_camera(camera: Camera, place: str) -> Camera:
    """Return a camera that can be real; every reader of cameras calls this.

    Bounds: focal lengths of 0.02 to 100 image sides (175 to 0.6 degrees), a factor of 3 apart at
    most; principal point at most one image side outside; rotation orthonormal within 0.001, with
    determinant +1; centre within 10 km of the origin, beyond which float32 is coarser than 1 mm;
    lens distortion that moves points half-way to the nearest side to 0.2 to 5 times their distance.

    Raises:
        DataError: If it cannot be real; the message begins with `place`, the file and the camera.
    """
    size, (fx, fy), (cx, cy) = np.array(camera.size), camera.focal, camera.principal
    turns = np.radians(np.arange(0, 360, 45))[:, None]
    with np.errstate(all="ignore"):  # what is not finite fails all comparisons
        ray = np.hstack([np.cos(turns), np.sin(turns)]) * (size.min() / 4 / camera.focal.min())
        moved = (_distort(ray, camera) * ray).sum(axis=1) / (ray * ray).sum(axis=1)
        skew = np.abs(camera.rotation @ camera.rotation.T - np.eye(3)).max()
        focal_fits = (camera.focal >= 0.02 * size) & (camera.focal <= 100 * size)
        offset = np.abs(camera.principal - size / 2)
        checks = (
            ("image size", (size >= 1) & (size <= 2**16)),
            (f"focal length {fx:g}, {fy:g} pixels", [*focal_fits, max(fx, fy) <= 3 * min(fx, fy)]),
            (f"principal point {cx:g}, {cy:g} pixels", offset <= 1.5 * size),
            ("rotation", [skew <= 1e-3, np.linalg.det(camera.rotation) > 0]),
            (f"position {camera.centre.round(3).tolist()} m", np.linalg.norm(camera.centre) <= 1e4),
            (f"distortion {camera.distortion.tolist()}", (moved >= 0.2) & (moved <= 5)),
        )
    for what, holds in checks:
        if not np.all(holds):
            shape = f"{size[0]}x{size[1]} pixels"
            raise DataError(f"{place}: {what} of a camera of {shape} cannot be real; correct it")
    return camera


LEVEL_ROTATION = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
"""World to camera of a level camera: world x right, y ahead, z up."""


def _as_type_of(points: Array, numbers: ArrayLike) -> Array:
    """Numbers as an array or tensor of the type and device of `points`."""
    if isinstance(points, np.ndarray):
        return np.asarray(numbers, points.dtype)
    return points.new_tensor(np.asarray(numbers))


def _to_float(points: Array) -> Array:
    """Convert arrays to float64 and integer tensors to float32."""
    if isinstance(points, np.ndarray):
        return points.astype(np.float64)
    return points if points.is_floating_point() else points.float()


def _positive_or_nan(depth: Array) -> Array:
    """Depths, with NaN where they are not above zero."""
    if isinstance(depth, np.ndarray):
        return np.where(depth > 0, depth, np.nan)
    return depth.where(depth > 0, float("nan"))


def world_to_camera(points: Array, camera: Camera) -> Array:
    """Transform points from the world to the camera frame.

    Args:
        points: World, metres, (..., 3).
        camera: The camera, of which the pose is used.

    Returns:
        Camera frame, metres, (..., 3).
    """
    points = _to_float(points)
    return (points - _as_type_of(points, camera.centre)) @ _as_type_of(points, camera.rotation.T)


def camera_to_world(points: Array, camera: Camera) -> Array:
    """Transform points from the camera frame, metres, (..., 3), to the world."""
    points = _to_float(points)
    return points @ _as_type_of(points, camera.rotation) + _as_type_of(points, camera.centre)


def is_in_front(points: Array) -> Array:
    """Whether points of the camera frame, (..., 3), are in front of the camera (z > 0), (...)."""
    return points[..., 2] > 0  # type: ignore[return-value]


def project(points: Array, camera: Camera) -> Array:
    """Project points from the camera frame onto the image.

    Convention:
        A point on the optical axis is projected to the principal point. Points that are not in
        front of the camera become NaN; see `is_in_front`.

    Args:
        points: Camera frame, metres, (..., 3).
        camera: The camera, of which focal length, principal point and lens are used.

    Returns:
        Pixels, (..., 2).

    Source: OpenCV's pinhole model with k1, k2, p1, p2, k3; for `human36m` the formula of
    Human3.6M's own files, which clamps the ray to [-1, 1] and has half of the first tangential
    term. Human3.6M stores the tangential pair as (p2, p1); here both lenses have OpenCV's order.

    >>> focal, principal = np.array([1000.0, 900.0]), np.array([500.0, 400.0])
    >>> eye = Camera(np.eye(3), np.zeros(3), focal, principal, (1000, 800), np.zeros(5))
    >>> [float(x) for x in project(np.array([0.5, -0.2, 4.0]), eye)]
    [625.0, 355.0]
    """
    points = _to_float(points)
    ray = points[..., :2] / _positive_or_nan(points[..., 2:])
    if camera.lens == "human36m":
        ray = ray.clip(-1, 1)
    focal, principal = _as_type_of(points, camera.focal), _as_type_of(points, camera.principal)
    return _distort(ray, camera) * focal + principal


def _distort(ray: Array, camera: Camera) -> Array:
    """Apply lens distortion to rays x/z, y/z, (..., 2)."""
    k1, k2, p1, p2, k3 = (float(number) for number in camera.distortion)
    square = (ray * ray).sum(-1)[..., None]
    tangent = _as_type_of(ray, (p2, p1))
    radial = 1 + square * (k1 + square * (k2 + square * k3))
    slant = (ray * tangent).sum(-1)[..., None] * _tangential_weight(camera)
    return ray * (radial + slant) + tangent * square


def _tangential_weight(camera: Camera) -> float:
    """Factor on the term ray times tangential pair, in which the two lenses differ."""
    return 1.0 if camera.lens == "human36m" else 2.0


def back_project(
    pixels: NDArray[np.floating], depth: NDArray[np.floating], camera: Camera
) -> NDArray[np.float64]:
    """Compute points of the camera frame from pixels and depths: the inverse of `project`.

    Args:
        pixels: Pixels, (..., 2).
        depth: z in the camera frame, metres, (...).
        camera: The camera of the pixels.

    Returns:
        Camera frame, metres, (..., 3); NaN where the lens folds the image or has no inverse.

    Source: Newton's method on `project`'s formula, ten steps, starting at the distorted ray.
    """
    k1, k2, p1, p2, k3 = (float(number) for number in camera.distortion)
    distorted = (np.asarray(pixels, np.float64) - camera.principal) / camera.focal
    tangent = np.array([p2, p1])
    ray = distorted
    for _ in range(10 if np.any(camera.distortion) else 0):
        square = (ray * ray).sum(-1)
        growth = 2 * k1 + square * (4 * k2 + square * 6 * k3)
        scale = (
            1
            + square * (k1 + square * (k2 + square * k3))
            + _tangential_weight(camera) * (ray @ tangent)
        )
        slope = scale[..., None, None] * np.eye(2) + 2 * tangent[:, None] * ray[..., None, :]
        across = growth[..., None] * ray + _tangential_weight(camera) * tangent
        slope = slope + ray[..., :, None] * across[..., None, :]
        error = distorted - _distort(ray, camera)
        ray = ray + np.linalg.solve(slope, error[..., None])[..., 0]
    if np.any(camera.distortion):
        found = np.abs(distorted - _distort(ray, camera)).max(axis=-1, keepdims=True) < 1e-6
        ray = np.where(found, ray, np.nan)
    depth = np.asarray(depth, np.float64)[..., None]
    return np.concatenate([ray * depth, depth + 0 * ray[..., :1]], axis=-1)


def normalise(pixels: Array, size: tuple[int, int]) -> Array:
    """Normalise pixels, as lifters need it: x from -1 to 1 over the width, y in the same scale.

    Convention:
        `x / w * 2 - 1` and `y / w * 2 - h / w`; flipping the image negates x. The data type is
        kept.

    Args:
        pixels: Pixels, (..., 2).
        size: Width and height of the image.

    Returns:
        Normalised 2D, (..., 2).

    Source: Pavllo et al. 2019 (VideoPose3D), section 4.

    >>> [round(float(x), 6) for x in normalise(np.array([750.0, 100.0]), (1000, 800))]
    [0.5, -0.6]
    """
    width, height = size
    scaled = pixels / width * 2
    return scaled - _as_type_of(scaled, (1.0, height / width))


def denormalise(normalised: Array, size: tuple[int, int]) -> Array:
    """Convert normalised 2D, (..., 2), to pixels: the inverse of `normalise`."""
    width, height = size
    scaled = normalised * width / 2
    return scaled + _as_type_of(scaled, (width / 2, height / 2))


def rotation_from_quaternion(quaternion: ArrayLike) -> NDArray[np.float64]:
    """Convert quaternions w, x, y, z, (..., 4), not necessarily unit, to rotations, (..., 3, 3)."""
    q = np.asarray(quaternion, np.float64)
    w, x, y, z = np.moveaxis(q / np.linalg.norm(q, axis=-1, keepdims=True), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def look_at_rotation(
    centre: ArrayLike, target: ArrayLike, roll: ArrayLike = 0.0
) -> NDArray[np.float64]:
    """Rotation of a camera that looks at a point, with a level horizon if `roll` is 0.

    Args:
        centre: Position of the camera in the world, (..., 3).
        target: Point of the world on the optical axis, (..., 3).
        roll: Rotation about the optical axis in degrees, clockwise as seen from behind the camera,
            (...).

    Returns:
        Rotations from world to camera, (..., 3, 3).

    Raises:
        ValueError: If the target is straight above or below the camera, or at its position; then
            the horizon is not defined.
    """
    forward = np.asarray(target, np.float64) - np.asarray(centre, np.float64)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    length = np.linalg.norm(right, axis=-1, keepdims=True)
    if not (length > 1e-9).all():
        raise ValueError("a camera cannot look straight up or down, or at itself; move the target")
    right = right / length
    forward = forward / np.linalg.norm(forward, axis=-1, keepdims=True)
    down = np.cross(forward, right)
    angle = np.radians(np.asarray(roll, np.float64))[..., None]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack(
        np.broadcast_arrays(cos * right + sin * down, cos * down - sin * right, forward), axis=-2
    )


def random_cameras(
    clips: NDArray[np.floating],
    seed: int,
    epoch: int,
    index: NDArray[np.integer],
    *,
    pitch: tuple[float, float] = (-15.0, 15.0),
    distance: tuple[float, float] = (3.0, 7.0),
    focal: tuple[float, float] = (2.2, 2.4),
    offset: float = 0.5,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Project each clip with its own random camera, from any side.

    The middle of a clip is at `distance` from the camera and up to `offset` metres beside the
    optical axis. If a joint would be outside of the (square) image or closer than 1 m, the camera
    moves back until none is.

    Args:
        clips: World, metres, (B, T, J, 3).
        seed: Seed of the run.
        epoch: Epoch; each epoch has other cameras.
        index: Index of each clip, (B,); a camera depends on (seed, epoch, index) only.
        pitch: Range of the angle at which the camera looks up (positive) or down, degrees.
        distance: Range of the distance, metres.
        focal: Range of the focal length in normalised units (2 f / width); Human3.6M's cameras have
            2.29 to 2.30.
        offset: Largest distance of the clip's middle from the optical axis, to each side, metres.

    Returns:
        Clips in the camera frame, metres, (B, T, J, 3), float32, and normalised 2D, (B, T, J, 2),
        float32.

    Source: Paper 001 projects motion capture "at random" without details; the ranges are those of
    Human3.6M, with the pitch in both directions. A roll with 2 degrees standard deviation is added,
    as for cameras mounted by hand.
    """
    B, T, J, _ = clips.shape
    draw = rng.uniform(seed, "camera", epoch, np.asarray(index), lanes=6)
    yaw = 2 * np.pi * draw[:, 0]
    up = np.radians(pitch[0] + (pitch[1] - pitch[0]) * draw[:, 1])
    distances = distance[0] + (distance[1] - distance[0]) * draw[:, 2]
    focals = focal[0] + (focal[1] - focal[0]) * draw[:, 3]
    forward = [np.cos(up) * np.cos(yaw), np.cos(up) * np.sin(yaw), np.sin(up)]
    roll = 2 * rng.normal(seed, "camera roll", epoch, np.asarray(index), lanes=1)[:, 0]
    rotation = look_at_rotation(np.zeros(3), np.stack(forward, axis=-1), roll)
    points = clips.reshape(B, T * J, 3)
    points = (points - points.mean(axis=1, keepdims=True)).astype(np.float32)
    points = points @ rotation.transpose(0, 2, 1).astype(np.float32)
    points[..., :2] += (offset * (2 * draw[:, None, 4:] - 1)).astype(np.float32)
    reach = np.abs(points[..., :2]).max(axis=-1) * focals[:, None]
    closest = np.maximum(reach, 1.0) - points[..., 2]
    points[..., 2] += np.maximum(distances, closest.max(axis=1))[:, None].astype(np.float32)
    joints2d = points[..., :2] * (focals[:, None, None].astype(np.float32) / points[..., 2:])
    return points.reshape(B, T, J, 3), joints2d.reshape(B, T, J, 2)


def human36m_cameras() -> dict[str, list[Camera]]:
    """Read the four cameras of each Human3.6M subject: 54138969, 55011271, 58860488, 60457274.

    Human3.6M stores the tangential pair as (p2, p1), centres in millimetres and quaternions from
    camera to world; here they are in OpenCV's order, metres, and matrices from world to camera.
    """
    text = resources.files("pipeline").joinpath("human36m_cameras.json").read_text("utf-8")
    facts = json.loads(text)
    lenses = [_human36m_lens(lens) for lens in facts["intrinsics"].values()]
    return {
        subject: [
            dataclasses.replace(
                lens,
                rotation=rotation_from_quaternion(quaternion).T,
                centre=np.array(millimetres) / 1000,
            )
            for lens, (quaternion, millimetres) in zip(lenses, poses, strict=True)
        ]
        for subject, poses in facts["extrinsics"].items()
    }


def _human36m_lens(facts: dict[str, list[float]]) -> Camera:
    """Camera at the origin with these intrinsic parameters."""
    k1, k2, k3 = facts["radial"]
    p2, p1 = facts["tangential"]
    return Camera(
        rotation=np.eye(3),
        centre=np.zeros(3),
        focal=np.array(facts["focal"]),
        principal=np.array(facts["principal"]),
        size=(int(facts["size"][0]), int(facts["size"][1])),
        distortion=np.array([k1, k2, p1, p2, k3]),
        lens="human36m",
    )


def ring_of_cameras(
    *key: int | str, joints3d: NDArray[np.floating], valid: NDArray[np.bool_] | None = None
) -> list[Camera]:
    """Place four cameras like Human3.6M's around a sequence.

    Azimuths are one random yaw plus 67, 109, 247 and 292 degrees, each plus or minus 5. Height is
    1.45 to 1.65 m; ground distance is 4.2 to 5.6 m from the middle of the root's path. The cameras
    look at a point 0.35 to 0.55 m above it (higher by half of what poses exceed 1.9 m), with a roll
    of 2 degrees standard deviation. Images have 1000 x 1000 pixels, f = (1145, 1144), c =
    (512, 515), no distortion. A camera moves back in steps of 0.2 m until all joints are at least
    10 pixels inside the image in 99.5 % of the valid frames.

    Args:
        key: Key of the sequence; the cameras depend on the key and the motion only.
        joints3d: World, metres, floor at z = 0, H36M17, (T, 17, 3).
        valid: Frames that count, (T,); None for all.

    Returns:
        Four cameras.

    Source: the 28 public Human3.6M cameras, which have these ranges.
    """
    joints3d = np.asarray(joints3d if valid is None else joints3d[valid], np.float64)
    path = joints3d[:, H36M17.root, :2]
    middle = (path.min(axis=0) + path.max(axis=0)) / 2
    tallest = np.percentile(joints3d[:, H36M17.index("head"), 2], 95)
    lift = max(0.0, float(tallest) - 1.9) / 2
    yaw = rng.uniform(*key, "yaw", lanes=1, high=360.0)[0]
    draw = rng.uniform(*key, "camera", np.arange(4), lanes=4)
    roll = 2 * rng.normal(*key, "camera roll", np.arange(4), lanes=1)[:, 0]
    azimuth = np.radians(yaw + np.array([67, 109, 247, 292]) + 10 * draw[:, 0] - 5)
    height = 1.45 + 0.2 * draw[:, 1]
    target = np.stack([*np.broadcast_arrays(*middle, 0.35 + 0.2 * draw[:, 2] + lift)], axis=-1)
    cameras = []
    for k in range(4):
        for distance in 4.2 + 1.4 * draw[k, 3] + 0.2 * np.arange(100):
            ground = middle + distance * np.array([np.cos(azimuth[k]), np.sin(azimuth[k])])
            centre = np.array([*ground, height[k]])
            camera = Camera(
                rotation=look_at_rotation(centre, target[k], roll[k]),
                centre=centre,
                focal=np.array([1145.0, 1144.0]),
                principal=np.array([512.0, 515.0]),
                size=(1000, 1000),
                distortion=np.zeros(5),
            )
            pixels = project(world_to_camera(joints3d, camera), camera)
            inside = ((pixels >= 10) & (pixels <= 990)).all(axis=(1, 2))
            if inside.mean() >= 0.995:
                break
        cameras.append(camera)
    return cameras
