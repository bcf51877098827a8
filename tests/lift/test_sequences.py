"""Sizes of people in the image: measured by hand, kept in checkpoints, compared in a test."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from pipeline.lift import LiftDataModule, LiftModule, Martinez
from pipeline.lift.sequences import (
    PreparedSequence,
    describe_unusual_sizes,
    person_sizes,
    size_range,
)
from pipeline.mocap.synthetic import Synthetic


def people(*heights):
    """A person in each frame who is this high and a third as wide; one joint is hidden."""
    frames = len(heights)
    joints2d = np.zeros((frames, 5, 2), np.float32)
    joints2d[:, 1, 1], joints2d[:, 2, 0] = heights, np.array(heights) / 3
    joints2d[:, 3] = 9.0
    visible = np.ones((frames, 5), bool)
    visible[:, 3] = False
    valid = np.ones(frames, bool)
    return PreparedSequence(None, joints2d, visible, None, valid, visible.astype(np.float32))


def test_the_size_of_a_person_is_the_larger_side_of_the_box_around_visible_joints():
    prepared = people(0.6, 0.9, 0.3)
    prepared.valid[1] = False
    np.testing.assert_allclose(person_sizes(prepared), [0.6, 0.3])
    prepared.visible[2, :3] = False  # one of five joints is left
    np.testing.assert_allclose(person_sizes(prepared), [0.6])
    assert size_range([dataclasses.replace(prepared, valid=np.zeros(3, bool))]) is None


def test_the_range_of_sizes_is_that_of_98_percent_of_the_frames():
    low, high = size_range([people(*np.linspace(1, 2, 101))])
    assert (low, high) == pytest.approx((1.01, 1.99))


@pytest.mark.parametrize(
    ("heights", "line"),
    [
        ((0.3, 0.3, 0.3, 1.0), "75 % of the frames show the person smaller than training did "),
        ((1.0, 2.5), "50 % of the frames show the person larger than training did "),
        ((0.7, 0.9, 1.3), ""),
        ((0.3, *[1.0] * 20), ""),  # 4.8 %
    ],
)
def test_other_sizes_than_in_training_are_a_warning(heights, line):
    found = describe_unusual_sizes([people(*heights)], (0.6, 1.4))
    assert line in found
    assert bool(found) == bool(line)
    if line:
        assert "training 0.30 to 0.70): expect larger errors" in found


class FarAway(LiftDataModule):
    """Test sequences in which the person is a quarter as large as in training."""

    def _prepare(self, split):
        prepared = super()._prepare(split)
        if split != "test":
            return prepared
        return [dataclasses.replace(p, joints2d=p.joints2d / np.float32(4)) for p in prepared]


def test_a_lifter_warns_about_people_it_was_not_trained_on(trainer, tmp_path, capsys):
    source = Synthetic(1, 1, 1, seconds=1.0, actions=("walk",))
    optimizer = lambda weights: torch.optim.SGD(weights, lr=0.0)  # noqa: E731
    module = LiftModule(Martinez(width=8, blocks=1), optimizer, flip_test=False)
    fitting = trainer(max_steps=1)
    fitting.fit(module, datamodule=LiftDataModule(source))
    fitting.save_checkpoint(tmp_path / "a.ckpt")
    loaded = LiftModule(Martinez(width=8, blocks=1), flip_test=False)
    capsys.readouterr()
    trainer().test(loaded, FarAway(source), ckpt_path=tmp_path / "a.ckpt", verbose=False)
    warning = r"warning: 1?\d\d % of the frames show the person smaller than training did \(median"
    assert re.search(warning, capsys.readouterr().out)
    trainer().test(loaded, LiftDataModule(source), ckpt_path=tmp_path / "a.ckpt", verbose=False)
    assert "warning" not in capsys.readouterr().out
