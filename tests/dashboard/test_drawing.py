from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.dashboard import canvas, charts, heatmap_images, media, skeletons
from pipeline.errors import StorageError
from pipeline.files.writing import remove_leftovers
from pipeline.skeleton import H36M17

LEFT_WRIST, RIGHT_WRIST, HEAD = (
    H36M17.index(name) for name in ("left_wrist", "right_wrist", "head")
)


def person():
    """A standing person, camera frame, metres: right hand (x < 0) up, left foot away."""
    places = {
        "pelvis": (0, 0, 0),
        "right_hip": (-0.13, 0, 0),
        "right_knee": (-0.15, 0.42, -0.15),
        "right_ankle": (-0.14, 0.85, 0.05),
        "left_hip": (0.13, 0, 0),
        "left_knee": (0.16, 0.44, 0.05),
        "left_ankle": (0.15, 0.86, 0.22),
        "spine": (0, -0.25, 0.02),
        "thorax": (0, -0.5, 0.03),
        "nose": (0, -0.62, -0.08),
        "head": (0, -0.73, 0),
        "left_shoulder": (0.17, -0.47, 0.03),
        "left_elbow": (0.3, -0.25, -0.05),
        "left_wrist": (0.28, -0.1, -0.28),
        "right_shoulder": (-0.17, -0.47, 0.03),
        "right_elbow": (-0.32, -0.6, 0),
        "right_wrist": (-0.35, -0.85, -0.1),
    }
    return np.array([places[name] for name in H36M17.joints])


def turning(frames):
    angles = np.linspace(0, np.pi, frames)
    zero, one = np.zeros(frames), np.ones(frames)
    rows = [[np.cos(angles), zero, np.sin(angles)], [zero, one, zero]]
    rows.append([-np.sin(angles), zero, np.cos(angles)])
    return np.einsum("ijt,kj->tki", np.array(rows), person())


def image(height=128, width=96):
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([x + 90, y + 60, x + y], -1).astype(np.uint8)


def in_image():
    return person()[:, :2] * 60 + (48, 64)


def near(image, point, colour):
    """Whether some pixel within 4 of the point has exactly this colour."""
    x, y = np.round(point).astype(int)
    patch = image[max(y - 4, 0) : y + 5, max(x - 4, 0) : x + 5]
    return bool((patch == colour).all(-1).any())


def test_the_left_wrist_is_orange_the_right_one_blue_and_the_head_grey():
    joints = in_image()
    drawn = skeletons.draw_joints2d(image(), joints, H36M17)
    assert near(drawn, joints[LEFT_WRIST], canvas.LEFT)
    assert near(drawn, joints[RIGHT_WRIST], canvas.RIGHT)
    assert near(drawn, joints[HEAD], canvas.CENTRE)
    assert not near(drawn, joints[LEFT_WRIST], canvas.RIGHT)


def test_a_mirrored_joint_order_swaps_the_colours():
    joints = in_image()
    drawn = skeletons.draw_joints2d(image(), joints[list(H36M17.swap)], H36M17)
    assert near(drawn, joints[LEFT_WRIST], canvas.RIGHT)
    assert near(drawn, joints[RIGHT_WRIST], canvas.LEFT)


def test_a_missing_joint_is_left_out_with_its_bones_and_nothing_else_is():
    joints = in_image()
    joints[LEFT_WRIST] = np.nan
    drawn = skeletons.draw_joints2d(image(), joints, H36M17)
    assert not near(drawn, in_image()[LEFT_WRIST], canvas.LEFT)
    assert near(drawn, joints[RIGHT_WRIST], canvas.RIGHT)


def test_a_joint_of_low_score_is_hollow():
    joints, score = in_image(), np.ones(17)
    score[LEFT_WRIST] = 0.05
    x, y = np.round(joints[LEFT_WRIST]).astype(int)
    full = skeletons.draw_joints2d(image(), joints, H36M17, np.ones(17))
    hollow = skeletons.draw_joints2d(image(), joints, H36M17, score)
    assert tuple(full[y, x]) == canvas.LEFT
    assert tuple(hollow[y, x]) != canvas.LEFT


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e30, np.nan])
def test_joints_that_no_image_can_hold_do_not_break_it(value):
    joints, pose = in_image(), person()
    joints[3], pose[3] = value, value
    assert skeletons.draw_joints2d(image(), joints, H36M17).shape == (128, 96, 3)
    assert skeletons.draw_views3d(pose, person(), H36M17, size=64).dtype == np.uint8
    assert skeletons.draw_joints2d_alone(np.full((17, 2), np.nan), H36M17, size=32).min() == 255


