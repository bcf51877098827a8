"""A run folder as one index.html: facts, numbers, learning curves, images, videos and tables."""

from __future__ import annotations

import csv
import datetime
import html
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipeline.dashboard import canvas
from pipeline.dashboard.catalog import Metric
from pipeline.errors import printable
from pipeline.files import writing
from pipeline.training import metrics_file

Points = list[tuple[float, float]]
"""Pairs of (step, value), sorted by step."""

_MEDIA_NAME = re.compile(r"(?P<name>.+)-(?P<step>\d{6,})\.(png|webm)")
_MAX_ROWS = 60
_WIDTH, _HEIGHT = 420, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 24


def write_index(folder: Path, metrics: Sequence[Metric]) -> Path:
    """Write `index.html` into a run folder: one page that needs no file outside the folder.

    Args:
        folder: Run folder with `run.json`, `metrics.csv`, `images/`, `tables/`; any may be missing.
        metrics: Units and meanings of the metrics.

    Returns:
        Path of the page.

    Raises:
        StorageError: If the page cannot be written.
    """
    known = {metric.name: metric for metric in metrics}
    series = read_series(folder)
    state = read_json_or_empty(folder / "run.json")
    body = [
        f"<h1>{_escape(_title(folder))}</h1>",
        _facts_html(state),
        _section_html("Metrics", _numbers_html(series, known)),
        _section_html("Learning curves", _curves_html(series, known)),
        _section_html("Images", _media_section_html(folder, ".png")),
        _section_html("Videos", _media_section_html(folder, ".webm")),
        _section_html("Tables", _tables_html(folder)),
        _section_html("Files", _files_html(folder)),
    ]
    path = folder / "index.html"
    _write_page(path, _title(folder), body)
    return path


def write_chain_index(folders: Sequence[Path], out: Path, metrics: Sequence[Metric]) -> Path:
    """Write one page with links to the runs of a chain, in the given order.

    Args:
        folders: Run folders, each with its own `index.html`.
        out: Path of the page.
        metrics: Units and meanings of the metrics.

    Returns:
        Path of the page, `out`.
    """
    known = {metric.name: metric for metric in metrics}
    cards = []
    for folder in folders:
        link = quote(Path(os.path.relpath(folder, out.parent)).as_posix())
        series = read_series(folder)
        images = [newest for _, (newest, *_) in _versions_by_name(folder, ".png")]
        image = (
            f'<img src="{link}/images/{quote(images[0].name)}" alt="" loading="lazy">'
            if images
            else ""
        )
        cards.append(
            f'<a class="card" href="{link}/index.html"><h2>{_escape(_title(folder))}</h2>'
            f"{_headline_html(series, known)}{image}</a>"
        )
    body = [
        "<h1>Heatlift: from images to motion</h1>",
        f'<div class="cards">{"".join(cards)}</div>',
    ]
    _write_page(out, "Heatlift", body)
    return out


# ---- content of a run folder --------------------------------------------------------------------


def read_json_or_empty(path: Path) -> dict[str, Any]:
    """A JSON object from a file; an empty one if the file is missing or invalid."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_series(folder: Path) -> dict[str, Points]:
    """The finite values of a run's `metrics.csv` by metric name; empty if there is no file."""
    series: dict[str, dict[float, float]] = {}
    path = folder / "metrics.csv"
    for step, name, value in metrics_file.read_metrics(path) if path.is_file() else ():
        if math.isfinite(value):
            series.setdefault(name, {})[step] = value
    return {name: sorted(points.items()) for name, points in series.items()}


def _to_float(text: object, default: float) -> float:
    try:
        return float(str(text))
    except ValueError:
        return default


def _versions_by_name(folder: Path, suffix: str) -> Iterator[tuple[str, list[Path]]]:
    """Images or videos by name, the newest step of each first."""
    found: dict[str, list[tuple[int, Path]]] = {}
    for path in (folder / "images").glob(f"*{suffix}"):
        match = _MEDIA_NAME.fullmatch(path.name)
        if match and not path.name.startswith("."):
            found.setdefault(match["name"], []).append((int(match["step"]), path))
    for name, steps in sorted(found.items()):
        yield name, [path for _, path in sorted(steps, reverse=True)]


