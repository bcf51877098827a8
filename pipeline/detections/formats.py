"""Readers of 2D detections made by other tools: AlphaPose, OpenPose, MMPose, RTMPose, COCO."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.detections.joint_sets import skeleton_by_count, skeleton_by_names
from pipeline.detections.numbering import Name, Numbering, frames_in_order, number_frames
from pipeline.detections.people import (
    FollowedPerson,
    FoundPerson,
    choose_person,
    follow_people,
)
from pipeline.errors import DataError
from pipeline.files.digests import bytes_digest
from pipeline.files.json_documents import expect_type, number_array, read_json, required_key
from pipeline.skeleton import COCO17, DETECTOR_SKELETONS, Skeleton
from pipeline.sources import Reading, VideoDetections


def read_detections(
    path: Path,
    *,
    skeleton: str | None = None,
    frames: int | None = None,
    first_frame: int | None = None,
    person: str | None = None,
) -> VideoDetections:
    """Read the 2D joints of one person in a video, found by another tool.

    Accepted are a folder of OpenPose's json files or of MMPose's lists of people (one file per
    frame in both), and json files of AlphaPose
    (a list of {image_id, keypoints, score}), MMPose and RTMPose ({meta_info, instance_info} or a
    list of {frame_id, instances}) and COCO's result format. How the frames are numbered is decided
    once for all of them (`pipeline.detections.numbering`); a frame without people is missing. Of
    several people one is followed (`pipeline.detections.people`).

    Args:
        path: File or folder.
        skeleton: Name of the joint set where the file does not name its joints; without it the
            set is found by the number of joints.
        frames: Length of the video; without it the video ends at the last frame of the file.
        first_frame: Number of the first frame of the video in the file; without it, it is found
            from the numbers and the length.
        person: Person that is used if there are several: an id in the file, or a number in the
            order of appearance where it has no ids; several parts of one person joined by commas.

    Raises:
        DataError: If the format or the joints are unknown, the file is damaged, the numbers of the
            frames fit in two ways or in none, or it is unclear who is who.
    """
    content = _read_folder(path) if path.is_dir() else _read_document(read_json(path), str(path))
    if not content.people:
        raise DataError(f"{path}: has no person; was anything detected?")
    joint_set = _joint_set(content, str(path), skeleton)
    numbering = _find_numbering(content, frames, first_frame, str(path))
    found = [
        FoundPerson(numbering.frames[image], joints, identity)
        for image, joints, identity in content.people
        if (joints[:, 2] > 0).any()
    ]
    if not found:
        raise DataError(
            f"{path}: the scores of all joints are 0, which means that none was found; write the "
            "scores of the tool, above 0"
        )
    chosen = choose_person(found, person, str(path))
    joints2d = np.full((numbering.length, len(joint_set), 2), np.nan, np.float32)
    score = np.zeros((numbering.length, len(joint_set)), np.float32)
    for one in chosen.found:
        seen = one.joints[:, 2] > 0
        joints2d[one.frame] = np.where(seen[:, None], one.joints[:, :2], np.nan)
        score[one.frame] = one.joints[:, 2]
    empty = numbering.length - len({one.frame for one in found})
    nobody = "1 has nobody" if empty == 1 else f"{empty} have nobody"
    reading = Reading(
        numbering.rule, empty, chosen.people, f"{numbering.text}; {nobody}; {chosen.text}"
    )
    return VideoDetections(joint_set, joints2d, score, reading)


@dataclass(frozen=True, eq=False)
class PeopleOfVideo:
    """All people of a video, found by another tool.

    Args:
        skeleton: Joint set.
        length: Number of frames of the video.
        people: The people in the order of appearance; `found` holds x, y, score of each joint.
        named: Whether the file or the user names the joint set.
        text: How the frames were numbered and the people told apart.
    """

    skeleton: Skeleton
    length: int
    people: tuple[FollowedPerson, ...]
    named: bool
    text: str


def read_people(
    path: Path,
    *,
    skeleton: str | None = None,
    frames: int | None = None,
    first_frame: int | None = None,
) -> PeopleOfVideo:
    """Read the 2D joints of all people in a video; formats and arguments as `read_detections`.

    A file without a person is a video without people.

    Raises:
        DataError: As `read_detections`, but never because of who is who.
    """
    content = _read_folder(path) if path.is_dir() else _read_document(read_json(path), str(path))
    found = [one for one in content.people if (one[1][:, 2] > 0).any()]
    joint_set = _joint_set(content, str(path), skeleton) if content.people else COCO17
    if not content.images:
        return PeopleOfVideo(joint_set, frames or 0, (), True, "nobody in the file")
    numbering = _find_numbering(content, frames, first_frame, str(path))
    people, how = follow_people(
        [
            FoundPerson(numbering.frames[image], joints, identity)
            for image, joints, identity in found
        ]
    )
    named = skeleton is not None or content.joint_names is not None
    return PeopleOfVideo(
        joint_set, numbering.length, tuple(people), named, f"{numbering.text}; {how}"
    )


@dataclass(eq=False)
class _Content:
    """People in the file or folder of a tool.

    Args:
        images: Names of all images, also of those without a person, each once.
        people: Name of the image; x, y, score of the joints, (J, 3); and id of each person.
        joint_names: Names of the joints, if the file has them.
        lists_all: Whether the tool lists images without a person, too.
        in_order: Whether the images have no names, but are all there, in order.
    """

    images: dict[Name, None] = field(default_factory=dict)
    people: list[tuple[Name, NDArray[np.float64], str | None]] = field(default_factory=list)
    joint_names: list[str] | None = None
    lists_all: bool = False
    in_order: bool = False


def _joint_set(content: _Content, path: str, skeleton: str | None) -> Skeleton:
    """Joint set of the people, who must have the same joints."""
    sizes = {len(joints) for _, joints, _ in content.people}
    if len(sizes) > 1:
        raise DataError(f"{path}: has people with {sorted(sizes)} joints; one set is expected")
    count = sizes.pop()
    if not content.joint_names:
        return skeleton_by_count(count, path, skeleton)
    joint_set = skeleton_by_names(content.joint_names)
    if joint_set is None:
        if skeleton is not None:
            return skeleton_by_count(count, path, skeleton)
        known = "; ".join(f"{s.name}: {', '.join(s.joints)}" for s in DETECTOR_SKELETONS.values())
        names = ", ".join(content.joint_names)[:500]
        raise DataError(f"{path}: its joints, {names}, are not a known set; known are {known}")
    if skeleton not in (None, joint_set.name):
        raise DataError(
            f"{path}: names its joints, and they are those of {joint_set.name}, not {skeleton}"
        )
    if len(joint_set) != count:
        raise DataError(f"{path}: has names of {len(joint_set)} joints, but {count} joints")
    return joint_set


def _find_numbering(
    content: _Content, frames: int | None, first_frame: int | None, path: str
) -> Numbering:
    """Frames of the images of a file."""
    if content.in_order:
        if first_frame is not None:
            raise DataError(
                f"{path}: has no frame numbers, and first_frame is {first_frame}; leave it out"
            )
        return frames_in_order(len(content.images), frames, path)
    return number_frames(
        content.images, frames, first_frame=first_frame, lists_all=content.lists_all, place=path
    )


LONGEST_ID = 40
"""Most characters of a person's id; the end of a longer one is a digest of it."""

