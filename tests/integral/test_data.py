import dataclasses
import os
from pathlib import Path

import fabricate
import numpy as np
import pytest
import yaml

from pipeline.cli.configs import shipped_configs
from pipeline.datasets.coco import Coco
from pipeline.errors import DataError, UsageError
from pipeline.heatmap import HeatmapDataModule
from pipeline.heatmap.crop import Augmentation, apply_affine, crop_matrix, invert_affine
from pipeline.integral import IntegralDataModule
from pipeline.integral.data import CropsWithDepth, _zoom
from pipeline.mocap.synthetic import Synthetic
from pipeline.skeleton import H36M17, H36M18

SMALL = (64, 64)
PHOTOS = Path(os.environ.get("HEATLIFT_SHARED", "../shared")) / "data" / "photos"


def people(images=40):
    return Synthetic(1, 1, 1, actions=("walk", "wave"), seconds=0.5, images=images)


class Flat:
    """People whose joints are known in images alone, not in space."""

    skeleton = H36M17

    def __init__(self, images):
        self.source = people(images)

    def describe(self):
        return "flat people"

    def samples(self, split):
        return dataclasses.replace(self.source.samples(split), joints3d=None, focal=None)


def prepared(source, photographs=None, **changes):
    data = IntegralDataModule(source, photographs, input_size=SMALL, **changes)
    data.setup("fit")
    return data


def test_half_of_every_batch_has_depth_and_the_other_half_none():
    data = prepared(people(20), Flat(28), batch_size=8)
    batches = list(data.train_dataloader())
    assert len(batches) == 7
    for batch in batches:
        deep = batch["has_depth"].sum(1) > 0
        assert deep.tolist() == [True] * 4 + [False] * 4
        assert (batch["weight"][~deep].sum(1) > 0).all()
        assert (batch["depth"][batch["has_depth"] == 0] == 0).all()


def test_the_larger_kind_comes_once_an_epoch_and_the_smaller_evenly():
    data = prepared(people(20), Flat(50), batch_size=10)
    index = np.concatenate([batch["index"].numpy() for batch in data.train_dataloader()])
    counts = np.bincount(index, minlength=70)
    assert (counts[20:] == 1).all()
    assert set(counts[:20]) == {2, 3}


def test_people_who_are_repeated_in_an_epoch_have_different_crops():
    data = prepared(people(4), Flat(40), batch_size=4)
    batch = data.train_set[(0, np.arange(40))]
    same = np.flatnonzero(batch["index"] == batch["index"][0])
    assert len(same) == 10
    assert len({batch["matrix"][i].tobytes() for i in same}) == 10


def test_a_pair_is_the_same_in_any_company():
    data = prepared(people(4), Flat(10), batch_size=4)
    together, alone = (data.train_set[(3, np.array(pairs))] for pairs in ([2, 7, 5], [7]))
    for name, array in alone.items():
        np.testing.assert_array_equal(array[0], together[name][1])
        np.testing.assert_array_equal(array[1], together[name][4])


def test_depth_is_behind_the_root_and_changes_sides_with_a_mirrored_crop():
    samples = people().samples("train")
    mirror = Augmentation(flip=1.0, rotation=0, scale=0, half_body=0)
    plain = CropsWithDepth(samples, H36M18, SMALL)[(0, np.arange(8))]
    flipped = CropsWithDepth(samples, H36M18, SMALL, augmentation=mirror)[(0, np.arange(8))]
    depth = samples.joints3d[:8, :, 2] - samples.joints3d[:8, :1, 2]
    known = plain["has_depth"][:, :17] > 0
    np.testing.assert_allclose(plain["depth"][:, :17][known], depth[known], atol=1e-6)
    np.testing.assert_array_equal(flipped["depth"], plain["depth"][:, list(H36M18.swap)])


def test_the_depth_of_an_augmented_crop_keeps_the_proportions_of_the_body():
    samples = people().samples("train")
    varied = Augmentation(rotation=20, scale=0.3, shift=0.02, half_body=0)
    plain = CropsWithDepth(samples, H36M17, SMALL)[(0, np.arange(40))]
    batch = CropsWithDepth(samples, H36M17, SMALL, augmentation=varied)[(0, np.arange(40))]
    ends = [H36M17.index("pelvis"), H36M17.index("thorax")]
    seen = (batch["weight"][:, ends] * plain["weight"][:, ends]).all(1)
    lengths = [
        np.linalg.norm(np.diff(b["joints2d"][seen][:, ends], axis=1), axis=-1)[:, 0]
        for b in (batch, plain)
    ]
    known = (batch["has_depth"] * plain["has_depth"] > 0)[seen]
    mirrored = np.linalg.det(batch["matrix"][:, :, :2]) < 0
    depth = np.where(mirrored[:, None], plain["depth"][:, list(H36M17.swap)], plain["depth"])
    known &= np.where(mirrored[seen, None], known[:, list(H36M17.swap)], known)
    expected = depth[seen] * (lengths[0] / lengths[1])[:, None]
    assert np.ptp(lengths[0] / lengths[1]) > 0.3
    np.testing.assert_allclose(batch["depth"][seen][known], expected[known], atol=2e-4)


