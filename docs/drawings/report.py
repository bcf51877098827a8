"""Draws docs/report.png: the report of two embedded people, as a browser shows it.

    .venv/bin/python docs/drawings/report.py [--image docs/report.png] [--keep report.html]

It needs the Python package playwright and a Chromium on the PATH; without them it draws nothing.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.camera import project, ring_of_cameras, world_to_camera
from pipeline.export.motion import FILLED, MISSING, SEEN, Motion, PersonMotion
from pipeline.export.overlay import write_overlay
from pipeline.export.report import write_report
from pipeline.export.small_video import shrink_video
from pipeline.mocap.render import PinholeCameras, RenderedImages
from pipeline.mocap.synthetic import make_motion
from pipeline.skeleton import H36M17

FRAMES, FPS = 200, 25.0
CROP = (1280, 720)
"""Width and height of the video, pixels."""

FILES = ("motion.npz", "motion_A.bvh", "motion_B.bvh", "overlay.webm", "side_by_side.webm")


class TwoPeople(RenderedImages):
    """Images of two people who move together.

    Args:
        first: World joints of the first person, metres, (N, 17, 3).
        second: World joints of the second person, metres, (N, 17, 3).
        cameras: The camera of all images.
    """

    def __init__(
        self, first: NDArray[np.floating], second: NDArray[np.floating], cameras: PinholeCameras
    ) -> None:
        seeds = np.zeros(len(first), np.int64)
        super().__init__(first, cameras, appearance_seeds=seeds + 5, background_seeds=seeds + 22)
        self.second = second

    def _anchor(self, index: int) -> NDArray[np.float64]:
        return np.asarray(self.joints3d.mean(axis=0), np.float64)

    def _second_person(self, index: int) -> tuple[NDArray[np.float64], int]:
        return np.asarray(self.second[index], np.float64), 11


def main() -> None:
    """Draw the image."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--image", type=Path, default=Path(__file__).parents[1] / "report.png")
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        page = arguments.keep or Path(folder) / "report.html"
        motion, images = two_people()
        video = Path(folder) / "overlay.webm"
        write_overlay(motion, images, video)
        write_report(motion, page, video=shrink_video(video, FPS, FRAMES), files=FILES)
        draw_page(page.resolve(), arguments.image)


def two_people() -> tuple[Motion, Iterator[NDArray[np.uint8]]]:
    """A motion of two embedded people in the world frame, and the images of it."""
    times = np.arange(FRAMES) / FPS
    walk = make_motion(3, "docs", "walk", 2 * FRAMES)[::2].astype(np.float64)
    wave = make_motion(4, "docs", "jumping jack", 2 * FRAMES)[::2].astype(np.float64)
    wave += np.array([0.6, 1.3, 0])
    everybody = np.concatenate([walk, wave], axis=1)
    camera = ring_of_cameras(1, "docs", joints3d=everybody.astype(np.float32))[0]
    # the world of a motion: x right, y ahead as the camera looks
    ahead = camera.rotation[2, :2] / np.linalg.norm(camera.rotation[2, :2])
    turn = np.array([[ahead[1], -ahead[0], 0], [ahead[0], ahead[1], 0], [0, 0, 1.0]])
    people = []
    for index, joints3d in enumerate((walk, wave)):
        joints2d = project(world_to_camera(joints3d, camera), camera)
        joints2d = (joints2d - (0, (camera.size[1] - camera.size[0] * CROP[1] / CROP[0]) / 2)) * (
            CROP[0] / camera.size[0]
        )
        people.append(_make_person("AB"[index], joints3d @ turn.T, joints2d, index))
    motion = Motion(
        tuple(people), H36M17, times, FPS, CROP, 1500.0, (639.5, 359.5), "world",
        camera.rotation @ turn.T, turn @ camera.centre, _facts(),
    )  # fmt: skip
    cameras = PinholeCameras.from_camera(camera)
    images = TwoPeople(walk, wave, cameras)
    scale = CROP[0] / camera.size[0]
    top = (camera.size[1] - CROP[1] / scale) / 2
    matrix = np.array([[scale, 0, 0], [0, scale, -top * scale]])
    return motion, (images.crop(index, matrix, CROP) for index in range(FRAMES))


def _make_person(
    identity: str, positions: NDArray[np.float64], joints2d: NDArray[np.float64], index: int
) -> PersonMotion:
    """A person with scores, and frames of the second that are missing, filled in or unsure."""
    generator = np.random.default_rng(index)
    wave = np.cumsum(generator.normal(size=FRAMES)) / 40
    score = np.clip(0.86 + wave[:, None] + generator.normal(scale=0.03, size=(FRAMES, 17)), 0, 1)
    status = np.full(FRAMES, SEEN, np.uint8)
    if index:
        status[:18] = MISSING
        status[88:97] = FILLED
        score[140:158] *= 0.35
    arrays = {
        "joints3d": positions - positions[:, :1],
        "root": positions[:, 0],
        "joints2d": joints2d,
        "score": score,
    }
    for name, values in arrays.items():
        values[status == MISSING] = 0 if name == "score" else np.nan
    return PersonMotion(
        identity,
        **{name: values.astype(np.float32) for name, values in arrays.items()},
        status=status,
        height=1.70,
    )


def _facts() -> dict[str, object]:
    good = {"median_score": 0.86, "bone_variation_before": 0.06, "bone_variation": 0.0}
    return {
        "source": {"name": "two people.mp4", "kind": "video", "sha256": "5f2c…", "rotation": 0},
        "command": "heatlift predict 'two people.mp4'",
        "assumptions": [
            "field of view 55 degrees (--fov or --focal)",
            "height 1.70 m (--height)",
            "camera pitch -7 degrees, from people who stand (spread 2 degrees; --camera_pitch)",
        ],
        "warnings": [],
        "weights": {
            "estimator": {"name": "blazepose-full", "digest": "e9a5…", "licence": "Apache-2.0"},
            "lifter": {"name": "best.ckpt", "class": "MixSTE", "digest": "0d1e…"},
        },
        "quality": {"A": {**good, "jitter": 5.0}, "B": {**good, "jitter": 7.0}},
        "smoothing": {"filter": "butterworth", "cutoff_hz": 5.0},
        "versions": {"heatlift": "0.1.0"},
    }


def draw_page(page: Path, image: Path) -> None:
    """Write a screenshot of a page."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print("playwright is not installed; docs/report.png was left as it is")
        return
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        print("there is no Chromium; docs/report.png was left as it is")
        return
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        size = {"width": 1320, "height": 1010}
        tab = browser.new_page(viewport=size, bypass_csp=True)  # to wait for expressions
        tab.goto(page.as_uri())
        tab.wait_for_function("document.body.dataset.video")
        tab.evaluate("document.getElementById('scrubber').value = 50")
        tab.dispatch_event("#scrubber", "input")
        tab.wait_for_function("document.body.dataset.frame === '50'")
        tab.wait_for_timeout(300)
        tab.screenshot(path=image)
        browser.close()


if __name__ == "__main__":
    main()
