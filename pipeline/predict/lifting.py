"""Lifting of tracks: 2D joints of people at any frame rate, seen through a crop camera."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from pipeline.export.even import HOLE
from pipeline.export.motion import FILLED, MISSING, SEEN
from pipeline.lift.clips import lift_overlapping
from pipeline.lift.crop_camera import CropCamera, follow_person
from pipeline.lift.module import LiftModule
from pipeline.lift.sequences import lift_with_mirror
from pipeline.predict.onnx_own import OnnxLifter
from pipeline.predict.tracks import Track
from pipeline.skeleton import Skeleton, make_conversion

LIFTER_RATE = 50.0
"""Frame rate, Hz, of lifters whose checkpoint does not hold that of their training."""

FEWEST_JOINTS = 4
"""A person with fewer joints in a frame is missing in it."""

SAME_RATE = 0.02
"""Share by which a rate may differ from the lifter's without resampling."""


@dataclass(frozen=True, eq=False)
class LiftedTrack:
    """A person's 2D joints in the joint set of the lifter, and what was lifted from them.

    Args:
        id: Id of the person.
        joints2d: Pixels, (T, J, 2), float32; NaN where missing.
        score: Score of each joint, (T, J), float32; 0 where missing.
        status: `MISSING`, `SEEN` or `FILLED` for each frame, (T,), uint8.
        joints3d: Relative to the root, camera frame, metres, (T, J, 3); NaN where missing.
    """

    id: str
    joints2d: NDArray[np.float32]
    score: NDArray[np.float32]
    status: NDArray[np.uint8]
    joints3d: NDArray[np.float64]


def lift_track(
    track: Track,
    skeleton: Skeleton,
    module: LiftModule,
    times: NDArray[np.float64],
    *,
    focal: float,
    principal: tuple[float, float],
    joint_threshold: float,
    fill_gaps: float,
) -> LiftedTrack:
    """Lift one person.

    Gaps of up to `fill_gaps` seconds are bridged in 2D; longer ones split the motion, and each
    part is lifted alone. A part is resampled to the rate of the lifter, seen through the crop
    camera, lifted in windows that overlap, turned back, and resampled to the times of the frames.

    Args:
        track: 2D joints of the person.
        skeleton: Joint set of the track.
        module: Trained lifter.
        times: Time of each frame of the clip, seconds, (T,).
        focal: Focal length, pixels.
        principal: Principal point, pixels.
        joint_threshold: Joints with a lower score are not used.
        fill_gaps: Longest gap that is bridged, seconds.
    """
    joints2d, score = _over_all_frames(track, skeleton, module.net.skeleton, len(times))
    visible = np.isfinite(joints2d).all(-1) & (score > 0) & (score >= joint_threshold)
    seen = visible.sum(axis=1) >= FEWEST_JOINTS
    status = np.where(seen, SEEN, MISSING).astype(np.uint8)
    filled2d = joints2d.copy()
    for start, stop in _gaps(seen, times, fill_gaps):
        _bridge(filled2d, visible, slice(start, stop), times)
        status[start:stop] = FILLED
    joints3d = np.full((*visible.shape, 3), np.nan)
    for part in present_parts(status != MISSING, times, fill_gaps):
        joints3d[part] = _lift_part(
            filled2d[part], visible[part], times[part], module, focal, principal
        )
    shown = status != MISSING
    return LiftedTrack(
        track.id,
        np.where((visible & shown[:, None])[..., None], filled2d, np.nan).astype(np.float32),
        np.where(visible & (status == SEEN)[:, None], score, 0.0).astype(np.float32),
        status,
        joints3d,
    )


