"""Which joints of a recording become which of a skeleton: a YAML file, checked and applied."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping as Table
from collections.abc import Sequence as Many
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.files.reading import read_bytes
from pipeline.mocap.bvh import BvhMotion, shorten
from pipeline.skeleton import SKELETONS, Skeleton

UNITS = {"m": 1.0, "dm": 0.1, "cm": 0.01, "mm": 0.001, "in": 0.0254, "ft": 0.3048}
"""Metres in one unit."""
SHIPPED = {
    "cmu": Path(__file__).parent / "cmu" / "mapping.yaml",
    "asf_amc": Path(__file__).parent / "mappings" / "asf_amc.yaml",
    "amass": Path(__file__).parent / "mappings" / "amass.yaml",
}
MAX_BYTES = 64 * 2**10
_KEYS = ("skeleton", "unit", "up", "forward", "drop_first", "drop_last", "joints")
_AXES = {sign + axis: (i, -1.0 if sign == "-" else 1.0)
         for i, axis in enumerate("xyz") for sign in ("", "+", "-")}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One joint of the skeleton in terms of a recording.

    Args:
        sources: Joints of the recording whose mean it is.
        offset: File units in the rotated frame of the only source, or none.
    """

    sources: tuple[str, ...]
    offset: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class JointMapping:
    """How joints of a recording become joints of a skeleton.

    Args:
        name: Of the file it came from, for messages.
        skeleton: The joint set that goes out.
        points: One for each joint of the skeleton.
        unit: Metres in one unit of the file.
        up: Axis of the file that points up: index and sign.
        forward: Axis of the file that becomes x of the world: index and sign.
        drop_first: Frames that are left out at the beginning.
        drop_last: Frames that are left out at the end.
    """

    name: str
    skeleton: Skeleton
    points: tuple[Point, ...]
    unit: float = 1.0
    up: tuple[int, float] = (2, 1.0)
    forward: tuple[int, float] = (0, 1.0)
    drop_first: int = 0
    drop_last: int = 0

    @property
    def axes(self) -> NDArray[np.float64]:
        """Turns vectors of the file into vectors of the world (z up, right-handed), (3, 3).

        The world's y axis is up x forward: the left side of a person who looks along the forward
        axis.
        """
        up, forward = np.zeros(3), np.zeros(3)
        up[self.up[0]], forward[self.forward[0]] = self.up[1], self.forward[1]
        return np.stack([forward, np.cross(up, forward), up])

    @property
    def fingerprint(self) -> str:
        """Digest of everything but the name."""
        body = (self.skeleton.name, self.skeleton.joints, self.points)
        parts = (body, self.unit, self.axes.tolist(), self.drop_first, self.drop_last)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def __call__(self, motion: BvhMotion, name: str) -> NDArray[np.float64]:
        """Joints of a recording by forward kinematics.

        Args:
            motion: The recording.
            name: Of its file, for messages.

        Returns:
            World metres, (T, J, 3), float64, without the dropped frames.

        Raises:
            DataError: If the recording lacks a joint or has no frame left.
        """
        wanted = self._wanted(motion.joints, name)
        positions, rotations = motion.pose(wanted, self._kept(len(motion), name))
        turned = {joint: rotations[:, i] for i, joint in enumerate(wanted)}
        return self._place(positions, wanted, turned)

    def of_positions(
        self, positions: NDArray[np.floating], joints: Many[str], name: str
    ) -> NDArray[np.float64]:
        """The same for joints that are already computed.

        Args:
            positions: File units and axes, (T, N, 3).
            joints: Their names.
            name: Of their file, for messages.

        Raises:
            DataError: Also if a point is fixed to a joint: positions do not say how a joint is
            turned.
        """
        wanted = self._wanted(joints, name)
        for target, point in zip(self.skeleton.joints, self.points, strict=True):
            if point.offset:
                raise DataError(
                    f"{self.name}: {target} has an offset from {point.sources[0]}, but {name} "
                    "holds positions without rotations; map that joint without an offset"
                )
        kept = positions[self._kept(len(positions), name)].astype(np.float64)
        return self._place(kept[:, [list(joints).index(j) for j in wanted]], wanted, {})

    def _place(
        self,
        positions: NDArray[np.float64],
        wanted: list[str],
        turned: Table[str, NDArray[np.float64]],
    ) -> NDArray[np.float64]:
        placed = np.empty((len(positions), len(self.points), 3))
        for target, point in enumerate(self.points):
            sources = [wanted.index(source) for source in point.sources]
            placed[:, target] = positions[:, sources].mean(axis=1)
            if point.offset:
                placed[:, target] += turned[point.sources[0]] @ np.array(point.offset)
        return placed @ (self.unit * self.axes.T)

    def _wanted(self, joints: Many[str], name: str) -> list[str]:
        wanted = list(dict.fromkeys(source for point in self.points for source in point.sources))
        missing = [source for source in wanted if source not in joints]
        if missing:
            raise DataError(
                f"{name}: has no joint {shorten(missing[0])}{_meant(missing[0], joints)}, which "
                f"{self.name} names; it has {', '.join(joints[:60])}"
            )
        return wanted

    def _kept(self, frames: int, name: str) -> slice:
        if frames <= self.drop_first + self.drop_last:
            raise DataError(
                f"{name}: has {frames} frames, but {self.name} drops {self.drop_first} at the "
                f"beginning and {self.drop_last} at the end; leave the file out"
            )
        return slice(self.drop_first, frames - self.drop_last)


