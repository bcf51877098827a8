"""The open benchmark row by row under equal budgets of CPU time, and the page with its numbers."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import yaml
from lightning.pytorch.callbacks import Callback

from pipeline import cli, draw, robustness
from pipeline.checkpoint import file_digest, rebuild, write_whole
from pipeline.config import find_config
from pipeline.datasets import MotionSource
from pipeline.datasets.recordings import SHIPPED
from pipeline.errors import HeatliftError, UsageError
from pipeline.lift.data import LiftDataModule
from pipeline.run import MetricsFile, newest_finished, read_metrics, read_state
from pipeline.watch import say

MARK = "<!-- What stands below this line is written by hand and kept. -->"
"""Divides the page: above it numbers, written anew each time; below it words."""


HEAD = """\
# Results on the open benchmark

`make results DATA=mocap ROOT=folder` trains these rows one by one and writes this page. A stopped
run goes on where it was, and finished rows are kept.

- **Written** {date} on {hardware}.
- **Budget** {seconds} CPU seconds of one thread per row, counted over training alone: batches,
  steps and saving, no validation. A short run measures what a step costs; the number of steps
  follows, so that the schedule knows its length. *used* is what a row took. Pretraining has the
  same budget again; rows *at the total budget* spend both on lifting.
- **Data** {data}.
- **Protocol** test split, frames outside bad ranges, 4 cameras; prediction and truth relative to
  the root, 17 joints with the root counted as zero, mean over frames, no flip test; mm, MPJVE in mm
  per frame. What comes out is smoothed over time (a Gaussian; deviation {noisy:g} frames on noisy,
  {exact:g} on exact 2D). Weights are those of the best validation. *hidden*: 20 and 40 % of the
  joints that the 2D has, at random; one camera of each recording."""
"""How the page begins."""


@dataclass(frozen=True)
class Row:
    """One trained lifter of the table.

    Args:
        name: Of its run.
        title: For people.
        config: Of the lifter.
        detections: exact or noisy.
        share: Its lifting budget in parts of the budget of a row.
        pretraining: Config of the pretraining it starts from, which has a budget of its own.
    """

    name: str
    title: str
    config: str
    detections: str
    share: float = 1.0
    pretraining: str | None = None


def _rows(detections: str) -> tuple[Row, ...]:
    mixste, first = "lift/mixste_mocap", "pretrain/mixste_mocap"
    return (
        Row(f"videopose3d-{detections}", "VideoPose3D", "lift/videopose3d_mocap", detections),
        Row(f"martinez-{detections}", "Martinez", "lift/martinez_mocap", detections),
        Row(f"mixste-{detections}", "MixSTE from scratch", mixste, detections),
        Row(f"mixste-pretrained-{detections}", "MixSTE pretrained", mixste, detections, 1.0, first),
        Row(f"mixste-total-{detections}", "MixSTE from scratch", mixste, detections, 2.0),
    )


SMOOTH = {"noisy": 3.0, "exact": 1.0}
"""Deviation of the Gaussian over time on what comes out, frames at 50 Hz."""

ROWS = (*_rows("noisy"), *_rows("exact"))
"""In the order in which they are trained."""


CHAIN = ("08_10", "10_03", "14_37")
"""Test recordings that are rendered and detected: a walk, a kick, a drink."""


class CpuTime(Callback):
    """Counts the CPU seconds of this process that training takes, validation left out.

    They are logged as `train/cpu_s` as often as the trainer logs, and go on in a resumed run.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = 0.0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        self.seconds = state_dict["seconds"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._since = time.process_time()
        if isinstance(trainer.logger, MetricsFile) and not trainer.global_step:
            batches = len(trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
            trainer.logger.log_metrics({"train/batches_per_pass": batches}, 0)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count, and now and then say so."""
        self._count()
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.global_step % every == 0 and isinstance(trainer.logger, MetricsFile):
            trainer.logger.log_metrics({"train/cpu_s": self.seconds}, trainer.global_step - 1)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        if not trainer.sanity_checking:
            self._count()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start it again."""
        self._since = time.process_time()

    def _count(self) -> None:
        now = time.process_time()
        self.seconds += now - self._since
        self._since = now


@dataclass(frozen=True)
class Plan:
    """How many steps a budget buys, so that the schedule knows its length before it begins.

    Args:
        epochs: Passes.
        batches: Optimiser steps in each.
        validate_every: Passes from one validation to the next; the last pass has one.
    """

    epochs: int
    batches: int
    validate_every: int


def plan(seconds: float, step: float, start: float, batches_per_pass: int) -> Plan:
    """What a budget buys.

    Args:
        seconds: The budget.
        step: CPU seconds of one optimiser step.
        start: CPU seconds that each pass takes beside its steps.
        batches_per_pass: Most steps that a pass can have.

    Raises:
        UsageError: If it does not buy one step in each of four passes.

    >>> plan(100.0, 0.5, 1.0, 30)
    Plan(epochs=7, batches=26, validate_every=1)
    """
    for least in range(4, 100_000):
        every = max(1, least // 6)
        epochs = math.ceil(least / every) * every
        batches = math.floor((seconds / epochs - start) / step)
        if batches < 1:
            break
        if batches <= batches_per_pass:
            return Plan(epochs, batches, every)
    raise UsageError(f"{seconds:g} s buy no training at {step:.2g} s per step; give more --seconds")


def results(
    source: dict[str, Any],
    *,
    seconds: float = 420.0,
    rows: list[str] | None = None,
    detector: str | None = None,
    runs: str = "runs",
    docs: str = "docs",
) -> None:
    """Train the compared set row by row and write `results.md` with its pictures.

    Each row gets the same CPU time of one thread. A row that is finished is kept, one that was
    stopped goes on where it was; the page is written after each.

    Args:
        source: class_path and init_args of the data, as `-c data/mocap` gives them.
        seconds: Budget of a row; pretraining has the same again.
        rows: Names of the rows to train; all unless given.
        detector: Checkpoint of a 2D stage: some test recordings are rendered, detected by it and
            lifted, as a row of its own.
        runs: Folder of all runs.
        docs: Folder of the page.

    Raises:
        UsageError: If a row has no such name.
        RowError: If a row fails; its line is printed before.
    """
    unknown = set(rows or ()) - {row.name for row in ROWS}
    if unknown:
        names = ", ".join(row.name for row in ROWS)
        raise UsageError(f"no row {min(unknown)}; there are {names}")
    torch.set_num_threads(1)
    bench = Bench(_settled(source), seconds, Path(runs), Path(docs))
    for row in ROWS:
        if not rows or row.name in rows:
            bench.train(row)
            bench.write_page()
    if detector:
        bench.chain(detector)
    bench.write_page()


class RowError(HeatliftError):
    """A row failed and has said why."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"row {name} ended with exit code {code}; the same command goes on there")
        self.exit_code = code


def _settled(source: Mapping[str, Any]) -> dict[str, Any]:
    """class_path and init_args, with options that stand beside them (`--source.root`) moved in."""
    beside = {key: value for key, value in source.items() if key not in ("class_path", "init_args")}
    if "class_path" not in source:
        raise UsageError("results: no data; give -c data/mocap or a config of your own")
    init_args = {**(source.get("init_args") or {}), **beside}
    return {"class_path": source["class_path"], "init_args": init_args}


class Bench:
    """The rows of one data set at one budget.

    Args:
        source: class_path and init_args of the data.
        seconds: Budget of a row.
        runs: Folder of all runs.
        docs: Folder of the page.
    """

    def __init__(self, source: dict[str, Any], seconds: float, runs: Path, docs: Path) -> None:
        self.source, self.seconds, self.runs, self.docs = source, seconds, runs, docs
        self.folder = runs / "results"
        self.data = self.folder / "data.yaml"
        text = yaml.safe_dump({"data": {"source": source}})
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.data, lambda file: file.write(text.encode()))

    def train(self, row: Row) -> None:
        """Train a row, and first what it starts from; measure it on corrupted 2D."""
        pretrained = "none"
        if row.pretraining:
            given = self._fit("pretrain", "pretraining", row.pretraining, 1.0, [])
            pretrained = str(given / _state(given)["checkpoint"])
        words = ["--data.detections", row.detections, "--model.flip_test", "false"]
        words += ["--model.pretrained", pretrained, f"--model.smooth={SMOOTH[row.detections]}"]
        folder = self._fit("lift", row.name, row.config, row.share, words)
        if not robustness.read(folder):
            say(f"  {row.name}: hidden joints, dropped frames, noise")
            module: Any = rebuild(folder / _state(folder)["checkpoint"], ("lift",))
            found = robustness.measure(module, self._made(), detections=row.detections)
            robustness.write(folder, found)

    def chain(self, detector: str) -> None:
        """Render, detect and lift the recordings of `CHAIN`, by the first noisy row.

        Args:
            detector: Checkpoint of a 2D stage.

        Raises:
            UsageError: If that row is not finished.
        """
        folder = self.finished("lift", ROWS[0].name, ROWS[0].config)
        if folder is None:
            raise UsageError(f"row {ROWS[0].name} is not finished; train it first")
        few = self.folder / "chain.csv"
        write_whole(few, lambda file: file.write(_few(CHAIN).encode()))
        beside = {"splits": str(few), "pictures": True}
        shown = {**self.source, "init_args": {**self.source["init_args"], **beside}}
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=self.folder,
        )
        found = {}
        for detections in ("exact", "noisy", detector):
            module = rebuild(folder / _state(folder)["checkpoint"], ("lift",))
            data = LiftDataModule(made(shown), detections)
            trainer.test(module, datamodule=data, verbose=False)
            key = detections if detections != detector else "detected"
            found[key] = {name: float(value) for name, value in trainer.callback_metrics.items()}
        text = json.dumps({"digest": file_digest(Path(detector)), "numbers": found})
        write_whole(self.folder / "chain.json", lambda file: file.write(text.encode()))

    def name_of(self, name: str, config: str) -> str:
        """Name of a row's run, which holds a digest of data, budget and config."""
        text = json.dumps([self.source, self.seconds, find_config(config).read_text()])
        return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"

    def finished(self, stage: str, name: str, config: str) -> Path | None:
        """Folder of a row's finished run, if there is one."""
        found = newest_finished(self.runs, stage, lambda _: True, self.name_of(name, config))
        return found.parents[1] if found else None

    def _made(self) -> MotionSource:
        return made(self.source)

    def _fit(self, stage: str, name: str, config: str, share: float, words: list[str]) -> Path:
        folder = self.finished(stage, name, config)
        if folder is None:
            say(f"results: {name}, {share * self.seconds:g} CPU seconds of one thread")
            bought = self._plan(stage, name, config, share, words)
            own = self.name_of(name, config)
            self._run(stage, own, config, bought, [*words, "--save_every", "100"])
            folder = self.finished(stage, name, config)
            assert folder is not None
        return folder

    def _run(self, stage: str, name: str, config: str, bought: Plan, words: Sequence[str]) -> None:
        trainer = {
            "callbacks+": "pipeline.results.CpuTime",
            "max_epochs": bought.epochs,
            "limit_train_batches": bought.batches,
            "check_val_every_n_epoch": bought.validate_every,
            "num_sanity_val_steps": 0,
            "accelerator": "cpu",
            "devices": 1,
        }
        line = ["fit", "-c", config, "-c", str(self.data), "--name", name, "--wandb", "off"]
        line += ["--runs", str(self.runs)]
        line += [f"--trainer.{key}={value}" for key, value in trainer.items()]
        code = cli.run(stage, [*line, *words])
        os.environ.pop("HEATLIFT_RUN", None)
        if code:
            raise RowError(name, code)

    def _plan(self, stage: str, name: str, config: str, share: float, words: Sequence[str]) -> Plan:
        """Steps that the budget buys, measured once in a short run and remembered."""
        own = self.name_of(name, config)
        memory = self.folder / f"{own}.json"
        if memory.is_file():
            return Plan(**json.loads(memory.read_text())["plan"])
        short_run = f"calibration-{own}"
        short = ["--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1"]
        short += ["--trainer.log_every_n_steps=1", "--save_every=1000000"]
        self._run(stage, short_run, config, Plan(2, 20, 2), [*words, *short])
        metrics = read_metrics(self.runs / stage / short_run / "metrics.csv")
        step, start, batches = calibrated(metrics)
        bought = plan(share * self.seconds, step, start, batches)
        known = {"step_s": step, "start_s": start, "seconds": share * self.seconds}
        text = json.dumps({"plan": vars(bought), **known})
        write_whole(memory, lambda file: file.write(text.encode()))
        return bought

    def write_page(self) -> None:
        """Write the page and its pictures from the rows that are finished."""
        done = {
            row: folder for row in ROWS if (folder := self.finished("lift", row.name, row.config))
        }
        page = self.docs / "results.md"
        kept = page.read_text() if page.is_file() else ""
        below = kept.partition(MARK)[2] or "\n"
        curves = {row: robustness.read(folder) for row, folder in done.items()}
        parts = [self._head(), *_tables(done, curves)]
        parts += self._pictures(done, curves)
        parts += self._chained()
        text = "\n\n".join(parts) + f"\n\n{MARK}{below}"
        write_whole(page, lambda file: file.write(text.encode()))

    def _head(self) -> str:
        return HEAD.format(
            date=time.strftime("%Y-%m-%d"),
            hardware=hardware(),
            seconds=f"{self.seconds:g}",
            data=self._made().describe(),
            **SMOOTH,
        )

    def _pictures(
        self, done: Mapping[Row, Path], curves: Mapping[Row, list[robustness.Point]]
    ) -> list[str]:
        parts = []
        learning = self._learning(done)
        if learning:
            chart = draw.curves(
                learning,
                "CPU seconds, pretraining included",
                "MPJPE on the validation split, mm",
                "MixSTE with and without pretraining",
            )
            draw.write_png(self.docs / "results_learning.png", chart)
            parts.append("## With and without pretraining\n\n![Learning](results_learning.png)")
        noisy = {
            row.title + (" x 2" if row.share > 1 else ""): points
            for row, points in curves.items()
            if points and row.detections == "noisy"
        }
        if noisy:
            chart = robustness.picture(noisy)
            draw.write_png(self.docs / "results_robustness.png", chart)
            parts.append(
                "## On corrupted 2D\n\nRows trained on noisy 2D; one camera of each recording.\n\n"
                "![Robustness](results_robustness.png)"
            )
        return parts

    def _chained(self) -> list[str]:
        """What `chain` found, as a table."""
        memory = self.folder / "chain.json"
        if not memory.is_file():
            return []
        known = json.loads(memory.read_text())
        lines = [
            "## The whole chain on real motion\n",
            f"Recordings {', '.join(CHAIN)}, drawn as people from four cameras, detected by a 2D "
            f"stage ({known['digest'][:12]}), lifted by {ROWS[0].title} trained on noisy 2D.\n",
            "| 2D input | MPJPE | P-MPJPE | MPJVE |\n| --- | --- | --- | --- |",
        ]
        for name, numbers in known["numbers"].items():
            cells = [f"{numbers[f'test/{key}_mm']:.1f}" for key in ("mpjpe", "p_mpjpe", "mpjve")]
            lines.append("| " + " | ".join([name, *cells]) + " |")
        return ["\n".join(lines)]

    def _learning(self, done: Mapping[Row, Path]) -> dict[str, tuple[list[float], list[float]]]:
        """Validation error against CPU seconds since the first step of all, for the MixSTE rows."""
        series = {}
        for row, folder in done.items():
            if not row.name.startswith("mixste"):
                continue
            spent = 0.0
            if row.pretraining:
                given = self.finished("pretrain", "pretraining", row.pretraining)
                spent = used(read_metrics(given / "metrics.csv")) if given else math.nan
            metrics = read_metrics(folder / "metrics.csv")
            clock = [(step, value) for step, name, value in metrics if name == "train/cpu_s"]
            found = [(step, v) for step, name, v in metrics if name == "val/mpjpe_mm"]
            if clock and found:
                steps, passed = zip(*clock, strict=True)
                at = np.interp([step for step, _ in found], steps, passed)
                budget = " x 2" if row.share > 1 else ""
                label = f"{row.title.removeprefix('MixSTE ')}{budget}, {row.detections}"
                series[label] = ((at + spent).tolist(), [value for _, value in found])
        return series


def made(source: Mapping[str, Any]) -> MotionSource:
    """The source that class_path and init_args name."""
    import jsonargparse

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--source", type=MotionSource)
    return parser.instantiate(parser.parse_object({"source": dict(source)})).source


def _few(names: Sequence[str]) -> str:
    """The benchmark's table of splits with these recordings alone."""
    head, *lines = (SHIPPED / "splits.csv").read_text("utf-8").splitlines()
    return "\n".join([head, *(line for line in lines if line.split(",")[0] in names)]) + "\n"


def _state(folder: Path) -> dict[str, Any]:
    return read_state(folder) or {}


def hardware() -> str:
    """Processor and torch, for the page."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"one core of {names[0] if names else platform.processor()}, torch {torch.__version__}"


def calibrated(metrics: Iterable[tuple[int, str, float]]) -> tuple[float, float, int]:
    """What a short run of two passes tells.

    Returns:
        CPU seconds of a step, CPU seconds that a pass takes beside its steps, and steps of a whole
        pass.

    Raises:
        UsageError: If there are too few steps to tell.
    """
    clock = {step: value for step, name, value in metrics if name == "train/cpu_s"}
    batches = next(v for _, name, v in metrics if name == "train/batches_per_pass")
    steps = sorted(clock)
    if len(steps) < 8:
        raise UsageError("the data give fewer than four batches in a pass; results needs more data")
    costs = np.diff([clock[step] for step in steps])
    half = len(steps) // 2
    later = costs[half:]
    step = float(later[len(later) // 4 :].mean())
    return step, max(0.0, float(costs[half - 1]) - step), int(batches)


def used(metrics: Iterable[tuple[int, str, float]]) -> float:
    """CPU seconds that a run spent on training."""
    return max((value for _, name, value in metrics if name == "train/cpu_s"), default=math.nan)


def _tables(
    done: Mapping[Row, Path], curves: Mapping[Row, list[robustness.Point]]
) -> Iterable[str]:
    """One table for each kind of 2D input; a row that is not finished says so."""
    head = (
        "| lifter | used, s | MPJPE | P-MPJPE | N-MPJPE | MPJVE | kinds seen / unseen "
        "| 20 % hidden | 40 % hidden |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    for detections in ("noisy", "exact"):
        lines = [f"## {detections.capitalize()} 2D\n", head]
        mine = [row for row in ROWS if row.detections == detections]
        floor = next((_state(done[row])["numbers"] for row in mine if row in done), None)
        if floor:
            numbers = {
                key.replace("mean_pose_", ""): v for key, v in floor.items() if "mean" in key
            }
            lines.append(_line("mean training pose", "-", numbers, []))
        for row in mine:
            title = row.title + (" at the total budget" if row.share > 1 else "")
            if row in done:
                numbers = _state(done[row])["numbers"]
                spent = used(read_metrics(done[row] / "metrics.csv"))
                taken = f"{spent:.0f}" + (" + pretraining" if row.pretraining else "")
                lines.append(_line(title, taken, numbers, curves[row]))
            else:
                lines.append(f"| {title} | not yet | | | | | | | |")
        yield "\n".join(lines)


def _line(
    title: str, spent: str, numbers: Mapping[str, Any], points: Sequence[robustness.Point]
) -> str:
    def shown(key: str, digits: int = 1) -> str:
        value = numbers.get(f"test/{key}_mm")
        return "-" if value is None else f"{value:.{digits}f}"

    hidden = {p.level: f"{p.mpjpe:.1f}" for p in points if p.corruption == "joints hidden"}
    cells = [title, spent, shown("mpjpe"), shown("p_mpjpe"), shown("n_mpjpe"), shown("mpjve", 2)]
    cells += [f"{shown('mpjpe_seen')} / {shown('mpjpe_unseen')}"]
    cells += [hidden.get(0.2, "-"), hidden.get(0.4, "-")]
    return "| " + " | ".join(cells) + " |"