_NO_ID: tuple[Any, ...] = (None, -1, "", "-1", [])
"""Values that stand for a person without an id; OpenPose writes [-1]."""


def _identity(person: dict[str, Any], place: str) -> str | None:
    """Id of a person: AlphaPose's `idx`, `track_id` of MMPose and of trackers, or `person_id`."""
    for key in ("idx", "track_id", "person_id"):
        value = person.get(key)
        value = _single_value(value)
        if value in _NO_ID:
            continue
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, str):
            if len(value) > LONGEST_ID:
                value = f"{value[: LONGEST_ID - 9]}-{bytes_digest(value.encode())[:8]}"
            return value
        return str(expect_type(value, int, f"{place}: {key}"))
    return None


def _single_value(value: Any) -> Any:
    """The value of nested lists that hold one value, once or repeated; None if they differ.

    AlphaPose writes ids as 1, [1.0] or [[0.0], [0.0]].
    """
    flat = [value]
    while any(isinstance(item, list) for item in flat):
        flat = [part for item in flat for part in (item if isinstance(item, list) else [item])]
    return flat[0] if flat and all(item == flat[0] for item in flat) else None


def _joints_of_flat_list(flat: Any, place: str) -> NDArray[np.float64]:
    """x, y, score of each joint, (J, 3), from a flat list of numbers."""
    _check_null(flat, place)
    values = number_array(flat, (None,), place)
    if not len(values) or len(values) % 3:
        raise DataError(f"{place}: {len(values)} numbers are not x, y, score for each joint")
    return clean_joints(values.reshape(-1, 3))


