"""Human3.6M's images with joints in 2D and 3D, in PoseNet's and mmpose's layouts."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.camera import Camera, camera_to_world, check_camera, human36m_cameras
from pipeline.datasets.coco import first_existing
from pipeline.datasets.human36m import CAMERAS, action_name, subject_names
from pipeline.datasets.mmpose import Annotations, read_annotations, read_cameras
from pipeline.datasets.photos import Photographs, describe_skipped, drop_unreadable
from pipeline.errors import DataError
from pipeline.files.json_documents import (
    expect_number,
    expect_type,
    number_array,
    read_json,
    required_key,
)
from pipeline.files.reading import safe_relative_name
from pipeline.metrics.functional import MILLIMETRES
from pipeline.skeleton import H36M17
from pipeline.sources import Samples, Sequence, Split

_ACTION_NAMES = {
    2: "Directions",
    3: "Discussion",
    4: "Eating",
    5: "Greeting",
    6: "Phoning",
    7: "Posing",
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
"""Number of an action in PoseNet's files -> name of the action."""


class Human36MImages:
    """Human3.6M's images with 17 joints in pixels and in the camera frame.

    Two layouts are supported. PoseNet's (also Integral's):
    `annotations/Human36M_subject{N}_data.json`, `_camera.json` and `_joint_3d.json`, images in
    `images/`; pinhole cameras without distortion. mmpose's:
    `annotation_body3d/fps{10,50}/h36m_{train,test}.npz`, `annotation_body3d/cameras.pkl` (without
    it the cameras that come with Heatlift), images in `images/`; its test file has S9 and S11, so
    it supports protocol 1 only.

    Args:
        root: Folder of the data set.
        protocol: Protocol of the split, 1 or 2; see `pipeline.datasets.Human36M`.
        train_every: Step between training frames (5 in SAN).
        test_every: Step between test frames (64 in SAN).
        skip_bad: Maximum number of missing or damaged images, which are left out.
    """

    skeleton = H36M17
    val_is_test = True

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
        """Describe the source in one line, for the output of a run."""
        train, test = (", ".join(subject_names(self.protocol, s)) for s in ("train", "test"))
        return (
            f"Human3.6M images in {self.root}; protocol {self.protocol}: train {train}, one frame "
            f"in {self.train_every}; test {test}, one frame in {self.test_every}; val is test"
            f"{describe_skipped(self.skip_bad)}"
        )

    def samples(self, split: Split) -> Samples:
        """Samples of a split with `joints3d`; see `pipeline.sources.ImageSource`."""
        every = self.train_every if split == "train" else self.test_every
        if (self.root / "annotation_body3d").is_dir():
            samples = self._mmpose_samples(split, every)
        else:
            samples = self._posenet_samples(split, every)
        return drop_unreadable(samples, self.skip_bad) if self.skip_bad else samples

    def sequences(self, split: Split) -> list[Sequence]:
        """Videos of mmpose's layout, with images if there are any."""
        path, fps = self._mmpose_file(split)
        people, cameras = read_annotations(path, len(H36M17)), self._cameras()
        sequences = []
        for name, rows in people.videos():
            subject, recording, camera = _parse_video_name(name, path, cameras)
            joints3d = camera_to_world(np.asarray(people.joints3d[rows]), camera)
            sequences.append(
                Sequence(
                    name=f"{subject}/{recording}/{name.rsplit('.', 1)[-1]}",
                    subject=subject,
                    action=action_name(recording),
                    camera=camera,
                    fps=fps,
                    skeleton=H36M17,
                    joints3d=joints3d.astype(np.float32),
                    joints2d=np.asarray(people.joints2d[rows]),
                    images=people.images(self.root / "images", rows, camera),
                )
            )
        return sequences

    def annotations(self, split: Split) -> Path:
        """Path of an annotation file of a split, of PoseNet's that of the first subject found.

        Raises:
            DataError: If there is none.
        """
        if (self.root / "annotation_body3d").is_dir():
            return self._mmpose_file(split)[0]
        candidates = [
            str(_posenet_path(Path(folder), subject.removeprefix("S"), "data"))
            for folder in ("annotations", "annotation")
            for subject in subject_names(self.protocol, split)
        ]
        return first_existing(self.root, candidates, f"annotations of the {split} split")

    def input_files(self, splits: Collection[Split], detections: str = "") -> list[Path]:
        """Files that the source reads; see `pipeline.sources.SourceWithFiles`."""
        if (self.root / "annotation_body3d").is_dir():
            files = {self._mmpose_file(split)[0] for split in splits}
            cameras = self.root / "annotation_body3d" / "cameras.pkl"
            files |= {cameras} if cameras.exists() else set()
        else:
            files = {
                path for s in splits for path in self.annotations(s).parent.glob("Human36M_*.json")
            }
        images = [path for path in [self.root / "images"] if path.is_dir()]
        return [*sorted(files), *images]

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
        """Path of the annotations of a split, and their frames per second."""
        if self.protocol != 1:
            raise DataError(f"{self.root}: mmpose's files are split as protocol 1; use protocol 1")
        name = f"h36m_{'train' if split == 'train' else 'test'}.npz"
        candidates = [f"annotation_body3d/fps{fps}/{name}" for fps in (50, 10)]
        path = first_existing(self.root, candidates, "annotations")
        return path, 50.0 if "fps50" in path.parts else 10.0

    def _mmpose_samples(self, split: Split, every: int) -> Samples:
        path, _ = self._mmpose_file(split)
        people, cameras = read_annotations(path, len(H36M17)), self._cameras()
        chosen, sample_cameras, actions = [], [], []
        for name, rows in people.videos():
            _, recording, camera = _parse_video_name(name, path, cameras)
            chosen.append(rows[::every])
            sample_cameras += [camera] * len(rows[::every])
            actions += [action_name(recording)] * len(rows[::every])
        return _make_samples(
            people, np.concatenate(chosen), sample_cameras, actions, self.root / "images"
        )

    def _posenet_samples(self, split: Split, every: int) -> Samples:
        folder = first_existing(self.root, ["annotations", "annotation"], "annotations")
        people: list[_PosenetPerson] = []
        joints2d, joints3d = [], []
        for subject in subject_names(self.protocol, split):
            found = _read_posenet_subject(folder, subject.removeprefix("S"), every)
            t_is_centre = _camera_t_is_centre(found, folder, subject.removeprefix("S"))
            for person in found:
                in_camera = person.camera.world_to_camera(person.joints, t_is_centre) / MILLIMETRES
                joints3d.append(in_camera)
                joints2d.append(person.camera.project(in_camera))
            people += found
        names = tuple(person.image for person in people)
        return Samples(
            skeleton=H36M17,
            images=Photographs(
                [self.root / "images" / name for name in names],
                np.stack([person.size for person in people]),
            ),
            joints2d=np.stack(joints2d).astype(np.float32),
            labelled=np.stack([person.visible for person in people]),
            boxes=np.stack([person.box for person in people]).astype(np.float32),
            joints3d=np.stack(joints3d).astype(np.float32),
            focal=np.stack([person.camera.focal for person in people]),
            principal=np.stack([person.camera.principal for person in people]),
            ids=names,
            actions=tuple(_ACTION_NAMES.get(p.action, f"act {p.action}") for p in people),
        )


