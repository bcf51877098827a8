import numpy as np
import pytest
from planar import planar_body
from scipy.stats import theilslopes

from pipeline.predict.estimators import (
    Estimates,
    StageEstimator,
    WholeImage,
    crop_matrices,
    upright_crops,
)
from pipeline.predict.likeness import colour_distances, similarities, torso_colour
from pipeline.predict.media import Frame
from pipeline.predict.sights import theil_sen
from pipeline.predict.tracker import EVERY, Tracker, letters
from pipeline.skeleton import H36M17

FPS = 25.0
SIZE = (640, 360)


class Scene:
    """People who walk along lines; the first in the list is in front."""

    def __init__(self, *paths, colours=((200, 30, 30), (30, 30, 200), (30, 160, 30))):
        self.paths, self.colours = paths, colours

    def poses(self, index):
        found = []
        for path in self.paths:
            place = path(index)
            if place is not None:
                found.append(planar_body()[..., :2] * 90 + place)
            else:
                found.append(None)
        return found

    def visible(self, index):
        """Numbers of the people who are not behind another one."""
        poses = self.poses(index)
        seen = []
        for number, pose in enumerate(poses):
            front = [poses[k] for k in seen]
            if pose is not None and all(abs(pose[0, 0] - other[0, 0]) > 35 for other in front):
                seen.append(number)
        return seen

    def image(self, index):
        image = np.full((SIZE[1], SIZE[0], 3), 128, np.uint8)
        for number in reversed(self.visible(index)):
            pose = self.poses(index)[number]
            torso = pose[[1, 4, 11, 14]]
            (x0, y0), (x1, y1) = (
                np.clip(torso.min(0).astype(int), 0, None),
                torso.max(0).astype(int),
            )
            image[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = self.colours[number]
        return image

    def frames(self, count):
        for index in range(count):
            yield Frame(index, index / FPS, self.image(index))


class Seer:
    """An estimator that knows the scene: it gives the visible person nearest to a crop's centre."""

    name, skeleton, digest, licence = "seer", H36M17, "0", ""

    def __init__(self, scene):
        self.scene, self.index, self.calls = scene, 0, 0

    def settings(self):
        return {}

    def crops_of_boxes(self, boxes):
        return upright_crops(boxes, (192, 256), 1.25)

    def estimate(self, image, crops):
        self.calls += 1
        poses = [self.scene.poses(self.index)[n] for n in self.scene.visible(self.index)]
        joints2d = np.zeros((len(crops), 17, 2), np.float32)
        presence = np.zeros(len(crops), np.float32)
        following = np.array(crops)
        for row, crop in enumerate(crops):
            if not poses:
                continue
            gaps = [np.linalg.norm(pose.mean(0) - crop[:2]) for pose in poses]
            nearest = int(np.argmin(gaps))
            if gaps[nearest] < 0.6 * crop[2]:
                joints2d[row], presence[row] = poses[nearest], 1
                low, high = poses[nearest].min(0), poses[nearest].max(0)
                following[row] = self.crops_of_boxes(np.r_[low, high - low][None])[0]
        return Estimates(joints2d, np.ones((len(crops), 17), np.float32), presence, following)


class Finder:
    """Finds everybody who is visible, in a changing order."""

    def __init__(self, scene):
        self.scene, self.calls = scene, 0

    def settings(self):
        return {}

    def find(self, image, index, estimator):
        self.calls += 1
        boxes = []
        for number in self.scene.visible(index)[:: 1 if index % 2 else -1]:
            pose = self.scene.poses(index)[number]
            boxes.append(np.r_[pose.min(0), pose.max(0) - pose.min(0)])
        return estimator.crops_of_boxes(np.array(boxes).reshape(-1, 4))


def follow(scene, count, make_seer=Seer, make_finder=Finder, **options):
    seer, finder = make_seer(scene), make_finder(scene)
    tracker = Tracker(seer, finder, **options)
    for frame in scene.frames(count):
        seer.index = frame.index
        tracker.follow(frame)
    return tracker.tracks(np.arange(count) / FPS), seer, finder


def line(start, step, first=0, last=10_000):
    return lambda index: np.array([start + step * index, 180.0]) if first <= index <= last else None


class Boxes(Finder):
    """Gives only one person, in some frames of the source."""

    def __init__(self, scene, number, frames):
        super().__init__(scene)
        self.number, self.boxes, self.asked = number, dict.fromkeys(frames), []

    def find(self, image, index, estimator):
        self.asked.append(index)
        if index not in self.boxes and index:
            return estimator.crops_of_boxes(np.zeros((0, 4)))
        pose = self.scene.poses(index)[self.number if index else 0]
        return estimator.crops_of_boxes(np.r_[pose.min(0), pose.max(0) - pose.min(0)][None])


def test_boxes_belong_to_frames_of_the_source_and_all_are_looked_at():
    scene = Scene(line(120, 2), line(500, -1))
    seer, finder = Seer(scene), Boxes(scene, 1, range(13, 17))
    tracker = Tracker(seer, finder)
    for place, number in enumerate(range(0, 40, 2)):  # every second frame
        seer.index = number
        tracker.follow(Frame(place, number / FPS, scene.image(number), number))
    tracks = tracker.tracks(np.arange(0, 40, 2) / FPS)
    assert [track.frames.tolist() for track in tracks] == [list(range(20)), list(range(7, 20))]
    assert {14, 16} <= set(finder.asked)


@pytest.mark.parametrize("seconds", [1.2, 2.0])
def test_people_are_followed_in_frames_that_are_seconds_apart(seconds):
    scene = Scene(line(120, 2))
    seer = Seer(scene)
    tracker = Tracker(seer, Finder(scene))
    for index in range(6):
        seer.index = index
        tracker.follow(Frame(index, index * seconds, scene.image(index)))
    (track,) = tracker.tracks(np.arange(6) * seconds)
    assert track.frames.tolist() == list(range(6))


def test_a_walking_person_is_one_track_and_is_searched_seldom():
    tracks, _, finder = follow(Scene(line(80, 4)), 60)
    assert [track.id for track in tracks] == ["A"]
    assert tracks[0].frames.tolist() == list(range(60))
    assert tracks[0].joints2d[10, 0] == pytest.approx((80 + 40, 180))
    assert finder.calls == 60 // EVERY


@pytest.mark.parametrize("front", [0, 1])
def test_two_people_who_cross_behind_each_other_keep_their_ids(front):
    paths = [line(80, 5), line(560, -5)]
    colours = [(200, 30, 30), (30, 30, 200)]
    order = [front, 1 - front]
    scene = Scene(*[paths[k] for k in order], colours=[colours[k] for k in order])
    tracks, *_ = follow(scene, 96)
    assert len(tracks) == 2
    for track in tracks:
        steps = np.diff(track.joints2d[:, 0, 0]) / np.diff(track.frames)
        assert (np.sign(steps) == np.sign(steps[0])).all()
        assert track.frames[-1] == 95


class Mixer(Seer):
    """Between some frames, it gives a mixture of both people to whoever is asked for."""

    def __init__(self, scene, first, last, share):
        super().__init__(scene)
        self.first, self.last, self.share = first, last, share

    def estimate(self, image, crops):
        found = super().estimate(image, crops)
        if self.first <= self.index <= self.last:
            front, behind = self.scene.poses(self.index)
            found.joints2d[:] = front + self.share * (behind - front)
        return found


CROSSING = (line(80, 5), line(560, -5))
"""Two people who are at one place in frame 48; the second is hidden from frame 45 to 51."""


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("last", [52, 53, 54])
def test_a_mixture_of_two_people_who_part_belongs_to_nobody(last, share):
    scene = Scene(*CROSSING)
    tracks, *_ = follow(scene, 96, lambda scene: Mixer(scene, 52, last, share))
    assert len(tracks) == 2
    for track in tracks:
        truth = np.stack([scene.poses(index) for index in track.frames.tolist()])
        number = int(track.joints2d[0, 0, 0] > 300)
        wrong = np.linalg.norm(track.joints2d - truth[:, number], axis=-1).mean(axis=1) > 30
        assert not wrong.any()
        assert len(track.frames) >= 96 - 7 - 4  # hidden, and mixtures


def test_a_glimpse_beside_somebody_is_forgotten_before_the_person_is_searched():
    class Glimpse(Seer):
        """The hidden person is seen 12 pixels off for two frames, then missed in one."""

        def estimate(self, image, crops):
            found = super().estimate(image, crops)
            behind = np.isclose(found.joints2d[:, 0, 0], 560 - 5 * self.index)
            if self.index in (52, 53):
                found.joints2d[behind, :, 0] += 12
            if self.index == 54:
                found.presence[behind] = 0
            return found

    tracks, *_ = follow(Scene(*CROSSING), 96, Glimpse)
    assert len(tracks) == 2
    hidden = max(tracks, key=lambda track: track.joints2d[0, 0, 0])
    assert hidden.frames.tolist() == [*range(45), *range(55, 96)]


def test_a_person_found_in_the_crop_of_somebody_else_is_taken_for_himself():
    class Crossed(Seer):
        """In frame 30, each crop shows the other person."""

        def estimate(self, image, crops):
            found = super().estimate(image, crops)
            if self.index == 30 and len(crops) == 2:
                return found[np.array([1, 0])]
            return found

    tracks, *_ = follow(Scene(line(200, 1), line(330, -1)), 40, Crossed)
    assert len(tracks) == 2
    for track in tracks:
        assert track.frames.tolist() == list(range(40))
        assert np.abs(np.diff(track.joints2d[:, 0, 0])).max() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("same_clothes", [False, True])
def test_joints_that_slide_onto_somebody_beside_are_not_followed_where_the_clothes_differ(
    same_clothes,
):
    """They slide slowly: only the clothes tell that it happens."""

    class Sliding(Seer):
        """The left person slides onto the right one, whose joints slide down by 25 pixels."""

        def estimate(self, image, crops):
            found = super().estimate(image, crops)
            if self.index >= 20 and len(crops) == 2:
                first, second = self.scene.poses(self.index)
                share = min((self.index - 20) / 12, 1)
                left, right = np.argsort(crops[:, 0])
                found.joints2d[left] = first + share * (second - first)
                found.joints2d[right] = second + np.array([0, 25 * share])
            return found

    class Once(Finder):
        def find(self, image, index, estimator):
            crops = super().find(image, index, estimator)
            return crops if index < 20 else crops[:0]

    red, blue = (200, 30, 30), (30, 30, 200)
    colours = (red, red if same_clothes else blue)
    scene = Scene(line(200, 1), line(255, 1), colours=colours)
    scene.visible = lambda index: [0, 1]
    tracks, *_ = follow(scene, 40, Sliding, Once)
    assert len(tracks) == 2
    left = min(tracks, key=lambda track: track.joints2d[0, 0, 0])
    slid = left.joints2d[:, 0, 0] - (200 + left.frames)
    assert (slid.max() > 50) == same_clothes


def test_somebody_alone_may_jump_and_somebody_beside_others_may_not():
    def jump(index):
        return np.array([80 + 3.0 * index + (-20 if index == 30 else 0), 180.0])

    (track,), *_ = follow(Scene(jump), 60)
    assert 30 in track.frames
    beside = lambda index: np.array([140 + 3.0 * index, 180.0])  # noqa: E731
    scene = Scene(jump, beside)
    scene.visible = lambda index: [0, 1]
    tracks, *_ = follow(scene, 60)
    jumper = min(tracks, key=lambda t: t.joints2d[0, 0, 0])
    assert 30 not in jumper.frames
    assert {29, 31} <= set(jumper.frames.tolist())


def test_glimpses_at_the_end_of_a_track_are_left_out_and_a_person_of_glimpses_is_kept():
    def seen(*runs):
        there = {index for run in runs for index in run}
        return Scene(lambda index: np.array([80 + 2.0 * index, 180.0]) if index in there else None)

    (track,), *_ = follow(seen(range(30), range(34, 36), range(40, 60), range(64, 67), [70]), 90)
    assert track.frames.tolist() == [*range(30), 34, 35, *range(40, 60)]
    (track,), *_ = follow(seen(range(3), range(6, 9), range(12, 15)), 90)
    assert track.frames.tolist() == [*range(3), *range(6, 9), *range(12, 15)]


def test_velocities_are_those_of_scipys_theil_sen():
    draw = np.random.default_rng(3)
    times = np.cumsum(draw.uniform(0.02, 0.06, 13))
    places = np.stack([40 * times - 3, 300 - 120 * times], -1) + draw.normal(size=(13, 2))
    places[[4, 9]] += 70, -90
    expected = [theilslopes(places[:, axis], times).slope for axis in (0, 1)]
    assert theil_sen(times, places) == pytest.approx(expected)
    assert theil_sen(times, places) == pytest.approx([40, -120], abs=5)
    assert theil_sen(times[:1], places[:1]).tolist() == [0, 0]


def test_two_people_who_meet_and_turn_back_are_told_apart_by_their_clothes():
    def bounce(start, step):
        turning = 46
        return lambda index: np.array(
            [start + step * (index if index < turning else 2 * turning - index), 180.0]
        )

    scene = Scene(bounce(80, 5), bounce(560, -5))
    tracks, *_ = follow(scene, 92)
    assert len(tracks) == 2
    for track in tracks:
        assert abs(track.joints2d[0, 0, 0] - track.joints2d[-1, 0, 0]) < 30


def test_people_enter_and_leave():
    scene = Scene(line(80, 2, last=30), line(300, 2, first=20))
    tracks, *_ = follow(scene, 70)
    assert [(int(t.frames[0]), int(t.frames[-1])) for t in tracks] == [(0, 30), (20, 69)]


def test_somebody_behind_a_pillar_for_less_than_a_second_keeps_the_id():
    hidden = lambda index: None if 20 <= index < 38 else np.array([80 + 4.0 * index, 180])  # noqa: E731
    (track,), *_ = follow(Scene(hidden), 60)
    assert track.frames.tolist() == [*range(20), *range(38, 60)]


def test_somebody_who_is_away_for_long_is_a_new_person():
    hidden = lambda index: None if 20 <= index < 60 else np.array([80 + 4.0 * index, 180])  # noqa: E731
    tracks, *_ = follow(Scene(hidden), 90)
    assert [t.id for t in tracks] == ["A", "B"]


def test_a_person_who_is_found_twice_is_one_person():
    class Double(Finder):
        def find(self, image, index, estimator):
            crops = super().find(image, index, estimator)
            return np.concatenate([crops, crops + np.array([6, -4, 5, 0])])

    assert len(follow(Scene(line(80, 4)), 20, make_finder=Double)[0]) == 1


def test_a_flash_of_a_person_is_left_out_but_not_in_a_clip_of_one_frame():
    scene = Scene(line(80, 2), line(400, 0, first=11, last=12))
    assert [t.id for t in follow(scene, 60)[0]] == ["A"]
    assert len(follow(Scene(line(80, 2)), 1)[0]) == 1


def test_nobody_gives_no_track():
    assert follow(Scene(), 12)[0] == ()


def test_at_most_so_many_people_are_followed():
    scene = Scene(line(80, 1), line(300, 1), line(500, 1))
    assert len(follow(scene, 30, max_people=2)[0]) == 2


def test_similarity_of_poses_falls_with_the_distance_in_sizes_of_the_person():
    pose = planar_body()[..., :2] * 90
    size = np.ptp(pose, axis=0).max()
    moved = pose + np.array([0.1 * size, 0])
    found = similarities(np.stack([pose, 3 * pose]), np.stack([pose, moved, 3 * moved]), H36M17)
    assert found[0, 0] == 1
    assert found[[0, 1], [1, 2]] == pytest.approx(np.exp(-0.5))


def test_colour_of_the_torso_is_that_of_the_clothes():
    image = np.full((360, 640, 3), 128, np.uint8)
    pose = planar_body()[..., :2] * 90 + (300, 180)
    torso = pose[[1, 4, 11, 14]]
    (x0, y0), (x1, y1) = torso.min(0).astype(int), torso.max(0).astype(int)
    image[y0:y1, x0:x1] = (255, 0, 0)
    red = torso_colour(image, pose, H36M17)
    assert red == pytest.approx((136, 208, 195), abs=2)  # OpenCV's CIELAB of pure red
    assert torso_colour(image, pose + np.array([5000, 0]), H36M17) is None
    assert torso_colour(image, np.full_like(pose, np.nan), H36M17) is None
    near, far = red + np.array([0, 18, 24]), red + np.array([99, 0, 0])
    found = colour_distances([red, None], [red, near, far, None])
    np.testing.assert_allclose(found, [[0, 30, 49.5, np.nan], [np.nan] * 4], atol=1e-12)


@pytest.mark.parametrize("size", [(192, 256), (256, 256), (256, 192)])
def test_upright_crops_are_those_of_training(size):
    from pipeline.heatmap.crop import crop_matrix

    boxes = np.array([[30.0, 40, 50, 120], [10, 10, 200, 20]])
    matrices = crop_matrices(upright_crops(boxes, size, 1.25), size)
    assert matrices == pytest.approx(crop_matrix(boxes, size, padding=1.25))


def test_a_2d_stage_finds_the_joint_where_the_light_is():
    class Brightest:
        """A stage whose joints are all at the brightest pixel of the crop."""

        skeleton, input_size, padding, device = H36M17, (48, 64), 1.25, "cpu"

        def settings(self):
            return {}

        def detect(self, images):
            import torch

            flat = images.float().sum(-1).flatten(1).argmax(1)
            joints = torch.stack([flat % 48, flat // 48], -1).float()
            return joints[:, None].expand(-1, 17, -1), torch.ones(len(images), 17)

    image = np.zeros((360, 640, 3), np.uint8)
    image[198:203, 398:403] = 255
    estimator = StageEstimator(Brightest(), "brightest", "0")
    crops = estimator.crops_of_boxes(np.array([[360.0, 150, 80, 100]]))
    found = estimator.estimate(image, crops)
    assert found.joints2d[0, 5] == pytest.approx((400, 200), abs=3)
    assert len(estimator.estimate(image, crops[:0]).score) == 0


def test_without_a_person_detector_the_whole_image_is_one_person():
    scene = Scene(line(300, 0))
    crops = WholeImage().find(scene.image(0), 0, Seer(scene))
    assert crops[0, :2] == pytest.approx((320, 180))


def test_ids_are_letters():
    assert [letters(n) for n in (0, 25, 26, 27, 701, 702)] == ["A", "Z", "AA", "AB", "ZZ", "AAA"]
