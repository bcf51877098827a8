"""Human3.6M's images with joints in 2D and 3D, in PoseNet's and in mmpose's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.camera import Camera, camera_to_world, human36m_cameras
from pipeline.datasets.coco import first_existing
from pipeline.datasets.human36m import CAMERAS, action_name, subject_names
from pipeline.datasets.mmpose import Annotations, read_annotations, read_cameras
from pipeline.datasets.photos import Photographs, drop_unreadable
from pipeline.errors import DataError
from pipeline.files.json_documents import expect_type, number_array, read_json, required_key
from pipeline.files.reading import safe_relative_name
from pipeline.metrics.functional import MILLIMETRES
from pipeline.skeleton import H36M17
from pipeline.sources import Samples, Sequence, Split

_ACTS = {
    2: "Directions",
    3: "Discussion",
    4: "Eating",
    5: "Greeting",
    6: "Phoning",
    7: "Posing",
} | {
    8: "Purchases",
    9: "Sitting",
    10: "SittingDown",
    11: "Smoking",
    12: "Photo",
    13: "Waiting",
    14: "Walking",
    15: "WalkDog",
    16: "WalkTogether",
}
"""Numbers of the actions in PoseNet's file names (act_02 and so on) and what they stand for."""


class Human36MImages:
    """Human3.6M's images with 17 joints in pixels and in the camera frame.

    Two layouts are recognised. PoseNet's (also Integral's):
    `annotations/Human36M_subject{N}_data.json`, `_camera.json` and `_joint_3d.json`, images in
    `images/`; pinhole cameras without distortion. mmpose's:
    `annotation_body3d/fps{10,50}/h36m_{train,test}.npz`, `annotation_body3d/cameras.pkl` (else the
    cameras that come with Heatlift), images in `images/`; S9 and S11 are its test file, so it
    knows protocol 1 only.

    Args:
        root: Folder of the set.
        protocol: See `pipeline.datasets.Human36M`.
        train_every: Every which frame is a training sample (paper 004: 5).
        test_every: Every which frame is a test sample (paper 004: 64).
        skip_bad: How many photographs may be missing or damaged and are left out.
    """

    skeleton = H36M17

    def __init__(
        self,
        root: str,
        *,
        protocol: Literal[1, 2] = 1,
        train_every: int = 5,
        test_every: int = 64,
        skip_bad: int = 0,
    ) -> None:
        self.root, self.protocol, self.skip_bad = Path(root), protocol, skip_bad
        self.train_every, self.test_every = train_every, test_every

    def describe(self) -> str:
        """One line for the first lines of a run."""
        train, test = (", ".join(subject_names(self.protocol, s)) for s in ("train", "test"))
        return (
            f"Human3.6M images in {self.root}; protocol {self.protocol}: train {train}, every "
            f"{self.train_every}. frame; test {test}, every {self.test_every}. frame; val is test"
        )

    def samples(self, split: Split) -> Samples:
        """Samples with `joints3d`; see `pipeline.sources.ImageSource`."""
        every = self.train_every if split == "train" else self.test_every
        if (self.root / "annotation_body3d").is_dir():
            samples = self._of_mmpose(split, every)
        else:
            samples = self._of_posenet(split, every)
        return drop_unreadable(samples, self.skip_bad)[0] if self.skip_bad else samples

    def sequences(self, split: Split) -> list[Sequence]:
        """Videos of mmpose's layout, with their images if they are there."""
        path, fps = self._mmpose_file(split)
        people, cameras = read_annotations(path, len(H36M17)), self._cameras()
        found = []
        for name, rows in people.videos():
            subject, recording, camera = _video(name, path, cameras)
            joints3d = camera_to_world(np.asarray(people.joints3d[rows]), camera)
            found.append(
                Sequence(
                    name=f"{subject}/{recording}/{name.rsplit('.', 1)[-1]}",
                    subject=subject,
                    action=action_name(recording),
                    camera=camera,
                    fps=fps,
                    skeleton=H36M17,
                    joints3d=joints3d.astype(np.float32),
                    joints2d=np.asarray(people.joints2d[rows]),
                    images=people.images(self.root / "images", rows),
                )
            )
        return found

    def _cameras(self) -> dict[tuple[str, str], Camera]:
        path = self.root / "annotation_body3d" / "cameras.pkl"
        if path.exists():
            return read_cameras(path, to_world=True)
        return {
            (subject, name): camera
            for subject, cameras in human36m_cameras().items()
            for name, camera in zip(CAMERAS, cameras, strict=True)
        }

    def _mmpose_file(self, split: Split) -> tuple[Path, float]:
        if self.protocol != 1:
            raise DataError(f"{self.root}: mmpose's files are split as protocol 1; use protocol 1")
        name = f"h36m_{'train' if split == 'train' else 'test'}.npz"
        places = [f"annotation_body3d/fps{fps}/{name}" for fps in (50, 10)]
        path = first_existing(self.root, places, "annotations")
        return path, 50.0 if "fps50" in path.parts else 10.0

    def _of_mmpose(self, split: Split, every: int) -> Samples:
        path, _ = self._mmpose_file(split)
        people, cameras = read_annotations(path, len(H36M17)), self._cameras()
        chosen, seen, actions = [], [], []
        for name, rows in people.videos():
            _, recording, camera = _video(name, path, cameras)
            chosen.append(rows[::every])
            seen += [camera] * len(rows[::every])
            actions += [action_name(recording)] * len(rows[::every])
        return _samples(people, np.concatenate(chosen), seen, actions, self.root / "images")

    def _of_posenet(self, split: Split, every: int) -> Samples:
        folder = first_existing(self.root, ["annotations", "annotation"], "annotations")
        rows: list[tuple] = []
        for subject in subject_names(self.protocol, split):
            rows += _posenet_subject(folder, subject.removeprefix("S"), every)
        names, joints2d, joints3d, boxes, focal, principal, visible, acts = zip(*rows, strict=True)
        return Samples(
            skeleton=H36M17,
            images=Photographs([self.root / "images" / name for name in names]),
            joints2d=np.stack(joints2d).astype(np.float32),
            labelled=np.stack(visible),
            boxes=np.stack(boxes).astype(np.float32),
            joints3d=np.stack(joints3d).astype(np.float32),
            focal=np.stack(focal),
            principal=np.stack(principal),
            ids=names,
            actions=tuple(_ACTS.get(act, f"act {act}") for act in acts),
        )


