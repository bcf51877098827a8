import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from planar import SIZE as PLANAR_SIZE
from planar import planar_module, project, walking_clip
from videos import SIZE, read_number, write_mp4

from pipeline import Heatlift, Motion
from pipeline.__main__ import main
from pipeline.cli import predict as cli_predict
from pipeline.cli.predict import _choose_folders
from pipeline.errors import DataError, StorageError, UsageError
from pipeline.export.motion import PersonMotion
from pipeline.predict.estimators import Estimates, WholeImage
from pipeline.predict.heatlift import split_flags
from pipeline.predict.options import OutputOptions, SourceOptions, is_webcam
from pipeline.skeleton import H36M17
from pipeline.weights import box_lifter


class Reader:
    """An estimator that reads the number of the frame and gives the pose of that frame."""

    name, skeleton, digest, licence = "reader", H36M17, "5", "MIT"

    def __init__(self):
        self.calls = 0

    def settings(self):
        return {"reader": 1}

    def crops_of_boxes(self, boxes):
        side = boxes[:, 2:].max(axis=1, keepdims=True)
        return np.concatenate([boxes[:, :2] + boxes[:, 2:] / 2, side, 0 * side], axis=1)

    def estimate(self, image, crops):
        self.calls += 1
        _, positions = walking_clip(np.array([read_number(image) / 25]))
        joints2d = project(positions, 1000.0) * SIZE[0] / PLANAR_SIZE[0]
        N = len(crops)
        return Estimates(
            np.repeat(joints2d, N, axis=0).astype(np.float32),
            np.full((N, 17), 0.9, np.float32),
            np.ones(N, np.float32),
            np.array(crops),
        )


@pytest.fixture
def reader(tmp_path, monkeypatch):
    monkeypatch.setenv("HEATLIFT_CACHE", str(tmp_path / "cache"))
    import torch

    heatlift = Heatlift(planar_module(), "planar.ckpt", None, torch.device("cpu"))
    heatlift._estimator = (Reader(), lambda threshold: WholeImage())
    return heatlift


def test_a_video_becomes_motion_and_a_second_time_no_network_is_called(reader, tmp_path):
    clip = write_mp4(tmp_path / "clip.mp4", 18)
    motion = reader.predict(clip, focal=75.0)
    assert isinstance(motion, Motion)
    assert (len(motion), len(motion.people)) == (18, 1)
    assert motion.times == pytest.approx(np.arange(18) / 25)
    assert np.isfinite(motion.people[0].positions).all()
    calls = reader._estimator[0].calls
    again = reader.predict(clip, focal=75.0)
    assert reader._estimator[0].calls == calls
    for name in ("joints3d", "root", "joints2d", "score", "status"):
        one, two = (getattr(m.people[0], name) for m in (motion, again))
        assert one.tobytes() == two.tobytes()
    assert again.facts == motion.facts


@pytest.mark.parametrize("change", ["video", "every", "settings", "digest", "finder"])
def test_what_changes_the_2d_joints_is_in_the_key_of_the_cache(reader, tmp_path, change):
    clip = write_mp4(tmp_path / "clip.mp4", 12)
    reader.predict(clip)
    estimator = reader._estimator[0]
    calls, flags = estimator.calls, {}
    match change:
        case "video":
            write_mp4(clip, 13)
        case "every":
            flags = {"every": 2}
        case "settings":
            estimator.settings = lambda: {"reader": 2}
        case "digest":
            estimator.digest = "6"
        case "finder":
            (tmp_path / "boxes.csv").write_text("frame,x,y,width,height\n0,1,1,60,50\n")
            flags = {"boxes": str(tmp_path / "boxes.csv")}
    reader.predict(clip, **flags)
    assert estimator.calls > calls


