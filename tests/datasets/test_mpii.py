"""MPII people and head sizes, read from a tiny archive."""

import json

import fabricate
import numpy as np
import pytest
from malformed import check_json_reader, check_lines, damaged, error_line

from pipeline.datasets.mpii import Mpii, read_head_truth
from pipeline.errors import DataError


def test_pixels_count_from_zero_and_the_box_is_the_published_square(tmp_path):
    samples = Mpii(str(fabricate.mpii(tmp_path))).samples("train")
    first = fabricate.mpii_list()[0]
    seen = np.array(first["joints_vis"]) > 0
    np.testing.assert_allclose(
        samples.joints2d[0][seen], np.array(first["joints"])[seen] - 1, rtol=1e-6
    )
    assert np.isnan(samples.joints2d[0][~seen]).all()
    np.testing.assert_array_equal(samples.labelled[0], seen)
    # centre (32, 24), scale 0.2: 40 px wide, centre 3 px lower, counted from 0
    np.testing.assert_allclose(samples.boxes[0], [11, 6, 40, 40])


def test_head_sizes_are_diagonals_in_the_order_of_the_list(tmp_path):
    source = Mpii(str(fabricate.mpii(tmp_path)))
    truth, samples = source.head_truth(), source.samples("val")
    np.testing.assert_allclose(truth.head, 5.0)
    np.testing.assert_array_equal(truth.labelled, samples.labelled)
    np.testing.assert_allclose(
        truth.joints2d[truth.labelled], samples.joints2d[samples.labelled], rtol=1e-6
    )


def test_posenets_boxes_of_mpii_end_at_their_last_pixel(tmp_path):
    samples = Mpii(str(fabricate.mpii_coco(tmp_path))).samples("test")
    np.testing.assert_allclose(samples.boxes[:2], [[5, 4, 43, 37], [6, 4, 43, 37]])
    assert samples.ids[:2] == ("000000000007.jpg#100", "000000000008.jpg#101")


def test_coco_style_lists_with_16_joints_are_read_too(tmp_path):
    document = fabricate.coco_document()
    for person in document["annotations"]:
        person["keypoints"] = person["keypoints"][:48]
    document["categories"] = []
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations" / "train.json").write_text(json.dumps(document))
    samples = Mpii(str(tmp_path)).samples("train")
    assert samples.joints2d.shape == (4, 16, 2)


def test_a_bad_entry_of_the_list_takes_its_head_size_with_it(tmp_path):
    root = fabricate.mpii(tmp_path)
    path = root / "annot" / "valid.json"
    people = json.loads(path.read_text())
    people[1]["joints_vis"][3] = 7
    people[2]["joints"][3], people[2]["joints_vis"][3] = [0, 0], 1
    path.write_text(json.dumps(people))
    with pytest.raises(DataError, match=r"\[1\]: a joint has the visibility 7; write 0"):
        Mpii(str(root)).samples("test")
    whole = Mpii(str(root)).head_truth()
    samples = Mpii(str(root), skip_bad=1).samples("test")
    assert [name.split("#")[1] for name in samples.ids] == ["0", "2", "3"]
    np.testing.assert_array_equal(samples.truths[0].joints2d, whole.joints2d[[0, 2, 3]])
    assert not samples.labelled[1, 3]
    assert samples.remarks.doubts[0].startswith("joints at (0, 0) with a visibility above 0")


@pytest.mark.parametrize("count", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_malformed_lists_give_one_line(tmp_path, count):
    (tmp_path / "images").mkdir()
    check_json_reader(
        fabricate.mpii_list(2),
        tmp_path / "train.json",
        lambda path: Mpii(str(tmp_path)).samples("train"),
        count=count,
        seed=count,
    )


@pytest.mark.parametrize("count", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_damaged_head_truth_gives_one_line(tmp_path, count):
    path = fabricate.mpii(tmp_path) / "annot" / "gt_valid.mat"
    whole = path.read_bytes()
    lines = []
    for data in damaged(whole, count, seed=count):
        path.write_bytes(data)
        lines.append(error_line(lambda: read_head_truth(path)))
    check_lines(lines, path.name, 0.45)  # the others hit padding or digits
    with pytest.raises(DataError, match="not found"):
        read_head_truth(tmp_path / "none.mat")
