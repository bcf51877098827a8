"""A mapping is proposed by names, by the tree where names fail, and makes people of recordings."""

import gzip
import re

import fabricate
import numpy as np
import pytest
import yaml
from stick_figures import motion, tree

from pipeline.errors import DataError
from pipeline.mocap.joint_names import find_by_name, split_name
from pipeline.mocap.mapping import read_mapping
from pipeline.mocap.preparation import read_recording
from pipeline.mocap.proposal import propose_mapping, require_resolved
from pipeline.skeleton import H36M17

WALK = "data/cmu_mocap/bvh/02/02_01.bvh.gz"
"""A real recording: `r` and `l` with Thigh, Shin, Foot, Shldr, ForeArm, Hand; y up, cm."""
SIDED = ("Collar", "Shldr", "ForeArm", "Hand", "Thigh", "Shin", "Foot", "Buttock")
TRUNK = ("hip", "abdomen", "chest", "neck", "head")
SCHEMES = {
    "Mixamo": (
        ("Shoulder", "Arm", "ForeArm", "Hand", "UpLeg", "Leg", "Foot", "HipJoint"),
        ("Hips", "Spine", "Spine1", "Neck", "Head"),
        ("mixamorig:Left", "mixamorig:Right", "mixamorig:"),
    ),
    "Xsens": (
        ("Collar", "Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle", "Buttock"),
        ("Hips", "Chest", "Chest2", "Neck", "Head"),
        ("Left", "Right", ""),
    ),
    "3ds Max": (
        ("Clavicle", "UpperArm", "Forearm", "Hand", "Thigh", "Calf", "Foot", "Butt"),
        ("Pelvis", "Spine", "Spine1", "Neck", "Head"),
        ("Bip01 L ", "Bip01 R ", "Bip01 "),
    ),
    "Motive": (
        ("Shoulder", "UArm", "FArm", "Hand", "Thigh", "Shin", "Foot", "Butt"),
        ("Hip", "Ab", "Chest", "Neck", "Head"),
        ("L", "R", ""),
    ),
    "Blender": (
        ("shoulder", "upper_arm", "forearm", "hand", "thigh", "shin", "foot", "butt"),
        ("hips", "spine", "chest", "neck", "head"),
        ("DEF_L_", "DEF_R_", "DEF_"),
    ),
}


def renamed(shared, folder, names):
    """The real recording with other names of its joints, in `folder`, with a suffix in capitals."""
    text = gzip.decompress((shared / WALK).read_bytes()).decode("latin1")
    text = re.sub(r"(ROOT|JOINT) (\w+)", lambda found: f"{found[1]} {names(found[2])}", text)
    folder.mkdir()
    (folder / "walk.BVH").write_text(text)
    return folder


def joints_of(proposal, folder):
    """The joints of the recording through a proposal, and through the shipped mapping."""
    (folder / "m.yaml").write_text(proposal.text)
    found, _ = read_recording(folder / "walk.BVH", read_mapping(str(folder / "m.yaml")))
    return found


@pytest.mark.parametrize("scheme", SCHEMES)
def test_names_of_capture_tools_are_understood(tmp_path, shared, scheme):
    sided, trunk, (left, right, prefix) = SCHEMES[scheme]
    table = {side + old: full + new for side, full in (("l", left), ("r", right))
             for old, new in zip(SIDED, sided, strict=True)}  # fmt: skip
    table |= {old: prefix + new for old, new in zip(TRUNK, trunk, strict=True)}
    folder = renamed(shared, tmp_path / "set", lambda name: table.get(name, prefix + name))
    proposal = propose_mapping(folder)
    require_resolved(proposal, "m.yaml")
    found = joints_of(proposal, folder)[10:]
    expected, _ = read_recording(shared / WALK, read_mapping("cmu"))
    same = [i for i, name in enumerate(H36M17.joints) if name not in ("nose", "head")]
    np.testing.assert_allclose(found[:, same], expected[:, same], atol=1e-6)
    assert np.linalg.norm(found[:, 10] - expected[:, 10], axis=-1).mean() < 0.06


