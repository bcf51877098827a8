"""When a rank dies, hangs or raises, all ranks end soon, and the last line names the cause."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from runs import COMMANDS, DEATHS, TINY, TWO_RANKS, outlives_its_launcher

from pipeline.training import processes
from pipeline.training.metrics_rows import read_metrics


def wait_after_fault(child, seconds):
    """Wait for the end of a run after its fault; return exit code and last line."""
    child.wait_for("HERE")
    start = time.monotonic()
    code = child.wait(seconds)
    assert time.monotonic() - start < seconds
    assert child.orphans() == []
    return code, child.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("act", "rank"),
    [
        pytest.param(act, rank, marks=[] if (act, rank) == ("kill", 1) else pytest.mark.slow)
        for act in DEATHS
        for rank in (0, 1)
    ],
)
def test_all_ranks_end_within_15_s_after_one_died(act, rank, heatlift):
    child = heatlift(*COMMANDS["lift"], *TWO_RANKS, faults=[("at", "batch", 2, act, rank)])
    code, line = wait_after_fault(child, 15)
    assert code == DEATHS[act][0]
    assert line.startswith(f"heatlift: error: {DEATHS[act][1].format(rank)}")


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_all_ranks_end_within_30_s_after_one_hangs(rank, heatlift):
    arguments = (*COMMANDS["lift"], *TWO_RANKS, "--patience", "3")
    child = heatlift(*arguments, faults=[("at", "batch", 2, "hang", rank)])
    code, line = wait_after_fault(child, 30)
    assert code == 6
    assert f"process {rank} stopped answering and was killed" in line


@pytest.mark.parametrize(
    ("act", "code", "text"),
    [("kill", 6, "a DataLoader worker was killed"), ("bad file", 4, "walk.avi: frame 7 is grey")],
)
def test_a_fault_in_a_worker_of_a_training_run_is_one_line(act, code, text, heatlift):
    child = heatlift(*COMMANDS["lift"], "--data.workers", "1", faults=[("worker", act, 1)])
    assert child.wait(60) == code
    assert text in child.stderr.splitlines()[-1]
    assert child.orphans() == []


@pytest.mark.parametrize("place", ["save", "page"])
def test_a_worker_that_dies_while_the_main_process_does_something_else_is_named(place, heatlift):
    child = heatlift(*COMMANDS["lift"], "--data.workers", "1", faults=[("kill_workers_in", place)])
    assert child.wait(60) == 6, child.stderr
    (line,) = child.stderr.splitlines()
    assert "a DataLoader worker was killed" in line


def test_a_loss_that_is_not_finite_in_one_rank_names_the_rank(heatlift):
    child = heatlift(*COMMANDS["lift"], *TWO_RANKS, faults=[("not_finite", 3, "loss", 1)])
    assert child.wait() == 3
    assert child.stderr.splitlines()[-1].startswith(
        "heatlift: error: process 1: the loss is nan at step 3, samples "
    )


def test_a_gradient_that_is_not_finite_names_the_samples_of_all_ranks(heatlift):
    child = heatlift(*COMMANDS["lift"], *TWO_RANKS, faults=[("not_finite", 2, "gradient", 1)])
    assert child.wait() == 3
    line = child.stderr.splitlines()[-1]
    samples = re.search(r"a gradient is not finite at step 2, samples (.*); the weights", line)[1]
    first, second = samples.split("; of the next process ")
    assert len({*re.findall(r"\d+", first)} | {*re.findall(r"\d+", second)}) == 32


def test_resuming_with_another_number_of_ranks_raises_an_error(heatlift):
    assert heatlift(*COMMANDS["lift"], faults=[("at", "saved", 4, "kill")]).wait() == -9
    child = heatlift(*COMMANDS["lift"], *TWO_RANKS)
    assert child.wait() == 2
    assert "had 1 processes and this has 2" in child.stderr
    assert "Traceback" not in child.stderr


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_network_with_unused_parameters_is_trained_on_two_ranks(heatlift, tmp_path):
    before, after = TINY["lift"].split("  net:")
    net = "{class_path: pipeline.lift.Cascade, init_args: {stages: 3, width: 8, blocks: 1}}"
    config = f"{before}  net: {net}\n{after[after.index('  optimizer:') :]}"
    (tmp_path / "cascade.yaml").write_text(config)
    child = heatlift("lift", "fit", "-c", "cascade.yaml", *TWO_RANKS)
    assert child.wait(200) == 0, child.stderr
    path = tmp_path / "runs" / "lift" / "cascade" / "checkpoints" / "best.ckpt"
    state = torch.load(path, weights_only=True)["state_dict"]
    assert state["net.stages.2.w2.weight"].any()  # it begins with zeros


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("videos", [2, 3, 4, 5, 7])
def test_two_ranks_evaluate_every_sequence_once(videos, uninterrupted, heatlift_in, tmp_path):
    uninterrupted("lift")
    best = tmp_path / "best.ckpt"
    shutil.copy(uninterrupted.folders["lift",] / "checkpoints" / "best.ckpt", best)
    arguments = ("lift", "test", *COMMANDS["lift"][2:], "--ckpt_path", best)

    def run_test(name, *more):
        child = heatlift_in(tmp_path / name)(*arguments, *more, faults=[("few_videos", videos)])
        assert child.wait(100) == 0, child.stderr
        (folder,) = (tmp_path / name / "runs" / "lift" / "lift").glob("test-*")
        rows = read_metrics(folder / "metrics.csv")
        return {metric: value for _, metric, value in rows}

    one, two = run_test("one"), run_test("two", *TWO_RANKS)
    assert len(one) > 10
    assert two == pytest.approx(one, rel=1e-6)


def test_fewer_sequences_than_ranks_raise_an_error(heatlift):
    child = heatlift(*COMMANDS["lift"], *TWO_RANKS, faults=[("few_videos", 1)])
    assert child.wait(100) == 2
    message = "1 evaluation samples are too few for 2 processes; give --trainer.devices 1"
    assert child.stderr.splitlines()[-1] == f"heatlift: error: process 0: {message}"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_ranks_may_wait_for_a_cache_longer_than_patience_and_give_the_same_cache_as_one(
    uninterrupted, heatlift_in, tmp_path
):
    uninterrupted("heatmap")
    detector = uninterrupted.folders["heatmap",] / "checkpoints" / "best.ckpt"

    def cache_of(name, *more, faults=()):
        config = tmp_path / name / "lift.yaml"
        config.parent.mkdir()
        small = "actions: [walk], seconds: 0.6, images: 64"
        config.write_text(TINY["lift"].replace("actions: [walk, wave], seconds: 2.0", small))
        arguments = ("lift", "fit", "-c", "lift.yaml", "--data.detections", detector, *more)
        child = heatlift_in(tmp_path / name)(*arguments, faults=faults)
        assert child.wait(100) == 0, child.stderr
        entries = (tmp_path / name / "cache").glob("[!.]*/*")
        return {f"{file.parent.name}/{file.name}": file.read_bytes() for file in entries}

    one = cache_of("one")
    assert len(one) >= 6
    assert cache_of("two", *TWO_RANKS, "--patience", "3", faults=[("slow_detector", 5.0)]) == one


@pytest.mark.slow
def test_all_ranks_end_when_the_supervising_process_is_killed(heatlift):
    arguments = (*COMMANDS["lift"], *TWO_RANKS, "--trainer.max_epochs", "500")
    child = heatlift(*arguments, env={"HEATLIFT_COLD": "1"})
    child.wait_for("step 20", 100)
    child.send(9)
    assert child.wait() == -9
    assert child.orphans(2) == []


ADVICE = "; the others were stopped; run the same command again to resume"


@pytest.mark.parametrize(
    ("codes", "lines", "killed", "signals", "cause", "code"),
    [
        (
            [6, -9],
            ["lost", ""],
            set(),
            [],
            f"process 1 died by signal 9, SIGKILL (out of memory?){ADVICE}",
            6,
        ),
        ([6, 3], ["lost", "nan"], set(), [], "process 1: nan", 3),
        ([-9, 6], ["", "lost"], {0}, [], f"process 0 stopped answering and was killed{ADVICE}", 6),
        ([143, 143], ["saved", ""], set(), [15], "saved", 143),
        ([-2, 130], ["", "saved"], set(), [2], "saved", 130),
        ([0, 0], ["", ""], set(), [15], "", 0),
        ([5, 6], ["full", "lost"], set(), [10], "stopped by SIGUSR1; process 0: full", 138),
        (
            [-9, -9],
            ["", ""],
            set(),
            [15, 10],
            "stopped by SIGTERM; killed by a second signal, SIGUSR1; "
            "run the same command again to resume",
            143,
        ),
    ],
)
def test_the_first_cause_is_reported(codes, lines, killed, signals, cause, code):
    assert processes._find_cause(codes, lines, killed, signals) == (cause, code)


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "10000"), ({"OMP_NUM_THREADS": "1"}, "None"), ({"GOMP_SPINCOUNT": "7"}, "7")],
)
@pytest.mark.parametrize("start", ["import pipeline.lift", "import pipeline.__main__"])
def test_waiting_threads_sleep_early_unless_the_user_has_set_openmp(start, given, expected):
    code = f"{start}, os, sys; print('torch' in sys.modules, os.environ.get('GOMP_SPINCOUNT'))"
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean | given, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == f"False {expected}"


START = """
import os, sys
from pathlib import Path
from pipeline.training.processes import start_process
sys.path.insert(0, sys.argv[1])  # as --import does
os.chdir(sys.argv[1])
child = start_process(["--help"], os.environ)
_, errors = child.communicate()
sys.exit(errors or child.returncode)
"""


def test_started_processes_run_the_code_of_the_checkout_that_started_them(tmp_path):
    second, other = tmp_path / "second", tmp_path / "other"
    shutil.copytree(Path(processes.__file__).parents[1], second / "pipeline")
    main = second / "pipeline" / "__main__.py"
    main.write_text(main.read_text().replace("Train and evaluate", "SECOND: train and evaluate"))
    (other / "pipeline").mkdir(parents=True)
    (other / "pipeline" / "__init__.py").write_text("raise SystemExit('the wrong package')")
    done = subprocess.run(
        [sys.executable, "-c", START, other],
        cwd=second,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "SECOND: train and evaluate all stages" in done.stdout


def test_a_process_of_torchrun_ends_with_a_killed_launcher():
    assert not outlives_its_launcher(10)


@pytest.mark.parametrize(
    ("given", "speaks"),
    [
        ({}, True),
        ({"RANK": "0"}, True),
        ({"RANK": "1"}, False),
        ({"LOCAL_RANK": "1", "HEATLIFT_PARENT": "7"}, True),
    ],
)
def test_one_process_of_a_launch_says_that_a_signal_stopped_it(given, speaks, monkeypatch):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert processes.speaks_for_all() == speaks
