"""Benchmark numbers: worked by hand, against pycocotools, and added up over processes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.metrics.joint_subsets import evaluated_joints, joints_3dpck
from pipeline.metrics.oks import AP_NAMES, SIGMAS, OksAP, oks, oks_ap, oks_nms, rescore
from pipeline.metrics.pck import PCK3D, PCKh, PCKPerSource, pck3d
from pipeline.skeleton import COCO17, H36M17, MPI3DHP17, MPII16


def test_pck_per_source_by_hand():
    metric = PCKPerSource(("photos", "renderings"), ("pelvis", "left_wrist", "right_knee"), (0.1,))
    target = torch.zeros(3, 3, 2)
    predicted = torch.tensor([[3.0, 0], [0, 9], [0, 12]]).repeat(3, 1, 1)
    scale = torch.tensor([100.0, 100.0, 40.0])  # limits of 10, 10 and 4 pixels
    counted = torch.tensor([[1, 1, 1], [1, 0, 1], [1, 1, 0]])
    for i, source in enumerate((0, 1, 0)):
        part = slice(i, i + 1)
        metric.update(
            torch.tensor([source]), predicted[part], target[part], scale[part], counted[part]
        )
    photos, renderings = (dict(zip(metric.columns, row, strict=True)) for row in metric.compute())
    found = {"source": "photos", "images": 2, "joints": 5, "pck@0.1": 60.0}
    assert photos == {**found, "limb joints": 3, "limb pck@0.1": pytest.approx(100 / 3)}
    found = {"source": "renderings", "images": 1, "joints": 2, "pck@0.1": 50.0}
    assert renderings == {**found, "limb joints": 1, "limb pck@0.1": 0.0}


def test_14_joints_count_and_spine_pelvis_and_head_do_not():
    left_out = set(range(17)) - set(joints_3dpck())
    assert {MPI3DHP17.joints[j] for j in left_out} == {"pelvis", "spine", "head"}
    assert {H36M17.joints[j] for j in set(range(17)) - set(joints_3dpck(H36M17))} == {
        "pelvis",
        "spine",
        "nose",
    }
    with pytest.raises(DataError, match="head, thorax"):
        joints_3dpck(COCO17)


def test_evaluated_joints_are_17_16_or_14_with_the_root_or_without():
    def left_out(skeleton, *rest, **root):
        kept = evaluated_joints(skeleton, *rest, **root)
        return {name for j, name in enumerate(skeleton.joints) if j not in kept}

    assert left_out(H36M17, 17) == set()
    assert left_out(H36M17, 16) == {"nose"}
    assert left_out(H36M17, 14) == left_out(H36M17, 14, root=False) == {"pelvis", "spine", "nose"}
    assert left_out(H36M17, 17, root=False) == {"pelvis"}
    assert left_out(MPI3DHP17, 16) == {"head"}
    with pytest.raises(DataError, match="COCO17 has 16 of the 14"):
        evaluated_joints(COCO17, 14)


def test_an_error_of_150_mm_is_not_below_150_mm():
    target = np.zeros((1, 17, 3))
    for error, share in [(0.1499, 1.0), (0.15, 0.0), (0.1501, 0.0)]:
        assert pck3d(target + np.array([0, 0, error]), target)[0] == share
    far = target.copy()
    far[:, [MPI3DHP17.index(name) for name in ("pelvis", "spine", "head")]] = 9
    assert pck3d(far, target)[0] == 1.0


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31))
def test_auc_is_the_mean_over_31_thresholds(seed):
    rng = np.random.default_rng(seed)
    predicted, target = rng.normal(0, 0.08, (2, 5, 17, 3))
    error = 1000 * np.linalg.norm(predicted - target, axis=-1)[:, list(joints_3dpck())]
    shares = [(error < threshold).mean() for threshold in range(0, 151, 5)]
    np.testing.assert_allclose(pck3d(predicted, target), [shares[-1], np.mean(shares)], atol=1e-12)


def test_frames_that_are_not_valid_do_not_count_and_parts_add_up():
    target = torch.zeros(4, 17, 3)
    predicted = target.clone()
    predicted[2:, :, 0] = 1.0
    whole, parts = PCK3D(), PCK3D()
    whole.update(predicted, target, torch.tensor([1, 1, 1, 0]))
    parts.update(predicted[:2], target[:2])
    parts.update(predicted[2:3], target[2:3])
    assert whole.compute() == parts.compute()
    assert whole.compute()["pck3d@150mm"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("shape", [(4, 17), (17,), (1,), (4, 1)])
def test_valid_of_another_shape_is_an_error(shape):
    poses = torch.zeros(4, 17, 3)
    with pytest.raises(ValueError, match=r"valid is .* but must be \(4,\) here"):
        PCK3D().update(poses, poses, torch.ones(shape))
    with pytest.raises(ValueError, match=r"target is \(1, 17, 3\), but must be \(4, 17, 3\) here"):
        pck3d(poses, poses[:1])
    with pytest.raises(ValueError, match=r"predicted is \(4, 18, 3\)"):
        pck3d(torch.zeros(4, 18, 3), torch.zeros(4, 18, 3))


@pytest.mark.parametrize("name", ["target", "head", "labelled"])
def test_pckh_raises_an_error_for_what_would_be_broadcast(name):
    people = torch.zeros(3, 16, 2)
    given = {"target": people, "head": torch.ones(3), "labelled": torch.ones(3, 16)}
    given[name] = given[name][:1]
    with pytest.raises(ValueError, match=f"{name} is "):
        PCKh().update(people, **given)


def test_pckh_by_hand():
    target = torch.full((2, 16, 2), 50.0)
    predicted = target.clone()
    head = torch.tensor([10.0, 20.0])  # sizes 6 and 12, limits 3 and 6 pixels
    predicted[0, MPII16.index("left_wrist"), 0] += 3.0  # exactly on the limit: found
    predicted[0, MPII16.index("right_wrist"), 0] += 3.5  # beyond
    predicted[1, MPII16.index("right_wrist"), 1] -= 5.0  # within
    predicted[1, MPII16.index("pelvis")] = torch.nan  # does not count in the mean
    labelled = torch.ones(2, 16)
    labelled[1, MPII16.index("head_top")] = 0
    metric = PCKh()
    metric.update(predicted, target, head, labelled)
    report = metric.compute()
    assert report["wrist"] == pytest.approx(0.75)
    assert report["head"] == 1.0
    assert report["mean"] == pytest.approx(26 / 27)


def test_oks_by_hand():
    joints = np.zeros((17, 2))
    moved = joints.copy()
    moved[9] = [3.0, 4.0]  # left wrist, sigma 0.062: exp(-25 / (2 * 400 * 0.124^2))
    value = oks(joints, moved[None], np.array([400.0]))[0]
    assert value == pytest.approx((16 + np.exp(-25 / (800 * 0.124**2))) / 17, abs=1e-12)


def test_the_better_of_two_alike_people_is_kept():
    rng = np.random.default_rng(0)
    one = rng.uniform(0, 100, (17, 2))
    people = np.stack([one, one + 0.5, one + 60])
    kept = oks_nms(people, np.array([0.4, 0.9, 0.2]), np.full(3, 5000.0))
    assert kept.tolist() == [1, 2]


def test_a_person_is_rescored_by_the_joints_above_the_threshold():
    scores = rescore(np.array([0.5, 0.8]), np.array([[0.9, 0.5, 0.1], [0.2, 0.1, 0.0]]))
    np.testing.assert_allclose(scores, [0.35, 0.0])


def crowd(seed=0, images=12):
    """Annotations with crowds, unlabelled people and empty images, and many detections."""
    rng = np.random.default_rng(seed)
    annotations, found = [], []
    for image in range(1, images + 1):
        for _ in range(0 if image % 4 == 0 else int(rng.integers(1, 4))):
            side = rng.uniform(20, 160)
            corner = rng.uniform(0, 400, 2)
            joints = corner + rng.uniform(0, side, (17, 2))
            visible = rng.integers(0, 3, 17)
            visible[0] = 2
            visible *= rng.uniform() > 0.1
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": 1,
                    "iscrowd": int(rng.uniform() < 0.1),
                    "area": 0.6 * side**2,
                    "bbox": [*corner, side, side],
                    "num_keypoints": int((visible > 0).sum()),
                    "keypoints": np.c_[joints, visible].ravel().tolist(),
                }
            )
            for _ in range(int(rng.integers(0, 10))):
                noise = rng.normal(0, rng.uniform(0, 0.06) * side, (17, 2))
                found.append((image, joints + noise, rng.uniform(), side**2))
        for _ in range(25 if image == 3 else 1):  # more than 20 detections
            found.append((image, rng.uniform(0, 500, (17, 2)), rng.uniform(), 900.0))
    document = {
        "info": {},
        "images": [{"id": i, "width": 640, "height": 640} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person", "keypoints": list(COCO17.joints)}],
    }
    ids, joints, scores, areas = zip(*found, strict=True)
    flat = np.concatenate([np.stack(joints), np.ones((len(ids), 17, 1))], axis=2)
    return document, np.array(ids), flat, np.array(scores), np.array(areas)


def similarity(person, found):
    """OKS of detections with one person of the annotations, (N,)."""
    labels = np.array(person["keypoints"], float).reshape(17, 3)
    seen = labels[:, 2] > 0
    if seen.any():
        apart = (found[:, seen, :2] - labels[seen, :2]) ** 2
    else:  # nobody knows where the joints are: how far outside the box, three times as large
        x, y, w, h = person["bbox"]
        low, high = np.array([x - w, y - h]), np.array([x + 2 * w, y + 2 * h])
        apart = np.maximum(np.maximum(low - found[..., :2], found[..., :2] - high), 0) ** 2
        seen[:] = True
    spread = 2 * (2 * SIGMAS[seen]) ** 2 * (person["area"] + np.spacing(1))
    return np.exp(-apart.sum(-1) / spread).mean(-1)


def taken(similar, ignored, crowd, threshold):
    """Whom each detection of an image is, best score first; -1 for nobody, (N,)."""
    order = np.argsort(ignored, kind="stable")
    free, found = np.ones(len(order), bool), np.full(len(similar), -1)
    for d, row in enumerate(similar):
        for group in (order[~ignored[order]], order[ignored[order]]):
            usable = [g for g in group if (free[g] or crowd[g]) and row[g] >= threshold]
            if usable and found[d] < 0:
                found[d] = max(reversed(usable), key=lambda g: row[g])
        if found[d] >= 0:
            free[found[d]] = False
    return found


def independent_numbers(document, ids, joints, scores):
    """COCO's ten numbers from its definition, without pycocotools."""
    images = []
    for image in document["images"]:
        people = [a for a in document["annotations"] if a["image_id"] == image["id"]]
        mine = np.flatnonzero(ids == image["id"])
        mine = mine[np.argsort(-scores[mine], kind="stable")][:20]
        similar = np.stack([similarity(person, joints[mine]) for person in people] or [[]], 1)
        images.append((people, mine, similar.reshape(len(mine), len(people))))
    extent = np.ptp(joints[..., :2], axis=1).prod(-1)
    thresholds = np.linspace(0.5, 0.95, 10)
    precision, recall = np.zeros((3, 10, 101)), np.zeros((3, 10))
    for size, (low, high) in enumerate([(0, 1e10), (32**2, 96**2), (96**2, 1e10)]):
        for t, threshold in enumerate(thresholds):
            rows, wanted = [], 0
            for people, mine, similar in images:
                area = np.array([a["area"] for a in people])
                crowd = np.array([a["iscrowd"] for a in people], bool)
                unlabelled = np.array([a["num_keypoints"] == 0 for a in people], bool)
                ignored = crowd | unlabelled | (area < low) | (area > high)
                wanted += (~ignored).sum()
                for index, who in zip(mine, taken(similar, ignored, crowd, threshold), strict=True):
                    outside = not low <= extent[index] <= high
                    if not (ignored[who] if who >= 0 else outside):
                        rows.append((scores[index], who >= 0))
            right = np.cumsum([hit for _, hit in sorted(rows, key=lambda row: -row[0])])
            exact = right / np.arange(1, len(rows) + 1)
            exact = np.maximum.accumulate(exact[::-1])[::-1]
            places = np.searchsorted(right / wanted, np.linspace(0, 1, 101), side="left")
            inside = places < len(exact)
            precision[size, t, inside] = exact[places[inside]]
            recall[size, t] = right[-1] / wanted
    both = np.stack([precision.mean(-1), recall])
    every, medium, large = both.transpose(1, 0, 2)
    parts = [every.mean(-1), every[:, 0], every[:, 5], medium.mean(-1), large.mean(-1)]
    return dict(zip(AP_NAMES, np.stack(parts, 1).ravel().tolist(), strict=True))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cocos_ten_numbers_are_those_of_the_definition(seed):
    document, ids, joints, scores, _ = crowd(seed)
    numbers = oks_ap(document, ids, joints, scores)
    assert tuple(numbers) == AP_NAMES
    assert numbers == pytest.approx(independent_numbers(document, ids, joints, scores), abs=1e-5)
    assert 0.05 < numbers["AP"] < numbers["AP50"]
    assert min(numbers.values()) > 0.02


