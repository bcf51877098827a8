import cv2
import numpy as np
import pytest

from pipeline.heatmap.crop import apply_affine
from pipeline.predict.square_crops import (
    crops_from_points,
    cut_crop,
    cut_crops,
    overlapping_squares,
    square_matrix,
    to_image,
    whole_image,
)


def test_a_crop_is_two_and_a_half_times_the_distance_of_its_points_and_upright_to_them():
    points = np.array([[[30, 50], [30, 38]], [[30, 50], [37, 50]], [[30, 50], [30, 70]]])
    crops = crops_from_points(points)
    assert crops[:, :3].tolist() == [[30, 50, 30], [30, 50, 17.5], [30, 50, 50]]
    np.testing.assert_allclose(crops[:, 3], [0, np.pi / 2, np.pi])


@pytest.mark.parametrize("angle", [0.0, 0.4, -2.0, np.pi])
def test_the_second_point_lies_above_the_first_in_the_crop(angle):
    top = [200 + 40 * np.sin(angle), 100 - 40 * np.cos(angle)]
    crop = crops_from_points([[200, 100], top])
    found = apply_affine(square_matrix(crop, 256), [[200, 100], top])
    np.testing.assert_allclose(found, [[127.5, 127.5], [127.5, 127.5 - 256 / 2.5]], atol=1e-9)


def test_pixels_of_a_crop_and_of_the_image_convert_both_ways():
    crops = np.array([[31.0, 17.0, 40.0, 0.3], [5.0, 60.0, 90.0, -1.0]])
    points = np.random.default_rng(0).uniform(0, 64, (2, 5, 2))
    back = to_image(apply_affine(square_matrix(crops, 64), points), crops, 64)
    np.testing.assert_allclose(back, points, atol=1e-9)


def test_an_upright_crop_of_its_own_size_is_a_part_of_the_image():
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    crop = cut_crop(image, [14.5, 9.5, 8, 0], 8)
    assert np.array_equal(crop, image[6:14, 11:19])


def test_a_quarter_turn_shows_the_right_side_of_the_image_at_the_top():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    turned = cut_crop(image, [7.5, 7.5, 16, np.pi / 2], 16)
    assert np.array_equal(turned, cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE))


def test_outside_the_image_a_crop_is_black():
    image = np.full((20, 10, 3), 200, np.uint8)
    (crop,) = cut_crops(image, whole_image(10, 20), 20)
    assert (crop[:, 5:15] == 200).all()
    assert (crop[:, :4] == 0).all()
    assert (crop[:, 16:] == 0).all()


@pytest.mark.parametrize("crop", [[5, 5, np.nan, 0], [np.inf, 5, 9, 0], [5, 5, 0.4, 0]])
def test_a_crop_that_is_none_raises_an_error(crop):
    with pytest.raises(ValueError, match="cannot be cut"):
        cut_crop(np.zeros((9, 9, 3), np.uint8), crop, 8)


@pytest.mark.parametrize("size", [(1768, 994), (300, 900), (64, 64)])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_squares_cover_the_longer_side(size, count):
    squares = overlapping_squares(*size, count)
    low, high = squares[:, :2] - squares[:, 2:3] / 2, squares[:, :2] + squares[:, 2:3] / 2
    assert squares[:, 2].tolist() == [min(size)] * count
    assert (low >= -0.5).all()
    assert (high <= np.array(size) - 0.5).all()
    if count > 1:
        assert low.min(axis=0).tolist() == [-0.5, -0.5]
        assert high.max(axis=0).tolist() == [size[0] - 0.5, size[1] - 0.5]
