"""2D detections in the files of other tools: AlphaPose, OpenPose, MMPose, RTMPose, COCO."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.files.json_documents import expect_type, number_array, read_json, required_key
from pipeline.skeleton import BODY25, COCO17, DETECTED, HALPE26, MPII16, Skeleton
from pipeline.sources import VideoDetections

LONGEST = 2_000_000
"""Frames of the longest video, eleven hours at 50 Hz; a larger number is none of a frame."""


def skeleton_by_count(joints: int, place: str, skeleton: str | None = None) -> Skeleton:
    """The joint set of a tool's output, by its number of joints where nobody names it.

    Args:
        joints: How many joints the file has.
        place: File and place, for the message.
        skeleton: Name of the set, if the user gives one.

    Raises:
        DataError: If the name and the number do not fit, or no set of detectors has that many
        joints.
    """
    if skeleton is not None:
        if skeleton not in DETECTED:
            raise DataError(f"{place}: no joint set {skeleton!r}; there are {', '.join(DETECTED)}")
        named = DETECTED[skeleton]
        if len(named) != joints:
            raise DataError(
                f"{place}: has {joints} joints, {skeleton} has "
                f"{len(named)}: {', '.join(named.joints)}"
            )
        return named
    usual = {17: COCO17, 25: BODY25, 26: HALPE26, 16: MPII16}
    if joints not in usual:
        known = "; ".join(f"{s.name} ({len(s)}): {', '.join(s.joints)}" for s in DETECTED.values())
        raise DataError(
            f"{place}: {joints} joints without names are no known set; known are {known}"
        )
    return usual[joints]


def read_detections(
    path: Path, *, skeleton: str | None = None, frames: int | None = None
) -> VideoDetections:
    """2D joints of the one person in a video, found by another tool.

    Recognised are a folder of OpenPose's json files (one per frame), and json files of AlphaPose
    (a list of {image_id, keypoints, score}), MMPose and RTMPose ({meta_info, instance_info} or a
    list of {frame_id, instances}) and COCO's result form. Of several people in a frame the one
    with the highest mean score counts; a frame without people is missing.

    Args:
        path: File or folder.
        skeleton: Name of the joint set where the file does not name its joints; else by their
            number.
        frames: Length of the video; without it the last frame that has somebody ends it.

    Raises:
        DataError: If the form or the joints are not known, or the file is damaged.
    """
    if path.is_dir():
        people, names = _openpose(path), None
    else:
        people, names = _listed(read_json(path), str(path))
    if not people:
        raise DataError(f"{path}: holds no person; was anything detected?")
    sizes = {len(joints) for _, joints in people}
    if len(sizes) > 1:
        raise DataError(f"{path}: has people with {sorted(sizes)} joints; one set is expected")
    chosen = (
        _named(names, str(path)) if names else skeleton_by_count(sizes.pop(), str(path), skeleton)
    )
    if names and len(chosen) != len(people[0][1]):
        raise DataError(f"{path}: names {len(chosen)} joints and gives {len(people[0][1])}")
    length = max(frame for frame, _ in people) + 1
    if length > (frames or LONGEST):
        has = f"a video has at most {LONGEST:,}" if frames is None else f"the video has {frames}"
        raise DataError(f"{path}: refers to frame {length - 1}; {has}")
    joints2d = np.full((frames or length, len(chosen), 2), np.nan, np.float32)
    score = np.zeros(joints2d.shape[:2], np.float32)
    best: dict[int, float] = {}
    for frame, joints in people:
        mean = float(joints[:, 2].mean())
        if mean > best.get(frame, 0.0):
            best[frame] = mean
            seen = joints[:, 2] > 0
            joints2d[frame] = np.where(seen[:, None], joints[:, :2], np.nan)
            score[frame] = np.where(seen, joints[:, 2], 0.0)
    return VideoDetections(chosen, joints2d, score)


_People = list[tuple[int, NDArray[np.float64]]]


def _person(flat: Any, place: str) -> NDArray[np.float64]:
    """x, y, score of each joint, (J, 3), from a flat list."""
    values = number_array(flat, (None,), place)
    if not len(values) or len(values) % 3:
        raise DataError(f"{place}: {len(values)} numbers are not x, y, score for each joint")
    return values.reshape(-1, 3)


def _openpose(folder: Path) -> _People:
    people: _People = []
    files = sorted(folder.glob("*_keypoints.json"))
    if not files:
        raise DataError(f"{folder}: has no *_keypoints.json; name the folder that OpenPose wrote")
    for index, file in enumerate(files):
        found = expect_type(
            required_key(read_json(file), "people", str(file)), list, f"{file}: people"
        )
        for number, person in enumerate(found):
            place = f"{file}: people[{number}]: pose_keypoints_2d"
            people.append((index, _person(required_key(person, "pose_keypoints_2d", place), place)))
    return people


def _listed(document: Any, path: str) -> tuple[_People, list[str] | None]:
    if isinstance(document, dict):
        about = document.get("meta_info", {})
        names = about.get("keypoint_id2name") if isinstance(about, dict) else None
        if isinstance(names, dict):
            try:
                names = [str(names[str(index)]) for index in range(len(names))]
            except KeyError as missing:
                raise DataError(f"{path}: keypoint_id2name has no joint {missing}") from None
        document = required_key(document, "instance_info", path)
    else:
        names = None
    people: _People = []
    order: dict[Any, int] = {}
    for index, record in enumerate(expect_type(document, list, path)):
        place = f"{path}: [{index}]"
        expect_type(record, dict, place)
        if "instances" in record:
            frame = expect_type(record.get("frame_id", index), int, f"{place}: frame_id")
            base = 1 if "frame_id" in document[0] and document[0]["frame_id"] == 1 else 0
            for person in expect_type(record["instances"], list, f"{place}: instances"):
                people.append((frame - base, _instance(person, place)))
            continue
        image = required_key(record, "image_id", place)
        frame = _frame_of(image, order, place)
        people.append(
            (frame, _person(required_key(record, "keypoints", place), f"{place}: keypoints"))
        )
    if any(frame < 0 for frame, _ in people):
        raise DataError(f"{path}: refers to a frame before the first")
    if not isinstance(names, list):
        return people, None
    return people, [expect_type(name, str, f"{path}: keypoint_id2name") for name in names]


def _instance(person: Any, place: str) -> NDArray[np.float64]:
    joints = number_array(
        required_key(person, "keypoints", place), (None, 2), f"{place}: keypoints"
    )
    scores = required_key(person, "keypoint_scores", place)
    return np.c_[joints, number_array(scores, (len(joints),), f"{place}: keypoint_scores")]


def _frame_of(image: Any, order: dict[Any, int], place: str) -> int:
    """Frame of an image id: the number itself, or the last number in a file name, else its turn."""
    if isinstance(image, int) and not isinstance(image, bool):
        return image
    digits = re.findall(r"\d+", expect_type(image, str, f"{place}: image_id"))
    if digits and len(digits[-1]) < 10:
        return int(digits[-1])
    return order.setdefault(image, len(order))


_SAYS = {"neck": "thorax", "hip": "pelvis", "root": "pelvis", "head_top": "head"}


def _named(names: list[str], path: str) -> Skeleton:
    """The known joint set with these names in this order."""
    mine = tuple(_SAYS.get(name, name) for name in names)
    for skeleton in DETECTED.values():
        if mine in (skeleton.joints, tuple(skeleton.vocabulary)) or tuple(names) == skeleton.joints:
            return skeleton
    known = "; ".join(f"{s.name}: {', '.join(s.joints)}" for s in DETECTED.values())
    raise DataError(
        f"{path}: its joints, {', '.join(names)[:500]}, are no known set; known are {known}"
    )
