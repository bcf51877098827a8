"""An entry of the command table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Command:
    """A plain command.

    Args:
        help: One line for `--help`.
        places: `module:function`, or subcommand -> its places.
        named: Whether all its arguments are options; else they come in order.
    """

    help: str
    places: str | dict[str, Any]
    named: bool = False
