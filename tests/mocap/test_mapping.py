"""Joint mappings: midpoints, fixed points, units and axes by hand; faults of the YAML by name."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from stick_figures import SMALL

from pipeline.errors import DataError
from pipeline.mocap.bvh import read_bvh
from pipeline.mocap.mapping import SHIPPED, read_mapping
from pipeline.skeleton import H36M17, MPII16


def write(folder, **changes) -> Path:
    table = {
        "skeleton": "H36M17",
        "unit": "in",
        "up": "y",
        "forward": "z",
        "joints": dict.fromkeys(H36M17.joints, "Leg"),
    } | changes
    path = folder / "mapping.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in table.items() if v is not None}))
    return path


def mapped(tmp_path, frame=0, **changes):
    bvh = tmp_path / "a.bvh"
    bvh.write_text(SMALL)
    return read_mapping(write(tmp_path, **changes))(read_bvh(bvh), "a.bvh")[frame]


def joints(**special):
    return {name: special.get(name, "Leg") for name in H36M17.joints}


def test_y_up_and_z_forward_become_z_x_y_of_the_file_in_metres(tmp_path):
    leg = mapped(tmp_path)[3]
    np.testing.assert_allclose(leg, np.array([3.5, 5, 3.5]) * 0.0254)  # file: (5, 3.5, 3.5) inches


@pytest.mark.parametrize(
    ("up", "forward", "expected"),
    [
        ("z", "x", [5, 3, 4]),
        ("y", "-z", [-4, -5, 3]),
        ("-x", "y", [3, -4, -5]),
        ("+Z", "-Y", [-3, 5, 4]),
    ],
)
def test_axes_are_right_handed_whichever_point_up(tmp_path, up, forward, expected):
    axes = read_mapping(write(tmp_path, up=up, forward=forward)).axes
    np.testing.assert_array_equal(axes @ [5, 3, 4], expected)
    assert np.linalg.det(axes) == pytest.approx(1)


def test_a_midpoint_is_the_mean_of_its_joints(tmp_path):
    pose = mapped(tmp_path, unit="m", joints=joints(spine={"midpoint": ["Hips", "Leg"]}))
    np.testing.assert_allclose(pose[7], [(3 + 3.5) / 2, (1 + 5) / 2, (2 + 3.5) / 2])


def test_a_fixed_point_turns_with_its_joint(tmp_path):
    pose = mapped(tmp_path, unit=1, joints=joints(head={"joint": "Hips", "offset": [2, 0.5, 7]}))
    # the root is turned by 90 degrees about z: (2, 0.5, 7) -> (-0.5, 2, 7), from (1, 2, 3)
    np.testing.assert_allclose(pose[10], [10, 0.5, 4])


def test_frames_are_dropped_at_both_ends(tmp_path):
    bvh = tmp_path / "a.bvh"
    bvh.write_text(SMALL)
    motion = read_bvh(bvh)
    kept = read_mapping(write(tmp_path, drop_first=1, drop_last=1))(motion, "a")
    np.testing.assert_array_equal(kept, read_mapping(write(tmp_path))(motion, "a")[1:2])
    with pytest.raises(DataError, match=r"has 3 frames, but .* drops 3"):
        read_mapping(write(tmp_path, drop_first=3))(motion, "a")


def test_another_target_skeleton_needs_no_code(tmp_path):
    table = dict.fromkeys(MPII16.joints, "Leg")
    assert mapped(tmp_path, skeleton="MPII16", joints=table).shape == (16, 3)


def test_the_shipped_mapping_names_the_joints_of_the_cmu_release():
    mapping = read_mapping("cmu")
    assert mapping.fingerprint == read_mapping(SHIPPED["cmu"]).fingerprint
    assert mapping.name == "cmu"
    assert mapping.skeleton is H36M17
    assert mapping.points[0].sources == ("rThigh", "lThigh")
    assert mapping.points[9].offset == (0.24, 3.0, 5.0)
    assert mapping.drop_first == 10


def test_only_what_changes_the_joints_changes_the_fingerprint(tmp_path):
    one = read_mapping(write(tmp_path)).fingerprint
    (tmp_path / "other").mkdir()
    assert read_mapping(write(tmp_path / "other")).fingerprint == one
    assert read_mapping(write(tmp_path, unit="cm")).fingerprint != one


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit": "inch"}, "unit: expected m, dm, cm, mm, in, ft or metres in one"),
        ({"unit": True}, "unit: expected m"),
        ({"unit": None}, "has no key unit"),
        ({"up": "w"}, "up: expected x, y, z, -x, -y or -z, found 'w'"),
        ({"up": "-z"}, "up and forward lie along the same axis"),
        ({"skeleton": "H36M"}, "skeleton: 'H36M' is none of H36M17"),
        ({"drop_first": -1}, "drop_first: expected a number of frames, found '-1'"),
        ({"droop_first": 1}, "unknown key 'droop_first' (did you mean drop_first?)"),
        ({"joints": {"pelvis": "Hips"}}, "joints: nothing for right_hip"),
        ({"joints": joints(head=3)}, "joints: head: expected a joint name"),
        ({"joints": joints(head={"midpoint": ["Leg"]})}, "head: midpoint needs a list of two"),
        ({"joints": joints(head={"joint": "Leg", "offset": [1, 0]})}, "offset three numbers"),
        ({"joints": joints(head={"joint": "Leg", "offset": [1, float("nan"), 0]})}, "offset three"),
        ({"joints": joints() | {"haed": "Leg"}}, "H36M17 has no 'haed' (did you mean head?)"),
        ({"joints": ["Leg"]}, "joints: one line for each joint"),
    ],
)
def test_a_fault_in_a_mapping_is_named(tmp_path, changes, message):
    path = write(tmp_path, **changes)
    with pytest.raises(DataError) as caught:
        read_mapping(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("skeleton: H36M17\nskeleton: COCO17\n", "line 2: the key 'skeleton' a second time"),
        ("a: &x 1\nb: *x\n", "line 2: an alias; write it out"),
        ("a: !!python/object/apply:os.getcwd []\n", "line 1: could not determine a constructor"),
        ("a: [1\n", "line 2: "),
        ("\x00", "is no YAML"),
        ("[" * 20_000, "nested too deep"),
        ("a: !!bool x", "is no YAML"),
        ("a: !!timestamp x", "is no YAML"),
        ("7", "is expected; see `heatlift docs mocap`"),
        ("? [1]\n: 2", "line 1: "),
        ("{a: 1}\n---\n{b: 2}", "line 2: "),
    ],
)
def test_a_file_that_is_no_plain_yaml_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_mapping(path)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_joint_that_the_recording_lacks_is_named_with_what_was_meant(tmp_path):
    with pytest.raises(DataError, match=r"a.bvh: has no joint 'Lag' \(did you mean Leg\?\)"):
        mapped(tmp_path, joints=joints(head="Lag"))
