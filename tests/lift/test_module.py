import dataclasses
import functools
import json
import os
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from pipeline.errors import HeatliftError, UsageError
from pipeline.files import torch_files
from pipeline.lift import LiftDataModule, LiftModule, Martinez, MixSTE, PoseFormer, VideoPose3D
from pipeline.lift.clips import lift_in_windows
from pipeline.lift.lifter import Lifter
from pipeline.lift.losses import MPJPELoss
from pipeline.lift.sequences import PreparedSequence, exact_joints2d, flip_joints, prepare_sequence
from pipeline.mocap.synthetic import Synthetic
from pipeline.pretrain import PretrainDataModule, PretrainModule
from pipeline.training import checkpoints
from pipeline.weights.importing import import_weights


def net(frames=9, **changes):
    torch.manual_seed(0)
    return MixSTE(frames=frames, dim=16, depth=1, heads=2, drop_path=0.0, **changes)


def source(**changes):
    return Synthetic(1, 1, 1, **{"seconds": 1.0, "actions": ("walk", "wave")} | changes)


class Given(nn.Module):
    """Keeps what it was given."""

    skeleton = net().skeleton

    def forward(self, joints2d, visible=None):
        self.joints2d, self.visible = joints2d, visible
        return torch.zeros(*joints2d.shape[:3], 3)


@pytest.mark.parametrize("channels", [2, 3])
def test_unseen_joints_are_the_mask_token_whatever_stood_there(channels):
    given = Given()
    module = LiftModule(given)
    with torch.no_grad():
        module.mask_token.copy_(torch.tensor([0.25, -0.5]))
    joints2d = torch.randn(2, 4, 17, channels)
    visible = torch.rand(2, 4, 17) < 0.5
    poisoned = joints2d.clone()
    poisoned[..., :2][~visible] = torch.nan
    module(poisoned, visible)
    assert torch.equal(given.joints2d[visible], joints2d[visible])
    assert torch.equal(given.joints2d[..., 2:], joints2d[..., 2:])
    assert (given.joints2d[..., :2][~visible] == torch.tensor([0.25, -0.5])).all()
    assert torch.equal(given.visible, visible)


def test_the_mask_token_learns_where_joints_are_hidden():
    module = LiftModule(net())
    visible = torch.ones(2, 9, 17, dtype=torch.bool)
    visible[0, 3, 4] = False
    module(torch.randn(2, 9, 17, 2), visible).square().sum().backward()
    assert module.mask_token.grad.abs().min() > 0


@pytest.mark.parametrize("frames", [3, 9, 22])
def test_flip_test_is_the_average_of_clip_and_mirror_image(frames):
    module = LiftModule(net(), flip_test=True).eval()
    joints2d, visible = torch.randn(frames, 17, 2), torch.rand(frames, 17) < 0.8
    with torch.no_grad():
        one = lift_in_windows(module, module.net, joints2d, visible)
        swap = module.net.skeleton.swap
        two = lift_in_windows(
            module, module.net, flip_joints(joints2d, swap), visible[:, list(swap)]
        )
        expected = (one + flip_joints(two, swap)) / 2
        lifted = module.lift(joints2d, visible)
    assert torch.allclose(lifted, expected - expected[:, :1], atol=1e-6)


def test_flip_test_answers_a_mirror_image_with_the_mirror_image():
    module = LiftModule(net(), flip_test=True).eval()
    joints2d, visible = torch.randn(11, 17, 2), torch.ones(11, 17, dtype=torch.bool)
    swap = module.net.skeleton.swap
    with torch.no_grad():
        one, two = module.lift(joints2d, visible), module.lift(flip_joints(joints2d, swap), visible)
    assert torch.allclose(flip_joints(one, swap), two, atol=1e-6)


def centre_net():
    torch.manual_seed(0)
    return PoseFormer(frames=5, dim=8, depth=1, heads=2, drop_path=0.0).eval()


@pytest.mark.parametrize("flip_test", [False, True])
def test_the_subset_of_a_centre_lifter_is_as_in_the_whole_clip(flip_test):
    whole = LiftModule(centre_net(), flip_test=flip_test)
    few = LiftModule(whole.net, flip_test=flip_test, frames="subset")
    joints2d, visible = torch.randn(20, 17, 2), torch.rand(20, 17) < 0.8
    with torch.no_grad():
        expected, every = whole.lift_evaluated(joints2d, visible)
        lifted, among = few.lift_evaluated(joints2d, visible)
    assert every.all()
    assert among.nonzero()[:, 0].tolist() == [0, 1, 16, 17]
    assert torch.allclose(lifted[among], expected[among], atol=1e-6)
    assert lifted[~among].isnan().all()