def test_other_options_of_lifting_use_the_same_2d_joints(reader, tmp_path):
    clip = write_mp4(tmp_path / "clip.mp4", 12)
    reader.predict(clip)
    calls = reader._estimator[0].calls
    reader.predict(clip, height=1.9, smooth="none", frame="world", max_people=1)
    assert reader._estimator[0].calls == calls


def test_a_user_who_stops_gets_what_was_done_so_far_and_nothing_is_cached(reader, tmp_path):
    clip = write_mp4(tmp_path / "clip.mp4", 18)
    count = iter(range(100))
    motion = reader.predict(clip, stop=lambda: next(count) >= 7)
    assert len(motion) == 8
    assert any("stopped by the user" in line for line in motion.facts["warnings"])
    assert len(reader.predict(clip)) == 18


def test_facts_say_where_a_motion_comes_from(reader, tmp_path):
    motion = reader.predict(write_mp4(tmp_path / "clip.mp4", 12))
    facts = motion.facts
    assert facts["source"]["name"] == "clip.mp4"
    assert len(facts["source"]["sha256"]) == 64
    assert facts["weights"]["estimator"]["licence"] == "MIT"
    assert facts["weights"]["lifter"]["name"] == "planar.ckpt"
    assert facts["versions"]["torch"]
    motion.save(tmp_path / "motion.npz")
    assert Motion.load(tmp_path / "motion.npz").facts == json.loads(json.dumps(facts))


def test_a_stream_gives_one_motion_per_frame(reader, tmp_path):
    pieces = list(reader.stream(write_mp4(tmp_path / "clip.mp4", 12), focal=75.0))
    assert [len(piece) for piece in pieces] == [1] * 12
    assert pieces[-1].people[0].id == "A"
    assert pieces[5].times[0] == pytest.approx(5 / 25)


def test_flags_are_those_of_the_command():
    source, lift = split_flags({"every": 3, "height": 1.8, "frame": "world"})
    assert (source.every, lift.height, lift.frame) == (3, (1.8,), "world")
    with pytest.raises(UsageError, match="no option 'hight'; there are boxes"):
        split_flags({"hight": 1.8})


@pytest.mark.parametrize("name", ["size", "frames", "first_frame"])
def test_an_option_of_2d_files_is_an_error_for_a_video(reader, tmp_path, name):
    clip = write_mp4(tmp_path / "clip.mp4", 3)
    with pytest.raises(UsageError, match=f"for which --{name} has no use"):
        reader.predict(clip, **{name: "64x48" if name == "size" else 5})


