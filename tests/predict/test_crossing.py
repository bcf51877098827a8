import cv2
import numpy as np
import pytest
import torch
from crossing import (
    FOCAL,
    FPS,
    SIZE,
    frames_of,
    joints2d_of,
    measure_errors,
    two_walkers,
    write_video,
    write_videos,
)
from planar import planar_module
from videos import double_durations, set_rotation

from pipeline import Heatlift
from pipeline.predict.blazepose import load_blazepose
from pipeline.predict.estimators import BlazePoseEstimator, BlazePoseFinder
from pipeline.predict.joined_tracks import join_tracks
from pipeline.predict.media import Frame, open_media
from pipeline.predict.person_detector import load_person_detector
from pipeline.predict.tracker import Tracker
from pipeline.skeleton import BLAZEPOSE33, H36M17

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def networks(shared):
    weights = shared / "data" / "blazepose"
    network = load_blazepose(weights / "pose_landmark_full.tflite")
    detector = load_person_detector(weights / "pose_detection.tflite")
    return BlazePoseEstimator(network, "full"), lambda threshold: BlazePoseFinder(
        detector, threshold
    )


@pytest.fixture
def heatlift(networks, tmp_path, monkeypatch):
    """BlazePose and a lifter that needs no training: it leaves out all depth."""
    monkeypatch.setenv("HEATLIFT_CACHE", str(tmp_path / "cache"))
    found = Heatlift(planar_module(27), "planar.ckpt", None, torch.device("cpu"))
    found._estimator = networks
    return found


def test_two_rendered_people_who_cross_keep_their_ids(networks):
    estimator, make_finder = networks
    tracker = Tracker(estimator, make_finder(0.5))
    people = two_walkers()
    for index, image in enumerate(frames_of(*people)):
        tracker.follow(Frame(index, index / FPS, image))
    times = np.arange(len(people[0])) / FPS
    tracks = join_tracks(tracker.tracks(times), times)
    assert len(tracks) == 2
    hips = [BLAZEPOSE33.index(f"{side}_hip") for side in ("left", "right")]
    truths = [joints2d_of(joints)[:, H36M17.root] for joints in people]
    for track in tracks:
        middle = track.joints2d[:, hips].mean(axis=1)
        near = [np.linalg.norm(middle - truth[track.frames], axis=1) for truth in truths]
        mine = int(np.argmin([np.median(gap) for gap in near]))
        assert np.quantile(near[mine], 0.95) < 40
        assert len(track.frames) > 125


def test_people_who_cross_have_the_errors_of_people_alone(heatlift, tmp_path):
    found = {
        name: measure_errors(heatlift.predict(path, focal=FOCAL), truths)
        for name, (path, truths) in write_videos(tmp_path).items()
    }
    for alone, both in zip((*found["first"], *found["second"]), found["both"], strict=True):
        assert alone.frames > 140
        assert both.ids == 1
        assert both.frames > 140
        assert both.mpjpe < 1.2 * alone.mpjpe
        assert both.across < 100  # millimetres
        assert both.depth < 1.2 * alone.depth + 50
        # the lifter's own error is in both: compare the motions themselves, too
        gap = both.motion.joints3d - alone.motion.joints3d
        assert 1000 * np.nanmean(np.linalg.norm(gap, axis=-1)) < 0.5 * alone.mpjpe


@pytest.fixture(scope="module")
def first_frames():
    """A second in which both people are in full view: these tests are not about the tracker."""
    return list(frames_of(*two_walkers()))[5:30]


def test_row_8_rotation_tag_gives_the_joints_of_the_same_clip_as_images(
    heatlift, tmp_path, first_frames
):
    turned = [np.rot90(frame) for frame in first_frames]  # counter-clockwise; the tag undoes it
    path = set_rotation(write_video(tmp_path / "turned.mp4", turned, "mp4v"), 90)
    folder = tmp_path / "images"
    folder.mkdir()
    for frame in open_media(path):
        cv2.imwrite(str(folder / f"{frame.index}.png"), frame.image[..., ::-1])
    tagged = heatlift.predict(path, focal=FOCAL)
    images = heatlift.predict(folder, focal=FOCAL, fps=FPS)
    assert tagged.size == SIZE
    assert len(tagged.people) == len(images.people) == 2
    assert "90 degrees of rotation applied" in tagged.facts["assumptions"]
    for one, other in zip(tagged.people, images.people, strict=True):
        np.testing.assert_array_equal(one.joints2d, other.joints2d)
        head = one.joints2d[:, H36M17.index("head"), 1]
        foot = one.joints2d[:, H36M17.index("left_ankle"), 1]
        assert np.nanmax(head - foot) < 0  # upright


def test_row_9_variable_frame_rate_gives_the_same_joints_at_the_times_of_the_stream(
    heatlift, tmp_path, first_frames
):
    path = write_video(tmp_path / "even.mp4", first_frames, "mp4v")
    even = heatlift.predict(path, focal=FOCAL)
    uneven_path = tmp_path / "uneven.mp4"
    uneven_path.write_bytes(path.read_bytes())
    uneven = heatlift.predict(double_durations(uneven_path, {3, 9, 15}), focal=FOCAL)
    steps = [2 if number in (3, 9, 15) else 1 for number in range(len(first_frames) - 1)]
    assert uneven.times == pytest.approx(np.r_[0, np.cumsum(steps)] / FPS, abs=1e-3)
    assert any("variable frame rate" in note for note in uneven.facts["assumptions"])
    assert len(uneven.people) == len(even.people) == 2
    for one, other in zip(even.people, uneven.people, strict=True):
        both = (one.status == 1) & (other.status == 1)
        assert both.all()
        close = np.linalg.norm(one.joints2d - other.joints2d, axis=-1)[both]
        assert np.nanquantile(close, 0.95) < 2  # pixels


def cut_after(path, target, frames):
    """Copy an AVI file up to the end of a frame; its header keeps the number of frames."""
    data = path.read_bytes()
    place = data.index(b"movi")
    for _ in range(frames + 1):
        place = data.index(b"00dc", place + 4)
    target.write_bytes(data[:place])
    return target


def test_row_9_cut_tail_gives_100_frames_and_a_warning_with_both_numbers(heatlift, tmp_path):
    whole_path = write_video(tmp_path / "a.avi", frames_of(*two_walkers(144)))
    cut_path = cut_after(whole_path, tmp_path / "cut.avi", 100)
    whole, cut = (heatlift.predict(path, focal=FOCAL) for path in (whole_path, cut_path))
    assert (len(whole), len(cut)) == (144, 100)
    note = "the file states 144 frames, and 100 can be decoded"
    assert note in cut.facts["assumptions"]
    assert cut.times == pytest.approx(np.arange(100) / FPS, abs=1e-3)
    assert len(cut.people) >= 2
    for other in cut.people:
        one, seen = whole.person(other.id), other.status == 1
        np.testing.assert_array_equal(one.joints2d[:100][seen], other.joints2d[seen])
