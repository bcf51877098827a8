import functools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from trainers import quiet_trainer

from pipeline.datasets.coco import Coco
from pipeline.detections.cache import detect_sequences
from pipeline.errors import UsageError
from pipeline.files.store import Store
from pipeline.heatmap import HeatmapModule, SimpleBaseline
from pipeline.integral import SAN, IntegralDataModule, IntegralModule
from pipeline.integral.data import CropsWithDepth
from pipeline.integral.relations import joint_relations
from pipeline.integral.san import PositionAttention
from pipeline.integral.volumes import expectation
from pipeline.mocap.synthetic import Synthetic
from pipeline.skeleton import H36M17, H36M18, make_conversion
from pipeline.training import checkpoints

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")

PHOTOS = Path(os.environ.get("HEATLIFT_SHARED", "../shared")) / "data" / "photos"
SMALL = (64, 96)
COLUMNS, ROWS, BINS = 16, 24, 10


def people(images=240):
    return Synthetic(1, 1, 1, actions=("walk", "wave"), seconds=0.5, images=images)


def batch_of(count, images=240):
    """Crops of people who are whole in the image, as tensors."""
    crops = CropsWithDepth(people(images).samples("train"), H36M18, SMALL)
    whole = np.flatnonzero(crops.labelled.all(1))[:count]
    return {name: torch.from_numpy(a) for name, a in crops[(0, whole)].items()}


def volume_with_means(cells):
    """Logits of volumes whose mass lies in the eight cells around each place, (B, J, D, H, W)."""
    x, y, z = (
        (1 - (cells[..., axis, None] - torch.arange(size)).abs()).clamp(min=0)
        for axis, size in enumerate((COLUMNS, ROWS, BINS))
    )
    mass = z[..., :, None, None] * y[..., None, :, None] * x[..., None, None, :]
    return (mass + 1e-12).log()


def cells_of(batch):
    """Where a network should see the joints of a batch: cells of 4 pixels, bins of 0.2 m."""
    xy = (batch["joints2d"].float() - 1.5) / 4
    return torch.cat([xy, (batch["depth"][..., None] + 1.0) / 0.2 - 0.5], dim=-1)


class Oracle(torch.nn.Module):
    """Returns given volumes for crops that are brighter on the left, else mirrored ones."""

    joints = 18

    def __init__(self, cells):
        super().__init__()
        mirrored = cells[:, list(H36M18.swap)].clone()
        mirrored[..., 0] = COLUMNS - 1 - mirrored[..., 0]
        self.volumes = volume_with_means(cells), volume_with_means(mirrored)

    def forward(self, images):
        left = images[:, 0, 0, 0] > images[:, 0, 0, -1]
        return torch.where(left[:, None, None, None, None], *self.volumes)


class Narrow(torch.nn.Module):
    """A small network of the same shapes."""

    joints = 18

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 32, 8, 4, 2),
            torch.nn.ReLU(),
            torch.nn.Conv2d(32, 64, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.Conv2d(64, 18 * BINS, 3, padding=1),
        )

    def forward(self, images):
        return self.layers(images).unflatten(1, (18, BINS))


def oracle_module(batch, **settings):
    """A module that finds the exact joints, and crops by which it knows the mirrored ones."""
    module = IntegralModule(Oracle(cells_of(batch)), input_size=SMALL, **settings).eval()
    images = torch.zeros(len(batch["image"]), 96, 64, 3, dtype=torch.uint8)
    images[:, :, :32] = 200
    return module, images


@pytest.mark.parametrize("flip_test", [False, True])
def test_detection_finds_joints_in_pixels_of_the_crop(flip_test):
    batch = batch_of(4)
    module, images = oracle_module(batch, flip_test=flip_test)
    found, score = module.detect(images)
    torch.testing.assert_close(found, batch["joints2d"], atol=1e-2, rtol=0)
    assert found.dtype == score.dtype == torch.float32
    torch.testing.assert_close(score, torch.ones(4, 18), atol=1e-3, rtol=0)


@pytest.mark.parametrize("flip_test", [False, True])
def test_the_right_volumes_lead_back_to_the_true_joints_in_space(flip_test):
    batch = batch_of(4)
    module, images = oracle_module(batch, flip_test=flip_test)
    predicted = module.predict_step(batch | {"image": images}, 0)
    # The middle of two joints in an image is only about the image of their middle in space.
    found, true = predicted["joints3d"][:, :17], batch["joints3d"][:, :17]
    torch.testing.assert_close(found, true, atol=2e-4, rtol=0)
    torch.testing.assert_close(predicted["depth"], batch["depth"], atol=1e-4, rtol=0)


def test_the_right_volumes_have_no_loss():
    batch = batch_of(4)
    module, images = oracle_module(batch)
    assert module.loss(module(images), batch) < 1e-5


