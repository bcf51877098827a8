"""ONNX files that Heatlift exported: as lifters, and as estimators of 2D joints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.errors import DataError
from pipeline.files.onnx_files import OnnxFile, read_onnx
from pipeline.heatmap.image_stage import ImageStage
from pipeline.heatmap.module import HeatmapModule
from pipeline.integral.module import IntegralModule
from pipeline.lift.lifter import Lifter
from pipeline.lift.module import LiftModule
from pipeline.predict.estimators import StageEstimator
from pipeline.predict.onnx_network import MAX_BATCH, OnnxNetwork, import_onnxruntime
from pipeline.weights.onnx_facts import (
    IMAGE_INPUT,
    IMAGE_OUTPUT,
    LIFTER_INPUTS,
    LIFTER_OUTPUT,
    ImageFacts,
    LifterFacts,
    read_facts,
    skeleton_of,
)

FRAMES_AT_ONCE = 2048
"""Largest number of frames of all windows that onnxruntime gets at once; at least one window."""


class OnnxLifter(Lifter):
    """A lifter that onnxruntime computes, with its mask token.

    Args:
        network: The network of a file that Heatlift exported.
        facts: What it tells about itself.
        digest: SHA-256 of the file.
    """

    def __init__(self, network: OnnxNetwork, facts: LifterFacts, digest: str) -> None:
        super().__init__()
        self.network, self.facts, self.digest = network, facts, digest
        self.skeleton, self.frames = skeleton_of(facts), facts.frames
        self.receptive_field, self.output = facts.receptive_field, facts.output
        self.causal = facts.causal

    def forward(self, joints2d: Tensor, visible: Tensor | None = None) -> Tensor:
        """Lift clips, (B, T, J, C) -> (B, T', J, 3); see `Lifter.forward`."""
        B, T, J, _ = joints2d.shape
        seen = torch.ones(B, T, J, dtype=torch.bool) if visible is None else visible.cpu()
        clips, size = joints2d.detach().cpu(), max(1, FRAMES_AT_ONCE // T)
        parts = [
            self._lift(clips[start : start + size].numpy(), seen[start : start + size].numpy())
            for start in range(0, B, size)
        ]
        return torch.from_numpy(np.concatenate(parts)).to(joints2d.device)

    def _lift(
        self, joints2d: NDArray[np.float32], visible: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """Lift a few windows."""
        B, T, J, _ = joints2d.shape
        inputs = dict(zip(LIFTER_INPUTS, (joints2d, visible), strict=True))
        (joints3d,) = self.network.run_arrays(inputs, [LIFTER_OUTPUT])
        predicted = {"every": T, "centre": 1, "valid": T - self.receptive_field + 1}[self.output]
        _check_shape(self.network, joints3d, (B, predicted, J, 3))
        return joints3d


class _OnnxHeatmaps(nn.Module):
    """A 2D network that onnxruntime computes: crops, uint8, (B, H, W, 3) -> heatmaps."""

    def __init__(self, network: OnnxNetwork, facts: ImageFacts) -> None:
        super().__init__()
        self.network, self.facts = network, facts

    def forward(self, images: Tensor) -> Tensor:
        crops = images.cpu().numpy()
        parts = [
            self._find(crops[start : start + MAX_BATCH])
            for start in range(0, len(crops), MAX_BATCH)
        ]
        return torch.from_numpy(np.concatenate(parts)).to(images.device)

    def _find(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        (maps,) = self.network.run_arrays({IMAGE_INPUT: crops}, [IMAGE_OUTPUT])
        width, height = self.facts.input_size
        depth = maps.shape[2:3] if self.facts.stage == "integral" else ()
        shape = (len(crops), len(skeleton_of(self.facts)), *depth, height // 4, width // 4)
        _check_shape(self.network, maps, shape)
        return maps


class _OnnxHeatmapModule(HeatmapModule):
    """The heatmap stage with a network that has its normalisation."""

    def forward(self, images: Tensor) -> Tensor:
        heatmaps: Tensor = self.net(images)
        return heatmaps


class _OnnxIntegralModule(IntegralModule):
    """The integral stage with a network that has its normalisation."""

    def forward(self, images: Tensor) -> Tensor:
        volumes: Tensor = self.net(images)
        return volumes


def load_onnx_lifter(path: Path, device: str) -> LiftModule:
    """Load an ONNX file that Heatlift exported as a lifter.

    Args:
        path: The file.
        device: Device of torch: the CPU, or cuda where onnxruntime has it.

    Returns:
        The lifting stage, in evaluation mode, around an `OnnxLifter`.

    Raises:
        DataError: If the file is damaged, or no lifter that Heatlift exported.
        UsageError: If onnxruntime is not installed.
    """
    import_onnxruntime(str(path))
    file = read_onnx(path)
    network = OnnxNetwork(file, device)
    facts = read_facts(network.metadata, path)
    if facts is None:
        raise DataError(
            f"{path}: is no lifter of Heatlift; make one: heatlift weights export CHECKPOINT"
        )
    if not isinstance(facts, LifterFacts):
        raise DataError(f"{path}: is a network of stage {facts.stage}; give it as --estimator")
    _check_ports(network, LIFTER_INPUTS, LIFTER_OUTPUT)
    module = LiftModule(OnnxLifter(network, facts, file.digest), flip_test=facts.flip_test)
    module.trained_rate, module.trained_sizes = facts.frame_rate, facts.person_sizes
    return module.eval()


def make_own_estimator(network: OnnxNetwork, file: OnnxFile) -> StageEstimator | None:
    """The estimator of an ONNX file that Heatlift exported; None if it is of others.

    Raises:
        DataError: If it is damaged, or a lifter.
    """
    facts = read_facts(network.metadata, network.path)
    if facts is None:
        return None
    if isinstance(facts, LifterFacts):
        raise DataError(f"{network.path}: is a lifter; give it as --lifter")
    _check_ports(network, (IMAGE_INPUT,), IMAGE_OUTPUT)
    net = _OnnxHeatmaps(network, facts)
    module: ImageStage
    options = {
        "skeleton": facts.joints,
        "input_size": facts.input_size,
        "padding": facts.padding,
        "published_cells": facts.published_cells,
        "flip_test": facts.flip_test,
    }
    if facts.stage == "integral":
        module = _OnnxIntegralModule(net, cube=facts.cube or 1.0, **options)  # type: ignore[arg-type]
    else:
        module = _OnnxHeatmapModule(net, decode=facts.decode, **options)  # type: ignore[arg-type]
    estimator = StageEstimator(module.eval(), network.path.stem, file.digest)
    estimator.licence, estimator.notes = facts.licence, tuple(network.notes)
    return estimator


def _check_ports(network: OnnxNetwork, inputs: tuple[str, ...], output: str) -> None:
    """Raise if a file that names Heatlift has other inputs and outputs."""
    names = [port.name for port in network.inputs], [port.name for port in network.outputs]
    if names != ([*inputs], [output]):
        raise DataError(
            f"{network.path}: its metadata and its graph differ; export the checkpoint again "
            f"(found {network.describe()})"
        )


def _check_shape(network: OnnxNetwork, array: NDArray[np.float32], shape: tuple[int, ...]) -> None:
    """Raise if an output has another shape than its metadata tell."""
    if array.shape != shape:
        raise DataError(
            f"{network.path}: gives {array.shape}, and its metadata tell {shape}; export the "
            "checkpoint again"
        )
