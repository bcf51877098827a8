"""A killed and resumed run ends bit-equal to an uninterrupted one."""

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
from runs import (
    COMMANDS,
    STORED,
    THREE_RANKS,
    TINY,
    TWO_RANKS,
    differences,
    outcome,
    write_people,
)

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
"""Stage -> fault that kills it: in a batch, after saving, in a validation, while saving."""


@pytest.mark.parametrize(
    "stage", [pytest.param(s, marks=pytest.mark.slow if s == "integral" else ()) for s in TINY]
)
def test_a_killed_run_ends_bit_equal_to_an_uninterrupted_one(
    stage, uninterrupted, heatlift, tmp_path
):
    assert heatlift(*COMMANDS[stage], faults=[KILLS[stage]]).wait() == -signal.SIGKILL
    child = heatlift(*COMMANDS[stage])
    assert child.wait() == 0, child.stderr
    assert "resumed from step-" in child.stdout
    assert differences(outcome(tmp_path, stage), uninterrupted(stage)) == []


@pytest.mark.slow
def test_without_seeds_per_batch_a_killed_run_would_give_other_weights(
    uninterrupted, heatlift, tmp_path
):
    kill = ("at", "saved", 4, "kill")
    assert heatlift(*COMMANDS["lift"], faults=[("no_seeds",), kill]).wait() == -signal.SIGKILL
    assert heatlift(*COMMANDS["lift"], faults=[("no_seeds",)]).wait() == 0
    assert "weights" in differences(outcome(tmp_path, "lift"), uninterrupted("lift"))


def test_another_seed_gives_other_weights(uninterrupted):
    other = uninterrupted("pretrain", "--seed_everything", "1")
    assert "weights" in differences(other, uninterrupted("pretrain"))


ACCUMULATED = ("--trainer.accumulate_grad_batches", "2")