def test_nothing_that_is_drawn_from_is_changed():
    whole, joints, clip = image(), in_image(), turning(6)
    maps = np.random.default_rng(0).random((17, 32, 24)).astype(np.float32)
    given = [whole, joints, clip, maps]
    before = [array.copy() for array in given]
    skeletons.draw_joints2d(whole, joints, H36M17, maps.max((1, 2)))
    heatmap_images.draw_heatmaps(whole, maps, H36M17)
    heatmap_images.draw_heatmap_sheet(whole, maps, H36M17)
    heatmap_images.draw_detection(whole, maps, joints, joints + 3, H36M17)
    skeletons.draw_views3d(clip[0], clip[1], H36M17)
    skeletons.draw_motion_strip(clip, clip, H36M17, images=[whole] * 6)
    list(skeletons.draw_clip(clip, clip, H36M17, images=[whole] * 6, title="walk"))
    for array, copy in zip(given, before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_a_heatmap_glows_in_its_sides_colour_where_its_peak_is():
    maps = np.zeros((17, 32, 24), np.float32)
    maps[LEFT_WRIST, 5, 6] = 1
    maps[RIGHT_WRIST, 20, 15] = 1
    drawn = heatmap_images.draw_heatmaps(np.zeros((128, 96, 3), np.uint8), maps, H36M17).astype(int)
    red, _, blue = drawn[5 * 4 + 1, 6 * 4 + 1]
    assert red > blue + 80
    red, _, blue = drawn[20 * 4 + 1, 15 * 4 + 1]
    assert blue > red + 80
    assert drawn[100, 80].max() < 20


def test_the_front_view_shows_the_right_hand_left_and_the_side_view_shows_depth_to_the_right():
    size, reach = 200, 1.0
    pose = person()
    drawn = skeletons.draw_views3d(pose, None, H36M17, size=size, reach=reach)
    top = drawn.shape[0] - size - canvas.GAP
    front = pose[:, :2] * size / 2 + size / 2 + (canvas.GAP, top)
    side = pose[:, [2, 1]] * size / 2 + size / 2 + (2 * canvas.GAP + size, top)
    left_ankle = H36M17.index("left_ankle")
    assert near(drawn, front[RIGHT_WRIST], canvas.RIGHT)
    assert near(drawn, front[left_ankle], canvas.LEFT)
    assert near(drawn, side[left_ankle], canvas.LEFT)
    assert side[left_ankle][0] > side[H36M17.root][0]


def test_the_truth_is_grey_and_thin():
    size = 200
    moved = person() + np.array([0.4, 0, 0])
    drawn = skeletons.draw_views3d(person(), moved, H36M17, size=size, reach=1.5)
    both = (drawn == canvas.TRUTH).all(-1).sum(), (drawn == canvas.LEFT).all(-1).sum()
    assert both[0] > 0
    alone = skeletons.draw_views3d(moved, None, H36M17, size=size, reach=1.5)
    colours = [
        (alone == colour).all(-1).sum() for colour in (canvas.LEFT, canvas.RIGHT, canvas.CENTRE)
    ]
    assert both[0] < sum(colours)


def test_a_video_has_as_many_frames_as_it_was_given_and_their_size(tmp_path):
    clip = turning(7)
    frames = list(skeletons.draw_clip(clip, clip, H36M17, joints2d=clip[..., :2], size=80))
    frames = [frame[:95, :131] for frame in frames]
    assert media.write_video(tmp_path / "clip.webm", frames, 25.0) == 7
    video = cv2.VideoCapture(str(tmp_path / "clip.webm"))
    read = []
    while (image := video.read())[0]:
        read.append(image[1])
    assert len(read) == 7
    assert read[0].shape == (96, 132, 3)
    assert np.abs(read[3][:95, :131, ::-1].astype(int) - frames[3]).mean() < 8
    assert [path.name for path in tmp_path.iterdir()] == ["clip.webm"]


def test_a_video_that_breaks_half_way_leaves_the_old_one_alone(tmp_path):
    def broken():
        yield np.zeros((32, 32, 3), np.uint8)
        raise RuntimeError("the lifter failed")

    path = tmp_path / "clip.webm"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="the lifter failed"):
        media.write_video(path, broken(), 25.0)
    with pytest.raises(ValueError, match="at least one frame"):
        media.write_video(path, [], 25.0)
    assert path.read_bytes() == b"old"
    assert [other.name for other in tmp_path.iterdir()] == ["clip.webm"]


