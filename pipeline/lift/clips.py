"""Windows of clips, gathered a batch at a time, and the way back: every frame predicted once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.lift.lifter import Lifter


class PaddedClips:
    """Arrays of many clips in one, each clip edge-padded, so that any window is one contiguous row.

    Args:
        clips: Per clip one array, (T, ...); the trailing axes are the same everywhere.
        pad: Copies of the first and last frame that stand before and behind each clip.
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

    Windows lie inside the clip, `step` apart, and the last one ends with it; a clip shorter than a
    window gives one window, centred, that the padding fills. Windows with a frame that is not valid
    are left out.

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


def subset_frames(length: int) -> Tensor:
    """Two frames in a row of every 16 of a clip, so that motion can be scored too: their numbers.

    A lifter that gives out one frame of each window is scored on them at an eighth of the cost.

    >>> subset_frames(34).tolist()
    [0, 1, 16, 17, 32, 33]
    """
    frames = torch.arange(length)
    return frames[frames % 16 < 2]


def lift_in_windows(
    lift: Callable[[Tensor, Tensor], Tensor],
    lifter: Lifter,
    joints2d: Tensor,
    visible: Tensor,
    *,
    frames: Tensor | None = None,
    at_once: int = 64,
) -> Tensor:
    """Lift a clip of any length so that every frame is predicted exactly once.

    `every`: back-to-back windows, then one made of the last T frames, of which only the frames not
    yet predicted are kept; a shorter clip is padded with its last frame. `centre` and `valid`: the
    clip is padded with its first and last frames so that each frame is the centre once (a causal
    lifter is padded in front alone).

    Args:
        lift: (B, T, J, C), (B, T, J) -> (B, T', J, 3); the lifter with whatever surrounds it.
        lifter: Says T and which frames come out.
        joints2d: Normalised 2D, (N, J, C).
        visible: Which joints were seen, (N, J).
        frames: Numbers of the frames that are wanted, (K,), on the CPU; all unless given. A
            `centre` lifter lifts no others.
        at_once: Windows in one forward pass.

    Returns:
        Root-relative joints, metres, (N, J, 3), or (K, J, 3).
    """
    N = len(joints2d)
    T = lifter.frames
    wanted = slice(None) if frames is None else frames
    if lifter.output == "every":
        missing = max(0, T - N)
        padded2d, padded_visible = _extended(joints2d, 0, missing), _extended(visible, 0, missing)
        starts = torch.unique(
            torch.cat([torch.arange(0, max(N - T, 0) + 1, T), torch.tensor([max(N - T, 0)])])
        )
    else:
        around = lifter.receptive_field - 1
        before = lifter.first_frame
        padded2d = _extended(joints2d, before, around - before)
        padded_visible = _extended(visible, before, around - before)
        if lifter.output == "valid":
            return lift(padded2d[None], padded_visible[None])[0, wanted]
        starts = torch.arange(N)[wanted]
    index = (starts[:, None] + torch.arange(T)).to(joints2d.device)
    lifted = torch.cat(
        [
            lift(padded2d[part], padded_visible[part])
            for part in (index[i : i + at_once] for i in range(0, len(index), at_once))
        ]
    )
    if lifter.output == "centre":
        return lifted[:, 0]
    *body, last = lifted
    if not body:
        return last[:N][wanted]
    overlap = len(body) * T - int(starts[-1])
    return torch.cat([torch.cat(body), last[overlap:]])[wanted]


def smooth(clip: Tensor, deviation: float) -> Tensor:
    """Each frame of a clip as a Gaussian mean over its neighbours.

    Args:
        clip: (N, ...); its first and last frame are repeated beyond the ends.
        deviation: Standard deviation of the Gaussian, frames; it ends at three of them.

    Returns:
        (N, ...).
    """
    reach = math.ceil(3 * deviation)
    weights = [math.exp(-0.5 * (k / deviation) ** 2) for k in range(-reach, reach + 1)]
    longer = _extended(clip, reach, reach)
    parts = [weight * longer[k : k + len(clip)] for k, weight in enumerate(weights)]
    return torch.stack(parts).sum(0) / sum(weights)


def _extended(clip: Tensor, before: int, behind: int) -> Tensor:
    """A clip, (N, ...), with copies of its first and last frame around it."""
    parts = [
        clip[:1].expand(before, *clip.shape[1:]),
        clip,
        clip[-1:].expand(behind, *clip.shape[1:]),
    ]
    return torch.cat(parts)