@pytest.mark.parametrize(
    ("more", "every", "fault"),
    [
        ((), "100", ("at", "batch", 1, "term")),
        pytest.param(
            *(("--trainer.val_check_interval", "4"), "2", ("at", "saved", 3, "kill")),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["SIGTERM", "kill"],
)
def test_no_gradient_is_lost_between_the_batches_of_an_optimizer_step(
    more, every, fault, uninterrupted, heatlift, tmp_path
):
    more = (*ACCUMULATED, *more)
    expected = uninterrupted("lift", *more)
    arguments = (*COMMANDS["lift"], *more, "--save_every", every)
    assert heatlift(*arguments, faults=[("slow",), fault]).wait() in (143, -signal.SIGKILL)
    child = heatlift(*arguments)
    assert child.wait() == 0, child.stderr
    assert differences(outcome(tmp_path, "lift"), expected) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ranks_started_by_torchrun_resume_from_the_same_checkpoint(uninterrupted, tmp_path):
    more = ("--trainer.max_epochs", "60", *TWO_RANKS)
    expected = uninterrupted("lift", *more)
    (tmp_path / "lift.yaml").write_text(TINY["lift"])
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    arguments = (*torchrun, "-m", "pipeline", *COMMANDS["lift"], *more, "--save_every", "1")
    env = {**os.environ, "HEATLIFT_CACHE": str(tmp_path / "cache"), "WANDB": "off"}
    states = tmp_path / "runs" / "lift" / "lift" / "checkpoints"
    options = {"cwd": tmp_path, "env": env}
    launched = subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options
    )
    while launched.poll() is None and not list(states.glob("step-*.ckpt")):
        time.sleep(0.01)
    ranks = Path(f"/proc/{launched.pid}/task/{launched.pid}/children").read_text().split()
    for pid in (launched.pid, *map(int, ranks)):
        os.kill(pid, signal.SIGKILL)
    launched.wait()
    assert list(states.glob("step-*.ckpt"))
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    assert "resumed from step-" in done.stdout
    assert differences(outcome(tmp_path, "lift"), expected) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", TINY)
def test_kills_at_random_moments(stage, uninterrupted, heatlift_in, tmp_path):
    expected = uninterrupted(stage)
    moments = random.Random(f"{SEED} {stage}")
    for number in range(5):
        folder = tmp_path / str(number)
        start = heatlift_in(folder)
        child = start(*COMMANDS[stage])
        child.process.join(moments.uniform(0.0, 6.0))
        child.kill_all()
        child.process.join()
        child = start(*COMMANDS[stage])
        assert child.wait() == 0, child.stderr
        runs = {path.name for path in (folder / "runs" / stage).iterdir()}
        if runs == {stage}:
            assert differences(outcome(folder, stage), expected) == [], number
        else:  # it had finished before the kill
            assert runs == {stage, f"{stage}-2"}
        assert child.orphans() == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "more", [(), ("--trainer.accumulate_grad_batches", "2")], ids=["", "accumulating"]
)
def test_resume_after_every_batch(more, uninterrupted, heatlift_in, tmp_path):
    expected = uninterrupted("lift", *more)
    for step in range(1, expected["step"] + 1):
        start = heatlift_in(tmp_path / str(step))
        arguments = (*COMMANDS["lift"], *more, "--save_every", "1")
        assert start(*arguments, faults=[("at", "saved", step, "kill")]).wait() in (-9, 0)
        if step < expected["step"]:
            assert start(*arguments).wait() == 0
        assert differences(outcome(tmp_path / str(step), "lift"), expected) == [], step


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [("kill_in_replace", 3), ("at", "epoch", 4, "kill"), ("at", "test", 0, "kill")],
    ids=str,
)
def test_kills_before_renaming_at_the_end_of_an_epoch_and_in_the_test(
    fault, uninterrupted, heatlift, tmp_path
):
    assert heatlift(*COMMANDS["lift"], faults=[fault]).wait() == -signal.SIGKILL
    child = heatlift(*COMMANDS["lift"])
    assert child.wait() == 0, child.stderr
    assert differences(outcome(tmp_path, "lift"), uninterrupted("lift")) == []
    assert not list((tmp_path / "runs").rglob("*.part"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_dataloader_workers_change_no_result(workers, uninterrupted, heatlift, tmp_path):
    arguments = (*COMMANDS["lift"], "--data.workers", str(workers))
    assert heatlift(*arguments, faults=[("at", "batch", 5, "kill")]).wait() == -signal.SIGKILL
    assert heatlift(*arguments).wait() == 0
    assert differences(outcome(tmp_path, "lift"), uninterrupted("lift")) == []


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_run_of_two_processes_ends_bit_equal(rank, uninterrupted, heatlift, tmp_path):
    expected = uninterrupted("lift", *TWO_RANKS)
    assert (
        heatlift(*COMMANDS["lift"], *TWO_RANKS, faults=[("at", "batch", 3, "kill", rank)]).wait()
        == 6
    )
    child = heatlift(*COMMANDS["lift"], *TWO_RANKS)
    assert child.wait() == 0, child.stderr
    assert differences(outcome(tmp_path, "lift"), expected) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "more", "fault"),
    [
        ("lift", (), ("at", "saved", 1, "kill", 2)),
        ("lift", ACCUMULATED, ("at", "batch", 3, "kill", 0)),
        ("heatmap", ("--data.source.images", "96"), ("at", "validation", 3, "kill", 1)),
        ("pretrain", (), ("at", "saved", 1, "kill", 1)),
    ],
    ids=["lift", "accumulating", "heatmap", "pretrain"],
)
def test_a_killed_run_of_three_processes_with_many_buckets_ends_bit_equal(
    stage, more, fault, heatlift_in, tmp_path
):
    arguments = (*COMMANDS[stage], *more, *THREE_RANKS, "--save_every", "1")
    many, outcomes = ("small_buckets", 0.005), []
    for name, faults in (("whole", []), ("killed", [fault])):
        start = heatlift_in(tmp_path / name)
        if faults:
            assert start(*arguments, faults=[many, *faults]).wait() == 6
        child = start(*arguments, faults=[many])
        assert child.wait() == 0, child.stderr
        assert ("resumed from step-" in child.stdout) is bool(faults)
        outcomes.append(outcome(tmp_path / name, stage))
    assert differences(*outcomes) == []


