"""Lifters against reimplementations in the published layout (--rounds N, --case NAME).

Each round times one training step of both forms with the same weights, in the order A B, B A, …, in
CPU time of one thread. The ratio is the median over the rounds; above 1 Heatlift is faster. The
script restarts itself with fixed settings of glibc's allocator (ALLOCATOR below), because otherwise
the ratios depend on what ran before.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.lift.losses import MixSTELoss, MPJPELoss, ZScoredMSE
from pipeline.lift.martinez import Martinez
from pipeline.lift.mixste import MixSTE
from pipeline.lift.poseformer import PoseFormer
from pipeline.lift.transformer import Block
from pipeline.lift.videopose3d import VideoPose3D

ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}


def torch_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer by PyTorch's function, as in the published code."""
    return F.linear(x, layer.weight, layer.bias)


def published_block(block: Block, x: Tensor) -> Tensor:
    """A transformer block as published: tokens (N, L, C), one projection, unfused attention."""
    N, L, C = x.shape
    attn = block.attn
    heads, size = attn.heads, C // attn.heads
    q, k, v = (
        torch_linear(attn.qkv, block.norm1(x)).reshape(N, L, 3, heads, size).permute(2, 0, 3, 1, 4)
    )
    weights = (q @ k.transpose(-2, -1) * size**-0.5).softmax(dim=-1)
    mixed = (weights @ v).transpose(1, 2).reshape(N, L, C)
    x = x + published_drop_path(block, torch_linear(attn.proj, mixed))
    hidden = F.gelu(torch_linear(block.mlp.fc1, block.norm2(x)))
    return x + published_drop_path(block, torch_linear(block.mlp.fc2, hidden))


def published_drop_path(block: Block, branch: Tensor) -> Tensor:
    """Stochastic depth as published: a mask, then a division, then a product."""
    if not (block.training and block.drop_path):
        return branch
    keep = 1 - block.drop_path
    random = torch.rand((len(branch), 1, 1), dtype=branch.dtype, device=branch.device)
    mask = (keep + random).floor_()
    return branch.div(keep) * mask


class PublishedMixSTE(MixSTE):
    """MixSTE with tokens permuted and copied between every spatial and temporal block."""

    def forward(self, joints2d: Tensor, visible: Tensor | None = None) -> Tensor:
        """Lift clips, (B, T, J, 2) -> (B, T, J, 3)."""
        B, T, J, _ = joints2d.shape
        x = self.Spatial_patch_to_embedding(joints2d.reshape(B * T, J, 2))
        x += self.Spatial_pos_embed  # in place, which keeps the type under autocast
        for i, (spatial, temporal) in enumerate(zip(self.STEblocks, self.TTEblocks, strict=True)):
            x = self.Spatial_norm(published_block(spatial, x))
            x = x.reshape(B, T, J, -1).permute(0, 2, 1, 3).reshape(B * J, T, -1)
            if i == 0:
                x += self.Temporal_pos_embed
            x = self.Temporal_norm(published_block(temporal, x))
            x = x.reshape(B, J, T, -1).permute(0, 2, 1, 3).reshape(B * T, J, -1)
        return self.head(x).view(B, T, J, 3)


class PublishedPoseFormer(PoseFormer):
    """PoseFormer with unfused attention and the weighted mean as a convolution."""

    def forward(self, joints2d: Tensor, visible: Tensor | None = None) -> Tensor:
        """Lift clips, (B, T, J, 2) -> (B, 1, J, 3)."""
        B, T, J, _ = joints2d.shape
        x = self.Spatial_patch_to_embedding(joints2d.reshape(B * T, J, 2)) + self.Spatial_pos_embed
        for block in self.Spatial_blocks:
            x = published_block(block, x)
        x = self.Spatial_norm(x).reshape(B, T, -1) + self.Temporal_pos_embed
        for block in self.blocks:
            x = published_block(block, x)
        return self.head(self.weighted_mean(self.Temporal_norm(x))).view(B, 1, J, 3)