@pytest.mark.parametrize(
    "wrong", [{"frame": "World"}, {"smooth": "kalman"}, {"order": "Size"}, {"height": 5.0}]
)
def test_a_value_that_does_not_exist_is_a_usage_error_in_python_too(reader, tmp_path, wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        reader.predict(write_mp4(tmp_path / "clip.mp4", 3), **wrong)


@pytest.mark.parametrize("size", ["1920", "0x5", "axb", "1x2x3"])
def test_a_size_that_is_none_is_a_usage_error(size):
    with pytest.raises(UsageError, match="WIDTHxHEIGHT"):
        SourceOptions(size=size)


def test_a_missing_lifter_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(box_lifter, "BOX", tmp_path)  # a package without a lifter
    with pytest.raises(DataError, match="make lift"):
        Heatlift.load()
    with pytest.raises(DataError, match=r"none\.ckpt: no such file"):
        Heatlift.load("none.ckpt")


@pytest.fixture(scope="session")
def lifter(uninterrupted):
    """A trained lifter of a few steps."""
    uninterrupted("lift")
    return uninterrupted.folders["lift",] / "checkpoints" / "best.ckpt"


def joints_file(path, frames=30):
    times = np.arange(frames) / 25
    _, positions = walking_clip(times)
    joints2d = project(positions, 1000.0)
    records = [
        {
            "image_id": f"{n}.jpg",
            "keypoints": np.c_[joints2d[n], np.full(17, 0.9)].ravel().tolist(),
            "idx": 4,
        }
        for n in range(frames)
    ]
    path.write_text(json.dumps(records))
    return path


def predict(*arguments, lifter):
    return main(["predict", *map(str, arguments), "--lifter", str(lifter)])


def test_the_command_turns_a_2d_file_into_motion_and_says_what_it_assumed(tmp_path, lifter, capsys):
    path = joints_file(tmp_path / "joints.json")
    options = ["--size", "1280x720", "--joints", "H36M17", "-o", tmp_path / "out"]
    assert predict(path, *options, lifter=lifter) == 0
    motion = Motion.load(tmp_path / "out" / "motion.npz")
    assert (len(motion), motion.people[0].id) == (30, "4")
    assert (tmp_path / "out" / "side_by_side.webm").stat().st_size > 1000
    printed = capsys.readouterr().out
    for words in ("30 frames", "1 found: 4 frames 0-29", "55 degrees", "1.70 m", "30 frames per"):
        assert words in printed
    assert motion.facts["command"].startswith("heatlift predict")


def test_earlier_results_are_not_replaced_silently(tmp_path, lifter, capsys):
    path = joints_file(tmp_path / "joints.json", 5)
    options = ["--size", "1280x720", "--joints", "H36M17", "--no_video"]
    assert predict(path, *options, lifter=lifter) == 0
    before = (tmp_path / "joints_heatlift" / "motion.npz").read_bytes()
    assert predict(path, *options, "--height", "1.9", lifter=lifter) == 5
    assert (tmp_path / "joints_heatlift" / "motion.npz").read_bytes() == before
    assert "--overwrite" in capsys.readouterr().err
    assert predict(path, *options, "--height", "1.9", "--overwrite", lifter=lifter) == 0
    assert Motion.load(tmp_path / "joints_heatlift" / "motion.npz").people[0].height == 1.9


def test_the_advice_about_nobody_fits_the_reason(tmp_path, lifter, capsys):
    path = joints_file(tmp_path / "joints.json", 5)
    options = ["--size", "1280x720", "--joints", "H36M17", "--no_video", "--no_report"]
    lens = [*options, "--focal", "20", "-o", tmp_path / "lens"]
    assert predict(path, *lens, lifter=lifter) == 0
    printed = capsys.readouterr().out
    assert "check --fov or --focal" in printed
    assert "nobody found" not in printed
    sure = [*options, "--joint_thr", "0.95", "-o", tmp_path / "sure"]
    assert predict(path, *sure, lifter=lifter) == 0
    assert "nobody found in 5 frames; lower --joint_thr" in capsys.readouterr().out


def test_two_predictions_at_once_do_not_replace_each_other(tmp_path, lifter, capsys, monkeypatch):
    path, out = joints_file(tmp_path / "joints.json", 5), tmp_path / "out"
    options = ["--size", "1280x720", "--joints", "H36M17", "--no_video", "-o", out]
    made = Heatlift.predict

    def meanwhile(self, *arguments, **flags):
        for folder in (out, tmp_path / "out-2"):
            folder.mkdir()
            (folder / "motion.npz").write_text("of another prediction")
        return made(self, *arguments, **flags)

    monkeypatch.setattr(Heatlift, "predict", meanwhile)
    assert predict(path, *options, lifter=lifter) == 0
    printed = capsys.readouterr().out
    assert f"{out}: another prediction has written results there; these are in {out}-3" in printed
    assert (out / "motion.npz").read_text() == "of another prediction"
    assert len(Motion.load(tmp_path / "out-3" / "motion.npz")) == 5


def test_what_a_failed_prediction_did_not_replace_is_named(tmp_path, lifter, capsys, monkeypatch):
    path = joints_file(tmp_path / "joints.json", 5)
    options = ["--size", "1280x720", "--joints", "H36M17", "--no_video", "-o", tmp_path / "out"]
    assert predict(path, *options, lifter=lifter) == 0

    def full(*_):
        raise StorageError("no space left")

    monkeypatch.setattr("pipeline.cli.predict._write_report", full)
    capsys.readouterr()
    assert predict(path, *options, "--overwrite", lifter=lifter) == 5
    assert "out: not of this prediction: report.html\n" in capsys.readouterr().out


def test_results_without_npz_are_not_replaced_either_and_what_stays_is_named(
    tmp_path, lifter, capsys
):
    path = joints_file(tmp_path / "joints.json", 5)
    options = ["--size", "1280x720", "--joints", "H36M17", "--no_video", "-o", tmp_path / "out"]
    assert predict(path, *options, "--export", "csv", lifter=lifter) == 0
    assert predict(path, *options, "--export", "csv", "--no_report", lifter=lifter) == 5
    assert "(motion.csv)" in capsys.readouterr().err
    (tmp_path / "out" / "motion_A.trc").write_text("of another person")
    capsys.readouterr()
    assert predict(path, *options, "--export", "trc", "--overwrite", lifter=lifter) == 0
    assert (
        "out: not of this prediction: motion.csv, motion.csv.json, motion_A.trc\n"
        in capsys.readouterr().out
    )
    assert (tmp_path / "out" / "motion_A.trc").read_text() == "of another person"
    assert (tmp_path / "out" / "motion.trc").exists()


def test_the_input_may_lie_in_the_folder_of_the_results(tmp_path, lifter):
    path = joints_file(tmp_path / "motion_2d.json", 5)
    before = path.read_bytes()
    options = ["--size", "1280x720", "--joints", "H36M17", "--no_video", "-o", tmp_path]
    for more in ([], ["--overwrite"]):
        assert predict(path, *options, *more, lifter=lifter) == 0
    assert path.read_bytes() == before


def test_options_of_2d_files_are_for_these_alone_among_several_inputs(
    tmp_path, lifter, monkeypatch
):
    seen = []
    monkeypatch.setattr(
        cli_predict, "_predict_one", lambda h, text, f, own, *more: seen.append(own)
    )
    joints = joints_file(tmp_path / "joints.json", 5)
    clip = write_mp4(tmp_path / "clip.mp4", 3)
    options = ["--size", "1280x720", "--det_thr", "0.25"]
    assert predict(clip, joints, *options, lifter=lifter) == 0
    assert [(own["size"], own["det_thr"]) for own in seen] == [(None, 0.25), ("1280x720", 0.5)]


def test_nobody_in_formats_with_a_file_per_person_gives_no_file_and_a_line(
    tmp_path, lifter, capsys
):
    path = tmp_path / "joints.json"
    path.write_text("[]")
    options = ["--size", "1280x720", "--frames", "9", "--no_video", "--no_report"]
    assert predict(path, *options, "--export", "bvh,trc", lifter=lifter) == 0
    printed = capsys.readouterr().out
    assert "joints.json: nobody found in 9 frames" in printed
    for name in ("bvh", "trc"):
        assert f"motion.{name}: not written, there is nobody in" in printed
    assert not printed.endswith("\n  \n")


def test_ids_that_are_no_names_of_files_are_changed_in_the_names_alone(tmp_path, lifter):
    records = json.loads(joints_file(tmp_path / "a.json", 5).read_text())
    moved = []
    for record in records:
        flat = np.add(np.reshape(record["keypoints"], (17, 3)), (300, 0, 0))
        moved.append({**record, "keypoints": flat.ravel().tolist(), "idx": "cam:1/3"})
    (tmp_path / "a.json").write_text(
        json.dumps([*({**r, "idx": "cam/1/3"} for r in records), *moved])
    )
    options = ["--size", "1920x720", "--joints", "H36M17", "--no_video", "-o", tmp_path / "out"]
    assert predict(tmp_path / "a.json", *options, "--export", "trc", lifter=lifter) == 0
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"motion_cam_1_3_1.trc", "motion_cam_1_3_2.trc", "report.html"}


