"""Order of samples, loaders, schedules: pure functions of the seed, whole in every epoch."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
import torch

from pipeline.errors import DataError, ProcessLostError, UsageError
from pipeline.training import loader
from pipeline.training.loader import SeededSampler, make_loader
from pipeline.training.schedules import EpochDecay, StepDecay, WarmupCosine
from pipeline.training.stage import StageData


class Numbers:
    """Batches that say which samples they are of."""

    def __init__(self, count, fault=None):
        self.count, self.fault = count, fault

    def __len__(self):
        return self.count

    def __getitem__(self, key):
        epoch, index = key
        if self.fault and 7 in index:
            self.fault()
        return {"epoch": epoch, "index": index}


def in_world(monkeypatch, rank, world):
    monkeypatch.setattr(SeededSampler, "_world", lambda self: (rank, world))


def served(order, epoch=0):
    order.set_epoch(epoch)
    return [index.tolist() for _, index in order]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("batch", [1, 4, 7])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_sample_comes_exactly_once_per_epoch(world, batch, shuffle, monkeypatch):
    for count in (world, world + 1, 5, 8, 17, 28, 29, 30, 31, 57):
        seen, batches = [], set()
        for rank in range(world):
            in_world(monkeypatch, rank, world)
            order = SeededSampler(count, batch, shuffle=shuffle, seed=3)
            mine = served(order, epoch=2)
            assert len(mine) == len(order)
            batches.add(len(mine))
            seen += [index for part in mine for index in part]
        assert sorted(seen) == list(range(count))
        assert len(batches) == 1 or not shuffle, "processes would wait for each other for ever"


@pytest.mark.parametrize("shuffle", [True, False])
def test_fewer_samples_than_processes_are_refused_by_all_of_them(shuffle, monkeypatch):
    for rank in range(3):
        in_world(monkeypatch, rank, 3)
        with pytest.raises(UsageError, match=r"2 \w+ samples are too few for 3 processes"):
            len(SeededSampler(2, 4, shuffle=shuffle))


def test_no_process_is_left_with_a_training_batch_of_one_sample(monkeypatch):
    for count in range(8, 60):
        in_world(monkeypatch, 1, 2)
        assert all(len(part) >= 2 for part in served(SeededSampler(count, 4, shuffle=True)))


def test_the_order_depends_on_seed_and_epoch_alone():
    one, other = (SeededSampler(20, 4, shuffle=True, seed=5) for _ in range(2))
    served(other, 0)
    assert served(one, 3) == served(other, 3)
    assert served(one, 3) != served(one, 4)
    assert served(one, 3) != served(SeededSampler(20, 4, shuffle=True, seed=6), 3)


def test_two_processes_see_together_what_one_sees(monkeypatch):
    whole = served(SeededSampler(24, 8, shuffle=True, seed=1))
    parts = []
    for rank in range(2):
        in_world(monkeypatch, rank, 2)
        parts.append(served(SeededSampler(24, 4, shuffle=True, seed=1)))
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == [sorted(part) for part in whole]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_behind_the_batches_that_were_given(workers):
    whole = [batch["index"].tolist() for batch in make_loader(Numbers(20), 4, shuffle=True)]
    first = make_loader(Numbers(20), 4, shuffle=True, workers=workers)
    begun = iter(first)
    given = [next(begun)["index"].tolist() for _ in range(2)]
    second = make_loader(Numbers(20), 4, shuffle=True, workers=workers)
    second.load_state_dict(first.state_dict())
    assert given + [batch["index"].tolist() for batch in second] == whole
    assert len(list(second)) == 5, "only the first pass is shortened"


def test_a_pass_that_was_whole_begins_anew():
    whole = make_loader(Numbers(20), 4, shuffle=True)
    assert len(list(whole)) == 5
    other = make_loader(Numbers(20), 4, shuffle=True)
    other.load_state_dict(whole.state_dict())
    assert len(list(other)) == 5


def raises():
    raise DataError("walk.avi: frame 7 is grey; repair it")


def test_a_bad_file_met_by_a_loader_process_gives_its_own_line():
    with pytest.raises(DataError, match=r"^walk\.avi: frame 7 is grey; repair it$"):
        list(make_loader(Numbers(20, raises), 4, shuffle=False, workers=2))


def test_a_killed_loader_process_is_named(monkeypatch):
    monkeypatch.setattr(loader, "WORKER_CHECK", 1.0)
    with pytest.raises(ProcessLostError, match=r"killed \(out of memory\?\), at batch \d"):
        list(make_loader(Numbers(20, lambda: os.kill(os.getpid(), 9)), 4, shuffle=False, workers=2))


def test_a_killed_loader_process_is_named_though_its_signal_was_missed(monkeypatch):
    monkeypatch.setattr(loader, "WORKER_CHECK", 1.0)
    monkeypatch.setattr(torch.utils.data._utils.signal_handling, "_set_SIGCHLD_handler", int)
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    start = time.monotonic()
    try:
        with pytest.raises(ProcessLostError, match=r"killed \(out of memory\?\), at batch \d"):
            list(
                make_loader(
                    Numbers(20, lambda: os.kill(os.getpid(), 9)), 4, shuffle=False, workers=2
                )
            )
    finally:
        signal.signal(signal.SIGCHLD, handler)
    assert time.monotonic() - start < loader.WORKER_TIMEOUT / 4


@pytest.mark.parametrize("broken", [EOFError, ConnectionResetError])
def test_a_loader_process_that_dies_handing_over_a_batch_is_named(monkeypatch, broken):
    def breaks(self, timeout):
        os.kill(self._workers[0].pid, signal.SIGKILL)
        raise broken

    monkeypatch.setattr(loader._MultiProcessingDataLoaderIter, "_try_get_data", breaks)
    with pytest.raises(ProcessLostError, match=r"killed \(out of memory\?\), at batch 0"):
        list(make_loader(Numbers(20, lambda: time.sleep(60)), 4, shuffle=False, workers=1))


def test_a_connection_that_breaks_though_all_loader_processes_live_is_not_blamed_on_them(
    monkeypatch,
):
    def breaks(self, timeout):
        raise EOFError("something else")

    monkeypatch.setattr(loader, "WORKER_CHECK", 0.2)
    monkeypatch.setattr(loader._MultiProcessingDataLoaderIter, "_try_get_data", breaks)
    with pytest.raises(EOFError, match="something else"):
        list(make_loader(Numbers(20), 4, shuffle=False, workers=1))


def test_a_loader_process_that_hangs_is_named(monkeypatch):
    monkeypatch.setattr(loader, "WORKER_TIMEOUT", 1.0)
    with pytest.raises(ProcessLostError, match="gave nothing for 1 s, at batch 1 of"):
        list(make_loader(Numbers(20, lambda: time.sleep(60)), 4, shuffle=False, workers=1))


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(UsageError, match="batch_size is 0"):
        StageData(batch_size=0, workers=0, seed=0)


def test_the_cosine_rises_then_falls_to_its_floor():
    schedule = WarmupCosine(warmup=0.1, floor=0.01)
    assert schedule.factor(0.05, 0.0) == pytest.approx(0.5)
    assert schedule.factor(0.1, 0.0) == pytest.approx(1.0)
    assert schedule.factor(0.55, 0.0) == pytest.approx(0.505)
    assert schedule.factor(1.0, 0.0) == pytest.approx(0.01)


def test_decays_count_epochs():
    assert StepDecay((170, 200), 0.1).factor(0.0, 169.9) == 1.0
    assert StepDecay((170, 200), 0.1).factor(0.0, 200.0) == pytest.approx(0.01)
    assert EpochDecay(0.99).factor(0.0, 2.7) == pytest.approx(0.99**2)


def test_numbers_come_out_as_tensors():
    batch = next(iter(make_loader(Numbers(4), 4, shuffle=False)))
    assert torch.equal(torch.as_tensor(batch["index"]), torch.from_numpy(np.arange(4)))
