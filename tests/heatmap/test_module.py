import csv
import functools

import fabricate
import numpy as np
import pytest
import torch
from trainers import quiet_trainer

from pipeline.datasets.coco import Coco
from pipeline.datasets.mixed import MixedSource
from pipeline.errors import UsageError
from pipeline.heatmap import HeatmapDataModule, HeatmapModule, HRNet, targets
from pipeline.heatmap.crop import Augmentation
from pipeline.heatmap.image_stage import to_image_pixels
from pipeline.mocap.synthetic import Synthetic
from pipeline.skeleton import COCO17, H36M17
from pipeline.training import checkpoints
from pipeline.weights.importing import import_weights

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")

SMALL = (64, 64)


def narrow(joints: int = 17) -> HRNet:
    torch.manual_seed(1)
    return HRNet(8, joints, stem=16, planes=8, blocks=1, modules=(1, 1, 1))


def people(**changes) -> HeatmapDataModule:
    source = Synthetic(1, 1, 1, images=120, seconds=0.5, actions=("walk", "wave"))
    return HeatmapDataModule(source, input_size=SMALL, **changes)


class Echo(torch.nn.Module):
    """Returns given heatmaps for crops that are brighter on the left, else mirrored ones."""

    def __init__(self, heatmaps: torch.Tensor, mirrored: torch.Tensor) -> None:
        super().__init__()
        self.heatmaps, self.mirrored = heatmaps, mirrored

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        left = images[:, 0, 0, 0] > images[:, 0, 0, -1]
        return torch.where(left[:, None, None, None], self.heatmaps, self.mirrored)


def echo(**settings) -> tuple[HeatmapModule, torch.Tensor, torch.Tensor]:
    """A module that finds given joints, those joints in pixels, and crops as its input."""
    joints2d = 8 + torch.rand(3, 17, 2, generator=torch.Generator().manual_seed(2)) * 48
    mirrored = joints2d[:, list(COCO17.swap)] * torch.tensor([-1, 1]) + torch.tensor([63, 0])
    offset = targets.PUBLISHED_CELLS if settings.get("published_cells") else targets.EXACT_CELLS
    outputs = [
        targets.encode_heatmaps(targets.to_cells(joints, offset=offset), (16, 16))
        for joints in (joints2d, mirrored)
    ]
    images = torch.zeros(3, 64, 64, 3, dtype=torch.uint8)
    images[:, :, :32] = 200
    module = HeatmapModule(Echo(*outputs), skeleton="COCO17", input_size=SMALL, **settings)
    return module.eval(), joints2d, images


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("flip_test", [False, True])
@pytest.mark.parametrize(
    ("decode", "cells"), [("quarter", 0.25), ("argmax", 0.5), ("expectation", 0.1)]
)
def test_detection_finds_joints_in_pixels_of_the_crop(decode, cells, flip_test, published):
    module, joints2d, images = echo(decode=decode, flip_test=flip_test, published_cells=published)
    found, score = module.detect(images)
    # Published cells flip back a quarter of a cell beside themselves: the average is an eighth off.
    slack = 0.55 if published and flip_test else 0.05
    assert (found - joints2d).abs().max() <= 4 * cells + slack
    assert found.dtype == score.dtype == torch.float32
    assert score.min() > 0.8


def test_to_image_pixels_inverts_the_crop_matrix():
    matrix = torch.tensor([[[0.5, 0.1, 3.0], [-0.1, 0.5, 7.0]]], dtype=torch.float64)
    there = torch.tensor([[[10.0, 20.0], [0.0, -4.0]]], dtype=torch.float64)
    crop = there @ matrix[0, :, :2].T + matrix[0, :, 2]
    torch.testing.assert_close(to_image_pixels(crop, matrix), there)


def test_images_are_normalised_as_imagenet_was():
    net = torch.nn.Identity()
    module = HeatmapModule(net, input_size=SMALL)
    seen = module(torch.tensor([255, 0, 128], dtype=torch.uint8).expand(1, 4, 4, 3))
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, (128 / 255 - 0.406) / 0.225]
    np.testing.assert_allclose(seen[0, :, 0, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("channels_last", [False, True])
def test_folded_norms_find_the_same_joints_and_the_settings_tell_it(channels_last):
    module = HeatmapModule(narrow(), input_size=SMALL, channels_last=channels_last).eval()
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    images = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    settings, expected = module.settings(), module(images).detach()
    module.fold_norms()
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in module.net.modules())
    torch.testing.assert_close(module(images), expected, rtol=0, atol=1e-5 * expected.abs().max())
    assert module.settings() == {**settings, "norms": "folded"}
    weight = module.net.layer1[0].conv2.weight
    assert weight.is_contiguous(memory_format=module.layout)


def test_the_norms_of_an_unknown_network_stay():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 17, 3), torch.nn.BatchNorm2d(17))
    module = HeatmapModule(net, input_size=SMALL)
    settings = module.settings()
    module.fold_norms()
    assert module.net is net
    assert module.settings() == settings


