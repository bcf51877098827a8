"""Help of a stage: short, at once, and complete."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.__main__ import main
from pipeline.cli import stage_help
from pipeline.cli.configs import config_names, similar_configs
from pipeline.cli.run_options import TRAINER_HELP
from pipeline.cli.stage_cli import StageCLI
from pipeline.cli.stages import STAGES, SUBCOMMANDS, load_stage
from pipeline.lift.lifter import Lifter
from pipeline.training.private_names import parser_actions


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("subcommand", SUBCOMMANDS)
def test_the_help_of_a_subcommand_is_below_200_lines_of_100_columns(stage, subcommand):
    lines = stage_help.stage_help(stage, subcommand).splitlines()
    assert 60 < len(lines) < 200
    assert max(map(len, lines)) <= 100
    assert stage_help.example_command(stage, subcommand) in "\n".join(lines)


def test_the_help_comes_without_torch():
    code = (
        "import sys; from pipeline.__main__ import main; main(['lift', 'fit', '--help']); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'lightning', 'numpy')))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert "--model.flip_test" in ended.stdout


@pytest.fixture
def options_of(monkeypatch):
    """Names of the options that the real parser of a stage has."""

    def find(stage, subcommand):
        found = []

        def stop(cli, parser, args):
            found.extend(action.dest for action in parser_actions(cli.parsers[subcommand]))
            raise KeyboardInterrupt

        monkeypatch.setattr(StageCLI, "parse_arguments", stop)
        with pytest.raises(KeyboardInterrupt):
            StageCLI(load_stage(stage), [subcommand], [], None)
        return {name for name in found if not name.endswith(".help")}

    return find


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("subcommand", ["fit", "test"])
def test_the_help_lists_the_options_of_the_parser(stage, subcommand, options_of):
    text = stage_help.stage_help(stage, subcommand)
    known = options_of(stage, subcommand)
    listed = {
        line.split()[0].removeprefix("--") for line in text.splitlines() if line[:4] == "  --"
    }
    assert listed - known == {"import", "debug"}
    of_lightning = {name for name in known if name.startswith("trainer")}
    assert {f"trainer.{name}" for name in TRAINER_HELP} <= of_lightning
    unlisted = known - listed - of_lightning
    assert unlisted <= {
        "help",
        "config",
        "print_config",
        "model",
        "model.net",
        "data",
        "data.seed",
        "data.augmentation",
        "verbose",
        "weights_only",
        "return_predictions",
        "ckpt_path",
    }
    assert ("ckpt_path" in listed) == (subcommand != "fit")


def test_every_argument_has_a_help_text():
    for stage in STAGES:
        module, class_name = stage_help._module(stage)
        data = stage_help._attribute(module, class_name, "data_class")
        found = stage_help.arguments_of(module, class_name)
        found += stage_help.arguments_of(module.with_name("data.py"), data)
        assert len(found) > 8
        assert [argument.name for argument in found if not argument.help] == []


def test_the_help_lists_all_lifters():
    import pipeline.lift

    lifters = {
        name
        for name in pipeline.lift.__all__
        if issubclass(cls := getattr(pipeline.lift, name), Lifter) and cls is not Lifter
    }
    assert set(stage_help.NETWORKS["lift"][1]) == lifters
    for name in stage_help.NETWORKS["pretrain"][1]:
        assert name in lifters


def test_help_all_is_the_parsers_own(capsys):
    assert main(["lift", "fit", "--help_all"]) == 0
    assert "--trainer.reload_dataloaders_every_n_epochs" in capsys.readouterr().out


def test_a_config_of_a_wrong_name_is_found():
    assert similar_configs("martinez") == ["lift/martinez"]
    assert similar_configs("mixste_small") == ["lift/mixste_small", "pretrain/mixste_small"]
    assert similar_configs("lift/mixste_smal.yaml")[0] == "lift/mixste_small"
    assert similar_configs("xyz") == []
    assert "data/mocap" in config_names()


def test_a_reader_that_has_ended_gets_no_traceback():
    command = f"set -o pipefail; {sys.executable} -m pipeline lift fit --help | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
