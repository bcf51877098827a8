"""GLB files: the meshes read by trimesh, the joints by forward kinematics written here."""

import json
import struct

import numpy as np
import pytest
from random_motions import walking_motion
from scipy.spatial.transform import Rotation, Slerp

from pipeline.errors import UsageError
from pipeline.export.body_mesh import make_body_mesh
from pipeline.export.inverse_kinematics import fit_body, forward_positions
from pipeline.export.motion import Motion
from pipeline.skeleton import H36M17, Skeleton

trimesh = pytest.importorskip("trimesh")


class Glb:
    """A GLB file, its accessors as arrays."""

    def __init__(self, path):
        content = path.read_bytes()
        magic, version, length = struct.unpack_from("<4sII", content)
        assert (magic, version, length) == (b"glTF", 2, len(content))
        size, kind = struct.unpack_from("<I4s", content, 12)
        assert (kind, size % 4) == (b"JSON", 0)
        self.json = json.loads(content[20 : 20 + size])
        self.binary = content[28 + size :]
        if self.binary:
            assert struct.unpack_from("<I4s", content, 20 + size) == (len(self.binary), b"BIN\0")
        self.nodes = self.json.get("nodes", [])
        (animation,) = self.json.get("animations", [{"channels": []}])
        self.channels = {}
        for channel in animation["channels"]:
            sampler = animation["samplers"][channel["sampler"]]
            key = channel["target"]["node"], channel["target"]["path"]
            keys = self.array(sampler["input"])[:, 0], self.array(sampler["output"])
            self.channels[key] = (*keys, sampler["interpolation"])

    def array(self, index):
        accessor = self.json["accessors"][index]
        view = self.json["bufferViews"][accessor["bufferView"]]
        kind = {5126: "<f4", 5123: "<u2", 5121: "u1"}[accessor["componentType"]]
        width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4, "MAT4": 16}[accessor["type"]]
        assert view["byteOffset"] % 4 == 0
        values = np.frombuffer(self.binary, kind, accessor["count"] * width, view["byteOffset"])
        return values.reshape(-1, width)

    def node(self, name, person="A"):
        """Index of a joint of a person."""
        top = [i for i, node in enumerate(self.nodes) if node["name"] == person]
        found = top
        while found:
            if self.nodes[found[0]]["name"] == name:
                return found[0]
            found = found[1:] + self.nodes[found[0]].get("children", [])
        raise KeyError(name)

    def value(self, node, path, default, time):
        """An animated property at a time."""
        if (node, path) not in self.channels:
            return np.array(self.nodes[node].get(path, default), float)
        times, values, how = self.channels[node, path]
        if how == "STEP":
            return values[np.searchsorted(times, time, "right") - 1]
        if path == "rotation":
            within = np.clip(time, times[0], times[-1])  # float32
            return Slerp(times, Rotation.from_quat(values))(within).as_quat()
        return np.array([np.interp(time, times, column) for column in values.T])

    def matrix(self, node, time):
        """From the frame of a node to the world at a time, (4, 4)."""
        local = np.eye(4)
        rotation = Rotation.from_quat(self.value(node, "rotation", (0, 0, 0, 1), time))
        local[:3, :3] = rotation.as_matrix() * self.value(node, "scale", (1, 1, 1), time)
        local[:3, 3] = self.value(node, "translation", (0, 0, 0), time)
        above = [i for i, other in enumerate(self.nodes) if node in other.get("children", [])]
        return self.matrix(above[0], time) @ local if above else local


def saved(motion, tmp_path):
    assert motion.save(tmp_path / "m.glb") == [tmp_path / "m.glb"]
    return Glb(tmp_path / "m.glb")


def test_trimesh_finds_closed_bodies_of_people_who_stand_on_the_floor(tmp_path):
    walking_motion(people=2).save(tmp_path / "m.glb")
    scene = trimesh.load(tmp_path / "m.glb")
    assert sorted(scene.geometry) == ["A_body", "B_body"]
    for body in scene.geometry.values():
        low, high = body.bounds
        assert low[1] == pytest.approx(0, abs=0.005)
        assert 1.5 < high[1] < 2
        assert 1.2 < high[0] - low[0] < 2.2  # arms to the sides: a T-pose
        assert high[2] > -1.2 * low[2]  # the feet are in front
        parts = body.split(only_watertight=False)
        assert len(parts) == 19
        assert all(part.is_watertight and part.volume > 1e-5 for part in parts)
        assert 0.02 < sum(part.volume for part in parts) < 0.12  # cubic metres
        facing = body.vertex_normals * trimesh.Trimesh(body.vertices, body.faces).vertex_normals
        assert facing.sum(1).min() > 0.8


