"""Samplers, DataLoaders, schedules and the base classes of the stages."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from pipeline.errors import DataError, ProcessLostError, UsageError
from pipeline.training import loader, private_names
from pipeline.training.loader import SeededSampler, make_loader
from pipeline.training.metrics_file import MetricsFile
from pipeline.training.metrics_rows import read_metrics
from pipeline.training.schedules import EpochDecay, StepDecay, WarmupCosine
from pipeline.training.stage import Stage, StageData


class IndexDataset:
    """A dataset whose batches are their sample indices."""

    def __init__(self, count, fault=None):
        self.count, self.fault = count, fault  # called in the batch with sample 7

    def __len__(self):
        return self.count

    def __getitem__(self, key):
        epoch, index = key
        if self.fault and 7 in index:
            self.fault()
        return {"epoch": epoch, "index": index}


def set_rank(monkeypatch, rank, world):
    monkeypatch.setattr(SeededSampler, "_rank_and_world", lambda self: (rank, world))


def epoch_batches(sampler, epoch=0):
    """Sample indices of the batches of an epoch."""
    sampler.set_epoch(epoch)
    return [index.tolist() for _, index in sampler]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("batch", [1, 4, 7])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_sample_comes_exactly_once_per_epoch(world, batch, shuffle, monkeypatch):
    for count in (world, world + 1, 5, 8, 17, 28, 29, 30, 31, 57):
        seen, batches = [], set()
        for rank in range(world):
            set_rank(monkeypatch, rank, world)
            sampler = SeededSampler(count, batch, shuffle=shuffle, seed=3)
            own = epoch_batches(sampler, epoch=2)
            assert len(own) == len(sampler)
            batches.add(len(own))
            seen += [index for part in own for index in part]
        assert sorted(seen) == list(range(count))
        assert len(batches) == 1 or not shuffle, "ranks would wait for each other forever"


@pytest.mark.parametrize("shuffle", [True, False])
def test_fewer_samples_than_ranks_raise_an_error_in_all_ranks(shuffle, monkeypatch):
    for rank in range(3):
        set_rank(monkeypatch, rank, 3)
        with pytest.raises(UsageError, match=r"2 \w+ samples are too few for 3 processes"):
            len(SeededSampler(2, 4, shuffle=shuffle))


def test_no_rank_gets_a_training_batch_of_one_sample(monkeypatch):
    for count in range(8, 60):
        set_rank(monkeypatch, 1, 2)
        assert all(len(part) >= 2 for part in epoch_batches(SeededSampler(count, 4, shuffle=True)))


def test_the_order_depends_only_on_seed_and_epoch():
    one, other = (SeededSampler(20, 4, shuffle=True, seed=5) for _ in range(2))
    epoch_batches(other, 0)
    assert epoch_batches(one, 3) == epoch_batches(other, 3)
    assert epoch_batches(one, 3) != epoch_batches(one, 4)
    assert epoch_batches(one, 3) != epoch_batches(SeededSampler(20, 4, shuffle=True, seed=6), 3)


def test_every_evaluation_has_the_same_random_numbers():
    """The epoch is part of the key of each sample's noise and masks."""
    sampler = SeededSampler(5, 2, shuffle=False)
    for epoch in (0, 3):
        sampler.set_epoch(epoch)
        assert [(number, index.tolist()) for number, index in sampler] == [
            (0, [0, 1]), (0, [2, 3]), (0, [4])
        ]  # fmt: skip


def test_two_ranks_together_get_the_samples_of_one_rank(monkeypatch):
    whole = epoch_batches(SeededSampler(24, 8, shuffle=True, seed=1))
    parts = []
    for rank in range(2):
        set_rank(monkeypatch, rank, 2)
        parts.append(epoch_batches(SeededSampler(24, 4, shuffle=True, seed=1)))
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == [sorted(part) for part in whole]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataloader_resumes_after_the_batches_already_given(workers):
    whole = [batch["index"].tolist() for batch in make_loader(IndexDataset(20), 4, shuffle=True)]
    first = make_loader(IndexDataset(20), 4, shuffle=True, workers=workers)
    iterator = iter(first)
    given = [next(iterator)["index"].tolist() for _ in range(2)]
    second = make_loader(IndexDataset(20), 4, shuffle=True, workers=workers)
    second.load_state_dict(first.state_dict())
    assert given + [batch["index"].tolist() for batch in second] == whole
    assert len(list(second)) == 5, "only the first pass is shortened"


def test_after_a_complete_pass_a_dataloader_starts_at_the_first_batch():
    whole = make_loader(IndexDataset(20), 4, shuffle=True)
    assert len(list(whole)) == 5
    other = make_loader(IndexDataset(20), 4, shuffle=True)
    other.load_state_dict(whole.state_dict())
    assert len(list(other)) == 5


def raise_data_error():
    raise DataError("walk.avi: frame 7 is grey; repair it")


def test_an_error_in_a_dataloader_worker_is_raised_with_its_message():
    with pytest.raises(DataError, match=r"^walk\.avi: frame 7 is grey; repair it$"):
        list(make_loader(IndexDataset(20, raise_data_error), 4, shuffle=False, workers=2))


