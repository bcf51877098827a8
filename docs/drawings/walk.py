"""Draws docs/walk.png: the people of a real video as 2D and 3D skeletons, without its images.

.venv/bin/python docs/drawings/walk.py [--lifter CHECKPOINT] [--image docs/walk.png]

The video is ../shared/data/video/walk.mp4, or that in the folder $HEATLIFT_SHARED.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from heatlift import Heatlift, Motion
from pipeline.dashboard.canvas import Image, blank_canvas, contact_sheet
from pipeline.dashboard.media import write_png
from pipeline.errors import DataError
from pipeline.export.overlay import Scene, draw_overlay

SHARED = Path(os.environ.get("HEATLIFT_SHARED", Path(__file__).parents[3] / "shared"))
SIDE = 240
"""Width of an image on the sheet, pixels."""


def main() -> None:
    """Draw the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--lifter", type=Path)
    parser.add_argument("--image", type=Path, default=Path(__file__).parents[1] / "walk.png")
    arguments = parser.parse_args()
    video = SHARED / "data" / "video" / "walk.mp4"
    if not video.is_file():
        print(f"{video}: is not there; docs/walk.png is not drawn")
        return
    try:
        motion = Heatlift.load(arguments.lifter).predict(video)
    except DataError as error:  # no lifter or no weights on this machine
        print(f"docs/walk.png is not drawn: {error}")
        return
    write_png(arguments.image, draw_sheet(motion, 6))


def draw_sheet(motion: Motion, count: int) -> Image:
    """Some frames in a row: 2D joints on a blank image above, the people in 3D below."""
    frames = np.linspace(0, len(motion) - 1, count + 2).round().astype(int)[1:-1].tolist()
    width, height = motion.size
    scale = SIDE / width
    blank = blank_canvas(round(height * scale), SIDE)
    scene = Scene(motion)
    flat = [draw_overlay(motion, frame, blank, height=len(blank)) for frame in frames]
    solid = [scene.draw(frame, SIDE) for frame in frames]
    captions = [f"2D joints, {motion.times[frame]:.1f} s" for frame in frames]
    return contact_sheet([*flat, *solid], count, [*captions, *["3D"] * count])


if __name__ == "__main__":
    main()
