"""Writers of tiny archives in the true layouts of the field's data sets: the formats, as code."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from pipeline.skeleton import COCO17, MPII16


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
