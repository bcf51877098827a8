"""Exceptions explained to the user: one line and an exit code."""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jsonargparse

from pipeline.cli.arguments import option_values
from pipeline.cli.configs import configured_classes, read_yaml, similar_configs
from pipeline.cli.stage_help import LOSSES, NETWORKS, example_command
from pipeline.cli.stages import SUBCOMMANDS
from pipeline.errors import HeatliftError
from pipeline.training import processes

if TYPE_CHECKING:
    from lightning.pytorch.cli import LightningArgumentParser

STORAGE_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
)
"""Error numbers of the operating system for a disk that cannot be written to."""

MIXED_PRECISION = r"[tT]ype.*\b(BFloat16|Half)\b"
"""Pattern of torch's messages about operands of two precisions, as with bf16-true."""


own_files: list[Path] = []
"""Files of the user that --import has imported."""


def own_traceback(error: BaseException) -> str:
    """The part of a traceback that lies in the user's own files; empty if there is none.

    Args:
        error: The exception; its causes are looked at too.
    """
    for cause in _causes(error):
        if isinstance(cause, HeatliftError):
            return ""
    for cause in _causes(error):
        if isinstance(cause, SyntaxError) and Path(cause.filename or "") in own_files:
            return "".join(traceback.format_exception_only(cause))
        frames = traceback.extract_tb(cause.__traceback__)
        own = [frame for frame in frames if Path(frame.filename) in own_files]
        if own:
            return "".join(traceback.format_list(own))
    return ""


def explain_error(error: BaseException) -> tuple[str, int]:
    """Explain an exception in one line, and choose the exit code."""
    for cause in _causes(error):
        if isinstance(cause, HeatliftError):
            return str(cause), cause.exit_code
    if isinstance(error, jsonargparse.ArgumentError):
        return explain_usage_error(str(error)), 2
    if _is_of(error, "lightning.fabric.utilities.exceptions", "MisconfigurationException"):
        return " ".join(str(error).split()), 2
    if _is_of(error, "torch.cuda", "OutOfMemoryError"):
        return "out of GPU memory; lower --data.batch_size", 5
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "out of memory; lower --data.batch_size or --data.workers", 5
    if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
        file = f"{error.filename}: " if error.filename else ""
        return f"{file}{error.strerror}; free disk space, or choose another --runs folder", 5
    if isinstance(error, OSError) and _raised_in(error) in ("mkdir", "makedirs"):
        return f"{error.filename}: cannot be made ({error.strerror}); give another folder", 5
    if isinstance(error, RuntimeError | TypeError) and re.search(MIXED_PRECISION, str(error)):
        line = " ".join(str(error).split())[:200]
        return f"{line}; if the precision is bf16-true or 16-true, use bf16-mixed", 2
    for cause in _causes(error):  # may be raised outside the DataLoader
        if re.search(r"DataLoader worker .*(killed|exited)", str(cause)):
            return "a DataLoader worker was killed (out of memory?); lower the number of workers", 6
    if processes.is_process_loss(error):
        return "lost another process of this run; run the same command again to resume", 6
    if isinstance(error, RuntimeError) and "loading state_dict" in str(error):
        from pipeline.training.checkpoints import describe_mismatch

        return f"the checkpoint: {describe_mismatch(str(error))}", 2
    line = " ".join(str(error).split())[:400]
    if trace := own_traceback(error):
        names = [file.name for file in own_files if str(file) in trace]
        return f"{names[-1]}: {type(error).__name__}: {line}; correct the lines above", 2
    return (
        f"{type(error).__name__}: {line} (a bug, or something unforeseen; --debug shows where)",
        1,
    )


def _is_of(error: BaseException, module: str, name: str) -> bool:
    """Whether an exception is of a class of another package, which is not imported for this."""
    return isinstance(error, getattr(sys.modules.get(module), name, ()))


def _raised_in(error: BaseException) -> str:
    """Name of the function that raised an exception."""
    frames = traceback.extract_tb(error.__traceback__)
    return frames[-1].name if frames else ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Iterate over an exception and the chain of its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


RESUMING = "the same command resumes its own unfinished run; leave this option out"
"""What to do instead of asking for it."""

EXAMPLE = "heatlift STAGE fit -c CONFIG -c data/synthetic"
"""Command in an error line, where the stage is not known; `StageCLI` writes that of its stage."""


USUAL_NAMES = {
    "lr": "model.optimizer.init_args.lr",
    "learning_rate": "model.optimizer.init_args.lr",
    "epochs": "trainer.max_epochs",
    "max_epochs": "trainer.max_epochs",
    "steps": "trainer.max_steps",
    "gpus": "trainer.devices",
    "devices": "trainer.devices",
    "precision": "trainer.precision",
    "seed": "seed_everything",
    "checkpoint": "ckpt_path",
    "ckpt": "ckpt_path",
    "model": "model.net",
    "net": "model.net",
    "loss": "model.loss",
    "data": "data.source",
    "root": "data.source.init_args.root",
    "data.root": "data.source.init_args.root",
    "data.source.root": "data.source.init_args.root",
    "device": "trainer.accelerator",
    "output": "runs",
    "output_dir": "runs",
}
"""Names that options have in other repositories -> their names here."""


