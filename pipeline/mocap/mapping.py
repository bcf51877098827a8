"""Joint mappings from a recording to a skeleton: YAML files, checked and applied."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping as Table
from collections.abc import Sequence as Many
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.files.yaml_documents import read_yaml_document
from pipeline.mocap.bvh import FASTEST, SLOWEST, BvhMotion, shorten
from pipeline.skeleton import SKELETONS, Skeleton

UNITS = {"m": 1.0, "dm": 0.1, "cm": 0.01, "mm": 0.001, "in": 0.0254, "ft": 0.3048}
"""Name of a unit -> metres."""
SHIPPED = {
    "cmu": Path(__file__).parent / "cmu" / "mapping.yaml",
    "asf_amc": Path(__file__).parent / "mappings" / "asf_amc.yaml",
    "amass": Path(__file__).parent / "mappings" / "amass.yaml",
}
SLOWEST_MOTION = 10.0
"""Lowest frame rate that is read, Hz, unless a mapping states it. CMU's recordings, reduced to
10 Hz and interpolated, differ by 3.6 mm from the originals; at 5 Hz by 10 mm, at 1 Hz by 79 mm."""
ACCEPTABLE = ("joints", "bones", "symmetry", "proportions", "sides", "up", "speed")
"""Faults of `body_faults` that a mapping may accept; no recording of people has a wrong height."""
_REQUIRED_KEYS = ("skeleton", "unit", "up", "forward", "joints")
_KEYS = (*_REQUIRED_KEYS[:-1], "drop_first", "drop_last", "recorded_fps", "accept", "joints")
_AXES = {sign + axis: (i, -1.0 if sign == "-" else 1.0)
         for i, axis in enumerate("xyz") for sign in ("", "+", "-")}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """Definition of one joint of the skeleton by joints of a recording.

    The names of this class and of its fields are part of `JointMapping.fingerprint`.

    Args:
        sources: Names of the joints of the recording whose mean it is.
        offset: Offset in the rotated frame of the only source, file units; none by default.
    """

    sources: tuple[str, ...]
    offset: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class JointMapping:
    """Mapping from the joints of a recording to the joints of a skeleton.

    Args:
        name: Name of the mapping file, for error messages.
        skeleton: Joint set of the result.
        points: Definition of each joint of the skeleton.
        unit: Metres in one unit of the recording.
        up: Axis of the recording that points up: index and sign.
        forward: Axis of the recording that becomes x of the world: index and sign.
        drop_first: Number of frames left out at the beginning.
        drop_last: Number of frames left out at the end.
        recorded_fps: Frame rate of the recordings, Hz, where that of the files is wrong.
        accept: Kinds of faults that these recordings have; see `ACCEPTABLE`.
    """

    name: str
    skeleton: Skeleton
    points: tuple[Point, ...]
    unit: float = 1.0
    up: tuple[int, float] = (2, 1.0)
    forward: tuple[int, float] = (0, 1.0)
    drop_first: int = 0
    drop_last: int = 0
    recorded_fps: float | None = None
    accept: tuple[str, ...] = ()

    @property
    def axes(self) -> NDArray[np.float64]:
        """Rotation from the recording's axes to the world (z up, right-handed), (3, 3).

        The world's y axis is up x forward, which is to the left of a person who faces forward.
        """
        up, forward = np.zeros(3), np.zeros(3)
        up[self.up[0]], forward[self.forward[0]] = self.up[1], self.forward[1]
        return np.stack([forward, np.cross(up, forward), up])

    @property
    def fingerprint(self) -> str:
        """Digest of everything that decides the joints and their frame rate."""
        joints = (self.skeleton.name, self.skeleton.joints, self.points)
        parts = (joints, self.unit, self.axes.tolist(), self.drop_first, self.drop_last)
        if self.recorded_fps is not None:
            parts = (*parts, self.recorded_fps)  # type: ignore[assignment]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def __call__(self, motion: BvhMotion, name: str) -> NDArray[np.float64]:
        """Joints of a recording, by forward kinematics.

        Args:
            motion: The recording.
            name: Name of its file, for error messages.

        Returns:
            World metres, (T, J, 3), float64, without the dropped frames.

        Raises:
            DataError: If the recording lacks a joint or has no frame left.
        """
        sources = self._source_joints(motion.joints, name)
        positions, rotations = motion.pose(sources, self._kept_frames(len(motion), name))
        rotation_of = {joint: rotations[:, i] for i, joint in enumerate(sources)}
        return self._combine(positions, sources, rotation_of)

    def map_positions(
        self, positions: NDArray[np.floating], joints: Many[str], name: str
    ) -> NDArray[np.float64]:
        """Joints of a recording that has positions instead of rotations.

        Args:
            positions: Positions of the recording's joints, its units and axes, (T, N, 3).
            joints: Names of these joints.
            name: Name of the file, for error messages.

        Returns:
            World metres, (T, J, 3), float64, without the dropped frames.

        Raises:
            DataError: If the recording lacks a joint or has no frame left, or if the mapping has an
                offset, which needs rotations.
        """
        sources = self._source_joints(joints, name)
        for target, point in zip(self.skeleton.joints, self.points, strict=True):
            if point.offset:
                raise DataError(
                    f"{self.name}: {target} has an offset from {point.sources[0]}, but {name} "
                    "holds positions without rotations; map that joint without an offset"
                )
        kept = positions[self._kept_frames(len(positions), name)].astype(np.float64)
        return self._combine(kept[:, [list(joints).index(j) for j in sources]], sources, {})

    def _combine(
        self,
        positions: NDArray[np.float64],
        sources: list[str],
        rotation_of: Table[str, NDArray[np.float64]],
    ) -> NDArray[np.float64]:
        """Joints of the skeleton, world metres, from positions of the source joints, (T, N, 3)."""
        combined = np.empty((len(positions), len(self.points), 3))
        for target, point in enumerate(self.points):
            indices = [sources.index(source) for source in point.sources]
            combined[:, target] = positions[:, indices].mean(axis=1)
            if point.offset:
                combined[:, target] += rotation_of[point.sources[0]] @ np.array(point.offset)
        return combined @ (self.unit * self.axes.T)

    def _source_joints(self, joints: Many[str], name: str) -> list[str]:
        """Names of the recording's joints that the mapping uses."""
        sources = list(dict.fromkeys(source for point in self.points for source in point.sources))
        missing = [source for source in sources if source not in joints]
        if missing:
            suggestion = _suggestion(missing[0], joints)
            raise DataError(
                f"{name}: has no joint {shorten(missing[0])}{suggestion}, which "
                f"{self.name} names; `heatlift data mapping FOLDER` proposes another mapping. The "
                f"file has {', '.join(joints[:60])}"
            )
        return sources

    def _kept_frames(self, frames: int, name: str) -> slice:
        """Range of the frames that are not dropped."""
        if frames <= self.drop_first + self.drop_last:
            raise DataError(
                f"{name}: has {frames} frames, but {self.name} drops {self.drop_first} at the "
                f"beginning and {self.drop_last} at the end; leave the file out"
            )
        return slice(self.drop_first, frames - self.drop_last)


