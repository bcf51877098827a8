"""Graphs of TensorFlow Lite files as networks of torch, for batches on a CPU or a GPU."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import DataError
from pipeline.files.tflite import MAX_CONSTANTS, MAX_ELEMENTS, TfliteGraph, TfliteOperator

MAX_PRODUCTS = 2e10
"""Most multiplications for one image; BlazePose's heavy network needs 1.9e9."""

MAX_COLUMNS = 2**27
"""Most numbers that the windows of a convolution cover; BlazePose's cover up to 8.6 million."""

Shape = tuple[int, ...]
_Built = tuple[nn.Module | None, Shape, Shape]
"""A module, its inputs, and the shape of its output in the file."""


class TfliteNetwork(nn.Module):
    """A network that computes chosen outputs of a graph, in float32.

    Images (B, C, H, W) -> a tuple of outputs. Outputs with four axes are (B, C, H, W), others as
    in the file; the first axis is the batch, whatever size it has in the file. Operators that no
    chosen output needs are left out; constants are converted once; a symmetric `pad` becomes part
    of the convolution that follows it.

    Args:
        graph: Graph of the file, with one batch of images as its input.
        outputs: Which of the graph's outputs are computed; None for all.

    Raises:
        DataError: If the shapes or options of an operator do not fit each other, or are not among
            those that BlazePose uses, or the network is too expensive.
    """

    def __init__(self, graph: TfliteGraph, outputs: Sequence[int] | None = None) -> None:
        super().__init__()
        chosen = range(len(graph.outputs)) if outputs is None else outputs
        self.outputs = tuple(graph.outputs[i] for i in chosen)
        self.input = graph.inputs[0]
        if len(graph.inputs) != 1 or len(graph.tensors[self.input].shape) != 4:
            raise DataError(f"{graph.path}: its input is not one batch of images; use another file")
        self.shape = graph.tensors[self.input].shape
        """Shape of the input in the file, (1, H, W, C)."""
        builder = _Builder(graph, self.outputs)
        self.operators = nn.ModuleList(builder.modules)
        self.steps = _with_ends(builder.steps, self.outputs)
        """Of each operator: numbers of its inputs, of its output, and of tensors not needed after
        it."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Outputs for a batch of images, (B, C, H, W).

        A CPU computes them one by one: so their bits do not depend on the batch, and activations
        stay in its cache (a batch of 8 at once took 15 % more time per image).
        """
        if images.device.type != "cpu" or len(images) < 2:
            return self._outputs(images)
        parts = [self._outputs(image) for image in images.split(1)]
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def _outputs(self, images: Tensor) -> tuple[Tensor, ...]:
        values = {self.input: images.contiguous(memory_format=torch.channels_last)}
        for operator, (inputs, output, ended) in zip(self.operators, self.steps, strict=True):
            values[output] = operator(*[values[i] for i in inputs])
            for number in ended:
                del values[number]
        return tuple(values[number] for number in self.outputs)


def _with_ends(
    steps: list[tuple[Shape, int]], outputs: Shape
) -> tuple[tuple[Shape, int, Shape], ...]:
    """Steps with the tensors that no later step and no output needs."""
    wanted, found = set(outputs), []
    for inputs, output in reversed(steps):
        found.append((inputs, output, tuple(set(inputs) - wanted)))
        wanted |= set(inputs)
    return tuple(found[::-1])


