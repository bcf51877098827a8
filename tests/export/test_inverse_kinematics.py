import numpy as np
import pytest
from made_motions import (
    BODY,
    FACING,
    STRAIGHT,
    as_camera,
    motion_of,
    person_of,
    standing,
    world_joints,
)
from scipy.spatial.transform import Rotation

from pipeline.errors import UsageError
from pipeline.export.inverse_kinematics import TO_Y_UP, fit_body, forward_positions
from pipeline.export.motion import MISSING, SEEN, Motion
from pipeline.export.rest_skeleton import JOINTS, PARENTS, PLACES, PROPORTIONS, rest_skeleton
from pipeline.mocap.choreography import ACTIONS, CHANNELS
from pipeline.mocap.mapping import read_mapping
from pipeline.mocap.preparation import read_recording
from pipeline.mocap.synthetic import make_motion
from pipeline.skeleton import COCO17, H36M17


def fit(joints, frame="world", **options):
    motion = motion_of(joints, frame=frame)
    return fit_body(motion, motion.people[0], **options)


def steps(body):
    """Angles from frame to frame, degrees, (T - 1, B)."""
    cos = np.abs((body.rotations[1:] * body.rotations[:-1]).sum(-1))
    return np.degrees(2 * np.arccos(np.clip(cos, 0, 1)))


def world_rotations(body):
    """Rotations of all joints, by scipy: joint -> Rotation of T frames."""
    found = []
    for joint, parent in enumerate(body.parents):
        own = Rotation.from_quat(np.roll(body.rotations[:, joint], -1, axis=-1))
        found.append(own if parent < 0 else found[parent] * own)
    return dict(zip(body.joints, found, strict=True))


def rest_joints(rest):
    """Joints of H36M17 of a skeleton at rest, y up, (17, 3)."""
    places = []
    for joint, parent in enumerate(PARENTS):
        places.append(rest.offsets[joint] + (places[parent] if parent >= 0 else 0))
    top = places[JOINTS.index("Head")] + rest.ends[JOINTS.index("Head")]
    return np.array(
        [places[JOINTS.index(PLACES[n])] if n in PLACES else top for n in H36M17.joints]
    )


@pytest.mark.parametrize("action", sorted(ACTIONS))
def test_joints_are_within_5_mm_where_bones_are_constant(action):
    body = fit(make_motion(3, "test02", action, 150))
    assert body.error.max() < 0.005
    assert body.error.mean() < 0.0005
    assert np.linalg.norm(body.rotations, axis=-1) == pytest.approx(1.0)
    assert steps(body).max() < 40


def test_the_error_is_that_of_the_positions():
    joints = make_motion(0, "test01", "reach", 20) * np.array([1.0, 1.0, 1.03])
    body = fit(joints)
    positions = forward_positions(body)
    wanted = joints @ TO_Y_UP["world"].T
    for name, place in PLACES.items():
        distance = np.linalg.norm(
            positions[:, JOINTS.index(place)] - wanted[:, H36M17.index(name)], axis=1
        )
        assert body.error[:, H36M17.index(name)] == pytest.approx(distance, abs=1e-6)
    assert 0.002 < body.error.max() < 0.05


def test_real_recordings_are_followed(shared):
    """A walk and a boxer; the bones to pelvis and spine of this database are not constant."""
    folder = shared / "data" / "cmu_mocap" / "bvh"
    for name in ("13_15", "07_03"):
        file = next(folder.rglob(f"{name}.bvh*"), None)
        if file is None:
            pytest.skip(f"no {name} in {folder}")
        joints, _ = read_recording(file, read_mapping("cmu"))
        body = fit(joints[:800:2])
        assert body.error.mean() < 0.001
        assert body.error.max() < 0.025


