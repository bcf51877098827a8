"""Multiply-adds of our networks by formulas worked out by hand, layer by layer, from the papers."""

from __future__ import annotations

from itertools import accumulate
from math import prod
from operator import mul

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
J = 17


def resnet(width, height, layers):
    """7x7 convolution, then bottlenecks: 1x1 to p, 3x3 (which strides), 1x1 to 4 p, a shortcut."""
    cells = width * height // 4
    total = cells * 64 * 3 * 49
    cells //= 4
    inputs = 64
    for stage, blocks in enumerate(BLOCKS[layers]):
        p = 64 * 2**stage
        before, cells = cells, cells // (4 if stage else 1)
        total += before * inputs * p + cells * (9 * p * p + p * 4 * p + inputs * 4 * p)
        total += (blocks - 1) * cells * (4 * p * p + 9 * p * p + 4 * p * p)
        inputs = 4 * p
    return total


def upwards(width, height, maps):
    """Three transposed 4x4 convolutions to 256, counted by their input, then a 1x1 to the maps."""
    cells = width * height // 1024
    return cells * 16 * 256 * (2048 + 4 * 256 + 16 * 256) + width * height // 16 * 256 * maps


def simple_baseline(image, layers=50, joints=17):
    return resnet(*image, layers) + upwards(*image, joints)


def san(image, layers=50, joints=18, depth_bins=64, attention=True):
    """Queries and keys of 256 and values of 2048 at a 32nd, and two products of N x N."""
    N = image[0] * image[1] // 1024
    looks = N * 2048 * (256 + 256 + 2048) + N * N * (256 + 2048)
    return resnet(*image, layers) + upwards(*image, joints * depth_bins) + attention * looks


def hrnet(
    image, width=32, joints=17, attention=(), stem=64, planes=64, blocks=4, modules=(1, 4, 3)
):
    """Branch i has width 2^i C at 4^-i of the cells, so that each costs the same."""
    cells = image[0] * image[1] // 16
    C, p = width, planes
    total = 4 * cells * 27 * stem + cells * 9 * stem * stem
    total += cells * (stem * p + 9 * p * p + 4 * p * p + 4 * p * stem)
    total += (blocks - 1) * cells * 17 * p * p
    total += cells * 9 * 4 * p * C + cells // 4 * 9 * 4 * p * 2 * C
    total += cells // 16 * 9 * 2 * C * 4 * C + cells // 64 * 9 * 4 * C * 8 * C
    for branches, count in zip((2, 3, 4), modules, strict=True):
        total += count * branches * blocks * 2 * cells * 9 * C * C
        total += (count - 1) * exchange(cells, C, branches, branches)
        total += exchange(cells, C, branches, 1 if branches == 4 else branches)
    for _, subnet in attention:
        channels, here = C * 2 ** (subnet - 1), cells // 4 ** (subnet - 1)
        total += here * (2 * 128 * channels + 2 * 25 * 128 * 128 + 2 * 128 * 128)
    return total + cells * C * joints


def exchange(cells, C, branches, outputs):
    """Upwards 1x1 where the cells are fewer; downwards 3x3 of stride 2, the last changes width."""
    total = 0
    for to in range(outputs):
        for source in range(branches):
            wide, out = C * 2**source, C * 2**to
            if source > to:
                total += cells // 4**source * wide * out
            for step in range(source + 1, to + 1):
                total += cells // 4**step * 9 * wide * (out if step == to else wide)
    return total


def residual_mlp(inputs, outputs, width, blocks):
    return inputs * width + 2 * blocks * width * width + width * outputs


def martinez(width=1024, blocks=2, unseen=()):
    return residual_mlp(34 - 2 * len(unseen), 48, width, blocks)


def combined(width=1024):
    return 2 * residual_mlp(34, 51, width, 4) + 51 * 51


def cascade(stages=3, width=1024, blocks=3):
    return stages * residual_mlp(34, 51, width, blocks)


def videopose3d(widths=(3, 3, 3, 3, 3), channels=1024):
    """As in training: one frame comes out, and a level has as many as the next ones need."""
    frames = [prod(widths) // taken for taken in accumulate(widths, mul)]
    total = frames[0] * widths[0] * 34 * channels
    for count, width in zip(frames[1:], widths[1:], strict=True):
        total += count * (width + 1) * channels * channels
    return total + channels * 51


def block(rows, length, C):
    """Query, key, value, projection; an MLP twice as wide; two products along the axis."""
    return rows * length * (4 + 4) * C * C + 2 * rows * length * length * C


def mixste(frames=243, dim=512, depth=8):
    both = block(frames, J, dim) + block(J, frames, dim)
    return frames * J * (2 * dim + 3 * dim) + depth * both


def poseformer(frames=81, dim=32, depth=4, group_attention=False):
    wide = J * dim
    total = frames * J * 2 * dim + frames * wide + wide * 51
    total += depth * (block(frames, J, dim) + block(1, frames, wide))
    if group_attention:
        total += depth * 2 * frames * (J * 5 * dim * dim + 3 * wide * wide // (2 * J))
    return total


COSTS = {
    "HRNet": hrnet,
    "SimpleBaseline": simple_baseline,
    "SAN": san,
    "Martinez": martinez,
    "CombinedDeepLearner": combined,
    "Cascade": cascade,
    "VideoPose3D": videopose3d,
    "PoseFormer": poseformer,
    "MixSTE": mixste,
}
FREE = {"dropout", "drop_path", "heads", "spread"}
"""Arguments that change no multiply-add."""


def cost(class_path, arguments, image=None):
    """Multiply-adds of one sample of a network as a config or `models` names it."""
    name = class_path.rpartition(".")[2]
    if name in ("CentredLifter", "StridedLifter"):
        inner = arguments["net"].get("init_args", {})
        between = 0
        if name == "StridedLifter":  # each frame from all groups, 17 joints, 3 coordinates
            groups = inner.get("frames") or inner["net"]["init_args"]["frames"]
            between = groups * arguments["stride"] * groups * 17 * 3
        return cost(arguments["net"]["class_path"], inner) + between
    known = {key: value for key, value in arguments.items() if key not in FREE}
    return COSTS[name](*([image] if image else []), **known)
