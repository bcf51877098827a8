"""One LightningCLI per stage, built only when its stage is called; what a command line does."""

from __future__ import annotations

import datetime
import importlib
import logging
import os
import re
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import jsonargparse
import lightning.pytorch as pl
import torch
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import DDPStrategy

from pipeline import checkpoint, commands, dashboard, mistakes, ranks, watch
from pipeline.__main__ import STAGES, fail
from pipeline.config import plain_values, refuse_not_finite, same_source, with_found_configs
from pipeline.doctor import device_line
from pipeline.errors import NumbersError, UsageError
from pipeline.run import (
    FINISHED,
    MetricsFile,
    Run,
    digest_of,
    make_folder,
    newest_finished,
    open_run,
    plain_number,
    step_of,
    sweep_parts,
)
from pipeline.watch import say

NOISE = (
    r".*LeafSpec.*",  # lightning 2.6 with torch 2.13
    r".*args parameter is intended to run from within Python.*",  # it gets what is left of argv
    r".*does not have many workers.*",  # whole batches come from one gather, faster without
    r".*Consider setting `persistent_workers=True`.*",
    r".*The number of training batches .* is smaller than the logging interval.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*sync_dist=True.*",  # evaluation logs torchmetrics, which synchronise themselves
    r".*It is recommended to use `self.log.*",
    r".*torch.distributed.nn.functional.all_gather.*",  # what `self.all_gather` calls
)
"""Warnings of libraries that a user of Heatlift can do nothing about."""


CHAIN = {"heatmap": ("val/pck_0.1", "max"), "integral": ("val/mpjpe_mm", "min")} | {
    "pretrain": ("val/mpjpe_mm", "min"),
    "lift": ("val/mpjpe_mm", "min"),
}
"""Which metric decides which weights of a stage are best."""


ROOM = {"heatmap": "Heatmap", "integral": "Integral", "pretrain": "Pretrain", "lift": "Lift"}


EXAMPLE = {
    "heatmap": "hrnet_w32_coco",
    "integral": "san_small",
    "pretrain": "mixste_small",
    "lift": "mixste_small",
}
"""A shipped config of each stage, for its help."""


SCORING = ("flip_test", "decode", "scored", "root_scored", "overlap")
"""Settings of a module that a test may choose anew, as they change numbers and no weights."""


APART = (
    "config",
    "name",
    "runs",
    "wandb",
    "group",
    "save_every",
    "patience",
    "seed_everything",
    "ckpt_path",
    "import",
)
"""Settings of a run that do not change what it computes (the seed is the data's)."""


