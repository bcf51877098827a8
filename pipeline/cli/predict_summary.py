"""What `heatlift predict` prints about a motion: people, networks, camera, quality, advice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.export.measures import is_usable

if TYPE_CHECKING:
    from pipeline.export.motion import Motion


def summary(text: str, motion: Motion, files: Sequence[str], seconds: float) -> list[str]:
    """The lines that the command prints about a motion."""
    facts = motion.facts
    span = motion.times[-1] - motion.times[0] if len(motion) else 0.0
    width, height = motion.size
    speed = len(motion) / max(seconds, 1e-9)
    lines = [
        _row(
            Path(text).name,
            f"{len(motion)} frames, {motion.fps:.4g} fps, {width}x{height}, {span:.1f} s "
            f"({speed:.1f} frames/s)",
        )
    ]
    lines += _network_rows(motion)
    notes = [str(note) for note in facts.get("assumptions", ())]
    unsure = _unsure_frames(facts)
    camera = [note for note in notes if note.startswith(("field of view", "height"))]
    if camera:
        lines.append(_row("camera", f"not known, assumed: {'; '.join(camera)}"))
    for note in (note for note in notes if note not in camera):
        lines.append(_row("assumed" if "--" in note else "note", note))
    lines += [line for person in motion.people for line in _quality_rows(person.id, facts, files)]
    for warning in facts.get("warnings", ()):
        lines.append(_row("warning", str(warning)))
    lost = any("are left out" in str(warning) for warning in facts.get("warnings", ()))
    if not motion.people and not lost:
        advice = "give --boxes or lower --det_thr" if _has_images(facts) else "lower --joint_thr"
        name = facts.get("source", {}).get("name", "")
        lines.append(_row("warning", f"{name}: nobody found in {len(motion)} frames; {advice}"))
    better = _advice(motion, camera, unsure)
    if better:
        lines.append(_row("better with", "; ".join(better)))
    if files:
        lines.append("  " + "  ".join(files))
    return lines


def _has_images(facts: Mapping[str, Any]) -> bool:
    """Whether the 2D joints were found in images, and not read from a file."""
    return facts.get("source", {}).get("kind") in ("video", "images", "webcam")


def _network_rows(motion: Motion) -> list[str]:
    """Lines about the people and about the networks that found and lifted them."""
    facts, rows = motion.facts, list[str]()
    people = [
        f"{p.id} frames {', '.join(f'{a}-{b}' for a, b in p.spans[:3])}"
        f"{' …' if len(p.spans) > 3 else ''}"
        for p in motion.people
    ]
    between = ", " if all(len(p.spans) == 1 for p in motion.people) else "; "
    rows.append(
        _row("people", f"{len(people)} found: {between.join(people)}" if people else "nobody")
    )
    weights = facts.get("weights", {})
    scores = [f"{p.id} {p.mean_score:.2f}" for p in motion.people]
    if len(scores) == 1:
        scores = [f"{motion.people[0].mean_score:.2f}"]
    unsure = _unsure_frames(facts)
    estimator = weights.get("estimator", {}).get("name", "")
    rows.append(
        _row(
            "2D",
            f"{estimator}, mean score {', '.join(scores) or '-'}"
            + f"; {unsure} {'frame' if unsure == 1 else 'frames'} unsure" * bool(unsure),
        )
    )
    lifter = weights.get("lifter", {})
    resampled = _is_resampled(motion.times, lifter.get("rate"))
    rows.append(
        _row(
            "3D",
            f"{lifter.get('name', '')} ({lifter.get('class', '')})"
            + f", resampled to {lifter.get('rate', 0):g} Hz and back" * resampled,
        )
    )
    return rows


def _unsure_frames(facts: Mapping[str, Any]) -> int:
    """Number of frames in which the 2D joints of a person have low scores, of all people."""
    return sum(
        int(quality.get("unsure_frames", 0)) for quality in facts.get("quality", {}).values()
    )


def _is_resampled(times: NDArray[np.float64], rate: float | None) -> bool:
    """Whether frames at these times are resampled to the rate of the lifter."""
    from pipeline.predict.lifting import resampled_times

    return rate is not None and len(times) > 1 and resampled_times(times, rate) is not times


def _advice(motion: Motion, assumed: Sequence[str], unsure: int) -> list[str]:
    """What the user can do for a better motion."""
    found = [option for option in ("--height", "--fov") if any(option in note for note in assumed)]
    advice = [f"{' and '.join(found)} of your own"] if found and motion.people else []
    seen = sum(int((person.status == 1).sum()) for person in motion.people)
    if unsure > 0.1 * seen:
        advice.append("a nearer camera, more light")
        estimator = motion.facts.get("weights", {}).get("estimator", {}).get("name", "")
        if (
            _has_images(motion.facts)
            and estimator.startswith("blazepose-")
            and estimator != "blazepose-heavy"
        ):
            advice[-1] += ", or --estimator blazepose-heavy"
    if any("whole image" in str(note) for note in motion.facts.get("assumptions", ())):
        advice.append("boxes of the people (--boxes, or heatlift weights get blazepose)")
    return advice


def _quality_rows(identity: str, facts: Mapping[str, Any], files: Sequence[str]) -> list[str]:
    """Lines about the quality of a person's motion, which `files` show."""
    quality, parts = facts.get("quality", {}).get(identity, {}), list[str]()
    if "jitter" in quality:
        jitter, bones = f"{quality['jitter']:.0f}", f"{100 * quality['bone_variation']:.0f}"
        if "jitter_before" in quality:  # live use does not know it
            jitter = f"{quality['jitter_before']:.0f} -> {jitter}"
            bones = f"{100 * quality['bone_variation_before']:.0f} -> {bones}"
        parts += [f"jitter {jitter} mm/frame2", f"bones vary {bones} %"]
    if quality.get("foot_slide") is not None:
        parts.append(f"feet slide {100 * quality['foot_slide']:.0f} cm")
    if not parts:
        return []
    name = "motion" if len(facts["quality"]) == 1 else f"motion {identity}"
    rows = [_row(name, "; ".join([*parts, "the path along the floor is a guess"]))]
    if not is_usable(quality):
        shown = [name for name in files if name.endswith((".webm", "report.html"))]
        where = f"; look at {shown[0]}" if shown else ""
        rows.append(_row("warning", f"{identity}: this is not usable motion{where}"))
    return rows


def _row(name: str, text: str) -> str:
    return f"{name[:24]:<12} {text}"
