"""Embedded people: bodies, procedural motions and images, made from a seed, no download."""

from __future__ import annotations

import functools
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline import rng
from pipeline.camera import ring_of_cameras
from pipeline.errors import UsageError
from pipeline.mocap.choreography import BOUNDS, CHANNELS, LOOSENESS, PROGRAMMES, mirrored, pose
from pipeline.mocap.render import RenderedImages, RenderedSequence, Shots
from pipeline.skeleton import H36M17
from pipeline.sources import Samples, Sequence, Split

Array = NDArray[np.float64]

FPS = 50.0
ANKLE_HEIGHT = 0.08
IMAGE = (1000, 1000)

BONES = {
    "hip": (0.119, 0.147),
    "thigh": (0.428, 0.452),
    "shank": (0.438, 0.454),
    "lower_spine": (0.224, 0.261),
    "upper_spine": (0.251, 0.257),
    "neck": (0.107, 0.121),
    "head": (0.115, 0.115),
    "shoulder": (0.140, 0.169),
    "upper_arm": (0.265, 0.290),
    "forearm": (0.244, 0.252),
}
"""Adult bone lengths in metres from which each body is drawn: those of Human3.6M's people."""


def spline(knots: Array, phase: Array) -> Array:
    """Smooth curve through knots.

    Args:
        knots: Values at phase 0, 1, 2, …, (K, P).
        phase: Where to look, (T,), from 1 to K - 3.

    Returns:
        Values, (T, P), passing through the knots with a continuous first derivative.

    Source: Catmull and Rom, "A class of local interpolating splines" (1974).
    """
    i = np.floor(phase).astype(np.int64)
    u = (phase - i)[:, None]
    a, b, c, d = (knots[i + step] for step in (-1, 0, 1, 2))
    return b + 0.5 * u * (c - a + u * (2 * a - 5 * b + 4 * c - d + u * (3 * (b - c) + d - a)))


def _wander(rng: np.random.Generator, frames: int, lanes: int, seconds: float) -> Array:
    """Smooth noise of unit deviation that changes its mind every so many seconds, (T, lanes)."""
    phase = np.arange(frames) / (FPS * seconds) + 1
    return spline(rng.standard_normal((int(phase[-1]) + 4, lanes)), phase)


def joint_angles(action: str, frames: int, rng: np.random.Generator) -> Array:
    """One performance of an action: joint angles, (T, P), degrees (hop in metres)."""
    programme = PROGRAMMES[action]
    tempo = rng.uniform(0.8, 1.2) * (1 + 0.12 * np.tanh(_wander(rng, frames, 1, 1.0)[:, 0]))
    phase = np.cumsum(tempo) / (FPS * programme.beat) + rng.uniform(1, 2)
    count = int(phase[-1]) + 4
    order = np.arange(count) + rng.integers(len(programme.keys))
    if programme.shuffled:
        order = rng.integers(len(programme.keys), size=count)
    keys = programme.keys[order % len(programme.keys)]
    ease = pose()
    vigour = rng.uniform(0.8, 1.15) + 0.08 * rng.standard_normal((count, 1))
    stray = programme.loose * rng.standard_normal(keys.shape)
    style = 5.0 * rng.standard_normal(len(CHANNELS))
    knots = ease + (keys - ease) * vigour + (stray + style) * LOOSENESS
    curves = spline(knots, phase) + 2.0 * LOOSENESS * _wander(rng, frames, len(CHANNELS), 0.7)
    curves[:, CHANNELS.index("look")] += 14 * _wander(rng, frames, 1, 1.5)[:, 0]
    curves = mirrored(curves) if rng.random() < 0.5 else curves
    heading = rng.uniform(0, 360) + rng.choice([-1, 1]) * programme.turn * np.cumsum(
        1 + 0.5 * _wander(rng, frames, 1, 1.2)[:, 0]
    ) / FPS  # fmt: skip
    curves = np.clip(curves, *BOUNDS)
    curves[:, CHANNELS.index("yaw")] += heading + 12 * _wander(rng, frames, 1, 1.5)[:, 0]
    return curves


