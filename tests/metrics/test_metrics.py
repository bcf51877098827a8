"""Errors of poses and motion against hand-worked numbers, SciPy, and several processes."""

import re
import warnings

import numpy as np
import pytest
import torch
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes
from scipy.spatial import procrustes as scipy_procrustes
from scipy.spatial.transform import Rotation

from pipeline.metrics import functional, motion_table, pck, pose_metrics
from pipeline.metrics.exact_metric import WeightedMean
from pipeline.skeleton import H36M17

SEEDS = st.integers(0, 10**6)


def poses(seed, *shape, spread=0.3, error=0.05):
    """Predicted and true joints, metres."""
    random = np.random.default_rng(seed)
    target = random.normal(0, spread, (*shape, 17, 3))
    return target + random.normal(0, error, target.shape), target


def by_scipy(predicted, target):
    """Similarity fit of one frame without mirroring, mm, by SciPy's orthogonal Procrustes."""
    a, b = predicted - predicted.mean(axis=0), target - target.mean(axis=0)
    turn, _ = orthogonal_procrustes(a, b)
    if np.linalg.det(turn) < 0:
        left, _, right = np.linalg.svd(a.T @ b)
        turn = left @ np.diag([1, 1, -1]) @ right
    fitted = a @ turn * ((a @ turn * b).sum() / (a * a).sum())
    return 1000 * np.linalg.norm(fitted - b, axis=-1).mean()


def least_squares(predicted, target):
    """What the best similarity leaves of the squares, by the singular values (Umeyama 1991)."""
    a, b = predicted - predicted.mean(axis=0), target - target.mean(axis=0)
    values = np.linalg.svd(b.T @ a, compute_uv=False)
    if np.linalg.det(b.T @ a) < 0:
        values[2] *= -1
    gain = values.sum() ** 2 / (a * a).sum() if (a * a).sum() > 1e-20 else 0
    return (b * b).sum() - gain


def test_mpjpe_by_hand():
    predicted, target = np.zeros((1, 2, 3)), np.array([[[0.002, 0.003, 0.006], [0, 0.001, 0]]])
    assert functional.mpjpe(predicted, target) == pytest.approx(4.0)
    assert functional.mpjpe(predicted, target, visible=np.array([[True, False]])) == pytest.approx(
        7
    )


def test_mpjve_by_hand_stays_inside_each_clip():
    target = np.zeros((2, 3, 1, 3))
    predicted = target.copy()
    predicted[0, :, 0, 0] = [0.0, 0.003, 0.003]
    predicted[1, :, 0, 2] = [0.5, 0.5, 0.504]
    assert functional.mpjve(predicted, target) == pytest.approx((3 + 0 + 0 + 4) / 4)
    assert functional.acceleration_error(predicted, target) == pytest.approx((3 + 4) / 2)
    assert np.isnan(functional.mpjve(predicted[:, :1], target[:, :1]))


def test_n_mpjpe_by_hand():
    predicted = np.array([[[0.5, 0, 0], [0, 0.5, 0]]])
    target = np.array([[[1.0, 0, 0], [0, 1.0, 0.25]]])
    assert functional.n_mpjpe(predicted, target) == pytest.approx(125)


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS, error=st.sampled_from([0.0, 1e-3, 0.05, 0.5, 3.0]))
def test_p_mpjpe_agrees_with_scipy(seed, error):
    predicted, target = poses(seed, 6, error=error)
    ours = functional.p_mpjpe(predicted, target)
    frames = [by_scipy(a, b) for a, b in zip(predicted, target, strict=True)]
    assert ours == pytest.approx(np.mean(frames), abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS, error=st.sampled_from([0.0, 1e-3, 0.05, 0.5, 3.0]))
