"""Networks in torch and in onnxruntime: outputs equal first, then the time of each.

Run as `python benchmarks/onnx_runtime.py [rounds]`. One thread each; both runtimes alternate, so
that other load on the machine slows both; medians of CPU time. Ratios above 1: onnxruntime is
faster. Lifters lift a clip of 1000 frames as `predict` does, without flip test; 2D networks get one
crop and eight.
"""

from __future__ import annotations

import copy
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor

from pipeline.heatmap import HRNet, SimpleBaseline
from pipeline.heatmap.module import HeatmapModule
from pipeline.heatmap.resnet import fold_norms
from pipeline.integral import SAN
from pipeline.integral.module import IntegralModule
from pipeline.lift import Martinez, MixSTE, PoseFormer, VideoPose3D
from pipeline.lift.clips import lift_overlapping
from pipeline.lift.module import LiftModule
from pipeline.predict.load_estimator import load_estimator
from pipeline.predict.onnx_own import load_onnx_lifter
from pipeline.weights.onnx_export import find_facts, make_onnx

FRAMES = 1000

LIFTERS: dict[str, Callable[[], Any]] = {
    "MixSTE, 27 frames, 64 channels": lambda: MixSTE(frames=27, dim=64, depth=4),
    "MixSTE, 81 frames, 128 channels": lambda: MixSTE(frames=81, dim=128, depth=4),
    "PoseFormer, 27 frames": lambda: PoseFormer(frames=27),
    "VideoPose3D, 27 frames": lambda: VideoPose3D(widths=(3, 3, 3)),
    "Martinez": Martinez,
}
DETECTORS: dict[str, Callable[[], Any]] = {
    "HRNet-W8": lambda: HeatmapModule(HRNet(8), input_size=(192, 256)),
    "SimpleBaseline-50": lambda: HeatmapModule(SimpleBaseline(), input_size=(192, 256)),
    "SAN-50, 16 depth bins": lambda: IntegralModule(SAN(depth_bins=16), input_size=(256, 256)),
}


def compare(
    title: str, rounds: int, torchs: Callable[[], Tensor], onnxs: Callable[[], Tensor]
) -> None:
    """Check that two functions give the same numbers, time them in turn and print a row."""
    with torch.inference_mode():
        expected, found = torchs().numpy(), onnxs().numpy()
        error = float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))
        if not error < 1e-4:
            raise SystemExit(f"{title}: outputs differ by {error:.2g}")
        seconds: tuple[list[float], list[float]] = ([], [])
        for number in range(rounds):
            for k in (0, 1) if number % 2 else (1, 0):
                start = time.process_time()
                (torchs, onnxs)[k]()
                seconds[k].append(time.process_time() - start)
    times = [1000 * statistics.median(taken) for taken in seconds]
    ratio = statistics.median(a / b for a, b in zip(*seconds, strict=True))
    print(f"{title:<40} {times[0]:10.1f} {times[1]:10.1f} {ratio:7.2f} {error:9.1e}", flush=True)


def export(module: Any, path: Path) -> Path:
    """The module as an ONNX file."""
    path.write_bytes(make_onnx(copy.deepcopy(module), find_facts(module), path.name))
    return path


def main() -> None:
    """Print the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"load {os.getloadavg()[0]:.1f}; medians of {rounds} rounds, CPU time of one thread\n")
    print(f"{'':<40} {'torch':>10} {'onnx':>10} {'ratio':>7} {'differ':>9}")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "net.onnx"
        for name, make in LIFTERS.items():
            module = LiftModule(make()).eval()
            loaded = load_onnx_lifter(export(module, file), "cpu")
            clip = 0.3 * torch.randn(FRAMES, 17, 2), torch.rand(FRAMES, 17) > 0.1
            lift = [partial(lift_overlapping, m, m.net, *clip) for m in (module, loaded)]
            compare(f"{name}: ms per {FRAMES} frames", rounds, *lift)
        for name, make in DETECTORS.items():
            module = make().eval()
            estimator: Any = load_estimator(str(export(module, file)), "cpu")[0]
            module.net = fold_norms(module.net)
            width, height = module.input_size
            for count in (1, 8):
                images = torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8)
                find = [partial(m, images) for m in (module, estimator.module)]
                compare(f"{name}: ms per {count} crops", rounds, *find)


if __name__ == "__main__":
    main()
