import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.heatmap.crop import (
    NOISE_BANK,
    Augmentation,
    apply_affine,
    augment_images,
    augmented_matrices,
    crop_matrix,
    invert_affine,
    tight_boxes,
)
from pipeline.skeleton import COCO17, H36M17

STILL = Augmentation(flip=0, rotation=0, scale=0, half_body=0)

boxes = st.tuples(
    st.floats(-500, 2000), st.floats(-500, 2000), st.floats(2, 900), st.floats(2, 900)
)
draws = st.fixed_dictionaries(
    {
        "rotation": st.floats(-180, 180),
        "scale": st.floats(0.5, 2),
        "shift": st.tuples(st.floats(-0.2, 0.2), st.floats(-0.2, 0.2)),
        "flip": st.booleans(),
    }
)


def key(count: int, *, epoch: int = 2) -> tuple[int, int, np.ndarray]:
    return 11, epoch, np.arange(count)


@given(boxes, draws)
@settings(max_examples=50, deadline=None)
def test_a_crop_maps_there_and_back(box, draw):
    matrix = crop_matrix(box, (192, 256), **draw)
    points = np.random.default_rng(0).uniform(-1000, 3000, (20, 2))
    assert (
        np.abs(apply_affine(invert_affine(matrix), apply_affine(matrix, points)) - points).max()
        <= 1e-6
    )


@given(boxes, draws)
@settings(max_examples=50, deadline=None)
def test_a_crop_keeps_angles_and_mirrors_only_when_flipped(box, draw):
    linear = crop_matrix(box, (192, 256), **draw)[:, :2]
    zoom = abs(np.linalg.det(linear))
    np.testing.assert_allclose(linear @ linear.T, zoom * np.eye(2), atol=1e-9 * zoom)
    assert (np.linalg.det(linear) < 0) == draw["flip"]


@given(boxes, draws)
@settings(max_examples=50, deadline=None)
def test_a_flipped_crop_is_the_crop_with_x_counted_from_the_right(box, draw):
    points = np.random.default_rng(1).uniform(-100, 100, (9, 2))
    plain = apply_affine(crop_matrix(box, (96, 64), **draw | {"flip": False}), points)
    flipped = apply_affine(crop_matrix(box, (96, 64), **draw | {"flip": True}), points)
    np.testing.assert_allclose(flipped, plain * [-1, 1] + [95, 0], atol=1e-9)


def test_a_tall_box_fills_the_height_and_a_wide_one_the_width():
    tall = apply_affine(crop_matrix((10, 20, 30, 100), (60, 40), padding=1), [[25, 20], [25, 120]])
    np.testing.assert_allclose(tall, [[29.5, -0.5], [29.5, 39.5]])
    wide = apply_affine(
        crop_matrix((10, 20, 90, 15), (60, 40), padding=1), [[10, 27.5], [100, 27.5]]
    )
    np.testing.assert_allclose(wide, [[-0.5, 19.5], [59.5, 19.5]])


def test_a_positive_rotation_turns_x_towards_y():
    matrix = crop_matrix((0, 0, 10, 10), (11, 11), padding=1.1, rotation=90)
    np.testing.assert_allclose(apply_affine(matrix, [[7.0, 5.0]]), [[5.0, 7.0]], atol=1e-12)


def test_a_shift_is_a_share_of_the_crop_and_a_scale_shows_more():
    moved = crop_matrix((0, 0, 8, 8), (20, 10), padding=1, shift=(0.1, -0.2))
    np.testing.assert_allclose(apply_affine(moved, [[4.0, 4.0]]), [[11.5, 2.5]])
    wider = crop_matrix((0, 0, 8, 8), (20, 10), padding=1, scale=2.0)
    np.testing.assert_allclose(apply_affine(wider, [[4.0, 0.0]]), [[9.5, 4.5 - 4 * 10 / 16]])


