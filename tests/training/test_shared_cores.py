"""Shared cores are noticed from the times that threads ran and waited."""

from __future__ import annotations

import pytest

from pipeline.training import shared_cores
from pipeline.training.shared_cores import cores_are_shared, processor_times


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


def test_this_process_has_run_for_some_time():
    ran, waited = processor_times()
    assert ran > 0.0
    assert waited >= 0.0
