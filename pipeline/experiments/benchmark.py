"""`heatlift results`: rows of the open benchmark, trained at equal budgets of CPU time."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import yaml

from pipeline.cli import launch
from pipeline.cli.configs import find_config
from pipeline.cli.stage_check import check_fit
from pipeline.detections.cache import load_detector
from pipeline.errors import HeatliftError, UsageError, print_error
from pipeline.experiments.benchmark_errors import (
    RowErrors,
    measure_errors,
    measure_row,
    read_errors,
    write_errors,
)
from pipeline.experiments.benchmark_page import (
    CHAIN,
    CHAIN_FILE,
    PageContent,
    run_state,
    write_page,
)
from pipeline.experiments.benchmark_rows import ROWS, SMOOTH, Row, RowRun
from pipeline.experiments.benchmark_source import complete_source, make_source, select_splits
from pipeline.experiments.budget import PLANNED_SHARE, Plan, plan_steps, read_calibration
from pipeline.experiments.chain import StepError
from pipeline.files.digests import file_digest
from pipeline.files.writing import write_atomically
from pipeline.mocap.motion_capture import Mocap
from pipeline.training.console import print_line
from pipeline.training.metrics_rows import read_metrics
from pipeline.training.processes import LOST_CODE, exit_with
from pipeline.training.run_changes import describe_mixture
from pipeline.training.run_folder import newest_checkpoint, newest_finished_run


def results(
    source: dict[str, Any],
    *,
    seconds: float = 420.0,
    rows: list[str] | None = None,
    seeds: int = 3,
    workers: int | None = None,
    detector: str | None = None,
    runs: str = "runs",
    docs: str | None = None,
    resume_with_changed_code: bool = False,
) -> None:
    """Train the lifters of the open benchmark and write `results.md` with its images.

    Each row gets the same CPU time of one thread. A finished row is kept, an interrupted one is
    resumed, and the page is written after each row.

    Args:
        source: Data source (class_path and init_args), usually given by a config: `-c data/mocap`.
        seconds: Budget of a row, CPU seconds; pretraining has the same budget in addition.
        rows: Names of the rows to train; all by default.
        seeds: Number of trainings, with seeds 0, 1, …, of each row whose differences are discussed.
        workers: Number of rows that are trained at once; by default one per core.
        detector: Checkpoint of a 2D stage; with it, three test recordings are rendered, detected
            and lifted, and a table of these errors is added to the page.
        runs: Folder of all runs.
        docs: Folder of the page; by default docs for data/mocap, and RUNS/results for other data.
        resume_with_changed_code: Whether a row is resumed also if the code of Heatlift has changed.

    Raises:
        UsageError: If there is no row of a name, or a number is not positive.
        StepError: If a row fails.
    """
    unknown = set(rows or ()) - {row.name for row in ROWS}
    if unknown:
        names = ", ".join(row.name for row in ROWS)
        raise UsageError(f"--rows: no row {min(unknown)}; there are {names}")
    if seconds <= 0:
        raise UsageError(f"--seconds {seconds:g}: give a budget above 0")
    if seeds < 1:
        raise UsageError(f"--seeds {seeds}: give at least 1")
    if workers is None:
        has_affinity = hasattr(os, "sched_getaffinity")
        workers = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    if workers < 1:
        raise UsageError(f"--workers {workers}: give at least 1")
    if detector:
        load_detector(detector)  # used last, so it is checked first
    torch.set_num_threads(1)
    source = _merge_options(source)
    page_folder = Path(docs) if docs else _page_folder(source, Path(runs))
    benchmark = Benchmark(source, seconds, Path(runs), page_folder)
    benchmark.options = ["--resume_with_changed_code"] if resume_with_changed_code else []
    trainings = list_trainings([row for row in ROWS if not rows or row.name in rows], seeds)
    benchmark.check(trainings)
    benchmark.train_all(trainings, workers)
    if detector:
        benchmark.measure_chain(detector)
    benchmark.write_page()
    folders = [folder for row in ROWS for folder in benchmark.finished_seeds(row).values()]
    for line in describe_mixture({folder: run_state(folder) for folder in folders}):
        print_line(line)


@dataclass(frozen=True)
class Training:
    """One training of the benchmark, with its measurement.

    Args:
        row: The row.
        seed: Its seed.
        pretraining: Whether it is the pretraining of the row, and not the row itself.
    """

    row: Row
    seed: int = 0
    pretraining: bool = False

    @property
    def run(self) -> RowRun:
        """Its run."""
        run = self.row.pretraining_run(self.seed) if self.pretraining else None
        return run or self.row.lifting_run(self.seed)

    def needs(self) -> RowRun | None:
        """The pretraining that has to be finished before it begins."""
        return None if self.pretraining else self.row.pretraining_run(self.seed)


def list_trainings(rows: Sequence[Row], seeds: int) -> list[Training]:
    """List the trainings of rows in the order in which they begin: seed by seed.

    Pretrainings come first, so that no row waits long for its own. Rows share them.

    Args:
        rows: The rows.
        seeds: Number of seeds of the rows that are repeated.
    """
    trainings: dict[RowRun, Training] = {}
    for seed in range(seeds):
        part = [row for row in rows if row.repeated or not seed]
        for training in (
            *(Training(row, seed, pretraining=True) for row in part if row.pretraining),
            *(Training(row, seed) for row in part),
        ):
            trainings.setdefault(training.run, training)
    return list(trainings.values())


def _merge_options(source: Mapping[str, Any]) -> dict[str, Any]:
    """Move options such as `--source.root` into the `init_args` of a source.

    Raises:
        UsageError: If the source has no class_path.
    """
    if "class_path" not in source:
        raise UsageError("results: no data; give -c data/mocap or a config of your own")
    options = {
        key: value for key, value in source.items() if key not in ("class_path", "init_args")
    }
    init_args = {**(source.get("init_args") or {}), **options}
    return {"class_path": source["class_path"], "init_args": init_args}


def _page_folder(source: Mapping[str, Any], runs: Path) -> Path:
    """Default folder of the page."""
    return Path("docs") if isinstance(make_source(source), Mocap) else runs / "results"


class Benchmark:
    """Trainings and measurements of all rows, on one data source at one budget.

    Args:
        source: class_path and init_args of the data source.
        seconds: Budget of a row, CPU seconds.
        runs: Folder of all runs.
        docs: Folder of the page.
    """

    def __init__(self, source: dict[str, Any], seconds: float, runs: Path, docs: Path) -> None:
        self.source, self.seconds, self.runs, self.docs = source, seconds, runs, docs
        self.folder, self.data_config = runs / "results", runs / "results" / "data.yaml"
        self.options: list[str] = []  # more of each run
        text = yaml.safe_dump({"data": {"source": complete_source(source)}})
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.data_config, lambda file: file.write(text.encode()))

    def check(self, trainings: Sequence[Training]) -> None:
        """Check the first training that is not finished: all of them have its data.

        Raises:
            HeatliftError: If it cannot be trained.
        """
        unfinished = [t.run for t in trainings if self.finished(t.run) is None]
        for run in unfinished[:1]:
            options = ["fit", "-c", run.config, "-c", str(self.data_config), *run.arguments]
            check_fit(run.stage, [*options, "--runs", str(self.runs), "--wandb", "off"])

    def train(self, training: Training) -> None:
        """Train a row and measure it, or train a pretraining, unless that is done."""
        run, row = training.run, training.row
        if training.pretraining:
            self._fit(run)
            return
        pretrained = "none"
        if needed := training.needs():
            pretrained = str(self._checkpoint(self._fit(needed)))
        folder = self._fit(run, "--model.pretrained", pretrained)
        smooth = SMOOTH[row.detections]
        if read_errors(folder, smooth) is None:
            print_line(f"  {run.name}: test without and with smoothing, and on corrupted 2D")
            errors = measure_row(
                self._checkpoint(folder),
                newest_checkpoint(folder),
                make_source(self.source),
                row.detections,
                smooth,
                corrupted=not training.seed,
            )
            write_errors(folder, errors)

    def train_all(self, trainings: Sequence[Training], workers: int) -> None:
        """Train and measure rows and write the page after each; see `train`.

        Args:
            trainings: What to train, in order.
            workers: Number of processes; 1 for this one.

        Raises:
            StepError: If a row fails; the others that have begun are stopped.
        """
        open_trainings = [training for training in trainings if not _is_done(self, training)]
        if workers == 1 or len(open_trainings) < 2:
            for training in trainings:
                self.train(training)
                self.write_page()
            return
        running: dict[Training, BaseProcess] = {}
        try:
            while open_trainings or running:
                _start_trainings(self, open_trainings, running, workers)
                wait([process.sentinel for process in running.values()])
                ended = [t for t, process in running.items() if process.exitcode is not None]
                for training in ended:
                    if code := running.pop(training).exitcode:
                        name, code = self.run_name(training.run), code if code > 0 else LOST_CODE
                        raise StepError(f"row {name}", code)
                    self.write_page()
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.join()

    def measure_chain(self, detector: str) -> None:
        """Render and detect the recordings in `CHAIN`, and lift them with the first row.

        Args:
            detector: Checkpoint of a 2D stage.

        Raises:
            UsageError: If the first row is not finished.
        """
        folder = self.finished(ROWS[0].lifting_run())
        if folder is None:
            raise UsageError(f"row {ROWS[0].name} is not finished; train it first")
        splits = self.folder / "chain.csv"
        write_atomically(splits, lambda file: file.write(select_splits(CHAIN).encode()))
        changes = {"splits": str(splits), "images": True}
        source = make_source({**self.source, "init_args": {**self.source["init_args"], **changes}})
        smoothings = (0.0, SMOOTH[ROWS[0].detections])
        inputs = {"exact": "exact", "noisy": "noisy", "detected": detector}
        numbers = {
            label: [
                measure_errors(self._checkpoint(folder), source, detections, smooth)
                for smooth in smoothings
            ]
            for label, detections in inputs.items()
        }
        text = json.dumps({"digest": file_digest(Path(detector)), "numbers": numbers})
        write_atomically(self.folder / CHAIN_FILE, lambda file: file.write(text.encode()))

    def run_name(self, run: RowRun) -> str:
        """Name of a run: with a digest of everything that decides its result.

        That are the data source, the budget, the arguments, and the configs of the run and of its
        pretraining. Comments and `max_epochs` are ignored: the budget defines the length of the
        training.
        """
        configs = [yaml.safe_load(find_config(run.config).read_text())]
        if run.pretraining:
            configs.append(yaml.safe_load(find_config(run.pretraining).read_text()))
        for config in configs:
            config.get("trainer", {}).pop("max_epochs", None)
        content = [self.source, self.seconds, run.share, run.arguments, configs]
        text = json.dumps(content, sort_keys=True)
        return f"{run.name}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"

    def finished(self, run: RowRun) -> Path | None:
        """Folder of a finished run; None if there is none."""
        found = newest_finished_run(self.runs, run.stage, lambda _: True, self.run_name(run))
        return found.parents[1] if found else None

    def finished_seeds(self, row: Row) -> dict[int, Path]:
        """Seed -> folder of the finished run of a row, from seed 0 to the first that is missing."""
        folders: dict[int, Path] = {}
        while folder := self.finished(row.lifting_run(len(folders))):
            folders[len(folders)] = folder
        return folders

    def _checkpoint(self, folder: Path) -> Path:
        """Best weights of a finished run."""
        return folder / str(run_state(folder)["checkpoint"])

    def _fit(self, run: RowRun, *more_arguments: str) -> Path:
        """Train a run unless it is finished; return its folder."""
        folder = self.finished(run)
        if folder is None:
            seconds = run.share * self.seconds
            print_line(f"results: {run.name}, {seconds:g} CPU seconds of one thread")
            arguments = [*run.arguments, *more_arguments]
            plan = self._plan(run, arguments)
            self._run(run, plan, self.runs, [*arguments, "--save_every", "100"])
            folder = self.finished(run)
            assert folder is not None
        return folder

    def _run(self, run: RowRun, plan: Plan, runs: Path, arguments: Sequence[str]) -> None:
        """Train a stage for the length of a plan.

        Raises:
            StepError: If the run fails.
        """
        trainer = {
            "callbacks+": "pipeline.experiments.budget.CpuTime",
            "max_epochs": plan.epochs,
            "limit_train_batches": plan.batches,
            "check_val_every_n_epoch": plan.validate_every,
            "num_sanity_val_steps": 0,
            "accelerator": "cpu",
            "devices": 1,
        }
        name = self.run_name(run)
        options = ["fit", "-c", run.config, "-c", str(self.data_config), "--name", name]
        options += ["--wandb", "off", "--runs", str(runs)]
        options += [f"--trainer.{key}={value}" for key, value in trainer.items()]
        code = launch.run_stage(run.stage, [*options, *arguments, *self.options])
        os.environ.pop("HEATLIFT_RUN", None)
        if code:
            raise StepError(f"row {name}", code)

    def _plan(self, run: RowRun, arguments: Sequence[str]) -> Plan:
        """Plan the length of a training, from the costs in a short run; stored in a file."""
        run_name = self.run_name(run)
        plan_file = self.folder / f"{run_name}.json"
        if plan_file.is_file():
            return Plan(**json.loads(plan_file.read_text())["plan"])
        runs = self.folder / "calibration"  # another folder, so that it is no finished run
        short = ["--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1"]
        short += ["--trainer.log_every_n_steps=1", "--save_every=1000000"]
        self._run(run, Plan(2, 40, 2), runs, [*arguments, *short])
        metrics = read_metrics(runs / run.stage / run_name / "metrics.csv")
        step, start, batches = read_calibration(metrics)
        plan = plan_steps(PLANNED_SHARE * run.share * self.seconds, step, start, batches)
        costs = {"step_s": step, "start_s": start, "seconds": run.share * self.seconds}
        text = json.dumps({"plan": vars(plan), **costs})
        write_atomically(plan_file, lambda file: file.write(text.encode()))
        return plan

    def write_page(self) -> None:
        """Write the page and its images from the rows that are finished."""
        finished: dict[Row, Path] = {}
        pretraining: dict[Row, Path] = {}
        errors: dict[Row, list[RowErrors]] = {}
        for row in ROWS:
            folders = self.finished_seeds(row)
            if not folders:
                continue
            finished[row] = folders[0]
            found = [read_errors(folder, SMOOTH[row.detections]) for folder in folders.values()]
            if measured := list(takewhile(bool, found)):
                errors[row] = measured  # type: ignore[assignment]  # no None before the first
            run = row.pretraining_run()
            if run and (source := self.finished(run)):
                pretraining[row] = source
        data = make_source(self.source).describe()
        content = PageContent(finished, errors, pretraining, self.seconds, data, self.folder)
        write_page(self.docs, content)


def _start_trainings(
    benchmark: Benchmark,
    waiting: list[Training],
    running: dict[Training, BaseProcess],
    workers: int,
) -> None:
    """Start those trainings that wait for no pretraining, up to a number of processes."""
    for training in list(waiting):
        needed = training.needs()
        if len(running) < workers and (needed is None or benchmark.finished(needed)):
            process = get_context("spawn").Process(
                target=_train_in_process, args=(benchmark, training, os.getpid())
            )
            process.start()
            running[training] = process
            waiting.remove(training)


def _is_done(benchmark: Benchmark, training: Training) -> bool:
    """Whether a training is finished, and measured if it is that of a row."""
    folder = benchmark.finished(training.run)
    if folder is None or training.pretraining:
        return folder is not None
    return read_errors(folder, SMOOTH[training.row.detections]) is not None


def _train_in_process(benchmark: Benchmark, training: Training, parent: int) -> None:
    """Train in a process of its own, which ends when the command ends."""
    exit_with(parent)
    torch.set_num_threads(1)
    try:
        benchmark.train(training)
    except HeatliftError as error:
        raise SystemExit(print_error(str(error), error.exit_code)) from error
