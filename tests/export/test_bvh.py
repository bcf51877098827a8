import dataclasses
import json
import re

import bvhio
import numpy as np
import pybvh
import pytest
from made_motions import as_camera, motion_of, person_of, standing, world_joints
from scipy.spatial.transform import Rotation

from pipeline.__main__ import main
from pipeline.cli.predict import write_results
from pipeline.errors import DataError, UsageError
from pipeline.export.body_names import SHIPPED, read_names
from pipeline.export.bvh import bvh_errors, bvh_text, euler_angles
from pipeline.export.frames import Y_UP_TO_Z_UP
from pipeline.export.inverse_kinematics import TO_Y_UP, fit_body, forward_positions
from pipeline.export.motion import FILLED, MISSING, SEEN
from pipeline.export.options import ExportOptions
from pipeline.export.rest_skeleton import JOINTS, PLACES
from pipeline.mocap.bvh import read_bvh
from pipeline.mocap.choreography import CHANNELS
from pipeline.mocap.synthetic import make_motion
from pipeline.skeleton import H36M17

WORLD = world_joints(*standing(6, abduct=(120, 10), elbow=(20, 40), knee=(5, 30), hip=(3, 20)))
"""A person who faces the camera, with the left hand raised and the right knee bent."""


def ours(file):
    """Joints of a file by our reader: name -> (T, 3), file units; ends of the bones as well."""
    motion = read_bvh(file)
    positions, rotations = motion.pose(motion.joints)
    found = {name: positions[:, i] for i, name in enumerate(motion.joints)}
    for name, end in motion.ends.items():
        i = motion.joints.index(name)
        found[f"{name} end"] = positions[:, i] + rotations[:, i] @ np.array(end)
    return found


def by_pybvh(file):
    motion = pybvh.read_bvh_file(file)
    return dict(zip(motion.joint_names, np.moveaxis(motion.joint_positions(), 1, 0), strict=True))


def by_bvhio(file):
    root = bvhio.readAsHierarchy(str(file))
    first, last = root.getKeyframeRange()
    found = {joint.Name: [] for joint, _, _ in root.layout()}
    for frame in range(first, last + 1):
        root.loadPose(frame)
        for joint, _, _ in root.layout():
            found[joint.Name].append(list(joint.PositionWorld))
    return {name: np.array(places) for name, places in found.items()}


def rows(file):
    """Values of the channels, (T, C)."""
    text = file.read_text().split("Frame Time:")[1].split("\n")[1:]
    return np.array([[float(word) for word in line.split(" ")] for line in text if line])


@pytest.mark.parametrize("action", ["walk", "reach", "sit", "jumping jack", "stretch"])
def test_three_readers_find_the_joints_of_the_motion(tmp_path, action):
    joints = make_motion(2, "test03", action, 60)
    file, _ = motion_of(joints).save(tmp_path / "x.bvh")
    found, second, third = ours(file), by_pybvh(file), by_bvhio(file)
    assert set(second) == set(third) == set(JOINTS)
    wanted = joints @ TO_Y_UP["world"].T
    for name in JOINTS:
        assert second[name] == pytest.approx(found[name], abs=0.01)  # 0.1 mm in cm
        assert third[name] == pytest.approx(found[name], abs=0.01)
    for name, place in {**PLACES, "head": "Head end"}.items():
        distance = np.linalg.norm(found[place] / 100 - wanted[:, H36M17.index(name)], axis=1)
        assert distance.max() < 0.005


@pytest.mark.parametrize("frame", ["camera", "world"])
@pytest.mark.parametrize(("unit", "metre"), [("cm", 100), ("m", 1)])
@pytest.mark.parametrize(("up", "axis"), [("y", 1), ("z", 2)])
def test_row_19_the_head_is_above_the_feet_and_the_height_is_that_of_a_person(
    tmp_path, frame, unit, metre, up, axis
):
    joints = WORLD if frame == "world" else as_camera(WORLD)
    file, _ = motion_of(joints, frame=frame).save(tmp_path / "x.bvh", up=up, bvh_unit=unit)
    found = ours(file)
    feet = np.minimum(found["LeftFoot end"], found["RightFoot end"])[:, axis]
    head = found["Head end"][:, axis]
    assert ((head - feet) / metre).min() > 1.5
    assert ((head - feet) / metre).max() < 2.0
    assert feet.min() / metre == pytest.approx(0, abs=0.03)
    for name in ("Hips", "LeftLeg", "LeftFoot"):
        assert (found[name][:, axis] < head).all()
    ahead = 2 if up == "y" else 1  # y up: towards +Z; z up: towards -Y
    towards = 1 if up == "y" else -1
    assert ((found["Head"] - found["Neck"])[:, ahead] * towards / metre).min() > 0.02


