"""Motion of random numbers and of synthetic people, for tests of files that it is written to."""

import numpy as np
from made_motions import motion_of, person_of

from pipeline.export.motion import MISSING, SEEN, Motion, PersonMotion
from pipeline.mocap import Synthetic
from pipeline.skeleton import H36M17


def random_motion(people=1, frames=6, skeleton=H36M17, fps=29.97, times=None, frame="world"):
    """A motion of random numbers; frames 3 and 4 are missing, and joint 2 in frame 0."""
    generator = np.random.default_rng(5)
    J = len(skeleton)

    def person(name):
        floats = [generator.normal(size=(frames, *s)) for s in ((J, 3), (3,), (J, 2), (J,))]
        joints3d, root, joints2d, score = (f.astype(np.float32) for f in floats)
        joints3d[3:5] = np.nan
        joints3d[0, 2] = np.nan  # one joint, where the others are there
        status = np.where(np.isin(np.arange(frames), (3, 4)), MISSING, SEEN).astype(np.uint8)
        return PersonMotion(name, joints3d, root, joints2d, score, status, 1.7)

    times = np.arange(frames) / fps if times is None else times
    people = tuple(person("ABC"[i]) for i in range(people))
    return Motion(people, skeleton, times, fps, (640, 480), 500.0, (320, 240), frame)


def walking_motion(people=1, frames=40, missing=(), times=None, frame="world"):
    """Synthetic people who walk, each 1 m to the right of the one before; some frames missing."""
    source = Synthetic(train=1, val=1, test=1, actions=("walk",), seconds=2.0)
    sequence = next(iter(source.sequences("test")))
    positions = sequence.joints3d[:frames].astype(np.float32)
    if frame == "camera":
        positions = positions @ np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], np.float32).T
    status = np.full(frames, SEEN, np.uint8)
    status[list(missing)] = MISSING
    to_the_right = np.array([1.0, 0, 0], np.float32)
    walkers = [
        person_of(positions + number * to_the_right, "ABC"[number], status=status)
        for number in range(people)
    ]
    times = np.arange(frames) / sequence.fps if times is None else times
    return motion_of(*walkers, fps=sequence.fps, frame=frame, times=times)
