"""Real motion capture as an open benchmark: own bodies, 50 Hz, four virtual cameras."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence as Many
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline import chance, store
from pipeline.camera import Camera, human36m_cameras, ring_of_cameras
from pipeline.datasets import Pictures, Sequence, Split
from pipeline.datasets.archive import Npz
from pipeline.datasets.bvh import FASTEST, MAX_VALUE, SLOWEST, read_bvh
from pipeline.datasets.mapping import JointMapping, read_mapping
from pipeline.datasets.recordings import (
    Recording,
    choose,
    cmu_digests,
    digests,
    read_splits,
)
from pipeline.errors import DataError, UsageError
from pipeline.skeleton import H36M17, Skeleton, conversion

VERSION = 1
"""Of the conversion below: a new one makes every cached set be built again."""
BONES = {
    "hip": (0.119, 0.147),
    "knee": (0.428, 0.452),
    "ankle": (0.438, 0.454),
    "spine": (0.224, 0.261),
    "thorax": (0.251, 0.257),
    "nose": (0.107, 0.121),
    "head": (0.115, 0.115),
    "shoulder": (0.140, 0.169),
    "elbow": (0.265, 0.290),
    "wrist": (0.244, 0.252),
}
"""Lengths of the bones that end in these joints among Human3.6M-like adults, metres."""
_STEM = "mocap"
_ROOMS: dict[str, tuple[str, ...]] = {
    "train": ("S1", "S5", "S6", "S7", "S8"),
    "val": ("S1", "S5", "S6", "S7", "S8"),
    "test": ("S9", "S11"),
}

_log = logging.getLogger(__name__)


class Mocap:
    """Motion capture files as sequences: a `MotionSource`.

    Each recording becomes four sequences that share their joints: the benchmark of docs/mocap.md
    with the defaults. `action` is the kind of motion, `group` tells in val and test whether the
    kind occurs in training ("seen", "unseen"), `valid` is false in the bad stretches.

    Args:
        root: Folder with the recordings at any depth (.bvh, .bvh.gz, or .npz with positions), or a
            converted set as the cache holds them; `$HEATLIFT_DATA/mocap` unless given.
        mapping: `cmu`, the name of a skeleton, or a YAML file; see `read_mapping`.
        splits: `cmu`, or a CSV file; see `read_splits`. With `cmu` the recordings must have the
            digests of the release.
        cameras: `virtual` stands four like Human3.6M's around each recording; `human36m` centres
            it in the room of a Human3.6M subject and takes that subject's four.
        fps: Frames per second that come out, Hz.
        seed: Of bodies and cameras.
        own_bodies: Whether each subject gets its own bone lengths; else all have those of the
            files.
        pictures: Whether sequences can be seen: a renderer draws them.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        mapping: str = "cmu",
        splits: str = "cmu",
        cameras: Literal["virtual", "human36m"] = "virtual",
        fps: float = 50.0,
        seed: int = 0,
        own_bodies: bool = True,
        pictures: bool = False,
    ) -> None:
        if cameras not in ("virtual", "human36m"):
            raise UsageError(f"cameras is {cameras!r}; choose virtual or human36m")
        if not SLOWEST <= fps <= FASTEST:
            raise UsageError(f"fps is {fps}; choose a rate from {SLOWEST:g} to {FASTEST:g} Hz")
        self.root, self.mapping, self.splits = root, mapping, splits
        self.cameras, self.fps, self.seed = cameras, fps, seed
        self.own_bodies, self.pictures = own_bodies, pictures

    @functools.cached_property
    def skeleton(self) -> Skeleton:
        """The joint set that the mapping makes."""
        return self._mapping.skeleton

    def describe(self) -> str:
        """One line for the first lines of a run: what this is, and from where."""
        bodies = "own bodies" if self.own_bodies else "the files' body"
        return (
            f"motion capture from {self.folder}: splits {self.splits}, mapping {self.mapping}, "
            f"{self.fps:g} Hz, {bodies}, {self.cameras} cameras, seed {self.seed}"
        )

    @property
    def folder(self) -> Path:
        """Where the recordings are.

        Raises:
            DataError: If no folder is named.
        """
        if self.root is not None:
            return Path(self.root).expanduser()
        if data := os.environ.get("HEATLIFT_DATA"):
            return Path(data).expanduser() / "mocap"
        raise DataError(
            "mocap: no folder is named; give ROOT= or set HEATLIFT_DATA, and see "
            "`heatlift data get cmu` for the recordings"
        )

    def recordings(self, split: Split) -> list[Recording]:
        """What the table of splits says about each recording of a split, in its order."""
        return [recording for recording in self._splits if recording.split == split]

    def sequences(self, split: Split) -> list[Sequence]:
        """All sequences of a split: for each recording one per camera, next to each other.

        Raises:
            DataError: If recordings are missing, damaged or not what they claim to be.
        """
        rooms = self.rooms(split)
        return [
            Sequence(
                name=f"{recording.name}.{k}",
                subject=recording.subject,
                action=recording.kind,
                camera=camera,
                fps=self.fps,
                skeleton=self.skeleton,
                joints3d=joints3d,
                pictures=self._pictures(recording, k, joints3d, camera) if self.pictures else None,
                valid=valid,
                group=recording.group if split != "train" else "",
            )
            for recording in self.recordings(split)
            for joints3d, valid in [self._moving(recording)]
            for k, camera in enumerate(self._around(recording, joints3d, valid, rooms))
        ]

    def summary(self) -> list[dict[str, str | int]]:
        """What each split holds, one row for each: for `heatlift data ls`."""
        rows: list[dict[str, str | int]] = []
        splits: tuple[Split, ...] = ("train", "val", "test")
        for split in splits:
            views = self.sequences(split)[::4]
            bad = sum(int((~view.valid).sum()) for view in views if view.valid is not None)
            frames = sum(len(view) for view in views)
            rows.append(
                {
                    "split": split,
                    "subjects": " ".join(sorted({view.subject for view in views})),
                    "recordings": len(views),
                    "frames": frames,
                    "bad": bad,
                    "good frames x 4 cameras": 4 * (frames - bad),
                    "actions": " ".join(sorted({view.action for view in views})),
                }
            )
        return rows

    def _moving(self, recording: Recording) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
        """Joints in the world, (T, J, 3), and which frames are good."""
        joints, rate = self._converted[recording.name]
        valid = good_frames(len(joints), self.fps, rate, self._mapping.drop_first, recording.bad)
        if not valid.any():
            raise DataError(f"{self.folder}: {recording.name} has no good frame; exclude it")
        moving = joints.astype(np.float64)
        floor = recording.floor
        moving[..., 2] -= floor_of(moving, self.skeleton) if floor is None else floor
        if self.own_bodies:
            moving = with_bones(moving, self.skeleton, bones_of(self.seed, recording.subject))
        if self.cameras == "human36m":
            path = moving[valid, self.skeleton.root, :2]
            moving[..., :2] -= (path.min(axis=0) + path.max(axis=0)) / 2
        return moving.astype(np.float32), None if valid.all() else valid

    def _around(
        self,
        recording: Recording,
        joints3d: NDArray[np.float32],
        valid: NDArray[np.bool_] | None,
        rooms: dict[str, str],
    ) -> list[Camera]:
        if self.cameras == "human36m":
            return human36m_cameras()[rooms[recording.subject]]
        body = joints3d
        if self.skeleton is not H36M17:
            body = conversion(self.skeleton, H36M17, allow_missing=True).joints(joints3d)
            top = np.take_along_axis(joints3d, joints3d[..., 2:].argmax(axis=1, keepdims=True), 1)
            body = np.where(np.isnan(body), top, body)
        return ring_of_cameras(f"{self.seed}:{recording.name}", joints3d=body, valid=valid)

    def rooms(self, split: Split) -> dict[str, str]:
        """Human3.6M subject in whose room each subject of a split moves; see `rooms_of`."""
        return rooms_of(
            self.recordings(split), {n: len(j) for n, (j, _) in self._converted.items()}
        )

    @functools.cached_property
    def _mapping(self) -> JointMapping:
        return read_mapping(self.mapping)

    @functools.cached_property
    def _splits(self) -> list[Recording]:
        return read_splits(self.splits)

    @functools.cached_property
    def _converted(self) -> dict[str, tuple[NDArray[np.float32], float]]:
        """Joints of each recording after mapping and resampling, and what its file said."""
        wanted = [recording for recording in self._splits if recording.split != "exclude"]
        if (self.folder / "manifest.json").is_file():
            found = unpack(entry_at(self.folder), self._mapping, self.fps)
            lacking = [recording.name for recording in wanted if recording.name not in found]
            if lacking:
                raise DataError(f"{self.folder}: lacks {lacking[0]}; convert the recordings again")
            return found
        files = choose(wanted, self.folder)
        digest = digests(files)
        if self.splits == "cmu":
            released = cmu_digests()
            for file, mark in zip(files, digest, strict=True):
                if released.get(file.name) != mark:
                    raise DataError(
                        f"{file}: is not the released recording (its digest differs); "
                        "fetch it again, see `heatlift data get cmu`"
                    )
        names = [recording.name for recording in wanted]
        entry = convert(names, files, digest, self._mapping, self.fps)
        return unpack(entry, self._mapping, self.fps)

    def _pictures(
        self, recording: Recording, k: int, joints3d: NDArray[np.float32], camera: Camera
    ) -> Pictures:
        from pipeline.datasets.render import RenderedSequence

        if self.skeleton is not H36M17:
            raise UsageError(
                f"mocap: the renderer draws H36M17, the mapping makes {self.skeleton.name}; "
                "set pictures: false"
            )
        look = chance.seed_of(f"{self.seed}:{recording.name}", "look")
        scene = chance.seed_of(f"{self.seed}:{recording.name}", "scene", k)
        return RenderedSequence(joints3d, camera, look=look, scene=scene)


