"""From tracked people to motion: lifting, scale, place of the root, smoothing, upright world."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.export.measures import unsure_frames
from pipeline.export.motion import MISSING, SEEN, Motion, PersonMotion
from pipeline.lift.module import LiftModule
from pipeline.predict.lifting import (
    LiftedTrack,
    interpolate_times,
    lift_track,
    present_parts,
    resampled_times,
)
from pipeline.predict.options import LiftOptions
from pipeline.predict.root import (
    estimate_up,
    floor_height,
    locate_root,
    measure_height,
    pitch_up,
    smooth_root,
    upright_rotation,
)
from pipeline.predict.smoothing import (
    bone_lengths,
    bone_variation,
    filter_motion,
    hold_bone_lengths,
    mean_acceleration,
    savgol_window,
)
from pipeline.predict.tracks import Track, TrackedPeople
from pipeline.skeleton import Skeleton


def make_motion(
    people: TrackedPeople, module: LiftModule, options: LiftOptions, facts: dict[str, Any]
) -> Motion:
    """Lift all people of a clip.

    Args:
        people: 2D joints of the people.
        module: Trained lifter.
        options: How they are lifted.
        facts: Facts for `Motion.facts`; those about root, smoothing, assumptions and quality are
            added here.

    Raises:
        UsageError: If `options.person` is not in the clip.
    """
    focal = options.focal_length(people.size)
    principal = ((people.size[0] - 1) / 2, (people.size[1] - 1) / 2)
    skeleton = module.net.skeleton
    found, quality, behind = [], {}, list[str]()
    ordered = order_tracks(people, options)
    for index, track in enumerate(ordered):
        if options.person not in (None, track.id):
            continue
        lifted = lift_track(
            track,
            people.skeleton,
            module,
            people.times,
            focal=focal,
            principal=principal,
            joint_threshold=options.joint_thr,
            fill_gaps=options.fill_gaps,
        )
        if (lifted.status == MISSING).all():
            continue
        person, rated = _finish_person(
            lifted, skeleton, people.times, options, options.height_of(index), focal, principal
        )
        behind += _warn_about_lens(person, lifted, focal)
        if (person.status == MISSING).all():
            continue
        quality[track.id] = rated
        found.append(person)
    motion = Motion(tuple(found), skeleton, people.times, people.fps, people.size, focal, principal)
    assumptions = [*options.assumptions(len(ordered)), *_note_filter(options, people)]
    motion = dataclasses.replace(
        motion,
        facts={
            **facts,
            "warnings": [*facts.get("warnings", ()), *behind],
            "source": dict(people.source),
            "root": describe_root("" if options.smooth == "none" else ", then smoothed"),
            "smoothing": {
                "filter": options.smooth,
                "cutoff_hz": options.cutoff_of(options.smooth),
            },
            "quality": quality,
            "assumptions": [*assumptions, *people.notes],
        },
    )
    return to_world(motion, options) if options.frame == "world" else motion


def describe_root(smoothed: str) -> str:
    """How the root was found, for the facts of a motion, with the words about its smoothing."""
    return (
        f"fitted to 2D by weighted least squares in each frame{smoothed}; the path along the floor "
        "is a guess"
    )


def _warn_about_lens(person: PersonMotion, lifted: LiftedTrack, focal: float) -> list[str]:
    """A sentence about frames that have no place in front of the camera, as a list."""
    lost = int(((person.status == MISSING) & (lifted.status != MISSING)).sum())
    if not lost:
        return []
    return [
        f"person {person.id}: {lost} frames are left out, because with a focal length of "
        f"{focal:.0f} pixels the person would be behind the camera; check --fov or --focal"
    ]


def _note_filter(options: LiftOptions, people: TrackedPeople) -> list[str]:
    """A sentence if a filter has nothing to do at this frame rate, as a list of at most one."""
    steps = np.diff(people.times)
    rate = 1 / float(np.median(steps)) if len(steps) else people.fps
    cutoff = options.cutoff_of(options.smooth)
    if cutoff is None or options.smooth == "one-euro":
        return []
    if cutoff >= rate / 2:
        return [f"not smoothed: {rate:.3g} frames/s hold nothing above {cutoff:g} Hz (--cutoff)"]
    if options.smooth == "savgol" and savgol_window(rate, cutoff) == 1:
        return [f"not smoothed: {rate:.3g} frames/s are too few for savgol (--smooth butterworth)"]
    return []


def order_tracks(people: TrackedPeople, options: LiftOptions) -> Sequence[Track]:
    """The tracks in the order of the people, at most `options.max_people`.

    Raises:
        UsageError: If there is no person with the id of `options.person`.
    """
    tracks = list(people.tracks)
    if options.person is not None and options.person not in {track.id for track in tracks}:
        known = ", ".join(track.id for track in people.tracks) or "nobody"
        raise UsageError(f"person is {options.person}; there is {known}")
    if options.order != "appearance":
        measure = {"size": _size, "score": _score, "displacement": _displacement}[options.order]
        tracks.sort(key=lambda track: -measure(track))
    return tracks if options.person is not None else tracks[: options.max_people]


def _size(track: Track) -> float:
    """Mean over time of the height of a person's joints in the image, pixels."""
    extent = _ranges(track.joints2d)
    return float(np.nanmean(extent)) if np.isfinite(extent).any() else 0.0


def _ranges(joints2d: NDArray[np.float32]) -> NDArray[np.float64]:
    """Height of the box around the joints in each frame, (N,); NaN where there are none."""
    y = joints2d[..., 1].astype(np.float64)
    known = np.isfinite(y)
    high = np.where(known, y, -np.inf).max(axis=1)
    low = np.where(known, y, np.inf).min(axis=1)
    return np.where(known.any(axis=1), high - low, np.nan)


