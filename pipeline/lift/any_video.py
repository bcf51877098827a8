"""Training sequences that look like people in any video: any camera, detector and frame rate."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, replace

import numpy as np
import scipy
from numpy.typing import NDArray

from pipeline import rng
from pipeline.camera import Camera, look_at_rotation, project, world_to_camera
from pipeline.errors import DataError, UsageError
from pipeline.lift.crop_camera import follow_person
from pipeline.lift.detector_noise import WITH_EARS, add_ears, fitted_noise
from pipeline.lift.sequences import PreparedSequence
from pipeline.mocap.bodies import apply_bone_lengths, sample_bone_lengths
from pipeline.skeleton import (
    DETECTOR_SKELETONS,
    H36M17,
    Conversion,
    Skeleton,
    make_conversion,
)
from pipeline.sources import MotionSource, Sequence, true_runs

ASSUMED_FOV = 55.0
"""Field of view that `heatlift predict` assumes where none is given, degrees."""

SHAPES = ((16, 9), (16, 9), (4, 3), (1, 1), (3, 4), (9, 16))
"""Shapes of images that cameras have; each entry is as likely as the others."""

LONGER_SIDE = 1000
"""Longer side of an image, pixels."""

BIAS = (-0.2, 1.2)
"""Range of the factor on the bias of the measured detector, because detectors differ."""

LEAST_JOINTS = 4
"""Frames with fewer visible joints do not show the person."""

SHORTEST = 0.3
"""Shortest uninterrupted stretch of a person's frames that is used, seconds."""


@dataclass(frozen=True, eq=False)
class VideoPart:
    """A few seconds of one person in one video, as a 2D detector finds them.

    Args:
        name: Name of the sequence that it was made of.
        action: Action of the sequence.
        rate: Frames per second.
        skeleton: Joint set of the detector.
        joints2d: Pixels, (T, J, 2); NaN where missing.
        joints3d: Truth in the camera frame, metres, H36M17, (T, 17, 3).
        camera: The camera, without lens distortion, principal point in the middle of the image.
        fov: Field of view that is assumed for the camera, degrees.
    """

    name: str
    action: str
    rate: float
    skeleton: Skeleton
    joints2d: NDArray[np.float64]
    joints3d: NDArray[np.float64]
    camera: Camera
    fov: float


