"""A run folder as one index.html: facts, numbers, learning curves, images, videos and tables."""

from __future__ import annotations

import csv
import datetime
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
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
from pipeline.training.metrics_rows import read_metrics

_MEDIA_NAME = re.compile(r"(?P<name>.+)-(?P<step>\d{6,})\.(png|webm)")
_MAX_ROWS = 60


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
        f"<h1>{escape(_title(folder))}</h1>",
        f'<p class="lead">{escape(headline(series, state))}</p>',
        _headline_html(series, known),
        section("Videos", _media_section_html(folder, ".webm")),
        section("Images", _media_section_html(folder, ".png")),
        section("Tables", _tables_html(folder)),
        section("Learning curves, over steps of the optimizer", _curves_html(series, known)),
        _folded("All metrics", _numbers_html(series, known)),
        _folded("Settings and digests", _facts_html(state)),
        _folded("Files", _files_html(folder)),
    ]
    path = folder / "index.html"
    write_page(path, _title(folder), body)
    return path


def write_chain_index(
    folders: Sequence[Path],
    out: Path,
    metrics: Sequence[Metric],
    *,
    titles: Sequence[str] = (),
    rows: Sequence[Sequence[str]] = (),
    image: Path | None = None,
    details: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]] = (),
) -> Path:
    """Write one page that tells what the runs of a chain have reached, in the given order.

    Args:
        folders: Run folders, each with its own `index.html`.
        out: Path of the page.
        metrics: Units and meanings of the metrics.
        titles: What each run is, in words; its name without them.
        rows: Table at the end: metric, value and remark.
        image: PNG image in the folder of the page, of one clip through all stages; or none.
        details: More tables after it, each with a title, the names of its columns, and its rows;
            all columns but the first are numbers.

    Returns:
        Path of the page, `out`.
    """
    known = {metric.name: metric for metric in metrics}
    steps = []
    for number, folder in enumerate(folders):
        link = quote(Path(os.path.relpath(folder, out.parent)).as_posix())
        series, state = read_series(folder), read_json_or_empty(folder / "run.json")
        title = titles[number] if titles else _title(folder)
        main = _main_image(folder)
        shown = kind = ""
        if main:
            kind = ' class="strip"' if _is_strip(main) else ""
            shown = f'<img src="{link}/images/{quote(main.name)}" alt="" loading="lazy"><br>'
        steps.append(
            f"<section><h2>{number + 1}. {escape(title)}</h2>"
            f'<p class="lead">{escape(headline(series, state))}</p>'
            f"{_headline_html(series, known)}"
            f'<a{kind} href="{link}/index.html">{shown}all of {escape(_title(folder))}'
            "</a></section>"
        )
    cells = [[escape(cell) for cell in row] for row in rows]
    body = ["<h1>Heatlift: from images to motion</h1>"]
    if image:
        body.append(
            '<p class="lead">One clip of a person whom no stage has seen in training: from the '
            "image to heatmaps, from heatmaps to 2D joints, from 2D joints to 3D.</p>"
            f'<a class="strip" href="{quote(image.name)}"><img src="{quote(image.name)}" '
            'alt="image, heatmaps, 2D joints and 3D joints of one clip"></a>'
        )
    body += steps
    if rows:
        body.append(section("In short", table(["metric", "value", "remark"], cells, numeric=(1,))))
    for title, columns, detail in details:
        cells = [[escape(cell) for cell in row] for row in detail]
        body.append(section(title, table(columns, cells, numeric=range(1, len(columns)))))
    write_page(out, "Heatlift", body)
    return out


_MAIN_IMAGES = ("test-heatmaps", "test-recovered", "test-poses")
"""Images that show best what a run does: of a 2D stage, of pretraining, of a lifter."""


