"""Stages: a wrong command line or config gives one line and an exit code before anything runs."""

from __future__ import annotations

import copy
import random
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from runs import COMMANDS, TINY
from soak import SEED

from pipeline.__main__ import main
from pipeline.cli import explain, run_settings, trainer_options
from pipeline.cli.configs import same_source
from pipeline.cli.newest import newest_checkpoint
from pipeline.errors import DataError, UsageError, print_error
from pipeline.files import digests, torch_files
from pipeline.training.callbacks import OpenProgressBar, ProgressLines
from pipeline.training.console import print_line
from pipeline.training.run_folder import read_state, write_state

LIFT = TINY["lift"]
pytestmark = pytest.mark.filterwarnings("default")  # `cli.launch` sets the filters


CONFIGS = {
    "typo": (
        ("batch_size", "batch_sise"),
        "unknown key data.batch_sise, did you mean data.batch_size?",
    ),
    "typo of a network": (
        ("depth: 2", "dept: 2"),
        "model.net: unknown key dept, did you mean depth?",
    ),
    "type": (("batch_size: 64", "batch_size: four"), "data.batch_size: 'four' is not of type int"),
    "type of a network": (("depth: 2", "depth: two"), "model.net.depth: 'two' is not of type int"),
    "twice": (("save_every: 2", "save_every: 2\nsave_every: 3"), "duplicate key save_every"),
    "nan": (("1.0e-3", ".nan"), ".nan is not finite"),
    "infinite": (("1.0e-3", "1e999"), "lr: inf is not finite"),
    "tag": (("save_every: 2", "name: !!python/object/apply:os.system ['touch canary']"), "tag"),
    "deep": (("save_every: 2", "name: " + "[" * 3000 + "]" * 3000), "nested deeper than 50"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_error_in_a_config_is_one_line(kind, run_with_error, tmp_path):
    (old, new), message = CONFIGS[kind]
    code, line = run_with_error(config=LIFT.replace(old, new))
    assert code == 2
    assert message in line
    assert not (tmp_path / "canary").exists()
    assert not (tmp_path / "runs").exists()


def test_aliases_that_unfold_into_a_billion_values_raise_an_error(run_with_error):
    lines = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]")
    code, line = run_with_error(config="\n".join(lines))
    assert code == 2
    assert "more than 100,000 values" in line


@pytest.mark.parametrize("place", ["evil_module.X", "os.system", "torch.hub.load", "builtins.eval"])
@pytest.mark.parametrize("where", ["net", "callback"])
def test_a_class_outside_the_allow_list_is_never_imported(
    place, where, run_with_error, tmp_path, monkeypatch
):
    (tmp_path / "evil_module.py").write_text("open('canary', 'w')\nclass X: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = (
        LIFT.replace("pipeline.lift.MixSTE", place)
        if where == "net"
        else LIFT.replace("trainer: {", f"trainer: {{callbacks: [{{class_path: {place}}}], ")
    )
    code, line = run_with_error(config=config)
    assert code == 2
    assert f"{place} is not on the allow-list" in line
    assert not (tmp_path / "canary").exists()
    assert "evil_module" not in sys.modules


FIT = ("lift", "fit", "-c", "lift.yaml")
INTEGRAL = COMMANDS["integral"]
LINES = {
    ("lift", "fit", "-c", "nowhere"): "nowhere: no such config",
    (*FIT, "--trainer.max_ep", "1"): "unknown key trainer.max_ep",
    (*FIT, "--model.optimizer.init_args.lr", ".nan"): "is not finite",
    ("lift", "fitt"): "invalid choice: 'fitt'",
    ("cache", "xx"): "invalid choice: 'xx'",
    ("cache", "ls", "--seed", "1"): "unknown key seed",
    (*INTEGRAL, "--data.photographs", "pipeline.datasets.Coco"): "photographs: needs root",
    (*INTEGRAL, "--data.photographs.class_path", "own.None"): "own has no class None",
    (*INTEGRAL, "--data.source.class_path", "own.Narrow"): "own.Narrow is not of type ImageSource",
    (*INTEGRAL, "--model.schedule.class_path", "own.Narrow"): "own.Narrow is not of type Schedule",
    (*INTEGRAL, "--data.input_size", "[3, a]"): "data.input_size: 'a' is not of type int",
}


@pytest.mark.parametrize("arguments", LINES, ids=lambda arguments: " ".join(arguments))
def test_an_error_in_a_command_line_is_one_line(arguments, run_with_error):
    code, line = run_with_error(*arguments)
    assert code == 2
    assert LINES[arguments] in line


def test_a_config_that_is_not_text_is_named(run_with_error, tmp_path):
    (tmp_path / "x.yaml").write_bytes(bytes(range(256)))
    assert run_with_error() == (2, "x.yaml: is not text (UTF-8); give a YAML file")


@pytest.mark.parametrize("subcommand", ["validate", "test", "predict"])
@pytest.mark.parametrize("stage", TINY)
def test_random_weights_are_evaluated_only_if_that_is_asked_for(stage, subcommand, run_with_error):
    arguments = (stage, subcommand, *COMMANDS[stage][2:])
    code, line = run_with_error(*arguments)
    assert code == 2
    assert line == (
        f"heatlift {stage} {subcommand}: no weights are given; give --ckpt_path CHECKPOINT or "
        "--model.pretrained, or --untrained for random weights"
    )
    assert not Path("runs").exists()


def test_untrained_together_with_weights_is_an_error(run_with_error):
    arguments = ("lift", "test", *COMMANDS["lift"][2:], "--untrained")
    code, line = run_with_error(*arguments, "--model.pretrained", "a.ckpt")
    assert (code, line) == (
        2,
        "--untrained: does not fit the weights a.ckpt; give one of the two",
    )


def test_untrained_weights_are_tested_and_named_as_such(heatlift):
    child = heatlift("lift", "test", *COMMANDS["lift"][2:], "--untrained")
    assert child.wait() == 0, child.stderr
    assert "weights    random (--untrained)" in child.stdout


def test_the_error_names_the_checkpoint_of_a_finished_run_of_this_name(heatlift, uninterrupted):
    uninterrupted("lift")
    runs = uninterrupted.folders["lift",].parents[1]
    child = heatlift("lift", "test", *COMMANDS["lift"][2:], "--runs", runs)
    assert child.wait() == 2
    assert f"give --ckpt_path {runs}/lift/lift/checkpoints/best.ckpt or" in child.stderr


ONE_FRAME = """
import dataclasses

from pipeline.mocap import synthetic
from pipeline.sources import Sequence, Split


class Images(synthetic.Synthetic):
    '''Embedded people whose validation and test sequences have a single frame.'''

    def sequences(self, split: Split) -> list[Sequence]:
        frames = None if split == "train" else 1
        return [
            dataclasses.replace(s, joints3d=s.joints3d[:frames], images=None)
            for s in super().sequences(split)
        ]
"""


def test_test_sets_of_single_images_are_tested_without_metrics_of_motion(heatlift, tmp_path):
    (tmp_path / "one.py").write_text(ONE_FRAME)
    (tmp_path / "one.yaml").write_text(LIFT.replace("pipeline.mocap.Synthetic", "one.Images"))
    arguments = ("-c", "one.yaml", *COMMANDS["lift"][4:], "--import", "one.py")
    child = heatlift("lift", "fit", *arguments, "--trainer.max_epochs", "1")
    assert child.wait() == 0, child.stderr
    run = tmp_path / "runs" / "lift" / "one"
    again = heatlift("lift", "test", *arguments, "--ckpt_path", run / "checkpoints" / "best.ckpt")
    assert again.wait() == 0, again.stderr
    (evaluation,) = run.glob("test-*")
    for folder in (run, evaluation):
        written = (folder / "metrics.csv").read_text() + (folder / "index.html").read_text()
        written += "".join(path.read_text() for path in (folder / "tables").glob("*.csv"))
        assert "mpjve" not in written
        assert "acceleration" not in written
        assert "p_mpjpe_mm" in written
    assert "mpjve" not in child.stdout + again.stdout
    assert set(read_state(run)["numbers"]) >= {"test/mpjpe_mm", "test/of_mean_pose"}


@pytest.mark.parametrize("subcommand", ["validate", "test"])
def test_metrics_that_are_not_finite_end_an_evaluation_with_3(
    subcommand, heatlift, uninterrupted, tmp_path
):
    uninterrupted("lift")
    best = uninterrupted.folders["lift",] / "checkpoints" / "best.ckpt"
    content = torch.load(best, weights_only=True)
    content["state_dict"]["net.head.1.weight"].mul_(1e38)  # finite, and overflows
    torch.save(content, tmp_path / "broken.ckpt")
    child = heatlift("lift", subcommand, *COMMANDS["lift"][2:], "--ckpt_path", "broken.ckpt")
    assert child.wait() == 3, child.stderr
    assert "mpjpe_mm, " in child.stderr
    assert "is not finite; check the weights and the data" in child.stderr


def test_a_checkpoint_of_another_stage_is_an_error(run_with_error, uninterrupted):
    uninterrupted("pretrain")
    (path,) = (uninterrupted.folders[("pretrain",)] / "checkpoints").glob("best.ckpt")
    code, line = run_with_error("lift", "test", "-c", "lift.yaml", "--ckpt_path", str(path))
    assert (code, line) == (2, f"{path}: is a checkpoint of stage pretrain; this is lift")


def test_a_checkpoint_is_tested_without_the_pretrained_weights_of_its_run(heatlift, uninterrupted):
    uninterrupted("lift")
    best = uninterrupted.folders["lift",] / "checkpoints" / "best.ckpt"
    arguments = (
        "lift",
        "test",
        "-c",
        "lift.yaml",
        "--model.pretrained",
        "newest",
        "--name",
        "again",
    )
    child = heatlift(*arguments, "--ckpt_path", best)
    assert child.wait() == 0, child.stderr
    assert f"weights    {best}" in child.stdout


def test_the_newest_run_is_tested_by_that_word_and_a_run_that_is_named_is_suggested(
    uninterrupted, monkeypatch
):
    uninterrupted("lift")
    run = uninterrupted.folders["lift",]
    monkeypatch.chdir(run.parents[2])
    assert newest_checkpoint(Path("runs"), "lift") == "runs/lift/lift/checkpoints/best.ckpt"
    for given in ("lift/lift", "runs/lift/lift"):
        with pytest.raises(DataError, match="did you mean runs"):
            torch_files.read_checkpoint(given)


def test_the_name_of_a_test_is_its_folder_and_never_another_run(heatlift, uninterrupted, tmp_path):
    uninterrupted("lift")
    best = uninterrupted.folders["lift",] / "checkpoints" / "best.ckpt"
    arguments = ("lift", "test", *COMMANDS["lift"][2:], "--ckpt_path", best, "--name", "mine")
    assert heatlift(*arguments).wait() == 0
    assert list((tmp_path / "runs" / "lift" / "mine").glob("test-*/metrics.csv"))
    (tmp_path / "runs" / "lift" / "mine" / "run.json").write_text("{}")
    child = heatlift(*arguments)
    assert child.wait() == 2
    assert "--name mine: runs/lift/mine is another run than that of " in child.stderr


def test_the_death_of_a_dataloader_worker_has_an_exit_code_wherever_it_is_raised():
    line, code = explain.explain_error(
        RuntimeError("DataLoader worker (pid 7) is killed by signal: 9")
    )
    assert (line.split(" (")[0], code) == ("a DataLoader worker was killed", 6)
    later = EOFError("during a batch")
    later.__context__ = RuntimeError("DataLoader worker (pid 7) exited unexpectedly")
    assert explain.explain_error(later) == (line, 6)


def test_a_file_called_like_a_word_does_not_change_the_settings_of_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = SimpleNamespace(seed_everything=0)
    values = {"trainer": {}, "data": {"detections": "noisy"}, "model": {"pretrained": None}}
    monkeypatch.setattr(run_settings, "plain_values", lambda config: copy.deepcopy(values))
    before = run_settings.run_settings(config, {})
    (tmp_path / "noisy").write_text("a file of this name")
    assert run_settings.run_settings(config, {}) == before
    assert before["data"] == {"detections": "noisy"}


def test_a_callback_cannot_change_the_batches_per_step():
    with pytest.raises(UsageError, match="GradientAccumulationScheduler cannot be used; the learn"):
        trainer_options.callbacks_of_the_user(GradientAccumulationScheduler({1: 2}))


def test_detections_of_the_same_weights_with_other_settings_are_other_inputs(tmp_path):
    path, weights = tmp_path / "best.ckpt", {"net.w": torch.ones(3)}
    digests = []
    for flip_test in (False, True):
        content = {"state_dict": weights, "hyper_parameters": {"flip_test": flip_test}}
        torch.save(content | {"pytorch-lightning_version": "2.5"}, path)
        digests.append([run_settings._content_digest(str(path), whole=w) for w in (False, True)])
    assert digests[0][0] == digests[1][0]
    assert digests[0][1] != digests[1][1]


@pytest.mark.parametrize("name", ["protocol", "splits"])
def test_a_source_with_other_splits_is_another_one(name):
    one, other = ({"class_path": "x", "init_args": {"root": "a", name: n}} for n in ("1", "2"))
    assert same_source(one, one)
    assert not same_source(one, other)


def test_an_evaluation_has_the_joint_set_and_the_crops_of_the_checkpoint(heatlift, tmp_path):
    size = ["--data.padding", "1.5", "--trainer.max_epochs", "1"]
    assert heatlift(*COMMANDS["heatmap"], "--data.skeleton", "COCO17", *size).wait() == 0
    best = tmp_path / "runs" / "heatmap" / "heatmap" / "checkpoints" / "best.ckpt"
    child = heatlift("heatmap", "validate", "-c", "heatmap.yaml", "--ckpt_path", best)
    assert child.wait() == 0, child.stderr
    assert f"heatmap: padding, skeleton as in {best}, not as on the command line" in child.stdout
    assert "COCO17; 64x64 RGB; padding 1.5;" in child.stdout


def test_wandb_off_in_a_config_is_a_mode_and_no_boolean(run_with_error):
    code, line = run_with_error(config=LIFT + "wandb: off\n")
    assert code == 2
    assert line.startswith("wandb: ")


def test_the_digest_of_a_folder_depends_on_its_contents(tmp_path):
    folder = tmp_path / "found"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "1.json").write_text("{}")
    before = digests.folder_digest(folder)
    (folder / "a" / "1.json").rename(folder / "a" / "2.json")
    renamed = digests.folder_digest(folder)
    (folder / "a" / "2.json").write_text("[]")
    assert len({before, renamed, digests.folder_digest(folder)}) == 3


