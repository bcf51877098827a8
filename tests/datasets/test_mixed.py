"""Several image sources as one."""

import fabricate
import numpy as np
import pytest

from pipeline.datasets.coco import Coco
from pipeline.datasets.mixed import MixedSource, convert_joint_set
from pipeline.datasets.mpii import Mpii
from pipeline.errors import UsageError
from pipeline.heatmap.data import Crops
from pipeline.mocap.synthetic import Synthetic
from pipeline.skeleton import COCO17, H36M17, H36M18


def test_mixed_samples_keep_their_order_images_and_joints_by_name(tmp_path):
    coco = Coco(str(fabricate.coco(tmp_path / "coco")))
    mpii = Mpii(str(fabricate.mpii(tmp_path / "mpii")))
    mixed = MixedSource([coco, mpii]).samples("val")
    first, second = coco.samples("val"), mpii.samples("val")
    assert len(mixed) == len(mixed.images) == 8
    assert mixed.skeleton is H36M17
    wrist = H36M17.index("left_wrist")
    np.testing.assert_array_equal(mixed.joints2d[:4, wrist], first.joints2d[:, 9])
    np.testing.assert_array_equal(mixed.joints2d[4:, wrist], second.joints2d[:, 15])
    for index, (part, at) in {0: (first, 0), 3: (first, 3), 4: (second, 0), 7: (second, 3)}.items():
        assert mixed.images.fingerprint(index) == part.images.fingerprint(at)
        assert mixed.images.size(index) == (64, 48)


def test_a_made_up_joint_is_labelled_only_if_all_its_sources_are(tmp_path):
    samples = Coco(str(fabricate.coco(tmp_path))).samples("train")
    mixed = convert_joint_set(samples, H36M17)
    hips = [COCO17.index("left_hip"), COCO17.index("right_hip")]
    pelvis = H36M17.index("pelvis")
    np.testing.assert_array_equal(mixed.labelled[:, pelvis], samples.labelled[:, hips].all(axis=1))
    np.testing.assert_array_equal(np.isfinite(mixed.joints2d[..., 0]), mixed.labelled)
    assert not mixed.labelled[:, H36M17.index("head")].any()
    seen = mixed.labelled[:, pelvis]
    np.testing.assert_allclose(
        mixed.joints2d[seen, pelvis], samples.joints2d[seen][:, hips].mean(axis=1), rtol=1e-6
    )


def test_each_sample_knows_its_source_also_in_a_mixture_of_mixtures(tmp_path):
    coco = Coco(str(fabricate.coco(tmp_path / "set")))
    mpii = Mpii(str(fabricate.mpii(tmp_path / "set")))
    synthetic = Synthetic(1, 1, 1, images=60, seconds=0.2, actions=("walk",))
    mixed = MixedSource([synthetic, MixedSource([coco, mpii]), coco]).samples("test")
    assert mixed.source_names == ("Synthetic", "Coco set", "Mpii set", "Coco set #2")
    assert mixed.source_index.tolist() == [0] * 2 + [1] * 4 + [2] * 4 + [3] * 4
    crops = Crops(mixed, H36M17, (32, 32))
    assert crops.describe() == (
        "2 images of Synthetic + 4 images of Coco set + 4 images of Mpii set + 4 images of "
        "Coco set #2"
    )
    assert Crops(coco.samples("test"), H36M17, (32, 32)).describe() == "4 images"


def test_an_unknown_joint_set_is_a_wrong_option():
    with pytest.raises(UsageError, match="H37M"):
        MixedSource([Coco("nowhere")], skeleton="H37M")


def approximated(samples):
    """Names of the labelled joints that only a midpoint approximates, of everybody together."""
    chosen = (samples.approximate & samples.labelled).any(axis=0)
    return {samples.skeleton.joints[j] for j in np.flatnonzero(chosen)}


def test_spine_and_thorax_that_are_midpoints_are_marked_and_real_ones_are_not(tmp_path):
    coco = Coco(str(fabricate.coco(tmp_path / "coco"))).samples("train")
    mpii = Mpii(str(fabricate.mpii(tmp_path / "mpii"))).samples("train")
    assert approximated(convert_joint_set(coco, H36M18)) == {"spine", "thorax"}
    assert approximated(convert_joint_set(mpii, H36M18)) == {"spine"}  # its upper neck is a thorax
    twice = convert_joint_set(convert_joint_set(coco, H36M17), H36M18)
    assert approximated(twice) == {"spine", "thorax"}
    people = Synthetic(1, 1, 1, actions=("walk",), seconds=0.5, images=20).samples("train")
    assert approximated(convert_joint_set(people, H36M18)) == set()


def test_the_mark_of_midpoints_stays_with_its_source(tmp_path):
    sources = [Mpii(str(fabricate.mpii(tmp_path / "m"))), Coco(str(fabricate.coco(tmp_path / "c")))]
    samples = MixedSource(sources).samples("train")
    thorax = samples.approximate[:, H36M17.index("thorax")]
    first = len(sources[0].samples("train"))
    assert not thorax[:first].any()
    assert thorax[first:].any()
