"""Options of `predict`: those of both the command and the Python API, and those of the command."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pipeline.detections.numbering import MAX_FRAMES
from pipeline.errors import UsageError
from pipeline.export.frames import Frame

Filter = Literal["none", "one-euro", "butterworth", "savgol"]
"""Filter over time; see `pipeline.predict.smoothing`."""

Runtime = Literal["torch", "onnx"]
"""What computes the networks of checkpoints: torch, or onnxruntime after an export."""

Order = Literal["appearance", "size", "score", "displacement"]
"""Order of the people; see `LiftOptions`."""

CUTOFFS: dict[Filter, float] = {"one-euro": 1.5, "butterworth": 5.0, "savgol": 5.0}
"""Cut-off frequency of each filter where none is given, Hz: walking has its energy below 5 Hz.
One-Euro's is that of a person at rest, and rises with speed."""

DEFAULT_HEIGHT = 1.70
"""Height of a person where none is given, metres."""

DEFAULT_FOV = 55.0
"""Field of view along the longer side of the image where none is given, degrees."""


@dataclass(frozen=True)
class SourceOptions:
    """Which frames and people of a source are used, and what a file does not hold itself.

    Args:
        time: First and last second that are used.
        every: Use every n-th frame.
        fps: Frames per second, instead of those of the source.
        boxes: File with people's boxes: csv or json, see `heatlift docs predict`.
        det_thr: Lowest score of a person in the person detector.
        joints: Joint set of a 2D file, or of an estimator's ONNX file, that does not name its
            joints, such as COCO17.
        size: Width and height of the image of a 2D file, such as 1920x1080.
        frames: Number of frames of the video of a 2D file.
        first_frame: Number of the first frame in a 2D file.
    """

    time: tuple[float, float] | None = None
    every: int = 1
    fps: float | None = None
    boxes: str | None = None
    det_thr: float = 0.5
    joints: str | None = None
    size: str | None = None
    frames: int | None = None
    first_frame: int | None = None

    def __post_init__(self) -> None:
        check_clip(self.time, self.every, self.fps)
        if not 0 < self.det_thr < 1:
            raise UsageError(f"det_thr is {self.det_thr:g}; give a score between 0 and 1")
        if self.frames is not None and not 1 <= self.frames <= MAX_FRAMES:
            raise UsageError(f"frames is {self.frames}; give a number from 1 to {MAX_FRAMES:,}")
        _ = self.image_size

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Width and height of `size`."""
        if self.size is None:
            return None
        from pipeline.files.images import MAX_PIXELS  # imports OpenCV

        parts = str(self.size).lower().split("x")
        if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise UsageError(f"size is {self.size}; give WIDTHxHEIGHT, such as 1920x1080")
        width, height = int(parts[0]), int(parts[1])
        if width * height > MAX_PIXELS:
            raise UsageError(f"size is {self.size}; give at most {MAX_PIXELS:,} pixels")
        return width, height


def check_clip(time: tuple[float, float] | None, every: int, fps: float | None) -> None:
    """Check which frames of a source are used.

    Raises:
        UsageError: If a value makes no sense.
    """
    if not 1 <= every <= MAX_FRAMES:
        raise UsageError(f"every is {every}; give 1 for all frames, 2 for every second, …")
    if fps is not None and not 0.1 <= fps <= 1000:
        raise UsageError(f"fps is {fps:g}; give 0.1 to 1000 frames per second")
    if time is not None and not 0 <= time[0] < time[1] < math.inf:
        raise UsageError(f"time is {time[0]:g} to {time[1]:g}; give start and end in seconds")


def is_webcam(source: str) -> bool:
    """Whether a source is the number of a webcam, and no file or folder with such a name."""
    return source.isdecimal() and len(source) <= 3 and not Path(source).exists()


@dataclass(frozen=True)
class LiftOptions:
    """How 2D joints of people become 3D motion.

    Args:
        height: Height of the people in metres, which sets the scale: one number for all, or one for
            each person in their order, where `person` does not count; 1.70 is assumed without it.
        focal: Focal length in pixels.
        fov: Field of view along the longer side of the image in degrees, instead of `focal`; 55 is
            assumed without both.
        frame: Frame of reference of the result: `camera` (x right, y down, z forward) or `world` (z
            up, floor at 0).
        camera_pitch: Angle at which the camera looks up (positive) or down (negative), degrees; for
            `world`, where it is estimated from people who stand or walk without it.
        joint_thr: Joints with a lower score are not used.
        fill_gaps: Longest gap in a person's track that is filled in, seconds.
        smooth: Filter over time.
        cutoff: Cut-off frequency of the filter, Hz; by default 5, and 1.5 for one-euro.
        person: Id of the only person that is kept.
        max_people: Largest number of people, the first of `order`.
        order: Order of the people: by `size` in the image, mean `score` or `displacement` (path in
            the image), largest first; without it as they appear.
    """

    height: tuple[float, ...] = ()
    focal: float | None = None
    fov: float | None = None
    frame: Frame = "camera"
    camera_pitch: float | None = None
    joint_thr: float = 0.3
    fill_gaps: float = 0.5
    smooth: Filter = "butterworth"
    cutoff: float | None = None
    person: str | None = None
    max_people: int | None = None
    order: Order = "appearance"

    def __post_init__(self) -> None:
        check_choice("frame", self.frame, Frame)
        check_choice("smooth", self.smooth, Filter)
        check_choice("order", self.order, Order)
        for height in self.height:
            if not 0.3 <= height <= 3.0:
                raise UsageError(f"height is {height:g}; give metres between 0.3 and 3")
        if self.focal is not None and self.fov is not None:
            raise UsageError("focal and fov are two values for one thing; give one of them")
        if self.focal is not None and not 0 < self.focal <= 1e6:
            raise UsageError(f"focal is {self.focal:g}; give pixels above 0 and up to a million")
        if self.fov is not None and not 1 <= self.fov <= 170:
            raise UsageError(f"fov is {self.fov:g}; give degrees between 1 and 170")
        if self.camera_pitch is not None and not -90 <= self.camera_pitch <= 90:
            raise UsageError(f"camera_pitch is {self.camera_pitch:g}; give -90 to 90 degrees")
        if not 0 <= self.joint_thr <= 1:
            raise UsageError(f"joint_thr is {self.joint_thr:g}; give a score between 0 and 1")
        if not self.fill_gaps >= 0:
            raise UsageError(f"fill_gaps is {self.fill_gaps:g}; give seconds, at least 0")
        if self.cutoff is not None and not 0 < self.cutoff < math.inf:
            raise UsageError(f"cutoff is {self.cutoff:g} Hz; give a frequency above 0")
        if self.max_people is not None and self.max_people < 1:
            raise UsageError(f"max_people is {self.max_people}; give at least 1")

    def focal_length(self, size: tuple[int, int]) -> float:
        """Focal length in pixels for an image of this width and height."""
        if self.focal is not None:
            return self.focal
        fov = DEFAULT_FOV if self.fov is None else self.fov
        return max(size) / 2 / math.tan(math.radians(fov) / 2)

    def cutoff_of(self, kind: Filter) -> float | None:
        """Cut-off frequency of a filter, Hz; none for `none`."""
        return None if kind == "none" else self.cutoff or CUTOFFS[kind]

    def height_of(self, index: int) -> float:
        """Height of the person with this place in the order, metres."""
        if not self.height:
            return DEFAULT_HEIGHT
        return self.height[min(index, len(self.height) - 1)]

    def assumptions(self, people: int = 1) -> list[str]:
        """What is assumed because no option gives it, as phrases with the name of the option.

        Args:
            people: Number of people.
        """
        found = []
        if self.focal is None and self.fov is None:
            found.append(f"field of view {DEFAULT_FOV:g} degrees (--fov or --focal)")
        if not self.height:
            found.append(f"height {DEFAULT_HEIGHT:.2f} m (--height)")
        if 1 < len(self.height) < people:
            found.append(
                f"height {self.height[-1]:.2f} m for the people after the first "
                f"{len(self.height)} (--height)"
            )
        return found


@dataclass(frozen=True)
class OutputOptions:
    """What is written, and where.

    Args:
        out: Folder of the results; one folder per input is made in it if there are several. By
            default NAME_heatlift beside the input.
        lifter: Checkpoint of a lifter, or its .onnx file; newest for the newest finished one in
            ./runs. By default the lifter in the box.
        estimator: What finds 2D joints: blazepose, blazepose-lite, blazepose-heavy, or a file: our
            checkpoint, .onnx or .tflite. By default blazepose.
        device: Device of the networks: auto, cpu or cuda.
        runtime: What computes the networks of checkpoints: torch, or onnx for onnxruntime, after an
            export that is made once. ONNX files are always computed by onnxruntime.
        export: Formats of the motion, separated by commas: npz, json, csv, trc, bvh, c3d, glb,
            html.
        video: Write overlay.webm and side_by_side.webm.
        report: Write report.html, a page that shows the result in any browser without a network.
        live: Predict frame by frame without looking ahead, as for a webcam, and print the latency.
        show: Show the people in a window while predicting, for live use and webcams; the key q ends
            it as Ctrl-C does.
        overwrite: Replace earlier results in the folder.
    """

    out: str | None = None
    lifter: str | None = None
    estimator: str | None = None
    device: str = "auto"
    runtime: Runtime = "torch"
    export: str = "npz"
    video: bool = True
    report: bool = True
    live: bool = False
    show: bool = False
    overwrite: bool = False


def check_choice(name: str, value: object, choices: object) -> None:
    """Check that an option is one of the values of a `Literal`.

    Raises:
        UsageError: If it is not.
    """
    known = get_args(choices)
    if value not in known:
        raise UsageError(f"{name} is {value!r}; it is one of {', '.join(known)}")


def check_live(options: LiftOptions) -> None:
    """Check that no option is set that needs the whole clip.

    Raises:
        UsageError: If one is.
    """
    needs_whole = {
        "frame": options.frame != "camera",
        "order": options.order != "appearance",
        "smooth": options.smooth == "savgol",
    }
    for name in (name for name, is_set in needs_whole.items() if is_set):
        raise UsageError(
            f"{name} is {getattr(options, name)}, which needs the whole clip; leave it out for "
            "live use and webcams"
        )