def _video(
    name: str, path: Path, cameras: dict[tuple[str, str], Camera]
) -> tuple[str, str, Camera]:
    """Subject, recording and camera of a video called S1_Directions_1.54138969."""
    recording, _, serial = name.rpartition(".")
    subject, _, recording = recording.partition("_")
    if (subject, serial) not in cameras:
        raise DataError(f"{path}: {name[:80]!r} names no known subject and camera")
    return subject, recording.replace("_", " "), cameras[subject, serial]


def _samples(
    people: Annotations,
    rows: NDArray[np.int64],
    cameras: list[Camera],
    actions: list[str],
    folder: Path,
) -> Samples:
    names = [people.names[row].decode() for row in rows]
    labelled = np.asarray(people.labelled[rows])
    return Samples(
        skeleton=H36M17,
        images=Photographs([folder / name for name in names]),
        joints2d=np.where(labelled[..., None], people.joints2d[rows], np.nan).astype(np.float32),
        labelled=labelled,
        boxes=np.asarray(people.boxes[rows]),
        joints3d=np.asarray(people.joints3d[rows]),
        focal=np.stack([camera.focal for camera in cameras]),
        principal=np.stack([camera.principal for camera in cameras]),
        ids=tuple(names),
        actions=tuple(actions),
    )


