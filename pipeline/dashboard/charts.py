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


_MAX_SOLID_LINES = 6
"""Up to this many lines are solid and have their legend inside the chart."""


def draw_bars(
    names: Sequence[str],
    values: Sequence[float],
    unit: str,
    title: str,
    *,
    mean: float | None = None,
) -> Image:
    """Draw horizontal bars, one per name, in the given order, with a dashed line at the mean.

    Args:
        names: Labels of the bars.
        values: Lengths of the bars; a value that is not finite has no bar.
        unit: Unit of the values.
        title: Title of the chart.
        mean: Mean to show; by default the unweighted mean of the bars.
    """
    figure, axes = _new_figure(7.0, 1.1 + 0.27 * len(names), title)
    lengths = np.asarray(values, np.float64)
    drawn = np.where(np.isfinite(lengths), lengths, 0)
    rows = np.arange(len(names))
    axes.barh(rows, drawn, height=0.68, color=_unit_rgb(RIGHT))
    for row, value in zip(rows, lengths, strict=True):
        text = f"{value:.1f}" if np.isfinite(value) else "none"
        axes.annotate(  # right of the axes, where it cannot cross a line
            text,
            (1, row),
            xycoords=("axes fraction", "data"),
            xytext=(38, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=9,
            color=_unit_rgb(INK),
        )
    if mean is None and np.isfinite(lengths).any():
        mean = float(np.nanmean(lengths))
    if mean is not None and np.isfinite(mean):
        axes.axvline(mean, color=_unit_rgb(LEFT), linewidth=1.4, linestyle="--", zorder=0.5)
        axes.set_title(f"mean {mean:.1f}", loc="right", fontsize=9, color=_unit_rgb(LEFT))
    axes.set_yticks(rows, [name.replace("_", " ") for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.margins(x=0.02)
    axes.set_xlim(left=min(0.0, float(drawn.min(initial=0.0))))
    axes.set_xlabel(unit)
    axes.grid(visible=False, axis="y")
    return _render(figure)


def draw_matrix(names: Sequence[str], values: ArrayLike, title: str) -> Image:
    """Draw a square matrix, (N, N), as colours; row and column i belong to name i."""
    figure, axes = _new_figure(6.6, 6.0, title)
    shades = axes.imshow(np.asarray(values, np.float64), cmap="magma", vmin=0.0)
    labels = [name.replace("_", " ") for name in names]
    axes.set_xticks(range(len(labels)), labels, rotation=90)
    axes.set_yticks(range(len(labels)), labels)
    axes.grid(visible=False)
    figure.colorbar(shades, ax=axes, shrink=0.8)
    return _render(figure)


def draw_curves(
    series: Mapping[str, tuple[ArrayLike, ArrayLike]], xlabel: str, ylabel: str, title: str
) -> Image:
    """Draw one line per series (x, y), labelled with its last value; non-finite values are gaps."""
    many = len(series) > _MAX_SOLID_LINES
    figure, axes = _new_figure(9.0 if many else 7.0, 3.8, title)
    ends: list[tuple[float, float, tuple[float, float, float]]] = []
    for i, (name, (x, y)) in enumerate(series.items()):
        colour, style = (
            _unit_rgb(SERIES[i % len(SERIES)]),
            ("-", "--", ":")[i // _MAX_SOLID_LINES % 3],
        )
        xs, ys = np.asarray(x, np.float64), np.asarray(y, np.float64)
        mark = ("o", "s", "^")[i // _MAX_SOLID_LINES % 3] if len(xs) <= 30 else ""
        axes.plot(xs, ys, style, color=colour, linewidth=1.8, marker=mark, markersize=4, label=name)
        finite = np.flatnonzero(np.isfinite(ys))
        if len(finite):
            ends.append((float(xs[finite[-1]]), float(ys[finite[-1]]), colour))
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.margins(x=0.08)
    _label_line_ends(axes, ends)
    if many:
        figure.legend(frameon=False, fontsize=9, handlelength=3.5, loc="outside right upper")
    elif len(series) > 1:
        axes.legend(frameon=False, fontsize=9)
    return _render(figure)


def _label_line_ends(
    axes: Axes, ends: Sequence[tuple[float, float, tuple[float, float, float]]]
) -> None:
    """Write the last value right of each line, as near as possible without crossing a line.

    Labels at the same x keep their order and move together.
    """
    figure = cast("Figure", axes.figure)
    figure.draw_without_rendering()  # fixes the layout
    point = figure.dpi / 72
    lines = [line.get_path().transformed(line.get_transform()) for line in axes.lines]
    occupied: list[Bbox] = []
    for _, group in itertools.groupby(sorted(ends), key=lambda end: end[0]):
        texts, lowest_free = [], -np.inf
        for x, y, colour in group:
            line_height = axes.transData.transform((x, y))[1] / point
            height = max(line_height, lowest_free)
            lowest_free = height + 9.5
            text = axes.annotate(
                f"{y:.1f}",
                (x, y),
                (5, height - line_height),
                textcoords="offset points",
                va="center",
                fontsize=9,
                color=colour,
            )
            texts.append(text)
        for step in sorted(range(-48, 49, 2), key=abs):
            boxes = [text.get_window_extent().translated(0, step * point) for text in texts]
            crossed = any(line.intersects_bbox(box, False) for line in lines for box in boxes)
            if not crossed and not any(box.overlaps(other) for box in boxes for other in occupied):
                break
        occupied += boxes
        for text in texts:
            text.xyann = (5, text.xyann[1] + step)


def _new_figure(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure  # slow to import, and seldom needed

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=_unit_rgb(INK))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_unit_rgb(TRUTH))
    axes.tick_params(colors=_unit_rgb(INK), labelsize=9, length=0)
    axes.grid(visible=True, color=_unit_rgb(FAINT), linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _render(figure: Figure) -> Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _unit_rgb(colour: Colour) -> tuple[float, float, float]:
    red, green, blue = colour
    return red / 255, green / 255, blue / 255
