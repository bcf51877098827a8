"""BVH motion capture files: a strict reader, and forward kinematics of all frames at once."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.files.reading import read_unpacked

MAX_TEXT = 256 * 2**20
"""Largest accepted text, bytes; the largest CMU recording has 14 MB."""
MAX_LINES = 1_000_000
"""Largest accepted number of lines: about two hours at 120 Hz."""
MAX_JOINTS, MAX_DEPTH = 4096, 256
MAX_VALUE = 1e8
"""Largest offset, position or angle that is accepted, in any unit."""
SLOWEST, FASTEST = 1.0, 10_000.0
"""Accepted frame rates, Hz; outside this range the frame time is taken as an error."""

_CHANNELS = {
    (axis + kind).encode(): (kind, "xyz".index(axis))
    for axis in "xyz"
    for kind in ("position", "rotation")
}
_NUMBER = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\Z")
_FRAMES = re.compile(rb"\s*(?:number\s+of\s+)?frames\s*:?\s*(.*?)\s*\Z", re.IGNORECASE)
_FRAME_TIME = re.compile(rb"\s*frame\s*time\s*:?\s*(.*?)\s*\Z", re.IGNORECASE)
_PLAIN = b"0123456789+-.eE \t\n"
_MAX_HEADER_LINE = 64 * 2**10  # bytes
_MAX_ENTRY = 256  # bytes of the lines with the number of frames and the frame time
_FREE_POSES, _POSES_PER_BYTE = 64 * 2**20, 64  # bytes of the poses of all joints that a text gives
_FRAMES_AT_ONCE = 1024  # bounds the memory of kinematics
_END_SITE = -1  # stands for an End Site among the indices of the open joints


@dataclass(frozen=True, eq=False)
class BvhMotion:
    """A recording: a tree of joints and the values of its channels in every frame.

    Args:
        joints: Names of the joints, each after its parent.
        parents: Index of each joint's parent, -1 for the root.
        offsets: Offset of each joint in its parent's frame, file units, (J, 3).
        channels: Channels of each joint, as in `values`: ("position" or "rotation", axis).
        values: Positions in file units and angles in degrees, (T, C).
        fps: Frames per second, Hz.
        ends: Joint -> offset of its first End Site in its frame, file units.
    """

    joints: tuple[str, ...]
    parents: tuple[int, ...]
    offsets: NDArray[np.float64]
    channels: tuple[tuple[tuple[str, int], ...], ...]
    values: NDArray[np.float64]
    fps: float
    ends: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)

    def pose(
        self, names: Many[str], frames: slice = slice(None)
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Positions and rotations of joints, by forward kinematics.

        Convention:
            Column vectors: rotation channels multiply from left to right as the file lists them,
            and a joint is at its parent's position + the parent's rotation @ offset. Position
            channels replace the offset, axis by axis.

        Args:
            names: Names of the wanted joints, N of them.
            frames: Range of the wanted frames; all by default.

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
            block_positions, block_rotations = self._kinematics(wanted, values[block])
            for i, joint in enumerate(wanted):
                positions[block, i] = block_positions[joint].T
                rotations[block, i] = block_rotations[joint].transpose(2, 1, 0)
        return positions, rotations

    def _kinematics(
        self, wanted: list[int], values: NDArray[np.float64]
    ) -> tuple[dict[int, NDArray[np.float64]], dict[int, NDArray[np.float64]]]:
        """Positions, (3, T), and columns of rotations, (3, 3, T), of joints and their ancestors."""
        starts = np.cumsum([0, *map(len, self.channels)])
        positions: dict[int, NDArray[np.float64]] = {}
        rotations: dict[int, NDArray[np.float64]] = {}
        for joint in sorted(self._with_ancestors(wanted)):
            columns = values[:, starts[joint] : starts[joint + 1]].T
            local = np.repeat(self.offsets[joint][:, None], len(values), axis=1)
            axes = np.repeat(np.eye(3)[:, :, None], len(values), axis=2)
            if (parent := self.parents[joint]) >= 0:
                axes = rotations[parent].copy()
            for (kind, axis), column in zip(self.channels[joint], columns, strict=True):
                if kind == "position":
                    local[axis] = column
                elif column.any():
                    _rotate_columns(axes, axis, np.radians(column))
            if parent >= 0:
                local = positions[parent] + np.einsum("crt,ct->rt", rotations[parent], local)
            positions[joint], rotations[joint] = local, axes
        return positions, rotations

    def _with_ancestors(self, joints: Many[int]) -> set[int]:
        """Indices of joints and of all their ancestors."""
        found: set[int] = set()
        for joint in joints:
            while joint >= 0 and joint not in found:
                found.add(joint)
                joint = self.parents[joint]
        return found


def _rotate_columns(columns: NDArray[np.float64], axis: int, angle: NDArray[np.float64]) -> None:
    """Multiply rotations, columns (3, 3, T), from the right by rotations about an axis, in place.

    The angles are radians, (T,). Only the columns of the two other axes change.
    """
    first, second = (axis + 1) % 3, (axis + 2) % 3
    cos, sin = np.cos(angle), np.sin(angle)
    mixed = cos * columns[first] + sin * columns[second]
    columns[second] = cos * columns[second] - sin * columns[first]
    columns[first] = mixed


def read_bvh(path: Path, limit: int = MAX_TEXT) -> BvhMotion:
    """Read a BVH file, plain or compressed by gzip.

    Accepted are any tree with one root, any order of channels, positions on any joint, leaves
    without an End Site, mixed line ends, a byte order mark, keywords in any case, names with
    spaces, and a missing colon after Frames.

    Args:
        path: The file; its first bytes tell whether it is compressed.
        limit: Largest accepted text in bytes, unpacked.

    Raises:
        DataError: If any part of the file cannot be read; the message names the line.
    """
    text = read_unpacked(path, limit)
    lines = _Lines(str(path), text)
    hierarchy = _HierarchyParser(lines)
    hierarchy.parse()
    frames, fps = _read_header(lines)
    if 96 * frames * len(hierarchy.names) > _FREE_POSES + _POSES_PER_BYTE * len(text):
        lines.fail(f"{frames} frames of {len(hierarchy.names)} joints are more than the file gives")
    channels = tuple(own or () for own in hierarchy.channels)
    return BvhMotion(
        joints=tuple(hierarchy.names),
        parents=tuple(hierarchy.parents),
        offsets=np.array(hierarchy.offsets, np.float64),
        channels=channels,
        values=_read_frames(lines, frames, sum(map(len, channels))),
        fps=fps,
        ends=hierarchy.ends,
    )


def shorten(token: bytes | str) -> str:
    """A word of a file, printable and cut to 40 characters, for an error message of one line."""
    text = token if isinstance(token, str) else token.decode("utf-8", "backslashreplace")
    return repr(text if len(text) <= 40 else text[:37] + "...")


class _Lines:
    """The lines of one file, the number of the line read last, and errors that name that line."""

    def __init__(self, name: str, text: bytes) -> None:
        self.name = name
        self.line = 0  # number of the line that was read last, from 1
        if text.count(b"\n") + text.count(b"\r") > 2 * MAX_LINES:
            self.fail(f"more than {MAX_LINES} lines; cut the recording into shorter ones")
        self.lines = text.removeprefix(b"\xef\xbb\xbf").splitlines()

    def __iter__(self) -> Iterator[bytes]:
        """The lines that are not read yet; each step counts `line` up."""
        while self.line < len(self.lines):
            self.line += 1
            yield self.lines[self.line - 1]

    def fail_expected(self, expected: str, found: bytes | str | None) -> NoReturn:
        """Raise a DataError with what was expected and found; none is the end of the file."""
        shown = "the end of the file" if found is None else shorten(found)
        self.fail(f"expected {expected}, found {shown}; fetch the file again or mend that line")

    def fail(self, problem: str) -> NoReturn:
        """Raise a DataError with the file and the line."""
        raise DataError(f"{self.name}: line {max(self.line, 1)}: {problem}")

    def parse_number(self, word: bytes, expected: str) -> float:
        """The number that a word stands for, at most `MAX_VALUE` in size."""
        if len(word) > 400 or not _NUMBER.match(word):  # the pattern is slow on long words
            self.fail_expected(expected, word)
        value = float(word)
        if not abs(value) <= MAX_VALUE:
            self.fail_expected(f"a number up to {MAX_VALUE:g}", word)
        return value


class _HierarchyParser:
    """Parser of the HIERARCHY section: names, parents, offsets and channels of the joints."""

    def __init__(self, lines: _Lines) -> None:
        self.lines = lines
        self.rows = _token_rows(lines)
        self.row: list[bytes] = []  # tokens left on the current line, the last one first
        self.names: list[str] = []
        self.known_names: set[str] = set()
        self.parents: list[int] = []
        self.offsets: list[tuple[float, ...] | None] = []
        self.channels: list[tuple[tuple[str, int], ...] | None] = []
        self.ends: dict[str, tuple[float, ...]] = {}

    def parse(self) -> None:
        """Read the section, up to and with the word MOTION."""
        self._expect("HIERARCHY")
        self._expect("ROOT")
        open_joints = [self._add_joint(self._name("a name after ROOT"), parent=-1)]
        self._expect("{")
        while open_joints:
            self._parse_statement(open_joints)
        word = self._token("MOTION")
        if word.upper() == b"ROOT":
            self.lines.fail("a second ROOT; split the file into one file per body")
        if word.upper() != b"MOTION":
            self.lines.fail_expected("MOTION", word)
        if self.row:
            self.lines.fail_expected("the end of the line after MOTION", self.row[-1])

    def _parse_statement(self, open_joints: list[int]) -> None:
        """Read one statement inside the innermost open joint, and open or close joints."""
        joint = open_joints[-1]
        in_joint = joint != _END_SITE
        expected = "OFFSET, CHANNELS, JOINT, End Site or }" if in_joint else "OFFSET or }"
        word = self._token(expected)
        keyword = word.upper()
        if keyword == b"OFFSET":
            self._parse_offset(joint, open_joints[-2] if not in_joint else joint)
        elif keyword == b"}":
            if in_joint and self.offsets[joint] is None:
                self.lines.fail_expected(f"OFFSET of joint {shorten(self.names[joint])}", word)
            open_joints.pop()
        elif in_joint and keyword == b"CHANNELS":
            self._parse_channels(joint)
        elif in_joint and keyword in (b"JOINT", b"END"):
            if len(open_joints) >= MAX_DEPTH:
                self.lines.fail(f"the hierarchy is deeper than {MAX_DEPTH}; no body is")
            if keyword == b"JOINT":
                open_joints.append(self._add_joint(self._name("a name after JOINT"), parent=joint))
            else:
                open_joints.append(_END_SITE)
                self._skip_name()
            self._expect("{")
        else:
            self.lines.fail_expected(expected, word)

    def _parse_offset(self, joint: int, owner: int) -> None:
        """Read the three numbers of an OFFSET: of a joint, or of the End Site of its owner."""
        words = (self._token("a number") for _ in range(3))
        offset = tuple(self.lines.parse_number(word, "a number after OFFSET") for word in words)
        if joint == _END_SITE:
            self.ends.setdefault(self.names[owner], offset)
            return
        if self.offsets[joint] is not None:
            self.lines.fail(f"joint {shorten(self.names[joint])} has two OFFSETs; keep one")
        self.offsets[joint] = offset

    def _parse_channels(self, joint: int) -> None:
        """Read the number of channels of a joint, and their names."""
        if self.channels[joint] is not None:
            self.lines.fail(f"joint {shorten(self.names[joint])} has CHANNELS twice; keep one")
        count = self._token("a number of channels")
        if count not in (b"0", b"1", b"2", b"3", b"4", b"5", b"6"):
            self.lines.fail_expected("a number of channels from 0 to 6", count)
        expected = f"{count.decode()} channel names of joint {shorten(self.names[joint])}"
        words = [self._token(expected) for _ in range(int(count))]
        channels: list[tuple[str, int]] = []
        for word in words:
            channel = _CHANNELS.get(word.lower())
            if channel is None:
                self.lines.fail_expected(expected, word)
            if channel in channels:
                self.lines.fail(f"channel {shorten(word)} comes twice in one joint; keep one")
            channels.append(channel)
        self.channels[joint] = tuple(channels)

    def _add_joint(self, name: str, parent: int) -> int:
        """Append a joint; its index."""
        if len(self.names) >= MAX_JOINTS:
            self.lines.fail(f"more than {MAX_JOINTS} joints; no body has so many")
        if name in self.known_names:
            self.lines.fail(f"a second joint called {shorten(name)}; give each its own name")
        self.known_names.add(name)
        self.names.append(name)
        self.parents.append(parent)
        self.offsets.append(None)
        self.channels.append(None)
        return len(self.names) - 1

    def _token(self, expected: str) -> bytes:
        """The next token."""
        while not self.row:
            following = next(self.rows, None)
            if following is None:
                self.lines.fail_expected(expected, None)
            self.row = following[::-1]
        return self.row.pop()

    def _expect(self, expected: str) -> None:
        """Read a token that must be this keyword, in any case, or this brace."""
        word = self._token(expected)
        if word.upper() != expected.encode():
            self.lines.fail_expected(expected, word)

    def _name(self, expected: str) -> str:
        """A name: the rest of the line up to a brace, which may contain spaces."""
        words = self._skip_name()
        if not words:
            self.lines.fail_expected(expected, self.row[-1] if self.row else "the end of the line")
        return b" ".join(words).decode("utf-8", "backslashreplace")

    def _skip_name(self) -> list[bytes]:
        """Tokens up to a brace or the end of the line."""
        words = []
        while self.row and self.row[-1] != b"{":
            words.append(self.row.pop())
        return words


def _token_rows(lines: _Lines) -> Iterator[list[bytes]]:
    """Tokens of each line of a hierarchy that has any; braces are tokens of their own."""
    for text in lines:
        if len(text) > _MAX_HEADER_LINE:
            lines.fail(f"a line of {len(text)} bytes in the hierarchy; fetch the file again")
        if row := text.replace(b"{", b" { ").replace(b"}", b" } ").split():
            yield row


def _read_header(lines: _Lines) -> tuple[int, float]:
    """Number of frames, and frames per second."""
    frames = _read_entry(lines, _FRAMES, "Frames: and a number")
    if not re.fullmatch(rb"\d{1,9}", frames) or int(frames) < 1:
        lines.fail_expected("a number of frames from 1", frames)
    word = _read_entry(lines, _FRAME_TIME, "Frame Time: and seconds")
    seconds = lines.parse_number(word, "a frame time in seconds")
    if not 1 / FASTEST <= seconds <= 1 / SLOWEST:
        lines.fail_expected(f"a frame time from {1 / FASTEST:g} to {1 / SLOWEST:g} seconds", word)
    fps = 1 / seconds
    # Files round the frame time: 0.00833333 means 120 Hz, 0.0333667 stays 29.97.
    if abs(fps - round(fps)) < 2e-4 * fps:
        fps = float(round(fps))
    return int(frames), fps


def _read_entry(lines: _Lines, pattern: re.Pattern[bytes], expected: str) -> bytes:
    """Value of the entry on the next line that is not blank."""
    for text in lines:
        if not text.strip():
            continue
        if len(text) > _MAX_ENTRY:  # the patterns are slow on long lines
            lines.fail(f"{len(text)} bytes are too many for one entry; fetch the file again")
        found = pattern.match(text)
        if found is None:
            lines.fail_expected(expected, text.strip())
        return found[1]
    return lines.fail_expected(expected, None)


def _read_frames(lines: _Lines, count: int, width: int) -> NDArray[np.float64]:
    """The numbers of all frames, (T, C): one line per frame, blank lines skipped."""
    if not width:
        lines.fail("no joint has CHANNELS, so nothing moves; export the file with its motion")
    body = lines.lines[lines.line :]
    longest = max(map(len, body), default=0)
    if longest > 64 * width + 1024:
        lines.line += 1 + next(i for i, text in enumerate(body) if len(text) == longest)
        lines.fail(f"{longest} bytes are too many for {width} numbers; fetch the file again")
    text = b"\n".join(body)
    values = np.empty((0, width))
    try:
        if text.translate(None, _PLAIN):
            raise ValueError
        if text.strip():
            values = np.loadtxt(io.BytesIO(text), comments=None, ndmin=2)
    except ValueError:
        _fail_at_bad_frame(lines, width)
    if values.shape[1] != width or (np.abs(values) > MAX_VALUE).any():
        _fail_at_bad_frame(lines, width)
    if len(values) != count:
        lines.line = len(lines.lines)
        lines.fail(f"Frames: is {count}, but {len(values)} frames follow; fetch the file again")
    return values


def _fail_at_bad_frame(lines: _Lines, width: int) -> NoReturn:
    """Raise a DataError that names the first line after the header that is not a frame."""
    for text in lines:
        row = text.split()
        for word in row:
            lines.parse_number(word, "a number")
        if row and len(row) != width:
            lines.fail(
                f"expected {width} numbers, one for each of the CHANNELS, found {len(row)}; "
                "fetch the file again"
            )
    lines.fail("something other than spaces separates the numbers; use spaces")
