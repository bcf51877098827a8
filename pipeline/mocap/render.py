"""Images of people drawn from their joints, straight through a crop, always the same."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline import rng
from pipeline.camera import Camera
from pipeline.errors import UsageError
from pipeline.mocap.figure import cross, draw_clothes, make_mesh, normalise_vectors, pose_mesh

Array = NDArray[np.float64]

RENDERER_VERSION = 1
"""Part of every fingerprint: count up when any pixel changes."""

FINER = 2
"""Every crop is drawn this many times finer and averaged down: smooth edges without seams."""


@dataclass(frozen=True, eq=False)
class Shots:
    """One pinhole camera per image, or one for all (N = 1).

    Args:
        rotation: World to camera, (N, 3, 3).
        centre: World metres, (N, 3).
        focal: Pixels, (N, 2).
        principal: Pixels, (N, 2).
        size: Width and height of every image.
    """

    rotation: Array
    centre: Array
    focal: Array
    principal: Array
    size: tuple[int, int]

    @classmethod
    def of(cls, camera: Camera) -> Shots:
        """The one camera of a sequence.

        Raises:
            UsageError: If its lens bends lines.
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
    def aimed(
        cls,
        place: Array,
        aim: Array,
        roll: Array,
        focal: Array,
        principal: Array,
        size: tuple[int, int],
    ) -> Shots:
        """Cameras at `place` (N, 3) looking at `aim` (N, 3), turned by `roll` radians (N,)."""
        forward = normalise_vectors(aim - place)
        right = normalise_vectors(cross(forward, np.broadcast_to([0.0, 0.0, 1.0], forward.shape)))
        down = cross(forward, right)
        cos, sin = np.cos(roll)[:, None], np.sin(roll)[:, None]
        axes = (cos * right + sin * down, cos * down - sin * right, forward)
        return cls(np.stack(axes, axis=1), place, focal, principal, size)

    def to_camera(self, points: Array) -> Array:
        """World (N, J, 3) -> camera frame (N, J, 3), metres."""
        return (points - self.centre[:, None]) @ self.rotation.transpose(0, 2, 1)

    def project(self, points: Array) -> Array:
        """Camera frame (N, J, 3) -> pixels (N, J, 2)."""
        return points[..., :2] / points[..., 2:] * self.focal[:, None] + self.principal[:, None]

    def one(self, index: int) -> Shots:
        """The camera of one image."""
        i = slice(index, index + 1) if len(self.rotation) > 1 else slice(None)
        return Shots(self.rotation[i], self.centre[i], self.focal[i], self.principal[i], self.size)


