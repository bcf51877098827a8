"""The command table of `heatlift` = `python -m pipeline`: name -> function, one help line each."""

from __future__ import annotations

import difflib
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from pipeline.cli.stages import STAGES
from pipeline.cli.table import Command
from pipeline.errors import UsageError, print_error
from pipeline.training.processes import current_rank, exit_with_parent, signal_handlers

COMMANDS = {
    "detect": Command(
        "fill the cache with a detector's joints", "pipeline.detections.cache:detect", named=True
    ),
    "data": Command(
        "ls, validate, convert, export or get data",
        {
            "ls": "pipeline.cli.data:ls",
            "validate": "pipeline.cli.data:validate",
            "convert": {
                "amc": "pipeline.cli.data:amc",
                "amass": "pipeline.cli.data:amass",
                "npz": "pipeline.cli.data:npz",
            },
            "export": "pipeline.cli.data:export",
            "get": "pipeline.cli.data:get",
        },
    ),
    "cache": Command(
        "ls, verify or rm cached detections",
        {
            "ls": "pipeline.cli.cache:ls",
            "verify": "pipeline.cli.cache:verify",
            "rm": "pipeline.cli.cache:rm",
        },
    ),
    "weights": Command(
        "import published weights",
        {"import": "pipeline.weights.importing:import_weights"},
        named=True,
    ),
    "newest": Command(
        "print the checkpoint of the newest finished run of a stage", "pipeline.cli.newest:newest"
    ),
    "demo": Command(
        "the whole chain on embedded people, in one process", "pipeline.experiments.demo:demo"
    ),
    "results": Command(
        "train the compared lifters row by row and write docs/results.md",
        "pipeline.experiments.benchmark:results",
        named=True,
    ),
    "robustness": Command(
        "measure a lifter on hidden joints, dropped frames and noise",
        "pipeline.experiments.robustness:robustness",
        named=True,
    ),
    "sweep": Command(
        "train every point of a W&B sweep file, without an account",
        "pipeline.experiments.sweep:sweep",
    ),
    "models": Command(
        "list every system of the papers with its size and cost", "pipeline.cli.models:models"
    ),
    "doctor": Command(
        "check whether this machine has what Heatlift needs", "pipeline.cli.doctor:doctor"
    ),
}
"""Commands that are plain typed functions; the stages stand in `pipeline.cli.stages`."""

USAGE = (
    "usage: heatlift STAGE {fit,validate,test,predict} [options]\n       heatlift COMMAND [options]"
)
EXIT_CODES = (
    "Exit codes: 0 done, 1 a bug, 2 usage or config, 3 numbers, 4 data, 5 storage, 6 a process\n"
    "lost, 130 and 143 stopped by a signal."
)


def overview() -> str:
    """What `heatlift --help` prints."""
    lines = [USAGE, "", "Monocular 3D human pose, from images and video to motion.", "", "stages:"]
    lines += [f"  {name:<10} {entry.help}" for name, entry in STAGES.items()]
    lines += ["", "commands:"]
    lines += [f"  {name:<10} {command.help}" for name, command in COMMANDS.items()]
    lines += [
        "",
        "`heatlift STAGE fit --help` lists every option of a stage; `-c lift/mixste_small` takes",
        "a shipped config or a file; --debug shows a full traceback.",
        EXIT_CODES,
    ]
    return "\n".join(lines)


def main(args: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        args: Arguments without the program's name; `sys.argv` if none are given.

    Returns:
        The exit code: 0 done, 1 a bug, 2 usage or config, 3 numbers, 4 data, 5 storage,
        6 a process lost, 130 and 143 stopped by a signal.
    """
    exit_with_parent()
    arguments = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if arguments else 2
    name, *rest = arguments
    if name in ("--version", "version"):
        from importlib.metadata import version

        print(f"heatlift {version('heatlift')}")
        return 0
    if name not in STAGES and name not in COMMANDS:
        near = difflib.get_close_matches(name, [*STAGES, *COMMANDS], 1)
        hint = f"did you mean {near[0]}?" if near else "see `heatlift --help`"
        return print_error(f"{name}: no such stage or command; {hint}", 2)
    try:
        current_rank()  # lightning reads the launcher's variables while it is imported
        with signal_handlers((signal.SIGTERM, signal.SIGINT), _stop):
            from pipeline.cli import launch  # takes seconds
    except UsageError as error:
        return print_error(str(error), error.exit_code)
    except KeyboardInterrupt as stop:
        number = next(iter(stop.args), signal.SIGINT)  # Python's own has none
        message = f"stopped by {signal.Signals(number).name}; nothing had begun"
        return print_error(message, 128 + number)
    if name in STAGES:
        return launch.run_stage(name, rest, debug=debug)
    return launch.run_command(name, COMMANDS[name], rest, debug=debug)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    sys.exit(main())
