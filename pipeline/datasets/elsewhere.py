"""2D detections made by other people's tools, recognised by their joints and taken in by name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.archive import Npz, matching
from pipeline.datasets.documents import entry, numbers, of_kind, read_json
from pipeline.errors import DataError
from pipeline.skeleton import COCO17, H36M17, MPI3DHP17, MPII16, Skeleton, _sides

_RIGHT_LEFT = tuple(
    f"{side}_{name}" for side in ("right", "left") for name in ("shoulder", "elbow", "wrist")
)
_LEGS = tuple(f"{side}_{name}" for side in ("right", "left") for name in ("hip", "knee", "ankle"))
_FACE = ("right_eye", "left_eye", "right_ear", "left_ear")
_FEET = tuple(
    f"{side}_{name}" for side in ("left", "right") for name in ("big_toe", "small_toe", "heel")
)

BODY25 = Skeleton(
    "BODY25",
    ("nose", "thorax", *_RIGHT_LEFT, "pelvis", *_LEGS, *_FACE, *_FEET),
    (1, 8, 1, 2, 3, 1, 5, 6, -1, 8, 9, 10, 8, 12, 13, 0, 0, 15, 16, 14, 19, 14, 11, 22, 11),
)
"""OpenPose's 25 joints; its neck is the middle of the shoulders, which is our made-up `thorax`."""

_COCO_PARENTS = (18, 0, 0, 1, 2, 18, 18, 5, 6, 7, 8, 19, 19, 11, 12, 13, 14)
HALPE26 = Skeleton(
    "HALPE26",
    (*COCO17.joints, "head", "thorax", "pelvis", *_sides("big_toe", "small_toe", "heel")),
    (*_COCO_PARENTS, 18, 19, -1, 15, 16, 15, 16, 15, 16),
)
"""Halpe's 26 joints, of AlphaPose and RTMPose: COCO17, top of the head, neck, pelvis, feet."""

DETECTED = {s.name: s for s in (COCO17, HALPE26, BODY25, MPII16, H36M17, MPI3DHP17)}
"""Joint sets that detections may come in."""

_SYMMETRIES = {
    (len(s), frozenset(s.left), frozenset(s.right)): s for s in (H36M17, COCO17, MPII16, MPI3DHP17)
}


LONGEST = 2_000_000
"""Frames of the longest video, eleven hours at 50 Hz; a larger number is none of a frame."""


@dataclass(frozen=True, eq=False)
class Detections:
    """2D joints of one person in a video.

    Args:
        skeleton: The joint set of the arrays.
        joints2d: Pixels, (T, J, 2), float32; NaN where missing.
        score: From 0, missing, on, (T, J), float32.
    """

    skeleton: Skeleton
    joints2d: NDArray[np.float32]
    score: NDArray[np.float32]


def by_symmetry(joints: int, left: list[int], right: list[int], place: str) -> Skeleton:
    """The joint set with that many joints and those left and right ones (VideoPose3D's metadata).

    Raises:
        DataError: If it is not known; the message lists the known ones.
    """
    found = _SYMMETRIES.get((joints, frozenset(left), frozenset(right)))
    if found is None:
        known = "; ".join(
            f"{s.name} has {n} joints, left {sorted(a)}, right {sorted(b)}"
            for (n, a, b), s in _SYMMETRIES.items()
        )
        raise DataError(
            f"{place}: its {joints} joints, left {left}, right {right}, are no known set: {known}"
        )
    return found


def skeleton_of(archive: Npz) -> Skeleton:
    """The joint set that the metadata of VideoPose3D's 2D archives describes.

    Raises:
        DataError: If it is not known.
    """
    about = archive.objects("metadata")
    if not isinstance(about, dict):
        raise DataError(f"{archive.path}: metadata is no dict; it must name the joints")
    joints, sides = about.get("num_joints"), about.get("keypoints_symmetry")
    try:
        left, right = ([int(index) for index in side] for side in sides)  # type: ignore[union-attr]
    except (TypeError, ValueError):
        raise DataError(f"{archive.path}: metadata names no left and right joints") from None
    if not isinstance(joints, int):
        raise DataError(f"{archive.path}: metadata has no number of joints")
    return by_symmetry(joints, left, right, str(archive.path))


def nested(content: object, place: str) -> dict[str, dict]:
    """Subject -> recording -> something, as VideoPose3D's archives are built.

    Raises:
        DataError: If it is anything else.
    """
    if not isinstance(content, dict):
        raise DataError(f"{place}: a dict of subjects is expected, not {type(content).__name__}")
    for subject, actions in content.items():
        if not isinstance(subject, str) or not isinstance(actions, dict):
            raise DataError(
                f"{place}: {subject!r:.40} holds {type(actions).__name__}, not recordings"
            )
        if not all(isinstance(name, str) for name in actions):
            raise DataError(f"{place}: {subject} has recordings without a name")
    return content


