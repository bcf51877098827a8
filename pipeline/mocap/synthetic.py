"""Embedded people: procedural bodies, motions and images from a seed, without any download."""

from __future__ import annotations

import functools
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline import rng
from pipeline.camera import ring_of_cameras
from pipeline.errors import UsageError
from pipeline.mocap.bodies import BONES
from pipeline.mocap.choreography import (
    ACTIONS,
    BOUNDS,
    CHANNELS,
    VARIATION_WEIGHTS,
    make_pose,
    mirror_poses,
)
from pipeline.mocap.render import PinholeCameras, RenderedImages, RenderedSequence
from pipeline.skeleton import H36M17
from pipeline.sources import Samples, Sequence, Split

Array = NDArray[np.float64]

FPS = 50.0
ANKLE_HEIGHT = 0.08
IMAGE_SIZE = (1000, 1000)


def catmull_rom(knots: Array, phase: Array) -> Array:
    """Values of a smooth curve through knots: a Catmull-Rom spline.

    Args:
        knots: Values at phase 0, 1, 2, …, (K, P).
        phase: Positions on the curve, (T,), from 1 to K - 3.

    Returns:
        Values, (T, P). The curve has a continuous first derivative.

    Source: Catmull and Rom, "A class of local interpolating splines" (1974).
    """
    i = np.floor(phase).astype(np.int64)
    u = (phase - i)[:, None]
    a, b, c, d = (knots[i + step] for step in (-1, 0, 1, 2))
    return b + 0.5 * u * (c - a + u * (2 * a - 5 * b + 4 * c - d + u * (3 * (b - c) + d - a)))


def _smooth_noise(generator: np.random.Generator, frames: int, lanes: int, seconds: float) -> Array:
    """Smooth noise of unit deviation with a new random value every `seconds`, (T, lanes)."""
    phase = np.arange(frames) / (FPS * seconds) + 1
    return catmull_rom(generator.standard_normal((int(phase[-1]) + 4, lanes)), phase)


def joint_angles(action: str, frames: int, generator: np.random.Generator) -> Array:
    """Joint angles of one random performance of an action, (T, P), degrees (hop in metres)."""
    choreography = ACTIONS[action]
    mean_tempo = generator.uniform(0.8, 1.2)
    tempo = mean_tempo * (1 + 0.12 * np.tanh(_smooth_noise(generator, frames, 1, 1.0)[:, 0]))
    phase = np.cumsum(tempo) / (FPS * choreography.interval) + generator.uniform(1, 2)
    count = int(phase[-1]) + 4
    order = np.arange(count) + generator.integers(len(choreography.keys))
    if choreography.shuffled:
        order = generator.integers(len(choreography.keys), size=count)
    keys = choreography.keys[order % len(choreography.keys)]
    standing = make_pose()
    amplitude = generator.uniform(0.8, 1.15) + 0.08 * generator.standard_normal((count, 1))
    variation = choreography.variation * generator.standard_normal(keys.shape)
    style = 5.0 * generator.standard_normal(len(CHANNELS))
    knots = standing + (keys - standing) * amplitude + (variation + style) * VARIATION_WEIGHTS
    noise = _smooth_noise(generator, frames, len(CHANNELS), 0.7)
    angles = catmull_rom(knots, phase) + 2.0 * VARIATION_WEIGHTS * noise
    angles[:, CHANNELS.index("look")] += 14 * _smooth_noise(generator, frames, 1, 1.5)[:, 0]
    if generator.random() < 0.5:
        angles = mirror_poses(angles)
    first_heading, side = generator.uniform(0, 360), generator.choice([-1, 1])
    turning = np.cumsum(1 + 0.5 * _smooth_noise(generator, frames, 1, 1.2)[:, 0])
    heading = first_heading + side * choreography.turn_speed * turning / FPS
    angles = np.clip(angles, *BOUNDS)
    yaw_noise = 12 * _smooth_noise(generator, frames, 1, 1.5)[:, 0]
    angles[:, CHANNELS.index("yaw")] += heading + yaw_noise
    return angles