def convert(
    names: Many[str], files: Many[Path], digest: Many[str], mapping: JointMapping, fps: float
) -> store.Entry:
    """Map and resample recordings, once: what comes out is kept in the cache.

    Args:
        names: Of the recordings.
        files: One for each.
        digest: SHA-256 of each file.
        mapping: Which joints become which.
        fps: Frames per second that come out, Hz.

    Returns:
        Entry of the cache with `joints`, world metres, (all frames, J, 3), float32. Its folder is
        itself a root of `Mocap`, and can be carried to where the recordings are not.

    Raises:
        DataError: If a file is not read whole.
    """
    cache = store.place()
    key = {
        "what": "motion capture, mapped and resampled",
        "version": VERSION,
        "mapping": mapping.fingerprint,
        "fps": float(fps),
        "recordings": [list(pair) for pair in zip(names, digest, strict=True)],
    }
    folder = cache.root / store.Wanted(_STEM, key, {}, {}).name
    if folder.exists() and not store.damage(folder):
        return entry_at(folder)
    _log.info("heatlift: converting %d recordings, once", len(files))
    pieces, rates = [], []
    for file in files:
        joints, rate = read_recording(file, mapping)
        pieces.append(resample(joints, rate, fps).astype(np.float32))
        rates.append(rate)
    joints3d = np.concatenate(pieces)
    facts = {
        "skeleton": mapping.skeleton.name,
        "frames": [len(piece) for piece in pieces],
        "source_fps": rates,
    }
    layout = {"joints": (joints3d.shape, joints3d.dtype.str)}
    return cache.fetch(store.Wanted(_STEM, key, layout, facts), lambda _: {"joints": joints3d})


