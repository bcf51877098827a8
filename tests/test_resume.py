"""A run that was killed ends as one that was not, bit for bit."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
import torch
from conftest import TINY

from pipeline.run import read_metrics, read_state

SEED = 20261120
LIFT = ("--data.detections", "exact")
WORDS = {
    "heatmap": ("heatmap", "fit", "-c", "heatmap.yaml"),
    "pretrain": ("pretrain", "fit", "-c", "pretrain.yaml"),
    "lift": ("lift", "fit", "-c", "lift.yaml", *LIFT),
}


def outcome(folder: Path, stage: str) -> dict:
    """What a finished run leaves that must not depend on its interruptions."""
    run = folder / "runs" / stage / stage
    state = read_state(run)
    assert state is not None, sorted(map(str, folder.rglob("*")))
    assert state["state"] == "finished", state
    rows = read_metrics(run / "metrics.csv")
    last = torch.load(sorted((run / "checkpoints").glob("step-*.ckpt"))[-1], weights_only=True)
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    return {
        "weights": last["state_dict"],
        "optimiser": last["optimizer_states"],
        "schedule": last["lr_schedulers"],
        "step": last["global_step"],
        "best": best["state_dict"],
        "numbers": state["numbers"],
        "metrics": sorted(row for row in rows if not row[1].endswith("_per_s")),
    }


def same(one, other) -> bool:
    """Bit-equal, all the way down."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def differing(one: dict, other: dict) -> list[str]:
    return [key for key in one if not same(one[key], other[key])]


@pytest.fixture(scope="session")
def unbroken(server, tmp_path_factory, heatlift_in):
    """What an unbroken run of a stage leaves, and its folder."""
    known = {}

    def run(stage, *more):
        if (stage, more) not in known:
            folder = tmp_path_factory.mktemp(f"unbroken-{stage}")
            child = heatlift_in(folder)(*WORDS[stage], *more)
            assert child.wait() == 0, child.stderr
            known[stage, more] = outcome(folder, stage)
        return known[stage, more]

    return run


KILLS = {
    "heatmap": ("at", "batch", 3, "kill"),
    "pretrain": ("at", "validation", 4, "kill"),
    "lift": ("kill_in_save", 2),
}
"""One place per stage: in a batch, in a validation, in the writing of a checkpoint."""


@pytest.mark.parametrize("stage", TINY)
def test_a_killed_run_ends_bit_equal_to_an_unbroken_one(stage, unbroken, heatlift, tmp_path):
    assert heatlift(*WORDS[stage], faults=[KILLS[stage]]).wait() == -signal.SIGKILL
    child = heatlift(*WORDS[stage])
    assert child.wait() == 0, child.stderr
    assert "resumed from step-" in child.stdout
    assert differing(outcome(tmp_path, stage), unbroken(stage)) == []


def test_without_seeds_per_batch_a_killed_run_would_end_elsewhere(unbroken, heatlift, tmp_path):
    kill = ("at", "saved", 4, "kill")
    assert heatlift(*WORDS["lift"], faults=[("no_seeds",), kill]).wait() == -signal.SIGKILL
    assert heatlift(*WORDS["lift"], faults=[("no_seeds",)]).wait() == 0
    assert "weights" in differing(outcome(tmp_path, "lift"), unbroken("lift"))


def test_another_seed_ends_elsewhere(unbroken):
    other = unbroken("pretrain", "--seed_everything", "1")
    assert "weights" in differing(other, unbroken("pretrain"))


# ---- make test-all ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", TINY)
def test_kills_at_random_moments(stage, unbroken, heatlift_in, tmp_path, kills=5):
    want = unbroken(stage)
    print("seed", SEED)
    moments = random.Random(f"{SEED} {stage}")
    for number in range(kills):
        folder = tmp_path / str(number)
        start = heatlift_in(folder)
        child = start(*WORDS[stage])
        child.process.join(moments.uniform(0.0, 6.0))
        child.kill_all()
        child.process.join()
        child = start(*WORDS[stage])
        assert child.wait() == 0, child.stderr
        runs = {path.name for path in (folder / "runs" / stage).iterdir()}
        if runs == {stage}:
            assert differing(outcome(folder, stage), want) == [], number
        else:  # it had finished before the kill
            assert runs == {stage, f"{stage}-2"}
        assert child.orphans() == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("more", [(), ("--trainer.accumulate_grad_batches", "2")], ids=["", "accumulating"])
def test_resume_after_every_batch(more, unbroken, heatlift_in, tmp_path):
    want = unbroken("lift", *more)
    for step in range(1, want["step"] + 1):
        start = heatlift_in(tmp_path / str(step))
        words = (*WORDS["lift"], *more, "--save_every", "1")
        assert start(*words, faults=[("at", "saved", step, "kill")]).wait() in (-9, 0)
        if step < want["step"]:
            assert start(*words).wait() == 0
        assert differing(outcome(tmp_path / str(step), "lift"), want) == [], step


@pytest.mark.slow
@pytest.mark.parametrize("fault", [("kill_in_replace", 3), ("at", "epoch", 4, "kill"), ("at", "test", 0, "kill")], ids=str)
def test_kills_between_writing_and_naming_at_an_epochs_end_and_in_the_test(fault, unbroken, heatlift, tmp_path):
    assert heatlift(*WORDS["lift"], faults=[fault]).wait() == -signal.SIGKILL
    child = heatlift(*WORDS["lift"])
    assert child.wait() == 0, child.stderr
    assert differing(outcome(tmp_path, "lift"), unbroken("lift")) == []
    assert not list((tmp_path / "runs").rglob("*.part"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_loader_processes_change_nothing(workers, unbroken, heatlift, tmp_path):
    words = (*WORDS["lift"], "--data.workers", str(workers))
    assert heatlift(*words, faults=[("at", "batch", 5, "kill")]).wait() == -signal.SIGKILL
    assert heatlift(*words).wait() == 0
    assert differing(outcome(tmp_path, "lift"), unbroken("lift")) == []


TWO = ("--trainer.devices", "2", "--trainer.accelerator", "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_run_of_two_processes_ends_bit_equal(rank, unbroken, heatlift, tmp_path):
    want = unbroken("lift", *TWO)
    assert heatlift(*WORDS["lift"], *TWO, faults=[("at", "batch", 3, "kill", rank)]).wait() == 6
    child = heatlift(*WORDS["lift"], *TWO)
    assert child.wait() == 0, child.stderr
    assert differing(outcome(tmp_path, "lift"), want) == []


@pytest.mark.slow
def test_a_chain_killed_in_each_stage_ends_bit_equal(heatlift_in, tmp_path):
    def chain(folder, faults):
        start = heatlift_in(folder)
        for stage, more in (("pretrain", ()), ("lift", ("--model.pretrained", "newest"))):
            for fault in faults:
                assert start(*WORDS[stage], *more, faults=[fault]).wait() == -signal.SIGKILL
                if stage == "pretrain":
                    early = start(*WORDS["lift"], "--model.pretrained", "newest")
                    assert early.wait() == 2
                    assert "no finished pretraining" in early.stderr
            assert start(*WORDS[stage], *more).wait() == 0
        return outcome(folder, "lift")

    whole = chain(tmp_path / "whole", [])
    broken = chain(tmp_path / "broken", [("at", "batch", 3, "kill"), ("at", "test", 0, "kill")])
    assert differing(whole, broken) == []