def test_a_crop_that_shows_twice_the_width_has_half_the_depth():
    matrix = crop_matrix((30, 40, 60, 80), SMALL, rotation=25, scale=[2.0, 0.8], flip=[True, False])
    plain = crop_matrix(np.tile([30, 40, 60, 80], (2, 1)), SMALL)
    np.testing.assert_allclose(_zoom(matrix, plain), [0.5, 1.25])


def test_midpoints_can_stay_unlabelled(tmp_path):
    source = Coco(str(fabricate.coco(tmp_path)))
    marked = {}
    for midpoints in (True, False):
        crops = CropsWithDepth(source.samples("train"), H36M18, SMALL, midpoints=midpoints)
        weight = crops[(0, np.arange(len(crops)))]["weight"].any(axis=0)
        marked[midpoints] = {H36M18.joints[j] for j in np.flatnonzero(weight)}
    assert marked[True] - marked[False] == {"spine", "thorax"}
    assert {"pelvis", "mid_shoulder", "nose"} <= marked[False]


@pytest.mark.parametrize("name", ["san_resnet50", "san_resnet152", "resnet50_published"])
def test_presets_of_paper_004_leave_midpoints_unlabelled(name):
    config = yaml.safe_load((shipped_configs() / f"integral/{name}.yaml").read_text())
    assert config["data"]["midpoints"] is False


def test_a_data_module_passes_the_midpoints_on(tmp_path):
    source = Coco(str(fabricate.coco(tmp_path)))
    for module in (HeatmapDataModule, IntegralDataModule):
        arguments = [people()] if module is IntegralDataModule else [source]
        options = {"photographs": source} if module is IntegralDataModule else {}
        data = module(*arguments, **options, input_size=SMALL, midpoints=False, skeleton="H36M17")
        crops = data._crops("train", None)
        spine = H36M17.index("spine")
        assert not crops.labelled[-len(source.samples("train")) :, spine].any()


def test_the_point_between_the_shoulders_is_made_up_in_images_and_in_space():
    samples = people().samples("train")
    batch = CropsWithDepth(samples, H36M18, SMALL)[(0, np.arange(8))]
    shoulders = [H36M17.index("left_shoulder"), H36M17.index("right_shoulder")]
    np.testing.assert_allclose(
        batch["joints3d"][:, 17], samples.joints3d[:8, shoulders].mean(1), atol=1e-6
    )
    seen = batch["weight"][:, 17] > 0
    assert seen.sum() > 4
    back = apply_affine(invert_affine(batch["matrix"]), batch["joints2d"])[seen, 17]
    np.testing.assert_allclose(back, samples.joints2d[:8, shoulders].mean(1)[seen], atol=1e-3)


def test_people_are_evaluated_where_all_joints_and_the_camera_are_known():
    samples = people().samples("train")
    joints3d, focal = samples.joints3d.copy(), samples.focal.copy()
    joints3d[1, 5], focal[2] = np.nan, np.nan
    samples = dataclasses.replace(samples, joints3d=joints3d, focal=focal)
    batch = CropsWithDepth(samples, H36M18, SMALL)[(0, np.arange(4))]
    assert batch["evaluated"].tolist() == [True, False, False, True]
    for name in ("depth", "joints3d", "focal", "principal"):
        assert np.isfinite(batch[name]).all()


def test_actions_are_named():
    crops = CropsWithDepth(people().samples("train"), H36M18, SMALL)
    assert crops.actions == ["walk", "wave"]
    assert set(crops[(0, np.arange(40))]["action"]) == {0, 1}


def test_one_kind_alone_is_not_halved():
    batch = next(iter(prepared(people(20), batch_size=7).train_dataloader()))
    assert len(batch["image"]) == 7
    assert (batch["has_depth"].sum(1) > 0).all()


def test_people_without_depth_cannot_be_trained_on_alone():
    with pytest.raises(DataError, match="flat people: has no joints in 3D"):
        prepared(Flat(10))


def test_a_batch_that_cannot_be_halved_is_an_error():
    with pytest.raises(UsageError, match="batch_size is 5"):
        prepared(people(10), Flat(10), batch_size=5)


def test_validation_is_of_the_source_alone():
    data = prepared(people(90), Flat(400), batch_size=8)
    assert len(data.evaluation_sets["val"]) == 3
    assert "2D alone from flat people" in data.describe()


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no photographs in {PHOTOS}")
def test_photographs_of_sports_join_rendered_people():
    data = prepared(people(16), Coco(str(PHOTOS)), batch_size=8)
    batch = next(iter(data.train_dataloader()))
    assert len(data.train_set) == 240
    limbs = [H36M18.index(name) for name in ("left_knee", "right_wrist", "mid_shoulder")]
    assert batch["weight"][4:, limbs].mean() > 0.5
    assert (batch["weight"][4:, H36M18.index("nose")] == 0).all()
