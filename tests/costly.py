"""Small files of every format that would take much memory or time, and their readers."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from gadgets import npy

from pipeline.cli.configs import read_yaml
from pipeline.errors import DataError, UsageError
from pipeline.files.archive import Npz
from pipeline.files.images import read_image
from pipeline.files.json_documents import read_json
from pipeline.files.matlab import read_matlab
from pipeline.files.pickles import read_pickle
from pipeline.mocap.asf_amc import read_amc, read_asf
from pipeline.mocap.bvh import read_bvh
from pipeline.mocap.recordings import read_splits

GZIP = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
BVH = b"HIERARCHY\nROOT a\n{\nOFFSET 0 0 0\nCHANNELS 1 Xposition\n}\nMOTION\n"
MEBI = 2**20


def npz(data: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("x.npy", data)
    return stream.getvalue()


def zeros(mebibytes: int, before: bytes = b"") -> bytes:
    """The beginning of a packed stream of some bytes and many zeros, made without packing each."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = packer.compress(before + bytes(MEBI)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(MEBI)) + packer.flush(zlib.Z_FULL_FLUSH)
    return start + block * mebibytes


def lying_npz() -> bytes:
    """A member that claims 100 bytes and unpacks to 1.5 GiB."""
    data, name = zeros(1500), b"x.npy"
    facts = struct.pack("<5H3L2H", 20, 0, 8, 0, 33, 0, len(data), 100, len(name), 0)
    member = b"PK\3\4" + facts + name + data
    entry = b"PK\1\2\x14\0" + facts + struct.pack("<3H2L", 0, 0, 0, 0, 0) + name
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(entry), len(member), 0)
    return member + entry + end


def array(data: bytes, count: int) -> bytes:
    """Operations for an array of big-endian float64 whose bytes are those of another operation."""
    dtype = b"cnumpy\ndtype\nX\x02\x00\x00\x00f8K\x00K\x01\x87R(K\x03X\x01\x00\x00\x00>"
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01J"
        + (struct.pack("<i", count) + b"\x85" + dtype)
        + (b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + data + b"tb")
    )


def copied_arrays() -> bytes:
    raw = b"B" + struct.pack("<I", 8 * MEBI) + bytes(8 * MEBI) + b"q\x01"
    return b"\x80\x03(" + raw + b"0](" + array(b"h\x01", MEBI) * 200 + b"e."


def shared(value: object, *counts: int) -> bytes:
    """A pickle of a value that lists in lists refer to so many times."""
    for count in counts:
        value = [value] * count
    return pickle.dumps(value)


def copied_texts() -> bytes:
    text = b"X" + struct.pack("<I", 4 * MEBI) + b"a" * 4 * MEBI + b"q\x01"
    start = b"\x80\x02](" + text + b"X\x06\x00\x00\x00latin1q\x02"
    return start + b"c_codecs\nencode\nh\x01h\x02\x86R" * 500 + b"e."


def pairs_as_key() -> bytes:
    pairs = (b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) for n in range(60))
    return b"\x80\x02](K\x01K\x02\x86q\x00" + b"".join(pairs) + b"e}h\x3cNs\x86."


def number_keys(factor: int, length: int, count: int) -> bytes:
    """A dict of numbers whose places in the table collide."""
    keys = ((n * factor).to_bytes(length, "little") for n in range(1, count))
    head = b"\x8a" + bytes([length])
    return b"\x80\x02}(" + b"".join(head + key + b"N" for key in keys) + b"u."


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(8 * 25)))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + data + chunk(b"IEND", b"")


def jpeg(*, progressive: bool = False) -> bytes:
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive)]
    return cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8), options)[1].tobytes()


def resized(data: bytes, height: int, width: int) -> bytes:
    place = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def second_size() -> bytes:
    data = jpeg()
    start = data.find(b"\xff\xc0")
    header = data[start : start + 2 + struct.unpack_from(">H", data, start + 2)[0]]
    return resized(data, 32_000, 32_000)[:-2] + header + data[-2:]  # the decoder takes the first


def many_scans() -> bytes:
    data = resized(jpeg(progressive=True), 4000, 4000)
    return data[:-2] + data[data.rfind(b"\xff\xda") : -2] * 20_000 + data[-2:]