class PublishedVideoPose3D(VideoPose3D):
    """VideoPose3D as Conv1d over (B, C, T), strided or dilated."""

    strided = True

    def forward(self, joints2d: Tensor, visible: Tensor | None = None) -> Tensor:
        """Lift clips, (B, T, J, 2) -> (B, 1, J, 3)."""
        B, _, J, _ = joints2d.shape
        first, dilation = self.widths[0], self.widths[0]
        x = joints2d.flatten(2).permute(0, 2, 1)
        x = F.conv1d(x, self.expand_conv.weight, stride=first if self.strided else 1)
        x = F.dropout(F.relu(self.expand_bn(x)), self.dropout, self.training)
        for i, width in enumerate(self.widths[1:]):
            pad = (width - 1) * dilation // 2
            kept = x[:, :, width // 2 :: width] if self.strided else x[:, :, pad:-pad]
            spacing = {"stride": width} if self.strided else {"dilation": dilation}
            x = F.conv1d(x, self.layers_conv[2 * i].weight, **spacing)
            x = F.dropout(F.relu(self.layers_bn[2 * i](x)), self.dropout, self.training)
            x = F.relu(self.layers_bn[2 * i + 1](self.layers_conv[2 * i + 1](x)))
            x = kept + F.dropout(x, self.dropout, self.training)
            dilation *= width
        return self.shrink(x).permute(0, 2, 1).reshape(B, -1, J, 3)


class DilatedVideoPose3D(PublishedVideoPose3D):
    """The dilated form on clips of exactly the receptive field."""

    strided = False


class PlainMartinez(Martinez):
    """The residual MLP as a chain of modules, with ReLU out of place."""

    def lift(self, z_scored2d: Tensor) -> Tensor:
        """Z-scored 2D, (N, 17, 2), to z-scored 3D, (N, 17, 3)."""

        def layer(linear: nn.Linear, norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
            return F.dropout(F.relu(norm(torch_linear(linear, x))), self.mlp.dropout, self.training)

        x = layer(self.mlp.w1, self.mlp.batch_norm1, z_scored2d.reshape(len(z_scored2d), -1))
        for stage in self.mlp.linear_stages:
            y = layer(stage.w1, stage.batch_norm1, x)
            x = x + layer(stage.w2, stage.batch_norm2, y)
        return F.pad(torch_linear(self.mlp.w2, x).unflatten(-1, (-1, 3)), (0, 0, 1, 0))


@dataclass(frozen=True)
class Case:
    """One comparison.

    Args:
        ours: Constructor of Heatlift's network.
        other: Constructor of the published form.
        clips: Shape of the input.
        loss: Training loss.
        goal: Smallest accepted ratio of the published form's time to Heatlift's.
    """

    ours: Callable[[], nn.Module]
    other: Callable[[], nn.Module]
    clips: tuple[int, ...]
    loss: nn.Module
    goal: float


MIXSTE = {"frames": 243, "dim": 128, "depth": 2}
CASES = {
    "mixste": Case(
        lambda: MixSTE(**MIXSTE),
        lambda: PublishedMixSTE(**MIXSTE),
        (1, 243, 17, 2),
        MixSTELoss(),
        1.12,
    ),
    "videopose3d": Case(VideoPose3D, PublishedVideoPose3D, (64, 243, 17, 2), MPJPELoss(), 1.08),
    "videopose3d_dilated": Case(VideoPose3D, DilatedVideoPose3D, (8, 243, 17, 2), MPJPELoss(), 5.0),
    "poseformer": Case(
        lambda: PoseFormer(frames=27),
        lambda: PublishedPoseFormer(frames=27),
        (32, 27, 17, 2),
        MPJPELoss(),
        0.97,
    ),
    "martinez": Case(Martinez, PlainMartinez, (1024, 1, 17, 2), ZScoredMSE(root=False), 0.97),
}


def training_step(net: nn.Module, clips: Tensor, loss: nn.Module) -> Callable[[], float]:
    """A function that runs one training step and returns its CPU seconds."""
    optimizer = torch.optim.AdamW(net.parameters())
    target = torch.zeros_like(net.train()(clips))

    def step() -> float:
        start = time.process_time()
        optimizer.zero_grad()
        loss(net(clips), target).backward()
        optimizer.step()
        return time.process_time() - start

    return step


def compare(case: Case, rounds: int) -> tuple[float, float, float, float]:
    """Median seconds of both forms, median ratio, and largest relative difference of outputs."""
    torch.manual_seed(0)
    ours, other = case.ours(), case.other()
    other.load_state_dict(ours.state_dict())
    clips = torch.rand(case.clips) * 2 - 1
    with torch.inference_mode():
        our_output, other_output = ours.eval()(clips), other.eval()(clips)
        error = (our_output - other_output).abs().max()
        difference = (error / other_output.abs().max().clamp(min=1)).item()
    steps = training_step(ours, clips, case.loss), training_step(other, clips, case.loss)
    for step in steps * 2:
        step()
    times: list[tuple[float, float]] = []
    for i in range(rounds):
        order = (0, 1) if i % 2 == 0 else (1, 0)
        pair = {k: steps[k]() for k in order}
        times.append((pair[0], pair[1]))
    ratio = statistics.median(other / ours for ours, other in times)
    seconds = [statistics.median(column) for column in zip(*times, strict=True)]
    return seconds[0], seconds[1], ratio, difference


def main() -> None:
    """Run the cases and print a line for each; exit with 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--case", choices=CASES, action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    missed = False
    for name in arguments.case or CASES:
        case = CASES[name]
        our_seconds, other_seconds, ratio, difference = compare(case, arguments.rounds)
        reached = ratio >= case.goal and difference < 2e-6
        missed |= not reached
        print(
            f"{name:20s} {other_seconds * 1e3:8.1f} ms -> {our_seconds * 1e3:8.1f} ms  "
            f"ratio {ratio:5.2f} "
            f"(goal {case.goal:.2f})  difference {difference:.1e}  {'' if reached else 'MISSED'}"
        )
    sys.exit(missed)


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)
    main()