def _axis_rotations(axis: Literal["x", "y", "z"], degrees: Array) -> Array:
    """Rotation matrices about an axis, (T, 3, 3)."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrices = np.tile(np.eye(3), (len(degrees), 1, 1))
    matrices[:, i, i] = matrices[:, j, j] = cos
    matrices[:, i, j], matrices[:, j, i] = -sin, sin
    return matrices


def forward_kinematics(angles: Array, bones: dict[str, float]) -> Array:
    """Pelvis-relative joints of a body from its joint angles.

    Convention:
        Body at yaw 0: x forward, y to the body's left, z up. All angles zero: upright, arms and
        legs straight down. A bent knee (90 degrees) puts the ankle behind it:

        >>> bones = {bone: low for bone, (low, high) in BONES.items()}
        >>> bent = forward_kinematics(make_pose(hip=0, splay=0, turnout=0, knee=90)[None], bones)[0]
        >>> round(float((bent[6] - bent[5])[0]), 3)
        -0.438

    Args:
        angles: Degrees, (T, P), in the order of `CHANNELS`.
        bones: Bone lengths in metres, by the joint (no side) where the bone ends, as in `BONES`.

    Returns:
        Pelvis-relative joints, metres, (T, 17, 3).
    """
    degrees = dict(zip(CHANNELS, angles.T, strict=True))
    joints = np.zeros((len(angles), len(H36M17), 3))

    def place(name: str, parent: str, frame: Array, offset: tuple[float, float, float]) -> None:
        joints[:, H36M17.index(name)] = joints[:, H36M17.index(parent)] + frame @ np.array(offset)

    def rotation(axis: Literal["x", "y", "z"], channel: str, factor: float = 1.0) -> Array:
        return _axis_rotations(axis, factor * degrees[channel])

    pelvis = rotation("z", "yaw") @ rotation("y", "pitch") @ rotation("x", "roll")
    bend = rotation("y", "bend", 0.5) @ rotation("x", "side", 0.5) @ rotation("z", "twist", 0.5)
    waist = pelvis @ bend
    chest = waist @ bend
    skull = chest @ rotation("z", "look") @ rotation("y", "nod") @ rotation("x", "tilt")
    place("spine", "pelvis", waist, (0, 0, bones["spine"]))
    place("thorax", "spine", chest, (0, 0, bones["thorax"]))
    # the nose is 24 degrees in front of the neck's axis, the head's top as far behind the nose
    place("nose", "thorax", skull, (0.4 * bones["nose"], 0, 0.9165 * bones["nose"]))
    place("head", "nose", skull, (-0.28 * bones["head"], 0, 0.96 * bones["head"]))
    for side, outward in (("left", 1.0), ("right", -1.0)):
        place(f"{side}_hip", "pelvis", pelvis, (0, outward * bones["hip"], 0))
        thigh = pelvis @ rotation("y", f"{side}_hip", -1) @ rotation("x", f"{side}_splay", outward)
        thigh = thigh @ rotation("z", f"{side}_turnout", outward)
        shank = thigh @ rotation("y", f"{side}_knee")
        place(f"{side}_knee", f"{side}_hip", thigh, (0, 0, -bones["knee"]))
        place(f"{side}_ankle", f"{side}_knee", shank, (0, 0, -bones["ankle"]))
        shoulder = (0.0, 0.97 * outward * bones["shoulder"], -0.2431 * bones["shoulder"])
        place(f"{side}_shoulder", "thorax", chest, shoulder)
        arm = chest @ rotation("y", f"{side}_arm", -1) @ rotation("x", f"{side}_abduct", outward)
        arm = arm @ rotation("z", f"{side}_inward", -outward)
        forearm = arm @ rotation("y", f"{side}_elbow", -1)
        place(f"{side}_elbow", f"{side}_shoulder", arm, (0, 0, -bones["elbow"]))
        place(f"{side}_wrist", f"{side}_elbow", forearm, (0, 0, -bones["wrist"]))
    return joints


def _hann_average(values: Array, frames: int) -> Array:
    """Values (T, C) averaged over an odd number of frames with a Hann window, to smooth them."""
    window = np.hanning(frames + 2)[1:-1]
    padded = np.pad(values, ((frames // 2, frames // 2), (0, 0)), mode="edge")
    columns = [np.convolve(column, window / window.sum(), mode="valid") for column in padded.T]
    return np.stack(columns, axis=1)


def put_on_ground(joints: Array, hop: Array) -> Array:
    """Move a body on the floor: pelvis-relative joints -> world joints, metres, (T, 17, 3).

    The lowest ankle is at ankle height plus `hop`, (T,). The body moves over the floor so that the
    foot that carries it does not slide. The path is centred on the origin.
    """
    ankles = joints[:, [H36M17.index("left_ankle"), H36M17.index("right_ankle")]]
    lowest = ankles[..., 2].min(axis=1, keepdims=True)
    weight = np.exp((lowest - ankles[..., 2]) / 0.012)  # a foot 12 mm higher has 1/e of the weight
    weight /= weight.sum(axis=1, keepdims=True)
    push = -np.diff(ankles[..., :2], axis=0) * (weight[1:] + weight[:-1])[..., None] / 2
    root = np.zeros((len(joints), 3))
    root[1:, :2] = np.cumsum(_hann_average(push.sum(axis=1), 13), axis=0)
    root[:, :2] -= (root[:, :2].min(axis=0) + root[:, :2].max(axis=0)) / 2
    height = ANKLE_HEIGHT + hop - (weight * ankles[..., 2]).sum(axis=1)
    root[:, 2] = _hann_average(height[:, None], 7)[:, 0]
    return joints + root[:, None]


def make_body(seed: int, subject: str) -> dict[str, float]:
    """Bone lengths of a subject, metres, sampled from `BONES`; half of the variation is shared."""
    generator = rng.make_generator(seed, "body", subject)
    shared, own = generator.random(), generator.random(len(BONES))
    return {
        bone: low + (high - low) * (0.5 * shared + 0.5 * share)
        for (bone, (low, high)), share in zip(BONES.items(), own, strict=True)
    }


@functools.lru_cache(maxsize=512)
def make_motion(seed: int, subject: str, action: str, frames: int) -> NDArray[np.float32]:
    """Joints of a subject in an action at 50 Hz, world metres, z up, (T, 17, 3); read-only.

    Raises:
        UsageError: If there is no such action.
    """
    if action not in ACTIONS:
        raise UsageError(f"no action {action!r}; the embedded people can {', '.join(ACTIONS)}")
    angles = joint_angles(action, frames, rng.make_generator(seed, "motion", subject, action))
    joints = put_on_ground(
        forward_kinematics(angles, make_body(seed, subject)), angles[:, CHANNELS.index("hop")]
    ).astype(np.float32)
    joints.setflags(write=False)
    return joints


class Synthetic:
    """Embedded people: sequences for lifting and single images for the 2D stage.

    Args:
        train: Number of training subjects.
        val: Number of validation subjects, none of them in training.
        test: Number of test subjects, none of them in training or validation.
        actions: Names of the actions, as in `ACTIONS`; all actions by default.
        seconds: Length of a training motion in seconds; validation and test motions are half as
            long.
        images: Number of single images in the training split; validation and test have a thirtieth
            of it.
        share: Part of the training subjects: all, the first half (detector) or the second half
            (lifter), so that a lifter trains on detections of people that the detector has not
            seen.
        seed: Seed of bodies, motions, cameras and clothes.
    """

    skeleton = H36M17

    def __init__(
        self,
        train: int = 8,
        val: int = 2,
        test: int = 3,
        *,
        actions: tuple[str, ...] | None = None,
        seconds: float = 8.0,
        images: int = 60_000,
        share: Literal["all", "detector", "lifter"] = "all",
        seed: int = 0,
    ) -> None:
        self.people = {"train": train, "val": val, "test": test}
        self.actions = tuple(actions) if actions is not None else tuple(ACTIONS)
        self.seconds, self.images, self.share, self.seed = seconds, images, share, seed

    def describe(self) -> str:
        """Summary of the source in one line, for the log of a run."""
        train, val, test = self.people.values()
        names = "" if self.actions == tuple(ACTIONS) else f" ({', '.join(self.actions)})"
        return (
            f"synthetic: {train}/{val}/{test} embedded people (train/val/test), "
            f"share {self.share}, {len(self.actions)} actions{names} of {self.seconds:g} s, "
            f"{self.images} images, seed {self.seed}"
        )

    def subjects(self, split: Split) -> list[str]:
        """Names of the subjects of a split, unique over all splits.

        Raises:
            UsageError: If the split is unknown or has no subjects.
        """
        if split not in get_args(Split):
            raise UsageError(f"no split {split!r}; there are {', '.join(get_args(Split))}")
        names = [f"{split}{i + 1:02d}" for i in range(self.people[split])]
        if split == "train" and self.share != "all":
            half = (len(names) + 1) // 2
            names = names[:half] if self.share == "detector" else names[half:]
        if self.seconds <= 0:
            raise UsageError(f"seconds is {self.seconds}; give more than 0")
        if not names:
            raise UsageError(
                f"synthetic: no subjects in {split} ({self.share}); raise "
                f"--data.source.init_args.{split}"
            )
        return names

    def _motions(self, split: Split) -> list[tuple[str, str, NDArray[np.float32]]]:
        """Subject, action and world joints of each motion of a split."""
        frames = max(2, round(self.seconds * FPS / (1 if split == "train" else 2)))
        return [
            (subject, action, make_motion(self.seed, subject, action, frames))
            for subject in self.subjects(split)
            for action in self.actions
        ]

    def sequences(self, split: Split) -> list[Sequence]:
        """Every motion of a split seen by four cameras; images are rendered when they are read.

        Raises:
            UsageError: If the split is unknown or has no subjects.
        """
        found = []
        for subject, action, joints3d in self._motions(split):
            key = (self.seed, subject, action)
            for k, camera in enumerate(ring_of_cameras(*key, joints3d=joints3d)):
                name = f"{subject} {action} camera{k + 1}"
                images = RenderedSequence(
                    joints3d,
                    camera,
                    appearance_seed=rng.derive_seed(*key, "look"),
                    background_seed=rng.derive_seed(*key, "scene", k),
                )
                found.append(
                    Sequence(name, subject, action, camera, FPS, H36M17, joints3d, images=images)
                )
        return found

    def samples(self, split: Split) -> Samples:
        """Single images of the people of a split, from all sides and distances.

        Sample i is a pure function of (seed, split, share, i). Joints outside the image are not
        labelled; occluded joints are. About two images in five have an object in front of the
        person, and one in eight has a second person.

        Raises:
            UsageError: If the split is unknown or has no subjects.
        """
        count = self.images if split == "train" else max(1, self.images // 30)
        motions = self._motions(split)
        all_frames = np.concatenate([joints for *_, joints in motions])
        actions = np.repeat([action for _, action, _ in motions], [len(j) for *_, j in motions])
        key = (self.seed, "sample", split, self.share, np.arange(count))
        frame = (rng.uniform(*key, "frame", lanes=1)[:, 0] * len(all_frames)).astype(np.int64)
        joints3d = all_frames[frame]
        cameras = _sample_cameras(joints3d, key)
        seeds = rng.random_bits(*key, "look", lanes=2).astype(np.int64) & 0x7FFFFFFF
        in_camera = cameras.to_camera(joints3d.astype(np.float64))
        joints2d = cameras.project(in_camera).astype(np.float32)
        labelled = np.all((joints2d >= 0) & (joints2d <= np.array(IMAGE_SIZE) - 1), axis=-1)
        joints2d[~labelled] = np.nan
        low, high = np.nanmin(joints2d, axis=1), np.nanmax(joints2d, axis=1)
        images = RenderedImages(
            joints3d,
            cameras,
            appearance_seeds=seeds[:, 0],
            background_seeds=seeds[:, 1],
            occlusion_rate=0.4,
            second_person_rate=0.125,
        )
        return Samples(
            H36M17,
            images,
            joints2d,
            labelled,
            np.concatenate([low, high - low], axis=1),
            in_camera.astype(np.float32),
            cameras.focal,
            cameras.principal,
            actions=tuple(actions[frame].tolist()),
        )


def _sample_cameras(joints3d: NDArray[np.float32], key: tuple[rng.Key, ...]) -> PinholeCameras:
    """Random cameras, one per body (N, 17, 3), from all sides and heights, 15 % aimed badly."""
    draw = rng.uniform(*key, "camera", lanes=8)
    noise = rng.normal(*key, "aim", lanes=4)
    centre = (joints3d.min(axis=1) + joints3d.max(axis=1)).astype(np.float64) / 2
    azimuth, distance = 2 * np.pi * draw[:, 0], 2.2 + 4.2 * draw[:, 1]
    position = centre + distance[:, None] * np.stack(
        [np.cos(azimuth), np.sin(azimuth), 0 * azimuth], -1
    )
    position[:, 2] = 0.5 + 1.9 * draw[:, 2]
    focal = ((900 + 400 * draw[:, 4]) * np.sqrt(distance / 4))[:, None].repeat(2, axis=1)
    aim_error = np.where(draw[:, 3] < 0.15, 0.58, 0.12)  # in units of half the field of view
    aim_radius = aim_error * distance * IMAGE_SIZE[0] / 2 / focal[:, 0]
    target = centre + aim_radius[:, None] * np.tanh(noise[:, :3])
    principal = np.array(IMAGE_SIZE) / 2 + 20 * (draw[:, 5:7] - 0.5)
    roll = np.deg2rad(3.0) * noise[:, 3]
    return PinholeCameras.look_at(position, target, roll, focal, principal, IMAGE_SIZE)
