"""`heatlift results`: the rows of the open benchmark trained at equal budgets of CPU time."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import yaml

from pipeline.cli import launch
from pipeline.cli.configs import find_config
from pipeline.dashboard import charts, media
from pipeline.errors import HeatliftError, UsageError
from pipeline.experiments import robustness
from pipeline.experiments.benchmark_page import (
    HEAD,
    MARK,
    ROWS,
    SMOOTH,
    SUBSET,
    Row,
    error_tables,
    hardware,
    run_numbers,
    run_state,
    subset_table,
)
from pipeline.experiments.budget import (
    CAREFUL,
    Plan,
    cpu_seconds_used,
    plan_steps,
    read_calibration,
)
from pipeline.files.digests import file_digest
from pipeline.files.writing import write_atomically
from pipeline.lift.data import LiftDataModule
from pipeline.lift.module import LiftModule
from pipeline.mocap.motion_capture import Mocap
from pipeline.mocap.recordings import SHIPPED
from pipeline.sources import MotionSource
from pipeline.training.checkpoints import load_module
from pipeline.training.console import print_line
from pipeline.training.metrics_file import read_metrics
from pipeline.training.run_folder import newest_finished_run

CHAIN = ("08_10", "10_03", "14_37")
"""Test recordings that are rendered and detected: a walk, a kick, a drink."""


def results(
    source: dict[str, Any],
    *,
    seconds: float = 420.0,
    rows: list[str] | None = None,
    detector: str | None = None,
    runs: str = "runs",
    docs: str | None = None,
) -> None:
    """Train the compared set row by row and write `results.md` with its images.

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
    bench = Benchmark(settled, seconds, Path(runs), page)
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
    return Path("docs") if isinstance(make_source(source), Mocap) else runs / "results"


class Benchmark:
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
        write_atomically(self.data, lambda file: file.write(text.encode()))

    def train(self, row: Row) -> None:
        """Train a row, and first what it starts from; measure it on corrupted 2D."""
        pretrained = "none"
        if row.pretraining:
            given = self._fit("pretrain", "pretraining", row.pretraining, 1.0, [])
            pretrained = str(given / run_state(given)["checkpoint"])
        words = [*row.words(), "--model.pretrained", pretrained]
        folder = self._fit("lift", row.name, row.config, row.share, words)
        if "test/subset_mpjpe_mm" not in run_numbers(folder):
            print_line(f"  {row.name}: the frame subset, which its test left out")
            found = self._tested(folder, self.source, row.detections)
            text = json.dumps({name: v for name, v in found.items() if "subset" in name})
            write_atomically(folder / SUBSET, lambda file: file.write(text.encode()))
        if not robustness.read_points(folder):
            print_line(f"  {row.name}: hidden joints, dropped frames, noise")
            module: Any = load_module(folder / run_state(folder)["checkpoint"], (LiftModule,))
            points = robustness.measure_robustness(module, self._made(), detections=row.detections)
            robustness.write_points(folder, points)

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
        write_atomically(few, lambda file: file.write(_few(CHAIN).encode()))
        beside = {"splits": str(few), "images": True}
        shown = {**self.source, "init_args": {**self.source["init_args"], **beside}}
        found = {}
        for detections in ("exact", "noisy", detector):
            key = detections if detections != detector else "detected"
            found[key] = self._tested(folder, shown, detections)
        text = json.dumps({"digest": file_digest(Path(detector)), "numbers": found})
        write_atomically(self.folder / "chain.json", lambda file: file.write(text.encode()))

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
        found = newest_finished_run(self.runs, stage, lambda _: True, self.name_of(name, config))
        return found.parents[1] if found else None

    def _tested(self, folder: Path, source: Mapping[str, Any], detections: str) -> dict[str, float]:
        """Numbers of a finished run's weights on the test split of a source, in its precision."""
        state = run_state(folder)
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
        module = load_module(folder / state["checkpoint"], (LiftModule,))
        data = LiftDataModule(make_source(source), detections)
        trainer.test(module, datamodule=data, verbose=False)
        return {name: float(value) for name, value in trainer.callback_metrics.items()}

    def _made(self) -> MotionSource:
        return make_source(self.source)

    def _fit(self, stage: str, name: str, config: str, share: float, words: list[str]) -> Path:
        folder = self.finished(stage, name, config)
        if folder is None:
            print_line(f"results: {name}, {share * self.seconds:g} CPU seconds of one thread")
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
            "callbacks+": "pipeline.experiments.budget.CpuTime",
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
        code = launch.run_stage(stage, [*line, *words])
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
        step, start, batches = read_calibration(metrics)
        bought = plan_steps(CAREFUL * share * self.seconds, step, start, batches)
        known = {"step_s": step, "start_s": start, "seconds": share * self.seconds}
        text = json.dumps({"plan": vars(bought), **known})
        write_atomically(memory, lambda file: file.write(text.encode()))
        return bought

    def write_page(self) -> None:
        """Write the page and its images from the rows that are finished."""
        done = {
            row: folder for row in ROWS if (folder := self.finished("lift", row.name, row.config))
        }
        page = self.docs / "results.md"
        kept = page.read_text() if page.is_file() else ""
        below = kept.partition(MARK)[2] or "\n"
        curves = {row: robustness.read_points(folder) for row, folder in done.items()}
        parts = [self._head(), *error_tables(done, curves, self.seconds)]
        parts.append(subset_table(done, self.seconds))
        parts += self._images(done, curves)
        parts += self._chained()
        text = "\n\n".join(parts) + f"\n\n{MARK}{below}"
        write_atomically(page, lambda file: file.write(text.encode()))

    def _head(self) -> str:
        return HEAD.format(
            date=time.strftime("%Y-%m-%d"),
            hardware=hardware(),
            seconds=self.seconds,
            twice=2 * self.seconds,
            data=self._made().describe(),
            **SMOOTH,
        )

    def _images(
        self, done: Mapping[Row, Path], curves: Mapping[Row, list[robustness.Point]]
    ) -> list[str]:
        parts = []
        learning = self._learning(done)
        if learning:
            chart = charts.draw_curves(
                learning,
                "CPU seconds, pretraining included",
                "MPJPE on the validation split, mm",
                "MixSTE with and without pretraining",
            )
            media.write_png(self.docs / "results_learning.png", chart)
            parts.append("## With and without pretraining\n\n![Learning](results_learning.png)")
        noisy = {
            row.title + " x 2" * (row.share > 1) + " †" * (row.frames == "subset"): points
            for row, points in curves.items()
            if points and row.detections == "noisy"
        }
        if noisy:
            chart = robustness.draw_robustness(noisy)
            media.write_png(self.docs / "results_robustness.png", chart)
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
                spent = cpu_seconds_used(read_metrics(given / "metrics.csv")) if given else math.nan
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


def make_source(source: Mapping[str, Any]) -> MotionSource:
    """The source that class_path and init_args name."""
    import jsonargparse

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--source", type=MotionSource)
    return parser.instantiate(parser.parse_object({"source": dict(source)})).source


def _few(names: Sequence[str]) -> str:
    """The benchmark's table of splits with these recordings alone."""
    head, *lines = (SHIPPED / "splits.csv").read_text("utf-8").splitlines()
    return "\n".join([head, *(line for line in lines if line.split(",")[0] in names)]) + "\n"