@pytest.mark.parametrize("frame", ["camera", "world"])
def test_the_raised_left_hand_is_lefthand(tmp_path, frame):
    """A mirrored axis or swapped sides fail."""
    joints = WORLD if frame == "world" else as_camera(WORLD)
    file, _ = motion_of(joints, frame=frame).save(tmp_path / "x.bvh")
    for found in (ours(file), by_pybvh(file), by_bvhio(file)):
        place = {name: points[3] for name, points in found.items()}
        assert place["LeftHand"][1] > place["Head"][1] > place["RightHand"][1]
        assert place["LeftHand"][0] > place["Hips"][0] > place["RightHand"][0]
        assert place["RightLeg"][2] > place["LeftLeg"][2] + 10  # the right knee is ahead
    assert pybvh.read_bvh_file(file).rest_forward == "+z"
    assert pybvh.read_bvh_file(file).rest_up == "+y"


def test_camera_and_world_of_the_same_person_give_the_same_motion(tmp_path):
    world, _ = motion_of(WORLD).save(tmp_path / "world.bvh")
    camera, _ = motion_of(as_camera(WORLD, height=1.3), frame="camera").save(tmp_path / "c.bvh")
    ankle = ours(camera)["LeftFoot"][0, 1] - ours(world)["LeftFoot"][0, 1]
    difference = rows(camera) - rows(world)
    assert difference[:, 1] == pytest.approx(ankle, abs=1e-3)
    assert np.delete(difference, 1, axis=1) == pytest.approx(0, abs=0.01)


def test_z_up_is_y_up_turned_about_x(tmp_path):
    joints = make_motion(0, "test01", "kick", 10)
    y_up, z_up = (motion_of(joints).save(tmp_path / f"{up}.bvh", up=up)[0] for up in "yz")
    for name, points in ours(y_up).items():
        assert ours(z_up)[name] == pytest.approx(points @ Y_UP_TO_Z_UP.T, abs=1e-3)


def test_row_14_six_channels_at_the_root_three_elsewhere_and_end_sites_with_a_length(tmp_path):
    file, _ = motion_of(WORLD).save(tmp_path / "x.bvh")
    motion = read_bvh(file)
    assert [len(channels) for channels in motion.channels] == [6] + [3] * (len(JOINTS) - 1)
    assert [kind for kind, _ in motion.channels[0]] == ["position"] * 3 + ["rotation"] * 3
    orders = {"".join("XYZ"[axis] for _, axis in own[-3:]) for own in motion.channels}
    assert orders == {"ZXY", "ZYX"}
    assert {name.removeprefix("Left").removeprefix("Right") for name in motion.ends} == {
        "Head",
        "Hand",
        "Foot",
    }
    assert min(np.linalg.norm(end) for end in motion.ends.values()) > 5
    assert motion.offsets[0].tolist() == [0, 0, 0]  # programs differ in whether they add it
    assert np.linalg.norm(motion.offsets[1:], axis=1).min() > 0.3


def test_row_15_plain_decimals_single_spaces_and_names_without_spaces(tmp_path):
    tiny = WORLD.copy()
    tiny[1:] += 1e-9  # would be printed as 1e-07
    file, _ = motion_of(tiny).save(tmp_path / "x.bvh", bvh_names="mixamo")
    text = file.read_text()
    numbers = r"-?\d+\.\d+( -?\d+\.\d+)*"
    head, motion = text.split("MOTION\n")
    for line in motion.split("\n")[2:-1]:
        assert re.fullmatch(numbers, line)
    for line in head.split("\n")[:-1]:
        assert re.fullmatch(
            rf"\t*(HIERARCHY|[{{}}]|End Site|(ROOT|JOINT) \S+|OFFSET {numbers}"
            r"|CHANNELS [36]( [XYZ](position|rotation))+)",
            line,
        )
    assert "-0.000000" not in text
    assert read_bvh(file).joints[0] == "mixamorig:Hips"
    assert "\r" not in text