def test_an_imported_file_with_the_name_of_another_module_is_an_error(run_with_error, tmp_path):
    (tmp_path / "random.py").write_text("seed = 4\n")
    code, line = run_with_error(*FIT, "--import", "random.py")
    assert (code, line) == (
        2,
        "--import random.py: there is another module random; rename the file",
    )


def test_own_classes_are_imported_with_import(heatlift, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from pipeline.lift import MixSTE\n\n\nclass Mine(MixSTE):\n    '''A lifter.'''\n"
    )
    (tmp_path / "own.yaml").write_text(LIFT.replace("pipeline.lift.MixSTE", "mine.Mine"))
    arguments = (
        "lift",
        "fit",
        "-c",
        "own.yaml",
        *COMMANDS["lift"][4:],
        "--trainer.max_epochs",
        "1",
    )
    child = heatlift(*arguments, "--import", "mine.py")
    assert child.wait() == 0, child.stderr


def test_predict_writes_a_file_per_sequence(heatlift, uninterrupted, tmp_path):
    uninterrupted("lift")
    best = uninterrupted.folders["lift",] / "checkpoints" / "best.ckpt"
    child = heatlift("lift", "predict", *COMMANDS["lift"][2:], "--ckpt_path", best)
    assert child.wait() == 0, child.stderr
    (folder,) = best.parents[1].glob("predict-*/predictions")
    assert f"found      {folder}: 8 files" in child.stdout
    for number in range(8):
        with np.load(folder / f"{number:07d}.npz") as found:
            assert found["index"] == [number]
            assert found["joints3d"].shape == (50, 17, 3)
            assert str(found["name"])


