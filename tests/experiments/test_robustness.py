import numpy as np
import pytest
import torch

from pipeline.errors import UsageError
from pipeline.experiments import robustness
from pipeline.experiments.robustness import Point, measure_robustness, read_points, write_points
from pipeline.lift.lifter import Lifter
from pipeline.lift.module import LiftModule
from pipeline.mocap.synthetic import Synthetic


class Flat(Lifter):
    """Takes 2D for 3D: x and y times two metres, depth zero."""

    def __init__(self):
        super().__init__()
        self.frames = self.receptive_field = 1
        self.output = "every"

    def forward(self, joints2d, visible=None):
        return torch.nn.functional.pad(2.0 * joints2d, (0, 1))


def measured(**changes):
    source = Synthetic(1, 1, 1, seconds=2.0, actions=("walk", "wave"))
    module = LiftModule(Flat(), flip_test=False).eval()
    return {(p.corruption, p.level): p for p in measure_robustness(module, source, **changes)}


def test_errors_grow_with_what_is_hidden_dropped_and_added():
    found = measured(detections="exact")
    for corruption in ("joints hidden", "frames dropped", "noise"):
        errors = [p.mpjpe for (name, _), p in sorted(found.items()) if name == corruption]
        assert len(errors) == 5
        assert errors == sorted(errors)
        assert errors[-1] > errors[0] + 1
    untouched = {round(p.mpjpe, 6) for (_, level), p in found.items() if not level}
    assert len(untouched) == 1


def test_noise_once_is_the_noise_of_the_benchmark():
    found = measured(detections="noisy")
    assert found["noise", 1.0].mpjpe == pytest.approx(found["joints hidden", 0.0].mpjpe, rel=1e-4)


def test_what_is_hidden_depends_on_the_seed_alone():
    one, again, other = measured(), measured(), measured(seed=1)
    assert one == again
    assert one["joints hidden", 0.4] != other["joints hidden", 0.4]


def test_points_come_back_from_the_csv(tmp_path):
    points = [Point("joints hidden", level, 40 + level / 3, 5.5) for level in np.arange(3) / 5]
    points += [Point("noise", 1.0, 50.0, 6.0), Point("frames dropped", 0.0, 41.0, 6.0)]
    write_points(tmp_path, points)
    assert read_points(tmp_path) == points
    assert read_points(tmp_path / "elsewhere") == []
    assert (tmp_path / "robustness.png").stat().st_size > 1000


def test_detections_cannot_be_corrupted():
    with pytest.raises(UsageError, match="measured on exact or noisy 2D"):
        measured(detections="best.ckpt")


@pytest.mark.parametrize("every", [0, -1])
def test_videos_cannot_be_taken_every_nought(every):
    with pytest.raises(UsageError, match=f"every is {every}; give 1 for all videos"):
        measured(every=every)


def test_a_lifter_is_measured_in_a_table_that_says_where_it_is_written(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(robustness, "load_module", lambda path, classes: LiftModule(Flat()).eval())
    source = Synthetic(1, 1, 1, seconds=1.0, actions=("walk",))
    robustness.robustness(source, str(tmp_path / "checkpoints" / "best.ckpt"))
    lines = capsys.readouterr().out.splitlines()
    words = ["MPJPE,", "joints", "frames", "noise", "written:"]
    assert [line.partition(" ")[0] for line in lines] == words
    assert f"{tmp_path}/robustness.csv" in lines[-1]
