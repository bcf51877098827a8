"""Layouts of data sets: recognise the data sets in a folder, and list them (`heatlift data ls`)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

from pipeline.datasets.coco import Coco
from pipeline.datasets.human36m import Human36M
from pipeline.datasets.human36m_images import Human36MImages
from pipeline.datasets.motionbert import MotionBertClips
from pipeline.datasets.mpi_inf_3dhp import MpiInf3dhp, MpiInf3dhpImages
from pipeline.datasets.mpii import Mpii
from pipeline.errors import DataError
from pipeline.files.archive import Npz
from pipeline.mocap.bvh import read_bvh
from pipeline.mocap.mapping import JointMapping, read_mapping
from pipeline.mocap.motion_capture import Mocap
from pipeline.mocap.preparation import read_positions
from pipeline.mocap.recordings import find_recordings, read_splits
from pipeline.skeleton import H36M17
from pipeline.sources import (
    ImageSource,
    MotionSource,
    Source,
    Split,
)

BVH = "*.[bB][vV][hH]*"
"""Pattern of BVH files, also in capitals and compressed."""

CONVERTED_MAPPINGS = ("H36M17", "asf_amc", "amass")
"""Joint mappings of the files that `heatlift data convert` writes."""


class Positions:
    """Npz files of positions, as `heatlift data convert amass` and `amc` write them.

    This class is for `validate` only. To train on the files, use `pipeline.mocap.Mocap` with a
    mapping and a table of splits.

    Args:
        root: Folder with the recordings, also in subfolders.
    """

    skeleton = H36M17

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def describe(self) -> str:
        """Describe the folder in one line."""
        return (
            f"positions of {len(self.files())} recordings in {self.root}; to train on them, add a "
            "mapping and a table of splits (`heatlift docs own_data`)"
        )

    def files(self) -> list[Path]:
        """Files that hold positions or cannot be read."""
        return [path for path in sorted(self.root.rglob("*.npz")) if _may_hold_positions(path)]


class UnmappedBvh:
    """BVH files that are not CMU's: what their joints mean is not known without a mapping.

    Args:
        root: Folder with the recordings, also in subfolders.
    """

    skeleton = H36M17

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def describe(self) -> str:
        """Describe the folder in one line, with the commands that lead to a mapping."""
        return (
            f"{self.root}: {len(find_recordings(self.root))} recordings that are not CMU's, so "
            f"their joints need a mapping: `heatlift data mapping {self.root}` proposes one, and "
            f"`heatlift data validate {self.root} --mapping FILE.yaml` checks it"
        )


def make_bvh_source(root: str) -> Source:
    """The data source of a folder with BVH files: CMU's recordings, or others without a mapping."""
    released = {recording.name for recording in read_splits("cmu")}
    return Mocap(root) if released & find_recordings(Path(root)).keys() else UnmappedBvh(root)


def _may_hold_positions(path: Path) -> bool:
    """True if an npz file holds positions or cannot be read."""
    try:
        return {"positions", "joints", "fps"} <= set(Npz(path).names)
    except DataError:
        return True


@runtime_checkable
class _SplitInFiles(Protocol):
    """A data set that keeps each split in files of its own, and may have only some of them."""

    def annotations(self, split: Split) -> Path:
        """Path of the annotations of a split; an error if the folder has none."""
        ...


SourceFactory = Callable[[str], Source]
"""Makes a data source from the path of its folder."""

LAYOUTS: tuple[tuple[str, str, SourceFactory], ...] = (
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
    ("MotionBERT's clips", "test/*.pkl", MotionBertClips),
    ("COCO people", "annotations/person_keypoints_*.json", Coco),
    ("COCO people", "person_keypoints_*.json", Coco),
    ("MPII, HRNet's lists", "annot/train.json", Mpii),
    ("MPII, HRNet's lists", "annot/valid.json", Mpii),
    ("MPII, HRNet's lists", "mpii_*.json", Mpii),
    ("MPII, COCO's format", "annotations/train.json", Mpii),
    ("MPII, COCO's format", "annotations/test.json", Mpii),
    ("Motion capture, BVH files", f"{BVH}", make_bvh_source),
    ("Motion capture, BVH files", f"*/{BVH}", make_bvh_source),
    ("Motion capture, BVH files", f"*/*/{BVH}", make_bvh_source),
    ("Motion capture, positions", "*.npz", Positions),
    ("Motion capture, positions", "*/*.npz", Positions),
)
"""Name of a layout, pattern of a file that only this layout has, and its data source."""


def recognise_layouts(folder: Path) -> list[tuple[str, Source]]:
    """Find the layouts in a folder: their names and data sources.

    Raises:
        DataError: If there are none.
    """
    found: dict[str, tuple[str, Source]] = {}
    if not folder.is_dir():
        raise DataError(f"{folder}: is not a folder; give the folder of a data set")
    for name, pattern, make_source in LAYOUTS:
        if next(folder.glob(pattern), None) is None:
            continue
        source = make_source(str(folder))
        # The pattern of positions matches any npz file, also those of other layouts.
        if not isinstance(source, Positions) or (not found and source.files()):
            found.setdefault(name, (name, source))
    if not found:
        raise DataError(
            f"{folder}: has no known layout; `heatlift docs data` has the files of each data set, "
            "`heatlift docs own_data` those of own recordings (BVH, npz)"
        )
    return list(found.values())


def list_datasets(folder: Path) -> list[str]:
    """Describe each data set in a folder and in its subfolders, in one line each.

    One split of each data set is read, the test split if there is one, or of motion capture the
    first recording. A data set that cannot be read has the reason in its line.

    Raises:
        DataError: If there is no data set, or none that can be read.
    """
    lines, unreadable = [], []
    for name, source in _find_datasets(folder):
        try:
            lines.append(f"{name}: {source.describe()}; {_describe_content(source)}")
        except DataError as error:
            unreadable.append(error)
            lines.append(f"{name}: cannot be read: {error}")
    if not lines:
        recognise_layouts(folder)  # raises the error for it
    if len(lines) == len(unreadable):
        raise unreadable[0]
    return lines