def test_matrices_of_many_boxes_are_those_of_each():
    many = np.array([[0, 0, 50, 80], [30, 40, 10, 10], [-5, 9, 0, 0]], float)
    turned, flips = np.array([5.0, -40.0, 170.0]), np.array([True, False, True])
    batch = crop_matrix(many, (64, 96), rotation=turned, flip=flips)
    one_by_one = [
        crop_matrix(b, (64, 96), rotation=r, flip=f)
        for b, r, f in zip(many, turned, flips, strict=True)
    ]
    np.testing.assert_array_equal(batch, one_by_one)
    shared = crop_matrix(many[0], (64, 96), rotation=turned)
    np.testing.assert_array_equal(shared[1], crop_matrix(many[0], (64, 96), rotation=-40.0))


def test_opencv_warps_a_pixel_to_where_the_matrix_says():
    image = np.zeros((90, 120), np.float32)
    image[30, 70] = 1
    matrix = crop_matrix((50, 20, 40, 40), (64, 64), rotation=25, flip=True)
    warped = cv2.warpAffine(image, matrix, (64, 64))
    rows, columns = np.mgrid[:64, :64]
    centre = [(warped * columns).sum() / warped.sum(), (warped * rows).sum() / warped.sum()]
    np.testing.assert_allclose(centre, apply_affine(matrix, [[70, 30]])[0], atol=0.05)


def test_tight_boxes_leave_out_joints_that_do_not_count():
    joints = np.array([[[1.0, 9.0], [4.0, 2.0], [np.nan, np.nan]]])
    counted = np.array([[True, True, False]])
    assert tight_boxes(joints, counted).tolist() == [[1, 2, 3, 7]]
    assert np.isnan(tight_boxes(joints, counted & False)).all()


def varied(augmentation, count=2000, skeleton=H36M17, **changes):
    joints = np.random.default_rng(0).uniform(0, 200, (count, 17, 2))
    labelled = np.ones((count, 17), bool)
    box = np.tile([0.0, 0.0, 200.0, 200.0], (count, 1))
    return augmented_matrices(
        box,
        joints,
        labelled,
        (64, 64),
        skeleton=skeleton,
        augmentation=augmentation,
        padding=1.25,
        key=changes.get("key", key(count)),
    )


def test_without_variation_a_training_crop_is_the_plain_crop():
    matrices, mirrored = varied(STILL, 5)
    assert not mirrored.any()
    np.testing.assert_array_equal(matrices, [crop_matrix((0, 0, 200, 200), (64, 64))] * 5)


def test_augmentation_depends_on_seed_epoch_and_index_alone():
    everything, mirrored = varied(Augmentation(shift=0.1, quarter_turns=True), 50)
    chosen = np.array([31, 4, 17])
    again, again_mirrored = augmented_matrices(
        np.tile([0.0, 0.0, 200.0, 200.0], (3, 1)),
        np.random.default_rng(0).uniform(0, 200, (50, 17, 2))[chosen],
        np.ones((3, 17), bool),
        (64, 64),
        skeleton=H36M17,
        augmentation=Augmentation(shift=0.1, quarter_turns=True),
        padding=1.25,
        key=(11, 2, chosen),
    )
    np.testing.assert_array_equal(again, everything[chosen])
    np.testing.assert_array_equal(again_mirrored, mirrored[chosen])
    other, _ = varied(Augmentation(shift=0.1, quarter_turns=True), 50, key=key(50, epoch=3))
    assert not np.isclose(other, everything).all(axis=(1, 2)).any()


