"""Made-up BVH files for tests, and damaged variants of them."""

from __future__ import annotations

import functools
import gzip
from collections.abc import Iterator

import numpy as np

SMALL = """\
HIERARCHY
ROOT Hips
{
  OFFSET 0 0 0
  CHANNELS 6 Xposition Yposition Zposition Zrotation Yrotation Xrotation
  JOINT Leg
  {
    OFFSET 1.5 -4 0.5
    CHANNELS 3 Zrotation Xrotation Yrotation
    End Site
    {
      OFFSET 0 -3 0
    }
  }
}
MOTION
Frames: 3
Frame Time: 0.0333333
1 2 3 90 0 0 0 0 0
1 2 3 0 90 0 10 20 30
1.5 2.5 -3e0 0 0 90 0 90 0
"""

ORDERS = ("ZXY", "YXZ", "XYZ", "ZYX", "XZY", "YZX")


def tree(names: list[str], parents: list[int], offsets: np.ndarray, channels: list[str]) -> str:
    """A HIERARCHY section; `channels` has letters per joint, lower case for positions (xyzZXY)."""
    lines = ["HIERARCHY"]

    def write_joint(joint: int, depth: int) -> None:
        pad = "\t" * depth
        kind = "ROOT" if parents[joint] < 0 else "JOINT"
        words = [c.upper() + ("position" if c.islower() else "rotation") for c in channels[joint]]
        lines.append(f"{pad}{kind} {names[joint]}")
        lines.append(pad + "{")
        lines.append(f"{pad}\tOFFSET {' '.join(map(repr, offsets[joint].tolist()))}")
        lines.append(f"{pad}\tCHANNELS {len(words)} {' '.join(words)}")
        for child, parent in enumerate(parents):
            if parent == joint:
                write_joint(child, depth + 1)
        lines.append(pad + "}")

    write_joint(0, 0)
    return "\n".join(lines) + "\n"


def motion(values: np.ndarray, seconds: float) -> str:
    """A MOTION section with one row of `values` per frame."""
    rows = "\n".join(" ".join(map(repr, row)) for row in values.tolist())
    return f"MOTION\nFrames: {len(values)}\nFrame Time: {seconds}\n{rows}\n"


