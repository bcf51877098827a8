"""Configs: found by name, read strictly, converted to plain values."""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from pipeline.cli.arguments import parse_arguments
from pipeline.errors import UsageError, mask_secrets

YAML_ERRORS = (yaml.YAMLError, ValueError, LookupError, AttributeError)
"""Errors of PyYAML; it raises the last three for a tag that does not fit its value: `!!int x`."""

MAX_CHARACTERS = 2**18
"""Largest length of a config, as reading YAML is slow; the longest shipped one has 3,000."""


def shipped_configs() -> Path:
    """Folder of the configs that are shipped with the package."""
    installed = Path(__file__).parents[1] / "configs"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "configs"


def find_config(name: str) -> Path:
    """Find a config by its path, or a shipped one by its name, such as `lift/mixste_small`.

    Raises:
        UsageError: If there is no such file, or it is not a valid config; see `read_yaml`.
    """
    for folder in (Path(), shipped_configs()):
        for path in (folder / name, folder / f"{name}.yaml"):
            if path.is_file():
                read_yaml(path)
                return path
    similar = similar_configs(name)
    hint = (
        f"did you mean {' or '.join(similar)}?" if similar else "`heatlift STAGE fit --help` lists"
    )
    raise UsageError(f"{name}: no such config; {hint}{'' if similar else ' the shipped ones'}")


def config_names() -> list[str]:
    """Names of all shipped configs, such as `lift/mixste_small`."""
    paths = shipped_configs().glob("*/*.yaml")
    return sorted(path.relative_to(shipped_configs()).with_suffix("").as_posix() for path in paths)


def similar_configs(name: str) -> list[str]:
    """Shipped configs that somebody may mean by a name, at most three.

    >>> similar_configs("martinez")
    ['lift/martinez']
    >>> similar_configs("lift/mixste_smal")[0]
    'lift/mixste_small'
    """
    names = config_names()
    name = name.removesuffix(".yaml")
    same = [known for known in names if known.partition("/")[2] == name]
    return same or difflib.get_close_matches(name, names, 3)


def check_finite(value: Any, key: str = "") -> None:
    """Check that all numbers in a parsed config are finite.

    Args:
        value: The config or a part of it.
        key: Key of this part.

    Raises:
        UsageError: If a number is not finite; the message contains its key.
    """
    if isinstance(value, Mapping):
        for name, item in value.items():
            check_finite(item, f"{key}.{name}".removeprefix("."))
    elif isinstance(value, list):
        for item in value:
            check_finite(item, key)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{key}: {value} is not finite")


def resolve_configs(arguments: Sequence[str]) -> list[str]:
    """Write all spellings of `-c CONFIG` in a command line as two arguments, `-c` and a path.

    Raises:
        UsageError: If a config has no name, is not found or is not valid.

    >>> [Path(name).name for name in resolve_configs(["-c=lift/demo", "-clift/demo", "--x=-c"])]
    ['-c', 'demo.yaml', '-c', 'demo.yaml', '--x=-c']
    """
    resolved: list[str] = []
    for argument in parse_arguments(arguments):
        if argument.option not in ("-c", "--config"):
            resolved += argument.words()
        elif argument.value is None:
            raise UsageError(f"{argument.option}: has no value; give a shipped config or a file")
        else:
            resolved += ["-c", str(find_config(argument.value))]
    return resolved


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file as strictly as every config; see `check_yaml`.

    Raises:
        UsageError: If the file is not valid YAML or not a mapping.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
        check_yaml(text)
        content = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not text (UTF-8); give a YAML file") from error
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UsageError(f"{path}: {line}{_problem(error)}; correct this line") from error
    except yaml.YAMLError as error:  # of `check_yaml`
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from error
    except YAML_ERRORS as error:
        raise UsageError(f"{path}: a value does not fit its tag; correct it") from error
    if not isinstance(content or {}, dict):
        raise UsageError(f"{path}: is no config; it needs keys with values")
    return content or {}


def _problem(error: yaml.MarkedYAMLError) -> str:
    """Problem that PyYAML found, without the text that it quotes from the file."""
    return re.sub(r"(?<!\w)(['\"]).*\1", "…", error.problem or "not valid YAML")