def test_a_png_comes_back_as_it_was_written(tmp_path):
    media.write_png(tmp_path / "new" / "a.png", image())
    read = cv2.imread(str(tmp_path / "new" / "a.png"))
    np.testing.assert_array_equal(read[..., ::-1], image())


def test_an_image_that_cannot_be_written_names_the_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file/a\.png: cannot be written"):
        media.write_png(tmp_path / "file" / "a.png", image())


def test_a_video_in_a_folder_that_takes_no_file_is_an_error():
    with pytest.raises(StorageError, match=r"/proc/a\.webm: cannot be written"):
        media.write_video(Path("/proc/a.webm"), [image()], 25.0)


KILLED = """
import os, pathlib, sys
import numpy as np
from pipeline.dashboard.media import write_video

def frames():
    yield np.zeros((32, 32, 3), np.uint8)
    os.kill(os.getpid(), 9)

write_video(pathlib.Path(sys.argv[1]), frames(), 25.0)
"""


def test_what_a_killed_process_was_drawing_is_swept_away(tmp_path):
    words = [sys.executable, "-c", KILLED, str(tmp_path / "clip.webm")]
    assert subprocess.run(words, check=False).returncode == -9
    assert len(list(tmp_path.iterdir())) == 1
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_sheet_holds_every_image_unchanged():
    images = [np.full((20, 30, 3), shade, np.uint8) for shade in (10, 90, 170)]
    sheet = canvas.contact_sheet(images, 2, ["a", "b", "c"])
    for shade in (10, 90, 170):
        assert (sheet == shade).all(-1).sum() >= 20 * 30
    with pytest.raises(ValueError, match="3 images and 1 captions"):
        canvas.contact_sheet(images, 2, ["a"])


def test_text_stands_on_its_baseline_and_is_cut_to_its_width():
    whole, cut, japanese = (canvas.blank_canvas(30, 300) for _ in range(3))
    canvas.draw_text(whole, "walk $1$ _ walk walk walk", (10, 20))
    canvas.draw_text(cut, "walk $1$ _ walk walk walk", (10, 20), width=60)
    canvas.draw_text(japanese, "歩く", (10, 20))
    rows, columns = np.nonzero(whole.min(-1) < 128)
    assert (rows.min() >= 8, columns.min() >= 10) == (True, True)
    letters = np.nonzero(whole[:, :30].min(-1) < 128)[0]
    assert letters.max() in (
        19,
        20,
    )  # the last row above the baseline; matplotlib 3.10: the baseline
    assert columns.max() > 120 > 72 > np.nonzero(cut.min(-1) < 128)[1].max()
    assert japanese.min() < 128


def test_a_strip_has_one_row_per_view_and_one_for_the_images():
    clip = turning(9)
    bare = skeletons.draw_motion_strip(clip, None, H36M17, frames=4, size=50)
    seen = skeletons.draw_motion_strip(clip, None, H36M17, frames=4, size=50, images=[image()] * 9)
    assert bare.shape[1] == seen.shape[1] == 4 * 60 + canvas.GAP
    assert seen.shape[0] == bare.shape[0] + 60


def test_a_longer_bar_is_longer():
    chart = charts.draw_bars(["walk", "sit"], [20.0, 60.0], "mm", "MPJPE")
    rows = np.sort((chart == canvas.RIGHT).all(-1).sum(1))
    lengths = np.unique(rows[rows > 20])
    assert lengths[-1] == pytest.approx(3 * lengths[0], rel=0.05)


def test_charts_take_values_that_are_not_finite():
    chart = charts.draw_bars(["walk", "sit"], [20.0, float("nan")], "mm", "MPJPE")
    assert (chart == canvas.RIGHT).all(-1).any()
    steps = np.arange(5)
    lines = charts.draw_curves(
        {"train": (steps, [5, 4, np.nan, 2, 1]), "val": (steps, steps)}, "", "", ""
    )
    assert (lines == canvas.RIGHT).all(-1).any()
    assert (lines == canvas.LEFT).all(-1).any()


