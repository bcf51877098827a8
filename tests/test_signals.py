"""SIGTERM and SIGINT stop a run within seconds, saved, with 143 or 130, and leave nobody behind."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest
from runs import TINY, TWO, WORDS, differing, outcome

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


def stopped(child, number, seconds=10):
    """Send a signal once the child says HERE; its exit code and how long it took."""
    child.wait_for("HERE")
    child.send(number)
    begun = time.monotonic()
    code = child.wait()
    assert time.monotonic() - begun < seconds
    assert child.orphans() == []
    return code


@pytest.mark.parametrize("number", CODES)
def test_a_signal_in_training_saves_and_ends(number, heatlift, unbroken, tmp_path):
    words = (*WORDS["pretrain"], "--save_every", "100")
    child = heatlift(*words, faults=[("at", "batch", 2, "say"), ("slow",)])
    assert stopped(child, number) == CODES[number]
    last = child.stderr.splitlines()[-1]
    assert last.startswith(f"heatlift: error: stopped by {number.name}; saved at step ")
    assert heatlift(*words).wait() == 0
    assert differing(outcome(tmp_path, "pretrain"), unbroken("pretrain")) == []


@pytest.mark.parametrize("place", ["validation", "test"])
def test_a_signal_outside_training_never_ends_with_0(place, heatlift, unbroken, tmp_path):
    child = heatlift(*WORDS["lift"], faults=[("at", place, 1, "linger")])
    assert stopped(child, signal.SIGTERM) == 143
    assert "stopped by SIGTERM; saved at step" in child.stderr
    assert heatlift(*WORDS["lift"]).wait() == 0
    assert differing(outcome(tmp_path, "lift"), unbroken("lift")) == []


def test_a_signal_before_training_ends_at_once(heatlift):
    child = heatlift(*WORDS["lift"], faults=[("hang_in", "setup")])
    assert stopped(child, signal.SIGINT, seconds=3) == 130
    assert child.stderr.splitlines()[-1] == ("heatlift: error: stopped by SIGINT; nothing to save")


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize(
    ("place", "rest"), [("hang_in_imports", "; nothing had begun"), ("hang_in_command", "")]
)
def test_a_signal_to_a_command_is_one_line(place, rest, number, heatlift):
    child = heatlift("models", faults=[(place,)])
    assert stopped(child, number, seconds=3) == CODES[number]
    assert child.stderr == f"heatlift: error: stopped by {number.name}{rest}\n"


def test_a_second_signal_does_not_wait(heatlift):
    child = heatlift(*WORDS["lift"], faults=[("at", "batch", 2, "hang")])
    child.wait_for("HERE")
    child.send(signal.SIGTERM)
    time.sleep(1.2)
    assert child.process.is_alive()
    child.send(signal.SIGTERM)
    assert child.wait(5) == 143


def test_a_run_that_cannot_come_to_a_batchs_end_stops_within_10_s_all_the_same(heatlift):
    child = heatlift(*WORDS["lift"], "--save_every", "1", faults=[("at", "batch", 3, "hang")])
    assert stopped(child, signal.SIGTERM) == 143
    assert "saved at step 2" in child.stderr


@pytest.mark.parametrize("more", [("--data.workers", "2"), TWO], ids=["workers", "two"])
def test_ctrl_c_reaches_all_processes_of_a_terminal_and_the_run_is_saved(more, heatlift):
    words = (*WORDS["lift"], *more, "--save_every", "100")
    child = heatlift(*words, faults=[("slow",), ("at", "batch", 3, "say")])
    child.wait_for("HERE")
    os.killpg(child.process.pid, signal.SIGINT)
    assert child.wait(10) == 130, child.stderr
    assert child.orphans() == []
    assert re.search(r"stopped by SIGINT; saved at step \d+;", child.stderr)


def test_a_signal_after_the_end_changes_nothing(heatlift, unbroken, tmp_path):
    child = heatlift(*WORDS["lift"], faults=[("term_at_the_end",)])
    assert child.wait() == 0, child.stderr
    assert "HERE" in child.stdout
    assert differing(outcome(tmp_path, "lift"), unbroken("lift")) == []


def test_sigterm_stops_two_processes_at_the_same_batch(heatlift, tmp_path):
    words = (*WORDS["lift"], *TWO, "--save_every", "100")
    child = heatlift(*words, faults=[("at", "batch", 2, "say"), ("slow",)])
    assert stopped(child, signal.SIGTERM) == 143
    assert "stopped by SIGTERM; saved at step" in child.stderr.splitlines()[-1]
    assert list((tmp_path / "runs/lift/lift/checkpoints").glob("step-*.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", TINY)
@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("more", [(), TWO], ids=["one", "two"])
def test_every_stage_stops_and_goes_on(stage, number, more, heatlift, unbroken, tmp_path):
    want = unbroken(stage, *more)
    child = heatlift(*WORDS[stage], *more, faults=[("at", "batch", 1, "say"), ("slow",)])
    assert stopped(child, number) == CODES[number]
    assert heatlift(*WORDS[stage], *more).wait() == 0
    assert differing(outcome(tmp_path, stage), want) == []


@pytest.mark.slow
def test_one_of_two_processes_alone_can_be_told(heatlift):
    child = heatlift(*WORDS["lift"], *TWO, faults=[("at", "batch", 2, "term", 1), ("slow",)])
    assert child.wait() == 143
    assert child.orphans() == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_processes_started_by_the_real_launcher_stop_too(heatlift):
    child = heatlift(
        *WORDS["lift"], *TWO, "--trainer.max_epochs", "500", env={"HEATLIFT_COLD": "1"}
    )
    child.wait_for("step 20", 200)
    child.send(signal.SIGTERM)
    assert child.wait(15) == 143
    assert child.orphans() == []
    assert len(child.stderr.splitlines()) < 10
