"""Settings of a run: its options, all values that affect its result, its name and its folder."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from pipeline.cli.arguments import option_values, parse_arguments
from pipeline.cli.configs import check_finite, plain_values, read_yaml
from pipeline.cli.newest import resolve_newest
from pipeline.cli.run_inputs import content_settings
from pipeline.cli.run_options import (
    CHECKPOINT_HELP,
    RUN_OPTIONS,
    SEED_HELP,
    TRAINER_HELP,
    Option,
)
from pipeline.cli.trainer_options import (
    NOT_ALLOWED,
    check_options,
    limit_length,
    take_launched_processes,
)
from pipeline.detections.request import DetectionRequest
from pipeline.errors import UsageError
from pipeline.files.digests import code_digests, file_digest, folder_digest
from pipeline.files.store import default_store
from pipeline.files.torch_files import read_checkpoint
from pipeline.training.checkpoints import checkpoint_stage, weights_digest
from pipeline.training.private_names import parser_actions, without_instantiator
from pipeline.training.run_folder import (
    Run,
    make_folder,
    open_run,
    read_state,
    remove_partial_files,
    settings_digest,
)
from pipeline.training.stage import Stage

WITHOUT_EFFECT = (
    "config",
    "name",
    "runs",
    "wandb",
    "group",
    "save_every",
    "patience",
    "seed_everything",
    "ckpt_path",
    "untrained",
    "import",
    "resume_with_changed_code",
)
"""Options that do not affect the result of a run (the seed is stored as `seed`)."""

DEVICE_OPTIONS = (
    "default_root_dir",
    "logger",
    "accelerator",
    "strategy",
    "devices",
    "num_nodes",
    "enable_progress_bar",
)
"""Options of the Trainer that define where a run computes, not what it computes."""


LIGHTNING_HELP = {"seed_everything": SEED_HELP, "ckpt_path": CHECKPOINT_HELP} | {
    f"trainer.{name}": text for name, text in TRAINER_HELP.items()
}
"""Options of Lightning that Heatlift explains in its own words."""


SET_BY_HEATLIFT = tuple(f"trainer.{name}" for name in NOT_ALLOWED)
"""Options that the help does not list, because they cannot be set."""


def add_run_options(parser: LightningArgumentParser, example_config: str) -> None:
    """Add the options of a run to the parser of a stage, and explain those of Lightning.

    Args:
        parser: Parser of a subcommand.
        example_config: A shipped config that the help shows.
    """
    help_texts = LIGHTNING_HELP | {
        "config": f"A shipped config such as {example_config} or data/synthetic, or a YAML file; "
        "later ones override earlier ones.",
    }
    for action in parser_actions(parser):
        is_ours = action.dest.removesuffix(".help") in SET_BY_HEATLIFT
        action.help = argparse.SUPPRESS if is_ours else help_texts.get(action.dest, action.help)
    add_options(parser, RUN_OPTIONS)


def add_options(parser: LightningArgumentParser, options: Iterable[Option]) -> None:
    """Add options to the parser of a subcommand."""
    for option in options:
        if option.type is None:
            parser.add_argument(f"--{option.name}", action="store_true", help=option.help)
        else:
            parser.add_argument(
                f"--{option.name}", type=option.type, default=option.default, help=option.help
            )


def check_weights(config: Any, command: str, run: Path) -> None:
    """Check that an evaluation has weights, or that it is told to take random ones.

    Args:
        config: The parsed config of the subcommand.
        command: Stage and subcommand, for the message.
        run: Folder of the run that has the name of this command.

    Raises:
        UsageError: If there are no weights without `--untrained`, or weights with it.
    """
    given = config.ckpt_path or config.model.get("pretrained")
    if given and config.untrained:
        raise UsageError(f"--untrained: does not fit the weights {given}; give one of the two")
    if given or config.untrained:
        return
    trained = (read_state(run) or {}).get("checkpoint")
    raise UsageError(
        f"heatlift {command}: no weights are given; give --ckpt_path "
        f"{run / trained if trained else 'CHECKPOINT'} or --model.pretrained, "
        "or --untrained for random weights"
    )


def complete_config(
    config: Any, stage: type[Stage], subcommand: str | None, planned: Collection[str] = ()
) -> None:
    """Check a parsed config, set the values that it leaves to us, and resolve `newest`.

    Args:
        config: The parsed config of the subcommand; it is changed.
        stage: LightningModule class of the stage.
        subcommand: fit, validate, test or predict.
        planned: Stages that are trained before it; see `resolve_newest`.

    Raises:
        UsageError: If a value is wrong.
    """
    check_finite(plain_values(config))
    fitting = subcommand == "fit"
    if fitting:
        limit_length(config.trainer)
    if not fitting and config.ckpt_path:
        config.model.pretrained = None  # the checkpoint has all weights
    if subcommand in ("validate", "test"):
        config.verbose = False  # `print_metrics` prints the metrics
    take_launched_processes(config.trainer)
    check_options(config, fitting=fitting)
    resolve_newest(stage, config, planned)


def run_settings(config: Any, inputs: Mapping[str, str]) -> dict[str, Any]:
    """Collect all values that affect the result of a run, as plain types; files as digests.

    Args:
        config: The parsed config of a subcommand.
        inputs: Files that the data come from; see `pipeline.cli.run_inputs.run_inputs`.
    """
    values = plain_values(config)
    settings = {key: value for key, value in values.items() if key not in WITHOUT_EFFECT}
    for key in DEVICE_OPTIONS:
        settings["trainer"].pop(key, None)
    if not settings["trainer"].get("callbacks"):
        settings["trainer"].pop("callbacks", None)
    settings["data"].pop("workers", None)
    settings["seed"] = config.seed_everything
    if inputs:
        settings["inputs"] = dict(inputs)
    pretrained = settings["model"].get("pretrained")
    if pretrained is not None:
        settings["model"]["pretrained"] = _content_digest(pretrained)
    detections = settings["data"].get("detections")
    if detections is not None and not DetectionRequest.parse(detections).is_projected:
        settings["data"]["detections"] = _content_digest(detections, whole=True)
    return settings


def _content_digest(value: str, *, whole: bool = False) -> str:
    """Digest of the file or folder of this name; the value itself if there is none.

    That of a checkpoint is of its weights; with `whole` also of the settings of its module, such as
    the flip test of a detector.
    """
    path = Path(value)
    if path.is_file() and path.suffix == ".ckpt":
        content = read_checkpoint(path)
        weights = weights_digest(content["state_dict"])
        if not whole:
            return weights
        settings = json.dumps(content.get("hyper_parameters"), sort_keys=True, default=str)
        return hashlib.sha256(f"{weights} {settings}".encode()).hexdigest()
    if path.is_file():
        return default_store().digest(path)
    return folder_digest(path, default_store().digest) if path.is_dir() else value


def run_code(arguments: Sequence[str]) -> dict[str, str]:
    """Code that a run computes with: file -> SHA-256, of the package and of the --import files.

    Args:
        arguments: Arguments of the command line.
    """
    imported = [Path(value) for value in option_values(arguments, "--import")]
    own = {f"--import {path.name}": file_digest(path) for path in imported}
    return code_digests(Path(__file__).parents[1]) | own


def evaluation_command(command_line: Sequence[str]) -> str:
    """Command that tests a checkpoint with the arguments of a fit, up to the path of it.

    >>> evaluation_command(["lift", "fit", "-c", "lift/demo", "--name", "my run", "--weights=last"])
    'heatlift lift test -c lift/demo --weights=last'
    """
    stage, _, *rest = command_line
    arguments, skip = [], False
    for argument in rest:
        if not skip and argument.partition("=")[0] not in ("--name", "--resume_with_changed_code"):
            arguments.append(argument)
        skip = argument == "--name"
    return shlex.join(["heatlift", stage, "test", *arguments])


def checkpoint_settings(
    path: str, stage: type[Stage], arguments: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Read the arguments of the module and of its data from a checkpoint that is evaluated.

    Args:
        path: Path of the checkpoint.
        stage: The stage; the command line may override its `test_settings`.
        arguments: Arguments of the command line.

    Returns:
        `model`, and `data` with those of them that the data module has, too, such as the joint set.

    Raises:
        UsageError: If the checkpoint is of another stage or has no arguments of a module.
    """
    content = read_checkpoint(path)
    found_stage = checkpoint_stage(content, path)
    if found_stage != stage.stage:
        raise UsageError(f"{path}: is a checkpoint of stage {found_stage}; this is {stage.stage}")
    if "hyper_parameters" not in content:
        raise UsageError(f"{path}: holds only weights; give them with --model.pretrained instead")
    settings = without_instantiator(content["hyper_parameters"])
    options = {argument.option for argument in parse_arguments(arguments)}
    for name in stage.test_settings:
        if f"--model.{name}" in options:
            settings.pop(name, None)
    linked = {name: settings[name] for name in stage.linked_arguments if name in settings}
    return {"model": settings, "data": linked}