def test_rigid_mpjpe_agrees_with_scipys_align_vectors(seed, error):
    predicted, target = (
        joints - joints.mean(1, keepdims=True) for joints in poses(seed, 6, error=error)
    )
    frames = [
        np.linalg.norm(Rotation.align_vectors(b, a)[0].apply(a) - b, axis=-1).mean()
        for a, b in zip(predicted, target, strict=True)
    ]
    moved = predicted + np.array([0.2, -1.0, 3.0])
    assert functional.rigid_mpjpe(moved, target) == pytest.approx(1000 * np.mean(frames), abs=1e-4)


def test_rigid_mpjpe_keeps_the_error_of_a_wrong_size_that_p_mpjpe_removes():
    target = np.zeros((1, 4, 3))
    target[0, :, 0] = [0.1, -0.1, 0.3, -0.3]  # 0.2 m from the centre on average
    turn = Rotation.from_rotvec([0.3, -0.7, 1.1]).as_matrix()
    predicted = 1.25 * target @ turn + np.array([1.0, 2.0, 3.0])
    assert functional.rigid_mpjpe(predicted, target) == pytest.approx(50.0)
    assert functional.p_mpjpe(predicted, target) == pytest.approx(0.0, abs=1e-6)


def test_procrustes_agrees_with_scipys_disparity():
    predicted, target = poses(1, 1)
    fitted = functional.procrustes(predicted, target)[0]
    _, _, disparity = scipy_procrustes(target[0], predicted[0])
    spread = target[0] - target[0].mean(axis=0)
    assert ((fitted - target[0]) ** 2).sum() / (spread**2).sum() == pytest.approx(disparity)


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS, scale=st.floats(0.01, 100))
def test_p_mpjpe_does_not_see_a_similarity(seed, scale):
    predicted, target = poses(seed, 4)
    turn = Rotation.random(random_state=seed).as_matrix()
    moved = scale * predicted @ turn + np.random.default_rng(seed).normal(0, 3, 3)
    assert functional.p_mpjpe(moved, target) == pytest.approx(
        functional.p_mpjpe(predicted, target), abs=1e-6
    )
    assert functional.p_mpjpe(scale * target @ turn, target) == pytest.approx(0, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS)
def test_p_mpjpe_sees_a_reflection(seed):
    _, target = poses(seed, 3)
    assert functional.p_mpjpe(target * [-1, 1, 1], target) > 50


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS, error=st.floats(0.0, 1.0))
def test_the_fit_never_makes_the_squares_larger(seed, error):
    predicted, target = poses(seed, 5, error=error)
    before = ((predicted - target) ** 2).sum(axis=(1, 2))
    after = ((functional.procrustes(predicted, target) - target) ** 2).sum(axis=(1, 2))
    assert (after <= before + 1e-12).all()
    assert functional.p_mpjpe(predicted, target) <= 1000 * np.sqrt(before / 17).mean() + 1e-9


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS, scale=st.floats(0.01, 100))
def test_n_mpjpe_does_not_see_a_scale_and_mpjpe_is_symmetric(seed, scale):
    predicted, target = poses(seed, 4)
    assert functional.n_mpjpe(predicted * scale, target) == pytest.approx(
        functional.n_mpjpe(predicted, target)
    )
    assert functional.mpjpe(predicted, target) == functional.mpjpe(target, predicted) > 0
    moved = functional.root_relative(predicted + np.array([3.0, -2.0, 9.0]))
    assert functional.mpjpe(moved, functional.root_relative(target)) == pytest.approx(
        functional.mpjpe(functional.root_relative(predicted), functional.root_relative(target))
    )


LINE = np.linspace(-1, 1, 17)[:, None] * np.array([0.2, 0.3, -0.1])
FLAT = np.random.default_rng(0).normal(size=(17, 3)) * [0.3, 0.2, 0]
BODY = np.random.default_rng(1).normal(size=(17, 3)) * 0.3
SHAPES = {
    "point": np.full((17, 3), 0.3),
    "origin": np.zeros((17, 3)),
    "line": LINE,
    "line across": LINE[:, ::-1],
    "almost a line": LINE + 1e-7 * BODY,
    "flat": FLAT,
    "flat, upright": FLAT[:, [2, 0, 1]],
    "body": BODY,
    "mirrored": BODY * [1, -1, 1],
}


