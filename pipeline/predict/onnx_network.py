"""ONNX files in onnxruntime: batches of images in, arrays out, in bounded memory."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import DataError, StorageError, UsageError
from pipeline.files.onnx_files import OnnxFile

MAX_MEMORY = 4 * 2**30
"""Largest memory of all networks in onnxruntime, bytes."""

MAX_SIDE = 4096
"""Largest side of the images that a network takes, pixels."""

MAX_BATCH = 16
"""Largest number of images that a network of any batch size gets at once."""

Side = int | None
"""A side of an array; None where the file leaves it open."""


@dataclass(frozen=True)
class Port:
    """An input or output of a network.

    Args:
        name: Its name.
        kind: Its type of number, as onnxruntime names it, such as `tensor(float)`.
        shape: Its shape.
    """

    name: str
    kind: str
    shape: tuple[Side, ...]

    def __str__(self) -> str:
        sides = ", ".join("?" if side is None else str(side) for side in self.shape)
        return f"{self.name[:40]} ({sides})"


class OnnxNetwork:
    """An ONNX file, ready to run.

    The network takes one image input, (B, 3, H, W); B may be fixed or open.

    Args:
        file: The file.
        device: Device of torch: cuda if onnxruntime has it, else the CPU, with a note.

    Attributes:
        inputs: Inputs of the network.
        outputs: Outputs of the network.
        metadata: What the file states about itself.
        provider: What of onnxruntime computes: CPUExecutionProvider or CUDAExecutionProvider.
        notes: Sentences for the user.

    Raises:
        UsageError: If onnxruntime is not installed.
        DataError: If onnxruntime cannot run the file.
    """

    def __init__(self, file: OnnxFile, device: str) -> None:
        runtime = import_onnxruntime(str(file.path))
        self.path = file.path
        self.notes: list[str] = []
        providers: list[tuple[str, dict[str, Any]]] = [("CPUExecutionProvider", {})]
        place = torch.device(device)
        wants_cuda = place.type == "cuda"
        if wants_cuda and "CUDAExecutionProvider" in runtime.get_available_providers():
            options = {"gpu_mem_limit": MAX_MEMORY, "device_id": place.index or 0}
            providers.insert(0, ("CUDAExecutionProvider", options))
        settings = runtime.SessionOptions()
        settings.log_severity_level = 4  # its errors come as exceptions, not on stderr
        settings.intra_op_num_threads = torch.get_num_threads()
        settings.inter_op_num_threads = 1
        settings.add_session_config_entry("session.use_env_allocators", "1")
        _limit_memory()
        try:
            self._session = runtime.InferenceSession(
                file.data, settings, providers=providers, enable_fallback=0
            )  # a second try would print the error of the first one
            self.provider = str(self._session.get_providers()[0])
            self.inputs = [_port(node) for node in self._session.get_inputs()]
            self.outputs = [_port(node) for node in self._session.get_outputs()]
            self.metadata = dict(self._session.get_modelmeta().custom_metadata_map)
        except Exception as error:  # onnxruntime has a class of its own for each kind
            raise DataError(f"{self.path}: onnxruntime cannot load it ({_reason(error)})") from None
        if wants_cuda and self.provider != "CUDAExecutionProvider":
            self.notes.append("this onnxruntime has no CUDA (onnxruntime-gpu has): on the CPU")

    def describe(self) -> str:
        """Inputs, outputs and metadata, as part of a line."""
        known = [f"{key[:30]}={value[:60]}" for key, value in sorted(self.metadata.items())[:12]]
        return (
            f"inputs {', '.join(map(str, self.inputs[:8]))}; "
            f"outputs {', '.join(map(str, self.outputs[:12]))}; "
            f"metadata {', '.join(known) or 'none'}"
        )

    def image_port(self) -> Port:
        """The input for images.

        Raises:
            DataError: If there is not exactly one input, of floats and of shape (B, 3, H, W).
        """
        port = self.inputs[0] if len(self.inputs) == 1 else None
        if (
            port is None
            or port.kind not in ("tensor(float)", "tensor(float16)")
            or len(port.shape) != 4
            or port.shape[1] not in (3, None)
            or any(side is not None and not 1 <= side <= MAX_SIDE for side in port.shape)
        ):
            raise DataError(
                f"{self.path}: takes no images (B, 3, H, W) of floats up to {MAX_SIDE} pixels; "
                f"found {self.describe()}"
            )
        return port

    def run(self, images: NDArray[np.float32], names: Sequence[str]) -> list[NDArray[np.float32]]:
        """Outputs of the network for images.

        Args:
            images: What the network takes, (N, 3, H, W), at least one.
            names: Names of the outputs.

        Returns:
            The outputs, each (N, …), float32.

        Raises:
            DataError: If onnxruntime fails, or an output has no row for each image.
        """
        port = self.image_port()
        fixed = port.shape[0]
        size = fixed or MAX_BATCH
        found: list[list[NDArray[np.float32]]] = []
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            count = len(batch)
            if fixed and count < fixed:  # filled up with copies of the last image
                batch = np.concatenate([batch, np.repeat(batch[-1:], fixed - count, axis=0)])
            if port.kind == "tensor(float16)":
                batch = batch.astype(np.float16)
            found.append([part[:count] for part in self.run_arrays({port.name: batch}, names)])
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]

    def run_arrays(
        self, inputs: Mapping[str, NDArray[Any]], names: Sequence[str]
    ) -> list[NDArray[np.float32]]:
        """Outputs of the network for its inputs, all at once.

        Args:
            inputs: Name -> array, of the type that the network takes; the first axis is the batch.
            names: Names of the outputs.

        Returns:
            The outputs, float32.

        Raises:
            DataError: If onnxruntime fails, or an output has another batch.
            StorageError: If it needs too much memory.
        """
        batch = next(iter(inputs.values()))
        arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        try:
            outputs = self._session.run(list(names), arrays)
        except Exception as error:  # onnxruntime has a class of its own for each kind
            if "Available memory" in str(error) or isinstance(error, MemoryError):
                raise StorageError(
                    f"{self.path}: needs more than {MAX_MEMORY / 2**30:g} GiB of memory for images "
                    f"{batch.shape}; take a smaller network"
                ) from None
            raise DataError(f"{self.path}: onnxruntime fails ({_reason(error)})") from None
        for output, wanted in zip(outputs, names, strict=True):
            shape = getattr(output, "shape", ())
            if not shape or shape[0] != len(batch) or output.dtype.kind != "f":
                raise DataError(
                    f"{self.path}: output {wanted[:40]} has the shape {shape} for {len(batch)} "
                    "images; its first axis must be the batch, its numbers floats"
                )
        return [np.asarray(output, np.float32) for output in outputs]


def import_onnxruntime(path: str) -> Any:
    """The module onnxruntime, which is imported here first.

    Args:
        path: What needs it.

    Raises:
        UsageError: If it is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UsageError(f"{path}: needs onnxruntime; pip install 'heatlift[onnx]'") from None
    return onnxruntime


@functools.cache
def _limit_memory() -> None:
    """Bound the memory of all sessions: the sizes inside a network come from its file."""
    import onnxruntime as runtime

    place = runtime.OrtMemoryInfo(
        "Cpu", runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, runtime.OrtMemType.DEFAULT
    )
    runtime.create_and_register_allocator(place, runtime.OrtArenaCfg({"max_mem": MAX_MEMORY}))


def _port(node: Any) -> Port:
    shape = node.shape or ()
    sides = tuple(side if isinstance(side, int) and side >= 0 else None for side in shape)
    return Port(str(node.name), str(node.type), sides)


def _reason(error: Exception) -> str:
    """The message of onnxruntime, on one line, without its prefix."""
    text = " ".join(str(error).split())
    return text.removeprefix("[ONNXRuntimeError] : ")[:200]