def test_the_rest_skeleton_is_a_t_pose_with_the_persons_bones():
    joints = world_joints(*standing(5))
    rest = rest_skeleton(joints, 1.7)
    place = dict(zip(H36M17.joints, rest_joints(rest), strict=True))
    for parent, child in H36M17.bones:
        length = np.linalg.norm(place[H36M17.joints[child]] - place[H36M17.joints[parent]])
        assert length == pytest.approx(BODY[H36M17.joints[child].split("_")[-1]], abs=1e-3)
    assert place["left_wrist"][0] > place["left_elbow"][0] > place["left_shoulder"][0] > 0
    assert place["right_wrist"] == pytest.approx(place["left_wrist"] * (-1, 1, 1))
    assert place["left_wrist"][1] == pytest.approx(place["left_shoulder"][1])
    assert place["nose"][2] > 0.02  # faces +Z
    assert place["head"][1] > place["nose"][1] > place["thorax"][1] > place["pelvis"][1]
    assert place["left_ankle"][1] == pytest.approx(rest.ankle_height)  # stands on y = 0
    assert min(np.linalg.norm(end) for end in rest.ends.values()) > 0.05
    toes = rest.ends[JOINTS.index("LeftFoot")]
    assert (toes[2] > 0.1, place["left_ankle"][1] + toes[1]) == (True, pytest.approx(0))


def test_left_and_right_bones_are_averaged_and_outliers_have_no_effect():
    joints = world_joints(*standing(9))
    joints[:, H36M17.index("left_wrist")] += 0.02 * (
        joints[:, H36M17.index("left_wrist")] - joints[:, H36M17.index("left_elbow")]
    )
    joints[0, H36M17.index("right_wrist")] += 5.0
    rest = rest_skeleton(joints, 1.7)
    assert rest.offsets[JOINTS.index("RightHand"), 0] == pytest.approx(-1.01 * BODY["wrist"], 1e-3)


def test_bones_that_are_never_seen_have_the_proportions_of_the_height():
    joints = world_joints(*standing(3))
    joints[:, [H36M17.index(f"{side}_ankle") for side in ("left", "right")]] = np.nan
    small, tall = (fit(joints, height=height) for height in (1.2, 1.9))
    shin = JOINTS.index("LeftFoot")
    assert small.offsets[shin, 1] == pytest.approx(-1.2 * PROPORTIONS["ankle"])
    assert tall.offsets[shin, 1] == pytest.approx(-1.9 * PROPORTIONS["ankle"])
    assert np.isnan(small.error[:, H36M17.index("left_ankle")]).all()
    assert np.nanmax(small.error) < 0.005
    assert 1.4 < rest_joints(rest_skeleton(np.full((2, 17, 3), np.nan), 1.5))[10, 1] < 1.55


def test_a_person_in_the_rest_pose_has_no_rotation():
    rest = rest_skeleton(world_joints(*standing(2)), 1.7)
    y_up = np.repeat(rest_joints(rest)[None], 3, axis=0)
    body = fit(y_up @ TO_Y_UP["world"])
    assert body.error.max() < 1e-5
    assert body.rotations == pytest.approx(np.tile([1.0, 0, 0, 0], (3, len(JOINTS), 1)), abs=1e-4)
    assert body.root == pytest.approx(np.tile(rest.offsets[0], (3, 1)), abs=1e-4)


@pytest.mark.parametrize("frame", ["camera", "world"])
def test_turns_to_y_up_are_no_mirror_images(frame):
    assert np.linalg.det(TO_Y_UP[frame]) == pytest.approx(1)
    assert TO_Y_UP[frame] @ TO_Y_UP[frame].T == pytest.approx(np.eye(3))


@pytest.mark.parametrize("frame", ["camera", "world"])
def test_the_raised_left_hand_is_the_left_one_of_a_person_who_faces_the_camera(frame):
    joints = world_joints(*standing(4, abduct=(120, 10), elbow=20))
    body = fit(joints if frame == "world" else as_camera(joints), frame)
    place = dict(zip(body.joints, forward_positions(body)[2], strict=True))
    assert place["LeftHand"][1] > place["Neck"][1] > place["RightHand"][1]
    assert place["LeftHand"][0] > place["Hips"][0] > place["RightHand"][0]
    assert place["Head"][2] > place["Neck"][2]  # the nose is towards the camera, +Z
    root = Rotation.from_quat(np.roll(body.rotations[2, 0], -1))
    assert root.magnitude() < np.radians(12)


