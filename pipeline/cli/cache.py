"""`heatlift cache`: list, verify and remove entries of the detection cache."""

from __future__ import annotations

from pathlib import Path

from pipeline.cli.tables import print_table
from pipeline.errors import StorageError, UsageError
from pipeline.files import entries, store, writing
from pipeline.training.console import print_status

_MOST_NAMES = 8
"""Largest number of foreign files that are named in a line."""


def ls() -> None:
    """Print a table of the entries in the cache, and name what else is in its folder."""
    _print_entries([_row(path) for path in _find_entries()])
    _print_foreign()


def verify() -> None:
    """Check every byte of every finished entry and print a table of the results.

    Raises:
        StorageError: If an entry is damaged.
    """
    paths = _find_entries()
    damage = {path: "" if _is_unfinished(path) else entries.describe_damage(path) for path in paths}
    _print_entries([_row(path, damage[path] or "whole") for path in paths])
    _print_foreign()
    damaged = [path.name for path, reason in damage.items() if reason]
    if damaged:
        raise StorageError(
            f"{store.default_store().root}: damaged entries: {', '.join(damaged)}; "
            "they are rebuilt when they are needed; `heatlift cache rm` removes them"
        )


def rm(name: str) -> None:
    """Remove an entry from the cache, finished or not; files that Heatlift did not write stay.

    Args:
        name: Name of the entry, as `heatlift cache ls` prints it; `all` for all entries.

    Raises:
        StorageError: If files that Heatlift did not write are in an entry; then it stays.
        UsageError: If there is no such entry.
    """
    cache = store.default_store()
    present = sorted({_name(path) for path in _find_entries()})
    if name != "all" and name not in present:
        raise UsageError(
            f"{cache.root}: no entry {name}; it holds {', '.join(present) or 'nothing'}"
        )
    foreign = [
        str(path.relative_to(cache.root))
        for entry in (present if name == "all" else [name])
        for path in cache.remove(entry)
    ]
    if name == "all":
        _print_foreign()
    if foreign:
        raise StorageError(
            f"{cache.root}: left as they are, because Heatlift did not write all of them: "
            f"{_first_names(foreign)}; move these files away, or remove the folders yourself"
        )


def _find_entries() -> list[Path]:
    """Folders of finished and unfinished entries, in the order of their names."""
    root = store.default_store().root
    found = [path for path in root.glob("[!.]*") if entries.looks_like_entry(path)]
    building = [
        path
        for path in root.glob(".*.building")
        if entries.ENTRY_NAME.fullmatch(_name(path)) and path.is_dir() and not path.is_symlink()
    ]
    return sorted([*found, *building], key=_name)


def _print_foreign() -> None:
    """Name what is in the folder of the cache and is no entry; hidden files are not named."""
    root = store.default_store().root
    foreign = [path.name for path in root.glob("[!.]*") if not entries.looks_like_entry(path)]
    if foreign:
        print_status(
            f"{root}: no entries of the cache, never touched: {_first_names(sorted(foreign))}"
        )


def _first_names(names: list[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _is_unfinished(path: Path) -> bool:
    return path.name.startswith(".")


def _name(path: Path) -> str:
    return path.name.removeprefix(".").removesuffix(".building")


def _row(path: Path, state: str = "") -> list[str]:
    """Cells of the row of an entry: name, arrays, size and state."""
    files = [] if path.is_symlink() else list(path.glob("*.np[yz]"))
    size = writing.format_bytes(sum(file.lstat().st_size for file in files))
    if _is_unfinished(path):
        return [_name(path), "", size, f"unfinished: {len(files)} shards"]
    return [path.name, ", ".join(sorted(file.stem for file in files)), size, state]


def _print_entries(rows: list[list[str]]) -> None:
    title = str(store.default_store().root)
    print_table(("entry", "arrays", "size", "state"), rows, title, right=("size",))
