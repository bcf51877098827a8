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
from pipeline.datasets.mocap import Mocap
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
- **Budget** in CPU seconds of one thread, counted over training alone: batches, steps and saving,
  no validation. A short run measures what a step costs; the number of steps follows, so that the
  schedule knows its length. *used* is what a row's lifting took. VideoPose3D, Martinez and MixSTE
  have {seconds:g} each. Pretraining has the same again; a further row of MixSTE spends both on
  lifting. The other lifters have {twice:g} and are compared with that row.
- **Data** {data}.
- **Protocol** test split, frames outside bad ranges, 4 cameras; prediction and truth relative to
  the root, 17 joints with the root counted as zero, mean over frames, no flip test; mm, MPJVE in mm
  per frame. What comes out is smoothed over time (a Gaussian; deviation {noisy:g} frames on noisy,
  {exact:g} on exact 2D). Weights are those of the best validation. *hidden*: 20 and 40 % of the
  joints that the 2D has, at random; one camera of each recording.
- **Frame subset** Frames 0 and 1 of every 16 of each video, two in a row so that MPJVE has a
  meaning. Lifters that give out the centre frame of a window alone (†) are lifted and scored on
  them everywhere, in validation too, and are not smoothed, for lack of neighbours. A table of its
  own has all lifters on noisy 2D on these frames; those without † are smoothed there too."""
"""How the page begins."""


@dataclass(frozen=True)
class Row:
    """One trained lifter of the table.

    Args:
        name: Of its run.
        title: For people.
        size: Of the lifter, for people.
        config: Of the lifter.
        detections: exact or noisy.
        share: Its lifting budget in parts of the budget of a row.
        pretraining: Config of the pretraining it starts from, which has a budget of its own.
        frames: Those that are scored, as `LiftModule` has it.
    """

    name: str
    title: str
    size: str
    config: str
    detections: str
    share: float = 1.0
    pretraining: str | None = None
    frames: str = "all"

    def words(self) -> list[str]:
        """What the command line is told beside the config."""
        smooth = SMOOTH[self.detections] if self.frames == "all" else 0.0
        found = ["--data.detections", self.detections, "--model.flip_test", "false"]
        return [*found, f"--model.smooth={smooth}", f"--model.frames={self.frames}"]


def _compared(detections: str) -> tuple[Row, ...]:
    """Three lifters at equal budgets, and one of them with and without pretraining."""
    mixste, first = "lift/mixste_mocap", "pretrain/mixste_mocap"
    size = "27 frames, 64 channels, 4 pairs of blocks"
    rows = (
        ("videopose3d", "VideoPose3D", "27 frames, 512 channels", "lift/videopose3d_mocap"),
        ("martinez", "Martinez", "1024 channels", "lift/martinez_mocap"),
        ("mixste", "MixSTE from scratch", size, mixste),
        ("mixste-pretrained", "MixSTE pretrained", size, mixste, 1.0, first),
        ("mixste-total", "MixSTE from scratch", size, mixste, 2.0),
    )
    return tuple(
        Row(f"{name}-{detections}", title, shown, config, detections, *more)
        for name, title, shown, config, *more in rows
    )


def _others() -> tuple[Row, ...]:
    """The other lifters of the papers, on noisy 2D, at twice the budget."""
    centre = "27 frames, 16 channels per joint, 2 + 2 blocks"
    rows = (
        ("combined", "Combined Deep Learner", "512 channels", "all"),
        ("cascade", "Cascade", "3 stages of 3 blocks, 512 channels", "all"),
        ("poseformer", "PoseFormer", centre, "subset"),
        ("poseformer_group", "PoseFormer with group attention", centre, "subset"),
    )
    return tuple(
        Row(f"{name}-noisy", title, size, f"lift/{name}_mocap", "noisy", 2.0, frames=frames)
        for name, title, size, frames in rows
    )


SMOOTH = {"noisy": 3.0, "exact": 1.0}
"""Deviation of the Gaussian over time on what comes out, frames at 50 Hz."""

ROWS = (*_compared("noisy"), *_others(), *_compared("exact"))
"""In the order in which they are trained."""


CAREFUL = 0.96
"""Part of a budget that is planned for: what a step costs is known to a few per cent."""

SUBSET = "subset.json"
"""Beside a run whose own test did not score the frame subset: what it has on it."""

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
        due = trainer.global_step and trainer.global_step % every == 0
        if due and isinstance(trainer.logger, MetricsFile):
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
    docs: str | None = None,
) -> None:
    """Train the compared set row by row and write `results.md` with its pictures.

    Each row gets the same CPU time of one thread. A row that is finished is kept, one that was
    stopped goes on where it was; the page is written after each. What is measured on other data
    than the open benchmark stays out of `docs` unless that folder is named.

    Args:
        source: class_path and init_args of the data, as `-c data/mocap` gives them.
        seconds: Budget of a row; pretraining has the same again.
        rows: Names of the rows to train; all unless given.
        detector: Checkpoint of a 2D stage: some test recordings are rendered, detected by it and
            lifted, as a row of its own.
        runs: Folder of all runs.
        docs: Folder of the page; by default `docs` for the open benchmark and the folder
            `results` of all runs for other data.

    Raises:
        UsageError: If a row has no such name.
        RowError: If a row fails; its line is printed before.
    """
    unknown = set(rows or ()) - {row.name for row in ROWS}
    if unknown:
        names = ", ".join(row.name for row in ROWS)
        raise UsageError(f"no row {min(unknown)}; there are {names}")
    if seconds <= 0:
        raise UsageError(f"--seconds {seconds:g}: give a budget above 0")
    torch.set_num_threads(1)
    settled = _settled(source)
    page = Path(docs) if docs else _home(settled, Path(runs))
    bench = Bench(settled, seconds, Path(runs), page)
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


def _home(source: Mapping[str, Any], runs: Path) -> Path:
    """Where the page belongs whose folder nobody named."""
    return Path("docs") if isinstance(made(source), Mocap) else runs / "results"


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
        words = [*row.words(), "--model.pretrained", pretrained]
        folder = self._fit("lift", row.name, row.config, row.share, words)
        if "test/subset_mpjpe_mm" not in _numbers(folder):
            say(f"  {row.name}: the frame subset, which its test left out")
            found = self._tested(folder, self.source, row.detections)
            text = json.dumps({name: v for name, v in found.items() if "subset" in name})
            write_whole(folder / SUBSET, lambda file: file.write(text.encode()))
        if not robustness.read(folder):
            say(f"  {row.name}: hidden joints, dropped frames, noise")
            module: Any = rebuild(folder / _state(folder)["checkpoint"], ("lift",))
            points = robustness.measure(module, self._made(), detections=row.detections)
            robustness.write(folder, points)

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
        found = {}
        for detections in ("exact", "noisy", detector):
            key = detections if detections != detector else "detected"
            found[key] = self._tested(folder, shown, detections)
        text = json.dumps({"digest": file_digest(Path(detector)), "numbers": found})
        write_whole(self.folder / "chain.json", lambda file: file.write(text.encode()))

    def name_of(self, name: str, config: str) -> str:
        """Name of a row's run, which holds a digest of data, budget and what the config says.

        Its comments and `max_epochs` do not count: the budget decides how long a row is trained.
        """
        said = yaml.safe_load(find_config(config).read_text())
        said.get("trainer", {}).pop("max_epochs", None)
        text = json.dumps([self.source, self.seconds, said], sort_keys=True)
        return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"

    def finished(self, stage: str, name: str, config: str) -> Path | None:
        """Folder of a row's finished run, if there is one."""
        found = newest_finished(self.runs, stage, lambda _: True, self.name_of(name, config))
        return found.parents[1] if found else None

    def _tested(self, folder: Path, source: Mapping[str, Any], detections: str) -> dict[str, float]:
        """Numbers of a finished run's weights on the test split of a source, in its precision."""
        state = _state(folder)
        trainer = pl.Trainer(
            precision=state["settings"]["trainer"]["precision"],
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=self.folder,
        )
        module = rebuild(folder / state["checkpoint"], ("lift",))
        data = LiftDataModule(made(source), detections)
        trainer.test(module, datamodule=data, verbose=False)
        return {name: float(value) for name, value in trainer.callback_metrics.items()}

    def _made(self) -> MotionSource:
        return made(self.source)

    def _fit(self, stage: str, name: str, config: str, share: float, words: list[str]) -> Path:
        folder = self.finished(stage, name, config)
        if folder is None:
            say(f"results: {name}, {share * self.seconds:g} CPU seconds of one thread")
            bought = self._plan(stage, name, config, share, words)
            own = self.name_of(name, config)
            self._run(stage, own, config, bought, self.runs, [*words, "--save_every", "100"])
            folder = self.finished(stage, name, config)
            assert folder is not None
        return folder

    def _run(
        self, stage: str, name: str, config: str, bought: Plan, runs: Path, words: Sequence[str]
    ) -> None:
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
        line += ["--runs", str(runs)]
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
        calibration = self.folder / "calibration"  # apart: 80 steps must never count as a stage
        short = ["--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1"]
        short += ["--trainer.log_every_n_steps=1", "--save_every=1000000"]
        self._run(stage, own, config, Plan(2, 40, 2), calibration, [*words, *short])
        metrics = read_metrics(calibration / stage / own / "metrics.csv")
        step, start, batches = calibrated(metrics)
        bought = plan(CAREFUL * share * self.seconds, step, start, batches)
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
        parts = [self._head(), *_tables(done, curves, self.seconds)]
        parts.append(_on_the_subset(done, self.seconds))
        parts += self._pictures(done, curves)
        parts += self._chained()
        text = "\n\n".join(parts) + f"\n\n{MARK}{below}"
        write_whole(page, lambda file: file.write(text.encode()))

    def _head(self) -> str:
        return HEAD.format(
            date=time.strftime("%Y-%m-%d"),
            hardware=hardware(),
            seconds=self.seconds,
            twice=2 * self.seconds,
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
            row.title + " x 2" * (row.share > 1) + " †" * (row.frames == "subset"): points
            for row, points in curves.items()
            if points and row.detections == "noisy"
        }
        if noisy:
            chart = robustness.picture(noisy)
            draw.write_png(self.docs / "results_robustness.png", chart)
            parts.append(
                "## On corrupted 2D\n\nRows trained on noisy 2D; one camera of each recording; "
                "x 2: with twice the seconds; † on the frame subset.\n\n"
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


def _numbers(folder: Path) -> dict[str, float]:
    """What a finished run was tested to have."""
    beside = folder / SUBSET
    later = json.loads(beside.read_text()) if beside.is_file() else {}
    return {**_state(folder)["numbers"], **later}


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
    done: Mapping[Row, Path], curves: Mapping[Row, list[robustness.Point]], seconds: float
) -> Iterable[str]:
    """One table for each kind of 2D input; a row that is not finished says so."""
    for detections in ("noisy", "exact"):
        lines = [f"## {detections.capitalize()} 2D\n", *_header("20 % hidden", "40 % hidden")]
        mine = [row for row in ROWS if row.detections == detections]
        whole = (row for row in mine if row in done and row.frames == "all")
        floor = next((_numbers(done[row]) for row in whole), None)
        if floor:
            cells = ["mean training pose", "-", "-", "-", *_errors(floor, "mean_pose_")]
            lines.append(_line([*cells, "-", "-"]))
        for row in mine:
            errors: list[str] = []
            if row in done:
                errors = _errors(_numbers(done[row]))
                hidden = (p for p in curves[row] if p.corruption == "joints hidden")
                levels = {p.level: f"{p.mpjpe:.1f}" for p in hidden}
                errors += [levels.get(0.2, "-"), levels.get(0.4, "-")]
            lines.append(_line([*_about(row, done.get(row), seconds), *(errors or [""] * 7)]))
        yield "\n".join(lines)


