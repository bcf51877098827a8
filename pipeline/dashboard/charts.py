"""Bars, curves and matrices as RGB images."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import ArrayLike

from pipeline.dashboard.canvas import CENTRE, FAINT, INK, LEFT, RIGHT, TRUTH, Colour, Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox


SERIES: tuple[Colour, ...] = (
    *(RIGHT, LEFT, (0, 145, 110), (190, 80, 150), CENTRE, (150, 105, 20)),
    *((200, 40, 40), (70, 175, 205), INK),
)


_FEW = 6
"""So many lines of a chart are all unbroken, and have their names inside it."""


def draw_bars(
    names: Sequence[str],
    values: Sequence[float],
    unit: str,
    title: str,
    *,
    mean: float | None = None,
) -> Image:
    """Horizontal bars, one per name, in the order given, with a dashed line at their mean.

    Args:
        names: Of the bars.
        values: Their lengths; what is not finite has none.
        unit: Of the values.
        title: Above the bars.
        mean: Of all that was counted, where the bars do not count alike; else that of the bars.
    """
    figure, axes = _figure(7.0, 1.1 + 0.27 * len(names), title)
    heights = np.asarray(values, np.float64)
    drawn = np.where(np.isfinite(heights), heights, 0)
    rows = np.arange(len(names))
    axes.barh(rows, drawn, height=0.68, color=_unit(RIGHT))
    for row, value in zip(rows, heights, strict=True):
        text = f"{value:.1f}" if np.isfinite(value) else "none"
        axes.annotate(  # right of the chart: no line is there
            text,
            (1, row),
            xycoords=("axes fraction", "data"),
            xytext=(38, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=9,
            color=_unit(INK),
        )
    if mean is None and np.isfinite(heights).any():
        mean = float(np.nanmean(heights))
    if mean is not None and np.isfinite(mean):
        axes.axvline(mean, color=_unit(LEFT), linewidth=1.4, linestyle="--", zorder=0.5)
        axes.set_title(f"mean {mean:.1f}", loc="right", fontsize=9, color=_unit(LEFT))
    axes.set_yticks(rows, [name.replace("_", " ") for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.margins(x=0.02)
    axes.set_xlim(left=min(0.0, float(drawn.min(initial=0.0))))
    axes.set_xlabel(unit)
    axes.grid(visible=False, axis="y")
    return _rendered(figure)


def draw_matrix(names: Sequence[str], values: ArrayLike, title: str) -> Image:
    """A square of numbers as shades, (N, N): row and column i belong to name i."""
    figure, axes = _figure(6.6, 6.0, title)
    shades = axes.imshow(np.asarray(values, np.float64), cmap="magma", vmin=0.0)
    words = [name.replace("_", " ") for name in names]
    axes.set_xticks(range(len(words)), words, rotation=90)
    axes.set_yticks(range(len(words)), words)
    axes.grid(visible=False)
    figure.colorbar(shades, ax=axes, shrink=0.8)
    return _rendered(figure)


def draw_curves(
    series: Mapping[str, tuple[ArrayLike, ArrayLike]], xlabel: str, ylabel: str, title: str
) -> Image:
    """Lines, one per series of (x, y), last value written; values that are not finite are gaps."""
    many = len(series) > _FEW
    figure, axes = _figure(9.0 if many else 7.0, 3.8, title)
    ends: list[tuple[float, float, tuple[float, float, float]]] = []
    for i, (name, (x, y)) in enumerate(series.items()):
        colour, style = _unit(SERIES[i % len(SERIES)]), ("-", "--", ":")[i // _FEW % 3]
        xs, ys = np.asarray(x, np.float64), np.asarray(y, np.float64)
        mark = ("o", "s", "^")[i // _FEW % 3] if len(xs) <= 30 else ""
        axes.plot(xs, ys, style, color=colour, linewidth=1.8, marker=mark, markersize=4, label=name)
        finite = np.flatnonzero(np.isfinite(ys))
        if len(finite):
            ends.append((float(xs[finite[-1]]), float(ys[finite[-1]]), colour))
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.margins(x=0.08)
    _write_ends(axes, ends)
    if many:
        figure.legend(frameon=False, fontsize=9, handlelength=3.5, loc="outside right upper")
    elif len(series) > 1:
        axes.legend(frameon=False, fontsize=9)
    return _rendered(figure)


def _write_ends(
    axes: Axes, ends: Sequence[tuple[float, float, tuple[float, float, float]]]
) -> None:
    """The value right of the end of each line, as near to it as no line crosses it.

    Those at the same x stay in their order and move together.
    """
    figure = cast("Figure", axes.figure)
    figure.draw_without_rendering()  # from here on the axes stand where they are
    point = figure.dpi / 72
    lines = [line.get_path().transformed(line.get_transform()) for line in axes.lines]
    taken: list[Bbox] = []
    for _, group in itertools.groupby(sorted(ends), key=lambda end: end[0]):
        texts, free = [], -np.inf
        for x, y, colour in group:
            foot = axes.transData.transform((x, y))[1] / point
            height = max(foot, free)
            free = height + 9.5
            text = axes.annotate(
                f"{y:.1f}",
                (x, y),
                (5, height - foot),
                textcoords="offset points",
                va="center",
                fontsize=9,
                color=colour,
            )
            texts.append(text)
        for step in sorted(range(-48, 49, 2), key=abs):
            boxes = [text.get_window_extent().translated(0, step * point) for text in texts]
            crossed = any(line.intersects_bbox(box, False) for line in lines for box in boxes)
            if not crossed and not any(box.overlaps(other) for box in boxes for other in taken):
                break
        taken += boxes
        for text in texts:
            text.xyann = (5, text.xyann[1] + step)


def _figure(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure  # heavy, and most runs of the package draw no chart

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=_unit(INK))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_unit(TRUTH))
    axes.tick_params(colors=_unit(INK), labelsize=9, length=0)
    axes.grid(visible=True, color=_unit(FAINT), linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _rendered(figure: Figure) -> Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _unit(colour: Colour) -> tuple[float, float, float]:
    red, green, blue = colour
    return red / 255, green / 255, blue / 255