def test_a_folder_of_images_with_a_numeric_name_is_no_webcam(tmp_path, lifter, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0001").mkdir()
    assert not is_webcam("0001")
    assert is_webcam("1")
    assert _choose_folders(["0001", "7"], OutputOptions()) == [
        Path("0001_heatlift"),
        Path("webcam7_heatlift"),
    ]


def test_one_bad_input_does_not_stop_the_others(tmp_path, lifter, capsys):
    good = joints_file(tmp_path / "good.json", 5)
    bad = tmp_path / "bad.json"
    bad.write_text("[1")
    options = ["--size", "1280x720", "--joints", "H36M17", "--no_video", "-o", tmp_path / "out"]
    assert predict(bad, good, *options, lifter=lifter) == 4
    assert (tmp_path / "out" / "good" / "motion.npz").exists()
    assert not (tmp_path / "out" / "bad").exists()
    errors = capsys.readouterr().err
    assert "bad.json" in errors
    assert "1 of 2 inputs failed" in errors


def test_row_12_nobody_in_the_file_gives_valid_empty_results_and_a_line(tmp_path, lifter, capsys):
    path = tmp_path / "joints.json"
    path.write_text("[]")
    options = ["--size", "1280x720", "--frames", "9", "--no_video"]
    assert predict(path, *options, lifter=lifter) == 0
    assert Motion.load(tmp_path / "joints_heatlift" / "motion.npz").people == ()
    assert "nobody found in 9 frames" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["none.mp4"], 4, "none.mp4: no such file"),
        (["https://a.b/c.mp4"], 4, "is a URL"),
        ([], 2, "no input"),
        (["a.json", "--height", "170"], 2, "height is 170"),
        (["a.json", "--smooth", "kalman"], 2, "smooth"),
        (["a.json", "--export", "fbx"], 2, "export is fbx"),
        (["a.json", "--hight", "1.7"], 2, "hight"),
        (["a.mp4", "x/a.mp4", "-o", "out"], 2, "that of another input"),
        (["a.json", "--joints", "H36M17"], 2, "--size"),
        (["a.json", "--fps", "0"], 2, "fps is 0"),
        (["a.json", "--frames", "0"], 2, "frames is 0"),
        (["a.json", "--every", "0"], 2, "every is 0"),
        (["a.json", "--boxes", "b.csv"], 2, "for which --boxes has no use"),
        (["a.json", "--device", "gpu"], 2, "device is gpu"),
    ],
)
def test_mistakes_are_one_line_with_their_exit_code(
    tmp_path, lifter, monkeypatch, capsys, arguments, code, words
):
    monkeypatch.chdir(tmp_path)
    joints_file(tmp_path / "a.json", 3)
    assert predict(*arguments, lifter=lifter) == code
    error = capsys.readouterr().err
    assert words in error
    assert len(error.strip().splitlines()) == 1


