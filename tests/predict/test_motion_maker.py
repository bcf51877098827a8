import dataclasses

import numpy as np
import pytest
from planar import SIZE, planar_module, tracked, walking_clip

from pipeline.errors import UsageError
from pipeline.export.measures import is_usable
from pipeline.export.motion import FILLED, MISSING, SEEN, Motion
from pipeline.predict.motion_maker import make_motion, to_world
from pipeline.predict.options import LiftOptions, SourceOptions
from pipeline.predict.root import measure_height, pitch_up, upright_rotation
from pipeline.predict.tracks import TrackedPeople
from pipeline.skeleton import BLAZEPOSE33, COCO17, H36M17

FOCAL = 1000.0


def height_of(positions):
    return measure_height(positions, H36M17)


def predict(people, frames=9, **options):
    return make_motion(people, planar_module(frames), LiftOptions(focal=FOCAL, **options), {})


def clip(rate, seconds=4.0):
    times = 0.5 + np.arange(round(seconds * rate)) / rate
    root, positions = walking_clip(times)
    return times, root, positions


@pytest.mark.parametrize("rate", [24.0, 25.0, 30.0, 50.0, 60.0])
def test_a_person_is_found_where_he_is_at_any_frame_rate(rate):
    times, root, positions = clip(rate)
    motion = predict(tracked(positions, times, FOCAL), height=(height_of(positions),))
    (person,) = motion.people
    error = np.linalg.norm(person.positions - positions, axis=-1)
    assert error[5:-5].mean() < 0.05  # the lifter takes the body for parallel to the crop
    assert error.max() < 0.4
    assert (person.status == SEEN).all()
    assert np.linalg.norm(person.root - root, axis=1)[5:-5].mean() < 0.05


