import numpy as np
import pytest
from crossing import FPS, frames_of, joints2d_of, two_walkers

from pipeline.predict.blazepose import load_blazepose
from pipeline.predict.estimators import BlazePoseEstimator, BlazePoseFinder
from pipeline.predict.media import Frame
from pipeline.predict.person_detector import load_person_detector
from pipeline.predict.tracker import Tracker
from pipeline.skeleton import BLAZEPOSE33, H36M17


@pytest.mark.slow
def test_two_rendered_people_who_cross_keep_their_ids(shared):
    weights = shared / "data" / "blazepose"
    network = load_blazepose(weights / "pose_landmark_full.tflite")
    detector = load_person_detector(weights / "pose_detection.tflite")
    tracker = Tracker(BlazePoseEstimator(network, "full"), BlazePoseFinder(detector, 0.5))
    people = two_walkers()
    for index, image in enumerate(frames_of(*people)):
        tracker.follow(Frame(index, index / FPS, image))
    tracks = tracker.tracks(np.arange(len(people[0])) / FPS)
    assert len(tracks) == 2
    hips = [BLAZEPOSE33.index(f"{side}_hip") for side in ("left", "right")]
    truths = [joints2d_of(joints)[:, H36M17.root] for joints in people]
    for track in tracks:
        middle = track.joints2d[:, hips].mean(axis=1)
        near = [np.linalg.norm(middle - truth[track.frames], axis=1) for truth in truths]
        mine = int(np.argmin([np.median(gap) for gap in near]))
        assert np.quantile(near[mine], 0.95) < 40
        assert len(track.frames) > 125
