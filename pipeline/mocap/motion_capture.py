"""Motion capture recordings as a data source with virtual cameras."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence as Many
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline import rng
from pipeline.camera import Camera, human36m_cameras, ring_of_cameras
from pipeline.errors import DataError, UsageError
from pipeline.files import entries, store
from pipeline.mocap.bvh import FASTEST, SLOWEST
from pipeline.mocap.mapping import JointMapping, read_mapping
from pipeline.mocap.preparation import (
    apply_bone_lengths,
    draw_bone_lengths,
    floor_height,
    good_frames,
    read_recording,
    resample,
)
from pipeline.mocap.recordings import (
    Recording,
    check_digests,
    choose_recordings,
    cmu_digests,
    read_splits,
)
from pipeline.skeleton import H36M17, Skeleton, conversion
from pipeline.sources import Images, Sequence, Split

VERSION = 1
"""Of the conversion below: a new one makes every cached set be built again."""


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
        images: Whether sequences can be seen: a renderer draws them.
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
        images: bool = False,
    ) -> None:
        if cameras not in ("virtual", "human36m"):
            raise UsageError(f"cameras is {cameras!r}; choose virtual or human36m")
        if not SLOWEST <= fps <= FASTEST:
            raise UsageError(f"fps is {fps}; choose a rate from {SLOWEST:g} to {FASTEST:g} Hz")
        self.root, self.mapping, self.splits = root, mapping, splits
        self.cameras, self.fps, self.seed = cameras, fps, seed
        self.own_bodies, self.images = own_bodies, images

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
                images=self._images(recording, k, joints3d, camera) if self.images else None,
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
        moving[..., 2] -= floor_height(moving, self.skeleton) if floor is None else floor
        if self.own_bodies:
            moving = apply_bone_lengths(
                moving, self.skeleton, draw_bone_lengths(self.seed, recording.subject)
            )
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
        """Human3.6M subject in whose room each subject of a split moves; see `capture_rooms`."""
        return capture_rooms(
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
            found = unpack_recording(entry_rows(self.folder), self._mapping, self.fps)
            lacking = [recording.name for recording in wanted if recording.name not in found]
            if lacking:
                raise DataError(f"{self.folder}: lacks {lacking[0]}; convert the recordings again")
            return found
        files = choose_recordings(wanted, self.folder)
        digest = check_digests(files)
        if self.splits == "cmu":
            released = cmu_digests()
            for file, mark in zip(files, digest, strict=True):
                if released.get(file.name) != mark:
                    raise DataError(
                        f"{file}: is not the released recording (its digest differs); "
                        "fetch it again, see `heatlift data get cmu`"
                    )
        names = [recording.name for recording in wanted]
        entry = prepare_recording(names, files, digest, self._mapping, self.fps)
        return unpack_recording(entry, self._mapping, self.fps)

    def _images(
        self, recording: Recording, k: int, joints3d: NDArray[np.float32], camera: Camera
    ) -> Images:
        from pipeline.mocap.render import RenderedSequence

        if self.skeleton is not H36M17:
            raise UsageError(
                f"mocap: the renderer draws H36M17, the mapping makes {self.skeleton.name}; "
                "set images: false"
            )
        look = rng.derive_seed(f"{self.seed}:{recording.name}", "look")
        scene = rng.derive_seed(f"{self.seed}:{recording.name}", "scene", k)
        return RenderedSequence(joints3d, camera, look=look, scene=scene)


def prepare_recording(
    names: Many[str], files: Many[Path], digest: Many[str], mapping: JointMapping, fps: float
) -> entries.Entry:
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
    cache = store.default_store()
    key = {
        "what": "motion capture, mapped and resampled",
        "version": VERSION,
        "mapping": mapping.fingerprint,
        "fps": float(fps),
        "recordings": [list(pair) for pair in zip(names, digest, strict=True)],
    }
    folder = cache.root / entries.CacheSpecification(_STEM, key, {}, {}).name
    if folder.exists() and not entries.describe_damage(folder):
        return entry_rows(folder)
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
    return cache.fetch(
        entries.CacheSpecification(_STEM, key, layout, facts), lambda _: {"joints": joints3d}
    )


def entry_rows(folder: Path) -> entries.Entry:
    """A converted set, checked whole.

    Raises:
        DataError: If it is damaged.
    """
    if damage := entries.describe_damage(folder):
        raise DataError(f"{folder}: this converted set {damage}; convert the recordings again")
    return entries.read_entry(folder)


def unpack_recording(
    entry: entries.Entry, mapping: JointMapping, fps: float
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


def capture_rooms(recordings: Many[Recording], frames: dict[str, int]) -> dict[str, str]:
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
