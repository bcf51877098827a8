"""Run folders are found again and never overwritten; metrics.csv survives a crash."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import stat
import time
from functools import partial

import pytest
import torch

from pipeline.errors import StorageError, UsageError
from pipeline.files.digests import file_digest
from pipeline.training import folder_lock, run_folder
from pipeline.training.metrics_file import MetricsFile, finite_or_none
from pipeline.training.metrics_rows import read_metrics
from pipeline.training.run_folder import (
    FINISHED,
    Run,
    launch_id,
    newest_finished_run,
    open_run,
    read_state,
    settings_digest,
)

SETTINGS = {"model": {"width": 8}, "seed": 1}


@pytest.fixture
def opened(tmp_path):
    """Opens a run, logs a metric and releases its lock, like a process that ends."""

    def open_one(settings=SETTINGS, *, logged=True, options=None, **changes):
        run = open_run(tmp_path, "lift", "try", settings, **(options or {}))
        if logged:
            (run.folder / "metrics.csv").write_text("step,name,value\n0,x,1.0\n")
        if changes:
            run.write(**changes)
        run.release()
        return run

    return open_one


def test_the_same_settings_find_their_unfinished_run(opened):
    assert opened().folder == opened().folder


def test_a_finished_run_and_other_settings_get_another_name(opened):
    first = opened(state=FINISHED)
    second = opened()
    third = opened({"model": {"width": 9}, "seed": 1})
    assert [run.folder.name for run in (first, second, third)] == ["try", "try-2", "try-3"]
    assert opened().folder.name == "try-2"


def test_changed_settings_of_an_unfinished_run_are_printed(opened, capsys):
    opened()
    opened({"model": {"width": 9}, "seed": 1, "joints": "COCO17"})
    output = capsys.readouterr().out
    assert "try is unfinished and had other settings" in output
    assert "(joints: absent -> COCO17; model.width: 8 -> 9)" in output


def test_an_interrupted_first_write_leaves_the_name_free(opened, tmp_path):
    (tmp_path / "lift" / "try").mkdir(parents=True)
    (tmp_path / "lift" / "try" / ".run.json.999999999.part").write_text('{"st')
    assert opened().folder.name == "try"


def test_partial_images_of_a_killed_process_are_removed(opened, tmp_path):
    run = opened()
    left = run.folder / "images" / ".val-poses-000007.png.999999999.part"
    left.parent.mkdir()
    left.write_text("half")
    run.release()
    assert opened().folder == run.folder
    assert not left.exists()


def test_two_torchrun_launches_have_different_ids(monkeypatch):
    for name, value in {
        "RANK": "1",
        "TORCHELASTIC_RUN_ID": "none",
        "GROUP_WORLD_SIZE": "1",
    }.items():
        monkeypatch.setenv(name, value)
    one = launch_id()
    monkeypatch.setattr(run_folder, "process_start_time", lambda pid: "another time")
    assert launch_id() not in (one, None)


def test_a_rank_of_torchrun_that_sees_other_data_finds_the_run_of_the_first(tmp_path, monkeypatch):
    for name, value in {"RANK": "0", "TORCHELASTIC_RUN_ID": "7"}.items():
        monkeypatch.setenv(name, value)
    first = open_run(tmp_path, "lift", "try", {**SETTINGS, "inputs": {"motion.npz": A}})
    monkeypatch.setenv("RANK", "1")
    other = open_run(tmp_path, "lift", "try", {**SETTINGS, "inputs": {"motion.npz": B}})
    assert other.folder == first.folder
    first.release()


@pytest.mark.parametrize("change", [{"model": {"width": 9}}, {"seed": 2}, {"joints": "COCO17"}])
def test_every_setting_counts(opened, change):
    assert opened().folder != opened({**SETTINGS, **change}).folder


def test_the_order_of_settings_does_not_count():
    assert settings_digest({"a": 1, "b": {"c": 2, "d": 3}}) == settings_digest(
        {"b": {"d": 3, "c": 2}, "a": 1}
    )


def _folder_of(root, queue):
    queue.put(open_run(root, "lift", "try", SETTINGS).folder.name)


def test_two_processes_never_work_in_one_folder(tmp_path):
    held = open_run(tmp_path, "lift", "try", SETTINGS)
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    other = fork.Process(target=_folder_of, args=(tmp_path, queue))
    other.start()
    assert queue.get(timeout=20) == "try-2"
    other.join()
    held.release()


def test_a_deleted_lock_lets_no_second_process_in(opened, tmp_path):
    run = open_run(tmp_path, "lift", "try", SETTINGS)
    (run.folder / ".lock").unlink()
    assert opened().folder.name == "try-2"
    run.release()
    assert opened().folder.name == "try"


def test_where_a_disk_cannot_lock_folders_the_first_process_finds_the_second(tmp_path, monkeypatch):
    lock = fcntl.flock

    def flock_of_files(descriptor, operation):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EBADF, "Bad file descriptor")  # as NFS does
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock_of_files)
    first, second = folder_lock.FolderLock(tmp_path), folder_lock.FolderLock(tmp_path)
    assert first.acquire(0.1)
    first.check()
    (tmp_path / ".lock").unlink()
    first.check()
    assert second.acquire(0.1)
    with pytest.raises(StorageError, match=r"its file \.lock was deleted, and another process"):
        first.check()
    second.check()


@pytest.mark.parametrize(("again", "word"), [(False, "removed"), (True, "replaced")])
def test_a_run_whose_folder_is_removed_or_replaced_writes_nothing_there(opened, again, word):
    run = opened()
    run.folder.rename(f"{run.folder}-old")
    if again:
        assert opened().folder == run.folder  # a new one
    with pytest.raises(StorageError, match=f"was {word}"):
        run.write(state="finished")
    assert run.folder.exists() == again


def test_a_folder_with_foreign_files_is_not_taken(tmp_path, opened):
    (tmp_path / "lift/try").mkdir(parents=True)
    (tmp_path / "lift/try/notes.txt").write_text("mine")
    assert opened().folder.name == "try-2"


def test_a_folder_with_only_test_results_leaves_the_name_free(tmp_path, opened):
    (tmp_path / "lift/try/test-0d0010/tables").mkdir(parents=True)
    assert opened().folder.name == "try"


def test_a_damaged_state_file_is_not_overwritten(opened):
    run = opened()
    (run.folder / "run.json").write_text('{"state": "unfin')
    assert read_state(run.folder) is None
    assert opened().folder.name == "try-2"


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="choose another --runs folder"):
        open_run(tmp_path / "file", "lift", "try", SETTINGS)


def test_newest_finished_run_needs_a_finished_run_with_a_checkpoint(opened, tmp_path):
    early, late, lost = (opened({"seed": seed}) for seed in range(3))
    for moment, run in enumerate((early, late, lost)):
        run.checkpoints.mkdir()
        (run.checkpoints / "best.ckpt").write_text("")
        run.write(state=FINISHED, finished=moment, checkpoint="checkpoints/best.ckpt")
    (lost.checkpoints / "best.ckpt").unlink()
    assert (
        newest_finished_run(tmp_path, "lift", lambda settings: True)
        == late.checkpoints / "best.ckpt"
    )
    found = newest_finished_run(tmp_path, "lift", lambda settings: settings["seed"] == 0)
    assert found == early.checkpoints / "best.ckpt"
    late.write(state="unfinished")
    assert newest_finished_run(tmp_path, "lift", lambda settings: settings["seed"] == 1) is None


def test_the_order_of_finished_runs_is_no_matter_of_the_clock(opened, tmp_path, monkeypatch):
    runs = [opened({"seed": seed}) for seed in range(3)]
    for clock, run in zip((9e9, 5.0, 7.0), runs, strict=True):  # the clock was put back
        monkeypatch.setattr(time, "time", lambda clock=clock: clock)
        run.checkpoints.mkdir()
        (run.checkpoints / "best.ckpt").write_text("")
        run.finish(checkpoint="checkpoints/best.ckpt")
    newest = newest_finished_run(tmp_path, "lift", lambda settings: True)
    assert newest == runs[2].checkpoints / "best.ckpt"


def test_a_copied_run_is_not_newer_and_an_old_run_without_number_is_older(opened, tmp_path):
    runs = [opened({"seed": seed}) for seed in range(3)]
    for run in runs:
        run.checkpoints.mkdir()
        (run.checkpoints / "best.ckpt").write_text("")
    runs[0].write(state=FINISHED, finished=9e9, checkpoint="checkpoints/best.ckpt")  # version 0.2
    find = partial(newest_finished_run, tmp_path, "lift", lambda settings: True)
    assert find() == runs[0].checkpoints / "best.ckpt"
    for run in runs[1:]:
        run.finish(checkpoint="checkpoints/best.ckpt")
    shutil.copytree(runs[1].folder, tmp_path / "lift" / "zzz-copy-of-one")
    shutil.copytree(runs[2].folder, tmp_path / "lift" / "zzz-copy-of-two")
    assert find() == runs[2].checkpoints / "best.ckpt"


def test_a_finished_name_is_said_with_its_page_and_the_command_that_tests_it(opened, capsys):
    run = opened(state=FINISHED, checkpoint="checkpoints/best.ckpt")
    opened(options={"test_command": "heatlift lift test -c x.yaml"})
    (line,) = capsys.readouterr().out.splitlines()
    assert line == (
        f"heatlift: {run.folder} is finished: {run.folder}/index.html has its numbers, and "
        f"`heatlift lift test -c x.yaml --ckpt_path {run.folder}/checkpoints/best.ckpt` prints "
        f"them; this is {run.folder}-2"
    )


def test_of_many_finished_runs_only_the_last_of_these_settings_is_said(opened, capsys):
    for seed in (1, 2, 1, 2):
        opened({"seed": seed}, state=FINISHED)
    capsys.readouterr()
    opened({"seed": 1})
    (line,) = capsys.readouterr().out.splitlines()
    assert "try-3 is finished: " in line
    opened({"seed": 3}, state=FINISHED)
    assert "and had other settings (seed: 2 -> 3)" in capsys.readouterr().out


def test_a_run_in_use_by_another_process_is_said(tmp_path, capsys):
    held = open_run(tmp_path, "lift", "try", SETTINGS)
    open_run(tmp_path, "lift", "try", SETTINGS).release()
    assert "lift/try is in use by another process; this is " in capsys.readouterr().out
    held.release()


def test_an_attempt_that_failed_before_its_first_step_leaves_no_name(tmp_path):
    run = open_run(tmp_path, "lift", "try", SETTINGS)
    MetricsFile(run.folder / "metrics.csv")
    (run.folder / "images").mkdir()
    run.close()
    assert not run.folder.exists()


@pytest.mark.parametrize("left", ["checkpoints/step-000000001.ckpt", "test-1a2b3c/x", "notes.txt"])
def test_a_failed_run_with_anything_of_value_stays(tmp_path, left):
    run = open_run(tmp_path, "lift", "try", SETTINGS)
    (run.folder / left).parent.mkdir(exist_ok=True)
    (run.folder / left).touch()
    run.close()
    assert (run.folder / left).exists()


def test_a_process_without_the_lock_removes_nothing(tmp_path):
    run = open_run(tmp_path, "lift", "try", SETTINGS)
    Run(run.folder, run.state).close()
    assert read_state(run.folder) is not None
    run.release()


def test_the_name_of_an_attempt_that_was_killed_before_its_first_step_is_free(opened, capsys):
    first = opened(logged=False)
    (first.folder / "images").mkdir()
    second = opened({"model": {"width": 9}, "seed": 1})
    assert second.folder == first.folder
    assert read_state(second.folder)["settings"]["model"] == {"width": 9}
    assert not (second.folder / "images").exists()
    assert capsys.readouterr().out == ""


A, B = (letter * 64 for letter in "ab")


def test_changed_data_of_an_unfinished_run_are_named_and_start_another(opened, capsys):
    first = opened({**SETTINGS, "inputs": {"motion.npz": A, "camera.pkl": B}})
    other = opened({**SETTINGS, "inputs": {"motion.npz": B, "camera.pkl": B}})
    assert capsys.readouterr().out == (
        f"heatlift: {first.folder} is unfinished and had other data (motion.npz: aaaaaaaa… -> "
        f"bbbbbbbb…); it is not resumed, this is {other.folder}; put the old data back to resume "
        "it\n"
    )


@pytest.fixture
def begun(opened):
    """A run that has a checkpoint and began with the code A."""
    run = opened(options={"code": {"pipeline/lift/losses.py": A, "pipeline/rng.py": B}})
    run.checkpoints.mkdir()
    state = {"CheckpointCallback": {"run": run.state["digest"]}}
    content = {"global_step": 4, "callbacks": state, "state_dict": {}}
    torch.save(content, run.checkpoints / "step-000000004.ckpt")
    return run


CHANGED = {"code": {"pipeline/lift/losses.py": B, "pipeline/rng.py": B}}


def test_a_run_whose_code_changed_is_not_resumed(begun, opened):
    before = (begun.folder / "run.json").read_text()
    message = (
        r"try: the code changed since the run began \(pipeline/lift/losses.py\); give --resume_w"
    )
    with pytest.raises(UsageError, match=message):
        opened(options=CHANGED)
    assert (begun.folder / "run.json").read_text() == before
    same = opened(options={"code": begun.state["code"]})
    assert same.resume == begun.checkpoints / "step-000000004.ckpt"


def test_a_run_whose_code_changed_is_resumed_if_that_is_asked_for(begun, opened, capsys):
    run = opened(options={**CHANGED, "resume_with_changed_code": True})
    assert run.resume == begun.checkpoints / "step-000000004.ckpt"
    assert "try is resumed with changed code (pipeline/lift/losses.py)" in capsys.readouterr().out
    assert opened(options=CHANGED).state["changed_code"] == ["pipeline/lift/losses.py"]


def test_a_run_of_unknown_code_is_resumed_and_that_is_said(begun, opened, capsys):
    begun.state.pop("code")
    begun.write()
    assert opened(options=CHANGED).resume
    assert "it is not known which code the run began with" in capsys.readouterr().out


def test_the_state_file_holds_settings_and_digest(opened):
    state = json.loads((opened().folder / "run.json").read_text())
    assert (state["settings"], state["digest"]) == (SETTINGS, settings_digest(SETTINGS))


def write_metrics(folder, *rows, kept=None):
    """Write rows of metrics; return what a state stores, and the rows of the file."""
    file = MetricsFile(folder / "metrics.csv")
    if kept:
        file.keep(kept, step=2)
    for step, numbers in rows:
        file.log_metrics(numbers, step)
    return file.flush(), read_metrics(folder / "metrics.csv")


def test_metrics_are_read_exactly_as_written(tmp_path):
    _, rows = write_metrics(
        tmp_path, (0, {"train/loss": 0.1 + 0.2, "epoch": 0}), (1, {"a": 1e-300})
    )
    assert rows == [(0, "train/loss", 0.1 + 0.2), (1, "a", 1e-300)]


def test_a_resumed_run_drops_the_rows_that_its_state_does_not_know(tmp_path):
    state, _ = write_metrics(tmp_path, (0, {"x": 1.0}), (1, {"x": 2.0}))
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("1,x,2.5\n2,x,3.0\n3,x,3.")  # also a row of the same step, and half a row
    again, rows = write_metrics(tmp_path, (2, {"x": 4.0}), kept=state)
    assert rows == [(0, "x", 1.0), (1, "x", 2.0), (2, "x", 4.0)]
    assert (state["rows"], again["rows"]) == (2, 3)


@pytest.mark.parametrize(
    ("content", "lost", "kept"),
    [
        ("", 3, []),
        ("step,name,value\n", 3, []),
        ("step,name,value\n0,x,1.0\n1,x,2.", 2, [(0, "x", 1.0)]),
        (
            "step,name,value\n0,x,1.0\n\0\0\0\0\0\0\0\0\n1,y,3.0\n",
            1,
            [(0, "x", 1.0), (1, "y", 3.0)],
        ),
        ("step,name,value\n0,x,1.0\n2,x,5.0\n3,x,6.0\n", 2, [(0, "x", 1.0)]),
    ],
    ids=["nothing", "header", "cut", "zeros", "other rows"],
)
def test_rows_that_a_state_knows_and_the_file_lacks_are_told_in_one_line(
    content, lost, kept, tmp_path, capsys
):
    state, rows = write_metrics(tmp_path, (0, {"x": 1.0}), (1, {"x": 2.0, "y": 3.0}))
    assert len(rows) == 3
    path = tmp_path / "metrics.csv"
    path.write_text(content)
    assert MetricsFile(path).keep(state, step=2) == lost
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"metrics.csv: {lost} of 3 rows before step 2 are lost, {len(kept)} are kept" in said
    assert read_metrics(path) == kept
    assert (tmp_path / "metrics.csv.bad").read_text() == content


def test_a_deleted_file_is_told(tmp_path, capsys):
    state, _ = write_metrics(tmp_path, (0, {"x": 1.0}))
    (tmp_path / "metrics.csv").unlink()
    assert write_metrics(tmp_path, (2, {"x": 4.0}), kept=state)[1] == [(2, "x", 4.0)]
    assert "1 of 1 rows before step 2 are lost, 0 are kept" in capsys.readouterr().err


def test_a_number_that_changed_after_the_state_was_saved_is_told(tmp_path, capsys):
    state, _ = write_metrics(tmp_path, (0, {"x": 1.0}), (1, {"x": 2.0}))
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text().replace("2.0", "7.0"))
    assert MetricsFile(path).keep(state, step=2) == 0
    assert "was changed after step 2 was saved; numbers in it may be" in capsys.readouterr().err
    assert read_metrics(path) == [(0, "x", 1.0), (1, "x", 7.0)]


def test_rows_that_vanish_while_the_run_writes_are_told(tmp_path, capsys):
    file = MetricsFile(tmp_path / "metrics.csv")
    file.log_metrics({"x": 1.0, "y": 2.0}, 0)
    file.path.write_text("step,name,value\n")
    file.log_metrics({"x": 3.0}, 1)
    assert file.flush()["rows"] == 1
    assert "has 1 rows, and this run wrote 3" in capsys.readouterr().err
    assert file.flush()["rows"] == 1
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("broken", ["os.fsync", "pathlib.Path.open"])
def test_a_disk_error_under_the_metrics_is_one_line(broken, tmp_path, monkeypatch):
    file = MetricsFile(tmp_path / "metrics.csv")
    file.log_metrics({"x": 1.0}, 0)

    def fail(*rest, **options):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(broken, fail)
    with pytest.raises(StorageError, match=r"metrics.csv: cannot be written \(Input/output error"):
        file.flush() if broken == "os.fsync" else file.log_metrics({"x": 2.0}, 1)


@pytest.mark.parametrize(
    "damage", [b"1,x,0.x12\n", b"1,x\xff,2.0\n", b"\xff\n", b"1,x,\n", b"x\n", "²,x,2.0\n".encode()]
)
def test_damaged_lines_are_left_out_with_one_warning(tmp_path, capsys, damage):
    write_metrics(tmp_path, (0, {"x": 1.0}))
    path = tmp_path / "metrics.csv"
    with path.open("ab") as file:
        file.write(damage + b"1,y,3.0\n" + damage)
    assert read_metrics(path) == read_metrics(path) == [(0, "x", 1.0), (1, "y", 3.0)]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"heatlift: warning: {path}: 2 damaged line(s)")


def test_a_damaged_byte_at_the_end_loses_no_line(tmp_path, capsys):
    write_metrics(tmp_path, (0, {"x": 1.0}))
    with (tmp_path / "metrics.csv").open("ab") as file:
        file.write(b"\xff")
    assert read_metrics(tmp_path / "metrics.csv") == [(0, "x", 1.0)]
    assert not capsys.readouterr().err


def test_a_new_run_begins_an_empty_file(tmp_path):
    write_metrics(tmp_path, (0, {"x": 1.0}))
    assert write_metrics(tmp_path, (0, {"x": 9.0}))[1] == [(0, "x", 9.0)]


def test_a_number_that_is_not_finite_becomes_none():
    assert finite_or_none(1.5) == 1.5
    assert finite_or_none(float("nan")) is None


def test_a_run_json_with_a_flipped_bit_is_not_valid(opened):
    run = opened()
    run.write(state=FINISHED, numbers={"test/mpjpe_mm": 387.43}, checkpoint="checkpoints/best.ckpt")
    original = (run.folder / "run.json").read_bytes()
    state = read_state(run.folder)
    assert state == run.state
    for bit in range(0, 8 * len(original), 3):
        damaged = bytearray(original)
        damaged[bit // 8] ^= 1 << bit % 8
        (run.folder / "run.json").write_bytes(damaged)
        assert read_state(run.folder) in (None, state)  # changed white space does not matter
    (run.folder / "run.json").write_text("[" * 100_000)
    assert read_state(run.folder) is None


def test_a_metrics_file_that_changed_after_its_run_finished_gives_a_warning(opened, capsys):
    run = opened()
    MetricsFile(run.folder / "metrics.csv").log_metrics({"val/mpjpe_mm": 47.2}, 9)
    run.write(state=FINISHED, metrics=file_digest(run.folder / "metrics.csv"))
    assert read_metrics(run.folder / "metrics.csv") == [(9, "val/mpjpe_mm", 47.2)]
    assert capsys.readouterr().err == ""
    (run.folder / "metrics.csv").write_text("step,name,value\n9,val/mpjpe_mm,07.2\n")
    read_metrics(run.folder / "metrics.csv")
    assert "metrics.csv: was changed after its run finished" in capsys.readouterr().err