def read_videopose3d(path: Path) -> dict[str, Detections]:
    """Detections of one of VideoPose3D's 2D archives: `subject/recording/number` -> 2D joints.

    Raises:
        DataError: If the archive is damaged or its joint set is not known.
    """
    archive = Npz(path)
    skeleton, found = skeleton_of(archive), {}
    content = nested(archive.objects("positions_2d"), f"{path}: positions_2d")
    for subject, recordings in content.items():
        for recording, videos in recordings.items():
            place = f"{path}: {subject}/{recording}"
            if not isinstance(videos, (list, np.ndarray)):
                raise DataError(f"{place}: a list of videos is expected")
            for index, video in enumerate(videos):
                joints2d = pixels(video, len(skeleton), f"{place}/{index}")
                score = np.isfinite(joints2d[..., 0]).astype(np.float32)
                found[f"{subject}/{recording}/{index}"] = Detections(skeleton, joints2d, score)
    if not found:
        raise DataError(f"{path}: holds no video")
    return found


def pixels(video: Any, joints: int, place: str) -> NDArray[np.float32]:
    """x, y of an array (T, J, 2) or (T, J, 3), NaN where one of them is not finite, (T, J, 2).

    Raises:
        DataError: If it is no such array.
    """
    channels = 3 if isinstance(video, np.ndarray) and video.shape[-1:] == (3,) else 2
    video = matching(video, (None, joints, channels), place, finite=False)[..., :2]
    return np.where(np.isfinite(video).all(axis=-1, keepdims=True), video, np.nan)


def by_count(joints: int, place: str, skeleton: str | None = None) -> Skeleton:
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
) -> Detections:
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
    chosen = _named(names, str(path)) if names else by_count(sizes.pop(), str(path), skeleton)
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
    return Detections(chosen, joints2d, score)


_People = list[tuple[int, NDArray[np.float64]]]


def _person(flat: Any, place: str) -> NDArray[np.float64]:
    """x, y, score of each joint, (J, 3), from a flat list."""
    values = numbers(flat, (None,), place)
    if not len(values) or len(values) % 3:
        raise DataError(f"{place}: {len(values)} numbers are not x, y, score for each joint")
    return values.reshape(-1, 3)


def _openpose(folder: Path) -> _People:
    people: _People = []
    files = sorted(folder.glob("*_keypoints.json"))
    if not files:
        raise DataError(f"{folder}: has no *_keypoints.json; name the folder that OpenPose wrote")
    for index, file in enumerate(files):
        found = of_kind(entry(read_json(file), "people", str(file)), list, f"{file}: people")
        for number, person in enumerate(found):
            place = f"{file}: people[{number}]: pose_keypoints_2d"
            people.append((index, _person(entry(person, "pose_keypoints_2d", place), place)))
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
        document = entry(document, "instance_info", path)
    else:
        names = None
    people: _People = []
    order: dict[Any, int] = {}
    for index, record in enumerate(of_kind(document, list, path)):
        place = f"{path}: [{index}]"
        of_kind(record, dict, place)
        if "instances" in record:
            frame = of_kind(record.get("frame_id", index), int, f"{place}: frame_id")
            base = 1 if "frame_id" in document[0] and document[0]["frame_id"] == 1 else 0
            for person in of_kind(record["instances"], list, f"{place}: instances"):
                people.append((frame - base, _instance(person, place)))
            continue
        image = entry(record, "image_id", place)
        frame = _frame_of(image, order, place)
        people.append((frame, _person(entry(record, "keypoints", place), f"{place}: keypoints")))
    if any(frame < 0 for frame, _ in people):
        raise DataError(f"{path}: refers to a frame before the first")
    if not isinstance(names, list):
        return people, None
    return people, [of_kind(name, str, f"{path}: keypoint_id2name") for name in names]


def _instance(person: Any, place: str) -> NDArray[np.float64]:
    joints = numbers(entry(person, "keypoints", place), (None, 2), f"{place}: keypoints")
    scores = entry(person, "keypoint_scores", place)
    return np.c_[joints, numbers(scores, (len(joints),), f"{place}: keypoint_scores")]


def _frame_of(image: Any, order: dict[Any, int], place: str) -> int:
    """Frame of an image id: the number itself, or the last number in a file name, else its turn."""
    if isinstance(image, int) and not isinstance(image, bool):
        return image
    digits = re.findall(r"\d+", of_kind(image, str, f"{place}: image_id"))
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
