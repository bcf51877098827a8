"""SMPL-H parameters become joints, through a tiny body model."""

import dataclasses

import fabricate
import numpy as np
import pytest
from malformed import changed_objects, check_lines, error_line
from scipy.spatial.transform import Rotation

from pipeline.errors import DataError, UsageError
from pipeline.mocap.amass import (
    BodyModel,
    SmplMotion,
    read_body_model,
    read_motion,
    require_same_model,
    rotation_matrices,
    smpl_joints,
)
from pipeline.mocap.convert import convert_amass, convert_amc
from pipeline.mocap.preparation import read_positions


def test_rotation_vectors_are_those_of_scipy():
    vectors = np.array([[0.3, -2.0, 0.7], [0, 0, 0], [1e-9, 0, 0], [0, 3.14, 0]])
    expected = Rotation.from_rotvec(vectors).as_matrix()
    np.testing.assert_allclose(rotation_matrices(vectors), expected, atol=1e-12)


def test_a_bent_knee_moves_the_ankle_and_not_the_hip(tmp_path):
    motion, body = fabricate.amass(tmp_path)
    read, model = read_motion(motion), read_body_model(body)
    read.poses[:] = 0
    read.poses[1, 4] = [np.pi / 2, 0, 0]  # the left knee, about x
    joints = smpl_joints(read, model) - read.translation[:, None]
    rest = model.regressor @ (model.surface + model.shapes[..., : len(read.shape)] @ read.shape)
    np.testing.assert_allclose(joints[0], rest, atol=1e-6)
    x, y, z = rest[7] - rest[4]
    np.testing.assert_allclose(joints[1, 7], rest[4] + [x, -z, y], atol=1e-6)
    np.testing.assert_allclose(joints[1, :4], rest[:4], atol=1e-6)


def test_a_regressor_of_points_on_the_bones_gives_the_models_own_joints(tmp_path):
    """Points that follow one joint alone, and stand on it, move as it does."""
    motion, body = fabricate.amass(tmp_path)
    read, model = read_motion(motion), read_body_model(body)
    own = smpl_joints(read, model)
    np.testing.assert_allclose(smpl_joints(read, model, model.regressor), own, atol=1e-6)
    assert np.abs(own[0] - own[-1]).max() > 0.1


def test_converted_recordings_are_read_as_motion_capture(tmp_path):
    motion, body = fabricate.amass(tmp_path)
    convert_amass(motion, body, tmp_path / "out.npz")
    positions, fps, names = read_positions(tmp_path / "out.npz")
    assert (fps, names[4], positions.shape) == (60.0, "left_knee", (300, 23, 3))
    np.testing.assert_allclose(
        positions[:, :22], smpl_joints(read_motion(motion), read_body_model(body)), atol=1e-6
    )
    assert names[22] == "head_top"
    assert 0.1 < np.linalg.norm(positions[:, 22] - positions[:, 15], axis=-1).mean() < 0.2
    np.savez(tmp_path / "regressor.npz", np.ones((4, 23)) / 23)
    with pytest.raises(UsageError, match="makes 4 joints"):
        convert_amass(motion, body, tmp_path / "o.npz", regressor=tmp_path / "regressor.npz")
    (tmp_path / "arm.asf").write_text(fabricate.ASF)
    (tmp_path / "arm.amc").write_text(fabricate.AMC)
    convert_amc(tmp_path / "arm.asf", tmp_path / "arm.amc", tmp_path / "arm.npz")
    positions, fps, names = read_positions(tmp_path / "arm.npz")
    assert (fps, names) == (120.0, ["root", "upper", "lower", "hand"])
    np.testing.assert_allclose(positions[0, 0], np.array([1, 2, 3]) * 0.0254 / 0.45, rtol=1e-6)


@pytest.mark.parametrize("which", ["motion", "body"])
@pytest.mark.parametrize("count", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_malformed_files_give_one_line(tmp_path, which, count):
    motion, body = fabricate.amass(tmp_path)
    path = motion if which == "motion" else body
    with np.load(path) as archive:
        content = dict(archive)
    lines = []
    for changed in changed_objects(content, count, seed=count):
        np.savez(path, **changed)
        lines.append(error_line(lambda: (read_motion(motion), read_body_model(body))))
    check_lines(lines, path.name, 0.4)


def changed_motion(tmp_path, **changes):
    """The fabricated recording with other arrays, and its body model."""
    motion, body = fabricate.amass(tmp_path)
    with np.load(motion) as archive:
        content = {**archive, **changes}
    np.savez(motion, **{name: value for name, value in content.items() if value is not None})
    return motion, body


def test_two_frame_rates_in_a_file_are_an_error_until_fps_names_the_right_one(tmp_path):
    files = changed_motion(tmp_path, mocap_framerate=120.0, mocap_frame_rate=60.0)
    out = tmp_path / "out.npz"
    with pytest.raises(DataError, match="mocap_framerate 120 and mocap_frame_rate 60; give the"):
        convert_amass(*files, out)
    with pytest.raises(DataError, match="not the 100 of --fps"):
        convert_amass(*files, out, fps=100.0)
    convert_amass(*files, out, fps=60.0)
    assert read_positions(out)[1] == 60.0
    assert read_motion(changed_motion(tmp_path, mocap_frame_rate=60.0)[0]).fps == 60.0


def test_a_file_without_a_frame_rate_is_read_with_fps(tmp_path):
    motion, _ = changed_motion(tmp_path, mocap_framerate=None)
    with pytest.raises(DataError, match=r"no mocap_framerate; .* as in --fps 120"):
        read_motion(motion)
    assert read_motion(motion, 120.0).fps == 120.0


def test_a_file_with_one_frame_a_second_is_an_error(tmp_path):
    motion, _ = changed_motion(tmp_path, mocap_framerate=1.0)
    with pytest.raises(DataError, match="mocap_framerate is 1; a rate from 10 to 1000"):
        read_motion(motion)


def test_joints_faster_than_a_human_are_an_error(tmp_path):
    translation = 40.0 * np.arange(300)[:, None] / 60 * [1.0, 0, 0]  # 40 m/s
    files = changed_motion(tmp_path, trans=translation)
    with pytest.raises(DataError, match=r"the pelvis is faster than 40 m/s .* \(here 60 Hz\)"):
        convert_amass(*files, tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()


def test_parameters_of_another_body_model_are_an_error(tmp_path):
    joints = len(read_body_model(fabricate.amass(tmp_path)[1]).parents)
    files = changed_motion(tmp_path, poses=np.zeros((300, 3 * 55)), surface_model_type="smplx")
    with pytest.raises(DataError, match=f"parameters of SMPLX, 55 joints, .* with {joints};"):
        convert_amass(*files, tmp_path / "out.npz")


@pytest.mark.parametrize(("joints", "named"), [(52, "smplx"), (55, "smplh"), (24, "smplh")])
def test_a_body_model_of_the_right_size_and_another_name_is_an_error(joints, named):
    motion = SmplMotion(np.zeros((1, joints, 3)), np.zeros((1, 3)), np.zeros(10), 60.0, named)
    none = np.zeros(0)
    body = BodyModel(none, none, none, none, none, (-1,) * joints)
    with pytest.raises(DataError, match="give the body model that the file was made with"):
        require_same_model(motion, body, "a.npz")
    same = dataclasses.replace(motion, model={24: "smpl", 52: "smplh", 55: "smplx"}[joints])
    require_same_model(same, body, "a.npz")
