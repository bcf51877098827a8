"""The LightningCLI of a stage."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import lightning.pytorch as pl
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger

from pipeline.cli import explain
from pipeline.cli.configs import check_finite, plain_values
from pipeline.cli.doctor import device_line
from pipeline.cli.newest import newest_detector, newest_weights
from pipeline.cli.run_settings import evaluation_folder, run_name, run_settings
from pipeline.cli.stages import STAGES
from pipeline.cli.trainer_options import as_list, check_options, ddp_strategy, process_count
from pipeline.dashboard.callback import Dashboard, update_index
from pipeline.dashboard.show import finish_wandb, log_artifact
from pipeline.dashboard.wandb_logger import make_wandb_loggers
from pipeline.errors import NumbersError, UsageError, print_error
from pipeline.files.digests import file_digest
from pipeline.files.torch_files import read_checkpoint
from pipeline.training import processes
from pipeline.training.callbacks import NonFiniteGuard, PredictionWriter, ProgressLines, SeedEveryBatch
from pipeline.training.checkpoints import AtomicCheckpointIO, checkpoint_stage
from pipeline.training.console import format_duration, print_line
from pipeline.training.metrics_file import MetricsFile, finite_or_none
from pipeline.training.run_folder import FINISHED, Run, open_run, step_in_name
from pipeline.training.saving import CheckpointCallback
from pipeline.training.signals import StopSignals
from pipeline.training.stage import Stage


class StageCLI(LightningCLI):
    """The command line of a stage: fixed module and data classes, a run folder, loggers, callbacks.

    Args:
        stage: The stage's module class.
        arguments: What follows the stage on the command line.
        line: The whole command line as given, for the other processes of a run on several devices.
        stops: Callback that SIGTERM and SIGINT reach.

    Raises:
        SystemExit: If this process only watched over those that did the work.
    """

    def __init__(
        self,
        stage: type[Stage],
        arguments: Sequence[str],
        line: Sequence[str],
        stops: StopSignals,
    ) -> None:
        self.stage, self.line, self.stops = stage, line, stops
        self.run: Run | None = None
        self.checkpoint_callback: CheckpointCallback | None = None
        self.begun = time.monotonic()
        name = stage.stage
        strict: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}
        strict["description"] = f"heatlift {name}: {STAGES[name].help}."
        super().__init__(
            stage,
            stage.data_class,
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            trainer_defaults={"enable_model_summary": False, "log_every_n_steps": 10},
            parser_kwargs=strict
            | {"prog": f"heatlift {name}"}
            | {subcommand: dict(strict) for subcommand in self.subcommands()},
            args=list(arguments),
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of a run, and link what is set once and used twice."""
        for action in parser._actions:
            if action.dest == "config":
                action.help = (
                    f"A shipped config such as {self.stage.example_config} or "
                    "data/synthetic, or a YAML file; later ones override earlier ones."
                )
        parser.add_argument(
            "--name", type=str | None, help="Name of the run; by default that of its configs."
        )
        parser.add_argument("--runs", type=str, default="runs", help="Folder of all runs.")
        wandb = os.environ.get("WANDB", "auto")
        parser.add_argument("--wandb", default=wandb, help="auto, online, offline or off.")
        parser.add_argument(
            "--group", type=str | None, help="Name on W&B that the stages of one chain share."
        )
        parser.add_argument(
            "--save_every", type=int, default=200, help="Steps between two states to resume from."
        )
        parser.add_argument(
            "--patience",
            type=float,
            default=1800.0,
            help="Seconds that one process of several waits for the others.",
        )
        parser.link_arguments("seed_everything", "data.seed")
        for name in self.stage.linked_arguments:
            parser.link_arguments(f"data.{name}", f"model.{name}")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the command line.

        Raises:
            UsageError: Naming the key that is wrong, and the one that may be meant.
        """
        try:
            super().parse_arguments(parser, args)
        except jsonargparse.ArgumentError as error:
            inner = self._subcommand_parsers.get(args[0] if args else "", parser)
            known = explain.known_keys(inner, args)
            raise UsageError(explain.explain_usage_error(str(error), known)) from error

    def _parse_ckpt_path(self) -> None:
        """Take the module's settings from a verified checkpoint; Lightning reads it unverified."""
        self.subcommand = self.config.subcommand
        path = self._get(self.config, "ckpt_path")
        if not path:
            return
        if self.subcommand == "fit":
            raise UsageError(
                f"--ckpt_path {path}: fit resumes automatically, by the same command; to "
                "initialise weights from a checkpoint use --model.pretrained"
            )
        content = read_checkpoint(path)
        stage = checkpoint_stage(content, path)
        if stage != self.stage.stage:
            raise UsageError(
                f"{path}: is a checkpoint of stage {stage}; this is {self.stage.stage}"
            )
        if "hyper_parameters" not in content:
            raise UsageError(
                f"{path}: holds weights alone; give them with --model.pretrained instead"
            )
        settings = dict(content["hyper_parameters"])
        settings.pop("_instantiator", None)
        for name in self.stage.test_settings:
            if any(argument.partition("=")[0] == f"--model.{name}" for argument in self.line):
                settings.pop(name, None)
        before = self._get(self.config, "model").as_dict()
        self.config = self.parser.parse_object({self.subcommand: {"model": settings}}, self.config)
        after = self._get(self.config, "model").as_dict()
        changed = sorted(key for key, value in after.items() if before.get(key) != value)
        if changed:
            names = ", ".join(changed)
            print_line(f"{self.stage.stage}: {names} as in {path}, not as on the command line")

    def before_instantiate_classes(self) -> None:
        """Find what is asked for by name, and open the run or the folder of an evaluation."""
        config = self.config[self.subcommand]
        check_finite(plain_values(config))
        if self.subcommand != "fit" and config.ckpt_path:
            config.model.pretrained = None  # the checkpoint has all weights
        if self.subcommand in ("validate", "test"):
            config.verbose = False  # `_print_metrics` prints them
        self._resolve_names(config)
        self.settings = run_settings(config, self.line)
        name = run_name(config, self.stage.stage)
        check_options(config)
        if self.subcommand == "fit":
            self.run = open_run(Path(config.runs), self.stage.stage, name, self.settings)
            if self.run.resume:
                config.ckpt_path, config.model.pretrained = str(self.run.resume), None
            self.folder = self.run.folder
        else:
            run = Path(config.runs) / self.stage.stage / name
            self.folder = evaluation_folder(config, run, self.subcommand, self.settings)
        config.trainer.default_root_dir = str(self.folder)
        count = 1 if processes.current_rank() is not None else process_count(config.trainer)
        if count > 1:
            self._supervise(count)

    def _supervise(self, count: int) -> None:
        """Leave the work to several processes and end as they end."""
        given = processes.run_environment(self.folder, self.run.resume) if self.run else {}
        message, code = processes.supervise_processes(count, self.line, given)
        if self.run:
            self.run.release()
        raise SystemExit(print_error(message, code) if code else 0)

    def _resolve_names(self, config: Any) -> None:
        """Replace the word `newest` by the newest finished run that fits, and `none` by nothing.

        Raises:
            UsageError: If there is none.
        """
        runs = Path(config.runs)
        if config.model.get("pretrained") == "none":
            config.model.pretrained = None
        if config.model.get("pretrained") == "newest":
            config.model.pretrained = newest_weights(runs, self.stage, config)
        if config.data.get("detections") == "newest":
            source = plain_values(config.data).get("source", {})
            config.data.detections = newest_detector(runs, source)

    def after_instantiate_classes(self) -> None:
        """Remember how the module is made, so that its checkpoints can become a module again."""
        made = plain_values(self._get(self.config, "model"))
        made.pop("pretrained", None)
        self.model.save_hyperparameters(
            {**made, "_instantiator": "lightning.pytorch.cli.instantiate_module"}
        )

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The Trainer, with the loggers and callbacks of every run."""
        config = self._get(self.config, "trainer")
        given = self._get(self.config_init, "trainer")
        bar = sys.stderr.isatty() and config.enable_progress_bar is not False
        options: dict[str, Any] = {
            "enable_checkpointing": False,
            "use_distributed_sampler": False,
            "enable_progress_bar": bar,
            "plugins": [*as_list(given["plugins"]), AtomicCheckpointIO()],
            "logger": False if config.fast_dev_run else self._loggers(),
            "callbacks": [*as_list(given["callbacks"]), *self._callbacks(config, bar=bar)],
        }
        if processes.current_rank() is not None and config.strategy in ("auto", "ddp"):
            options["strategy"] = ddp_strategy(config, self._get(self.config, "patience"))
        return super().instantiate_trainer(**{**options, **kwargs})

    def _loggers(self) -> list[Logger]:
        resumed = self.run.resume if self.run else None
        after = step_in_name(resumed) - 1 if resumed else -1
        group = self._get(self.config, "group") or os.environ.get("HEATLIFT_GROUP") or "chain"
        return [
            MetricsFile(self.folder / "metrics.csv", after),
            *make_wandb_loggers(
                self.folder,
                stage=self.stage.stage,
                name=self.folder.name,
                group=group,
                config=self.settings,
                wandb_mode=self._get(self.config, "wandb"),
            ),
        ]

    def _callbacks(self, config: Any, *, bar: bool) -> list[pl.Callback]:
        seed = int(self._get(self.config, "seed_everything"))
        callbacks: list[pl.Callback] = [SeedEveryBatch(seed), NonFiniteGuard()]
        if not bar:
            callbacks.append(ProgressLines())
        if not config.fast_dev_run:
            callbacks.append(Dashboard())
            if self.run:
                every, best = self._get(self.config, "save_every"), self.stage
                saving = CheckpointCallback(self.run, every, (best.monitor, best.mode))
                self.checkpoint_callback = self.stops.checkpoint_callback = saving
                callbacks.append(saving)
            if self.subcommand == "predict":
                callbacks.append(PredictionWriter(self.folder))
        return [*callbacks, self.stops]

    def _run_subcommand(self, subcommand: str) -> None:
        self._print_start()
        super()._run_subcommand(subcommand)

    def _print_start(self) -> None:
        """Print the first lines of a run: folder, data, weights, device, precision."""
        print_line(f"heatlift {self.stage.stage} {self.subcommand}: {self.folder}")
        print_line(f"  data       {self.datamodule.describe()}")
        pretrained = getattr(self.model, "pretrained", None)
        weights = self._get(self.config, "ckpt_path") or "fresh"
        if self.run and self.run.resume:
            weights = f"resumed from {self.run.resume.name}"
        elif pretrained:
            weights = f"{pretrained} ({self.settings['model']['pretrained'][:12]})"
        print_line(f"  weights    {weights}")
        print_line(f"  device     {device_line(self.trainer)}")

    def after_fit(self) -> None:
        """Test the best weights of the run, then mark it as finished."""
        if self.run is None or self.checkpoint_callback is None:
            return
        chosen = self.checkpoint_callback.selected_checkpoint()
        if chosen is None:
            raise UsageError(
                "not a single step was trained; check --trainer.max_epochs, --trainer.max_steps "
                "and --trainer.limit_train_batches"
            )
        self.trainer.test(
            self.model, datamodule=self.datamodule, ckpt_path=str(chosen), verbose=False
        )
        numbers = test_metrics(self.trainer.callback_metrics, chosen)
        self.stops.finished = True
        if self.trainer.is_global_zero:
            print_metrics("test", numbers)
            seconds = time.monotonic() - self.begun
            self.run.write(
                state=FINISHED,
                finished=time.time(),
                checkpoint=str(chosen.relative_to(self.run.folder)),
                numbers=numbers,
                metrics=file_digest(self.folder / "metrics.csv"),
                seconds=round(seconds, 1),
            )
            log_artifact(self.trainer, chosen, "checkpoint")
            update_index(self.trainer)
            print_line(f"  done in {format_duration(seconds)}: {chosen}")
            print_places(self.folder)
        finish_wandb(self.trainer)
        self.run.release()

    def after_validate(self) -> None:
        """Print the metrics and where they are."""
        print_metrics("val", self.trainer.callback_metrics)
        print_places(self.folder)

    def after_test(self) -> None:
        """Print the metrics and where they are."""
        print_metrics("test", self.trainer.callback_metrics)
        print_places(self.folder)


def test_metrics(metrics: Mapping[str, Any], checkpoint: Path) -> dict[str, float | None]:
    """The metrics of a test as plain numbers.

    Raises:
        NumbersError: If one is not finite.
    """
    numbers = {
        name: finite_or_none(value) for name, value in metrics.items() if name.startswith("test/")
    }
    lost = [name for name, value in numbers.items() if value is None]
    if lost:
        raise NumbersError(f"{', '.join(lost)} of {checkpoint} is not finite; the run stays open")
    return numbers


def print_metrics(split: str, metrics: Mapping[str, Any]) -> None:
    """Print the metrics of a split in one line."""
    shown = {
        name.removeprefix(f"{split}/"): float(value)
        for name, value in metrics.items()
        if name.startswith(f"{split}/") and not re.search("action_mean|loss", name)
    }
    line = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
    print_line(f"  {split:<10} {line}")


def print_places(folder: Path) -> None:
    """Print where the metrics and the page of a run are."""
    for what, names in {"numbers": ("metrics.csv", "tables"), "page": ("index.html",)}.items():
        places = [str(folder / name) for name in names if (folder / name).exists()]
        if places:
            print_line(f"  {what:<10} {', '.join(places)}")
