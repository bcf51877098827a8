"""The guard against numbers that are not finite, what is saved and kept, and times for people."""

from __future__ import annotations

import time

import pytest
from runs import TINY, WORDS

from pipeline import checkpoint
from pipeline.run import read_state


@pytest.mark.parametrize(
    ("stage", "where"),
    [
        pytest.param(stage, where, marks=[] if (stage, where) in KEPT else pytest.mark.slow)
        for KEPT in [{("pretrain", "loss"), ("lift", "gradient")}]
        for stage in TINY
        for where in ("loss", "gradient")
    ],
)
def test_a_number_that_is_not_finite_stops_the_run_with_its_samples(
    stage, where, heatlift, tmp_path
):
    child = heatlift(*WORDS[stage], faults=[("not_finite", 3, where)])
    assert child.wait() == 3
    line = child.stderr.splitlines()[-1]
    what = "the loss is nan" if where == "loss" else "a gradient is not finite"
    assert line.startswith(f"heatlift: error: {what} at step 3, samples ")
    run = tmp_path / "runs" / stage / stage
    for path in (run / "checkpoints").iterdir():
        assert all(value.isfinite().all() for value in checkpoint.read(path)["state_dict"].values())
    assert "step-000000002.ckpt" in {path.name for path in (run / "checkpoints").iterdir()}
    assert read_state(run)["state"] == "unfinished"


def test_two_states_are_kept_and_one_is_there_at_any_moment(heatlift, tmp_path):
    child = heatlift(*WORDS["lift"], "--save_every", "1")
    folder, seen = tmp_path / "runs/lift/lift/checkpoints", []
    while child.process.is_alive():
        seen.append(len(list(folder.glob("step-*.ckpt"))))
        time.sleep(0.002)
    assert child.wait() == 0
    begun = seen.index(1)
    assert min(seen[begun:]) >= 1
    assert max(seen) <= 3
    assert len(list(folder.glob("step-*.ckpt"))) == 2


def test_steps_that_end_a_run_early_are_saved(heatlift, tmp_path):
    assert heatlift(*WORDS["lift"], "--trainer.max_steps", "3", "--save_every", "100").wait() == 0
    assert (tmp_path / "runs/lift/lift/checkpoints/step-000000003.ckpt").exists()
