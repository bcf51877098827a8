"""Validation recognises layouts and finds swapped sides, wrong units, wrong cameras."""

import dataclasses
import json

import fabricate
import numpy as np
import pytest
import stick_figures

from pipeline.camera import project, world_to_camera
from pipeline.datasets.body_checks import check_sequence
from pipeline.datasets.layouts import list_datasets, recognise_layouts
from pipeline.datasets.validate import validate
from pipeline.errors import DataError
from pipeline.mocap.body_facts import body_height, share_with_left_on_left
from pipeline.skeleton import H36M17
from pipeline.sources import Sequence


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEATLIFT_CACHE", str(tmp_path / "cache"))


WRITERS = {
    "Human3.6M, VideoPose3D npz": fabricate.human36m,
    "Human3.6M images, mmpose npz": fabricate.human36m_mmpose,
    "Human3.6M images, PoseNet json": fabricate.human36m_posenet,
    "MPI-INF-3DHP univ_annot3, P-STMO npz": fabricate.p_stmo,
    "MPI-INF-3DHP annot3, mmpose npz": fabricate.mpi_inf_3dhp_mmpose,
    "MotionBERT's clips": fabricate.motionbert,
    "COCO people": fabricate.coco,
    "MPII, HRNet's lists": fabricate.mpii,
    "MPII, COCO's format": fabricate.mpii_coco,
}


@pytest.mark.parametrize("layout", WRITERS)
def test_each_layout_is_recognised_and_read(tmp_path, layout):
    folder = WRITERS[layout](tmp_path / "set")
    assert [name for name, _ in recognise_layouts(folder)] == [layout]
    report = validate(folder)
    assert report.findings
    assert report.text().endswith(f"{report.faults} wrong")
    assert report.faults == 0, report.text()


HALVES = {
    "Human3.6M images, mmpose npz": ("h36m_train.npz", "h36m_test.npz"),
    "Human3.6M images, PoseNet json": ("*subject[15678]_*.json", "*subject9_* *subject11_*"),
    "MPI-INF-3DHP univ_annot3, P-STMO npz": ("data_train_3dhp.npz", "data_test_3dhp.npz"),
    "MPI-INF-3DHP annot3, mmpose npz": ("*_train.*", "*_test*"),
    "MotionBERT's clips": ("train/*.pkl", "test/*.pkl"),
    "COCO people": ("*_train2017.json", "*_val2017.json"),
    "MPII, HRNet's lists": ("train.json", "*valid.*"),
    "MPII, COCO's format": ("train.json", "test.json"),
}
"""Layout -> files of the training half and of the test half."""


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("layout", HALVES)
def test_half_a_data_set_is_read_with_what_it_has(tmp_path, layout, half):
    folder = WRITERS[layout](tmp_path / "set")
    for pattern in HALVES[layout][1 - half].split():
        for path in folder.rglob(pattern):
            path.unlink()
    assert [name for name, _ in recognise_layouts(folder)] == [layout]
    report = validate(folder)
    assert report.findings
    assert report.faults == 0, report.text()


def test_a_sound_archive_has_no_fault_and_its_facts_are_reported(tmp_path):
    report = validate(fabricate.human36m(tmp_path / "h36m"))
    assert report.faults == 0
    text = report.text()
    assert "S9/Walking 1/58860488: 14 frames, 50 Hz, H36M17, height 1.6" in text
    assert "detections cpn_ft_h36m_dbb: 64 videos, H36M17, 2D 1.00 px from projected 3D" in text


def test_the_error_about_an_unknown_folder_names_the_pages_with_the_layouts(tmp_path):
    with pytest.raises(
        DataError, match=r"no known layout; `heatlift docs data` .* `heatlift docs own_data`"
    ):
        validate(tmp_path)


def sequence(**changes):
    joints3d = fabricate.motion(30)
    pixels = project(world_to_camera(joints3d, fabricate.PINHOLE), fabricate.PINHOLE)
    sound = Sequence(
        "a", "S1", "Walking", fabricate.PINHOLE, 50.0, H36M17, joints3d, pixels.astype(np.float32)
    )
    return dataclasses.replace(sound, **changes)


