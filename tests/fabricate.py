"""Writers of tiny data sets in the original layouts and formats."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import cv2
import numpy as np

from pipeline.camera import Camera, human36m_cameras, project, world_to_camera
from pipeline.datasets.human36m import CAMERAS, KEPT
from pipeline.skeleton import COCO17, H36M17, MPI3DHP17, MPII16, make_conversion


def photograph(path: Path, width: int = 64, height: int = 48, seed: int = 0) -> Path:
    """A smooth coloured JPEG or PNG file."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (4, 5, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), cv2.resize(small, (width, height)))
    return path


def coco_document(people: int = 4, width: int = 64, height: int = 48, seed: int = 0) -> dict:
    """COCO's annotation file: one person per image, an image without people, and a crowd."""
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
    """COCO 2017 as unpacked, and boxes of a person detector for its validation images."""
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
    """MPII with HRNet's lists and the MATLAB file for PCKh."""
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


def mpii_coco(root: Path, people: int = 4) -> Path:
    """MPII in COCO's format with 16 joints, as PoseNet shares it: pixels counted from 0."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for seed, split in enumerate(("train", "test")):
        document = coco_document(people, seed=seed)
        document["categories"][0]["keypoints"] = list(MPII16.joints)
        for person in document["annotations"]:
            person["keypoints"] = person["keypoints"][:48]
            person["num_keypoints"] = sum(flag > 0 for flag in person["keypoints"][2::3])
        (root / "annotations" / f"{split}.json").write_text(json.dumps(document))
        for image in document["images"]:
            photograph(root / "images" / image["file_name"], seed=image["id"])
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
"""A standing person who faces +y, so that the right side is at +x: world metres, z up."""


def motion(frames: int, seed: int = 0) -> np.ndarray:
    """A person with constant bone lengths who turns and walks, H36M17, world metres, (T, 17, 3)."""
    body = np.array([STANDING[name] for name in H36M17.joints])
    rng = np.random.default_rng(seed)
    time = np.arange(frames) / 50.0
    turn = rng.uniform(0, 6) + 0.5 * time
    cos, sin, zero = np.cos(turn), np.sin(turn), np.zeros(frames)
    spin = np.stack([cos, -sin, zero, sin, cos, zero, zero, zero, zero + 1], -1).reshape(-1, 3, 3)
    path = np.stack([0.3 * np.sin(time), 0.2 * time % 1.0, zero], -1)[:, None]
    return (np.einsum("tij,nj->tni", spin, body) + path).astype(np.float32)


def boxed(value: object) -> np.ndarray:
    """A 0-d array of objects with one value, as np.savez stores a dict."""
    box = np.empty((), object)
    box[()] = value
    return box


H36M_ACTIONS = ("Sitting 1", "SittingDown", "Walking 1", "TakingPhoto")


def human36m(
    root: Path,
    subjects: tuple[str, ...] = ("S1", "S5", "S9", "S11"),
    actions: tuple[str, ...] = H36M_ACTIONS,
) -> Path:
    """VideoPose3D's two archives: 32 points in world metres, and 17 joints in pixels of 4 cameras.

    The detections are exact, one frame longer than the motion, and 1 pixel to the right.
    """
    root.mkdir(parents=True, exist_ok=True)
    cameras = human36m_cameras()
    positions: dict = {}
    detected: dict = {}
    for subject_index, subject in enumerate(subjects):
        positions[subject], detected[subject] = {}, {}
        for index, action in enumerate(actions):
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
    np.savez_compressed(root / "data_3d_h36m.npz", positions_3d=boxed(positions))
    np.savez_compressed(
        root / "data_2d_h36m_cpn_ft_h36m_dbb.npz",
        positions_2d=boxed({**detected, "S2": {}}),
        metadata=boxed(about),
    )
    return root


def _seen(joints3d: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Joints in pixels, and in the camera frame in metres."""
    points = world_to_camera(joints3d, camera)
    return project(points, camera), points


PINHOLE = Camera(
    rotation=np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
    centre=np.array([0.2, -4.0, 1.1]),
    focal=np.array([1500.0, 1490.0]),
    principal=np.array([1020.0, 1030.0]),
    size=(2048, 2048),
    distortion=np.zeros(5),
)
"""A camera that looks along +y at `motion`."""

TO_3DHP = make_conversion(H36M17, MPI3DHP17)