def test_flips_rotations_and_scales_come_as_often_and_as_far_as_asked():
    matrices, mirrored = varied(Augmentation(half_body=0))
    assert abs(mirrored.mean() - 0.5) < 0.04
    sign = np.where(mirrored, -1, 1)
    angle = np.degrees(np.arctan2(matrices[:, 1, 0], matrices[:, 1, 1]))
    still = np.abs(angle) < 1e-6
    assert abs(still.mean() - 0.4) < 0.04
    assert np.abs(angle).max() <= 90 + 1e-6
    assert abs(angle[~still].std() - 45 * 0.959) < 2.5  # of a normal cut at two deviations
    zoom = np.sqrt(sign * np.linalg.det(matrices[:, :, :2]))
    factor = 64 / 250 / zoom
    assert 0.65 - 1e-9 <= factor.min() < 0.66
    assert 1.34 < factor.max() <= 1.35 + 1e-9


def angles_and_zooms(matrices, mirrored):
    sign = np.where(mirrored, -1, 1)
    angle = np.degrees(np.arctan2(matrices[:, 1, 0], matrices[:, 1, 1]))
    return abs(angle), np.sqrt(sign * np.linalg.det(matrices[:, :, :2]))


def test_mirrored_crops_turn_as_far_as_the_others():
    angle, _ = angles_and_zooms(*(crops := varied(Augmentation(half_body=0), 20_000)))
    mirrored = crops[1]
    assert abs((mirrored & (angle > 53)).mean() - 0.0717) < 0.006  # 0.5 * 0.6 * P(|z| > 53 / 45)
    for chosen in (mirrored, ~mirrored):
        assert abs((angle[chosen] > 45).mean() - 0.1904) < 0.012  # 0.6 * P(|z| > 1)


def test_half_bodies_are_enlarged_as_often_as_reduced():
    count = 20_000
    _, plain = angles_and_zooms(*varied(STILL, count))
    _, halved = angles_and_zooms(*varied(Augmentation(scale=0), count))
    _, zoomed = angles_and_zooms(*varied(Augmentation(), count))
    half, factor = ~np.isclose(plain, halved), halved / zoomed
    assert abs(half.mean() - 0.3) < 0.013
    assert abs(factor[half].mean() - 1) < 0.015
    assert abs((factor[half] > 1).mean() - 0.5) < 0.026
    shuffled = halved / np.random.default_rng(0).permutation(factor)
    assert np.quantile(zoomed, 0.95) == pytest.approx(np.quantile(shuffled, 0.95), rel=0.02)


def test_quarter_turns_come_equally_often():
    matrices, _ = varied(Augmentation(0, 0, 0, 0, half_body=0, quarter_turns=True))
    turns = np.round(np.degrees(np.arctan2(matrices[:, 1, 0], matrices[:, 1, 1])) / 90) % 4
    assert np.abs(np.bincount(turns.astype(int)) / 2000 - 0.25).max() < 0.04


@pytest.mark.parametrize("skeleton", [H36M17, COCO17])
def test_half_bodies_fill_the_crop(skeleton):
    joints = np.random.default_rng(0).uniform(0, 200, (2000, 17, 2))
    matrices, _ = varied(Augmentation(0, 0, 0, 0, half_body=1.0), skeleton=skeleton)
    shown = apply_affine(matrices, joints)
    low = [any(w in n for w in ("hip", "knee", "ankle", "pelvis")) for n in skeleton.joints]
    inside = ((shown > 0) & (shown < 63)).all(-1)
    upper = inside[:, ~np.array(low)].all(1)
    lower = inside[:, np.array(low)].all(1)
    assert (upper | lower).all()
    assert upper.mean() > 0.6
    assert lower.mean() > 0.25


@pytest.mark.parametrize(
    ("skeleton", "joints_labelled"),
    [(COCO17, range(12)), (H36M17, range(9))],
    ids=["waist up and one hip", "legs, spine and thorax"],
)
def test_people_with_one_half_labelled_are_halved_as_often_as_others(skeleton, joints_labelled):
    labelled = np.tile(np.isin(np.arange(17), joints_labelled), (4000, 1))
    box = np.tile([0.0, 0.0, 200.0, 200.0], (4000, 1))
    matrices, _ = augmented_matrices(
        box,
        np.random.default_rng(0).uniform(0, 200, (4000, 17, 2)),
        labelled,
        (64, 64),
        skeleton=skeleton,
        augmentation=Augmentation(0, 0, 0, 0, half_body=0.3),
        padding=1.25,
        key=key(4000),
    )
    halved = (matrices != crop_matrix(box, (64, 64))).any((1, 2))
    assert abs(halved.mean() - 0.3) < 0.025