def test_a_network_with_other_joints_than_the_skeleton_is_an_error():
    with pytest.raises(UsageError, match="16 heatmaps and COCO17 has 17"):
        HeatmapModule(narrow(16), skeleton="COCO17")


def test_settings_name_all_that_shapes_a_detection_in_plain_types():
    settings = HeatmapModule(narrow(), flip_test=True, decode="argmax").settings()
    assert settings == {
        "version": 1,
        "joints": "H36M17",
        "input_size": [192, 256],
        "padding": 1.25,
        "cell_offset": 1.5,
        "decode": "argmax",
        "flip_test": True,
    }


def test_a_narrow_hrnet_memorises_eight_people():
    data = people(batch_size=8)
    data.setup("fit")
    data.train_set.augmentation = None
    batch = {name: torch.from_numpy(a) for name, a in data.train_set[(0, np.arange(8))].items()}
    torch.manual_seed(0)
    net = HRNet(16, 17, stem=32, planes=16, blocks=1, modules=(1, 1, 1))
    module = HeatmapModule(net, input_size=SMALL, sigma=1.5).train()
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    for _ in range(100):
        loss = module.loss(module(batch["image"]), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found, score = module.eval().detect(batch["image"])
    error = (found - batch["joints2d"]).norm(dim=-1)[batch["weight"] > 0]
    assert error.mean() < 2.0
    assert score[batch["weight"] > 0].mean() > 0.8


def test_a_short_training_logs_losses_and_pck_and_keeps_examples(tmp_path):
    module = HeatmapModule(
        narrow(), functools.partial(torch.optim.Adam, lr=1e-3), input_size=SMALL, flip_test=True
    )
    fit = quiet_trainer(tmp_path, max_epochs=1, limit_train_batches=2, precision="bf16-mixed")
    fit.fit(module, people(batch_size=8, augmentation=Augmentation(colour=0.2)))
    logged = fit.callback_metrics
    assert {"train/loss", "val/loss", "val/pck_0.05", "val/pck_0.1", "val/pck_0.2"} <= set(logged)
    assert logged["val/pck_0.05"] <= logged["val/pck_0.2"]
    assert torch.isfinite(logged["val/loss"])
    assert set(module.report) > {"pck@0.1", "pck@0.1/nose"}
    assert len(module.examples) == 4
    assert module.examples[0]["image"].shape == (64, 64, 3)
    assert module.examples[0]["heatmaps"].shape == (17, 16, 16)
    assert module.examples[0]["joints2d"].shape == module.examples[0]["truth"].shape == (17, 2)


def test_pck_counts_in_the_whole_image_and_predictions_come_in_its_pixels(tmp_path):
    module, data = HeatmapModule(narrow(), input_size=SMALL), people(evaluation_batch=3)
    run = quiet_trainer(tmp_path)
    (results,) = run.test(module, data, verbose=False)
    predictions = run.predict(module, data)
    samples = data.source.samples("test")
    found = torch.cat([batch["joints2d"] for batch in predictions]).numpy()
    assert torch.cat([batch["index"] for batch in predictions]).tolist() == list(range(4))
    size = np.nanmax(np.nanmax(samples.joints2d, 1) - np.nanmin(samples.joints2d, 1), axis=1)
    near = np.linalg.norm(found - samples.joints2d, axis=-1) <= 0.2 * size[:, None]
    assert results["test/pck_0.2"] == pytest.approx(near[samples.labelled].mean(), abs=1e-6)


def test_oks_nms_uses_the_area_that_the_crop_shows(tmp_path):
    data = HeatmapDataModule(
        Coco(str(fabricate.coco(tmp_path))), skeleton="COCO17", input_size=(64, 96), padding=1.25
    )
    module = HeatmapModule(narrow(), skeleton="COCO17", input_size=(64, 96), padding=1.25)
    quiet_trainer(tmp_path).test(module, data, verbose=False)
    areas = module.benchmark_metrics[0].metric.rows[0][:, 2]
    # The box of 43 x 37 pixels fills the width: 43 x 64.5, and 1.25 times that per side.
    torch.testing.assert_close(areas, torch.full((4,), 43 * 64.5 * 1.25**2).double())


def test_a_test_of_a_mixture_has_a_row_per_source(tmp_path, capsys):
    source = MixedSource(
        [
            Coco(str(fabricate.coco(tmp_path / "coco"))),
            Synthetic(1, 1, 1, images=90, seconds=0.5, actions=("walk",)),
        ]
    )
    module = HeatmapModule(narrow(), input_size=SMALL)
    data = HeatmapDataModule(source, input_size=SMALL, evaluation_batch=3)
    quiet_trainer(tmp_path).test(module, data, verbose=False)
    printed = capsys.readouterr().out
    assert "4 images of Coco coco + 3 images of Synthetic; H36M17" in printed
    with (tmp_path / "tables" / "test-pck_per_source.csv").open() as file:
        coco, synthetic = csv.DictReader(file)
    limbs = [j for j, name in enumerate(H36M17.joints) if name.split("_")[0] in ("left", "right")]
    labelled = data.evaluation_sets["test"].labelled
    assert (coco["source"], coco["images"]) == ("Coco coco", "4")
    assert int(coco["limb joints"]) == labelled[:4, limbs].sum()
    assert int(synthetic["joints"]) == labelled[4:].sum()
    both = [(float(row["pck@0.2"]), int(row["joints"])) for row in (coco, synthetic)]
    total = sum(share * joints for share, joints in both) / sum(joints for _, joints in both)
    assert total == pytest.approx(100 * module.report["pck@0.2"], abs=1e-3)


def test_a_fit_can_start_from_another_runs_weights(tmp_path):
    first = HeatmapModule(narrow(), input_size=SMALL)
    teacher = quiet_trainer(tmp_path, max_steps=1)
    teacher.fit(first, people(batch_size=4))
    teacher.save_checkpoint(tmp_path / "first.ckpt")
    second = HeatmapModule(
        HRNet(8, 17, ((1, 1),), stem=16, planes=8, blocks=1, modules=(1, 1, 1)),
        functools.partial(torch.optim.SGD, lr=0.0),
        input_size=SMALL,
        pretrained=str(tmp_path / "first.ckpt"),
    )
    quiet_trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(second, people(batch_size=4))
    assert torch.equal(second.net.conv1.weight, first.net.conv1.weight)
    assert all("attention" in name for name in second.origin["pretrained"]["kept"])


def test_pretrained_weights_that_are_tested_give_the_numbers_of_their_checkpoint(tmp_path):
    module = HeatmapModule(narrow(), functools.partial(torch.optim.Adam, lr=0.1), input_size=SMALL)
    teacher = quiet_trainer(tmp_path, max_steps=2, limit_val_batches=0)
    teacher.fit(module, people(batch_size=4))
    path = str(tmp_path / "given.ckpt")
    teacher.save_checkpoint(path)

    def numbers(**changes):
        fresh = HeatmapModule(narrow(), input_size=SMALL, **changes)
        tester = quiet_trainer(tmp_path, plugins=[checkpoints.AtomicCheckpointIO()])
        given = None if changes else path
        return fresh, tester.test(fresh, people(), ckpt_path=given, verbose=False)[0]

    _, expected = numbers()
    started, found = numbers(pretrained=path)
    assert found == expected
    assert torch.equal(started.net.conv1.weight, module.net.conv1.weight)


def test_a_test_after_a_fit_keeps_the_trained_weights(tmp_path):
    first = HeatmapModule(narrow(), input_size=SMALL)
    path = tmp_path / "given.ckpt"
    torch.save({"state_dict": first.state_dict(), "heatlift": {"stage": "heatmap"}}, path)
    module = HeatmapModule(narrow(), input_size=SMALL, pretrained=str(path))
    quiet_trainer(tmp_path, max_steps=2, limit_val_batches=0).fit(module, people(batch_size=4))
    before = checkpoints.weights_digest(module.net.final_layer)
    quiet_trainer(tmp_path, limit_test_batches=1).test(module, people(), verbose=False)
    assert checkpoints.weights_digest(module.net.final_layer) == before
    assert before != checkpoints.weights_digest(first.net.final_layer)


def test_a_backbone_alone_is_not_tested(tmp_path):
    state = HRNet(32, 17).state_dict()
    torch.save(
        {name: value for name, value in state.items() if "final" not in name}, tmp_path / "b"
    )
    import_weights(tmp_path / "b", "hrnet", tmp_path / "b.ckpt", part="backbone")
    module = HeatmapModule(HRNet(32, 17), pretrained=str(tmp_path / "b.ckpt"))
    message = r"part of this network, without net\.final_layer\.bias, net\.final_layer\.weight; t"
    with pytest.raises(UsageError, match=message):
        quiet_trainer(tmp_path).test(module, people())
