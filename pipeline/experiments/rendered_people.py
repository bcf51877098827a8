"""What BlazePose finds on rendered people, whose true joints are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.lift.any_video import VideoPart
from pipeline.mocap.render import RenderedSequence
from pipeline.predict.blazepose import BlazePose
from pipeline.predict.estimators import BlazePoseEstimator
from pipeline.predict.square_crops import cut_crops
from pipeline.skeleton import BLAZEPOSE33

PRESENT = 0.5
"""Presence below which the person is looked for again, where the truth has him or her."""


@dataclass(frozen=True, eq=False)
class RenderedJoints:
    """Joints of `BLAZEPOSE33` in the frames of a part; NaN and 0 where nobody was found.

    Args:
        joints2d: Pixels, (T, 33, 2).
        score: Score of each joint, (T, 33).
        joints3d: The network's own 3D, camera frame, metres about the hips, (T, 33, 3).
    """

    joints2d: NDArray[np.float64]
    score: NDArray[np.float64]
    joints3d: NDArray[np.float64]


def find_on_renders(part: VideoPart, network: BlazePose, seed: int) -> RenderedJoints:
    """Render a part and run the network on every frame, from crop to crop as in `predict`.

    Args:
        part: Person and camera.
        network: Landmark network of BlazePose.
        seed: Seed of clothes and background.
    """
    camera, T, J = part.camera, len(part.joints3d), len(BLAZEPOSE33)
    world = part.joints3d @ camera.rotation + camera.centre
    images = RenderedSequence(world, camera, appearance_seed=seed, background_seed=seed + 1000)
    true2d = part.joints3d[..., :2] / part.joints3d[..., 2:] * camera.focal + camera.principal
    estimator = BlazePoseEstimator(network, "blazepose")
    whole = np.array([[1.0, 0, 0], [0, 1, 0]])
    found = RenderedJoints(np.full((T, J, 2), np.nan), np.zeros((T, J)), np.full((T, J, 3), np.nan))
    crops = None
    for frame in range(T):
        if crops is None:
            low, high = true2d[frame].min(axis=0), true2d[frame].max(axis=0)
            margin = 0.1 * (high - low).max()
            crops = estimator.crops_of_boxes(np.r_[low - margin, high - low + 2 * margin][None])
        image = images.crop(frame, whole, camera.size)
        seen = network.find_joints(cut_crops(image, crops, network.size))
        seen = seen.in_image(crops, network.size)
        crops = seen.next_crops() if seen.presence[0] >= PRESENT else None
        if crops is not None:
            found.joints2d[frame], found.score[frame] = seen.joints2d[0], seen.score[0]
            found.joints3d[frame] = seen.world[0]
    return found
