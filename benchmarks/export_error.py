"""What the export to BVH alone adds to the joints of a motion, and how fast it is.

Usage: python benchmarks/export_error.py [folder with recordings] [--mapping cmu] [--count 8]

Recorded joints become a motion in three ways: as they are; with every bone held at one length, as
`predict` leaves them; and by `predict` with the lifter in the box, from their exact 2D joints seen
by one camera. Each is written to BVH and read again with our reader. The distance between the
joints of a motion and of its file is what the export adds. Without a folder the first of
$ROOT, $HEATLIFT_DATA/mocap and $HEATLIFT_SHARED/data/cmu_mocap that exists is used, else the
embedded people. Prints a table in Markdown; one process, CPU time.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from heatlift import Heatlift
from pipeline.camera import project, ring_of_cameras, world_to_camera
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
            "worst mm", "after predict: mean mm", "worst mm", "frames/s")  # fmt: skip
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    heatlift = Heatlift.load()
    rows: list[list[Array]] = []
    seconds = 0.0
    for name, joints3d, fps in recordings(options.root, options.mapping, options.count):
        lengths = bone_lengths(joints3d, H36M17)
        world = [joints3d, hold_bone_lengths(joints3d, H36M17, lengths)]
        motions = [
            *(as_motion(joints, fps) for joints in world),
            predicted(heatlift, joints3d, fps),
        ]
        errors, times = zip(*map(export_error, motions), strict=True)
        print_row(name, errors, sum(map(len, errors)) / sum(times))
        rows.append(list(errors))
        seconds += sum(times)
    together = [np.concatenate(column) for column in zip(*rows, strict=True)]
    print_row("all", together, sum(map(len, together)) / seconds)


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


def as_motion(joints3d: Array, fps: float) -> Motion:
    """World joints, metres, (T, 17, 3), as a motion of one person."""
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
    return Motion((person,), H36M17, times, fps, (1000, 1000), 1000.0, (500.0, 500.0), "world")


def predicted(heatlift: Heatlift, joints3d: Array, fps: float) -> Motion:
    """Motion that `predict` makes of the exact 2D joints of world joints, (T, 17, 3)."""
    camera = ring_of_cameras(0, "export", joints3d=joints3d)[0]
    joints2d = project(world_to_camera(joints3d, camera), camera)
    rows = [
        {
            "image_id": f"{frame}.png",
            "category_id": 1,
            "keypoints": np.c_[points, np.ones(len(points))].ravel().tolist(),
            "score": 1.0,
        }
        for frame, points in enumerate(joints2d)
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "joints.json")
        file.write_text(json.dumps(rows))
        size = "x".join(map(str, camera.size))
        focal = float(camera.focal.mean())
        return heatlift.predict(
            file, joints="H36M17", size=size, fps=fps, focal=focal, frame="world"
        )


def export_error(motion: Motion) -> tuple[Array, float]:
    """Distances of the joints of a BVH file from its motion's, mm, (T, 17), and CPU seconds."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        file, _ = motion.save(Path(folder, "motion.bvh"), up="z", bvh_unit="m")
        seconds = time.process_time() - start
        found = read_joints(file)
    (person,) = motion.people
    there = person.present
    return 1000 * np.linalg.norm((found - person.positions)[there], axis=-1), seconds


def read_joints(file: Path) -> Array:
    """Joints of H36M17 of a BVH file that Heatlift wrote, in its units, (T, 17, 3)."""
    motion = read_bvh(file)
    positions, rotations = motion.pose([PLACES.get(name, "Head") for name in H36M17.joints])
    top = H36M17.index("head")
    positions[:, top] += rotations[:, top] @ np.array(motion.ends["Head"])
    return positions


def print_row(name: str, errors: Sequence[Array], speed: float) -> None:
    """Print a row of the table."""
    cells = [f"{number:.2f}" for error in errors for number in (error.mean(), error.max())]
    print(f"| {name} | {len(errors[0])} | {' | '.join(cells)} | {speed:.0f} |", flush=True)


if __name__ == "__main__":
    main()
