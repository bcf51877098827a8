"""StageCLI: the LightningCLI of a stage."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import lightning.pytorch as pl
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger

from pipeline.cli import explain
from pipeline.cli.configs import plain_values
from pipeline.cli.newest import newest_checkpoint
from pipeline.cli.run_inputs import run_inputs
from pipeline.cli.run_options import EVALUATION_OPTIONS, FIT_OPTIONS
from pipeline.cli.run_report import (
    describe_network,
    describe_weights,
    finish_run,
    finite_metrics,
    print_metrics,
    print_result_paths,
    print_start,
)
from pipeline.cli.run_settings import (
    add_options,
    add_run_options,
    check_weights,
    checkpoint_settings,
    complete_config,
    evaluation_folder,
    open_fit,
    run_code,
    run_name,
    run_settings,
)
from pipeline.cli.stages import STAGES
from pipeline.cli.trainer_options import (
    DEFAULT_SCHEDULE,
    as_list,
    basic_callbacks,
    callbacks_of_the_user,
    check_seed,
    describe_length,
    make_ddp_strategy,
    make_loggers,
    process_count,
    report_wrong_values,
)
from pipeline.dashboard.callback import Dashboard
from pipeline.dashboard.show import finish_wandb
from pipeline.errors import UsageError, print_error
from pipeline.training import processes
from pipeline.training.callbacks import PredictionWriter, SameInputs
from pipeline.training.checkpoints import AtomicCheckpointIO, require_checked_reading
from pipeline.training.console import print_line
from pipeline.training.precision import precision_options
from pipeline.training.private_names import INSTANTIATOR, parser_actions
from pipeline.training.run_folder import Run
from pipeline.training.saving import CheckpointCallback, validate_changed_weights
from pipeline.training.signals import StopSignals
from pipeline.training.stage import Stage


class StageCLI(LightningCLI):
    """Command line of a stage: its module and data classes, a run folder, loggers, callbacks.

    Args:
        stage: LightningModule class of the stage.
        arguments: Arguments after the name of the stage, with paths of configs.
        command_line: All arguments as given, to start the other processes of a run.
        stops: Callback that handles SIGTERM and SIGINT.

    Raises:
        SystemExit: If this process only supervised the processes of the run.
    """

    def __init__(
        self,
        stage: type[Stage],
        arguments: Sequence[str],
        command_line: Sequence[str],
        stops: StopSignals,
    ) -> None:
        self.stage, self.command_line, self.stops = stage, command_line, stops
        self.run: Run | None = None
        self.checkpoint_callback: CheckpointCallback | None = None
        self.start_time = time.monotonic()
        name = stage.stage
        parser_settings: dict[str, Any] = {
            "exit_on_error": False,
            "allow_abbrev": False,
            "description": f"heatlift {name}: {STAGES[name].help}.",
        }
        try:
            super().__init__(
                stage,
                stage.data_class,
                save_config_callback=None,
                seed_everything_default=0,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                trainer_defaults={"enable_model_summary": False, "log_every_n_steps": 10},
                parser_kwargs=parser_settings
                | {"prog": f"heatlift {name}"}
                | {command: {**parser_settings, "prog": command} for command in self.subcommands()},
                args=list(arguments),
            )
        finally:
            if self.run:
                self.run.close()

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of a run, and link options that have the same value."""
        self.parsers[parser.prog] = parser
        add_run_options(parser, self.stage.example_config)
        if any(action.dest == "model.schedule" for action in parser_actions(parser)):
            parser.set_defaults({"model.schedule": {"class_path": DEFAULT_SCHEDULE}})
        parser.link_arguments("seed_everything", "data.seed")
        for name in self.stage.linked_arguments:
            parser.link_arguments(f"data.{name}", f"model.{name}")

    def setup_parser(self, *args: Any) -> None:
        """Make the parsers; those of evaluations get more options than that of fit."""
        self.parsers: dict[str, LightningArgumentParser] = {}
        super().setup_parser(*args)
        for subcommand in self.subcommands():
            options = FIT_OPTIONS if subcommand == "fit" else EVALUATION_OPTIONS
            add_options(self.parsers[subcommand], options)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the command line.

        Raises:
            UsageError: If a key or value is wrong; the message suggests the nearest key.
        """
        try:
            super().parse_arguments(parser, args)
        except jsonargparse.ArgumentError as error:
            message = explain.explain_arguments(str(error), self.stage.stage, self.parsers, args)
            raise UsageError(message) from error
        check_seed(self.config[self.config.subcommand].seed_everything)
        self.subcommand = self.config.subcommand
        config = self.config[self.subcommand]
        self.checkpoint, config.ckpt_path = config.ckpt_path, None  # Lightning would not check it
        if self.checkpoint == "newest" and self.subcommand != "fit":
            self.checkpoint = newest_checkpoint(Path(config.runs), self.stage.stage)
        if self.checkpoint:
            self.take_settings(self.checkpoint)

    def take_settings(self, path: str) -> None:
        """Take the arguments of the module from a checkpoint."""
        if self.subcommand == "fit":
            raise UsageError(
                f"--ckpt_path {path}: fit resumes automatically, by the same command; to "
                "initialise weights from a checkpoint use --model.pretrained"
            )
        content = checkpoint_settings(path, self.stage, self.command_line)
        before = self.config[self.subcommand].model.as_dict()
        self.config = self.parser.parse_object({self.subcommand: content}, self.config)
        after = self.config[self.subcommand].model.as_dict()
        if changed := sorted(key for key, value in after.items() if before.get(key) != value):
            what = f"{self.stage.stage}: {', '.join(changed)}"
            print_line(f"{what} as in {path}, not as on the command line")

    def before_instantiate_classes(self) -> None:
        """Resolve `newest`, open the run or the evaluation folder, start several processes."""
        config = self.config[self.subcommand]
        config.ckpt_path = self.checkpoint
        complete_config(config, self.stage, self.subcommand)
        run = Path(config.runs) / self.stage.stage / run_name(config, self.stage.stage)
        if self.subcommand != "fit":
            check_weights(config, f"{self.stage.stage} {self.subcommand}", run)
        inputs = run_inputs(self.stage, config, str(self.subcommand))
        self.settings, code = run_settings(config, inputs), run_code(self.command_line)
        self.inputs = inputs | code
        if self.subcommand == "fit":
            self.run = open_fit(config, run, self.settings, code, self.command_line)
            if self.run.resume:
                config.ckpt_path, config.model.pretrained = str(self.run.resume), None
            self.folder = self.run.folder
        else:
            self.folder = evaluation_folder(config, run, self.subcommand, self.settings, code)
        config.trainer.default_root_dir = str(self.folder)
        count = 1 if processes.current_rank() is not None else process_count(config.trainer)
        if count > 1:
            run_in_processes(count, self.folder, self.run, self.command_line)

    def instantiate_classes(self) -> None:
        """Make the data, the module and the Trainer; a value that a class rejects is named."""
        with report_wrong_values():
            super().instantiate_classes()

    def after_instantiate_classes(self) -> None:
        """Store the arguments of the module in its checkpoints."""
        arguments = plain_values(self.config[self.subcommand].model)
        arguments.pop("pretrained", None)
        self.model.save_hyperparameters({**arguments, **INSTANTIATOR})

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Make the Trainer, with the loggers and callbacks of a run added to those of the user."""
        config, seed = (self.config[self.subcommand][key] for key in ("trainer", "seed_everything"))
        instantiated = self.config_init[self.subcommand].trainer
        bar = sys.stderr.isatty() and config.enable_progress_bar is not False
        plugins = [*as_list(instantiated["plugins"]), AtomicCheckpointIO()]
        options: dict[str, Any] = {
            "enable_checkpointing": True,  # by callbacks of our own
            "use_distributed_sampler": False,
            "enable_progress_bar": bar,
            **precision_options(config.precision, plugins),
            "logger": False if config.fast_dev_run else self._loggers(),
            "callbacks": [
                *callbacks_of_the_user(instantiated["callbacks"]),
                *basic_callbacks(seed, instantiated, bar=bar),
                SameInputs(self.inputs),
                *([] if config.fast_dev_run else self._output_callbacks()),
                self.stops,
            ],
        }
        if processes.current_rank() is not None and config.strategy in ("auto", "ddp"):
            options["strategy"] = make_ddp_strategy(self.config[self.subcommand], self.model)
        return require_checked_reading(super().instantiate_trainer(**{**options, **kwargs}))

    def _loggers(self) -> list[Logger]:
        config, stage = self.config[self.subcommand], self.stage.stage
        return make_loggers(config, self.folder, stage=stage, settings=self.settings)

    def _output_callbacks(self) -> list[pl.Callback]:
        """Callbacks that write to the folder of the run."""
        callbacks: list[pl.Callback] = [Dashboard()]
        if self.run:
            config = self.config[self.subcommand]
            monitor = (self.stage.monitor, self.stage.mode)
            saving = CheckpointCallback(self.run, config.save_every, monitor, config.weights)
            self.checkpoint_callback = self.stops.checkpoint_callback = saving
            callbacks.append(saving)
        if self.subcommand == "predict":
            callbacks.append(PredictionWriter(self.folder))
        return callbacks

    def before_fit(self) -> None:
        """Print the first lines of the run."""
        print_start(
            f"heatlift {self.stage.stage} {self.subcommand}: {self.folder}",
            self.trainer,
            data=self.datamodule.describe(),
            network=describe_network(self.model),
            weights=describe_weights(self.run, self.config[self.subcommand], self.settings),
            length=describe_length(self.config.fit.trainer) if self.subcommand == "fit" else "",
        )

    before_validate = before_test = before_predict = before_fit

    def after_fit(self) -> None:
        """Test the best or the last weights of the run, then mark it as finished."""
        if self.run is None or self.checkpoint_callback is None:
            return
        validate_changed_weights(self.checkpoint_callback, self.trainer)
        checkpoint = self.checkpoint_callback.selected_checkpoint()
        self.trainer.test(
            self.model, datamodule=self.datamodule, ckpt_path=str(checkpoint), verbose=False
        )
        tested = f"{checkpoint} was tested; the run stays unfinished"
        numbers = finite_metrics("test", self.trainer.callback_metrics, tested)
        self.stops.finished = True
        if self.trainer.is_global_zero:
            seconds = time.monotonic() - self.start_time
            finish_run(self.run, self.trainer, checkpoint, numbers, seconds)
        finish_wandb(self.trainer)

    def after_validate(self) -> None:
        """Print the metrics and their paths."""
        self._print_evaluation("val")

    def after_test(self) -> None:
        """Print the metrics and their paths."""
        self._print_evaluation("test")

    def _print_evaluation(self, split: str) -> None:
        print_metrics(split, self.trainer.callback_metrics)
        print_result_paths(self.folder)
        finite_metrics(split, self.trainer.callback_metrics, "check the weights and the data")


def run_in_processes(
    count: int, folder: Path, run: Run | None, command_line: Sequence[str]
) -> None:
    """Run a command line in several processes, and exit with their exit code."""
    environment = processes.run_environment(folder, run.resume) if run else {}
    message, code = processes.supervise_processes(count, command_line, environment)
    raise SystemExit(print_error(message, code) if code else 0)