def test_own_plugins_are_added_to_those_of_heatlift(heatlift, tmp_path):
    plugin = ("--trainer.plugins", "lightning.pytorch.plugins.DoublePrecision")
    child = heatlift(*COMMANDS["lift"], *plugin, "--trainer.max_epochs", "1")
    assert child.wait() == 0, child.stderr
    assert "precision 64-true" in child.stdout
    best = torch_files.read_checkpoint(tmp_path / "runs/lift/lift/checkpoints/best.ckpt")
    assert {value.dtype for value in best["state_dict"].values()} == {torch.float64}


def test_a_run_finishes_if_its_page_cannot_be_written(heatlift, tmp_path):
    arguments = (*COMMANDS["lift"], "--trainer.max_epochs", "1", "--name", "page")
    killed = heatlift(*arguments, faults=[("at", "saved", 2, "kill")])
    assert killed.wait() == -9
    (tmp_path / "runs" / "lift" / "page" / "index.html").unlink(missing_ok=True)
    (tmp_path / "runs" / "lift" / "page" / "index.html").mkdir()
    child = heatlift(*arguments)
    assert child.wait() == 0, child.stderr
    assert "index.html" in child.stderr
    assert read_state(tmp_path / "runs" / "lift" / "page")["state"] == "finished"


def test_a_changed_own_class_is_resumed_only_if_that_is_asked_for(heatlift, tmp_path):
    (tmp_path / "mine.py").write_text("from pipeline.lift import MixSTE\nMine = MixSTE\n")
    arguments = (*COMMANDS["lift"], "--import", "mine.py")
    assert heatlift(*arguments, faults=[("at", "saved", 3, "kill")]).wait() == -9
    (tmp_path / "mine.py").write_text("from pipeline.lift import MixSTE\nMine = None\n")
    child = heatlift(*arguments)
    assert child.wait() == 2
    assert child.stderr == (
        "heatlift: error: runs/lift/lift: the code changed since the run began (--import mine.py); "
        "give --resume_with_changed_code to resume it with this code, or --name for a new run\n"
    )
    child = heatlift(*arguments, "--resume_with_changed_code")
    assert child.wait() == 0, child.stderr
    assert "resumed with changed code (--import mine.py)" in child.stdout
    assert "resumed from step-000000002.ckpt" in child.stdout
    assert [path.name for path in (tmp_path / "runs/lift").iterdir()] == ["lift"]