@pytest.mark.parametrize(
    ("lifter", "changes", "message"),
    [
        (net, {}, "MixSTE lifts all frames of a window at once; set all"),
        (centre_net, {"smooth": 2.0}, "smooth is 2, which needs every frame; set it to 0"),
    ],
)
def test_a_subset_that_saves_nothing_or_is_to_be_smoothed_is_refused(lifter, changes, message):
    with pytest.raises(UsageError, match=message):
        LiftModule(lifter(), frames="subset", **changes)


def test_lifted_clips_have_their_root_at_zero():
    module = LiftModule(net(), flip_test=False).eval()
    with torch.no_grad():
        lifted = module.lift(torch.randn(5, 17, 2), torch.ones(5, 17, dtype=torch.bool))
    assert not lifted[:, module.net.skeleton.root].any()


@functools.cache
def eight_clips():
    """Eight clips of embedded people, and the first frame of each in its video."""
    found = []
    for s in Synthetic(1, 1, 1, seconds=1.0).sequences("train")[::3][:8]:
        t = prepare_sequence(s, s.skeleton, exact_joints2d(s), np.ones((len(s), 17)))
        found.append((t.joints2d[:9], t.visible[:9], t.joints3d[:9]))
    joints2d, visible, joints3d = (
        torch.from_numpy(np.stack(arrays)) for arrays in zip(*found, strict=True)
    )
    return joints2d, visible, joints3d


@pytest.mark.parametrize("module_class", [LiftModule, PretrainModule])
def test_eight_clips_are_memorised(module_class):
    torch.manual_seed(1)
    module = module_class(VideoPose3D(widths=(3, 3), channels=128, dropout=0.0))
    joints2d, visible, joints3d = eight_clips()
    centre = joints3d[:, 4:5]
    optimizer, loss = torch.optim.AdamW(module.parameters(), lr=5e-3), MPJPELoss()
    for step in range(150):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / 150)
        optimizer.zero_grad()
        error = loss(module(joints2d, visible), centre)
        error.backward()
        optimizer.step()
    assert loss(centre.mean(0, keepdim=True).expand_as(centre), centre) > 0.15
    assert error < 0.005


def fitted(trainer, module, data, **changes):
    made = trainer(max_steps=2, limit_val_batches=1, num_sanity_val_steps=0, **changes)
    made.fit(module, datamodule=data)
    return made


def test_pretrained_weights_start_the_lifter_and_its_checkpoint_needs_no_other_file(
    trainer, tmp_path
):
    path = tmp_path / "pretrained.ckpt"
    giver = PretrainModule(net())
    made = fitted(trainer, giver, PretrainDataModule(source(), batch_size=4))
    made.save_checkpoint(path)
    taker = LiftModule(net(), pretrained=str(path))
    with torch.no_grad():
        taker.mask_token.fill_(9.0)
    taker.trainer = trainer()
    taker.setup("fit")
    assert torch.equal(taker.mask_token, giver.mask_token)
    one, two = giver.net.state_dict(), taker.net.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    report = taker.origin["pretrained"]
    assert len(report["digest"]) == 64
    assert set(report["loaded"]) >= {"mask_token", *(f"net.{name}" for name in one)}
    assert str(path) not in str(report)


def test_weights_of_another_network_are_refused_and_change_nothing(trainer, tmp_path):
    path = tmp_path / "other.ckpt"
    fitted(trainer, PretrainModule(net(frames=5)), PretrainDataModule(source())).save_checkpoint(
        path
    )
    taker = LiftModule(net(), pretrained=str(path))
    before = checkpoints.weights_digest(taker)
    taker.trainer = trainer()
    with pytest.raises(HeatliftError, match="Temporal_pos_embed"):
        taker.setup("fit")
    assert checkpoints.weights_digest(taker) == before


@pytest.fixture
def no_images(monkeypatch):
    """Drawing takes most of the time of a short test."""
    monkeypatch.setattr("pipeline.dashboard.panels.lift_panels", lambda *_, **__: None)


STAGES = [(LiftModule, LiftDataModule), (PretrainModule, PretrainDataModule)]


def numbers_of(trainer, module, data_class, **changes):
    made = trainer(plugins=[checkpoints.AtomicCheckpointIO()], limit_test_batches=2)
    return made.test(module, data_class(source()), verbose=False, **changes)[0]


@pytest.mark.usefixtures("no_images")
@pytest.mark.parametrize(("module_class", "data_class"), STAGES)
def test_pretrained_weights_that_are_tested_give_the_numbers_of_their_checkpoint(
    trainer, tmp_path, module_class, data_class
):
    path = tmp_path / "given.ckpt"
    giver = module_class(net())
    fitted(trainer, giver, data_class(source())).save_checkpoint(path)
    expected = numbers_of(trainer, module_class(net()), data_class, ckpt_path=str(path))
    assert numbers_of(trainer, module_class(net(), pretrained=str(path)), data_class) == expected
    assert numbers_of(trainer, module_class(net()), data_class)["test/mpjpe_mm"] != pytest.approx(
        expected["test/mpjpe_mm"], rel=1e-6
    )


