"""`heatlift data validate`: check all files of the data sets in a folder."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.datasets.body_checks import (
    IMAGES_CHECKED,
    Finding,
    check_body,
    check_samples,
    check_sequence,
)
from pipeline.datasets.coco import Coco
from pipeline.datasets.detection_checks import check_source_detections
from pipeline.datasets.human36m_images import Human36MImages
from pipeline.datasets.layouts import (
    Positions,
    UnmappedBvh,
    describe_completeness,
    find_mapping,
    has_only_samples,
    missing_recordings,
    present_splits,
    recognise_layouts,
)
from pipeline.datasets.mpii import Mpii
from pipeline.datasets.photos import TooManyBadError, drop_unreadable
from pipeline.errors import DataError, printable
from pipeline.mocap.mapping import read_mapping
from pipeline.mocap.motion_capture import Mocap
from pipeline.mocap.preparation import read_positions, read_recording
from pipeline.mocap.recordings import find_recordings
from pipeline.sources import (
    ImageSource,
    MotionSource,
    Sequence,
    Source,
    SourceListingDetections,
    Split,
)


@dataclass(frozen=True)
class Report:
    """Report of `validate` about a folder.

    Args:
        folder: The checked folder.
        layouts: Names of the layouts in the folder.
        findings: One finding per sequence, archive of detections, or split of samples.
        skipped: Message about a damaged file -> which data were left out with it; empty if only
            the file was.
    """

    folder: Path
    layouts: tuple[str, ...]
    findings: tuple[Finding, ...] = field(default=())
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def faults(self) -> int:
        """Number of findings with at least one fault."""
        return sum(bool(finding.faults) for finding in self.findings)

    def text(self) -> str:
        """Text of the report: a line per finding and skipped file, and a summary at the end."""
        lines = [finding.line() for finding in self.findings]
        for reason, left_out in self.skipped.items():
            lines.append(f"skipped {reason}")
            if left_out:
                lines[-1] += f" (left out: {left_out})"
        count = len(self.findings)
        summary = f"{self.folder}: {'; '.join(self.layouts)}: {count} parts, {self.faults} wrong"
        if self.skipped:
            summary += f", {len(self.skipped)} skipped"
        return "\n".join(map(printable, [*lines, summary]))


def validate(folder: Path, *, skip_bad: int = 0) -> Report:
    """Read and check all data in a folder.

    Args:
        folder: Folder of a data set.
        skip_bad: Maximum number of damaged files and bad annotations, which are left out and
            listed. With 0 the first one is an error, and only the first photographs of a split are
            read.

    Raises:
        DataError: If the layout is unknown, or more files are damaged.
    """
    layouts = recognise_layouts(folder)
    findings: list[Finding] = []
    skipped: dict[str, str] = {}
    for _, source in layouts:
        for part, check in _source_checks(source, skip_bad, skipped):
            try:
                findings += check()
            except TooManyBadError:
                raise
            except DataError as error:
                reason = str(error)
                if reason not in skipped and len(skipped) >= skip_bad:
                    raise
                skipped[reason] = f"{skipped[reason]}, {part}" if reason in skipped else part
    if not findings:
        raise DataError(next(iter(skipped), f"{folder}: holds nothing that could be checked"))
    return Report(folder, tuple(name for name, _ in layouts), tuple(findings), skipped)


def motion_splits(folder: Path, split: Split | Literal["all"]) -> list[tuple[MotionSource, Split]]:
    """Sources of motion in a folder, each with each of its splits that is asked for.

    Raises:
        DataError: If there is none.
    """
    found = [
        (source, part)
        for _, source in recognise_layouts(folder)
        if isinstance(source, MotionSource) and not has_only_samples(source)
        for part in ([split] if split != "all" else present_splits(source))
    ]
    if not found:
        raise DataError(f"{folder}: has no motion that detections could be of; give its folder")
    return found


def _source_checks(
    source: Source, skip_bad: int, skipped: dict[str, str]
) -> Iterator[tuple[str, Callable[[], list[Finding]]]]:
    """Checks of a source: name of the part that is left out if its check fails, and the check."""
    if isinstance(source, UnmappedBvh):
        raise DataError(source.describe())
    if isinstance(source, Positions):
        for path in source.files():
            yield "", functools.partial(_check_positions, path)
        return
    if isinstance(source, Mocap) and missing_recordings(source.folder):
        for paths in find_recordings(source.folder).values():
            yield from (("", functools.partial(_check_recording, path)) for path in paths)
        yield "", functools.partial(_check_completeness, source.folder)
        return
    for split in present_splits(source):
        yield (
            f"the {split} split",
            functools.partial(_check_split, source, split, skip_bad, skipped),
        )
    if isinstance(source, SourceListingDetections):
        for name in source.detection_names():
            yield "", functools.partial(check_source_detections, source, name)


def _check_positions(path: Path) -> list[Finding]:
    """Check one recording of positions."""
    positions, fps, names = read_positions(path)
    mapping = find_mapping(names, path)
    joints3d = mapping.map_positions(positions, names, str(path))
    facts = [f"{len(joints3d)} frames", f"{fps:g} Hz", f"mapping {mapping.name}"]
    faults: list[str] = []
    check_body(joints3d, mapping.skeleton, facts, faults)
    return [Finding(path.stem, tuple(facts), tuple(faults))]


def _check_recording(path: Path) -> list[Finding]:
    """Check one recording of a folder that has some of CMU's."""
    mapping = read_mapping("cmu")
    joints3d, fps = read_recording(path, mapping)
    facts = [f"{len(joints3d)} frames", f"{fps:g} Hz", "mapping cmu"]
    faults: list[str] = []
    check_body(joints3d, mapping.skeleton, facts, faults)
    return [Finding(path.name.partition(".")[0], tuple(facts), tuple(faults))]


def _check_completeness(folder: Path) -> list[Finding]:
    """Print what a folder that has some of CMU's recordings can be used for."""
    advice = (
        "to train on these, write a table of splits (`heatlift docs own_data`); for the open "
        "benchmark get the others (`heatlift data get cmu`)"
    )
    return [Finding("benchmark", (describe_completeness(folder),), doubts=(advice,))]


def _check_split(
    source: Source, split: Split, skip_bad: int, skipped: dict[str, str]
) -> list[Finding]:
    """Check the sequences or samples of a split."""
    if isinstance(source, MotionSource) and not has_only_samples(source):
        sequences = source.sequences(split)
        if isinstance(source, Mocap):
            sequences = sequences[::4]  # four cameras see the same joints
        if skip_bad:
            sequences = [
                _without_damaged_images(sequence, skip_bad, skipped) for sequence in sequences
            ]
        return [check_sequence(sequence) for sequence in sequences]
    if not isinstance(source, ImageSource):
        return []
    left = skip_bad - len(skipped)
    if isinstance(source, (Coco, Mpii, Human36MImages)):
        source.skip_bad = left
    samples = source.samples(split)
    if skip_bad and not left:
        samples = drop_unreadable(samples, 0)
    skipped |= dict.fromkeys(samples.remarks.skipped, "")
    checked = len(samples) if skip_bad else IMAGES_CHECKED
    return [check_samples(samples, split, checked=checked)]


def _without_damaged_images(sequence: Sequence, skip_bad: int, skipped: dict[str, str]) -> Sequence:
    """The sequence, without its images if the first one is damaged and may be left out."""
    try:
        if sequence.images is not None:
            sequence.images.size(0)
    except DataError as error:
        if len(skipped) < skip_bad:
            skipped[str(error)] = f"the images of {sequence.name}"
            return dataclasses.replace(sequence, images=None)
    return sequence