def read_mapping(source: str | Path) -> JointMapping:
    """Read a joint mapping: a shipped one, the name of a skeleton, or a file.

    With the name of a skeleton, recordings must have its joints, in metres with z up. Shipped are
    `cmu` (the BVH release), and `asf_amc` and `amass` for the output of `heatlift data convert`.

    Args:
        source: Name of a shipped mapping or of a skeleton, or a YAML file with the keys

            - `skeleton`: the joint set of the result, for example `H36M17`;
            - `unit`: m, dm, cm, mm, in, ft, or metres in one unit;
            - `up`, `forward`: one axis of the recording each: x, y, z, -x, -y, -z;
            - `drop_first`, `drop_last`: number of frames to leave out, 0 by default;
            - `recorded_fps`: frame rate in Hz, where that of the files is wrong;
            - `accept`: list of faults that these recordings really have; see `ACCEPTABLE`;
            - `joints`: for each joint of the skeleton the name of a joint of the recording, or
              `{midpoint: [one, other, …]}`, or `{joint: name, offset: [x, y, z]}` in file units
              along the axes of the rotated joint.

    Raises:
        DataError: If the file is not such a mapping.
    """
    if str(source) in SHIPPED:
        path = SHIPPED[str(source)]
        return _parse_mapping(read_yaml_document(path, "`heatlift docs mocap`"), str(source))
    if str(source) in SKELETONS:
        skeleton = SKELETONS[str(source)]
        return JointMapping(skeleton.name, skeleton, tuple(Point((j,)) for j in skeleton.joints))
    path = Path(source)
    if not path.exists():
        raise DataError(
            f"{path}: no such mapping; name a YAML file, or one of {', '.join(SHIPPED)}; "
            "`heatlift data mapping FOLDER --output FILE.yaml` proposes one for own recordings"
        )
    return _parse_mapping(read_yaml_document(path, "`heatlift docs mocap`"), str(path))