def test_joints_at_the_times_of_the_frames_are_those_of_the_body(tmp_path):
    motion = walking_motion(people=2)
    glb = saved(motion, tmp_path)
    for person in motion.people:
        body = fit_body(motion, person)
        expected = forward_positions(body)
        for frame in (0, 7, 39):
            found = [glb.matrix(glb.node(name, person.id), motion.times[frame])[:3, 3]
                     for name in body.joints]  # fmt: skip
            np.testing.assert_allclose(found, expected[frame], atol=1e-4)


@pytest.mark.parametrize("frame", ["world", "camera"])
def test_wrists_and_ankles_are_where_the_motion_has_them(tmp_path, frame):
    motion = walking_motion(frame=frame)
    to_y_up = {"world": [[1, 0, 0], [0, 0, 1], [0, -1, 0]], "camera": np.diag([1, -1, -1])}[frame]
    points = motion.people[0].positions @ np.array(to_y_up, np.float32).T
    glb = saved(motion, tmp_path)
    joints = {"LeftHand": "left_wrist", "RightHand": "right_wrist", "RightFoot": "right_ankle"}
    at = [points[11, H36M17.index(joint)] for joint in joints.values()]
    found = [glb.matrix(glb.node(name), motion.times[11])[:3, 3] for name in joints]
    off = np.array(found) - at
    if frame == "camera":  # moved to the floor
        off[:, 1] -= np.median(off[:, 1])
    assert np.abs(off).max() < 0.03


def test_at_rest_the_skin_moves_nothing_and_each_part_follows_its_joint(tmp_path):
    motion = walking_motion(people=2)
    glb = saved(motion, tmp_path)
    skin = glb.json["skins"][1]
    inverse = glb.array(skin["inverseBindMatrices"]).reshape(-1, 4, 4).transpose(0, 2, 1)
    glb.channels, animated = {}, glb.channels
    at_rest = np.array([glb.matrix(node, 0.0) for node in skin["joints"]])
    np.testing.assert_allclose(at_rest @ inverse, np.tile(np.eye(4), (19, 1, 1)), atol=1e-6)
    glb.channels = animated
    attributes = glb.json["meshes"][1]["primitives"][0]["attributes"]
    points, joints = glb.array(attributes["POSITION"]), glb.array(attributes["JOINTS_0"])[:, 0]
    assert (glb.array(attributes["WEIGHTS_0"]) == [255, 0, 0, 0]).all()
    matrices = np.array([glb.matrix(node, 0.2) for node in skin["joints"]]) @ inverse
    moved = np.einsum("vij,vj->vi", matrices[joints], np.c_[points, np.ones(len(points))])[:, :3]
    for name, reach in (("LeftForeArm", 0.35), ("Head", 0.3), ("RightLeg", 0.6)):
        joint = skin["joints"].index(glb.node(name, "B"))
        own = matrices[joint] @ at_rest[joint]
        distance = np.linalg.norm(moved[joints == joint] - own[:3, 3], axis=1)
        assert 0.02 < distance.max() < reach
    assert moved[:, 1].max() > 1.5
    assert moved[:, 1].min() == pytest.approx(0, abs=0.06)


def test_times_are_the_true_ones_from_zero_and_increase(tmp_path):
    times = 5 + np.cumsum(np.random.default_rng(2).uniform(0.01, 0.08, 40))
    glb = saved(walking_motion(times=times), tmp_path)
    for seconds, _, _ in glb.channels.values():
        assert seconds == pytest.approx(times - times[0], abs=1e-6)
        assert seconds[0] == 0
        assert (np.diff(seconds) > 0).all()


def test_frames_that_float32_cannot_tell_apart_are_one(tmp_path):
    times = np.arange(40) / 50
    times[9] = times[8] + 1e-12
    glb = saved(walking_motion(times=times), tmp_path)
    for seconds, values, _ in glb.channels.values():
        assert len(seconds) == len(values) == 39
        assert (np.diff(seconds) > 0).all()


