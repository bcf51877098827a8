"""Centred: any lifter, behind a virtual camera that is turned towards the person in each frame."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.lift.lifter import Lifter

Turn = tuple[Tensor, Tensor, Tensor, Tensor]
"""Cosine and sine of yaw and of pitch that turn a camera towards the root, each (B, T, 1)."""


class CentredLifter(Lifter):
    """A lifter whose input is rotated so that the root lies on the optical axis.

    ==================  ===================================================================
    joints2d            (B, T, J, C)
    rotated, enlarged   (B, T, J, C), as a camera turned towards the root sees the joints
    net                 (B, T', J, 3) metres in the frame of the turned camera
    rotated back        (B, T', J, 3) metres in the camera frame
    ==================  ===================================================================

    A person at the edge of an image is seen from the side, so there the same pose has other 2D and
    other 3D in the camera frame. The rays of each frame are rotated by yaw, then pitch, without
    roll. The root's 2D would always be zero; it keeps its place in the image instead, so that no
    information is lost. A frame whose root is not visible is turned towards the mean of its visible
    joints. The input of a joint that is not visible is not changed.

    Args:
        net: The wrapped lifter.
        focal: Assumed focal length in normalised units (pixels / (w / 2)); 2.29 is that of
            Human3.6M's cameras, 1145 pixels at a width of 1000. With another focal length or a
            distorted image the rotation is approximate; 3D is rotated back by the same angles.
        zoom: Factor by which the joints around the root are enlarged.

    Raises:
        ValueError: If `focal` or `zoom` is not above 0.

    Source: the rotation is that of perspective crop layers (Yu et al., "PCLs", CVPR 2021, sec. 3.2)
    without their scale.
    Differs from the paper: the camera is turned towards the root's 2D of each frame, not towards
    the middle of the crop; the principal point is assumed in the middle of the image; `Martinez`
    and the other z-scored lifters do not get statistics of the rotated input.
    """

    def __init__(self, net: Lifter, *, focal: float = 2.29, zoom: float = 3.0) -> None:
        super().__init__()
        if not (focal > 0 and zoom > 0):
            raise ValueError(f"focal {focal} and zoom {zoom} must be above 0")
        self.net, self.focal, self.zoom = net, focal, zoom
        self.skeleton, self.frames = net.skeleton, net.frames
        self.receptive_field, self.output, self.causal = net.receptive_field, net.output, net.causal
        self.slides = net.slides

    def forward(self, joints2d: Tensor, visible: Tensor | None = None) -> Tensor:
        """Lift clips, (B, T, J, C) -> (B, T', J, 3); see `Lifter.forward`."""
        seen = torch.ones_like(joints2d[..., 0], dtype=torch.bool) if visible is None else visible
        exact = joints2d.float()  # half precision makes no rotation of sines and cosines
        turn = self._find_turn(exact[..., :2], seen)
        rotated = self._rotate_joints2d(exact, seen, turn).to(joints2d.dtype)
        lifted = self.net(rotated, visible).float()
        first, frames = self.first_frame, lifted.shape[1]
        return rotate_back(lifted, *(part[:, first : first + frames] for part in turn))

    def set_progress(self, done: float) -> None:
        """Pass the progress on to the wrapped lifter."""
        self.net.set_progress(done)

    def _find_turn(self, joints2d: Tensor, seen: Tensor) -> Turn:
        """The turn towards the root, or towards the mean of the visible joints."""
        count = seen.sum(-1, keepdim=True).clamp(min=1)
        mean = (joints2d * seen[..., None]).sum(-2) / count
        root = self.skeleton.root
        towards = torch.where(seen[..., root, None], joints2d[..., root, :], mean) / self.focal
        x, y = towards[..., :1], towards[..., 1:]
        across = torch.sqrt(1 + x * x)
        along = torch.sqrt(across * across + y * y)
        return 1 / across, x / across, across / along, y / along

    def _rotate_joints2d(self, joints2d: Tensor, seen: Tensor, turn: Turn) -> Tensor:
        """The joints as the turned camera sees them, (B, T, J, C)."""
        cos_yaw, sin_yaw, cos_pitch, sin_pitch = turn
        x, y = joints2d[..., 0] / self.focal, joints2d[..., 1] / self.focal
        ahead = sin_yaw * x + cos_yaw
        scale = self.zoom * self.focal / (sin_pitch * y + cos_pitch * ahead)
        xy = [(cos_yaw * x - sin_yaw) * scale, (cos_pitch * y - sin_pitch * ahead) * scale]
        rotated = seen.clone()
        rotated[..., self.skeleton.root] = False
        centred = torch.where(rotated[..., None], torch.stack(xy, -1), joints2d[..., :2])
        return torch.cat([centred, joints2d[..., 2:]], -1)


def rotate_back(
    joints3d: Tensor, cos_yaw: Tensor, sin_yaw: Tensor, cos_pitch: Tensor, sin_pitch: Tensor
) -> Tensor:
    """Rotate joints from the frame of the turned camera to that of the real one, (B, T, J, 3).

    Args:
        joints3d: Joints in the frame of the turned camera, metres, (B, T, J, 3).
        cos_yaw: Cosine of the turn about the camera's y axis, (B, T, 1).
        sin_yaw: Sine of that turn, positive to the right, (B, T, 1).
        cos_pitch: Cosine of the turn about the x axis that follows, (B, T, 1).
        sin_pitch: Sine of that turn, positive downwards, (B, T, 1).
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
