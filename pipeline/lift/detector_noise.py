"""Errors of real 2D detectors, as they were measured on rendered people, for training."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from pipeline.lift.corruption import autoregressive, draw_bursts
from pipeline.skeleton import H36M17, Skeleton

Floats = NDArray[np.float64]

WITH_EARS = Skeleton(
    "H36M17 with ears", (*H36M17.joints, "left_ear", "right_ear"), (*H36M17.parents, 9, 9)
)
"""H36M17 and the ears, from which converters make up the top of the head."""

EAR_HEIGHT, EAR_WIDTH = 0.6, 0.075
"""Place of the ears: share of the way from thorax to top of the head, and metres to each side."""

OUTLIER = 0.12
"""Mean length of an outlier, metres of the person."""

LIMBS = {"legs": ("hip", "knee", "ankle"), "arms": ("shoulder", "elbow", "wrist")}
"""Limbs that a detector exchanges with those of the other side -> their joints."""


def add_ears(joints3d: NDArray[np.floating]) -> Floats:
    """Joints with the ears of the same head: (T, 17, 3) -> (T, 19, 3), in any frame."""
    joints3d = np.asarray(joints3d, np.float64)
    thorax, nose, head = (joints3d[:, H36M17.index(name)] for name in ("thorax", "nose", "head"))
    left = _unit(np.cross(head - thorax, nose - thorax))
    middle = thorax + EAR_HEIGHT * (head - thorax)
    ears = np.stack([middle + EAR_WIDTH * left, middle - EAR_WIDTH * left], axis=1)
    return np.concatenate([joints3d, ears], axis=1)


def joint_axes(joints3d: Floats) -> Floats:
    """Axes at each joint in which the bias of a detector is constant, (T, 19, 3 axes, 3).

    The first axis runs along the bone that ends at the joint, from its parent; for the pelvis, up
    the spine. The second one is at right angles to it, as near as possible to the person's left, or
    outwards at paired joints; at hips, shoulders and ears, whose bones run outwards, to the spine.
    The third one is at right angles to both, mirrored at right joints, so that the two sides of a
    body share their bias.

    Args:
        joints3d: Joints with ears, (T, 19, 3), in a right-handed frame.
    """
    place = {name: joints3d[:, WITH_EARS.index(name)] for name in WITH_EARS.joints}
    to_left = place["left_hip"] - place["right_hip"]
    to_left = _unit(_unit(to_left) + _unit(place["left_shoulder"] - place["right_shoulder"]))
    up = _unit(place["thorax"] - place["pelvis"])
    axes = np.empty((*joints3d.shape, 3))
    for j, name in enumerate(WITH_EARS.joints):
        side = -1.0 if name.startswith("right_") else 1.0
        bone = up if j == 0 else _unit(joints3d[:, j] - joints3d[:, WITH_EARS.parents[j]])
        is_lateral = name.endswith(("_hip", "_shoulder", "_ear"))
        second = up if is_lateral else side * to_left
        second = _unit(second - (second * bone).sum(-1, keepdims=True) * bone)
        third = np.cross(second, bone) if not is_lateral else np.cross(bone, second)
        axes[:, j] = np.stack([bone, second, side * third], axis=1)
    return axes


@dataclass(frozen=True, eq=False)
class DetectorNoise:
    """What a detector does to the joints of `WITH_EARS`; lengths are metres of the person.

    Args:
        bias: Mean error of each joint in the axes of `joint_axes`, (19, 3).
        constant: Standard deviation, in x and in y, of the error that stays the same in a clip,
            (19,).
        drift: Likewise of the error that changes slowly, (19,).
        flicker: Likewise of the error of each frame alone, (19,).
        outlier: Share of frames with a far wrong joint, (19,).
        missing: Share of frames in which the joint has too low a score, (19,).
        memory: Time after which the correlation of the drift has fallen to 1/e, seconds.
        burst: Mean length of outliers and of missing joints, seconds.
        swap: Share of frames with left and right exchanged, legs and arms, (2,).
        swap_burst: Mean length of these, seconds.
    """

    bias: Floats
    constant: Floats
    drift: Floats
    flicker: Floats
    outlier: Floats
    missing: Floats
    memory: float
    burst: float
    swap: Floats
    swap_burst: float

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> DetectorNoise:
        """Noise from a table such as detector_noise.yaml, where both sides share a row.

        Rendered people are easier than photographs, so no measured spread or share counts for less
        than its row in `least`.
        """
        names = [name.split("_")[-1] for name in WITH_EARS.joints]
        columns: dict[str, Any] = {
            "bias": np.array([table["joints"][name]["bias"] for name in names])
        }
        for part in ("constant", "drift", "flicker", "outlier", "missing"):
            measured, floor = (
                [table[rows][name][part] for name in names] for rows in ("joints", "least")
            )
            columns[part] = np.maximum(measured, floor)
        swap = np.array([table["swap"][limb] for limb in LIMBS])
        return cls(
            **columns,
            memory=float(table["memory"]),
            burst=float(table["burst_seconds"]),
            swap=swap,
            swap_burst=float(table["swap"]["seconds"]),
        )

    def sample(
        self,
        random: np.random.Generator,
        joints3d: Floats,
        rate: float,
        *,
        bias: float = 1.0,
        level: float = 1.0,
        missing: float = 1.0,
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """Draw the errors of one clip.

        Args:
            random: Random number generator.
            joints3d: Joints with ears in the camera frame, metres, (T, 19, 3).
            rate: Frames per second.
            bias: Factor on the bias.
            level: Factor on spread, outliers and swaps.
            missing: Factor on the share of missing joints.

        Returns:
            Errors to add to x and y of the joints, metres at the depth of the joint, (T, 19, 2);
            and which joints are missing, (T, 19).
        """
        T, J, _ = joints3d.shape
        error = bias * np.einsum("tjab,ja->tjb", joint_axes(joints3d), self.bias)[..., :2]
        error += level * self.constant[:, None] * random.standard_normal((J, 2))
        memory = float(np.exp(-1 / (self.memory * rate)))
        drift = autoregressive(random.standard_normal((T, J, 2)), memory)
        flicker = random.standard_normal((T, J, 2))
        error += level * (self.drift[:, None] * drift + self.flicker[:, None] * flicker)
        length = self.burst * rate
        inside, first = draw_bursts(random, np.minimum(level * self.outlier, 0.9), length, T)
        angle = random.uniform(0, 2 * np.pi, (T, J))
        far = np.minimum(random.exponential(OUTLIER, (T, J)), 4 * OUTLIER)
        jump = far[..., None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        error += inside[..., None] * np.take_along_axis(jump, first[..., None], axis=0)
        share = np.minimum(level * self.swap, 0.9)
        swapped, _ = draw_bursts(random, share, self.swap_burst * rate, T)
        for column, names in zip(swapped.T, LIMBS.values(), strict=True):
            left = [WITH_EARS.index(f"left_{name}") for name in names]
            right = [WITH_EARS.index(f"right_{name}") for name in names]
            here, there = np.ix_(column, left + right), np.ix_(column, right + left)
            error[here] = error[there] + joints3d[there][..., :2] - joints3d[here][..., :2]
        gone, _ = draw_bursts(random, np.minimum(missing * self.missing, 0.9), length, T)
        return error, gone


@functools.cache
def fitted_noise() -> DetectorNoise:
    """The noise of detector_noise.yaml, which benchmarks/detector_noise.py writes."""
    text = resources.files("pipeline.lift").joinpath("detector_noise.yaml").read_text("utf-8")
    return DetectorNoise.from_table(yaml.safe_load(text))


def _unit(vectors: Floats) -> Floats:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(length, 1e-9)