class _Builder:
    """The modules of a graph in the order of its operators.

    Channels are the last axis in the file and the second one in torch; the shapes in here are the
    file's.
    """

    def __init__(self, graph: TfliteGraph, outputs: Shape) -> None:
        self.graph = graph
        self.constants = {n: t.values for n, t in enumerate(graph.tensors) if t.values is not None}
        self.modules: list[nn.Module] = []
        self.steps: list[tuple[Shape, int]] = []
        self.products = self.weights = 0
        needed = _needed(graph, outputs)
        self.readers = Counter(i for operator in needed for i in operator.inputs)
        self.readers.update(outputs)
        self.next = {i: operator for operator in needed for i in operator.inputs}
        self.padded: dict[int, tuple[int, Shape]] = {}
        for operator in needed:
            self._append(operator)

    def _append(self, operator: TfliteOperator) -> None:
        """Append the module of an operator, or fold it where it only converts a constant."""
        if len(operator.outputs) != 1:
            raise self.error(operator, f"has {len(operator.outputs)} outputs")
        if operator.kind in ("densify", "dequantize"):
            values = self.constant(operator, 0)
            if self.shape(operator.outputs[0]) != values.shape:
                raise self.error(operator, "changes the shape of a constant")
            self.constants[operator.outputs[0]] = values
            return
        module, inputs, shape = getattr(self, f"_{operator.kind}")(operator)
        declared = self.shape(operator.outputs[0])
        if shape != declared:
            raise self.error(operator, f"computes {shape} and the file has {declared}")
        if module is not None:
            self.modules.append(module)
            self.steps.append((inputs, operator.outputs[0]))

    def error(self, operator: TfliteOperator, problem: str) -> DataError:
        """The error of an operator."""
        name = self.graph.tensors[operator.outputs[0]].name if operator.outputs else ""
        return DataError(
            f"{self.graph.path}: operator {operator.kind} ({name!r}) {problem}; use a file of "
            "BlazePose"
        )

    def shape(self, number: int) -> Shape:
        """Shape of a tensor in the file."""
        return self.graph.tensors[number].shape

    def constant(self, operator: TfliteOperator, place: int) -> NDArray[Any]:
        """The constant that an operator has as an input."""
        number = operator.inputs[place] if place < len(operator.inputs) else -1
        if number not in self.constants:
            raise self.error(operator, f"needs a constant as its input {place}")
        return self.constants[number]

    def computed(self, operator: TfliteOperator, count: int, axes: int = 0) -> list[Shape]:
        """Shapes of an operator's first inputs, which are computed and have one image each."""
        numbers = operator.inputs[:count]
        shapes = [self.shape(n) for n in numbers]
        if len(numbers) < count or any(n in self.constants or n < 0 for n in numbers):
            raise self.error(operator, "needs inputs that are computed")
        if any(not s or s[0] != 1 or (axes and len(s) != axes) for s in shapes):
            raise self.error(operator, f"has inputs of the shapes {shapes}")
        return shapes

    def _conv_2d(self, operator: TfliteOperator) -> _Built:
        weight = self.constant(operator, 1)
        if weight.ndim != 4 or weight.shape[3] != self.shape(operator.inputs[0])[-1]:
            raise self.error(operator, f"has weights of the shape {weight.shape}")
        return self._convolution(operator, weight.transpose(0, 3, 1, 2), groups=1)

    def _depthwise_conv_2d(self, operator: TfliteOperator) -> _Built:
        weight = self.constant(operator, 1)
        channels = self.shape(operator.inputs[0])[-1]
        expected = channels * operator.options["multiplier"]
        if weight.ndim != 4 or weight.shape[0] != 1 or weight.shape[3] != expected or expected < 1:
            raise self.error(operator, f"has weights of the shape {weight.shape}")
        return self._convolution(operator, weight.transpose(3, 0, 1, 2), groups=channels)

    def _convolution(
        self, operator: TfliteOperator, weight: NDArray[Any], *, groups: int
    ) -> _Built:
        """A convolution with torch's weights (O, I, rows, columns), and the padding before it."""
        (shape,) = self.computed(operator, 1, 4)
        options, source = operator.options, operator.inputs[0]
        bias = self.constant(operator, 2) if operator.inputs[2:3] not in ((), (-1,)) else None
        if bias is not None and bias.shape != weight.shape[:1]:
            raise self.error(operator, f"has a bias of the shape {bias.shape}")
        extent = [
            (k - 1) * d + 1 for k, d in zip(weight.shape[2:], options["dilation"], strict=True)
        ]
        sides, padding = _window(shape[1:3], extent, options["stride"], options["padding"])
        self._count(operator, shape, weight, sides, padding)
        before: Shape = (0, 0)
        if source in self.padded:
            source, before = self.padded[source]
        module = _Convolution(weight, bias, options, padding, before, groups)
        return module, (source,), (1, *sides, weight.shape[0])

    def _count(
        self,
        operator: TfliteOperator,
        shape: Shape,
        weight: NDArray[Any],
        sides: Shape,
        padding: Shape,
    ) -> None:
        """Add what a convolution costs, and check it: weights, products, padded input."""
        self.weights += weight.size
        self.products += weight.size * math.prod(sides)
        left, right, top, bottom = padding
        padded = (shape[1] + top + bottom) * (shape[2] + left + right) * shape[3]
        columns = math.prod(sides) * shape[3] * math.prod(weight.shape[2:])
        if self.products > MAX_PRODUCTS or self.weights > MAX_CONSTANTS:
            raise self.error(operator, "makes the network larger than any of BlazePose's")
        if padded > MAX_ELEMENTS or columns > MAX_COLUMNS:
            raise self.error(operator, f"has windows of {weight.shape[2:]}, too large")

    def _pad(self, operator: TfliteOperator) -> _Built:
        (shape,) = self.computed(operator, 1, 4)
        pads, output = self.constant(operator, 1), operator.outputs[0]
        if pads.shape != (4, 2) or pads.dtype.kind != "i" or pads.min() < 0 or pads[0].any():
            raise self.error(operator, f"has the padding {pads.ravel()[:8].tolist()}")
        (top, bottom), (left, right), channels = (tuple(row) for row in pads[1:].tolist())
        padded = tuple(side + sum(row) for side, row in zip(shape, pads.tolist(), strict=True))
        following = self.next.get(output)
        if (
            (top, left, *channels) == (bottom, right, 0, 0)
            and self.readers[output] == 1
            and following is not None
            and following.kind in ("conv_2d", "depthwise_conv_2d")
            and following.options["padding"] == "valid"
            and following.inputs[0] == output
        ):
            self.padded[output] = (operator.inputs[0], (top, left))
            return None, (), padded
        return _Pad((left, right, top, bottom, *channels)), operator.inputs[:1], padded

    def _add(self, operator: TfliteOperator) -> _Built:
        first, second = self.computed(operator, 2)
        if first != second:
            raise self.error(operator, f"adds the shapes {first} and {second}")
        return _Add(operator.options["activation"]), operator.inputs[:2], first

    def _concatenation(self, operator: TfliteOperator) -> _Built:
        shapes = self.computed(operator, max(1, len(operator.inputs)))
        axes = len(shapes[0])
        axis = operator.options["axis"] % max(axes, 1)
        others = {(len(s), *s[:axis], *s[axis + 1 :]) for s in shapes}
        if len(others) > 1 or axis == 0 or operator.options["activation"] != "none":
            raise self.error(operator, f"joins the shapes {shapes[:4]} along axis {axis}")
        joined = (*shapes[0][:axis], sum(s[axis] for s in shapes), *shapes[0][axis + 1 :])
        return _Concatenation(_AXES[axis] if axes == 4 else axis), operator.inputs, joined

    def _max_pool_2d(self, operator: TfliteOperator) -> _Built:
        (shape,) = self.computed(operator, 1, 4)
        options = operator.options
        if options["padding"] != "valid" or options["activation"] != "none":
            raise self.error(operator, "has padding or an activation")
        sides, _ = _window(shape[1:3], options["window"], options["stride"], "valid")
        module = nn.MaxPool2d(options["window"], options["stride"])
        return module, operator.inputs[:1], (1, *sides, shape[3])

    def _resize_bilinear(self, operator: TfliteOperator) -> _Built:
        (shape,) = self.computed(operator, 1, 4)
        sides = tuple(self.constant(operator, 1).ravel().tolist())
        if len(sides) != 2 or operator.options != {"align_corners": False, "half_pixel": True}:
            raise self.error(operator, "does not resize by the centres of pixels")
        return _Resize(sides), operator.inputs[:1], (1, *sides, shape[3])

    def _reshape(self, operator: TfliteOperator) -> _Built:
        (shape,) = self.computed(operator, 1)
        target = self.shape(operator.outputs[0])
        if math.prod(shape) != math.prod(target) or target[:1] != (1,):
            raise self.error(operator, f"turns {shape} into {target}")
        return _Reshape(target), operator.inputs[:1], target

    def _depth_to_space(self, operator: TfliteOperator) -> _Built:
        (shape,) = self.computed(operator, 1, 4)
        block = operator.options["block"]
        if shape[3] % block**2:
            raise self.error(operator, f"splits {shape[3]} channels into blocks of {block}")
        sides = (shape[1] * block, shape[2] * block)
        return _DepthToSpace(block), operator.inputs[:1], (1, *sides, shape[3] // block**2)

    def _logistic(self, operator: TfliteOperator) -> _Built:
        (shape,) = self.computed(operator, 1)
        return nn.Sigmoid(), operator.inputs[:1], shape


_AXES = (0, 2, 3, 1)
"""Axis of torch's (B, C, H, W) for each axis of the file's (B, H, W, C)."""


def _needed(graph: TfliteGraph, outputs: Shape) -> list[TfliteOperator]:
    """Operators that the chosen outputs need, in order."""
    wanted, found = set(outputs), []
    for operator in reversed(graph.operators):
        if wanted & set(operator.outputs):
            wanted |= set(operator.inputs)
            found.append(operator)
    return found[::-1]


def _window(
    sides: Sequence[int], extent: Sequence[int], stride: Sequence[int], padding: str
) -> tuple[Shape, Shape]:
    """Sides of the output of a window that moves, and padding (left, right, top, bottom).

    Convention:
        With `same` a side is that of the input over the stride, rounded up; an odd pixel of padding
        comes after the input, where torch's own option puts it before.
    """
    if padding == "valid":
        found = tuple((n - k) // s + 1 for n, k, s in zip(sides, extent, stride, strict=True))
        return found, (0, 0, 0, 0)
    found = tuple(-(-n // s) for n, s in zip(sides, stride, strict=True))
    totals = [
        max((m - 1) * s + k - n, 0) for m, s, k, n in zip(found, stride, extent, sides, strict=True)
    ]
    (top, left), (bottom, right) = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return found, (left, right, top, bottom)


def _activate(x: Tensor, activation: str) -> Tensor:
    """The activation, in place: the tensor was just computed and nobody else has it."""
    if activation == "relu6":
        return x.clamp_(0, 6)
    if activation == "relu":
        return x.relu_()
    return x.clamp_(-1, 1) if activation == "relu_n1_to_1" else x


class _Convolution(nn.Module):
    """A convolution with the activation after it."""

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        weight: NDArray[Any],
        bias: NDArray[Any] | None,
        options: dict[str, Any],
        padding: Shape,
        before: Shape,
        groups: int,
    ) -> None:
        super().__init__()
        kept = torch.from_numpy(np.array(weight, np.float32, order="C"))
        self.register_buffer("weight", kept.contiguous(memory_format=torch.channels_last))
        self.register_buffer(
            "bias", None if bias is None else torch.from_numpy(np.array(bias, np.float32))
        )
        left, right, top, bottom = padding
        self.odd = () if (left, top) == (right, bottom) else padding
        self.padding = before if self.odd else (before[0] + top, before[1] + left)
        self.stride, self.dilation, self.groups = options["stride"], options["dilation"], groups
        self.activation = options["activation"]

    def forward(self, x: Tensor) -> Tensor:
        if self.odd:
            x = functional.pad(x, self.odd)
        x = functional.conv2d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )
        return _activate(x, self.activation)


class _Pad(nn.Module):
    """Zeros around an image or after its channels."""

    def __init__(self, padding: Shape) -> None:
        super().__init__()
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x, self.padding)


class _Add(nn.Module):
    """A sum with the activation after it."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return _activate(x + y, self.activation)


class _Concatenation(nn.Module):
    """Tensors joined along an axis."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *parts: Tensor) -> Tensor:
        return torch.cat(parts, self.axis)


class _Resize(nn.Module):
    """Images resized bilinearly."""

    def __init__(self, sides: Shape) -> None:
        super().__init__()
        self.sides = list(sides)

    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(x, self.sides, mode="bilinear", align_corners=False)


class _Reshape(nn.Module):
    """Another shape for the same numbers, in the order that they have in the file."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1) if x.ndim == 4 else x
        x = x.reshape(len(x), *self.shape[1:])
        return x.permute(0, 3, 1, 2) if x.ndim == 4 else x


class _DepthToSpace(nn.Module):
    """Blocks of pixels made of channels, which torch's pixel shuffle takes in another order."""

    def __init__(self, block: int) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        (b, c, h, w), n = x.shape, self.block
        x = x.reshape(b, n, n, c // n**2, h, w).permute(0, 3, 4, 1, 5, 2)
        return x.reshape(b, c // n**2, h * n, w * n).contiguous(memory_format=torch.channels_last)