def _main_image(folder: Path) -> Path | None:
    """The image that shows best what a run does, else its first one."""
    images = {name: newest for name, (newest, *_) in _versions_by_name(folder, ".png")}
    return next((images[n] for n in _MAIN_IMAGES if n in images), next(iter(images.values()), None))


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
    for step, name, value in read_metrics(path) if path.is_file() else ():
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
                f"<details><summary>{escape(key)}</summary><pre>{escape(text)}</pre></details>"
            )
        else:
            if key == "finished" and isinstance(value, float):
                value = f"{datetime.datetime.fromtimestamp(value, datetime.UTC):%Y-%m-%d %H:%M} UTC"
            plain.append(f"<dt>{escape(key.replace('_', ' '))}</dt><dd>{escape(value)}</dd>")
    return (f"<dl>{''.join(plain)}</dl>" if plain else "") + "".join(nested)


PLAIN_NAMES = {
    "mpjpe_mm": "mean error of a joint (MPJPE)",
    "p_mpjpe_mm": "the same after alignment (P-MPJPE)",
    "mpjve_mm": "error of velocities per frame (MPJVE)",
    "pck_0.1": "joints within 0.1 of the person's box (PCK@0.1)",
    "of_mean_pose": "of the error of the mean pose",
    "loss": "loss",
}
"""Main metrics, without their split, and what they are in words; in the order of a page."""

SPLITS = {"test": "test split", "val": "validation split", "train": "training batches"}
"""Splits in words."""


def headline(series: Mapping[str, Points], state: Mapping[str, Any]) -> str:
    """What a run has reached, in one sentence, beside its baseline.

    Args:
        series: Metric -> its values; see `read_series`.
        state: Content of run.json.
    """
    split = next((s for s in SPLITS if any(name.startswith(f"{s}/") for name in series)), None)
    if split is None:
        return "Nothing has been measured yet."
    last = {
        name.partition("/")[2]: p[-1][1] for name, p in series.items() if name.startswith(split)
    }
    step = max(points[-1][0] for points in series.values())
    until = "" if state.get("state") == "finished" else f" Not finished: step {step:.0f} so far."
    where = f"on the {SPLITS[split]}"
    if "mpjpe_mm" in last:
        error, share = last["mpjpe_mm"], last.get("of_mean_pose")
        text = f"A predicted joint is {error:.1f} mm from its true place {where}, on average"
        if share:
            text += (
                f". That is {100 * share:.0f} % of the error of always guessing the mean pose "
                f"({error / share:.1f} mm)"
            )
    elif "pck_0.1" in last:
        text = (
            f"{100 * last['pck_0.1']:.1f} % of the joints are found {where}: closer than a tenth "
            "of the person's box"
        )
    elif "loss" in last:
        text = f"The loss is {last['loss']:.4g} {where}"
    else:
        text = f"There are {len(last)} metrics {where}"
    return f"{text}.{until}"


def _headline_numbers(series: Mapping[str, Points]) -> list[tuple[str, float]]:
    """Name and last value of the main metrics: of test, else of validation, else of training."""
    for split in SPLITS:
        names = [f"{split}/{name}" for name in PLAIN_NAMES if f"{split}/{name}" in series]
        if names:
            return [(name, series[name][-1][1]) for name in names[:5]]
    return []


def _headline_html(series: Mapping[str, Points], known: Mapping[str, Metric]) -> str:
    cards = []
    for name, value in _headline_numbers(series):
        split, _, quantity = name.partition("/")
        number = with_unit(value, known[name].unit if name in known else "")
        cards.append(
            f"<div><b>{escape(number)}</b><br><small>{escape(PLAIN_NAMES[quantity])}, "
            f"{escape(SPLITS[split])}</small></div>"
        )
    return f'<div class="headline">{"".join(cards)}</div>' if cards else ""


def with_unit(value: float, unit: str) -> str:
    """A number with its unit; shares in percent.

    >>> with_unit(0.9162, "share"), with_unit(37.412, "mm"), with_unit(2.5, "-")
    ('91.6 %', '37.41 mm', '2.5')
    """
    if unit == "share":
        return f"{100 * value:.1f} %"
    return format_number(value) if unit in ("", "-") else f"{format_number(value)} {unit}"


