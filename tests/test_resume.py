"""A run that was killed ends as one that was not, bit for bit."""

from __future__ import annotations

import gc
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import TINY, TWO, WORDS, differing, outcome

from pipeline.__main__ import main
from pipeline.dashboard import panels
from pipeline.errors import DataError
from pipeline.files import torch_files
from pipeline.training.run_folder import read_state

SEED = 20261120

KILLS = {
    "heatmap": ("at", "batch", 3, "kill"),
    "integral": ("at", "saved", 5, "kill"),
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


# ---- make test-all -------------------------------------------------------------------------------


ACCUMULATED = ("--trainer.accumulate_grad_batches", "2")


@pytest.mark.parametrize(
    ("more", "every", "fault"),
    [
        ((), "100", ("at", "batch", 1, "term")),
        (("--trainer.val_check_interval", "4"), "2", ("at", "saved", 3, "kill")),
    ],
    ids=["SIGTERM", "kill"],
)
def test_no_gradient_is_lost_between_the_batches_of_a_step(
    more, every, fault, unbroken, heatlift, tmp_path
):
    more = (*ACCUMULATED, *more)
    want = unbroken("lift", *more)
    words = (*WORDS["lift"], *more, "--save_every", every)
    assert heatlift(*words, faults=[("slow",), fault]).wait() in (143, -signal.SIGKILL)
    child = heatlift(*words)
    assert child.wait() == 0, child.stderr
    assert differing(outcome(tmp_path, "lift"), want) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_processes_that_torchrun_started_go_on_from_the_same_state(unbroken, tmp_path):
    more = ("--trainer.max_epochs", "60", *TWO)
    want = unbroken("lift", *more)
    (tmp_path / "lift.yaml").write_text(TINY["lift"])
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    words = (*torchrun, "-m", "pipeline", *WORDS["lift"], *more, "--save_every", "1")
    env = {**os.environ, "HEATLIFT_CACHE": str(tmp_path / "cache"), "WANDB": "off"}
    states = tmp_path / "runs" / "lift" / "lift" / "checkpoints"
    options = {"cwd": tmp_path, "env": env}
    launched = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options
    )
    while launched.poll() is None and not list(states.glob("step-*.ckpt")):
        time.sleep(0.01)
    ranks = Path(f"/proc/{launched.pid}/task/{launched.pid}/children").read_text().split()
    for pid in (launched.pid, *map(int, ranks)):
        os.kill(pid, signal.SIGKILL)
    launched.wait()
    assert list(states.glob("step-*.ckpt"))
    done = subprocess.run(words, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    assert "resumed from step-" in done.stdout
    assert differing(outcome(tmp_path, "lift"), want) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", TINY)
def test_kills_at_random_moments(stage, unbroken, heatlift_in, tmp_path):
    want = unbroken(stage)
    moments = random.Random(f"{SEED} {stage}")
    for number in range(5):
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
@pytest.mark.parametrize(
    "more", [(), ("--trainer.accumulate_grad_batches", "2")], ids=["", "accumulating"]
)
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
@pytest.mark.parametrize(
    "fault",
    [("kill_in_replace", 3), ("at", "epoch", 4, "kill"), ("at", "test", 0, "kill")],
    ids=str,
)
def test_kills_between_writing_and_naming_at_an_epochs_end_and_in_the_test(
    fault, unbroken, heatlift, tmp_path
):
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


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_run_of_two_processes_ends_bit_equal(rank, unbroken, heatlift, tmp_path):
    want = unbroken("lift", *TWO)
    assert heatlift(*WORDS["lift"], *TWO, faults=[("at", "batch", 3, "kill", rank)]).wait() == 6
    child = heatlift(*WORDS["lift"], *TWO)
    assert child.wait() == 0, child.stderr
    assert differing(outcome(tmp_path, "lift"), want) == []


def test_a_run_is_never_without_a_whole_state(heatlift, tmp_path):
    words = (*WORDS["lift"], "--save_every", "1", "--trainer.max_epochs", "8")
    child = heatlift(*words, faults=[("slow",)])
    folder = tmp_path / "runs" / "lift" / "lift" / "checkpoints"
    read = 0
    while child.process.is_alive():
        states = sorted(folder.glob("step-*.ckpt"))
        assert states or not read
        try:
            read += bool(states and torch_files.read_checkpoint(states[-1]))
        except DataError:
            assert not states[-1].exists(), "only one that has made room cannot be read"
    assert child.wait() == 0
    assert read


def test_states_of_no_use_are_set_aside_and_never_push_out_good_ones(heatlift, tmp_path):
    folder = tmp_path / "runs" / "lift" / "lift" / "checkpoints"
    words = (*WORDS["lift"], "--save_every", "1")
    assert heatlift(*words, faults=[("at", "saved", 6, "kill")]).wait() == -signal.SIGKILL
    damaged = sorted(folder.glob("step-*.ckpt"))
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-1000])
    assert heatlift(*words, faults=[("slow",), ("at", "batch", 2, "term")]).wait() == 143
    left = [path.name for path in sorted(folder.iterdir()) if not path.name.startswith("best")]
    assert left == ["step-000000001.ckpt", "step-000000002.ckpt"] + [
        f"{path.name}.bad" for path in damaged
    ]
    child = heatlift(*words)
    assert child.wait() == 0
    assert "resumed from step-000000002.ckpt" in child.stdout