def motionbert(root: Path, frames: int = 30) -> Path:
    """MotionBERT's clips: pickles in units of the image, from a parallel projection."""
    for split, count in {"train": 3, "test": 2}.items():
        (root / split).mkdir(parents=True)
        for number in range(count):
            points = world_to_camera(motion(frames, seed=number), PINHOLE) - np.array([0, 0, 4.0])
            label = (points / 2.5).astype(np.float32)
            joints = np.concatenate([label[..., :2], np.ones((frames, 17, 1), np.float32)], axis=-1)
            clip = {"data_input": joints, "data_label": label - label[:, :1] * [0, 0, 1]}
            (root / split / f"{number:08d}.pkl").write_bytes(pickle.dumps(clip))
    return root


def p_stmo(root: Path) -> Path:
    """P-STMO's archives of MPI-INF-3DHP: millimetres in the camera frame."""
    root.mkdir(parents=True, exist_ok=True)
    train: dict = {}
    for seed, (name, fps) in enumerate({"S1 Seq1": 25, "S1 Seq2": 50, "S2 Seq1": 25}.items()):
        pixels, points = _seen(TO_3DHP.joints(motion(9 + seed, seed)), PINHOLE)
        video = {"data_2d": pixels.astype(np.float32), "data_3d": 1000 * points}
        train[name] = [{"0": video, "8": video}, fps]
    test = {}
    for seed, name in enumerate(("TS1", "TS5")):
        pixels, points = _seen(TO_3DHP.joints(motion(7, seed)), PINHOLE)
        valid = np.arange(7) != 3 + seed
        test[name] = {"data_2d": pixels, "data_3d": 1000 * points, "valid": valid.astype(np.uint8)}
    np.savez_compressed(root / "data_train_3dhp.npz", data=boxed(train))
    np.savez_compressed(root / "data_test_3dhp.npz", data=boxed(test))
    return root


def _mmpose_rows(names: list[str], pixels: np.ndarray, points: np.ndarray) -> dict:
    low, high = pixels.min(axis=1), pixels.max(axis=1)
    ones = np.ones((*pixels.shape[:2], 1))
    return {
        "imgname": np.array(names),
        "center": (low + high) / 2,
        "scale": 1.2 * (high - low).max(axis=1) / 200,
        "part": np.concatenate([pixels, ones], axis=2),
        "S": np.concatenate([points, ones], axis=2),
    }


def _joined(parts: list[dict]) -> dict:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _facts(camera: Camera, *, to_world: bool) -> dict:
    """A camera as mmpose pickles it."""
    k1, k2, p1, p2, k3 = camera.distortion
    return {
        "R": camera.rotation.T if to_world else camera.rotation,
        "T": (camera.centre if to_world else -camera.rotation @ camera.centre)[:, None],
        "f": camera.focal[:, None],
        "c": camera.principal[:, None],
        "k": np.array([[k1], [k2], [k3]]),
        "p": np.array([[p1], [p2]]),
        "w": camera.size[0],
        "h": camera.size[1],
    }


def human36m_mmpose(root: Path) -> Path:
    """mmpose's Human3.6M: an npz file per split, a pickle of cameras, an image per row."""
    folder = root / "annotation_body3d"
    (folder / "fps50").mkdir(parents=True)
    cameras, kept = human36m_cameras(), {}
    for split, subjects in {"train": ("S1", "S5"), "test": ("S9",)}.items():
        rows = []
        for seed, subject in enumerate(subjects):
            for index in (0, 3):
                camera = cameras[subject][index]
                kept[subject, CAMERAS[index]] = _facts(camera, to_world=True)
                pixels, points = _seen(motion(6, seed), camera)
                video = f"{subject}_Directions_1.{CAMERAS[index]}"
                names = [f"{subject}/{video}/{video}_{frame:06d}.jpg" for frame in range(1, 7)]
                rows.append(_mmpose_rows(names, pixels, points))
                for name in names:
                    photograph(root / "images" / name, *camera.size)
        np.savez(folder / "fps50" / f"h36m_{split}.npz", **_joined(rows))
    (folder / "cameras.pkl").write_bytes(pickle.dumps(kept))
    return root


