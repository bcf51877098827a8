"""`heatlift data validate`: which data set a folder holds, and whether it is sound."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.datasets.body_checks import (
    LOOKED,
    Finding,
    check_body,
    check_detections,
    check_samples,
    check_sequence,
)
from pipeline.datasets.coco import Coco, read_images
from pipeline.datasets.human36m import Human36M
from pipeline.datasets.human36m_images import Human36MImages
from pipeline.datasets.motionbert import MotionBertClips
from pipeline.datasets.mpi_inf_3dhp import MpiInf3dhp, MpiInf3dhpImages
from pipeline.datasets.mpii import Mpii
from pipeline.datasets.photos import drop_unreadable
from pipeline.errors import DataError
from pipeline.files.archive import Npz
from pipeline.files.json_documents import read_json
from pipeline.mocap.mapping import JointMapping, read_mapping
from pipeline.mocap.motion_capture import Mocap
from pipeline.mocap.preparation import read_positions
from pipeline.skeleton import H36M17
from pipeline.sources import ImageSource, MotionSource, Sequence, Source, Split

CONVERTED = ("H36M17", "asf_amc", "amass")
"""Mappings that fit what `heatlift data convert` writes."""


class Positions:
    """Npz files of positions, as `heatlift data convert amass` or `amc` writes them, to be checked.

    `pipeline.mocap.Mocap` is what trains on them, with a mapping and a table of splits.

    Args:
        root: Folder with the recordings at any depth.
    """

    skeleton = H36M17

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def describe(self) -> str:
        """One line for people."""
        return (
            f"positions of {len(self.files())} recordings in {self.root}; a mapping and a table of "
            "splits make them a source (docs/mocap.md)"
        )

    def files(self) -> list[Path]:
        """Files that hold positions, and those that cannot be read."""
        return [path for path in sorted(self.root.rglob("*.npz")) if _is_of_positions(path)]


def _is_of_positions(path: Path) -> bool:
    try:
        return {"positions", "joints", "fps"} <= set(Npz(path).names)
    except DataError:
        return True


Kind = Callable[[str], Source]


LAYOUTS: tuple[tuple[str, str, Kind], ...] = (
    ("Human3.6M, VideoPose3D npz", "data_3d_h36m.npz", Human36M),
    ("Human3.6M images, mmpose npz", "annotation_body3d/fps*/h36m_*.npz", Human36MImages),
    (
        "Human3.6M images, PoseNet json",
        "annotations/Human36M_subject*_data.json",
        Human36MImages,
    ),
    ("MPI-INF-3DHP univ_annot3, P-STMO npz", "data_*_3dhp.npz", MpiInf3dhp),
    ("MPI-INF-3DHP annot3, mmpose npz", "annotations/mpi_inf_3dhp_*.npz", MpiInf3dhpImages),
    ("MotionBERT's clips", "train/*.pkl", MotionBertClips),
    ("COCO people", "annotations/person_keypoints_*.json", Coco),
    ("COCO people", "person_keypoints_*.json", Coco),
    ("MPII, HRNet's lists", "annot/train.json", Mpii),
    ("MPII, HRNet's lists", "mpii_train.json", Mpii),
    ("MPII, COCO's form", "annotations/train.json", Mpii),
    ("Motion capture, CMU's BVH files", "*.bvh*", Mocap),
    ("Motion capture, CMU's BVH files", "*/*.bvh*", Mocap),
    ("Motion capture, CMU's BVH files", "*/*/*.bvh*", Mocap),
    ("Motion capture, positions", "*.npz", Positions),
    ("Motion capture, positions", "*/*.npz", Positions),
)
"""Name, a file that gives a layout away, and its reader."""


@dataclass(frozen=True)
class Report:
    """What `validate` found in a folder.

    Args:
        folder: Which.
        layouts: Names of the layouts it has.
        findings: One per sequence, archive of detections, or split of samples.
        skipped: Why a file was left out -> what was left out with it, empty for the file alone.
    """

    folder: Path
    layouts: tuple[str, ...]
    findings: tuple[Finding, ...] = field(default=())
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def faults(self) -> int:
        """How many findings have a fault."""
        return sum(bool(finding.faults) for finding in self.findings)

    def text(self) -> str:
        """The report for people: one line per finding and one for the whole."""
        lines = [finding.line() for finding in self.findings]
        left_out = f", {len(self.skipped)} skipped" if self.skipped else ""
        end = (
            f"{self.folder}: {'; '.join(self.layouts)}: {len(lines)} parts, {self.faults} wrong"
            f"{left_out}"
        )
        skipped = [
            f"skipped {reason}" + (f" (left out: {what})" if what else "")
            for reason, what in self.skipped.items()
        ]
        return "\n".join([*lines, *skipped, end])


def recognise_layouts(folder: Path) -> list[tuple[str, Source]]:
    """Layouts that a folder has: name, reader.

    Raises:
        DataError: If there are none; the message names the files that were looked for.
    """
    found: dict[str, tuple[str, Source]] = {}
    if not folder.is_dir():
        raise DataError(f"{folder}: is no folder; name the folder of a data set")
    for name, pattern, kind in LAYOUTS:
        if next(folder.glob(pattern), None) is None:
            continue
        source = kind(str(folder))
        # any npz file looks like positions, also those of other layouts and of other things
        if not isinstance(source, Positions) or (not found and source.files()):
            found.setdefault(name, (name, source))
    if not found:
        looked = ", ".join(dict.fromkeys(pattern for _, pattern, _ in LAYOUTS))
        raise DataError(f"{folder}: is no known layout (looked for {looked}); see docs/data.md")
    return list(found.values())


def list_datasets(folder: Path) -> list[str]:
    """One line for each data set in a folder or in the folders in it.

    Raises:
        DataError: If there is none.
    """
    places = [folder, *sorted(place for place in folder.glob("*") if place.is_dir())]
    lines = []
    for place in places:
        try:
            lines += [f"{name}: {source.describe()}" for name, source in recognise_layouts(place)]
        except DataError:
            continue
    if not lines:
        recognise_layouts(folder)  # says what was looked for
    return lines


def validate(folder: Path, *, skip_bad: int = 0) -> Report:
    """Read all that a folder holds and check it.

    Args:
        folder: Which.
        skip_bad: How many files may be damaged: they are left out and named. With 0 the first one
            is an error, and of a set of photographs only the first ones are read.

    Raises:
        DataError: If the layout is not known, or more files cannot be read.
    """
    layouts = recognise_layouts(folder)
    findings: list[Finding] = []
    skipped: dict[str, str] = {}
    for _, source in layouts:
        for what, job in _jobs(source, skip_bad, skipped):
            try:
                findings += job()
            except DataError as error:
                said = str(error)
                if said not in skipped and len(skipped) >= skip_bad:
                    raise
                skipped[said] = f"{skipped[said]}, {what}" if said in skipped else what
    if not findings:
        raise DataError(next(iter(skipped), f"{folder}: holds nothing that could be checked"))
    return Report(folder, tuple(name for name, _ in layouts), tuple(findings), skipped)


def _jobs(
    source: Source, skip_bad: int, skipped: dict[str, str]
) -> Iterator[tuple[str, Callable[[], list[Finding]]]]:
    """What there is to check in a source: what would be left out, and how it is done."""
    if isinstance(source, Positions):
        for path in source.files():
            yield "", functools.partial(_check_positions, path)
        return
    for split in _splits(source):
        yield (
            f"the {split} split",
            functools.partial(_check_split, source, split, skip_bad, skipped),
        )
    if isinstance(source, Human36M):
        for path in sorted(source.root.glob("data_2d_h36m_*.npz")):
            yield "", functools.partial(check_detections, source, path)


def _check_positions(path: Path) -> list[Finding]:
    positions, fps, names = read_positions(path)
    mapping = _fitting(names, path)
    joints3d = mapping.of_positions(positions, names, str(path))
    facts = [f"{len(joints3d)} frames", f"{fps:g} Hz", f"mapping {mapping.name}"]
    faults: list[str] = []
    check_body(joints3d, mapping.skeleton, facts, faults)
    return [Finding(path.stem, tuple(facts), tuple(faults))]


def _fitting(names: list[str], path: Path) -> JointMapping:
    for name in CONVERTED:
        mapping = dataclasses.replace(read_mapping(name), name=name)
        if {source for point in mapping.points for source in point.sources} <= set(names):
            return mapping
    raise DataError(
        f"{path}: its joints, {', '.join(names)[:200]}, fit none of the mappings "
        f"{', '.join(CONVERTED)}; write one as docs/mocap.md has it"
    )


def _check_split(
    source: Source, split: Split, skip_bad: int, skipped: dict[str, str]
) -> list[Finding]:
    if isinstance(source, MotionSource) and not _only_samples(source):
        sequences = source.sequences(split)
        if isinstance(source, Mocap):
            sequences = sequences[::4]  # four cameras see the same joints
        if skip_bad:
            sequences = [_seen_or_not(sequence, skip_bad, skipped) for sequence in sequences]
        return [check_sequence(sequence) for sequence in sequences]
    if not isinstance(source, ImageSource):
        return []
    samples = source.samples(split)
    if skip_bad:
        samples, faults = drop_unreadable(samples, skip_bad - len(skipped))
        skipped |= dict.fromkeys(faults, "")
    looked = len(samples) if skip_bad else LOOKED
    return [check_samples(samples, split, looked=looked, sizes=_claimed_sizes(source, split))]


def _claimed_sizes(source: Source, split: Split) -> dict[str, tuple[float, float]]:
    """File -> width and height, as annotations in COCO's form say; others say nothing."""
    if not isinstance(source, (Coco, Mpii)):
        return {}
    path = source.annotations(split)
    document = read_json(path)
    if not isinstance(document, dict):
        return {}
    return {file: (width, height) for file, width, height in read_images(document, path).values()}