def hostile(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Pairs of a kind of damage and a damaged file, all of which a reader must reject."""
    rng = np.random.default_rng(seed)
    kinds = list(_DAMAGE)
    for case in range(count):
        kind = kinds[case % len(kinds)]
        text = _DAMAGE[kind](rng)
        data = text if isinstance(text, bytes) else text.encode("latin-1")
        if case % 7 == 3 and kind not in ("bomb", "cut gzip"):
            data = gzip.compress(data)
        yield f"{case} {kind}", data


def _cut(rng):
    words = SMALL.split(" ")
    at = int(rng.integers(1, len(words)))
    return " ".join(words[:at])


def _cut_lines(rng):
    lines = SMALL.splitlines(keepends=True)
    return "".join(lines[: int(rng.integers(0, len(lines)))]) or " "


def _frame_count(rng):
    wrong = rng.choice(["0", "-3", "2", "4", "999999999", "3.5", "three", "", "1_0", "9" * 5000])
    return SMALL.replace("Frames: 3", f"Frames: {wrong}")


def _brace(rng):
    places = [i for i, c in enumerate(SMALL) if c in "{}"]
    at = int(rng.choice(places))
    return SMALL[:at] + rng.choice(["", "{}", "{{", "}}"]) + SMALL[at + 1 :]


def _deep(rng):
    depth = int(rng.choice([300, 10_000, 100_000]))
    joints = "".join(f"JOINT j{i}\n{{\nOFFSET 0 1 0\nCHANNELS 0\n" for i in range(depth))
    return f"HIERARCHY\nROOT r\n{{\nOFFSET 0 0 0\nCHANNELS 0\n{joints}" + "}\n" * (depth + 1)


def _wide(rng):
    joint = "JOINT j%d\n{\nOFFSET 0 1 0\nCHANNELS 1 Xrotation\n}\n"
    joints = "".join(joint % i for i in range(100_000))
    return f"HIERARCHY\nROOT r\n{{\nOFFSET 0 0 0\nCHANNELS 0\n{joints}}}\nMOTION\n"


def _number(rng):
    wrong = rng.choice(
        ["nan", "inf", "-Infinity", "1e400", "1e99", "1_0", "0x10", "1,5", "--1", "."]
    )
    lines = SMALL.splitlines()
    line = int(rng.choice([3, 7, 18, 19, 20]))
    words = lines[line].split(" ")
    words[-1] = str(wrong)
    lines[line] = " ".join(words)
    return "\n".join(lines)


def _twice(rng):
    name = rng.choice(["Leg", "OFFSET", "CHANNELS", "channel", "ROOT"])
    if name == "Leg":
        return SMALL.replace("ROOT Hips", "ROOT Leg")
    if name == "channel":
        return SMALL.replace("3 Zrotation Xrotation", "3 Zrotation Zrotation")
    if name == "ROOT":
        return SMALL.replace("MOTION", "ROOT Two\n{\nOFFSET 0 0 0\nCHANNELS 0\n}\nMOTION")
    line = next(x for x in SMALL.splitlines() if name in x)
    return SMALL.replace(line, line + "\n" + line, 1)


def _time(rng):
    wrong = rng.choice(["0", "-0.033", "1e-9", "1e9", "nan", "", "0.03 s", "1e400", "0.0.3"])
    return SMALL.replace("0.0333333", str(wrong))


def _channels(rng):
    three = "Zrotation Xrotation Yrotation"
    wrong = [f"2 {three}", f"4 {three}", "3", "7 Zrotation", "-1", "x", "3 Zrotation"]
    return SMALL.replace(f"3 {three}", str(rng.choice([*wrong, "2 Zrotation Wrotation"])))


def _columns(rng):
    lines = SMALL.splitlines()
    line = int(rng.integers(18, 21))
    lines[line] = rng.choice([lines[line] + " 7", lines[line].rsplit(" ", 1)[0], "5"])
    if rng.random() < 0.5 and line < 20:  # the total number is right, but no line is
        lines[line], lines[line + 1] = lines[18] + " 7", lines[20].rsplit(" ", 1)[0]
    return "\n".join(lines)


def _not_bvh(rng):
    return bytes(rng.choice([
        b"\xff\xfe" + SMALL.encode("utf-16-le"), b"PK\x03\x04" + bytes(40), b"\x00" * 500,
        b"{" * 100_000, b"HIERARCHY " * 50_000, b"\x1f\x8b" + bytes(30), b"\xe4\xf6\xfc\r\r\r",
    ]))  # fmt: skip


@functools.cache
def _packed_bomb():
    return gzip.compress(SMALL.encode() + b"\n" * 300_000_000, 1)


def _bomb(rng):
    return _packed_bomb()


def _cut_gzip(rng):
    packed = gzip.compress(SMALL.encode())
    at = int(rng.integers(3, len(packed) - 1))
    flipped = bytearray(packed)
    flipped[-6] ^= 0x10
    return bytes(flipped) if rng.random() < 0.3 else packed[:at]


def _long_line(rng):
    return SMALL.replace("1.5 2.5", rng.choice(["1.5 " * 500_000, "0" * 3_000_000, "x" * 100_000]))


_DAMAGE = {
    "cut at a token": _cut,
    "cut at a line": _cut_lines,
    "frames": _frame_count,
    "brace": _brace,
    "depth": _deep,
    "number": _number,
    "twice": _twice,
    "frame time": _time,
    "channels": _channels,
    "columns": _columns,
    "not a BVH file": _not_bvh,
    "cut gzip": _cut_gzip,
    "long line": _long_line,
    "width": _wide,
    "bomb": _bomb,
}
