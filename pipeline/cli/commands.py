"""Plain commands (those that are not stages): typed functions, called with parsed arguments."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonargparse

from pipeline.cli.arguments import Argument, option_values, parse_arguments, to_words
from pipeline.cli.command_table import Command
from pipeline.cli.configs import read_source
from pipeline.cli.newest import newest_detector, with_root
from pipeline.errors import HeatliftError, UsageError
from pipeline.training import processes
from pipeline.training.console import print_text
from pipeline.training.processes import StoppedBySignal

VALUES = {
    "--skip_bad": "1000000000",
    "--resume_with_changed_code": "true",
    "--overwrite": "true",
}
"""Options that may be given without a value -> the value that they have then."""

SOURCE_OPTION = "--data.source.init_args."
"""Beginning of an option of the data source, as the stages write it."""

GROUP_HELP = "_help"
"""Key of the help line among the subcommands of a command, as jsonargparse defines it."""


def run_plain_command(name: str, command: Command, arguments: Sequence[str]) -> None:
    """Call the function of a plain command.

    Args:
        name: Name of the command.
        command: Its entry in the command table.
        arguments: Arguments after the name, with paths of configs.
    """
    functions, rest, called = command.functions, list(arguments), [name]
    while isinstance(functions, dict) and rest and rest[0] in functions.keys() - {GROUP_HELP}:
        called.append(rest.pop(0))
        functions = functions[called[-1]]
    has_output = called in (["weights", "import"], ["weights", "export"])
    if has_output:
        rest = weights_file_options(rest)
    if name == "detect" and processes.current_rank() is None and _device_count(rest) > 1:
        _supervise(_device_count(rest), [name, *rest])
        return
    components = _load_functions(functions)
    if command.own_parser:
        components(rest)
        return
    if isinstance(components, dict):
        components.pop(GROUP_HELP, None)  # allowed below the top level only
    parser_settings: dict[str, Any] = {
        "exit_on_error": False,
        "allow_abbrev": False,
        "as_positional": not command.options_only,
        "config_help": _config_help(components),
        "prog": " ".join(["heatlift", *called]),
    }
    if has_output and {"-h", "--help"} & {*rest}:
        text = jsonargparse.auto_parser(components, **parser_settings).format_help()
        print_text(_rename_file_options(text))
        return
    options = expand_configs(normalise_options(rest))
    result = jsonargparse.auto_cli(components, args=options, **parser_settings)
    if result is not None:  # the report of `weights import`
        print_text(str(result))


def _device_count(arguments: Sequence[str]) -> int:
    """Number of processes that a command line requests by `--devices`.

    With `--strategy`, Lightning starts the processes.

    >>> _device_count(["--devices", "2"]), _device_count(["--devices=3"])
    (2, 3)
    >>> _device_count(["--devices", "two"]), _device_count(["--devices=2", "--strategy=ddp_fork"])
    (1, 1)
    """
    if option_values(arguments, "--strategy"):
        return 1
    values = option_values(arguments, "--devices")
    return int(values[-1]) if values and values[-1].isdecimal() else 1


def _supervise(devices: int, command_line: Sequence[str]) -> None:
    """Run a command line in several processes, and raise an error if one of them fails.

    Lightning could start them too, but would kill this process without a message if one dies.
    """
    message, code = processes.supervise_processes(devices, command_line, {})
    if code > 128:
        raise StoppedBySignal(code - 128, message)
    if code:
        error_classes = {error.exit_code: error for error in HeatliftError.__subclasses__()}
        raise error_classes.get(code, HeatliftError)(message)


def _load_functions(functions: Any) -> Any:
    """Import the functions of a command; the structure of subcommands stays."""
    if isinstance(functions, dict):
        return {
            name: inner if name == GROUP_HELP else _load_functions(inner)
            for name, inner in functions.items()
        }
    module, _, name = functions.partition(":")
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (AttributeError, ImportError):
        importlib.import_module("pipeline.training.private_names")  # a missing name is the cause?
        raise
    return function


def _config_help(components: Any) -> str:
    """Help of `--config`; hidden for commands without a data source, which take no config."""
    if callable(components) and "source" in inspect.signature(components).parameters:
        return "Shipped config such as data/mocap, or YAML file of the data source; also -c."
    return argparse.SUPPRESS


def normalise_options(arguments: Sequence[str]) -> list[str]:
    """Write options as argparse needs them: `--skip_bad`, with a value, `--also=-c x`.

    >>> normalise_options(["--skip-bad", "folder"]), normalise_options(["--skip_bad=3"])
    (['--skip_bad', '1000000000', 'folder'], ['--skip_bad=3'])
    >>> normalise_options(["--resume_with_changed_code"])
    ['--resume_with_changed_code', 'true']
    """
    found: list[Argument] = []
    for option, value, joined in parse_arguments(arguments):
        if option.startswith("--") and "." not in option:
            option = f"--{option[2:].replace('-', '_')}"
        is_value = joined or (value or "").lstrip("-").isdigit() or value in ("true", "false")
        if option in VALUES and not is_value:
            found.append(Argument(option, VALUES[option]))
            found += [Argument("", value)] if value is not None else []
        else:  # a value with a dash at its start would be taken for an option
            joined |= option.startswith("--") and (value or "").startswith("-")
            found.append(Argument(option, value, joined))
    return to_words(found)


def weights_file_options(arguments: Sequence[str]) -> list[str]:
    """Convert `FILE --as NETWORK -o OUT` to the parameters of `import_file` and `export`.

    >>> weights_file_options(["a.bin", "--as", "mixste", "-o", "b.ckpt"])
    ['a.bin', '--as_', 'mixste', '--output', 'b.ckpt']
    """
    parameters = {"--as": "--as_", "-o": "--output"}
    return to_words(
        Argument(parameters.get(option, option), value, joined)
        for option, value, joined in parse_arguments(arguments)
    )


def _rename_file_options(text: str) -> str:
    """Replace parameters of `import_file` and `export` in their help, as they are given."""
    options = {"--as_ AS_": "--as NETWORK", "--output OUTPUT": "-o OUTPUT"}
    for parameter, option in options.items():
        text = text.replace(f"{parameter:<22}", f"{option:<22}").replace(parameter, option)
    text = re.sub(r"\n +file\n", "\n", text, count=1)  # at the end of the usage
    text = text.replace("weights import [", "weights import FILE [", 1)
    return text.replace("\n  file  ", "\n  FILE  ", 1).rstrip()


def expand_configs(arguments: Sequence[str]) -> list[str]:
    """Replace every `-c CONFIG` by the data source in it, as `--source`.

    Later configs override earlier ones, and `--data.source.…` overrides them, as for the stages.

    Raises:
        UsageError: If `-c` has no value.
    """
    source: dict[str, Any] = {}
    rest: list[str] = []
    for option, value, joined in parse_arguments(arguments):
        if option in ("-c", "--config"):
            if value is None:
                raise UsageError(f"{option}: has no value; give a shipped config or a file")
            if new := read_source(Path(value)):
                source = _merge_sources(source, new)
        else:
            name = option.removeprefix(SOURCE_OPTION)
            option = option if name == option else f"--source.{name}"
            rest += Argument(option, value, joined).words()
    source_option = ["--source", json.dumps(source, default=str)] if source else []
    return [*source_option, *_resolve_detector(rest, source)]


def _merge_sources(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Override a data source by another; `init_args` of another class are dropped."""
    same_class = new.get("class_path") in (None, old.get("class_path"))
    old_arguments = old.get("init_args", {}) if same_class else {}
    return {**old, **new, "init_args": {**old_arguments, **new.get("init_args", {})}}


def _resolve_detector(arguments: Sequence[str], source: Mapping[str, Any]) -> list[str]:
    """Override `--detector newest` by the newest detector that was trained on this source."""
    if option_values(arguments, "--detector")[-1:] != ["newest"]:
        return list(arguments)
    if root := option_values(arguments, "--source.root")[-1:]:
        source = with_root(source, root[0])
    return [*arguments, "--detector", newest_detector(Path("runs"), source)]
