"""`heatlift docs`: the pages of the documentation, which travel with the package."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from pipeline.cli.arguments import CommandParser
from pipeline.errors import UsageError
from pipeline.training.console import print_text


def run(arguments: Sequence[str]) -> None:
    """Run `heatlift docs`: print a page of the documentation, or the list of all pages by task.

    Args:
        arguments: Arguments after the name of the command.

    Raises:
        UsageError: If they are wrong, or there is no such page.
    """
    parser = CommandParser("heatlift docs", description="Print a page of the documentation.")
    parser.add_argument(
        "page", nargs="?", default="README", help="name of the page [the list of all pages]"
    )
    page = parser.parse_args(list(arguments)).page
    names = {path.stem.lower(): path for path in docs_folder().glob("*.md")}
    wanted = page.rpartition("/")[2].removesuffix(".md").lower()
    if wanted not in names:
        close = difflib.get_close_matches(wanted, names, 1)
        hint = f"did you mean {close[0]}?" if close else "`heatlift docs` lists the pages"
        raise UsageError(f"{page}: no such page; {hint}")
    print_text(names[wanted].read_text("utf-8").rstrip("\n"))


def docs_folder() -> Path:
    """Folder of the pages: in the package, or beside it in a checkout."""
    installed = Path(__file__).parents[1] / "docs"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "docs"
