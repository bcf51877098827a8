"""Help of a stage: its options in groups, read from the source files in an instant."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pipeline.cli.configs import config_names
from pipeline.cli.run_options import (
    CHECKPOINT_HELP,
    EVALUATION_OPTIONS,
    FIT_OPTIONS,
    RUN_OPTIONS,
    SEED_HELP,
    TRAINER_HELP,
)
from pipeline.cli.stages import STAGES, SUBCOMMANDS

PACKAGE = Path(__file__).parents[1]

NETWORKS = {
    "heatmap": ("heatmap", ("HRNet", "SimpleBaseline")),
    "integral": ("integral", ("SAN",)),
    "pretrain": ("lift", ("MixSTE", "VideoPose3D")),
    "lift": (
        "lift",
        (
            "Martinez",
            "CombinedDeepLearner",
            "Cascade",
            "VideoPose3D",
            "PoseFormer",
            "MixSTE",
            "CentredLifter",
            "StridedLifter",
        ),
    ),
}
"""Stage -> package of its networks, and their classes."""

LOSSES = {
    "pretrain": ("PretrainLoss", "MixSTELoss", "MPJPELoss"),
    "lift": ("MixSTELoss", "MPJPELoss", "ZScoredMSE", "PretrainLoss"),
}
"""Stage -> its losses, all in `pipeline.lift.losses`."""

WIDTH, INDENT = 100, 30


class Argument(NamedTuple):
    """One argument of a class: its name, its default as in the source, its `Args` text."""

    name: str
    default: str | None
    help: str


def stage_help(stage: str, subcommand: str | None) -> str:
    """Text of `heatlift STAGE --help` and `heatlift STAGE SUBCOMMAND --help`.

    Args:
        stage: Name of the stage.
        subcommand: fit, validate, test or predict; None where none is given.
    """
    if subcommand is None:
        rows = [
            f"usage: heatlift {stage} {{{','.join(SUBCOMMANDS)}}} [options]",
            "",
            f"heatlift {stage}: {STAGES[stage].help}.",
            "",
            *(f"  {name:<10} {text}" for name, text in SUBCOMMANDS.items()),
            "",
            f"`heatlift {stage} fit --help` lists the options.",
        ]
        return "\n".join(rows)
    return "\n".join(_lines(stage, subcommand))


def _lines(stage: str, subcommand: str) -> Iterator[str]:
    """Lines of the help of a subcommand, group by group."""
    module, class_name = _module(stage)
    is_fit = subcommand == "fit"
    yield f"usage: heatlift {stage} {subcommand} -c CONFIG [-c CONFIG ...] [--option value ...]"
    yield ""
    yield f"heatlift {stage}: {STAGES[stage].help}."
    yield f"{subcommand}: {SUBCOMMANDS[subcommand]}."
    yield f"Example: {example_command(stage, subcommand)}"
    yield from _group("configs: shipped ones by name, or YAML files; later ones override")
    yield from _entry("of the stage", _configs(stage))
    yield from _entry("of the data", _configs("data"))
    yield from _group("run")
    options = RUN_OPTIONS + (FIT_OPTIONS if is_fit else EVALUATION_OPTIONS)
    if not is_fit:
        yield from _entry("--ckpt_path", CHECKPOINT_HELP)
    for option in options:
        yield from _entry(f"--{option.name}", _with_default(option.help, option.default))
    yield from _entry("--seed_everything", _with_default(SEED_HELP, 0))
    yield from _entry(
        "--import FILE.py", "File with own classes, which --model.net and others can then name."
    )
    yield from _entry("--debug", "Show the full traceback of an error.")
    folder, networks = NETWORKS.get(stage, (stage, ()))
    if networks:
        yield from _group(
            f"networks: --model.net pipeline.{folder}.NAME, arguments: --model.net.help "
            f"pipeline.{folder}.NAME"
        )
    for name in networks:
        yield from _entry(name, _summary(_find_class(PACKAGE / folder, name)))
    if stage in LOSSES:
        yield from _group("losses: --model.loss pipeline.lift.losses.NAME")
        for name in LOSSES[stage]:
            yield from _entry(name, _summary(_find_class(PACKAGE / "lift", name)))
    yield from _group("model")
    yield from _arguments("model", arguments_of(module, class_name), skip=("net",))
    yield from _group("data")
    data_class = _attribute(module, class_name, "data_class")
    skip = ("seed",)  # --seed_everything sets it
    yield from _arguments("data", arguments_of(module.with_name("data.py"), data_class), skip)
    yield from _group("training" if is_fit else "trainer")
    for name, text in TRAINER_HELP.items():
        yield from _entry(f"--trainer.{name}", text)
    yield ""
    yield f"`heatlift {stage} {subcommand} --help_all` lists all options, also those of Lightning."
    yield "`--print_config` prints all values and exits; its output is a config."


def example_command(stage: str, subcommand: str) -> str:
    """A command of a stage that works without any download."""
    config = _attribute(*_module(stage), "example_config")
    end = "" if subcommand == "fit" else " --ckpt_path newest"
    return f"heatlift {stage} {subcommand} -c {config} -c data/synthetic{end}"


def _module(stage: str) -> tuple[Path, str]:
    """Source file and class of the LightningModule of a stage."""
    name, _, class_name = STAGES[stage].module_class.partition(":")
    return PACKAGE.parent / Path(*name.split(".")).with_suffix(".py"), class_name


def _group(title: str) -> Iterator[str]:
    yield ""
    yield f"{title}:"


def _entry(name: str, text: str) -> list[str]:
    """Lines of one option: its name, and its text in a column."""
    lines = textwrap.wrap(text, WIDTH - INDENT, break_on_hyphens=False) or [""]
    head = f"  {name}"
    if len(head) < INDENT - 1:
        lines[0] = f"{head:<{INDENT}}{lines[0]}"
    else:
        lines.insert(0, head)
    return [lines[0], *(" " * INDENT + line for line in lines[1:])]


def _with_default(text: str, default: object) -> str:
    return text if default in (None, False) else f"{text} [{default}]"


def _arguments(group: str, arguments: Iterable[Argument], skip: tuple[str, ...]) -> Iterator[str]:
    for argument in arguments:
        if argument.name == "augmentation":
            fields = _find_class(PACKAGE / "heatmap", "Augmentation")
            for name, text in _args_section(ast.get_docstring(fields) or "").items():
                yield from _entry(f"--{group}.augmentation.{name}", text)
        elif argument.name not in skip:
            has_value = argument.default not in (None, "None")
            text = f"{argument.help} [{argument.default}]" if has_value else argument.help
            yield from _entry(f"--{group}.{argument.name}", text)


def _configs(stage: str) -> str:
    """Names of the shipped configs of a stage."""
    return ", ".join(name for name in config_names() if name.startswith(f"{stage}/"))


@cache
def _classes(file: Path) -> dict[str, ast.ClassDef]:
    """The classes of a source file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _find_class(folder: Path, name: str) -> ast.ClassDef:
    """A class of a package by its name.

    Raises:
        LookupError: If there is none.
    """
    for file in sorted(folder.glob("*.py")):
        if name in _classes(file):
            return _classes(file)[name]
    raise LookupError(f"{folder}: has no class {name}")


