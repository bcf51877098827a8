"""A rendered video of two people who cross: the truth of both, and frames with either alone."""

import numpy as np

from pipeline.camera import LEVEL_ROTATION, Camera, project, world_to_camera
from pipeline.mocap.render import RenderedSequence
from pipeline.mocap.synthetic import make_motion

SIZE, FPS = (960, 540), 25.0
FOCAL = 900.0


def camera():
    """A level camera at a height of 1.2 m that looks along y."""
    return Camera(
        LEVEL_ROTATION,
        np.array([0.0, 0.0, 1.2]),
        np.full(2, FOCAL),
        (np.array(SIZE) - 1) / 2,
        SIZE,
        np.zeros(5),
    )


def walker(seed, frames, start, speed, depth):
    """A walking person, world metres, (T, 17, 3): along x at this speed, at y = depth."""
    motion = make_motion(seed, "crossing", "walk", 2 * frames)[::2].astype(float)
    body = motion - motion[:, :1] * (1, 1, 0)
    ahead = motion[-1, 0, :2] - motion[0, 0, :2]
    turn = np.arctan2(0, np.sign(speed)) - np.arctan2(ahead[1], ahead[0])
    cos, sin = np.cos(turn), np.sin(turn)
    body[..., :2] = body[..., :2] @ np.array([[cos, sin], [-sin, cos]])
    path = np.stack([start + speed * np.arange(frames) / FPS, np.full(frames, depth)], -1)
    body[..., :2] += path[:, None]
    return body


class TwoPeople(RenderedSequence):
    """Rendered frames of one person, with a second one who has a motion of his own."""

    second = None

    def _second_person(self, index):
        return None if self.second is None else (self.second[index], 77)


def two_walkers(frames=150):
    """Joints of both in the world: the first in front, each 6 s long, crossing in the middle."""
    reach = 1.7
    speed = 2 * reach / (frames / FPS)
    return (
        walker(3, frames, -reach, speed, 4.2),
        walker(8, frames, reach, -speed, 5.2),
    )


def frames_of(first, second=None):
    """The frames of a video, RGB, (H, W, 3), one by one."""
    images = TwoPeople(first, camera(), appearance_seed=5, background_seed=9)
    images.second = second
    whole = np.array([[1.0, 0, 0], [0, 1, 0]])
    for index in range(len(first)):
        yield images.crop(index, whole, SIZE)


def joints2d_of(joints3d):
    """Exact 2D joints, pixels, (T, 17, 2)."""
    return project(world_to_camera(joints3d, camera()), camera())
