"""Trainings on two processes (DDP, gloo), and two separate trainings at once (--steps, --rounds).

Each process has one thread and batches of the same size in every case, so both do the same work
but for the exchange of gradients. Samples per second of `heatlift fit`, the median over its steps
without the first ones. The separate trainings run at the same time, because two busy cores are
slower than one; one training alone is printed, too. The ratio is that of runs one after the other.
Two processes that wait for each other are as fast as the slower core, so the last number compares
them with twice the slower one of the separate trainings.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

CASES = {
    "lift/mixste_small": (0.93, ("--data.detections", "exact", "--model.pretrained", "none")),
    "heatmap/hrnet_narrow": (0.96, ("--data.workers", "0")),
}
"""Config -> goal of the ratio, and more options."""

WARM_UP = 3
"""Rows of samples per second that are not counted."""


def start(case: str, runs: Path, steps: int, *options: str) -> subprocess.Popen[bytes]:
    """Start a training of a config in a folder of its own."""
    stage, _, _ = case.partition("/")
    command = [sys.executable, "-m", "pipeline", stage, "fit", "-c", case, *CASES[case][1]]
    command += ["--runs", str(runs), "--name", "run", "--wandb", "off", *options]
    command += [f"--trainer.max_steps={steps}", "--trainer.limit_val_batches=1"]
    command += ["--trainer.limit_test_batches=1", "--trainer.log_every_n_steps=10"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def rate(case: str, runs: Path, training: subprocess.Popen[bytes]) -> float:
    """Samples per second of a training, of all its processes, when it has ended."""
    if code := training.wait():
        sys.exit(f"{case}: the training ended with exit code {code}")
    stage, _, _ = case.partition("/")
    with (runs / stage / "run" / "metrics.csv").open() as file:
        rows = [float(row[2]) for row in csv.reader(file) if row[1] == "train/samples_per_s"]
    return statistics.median(rows[WARM_UP:])


def measure(case: str, steps: int, rounds: int) -> bool:
    """Measure a config and print its line; returns whether the goal is reached."""
    alone, separate, slower, together = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            runs = [Path(folder) / f"{number}-{name}" for name in ("alone", "a", "b", "ddp")]
            alone.append(rate(case, runs[0], start(case, runs[0], steps)))
            pair = [(path, start(case, path, steps)) for path in runs[1:3]]
            rates = [rate(case, path, training) for path, training in pair]
            separate.append(sum(rates))
            slower.append(2 * min(rates))
            options = ("--trainer.devices=2", "--trainer.strategy=ddp")
            together.append(rate(case, runs[3], start(case, runs[3], steps, *options)))
    ratios = sorted(b / a for a, b in zip(separate, together, strict=True))
    ratio, goal = statistics.median(ratios), CASES[case][0]
    of_slower = statistics.median(b / a for a, b in zip(slower, together, strict=True))
    print(
        f"{case:22s} samples per second: one {statistics.median(alone):6.0f}, two separate "
        f"{statistics.median(separate):6.0f}, two by DDP {statistics.median(together):6.0f}  "
        f"ratio {ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) goal {goal:g}"
        f"{'' if ratio >= goal else ' MISSED'}; with the slower one {of_slower:.2f}",
        flush=True,
    )
    return ratio >= goal


def main() -> int:
    """Print one line per config; return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    reached = [measure(case, arguments.steps, arguments.rounds) for case in CASES]
    return int(not all(reached))


if __name__ == "__main__":
    sys.exit(main())