def _seen_or_not(sequence: Sequence, skip_bad: int, skipped: dict[str, str]) -> Sequence:
    """The sequence, without its images if the first is damaged and may be left out."""
    try:
        if sequence.images is not None:
            sequence.images.size(0)
    except DataError as error:
        if len(skipped) < skip_bad:
            skipped[str(error)] = f"the images of {sequence.name}"
            return dataclasses.replace(sequence, images=None)
    return sequence


def _only_samples(source: Source) -> bool:
    """PoseNet's layout has single images and no videos."""
    return isinstance(source, Human36MImages) and not (source.root / "annotation_body3d").is_dir()


def _splits(source: Source) -> Iterator[Split]:
    """Splits of a folder that are there; a folder with one of them only is no fault."""
    splits: tuple[Split, ...] = ("train", "test")
    if isinstance(source, Mocap):
        splits = ("train", "val", "test")
    missing = []
    for split in splits:
        try:
            if isinstance(source, (Coco, Mpii)):
                source.annotations(split)
            elif isinstance(source, MpiInf3dhp):
                path = source.root / f"data_{split}_3dhp.npz"
                if not path.exists():
                    raise DataError(f"{path}: not found")
        except DataError as error:
            missing.append(error)
            continue
        yield split
    if len(missing) == len(splits):
        raise missing[0]