def test_a_sound_sequence_has_no_fault():
    assert check_sequence(sequence()).faults == ()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda x: x[:, list(H36M17.swap)], "left and right are swapped"),
        (lambda x: x * np.array([-1, 1, 1], np.float32), "left and right are swapped"),
        (lambda x: x * 1000, "height of 1.6e"),
        (lambda x: x[:, np.random.default_rng(0).permutation(17)], "bones"),
        (lambda x: np.where(np.arange(30)[:, None, None] == 7, np.nan, x), "frame 7 pelvis"),
        (lambda x: x + np.float32(1.0), "do not belong together"),
    ],
)
def test_each_fault_is_named(change, fault):
    found = check_sequence(sequence(joints3d=change(fabricate.motion(30))))
    assert fault in "; ".join(found.faults).replace("e+03", "e")


def test_swapped_arms_are_found():
    joints3d = fabricate.motion(30)
    order = list(range(17))
    order[11:17] = order[14:17] + order[11:14]
    found = check_sequence(sequence(joints3d=joints3d[:, order]))
    assert any("on different sides" in fault for fault in found.faults)


def test_height_does_not_depend_on_the_pose():
    standing = fabricate.motion(1).astype(np.float64)
    lying = standing[..., [2, 0, 1]]
    assert body_height(standing, H36M17) == pytest.approx(body_height(lying, H36M17))
    assert 1.5 < body_height(standing, H36M17)[0] < 1.7
    assert (
        share_with_left_on_left(standing, H36M17) == share_with_left_on_left(lying, H36M17) == 1.0
    )


def test_joints_far_from_their_box_are_found(tmp_path):
    folder = fabricate.coco(tmp_path / "coco")
    path = folder / "annotations" / "person_keypoints_val2017.json"
    document = json.loads(path.read_text())
    for person in document["annotations"]:
        person["bbox"] = [0, 0, 3, 3]
    path.write_text(json.dumps(document))
    report = validate(folder)
    assert [f.name for f in report.findings if f.faults] == ["test"]
    assert "far from their person's box" in report.text()


@pytest.mark.parametrize(
    ("writer", "name"),
    [
        (fabricate.coco, "annotations/person_keypoints_val2017.json"),
        (fabricate.mpii_coco, "annotations/test.json"),
    ],
)
def test_a_photograph_whose_size_differs_from_the_annotations_is_found(tmp_path, writer, name):
    folder = writer(tmp_path)
    path = folder / name
    document = json.loads(path.read_text())
    image = document["images"][1]
    right = f"{image['width']}x{image['height']}"
    image["width"] = 9999
    path.write_text(json.dumps(document))
    report = validate(folder)
    assert [f.name for f in report.findings if f.faults] == ["test"]
    wrong = f"9999x{image['height']}"
    assert f"{image['file_name']} is {right}, but the annotations have {wrong}" in report.text()


def edit_people(folder, change):
    path = folder / "annotations" / "person_keypoints_val2017.json"
    document = json.loads(path.read_text())
    change(document["annotations"])
    path.write_text(json.dumps(document))


def test_what_a_file_lacks_is_reported_and_is_no_fault(tmp_path):
    folder = fabricate.coco(tmp_path)
    edit_people(folder, lambda people: [p.pop("area") and p.pop("segmentation") for p in people])
    report = validate(folder)
    assert report.faults == 0
    assert "area of 6 of 6 annotations computed as 0.53 of the box" in report.text()