class RenderedImages:
    """Drawn images of people (a `Images`).

    Args:
        joints3d: H36M17, world metres, z up, floor at 0, (N, 17, 3).
        shots: Where each image is taken from.
        looks: A number per image that decides skin, hair and clothes, (N,).
        scenes: A number per image that decides room, light, and what else is in view, (N,).
        hidden: Part of the images with something in front of the person.
        company: Part of the images with a second person, who stands further from the middle.
    """

    def __init__(
        self,
        joints3d: NDArray[np.floating],
        shots: Shots,
        *,
        looks: NDArray[np.int64],
        scenes: NDArray[np.int64],
        hidden: float = 0.0,
        company: float = 0.0,
    ) -> None:
        self.joints3d, self.shots, self.looks, self.scenes = joints3d, shots, looks, scenes
        self.hidden, self.company = hidden, company

    def __len__(self) -> int:
        return len(self.joints3d)

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of a whole image in pixels."""
        return self.shots.size

    def crop(
        self, index: int, matrix: NDArray[np.float64], size: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """A piece of an image, RGB, (H, W, 3); see `Images.crop`.

        Raises:
            ValueError: If the matrix is not finite, or a joint is missing.
        """
        joints, anchor = self._body(index), self._anchor(index)
        if not (np.isfinite(matrix).all() and np.isfinite(joints).all()):
            raise ValueError(f"image {index} cannot be drawn: its joints or the crop are NaN")
        canvas = _Canvas(matrix, size)
        shot = self.shots.one(index)
        draw = rng.uniform(int(self.scenes[index]), "scene", lanes=_LANES)
        _room(canvas, shot, joints, anchor, draw)
        light = normalise_vectors(np.array([draw[0] - 0.5, draw[1] - 0.5, 0.25 + 0.5 * draw[2]]))
        people = [(joints, int(self.looks[index]))]
        other = self._other(index)
        if other is not None:
            people.append(other)
        seen = [(shot.to_camera(who[None])[0], who, look) for who, look in people]
        for _, who, look in sorted(seen, key=lambda person: -person[0][0, 2]):
            _person(canvas, shot, who, look, light, 0.35 + 0.25 * draw[3])
        if draw[4] < self.hidden:
            around = shot.project(shot.to_camera(anchor[None]))[0]
            _things_in_front(canvas, around, draw[40:64])
        return canvas.finished()

    def _body(self, index: int) -> Array:
        return np.asarray(self.joints3d[index], np.float64)

    def _anchor(self, index: int) -> Array:
        """The body around which wall and things are placed."""
        return self._body(index)

    def _other(self, index: int) -> tuple[Array, int] | None:
        """Joints and look of the second person in an image, if there is one."""
        if not self.company:
            return None
        draw = rng.uniform(int(self.scenes[index]), "company", lanes=6)
        if draw[0] >= self.company:
            return None
        here, them = self._body(index), self._body(int(draw[1] * len(self)))
        shot = self.shots.one(index)
        right, away = shot.rotation[0, 0] * [1, 1, 0], shot.rotation[0, 2] * [1, 1, 0]
        side = (0.75 + 0.7 * draw[2]) * (1 if draw[3] < 0.5 else -1)
        root = (
            here[0]
            + side * normalise_vectors(right)
            + (2.2 * draw[4] - 0.4) * normalise_vectors(away)
        )
        moved = them - them[0] * [1, 1, 0] + root * [1, 1, 0]
        return moved, int(draw[5] * 2**31)

    def fingerprint(self, index: int) -> str:
        """Digest of everything that decides what the image looks like."""
        shot, other = self.shots.one(index), self._other(index)
        body, person = other if other is not None else (np.zeros(0), None)
        settings = (RENDERER_VERSION, int(self.looks[index]), int(self.scenes[index]), person)
        digest = hashlib.sha256(repr((*settings, float(self.hidden), shot.size)).encode())
        camera = (shot.rotation, shot.centre, shot.focal, shot.principal)
        for array in (self._body(index), self._anchor(index), *camera, body):
            digest.update(np.ascontiguousarray(array, np.float64).tobytes())
        return digest.hexdigest()


class RenderedSequence(RenderedImages):
    """Drawn images of one person filmed by one camera, in the same clothes and room throughout.

    Args:
        joints3d: H36M17, world metres, z up, floor at 0, (T, 17, 3).
        camera: A pinhole camera.
        look: Decides skin, hair and clothes; give all cameras of a motion the same.
        scene: Decides room and light.
        hidden: Probability that something stands in front of the person throughout.

    Raises:
        UsageError: If the camera's lens bends lines.
    """

    def __init__(
        self,
        joints3d: NDArray[np.floating],
        camera: Camera,
        *,
        look: int,
        scene: int,
        hidden: float = 0.0,
    ) -> None:
        every = np.ones(len(joints3d), np.int64)
        super().__init__(
            joints3d, Shots.of(camera), looks=look * every, scenes=scene * every, hidden=hidden
        )

    def _anchor(self, index: int) -> Array:
        return self._body(len(self) // 2)


class _Canvas:
    """A crop being drawn in coordinates of the whole image."""

    def __init__(self, matrix: NDArray[np.float64], size: tuple[int, int]) -> None:
        self.size, self.crop = size, matrix
        # pixel centres: crop pixel x covers the fine pixels 2x and 2x + 1
        self.matrix = matrix * FINER
        self.matrix[:, 2] += (FINER - 1) / 2
        width, height = size
        self.fine = np.empty((height * FINER, width * FINER, 3), np.uint8)

    def place(self, points: Array) -> NDArray[np.int32]:
        """Whole-image pixels (..., 2) -> OpenCV's fixed point on the fine crop (..., 2)."""
        fine = points @ self.matrix[:, :2].T + self.matrix[:, 2]
        return np.rint(fine.clip(-30000, 30000) * 16).astype(np.int32)

    def polygon(self, points: Array, colour: Array) -> None:
        """Fill a convex polygon, (K, 2) whole-image pixels."""
        cv2.fillConvexPoly(self.fine, self.place(points), colour.tolist(), cv2.LINE_8, 4)

    def cloth(self, texture: NDArray[np.uint8], spread: float) -> None:
        """Cover everything with a texture whose pixels are `spread` whole-image pixels apart."""
        # it is so smooth that half the crop's resolution is enough
        width, height = ((side + 1) // 2 for side in self.size)
        scale = np.array([[width / self.size[0]], [height / self.size[1]]])
        matrix = self.crop * [spread, spread, 1.0] * scale
        matrix[:, 2:] += scale / 2 - 0.5
        coarse = cv2.warpAffine(texture, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)
        cv2.resize(coarse, self.fine.shape[1::-1], dst=self.fine)

    def finished(self) -> NDArray[np.uint8]:
        """The crop."""
        small = cv2.resize(self.fine, self.size, interpolation=cv2.INTER_AREA)
        return np.asarray(small, np.uint8)


_PATCHES = 14
_LANES = 64 + 5 + 3 * _PATCHES**2


def _wall(draw: Array) -> NDArray[np.uint8]:
    base = _muted(45 + 200 * draw[:3])
    rough = 70 * draw[3] ** 2 * (draw[5:].reshape(_PATCHES, _PATCHES, 3) - 0.5)
    slope = 60 * (draw[4] - 0.5) * np.linspace(-1, 1, _PATCHES)[:, None, None]
    return np.clip(base + rough + slope, 0, 255).astype(np.uint8)


def _muted(colour: Array) -> Array:
    """A colour as walls and floors have it: half as strong."""
    return 0.5 * colour + 0.5 * colour.mean()


def _room(canvas: _Canvas, shot: Shots, joints: Array, anchor: Array, draw: Array) -> None:
    """Wall, furniture, floor and the shadow on it."""
    width, height = shot.size
    canvas.cloth(_wall(draw[64:]), max(width, height) / (_PATCHES - 1))
    for numbers in draw[8:32].reshape(4, 6)[: int(draw[6] * 5)]:
        centre, half = numbers[:2] * [width, 0.7 * height], 20 + 160 * numbers[2:4]
        colour = _muted(25 + 215 * numbers[[4, 5, 3]])
        canvas.polygon(centre + half * _SQUARE, colour)
        if numbers[5] < 0.5:
            canvas.polygon(centre + 0.8 * half * _SQUARE, 0.7 * colour + 60)
    away = normalise_vectors(shot.rotation[0, 2] * [1, 1, 0])
    right = np.array([away[1], -away[0], 0.0])
    foot = anchor[0] * [1, 1, 0] + (1.5 + 3 * draw[7]) * away
    edge = shot.to_camera(np.stack([foot - 30 * right, foot + 30 * right])[None])
    floor = _muted(50 + 170 * draw[32:35])
    if (edge[..., 2] > 0.1).all():
        left, end = shot.project(edge)[0]
        below = 30 * height * normalise_vectors(np.array([left[1] - end[1], end[0] - left[0]]))
        canvas.polygon(np.stack([left, end, end + below, left + below]), floor)
    under = (0.1 * joints[0] + 0.45 * (joints[3] + joints[6])) * [1, 1, 0]
    rings = shot.to_camera(under + _SHADOW)
    if (rings[..., 2] > 0.1).all():
        for ring, dark in zip(shot.project(rings), (0.9, 0.78, 0.66), strict=True):
            canvas.polygon(ring, dark * floor)


_SQUARE = np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])
_ROUND = np.linspace(0, 2 * np.pi, 16, endpoint=False)
_CIRCLE = np.stack([np.cos(_ROUND), np.sin(_ROUND), 0 * _ROUND], axis=-1)
_SHADOW = np.array([0.42, 0.3, 0.2])[:, None, None] * _CIRCLE
_NEXT, _LAST = np.array([1, 2, 0]), np.array([2, 0, 1])


