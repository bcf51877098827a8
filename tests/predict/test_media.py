import struct
import threading
import zlib

import cv2
import numpy as np
import pytest
from videos import (
    SIZE,
    double_durations,
    numbered_frame,
    read_number,
    set_display_width,
    set_rotation,
    write_mp4,
)

from pipeline.errors import DataError, UsageError
from pipeline.files.videos import _container
from pipeline.predict.media import open_media, read_ahead


def write_images(folder, names, size=SIZE):
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        cv2.imwrite(str(folder / name), numbered_frame(number, size)[..., ::-1])
    return folder


def test_a_video_gives_its_frames_in_order_with_their_times(tmp_path):
    media = open_media(write_mp4(tmp_path / "a.mp4"))
    frames = list(media)
    assert [frame.index for frame in frames] == list(range(12))
    assert [frame.time for frame in frames] == pytest.approx(np.arange(12) / 25)
    assert [read_number(frame.image) for frame in frames] == list(range(12))
    assert media.size == SIZE
    assert media.fps == pytest.approx(25)
    assert (media.notes, media.seen, media.expected) == ([], 12, 12)
    assert frames[0].image[4, 4, 0] > 200 > 100 > frames[0].image[4, 4, 2]  # red: RGB, not BGR


def test_a_video_can_be_read_twice(tmp_path):
    media = open_media(write_mp4(tmp_path / "a.mp4", 5))
    assert [f.time for f in media] == [f.time for f in media]


@pytest.mark.parametrize(("degrees", "corner"), [(90, (0, -1)), (180, (-1, -1)), (270, (-1, 0))])
def test_row_8_a_rotation_tag_is_applied_and_said(tmp_path, degrees, corner):
    path = set_rotation(write_mp4(tmp_path / "a.mp4", 3), degrees)
    media = open_media(path)
    image = next(iter(media)).image
    assert media.size == (SIZE if degrees == 180 else SIZE[::-1])
    assert image.shape[:2] == media.size[::-1]
    y, x = (8 if side == 0 else side - 8 for side in corner)
    assert image[y, x, 0] > 150 > image[y, x, 2]
    assert media.rotation == degrees
    assert f"{degrees} degrees of rotation applied" in media.notes


@pytest.mark.parametrize(("tag", "degrees"), [(6, 90), (3, 180), (8, 270), (1, 0)])
def test_row_8_the_orientation_of_a_photo_is_applied_and_said(tmp_path, tag, degrees):
    ok, jpeg = cv2.imencode(".jpg", numbered_frame(3, SIZE)[..., ::-1])
    assert ok
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x112, 3, 1, tag, 0, 0)
    segment = b"\xff\xe1" + struct.pack(">H", 8 + len(tiff)) + b"Exif\0\0" + tiff
    data = jpeg.tobytes()
    (tmp_path / "a.jpg").write_bytes(data[:2] + segment + data[2:])
    media = open_media(tmp_path / "a.jpg")
    (frame,) = media
    assert frame.image.shape[:2] == (SIZE if degrees % 180 else SIZE[::-1])
    assert media.facts()["rotation"] == degrees
    assert (f"{degrees} degrees of rotation applied" in media.notes) == (degrees > 0)


def test_row_9_variable_frame_rate_uses_the_times_of_the_stream(tmp_path):
    path = double_durations(write_mp4(tmp_path / "a.mp4", 12), {2, 5})
    media = open_media(path)
    times = [frame.time for frame in media]
    expected = np.r_[0, np.cumsum([2 if n in (2, 5) else 1 for n in range(11)])] / 25
    assert times == pytest.approx(expected, abs=1e-3)
    assert any("variable frame rate" in note for note in media.notes)


def test_row_9_a_cut_off_video_warns_with_both_numbers(tmp_path):
    path = write_mp4(tmp_path / "a.avi", 0)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25.0, SIZE)
    for number in range(40):
        writer.write(np.ascontiguousarray(numbered_frame(number)[..., ::-1]))
    writer.release()
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    media = open_media(path)
    count = len(list(media))
    assert 5 < count < 40
    said = f"the file states {media.expected} frames, and {count} can be decoded"
    assert said in media.notes
    part = open_media(path, time=(0, 10))
    assert len(list(part)) == count
    assert said in part.notes
    begun = open_media(path, time=(0, 0.1))
    assert len(list(begun)) == 3
    assert begun.notes == []