def _parse_video_name(
    name: str, path: Path, cameras: dict[tuple[str, str], Camera]
) -> tuple[str, str, Camera]:
    """Subject, recording and camera of a video with a name like S1_Directions_1.54138969."""
    recording, _, serial = name.rpartition(".")
    subject, _, recording = recording.partition("_")
    if (subject, serial) not in cameras:
        raise DataError(f"{path}: {name[:80]!r} has no known subject and camera")
    return subject, recording.replace("_", " "), cameras[subject, serial]


def _make_samples(
    people: Annotations,
    rows: NDArray[np.int64],
    cameras: list[Camera],
    actions: list[str],
    folder: Path,
) -> Samples:
    """Samples of some rows of mmpose's annotations."""
    names = [people.names[row].decode() for row in rows]
    labelled = np.asarray(people.labelled[rows])
    return Samples(
        skeleton=H36M17,
        images=Photographs(
            [folder / name for name in names],
            np.array([camera.size for camera in cameras], np.float64),
        ),
        joints2d=np.where(labelled[..., None], people.joints2d[rows], np.nan).astype(np.float32),
        labelled=labelled,
        boxes=np.asarray(people.boxes[rows]),
        joints3d=np.asarray(people.joints3d[rows]),
        focal=np.stack([camera.focal for camera in cameras]),
        principal=np.stack([camera.principal for camera in cameras]),
        ids=tuple(names),
        actions=tuple(actions),
    )


