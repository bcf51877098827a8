"""Images of people rendered from their joints, directly as crops, deterministic."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline import rng
from pipeline.camera import Camera
from pipeline.errors import UsageError
from pipeline.mocap.figure import cross, make_mesh, normalise_vectors, pose_mesh, sample_appearance

Array = NDArray[np.float64]

RENDERER_VERSION = 1
"""Version of the rendering, part of every fingerprint: increase it when any pixel changes."""

SUPERSAMPLING = 2
"""Factor by which a crop is drawn larger and then averaged down, for smooth edges."""


@dataclass(frozen=True, eq=False)
class PinholeCameras:
    """One pinhole camera per image, or one for all images (N = 1).

    Args:
        rotation: Rotations from world to camera, (N, 3, 3).
        centre: Camera centres, world metres, (N, 3).
        focal: Focal lengths, pixels, (N, 2).
        principal: Principal points, pixels, (N, 2).
        size: Width and height of every image, pixels.
    """

    rotation: Array
    centre: Array
    focal: Array
    principal: Array
    size: tuple[int, int]

    @classmethod
    def from_camera(cls, camera: Camera) -> PinholeCameras:
        """The one camera of a sequence.

        Raises:
            UsageError: If it has lens distortion.
        """
        if np.any(camera.distortion):
            raise UsageError("images are drawn by pinhole cameras; this one has lens distortion")
        return cls(
            np.asarray(camera.rotation)[None],
            np.asarray(camera.centre)[None],
            np.asarray(camera.focal)[None],
            np.asarray(camera.principal)[None],
            camera.size,
        )

    @classmethod
    def look_at(
        cls,
        centre: Array,
        target: Array,
        roll: Array,
        focal: Array,
        principal: Array,
        size: tuple[int, int],
    ) -> PinholeCameras:
        """Cameras at `centre` (N, 3), looking at `target` (N, 3), rolled by `roll` radians (N,)."""
        forward = normalise_vectors(target - centre)
        right = normalise_vectors(cross(forward, np.broadcast_to([0.0, 0.0, 1.0], forward.shape)))
        down = cross(forward, right)
        cos, sin = np.cos(roll)[:, None], np.sin(roll)[:, None]
        axes = (cos * right + sin * down, cos * down - sin * right, forward)
        return cls(np.stack(axes, axis=1), centre, focal, principal, size)

    def to_camera(self, points: Array) -> Array:
        """World (N, J, 3) -> camera frame (N, J, 3), metres."""
        return (points - self.centre[:, None]) @ self.rotation.transpose(0, 2, 1)

    def project(self, points: Array) -> Array:
        """Camera frame (N, J, 3) -> pixels (N, J, 2)."""
        return points[..., :2] / points[..., 2:] * self.focal[:, None] + self.principal[:, None]

    def select(self, index: int) -> PinholeCameras:
        """The camera of one image."""
        i = slice(index, index + 1) if len(self.rotation) > 1 else slice(None)
        return PinholeCameras(
            self.rotation[i], self.centre[i], self.focal[i], self.principal[i], self.size
        )


class RenderedImages:
    """Rendered images of people, an `Images`.

    Args:
        joints3d: H36M17, world metres, z up, floor at 0, (N, 17, 3).
        cameras: Camera of each image.
        appearance_seeds: Seed of skin, hair and clothes of each image, (N,).
        background_seeds: Seed of background, light, objects and second person of each image, (N,).
        occlusion_rate: Share of images with objects in front of the person, 0 to 1.
        second_person_rate: Share of images with a second person further from the middle, 0 to 1.
    """

    def __init__(
        self,
        joints3d: NDArray[np.floating],
        cameras: PinholeCameras,
        *,
        appearance_seeds: NDArray[np.int64],
        background_seeds: NDArray[np.int64],
        occlusion_rate: float = 0.0,
        second_person_rate: float = 0.0,
    ) -> None:
        self.joints3d, self.cameras = joints3d, cameras
        self.appearance_seeds, self.background_seeds = appearance_seeds, background_seeds
        self.occlusion_rate, self.second_person_rate = occlusion_rate, second_person_rate

    def __len__(self) -> int:
        return len(self.joints3d)

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of a whole image in pixels."""
        return self.cameras.size

    def crop(
        self, index: int, matrix: NDArray[np.float64], size: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """A crop of an image, RGB, (H, W, 3); see `Images.crop`.

        Raises:
            ValueError: If the matrix is not finite, or a joint is missing.
        """
        joints, anchor = self._body(index), self._anchor(index)
        if not (np.isfinite(matrix).all() and np.isfinite(joints).all()):
            raise ValueError(f"image {index} cannot be drawn: its joints or the crop are NaN")
        canvas = _Canvas(matrix, size)
        camera = self.cameras.select(index)
        draw = rng.uniform(int(self.background_seeds[index]), "scene", lanes=_BACKGROUND_LANES)
        _draw_background(canvas, camera, joints, anchor, draw)
        light = normalise_vectors(np.array([draw[0] - 0.5, draw[1] - 0.5, 0.25 + 0.5 * draw[2]]))
        people = [(joints, int(self.appearance_seeds[index]))]
        second = self._second_person(index)
        if second is not None:
            people.append(second)
        # far people first: sorted by the depth of the pelvis
        people.sort(key=lambda person: -camera.to_camera(person[0][None])[0, 0, 2])
        for body, appearance_seed in people:
            _draw_person(canvas, camera, body, appearance_seed, light, 0.35 + 0.25 * draw[3])
        if draw[4] < self.occlusion_rate:
            anchor2d = camera.project(camera.to_camera(anchor[None]))[0]
            _draw_occluders(canvas, anchor2d, draw[40:64])
        return canvas.downsample()

    def _body(self, index: int) -> Array:
        """Joints of an image, world metres, (17, 3)."""
        return np.asarray(self.joints3d[index], np.float64)

    def _anchor(self, index: int) -> Array:
        """Joints of the body around which background and occluding objects are placed."""
        return self._body(index)

    def _second_person(self, index: int) -> tuple[Array, int] | None:
        """Joints and appearance seed of the second person in an image, if there is one."""
        if not self.second_person_rate:
            return None
        draw = rng.uniform(int(self.background_seeds[index]), "company", lanes=6)
        if draw[0] >= self.second_person_rate:
            return None
        first, second = self._body(index), self._body(int(draw[1] * len(self)))
        camera = self.cameras.select(index)
        right, away = camera.rotation[0, 0] * [1, 1, 0], camera.rotation[0, 2] * [1, 1, 0]
        sideways = (0.75 + 0.7 * draw[2]) * (1 if draw[3] < 0.5 else -1)
        root = (
            first[0]
            + sideways * normalise_vectors(right)
            + (2.2 * draw[4] - 0.4) * normalise_vectors(away)
        )
        moved = second - second[0] * [1, 1, 0] + root * [1, 1, 0]
        return moved, int(draw[5] * 2**31)

    def fingerprint(self, index: int) -> str:
        """Digest of everything that decides what the image looks like."""
        camera, second = self.cameras.select(index), self._second_person(index)
        second_body, second_seed = second if second is not None else (np.zeros(0), None)
        seeds = (int(self.appearance_seeds[index]), int(self.background_seeds[index]), second_seed)
        settings = (RENDERER_VERSION, *seeds, float(self.occlusion_rate), camera.size)
        digest = hashlib.sha256(repr(settings).encode())
        calibration = (camera.rotation, camera.centre, camera.focal, camera.principal)
        for array in (self._body(index), self._anchor(index), *calibration, second_body):
            digest.update(np.ascontiguousarray(array, np.float64).tobytes())
        return digest.hexdigest()


class RenderedSequence(RenderedImages):
    """Rendered frames of one person and one camera, with the same clothes and background.

    Args:
        joints3d: H36M17, world metres, z up, floor at 0, (T, 17, 3).
        camera: A camera without lens distortion.
        appearance_seed: Seed of skin, hair and clothes; equal for all cameras of a motion.
        background_seed: Seed of background and light.
        occlusion_rate: Probability that objects stand in front of the person in all frames.

    Raises:
        UsageError: If the camera has lens distortion.
    """

    def __init__(
        self,
        joints3d: NDArray[np.floating],
        camera: Camera,
        *,
        appearance_seed: int,
        background_seed: int,
        occlusion_rate: float = 0.0,
    ) -> None:
        ones = np.ones(len(joints3d), np.int64)
        super().__init__(
            joints3d,
            PinholeCameras.from_camera(camera),
            appearance_seeds=appearance_seed * ones,
            background_seeds=background_seed * ones,
            occlusion_rate=occlusion_rate,
        )

    def _anchor(self, index: int) -> Array:
        return self._body(len(self) // 2)


class _Canvas:
    """The image of a crop, larger by `SUPERSAMPLING`, drawn on in pixels of the whole image."""

    def __init__(self, matrix: NDArray[np.float64], size: tuple[int, int]) -> None:
        self.size, self.crop = size, matrix
        # integer coordinates are pixel centres: crop pixel x covers the fine pixels 2x and 2x + 1
        self.matrix = matrix * SUPERSAMPLING
        self.matrix[:, 2] += (SUPERSAMPLING - 1) / 2
        width, height = size
        self.fine = np.empty((height * SUPERSAMPLING, width * SUPERSAMPLING, 3), np.uint8)

    def to_fixed_point(self, points: Array) -> NDArray[np.int32]:
        """Whole-image pixels (..., 2) -> OpenCV's fixed-point pixels of the fine crop (..., 2)."""
        fine = points @ self.matrix[:, :2].T + self.matrix[:, 2]
        return np.rint(fine.clip(-30000, 30000) * 16).astype(np.int32)

    def polygon(self, points: Array, colour: Array) -> None:
        """Fill a convex polygon, (K, 2) whole-image pixels."""
        cv2.fillConvexPoly(self.fine, self.to_fixed_point(points), colour.tolist(), cv2.LINE_8, 4)

    def fill_with_texture(self, texture: NDArray[np.uint8], spacing: float) -> None:
        """Cover the canvas with a texture whose pixels are `spacing` whole-image pixels apart."""
        # the texture is so smooth that half of the crop's resolution is enough
        width, height = ((side + 1) // 2 for side in self.size)
        scale = np.array([[width / self.size[0]], [height / self.size[1]]])
        matrix = self.crop * [spacing, spacing, 1.0] * scale
        matrix[:, 2:] += scale / 2 - 0.5
        coarse = cv2.warpAffine(texture, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)
        cv2.resize(coarse, self.fine.shape[1::-1], dst=self.fine)

    def downsample(self) -> NDArray[np.uint8]:
        """The finished crop, RGB, (H, W, 3)."""
        small = cv2.resize(self.fine, self.size, interpolation=cv2.INTER_AREA)
        return np.asarray(small, np.uint8)


_WALL_TILES = 14  # pixels of the wall texture along each side
_BACKGROUND_LANES = 67 + 5 + 3 * _WALL_TILES**2


def _wall_texture(draw: Array) -> NDArray[np.uint8]:
    """Random wall: a colour with noise and a vertical gradient, RGB, (14, 14, 3)."""
    base = _desaturate(45 + 200 * draw[:3])
    noise = 70 * draw[3] ** 2 * (draw[5:].reshape(_WALL_TILES, _WALL_TILES, 3) - 0.5)
    gradient = 60 * (draw[4] - 0.5) * np.linspace(-1, 1, _WALL_TILES)[:, None, None]
    return np.clip(base + noise + gradient, 0, 255).astype(np.uint8)


def _desaturate(colour: Array) -> Array:
    """A colour at half its saturation, for walls, furniture and the floor."""
    return 0.5 * colour + 0.5 * colour.mean()


def _draw_background(
    canvas: _Canvas, camera: PinholeCameras, joints: Array, anchor: Array, draw: Array
) -> None:
    """Draw wall, furniture, floor and the person's shadow on it."""
    width, height = camera.size
    canvas.fill_with_texture(_wall_texture(draw[67:]), max(width, height) / (_WALL_TILES - 1))
    for box in draw[8:40].reshape(4, 8)[: int(draw[6] * 5)]:
        centre, half_size = box[:2] * [width, 0.7 * height], 20 + 160 * box[2:4]
        colour = _desaturate(25 + 215 * box[4:7])
        canvas.polygon(centre + half_size * _SQUARE, colour)
        if box[7] < 0.5:
            canvas.polygon(centre + 0.8 * half_size * _SQUARE, 0.7 * colour + 60)
    away = normalise_vectors(camera.rotation[0, 2] * [1, 1, 0])
    right = np.array([away[1], -away[0], 0.0])
    wall_foot = anchor[0] * [1, 1, 0] + (1.5 + 3 * draw[7]) * away
    edge = camera.to_camera(np.stack([wall_foot - 30 * right, wall_foot + 30 * right])[None])
    floor_colour = _desaturate(50 + 170 * draw[64:67])
    if (edge[..., 2] > 0.1).all():
        start, end = camera.project(edge)[0]
        down = 30 * height * normalise_vectors(np.array([start[1] - end[1], end[0] - start[0]]))
        canvas.polygon(np.stack([start, end, end + down, start + down]), floor_colour)
    shadow_centre = (0.1 * joints[0] + 0.45 * (joints[3] + joints[6])) * [1, 1, 0]
    rings = camera.to_camera(shadow_centre + _SHADOW_RINGS)
    if (rings[..., 2] > 0.1).all():
        for ring, brightness in zip(camera.project(rings), (0.9, 0.78, 0.66), strict=True):
            canvas.polygon(ring, brightness * floor_colour)


_SQUARE = np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])
_CIRCLE_ANGLES = np.linspace(0, 2 * np.pi, 16, endpoint=False)
_CIRCLE = np.stack([np.cos(_CIRCLE_ANGLES), np.sin(_CIRCLE_ANGLES), 0 * _CIRCLE_ANGLES], axis=-1)
_SHADOW_RINGS = np.array([0.42, 0.3, 0.2])[:, None, None] * _CIRCLE
_YZX, _ZXY = np.array([1, 2, 0]), np.array([2, 0, 1])


def _draw_person(
    canvas: _Canvas,
    camera: PinholeCameras,
    joints: Array,
    appearance_seed: int,
    light: Array,
    contrast: float,
) -> None:
    """Draw the mesh faces that are turned towards the camera, far ones first, lit from one side."""
    body = make_mesh()
    colours, build = sample_appearance(appearance_seed)
    vertices = camera.to_camera(pose_mesh(joints, build)[None])[0]
    if not (vertices[:, 2] > 0.1).all():
        return
    # one row per coordinate: (3, 4, F) corners, (3, F) the rest
    corners = np.ascontiguousarray(vertices.T)[:, body.faces.T]
    across, along = corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1]
    normal = across[_YZX] * along[_ZXY] - across[_ZXY] * along[_YZX]
    middle = corners.sum(axis=1) / 4
    facing = np.flatnonzero((normal * middle).sum(axis=0) < 0)
    middle, normal = middle[:, facing], normal[:, facing]
    depth = np.sqrt((middle * middle).sum(axis=0)) - body.depth_bias[facing]
    lit = camera.rotation[0] @ light @ normal / np.sqrt((normal * normal).sum(axis=0) + 1e-12)
    far_first = np.argsort(-depth, kind="stable")
    order, lit = facing[far_first], np.maximum(lit[far_first], 0)
    shade = 1.08 - contrast + 1.25 * contrast * lit
    shaded = np.clip(colours[order] * shade[:, None], 0, 255).tolist()
    polygons = canvas.to_fixed_point(camera.project(vertices[None])[0])[body.faces[order]]
    for polygon, colour in zip(polygons, shaded, strict=True):
        cv2.fillConvexPoly(canvas.fine, polygon, colour, cv2.LINE_8, 4)


def _draw_occluders(canvas: _Canvas, joints2d: Array, draw: Array) -> None:
    """Draw one or two boxes, boards or poles in front of the person."""
    low, high = joints2d.min(axis=0), joints2d.max(axis=0)
    person_height = float(high[1] - low[1])
    for k in range(1 + int(draw[0] * 2)):
        own = draw[2 + 9 * k : 11 + 9 * k]
        centre = low + (high - low) * (own[:2] * 1.2 - 0.1)
        shape = ((0.16, 0.16), (0.05, 1.5), (0.6, 0.07), (0.12, 0.3))[int(own[2] * 4)]
        half_size = person_height * np.array(shape) * (0.6 + 0.8 * own[3])
        angle = 0.5 * (own[4] - 0.5)
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        outline = _CIRCLE[:, :2] if own[5] < 0.3 else _SQUARE
        colour = 20 + 220 * own[6:9]
        canvas.polygon(centre + (half_size * outline) @ rotation.T, colour)
        inner = half_size * [0.7, 0.85] * outline
        canvas.polygon(centre + inner @ rotation.T, 0.8 * colour + 20)