def _posenet_subject(folder: Path, subject: str, every: int) -> list[tuple]:
    """Rows of a subject: name, 2D, 3D, box, focal, principal, visible, number of the action."""
    data, poses, views = (
        folder / f"Human36M_subject{subject}_{part}.json" for part in ("data", "joint_3d", "camera")
    )
    document, motion = read_json(data), read_json(poses)
    cameras = _posenet_cameras(read_json(views), views)
    images = {}
    for index, image in enumerate(
        expect_type(required_key(document, "images", str(data)), list, str(data))
    ):
        place = f"{data}: images[{index}]"
        images[expect_type(required_key(image, "id", place), int, f"{place}: id")] = (image, place)
    rows, inside = [], {True: 0, False: 0}
    people = expect_type(required_key(document, "annotations", str(data)), list, str(data))
    for index, person in enumerate(people):
        place = f"{data}: annotations[{index}]"
        image_id = expect_type(required_key(person, "image_id", place), int, f"{place}: image_id")
        if image_id not in images:
            raise DataError(f"{place}: refers to the unknown image {image_id}")
        image, where = images[image_id]
        keys = ("action_idx", "subaction_idx", "frame_idx", "cam_idx")
        action, part, frame, view = (
            expect_type(required_key(image, key, where), int, f"{where}: {key}") for key in keys
        )
        if frame % every:
            continue
        name = expect_type(required_key(image, "file_name", where), str, f"{where}: file_name")
        safe_relative_name(name, f"{where}: file_name")
        world: Any = motion
        for key in (action, part, frame):
            world = required_key(world, str(key), f"{poses}: {action}/{part}/{frame}")
        joints = number_array(world, (17, 3), f"{poses}: {action}/{part}/{frame}")
        if view not in cameras:
            raise DataError(f"{where}: refers to the unknown camera {view}")
        box = number_array(required_key(person, "bbox", place), (4,), f"{place}: bbox")
        flags = expect_type(
            required_key(person, "keypoints_vis", place), list, f"{place}: keypoints_vis"
        )
        flags = [int(flag) if isinstance(flag, bool) else flag for flag in flags]
        visible = number_array(flags, (17,), f"{place}: keypoints_vis") > 0
        turn, move, focal, principal = cameras[view]
        for shifts_first in (True, False):
            seen = _pinhole(_seen(joints, turn, move, shifts_first), focal, principal)
            root = seen[H36M17.root]
            inside[shifts_first] += bool(((root > box[:2]) & (root < box[:2] + box[2:])).all())
        rows.append((name, joints, box, turn, move, focal, principal, visible, action))
    if not rows:
        raise DataError(f"{data}: holds no person on any {every}. frame")
    shifts_first = inside[True] >= inside[False]
    if inside[shifts_first] < 0.9 * len(rows):
        raise DataError(
            f"{views}: the pelvis lies in the person's box in {inside[shifts_first]} of "
            f"{len(rows)} images, whether t is read as a centre or as a shift; check the cameras"
        )
    found = []
    for name, joints, box, turn, move, *lens, visible, action in rows:
        joints3d = _seen(joints, turn, move, shifts_first) / MILLIMETRES
        found.append((name, _pinhole(joints3d, *lens), joints3d, box, *lens, visible, action))
    return found


def _seen(
    joints: NDArray[np.float64], turn: NDArray, move: NDArray, shifts_first: bool
) -> NDArray[np.float64]:
    """World -> camera: R (X - t) or R X + t; files of both kinds are about under one name."""
    return (joints - move) @ turn.T if shifts_first else joints @ turn.T + move


def _pinhole(
    joints: NDArray[np.float64], focal: NDArray, principal: NDArray
) -> NDArray[np.float64]:
    depth = np.where(joints[:, 2:] > 0, joints[:, 2:], np.nan)
    return joints[:, :2] / depth * focal + principal


def _posenet_cameras(document: Any, path: Path) -> dict[int, tuple[NDArray, ...]]:
    found = {}
    for key, facts in expect_type(document, dict, str(path)).items():
        if not key.isdigit():
            raise DataError(f"{path}: {key[:40]!r} is no number of a camera")
        place = f"{path}: {key}"
        shapes = {"R": (3, 3), "t": (3,), "f": (2,), "c": (2,)}
        found[int(key)] = tuple(
            number_array(required_key(facts, name, place), shape, f"{place}: {name}")
            for name, shape in shapes.items()
        )
    return found
