"""Plain commands: configs, errors in one line, the newest run, and values passed by make."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.cli import explain
from pipeline.cli.commands import (
    VALUES,
    expand_configs,
    normalise_options,
    weights_file_options,
)
from pipeline.cli.configs import resolve_configs
from pipeline.cli.docs import docs_folder
from pipeline.errors import UsageError
from pipeline.training.run_folder import FINISHED, Run, open_run

pytestmark = pytest.mark.filterwarnings("default")  # `cli.launch` sets the filters

ODD = {
    "data: {}\ndata: {}\n": "odd.yaml: line 1: duplicate key data",
    "x: !!python/object/apply:os.system ['touch canary']\n": "odd.yaml: line 1: could not",
    "data: 3\n": "odd.yaml: data is no mapping; it needs keys with values",
    "data: {source: [1]}\n": "odd.yaml: source is no mapping; it needs keys with values",
    "data: {source: {init_args: 3}}\n": "odd.yaml: init_args of data.source need keys with values",
    "- data\n": "odd.yaml: is no config; it needs keys with values",
    "x: !!int a\n": "odd.yaml: a value does not fit its tag",
    "x: [\n": "odd.yaml: line 2: expected the node content",
}
READERS = {
    "results": ("results", "-c", "odd.yaml"),
    "detect": ("detect", "--config=odd.yaml", "--detector", "newest"),
    "newest": ("newest", "heatmap", "--data", "odd.yaml"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("text", ODD)
def test_every_reader_of_configs_names_a_wrong_config(reader, text, run_with_error, tmp_path):
    (tmp_path / "odd.yaml").write_text(text)
    code, line = run_with_error(*READERS[reader])
    assert code == 2
    assert line.startswith(ODD[text])
    assert not (tmp_path / "canary").exists()


def test_newest_knows_all_stages(run_with_error):
    code, line = run_with_error("newest", "integral")
    assert (code, line.partition(":")[0]) == (2, "runs/integral")
    assert run_with_error("newest", "train") == (
        2,
        "stage: train is none of heatmap, integral, pretrain, lift",
    )


def test_newest_needs_a_config_with_data(run_with_error):
    code, line = run_with_error("newest", "lift", "--data", "sweeps/paper003_frames")
    assert (code, line.partition(";")[0]) == (2, "sweeps/paper003_frames: has no data.source")


@pytest.mark.parametrize(
    "given", [["-c", "x"], ["--config", "x"], ["--config=x"], ["-c=x"], ["-cx"]]
)
def test_a_config_is_found_in_every_spelling_of_the_option(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text("data: {source: {class_path: A}}")
    assert resolve_configs([*given, "--name", "a"]) == ["-c", "x.yaml", "--name", "a"]


def finished(folder, source):
    """Make a finished run of a 2D stage on a data source."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "best.ckpt").write_text("")
    settings = {"data": {"source": source}}
    run = Run(folder, {"state": FINISHED, "checkpoint": "checkpoints/best.ckpt"})
    run.write(settings=settings)


@pytest.mark.parametrize("also", ["--data.source.init_args.train 1", "-c data/mocap --a-b=-c"])
@pytest.mark.parametrize("form", ["two words", "one word"])
def test_text_inside_the_value_of_an_option_is_never_changed(also, form):
    given = ["--also", also] if form == "two words" else [f"--also={also}"]
    assert expand_configs(normalise_options(resolve_configs(given))) == [f"--also={also}"]


def test_options_are_renamed_where_they_are_options():
    given = ["f", "--skip-bad", "--data.source.init_args.train=--data.source.init_args.x", "--a-b"]
    expected = [
        "f",
        "--skip_bad",
        VALUES["--skip_bad"],
        "--source.train=--data.source.init_args.x",
        "--a_b",
    ]
    assert expand_configs(normalise_options(given)) == expected


def test_weights_import_takes_its_options_in_both_spellings():
    given = ["a.bin", "--as=mixste", "-o", "--as x"]
    assert weights_file_options(given) == [*("a.bin", "--as_=mixste", "--output", "--as x")]


@pytest.mark.parametrize("given", [("--detector", "newest"), ("--detector=newest",)])
def test_the_newest_detector_is_one_on_the_same_folder(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text("data: {source: {class_path: A, init_args: {root: b}}}")
    finished(tmp_path / "runs/heatmap/a", {"class_path": "A", "init_args": {"root": "../x/b"}})
    with pytest.raises(UsageError, match="no finished 2D stage on this data"):
        expand_configs(["-c", "x.yaml", *given])
    root = ["--data.source.init_args.root", str(tmp_path.parent / "x" / "b")]
    expanded = expand_configs(["-c", "x.yaml", *root, *given])
    assert expanded[-2:] == ["--detector", "runs/heatmap/a/checkpoints/best.ckpt"]


def test_a_config_without_data_does_not_change_the_data_of_another(tmp_path):
    (tmp_path / "data.yaml").write_text("data: {source: {class_path: A, init_args: {root: b}}}")
    (tmp_path / "net.yaml").write_text("model: {}")
    configs = ["-c", str(tmp_path / "data.yaml"), "-c", str(tmp_path / "net.yaml")]
    assert json.loads(expand_configs(configs)[1]) == {"class_path": "A", "init_args": {"root": "b"}}
    assert expand_configs(["-c", str(tmp_path / "net.yaml")]) == []


@pytest.mark.parametrize("number", ["", "x", "-1"])
def test_a_rank_that_is_not_a_number_is_an_error(number, run_with_error, monkeypatch):
    monkeypatch.setenv("RANK", number)
    assert run_with_error("newest", "lift") == (
        2,
        f"RANK is {number!r}, not a number; unset it, or use torchrun",
    )


def test_a_folder_that_cannot_be_made_ends_with_5(run_with_error, tmp_path):
    (tmp_path / "file").write_text("")
    line = "file: cannot be made (File exists); give another folder"
    assert run_with_error("data", "convert", "npz", "a.npz", "file/x.npz") == (5, line)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 must have the same dtype, but got Float and BFloat16"),
        RuntimeError("expected scalar type Float but found Half"),
        TypeError("Got unsupported ScalarType BFloat16"),
    ],
)
def test_an_error_about_two_precisions_is_explained(error):
    line, code = explain.explain_error(error)
    assert line.endswith("if the precision is bf16-true or 16-true, use bf16-mixed")
    assert code == 2


