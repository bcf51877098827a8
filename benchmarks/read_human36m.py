"""First and second reading of 500,000 frames of Human3.6M by four cameras: time, memory.

Run: `python benchmarks/read_human36m.py [frames]`. Writes to a temporary folder, needs about 2 GB
there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]


def fabricate(folder: Path, frames: int) -> None:
    """Write archives of the true layout with that many frames in 210 recordings."""
    sys.path.insert(0, str(ROOT / "tests" / "datasets"))
    import fabricate as tiny

    from pipeline.datasets.human36m import ACTIONS

    length = frames // 210
    points = np.zeros((length, 32, 3), np.float32)
    points[:, tiny.KEPT] = tiny.motion(length)
    rng = np.random.default_rng(0)
    subjects = ("S1", "S5", "S6", "S7", "S8", "S9", "S11")
    actions = [f"{action}{part}" for action in ACTIONS for part in (" 1", "")]
    positions = {s: {a: points + rng.normal(0, 0.01, (1, 32, 3)).astype("f4") for a in actions}
                 for s in subjects}  # fmt: skip
    pixels = {s: {a: [rng.uniform(0, 1000, (length + 2, 17, 2)).astype("f4") for _ in range(4)]
                  for a in actions} for s in subjects}  # fmt: skip
    about = {"num_joints": 17, "keypoints_symmetry": [[4, 5, 6, 11, 12, 13], [1, 2, 3, 14, 15, 16]]}
    np.savez_compressed(folder / "data_3d_h36m.npz", positions_3d=tiny.boxed(positions))
    np.savez_compressed(
        folder / "data_2d_h36m_cpn_ft_h36m_dbb.npz",
        positions_2d=tiny.boxed(pixels),
        metadata=tiny.boxed(about),
    )


def peak() -> float:
    """Largest resident memory of this process so far, GB (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1e6


def read(folder: Path) -> None:
    """Read all sequences and detections once, and touch a thousand random frames."""
    from pipeline.datasets.human36m import Human36M

    before = peak()
    start = time.perf_counter()
    source = Human36M(str(folder))
    sequences = source.sequences("train") + source.sequences("test")
    found = source.detections("cpn_ft_h36m_dbb")
    rng = np.random.default_rng(0)
    for index in rng.integers(0, len(sequences), 1000):
        sequence = sequences[index]
        frame = rng.integers(len(sequence))
        assert np.isfinite(sequence.joints3d[frame]).all()
        assert np.isfinite(found[sequence.name].joints2d[frame]).all()
    seconds = time.perf_counter() - start
    frames = sum(map(len, sequences))
    print(f"{frames} frames: {seconds:.1f} s, peak {peak():.2f} GB (imports {before:.2f})")


def main() -> None:
    """Fabricate, then read twice, each in a fresh process."""
    frames = int(sys.argv[1]) if len(sys.argv) > 1 else 500_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fabricate(folder, frames)
        for turn in ("first reading", "second reading"):
            print(turn, end=": ", flush=True)
            environment = {**os.environ, "HEATLIFT_CACHE": str(folder / "cache")}
            command = [sys.executable, __file__, "--read", name]
            subprocess.run(command, check=True, env=environment, cwd=ROOT)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--read"]:
        read(Path(sys.argv[2]))
    else:
        main()