def test_a_few_joints_are_never_halved():
    joints, labelled = np.random.default_rng(0).uniform(0, 9, (4, 17, 2)), np.zeros((4, 17), bool)
    labelled[:, :8] = True
    box = np.tile([0.0, 0.0, 9.0, 9.0], (4, 1))
    matrices, _ = augmented_matrices(
        box,
        joints,
        labelled,
        (64, 64),
        skeleton=H36M17,
        augmentation=Augmentation(0, 0, 0, 0, half_body=1.0),
        padding=1.25,
        key=key(4),
    )
    np.testing.assert_array_equal(matrices, crop_matrix(box, (64, 64)))


def images(count: int = 64) -> np.ndarray:
    return np.random.default_rng(2).integers(90, 160, (count, 32, 48, 3)).astype(np.uint8)


def test_images_vary_by_their_own_key_and_the_given_ones_stay():
    given_images = images()
    before = given_images.copy()
    every = Augmentation(colour=0.3, patches=0.5, noise=8.0)
    out = augment_images(given_images, augmentation=every, key=key(64))
    np.testing.assert_array_equal(given_images, before)
    one = augment_images(given_images[40:41], augmentation=every, key=(11, 2, np.array([40])))
    np.testing.assert_array_equal(one[0], out[40])
    assert (out != before).reshape(64, -1).any(axis=1).all()


def test_without_variation_images_are_handed_through():
    assert augment_images(shown := images(2), augmentation=STILL, key=key(2)) is shown


def test_noise_has_the_deviation_asked_for():
    flat = np.full((8, 64, 64, 3), 128, np.uint8)
    out = augment_images(flat, augmentation=Augmentation(noise=8.0), key=key(8)).astype(float)
    assert abs(out.std() - 8.0) < 0.15
    assert abs(out.mean() - 128) < 0.15
    assert not np.array_equal(out[0], out[1])


@pytest.mark.parametrize("noise", [0.0, 8.0])
def test_crops_larger_than_the_bank_of_noise_are_varied(noise):
    large = np.full((1, 864, 900, 3), 128, np.uint8)
    assert large[0].size > NOISE_BANK
    out = augment_images(large, augmentation=Augmentation(colour=0.2, noise=noise), key=key(1))
    assert out.shape == large.shape
    assert not np.array_equal(out, large)
    assert abs(out.astype(float).std(axis=(0, 1, 2)) - noise).max() < 0.5


def test_colours_keep_grey_images_smooth_and_move_their_brightness():
    ramp = np.repeat(np.arange(64, 192, dtype=np.uint8)[None, :, None], 3, axis=2)[None]
    ramps = np.repeat(ramp, 40, axis=0)
    out = augment_images(ramps, augmentation=Augmentation(colour=0.3), key=key(40)).astype(int)
    assert (np.diff(out, axis=2) >= 0).all()
    assert np.abs(out[:, 0, 64].astype(int) - 128).max() > 10


def test_patches_cover_between_a_hundredth_and_a_tenth_of_their_image():
    shown = images(200)
    out = augment_images(shown, augmentation=Augmentation(patches=1.0), key=key(200))
    share = (out != shown).any(axis=3).mean(axis=(1, 2))
    assert share.min() > 0.005
    assert share.max() <= 0.09
    plain = out.reshape(200, -1, 3)
    assert all(
        len(np.unique(p[(p != s).any(1)], axis=0)) <= 1
        for p, s in zip(plain, shown.reshape(200, -1, 3), strict=True)
    )