def test_row_9_variable_frame_rate_gives_the_same_motion_as_regular_frames():
    times, _, positions = clip(30.0)
    kept = np.sort(np.random.default_rng(3).permutation(len(times))[: len(times) * 3 // 4])
    uneven = predict(tracked(positions[kept], times[kept], FOCAL)).people[0].positions
    even = predict(tracked(positions, times, FOCAL)).people[0].positions[kept]
    assert np.linalg.norm(uneven - even, axis=-1)[4:-4].mean() < 0.02


def test_row_13_ten_frames_and_a_window_of_243_give_ten_poses_and_a_jump_stays():
    times = np.arange(10) / 50
    _, positions = walking_clip(times)
    positions[7:] += (0.8, 0, 0)
    motion = predict(tracked(positions, times, FOCAL), frames=243, smooth="none")
    assert len(motion) == 10
    step = np.linalg.norm(np.diff(motion.people[0].positions[:, 0], axis=0), axis=1)
    assert np.argmax(step) == 6


def test_a_hole_in_the_times_splits_the_motion():
    """The same motion on both sides, whether the source has the other side or not."""
    times, _, positions = clip(25.0, 3.0)
    later = np.r_[times, times + 3600]
    people = tracked(np.r_[positions, positions], later, FOCAL)
    (both,) = predict(people).people
    (alone,) = predict(tracked(positions, times, FOCAL)).people
    assert both.positions[:75] == pytest.approx(alone.positions, abs=1e-4)
    assert both.positions[75:] == pytest.approx(alone.positions, abs=1e-4)
    assert (both.status == SEEN).all()


def test_one_frame_gives_one_pose():
    times = np.array([3.0])
    _, positions = walking_clip(times)
    motion = predict(tracked(positions, times, FOCAL), height=(height_of(positions),))
    assert np.linalg.norm(motion.people[0].positions - positions, axis=-1).mean() < 0.05


def test_short_gaps_are_filled_and_marked_and_long_gaps_split():
    times, _, positions = clip(25.0)
    frames = [*range(10, 20), *range(26, 50), *range(75, 100)]
    (person,) = predict(tracked(positions, times, FOCAL, frames), fill_gaps=0.4).people
    assert (person.status[20:26] == FILLED).all()
    assert (person.status[50:75] == MISSING).all()
    assert person.spans == [(10, 49), (75, 99)]
    assert np.isnan(person.positions[50:75]).all()
    assert np.isfinite(person.positions[10:50]).all()
    assert (person.score[20:26] == 0).all()
    filled = np.linalg.norm(person.positions[20:26] - positions[20:26], axis=-1)
    assert filled.mean() < 0.2


def test_row_10_a_clip_that_begins_with_nobody_is_missing_there_and_the_same_after():
    times, _, positions = clip(25.0)
    late = predict(tracked(positions, times, FOCAL, range(30, 100))).people[0]
    alone = predict(tracked(positions[30:], times[30:], FOCAL)).people[0]
    assert np.isnan(late.positions[:30]).all()
    assert late.positions[30:] == pytest.approx(alone.positions, abs=1e-5)


def test_nobody_gives_a_valid_motion_without_people(tmp_path):
    people = TrackedPeople(H36M17, (), np.arange(5) / 25, 25.0, SIZE)
    motion = predict(people)
    assert motion.people == ()
    motion.save(tmp_path / "motion.npz")
    assert len(Motion.load(tmp_path / "motion.npz")) == 5


def test_height_sets_the_scale_and_the_distance():
    times, _, positions = clip(25.0)
    people = tracked(positions, times, FOCAL)
    small, large = (predict(people, height=(h,)).people[0] for h in (1.2, 2.4))
    assert large.root[:, 2] == pytest.approx(2 * small.root[:, 2], rel=1e-3)
    assert measure_height(large.joints3d, H36M17) == pytest.approx(2.4, abs=0.05)
    assert large.height == 2.4


def test_the_field_of_view_says_the_focal_length():
    assert LiftOptions(fov=90).focal_length((1280, 720)) == pytest.approx(640)
    assert LiftOptions(fov=90).focal_length((720, 1280)) == pytest.approx(640)
    assert LiftOptions().focal_length((1000, 500)) == pytest.approx(960.49, abs=0.01)


def test_what_is_assumed_is_said():
    times, _, positions = clip(25.0, 1.0)
    people = tracked(positions, times, FOCAL, notes=("30 fps assumed",))
    said = make_motion(people, planar_module(), LiftOptions(), {}).facts["assumptions"]
    assert any("--fov" in line for line in said)
    assert any("--height" in line for line in said)
    assert "30 fps assumed" in said
    given = predict(tracked(positions, times, FOCAL), height=(1.8,)).facts["assumptions"]
    assert given == []


@pytest.mark.parametrize("pitch", [-20.0, 10.0])
@pytest.mark.parametrize("given", [True, False])
def test_row_22_the_world_is_upright_within_3_degrees(pitch, given):
    times = np.arange(60) / 25
    body = np.stack([p - r for r, p in [walking_clip(np.array([t])) for t in times]])[:, 0]
    tilt = upright_rotation(pitch_up(pitch)) @ upright_rotation(pitch_up(0.0)).T
    positions = body @ tilt.T + (0.3, 0.1, 5)
    # the planar lifter cannot see the tilt, so the true 3D is put through the same steps
    people = tracked(positions, times, FOCAL)
    module = planar_module()
    camera = make_motion(people, module, LiftOptions(focal=FOCAL), {})
    truth = dataclasses.replace(
        camera,
        people=(
            dataclasses.replace(
                camera.people[0],
                joints3d=(positions - positions[:, :1]).astype(np.float32),
                root=positions[:, 0].astype(np.float32),
            ),
        ),
    )
    options = LiftOptions(frame="world", camera_pitch=pitch if given else None)
    world = to_world(truth, options)
    (person,) = world.people
    up = person.positions[:, H36M17.index("thorax")] - person.positions[:, 0]
    angle = np.degrees(np.arccos(up[:, 2] / np.linalg.norm(up, axis=1)))
    assert angle.max() < 3
    assert world.frame == "world"
    feet = person.positions[:, [3, 6], 2]
    assert feet == pytest.approx(np.full_like(feet, 0.08), abs=0.02)
    back = (person.positions - world.camera_centre) @ world.camera_rotation.T
    assert back == pytest.approx(positions, abs=1e-4)


def test_people_are_chosen_and_ordered():
    times, _, positions = clip(25.0, 1.0)
    near = tracked(positions, times, FOCAL).tracks[0]
    far = tracked(positions + np.array([0.5, 0, 6]), times, FOCAL).tracks[0]
    far = dataclasses.replace(far, id="B")
    people = TrackedPeople(H36M17, (far, near), times, 25.0, SIZE)
    assert [p.id for p in predict(people).people] == ["B", "A"]
    assert [p.id for p in predict(people, order="size").people] == ["A", "B"]
    assert [p.id for p in predict(people, order="displacement", max_people=1).people] == ["A"]
    assert [p.id for p in predict(people, person="B").people] == ["B"]
    with pytest.raises(UsageError, match="there is B, A"):
        predict(people, person="C")


def test_coco_joints_are_converted_and_the_rest_is_missing_not_invented():
    times, _, positions = clip(25.0, 2.0)
    people = tracked(positions, times, FOCAL)
    names = [H36M17.joints.index(n) if n in H36M17.joints else -1 for n in COCO17.joints]
    track = people.tracks[0]
    coco2d = np.where((np.array(names) >= 0)[:, None], track.joints2d[:, names], np.nan)
    coco_score = np.where(np.array(names) >= 0, track.score[:, names], 0)
    track = dataclasses.replace(track, joints2d=coco2d, score=coco_score)
    motion = predict(TrackedPeople(COCO17, (track,), times, 25.0, SIZE))
    assert np.isfinite(motion.people[0].positions).all()
    pelvis = motion.people[0].joints2d[:, 0]
    assert pelvis == pytest.approx((track.joints2d[:, 11] + track.joints2d[:, 12]) / 2, abs=1e-3)


def test_quality_says_what_smoothing_did_and_whether_the_2d_was_good_enough():
    times, _, positions = clip(25.0)
    noise = np.random.default_rng(0).normal(scale=0.008, size=positions.shape) * (1, 1, 0)
    quality = predict(tracked(positions + noise, times, FOCAL)).facts["quality"]["A"]
    assert quality["jitter"] < 0.5 * quality["jitter_before"]
    assert quality["bone_variation"] < 1e-3 < quality["bone_variation_before"]
    assert is_usable(quality)
    assert not is_usable({**quality, "median_score": 0.2})
    assert not is_usable({**quality, "bone_variation_before": 0.3})


def test_heights_are_those_of_all_people_in_their_order_whoever_is_kept():
    times, _, positions = clip(25.0, 1.0)
    near = tracked(positions, times, FOCAL).tracks[0]
    others = [dataclasses.replace(near, id=name) for name in "BC"]
    people = TrackedPeople(H36M17, (near, *others), times, 25.0, SIZE)
    found = predict(people, height=(1.5, 1.8))
    assert [p.height for p in found.people] == [1.5, 1.8, 1.8]
    assert "height 1.80 m for the people after the first 2 (--height)" in found.facts["assumptions"]
    (chosen,) = predict(people, height=(1.5, 1.8), person="B").people
    assert chosen.height == 1.8


def test_a_filter_that_has_nothing_to_do_is_told():
    times, _, positions = clip(8.0, 2.0)
    note = "not smoothed: 8 frames/s hold nothing above 5 Hz (--cutoff)"
    people = tracked(positions, times, FOCAL)
    assert note in predict(people).facts["assumptions"]
    assert note not in predict(people, cutoff=2.0).facts["assumptions"]


def test_the_floor_is_an_assumption_of_the_world_alone():
    times, _, positions = clip(25.0, 1.0)
    people = tracked(positions, times, FOCAL)
    told = [any("floor" in line for line in predict(people, frame=frame).facts["assumptions"])
            for frame in ("camera", "world")]  # fmt: skip
    assert told == [False, True]


@pytest.mark.parametrize("is_even", [True, False])
def test_without_smoothing_nothing_is_changed_over_time(is_even):
    times, _, positions = clip(50.0, 1.0)
    if not is_even:
        times = np.r_[times[:25], times[24] + np.arange(1, 26) / 15]
        _, positions = walking_clip(times)
    people = tracked(positions, times, FOCAL)
    facts = predict(people, smooth="none").facts
    quality = facts["quality"]["A"]
    assert quality["jitter"] == pytest.approx(quality["jitter_before"], rel=1e-4)
    assert facts["smoothing"] == {"filter": "none", "cutoff_hz": None}
    assert "smoothed" not in facts["root"]
    assert "smoothed" in predict(people).facts["root"]


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ({"height": (17.0,)}, "height"),
        ({"focal": -5.0}, "focal"),
        ({"focal": 900.0, "fov": 60.0}, "one of them"),
        ({"fov": 180.0}, "fov"),
        ({"camera_pitch": 100.0}, "camera_pitch"),
        ({"joint_thr": 1.5}, "joint_thr"),
        ({"fill_gaps": -1.0}, "fill_gaps"),
        ({"cutoff": 0.0}, "cutoff"),
        ({"max_people": 0}, "max_people"),
    ],
)
def test_a_value_that_makes_no_sense_is_a_usage_error(option, word):
    with pytest.raises(UsageError, match=word):
        LiftOptions(**option)


