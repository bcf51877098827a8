"""The crop camera: a virtual camera that follows one person, who keeps one size in its image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from pipeline.mocap.bodies import BONES
from pipeline.skeleton import Skeleton

CROP_SCALE = 0.46
"""Normalised units per metre of the person: what a camera of Human3.6M shows at 5 m (2.29 / 5)."""

CENTRE_SECONDS, SIZE_SECONDS = 0.2, 0.5
"""Standard deviations of the Gaussians over time that smooth the direction and the size."""

_TORSO = ("left_hip", "right_hip", "left_shoulder", "right_shoulder")


@dataclass(frozen=True, eq=False)
class CropCamera:
    """A virtual camera at the place of the real one, turned and zoomed in each frame.

    Args:
        rotation: Rotation from the real to the virtual camera frame, (T, 3, 3).
        zoom: Normalised units of the crop per unit of x/z in the virtual camera frame, (T,).
        focal: Focal length of the real camera, pixels.
        principal: Principal point of the real camera, pixels, (2,).
    """

    rotation: NDArray[np.float64]
    zoom: NDArray[np.float64]
    focal: float
    principal: NDArray[np.float64]

    def crop_joints(self, joints2d: NDArray[np.floating]) -> NDArray[np.float64]:
        """Joints as the virtual camera sees them: pixels, (T, J, 2) -> normalised, (T, J, 2)."""
        rays = _rays(joints2d, self.focal, self.principal)
        turned = np.einsum("tab,tjb->tja", self.rotation, rays)
        return turned[..., :2] / turned[..., 2:] * self.zoom[:, None, None]

    def uncrop_joints(self, cropped: NDArray[np.floating]) -> NDArray[np.float64]:
        """Pixels of the real camera from joints as the virtual one sees them, (T, J, 2)."""
        rays = _rays(np.asarray(cropped) / self.zoom[:, None, None], 1.0, np.zeros(2))
        turned = self.rotate_back(rays)
        return turned[..., :2] / turned[..., 2:] * self.focal + self.principal

    def rotate_back(self, joints3d: NDArray[np.floating]) -> NDArray[np.float64]:
        """Joints in the real camera frame from those in the virtual one, (T, J, 3)."""
        return np.einsum("tba,tjb->tja", self.rotation, joints3d)


def follow_person(
    joints2d: NDArray[np.floating],
    visible: NDArray[np.bool_],
    skeleton: Skeleton,
    *,
    rate: float,
    focal: float,
    principal: tuple[float, float],
) -> CropCamera:
    """The crop camera of one person.

    It looks at the middle of the torso, and shows a metre of the person as `CROP_SCALE`. How large
    a metre is in the image is read from the bones: in each frame from the least foreshortened
    ones, over time from the frames around, so that the person does not grow when he bends down.
    Perspective is kept: the virtual camera only turns and zooms.

    Args:
        joints2d: Pixels, (T, J, 2); any value where not visible.
        visible: Whether a joint is visible, (T, J).
        skeleton: H36M17.
        rate: Frames per second.
        focal: Focal length, pixels.
        principal: Principal point, pixels.

    Source: measured on a real clip: lifters fail on people of another size in the image than in
    training (`heatlift docs results`).
    """
    centre_of_image = np.asarray(principal, np.float64)
    pixels = np.where(visible[..., None], joints2d, centre_of_image)
    rays = _rays(pixels, focal, centre_of_image)
    torso = [skeleton.index(name) for name in _TORSO]
    middle = _mean_of_visible(rays[:, torso, :2], visible[:, torso])
    middle = np.where(np.isnan(middle), _mean_of_visible(rays[..., :2], visible), middle)
    rotation = _rotation_towards(_smooth(_fill_missing(middle), CENTRE_SECONDS * rate))
    turned = np.einsum("tab,tjb->tja", rotation, rays)
    size = _size_of_metre(turned[..., :2] / turned[..., 2:], visible, skeleton)
    window = 2 * int(SIZE_SECONDS * rate) + 1
    log_size = scipy.ndimage.percentile_filter(
        _fill_missing(np.log(size)[:, None])[:, 0], 80, window, mode="nearest"
    )
    zoom = CROP_SCALE / np.exp(_smooth(log_size[:, None], SIZE_SECONDS * rate)[:, 0])
    return CropCamera(rotation, zoom, focal, centre_of_image)


def _rays(
    joints2d: NDArray[np.floating], focal: float, principal: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Directions x/z, y/z, 1 of pixels, (..., 3)."""
    ray = (np.asarray(joints2d, np.float64) - principal) / focal
    return np.concatenate([ray, np.ones_like(ray[..., :1])], axis=-1)


