"""Command table of `heatlift` = `python -m pipeline`: name -> function and help line."""

from __future__ import annotations

import difflib
import gc
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from pipeline.cli.command_table import Command
from pipeline.cli.late_imports import import_late
from pipeline.cli.stages import STAGES, SUBCOMMANDS
from pipeline.errors import UsageError, print_error
from pipeline.training.processes import (
    STOP_SIGNALS,
    current_rank,
    exit_with_parent,
    signal_handlers,
)

COMMANDS = {
    "predict": Command(
        "predict the 3D motion of people in videos, images or 2D files",
        "pipeline.cli.predict:run",
        own_parser=True,
    ),
    "export": Command("write a predicted motion in other formats", "pipeline.cli.export:export"),
    "detect": Command(
        "run a 2D detector on images and store its joints in the cache",
        "pipeline.detections.cache:detect",
        options_only=True,
    ),
    "data": Command(
        "list, validate, map, convert, export or get data sets",
        {
            "ls": "pipeline.cli.data:ls",
            "validate": "pipeline.cli.data:validate",
            "mapping": "pipeline.cli.data:mapping",
            "convert": {
                "_help": "Convert files of other tools to npz files that the data sources read.",
                "amc": "pipeline.cli.data:amc",
                "amass": "pipeline.cli.data:amass",
                "npz": "pipeline.cli.data:npz",
            },
            "export": "pipeline.cli.data:export",
            "get": "pipeline.cli.data:get",
        },
    ),
    "cache": Command(
        "list, verify or remove cached detections",
        {
            "ls": "pipeline.cli.cache:ls",
            "verify": "pipeline.cli.cache:verify",
            "rm": "pipeline.cli.cache:rm",
        },
    ),
    "weights": Command(
        "list, get, import or verify published weights, export networks to ONNX",
        {
            "ls": "pipeline.cli.weights:ls",
            "get": "pipeline.cli.weights:get",
            "import": "pipeline.cli.weights:import_file",
            "verify": "pipeline.cli.weights:verify",
            "export": "pipeline.cli.weights:export",
        },
    ),
    "runs": Command(
        "list runs, show one, or compare several on one page",
        "pipeline.cli.runs:run",
        own_parser=True,
    ),
    "newest": Command(
        "print the checkpoint of the newest finished run of a stage", "pipeline.cli.newest:newest"
    ),
    "chain": Command(
        "train a lifter and the 2D stage it needs; check and print the plan first",
        "pipeline.experiments.chain:chain",
        options_only=True,
    ),
    "demo": Command(
        "train all stages on rendered people and print their errors",
        "pipeline.experiments.demo:demo",
    ),
    "results": Command(
        "train the lifters of the open benchmark and write a page of results",
        "pipeline.experiments.benchmark:results",
        options_only=True,
    ),
    "box": Command(
        "train or measure the lifter in the box",
        {"train": "pipeline.experiments.box:train", "report": "pipeline.experiments.box:report"},
        options_only=True,
    ),
    "robustness": Command(
        "measure a lifter on hidden joints, dropped frames and noise",
        "pipeline.experiments.robustness:robustness",
        options_only=True,
    ),
    "sweep": Command(
        "train every combination of a W&B sweep file, without an account",
        "pipeline.experiments.sweep:sweep",
    ),
    "models": Command(
        "list all networks of the papers with their size and cost", "pipeline.cli.models:models"
    ),
    "doctor": Command(
        "check whether this machine has what Heatlift needs", "pipeline.cli.doctor:doctor"
    ),
    "docs": Command(
        "print a page of the documentation, or the list of pages",
        "pipeline.cli.docs:run",
        own_parser=True,
    ),
}
"""Plain commands, which are typed functions; the stages are in `pipeline.cli.stages`."""

VERBS = {"train": "fit", "eval": "test", "evaluate": "test"}
"""Words of other programs -> the subcommand of a stage."""