def run_name(config: Any, stage: str) -> str:
    """Name of a run: the option --name, or the names of its network and configs.

    The network is named where no config does, so that a run of an own network has its name.

    Raises:
        UsageError: If it is a path.
    """
    configs = [Path(str(path)) for path in config.get("config") or []]
    parts = [path.stem for path in configs]
    if not any("net" in (read_yaml(path).get("model") or {}) for path in configs):
        net = plain_values(config.model).get("net") or {}
        parts = [str(net.get("class_path", stage)).rpartition(".")[2].lower(), *parts]
    name: str = config.name or "-".join(parts)
    if Path(name).name != name or name.startswith("."):
        raise UsageError(f"--name {name}: is a path; give a name, and the folder with --runs")
    return name


def open_fit(
    config: Any,
    folder: Path,
    settings: Mapping[str, Any],
    code: Mapping[str, str],
    command_line: Sequence[str],
) -> Run:
    """Open the run of a fit, which may be an unfinished one that is resumed; see `open_run`.

    Args:
        config: The parsed config of the subcommand.
        folder: Folder of the run that has the name of this command.
        settings: Settings of the run; see `run_settings`.
        code: Code of the run; see `run_code`.
        command_line: Arguments of the command line.
    """
    return open_run(
        Path(config.runs),
        folder.parent.name,
        folder.name,
        settings,
        content=content_settings(settings),
        code=code,
        resume_with_changed_code=config.resume_with_changed_code,
        test_command=evaluation_command(command_line),
    )