def _turn(axis: Literal["x", "y", "z"], degrees: Array) -> Array:
    """Rotation matrices about an axis, (T, 3, 3)."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrices = np.tile(np.eye(3), (len(degrees), 1, 1))
    matrices[:, i, i] = matrices[:, j, j] = cos
    matrices[:, i, j], matrices[:, j, i] = -sin, sin
    return matrices


def forward_kinematics(angles: Array, bones: dict[str, float]) -> Array:
    """Joints of a body around its pelvis from its joint angles.

    Convention:
        Body at yaw 0: x forward, y to the body's left, z up. All angles zero: upright, arms and
        legs straight down. A bent knee (90 degrees) puts the ankle behind it:

        >>> bones = {bone: low for bone, (low, high) in BONES.items()}
        >>> bent = forward_kinematics(pose(hip=0, splay=0, turnout=0, knee=90)[None], bones)[0]
        >>> round(float((bent[6] - bent[5])[0]), 3)
        -0.438

    Args:
        angles: Degrees, (T, P), in the order of `CHANNELS`.
        bones: Bone lengths in metres, named as in `BONES`.

    Returns:
        Pelvis-relative joints, metres, (T, 17, 3).
    """
    a = dict(zip(CHANNELS, angles.T, strict=True))
    joints = np.zeros((len(angles), len(H36M17), 3))

    def put(name: str, parent: str, frame: Array, offset: tuple[float, float, float]) -> None:
        joints[:, H36M17.index(name)] = joints[:, H36M17.index(parent)] + frame @ np.array(offset)

    pelvis = _turn("z", a["yaw"]) @ _turn("y", a["pitch"]) @ _turn("x", a["roll"])
    vertebra = _turn("y", a["bend"] / 2) @ _turn("x", a["side"] / 2) @ _turn("z", a["twist"] / 2)
    waist = pelvis @ vertebra
    chest = waist @ vertebra
    skull = chest @ _turn("z", a["look"]) @ _turn("y", a["nod"]) @ _turn("x", a["tilt"])
    put("spine", "pelvis", waist, (0, 0, bones["lower_spine"]))
    put("thorax", "spine", chest, (0, 0, bones["upper_spine"]))
    # the nose lies 24 degrees before the neck's axis, as far as the head's top lies behind the nose
    put("nose", "thorax", skull, (0.4 * bones["neck"], 0, 0.9165 * bones["neck"]))
    put("head", "nose", skull, (-0.28 * bones["head"], 0, 0.96 * bones["head"]))
    for side, out in (("left", 1.0), ("right", -1.0)):
        put(f"{side}_hip", "pelvis", pelvis, (0, out * bones["hip"], 0))
        thigh = pelvis @ _turn("y", -a[f"{side}_hip"]) @ _turn("x", out * a[f"{side}_splay"])
        thigh = thigh @ _turn("z", out * a[f"{side}_turnout"])
        shank = thigh @ _turn("y", a[f"{side}_knee"])
        put(f"{side}_knee", f"{side}_hip", thigh, (0, 0, -bones["thigh"]))
        put(f"{side}_ankle", f"{side}_knee", shank, (0, 0, -bones["shank"]))
        girdle = (0.0, 0.97 * out * bones["shoulder"], -0.2431 * bones["shoulder"])
        put(f"{side}_shoulder", "thorax", chest, girdle)
        arm = chest @ _turn("y", -a[f"{side}_arm"]) @ _turn("x", out * a[f"{side}_abduct"])
        arm = arm @ _turn("z", -out * a[f"{side}_inward"])
        forearm = arm @ _turn("y", -a[f"{side}_elbow"])
        put(f"{side}_elbow", f"{side}_shoulder", arm, (0, 0, -bones["upper_arm"]))
        put(f"{side}_wrist", f"{side}_elbow", forearm, (0, 0, -bones["forearm"]))
    return joints


def _inert(values: Array, frames: int) -> Array:
    """Values (T, C) averaged over some frames with a Hann window: a body's mass does not jerk."""
    window = np.hanning(frames + 2)[1:-1]
    padded = np.pad(values, ((frames // 2, frames // 2), (0, 0)), mode="edge")
    lanes = [np.convolve(lane, window / window.sum(), mode="valid") for lane in padded.T]
    return np.stack(lanes, axis=1)


def put_on_ground(joints: Array, hop: Array) -> Array:
    """Put a body on the floor: pelvis-relative joints -> world joints, metres, (T, 17, 3).

    The lowest ankle is at ankle height (plus `hop`, (T,)), and the body moves over the floor as its
    standing foot pushes it: a foot that carries the body does not slide. The path is centred on the
    origin.
    """
    ankles = joints[:, [H36M17.index("left_ankle"), H36M17.index("right_ankle")]]
    lowest = ankles[..., 2].min(axis=1, keepdims=True)
    weight = np.exp((lowest - ankles[..., 2]) / 0.012)  # a foot 12 mm higher carries 1/e as much
    weight /= weight.sum(axis=1, keepdims=True)
    push = -np.diff(ankles[..., :2], axis=0) * (weight[1:] + weight[:-1])[..., None] / 2
    root = np.zeros((len(joints), 3))
    root[1:, :2] = np.cumsum(_inert(push.sum(axis=1), 13), axis=0)
    root[:, :2] -= (root[:, :2].min(axis=0) + root[:, :2].max(axis=0)) / 2
    height = ANKLE_HEIGHT + hop - (weight * ankles[..., 2]).sum(axis=1)
    root[:, 2] = _inert(height[:, None], 7)[:, 0]
    return joints + root[:, None]


def make_body(seed: int, subject: str) -> dict[str, float]:
    """Bone lengths of a subject in metres, drawn from `BONES`; tall people are tall all over."""
    draw = rng.generator(seed, "body", subject)
    tall, own = draw.random(), draw.random(len(BONES))
    return {
        bone: low + (high - low) * (0.5 * tall + 0.5 * part)
        for (bone, (low, high)), part in zip(BONES.items(), own, strict=True)
    }


@functools.lru_cache(maxsize=512)
def make_motion(seed: int, subject: str, action: str, frames: int) -> NDArray[np.float32]:
    """World joints of a subject performing an action at 50 Hz, metres, z up, (T, 17, 3); read-only.

    Raises:
        UsageError: If there is no such action.
    """
    if action not in PROGRAMMES:
        raise UsageError(f"no action {action!r}; the embedded people can {', '.join(PROGRAMMES)}")
    angles = joint_angles(action, frames, rng.generator(seed, "motion", subject, action))
    joints = put_on_ground(
        forward_kinematics(angles, make_body(seed, subject)), angles[:, CHANNELS.index("hop")]
    ).astype(np.float32)
    joints.setflags(write=False)
    return joints


class Synthetic:
    """Embedded people: sequences for the lifter, single images for the 2D stage.

    Args:
        train: Number of training subjects.
        val: Number of validation subjects; they are other people.
        test: Number of test subjects; other people again.
        actions: Names out of `PROGRAMMES`; none for all.
        seconds: Length of a training motion; validation and test motions are half as long.
        images: Single images of the training split; validation and test have a thirtieth.
        share: Which training subjects to take: the first half are the detector's, the others the
            lifter's, so that a lifter trains on detections of people new to the detector.
        seed: Of everything: bodies, motions, cameras, clothes.
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
        self.actions = tuple(actions) if actions is not None else tuple(PROGRAMMES)
        self.seconds, self.images, self.share, self.seed = seconds, images, share, seed

    def describe(self) -> str:
        """One line for the first lines of a run."""
        train, val, test = self.people.values()
        return (
            f"synthetic: {train}/{val}/{test} embedded people (train/val/test), "
            f"share {self.share}, {len(self.actions)} actions, seed {self.seed}"
        )

    def subjects(self, split: Split) -> list[str]:
        """Names of the subjects of a split, unique over all splits.

        Raises:
            UsageError: If the split is not one, or nobody is in it.
        """
        if split not in get_args(Split):
            raise UsageError(f"no split {split!r}; there are {', '.join(get_args(Split))}")
        names = [f"{split}{i + 1:02d}" for i in range(self.people[split])]
        if split == "train" and self.share != "all":
            half = (len(names) + 1) // 2
            names = names[:half] if self.share == "detector" else names[half:]
        if not names:
            raise UsageError(
                f"synthetic: no subjects in {split} ({self.share}); raise --data.{split}"
            )
        return names

    def _motions(self, split: Split) -> list[tuple[str, str, NDArray[np.float32]]]:
        frames = max(2, round(self.seconds * FPS / (1 if split == "train" else 2)))
        return [
            (subject, action, make_motion(self.seed, subject, action, frames))
            for subject in self.subjects(split)
            for action in self.actions
        ]

    def sequences(self, split: Split) -> list[Sequence]:
        """Every motion of a split seen by four cameras; images are drawn when they are looked at.

        Raises:
            UsageError: If the split is not one, or nobody is in it.
        """
        found = []
        for subject, action, joints3d in self._motions(split):
            key = (self.seed, subject, action)
            for k, camera in enumerate(ring_of_cameras(*key, joints3d=joints3d)):
                name = f"{subject} {action} camera{k + 1}"
                images = RenderedSequence(
                    joints3d,
                    camera,
                    look=rng.derive_seed(*key, "look"),
                    scene=rng.derive_seed(*key, "scene", k),
                )
                found.append(
                    Sequence(name, subject, action, camera, FPS, H36M17, joints3d, images=images)
                )
        return found

    def samples(self, split: Split) -> Samples:
        """Single images of a split's people from all sides, near and far.

        Sample i is a pure function of (seed, split, share, i). Joints outside the image are not
        labelled; hidden ones are. About two images in five have something in front of the person,
        one in eight a second person.

        Raises:
            UsageError: If the split is not one, or nobody is in it.
        """
        count = self.images if split == "train" else max(1, self.images // 30)
        motions = self._motions(split)
        pool = np.concatenate([joints for *_, joints in motions])
        actions = np.repeat([action for _, action, _ in motions], [len(j) for *_, j in motions])
        key = (self.seed, "sample", split, self.share, np.arange(count))
        frame = (rng.uniform(*key, "frame", lanes=1)[:, 0] * len(pool)).astype(np.int64)
        joints3d = pool[frame]
        shots = _snapshots(joints3d, key)
        keys = rng.bits(*key, "look", lanes=2).astype(np.int64) & 0x7FFFFFFF
        seen = shots.to_camera(joints3d.astype(np.float64))
        joints2d = shots.project(seen).astype(np.float32)
        labelled = np.all((joints2d >= 0) & (joints2d <= np.array(IMAGE) - 1), axis=-1)
        joints2d[~labelled] = np.nan
        low, high = np.nanmin(joints2d, axis=1), np.nanmax(joints2d, axis=1)
        images = RenderedImages(
            joints3d, shots, looks=keys[:, 0], scenes=keys[:, 1], hidden=0.4, company=0.125
        )
        return Samples(
            H36M17,
            images,
            joints2d,
            labelled,
            np.concatenate([low, high - low], axis=1),
            seen.astype(np.float32),
            shots.focal,
            shots.principal,
            actions=tuple(actions[frame].tolist()),
        )


def _snapshots(joints3d: NDArray[np.float32], key: tuple[rng.Key, ...]) -> Shots:
    """A camera for each body (N, 17, 3): all around, low and high, now and then badly aimed."""
    draw = rng.uniform(*key, "camera", lanes=8)
    noise = rng.normal(*key, "aim", lanes=4)
    centre = (joints3d.min(axis=1) + joints3d.max(axis=1)).astype(np.float64) / 2
    azimuth, distance = 2 * np.pi * draw[:, 0], 2.2 + 4.2 * draw[:, 1]
    place = centre + distance[:, None] * np.stack(
        [np.cos(azimuth), np.sin(azimuth), 0 * azimuth], -1
    )
    place[:, 2] = 0.5 + 1.9 * draw[:, 2]
    focal = ((900 + 400 * draw[:, 4]) * np.sqrt(distance / 4))[:, None].repeat(2, axis=1)
    careless = np.where(draw[:, 3] < 0.15, 0.58, 0.12)  # in units of half the field of view
    reach = careless * distance * IMAGE[0] / 2 / focal[:, 0]
    aim = centre + reach[:, None] * np.tanh(noise[:, :3])
    principal = np.array(IMAGE) / 2 + 20 * (draw[:, 5:7] - 0.5)
    return Shots.aimed(place, aim, np.deg2rad(3.0) * noise[:, 3], focal, principal, IMAGE)