@dataclass(frozen=True, eq=False)
class _PosenetCamera:
    """A pinhole camera as PoseNet's files have it: R, t, f and c."""

    rotation: NDArray[np.float64]
    t: NDArray[np.float64]
    focal: NDArray[np.float64]
    principal: NDArray[np.float64]

    def world_to_camera(
        self, joints: NDArray[np.float64], t_is_centre: bool
    ) -> NDArray[np.float64]:
        """R (X - t), or R X + t: there are files of both kinds, with the same names."""
        if t_is_centre:
            return (joints - self.t) @ self.rotation.T
        return joints @ self.rotation.T + self.t

    def project(self, joints: NDArray[np.float64]) -> NDArray[np.float64]:
        """Camera frame -> pixels, (J, 2); NaN behind the camera."""
        depth = np.where(joints[:, 2:] > 0, joints[:, 2:], np.nan)
        return joints[:, :2] / depth * self.focal + self.principal


@dataclass(frozen=True, eq=False)
class _PosenetPerson:
    """A person in one image of PoseNet's layout.

    Args:
        image: File name of the image.
        size: Width and height of the image in pixels, (2,); NaN where the file has none.
        joints: World millimetres, (17, 3).
        box: x, y, width, height in pixels, (4,).
        camera: Camera of the image.
        visible: Visible joints, (17,).
        action: Number of the action.
    """

    image: str
    size: NDArray[np.float64]
    joints: NDArray[np.float64]
    box: NDArray[np.float64]
    camera: _PosenetCamera
    visible: NDArray[np.bool_]
    action: int


def _posenet_path(folder: Path, subject: str, part: str) -> Path:
    return folder / f"Human36M_subject{subject}_{part}.json"


def _read_posenet_subject(folder: Path, subject: str, every: int) -> list[_PosenetPerson]:
    """People of a subject in every n-th frame."""
    data, poses, views = (
        _posenet_path(folder, subject, part) for part in ("data", "joint_3d", "camera")
    )
    document, motion = read_json(data), read_json(poses)
    cameras = _read_posenet_cameras(read_json(views), views)
    people = []
    for person, place, image, image_place in _iterate_annotations(document, data):
        keys = ("action_idx", "subaction_idx", "frame_idx", "cam_idx")
        action, part, frame, view = (
            expect_type(required_key(image, key, image_place), int, f"{image_place}: {key}")
            for key in keys
        )
        if frame % every:
            continue
        name = required_key(image, "file_name", image_place)
        name = expect_type(name, str, f"{image_place}: file_name")
        safe_relative_name(name, f"{image_place}: file_name")
        world: Any = motion
        for key in (action, part, frame):
            world = required_key(world, str(key), f"{poses}: {action}/{part}/{frame}")
        joints = number_array(world, (17, 3), f"{poses}: {action}/{part}/{frame}")
        if view not in cameras:
            raise DataError(f"{image_place}: refers to the unknown camera {view}")
        box = number_array(required_key(person, "bbox", place), (4,), f"{place}: bbox")
        visible = _read_visible(person, place)
        size = _read_size(image, image_place)
        people.append(_PosenetPerson(name, size, joints, box, cameras[view], visible, action))
    if not people:
        raise DataError(f"{data}: has no person in any frame whose number is a multiple of {every}")
    return people


