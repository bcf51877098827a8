"""Frames of reference of a motion, and their axes in words."""

from __future__ import annotations

from typing import Literal

from pipeline.camera import CAMERA_FRAME

Frame = Literal["camera", "world"]

FRAMES_OF_REFERENCE: dict[Frame, str] = {
    "camera": CAMERA_FRAME,
    "world": "world: x right, y ahead (as the camera looks), z up, floor at z = 0",
}
"""Frame of reference -> its axes, as files name them."""