def _folded(title: str, content: str) -> str:
    """A part of a page that is folded; nothing if it is empty."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>" if content else ""


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
                escape(name),
                format_number(values[-1]),
                format_number(best(values)) if best else "",
                escape(_unit(name, known)),
                escape(metric.meaning if metric else ""),
            ]
        )
    return table(["metric", "last", "best", "unit", "meaning"], rows, numeric=(1, 2))


def _curves_html(series: Mapping[str, Points], known: Mapping[str, Metric]) -> str:
    """One chart per quantity with two or more points; those with validation values first.

    Drawn as SVG here and not by matplotlib, because the page is rewritten after each validation:
    32 charts take 4 ms this way and 1.2 s as SVG of matplotlib, and their colours follow the
    light or dark theme of the browser.
    """
    quantities: dict[str, dict[str, Points]] = {}
    for name, points in series.items():
        split, _, quantity = name.partition("/")
        if split in ("train", "val") and quantity and "action_mean" not in quantity:
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
            charts.append(svg_chart(plain_name(quantity, unit), lines))
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def shown_name(name: str) -> str:
    """The name of an image, video or table in words, with its split behind it.

    >>> shown_name("test-per_action"), shown_name("predict-poses_1"), shown_name("weights")
    ('per action, test split', 'poses 1, predict', 'weights')
    """
    split, dash, rest = name.partition("-")
    return f"{plain_name(rest)}, {SPLITS.get(split, split)}" if dash else plain_name(name)


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
            f"<figure>{_media_html(newest)}<figcaption><b>{escape(shown_name(name))}</b> "
            f"{escape(caption)}{earlier}</figcaption></figure>"
        )
    return f'<div class="images">{"".join(figures)}</div>' if figures else ""


def _media_html(path: Path) -> str:
    source = f"images/{quote(path.name)}"
    if path.suffix == ".webm":
        return f'<video src="{source}" controls loop muted playsinline preload="metadata"></video>'
    strip = ' class="strip"' if _is_strip(path) else ""
    image = f'<img src="{source}" alt="{escape(path.stem)}" loading="lazy">'
    return f'<a{strip} href="{source}">{image}</a>'


def _is_strip(path: Path) -> bool:
    """Whether a PNG image is so wide that a phone shows it in part, and lets it be moved."""
    with path.open("rb") as file:
        start = file.read(24)
    width, height = (int.from_bytes(start[i : i + 4], "big") for i in (16, 20))
    return width > 2.5 * height > 0


def _link_html(path: Path) -> str:
    return f'<a href="images/{quote(path.name)}">{escape(path.name)}</a>'


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
        cells = [[escape(_plain_cell(cell)) for cell in row] for row in rows[:_MAX_ROWS]]
        more = "" if len(rows) <= _MAX_ROWS else f" (the first {_MAX_ROWS} of {len(rows)} rows)"
        parts.append(
            f'<h3><a href="tables/{quote(path.name)}">{escape(shown_name(path.stem))}</a>{more}'
            "</h3>" + table(map(plain_name, head), cells, numeric=numeric)
        )
    return "".join(parts)


def _plain_cell(text: str) -> str:
    """A cell of a table for people: few decimals, words without underscores.

    >>> _plain_cell("359.9772"), _plain_cell("200"), _plain_cell("left_hip"), _plain_cell("0.0")
    ('359.98', '200', 'left hip', '0')
    """
    value = _to_float(text, math.nan)
    if math.isfinite(value) and "." in text:
        return format_number(value)
    return text.replace("_", " ") if text[:1].isalpha() else text


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
                [f'<a href="{quote(os.fsencode(name))}">{escape(name)}</a>', f"{megabytes:.2f}"]
            )
    return table(["file", "MB"], rows, numeric=(1,)) if rows else ""


def _unit(name: str, known: Mapping[str, Metric]) -> str:
    unit = known[name].unit if name in known else ""
    return "" if unit == "-" else unit
