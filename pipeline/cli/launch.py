"""Running a stage or a command: own files are imported, errors become one line and exit code."""

from __future__ import annotations

import importlib
import logging
import os
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from pipeline.cli import commands, explain
from pipeline.cli.arguments import parse_arguments
from pipeline.cli.command_table import Command
from pipeline.cli.configs import resolve_configs
from pipeline.cli.stages import load_stage
from pipeline.errors import UsageError, print_error, printable
from pipeline.training.console import escape_log_records
from pipeline.training.processes import (
    STOP_SIGNALS,
    StoppedBySignal,
    signal_handlers,
    speaks_for_all,
)

IGNORED_WARNINGS = (
    r".*LeafSpec.*",  # lightning 2.6 with torch 2.13
    r".*args parameter is intended to run from within Python.*",  # `StageCLI` gets arguments
    r".*does not have many workers.*",  # whole batches are gathered at once, faster without
    r".*Consider setting `persistent_workers=True`.*",
    r".*The number of training batches .* is smaller than the logging interval.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*sync_dist=True.*",  # evaluation logs torchmetrics, which synchronise themselves
    r".*It is recommended to use `self.log.*",
    r".*torch.distributed.nn.functional.all_gather.*",  # called by `self.all_gather`
)
"""Warnings of libraries that a user cannot act on."""


def run_stage(name: str, arguments: Sequence[str], *, debug: bool = False) -> int:
    """Run a stage; an error is printed as one line.

    Args:
        name: Name of the stage.
        arguments: Arguments after the name.
        debug: Whether to print the traceback of an error, too.

    Returns:
        The exit code.
    """
    from pipeline.cli.stage_cli import StageCLI  # takes seconds, so commands do without
    from pipeline.training.signals import StopSignals

    def run(resolved: list[str]) -> None:
        resolved = ["--help" if word == "--help_all" else word for word in resolved]
        stops = StopSignals()
        with signal_handlers((*STOP_SIGNALS, signal.SIGALRM), stops.handle):
            StageCLI(load_stage(name), resolved, [name, *arguments], stops)

    return _run(run, arguments, debug=debug)


def run_command(
    name: str, command: Command, arguments: Sequence[str], *, debug: bool = False
) -> int:
    """Run a plain command; an error is printed as one line.

    Args:
        name: Name of the command.
        command: Its entry in the command table.
        arguments: Arguments after the name.
        debug: Whether to print the traceback of an error, too.

    Returns:
        The exit code.
    """

    def run(resolved: list[str]) -> None:
        with signal_handlers(STOP_SIGNALS, _stop):
            commands.run_plain_command(name, command, resolved)

    return _run(run, arguments, debug=debug)


def _run(run: Callable[[list[str]], None], arguments: Sequence[str], *, debug: bool) -> int:
    """Call a function with the arguments, in which configs are paths; return the exit code."""
    quieten_libraries()
    escape_log_records()
    try:
        run(resolve_configs(import_own_files(arguments)))
    except StoppedBySignal as stop:
        if speaks_for_all():
            print_error(stop.message, stop.exit_code)
        return stop.exit_code
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_output_closed():
            return 128 + signal.SIGPIPE
        if debug:
            sys.stderr.write(printable(traceback.format_exc(), keep="\n"))
        elif speaks_for_all():
            sys.stderr.write(printable(explain.own_traceback(error), keep="\n"))
        return print_error(*explain.explain_error(error))
    except KeyboardInterrupt:
        return print_error("stopped by SIGINT", 130)
    except SystemExit as end:
        if isinstance(end.code, int):
            return end.code
        return 2 if end.code else 0
    return 0


def _is_output_closed() -> bool:
    """Whether nobody reads the output any more, as in `heatlift models | head -1`."""
    poll = select.poll()
    poll.register(sys.stdout, select.POLLOUT)
    is_closed = any(event & select.POLLERR for _, event in poll.poll(0))
    if is_closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
    return is_closed


def quieten_libraries() -> None:
    """Ignore what libraries print that a user cannot act on."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for pattern in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", pattern)


def _stop(number: int, frame: FrameType | None) -> None:
    raise StoppedBySignal(number, f"stopped by {signal.Signals(number).name}")


def import_own_files(arguments: Sequence[str]) -> list[str]:
    """Import the files given with --import; return the other arguments.

    Raises:
        UsageError: If a file is missing or has the name of another module.
    """
    rest: list[str] = []
    for argument in parse_arguments(arguments):
        if argument.option != "--import":
            rest += argument.words()
            continue
        from pipeline.training.checkpoints import allow_import  # imports torch

        path = Path(argument.value or "")
        if not path.is_file():
            raise UsageError(f"--import {path}: no such file; give a Python file of your own")
        sys.path.insert(0, str(path.resolve().parent))
        explain.own_files.append(path.resolve())
        module = importlib.import_module(path.stem)
        if Path(module.__file__ or "").resolve() != path.resolve():
            raise UsageError(
                f"--import {path}: there is another module {path.stem}; rename the file"
            )
        allow_import(path.stem)
    return rest
