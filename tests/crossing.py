"""A rendered video of two people who cross: the truth of both, and frames with either alone."""

from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.camera import LEVEL_ROTATION, Camera, project, world_to_camera
from pipeline.export.motion import FILLED
from pipeline.mocap.render import RenderedSequence
from pipeline.mocap.synthetic import make_motion
from pipeline.skeleton import BLAZEPOSE33, H36M17

SIZE, FPS = (960, 540), 25.0
FOCAL = 900.0
SECOND_SEED = 77


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
        return None if self.second is None else (self.second[index], SECOND_SEED)


def two_walkers(frames=150):
    """Joints of both in the world: the first in front, each 6 s long, crossing in the middle."""
    reach = 1.7
    speed = 2 * reach / (frames / FPS)
    return (
        walker(3, frames, -reach, speed, 4.2),
        walker(8, frames, reach, -speed, 5.2),
    )


def random_crossing(seed):
    """Joints of two people who cross, and the frames; what is drawn depends on the seed alone.

    Drawn are the people, their clothes, their distances from the camera, the time they take, and
    noise of up to 2 grey levels.
    """
    draw = np.random.default_rng([seed, 20])
    reach, frames = 1.7, int(draw.integers(90, 171))
    speed = 2 * reach / (frames / FPS)
    near = draw.uniform(3.6, 4.6)
    people = (
        walker(int(draw.integers(1000)), frames, -reach, speed, near),
        walker(int(draw.integers(1000)), frames, reach, -speed, near + draw.uniform(0.3, 2.0)),
    )
    clothes = int(draw.integers(1000))

    def noisy():
        for image in frames_of(*people, seed=clothes):
            noise = draw.integers(-2, 3, image.shape, np.int16)
            yield np.clip(image + noise, 0, 255).astype(np.uint8)

    return people, noisy()


def shown_people(track, people):
    """Numbers of the people whom a track of BlazePose shows for at least 0.4 s, each by itself.

    A frame in which both roots are within 40 pixels of the track's, or none, does not count.
    """
    hips = [BLAZEPOSE33.index(f"{side}_hip") for side in ("left", "right")]
    middle = track.joints2d[:, hips].mean(axis=1)
    roots = [joints2d_of(joints)[track.frames, H36M17.root] for joints in people]
    near = np.stack([np.linalg.norm(middle - root, axis=1) < 40 for root in roots])
    alone = (near & ~near[::-1]).sum(axis=1)
    return [number for number in range(2) if alone[number] >= 0.4 * FPS]


def frames_of(first, second=None, seed=5):
    """The frames of a video, RGB, (H, W, 3), one by one; `seed` is that of the first's clothes."""
    images = TwoPeople(first, camera(), appearance_seed=seed, background_seed=9)
    images.second = second
    whole = np.array([[1.0, 0, 0], [0, 1, 0]])
    for index in range(len(first)):
        yield images.crop(index, whole, SIZE)


def joints2d_of(joints3d):
    """Exact 2D joints, pixels, (T, 17, 2)."""
    return project(world_to_camera(joints3d, camera()), camera())


def write_video(path, frames, codec="MJPG"):
    """Write RGB frames to a video; returns its path."""
    writer = None
    for frame in frames:
        if writer is None:
            writer = cv2.VideoWriter(
                str(path), cv2.VideoWriter.fourcc(*codec), FPS, frame.shape[1::-1]
            )
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return path


def write_videos(folder, frames=150):
    """Videos of both people, and of each alone in the same clothes, with their true joints."""
    first, second = two_walkers(frames)
    return {
        "both": (write_video(folder / "both.avi", frames_of(first, second)), (first, second)),
        "first": (write_video(folder / "first.avi", frames_of(first)), (first,)),
        "second": (
            write_video(folder / "second.avi", frames_of(second, seed=SECOND_SEED)),
            (second,),
        ),
    }


@dataclass
class Errors:
    """Errors of a person's motion: millimetres, and frames in which it is there or filled in."""

    ids: int
    frames: int
    filled: int
    mpjpe: float
    across: float
    depth: float
    motion: object


def measure_errors(motion, truths):
    """Errors of each true person's longest track: root-relative MPJPE, and the root.

    `ids` is the number of tracks that show this person: 1 if the id stays.

    Args:
        motion: Predicted motion, camera frame.
        truths: True joints of each person, world metres, (T, 17, 3).
    """
    return [_errors_of(_tracks_of(motion, truth), truth) for truth in truths]


def _tracks_of(motion, truth):
    """The people whose 2D root is near the true one, by the median over time, in pixels."""
    root2d = joints2d_of(truth)[: len(motion), H36M17.root]

    def apart(person):
        gap = person.joints2d[:, H36M17.root] - root2d
        return float(np.nanmedian(np.linalg.norm(gap, axis=-1)))

    return [person for person in motion.people if apart(person) < 40]


def _errors_of(people, truth):
    person = max(people, key=lambda person: person.present.sum())
    truth = world_to_camera(truth, camera())[: len(person.status)]
    shown = person.present
    root = truth[:, H36M17.root]
    body = person.joints3d - (truth - root[:, None])
    offset = 1000 * np.abs(person.root - root)[shown].mean(axis=0)
    return Errors(
        len(people),
        int(shown.sum()),
        int((person.status == FILLED).sum()),
        1000 * float(np.linalg.norm(body[shown], axis=-1).mean()),
        float(np.hypot(offset[0], offset[1])),
        float(offset[2]),
        person,
    )