def read_mapping(source: str | Path) -> JointMapping:
    """A mapping: a shipped one, the name of a skeleton, or a file.

    A skeleton's name takes its joints as they are, metres, z up. Shipped are `cmu` (the BVH
    release), and `asf_amc` and `amass` for what `heatlift data convert` makes of those files.

    Args:
        source: See above. A file is YAML with the keys

            - `skeleton`: the joint set that goes out, `H36M17` say;
            - `unit`: m, dm, cm, mm, in, ft, or metres in one unit;
            - `up`, `forward`: an axis of the file each: x, y, z, -x, -y, -z;
            - `drop_first`, `drop_last`: frames to leave out, 0 unless given;
            - `joints`: for each joint of the skeleton the name of a joint of the recording, or
              `{midpoint: [one, other, …]}`, or `{joint: name, offset: [x, y, z]}` in file units
              along the axes of the turned joint.

    Raises:
        DataError: If the file is not such a mapping.
    """
    source = SHIPPED.get(str(source), source)
    if str(source) in SKELETONS:
        skeleton = SKELETONS[str(source)]
        return JointMapping(skeleton.name, skeleton, tuple(Point((j,)) for j in skeleton.joints))
    path = Path(source)
    return _checked(_yaml(path), str(path))


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases and without keys that come twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="an alias; write it out", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for i, (key, _) in enumerate(node.value):
            if key.value in keys[:i]:
                problem = f"the key {shorten(str(key.value))} a second time"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


def _yaml(path: Path) -> Any:
    try:
        text = read_bytes(path, MAX_BYTES).decode("utf-8-sig")
        return _Loader(text).get_single_data()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise DataError(f"{path}: line {line}: {error.problem}; mend that line") from None
    except (yaml.YAMLError, ValueError, OverflowError, LookupError, AttributeError) as error:
        # PyYAML leaks the last two where a tag does not fit its value: !!bool x, !!timestamp x
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{path}: is no YAML ({reason}); write it as docs/mocap.md shows") from None
    except RecursionError:
        raise DataError(f"{path}: is nested too deep; write it as docs/mocap.md shows") from None


