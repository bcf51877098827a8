"""Operators of TensorFlow Lite in torch, against numbers worked out by hand and plain loops."""

import itertools
import time

import numpy as np
import pytest
import torch
from malformed import error_line
from tflite_files import Graph, window

from pipeline.errors import DataError
from pipeline.files.tflite import read_tflite
from pipeline.predict.tflite_network import TfliteNetwork

IMAGE = np.random.default_rng(4).normal(size=(5, 7, 3)).astype(np.float32)


def network(graph, path, *outputs, chosen=None):
    return TfliteNetwork(read_tflite(graph.save(path / "a.tflite", *outputs)), chosen).eval()


def run(graph, path, output, image=IMAGE):
    """The output for an image (H, W, C), channels last as in the file."""
    (found,) = network(graph, path, output)(torch.tensor(image).permute(2, 0, 1)[None])
    return (found[0].permute(1, 2, 0) if found.ndim == 4 else found[0]).numpy()


def convolve(image, weight, *, stride=(1, 1), same=True, dilation=(1, 1), groups=1):
    """A convolution as TensorFlow defines it, by loops; weight (O, rows, columns, I)."""
    stride, dilation = np.array(stride), np.array(dilation)
    sides, extent = np.array(image.shape[:2]), (np.array(weight.shape[1:3]) - 1) * dilation + 1
    if same:
        shape = -(-sides // stride)
        total = np.maximum((shape - 1) * stride + extent - sides, 0)
        image = np.pad(image, [*((t // 2, t - t // 2) for t in total), (0, 0)])
    else:
        shape = (sides - extent) // stride + 1
    found = np.zeros((*shape, len(weight)), np.float64)
    each, per = image.shape[2] // groups, len(weight) // groups
    for y, x, o in itertools.product(*map(range, found.shape)):
        top, left = (y, x) * stride
        part = image[top : top + extent[0] : dilation[0], left : left + extent[1] : dilation[1]]
        found[y, x, o] = (part[..., o // per * each :][..., :each] * weight[o]).sum()
    return found


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (5, 5), (2, 4), (3, 2)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (2, 3)])
@pytest.mark.parametrize("padding", [0, 1])
def test_a_convolution_is_that_of_tensorflow(size, stride, padding, tmp_path):
    weight = np.random.default_rng(1).normal(size=(4, *size, 3)).astype(np.float32)
    expected = convolve(IMAGE, weight, stride=stride, same=not padding)
    expected += np.array([1, -2, 3, 0])
    graph = Graph(1, *IMAGE.shape)
    inputs = [0, graph.constant(weight), graph.constant([1, -2, 3, 0])]
    output = graph.add("conv_2d", inputs, (1, *expected.shape), window(padding, stride))
    np.testing.assert_allclose(run(graph, tmp_path, output), expected, atol=1e-5)


@pytest.mark.parametrize(("multiplier", "dilation"), [(1, (1, 1)), (2, (1, 1)), (1, (1, 2))])
def test_a_depthwise_convolution_is_that_of_tensorflow(multiplier, dilation, tmp_path):
    weight = np.random.default_rng(1).normal(size=(1, 3, 3, 3 * multiplier)).astype(np.float32)
    expected = convolve(IMAGE, weight.transpose(3, 1, 2, 0), dilation=dilation, groups=3)
    graph = Graph(1, *IMAGE.shape)
    options = {0: ("b", 0), 1: ("i", 1), 2: ("i", 1), 3: ("i", multiplier), 4: ("b", 3)}
    options |= {5: ("i", dilation[1]), 6: ("i", dilation[0])}
    inputs = [0, graph.constant(weight), -1]
    output = graph.add("depthwise_conv_2d", inputs, (1, *expected.shape), options)
    np.testing.assert_allclose(run(graph, tmp_path, output), expected.clip(0, 6), atol=1e-5)


@pytest.mark.parametrize("read_again", [False, True])
@pytest.mark.parametrize("pads", [[1, 1, 2, 2], [0, 2, 1, 0]])
def test_padding_before_a_convolution_becomes_part_of_it_where_it_can(pads, read_again, tmp_path):
    weight = np.random.default_rng(1).normal(size=(2, 3, 3, 3)).astype(np.float32)
    padded = np.pad(IMAGE, [pads[:2], pads[2:], (0, 0)])
    expected = convolve(padded, weight, same=False)
    graph = Graph(1, *IMAGE.shape)
    rows = graph.constant([[0, 0], pads[:2], pads[2:], [0, 0]], "int32")
    middle = graph.add("pad", [0, rows], (1, *padded.shape))
    output = graph.add(
        "conv_2d", [middle, graph.constant(weight), -1], (1, *expected.shape), window(1)
    )
    outputs = (output, middle) if read_again else (output,)
    net = network(graph, tmp_path, *outputs)
    assert len(net.operators) == (1 if pads[0] == pads[1] and not read_again else 2)
    found = net(torch.tensor(IMAGE).permute(2, 0, 1)[None])
    np.testing.assert_allclose(found[0][0].permute(1, 2, 0), expected, atol=1e-5)


def test_channels_are_padded_after_the_others(tmp_path):
    graph = Graph(1, 1, 2, 1)
    rows = graph.constant([[0, 0], [1, 0], [0, 1], [0, 2]], "int32")
    output = graph.add("pad", [0, rows], (1, 2, 3, 3))
    found = run(graph, tmp_path, output, np.float32([[[5], [7]]]))
    assert found[0].tolist() == [[0, 0, 0]] * 3
    assert found[1].tolist() == [[5, 0, 0], [7, 0, 0], [0, 0, 0]]


def test_resizing_goes_by_the_centres_of_pixels(tmp_path):
    graph = Graph(1, 1, 2, 1)
    size = graph.constant([1, 4], "int32")
    output = graph.add("resize_bilinear", [0, size], (1, 1, 4, 1), {3: ("B", 1)})
    found = run(graph, tmp_path, output, np.float32([[[0], [8]]]))
    assert found.ravel().tolist() == [0, 2, 6, 8]


def test_depth_becomes_space_block_by_block(tmp_path):
    graph = Graph(1, 1, 1, 8)
    output = graph.add("depth_to_space", [0], (1, 2, 2, 2), {0: ("i", 2)})
    found = run(graph, tmp_path, output, np.arange(8, dtype=np.float32).reshape(1, 1, 8))
    assert found.tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]


def test_a_new_shape_keeps_the_order_of_the_file(tmp_path):
    image = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    graph = Graph(1, 2, 2, 3)
    flat = graph.add("reshape", [0, graph.constant([1, -1], "int32")], (1, 12))
    output = graph.add("reshape", [flat], (1, 1, 4, 3))
    assert run(graph, tmp_path, flat, image).tolist() == list(range(12))
    assert run(graph, tmp_path, output, image).ravel().tolist() == list(range(12))


def test_joining_pooling_adding_and_activations(tmp_path):
    image = np.float32([[[1, -2], [3, 8]], [[2, 0], [-1, 4]]])
    graph = Graph(1, 2, 2, 2)
    doubled = graph.add("add", [0, 0], (1, 2, 2, 2), {0: ("b", 3)})
    joined = graph.add("concatenation", [doubled, 0], (1, 2, 2, 4), {0: ("i", 3)})
    options = {0: ("b", 1), 1: ("i", 2), 2: ("i", 2), 3: ("i", 2), 4: ("i", 2)}
    output = graph.add("max_pool_2d", [joined], (1, 1, 1, 4), options)
    share = graph.add("logistic", [output], (1, 1, 1, 4))
    assert run(graph, tmp_path, output, image).ravel().tolist() == [6, 6, 3, 8]
    np.testing.assert_allclose(
        run(graph, tmp_path, share, image).ravel(), 1 / (1 + np.exp(-np.array([6, 6, 3, 8]))), 1e-6
    )


def test_constants_are_converted_once_and_dead_operators_left_out(tmp_path):
    graph = Graph(1, 1, 1, 2)
    half = graph.constant([[[[1.5, -2.0]]]], "float16")
    weight = graph.add("dequantize", [half], (1, 1, 1, 2))
    graph.add("logistic", [0], (1, 1, 1, 2))
    output = graph.add("conv_2d", [0, weight, -1], (1, 1, 1, 1), window())
    net = network(graph, tmp_path, 3, output, chosen=[1])
    assert len(net.operators) == 1
    assert net(torch.tensor([[[[3.0]], [[5.0]]]]))[0].item() == 3 * 1.5 - 5 * 2


def test_the_batch_changes_no_bit_of_an_image(tmp_path):
    weight = np.random.default_rng(1).normal(size=(16, 3, 3, 3))
    graph = Graph(1, *IMAGE.shape)
    output = graph.add("conv_2d", [0, graph.constant(weight), -1], (1, 5, 7, 16), window())
    net = network(graph, tmp_path, output)
    images = torch.randn(5, 3, 5, 7)
    (whole,) = net(images)
    assert all(torch.equal(net(images[i : i + 1])[0][0], whole[i]) for i in range(5))
    assert net(images[:0])[0].shape == (0, 16, 5, 7)


def wrong(name):
    """A graph with one operator that does not fit, and what the line has about it."""
    graph = Graph(1, 4, 4, 2)
    thick, wide = graph.constant(np.ones((3, 1, 1, 5))), graph.constant(np.ones((3, 1, 1, 2)))
    long = graph.constant(np.ones((1, 60, 60, 2)))
    depthwise = {0: ("b", 0), 1: ("i", 1), 2: ("i", 1), 3: ("i", 3)}
    square = {0: ("b", 1), 1: ("i", 1), 2: ("i", 1), 3: ("i", 9), 4: ("i", 9)}
    spread = window() | {4: ("i", 64), 5: ("i", 64)}
    one, negative = [1, 0, 0, 0], [[0, 0], [-1, 0], [0, 0], [0, 0]]
    graph.add(
        *{
            "weights of the shape": ("conv_2d", [0, thick, -1], (1, 4, 4, 3), window()),
            "weights of the shape ": ("depthwise_conv_2d", [0, wide, -1], (1, 4, 4, 6), depthwise),
            "computes": ("conv_2d", [0, wide, -1], (1, 4, 5, 3), window()),
            "bias of the shape": ("conv_2d", [0, wide, wide], (1, 4, 4, 3), window()),
            "too large": ("conv_2d", [0, long, -1], (1, 4, 4, 1), spread),
            "needs a constant": ("conv_2d", [0, 0], (1, 4, 4, 3), window()),
            "needs inputs that are computed": ("logistic", [wide], (3, 1, 1, 2)),
            "has the padding": ("pad", [0, graph.constant(negative, "int32")], (1, 3, 4, 2)),
            "has the padding ": ("pad", [0, graph.constant(one, "int32")], (1, 4, 4, 2)),
            "along axis": ("concatenation", [0, 0], (2, 4, 4, 2), {0: ("i", 0)}),
            "centres of pixels": (
                "resize_bilinear",
                [0, graph.constant([8, 8], "int32")],
                (1, 8, 8, 2),
            ),
            "turns": ("reshape", [0], (1, 33)),
            "splits 2 channels": ("depth_to_space", [0], (1, 8, 8, 1), {0: ("i", 2)}),
            "computes ": ("max_pool_2d", [0], (1, 1, 1, 2), square),
        }[name]
    )
    return graph


@pytest.mark.parametrize("line", [
    "weights of the shape", "weights of the shape ", "computes", "bias of the shape", "too large",
    "needs a constant", "needs inputs that are computed", "has the padding", "has the padding ",
    "along axis", "centres of pixels", "turns", "splits 2 channels", "computes ",
])  # fmt: skip
def test_an_operator_that_does_not_fit_is_one_line(line, tmp_path):
    graph = wrong(line)
    with pytest.raises(DataError, match=rf"a\.tflite: operator .*{line.strip()}") as caught:
        network(graph, tmp_path, len(graph.tensors) - 1)
    assert "\n" not in str(caught.value)


def test_a_graph_that_costs_more_than_blazepose_is_one_line(tmp_path):
    graph = Graph(1, 256, 256, 64)
    weight, last = graph.constant(np.ones((64, 5, 5, 64), np.float16), "float16"), 0
    for _ in range(4):  # 6.7e9 products each
        last = graph.add("conv_2d", [last, weight, -1], (1, 256, 256, 64), window())
    with pytest.raises(DataError, match="larger than any of BlazePose's"):
        network(graph, tmp_path, last)


def test_changed_bytes_end_in_one_line_or_a_network_that_runs(tmp_path):
    graph = Graph(1, 8, 8, 3)
    rng = np.random.default_rng(0)
    weight = graph.constant(rng.normal(size=(8, 3, 3, 3)), "float16")
    rows = graph.constant([[0, 0], [1, 1], [1, 1], [0, 0]], "int32")
    padded = graph.add("pad", [0, rows], (1, 10, 10, 3))
    dense = graph.add("dequantize", [weight], (8, 3, 3, 3))
    first = graph.add("conv_2d", [padded, dense, -1], (1, 4, 4, 8), window(1, (2, 2), 3))
    output = graph.add("reshape", [first], (1, 128))
    data, lines, start = graph.bytes(output), [], time.process_time()

    def read_and_run():
        net = TfliteNetwork(read_tflite(tmp_path / "a.tflite"))
        shape = net.shape
        net(torch.zeros(1, shape[3], *shape[1:3]))

    for _ in range(300):
        damaged = np.frombuffer(data, np.uint8).copy()
        damaged[rng.integers(8, len(data), rng.integers(1, 4))] ^= np.uint8(1 << rng.integers(8))
        (tmp_path / "a.tflite").write_bytes(damaged.tobytes())
        lines.append(error_line(read_and_run))
    errors = [line for line in lines if line]
    assert len(errors) > 100
    assert all("a.tflite: " in line and "\n" not in line for line in errors)
    assert time.process_time() - start < 60
