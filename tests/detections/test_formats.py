"""Detections made by other tools: recognised by their joints, an error if unknown."""

import json

import fabricate
import numpy as np
import pytest
from malformed import changed_objects, check_json_reader, check_lines, error_line

from pipeline.datasets.videopose3d import read_videopose3d, skeleton_by_symmetry
from pipeline.detections.formats import read_detections
from pipeline.errors import DataError
from pipeline.files.archive import Npz
from pipeline.skeleton import BODY25, COCO17, H36M17, HALPE26, MPI3DHP17, MPII16, make_conversion


def person(joints, frame, score=0.8, shift=0.0):
    """x = 10 j + frame, y = j, a score per joint; joint 3 is missing."""
    flat = [[10.0 * j + frame + shift, float(j), score] for j in range(joints)]
    flat[3] = [0.0, 0.0, 0.0]
    return flat


def alphapose(joints=17):
    """AlphaPose's list: names of frames counted from 0, flat x, y, score."""
    return [
        {
            "image_id": f"{frame}.jpg",
            "category_id": 1,
            "keypoints": np.ravel(person(joints, frame, score, shift)).tolist(),
            "score": 2.5,
            "box": [1.0, 2.0, 30.0, 40.0],
            "idx": 1,
        }
        for frame in (0, 1, 3)
        for score, shift in ((0.3, 500.0), (0.8, 0.0))  # the second person has the higher score
    ]


def mmpose(joints=17, names=COCO17.joints):
    """MMPose's and RTMPose's document: meta_info names the joints, frames are counted from 1."""
    frames = []
    for frame in range(4):
        flat = np.array(person(joints, frame))
        found = {"keypoints": flat[:, :2].tolist(), "keypoint_scores": flat[:, 2].tolist()}
        frames.append({"frame_id": frame + 1, "instances": [] if frame == 2 else [found]})
    about = {"keypoint_id2name": {str(i): name for i, name in enumerate(names)}}
    return {"meta_info": about, "instance_info": frames}


def check(found, skeleton):
    assert found.skeleton is skeleton
    assert found.joints2d.shape == (4, len(skeleton), 2)
    np.testing.assert_allclose(found.joints2d[1, 5], [51, 5])
    np.testing.assert_allclose(found.joints2d[3, 15], [153, 15])
    np.testing.assert_allclose(found.score[1, 5], 0.8)
    assert np.isnan(found.joints2d[2]).all()
    assert np.isnan(found.joints2d[1, 3]).all()
    assert (found.score[2] == 0).all()
    assert found.score[1, 3] == 0


@pytest.mark.parametrize(("joints", "skeleton"), [(17, COCO17), (26, HALPE26)])
def test_alphapose_gives_the_person_with_the_highest_scores(tmp_path, joints, skeleton):
    (tmp_path / "a.json").write_text(json.dumps(alphapose(joints)))
    check(read_detections(tmp_path / "a.json"), skeleton)
    assert len(read_detections(tmp_path / "a.json", frames=9).score) == 9
    with pytest.raises(DataError, match="frame 3"):
        read_detections(tmp_path / "a.json", frames=3)


@pytest.mark.parametrize("skeleton", [COCO17, H36M17, HALPE26])
def test_mmpose_is_recognised_by_the_names_of_its_joints(tmp_path, skeleton):
    names = [{"thorax": "neck", "pelvis": "hip"}.get(name, name) for name in skeleton.joints]
    if skeleton is H36M17:
        names = list(skeleton.joints)
    (tmp_path / "m.json").write_text(json.dumps(mmpose(len(skeleton), names)))
    check(read_detections(tmp_path / "m.json"), skeleton)


def test_mmposes_names_of_other_sets_are_known(tmp_path):
    """As in the files of MMPose's models for Human3.6M and MPI-INF-3DHP."""
    sides = [f"right_{p}" for p in ("hip", "knee", "foot")]
    left = [name.replace("right", "left") for name in sides]
    arms = [f"{s}_{p}" for s in ("left", "right") for p in ("shoulder", "elbow", "wrist")]
    human36m = ["root", *sides, *left, "spine", "thorax", "neck_base", "head", *arms]
    mpi = ["head_top", "neck", *arms[3:], *arms[:3]]
    mpi += [name.replace("foot", "ankle") for name in (*sides, *left)] + ["root", "spine", "head"]
    path = tmp_path / "a.json"
    for names, skeleton in ((human36m, H36M17), (mpi, MPI3DHP17)):
        path.write_text(json.dumps(mmpose(17, names)))
        check(read_detections(path), skeleton)
        assert read_detections(path, skeleton=skeleton.name).skeleton is skeleton
        with pytest.raises(DataError, match=f"are those of {skeleton.name}, not COCO17"):
            read_detections(path, skeleton="COCO17")
    path.write_text(json.dumps(mmpose(17, [f"point {i}" for i in range(17)])))
    assert read_detections(path, skeleton="COCO17").skeleton is COCO17


