"""Draws docs/mocap.png: a recording from its four cameras, with exact and noisy 2D joints.

    .venv/bin/python docs/drawings/mocap.py [folder with the CMU recordings] [--image FILE]

Without a folder it uses the first that exists of $ROOT, $HEATLIFT_DATA/mocap and
../shared/data/cmu_mocap.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.camera import project, world_to_camera
from pipeline.dashboard.canvas import add_title, contact_sheet
from pipeline.dashboard.media import write_png
from pipeline.dashboard.skeletons import draw_joints2d
from pipeline.lift.corruption import add_detection_noise
from pipeline.mocap.motion_capture import Mocap
from pipeline.skeleton import H36M17
from pipeline.sources import Sequence

EXACT = (0, 150, 80)
FALLBACK_ROOT = Path(__file__).parents[3] / "shared" / "data" / "cmu_mocap"
SIDE = 270
"""Width and height of a crop on the sheet, pixels."""


def main() -> None:
    """Draw the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("root", type=Path, nargs="?", default=default_root())
    parser.add_argument("--image", type=Path, default=Path(__file__).parents[1] / "mocap.png")
    parser.add_argument("--recording", default="10_03")
    parser.add_argument("--frames", type=int, nargs="+", default=[20, 50, 80, 110])
    arguments = parser.parse_args()
    if not any(arguments.root.rglob("*.bvh.gz")):
        print(f"{arguments.root}: no CMU recordings (*.bvh.gz); set ROOT= or HEATLIFT_DATA to draw")
        return
    sequences = [
        sequence
        for sequence in Mocap(arguments.root, bodies="random_adults", images=True).sequences("test")
        if sequence.name.split(".")[0] == arguments.recording
    ]
    tiles, captions = [], []
    joints2d = [exact_and_noisy_joints2d(sequence) for sequence in sequences]
    for frame in arguments.frames:
        for k, (sequence, (exact, noisy)) in enumerate(zip(sequences, joints2d, strict=True)):
            tiles.append(draw_tile(sequence, frame, exact[frame], noisy[frame]))
            captions.append(f"camera {k}, {frame / sequence.fps:.2f} s")
    title = f"{sequences[0].action} {arguments.recording}: exact 2D green, "
    title += "noisy 2D in colour (body's left orange, right blue)"
    sheet = add_title(contact_sheet(tiles, len(sequences), captions), title)
    write_png(arguments.image, sheet)


def default_root() -> Path:
    """The first existing folder of those in which recordings may be."""
    data = os.environ.get("HEATLIFT_DATA")
    places = [os.environ.get("ROOT"), data and f"{data}/mocap"]
    return next((Path(place) for place in places if place and Path(place).is_dir()), FALLBACK_ROOT)


def exact_and_noisy_joints2d(sequence: Sequence) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Exact and noisy joints of a sequence, pixels, (T, 17, 2) each."""
    joints3d = np.asarray(sequence.joints3d, np.float64)
    exact = project(world_to_camera(joints3d, sequence.camera), sequence.camera)
    return exact, add_detection_noise(exact, sequence.fps, 0, sequence.name)[0]


def draw_tile(
    sequence: Sequence,
    frame: int,
    exact: NDArray[np.float64],
    noisy: NDArray[np.float32],
) -> NDArray[np.uint8]:
    """The person in one frame with both skeletons, RGB, (SIDE, SIDE, 3)."""
    middle = (exact.min(axis=0) + exact.max(axis=0)) / 2
    scale = SIDE / (1.25 * (exact.max(axis=0) - exact.min(axis=0)).max())
    matrix = np.c_[scale * np.eye(2), SIDE / 2 - scale * middle]
    if sequence.images is None:
        raise AssertionError("the source was created with images")
    image = sequence.images.crop(frame, matrix, (SIDE, SIDE))
    placed = [joints @ matrix[:, :2].T + matrix[:, 2] for joints in (exact, noisy)]
    image = draw_joints2d(image, placed[0], H36M17, colour=EXACT, thickness=4)
    return draw_joints2d(image, placed[1], H36M17, thickness=1)


if __name__ == "__main__":
    main()
