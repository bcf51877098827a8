"""Small videos for tests: frames whose number can be read back, rotation tags, gaps in time."""

import struct

import cv2
import numpy as np

SIZE = (96, 64)


def numbered_frame(number, size=SIZE):
    """A grey frame, RGB, whose left half has the brightness of its number; red corner top left."""
    width, height = size
    image = np.full((height, width, 3), 40, np.uint8)
    image[:, : width // 2] = 60 + 8 * (number % 20)
    image[: height // 4, : width // 4] = (250, 20, 20)
    return image


def read_number(image):
    """Number of a frame, up to 20, read from its left half."""
    height, width = image.shape[:2]
    return round((float(image[height // 2 :, 4 : width // 2 - 4].mean()) - 60) / 8)


def write_mp4(path, count=12, fps=25.0, size=SIZE):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
    for number in range(count):
        writer.write(np.ascontiguousarray(numbered_frame(number, size)[..., ::-1]))
    writer.release()
    return path


_MATRICES = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}


def set_rotation(path, degrees):
    """Write a rotation tag, degrees clockwise, into the track header of an mp4 file."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4
    assert data[place] == 0  # version of the header
    a, b, c, d = (value * 0x10000 for value in _MATRICES[degrees])
    struct.pack_into(">9i", data, place + 40, a, b, 0, c, d, 0, 0, 0, 0x40000000)
    path.write_bytes(data)
    return path


def set_display_width(path, factor):
    """Write a factor on the width of the image into the track header: pixels are not square."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 76
    (width,) = struct.unpack_from(">I", data, place)
    struct.pack_into(">I", data, place, round(width * factor))
    path.write_bytes(data)
    return path


def double_durations(path, numbers):
    """Give these frames twice the duration: a variable frame rate (rewrites the stts box)."""
    data = bytearray(path.read_bytes())
    place = data.index(b"stts")
    size = struct.unpack_from(">I", data, place - 4)[0]
    count, samples, delta = struct.unpack_from(">3I", data, place + 8)
    assert count == 1
    entries = b"".join(
        struct.pack(">2I", 1, delta * (2 if number in numbers else 1)) for number in range(samples)
    )
    body = b"stts" + bytes(4) + struct.pack(">I", samples) + entries
    new = struct.pack(">I", len(body) + 4) + body
    grown = len(new) - size
    start = place - 4
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        at = data.index(name) - 4
        struct.pack_into(">I", data, at, struct.unpack_from(">I", data, at)[0] + grown)
    if data.index(b"mdat") > start:  # the samples move with their box
        at = data.index(b"stco") + 8
        for k in range(struct.unpack_from(">I", data, at)[0]):
            offset = struct.unpack_from(">I", data, at + 4 + 4 * k)[0]
            struct.pack_into(">I", data, at + 4 + 4 * k, offset + grown)
    whole = bytes(data[:start]) + new + bytes(data[start + size :])
    path.write_bytes(whole.replace(b"edts", b"free"))  # the edit list holds the old duration
    return path