def test_values_at_the_ends_of_lines_can_be_read_though_they_are_close():
    figure, axes = charts._new_figure(7.0, 3.8, "")
    values = (5.0, 5.01, 5.02, 9.0)
    axes.plot(np.tile([[0], [1]], 4), [values, values])
    charts._label_line_ends(axes, [(1.0, value, (0.0, 0.0, 0.0)) for value in values])
    charts._render(figure)
    boxes = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: box.y0)
    assert [text.get_text() for text in axes.texts] == ["5.0", "5.0", "5.0", "9.0"]
    assert all(low.y1 <= high.y0 + 1 for low, high in itertools.pairwise(boxes))


def test_no_line_crosses_the_value_at_the_end_of_another():
    figure, axes = charts._new_figure(7.0, 3.8, "")
    lines = [([0, 5], [50, 41.88]), ([0, 4, 9], [70, 43, 41.84]), ([0, 9], [30, 60])]
    for x, y in lines:
        axes.plot(x, y)
    charts._label_line_ends(axes, [(float(x[-1]), float(y[-1]), (0.0, 0.0, 0.0)) for x, y in lines])
    charts._render(figure)
    paths = [line.get_path().transformed(line.get_transform()) for line in axes.lines]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(path.intersects_bbox(box, False) for path in paths for box in boxes)
    ends = [axes.transData.transform((x[-1], y[-1])) for x, y in sorted(lines)]
    assert len(boxes) == 3
    assert all(
        abs(box.y0 - y) < 40 for box, (_, y) in zip(boxes, sorted(map(tuple, ends)), strict=True)
    )


def test_the_mean_of_bars_is_theirs_or_the_one_that_is_given():
    def place(**mean):
        chart = charts.draw_bars(["walk", "sit"], [20.0, 60.0], "mm", "", **mean)
        length = (chart == canvas.RIGHT).all(-1).any(0).nonzero()[0]
        orange = np.abs(chart[40:-60] - np.array(canvas.LEFT)).max(-1) < 60
        dashes = orange.sum(0).argmax()
        return 60 * (dashes - length[0]) / np.ptp(length)

    assert place() == pytest.approx(40, abs=0.5)
    assert place(mean=50.0) == pytest.approx(50, abs=0.5)
    nothing = charts.draw_bars(["walk"], [float("nan")], "mm", "", mean=float("nan"))
    assert not (np.abs(nothing[:, 100:] - np.array(canvas.LEFT)).max(-1) < 60).any()


def test_values_of_bars_stand_right_of_the_chart_where_no_line_is(monkeypatch):
    drawn = []
    monkeypatch.setattr(charts, "_render", drawn.append)
    charts.draw_bars(["a", "b", "c"], [36.9, 37.6, float("nan")], "mm", "")
    axes = drawn[0].axes[0]
    drawn[0].draw_without_rendering()
    edges = [text.get_window_extent().x1 for text in axes.texts]
    assert [text.get_text() for text in axes.texts] == ["36.9", "37.6", "none"]
    assert all(text.get_window_extent().x0 > axes.bbox.x1 for text in axes.texts)
    assert max(edges) <= drawn[0].bbox.x1


def test_nine_lines_have_nine_colours_and_a_legend_that_shows_their_dashes(monkeypatch):
    drawn = []
    monkeypatch.setattr(charts, "_render", drawn.append)
    charts.draw_curves({str(i): ([0, 1], [i, i]) for i in range(9)}, "", "", "")
    lines, (legend,) = drawn[0].axes[0].lines, drawn[0].legends
    assert len({line.get_color() for line in lines}) == 9
    assert [line.get_linestyle() for line in lines] == ["-"] * 6 + ["--"] * 3
    assert len({line.get_marker() for line in lines}) == 2
    assert legend.handlelength >= 3.5


def test_more_lines_than_colours_differ_in_their_strokes():
    def inked(place):
        series = {str(i): ([0, 1], [0, float(i == place)]) for i in range(len(charts.SERIES) + 1)}
        image = charts.draw_curves(series, "", "", "")[20:-60, 80:500]
        return (image == charts.SERIES[0]).all(-1).sum()

    assert inked(len(charts.SERIES)) < 0.9 * inked(0)