def test_a_person_who_looks_to_the_right_of_the_image_is_turned_there():
    body = fit(world_joints(*standing(3, yaw=0.0)))  # towards +x of the world
    ahead = world_rotations(body)["Hips"].apply([0, 0, 1])[1]
    assert ahead == pytest.approx([1, 0, 0], abs=0.2)


@pytest.mark.parametrize("straight", [True, False])
def test_two_turns_on_the_spot_are_continuous(straight):
    pose = standing(240, **(STRAIGHT if straight else {}))
    yaw = np.linspace(0, 720, 240)
    pose[:, CHANNELS.index("yaw")] += yaw
    body = fit(world_joints(*pose))
    assert body.error.max() < 0.005
    assert steps(body)[:, 0] == pytest.approx(720 / 239, abs=0.1)
    assert steps(body)[:, 1:].max() < 0.5  # nothing else moves
    dots = (body.rotations[1:] * body.rotations[:-1]).sum(-1)
    assert dots.min() > 0.99  # the sign, too


def test_straight_limbs_take_their_twist_from_the_parent_and_noise_does_not_flip_them():
    joints = world_joints(*standing(200, **STRAIGHT))
    exact = fit(joints)
    noise = np.random.default_rng(4).normal(scale=0.002, size=joints.shape)
    noisy = fit(joints + noise)
    for body in (exact, noisy):
        turned = world_rotations(body)
        thigh = turned["LeftUpLeg"].apply([1, 0, 0])
        assert thigh[:, 0].min() > 0.9  # the knee's axis stays to the left
        upper_arm = turned["LeftArm"].apply([0, 0, 1])
        assert upper_arm[:, 2].min() > 0.9  # what is in front in the T-pose stays in front
    assert steps(exact).max() < 0.01
    assert steps(noisy)[:, [JOINTS.index("LeftArm"), JOINTS.index("LeftUpLeg")]].max() < 12


def test_arms_pass_through_straight_without_a_flip():
    bend = np.concatenate([np.linspace(60, 0, 40), np.zeros(20), np.linspace(0, 60, 40)])
    poses = np.stack([standing(1, arm=30, elbow=angle, inward=20)[0] for angle in bend])
    body = fit(world_joints(*poses))
    assert steps(body).max() < 4
    assert body.error.max() < 0.005


def hinge_angles(body, name):
    """Angles of a joint about its hinge, and how far its axis is from it, degrees."""
    vectors = Rotation.from_quat(np.roll(body.rotations[:, JOINTS.index(name)], -1, axis=-1))
    return np.degrees(vectors.as_rotvec())


def test_knees_and_elbows_turn_about_one_axis():
    body = fit(make_motion(1, "test01", "squat", 150))
    for side, sign in (("Left", -1), ("Right", 1)):
        knee, elbow = hinge_angles(body, f"{side}Leg"), hinge_angles(body, f"{side}ForeArm")
        assert knee[:, 1:] == pytest.approx(0, abs=1e-6)
        assert (knee[:, 0].min() >= 0, knee[:, 0].max() > 80) == (True, True)
        assert elbow[:, [0, 2]] == pytest.approx(0, abs=1e-6)
        assert (sign * elbow[:, 1]).min() >= 0