def _summary(node: ast.ClassDef) -> str:
    """First paragraph of the docstring of a class, on one line."""
    text = ast.get_docstring(node) or ""
    return " ".join(text.partition("\n\n")[0].split())


def arguments_of(file: Path, class_name: str) -> list[Argument]:
    """Arguments of a class, from the signature of its `__init__` and its `Args` section.

    Args:
        file: Source file of the class.
        class_name: Name of the class.
    """
    node = _classes(file)[class_name]
    (init,) = (n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    helps = _args_section(ast.get_docstring(node) or "")
    found = init.args
    positional = found.args[1:]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(found.defaults))
    values = [*defaults, *found.defaults, *found.kw_defaults]
    return [
        Argument(a.arg, None if value is None else _plain(value), helps.get(a.arg, ""))
        for a, value in zip([*positional, *found.kwonlyargs], values, strict=True)
    ]


def _plain(value: ast.expr) -> str:
    """A default as a user writes it: without quotes and module names."""
    if isinstance(value, ast.Constant):
        return str(value.value)
    return ast.unparse(value).removeprefix("torch.optim.")


def _args_section(docstring: str) -> dict[str, str]:
    r"""Argument -> text in the `Args` section of a docstring.

    >>> _args_section("X.\n\nArgs:\n    a: First,\n        still.\n    b: Second.\n\nMore.")
    {'a': 'First, still.', 'b': 'Second.'}
    """
    match = re.search(r"^Args:\n((?: {4}.*\n?|\n)*)", docstring, re.MULTILINE)
    entries = re.findall(r"^ {4}(\w+): ((?:.*\n?)(?: {8}.*\n?)*)", match[1] if match else "", re.M)
    return {name: " ".join(text.split()) for name, text in entries}


def _attribute(file: Path, class_name: str, name: str) -> str:
    """A class attribute in a source file: the name of a class, or a text.

    Raises:
        LookupError: If the class does not have it.
    """
    for node in _classes(file)[class_name].body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return _plain(node.value)
    raise LookupError(f"{file}: {class_name} has no {name}")