class StageCLI(LightningCLI):
    """The command line of a stage: fixed module and data classes, a run folder, loggers, callbacks.

    Args:
        stage: heatmap, integral, pretrain or lift.
        words: What follows the stage on the command line.
        line: The whole command line as given, for the other processes of a run on several devices.
        signals: What SIGTERM and SIGINT call.

    Raises:
        SystemExit: If this process only watched over those that did the work.
    """

    def __init__(
        self, stage: str, words: Sequence[str], line: Sequence[str], signals: watch.Signals
    ) -> None:
        self.stage = stage
        self.line = line
        self.signals = signals
        self.run: Run | None = None
        self.keeper: watch.Keeper | None = None
        self.begun = time.monotonic()
        room = importlib.import_module(f"pipeline.{stage}")
        strict: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}
        strict["description"] = f"heatlift {stage}: {STAGES[stage]}."
        super().__init__(
            getattr(room, f"{ROOM[stage]}Module"),
            getattr(room, f"{ROOM[stage]}DataModule"),
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            trainer_defaults={"enable_model_summary": False, "log_every_n_steps": 10},
            parser_kwargs=strict
            | {"prog": f"heatlift {stage}"}
            | {name: dict(strict) for name in self.subcommands()},
            args=list(words),
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options of the run, and what is set once and used twice."""
        for action in parser._actions:
            if action.dest == "config":
                action.help = (
                    f"A shipped config such as {self.stage}/{EXAMPLE[self.stage]} or "
                    "data/synthetic, or a YAML file; later ones override earlier ones."
                )
        parser.add_argument(
            "--name", type=str | None, help="Name of the run; by default that of its configs."
        )
        parser.add_argument("--runs", type=str, default="runs", help="Folder of all runs.")
        parser.add_argument(
            "--wandb",
            type=str,
            default=os.environ.get("WANDB", "auto"),
            help="auto, online, offline or off.",
        )
        parser.add_argument(
            "--group", type=str | None, help="What the stages of one chain share on W&B."
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
        if self.stage in ("heatmap", "integral"):
            parser.link_arguments("data.skeleton", "model.skeleton")
            parser.link_arguments("data.input_size", "model.input_size")
            parser.link_arguments("data.padding", "model.padding")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and say in a line what is wrong.

        Raises:
            UsageError: Naming the key, and the one that may be meant.
        """
        try:
            super().parse_arguments(parser, args)
        except jsonargparse.ArgumentError as error:
            inner = self._subcommand_parsers.get(args[0] if args else "", parser)
            raise UsageError(
                mistakes.usage(str(error), mistakes.known_keys(inner, args))
            ) from error

    def _parse_ckpt_path(self) -> None:
        """Take the module's settings from a verified checkpoint; Lightning reads it unverified."""
        self.subcommand = self.config.subcommand
        path = self._get(self.config, "ckpt_path")
        if not path:
            return
        if self.subcommand == "fit":
            raise UsageError(
                f"--ckpt_path {path}: a fit goes on by itself, by the same command; to start from "
                "the weights of a checkpoint give --model.pretrained"
            )
        content = checkpoint.read(path)
        stage = checkpoint.stage_of(content, path)
        if stage != self.stage:
            raise UsageError(f"{path}: is a checkpoint of stage {stage}; this is {self.stage}")
        if "hyper_parameters" not in content:
            raise UsageError(
                f"{path}: holds weights alone; give them with --model.pretrained instead"
            )
        settings = dict(content["hyper_parameters"])
        settings.pop("_instantiator", None)
        before = self._get(self.config, "model").as_dict()
        for name in SCORING:
            if any(word.partition("=")[0] == f"--model.{name}" for word in self.line):
                settings.pop(name, None)
        self.config = self.parser.parse_object(
            {self.config.subcommand: {"model": settings}}, self.config
        )
        changed = [
            key
            for key, value in self._get(self.config, "model").as_dict().items()
            if before.get(key) != value
        ]
        if changed:
            names = ", ".join(sorted(changed))
            say(f"{self.stage}: {names} as in {path}, not as on the command line")

    def before_instantiate_classes(self) -> None:
        """Find what is asked for by name, open the run, and choose loggers and callbacks."""
        config = self.config[self.subcommand]
        refuse_not_finite(plain_values(config))
        if self.subcommand != "fit" and config.ckpt_path:
            config.model.pretrained = None  # the checkpoint has all weights
        if self.subcommand in ("validate", "test"):
            config.verbose = False  # `_say_numbers` does
        self._find_givers(config)
        settings = self._settings(config)
        name = config.name or self._stems(config) or self.stage
        if Path(name).name != name or name.startswith("."):
            raise UsageError(f"--name {name}: is a path; give a name, and the folder with --runs")
        for key in ("logger", "enable_checkpointing"):
            if config.trainer[key]:
                raise UsageError(f"--trainer.{key}: cannot be chosen; Heatlift brings its own")
        if config.save_every < 1:
            raise UsageError(f"save_every is {config.save_every}; give at least 1")
        if self.subcommand == "fit":
            self.run = open_run(Path(config.runs), self.stage, name, settings)
            if self.run.resume:
                config.ckpt_path, config.model.pretrained = str(self.run.resume), None
            folder = self.run.folder
        else:
            folder = self._folder_beside(config, name, settings)
        config.trainer.default_root_dir = str(folder)
        self.folder = folder
        self.settings = settings
        count = 1 if ranks.rank() is not None else processes(config.trainer)
        if count > 1:
            self._watch_over(count)

    def _watch_over(self, count: int) -> None:
        """Leave the work to several processes and end as they end."""
        given = ranks.environment_of(self.folder, self.run.resume) if self.run else {}
        message, code = ranks.supervise(count, self.line, given)
        if self.run:
            self.run.release()
        raise SystemExit(fail(message, code) if code else 0)

    def _find_givers(self, config: Any) -> None:
        """Replace the words `newest` by the newest finished run that fits.

        Raises:
            UsageError: If there is none.
        """
        source = plain_values(config.data).get("source", {})
        runs = Path(config.runs)
        if config.model.get("pretrained") == "none":
            config.model.pretrained = None
        if config.model.get("pretrained") == "newest":
            net = plain_values(config.model)["net"]

            def fits(settings: Mapping[str, Any]) -> bool:
                return settings["model"]["net"] == net and same_source(
                    settings["data"]["source"], source
                )

            found = newest_finished(runs, "pretrain", fits)
            if found is None:
                raise UsageError(
                    f"{runs / 'pretrain'}: no finished pretraining of this network on this data; "
                    "run `make pretrain` first, or set PRETRAINED=none to start from scratch"
                )
            config.model.pretrained = str(found)
        if config.data.get("detections") == "newest":
            config.data.detections = commands.newest_detector(runs, source)

    def _settings(self, config: Any) -> dict[str, Any]:
        """Everything that shapes the result, as plain types; files by content."""
        settings = {key: value for key, value in plain_values(config).items() if key not in APART}
        trainer = settings["trainer"]
        for key in (
            "default_root_dir",
            "logger",
            "accelerator",
            "strategy",
            "devices",
            "num_nodes",
            "enable_progress_bar",
        ):
            trainer.pop(key, None)
        if not trainer.get("callbacks"):
            trainer.pop("callbacks", None)
        settings["data"].pop("workers", None)
        settings["seed"] = config.seed_everything
        own = [Path(after) for word, after in pairwise(self.line) if word == "--import"]
        if own:
            settings["import"] = {path.name: checkpoint.file_digest(path) for path in own}
        for room, key in (("model", "pretrained"), ("data", "detections")):
            given = settings[room].get(key)
            if given in (None, "exact", "noisy"):
                continue
            path = Path(str(given))
            if path.is_file() and path.suffix == ".ckpt":
                weights = checkpoint.read(path)["state_dict"]
                settings[room][key] = checkpoint.weights_digest(weights)
            elif path.is_file():
                settings[room][key] = checkpoint.file_digest(path)
            elif path.is_dir():
                settings[room][key] = checkpoint.folder_digest(path)
        return settings

    def _stems(self, config: Any) -> str:
        return "-".join(Path(str(path)).stem for path in config.get("config") or [])

    def _folder_beside(self, config: Any, name: str, settings: Mapping[str, Any]) -> Path:
        """Where a test puts its files: a folder of its own, in that of the run it tests if it may.

        The same checkpoint on other data or under another protocol must not replace what is there.
        """
        path = Path(config.ckpt_path).resolve() if config.ckpt_path else None
        beside = path is not None and path.parent.name == "checkpoints"
        if path and beside and os.access(path.parents[1], os.W_OK):
            run = path.parents[1]
        else:
            run = Path(config.runs) / self.stage / name
        tried = digest_of([settings, path and checkpoint.file_digest(path)])
        folder = run / f"{self.subcommand}-{tried[:6]}"
        make_folder(folder)
        sweep_parts(folder)
        return folder

    def after_instantiate_classes(self) -> None:
        """Remember how the module is made, so that its checkpoints can become a module again."""
        made = plain_values(self._get(self.config, "model"))
        made.pop("pretrained", None)
        self.model.save_hyperparameters(
            {**made, "_instantiator": "lightning.pytorch.cli.instantiate_module"}
        )

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The Trainer, with what every run has."""
        config = self._get(self.config, "trainer")
        options: dict[str, Any] = {"enable_checkpointing": False, "use_distributed_sampler": False}
        given = self._get(self.config_init, "trainer")
        options["plugins"] = [*_as_list(given["plugins"]), checkpoint.WholeFiles()]
        if ranks.rank() is not None and config.strategy in ("auto", "ddp"):
            options["strategy"] = patient_strategy(config, self._get(self.config, "patience"))
        fast = bool(config.fast_dev_run)
        resumed = self.run.resume if self.run else None
        after = step_of(resumed) - 1 if resumed else -1
        if fast:
            options["logger"] = False  # else lightning looks for tensorboard
        else:
            options["logger"] = [
                MetricsFile(self.folder / "metrics.csv", after),
                *dashboard.loggers(
                    self.folder,
                    stage=self.stage,
                    name=self.folder.name,
                    group=self._get(self.config, "group")
                    or os.environ.get("HEATLIFT_GROUP")
                    or "chain",
                    config=self.settings,
                    wandb_mode=self._get(self.config, "wandb"),
                ),
            ]
        seed = int(self._get(self.config, "seed_everything"))
        bar = sys.stderr.isatty() and config.enable_progress_bar is not False
        options["enable_progress_bar"] = bar
        callbacks: list[pl.Callback] = [watch.Seeds(seed), watch.Guard()]
        if not bar:
            callbacks.append(watch.Progress())
        if self.run and not fast:
            self.keeper = watch.Keeper(
                self.run, self._get(self.config, "save_every"), CHAIN[self.stage]
            )
            self.signals.keeper = self.keeper
            callbacks += [dashboard.Dashboard(), self.keeper]
        elif not fast:
            callbacks.append(dashboard.Dashboard())
        if self.subcommand == "predict" and not fast:
            callbacks.append(watch.Predictions(self.folder))
        callbacks.append(self.signals)
        options["callbacks"] = [*_as_list(given["callbacks"]), *callbacks]
        return super().instantiate_trainer(**{**options, **kwargs})

    def _run_subcommand(self, subcommand: str) -> None:
        self.announce()
        super()._run_subcommand(subcommand)

    def announce(self) -> None:
        """The first lines of a run: data, 2D input, weights, device, precision, folder."""
        say(f"heatlift {self.stage} {self.subcommand}: {self.folder}")
        say(f"  data       {self.datamodule.describe()}")
        pretrained = getattr(self.model, "pretrained", None)
        if self.run and self.run.resume:
            say(f"  weights    resumed from {self.run.resume.name}")
        elif pretrained:
            digest = self.settings["model"]["pretrained"]
            say(f"  weights    {pretrained} ({digest[:12]})")
        else:
            path = self._get(self.config, "ckpt_path")
            say(f"  weights    {path or 'fresh'}")
        say(f"  device     {device_line(self.trainer)}")

    def after_fit(self) -> None:
        """Mark the run as finished, then test its best weights."""
        if self.run is None or self.keeper is None:
            return
        chosen = self.keeper.chosen()
        if chosen is None:
            raise UsageError(
                "not a single step was trained; check --trainer.max_epochs, --trainer.max_steps "
                "and --trainer.limit_train_batches"
            )
        self.trainer.test(
            self.model, datamodule=self.datamodule, ckpt_path=str(chosen), verbose=False
        )
        numbers = {
            name: plain_number(value)
            for name, value in self.trainer.callback_metrics.items()
            if name.startswith("test/")
        }
        lost = [name for name, value in numbers.items() if value is None]
        if lost:
            raise NumbersError(f"{', '.join(lost)} of {chosen} is not finite; the run stays open")
        self.signals.finished = True
        if self.trainer.is_global_zero:
            self._say_numbers("test", numbers)
            self.run.write(
                state=FINISHED,
                finished=time.time(),
                checkpoint=str(chosen.relative_to(self.run.folder)),
                numbers=numbers,
                metrics=checkpoint.file_digest(self.folder / "metrics.csv"),
                seconds=round(time.monotonic() - self.begun, 1),
            )
            dashboard.log_artifact(self.trainer, chosen, "checkpoint")
            dashboard.bring_up_to_date(self.trainer)
            say(f"  done in {watch.duration(time.monotonic() - self.begun)}: {chosen}")
            self._say_where()
        dashboard.finish(self.trainer)
        self.run.release()

    def after_validate(self) -> None:
        """Say the numbers."""
        self._say_numbers("val", self.trainer.callback_metrics)
        self._say_where()

    def after_test(self) -> None:
        """Say the numbers."""
        self._say_numbers("test", self.trainer.callback_metrics)
        self._say_where()

    @staticmethod
    def _say_numbers(split: str, numbers: Mapping[str, Any]) -> None:
        shown = {
            name.removeprefix(f"{split}/"): float(value)
            for name, value in numbers.items()
            if name.startswith(f"{split}/") and not re.search("action_mean|loss", name)
        }
        say(f"  {split:<10} " + ", ".join(f"{name} {value:.4g}" for name, value in shown.items()))

    def _say_where(self) -> None:
        for what, names in {
            "numbers": ("metrics.csv", "tables"),
            "pictures": ("index.html",),
        }.items():
            places = [str(self.folder / name) for name in names if (self.folder / name).exists()]
            if places:
                say(f"  {what:<10} {', '.join(places)}")


def _as_list(given: Any) -> list[Any]:
    """What an option holds that takes none, one or a list."""
    return given if isinstance(given, list) else [] if given is None else [given]


def processes(trainer: Any) -> int:
    """How many processes the trainer's options ask of this machine."""
    accelerator = str(trainer.accelerator)
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    devices = 1 if accelerator == "cpu" and trainer.devices == "auto" else trainer.devices
    if accelerator == "cpu":
        return CPUAccelerator.parse_devices(devices)
    if accelerator in ("gpu", "cuda") and torch.cuda.is_available():
        return len(CUDAAccelerator.parse_devices(-1 if devices == "auto" else devices) or [0])
    return 1


def patient_strategy(trainer: Any, patience: float) -> DDPStrategy:
    """One process per device, and an end to waiting for the others.

    Args:
        trainer: Its options.
        patience: Seconds.
    """
    on_cpu = trainer.accelerator == "cpu" or not torch.cuda.is_available()
    return DDPStrategy(
        timeout=datetime.timedelta(seconds=patience),
        process_group_backend="gloo" if on_cpu else None,
    )


def run(command: str, words: Sequence[str], *, debug: bool = False) -> int:
    """Run a stage or a command and turn whatever goes wrong into one line and an exit code."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for pattern in NOISE:
        warnings.filterwarnings("ignore", pattern)
    line = [command, *words]
    try:
        words = with_found_configs(_take_imports(words))
        if command in ROOM:
            signals = watch.Signals()
            with ranks.handled((signal.SIGTERM, signal.SIGINT, signal.SIGALRM), signals.handle):
                StageCLI(command, words, line, signals)
        else:
            with ranks.handled((signal.SIGTERM, signal.SIGINT), _stop):
                commands.run_plain(command, words)
    except watch.Stopped as stop:
        return fail(stop.message, stop.exit_code)
    except Exception as error:
        if debug:
            traceback.print_exc()
        return fail(*mistakes.explain(error))
    except KeyboardInterrupt:
        return fail("stopped by SIGINT", 130)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 2 if end.code else 0
    return 0


def _stop(number: int, frame: FrameType | None) -> None:
    raise watch.Stopped(number, f"stopped by {signal.Signals(number).name}")


def _take_imports(words: Sequence[str]) -> list[str]:
    """Import the files given with --import, for their classes; give back the other words."""
    rest: list[str] = []
    given = iter(words)
    for word in given:
        if word != "--import":
            rest.append(word)
            continue
        path = Path(next(given, ""))
        if not path.is_file():
            raise UsageError(f"--import {path}: no such file; give a Python file of your own")
        sys.path.insert(0, str(path.resolve().parent))
        module = importlib.import_module(path.stem)
        if Path(module.__file__ or "").resolve() != path.resolve():
            raise UsageError(
                f"--import {path}: there is another module {path.stem}; rename the file"
            )
        checkpoint.allow_import(path.stem)
    return rest
