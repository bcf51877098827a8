"""What the export to BVH alone adds to the joints of a motion, and how fast it is.

Usage: python benchmarks/export_error.py [folder with recordings] [--mapping cmu] [--count 8]

Recorded joints become a motion as they are, and with every bone held at one length as `predict`
leaves them. Both are written to BVH and read again with our reader; the distance between the joints
is what the export adds. Without a folder the first of $ROOT, $HEATLIFT_DATA/mocap and
$HEATLIFT_SHARED/data/cmu_mocap that exists is used, else the embedded people. Prints a table in
Markdown; one process, CPU time.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.export.motion import SEEN, Motion, PersonMotion
from pipeline.export.rest_skeleton import PLACES
from pipeline.mocap.bvh import read_bvh
from pipeline.mocap.mapping import read_mapping
from pipeline.mocap.preparation import read_recording
from pipeline.mocap.synthetic import FPS, Synthetic
from pipeline.predict.smoothing import bone_lengths, hold_bone_lengths
from pipeline.skeleton import H36M17

Array = NDArray[np.float64]

LONGEST = 3000
"""Frames of a recording that are measured, from its beginning."""


def main() -> None:
    """Print a row per recording, and one of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("root", type=Path, nargs="?", default=default_root())
    parser.add_argument("--mapping", default="cmu")
    parser.add_argument("--count", type=int, default=8)
    options = parser.parse_args()
    head = ("recording", "frames", "as recorded: mean mm", "worst mm", "constant bones: mean mm",
            "worst mm", "frames/s")  # fmt: skip
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    kept: list[Array] = []
    held: list[Array] = []
    seconds = 0.0
    for name, joints3d, fps in recordings(options.root, options.mapping, options.count):
        lengths = bone_lengths(joints3d, H36M17)
        one, first = export_error(joints3d, fps)
        other, second = export_error(hold_bone_lengths(joints3d, H36M17, lengths), fps)
        print_row(name, one, other, 2 * len(one) / (first + second))
        kept.append(one)
        held.append(other)
        seconds += first + second
    both = np.concatenate(kept), np.concatenate(held)
    print_row("all", *both, 2 * len(both[0]) / seconds)


def default_root() -> Path | None:
    """The first existing folder of those in which recordings may be; none if there is none."""
    data, shared = os.environ.get("HEATLIFT_DATA"), os.environ.get("HEATLIFT_SHARED")
    places = [
        os.environ.get("ROOT"),
        data and f"{data}/mocap",
        shared and f"{shared}/data/cmu_mocap",
    ]
    return next((Path(place) for place in places if place and Path(place).is_dir()), None)


def recordings(root: Path | None, mapping: str, count: int) -> Iterator[tuple[str, Array, float]]:
    """Names, joints in world metres, (T, 17, 3), and frame rates of some recordings, Hz."""
    if root is None:
        people = Synthetic(test=1, seconds=8.0)
        for sequence in people.sequences("test")[::4][:count]:
            yield sequence.name, sequence.joints3d.astype(np.float64), FPS
        return
    files = sorted([*root.rglob("*.bvh"), *root.rglob("*.bvh.gz")])
    for file in files[:: max(1, len(files) // count)][:count]:
        joints3d, fps = read_recording(file, read_mapping(mapping))
        yield file.name.split(".")[0], joints3d[:LONGEST], fps


def export_error(joints3d: Array, fps: float) -> tuple[Array, float]:
    """Distances of joints from those that a BVH file gives, mm, (T, 17), and the CPU seconds."""
    count = len(joints3d)
    joints = joints3d.astype(np.float32)
    person = PersonMotion(
        "A",
        joints - joints[:, :1],
        joints[:, 0],
        np.zeros((count, len(H36M17), 2), np.float32),
        np.ones((count, len(H36M17)), np.float32),
        np.full(count, SEEN, np.uint8),
        1.7,
    )
    times = np.arange(count) / fps
    motion = Motion((person,), H36M17, times, fps, (1000, 1000), 1000.0, (500.0, 500.0), "world")
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        motion.save(Path(folder, "motion.bvh"), up="z", bvh_unit="m")
        seconds = time.process_time() - start
        found = read_joints(Path(folder, "motion.bvh"))
    return 1000 * np.linalg.norm(found - joints, axis=-1), seconds


def read_joints(file: Path) -> Array:
    """Joints of H36M17 of a BVH file that Heatlift wrote, in its units, (T, 17, 3)."""
    motion = read_bvh(file)
    positions, rotations = motion.pose([PLACES.get(name, "Head") for name in H36M17.joints])
    top = H36M17.index("head")
    positions[:, top] += rotations[:, top] @ np.array(motion.ends["Head"])
    return positions


def print_row(name: str, one: Array, other: Array, speed: float) -> None:
    """Print a row of the table."""
    cells = [f"{numbers:.2f}" for e in (one, other) for numbers in (e.mean(), e.max())]
    print(f"| {name} | {len(one)} | {' | '.join(cells)} | {speed:.0f} |", flush=True)


if __name__ == "__main__":
    main()
