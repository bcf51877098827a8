"""Live use: people tracked, lifted and smoothed frame by frame, without looking ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.export.joining import join_motions
from pipeline.export.motion import SEEN, Motion, PersonMotion
from pipeline.lift.crop_camera import follow_person
from pipeline.lift.module import LiftModule
from pipeline.predict.estimators import Estimator, PersonFinder
from pipeline.predict.lifting import FEWEST_JOINTS, lifter_rate, resample_joints2d
from pipeline.predict.media import Frame
from pipeline.predict.motion_maker import describe_root, rate_result
from pipeline.predict.options import CUTOFFS, Filter, LiftOptions
from pipeline.predict.root import locate_root, measure_height
from pipeline.predict.smoothing import OneEuro
from pipeline.predict.tracker import Tracker, letters
from pipeline.skeleton import make_conversion

HEIGHT_FRAMES = 100
"""Frames whose bones set the scale of a person."""


@dataclass(eq=False)
class _Buffer:
    """The last frames of one person."""

    times: deque[float]
    joints2d: deque[NDArray[np.floating]]
    score: deque[NDArray[np.floating]]
    euro: OneEuro
    root_euro: OneEuro
    heights: deque[float] = field(default_factory=lambda: deque(maxlen=HEIGHT_FRAMES))


class LiveLifter:
    """Lifts the people of one frame after the other; each result depends on no later frame.

    The last second or so of every person is kept, resampled to the lifter's rate so that it ends
    with the new frame, and lifted, without the flip test, which would double the time of the
    lifter; the newest pose is smoothed by One-Euro. Where the lifter looks ahead, the newest frame
    stands for those that are not there yet.

    Args:
        module: Trained lifter.
        estimator: Estimator of the 2D joints.
        finder: What finds people.
        options: How 2D joints become 3D motion; `smooth` is always One-Euro here, or none.
        facts: Facts for `Motion.facts`; those about root, smoothing and assumptions are added here.
    """

    def __init__(
        self,
        module: LiftModule,
        estimator: Estimator,
        finder: PersonFinder,
        options: LiftOptions,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.module, self.options, self.rate = module.eval(), options, lifter_rate(module)
        self.estimator = estimator
        self.tracker = Tracker(estimator, finder, max_people=options.max_people)
        self.conversion = make_conversion(
            estimator.skeleton, module.net.skeleton, allow_missing=True, extrapolate=True
        )
        net = module.net
        self.length = net.receptive_field if net.output != "every" else net.frames
        self.seen: set[str] = set()
        self._parts = (estimator, finder)
        self._time = -np.inf  # of the frame before
        self._people: dict[int, _Buffer] = {}
        smooth: Filter = "none" if options.smooth == "none" else "one-euro"
        smoothed = "" if smooth == "none" else ", then smoothed without looking ahead"
        self.facts = {
            **(facts or {}),
            "root": describe_root(smoothed),
            "smoothing": {"filter": smooth, "cutoff_hz": options.cutoff_of(smooth)},
            "assumptions": self.assumptions(),
        }

    def assumptions(self) -> list[str]:
        """What is assumed, with the people that were seen so far."""
        notes = (note for part in self._parts for note in getattr(part, "notes", ()))
        return [*self.options.assumptions(max(1, len(self.seen))), *notes]

    def warn_about_person(self) -> list[str]:
        """A warning if the only person that is kept was never seen, as a list of at most one."""
        person = self.options.person
        if person is None or person in self.seen:
            return []
        return [f"person is {person}; there was {', '.join(sorted(self.seen)) or 'nobody'}"]

    def lift(self, frame: Frame) -> Motion:
        """The people of the next frame, as a motion of one frame."""
        people = []
        size = (frame.image.shape[1], frame.image.shape[0])
        for number, joints2d, score in self.tracker.follow(frame):
            self.seen.add(letters(number))
            if self.options.person in (None, letters(number)):
                person = self.lift_pose(number, joints2d, score, frame.time, size, self._time)
                people += [person] if person else []
        self._time = frame.time
        return Motion(
            tuple(people),
            self.module.net.skeleton,
            np.array([frame.time]),
            self.rate,
            size,
            self.options.focal_length(size),
            ((size[0] - 1) / 2, (size[1] - 1) / 2),
            facts=self.facts,
        )

    def lift_pose(
        self,
        number: int,
        joints2d: NDArray[np.floating],
        score: NDArray[np.floating],
        time: float,
        size: Any,
        before: float | None = None,
    ) -> PersonMotion | None:
        """Lift the newest pose of one person; None if it has too few joints to be lifted.

        Args:
            number: Number of the person.
            joints2d: Pixels, in the joint set of the estimator, (J, 2).
            score: Scores of the joints, (J,).
            time: Seconds.
            size: Width and height of the image.
            before: Time of the frame before, in which the person may be missing; without it, it is
                not known.
        """
        newest2d = self.conversion.joints(joints2d.astype(np.float64))
        newest_score = self.conversion.score(score.astype(np.float64))
        shown = np.isfinite(newest2d).all(-1) & (newest_score > 0)
        shown &= newest_score >= self.options.joint_thr
        if shown.sum() < FEWEST_JOINTS:
            return None
        newest2d, newest_score = np.where(shown[:, None], newest2d, np.nan), shown * newest_score
        buffer = self._people.setdefault(number, self._new_buffer())
        last = buffer.times[-1] if buffer.times else time
        if time - last > self.options.fill_gaps and (before is None or before > last):
            buffer = self._people[number] = self._new_buffer()
        buffer.times.append(time)
        buffer.joints2d.append(newest2d)
        buffer.score.append(newest_score)
        focal = self.options.focal_length((int(size[0]), int(size[1])))
        principal = ((size[0] - 1) / 2, (size[1] - 1) / 2)
        joints3d = self._lift_newest(buffer, focal, principal)
        height = self.options.height_of(number)
        measured = measure_height(joints3d[None], self.module.net.skeleton)
        buffer.heights.append(measured)
        joints3d = joints3d * (height / float(np.median(buffer.heights)))
        if self.options.smooth != "none":
            joints3d = buffer.euro(joints3d, time)
            joints3d = joints3d - joints3d[self.module.net.skeleton.root]
        weight = np.where(shown, np.maximum(newest_score, 0.05), 0.0)
        root = locate_root(
            joints3d[None], newest2d[None], weight[None], focal=focal, principal=principal
        )[0]
        if not np.isfinite(root).all():  # behind the camera, or no joint tells the depth
            return None
        if self.options.smooth != "none":
            root = buffer.root_euro(root, time)
        return PersonMotion(
            letters(number),
            joints3d[None].astype(np.float32),
            root[None].astype(np.float32),
            newest2d[None].astype(np.float32),
            newest_score[None].astype(np.float32),
            np.array([SEEN], np.uint8),
            height,
        )

    def _new_buffer(self) -> _Buffer:
        frames = 2 * self.length + 2  # at up to twice the lifter's rate
        cutoff = self.options.cutoff or CUTOFFS["one-euro"]
        return _Buffer(
            deque(maxlen=frames),
            deque(maxlen=frames),
            deque(maxlen=frames),
            OneEuro(cutoff),
            OneEuro(0.5, 1.0),
        )

    def _lift_newest(
        self, buffer: _Buffer, focal: float, principal: tuple[float, float]
    ) -> NDArray[np.float64]:
        """The newest pose of a person, relative to the root, camera frame, metres, (J, 3)."""
        net = self.module.net
        times = np.array(buffer.times)
        grid = times[-1] - np.arange(self.length)[::-1] / self.rate
        inside = grid >= times[0] - 1e-9
        joints2d, score = np.stack(buffer.joints2d), np.stack(buffer.score)
        visible = score > 0
        even2d, even_visible = resample_joints2d(joints2d, visible, times, grid[inside])
        crop = follow_person(
            even2d, even_visible, net.skeleton, rate=self.rate, focal=focal, principal=principal
        )
        clip = np.where(even_visible[..., None], crop.crop_joints(even2d), 0.0)
        ahead = 0 if net.output == "every" else net.receptive_field - 1 - net.first_frame
        rows = np.clip(np.arange(self.length) - (self.length - len(clip)) + ahead, 0, len(clip) - 1)
        window = torch.from_numpy(clip[rows].astype(np.float32)).to(self.module.device)[None]
        seen = torch.from_numpy(even_visible[rows]).to(self.module.device)[None]
        with torch.inference_mode():
            lifted = self.module(window, seen)
        newest = lifted[0, -1].double().cpu().numpy()
        newest = newest - newest[net.skeleton.root]
        turned: NDArray[np.float64] = newest @ crop.rotation[-1]
        return turned


def describe_latency(latency: Sequence[float]) -> dict[str, float]:
    """Median and 95 % quantile of times in milliseconds."""
    return {"median": float(np.median(latency)), "95 %": float(np.quantile(latency, 0.95))}


def finish_live(pieces: Sequence[Motion], facts: Mapping[str, Any]) -> Motion:
    """Join the motions of single frames, and measure the quality of the whole.

    Args:
        pieces: Motions of `LiveLifter.lift`, at least one.
        facts: Facts that are known at the end, such as `source`; they are added to those of the
            pieces.
    """
    motion = join_motions(pieces)
    quality = {person.id: rate_result(person, motion.skeleton) for person in motion.people}
    return replace(motion, facts={**motion.facts, **facts, "quality": quality})
