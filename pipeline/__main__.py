"""`heatlift STAGE …` = `python -m pipeline STAGE …`: picks the stage, then hands over to it."""

from __future__ import annotations

import difflib
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from pipeline.errors import UsageError
from pipeline.ranks import die_with_parent, handled, rank

STAGES = {
    "heatmap": "train or test a 2D stage: pictures to heatmaps to joints",
    "integral": "train or test a 2D stage with 3D heatmaps (SAN)",
    "pretrain": "train a lifter to recover motion from masked, noisy projections",
    "lift": "train or test a lifter: 2D clips to 3D clips",
}
COMMANDS = {
    "detect": "fill the cache with a detector's joints",
    "data": "ls, validate, convert, export or get data",
    "cache": "ls, verify or rm cached detections",
    "weights": "import published weights",
    "newest": "print the checkpoint of the newest finished run of a stage",
    "demo": "the whole chain on embedded people, in one process",
    "results": "train the compared set row by row and write docs/results.md",
    "robustness": "measure a lifter on hidden joints, dropped frames and noise",
    "sweep": "train every point of a W&B sweep file, without an account",
    "models": "list every system of the papers with its size and cost",
    "doctor": "say what this machine has and whether it will do",
}
USAGE = (
    "usage: heatlift STAGE {fit,validate,test,predict} [options]\n       heatlift COMMAND [options]"
)


def overview() -> str:
    """What `heatlift --help` prints."""
    lines = [USAGE, "", "Monocular 3D human pose, from pictures to motion.", "", "stages:"]
    lines += [f"  {name:<10} {text}" for name, text in STAGES.items()]
    lines += ["", "commands:"]
    lines += [f"  {name:<10} {text}" for name, text in COMMANDS.items()]
    lines += [
        "",
        "`heatlift STAGE fit --help` lists every option of a stage; `-c lift/mixste_small` takes",
        "a shipped config or a file; --debug shows a full traceback. Exit codes: 0 done, 1 a bug,",
        "2 usage or config, 3 numbers, 4 data, 5 storage, 6 a process lost, 130 and 143 stopped",
        "by a signal.",
    ]
    return "\n".join(lines)


def main(args: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        args: Without the program's name; `sys.argv` if none are given.

    Returns:
        The exit code: 0 done, 1 a bug, 2 usage or config, 3 numbers, 4 data, 5 storage,
        6 a process lost, 130 and 143 stopped by a signal.
    """
    die_with_parent()
    words = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if words else 2
    if words[0] in ("--version", "version"):
        from importlib.metadata import version

        print(f"heatlift {version('heatlift')}")
        return 0
    known = [*STAGES, *COMMANDS]
    if words[0] not in known:
        near = difflib.get_close_matches(words[0], known, 1)
        hint = f"did you mean {near[0]}?" if near else "see `heatlift --help`"
        return fail(f"{words[0]}: no such stage or command; {hint}", 2)
    try:
        rank()  # lightning reads the launcher's variables amid its imports
        with handled((signal.SIGTERM, signal.SIGINT), _stop):
            from pipeline import cli  # takes seconds
    except UsageError as error:
        return fail(str(error), error.exit_code)
    except KeyboardInterrupt as stop:
        number = next(iter(stop.args), signal.SIGINT)  # Python's own has none
        return fail(f"stopped by {signal.Signals(number).name}; nothing had begun", 128 + number)
    return cli.run(words[0], words[1:], debug=debug)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def fail(message: str, code: int) -> int:
    """Print one line on stderr and give back the exit code."""
    print(f"heatlift: error: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
