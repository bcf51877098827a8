"""Writers of tiny archives in the true layouts of the field's data sets: the formats, as code."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from pipeline.camera import human36m_cameras, project, world_to_camera
from pipeline.datasets.human36m import KEPT
from pipeline.skeleton import COCO17, H36M17, MPII16


def photograph(path: Path, width: int = 64, height: int = 48, seed: int = 0) -> Path:
    """A smooth coloured JPEG or PNG file."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (4, 5, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), cv2.resize(small, (width, height)))
    return path


def coco_document(people: int = 4, width: int = 64, height: int = 48, seed: int = 0) -> dict:
    """COCO's annotation file: one person per picture, one picture without people, one crowd."""
    rng = np.random.default_rng(seed)
    annotations = []
    for index in range(people):
        joints = rng.uniform((8, 6), (width - 8, height - 6), (17, 2)).round(2)
        flat = np.c_[joints, rng.integers(0, 3, 17)]
        flat[0, 2] = 2
        flat[flat[:, 2] == 0] = 0
        x, y, w, h = 5.0 + index, 4.0, width - 20.0, height - 10.0
        annotations.append(
            {
                "id": 100 + index,
                "image_id": 7 + index,
                "category_id": 1,
                "iscrowd": 0,
                "area": 0.5 * w * h,
                "bbox": [x, y, w, h],
                "num_keypoints": int((flat[:, 2] > 0).sum()),
                "keypoints": flat.ravel().tolist(),
                "segmentation": [[x, y, x + w, y, x + w, y + h]],
            }
        )
    crowd = {**annotations[0], "id": 900, "iscrowd": 1}
    unlabelled = {**annotations[0], "id": 901, "keypoints": [0] * 51, "num_keypoints": 0}
    return {
        "info": {"year": 2017},
        "images": [
            {"id": 7 + i, "file_name": f"{7 + i:012d}.jpg", "width": width, "height": height}
            for i in range(people + 1)
        ],
        "annotations": [*annotations, crowd, unlabelled],
        "categories": [{"id": 1, "name": "person", "keypoints": list(COCO17.joints)}],
    }


def coco(root: Path, people: int = 4) -> Path:
    """COCO 2017 as it unpacks, and boxes of a person detector for its validation pictures."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for seed, split in enumerate(("train", "val")):
        document = coco_document(people, seed=seed)
        name = f"annotations/person_keypoints_{split}2017.json"
        (root / name).write_text(json.dumps(document))
        for image in document["images"]:
            photograph(root / f"{split}2017" / image["file_name"], seed=image["id"])
    boxes = [
        {"image_id": 7, "category_id": 1, "bbox": [-3.0, 4.0, 20.0, 30.0], "score": 0.9},
        {"image_id": 8, "category_id": 1, "bbox": [5.0, 4.0, 500.0, 30.0], "score": 0.2},
        {"image_id": 8, "category_id": 3, "bbox": [5.0, 4.0, 10.0, 30.0], "score": 0.8},
    ]
    (root / "person_detections.json").write_text(json.dumps(boxes))
    return root


def mpii_list(people: int = 4, seed: int = 0) -> list[dict]:
    """HRNet's list of MPII people: pixels counted from 1, -1 where a joint is missing."""
    rng = np.random.default_rng(seed)
    found = []
    for index in range(people):
        joints = rng.uniform((8, 6), (56, 42), (16, 2)).round(2)
        visible = (rng.uniform(size=16) < 0.8).astype(int)
        visible[:2] = 1, 0
        joints[visible == 0] = -1
        found.append(
            {
                "image": f"{index:09d}.jpg",
                "center": [32.0, 24.0],
                "scale": 0.2,
                "joints": joints.tolist(),
                "joints_vis": visible.tolist(),
            }
        )
    return found