@pytest.mark.usefixtures("no_images")
def test_an_imported_file_is_tested_without_a_mean_pose(trainer, tmp_path):
    theirs = net()
    torch.nn.init.constant_(theirs.head[1].bias, 0.25)
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "theirs.bin")
    import_weights(tmp_path / "theirs.bin", "mixste", tmp_path / "ours.ckpt")
    numbers = {}
    for name, module in {
        "theirs": LiftModule(theirs),
        "ours": LiftModule(net(), pretrained=str(tmp_path / "ours.ckpt")),
    }.items():
        numbers[name] = numbers_of(trainer, module, LiftDataModule)
    assert numbers["ours"] == numbers["theirs"]
    assert "test/mpjpe_mm" in numbers["ours"]
    assert "test/of_mean_pose" not in numbers["ours"]


@pytest.mark.usefixtures("no_images")
@pytest.mark.parametrize(("module_class", "data_class"), STAGES)
@pytest.mark.parametrize("resumed", [False, True])
def test_a_test_after_a_fit_keeps_the_trained_weights(
    trainer, tmp_path, module_class, data_class, resumed
):
    path = tmp_path / "given.ckpt"
    made = fitted(trainer, module_class(net()), data_class(source()))
    made.save_checkpoint(path)
    module = module_class(net(), pretrained=str(path))
    made = trainer(
        max_steps=4,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        plugins=[checkpoints.AtomicCheckpointIO()],
    )
    made.fit(module, data_class(source()), ckpt_path=str(path) if resumed else None)
    before = checkpoints.weights_digest(module.net)
    numbers_of(trainer, module, data_class)
    assert checkpoints.weights_digest(module.net) == before
    assert before != checkpoints.weights_digest(
        {
            name.removeprefix("net."): value
            for name, value in torch_files.read_checkpoint(path)["state_dict"].items()
            if name.startswith("net.")
        }
    )


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_a_part_of_a_network_is_not_tested(trainer, tmp_path, stage):
    weights = LiftModule(net()).state_dict()
    weights.pop("net.head.1.bias")
    torch.save({"state_dict": weights, "heatlift": {"stage": "lift"}}, tmp_path / "part.ckpt")
    module = LiftModule(net(), pretrained=str(tmp_path / "part.ckpt"))
    before = checkpoints.weights_digest(module)
    with pytest.raises(
        UsageError, match=r"only a part of this network, without net\.head\.1\.bias; train"
    ):
        getattr(trainer(), stage)(module, LiftDataModule(source()))
    assert checkpoints.weights_digest(module) == before
    module.trainer = trainer()
    module.setup("fit")
    assert module.origin["pretrained"]["kept"] == ["net.head.1.bias"]


def test_a_z_scored_lifter_gets_the_statistics_of_the_training_split(trainer):
    module, data = LiftModule(Martinez(width=32), loss=MPJPELoss()), LiftDataModule(source())
    fitted(trainer, module, data)
    expected = data.statistics()
    assert torch.equal(module.mean_pose, expected.mean3d)
    assert torch.equal(module.net.mean2d, expected.mean2d)
    assert module.net.deviation3d[0].tolist() == [1.0, 1.0, 1.0]


class OddVideos:
    """Five videos of different lengths, so that no two processes have the same work."""

    skeleton = net().skeleton

    def describe(self):
        return "five videos of odd lengths"

    def sequences(self, split):
        found = Synthetic(1, 1, 1, seconds=2.0, actions=("walk", "wave")).sequences("test")[:5]
        cut = [7, 31, 12, 45, 50]
        return [
            dataclasses.replace(s, joints3d=s.joints3d[:n]) for s, n in zip(found, cut, strict=True)
        ]


class Standing(Lifter):
    """Answers with its 2D, and nothing in depth; the centre frame alone."""

    frames = receptive_field = 1
    output = "centre"

    def forward(self, joints2d, visible=None):
        return nn.functional.pad(joints2d, (0, 1))


class Drifting(LiftDataModule):
    """The wrist of one video drifts off by a millimetre per frame, that of another by two."""

    def _prepare(self, split):
        sequence = self.source.sequences(split)[0]
        found = []
        for group, frames, speed in (("seen", 18, 0.001), ("unseen", 17, 0.002)):
            joints2d = np.random.default_rng(0).uniform(-1, 1, (1, 17, 2)).astype(np.float32)
            joints3d = np.pad(joints2d - joints2d[:, :1], [(0, frames - 1), (0, 0), (0, 1)], "edge")
            joints3d[..., 2] = 0.0
            joints3d[:, 13, 2] = speed * np.arange(frames)
            valid = np.ones(frames, bool)
            valid[1] = group == "seen"
            about = dataclasses.replace(sequence, group=group)
            visible = np.ones((frames, 17), bool)
            found.append(
                PreparedSequence(about, joints2d.repeat(frames, 0), visible, joints3d, valid)
            )
        return found


