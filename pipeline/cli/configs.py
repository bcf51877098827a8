"""Configs: found by name, read strictly, and as plain values."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from pipeline.errors import UsageError

NO_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError)
"""What PyYAML raises; the last three where a tag does not fit its value: `!!int x`, `!!bool x`."""


def shipped_configs() -> Path:
    """Folder of the configs that come with the package."""
    inside = Path(__file__).parents[1] / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "configs"


def find_config(name: str) -> Path:
    """A config by path, or by its name among the shipped ones: `lift/mixste_small`.

    Raises:
        UsageError: If there is none, or it is none; see `read_yaml`.
    """
    for folder in (Path(), shipped_configs()):
        for path in (folder / name, folder / f"{name}.yaml"):
            if path.is_file():
                read_yaml(path)
                return path
    there = sorted(
        str(p.relative_to(shipped_configs()).with_suffix(""))
        for p in shipped_configs().glob("*/*.yaml")
    )
    raise UsageError(f"{name}: no such config; shipped are {', '.join(there)}")


def check_finite(value: Any, key: str = "") -> None:
    """Raise on a number that is not finite anywhere in a parsed config.

    Raises:
        UsageError: Naming its key.
    """
    if isinstance(value, Mapping):
        for name, item in value.items():
            check_finite(item, f"{key}.{name}".removeprefix("."))
    elif isinstance(value, list):
        for item in value:
            check_finite(item, key)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{key}: {value} is not finite")


def resolve_configs(words: Sequence[str]) -> list[str]:
    """A command line in which every config is two words, `-c FILE`, however it was given.

    >>> [Path(word).name for word in resolve_configs(["-c=lift/demo", "-clift/demo", "--x=-c"])]
    ['-c', 'demo.yaml', '-c', 'demo.yaml', '--x=-c']
    """
    found: list[str] = []
    for word in words:
        glued = re.fullmatch(r"--config=(.+)|-c=?(.+)", word)
        if found[-1:] == ["-c"]:
            found.append(str(find_config(word)))
        elif glued:
            found += ["-c", str(find_config(glued[1] or glued[2]))]
        else:
            found.append("-c" if word == "--config" else word)
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """What a YAML file that somebody gave holds, read as strictly as every config.

    Raises:
        UsageError: Naming the file, if it is no YAML, means something odd, or is no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
        check_yaml(text)
        content = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not text (UTF-8), so it is no config") from error
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UsageError(f"{path}: {line}{error.problem}; mend that line") from error
    except NO_YAML as error:
        raise UsageError(f"{path}: {error}") from error
    if not isinstance(content or {}, dict):
        raise UsageError(f"{path}: keys with values are expected, not {str(content)[:40]!r}")
    return content or {}


def read_source(path: Path) -> dict[str, Any]:
    """The `data.source` of a config: class_path and init_args; empty if it names none.

    Raises:
        UsageError: Naming the file, if it cannot be one.
    """
    inner: Any = read_yaml(path)
    for key in ("data", "source"):
        inner = inner.get(key) or {}
        if not isinstance(inner, dict):
            raise UsageError(f"{path}: {key} is {str(inner)[:40]!r}; it needs keys with values")
    if not isinstance(inner.get("init_args", {}), dict):
        raise UsageError(f"{path}: init_args of data.source need keys with values")
    return inner


def check_yaml(text: str, depth: int = 50) -> None:
    """Raise on what YAML allows and a config never means: duplicate keys, infinities, depth.

    Raises:
        yaml.YAMLError: Naming the line.
    """
    sizes: dict[int, int] = {}

    def walk(node: yaml.Node | None, level: int) -> int:
        """Number of values in a node, aliases written out."""
        if node is None or id(node) in sizes:
            return sizes.get(id(node), 0)
        line = f"line {node.start_mark.line + 1}"
        if level > depth:
            raise yaml.YAMLError(f"{line}: nested deeper than {depth}")
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key.value, str)]
            twice = [key for key, count in Counter(keys).items() if count > 1]
            if twice:
                raise yaml.YAMLError(f"{line}: duplicate key {twice[0]}")
            children = [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        elif node.tag == "tag:yaml.org,2002:float" and re.search("nan|inf", node.value.lower()):
            raise yaml.YAMLError(f"{line}: {node.value} is not finite")
        sizes[id(node)] = 1 + sum(walk(child, level + 1) for child in children)
        if sizes[id(node)] > 100_000:
            raise yaml.YAMLError(f"{line}: more than 100,000 values")
        return sizes[id(node)]

    opened = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        opened += 1 if bracket in "[{" else -1
        if opened > depth:
            raise yaml.YAMLError(f"nested deeper than {depth}")
    try:
        walk(yaml.compose(text, Loader=yaml.SafeLoader), 0)
    except RecursionError:
        raise yaml.YAMLError("nested too deep") from None


_load_yaml = jsonargparse.get_loader("yaml")


def _load_strictly(text: str) -> Any:
    check_yaml(text)
    return _load_yaml(text)


jsonargparse.set_loader("yaml", _load_strictly, exceptions=NO_YAML)


def plain_values(config: Any) -> dict[str, Any]:
    """A parsed config as dictionaries, lists and plain values."""

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
    """Whether two configs name the same data: the same class, and the same root if it has one.

    >>> same_source({"init_args": {"root": "x"}}, {"init_args": {"root": "./y/../x"}})
    True
    """
    roots = [source.get("init_args", {}).get("root") for source in (one, other)]
    places = [None if root is None else Path(str(root)).resolve() for root in roots]
    return one.get("class_path") == other.get("class_path") and places[0] == places[1]
