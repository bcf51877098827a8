"""COCO: photographs of people with 17 joints, their boxes, and boxes of a person detector."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection
from collections.abc import Sequence as Many
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.coco_format import (
    People,
    clip_box,
    keep_readable,
    read_images,
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
from pipeline.skeleton import COCO17, Skeleton
from pipeline.sources import CocoGroundTruth, Remarks, Samples, Split

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class DetectedPeople:
    """Boxes that a person detector found on the photographs of a split.

    Args:
        samples: One sample per box, without labelled joints.
        image_ids: Ids of the photographs, (N,).
        scores: Scores of the boxes, (N,).
    """

    samples: Samples
    image_ids: NDArray[np.int64]
    scores: NDArray[np.float64]


def first_existing(root: Path, candidates: Many[str], what: str) -> Path:
    """First of several paths in a folder that exists.

    Args:
        root: The folder.
        candidates: Paths relative to `root`.
        what: What the paths hold, for the message.

    Raises:
        DataError: If none exists; the message lists them all.
    """
    for candidate in candidates:
        if (root / candidate).exists():
            return root / candidate
    raise DataError(
        f"{root}: has no {what} (looked for {', '.join(candidates)}); see `heatlift docs data`"
    )


def make_samples(people: People, folder: Path, skeleton: Skeleton) -> Samples:
    """Samples of people whose photographs are in a folder."""
    return Samples(
        skeleton=skeleton,
        images=Photographs([folder / name for name in people.files], people.sizes),
        joints2d=people.joints2d,
        labelled=people.labelled,
        boxes=people.boxes,
        ids=tuple(f"{name}#{i}" for name, i in zip(people.files, people.ids, strict=True)),
        remarks=people.remarks,
    )


def log_remarks(path: Path, remarks: Remarks) -> None:
    """Log what a reader computed, doubted and left out of an annotation file."""
    for line in (*remarks.computed, *remarks.doubts):
        _log.warning("%s: %s", path, line)
    for line in remarks.skipped:
        _log.warning("skipped %s", line)


class Coco:
    """COCO's people with 17 joints.

    The labels of COCO's test set are not public: here `test` is the validation set, as in papers.

    Args:
        root: Folder of the data set: `annotations/person_keypoints_{train,val}2017.json` and
            `{train,val}2017/` (or `images/{train,val}2017/`); or
            `person_keypoints_{train,val}.json` and `images/`.
        boxes: Json file with boxes of a person detector on the validation set, relative to
            `root`; `test` uses them. Without it `test` uses the exact boxes, as `val` always does.
        box_score: Smallest score of the detected boxes that are used.
        skip_bad: Maximum number of bad annotations and of missing or damaged photographs together,
            which are left out; with 0 photographs are not checked beforehand.
    """

    skeleton = COCO17
    val_is_test = True

    def __init__(
        self, root: str, *, boxes: str | None = None, box_score: float = 0.0, skip_bad: int = 0
    ) -> None:
        self.root, self.skip_bad = Path(root), skip_bad
        self.boxes, self.box_score = boxes, box_score

    def describe(self) -> str:
        """Describe the source in one line, for the output of a run."""
        boxes = "exact boxes"
        if self.boxes:
            boxes = f"test on boxes of {self.boxes} with a score of at least {self.box_score:g}"
        return (
            f"COCO people in {self.root}; COCO17, {boxes}; test is the validation set"
            f"{describe_skipped(self.skip_bad)}"
        )

    def annotations(self, split: Split) -> Path:
        """Path of the annotation file of a split."""
        name = "train" if split == "train" else "val"
        return first_existing(
            self.root,
            [
                f"annotations/person_keypoints_{name}2017.json",
                f"person_keypoints_{name}2017.json",
                f"person_keypoints_{name}.json",
            ],
            f"annotations of the {name} split",
        )

    def folder(self, split: Split) -> Path:
        """Folder with the photographs of a split."""
        name = "train" if split == "train" else "val"
        return first_existing(
            self.root,
            [f"{name}2017", f"images/{name}2017", "images"],
            f"photographs of the {name} split",
        )

    def input_files(self, splits: Collection[Split], detections: str = "") -> list[Path]:
        """Files that the source reads; see `pipeline.sources.SourceWithFiles`."""
        files = {self.annotations(split) for split in splits}
        if self.boxes and "test" in splits:
            files.add(self.root / self.boxes)
        return [*sorted(files), *sorted({self.folder(split) for split in splits})]

    def people(self, split: Split) -> People:
        """People of a split with their ids, in the order of `samples`."""
        return read_people(self.annotations(split), skip_bad=self.skip_bad)

    def samples(self, split: Split) -> Samples:
        """Samples of a split; see `pipeline.sources.ImageSource`."""
        people = self.people(split)
        log_remarks(self.annotations(split), people.remarks)
        if split == "test" and self.boxes:
            found = self.detected(
                split,
                str(self.root / self.boxes),
                threshold=self.box_score,
                skip_bad=self.skip_bad - len(people.remarks.skipped),
            )
            samples, ids, scores = found.samples, found.image_ids, found.scores
            log_remarks(Path(self.boxes), samples.remarks)
            samples = dataclasses.replace(samples, remarks=people.remarks + samples.remarks)
            about = f"boxes of {self.boxes} with a score of at least {self.box_score:g}"
        else:
            samples, ids = make_samples(people, self.folder(split), self.skeleton), people.image_ids
            scores, about = np.ones(len(people)), "exact boxes"
        if split != "train":
            if skipped := samples.remarks.skipped:
                about += f", without {len(skipped)} bad annotations or boxes"
            truth = CocoGroundTruth(
                rows=np.arange(len(samples)),
                annotations=people.document(),
                image_ids=ids,
                scores=scores,
                about=", ".join([about, *people.remarks.computed]),
            )
            samples = dataclasses.replace(samples, truths=(truth,))
        left = self.skip_bad - len(samples.remarks.skipped)
        return drop_unreadable(samples, left) if self.skip_bad else samples

    def detected(
        self, split: Split, boxes: str, *, threshold: float = 0.0, skip_bad: int = 0
    ) -> DetectedPeople:
        """Read the boxes that a person detector found on the photographs of a split.

        They stay as they are, also where they reach out of the photograph.

        Args:
            split: Split with the photographs.
            boxes: Json file in COCO's result format: a list of {image_id, category_id, bbox,
                score}.
            threshold: Smallest score of the boxes that are used.
            skip_bad: Maximum number of bad boxes, which are left out.

        Raises:
            DataError: If the file is damaged, has another format or refers to other photographs.
        """
        truth, path = self.annotations(split), Path(boxes)
        images = read_images(read_json(truth), truth)
        rows = []

        def read(index: int, record: Any) -> None:
            place = f"{path}: [{index}]"
            image_id = expect_type(
                required_key(record, "image_id", place), int, f"{place}: image_id"
            )
            if image_id not in images:
                raise DataError(f"{place}: refers to the unknown image {image_id}")
            score = expect_number(record, "score", place)
            box = number_array(required_key(record, "bbox", place), (4,), f"{place}: bbox")
            if required_key(record, "category_id", place) == 1 and score >= threshold:
                name, *size = images[image_id]
                clip_box(box, size[0], size[1], place)  # raises if it is outside
                rows.append((name, size, image_id, box, score))

        records = expect_type(read_json(path), list, str(path))
        skipped = keep_readable(path, records, read, skip_bad=skip_bad)
        if not rows:
            raise DataError(f"{path}: has no person with a score of {threshold:g} or more")
        files, sizes, image_ids, found, scores = zip(*rows, strict=True)
        shape = (len(rows), len(self.skeleton))
        samples = Samples(
            skeleton=self.skeleton,
            images=Photographs([self.folder(split) / name for name in files], np.array(sizes)),
            joints2d=np.full((*shape, 2), np.nan, np.float32),
            labelled=np.zeros(shape, bool),
            boxes=np.stack(found).astype(np.float32),
            ids=tuple(f"{name}#{index}" for index, name in enumerate(files)),
            remarks=Remarks(skipped=skipped),
        )
        return DetectedPeople(samples, np.array(image_ids, np.int64), np.array(scores))
