"""A planar body, the lifter that lifts it exactly, and the tracks of its projection."""

import numpy as np
import torch

from pipeline.lift.crop_camera import CROP_SCALE
from pipeline.lift.lifter import Lifter
from pipeline.lift.module import LiftModule
from pipeline.mocap.bodies import BONES
from pipeline.predict.tracks import Track, TrackedPeople
from pipeline.skeleton import H36M17

SIZE = (1280, 720)


class PlanarLifter(Lifter):
    """Lifts bodies that are parallel to the image: x and y from 2D, z is zero."""

    output = "every"

    def __init__(self, frames=9):
        super().__init__()
        self.frames = self.receptive_field = frames
        self.scale = torch.nn.Parameter(torch.tensor(1 / CROP_SCALE))

    def forward(self, joints2d, visible=None):
        flat = joints2d[..., :2] * self.scale
        joints3d = torch.cat([flat, torch.zeros_like(flat[..., :1])], -1)
        return joints3d - joints3d[:, :, :1]


class FlatLifter(Lifter):
    """Returns the 2D joints times `scale` as metres, with depth zero."""

    output = "every"

    def __init__(self, scale=1.0):
        super().__init__()
        self.frames = self.receptive_field = 1
        self.scale = scale

    def forward(self, joints2d, visible=None):
        return torch.nn.functional.pad(self.scale * joints2d, (0, 1))


def planar_module(frames=9, flip_test=True):
    return LiftModule(PlanarLifter(frames), flip_test=flip_test).eval()


def planar_body(arm=0.0):
    """A frontal body about the pelvis, metres, x right, y down; `arm`: left arm, radians."""
    joints = np.zeros((17, 3))
    raised = np.array([np.cos(arm), -np.sin(arm), 0])
    for child, parent in enumerate(H36M17.parents):
        if parent < 0:
            continue
        side, _, name = H36M17.joints[child].rpartition("_")
        across = np.array([1.0 if side == "left" else -1.0, 0, 0])
        upwards = name in ("spine", "thorax", "nose", "head")
        along = np.array([0, -1.0, 0]) if upwards else np.array([0, 1.0, 0])
        direction = across if name in ("hip", "shoulder") else along
        if side == "left" and name in ("elbow", "wrist"):
            direction = raised
        joints[child] = joints[parent] + np.mean(BONES[name]) * direction
    return joints


def walking_clip(times):
    """Root and joints, camera frame, metres: across the image, waving; (T, 3) and (T, 17, 3)."""
    root = np.stack([-1 + 0.6 * times, 0.1 * np.sin(times), 5 + 0 * times], -1)
    body = np.stack([planar_body(0.8 * np.sin(3 * time)) for time in times])
    return root, body + root[:, None]


def project(positions, focal):
    centre = (np.array(SIZE) - 1) / 2
    return positions[..., :2] / positions[..., 2:] * focal + centre


def tracked(positions, times, focal, frames=None, **facts):
    """`TrackedPeople` with one person, who is seen in these frames."""
    frames = np.arange(len(times)) if frames is None else np.asarray(frames)
    joints2d = project(positions, focal)[frames].astype(np.float32)
    track = Track("A", frames, joints2d, np.full(joints2d.shape[:2], 0.9, np.float32))
    rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 30.0
    return TrackedPeople(H36M17, (track,), times, rate, SIZE, **facts)