def test_row_21_every_person_gets_a_file(tmp_path):
    two = motion_of(WORLD, world_joints(*standing(6), place=(-2.0, 5.0)))
    files = two.save(tmp_path / "motion.bvh")
    names = ["motion_A.bvh", "motion_A.bvh.json", "motion_B.bvh", "motion_B.bvh.json"]
    assert [file.name for file in files] == names
    places = [ours(file)["Hips"][0, [0, 2]] for file in files[::2]]
    assert places[0] == pytest.approx([30, -400], abs=1)
    assert places[1] == pytest.approx([-200, -500], abs=1)
    assert [json.loads(file.read_text())["person"] for file in files[1::2]] == ["A", "B"]


def test_a_person_who_turns_twice_has_angles_without_jumps(tmp_path):
    poses = standing(300)
    poses[:, CHANNELS.index("yaw")] += np.linspace(0, 720, 300)
    file, _ = motion_of(world_joints(*poses)).save(tmp_path / "x.bvh")
    angles = rows(file)[:, 3:]
    assert np.abs(np.diff(angles, axis=0)).max() < 720 / 299 + 0.2
    assert angles[-1, 2] - angles[0, 2] == pytest.approx(720, abs=0.5)  # Y of the root
    assert np.ptp(angles[:, 3:], axis=0).max() < 1  # nothing else moves


def test_legs_bend_past_90_degrees_without_a_jump(tmp_path):
    poses = standing(120, splay=6)
    for name in ("left_hip", "right_hip", "left_knee", "right_knee"):
        poses[:, CHANNELS.index(name)] = np.linspace(3, 120, 120)
    file, _ = motion_of(world_joints(*poses)).save(tmp_path / "x.bvh")
    assert np.abs(np.diff(rows(file)[:, 3:], axis=0)).max() < 4
    assert read_bvh(file).fps == pytest.approx(50, abs=1e-4)


@pytest.mark.parametrize("order", ["ZXY", "ZYX"])
def test_angles_give_the_rotations_by_scipy(order):
    turns = Rotation.from_quat(np.random.default_rng(3).normal(size=(200, 4)))
    wild = np.roll(turns.as_quat(), 1, axis=-1)[:, None]
    angles = euler_angles(wild, [order])[:, 0]
    back = Rotation.from_euler(order, angles) * turns.inv()
    assert back.magnitude().max() < 1e-9


@pytest.mark.parametrize("order", ["ZXY", "ZYX"])
@pytest.mark.parametrize("side", [1, -1])
def test_angles_go_on_through_the_pole(order, side):
    """The middle angle passes 90 degrees; the naive triple would jump by 180."""
    wanted = np.stack([np.full(91, 20.0), side * np.arange(50.0, 141.0), np.full(91, -35.0)], 1)
    turns = Rotation.from_euler(order, wanted, degrees=True)
    found = np.degrees(euler_angles(np.roll(turns.as_quat(), 1, -1)[:, None], [order])[:, 0])
    assert found == pytest.approx(wanted, abs=1e-4)


def test_uneven_times_are_resampled_and_it_is_noted(tmp_path):
    joints = make_motion(0, "test01", "walk", 5)
    file, beside = motion_of(joints, fps=25.0, times=[0, 0.02, 0.08, 0.11, 0.16]).save(
        tmp_path / "x.bvh"
    )
    assert read_bvh(file).fps == pytest.approx(25)
    assert len(rows(file)) == 5
    facts = json.loads(beside.read_text())
    assert (facts["fps"], facts["frames"], facts["resampled"]) == (25.0, 5, True)


def test_one_frame_and_nobody(tmp_path):
    file, _ = motion_of(WORLD[:1]).save(tmp_path / "one.bvh")
    assert len(rows(file)) == 1
    assert motion_of().save(tmp_path / "nobody.bvh") == []
    absent = motion_of(person_of(WORLD, status=[MISSING] * 6))
    files = absent.save(tmp_path / "absent.bvh")
    assert rows(files[0])[:, 3:] == pytest.approx(0)
    assert bvh_errors(files) == ["bvh A: nobody in any frame; the file has the rest pose"]
    assert json.loads(files[1].read_text())["missing_frames"] == [[0, 5]]


