"""Folders of runs: found again, never overwritten; numbers that survive a crash."""

from __future__ import annotations

import json
import multiprocessing

import pytest

from pipeline.errors import StorageError
from pipeline.files.digests import file_digest
from pipeline.training import processes
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
    """Opens a run and lets go of its lock, as a process that ends does."""

    def open_one(settings=SETTINGS, **changes):
        run = open_run(tmp_path, "lift", "try", settings)
        if changes:
            run.write(**changes)
        run.release()
        return run

    return open_one


def test_the_same_settings_find_their_unfinished_run(opened):
    assert opened().folder == opened().folder


def test_a_finished_run_and_other_settings_leave_the_name_alone(opened):
    first = opened(state=FINISHED)
    second = opened()
    third = opened({"model": {"width": 9}, "seed": 1})
    assert [run.folder.name for run in (first, second, third)] == ["try", "try-2", "try-3"]
    assert opened().folder.name == "try-2"


def test_other_settings_of_an_unfinished_run_are_named(opened, capsys):
    opened()
    opened({"model": {"width": 9}, "seed": 1, "joints": "COCO17"})
    said = capsys.readouterr().out
    assert "try is unfinished and had other settings" in said
    assert "(joints: absent -> COCO17; model.width: 8 -> 9)" in said


def test_a_first_write_that_was_cut_off_leaves_the_name_free(opened, tmp_path):
    (tmp_path / "lift" / "try").mkdir(parents=True)
    (tmp_path / "lift" / "try" / ".run.json.999999999.part").write_text('{"st')
    assert opened().folder.name == "try"


def test_what_a_killed_process_was_drawing_is_swept(opened, tmp_path):
    run = opened()
    left = run.folder / "images" / ".val-poses-000007.png.999999999.part"
    left.parent.mkdir()
    left.write_text("half")
    run.release()
    assert opened().folder == run.folder
    assert not left.exists()


def test_launches_of_one_torchrun_after_another_are_told_apart(monkeypatch):
    for name, value in {
        "RANK": "1",
        "TORCHELASTIC_RUN_ID": "none",
        "GROUP_WORLD_SIZE": "1",
    }.items():
        monkeypatch.setenv(name, value)
    one = launch_id()
    monkeypatch.setattr(processes, "process_start_time", lambda pid: "another time")
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


def test_a_folder_with_foreign_files_is_not_taken(tmp_path, opened):
    (tmp_path / "lift/try").mkdir(parents=True)
    (tmp_path / "lift/try/notes.txt").write_text("mine")
    assert opened().folder.name == "try-2"


def test_what_a_test_of_other_weights_left_does_not_take_the_name(tmp_path, opened):
    (tmp_path / "lift/try/test-0d0010/tables").mkdir(parents=True)
    assert opened().folder.name == "try"


def test_a_damaged_state_file_is_not_overwritten(opened):
    run = opened()
    (run.folder / "run.json").write_text('{"state": "unfin')
    assert read_state(run.folder) is None
    assert opened().folder.name == "try-2"


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="choose another --runs folder"):
        open_run(tmp_path / "file", "lift", "try", SETTINGS)


def test_only_finished_runs_with_their_checkpoint_are_handed_on(opened, tmp_path):
    early, late, lost = (opened({"seed": seed}) for seed in range(3))
    for at, run in enumerate((early, late, lost)):
        run.checkpoints.mkdir()
        (run.checkpoints / "best.ckpt").write_text("")
        run.write(state=FINISHED, finished=at, checkpoint="checkpoints/best.ckpt")
    (lost.checkpoints / "best.ckpt").unlink()
    assert (
        newest_finished_run(tmp_path, "lift", lambda settings: True)
        == late.checkpoints / "best.ckpt"
    )
    wanted = newest_finished_run(tmp_path, "lift", lambda settings: settings["seed"] == 0)
    assert wanted == early.checkpoints / "best.ckpt"
    late.write(state="unfinished")
    assert newest_finished_run(tmp_path, "lift", lambda settings: settings["seed"] == 1) is None


def test_the_state_file_holds_settings_and_digest(opened):
    state = json.loads((opened().folder / "run.json").read_text())
    assert (state["settings"], state["digest"]) == (SETTINGS, settings_digest(SETTINGS))


