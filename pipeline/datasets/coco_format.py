"""Annotation files in COCO's format: read strictly, completed where keys are missing, checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.body_checks import check_box_format, check_joint_set
from pipeline.datasets.photos import TooManyBadError
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
from pipeline.sources import Remarks

BOX_SHARE = 0.53
"""Area of a person relative to the box, where a file has neither an area nor a segmentation: the
share that COCO's tools use for sets without areas (CrowdPose, AI Challenger)."""

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False, slots=True)
class Annotation:
    """One annotation: COCO's keys, all of them, and what was done to it.

    Args:
        record: Annotation for COCO's evaluation, complete except for the joints.
        joints: x, y and visibility of each joint, (J, 3).
        box: Box cut to the photograph, (4,); None for crowds and people without labels.
        area_rule: How the area was computed; "" if the file has it.
        at_zero: Number of joints at (0, 0) that the file marks as labelled.
        recounted: Whether the file has another number of labelled joints.
    """

    record: dict[str, Any]
    joints: NDArray[np.float64]
    box: NDArray[np.float64] | None
    area_rule: str
    at_zero: int
    recounted: bool


@dataclass(frozen=True, eq=False)
class People:
    """People of one annotation file in COCO's format; all arrays have one row per person.

    Args:
        files: File names of the photographs, as in the annotation file.
        sizes: Width and height of the photographs in pixels, as in the annotation file, (N, 2).
        image_ids: Ids of the photographs, (N,).
        ids: Ids of the annotations, (N,).
        joints2d: Joints in pixels, (N, J, 2), float32; NaN where unlabelled.
        labelled: Labelled joints, including hidden ones, (N, J).
        boxes: x, y, width, height in pixels, cut to the photograph, (N, 4), float32; the last pixel
            is at x + width.
        everybody: These people, crowds and people without labels, for `document`.
        all_images: Ids of all photographs of the file.
        remarks: What was computed, doubted and left out.
    """

    files: tuple[str, ...]
    sizes: NDArray[np.float64]
    image_ids: NDArray[np.int64]
    ids: NDArray[np.int64]
    joints2d: NDArray[np.float32]
    labelled: NDArray[np.bool_]
    boxes: NDArray[np.float32]
    everybody: tuple[Annotation, ...]
    all_images: tuple[int, ...]
    remarks: Remarks

    def __len__(self) -> int:
        return len(self.ids)

    def document(self) -> dict[str, Any]:
        """The file for COCO's evaluation: all keys, without annotations that were left out."""
        return {
            "images": [{"id": image_id} for image_id in self.all_images],
            "annotations": [
                person.record | {"keypoints": person.joints.ravel().tolist()}
                for person in self.everybody
            ],
            "categories": [{"id": 1, "name": "person"}],
        }


def keep_readable(
    path: Path, records: Iterable[Item], read: Callable[[int, Item], None], *, skip_bad: int
) -> tuple[str, ...]:
    """Read each record of a file; leave out up to `skip_bad` bad ones.

    Args:
        path: Path of the file, for the message.
        records: The records.
        read: Reads the record with this index, and keeps what it read; raises `DataError`.
        skip_bad: Maximum number of bad records.

    Returns:
        Message about each bad record.

    Raises:
        TooManyBadError: If more records are bad.
        DataError: With 0, the error of the first one.
    """
    faults: list[str] = []
    for index, record in enumerate(records):
        try:
            read(index, record)
        except DataError as error:
            faults.append(str(error))
            if not skip_bad:
                raise
    if len(faults) > skip_bad:
        raise TooManyBadError(
            f"{path}: {len(faults)} annotations are bad, {skip_bad} may be; the first one: "
            f"{faults[0]}"
        )
    return tuple(faults)


def labelled_joints(joints: NDArray[np.float64], place: str) -> tuple[NDArray[np.float64], int]:
    """Check visibility flags, and take joints at (0, 0), where nobody labels one, as unlabelled.

    Args:
        joints: x, y and visibility of each joint, (J, 3).
        place: File and place in it, for the error message.

    Returns:
        The joints, (J, 3), with zeros where unlabelled at (0, 0), and the number of these.

    Raises:
        DataError: If a visibility is not 0, 1 or 2.
    """
    if other := set(joints[:, 2].tolist()) - {0, 1, 2}:
        raise DataError(
            f"{place}: a joint has the visibility {min(other):g}; write 0 (not labelled), 1 "
            "(hidden) or 2 (visible)"
        )
    missing = (joints[:, :2] == 0).all(axis=1)
    at_zero = int((joints[missing, 2] > 0).sum())
    return np.where(missing[:, None], 0.0, joints), at_zero


