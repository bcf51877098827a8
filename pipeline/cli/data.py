"""What `heatlift data` does: list, validate, convert, export and get data sets."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal

from pipeline.datasets.validate import list_datasets
from pipeline.datasets.validate import validate as validate_folder
from pipeline.errors import DataError, UsageError
from pipeline.mocap import convert
from pipeline.mocap.motion_capture import Mocap
from pipeline.mocap.recordings import get_cmu
from pipeline.mocap.videopose3d_export import export_videopose3d
from pipeline.sources import MotionSource


def ls(folder: str) -> None:
    """Print which data sets a folder, or the folders in it, hold.

    Args:
        folder: Of one data set, or of several.

    Raises:
        DataError: If there is none.
    """
    _print("\n".join(list_datasets(Path(folder))))


def validate(folder: str, *, skip_bad: int = 0) -> None:
    """Read all that a folder holds, check it, and print what was found.

    Args:
        folder: Of one data set.
        skip_bad: How many files may be damaged and are left out; they are named.

    Raises:
        DataError: If anything is wrong.
        UsageError: If `skip_bad` is below zero.
    """
    if skip_bad < 0:
        raise UsageError(f"skip_bad is {skip_bad}; it is a number of files")
    report = validate_folder(Path(folder), skip_bad=skip_bad)
    _print(report.text())
    if report.faults:
        raise DataError(
            f"{folder}: {report.faults} of {len(report.findings)} parts are wrong; "
            "the lines marked WRONG say how"
        )


def amc(asf: str, amc: str, out: str, *, fps: float = 120.0) -> None:
    """Rewrite a recording of Acclaim files as positions, which the motion capture reader takes.

    Args:
        asf: The skeleton, an ASF file.
        amc: The recording, an AMC file; it does not tell its rate.
        out: The npz file that is written.
        fps: Frames per second, Hz; CMU's recordings have 120.
    """
    convert.convert_amc(Path(asf), Path(amc), _new(out), fps=fps)
    _print(f"{out}: positions for a source with mapping: asf_amc")


def amass(recording: str, body: str, out: str, *, regressor: str | None = None) -> None:
    """Rewrite a recording of AMASS as positions, which the motion capture reader takes.

    Args:
        recording: The npz file of AMASS.
        body: The body model, model.npz of SMPL-H, from its makers.
        out: The npz file that is written.
        regressor: Npz file with one array (17, V), surface to H36M17; none for the model's joints.
    """
    matrix = None if regressor is None else Path(regressor)
    convert.convert_amass(Path(recording), Path(body), _new(out), regressor=matrix)
    _print(f"{out}: positions for a source with mapping: {'H36M17' if regressor else 'amass'}")


def npz(archive: str, out: str) -> None:
    """Rewrite an archive that holds pickled objects without them; every reader takes it.

    Args:
        archive: An npz file as VideoPose3D and P-STMO share them.
        out: The npz file that is written, by the same name in another folder.
    """
    convert.convert_npz(Path(archive), _new(out))
    _print(f"{out}: plain arrays only")


def export(
    source: MotionSource | None = None,
    *,
    format: Literal["videopose3d"] = "videopose3d",  # noqa: A002 (the name of the option)
    output: str = "export",
) -> None:
    """Write motion capture as other people's readers expect it.

    Args:
        source: The motion; give a config, as in `-c data/mocap`.
        format: What to write: `data_3d_h36m.npz` and `data_2d_h36m_gt.npz` with the 28 cameras.
        output: The folder to write to.

    Raises:
        UsageError: If there is no source, or one of another kind.
    """
    if not isinstance(source, Mocap):
        what = "no source" if source is None else f"a source of kind {type(source).__name__}"
        raise UsageError(
            f"{format} is written of motion capture, not of {what}; give -c data/mocap"
        )
    seen = Mocap(
        source.root,
        mapping=source.mapping,
        splits=source.splits,
        cameras="human36m",
        fps=source.fps,
        seed=source.seed,
        own_bodies=source.own_bodies,
    )
    for path in export_videopose3d(seen, Path(output)):
        _print(str(path))


def get(name: Literal["cmu"], *, root: str | None = None) -> None:
    """Say where recordings come from, what a folder has of them, and what to do next.

    Args:
        name: Which recordings.
        root: The folder; $HEATLIFT_DATA/mocap unless given.

    Raises:
        DataError: If files there are not what was recorded.
    """
    home = os.environ.get("HEATLIFT_DATA")
    folder = root or (f"{home}/mocap" if home else "data/mocap")
    _print(get_cmu(Path(folder)))


def _new(out: str) -> Path:
    path = Path(out)
    if path.suffix != ".npz":
        raise UsageError(f"{out}: an npz file is written; give it that ending")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