def entry_at(folder: Path) -> store.Entry:
    """A converted set, checked whole.

    Raises:
        DataError: If it is damaged.
    """
    if damage := store.damage(folder):
        raise DataError(f"{folder}: this converted set {damage}; convert the recordings again")
    return store.read(folder)


def unpack(
    entry: store.Entry, mapping: JointMapping, fps: float
) -> dict[str, tuple[NDArray[np.float32], float]]:
    """Joints of each recording of a converted set, world metres, (T, J, 3), and its rate, Hz.

    Raises:
        DataError: If the set was made with other settings.
    """
    key, made = entry.key, (VERSION, mapping.fingerprint, fps)
    if (key.get("version"), key.get("mapping"), key.get("fps")) != made:
        raise DataError(
            f"{entry.path}: was converted with another version, mapping or frame rate; "
            "convert the recordings again"
        )
    try:
        joints, frames = entry.arrays["joints"], [int(n) for n in entry.facts["frames"]]
        if joints.shape != (sum(frames), len(mapping.skeleton), 3) or min(frames) < 1:
            raise ValueError("its joints have another shape")
        pieces = np.split(joints, np.cumsum(frames)[:-1])
        return {
            str(name): (piece, float(rate))
            for (name, _), piece, rate in zip(
                key["recordings"], pieces, entry.facts["source_fps"], strict=True
            )
        }
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{entry.path}: is no set of converted recordings ({error}); convert them again"
        ) from None


