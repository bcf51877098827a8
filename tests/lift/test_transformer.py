from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pipeline.lift.transformer import Attention, Block, attend, drop_path_rates


def plain_attention(layer, rows):
    """Attention of ViT over (N, L, C), written out."""
    C = rows.shape[-1]
    q, k, v = F.linear(rows, layer.qkv.weight, layer.qkv.bias).chunk(3, dim=-1)
    heads = []
    size = C // layer.heads
    for head in range(layer.heads):
        part = slice(head * size, (head + 1) * size)
        logits = q[..., part] @ k[..., part].mT / size**0.5
        heads.append(logits.softmax(-1) @ v[..., part])
    return F.linear(torch.cat(heads, -1), layer.proj.weight, layer.proj.bias)


@pytest.mark.parametrize(("T", "J"), [(5, 3), (40, 3), (5, 35), (40, 1)])
def test_attention_along_either_axis_is_that_of_the_plain_formula(T, J):
    torch.manual_seed(0)
    layer, tokens = Attention(12, 3), torch.randn(2, T, J, 12)
    over_joints = plain_attention(layer, tokens.view(2 * T, J, 12)).view(2, T, J, 12)
    torch.testing.assert_close(layer(tokens, "joints"), over_joints, rtol=1e-5, atol=1e-5)
    columns = tokens.transpose(1, 2).reshape(2 * J, T, 12)
    over_frames = plain_attention(layer, columns).view(2, J, T, 12).transpose(1, 2)
    torch.testing.assert_close(layer(tokens, "frames"), over_frames, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [4, 33])
def test_both_forms_of_attention_have_the_same_values_and_gradients(tokens):
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, tokens, 8, requires_grad=True) for _ in range(3)]
    fused = F.scaled_dot_product_attention(*inputs)
    ours = attend(*inputs)
    torch.testing.assert_close(ours, fused, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(ours.square().sum(), inputs),
        torch.autograd.grad(fused.square().sum(), inputs),
        rtol=1e-4,
        atol=1e-5,
    )


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="dim 10 is not a multiple of 3 heads"):
        Attention(10, 3)


def test_along_frames_joints_do_not_depend_on_each_other():
    torch.manual_seed(0)
    block, tokens = Block(8, 2), torch.randn(1, 6, 4, 8)
    changed = tokens.clone()
    changed[:, :, 2] += 1
    moved = (block(changed, "frames") - block(tokens, "frames")).abs().amax((0, 1, 3))
    assert moved[2] > 0
    assert not moved[[0, 1, 3]].any()


def test_drop_path_drops_all_of_a_frame_or_all_of_a_joint_and_keeps_the_mean():
    torch.manual_seed(0)
    block = Block(4, 2, drop_path=0.25)
    tokens, branch = torch.zeros(50, 10, 8, 4), torch.ones(50, 10, 8, 4)
    frames = block.add(tokens, branch, "joints")
    joints = block.add(tokens, branch, "frames")
    torch.testing.assert_close(frames.unique(), torch.tensor([0.0, 4 / 3]))
    assert (frames == frames[:, :, :1, :1]).all()
    assert (joints == joints[:, :1, :, :1]).all()
    assert frames.mean().item() == pytest.approx(1, abs=0.1)
    assert torch.equal(block.eval().add(tokens, branch, "joints"), branch)


def test_drop_path_rates_of_a_single_block_are_zero():
    assert drop_path_rates(0.1, 1) == [0.0]


def test_residual_stream_keeps_half_precision_under_autocast():
    block, tokens = Block(8, 2), torch.randn(1, 3, 4, 8, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert block(tokens, "joints").dtype == torch.bfloat16
