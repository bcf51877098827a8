"""Live use of `heatlift predict`: frame by frame, with the latency, in a window if wanted."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Any

from pipeline.errors import UsageError
from pipeline.training.console import LINE_INTERVAL, print_line, print_status

if TYPE_CHECKING:
    from pipeline.export.motion import Motion
    from pipeline.predict.heatlift import Heatlift
    from pipeline.predict.media import Frame


def check_show(is_live: bool) -> None:
    """Check that a window can be shown.

    Args:
        is_live: Whether an input is predicted frame by frame.

    Raises:
        UsageError: If it cannot.
    """
    from pipeline.export.window import check_window

    if not is_live:
        raise UsageError("show is for live use; add --live, or leave --show out: see overlay.webm")
    check_window()


def predict_live(
    heatlift: Heatlift, text: str, flags: dict[str, Any], stops: list[int], *, show: bool
) -> Motion:
    """Predict frame by frame; people and latency are printed, and shown in a window if wanted.

    Args:
        heatlift: The networks.
        text: Video, folder of images or number of a webcam.
        flags: Options of `Heatlift.predict`.
        stops: Signals that came so far; the key q in the window adds SIGINT.
        show: Show a window.

    Raises:
        HeatliftError: If the source cannot be read, or an option makes no sense.
    """
    from pipeline.export.window import LiveWindow

    window = LiveWindow() if show else None
    printed = time.monotonic()

    def each(frame: Frame, piece: Motion) -> None:
        nonlocal printed
        if window is not None:
            window.show(frame.image, piece)
        if time.monotonic() - printed > LINE_INTERVAL:
            printed = time.monotonic()
            seen = ", ".join(person.id for person in piece.people) or "nobody"
            print_status(f"{frame.time:7.2f} s  {seen}")

    def stop() -> bool:
        if window is not None and window.closed and not stops:
            stops.append(signal.SIGINT)
        return bool(stops)

    try:
        motion = heatlift.predict_live(text, stop=stop, each=each, **flags)
    finally:
        if window is not None:
            window.close()
    latency = motion.facts["latency_ms"]
    print_line(
        f"latency      median {latency['median']:.0f} ms, 95 % below {latency['95 %']:.0f} ms per "
        "frame, 2D network included"
    )
    return motion
