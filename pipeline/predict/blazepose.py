"""BlazePose's landmark networks: crops of people to 33 joints, in pixels and in metres."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from pipeline.errors import DataError
from pipeline.files.tflite import TfliteGraph, read_tflite
from pipeline.predict.square_crops import Floats, crops_from_points, to_image
from pipeline.predict.tflite_network import TfliteNetwork
from pipeline.skeleton import BLAZEPOSE33

JOINTS = len(BLAZEPOSE33)
POINTS = 39
"""Points that the networks find: the joints, two that give the next crop, four that are unused."""

CORNER = 0.5
"""Pixels from the corner of an image, where BlazePose's coordinates begin, to the centre of the
first pixel, where ours begin. Measured: x of a joint and of its mirror image sum to 256.3 +- 0.1 in
1,390 pairs, with crops of 256 pixels."""


@dataclass(frozen=True)
class BlazePoseJoints:
    """What BlazePose finds in N crops or, after `in_image`, in the image they were cut from.

    Args:
        joints2d: Joints of `BLAZEPOSE33` in pixels, (N, 33, 2).
        depth: Distance from the hips along the line of sight, away from the camera, in pixels,
            (N, 33).
        score: Probability that a joint is visible and inside the crop, (N, 33).
        presence: Probability that the crop shows a person, (N,).
        world: Joints in metres about the middle of the hips; camera frame: x right, y down, z
            forward, (N, 33, 3).
        points: The points that give the next crop, in pixels, (N, 2, 2).
    """

    joints2d: NDArray[np.floating]
    depth: NDArray[np.floating]
    score: NDArray[np.float32]
    presence: NDArray[np.float32]
    world: NDArray[np.floating]
    points: NDArray[np.floating]

    def in_image(self, crops: ArrayLike, size: int) -> BlazePoseJoints:
        """The same in pixels of the image; directions in metres are turned as the crops were.

        Args:
            crops: Centre x, y, side and angle of each crop, (N, 4).
            size: Side of the crops in their own pixels.
        """
        crops = np.asarray(crops, np.float64)
        cosine, sine = np.cos(crops[:, 3, None]), np.sin(crops[:, 3, None])
        x, y, z = np.moveaxis(self.world, -1, 0)
        return BlazePoseJoints(
            joints2d=to_image(self.joints2d, crops, size),
            depth=self.depth * (crops[:, 2:3] / size),
            score=self.score,
            presence=self.presence,
            world=np.stack([cosine * x - sine * y, sine * x + cosine * y, z], axis=-1),
            points=to_image(self.points, crops, size),
        )

    def next_crops(self) -> Floats:
        """Crops around the same people for the next frame, (N, 4), from `points` in the image."""
        return crops_from_points(self.points)


class BlazePose(nn.Module):
    """A landmark network of BlazePose: lite, full or heavy.

    Args:
        graph: Graph of the weight file.

    Raises:
        DataError: If the graph is not that of a landmark network.

    Source: Bazarevsky et al., BlazePose: On-device Real-time Body Pose tracking (2020), and the
    weight files. Differs from the published pipeline: joints come from the regression alone, the
    segmentation mask and the heatmaps are not computed.
    """

    def __init__(self, graph: TfliteGraph) -> None:
        super().__init__()
        self.digest = graph.digest
        """SHA-256 of the weight file."""
        shape, outputs = describe(graph)
        wanted = ((1, 5 * POINTS), (1, 1), (1, 3 * POINTS))
        if len(shape) != 4 or shape != (1, shape[1], shape[1], 3) or not {*wanted} <= {*outputs}:
            raise DataError(
                f"{graph.path}: is no landmark network of BlazePose; it turns {shape} into "
                f"{', '.join(map(str, outputs))}"
            )
        self.size = shape[1]
        """Side of the crops in pixels."""
        self.network = TfliteNetwork(graph, [outputs.index(shape) for shape in wanted])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The three outputs of the network, (B, 195), (B, 1), (B, 117), for RGB in 0..1, NCHW."""
        return self.network(images)

    @torch.inference_mode()
    def find_joints(self, crops: NDArray[np.uint8]) -> BlazePoseJoints:
        """Joints in crops of people.

        Args:
            crops: RGB, uint8, (N, size, size, 3).

        Returns:
            Joints in pixels of the crops.
        """
        images = to_images(crops, self.size, next(self.buffers()).device)
        found, presence, world = (x.float().cpu().numpy() for x in self(images / 255))
        found = found.reshape(-1, POINTS, 5)
        seen = 1 / (1 + np.exp(-found[:, :JOINTS, 3:].astype(np.float64).clip(-50, 50)))
        found[..., :2] -= CORNER
        return BlazePoseJoints(
            joints2d=found[:, :JOINTS, :2],
            depth=found[:, :JOINTS, 2],
            score=seen.prod(axis=-1).astype(np.float32),
            presence=presence[:, 0],
            world=world.reshape(-1, POINTS, 3)[:, :JOINTS],
            points=found[:, JOINTS : JOINTS + 2, :2],
        )


def load_blazepose(path: Path, device: str = "cpu") -> BlazePose:
    """The landmark network of a weight file, `pose_landmark_{lite,full,heavy}.tflite`.

    Args:
        path: Weight file.
        device: Device of torch.

    Raises:
        DataError: If the file is missing, damaged, or holds another network.
    """
    return BlazePose(read_tflite(path)).eval().to(device)


def describe(graph: TfliteGraph) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Shapes of the input and of the outputs of a graph; () where it has not one input."""
    inputs = [graph.tensors[n].shape for n in graph.inputs]
    return inputs[0] if len(inputs) == 1 else (), [graph.tensors[n].shape for n in graph.outputs]


def to_images(crops: NDArray[np.uint8], size: int, device: torch.device) -> Tensor:
    """Crops (N, size, size, 3), uint8, as float (N, 3, size, size) from 0 to 255 on a device.

    Raises:
        ValueError: If they have another shape or type.
    """
    if crops.dtype != np.uint8 or crops.shape[1:] != (size, size, 3):
        raise ValueError(f"crops {crops.shape} {crops.dtype}; need uint8 (N, {size}, {size}, 3)")
    return torch.from_numpy(crops).to(device).permute(0, 3, 1, 2).float()