@pytest.mark.parametrize("predicted", SHAPES)
@pytest.mark.parametrize("target", SHAPES)
def test_degenerate_poses_give_what_a_decomposition_gives(predicted, target):
    a, b = SHAPES[predicted][None], SHAPES[target][None]
    middle = b - b.mean(axis=1, keepdims=True)
    found = functional.p_mpjpe(a, b)
    assert np.isfinite([found, functional.n_mpjpe(a, b)]).all()
    if predicted in ("point", "origin"):
        assert found == pytest.approx(1000 * np.linalg.norm(middle, axis=-1).mean())
    elif "line" not in predicted + target:  # else there is more than one best rotation
        assert found == pytest.approx(by_scipy(a[0], b[0]), abs=1e-5)
    squares = ((functional.procrustes(a, b) - b) ** 2).sum()
    assert squares == pytest.approx(least_squares(a[0], b[0]), abs=1e-9)


def test_nan_comes_out_as_nan_of_its_frame_alone():
    predicted, target = poses(0, 5)
    predicted[2, 3] = np.nan
    fitted = functional.procrustes(predicted, target)
    assert np.isnan(fitted).any(axis=(1, 2)).tolist() == [False, False, True, False, False]


def test_tensors_of_any_precision_and_read_only_arrays_give_the_same_and_stay_as_they_are():
    predicted, target = poses(2, 2, 40)
    copies = predicted.copy(), target.copy()
    predicted.setflags(write=False)
    for measure in (functional.mpjpe, functional.p_mpjpe, functional.n_mpjpe, functional.mpjve):
        tensors = torch.tensor(predicted, requires_grad=True), torch.tensor(target)
        assert measure(*tensors) == measure(predicted, target)
        single = (torch.tensor(predicted).float(), torch.tensor(target).float())
        assert measure(*single) == pytest.approx(measure(predicted, target), abs=1e-4)
        assert isinstance(measure(predicted, target), float)
    assert np.array_equal(predicted, copies[0])
    assert np.array_equal(target, copies[1])


def test_long_arrays_are_worked_on_in_blocks_with_the_same_result():
    predicted, target = poses(3, 2, 3001)
    change = np.diff(predicted - target, axis=1)
    assert functional.mpjve(predicted, target) == pytest.approx(
        1000 * np.linalg.norm(change, axis=-1).mean()
    )
    halves = [functional.p_mpjpe(a, b) for a, b in zip(predicted, target, strict=True)]
    assert functional.p_mpjpe(predicted, target) == pytest.approx(np.mean(halves))


def test_the_message_about_different_shapes_names_both():
    with pytest.raises(ValueError, match=r"predicted \(8, 17, 3\) and target \(8, 16, 3\)"):
        functional.mpjpe(np.zeros((8, 17, 3)), np.zeros((8, 16, 3)))
    with pytest.raises(ValueError, match=r"motion needs \(..., T, J, 3\), not \(17, 3\)"):
        functional.mpjve(np.zeros((17, 3)), np.zeros((17, 3)))


@pytest.mark.parametrize("shape", [(17, 4), (68,), (2, 1), (4, 17, 1), (4, 1)])
def test_a_mask_of_another_shape_is_an_error_and_never_reshaped(shape):
    predicted, target = poses(6, 4)
    message = rf"visible is {re.escape(str(shape))}, but must be \(4, 17\) here"
    with pytest.raises(ValueError, match=message):
        functional.mpjpe(predicted, target, np.ones(shape, bool))
    with pytest.raises(ValueError, match=message):
        pose_metrics.MPJPE().update(predicted, target, torch.ones(shape))
    table = motion_table.PoseErrorTable(["walk"], H36M17.joints)
    with pytest.raises(ValueError, match=r"valid is .* but must be \(4,\) here"):
        table.update(0, predicted, target, np.ones(shape, bool))