def annotations(names=COCO17.joints):
    """COCO's annotations of frames 1, 3 and 4 of 6, with a box and a joint marked at 0, 0."""
    images = [{"id": f"a{n}", "file_name": f"{n:03}.jpg"} for n in range(6)]
    people = [
        {"id": n, "image_id": f"a{n}", "category_id": 1, "keypoints": np.ravel(joints).tolist()}
        for n in (1, 3, 4)
        for joints in [[[*p[:2], 2 if p[1] else 1] for p in person(17, n)]]
    ]
    people[0]["keypoints"][6:9] = [0, 0, 2]
    people.append({"id": 9, "image_id": "a2", "category_id": 2, "bbox": [1, 2, 3, 4]})
    category = {"id": 1, "name": "person", "keypoints": list(names)}
    return {"images": images, "annotations": people, "categories": [category]}


def test_annotations_of_coco_list_all_images_and_name_their_joints(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(annotations([n.replace("_", " ").title() for n in COCO17.joints])))
    found = read_detections(path)
    assert found.joints2d.shape == (6, 17, 2)
    assert np.flatnonzero((found.score > 0).any(1)).tolist() == [1, 3, 4]
    assert found.score[1, 5] == 1
    assert np.isnan(found.joints2d[1, 2]).all()
    first, second = np.array(COCO17.joints), list(COCO17.swap)
    path.write_text(json.dumps(annotations(first[second].tolist())))
    with pytest.raises(DataError, match=r"its joints, nose, right_eye, .* are not a known set"):
        read_detections(path)


def test_an_image_is_frame_0_whatever_numbers_its_name_has(tmp_path):
    record = {**alphapose()[0], "image_id": "COCO_val2014_000000000139.jpg"}
    (tmp_path / "a.json").write_text(json.dumps([record]))
    assert len(read_detections(tmp_path / "a.json", frames=1).score) == 1
    record["image_id"] = "walk2_000000000000.jpg"
    (tmp_path / "a.json").write_text(json.dumps([record]))
    assert len(read_detections(tmp_path / "a.json").score) == 1


def test_scores_end_at_1_and_joints_at_zero_are_missing(tmp_path):
    records = alphapose()[1::2]
    for record in records:
        flat = np.array(record["keypoints"]).reshape(17, 3) * [1, 1, 110]
        flat[7] = [0, 0, 88.0]
        record["keypoints"] = flat.ravel().tolist()
    (tmp_path / "a.json").write_text(json.dumps(records))
    found = read_detections(tmp_path / "a.json")
    assert found.score.max() == 1
    assert np.isnan(found.joints2d[:, 7]).all()
    assert (found.score[:, 7] == 0).all()


def test_openpose_is_a_folder_with_a_file_per_frame(tmp_path):
    for frame in range(4):
        flat = np.ravel(person(25, frame)).tolist()
        people = [] if frame == 2 else [{"person_id": [-1], "pose_keypoints_2d": flat}]
        name = f"video_{frame:012d}_keypoints.json"
        (tmp_path / name).write_text(json.dumps({"version": 1.3, "people": people}))
    check(read_detections(tmp_path), BODY25)


def test_mmposes_lists_per_image_are_a_folder_with_a_file_per_frame(tmp_path):
    for record in mmpose()["instance_info"]:
        number = 7 + record["frame_id"]  # 8, 9, 10, 11: by number, not by name
        (tmp_path / f"img_{number}.json").write_text(json.dumps(record["instances"]))
    check(read_detections(tmp_path, frames=4), COCO17)
    one = read_detections(tmp_path / "img_9.json")
    np.testing.assert_allclose(one.joints2d[:, 5], [[51, 5]])


def test_openposes_and_halpes_joints_become_ours_by_name():
    body, halpe = (
        make_conversion(BODY25, H36M17, allow_missing=True),
        make_conversion(HALPE26, H36M17),
    )
    assert body.missing == ("head",)
    assert halpe.missing == ()
    x = np.arange(25.0)[:, None] * [1, 1]
    wrist, hip = H36M17.index("left_wrist"), H36M17.index("right_hip")
    assert body.joints(x)[[wrist, hip], 0].tolist() == [7, 9]  # OpenPose's LWrist 7, RHip 9
    assert halpe.joints(np.arange(26.0)[:, None])[[wrist, hip], 0].tolist() == [9, 12]
    # the file's own pelvis and neck are used, not midpoints
    assert body.joints(x)[[0, 8], 0].tolist() == [8, 1]


