"""Damaged photographs raise an error, and crops show the right part of an image."""

import hashlib
import os
import pickle

import cv2
import fabricate
import numpy as np
import pytest
from malformed import check_lines, damaged, error_line

from pipeline.datasets import photos
from pipeline.datasets.coco import Coco
from pipeline.datasets.human36m_images import Human36MImages
from pipeline.datasets.mpi_inf_3dhp import MpiInf3dhpImages
from pipeline.datasets.mpii import Mpii
from pipeline.datasets.photos import (
    ConcatenatedImages,
    Photographs,
    choose_reduction,
    with_reduced_decoding,
)
from pipeline.errors import DataError
from pipeline.files.images import read_image, read_reduced_image
from pipeline.heatmap.data import Crops
from pipeline.sources import Images

SHIFT = np.array([[1.0, 0, -10], [0, 1, -5]])


def test_a_shifted_crop_is_the_part_of_the_image_in_rgb(tmp_path):
    path = fabricate.photograph(tmp_path / "a.png")
    whole = cv2.imread(str(path))
    images = Photographs([path])
    assert isinstance(images, Images)
    assert images.size(0) == (64, 48)
    piece = images.crop(0, SHIFT, (20, 30))
    np.testing.assert_array_equal(piece, whole[5:35, 10:30, ::-1])


DOTS = np.array([[163.0, 121.0], [460.0, 219.0], [302.5, 340.25]])


def dots(path, quality=95):
    """A photograph of 641 x 477 pixels with bright dots at `DOTS`."""
    y, x = np.mgrid[:477, :641]
    whole = sum(np.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * 12**2)) for a, b in DOTS)
    image = np.repeat(np.round(20 + 200 * whole)[..., None], 3, axis=2).astype(np.uint8)
    cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return path


