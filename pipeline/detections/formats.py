"""Readers of 2D detections made by other tools: AlphaPose, OpenPose, MMPose, RTMPose, COCO."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.files.json_documents import expect_type, number_array, read_json, required_key
from pipeline.skeleton import BODY25, COCO17, DETECTOR_SKELETONS, HALPE26, MPII16, Skeleton
from pipeline.sources import VideoDetections

MAX_FRAMES = 2_000_000
"""Frames of the longest accepted video, eleven hours at 50 Hz."""


def skeleton_by_count(joints: int, place: str, skeleton: str | None = None) -> Skeleton:
    """Joint set of a tool's output, found by its number of joints if it has no name.

    Args:
        joints: Number of joints in the file.
        place: File and position in it, for messages.
        skeleton: Name of the joint set, if the user gives one.

    Raises:
        DataError: If the named set has another number of joints, or no known set of detectors
            has that many.
    """
    if skeleton is not None:
        if skeleton not in DETECTOR_SKELETONS:
            raise DataError(
                f"{place}: no joint set is called {skeleton!r}; "
                f"known are {', '.join(DETECTOR_SKELETONS)}"
            )
        named = DETECTOR_SKELETONS[skeleton]
        if len(named) != joints:
            raise DataError(
                f"{place}: has {joints} joints, {skeleton} has "
                f"{len(named)}: {', '.join(named.joints)}"
            )
        return named
    usual = {17: COCO17, 25: BODY25, 26: HALPE26, 16: MPII16}
    if joints not in usual:
        known = "; ".join(
            f"{s.name} ({len(s)}): {', '.join(s.joints)}" for s in DETECTOR_SKELETONS.values()
        )
        raise DataError(
            f"{place}: {joints} joints without names are not a known set; known are {known}"
        )
    return usual[joints]


def read_detections(
    path: Path, *, skeleton: str | None = None, frames: int | None = None
) -> VideoDetections:
    """Read the 2D joints of the one person in a video, found by another tool.

    Accepted are a folder of OpenPose's json files or of MMPose's lists of people (one file per
    frame in both), and json files of AlphaPose
    (a list of {image_id, keypoints, score}), MMPose and RTMPose ({meta_info, instance_info} or a
    list of {frame_id, instances}) and COCO's result format. If a frame has several people, the one
    with the highest mean score is used; a frame without people is missing.

    Args:
        path: File or folder.
        skeleton: Name of the joint set where the file does not name its joints; without it the
            set is found by the number of joints.
        frames: Length of the video; without it the video ends at the last frame with a person.

    Raises:
        DataError: If the format or the joints are unknown, or the file is damaged.
    """
    names: list[str] | None = None
    if path.is_dir():
        is_openpose = any(path.glob("*_keypoints.json"))
        people = _people_of_openpose(path) if is_openpose else _people_of_images(path)
    else:
        people, names = _people_of_document(read_json(path), str(path))
    if not people:
        raise DataError(f"{path}: has no person; was anything detected?")
    sizes = {len(joints) for _, joints in people}
    if len(sizes) > 1:
        raise DataError(f"{path}: has people with {sorted(sizes)} joints; one set is expected")
    count = sizes.pop()
    if names:
        joint_set = _skeleton_by_names(names, str(path))
    else:
        joint_set = skeleton_by_count(count, str(path), skeleton)
    if len(joint_set) != count:
        raise DataError(f"{path}: has names of {len(joint_set)} joints, but {count} joints")
    length = max(frame for frame, _ in people) + 1
    if length > (frames or MAX_FRAMES):
        limit = f"the video has {frames}"
        if frames is None:
            limit = f"a video has at most {MAX_FRAMES:,}"
        raise DataError(f"{path}: refers to frame {length - 1}; {limit}")
    joints2d, score = _best_person_per_frame(people, frames or length, count)
    return VideoDetections(joint_set, joints2d, score)


_People = list[tuple[int, NDArray[np.float64]]]
"""Frame, and x, y, score of the joints of a person in it, (J, 3)."""


def _best_person_per_frame(
    people: _People, frames: int, count: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Joints and scores of the person with the highest mean score, (T, J, 2) and (T, J)."""
    joints2d = np.full((frames, count, 2), np.nan, np.float32)
    score = np.zeros((frames, count), np.float32)
    best: dict[int, float] = {}
    for frame, joints in people:
        mean = float(joints[:, 2].mean())
        if mean > best.get(frame, 0.0):
            best[frame] = mean
            seen = joints[:, 2] > 0
            joints2d[frame] = np.where(seen[:, None], joints[:, :2], np.nan)
            score[frame] = np.where(seen, joints[:, 2], 0.0)
    return joints2d, score