def human36m_posenet(root: Path, *, shifted: bool = False) -> Path:
    """PoseNet's Human3.6M: three json files per subject; t is the centre or a translation."""
    (root / "annotations").mkdir(parents=True)
    cameras = human36m_cameras()
    for subject in ("S1", "S5", "S6", "S7", "S8", "S9", "S11"):
        number = subject.removeprefix("S")
        joints3d = motion(11, seed=int(number))
        images, people, views = [], [], {}
        for view in range(4):
            camera = dataclasses.replace(cameras[subject][view], distortion=np.zeros(5))
            centre = 1000 * camera.centre
            views[str(view + 1)] = {
                "R": camera.rotation.tolist(),
                "t": (-camera.rotation @ centre if shifted else centre).tolist(),
                "f": camera.focal.tolist(),
                "c": camera.principal.tolist(),
            }
            pixels, _ = _seen(joints3d, camera)
            folder = f"s_{int(number):02d}_act_02_subact_01_ca_{view + 1:02d}"
            for frame in range(11):
                low, high = pixels[frame].min(axis=0), pixels[frame].max(axis=0)
                middle, size = (low + high) / 2, 1.2 * (high - low)
                name = f"{folder}/{folder}_{frame + 1:06d}.jpg"
                if frame % 5 == 0:
                    photograph(root / "images" / name, *camera.size)
                images.append(
                    {
                        "id": len(images),
                        "file_name": name,
                        "width": camera.size[0],
                        "height": camera.size[1],
                        "subject": int(number),
                        "action_name": "Directions",
                        "action_idx": 2,
                        "subaction_idx": 1,
                        "cam_idx": view + 1,
                        "frame_idx": frame,
                    }
                )
                people.append(
                    {
                        "id": len(people),
                        "image_id": len(people),
                        "keypoints_vis": [True] * 17,
                        "bbox": [*(middle - size / 2), *size],
                    }
                )
        poses = {"2": {"1": {str(f): (1000 * joints3d[f]).tolist() for f in range(11)}}}
        stem = f"annotations/Human36M_subject{number}"
        document = {"images": images, "annotations": people}
        (root / f"{stem}_data.json").write_text(json.dumps(document))
        (root / f"{stem}_camera.json").write_text(json.dumps(views))
        (root / f"{stem}_joint_3d.json").write_text(json.dumps(poses))
    return root


def mpi_inf_3dhp_mmpose(root: Path) -> Path:
    """mmpose's MPI-INF-3DHP: like its Human3.6M, but cameras map world to camera.

    Those of the test set have only c, f, w and h.
    """
    folder = root / "annotations"
    folder.mkdir(parents=True)
    for split, videos in {"train": ["S1_Seq1_Cam0", "S2_Seq1_Cam8"], "test": ["TS1"]}.items():
        rows = []
        for seed, video in enumerate(videos):
            pixels, points = _seen(TO_3DHP.joints(motion(5, seed)), PINHOLE)
            names = [f"{video}_{frame:06d}.jpg" for frame in range(1, 6)]
            rows.append(_mmpose_rows(names, pixels, points))
            for name in names:
                photograph(root / "images" / name, *PINHOLE.size)
        name = "train" if split == "train" else "test_valid"
        np.savez(folder / f"mpi_inf_3dhp_{name}.npz", **_joined(rows))
        cameras = {video: _facts(PINHOLE, to_world=False) for video in videos}
        if split == "test":
            cameras = {v: {key: facts[key] for key in "cfwh"} for v, facts in cameras.items()}
        (folder / f"cameras_{split}.pkl").write_bytes(pickle.dumps(cameras))
    return root


def amass(root: Path) -> tuple[Path, Path]:
    """A recording of AMASS and a body model of 23 vertices: the joints, and the top of the head.

    In the rest pose y is up and the body faces z; the recording turns it so that z is up.
    """
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    parents = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19)
    surface = np.array(
        [
            *([0, 0, 0], [0.09, -0.06, 0], [-0.09, -0.06, 0], [0, 0.11, 0]),
            *([0.1, -0.48, 0.01], [-0.1, -0.48, 0.01], [0, 0.24, 0], [0.1, -0.88, -0.02]),
            *([-0.1, -0.88, -0.02], [0, 0.3, 0], [0.1, -0.92, 0.1], [-0.1, -0.92, 0.1]),
            *([0, 0.5, -0.02], [0.08, 0.42, 0], [-0.08, 0.42, 0], [0, 0.6, 0.04]),
            *([0.18, 0.45, 0], [-0.18, 0.45, 0], [0.22, 0.2, 0], [-0.22, 0.2, 0]),
            *([0.23, -0.05, 0.03], [-0.23, -0.05, 0.03], [0, 0.75, 0.03]),
        ]
    )
    poses = np.cumsum(rng.normal(0, 0.01, (300, 156)), axis=0)[:, :66]  # no hands
    poses[:, :3] = [np.pi / 2, 0, 0]
    np.savez(
        root / "model.npz",
        v_template=surface,
        shapedirs=rng.normal(0, 0.001, (23, 3, 16)),
        posedirs=np.zeros((23, 3, 9 * 21)),
        J_regressor=np.eye(22, 23),
        weights=np.vstack([np.eye(22), np.eye(22)[15]]),
        kintree_table=np.array([(2**32 - 1, *parents[1:]), range(22)], dtype=np.int64),
    )
    np.savez(
        root / "0005_Walking001_poses.npz",
        poses=poses,
        trans=np.cumsum(rng.normal(0, 0.01, (300, 3)), axis=0),
        betas=rng.normal(0, 1, 16),
        dmpls=np.zeros((300, 8)),
        mocap_framerate=np.array(60.0),
        gender=np.array("neutral"),
    )
    return root / "0005_Walking001_poses.npz", root / "model.npz"


