"""Training batches of windows against the published way to make them (--rounds N, --case NAME).

Heatlift gathers windows from padded arrays and their mirrored copies. The published way is
written here from the papers: a list of windows; each window is cut out of its sequence, padded at
the ends of the sequence with copies of the first or last frame, copied into an array of doubles
and, if it is to be mirrored, mirrored there; the full array becomes a float32 tensor. Two kinds of
windows:

- VideoPose3D, PoseFormer: 1,024 windows around one frame each, and the 3D of that frame;
- MixSTE: windows one after the other, about 27,000 frames in all, and the 3D of every frame. They
  lie as Heatlift's do, inside of the sequence.

Data: 308,505 frames of random numbers in 100 sequences. Both sides make the same batch from its
indices, which is checked before they are timed; Heatlift's holds visibility and valid frames, too.
CPU time of one thread, in turns; the ratio is the median over the rounds, with its quartiles. A
round is a batch of each side with new indices. The script restarts itself with fixed settings of
glibc's allocator, see `side_by_side.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from side_by_side import compare, restart_with_allocator
from torch import Tensor

from pipeline import rng
from pipeline.camera import human36m_cameras
from pipeline.lift import MixSTE, VideoPose3D
from pipeline.lift.lifter import Lifter
from pipeline.lift.sequences import PreparedSequence, require_joints3d
from pipeline.lift.windows import TrainingWindows, sample_mirrored
from pipeline.skeleton import H36M17
from pipeline.sources import Sequence

FRAMES, SEQUENCES, J = 308_505, 100, 17
WINDOWS = 1024
MIXSTE_FRAMES = 27 * 1024


@dataclass(frozen=True)
class Case:
    """One comparison.

    Args:
        net: Constructor of the lifter whose windows are made.
        windows: Windows per batch.
        step: Frames from one window to the next.
        goal: Smallest accepted ratio.
    """

    net: Callable[[], Lifter]
    windows: int
    step: int
    goal: float


def videopose3d_case(widths: tuple[int, ...], goal: float) -> Case:
    """Windows around every frame."""
    return Case(lambda: VideoPose3D(widths=widths, channels=8), WINDOWS, 1, goal)


def mixste_case(frames: int, goal: float) -> Case:
    """Windows one after the other."""
    net = {"frames": frames, "dim": 8, "depth": 1, "heads": 2}
    return Case(lambda: MixSTE(**net), MIXSTE_FRAMES // frames, frames, goal)


CASES = {
    "videopose3d_27": videopose3d_case((3, 3, 3), 14.0),
    "videopose3d_81": videopose3d_case((3, 3, 3, 3), 12.0),
    "videopose3d_243": videopose3d_case((3, 3, 3, 3, 3), 11.0),
    "mixste_27": mixste_case(27, 10.0),
    "mixste_81": mixste_case(81, 8.0),
    "mixste_243": mixste_case(243, 7.0),
}


def make_sequences() -> list[PreparedSequence]:
    """Sequences of random numbers, between 500 and 5,700 frames long."""
    draw = rng.make_generator(0, "feeding benchmark")
    share = draw.uniform(0.17, 1.83, SEQUENCES)
    ends = np.round(FRAMES * np.cumsum(share) / share.sum()).astype(int)
    camera = human36m_cameras()["S1"][0]
    prepared = []
    for number, T in enumerate(np.diff(ends, prepend=0).tolist()):
        joints2d = draw.normal(0, 0.3, (T, J, 2)).astype(np.float32)
        joints3d = draw.normal(0, 0.3, (T, J, 3)).astype(np.float32)
        sequence = Sequence(f"{number}", "", "", camera, 50.0, H36M17, joints3d)
        ones = np.ones((T, J), np.float32)
        prepared.append(
            PreparedSequence(sequence, joints2d, ones > 0, joints3d, ones[:, 0] > 0, ones)
        )
    return prepared


def cut(clip: NDArray[np.float32], start: int, frames: int) -> NDArray[np.float32]:
    """A window of a clip (T, J, C), padded with copies of the first and last frame."""
    low, high = max(start, 0), min(start + frames, len(clip))
    before, after = low - start, start + frames - high
    if before or after:
        return np.pad(clip[low:high], ((before, after), (0, 0), (0, 0)), "edge")
    return clip[low:high]


def published_batch(
    sequences: list[PreparedSequence],
    windows: list[tuple[int, int, bool]],
    net: Lifter,
) -> dict[str, Tensor]:
    """A batch in the published way.

    Args:
        sequences: All sequences.
        windows: Sequence, first frame and whether it is mirrored, for each window.
        net: Lifter that the windows are for.
    """
    left, right = list(H36M17.left), list(H36M17.right)
    target = net.frames if net.output == "every" else 1
    batch2d = np.empty((len(windows), net.frames, J, 2))
    batch3d = np.empty((len(windows), target, J, 3))
    for i, (number, start, mirrored) in enumerate(windows):
        clip = sequences[number]
        batch2d[i] = cut(clip.joints2d, start, net.frames)
        batch3d[i] = cut(require_joints3d(clip), start + net.first_frame, target)
        if mirrored:
            for batch in (batch2d, batch3d):
                batch[i, :, :, 0] *= -1
                batch[i, :, left + right] = batch[i, :, right + left]
    return {
        "joints2d": torch.from_numpy(batch2d.astype(np.float32)),
        "joints3d": torch.from_numpy(batch3d.astype(np.float32)),
    }


def measure(name: str, case: Case, sequences: list[PreparedSequence], rounds: int) -> bool:
    """Compare one case and print its line; returns whether the goal is reached."""
    net = case.net()
    ours = TrainingWindows(sequences, net, step=case.step, flip=True, seed=0)
    first = ours.first.numpy()
    number = np.searchsorted(ours.valid.starts - net.frames, first, side="right") - 1
    start = first - ours.valid.starts[number]
    batches = []
    for indices in np.random.default_rng(0).integers(len(ours), size=(rounds + 2, case.windows)):
        mirrored = np.zeros(case.windows, bool)
        mirrored[sample_mirrored(0, 0, indices).numpy()] = True
        columns = (column.tolist() for column in (number[indices], start[indices], mirrored))
        batches.append((indices, list(zip(*columns, strict=True))))
    gathered, published = ours[0, batches[0][0]], published_batch(sequences, batches[0][1], net)
    assert all(torch.equal(gathered[key], published[key]) for key in published)
    own, other = iter(batches[1:]), iter(batches[1:])
    times = compare(
        lambda: ours[0, next(own)[0]],
        lambda: published_batch(sequences, next(other)[1], net),
        rounds,
    )
    reached = times.quartiles[1] >= case.goal
    print(
        f"{name:16s} {case.windows:4d} windows {times.text()} "
        f"(goal {case.goal:g}){'' if reached else ' MISSED'}"
    )
    return reached


def main() -> int:
    """Compare and print one line per case; return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--case", choices=CASES, action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sequences = make_sequences()
    missed = False
    for name in arguments.case or CASES:
        missed |= not measure(name, CASES[name], sequences, arguments.rounds)
    return int(missed)


if __name__ == "__main__":
    restart_with_allocator()
    sys.exit(main())
