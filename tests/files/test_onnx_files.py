import random

import pytest

from pipeline.errors import DataError
from pipeline.files import onnx_files as reader
from pipeline.files.onnx_files import read_onnx

pytest.importorskip("onnx", reason="onnx, which makes the files, is not installed")

import numpy as np
import onnx
import onnx_files
from onnx import TensorProto, helper


@pytest.fixture
def path(tmp_path):
    return onnx_files.heatmaps(tmp_path / "net.onnx", width=16, height=32)


def test_a_whole_file_is_read(path):
    file = read_onnx(path)
    assert file.data == path.read_bytes()
    assert len(file.digest) == 64


def outside(name="weights"):
    """A tensor whose numbers are in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1])
    tensor.external_data.add(key="location", value="../secret")
    tensor.data_location = TensorProto.EXTERNAL
    return tensor


def in_initializer(model):
    model.graph.initializer.append(outside())


def in_attribute(model):
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=outside()))


def in_branch(model):
    branch = helper.make_graph([], "branch", [], [], [outside()])
    model.graph.node.append(helper.make_node("If", ["a"], ["b"], then_branch=branch))


def in_sparse_tensor(model):
    model.graph.sparse_initializer.add().indices.CopyFrom(outside())


def in_function(model):
    node = helper.make_node("Constant", [], ["c"], value=outside())
    model.functions.append(helper.make_function("d", "f", [], ["c"], [node], []))


def by_location_alone(model):
    tensor = outside()
    tensor.ClearField("external_data")
    model.graph.initializer.append(tensor)


@pytest.mark.parametrize(
    "place",
    [in_initializer, in_attribute, in_branch, in_sparse_tensor, in_function, by_location_alone],
)
def test_numbers_in_another_file_are_refused_wherever_the_tensor_is(path, place):
    model = onnx.load(path)
    place(model)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(DataError, match=r"has its weights in another file; save it as one file"):
        read_onnx(path)


def test_a_tensor_with_more_numbers_than_bytes_is_refused(path):
    model = onnx.load(path)
    tensor = TensorProto(
        name="x", data_type=TensorProto.FLOAT, dims=[1 << 31, 1 << 31], raw_data=b"1"
    )
    model.graph.initializer.append(tensor)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(DataError, match=f"has {1 << 62} numbers"):
        read_onnx(path)


def test_loops_and_files_compiled_for_a_device_are_refused(path):
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("EPContext", [], ["c"], domain="com.microsoft"))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(DataError, match="compiled for one device"):
        read_onnx(path)
    model.graph.node[-1].op_type = "Loop"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(DataError, match="has a loop, which may never end"):
        read_onnx(path)
    path.write_bytes(b"\0\0\0\0ORTM" + bytes(100))
    with pytest.raises(DataError, match="in the format of one onnxruntime"):
        read_onnx(path)


def test_graphs_nested_too_deep_are_refused(path):
    graph = helper.make_graph([], "g", [], [])
    for _ in range(30):
        graph = helper.make_graph(
            [helper.make_node("If", ["a"], ["b"], then_branch=graph)], "g", [], []
        )
    path.write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(DataError, match="nested too deep"):
        read_onnx(path)


def test_a_file_of_very_many_fields_is_refused(path, monkeypatch):
    monkeypatch.setattr(reader, "MAX_FIELDS", 20)
    with pytest.raises(DataError, match="has more than 20 fields"):
        read_onnx(path)


@pytest.mark.parametrize(
    "data", [b"\x3a", b"\x3a\x05abc", b"\xff" * 40, b"\x0b\x00", b"{}", b"\x08\x08"]
)
def test_what_is_no_onnx_file_is_one_line(path, data):
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"net\.onnx: is no ONNX file, or damaged") as raised:
        read_onnx(path)
    assert "\n" not in str(raised.value)


def damaged(data, seed):
    """The file cut off, with a flipped bit, with random bytes in it, or nothing but these."""
    rng = random.Random(seed)
    place = rng.randrange(len(data))
    if seed % 4 == 0:
        return data[:place] or b"\0"
    if seed % 4 == 1:
        return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]
    if seed % 4 == 2:
        return data[:place] + rng.randbytes(8) + data[place + 8 :]
    return rng.randbytes(200)


def test_damaged_files_are_one_line_or_still_a_network(path, capfd):
    """Also in onnxruntime, for what the reader lets pass; it prints nothing of its own."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra `onnx`)")
    from pipeline.errors import HeatliftError
    from pipeline.predict.onnx_estimators import load_onnx

    data, lines = path.read_bytes(), []
    crop = np.array([[7.5, 15.5, 32, 0]])
    for seed in range(400):
        path.write_bytes(damaged(data, seed))
        try:
            found = load_onnx(path, "cpu").estimate(np.zeros((32, 16, 3), np.uint8), crop)
            assert np.isfinite(found.joints2d).all()
        except HeatliftError as error:
            lines.append(str(error))
    assert len(lines) > 250
    assert not any("\n" in line for line in lines)
    assert capfd.readouterr() == ("", "")