@pytest.mark.parametrize("shape", [(0, 17, 3), (2, 0, 17, 3), (0, 5, 17, 3), (2, 5, 0, 3)])
def test_an_error_of_nothing_is_nan(shape):
    nothing = np.zeros(shape)
    for error in (functional.mpjpe, functional.p_mpjpe, functional.n_mpjpe):
        assert np.isnan(error(nothing, nothing))
    for error in (functional.mpjve, functional.acceleration_error):
        assert np.isnan(error(nothing, nothing))
        assert np.isnan(error(torch.zeros(shape), torch.zeros(shape)))
    assert functional.procrustes(nothing, nothing).shape == shape


@pytest.mark.parametrize(
    ("metric", "function"),
    [
        (pose_metrics.MPJPE, functional.mpjpe),
        (pose_metrics.PMPJPE, functional.p_mpjpe),
        (pose_metrics.RigidMPJPE, functional.rigid_mpjpe),
        (pose_metrics.NMPJPE, functional.n_mpjpe),
        (pose_metrics.MPJVE, functional.mpjve),
    ],
)
def test_metrics_over_uneven_batches_equal_their_functions_in_any_precision(metric, function):
    predicted, target = (torch.tensor(x) for x in poses(4, 10, 5))
    running = metric().to(torch.bfloat16).half()
    running.set_dtype(torch.float16)
    for part in (slice(0, 1), slice(1, 8), slice(8, 10)):
        running.update(predicted[part], target[part])
    assert running.compute().dtype == torch.float64
    assert running.compute().item() == pytest.approx(function(predicted, target), rel=1e-12)
    running.reset()
    running.update(predicted[:1], target[:1])
    assert running.compute().item() == pytest.approx(function(predicted[:1], target[:1]))


def test_only_visible_joints_count_in_the_mpjpe_metric():
    predicted, target = poses(5, 3, 4)
    visible = np.random.default_rng(0).random((3, 4, 17)) < 0.5
    running = pose_metrics.MPJPE()
    running.update(predicted, target, visible)
    assert running.compute().item() == pytest.approx(functional.mpjpe(predicted, target, visible))


VIDEOS = [(0, 30), (2, 7), (0, 1), (2, 41)]


def filled(videos, **options):
    table = motion_table.PoseErrorTable(("walk", "sit", "wave"), H36M17.joints, **options)
    for k in videos:
        action, frames = VIDEOS[k]
        table.update(action, *poses(k, frames))
    return table


def test_a_table_has_a_row_per_action_and_both_means():
    report = filled(range(4)).compute()
    assert [(row.name, row.frames) for row in report.rows] == [("walk", 31), ("wave", 48)]
    clips = [poses(k, frames) for k, (_, frames) in enumerate(VIDEOS)]
    walk, wave = (
        functional.mpjpe(*(np.concatenate([clips[k][side] for k in pick]) for side in (0, 1)))
        for pick in ((0, 2), (1, 3))
    )
    assert report.rows[0].mpjpe == pytest.approx(walk)
    assert report.frame_mean["mpjpe"] == pytest.approx((31 * walk + 48 * wave) / 79)
    assert report.action_mean["mpjpe"] == pytest.approx((walk + wave) / 2)
    assert np.mean(list(report.per_joint.values())) == pytest.approx(report.frame_mean["mpjpe"])
    assert report.rows[0].mpjve == pytest.approx(functional.mpjve(*clips[0]))
    both = (
        6 * functional.p_mpjpe(clips[1][0][:6], clips[1][1][:6]),
        functional.p_mpjpe(clips[1][0][6:], clips[1][1][6:]),
    )
    last = 41 * functional.p_mpjpe(*clips[3])
    assert report.rows[1].p_mpjpe == pytest.approx((sum(both) + last) / 48)