def in_other_set(people, skeleton):
    """The same 2D joints in a detector's set; ears are where its made-up top of the head fits."""
    track = people.tracks[0]
    named = dict(zip(H36M17.joints, np.moveaxis(track.joints2d, 1, 0), strict=True))
    shoulders = (named["left_shoulder"] + named["right_shoulder"]) / 2
    ears = (named["head"] + 0.55 * shoulders) / 1.55
    joints2d = np.stack(
        [named.get(name, ears if "ear" in name else named["nose"]) for name in skeleton.joints], 1
    )
    score = np.full(joints2d.shape[:2], 0.9, np.float32)
    track = dataclasses.replace(track, joints2d=joints2d.astype(np.float32), score=score)
    return dataclasses.replace(people, skeleton=skeleton, tracks=(track,))


@pytest.mark.parametrize("skeleton", [COCO17, BLAZEPOSE33])
def test_the_joints_of_another_detector_give_the_same_motion_but_for_what_it_lacks(skeleton):
    times, _, positions = clip(25.0, 2.0)
    people = tracked(positions, times, FOCAL)
    one = predict(people, height=(1.7,)).people[0].joints3d
    other = predict(in_other_set(people, skeleton), height=(1.7,)).people[0].joints3d
    error = np.linalg.norm(one - other, axis=-1).mean(axis=0)
    made_up = [H36M17.index(name) for name in ("spine", "thorax", "head")]
    assert error[made_up].max() < 0.04
    assert np.delete(error, made_up).max() < 0.02