def _joints_of_flat_list(flat: Any, place: str) -> NDArray[np.float64]:
    """x, y, score of each joint, (J, 3), from a flat list of numbers."""
    values = number_array(flat, (None,), place)
    if not len(values) or len(values) % 3:
        raise DataError(f"{place}: {len(values)} numbers are not x, y, score for each joint")
    return values.reshape(-1, 3)


def _people_of_openpose(folder: Path) -> _People:
    """People in a folder with one json file per frame."""
    people: _People = []
    files = sorted(folder.glob("*_keypoints.json"))
    if not files:
        raise DataError(f"{folder}: has no *_keypoints.json; give the folder that OpenPose wrote")
    for index, file in enumerate(files):
        found = expect_type(
            required_key(read_json(file), "people", str(file)), list, f"{file}: people"
        )
        for number, person in enumerate(found):
            place = f"{file}: people[{number}]: pose_keypoints_2d"
            flat = required_key(person, "pose_keypoints_2d", place)
            people.append((index, _joints_of_flat_list(flat, place)))
    return people


def _people_of_images(folder: Path) -> _People:
    """People in a folder with one list of MMPose per image, in the order of their numbers."""
    files = [path for path in folder.glob("*.json") if path.is_file()]
    if not files:
        raise DataError(
            f"{folder}: has no json file; give the folder that OpenPose or MMPose wrote"
        )

    def by_number(path: Path) -> list[tuple[int, str]]:
        return [(int(part or -1), text) for text, part in re.findall(r"(\D+)|(\d+)", path.stem)]

    people: _People = []
    for index, file in enumerate(sorted(files, key=by_number)):
        found, _ = _people_of_document(read_json(file), str(file))
        if any(frame for frame, _ in found):
            raise DataError(f"{file}: has several frames; a folder has one file per frame")
        people += [(index, joints) for _, joints in found]
    return people


def _people_of_document(document: Any, path: str) -> tuple[_People, list[str] | None]:
    """People in the json file of a tool, and the names of their joints if the file has them."""
    names = None
    if isinstance(document, dict):
        names = _joint_names(document.get("meta_info", {}), path)
        document = required_key(document, "instance_info", path)
    people: _People = []
    order: dict[Any, int] = {}
    for index, record in enumerate(expect_type(document, list, path)):
        place = f"{path}: [{index}]"
        expect_type(record, dict, place)
        if "instances" in record:
            frame = expect_type(record.get("frame_id", index), int, f"{place}: frame_id")
            base = 1 if "frame_id" in document[0] and document[0]["frame_id"] == 1 else 0
            for person in expect_type(record["instances"], list, f"{place}: instances"):
                people.append((frame - base, _joints_of_instance(person, place)))
            continue
        if "keypoint_scores" in record:  # MMPose's list of the people in one image
            people.append((0, _joints_of_instance(record, place)))
            continue
        image = required_key(record, "image_id", place)
        frame = _frame_number(image, order, place)
        flat = required_key(record, "keypoints", place)
        people.append((frame, _joints_of_flat_list(flat, f"{place}: keypoints")))
    if any(frame < 0 for frame, _ in people):
        raise DataError(f"{path}: refers to a frame before the first")
    return people, names


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
    joints = number_array(
        required_key(person, "keypoints", place), (None, 2), f"{place}: keypoints"
    )
    scores = required_key(person, "keypoint_scores", place)
    return np.c_[joints, number_array(scores, (len(joints),), f"{place}: keypoint_scores")]


def _frame_number(image: Any, order: dict[Any, int], place: str) -> int:
    """Frame of an image id: the number itself, the last number in a file name, or its position."""
    if isinstance(image, int) and not isinstance(image, bool):
        return image
    digits = re.findall(r"\d+", expect_type(image, str, f"{place}: image_id"))
    if digits and len(digits[-1]) < 10:
        return int(digits[-1])
    return order.setdefault(image, len(order))


_OTHER_NAMES = {"neck": "thorax", "hip": "pelvis", "root": "pelvis", "head_top": "head"}
"""Name of a joint in files of other tools -> our name."""


def _skeleton_by_names(names: list[str], path: str) -> Skeleton:
    """Known joint set with these names in this order."""
    ours = tuple(_OTHER_NAMES.get(name, name) for name in names)
    for skeleton in DETECTOR_SKELETONS.values():
        if ours in (skeleton.joints, tuple(skeleton.vocabulary)) or tuple(names) == skeleton.joints:
            return skeleton
    known = "; ".join(f"{s.name}: {', '.join(s.joints)}" for s in DETECTOR_SKELETONS.values())
    raise DataError(
        f"{path}: its joints, {', '.join(names)[:500]}, are not a known set; known are {known}"
    )