def test_a_table_has_the_rigid_error_where_it_is_asked_for():
    table = motion_table.PoseErrorTable(["walk"], H36M17.joints, rigid=True)
    predicted, target = poses(7, 5)
    table.update(0, predicted, target)
    report, plain = table.compute(), filled([0]).compute()
    assert report.rows[0].rigid_mpjpe == pytest.approx(functional.rigid_mpjpe(predicted, target))
    assert report.rows[0].p_mpjpe == pytest.approx(functional.p_mpjpe(predicted, target))
    assert "P-MPJPE    rigid  N-MPJPE" in report.text()
    assert "rigid" not in plain.text()


def test_invalid_frames_count_nowhere_and_break_motion():
    predicted, target = poses(6, 9)
    valid = np.array([1, 1, 0, 1, 0, 1, 1, 1, 0], bool)
    predicted[~valid] = np.nan
    table = motion_table.PoseErrorTable(["walk"], H36M17.joints)
    table.update(0, predicted, target, valid)
    row = table.compute().rows[0]
    pairs = [functional.mpjve(predicted[i : i + 2], target[i : i + 2]) for i in (0, 5, 6)]
    assert row.frames == 6
    assert row.mpjpe == pytest.approx(functional.mpjpe(predicted[valid], target[valid]))
    assert row.p_mpjpe == pytest.approx(functional.p_mpjpe(predicted[valid], target[valid]))
    assert row.mpjve == pytest.approx(np.mean(pairs))
    assert row.acceleration == pytest.approx(
        functional.acceleration_error(predicted[5:8], target[5:8])
    )


def test_the_text_of_a_table_has_a_line_for_each_action_and_both_means():
    text = filled(range(4)).compute().text().splitlines()
    assert text[0].split() == ["mm", "frames", "MPJPE", "P-MPJPE", "N-MPJPE", "MPJVE", "accel."]
    assert [line.split()[0] for line in text[2:4]] == ["walk", "wave"]
    assert text[-1].startswith("mean over actions")
    assert len({len(line) for line in text}) == 1


def test_the_text_of_single_images_has_no_columns_of_motion():
    table = motion_table.PoseErrorTable(["walk"], H36M17.joints)
    for seed in range(3):
        table.update(0, *poses(seed, 1))
    lines = table.compute().text().splitlines()
    assert lines[0].split() == ["mm", "frames", "MPJPE", "P-MPJPE", "N-MPJPE"]
    assert "nan" not in "".join(lines)
    table.update(0, *poses(3, 2))
    assert table.compute().text().splitlines()[0].split()[-1] == "MPJVE"


def test_a_table_without_videos_is_empty():
    table = motion_table.PoseErrorTable(["walk"], H36M17.joints)
    table.update(0, *poses(0, 3), np.zeros(3, bool))
    report = table.compute()
    assert report.rows == []
    assert report.frame_mean == report.action_mean == {}
    assert "mean over frames" in report.text()


def test_a_quantity_that_is_not_defined_is_left_out_and_one_that_is_not_finite_is_not():
    table = motion_table.PoseErrorTable(["jump", "walk"], H36M17.joints)
    predicted, target = poses(0, 1)
    table.update(0, predicted, target)
    table.update(1, *poses(1, 2))
    report = table.compute()
    assert list(report.frame_mean) == list(report.action_mean) == list(motion_table.QUANTITIES[:4])
    assert report.rows[0].mpjve is None
    assert report.action_mean["mpjve"] == report.rows[1].mpjve
    table.update(0, predicted * np.nan, target)
    report = table.compute()
    assert np.isnan(report.frame_mean["mpjpe"])
    assert np.isnan(report.action_mean["mpjpe"])


def test_a_table_for_other_joints_raises_an_error():
    with pytest.raises(ValueError, match=r"takes \(T, 2, 3\), not \(4, 17, 3\)"):
        motion_table.PoseErrorTable(["walk"], ["a", "b"]).update(0, *poses(0, 4))


def test_the_order_of_videos_changes_no_bit():
    one, other = filled([0, 1, 2, 3]), filled([3, 1, 0, 2])
    assert torch.equal(one.sums, other.sums)
    assert torch.equal(one.joint_sums, other.joint_sums)


