"""Shared cores are noticed from the times that threads ran and waited."""

from __future__ import annotations

import pytest
import torch

from pipeline.training import shared_cores
from pipeline.training.shared_cores import cores_are_shared, processor_times, training_threads


@pytest.mark.parametrize(
    ("ran", "waited", "threads", "shared"),
    [
        (19.0, 0.4, 2, False),  # alone on two cores
        (10.0, 9.5, 2, True),  # two threads beside two busy processes
        (7.6, 2.4, 2, False),
        (7.4, 2.6, 2, True),
        (10.0, 9.5, 1, False),  # one thread waits for no other
        (0.0, 0.0, 4, False),  # a system that does not count
    ],
)
def test_threads_that_wait_a_quarter_of_their_time_share_their_cores(ran, waited, threads, shared):
    assert cores_are_shared(ran, waited, threads) == shared


def test_the_line_is_printed_once(monkeypatch, capsys):
    module = type("Module", (), {"device": type("Device", (), {"type": "cpu"})})
    times = iter([(0.0, 0.0), (5.0, 0.1), (9.0, 4.0), (9.5, 9.0)])
    monkeypatch.setattr(shared_cores, "processor_times", lambda: next(times))
    monkeypatch.setattr(shared_cores.torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(shared_cores, "LEAST_SECONDS", 0.0)
    rank = type("Trainer", (), {"is_global_zero": True})
    watch = shared_cores.SharedCores()
    watch.on_train_start(rank, module)
    lines = []
    for _ in range(3):
        watch.on_train_batch_end(rank)
        lines.append(capsys.readouterr().out)
    assert lines == ["", f"{shared_cores.HINT}\n", ""]


@pytest.mark.parametrize(("workers", "threads"), [(0, 5), (1, 4), (4, 1), (9, 1)])
def test_each_worker_has_a_core_of_its_own(monkeypatch, workers, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(shared_cores.torch, "get_num_threads", lambda: 5)
    assert training_threads(workers) == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert training_threads(workers) == 5


@pytest.mark.parametrize("end", ["on_fit_end", "on_exception"])
def test_a_training_gives_its_threads_back(monkeypatch, end):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    cpu = type("Device", (), {"type": "cpu"})
    strategy = type("Strategy", (), {"root_device": cpu})
    datamodule = type("Data", (), {"workers": 1})
    trainer = type("Trainer", (), {"strategy": strategy, "datamodule": datamodule})
    cores = shared_cores.SharedCores()
    try:
        cores.on_fit_start(trainer, None)
        assert torch.get_num_threads() == 2
        getattr(cores, end)(trainer, None)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_this_process_has_run_for_some_time():
    ran, waited = processor_times()
    assert ran > 0.0
    assert waited >= 0.0
