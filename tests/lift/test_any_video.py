"""Training sequences like people in any video: cameras, detectors, and the view of `predict`."""

import functools

import numpy as np
import pytest
import torch
from memorise import memorise

from pipeline.camera import project, world_to_camera
from pipeline.errors import DataError, UsageError
from pipeline.lift import LiftDataModule, LiftModule, MixSTE
from pipeline.lift.any_video import (
    LONGER_SIDE,
    AnyVideo,
    resample_motion,
    view_like_predict,
    view_part,
)
from pipeline.lift.augmentation import RerenderedWindows
from pipeline.lift.crop_camera import follow_person
from pipeline.lift.detector_noise import WITH_EARS, add_ears
from pipeline.lift.losses import MPJPELoss
from pipeline.lift.sequences import exact_joints2d, prediction_facts
from pipeline.lift.windows import TrainingWindows
from pipeline.mocap.synthetic import Synthetic
from pipeline.skeleton import BLAZEPOSE33, COCO17, H36M17, make_conversion

PLAIN = {"clean": 1.0, "hidden": 0.0, "fov_known": 1.0}


@functools.cache
def sequences():
    return tuple(
        Synthetic(2, 1, 1, seconds=2.0, actions=("walk", "wave", "squat")).sequences("train")
    )


def parts(count=40, **arguments):
    """Parts of many renderings."""
    video = AnyVideo(**(PLAIN | arguments))
    found = []
    for rendering in range(count):
        for sequence in sequences()[::4]:
            found += video.record(sequence, 0, rendering)
    return found


def fov_of(part):
    return np.degrees(2 * np.arctan(LONGER_SIDE / 2 / part.camera.focal[0]))


def test_cameras_cover_their_ranges_evenly():
    found = parts()
    fov = np.array([fov_of(part) for part in found])
    pitch = np.degrees([np.arcsin(part.camera.rotation[2, 2]) for part in found])
    assert np.quantile(fov, [0, 0.25, 0.5, 0.75, 1]) == pytest.approx([35, 49, 62, 76, 90], abs=5)
    assert np.quantile(pitch, [0, 0.25, 0.5, 0.75, 1]) == pytest.approx(
        [-30, -15, 0, 15, 30], abs=5
    )
    shapes = {part.camera.size for part in found}
    assert shapes == {(1000, 562), (1000, 750), (1000, 1000), (750, 1000), (562, 1000)}
    yaw = np.array([np.arctan2(p.camera.rotation[2, 1], p.camera.rotation[2, 0]) for p in found])
    assert np.histogram(yaw, 4, (-np.pi, np.pi))[0].min() > len(found) / 8


def test_people_have_all_sizes_and_the_middle_of_their_path_is_in_the_image():
    found = parts()
    shares = []
    for part in found:
        depth = np.median(part.joints3d[:, 0, 2])
        shares.append(1.7 * part.camera.focal[1] / depth / part.camera.size[1])
    assert np.quantile(shares, 0.5) == pytest.approx(np.sqrt(0.15 * 1.2), rel=0.3)
    assert min(shares) < 0.2
    assert max(shares) > 0.8
    for part in found:
        root = part.joints3d[:, 0]
        middle = (root.min(axis=0) + root.max(axis=0)) / 2
        pixels = project(middle, part.camera)
        assert (pixels > -0.2 * np.array(part.camera.size)).all()
        assert (pixels < 1.2 * np.array(part.camera.size)).all()
        assert part.joints3d[..., 2].min() > 0.5


def test_exact_parts_hold_the_projection_and_lack_what_is_outside_of_the_image():
    seen = outside = 0
    for part in parts(10, joint_sets=("H36M17",), height=(1.0, 1.2)):
        pixels = project(part.joints3d, part.camera)
        inside = ((pixels >= 0) & (pixels <= np.array(part.camera.size) - 1)).all(-1)
        assert (np.isfinite(part.joints2d).all(-1) == inside).all()
        assert part.joints2d[inside] == pytest.approx(pixels[inside])
        seen, outside = seen + inside.sum(), outside + (~inside).sum()
    assert outside > 0.02 * seen


