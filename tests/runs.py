"""Tiny runs of every stage: configs, command lines, and their outcome."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from pipeline.training.metrics_rows import read_metrics
from pipeline.training.run_folder import read_state

MOTION = """
model:
  net:
    class_path: pipeline.lift.MixSTE
    init_args: {frames: 9, dim: 16, depth: 2, heads: 2, drop_path: 0.3}
  optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-3}}
  schedule: {class_path: pipeline.training.WarmupCosine}
data:
  source:
    class_path: pipeline.mocap.Synthetic
    init_args: {train: 2, val: 1, test: 1, actions: [walk, wave], seconds: 2.0}
  batch_size: 64
trainer: {max_epochs: 3, log_every_n_steps: 1}
save_every: 2
"""
IMAGES = """
model:
  net:
    class_path: pipeline.heatmap.HRNet
    init_args: {width: 8, stem: 8, planes: 8, blocks: 1, modules: [1, 1, 1]}
  optimizer: {class_path: torch.optim.Adam, init_args: {lr: 4.0e-3}}
  schedule: {class_path: pipeline.training.WarmupCosine}
data:
  source:
    class_path: pipeline.mocap.Synthetic
    init_args: {train: 2, val: 1, test: 1, actions: [walk, wave], seconds: 2.0, images: 64}
  input_size: [64, 64]
  batch_size: 16
trainer: {max_epochs: 2, log_every_n_steps: 1}
save_every: 2
"""
MIXED = """
model:
  net: {class_path: own.Narrow}
  optimizer: {class_path: torch.optim.Adam, init_args: {lr: 4.0e-3}}
  input_size: [64, 64]
data:
  source:
    class_path: pipeline.mocap.Synthetic
    init_args: {train: 2, val: 1, test: 1, actions: [walk, wave], seconds: 2.0, images: 64}
  photographs:
    class_path: own.Flat
    init_args: {train: 2, val: 1, test: 1, actions: [walk], seconds: 1.0, images: 32, seed: 5}
  input_size: [64, 64]
  batch_size: 16
trainer: {max_epochs: 2, log_every_n_steps: 1}
save_every: 2
"""
TINY = {"heatmap": IMAGES, "integral": MIXED, "pretrain": MOTION, "lift": MOTION}
"""Stage -> config of a run that takes seconds."""

USER_CODE = str(Path(__file__).parent / "own.py")
LIFT = ("--data.detections", "exact")
COMMANDS = {
    "heatmap": ("heatmap", "fit", "-c", "heatmap.yaml"),
    "integral": ("integral", "fit", "-c", "integral.yaml", "--import", USER_CODE),
    "pretrain": ("pretrain", "fit", "-c", "pretrain.yaml"),
    "lift": ("lift", "fit", "-c", "lift.yaml", *LIFT),
}
"""Stage -> arguments that start its run."""

STORED = (
    *("lift", "fit", "-c", "lift.yaml", *LIFT, "--import", USER_CODE, "--name", "lift"),
    *("--data.source", "{class_path: own.Stored, init_args: {root: people}}"),
)
"""Arguments of a lifting run whose data come from files; see `own.Stored`."""

TWO_RANKS = ("--trainer.devices", "2", "--trainer.accelerator", "cpu")
THREE_RANKS = ("--trainer.devices", "3", "--trainer.accelerator", "cpu")


def outcome(folder: Path, stage: str) -> dict:
    """Results of a finished run that must not depend on interruptions."""
    run = folder / "runs" / stage / stage
    state = read_state(run)
    assert state is not None, sorted(map(str, folder.rglob("*")))
    assert state["state"] == "finished", state
    rows = read_metrics(run / "metrics.csv")
    last = torch.load(sorted((run / "checkpoints").glob("step-*.ckpt"))[-1], weights_only=True)
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    return {
        "weights": last["state_dict"],
        "optimiser": last["optimizer_states"],
        "schedule": last["lr_schedulers"],
        "step": last["global_step"],
        "best": best["state_dict"],
        "numbers": state["numbers"],
        "metrics": sorted(row for row in rows if not row[1].endswith("_per_s")),
    }


def same(one, other) -> bool:
    """Whether two nested structures are bit-equal."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def differences(one: dict, other: dict) -> list[str]:
    """Keys of an outcome whose values differ."""
    return [key for key in one if not same(one[key], other[key])]


DEATHS = {
    "kill": (6, "process {} died by signal 9, SIGKILL (out of memory?); the others were stopped"),
    "crash": (6, "process {} died by signal 11, SIGSEGV; the others were stopped"),
    "exit": (9, "process {}: ended with exit code 9"),
    "raise": (1, "process {}: RuntimeError: thrown by a test"),
}
"""Fault of a rank -> exit code of the run, and its error line."""


def write_people(folder: Path, scale: float) -> None:
    """Write the files that `own.Stored` reads: all people are `scale` times as large."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scale.txt").write_text(f"{scale:.3f}")


LAUNCHER = """
import subprocess, sys, time
code = "from pipeline.training.processes import exit_with_parent as end; end(); print(1, flush=1);"
rank = subprocess.Popen([sys.executable, "-c", code + "import time; time.sleep(60)"], stdout=-1)
rank.stdout.readline()
print(rank.pid, flush=True)
time.sleep(60)
"""


def outlives_its_launcher(seconds: float) -> bool:
    """Whether a process that torchrun started still runs so long after torchrun was killed."""
    given = {**os.environ, "TORCHELASTIC_RUN_ID": "7", "LOCAL_RANK": "0", "RANK": "0"}
    command = [sys.executable, "-c", LAUNCHER]
    launcher = subprocess.Popen(command, env=given, stdout=subprocess.PIPE, text=True)
    stat = Path("/proc", launcher.stdout.readline().strip(), "stat")
    assert stat.exists()
    launcher.kill()
    launcher.communicate()
    end = time.monotonic() + seconds
    while (runs := stat.exists() and ") Z " not in stat.read_text()) and time.monotonic() < end:
        time.sleep(0.02)
    return runs
