"""One LightningCLI per stage, built only when its stage is called, and the plain commands beside them."""

from __future__ import annotations

import contextlib
import datetime
import difflib
import errno
import importlib
import inspect
import json
import logging
import math
import os
import re
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonargparse
import lightning.pytorch as pl
import torch
import yaml
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pipeline import checkpoint, dashboard, ranks, watch
from pipeline.__main__ import fail
from pipeline.doctor import device_line
from pipeline.errors import HeatliftError, UsageError
from pipeline.run import (
    FINISHED,
    MetricsFile,
    Run,
    newest_finished,
    open_run,
    plain_number,
)

NOISE = (
    r".*LeafSpec.*",  # lightning 2.6 with torch 2.13
    r".*args parameter is intended to run from within Python.*",  # we hand LightningCLI what is left of argv
    r".*does not have many workers.*",  # whole batches come from one gather; workers would be slower
    r".*Consider setting `persistent_workers=True`.*",
    r".*The number of training batches .* is smaller than the logging interval.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*sync_dist=True.*",  # evaluation logs torchmetrics, which synchronise themselves
    r".*It is recommended to use `self.log.*",
)
"""Warnings of libraries that a user of Heatlift can do nothing about."""

CHAIN = {"heatmap": ("val/pck_0.1", "max"), "integral": ("val/mpjpe_mm", "min")} | {
    "pretrain": ("val/mpjpe_mm", "min"),
    "lift": ("val/mpjpe_mm", "min"),
}
"""Which metric decides which weights of a stage are best."""

FULL_OR_CLOSED = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
)
"""What a disk answers that cannot be written."""

ROOM = {"heatmap": "Heatmap", "integral": "Integral", "pretrain": "Pretrain", "lift": "Lift"}

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


# ---- configs: found by name, read strictly ---------------------------------------------------------


