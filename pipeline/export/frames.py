"""Frames of reference of a motion, and their axes in words."""

from __future__ import annotations

from typing import Literal

import numpy as np

from pipeline.camera import CAMERA_FRAME

Frame = Literal["camera", "world"]

FRAMES_OF_REFERENCE: dict[Frame, str] = {
    "camera": CAMERA_FRAME,
    "world": "world: x right, y ahead (as the camera looks), z up, floor at z = 0",
}
"""Frame of reference -> its axes, as files name them."""

Y_UP_TO_Z_UP = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
"""Rotation of points from y up to z up with the same x: what faced +z faces -y, as in Blender."""
