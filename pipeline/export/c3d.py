"""Motion as C3D files of motion capture: points in metres with residuals, one file per person."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.export.even import even_motion
from pipeline.export.frames import Y_UP_TO_Z_UP
from pipeline.export.motion_data import MotionData, PersonMotion
from pipeline.export.options import ExportOptions
from pipeline.export.trc import TO_OPENSIM, person_path
from pipeline.files.writing import write_atomically

BLOCK = 512
"""Bytes of a block: header, parameters and data begin at one."""

MOST_POINTS, MOST_FRAMES = 255, 65535
"""What the dimensions of a parameter and the header's frame numbers can count."""


def write_c3d(motion: MotionData, path: Path, options: ExportOptions) -> list[Path]:
    """Write a C3D file for each person: float data of a PC, the points named as the joints.

    A missing point has residual -1 and stays where it was last, or where it comes first, because
    some programs draw a point at 0, 0, 0 or fail at NaN; other points have residual 0. There is an
    analog group without channels, without which some programs fail. A motion at an uneven rate is
    resampled, because the format has one rate.

    Args:
        motion: The motion.
        path: Path of the file; with several people each file gets the id: `x_A.c3d`.
        options: Axis that points up; z by default (x ahead, y left), else y (x ahead, z right).

    Returns:
        The files.

    Raises:
        UsageError: If the joint set has more than 255 joints.
        StorageError: If a file cannot be written.

    Source: the C3D File Format User Guide, https://www.c3d.org.
    """
    if len(motion.skeleton) > MOST_POINTS:
        raise UsageError(f"{path}: {len(motion.skeleton)} joints, but C3D holds {MOST_POINTS}")
    even = even_motion(motion)
    files = []
    for person in even.people:
        file = person_path(path, person, even)
        content = _content(even, person, options)
        write_atomically(file, lambda stream, content=content: stream.write(content))  # type: ignore[misc]
        files.append(file)
    return files


def _content(motion: MotionData, person: PersonMotion, options: ExportOptions) -> bytes:
    """The bytes of a file: header, parameters, and four floats for each point of each frame."""
    T, J = len(motion), len(motion.skeleton)
    start = 2 + len(_parameters(motion, options, 0)) // BLOCK
    # first block of parameters, key, points, analog values, first and last frame, longest gap,
    # scale (negative: floats), first block of data, analog samples per frame, rate
    fields = (2, 0x50, J, 0, 1, min(T, MOST_FRAMES), 0, -1.0, start, 1, motion.fps)
    header = struct.pack("<BB5HfHHf", *fields).ljust(BLOCK, b"\0")
    rotation = TO_OPENSIM[motion.frame]
    if options.up != "y":
        rotation = Y_UP_TO_Z_UP @ rotation
    points = np.zeros((T, J, 4), "<f4")
    points[..., :3] = _hold(person.positions.astype(np.float64) @ rotation.T)
    points[..., 3] = np.where(np.isfinite(person.positions).all(-1), 0, -1)
    data = points.tobytes()
    if T < MOST_FRAMES:  # ezc3d reads longer recordings up to the end of the file
        data = _fill_block(data)
    return header + _parameters(motion, options, start) + data


def _hold(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Positions, (T, J, 3), with those that are NaN replaced by the last, or else first, found."""
    T, J, _ = positions.shape
    if T == 0:
        return positions
    found = np.isfinite(positions).all(-1)
    frames = np.where(found, np.arange(T)[:, None], -1)
    last = np.maximum.accumulate(frames, 0)
    first = np.argmax(found, 0)
    held = positions[np.where(last < 0, first, last), np.arange(J)]
    return np.where(np.isfinite(held), held, 0.0)


def _parameters(motion: MotionData, options: ExportOptions, start: int) -> bytes:
    """The groups of parameters, in whole blocks; the data begin at block `start`."""
    T, names = len(motion), list(motion.skeleton.joints)
    groups: dict[str, dict[str, Any]] = {
        "POINT": {
            "USED": len(names),
            "FRAMES": min(T, MOST_FRAMES),
            "DATA_START": start,
            "SCALE": -1.0,
            "RATE": motion.fps,
            "UNITS": "m",
            "LABELS": np.array(names, "U"),
            "DESCRIPTIONS": np.array([name.replace("_", " ") for name in names], "U"),
            **({"LONG_FRAMES": float(T)} if T > MOST_FRAMES else {}),
            "X_SCREEN": "+X",
            "Y_SCREEN": "+Y" if options.up == "y" else "+Z",
        },
        "ANALOG": {
            "USED": 0,
            "LABELS": np.array([], "U"),
            "DESCRIPTIONS": np.array([], "U"),
            "UNITS": np.array([], "U"),
            "SCALE": np.array([], "f4"),
            "OFFSET": np.array([], "i2"),
            "GEN_SCALE": 1.0,
            "RATE": motion.fps,
        },
        "TRIAL": {  # low and high 16 bits of the first and the last frame
            "ACTUAL_START_FIELD": np.array([1, 0]),
            "ACTUAL_END_FIELD": np.array([T & 0xFFFF, T >> 16]),
        },
        "MANUFACTURER": {"SOFTWARE": "heatlift"},
    }
    records = b""
    for number, (group, parameters) in enumerate(groups.items(), start=1):
        records += _record(-number, group, b"")
        for name, value in parameters.items():
            records += _record(number, name, _value(np.asarray(value)))
    blocks = -(-(4 + len(records)) // BLOCK)
    processor = 84  # a PC: little-endian
    return _fill_block(bytes([1, 0x50, blocks, processor]) + records)


def _record(group: int, name: str, value: bytes) -> bytes:
    """A group (negative number) or a parameter: name, way to the next record, value, no text."""
    head = struct.pack("<Bb", len(name), group) + name.encode()
    return head + struct.pack("<H", 2 + len(value) + 1) + value + b"\0"


def _value(array: NDArray[Any]) -> bytes:
    """Type, dimensions (fastest first) and values of a parameter."""
    shape = array.shape[::-1]
    if array.dtype.kind == "U":
        width = max(array.dtype.itemsize // 4, 1)
        texts = [str(text).encode("ascii", "replace").ljust(width) for text in array.ravel()]
        kind, shape, content = -1, (width, *shape), b"".join(texts)
    elif array.dtype.kind == "f":
        kind, content = 4, array.astype("<f4").tobytes()
    else:
        kind, content = 2, array.astype("<u2").tobytes()
    return struct.pack("<bB", kind, len(shape)) + bytes(shape) + content


def _fill_block(content: bytes) -> bytes:
    """Bytes with zeros up to a whole block."""
    return content + b"\0" * (-len(content) % BLOCK)