def _iterate_annotations(document: Any, path: Path) -> Iterator[tuple[Any, str, Any, str]]:
    """Annotation of a person, its place for messages, its image, and the place of the image."""
    images = {}
    records = expect_type(required_key(document, "images", str(path)), list, str(path))
    for index, image in enumerate(records):
        place = f"{path}: images[{index}]"
        images[expect_type(required_key(image, "id", place), int, f"{place}: id")] = (image, place)
    people = expect_type(required_key(document, "annotations", str(path)), list, str(path))
    for index, person in enumerate(people):
        place = f"{path}: annotations[{index}]"
        image_id = expect_type(required_key(person, "image_id", place), int, f"{place}: image_id")
        if image_id not in images:
            raise DataError(f"{place}: refers to the unknown image {image_id}")
        yield (person, place, *images[image_id])


def _read_size(image: dict[str, Any], place: str) -> NDArray[np.float64]:
    """Width and height of an image in pixels, (2,); NaN if the file does not have them."""
    if not {"width", "height"} <= image.keys():
        return np.full(2, np.nan)
    return np.array([expect_number(image, name, place) for name in ("width", "height")])


def _read_visible(person: Any, place: str) -> NDArray[np.bool_]:
    """Visible joints of an annotation, (17,)."""
    flags = required_key(person, "keypoints_vis", place)
    place = f"{place}: keypoints_vis"
    flags = [
        int(flag) if isinstance(flag, bool) else flag for flag in expect_type(flags, list, place)
    ]
    values = number_array(flags, (17,), place)
    if len(other := values[~np.isin(values, (0, 1, 2))]):
        raise DataError(f"{place}: has the visibility {other[0]:g}; write 0 (not visible) or 1")
    return values > 0


def _camera_t_is_centre(people: list[_PosenetPerson], folder: Path, subject: str) -> bool:
    """True if t is the centre of the cameras, false if it is a translation.

    It is the reading with which more pelvises are in the boxes of their people.

    Raises:
        DataError: If it puts less than 90 % of the pelvises there.
    """
    inside = {True: 0, False: 0}
    for person in people:
        low, high = person.box[:2], person.box[:2] + person.box[2:]
        for t_is_centre in (True, False):
            in_camera = person.camera.world_to_camera(person.joints, t_is_centre)
            pelvis = person.camera.project(in_camera)[H36M17.root]
            inside[t_is_centre] += bool(((pelvis > low) & (pelvis < high)).all())
    t_is_centre = inside[True] >= inside[False]
    if inside[t_is_centre] < 0.9 * len(people):
        raise DataError(
            f"{_posenet_path(folder, subject, 'camera')}: the pelvis is in the person's box in "
            f"only {inside[t_is_centre]} of {len(people)} images, whether t is the centre of the "
            "camera or a translation; check the cameras"
        )
    return t_is_centre


def _check_posenet_camera(camera: _PosenetCamera, place: str) -> None:
    """Raise `DataError` if a camera cannot be one of Human3.6M's images of 1000 x 1002 pixels."""
    centre, lens = camera.t / MILLIMETRES, (camera.focal, camera.principal, (1000, 1002))
    check_camera(Camera(camera.rotation, centre, *lens, np.zeros(5)), place)


def _read_posenet_cameras(document: Any, path: Path) -> dict[int, _PosenetCamera]:
    """Number of a camera -> the camera."""
    cameras = {}
    for key, facts in expect_type(document, dict, str(path)).items():
        if not key.isdigit():
            raise DataError(f"{path}: {key[:40]!r} is not the number of a camera")
        place = f"{path}: {key}"
        shapes = {"R": (3, 3), "t": (3,), "f": (2,), "c": (2,)}
        arrays = (
            number_array(required_key(facts, name, place), shape, f"{place}: {name}")
            for name, shape in shapes.items()
        )
        cameras[int(key)] = camera = _PosenetCamera(*arrays)
        _check_posenet_camera(camera, place)
    return cameras
