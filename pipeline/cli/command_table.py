"""Command: an entry of the command table in `pipeline.__main__`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Command:
    """A plain command: a command that is not a stage.

    Args:
        help: One line for `--help`.
        functions: `module:function`, or a dictionary from subcommand to its functions.
        options_only: Whether all arguments are options; otherwise required ones are positional.
        own_parser: Whether the function parses its arguments itself.
    """

    help: str
    functions: str | dict[str, Any]
    options_only: bool = False
    own_parser: bool = False