def test_a_missing_file_is_not_explained_as_a_folder_that_cannot_be_made():
    with pytest.raises(FileNotFoundError) as missing:
        open("nowhere")  # noqa: PTH123, SIM115
    assert explain.explain_error(missing.value)[1] == 1


VARIABLES = {
    "heatmap": ("ROOT", "NAME", "DATA", "CONFIG"),
    "detect": ("ROOT", "DATA", "DETECTOR"),
    "pretrain": ("ROOT", "NAME", "DATA", "CONFIG"),
    "lift": ("ROOT", "NAME", "DATA", "CONFIG", "DETECTOR"),
    "results": ("ROOT", "DATA"),
}
"""Make target -> variables that it passes on."""


@pytest.mark.parametrize("target", VARIABLES)
def test_make_passes_values_unchanged(target):
    values = {"ROOT": "/a  ~/b", "NAME": "it's; $HOME", "DATA": "c (d).yaml"}
    values |= {"CONFIG": "g&h i.yaml", "PRETRAINED": "newest", "DETECTOR": "e f.ckpt"}
    assignments = [f"{name}={value.replace('$', '$$')}" for name, value in values.items()]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    root = Path(__file__).parents[2]
    planned = subprocess.run(
        ["make", "-n", target, *assignments],
        cwd=root,
        env=clean,
        capture_output=True,
        text=True,
        check=True,
    )
    arguments = set(shlex.split(planned.stdout))
    assert {values[name] for name in VARIABLES[target]} <= arguments


def test_the_newest_run_is_one_on_the_same_root(tmp_path, capsys):
    source = {"class_path": "pipeline.datasets.Coco", "init_args": {"root": "images"}}
    run = open_run(tmp_path, "heatmap", "coco", {"data": {"source": source}})
    run.checkpoints.mkdir()
    (run.checkpoints / "best.ckpt").touch()
    run.write(state=FINISHED, finished=1.0, checkpoint="checkpoints/best.ckpt")
    arguments = ["newest", "heatmap", "--data", "data/coco", "--runs", str(tmp_path), "--root"]
    assert main([*arguments, str(Path.cwd() / "images")]) == 0
    assert capsys.readouterr().out.strip() == str(run.checkpoints / "best.ckpt")
    assert main([*arguments, "elsewhere"]) == 2


TEXTS = ["canary one\ntwo\n", "canary: [\n", "canary: 'x\n  y: z: canary\n", "a: canary\na: 1\n"]
TEXTS += ["!!int canary\n", "a: !canary 3\n", "a: *canary\n", "- canary\n", "a: 1\n canary"]
FILE_READERS = {
    "config": ("lift", "fit", "-c", "secret.txt"),
    "data": ("lift", "fit", "--data", "secret.txt"),
    "model": ("lift", "fit", "--model", "secret.txt"),
    "trainer": ("lift", "fit", "--trainer", "secret.txt"),
    "network": ("lift", "fit", "--model.net", "secret.txt"),
    "source": ("lift", "fit", "--data.source", "secret.txt"),
    "sweep": ("sweep", "secret.txt"),
    "detect": ("detect", "-c", "secret.txt", "--detector", "newest"),
}


@pytest.mark.parametrize("reader", FILE_READERS)
def test_an_error_about_a_config_prints_nothing_of_a_file(reader, run_with_error, tmp_path):
    for text in TEXTS:
        (tmp_path / "secret.txt").write_text(text)
        code, line = run_with_error(*FILE_READERS[reader])
        assert code == 2
        assert "canary" not in line, line


def test_a_reader_that_closes_the_output_is_no_bug():
    command = [sys.executable, "-m", "pipeline", "cache", "ls"]
    reading, writing = os.pipe()
    os.close(reading)
    child = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writing)
    assert (child.returncode, child.stderr) == (141, "")


def test_the_pages_of_the_documentation_are_printed_by_name(capsys):
    assert main(["docs"]) == 0
    assert "| write my own lifter | [own_lifter.md](own_lifter.md) |" in capsys.readouterr().out
    assert main(["docs", "docs/own_lifter.md"]) == 0
    assert capsys.readouterr().out == (docs_folder() / "own_lifter.md").read_text()


def test_a_page_that_does_not_exist_is_one_line(run_with_error):
    line = "own_lifer: no such page; did you mean own_lifter?"
    assert run_with_error("docs", "own_lifer") == (2, line)
    assert run_with_error("docs", "x") == (2, "x: no such page; `heatlift docs` lists the pages")
