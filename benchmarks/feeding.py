"""Training batches of windows against a Python loop over windows (--rounds N).

Both give the same 1024 windows of 27 frames, some of them mirrored. Heatlift gathers them with one
copy from padded arrays; the baseline slices, mirrors and stacks them one by one, as a dataset of
single windows with a collating DataLoader does. CPU time of one thread, in the order A B, A B,
…; the ratio is the median over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import rng
from pipeline.lift import MixSTE
from pipeline.lift.sequences import PreparedSequence, exact_joints2d, prepare_sequence
from pipeline.lift.windows import TrainingWindows
from pipeline.mocap.synthetic import Synthetic

WINDOWS, FRAMES = 1024, 27
GOAL = 12.0
"""Smallest accepted ratio of the baseline's time to Heatlift's."""


def gather_one_by_one(
    sequences: list[PreparedSequence],
    places: list[tuple[int, int]],
    swap: list[int],
    indices: np.ndarray,
) -> dict[str, Tensor]:
    """A batch of epoch 0 by a loop over windows."""
    items: dict[str, list[Tensor]] = {}
    for index in indices:
        video, start = places[index]
        window = slice(start, start + FRAMES)
        item: dict[str, Any] = {
            name: torch.from_numpy(getattr(sequences[video], name)[window].copy())
            for name in ("joints2d", "visible", "joints3d", "valid")
        }
        if rng.uniform(0, "flip", 0, np.array([index]), lanes=1)[0, 0] < 0.5:
            for name in ("joints2d", "joints3d"):
                item[name] = item[name][:, swap]
                item[name][..., 0] *= -1
            item["visible"] = item["visible"][:, swap]
        for name, value in item.items():
            items.setdefault(name, []).append(value)
    return {name: torch.stack(values) for name, values in items.items()}


def main() -> int:
    """Compare and print one line; return 1 if Heatlift is not fast enough."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    net = MixSTE(frames=FRAMES, dim=16, depth=1, heads=2)
    sequences = [
        prepare_sequence(s, s.skeleton, exact_joints2d(s), np.ones((len(s), len(s.skeleton))))
        for s in Synthetic(4, 1, 1).sequences("train")
    ]
    ours = TrainingWindows(sequences, net, step=FRAMES // 3, flip=True, seed=0)
    video = np.searchsorted(ours.valid.starts, ours.first.numpy(), side="right") - 1
    places = list(zip(video, ours.first.numpy() - ours.valid.starts[video], strict=True))
    times: list[tuple[float, float]] = []
    for number in range(rounds):
        indices = np.random.default_rng(number).permutation(len(ours))[:WINDOWS]
        marks = [time.process_time()]
        gathered = ours[0, indices]
        marks.append(time.process_time())
        looped = gather_one_by_one(sequences, places, list(net.skeleton.swap), indices)
        marks.append(time.process_time())
        assert all(torch.equal(gathered[name], looped[name]) for name in looped)
        times.append((marks[1] - marks[0], marks[2] - marks[1]))
    ratio = statistics.median(b / a for a, b in times)
    own, other = (1000 * statistics.median(column) for column in zip(*times, strict=True))
    sys.stdout.write(
        f"{WINDOWS} windows of {FRAMES} frames: {own:.1f} ms, one by one {other:.1f} ms, "
        f"{ratio:.1f} times as fast (at least {GOAL:g})\n"
    )
    return 0 if ratio >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
