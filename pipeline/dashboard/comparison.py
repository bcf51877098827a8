"""Several runs compared on one page: headline numbers, different settings, curves, tables."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipeline.dashboard.catalog import Metric
from pipeline.dashboard.html_parts import (
    Points,
    escape,
    format_number,
    plain_name,
    section,
    svg_chart,
    table,
    write_page,
)
from pipeline.dashboard.page import (
    PLAIN_NAMES,
    SPLITS,
    read_json_or_empty,
    read_series,
    shown_name,
    with_unit,
)

_DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
"""A SHA-256, of which the page shows the beginning."""

_MOST_CHARTS = 12
"""Largest number of charts on the page."""


def write_comparison(folders: Sequence[Path], out: Path, metrics: Sequence[Metric]) -> Path:
    """Write one page that compares runs.

    Args:
        folders: Run folders, of one stage or several.
        out: Path of the page; it has links to the pages of the runs.
        metrics: Units and meanings of the metrics.

    Returns:
        Path of the page, `out`.

    Raises:
        StorageError: If the page cannot be written.
    """
    known = {metric.name: metric for metric in metrics}
    names = short_names(folders)
    series = dict(zip(names, map(read_series, folders), strict=True))
    states = [read_json_or_empty(folder / "run.json") for folder in folders]
    protocols = [str(state.get("protocol") or "") for state in states]
    same_loss = (
        len({str(state.get("settings", {}).get("model", {}).get("loss")) for state in states}) < 2
    )
    links = [
        f'<a href="{quote(Path(os.path.relpath(folder, out.parent)).as_posix())}/index.html">'
        f"{escape(name)}</a>"
        for folder, name in zip(folders, names, strict=True)
    ]
    body = [
        f"<h1>{len(folders)} runs compared</h1>",
        *_protocols_html(names, protocols),
        _numbers_html(
            series, links, known, comparable=len(set(map(_without_weights, protocols))) < 2
        ),
        section("Different settings", _settings_html(names, states)),
        section(
            "Learning curves, over steps of the optimizer", _curves_html(series, known, same_loss)
        ),
        section("Tables", _tables_html(folders, names)),
    ]
    write_page(out, "Runs compared", body)
    return out


def short_names(folders: Sequence[Path]) -> list[str]:
    """Names of runs: the last parts of their paths, as many as tell them apart."""
    parts = [folder.absolute().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-count:]) for path in parts]
        if len(set(names)) == len(names):
            break
    return names


def _without_weights(protocol: str) -> str:
    """A protocol line without its last part, which names the weights."""
    return protocol.partition("; weights:")[0]


def _protocols_html(names: Sequence[str], protocols: Sequence[str]) -> list[str]:
    """The protocol of all runs in a line; a warning and a line for each where they differ."""
    found = dict.fromkeys(filter(None, map(_without_weights, protocols)))
    if len(found) < 2:
        return [f"<p>Protocol: {escape(protocol)}</p>" for protocol in found]
    rows = [
        [escape(name), escape(protocol)] for name, protocol in zip(names, protocols, strict=True)
    ]
    return [
        "<p><b>The tests of these runs differ, so their numbers are not comparable.</b> Test them "
        "on the same data, with the same 2D and options.</p>",
        table(["run", "protocol of its test"], rows),
    ]


def _numbers_html(
    series: Mapping[str, Mapping[str, Points]],
    links: Sequence[str],
    known: Mapping[str, Metric],
    *,
    comparable: bool,
) -> str:
    """A row for each run: main metrics of the test, else of the validation.

    The best value of each column is bold, if the values are comparable.
    """
    columns = [
        f"{split}/{name}"
        for split in ("test", "val")
        for name in PLAIN_NAMES
        if any(f"{split}/{name}" in points for points in series.values())
    ]
    if any(name.startswith("test/") for name in columns):
        columns = [name for name in columns if name.startswith("test/")]
    best = {}
    for name in columns:
        values = [points[name][-1][1] for points in series.values() if name in points]
        goal = known[name].goal if name in known else None
        has_best = comparable and goal and len(values) > 1
        best[name] = {"min": min, "max": max}[goal](values) if goal and has_best else None
    rows = []
    for link, points in zip(links, series.values(), strict=True):
        cells = [link]
        for name in columns:
            value = points[name][-1][1] if name in points else None
            unit = known[name].unit if name in known else ""
            text = "" if value is None else escape(with_unit(value, unit))
            cells.append(f"<b>{text}</b>" if text and value == best[name] else text)
        rows.append(cells)
    heads = [f"{PLAIN_NAMES[n.partition('/')[2]]}, {SPLITS[n.partition('/')[0]]}" for n in columns]
    return table(["run", *heads], rows, numeric=range(1, len(columns) + 1))


def _settings_html(names: Sequence[str], states: Sequence[Mapping[str, Any]]) -> str:
    """The settings in which the runs differ, a row each."""
    flat = [dict(_flatten(state.get("settings", {}))) for state in states]
    keys = sorted({key for settings in flat for key in settings})
    rows = []
    for key in keys:
        values = [_DIGEST.sub(r"\1…", str(settings.get(key, ""))) for settings in flat]
        if len(set(values)) > 1:
            name = key.replace(".init_args.", ".")
            rows.append([escape(name), *(escape(value) or "-" for value in values)])
    return table(["setting", *names], rows) if rows else ""


def _flatten(settings: Any, key: str = "") -> list[tuple[str, object]]:
    """Nested settings as pairs of a dotted key and a value."""
    if not isinstance(settings, Mapping):
        return [(key, settings)]
    pairs = []
    for name, value in settings.items():
        pairs += _flatten(value, f"{key}.{name}".removeprefix("."))
    return pairs


def _curves_html(
    series: Mapping[str, Mapping[str, Points]], known: Mapping[str, Metric], same_loss: bool
) -> str:
    """A chart for each metric of validation and training that two runs have, with a line each.

    Means over actions are left out: they look like the means over frames. So are losses that are
    not the same function.
    """
    order = [
        name
        for name in known
        if name.startswith(("val/", "train/"))
        and "action_mean" not in name
        and (same_loss or not name.endswith("/loss"))
    ]
    charts = []
    for name in order:
        lines = {run: p[name] for run, p in series.items() if len(p.get(name, ())) > 1}
        if len(lines) > 1:
            split, _, quantity = name.partition("/")
            title = f"{plain_name(quantity, known[name].unit)}, {SPLITS[split]}"
            charts.append(svg_chart(title, lines))
    return f'<div class="charts">{"".join(charts[:_MOST_CHARTS])}</div>' if charts else ""


def _tables_html(folders: Sequence[Path], names: Sequence[str]) -> str:
    """Tables that two runs have: the first column with numbers of each run, side by side."""
    files = sorted({path.name for folder in folders for path in folder.glob("tables/[!.]*.csv")})
    parts = []
    for file in files:
        columns = {}
        title = ""
        for folder, name in zip(folders, names, strict=True):
            if (read := _read_column(folder / "tables" / file)) is not None:
                title, columns[name] = read
        if len(columns) < 2:
            continue
        rows = []
        for key in dict.fromkeys(key for column in columns.values() for key in column):
            values = [column.get(key) for column in columns.values()]
            cells = ["" if value is None else format_number(value) for value in values]
            rows.append([escape(plain_name(key)), *cells])
        heads = [f"{shown_name(Path(file).stem)}: {plain_name(title)}", *columns]
        parts.append(table(heads, rows, numeric=range(1, len(heads))))
    return "".join(parts)


def _read_column(path: Path) -> tuple[str, dict[str, float]] | None:
    """Title and values of the main column of a table by the text in its first column; or None.

    The main column is that of MPJPE, else the first one whose cells are numbers.
    """
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        head, *rows = list(csv.reader(file)) or [[]]
    order = sorted(range(1, len(head)), key=lambda i: "mpjpe" not in head[i].lower())
    for column in order:
        try:
            return head[column], {row[0]: float(row[column]) for row in rows if row[column]}
        except (ValueError, IndexError):
            continue
    return None