def _score(track: Track) -> float:
    """Mean score of a person's joints."""
    return float(track.score.mean()) if track.score.size else 0.0


def _displacement(track: Track) -> float:
    """Length of the path of a person's middle in the image, pixels."""
    known = np.isfinite(track.joints2d)
    count = np.maximum(known.sum(axis=1), 1)
    middle = np.where(known, track.joints2d, 0).sum(axis=1) / count
    return float(np.linalg.norm(np.diff(middle, axis=0), axis=1).sum())


def _finish_person(
    lifted: LiftedTrack,
    skeleton: Skeleton,
    times: NDArray[np.float64],
    options: LiftOptions,
    height: float,
    focal: float,
    principal: tuple[float, float],
) -> tuple[PersonMotion, dict[str, Any]]:
    """Scale, place and smooth a lifted person; the motion and its quality as numbers."""
    measured = measure_height(lifted.joints3d, skeleton)
    raw = lifted.joints3d * (height / measured if np.isfinite(measured) else 1.0)
    weight = np.where(np.isfinite(lifted.joints2d).all(-1), np.maximum(lifted.score, 0.05), 0.0)
    found = locate_root(raw, lifted.joints2d, weight, focal=focal, principal=principal)
    lengths = bone_lengths(raw, skeleton)
    joints3d, root = np.full_like(raw, np.nan), np.full_like(found, np.nan)
    for part in present_parts(lifted.status != MISSING, times, options.fill_gaps):
        joints3d[part], root[part] = _smooth_part(
            raw[part], found[part], times[part], skeleton, lengths, options
        )
    lost = ~np.isfinite(root).all(axis=1)
    status = np.where(lost, MISSING, lifted.status).astype(np.uint8)
    joints3d[lost], root[lost] = np.nan, np.nan
    person = PersonMotion(
        lifted.id,
        joints3d.astype(np.float32),
        root.astype(np.float32),
        lifted.joints2d,
        lifted.score,
        status,
        height,
    )
    quality = {
        "jitter_before": mean_acceleration(raw),
        "bone_variation_before": bone_variation(raw, skeleton),
        **rate_result(person, skeleton),
    }
    return person, quality


def rate_result(person: PersonMotion, skeleton: Skeleton) -> dict[str, Any]:
    """Quality of a finished motion as numbers: jitter, change of the bones, scores of its 2D.

    Args:
        person: The motion.
        skeleton: Its joint set.
    """
    seen = person.score[person.status == SEEN]
    return {
        "jitter": mean_acceleration(person.joints3d),
        "bone_variation": bone_variation(person.joints3d, skeleton),
        "median_score": float(np.median(seen)) if seen.size else 0.0,
        "unsure_frames": int(unsure_frames(person).sum()),
    }


def _smooth_part(
    joints3d: NDArray[np.float64],
    root: NDArray[np.float64],
    times: NDArray[np.float64],
    skeleton: Skeleton,
    lengths: NDArray[np.float64],
    options: LiftOptions,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smooth an uninterrupted part at an even rate, hold its bones, and place its root."""
    if options.smooth == "none":
        return joints3d - joints3d[:, skeleton.root, None], root
    rate = 1 / float(np.median(np.diff(times))) if len(times) > 1 else 1.0
    grid = resampled_times(times, rate)
    even = filter_motion(
        interpolate_times(joints3d, times, grid), rate, options.smooth, options.cutoff
    )
    smooth = hold_bone_lengths(interpolate_times(even, grid, times), skeleton, lengths)
    known = np.isfinite(root).all(axis=1)
    if grid is times:
        root = smooth_root(root, rate)
    elif known.any():
        path = smooth_root(interpolate_times(root[known], times[known], grid), rate)
        root = interpolate_times(path, grid, times)
    return smooth - smooth[:, skeleton.root, None], root


def to_world(motion: Motion, options: LiftOptions) -> Motion:
    """The same motion in a world with z up and the floor at 0, in which the camera stands still."""
    skeleton, assumptions = motion.skeleton, list(motion.facts.get("assumptions", ()))
    if options.camera_pitch is not None:
        up = pitch_up(options.camera_pitch)
    else:
        everybody = [person.positions for person in motion.people]
        estimate = estimate_up(np.concatenate(everybody), skeleton) if everybody else None
        if estimate is None:
            up = pitch_up(0.0)
            assumptions.append("a level camera, because nobody stands upright (--camera_pitch)")
        else:
            up, spread = estimate
            pitch = np.degrees(np.arcsin(np.clip(up[2], -1, 1)))
            assumptions.append(
                f"camera pitch {pitch:.0f} degrees, from people who stand (spread {spread:.0f} "
                "degrees; --camera_pitch)"
            )
    rotation = upright_rotation(up)
    ankles = [skeleton.index(f"{side}_ankle") for side in ("left", "right")]
    heights = [(person.positions[:, ankles] @ rotation)[..., 2] for person in motion.people]
    floor = floor_height(np.concatenate(heights)) if heights else 0.0
    if heights:
        assumptions.append("floor at the height of the lowest ankles, less that of an ankle")
    people = tuple(
        dataclasses.replace(
            person,
            joints3d=(person.joints3d @ rotation).astype(np.float32),
            root=(person.root @ rotation - (0, 0, floor)).astype(np.float32),
        )
        for person in motion.people
    )
    return dataclasses.replace(
        motion,
        people=people,
        frame="world",
        camera_rotation=rotation,
        camera_centre=np.array([0.0, 0.0, -floor]),
        facts={**motion.facts, "assumptions": assumptions},
    )