def found_dots(crop, expected, reach):
    """Centres of the bright dots of a crop near the places where they should be."""
    values = crop[..., 0].astype(float) - 20
    y, x = np.mgrid[: crop.shape[0], : crop.shape[1]]
    centres = []
    for a, b in expected:
        weight = values * (np.hypot(x - a, y - b) < reach)
        centres.append([(weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()])
    return np.array(centres)


@pytest.mark.parametrize(("zoom", "reduction"), [(0.6, 1), (0.5, 2), (0.24, 4), (0.12, 8)])
@pytest.mark.parametrize("degrees", [0, 20])
def test_a_reduced_photograph_has_its_joints_at_the_same_place(tmp_path, zoom, reduction, degrees):
    """With corners for pixel centres they would be off by zoom (r - 1) / 2: 0.25 to 0.42 pixels."""
    path = dots(tmp_path / "a.jpg")
    cosine, sine = zoom * np.cos(np.deg2rad(degrees)), zoom * np.sin(np.deg2rad(degrees))
    matrix = np.array([[cosine, -sine, 130.0 * zoom], [sine, cosine, 17.5]])
    size = (round(760 * zoom), round(760 * zoom))
    assert choose_reduction(matrix) == reduction
    assert read_reduced_image(path, reduction).pixels.shape[:2] == (
        -(-477 // reduction),
        -(-641 // reduction),
    )
    expected = DOTS @ matrix[:, :2].T + matrix[:, 2]
    reach = 36 * zoom
    for reduced in (False, True):
        crop = Photographs([path], reduced=reduced).crop(0, matrix, size)
        assert np.abs(found_dots(crop, expected, reach) - expected).max() < 0.06


def test_a_png_is_decoded_whole(tmp_path):
    path = dots(tmp_path / "a.png")
    matrix = np.array([[0.2, 0, 3], [0, 0.2, 5]])
    plain, reduced = (Photographs([path], reduced=reduced) for reduced in (False, True))
    np.testing.assert_array_equal(
        plain.crop(0, matrix, (99, 88)), reduced.crop(0, matrix, (99, 88))
    )
    assert read_reduced_image(path, 4).reduction == 1


def test_the_fingerprint_tells_of_reduced_decoding(tmp_path):
    path = dots(tmp_path / "a.jpg")
    plain = Photographs([path])
    both = with_reduced_decoding(ConcatenatedImages([plain, plain]))
    assert both.fingerprint(1) == f"{plain.fingerprint(0)} reduced"


def test_people_of_one_photograph_share_its_decoding(tmp_path, monkeypatch):
    first, second = dots(tmp_path / "a.jpg"), dots(tmp_path / "b.jpg", quality=40)
    decoded = []
    original = photos.read_reduced_image
    monkeypatch.setattr(
        photos, "read_reduced_image", lambda *each: decoded.append(each) or original(*each)
    )
    images = Photographs([first, first, second, first])
    crops = [images.crop(i, SHIFT, (50, 40)) for i in range(4)]
    assert [path.name for path, _ in decoded] == ["a.jpg", "b.jpg", "a.jpg"]
    np.testing.assert_array_equal(crops[0], crops[3])
    cv2.imwrite(str(first), np.zeros((60, 70, 3), np.uint8))  # another file under this name
    assert crops[3].min() > 15
    assert images.crop(3, SHIFT, (50, 40)).max() == 0
    assert len(pickle.dumps(images)) < 2000


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_an_image_cut_anywhere_raises_an_error(tmp_path, suffix):
    data = fabricate.photograph(tmp_path / f"a.{suffix}").read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    for fraction in np.linspace(0.02, 0.99, 20):
        cut.write_bytes(data[: int(fraction * len(data))])
        with pytest.raises(DataError, match=r"cut\.(jpg|png): "):
            read_image(cut)
    cut.write_bytes(data + b"trailing")  # some cameras append to the image: harmless
    assert read_image(cut).shape == (48, 64, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("count", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_damaged_images_give_one_line_or_an_image(tmp_path, suffix, count):
    whole = fabricate.photograph(tmp_path / f"a.{suffix}").read_bytes()
    path, lines = tmp_path / f"b.{suffix}", []
    for data in damaged(whole, count, seed=count):
        path.write_bytes(data)
        lines.append(error_line(lambda: read_image(path)))
    check_lines(lines, path.name, 0.5)  # the others have other colours


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"GIF89a" + bytes(20), "neither JPEG nor PNG"),
        (b"\xff\xd8\xff\xd9", "without an image"),
    ],
)
def test_the_error_about_other_files_has_the_reason(tmp_path, data, reason):
    (tmp_path / "x.jpg").write_bytes(data)
    with pytest.raises(DataError, match=reason):
        read_image(tmp_path / "x.jpg")


def test_a_huge_size_raises_an_error_before_decoding(tmp_path):
    data = bytearray(fabricate.photograph(tmp_path / "a.jpg").read_bytes())
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = (30000).to_bytes(2, "big") * 2
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(DataError, match="30000x30000"):
        read_image(tmp_path / "a.jpg")


def test_folders_pipes_and_missing_files_raise_an_error(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, reason in [("", "directory"), ("pipe.jpg", "regular"), ("none.jpg", "not found")]:
        with pytest.raises(DataError, match=reason):
            read_image(tmp_path / name)
        with pytest.raises(DataError):
            Photographs([tmp_path / name]).fingerprint(0)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 4)])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_grey_alpha_and_16_bit_become_three_bytes(tmp_path, shape, kind):
    cv2.imwrite(str(tmp_path / "a.png"), np.full(shape, np.iinfo(kind).max // 2, kind))
    image = read_image(tmp_path / "a.png")
    assert image.dtype == np.uint8
    assert image.shape == (4, 5, 3)
    assert abs(int(image.mean()) - 127) <= 1


EXIF_6 = bytes.fromhex(
    "ffe1 0022 457869660000 4d4d002a00000008 0001 0112 0003 00000001 00060000 00000000"
)
"""Segment of a JPEG file with the orientation 6: turned by 90 degrees."""


def turned_photograph(path, width, height):
    """A JPEG file whose EXIF orientation turns it by 90 degrees."""
    data = fabricate.photograph(path, width, height).read_bytes()
    path.write_bytes(data[:2] + EXIF_6 + data[2:])


def test_an_image_of_another_size_than_declared_is_an_error_however_it_is_read(tmp_path):
    turned_photograph(tmp_path / "a.jpg", 160, 120)
    line = (
        r"a\.jpg is 160x120, but the annotations have 120x160, the size after its EXIF orientation"
    )
    images = Photographs([tmp_path / "a.jpg"], np.array([[120, 160]]))
    for read in (images.size, images.check, lambda i: images.crop(i, np.eye(2, 3), (9, 9))):
        with pytest.raises(DataError, match=line):
            read(0)
    assert Photographs([tmp_path / "a.jpg"], np.array([[162, 119]])).size(0) == (160, 120)
    for declared in ([160, 117], [80, 60]):
        with pytest.raises(DataError, match=r"160x120, but .*; use the photograph that was label"):
            Photographs([tmp_path / "a.jpg"], np.array([declared])).size(0)


def turn(folder, pattern, width, height):
    """Turned photographs in place of those of a fabricated data set."""
    for path in folder.glob(pattern):
        turned_photograph(path, width, height)
    return folder


@pytest.mark.parametrize(
    ("source", "write", "pattern", "size"),
    [
        (Coco, fabricate.coco, "*2017/*.jpg", (48, 64)),
        (Mpii, fabricate.mpii_coco, "images/*.jpg", (48, 64)),
        (Human36MImages, fabricate.human36m_posenet, "images/s_09*/*.jpg", (100, 1000)),
        (Human36MImages, fabricate.human36m_mmpose, "images/S9/*/*.jpg", (100, 1000)),
    ],
)
def test_every_source_with_declared_sizes_checks_its_samples(
    tmp_path, monkeypatch, source, write, pattern, size
):
    monkeypatch.setenv("HEATLIFT_CACHE", str(tmp_path / "cache"))
    root = str(turn(write(tmp_path / "set"), pattern, *size))
    samples = source(root).samples("test")
    crops = Crops(samples, samples.skeleton, (32, 32))
    with pytest.raises(DataError, match="but the annotations have"):
        crops[(0, np.array([0]))]
    with pytest.raises(DataError, match="photographs are bad, 1 may be"):
        source(root, skip_bad=1).samples("test")


@pytest.mark.parametrize(
    ("source", "write", "pattern"),
    [
        (Human36MImages, fabricate.human36m_mmpose, "images/S9/*/*.jpg"),
        (MpiInf3dhpImages, fabricate.mpi_inf_3dhp_mmpose, "images/*.jpg"),
    ],
)
def test_images_of_videos_have_the_size_of_their_camera(
    tmp_path, monkeypatch, source, write, pattern
):
    monkeypatch.setenv("HEATLIFT_CACHE", str(tmp_path / "cache"))
    root = str(turn(write(tmp_path / "set"), pattern, 100, 1000))
    images = source(root).sequences("test")[0].images
    with pytest.raises(DataError, match="100x1000, but the annotations have"):
        images.crop(0, np.eye(2, 3), (9, 9))


def test_a_fingerprint_follows_the_bytes(tmp_path):
    first = fabricate.photograph(tmp_path / "a.png", seed=1)
    second = fabricate.photograph(tmp_path / "b.png", seed=1)
    before = Photographs([first, second])
    assert before.fingerprint(0) == before.fingerprint(1)
    fabricate.photograph(first, seed=2)
    assert Photographs([first]).fingerprint(0) != before.fingerprint(1)


def test_a_photograph_of_the_same_size_and_time_has_its_own_fingerprint(tmp_path):
    file = tmp_path / "a.jpg"
    digests = []
    for content in (b"old", b"new"):
        file.write_bytes(content)
        os.utime(file, (1, 1))
        digests.append(Photographs([file]).fingerprint(0))
    assert digests == [hashlib.sha256(content).hexdigest() for content in (b"old", b"new")]