def _person(
    canvas: _Canvas, shot: Shots, joints: Array, look: int, light: Array, dim: float
) -> None:
    """Draw a person: faces that look at the camera, far ones first, lit from one side."""
    body = make_mesh()
    colours, build = draw_clothes(look)
    vertices = shot.to_camera(pose_mesh(joints, build)[None])[0]
    if not (vertices[:, 2] > 0.1).all():
        return
    # one row per coordinate: (3, 4, F) corners, (3, F) the rest
    corners = np.ascontiguousarray(vertices.T)[:, body.faces.T]
    across, along = corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1]
    normal = across[_NEXT] * along[_LAST] - across[_LAST] * along[_NEXT]
    middle = corners.sum(axis=1) / 4
    facing = np.flatnonzero((normal * middle).sum(axis=0) < 0)
    middle, normal = middle[:, facing], normal[:, facing]
    depth = np.sqrt((middle * middle).sum(axis=0)) - body.nearer[facing]
    lit = shot.rotation[0] @ light @ normal / np.sqrt((normal * normal).sum(axis=0) + 1e-12)
    far_first = np.argsort(-depth, kind="stable")
    order, lit = facing[far_first], np.maximum(lit[far_first], 0)
    shade = 1.08 - dim + 1.25 * dim * lit
    shaded = np.clip(colours[order] * shade[:, None], 0, 255).tolist()
    flat = canvas.place(shot.project(vertices[None])[0])[body.faces[order]]
    for polygon, colour in zip(flat, shaded, strict=True):
        cv2.fillConvexPoly(canvas.fine, polygon, colour, cv2.LINE_8, 4)


def _things_in_front(canvas: _Canvas, joints2d: Array, draw: Array) -> None:
    """Boxes, boards and poles between camera and person."""
    low, high = joints2d.min(axis=0), joints2d.max(axis=0)
    tall = float(high[1] - low[1])
    for k in range(1 + int(draw[0] * 2)):
        numbers = draw[2 + 9 * k : 11 + 9 * k]
        centre = low + (high - low) * (numbers[:2] * 1.2 - 0.1)
        shape = ((0.16, 0.16), (0.05, 1.5), (0.6, 0.07), (0.12, 0.3))[int(numbers[2] * 4)]
        half = tall * np.array(shape) * (0.6 + 0.8 * numbers[3])
        turn = 0.5 * (numbers[4] - 0.5)
        spin = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        outline = _CIRCLE[:, :2] if numbers[5] < 0.3 else _SQUARE
        colour = 20 + 220 * numbers[6:9]
        canvas.polygon(centre + (half * outline) @ spin.T, colour)
        canvas.polygon(centre + (half * [0.7, 0.85] * outline) @ spin.T, 0.8 * colour + 20)
