"""`heatlift doctor`: check the software and hardware of this machine."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from pipeline.training.console import print_line

PACKAGES = ("torch", "lightning", "torchmetrics", "numpy", "opencv-python", "wandb", "jsonargparse")


def has_fast_bf16() -> bool:
    """Whether the default device computes faster in bfloat16 than in float32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpu_info = Path("/proc/cpuinfo")
    text = cpu_info.read_text() if cpu_info.exists() else ""
    return "avx512_bf16" in text or "amx_bf16" in text


def doctor() -> None:
    """Print software and hardware of this machine, with `!!` before what has to be fixed."""
    rows = [("python", platform.python_version(), (3, 11) <= sys.version_info[:2] <= (3, 13))]
    for package in PACKAGES:
        try:
            rows.append((package, version(package), True))
        except PackageNotFoundError:
            rows.append((package, "missing: install Heatlift again", False))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    rows.append(("cpu", f"{cores} cores, {torch.get_num_threads()} threads", True))
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    rows.append(("gpu", ", ".join(gpus) or "none: training runs on the CPU", True))
    bf16 = "fast" if has_fast_bf16() else "slow here: leave trainer.precision at 32-true"
    rows.append(("bfloat16", bf16, True))
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    rows.append(("disk", f"{free:.1f} GiB free here", free > 2))
    pinned = "MALLOC_MMAP_MAX_" in os.environ
    rows.append(
        (
            "allocator",
            "pinned" if pinned else "not pinned: 1.3x slower on CPU (`heatlift docs performance`)",
            True,
        )
    )
    key = bool(os.environ.get("WANDB_API_KEY")) or (Path.home() / ".netrc").exists()
    rows.append(("W&B", "key found" if key else "no key: runs are logged offline", True))
    for name, value, good in rows:
        print_line(f"{'ok ' if good else '!! '} {name:<14} {value}")