def explain_usage_error(message: str, known: Sequence[str] = ()) -> str:
    """Shorten an error message of jsonargparse to one line: key, error, nearest known key.

    Args:
        message: The message of jsonargparse.
        known: Known keys.
    """
    if missing := re.search(r"arguments are required: (.*)", message):
        needed = [name.strip() for name in missing[1].split(",")]
        names = [f"--{name.partition('.')[2]}" for name in needed]
        if "source" in needed:
            return f"{' and '.join(needed)}: not given; -c data/mocap gives a source, for example"
        if all(name in ("--model.net", "--data.source") for name in names):
            return f"{' and '.join(names)}: not given; a config gives it, as in `{EXAMPLE}`"
    keys = list(dict.fromkeys(re.findall(r'Parser key "([^"]+)"', message)))
    if denied := re.search(r"Importing '([^']+)' is not allowed", message):
        return (
            f"{'.'.join(keys[:1])}: class_path {denied[1]} is not on the allow-list of classes "
            "that a config may import; give the file of your own classes with --import FILE.py"
        )
    unknown = re.search(
        r"option '([^']+)'|Option '([^']+)' is|unrecognized arguments: (\S+)", message
    )
    if unknown:
        return _explain_unknown(next(filter(None, unknown.groups())), keys, known)
    wrong = re.search(r"Expected an? <class '(\w+)'>\. Got value: (.*)", message)
    if wrong and keys:
        return f"{'.'.join(keys)}: {wrong[2]!r} is not of type {wrong[1]}"
    if keys and (no_class := re.search(r"Expected a dot import path string: (\S+)", message)):
        return f"{keys[0]}: {no_class[1]} is no class; {_suggest_class(no_class[1])}"
    if keys and keys[0].endswith("trainer.precision"):
        value = re.search(r"Given value: (.*)", message)
        return f"{keys[0]}: {value[1] if value else 'the value'} is none of {', '.join(PRECISIONS)}"
    if no_config := re.search(r"Unable to load config ['\"]?([^'\"\s]+)", message):
        similar = similar_configs(no_config[1])
        hint = f"; did you mean -c {similar[0]}?" if similar else "; give a class or a YAML file"
        return f"{'.'.join(keys[:1])}: {no_config[1]} is no class and no config{hint}"
    if 'expected "subcommand"' in message:
        return f"give fit, validate, test or predict, as in `{EXAMPLE}`"
    types = [
        name for name in re.findall(r"Expected a <class '(\w+)'>", message) if name != "NoneType"
    ]
    given = re.search(r"Given value: (.*)", message)
    if keys and given and len(set(types)) == 1:
        return f"{'.'.join(keys)}: {given[1]!r} is not of type {types[0]}"
    lines = [line.strip().removeprefix("- ") for line in message.splitlines() if line.strip()]
    causes = [line for line in lines if keys and not line.startswith(GENERAL_LINES)]
    causes = [line for line in causes if not line.startswith("Expected a path")] or causes
    if causes:
        return f"{'.'.join(keys)}: {'; '.join(map(_shorten_cause, causes[:2]))}"
    details = [line for line in lines[1:] if "rror" in line or "expected" in line.lower()]
    return "; ".join([*lines[:1], *details[-2:]])


def _explain_unknown(word: str, parents: list[str], known: Sequence[str]) -> str:
    """One line about an unknown option, argument or key of a config, with what is meant instead.

    Args:
        word: The word as given.
        parents: Keys that it stands below.
        known: Known keys of a stage; none for a plain command.
    """
    key = word.removeprefix("--")
    if re.search(r"[^-].*\.(mp4|mov|avi|mkv|webm|jpe?g|png|json)$", word.lower()):
        return f"unknown argument {key}; did you mean `heatlift predict {key}`?"
    if "/" in key and (similar := similar_configs(key)):
        return f"unknown argument {key}; did you mean -c {similar[0]}?"
    if key.startswith("resume") and known:
        return f"unknown key {key}; {RESUMING}"
    if parents and f"{parents[0]}.{key}" in USUAL_NAMES:
        key, parents = f"{parents[0]}.{key}", []
    usual = USUAL_NAMES.get(key) if "seed_everything" in known else None  # of a stage
    similar = [usual] if usual else difflib.get_close_matches(key, known, 1)
    similar = similar or [name for name in known if name.startswith(key)]
    if key in known and not usual:  # as a key of another class
        similar = []
    hint = f", did you mean {similar[0]}?" if similar else ""
    return f"{'.'.join(parents)}: unknown key {key}{hint}".removeprefix(": ")


PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "64-true")
"""Values of `--trainer.precision` that users need."""


def _suggest_class(name: str) -> str:
    """What to write instead of the name of a class without its module."""
    paths = {n: f"pipeline.{folder}.{n}" for folder, names in NETWORKS.values() for n in names}
    paths |= {n: f"pipeline.lift.losses.{n}" for names in LOSSES.values() for n in names}
    similar = difflib.get_close_matches(name.rpartition(".")[2], paths, 1)
    if similar:
        return f"did you mean {paths[similar[0]]}?"
    return "name it with its module, such as pipeline.lift.MixSTE"


SOURCE_KINDS = {
    "MotionSource": (
        "motion of people in 3D",
        "data/human36m, data/mpi_inf_3dhp, data/motionbert, data/mocap or data/synthetic",
    ),
    "ImageSource": (
        "images of people with labelled joints",
        "data/coco, data/mpii, data/photos, data/human36m_images or data/synthetic",
    ),
}
"""Protocol of a data source -> what it gives, and shipped configs of such sources."""

GENERAL_LINES = (
    "Parser key",
    "Does not validate",
    "Subtypes:",
    "Errors:",
    "Given value",
    "Problem with given class_path",
    "Expected a <class 'NoneType'>",
)
"""Beginnings of lines in messages of jsonargparse that do not contain the cause."""


def _shorten_cause(cause: str) -> str:
    """Shorten what jsonargparse reports about a class in a config.

    >>> _shorten_cause("Import path own.Lens does not implement protocol ImageSource")
    'own.Lens is not of type ImageSource: a method or argument is missing or has another type; its \
methods need the arguments and the types of pipeline.sources.ImageSource'
    >>> _shorten_cause("the following arguments are required: root")
    'needs root'
    """
    if wrong := re.search(r"Import path (\S+) does not implement protocol (\S+)", cause):
        given = SOURCE_KINDS.get(_source_kind(wrong[1]) or "")
        if given and wrong[2] in SOURCE_KINDS and given is not SOURCE_KINDS[wrong[2]]:
            needed, configs = SOURCE_KINDS[wrong[2]]
            return f"{wrong[1]} gives {given[0]}, this needs {needed}; use -c {configs}"
    if missing := re.search(r"module '([^']+)' has no attribute '([^']+)'", cause):
        names = [name for name in dir(sys.modules.get(missing[1])) if not name.startswith("_")]
        similar = difflib.get_close_matches(missing[2], names, 1)
        hint = f"; did you mean {missing[1]}.{similar[0]}?" if similar else ""
        return f"{missing[1]} has no class {missing[2]}{hint}"
    cause = re.sub(
        r"Import path (\S+) does not implement protocol (\S+)",
        r"\1 is not of type \2: a method or argument is missing or has another type; its methods "
        r"need the arguments and the types of pipeline.sources.\2",
        cause,
    )
    cause = re.sub(
        r"Import path (\S+) does not correspond to a subclass of (\S+)",
        r"\1 is not of type \2",
        cause,
    )
    cause = re.sub(
        r"Expected a typing\.Literal\[(.*)\]\. Got value: (.*)", r"\2 is none of \1", cause
    )
    return cause.replace("the following arguments are required: ", "needs ")


def _source_kind(class_path: str) -> str | None:
    """Name of the protocol of a data source that a class has; None if it is no source."""
    module, _, name = class_path.rpartition(".")
    methods = dir(getattr(sys.modules.get(module), name, None))
    if "sequences" in methods:
        return "MotionSource"
    return "ImageSource" if "samples" in methods else None


def explain_arguments(
    message: str, stage: str, parsers: Mapping[str, LightningArgumentParser], args: Sequence[str]
) -> str:
    """Shorten an error message of jsonargparse about the arguments of a stage to one line.

    Args:
        message: The message of jsonargparse.
        stage: Name of the stage.
        parsers: Subcommand -> its parser.
        args: Arguments after the name of the stage.
    """
    subcommand = next((word for word in args[:1] if word in SUBCOMMANDS), "fit")
    line = explain_usage_error(message, known_keys(parsers[subcommand], args))
    return line.replace(EXAMPLE, example_command(stage, subcommand))


def known_keys(parser: LightningArgumentParser, arguments: Sequence[str]) -> list[str]:
    """List the keys of a parser and the arguments of all classes in the given configs."""
    from pipeline.training.private_names import parser_actions  # imports torch

    keys = [action.dest for action in parser_actions(parser)]
    for path in option_values(arguments, "-c", "--config"):
        for class_path in configured_classes(read_yaml(Path(path))):
            module, _, name = class_path.rpartition(".")
            if not module.startswith("pipeline."):
                continue
            with contextlib.suppress(ImportError, AttributeError):
                configured_class = getattr(importlib.import_module(module), name)
                keys += inspect.signature(configured_class).parameters
    return keys
