"""`heatlift box train|report`: train, measure and pack the lifter in the box."""

from __future__ import annotations

import platform
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline.cli import launch
from pipeline.cli.run_report import describe_network
from pipeline.errors import DataError, HeatliftError
from pipeline.experiments.box_rows import BoxReport, BoxRow, PartErrors
from pipeline.files.digests import file_digest
from pipeline.files.writing import write_atomically
from pipeline.lift.module import LiftModule
from pipeline.mocap import Mocap
from pipeline.predict.blazepose import load_blazepose
from pipeline.skeleton import H36M17
from pipeline.sources import Sequence as MotionSequence
from pipeline.training.checkpoints import load_module, weights_digest
from pipeline.training.console import print_line
from pipeline.training.run_folder import newest_finished_run
from pipeline.weights.box_lifter import BOX, CARD, FILE, LICENCE, NAME, pack_lifter
from pipeline.weights.catalogue import find_weights

CONFIG = "lift/box"
RUN = "box"

BASE = ("the benchmark's own cameras", "exact")
"""Row that others are compared with."""

AIMS = (
    ("any camera", "exact", BASE, 1.25),
    ("joint set of the detector", "COCO17", ("joint set of the detector", "H36M17"), 1.15),
    ("frame rate, Hz", "25", ("frame rate, Hz", "50"), 1.1),
)
"""Table and row, the row it is compared with, and the largest ratio that is aimed at."""


