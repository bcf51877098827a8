"""Drawing primitives: colours, lines, discs, text, contact sheets."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.skeleton import Skeleton

Image = NDArray[np.uint8]
"""RGB, (H, W, 3)."""


Colour = tuple[int, int, int]
"""RGB, 0 to 255."""

# Orange and blue can be told apart with every common colour blindness (Okabe and Ito 2008).
LEFT: Colour = (238, 128, 20)
RIGHT: Colour = (30, 112, 206)
CENTRE: Colour = (92, 99, 112)
TRUTH: Colour = (140, 147, 158)
PAPER: Colour = (255, 255, 255)
INK: Colour = (34, 39, 48)
FAINT: Colour = (228, 231, 236)

GAP = 10
"""Space between the images of a contact sheet, pixels."""

_FRACTION_BITS = 4
"""OpenCV takes coordinates in 1/16 pixel."""

_MAX_COORDINATE = 1e5
"""Points farther away than this, in pixels, are not drawn; OpenCV's integers would overflow."""


def side_colours(skeleton: Skeleton) -> tuple[Colour, ...]:
    """Colour of each joint, (J,): orange for left, blue for right, grey for central joints."""
    left, right = set(skeleton.left), set(skeleton.right)
    return tuple(
        LEFT if i in left else RIGHT if i in right else CENTRE for i in range(len(skeleton))
    )


def contact_sheet(
    images: Sequence[Image], columns: int, captions: Sequence[str] | None = None
) -> Image:
    """Images in a grid on a white background, with captions above them.

    Args:
        images: RGB images of any sizes; smaller ones are centred in their cell.
        columns: Number of images in a row.
        captions: One caption per image, or None; a caption that is too wide is cut.

    Returns:
        RGB image.

    Raises:
        ValueError: If there is no image, or not one caption per image.
    """
    if not images or (captions is not None and len(captions) != len(images)):
        raise ValueError(
            f"{len(images)} images and {len(captions or [])} captions; "
            "pass at least one image, and one caption each"
        )
    columns = min(columns, len(images))
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    caption_heights = [
        22 if captions and any(captions[start : start + columns]) else 0
        for start in range(0, len(images), columns)
    ]
    tops = np.cumsum([GAP] + [height + caption + GAP for caption in caption_heights])
    sheet = blank_canvas(int(tops[-1]), columns * (width + GAP) + GAP)
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        x, y = GAP + column * (width + GAP), int(tops[row])
        if captions and captions[i]:
            draw_text(sheet, captions[i], (x, y + 15), size=13, width=width)
        y += caption_heights[row] + (height - image.shape[0]) // 2
        x += (width - image.shape[1]) // 2
        sheet[y : y + image.shape[0], x : x + image.shape[1]] = image
    return sheet


def place_side_by_side(*images: Image) -> Image:
    """Images in one row, aligned at the top, on a white background."""
    height = max(image.shape[0] for image in images)
    row = [
        np.pad(
            image,
            ((0, height - image.shape[0]), (0, 0), (0, 0)),
            mode="constant",
            constant_values=255,
        )
        for image in images
    ]
    return np.concatenate(row, axis=1)


def add_title(image: Image, title: str) -> Image:
    """An image with a bold title above it."""
    header = blank_canvas(30, image.shape[1])
    draw_text(header, title, (GAP, 21), size=15, bold=True, width=image.shape[1] - 2 * GAP)
    return np.concatenate([header, image])


def resize_to_height(image: Image, height: int) -> Image:
    """An image resized to a height, with its aspect ratio; always a new array."""
    rows, columns = image.shape[:2]
    width = max(1, round(columns * height / rows))
    method = cv2.INTER_CUBIC if height > rows else cv2.INTER_AREA
    resized = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=method)
    return np.asarray(resized, np.uint8)


def blank_canvas(height: int, width: int) -> Image:
    """A white image, (H, W, 3)."""
    return np.full((height, width, 3), PAPER, np.uint8)


