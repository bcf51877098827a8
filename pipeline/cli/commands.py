"""The plain commands beside the stages: typed functions, called with what the words say."""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonargparse

from pipeline.cli.configs import read_source
from pipeline.cli.newest import newest_detector, with_root
from pipeline.cli.table import Command
from pipeline.errors import HeatliftError, UsageError
from pipeline.training import processes
from pipeline.training.console import print_line
from pipeline.training.signals import StoppedBySignal
from pipeline.training.transfer import WeightsReport


def _function(place: str) -> Callable[..., Any]:
    module, _, name = place.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def run_plain_command(name: str, command: Command, arguments: Sequence[str]) -> None:
    """Call the function behind a plain command with what its signature makes of the arguments."""
    places, rest, called = command.places, list(arguments), [name]
    while isinstance(places, dict) and rest and rest[0] in places:
        called.append(rest.pop(0))
        places = places[called[-1]]
    importing = called == ["weights", "import"]
    if importing:
        rest = weights_import_options(rest)
    if name == "detect" and processes.current_rank() is None and _devices(rest) > 1:
        _supervise(_devices(rest), [name, *rest])
        return
    functions = _functions(places)
    parser_settings: dict[str, Any] = {
        "exit_on_error": False,
        "allow_abbrev": False,
        "as_positional": not command.named,
        "prog": " ".join(["heatlift", *called]),
    }
    if importing and {"-h", "--help"} & {*rest}:
        text = jsonargparse.auto_parser(functions, **parser_settings).format_help()
        print_line(_as_typed(text))
        return
    options = expand_configs(normalise_options(rest))
    result = jsonargparse.auto_cli(functions, args=options, **parser_settings)
    if isinstance(result, WeightsReport):
        print_line(str(result))


def _devices(words: Sequence[str]) -> int:
    """How many processes a command line wants to be started: `--devices`, if it is a number.

    A strategy that is given starts its own.

    >>> _devices(["--devices", "2"]), _devices(["--devices=3"]), _devices(["--devices", "two"])
    (2, 3, 1)
    >>> _devices(["--devices=2", "--strategy=ddp_fork"])
    1
    """
    split = [part for word in words for part in word.split("=", 1)]
    given = [after for word, after in itertools.pairwise(split) if word == "--devices"]
    if "--strategy" in split:
        return 1
    return int(given[-1]) if given and given[-1].isdecimal() else 1


def _supervise(devices: int, line: Sequence[str]) -> None:
    """Leave the work of a command line to several processes and end as they end.

    Lightning would start them as well, but kills this one when another dies, without a word.
    """
    message, code = processes.supervise_processes(devices, line, {})
    if code > 128:
        raise StoppedBySignal(code - 128, message)
    if code:
        kinds = {kind.exit_code: kind for kind in HeatliftError.__subclasses__()}
        raise kinds.get(code, HeatliftError)(message)


def _functions(places: Any) -> Any:
    """Functions by name, as deep as their places are."""
    if isinstance(places, str):
        return _function(places)
    return {name: _functions(inner) for name, inner in places.items()}


ANY_NUMBER = "1000000000"


def normalise_options(words: Sequence[str]) -> list[str]:
    """A plain command line with `--skip-bad` as `--skip_bad`, and a number behind it.

    >>> normalise_options(["--skip-bad", "folder"]), normalise_options(["--skip_bad=3"])
    (['--skip_bad', '1000000000', 'folder'], ['--skip_bad=3'])
    """
    found: list[str] = []
    for word in words:
        if found and found[-1] == "--skip_bad" and not word.lstrip("-").isdigit():
            found.append(ANY_NUMBER)
        name, equals, value = word.partition("=")
        dashed = name.startswith("--") and "." not in name
        found.append((f"--{name[2:].replace('-', '_')}" if dashed else name) + equals + value)
    return [*found, ANY_NUMBER] if found[-1:] == ["--skip_bad"] else found


def weights_import_options(words: Sequence[str]) -> list[str]:
    """`FILE --as NETWORK -o OUT` in the names of `published.import_weights`.

    >>> weights_import_options(["a.bin", "--as", "mixste", "-o", "b.ckpt"])
    ['--file', 'a.bin', '--as_', 'mixste', '--output', 'b.ckpt']
    """
    names = {"--as": "--as_", "-o": "--output"}
    first = [] if not words or words[0].startswith("-") else ["--file"]
    return first + [names.get(word, word) for word in words]


def _as_typed(text: str) -> str:
    """Help on `published.import_weights` in the words of the command line; see `weights_import_options`."""
    names = {"--file FILE": "FILE", "--as_ AS_": "--as NETWORK", "--output OUTPUT": "-o OUTPUT"}
    for name, typed in names.items():
        text = text.replace(f"{name:<22}", f"{typed:<22}").replace(name, typed)
    return text.rstrip()


def expand_configs(words: Sequence[str]) -> list[str]:
    """A plain command line in which `-c CONFIG`, as the stages take it, has become `--source`.

    Of several configs the last word counts; `--data.source.…` overrides it, as at the stages.
    """
    source: dict[str, Any] = {}
    rest: list[str] = []
    given = iter(words)
    for word in given:
        if word in ("-c", "--config"):
            path = next(given, None)
            if path is None:
                raise UsageError(f"{word}: which config? give a shipped one or a file")
            if not (named := read_source(Path(path))):
                continue
            kept = source if named.get("class_path") in (None, source.get("class_path")) else {}
            source = {
                **source,
                **named,
                "init_args": {**kept.get("init_args", {}), **named.get("init_args", {})},
            }
        else:
            rest.append(word.replace("--data.source.init_args.", "--source.", 1))
    given_source = ["--source", json.dumps(source, default=str)] if source else []
    return [*given_source, *_with_detector(rest, source)]


def _with_detector(words: Sequence[str], source: Mapping[str, Any]) -> list[str]:
    """A plain command line in which `--detector newest` is followed by the one that it means."""
    split = [part for word in words for part in word.split("=", 1)]
    after = dict(itertools.pairwise(split))
    if after.get("--detector") != "newest":
        return list(words)
    if root := after.get("--source.root"):
        source = with_root(source, root)
    return [*words, "--detector", newest_detector(Path("runs"), source)]
