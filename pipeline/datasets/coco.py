"""COCO: photographs of people with 17 joints, their boxes, and boxes of a person detector."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as Many
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.photos import Photographs, drop_unreadable
from pipeline.errors import DataError
from pipeline.files.json_documents import (
    expect_number,
    expect_type,
    number_array,
    read_json,
    required_key,
)
from pipeline.files.reading import safe_relative_name
from pipeline.skeleton import COCO17, Skeleton
from pipeline.sources import CocoGroundTruth, Samples, Split


@dataclass(frozen=True, eq=False)
class People:
    """People of one annotation file in COCO's format; all arrays have one row per person.

    Args:
        files: File names of the photographs, as in the annotation file.
        image_ids: Ids of the photographs, (N,).
        ids: Ids of the annotations, (N,).
        joints2d: Joints in pixels, (N, J, 2), float32; NaN where unlabelled.
        labelled: Labelled joints, including hidden ones, (N, J).
        boxes: x, y, width, height in pixels, cut to the photograph, (N, 4), float32; the last pixel
            is at x + width.
        areas: Areas of the people in square pixels, for OKS, (N,).
    """

    files: tuple[str, ...]
    image_ids: NDArray[np.int64]
    ids: NDArray[np.int64]
    joints2d: NDArray[np.float32]
    labelled: NDArray[np.bool_]
    boxes: NDArray[np.float32]
    areas: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.ids)


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


def require_inside(
    box: NDArray[np.floating], width: float, height: float, place: str
) -> NDArray[np.float64]:
    """Clip a box (x, y, width, height) to the image, (4,): from its first to its last pixel.

    A box of w pixels has its last one at x + w - 1, so the result is one pixel narrower and lower;
    HRNet and the simple baseline were trained and tested on such boxes.

    Raises:
        DataError: If the box is outside the image.
    """
    x, y, w, h = (float(value) for value in box)
    left, top = max(0.0, x), max(0.0, y)
    right, bottom = (
        min(width - 1.0, x + max(0.0, w - 1.0)),
        min(height - 1.0, y + max(0.0, h - 1.0)),
    )
    if right < left or bottom < top or w <= 0 or h <= 0:
        raise DataError(
            f"{place}: the box {x:g}, {y:g}, {w:g}, {h:g} lies outside {width:g}x{height:g}"
        )
    return np.array([left, top, right - left, bottom - top])


def read_images(document: Any, path: Path) -> dict[int, tuple[str, float, float]]:
    """Photographs of an annotation file: id -> file name, width, height."""
    images: dict[int, tuple[str, float, float]] = {}
    for index, record in enumerate(
        expect_type(required_key(document, "images", str(path)), list, f"{path}: images")
    ):
        place = f"{path}: images[{index}]"
        image_id = expect_type(required_key(record, "id", place), int, f"{place}: id")
        name = safe_relative_name(
            expect_type(required_key(record, "file_name", place), str, f"{place}: file_name"),
            f"{place}: file_name",
        )
        if image_id in images:
            raise DataError(f"{place}: the id {image_id} occurs twice")
        size = expect_number(record, "width", place), expect_number(record, "height", place)
        if min(size) < 1:
            raise DataError(f"{place}: {size[0]:g}x{size[1]:g} is not the size of an image")
        images[image_id] = (name, *size)
    return images


def read_people(path: Path, skeleton: Skeleton = COCO17) -> People:
    """Read the people of an annotation file in COCO's format; without crowds and unlabelled people.

    Args:
        path: Path of the json file.
        skeleton: Joint set of the file; checked by name where the file names its joints.

    Raises:
        DataError: If the file is damaged or has another format.
    """
    document = read_json(path)
    images = read_images(document, path)
    _check_joint_names(document, path, skeleton)
    rows = []
    people = expect_type(
        required_key(document, "annotations", str(path)), list, f"{path}: annotations"
    )
    seen: set[int] = set()
    for index, record in enumerate(people):
        place = f"{path}: annotations[{index}]"
        annotation_id = expect_type(required_key(record, "id", place), int, f"{place}: id")
        place = f"{path}: annotation {annotation_id}"
        if annotation_id in seen:
            raise DataError(f"{place}: the id occurs twice")
        seen.add(annotation_id)
        if record.get("iscrowd"):
            continue
        image_id = expect_type(required_key(record, "image_id", place), int, f"{place}: image_id")
        if image_id not in images:
            raise DataError(f"{place}: refers to the unknown image {image_id}")
        joints = _read_joints(record, place, skeleton)
        if not joints[:, 2].any():
            continue
        name, width, height = images[image_id]
        box = number_array(required_key(record, "bbox", place), (4,), f"{place}: bbox")
        area = expect_number(record, "area", place) if "area" in record else float(box[2] * box[3])
        box = require_inside(box, width, height, place)
        rows.append((name, image_id, annotation_id, joints, box, area))
    if not rows:
        raise DataError(f"{path}: has no person with a labelled joint")
    files, image_ids, ids, all_joints, boxes, areas = zip(*rows, strict=True)
    stacked = np.stack(all_joints)
    labelled = stacked[..., 2] > 0
    joints2d = np.where(labelled[..., None], stacked[..., :2], np.nan).astype(np.float32)
    return People(
        files,
        np.array(image_ids, np.int64),
        np.array(ids, np.int64),
        joints2d,
        labelled,
        np.stack(boxes).astype(np.float32),
        np.array(areas),
    )


def _read_joints(record: Any, place: str, skeleton: Skeleton) -> NDArray[np.float64]:
    """x, y and visibility of each joint of an annotation, (J, 3)."""
    flat = number_array(required_key(record, "keypoints", place), (None,), f"{place}: keypoints")
    if len(flat) != 3 * len(skeleton):
        raise DataError(
            f"{place}: has {len(flat)} numbers for joints; {skeleton.name} needs 3 x "
            f"{len(skeleton)}"
        )
    return flat.reshape(len(skeleton), 3)


def _check_joint_names(document: dict[str, Any], path: Path, skeleton: Skeleton) -> None:
    """Raise `DataError` if the file names joints and they are not those of the joint set."""
    for record in expect_type(document.get("categories", []), list, f"{path}: categories"):
        names = record.get("keypoints") if isinstance(record, dict) else None
        if names is None or record.get("name", "person") != "person":
            continue
        names = expect_type(names, list, f"{path}: categories: keypoints")
        if tuple(names) != skeleton.joints:
            raise DataError(
                f"{path}: its joints are {', '.join(map(str, names))[:300]}; {skeleton.name} is "
                f"{', '.join(skeleton.joints)}"
            )


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
    raise DataError(f"{root}: has no {what} (looked for {', '.join(candidates)}); see docs/data.md")


def make_samples(people: People, folder: Path, skeleton: Skeleton) -> Samples:
    """Samples of people whose photographs are in a folder."""
    return Samples(
        skeleton=skeleton,
        images=Photographs([folder / name for name in people.files]),
        joints2d=people.joints2d,
        labelled=people.labelled,
        boxes=people.boxes,
        ids=tuple(f"{name}#{i}" for name, i in zip(people.files, people.ids, strict=True)),
    )


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
        skip_bad: Maximum number of missing or damaged photographs, which are left out; with 0
            photographs are not checked beforehand.
    """

    skeleton = COCO17

    def __init__(
        self, root: str, *, boxes: str | None = None, box_score: float = 0.0, skip_bad: int = 0
    ) -> None:
        self.root, self.skip_bad = Path(root), skip_bad
        self.boxes, self.box_score = boxes, box_score

    def describe(self) -> str:
        """Describe the source in one line, for the output of a run."""
        boxes = f"test on the boxes of {self.boxes}" if self.boxes else "exact boxes"
        return f"COCO people in {self.root}; COCO17, {boxes}; test is the validation set"

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

    def people(self, split: Split) -> People:
        """People of a split with their ids, in the order of `samples`."""
        return read_people(self.annotations(split))

    def samples(self, split: Split) -> Samples:
        """Samples of a split; see `pipeline.sources.ImageSource`."""
        if split == "test" and self.boxes:
            found = self.detected(split, str(self.root / self.boxes), threshold=self.box_score)
            samples, ids, scores = found.samples, found.image_ids, found.scores
            about = f"boxes of {self.boxes} with a score of at least {self.box_score:g}"
        else:
            people = self.people(split)
            samples, ids = make_samples(people, self.folder(split), self.skeleton), people.image_ids
            scores, about = np.ones(len(people)), "exact boxes"
        truth = CocoGroundTruth(
            rows=np.arange(len(samples)),
            annotations=str(self.annotations(split)),
            image_ids=ids,
            scores=scores,
            about=about,
        )
        samples = dataclasses.replace(samples, truths=() if split == "train" else (truth,))
        return drop_unreadable(samples, self.skip_bad)[0] if self.skip_bad else samples

    def detected(self, split: Split, boxes: str, *, threshold: float = 0.0) -> DetectedPeople:
        """Read the boxes that a person detector found on the photographs of a split.

        They stay as they are, also where they reach out of the photograph.

        Args:
            split: Split with the photographs.
            boxes: Json file in COCO's result format: a list of {image_id, category_id, bbox,
                score}.
            threshold: Smallest score of the boxes that are used.

        Raises:
            DataError: If the file is damaged, has another format or refers to other photographs.
        """
        truth, path = self.annotations(split), Path(boxes)
        images = read_images(read_json(truth), truth)
        rows = []
        for index, record in enumerate(expect_type(read_json(path), list, str(path))):
            place = f"{path}: [{index}]"
            image_id = expect_type(
                required_key(record, "image_id", place), int, f"{place}: image_id"
            )
            if image_id not in images:
                raise DataError(f"{place}: refers to the unknown image {image_id}")
            score = expect_number(record, "score", place)
            box = number_array(required_key(record, "bbox", place), (4,), f"{place}: bbox")
            if required_key(record, "category_id", place) != 1 or score < threshold:
                continue
            name, width, height = images[image_id]
            require_inside(box, width, height, place)
            rows.append((name, image_id, box, score))
        if not rows:
            raise DataError(f"{path}: has no person with a score of {threshold:g} or more")
        files, image_ids, found, scores = zip(*rows, strict=True)
        shape = (len(rows), len(self.skeleton))
        samples = Samples(
            skeleton=self.skeleton,
            images=Photographs([self.folder(split) / name for name in files]),
            joints2d=np.full((*shape, 2), np.nan, np.float32),
            labelled=np.zeros(shape, bool),
            boxes=np.stack(found).astype(np.float32),
            ids=tuple(f"{name}#{index}" for index, name in enumerate(files)),
        )
        return DetectedPeople(samples, np.array(image_ids, np.int64), np.array(scores))