def test_a_finished_name_is_said_first_with_a_command_that_prints_its_numbers(heatlift, tmp_path):
    more = ("--trainer.max_epochs", "1", "--name", "my run")
    assert heatlift(*COMMANDS["lift"], *more).wait() == 0
    again = heatlift(*COMMANDS["lift"], *more, faults=[("at", "batch", 1, "kill")])
    assert again.wait() == -9
    line, run = again.stdout.splitlines()[0], tmp_path / "runs/lift/my run"
    assert line.startswith("heatlift: runs/lift/my run is finished: runs/lift/my run/index.html ")
    assert line.endswith("this is runs/lift/my run-2")
    assert (run / "index.html").exists()
    program, *arguments = shlex.split(line.split("`")[1])
    child = heatlift(*arguments)
    assert (program, child.wait()) == ("heatlift", 0), child.stderr
    assert f"mpjpe_mm {read_state(run)['numbers']['test/mpjpe_mm']:.4g}" in child.stdout


@pytest.mark.parametrize(
    ("options", "faults", "code"),
    [
        (("--trainer.max_epochs", "0"), (), 2),
        (("--data.workers", "1"), [("worker", "bad file", 0)], 4),
        pytest.param(
            ("--trainer.devices", "2", "--data.workers", "1"),
            [("worker", "bad file", 0)],
            4,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["no step", "first batch", "first batch of two processes"],
)
def test_an_attempt_that_failed_before_its_first_step_leaves_no_name_behind(
    options, faults, code, heatlift, tmp_path
):
    assert heatlift(*COMMANDS["lift"], *options, faults=faults).wait() == code
    assert list((tmp_path / "runs" / "lift").iterdir()) == []


@pytest.mark.slow
def test_a_wandb_server_that_does_not_answer_changes_nothing(heatlift, uninterrupted, tmp_path):
    from runs import differences, outcome

    env = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB": "auto"}
    child = heatlift(*COMMANDS["lift"], "--wandb", "auto", env=env)
    assert child.wait() == 0, child.stderr
    assert differences(outcome(tmp_path, "lift"), uninterrupted("lift")) == []


# ---- make soak -----------------------------------------------------------------------------------

KEYS = ("model", "net", "class_path", "init_args", "frames", "depth", "heads", "optimizer", "lr")
KEYS += ("data", "source", "batch_size", "trainer", "max_epochs", "save_every", "schedule")
VALUES = ("9", "16", "64", "1.0e-3", "[walk, wave]")
WRONG = ("four", ".nan", ".inf", "1e999", "{a: 1}", "[[1]]", "!!python/name:os.system", "-")
FOREIGN = ("os.system", "subprocess.Popen", "builtins.eval", "torch.hub.load", "evil_module.X")


def spoiled(chance):
    """A config with one error, and the kind of the error."""
    kind = chance.choice(["typo", "value", "twice", "foreign", "deep", "tag"])
    lines = LIFT.strip().splitlines()
    if kind == "typo":
        key = chance.choice(KEYS)
        at = chance.randrange(len(key))
        wrong = key[:at] + chance.choice(["", "X", "q_", key[at] * 2 + "z"]) + key[at + 1 :]
        return kind, LIFT.replace(f"{key}:", f"{wrong}:", 1)
    if kind == "value":
        value, wrong = chance.choice(VALUES), chance.choice(WRONG)
        return kind, LIFT.replace(f" {value}", f" {wrong}", 1)
    if kind == "twice":
        number = chance.choice([0, len(lines) - 1])
        return kind, "\n".join([*lines, lines[number], "  again: 1" * (number == 0)])
    if kind == "foreign":
        whole = chance.choice(["pipeline.lift.MixSTE", "torch.optim.AdamW"])
        return kind, LIFT.replace(whole, chance.choice(FOREIGN), 1)
    if kind == "deep":
        depth = chance.choice([60, 1000, 10_000])
        return kind, f"{LIFT}name: {'[' * depth}{']' * depth}\n"
    module = chance.choice(["object/apply:os.system ['touch canary']", "object/new:os.system [x]"])
    return kind, f"{LIFT}name: !!python/{module}\n"


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(4))
def test_spoiled_configs(part, tmp_path, monkeypatch, capsys, soak):
    (tmp_path / "evil_module.py").write_text("open('canary', 'w')\nclass X: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    chance = random.Random(f"{SEED} config {part}")
    row = soak("config")
    for _ in row.times(1250):
        kind, text = spoiled(chance)
        (tmp_path / "x.yaml").write_text(text)
        code = main(["lift", "fit", "-c", "x.yaml", "--wandb", "off"])
        err = capsys.readouterr().err
        ran = (tmp_path / "canary").exists() or "evil_module" in sys.modules
        bad = code not in (0, 2) or err.count("\n") != 1 or (tmp_path / "runs").exists()
        row.look((kind, text), zero=code == 0, canaries=ran, other=bad and (code, err[-200:]))


SILENT = """
model: {net: {class_path: pipeline.lift.Martinez, init_args: {width: 8, blocks: 1}}}
data:
  source:
    class_path: pipeline.mocap.Synthetic
    init_args: {train: 1, val: 1, test: 1, actions: [walk], seconds: 0.3}
"""


def started(folder, monkeypatch, *arguments, config=SILENT):
    """Settings and name of a run of a config."""
    monkeypatch.chdir(folder)
    (folder / "people.yaml").write_text(config)
    assert main(["lift", "fit", "-c", "people.yaml", "--wandb", "off", *arguments]) == 0
    (path,) = folder.glob("runs/lift/*/run.json")
    return read_state(path.parent)["settings"], path.parent.name


def test_a_config_without_length_and_schedule_gets_ours(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trainer_options, "DEFAULT_STEPS", 3)
    settings, name = started(tmp_path, monkeypatch)
    assert (settings["trainer"]["max_epochs"], settings["trainer"]["max_steps"]) == (50, 3)
    assert settings["model"]["schedule"]["class_path"] == "pipeline.training.WarmupCosine"
    assert name == "people"
    assert "length     50 epochs or 3 steps, whichever is first (default" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["max_epochs=2", "max_steps=3", "max_time=00:00:05:00"])
def test_a_given_length_is_the_only_one(option):
    given = {"max_epochs": None, "max_steps": -1, "max_time": None}
    key, value = option.split("=")
    given[key] = value if key == "max_time" else int(value)
    trainer = SimpleNamespace(**given)
    trainer_options.limit_length(trainer)
    assert vars(trainer) == given


def test_a_constant_learning_rate_can_be_given(tmp_path, monkeypatch):
    config = SILENT.replace("model: {", "model: {schedule: null, ")
    settings, _ = started(tmp_path, monkeypatch, "--trainer.max_steps=1", config=config)
    assert settings["model"]["schedule"] is None


def test_a_run_of_a_network_that_no_config_names_has_its_name(tmp_path, monkeypatch):
    data = "data:" + SILENT.partition("data:")[2]
    net = ("--model.net", "pipeline.lift.Martinez", "--model.net.init_args.width=8")
    _, name = started(tmp_path, monkeypatch, *net, "--trainer.max_steps=1", config=data)
    assert name == "martinez-people"


def test_lines_of_a_run_of_steps_have_the_number_of_its_epochs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ProgressLines.__init__, "__defaults__", (0.0,))
    steps = ("--trainer.max_steps=40", "--data.batch_size=20")  # 4 cameras of 15 frames: 3 batches
    started(tmp_path, monkeypatch, *steps)
    assert "step 4 of 40, epoch 2 of 14, " in capsys.readouterr().out


