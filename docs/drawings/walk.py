"""Draws docs/walk.png: the people of a real video in 2D, and in the 3D view of the report.

.venv/bin/python docs/drawings/walk.py [--lifter CHECKPOINT] [--image docs/walk.png]

The video is ../shared/data/video/walk.mp4, or that in the folder $HEATLIFT_SHARED; its images are
not drawn. The 3D view needs the Python package playwright and a Chromium on the PATH; without them
nothing is drawn.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from heatlift import Heatlift, Motion
from pipeline.dashboard.canvas import Image, blank_canvas, contact_sheet
from pipeline.dashboard.media import write_png
from pipeline.errors import DataError
from pipeline.export.overlay import draw_overlay

SHARED = Path(os.environ.get("HEATLIFT_SHARED", Path(__file__).parents[3] / "shared"))
SIDE = 320
"""Width of an image on the sheet, pixels."""

COUNT, COLUMNS = 8, 4


def main() -> None:
    """Draw the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--lifter", type=Path)
    parser.add_argument("--image", type=Path, default=Path(__file__).parents[1] / "walk.png")
    arguments = parser.parse_args()
    video = SHARED / "data" / "video" / "walk.mp4"
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not video.is_file():
        print(f"{video}: is not there; docs/walk.png is not drawn")
    elif browser is None or importlib.util.find_spec("playwright") is None:
        print("playwright or Chromium is missing; docs/walk.png is not drawn")
    else:
        try:
            motion = Heatlift.load(arguments.lifter).predict(video)
        except DataError as error:  # no weights on this machine
            print(f"docs/walk.png is not drawn: {error}")
            return
        write_png(arguments.image, draw_sheet(motion, browser))


def draw_sheet(motion: Motion, browser: str) -> Image:
    """Some frames: 2D joints on a blank image, and below each the 3D view of the report."""
    frames = np.linspace(0, len(motion) - 1, COUNT + 2).round().astype(int)[1:-1].tolist()
    width, height = motion.size
    blank = blank_canvas(round(2 * SIDE * height / width), 2 * SIDE)
    flat = [draw_overlay(motion, frame, blank, height=len(blank)) for frame in frames]
    solid = list(report_views(motion, frames, browser))
    images, captions = [], []
    for start in range(0, COUNT, COLUMNS):
        row = slice(start, start + COLUMNS)
        images += [*map(_shrink, flat[row]), *map(_shrink, solid[row])]
        captions += [f"2D joints, {motion.times[frame]:.1f} s" for frame in frames[row]]
        captions += ["3D view"] * COLUMNS
    return contact_sheet(images, COLUMNS, captions)


def report_views(motion: Motion, frames: Sequence[int], browser: str) -> Iterator[Image]:
    """The 3D view of a motion's report at some frames, as a browser draws it."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        (page,) = motion.save(Path(folder) / "motion.html")
        opened = play.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        tab = opened.new_page(viewport={"width": 1320, "height": 1010}, bypass_csp=True)
        tab.goto(page.as_uri())
        tab.wait_for_function("document.body.dataset.frame")
        tab.evaluate("document.querySelector('[data-view]').parentElement.hidden = true")
        tab.add_style_tag(content="[hidden] { display: none !important }")
        for frame in frames:
            tab.evaluate(f"document.getElementById('scrubber').value = {frame}")
            tab.dispatch_event("#scrubber", "input")
            tab.wait_for_function(f"document.body.dataset.frame === '{frame}'")
            tab.wait_for_timeout(300)
            shot = np.frombuffer(tab.locator("#scene").screenshot(), np.uint8)
            yield cv2.imdecode(shot, cv2.IMREAD_COLOR)[..., ::-1]
        opened.close()


def _shrink(image: Image) -> Image:
    """An image of width `SIDE`."""
    height = round(SIDE * image.shape[0] / image.shape[1])
    return np.ascontiguousarray(cv2.resize(image, (SIDE, height), interpolation=cv2.INTER_AREA))


if __name__ == "__main__":
    main()
