import json

import numpy as np
import pytest
from planar import planar_body

from pipeline.detections.exchange import Detections, export_detections
from pipeline.errors import DataError, UsageError
from pipeline.predict.people_files import read_tracks
from pipeline.predict.tracks import cut_clip
from pipeline.skeleton import BODY25, COCO17, H36M17, make_conversion

SIZE = (640, 480)


def coco_person(x, raised=0.0):
    """x, y, score of a standing person's COCO17 joints, (17, 3): pixels, the hips at x."""
    body = planar_body(raised)[..., :2] * 150 + (x, 250)
    joints = np.zeros((17, 3))
    for index, name in enumerate(COCO17.joints):
        part = name if name in H36M17.joints else "nose"
        joints[index, :2] = body[H36M17.index(part)] + ((index % 3, -4) if part == "nose" else 0)
    joints[:, 2] = 0.9
    return joints


def write_json(path, content):
    path.write_text(json.dumps(content))
    return path


def alphapose(frame, joints, **more):
    record = {"image_id": f"{frame}.jpg", "category_id": 1, "score": 2.5}
    return {**record, "keypoints": joints.ravel().tolist(), **more}


def read(path, **options):
    return read_tracks(path, **{"size": SIZE, "fps": 25.0, **options})


def test_row_1_frames_that_alphapose_leaves_out_stay_empty_and_frame_3_keeps_its_time(tmp_path):
    records = [alphapose(frame, coco_person(200 + frame)) for frame in (0, 1, 3, 4)]
    people = read(write_json(tmp_path / "a.json", records), frames=8)
    (track,) = people.tracks
    assert len(people.times) == 8
    assert track.frames.tolist() == [0, 1, 3, 4]
    assert people.times[3] == pytest.approx(3 / 25)
    assert track.joints2d[2, 11] == pytest.approx(coco_person(203)[11, :2])


def test_row_1_without_a_length_the_highest_frame_ends_the_video_and_this_is_said(tmp_path):
    records = [alphapose(frame, coco_person(200)) for frame in (0, 1, 6)]
    people = read(write_json(tmp_path / "a.json", records))
    assert len(people.times) == 7
    assert any("highest frame" in note for note in people.notes)


@pytest.mark.parametrize(
    "ids",
    [(1, 2), ([1.0], [2.0]), ([[7.0], [7.0]], [[8.0], [8.0]]), (None, None), (5, 5),
     ([[0.0], [1.0]], [[0.0], [1.0]])],
)  # fmt: skip
def test_row_2_two_people_in_any_order_with_any_ids_are_two_tracks(tmp_path, ids):
    records = []
    for frame in range(6):
        two = [(coco_person(150 + 3 * frame), ids[0]), (coco_person(450 - 3 * frame), ids[1])]
        for joints, identity in two if frame % 2 else two[::-1]:
            more = {} if identity is None else {"idx": identity}
            records.append(alphapose(frame, joints, **more))
    people = read(write_json(tmp_path / "a.json", records))
    assert len(people.tracks) == 2
    left = min(people.tracks, key=lambda track: track.joints2d[0, 11, 0])
    assert left.joints2d[:, 11, 0] == pytest.approx([coco_person(150 + 3 * f)[11, 0]
                                                     for f in range(6)])  # fmt: skip
    by_ids = ids[0] is not None and ids[0] != ids[1]
    assert any(("by the ids" if by_ids else "by their positions") in n for n in people.notes)


def openpose_folder(folder, key):
    folder.mkdir()
    conversion = make_conversion(COCO17, BODY25, allow_missing=True)
    for frame in range(4):
        joints = np.nan_to_num(conversion.joints(coco_person(200 + frame)[None, :, :2])[0])
        flat = np.c_[joints, (joints > 0).all(1) * 0.8]
        flat[4] = 0  # a joint that OpenPose did not find
        people = [] if frame == 2 else [{key: flat.ravel().tolist(), "person_id": [-1]}]
        write_json(folder / f"clip_{frame:012}_keypoints.json", {"people": people})
    return folder


@pytest.mark.parametrize("key", ["pose_keypoints_2d", "pose_keypoints"])
def test_row_3_openpose_zeros_are_missing_and_empty_frames_stay(tmp_path, key):
    people = read(openpose_folder(tmp_path / "clip", key))
    (track,) = people.tracks
    assert people.skeleton == BODY25
    assert track.frames.tolist() == [0, 1, 3]
    assert np.isnan(track.joints2d[:, 4]).all()
    assert (track.score[:, 4] == 0).all()
    assert track.score[0, 1] == pytest.approx(0.8)