def test_a_killed_dataloader_worker_is_reported(monkeypatch):
    monkeypatch.setattr(loader, "WORKER_CHECK_INTERVAL", 1.0)
    with pytest.raises(ProcessLostError, match=r"killed \(out of memory\?\), at batch \d"):
        list(
            make_loader(
                IndexDataset(20, lambda: os.kill(os.getpid(), 9)), 4, shuffle=False, workers=2
            )
        )


def test_a_killed_dataloader_worker_is_reported_though_its_signal_was_missed(monkeypatch):
    monkeypatch.setattr(loader, "WORKER_CHECK_INTERVAL", 1.0)
    monkeypatch.setattr(torch.utils.data._utils.signal_handling, "_set_SIGCHLD_handler", int)
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    start = time.monotonic()
    try:
        with pytest.raises(ProcessLostError, match=r"killed \(out of memory\?\), at batch \d"):
            list(
                make_loader(
                    IndexDataset(20, lambda: os.kill(os.getpid(), 9)), 4, shuffle=False, workers=2
                )
            )
    finally:
        signal.signal(signal.SIGCHLD, handler)
    assert time.monotonic() - start < loader.WORKER_TIMEOUT / 4


@pytest.mark.parametrize("broken", [EOFError, ConnectionResetError])
def test_a_dataloader_worker_that_dies_while_sending_a_batch_is_reported(monkeypatch, broken):
    def breaks(self, timeout):
        os.kill(self.workers[0].pid, signal.SIGKILL)
        raise broken

    monkeypatch.setattr(private_names.WorkerIterator, "try_get_data", breaks)
    with pytest.raises(ProcessLostError, match=r"killed \(out of memory\?\), at batch 0"):
        list(make_loader(IndexDataset(20, lambda: time.sleep(60)), 4, shuffle=False, workers=1))


def test_a_connection_error_with_all_dataloader_workers_alive_is_raised_unchanged(
    monkeypatch,
):
    def breaks(self, timeout):
        raise EOFError("something else")

    monkeypatch.setattr(loader, "WORKER_CHECK_INTERVAL", 0.2)
    monkeypatch.setattr(private_names.WorkerIterator, "try_get_data", breaks)
    with pytest.raises(EOFError, match="something else"):
        list(make_loader(IndexDataset(20), 4, shuffle=False, workers=1))


def test_a_dataloader_worker_that_hangs_is_reported(monkeypatch):
    monkeypatch.setattr(loader, "WORKER_TIMEOUT", 1.0)
    with pytest.raises(ProcessLostError, match="gave no batch for 1 s, at batch 1 of"):
        list(make_loader(IndexDataset(20, lambda: time.sleep(60)), 4, shuffle=False, workers=1))


def test_a_batch_size_of_zero_raises_an_error():
    with pytest.raises(UsageError, match="batch_size is 0"):
        StageData(batch_size=0, workers=0, seed=0)


def test_warmup_cosine_rises_then_falls_to_its_floor():
    schedule = WarmupCosine(warmup=0.1, floor=0.01)
    assert schedule.factor(0.05, 0.0) == pytest.approx(0.5)
    assert schedule.factor(0.1, 0.0) == pytest.approx(1.0)
    assert schedule.factor(0.55, 0.0) == pytest.approx(0.505)
    assert schedule.factor(1.0, 0.0) == pytest.approx(0.01)


def test_step_decay_and_epoch_decay_depend_on_the_epoch():
    assert StepDecay((170, 200), 0.1).factor(0.0, 169.9) == 1.0
    assert StepDecay((170, 200), 0.1).factor(0.0, 200.0) == pytest.approx(0.01)
    assert EpochDecay(0.99).factor(0.0, 2.7) == pytest.approx(0.99**2)


def test_batches_can_be_converted_to_tensors():
    batch = next(iter(make_loader(IndexDataset(4), 4, shuffle=False)))
    assert torch.equal(torch.as_tensor(batch["index"]), torch.from_numpy(np.arange(4)))


class LoggingModel(BoringModel):
    """Logs the number of the step as a stage logs its loss, and counts the calls of `log`."""

    def __init__(self):
        super().__init__()
        self.logged_in = []

    def log(self, name, value, **options):
        self.logged_in.append(int(value))
        super().log(name, value, **options)

    def training_step(self, batch, batch_idx):
        Stage.log_in_training(self, "train/loss", torch.tensor(float(self.global_step)))
        return super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("bar", "calls"), [(False, [2, 4, 5, 8, 9]), (True, [*range(10)])])
def test_a_loss_is_logged_in_the_steps_in_which_somebody_reads_it(trainer, tmp_path, bar, calls):
    """Loggers read it every third step, callbacks at the end of an epoch, a bar always."""
    module, file = LoggingModel(), MetricsFile(tmp_path / "metrics.csv")
    settings = {"max_epochs": 2, "limit_train_batches": 5, "limit_val_batches": 0}
    fit = trainer(log_every_n_steps=3, logger=file, enable_progress_bar=bar, **settings)
    fit.fit(module)
    rows = [(step, value) for step, name, value in read_metrics(file.path) if name == "train/loss"]
    assert rows == [(2, 2.0), (5, 5.0), (8, 8.0)]
    assert module.logged_in == calls
    assert float(fit.callback_metrics["train/loss"]) == 9.0
