"""`heatlift data`: list, validate, map, convert, export and get data sets."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Literal

from pipeline.dashboard.media import write_png
from pipeline.datasets.layouts import list_datasets
from pipeline.datasets.mapping_report import validate_mapping
from pipeline.datasets.validate import motion_splits
from pipeline.datasets.validate import validate as validate_folder
from pipeline.detections.exchange import validate_detections
from pipeline.errors import DataError, UsageError
from pipeline.files.writing import write_atomically
from pipeline.mocap import convert
from pipeline.mocap.motion_capture import Mocap
from pipeline.mocap.proposal import propose_mapping, require_resolved
from pipeline.mocap.recordings import get_cmu
from pipeline.mocap.videopose3d_export import export_videopose3d
from pipeline.sources import MotionSource, Split
from pipeline.training.console import print_line, print_status, print_text


def ls(folder: str) -> None:
    """Print the data sets in a folder and its subfolders.

    Args:
        folder: Folder of one data set, or folder that contains several.

    Raises:
        DataError: If there is no data set.
    """
    for line in list_datasets(Path(folder)):
        print_line(line)


def validate(
    folder: str,
    *,
    skip_bad: int = 0,
    mapping: str | None = None,
    image: str | None = None,
    detections: str | None = None,
    split: Split | Literal["all"] = "all",
    first_frame: int | None = None,
    person: str | None = None,
) -> None:
    """Read and check all files of a data set, and print a report.

    Args:
        folder: Folder of the data set.
        skip_bad: Largest number of damaged files and bad annotations that are skipped and listed.
        mapping: Joint mapping of motion capture: a YAML file, or a name such as cmu. All recordings
            in the folder are read through it and checked, without a table of splits.
        image: Path of the PNG file with four frames that is written if a mapping is given; by
            default the name of the mapping with `_frames.png`, in the current folder.
        detections: File or folder with 2D detections of another tool to check, too.
        split: Split that `detections` are of; all is every split of the folder.
        first_frame: Number that the first frame has in `detections`, if it fits in two ways.
        person: Person in `detections` that is used, if there are several.

    Raises:
        DataError: If a check fails.
        UsageError: If `skip_bad` is negative, or options do not fit each other.
    """
    if skip_bad < 0:
        raise UsageError(f"skip_bad is {skip_bad}; give a number of files, at least 0")
    if image is not None and (mapping is None or Path(image).suffix != ".png"):
        raise UsageError("image: name a PNG file, together with a mapping")
    if mapping is not None and detections is not None:
        raise UsageError("mapping and detections: check one after the other")
    if mapping is None:
        report = validate_folder(Path(folder), skip_bad=skip_bad)
    else:
        report, drawn = validate_mapping(Path(folder), mapping, skip_bad=skip_bad)
        path = Path(image or f"{Path(mapping).stem}_frames.png")
        write_png(path, drawn)
        print_line(f"{path}: four frames; look whether the person is upright, and left is orange")
    if detections is not None:
        more = [
            validate_detections(
                Path(detections),
                source.sequences(part),
                part,
                first_frame=first_frame,
                person=person,
            )
            for source, part in motion_splits(Path(folder), split)
        ]
        report = dataclasses.replace(report, findings=(*report.findings, *more))
    print_text(report.text())
    if report.faults:
        raise DataError(
            f"{folder}: {report.faults} of {len(report.findings)} parts are wrong; "
            "see the lines marked WRONG"
        )


def mapping(folder: str, *, output: str | None = None) -> None:
    """Propose a joint mapping for the recordings in a folder, with a reason for each joint.

    Args:
        folder: Folder with BVH files, or npz files of positions.
        output: Path of the YAML file to write, which must not exist; by default the mapping is
            printed.

    Raises:
        DataError: If a joint is not found, or the recordings do not look like people.
        UsageError: If the file exists.
    """
    if output is not None and Path(output).exists():
        raise UsageError(f"{output}: exists; give another --output")
    proposal = propose_mapping(Path(folder))
    if output is None or proposal.shipped:
        print_text(proposal.text.rstrip("\n"))
    else:
        write_atomically(Path(output), lambda file: file.write(proposal.text.encode()))
    name = proposal.shipped or output or "FILE.yaml"
    require_resolved(proposal, output or folder)
    if output is not None and not proposal.shipped:
        print_line(f"{output}: a proposal; read its reasons")
    print_status(f"Next: heatlift data validate {folder} --mapping {name}")


def amc(asf: str, amc: str, out: str, *, fps: float | None = None) -> None:
    """Convert a recording in Acclaim files to joint positions for the motion capture reader.

    Args:
        asf: ASF file of the skeleton.
        amc: AMC file of the recording.
        out: Path of the npz file to write.
        fps: Frame rate, Hz; by default that of the AMC file, or 120, which CMU's recordings have.
    """
    convert.convert_amc(Path(asf), Path(amc), _output_path(out), fps=fps)
    print_line(f"{out}: positions for a source with mapping: asf_amc")


def amass(
    recording: str,
    body: str,
    out: str,
    *,
    regressor: str | None = None,
    fps: float | None = None,
) -> None:
    """Convert a recording of AMASS to joint positions for the motion capture reader.

    Args:
        recording: Npz file of AMASS.
        body: Body model, the file model.npz of SMPL-H, from its authors.
        out: Path of the npz file to write.
        regressor: Npz file with one array (17, V) from vertices to H36M17; by default the joints
            of the body model.
        fps: Frame rate, Hz, for a recording that has none, or two that differ.
    """
    convert.convert_amass(
        Path(recording),
        Path(body),
        _output_path(out),
        regressor=None if regressor is None else Path(regressor),
        fps=fps,
    )
    print_line(f"{out}: positions for a source with mapping: {'H36M17' if regressor else 'amass'}")


def npz(archive: str, out: str) -> None:
    """Convert an archive with pickled objects to plain arrays, which all readers accept.

    Args:
        archive: Npz file as shared by VideoPose3D or P-STMO.
        out: Path of the npz file to write; the same file name in another folder.
    """
    convert.convert_npz(Path(archive), _output_path(out))
    print_line(f"{out}: plain arrays only")


def export(
    source: MotionSource | None = None,
    *,
    format: Literal["videopose3d"] = "videopose3d",  # noqa: A002 (the name of the option)
    output: str = "export",
) -> None:
    """Write motion capture in the file format of another tool.

    Args:
        source: Motion capture, usually given by a config: `-c data/mocap`.
        format: Format to write; videopose3d is `data_3d_h36m.npz` and `data_2d_h36m_gt.npz`, with
            Human3.6M's 28 cameras.
        output: Folder of the files to write.

    Raises:
        UsageError: If the source is missing or is not motion capture.
    """
    if not isinstance(source, Mocap):
        found = "missing" if source is None else type(source).__name__
        raise UsageError(
            f"--source: is {found}; {format} needs motion capture, so give -c data/mocap"
        )
    source_with_cameras = Mocap(
        source.root,
        mapping=source.mapping,
        splits=source.splits,
        cameras="human36m",
        fps=source.fps,
        seed=source.seed,
        bodies=source.bodies,
    )
    for path in export_videopose3d(source_with_cameras, Path(output)):
        print_line(str(path))


def get(name: Literal["cmu"], *, root: str | None = None) -> None:
    """Print the origin of recordings, which of them a folder has, and what to do next.

    Args:
        name: Name of the recordings.
        root: Folder of the recordings; by default $HEATLIFT_DATA/mocap or data/mocap.

    Raises:
        DataError: If files in the folder differ from the released ones.
    """
    data_folder = os.environ.get("HEATLIFT_DATA", "") or "data"
    folder = root or f"{data_folder}/mocap"
    print_text(get_cmu(Path(folder)))


def _output_path(out: str) -> Path:
    """Check the path of an npz file to write, and make its folder."""
    path = Path(out)
    if path.suffix != ".npz":
        raise UsageError(f"{out}: is not an npz file; give a name that ends with .npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