def _on_the_subset(done: Mapping[Row, Path], seconds: float) -> str:
    """A table of all lifters on noisy 2D, each on the frames that all of them are scored on."""
    lines = ["## All lifters on the frame subset, noisy 2D\n", *_header()]
    for row in ROWS:
        if row.detections == "noisy":
            errors = _errors(_numbers(done[row]), "subset_") if row in done else [""] * 5
            lines.append(_line([*_about(row, done.get(row), seconds), *errors]))
    return "\n".join(lines)


def _header(*more: str) -> list[str]:
    cells = ["lifter", "size", "budget, s", "used, s", "MPJPE", "P-MPJPE", "N-MPJPE", "MPJVE"]
    cells += ["kinds seen / unseen", *more]
    return [_line(cells), _line(["---"] * len(cells))]


def _about(row: Row, folder: Path | None, seconds: float) -> list[str]:
    """Which lifter, how large, how long it may train and how long it did."""
    budget = f"{row.share * seconds:g}"
    spent = f"{used(read_metrics(folder / 'metrics.csv')):.0f}" if folder else "not yet"
    if row.pretraining:
        budget += f" + {seconds:g}"
        spent += " + pretraining" if folder else ""
    return [row.title + (" †" if row.frames == "subset" else ""), row.size, budget, spent]


def _errors(numbers: Mapping[str, float], part: str = "") -> list[str]:
    """Cells of errors; `part` is what stands before the names of their quantities."""

    def shown(key: str, digits: int = 1) -> str:
        value = numbers.get(f"test/{part}{key}_mm")
        return "-" if value is None else f"{value:.{digits}f}"

    cells = [shown("mpjpe"), shown("p_mpjpe"), shown("n_mpjpe"), shown("mpjve", 2)]
    return [*cells, f"{shown('mpjpe_seen')} / {shown('mpjpe_unseen')}"]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
