import pytest
from planar import FlatLifter

from pipeline.errors import UsageError
from pipeline.experiments import robustness
from pipeline.experiments.robustness import (
    LEVELS,
    Point,
    measure_robustness,
    write_points,
)
from pipeline.lift.module import LiftModule
from pipeline.mocap.synthetic import Synthetic


def measured(**changes):
    source = Synthetic(1, 1, 1, seconds=2.0, actions=("walk", "wave"))
    module = LiftModule(FlatLifter(2.0), flip_test=False).eval()
    return {(p.corruption, p.level): p for p in measure_robustness(module, source, **changes)}


def test_errors_grow_with_the_level_of_corruption():
    found = measured(detections="exact")
    for corruption in ("joints hidden", "frames dropped", "noise"):
        errors = [p.mpjpe for (name, _), p in sorted(found.items()) if name == corruption]
        assert len(errors) == 5
        assert errors == sorted(errors)
        assert errors[-1] > errors[0] + 1
    untouched = {round(p.mpjpe, 6) for (_, level), p in found.items() if not level}
    assert len(untouched) == 1


def test_noise_of_level_1_is_the_noise_of_the_benchmark():
    found = measured(detections="noisy")
    assert found["noise", 1.0].mpjpe == pytest.approx(found["joints hidden", 0.0].mpjpe, rel=1e-4)


def test_hidden_joints_depend_only_on_the_seed():
    one, again, other = measured(), measured(), measured(seed=1)
    assert one == again
    assert one["joints hidden", 0.4] != other["joints hidden", 0.4]


def test_points_are_written_as_a_table_with_their_smoothing(tmp_path):
    write_points(tmp_path, [Point("noise", 0.5, 3.0, 50.25, 6.5)])
    table = (tmp_path / "robustness.csv").read_text()
    assert table == "corruption,level,smooth_frames,mpjpe_mm,mpjve_mm\nnoise,0.5,3.0,50.25,6.5\n"
    assert (tmp_path / "robustness.png").stat().st_size > 1000


def test_points_without_and_with_smoothing_come_from_the_same_predictions():
    source = Synthetic(1, 1, 1, seconds=2.0, actions=("walk", "wave"))
    levels = {"joints hidden": (0.2,), "noise": (1.0,)}
    both = LiftModule(FlatLifter(2.0), flip_test=False, smooth=9.0).eval()
    points = measure_robustness(both, source, smooth=(0.0, 2.0), levels=levels)
    assert [(p.corruption, p.smooth) for p in points] == [
        (name, deviation) for name in levels for deviation in (0.0, 2.0)
    ]
    for deviation in (0.0, 2.0):
        one = LiftModule(FlatLifter(2.0), flip_test=False, smooth=deviation).eval()
        alone = measure_robustness(one, source, levels=levels)
        assert alone == [p for p in points if p.smooth == deviation]
    assert points[1].mpjve < points[0].mpjve / 2


def test_detections_other_than_exact_and_noisy_raise_an_error():
    with pytest.raises(UsageError, match="measured on exact or noisy 2D"):
        measured(detections="best.ckpt")


@pytest.mark.parametrize("every", [0, -1])
def test_a_step_below_1_raises_an_error(every):
    with pytest.raises(UsageError, match=f"every is {every}; give 1 for all videos"):
        measured(every=every)


def test_the_command_prints_a_table_and_the_path_of_its_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        robustness, "load_module", lambda path, classes: LiftModule(FlatLifter(2.0)).eval()
    )
    source = Synthetic(1, 1, 1, seconds=1.0, actions=("walk",))
    robustness.robustness(source, str(tmp_path / "checkpoints" / "best.ckpt"))
    protocol, header, rule, *rows, last = capsys.readouterr().out.splitlines()
    assert "one video in 4; 2D noisy, seed 0; 17 joints, root-relative, mm; re-rooted" in protocol
    assert "flip test on; not smoothed; every valid frame" in protocol
    assert [cell.strip() for cell in header.split("|")] == ["corruption", "level", "MPJPE, mm"]
    assert set(rule) == {"-", "+"}
    levels = [tuple(cell.strip() for cell in row.split("|"))[:2] for row in rows]
    assert levels == [(name, f"{v:g}") for name, values in LEVELS.items() for v in values]
    assert f"written: {tmp_path}/robustness.csv" in last
