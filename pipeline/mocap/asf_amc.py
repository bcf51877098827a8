"""Acclaim motion capture files, ASF and AMC, the formats of the CMU database."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.files.reading import read_lines

MAX_BYTES = 256 * 2**20
MAX_LINES, MAX_LINE = 5_000_000, 64 * 2**10
MAX_BONES = 1000
_FREE_POSES, _POSES_PER_BYTE = 64 * 2**20, 64  # bytes of the poses of all bones that a file gives
_AXES = {"rx": 0, "ry": 1, "rz": 2}
_TRANSLATIONS = {"tx": 0, "ty": 1, "tz": 2}
_DEGREES = dict.fromkeys(("deg", "degrees"), 1.0) | dict.fromkeys(("rad", "radians"), 180 / np.pi)
"""Unit of angles in an ASF file -> degrees."""


@dataclass(frozen=True, eq=False)
class AcclaimSkeleton:
    """The bones of an ASF file.

    Args:
        bones: Names of the bones, `root` first, each after its parent.
        parents: Index of each bone's parent, -1 for the root.
        ends: Vector from start to end of each bone at rest, world axes, file units, (B, 3).
        axes: Rotation of each bone's frame at rest, (B, 3, 3).
        channels: Meaning of each bone's numbers in the AMC file: `tx` … `rz`.
        scale: Metres in one unit of the file.
        degrees: Whether angles are in degrees, else in radians.
    """

    bones: tuple[str, ...]
    parents: tuple[int, ...]
    ends: NDArray[np.float64]
    axes: NDArray[np.float64]
    channels: tuple[tuple[str, ...], ...]
    scale: float
    degrees: bool


def _read_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and words of each line with content; comments are left out."""
    for number, line in read_lines(path, MAX_BYTES, MAX_LINES):
        if len(line) > MAX_LINE:
            raise DataError(f"{path}: line {number}: has {len(line)} bytes; fetch it again")
        words = line.split("#", 1)[0].split()
        if words:
            yield number, words


def _parse_numbers(words: list[str], count: int, place: str) -> NDArray[np.float64]:
    """Exactly `count` finite numbers from as many words."""
    try:
        values = np.array([float(word) for word in words])
    except ValueError:
        raise DataError(
            f"{place}: {count} numbers are expected, found {' '.join(words)[:60]!r}"
        ) from None
    if len(values) != count or not (np.abs(values) < 1e6).all():
        raise DataError(f"{place}: {count} finite numbers are expected, found {len(values)}")
    return values


