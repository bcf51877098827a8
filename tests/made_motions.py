"""Motions of embedded people in known poses, for tests of the files that motion is written to."""

import numpy as np

from pipeline.export.motion import MISSING, SEEN, Motion, PersonMotion
from pipeline.mocap.bodies import BONES
from pipeline.mocap.choreography import make_pose
from pipeline.mocap.synthetic import forward_kinematics
from pipeline.skeleton import H36M17

BODY = {bone: low + 0.3 * (high - low) for bone, (low, high) in BONES.items()}
STRAIGHT = {"hip": 0, "splay": 0, "turnout": 0, "knee": 0, "abduct": 0, "inward": 0, "elbow": 0}
FACING = -90.0
"""Yaw of a person who looks at the camera: towards -y of the world."""


def world_joints(*poses, place=(0.3, 4.0)):
    """Joints of a person in key poses, world metres, z up, (T, 17, 3), the lower ankle at 8 cm."""
    joints = forward_kinematics(np.stack(poses), BODY)
    joints[..., 2] += 0.08 - joints[:, [3, 6], 2].min(axis=1)[:, None]
    return joints + np.array([*place, 0.0])


def standing(frames=1, **angles):
    """A key pose that faces the camera, repeated."""
    return np.repeat(make_pose(**{"yaw": FACING, **angles})[None], frames, axis=0)


def as_camera(joints, height=1.2):
    """World joints as a level camera at the origin and that height sees them: y down, z forward."""
    x, y, z = np.moveaxis(np.asarray(joints), -1, 0)
    return np.stack([x, height - z, y], axis=-1)


def person_of(joints, name="A", *, status=None, height=1.7):
    """A person whose joints are these, (T, 17, 3)."""
    joints = np.asarray(joints, np.float32)
    frames = len(joints)
    status = np.full(frames, SEEN, np.uint8) if status is None else np.array(status, np.uint8)
    joints = np.where((status == MISSING)[:, None, None], np.nan, joints)
    root = np.nan_to_num(joints[:, 0])  # the pelvis may be missing in a frame with other joints
    flat, score = np.zeros((frames, 17, 2), np.float32), np.ones((frames, 17), np.float32)
    return PersonMotion(name, joints - root[:, None], root, flat, score, status, height)


def motion_of(*people, fps=50.0, frame="world", times=None, **facts):
    """A motion of people, or of joints (T, 17, 3)."""
    people = tuple(
        p if isinstance(p, PersonMotion) else person_of(p, "ABC"[i]) for i, p in enumerate(people)
    )
    frames = len(people[0].status) if people else 3
    times = np.arange(frames) / fps if times is None else np.asarray(times, np.float64)
    size, principal = (640, 480), (319.5, 239.5)
    return Motion(people, H36M17, times, fps, size, 500.0, principal, frame, facts=facts)