class AnyVideo:
    """How motion becomes videos of strangers, for lifters that `heatlift predict` uses.

    Each recording gets a new body, a new tempo and, every few seconds, a new camera. Its joints are
    found by a simulated detector (`DetectorNoise`), which has one of the joint sets of common
    detectors; joints outside of the image are missing. Joints that the lifter needs and the
    detector lacks are made up by the same conversion as in `heatlift predict`, and the person is
    seen through the same crop camera (`follow_person`).

    Args:
        also: Data source whose training motion is used, too.
        rate: Frame rate of the lifter, Hz.
        seconds: Longest part of a recording that one camera sees.
        fov: Range of the field of view along the longer side of the image, degrees.
        fov_known: Share of the parts whose field of view is known; for the others that of
            `heatlift predict` is assumed.
        pitch: Range of the angle at which the camera looks up (positive) or down, degrees.
        roll: Standard deviation of the camera's roll, degrees.
        height: Range of the height of a standing person, as a share of the image's height.
        aim: Largest distance of the person from the middle of the image, as a share of half the
            image's width and height.
        tempo: Range of the factor on the speed of the motion.
        bodies: Whether each recording gets a new body.
        joint_sets: Names of the joint sets of detectors, each as likely as the others.
        noise: Range of the factor on the detector's errors.
        clean: Share of the parts without any error of the detector.
        hidden: Share of the parts whose legs, or one of whose arms or legs, are not seen.

    Raises:
        UsageError: If there is no such joint set, or a range is empty.
    """

    def __init__(
        self,
        also: MotionSource | None = None,
        *,
        rate: float = 25.0,
        seconds: float = 6.0,
        fov: tuple[float, float] = (35.0, 90.0),
        fov_known: float = 0.7,
        pitch: tuple[float, float] = (-30.0, 30.0),
        roll: float = 3.0,
        height: tuple[float, float] = (0.15, 1.2),
        aim: float = 0.6,
        tempo: tuple[float, float] = (0.8, 1.25),
        bodies: bool = True,
        joint_sets: tuple[str, ...] = ("H36M17", "COCO17", "BLAZEPOSE33", "BODY25", "HALPE26"),
        noise: tuple[float, float] = (0.4, 1.8),
        clean: float = 0.2,
        hidden: float = 0.08,
    ) -> None:
        if not joint_sets or not {*joint_sets} <= DETECTOR_SKELETONS.keys():
            raise UsageError(
                f"joint_sets are {', '.join(joint_sets)}; choose from "
                f"{', '.join(DETECTOR_SKELETONS)}"
            )
        ranges = {"fov": fov, "pitch": pitch, "height": height, "tempo": tempo, "noise": noise}
        for name, (low, high) in ranges.items():
            if low > high:
                raise UsageError(f"{name} is {low:g} to {high:g}; give the lower number first")
        self.also, self.rate, self.seconds = also, rate, seconds
        self.fov, self.fov_known, self.pitch, self.roll = fov, fov_known, pitch, roll
        self.height, self.aim, self.tempo, self.bodies = height, aim, tempo, bodies
        self.joint_sets, self.noise, self.clean, self.hidden = joint_sets, noise, clean, hidden

    def describe(self) -> str:
        """Summary in one line, for the log of a run."""
        more = "" if self.also is None else f"; also {self.also.describe()}"
        return (
            f"as any video: {self.rate:g} Hz, fov {self.fov[0]:g} to {self.fov[1]:g} degrees, "
            f"pitch {self.pitch[0]:g} to {self.pitch[1]:g} degrees, {', '.join(self.joint_sets)}"
            f"{more}"
        )

    def collect_motion(self, source: MotionSource) -> list[Sequence]:
        """Training sequences of a data source and of `also`.

        Raises:
            DataError: If there are none.
        """
        sequences = [*source.sequences("train")]
        if not sequences:
            raise DataError(f"{source.describe()}: no sequences in split train; check its splits")
        return sequences if self.also is None else [*sequences, *self.also.sequences("train")]

    def training_sequences(
        self, sequences: Many[Sequence], skeleton: Skeleton, seed: int, rendering: int
    ) -> list[PreparedSequence]:
        """All parts of all sequences, as the lifter sees them: a pure function of the arguments.

        Sequences with the same 3D joints, of several cameras, are one recording and used once.

        Args:
            sequences: Sequences with world joints, floor at z = 0.
            skeleton: Joint set of the lifter, H36M17.
            seed: Seed of the run.
            rendering: Number of the rendering.
        """
        found = []
        for sequence in {id(s.joints3d): s for s in reversed(sequences)}.values():
            for part in self.record(sequence, seed, rendering):
                found += view_part(part, sequence, skeleton)
        return found

    def record(self, sequence: Sequence, seed: int, rendering: int) -> list[VideoPart]:
        """Parts of a sequence, each with its own camera and detector.

        Raises:
            DataError: If the sequence has no 3D joints.
        """
        if sequence.joints3d is None:
            raise DataError(f"{sequence.name}: has no 3D joints, so no video can be made of it")
        random = rng.make_generator(seed, "any video", rendering, sequence.name)
        world = make_conversion(sequence.skeleton, H36M17).joints(sequence.joints3d)
        tempo = np.exp(random.uniform(*np.log(self.tempo)))
        bones = sample_bone_lengths(seed, f"any video {rendering} {sequence.name}")
        parts = []
        for run in true_runs(sequence.valid_frames):
            moved = resample_motion(world[run], sequence.fps * tempo, self.rate)
            if len(moved) < SHORTEST * self.rate:
                continue
            if self.bodies:
                moved = apply_bone_lengths(moved, H36M17, bones)
            count = max(1, round(len(moved) / (self.seconds * self.rate)))
            for joints3d in np.array_split(moved, count):
                parts.append(self._record_part(joints3d, sequence, random))
        return parts

    def _record_part(
        self, world: NDArray[np.float64], sequence: Sequence, random: np.random.Generator
    ) -> VideoPart:
        """One part, seen by a random camera and found by a random detector."""
        camera = self._place_camera(world, random)
        fov = float(np.degrees(2 * np.arctan(LONGER_SIDE / 2 / camera.focal[0])))
        in_camera = add_ears(world_to_camera(world, camera))
        noisy, missing = in_camera.copy(), np.zeros(in_camera.shape[:2], bool)
        if random.random() >= self.clean:
            bias, level = random.uniform(*BIAS), random.uniform(*self.noise)
            error, missing = fitted_noise().sample(
                random, in_camera, self.rate, bias=bias, level=level, missing=random.random()
            )
            noisy[..., :2] += error
        pixels = np.asarray(project(noisy, camera), np.float64)
        exact = np.asarray(project(in_camera, camera), np.float64)
        missing |= ((exact < 0) | (exact > np.array(camera.size) - 1)).any(axis=-1)
        if random.random() < self.hidden:
            missing[:, _choose_limb(random)] = True
        pixels[missing] = np.nan
        skeleton = DETECTOR_SKELETONS[self.joint_sets[random.integers(len(self.joint_sets))]]
        known = random.random() < self.fov_known
        return VideoPart(
            sequence.name,
            sequence.action,
            self.rate,
            skeleton,
            _as_detected(skeleton).joints(pixels).astype(np.float64),
            in_camera[:, : len(H36M17)],
            camera,
            fov if known else ASSUMED_FOV,
        )

    def _place_camera(self, world: NDArray[np.float64], random: np.random.Generator) -> Camera:
        """A camera that shows the person with a size and at a place of the image, from any side."""
        shape = np.array(SHAPES[random.integers(len(SHAPES))])
        width, height = (shape * LONGER_SIDE / shape.max()).round().astype(int).tolist()
        focal = LONGER_SIDE / 2 / np.tan(np.radians(random.uniform(*self.fov)) / 2)
        share = np.exp(random.uniform(*np.log(self.height)))
        pitch, yaw = np.radians(random.uniform(*self.pitch)), random.uniform(0, 2 * np.pi)
        forward = [np.cos(pitch) * np.cos(yaw), np.cos(pitch) * np.sin(yaw), np.sin(pitch)]
        rotation = look_at_rotation(np.zeros(3), forward, self.roll * random.standard_normal())
        place = random.uniform(-self.aim, self.aim, 2) * (1.15 - min(share, 1.0))
        ray = np.array([*(place * (width, height) / 2 / focal), 1.0])
        centre = (world[:, 0].min(axis=0) + world[:, 0].max(axis=0)) / 2
        turned = (world - centre) @ rotation.T
        depth = max(1.7 * focal / (share * height), 1.0 - float(turned[..., 2].min()))
        return Camera(
            rotation=rotation,
            centre=centre - depth * ray @ rotation,
            focal=np.array([focal, focal]),
            principal=np.array([(width - 1) / 2, (height - 1) / 2]),
            size=(width, height),
            distortion=np.zeros(5),
        )


