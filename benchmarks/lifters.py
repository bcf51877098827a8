"""Lifters' training steps against the published layout (--rounds N, --case NAME).

The published layouts are written here from the papers, with the weights and parameter names of
Heatlift's networks: unfused attention over permuted tokens, convolutions over (B, C, T), the MLP as
a chain of modules. Each round times one training step of both forms, in turns, in CPU time of one
thread: forward, loss, backward, optimizer. The other side computes in float32 with the optimizer as
torch makes it. The ratio is the median over the rounds, with its quartiles; above 1 Heatlift is
faster. Outputs of equal weights must not differ by more than 2e-6 in float32. The script restarts
itself with fixed settings of glibc's allocator, see `side_by_side.py`.

MixSTE has 2 of its 8 layers here, which are all alike.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from side_by_side import compare, restart_with_allocator
from torch import Tensor, nn

from pipeline.cli.doctor import has_fast_bf16
from pipeline.lift.losses import MixSTELoss, MPJPELoss, ZScoredMSE
from pipeline.lift.martinez import Martinez
from pipeline.lift.mixste import MixSTE
from pipeline.lift.poseformer import PoseFormer
from pipeline.lift.transformer import Block
from pipeline.lift.videopose3d import VideoPose3D


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
        bf16: Whether Heatlift's side computes in bfloat16 (autocast).
        optimizer: Optimizer of both sides.
        fused: Whether Heatlift's side has the fused form of it.
    """

    ours: Callable[[], nn.Module]
    other: Callable[[], nn.Module]
    clips: tuple[int, ...]
    loss: nn.Module
    goal: float
    bf16: bool = False
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW
    fused: bool = False


def mixste_case(dim: int, goal: float, *, bf16: bool = False) -> Case:
    """One clip of 243 frames; two layers."""
    sizes = {"frames": 243, "dim": dim, "depth": 2}
    nets = partial(MixSTE, **sizes), partial(PublishedMixSTE, **sizes)
    return Case(*nets, (1, 243, 17, 2), MixSTELoss(), goal, bf16)


def videopose3d_case(
    widths: tuple[int, ...], clips: int, goal: float, other: type[VideoPose3D], **ours: Any
) -> Case:
    """Clips of exactly the receptive field."""
    nets = partial(VideoPose3D, widths=widths), partial(other, widths=widths)
    adam = partial(torch.optim.Adam, amsgrad=True)
    shape = (clips, 3 ** len(widths), 17, 2)
    return Case(*nets, shape, MPJPELoss(), goal, optimizer=adam, **ours)


CASES = {
    "mixste_128": mixste_case(128, 1.6),
    "mixste_512": mixste_case(512, 1.9),
    "mixste_512_bf16": mixste_case(512, 3.6, bf16=True),
    "poseformer_27": Case(
        partial(PoseFormer, frames=27),
        partial(PublishedPoseFormer, frames=27),
        (32, 27, 17, 2),
        MPJPELoss(),
        1.6,
    ),
    "videopose3d_27": videopose3d_case((3,) * 3, 64, 2.79, PublishedVideoPose3D, fused=True),
    "videopose3d_243": videopose3d_case((3,) * 5, 64, 1.53, PublishedVideoPose3D, fused=True),
    "martinez": Case(Martinez, PlainMartinez, (1024, 1, 17, 2), ZScoredMSE(root=False), 1.61),
}
MORE_CASES = {
    "videopose3d_dilated": videopose3d_case((3,) * 5, 8, 5.0, DilatedVideoPose3D),
    "videopose3d_243_unfused": videopose3d_case((3,) * 5, 64, 1.2, PublishedVideoPose3D),
    "videopose3d_243_bf16": videopose3d_case(
        (3,) * 5, 64, 1.8, PublishedVideoPose3D, bf16=True, fused=True
    ),
    "mixste_128_bf16": mixste_case(128, 2.0, bf16=True),
}
"""Cases that run only where `--case` names them."""


def training_step(
    net: nn.Module, clips: Tensor, loss: nn.Module, optimizer: torch.optim.Optimizer, *, bf16: bool
) -> None:
    """One training step towards zeros."""
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        lifted = net(clips)
    lifted = lifted.float()
    loss(lifted, torch.zeros_like(lifted)).backward()
    optimizer.step()


def measure(name: str, case: Case, rounds: int) -> bool:
    """Compare one case and print its line; returns whether the goal is reached."""
    if case.bf16 and not has_fast_bf16():
        print(f"{name:24s} not measured: this CPU has no bfloat16 instructions", flush=True)
        return True
    torch.manual_seed(0)
    ours, other = case.ours(), case.other()
    other.load_state_dict(ours.state_dict())
    clips = torch.rand(case.clips) * 2 - 1
    with torch.inference_mode():
        our_output, other_output = ours.eval()(clips), other.eval()(clips)
    error = (our_output - other_output).abs().max()
    difference = (error / other_output.abs().max().clamp(min=1)).item()
    assert difference < 2e-6, f"{name}: outputs differ by {difference}"
    fused = {"fused": True} if case.fused else {}
    optimizer = case.optimizer(ours.train().parameters(), **fused)
    plain = case.optimizer(other.train().parameters())
    times = compare(
        lambda: training_step(ours, clips, case.loss, optimizer, bf16=case.bf16),
        lambda: training_step(other, clips, case.loss, plain, bf16=False),
        rounds,
    )
    reached = times.quartiles[1] >= case.goal
    print(
        f"{name:24s} {times.text()} (goal {case.goal:g}) "
        f"difference {difference:.1e}{'' if reached else ' MISSED'}",
        flush=True,
    )
    return reached


def main() -> int:
    """Print one line per case; return 1 if a goal is missed."""
    cases = CASES | MORE_CASES
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--case", choices=cases, action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = arguments.case or CASES
    reached = [measure(name, cases[name], arguments.rounds) for name in names]
    return int(not all(reached))


if __name__ == "__main__":
    restart_with_allocator()
    sys.exit(main())
