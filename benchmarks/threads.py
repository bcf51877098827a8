"""Threads on a busy machine: steps per second beside other programs, by settings of OpenMP.

Usage: python benchmarks/threads.py [--seconds 3] [--busy 2]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import time

SETTINGS = {
    "libgomp's own": {},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
}
"""Name -> environment variables; the second is what Heatlift sets."""

STEPS = """
import torch  # before pipeline, which would set its own value
import sys, time
from pipeline.training.shared_cores import processor_times
net = torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(4)])
inputs = torch.randn(512, 256)
def step():
    net(inputs).square().mean().backward()
step()
start, before, count = time.perf_counter(), processor_times(), 0
while time.perf_counter() - start < float(sys.argv[1]):
    step()
    count += 1
ran, waited = (now - then for now, then in zip(processor_times(), before))
print(count / (time.perf_counter() - start), waited / (ran + waited), torch.get_num_threads())
"""


def spin() -> None:
    """Keep a core busy for ever."""
    while True:
        pass


def measure(variables: dict[str, str], seconds: float) -> tuple[float, float, int]:
    """Steps per second of a small network, share of its time waiting for a core, and threads."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))}
    command = [sys.executable, "-c", STEPS, str(seconds)]
    done = subprocess.run(
        command, env=clean | variables, capture_output=True, text=True, check=True
    )
    steps, waited, threads = done.stdout.split()
    return float(steps), float(waited), int(threads)


def main() -> None:
    """Measure all settings, alone and beside busy processes, and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--busy", type=int, default=2, help="busy processes")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores; load before the start {os.getloadavg()[0]:.1f}")
    alone = {name: measure(variables, options.seconds) for name, variables in SETTINGS.items()}
    others = [multiprocessing.Process(target=spin, daemon=True) for _ in range(options.busy)]
    for other in others:
        other.start()
    time.sleep(0.5)
    beside = {name: measure(variables, options.seconds) for name, variables in SETTINGS.items()}
    for other in others:
        other.kill()
    print(
        f"{'':22s}{'threads':>8s}{'alone':>12s}{'ratio':>7s}{'beside':>12s}{'ratio':>7s}  waiting"
    )
    first = next(iter(SETTINGS))
    for name in SETTINGS:
        quiet, busy = alone[name], beside[name]
        print(
            f"{name:22s}{quiet[2]:8d}{quiet[0]:8.1f} /s {quiet[0] / alone[first][0]:7.2f}"
            f"{busy[0]:8.1f} /s {busy[0] / beside[first][0]:7.2f}"
            f"  {quiet[1]:.0%} alone, {busy[1]:.0%} beside {options.busy} busy processes"
        )


if __name__ == "__main__":
    main()