def test_a_video_without_an_estimator_says_the_command_that_gets_one(
    tmp_path, lifter, monkeypatch, capsys
):
    monkeypatch.setenv("HEATLIFT_WEIGHTS", str(tmp_path / "weights"))
    clip = write_mp4(tmp_path / "clip.mp4", 3)
    assert predict(clip, lifter=lifter) == 4
    assert "run heatlift weights get blazepose" in capsys.readouterr().err
    assert not (tmp_path / "clip_heatlift").exists()


def test_boxes_of_a_file_are_read_and_bad_ones_are_one_line(tmp_path):
    from pipeline.predict.boxes_file import read_boxes

    path = tmp_path / "boxes.csv"
    path.write_text("frame,x,y,width,height,id\n3,10.5,20,30,40,1\n3,1,2,3,4,2\n0,5,6,7,8,1\n")
    boxes = read_boxes(path).boxes
    assert boxes[3].tolist() == [[10.5, 20, 30, 40], [1, 2, 3, 4]]
    for text, words in [
        ("frame,x,y,width\n0,1,2,3\n", "has no height"),
        ("frame,x,y,width,height\n0,a,2,3,4\n", "not a number"),
        ("frame,x,y,width,height\n0,1,2,-3,4\n", "above 0"),
        ("frame,x,y,width,height\n0.5,1,2,3,4\n", "count from 0"),
        ("frame,x,y,width,height\n0,nan,2,3,4\n", "not a finite number"),
        ("frame,x,y,width,height\n", "has no box"),
        ("frame,x,y,width,height\n0,0.4,0.3,0.2,0.5\n", "not shares of it"),
    ]:
        path.write_text(text)
        with pytest.raises(DataError, match=words):
            read_boxes(path)


