"""SMPL-H parameters become joints, through a tiny body model."""

import fabricate
import numpy as np
import pytest
from malformed import changed_objects, check_lines, error_line
from scipy.spatial.transform import Rotation

from pipeline.errors import UsageError
from pipeline.mocap.amass import read_body_model, read_motion, rotation_matrices, smpl_joints
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
