"""MPII: photographs of people with 16 joints, and the head sizes for PCKh."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.coco import first_existing, log_remarks, make_samples
from pipeline.datasets.coco_format import (
    describe_joints_at_zero,
    keep_readable,
    labelled_joints,
    read_people,
)
from pipeline.datasets.photos import Photographs, describe_skipped, drop_unreadable
from pipeline.errors import DataError
from pipeline.files.json_documents import (
    expect_number,
    expect_type,
    number_array,
    read_json,
    required_key,
)
from pipeline.files.matlab import read_matlab
from pipeline.files.reading import safe_relative_name
from pipeline.skeleton import MPII16
from pipeline.sources import MpiiGroundTruth, Remarks, Samples, Split

_HEAD_FILES = ("annot/gt_valid.mat", "gt_valid.mat")


@dataclass(frozen=True, eq=False)
class HeadAnnotations:
    """Ground truth for PCKh from `gt_valid.mat`; rows in the order of the validation list.

    Args:
        joints2d: Joints in pixels, counted from 0, (N, 16, 2).
        labelled: Labelled joints, (N, 16).
        head: Diagonals of the head boxes in pixels, (N,).
    """

    joints2d: NDArray[np.float64]
    labelled: NDArray[np.bool_]
    head: NDArray[np.float64]


def read_head_truth(path: Path) -> HeadAnnotations:
    """Read joints and head sizes from `gt_valid.mat`, which counts pixels from 1.

    Raises:
        DataError: If the file is damaged or has another format.
    """
    content = read_matlab(path)
    names = ["jnt_missing", "pos_gt_src", "headboxes_src"]
    arrays = []
    for name, shape in zip(names, [(16, -1), (16, 2, -1), (2, 2, -1)], strict=True):
        array = content.get(name)
        if array is None:
            raise DataError(f"{path}: has no {name}; fetch it again")
        people = content[names[0]].shape[-1]
        if array.shape != (*shape[:-1], people):
            raise DataError(f"{path}: {name} has shape {array.shape}, not {shape}")
        arrays.append(array)
    missing, joints, boxes = arrays
    labelled = (missing == 0).T
    joints2d = joints.transpose(2, 0, 1) - 1.0
    if not all((np.abs(array) < 1e6).all() for array in (joints2d[labelled], boxes)):
        raise DataError(
            f"{path}: has joints or head boxes far outside of any image; fetch it again"
        )
    head = np.linalg.norm(boxes[1] - boxes[0], axis=0)
    if not (head > 0).all():
        raise DataError(f"{path}: has an empty head box; fetch it again")
    return HeadAnnotations(joints2d, labelled, head)


class Mpii:
    """MPII's people with 16 joints.

    The labels of MPII's test set are not public: `val` and `test` are both the validation list, as
    in papers. A person's box is the square of HRNet's list: side 200 x `scale`, centre 15 x `scale`
    below `center` (with the usual padding of 1.25 this is the published crop). Pixels are counted
    from 0.

    Args:
        root: Folder of the data set: `images/` and `annot/{train,valid}.json` (HRNet's lists),
            `mpii_{train,val}.json` (the same lists), or `annotations/{train,test}.json` (COCO's
            format with 16 joints, as PoseNet shares it).
        skip_bad: Maximum number of bad annotations and of missing or damaged photographs together,
            which are left out; with 0 photographs are not checked beforehand.
    """

    skeleton = MPII16
    val_is_test = True

    def __init__(self, root: str, *, skip_bad: int = 0) -> None:
        self.root, self.skip_bad = Path(root), skip_bad

    def describe(self) -> str:
        """Describe the source in one line, for the output of a run."""
        return (
            f"MPII people in {self.root}; MPII16, exact boxes; test is the validation list"
            f"{describe_skipped(self.skip_bad)}"
        )

    def annotations(self, split: Split) -> Path:
        """Path of the annotation file of a split."""
        names = ["train"] if split == "train" else ["valid", "val", "test"]
        patterns = ["annot/{}.json", "mpii_{}.json", "annotations/{}.json", "{}.json"]
        candidates = [pattern.format(name) for pattern in patterns for name in names]
        return first_existing(self.root, candidates, f"annotations of the {names[0]} split")

    def input_files(self, splits: Collection[Split], detections: str = "") -> list[Path]:
        """Files that the source reads; see `pipeline.sources.SourceWithFiles`."""
        files = {self.annotations(split) for split in splits}
        files |= {self.root / name for name in _HEAD_FILES if (self.root / name).exists()}
        return [*sorted(files), first_existing(self.root, ["images"], "photographs")]

    def head_truth(self) -> HeadAnnotations:
        """Joints and head sizes of the validation list, in the order of `samples('val')`."""
        return read_head_truth(first_existing(self.root, _HEAD_FILES, "head sizes"))

    def samples(self, split: Split) -> Samples:
        """Samples of a split; see `pipeline.sources.ImageSource`."""
        path = self.annotations(split)
        folder = first_existing(self.root, ["images"], "photographs")
        document = read_json(path)
        if isinstance(document, dict):
            people = read_people(path, MPII16, skip_bad=self.skip_bad)
            samples, rows = make_samples(people, folder, MPII16), np.arange(len(people))
        else:
            samples, rows = _samples_from_list(document, path, folder, self.skip_bad)
        log_remarks(path, samples.remarks)
        if split != "train":
            count = len(document) if isinstance(document, list) else len(samples)
            truth = self._ground_truth(samples, rows, count)
            samples = dataclasses.replace(samples, truths=(truth,))
        left = self.skip_bad - len(samples.remarks.skipped)
        return drop_unreadable(samples, left) if self.skip_bad else samples

    def _ground_truth(
        self, samples: Samples, rows: NDArray[np.int64], count: int
    ) -> MpiiGroundTruth:
        """Ground truth for PCKh from `gt_valid.mat`, or without that file from the labels.

        Args:
            samples: Samples of the validation list.
            rows: Row of each sample in the list, (N,).
            count: Length of the list.
        """
        try:
            truth = self.head_truth()
        except DataError:
            if any((self.root / name).exists() for name in _HEAD_FILES):
                raise
            return _ground_truth_from_labels(samples)
        if len(truth.head) != count:
            raise DataError(
                f"{self.root}: gt_valid.mat has {len(truth.head)} people, but the validation list "
                f"has {count}; use the files of the same release"
            )
        return MpiiGroundTruth(
            rows=np.arange(len(samples)),
            joints2d=truth.joints2d[rows],
            labelled=truth.labelled[rows],
            head=truth.head[rows],
            about="head boxes of gt_valid.mat",
        )


def _ground_truth_from_labels(samples: Samples) -> MpiiGroundTruth:
    """Ground truth for PCKh whose head size is the distance from neck to top of the head, / 0.6."""
    ends = [MPII16.index("upper_neck"), MPII16.index("head_top")]
    length = np.linalg.norm(np.diff(samples.joints2d[:, ends], axis=1)[:, 0], axis=-1)
    rows = np.flatnonzero(samples.labelled[:, ends].all(axis=1) & (length > 0))
    return MpiiGroundTruth(
        rows=rows,
        joints2d=samples.joints2d[rows].astype(np.float64),
        labelled=samples.labelled[rows],
        head=length[rows] / 0.6,
        about="no head boxes: limits are half the distance from neck to top of the head",
    )


def _samples_from_list(
    document: Any, path: Path, folder: Path, skip_bad: int
) -> tuple[Samples, NDArray[np.int64]]:
    """Samples from HRNet's list of {image, center, scale, joints, joints_vis}, and their rows."""
    rows, files, joints, boxes, at_zero = [], [], [], [], []

    def read(index: int, record: Any) -> None:
        place = f"{path}: [{index}]"
        name = expect_type(required_key(record, "image", place), str, f"{place}: image")
        safe_relative_name(name, f"{place}: image")
        centre = number_array(required_key(record, "center", place), (2,), f"{place}: center")
        scale = expect_number(record, "scale", place)
        if not 0 < scale < 1000:
            raise DataError(f"{place}: the scale {scale:g} is not the size of a person")
        pixels = number_array(required_key(record, "joints", place), (16, 2), f"{place}: joints")
        flags = number_array(
            required_key(record, "joints_vis", place), (16,), f"{place}: joints_vis"
        )
        person, count = labelled_joints(np.c_[pixels, flags], place)
        x, y = centre[0] - 1.0, centre[1] + 15.0 * scale - 1.0
        rows.append(index)
        files.append(name)
        joints.append(person)
        boxes.append([x - 100.0 * scale, y - 100.0 * scale, 200.0 * scale, 200.0 * scale])
        at_zero.append(count)

    records = expect_type(document, list, str(path))
    skipped = keep_readable(path, records, read, skip_bad=skip_bad)
    if not files:
        raise DataError(f"{path}: has no person")
    stacked = np.stack(joints)
    labelled = stacked[..., 2] > 0
    joints2d = np.where(labelled[..., None], stacked[..., :2] - 1.0, np.nan)
    samples = Samples(
        skeleton=MPII16,
        images=Photographs([folder / name for name in files]),
        joints2d=joints2d.astype(np.float32),
        labelled=labelled,
        boxes=np.array(boxes, np.float32),
        ids=tuple(f"{name}#{index}" for index, name in zip(rows, files, strict=True)),
        remarks=Remarks(doubts=describe_joints_at_zero(sum(at_zero)), skipped=skipped),
    )
    return samples, np.array(rows)