def _table_of_a_process(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    report = filled(range(rank, 4, 2)).compute()
    if rank == 0:
        (folder / "table.txt").write_text(repr(report))
    torch.distributed.destroy_process_group()


def test_two_processes_make_the_same_table_as_one_bit_for_bit(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads, Python 3.12
        torch.multiprocessing.start_processes(
            _table_of_a_process, (tmp_path,), nprocs=2, start_method="fork"
        )
    assert (tmp_path / "table.txt").read_text() == repr(filled(range(4)).compute())


def test_pck_by_hand():
    metric = pck.PCK(["wrist", "knee"], thresholds=(0.1, 0.2))
    target = torch.zeros(2, 2, 2)
    predicted = torch.tensor([[[3.0, 4.0], [0.0, 5.1]], [[10.0, 0.0], [30.0, 0.0]]])
    counted = torch.tensor([[True, True], [True, False]])
    metric.update(predicted, target, torch.tensor([50.0, 50.0]), counted)
    found = metric.compute()
    assert found["pck@0.1"] == pytest.approx(1 / 3)
    assert found["pck@0.1/wrist"] == 0.5
    assert found["pck@0.1/knee"] == 0
    assert found["pck@0.2"] == 1


def test_pck_grows_with_its_threshold_and_misses_nan():
    metric = pck.PCK(["a", "b"], thresholds=(0.05, 0.1, 0.2, 0.5))
    random = np.random.default_rng(0)
    predicted = torch.tensor(random.normal(0, 10, (50, 2, 2)))
    predicted[0] = torch.nan
    metric.update(predicted, torch.zeros(50, 2, 2), torch.full((50,), 100.0))
    shares = [metric.compute()[f"pck@{threshold}"] for threshold in (0.05, 0.1, 0.2, 0.5)]
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] <= 0.98


def test_a_person_without_a_size_does_not_count():
    """One labelled joint has a box of no size, in which nothing could be found."""
    metric = pck.PCK(["a", "b"])
    target = torch.tensor([[[10.0, 10], [50, 90]], [[20.0, 30], [0, 0]]])
    counted = torch.tensor([[True, True], [True, False]])
    metric.update(target + 1, target, torch.tensor([80.0, 0.0]), counted)
    assert metric.compute()["pck@0.05"] == 1
    assert metric.counted.tolist() == [1, 1]


@pytest.mark.parametrize("name", ["predicted", "target", "scale", "counted"])
def test_pck_raises_an_error_for_what_would_be_broadcast(name):
    given = {
        "predicted": torch.zeros(4, 2, 2),
        "target": torch.zeros(4, 2, 2),
        "scale": torch.ones(4),
        "counted": torch.ones(4, 2),
    }
    given[name] = given[name][:1]
    metric = pck.PCK(["a", "b"])
    if name == "predicted":
        name = "target"  # the length of `predicted` is the one that is expected
    with pytest.raises(ValueError, match=f"{name} is "):
        metric.update(**given)


def test_a_weighted_mean_is_in_float64_and_keeps_nan():
    mean = WeightedMean()
    for _ in range(1000):
        mean.update(torch.tensor(1.0), 3)
    mean.update(torch.tensor(1e-9, dtype=torch.float64), 1000.0)
    assert mean.compute().item() == pytest.approx((3000 + 1e-6) / 4000, abs=1e-15)
    mean.update(torch.tensor(torch.nan), 2)
    assert mean.compute().isnan()


@pytest.mark.parametrize("kind", [">f8", ">f4", np.longdouble])
def test_arrays_of_other_machines_and_tools_are_measured_too(kind):
    """Of the other byte order, as in .mat files, and long doubles."""
    predicted, target = np.random.default_rng(5).normal(size=(2, 4, 17, 3)).astype("f4")
    expected = functional.mpjpe(predicted, target)
    assert functional.mpjpe(predicted.astype(kind), target) == pytest.approx(expected, rel=1e-6)