@pytest.mark.slow
def test_a_run_always_has_a_valid_checkpoint(heatlift, tmp_path):
    arguments = (*COMMANDS["lift"], "--save_every", "1", "--trainer.max_epochs", "8")
    child = heatlift(*arguments, faults=[("slow",)])
    folder = tmp_path / "runs" / "lift" / "lift" / "checkpoints"
    read = 0
    while child.process.is_alive():
        states = sorted(folder.glob("step-*.ckpt"))
        assert states or not read
        try:
            read += bool(states and torch_files.read_checkpoint(states[-1]))
        except DataError:
            assert not states[-1].exists(), (
                "only a checkpoint that was removed meanwhile may be unreadable"
            )
    assert child.wait() == 0
    assert read


def test_damaged_checkpoints_are_renamed_and_do_not_replace_valid_ones(heatlift, tmp_path):
    folder = tmp_path / "runs" / "lift" / "lift" / "checkpoints"
    arguments = (*COMMANDS["lift"], "--save_every", "1")
    assert heatlift(*arguments, faults=[("at", "saved", 6, "kill")]).wait() == -signal.SIGKILL
    damaged = sorted(folder.glob("step-*.ckpt"))
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-1000])
    assert heatlift(*arguments, faults=[("slow",), ("at", "batch", 2, "term")]).wait() == 143
    left = [path.name for path in sorted(folder.iterdir()) if not path.name.startswith("best")]
    assert left == ["step-000000001.ckpt", "step-000000002.ckpt"] + [
        f"{path.name}.bad" for path in damaged
    ]
    child = heatlift(*arguments)
    assert child.wait() == 0
    assert "resumed from step-000000002.ckpt" in child.stdout


@pytest.mark.slow
def test_damaged_best_weights_are_reported_and_the_last_weights_are_used(heatlift, tmp_path):
    folder = tmp_path / "runs" / "lift" / "lift"
    assert heatlift(*COMMANDS["lift"], faults=[("at", "test", 0, "kill")]).wait() == -signal.SIGKILL
    best = folder / "checkpoints" / "best.ckpt"
    data = bytearray(best.read_bytes())
    data[len(data) // 2] ^= 1
    best.write_bytes(data)
    child = heatlift(*COMMANDS["lift"])
    assert child.wait() == 0, child.stderr
    assert "best.ckpt: " in child.stdout
    assert read_state(folder)["checkpoint"].startswith("checkpoints/step-")
    assert best.with_name("best.ckpt.bad").exists()


def test_a_run_with_a_damaged_run_json_is_resumed(uninterrupted, heatlift, tmp_path):
    assert (
        heatlift(*COMMANDS["lift"], faults=[("at", "saved", 4, "kill")]).wait() == -signal.SIGKILL
    )
    (tmp_path / "runs" / "lift" / "lift" / "run.json").write_text('{"stage": "li')
    child = heatlift(*COMMANDS["lift"])
    assert child.wait() == 0, child.stderr
    assert "run.json is damaged or missing; the run is resumed from its checkpoints" in child.stdout
    assert differences(outcome(tmp_path, "lift"), uninterrupted("lift")) == []


def test_rows_that_a_disk_lost_are_counted_and_the_rest_is_kept(uninterrupted, heatlift, tmp_path):
    fault = ("at", "saved", 4, "kill")
    assert heatlift(*COMMANDS["lift"], faults=[fault]).wait() == -signal.SIGKILL
    path = tmp_path / "runs" / "lift" / "lift" / "metrics.csv"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]))  # the header and 4 of the 11 rows of steps 0 to 3
    child = heatlift(*COMMANDS["lift"])
    assert child.wait() == 0, child.stderr
    (line,) = child.stderr.splitlines()
    lost = "7 of 11 rows before step 4 are lost, 4 are kept"
    assert line.startswith(f"heatlift: warning: runs/lift/lift/metrics.csv: {lost}")
    assert read_state(path.parent)["lost_rows"] == 7
    left, whole = outcome(tmp_path, "lift"), uninterrupted("lift")
    assert differences(left, whole) == ["metrics"]
    assert set(left["metrics"]) < set(whole["metrics"])


def test_rows_that_were_logged_after_the_last_state_are_logged_once(
    uninterrupted, heatlift, tmp_path
):
    arguments = (*COMMANDS["lift"], "--trainer.accumulate_grad_batches", "3")
    expected = uninterrupted(*arguments[:1], *arguments[-2:])
    assert heatlift(*arguments, faults=[("at", "batch", 4, "kill")]).wait() == -signal.SIGKILL
    child = heatlift(*arguments)
    assert child.wait() == 0, child.stderr
    assert differences(outcome(tmp_path, "lift"), expected) == []


