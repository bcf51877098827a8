"""Motion capture in BVH files: read strictly and fast, forward kinematics over all frames."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.files.reading import read_bytes

MAX_TEXT = 256 * 2**20
"""Bytes of text that a file may hold; the largest CMU recording has 14 MB."""
MAX_LINES = 1_000_000
"""Two hours at 120 Hz."""
MAX_JOINTS = 4096
MAX_DEPTH = 256
MAX_VALUE = 1e8
"""Offsets, positions and angles above it are no motion of a person, whatever the unit."""
SLOWEST, FASTEST = 1.0, 10_000.0
"""Frame rates of people's recordings, Hz; beyond them the frame time is a slip."""

_CHANNELS = {
    (axis + kind).encode(): (kind, "xyz".index(axis))
    for axis in "xyz"
    for kind in ("position", "rotation")
}
_NUMBER = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\Z")
_FRAMES = re.compile(rb"\s*(?:number\s+of\s+)?frames\s*:?\s*(.*?)\s*\Z", re.IGNORECASE)
_FRAME_TIME = re.compile(rb"\s*frame\s*time\s*:?\s*(.*?)\s*\Z", re.IGNORECASE)
_PLAIN = b"0123456789+-.eE \t\n"
_HEADER_LINE = 64 * 2**10  # bytes
_FRAMES_AT_ONCE = 1024  # keeps what kinematics holds small, however long the recording


