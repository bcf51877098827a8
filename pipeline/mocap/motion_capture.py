"""Motion capture recordings as a data source with virtual cameras."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Collection
from collections.abc import Sequence as Many
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline import rng
from pipeline.camera import Camera, human36m_cameras, ring_of_cameras
from pipeline.errors import DataError, UsageError
from pipeline.files import entries, store
from pipeline.mocap.bodies import apply_bone_lengths, sample_bone_lengths
from pipeline.mocap.body_facts import measure_body
from pipeline.mocap.body_faults import require_people
from pipeline.mocap.bvh import FASTEST, SLOWEST
from pipeline.mocap.mapping import JointMapping, read_mapping
from pipeline.mocap.preparation import find_good_frames, floor_height, read_recording, resample
from pipeline.mocap.recordings import (
    Recording,
    assign_human36m_subjects,
    check_released,
    file_digests,
    find_table,
    read_splits,
    select_recordings,
    shared_subjects,
)
from pipeline.skeleton import H36M17, Skeleton, make_conversion
from pipeline.sources import Images, Sequence, Split

VERSION = 1
"""Version of the conversion; a new version makes every cached set be converted again."""

_STEM = "mocap"

_BODIES = {
    "recorded": "bodies as recorded",
    "random_adults": "a random adult body for each subject instead of the recorded one",
}
"""Value of `bodies` -> how the line of a run describes it."""

_log = logging.getLogger(__name__)


class Mocap:
    """Motion capture recordings as sequences, a `MotionSource`.

    Each recording becomes four sequences, one per camera, with the same joints. The config
    data/mocap gives the open benchmark (`heatlift docs mocap`). `action` is the kind of motion; in
    val and test, `group` is "seen" if the kind occurs in training and "unseen" if not; `valid` is
    false for bad frames.

    Args:
        root: Folder with the recordings at any depth (.bvh, .bvh.gz, or .npz with positions), or a
            converted set from the cache; `$HEATLIFT_DATA/mocap` by default.
        mapping: Joint mapping: `cmu`, the name of a skeleton, or a YAML file, also one in the
            folder of the recordings; see `read_mapping`.
        splits: Table of splits: `cmu`, or a CSV file, also one in the folder of the recordings; see
            `read_splits`. With `cmu` the recordings must have the digests of the release.
        cameras: Placement of the four cameras: `virtual` puts cameras like Human3.6M's around each
            recording; `human36m` centres the recording in the capture volume of a Human3.6M subject
            and uses that subject's cameras.
        fps: Frame rate of the sequences, Hz; recordings are resampled to it.
        seed: Seed of random bodies and of cameras.
        bodies: Bone lengths of the people: `recorded` keeps those in the files; `random_adults`
            moves each subject's motion to a random adult body, as the open benchmark does.
        images: Whether sequences have rendered images.
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
        bodies: Literal["recorded", "random_adults"] = "recorded",
        images: bool = False,
    ) -> None:
        if cameras not in ("virtual", "human36m"):
            raise UsageError(f"cameras is {cameras!r}; choose virtual or human36m")
        if bodies not in _BODIES:
            raise UsageError(f"bodies is {bodies!r}; choose {' or '.join(_BODIES)}")
        if not SLOWEST <= fps <= FASTEST:
            raise UsageError(f"fps is {fps}; choose a rate from {SLOWEST:g} to {FASTEST:g} Hz")
        self.root, self.mapping, self.splits = root, mapping, splits
        self.cameras, self.fps, self.seed = cameras, fps, seed
        self.bodies, self.images = bodies, images

    @functools.cached_property
    def skeleton(self) -> Skeleton:
        """The joint set that recordings are mapped to."""
        return self._mapping.skeleton

    def describe(self) -> str:
        """Summary of the source in one line, for the log of a run."""
        return (
            f"motion capture from {self.folder}: splits {self.splits}, mapping {self.mapping}, "
            f"{self.fps:g} Hz, {_BODIES[self.bodies]}, {self.cameras} cameras, seed {self.seed}"
        )

    @property
    def folder(self) -> Path:
        """Folder of the recordings.

        Raises:
            DataError: If neither `root` nor $HEATLIFT_DATA is set.
        """
        if self._known_folder is not None:
            return self._known_folder
        raise DataError(
            "mocap: no folder is given; give --data.source.init_args.root FOLDER (make: ROOT=) or "
            "set HEATLIFT_DATA; `heatlift data get cmu` tells where the recordings come from"
        )

    @property
    def _known_folder(self) -> Path | None:
        if self.root is not None:
            return Path(self.root).expanduser()
        data = os.environ.get("HEATLIFT_DATA")
        return Path(data).expanduser() / "mocap" if data else None

    def recordings(self, split: Split) -> list[Recording]:
        """The recordings of a split, in the order of the table of splits."""
        return [recording for recording in self._splits if recording.split == split]

    def sequences(self, split: Split) -> list[Sequence]:
        """All sequences of a split: each recording once per camera, in the order of the cameras.

        Raises:
            DataError: If recordings are missing, damaged or not the released ones.
        """
        subjects = self.human36m_subjects(split)
        sequences = []
        for recording in self.recordings(split):
            joints3d, valid = self._world_joints(recording)
            cameras = self._place_cameras(recording, joints3d, valid, subjects)
            for k, camera in enumerate(cameras):
                images = _render(recording, k, joints3d, camera, self) if self.images else None
                sequences.append(
                    Sequence(
                        name=f"{recording.name}.{k}",
                        subject=recording.subject,
                        action=recording.kind,
                        camera=camera,
                        fps=self.fps,
                        skeleton=self.skeleton,
                        joints3d=joints3d,
                        images=images,
                        valid=valid,
                        group=recording.group if split != "train" else "",
                    )
                )
        return sequences

    def input_files(self, splits: Collection[Split], detections: str = "") -> list[Path]:
        """Files that the source reads; see `pipeline.sources.SourceWithFiles`."""
        names = (find_table(name, self.folder) for name in (self.splits, self.mapping))
        tables = [Path(name) for name in names if Path(name).is_file()]
        if (self.folder / "manifest.json").is_file():  # it has the digests of the arrays
            return [self.folder / "manifest.json", *tables]
        wanted = [recording for recording in self._splits if recording.split != "exclude"]
        return [*select_recordings(wanted, self.folder), *tables]

    def summary(self) -> list[dict[str, str | int]]:
        """Counts of each split, one row per split, for `heatlift data ls`."""
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

    def _world_joints(
        self, recording: Recording
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
        """Joints of a recording, world metres, (T, J, 3), and its good frames, (T,); none for all.

        Raises:
            DataError: If no frame is good.
        """
        joints, rate = self._converted[recording.name]
        valid = _good_frames(recording, len(joints), rate, self, self._mapping)
        joints3d = joints.astype(np.float64)
        floor = recording.floor
        joints3d[..., 2] -= floor_height(joints3d, self.skeleton) if floor is None else floor
        if self.bodies == "random_adults":
            joints3d = apply_bone_lengths(
                joints3d, self.skeleton, sample_bone_lengths(self.seed, recording.subject)
            )
        if self.cameras == "human36m":
            path = joints3d[valid, self.skeleton.root, :2]
            joints3d[..., :2] -= (path.min(axis=0) + path.max(axis=0)) / 2
        return joints3d.astype(np.float32), None if valid.all() else valid

    def _place_cameras(
        self,
        recording: Recording,
        joints3d: NDArray[np.float32],
        valid: NDArray[np.bool_] | None,
        subjects: dict[str, str],
    ) -> list[Camera]:
        """The four cameras of a recording; `subjects` as `human36m_subjects` returns it."""
        if self.cameras == "human36m":
            return human36m_cameras()[subjects[recording.subject]]
        body = _as_h36m17(joints3d, self.skeleton)
        return ring_of_cameras(f"{self.seed}:{recording.name}", joints3d=body, valid=valid)

    def human36m_subjects(self, split: Split) -> dict[str, str]:
        """Human3.6M subject for each subject of a split; see `assign_human36m_subjects`."""
        return assign_human36m_subjects(
            self.recordings(split), {n: len(j) for n, (j, _) in self._converted.items()}
        )

    @functools.cached_property
    def _mapping(self) -> JointMapping:
        """The joint mapping, read once."""
        return read_mapping(find_table(self.mapping, self._known_folder))

    @functools.cached_property
    def _splits(self) -> list[Recording]:
        """The table of splits, read once."""
        folder = self._known_folder
        if self.splits != "cmu" and folder is not None and not folder.is_dir():
            raise DataError(f"{folder}: no such folder of motion capture; check root")
        recordings = read_splits(find_table(self.splits, folder))
        if shared := shared_subjects(recordings):
            listed = ", ".join(shared[:5]) + (", …" if len(shared) > 5 else "")
            _log.warning(
                "heatlift: warning: %s: %d subjects are in train and also in val or test (%s); the "
                "errors are lower than those of unknown people",
                *(self.splits, len(shared), listed),
            )
        return recordings

    @functools.cached_property
    def _converted(self) -> dict[str, tuple[NDArray[np.float32], float]]:
        """Joints of each recording, mapped and resampled, and the frame rate of its file, Hz."""
        wanted = [recording for recording in self._splits if recording.split != "exclude"]
        converted = _read_or_convert(wanted, self, self._mapping)
        _require_people(wanted, converted, self, self._mapping)
        return converted


def _read_or_convert(
    wanted: Many[Recording], source: Mocap, mapping: JointMapping
) -> dict[str, tuple[NDArray[np.float32], float]]:
    """Joints of recordings, (T, J, 3), and their file rates, from a converted set or the files."""
    folder = source.folder
    if (folder / "manifest.json").is_file():
        converted = unpack_recordings(read_converted_set(folder), mapping, source.fps)
        missing = [recording.name for recording in wanted if recording.name not in converted]
        if missing:
            raise DataError(f"{folder}: lacks {missing[0]}; convert the recordings again")
        return converted
    files = select_recordings(wanted, folder)
    digests = file_digests(files)
    if source.splits == "cmu":
        check_released(files, digests)
    names = [recording.name for recording in wanted]
    entry = convert_recordings(names, files, digests, mapping, source.fps)
    return unpack_recordings(entry, mapping, source.fps)


def _require_people(
    wanted: Many[Recording],
    converted: dict[str, tuple[NDArray[np.float32], float]],
    source: Mocap,
    mapping: JointMapping,
) -> None:
    """Check, on sampled poses, that recordings are recordings of people.

    Raises:
        DataError: If they cannot be.
    """
    measured = []
    for recording in wanted:
        joints, rate = converted[recording.name]
        valid = _good_frames(recording, len(joints), rate, source, mapping)
        facts = measure_body(
            recording.name, joints, source.skeleton, source.fps, file_fps=rate, valid=valid
        )
        measured.append(facts)
    require_people(measured, mapping, str(source.folder))


def _good_frames(
    recording: Recording, frames: int, rate: float, source: Mocap, mapping: JointMapping
) -> NDArray[np.bool_]:
    """Mask of the good ones among the resampled frames of a recording, (T,).

    Raises:
        DataError: If no frame is good.
    """
    valid = find_good_frames(frames, source.fps, rate, mapping.drop_first, recording.bad)
    if not valid.any():
        raise DataError(f"{source.folder}: {recording.name} has no good frame; exclude it")
    return valid


def _render(
    recording: Recording, k: int, joints3d: NDArray[np.float32], camera: Camera, source: Mocap
) -> Images:
    """Rendered images of a recording from its camera number `k`.

    Raises:
        UsageError: If the joints are of another set than H36M17.
    """
    from pipeline.mocap.render import RenderedSequence

    if source.skeleton is not H36M17:
        raise UsageError(
            f"mocap: the renderer needs H36M17, the mapping makes {source.skeleton.name}; "
            "set images: false"
        )
    appearance_seed = rng.derive_seed(f"{source.seed}:{recording.name}", "look")
    background_seed = rng.derive_seed(f"{source.seed}:{recording.name}", "scene", k)
    return RenderedSequence(
        joints3d, camera, appearance_seed=appearance_seed, background_seed=background_seed
    )


def _as_h36m17(joints3d: NDArray[np.float32], skeleton: Skeleton) -> NDArray[np.float32]:
    """Joints (T, J, 3) as H36M17; the highest joint replaces those that the skeleton lacks."""
    if skeleton is H36M17:
        return joints3d
    converted = make_conversion(skeleton, H36M17, allow_missing=True).joints(joints3d)
    highest = np.take_along_axis(joints3d, joints3d[..., 2:].argmax(axis=1, keepdims=True), 1)
    return np.where(np.isnan(converted), highest, converted)


def convert_recordings(
    names: Many[str], files: Many[Path], digests: Many[str], mapping: JointMapping, fps: float
) -> entries.Entry:
    """Map and resample recordings; the result is stored in the cache.

    Args:
        names: Names of the recordings.
        files: File of each recording.
        digests: SHA-256 of each file.
        mapping: Joint mapping from the recordings to a skeleton.
        fps: Frame rate of the result, Hz.

    Returns:
        Cache entry with `joints`, world metres, (all frames, J, 3), float32. Its folder can be used
        as the root of `Mocap`, also on a machine without the recordings.

    Raises:
        DataError: If a file cannot be read completely, or changes while it is read.
    """
    cache = store.default_store()
    key = {
        "what": "motion capture, mapped and resampled",
        "version": VERSION,
        "mapping": mapping.fingerprint,
        "fps": float(fps),
        "recordings": [list(pair) for pair in zip(names, digests, strict=True)],
    }
    folder = cache.root / entries.CacheSpecification(_STEM, key, {}, {}).name
    if folder.exists() and not entries.describe_damage(folder):
        return read_converted_set(folder)
    _log.info("heatlift: converting %d recordings, once", len(files))
    pieces, rates = [], []
    for file in files:
        joints, rate = read_recording(file, mapping)
        pieces.append(resample(joints, rate, fps).astype(np.float32))
        rates.append(rate)
    for file, before, after in zip(files, digests, file_digests(files), strict=True):
        if before != after:
            raise DataError(f"{file}: changed while it was read; run the same command again")
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


def read_converted_set(folder: Path) -> entries.Entry:
    """Open a converted set and check all of its files.

    Raises:
        DataError: If the set is damaged.
    """
    if damage := entries.describe_damage(folder):
        raise DataError(f"{folder}: this converted set {damage}; convert the recordings again")
    return entries.read_entry(folder)


def unpack_recordings(
    entry: entries.Entry, mapping: JointMapping, fps: float
) -> dict[str, tuple[NDArray[np.float32], float]]:
    """Joints of each recording of a converted set, world metres, (T, J, 3), and its file rate, Hz.

    Raises:
        DataError: If the set was converted with other settings, or has another content.
    """
    key, expected = entry.key, (VERSION, mapping.fingerprint, fps)
    if (key.get("version"), key.get("mapping"), key.get("fps")) != expected:
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