def mpii(root: Path, people: int = 4) -> Path:
    """MPII with HRNet's lists and the MATLAB file that PCKh is computed from."""
    import scipy.io

    (root / "annot").mkdir(parents=True, exist_ok=True)
    for seed, split in enumerate(("train", "valid")):
        found = mpii_list(people, seed)
        (root / "annot" / f"{split}.json").write_text(json.dumps(found))
        for index, person in enumerate(found):
            photograph(root / "images" / person["image"], seed=index)
    joints = np.array([person["joints"] for person in found]).transpose(1, 2, 0)
    missing = 1.0 - np.array([person["joints_vis"] for person in found]).T
    heads = np.tile(np.array([[10.0, 10.0], [13.0, 14.0]])[..., None], people)
    scipy.io.savemat(
        root / "annot" / "gt_valid.mat",
        {
            "dataset_joints": np.array([list(MPII16.joints)], dtype=object),
            "jnt_missing": missing,
            "pos_gt_src": joints,
            "headboxes_src": heads,
        },
    )
    return root


STANDING = {
    "pelvis": (0, 0, 0.95),
    "right_hip": (0.13, 0, 0.95),
    "right_knee": (0.14, 0.02, 0.5),
    "right_ankle": (0.15, 0, 0.06),
    "left_hip": (-0.13, 0, 0.95),
    "left_knee": (-0.14, 0.02, 0.5),
    "left_ankle": (-0.15, 0, 0.06),
    "spine": (0, -0.02, 1.18),
    "thorax": (0, -0.03, 1.42),
    "nose": (0, 0.08, 1.52),
    "head": (0, 0, 1.66),
    "left_shoulder": (-0.17, -0.02, 1.38),
    "left_elbow": (-0.22, 0, 1.1),
    "left_wrist": (-0.22, 0.1, 0.86),
    "right_shoulder": (0.17, -0.02, 1.38),
    "right_elbow": (0.22, 0, 1.1),
    "right_wrist": (0.22, 0.1, 0.86),
}
"""A standing person who looks along +y: world metres, z up, so that the right side is at +x."""


def motion(frames: int, seed: int = 0) -> np.ndarray:
    """A person of fixed bones who turns and walks a little, H36M17, world metres, (T, 17, 3)."""
    body = np.array([STANDING[name] for name in H36M17.joints])
    rng = np.random.default_rng(seed)
    time = np.arange(frames) / 50.0
    turn = rng.uniform(0, 6) + 0.5 * time
    cos, sin, zero = np.cos(turn), np.sin(turn), np.zeros(frames)
    spin = np.stack([cos, -sin, zero, sin, cos, zero, zero, zero, zero + 1], -1).reshape(-1, 3, 3)
    path = np.stack([0.3 * np.sin(time), 0.2 * time % 1.0, zero], -1)[:, None]
    return (np.einsum("tij,nj->tni", spin, body) + path).astype(np.float32)


def _boxed(value: object) -> np.ndarray:
    """A value as the 0-d array of objects that np.savez makes of a dict."""
    box = np.empty((), object)
    box[()] = value
    return box


def human36m(root: Path, subjects: tuple[str, ...] = ("S1", "S5", "S9", "S11")) -> Path:
    """VideoPose3D's two archives: 32 points in world metres, and 17 joints in pixels by 4 cameras.

    The detections are exact, one frame longer than the motion, and 1 pixel to the right.
    """
    root.mkdir(parents=True, exist_ok=True)
    cameras = human36m_cameras()
    positions: dict = {}
    detected: dict = {}
    for subject_index, subject in enumerate(subjects):
        positions[subject], detected[subject] = {}, {}
        for index, action in enumerate(("Sitting 1", "SittingDown", "Walking 1", "TakingPhoto")):
            joints3d = motion(12 + index, seed=10 * subject_index + index)
            points = np.zeros((len(joints3d), 32, 3), np.float32)
            points[:, KEPT] = joints3d
            positions[subject][action] = points
            views = [
                project(world_to_camera(joints3d, camera), camera) + np.array([1, 0])
                for camera in cameras[subject]
            ]
            detected[subject][action] = [
                np.concatenate([view, view[-1:]]).astype(np.float32) for view in views
            ]
    about = {"num_joints": 17, "keypoints_symmetry": [list(H36M17.left), list(H36M17.right)]}
    np.savez_compressed(root / "data_3d_h36m.npz", positions_3d=_boxed(positions))
    np.savez_compressed(
        root / "data_2d_h36m_cpn_ft_h36m_dbb.npz",
        positions_2d=_boxed({**detected, "S2": {}}),
        metadata=_boxed(about),
    )
    return root
