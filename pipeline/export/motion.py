"""Motion: the 3D motion of the people in a clip, with times, 2D joints, assumptions and source."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError, UsageError
from pipeline.export.frames import FRAMES_OF_REFERENCE, Frame
from pipeline.export.tables import write_json, write_table
from pipeline.files.archive import Npz
from pipeline.files.writing import write_atomically
from pipeline.skeleton import SKELETONS, Skeleton

MISSING, SEEN, FILLED = 0, 1, 2
"""Status of a frame of a person: not there, found in the image, or filled in between two such."""

FORMAT = 1
"""Version of the layout of `motion.npz`."""

WRITERS = {".json": write_json, ".csv": write_table}
"""Ending of a file -> what writes it; `.npz` is written here."""

FORMATS = ("npz", "json", "csv")
"""Formats that a motion can be written in."""


@dataclass(frozen=True, eq=False)
class PersonMotion:
    """Motion of one person over all frames of a clip.

    Args:
        id: Id of the person: `A`, `B`, … in the order of the people in the output.
        joints3d: Joints relative to the root joint, metres, (T, J, 3), float32; NaN where missing.
        root: Position of the root joint, metres, (T, 3), float32; NaN where missing.
        joints2d: 2D joints that were lifted, pixels of the upright image, (T, J, 2), float32; NaN
            where missing.
        score: Score of each 2D joint, 0 to 1, (T, J), float32; 0 where missing.
        status: `MISSING`, `SEEN` or `FILLED` for each frame, (T,), uint8.
        height: Height of the person that fixes the scale, metres.
    """

    id: str
    joints3d: NDArray[np.float32]
    root: NDArray[np.float32]
    joints2d: NDArray[np.float32]
    score: NDArray[np.float32]
    status: NDArray[np.uint8]
    height: float

    @property
    def positions(self) -> NDArray[np.float32]:
        """Joints in the frame of reference of the motion, metres, (T, J, 3)."""
        return self.joints3d + self.root[:, None]

    @property
    def present(self) -> NDArray[np.bool_]:
        """Frames in which the person was seen or filled in, (T,)."""
        return self.status != MISSING

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First and last frame of each uninterrupted part, in order.

        >>> still = np.zeros((5, 1, 3), np.float32)
        >>> status = np.array([1, 2, 0, 1, 1], np.uint8)
        >>> PersonMotion("A", still, still[:, 0], still[..., :2], still[..., 0], status, 1.7).spans
        [(0, 1), (3, 4)]
        """
        edges = np.flatnonzero(np.diff(np.r_[False, self.present, False].astype(np.int8)))
        return [(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]

    @property
    def mean_score(self) -> float:
        """Mean score of the 2D joints over the frames in which the person was seen; 0 if none."""
        seen = self.score[self.status == SEEN]
        return float(seen.mean()) if seen.size else 0.0


@dataclass(frozen=True, eq=False)
class Motion:
    """3D motion of all people in a clip: what `predict` returns and every file is written from.

    Args:
        people: Motion of each person; may be empty.
        skeleton: Joint set of all people.
        times: Time of each frame, seconds from the start of the source, (T,), float64, increasing.
        fps: Frames per second; the mean rate where the times are not regular.
        size: Width and height of the upright image in pixels.
        focal: Focal length in pixels.
        principal: Principal point in pixels, x and y.
        frame: Frame of reference of `root` and `joints3d`.
        camera_rotation: Rotation from the frame of reference to the camera, (3, 3), float64.
        camera_centre: Position of the camera in the frame of reference, metres, (3,), float64.
        facts: Everything else that explains the numbers, as plain values: `source` (name, kind,
            digest, rotation applied), `root` (how its position was found), `assumptions`
            (sentences), `warnings` (sentences), `weights` (of each network: name, digest, licence),
            `versions`, `command`, `smoothing`, `quality`.
    """

    people: tuple[PersonMotion, ...]
    skeleton: Skeleton
    times: NDArray[np.float64]
    fps: float
    size: tuple[int, int]
    focal: float
    principal: tuple[float, float]
    frame: Frame = "camera"
    camera_rotation: NDArray[np.float64] = field(default_factory=lambda: np.eye(3))
    camera_centre: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        T, J = len(self.times), len(self.skeleton)
        shapes = {"joints3d": (T, J, 3), "root": (T, 3), "joints2d": (T, J, 2), "score": (T, J)}
        for person in self.people:
            for name, shape in {**shapes, "status": (T,)}.items():
                if getattr(person, name).shape != shape:
                    found = getattr(person, name).shape
                    raise ValueError(f"person {person.id}: {name} is {found}, expected {shape}")
        if len({person.id for person in self.people}) != len(self.people):
            raise ValueError("two people have the same id")

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.times)

    def person(self, identity: str) -> PersonMotion:
        """The person with this id.

        Raises:
            UsageError: If there is none.
        """
        for person in self.people:
            if person.id == identity:
                return person
        known = ", ".join(person.id for person in self.people) or "nobody"
        raise UsageError(f"there is no person {identity!r}; there is {known}")

    def save(self, path: str | Path) -> None:
        """Write the motion to a file, whole or not at all; the ending of its name is the format.

        Raises:
            UsageError: If the ending is not a known format.
            StorageError: If the file cannot be written.
        """
        path = Path(path)
        ending = path.suffix.lower()
        if ending in WRITERS:
            WRITERS[ending](self, path)
            return
        if ending != ".npz":
            known = ", ".join(FORMATS)
            raise UsageError(f"{path}: {path.suffix!r} is no format of motion; known are {known}")
        arrays = _to_arrays(self)
        write_atomically(path, lambda file: np.savez(file, allow_pickle=False, **arrays))

    @classmethod
    def load(cls, path: str | Path) -> Motion:
        """Read a motion from an npz file that `save` wrote; nothing is lost.

        Raises:
            DataError: If the file is damaged, or is no motion.
        """
        path = Path(path)
        file = Npz(path)
        if "heatlift_motion" not in file.names:
            raise DataError(
                f"{path}: is no motion (no array heatlift_motion); give a motion.npz that "
                "`heatlift predict` wrote"
            )
        found = int(file.array("heatlift_motion"))
        if found != FORMAT:
            raise DataError(
                f"{path}: has format {found} of motion, and this version reads {FORMAT}; use the "
                "version of Heatlift that wrote it"
            )
        try:
            return _from_arrays({name: file.array(name) for name in file.names})
        except (KeyError, ValueError, TypeError, IndexError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{path}: is damaged ({reason}); predict again") from error


def _to_arrays(motion: Motion) -> dict[str, NDArray[Any]]:
    """Plain arrays with P people first; the rest of the facts is one text of JSON."""
    T, J = len(motion), len(motion.skeleton)

    def stack(name: str, shape: tuple[int, ...], kind: str) -> NDArray[Any]:
        parts = [getattr(person, name) for person in motion.people]
        return np.array(parts, kind) if parts else np.zeros((0, *shape), kind)

    return {
        "heatlift_motion": np.array(FORMAT),
        "people": np.array([person.id for person in motion.people], "U"),
        "joints3d": stack("joints3d", (T, J, 3), "f4"),
        "root": stack("root", (T, 3), "f4"),
        "joints2d": stack("joints2d", (T, J, 2), "f4"),
        "score": stack("score", (T, J), "f4"),
        "status": stack("status", (T,), "u1"),
        "height": stack("height", (), "f8"),
        "time": motion.times.astype("f8"),
        "fps": np.array(motion.fps),
        "skeleton": np.array(motion.skeleton.name),
        "joints": np.array(motion.skeleton.joints),
        "parents": np.array(motion.skeleton.parents),
        "unit": np.array("m"),
        "frame": np.array(motion.frame),
        "axes": np.array(FRAMES_OF_REFERENCE[motion.frame]),
        "size": np.array(motion.size),
        "focal": np.array(motion.focal, "f8"),
        "principal": np.array(motion.principal, "f8"),
        "camera_rotation": motion.camera_rotation.astype("f8"),
        "camera_centre": motion.camera_centre.astype("f8"),
        "facts": np.array(json.dumps(motion.facts, allow_nan=False, sort_keys=True)),
    }


def _from_arrays(arrays: Mapping[str, NDArray[Any]]) -> Motion:
    """The inverse of `_to_arrays`.

    Raises:
        KeyError: If an array is missing.
        ValueError: If arrays do not fit each other.
    """
    joints = tuple(str(name) for name in arrays["joints"])
    parents = tuple(int(parent) for parent in arrays["parents"])
    known = SKELETONS.get(str(arrays["skeleton"]))
    if known is not None and (known.joints, known.parents) == (joints, parents):
        skeleton = known
    else:
        skeleton = Skeleton(str(arrays["skeleton"]), joints, parents)
    frame = str(arrays["frame"])
    if frame not in FRAMES_OF_REFERENCE:
        raise ValueError(f"frame of reference {frame!r}")
    names = ("joints3d", "root", "joints2d", "score", "status")
    kinds = dict(zip(names, ("f4", "f4", "f4", "f4", "u1"), strict=True))
    people = tuple(
        PersonMotion(
            str(identity),
            **{name: arrays[name][i].astype(kinds[name], copy=False) for name in names},
            height=float(arrays["height"][i]),
        )
        for i, identity in enumerate(arrays["people"])
    )
    facts = json.loads(str(arrays["facts"]))
    if not isinstance(facts, dict):
        raise ValueError("facts are no JSON object")
    width, height = (int(side) for side in arrays["size"])
    x, y = (float(coordinate) for coordinate in arrays["principal"])
    return Motion(
        people,
        skeleton,
        arrays["time"].astype("f8", copy=False),
        float(arrays["fps"]),
        (width, height),
        float(arrays["focal"]),
        (x, y),
        frame,
        arrays["camera_rotation"].astype("f8", copy=False),
        arrays["camera_centre"].astype("f8", copy=False),
        facts,
    )