def test_seconds_and_every_n_th_frame_choose_a_part(tmp_path):
    path = write_mp4(tmp_path / "a.mp4", 18)
    media = open_media(path, time=(0.2, 0.6), every=3)
    frames = list(media)
    assert [read_number(f.image) for f in frames] == [6, 9, 12, 15]
    assert [f.index for f in frames] == [0, 1, 2, 3]
    assert [f.number for f in frames] == [6, 9, 12, 15]
    assert [f.time for f in frames] == pytest.approx([0.24, 0.36, 0.48, 0.6])
    assert media.fps == pytest.approx(25 / 3)
    assert media.notes == []


def test_fps_replaces_the_times_of_the_file(tmp_path):
    media = open_media(write_mp4(tmp_path / "a.mp4", 4), fps=50)
    assert [f.time for f in media] == pytest.approx([0, 0.02, 0.04, 0.06])


def test_images_come_in_the_order_of_their_numbers_and_holes_keep_their_time(tmp_path):
    folder = write_images(tmp_path / "clip", ["f2.png", "f10.png", "f12.png", "f4.png"])
    (folder / "notes.txt").write_text("x")
    media = open_media(folder, fps=20)
    frames = list(media)
    assert [read_number(f.image) for f in frames] == [0, 3, 1, 2]
    assert [f.time for f in frames] == pytest.approx([0, 0.05, 0.2, 0.25])
    assert "2 images are missing in the numbering; time goes on over them" in media.notes
    assert "1 files in the folder are no images; left out" in media.notes
    assert "images are numbered in steps of 2, and follow one another in time" in media.notes


def test_the_frame_rate_of_images_is_assumed_and_said(tmp_path):
    media = open_media(write_images(tmp_path / "clip", ["a1.png", "a2.png"]))
    assert [f.time for f in media] == pytest.approx([0, 1 / 30])
    assert media.notes == ["30 frames per second (--fps)"]


def test_row_8_the_same_clip_as_images_gives_the_same_frames(tmp_path):
    path = set_rotation(write_mp4(tmp_path / "a.mp4", 4), 90)
    folder = tmp_path / "clip"
    folder.mkdir()
    for frame in open_media(path):
        cv2.imwrite(str(folder / f"{frame.index}.png"), frame.image[..., ::-1])
    pairs = zip(open_media(path), open_media(folder, fps=25), strict=True)
    assert all((a.image == b.image).all() and abs(a.time - b.time) < 1e-6 for a, b in pairs)


def test_a_single_photo_is_a_clip_of_one_frame(tmp_path):
    folder = write_images(tmp_path / "clip", ["photo.jpg"])
    assert len(list(open_media(folder / "photo.jpg"))) == 1


def png_with_size(width, height):
    def chunk(name, body):
        content = name + body
        return len(body).to_bytes(4) + content + zlib.crc32(content).to_bytes(4)

    head = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")


def bad_input(tmp_path, kind):
    path = tmp_path / "clip.mp4"
    match kind:
        case "cut off":
            whole = write_mp4(path).read_bytes()
            path.write_bytes(whole[: len(whole) // 3])
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n")
        case "no frames":
            cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25.0, SIZE).release()
        case "url":
            return "https://example.com/clip.mp4"
        case "pattern":
            return str(tmp_path / "f%04d.png")
        case "missing":
            return str(tmp_path / "none.mp4")
        case "sizes":
            folder = write_images(tmp_path / "clip", ["f0.png"])
            cv2.imwrite(str(folder / "f1.png"), numbered_frame(1, (64, 64)))
            return folder
        case "1x1":
            return write_images(tmp_path / "clip", ["f0.png"], (1, 1))
        case "bomb":
            path = tmp_path / "bomb.png"
            path.write_bytes(png_with_size(60000, 60000))
        case "gif named png":
            path = tmp_path / "a.png"
            path.write_bytes(b"GIF89a" + bytes(40))
        case "no images":
            (tmp_path / "clip").mkdir()
            return tmp_path / "clip"
        case "same number":
            return write_images(tmp_path / "clip", ["a1.png", "b1.png"])
        case "some without number":
            return write_images(tmp_path / "clip", ["a1.png", "b.png"])
        case "webcam":
            return "63"
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("cut off", "cut off"),
        ("empty", "is empty"),
        ("text", "is no video"),
        ("no frames", r"no frame can be decoded|cannot be opened|is empty"),
        ("url", "is a URL"),
        ("pattern", "pattern of names"),
        ("missing", "no such file"),
        ("sizes", "f1.png: is 64x64, and f0.png is 96x64"),
        ("1x1", "1x1 pixels"),
        ("bomb", "60000x60000"),
        ("gif named png", "neither JPEG nor PNG"),
        ("no images", "has no image"),
        ("same number", "same number"),
        ("some without number", "order of the images is unclear"),
        ("webcam", "webcam 63: is not there"),
    ],
)
def test_bad_input_is_one_line(tmp_path, kind, words, capfd):
    with pytest.raises(DataError, match=words) as caught:
        list(open_media(bad_input(tmp_path, kind)))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("option", "word"),
    [({"every": 0}, "every"), ({"fps": 0}, "fps"), ({"time": (3, 1)}, "time")],
)
def test_options_that_make_no_sense_are_usage_errors(tmp_path, option, word):
    with pytest.raises(UsageError, match=word):
        open_media(write_mp4(tmp_path / "a.mp4"), **option)