def _mean_of_visible(
    points: NDArray[np.float64], visible: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Mean of the visible points, (T, J, 2) -> (T, 2); NaN where none is visible."""
    count = visible.sum(axis=1)[:, None]
    total = (points * visible[..., None]).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _size_of_metre(
    rays: NDArray[np.float64], visible: NDArray[np.bool_], skeleton: Skeleton
) -> NDArray[np.float64]:
    """Size of a metre of the person in each frame, units of x/z, (T,); NaN where unknown."""
    parents, children = np.array(skeleton.bones).T
    reference = np.array([np.mean(BONES[skeleton.joints[c].split("_")[-1]]) for c in children])
    length = np.linalg.norm(rays[:, children] - rays[:, parents], axis=-1) / reference
    length[~(visible[:, children] & visible[:, parents])] = np.nan
    size = _percentile_of_known(length, 80, at_least=2)
    return np.where(size > 0, size, np.nan)


def _percentile_of_known(
    values: NDArray[np.float64], percent: float, *, at_least: int
) -> NDArray[np.float64]:
    """Percentile of the finite values of each row, (T, N) -> (T,); NaN with too few of them.

    `np.nanpercentile` takes 25 times as long, because it treats each row on its own.
    """
    ordered = np.sort(np.where(np.isfinite(values), values, np.inf), axis=1)
    count = np.isfinite(values).sum(axis=1)
    place = np.maximum(count - 1, 0) * percent / 100
    below = place.astype(np.int64)
    above = np.minimum(below + 1, np.maximum(count - 1, 0))
    low, high = (np.take_along_axis(ordered, i[:, None], axis=1)[:, 0] for i in (below, above))
    enough = count >= at_least
    low, high = np.where(enough, low, 0.0), np.where(enough, high, 0.0)
    return np.where(enough, low + (place - below) * (high - low), np.nan)


def _fill_missing(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values, (T, N), with missing ones interpolated; 0 where all are missing."""
    known = np.isfinite(values).all(axis=1)
    if not known.any():
        return np.zeros_like(values)
    frames = np.arange(len(values))
    return np.stack(
        [np.interp(frames, frames[known], column[known]) for column in values.T], axis=-1
    )


def _smooth(values: NDArray[np.float64], deviation: float) -> NDArray[np.float64]:
    """Values, (T, N), smoothed over time with a Gaussian."""
    return scipy.ndimage.gaussian_filter1d(values, deviation, axis=0, mode="nearest")


def _rotation_towards(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotations that turn x/z, y/z onto the optical axis, by yaw, then pitch: (T, 3, 3)."""
    x, y = directions.T
    across = np.sqrt(1 + x * x)
    along = np.sqrt(across * across + y * y)
    cos_yaw, sin_yaw, cos_pitch, sin_pitch = 1 / across, x / across, across / along, y / along
    zero = np.zeros_like(x)
    rows = [
        [cos_yaw, zero, -sin_yaw],
        [-sin_pitch * sin_yaw, cos_pitch, -sin_pitch * cos_yaw],
        [cos_pitch * sin_yaw, sin_pitch, cos_pitch * cos_yaw],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)