def test_the_file_beside_it_explains_everything(tmp_path):
    status = [MISSING, SEEN, FILLED, FILLED, MISSING, SEEN]
    joints = as_camera(WORLD, height=1.0)
    source = {"name": "walk.mp4", "sha256": "ab12", "kind": "video"}
    motion = motion_of(person_of(joints, status=status), frame="camera", source=source)
    file, beside = motion.save(tmp_path / "motion.bvh", up="z", bvh_unit="m", bvh_names="cmu")
    facts = json.loads(beside.read_text())
    assert (facts["unit"], facts["up"], facts["fps"], facts["frames"]) == ("m", "z", 50.0, 6)
    assert facts["source"] == {"name": "walk.mp4", "sha256": "ab12"}
    assert (facts["missing_frames"], facts["filled_frames"]) == ([[0, 0], [4, 4]], [[2, 3]])
    assert facts["names"]["Spine"] == "LowerBack"
    assert list(facts["names"].values()) == list(read_bvh(file).joints)
    turned = joints[1] @ np.array(facts["rotation"]).T
    hips = ours(file)["Hips"][1] - (0, 0, facts["moved_up_m"])
    assert hips == pytest.approx(turned[0], abs=1e-3)
    assert facts["moved_up_m"] == pytest.approx(1.0, abs=0.03)  # the camera's height
    body = fit_body(motion, motion.people[0])
    assert facts["error_mm"]["mean"] == pytest.approx(1000 * np.nanmean(body.error), abs=0.01)
    assert facts["error_mm"]["worst"] == pytest.approx(1000 * np.nanmax(body.error), abs=0.01)
    shown = "bvh A: mean {mean:.0f} mm, worst {worst:.0f} mm from the joints"
    assert bvh_errors([file, beside]) == [shown.format(**facts["error_mm"])]


def test_the_place_of_a_large_error_is_printed(tmp_path):
    joints = np.array(WORLD)
    wrist = H36M17.index("left_wrist")
    joints[3, wrist] += (0.0, 0.0, 0.6)  # longer than the forearm
    status = [SEEN, SEEN, SEEN, FILLED, SEEN, SEEN]
    for filled, ending in ((False, ""), (True, ", filled in")):
        person = person_of(joints, status=status if filled else [SEEN] * 6)
        files = motion_of(person).save(tmp_path / "motion.bvh")
        (line,) = bvh_errors(files)
        assert line.endswith(f" from the joints (left wrist at 0.1 s{ending})")


def test_it_does_not_replace_the_json_of_the_motion(tmp_path):
    motion = motion_of(WORLD)
    motion.save(tmp_path / "motion.json")
    motion.save(tmp_path / "motion.bvh")
    assert json.loads((tmp_path / "motion.json").read_text())["format"] == "heatlift motion 1"
    assert json.loads((tmp_path / "motion.bvh.json").read_text())["format"] == "heatlift bvh 1"


def test_the_text_has_the_positions_of_the_body(tmp_path):
    motion = motion_of(make_motion(0, "test01", "lunge", 30))
    body = fit_body(motion, motion.people[0])
    file = tmp_path / "x.bvh"
    file.write_text(bvh_text(body, 50.0, names=read_names("heatlift"), unit="m"))
    for name, points in zip(JOINTS, np.moveaxis(forward_positions(body), 1, 0), strict=True):
        assert ours(file)[name] == pytest.approx(points, abs=1e-5)


@pytest.mark.parametrize("names", SHIPPED)
def test_shipped_names_are_distinct_and_keep_the_sides(names):
    found = read_names(names)
    assert list(found) == list(JOINTS)
    for joint, name in found.items():
        for side in ("Left", "Right"):
            assert (side in joint) == (side in name)


def test_names_of_the_well_known_skeletons():
    assert read_names("mixamo")["Chest"] == "mixamorig:Spine2"
    assert read_names("cmu")["Chest"] == "Spine1"
    assert read_names("lafan1")["Spine"] == "Spine"
    assert read_names("heatlift") == {joint: joint for joint in JOINTS}


