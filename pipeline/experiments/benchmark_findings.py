"""What the numbers of the open benchmark show: sentences and tables made from them alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pipeline.experiments.benchmark_errors import RowErrors
from pipeline.experiments.benchmark_rows import Row

SAME_MM = 2.0
"""MPJPE that differ by less are called equal."""

ONE_BUDGET = ("videopose3d", "martinez", "mixste")
"""Beginnings of the names of the rows of one budget."""

GOALS = (
    ("best row of one budget, noisy 2D, MPJPE", ONE_BUDGET, "noisy", "mpjpe", 45.0),
    ("best row of one budget, noisy 2D, MPJPE, far goal", ONE_BUDGET, "noisy", "mpjpe", 40.0),
    ("MixSTE from scratch, noisy 2D, MPJVE", ("mixste",), "noisy", "mpjve", 5.0),
    ("MixSTE pretrained, noisy 2D, MPJPE", ("mixste-pretrained",), "noisy", "mpjpe", 42.0),
    ("best row of one budget, exact 2D, MPJPE", ONE_BUDGET, "exact", "mpjpe", 33.0),
)
"""Goals: title, beginnings of the rows of which the best counts, 2D, quantity, largest error."""

PRETRAINED, SAME_TIME = "mixste-pretrained", "mixste-total"
"""Beginnings of the names of the rows that spend a budget on pretraining, or on more lifting."""

_SMOOTHINGS = {False: "no", True: "yes"}


def write_findings(errors: Mapping[Row, RowErrors]) -> list[str]:
    """Describe the errors of finished rows in Markdown; nothing if there are none.

    Args:
        errors: Row -> its errors.
    """
    if not errors:
        return []
    lines = [
        "## What the numbers show",
        f"Made from the tables above. Differences below {SAME_MM:g} mm are called equal.",
        *_best_rows(errors),
        *_pretraining(errors),
        *_smoothing(errors),
        *_kinds(errors),
        *_goals(errors),
    ]
    return ["\n\n".join(lines)]


def compare(first: float, second: float) -> str:
    """Tell whether the first error, as the page shows it, is lower, higher or equal.

    >>> compare(47.2, 49.8), compare(47.2, 48.8), compare(40.0, 36.5)
    ('2.6 lower', 'equal', '3.5 higher')
    """
    difference = round(round(first, 1) - round(second, 1), 1)
    if abs(difference) < SAME_MM:
        return "equal"
    return f"{abs(difference):.1f} {'lower' if difference < 0 else 'higher'}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _best_rows(errors: Mapping[Row, RowErrors]) -> Iterator[str]:
    """The lowest MPJPE among rows of the same 2D input, budget and smoothing."""
    table = []
    groups = dict.fromkeys((row.detections, row.total) for row in errors)
    for detections, total in groups:
        rows = [row for row in errors if (row.detections, row.total) == (detections, total)]
        for smoothed, word in _SMOOTHINGS.items():
            found = sorted((_error(errors[row], "mpjpe", smoothed), row.title) for row in rows)
            (lowest, best), *others = found
            equal = [
                f"{title} ({value:.1f})" for value, title in others if value - lowest < SAME_MM
            ]
            cells = [f"{best} ({lowest:.1f})", ", ".join(equal) or "-"]
            table.append([detections, f"{total:g}", word, *cells])
    yield "Rows with the same 2D, time of training and smoothing, by MPJPE:"
    yield markdown_table(["2D", "budgets", "smoothed", "lowest", "equal to it"], table)


def _pretraining(errors: Mapping[Row, RowErrors]) -> Iterator[str]:
    """Pretraining, compared with the same time spent on lifting."""
    table = []
    rows = {row.name: row for row in errors}
    for detections in dict.fromkeys(row.detections for row in errors):
        pair = [rows.get(f"{name}-{detections}") for name in (PRETRAINED, SAME_TIME)]
        if None in pair:
            continue
        for smoothed, word in _SMOOTHINGS.items():
            for title, values in _pairs(*(errors[row] for row in pair if row), smoothed=smoothed):
                cells = [f"{value:.1f}" for value in values]
                table.append([detections, word, title, *cells, compare(*values)])
    if table:
        yield "MixSTE with pretraining, and with the same time for lifting alone, MPJPE:"
        header = ["2D", "smoothed", "input", "pretrained", "lifting alone", "pretrained is"]
        yield markdown_table(header, table)


def _pairs(
    first: RowErrors, second: RowErrors, *, smoothed: bool
) -> Iterator[tuple[str, tuple[float, float]]]:
    """Inputs, and the MPJPE of two rows on them: the test split, and the strongest corruptions."""
    yield "test split", (_error(first, "mpjpe", smoothed), _error(second, "mpjpe", smoothed))
    one, two = first.corrupted(smoothed=smoothed), second.corrupted(smoothed=smoothed)
    for key in (("joints hidden", 0.6), ("frames dropped", 0.6)):
        if key in one and key in two:
            yield f"{100 * key[1]:.0f} % of {key[0]}", (one[key].mpjpe, two[key].mpjpe)


def _smoothing(errors: Mapping[Row, RowErrors]) -> Iterator[str]:
    """What smoothing changes, and rows that move worse than a pose that never moves."""
    for detections in dict.fromkeys(row.detections for row in errors):
        rows = {row: found for row, found in errors.items() if row.detections == detections}
        position, motion = (
            [_error(found, key, 1) - _error(found, key, 0) for found in rows.values()]
            for key in ("mpjpe", "mpjve")
        )
        yield (
            f"On {detections} 2D smoothing changes MPJPE by {_range(position, '+z.1f')} mm and "
            f"MPJVE by {_range(motion, '+z.2f')} mm per frame."
        )
        still = next(iter(rows.values())).unsmoothed.get("test/mean_pose_mpjve_mm")
        if still is None:
            continue
        for smoothed, word in ((False, "Without"), (True, "With")):
            worse = [r.label for r in rows if _error(rows[r], "mpjve", smoothed) > still]
            yield (
                f"{word} smoothing, rows on {detections} 2D with a larger MPJVE than the mean "
                f"pose, which never moves ({still:.2f}): {', '.join(worse) or 'none'}."
            )


def _kinds(errors: Mapping[Row, RowErrors]) -> Iterator[str]:
    """How much larger errors are on kinds of motion that training does not have."""
    keys = ("test/mpjpe_unseen_mm", "test/mpjpe_seen_mm")
    known = [e.unsmoothed for e in errors.values() if all(key in e.unsmoothed for key in keys)]
    if known:
        ratios = [numbers[keys[0]] / numbers[keys[1]] for numbers in known]
        yield (
            "Without smoothing, the MPJPE on kinds of motion that training does not have is "
            f"{_range(ratios, '.2f')} times that on the other kinds."
        )


def _goals(errors: Mapping[Row, RowErrors]) -> Iterator[str]:
    """The goals of the budgets, and what the best of their rows reach."""
    table = []
    for title, begin, detections, quantity, limit in GOALS:
        names = [f"{name}-{detections}" for name in begin]
        rows = [found for row, found in errors.items() if row.name in names]
        if rows:
            best = [min(_error(row, quantity, smoothed) for row in rows) for smoothed in (0, 1)]
            cells = [f"{'yes' if value <= limit else 'no'}: {value:.1f}" for value in best]
            table.append([title, f"{limit:g}", *cells])
    if table:
        yield "Goals of these budgets:"
        header = ["goal", "at most", "reached without smoothing", "reached with smoothing"]
        yield markdown_table(header, table)


def _error(errors: RowErrors, quantity: str, smoothed: bool | int) -> float:
    return errors.of(smoothed=bool(smoothed))[f"test/{quantity}_mm"]


def _range(values: Sequence[float], form: str) -> str:
    """Lowest and highest value.

    >>> _range([0.25, -1.5], "+.1f"), _range([2.0], ".1f")
    ('-1.5 to +0.2', '2.0')
    """
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"