ASF = """# AST/ASF file
:version 1.10
:name arm
:units
  mass 1.0
  length 0.45
  angle deg
:root
   order TX TY TZ RX RY RZ
   axis XYZ
   position 0 0 0
   orientation 0 0 0
:bonedata
  begin
     id 1
     name upper
     direction 1 0 0
     length 2.0
     axis 0 0 90 XYZ
     dof rx ry rz
     limits (-160.0 20.0)
            (-70.0 70.0)
            (-60.0 70.0)
  end
  begin
     id 2
     name lower
     direction 1 0 0
     length 1.5
     axis 0 0 0 XYZ
     dof rz
  end
  begin
     id 3
     name hand
     direction 0 1 0
     length 0.5
     axis 0 0 0 XYZ
  end
:hierarchy
  begin
    root upper
    upper lower
    lower hand
  end
"""
"""An arm of three bones."""

AMC = """#!OML:ASF arm
:FULLY-SPECIFIED
:DEGREES
1
root 1 2 3 0 0 0
upper 0 0 0
lower 0
2
root 0 0 0 0 0 90
upper 0 0 0
lower 90
3
root 0 0 0 0 0 0
upper 90 0 0
lower 0
"""
"""Three frames of the arm."""

_HALF = {
    "hipjoint": ("root", (0.1, -0.02, 0)),
    "femur": ("hipjoint", (0.01, -0.43, 0.02)),
    "tibia": ("femur", (0, -0.42, -0.02)),
    "foot": ("tibia", (0, -0.05, 0.13)),
    "clavicle": ("thorax", (0.16, -0.03, 0)),
    "humerus": ("clavicle", (0.05, -0.27, 0)),
    "radius": ("humerus", (0.02, -0.24, 0.05)),
    "wrist": ("radius", (0, -0.08, 0.01)),
}
_MIDDLE = {
    "lowerback": ("root", (0, 0.12, -0.01)),
    "upperback": ("lowerback", (0, 0.12, 0)),
    "thorax": ("upperback", (0, 0.12, 0)),
    "lowerneck": ("thorax", (0, 0.06, 0)),
    "upperneck": ("lowerneck", (0, 0.05, 0.02)),
    "head": ("upperneck", (0, 0.14, 0)),
}
_TURNS = {"femur": "rx ry rz", "tibia": "rx", "humerus": "rx ry rz", "lowerback": "rx ry rz"}


def acclaim(root: Path, frames: int = 60) -> tuple[Path, Path]:
    """A skeleton with the bones of CMU's ASF files, and a recording of it walking."""
    root.mkdir(parents=True, exist_ok=True)
    unit = 0.0254 / 0.45
    bones = dict(_MIDDLE)
    for side, sign in (("l", 1), ("r", -1)):
        for name, (parent, (x, y, z)) in _HALF.items():
            bones[side + name] = (side + parent if parent in _HALF else parent, (sign * x, y, z))
    lines = [*ASF.split(":bonedata")[0].splitlines(), ":bonedata"]
    moving = []
    for number, (name, (_, end)) in enumerate(bones.items(), 1):
        length = float(np.linalg.norm(end))
        lines += ["begin", f"id {number}", f"name {name}"]
        lines += [f"direction {' '.join(f'{part / length:.9f}' for part in end)}"]
        lines += [f"length {length / unit:.9f}", "axis 0 0 0 XYZ"]
        turns = _TURNS.get(name, _TURNS.get(name[1:]))
        if turns:
            lines.append(f"dof {turns}")
            moving.append((name, len(turns.split())))
        lines.append("end")
    lines += [":hierarchy", "begin"]
    for parent in ("root", *bones):
        children = [name for name, (above, _) in bones.items() if above == parent]
        lines += [f"{parent} {' '.join(children)}"] if children else []
    (root / "01.asf").write_text("\n".join([*lines, "end", ""]))
    walk = AMC.splitlines()[:3]
    for frame in range(frames):
        swing = 20 * np.sin(frame / 8)
        walk += [str(frame + 1), f"root 0 {0.95 / unit:.6f} {0.01 * frame / unit:.6f} 0 0 0"]
        for name, count in moving:
            turn = swing if name.startswith("l") else -swing
            walk.append(" ".join([name, *(f"{part:.6f}" for part in (turn, 0.0, 0.0)[:count])]))
    (root / "01_01.amc").write_text("\n".join([*walk, ""]))
    return root / "01.asf", root / "01_01.amc"
