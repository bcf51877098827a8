"""COCO people, read from a tiny archive and from real photographs."""

import json

import fabricate
import numpy as np
import pytest
from malformed import check_json_reader

from pipeline.datasets.coco import Coco, read_people, require_inside
from pipeline.errors import DataError
from pipeline.sources import ImageSource


def test_people_come_with_their_joints_boxes_and_ids(tmp_path):
    source = Coco(str(fabricate.coco(tmp_path)))
    assert isinstance(source, ImageSource)
    document = fabricate.coco_document(seed=1)
    people, samples = source.people("val"), source.samples("val")
    assert len(samples) == 4
    assert people.ids.tolist() == [100, 101, 102, 103]
    flat = np.array(document["annotations"][2]["keypoints"]).reshape(17, 3)
    np.testing.assert_array_equal(samples.labelled[2], flat[:, 2] > 0)
    np.testing.assert_allclose(
        samples.joints2d[2][flat[:, 2] > 0], flat[flat[:, 2] > 0, :2], rtol=1e-6
    )
    assert np.isnan(samples.joints2d[2][flat[:, 2] == 0]).all()
    np.testing.assert_allclose(samples.boxes[2], [7, 4, 43, 37])  # 44 x 38 pixels
    assert samples.ids[2] == "000000000009.jpg#102"
    assert samples.images.size(2) == (64, 48)


def test_a_box_is_cut_to_the_image_and_ends_at_its_last_pixel():
    np.testing.assert_allclose(
        require_inside(np.array([-3.0, 4, 20, 60]), 64, 48, "x"), [0, 4, 16, 43]
    )
    with pytest.raises(DataError, match=r"x: the box .* lies outside 64x48"):
        require_inside(np.array([70.0, 4, 20, 60]), 64, 48, "x")


def test_boxes_of_a_detector_become_unlabelled_samples_and_are_not_cut(tmp_path):
    found = Coco(str(fabricate.coco(tmp_path))).detected(
        "val", str(tmp_path / "person_detections.json"), threshold=0.1
    )
    assert found.image_ids.tolist() == [7, 8]
    assert found.scores.tolist() == [0.9, 0.2]
    np.testing.assert_allclose(found.samples.boxes, [[-3, 4, 20, 30], [5, 4, 500, 30]])
    assert not found.samples.labelled.any()


def test_bad_photographs_are_left_out_only_up_to_the_stated_number(tmp_path, caplog):
    fabricate.coco(tmp_path)
    (tmp_path / "val2017" / "000000000008.jpg").write_bytes(b"\xff\xd8\xff")
    samples = Coco(str(tmp_path), skip_bad=1).samples("val")
    assert [name.split("#")[1] for name in samples.ids] == ["100", "102", "103"]
    assert "000000000008.jpg" in caplog.text
    (tmp_path / "val2017" / "000000000009.jpg").unlink()
    with pytest.raises(DataError, match="2 photographs are bad, 1 may be"):
        Coco(str(tmp_path), skip_bad=1).samples("val")


def test_a_file_with_other_joints_raises_an_error_with_both_lists(tmp_path):
    document = fabricate.coco_document()
    document["categories"][0]["keypoints"][5:7] = ["right_shoulder", "left_shoulder"]
    (tmp_path / "x.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"right_shoulder, left_shoulder.*COCO17 is nose"):
        read_people(tmp_path / "x.json")


def test_the_error_about_missing_annotations_lists_the_candidates(tmp_path):
    with pytest.raises(DataError, match=r"looked for annotations/person_keypoints_train2017\.json"):
        Coco(str(tmp_path)).samples("train")


@pytest.mark.parametrize("count", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_malformed_annotations_give_one_line(tmp_path, count):
    document = fabricate.coco_document(2)
    check_json_reader(document, tmp_path / "x.json", read_people, count=count, seed=count)


@pytest.mark.parametrize("count", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_malformed_boxes_of_a_detector_give_one_line(tmp_path, count):
    source = Coco(str(fabricate.coco(tmp_path)), boxes="person_detections.json")
    path = tmp_path / "person_detections.json"
    document = json.loads(path.read_text())
    check_json_reader(document, path, lambda _: source.samples("test"), count=count, seed=count)


def test_real_photographs_are_read_in_both_formats_alike(shared):
    from pipeline.datasets.mixed import convert_joint_set
    from pipeline.datasets.mpii import Mpii
    from pipeline.skeleton import H36M17

    root = str(shared / "data" / "photos")
    coco, mpii = Coco(root).samples("val"), Mpii(root).samples("val")
    assert len(coco) == len(mpii) == 60
    assert coco.labelled[:, :5].sum() == 0
    limbs = [
        H36M17.index(f"{side}_{part}") for side in ("left", "right") for part in ("knee", "wrist")
    ]
    one, other = convert_joint_set(coco, H36M17), convert_joint_set(mpii, H36M17)
    both = one.labelled[:, limbs] & other.labelled[:, limbs]
    assert both.sum() > 150
    gap = np.abs(one.joints2d - other.joints2d)[:, limbs][both]
    assert gap.max() < 0.02
    assert coco.images.crop(3, np.eye(2, 3), (50, 40)).std() > 5
