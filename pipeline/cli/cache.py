"""What `heatlift cache` does: list, verify and remove entries."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import StorageError, UsageError
from pipeline.files import entries, store, writing


def ls() -> None:
    """Print what the cache holds."""
    _print([_row(path) for path in _entries()])


def verify() -> None:
    """Check every byte of every finished entry and print the outcome.

    Raises:
        StorageError: If an entry is damaged; it is rebuilt when it is next needed.
    """
    paths = _entries()
    reasons = {path: "" if _unfinished(path) else entries.describe_damage(path) for path in paths}
    _print([_row(path, reasons[path] or "whole") for path in paths])
    damaged = [path.name for path, reason in reasons.items() if reason]
    if damaged:
        raise StorageError(
            f"{store.default_store().root}: damaged entries: {', '.join(damaged)}; "
            f"each is rebuilt when next needed, or remove it with heatlift cache rm"
        )


def rm(name: str) -> None:
    """Remove an entry from the cache, finished or not.

    Args:
        name: As `heatlift cache ls` calls it; `all` for every one.

    Raises:
        UsageError: If there is no such entry.
    """
    cache = store.default_store()
    present = sorted({_name(path) for path in _entries()})
    if name != "all" and name not in present:
        raise UsageError(
            f"{cache.root}: no entry {name}; it holds {', '.join(present) or 'nothing'}"
        )
    for chosen in present if name == "all" else [name]:
        with cache.lock(chosen):
            writing.remove_path(cache.root / chosen)
            writing.remove_path(cache.root / f".{chosen}.building")
            cache.remove_leftovers(chosen)


def _entries() -> list[Path]:
    """Finished and unfinished entries."""
    root = store.default_store().root
    return sorted([*root.glob("[!.]*"), *root.glob(".*.building")], key=_name)


def _unfinished(path: Path) -> bool:
    return path.name.startswith(".")


def _name(path: Path) -> str:
    return path.name.removeprefix(".").removesuffix(".building")


def _row(path: Path, state: str = "") -> list[str]:
    files = [] if path.is_symlink() else list(path.glob("*.np[yz]"))
    size = store.format_bytes(sum(file.lstat().st_size for file in files))
    if _unfinished(path):
        return [_name(path), "", size, f"unfinished: {len(files)} shards"]
    return [path.name, ", ".join(sorted(file.stem for file in files)), size, state]


def _print(rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("entry", "arrays", "size", "state", title=f"{store.default_store().root}")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