def test_without_names_the_tree_and_bent_knees_tell_the_joints(tmp_path, shared):
    order = {}
    folder = renamed(
        shared,
        tmp_path / "set",
        lambda name: f"bone_{order.setdefault(name, len(order)) * 37 % 101}",
    )
    proposal = propose_mapping(folder)
    require_resolved(proposal, "m.yaml")
    table = yaml.safe_load(proposal.text)
    assert (table["unit"], table["up"], table["forward"]) == ("cm", "y", "z")
    expected, _ = read_recording(shared / WALK, read_mapping("cmu"))
    limbs = [i for i, n in enumerate(H36M17.joints) if n.startswith(("left", "right"))]
    found = joints_of(proposal, folder)[10:]
    np.testing.assert_allclose(found[:, limbs], expected[:, limbs], atol=1e-6)
    assert "tree: the left leg" in proposal.text


def test_a_shipped_mapping_that_fits_is_named(tmp_path, shared):
    (tmp_path / "02_01.bvh.gz").symlink_to(shared / WALK)
    assert propose_mapping(tmp_path).shipped == "cmu"


def test_positions_in_inches_with_another_axis_up_are_recognised(tmp_path):
    positions = fabricate.motion(40)[..., [1, 2, 0]] / 0.0254  # x, y, z of the file are y, z, x
    names = ["J_" + name.replace("_", "").replace("wrist", "hand") for name in H36M17.joints]
    names[H36M17.index("thorax")], names[H36M17.index("head")] = "neck", "HeadEnd"
    names[H36M17.index("nose")] = "Head"
    np.savez(tmp_path / "walk.npz", positions=positions, joints=names, fps=50.0)
    proposal = propose_mapping(tmp_path)
    assert proposal.unresolved == ()
    table = yaml.safe_load(proposal.text)
    assert (table["unit"], table["up"], table["joints"]["left_wrist"]) == ("in", "y", "J_lefthand")


def test_what_is_not_found_is_marked_and_named(tmp_path):
    names = [*H36M17.joints]
    names[H36M17.index("left_wrist")] = "paw"
    np.savez(tmp_path / "walk.npz", positions=fabricate.motion(40), joints=names, fps=50.0)
    proposal = propose_mapping(tmp_path)
    assert "left_wrist" in proposal.unresolved
    assert re.search(
        r"left_wrist: null +# UNRESOLVED: write the name of a joint here", proposal.text
    )
    with pytest.raises(DataError, match=r"nothing was found for .*left_wrist.*UNRESOLVED"):
        require_resolved(proposal, "m.yaml")
    (tmp_path / "m.yaml").write_text(proposal.text)
    with pytest.raises(DataError, match=r"found 'None'|no joint is named yet"):
        read_mapping(str(tmp_path / "m.yaml"))


def test_an_end_site_becomes_the_top_of_the_head(tmp_path):
    names = ["Hips", "Neck", "Head"]
    text = tree(
        names, [-1, 0, 1], np.array([[0, 0, 0], [0, 50.0, 0], [0, 10.0, 0]]), ["xyzZXY"] * 3
    )
    text = text.replace(
        "\t\t}", "\t\t\tEnd Site\n\t\t\t{\n\t\t\t\tOFFSET 1 12 3\n\t\t\t}\n\t\t}", 1
    )
    (tmp_path / "a.bvh").write_text(text + motion(np.zeros((12, 18)), 0.02))
    assert "head: {joint: Head, offset: [1, 12, 3]}" in propose_mapping(tmp_path).text


def test_where_inches_make_an_adult_the_unit_that_makes_a_child_is_named(tmp_path):
    positions = fabricate.motion(40) * 0.45 / 0.01
    names = [*H36M17.joints[:10], "head_top", *H36M17.joints[11:]]
    names[H36M17.index("nose")], names[H36M17.index("thorax")] = "head", "neck"
    np.savez(tmp_path / "baby.npz", positions=positions, joints=names, fps=50.0)
    proposal = propose_mapping(tmp_path)
    assert re.search(r"unit: in .* are 1\.83 m; a child would be cm: 0\.72", proposal.text)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("LeftUpLeg", ("left", "upleg")),
        ("RThigh", ("right", "thigh")),
        ("hand_r", ("right", "hand")),
        ("jRightElbow", ("right", "elbow")),
        ("Spine2", ("", "spine")),
        ("lowerback", ("", "lowerback")),
    ],
)
def test_a_name_has_a_side_and_a_part(name, expected):
    assert split_name(name) == expected


def test_the_collar_bone_called_shoulder_is_not_the_shoulder():
    found = find_by_name(["Hips", "LeftShoulder", "LeftArm", "LeftForeArm", "LeftHand"])
    assert found["left_shoulder"][0] == "LeftArm"
    assert find_by_name(["LeftCollar", "LeftShoulder", "LeftElbow"])["left_shoulder"][0] == (
        "LeftShoulder"
    )