def _checked(table: Any, name: str) -> JointMapping:
    if not isinstance(table, dict):
        raise DataError(f"{name}: a mapping with {', '.join(_KEYS)} is expected; see docs/mocap.md")
    for key in table:
        if key not in _KEYS:
            raise DataError(f"{name}: unknown key {shorten(str(key))}{_meant(str(key), _KEYS)}; "
                            f"it may have {', '.join(_KEYS)}")  # fmt: skip
    for key in ("skeleton", "unit", "up", "forward", "joints"):
        if key not in table:
            raise DataError(f"{name}: has no key {key}; see docs/mocap.md")
    called = str(table["skeleton"])
    if called not in SKELETONS:
        raise DataError(f"{name}: skeleton: {shorten(called)} is none of {', '.join(SKELETONS)}")
    up, forward = _axis(table["up"], f"{name}: up"), _axis(table["forward"], f"{name}: forward")
    if up[0] == forward[0]:
        raise DataError(f"{name}: up and forward lie along the same axis; name two different ones")
    return JointMapping(
        name,
        SKELETONS[called],
        _points(table["joints"], SKELETONS[called], name),
        _unit(table["unit"], f"{name}: unit"),
        up,
        forward,
        _frames(table.get("drop_first", 0), f"{name}: drop_first"),
        _frames(table.get("drop_last", 0), f"{name}: drop_last"),
    )


def _points(table: Any, skeleton: Skeleton, name: str) -> tuple[Point, ...]:
    if not isinstance(table, dict):
        raise DataError(f"{name}: joints: one line for each joint of {skeleton.name} is expected")
    for key in table:
        if key not in skeleton.joints:
            raise DataError(
                f"{name}: joints: {skeleton.name} has no {shorten(str(key))}"
                f"{_meant(str(key), skeleton.joints)}; see pipeline/skeleton.py"
            )
    missing = [joint for joint in skeleton.joints if joint not in table]
    if missing:
        raise DataError(
            f"{name}: joints: nothing for {', '.join(missing)}; name a source for each of the "
            f"{len(skeleton)} joints of {skeleton.name}"
        )
    return tuple(_point(table[joint], f"{name}: joints: {joint}") for joint in skeleton.joints)


def _point(value: Any, place: str) -> Point:
    if isinstance(value, str) and value:
        return Point((value,))
    if isinstance(value, dict) and set(value) == {"midpoint"}:
        names = value["midpoint"]
        if isinstance(names, list) and len(names) > 1 and all(isinstance(n, str) for n in names):
            return Point(tuple(names))
        raise DataError(f"{place}: midpoint needs a list of two or more joint names")
    if isinstance(value, dict) and set(value) == {"joint", "offset"}:
        offset = value["offset"]
        numbers = isinstance(offset, list) and len(offset) == 3 and all(map(_is_number, offset))
        if isinstance(value["joint"], str) and numbers:
            return Point((value["joint"],), (float(offset[0]), float(offset[1]), float(offset[2])))
        raise DataError(f"{place}: joint needs a name, and offset three numbers [x, y, z]")
    raise DataError(
        f"{place}: expected a joint name, {{midpoint: [one, other]}} or "
        f"{{joint: name, offset: [x, y, z]}}, found {shorten(str(value))}"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6


def _unit(value: Any, place: str) -> float:
    if isinstance(value, str) and value in UNITS:
        return UNITS[value]
    if _is_number(value) and 1e-6 <= value <= 1e3:
        return float(value)
    raise DataError(
        f"{place}: expected {', '.join(UNITS)} or metres in one unit, found {shorten(str(value))}"
    )


def _axis(value: Any, place: str) -> tuple[int, float]:
    found = _AXES.get(value.lower()) if isinstance(value, str) else None
    if found is None:
        raise DataError(f"{place}: expected x, y, z, -x, -y or -z, found {shorten(str(value))}")
    return found


def _frames(value: Any, place: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 10**6:
        raise DataError(f"{place}: expected a number of frames, found {shorten(str(value))}")
    return value


def _meant(word: str, words: Many[str]) -> str:
    close = difflib.get_close_matches(word, words, 1)
    return f" (did you mean {close[0]}?)" if close else ""
