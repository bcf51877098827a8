"""Files of torch that two readers would read differently, or that would take much memory."""

import io
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict

import pytest
import torch
from ambiguous import KINDS, ambiguous, archive
from malformed import error_line
from torch import nn

from pipeline.files.foreign_torch import read_foreign_torch
from pipeline.files.torch_files import read_checkpoint

VERSION = ("a/version", b"3\n")  # a member that torch wants


def pickled(word):
    return pickle.dumps({"state_dict": {}, "word": word}, 2)


def write(path, data):
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("read", [read_checkpoint, read_foreign_torch])
def test_an_archive_that_two_readers_read_differently_is_rejected(tmp_path, kind, read):
    data = ambiguous(pickled("checked"), pickled("unchecked"))[kind]
    line = error_line(lambda: read(write(tmp_path / "a.ckpt", data)))
    assert line is not None
    assert line.startswith(f"{tmp_path / 'a.ckpt'}: ")


def test_torch_itself_takes_the_member_that_a_check_by_name_does_not_see(tmp_path):
    data = ambiguous(pickled("checked"), pickled("unchecked"))["names equal but for case"]
    path = write(tmp_path / "a.ckpt", data)
    assert torch.load(path, weights_only=True)["word"] == "unchecked"
    with zipfile.ZipFile(path) as file:
        assert pickle.loads(file.read("a/data.pkl"))["word"] == "checked"


def test_the_honest_archive_is_read(tmp_path):
    path = write(tmp_path / "a.ckpt", archive([("a/data.pkl", pickled("x")), VERSION]))
    assert read_checkpoint(path)["word"] == "x"


def every_kind_of_value():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    net[0].weight.requires_grad_(False)
    whole = torch.arange(12.0).reshape(3, 4)
    dtypes = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16)
    dtypes += (torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128)
    return {
        "state_dict": net.state_dict(),
        "parameters": dict(net.named_parameters()),
        "views": [whole, whole.T, whole[1:, ::2], whole[2, 3], torch.zeros(0, 3)],
        "types": [whole.to(dtype) for dtype in dtypes],
        "names": [torch.float32, torch.bool, torch.device("cpu"), torch.Size([2, 3])],
        "plain": (1, -(2**70), 1.5, "é", None, True, False, {1, "a"}, {(0, "b"): [{}]}),
        "counter": Counter("hello"),
        "ordered": OrderedDict([("b", 1), ("a", 2)]),
    }


def same(one, other):
    if isinstance(one, torch.Tensor):
        kinds = (one.dtype, one.stride(), one.requires_grad, type(one))
        return torch.equal(one, other) and kinds == (
            other.dtype,
            other.stride(),
            other.requires_grad,
            type(other),
        )
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and not isinstance(one, torch.Size):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other and type(one) is type(other)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_everything_that_torch_saves_comes_back_as_torch_loads_it(tmp_path, zipped):
    path = tmp_path / "a.bin"
    torch.save(every_kind_of_value(), path, _use_new_zipfile_serialization=zipped)
    found, expected = read_foreign_torch(path), torch.load(path, weights_only=True)
    assert same(found, expected)
    assert found["state_dict"]._metadata == expected["state_dict"]._metadata
    first, turned = found["views"][:2]
    assert first.untyped_storage().data_ptr() == turned.untyped_storage().data_ptr()


def text(word):
    return b"X" + struct.pack("<L", len(word)) + word.encode()


LISTS = b"](](K\x01K\x02eq\x00" + b"".join(
    b"](" + bytes([ord("h"), n]) * 20 + b"eq" + bytes([n + 1]) for n in range(8)
)
"""Lists in lists, each of which has the one before 20 times."""

TUPLES = b"](K\x01K\x02\x86q\x00" + b"".join(
    b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) for n in range(60)
)
"""A pair of a pair of a pair: its hash takes 2 to the power of 60 steps."""

COLLIDING = b"}(" + b"".join(
    b"\x8a\x0a" + (n * (2**61 - 1)).to_bytes(10, "little") + b"N" for n in range(1, 30_000)
)
"""Numbers that all have the hash 0: each is compared with all before."""

STORAGE = (
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
)
TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n("
    + STORAGE
    + b"K\x00K\x04\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"
)
BILLIONS = b"\x8a\x05" + (2**32).to_bytes(5, "little")
COSTLY = {
    "lists in lists": LISTS + b"e",
    "a pair of pairs as a key": TUPLES + b"e}h\x3cNs\x86",
    "a pair of pairs in a set": b"cbuiltins\nset\n" + TUPLES + b"e\x85R",
    "numbers with one hash": COLLIDING + b"u",
    "a list in itself": b"]q\x00h\x00a",
    "the state of a tensor": TENSOR + b"(" + STORAGE + b"K\x00" + BILLIONS + b"\x85K\x01\x85tb",
}


@pytest.mark.parametrize("name", COSTLY)
@pytest.mark.timeout(60)
def test_a_short_pickle_that_would_take_for_ever_is_rejected(tmp_path, name):
    operations = b"\x80\x02}" + text("state_dict") + b"}s" + text("x") + COSTLY[name] + b"s."
    members = [("a/data.pkl", operations), ("a/data/0", bytes(16)), VERSION]
    assert error_line(lambda: read_checkpoint(write(tmp_path / "a.ckpt", archive(members))))


def test_bytes_behind_an_older_file_are_rejected(tmp_path):
    stream = io.BytesIO()
    torch.save({"w": torch.ones(2)}, stream, _use_new_zipfile_serialization=False)
    assert read_foreign_torch(write(tmp_path / "a.bin", stream.getvalue()))["w"].sum() == 2
    line = error_line(
        lambda: read_foreign_torch(write(tmp_path / "b.bin", stream.getvalue() + b"x"))
    )
    assert "bytes after its end" in line
