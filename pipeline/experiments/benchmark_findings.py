"""What the numbers of the open benchmark show: sentences and tables made from them alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pipeline.experiments.benchmark_errors import OUTPUTS, Output, RowErrors
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
        *_outputs(errors),
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
    """The lowest MPJPE among rows of the same 2D input, budget and output."""
    table = []
    groups = dict.fromkeys((row.detections, row.total) for row in errors)
    for detections, total in groups:
        rows = [row for row in errors if (row.detections, row.total) == (detections, total)]
        for output in OUTPUTS:
            found = sorted(
                (errors[row].of(output)["test/mpjpe_mm"], row.title)
                for row in rows
                if errors[row].of(output)
            )
            if not found:
                continue
            (lowest, best), *others = found
            equal = [
                f"{title} ({value:.1f})" for value, title in others if value - lowest < SAME_MM
            ]
            cells = [f"{best} ({lowest:.1f})", ", ".join(equal) or "-"]
            table.append([detections, f"{total:g}", output, *cells])
    yield "Rows with the same 2D, time of training and output, by MPJPE:"
    yield markdown_table(["2D", "budgets", "output", "lowest", "equal to it"], table)


def _pretraining(errors: Mapping[Row, RowErrors]) -> Iterator[str]:
    """Pretraining, compared with the same time spent on lifting."""
    table = []
    rows = {row.name: row for row in errors}
    for detections in dict.fromkeys(row.detections for row in errors):
        pair = [rows.get(f"{name}-{detections}") for name in (PRETRAINED, SAME_TIME)]
        if None in pair:
            continue
        for output in OUTPUTS:
            for title, values in _pairs(*(errors[row] for row in pair if row), output=output):
                cells = [f"{value:.1f}" for value in values]
                table.append([detections, output, title, *cells, compare(*values)])
    if table:
        yield "MixSTE with pretraining, and with the same time for lifting alone, MPJPE:"
        header = ["2D", "output", "input", "pretrained", "lifting alone", "pretrained is"]
        yield markdown_table(header, table)


def _pairs(
    first: RowErrors, second: RowErrors, *, output: Output
) -> Iterator[tuple[str, tuple[float, float]]]:
    """Inputs, and the MPJPE of two rows on them: the test split, and the strongest corruptions."""
    one, two = first.of(output), second.of(output)
    if one and two:
        yield "test split", (one["test/mpjpe_mm"], two["test/mpjpe_mm"])
    if output == "blended":
        return
    points = [row.corrupted(smoothed=output == "smoothed") for row in (first, second)]
    for key in (("joints hidden", 0.6), ("frames dropped", 0.6)):
        if all(key in found for found in points):
            of_first, of_second = (found[key].mpjpe for found in points)
            yield f"{100 * key[1]:.0f} % of {key[0]}", (of_first, of_second)


def _outputs(errors: Mapping[Row, RowErrors]) -> Iterator[str]:
    """What other outputs change, and rows that move worse than a pose that never moves."""
    changes: dict[Output, str] = {"smoothed": "smoothing", "blended": "blending windows"}
    for detections in dict.fromkeys(row.detections for row in errors):
        rows = {row: found for row, found in errors.items() if row.detections == detections}
        for output, word in changes.items():
            known = [found for found in rows.values() if found.of(output)]
            position, motion = (
                [found.of(output)[key] - found.plain[key] for found in known]
                for key in ("test/mpjpe_mm", "test/mpjve_mm")
            )
            if known:
                yield (
                    f"On {detections} 2D {word} changes MPJPE by {_range(position, '+z.1f')} mm "
                    f"and MPJVE by {_range(motion, '+z.2f')} mm per frame."
                )
        still = next(iter(rows.values())).plain.get("test/mean_pose_mpjve_mm")
        if still is None:
            continue
        for output in ("plain", "smoothed"):
            worse = [r.label for r in rows if rows[r].of(output)["test/mpjve_mm"] > still]
            yield (
                f"Rows on {detections} 2D, {output}, with a larger MPJVE than the mean pose, which "
                f"never moves ({still:.2f}): {', '.join(worse) or 'none'}."
            )


def _kinds(errors: Mapping[Row, RowErrors]) -> Iterator[str]:
    """How much larger errors are on kinds of motion that training does not have."""
    keys = ("test/mpjpe_unseen_mm", "test/mpjpe_seen_mm")
    known = [e.plain for e in errors.values() if all(key in e.plain for key in keys)]
    if known:
        ratios = [numbers[keys[0]] / numbers[keys[1]] for numbers in known]
        yield (
            "The MPJPE of the plain output on kinds of motion that training does not have is "
            f"{_range(ratios, '.2f')} times that on the other kinds."
        )


def _goals(errors: Mapping[Row, RowErrors]) -> Iterator[str]:
    """The goals of the budgets, and what the best of their rows reach."""
    table = []
    for title, begin, detections, quantity, limit in GOALS:
        names = [f"{name}-{detections}" for name in begin]
        rows = [found for row, found in errors.items() if row.name in names]
        if rows:
            key = f"test/{quantity}_mm"
            found = ([row.of(output)[key] for row in rows if row.of(output)] for output in OUTPUTS)
            best = [min(values, default=None) for values in found]
            cells = [_reached(value, limit) for value in best]
            table.append([title, f"{limit:g}", *cells])
    if table:
        yield "Goals of these budgets:"
        header = ["goal", "at most", *(f"reached, {output}" for output in OUTPUTS)]
        yield markdown_table(header, table)


def _reached(value: float | None, limit: float) -> str:
    """Cell of whether an error is at most a limit."""
    return "-" if value is None else f"{'yes' if value <= limit else 'no'}: {value:.1f}"


def _range(values: Sequence[float], form: str) -> str:
    """Lowest and highest value.

    >>> _range([0.25, -1.5], "+.1f"), _range([2.0], ".1f")
    ('-1.5 to +0.2', '2.0')
    """
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"