def read_source(path: Path) -> dict[str, Any]:
    """Read the `data.source` of a config: class_path and init_args; empty if it has none.

    Raises:
        UsageError: If the file is not a valid config, or `data.source` is not a mapping.
    """
    part: Any = read_yaml(path)
    for key in ("data", "source"):
        part = part.get(key) or {}
        if not isinstance(part, dict):
            raise UsageError(f"{path}: {key} is no mapping; it needs keys with values")
    if not isinstance(part.get("init_args", {}), dict):
        raise UsageError(f"{path}: init_args of data.source need keys with values")
    return part


def configured_classes(config: Any) -> Iterator[str]:
    """Iterate over all class paths in a config.

    >>> list(configured_classes({"net": {"class_path": "a.B", "init_args": {"x": [1]}}}))
    ['a.B']
    """
    if isinstance(config, Mapping):
        if isinstance(config.get("class_path"), str):
            yield config["class_path"]
        for value in config.values():
            yield from configured_classes(value)
    elif isinstance(config, list):
        for value in config:
            yield from configured_classes(value)


def check_yaml(text: str, depth: int = 50) -> None:
    """Check YAML more strictly than its syntax: duplicate keys, infinity, nesting, size.

    Args:
        text: Content of the file.
        depth: Largest allowed nesting.

    Raises:
        yaml.YAMLError: If a check fails; the message contains the line.
    """
    sizes: dict[int, int] = {}

    def walk(node: yaml.Node | None, level: int) -> int:
        """Count the values in a node, with aliases expanded."""
        if node is None or id(node) in sizes:
            return sizes.get(id(node), 0)
        line = f"line {node.start_mark.line + 1}"
        if level > depth:
            raise yaml.YAMLError(f"{line}: nested deeper than {depth}")
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key.value, str)]
            duplicates = [key for key, count in Counter(keys).items() if count > 1]
            if duplicates:
                raise yaml.YAMLError(f"{line}: duplicate key {duplicates[0][:40]}")
            children = [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        elif node.tag == "tag:yaml.org,2002:float" and re.search("nan|inf", node.value.lower()):
            raise yaml.YAMLError(f"{line}: {node.value} is not finite")
        sizes[id(node)] = 1 + sum(walk(child, level + 1) for child in children)
        if sizes[id(node)] > 100_000:
            raise yaml.YAMLError(f"{line}: more than 100,000 values")
        return sizes[id(node)]

    if len(text) > MAX_CHARACTERS:
        raise yaml.YAMLError(f"more than {MAX_CHARACTERS:,} characters; no config has so many")
    open_brackets = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        open_brackets += 1 if bracket in "[{" else -1
        if open_brackets > depth:
            raise yaml.YAMLError(f"nested deeper than {depth}")
    try:
        walk(yaml.compose(text, Loader=yaml.SafeLoader), 0)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None


_load_yaml = jsonargparse.get_loader("yaml")


def _load_strictly(text: str) -> Any:
    try:
        check_yaml(text)
        return _load_yaml(text)
    except yaml.MarkedYAMLError as error:
        raise yaml.YAMLError(_problem(error)) from None
    except (ValueError, LookupError, AttributeError):
        raise yaml.YAMLError("a value does not fit its tag") from None


jsonargparse.set_loader("yaml", _load_strictly, exceptions=YAML_ERRORS)


def plain_values(config: Any) -> dict[str, Any]:
    """Convert a parsed config to dictionaries, lists and plain values."""

    def plain(value: Any) -> Any:
        if isinstance(value, jsonargparse.Namespace):
            return {key: plain(item) for key, item in vars(value).items()}
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        return str(value)

    result = plain(config)
    assert isinstance(result, dict)
    return result


def same_source(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two data sources have the same class and, if any, the same root folder and splits.

    Weights that were trained with other splits may have seen the people of a test.

    >>> same_source({"init_args": {"root": "x"}}, {"init_args": {"root": "./y/../x"}})
    True
    """
    roots = [source.get("init_args", {}).get("root") for source in (one, other)]
    known = [None if root is None else mask_secrets(str(root)) for root in roots]
    folders = [None if root is None else Path(root).resolve() for root in known]
    splits = [
        [source.get("init_args", {}).get(name) for name in ("protocol", "splits")]
        for source in (one, other)
    ]
    same_class = one.get("class_path") == other.get("class_path")
    return same_class and folders[0] == folders[1] and splits[0] == splits[1]