def test_a_box_outside_and_a_damaged_photograph_count_alike_for_skip_bad(tmp_path):
    folder = fabricate.coco(tmp_path)
    edit_people(folder, lambda people: people[2].update(bbox=[70, 4, 20, 30]))
    (folder / "val2017" / "000000000007.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"annotation 102: the box .* lies outside 64x48"):
        validate(folder)
    with pytest.raises(DataError, match="1 photographs are bad, 0 may be"):
        validate(folder, skip_bad=1)
    report = validate(folder, skip_bad=2)
    assert "test: 2 people" in report.text()
    assert report.text().endswith("2 parts, 0 wrong, 2 skipped")


def test_joints_at_zero_that_are_marked_visible_are_a_fault(tmp_path):
    folder = fabricate.coco(tmp_path)
    edit_people(folder, lambda people: people[0]["keypoints"].__setitem__(slice(3), [0, 0, 2]))
    report = validate(folder)
    assert [finding.name for finding in report.findings if finding.faults] == ["test"]
    assert "joints at (0, 0) with a visibility above 0, taken as unlabelled: 1" in report.text()


def test_positions_are_checked_with_the_mapping_that_matches_their_joints(tmp_path):
    facts = {"joints": np.array(H36M17.joints), "fps": 30.0}
    np.savez(tmp_path / "sound.npz", positions=fabricate.motion(9), **facts)
    mirrored = fabricate.motion(9) * np.float32([-1, 1, 1])
    np.savez(tmp_path / "wrong.npz", positions=mirrored, **facts)
    report = validate(tmp_path)
    assert report.layouts == ("Motion capture, positions",)
    assert "sound: 9 frames, 30 Hz, mapping H36M17, height 1.6" in report.text()
    assert [finding.name for finding in report.findings if finding.faults] == ["wrong"]
    np.savez(tmp_path / "other.npz", positions=mirrored, joints=np.arange(17).astype(str), fps=30.0)
    with pytest.raises(DataError, match=r"other\.npz: its joints, 0, 1, 2.*match none"):
        validate(tmp_path)
    assert len(validate(tmp_path, skip_bad=1).findings) == 2


def test_a_list_tells_what_each_set_holds(tmp_path):
    fabricate.p_stmo(tmp_path / "3dhp")
    fabricate.coco(tmp_path / "coco")
    folder = tmp_path / "mocap"
    folder.mkdir()
    (folder / "walk.bvh").write_text(stick_figures.SMALL)
    three, two, motion = list_datasets(tmp_path)
    assert three.endswith("has train and test; test: 2 sequences, 14 frames at 25 Hz, MPI3DHP17")
    assert two.endswith("has train and test; test: 4 people, COCO17")
    assert ": 1 recordings that are not CMU's, so their joints need a mapping" in motion
    assert "walk.bvh has 3 frames at 30 Hz, 2 joints" in motion


def test_a_folder_of_coco_is_listed_itself_and_below_its_parent(tmp_path):
    fabricate.coco(tmp_path / "coco")
    (line,) = list_datasets(tmp_path / "coco")
    assert line.endswith("has train and test; test: 4 people, COCO17")
    assert list_datasets(tmp_path) == [line]


def test_recordings_beside_a_subfolder_of_recordings_are_one_set(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.bvh", "b.bvh", "sub/c.bvh"):
        (tmp_path / name).write_text(stick_figures.SMALL)
    (line,) = list_datasets(tmp_path)
    assert ": 3 recordings that are not CMU's" in line


def test_a_list_says_which_sets_cannot_be_read(tmp_path):
    path = fabricate.coco(tmp_path / "coco") / "annotations" / "person_keypoints_val2017.json"
    document = json.loads(path.read_text())
    document["categories"][0]["keypoints"] = ["left", "right"]
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match="its joints are left, right; COCO17 is nose"):
        list_datasets(tmp_path)
    (tmp_path / "mocap").mkdir()
    (tmp_path / "mocap" / "walk.bvh").write_text("HIERARCHY")
    fabricate.p_stmo(tmp_path / "3dhp")
    lines = list_datasets(tmp_path)
    assert len(lines) == 3
    assert lines[1].startswith("COCO people: cannot be read: ")
    assert "walk.bvh" in lines[2]


def test_a_folder_of_folders_lists_each_set(tmp_path):
    fabricate.mpii(tmp_path / "mpii")
    fabricate.p_stmo(tmp_path / "3dhp")
    lines = list_datasets(tmp_path)
    assert [line.split(":")[0] for line in lines] == [
        "MPI-INF-3DHP univ_annot3, P-STMO npz",
        "MPII, HRNet's lists",
    ]
    with pytest.raises(DataError, match="no known layout"):
        list_datasets(tmp_path / "mpii" / "images")