class BoxError(HeatliftError):
    """The training of the lifter in the box failed; its own error line is printed before.

    Args:
        code: Exit code of the stage.
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"the training of the lifter in the box ended with exit code {code}")
        self.exit_code = code


def train(
    root: str | None = None,
    *,
    runs: str = "runs",
    out: str | None = None,
    docs: str = "docs",
    also: str = "",
    again: bool = False,
) -> None:
    """Train the lifter in the box, put it into the package, write its card and docs/box.md.

    It computes with one thread, so that its bits do not depend on the number of cores.
    A stopped training is resumed by the same command. A finished one is not repeated: it is
    measured and packed again.

    Args:
        root: Folder of the CMU recordings; $HEATLIFT_DATA/mocap by default.
        runs: Folder of all runs; the training is RUNS/lift/box.
        out: Folder of the packed lifter; by default the one in the package.
        docs: Folder of the page box.md.
        also: More arguments of the training, as one text: --also="--trainer.max_steps 20000".
        again: Whether a finished training is repeated.

    Raises:
        BoxError: If the training fails.
        DataError: If the recordings are not there.
    """
    torch.set_num_threads(1)
    finished = None if again else newest_finished_run(Path(runs), "lift", lambda s: True, RUN)
    if finished is None:
        code = launch.run_stage("lift", training_arguments(root, runs, also))
        if code > 128:
            raise SystemExit(code)
        if code:
            raise BoxError(code)
        finished = newest_finished_run(Path(runs), "lift", lambda s: True, RUN)
    else:
        print_line(f"finished: {finished}; --again true trains a new one")
    assert finished is not None
    packed = pack_lifter(finished, BOX if out is None else Path(out))
    report(str(packed), root, docs=docs, out=out)


def training_arguments(root: str | None, runs: str, also: str) -> list[str]:
    """Arguments of `heatlift lift fit`."""
    arguments = ["fit", "-c", CONFIG, "--name", RUN, "--runs", runs, "--weights", "last"]
    arguments += ["--data.source.init_args.root", root] if root is not None else []
    return [*arguments, *shlex.split(also)]


def report(
    checkpoint: str | None = None,
    root: str | None = None,
    *,
    docs: str = "docs",
    out: str | None = None,
    every: int = 1,
) -> None:
    """Measure a lifter on people in any video, and write docs/box.md.

    Of the lifter in the box it also writes the model card.

    Args:
        checkpoint: Checkpoint of a lifter; by default the one in the box.
        root: Folder of the CMU recordings; $HEATLIFT_DATA/mocap by default.
        docs: Folder of the page box.md.
        out: Folder of the packed lifter; by default the one in the package.
        every: Use every N-th recording of the test split; 1 for all.

    Raises:
        DataError: If the checkpoint or the recordings are not there.
    """
    folder = BOX if out is None else Path(out)
    path = folder / FILE if checkpoint is None else Path(checkpoint)
    if not path.is_file():
        raise DataError(f"{path}: no such file; run make box, or give the checkpoint of a lifter")
    module: LiftModule = load_module(path, (LiftModule,))
    sequences = test_sequences(root)
    names = list(dict.fromkeys(s.name.rpartition(".")[0] or s.name for s in sequences))[::every]
    chosen = [s for s in sequences if (s.name.rpartition(".")[0] or s.name) in names]
    weights = find_weights("blazepose-full")
    measured = BoxReport(module, chosen)
    measured.measure(None if weights is None else load_blazepose(weights))
    text = write_page(measured, path, every)
    page = Path(docs) / "box.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(page, lambda file: file.write(text.encode()))
    print_line(f"written: {page}")
    if path == folder / FILE:
        card = write_card(measured, path)
        write_atomically(folder / CARD, lambda file: file.write(card.encode()))
        print_line(f"written: {path} and {CARD}")


def test_sequences(root: str | None) -> list[MotionSequence]:
    """Test split of the open benchmark."""
    return Mocap(root, bodies="random_adults").sequences("test")


test_sequences.__test__ = False  # type: ignore[attr-defined]  # pytest would take it for a test


def write_page(measured: BoxReport, path: Path, every: int) -> str:
    """The page docs/box.md."""
    which = "all recordings" if every == 1 else f"every {every}th recording"
    lines = [
        "# The lifter in the box",
        "",
        "`make box ROOT=folder` trains it (about an hour of one core), replaces the lifter in "
        "the package and writes this page. A finished training is only measured again; "
        "`ARGS='--again true'` trains a new one. `heatlift box report --root folder` measures the "
        "lifter in the box.",
        "",
        f"- **Written** {time.strftime('%Y-%m-%d')} on {platform.machine()}, torch "
        f"{torch.__version__}; weights {weights_digest(measured.module)[:12]}…",
        f"- **Data** test split of the open benchmark, {which}, one camera of each; people of the "
        "test split are in no training.",
        "- **Protocol** lifted as `heatlift predict` does (crop camera, resampling, windows that "
        "overlap, flip test), without smoothing; prediction and truth relative to the root in the "
        "camera frame, 17 joints with the root counted, mean over the lifted frames, mm. *lifted*: "
        "share of the frames that show at least four joints. The field of view is known except "
        "where a row states otherwise.",
        "- **Any camera**: pitch -30 to 30 degrees, field of view 35 to 90 degrees, roll, five "
        "image shapes, standing people 0.15 to 1.2 of the image's height, partly outside. The "
        "lifter has seen none of them. The cameras are the same in all tables below, except those "
        "of noise, hidden limbs and rendered people, whose cameras are drawn from the same ranges.",
        "",
        *table_lines(measured.rows),
        "## Aims",
        "",
        *aim_lines(measured.rows),
        "",
        "## A real video",
        "",
        "`python docs/drawings/walk.py`; [predict.md](predict.md) tells what is in it.",
        "",
        "![2D joints of a real video above, the people that the lifter predicts below](walk.png)",
        "",
        *detail_lines("Per action, any camera, exact 2D", by_action(measured.exact)),
        *detail_lines("Per joint, any camera, exact 2D", by_joint(measured.exact)),
    ]
    return "\n".join(lines).rstrip() + "\n"


def table_lines(rows: Sequence[BoxRow]) -> list[str]:
    """The rows as tables of Markdown, one for each `table`."""
    lines: list[str] = []
    for table in dict.fromkeys(row.table for row in rows):
        lines += [f"## {table[0].upper()}{table[1:]}", ""]
        lines += ["| | MPJPE | N-MPJPE | P-MPJPE | frames | lifted |", "|---|---|---|---|---|---|"]
        lines += [
            f"| {row.name} | {row.mpjpe:.1f} | {row.n_mpjpe:.1f} | {row.p_mpjpe:.1f} | "
            f"{row.frames} | {100 * row.lifted:.0f} % |"
            for row in rows
            if row.table == table
        ]
        lines.append("")
    return lines


def aim_lines(rows: Sequence[BoxRow]) -> list[str]:
    """What was aimed at, and what was reached."""
    errors = {(row.table, row.name): row.mpjpe for row in rows}
    lines = []
    for table, name, other, most in AIMS:
        ratio = errors[table, name] / errors[other]
        verdict = "reached" if ratio <= most else "missed"
        lines.append(
            f"- {table}, {name}, against {other[0]}, {other[1]}: {ratio:.2f}, aim at most "
            f"{most:g}: {verdict}."
        )
    table = "rendered people, found by BlazePose"
    if (table, "BlazePose's own 3D") in errors:
        lifted, own = errors[table, "this lifter, same 2D"], errors[table, "BlazePose's own 3D"]
        verdict = "reached" if lifted <= own else "missed"
        lines.append(
            f"- on BlazePose's 2D of rendered people {lifted:.1f} mm, BlazePose's own 3D "
            f"{own:.1f} mm; aim: not worse: {verdict}. BlazePose has other hips and no top of the "
            "head, so a part of both errors is a difference of definitions."
        )
    return lines


def by_action(errors: Sequence[PartErrors]) -> list[tuple[str, float]]:
    """MPJPE of each action."""
    actions = sorted({e.part.action for e in errors})
    found = []
    for action in actions:
        joints = np.concatenate([e.joints for e in errors if e.part.action == action])
        found.append((action, float(joints.mean()) if len(joints) else float("nan")))
    return found


def by_joint(errors: Sequence[PartErrors]) -> list[tuple[str, float]]:
    """Mean error of each joint."""
    means = np.concatenate([e.joints for e in errors]).mean(axis=0)
    return list(zip(H36M17.joints, means.tolist(), strict=True))


def detail_lines(title: str, values: Sequence[tuple[str, float]]) -> list[str]:
    """A table of two columns."""
    rows = [f"| {name} | {value:.1f} |" for name, value in values]
    return [f"## {title}", "", "| | MPJPE |", "|---|---|", *rows, ""]


def write_card(measured: BoxReport, path: Path) -> str:
    """The model card."""
    net = measured.module.net
    lines = [
        f"# Model card: {NAME}",
        "",
        f"- **What** a lifter: {net.frames} frames of 2D joints at "
        f"{measured.module.trained_rate or 50:g} Hz to 3D, "
        f"{describe_network(measured.module)}, file {FILE}, {path.stat().st_size:,} bytes.",
        f"- **Licence** {LICENCE}.",
        f"- **Digest** SHA-256 of the file {file_digest(path)}; of its weights "
        f"{weights_digest(measured.module)}.",
        "- **Command** `make box ROOT=folder` (config lift/box).",
        "- **Data** training split of the open benchmark (docs/mocap.md) and the embedded people. "
        "Motion capture by the Carnegie Mellon University Graphics Lab, mocap.cs.cmu.edu, made "
        "with funding from NSF EIA-0196217; converted to BVH by B. Hahne, cgspeed.com. No image, "
        "and no joint of a video of real people, is in it. The errors of its simulated 2D detector "
        "were measured with BlazePose (Apache-2.0) on rendered people.",
        "- **Use** 3D motion of people in videos, `heatlift predict`. Not for measurements of "
        "health or safety.",
        "- **Limits** adults; one person at a time; depth is inferred and hidden limbs are "
        "guesses; people who lie, climb or hold on to something, and cameras that look down more "
        "than 30 degrees, are rare or absent in training. Ten minutes of recorded motion of six "
        "people are little.",
        "- **Protocol** docs/box.md.",
        "",
        *[line.replace("## ", "### ") for line in table_lines(measured.rows)],
    ]
    return "\n".join(lines).rstrip() + "\n"