def view_part(part: VideoPart, sequence: Sequence, skeleton: Skeleton) -> list[PreparedSequence]:
    """The stretches of a part in which the person is visible, as the lifter sees them.

    2D is that of the crop camera, 3D relative to the root in its frame. Joints that are missing in
    a few frames are not filled in; the lifter gets its mask token.
    """
    conversion = make_conversion(part.skeleton, skeleton, allow_missing=True, extrapolate=True)
    joints2d = conversion.joints(part.joints2d)
    visible = np.isfinite(joints2d).all(axis=-1)
    focal = LONGER_SIDE / 2 / np.tan(np.radians(part.fov) / 2)
    found = []
    for run in true_runs(visible.sum(axis=1) >= LEAST_JOINTS):
        if run.stop - run.start < SHORTEST * part.rate:
            continue
        found.append(
            view_through_crop(
                replace(sequence, fps=part.rate),
                skeleton,
                joints2d[run],
                visible[run],
                part.joints3d[run],
                focal=focal,
                principal=(float(part.camera.principal[0]), float(part.camera.principal[1])),
            )
        )
    return found


def view_through_crop(
    sequence: Sequence,
    skeleton: Skeleton,
    joints2d: NDArray[np.floating],
    visible: NDArray[np.bool_],
    in_camera: NDArray[np.floating],
    *,
    focal: float,
    principal: tuple[float, float],
    valid: NDArray[np.bool_] | None = None,
) -> PreparedSequence:
    """A sequence as the crop camera shows it, for training and evaluation.

    Args:
        sequence: Gives name and frame rate.
        skeleton: Joint set of the lifter, H36M17.
        joints2d: Pixels, (T, J, 2); any value where not visible.
        visible: Whether a joint is visible, (T, J).
        in_camera: True joints in the camera frame, metres, (T, J, 3).
        focal: Focal length, pixels.
        principal: Principal point, pixels.
        valid: Frames that count, (T,); None for all.
    """
    crop = follow_person(
        joints2d, visible, skeleton, rate=sequence.fps, focal=focal, principal=principal
    )
    shown = visible[..., None]
    seen = crop.crop_joints(np.where(shown, joints2d, crop.principal))
    relative = in_camera - in_camera[:, skeleton.root, None]
    turned = np.einsum("tab,tjb->tja", crop.rotation, relative)
    return PreparedSequence(
        sequence,
        np.where(shown, seen, 0.0).astype(np.float32),
        visible,
        turned.astype(np.float32),
        np.ones(len(visible), bool) if valid is None else valid,
        visible.astype(np.float32),
        crop,
    )


