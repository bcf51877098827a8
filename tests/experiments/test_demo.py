"""The demo: which step is trained when, what is resumed, and the processes of its steps."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch

from pipeline.errors import UsageError
from pipeline.experiments import demo, stage_process
from pipeline.experiments.demo import STEPS, DemoTraining
from pipeline.experiments.stage_process import StageProcess, StageProcessError, end_all
from pipeline.training.processes import LOST_CODE, StoppedBySignal, signal_handlers
from pipeline.training.run_folder import FINISHED, Run

LABELS = [step.label for step in STEPS]


def finish(folder):
    """Make the folder of a finished run."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "best.ckpt").write_text("")
    Run(folder, {"state": FINISHED, "checkpoint": "checkpoints/best.ckpt"}).write(settings={})
    return folder


class FakeStage:
    """A stage that takes a number of looks at it to end, and then leaves a finished run."""

    def __init__(self, label, arguments, threads, width):
        self.label, self.arguments, self.threads = label, arguments, threads
        self.left, self.signals = type(self).durations[label], []
        self.error = ""
        self.log.append(f"{label} begins")
        self.started[label] = self

    def is_running(self):
        self.left -= 1
        return self.left > 0

    def check(self):
        self.log.append(f"{self.label} ends")
        if self.label == self.failing:
            raise StageProcessError(f"{self.label}: no room", 5)
        runs, name = self.arguments[self.arguments.index("--runs") + 1], self.arguments[5]
        finish(demo.Path(runs) / self.arguments[0] / name)

    def send_signal(self, number):
        self.signals.append(number)
        self.left = 2  # it saves a checkpoint

    def wait(self):
        self.log.append(f"{self.label} stopped")
        self.left = 0


@pytest.fixture
def stages(monkeypatch):
    """Replace the processes of the steps by ones that do nothing; return their class."""
    FakeStage.durations = {"2D stage": 5, "pretrain": 2, "exact": 2, "detected": 1}
    FakeStage.log, FakeStage.started, FakeStage.failing = [], {}, None
    monkeypatch.setattr(demo, "StageProcess", FakeStage)
    monkeypatch.setattr(demo.time, "sleep", lambda seconds: None)
    return FakeStage


def test_steps_that_need_no_other_ones_are_trained_at_once(stages, tmp_path):
    training = DemoTraining(tmp_path, "off", resume_with_changed_code=True)
    training.train(STEPS)
    assert stages.log == [
        *("2D stage begins", "pretrain begins", "pretrain ends"),
        *("exact begins", "exact ends", "2D stage ends", "detected begins", "detected ends"),
    ]
    assert json.loads((tmp_path / "demo.json").read_text()) == training.finished
    assert set(training.finished) == set(LABELS)
    given = stages.started["detected"].arguments
    exact = tmp_path / "lift" / "demo-exact" / "checkpoints" / "best.ckpt"
    assert given[given.index("--model.pretrained") + 1] == str(exact)
    assert given[given.index("--wandb") + 1] == "off"
    assert "--resume_with_changed_code" in given


def test_the_2d_stage_leaves_a_core_to_its_worker_and_lifters_have_one_thread(stages, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        DemoTraining(tmp_path, None, resume_with_changed_code=False).train(STEPS)
    finally:
        torch.set_num_threads(before)
    assert [stages.started[label].threads for label in LABELS] == [2, 1, 1, 1]
    assert "--wandb" not in stages.started["2D stage"].arguments  # so the variable WANDB decides


def test_an_interrupted_demo_is_resumed_after_its_finished_steps(stages, tmp_path):
    done = {label: str(finish(tmp_path / "done" / label)) for label in ("pretrain", "exact")}
    (tmp_path / "demo.json").write_text(json.dumps(done))
    called = []
    DemoTraining(tmp_path, None, resume_with_changed_code=False).train(
        STEPS[:3], lambda: called.append([*stages.started])
    )
    assert list(stages.started) == ["2D stage"]
    assert called == [["2D stage"]]  # once, beside it


@pytest.mark.parametrize(
    "text", ['{"pretr', "[3]", '{"exact": "runs/gone"}', "", "3", '{"exact": 3}', '{"x": "DONE"}']
)
def test_a_damaged_progress_file_is_renamed_and_the_demo_starts_from_the_beginning(
    text, tmp_path, capsys
):
    progress = tmp_path / "demo.json"
    progress.write_text(text.replace("DONE", str(finish(tmp_path / "run"))))
    assert not DemoTraining(tmp_path, None, resume_with_changed_code=False).finished
    assert f"warning: {progress} names no finished runs" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"demo.json.bad", "run"}


def test_if_a_step_fails_the_others_are_stopped_and_what_is_finished_stays(stages, tmp_path):
    stages.failing = "exact"
    training = DemoTraining(tmp_path, None, resume_with_changed_code=False)
    with pytest.raises(StageProcessError, match="exact: no room") as failure:
        training.train(STEPS)
    assert failure.value.exit_code == 5
    assert stages.started["2D stage"].signals == [signal.SIGTERM]
    assert list(json.loads((tmp_path / "demo.json").read_text())) == ["pretrain"]


def test_a_stop_signal_is_passed_on_to_all_steps(stages, tmp_path):
    def stop():
        raise StoppedBySignal(signal.SIGINT, "stopped by SIGINT")

    with pytest.raises(StoppedBySignal):
        DemoTraining(tmp_path, None, resume_with_changed_code=False).train(STEPS, stop)
    assert [stages.started[label].signals for label in LABELS[:2]] == [[signal.SIGINT]] * 2
    assert [line for line in stages.log if "stopped" in line] == [
        *("2D stage stopped", "pretrain stopped")
    ]


