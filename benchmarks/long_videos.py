"""Lifting long videos in pieces: speed against whole videos, and memory (--rounds N, --case NAME).

Speed: a video with flip test, lifted by Heatlift in pieces and in the published way, which is
written here from the papers with the layers of `lifters.py`: MixSTE lifts all windows of the video
as one batch, VideoPose3D the padded video and its mirror image in one pass of the dilated form, and
PoseFormer a batch with a window around each frame. Weights are the same; outputs must not differ by
more than 2e-6. CPU time of one thread, in turns; the ratio is the median over the rounds, with its
quartiles.

Memory (--memory): most resident memory of a process while it lifts videos of 10,000 and 100,000
frames with flip test, above what it had before. The networks have the published widths, but one
layer or two, because memory does not depend on depth and time does. Exits with 1 if a goal is
missed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from lifters import DilatedVideoPose3D, PublishedMixSTE, PublishedPoseFormer
from side_by_side import ALLOCATOR, compare, restart_with_allocator
from torch import Tensor

from pipeline.lift.clips import lift_in_windows
from pipeline.lift.lifter import Lifter
from pipeline.lift.mixste import MixSTE
from pipeline.lift.poseformer import PoseFormer
from pipeline.lift.sequences import flip_joints, lift_with_mirror
from pipeline.lift.videopose3d import VideoPose3D

MEMORY_GOAL = 300
"""Most MB that lifting 100,000 frames may take."""


def lift_in_pieces(net: Lifter, joints2d: Tensor) -> Tensor:
    """A video as Heatlift lifts it, with flip test, (N, J, 2) -> (N, J, 3)."""
    visible = torch.ones(joints2d.shape[:2], dtype=torch.bool)
    return lift_with_mirror(
        partial(lift_in_windows, net, net), joints2d, visible, net.skeleton.swap
    )


def lift_all_windows(net: Lifter, joints2d: Tensor) -> Tensor:
    """MixSTE: all windows and the last T frames as one batch, then their mirror images."""
    N, T = len(joints2d), net.frames
    whole = N - N % T
    rest = [joints2d[None, N - T :]] if whole < N else []
    windows = torch.cat([joints2d[:whole].unflatten(0, (-1, T)), *rest])
    lifted = mean_with_mirror(net, windows)
    return torch.cat([lifted[: whole // T].flatten(0, 1), lifted[-1, T - (N - whole) :]])[:N]


def lift_whole(net: Lifter, joints2d: Tensor) -> Tensor:
    """VideoPose3D: the padded video and its mirror image as one batch of two."""
    padded = pad(net, joints2d)
    pair = torch.stack([padded, flip_joints(padded, net.skeleton.swap)])
    lifted, mirrored = net(pair)
    return (lifted + flip_joints(mirrored, net.skeleton.swap)) / 2


def lift_every_window(net: Lifter, joints2d: Tensor) -> Tensor:
    """PoseFormer: a batch with a window around each frame, then their mirror images."""
    windows = pad(net, joints2d).unfold(0, net.frames, 1).permute(0, 3, 1, 2).contiguous()
    return mean_with_mirror(net, windows)[:, 0]


def mean_with_mirror(net: Lifter, windows: Tensor) -> Tensor:
    """Mean of lifted windows and of their mirror images, mirrored back."""
    swap = net.skeleton.swap
    return (net(windows) + flip_joints(net(flip_joints(windows, swap)), swap)) / 2


def pad(net: Lifter, joints2d: Tensor) -> Tensor:
    """A video with copies of its first and last frame around it, so that each has a window."""
    around = net.receptive_field // 2
    return F.pad(joints2d.flatten(1).T, (around, around), mode="replicate").T.unflatten(1, (-1, 2))


@dataclass(frozen=True)
class Case:
    """One comparison.

    Args:
        ours: Constructor of Heatlift's network.
        other: Constructor of the published form.
        lift: The published way to lift a video.
        frames: Length of the video.
        goal: Smallest accepted ratio.
    """

    ours: Callable[[], Lifter]
    other: Callable[[], Lifter]
    lift: Callable[[Lifter, Tensor], Tensor]
    frames: int
    goal: float


def make_case(
    ours: type[Lifter],
    other: type[Lifter],
    sizes: dict[str, object],
    lift: Callable[[Lifter, Tensor], Tensor],
    frames: int,
    goal: float,
) -> Case:
    """A case whose two networks have the same sizes."""
    return Case(partial(ours, **sizes), partial(other, **sizes), lift, frames, goal)


MIXSTE = {"frames": 243, "dim": 128, "depth": 2}
CASES = {
    "mixste": make_case(MixSTE, PublishedMixSTE, MIXSTE, lift_all_windows, 3000, 1.8),
    "videopose3d_243": make_case(
        VideoPose3D, DilatedVideoPose3D, {"widths": (3,) * 5}, lift_whole, 3000, 1.3
    ),
    "videopose3d_27": make_case(
        VideoPose3D, DilatedVideoPose3D, {"widths": (3,) * 3}, lift_whole, 3000, 1.3
    ),
    "poseformer": make_case(
        PoseFormer, PublishedPoseFormer, {"frames": 27}, lift_every_window, 500, 2.3
    ),
}
MEMORY_CASES: dict[str, Callable[[], Lifter]] = {
    "mixste": partial(MixSTE, frames=243, dim=128, depth=1),
    "videopose3d": partial(VideoPose3D, widths=(3, 3)),
    "poseformer": partial(PoseFormer, frames=27, dim=8, depth=1),
}


def measure(name: str, case: Case, rounds: int) -> bool:
    """Compare one case and print its line; returns whether the goal is reached."""
    torch.manual_seed(0)
    ours, other = case.ours().eval(), case.other().eval()
    other.load_state_dict(ours.state_dict())
    joints2d = torch.rand(case.frames, 17, 2) * 2 - 1
    with torch.inference_mode():
        pieces, whole = lift_in_pieces(ours, joints2d), case.lift(other, joints2d)
        difference = ((pieces - whole).abs().max() / whole.abs().max().clamp(min=1)).item()
        assert difference < 2e-6, f"{name}: outputs differ by {difference}"
        times = compare(
            lambda: lift_in_pieces(ours, joints2d), lambda: case.lift(other, joints2d), rounds
        )
    reached = times.quartiles[1] >= case.goal
    print(
        f"{name:16s} {case.frames} frames {times.text()} (goal {case.goal:g}) "
        f"difference {difference:.1e}{'' if reached else ' MISSED'}",
        flush=True,
    )
    return reached


def resident(name: str) -> float:
    """Resident memory of this process, MB: `VmRSS`, or the most so far, `VmHWM`."""
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)
    )
    return int(line.split()[1]) / 1e3


def print_memory(name: str, frames: int) -> None:
    """Lift a video and print by how much this process grew at most, MB."""
    torch.set_num_threads(1)
    net = MEMORY_CASES[name]().eval()
    joints2d = torch.rand(frames, 17, 2) * 2 - 1
    before = resident("VmRSS")
    with torch.inference_mode():
        lift_in_pieces(net, joints2d)
    print(resident("VmHWM") - before)


def measure_memory(name: str) -> bool:
    """Print the memory of two videos, each lifted in a new process; whether the goal is reached."""
    environment = {key: value for key, value in os.environ.items() if key not in ALLOCATOR}
    grown = []
    for frames in (10_000, 100_000):
        command = [sys.executable, __file__, "--lift", name, str(frames)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        grown.append(float(done.stdout))
    reached = grown[1] <= MEMORY_GOAL
    print(
        f"{name:16s} 10,000 frames + {grown[0]:.0f} MB, 100,000 frames + {grown[1]:.0f} MB "
        f"(goal {MEMORY_GOAL}){'' if reached else ' MISSED'}",
        flush=True,
    )
    return reached


def main() -> int:
    """Print one line per case; return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", choices=CASES, action="append")
    parser.add_argument("--memory", action="store_true", help="only memory")
    parser.add_argument("--lift", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.lift:
        print_memory(arguments.lift[0], int(arguments.lift[1]))
        return 0
    torch.set_num_threads(1)
    reached = []
    if not arguments.memory:
        for name in arguments.case or CASES:
            reached.append(measure(name, CASES[name], arguments.rounds))
    if not arguments.case:
        reached += [measure_memory(name) for name in MEMORY_CASES]
    return int(not all(reached))


if __name__ == "__main__":
    if "--lift" not in sys.argv:
        restart_with_allocator()
    sys.exit(main())
