"""Differences between starts of a run: changed settings, data and code, described in one line."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import mask_secrets

UNFINISHED, FINISHED, IN_USE = "unfinished", "finished", "in use"


def mask_values(value: Any) -> Any:
    """Mask keys and passwords in all texts of plain values; see `mask_secrets`."""
    if isinstance(value, Mapping):
        return {key: mask_values(item) for key, item in value.items()}
    if isinstance(value, list):
        return [mask_values(item) for item in value]
    return mask_secrets(value) if isinstance(value, str) else value


def changed_names(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of the entries that differ between two mappings, sorted."""
    missing = object()
    names = before.keys() | now.keys()
    return sorted(name for name in names if before.get(name, missing) != now.get(name, missing))


def describe_skipped(
    skipped: Sequence[tuple[Path, Mapping[str, Any]]],
    folder: Path,
    digest: str,
    settings: Mapping[str, Any],
    test_command: str,
) -> list[str]:
    """Lines about the runs that have the name of a new one, and why none of them is resumed.

    Of finished runs only one is named: the one that finished last, of these settings if possible.

    Args:
        skipped: Folder of each run and the content of its run.json.
        folder: Folder of the new run.
        digest: Digest of the settings of the new run.
        settings: These settings.
        test_command: Command that tests a checkpoint, up to its path.
    """
    lines, finished = [], []
    for other, state in skipped:
        if state.get("state") == FINISHED:
            same = state.get("digest") == digest
            finished.append((same, finish_order(state), other, state))
        elif state.get("state") == IN_USE:
            lines.append(f"heatlift: {other} is in use by another process; this is {folder}")
        elif state:
            changes, what = _describe_changes(state.get("settings", {}), settings)
            again = "; put the old data back to resume it" if what == "data" else ""
            lines.append(
                f"heatlift: {other} is unfinished and had other {what} ({changes}); it is not "
                f"resumed, this is {folder}{again}"
            )
    for same, _, other, state in sorted(finished, key=lambda row: row[:2])[-1:]:
        changes, what = _describe_changes(state.get("settings", {}), settings)
        change = "" if same else f" and had other {what} ({changes})"
        page = f"{other / 'index.html'} has its numbers, and `{test_command} --ckpt_path "
        page += f"{shlex.quote(str(other / state.get('checkpoint', 'CHECKPOINT')))}` prints them"
        lines.append(f"heatlift: {other} is finished{change}: {page}; this is {folder}")
    return lines


def _describe_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, str]:
    """The first changes of settings as text, and whether they are of the data or of settings."""
    old, new = _flatten(before), _flatten(mask_values(json.loads(json.dumps(now, default=str))))
    changed = changed_names(old, new)
    inputs = [key for key in changed if key.startswith("inputs")]
    texts = [
        f"{key.removeprefix('inputs.')}: {shorten_digests(old.get(key, 'absent'))} -> "
        f"{shorten_digests(new.get(key, 'absent'))}"
        for key in [*inputs, *(key for key in changed if key not in inputs)]
    ]
    more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
    others = {key.rpartition(".")[2] for key in changed if key not in inputs} - {"root"}
    return f"{'; '.join(texts[:4])}{more}", "settings" if others else "data"


def shorten_digests(value: object) -> str:
    """A value as text, with 8 digits of each SHA-256 in it."""
    return re.sub(r"\b([0-9a-f]{8})[0-9a-f]{56}\b", r"\1…", str(value))


def _flatten(value: Any, key: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names.

    >>> _flatten({"data": {"batch_size": 8}, "seed": 1})
    {'data.batch_size': 8, 'seed': 1}
    """
    if not isinstance(value, Mapping) or not value:
        return {key: value}
    return {
        name: leaf
        for part, inner in value.items()
        for name, leaf in _flatten(inner, f"{key}.{part}".removeprefix(".")).items()
    }


def finish_order(state: Mapping[str, Any]) -> tuple[int, float]:
    """Key by which finished runs of a stage are in the order in which they finished.

    Runs count up, so that a clock that was put back changes nothing. Runs of older versions have no
    number; they are before all others, in the order of their times.
    """
    return int(state.get("order", 0)), float(state.get("finished", 0.0))


def describe_mixture(states: Mapping[Path, Mapping[str, Any]]) -> list[str]:
    """Lines about compared runs whose data or code differ from those of the newest one.

    Args:
        states: Run folder -> content of its run.json, of finished runs.
    """
    if not states:
        return []
    newest = max(states, key=lambda folder: finish_order(states[folder]))
    lines = []
    for what in ("data", "code"):
        now = _content(states[newest], what)
        differing = {
            folder: changed_names(before, now)
            for folder, state in states.items()
            if now and (before := _content(state, what)) and before != now
        }
        if differing:
            (folder, names), *_ = differing.items()
            lines.append(
                f"heatlift: warning: {len(differing)} of {len(states)} runs had other {what} than "
                f"{newest} (the first is {folder}: {', '.join(names[:3])}); remove their folders "
                "and run the same command again to compare like with like"
            )
    return lines


def _content(state: Mapping[str, Any], what: str) -> Mapping[str, str]:
    """Digests of the data or of the code of a run; empty if they are not known."""
    part = state.get("code") if what == "code" else state.get("settings", {}).get("inputs")
    return part or {}