def test_unknown_joints_raise_an_error_with_both_lists(tmp_path):
    names = ["nose", *[f"point_{i}" for i in range(16)]]
    (tmp_path / "m.json").write_text(json.dumps(mmpose(17, names)))
    with pytest.raises(DataError, match=r"nose, point_0.*COCO17: nose, left_eye"):
        read_detections(tmp_path / "m.json")
    (tmp_path / "a.json").write_text(json.dumps(alphapose(19)))
    with pytest.raises(DataError, match=r"19 joints without names.*HALPE26 \(26\)"):
        read_detections(tmp_path / "a.json")


def test_a_named_set_must_have_as_many_joints(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(alphapose(17)))
    assert read_detections(tmp_path / "a.json", skeleton="H36M17").skeleton is H36M17
    with pytest.raises(DataError, match="has 17 joints, MPII16 has 16"):
        read_detections(tmp_path / "a.json", skeleton="MPII16")


def test_videopose3ds_archives_are_read_without_their_motion(tmp_path):
    root = fabricate.human36m(tmp_path, ("S9",))
    found = read_videopose3d(root / "data_2d_h36m_cpn_ft_h36m_dbb.npz")
    assert len(found) == 4 * 4
    assert found["S9/Walking 1/2"].skeleton is H36M17
    assert found["S9/Walking 1/2"].joints2d.shape == (15, 17, 2)


def test_the_joint_set_is_found_by_videopose3ds_symmetry():
    assert skeleton_by_symmetry(16, [3, 4, 5, 13, 14, 15], [0, 1, 2, 10, 11, 12], "x") is MPII16
    assert (
        skeleton_by_symmetry(17, [1, 3, 5, 7, 9, 11, 13, 15], [2, 4, 6, 8, 10, 12, 14, 16], "x")
        is COCO17
    )
    with pytest.raises(DataError, match="not a known set"):
        skeleton_by_symmetry(16, [4, 5, 6], [1, 2, 3], "x")


def rtmpose():
    """As `mmpose`, without the names of the joints."""
    return mmpose()["instance_info"]


def test_a_frame_number_beyond_the_limit_raises_an_error_before_memory_is_allocated(tmp_path):
    document = alphapose()
    document[2]["image_id"] = "999999999.jpg"
    (tmp_path / "a.json").write_text(json.dumps(document))
    line = error_line(lambda: read_detections(tmp_path / "a.json"))
    assert "frame 999999999; a video has at most 2,000,000" in line


@pytest.mark.parametrize("count", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_malformed_openpose_frames_give_one_line(tmp_path, count):
    document = {"version": 1.3, "people": [{"pose_keypoints_2d": np.ravel(person(25, 0)).tolist()}]}
    path = tmp_path / "video_000000000000_keypoints.json"
    read = lambda path: read_detections(path.parent)  # noqa: E731
    check_json_reader(document, path, read, count=count, named=tmp_path.name, least=0.4)


@pytest.mark.parametrize("count", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_malformed_archives_of_videopose3d_give_one_line(tmp_path, count):
    path = fabricate.human36m(tmp_path, ("S9",)) / "data_2d_h36m_cpn_ft_h36m_dbb.npz"
    archive, lines = Npz(path), []
    content = {name: archive.objects(name) for name in archive.names}
    for changed in changed_objects(content, count, seed=count):
        np.savez(path, **{name: fabricate.boxed(value) for name, value in changed.items()})
        lines.append(error_line(lambda: read_videopose3d(path)))
    check_lines(lines, path.name, 0.3)  # missing joints and fewer videos are no fault here


@pytest.mark.parametrize("form", [alphapose, mmpose, rtmpose])
@pytest.mark.parametrize("count", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_malformed_detections_give_one_line(tmp_path, form, count):
    check_json_reader(form(), tmp_path / "x.json", read_detections, count=count, least=0.4)


@pytest.mark.parametrize("form", [alphapose, mmpose])
def test_a_null_among_the_joints_is_named_with_its_place(tmp_path, form):
    document = form()
    one = document[2] if form is alphapose else document["instance_info"][1]["instances"][0]
    one["keypoints"][3] = None
    (tmp_path / "a.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"keypoints\[3\]: is null; .* write x 0, y 0"):
        read_detections(tmp_path / "a.json")


def test_an_unknown_number_of_joints_gives_a_short_line(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(alphapose(19)))
    with pytest.raises(
        DataError, match=r"19 joints without .*COCO17 \(17\).*keypoint_id2name"
    ) as error:
        read_detections(tmp_path / "a.json")
    assert len(str(error.value)) < 350 + len(str(tmp_path))