@pytest.mark.parametrize("frames", ["all", "subset"])
def test_numbers_of_the_subset_worked_by_hand(trainer, frames):
    module, data = LiftModule(Standing(), flip_test=False, frames=frames), Drifting(source())
    made = trainer()
    made.test(module, datamodule=data, verbose=False)
    found = {name: float(value) for name, value in made.callback_metrics.items()}
    # Frames 0, 1, 16 and 17; and 0 and 16 of the other video, whose frame 1 is not valid.
    assert found["test/subset_mpjpe_seen_mm"] == pytest.approx((0 + 1 + 16 + 17) / 4 / 17)
    assert found["test/subset_mpjpe_unseen_mm"] == pytest.approx((0 + 32) / 2 / 17)
    assert found["test/subset_mpjpe_mm"] == pytest.approx((34 + 32) / 6 / 17)
    assert found["test/subset_mpjve_mm"] == pytest.approx(1 / 17)
    every = (sum(range(18)) + 2 * (sum(range(17)) - 1)) / 34 / 17
    wanted = every if frames == "all" else (34 + 32) / 6 / 17
    assert found["test/mpjpe_mm"] == pytest.approx(wanted)
    assert ("test/acceleration_mm" in found) == (frames == "all")
    said = "every valid frame once" if frames == "all" else "valid frames 0 and 1 of every 16 once"
    assert said in module.protocol("test")


class Straying(Drifting):
    """Twenty videos; only the wrist strays, by millimetres known for each, and where invalid."""

    strays = (3, 9, 4, 1, 20, 2, 5, 7, 6, 8, 30, 11, 14, 12, 13, 15, 16, 25, 17, 10)

    def _prepare(self, split):
        model, found = super()._prepare(split)[0], []
        for number, stray in enumerate(self.strays):
            joints3d, valid = model.joints3d.copy(), model.valid.copy()
            joints3d[:, 13, 2] = stray / 1000
            valid[9:] = False
            joints3d[9:, 13, 2] = (100 - stray) / 1000
            about = dataclasses.replace(model.sequence, name=f"video {number}")
            found.append(dataclasses.replace(model, sequence=about, joints3d=joints3d, valid=valid))
        return found


def test_the_clips_shown_are_the_worst_the_middle_and_the_best_by_the_error_that_is_scored(
    trainer, monkeypatch
):
    shown = []
    monkeypatch.setattr(
        "pipeline.dashboard.panels.lift_panels", lambda *given: shown.extend(given[1])
    )
    module = LiftModule(Standing(), flip_test=False, evaluated=16, root_evaluated=False)
    trainer().test(module, datamodule=Straying(source()), verbose=False)
    assert [clip.name for clip in shown] == [f"video {i}" for i in (10, 17, 4, 19, 0, 5, 3)]
    errors = [30, 25, 20, 10, 3, 2, 1]  # of the wrist, one of 15 joints; the invalid frames' is far
    assert [clip.error for clip in shown] == pytest.approx([error / 15 for error in errors])


def scored(trainer):
    """Numbers of a test, and the errors of the clips that are shown by their names."""
    module, shown = LiftModule(net(), flip_test=False), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "pipeline.dashboard.panels.lift_panels", lambda *given: shown.extend(given[1])
        )
        trainer.test(module, datamodule=LiftDataModule(OddVideos(), "noisy"), verbose=False)
    numbers = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return numbers | {clip.name: clip.error for clip in shown}


def one_of_two(rank, folder):
    """Test as one process of two; the first writes the numbers."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"}
    strategy = DDPStrategy(init_method=f"file://{folder}/meet", process_group_backend="gloo")
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    settings |= {"enable_model_summary": False, "use_distributed_sampler": False}
    made = pl.Trainer(
        accelerator="cpu", devices=2, strategy=strategy, default_root_dir=folder, **settings
    )
    made.strategy.cluster_environment = TorchElasticEnvironment()
    numbers = scored(made)
    if rank == 0:
        (folder / "numbers.json").write_text(json.dumps(numbers))


def test_errors_of_two_processes_are_those_of_one(trainer, tmp_path, monkeypatch):
    alone = scored(trainer())
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(20_000 + os.getpid() % 20_000))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads, Python 3.12
        torch.multiprocessing.start_processes(
            one_of_two, (tmp_path,), nprocs=2, start_method="fork"
        )
    together = json.loads((tmp_path / "numbers.json").read_text())
    assert together == pytest.approx(alone, rel=1e-6)
    assert alone["test/mpjpe_mm"] > 10
    assert len([name for name in alone if "/" not in name]) == 5  # the clips of both