def detectron2(path, frames, with_boxes=True, metadata=None):
    keypoints = np.empty(len(frames), object)
    for number, people in enumerate(frames):
        rows = [np.stack([p[:, 0], p[:, 1], p[:, 2] * 9, p[:, 2]]) for p in people]
        keypoints[number] = [[], np.array(rows, np.float32).reshape(-1, 4, 17)]
    arrays = {"keypoints": keypoints, "segments": np.array([None] * len(frames), object)}
    if with_boxes:
        boxes = np.empty(len(frames), object)
        for number, people in enumerate(frames):
            boxes[number] = [[], np.ones((len(people), 5), np.float32)]
        arrays["boxes"] = boxes
    if metadata is not None:
        arrays["metadata"] = np.array(metadata, object)
    np.savez_compressed(path, **arrays)
    return path


@pytest.mark.parametrize("with_boxes", [True, False])
def test_row_4_detectron2_with_object_arrays_and_without_boxes(tmp_path, with_boxes):
    frames = [[coco_person(200)], [], [coco_person(203), coco_person(420)]]
    path = detectron2(tmp_path / "d.npz", frames, with_boxes, {"w": 640, "h": 480})
    people = read_tracks(path, fps=25.0)
    assert people.size == (640, 480)
    assert [track.frames.tolist() for track in people.tracks] == [[0, 2], [2]]
    assert people.tracks[0].joints2d[1] == pytest.approx(coco_person(203)[:, :2])
    assert people.tracks[0].score[0, 3] == pytest.approx(0.9)


@pytest.mark.parametrize("empty", [0, 1])
def test_row_4_detectron2_as_the_script_saves_it(tmp_path, empty):
    """A list of lists becomes an array of two dimensions; also where nobody was found at all."""
    frames = [[[], np.zeros((0, 4, 17))] for _ in range(3)]
    if not empty:
        good, lost, bad = (coco_person(200 + n) for n in range(3))
        lost[:, 2], bad[5, 0] = 0, np.nan
        for number, person in enumerate((good, lost, bad)):
            frames[number][1] = np.stack([*person.T[:2], person[:, 2], person[:, 2]])[None]
    keypoints = np.empty((3, 2), object)
    for number, (none, people) in enumerate(frames):
        keypoints[number, 0], keypoints[number, 1] = none, people
    np.savez(tmp_path / "d.npz", keypoints=keypoints, metadata=np.array({"w": 640, "h": 480}))
    people = read_tracks(tmp_path / "d.npz", fps=25.0)
    assert len(people.times) == 3
    if empty:
        assert people.tracks == ()
        return
    (track,) = people.tracks
    assert track.frames.tolist() == [0, 2]
    assert track.score[:, 5].tolist() == pytest.approx([0.9, 0.0])
    nobody = np.array([[[], []]] * 3, object)
    np.savez(tmp_path / "n.npz", keypoints=nobody)
    assert read_tracks(tmp_path / "n.npz", fps=25.0, size=SIZE).tracks == ()


def test_a_person_in_profile_is_coco17_too(tmp_path):
    """Left and right at one place make the bones of H36M17 short."""
    flat = coco_person(200)
    flat[:, 0] = 200 + 0.1 * (flat[:, 0] - 200)
    path = write_json(tmp_path / "a.json", [alphapose(frame, flat) for frame in range(5)])
    assert read(path).skeleton is COCO17
    order = [H36M17.index(name) for name in H36M17.joints]
    body = np.c_[planar_body()[order][:, :2] * 150 + (200, 250), np.full(17, 0.9)]
    path = write_json(tmp_path / "b.json", [alphapose(frame, body) for frame in range(5)])
    with pytest.raises(DataError, match="look like H36M17, not COCO17"):
        read(path)


