"""Kills, deaths, signals and damage by the hundred, for `make soak`: see `soak.FAULTS`."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from runs import (
    COMMANDS,
    DEATHS,
    STORED,
    THREE_RANKS,
    TINY,
    TWO_RANKS,
    USER_CODE,
    differences,
    outcome,
    outlives_its_launcher,
    write_people,
)
from soak import SEED

from pipeline.errors import DataError
from pipeline.files import torch_files
from pipeline.training.run_folder import open_run, read_state

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

PARTS = range(5)
"""Long rows are several tests, so that two processes share them evenly."""


def states_of(folder, stage):
    return sorted((folder / "runs" / stage / stage / "checkpoints").glob("*.ckpt"))


def unreadable(paths):
    """Checkpoints under their final names that are not whole."""
    bad = []
    for path in paths:
        try:
            torch_files.read_checkpoint(path)
        except DataError as error:
            bad.append(str(error))
    return bad


def finish(row, start, folder, stage, want, what, *more, done=None):
    """Run the same command to its end and look at everything that must hold then."""
    lost = unreadable(states_of(folder, stage))
    child = start(*COMMANDS[stage], *more)
    code = child.wait()
    state = read_state(folder / "runs" / stage / stage) or {}
    whole = code == 0 and state.get("state") == "finished"
    row.look(
        what,
        wrong=whole and differences(outcome(folder, stage), want),
        lost=lost,
        zero=code == 0 and not whole,
        orphans=child.orphans(),
        other=code != 0 and child.stderr[-200:],
    )
    shutil.rmtree(folder)


PLACES = {
    "save": lambda chance: ("kill_in_save", chance.randint(1, 4)),
    "naming": lambda chance: ("kill_in_replace", chance.randint(1, 4)),
    "validation": lambda chance: ("at", "validation", chance.randint(1, 6), "kill"),
    "test": lambda chance: ("at", "test", 0, "kill"),
}


def killed(start, words, place, chance, seconds):
    """Start a command and kill it there, or at a random moment; whether it was hit."""
    if place:
        return start(*words, faults=[PLACES[place](chance)]).wait() == -signal.SIGKILL
    child = start(*words)
    child.process.join(chance.uniform(0.0, seconds))
    child.kill_all()
    with contextlib.suppress(ProcessLookupError):
        child.send(signal.SIGKILL)
    child.process.join()
    return child.process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("stage", TINY)
def test_kills(stage, part, uninterrupted, heatlift_in, tmp_path, soak):
    want = uninterrupted(stage)
    chance = random.Random(f"{SEED} {stage} {part}")
    begun = time.monotonic()
    assert heatlift_in(tmp_path / "whole")(*COMMANDS[stage]).wait() == 0
    seconds = time.monotonic() - begun
    assert differences(outcome(tmp_path / "whole", stage), want) == []
    row = soak(f"kill {stage}")
    for number in row.times(10):
        place = dict(enumerate(PLACES)).get(number)  # 4 at a place, 6 at random moments
        folder = tmp_path / str(number)
        start = heatlift_in(folder)
        while not killed(start, COMMANDS[stage], place, chance, seconds):
            shutil.rmtree(folder)  # it had finished before
        finish(row, start, folder, stage, want, place)


@pytest.mark.parametrize(
    ("name", "ranks", "rank"),
    [("two", TWO_RANKS, rank) for rank in range(2)]
    + [("three", THREE_RANKS, rank) for rank in range(3)],
)
def test_kills_of_one_process(name, ranks, rank, uninterrupted, heatlift_in, tmp_path, soak):
    more = (*ranks, "--save_every", "1")
    want = uninterrupted("lift", *more)
    chance = random.Random(f"{SEED} {name} {rank}")
    row = soak(f"kill {name}")
    for number in row.times(10 if name == "two" else 7):
        start = heatlift_in(tmp_path / str(number))
        place = chance.choice(["batch", "saved", "validation"])
        fault = ("at", place, chance.randint(1, 7))
        child = start(*COMMANDS["lift"], *more, faults=[(*fault, "kill", rank)])
        code = child.wait()
        row.look(fault, zero=code == 0, orphans=child.orphans(), other=code not in (0, 6))
        finish(row, start, tmp_path / str(number), "lift", want, fault, *more)


@pytest.mark.parametrize("part", PARTS)
def test_kills_of_a_chain(part, heatlift_in, tmp_path, soak):
    taken = ("--model.pretrained", "newest")

    def chain(folder, chance=None):
        start = heatlift_in(folder)
        for stage, more in (("pretrain", ()), ("lift", taken)):
            if chance:
                step = chance.randint(1, 5)  # of 6 and 24
                fault = [("at", "batch", step, "kill")]
                assert start(*COMMANDS[stage], *more, faults=fault).wait() == -signal.SIGKILL
            if chance and stage == "pretrain":
                early.append(start(*COMMANDS["lift"], *taken).wait())
            assert start(*COMMANDS[stage], *more).wait() == 0
        return outcome(folder, "lift")

    early = []
    want = chain(tmp_path / "whole")
    chance = random.Random(f"{SEED} chain {part}")
    row = soak("kill chain")
    for number in row.times(4):
        got = chain(tmp_path / str(number), chance)
        row.look(wrong=differences(got, want), zero=early[-1] == 0, other=early[-1] != 2)


@pytest.mark.parametrize("part", range(2))
def test_kills_of_detect(part, uninterrupted, heatlift_in, tmp_path, soak):
    uninterrupted("heatmap")
    detector = uninterrupted.folders[("heatmap",)] / "checkpoints" / "best.ckpt"
    text = TINY["heatmap"].partition("data:")[2].partition("  input_size")[0]
    words = ("detect", "-c", "detect.yaml", "--detector", detector)

    def starter(name):
        (tmp_path / name).mkdir()
        (tmp_path / name / "detect.yaml").write_text(f"data:{text}")
        return heatlift_in(tmp_path / name)

    def cached(name):
        entries = (tmp_path / name / "cache").glob("[!.]*/*")
        return {f"{file.parent.name}/{file.name}": file.read_bytes() for file in entries}

    begun = time.monotonic()
    assert starter("whole")(*words).wait() == 0
    seconds = time.monotonic() - begun
    want = cached("whole")
    assert len(want) >= 6
    chance = random.Random(f"{SEED} detect {part}")
    row = soak("kill detect")
    for number in row.times(10):
        start = starter(str(number))
        while not killed(start, words, None, chance, seconds):
            shutil.rmtree(tmp_path / str(number) / "cache")
        child = start(*words)
        code = child.wait()
        wrong = code == 0 and cached(str(number)) != want
        row.look(wrong=wrong, orphans=child.orphans(), other=code != 0 and child.stderr[-200:])


@pytest.mark.parametrize("stage", TINY)
def test_a_kill_after_every_step(stage, uninterrupted, heatlift_in, tmp_path, soak):
    want = uninterrupted(stage)
    steps = want["step"] - 1
    row = soak("kill step")
    for number in row.times(steps):
        folder = tmp_path / str(number)
        start = heatlift_in(folder)
        words = (*COMMANDS[stage], "--save_every", "1")
        fault = ("at", "saved", number + 1, "kill")
        assert start(*words, faults=[fault]).wait() == -signal.SIGKILL
        finish(row, start, folder, stage, want, fault, "--save_every", "1")


@pytest.mark.parametrize("stage", ["integral", "pretrain", "lift"])  # HRNet draws no numbers
def test_the_control(stage, uninterrupted, heatlift_in, tmp_path, soak):
    row = soak("control")
    for _ in row.times(1):
        start = heatlift_in(tmp_path)
        off = ("no_seeds",)
        fault = ("at", "saved", 4, "kill")
        assert start(*COMMANDS[stage], faults=[off, fault]).wait() == -signal.SIGKILL
        assert start(*COMMANDS[stage], faults=[off]).wait() == 0
        row.look(other="weights" not in differences(outcome(tmp_path, stage), uninterrupted(stage)))


CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


@pytest.mark.parametrize("more", [(), TWO_RANKS], ids=["one", "two"])
@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("stage", TINY)
def test_signals(stage, number, more, uninterrupted, heatlift_in, tmp_path, soak):
    want = uninterrupted(stage, *more)
    row = soak("signal")
    for turn in row.times(5):
        folder = tmp_path / str(turn)
        start = heatlift_in(folder)
        step = 1 + turn % (2 if more else 4)  # pretraining has 3 and 6
        faults = [("at", "batch", step, "wait"), ("slow",)]
        child = start(*COMMANDS[stage], *more, faults=faults)
        child.wait_for("HERE")
        child.send(number)
        begun = time.monotonic()
        code = child.wait(30)
        late = time.monotonic() - begun > 10
        bad = code not in (0, CODES[number]) or late
        row.look(turn, zero=code == 0, orphans=child.orphans(), other=bad and (code, late))
        finish(row, start, folder, stage, want, turn, *more)


@pytest.mark.parametrize("number", [*CODES, signal.SIGHUP, signal.SIGUSR1])
def test_signals_to_a_group_with_workers(number, uninterrupted, heatlift_in, tmp_path, soak):
    want = uninterrupted("lift")
    row = soak("signal group")
    for turn in row.times(5):
        more = ("--data.workers", str(1 + turn % 2))
        start = heatlift_in(tmp_path / str(turn))
        faults = [("at", "batch", 1 + turn, "wait"), ("slow",)]
        child = start(*COMMANDS["lift"], *more, faults=faults)
        child.wait_for("HERE")
        child.send(number, to_all=True)
        code = child.wait(30)
        bad = code != 128 + number or "saved at step" not in child.stderr
        other = bad and (code, child.stderr[-200:])
        row.look(number, zero=code == 0, orphans=child.orphans(), other=other)
        finish(row, start, tmp_path / str(turn), "lift", want, turn, *more)


def test_killed_launchers(soak):
    row = soak("launcher")
    for _ in row.times(20):
        row.look(orphans=outlives_its_launcher(1.0))


def test_deleted_locks(tmp_path, soak):
    row = soak("lock")
    for number in row.times(20):
        held = open_run(tmp_path, "lift", str(number), {})
        (held.folder / ".lock").unlink()
        row.look(wrong=open_run(tmp_path, "lift", str(number), {}).folder == held.folder)


def test_full_disks(uninterrupted, heatlift_in, tmp_path, soak):
    want = uninterrupted("lift")
    row = soak("full")
    for number in row.times(20):
        start = heatlift_in(tmp_path / str(number))
        child = start(*COMMANDS["lift"], faults=[("full_disk", 3 + number % 8)])
        code, lines = child.wait(), child.stderr.splitlines()
        bad = code != 5 or ".ckpt: disk full: needs " not in lines[-1]
        row.look(zero=code == 0, orphans=child.orphans(), other=bad and (code, lines[-3:]))
        finish(row, start, tmp_path / str(number), "lift", want, number)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("act", DEATHS)
def test_deaths_of_a_process(act, rank, heatlift_in, tmp_path, soak):
    want, line = DEATHS[act]
    row = soak("death")
    for number in row.times(10):
        folder = tmp_path / str(number)
        child = heatlift_in(folder)(
            *COMMANDS["lift"], *TWO_RANKS, faults=[("at", "batch", 1 + number % 7, act, rank)]
        )
        child.wait_for("HERE")
        begun = time.monotonic()
        code = child.wait(60)
        late = time.monotonic() - begun > 15
        said = child.stderr.splitlines()[-1]
        other = code != want or late or not said.startswith(f"heatlift: error: {line.format(rank)}")
        row.look(
            (act, rank),
            zero=code == 0,
            orphans=child.orphans(),
            lost=unreadable(states_of(folder, "lift")),
            other=other and (code, late, said),
        )


@pytest.mark.parametrize("rank", [0, 1])
def test_hangs_of_a_process(rank, heatlift_in, tmp_path, soak):
    row = soak("hang")
    for number in row.times(5):
        words = (*COMMANDS["lift"], *TWO_RANKS, "--patience", "3")
        fault = ("at", "batch", 1 + number, "hang", rank)
        child = heatlift_in(tmp_path / str(number))(*words, faults=[fault])
        child.wait_for("HERE")
        begun = time.monotonic()
        code = child.wait(90)
        late = time.monotonic() - begun > 30
        named = f"process {rank} stopped answering and was killed" in child.stderr.splitlines()[-1]
        bad = code != 6 or late or not named
        row.look(rank, zero=code == 0, orphans=child.orphans(), other=bad and child.stderr[-200:])


def test_another_number_of_processes(heatlift_in, tmp_path, soak):
    row = soak("world")
    for number in row.times(3):
        start = heatlift_in(tmp_path / str(number))
        fault = ("at", "saved", 2 + 2 * number, "kill")
        assert start(*COMMANDS["lift"], faults=[fault]).wait() == -signal.SIGKILL
        child = start(*COMMANDS["lift"], *TWO_RANKS)
        code = child.wait()
        named = "had 1 processes and this has 2" in child.stderr
        row.look(zero=code == 0, orphans=child.orphans(), other=code != 2 or not named)


@pytest.mark.parametrize("more", [(), TWO_RANKS], ids=["one", "two"])
def test_swapped_data(more, heatlift_in, tmp_path, soak):
    write_people(tmp_path / "whole" / "people", 1.0)
    assert heatlift_in(tmp_path / "whole")(*STORED, *more).wait() == 0
    want = outcome(tmp_path / "whole", "lift")
    row = soak("swap")
    for number in row.times(10):
        folder = tmp_path / str(number)
        write_people(folder / "people", 1.0)
        start = heatlift_in(folder)
        code = start(*STORED, *more, faults=[("at", "saved", 3 + number % 5, "kill")]).wait()
        assert code in (6, -signal.SIGKILL)
        write_people(folder / "people", 1.1 + 0.01 * number)
        child = start(*STORED, *more, faults=[("at", "batch", 1, "kill")])
        swapped = child.wait()
        named = "lift is unfinished and had other data (scale.txt: " in child.stdout
        write_people(folder / "people", 1.0)
        child = start(*STORED, *more)
        code = child.wait()
        row.look(
            number,
            wrong=code == 0 and differences(outcome(folder, "lift"), want),
            zero=swapped == 0,
            orphans=child.orphans(),
            other=not named or "resumed from step-" not in child.stdout,
        )
        shutil.rmtree(folder)


@pytest.mark.parametrize("what", ["own file", "package"])
def test_changed_code(what, heatlift_in, tmp_path, soak):
    own = Path(USER_CODE).read_text()
    words = [word.replace("own.", "mine.") for word in STORED]
    words[words.index(USER_CODE.replace("own.", "mine."))] = "mine.py"

    def starter(folder):
        write_people(folder / "people", 1.0)
        (folder / "mine.py").write_text(own)
        return heatlift_in(folder)

    assert starter(tmp_path / "whole")(*words).wait() == 0
    want = outcome(tmp_path / "whole", "lift")
    row = soak("code")
    for number in row.times(10):
        folder = tmp_path / str(number)
        start = starter(folder)
        fault = ("at", "saved", 3 + number % 5, "kill")
        assert start(*words, faults=[fault]).wait() == -signal.SIGKILL
        before = (folder / "runs/lift/lift/run.json").read_bytes()
        if what == "own file":
            (folder / "mine.py").write_text(f"{own}\n# {number}\n")
        child = start(*words, faults=[("other_code",)] if what == "package" else [])
        code, named = child.wait(), "the code changed since the run began (" in child.stderr
        lost = (folder / "runs/lift/lift/run.json").read_bytes() != before
        (folder / "mine.py").write_text(own)
        child = start(*words)
        finished = child.wait()
        row.look(
            (what, number),
            wrong=finished == 0 and differences(outcome(folder, "lift"), want),
            lost=lost,
            zero=code == 0,
            other=code != 2 or not named or finished != 0,
        )
        shutil.rmtree(folder)


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("stage", TINY)
def test_numbers_that_are_not_finite(stage, where, heatlift_in, tmp_path, soak):
    what = "the loss is nan" if where == "loss" else "a gradient is not finite"
    row = soak("not finite")
    for number in row.times(5):
        step = 1 + number
        child = heatlift_in(tmp_path / str(number))(
            *COMMANDS[stage], faults=[("not_finite", step, where)]
        )
        code = child.wait()
        line = child.stderr.splitlines()[-1]
        said = line.startswith(f"heatlift: error: {what} at step {step}, samples ")
        row.look(
            (where, step),
            wrong=(read_state(tmp_path / str(number) / "runs" / stage / stage) or {}).get("state")
            != "unfinished",
            lost=unreadable(states_of(tmp_path / str(number), stage)),
            zero=code == 0,
            other=(code != 3 or not said) and (code, line),
        )


WORKERS = {"kill": 6, "hang": 6, "bad file": 4}


@pytest.mark.parametrize("act", WORKERS)
def test_loader_processes(act, heatlift_in, tmp_path, soak):
    row = soak("worker")
    for number in row.times(10):
        words = (*COMMANDS["lift"], "--data.workers", str(1 + number % 2))
        child = heatlift_in(tmp_path / str(number))(*words, faults=[("worker", act, number % 3)])
        begun = time.monotonic()
        code = child.wait(60)
        late = time.monotonic() - begun > 30
        lines = child.stderr.splitlines()
        cause = {"kill": "was killed", "hang": "gave no batch for", "bad file": "walk.avi"}[act]
        bad = (
            code not in (0, WORKERS[act])
            or late
            or cause not in " ".join(lines[-1:])
            or len(lines) > 2
        )
        row.look(
            act,
            zero=code == 0,
            orphans=child.orphans(),
            lost=unreadable(states_of(tmp_path / str(number), "lift")),
            other=bad and (code, late, lines[-3:]),
        )


def test_a_damaged_newest_state(uninterrupted, heatlift_in, tmp_path, soak):
    want = uninterrupted("lift")
    chance = random.Random(f"{SEED} fallback")
    row = soak("fallback")
    for number in row.times(20):
        folder = tmp_path / str(number)
        start = heatlift_in(folder)
        fault = ("at", "saved", 5 + number % 3, "kill")
        assert start(*COMMANDS["lift"], faults=[fault]).wait() == -signal.SIGKILL
        old, new = sorted((folder / "runs/lift/lift/checkpoints").glob("step-*.ckpt"))
        data = bytearray(new.read_bytes())
        kind = ("bit", "cut", "empty", "older one in its place")[number % 4]
        if kind == "bit":
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        elif kind == "cut":
            del data[chance.randrange(len(data)) :]
        elif kind == "empty":
            data.clear()
        else:
            data = old.read_bytes()
        new.write_bytes(data)
        child = start(*COMMANDS["lift"])
        code = child.wait()
        named = old.name in child.stdout and new.name in child.stdout
        harmless = kind == "bit" and f"resumed from {new.name}" in child.stdout
        row.look(
            kind,
            wrong=code == 0 and differences(outcome(folder, "lift"), want),
            orphans=child.orphans(),
            other=(code != 0 or not (named or harmless)) and child.stdout[-200:],
        )


def test_lost_rows_of_metrics(uninterrupted, heatlift_in, tmp_path, soak):
    want = uninterrupted("lift")
    chance = random.Random(f"{SEED} rows")
    row = soak("rows")
    for number in row.times(20):
        folder = tmp_path / str(number)
        start = heatlift_in(folder)
        fault = ("at", "saved", 4 + 2 * (number % 3), "kill")
        assert start(*COMMANDS["lift"], faults=[fault]).wait() == -signal.SIGKILL
        path = folder / "runs" / "lift" / "lift" / "metrics.csv"
        header, *rows = path.read_bytes().splitlines(keepends=True)
        left = chance.randrange(len(rows) - 3)  # the last ones may be newer than the state
        kind = ("cut", "header", "absent", "zeros")[number % 4]
        path.write_bytes(
            {
                "cut": header + b"".join(rows[:left]) + b"3,val/mp",
                "header": header,
                "absent": b"",
                "zeros": header + b"".join(rows[:left]) + bytes(4096),
            }[kind]
        )
        if kind == "absent":
            path.unlink()
        child = start(*COMMANDS["lift"])
        code = child.wait()
        got = outcome(folder, "lift") if code == 0 else {}
        told = [line for line in child.stderr.splitlines() if "rows before step" in line]
        invented = set(got.get("metrics", ())) - set(want["metrics"])
        row.look(
            (kind, left),
            wrong=code == 0 and (invented or differences(got, want) != ["metrics"]),
            zero=code == 0 and len(told) != 1,
            orphans=child.orphans(),
            other=code != 0 and child.stderr[-200:],
        )
