"""What saving and re-seeding add to a training step."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from pipeline import chance, checkpoint
from pipeline.lift import MixSTE


def median_of(action: Any, repeats: int) -> float:
    """Median time of an action, seconds."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        action()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def main() -> None:
    """Time a step of the default lifter, then what is added to it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--save_every", type=int, default=200)
    given = parser.parse_args()
    net = MixSTE(frames=27, dim=64, depth=4)
    optimizer = torch.optim.AdamW(net.parameters())
    clips = torch.randn(64, 27, 17, 2)

    def step() -> None:
        optimizer.zero_grad()
        net(clips).square().mean().backward()
        optimizer.step()

    step()
    whole = median_of(step, given.repeats)
    seeds = median_of(lambda: torch.manual_seed(chance.seed_of(0, "batch", 1, 2, 0)), 500)
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    guard = median_of(lambda: torch.stack(torch._foreach_norm(gradients)).sum().isfinite(), 100)
    with tempfile.TemporaryDirectory() as folder:
        content = {"state_dict": net.state_dict(), "optimizer_states": [optimizer.state_dict()]}
        path = Path(folder) / "step.ckpt"
        writer = checkpoint.WholeFiles()
        save = median_of(lambda: writer.save_checkpoint(content, path), given.repeats)
        size = path.stat().st_size
    count = sum(p.numel() for p in net.parameters())
    print(f"MixSTE, {count:,} weights, 64 clips of 27 frames, {torch.get_num_threads()} threads")
    print(f"one step                        {1e3 * whole:9.2f} ms")
    print(f"re-seeding                      {1e3 * seeds:9.2f} ms   {seeds / whole:.2%}")
    print(f"guard against NaN and Inf       {1e3 * guard:9.2f} ms   {guard / whole:.2%}")
    each = save / given.save_every
    what = f"saving {size / 1e6:.1f} MB, every {given.save_every} steps"
    print(f"{what} {1e3 * save:6.0f} ms   {each / whole:.2%} per step")
    print(f"together                                       {(seeds + guard + each) / whole:.2%}")


if __name__ == "__main__":
    main()