def shipped_configs() -> Path:
    """Folder of the configs that come with the package."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "configs"


def find_config(name: str) -> Path:
    """A config by path, or by its name among the shipped ones: `lift/mixste_small`.

    Raises:
        UsageError: If there is none.
    """
    for folder in (Path(), shipped_configs()):
        for path in (folder / name, folder / f"{name}.yaml"):
            if path.is_file():
                _refuse_binary(path)
                return path
    there = sorted(
        str(p.relative_to(shipped_configs()).with_suffix(""))
        for p in shipped_configs().glob("*/*.yaml")
    )
    raise UsageError(f"{name}: no such config; shipped are {', '.join(there)}")


def _refuse_binary(path: Path) -> None:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not text (UTF-8), so it is no config") from error


def refuse_not_finite(value: Any, key: str = "") -> None:
    """Raise on a number that is not finite anywhere in a parsed config.

    Raises:
        UsageError: Naming its key.
    """
    if isinstance(value, Mapping):
        for name, item in value.items():
            refuse_not_finite(item, f"{key}.{name}".removeprefix("."))
    elif isinstance(value, list):
        for item in value:
            refuse_not_finite(item, key)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{key}: {value} is not finite")


def with_found_configs(words: Sequence[str]) -> list[str]:
    """A command line in which every `-c NAME` names a file."""
    found = list(words)
    for i, word in enumerate(found):
        if word in ("-c", "--config") and i + 1 < len(found):
            found[i + 1] = str(find_config(found[i + 1]))
        elif word.startswith("--config="):
            found[i] = f"--config={find_config(word.removeprefix('--config='))}"
    return found


def refuse_odd_yaml(text: str, depth: int = 50) -> None:
    """Raise on what YAML allows and a config never means: duplicate keys, numbers that are not finite, deep nesting.

    Raises:
        yaml.YAMLError: Naming the line.
    """
    sizes: dict[int, int] = {}

    def walk(node: yaml.Node | None, level: int) -> int:
        """Number of values in a node, aliases written out."""
        if node is None or id(node) in sizes:
            return sizes.get(id(node), 0)
        line = f"line {node.start_mark.line + 1}"
        if level > depth:
            raise yaml.YAMLError(f"{line}: nested deeper than {depth}")
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key.value, str)]
            twice = [key for key, count in Counter(keys).items() if count > 1]
            if twice:
                raise yaml.YAMLError(f"{line}: duplicate key {twice[0]}")
            children = [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        elif node.tag == "tag:yaml.org,2002:float" and re.search("nan|inf", node.value.lower()):
            raise yaml.YAMLError(f"{line}: {node.value} is not finite")
        sizes[id(node)] = 1 + sum(walk(child, level + 1) for child in children)
        if sizes[id(node)] > 100_000:
            raise yaml.YAMLError(f"{line}: more than 100,000 values")
        return sizes[id(node)]

    opened = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        opened += 1 if bracket in "[{" else -1
        if opened > depth:
            raise yaml.YAMLError(f"nested deeper than {depth}")
    try:
        walk(yaml.compose(text, Loader=yaml.SafeLoader), 0)
    except RecursionError:
        raise yaml.YAMLError("nested too deep") from None


_load_yaml = jsonargparse.get_loader("yaml")


def _load_strictly(text: str) -> Any:
    refuse_odd_yaml(text)
    return _load_yaml(text)


jsonargparse.set_loader("yaml", _load_strictly, exceptions=(yaml.YAMLError,))


# ---- stages ----------------------------------------------------------------------------------------


class StageCLI(LightningCLI):
    """The command line of one stage: fixed module and data classes, a run folder, loggers, callbacks.

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
        strict = {"exit_on_error": False, "allow_abbrev": False}
        super().__init__(
            getattr(room, f"{ROOM[stage]}Module"),
            getattr(room, f"{ROOM[stage]}DataModule"),
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            trainer_defaults={"enable_model_summary": False, "log_every_n_steps": 10},
            parser_kwargs=strict | {name: dict(strict) for name in self.subcommands()},
            args=list(words),
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options of the run, and what is set once and used twice."""
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
            raise UsageError(_usage(str(error), _known_keys(inner, args))) from error

    def _parse_ckpt_path(self) -> None:
        """Take the module's settings from a verified checkpoint; Lightning reads it unverified."""
        self.subcommand = self.config.subcommand
        path = self._get(self.config, "ckpt_path")
        if not path:
            return
        content = checkpoint.read(path)
        stage = checkpoint.stage_of(content, path)
        if stage != self.stage:
            raise UsageError(f"{path}: is a checkpoint of stage {stage}; this is {self.stage}")
        settings = dict(content.get("hyper_parameters", {}))
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
            say(
                f"{self.stage}: {', '.join(sorted(changed))} as in {path}, not as on the command line"
            )

    def before_instantiate_classes(self) -> None:
        """Find what is asked for by name, open the run, and choose loggers and callbacks."""
        config = self.config[self.subcommand]
        refuse_not_finite(_plain(config))
        self._find_givers(config)
        settings = self._settings(config)
        name = config.name or self._stems(config) or self.stage
        if self.subcommand == "fit":
            self.run = open_run(Path(config.runs), self.stage, name, settings)
            config.ckpt_path = str(self.run.resume) if self.run.resume else None
            folder = self.run.folder
        else:
            folder = self._folder_beside(config, name)
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
        source = _plain(config.data).get("source", {})
        runs = Path(config.runs)
        if config.model.get("pretrained") == "none":
            config.model.pretrained = None
        if config.model.get("pretrained") == "newest":
            net = _plain(config.model)["net"]

            def fits(settings: Mapping[str, Any]) -> bool:
                return settings["model"]["net"] == net and same_source(
                    settings["data"]["source"], source
                )

            found = newest_finished(runs, "pretrain", fits)
            if found is None:
                raise UsageError(
                    f"{runs / 'pretrain'}: no finished pretraining of this network on this data; run `make pretrain` "
                    "first, or set PRETRAINED=none to start from scratch"
                )
            config.model.pretrained = str(found)
        if config.data.get("detections") == "newest":
            config.data.detections = newest_detector(runs, source)

    def _settings(self, config: Any) -> dict[str, Any]:
        """Everything that shapes the result, as plain types; files by content."""
        settings = {key: value for key, value in _plain(config).items() if key not in APART}
        trainer = settings["trainer"]
        for key in (
            "default_root_dir",
            "logger",
            "callbacks",
            "accelerator",
            "strategy",
            "devices",
            "num_nodes",
            "enable_progress_bar",
        ):
            trainer.pop(key, None)
        settings["data"].pop("workers", None)
        settings["seed"] = config.seed_everything
        for room, key in (("model", "pretrained"), ("data", "detections")):
            path = settings[room].get(key)
            if path and Path(str(path)).is_file():
                weights = (
                    checkpoint.read(path)["state_dict"] if str(path).endswith(".ckpt") else None
                )
                settings[room][key] = (
                    checkpoint.weights_digest(weights)
                    if weights
                    else checkpoint.file_digest(Path(path))
                )
        return settings

    def _stems(self, config: Any) -> str:
        return "-".join(Path(str(path)).stem for path in config.get("config") or [])

    def _folder_beside(self, config: Any, name: str) -> Path:
        """Where a test or prediction puts its pictures: in the folder of the run it tests."""
        path = Path(config.ckpt_path).resolve() if config.ckpt_path else None
        if path and path.parent.name == "checkpoints":
            return path.parents[1]
        folder = Path(config.runs) / self.stage / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def after_instantiate_classes(self) -> None:
        """Remember how the module is made, so that its checkpoints can be turned into a module again."""
        made = _plain(self._get(self.config, "model"))
        made.pop("pretrained", None)
        self.model.save_hyperparameters(
            {**made, "_instantiator": "lightning.pytorch.cli.instantiate_module"}
        )

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The Trainer, with what every run has."""
        config = self._get(self.config, "trainer")
        options: dict[str, Any] = {
            "plugins": [checkpoint.WholeFiles()],
            "enable_checkpointing": False,
        }
        options["use_distributed_sampler"] = False
        if ranks.rank() is not None and config.strategy in ("auto", "ddp"):
            options["strategy"] = patient_strategy(config, self._get(self.config, "patience"))
        fast = bool(config.fast_dev_run)
        resumed = self.run.resume if self.run else None
        after = (
            None if self.run is None else (int(resumed.stem.split("-")[1]) - 1 if resumed else -1)
        )
        if fast:
            options["logger"] = False  # else lightning looks for tensorboard
        else:
            options["logger"] = [
                MetricsFile(self.folder, after),
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
        callbacks.append(self.signals)
        options["callbacks"] = [
            *(self._get(self.config_init, "trainer")["callbacks"] or []),
            *callbacks,
        ]
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
            return
        self.trainer.test(
            self.model, datamodule=self.datamodule, ckpt_path=str(chosen), verbose=False
        )
        numbers = {
            name: plain_number(value)
            for name, value in self.trainer.callback_metrics.items()
            if name.startswith("test/")
        }
        if self.trainer.is_global_zero:
            shown = [name for name in numbers if "action_mean" not in name and "loss" not in name]
            say("  test       " + ", ".join(f"{name[5:]} {numbers[name]:.4g}" for name in shown))
            self.run.write(
                state=FINISHED,
                finished=time.time(),
                checkpoint=str(chosen.relative_to(self.run.folder)),
                numbers=numbers,
                seconds=round(time.monotonic() - self.begun, 1),
            )
            dashboard.log_artifact(self.trainer, chosen, "checkpoint")
            dashboard.write_index(self.folder)
            say(f"  done in {watch.duration(time.monotonic() - self.begun)}: {chosen}")
            say(f"  numbers    {self.folder / 'metrics.csv'}, {self.folder / 'tables'}")
            say(f"  pictures   {self.folder / 'index.html'}")
        dashboard.finish(self.trainer)
        self.run.release()


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


def same_source(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two configs name the same data: the same class, and the same root where it has one."""
    roots = [source.get("init_args", {}).get("root") for source in (one, other)]
    return one.get("class_path") == other.get("class_path") and roots[0] == roots[1]


def newest_detector(runs: Path, source: Mapping[str, Any]) -> str:
    """Checkpoint of the newest finished 2D stage on some data.

    Raises:
        UsageError: If there is none.
    """
    found = newest_finished(
        runs, "heatmap", lambda settings: same_source(settings["data"]["source"], source)
    )
    if found is None:
        raise UsageError(
            f"{runs / 'heatmap'}: no finished 2D stage on this data; run `make heatmap` first, or set "
            "DETECTIONS=exact or noisy, or DETECTOR= to a checkpoint"
        )
    return str(found)


@rank_zero_only
def say(line: str) -> None:
    """A line on the terminal, from the first process alone."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _plain(config: Any) -> dict[str, Any]:
    """A parsed config as dictionaries, lists and plain values."""

    def plain(value: Any) -> Any:
        if isinstance(value, jsonargparse.Namespace):
            return {key: plain(item) for key, item in vars(value).items()}
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        return str(value)

    result = plain(config)
    assert isinstance(result, dict)
    return result


# ---- everything else -------------------------------------------------------------------------------


def newest(stage: str, data: str = "data/synthetic", runs: str = "runs") -> None:
    """Print the checkpoint of the newest finished run of a stage on some data.

    Args:
        stage: heatmap, pretrain or lift.
        data: Config that names the data.
        runs: Folder of all runs.

    Raises:
        UsageError: If there is none.
    """
    source = yaml.safe_load(find_config(data).read_text())["data"]["source"]
    found = newest_finished(
        Path(runs), stage, lambda settings: same_source(settings["data"]["source"], source)
    )
    if found is None:
        raise UsageError(f"{Path(runs) / stage}: no finished run on {data}; run `make {stage}`")
    say(str(found))


PLAIN: dict[str, Any] = {
    "detect": "pipeline.detections:detect",
    "cache": {
        "ls": "pipeline.cache:ls",
        "verify": "pipeline.cache:verify",
        "rm": "pipeline.cache:rm",
    },
    "data": {
        "ls": "pipeline.datasets.command:ls",
        "validate": "pipeline.datasets.command:validate",
        "convert": {
            "amc": "pipeline.datasets.command:amc",
            "amass": "pipeline.datasets.command:amass",
            "npz": "pipeline.datasets.command:npz",
        },
        "export": "pipeline.datasets.command:export",
        "get": "pipeline.datasets.command:get",
    },
    "weights": {"import": "pipeline.published:import_weights"},
    "newest": "pipeline.cli:newest",
    "demo": "pipeline.demo:demo",
    "doctor": "pipeline.doctor:doctor",
    "results": "pipeline.results:results",
    "robustness": "pipeline.robustness:robustness",
    "sweep": "pipeline.sweep:sweep",
    "models": "pipeline.models:models",
}
"""Commands that are plain typed functions."""


def _function(place: str) -> Callable[..., Any]:
    module, _, name = place.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


NAMED = ("detect", "results", "robustness")
"""Plain commands all of whose arguments are named; the others take them in order."""


def run_plain(command: str, words: Sequence[str]) -> None:
    """Call the function behind a plain command with what its signature makes of the words."""
    places, rest, called = PLAIN[command], list(words), [command]
    while isinstance(places, dict) and rest and rest[0] in places:
        called.append(rest.pop(0))
        places = places[called[-1]]
    parser_settings: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}
    jsonargparse.auto_cli(
        _functions(places),
        args=with_source(spelled(rest)),
        as_positional=command not in NAMED,
        prog=" ".join(["heatlift", *called]),
        **parser_settings,
    )


def _functions(places: Any) -> Any:
    """Functions by name, as deep as their places are."""
    if isinstance(places, str):
        return _function(places)
    return {name: _functions(inner) for name, inner in places.items()}


ANY_NUMBER = "1000000000"


def spelled(words: Sequence[str]) -> list[str]:
    """A plain command line with `--skip-bad` as `--skip_bad`, and a number behind it.

    >>> spelled(["--skip-bad", "folder"]), spelled(["--skip_bad=3"])
    (['--skip_bad', '1000000000', 'folder'], ['--skip_bad=3'])
    """
    found: list[str] = []
    for word in words:
        if found and found[-1] == "--skip_bad" and not word.lstrip("-").isdigit():
            found.append(ANY_NUMBER)
        name, equals, value = word.partition("=")
        dashed = name.startswith("--") and "." not in name
        found.append((f"--{name[2:].replace('-', '_')}" if dashed else name) + equals + value)
    return [*found, ANY_NUMBER] if found[-1:] == ["--skip_bad"] else found


def with_source(words: Sequence[str]) -> list[str]:
    """A plain command line in which `-c CONFIG`, as the stages take it, has become `--source`.

    Of several configs the last word counts; `--data.source.…` overrides it, as at the stages.
    """
    source: dict[str, Any] = {}
    rest: list[str] = []
    given = iter(words)
    for word in given:
        if word in ("-c", "--config"):
            text = Path(next(given)).read_text()
            refuse_odd_yaml(text)
            named = (yaml.safe_load(text) or {}).get("data", {}).get("source", {})
            kept = source if named.get("class_path") in (None, source.get("class_path")) else {}
            source = {
                **named,
                "init_args": {**kept.get("init_args", {}), **named.get("init_args", {})},
            }
        else:
            rest.append(word.replace("--data.source.init_args.", "--source.", 1))
    if "newest" in rest and rest[rest.index("newest") - 1] == "--detector":
        rest[rest.index("newest")] = newest_detector(Path("runs"), source)
    return [*(["--source", json.dumps(source)] if source else []), *rest]


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
            with ranks.handled((signal.SIGTERM, signal.SIGINT), signals.handle):
                StageCLI(command, words, line, signals)
        else:
            run_plain(command, words)
    except watch.Stopped as stop:
        return fail(stop.message, stop.exit_code)
    except Exception as error:
        if debug:
            traceback.print_exc()
        return fail(*explain(error))
    except KeyboardInterrupt:
        return fail("stopped by SIGINT", 130)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 2 if end.code else 0
    return 0


def _take_imports(words: Sequence[str]) -> list[str]:
    """Import the files given with --import, so that configs may name their classes; give back the other words."""
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
        importlib.import_module(path.stem)
        checkpoint.allow_import(path.stem)
    return rest


def explain(error: BaseException) -> tuple[str, int]:
    """One line for people, and the exit code."""
    for cause in _causes(error):
        if isinstance(cause, HeatliftError):
            return str(cause), cause.exit_code
    if isinstance(error, jsonargparse.ArgumentError):
        return _usage(str(error)), 2
    if isinstance(error, MisconfigurationException):
        return " ".join(str(error).split()), 2
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "out of GPU memory; lower --data.batch_size", 5
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "out of memory; lower --data.batch_size or --data.workers", 5
    if isinstance(error, OSError) and error.errno in FULL_OR_CLOSED:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; make room, or choose another --runs folder", 5
    if ranks.says_that_one_is_lost(error):
        return "lost another process of this run; the same command goes on from the newest state", 6
    line = " ".join(str(error).split())[:400]
    return (
        f"{type(error).__name__}: {line} (a bug, or something unforeseen; --debug shows where)",
        1,
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _usage(message: str, known: Sequence[str] = ()) -> str:
    """What jsonargparse says, in a line: which key, what is wrong with it, and which key may be meant."""
    keys = re.findall(r'Parser key "([^"]+)"', message)
    if denied := re.search(r"Importing '([^']+)' is not allowed", message):
        return (
            f"{'.'.join(keys[:1])}: class_path {denied[1]} is not on the allow-list of what a config may import; "
            "classes of your own come in with --import FILE.py"
        )
    unknown = re.search(r"option '([^']+)'|Option '([^']+)' is|unrecognized arguments: (\S+)", message)
    if unknown:
        word = next(filter(None, unknown.groups())).removeprefix("--")
        near = difflib.get_close_matches(word, known, 1) or [
            name for name in known if name.startswith(word)
        ]
        place = f"{'.'.join(keys)}: " if keys else ""
        return f"{place}unknown key {word}" + (f", did you mean {near[0]}?" if near else "")
    wrong = re.search(r"Expected an? <class '(\w+)'>\. Got value: (.*)", message)
    if wrong and keys:
        return f"{'.'.join(keys)}: {wrong[2]!r} is not of type {wrong[1]}"
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return "; ".join(
        lines[:1]
        + [line for line in lines[1:] if "rror" in line or "expected" in line.lower()][-2:]
    )


def _known_keys(parser: LightningArgumentParser, words: Sequence[str]) -> list[str]:
    """Keys that a stage takes, and the arguments of the classes that its configs name."""
    keys = [action.dest for action in parser._actions]
    for given, word in pairwise(words):
        if given in ("-c", "--config"):
            for place in re.findall(r"class_path:\s*(pipeline\.[\w.]+)", Path(word).read_text()):
                module, _, name = place.rpartition(".")
                with contextlib.suppress(ImportError, AttributeError):
                    made = getattr(importlib.import_module(module), name)
                    keys += inspect.signature(made).parameters
    return keys