def view_like_predict(
    sequence: Sequence,
    skeleton: Skeleton,
    joints2d: NDArray[np.floating],
    score: NDArray[np.floating],
    rate: float,
) -> PreparedSequence:
    """A sequence of a data source as `heatlift predict` would see it, if it knew the camera.

    Args:
        sequence: Sequence with 3D joints.
        skeleton: Joint set of the lifter, H36M17.
        joints2d: 2D joints in that joint set, pixels, (T, J, 2); NaN where missing.
        score: Score of each joint, (T, J); 0 where missing.
        rate: Frame rate of the lifter, Hz; of a sequence with twice the rate, every second frame is
            used, and so on.

    Raises:
        DataError: If the sequence has no 3D joints, or its rate is no multiple of the lifter's.
    """
    if sequence.joints3d is None:
        raise DataError(f"{sequence.name}: has no 3D joints, so it cannot be evaluated")
    every = round(sequence.fps / rate)
    if abs(every * rate - sequence.fps) > 1e-6:
        raise DataError(
            f"{sequence.name}: has {sequence.fps:g} Hz, the lifter {rate:g} Hz; set fps of the "
            "data source, or rate of the video"
        )
    valid = None if sequence.valid is None else sequence.valid[::every]
    thinned = replace(
        sequence,
        fps=rate,
        joints3d=sequence.joints3d[::every],
        joints2d=None if sequence.joints2d is None else sequence.joints2d[::every],
        images=None if every > 1 else sequence.images,
        valid=valid,
    )
    joints2d, score = joints2d[::every], score[::every]
    visible = np.isfinite(joints2d).all(axis=-1) & (score > 0)
    world = make_conversion(sequence.skeleton, skeleton).joints(sequence.joints3d[::every])
    camera = sequence.camera
    return view_through_crop(
        thinned,
        skeleton,
        joints2d,
        visible,
        world_to_camera(world, camera),
        focal=float(np.mean(camera.focal)),
        principal=(float(camera.principal[0]), float(camera.principal[1])),
        valid=valid,
    )


def resample_motion(
    joints3d: NDArray[np.floating], rate: float, new_rate: float
) -> NDArray[np.float64]:
    """Motion, (T, J, 3), at another frame rate, by cubic splines through the frames."""
    motion: NDArray[np.float64] = joints3d.astype(np.float64)
    if rate == new_rate or len(motion) < 4:
        return motion
    times = np.arange(0, (len(motion) - 1) / rate + 1e-9, 1 / new_rate)
    return np.asarray(
        scipy.interpolate.CubicSpline(np.arange(len(motion)) / rate, motion)(times), np.float64
    )


def _as_detected(skeleton: Skeleton) -> Conversion:
    """Conversion of exact joints with ears to the joint set of a detector."""
    return make_conversion(WITH_EARS, skeleton, allow_missing=True)


def _choose_limb(random: np.random.Generator) -> list[int]:
    """Joints that something hides: both legs below the hips, or one arm or leg."""
    legs = [f"{side}_{name}" for side in ("left", "right") for name in ("knee", "ankle")]
    side = ("left", "right")[random.integers(2)]
    arm, leg = ([f"{side}_{name}" for name in names] for names in _LIMBS)
    choices = (legs, legs, arm, leg)
    return [H36M17.index(name) for name in choices[random.integers(len(choices))]]


_LIMBS = (("elbow", "wrist"), ("knee", "ankle"))
