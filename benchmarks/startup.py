"""Processor time from the start of a command to its help, and to the first step of a training.

Usage: python benchmarks/startup.py [--times 5]

Each command runs in a new process, in turns; the result is the median of its processor seconds with
quartiles, and the ratio to the import of torch and lightning alone, which is measured in the same
turns. The training is `lift/demo` on exact 2D of two short clips, until its first step is done.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence

HEATLIFT = ("-m", "pipeline")
FIRST_STEP = (
    *(*HEATLIFT, "lift", "fit", "-c", "lift/demo", "--wandb", "off", "--model.pretrained", "none"),
    *("--data.detections", "exact", "--data.source.init_args.train", "1"),
    *("--data.source.init_args.test", "1", "--data.source.init_args.seconds", "0.5"),
    *("--trainer.max_steps", "1", "--trainer.limit_val_batches", "0"),
    *("--trainer.limit_test_batches", "0", "--runs"),
)
COMMANDS = {
    "import of torch and lightning": (("-c", "import lightning.pytorch"), None),
    "heatlift --help": ((*HEATLIFT, "--help"), 2.5),
    "heatlift lift fit --help": ((*HEATLIFT, "lift", "fit", "--help"), 2.5),
    "heatlift predict --help": ((*HEATLIFT, "predict", "--help"), 2.5),
    "heatlift export --help": ((*HEATLIFT, "export", "--help"), 2.5),
    "heatlift weights ls": ((*HEATLIFT, "weights", "ls"), 2.5),
    "heatlift lift fit, one step": (FIRST_STEP, 3.5),
}
"""Name -> arguments of Python, and the largest accepted processor time in seconds."""


def processor_seconds(arguments: Sequence[str]) -> float:
    """Processor time of a new process and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        if arguments[-1] == "--runs":
            arguments = [*arguments, folder]
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    """Measure all commands in turns; exit with 1 if one takes more than accepted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(options.times + 1):
        for name, (arguments, _) in COMMANDS.items():
            taken = processor_seconds(arguments)
            if number:  # the first round fills the caches of files
                seconds[name].append(taken)
    first, missed = next(iter(COMMANDS)), False
    for name, (_, limit) in COMMANDS.items():
        low, middle, high = statistics.quantiles(seconds[name], n=4, method="inclusive")
        ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds[first], strict=True))
        goal = "" if limit is None else f"; goal {limit} s"
        missed |= limit is not None and middle > limit
        print(f"{name:32s}{middle:6.2f} s ({low:.2f} to {high:.2f}), ratio {ratio:.2f}{goal}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