@pytest.fixture
def run_code(monkeypatch):
    """A function that runs Python code as the process of a stage."""
    environments = []

    def start_process(arguments, environment, stdout):
        environments.append(environment)
        return subprocess.Popen(
            [sys.executable, "-c", *arguments], stdout=stdout, stderr=subprocess.PIPE, text=True
        )

    def run(code, label="exact", threads=1):
        process = StageProcess(label, [code], threads, 8)
        process.environment = environments[-1]
        return process

    monkeypatch.setattr(stage_process, "start_process", start_process)
    return run


def test_the_lines_of_a_stage_get_its_label(run_code, capfd):
    process = run_code("import sys; print('a'); print('b'); print('c', file=sys.stderr)")
    process.check()
    assert not process.is_running()
    output = capfd.readouterr()
    assert output.out == "exact    | a\nexact    | b\n"
    assert output.err == "exact    | c\n"


@pytest.mark.parametrize(("given", "expected"), [(None, "2"), ("5", "5")])
def test_a_stage_has_so_many_threads_unless_the_user_set_them(
    run_code, monkeypatch, given, expected
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    process = run_code("", threads=2)
    process.check()
    assert process.environment["OMP_NUM_THREADS"] == expected
    assert process.environment["HEATLIFT_PARENT"] == str(os.getpid())


def test_the_error_line_of_a_stage_becomes_the_error(run_code, capfd):
    line = "heatlift: error: x.npz: is damaged"
    code = f"import sys; sys.stderr.write('warning\\n{line}\\n'); sys.exit(4)"
    with pytest.raises(StageProcessError, match=r"^exact: x\.npz: is damaged$") as failure:
        run_code(code).check()
    assert failure.value.exit_code == 4
    assert capfd.readouterr().err == "exact    | warning\n"


def test_a_stage_that_ends_without_a_line_or_is_killed_is_an_error(run_code):
    with pytest.raises(StageProcessError, match="exact: ended with exit code 3"):
        run_code("import sys; sys.exit(3)").check()
    killed = run_code("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(StageProcessError, match="exact: died by signal 9") as failure:
        killed.check()
    assert failure.value.exit_code == LOST_CODE


WAITING = """
import signal, sys, time
seen = []
def save(number, frame):
    seen.append(number)
    print("saved", flush=True)
    print("heatlift: error: saved at step 7", file=sys.stderr, flush=True)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
while len(seen) < {count}:
    time.sleep(0.01)
"""


def wait_for(text, capfd):
    """Wait until a text was printed."""
    printed = ""
    while text not in printed:
        printed += capfd.readouterr().out
        time.sleep(0.01)
    return printed


def test_stages_that_are_stopped_have_the_time_to_save(run_code, capfd):
    process = run_code(WAITING.format(count=1))
    wait_for("ready", capfd)
    end_all([process], signal.SIGTERM)
    assert not process.is_running()
    process.check()
    output = capfd.readouterr()
    assert output.out == "exact    | saved\n"
    assert output.err == "exact: saved at step 7\n"


def test_a_second_stop_signal_goes_to_the_stages_too(run_code, capfd):
    process = run_code(WAITING.format(count=2))

    def stop(number, frame):
        raise StoppedBySignal(number, "stopped")

    def send_second():
        wait_for("saved", capfd)
        os.kill(os.getpid(), signal.SIGTERM)

    wait_for("ready", capfd)
    with signal_handlers([signal.SIGTERM], stop), contextlib.suppress(StoppedBySignal):
        sender = threading.Thread(target=send_second)
        sender.start()
        end_all([process], signal.SIGTERM)
        sender.join()
    assert not process.is_running()
    process.check()


def test_an_error_of_the_check_names_the_step_before_anything_is_trained(
    stages, tmp_path, monkeypatch
):
    def check_fit(stage, arguments, planned):
        if stage == "lift":
            raise UsageError(f"lift: nothing planned but {sorted(planned)}")
        return demo.check_fit.plan

    check_fit.plan = type("Plan", (), {"folder": "f", "length": "l", "inputs": "i"})
    monkeypatch.setattr(demo, "check_fit", check_fit)
    with pytest.raises(UsageError, match=r"\['heatmap', 'pretrain'\]"):
        DemoTraining(tmp_path, None, resume_with_changed_code=False).check()
    assert not stages.started


@pytest.mark.slow
def test_a_tiny_demo_ends_with_numbers_and_a_page(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("HEATLIFT_CACHE", str(tmp_path / "cache"))
    people = {"test": 1, "seconds": 0.6, "images": 64}
    options = [f"--data.source.init_args.{name}={value}" for name, value in people.items()]
    options += ["--trainer.max_steps=2", "--trainer.limit_val_batches=1"]
    steps = [replace(step, arguments=(*step.arguments, *options)) for step in STEPS]
    steps[3] = replace(steps[3], arguments=(*steps[3].arguments, "--data.source.init_args.train=2"))
    monkeypatch.setattr(demo, "STEPS", tuple(steps))
    monkeypatch.setitem(demo._UNSEEN, "train", 2)
    source = demo._source
    monkeypatch.setattr(demo, "_source", lambda **given: source(**people | given))
    before = torch.get_num_threads()
    try:
        demo.demo(str(tmp_path / "runs"), "off")
    finally:
        torch.set_num_threads(before)
    lines = capfd.readouterr().out.splitlines()
    assert {line[:11] for line in lines if line[8:11] == " | "} >= {
        *(f"{label:<8} | " for label in LABELS)
    }
    assert "people of the synthetic test split:" in lines
    assert any(line.startswith("all: the detections") for line in lines)
    assert lines[-1] == f"images and curves: {tmp_path / 'runs' / 'demo.html'}"
    assert {path.name for path in (tmp_path / "runs").glob("demo*")} == {"demo.html", "demo.png"}
