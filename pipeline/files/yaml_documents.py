"""YAML files of users read strictly: no aliases, no repeated keys; each error is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import DataError
from pipeline.files.reading import read_bytes

MAX_BYTES = 64 * 2**10
"""Largest file."""


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML loader that accepts neither aliases nor repeated keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="an alias; write it out", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for i, (key, _) in enumerate(node.value):
            if key.value in keys[:i]:
                problem = f"the key {str(key.value)[:60]!r} a second time"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml_document(path: Path, shown: str) -> Any:
    """Content of a YAML file.

    Args:
        path: The file.
        shown: Page that shows how to write it, for error messages.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        text = read_bytes(path, MAX_BYTES).decode("utf-8-sig")
        return _StrictLoader(text).get_single_data()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise DataError(f"{path}: line {line}: {error.problem}; mend that line") from None
    except (yaml.YAMLError, ValueError, OverflowError, LookupError, AttributeError) as error:
        # PyYAML raises the last two if a tag does not fit its value: !!bool x, !!timestamp x
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{path}: is no YAML ({reason}); write it as {shown} shows") from None
    except RecursionError:
        raise DataError(f"{path}: is nested too deep; write it as {shown} shows") from None
