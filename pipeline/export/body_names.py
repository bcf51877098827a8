"""Names of a body's joints in files for other programs: shipped maps, and YAML files of users."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from pipeline.errors import DataError, UsageError
from pipeline.export.rest_skeleton import JOINTS
from pipeline.files.yaml_documents import read_yaml_document

FOLDER = Path(__file__).parent / "bvh_names"
SHIPPED = ("heatlift", "mixamo", "cmu", "lafan1")
"""Maps that come with Heatlift: its own names, and those of three well-known sources of motion."""

_SHOWN = "pipeline/export/bvh_names/mixamo.yaml"
_LONGEST = 64  # characters
_MARKS = "{}\"'\\"


def read_names(names: str) -> dict[str, str]:
    """The name of each joint of a body in a file.

    Args:
        names: One of `SHIPPED`, or the path of a YAML file with one line `joint: name` for each
            joint of `JOINTS`.

    Raises:
        UsageError: If it is neither.
        DataError: If the file is no such map.
    """
    path = FOLDER / f"{names}.yaml" if names in SHIPPED else Path(names)
    if path.suffix.lower() not in (".yaml", ".yml"):
        close = difflib.get_close_matches(names, SHIPPED, 1)
        raise UsageError(
            f"bvh_names is {names!r}{_suggestion(close)}; give {', '.join(SHIPPED)} or a YAML file "
            f"as {_SHOWN}"
        )
    return _parse(read_yaml_document(path, _SHOWN), str(path))


def _parse(table: Any, place: str) -> dict[str, str]:
    """The map that the content of a YAML file defines."""
    if not isinstance(table, dict):
        raise DataError(f"{place}: expected a line `joint: name` for each joint, as in {_SHOWN}")
    for joint in table:
        if joint not in JOINTS:
            close = difflib.get_close_matches(str(joint), JOINTS, 1)
            raise DataError(
                f"{place}: the body has no joint {str(joint)[:_LONGEST]!r}{_suggestion(close)}; it "
                f"has {', '.join(JOINTS)}"
            )
    if missing := [joint for joint in JOINTS if joint not in table]:
        raise DataError(f"{place}: no name for {', '.join(missing)}; give one for each joint")
    for joint, name in table.items():
        if not isinstance(name, str) or not _is_name(name):
            raise DataError(
                f"{place}: {joint}: {str(name)[:_LONGEST]!r} is no name of a BVH joint; give up to "
                f"{_LONGEST} letters without spaces, braces and quotes"
            )
    names = [table[joint] for joint in JOINTS]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{place}: two joints are called {name!r}; give each its own name")
    return dict(zip(JOINTS, names, strict=True))


def _is_name(text: str) -> bool:
    """Whether all readers of BVH take a text as a name."""
    plain = text.isascii() and text.isprintable() and not any(c in _MARKS or c == " " for c in text)
    return plain and 0 < len(text) <= _LONGEST


def _suggestion(close: list[str]) -> str:
    return f" (did you mean {close[0]}?)" if close else ""