def test_an_archive_of_videopose3d_has_scores_and_the_size_of_own_videos(tmp_path):
    joints2d = np.stack([coco_person(200 + f) for f in range(5)])
    joints2d[1, 3, 2], joints2d[2, 4, :2] = 0, 0
    left, right = [1, 3, 5, 7, 9, 11, 13, 15], [2, 4, 6, 8, 10, 12, 14, 16]
    metadata = {
        "num_joints": 17,
        "keypoints_symmetry": [left, right],
        "video_metadata": {"clip.mp4": {"w": 640, "h": 480}},
    }
    positions = {"clip.mp4": {"custom": [joints2d]}}
    np.savez(tmp_path / "v.npz", positions_2d=np.array(positions), metadata=np.array(metadata))
    people = read_tracks(tmp_path / "v.npz", fps=25.0)
    (track,) = people.tracks
    assert people.size == (640, 480)
    assert track.score[0] == pytest.approx(np.full(17, 0.9))
    assert track.score[1, 3] == track.score[2, 4] == 0
    assert np.isnan(track.joints2d[1, 3]).all()
    assert np.isnan(track.joints2d[2, 4]).all()


def test_row_4_and_row_6_the_size_of_the_image_is_asked_for_and_never_guessed(tmp_path):
    path = detectron2(tmp_path / "d.npz", [[coco_person(200)]])
    with pytest.raises(UsageError, match=r"give --size WIDTHxHEIGHT"):
        read_tracks(path, fps=25.0)


def test_our_own_export_and_videopose3d_give_the_same_track(tmp_path):
    joints2d = np.stack([coco_person(200 + f)[:, :2] for f in range(5)]).astype(np.float32)
    score = np.ones((5, 17), np.float32)
    score[2] = 0
    export_detections(Detections(COCO17, {"clip": (joints2d, score)}, "x"), tmp_path / "own.npz")
    nested = {"S1": {"Walk": [np.where(score[..., None] > 0, joints2d, np.nan)]}}
    metadata = {"num_joints": 17, "layout_name": "coco",
                "keypoints_symmetry": [list(COCO17.left), list(COCO17.right)]}  # fmt: skip
    np.savez(tmp_path / "vp.npz", positions_2d=nested, metadata=metadata)
    for name in ("own.npz", "vp.npz"):
        people = read(tmp_path / name)
        (track,) = people.tracks
        assert (people.skeleton, len(people.times)) == (COCO17, 5)
        assert track.frames.tolist() == [0, 1, 3, 4]
        assert track.joints2d == pytest.approx(joints2d[[0, 1, 3, 4]])


def test_a_file_with_several_sequences_asks_for_one(tmp_path):
    pose = coco_person(200)[:, :2].astype(np.float32)
    one = (np.repeat(pose[None], 3, axis=0), np.ones((3, 17), np.float32))
    export_detections(Detections(COCO17, {"a": one, "b": one}, "x"), tmp_path / "own.npz")
    with pytest.raises(UsageError, match=r"2 sequences \(a, b\); name one with --person"):
        read(tmp_path / "own.npz")
    assert read(tmp_path / "own.npz", person="b").tracks[0].id == "b"


def test_joints_in_shares_of_the_image_and_a_turned_size_are_errors(tmp_path):
    person = coco_person(500)
    path = write_json(tmp_path / "a.json", [alphapose(f, person) for f in range(3)])
    assert len(read(path).tracks) == 1
    with pytest.raises(DataError, match=r"18 % of the joints are inside .* 480x640.*check --size"):
        read(path, size=SIZE[::-1])
    shares = np.c_[person[:, :2] / SIZE, person[:, 2]]
    write_json(path, [alphapose(f, shares) for f in range(3)])
    with pytest.raises(DataError, match=r"size of 0\.\d+ px .* not in shares of it"):
        read(path)


def test_a_part_of_a_2d_file_keeps_its_times(tmp_path):
    records = [alphapose(frame, coco_person(200 + frame)) for frame in (0, 1, 4, 6, 8, 9)]
    people = read(write_json(tmp_path / "a.json", records), frames=12)
    part = cut_clip(people, (0.07, 0.3), 2)  # frames 2, 4, 6 of the file
    assert part.times == pytest.approx([0.08, 0.16, 0.24])
    assert part.fps == 12.5
    assert part.tracks[0].frames.tolist() == [1, 2]
    assert part.tracks[0].joints2d[:, 11, 0] == pytest.approx(
        [coco_person(204)[11, 0], coco_person(206)[11, 0]]
    )
    assert (part.source["time"], part.source["every"]) == ([0.07, 0.3], 2)
    with pytest.raises(DataError, match=r"a\.json: has no frame between 9 and 11 s"):
        cut_clip(people, (9.0, 11.0))