@pytest.mark.parametrize("skeleton", [COCO17, BLAZEPOSE33], ids=lambda s: s.name)
def test_the_lifter_sees_what_the_converter_of_predict_makes_of_a_detector(skeleton):
    (exact,), (found,) = (
        AnyVideo(**PLAIN, joint_sets=(name,), aim=0.0, height=(0.4, 0.5)).record(
            sequences()[0], 0, 1
        )
        for name in ("H36M17", skeleton.name)
    )
    with_ears = project(add_ears(exact.joints3d), exact.camera)
    detected = np.full((len(with_ears), len(skeleton), 2), np.nan)
    for joint, name in enumerate(skeleton.joints):
        if name in WITH_EARS.joints:
            detected[:, joint] = with_ears[:, WITH_EARS.index(name)]
    assert np.allclose(found.joints2d, detected, equal_nan=True)
    conversion = make_conversion(skeleton, H36M17, allow_missing=True, extrapolate=True)
    joints2d = conversion.joints(detected)
    (view,) = view_part(found, sequences()[0], H36M17)
    crop = follow_person(
        joints2d,
        np.isfinite(joints2d).all(-1),
        H36M17,
        rate=25.0,
        focal=float(found.camera.focal[0]),
        principal=tuple(found.camera.principal.tolist()),
    )
    assert view.joints2d == pytest.approx(crop.crop_joints(joints2d), abs=1e-6)
    left, right, pelvis = (H36M17.index(n) for n in ("left_hip", "right_hip", "pelvis"))
    made = conversion.joints(detected)[:, pelvis]
    assert made == pytest.approx((joints2d[:, left] + joints2d[:, right]) / 2)


def test_the_truth_is_that_of_the_turned_camera():
    (part,) = AnyVideo(**PLAIN, joint_sets=("H36M17",), aim=0.5, height=(0.4, 0.5)).record(
        sequences()[0], 0, 1
    )
    (view,) = view_part(part, sequences()[0], H36M17)
    relative = part.joints3d - part.joints3d[:, :1]
    assert view.crop.rotate_back(view.joints3d) == pytest.approx(relative, abs=1e-6)
    turned = np.einsum("tab,tjb->tja", view.crop.rotation, part.joints3d)
    expected = turned[..., :2] / turned[..., 2:] * view.crop.zoom[:, None, None]
    assert view.joints2d[view.visible] == pytest.approx(expected[view.visible], abs=1e-5)


def test_the_focal_length_is_the_assumed_one_where_it_is_not_known():
    assert {part.fov for part in parts(2, fov_known=0.0)} == {55.0}
    known = parts(2, fov_known=1.0)
    assert [part.fov for part in known] == pytest.approx([fov_of(part) for part in known])


def test_renderings_are_functions_of_seed_and_number():
    video = AnyVideo()
    first, again, other = (
        video.training_sequences(sequences(), H36M17, 0, number) for number in (1, 1, 2)
    )
    assert [s.joints2d.tobytes() for s in first] == [s.joints2d.tobytes() for s in again]
    assert first[0].joints2d.tobytes() != other[0].joints2d.tobytes()
    backwards = video.training_sequences(sequences()[::-1], H36M17, 0, 1)
    names = [s.sequence.name for s in first]
    assert sorted(names) != names or len(backwards) == len(first)
    total = sum(len(s.joints2d) for s in first) / 25
    assert total == pytest.approx(6 * 2.0, rel=0.3)  # each recording once, not once per camera


def test_motion_at_another_rate_passes_through_the_same_poses():
    motion = sequences()[0].joints3d
    slower = resample_motion(motion, 50.0, 25.0)
    assert slower == pytest.approx(motion[::2], abs=1e-9)
    there_and_back = resample_motion(slower, 25.0, 50.0)
    assert np.abs(there_and_back - motion[: len(there_and_back)]).max() < 0.004


