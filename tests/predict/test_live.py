import numpy as np
import pytest
from planar import SIZE, planar_module, project, walking_clip

from pipeline.errors import UsageError
from pipeline.export.joining import join_motions
from pipeline.predict.estimators import WholeImage
from pipeline.predict.live import LiveLifter
from pipeline.predict.media import Frame
from pipeline.predict.options import LiftOptions, check_live
from pipeline.skeleton import H36M17

FOCAL = 1000.0


class Stub:
    name, skeleton, digest, licence = "stub", H36M17, "0", ""

    def settings(self):
        return {}


def lift_live(rate, seconds=2.0, frames=9, stop=None, **options):
    times = np.arange(round(seconds * rate)) / rate
    _, positions = walking_clip(times)
    joints2d = project(positions, FOCAL)
    live = LiveLifter(
        planar_module(frames), Stub(), WholeImage(), LiftOptions(focal=FOCAL, **options)
    )
    score = np.full(17, 0.9)
    people = [
        live.lift_pose(0, joints2d[i], score, times[i], SIZE) for i in range(stop or len(times))
    ]
    return np.concatenate([person.positions for person in people]), positions, people


@pytest.mark.parametrize("rate", [25.0, 30.0, 60.0])
def test_live_poses_are_near_the_truth_from_the_first_frame_on(rate):
    found, positions, _ = lift_live(rate, height=(1.69,))
    error = np.linalg.norm(found - positions, axis=-1).mean(axis=1)
    assert error[0] < 0.15
    assert error[10:].mean() < 0.12


def test_a_live_pose_depends_on_no_later_frame():
    whole, *_ = lift_live(30.0)
    begun, *_ = lift_live(30.0, stop=25)
    assert begun == pytest.approx(whole[:25])


def test_without_smoothing_there_is_no_delay():
    smooth, positions, _ = lift_live(30.0, seconds=3.0, height=(1.69,))
    raw, *_ = lift_live(30.0, seconds=3.0, height=(1.69,), smooth="none")
    wrist = H36M17.index("left_wrist")
    lag = [np.linalg.norm(m - positions, axis=-1)[20:, wrist].mean() for m in (smooth, raw)]
    assert lag[1] < lag[0]


def test_without_smoothing_the_root_is_that_of_each_frame(monkeypatch):
    depths = iter([4.0, 5.0, 4.0, 5.0] * 2)
    monkeypatch.setattr(
        "pipeline.predict.live.locate_root",
        lambda *_, **__: np.array([[0.1, 0.2, next(depths)]]),
    )
    *_, raw = lift_live(30.0, stop=4, smooth="none")
    assert [person.root[0, 2] for person in raw] == [4.0, 5.0, 4.0, 5.0]
    *_, smooth = lift_live(30.0, stop=4)
    assert [person.root[0, 2] for person in smooth] != [4.0, 5.0, 4.0, 5.0]
    for kind, words in (("none", "frame; "), ("one-euro", "then smoothed without looking ahead")):
        live = LiveLifter(planar_module(9), Stub(), WholeImage(), LiftOptions(smooth=kind))
        assert words in live.facts["root"]


def test_the_assumed_heights_are_those_of_the_people_that_were_seen():
    live = LiveLifter(planar_module(9), Stub(), WholeImage(), LiftOptions(height=(1.8, 1.7)))
    assert not any("people after the first" in line for line in live.assumptions())
    live.seen |= {"A", "B", "C"}
    assert "height 1.70 m for the people after the first 2 (--height)" in live.assumptions()


def test_a_long_gap_starts_a_new_window():
    times = np.arange(40) / 25
    _, positions = walking_clip(times)
    joints2d = project(positions, FOCAL)
    live = LiveLifter(planar_module(), Stub(), WholeImage(), LiftOptions(focal=FOCAL))
    score = np.full(17, 0.9)
    for i in range(10):
        live.lift_pose(0, joints2d[i], score, times[i], SIZE)
    live.lift_pose(0, joints2d[39], score, times[39], SIZE)
    assert len(live._people[0].times) == 1


def test_a_low_frame_rate_is_no_gap():
    """Frames are further apart than gaps that are filled, but nobody is missing in any."""
    live = LiveLifter(
        planar_module(), Stub(), WholeImage(), LiftOptions(focal=FOCAL, fill_gaps=0.1)
    )
    times = np.arange(8) / 2
    poses, score = project(walking_clip(times)[1], FOCAL), np.full(17, 0.9)
    image = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    for i, time in enumerate(times):
        live.tracker.follow = lambda frame, i=i: [(0, poses[i], score)] if i != 5 else []
        live.lift(Frame(i, time, image))
    assert len(live._people[0].times) == 2  # since frame 5, in which he is missing


def test_joints_below_the_threshold_are_missing_and_three_joints_are_nobody():
    live = LiveLifter(
        planar_module(), Stub(), WholeImage(), LiftOptions(focal=FOCAL, joint_thr=0.5)
    )
    pose = project(walking_clip(np.zeros(1))[1], FOCAL)[0]
    score = np.where(np.arange(17) < 14, 0.8, 0.4)
    person = live.lift_pose(0, pose, score, 0.0, SIZE)
    assert np.isnan(person.joints2d[0, 14:]).all()
    assert np.isfinite(person.joints2d[0, :14]).all()
    assert person.score[0].tolist() == pytest.approx([0.8] * 14 + [0.0] * 3)
    assert live.lift_pose(0, pose, np.where(np.arange(17) < 3, 0.8, 0.4), 0.1, SIZE) is None


def test_a_person_behind_the_camera_is_nobody():
    """With a very short lens the root of a wide pose cannot be in front of the camera."""
    live = LiveLifter(planar_module(), Stub(), WholeImage(), LiftOptions(focal=20.0))
    pose = project(walking_clip(np.zeros(1))[1], FOCAL)[0]
    assert live.lift_pose(0, pose, np.full(17, 0.9), 0.0, SIZE) is None


def test_joined_pieces_are_one_motion():
    from pipeline.export.motion import Motion

    _, _, people = lift_live(25.0, seconds=0.4)
    camera = (SIZE, FOCAL, (639.5, 359.5))
    pieces = [
        Motion((person,) if n != 3 else (), H36M17, np.array([n / 25]), 25.0, *camera)
        for n, person in enumerate(people)
    ]
    whole = join_motions(pieces)
    assert len(whole) == 10
    assert whole.people[0].spans == [(0, 2), (4, 9)]
    assert whole.people[0].joints3d[5] == pytest.approx(people[5].joints3d[0])
    assert whole.fps == pytest.approx(25)


@pytest.mark.parametrize("option", [{"frame": "world"}, {"order": "size"}, {"smooth": "savgol"}])
def test_an_option_that_needs_the_whole_clip_is_an_error_in_live_use(option):
    with pytest.raises(UsageError, match=f"{next(iter(option))} is .* needs the whole clip"):
        check_live(LiftOptions(**option))
    check_live(LiftOptions())


def test_only_the_chosen_person_is_lifted_and_everybody_is_followed():
    live = LiveLifter(planar_module(), Stub(), WholeImage(), LiftOptions(focal=FOCAL, person="B"))
    pose, score = project(walking_clip(np.zeros(1))[1], FOCAL)[0], np.full(17, 0.9)
    live.tracker.follow = lambda frame: [(0, pose, score), (1, pose + 40, score)]
    image = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    assert [person.id for person in live.lift(Frame(0, 0.0, image)).people] == ["B"]
    assert live.seen == {"A", "B"}