def read_recording(file: Path, mapping: JointMapping) -> tuple[NDArray[np.float64], float]:
    """Joints of one recording and its rate.

    Args:
        file: BVH, or npz with `positions` (T, N, 3), `fps`, and `joints`, the N names.
        mapping: Which joints become which.

    Returns:
        World metres, (T, J, 3), and frames per second, Hz.

    Raises:
        DataError: If the file is not read whole or does not fit the mapping.
    """
    if file.suffix != ".npz":
        motion = read_bvh(file)
        return mapping(motion, str(file)), motion.fps
    positions, fps, joints = read_positions(file)
    return mapping.of_positions(positions, joints, str(file)), fps


def read_positions(file: Path) -> tuple[NDArray[np.float64], float, list[str]]:
    """Joints that are already computed: `positions` (T, N, 3), `fps` and `joints` of an npz file.

    Raises:
        DataError: If the file is not such a file.
    """
    archive = Npz(file)
    joints, fps = archive.array("joints"), archive.array("fps")
    positions = archive.array("positions")
    if joints.ndim != 1 or joints.dtype.kind != "U" or len(set(joints.tolist())) != len(joints):
        raise DataError(f"{file}: joints must be a list of distinct names; write it again")
    shape = (len(positions) if positions.ndim else 0, len(joints), 3)
    if positions.dtype.kind not in "fiu" or positions.shape != shape or not shape[0]:
        raise DataError(
            f"{file}: positions has shape {positions.shape}, expected (frames, {len(joints)}, 3)"
        )
    rate = float(fps.flat[0]) if fps.size == 1 and fps.dtype.kind in "fiu" else 0.0
    if not SLOWEST <= rate <= FASTEST:
        raise DataError(f"{file}: fps must be one number from {SLOWEST:g} to {FASTEST:g}")
    positions = positions.astype(np.float64)
    wrong = ~(np.abs(positions) <= MAX_VALUE).all(axis=2)
    if wrong.any():
        frame, joint = np.argwhere(wrong)[0]
        raise DataError(
            f"{file}: {wrong.sum()} positions are not finite, first at frame {frame} joint "
            f"{joints[joint]}; leave such frames out"
        )
    return positions, rate, joints.tolist()


def resample(joints: NDArray[np.float64], source: float, target: float) -> NDArray[np.float64]:
    """Joints at times k / target, linearly between frames at times n / source.

    Args:
        joints: (T, J, 3).
        source: Frames per second at hand, Hz.
        target: Frames per second wanted, Hz.

    Returns:
        (floor((T - 1) * target / source) + 1, J, 3).

    >>> resample(np.arange(7.0).reshape(7, 1, 1), 120, 50)[:, 0, 0].round(6).tolist()
    [0.0, 2.4, 4.8]
    """
    before, share = _between(frames_at(len(joints), source, target), source, target)
    after = np.minimum(before + 1, len(joints) - 1)
    return joints[before] + share[:, None, None] * (joints[after] - joints[before])


def frames_at(frames: int, source: float, target: float) -> int:
    """Number of frames that `resample` makes of so many."""
    return int((frames - 1) * target / source + 1e-6) + 1


