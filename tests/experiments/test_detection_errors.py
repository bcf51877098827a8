"""Errors of a detector in parts: planted errors come back, and each part reaches the lifters."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from planar import FlatLifter

from pipeline.experiments.detection_errors import (
    ALL,
    EXACT,
    DetectedClip,
    find_swaps,
    measure_inputs,
    split_errors,
)
from pipeline.lift.module import LiftModule
from pipeline.lift.sequences import exact_joints2d
from pipeline.mocap import Synthetic
from pipeline.skeleton import H36M17

NOSE, LEFT_KNEE = H36M17.index("nose"), H36M17.index("left_knee")
RIGHT_WRIST, LEFT_ELBOW = H36M17.index("right_wrist"), H36M17.index("left_elbow")
LEGS = [H36M17.index(f"{side}_{name}") for side in ("left", "right")
        for name in ("hip", "knee", "ankle")]  # fmt: skip
SIZE = np.full(20, 200.0)


def standing(frames=20):
    """A person 200 pixels tall whose joints lie far apart, (T, 17, 2)."""
    places = np.random.default_rng(3).uniform(0, 200, (17, 2))
    return places + np.linspace(0, 30, frames)[:, None, None] * [1.0, 0.25]


def planted():
    """Exact and found joints: a bias, a flicker, exchanged legs, a lost wrist, no elbow."""
    exact = standing()
    found = exact.copy()
    found[:, NOSE] += [3.0, -4.0]
    found[:, LEFT_KNEE, 0] += np.tile([1.5, -1.5], 10)
    found[4:7, LEGS] = found[4:7][:, [LEGS[i] for i in (3, 4, 5, 0, 1, 2)]]
    found[11, RIGHT_WRIST] += [0.0, 70.0]
    found[15, LEFT_ELBOW] = np.nan
    return exact, found


def test_planted_errors_come_back_in_their_parts():
    exact, found = planted()
    parts = split_errors(found, exact, SIZE)
    seen = np.isfinite(found).all(-1)
    assert_allclose(sum(parts.values())[seen], (found - exact)[seen], atol=1e-9)
    assert not any(part[15, LEFT_ELBOW].any() for part in parts.values())
    assert_allclose(parts["bias"][:, NOSE], np.tile([3.0, -4.0], (20, 1)), atol=1e-9)
    others = [j for j in range(17) if j not in (NOSE, LEFT_KNEE, *LEGS)]
    assert_allclose(parts["bias"][:, others], 0, atol=1e-9)
    assert_allclose(np.abs(parts["noise"][8:, LEFT_KNEE, 0]), 1.5, atol=0.2)
    assert set(np.flatnonzero(parts["swaps"].any(axis=(1, 2)))) == {4, 5, 6}
    step = exact[5, LEGS[3:]] - exact[5, LEGS[:3]]
    assert_allclose(parts["swaps"][5, LEGS], [*step, *-step], atol=1e-9)
    assert set(zip(*np.nonzero(parts["missed"].any(-1)), strict=True)) == {(11, RIGHT_WRIST)}
    assert_allclose(parts["missed"][11, RIGHT_WRIST], [0.0, 70.0], atol=1e-9)


@pytest.mark.parametrize(("size", "missed"), [(701.0, False), (699.0, True)])
def test_a_joint_is_missed_from_a_tenth_of_the_box_on(size, missed):
    exact, found = planted()
    parts = split_errors(found, exact, np.full(20, size))
    assert parts["missed"].any() == missed


def test_limbs_are_exchanged_only_if_they_fit_the_other_side_much_better():
    exact = standing(1)
    found = exact.copy()
    found[:, LEGS] = (found[:, LEGS] + found[:, [LEGS[i] for i in (3, 4, 5, 0, 1, 2)]]) / 2
    names = ("hip", "knee", "ankle")
    assert not find_swaps(found, exact, H36M17, names, 1.0).any()
    found[:, LEGS] += 0.3 * (exact[:, [LEGS[i] for i in (3, 4, 5, 0, 1, 2)]] - exact[:, LEGS])
    assert find_swaps(found, exact, H36M17, names, 1.0).all()
    assert not find_swaps(found, exact, H36M17, names, 1e3).any()


def test_each_part_reaches_the_lifters_alone():
    sequence = Synthetic(1, 1, 1, seconds=0.8, actions=("walk",)).sequences("test")[0]
    exact = exact_joints2d(sequence)
    size = np.ptp(exact, axis=1).max(axis=1)
    found = exact.copy()
    found[:, NOSE] += [5.0, 0.0]
    found[3, RIGHT_WRIST] = np.nan
    clip = DetectedClip(sequence, exact, found, size, np.full(len(exact), 0.5))
    module = LiftModule(FlatLifter(), flip_test=False).eval()
    with torch.no_grad():
        module.mask_token.fill_(9.0)
    rows = {row.name: row for row in measure_inputs([clip], {"flat": module})}
    assert list(rows) == [EXACT, "bias", "noise", "swaps", "missed", ALL]
    without = rows[EXACT].mpjpe["flat"]
    assert rows[EXACT].affected == rows[EXACT].pixels == 0
    assert rows["bias"].affected == pytest.approx(1 / 17)
    assert rows["bias"].pixels == pytest.approx(0.5 * 5 / 17)
    assert rows["bias"].relative == pytest.approx((5 / 17 / size).mean())
    assert rows["bias"].mpjpe["flat"] != pytest.approx(without, abs=0.01)
    assert rows["noise"].mpjpe["flat"] == pytest.approx(without, abs=1e-3)
    assert rows["swaps"].mpjpe["flat"] == pytest.approx(without, abs=1e-3)
    # one joint of 17 in one frame of 20 lies at the mask token, more than 9 metres away
    assert rows["missed"].mpjpe["flat"] > without + 8000 / (17 * len(exact))
    assert rows["missed"].affected == pytest.approx(1 / (17 * len(exact)))
    assert rows[ALL].mpjpe["flat"] != pytest.approx(rows["missed"].mpjpe["flat"], abs=0.01)
