"""COCO people, read from a tiny archive and from real photographs."""

import json

import fabricate
import numpy as np
import pytest
import torch
from malformed import check_json_reader

from pipeline.datasets.coco import Coco
from pipeline.datasets.coco_format import clip_box, read_people
from pipeline.errors import DataError
from pipeline.heatmap.benchmark_metrics import CocoMetric
from pipeline.mocap.synthetic import Synthetic
from pipeline.skeleton import COCO17, H36M17, MPI3DHP17, make_conversion
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
    np.testing.assert_allclose(clip_box(np.array([-3.0, 4, 20, 60]), 64, 48, "x"), [0, 4, 16, 43])
    with pytest.raises(DataError, match=r"x: the box .* lies outside 64x48"):
        clip_box(np.array([70.0, 4, 20, 60]), 64, 48, "x")


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


def edited(path, change, **options):
    """People of a fabricated file after a change of its document."""
    document = fabricate.coco_document(**options)
    change(document)
    path.write_text(json.dumps(document))
    return document


def without(*keys):
    def change(document):
        document["annotations"] = [p for p in document["annotations"] if not p["iscrowd"]]
        for person in document["annotations"]:
            for key in keys:
                del person[key]

    return change


@pytest.mark.parametrize(
    ("keys", "area", "rule"),
    [
        (("area", "segmentation"), 0.53 * 44 * 38, "computed as 0.53 of the box"),
        (("area",), 0.5 * 44 * 38, "computed as the polygons of `segmentation`"),  # a triangle
    ],
)
def test_an_area_that_is_missing_is_computed_and_the_protocol_names_the_rule(
    tmp_path, keys, area, rule
):
    root = fabricate.coco(tmp_path)
    path = root / "annotations" / "person_keypoints_val2017.json"
    edited(path, without(*keys, "iscrowd", "num_keypoints"), seed=1)
    samples = Coco(str(root)).samples("test")
    document = samples.truths[0].annotations
    assert document["annotations"][0]["area"] == pytest.approx(area)
    assert document["annotations"][0]["num_keypoints"] == samples.labelled[0].sum()
    assert f"area of 5 of 5 annotations {rule}" in samples.truths[0].about
    metric = CocoMetric(samples.truths[0], COCO17, torch.device("cpu"))
    shape = torch.ones(4, 17), torch.ones(4)
    metric.update(torch.arange(4), torch.from_numpy(np.nan_to_num(samples.joints2d)), *shape)
    assert metric.compute()[0] == pytest.approx(1.0)


def test_a_file_without_categories_is_coco17_only_if_its_bones_fit(tmp_path):
    people = Synthetic(images=40).samples("train")
    for skeleton in (COCO17, H36M17, MPI3DHP17):
        joints = make_conversion(H36M17, skeleton, allow_missing=True).joints(people.joints2d)
        document = {"images": [{"id": 1, "file_name": "a.jpg", "width": 9000, "height": 9000}]}
        flat = np.nan_to_num(np.concatenate([joints, 2.0 + 0 * joints[..., :1]], axis=2))
        document["annotations"] = [
            {"id": i, "image_id": 1, "keypoints": person.ravel().tolist(), "bbox": box.tolist()}
            for i, (person, box) in enumerate(zip(flat, people.boxes, strict=True))
        ]
        (tmp_path / "x.json").write_text(json.dumps(document))
        if skeleton is COCO17:
            computed = read_people(tmp_path / "x.json").remarks.computed
            assert "the joints have no names in the file and are taken as COCO17" in computed
        else:
            with pytest.raises(DataError, match=f"fit {skeleton.name}, not COCO17; add `categ"):
                read_people(tmp_path / "x.json")


