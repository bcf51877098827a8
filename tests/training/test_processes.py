"""Processes of a run die, hang or throw; the rest ends soon; the last line says which and why."""

from __future__ import annotations

import re
import shutil
import time

import pytest
from runs import DEATHS, TINY, TWO, WORDS

from pipeline.training import processes
from pipeline.training.metrics_file import read_metrics


def ended(child, seconds):
    """Exit code and last line of a run in which HERE something happens."""
    child.wait_for("HERE")
    begun = time.monotonic()
    code = child.wait(seconds)
    assert time.monotonic() - begun < seconds
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
def test_the_death_of_a_process_ends_all_within_15_s(act, rank, heatlift):
    child = heatlift(*WORDS["lift"], *TWO, faults=[("at", "batch", 2, act, rank)])
    code, line = ended(child, 15)
    assert code == DEATHS[act][0]
    assert line.startswith(f"heatlift: error: {DEATHS[act][1].format(rank)}")


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_that_hangs_ends_all_within_30_s(rank, heatlift):
    words = (*WORDS["lift"], *TWO, "--patience", "3")
    child = heatlift(*words, faults=[("at", "batch", 2, "hang", rank)])
    code, line = ended(child, 30)
    assert code == 6
    assert f"process {rank} stopped answering and was killed" in line


def test_a_number_that_is_not_finite_in_one_process_names_it(heatlift):
    child = heatlift(*WORDS["lift"], *TWO, faults=[("not_finite", 3, "loss", 1)])
    assert child.wait() == 3
    assert child.stderr.splitlines()[-1].startswith(
        "heatlift: error: process 1: the loss is nan at step 3, samples "
    )


def test_a_gradient_that_is_not_finite_names_the_samples_of_all_processes(heatlift):
    child = heatlift(*WORDS["lift"], *TWO, faults=[("not_finite", 2, "gradient", 1)])
    assert child.wait() == 3
    line = child.stderr.splitlines()[-1]
    said = re.search(r"a gradient is not finite at step 2, samples (.*); the weights", line)[1]
    first, second = said.split("; of the next process ")
    assert len({*re.findall(r"\d+", first)} | {*re.findall(r"\d+", second)}) == 32


def test_other_numbers_of_processes_are_refused_for_a_run_begun_by_one(heatlift):
    assert heatlift(*WORDS["lift"], faults=[("at", "saved", 4, "kill")]).wait() == -9
    child = heatlift(*WORDS["lift"], *TWO)
    assert child.wait() == 2
    assert "had 1 processes and this has 2" in child.stderr
    assert "Traceback" not in child.stderr


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("videos", [2, 3, 4, 5, 7])
def test_two_processes_count_every_video_once(videos, unbroken, heatlift_in, tmp_path):
    unbroken("lift")
    best = tmp_path / "best.ckpt"
    shutil.copy(unbroken.folders["lift",] / "checkpoints" / "best.ckpt", best)
    words = ("lift", "test", *WORDS["lift"][2:], "--ckpt_path", best)

    def numbers(name, *more):
        child = heatlift_in(tmp_path / name)(*words, *more, faults=[("few_videos", videos)])
        assert child.wait(100) == 0, child.stderr
        (tried,) = (tmp_path / name / "runs" / "lift" / "lift").glob("test-*")
        rows = read_metrics(tried / "metrics.csv")
        return {metric: value for _, metric, value in rows}

    one, two = numbers("one"), numbers("two", *TWO)
    assert len(one) > 10
    assert two == pytest.approx(one, rel=1e-6)


def test_fewer_videos_than_processes_are_refused(heatlift):
    child = heatlift(*WORDS["lift"], *TWO, faults=[("few_videos", 1)])
    assert child.wait(100) == 2
    what = "1 evaluation samples are too few for 2 processes; give --trainer.devices 1"
    assert child.stderr.splitlines()[-1] == f"heatlift: error: process 0: {what}"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_wait_for_a_cache_longer_than_their_patience_and_fill_it_as_one_does(
    unbroken, heatlift_in, tmp_path
):
    unbroken("heatmap")
    detector = unbroken.folders["heatmap",] / "checkpoints" / "best.ckpt"

    def cache_of(name, *more, faults=()):
        config = tmp_path / name / "lift.yaml"
        config.parent.mkdir()
        small = "actions: [walk], seconds: 0.6, images: 64"
        config.write_text(TINY["lift"].replace("actions: [walk, wave], seconds: 2.0", small))
        words = ("lift", "fit", "-c", "lift.yaml", "--data.detections", detector, *more)
        child = heatlift_in(tmp_path / name)(*words, faults=faults)
        assert child.wait(100) == 0, child.stderr
        entries = (tmp_path / name / "cache").glob("[!.]*/*")
        return {f"{file.parent.name}/{file.name}": file.read_bytes() for file in entries}

    one = cache_of("one")
    assert len(one) >= 6
    assert cache_of("two", *TWO, "--patience", "3", faults=[("slow_detector", 5.0)]) == one


@pytest.mark.slow
def test_the_watcher_takes_the_others_with_it(heatlift):
    words = (*WORDS["lift"], *TWO, "--trainer.max_epochs", "500")
    child = heatlift(*words, env={"HEATLIFT_COLD": "1"})
    child.wait_for("step 20", 100)
    child.send(9)
    assert child.wait() == -9
    assert child.orphans(2) == []


def test_verdicts_name_the_first_cause():
    assert processes._verdict([6, -9], ["lost", ""], set(), [])[1] == 6
    assert "process 1 died by signal 9" in processes._verdict([6, -9], ["lost", ""], set(), [])[0]
    assert processes._verdict([6, 3], ["lost", "nan"], set(), []) == ("process 1: nan", 3)
    assert "process 0 stopped answering" in processes._verdict([-9, 6], ["", "lost"], {0}, [])[0]
    assert processes._verdict([143, 143], ["saved", ""], set(), [15]) == ("saved", 143)
    assert processes._verdict([-2, 130], ["", "saved"], set(), [2]) == ("saved", 130)
    assert processes._verdict([0, 0], ["", ""], set(), [15]) == ("", 0)