def test_evaluation_sees_the_cameras_of_the_source_as_predict_does():
    sequence = sequences()[1]
    exact = exact_joints2d(sequence)
    view = view_like_predict(sequence, H36M17, exact, np.ones(exact.shape[:2]), 50.0)
    in_camera = world_to_camera(sequence.joints3d, sequence.camera)
    relative = in_camera - in_camera[:, :1]
    assert view.crop.rotate_back(view.joints3d) == pytest.approx(relative, abs=1e-5)
    facts = prediction_facts(view, H36M17)
    assert facts["joints2d"] == pytest.approx(exact, abs=0.01)
    assert facts["frame"].startswith("crop camera")
    half = view_like_predict(sequence, H36M17, exact, np.ones(exact.shape[:2]), 25.0)
    assert half.sequence.fps == 25.0
    assert half.crop.rotate_back(half.joints3d) == pytest.approx(relative[::2], abs=1e-5)
    assert prediction_facts(half, H36M17)["joints2d"] == pytest.approx(exact[::2], abs=0.01)
    with pytest.raises(DataError, match="has 50 Hz, the lifter 30 Hz; set fps"):
        view_like_predict(sequence, H36M17, exact, np.ones(exact.shape[:2]), 30.0)


def test_windows_of_every_rendering_fit_the_epoch():
    class Numbered:
        def __init__(self, count):
            self.count = count

        def __len__(self):
            return self.count

        def __getitem__(self, key):
            assert key[1].max() < self.count
            return key[1]

    counts = {0: 10, 1: 7, 2: 15}
    windows = RerenderedWindows(lambda number: Numbered(counts[number]), 1)
    assert len(windows) == 10
    everything = np.arange(10)
    assert windows[0, everything].tolist() == list(range(10))
    assert set(windows[1, everything]) == set(range(7))
    assert windows[2, everything].tolist() == [0, 1, 3, 4, 6, 7, 9, 10, 12, 13]
    assert len(windows) == 10


def test_the_source_of_more_motion_is_an_input_of_the_run():
    first, second = Synthetic(), Synthetic(seed=3)
    assert LiftDataModule(first, video=AnyVideo(also=second)).data_sources() == [first, second]
    assert LiftDataModule(first, video=AnyVideo()).data_sources() == [first]
    assert LiftDataModule(first).data_sources() == [first]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"joint_sets": ("COCO18",)}, "joint_sets are COCO18; choose from COCO17"),
        ({"pitch": (10.0, -10.0)}, "pitch is 10 to -10; give the lower number first"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, problem):
    with pytest.raises(UsageError, match=problem):
        AnyVideo(**arguments)


def test_videos_need_projected_2d_and_no_other_rendering():
    with pytest.raises(UsageError, match="video is set, augment_every is 2"):
        LiftDataModule(Synthetic(), video=AnyVideo(), augment_every=2)
    with pytest.raises(UsageError, match="detections are cpn"):
        LiftDataModule(Synthetic(), "cpn", video=AnyVideo())


def test_a_few_windows_of_any_video_are_memorised():
    torch.manual_seed(0)
    net = MixSTE(frames=9, dim=32, depth=2, heads=2, drop_path=0.0, spread=0.5)
    module = LiftModule(net, loss=MPJPELoss())
    prepared = AnyVideo().training_sequences(sequences()[:1], H36M17, 0, 1)
    windows = TrainingWindows(prepared, net, step=9, flip=False, seed=0)
    batch = windows[0, np.arange(4)]

    def loss_of(module):
        return module.loss(module(batch["joints2d"], batch["visible"]), batch["joints3d"], None)

    first, last = memorise(module, loss_of, 150, 3e-3)
    assert first > 0.15
    assert last < 0.06