def test_perfect_people_give_one(tmp_path):
    document, *_ = crowd(4)
    truth = [a for a in document["annotations"] if a["num_keypoints"] and not a["iscrowd"]]
    joints = np.array([a["keypoints"] for a in truth]).reshape(-1, 17, 3)
    ids = np.array([a["image_id"] for a in truth])
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(document))
    assert oks_ap(path, ids, joints, np.ones(len(ids)))["AP"] == pytest.approx(1.0)
    with pytest.raises(DataError, match="no image 99"):
        oks_ap(path, np.array([99]), joints[:1], np.ones(1))


def test_nobody_found_is_zero_where_people_are_labelled_and_minus_one_where_none_are():
    document, *_ = crowd(4)
    nobody = np.zeros(0, np.int64), np.zeros((0, 17, 3)), np.zeros(0)
    assert set(oks_ap(document, *nobody).values()) == {0.0}
    for person in document["annotations"]:
        person["area"] = 50.0**2  # all of a medium size
    numbers = oks_ap(document, *nobody)
    assert (numbers["AP"], numbers["AP-M"], numbers["AP-L"], numbers["AR-L"]) == (0, 0, -1, -1)
    assert set(oks_ap({**document, "annotations": []}, *nobody).values()) == {-1.0}


def test_oks_ap_does_not_depend_on_the_order_of_arrival(tmp_path):
    document, ids, joints, scores, areas = crowd(5)
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(document))
    reports = []
    for order in (np.arange(len(ids)), np.random.default_rng(0).permutation(len(ids))):
        metric = OksAP(str(path), nms=0.9)
        for part in np.array_split(order, 3):
            metric.update(*(torch.as_tensor(x[part]) for x in (ids, joints, scores, areas)))
        reports.append(metric.compute())
    assert reports[0] == reports[1]
    everybody = OksAP(str(path), nms=None)
    everybody.update(*(torch.as_tensor(x) for x in (ids, joints, scores, areas)))
    assert everybody.compute() == oks_ap(path, ids, joints, scores)
    assert everybody.compute() != reports[0]