def test_row_6_portrait_and_landscape_give_the_same_motion():
    times, _, positions = clip(25.0, 2.0)
    wide = tracked(positions, times, FOCAL)
    shift = (np.array(SIZE[::-1]) - SIZE) / 2
    track = dataclasses.replace(
        wide.tracks[0], joints2d=(wide.tracks[0].joints2d + shift).astype(np.float32)
    )
    tall = dataclasses.replace(wide, size=SIZE[::-1], tracks=(track,))
    one, other = (predict(people).people[0].positions for people in (wide, tall))
    assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize("rate", [25.0, 30.0])
def test_hands_that_clap_for_two_frames_meet_in_the_motion(rate):
    times, _, positions = clip(rate, 3.0)
    hands = [H36M17.index("left_wrist"), H36M17.index("right_wrist")]
    middle = positions[:, hands].mean(axis=1)
    middle[:, 0] = positions[:, 0, 0]
    positions[40:42, hands] = middle[40:42, None]
    (person,) = predict(tracked(positions, times, FOCAL)).people
    gap = np.linalg.norm(np.diff(person.positions[:, hands], axis=1)[:, 0], axis=-1)
    assert gap[40:42].min() < 0.03
    assert gap[30] > 0.2


@pytest.mark.parametrize("trained", [25.0, 50.0, None])
def test_a_clip_is_lifted_at_the_rate_that_the_lifter_was_trained_on(trained):
    times, _, positions = clip(30.0, 2.0)
    module = planar_module()
    module.trained_rate = trained
    seen = []
    module.net.register_forward_hook(lambda net, inputs, lifted: seen.append(inputs[0].shape))
    make_motion(tracked(positions, times, FOCAL), module, LiftOptions(focal=FOCAL), {})
    expected = round((len(times) - 1) / 30 * (trained or 50.0)) + 1
    windows, frames = sum(shape[0] for shape in seen) // 2, 9
    assert windows == len({*range(0, expected - frames + 1, 5), expected - frames})


def test_people_behind_the_camera_are_left_out_with_a_warning():
    times, _, positions = clip(25.0)
    people = tracked(positions, times, FOCAL)
    motion = make_motion(people, planar_module(9), LiftOptions(focal=20.0), {"warnings": ["first"]})
    assert motion.people == ()
    first, warning = motion.facts["warnings"]
    assert first == "first"
    assert f"{len(times)} frames are left out, because with a focal length of 20 pixels" in warning
    assert predict(people).facts["warnings"] == []


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"focal": np.inf}, "focal is inf; give pixels above 0 and up to a million"),
        ({"focal": 1e30}, "focal is 1e\\+30"),
    ],
)
def test_a_lens_without_sense_is_an_error(options, part):
    with pytest.raises(UsageError, match=part):
        LiftOptions(**options)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"time": (0.0, np.inf)}, "time is 0 to inf"),
        ({"every": 10**20}, "every is 1000"),
        ({"frames": 10**13}, "frames is 10000000000000; give a number from 1 to 2,000,000"),
        ({"size": "99999x99999"}, "size is 99999x99999; give at most 100,000,000 pixels"),
    ],
)
def test_a_source_without_sense_is_an_error(options, part):
    with pytest.raises(UsageError, match=part):
        SourceOptions(**options)