def test_quaternions_have_unit_length_and_a_continuous_sign(tmp_path):
    glb = saved(walking_motion(frames=50), tmp_path)
    rotations = [values for (_, path), (_, values, _) in glb.channels.items() if path == "rotation"]
    assert len(rotations) > 10
    for values in rotations:
        assert np.linalg.norm(values, axis=1) == pytest.approx(1, abs=1e-6)
        assert ((values[1:] * values[:-1]).sum(1) > 0.5).all()


def test_a_person_who_is_missing_has_no_size_and_keeps_the_last_pose(tmp_path):
    motion = walking_motion(people=1, missing=(0, 1, 9, 10, 11))
    glb = saved(motion, tmp_path)
    wrist = glb.node("LeftHand")
    for frame, there in ((1, False), (2, True), (8, True), (9, False), (11, False), (12, True)):
        for time in (motion.times[frame] + 1e-4, motion.times[frame] + 0.019):
            matrix = glb.matrix(wrist, min(time, motion.times[-1]))
            assert np.abs(matrix[:3, :3]).max() == pytest.approx(0, abs=0) or there
            assert np.linalg.det(matrix[:3, :3]) == pytest.approx(float(there), abs=1e-5)
    root = glb.node("Hips")
    _, values, _ = glb.channels[root, "translation"]
    assert (values[9:12] == values[8]).all()
    assert np.isfinite(values).all()
    assert not any(path == "scale" for _, path in saved(walking_motion(), tmp_path).channels)


def test_people_have_the_colours_of_the_videos(tmp_path):
    glb = saved(walking_motion(people=2), tmp_path)
    first, second = (m["pbrMetallicRoughness"]["baseColorFactor"] for m in glb.json["materials"])
    # (213, 94, 0) and (0, 114, 178) as intensities: ((c / 255 + 0.055) / 1.055) ** 2.4
    assert first == pytest.approx([0.6654, 0.1119, 0, 1], abs=1e-4)
    assert second == pytest.approx([0, 0.1683, 0.4452, 1], abs=1e-4)


@pytest.mark.parametrize(("people", "frames"), [(0, 40), (1, 1), (3, 2)])
def test_any_number_of_people_is_one_file(tmp_path, people, frames):
    glb = saved(walking_motion(people=people, frames=frames), tmp_path)
    assert len(glb.json.get("skins", [])) == people
    assert len(glb.json["scenes"][0].get("nodes", [])) == 2 * people
    assert glb.json["asset"]["version"] == "2.0"


def test_bounds_of_times_and_positions_are_given_as_the_format_demands(tmp_path):
    glb = saved(walking_motion(people=2), tmp_path)
    inputs = {s["input"] for s in glb.json["animations"][0]["samplers"]}
    meshes = [mesh["primitives"][0]["attributes"]["POSITION"] for mesh in glb.json["meshes"]]
    for index in [*inputs, *meshes]:
        accessor, values = glb.json["accessors"][index], glb.array(index)
        assert accessor["min"] == values.min(0).tolist()
        assert accessor["max"] == values.max(0).tolist()


def test_another_joint_set_is_an_error_and_no_file(tmp_path):
    own = Skeleton("own", ("root", "left_a", "right_a"), (-1, 0, 0))
    motion = walking_motion()
    person = motion.people[0]
    short = type(person)(
        "A", person.joints3d[:, :3], person.root, person.joints2d[:, :3], person.score[:, :3],
        person.status, 1.7,
    )  # fmt: skip
    other = Motion((short,), own, motion.times, 50.0, (8, 8), 9.0, (4, 4), "world")
    with pytest.raises(UsageError, match="joints of own"):
        other.save(tmp_path / "m.glb")
    assert not any(tmp_path.iterdir())


def test_the_height_of_the_mesh_is_that_of_the_body():
    motion = walking_motion()
    body = fit_body(motion, motion.people[0])
    points = make_body_mesh(body).points
    head = body.joints.index("Head")
    top = body.ends[head][1]
    while head >= 0:
        top += body.offsets[head][1]
        head = body.parents[head]
    assert points[:, 1].max() == pytest.approx(top, abs=0.002)
    assert points[:, 1].min() == pytest.approx(0, abs=0.002)
