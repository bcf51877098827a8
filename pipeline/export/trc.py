"""Motion as TRC files of OpenSim: marker positions in metres, one file per person."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.export.even import even_motion
from pipeline.export.frames import Y_UP_TO_Z_UP, Frame
from pipeline.export.motion_data import MotionData, PersonMotion
from pipeline.export.options import ExportOptions
from pipeline.files.writing import write_atomically

TO_OPENSIM: dict[Frame, NDArray[np.float64]] = {
    "camera": np.array([[0.0, 0, 1], [0, -1, 0], [1, 0, 0]]),
    "world": np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]]),
}
"""Frame of reference -> rotation to OpenSim's axes: x ahead, y up, z right."""


def write_trc(motion: MotionData, path: Path, options: ExportOptions) -> list[Path]:
    """Write a TRC file for each person.

    Missing markers are blanks: the text NaN makes OpenSim reject a file. A motion at an uneven
    rate is resampled, because the format has one rate.

    Args:
        motion: The motion.
        path: Path of the file; with several people each file gets the id: `x_A.trc`.
        options: Axis that points up; y by default.

    Returns:
        The files.

    Raises:
        StorageError: If a file cannot be written.
    """
    even = even_motion(motion)
    files = []
    for person in even.people:
        file = person_path(path, person, even)
        text = _text(even, person, file.name, options)
        write_atomically(file, lambda stream, text=text: stream.write(text.encode()))  # type: ignore[misc]
        files.append(file)
    return files


def person_path(path: Path, person: PersonMotion, motion: MotionData) -> Path:
    """Path of the file of one person: the path itself if there is one, else with the id.

    Characters of an id that are not for names of files become `_`; where two ids would have one
    name then, also on disks that do not tell A from a, the number of the person follows each.
    """
    if len(motion.people) == 1:
        return path
    names = [re.sub(r"[^\w+-]", "_", other.id) for other in motion.people]
    place = next(n for n, other in enumerate(motion.people) if other.id == person.id)
    is_unique = len({name.casefold() for name in names}) == len(names)
    name = names[place] + ("" if is_unique else f"_{place + 1}")
    return path.with_name(f"{path.stem}_{name}{path.suffix}")


def _text(motion: MotionData, person: PersonMotion, name: str, options: ExportOptions) -> str:
    """The text of a file: 3 header lines, 2 of labels, a blank one, a line per frame."""
    T, J = len(motion), len(motion.skeleton)
    rate = f"{motion.fps:.6g}"
    heads = ["DataRate", "CameraRate", "NumFrames", "NumMarkers", "Units", "OrigDataRate",
             "OrigDataStartFrame", "OrigNumFrames"]  # fmt: skip
    lines = [
        f"PathFileType\t4\t(X/Y/Z)\t{name}",
        "\t".join(heads),
        "\t".join([rate, rate, str(T), str(J), "m", rate, "1", str(T)]),
        "\t".join(["Frame#", "Time", *[f"{joint}\t\t" for joint in motion.skeleton.joints]]),
        "\t\t" + "\t".join(f"{axis}{n}" for n in range(1, J + 1) for axis in "XYZ"),
        "",
    ]
    rotation = TO_OPENSIM[motion.frame]
    if options.up == "z":
        rotation = Y_UP_TO_Z_UP @ rotation
    turned = person.positions.astype(np.float64) @ rotation.T
    for frame in range(T):
        cells = [f"{x:.5f}" if np.isfinite(x) else "" for x in turned[frame].ravel()]
        lines.append("\t".join([str(frame + 1), f"{motion.times[frame]:.6f}", *cells]))
    return "\n".join(lines) + "\n"