def written(folder, after, *rows):
    file = MetricsFile(folder / "metrics.csv", after)
    for step, numbers in rows:
        file.log_metrics(numbers, step)
    return read_metrics(folder / "metrics.csv")


def test_numbers_survive_exactly(tmp_path):
    rows = written(tmp_path, -1, (0, {"train/loss": 0.1 + 0.2, "epoch": 0}), (1, {"a": 1e-300}))
    assert rows == [(0, "train/loss", 0.1 + 0.2), (1, "a", 1e-300)]


def test_a_resumed_run_drops_what_it_will_write_again(tmp_path):
    written(tmp_path, -1, (0, {"x": 1.0}), (1, {"x": 2.0}), (2, {"x": 3.0}))
    assert written(tmp_path, 1, (2, {"x": 4.0})) == [(0, "x", 1.0), (1, "x", 2.0), (2, "x", 4.0)]


def test_a_line_cut_short_by_a_crash_is_dropped(tmp_path):
    written(tmp_path, -1, (0, {"x": 1.0}))
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("1,x,2.")
    assert read_metrics(tmp_path / "metrics.csv") == [(0, "x", 1.0)]
    assert written(tmp_path, 0, (1, {"x": 2.5})) == [(0, "x", 1.0), (1, "x", 2.5)]


@pytest.mark.parametrize(
    "damage", [b"1,x,0.x12\n", b"1,x\xff,2.0\n", b"\xff\n", b"1,x,\n", b"x\n", "²,x,2.0\n".encode()]
)
def test_damaged_lines_are_left_out_with_one_warning(tmp_path, capsys, damage):
    written(tmp_path, -1, (0, {"x": 1.0}))
    with (tmp_path / "metrics.csv").open("ab") as file:
        file.write(damage + b"1,y,3.0\n" + damage)
    assert written(tmp_path, 1, (2, {"x": 4.0})) == [(0, "x", 1.0), (1, "y", 3.0), (2, "x", 4.0)]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"heatlift: warning: {tmp_path / 'metrics.csv'}: 2 damaged line(s)")


def test_a_bad_byte_at_the_end_costs_no_line(tmp_path, capsys):
    written(tmp_path, -1, (0, {"x": 1.0}))
    with (tmp_path / "metrics.csv").open("ab") as file:
        file.write(b"\xff")
    assert read_metrics(tmp_path / "metrics.csv") == [(0, "x", 1.0)]
    assert not capsys.readouterr().err


def test_a_new_run_begins_an_empty_file(tmp_path):
    written(tmp_path, -1, (0, {"x": 1.0}))
    assert written(tmp_path, -1, (0, {"x": 9.0})) == [(0, "x", 9.0)]


def test_json_gets_no_number_that_is_not_finite():
    assert finite_or_none(1.5) == 1.5
    assert finite_or_none(float("nan")) is None


def test_a_state_file_with_one_bit_wrong_is_no_state_file(opened):
    run = opened()
    run.write(state=FINISHED, numbers={"test/mpjpe_mm": 387.43}, checkpoint="checkpoints/best.ckpt")
    whole = (run.folder / "run.json").read_bytes()
    known = read_state(run.folder)
    assert known == run.state
    for place in range(0, 8 * len(whole), 3):
        spoilt = bytearray(whole)
        spoilt[place // 8] ^= 1 << place % 8
        (run.folder / "run.json").write_bytes(spoilt)
        assert read_state(run.folder) in (None, known)  # a space may be another one
    (run.folder / "run.json").write_text("[" * 100_000)
    assert read_state(run.folder) is None


def test_numbers_that_are_not_as_a_finished_run_left_them_are_said(opened, capsys):
    run = opened()
    MetricsFile(run.folder / "metrics.csv", -1).log_metrics({"val/mpjpe_mm": 47.2}, 9)
    run.write(state=FINISHED, metrics=file_digest(run.folder / "metrics.csv"))
    assert read_metrics(run.folder / "metrics.csv") == [(9, "val/mpjpe_mm", 47.2)]
    assert capsys.readouterr().err == ""
    (run.folder / "metrics.csv").write_text("step,name,value\n9,val/mpjpe_mm,07.2\n")
    read_metrics(run.folder / "metrics.csv")
    assert "metrics.csv: is not as its run left it" in capsys.readouterr().err