TIMED = ("--trainer.max_time", "00:00:00:06", "--weights", "last")


def test_a_run_whose_time_is_over_is_killed_in_its_last_validation_and_ends_bit_equal(
    heatlift_in, tmp_path
):
    outcomes = []
    for name, faults in (("whole", []), ("killed", [("at", "validation", 6, "kill")])):
        start = heatlift_in(tmp_path / name)
        if faults:
            killed = start(*COMMANDS["lift"], *TIMED, faults=[("clock",), *faults])
            assert killed.wait() == -signal.SIGKILL
        child = start(*COMMANDS["lift"], *TIMED, faults=[("clock",)])
        assert child.wait() == 0, child.stderr
        assert (tmp_path / name / "runs/lift/lift/checkpoints/last.ckpt").exists()
        outcomes.append(outcome(tmp_path / name, "lift"))
    assert differences(*outcomes) == []
    steps = {step for step, name, _ in outcomes[1]["metrics"] if name.startswith("test/")}
    assert steps == {6}


def test_a_run_whose_time_was_over_when_its_state_was_saved_takes_one_more_step(heatlift, tmp_path):
    arguments = (*COMMANDS["lift"], *TIMED)
    faults = [("clock", 4, 2), ("at", "saved", 4, "kill")]
    assert heatlift(*arguments, faults=faults).wait() == -signal.SIGKILL
    child = heatlift(*arguments, faults=[("clock",)])
    assert child.wait() == 0, child.stderr
    left = outcome(tmp_path, "lift")
    assert left["step"] == 5
    assert {step for step, name, _ in left["metrics"] if name.startswith("test/")} == {5}
    assert {step for step, name, _ in left["metrics"] if name.startswith("val/")} == {4}
    assert (tmp_path / "runs/lift/lift/checkpoints/last.ckpt").exists()


@pytest.mark.slow
def test_the_patience_of_early_stopping_counts_the_last_epoch_before_a_kill(heatlift_in, tmp_path):
    stopping = "--trainer.callbacks"
    more = (stopping, "lightning.pytorch.callbacks.EarlyStopping")
    more += (f"{stopping}.monitor", "val/mpjpe_mm", f"{stopping}.min_delta", "1000")
    arguments = (*COMMANDS["lift"], *more, f"{stopping}.patience", "1", "--trainer.max_epochs", "5")
    outcomes = []
    for name, faults in (("whole", []), ("killed", [("at", "saved", 8, "kill")])):
        start = heatlift_in(tmp_path / name)
        if faults:
            assert start(*arguments, faults=faults).wait() == -signal.SIGKILL
        child = start(*arguments)
        assert child.wait() == 0, child.stderr
        outcomes.append(outcome(tmp_path / name, "lift"))
    assert outcomes[0]["step"] == 16
    assert differences(*outcomes) == []


def test_other_data_under_the_same_name_raise_an_error(heatlift, tmp_path):
    assert (
        heatlift(*COMMANDS["lift"], faults=[("at", "saved", 4, "kill")]).wait() == -signal.SIGKILL
    )
    child = heatlift(*COMMANDS["lift"], faults=[("few_videos", 3)])
    assert child.wait() == 4
    assert re.search(r"has 3 samples in val, and had \d+ when runs/lift/lift began", child.stderr)


@pytest.mark.slow
def test_swapped_data_of_the_same_count_are_named_and_never_mixed(heatlift, tmp_path):
    write_people(tmp_path / "people", 1.0)
    assert heatlift(*STORED, faults=[("at", "saved", 4, "kill")]).wait() == -signal.SIGKILL
    write_people(tmp_path / "people", 1.2)
    child = heatlift(*STORED)
    assert child.wait() == 0, child.stderr
    line = child.stdout.splitlines()[0]
    assert line.startswith("heatlift: runs/lift/lift is unfinished and had other data (scale.txt: ")
    assert "; it is not resumed, this is runs/lift/lift-2; put the old data back to" in line
    write_people(tmp_path / "people", 1.0)
    child = heatlift(*STORED)
    assert child.wait() == 0, child.stderr
    assert "resumed from step-" in child.stdout
    one, other = (read_state(tmp_path / "runs/lift" / name) for name in ("lift", "lift-2"))
    assert one["numbers"]["test/mpjpe_mm"] < other["numbers"]["test/mpjpe_mm"]


