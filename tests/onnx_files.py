"""Tiny ONNX files whose joints are where the image has its brightest pixels."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper


def write(path, nodes, inputs, outputs, constants=(), metadata=None):
    """Write a graph of opset 17; inputs and outputs are name -> shape."""

    def ports(table):
        return [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, s) for name, s in table.items()
        ]

    tensors = [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in dict(constants).items()]
    graph = helper.make_graph(nodes, "tiny", ports(inputs), ports(outputs), tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if metadata:
        helper.set_model_props(model, metadata)
    path.write_bytes(model.SerializeToString())
    return path


def channel_pick(joints):
    """Weights that give joint 0 channel 0, joint 1 channel 1, joint 2 channel 2, joint 3 …."""
    return np.eye(3, dtype=np.float32)[np.arange(joints) % 3].reshape(joints, 3, 1, 1)


def simcc(path, *, width=192, height=256, joints=17, batch="batch", sides=None, metadata=None):
    """Bins at twice the pixel of the highest value of channel j % 3 of the input."""
    nodes = [
        helper.make_node("Conv", ["input", "pick"], ["maps"]),
        helper.make_node("ReduceMax", ["maps"], ["columns"], axes=[2], keepdims=0),
        helper.make_node("ReduceMax", ["maps"], ["rows"], axes=[3], keepdims=0),
        *(
            node
            for name, axis in (("x", "columns"), ("y", "rows"))
            for node in (
                helper.make_node("Unsqueeze", [axis, "last"], [f"{axis}1"]),
                helper.make_node("Mul", [f"{axis}1", "even"], [f"{axis}2"]),
                helper.make_node("Reshape", [f"{axis}2", f"shape_{name}"], [f"simcc_{name}"]),
            )
        ),
    ]
    constants = {
        "pick": channel_pick(joints),
        "last": np.array([3]),
        "even": np.array([0.25, 0.0], np.float32),  # a pixel's even bin; scores below 1
        "shape_x": np.array([-1, joints, 2 * width]),
        "shape_y": np.array([-1, joints, 2 * height]),
    }
    inputs = {"input": [batch, 3, *(sides or (height, width))]}
    outputs = {
        "simcc_x": [batch, joints, 2 * width],
        "simcc_y": [batch, joints, 2 * height],
    }
    return write(path, nodes, inputs, outputs, constants, metadata)


def heatmaps(path, *, width=48, height=64, joints=17, batch="batch", sides=None, metadata=None):
    """Maps of the mean of each 4 x 4 pixels of channel j % 3 of the input."""
    nodes = [
        helper.make_node("Conv", ["input", "pick"], ["full"]),
        helper.make_node("AveragePool", ["full"], ["maps"], kernel_shape=[4, 4], strides=[4, 4]),
    ]
    return write(
        path,
        nodes,
        {"input": [batch, 3, *(sides or (height, width))]},
        {
            "maps": [batch, joints, height // 4, width // 4]
            if sides is None
            else [batch, joints, "h", "w"]
        },
        {"pick": channel_pick(joints)},
        metadata,
    )


def constants_of(path, outputs, *, size=(640, 640), batch=1, metadata=None, check=None):
    """A file that gives constants, whatever the image.

    Args:
        path: The file.
        outputs: Name -> array.
        size: Width and height of the input.
        batch: Batch size.
        metadata: Key -> text.
        check: Channel, row and column of a pixel of the input, and a factor: the last number of the
            last output gets the pixel times the factor.
    """
    width, height = size
    nodes, tensors, shapes = [], {}, {}
    for name, array in outputs.items():
        tensors[f"c_{name}"] = np.asarray(array, np.float32)
        shapes[name] = list(np.shape(array))
    channel, row, column, factor = check or (0, 0, 0, 0)
    tensors |= {
        "low": np.array([channel, row, column]),
        "high": np.array([channel + 1, row + 1, column + 1]),
        "axes": np.array([1, 2, 3]),
        "one": np.array([1]),
    }
    nodes.append(helper.make_node("Slice", ["images", "low", "high", "axes"], ["pixel4"]))
    nodes.append(helper.make_node("Reshape", ["pixel4", "one"], ["pixel"]))
    for name, array in outputs.items():
        mask = np.zeros(np.shape(array), np.float32)
        if check and name == list(outputs)[-1]:
            mask.reshape(-1)[-1] = factor
        tensors[f"m_{name}"] = mask
        nodes.append(helper.make_node("Mul", [f"m_{name}", "pixel"], [f"p_{name}"]))
        nodes.append(helper.make_node("Add", [f"c_{name}", f"p_{name}"], [name]))
    inputs = {"images": [batch, 3, height, width]}
    return write(path, nodes, inputs, shapes, tensors, metadata)