def _over_all_frames(
    track: Track, source: Skeleton, target: Skeleton, frames: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """2D joints and scores of a track in another joint set, in all frames of the clip."""
    conversion = make_conversion(source, target, allow_missing=True, extrapolate=True)
    joints2d = np.full((frames, len(target), 2), np.nan)
    score = np.zeros((frames, len(target)))
    joints2d[track.frames] = conversion.joints(track.joints2d)
    score[track.frames] = conversion.score(track.score)
    return joints2d, score


def _gaps(
    seen: NDArray[np.bool_], times: NDArray[np.float64], longest: float
) -> list[tuple[int, int]]:
    """First frame and end of the gaps between seen frames that are short enough to bridge."""
    frames = np.flatnonzero(seen)
    pairs = zip(frames[:-1].tolist(), frames[1:].tolist(), strict=True)
    return [(a + 1, b) for a, b in pairs if b > a + 1 and times[b] - times[a] <= longest]


def present_parts(
    present: NDArray[np.bool_], times: NDArray[np.float64], fill_gaps: float
) -> list[slice]:
    """Runs of frames in which a person is present, without a hole in their times.

    A hole is a step that is longer than usual, than `fill_gaps` seconds, and than `HOLE`.
    """
    steps = np.diff(times)
    usual = float(np.median(steps)) if len(steps) else 0.0
    goes_on = present[:-1] & present[1:] & (steps <= max(HOLE, fill_gaps, 1.5 * usual))
    starts = np.flatnonzero(present & ~np.r_[False, goes_on])
    ends = np.flatnonzero(present & ~np.r_[goes_on, False]) + 1
    return [slice(start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


def _bridge(
    joints2d: NDArray[np.float64],
    visible: NDArray[np.bool_],
    gap: slice,
    times: NDArray[np.float64],
) -> None:
    """Interpolate the joints in a gap, in place, where both sides of it show them."""
    before, after = gap.start - 1, gap.stop
    both = visible[before] & visible[after]
    share = (times[gap] - times[before]) / (times[after] - times[before])
    between = joints2d[before] + share[:, None, None] * (joints2d[after] - joints2d[before])
    joints2d[gap] = np.where(both[:, None], between, np.nan)
    visible[gap] = both


def _lift_part(
    joints2d: NDArray[np.float64],
    visible: NDArray[np.bool_],
    times: NDArray[np.float64],
    module: LiftModule,
    focal: float,
    principal: tuple[float, float],
) -> NDArray[np.float64]:
    """Lift an uninterrupted part, (N, J, 2) pixels -> (N, J, 3) metres."""
    rate = lifter_rate(module) if len(times) > 1 else 1.0
    grid = resampled_times(times, rate)
    even2d, even_visible = resample_joints2d(joints2d, visible, times, grid)
    crop = follow_person(
        even2d, even_visible, module.net.skeleton, rate=rate, focal=focal, principal=principal
    )
    lifted = _lift_through(crop, even2d, even_visible, module)
    return interpolate_times(lifted, grid, times)


def _lift_through(
    crop: CropCamera,
    joints2d: NDArray[np.float64],
    visible: NDArray[np.bool_],
    module: LiftModule,
) -> NDArray[np.float64]:
    """Lift evenly spaced frames as the crop camera sees them; camera frame, metres, (N, J, 3)."""
    normalised = np.where(visible[..., None], crop.crop_joints(joints2d), 0.0)
    clip = torch.from_numpy(normalised.astype(np.float32)).to(module.device)
    seen = torch.from_numpy(visible).to(module.device)
    with torch.inference_mode():
        lift = partial(lift_overlapping, module, module.net)
        if module.flip_test:
            lifted = lift_with_mirror(lift, clip, seen, module.swap)
        else:
            lifted = lift(clip, seen)
        lifted = lifted - lifted[:, module.net.skeleton.root, None]
    return crop.rotate_back(lifted.double().cpu().numpy())


def resampled_times(times: NDArray[np.float64], rate: float) -> NDArray[np.float64]:
    """Evenly spaced times over the same span; the times themselves if they have this rate already.

    >>> resampled_times(np.array([2.0, 2.04, 2.08]), 50.0).round(2).tolist()
    [2.0, 2.02, 2.04, 2.06, 2.08]
    """
    if len(times) < 2:
        return times
    steps = np.diff(times) * rate
    if np.abs(steps - 1).max() <= SAME_RATE:
        return times
    count = max(2, round((times[-1] - times[0]) * rate) + 1)
    return np.linspace(times[0], times[-1], count)


def resample_joints2d(
    joints2d: NDArray[np.floating],
    visible: NDArray[np.bool_],
    times: NDArray[np.float64],
    grid: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """2D joints at other times; a joint is visible where both frames around a time show it.

    Args:
        joints2d: Pixels, (N, J, 2); any value where not visible.
        visible: Whether a joint is visible, (N, J).
        times: Seconds, (N,), increasing.
        grid: Seconds, (G,), within `times`.

    Returns:
        Pixels, (G, J, 2), 0 where not visible, and whether a joint is visible, (G, J).
    """
    if grid is times:
        return np.where(visible[..., None], joints2d, 0.0), visible
    after = np.clip(np.searchsorted(times, grid - 1e-9), 0, len(times) - 1)
    before = np.maximum(after - 1, 0)
    exact = np.abs(times[after] - grid) < 1e-6
    shown = visible[after] & (visible[before] | exact[:, None])
    resampled = np.zeros((len(grid), *joints2d.shape[1:]))
    patterns, pattern_of = np.unique(visible, axis=1, return_inverse=True)
    for number, known in enumerate(patterns.T):  # joints seen in the same frames go together
        joints = np.flatnonzero(pattern_of == number)
        if known.any():
            together = joints2d[known][:, joints]
            resampled[:, joints] = interpolate_times(together, times[known], grid)
    return np.where(shown[..., None], resampled, 0.0), shown


def interpolate_times(
    values: NDArray[np.floating], times: NDArray[np.float64], grid: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Values, (N, ...), at other times, by monotone cubics: without overshoot; held at the ends."""
    if grid is times:
        return np.asarray(values, np.float64)
    if len(times) == 1:
        return np.repeat(np.asarray(values, np.float64), len(grid), axis=0)
    inside = np.clip(grid, times[0], times[-1])
    return np.asarray(PchipInterpolator(times, values, axis=0)(inside))


def lifter_rate(module: LiftModule) -> float:
    """Frame rate that a lifter was trained on, Hz."""
    return module.trained_rate or LIFTER_RATE


def lifter_facts(module: LiftModule, name: str, digest: str, licence: str) -> dict[str, Any]:
    """Facts of a lifter for the file of a motion; an exported one has its own licence."""
    net = module.net
    network = type(getattr(net, "net", net)).__name__
    exported = net.facts if isinstance(net, OnnxLifter) else None
    return {
        "name": name,
        "digest": digest,
        "class": exported.network if exported else network,
        "runtime": "onnxruntime" if exported else "torch",
        "licence": exported.licence if exported else licence,
        "frames": net.frames,
        "flip_test": module.flip_test,
        "rate": lifter_rate(module),
    }
