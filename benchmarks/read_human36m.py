"""Time and memory of reading 500,000 frames of Human3.6M by four cameras, twice.

This is about the size of the whole set: 2 million frames of video with their detections. Run:
`python benchmarks/read_human36m.py [frames]`. Writes about 2 GB to a temporary folder. Exits with 1
if a reading needs more than 2 GB of memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

LIMIT = 2.0
"""Largest accepted memory of a reading with all imports, GB."""

ROOT = Path(__file__).parents[1]


def fabricate(folder: Path, frames: int) -> None:
    """Write archives in the published layout with that many frames in 210 recordings."""
    sys.path.insert(0, str(ROOT / "tests"))
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
    metadata = {
        "num_joints": 17,
        "keypoints_symmetry": [[4, 5, 6, 11, 12, 13], [1, 2, 3, 14, 15, 16]],
    }
    np.savez_compressed(folder / "data_3d_h36m.npz", positions_3d=tiny.boxed(positions))
    np.savez_compressed(
        folder / "data_2d_h36m_cpn_ft_h36m_dbb.npz",
        positions_2d=tiny.boxed(pixels),
        metadata=tiny.boxed(metadata),
    )


def peak() -> float:
    """Largest resident memory of this process so far, GB (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1e6


def read(folder: Path) -> None:
    """Read all sequences and detections once, and touch a thousand random frames."""
    from pipeline.datasets.human36m import Human36M

    before = peak()
    start, used = time.perf_counter(), time.process_time()
    source = Human36M(str(folder))
    sequences = source.sequences("train") + source.sequences("test")
    found = source.detections("cpn_ft_h36m_dbb")
    rng = np.random.default_rng(0)
    for index in rng.integers(0, len(sequences), 1000):
        sequence = sequences[index]
        frame = rng.integers(len(sequence))
        assert np.isfinite(sequence.joints3d[frame]).all()
        assert np.isfinite(found[sequence.name].joints2d[frame]).all()
    seconds, used = time.perf_counter() - start, time.process_time() - used
    frames = sum(map(len, sequences))
    print(
        f"{frames:,} frames of video: {seconds:.1f} s, {used:.1f} s of CPU, "
        f"peak {peak():.2f} GB (imports {before:.2f})",
        flush=True,
    )
    print(json.dumps({"used": used, "peak": peak()}))


def main() -> None:
    """Fabricate, then read twice, each in a fresh process."""
    frames = int(sys.argv[1]) if len(sys.argv) > 1 else 500_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fabricate(folder, frames)
        found = []
        for turn in ("first reading", "second reading"):
            environment = {**os.environ, "HEATLIFT_CACHE": str(folder / "cache")}
            command = [sys.executable, __file__, "--read", name]
            done = subprocess.run(
                command, check=True, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True
            )
            line, facts = done.stdout.splitlines()[-2:]
            print(f"{turn}: {line}", flush=True)
            found.append(json.loads(facts))
        first, second = found
        print(f"the second reading takes {first['used'] / second['used']:.1f} times less CPU time")
        if max(first["peak"], second["peak"]) > LIMIT:
            sys.exit(f"more than {LIMIT} GB")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--read"]:
        read(Path(sys.argv[2]))
    else:
        main()