def test_options_are_plain_values_for_the_key_of_a_file():
    assert json.dumps(dataclasses.asdict(SourceOptions()))


def test_a_motion_is_exported_later_without_running_anything_again(tmp_path, lifter, capsys):
    path = joints_file(tmp_path / "joints.json", 5)
    options = ["--size", "1280x720", "--joints", "H36M17", "--no_video", "-o", tmp_path / "out"]
    assert predict(path, *options, "--export", "npz,json", lifter=lifter) == 0
    motion = str(tmp_path / "out" / "motion.npz")
    assert main(["export", motion, "--to", "csv,trc"]) == 0
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "motion.npz", "motion.json", "motion.csv", "motion.csv.json", "motion.trc", "report.html",
    }  # fmt: skip
    assert main(["export", motion, "--to", "csv"]) == 5
    assert "--overwrite true" in capsys.readouterr().err
    assert main(["export", motion, "--to", "fbx"]) == 2
    assert main(["export", str(path)]) == 4
    assert "is no npz file" in capsys.readouterr().err


def test_live_use_gives_the_facts_of_predict_but_for_those_that_need_the_whole_clip(
    reader, tmp_path
):
    clip = write_mp4(tmp_path / "clip.mp4", 12)
    whole, live = reader.predict(clip), reader.predict_live(clip)
    missing = whole.facts.keys() - live.facts.keys()
    assert missing == set()
    assert live.facts["source"] == whole.facts["source"]
    assert live.facts["assumptions"] == whole.facts["assumptions"]
    assert live.facts["versions"] == whole.facts["versions"]
    assert live.facts["weights"]["estimator"] == whole.facts["weights"]["estimator"]
    assert live.facts["weights"]["lifter"]["digest"] == whole.facts["weights"]["lifter"]["digest"]
    assert live.facts["weights"]["lifter"]["flip_test"] is False
    assert live.facts["smoothing"] == {"filter": "one-euro", "cutoff_hz": 1.5}
    assert live.facts["latency_ms"]["median"] > 0
    assert {"jitter", "bone_variation", "median_score"} <= live.facts["quality"]["A"].keys()
    live.save(tmp_path / "live.npz")
    assert Motion.load(tmp_path / "live.npz").facts == json.loads(json.dumps(live.facts))
    first = next(reader.stream(clip))
    assert {"weights", "versions", "assumptions", "source"} <= first.facts.keys()


def test_live_use_that_is_stopped_early_says_so(reader, tmp_path):
    seen = []
    clip = write_mp4(tmp_path / "clip.mp4", 12)
    live = reader.predict_live(
        clip, stop=lambda: len(seen) == 4, each=lambda frame, piece: seen.append(frame.index)
    )
    assert (len(live), seen) == (4, [0, 1, 2, 3])
    assert any("stopped by the user" in line for line in live.facts["warnings"])


def test_a_person_who_never_comes_is_said_in_live_use(reader, tmp_path):
    live = reader.predict_live(write_mp4(tmp_path / "clip.mp4", 6), person="C")
    assert live.people == ()
    assert live.facts["warnings"] == ["person is C; there was A"]


