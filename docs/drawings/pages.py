"""Draws docs/page_demo.png, page_run.png and page_compare.png: the pages that a demo leaves.

    .venv/bin/python docs/drawings/pages.py [--runs runs] [--folder docs]

It needs a finished demo, the Python package playwright and a Chromium on the PATH; without them it
draws nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.cli.runs import run as runs_command
from pipeline.dashboard.canvas import Image
from pipeline.dashboard.media import write_png

DESKTOP, PHONE = (1280, 900), (390, 900)
"""Width and height of the windows, pixels."""


def main() -> None:
    """Draw the images."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--folder", type=Path, default=Path(__file__).parents[1])
    arguments = parser.parse_args()
    lifters = [arguments.runs / "lift" / name for name in ("demo-exact", "demo-detected")]
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None or importlib.util.find_spec("playwright") is None:
        print("playwright or Chromium is missing; the pages are not drawn")
    elif not all((folder / "index.html").is_file() for folder in lifters):
        print(f"{arguments.runs}: no finished demo; run `make demo` first")
    else:
        draw_pages(arguments.runs, lifters, arguments.folder, browser)


def draw_pages(runs: Path, lifters: list[Path], folder: Path, browser: str) -> None:
    """Write the three images."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory(dir=runs) as temporary, sync_playwright() as play:
        compared = Path(temporary) / "comparison.html"
        runs_command(["compare", *map(str, lifters), "--out", str(compared)])
        opened = play.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        wide = shoot(opened, lifters[1] / "index.html", DESKTOP)
        narrow = shoot(opened, lifters[1] / "index.html", PHONE)
        gap = np.full((DESKTOP[1], 24, 3), 255, np.uint8)
        write_png(folder / "page_run.png", np.concatenate([wide, gap, narrow], axis=1))
        whole = shoot(opened, runs / "demo.html", DESKTOP, whole=True)
        size = (768, round(768 * whole.shape[0] / whole.shape[1]))
        write_png(folder / "page_demo.png", cv2.resize(whole, size, interpolation=cv2.INTER_AREA))
        write_png(folder / "page_compare.png", shoot(opened, compared, DESKTOP))
        opened.close()


def shoot(browser: Any, page: Path, size: tuple[int, int], *, whole: bool = False) -> Image:
    """A page in a window of this size: its beginning, or the whole page."""
    tab = browser.new_page(viewport={"width": size[0], "height": size[1]})
    tab.goto(page.resolve().as_uri())
    tab.wait_for_load_state("networkidle")
    tab.wait_for_function("[...document.querySelectorAll('video')].every(v => v.readyState > 2)")
    tab.wait_for_timeout(1000)  # the sign for loading fades
    shot = np.frombuffer(tab.screenshot(full_page=whole), np.uint8)
    tab.close()
    return np.ascontiguousarray(cv2.imdecode(shot, cv2.IMREAD_COLOR)[..., ::-1])


if __name__ == "__main__":
    main()