def clean_joints(joints: NDArray[np.float64]) -> NDArray[np.float64]:
    """Joints with scores from 0 to 1: 0 for those that tools write for joints that they lack.

    These are at x 0, y 0 or not finite, whatever their score. A score above 1 becomes 1.

    Args:
        joints: x, y, score of each joint, (J, 3).
    """
    shown = np.isfinite(joints).all(axis=1) & (joints[:, :2] != 0).any(axis=1)
    return np.c_[joints[:, :2], np.where(shown, joints[:, 2].clip(0.0, 1.0), 0.0)]


def _check_null(values: Any, place: str) -> None:
    """Raise `DataError` if a list of joints, or a joint in it, has a null."""
    for index, value in enumerate(values if isinstance(values, list) else ()):
        if value is None or (isinstance(value, list) and None in value):
            raise DataError(
                f"{place}[{index}]: is null; for a joint that was not found write x 0, y 0 and "
                "score 0"
            )


def _read_folder(folder: Path) -> _Content:
    """People in a folder of OpenPose or MMPose, with one json file per frame."""
    content = _Content(lists_all=True)
    files = sorted(folder.glob("*_keypoints.json"))
    if not files and any(folder.glob("*.json")):
        return _read_images(folder)
    if not files:
        raise DataError(
            f"{folder}: has no images and no json files; give a folder of images, or "
            "the one that OpenPose or MMPose wrote"
        )
    for file in files:
        image = file.name.removesuffix("_keypoints.json")
        content.images[image] = None
        found = expect_type(
            required_key(read_json(file), "people", str(file)), list, f"{file}: people"
        )
        for number, person in enumerate(found):
            old = isinstance(person, dict) and "pose_keypoints_2d" not in person
            key = "pose_keypoints" if old and "pose_keypoints" in person else "pose_keypoints_2d"
            place = f"{file}: people[{number}]: {key}"
            flat = required_key(person, key, place)
            identity = _identity(person, f"{file}: people[{number}]")
            content.people.append((image, _joints_of_flat_list(flat, place), identity))
    return content


def _read_images(folder: Path) -> _Content:
    """People in a folder with one json file of MMPose per image."""
    content = _Content(lists_all=True)
    for file in sorted(path for path in folder.glob("*.json") if path.is_file()):
        image = _read_document(read_json(file), str(file))
        if len(image.images) > 1:
            raise DataError(f"{file}: has several frames; a folder has one file per frame")
        content.images[file.stem] = None
        content.people += [(file.stem, joints, identity) for _, joints, identity in image.people]
        content.joint_names = content.joint_names or image.joint_names
    return content


def _read_document(document: Any, path: str) -> _Content:
    """People in the json file of a tool."""
    if isinstance(document, dict) and "annotations" in document and "images" in document:
        return _read_annotations(document, path)
    content = _Content()
    if isinstance(document, dict):
        content.joint_names = _joint_names(document.get("meta_info", {}), path)
        document = required_key(document, "instance_info", path)
    kinds = set()
    for index, record in enumerate(expect_type(document, list, path)):
        place = f"{path}: [{index}]"
        expect_type(record, dict, place)
        if "instances" in record:
            kinds.add("frame_id" if "frame_id" in record else "instances")
            _read_frame(record, index, content, place)
            continue
        if "keypoint_scores" in record:  # MMPose's list of the people in one image
            kinds.add("keypoint_scores")
            content.images[0] = None
            content.people.append((0, _joints_of_instance(record, place), _identity(record, place)))
            continue
        kinds.add("image_id")
        image = _hashable(required_key(record, "image_id", place), f"{place}: image_id")
        flat = required_key(record, "keypoints", place)
        content.images[image] = None
        joints = _joints_of_flat_list(flat, f"{place}: keypoints")
        content.people.append((image, joints, _identity(record, place)))
    if len(kinds) > 1:
        raise DataError(
            f"{path}: some records have {sorted(kinds)[0]} and some have not; write one kind"
        )
    content.in_order = kinds <= {"instances", "keypoint_scores"}
    content.lists_all = kinds == {"frame_id"}
    return content


