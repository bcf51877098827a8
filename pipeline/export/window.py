"""The window of live use: the newest frame with the people in it, until the user presses q."""

from __future__ import annotations

import os
import subprocess
import sys

import cv2
import numpy as np

from pipeline.dashboard.canvas import Colour, Image
from pipeline.errors import UsageError
from pipeline.export.motion import Motion
from pipeline.export.motion_data import PERSON_COLOURS
from pipeline.export.overlay import MAX_HEIGHT, draw_overlay

NAME = "Heatlift (q ends)"
"""Title of the window."""


class LiveWindow:
    """A window that shows each frame with its people; people keep their colour.

    Raises:
        UsageError: If there is no display, or OpenCV is built without windows.
    """

    def __init__(self) -> None:
        check_window()
        self._colours: dict[str, Colour] = {}
        self.closed = False

    def show(self, image: Image, piece: Motion) -> None:
        """Show a frame; `closed` is true after the key q, or once the window is closed.

        Args:
            image: RGB frame, (H, W, 3).
            piece: The people in it, a motion of one frame.
        """
        for person in piece.people:
            number = len(self._colours) % len(PERSON_COLOURS)
            self._colours.setdefault(person.id, PERSON_COLOURS[number])
        height = min(MAX_HEIGHT, image.shape[0])
        drawn = draw_overlay(piece, 0, image, height=height, colours=self._colours)
        cv2.imshow(NAME, cv2.cvtColor(np.ascontiguousarray(drawn), cv2.COLOR_RGB2BGR))
        pressed = cv2.waitKey(1) & 0xFF == ord("q")
        self.closed |= pressed or cv2.getWindowProperty(NAME, cv2.WND_PROP_VISIBLE) < 1

    def close(self) -> None:
        """Close the window."""
        cv2.destroyAllWindows()


def check_window() -> None:
    """Check that a window can be opened, in a process of its own: Qt aborts where it cannot.

    Raises:
        UsageError: If it cannot.
    """
    if any(line.split()[:2] == ["GUI:", "NONE"] for line in cv2.getBuildInformation().splitlines()):
        raise UsageError(
            "show is true: this OpenCV has no windows (opencv-python-headless); install "
            "opencv-python in its place, or leave --show out"
        )
    display = {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    code = "import cv2; cv2.namedWindow('x'); cv2.waitKey(1)"
    if sys.platform.startswith("linux") and not display:
        fails = True
    else:
        fails = subprocess.run([sys.executable, "-c", code], capture_output=True).returncode != 0
    if fails:
        raise UsageError("show is true: there is no display for a window; leave --show out")
