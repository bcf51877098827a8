"""`heatlift data validate --mapping`: recordings read through a mapping, checked and drawn."""

from __future__ import annotations

from collections.abc import Sequence as Many
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.dashboard.canvas import Image, add_title, contact_sheet
from pipeline.dashboard.skeletons import draw_views3d, view_radius
from pipeline.datasets.body_checks import Finding
from pipeline.datasets.validate import Report
from pipeline.errors import DataError
from pipeline.mocap.body_facts import BodyFacts, joints_by_name, measure_body
from pipeline.mocap.body_faults import check_set, describe_recording
from pipeline.mocap.mapping import read_mapping
from pipeline.mocap.preparation import read_recording
from pipeline.mocap.recordings import find_recordings
from pipeline.skeleton import Skeleton

FRAMES_DRAWN = 4
"""Number of frames of the image, from as many recordings if there are enough."""


def validate_mapping(folder: Path, source: str, *, skip_bad: int = 0) -> tuple[Report, Image]:
    """Read all recordings in a folder through a joint mapping, and check the people in them.

    Args:
        folder: Folder with recordings at any depth.
        source: Joint mapping; see `read_mapping`.
        skip_bad: Maximum number of damaged files, which are left out and listed.

    Returns:
        The report, and an image of four frames.

    Raises:
        DataError: If more files are damaged or do not fit the mapping, or no file is left.
    """
    mapping = read_mapping(source)
    measured: list[BodyFacts] = []
    poses: dict[str, NDArray[np.float64]] = {}
    skipped: dict[str, str] = {}
    found = find_recordings(folder)
    drawn = np.linspace(0, len(found) - 1, FRAMES_DRAWN).round().astype(int).tolist()
    for index, (name, files) in enumerate(found.items()):
        if len(files) > 1:
            raise DataError(f"{folder}: {files[0]} and {files[1]} have the same name; keep one")
        try:
            joints3d, fps = read_recording(files[0], mapping)
        except DataError as error:
            if len(skipped) >= skip_bad:
                raise
            skipped[str(error)] = ""
            continue
        measured.append(measure_body(name, joints3d, mapping.skeleton, fps))
        for k in range(count := drawn.count(index)):
            frame = len(joints3d) * (2 * k + 1) // (2 * count)
            poses[f"{name}, frame {frame + mapping.drop_first}"] = joints3d[frame]
    if not measured:
        raise DataError(next(iter(skipped)))
    findings = [Finding(facts.name, describe_recording(facts)) for facts in measured]
    whole = check_set(measured, mapping)
    findings.append(Finding(f"mapping {mapping.name}", whole.facts, whole.faults, whole.doubts))
    report = Report(folder, ("Motion capture",), tuple(findings), skipped)
    return report, draw_poses(list(poses.values()), list(poses), mapping.skeleton)


def draw_poses(poses: Many[NDArray[np.float64]], captions: Many[str], skeleton: Skeleton) -> Image:
    """Draw poses from the front and from the side, two poses in a row.

    Args:
        poses: World metres, z up, (J, 3) each.
        captions: Caption of each pose.
        skeleton: Joint set.
    """
    turned = [_facing_the_viewer(pose, skeleton) for pose in poses]
    reach = view_radius(*turned) if turned else 1.0
    tiles = [draw_views3d(pose, None, skeleton, reach=reach, size=240) for pose in turned]
    title = "Is the person upright and whole? Left is orange, right is blue."
    return add_title(contact_sheet(tiles, 2, captions), title)


def _facing_the_viewer(pose: NDArray[np.float64], skeleton: Skeleton) -> NDArray[np.float64]:
    """A pose relative to its root, x right, y down, z away, turned about z to face the viewer."""
    at = joints_by_name(pose[None], skeleton)
    across = (at["left_hip"] - at["right_hip"])[0]
    yaw = np.arctan2(across[1], across[0]) if np.isfinite(across).all() else 0.0
    x, y, z = (pose - pose[skeleton.root]).T
    return np.stack(
        [x * np.cos(yaw) + y * np.sin(yaw), -z, y * np.cos(yaw) - x * np.sin(yaw)], axis=-1
    )
