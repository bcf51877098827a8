"""Run folders are found again and never overwritten; metrics.csv survives a crash."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import stat

import pytest

from pipeline.errors import StorageError
from pipeline.files.digests import file_digest
from pipeline.training import folder_lock, run_folder
from pipeline.training.metrics_file import MetricsFile, finite_or_none, read_metrics
from pipeline.training.run_folder import (
    FINISHED,
    launch_id,
    newest_finished_run,
    open_run,
    read_state,
    settings_digest,
)

SETTINGS = {"model": {"width": 8}, "seed": 1}


@pytest.fixture
def opened(tmp_path):
    """Opens a run and releases its lock, like a process that ends."""

    def open_one(settings=SETTINGS, **changes):
        run = open_run(tmp_path, "lift", "try", settings)
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
    for time, run in enumerate((early, late, lost)):
        run.checkpoints.mkdir()
        (run.checkpoints / "best.ckpt").write_text("")
        run.write(state=FINISHED, finished=time, checkpoint="checkpoints/best.ckpt")
    (lost.checkpoints / "best.ckpt").unlink()
    assert (
        newest_finished_run(tmp_path, "lift", lambda settings: True)
        == late.checkpoints / "best.ckpt"
    )
    found = newest_finished_run(tmp_path, "lift", lambda settings: settings["seed"] == 0)
    assert found == early.checkpoints / "best.ckpt"
    late.write(state="unfinished")
    assert newest_finished_run(tmp_path, "lift", lambda settings: settings["seed"] == 1) is None


def test_the_state_file_holds_settings_and_digest(opened):
    state = json.loads((opened().folder / "run.json").read_text())
    assert (state["settings"], state["digest"]) == (SETTINGS, settings_digest(SETTINGS))


def write_metrics(folder, after, *rows):
    """Write rows of metrics and read the file."""
    file = MetricsFile(folder / "metrics.csv", after)
    for step, numbers in rows:
        file.log_metrics(numbers, step)
    return read_metrics(folder / "metrics.csv")


def test_metrics_are_read_exactly_as_written(tmp_path):
    rows = write_metrics(
        tmp_path, -1, (0, {"train/loss": 0.1 + 0.2, "epoch": 0}), (1, {"a": 1e-300})
    )
    assert rows == [(0, "train/loss", 0.1 + 0.2), (1, "a", 1e-300)]


def test_a_resumed_run_drops_the_lines_of_later_steps(tmp_path):
    write_metrics(tmp_path, -1, (0, {"x": 1.0}), (1, {"x": 2.0}), (2, {"x": 3.0}))
    assert write_metrics(tmp_path, 1, (2, {"x": 4.0})) == [
        (0, "x", 1.0),
        (1, "x", 2.0),
        (2, "x", 4.0),
    ]


def test_an_incomplete_last_line_is_dropped(tmp_path):
    write_metrics(tmp_path, -1, (0, {"x": 1.0}))
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("1,x,2.")
    assert read_metrics(tmp_path / "metrics.csv") == [(0, "x", 1.0)]
    assert write_metrics(tmp_path, 0, (1, {"x": 2.5})) == [(0, "x", 1.0), (1, "x", 2.5)]


@pytest.mark.parametrize(
    "damage", [b"1,x,0.x12\n", b"1,x\xff,2.0\n", b"\xff\n", b"1,x,\n", b"x\n", "²,x,2.0\n".encode()]
)
def test_damaged_lines_are_left_out_with_one_warning(tmp_path, capsys, damage):
    write_metrics(tmp_path, -1, (0, {"x": 1.0}))
    with (tmp_path / "metrics.csv").open("ab") as file:
        file.write(damage + b"1,y,3.0\n" + damage)
    assert write_metrics(tmp_path, 1, (2, {"x": 4.0})) == [
        (0, "x", 1.0),
        (1, "y", 3.0),
        (2, "x", 4.0),
    ]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"heatlift: warning: {tmp_path / 'metrics.csv'}: 2 damaged line(s)")


def test_a_damaged_byte_at_the_end_loses_no_line(tmp_path, capsys):
    write_metrics(tmp_path, -1, (0, {"x": 1.0}))
    with (tmp_path / "metrics.csv").open("ab") as file:
        file.write(b"\xff")
    assert read_metrics(tmp_path / "metrics.csv") == [(0, "x", 1.0)]
    assert not capsys.readouterr().err


def test_a_new_run_begins_an_empty_file(tmp_path):
    write_metrics(tmp_path, -1, (0, {"x": 1.0}))
    assert write_metrics(tmp_path, -1, (0, {"x": 9.0})) == [(0, "x", 9.0)]


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
    MetricsFile(run.folder / "metrics.csv", -1).log_metrics({"val/mpjpe_mm": 47.2}, 9)
    run.write(state=FINISHED, metrics=file_digest(run.folder / "metrics.csv"))
    assert read_metrics(run.folder / "metrics.csv") == [(9, "val/mpjpe_mm", 47.2)]
    assert capsys.readouterr().err == ""
    (run.folder / "metrics.csv").write_text("step,name,value\n9,val/mpjpe_mm,07.2\n")
    read_metrics(run.folder / "metrics.csv")
    assert "metrics.csv: was changed after its run finished" in capsys.readouterr().err
