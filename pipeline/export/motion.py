"""Motion: the 3D motion of the people in a clip, with times, 2D joints, assumptions and source."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError, UsageError
from pipeline.export.bvh import write_bvh
from pipeline.export.c3d import write_c3d
from pipeline.export.frames import FRAMES_OF_REFERENCE
from pipeline.export.glb import write_glb
from pipeline.export.motion_data import FILLED, MISSING, SEEN, MotionData, PersonMotion
from pipeline.export.options import FORMATS, ExportOptions
from pipeline.export.report import write_report
from pipeline.export.tables import write_json, write_table
from pipeline.export.trc import write_trc
from pipeline.files.archive import Npz
from pipeline.files.json_documents import parse_json
from pipeline.files.writing import write_atomically
from pipeline.skeleton import SKELETONS, Skeleton

__all__ = ["FILLED", "MISSING", "SEEN", "Motion", "PersonMotion"]

FORMAT = 1
"""Version of the layout of `motion.npz`."""

WRITERS: dict[str, Callable[[MotionData, Path, ExportOptions], list[Path]]] = {
    ".json": lambda motion, path, options: write_json(motion, path),
    ".csv": lambda motion, path, options: write_table(motion, path),
    ".trc": write_trc,
    ".bvh": write_bvh,
    ".c3d": write_c3d,
    ".glb": write_glb,
    ".html": lambda motion, path, options: write_report(motion, path),
}
"""Ending of a file -> what writes it; `.npz` is written here."""


class Motion(MotionData):
    """3D motion of all people in a clip: what `predict` returns; it writes and reads files.

    See `MotionData` for its arguments and arrays.
    """

    def save(self, path: str | Path, **options: Any) -> list[Path]:
        """Write the motion to a file, whole or not at all; the ending of its name is the format.

        Formats that hold one person, as trc and bvh, get a file for each: `x_A.trc`, `x_B.trc`.

        Args:
            path: Path of the file.
            **options: See `ExportOptions`.

        Returns:
            The files.

        Raises:
            UsageError: If the ending is not a known format, or an option is unknown.
            StorageError: If the file cannot be written.
        """
        path = Path(path)
        ending = path.suffix.lower()
        try:
            chosen = ExportOptions(**options)
        except TypeError:
            known = ", ".join(field.name for field in dataclasses.fields(ExportOptions))
            raise UsageError(f"save got {', '.join(options)}; known options are {known}") from None
        if ending in WRITERS:
            return WRITERS[ending](self, path, chosen)
        if ending != ".npz":
            known = ", ".join(FORMATS)
            raise UsageError(f"{path}: {path.suffix!r} is no format of motion; known are {known}")
        arrays = _to_arrays(self)
        write_atomically(path, lambda file: np.savez(file, allow_pickle=False, **arrays))
        return [path]

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
        version = file.array("heatlift_motion")
        found = int(version) if version.shape == () and version.dtype.kind in "iu" else "unknown"
        if found != FORMAT:
            raise DataError(
                f"{path}: has format {found} of motion, and this version reads {FORMAT}; use the "
                "version of Heatlift that wrote it"
            )
        try:
            return _from_arrays({name: file.array(name) for name in file.names})
        except (KeyError, ValueError, TypeError, IndexError, RecursionError) as error:
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
    facts = parse_json(str(arrays["facts"]))
    if not isinstance(facts, dict):
        raise ValueError("facts are no JSON object")
    json.dumps(facts, allow_nan=False)  # 1e999 is infinite
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