def own_names(tmp_path, **changes):
    names = {**{joint: f"rig_{joint}" for joint in JOINTS}, **changes}
    path = tmp_path / "own.yaml"
    lines = [f"{joint}: {name}" for joint, name in names.items() if name is not None]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_own_names_are_written(tmp_path):
    path = own_names(tmp_path, LeftHand="Hand.L")
    file, _ = motion_of(WORLD).save(tmp_path / "x.bvh", bvh_names=str(path))
    assert "Hand.L" in read_bvh(file).joints
    assert by_pybvh(file)["Hand.L"] == pytest.approx(by_bvhio(file)["Hand.L"], abs=0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"LeftHnd": "x"}, r"no joint 'LeftHnd' \(did you mean LeftHand\?\)"),
        ({"LeftHand": None}, "no name for LeftHand; give one"),
        ({"LeftHand": "'left hand'"}, "LeftHand: 'left hand' is no name"),
        ({"LeftHand": "'{x}'"}, "is no name"),
        ({"LeftHand": "''"}, "is no name"),
        ({"LeftHand": "7"}, "is no name"),
        ({"LeftHand": "rig_Head"}, "two joints are called 'rig_Head'"),
        ({"LeftHand": "a" * 65}, "is no name"),
        ({"LeftHand": "é"}, "is no name"),
    ],
)
def test_faulty_names_are_one_line(tmp_path, changes, message):
    path = own_names(tmp_path, **changes)
    with pytest.raises(DataError, match=rf"own\.yaml: .*{message}") as caught:
        motion_of(WORLD).save(tmp_path / "x.bvh", bvh_names=str(path))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.bvh").exists()


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"bvh_names": "mixamp"}, UsageError, r"did you mean mixamo\?"),
        ({"bvh_names": "nowhere.yaml"}, DataError, "nowhere.yaml"),
        ({"bvh_unit": "mm"}, UsageError, "bvh_unit is 'mm'; give cm or m"),
        ({"up": "x"}, UsageError, "up is 'x'; give y or z"),
    ],
)
def test_faulty_options_are_one_line(tmp_path, options, kind, message):
    with pytest.raises(kind, match=message):
        motion_of(WORLD).save(tmp_path / "x.bvh", **options)


def test_a_list_as_names_is_one_line(tmp_path):
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(DataError, match="expected a line `joint: name`"):
        read_names(str(tmp_path / "list.yaml"))


def test_the_command_writes_bvh_and_prints_its_error(tmp_path, capsys):
    motion = motion_of(WORLD, world_joints(*standing(6), place=(-2.0, 5.0)))
    (npz,) = motion.save(tmp_path / "motion.npz")
    arguments = ["export", str(npz), "--to", "bvh", "--bvh_unit", "m", "--bvh_names", "lafan1"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^bvh A: mean \d mm, worst \d mm from the joints$", printed, re.MULTILINE)
    assert re.search(r"^bvh B: mean ", printed, re.MULTILINE)
    assert ours(tmp_path / "motion_B.bvh")["Hips"][0] == pytest.approx([-2, 0.96, -5], abs=0.05)
    assert "Spine2" in read_bvh(tmp_path / "motion_A.bvh").joints
    assert main(arguments) == 5  # are there already
    assert main([*arguments, "--overwrite", "true"]) == 0
    assert main(["export", str(npz), "--to", "json,trc"]) == 0  # no file of bvh is in the way
    assert main(["export", str(npz), "--to", "bvh", "--bvh_names", "mixamp"]) == 2


def test_export_names_what_it_does_not_write_and_replaces_no_file_beside(tmp_path, capsys):
    npz = tmp_path / "motion.npz"
    motion_of(WORLD).save(npz)
    (tmp_path / "motion.bvh.json").write_text("mine")
    assert main(["export", str(npz), "--to", "bvh"]) == 5
    assert (tmp_path / "motion.bvh.json").read_text() == "mine"
    dataclasses.replace(motion_of(WORLD), people=()).save(tmp_path / "empty.npz")
    capsys.readouterr()
    assert main(["export", str(tmp_path / "empty.npz"), "--to", "trc"]) == 0
    assert "empty.trc: not written, there is nobody in " in capsys.readouterr().out


def test_predict_prints_it_too(tmp_path, capsys):
    formats, options = ["npz", "bvh"], ExportOptions(bvh_unit="m")
    files = write_results(
        motion_of(WORLD), tmp_path, formats, None, "joints.json", {}, options, video=False
    )
    assert list(files) == ["motion.npz", "motion.bvh", "motion.bvh.json"]
    assert re.fullmatch(
        r"bvh A: mean \d mm, worst \d mm from the joints\n", capsys.readouterr().out
    )
    assert ours(tmp_path / "motion.bvh")["Hips"][0, 1] < 1.1