def _find_datasets(folder: Path) -> list[tuple[str, Source]]:
    """Layouts in a folder and in its subfolders; those found in both are listed once.

    Several subfolders with nothing else, as of the subjects of recordings, are one data set.
    """
    here: list[tuple[str, Source]] = []
    below: list[tuple[str, Source]] = []
    for path in [folder, *sorted(path for path in folder.glob("*") if path.is_dir())]:
        with contextlib.suppress(DataError):
            (here if path == folder else below).extend(recognise_layouts(path))
    names = [name for name, _ in below]
    if len(names) > 1 and len(set(names)) == 1 and names[0] in dict(here):
        return here
    own_files = any(folder.glob(BVH)) or any(folder.glob("*.npz"))
    # the patterns of motion capture also match in subfolders, those of images only in their own
    whole = [name for name, _ in here if own_files or not name.startswith("Motion capture")]
    below = [layout for layout in below if layout[0] not in whole]
    names = [name for name, _ in below]
    return [layout for layout in here if layout[0] not in names] + below


def _describe_content(source: Source) -> str:
    """Numbers of what a data set holds, from reading a part of it.

    Raises:
        DataError: If that part cannot be read.
    """
    if isinstance(source, Mocap):
        count = len(find_recordings(source.folder))
        first, whole = _describe_first(source.folder), describe_completeness(source.folder)
        return f"{count} recordings, {first}; {whole}"
    if isinstance(source, UnmappedBvh):
        return _describe_first(source.root)
    if isinstance(source, Positions):
        file, (frames, fps, joints), bad = _read_first(source.files())
        try:
            mapping = f"mapping {find_mapping(joints, file).name}"
        except DataError:
            mapping = f"`heatlift data mapping {source.root}` proposes a mapping for them"
        return (
            f"{file.name} has {frames} frames at {fps:g} Hz, {len(joints)} joints, {mapping}{bad}"
        )
    splits = list(present_splits(source))
    split = splits[-1]
    present = f"has {' and '.join(splits)}; {split}:"
    if isinstance(source, MotionSource) and not has_only_samples(source):
        sequences = source.sequences(split)
        frames = sum(map(len, sequences))
        rates = ", ".join(f"{rate:g}" for rate in sorted({s.fps for s in sequences}))
        return (
            f"{present} {len(sequences)} sequences, {frames} frames at {rates} Hz, "
            f"{source.skeleton.name}"
        )
    assert isinstance(source, ImageSource)
    return f"{present} {len(source.samples(split))} people, {source.skeleton.name}"


def _describe_first(folder: Path) -> str:
    """Facts of the first recording of motion capture that can be read."""
    files = sorted(path for paths in find_recordings(folder).values() for path in paths)
    file, (frames, fps, joints), bad = _read_first(files)
    return f"{file.name} has {frames} frames at {fps:g} Hz, {len(joints)} joints{bad}"


def _read_first(files: list[Path]) -> tuple[Path, tuple[int, float, list[str]], str]:
    """The first recording that can be read: file, number of frames, Hz, joints; those before it.

    Raises:
        DataError: If none can be read.
    """
    errors: list[DataError] = []
    for file in files:
        try:
            if file.suffix.lower() == ".npz":
                positions, fps, joints = read_positions(file)
                facts = len(positions), fps, joints
            else:
                motion = read_bvh(file)
                facts = len(motion), motion.fps, list(motion.joints)
        except DataError as error:
            errors.append(error)
            continue
        more = f" (also {len(errors) - 1} more)" if len(errors) > 1 else ""
        return file, facts, f"; cannot be read: {errors[0]}{more}" if errors else ""
    raise errors[0]


def missing_recordings(folder: Path) -> set[str]:
    """Names of the open benchmark's recordings that a folder lacks."""
    used = {recording.name for recording in read_splits("cmu") if recording.split != "exclude"}
    return used - find_recordings(folder).keys()


def describe_completeness(folder: Path) -> str:
    """Whether the recordings of the open benchmark are all in a folder."""
    missing = len(missing_recordings(folder))
    if not missing:
        return "all recordings of the benchmark"
    total = sum(recording.split != "exclude" for recording in read_splits("cmu"))
    return f"{missing} of the benchmark's {total} recordings are missing"


def find_mapping(names: list[str], path: Path) -> JointMapping:
    """Joint mapping whose source joints a recording has."""
    for name in CONVERTED_MAPPINGS:
        mapping = read_mapping(name)
        if {source for point in mapping.points for source in point.sources} <= set(names):
            return mapping
    raise DataError(
        f"{path}: its joints, {', '.join(names)[:200]}, match none of the mappings "
        f"{', '.join(CONVERTED_MAPPINGS)}; `heatlift data mapping {path.parent}` proposes another"
    )


def has_only_samples(source: Source) -> bool:
    """True for PoseNet's layout, which has single images and no videos."""
    return isinstance(source, Human36MImages) and not (source.root / "annotation_body3d").is_dir()


def present_splits(source: Source) -> Iterator[Split]:
    """Splits that a folder has; it need not have all of them."""
    splits: tuple[Split, ...] = ("train", "test")
    if isinstance(source, Mocap):
        splits = ("train", "val", "test")
    missing = []
    for split in splits:
        try:
            if isinstance(source, _SplitInFiles):
                source.annotations(split)
        except DataError as error:
            missing.append(error)
            continue
        yield split
    if len(missing) == len(splits):
        raise missing[0]