def _title(folder: Path) -> str:
    folder = folder.absolute()
    return f"{folder.parent.name}/{folder.name}"


# ---- sections -----------------------------------------------------------------------------------


def _facts_html(state: Mapping[str, Any]) -> str:
    """The content of run.json: plain values as a list, nested ones folded."""
    plain, nested = [], []
    for key, value in state.items():
        if isinstance(value, (Mapping, list)) and value:
            text = json.dumps(value, indent=1, ensure_ascii=False, default=str)
            nested.append(
                f"<details><summary>{_escape(key)}</summary><pre>{_escape(text)}</pre></details>"
            )
        else:
            if key == "finished" and isinstance(value, float):
                value = f"{datetime.datetime.fromtimestamp(value, datetime.UTC):%Y-%m-%d %H:%M} UTC"
            plain.append(f"<dt>{_escape(key.replace('_', ' '))}</dt><dd>{_escape(value)}</dd>")
    return (f"<dl>{''.join(plain)}</dl>" if plain else "") + "".join(nested)


def _headline_numbers(series: Mapping[str, Points]) -> list[tuple[str, float]]:
    """Name and last value of the main metrics: of test, else of validation, else of training."""
    order = ("mpjpe_mm", "p_mpjpe_mm", "mpjve_mm", "pck_0.1", "of_mean_pose", "loss")
    for split in ("test", "val", "train"):
        names = [f"{split}/{name}" for name in order if f"{split}/{name}" in series]
        if names:
            return [(name, series[name][-1][1]) for name in names[:4]]
    return []


def _headline_html(series: Mapping[str, Points], known: Mapping[str, Metric]) -> str:
    cards = [
        f"<div><b>{_format_number(value)}</b> {_escape(_unit(name, known))}"
        f"<br><small>{_escape(name)}</small></div>"
        for name, value in _headline_numbers(series)
    ]
    return f'<div class="headline">{"".join(cards)}</div>'


def _numbers_html(series: Mapping[str, Points], known: Mapping[str, Metric]) -> str:
    if not series:
        return ""
    order = {name: i for i, name in enumerate(known)}
    rows = []
    for name in sorted(series, key=lambda name: (order.get(name, len(order)), name)):
        metric = known.get(name)
        values = [value for _, value in series[name]]
        best = {"min": min, "max": max}.get(metric.goal or "") if metric else None
        rows.append(
            [
                _escape(name),
                _format_number(values[-1]),
                _format_number(best(values)) if best else "",
                _escape(_unit(name, known)),
                _escape(metric.meaning if metric else ""),
            ]
        )
    table = _table_html(["metric", "last", "best", "unit", "meaning"], rows, numeric=(1, 2))
    return _headline_html(series, known) + table