def test_only_annotations_of_people_count_whatever_their_category_is_called(tmp_path):
    def rename(document):
        document["categories"][0] |= {"id": 5, "name": "human"}
        for person in document["annotations"]:
            person["category_id"] = 5
        document["annotations"][1]["category_id"] = 3

    edited(tmp_path / "x.json", rename)
    people = read_people(tmp_path / "x.json")
    assert people.ids.tolist() == [100, 102, 103]
    assert {person["category_id"] for person in people.document()["annotations"]} == {1}
    document = edited(tmp_path / "x.json", rename)
    document["categories"].append({"id": 3, "name": "dog"})
    (tmp_path / "x.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="none of human, dog is called person"):
        read_people(tmp_path / "x.json")


def test_files_of_labelling_tools_are_read_or_say_what_is_wrong(tmp_path):
    """An empty list of names; a person with a box only; ids of the category as text."""

    def change(document):
        document["categories"] = [{"id": 1, "name": "person", "keypoints": []}]
        document["annotations"][0] |= {"num_keypoints": 0, "keypoints": []}

    edited(tmp_path / "a.json", change)
    assert len(read_people(tmp_path / "a.json", COCO17).ids) == 3

    def text(document):
        document["annotations"] = [{**p, "category_id": "1"} for p in document["annotations"]]

    edited(tmp_path / "b.json", text)
    with pytest.raises(DataError, match="of people is 1, and the annotations have '1'"):
        read_people(tmp_path / "b.json", COCO17)


def test_boxes_of_two_corners_are_noticed(tmp_path):
    def change(document):
        for person in document["annotations"][:4]:
            joints = np.array(person["keypoints"]).reshape(17, 3)
            joints[:, :2] = joints[:, :2] / 2 + [26, 18]  # in the lower right of 64 x 48
            person["keypoints"] = joints.ravel().tolist()
            seen = joints[joints[:, 2] > 0, :2]
            person["bbox"] = [*(seen.min(0) - 1).tolist(), *(seen.max(0) + 1).tolist()]

    edited(tmp_path / "x.json", change)
    with pytest.raises(DataError, match=r"bbox seems to be x1, y1, x2, y2: so 100 % of the boxes"):
        read_people(tmp_path / "x.json", skip_bad=9)


BAD = {
    "area is 0;": lambda person: person.update(area=0),
    "lies outside 64x48": lambda person: person.update(bbox=[70, 4, 20, 30]),
    "visibility 0.7;": lambda person: person["keypoints"].__setitem__(2, 0.7),
    "visibility 3;": lambda person: person["keypoints"].__setitem__(2, 3),
    "unknown image 99": lambda person: person.update(image_id=99),
}


@pytest.mark.parametrize("line", BAD)
def test_a_bad_annotation_is_named_and_left_out_only_up_to_the_stated_number(tmp_path, line):
    path = tmp_path / "x.json"
    edited(path, lambda document: BAD[line](document["annotations"][1]))
    with pytest.raises(DataError, match=f"annotation 101: .*{line}"):
        read_people(path)
    people = read_people(path, skip_bad=1)
    assert people.ids.tolist() == [100, 102, 103]
    assert [person["id"] for person in people.document()["annotations"]] == [
        100,
        102,
        103,
        900,
        901,
    ]
    assert [line in message for message in people.remarks.skipped] == [True]
    edited(path, lambda document: [BAD[line](document["annotations"][i]) for i in (1, 3)])
    with pytest.raises(DataError, match=r"2 annotations are bad, 1 may be; the first one: .*101"):
        read_people(path, skip_bad=1)


def test_bad_annotations_and_photographs_share_one_number(tmp_path):
    root = fabricate.coco(tmp_path)
    path = root / "annotations" / "person_keypoints_val2017.json"
    edited(path, lambda document: BAD["area is 0;"](document["annotations"][1]), seed=1)
    (root / "val2017" / "000000000009.jpg").unlink()
    samples = Coco(str(root), skip_bad=2).samples("test")
    assert [name.split("#")[1] for name in samples.ids] == ["100", "103"]
    assert len(samples.remarks.skipped) == 2
    assert "without 1 bad annotations" in samples.truths[0].about
    with pytest.raises(DataError, match="1 photographs are bad, 0 may be"):
        Coco(str(root), skip_bad=1).samples("test")


def test_joints_at_zero_that_are_marked_visible_are_noticed_and_not_labelled(tmp_path):
    def change(document):
        document["annotations"][2]["keypoints"][9:12] = [0, 0, 2]
        document["annotations"][2]["num_keypoints"] = 0
        document["annotations"][3]["num_keypoints"] = 1

    edited(tmp_path / "x.json", change)
    people = read_people(tmp_path / "x.json")
    assert not people.labelled[2, 3]
    assert people.document()["annotations"][2]["keypoints"][9:12] == [0, 0, 0]
    assert people.remarks.doubts == (
        "joints at (0, 0) with a visibility above 0, taken as unlabelled: 1",
        "annotations whose num_keypoints is not the number of their labelled joints, which "
        "counts: 2",
    )


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
