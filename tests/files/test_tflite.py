"""TensorFlow Lite files: read as written; damaged and hostile ones end in one line."""

import time

import numpy as np
import pytest
from malformed import error_line
from tflite_files import Graph, Table, numbers, window

from pipeline.errors import DataError
from pipeline.files import tflite
from pipeline.files.tflite import read_tflite


def small(weights=(1.0, -2.5, 3.0, 0.5), dtype="float32"):
    """A convolution of 1 x 1 x 2 -> 2 channels, and its graph."""
    graph = Graph(1, 4, 3, 2)
    weight = graph.constant(np.reshape(weights, (2, 1, 1, 2)), dtype)
    bias = graph.constant([0.25, -1.0])
    output = graph.add("conv_2d", [0, weight, bias], (1, 2, 3, 2), window(1, (2, 1), 3))
    return graph, output


def test_a_graph_is_read_as_it_was_written(tmp_path):
    graph, output = small()
    found = read_tflite(graph.save(tmp_path / "a.tflite", output))
    assert (found.inputs, found.outputs) == ((0,), (output,))
    assert [t.shape for t in found.tensors] == [(1, 4, 3, 2), (2, 1, 1, 2), (2,), (1, 2, 3, 2)]
    assert found.tensors[1].values.tolist() == [[[[1.0, -2.5]]], [[[3.0, 0.5]]]]
    assert found.tensors[0].values is None
    (operator,) = found.operators
    assert (operator.kind, operator.inputs, operator.outputs) == ("conv_2d", (0, 1, 2), (3,))
    expected = {"padding": "valid", "stride": (2, 1), "activation": "relu6", "dilation": (1, 1)}
    assert operator.options == expected


def test_constants_cannot_be_changed_and_keep_their_type(tmp_path):
    graph, output = small(dtype="float16")
    values = read_tflite(graph.save(tmp_path / "a.tflite", output)).tensors[1].values
    assert values.dtype == np.float16
    with pytest.raises(ValueError, match="read-only"):
        values[0] = 1