def _counts_in_two(rank, folder):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    metric = OksAP(f"{folder}/truth.json")
    people = slice(None) if rank == 0 else slice(0)  # the other process has nobody
    metric.update(*(torch.as_tensor(part[people]) for part in crowd(6)[1:]))
    near = PCK3D()
    rng = np.random.default_rng(0)
    predicted, target = torch.as_tensor(rng.normal(0, 0.1, (2, 7, 17, 3)))
    near.update(predicted[rank::2], target[rank::2])
    report = {**metric.compute(), **near.compute()}
    if rank == 1:
        Path(folder, "report.json").write_text(json.dumps(report))
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # fork, from 3.12 on
def test_two_processes_count_as_one(tmp_path):
    document, *parts = crowd(6)
    (tmp_path / "truth.json").write_text(json.dumps(document))
    import torch.multiprocessing

    torch.multiprocessing.start_processes(
        _counts_in_two, (str(tmp_path),), nprocs=2, start_method="fork"
    )
    metric = OksAP(str(tmp_path / "truth.json"))
    metric.update(*(torch.as_tensor(x) for x in parts))
    predicted, target = np.random.default_rng(0).normal(0, 0.1, (2, 7, 17, 3))
    near = PCK3D()
    near.update(torch.as_tensor(predicted), torch.as_tensor(target))
    expected = {**metric.compute(), **near.compute()}
    assert json.loads((tmp_path / "report.json").read_text()) == expected
