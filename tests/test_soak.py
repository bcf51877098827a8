"""Kills, faults and deaths by the hundred, for `make soak`: the table of docs/reliability.md."""

from __future__ import annotations

import os
import random

import pytest
from runs import TINY, TWO, WORDS, differing, outcome

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

SEED = int(os.environ.get("HEATLIFT_SOAK_SEED", "20261120"))
SHARE = float(os.environ.get("HEATLIFT_SOAK_SHARE", "1"))
"""How much of the soak to run; 0.1 is a tenth."""


def times(count):
    return max(1, round(count * SHARE))


@pytest.mark.parametrize("stage", TINY)
def test_50_kills_per_stage(stage, unbroken, heatlift_in, tmp_path, table):
    want = unbroken(stage)
    moments = random.Random(f"{SEED} {stage}")
    wrong = orphans = 0
    for number in range(times(50)):
        start = heatlift_in(tmp_path / str(number))
        child = start(*WORDS[stage])
        child.process.join(moments.uniform(0.0, 8.0))
        child.kill_all()
        child.process.join()
        child = start(*WORDS[stage])
        assert child.wait() == 0, child.stderr
        wrong += differing(outcome(tmp_path / str(number), stage), want) != []
        orphans += len(child.orphans())
    table(f"kill -9 at a random moment of {stage}", "never bit-equal (4 of 4)", wrong, times(50))
    assert (wrong, orphans) == (0, 0), SEED


@pytest.mark.parametrize("act", ["kill", "crash", "exit", "raise"])
def test_20_deaths_of_a_process(act, heatlift_in, tmp_path, table):
    late = 0
    for number in range(times(20)):
        start = heatlift_in(tmp_path / str(number))
        child = start(*WORDS["lift"], *TWO, faults=[("at", "batch", 2, act, number % 2)])
        late += child.wait(60) == 0 or child.orphans() != []
    table(f"a process of two ends by {act}", "orphan for up to 3 s, 97-203 lines", late, times(20))
    assert late == 0


@pytest.mark.parametrize("rank", [0, 1])
def test_5_hangs_of_a_process(rank, heatlift_in, tmp_path, table):
    late = 0
    for number in range(times(5)):
        start = heatlift_in(tmp_path / str(number))
        words = (*WORDS["lift"], *TWO, "--patience", "3")
        child = start(*words, faults=[("at", "batch", 2, "hang", rank)])
        late += child.wait(90) != 6 or child.orphans() != []
    table(f"process {rank} of two hangs", "the hung one outlives the run", late, times(5))
    assert late == 0


@pytest.mark.parametrize("more", [(), TWO], ids=["one", "two"])
@pytest.mark.parametrize(("number", "code"), [(15, 143), (2, 130)])
def test_15_signals(more, number, code, heatlift_in, tmp_path, table):
    wrong = 0
    for turn in range(times(15)):
        child = heatlift_in(tmp_path / str(turn))(
            *WORDS["pretrain"], *more, faults=[("at", "batch", 1 + turn % 8, "say"), ("slow",)]
        )
        child.wait_for("HERE")
        child.send(number)
        wrong += child.wait(30) != code or child.orphans() != []
    stock = "hangs (2 of 2)" if more else "exit code 0"
    table(f"signal {number}, {'two processes' if more else 'one process'}", stock, wrong, times(15))
    assert wrong == 0