def test_a_sparse_constant_has_its_zeros(tmp_path):
    graph = Graph(1, 1, 1, 4)
    weight = graph.sparse([1.5, -2.0, 3.0], (3, 1, 1, 4), [0, 2, 2, 3], [1, 3, 0])
    dense = graph.add("densify", [weight], (3, 1, 1, 4))
    graph.add("conv_2d", [0, dense], (1, 1, 1, 3), window())
    found = read_tflite(graph.save(tmp_path / "a.tflite", 3)).tensors[weight].values
    assert found[:, 0, 0].tolist() == [[0, 1.5, 0, -2.0], [0, 0, 0, 0], [3.0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("segments", "indices"),
    [
        ([0, 2, 2, 4], [1, 3, 0]),
        ([0, 2, 1, 3], [1, 3, 0]),
        ([1, 2, 2, 3], [1, 3, 0]),
        ([0, 2, 2, 3], [1, 4, 0]),
        ([0, 2, 2, 3], [3, 1, 0]),
        ([0, 2, 2, 3], [1, 1, 0]),
        ([0, 2, 3], [1, 3, 0]),
        ([0, 2, 2, 3], [1, 3]),
    ],
)
def test_sparse_rows_that_do_not_fit_are_one_line(segments, indices, tmp_path):
    graph = Graph(1, 1, 1, 4)
    graph.sparse([1.5, -2.0, 3.0], (3, 1, 1, 4), segments, indices)
    with pytest.raises(DataError, match=r"a\.tflite: tensor 1 .*sparse rows"):
        read_tflite(graph.save(tmp_path / "a.tflite", 0))


def change(slot, value, tensor=0):
    def apply(graph):
        graph.tensors[tensor].fields[slot] = value

    return apply


def unknown_operator(graph):
    graph.add(9, [0], (1, 4, 3, 2))


def read_too_early(graph):
    graph.operators[0].fields[1] = numbers([3, 1, 2])


def written_twice(graph):
    graph.add("logistic", [3], (1, 2, 3, 2))
    graph.operators[1].fields[2] = numbers([3])


def no_stride(graph):
    graph.operators[0].fields[4] = Table(window(1, (0, 1)))


def external(graph):
    graph.buffers[1].fields[1] = ("Q", 4096)


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (unknown_operator, "uses operator 9; BlazePose needs only add, "),
        (change(1, ("b", 4)), r"tensor 0 \('x'\) has numbers of type 4; only float32"),
        (change(2, ("I", 7)), "names buffer 7 of 3"),
        (change(0, numbers([1, 4, 3, 0])), r"has the shape \(1, 4, 3, 0\)"),
        (change(0, numbers([1, -4, 3, 2])), r"has the shape \(1, -4, 3, 2\)"),
        (change(0, numbers([1, 60000, 60000, 2])), "too large"),
        (change(0, numbers([1] * 7)), "has 7 elements, too many"),
        (change(0, numbers([60000, 60000, 2, 2]), tensor=1), "too many constants"),
        (change(0, numbers([2, 1, 1, 3]), tensor=1), "and 16 bytes"),
        (external, "outside the flatbuffer"),
        (read_too_early, "conv_2d: tensor 3 is misused"),
        (written_twice, "logistic: tensor 3 is misused"),
        (no_stride, r"of \(0, 1\)"),
    ],
)
def test_a_file_with_a_wrong_part_is_one_line(damage, line, tmp_path):
    graph, output = small()
    damage(graph)
    path = graph.save(tmp_path / "a.tflite", output)
    with pytest.raises(DataError, match=rf"^{path}: .*{line}") as caught:
        read_tflite(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weight", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_one_line(weight, tmp_path):
    graph, output = small((1.0, weight, 0.0, 0.0))
    with pytest.raises(DataError, match="weights that are not finite"):
        read_tflite(graph.save(tmp_path / "a.tflite", output))


def test_other_files_are_one_line(tmp_path):
    for content in (b"PK\x03\x04 a zip file", b"TFL3", b"\0" * 40):
        (tmp_path / "a.tflite").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.tflite: is no TensorFlow Lite file"):
            read_tflite(tmp_path / "a.tflite")


def test_constants_that_share_their_bytes_count_each(tmp_path, monkeypatch):
    monkeypatch.setattr(tflite, "MAX_CONSTANTS", 9)
    graph, output = small()
    assert read_tflite(graph.save(tmp_path / "a.tflite", output))
    graph.tensors.append(graph.tensors[1])
    with pytest.raises(DataError, match="too many constants"):
        read_tflite(graph.save(tmp_path / "a.tflite", output))


def test_a_file_that_ends_early_is_one_line_or_whole(tmp_path):
    graph, output = small()
    data = graph.bytes(output)
    whole = len(data) - 8  # the writer ends with padding
    for end in range(8, whole):
        (tmp_path / "a.tflite").write_bytes(data[:end])
        line = error_line(lambda: read_tflite(tmp_path / "a.tflite"))
        assert line is not None, end
        assert "a.tflite: " in line
        assert "\n" not in line


def test_changed_bytes_end_in_one_line_or_a_graph(tmp_path):
    graph, output = small()
    data, rng = graph.bytes(output), np.random.default_rng(0)
    lines, start = [], time.process_time()
    for _ in range(300):
        damaged = np.frombuffer(data, np.uint8).copy()
        for place in rng.integers(8, len(data), rng.integers(1, 4)):
            damaged[place] ^= np.uint8(1 << rng.integers(8))
        (tmp_path / "a.tflite").write_bytes(damaged.tobytes())
        lines.append(error_line(lambda: read_tflite(tmp_path / "a.tflite")))
    errors = [line for line in lines if line]
    assert len(errors) > 150
    assert all("a.tflite: " in line and "\n" not in line for line in errors)
    assert time.process_time() - start < 30


def test_the_person_detector_is_read(shared):
    found = read_tflite(shared / "data" / "blazepose" / "pose_detection.tflite")
    assert found.digest.startswith("9ba9dd3d")
    assert [found.tensors[n].shape for n in found.outputs] == [(1, 2254, 12), (1, 2254, 1)]
    sparse = [o for o in found.operators if o.kind == "densify"]
    shares = [np.mean(found.tensors[o.inputs[0]].values == 0) for o in sparse]
    assert len(sparse) == 38
    assert 0.3 < np.mean(shares) < 0.95


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pose_detection", "pose_landmark_full"])
def test_changed_bytes_of_a_real_file_end_in_one_line_or_a_graph(name, shared, tmp_path):
    data = np.fromfile(shared / "data" / "blazepose" / f"{name}.tflite", np.uint8)
    rng, lines = np.random.default_rng(0), []
    for _ in range(150):
        damaged = data.copy()
        first, last = (0, 2**15) if rng.random() < 0.5 else (len(data) - 2**17, len(data))
        for place in rng.integers(first, last, rng.integers(1, 40)):
            damaged[place] ^= np.uint8(1 << rng.integers(8))
        if rng.random() < 0.1:
            damaged = damaged[: rng.integers(1, len(data))]
        damaged.tofile(tmp_path / "a.tflite")
        start = time.process_time()
        lines.append(error_line(lambda: read_tflite(tmp_path / "a.tflite")))
        assert time.process_time() - start < 5
    errors = [line for line in lines if line]
    assert len(errors) > 30
    assert all("a.tflite: " in line and "\n" not in line for line in errors)