def test_damaged_best_weights_are_named_and_the_last_take_their_place(heatlift, tmp_path):
    folder = tmp_path / "runs" / "lift" / "lift"
    assert heatlift(*WORDS["lift"], faults=[("at", "test", 0, "kill")]).wait() == -signal.SIGKILL
    best = folder / "checkpoints" / "best.ckpt"
    data = bytearray(best.read_bytes())
    data[len(data) // 2] ^= 1
    best.write_bytes(data)
    child = heatlift(*WORDS["lift"])
    assert child.wait() == 0, child.stderr
    assert "best.ckpt: " in child.stdout
    assert read_state(folder)["checkpoint"].startswith("checkpoints/step-")
    assert best.with_name("best.ckpt.bad").exists()


def test_a_damaged_run_json_does_not_cost_the_run(unbroken, heatlift, tmp_path):
    assert heatlift(*WORDS["lift"], faults=[("at", "saved", 4, "kill")]).wait() == -signal.SIGKILL
    (tmp_path / "runs" / "lift" / "lift" / "run.json").write_text('{"stage": "li')
    child = heatlift(*WORDS["lift"])
    assert child.wait() == 0, child.stderr
    assert "run.json is damaged or missing; its states are not" in child.stdout
    assert differing(outcome(tmp_path, "lift"), unbroken("lift")) == []


def test_other_data_under_the_same_name_are_refused(heatlift, tmp_path):
    assert heatlift(*WORDS["lift"], faults=[("at", "saved", 4, "kill")]).wait() == -signal.SIGKILL
    child = heatlift(*WORDS["lift"], faults=[("few_videos", 3)])
    assert child.wait() == 4
    assert re.search(r"has 3 samples in val, and had \d+ when runs/lift/lift began", child.stderr)


def test_callbacks_of_ones_own_are_a_setting_like_any_other(heatlift, tmp_path):
    assert heatlift(*WORDS["lift"], faults=[("at", "saved", 4, "kill")]).wait() == -signal.SIGKILL
    own = "{class_path: lightning.pytorch.callbacks.GradientAccumulationScheduler, "
    own += "init_args: {scheduling: {1: 2}}}"
    text = TINY["lift"].replace("trainer: {", f"trainer: {{callbacks: [{own}], ")
    (tmp_path / "lift.yaml").write_text(text)
    child = heatlift(*WORDS["lift"])
    assert child.wait() == 0, child.stderr
    assert "lift is unfinished and had other settings (trainer.callbacks: absent ->" in child.stdout
    assert (tmp_path / "runs" / "lift" / "lift-2").is_dir()


def segments():
    """Shared memory of this machine, without the locks of the tests' own processes."""
    return {path for path in Path("/dev/shm").iterdir() if not path.name.startswith("sem.")}


def test_killed_runs_leave_nothing_in_shared_memory(heatlift):
    before = segments()
    words = (*WORDS["lift"], "--data.workers", "2")
    assert heatlift(*words, faults=[("at", "batch", 3, "kill")]).wait() == -signal.SIGKILL
    assert segments() <= before


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_twenty_runs_in_one_process_leave_no_open_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(panels, "show_video", lambda *rest, **options: None)
    Path("lift.yaml").write_text(TINY["lift"])
    words = [*WORDS["lift"], "--trainer.max_epochs", "1", "--data.workers", "1"]
    counts = []
    for _ in range(20):
        assert main(words) == 0
        gc.collect()
        counts.append(sum(1 for _ in Path("/proc/self/fd").iterdir()))
    assert max(counts[2:]) <= counts[1]


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
