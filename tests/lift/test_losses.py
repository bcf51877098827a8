from __future__ import annotations

import pytest
import torch

from pipeline.errors import UsageError
from pipeline.lift.losses import (
    MIXSTE_WEIGHTS,
    MixSTELoss,
    MPJPELoss,
    PretrainLoss,
    ZScoredMSE,
    scale_free_error,
    velocity_error,
)
from pipeline.lift.martinez import Statistics

LOSSES = [MPJPELoss(), MixSTELoss(), PretrainLoss(), ZScoredMSE(), ZScoredMSE(root=False)]
NAMES = ["mpjpe", "mixste", "pretrain", "zscored", "zscored48"]


def clips(seed=0):
    torch.manual_seed(seed)
    return torch.randn(2, 6, 17, 3), torch.randn(2, 6, 17, 3)


def test_mixste_weights_are_in_the_order_of_h36m17():
    expected = (1, 1, 2.5, 2.5, 1, 2.5, 2.5, 1, 1, 1, 1.5, 1.5, 4, 4, 1.5, 4, 4)
    assert expected == MIXSTE_WEIGHTS


def test_mpjpe_of_a_joint_that_is_off_by_three_and_four():
    target = torch.zeros(1, 1, 17, 3)
    predicted = target.clone()
    predicted[0, 0, 3] = torch.tensor([3.0, 0.0, 4.0])
    assert MPJPELoss()(predicted, target).item() == pytest.approx(5 / 17)


def test_mixste_terms_by_hand():
    target = torch.zeros(1, 3, 17, 3)
    predicted = target.clone()
    predicted[0, 1, 13] = torch.tensor([0.0, 2.0, 0.0])
    position = 4 * 2 / (3 * 17)
    smooth = 2 * 4 * 4 / (2 * 17 * 3)
    velocity = 2 * 2 / (2 * 17)
    loss = MixSTELoss(1.0, 0.5, 2.0)(predicted, target).item()
    assert loss == pytest.approx(position + 0.5 * smooth + 2 * velocity)
    assert MixSTELoss(1, 0, 0)(predicted, target).item() == pytest.approx(position)


def test_smoothness_counts_even_for_an_exact_prediction():
    target, _ = clips()
    assert MixSTELoss(1, 0, 2)(target, target) == 0
    assert MixSTELoss(0, 1, 0)(target, target) > 0


def test_scale_free_error_does_not_depend_on_the_scale():
    _, target = clips()
    assert scale_free_error(3 * target, target).item() == pytest.approx(0, abs=1e-6)
    predicted, _ = clips()
    error = scale_free_error(predicted, target)
    torch.testing.assert_close(scale_free_error(0.2 * predicted, target), error)


def test_scale_free_error_takes_the_best_scale():
    predicted, target = torch.zeros(1, 1, 17, 3), torch.zeros(1, 1, 17, 3)
    predicted[..., 5, 0], target[..., 5, :2] = 2.0, torch.tensor([3.0, 4.0])
    assert scale_free_error(predicted, target).item() == pytest.approx(4 / 17)


def test_velocity_ignores_a_constant_offset():
    predicted, _ = clips()
    assert velocity_error(predicted + 7, predicted).item() == pytest.approx(0, abs=1e-6)


def test_pretrain_loss_is_the_weighted_sum():
    predicted, target = clips()
    expected = MPJPELoss()(predicted, target) + 0.5 * scale_free_error(predicted, target)
    expected += 20 * velocity_error(predicted, target)
    torch.testing.assert_close(PretrainLoss()(predicted, target), expected)


def test_z_scored_error_is_in_standard_deviations():
    loss = ZScoredMSE()
    deviation = torch.full((17, 3), 0.5)
    deviation[0] = 0.0
    loss.set_statistics(
        Statistics(torch.zeros(17, 2), torch.ones(17, 2), torch.zeros(17, 3), deviation)
    )
    target = torch.zeros(1, 1, 17, 3)
    predicted = target.clone()
    predicted[..., 4, 1] = 2.0
    assert loss(predicted, target).item() == pytest.approx(16 / 51)
    predicted[..., 0, 1] = 3.0
    assert loss(predicted, target).item() == pytest.approx((16 + 9) / 51)


def test_mean_without_the_root_is_over_48_coordinates():
    target = torch.zeros(1, 1, 17, 3)
    predicted = target.clone()
    predicted[..., 0, 0], predicted[..., 16, 2] = 5.0, 2.0
    assert ZScoredMSE(root=False)(predicted, target).item() == pytest.approx(4 / 48)


@pytest.mark.parametrize("loss", LOSSES, ids=NAMES)
def test_all_frames_valid_is_the_same_as_no_mask(loss):
    predicted, target = clips()
    valid = torch.ones(2, 6, dtype=torch.bool)
    torch.testing.assert_close(loss(predicted, target, valid), loss(predicted, target))


@pytest.mark.parametrize("loss", LOSSES, ids=NAMES)
def test_invalid_frames_at_the_end_are_as_if_cut_off(loss):
    predicted, target = clips()
    valid = torch.ones(2, 6, dtype=torch.bool)
    valid[:, 4:] = False
    padded = target.clone()
    padded[:, 4:] = torch.nan
    torch.testing.assert_close(
        loss(predicted, padded, valid), loss(predicted[:, :4], target[:, :4])
    )


@pytest.mark.parametrize("loss", LOSSES, ids=NAMES)
def test_invalid_frames_get_no_gradient(loss):
    predicted, target = clips()
    predicted.requires_grad_()
    valid = torch.ones(2, 6, dtype=torch.bool)
    valid[1, 2] = False
    (gradient,) = torch.autograd.grad(loss(predicted, target, valid), predicted)
    assert gradient[1, 1].any()
    assert not gradient[1, 2].any()


@pytest.mark.parametrize("loss", LOSSES, ids=NAMES)
def test_without_a_valid_frame_loss_and_gradient_are_zero(loss):
    predicted, target = clips()
    predicted.requires_grad_()
    value = loss(predicted, target, torch.zeros(2, 6, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(value, predicted)
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize("loss", LOSSES, ids=NAMES)
def test_loss_of_an_exact_single_frame_in_half_precision_is_zero_in_float32(loss):
    _, target = clips()
    predicted = target[:, :1].bfloat16().requires_grad_()
    value = loss(predicted, predicted.detach().float())
    value.backward()
    assert value.dtype == torch.float32
    assert value == 0
    assert predicted.grad.isfinite().all()


def test_mixste_loss_of_16_joints_is_an_error():
    with pytest.raises(UsageError, match=r"not for 16; give --model.loss "):
        MixSTELoss()(torch.zeros(1, 2, 16, 3), torch.zeros(1, 2, 16, 3))


@pytest.mark.parametrize("loss", LOSSES, ids=NAMES)
def test_truth_that_is_missing_in_invalid_frames_changes_no_gradient(loss):
    predicted, target = clips()
    valid = torch.ones(2, 6, dtype=torch.bool)
    valid[0, 3:], valid[1, 2] = False, False
    gradients = []
    for missing in (0.0, torch.nan):
        leaf = predicted.clone().requires_grad_()
        loss(leaf, target.masked_fill(~valid[..., None, None], missing), valid).backward()
        gradients.append(leaf.grad)
    assert gradients[1].isfinite().all()
    assert gradients[1].any()
    assert torch.equal(*gradients)