def _parse_mapping(table: Any, name: str) -> JointMapping:
    """The mapping that the content of a YAML file defines."""
    if not isinstance(table, dict):
        raise DataError(
            f"{name}: a mapping with {', '.join(_KEYS)} is expected; see `heatlift docs mocap`"
        )
    for key in table:
        if key not in _KEYS:
            raise DataError(
                f"{name}: unknown key {shorten(str(key))}{_suggestion(str(key), _KEYS)}; "
                f"it may have {', '.join(_KEYS)}"
            )
    for key in _REQUIRED_KEYS:
        if key not in table:
            raise DataError(f"{name}: has no key {key}; see `heatlift docs mocap`")
    skeleton = str(table["skeleton"])
    if skeleton not in SKELETONS:
        raise DataError(f"{name}: skeleton: {shorten(skeleton)} is none of {', '.join(SKELETONS)}")
    up = _parse_axis(table["up"], f"{name}: up")
    forward = _parse_axis(table["forward"], f"{name}: forward")
    if up[0] == forward[0]:
        raise DataError(f"{name}: up and forward lie along the same axis; name two different ones")
    return JointMapping(
        name,
        SKELETONS[skeleton],
        _parse_points(table["joints"], SKELETONS[skeleton], name),
        _parse_unit(table["unit"], f"{name}: unit"),
        up,
        forward,
        _parse_frame_count(table.get("drop_first", 0), f"{name}: drop_first"),
        _parse_frame_count(table.get("drop_last", 0), f"{name}: drop_last"),
        _parse_rate(table.get("recorded_fps"), f"{name}: recorded_fps"),
        _parse_accepted(table.get("accept", []), f"{name}: accept"),
    )


def _parse_points(table: Any, skeleton: Skeleton, name: str) -> tuple[Point, ...]:
    """Definitions of all joints of a skeleton from the table `joints`."""
    if not isinstance(table, dict):
        raise DataError(f"{name}: joints: one line for each joint of {skeleton.name} is expected")
    for key in table:
        if key not in skeleton.joints:
            raise DataError(
                f"{name}: joints: {skeleton.name} has no {shorten(str(key))}"
                f"{_suggestion(str(key), skeleton.joints)}; it has {', '.join(skeleton.joints)}"
            )
    missing = [joint for joint in skeleton.joints if joint not in table]
    if missing:
        raise DataError(
            f"{name}: joints: nothing for {', '.join(missing)}; name a source for each of the "
            f"{len(skeleton)} joints of {skeleton.name}"
        )
    return tuple(
        _parse_point(table[joint], f"{name}: joints: {joint}") for joint in skeleton.joints
    )


def _parse_point(value: Any, place: str) -> Point:
    """Definition of one joint: a name, a midpoint, or a joint with an offset."""
    if isinstance(value, str) and value:
        return Point((value,))
    if value is None:
        raise DataError(f"{place}: no joint is named yet; write the joint of the recording here")
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


def _parse_unit(value: Any, place: str) -> float:
    """Metres in one unit."""
    if isinstance(value, str) and value in UNITS:
        return UNITS[value]
    if _is_number(value) and 1e-6 <= value <= 1e3:
        return float(value)
    raise DataError(
        f"{place}: expected {', '.join(UNITS)} or metres in one unit, found {shorten(str(value))}"
    )


def _parse_axis(value: Any, place: str) -> tuple[int, float]:
    """Index and sign of an axis."""
    found = _AXES.get(value.lower()) if isinstance(value, str) else None
    if found is None:
        raise DataError(f"{place}: expected x, y, z, -x, -y or -z, found {shorten(str(value))}")
    return found


def _parse_frame_count(value: Any, place: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 10**6:
        raise DataError(f"{place}: expected a number of frames, found {shorten(str(value))}")
    return value


def _parse_rate(value: Any, place: str) -> float | None:
    """Frame rate, Hz; none if it is not given."""
    if value is None or (_is_number(value) and SLOWEST <= value <= FASTEST):
        return value if value is None else float(value)
    raise DataError(
        f"{place}: expected a rate from {SLOWEST:g} to {FASTEST:g} Hz, found {shorten(str(value))}"
    )


def _parse_accepted(value: Any, place: str) -> tuple[str, ...]:
    """Kinds of faults that are accepted."""
    if isinstance(value, list) and all(kind in ACCEPTABLE for kind in value):
        return tuple(value)
    raise DataError(
        f"{place}: expected a list of {', '.join(ACCEPTABLE)}, found {shorten(str(value))}"
    )


def _suggestion(word: str, words: Many[str]) -> str:
    """The end of a message that suggests the closest of some words, or nothing."""
    close = difflib.get_close_matches(word, words, 1)
    return f" (did you mean {close[0]}?)" if close else ""
