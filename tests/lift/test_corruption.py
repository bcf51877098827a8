"""Masks and noise have the right amount and depend on their key only."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.lift import corruption
from pipeline.skeleton import H36M17


def standing(frames, height=330.0):
    """Pixels of a person who stands still, arms a little out, (T, 17, 2)."""
    y = [0, 0, 75, 150, 0, 75, 150, -40, -85, -110, -180, -80, -30, 10, -80, -30, 10]
    x = [0, -20, -22, -25, 20, 22, 25, 0, 0, 0, 0, 35, 45, 45, -35, -45, -45]
    pose = np.stack([x, y], axis=-1) * height / 330 + 500
    return np.repeat(pose[None], frames, axis=0)


@pytest.fixture(scope="module")
def detected():
    exact = standing(1500)
    found = [corruption.add_detection_noise(exact, 50.0, 5, f"sequence {k}") for k in range(40)]
    return exact, np.stack([joints for joints, _ in found]), np.stack([score for _, score in found])


@settings(max_examples=50, deadline=None)
@given(
    order=st.permutations(range(6)),
    frames=st.integers(1, 40),
    epoch=st.integers(0, 5),
    seed=st.integers(0, 2**40),
)
def test_noise_and_masks_of_a_sample_do_not_depend_on_its_batch(order, frames, epoch, seed):
    numbers = np.array([0, 5, 3, 99, 10**6, 7])
    for draw in (
        lambda index: corruption.sample_pretraining_noise(frames, seed, epoch, index),
        lambda index: corruption.sample_pretraining_masks(frames, 17, seed, epoch, index),
    ):
        whole = draw(numbers)
        assert np.array_equal(draw(numbers[order]), whole[order])
        assert np.array_equal(draw(numbers[2:3]), whole[2:3])


def test_another_epoch_has_other_noise_and_masks():
    index = np.arange(3)
    noise = [corruption.sample_pretraining_noise(27, 1, epoch, index) for epoch in (0, 1)]
    masks = [corruption.sample_pretraining_masks(27, 17, 1, epoch, index) for epoch in (0, 1)]
    assert abs(noise[0] - noise[1]).min() > 0
    assert (masks[0] != masks[1]).any()


def test_pretraining_noise_has_the_moments_of_its_tables():
    noise = corruption.sample_pretraining_noise(1, 0, 0, np.arange(20_000))[:, 0].astype(float)
    weight = corruption.NOISE_WEIGHT[:, None]
    mean = weight * corruption.NOISE_MEAN
    gauss = weight * (corruption.NOISE_DEVIATION**2 + corruption.NOISE_MEAN**2)
    square = gauss + (1 - weight) * corruption.NOISE_UNIFORM**2 / 3 + corruption.NOISE_WHITE**2
    np.testing.assert_allclose(noise.mean(axis=0), mean, atol=5e-4)
    np.testing.assert_allclose((noise**2).mean(axis=0), square, rtol=0.06)


def test_pretraining_noise_is_slow_between_its_keys():
    noise = corruption.sample_pretraining_noise(243, 0, 0, np.arange(16)).astype(float)
    bends = np.diff(noise, n=2, axis=1)
    assert noise.shape == (16, 243, 17, 2)
    assert np.median(abs(bends)) < 2.5 * corruption.NOISE_WHITE
    assert noise.std() > 2 * corruption.NOISE_WHITE


def test_masks_hide_the_given_shares():
    visible = corruption.sample_pretraining_masks(
        81, 17, 0, 0, np.arange(200), joints=0.2, frames=0.3
    )
    whole = ~visible.any(axis=-1)
    assert whole.mean() == pytest.approx(0.3, abs=0.02)
    assert 1 - visible[~whole].mean() == pytest.approx(0.2, abs=0.01)
    assert len(np.unique(whole.sum(axis=1))) > 5  # drawn per sample
    assert corruption.sample_pretraining_masks(9, 17, 0, 0, np.arange(4), joints=0, frames=0).all()
    assert not corruption.sample_pretraining_masks(
        9, 17, 0, 0, np.arange(4), joints=1.0, frames=0
    ).any()


def test_detection_noise_has_the_sizes_that_the_benchmark_states(detected):
    exact, noisy, score = detected
    error = np.linalg.norm(noisy - exact, axis=-1)[score > 0]
    assert error.mean() == pytest.approx(4.5, abs=0.3)
    np.testing.assert_allclose(np.percentile(error, [50, 95, 99]), [3.4, 9.1, 26], rtol=0.1)
    assert (error > 20).mean() == pytest.approx(0.012, abs=0.003)
    assert (score == 0).mean() == pytest.approx(0.019, abs=0.003)


def test_exactly_the_missing_joints_are_nan_with_score_0(detected):
    _, noisy, score = detected
    assert np.array_equal(np.isnan(noisy).any(axis=-1), score == 0)
    missing = (score == 0).mean(axis=(0, 1))
    assert missing[H36M17.index("left_wrist")] > 5 * missing[H36M17.index("pelvis")]


def test_detection_noise_drifts_instead_of_flickering(detected):
    exact, noisy, _ = detected
    pelvis = (noisy - exact)[:, :, 0]
    size, step = np.nanstd(pelvis), np.nanstd(np.diff(pelvis, axis=1))
    assert step < 0.75 * size
    assert np.nanmean(pelvis, axis=1).std() == pytest.approx(0.5 * 2.0, rel=0.25)


def test_detection_noise_is_the_same_from_the_first_frame_on(detected):
    exact, noisy, score = detected
    error = abs(noisy - exact)
    assert np.nanmedian(error[:, 0]) == pytest.approx(np.nanmedian(error), rel=0.1)
    assert (score[:, 0] == 0).mean() == pytest.approx(0.02, abs=0.01)


def test_detection_noise_depends_on_its_key_alone_and_changes_no_input():
    exact = standing(60)
    before = exact.copy()
    first, again, other = (
        corruption.add_detection_noise(exact, 50, *key)[0] for key in ((1, "a"), (1, "a"), (1, "b"))
    )
    assert np.array_equal(first, again, equal_nan=True)
    assert not np.array_equal(first, other, equal_nan=True)
    assert np.array_equal(exact, before)


def test_detection_noise_grows_with_the_person():
    small, large = (
        np.nanmedian(
            abs(corruption.add_detection_noise(standing(400, h), 50, 3)[0] - standing(400, h))
        )
        for h in (165.0, 660.0)
    )
    assert large == pytest.approx(4 * small, rel=0.05)


def test_a_swapped_leg_is_swapped_with_all_its_joints():
    random = np.random.default_rng(0)
    exact = standing(20_000)
    swapped = corruption._swap_limbs(random, exact, 8.0)
    moved = (swapped != exact).any(axis=-1)
    legs = [
        H36M17.index(f"{side}_{name}")
        for side in ("left", "right")
        for name in ("hip", "knee", "ankle")
    ]
    leg = moved[:, legs]
    assert leg.mean() == pytest.approx(0.004, abs=0.002)
    assert np.array_equal(leg.any(axis=1), leg.all(axis=1))
    assert not moved[:, [0, 7, 8, 9, 10]].any()


def test_detection_noise_needs_17_joints():
    with pytest.raises(DataError, match="known for H36M17, not for 16 joints"):
        corruption.add_detection_noise(np.zeros((3, 16, 2)), 50, 1)


@settings(max_examples=50, deadline=None)
@given(fraction=st.floats(0, 1), shown=st.floats(0, 1), seed=st.integers(0, 99))
def test_the_given_fraction_of_joints_is_hidden_and_nothing_else_changes(fraction, shown, seed):
    visible = np.random.default_rng(seed).random((4, 9, 17)) < shown
    before = visible.copy()
    hidden = corruption.hide_joints(visible, fraction, seed, np.arange(4))
    count = (visible & ~hidden).sum(axis=(1, 2))
    assert (abs(count - fraction * visible.sum(axis=(1, 2))) <= 0.5).all()
    assert not (hidden & ~visible).any()
    assert np.array_equal(visible, before)
    alone = corruption.hide_joints(visible[2], fraction, seed, 2)
    assert np.array_equal(alone, hidden[2])


@settings(max_examples=50, deadline=None)
@given(fraction=st.floats(0, 1), frames=st.integers(1, 30), seed=st.integers(0, 99))
def test_the_given_fraction_of_frames_is_dropped_with_all_joints(fraction, frames, seed):
    visible = np.ones((3, frames, 17), bool)
    left = corruption.drop_frames(visible, fraction, seed, np.arange(3))
    seen = left.any(axis=-1)
    assert np.array_equal(seen, left.all(axis=-1))
    assert (abs((~seen).sum(axis=1) - fraction * frames) <= 0.5).all()