def _curves_html(series: Mapping[str, Points], known: Mapping[str, Metric]) -> str:
    """One chart per quantity with two or more points; those with validation values first.

    Drawn as SVG here and not by matplotlib, because the page is rewritten after each validation:
    32 charts take 4 ms this way and 1.2 s as SVG of matplotlib, and their colours follow the
    light or dark theme of the browser.
    """
    quantities: dict[str, dict[str, Points]] = {}
    for name, points in series.items():
        split, _, quantity = name.partition("/")
        if split in ("train", "val") and quantity:
            quantities.setdefault(quantity, {})[split] = points
    order = list(dict.fromkeys(name.partition("/")[2] for name in known))

    def rank(quantity: str) -> tuple[bool, int, str]:
        position = order.index(quantity) if quantity in order else len(order)
        return "val" not in quantities[quantity], position, quantity

    charts = []
    for quantity in sorted(quantities, key=rank):
        lines = {split: p for split, p in quantities[quantity].items() if len(p) > 1}
        if lines:
            unit = _unit(f"{next(iter(lines))}/{quantity}", known)
            charts.append(_svg_chart(quantity, unit, lines))
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def _svg_chart(title: str, unit: str, lines: Mapping[str, Points]) -> str:
    """One chart with a line per split, as an HTML figure."""
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points]
    x_ticks, y_ticks = _round_ticks(min(xs), max(xs)), _round_ticks(min(ys), max(ys))
    x0, x1 = min(xs), max(max(xs), min(xs) + 1e-12)
    y0, y1 = min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys), y_ticks[0] + 1e-12)
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def to_svg(x: float, y: float) -> tuple[float, float]:
        return _LEFT + (x - x0) / (x1 - x0) * width, _TOP + (y1 - y) / (y1 - y0) * height

    parts = []
    for tick in y_ticks:
        y = to_svg(x0, tick)[1]
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in x_ticks:
        if x0 <= tick <= x1:
            x = to_svg(tick, y0)[0]
            parts.append(
                f'<text x="{x:.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{tick:g}</text>'
            )
    legend = ""
    for split, points in lines.items():
        path = "L".join("{:.1f} {:.1f}".format(*to_svg(x, y)) for x, y in _subsample(points))
        parts.append(f'<path class="line {_escape(split)}" d="M{path}"/>')
        x, y = to_svg(*points[-1])
        parts.append(f'<circle class="{_escape(split)}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
        last = _format_number(points[-1][1])
        legend += f' <span class="{_escape(split)}">{_escape(split)} {last}</span>'
    label = f"{title} ({unit})" if unit not in ("", "-") else title
    return (
        f"<figure><figcaption><b>{_escape(label)}</b>{legend}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
        f' aria-label="{_escape(label)} over steps">'
        f"{''.join(parts)}</svg></figure>"
    )


def _subsample(points: Points) -> Points:
    """At most about 600 points, evenly spaced, including the last one."""
    every = max(1, len(points) // 600)
    return points[: len(points) - 1 : every] + points[-1:]


def _round_ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that cover a range."""
    span = high - low if high > low else abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if span / (power * m) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def _media_section_html(folder: Path, suffix: str) -> str:
    """The newest image or video of each name with its caption; older steps as links."""
    captions = read_json_or_empty(folder / "images" / "captions.json")
    figures = []
    for name, (newest, *older) in _versions_by_name(folder, suffix):
        earlier = ""
        if older:
            links = "".join(f"<li>{_link_html(path)}</li>" for path in older)
            earlier = (
                f"<details><summary>earlier ({len(older)})</summary><ul>{links}</ul></details>"
            )
        caption = str(captions.get(newest.name, ""))
        figures.append(
            f"<figure>{_media_html(newest)}<figcaption><b>{_escape(name)}</b> "
            f"{_escape(caption)}{earlier}</figcaption></figure>"
        )
    return f'<div class="images">{"".join(figures)}</div>' if figures else ""


def _media_html(path: Path) -> str:
    source = f"images/{quote(path.name)}"
    if path.suffix == ".webm":
        return f'<video src="{source}" controls loop muted playsinline preload="metadata"></video>'
    return f'<a href="{source}"><img src="{source}" alt="{_escape(path.stem)}" loading="lazy"></a>'


def _link_html(path: Path) -> str:
    return f'<a href="images/{quote(path.name)}">{_escape(path.name)}</a>'


def _tables_html(folder: Path) -> str:
    parts = []
    for path in sorted((folder / "tables").glob("[!.]*.csv")):
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            head, *rows = list(csv.reader(file)) or [[]]
        numeric = [
            i
            for i in range(len(head))
            if rows and all(len(row) > i and _is_number(row[i]) for row in rows)
        ]
        cells = [[_escape(cell) for cell in row] for row in rows[:_MAX_ROWS]]
        more = "" if len(rows) <= _MAX_ROWS else f" (the first {_MAX_ROWS} of {len(rows)} rows)"
        parts.append(
            f'<h3><a href="tables/{quote(path.name)}">{_escape(path.stem)}</a>{more}</h3>'
            + _table_html(head, cells, numeric=numeric)
        )
    return "".join(parts)


def _is_number(text: str) -> bool:
    return text == "" or not math.isnan(_to_float(text, math.nan))


def _files_html(folder: Path) -> str:
    """Links to the other files of the run folder: settings, logs, checkpoints."""
    rows = []
    for path in sorted((*folder.glob("[!.]*"), *folder.glob("checkpoints/[!.]*"))):
        if path.is_file() and path.name != "index.html":
            name = path.relative_to(folder).as_posix()
            megabytes = path.stat().st_size / 1e6
            rows.append(
                [f'<a href="{quote(os.fsencode(name))}">{_escape(name)}</a>', f"{megabytes:.2f}"]
            )
    return _table_html(["file", "MB"], rows, numeric=(1,)) if rows else ""


# ---- HTML ---------------------------------------------------------------------------------------


def _escape(text: object) -> str:
    return html.escape(printable(text, keep="\n\t"))


def _format_number(value: float) -> str:
    return f"{value:.2f}" if 10 <= abs(value) < 1e5 else f"{value:.4g}"


def _unit(name: str, known: Mapping[str, Metric]) -> str:
    unit = known[name].unit if name in known else ""
    return "" if unit == "-" else unit


def _section_html(title: str, content: str) -> str:
    return f"<section><h2>{_escape(title)}</h2>{content}</section>" if content else ""


def _table_html(
    head: Iterable[str], rows: Iterable[Sequence[str]], *, numeric: Sequence[int] = ()
) -> str:
    """A table; cells of `rows` are HTML, those of `head` plain text."""

    def row(cells: Iterable[str], tag: str) -> str:
        columns = []
        for i, cell in enumerate(cells):
            right_aligned = ' class="n"' if i in numeric else ""
            columns.append(f"<{tag}{right_aligned}>{cell}</{tag}>")
        return f"<tr>{''.join(columns)}</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return f'<div class="wide"><table>{row(map(_escape, head), "th")}{body}</table></div>'


def _css_colour(colour: canvas.Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


_STYLE = f"""
:root {{ color-scheme: light dark; --ink: #222730; --soft: #6a7280; --line: #e4e7ec;
  --card: #f6f7f9; --paper: #fff;
  --train: {_css_colour(canvas.LEFT)}; --val: {_css_colour(canvas.RIGHT)}; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e6e9ef; --soft: #9aa3b2; --line: #343b47;
  --card: #20252e; --paper: #171b22; --val: #62a5f5; }} }}
body {{ font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.6rem; margin: 0 0 1rem; }} h2 {{ font-size: 1.15rem; margin: 2.2rem 0 .6rem; }}
h3 {{ font-size: 1rem; margin: 1.2rem 0 .3rem; }} small, figcaption, dt {{ color: var(--soft); }}
figcaption b {{ color: var(--ink); }} a {{ color: var(--val); }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 0 0 .6rem; }}
dd {{ margin: 0; overflow-wrap: anywhere; }}
pre {{ overflow: auto; background: var(--card); padding: .6rem; }}
.headline {{ display: flex; flex-wrap: wrap; gap: .8rem; margin-bottom: 1rem; }}
.headline div {{ background: var(--card); border-radius: .5rem; padding: .5rem .9rem; }}
.headline b {{ font-size: 1.35rem; }}
.wide {{ overflow-x: auto; }} table {{ border-collapse: collapse; font-size: .9rem; }}
th, td {{ text-align: left; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid var(--line); }}
.n {{ text-align: right; font-variant-numeric: tabular-nums; }}
.charts {{ display: grid;
  grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 1.2rem; }}
figure {{ margin: 0; }} svg {{ width: 100%; height: auto; }}
svg text {{ font-size: 11px; fill: var(--soft); }} .grid {{ stroke: var(--line); }}
.line {{ fill: none; stroke-width: 1.8; stroke-linejoin: round; }}
.line.train {{ stroke: var(--train); }} .line.val {{ stroke: var(--val); }}
circle.train {{ fill: var(--train); }} circle.val {{ fill: var(--val); }}
span.train {{ color: var(--train); }} span.val {{ color: var(--val); }}
.images {{ display: grid; gap: 1.6rem; }}
img, video {{ max-width: 100%; height: auto; border: 1px solid var(--line); border-radius: .4rem;
  background: #fff; }}
.cards {{ display: grid;
  grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 1.2rem; }}
.card {{ color: inherit; text-decoration: none; border: 1px solid var(--line); border-radius: .7rem;
  padding: 1rem; }} .card h2 {{ margin-top: 0; }}
"""


def _write_page(path: Path, title: str, body: Iterable[str]) -> None:
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_escape(title)} · Heatlift</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )
    with writing.atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