def _between(
    frames: int, source: float, target: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Source frame before each target frame, and how far on towards the next one it lies."""
    places = np.arange(frames) * (source / target)
    before = np.floor(places + 1e-6).astype(np.int64)
    return before, np.clip(places - before, 0.0, 1.0)


def good_frames(
    frames: int, fps: float, source: float, dropped: int, bad: Many[tuple[int, int]]
) -> NDArray[np.bool_]:
    """Which resampled frames have no bad one nearest to them, (T,).

    Args:
        frames: Number of resampled frames.
        fps: Their rate, Hz.
        source: Rate of the file, Hz.
        dropped: File frames left out at the beginning.
        bad: First and last bad file frame of each stretch.
    """
    nearest = np.rint(np.arange(frames) * (source / fps)) + dropped
    good = np.ones(frames, bool)
    for start, end in bad:
        good &= (nearest < start) | (nearest > end)
    return good


def floor_of(joints3d: NDArray[np.float64], skeleton: Skeleton) -> float:
    """Height of the floor, metres: what one ankle height in twenty lies below; 0 without ankles."""
    feet = [i for name, i in skeleton.vocabulary.items() if name.endswith("ankle")]
    return float(np.percentile(joints3d[:, feet, 2], 5)) if feet else 0.0


def bones_of(seed: int, subject: str) -> dict[str, float]:
    """Bone lengths of a subject, metres, by the joint (without its side) where the bone ends."""
    draw = chance.uniform(f"{seed}:{subject}", "bones", lanes=len(BONES))
    return {
        bone: low + (high - low) * float(share)
        for (bone, (low, high)), share in zip(BONES.items(), draw, strict=True)
    }


def with_bones(
    joints3d: NDArray[np.float64], skeleton: Skeleton, bones: dict[str, float]
) -> NDArray[np.float64]:
    """The same motion by another body.

    Every bone keeps its direction and gets its own length; the root's path grows as the legs do,
    so that feet stay on the floor and steps stay steps.

    Args:
        joints3d: World metres, floor at z = 0, (T, J, 3).
        skeleton: H36M17.
        bones: Lengths in metres, as `bones_of` gives them.

    Raises:
        UsageError: If the joints are of another set.
    """
    if skeleton is not H36M17:
        raise UsageError(
            f"own bodies are known for H36M17, the mapping makes {skeleton.name}; "
            "set own_bodies: false"
        )
    along = joints3d[:, 1:] - joints3d[:, skeleton.parents[1:]]
    length = np.linalg.norm(along, axis=-1)
    legs = [skeleton.index(f"{side}_{joint}") - 1 for side in ("left", "right")
            for joint in ("knee", "ankle")]  # fmt: skip
    leg = np.median(length[:, legs], axis=0).sum() / 2
    along /= np.maximum(length, 1e-9)[..., None]
    moved = np.empty_like(joints3d)
    moved[:, 0] = joints3d[:, 0] * ((bones["knee"] + bones["ankle"]) / max(float(leg), 1e-9))
    for child, name in enumerate(skeleton.joints[1:], start=1):
        bone = bones[name.split("_")[-1]]
        moved[:, child] = moved[:, skeleton.parents[child]] + bone * along[:, child - 1]
    return moved


def rooms_of(recordings: Many[Recording], frames: dict[str, int]) -> dict[str, str]:
    """Human3.6M subject that each subject of a split becomes: the one with the least frames so far.

    Args:
        recordings: Of one split.
        frames: Number of frames by name of the recording.
    """
    if not recordings:
        return {}
    held = dict.fromkeys(_ROOMS[recordings[0].split], 0)
    own: dict[str, int] = {}
    for recording in recordings:
        own[recording.subject] = own.get(recording.subject, 0) + frames[recording.name]
    rooms = {}
    for subject, count in sorted(own.items(), key=lambda item: (-item[1], item[0])):
        rooms[subject] = min(held, key=lambda room: held[room])
        held[rooms[subject]] += count
    return rooms