@pytest.mark.parametrize("where", ["without a display", "without windows", "not live"])
def test_a_window_that_cannot_be_shown_is_one_line_and_exit_code_2(
    tmp_path, lifter, monkeypatch, capsys, where
):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    if where == "without windows":
        text = "  GUI:                           NONE\n"
        monkeypatch.setattr("cv2.getBuildInformation", lambda: text)
    clip = write_mp4(tmp_path / "clip.mp4", 3)
    options = ["--show"] if where == "not live" else ["--live", "--show"]
    assert predict(clip, *options, lifter=lifter) == 2
    error = capsys.readouterr().err
    words = {"without a display": "no display", "without windows": "headless", "not live": "--live"}
    assert words[where] in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "clip_heatlift").exists()


def test_the_key_q_in_the_window_ends_live_use_as_ctrl_c_does(
    reader, tmp_path, lifter, monkeypatch, capsys
):
    shown, pressed = [], iter([-1, -1, ord("q")])
    monkeypatch.setattr("pipeline.export.window.check_window", lambda: None)
    monkeypatch.setattr("cv2.imshow", lambda name, image: shown.append(image.shape))
    monkeypatch.setattr("cv2.waitKey", lambda milliseconds: next(pressed))
    monkeypatch.setattr("cv2.getWindowProperty", lambda name, which: 1.0)
    monkeypatch.setattr("cv2.destroyAllWindows", lambda: shown.append("closed"))
    monkeypatch.setattr("pipeline.predict.heatlift.Heatlift.load", lambda *a, **k: reader)
    clip = write_mp4(tmp_path / "clip.mp4", 12)
    assert predict(clip, "--live", "--show", "--no_video", lifter=lifter) == 130
    assert shown == [(*SIZE[::-1], 3)] * 3 + ["closed"]
    assert len(Motion.load(tmp_path / "clip_heatlift" / "motion.npz")) == 3
    assert "what was done so far is in" in capsys.readouterr().err


def test_the_summary_says_what_was_unsure_and_what_could_be_done_better():
    from pipeline.cli.predict_summary import summary

    times = np.arange(30) / 30
    score = np.full((30, 17), 0.9, np.float32)
    score[3:7] = 0.2
    still = np.zeros((30, 17, 3), np.float32)
    person = PersonMotion(
        "A", still, still[:, 0], still[..., :2], score, np.ones(30, np.uint8), 1.7
    )
    quality = {"jitter_before": 31.2, "jitter": 6.1, "bone_variation_before": 0.09,
               "bone_variation": 0.0, "median_score": 0.9, "unsure_frames": 4}  # fmt: skip
    facts = {
        "source": {"name": "walk.mp4", "kind": "video"},
        "weights": {"estimator": {"name": "blazepose-full"},
                    "lifter": {"name": "quick", "class": "MixSTE", "rate": 50.0}},
        "assumptions": ["field of view 55 degrees (--fov or --focal)", "height 1.70 m (--height)"],
        "quality": {"A": quality},
        "warnings": [],
    }  # fmt: skip
    motion = Motion((person,), H36M17, times, 30.0, (96, 64), 90.0, (47.5, 31.5), facts=facts)
    assert summary("x/walk.mp4", motion, ["out/motion.npz", "overlay.webm"], 2.0) == [
        "walk.mp4     30 frames, 30 fps, 96x64, 1.0 s (15.0 frames/s)",
        "people       1 found: A frames 0-29",
        "2D           blazepose-full, mean score 0.81; 4 frames unsure",
        "3D           quick (MixSTE), resampled to 50 Hz and back",
        "camera       not known, assumed: field of view 55 degrees (--fov or --focal); "
        "height 1.70 m (--height)",
        "motion       jitter 31 -> 6 mm/frame2; bones vary 9 -> 0 %; the path along the floor is a "
        "guess",
        "better with  --height and --fov of your own; a nearer camera, more light, or --estimator "
        "blazepose-heavy",
        "  out/motion.npz  overlay.webm",
    ]


