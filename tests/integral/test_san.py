from __future__ import annotations

import pytest
import torch

from pipeline.integral import SAN
from pipeline.integral.san import PositionAttention


def count(net):
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("sizes", "options", "parameters"),
    [
        ((50, 18, 64), {}, 39_536_833),
        ((50, 17, 64), {}, 39_520_385),
        ((50, 17, 1), {}, 39_245_138),
        ((152, 18, 72), {}, 74_209_617),
        ((50, 18, 64), {"attention": False}, 34_291_392),
    ],
)
def test_parameters_are_as_many_as_the_fact_sheet_has(sizes, options, parameters):
    with torch.device("meta"):
        assert count(SAN(*sizes, **options)) == parameters


@pytest.mark.parametrize(("channels", "parameters"), [(2048, 5_245_441), (256, 82_241)])
def test_attention_block_alone(channels, parameters):
    with torch.device("meta"):
        assert count(PositionAttention(channels)) == parameters


def test_volumes_have_a_quarter_of_the_images_size():
    with torch.device("meta"):
        maps = SAN(50, 18, 72)(torch.zeros(2, 3, 384, 288))
    assert maps.shape == (2, 18, 72, 96, 72)


def test_attention_is_the_papers_formula():
    torch.manual_seed(0)
    block, x = PositionAttention(16), torch.randn(2, 16, 3, 4)
    torch.nn.init.constant_(block.delta, 0.7)
    out = block(x)
    q, k, v = (conv(x)[1].flatten(1) for conv in (block.query, block.key, block.value))
    n = 5
    weights = torch.stack([q[:, n] @ k[:, m] for m in range(12)]).softmax(0)
    expected = 0.7 * sum(weights[m] * v[:, m] for m in range(12)) + x[1].flatten(1)[:, n]
    torch.testing.assert_close(out[1].flatten(1)[:, n], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(block.relations(x)[1, n], weights, rtol=1e-4, atol=1e-6)


def test_attention_starts_as_the_identity_and_learns():
    torch.manual_seed(0)
    block, x = PositionAttention(16), torch.randn(2, 16, 3, 4)
    assert torch.equal(block(x), x)
    block(x).square().sum().backward()
    assert block.delta.grad.abs() > 0


def test_images_of_a_batch_do_not_see_each_other():
    torch.manual_seed(0)
    block, x = PositionAttention(16), torch.randn(3, 16, 3, 4)
    torch.nn.init.ones_(block.delta)
    torch.testing.assert_close(block(x)[1:2], block(x[1:2]))


def test_positional_term_starts_as_one():
    torch.manual_seed(0)
    plain, with_term = PositionAttention(16), PositionAttention(16, (3, 4))
    with_term.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(1, 16, 3, 4)
    assert torch.equal(with_term.relations(x), plain.relations(x))
    assert with_term.positions.shape == (2, 3, 4)


def test_relations_are_of_the_features_and_need_attention():
    torch.manual_seed(0)
    net = SAN(50, 2, 2).eval()
    relations = net.relations(torch.randn(1, 3, 64, 96))
    assert relations.shape == (1, 6, 6)
    torch.testing.assert_close(relations.sum(-1), torch.ones(1, 6))
    with pytest.raises(ValueError, match="attention=False"):
        SAN(50, 2, 2, attention=False).relations(torch.randn(1, 3, 64, 64))
