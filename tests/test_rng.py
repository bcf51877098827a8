"""Keyed random numbers do not depend on order, and have the right distribution."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import rng


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(-(2**62), 2**62),
    numbers=st.lists(st.integers(0, 2**40), min_size=1, max_size=20, unique=True),
    data=st.data(),
)
def test_a_sample_gets_the_same_numbers_in_any_batch_and_order(seed, numbers, data):
    order = data.draw(st.permutations(range(len(numbers))))
    whole = rng.random_bits(seed, "noise", np.array(numbers), lanes=3)
    permuted = rng.random_bits(seed, "noise", np.array(numbers)[list(order)], lanes=3)
    assert np.array_equal(whole[list(order)], permuted)
    assert np.array_equal(whole[0], rng.random_bits(seed, "noise", numbers[0], lanes=3))
    assert len(np.unique(whole)) == whole.size


def test_the_first_lanes_do_not_depend_on_the_number_of_lanes():
    few, many = (rng.uniform(1, "x", np.arange(5), lanes=lanes) for lanes in (2, 9))
    assert np.array_equal(few, many[:, :2])


@pytest.mark.parametrize("other", [(2, "a", 3), (1, "b", 3), (1, "a", 4), (1, 3, "a"), (1, "a")])
def test_another_key_is_another_stream(other):
    first, second = rng.random_bits(1, "a", 3, lanes=64), rng.random_bits(*other, lanes=64)
    assert not np.isin(first, second).any()


def test_distributions_of_one_key_are_independent():
    key = (3, "crop", np.arange(20_000))
    uniform, normal = rng.uniform(*key, lanes=4), rng.normal(*key, lanes=2)
    bits = rng.random_bits(*key, lanes=2) * 2.0**-64
    columns = np.concatenate([uniform, normal, bits], axis=1)
    for form in (columns, abs(columns - columns.mean(0))):
        correlation = np.corrcoef(form.T)[np.triu_indices(8, 1)]
        assert abs(correlation).max() < 4 / 20_000**0.5
    assert rng.derive_seed(3, "crop") != rng.random_bits(3, "crop", lanes=1)[0] >> np.uint64(1)


def test_the_numbers_of_a_key_never_change():
    assert (
        rng.random_bits(7, "flip", 3, lanes=1)[0]
        == rng.random_bits(7, "flip", np.array([3]), lanes=1)[0]
    )
    assert rng.derive_seed(0) == 6802404449170015307
    assert rng.make_generator(0, "a").integers(1000, size=3).tolist() == [480, 184, 634]


def test_uniform_numbers_fill_their_range_evenly():
    drawn = rng.uniform(0, "u", np.arange(1000), lanes=100, low=-2.0, high=3.0)
    counts, _ = np.histogram(drawn, bins=20, range=(-2, 3))
    assert drawn.min() >= -2
    assert drawn.max() < 3
    assert abs(counts - 5000).max() < 5 * 5000**0.5


def test_normal_numbers_have_mean_zero_deviation_one_and_normal_tails():
    drawn = rng.normal(0, "n", np.arange(1000), lanes=100)
    assert abs(drawn.mean()) < 0.015
    assert drawn.std() == pytest.approx(1, abs=0.01)
    assert (abs(drawn) > 1.96).mean() == pytest.approx(0.05, abs=0.005)


def test_neighbouring_samples_and_lanes_are_not_correlated():
    drawn = rng.normal(0, "c", np.arange(4000), lanes=2)
    pairs = (drawn[:, :1] * drawn[:, 1:], drawn[1:] * drawn[:-1])
    assert all(abs(products.mean()) < 5 / products.size**0.5 for products in pairs)


def test_drawing_numbers_changes_no_global_state():
    np.random.seed(5)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    rng.make_generator(1, "g").random(10)
    rng.uniform(1, lanes=10)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    assert 0 <= rng.derive_seed(1, "torch") < 2**63