@pytest.mark.parametrize("kind", ["video", "2D file"])
def test_the_summary_points_to_what_there_is(kind):
    """No video of a 2D file, and no other network for one, or where the heavy one was used."""
    from pipeline.cli.predict_summary import summary

    still = np.zeros((30, 17, 3), np.float32)
    person = PersonMotion(
        "A", still, still[:, 0], still[..., :2], np.full((30, 17), 0.2, np.float32),
        np.ones(30, np.uint8), 1.7,
    )  # fmt: skip
    quality = {"jitter": 200.0, "bone_variation": 0.5, "median_score": 0.1, "unsure_frames": 30}
    facts = {
        "source": {"name": "a", "kind": kind},
        "weights": {"estimator": {"name": "blazepose-heavy" if kind == "video" else kind}},
        "quality": {"A": quality},
    }
    times = np.arange(30) / 30
    motion = Motion((person,), H36M17, times, 30.0, (96, 64), 90.0, (47.5, 31.5), facts=facts)
    text = "\n".join(summary("a", motion, ["out/motion.npz", "report.html"], 2.0))
    assert "not usable motion; look at report.html" in text
    assert "a nearer camera, more light" in text
    assert "--estimator" not in text
    text = "\n".join(summary("a", motion, ["out/motion.npz"], 2.0))
    assert "not usable motion\n" in text


def test_a_config_has_the_options_of_the_command_line(tmp_path):
    config = tmp_path / "own.yaml"
    config.write_text("inputs: [a.mp4]\nheight: 1.8\nno_video: true\ntime: [0, 2]\n")
    inputs, source, lift, output, _ = cli_predict.parse(["-c", str(config), "--fps", "25"])
    assert (inputs, lift.height, output.video, source.time, source.fps) == (
        ["a.mp4"], (1.8,), False, (0.0, 2.0), 25.0,
    )  # fmt: skip
    inputs, _, lift, _, _ = cli_predict.parse(["b.mp4", "--config", str(config), "--height", "1.7"])
    assert (inputs, lift.height) == (["b.mp4"], (1.7,))
    with pytest.raises(UsageError, match="no such file; give a YAML file"):
        cli_predict.parse(["b.mp4", "--config", str(tmp_path / "none.yaml")])


def test_the_licence_of_the_lifter_in_the_box_is_in_the_motion(lifter, tmp_path):
    weights = Heatlift.load()._lifter_facts
    assert (weights["name"], weights["licence"]) == ("mixste-box.ckpt", "Apache-2.0")
    assert Heatlift.load(lifter)._lifter_facts["licence"] == ""


class Nobody(WholeImage):
    """A finder that finds nobody."""

    notes = ()

    def settings(self):
        return {"finder": "nobody"}

    def find(self, image, index, estimator):
        return np.zeros((0, 4))


@pytest.mark.parametrize("live", [[], ["--live"]])
def test_row_12_nobody_in_the_video_gives_valid_empty_results_and_exit_code_0(
    reader, tmp_path, lifter, monkeypatch, capsys, live
):
    reader._estimator = (Reader(), lambda threshold: Nobody())
    monkeypatch.setattr("pipeline.predict.heatlift.Heatlift.load", lambda *a, **k: reader)
    clip = write_mp4(tmp_path / "clip.mp4", 7)
    assert predict(clip, *live, "--export", "npz,json", lifter=lifter) == 0
    motion = Motion.load(tmp_path / "clip_heatlift" / "motion.npz")
    assert (len(motion), motion.people) == (7, ())
    assert json.loads((tmp_path / "clip_heatlift" / "motion.json").read_text())
    printed = capsys.readouterr().out
    assert printed.count("nobody found in 7 frames; give --boxes or lower --det_thr") == 1
