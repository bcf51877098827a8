"""Windows of clips, gathered a batch at a time, and the way back: every frame predicted once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.lift.lifter import Lifter

_PIECE = 4096
"""Frames of a clip that a lifter with output `valid` lifts at once; long against its receptive
field, of which each piece repeats the frames around it."""

_SLIDE = 128
"""Windows that a lifter that slides lifts at once."""

_FRAMES = {"cpu": 1024}
"""Type of device -> frames in all windows that are lifted at once; 16,384 for other types."""


class PaddedClips:
    """Many clips in one array, each edge-padded, so that any window is one contiguous slice.

    Args:
        clips: One array per clip, (T, ...); T may differ, the other axes are equal.
        pad: Copies of the first and of the last frame before and after each clip.

    Attributes:
        starts: Row of the first frame of each clip, (N,).
    """

    def __init__(self, clips: Sequence[NDArray[np.generic]], pad: int) -> None:
        lengths = [len(clip) for clip in clips]
        self.shape = clips[0].shape[1:]
        self.starts = np.cumsum([0, *[length + 2 * pad for length in lengths]])[:-1] + pad
        self.rows = torch.from_numpy(
            np.concatenate(
                [
                    np.pad(clip, [(pad, pad)] + [(0, 0)] * len(self.shape), mode="edge")
                    for clip in clips
                ]
            )
        ).reshape(sum(lengths) + 2 * pad * len(clips), -1)

    def first_rows(self, starts: Sequence[NDArray[np.int64]]) -> Tensor:
        """First rows of windows of all clips, (B,).

        Args:
            starts: One array per clip: first frames of its windows, relative to its own first
                frame, (K,).
        """
        per_clip = [row + start for row, start in zip(self.starts, starts, strict=True)]
        return torch.from_numpy(np.concatenate(per_clip))

    def windows(self, first: Tensor, frames: int) -> Tensor:
        """Windows of `frames` rows that begin at rows `first` (B,): (B, frames, ...), a copy."""
        width = self.rows.shape[1]
        count = len(self.rows) - frames + 1
        view = self.rows.as_strided((count, frames * width), (width, 1))
        return view.index_select(0, first).view(len(first), frames, *self.shape)


def window_starts(
    length: int, frames: int, step: int, valid: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """First frames of the training windows of a clip, relative to its own first frame.

    Windows lie inside the clip, `step` frames apart, and the last one ends with the clip. A clip
    shorter than a window gives one window, with the clip in its middle. Windows with a frame that
    is not valid are left out.

    >>> window_starts(10, 4, 4).tolist(), window_starts(3, 8, 4).tolist()
    ([0, 4, 6], [-2])
    """
    if length <= frames:
        starts = np.array([-((frames - length) // 2)])
    else:
        starts = np.unique(np.append(np.arange(0, length - frames + 1, step), length - frames))
    if valid is None:
        return starts
    bad = np.concatenate([[0], np.cumsum(~valid)])
    low, high = np.clip(starts, 0, length), np.clip(starts + frames, 0, length)
    return starts[bad[high] == bad[low]]


def frame_subset(length: int) -> Tensor:
    """Frame numbers of the frame subset of a clip: frames 0 and 1 of every 16.

    Lifters that predict one frame of each window are evaluated on it at an eighth of the cost. Two
    successive frames are kept so that velocity can be measured, too.

    >>> frame_subset(34).tolist()
    [0, 1, 16, 17, 32, 33]
    """
    frames = torch.arange(length)
    return frames[frames % 16 < 2]


def window_frames(length: int, frames: int) -> Tensor:
    """Frame numbers of all windows of a clip, one window after the other, as MixSTE's code has it.

    The last window is the last `frames` frames; a clip shorter than a window is padded with copies
    of its last frame.

    >>> window_frames(5, 2).tolist(), window_frames(2, 4).tolist()
    ([0, 1, 2, 3, 3, 4], [0, 1, 1, 1])
    """
    if length < frames:
        return torch.arange(frames).clamp(max=length - 1)
    whole = length - length % frames
    last = torch.arange(length - frames, length) if whole < length else torch.arange(0)
    return torch.cat([torch.arange(whole), last])


def lift_in_windows(
    lift: Callable[[Tensor, Tensor], Tensor],
    lifter: Lifter,
    joints2d: Tensor,
    visible: Tensor,
    *,
    frames: Tensor | None = None,
    at_once: int | None = None,
) -> Tensor:
    """Lift a clip of any length so that every frame is predicted exactly once.

    Output `every`: the clip is cut into windows one after the other. The last window is the last T
    frames, of which only those not yet predicted are kept. A clip shorter than T is padded with its
    last frame. Output `centre` and `valid`: the clip is padded with its first and last frame so
    that each frame is the centre of one window; for a causal lifter it is padded in front only.

    The clip is lifted in pieces, so that only memory for joints grows with it.

    Args:
        lift: Function (B, T, J, C), (B, T, J) -> (B, T', J, 3): the lifter with its mask token.
        lifter: Lifter that sets T and the frames that are predicted.
        joints2d: Normalised 2D, (N, J, C).
        visible: Visibility of the joints, bool, (N, J).
        frames: Numbers of the frames to return, (K,), on the CPU; None for all. A lifter with
            output `centre` lifts only these.
        at_once: Windows in one forward pass; None for as many as keep the memory small.

    Returns:
        Root-relative joints, metres, (N, J, 3), or (K, J, 3).
    """
    wanted = slice(None) if frames is None else frames
    if lifter.output == "every":
        return _lift_in_turn(lift, lifter.frames, joints2d, visible, at_once)[wanted]
    N, before = len(joints2d), lifter.first_frame
    after = lifter.receptive_field - 1 - before
    joints2d, visible = (_pad_frames(part, before, after) for part in (joints2d, visible))
    if lifter.output == "valid" or (lifter.slides and frames is None):
        length = _PIECE if lifter.output == "valid" else at_once or _SLIDE
        pieces = (
            slice(start, min(start + length, N) + before + after) for start in range(0, N, length)
        )
        return _join((lift(joints2d[None, p], visible[None, p])[0] for p in pieces), N)[wanted]
    starts = torch.arange(N)[wanted]
    parts = _window_parts(starts, lifter.frames, at_once, joints2d.device)
    return _join((lift(joints2d[part], visible[part]) for part in parts), len(starts))[:, 0]


def _lift_in_turn(
    lift: Callable[[Tensor, Tensor], Tensor],
    frames: int,
    joints2d: Tensor,
    visible: Tensor,
    at_once: int | None,
) -> Tensor:
    """Lift windows one after the other, (N, J, 3); the last one ends with the clip."""
    N, T = len(joints2d), frames
    last = max(N - T, 0)
    joints2d, visible = (_pad_frames(part, 0, max(T - N, 0)) for part in (joints2d, visible))
    starts = torch.tensor([*range(0, last, T), last])
    parts = _window_parts(starts, T, at_once, joints2d.device)
    *body, end = _join((lift(joints2d[part], visible[part]) for part in parts), len(starts))
    return torch.cat([*body, end[len(body) * T - last :]])[:N]


def lift_overlapping(
    lift: Callable[[Tensor, Tensor], Tensor],
    lifter: Lifter,
    joints2d: Tensor,
    visible: Tensor,
    *,
    at_once: int | None = None,
) -> Tensor:
    """Lift a clip of any length in windows that overlap by half, blended where they do.

    The weight of a frame falls linearly from the middle of its window to the ends, so that a window
    joins the next one without a step. Lifters that predict one frame of each window have no joins,
    see `lift_in_windows`.

    Args:
        lift: Function (B, T, J, C), (B, T, J) -> (B, T', J, 3): the lifter with its mask token.
        lifter: Lifter that sets T and the frames that are predicted.
        joints2d: Normalised 2D, (N, J, C).
        visible: Visibility of the joints, bool, (N, J).
        at_once: Windows in one forward pass; None for as many as keep the memory small.

    Returns:
        Root-relative joints, metres, (N, J, 3).
    """
    N, J, T = len(joints2d), joints2d.shape[1], lifter.frames
    if lifter.output != "every" or N <= T or T < 2:
        return lift_in_windows(lift, lifter, joints2d, visible, at_once=at_once)
    starts = torch.unique(
        torch.cat([torch.arange(0, N - T + 1, (T + 1) // 2), torch.tensor([N - T])])
    )
    rising = torch.arange(1, T + 1, dtype=torch.float32, device=joints2d.device)
    weight = torch.minimum(rising, rising.flip(0))
    total = joints2d.new_zeros((N, J * 3), dtype=torch.float32)
    weights = joints2d.new_zeros(N, dtype=torch.float32)
    for part in _window_parts(starts, T, at_once, joints2d.device):
        lifted = lift(joints2d[part], visible[part]).float()
        rows = part.flatten()
        total.index_add_(0, rows, (lifted * weight[:, None, None]).reshape(len(rows), -1))
        weights.index_add_(0, rows, weight.repeat(len(part)))
    return (total / weights[:, None]).view(N, J, 3)


def _join(pieces: Iterable[Tensor], count: int) -> Tensor:
    """Pieces one after the other in one array of `count` rows, which exists before the second one.

    If all pieces were kept, they would lie between the features of the network in memory, and the
    free places between them would be too small for the features of the next piece.
    """
    joined, done = torch.empty(0), 0
    for piece in pieces:
        if not done:
            joined = piece.new_empty((count, *piece.shape[1:]))
        joined[done : done + len(piece)] = piece
        done += len(piece)
        del piece  # before the next one is computed
    return joined


def _window_parts(
    starts: Tensor, frames: int, at_once: int | None, device: torch.device
) -> Iterator[Tensor]:
    """Frame numbers of the windows that begin at `starts`, (n, frames), some windows at a time."""
    windows = at_once or max(1, _FRAMES.get(device.type, 16384) // frames)
    for part in starts.split(windows):
        yield (part[:, None] + torch.arange(frames)).to(device)


def smooth(clip: Tensor, deviation: float) -> Tensor:
    """Smooth a clip over time with a Gaussian.

    Args:
        clip: Frames, (N, ...); the first and the last are repeated beyond the ends.
        deviation: Standard deviation of the Gaussian in frames; see `smoothing_reach`.

    Returns:
        Smoothed frames, (N, ...).
    """
    reach = smoothing_reach(deviation)
    weights = [math.exp(-0.5 * (k / deviation) ** 2) for k in range(-reach, reach + 1)]
    padded = _pad_frames(clip, reach, reach)
    total = torch.zeros_like(clip)
    for k, weight in enumerate(weights):
        total.add_(padded[k : k + len(clip)], alpha=weight)
    return total / sum(weights)


def smoothing_reach(deviation: float) -> int:
    """Frames before and after a frame that its smoothing uses: three standard deviations.

    >>> smoothing_reach(3.0), smoothing_reach(0.0)
    (9, 0)
    """
    return math.ceil(3 * deviation)


def _pad_frames(clip: Tensor, before: int, after: int) -> Tensor:
    """A clip, (N, ...), with copies of its first and last frame around it."""
    parts = [
        clip[:1].expand(before, *clip.shape[1:]),
        clip,
        clip[-1:].expand(after, *clip.shape[1:]),
    ]
    return torch.cat(parts)
