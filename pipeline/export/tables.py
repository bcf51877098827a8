"""Motion as json and csv: plain numbers for other programs and spreadsheets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.export.frames import FRAMES_OF_REFERENCE
from pipeline.export.motion_data import MotionData
from pipeline.files.writing import write_atomically, write_csv

DECIMALS = 5
"""Decimals of metres, pixels and scores: a hundredth of a millimetre."""

STATUS_NAMES = ("missing", "seen", "filled")
"""Names of the statuses of a frame, in the order of their numbers."""


def write_json(motion: MotionData, path: Path) -> list[Path]:
    """Write a motion as one JSON object; missing numbers are null; returns its path in a list.

    Raises:
        StorageError: If the file cannot be written.
    """
    content = {
        **_common(motion),
        "time": motion.times.tolist(),
        "people": [
            {
                "id": person.id,
                "height": person.height,
                "status": [STATUS_NAMES[number] for number in person.status],
                "joints3d": _numbers(person.joints3d),
                "root": _numbers(person.root),
                "joints2d": _numbers(person.joints2d),
                "score": _numbers(person.score),
            }
            for person in motion.people
        ],
    }
    text = json.dumps(content, allow_nan=False)
    write_atomically(path, lambda file: file.write(text.encode()))
    return [path]


def _common(motion: MotionData) -> dict[str, Any]:
    """What is equal for all people and frames."""
    return {
        "format": "heatlift motion 1",
        "unit": "m",
        "frame": motion.frame,
        "axes": FRAMES_OF_REFERENCE[motion.frame],
        "fps": motion.fps,
        "skeleton": motion.skeleton.name,
        "joints": list(motion.skeleton.joints),
        "parents": list(motion.skeleton.parents),
        "image_size": list(motion.size),
        "focal": motion.focal,
        "principal": list(motion.principal),
        "camera_rotation": motion.camera_rotation.tolist(),
        "camera_centre": motion.camera_centre.tolist(),
        "facts": dict(motion.facts),
    }


def _numbers(array: NDArray[np.floating]) -> Any:
    """Nested lists of rounded numbers; None where a number is missing."""
    rounded = np.round(array.astype(np.float64), DECIMALS)
    plain = rounded.astype(object)
    plain[~np.isfinite(rounded)] = None
    return plain.tolist()


def write_table(motion: MotionData, path: Path) -> list[Path]:
    """Write a motion as a table with a row for each frame in which a person is there.

    Columns are person, frame, time in seconds, status, then x, y and z of each joint in metres, in
    the frame of reference of the motion, and the score of each joint. The JSON file beside it, with
    `.json` after the name, has what is equal for all rows: frame of reference, unit, camera, facts.
    Returns both paths.

    Raises:
        StorageError: If the file cannot be written.
    """
    joints = [f"{joint}_{axis}" for joint in motion.skeleton.joints for axis in "xyz"]
    scores = [f"{joint}_score" for joint in motion.skeleton.joints]
    rows: list[list[object]] = [["person", "frame", "time", "status", *joints, *scores]]
    for person in motion.people:
        positions = np.round(person.positions.astype(np.float64), DECIMALS)
        for frame in np.flatnonzero(person.present).tolist():
            numbers = [float(x) if np.isfinite(x) else None for x in positions[frame].ravel()]
            time = round(float(motion.times[frame]), DECIMALS)
            status = STATUS_NAMES[person.status[frame]]
            score = np.round(person.score[frame].astype(np.float64), DECIMALS).tolist()
            rows.append([person.id, frame, time, status, *numbers, *score])
    beside = path.with_name(f"{path.name}.json")
    text = json.dumps(_common(motion), allow_nan=False)
    write_csv(path, rows)
    write_atomically(beside, lambda file: file.write(text.encode()))
    return [path, beside]
