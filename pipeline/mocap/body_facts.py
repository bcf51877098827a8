"""Facts of a recorded body: height, sides, direction, bones and speed, from sampled poses."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.skeleton import Skeleton, make_conversion

POSES_MEASURED = 100
"""Poses of a recording that are measured, evenly spaced."""
LEAST_STEPS = 10
"""Steps from frame to frame that a tenth of the frames can be told from."""
SAME_PLACE = 0.003
"""Joints whose median distance is less than this share of the height are at the same place."""

DISTANCES = (
    *("pelvis hips", "pelvis thorax", "pelvis nose", "pelvis head"),
    *("thorax nose", "thorax head"),
)
"""Pairs of joints whose distance is measured."""

_MIDDLE_JOINTS = ("pelvis", "thorax", "head", "nose")
_PAIRED_JOINTS = ("hip", "knee", "ankle", "shoulder", "wrist")

_MEASURED_JOINTS = Skeleton(
    "MEASURED",
    (
        *_MIDDLE_JOINTS,
        *(f"{side}_{name}" for name in _PAIRED_JOINTS for side in ("left", "right")),
    ),
    (-1, 0, 1, 1, 0, 0, 4, 5, 6, 7, 1, 1, 10, 11),
)


@dataclass(frozen=True, eq=False)
class BodyFacts:
    """Facts of one recording; shares are of its measured frames, and NaN if joints are missing.

    Args:
        name: Name of the recording.
        frames: Number of its frames.
        fps: Frame rate of its file, Hz.
        height: Median of `body_height`, metres.
        left_on_left: Result of `share_with_left_on_left`.
        matching_sides: Share in which left hip and left shoulder are on the same side.
        bones: Median length of each bone of the skeleton, metres, (J - 1,).
        variation: Range of each bone's length from 10 to 90 %, divided by its median, (J - 1,).
        same_place: Pairs of joints at the same place.
        distances: Median distance of joints that no bone connects, divided by the height, by both
            names, as in "thorax head"; `hips` is the midpoint of the hips.
        stretch: Distance from hip to ankle, divided by thigh + shin, that the leg exceeds in 10 %
            of the frames; the smaller one of both legs.
        directions: Share in which the head is in the direction x, y, z, -x, -y or -z of the feet,
            within 45 degrees, (6,).
        facing_floor_or_sky: Share in which the body faces down or up, within 45 degrees.
        wrists_below_head: Share in which the wrists are lower than the head.
        climb: Range of the height of the lowest joint from 5 to 95 %, metres.
        root_speed: Speed that the root exceeds in 10 % of the frames, m/s.
        joint_speed: Speed, relative to the root, that the fastest joint exceeds in 10 % of the
            frames, m/s.
    """

    name: str
    frames: int
    fps: float
    height: float
    left_on_left: float
    matching_sides: float
    bones: NDArray[np.float64]
    variation: NDArray[np.float64]
    same_place: tuple[tuple[str, str], ...]
    distances: dict[str, float]
    stretch: float
    directions: NDArray[np.float64]
    facing_floor_or_sky: float
    wrists_below_head: float
    climb: float
    root_speed: float
    joint_speed: float

    @property
    def upright(self) -> float:
        """Share of the frames in which the head is above the feet, within 45 degrees."""
        return float(self.directions[2])


def measure_body(
    name: str,
    joints3d: NDArray[np.floating],
    skeleton: Skeleton,
    fps: float,
    *,
    file_fps: float | None = None,
    valid: NDArray[np.bool_] | None = None,
) -> BodyFacts:
    """Measure the body of one recording in at most `POSES_MEASURED` poses.

    Args:
        name: Name of the recording.
        joints3d: World metres, z up, (T, J, 3).
        skeleton: Joint set of `joints3d`.
        fps: Frame rate of `joints3d`, Hz.
        file_fps: Frame rate of the file, Hz; that of `joints3d` by default.
        valid: Good frames, (T,); all by default. At least one frame must be good.
    """
    good = np.flatnonzero(np.ones(len(joints3d), bool) if valid is None else valid)
    poses = joints3d[_spread(good)].astype(np.float64)
    root_speed, joint_speed = measure_speeds(joints3d, fps, root=skeleton.root, valid=valid)
    at: dict[str, NDArray[np.float64]] = joints_by_name(poses, skeleton)
    bones = np.stack([poses[:, b] - poses[:, a] for a, b in skeleton.bones], axis=1)
    lengths = np.linalg.norm(bones, axis=-1)
    low, median, high = np.percentile(lengths, [10, 50, 90], axis=0)
    height = float(np.median(body_height(poses, skeleton)))
    at["hips"] = 0.5 * (at["left_hip"] + at["right_hip"])
    wrists, lowest = 0.5 * (at["left_wrist"] + at["right_wrist"]), poses[..., 2].min(axis=1)
    top = at["head"] if np.isfinite(at["head"]).all() else at["thorax"]
    return BodyFacts(
        name=name,
        frames=len(joints3d),
        fps=fps if file_fps is None else file_fps,
        height=height,
        left_on_left=share_with_left_on_left(poses, skeleton),
        matching_sides=share_with_matching_sides(poses, skeleton),
        bones=median,
        variation=(high - low) / np.maximum(median, 1e-9),
        same_place=_joints_at_the_same_place(poses, skeleton, SAME_PLACE * height),
        distances={pair: _distance(at, *pair.split()) / max(height, 1e-9) for pair in DISTANCES},
        stretch=min(_stretch(at, side) for side in ("left", "right")),
        directions=_share_of_directions(top, 0.5 * (at["left_ankle"] + at["right_ankle"])),
        facing_floor_or_sky=_share_facing_floor_or_sky(at),
        wrists_below_head=float((wrists[:, 2] < top[:, 2]).mean()),
        climb=float(np.ptp(np.percentile(lowest, [5, 95]))),
        root_speed=root_speed,
        joint_speed=joint_speed,
    )


def measure_speeds(
    joints3d: NDArray[np.floating],
    fps: float,
    *,
    root: int = 0,
    valid: NDArray[np.bool_] | None = None,
) -> tuple[float, float]:
    """Speeds that are exceeded in 10 % of the frames, m/s: of the root, of the fastest joint.

    Args:
        joints3d: Metres, (T, J, 3).
        fps: Frame rate, Hz.
        root: Index of the root; the other joints are measured relative to it.
        valid: Good frames, (T,); all by default.

    Returns:
        Both speeds; zero for recordings of less than `LEAST_STEPS` steps.
    """
    good = np.flatnonzero(np.ones(len(joints3d), bool) if valid is None else valid)
    pairs = _spread(good[np.isin(good + 1, good)])  # frames whose following frame is good, too
    if len(pairs) < LEAST_STEPS:
        return 0.0, 0.0
    steps = joints3d[pairs + 1].astype(np.float64) - joints3d[pairs]
    relative = np.linalg.norm(steps - steps[:, [root]], axis=-1).max(axis=1)
    speeds = (np.linalg.norm(steps[:, root], axis=-1), relative)
    root_speed, joint_speed = (fps * float(np.percentile(speed, 90)) for speed in speeds)
    return root_speed, joint_speed


def _spread(indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most `POSES_MEASURED` of some indices, evenly spaced."""
    return indices[:: max(1, -(-len(indices) // POSES_MEASURED))]


def _distance(at: dict[str, NDArray[np.float64]], one: str, other: str) -> float:
    """Median distance of two joints, metres."""
    return float(np.median(np.linalg.norm(at[one] - at[other], axis=-1)))


def _stretch(at: dict[str, NDArray[np.float64]], side: str) -> float:
    """90 % quantile of the distance from hip to ankle, divided by thigh + shin."""
    hip, knee, ankle = (at[f"{side}_{joint}"] for joint in ("hip", "knee", "ankle"))
    leg = np.linalg.norm(hip - knee, axis=-1) + np.linalg.norm(knee - ankle, axis=-1)
    return float(np.percentile(np.linalg.norm(hip - ankle, axis=-1) / np.maximum(leg, 1e-9), 90))


def _share_of_directions(
    top: NDArray[np.float64], feet: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Share of the frames in which `top` is in each of six directions of `feet`, (6,)."""
    direction = top - feet
    if not np.isfinite(direction).all():
        return np.full(6, np.nan)
    cosine = direction / np.maximum(np.linalg.norm(direction, axis=-1, keepdims=True), 1e-9)
    return (np.concatenate([cosine, -cosine], axis=1) > np.sqrt(0.5)).mean(axis=0)


def _share_facing_floor_or_sky(at: dict[str, NDArray[np.float64]]) -> float:
    """Share of the frames in which the body faces down or up, within 45 degrees."""
    ahead = np.cross(at["left_hip"] - at["right_hip"], at["thorax"] - at["pelvis"])
    cosine = np.abs(ahead[:, 2]) / np.maximum(np.linalg.norm(ahead, axis=-1), 1e-9)
    return float((cosine > np.sqrt(0.5)).mean())


def _joints_at_the_same_place(
    joints3d: NDArray[np.float64], skeleton: Skeleton, limit: float
) -> tuple[tuple[str, str], ...]:
    """Pairs of joints whose median distance is below a limit, metres."""
    sampled = joints3d[:: max(1, len(joints3d) // 20)]
    distances = np.median(np.linalg.norm(sampled[:, :, None] - sampled[:, None], axis=-1), axis=0)
    pairs = itertools.combinations(range(len(skeleton)), 2)
    names = skeleton.joints
    return tuple((names[a], names[b]) for a, b in pairs if distances[a, b] < limit)


def joints_by_name(
    joints3d: NDArray[np.float64], skeleton: Skeleton
) -> dict[str, NDArray[np.float64]]:
    """Name of a measured joint -> its positions, (T, 3); NaN where the joint set has none."""
    joint_map = make_conversion(skeleton, _MEASURED_JOINTS, allow_missing=True)
    joints = np.asarray(joint_map.joints(joints3d), np.float64)
    return {name: joints[..., i, :] for i, name in enumerate(_MEASURED_JOINTS.joints)}


def body_height(joints3d: NDArray[np.float64], skeleton: Skeleton) -> NDArray[np.float64]:
    """Height of a stretched body, ankles to head along the bones, in any pose, metres, (T,).

    Args:
        joints3d: Metres, (T, J, 3).
        skeleton: Joint set; without a head the body ends at the neck.
    """
    at = joints_by_name(joints3d, skeleton)

    def distance(one: str, other: str) -> NDArray[np.float64]:
        return np.linalg.norm(at[one] - at[other], axis=-1)

    legs = [
        distance(f"{side}_hip", f"{side}_knee") + distance(f"{side}_knee", f"{side}_ankle")
        for side in ("left", "right")
    ]
    head = distance("thorax", "head") if np.isfinite(at["head"]).all() else 0.0
    return np.mean(legs, axis=0) + distance("pelvis", "thorax") + head


def share_with_left_on_left(joints3d: NDArray[np.float64], skeleton: Skeleton) -> float:
    """Share of frames in which the left hip is on the left of a body that faces ahead.

    Ahead is the direction of the nose from the line of neck and head, and of bent knees. It turns
    with the body, so that it is right for people who lie, crawl or stand on their hands.

    Args:
        joints3d: Metres, (T, J, 3).
        skeleton: Joint set of `joints3d`.
    """
    at = joints_by_name(joints3d, skeleton)
    ahead = np.zeros_like(at["pelvis"])
    if np.isfinite(at["nose"]).all():
        top = at["head"] if np.isfinite(at["head"]).all() else at["thorax"]
        ahead += at["nose"] - 0.5 * (at["thorax"] + top)
    for side in ("left", "right"):
        ahead += at[f"{side}_knee"] - 0.5 * (at[f"{side}_hip"] + at[f"{side}_ankle"])
    left, up = at["left_hip"] - at["right_hip"], at["thorax"] - at["pelvis"]
    return float((np.einsum("ti,ti->t", np.cross(left, up), ahead) > 0).mean())


def share_with_matching_sides(joints3d: NDArray[np.float64], skeleton: Skeleton) -> float:
    """Share of frames in which the left hip and the left shoulder are on the same side."""
    at = joints_by_name(joints3d, skeleton)
    hips, shoulders = (at[f"left_{name}"] - at[f"right_{name}"] for name in ("hip", "shoulder"))
    return float((np.einsum("ti,ti->t", hips, shoulders) > 0).mean())
