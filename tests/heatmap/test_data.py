import cv2
import numpy as np
import pytest
import torch

from pipeline.errors import DataError, UsageError
from pipeline.heatmap import HeatmapDataModule
from pipeline.heatmap.crop import Augmentation, apply_affine, invert_affine
from pipeline.heatmap.data import Crops
from pipeline.mocap.synthetic import Synthetic
from pipeline.skeleton import COCO17, H36M17, MPII16
from pipeline.sources import Samples

EVERYTHING = Augmentation(shift=0.1, quarter_turns=True, colour=0.2, patches=0.3, noise=4.0)


class Dots:
    """Black images of 400 x 300 pixels, each with a soft white dot on one joint."""

    def __init__(self, joints2d: np.ndarray, which: np.ndarray) -> None:
        self.centres = joints2d[np.arange(len(joints2d)), which]

    def __len__(self) -> int:
        return len(self.centres)

    def size(self, index: int) -> tuple[int, int]:
        return 400, 300

    def crop(self, index: int, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        rows, columns = np.mgrid[:300, :400]
        x, y = self.centres[index]
        dot = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 4.0**2))
        whole = np.repeat(np.round(dot).astype(np.uint8)[..., None], 3, axis=2)
        return cv2.warpAffine(whole, matrix, size)

    def fingerprint(self, index: int) -> str:
        return str(index)


def dotted(count: int = 34) -> tuple[Samples, np.ndarray]:
    draw = np.random.default_rng(4)
    joints2d = draw.uniform([120, 70], [280, 230], (count, 17, 2)).astype(np.float32)
    which = np.arange(count) % 17
    boxes = np.concatenate([joints2d.min(1), np.ptp(joints2d, axis=1)], axis=1)
    labelled = np.ones((count, 17), bool)
    return Samples(H36M17, Dots(joints2d, which), joints2d, labelled, boxes), which


def test_evaluation_reads_images_in_as_many_processes_as_training():
    source = Synthetic(train=2, val=1, test=1, actions=["walk"], seconds=1.0, images=60)
    data = HeatmapDataModule(source, input_size=(64, 64), workers=2)
    data.setup("fit")
    assert data.val_dataloader().num_workers == data.train_dataloader().num_workers == 2


def test_labels_follow_the_image_through_every_variation():
    samples, which = dotted()
    varied = Augmentation(shift=0.05, quarter_turns=True, half_body=0.5)
    batch = Crops(samples, H36M17, (96, 128), augmentation=varied, seed=3)[(1, np.arange(34))]
    mirrored = np.linalg.det(batch["matrix"][:, :, :2]) < 0
    assert 5 < mirrored.sum() < 29
    label = np.where(mirrored, np.array(H36M17.swap)[which], which)
    expected = batch["joints2d"][np.arange(34), label]
    rows, columns = np.mgrid[:128, :96]
    found = 0
    for image, (x, y) in zip(batch["image"][..., 0].astype(float), expected, strict=True):
        if 12 < x < 83 and 12 < y < 115:
            centre = [(image * v).sum() / image.sum() for v in (columns, rows)]
            np.testing.assert_allclose(centre, [x, y], atol=0.1)
            found += 1
    assert found > 15


def test_the_matrix_leads_back_to_the_joints_in_the_whole_image():
    samples, _ = dotted(6)
    batch = Crops(samples, H36M17, (96, 128))[(0, np.arange(6))]
    back = apply_affine(invert_affine(batch["matrix"]), batch["joints2d"])
    np.testing.assert_allclose(back, samples.joints2d, atol=1e-4)
    longer = np.ptp(samples.joints2d, axis=1).max(axis=1)
    np.testing.assert_allclose(batch["scale"], longer, rtol=1e-6)


def test_a_sample_is_the_same_in_any_company_and_differs_between_epochs():
    crops = Crops(dotted()[0], H36M17, (96, 128), augmentation=EVERYTHING, seed=3)
    together, alone = crops[(5, np.array([9, 2, 30]))], crops[(5, np.array([30]))]
    for name, array in alone.items():
        np.testing.assert_array_equal(array[0], together[name][2])
    assert not np.array_equal(crops[(6, np.array([30]))]["image"], alone["image"])


def test_batches_do_not_depend_on_the_number_of_workers():
    data = HeatmapDataModule(
        Synthetic(1, 1, 1, images=8, seconds=0.2, actions=("walk",)),
        input_size=(64, 64),
        augmentation=EVERYTHING,
        batch_size=3,
    )
    data.setup("fit")
    alone = list(data.train_dataloader())
    data.workers = 2
    for mine, theirs in zip(alone, data.train_dataloader(), strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_evaluation_shows_plain_crops_in_order():
    data = HeatmapDataModule(
        Synthetic(1, 1, 1, images=120, seconds=0.2, actions=("walk",)),
        input_size=(64, 96),
        evaluation_batch=3,
    )
    data.setup("test")
    batches = list(data.test_dataloader())
    assert torch.cat([batch["index"] for batch in batches]).tolist() == [0, 1, 2, 3]
    assert batches[0]["image"].shape == (3, 96, 64, 3)
    assert batches[0]["image"].dtype == torch.uint8
    assert (torch.det(batches[0]["matrix"][:, :, :2]) > 0).all()


def test_joints_that_a_source_lacks_have_no_weight():
    samples, _ = dotted(2)
    batch = Crops(samples, COCO17, (96, 128))[(0, np.arange(2))]
    missing = [
        COCO17.index(f"{side}_{part}") for side in ("left", "right") for part in ("eye", "ear")
    ]
    assert (batch["weight"][:, missing] == 0).all()
    assert (batch["joints2d"][:, missing] == 0).all()
    assert batch["weight"].sum() == 2 * 13


def test_unlabelled_joints_and_those_outside_the_image_have_no_weight():
    samples, _ = dotted(3)
    samples.labelled[0, 5] = False
    samples.joints2d[1, 6] = np.nan
    samples.joints2d[2, 7] = 410, 100
    batch = Crops(samples, H36M17, (96, 128))[(0, np.arange(3))]
    assert np.argwhere(batch["weight"] == 0).tolist() == [[0, 5], [1, 6], [2, 7]]
    assert np.isfinite(batch["joints2d"]).all()


def test_a_person_without_any_joint_has_neither_weight_nor_size():
    samples, _ = dotted(2)
    samples.labelled[0] = False
    batch = Crops(samples, H36M17, (96, 128), augmentation=EVERYTHING)[(0, np.arange(2))]
    assert batch["weight"][0].sum() == 0
    assert batch["scale"][0] == 0
    assert np.isfinite(batch["matrix"]).all()


def test_people_without_a_box_are_left_out_and_the_others_keep_their_index():
    samples, _ = dotted(5)
    samples.boxes[2] = np.nan
    crops = Crops(samples, H36M17, (96, 128))
    assert len(crops) == 4
    assert crops[(0, np.arange(4))]["index"].tolist() == [0, 1, 3, 4]


def test_an_empty_split_is_an_error():
    samples = Samples(
        MPII16,
        Dots(np.zeros((0, 16, 2)), np.zeros(0, int)),
        np.zeros((0, 16, 2), np.float32),
        np.zeros((0, 16), bool),
        np.zeros((0, 4), np.float32),
    )
    with pytest.raises(DataError, match="no image"):
        Crops(samples, MPII16, (64, 64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_size": (100, 128)}, "multiples of 32"),
        ({"skeleton": "COCO18"}, "COCO18.*H36M17"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_invalid_settings_are_errors(changes, message):
    with pytest.raises(UsageError, match=message):
        HeatmapDataModule(Synthetic(), **changes)
