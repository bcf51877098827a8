"""Stop signals end a run within seconds, with a checkpoint, 128 + their number, and no orphans."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest
from runs import COMMANDS, TINY, TWO_RANKS, differences, outcome

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


def stop(child, number, seconds=10):
    """Send a signal once the child prints HERE; check the duration and return the exit code."""
    child.wait_for("HERE")
    child.send(number)
    start = time.monotonic()
    code = child.wait()
    assert time.monotonic() - start < seconds
    assert child.orphans() == []
    return code


@pytest.mark.parametrize("number", CODES)
def test_a_signal_in_training_saves_and_ends(number, heatlift, uninterrupted, tmp_path):
    arguments = (*COMMANDS["pretrain"], "--save_every", "100")
    child = heatlift(*arguments, faults=[("at", "batch", 2, "wait"), ("slow",)])
    assert stop(child, number) == CODES[number]
    last = child.stderr.splitlines()[-1]
    assert last.startswith(f"heatlift: error: stopped by {number.name}; saved at step ")
    assert heatlift(*arguments).wait() == 0
    assert differences(outcome(tmp_path, "pretrain"), uninterrupted("pretrain")) == []


@pytest.mark.parametrize("place", ["validation", pytest.param("test", marks=pytest.mark.slow)])
def test_a_signal_outside_training_never_ends_with_0(place, heatlift, uninterrupted, tmp_path):
    child = heatlift(*COMMANDS["lift"], faults=[("at", place, 1, "linger")])
    assert stop(child, signal.SIGTERM) == 143
    assert "stopped by SIGTERM; saved at step" in child.stderr
    assert heatlift(*COMMANDS["lift"]).wait() == 0
    assert differences(outcome(tmp_path, "lift"), uninterrupted("lift")) == []


def test_a_signal_before_training_ends_at_once(heatlift):
    child = heatlift(*COMMANDS["lift"], faults=[("hang_in", "setup")])
    assert stop(child, signal.SIGINT, seconds=3) == 130
    assert child.stderr.splitlines()[-1] == ("heatlift: error: stopped by SIGINT; nothing to save")


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize(
    ("place", "rest"), [("hang_in_imports", " before the start"), ("hang_in_command", "")]
)
def test_a_signal_to_a_command_gives_one_line(place, rest, number, heatlift):
    child = heatlift("models", faults=[(place,)])
    assert stop(child, number, seconds=3) == CODES[number]
    assert child.stderr == f"heatlift: error: stopped by {number.name}{rest}\n"


def test_a_second_signal_does_not_wait(heatlift):
    child = heatlift(*COMMANDS["lift"], faults=[("at", "batch", 2, "hang")])
    child.wait_for("HERE")
    child.send(signal.SIGTERM)
    time.sleep(1.2)
    assert child.process.is_alive()
    child.send(signal.SIGTERM)
    assert child.wait(5) == 143


def test_a_run_that_hangs_in_a_batch_stops_within_10_s(heatlift):
    child = heatlift(*COMMANDS["lift"], "--save_every", "1", faults=[("at", "batch", 3, "hang")])
    assert stop(child, signal.SIGTERM) == 143
    assert "saved at step 2" in child.stderr


WORKERS = ("--data.workers", "2")
TO_ALL = [
    *[(number, WORKERS) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)],
    *[(number, (*TWO_RANKS, "--data.workers", "1")) for number in (signal.SIGTERM, signal.SIGUSR1)],
]


@pytest.mark.parametrize(("number", "more"), TO_ALL)
def test_a_signal_to_all_processes_of_a_group_saves_the_run(number, more, heatlift):
    arguments = (*COMMANDS["lift"], *more, "--save_every", "100")
    child = heatlift(*arguments, faults=[("slow",), ("at", "batch", 3, "wait")])
    child.wait_for("HERE")
    os.killpg(child.process.pid, number)
    child.send(number, to_all=True)  # `timeout` sends it twice
    assert child.wait(10) == 128 + number, child.stderr
    assert child.orphans() == []
    assert re.search(rf"stopped by {number.name}; saved at step \d+;", child.stderr)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU])
def test_signals_of_terminals_and_of_slurm_save_the_run(number, heatlift):
    arguments = (*COMMANDS["pretrain"], "--save_every", "100")
    child = heatlift(*arguments, faults=[("at", "batch", 2, "wait"), ("slow",)])
    assert stop(child, number) == 128 + number
    last = child.stderr.splitlines()[-1]
    assert last.startswith(f"heatlift: error: stopped by {number.name}; saved at step ")


def test_a_run_whose_terminal_is_closed_is_saved(heatlift, tmp_path):
    arguments = (*COMMANDS["pretrain"], "--save_every", "100")
    child = heatlift(*arguments, faults=[("close_terminal", 2)])
    assert child.wait(60) == 128 + signal.SIGHUP
    assert list((tmp_path / "runs/pretrain/pretrain/checkpoints").glob("step-*.ckpt"))


def test_nohup_lets_a_run_live_on(heatlift):
    child = heatlift(*COMMANDS["pretrain"], faults=[("no_hangup",), ("at", "batch", 2, "hangup")])
    assert child.wait(60) == 0, child.stderr
    assert "HERE" in child.stdout


def test_a_signal_after_the_end_changes_nothing(heatlift, uninterrupted, tmp_path):
    child = heatlift(*COMMANDS["lift"], faults=[("term_at_the_end",)])
    assert child.wait() == 0, child.stderr
    assert "HERE" in child.stdout
    assert differences(outcome(tmp_path, "lift"), uninterrupted("lift")) == []


def test_sigterm_stops_two_processes_at_the_same_batch(heatlift, tmp_path):
    arguments = (*COMMANDS["lift"], *TWO_RANKS, "--save_every", "100")
    child = heatlift(*arguments, faults=[("at", "batch", 2, "wait"), ("slow",)])
    assert stop(child, signal.SIGTERM) == 143
    assert "stopped by SIGTERM; saved at step" in child.stderr.splitlines()[-1]
    assert list((tmp_path / "runs/lift/lift/checkpoints").glob("step-*.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", TINY)
@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("more", [(), TWO_RANKS], ids=["one", "two"])
def test_every_stage_stops_and_resumes(stage, number, more, heatlift, uninterrupted, tmp_path):
    expected = uninterrupted(stage, *more)
    child = heatlift(*COMMANDS[stage], *more, faults=[("at", "batch", 1, "wait"), ("slow",)])
    assert stop(child, number) == CODES[number]
    assert heatlift(*COMMANDS[stage], *more).wait() == 0
    assert differences(outcome(tmp_path, stage), expected) == []


@pytest.mark.slow
def test_a_signal_to_one_of_two_ranks_stops_both(heatlift):
    child = heatlift(
        *COMMANDS["lift"], *TWO_RANKS, faults=[("at", "batch", 2, "term", 1), ("slow",)]
    )
    assert child.wait() == 143
    assert child.orphans() == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_processes_started_by_the_real_launcher_stop_too(heatlift):
    child = heatlift(
        *COMMANDS["lift"], *TWO_RANKS, "--trainer.max_epochs", "500", env={"HEATLIFT_COLD": "1"}
    )
    child.wait_for("step 20", 200)
    child.send(signal.SIGTERM)
    assert child.wait(15) == 143
    assert child.orphans() == []
    assert len(child.stderr.splitlines()) < 10