@pytest.mark.slow
def test_a_moved_data_folder_is_the_same_data(heatlift, tmp_path):
    write_people(tmp_path / "people", 1.0)
    assert heatlift(*STORED, faults=[("at", "saved", 4, "kill")]).wait() == -signal.SIGKILL
    (tmp_path / "people").rename(tmp_path / "moved")
    child = heatlift(*STORED, "--data.source.init_args.root", "moved", "--trainer.max_epochs=3")
    assert child.wait() == 0, child.stderr
    assert "resumed from step-" in child.stdout


def test_a_process_that_sees_other_data_is_named_at_the_start(heatlift, tmp_path):
    write_people(tmp_path / "people", 1.0)
    write_people(tmp_path / "people-1", 1.2)
    child = heatlift(*STORED, *TWO_RANKS)
    assert child.wait(60) == 4
    assert re.fullmatch(
        r"heatlift: error: process 0: process 1 reads other files than process 0: scale.txt "
        r"\(.* on process 0, .* on process 1\); give all processes the same\n",
        child.stderr,
    )
    assert not (tmp_path / "runs" / "lift" / "lift").exists()


@pytest.mark.slow
def test_user_callbacks_are_settings_of_the_run(heatlift, tmp_path):
    assert (
        heatlift(*COMMANDS["lift"], faults=[("at", "saved", 4, "kill")]).wait() == -signal.SIGKILL
    )
    own = "{class_path: lightning.pytorch.callbacks.LearningRateMonitor, "
    own += "init_args: {logging_interval: epoch}}"
    text = TINY["lift"].replace("trainer: {", f"trainer: {{callbacks: [{own}], ")
    (tmp_path / "lift.yaml").write_text(text)
    child = heatlift(*COMMANDS["lift"])
    assert child.wait() == 0, child.stderr
    assert "lift is unfinished and had other settings (trainer.callbacks: absent ->" in child.stdout
    assert (tmp_path / "runs" / "lift" / "lift-2").is_dir()


def shared_memory_files():
    """Files in shared memory, without the semaphores of the test processes."""
    return {path for path in Path("/dev/shm").iterdir() if not path.name.startswith("sem.")}


def test_killed_runs_leave_no_files_in_shared_memory(heatlift):
    before = shared_memory_files()
    arguments = (*COMMANDS["lift"], "--data.workers", "2")
    assert heatlift(*arguments, faults=[("at", "batch", 3, "kill")]).wait() == -signal.SIGKILL
    assert shared_memory_files() <= before


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_twenty_runs_in_one_process_leave_no_open_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(panels, "log_video", lambda *rest, **options: None)
    Path("lift.yaml").write_text(TINY["lift"])
    arguments = [*COMMANDS["lift"], "--trainer.max_epochs", "1", "--data.workers", "1"]
    counts = []
    for _ in range(20):
        assert main(arguments) == 0
        gc.collect()
        counts.append(sum(1 for _ in Path("/proc/self/fd").iterdir()))
    assert max(counts[2:]) <= counts[1]


@pytest.mark.slow
def test_a_chain_killed_in_each_stage_ends_bit_equal(heatlift_in, tmp_path):
    def chain(folder, faults):
        start = heatlift_in(folder)
        for stage, more in (("pretrain", ()), ("lift", ("--model.pretrained", "newest"))):
            for fault in faults:
                assert start(*COMMANDS[stage], *more, faults=[fault]).wait() == -signal.SIGKILL
                if stage == "pretrain":
                    early = start(*COMMANDS["lift"], "--model.pretrained", "newest")
                    assert early.wait() == 2
                    assert "no finished pretrain run" in early.stderr
            assert start(*COMMANDS[stage], *more).wait() == 0
        return outcome(folder, "lift")

    whole = chain(tmp_path / "whole", [])
    broken = chain(tmp_path / "broken", [("at", "batch", 3, "kill"), ("at", "test", 0, "kill")])
    assert differences(whole, broken) == []