def matlab(count: int, size: int) -> bytes:
    """Packed arrays of zeros."""
    packed = b""
    for number in range(count):
        body = struct.pack("<IIII", 6, 8, 9, 0) + struct.pack("<IIii", 5, 8, 1, size)
        body += struct.pack("<HH", 1, 1) + bytes([97 + number, 0, 0, 0])
        body += struct.pack("<II", 2, size)
        length = len(body) + size
        content = b"\x78\x9c" + zeros(size // MEBI, struct.pack("<II", 14, length) + body)
        packed += struct.pack("<II", 15, len(content)) + content
    return b"MATLAB 5.0".ljust(124) + b"\0\1IM" + packed


def frames(count: int, joints: int) -> bytes:
    more = b"".join(b"JOINT j%d { OFFSET 0 0 0 }\n" % number for number in range(joints))
    head = BVH.replace(b"}\nMOTION", more + b"}\nMOTION")
    return head + b"Frames: %d\nFrame Time: 0.01\n" % count + b"0\n" * count


ZEROS = np.zeros((1000, 1500))
FILES: dict[str, Callable[[], bytes]] = {
    "600 names for one array.npz": lambda: npz(npy(shared(ZEROS, 600))),
    "600 names for one array.pkl": lambda: shared(ZEROS, 600),
    "lists in lists.npz": lambda: npz(npy(shared(1.5, 20, 20, 20, 20, 20, 20))),
    "lists in lists.pkl": lambda: shared(1.5, 20, 20, 20, 20, 20, 20),
    "copied arrays.npz": lambda: npz(npy(copied_arrays())),
    "copied texts.pkl": copied_texts,
    "a pair of pairs as a key.pkl": pairs_as_key,
    "numbers with one hash.pkl": lambda: number_keys(2**61 - 1, 10, 60_000),
    "numbers in one place.pkl": lambda: number_keys(2**36, 8, 80_000),
    "texts without letters.npz": lambda: npz(npy(b"", "(3000000000,)").replace(b"|O', ", b"<U0',")),
    "an empty axis.npz": lambda: npz(npy(b"", "(1000000000000, 0)").replace(b"|O', ", b"<f4',")),
    "a lying size.npz": lying_npz,
    "packed by LZMA.npz": lambda: npz(bytes(8 * MEBI), zipfile.ZIP_LZMA),
    "a second size.jpg": second_size,
    "a size.jpg": lambda: resized(jpeg(), 9990, 9990),
    "a size, progressive.jpg": lambda: resized(jpeg(progressive=True), 9990, 9990),
    "many scans.jpg": many_scans,
    "a size.png": lambda: png(9990, 9990),
    "a second size.png": lambda: png(8, 8, png(20_000, 20_000)[8:33]),
    "an animation.png": lambda: png(8, 8, chunk(b"acTL", struct.pack(">II", 100_000, 0))),
    "packed texts.png": lambda: png(
        8, 8, *[chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(7_900_000)))] * 999
    ),
    "a key twice.json": lambda: (
        json.dumps(dict.fromkeys(map(str, range(150_000)))).encode()[:-1] + b', "149999": 1}'
    ),
    "lists.json": lambda: b"[" + b"[]," * 20_000_000 + b"1]",
    "objects.json": lambda: b"[" + b'{"a":1},' * 4_000_000 + b"1]",
    "arrays.mat": lambda: matlab(4, 120 * MEBI),
    "spaces before frames.bvh": lambda: BVH + b"Frames" + b" " * 4000 + b"a" + b" " * 4000 + b"b\n",
    "a long number.bvh": lambda: BVH.replace(b"OFFSET 0", b"OFFSET " + b"1" * 60_000 + b"x"),
    "packed spaces.bvh": lambda: GZIP + zeros(200, BVH),
    "packed parts.bvh": lambda: gzip.compress(b"") * 300_000,
    "joints.bvh": lambda: frames(200_000, 4000),
    "blank lines.asf": lambda: b"\n" * 5_500_000,
    "bones.amc": lambda: b"".join(b"%d\nroot 0\n" % number for number in range(50_000)),
    "a long line.amc": lambda: b"1\nroot " + b"0 " * 5_000_000,
    "rows.csv": lambda: b"sequence,subject,split\n" + b"a,b,train\n" * 3_000_000,
    "values.yaml": lambda: b"a: [" + b"1," * 1_000_000 + b"1]",
}


def read_asf_and_amc(path: Path) -> object:
    bones = range(900)
    text = ":root\norder TX\nposition 0 0 0\norientation 0 0 0\n:bonedata\n"
    facts = "direction 1 0 0\nlength 1\naxis 0 0 0 XYZ\n"
    text += "".join(f"begin\nname b{bone}\n{facts}end\n" for bone in bones)
    text += ":hierarchy\nbegin\nroot " + " ".join(f"b{bone}" for bone in bones) + "\nend\n"
    path.with_suffix(".asf").write_text(text)
    return read_amc(path, read_asf(path.with_suffix(".asf")))


def walk(value: object) -> object:
    """Go through a value as a reader of a data set does."""
    if isinstance(value, list):
        return [walk(part) for part in value]
    return value.astype(np.float32) if isinstance(value, np.ndarray) else value


READERS: dict[str, Callable[[Path], object]] = {
    ".npz": lambda path: walk(Npz(path).objects("x")),
    ".pkl": lambda path: walk(read_pickle(path)),
    ".jpg": read_image,
    ".png": read_image,
    ".json": read_json,
    ".mat": read_matlab,
    ".bvh": lambda path: (motion := read_bvh(path)).pose(motion.joints),
    ".asf": read_asf,
    ".amc": read_asf_and_amc,
    ".csv": read_splits,
    ".yaml": read_yaml,
}


def line_of(path: Path) -> str | None:
    """The line of error of the reader of a file, none if it reads it."""
    try:
        READERS[path.suffix](path)
    except (DataError, UsageError) as error:
        return str(error)
    return None