def test_knees_and_elbows_never_bend_the_wrong_way():
    """Errors of depth put ankles ahead of straight legs; the body keeps its legs straight."""
    joints = world_joints(*standing(30, **STRAIGHT))
    wrong = np.array([0, -np.sin(0.3), np.cos(0.3) - 1])  # towards the camera, and up
    joints[:, H36M17.index("left_ankle")] += BODY["ankle"] * wrong * (1, 1, -1)
    joints[:, H36M17.index("right_wrist")] += 0.15 * BODY["wrist"] * np.array([0, 1.0, 0])
    body = fit(joints)
    knee, elbow = hinge_angles(body, "LeftLeg"), hinge_angles(body, "RightForeArm")
    assert knee == pytest.approx(0, abs=1e-6)
    assert np.abs(elbow).max() < 1
    turned = world_rotations(body)
    assert turned["LeftUpLeg"].apply([1, 0, 0])[:, 0].min() > 0.9
    assert turned["RightArm"].apply([0, 0, 1])[:, 2].min() > 0.9
    assert 0.02 < body.error.max() < 0.1


def test_the_head_looks_where_the_nose_is():
    poses = [standing(1, look=angle)[0] for angle in (-60, 0, 60)]
    body = fit(world_joints(*poses))
    ahead = world_rotations(body)["Head"].apply([0, 0, 1])
    turned = np.degrees(np.arctan2(ahead[:, 0], ahead[:, 2]))
    assert turned == pytest.approx([-60, 0, 60], abs=4)  # look turns left, towards +x
    chest = world_rotations(body)["Chest"].apply([0, 0, 1])
    assert chest[:, 2].min() > 0.95


def test_joints_that_are_missing_for_a_while_are_bridged():
    joints = make_motion(0, "test01", "walk", 60).copy()
    gone = joints.copy()
    elbow, wrist = H36M17.index("left_elbow"), H36M17.index("left_wrist")
    gone[20:26, [elbow, wrist]] = np.nan
    gone[40:43, 0] = np.nan  # the pelvis is between the hips
    body, whole = fit(gone), fit(joints)
    assert np.isnan(body.error[20:26, [elbow, wrist]]).all()
    assert np.isfinite(np.delete(body.error, [0, elbow, wrist], axis=1)).all()
    assert np.nanmax(body.error) < 0.005
    assert np.isfinite(body.rotations).all()
    distance = np.linalg.norm(forward_positions(body) - forward_positions(whole), axis=-1)
    assert distance.max() < 0.03
    assert steps(body).max() < 12


@pytest.mark.parametrize(
    "names",
    [
        ("nose", "head"),
        ("spine", "thorax", "nose", "head"),
        ("left_shoulder", "left_elbow", "left_wrist"),
        ("left_hip", "right_hip", "left_knee", "left_ankle", "right_knee", "right_ankle"),
        ("right_knee", "left_elbow"),
        tuple(name for name in H36M17.joints if name != "left_wrist"),
    ],
)
def test_joints_that_are_never_seen_are_tolerated(names):
    joints = make_motion(0, "test01", "talk", 20).copy()
    joints[:, [H36M17.index(name) for name in names]] = np.nan
    body = fit(joints)
    assert np.isfinite(body.rotations).all()
    assert np.isfinite(body.root).all()
    known = ~np.isnan(joints).any(-1)
    assert (np.isfinite(body.error) == known).all()
    assert np.nanmax(body.error) < 0.03
    place = dict(zip(body.joints, forward_positions(body)[10], strict=True))
    assert place["Neck"][1] > place["Hips"][1] > place["LeftLeg"][1] > place["LeftFoot"][1]
    assert place["Head"][1] > place["Neck"][1] - 0.02


def test_arms_that_are_never_seen_hang():
    joints = world_joints(*standing(4))
    joints[:, 11:] = np.nan
    body = fit(joints)
    place = dict(zip(body.joints, forward_positions(body)[0], strict=True))
    assert place["LeftHand"][1] < place["LeftForeArm"][1] < place["LeftArm"][1]
    assert place["LeftArm"][0] > place["Neck"][0] > place["RightArm"][0]


def test_missing_frames_hold_the_last_pose_and_the_first_ones_the_first():
    joints = make_motion(0, "test01", "kick", 8)
    status = [MISSING, MISSING, SEEN, SEEN, MISSING, SEEN, SEEN, MISSING]
    motion = motion_of(person_of(joints, status=status))
    body = fit_body(motion, motion.people[0])
    source = [2, 2, 2, 3, 3, 5, 6, 6]
    assert (body.root == body.root[source]).all()
    assert (body.rotations == body.rotations[source]).all()
    assert np.isnan(body.error[[0, 1, 4, 7]]).all()
    assert np.isfinite(body.error[[2, 3, 5, 6]]).all()
    assert (body.root[2] != body.root[3]).any()


