"""World to camera to pixel to normalised and back; lens distortion; random cameras."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera with lens distortion, standing in the world.

    Convention:
        World: metres, z up. Camera: x right, y down, z forward. A world point X is at `rotation @ (X - centre)`
        in the camera frame. Pixels: origin top-left, integer coordinates are pixel centres.

    Args:
        rotation: World to camera, (3, 3), float64.
        centre: Position in the world, metres, (3,).
        focal: Focal lengths fx, fy in pixels, (2,).
        principal: Principal point cx, cy in pixels, (2,).
        size: Width and height of the picture in pixels.
        distortion: k1, k2, p1, p2, k3 in OpenCV's order, (5,).
        lens: Which distortion formula: OpenCV's, or the one Human3.6M's files are made with.
    """

    rotation: NDArray[np.float64]
    centre: NDArray[np.float64]
    focal: NDArray[np.float64]
    principal: NDArray[np.float64]
    size: tuple[int, int]
    distortion: NDArray[np.float64]
    lens: Literal["opencv", "human36m"] = "opencv"