def _read_annotations(document: dict[str, Any], path: str) -> _Content:
    """People of an annotation file of COCO, which lists all images; its visibilities are scores."""
    content, names = _Content(lists_all=True), {}
    for number, image in enumerate(expect_type(document["images"], list, f"{path}: images")):
        place = f"{path}: images[{number}]"
        name = expect_type(required_key(image, "file_name", place), str, f"{place}: file_name")
        names[_hashable(required_key(image, "id", place), f"{place}: id")] = name
        content.images[name] = None
    categories = expect_type(document.get("categories", []), list, f"{path}: categories")
    for number, category in enumerate(categories):
        expect_type(category, dict, f"{path}: categories[{number}]")
        if joints := category.get("keypoints"):
            place = f"{path}: categories[{number}]: keypoints"
            content.joint_names = [
                expect_type(joint, str, place).strip().lower().replace(" ", "_").replace("-", "_")
                for joint in expect_type(joints, list, place)
            ]
    people = expect_type(document["annotations"], list, f"{path}: annotations")
    for number, person in enumerate(people):
        place = f"{path}: annotations[{number}]"
        image = _hashable(required_key(person, "image_id", place), f"{place}: image_id")
        if image not in names:
            raise DataError(f"{place}: no image has the id {image!r:.40}")
        if flat := person.get("keypoints"):  # boxes and other things have none
            joints = _joints_of_flat_list(flat, f"{place}: keypoints")
            content.people.append((names[image], joints, _identity(person, place)))
    return content


def _hashable(identity: Any, place: str) -> int | str:
    """An id of a file, which is a number or a text."""
    if isinstance(identity, bool) or not isinstance(identity, int):
        expect_type(identity, str, place)
    return identity


def _read_frame(record: dict[str, Any], index: int, content: _Content, place: str) -> None:
    """Add the people of one frame in MMPose's format."""
    frame = expect_type(record.get("frame_id", index), int, f"{place}: frame_id")
    if frame in content.images:
        raise DataError(f"{place}: frame_id {frame} stands twice in the file; remove one")
    content.images[frame] = None
    for person in expect_type(record["instances"], list, f"{place}: instances"):
        joints = _joints_of_instance(person, place)
        content.people.append((frame, joints, _identity(person, place)))


def _joint_names(meta_info: Any, path: str) -> list[str] | None:
    """Names of the joints in MMPose's `meta_info`, if it has them."""
    names = meta_info.get("keypoint_id2name") if isinstance(meta_info, dict) else None
    if isinstance(names, dict):
        try:
            return [str(names[str(index)]) for index in range(len(names))]
        except KeyError as missing:
            raise DataError(f"{path}: keypoint_id2name has no joint {missing}") from None
    if not isinstance(names, list):
        return None
    return [expect_type(name, str, f"{path}: keypoint_id2name") for name in names]


def _joints_of_instance(person: Any, place: str) -> NDArray[np.float64]:
    """x, y, score of each joint, (J, 3), of a person in MMPose's format."""
    raw = required_key(person, "keypoints", place)
    _check_null(raw, f"{place}: keypoints")
    joints = number_array(raw, (None, 2), f"{place}: keypoints")
    scores = required_key(person, "keypoint_scores", place)
    _check_null(scores, f"{place}: keypoint_scores")
    values = number_array(scores, (len(joints),), f"{place}: keypoint_scores")
    return clean_joints(np.c_[joints, values])
