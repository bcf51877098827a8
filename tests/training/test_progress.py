"""The share of a training that is done, for each way to limit its length."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from pipeline.errors import UsageError
from pipeline.lift import Cascade, LiftDataModule, LiftModule, VideoPose3D
from pipeline.lift.losses import MPJPELoss
from pipeline.mocap.synthetic import Synthetic
from pipeline.training import WarmupCosine
from pipeline.training.checkpoints import AtomicCheckpointIO
from pipeline.training.progress import Progress
from pipeline.training.run_folder import Run
from pipeline.training.saving import CheckpointCallback


class Recorder(LiftModule):
    """Records epoch, optimizer step and what `read` reads of the network, before each batch."""

    def __init__(self, net, read, **changes):
        super().__init__(net, loss=MPJPELoss(), **changes)
        self.read, self.seen = read, []

    def on_train_batch_start(self, batch, batch_idx):
        super().on_train_batch_start(batch, batch_idx)
        self.seen.append((self.current_epoch, self.trainer.global_step, self.read(self.net)))


def momentum(net):
    return net.expand_bn.momentum


def fit(trainer, read, net, ckpt_path=None, schedule=None, **limits):
    """Train; 8 batches per epoch. The recorded states and the Trainer."""
    source = Synthetic(1, 1, 1, seconds=1.0, actions=("walk", "wave"))
    module = Recorder(net, read, schedule=schedule)
    settings = {"num_sanity_val_steps": 0, "limit_val_batches": 0, "limit_train_batches": 8}
    fitted = trainer(plugins=[AtomicCheckpointIO()], **settings | limits)
    data = LiftDataModule(source, batch_size=16)
    fitted.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module.seen, fitted


def tcn():
    return VideoPose3D(widths=(3,), channels=8)


def test_in_a_run_of_epochs_the_momentum_is_constant_in_each_epoch_as_in_published_code(trainer):
    seen, _ = fit(trainer, momentum, tcn(), max_epochs=4)
    assert len(seen) == 32
    for epoch, _, value in seen:
        assert value == pytest.approx(0.1 * math.exp(-epoch / 4 * math.log(0.1 / 0.001)))


@pytest.mark.parametrize("accumulated", [1, 2])
def test_in_a_run_of_steps_the_momentum_follows_the_steps(trainer, accumulated):
    seen, _ = fit(
        trainer,
        momentum,
        tcn(),
        max_epochs=-1,
        max_steps=10,
        accumulate_grad_batches=accumulated,
    )
    assert [step for _, step, _ in seen] == sorted([*range(10)] * accumulated)
    for _, step, value in seen:
        assert value == pytest.approx(0.1 * 0.01 ** (step / 10))


def test_max_steps_before_the_last_epoch_count(trainer):
    seen, _ = fit(trainer, momentum, tcn(), max_epochs=100, max_steps=10)
    assert seen[-1][2] == pytest.approx(0.1 * 0.01**0.9)


def test_in_a_run_of_steps_the_stages_of_a_cascade_have_equal_shares(trainer):
    net = Cascade(3, 8, 1)
    seen, _ = fit(trainer, lambda net: int(net.stage), net, max_epochs=-1, max_steps=12)
    assert [stage for _, _, stage in seen] == [0] * 4 + [1] * 4 + [2] * 4


def test_a_resumed_run_has_the_progress_of_an_uninterrupted_one(trainer, tmp_path):
    limits = {"max_epochs": -1, "max_steps": 14}
    whole, _ = fit(trainer, momentum, tcn(), **limits)
    limits["callbacks"] = CheckpointCallback(Run(tmp_path, {"digest": ""}), 11, None)
    fit(trainer, momentum, tcn(), **limits)
    path = tmp_path / "checkpoints" / "step-000000011.ckpt"
    rest, _ = fit(trainer, momentum, tcn(), ckpt_path=str(path), **limits)
    assert rest == whole[11:]


class Clock:
    """A clock that goes on by a second each time it is read."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        self.now += 1.0
        return self.now


def test_in_a_run_of_limited_time_momentum_and_learning_rate_follow_the_time(trainer, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.callbacks.timer.time", Clock())
    schedule = WarmupCosine(warmup=0.0, floor=0.01)
    seen, fitted = fit(
        trainer, momentum, tcn(), schedule=schedule, max_epochs=-1, max_time="00:00:02:00"
    )
    assert len(seen) > 20
    assert 0.09 < seen[0][2] <= 0.1
    assert [value for *_, value in seen] == sorted((value for *_, value in seen), reverse=True)
    assert seen[-1][2] == pytest.approx(0.001, rel=0.3)
    assert fitted.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01 * 1e-3, rel=0.3)


def test_the_last_weights_of_a_run_of_limited_time_are_saved(trainer, monkeypatch, tmp_path):
    monkeypatch.setattr("lightning.pytorch.callbacks.timer.time", Clock())
    saving = CheckpointCallback(Run(tmp_path, {"digest": ""}), 1000, None)
    limits = {"max_epochs": -1, "max_time": "00:00:01:00", "callbacks": [saving]}
    seen, fitted = fit(trainer, momentum, tcn(), **limits)
    assert saving.selected_checkpoint().stem == f"step-{fitted.global_step:09d}"
    content = torch.load(saving.selected_checkpoint(), weights_only=True)
    assert content["global_step"] == len(seen)


class StopAfter(Callback):
    """Ends the training after a step, in the hook that comes last."""

    def on_train_epoch_end(self, trainer, module):
        trainer.should_stop = True


def test_a_training_that_a_callback_ended_does_not_go_on_when_resumed(trainer, tmp_path):
    saving = CheckpointCallback(Run(tmp_path, {"digest": ""}), 1, None)
    seen, fitted = fit(trainer, momentum, tcn(), max_epochs=9, callbacks=[saving, StopAfter()])
    path = saving.selected_checkpoint()
    assert len(seen) == fitted.global_step
    assert torch.load(path, weights_only=True)["chosen"] == "last"
    again = CheckpointCallback(Run(tmp_path, {"digest": ""}), 1, None)
    more, resumed = fit(
        trainer, momentum, tcn(), max_epochs=9, callbacks=[again], ckpt_path=str(path)
    )
    assert not more
    assert resumed.global_step == fitted.global_step


def test_a_training_without_an_end_is_an_error(trainer):
    with pytest.raises(UsageError, match="the training has no end"):
        fit(trainer, momentum, tcn(), max_epochs=-1)


def test_the_time_left_is_that_of_the_nearest_limit(trainer):
    endless = trainer(max_epochs=-1, max_steps=30)
    assert Progress(endless, 8).seconds_left(rate=2.0) == 15.0
    limited = trainer(max_epochs=-1, max_steps=30, max_time="00:00:00:09")
    assert Progress(limited, 8).seconds_left(rate=2.0) == 9.0
    assert Progress(trainer(max_epochs=3), 8).seconds_left(rate=4.0) == 6.0