def draw_line(
    canvas: Image, start: NDArray[np.float64], end: NDArray[np.float64], colour: Colour, width: int
) -> None:
    """Draw a line onto `canvas`; `start` and `end` are pixels, (2,), `width` is in pixels."""
    first, second = _fixed_point(start), _fixed_point(end)
    if first is not None and second is not None:
        cv2.line(canvas, first, second, colour, width, cv2.LINE_AA, _FRACTION_BITS)


def draw_disc(canvas: Image, point: NDArray[np.float64], radius: float, colour: Colour) -> None:
    """Draw a filled circle onto `canvas`; `point`, (2,), and `radius` are in pixels."""
    centre = _fixed_point(point)
    if centre is not None:
        fixed = round(radius * 2**_FRACTION_BITS)
        cv2.circle(canvas, centre, fixed, colour, cv2.FILLED, cv2.LINE_AA, _FRACTION_BITS)


@functools.lru_cache(maxsize=512)
def _text_opacity(text: str, size: int, bold: bool, width: int | None) -> NDArray[np.float32]:
    """Opacity of a line of text, (h, w), 0 to 1; the baseline is `size` pixels below the top.

    Drawn by matplotlib, whose wheel contains the font: OpenCV has no font with all characters.
    """
    from matplotlib.backends.backend_agg import RendererAgg  # slow to import
    from matplotlib.font_manager import FontProperties

    font = FontProperties(family="DejaVu Sans", size=size, weight="bold" if bold else "normal")
    dpi = 72  # one point is one pixel
    measure = RendererAgg(1, 1, dpi).get_text_width_height_descent
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # characters that the font does not have become boxes
        length = measure(text, font, ismath=False)[0]
        while width is not None and len(text) > 1 and length > width:
            text = text.rstrip("…")[:-1] + "…"
            length = measure(text, font, ismath=False)[0]
        renderer = RendererAgg(int(length) + 3, size * 3 // 2, dpi)
        renderer.draw_text(renderer.new_gc(), 1, size, text, font, 0)
    return np.asarray(renderer.buffer_rgba())[..., 3].astype(np.float32) / np.float32(255)


def draw_text(
    canvas: Image,
    text: str,
    at: Sequence[float],
    *,
    size: int = 13,
    bold: bool = False,
    colour: Colour = INK,
    anchor: str = "ls",
    width: int | None = None,
) -> None:
    """Draw one line of text onto `canvas`; parts outside it are cut off.

    Args:
        canvas: RGB image, changed in place.
        text: Line of text.
        at: Pixel x, y of the baseline: its left end (`ls`) or its middle (`ms`).
        size: Font size in pixels.
        bold: Use the bold font.
        colour: Colour of the text.
        anchor: ls or ms.
        width: Largest width in pixels; a longer text is cut and ends in an ellipsis.
    """
    opacity = _text_opacity(text, size, bold, width)
    x, y = round(at[0]), round(at[1]) - size
    if anchor == "ms":
        x -= opacity.shape[1] // 2
    top, left = max(-y, 0), max(-x, 0)
    bottom, right = max(y + opacity.shape[0], 0), max(x + opacity.shape[1], 0)
    target = canvas[max(y, 0) : bottom, max(x, 0) : right]
    visible = opacity[top : top + target.shape[0], left : left + target.shape[1], None]
    target += (
        ((np.array(colour, np.float32) - target) * visible)
        .round()
        .astype(np.int16)
        .astype(np.uint8)
    )


def _fixed_point(point: NDArray[np.float64]) -> tuple[int, int] | None:
    """Pixels as OpenCV's fixed-point integers; None if not finite or too far away."""
    x, y = float(point[0]), float(point[1])
    if not (abs(x) <= _MAX_COORDINATE and abs(y) <= _MAX_COORDINATE):  # false for NaN, too
        return None
    return round(x * 2**_FRACTION_BITS), round(y * 2**_FRACTION_BITS)