def describe_joints_at_zero(count: int) -> tuple[str, ...]:
    """What `Remarks.doubts` has about this number of joints; nothing about none."""
    if not count:
        return ()
    return (f"joints at (0, 0) with a visibility above 0, taken as unlabelled: {count}",)


def clip_box(
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


def read_people(path: Path, skeleton: Skeleton = COCO17, *, skip_bad: int = 0) -> People:
    """Read the people of an annotation file in COCO's format; without crowds and unlabelled people.

    Missing keys are computed: `iscrowd` is 0; `num_keypoints` is counted; `area` is that of the
    polygons of `segmentation`, or without them `BOX_SHARE` of the box; without `categories` all
    annotations are people whose joints must fit the joint set.

    Args:
        path: Path of the json file.
        skeleton: Joint set of the file; checked by name where the file names its joints, and
            otherwise by the lengths of its bones.
        skip_bad: Maximum number of bad annotations, which are left out: with a box outside of the
            image, an area of 0, an unknown visibility, or not in COCO's format.

    Raises:
        DataError: If the file is damaged or has another format, or more annotations are bad.
    """
    document = read_json(path)
    images = read_images(document, path)
    categories, named = _person_categories(document, path, skeleton)
    annotations = required_key(document, "annotations", str(path))
    seen: set[int] = set()
    found: list[Annotation] = []

    def read(index: int, record: Any) -> None:
        place = f"{path}: annotations[{index}]"
        annotation_id = expect_type(required_key(record, "id", place), int, f"{place}: id")
        place = f"{path}: annotation {annotation_id}"
        if annotation_id in seen:
            raise DataError(f"{place}: the id occurs twice")
        seen.add(annotation_id)
        if categories is None or record.get("category_id", categories[0]) in categories:
            person = _read_person(record, images, place, skeleton)
            if person is not None:
                found.append(person)

    records = expect_type(annotations, list, f"{path}: annotations")
    skipped = keep_readable(path, records, read, skip_bad=skip_bad)
    people = [person for person in found if person.box is not None]
    if not people:
        ids = {repr(r.get("category_id")) for r in records if isinstance(r, dict)}
        known = "any" if categories is None else ", ".join(map(repr, categories))
        raise DataError(
            f"{path}: has no person with a labelled joint; category_id of people is {known}, and "
            f"the annotations have {', '.join(sorted(ids)[:8]) or 'none'}; label joints, or write "
            "the ids of categories alike"
        )
    del document, annotations, records  # a gigabyte for COCO
    remarks = _make_remarks(found, skeleton, skipped, named=named)
    return _stack(path, people, found, images, remarks, skeleton if not named else None)


def _stack(
    path: Path,
    people: list[Annotation],
    everybody: list[Annotation],
    images: dict[int, tuple[str, float, float]],
    remarks: Remarks,
    unnamed: Skeleton | None,
) -> People:
    """Arrays of the labelled people, checked as a whole; `unnamed` is a joint set to be checked."""
    joints = np.stack([person.joints for person in people])
    labelled = joints[..., 2] > 0
    joints2d = np.where(labelled[..., None], joints[..., :2], np.nan)
    records = [person.record for person in people]
    image_ids = [record["image_id"] for record in records]
    sizes = np.array([images[image_id][1:] for image_id in image_ids], np.float64)
    raw = np.array([record["bbox"] for record in records], np.float64)
    check_box_format(raw, joints2d, sizes, path)
    if unnamed is not None:
        check_joint_set(joints2d, unnamed, path)
    return People(
        files=tuple(images[image_id][0] for image_id in image_ids),
        sizes=sizes,
        image_ids=np.array(image_ids, np.int64),
        ids=np.array([record["id"] for record in records], np.int64),
        joints2d=joints2d.astype(np.float32),
        labelled=labelled,
        boxes=np.array([person.box for person in people], np.float32),
        everybody=tuple(everybody),
        all_images=tuple(images),
        remarks=remarks,
    )


def _person_categories(
    document: dict[str, Any], path: Path, skeleton: Skeleton
) -> tuple[list[Any] | None, bool]:
    """Ids of the categories of people (None for any), and whether one names the joints.

    Raises:
        DataError: If the joints named are not those of the joint set, or nobody is a person.
    """
    place = f"{path}: categories"
    records = expect_type(document.get("categories", []), list, place)
    known = [record for record in records if isinstance(record, dict)]
    people = [record for record in known if record.get("name", "person") == "person"]
    if known and not people:
        if len(known) > 1:
            others = ", ".join(str(record["name"])[:40] for record in known[:12])
            raise DataError(f"{place}: none of {others} is called person; rename the right one")
        people = known
    named = False
    for record in people:
        if not record.get("keypoints"):
            continue
        named = True
        names: list[Any] = expect_type(record["keypoints"], list, f"{place}: keypoints")
        if tuple(names) != skeleton.joints:
            raise DataError(
                f"{path}: its joints are {', '.join(map(str, names))[:300]}; {skeleton.name} is "
                f"{', '.join(skeleton.joints)}"
            )
    ids = [record["id"] for record in people if "id" in record]
    return (ids if ids and len(ids) == len(people) else None), named


def _read_person(
    record: dict[str, Any],
    images: dict[int, tuple[str, float, float]],
    place: str,
    skeleton: Skeleton,
) -> Annotation | None:
    """Read and complete one annotation; None for a crowd or an unlabelled person without a box.

    Raises:
        DataError: If it is bad.
    """
    image_id = expect_type(required_key(record, "image_id", place), int, f"{place}: image_id")
    if image_id not in images:
        raise DataError(f"{place}: refers to the unknown image {image_id}")
    crowd = bool(record.get("iscrowd"))
    unlabelled = np.broadcast_to(0.0, (len(skeleton), 3))  # takes no memory
    if crowd:
        joints, at_zero = unlabelled, 0
    else:
        joints, at_zero = labelled_joints(_read_joints(record, place, skeleton), place)
    count = int((joints[:, 2] > 0).sum())
    if not count and "bbox" not in record:
        return None
    box = number_array(required_key(record, "bbox", place), (4,), f"{place}: bbox")
    area, rule = _read_area(record, box, place)
    if count and not area > 0:
        raise DataError(
            f"{place}: the area is {area:g}; write the area of the person in square pixels, or "
            "leave out the key"
        )
    complete = {
        "id": record["id"],
        "image_id": image_id,
        "category_id": 1,
        "iscrowd": int(crowd),
        "area": area,
        "bbox": box.tolist(),
        "num_keypoints": count,
    }
    recounted = not crowd and record.get("num_keypoints", count + at_zero) != count + at_zero
    clipped = clip_box(box, *images[image_id][1:], place) if count else None
    return Annotation(complete, joints if count else unlabelled, clipped, rule, at_zero, recounted)


def _read_joints(record: Any, place: str, skeleton: Skeleton) -> NDArray[np.float64]:
    """x, y and visibility of each joint of an annotation, (J, 3)."""
    if not record.get("keypoints") and record.get("num_keypoints") == 0:
        return np.zeros((len(skeleton), 3))
    flat = number_array(required_key(record, "keypoints", place), (None,), f"{place}: keypoints")
    if len(flat) != 3 * len(skeleton):
        raise DataError(
            f"{place}: has {len(flat)} numbers for joints; {skeleton.name} needs 3 x "
            f"{len(skeleton)}"
        )
    return flat.reshape(len(skeleton), 3)


def _read_area(record: dict[str, Any], box: NDArray[np.float64], place: str) -> tuple[float, str]:
    """Area of a person in square pixels, and the rule by which it was computed, if it was."""
    if "area" in record:
        return expect_number(record, "area", place), ""
    polygons = record.get("segmentation")
    if isinstance(polygons, list) and polygons:
        area = 0.0
        for polygon in polygons:
            corners = number_array(polygon, (None,), f"{place}: segmentation")
            x, y = corners[0 : len(corners) // 2 * 2 : 2], corners[1::2]
            area += 0.5 * abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1)))
        return area, "the polygons of `segmentation`"
    return BOX_SHARE * float(box[2] * box[3]), f"{BOX_SHARE} of the box"


def _make_remarks(
    people: list[Annotation], skeleton: Skeleton, skipped: tuple[str, ...], *, named: bool
) -> Remarks:
    """What was computed and doubted."""
    computed: list[str] = []
    doubts: list[str] = []
    for rule in dict.fromkeys(person.area_rule for person in people if person.area_rule):
        count = sum(person.area_rule == rule for person in people)
        computed.append(f"area of {count} of {len(people)} annotations computed as {rule}")
    if not named:
        computed.append(f"the joints have no names in the file and are taken as {skeleton.name}")
    doubts += describe_joints_at_zero(sum(person.at_zero for person in people))
    if recounted := sum(person.recounted for person in people):
        doubts.append(
            f"annotations whose num_keypoints is not the number of their labelled joints, which "
            f"counts: {recounted}"
        )
    return Remarks(tuple(computed), tuple(doubts), skipped)