def test_two_long_ids_are_not_one_person(tmp_path):
    records = [alphapose(0, coco_person(200), idx="camera" * 8 + end) for end in "ab"]
    one, two = (track.id for track in read(write_json(tmp_path / "a.json", records)).tracks)
    assert one != two
    assert one[:31] == two[:31] == ("camera" * 8)[:31]
    assert len(one) == len(two) == 40


def test_a_person_who_is_half_outside_of_the_image_is_read(tmp_path):
    """Hidden joints far below the image, as detectors give them with low scores."""
    person = coco_person(300)
    low = np.arange(17) >= 5
    person[low, 1] += 600
    person[low, 2] = 0.1
    assert read(write_json(tmp_path / "a.json", [alphapose(0, person)])).tracks
    person[:, 2] = 0.9
    with pytest.raises(DataError, match="check --size"):
        read(write_json(tmp_path / "a.json", [alphapose(0, person)]))


def test_unnamed_joints_that_look_like_another_set_are_refused(tmp_path):
    body = planar_body()[..., :2] * 150 + (300, 250)
    records = [alphapose(f, np.c_[body + f, np.full(17, 0.9)]) for f in range(4)]
    path = write_json(tmp_path / "a.json", records)
    with pytest.raises(DataError, match=r"look like H36M17, not COCO17.*--joints H36M17"):
        read(path)
    people = read(path, joints="H36M17")
    assert people.skeleton == H36M17
    assert not any("without names" in note for note in people.notes)


def test_the_joint_set_of_unnamed_joints_is_said(tmp_path):
    people = read(write_json(tmp_path / "a.json", [alphapose(0, coco_person(200))]))
    assert "17 joints without names are COCO17 (--joints)" in people.notes


def test_row_7_18_joints_are_refused_with_what_is_known(tmp_path):
    path = write_json(tmp_path / "a.json", [alphapose(0, np.ones((18, 3)))])
    with pytest.raises(DataError, match=r"18 joints.*COCO17 \(17\).*BODY25 \(25\)"):
        read(path)


@pytest.mark.parametrize("content", [{"keypoints": [1, 2]}, {"frames": []}, 7, "text"])
def test_row_7_a_wrong_envelope_is_one_line(tmp_path, content):
    with pytest.raises(DataError) as caught:
        read(write_json(tmp_path / "a.json", content))
    assert "a.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_coco_annotation_file_is_read_by_the_names_of_its_images(tmp_path):
    images = [{"id": 70 + f, "file_name": f"im_{f:03}.jpg"} for f in (2, 0, 1)]
    people = [{"image_id": 70 + f, "keypoints": coco_person(200 + f).ravel().tolist()}
              for f in range(3)]  # fmt: skip
    content = {"images": images, "annotations": people, "categories": []}
    (track,) = read(write_json(tmp_path / "a.json", content), first_frame=0).tracks
    assert track.joints2d[:, 11, 0] == pytest.approx([coco_person(200 + f)[11, 0]
                                                      for f in range(3)])  # fmt: skip


def test_nobody_in_the_file_is_a_clip_without_people(tmp_path):
    people = read(write_json(tmp_path / "a.json", []), frames=9)
    assert people.tracks == ()
    assert len(people.times) == 9


def test_people_upside_down_are_said(tmp_path):
    records = []
    for frame in range(6):
        joints = coco_person(200)
        joints[:, 1] = 480 - joints[:, 1]
        records.append(alphapose(frame, joints))
    people = read(write_json(tmp_path / "a.json", records))
    assert any("stands on the head" in note for note in people.notes)


def test_frames_of_an_archive_after_the_end_of_the_video_are_counted_and_left_out(tmp_path):
    joints2d = np.stack([coco_person(200 + f)[:, :2] for f in range(7)]).astype(np.float32)
    one = (joints2d, np.ones((7, 17), np.float32))
    export_detections(Detections(COCO17, {"clip": one}, "x"), tmp_path / "own.npz")
    people = read(tmp_path / "own.npz", frames=5)
    assert (len(people.times), people.tracks[0].frames.tolist()) == (5, [0, 1, 2, 3, 4])
    assert "2 frames after the end of the video are left out" in people.notes
    assert len(read(tmp_path / "own.npz", frames=9).times) == 9