def test_joints_are_exact_in_mixed_precision():
    batch = batch_of(4)
    module, images = oracle_module(batch, flip_test=True)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = module.detect(images)
    torch.testing.assert_close(found, batch["joints2d"], atol=1e-2, rtol=0)


def test_loss_by_hand():
    batch = batch_of(1)
    cells = cells_of(batch)
    off = cells + torch.tensor([1.0, 0.0, 0.0])
    off[:, 3, 2] += 2.0
    module = IntegralModule(Oracle(off), input_size=SMALL)
    expected = (18 * 1 / COLUMNS + 2 / BINS) / (18 * 3)
    assert module.loss(volume_with_means(off), batch).item() == pytest.approx(expected, rel=1e-4)


def test_joints_without_depth_give_no_gradient_to_depth():
    batch = batch_of(4)
    batch["has_depth"][2:] = 0
    batch["depth"][2:] = 123.0
    cells = (cells_of(batch_of(4)) - 0.3).requires_grad_()
    module = IntegralModule(Narrow(), input_size=SMALL)
    module.loss(volume_with_means(cells), batch).backward()
    pull = cells.grad.abs()
    assert pull[2:, :, 2].max() < 1e-6 < 1e-4 < pull[:2, :, 2].min()
    assert pull[2:, :, :2].min() > 1e-4


def test_no_bin_of_depth_is_pulled_by_a_photograph():
    """Where columns, rows and bins are independent, as when the network knows no depth."""
    torch.manual_seed(0)
    batch = batch_of(2)
    batch["has_depth"][1] = 0
    shapes = ((2, 18, BINS, 1, 1), (2, 18, 1, ROWS, 1), (2, 18, 1, 1, COLUMNS))
    volumes = sum(torch.randn(shape) for shape in shapes).requires_grad_()
    IntegralModule(Narrow(), input_size=SMALL).loss(volumes, batch).backward()
    pull = volumes.grad.sum((3, 4)).abs().amax((1, 2))
    assert pull[1] < 1e-3 * pull[0]


def test_joints_outside_of_crop_or_cube_do_not_count():
    batch = batch_of(1)
    far = {name: tensor.clone() for name, tensor in batch.items()}
    far["joints2d"][0, 4, 0] = 70.0
    far["depth"][0, 5] = 1.01
    module = IntegralModule(Narrow(), input_size=SMALL)
    volumes = volume_with_means(cells_of(batch) + 0.5).requires_grad_()
    module.loss(volumes, far).backward()
    moved = volumes.grad.abs().sum((0, 2, 3, 4)) > 0
    assert (~moved).nonzero()[:, 0].tolist() == [4, 5]


def test_loss_does_not_depend_on_how_many_joints_are_unlabelled():
    batch = batch_of(2)
    volumes = volume_with_means(cells_of(batch) + torch.tensor([0.8, 0.8, 0.8]))
    module = IntegralModule(Narrow(), input_size=SMALL)
    whole = module.loss(volumes, batch)
    batch["weight"][:, ::2] = batch["has_depth"][:, ::2] = 0
    torch.testing.assert_close(module.loss(volumes, batch), whole, rtol=1e-4, atol=0)
    batch["weight"][:] = batch["has_depth"][:] = 0
    assert module.loss(volumes, batch) == 0


def test_the_loss_of_an_evaluation_does_not_depend_on_its_batches(monkeypatch):
    """People have unequal numbers of labels: the mean is over labels, not over people."""
    batch = batch_of(4)
    batch["weight"][2, :15], batch["has_depth"][2:] = 0, 0
    off = torch.tensor([0.3, 0.9, 1.7]) * torch.arange(4)[:, None, None]
    module = IntegralModule(Oracle(cells_of(batch) + off), input_size=SMALL)
    volumes = volume_with_means(cells_of(batch) + off)
    whole = module.loss(volumes, batch)
    monkeypatch.setattr(module, "log", lambda *arguments, **options: None)
    monkeypatch.setattr(IntegralModule, "forward", lambda self, images: self.given)
    module.benchmark_metrics, module.source_hits, module.examples = [], None, ["shown"]
    for parts in ([slice(0, 4)], [slice(0, 1), slice(1, 4)], [slice(0, 3), slice(3, 4)]):
        module.losses["val"].reset()
        for part in parts:
            module.given = volumes[part]
            module.score("val", {name: array[part] for name, array in batch.items()})
        torch.testing.assert_close(module.losses["val"].compute().float(), whole)


def test_published_cells_lie_at_quarters_of_pixels():
    batch = batch_of(1)
    module = IntegralModule(Narrow(), input_size=SMALL, published_cells=True)
    cells = torch.cat([batch["joints2d"] / 4, (batch["depth"][..., None] + 1) / 0.2], dim=-1)
    found, _, _ = module.find_joints(batch["image"], volume_with_means(cells))
    torch.testing.assert_close(found[..., :2], batch["joints2d"], atol=1e-2, rtol=0)
    torch.testing.assert_close(found[..., 2], batch["depth"], atol=1e-4, rtol=0)


