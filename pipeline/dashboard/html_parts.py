"""Parts of HTML pages: text, tables, charts, and the page around them."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pipeline.dashboard import canvas
from pipeline.errors import printable
from pipeline.files import writing

Points = list[tuple[float, float]]
"""Pairs of (step, value), sorted by step."""

LINE_COLOURS = 6
"""Number of colours of lines that are neither `train` nor `val`."""

_WIDTH, _HEIGHT = 420, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 24


def svg_chart(title: str, lines: Mapping[str, Points]) -> str:
    """One chart as an HTML figure, drawn as SVG.

    Args:
        title: Title of the chart, with the unit of the values.
        lines: Name of each line -> its points. `train` and `val` have colours of their own, all
            others get the next colour of the page.
    """
    colours = {name: name for name in ("train", "val")}
    others = (name for name in lines if name not in colours)
    colours |= {name: f"line{number % LINE_COLOURS}" for number, name in enumerate(others)}
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
        parts.append(f'<path class="line {colours[split]}" d="M{path}"/>')
        x, y = to_svg(*points[-1])
        parts.append(f'<circle class="{colours[split]}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
        last = format_number(points[-1][1])
        legend += f' <span class="{colours[split]}">{escape(split)} {last}</span>'
    return (
        f"<figure><figcaption><b>{escape(title)}</b>{legend}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
        f' aria-label="{escape(title)} over steps">'
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


def escape(text: object) -> str:
    """Text for HTML, without control characters."""
    return html.escape(printable(text, keep="\n\t"))


def format_number(value: float) -> str:
    """A number with about four digits."""
    return f"{value:.2f}" if 10 <= abs(value) < 1e5 else f"{value:.4g}"


_WORDS = {
    "lr": "learning rate",
    "grad_norm": "norm of the gradient",
    "samples_per_s": "training samples",
    "cpu_s": "processor time",
    "of_mean_pose": "share of the error of the mean pose",
}
"""Names of metrics that are not plain words."""


def plain_name(name: str, unit: str = "") -> str:
    """The name of a metric, a column or a joint in words; its unit stands behind a comma.

    >>> plain_name("p_mpjpe_mm"), plain_name("right_hip"), plain_name("lr")
    ('P-MPJPE, mm', 'right hip', 'learning rate')

    Args:
        name: The name.
        unit: Unit of the values, if the name does not end with it; - for none.
    """
    if name.endswith("_mm"):
        name, unit = name.removesuffix("_mm"), "mm"
    words = _WORDS.get(name, name).replace("n_mpjpe", "N-MPJPE").replace("p_mpjpe", "P-MPJPE")
    words = re.sub(r"mpj[pv]e|auc|pckh?(?=@|_|\d|\b)", lambda found: found[0].upper(), words)
    return words.replace("_", " ") + (f", {unit}" if unit not in ("", "-") else "")


def section(title: str, content: str) -> str:
    """A part of a page with a title; nothing if it is empty."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def table(
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
    return f'<div class="wide"><table>{row(map(escape, head), "th")}{body}</table></div>'


def _css_colour(colour: canvas.Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


_LINES = (canvas.LEFT, canvas.RIGHT, (64, 145, 90), (160, 90, 170), (190, 140, 30), (90, 100, 115))


def _line_styles() -> str:
    """Style of the lines that are neither `train` nor `val`."""
    rules = []
    for number, colour in enumerate(_LINES):
        name, text = f"line{number}", _css_colour(colour)
        rules.append(f".line.{name} {{ stroke: {text}; }} circle.{name} {{ fill: {text}; }}")
        rules.append(f"span.{name} {{ color: {text}; font-weight: 600; }}")
    return "\n".join(rules)


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
.headline {{ display: grid; gap: .8rem; margin-bottom: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); }}
.headline div {{ background: var(--card); border-radius: .5rem; padding: .5rem .9rem; }}
.headline b {{ font-size: 1.35rem; }}
.lead {{ font-size: 1.15rem; margin: 0 0 1rem; }}
details {{ margin-top: 1.4rem; }} summary {{ cursor: pointer; font-weight: 600; }}
@media (max-width: 520px) {{ body {{ margin: 1rem auto; }} dl {{ grid-template-columns: 1fr; }}
  .charts {{ grid-template-columns: 1fr; }} .strip {{ display: block; overflow-x: auto; }}
  .strip img {{ max-width: none; width: 900px; }} th, td {{ padding-right: .6rem; }} }}
.wide {{ overflow-x: auto; }} .wide + .wide {{ margin-top: 1.4rem; }}
table {{ border-collapse: collapse; font-size: .9rem; }}
th, td {{ text-align: left; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid var(--line); }}
.n {{ text-align: right; font-variant-numeric: tabular-nums; }}
.charts {{ display: grid;
  grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 1.2rem; }}
figure {{ margin: 0; min-width: 0; }} svg {{ width: 100%; height: auto; }}
svg text {{ font-size: 11px; fill: var(--soft); }} .grid {{ stroke: var(--line); }}
.line {{ fill: none; stroke-width: 1.8; stroke-linejoin: round; }}
.line.train {{ stroke: var(--train); }} .line.val {{ stroke: var(--val); }}
circle.train {{ fill: var(--train); }} circle.val {{ fill: var(--val); }}
{_line_styles()}
span.train {{ color: var(--train); }} span.val {{ color: var(--val); }}
.images {{ display: grid; gap: 1.6rem; }}
img, video {{ max-width: 100%; height: auto; border: 1px solid var(--line); border-radius: .4rem;
  background: #fff; }}
.cards {{ display: grid;
  grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 1.2rem; }}
.card {{ color: inherit; text-decoration: none; border: 1px solid var(--line); border-radius: .7rem;
  padding: 1rem; }} .card h2 {{ margin-top: 0; }}
"""


def write_page(path: Path, title: str, body: Iterable[str]) -> None:
    """Write a page that needs no file but the images and videos that its body names.

    Args:
        path: Path of the page.
        title: Title of the page.
        body: Parts of the page, HTML.

    Raises:
        StorageError: If the page cannot be written.
    """
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} · Heatlift</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )
    with writing.atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
