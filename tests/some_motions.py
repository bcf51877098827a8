"""Made-up motions of people who are missing in a frame and filled in another."""

from __future__ import annotations

import numpy as np

from pipeline.export.motion import FILLED, MISSING, SEEN, Motion, PersonMotion
from pipeline.skeleton import H36M17


def some_motion(ids=("A", "B"), frames=12, skeleton=H36M17, frame="world", **facts):
    generator = np.random.default_rng(5)
    J = len(skeleton)
    people = []
    for number, identity in enumerate(ids):
        status = np.full(frames, SEEN, np.uint8)
        status[2 + number], status[5] = MISSING, FILLED
        arrays = {
            "joints3d": generator.normal(scale=0.4, size=(frames, J, 3)),
            "root": generator.normal(size=(frames, 3)) + np.array([0, 45, 0]),  # beyond 32 m
            "joints2d": generator.uniform(0, 640, size=(frames, J, 2)),
            "score": generator.uniform(0.5, 1, size=(frames, J)),
        }
        for name, values in arrays.items():
            values[status == MISSING] = 0 if name == "score" else np.nan
        floats = {name: values.astype(np.float32) for name, values in arrays.items()}
        people.append(PersonMotion(identity, **floats, status=status, height=1.7))
    times = np.arange(frames) / 25
    return Motion(
        tuple(people), skeleton, times, 25.0, (640, 480), 512.0, (319.5, 239.5), frame, facts=facts
    )