@pytest.mark.parametrize(("epochs", "shown"), [(-1, True), (None, True), (5, False)])
def test_a_terminal_shows_no_epoch_3_of_minus_2(epochs, shown):
    trainer = SimpleNamespace(max_epochs=epochs, callbacks=None)
    callbacks = trainer_options.basic_callbacks(0, trainer, bar=True)
    assert any(isinstance(callback, OpenProgressBar) for callback in callbacks) == shown


def test_the_help_lists_no_option_that_cannot_be_set(capsys):
    assert main(["lift", "fit", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "--trainer.max_steps" in printed
    for name in trainer_options.NOT_ALLOWED:
        assert f"--trainer.{name} " not in printed
        assert f"--trainer.{name}." not in printed


BAD_VALUES = {
    "lift": [
        "seed_everything=-1",
        "seed_everything=true",
        "save_every=0",
        "patience=-5",
        "patience=0",
        "wandb=on",
        "model.optimizer.init_args.lr=-1",
        "model.optimizer.init_args.weight_decay=-1",
        "model.schedule.init_args.warmup=2",
        "model.net.init_args.dim=-8",
        "model.net.init_args.frames=0",
        "model.net.init_args.heads=3",
        "model.smooth=-1",
        "data.batch_size=0",
        "data.workers=-1",
        "data.step=0",
        "data.joint_mask=-1",
        "data.frame_mask=2",
        "data.augment_every=-1",
        "data.source.init_args.train=0",
        "data.source.init_args.seconds=-1",
        "trainer.accumulate_grad_batches=0",
        "trainer.max_epochs=-2",
        "trainer.max_steps=-2",
        "trainer.devices=0",
        "trainer.devices=many",
        "trainer.num_nodes=0",
        "trainer.accelerator=abacus",
        "trainer.precision=7",
        "trainer.gradient_clip_val=-1",
        "trainer.log_every_n_steps=-1",
        "trainer.check_val_every_n_epoch=0",
        "trainer.val_check_interval=-1",
        "trainer.max_time=soon",
        "trainer.limit_train_batches=-1",
        "trainer.num_sanity_val_steps=-2",
        "trainer.profiler=best",
        "trainer.strategy=none",
        "trainer.overfit_batches=-1",
    ],
    "heatmap": [
        "data.batch_size=-1",
        "data.workers=-1",
        "data.input_size=[0,64]",
        "model.net.init_args.width=0",
        "model.optimizer.init_args.lr=-1",
    ],
    "pretrain": ["data.noise=-1", "data.joint_mask=1.5", "data.frame_mask=-1", "data.step=-3"],
    "integral": ["data.batch_size=0", "model.optimizer.init_args.lr=-1", "trainer.devices=-3"],
}


@pytest.mark.parametrize(
    ("stage", "option"),
    [(stage, value) for stage, values in BAD_VALUES.items() for value in values],
)
def test_a_bad_value_of_an_option_is_a_usage_error(stage, option, run_with_error, monkeypatch):
    monkeypatch.setattr("sys.path", [*sys.path])
    code, line = run_with_error(*COMMANDS[stage], "--wandb", "off", f"--{option}")
    assert code == 2, line
    assert "a bug" not in line


@pytest.mark.parametrize(("devices", "nodes"), [(4, 1), (2, 2), (1, 1)])
def test_other_processes_than_torchrun_started_are_an_error(
    devices, nodes, run_with_error, monkeypatch
):
    variables = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    for name, value in {**variables, "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, str(value))
    given = ("--trainer.devices", str(devices), "--trainer.num_nodes", str(nodes))
    code, line = run_with_error(*COMMANDS["lift"], *given, "--trainer.accelerator", "cpu")
    assert (code, line.partition(",")[0]) == (2, "torchrun started 2 processes")


@pytest.mark.parametrize(
    ("started", "given", "taken"),
    [
        ((2, 2), ("auto", 1), (2, 1)),
        ((6, 2), ("auto", 1), (2, 3)),
        ((6, 2), ("auto", 3), (2, 3)),
        ((6, 2), (2, 1), (2, 1)),  # given, so that the check finds it
        (("", ""), ("auto", 1), ("auto", 1)),
    ],
)
def test_devices_and_machines_are_those_that_torchrun_started(started, given, taken, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    for name, value in zip(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), started, strict=True):
        monkeypatch.setenv(name, str(value))
    trainer = SimpleNamespace(devices=given[0], num_nodes=given[1])
    trainer_options.take_launched_processes(trainer)
    assert (trainer.devices, trainer.num_nodes) == taken


PROFILER = "lightning.pytorch.profilers.SimpleProfiler"


@pytest.mark.parametrize("arguments", ["{dirpath: /tmp}", "{filename: ../x}"])
def test_a_profiler_writes_into_the_run_folder_only(arguments, run_with_error):
    profiler = f"trainer: {{profiler: {{class_path: {PROFILER}, init_args: {arguments}}}, "
    code, line = run_with_error(config=LIFT.replace("trainer: {", profiler))
    assert code == 2
    assert line.startswith("--trainer.profiler: ")


def test_keys_and_passwords_are_masked_where_they_are_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    address = "https://me:canary7@host/x?token=canary8&a=1"
    write_state(tmp_path, {"settings": {"root": address, "more": ["api_key=canary9"]}})
    text = (tmp_path / "run.json").read_text()
    assert "canary" not in text
    assert read_state(tmp_path)["settings"]["root"] == "https://***@host/x?token=***&a=1"
    print_line(address)
    print_error(address, 2)
    printed = capsys.readouterr()
    assert "canary" not in printed.out + printed.err