def axis_rotation(degrees: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation about x, then y, then z of the fixed frame, (..., 3) degrees -> (..., 3, 3).

    >>> axis_rotation(np.array([0.0, 0.0, 90.0])).round(6)[:2, 0].tolist()
    [0.0, 1.0]
    """
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    (cx, cy, cz), (sx, sy, sz) = np.moveaxis(c, -1, 0), np.moveaxis(s, -1, 0)
    rows = [
        [cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx],
        [sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx],
        [-sy, cy * sx, cy * cx],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def read_asf(path: Path) -> AcclaimSkeleton:
    """Read the skeleton of an ASF file.

    Raises:
        DataError: If the file is not an ASF file; the message names the line.
    """
    section, in_bone = "", False
    units: dict[str, str] = {}
    root: dict[str, list[str]] = {}
    bones: dict[str, dict[str, list[str]]] = {}
    children: dict[str, str] = {}
    current: dict[str, list[str]] = {}
    for number, words in _read_lines(path):
        place = f"{path}: line {number}"
        if words[0].startswith(":"):
            section, in_bone = words[0][1:], False
            continue
        if section == "units" and len(words) == 2:
            units[words[0]] = words[1]
        elif section == "root":
            root[words[0]] = words[1:]
        elif section == "bonedata":
            if words == ["begin"]:
                current, in_bone = {}, True
            elif words == ["end"]:
                name = (current.get("name") or [""])[0]
                if not in_bone or not name or name in bones or name == "root":
                    raise DataError(f"{place}: a bone without a name of its own ends here")
                bones[name], in_bone = current, False
                if len(bones) > MAX_BONES:
                    raise DataError(f"{place}: has more than {MAX_BONES} bones; no person has")
            elif in_bone and words[0].isalpha():
                current[words[0]] = words[1:]
        elif section == "hierarchy" and words not in (["begin"], ["end"]):
            for child in words[1:]:
                if child in children:
                    raise DataError(f"{place}: {child} has two parents")
                children[child] = words[0]
    if not bones or not root:
        raise DataError(f"{path}: has no root and bones; is it an ASF file?")
    return _build_skeleton(path, units, root, bones, children)


def _build_skeleton(
    path: Path,
    units: dict[str, str],
    root: dict[str, list[str]],
    bones: dict[str, dict[str, list[str]]],
    children: dict[str, str],
) -> AcclaimSkeleton:
    """The skeleton from the parsed sections of an ASF file, bones sorted parents first."""
    order, unsorted = ["root"], [name for name in bones if name in children]
    while unsorted:
        ready = [name for name in unsorted if children[name] in order]
        if not ready:
            raise DataError(f"{path}: {unsorted[0]} is not connected to the root")
        order += ready
        unsorted = [name for name in unsorted if name not in ready]
    length = _parse_numbers([units.get("length", "1")], 1, f"{path}: length")[0]
    if length <= 0:
        raise DataError(f"{path}: length must be positive")
    angle = units.get("angle", "deg").lower()
    if angle not in _DEGREES:
        raise DataError(f"{path}: angle is {angle[:20]!r}; it is one of {', '.join(_DEGREES)}")
    if (axis := "".join(root.get("axis", ["XYZ"])).upper()) != "XYZ":
        raise DataError(f"{path}: root: its axis is in the order {axis[:20]!r}; XYZ is read")
    ends = [np.zeros(3)]
    orientation = _parse_axis(root.get("orientation", ["0"] * 3), path, "root")
    axes = [axis_rotation(_DEGREES[angle] * orientation)]
    channels = [tuple(word.lower() for word in root.get("order", []))]
    for name in order[1:]:
        bone = bones[name]
        direction = _parse_numbers(bone.get("direction", []), 3, f"{path}: {name}: direction")
        bone_length = _parse_numbers(bone.get("length", []), 1, f"{path}: {name}: length")[0]
        ends.append(direction * bone_length)
        axes.append(axis_rotation(_DEGREES[angle] * _parse_axis(bone.get("axis", []), path, name)))
        channels.append(tuple(word.lower() for word in bone.get("dof", [])))
    for name, kinds in zip(order, channels, strict=True):
        known = {*_AXES, *_TRANSLATIONS} if name == "root" else set(_AXES)
        if not set(kinds) <= known or len(set(kinds)) != len(kinds):
            raise DataError(
                f"{path}: {name}: moves by {' '.join(kinds)[:60]!r}, not by {sorted(known)}"
            )
    return AcclaimSkeleton(
        bones=tuple(order),
        parents=(-1, *(order.index(children[name]) for name in order[1:])),
        ends=np.stack(ends),
        axes=np.stack(axes),
        channels=tuple(channels),
        scale=0.0254 / length,  # the units of `length` are inches
        degrees=_DEGREES[angle] == 1,
    )


def _parse_axis(words: list[str], path: Path, name: str) -> NDArray[np.float64]:
    """Three angles, in the unit of the file, of an axis in the order XYZ."""
    if len(words) == 4 and words[3].upper() != "XYZ":
        raise DataError(f"{path}: {name}: its axis is in the order {words[3][:20]!r}; XYZ is read")
    return _parse_numbers(words[:3], 3, f"{path}: {name}: axis")


def read_amc_rate(path: Path) -> float | None:
    """Frame rate in the header of an AMC file, Hz, if it has one.

    Raises:
        DataError: If it is no number above 0.
    """
    for number, words in _read_lines(path):
        if words[0].isdigit():
            break
        if words[0].upper() == ":SAMPLES-PER-SECOND":
            place = f"{path}: line {number}"
            (rate,) = _parse_numbers(words[1:], 1, place)
            if rate > 0:
                return float(rate)
            raise DataError(f"{place}: {rate:g} samples per second; write a rate above 0")
    return None


def read_amc(path: Path, body: AcclaimSkeleton) -> NDArray[np.float64]:
    """Ends of the bones in each frame of an AMC file, metres, y up, (T, B, 3).

    The root has no length: its end is its position.

    Args:
        path: The AMC file.
        body: The skeleton of the recording.

    Raises:
        DataError: If the file is not an AMC file or has another skeleton; the message names the
            line.
    """
    counts = [len(kinds) for kinds in body.channels]
    size = path.stat().st_size if path.is_file() else 0
    longest = (_FREE_POSES + _POSES_PER_BYTE * size) // (96 * len(counts))
    starts = np.cumsum([0, *counts])
    frames: list[NDArray[np.float64]] = []
    missing: set[str] = set()
    for number, words in _read_lines(path):
        place = f"{path}: line {number}"
        if words[0].startswith(":"):
            if (unit := words[0][1:].lower()) in _DEGREES:
                body = dataclasses.replace(body, degrees=_DEGREES[unit] == 1)
            continue
        if words[0].isdigit() and len(words) == 1:
            if missing:
                raise DataError(
                    f"{place}: the frame before has no {', '.join(sorted(missing))[:80]}"
                )
            if len(frames) >= longest:
                raise DataError(f"{place}: {len(frames)} frames are more than the file gives")
            frames.append(np.zeros(starts[-1]))
            missing = {name for name, count in zip(body.bones, counts, strict=True) if count}
            continue
        if words[0] not in missing or not frames:
            raise DataError(f"{place}: {words[0][:40]!r} is no bone that is still missing here")
        bone = body.bones.index(words[0])
        frames[-1][starts[bone] : starts[bone + 1]] = _parse_numbers(words[1:], counts[bone], place)
        missing.remove(words[0])
    if not frames or missing:
        raise DataError(f"{path}: ends inside a frame" if frames else f"{path}: holds no frame")
    return _forward_kinematics(np.stack(frames), body, starts)


def _forward_kinematics(
    values: NDArray[np.float64], body: AcclaimSkeleton, starts: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Ends of the bones, metres, (T, B, 3), from the numbers of all frames, (T, C)."""
    T, B = len(values), len(body.bones)
    ends, rotations = np.zeros((T, B, 3)), np.zeros((T, B, 3, 3))
    for bone, (parent, kinds) in enumerate(zip(body.parents, body.channels, strict=True)):
        columns = values[:, starts[bone] : starts[bone + 1]]
        angles, translation = np.zeros((T, 3)), np.zeros((T, 3))
        for kind, column in zip(kinds, columns.T, strict=True):
            if kind in _AXES:
                angles[:, _AXES[kind]] = column if body.degrees else np.degrees(column)
            else:
                translation[:, _TRANSLATIONS[kind]] = column
        own = body.axes[bone] @ axis_rotation(angles) @ body.axes[bone].T
        if parent < 0:
            rotations[:, bone], ends[:, bone] = own, translation
        else:
            rotations[:, bone] = rotations[:, parent] @ own
            ends[:, bone] = ends[:, parent] + rotations[:, bone] @ body.ends[bone]
    return ends * body.scale
