"""The plain commands beside the stages: typed functions, called with what the words say."""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jsonargparse

from pipeline import published, ranks
from pipeline.config import find_config, read_source, same_source
from pipeline.errors import HeatliftError, UsageError
from pipeline.run import newest_finished
from pipeline.watch import Stopped, say


def newest(
    stage: Literal["heatmap", "pretrain", "lift"],
    data: str = "data/synthetic",
    root: str | None = None,
    runs: str = "runs",
) -> None:
    """Print the checkpoint of the newest finished run of a stage on some data.

    Args:
        stage: Which.
        data: Config that names the data.
        root: Where they lie, if not where the config says.
        runs: Folder of all runs.

    Raises:
        UsageError: If there is none, or the config names no data.
    """
    source = read_source(find_config(data))
    if not source:
        raise UsageError(f"{data}: names no data.source; give the config of a data set")
    if root is not None:
        source = {**source, "init_args": {**source.get("init_args", {}), "root": root}}
    found = newest_finished(
        Path(runs), stage, lambda settings: same_source(settings["data"]["source"], source)
    )
    if found is None:
        raise UsageError(f"{Path(runs) / stage}: no finished run on {data}; run `make {stage}`")
    say(str(found))


def newest_detector(runs: Path, source: Mapping[str, Any]) -> str:
    """Checkpoint of the newest finished 2D stage on some data.

    Raises:
        UsageError: If there is none.
    """
    found = newest_finished(
        runs, "heatmap", lambda settings: same_source(settings["data"]["source"], source)
    )
    if found is None:
        raise UsageError(
            f"{runs / 'heatmap'}: no finished 2D stage on this data; run `make heatmap` first, "
            "or set DETECTIONS=exact or noisy, or DETECTOR= to a checkpoint"
        )
    return str(found)


PLAIN: dict[str, Any] = {
    "detect": "pipeline.detections:detect",
    "cache": {
        "ls": "pipeline.cache:ls",
        "verify": "pipeline.cache:verify",
        "rm": "pipeline.cache:rm",
    },
    "data": {
        "ls": "pipeline.datasets.command:ls",
        "validate": "pipeline.datasets.command:validate",
        "convert": {
            "amc": "pipeline.datasets.command:amc",
            "amass": "pipeline.datasets.command:amass",
            "npz": "pipeline.datasets.command:npz",
        },
        "export": "pipeline.datasets.command:export",
        "get": "pipeline.datasets.command:get",
    },
    "weights": {"import": "pipeline.published:import_weights"},
    "newest": "pipeline.commands:newest",
    "demo": "pipeline.demo:demo",
    "doctor": "pipeline.doctor:doctor",
    "results": "pipeline.results:results",
    "robustness": "pipeline.robustness:robustness",
    "sweep": "pipeline.sweep:sweep",
    "models": "pipeline.models:models",
}
"""Commands that are plain typed functions."""


def _function(place: str) -> Callable[..., Any]:
    module, _, name = place.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


NAMED = ("detect", "results", "robustness", "weights")
"""Plain commands all of whose arguments are named; the others take them in order."""


def run_plain(command: str, words: Sequence[str]) -> None:
    """Call the function behind a plain command with what its signature makes of the words."""
    places, rest, called = PLAIN[command], list(words), [command]
    while isinstance(places, dict) and rest and rest[0] in places:
        called.append(rest.pop(0))
        places = places[called[-1]]
    if called == ["weights", "import"]:
        rest = importing(rest)
    parser_settings: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}
    parser_settings |= {
        "as_positional": command not in NAMED,
        "prog": " ".join(["heatlift", *called]),
    }
    functions = _functions(places)
    if command == "detect" and ranks.rank() is None and _devices(rest) > 1:
        _watch_over(_devices(rest), [command, *rest])
        return
    if called == ["weights", "import"] and {"-h", "--help"} & {*rest}:
        say(_as_typed(jsonargparse.auto_parser(functions, **parser_settings).format_help()))
        return
    given = jsonargparse.auto_cli(functions, args=with_source(spelled(rest)), **parser_settings)
    if isinstance(given, published.Report):
        say(str(given))


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


def _watch_over(devices: int, line: Sequence[str]) -> None:
    """Leave the work of a command line to several processes and end as they end.

    Lightning would start them as well, but kills this one when another dies, without a word.
    """
    message, code = ranks.supervise(devices, line, {})
    if code > 128:
        raise Stopped(code - 128, message)
    if code:
        kinds = {kind.exit_code: kind for kind in HeatliftError.__subclasses__()}
        raise kinds.get(code, HeatliftError)(message)


def _functions(places: Any) -> Any:
    """Functions by name, as deep as their places are."""
    if isinstance(places, str):
        return _function(places)
    return {name: _functions(inner) for name, inner in places.items()}


ANY_NUMBER = "1000000000"


def spelled(words: Sequence[str]) -> list[str]:
    """A plain command line with `--skip-bad` as `--skip_bad`, and a number behind it.

    >>> spelled(["--skip-bad", "folder"]), spelled(["--skip_bad=3"])
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


def importing(words: Sequence[str]) -> list[str]:
    """`FILE --as NETWORK -o OUT` in the names of `published.import_weights`.

    >>> importing(["a.bin", "--as", "mixste", "-o", "b.ckpt"])
    ['--file', 'a.bin', '--as_', 'mixste', '--output', 'b.ckpt']
    """
    names = {"--as": "--as_", "-o": "--output"}
    first = [] if not words or words[0].startswith("-") else ["--file"]
    return first + [names.get(word, word) for word in words]


def _as_typed(text: str) -> str:
    """Help on `published.import_weights` in the words of the command line; see `importing`."""
    names = {"--file FILE": "FILE", "--as_ AS_": "--as NETWORK", "--output OUTPUT": "-o OUTPUT"}
    for name, typed in names.items():
        text = text.replace(f"{name:<22}", f"{typed:<22}").replace(name, typed)
    return text.rstrip()


def with_source(words: Sequence[str]) -> list[str]:
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
        source = {**source, "init_args": {**source.get("init_args", {}), "root": root}}
    return [*words, "--detector", newest_detector(Path("runs"), source)]