def test_a_module_memorises_eight_people_in_space():
    torch.manual_seed(0)
    batch = batch_of(8)
    module = IntegralModule(Narrow(), input_size=SMALL).train()
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    for _ in range(100):
        loss = module.loss(module(batch["image"]), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = module.eval().predict_step(batch, 0)["joints3d"] - batch["joints3d"]
    assert found.norm(dim=-1).mean() < 0.1


@pytest.mark.slow
def test_san_memorises_eight_people_in_space():
    torch.manual_seed(0)
    batch = batch_of(8)
    module = IntegralModule(SAN(50, 18, BINS), input_size=SMALL).train()
    optimizer = torch.optim.Adam(module.parameters(), 1e-3)
    for _ in range(100):
        loss = module.loss(module(batch["image"]), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    cells, true = expectation(module(batch["image"])), cells_of(batch)
    assert (cells - true).abs().mean() < 0.7
    assert module.net.attention.delta != 0


def test_a_short_training_logs_errors_in_space_and_shares_in_images(tmp_path):
    net = Narrow()
    net.attention = PositionAttention(8)
    net.relations = lambda images: torch.full((len(images), 6, 6), 1 / 6)
    module = IntegralModule(
        net, functools.partial(torch.optim.Adam, lr=1e-3), input_size=SMALL, flip_test=True
    )
    data = IntegralDataModule(people(), input_size=SMALL, batch_size=8)
    fit = quiet_trainer(tmp_path, max_epochs=1, limit_train_batches=2, precision="bf16-mixed")
    fit.fit(module, data)
    logged = fit.callback_metrics
    assert logged["train/delta"] == 0
    assert 100 < logged["val/mpjpe_mm"] < 1000
    assert logged["val/p_mpjpe_mm"] < logged["val/mpjpe_mm"]
    assert logged["val/pck_0.05"] <= logged["val/pck_0.2"]
    assert set(module.report) > {"pck@0.1", "pck@0.1/mid_shoulder"}
    assert module.examples[0]["heatmaps"].shape == (18, ROWS, COLUMNS)
    assert len(list((tmp_path / "images").glob("val-relations-*.png"))) == 1


def test_errors_are_those_of_seventeen_joints_and_come_per_action(tmp_path, capsys):
    module = IntegralModule(Narrow(), input_size=SMALL)
    data = IntegralDataModule(people(), input_size=SMALL, evaluation_batch=3)
    run = quiet_trainer(tmp_path)
    (results,) = run.test(module, data, verbose=False)
    found = torch.cat([batch["joints3d"] for batch in run.predict(module, data)]).numpy()
    samples = data.source.samples("test")
    poses = make_conversion(H36M18, H36M17).joints(found)
    error = (poses - poses[:, :1]) - (samples.joints3d - samples.joints3d[:, :1])
    error = np.linalg.norm(error, axis=-1).mean(1) * 1000
    assert len(poses) == 8
    assert results["test/mpjpe_mm"] == pytest.approx(error.mean(), rel=1e-4)
    of = np.array(samples.actions)
    per_action = np.mean([error[of == name].mean() for name in sorted(set(of))])
    assert results["test/mpjpe_action_mean_mm"] == pytest.approx(per_action, rel=1e-4)
    rigid = []
    for a, b in zip(poses, samples.joints3d, strict=True):
        a, b = a - a.mean(0), b - b.mean(0)
        turned = Rotation.align_vectors(b, a)[0].apply(a)
        rigid.append(1000 * np.linalg.norm(turned - b, axis=-1).mean())
    assert results["test/rigid_mpjpe_mm"] == pytest.approx(np.mean(rigid), rel=1e-4)
    printed = capsys.readouterr().out
    assert "17 joints, visible or not, root-relative, re-rooted, true root depth" in printed
    assert "P-MPJPE    rigid" in printed
    assert "rigid: MPJPE after the best rotation and shift" in printed
    assert (tmp_path / "tables" / "test-per_action.csv").exists()


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no photographs in {PHOTOS}")
def test_photographs_are_evaluated_as_by_coco_and_not_in_3d(tmp_path):
    module = IntegralModule(Narrow(), input_size=SMALL)
    data = IntegralDataModule(Coco(str(PHOTOS)), input_size=SMALL)
    (results,) = quiet_trainer(tmp_path).test(module, data, verbose=False)
    assert 0 <= results["test/oks_ap"] < 0.2
    assert 0 < results["test/pck_0.2"] < 1
    assert "test/mpjpe_mm" not in results


def test_detections_reach_a_lifter_as_its_joints(tmp_path):
    module = IntegralModule(Narrow(), input_size=SMALL).eval()
    sequences = Synthetic(1, 1, 1, actions=("wave",), seconds=0.2).sequences("test")[:1]
    found = detect_sequences(sequences, module, "digest", store=Store(tmp_path))
    joints2d, score = found.of(sequences[0].name, H36M17)
    assert joints2d.shape == (5, 17, 2)
    assert ((score > 0) & (score <= 1)).all()


def test_a_fit_can_start_from_a_2d_stage_with_the_same_trunk(tmp_path):
    teacher = HeatmapModule(SimpleBaseline(50, 17), input_size=(64, 64))
    torch.nn.init.constant_(teacher.net.conv1.weight, 0.25)
    torch.save(
        {"state_dict": teacher.state_dict(), "heatlift": {"stage": "heatmap"}},
        tmp_path / "teacher.ckpt",
    )
    module = IntegralModule(
        SAN(50, 18, 2),
        functools.partial(torch.optim.SGD, lr=0.0),
        input_size=(64, 64),
        pretrained=str(tmp_path / "teacher.ckpt"),
    )
    data = IntegralDataModule(people(60), input_size=(64, 64), batch_size=2)
    quiet_trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(module, data)
    assert (module.net.conv1.weight == 0.25).all()
    report = module.origin["pretrained"]
    assert {name.split(".")[1] for name in report["loaded"]} == {
        *("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "deconv_layers"),
        *("order", "mean", "deviation"),
    }
    assert not report["kept"]


@pytest.mark.slow
def test_pretrained_weights_that_are_tested_give_the_numbers_of_their_checkpoint(tmp_path):
    torch.manual_seed(3)
    module = IntegralModule(SAN(50, 18, 2), input_size=(64, 64))
    teacher = quiet_trainer(tmp_path, max_steps=1, limit_val_batches=0)
    data = IntegralDataModule(people(60), input_size=(64, 64), batch_size=2)
    teacher.fit(module, data)
    path = str(tmp_path / "given.ckpt")
    teacher.save_checkpoint(path)
    numbers = []
    for pretrained, ckpt_path in ((None, path), (path, None)):
        fresh = IntegralModule(SAN(50, 18, 2), input_size=(64, 64), pretrained=pretrained)
        tester = quiet_trainer(
            tmp_path, limit_test_batches=1, plugins=[checkpoints.AtomicCheckpointIO()]
        )
        numbers += tester.test(fresh, data, ckpt_path=ckpt_path, verbose=False)
        assert torch.equal(fresh.net.final_layer.weight, module.net.final_layer.weight)
    assert numbers[0] == numbers[1]
    quiet_trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(fresh, data)
    before = checkpoints.weights_digest(fresh.net.final_layer)
    quiet_trainer(tmp_path, limit_test_batches=1).test(fresh, data, verbose=False)
    assert checkpoints.weights_digest(fresh.net.final_layer) == before
    assert before != checkpoints.weights_digest(module.net.final_layer)


def test_a_2d_stage_is_not_tested_in_space(tmp_path):
    teacher = HeatmapModule(SimpleBaseline(50, 17), input_size=(64, 64))
    path = tmp_path / "teacher.ckpt"
    torch.save({"state_dict": teacher.state_dict(), "heatlift": {"stage": "heatmap"}}, path)
    module = IntegralModule(SAN(50, 18, 2), input_size=(64, 64), pretrained=str(path))
    with pytest.raises(UsageError, match=r"part of this network, without net\.attention\.delta"):
        quiet_trainer(tmp_path).test(module, IntegralDataModule(people(60), input_size=(64, 64)))


def test_settings_name_all_that_shapes_a_detection_in_plain_types():
    module = IntegralModule(Narrow(), input_size=SMALL, flip_test=True)
    assert module.settings() == {
        "version": 1,
        "joints": "H36M18",
        "input_size": [64, 96],
        "padding": 1.25,
        "cell_offset": 1.5,
        "decode": "soft-argmax",
        "flip_test": True,
    }


def test_invalid_settings_are_errors():
    with pytest.raises(UsageError, match="18 volumes and H36M17 has 17"):
        IntegralModule(Narrow(), skeleton="H36M17")
    with pytest.raises(UsageError, match=r"cube is 0\.0"):
        IntegralModule(Narrow(), cube=0.0)


def test_joint_relations_by_hand():
    relations = torch.tensor([[[0.7, 0.3], [0.2, 0.8]]])
    joints2d = torch.tensor([[[15.5, 40.0], [47.5, 3.0], [31.5, 9.0]]])
    found = joint_relations(relations, joints2d, (1, 2))[0]
    torch.testing.assert_close(found[0], 2 * torch.tensor([0.7, 0.3, 0.5]))
    torch.testing.assert_close(found[2], 2 * torch.tensor([0.45, 0.55, 0.5]))