def evaluation_folder(
    config: Any,
    run: Path,
    subcommand: str | None,
    settings: Mapping[str, Any],
    code: Mapping[str, str],
) -> Path:
    """Make the folder of an evaluation.

    It is inside the run folder of the option --name, or without that option inside the folder of
    the evaluated run if it is writable.

    Its name depends on the settings: the same checkpoint on other data or with another evaluation
    protocol gets another folder.

    Args:
        config: The parsed config of the subcommand.
        run: Folder of the run that has the name of this command.
        subcommand: validate, test or predict.
        settings: Settings of the evaluation; see `run_settings`.
        code: Code of the evaluation; the files of the user decide the name of the folder, too.

    Raises:
        UsageError: If --name is the name of another run than that of the checkpoint.
    """
    path = Path(config.ckpt_path).resolve() if config.ckpt_path else None
    in_run_folder = path is not None and path.parent.name == "checkpoints"
    if path and config.name and run.resolve() not in path.parents and (run / "run.json").exists():
        raise UsageError(
            f"--name {config.name}: {run} is another run than that of {config.ckpt_path}; give a "
            "new name, or none to write into the folder of the checkpoint's run"
        )
    if path and in_run_folder and not config.name and os.access(path.parents[1], os.W_OK):
        run = path.parents[1]
    own_code = {name: digest for name, digest in code.items() if name.startswith("--import")}
    parts = [content_settings(settings), own_code, path and file_digest(path)]
    digest = settings_digest(parts)
    folder = run / f"{subcommand}-{digest[:6]}"
    make_folder(folder)
    remove_partial_files(folder)
    return folder