def test_one_frame_and_nobody():
    one = fit(make_motion(0, "test01", "punch", 5)[:1])
    assert one.rotations.shape == (1, len(JOINTS), 4)
    assert one.error.max() < 0.005
    nobody = motion_of(person_of(np.zeros((3, 17, 3)), status=[MISSING] * 3, height=1.8))
    body = fit_body(nobody, nobody.people[0])
    assert body.rotations == pytest.approx(np.tile([1.0, 0, 0, 0], (3, len(JOINTS), 1)))
    assert np.isnan(body.error).all()
    heights = forward_positions(body)[0, :, 1]
    assert heights.min() == pytest.approx(1.8 * 0.0477, abs=0.001)


def test_a_body_whose_joints_are_all_in_one_place_is_finite():
    body = fit(np.ones((3, 17, 3)))
    assert np.isfinite(body.rotations).all()
    assert np.isfinite(body.root).all()


def test_in_the_camera_frame_the_lower_foot_stands_on_the_floor():
    joints = as_camera(world_joints(*standing(100)), height=1.6)
    joints[:5, :, 1] -= 0.4  # jumps, y down
    joints[5:9, :, 1] += 0.3  # errors: below the floor in 4 % of the frames
    body = fit(joints, "camera")
    ankles = forward_positions(body)[:, [JOINTS.index("LeftFoot"), JOINTS.index("RightFoot")], 1]
    ankle = -body.ends[JOINTS.index("LeftFoot")][1]
    assert ankles.min(axis=1)[50] == pytest.approx(ankle, abs=1e-3)
    assert ankles.min(axis=1)[2] == pytest.approx(ankle + 0.4, abs=1e-3)
    assert body.root[50, [0, 2]] == pytest.approx([0.3, -4.0], abs=1e-3)  # not moved sideways


def test_in_the_world_frame_nobody_is_moved():
    joints = world_joints(*standing(4)) + np.array([0, 0, 0.7])
    body = fit(joints)
    assert body.root[0] == pytest.approx(TO_Y_UP["world"] @ joints[0, 0], abs=1e-4)


def test_noise_is_shared_among_the_joints_and_not_added_up_along_the_limbs():
    """Least squares: the hand is no farther from its place than the knee."""
    generator = np.random.default_rng(5)
    joints = make_motion(0, "test01", "walk", 200)
    body = fit(joints + generator.normal(scale=0.01, size=joints.shape))
    rms = np.sqrt((body.error**2).mean(axis=0))
    assert rms.max() < 0.016  # of the 17 mm that were added
    assert rms[H36M17.index("left_wrist")] < 1.5 * rms[H36M17.index("left_elbow")]


def test_other_joints_are_an_error():
    still = np.zeros((2, 17, 3), np.float32)
    person = person_of(still)
    motion = Motion((person,), COCO17, np.arange(2.0), 1.0, (8, 8), 9.0, (4, 4))
    with pytest.raises(UsageError, match="joints of COCO17"):
        fit_body(motion, person)


def test_facing_is_what_the_tests_take_it_for():
    nose, neck = (world_joints(*standing(1))[0, H36M17.index(n)] for n in ("nose", "thorax"))
    assert (nose - neck)[1] < -0.03
    assert FACING == -90


def test_hips_do_not_fold_where_noise_makes_the_spine_short():
    joints = world_joints(*standing(60))
    noise = np.random.default_rng(6).normal(scale=0.008, size=joints.shape)
    body = fit(joints + noise)
    up = world_rotations(body)["Hips"].apply([0, 1, 0])
    assert up[:, 1].min() > 0.97  # of the 8 mm at 24 cm follow some degrees