def test_a_part_without_frames_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no frame between 5 and 6 s"):
        list(open_media(write_mp4(tmp_path / "a.mp4"), time=(5, 6)))


def test_items_made_ahead_come_in_order_and_errors_reach_the_user():
    def numbers():
        yield from range(20)
        raise DataError("broken")

    items = read_ahead(numbers, 3)
    assert [next(items) for _ in range(20)] == list(range(20))
    with pytest.raises(DataError, match="broken"):
        next(items)


def test_a_reader_that_is_left_early_ends_its_thread():
    closed = threading.Event()

    def endless():
        try:
            while True:
                yield 1
        finally:
            closed.set()

    items = read_ahead(endless, 2)
    assert next(items) == 1
    items.close()
    assert closed.is_set()
    assert not any(thread.name == "frames" for thread in threading.enumerate())


def test_damaged_videos_end_in_frames_or_one_line(tmp_path):
    whole = write_mp4(tmp_path / "a.mp4", 12).read_bytes()
    generator = np.random.default_rng(20261128)
    outcomes = set()
    for trial in range(60):
        data = bytearray(whole)
        if trial % 3 == 0:
            del data[int(generator.integers(20, len(data))) :]
        elif trial % 3 == 1:
            start = int(generator.integers(len(data) - 32))
            data[start : start + 32] = generator.bytes(32)
        else:
            for place in generator.integers(0, len(data), 6):
                data[place] ^= 1 << int(generator.integers(8))
        (tmp_path / "m.mp4").write_bytes(data)
        try:
            outcomes.add(len(list(open_media(tmp_path / "m.mp4"))) <= 12)
        except DataError as error:
            outcomes.add("one line" if "\n" not in str(error) else "lines")
    assert outcomes == {True, "one line"}


@pytest.mark.parametrize(("factor", "turn"), [(1.5, 0), (0.75, 0), (1.5, 90)])
def test_pixels_that_are_not_square_are_made_square(factor, turn, tmp_path):
    path = set_display_width(write_mp4(tmp_path / "a.mp4"), factor)
    media = open_media(set_rotation(path, turn) if turn else path)
    width, height = SIZE
    size = (round(width * factor), height) if factor > 1 else (width, round(height / factor))
    size = size[::-1] if turn else size
    assert media.size == size
    assert next(iter(media)).image.shape[:2] == size[::-1]
    assert any(note.startswith("pixels are not square: ") for note in media.notes)


@pytest.mark.parametrize(
    "names",
    [
        ["snap_00-00-58.png", "snap_00-00-59.png", "snap_00-01-00.png", "snap_00-01-02.png"],
        ["1305031102.966667.png", "1305031103.000000.png", "1305031103.033333.png"],
        ["1403636579763555584.png", "1403636579813555456.png", "1403636579863555584.png"],
    ],
)
def test_times_in_names_are_in_order_and_are_no_frame_numbers(names, tmp_path):
    media = open_media(write_images(tmp_path / "clip", names), fps=20)
    frames = list(media)
    assert [read_number(f.image) for f in frames] == list(range(len(names)))
    assert [f.time for f in frames] == pytest.approx(np.arange(len(names)) / 20)
    assert any(note.startswith("the numbers in the names are no frame num") for note in media.notes)


def test_names_of_two_kinds_have_no_order(tmp_path):
    folder = write_images(tmp_path / "clip", ["a1.png", "a2_3.png"])
    with pytest.raises(DataError, match=r"a1.png and a2_3.png have different counts of numbers"):
        open_media(folder)


def test_a_name_that_is_no_text_is_an_error_before_it_is_opened(tmp_path):
    with pytest.raises(DataError, match=r"caf.udce9.mp4: the name of the file .* no valid UTF-8"):
        open_media(str(tmp_path / "caf\udce9.mp4"))


def test_a_transport_stream_has_sync_bytes_in_a_distance():
    packet = b"\x47" + bytes(187)
    assert _container(2 * packet) == _container(b"abcd" + packet + b"efgh" + packet)
    assert _container(2 * packet) == "MPEG transport stream"
    assert _container(b"G is a letter" + bytes(300)) is None