USAGE = (
    "usage: heatlift STAGE {fit,validate,test,predict} [options]\n       heatlift COMMAND [options]"
)
EXIT_CODES = (
    "Exit codes: 0 done, 1 a bug, 2 usage or config, 3 numbers that are not finite, 4 data,\n"
    "5 storage, 6 a lost process, 128 + N stopped by signal N (130 Ctrl-C, 143 SIGTERM)."
)


def overview() -> str:
    """Text of `heatlift --help`."""
    lines = [
        USAGE,
        "",
        "Train and evaluate all stages of monocular 3D human pose estimation.",
        "",
        "stages:",
    ]
    lines += [f"  {name:<10} {entry.help}" for name, entry in STAGES.items()]
    lines += ["", "commands:"]
    lines += [f"  {name:<10} {command.help}" for name, command in COMMANDS.items()]
    lines += [
        "",
        "`heatlift STAGE fit --help` lists all options of a stage, `heatlift COMMAND --help` those",
        "of a command. -c takes a shipped config such as lift/mixste_small, or a YAML file.",
        "`heatlift docs` lists the pages of the documentation by task.",
        "--debug shows the full traceback of an error. --version shows the version.",
        EXIT_CODES,
    ]
    return "\n".join(lines)


def main(args: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        args: Arguments without the name of the program; `sys.argv` by default.

    Returns:
        The exit code; see `EXIT_CODES`.
    """
    exit_with_parent()
    arguments = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _print(overview())
        return 0 if arguments else 2
    name, *options = arguments
    if name in ("--version", "version"):
        from importlib.metadata import version

        print(f"heatlift {version('heatlift')}")
        return 0
    verb = VERBS.get(name, name)
    if verb in SUBCOMMANDS and options and options[0] in STAGES:
        return print_error(f"{name}: is no stage; did you mean `heatlift {options[0]} {verb}`?", 2)
    if name not in STAGES and name not in COMMANDS:
        similar = difflib.get_close_matches(name, [*STAGES, *COMMANDS], 1)
        hint = f"did you mean {similar[0]}?" if similar else "see `heatlift --help`"
        return print_error(f"{name}: no such stage or command; {hint}", 2)
    if name in STAGES and any(option in ("-h", "--help", "help") for option in options):
        from pipeline.cli.stage_help import stage_help

        _print(stage_help(name, next((word for word in options if word in SUBCOMMANDS), None)))
        return 0
    try:
        current_rank()  # checked first: Lightning reads these variables during its import
        import_late()
        with signal_handlers(STOP_SIGNALS, _stop):
            if name in STAGES:
                _import_stages()
            from pipeline.cli import launch  # not imported for --help
    except UsageError as error:
        return print_error(str(error), error.exit_code)
    except KeyboardInterrupt as stop:
        number = next(iter(stop.args), signal.SIGINT)  # an interrupt by Python has no args
        message = f"stopped by {signal.Signals(number).name} before the start"
        return print_error(message, 128 + number)
    if name in STAGES:
        code = launch.run_stage(name, options, debug=debug)
    else:
        code = launch.run_command(name, COMMANDS[name], options, debug=debug)
    if args is None and code > 128:  # this process ends; torchrun sends the signal once more
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    return code


def _print(text: str) -> None:
    """Print a text; a program that reads only its beginning, such as `head`, is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _import_stages() -> None:
    """Import what stages need, which takes seconds; plain commands do without.

    What is imported stays in memory, so Python does not search it for garbage: not meanwhile, which
    would take longer, and not later.
    """
    if "pipeline.cli.stage_cli" in sys.modules:
        return
    gc.disable()
    try:
        from pipeline.training import private_names

        del private_names  # imported first: it checks names that Lightning imports, too
        from pipeline.cli import stage_cli

        del stage_cli
        gc.freeze()
    finally:
        gc.enable()


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    sys.exit(main())
