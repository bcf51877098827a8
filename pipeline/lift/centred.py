"""Centred: any lifter behind a camera that is turned towards the person in every frame."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.lift.lifter import Lifter

Turn = tuple[Tensor, Tensor, Tensor, Tensor]
"""Cosine and sine of yaw and of pitch that turn a camera towards the root, each (B, T, 1)."""


class Centred(Lifter):
    """A lifter that sees every frame as a camera turned towards the root would.

    A person at the rim of an image is seen from the side, so the same pose has another 2D there
    and another 3D in the camera frame. This wrapper turns the rays of each frame (yaw, then pitch,
    no roll) until the root lies on the optical axis, enlarges the image, lets the lifter work
    there, and turns the 3D back. The root's 2D, which would always be zero, keeps its place in the
    image, so that nothing is lost. A frame whose root is not visible is turned towards the mean
    of its visible joints; a joint that is not visible keeps what stands in its place.

    Args:
        net: The lifter.
        focal: Focal length that is assumed, in normalised units (pixels / (w / 2)); 2.29 is that of
            Human3.6M's cameras, 1145 pixels at a width of 1000. Another one, or a distorted
            image, makes the turn inexact, not wrong: 3D is turned back by the same angles.
        zoom: How many times larger joints stand around the root.

    Source: the rotation is that of perspective crop layers (Yu et al., "PCLs", CVPR 2021, sec. 3.2)
    without their scale.
    Differs from the paper: turned towards the root's 2D in each frame, not the crop's middle; the
    principal point is taken in the middle of the image; a network on z-scored vectors is not
    told the statistics of what it sees.
    """

    def __init__(self, net: Lifter, *, focal: float = 2.29, zoom: float = 3.0) -> None:
        super().__init__()
        if not (focal > 0 and zoom > 0):
            raise ValueError(f"focal {focal} and zoom {zoom} must be above 0")
        self.net, self.focal, self.zoom = net, focal, zoom
        self.skeleton, self.frames = net.skeleton, net.frames
        self.receptive_field, self.output, self.causal = net.receptive_field, net.output, net.causal

    def forward(self, joints2d: Tensor, visible: Tensor | None = None) -> Tensor:
        """Lift clips, (B, T, J, C) -> (B, T', J, 3); see `Lifter.forward`."""
        seen = torch.ones_like(joints2d[..., 0], dtype=torch.bool) if visible is None else visible
        turn = self._turn(joints2d[..., :2], seen)
        lifted = self.net(self._centred(joints2d, seen, turn), visible).float()
        first, frames = self.first_frame, lifted.shape[1]
        return rotate_back(lifted, *(part[:, first : first + frames] for part in turn))

    def set_progress(self, done: float) -> None:
        """Tell the lifter."""
        self.net.set_progress(done)

    def _turn(self, joints2d: Tensor, seen: Tensor) -> Turn:
        count = seen.sum(-1, keepdim=True).clamp(min=1)
        mean = (joints2d * seen[..., None]).sum(-2) / count
        root = self.skeleton.root
        towards = torch.where(seen[..., root, None], joints2d[..., root, :], mean) / self.focal
        x, y = towards[..., :1], towards[..., 1:]
        across = torch.sqrt(1 + x * x)
        along = torch.sqrt(across * across + y * y)
        return 1 / across, x / across, across / along, y / along

    def _centred(self, joints2d: Tensor, seen: Tensor, turn: Turn) -> Tensor:
        cos_yaw, sin_yaw, cos_pitch, sin_pitch = turn
        x, y = joints2d[..., 0] / self.focal, joints2d[..., 1] / self.focal
        ahead = sin_yaw * x + cos_yaw
        scale = self.zoom * self.focal / (sin_pitch * y + cos_pitch * ahead)
        xy = [(cos_yaw * x - sin_yaw) * scale, (cos_pitch * y - sin_pitch * ahead) * scale]
        around = seen.clone()
        around[..., self.skeleton.root] = False
        centred = torch.where(around[..., None], torch.stack(xy, -1), joints2d[..., :2])
        return torch.cat([centred, joints2d[..., 2:]], -1)


def rotate_back(
    joints3d: Tensor, cos_yaw: Tensor, sin_yaw: Tensor, cos_pitch: Tensor, sin_pitch: Tensor
) -> Tensor:
    """From the frame of a camera that was turned to that of the camera as it stands.

    Args:
        joints3d: (B, T, J, 3).
        cos_yaw: Of the turn about the camera's y axis, (B, T, 1), as the sines and cosines below.
        sin_yaw: Positive to the right.
        cos_pitch: Of the turn about the x axis that follows.
        sin_pitch: Positive downwards.
    """
    x, y, z = joints3d.unbind(-1)
    ahead = cos_pitch * z - sin_pitch * y
    return torch.stack(
        [
            cos_yaw * x + sin_yaw * ahead,
            cos_pitch * y + sin_pitch * z,
            cos_yaw * ahead - sin_yaw * x,
        ],
        -1,
    )
