"""Frame numbers of a file of detections: one rule for all names, an error if two rules fit."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pipeline.errors import DataError

MAX_FRAMES = 2_000_000
"""Frames of the longest accepted video, eleven hours at 50 Hz."""

MAX_DIGITS = 18
"""Digits of the longest accepted number in the name of an image."""

Name = str | int
"""Name of an image, or its number if the tool gives one."""


@dataclass(frozen=True)
class Numbering:
    """Frames of the images in a file of detections.

    Args:
        frames: Name of an image -> its frame, counted from 0.
        length: Number of frames of the video.
        rule: First number and step, such as `from 1`.
        text: Description, such as `frames 1..1234 of 1234, numbered from 1`.
    """

    frames: Mapping[Name, int]
    length: int
    rule: str
    text: str


def number_frames(
    names: Collection[Name],
    length: int | None,
    *,
    first_frame: int | None = None,
    lists_all: bool = False,
    place: str,
) -> Numbering:
    """Find the rule by which the images of a file are numbered.

    Frame i of the video has the number first + i * step. The number is the one number that varies
    between the names, compared as a number and not as text. Frames without an image are holes. A
    step above 1 is possible only if the numbers reach beyond the video otherwise. The rules that
    fit are those whose frames lie inside the video. Numbers usually start at 0 or 1; another first
    number is taken only if neither of these fits.

    Args:
        names: Names of all images in the file, also of those without a person.
        length: Number of frames of the video, if known.
        first_frame: Number of the first frame, if the user gives it.
        lists_all: Whether the tool lists frames without a person, too; if the length is unknown,
            the first number 0 or 1 is then that of the first frame.
        place: Path of the file, for messages.

    Raises:
        DataError: If no rule fits, or more than one.

    >>> number_frames([f"out{i:07}.png" for i in (1, 2, 4)], 4, place="a.json").text
    'frames 1..4 of 4, numbered from 1'
    """
    if len(names) == length == 1:  # an image, whatever its number is
        return Numbering(dict.fromkeys(names, 0), 1, "the only frame", "the only frame")
    numbers = _read_numbers(names, place)
    ordered = sorted(numbers.values())
    if length is None:
        step = 1
        first = _rule_without_length(ordered, first_frame, place, lists_all=lists_all)
        length = ordered[-1] - first + 1
        if length > MAX_FRAMES:
            raise DataError(
                f"{place}: refers to frame {length - 1}; a video has at most {MAX_FRAMES:,} frames"
            )
    else:
        first, step = _rule_for_length(ordered, length, first_frame, place)
    rule = f"from {first} in steps of {step}" if step > 1 else f"from {first}"
    text = f"frames {ordered[0]}..{ordered[-1]} of {length}, numbered {rule}"
    frames = {name: (number - first) // step for name, number in numbers.items()}
    return Numbering(frames, length, rule, text)


def frames_in_order(count: int, length: int | None, place: str) -> Numbering:
    """Frames of a file that lists all frames of the video in their order, without numbers.

    Raises:
        DataError: If it has not as many records as the video has frames.
    """
    if count != (length or count):
        raise DataError(
            f"{place}: has {count} records without frame numbers, and the video has {length} "
            "frames; write the file with frame numbers"
        )
    text = f"frames 0..{count - 1} of {count}, in the order of the file"
    return Numbering({frame: frame for frame in range(count)}, count, "in order", text)


def _read_numbers(names: Collection[Name], place: str) -> dict[Name, int]:
    """Name -> the number of its frame; different names have different numbers."""
    texts = [name for name in names if isinstance(name, str)]
    if not texts:
        numbers = {name: int(name) for name in names}
    elif len(texts) < len(names):
        raise DataError(f"{place}: some images have names and some have numbers; write one kind")
    else:
        numbers = dict(zip(texts, _varying_numbers(texts, place), strict=True))
    if min(numbers.values()) < 0:
        raise DataError(f"{place}: refers to a frame before the first, {min(numbers.values())}")
    names_of: dict[int, Name] = {}
    for name, number in numbers.items():
        if number in names_of:
            raise DataError(
                f"{place}: the images {names_of[number]!r:.60} and {name!r:.60} have the same "
                "number; remove or rename one"
            )
        names_of[number] = name
    return numbers


def _varying_numbers(names: list[str], place: str) -> list[int]:
    """The one number of each name that varies between the names."""
    parts = [re.split(r"([0-9]+)", name) for name in names]
    for name, part in zip(names, parts, strict=True):
        if part[::2] != parts[0][::2]:
            raise DataError(
                f"{place}: the names of the images, {names[0]!r:.60} and {name!r:.60}, differ in "
                "more than numbers; give one file for each video"
            )
        if max(map(len, part[1::2]), default=0) > MAX_DIGITS:
            raise DataError(
                f"{place}: the image {name!r:.60} has a number of over {MAX_DIGITS} digits; rename "
                "the images by the number of their frame"
            )
    columns = [tuple(map(int, column)) for column in list(zip(*parts, strict=True))[1::2]]
    fixed = columns[-1:] if len(names) == 1 else columns  # of one name, the last number
    varying = {column for column in columns if len(set(column)) > 1} or set(fixed)
    if len(varying) != 1:
        problem = "no number" if not varying else "several numbers"
        shown = " and ".join(f"{name!r:.60}" for name in (names[0], names[-1])[: len(names)])
        raise DataError(
            f"{place}: the names of the images, such as {shown}, have {problem} that may be the "
            "number of the frame; rename them by the number of their frame"
        )
    return list(varying.pop())


def _rule_without_length(
    ordered: list[int], first_frame: int | None, place: str, *, lists_all: bool
) -> int:
    """Number of the first frame of a video of unknown length."""
    lowest = ordered[0]
    if first_frame is not None:
        if first_frame > lowest:
            raise _before_first_frame(lowest, first_frame, place)
        return first_frame
    if lowest == 0 or (lowest == 1 and lists_all):
        return lowest
    raise DataError(
        f"{place}: its frame numbers start at {lowest}, and the length of the video is unknown, so "
        "the first frames may have nobody; set first_frame (predict: --first_frame, stages: "
        "--data.first_frame) to the number of the first frame"
    )


def _rule_for_length(
    ordered: list[int], length: int, first_frame: int | None, place: str
) -> tuple[int, int]:
    """Number of the first frame, and step, of a video of known length."""
    lowest, highest = ordered[0], ordered[-1]
    if first_frame is not None and first_frame > lowest:
        raise _before_first_frame(lowest, first_frame, place)
    step = 1
    firsts = range(max(0, highest - (length - 1)), lowest + 1)
    if not firsts and (wide := _regular_step(ordered)) > 1:
        step = wide
        firsts = range(max(lowest % step, highest - step * (length - 1)), lowest + 1, step)
    span = (highest - lowest) // step + 1
    if first_frame is not None and first_frame in firsts:
        return first_frame, step
    if not firsts or first_frame is not None:
        counted = f" when numbered from {first_frame}" if first_frame is not None else ""
        raise DataError(
            f"{place}: refers to frame {highest}: its frame numbers {lowest}..{highest} (a span of "
            f"{span}) do not fit a video of {length} frames{counted}; give the file of this video"
        )
    usual = [first for first in firsts if first in (0, 1)] if step == 1 else []
    possible = usual or list(firsts[:2])
    if len(possible) == 1:
        return possible[0], step
    raise DataError(
        f"{place}: its frame numbers {lowest}..{highest} fit a video of {length} frames in two "
        f"ways, numbered from {possible[0]} or from {possible[1]}; set first_frame (predict: "
        "--first_frame, stages: --data.first_frame) to the number that the first frame has"
    )


def _before_first_frame(lowest: int, first_frame: int, place: str) -> DataError:
    """Error about a number below that of the first frame."""
    return DataError(
        f"{place}: refers to frame number {lowest}, and first_frame is {first_frame}; set "
        f"first_frame to {lowest} or less"
    )


def _regular_step(ordered: list[int]) -> int:
    """Common step of numbers that fill at least half of the positions; 1 if there is none.

    Without the condition, a few numbers of a long video would have a common step by chance.
    """
    lowest, highest = ordered[0], ordered[-1]
    step = math.gcd(*(number - lowest for number in ordered))
    if step < 2 or len(ordered) < 3 or 2 * len(ordered) < (highest - lowest) // step + 1:
        return 1
    return step