@dataclass(frozen=True, eq=False)
class BvhMotion:
    """A tree of joints and how it moves.

    Args:
        joints: Names, each after its parent.
        parents: Index of each joint's parent, -1 for the root.
        offsets: Of each joint in its parent's frame, file units, (J, 3).
        channels: For each joint what its columns of `values` are, in order: ("position" or
            "rotation", axis).
        values: Positions in file units and angles in degrees, (T, C).
        fps: Frames per second, Hz.
    """

    joints: tuple[str, ...]
    parents: tuple[int, ...]
    offsets: NDArray[np.float64]
    channels: tuple[tuple[tuple[str, int], ...], ...]
    values: NDArray[np.float64]
    fps: float

    def __len__(self) -> int:
        return len(self.values)

    def pose(
        self, names: Many[str], frames: slice = slice(None)
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Where joints are and how they are turned, by forward kinematics.

        Convention:
            Column vectors: rotation channels multiply from left to right as the file lists them,
            and a joint is at its parent's position + the parent's rotation @ offset. Position
            channels replace the offset, axis by axis.

        Args:
            names: Which joints.
            frames: Which frames.

        Returns:
            Positions in file units and axes, (T, N, 3), and rotations of the joints' frames,
            (T, N, 3, 3).

        Raises:
            KeyError: If there is no joint of that name.
        """
        index = {name: i for i, name in enumerate(self.joints)}
        wanted = [index[name] for name in names]
        values = self.values[frames]
        positions = np.empty((len(values), len(wanted), 3))
        rotations = np.empty((len(values), len(wanted), 3, 3))
        for start in range(0, len(values), _FRAMES_AT_ONCE):
            block = slice(start, start + _FRAMES_AT_ONCE)
            placed, turned = self._kinematics(wanted, values[block])
            for i, joint in enumerate(wanted):
                positions[block, i] = placed[joint].T
                rotations[block, i] = turned[joint].transpose(2, 1, 0)
        return positions, rotations

    def _kinematics(
        self, wanted: list[int], values: NDArray[np.float64]
    ) -> tuple[dict[int, NDArray[np.float64]], dict[int, NDArray[np.float64]]]:
        """Positions, (3, T), and columns of rotations, (3, 3, T), of joints and their ancestors."""
        starts = np.cumsum([0, *map(len, self.channels)])
        placed: dict[int, NDArray[np.float64]] = {}
        turned: dict[int, NDArray[np.float64]] = {}
        for joint in sorted(self._ancestors(wanted)):
            columns = values[:, starts[joint] : starts[joint + 1]].T
            local = np.repeat(self.offsets[joint][:, None], len(values), axis=1)
            axes = np.repeat(np.eye(3)[:, :, None], len(values), axis=2)
            if (parent := self.parents[joint]) >= 0:
                axes = turned[parent].copy()
            for (kind, axis), column in zip(self.channels[joint], columns, strict=True):
                if kind == "position":
                    local[axis] = column
                elif column.any():
                    _turn(axes, axis, np.radians(column))
            if parent >= 0:
                local = placed[parent] + np.einsum("crt,ct->rt", turned[parent], local)
            placed[joint], turned[joint] = local, axes
        return placed, turned

    def _ancestors(self, joints: Many[int]) -> set[int]:
        found: set[int] = set()
        for joint in joints:
            while joint >= 0 and joint not in found:
                found.add(joint)
                joint = self.parents[joint]
        return found


def _turn(columns: NDArray[np.float64], axis: int, angle: NDArray[np.float64]) -> None:
    """Multiply rotations from the right by a turn about an axis: it mixes two columns, in place."""
    first, second = (axis + 1) % 3, (axis + 2) % 3
    cos, sin = np.cos(angle), np.sin(angle)
    one = cos * columns[first] + sin * columns[second]
    columns[second] = cos * columns[second] - sin * columns[first]
    columns[first] = one


def read_bvh(path: Path, limit: int = MAX_TEXT) -> BvhMotion:
    """Read a BVH file, plain or compressed by gzip.

    Taken as they come: any tree with one root, any order of channels, positions on any joint,
    leaves without an End Site, mixed line ends, a byte order mark, keywords in any case, names
    with spaces, a missing colon after Frames.

    Args:
        path: The file; whether it is compressed is seen from its first bytes.
        limit: Most bytes of text, unpacked.

    Raises:
        DataError: If the file is not read whole, with the line where it went wrong.
    """
    return _Reader(str(path), read_text(path, limit)).motion()


def read_text(path: Path, limit: int = MAX_TEXT) -> bytes:
    """Content of a file, unpacked if gzip packed it.

    Raises:
        DataError: If it cannot be read, is damaged, or unpacks to more than `limit` bytes.
    """
    data = read_bytes(path, limit)
    if not data.startswith(b"\x1f\x8b"):
        return data
    pieces, size = [], 0
    try:
        while data:
            unpack = zlib.decompressobj(wbits=31)
            pieces.append(unpack.decompress(data, limit + 1 - size))
            size += len(pieces[-1])
            if size > limit:
                raise DataError(
                    f"{path}: unpacks to more than {limit} bytes; no recording of people does"
                )
            if not unpack.eof:
                raise DataError(f"{path}: the gzip data ends early; fetch it again")
            data = unpack.unused_data.lstrip(b"\0")
    except zlib.error as error:
        raise DataError(f"{path}: damaged gzip data ({error}); fetch it again") from None
    return b"".join(pieces)


def shorten(token: bytes | str) -> str:
    """What a file holds, short and printable for a message of one line."""
    text = token if isinstance(token, str) else token.decode("utf-8", "backslashreplace")
    return repr(text if len(text) <= 40 else text[:37] + "...")


class _Reader:
    """Reads one file from its first line to its last."""

    def __init__(self, name: str, text: bytes) -> None:
        self.name = name
        self.line = 0  # number of the line that was read last, from 1
        if text.count(b"\n") + text.count(b"\r") > 2 * MAX_LINES:
            self.refuse(f"more than {MAX_LINES} lines; cut the recording into shorter ones")
        self.lines = text.removeprefix(b"\xef\xbb\xbf").splitlines()
        self.names: list[str] = []
        self.known: set[str] = set()
        self.parents: list[int] = []
        self.offsets: list[tuple[float, ...] | None] = []
        self.channels: list[tuple[tuple[str, int], ...] | None] = []

    def motion(self) -> BvhMotion:
        self.hierarchy()
        frames, fps = self.header()
        values = self.frames(frames, sum(len(channels or ()) for channels in self.channels))
        return BvhMotion(
            tuple(self.names),
            tuple(self.parents),
            np.array(self.offsets, np.float64),
            tuple(channels or () for channels in self.channels),
            values,
            fps,
        )

    def fail(self, expected: str, found: bytes | str | None) -> NoReturn:
        seen = "the end of the file" if found is None else shorten(found)
        raise DataError(
            f"{self.name}: line {max(self.line, 1)}: expected {expected}, found {seen}; "
            "fetch the file again or mend that line"
        )

    def refuse(self, what: str) -> NoReturn:
        raise DataError(f"{self.name}: line {max(self.line, 1)}: {what}")

    def rows(self) -> Iterator[list[bytes]]:
        """Tokens of the lines that hold any, braces apart; moves `line` along."""
        while self.line < len(self.lines):
            text = self.lines[self.line]
            self.line += 1
            if len(text) > _HEADER_LINE:
                self.refuse(f"a line of {len(text)} bytes in the hierarchy; fetch the file again")
            if row := text.replace(b"{", b" { ").replace(b"}", b" } ").split():
                yield row

    def hierarchy(self) -> None:
        """The tree, up to and with the word MOTION."""
        rows = self.rows()
        row: list[bytes] = []

        def take(expected: str) -> bytes:
            nonlocal row
            while not row:
                following = next(rows, None)
                if following is None:
                    self.fail(expected, None)
                row = following[::-1]
            return row.pop()

        def name(expected: str) -> str:
            words = []
            while row and row[-1] != b"{":
                words.append(row.pop())
            if not words and expected:
                self.fail(expected, row[-1] if row else "the end of the line")
            return b" ".join(words).decode("utf-8", "replace")

        if (word := take("HIERARCHY")).upper() != b"HIERARCHY":
            self.fail("HIERARCHY", word)
        if (word := take("ROOT")).upper() != b"ROOT":
            self.fail("ROOT", word)
        open_joints = [self.add(name("a name after ROOT"), -1)]
        self.brace(take("{"))
        while open_joints:
            joint = open_joints[-1]
            end = joint < 0  # an End Site: a place, not a joint
            word = take("OFFSET or }" if end else "OFFSET, CHANNELS, JOINT, End Site or }")
            key = word.upper()
            if key == b"OFFSET":
                offset = tuple(
                    self.number(take("a number"), "a number after OFFSET") for _ in range(3)
                )
                if not end:
                    if self.offsets[joint] is not None:
                        self.refuse(f"joint {shorten(self.names[joint])} has two OFFSETs; keep one")
                    self.offsets[joint] = offset
            elif key == b"}":
                if not end and self.offsets[joint] is None:
                    self.fail(f"OFFSET of joint {shorten(self.names[joint])}", word)
                open_joints.pop()
            elif end:
                self.fail("OFFSET or }", word)
            elif key == b"CHANNELS":
                if self.channels[joint] is not None:
                    self.refuse(f"joint {shorten(self.names[joint])} has CHANNELS twice; keep one")
                count = take("a number of channels")
                if count not in (b"0", b"1", b"2", b"3", b"4", b"5", b"6"):
                    self.fail("a number of channels from 0 to 6", count)
                owned = f"{count.decode()} channel names of joint {shorten(self.names[joint])}"
                self.channels[joint] = self.channel_names(
                    [take(owned) for _ in range(int(count))], owned
                )
            elif key in (b"JOINT", b"END"):
                if len(open_joints) >= MAX_DEPTH:
                    self.refuse(f"the hierarchy is deeper than {MAX_DEPTH}; no body is")
                open_joints.append(
                    self.add(name("a name after JOINT"), joint) if key == b"JOINT" else -1
                )
                if key == b"END":
                    name("")
                self.brace(take("{"))
            else:
                self.fail("OFFSET, CHANNELS, JOINT, End Site or }", word)
        if (word := take("MOTION")).upper() == b"ROOT":
            self.refuse("a second ROOT; split the file into one file per body")
        if word.upper() != b"MOTION":
            self.fail("MOTION", word)
        if row:
            self.fail("the end of the line after MOTION", row[-1])

    def add(self, name: str, parent: int) -> int:
        """A new joint; its index."""
        if len(self.names) >= MAX_JOINTS:
            self.refuse(f"more than {MAX_JOINTS} joints; no body has so many")
        if name in self.known:
            self.refuse(f"a second joint called {shorten(name)}; give each its own name")
        self.known.add(name)
        self.names.append(name)
        self.parents.append(parent)
        self.offsets.append(None)
        self.channels.append(None)
        return len(self.names) - 1

    def brace(self, word: bytes) -> None:
        if word != b"{":
            self.fail("{", word)

    def channel_names(self, words: list[bytes], expected: str) -> tuple[tuple[str, int], ...]:
        found: list[tuple[str, int]] = []
        for word in words:
            channel = _CHANNELS.get(word.lower())
            if channel is None:
                self.fail(expected, word)
            if channel in found:
                self.refuse(f"channel {shorten(word)} comes twice in one joint; keep one")
            found.append(channel)
        return tuple(found)

    def number(self, word: bytes, expected: str) -> float:
        if not _NUMBER.match(word) or len(word) > 400:
            self.fail(expected, word)
        value = float(word)
        if not abs(value) <= MAX_VALUE:
            self.fail(f"a number up to {MAX_VALUE:g}", word)
        return value

    def header(self) -> tuple[int, float]:
        """Number of frames, and frames per second."""
        frames = self.entry(_FRAMES, "Frames: and a number")
        if not re.fullmatch(rb"\d{1,9}", frames) or int(frames) < 1:
            self.fail("a number of frames from 1", frames)
        word = self.entry(_FRAME_TIME, "Frame Time: and seconds")
        time = self.number(word, "a frame time in seconds")
        if not 1 / FASTEST <= time <= 1 / SLOWEST:
            self.fail(f"a frame time from {1 / FASTEST:g} to {1 / SLOWEST:g} seconds", word)
        fps = 1 / time
        # Files round the frame time to four or more digits: 0.00833333 means 120 Hz, 0.0333667
        # stays 29.97.
        return int(frames), float(round(fps)) if abs(fps - round(fps)) < 2e-4 * fps else fps

    def entry(self, pattern: re.Pattern[bytes], expected: str) -> bytes:
        while self.line < len(self.lines):
            text = self.lines[self.line]
            self.line += 1
            if not text.strip():
                continue
            found = pattern.match(text)
            if found is None:
                self.fail(expected, text.strip())
            return found[1]
        return self.fail(expected, None)

    def frames(self, count: int, width: int) -> NDArray[np.float64]:
        """The numbers of all frames, (T, C): one line per frame, blank lines skipped."""
        if not width:
            self.refuse("no joint has CHANNELS, so nothing moves; export the file with its motion")
        place = self.line
        body = self.lines[place:]
        longest = max(map(len, body), default=0)
        if longest > 64 * width + 1024:
            self.line += 1 + next(i for i, text in enumerate(body) if len(text) == longest)
            self.refuse(f"{longest} bytes are too many for {width} numbers; fetch the file again")
        text = b"\n".join(body)
        values = np.empty((0, width))
        try:
            if text.translate(None, _PLAIN):
                raise ValueError
            if text.strip():
                values = np.loadtxt(io.BytesIO(text), comments=None, ndmin=2)
        except ValueError:
            self.blame(place, body, width)
        if values.shape[1] != width or (np.abs(values) > MAX_VALUE).any():
            self.blame(place, body, width)
        if len(values) != count:
            self.line = len(self.lines)
            self.refuse(f"says {count} frames, has {len(values)}; fetch the file again")
        return values

    def blame(self, place: int, body: list[bytes], width: int) -> NoReturn:
        """Name the first line that is not a frame."""
        for self.line, text in enumerate(body, start=place + 1):
            row = text.split()
            for word in row:
                self.number(word, "a number")
            if row and len(row) != width:
                self.refuse(
                    f"expected {width} numbers, as CHANNELS say, found {len(row)}; "
                    "fetch the file again"
                )
        self.refuse("something other than spaces parts the numbers; use spaces")
