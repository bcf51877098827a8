"""The report: a motion as one page for a browser, with its video, a 3D view, curves and facts."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from pipeline.export.measures import (
    LOOSE_BONES,
    LOW_SCORE,
    TO_UPRIGHT,
    foot_slide,
    horizontal_speed,
    is_usable,
    measure_bones,
    unsure_frames,
)
from pipeline.export.motion_data import FILLED, PERSON_COLOURS, MotionData, PersonMotion
from pipeline.export.report_data import page_data
from pipeline.files.writing import write_atomically

if TYPE_CHECKING:
    from pipeline.export.small_video import SmallVideo

PAGE = "report_page"
"""Folder of the page's template, style and scripts."""

SCRIPTS = ("scene.js", "charts.js", "viewer.js")
"""Scripts of the page, in the order in which they are put into it."""

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

LIMITS = (
    "Depth is inferred from a flat image, and hidden limbs are guesses.",
    "The path along the floor is a guess: a small person nearby looks like a tall one far away.",
    "Feet, hands and the twist of limbs are not measured; the body is drawn around 17 points.",
    "All lengths follow from the height that was given or assumed.",
)


def write_report(
    motion: MotionData,
    path: Path,
    *,
    video: SmallVideo | None = None,
    files: Sequence[str] = (),
) -> list[Path]:
    """Write a motion as one page that needs no network and no other file; returns it in a list.

    Args:
        motion: The motion; in the world frame it stands upright.
        path: Path of the page, ending in .html.
        video: A video with one frame per frame of the motion, such as overlay.webm; without it
            the 2D joints are drawn.
        files: Names of files beside the page, which it links.

    Raises:
        StorageError: If the file cannot be written.
    """
    text = make_page(motion, video=video, files=files)
    write_atomically(path, lambda file: file.write(text.encode()))
    return [path]


def make_page(
    motion: MotionData,
    *,
    video: SmallVideo | None = None,
    files: Sequence[str] = (),
) -> str:
    """The text of the page; see `write_report`."""
    folder = resources.files(__package__) / PAGE
    style = (folder / "style.css").read_text(encoding="utf-8")
    script = "\n".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS)
    data = page_data(motion)
    if video is not None and len(motion):
        data["video"] = {"fps": video.fps, "frames": video.frames, "soft": video.is_soft}
    source = _mapping(motion.facts, "source")
    name = str(source.get("name") or "motion")
    usable, sentence = verdict(motion)
    slots = {
        "policy": _policy(style, script),
        "title": html.escape(f"{name}: motion"),
        "style": style,
        "source": html.escape(name),
        "verdict": html.escape(sentence),
        "alarms": _alarm(motion, usable, files),
        "facts": _facts(motion),
        "people": _people(motion),
        "bones": _bones(motion),
        "notes": _notes(motion),
        "files": _files(files),
        "origin": _origin(motion),
        "motion": _json(data),
        "video": base64.b64encode(video.data).decode() if video is not None else "",
        "script": script,
    }
    page = (folder / "page.html").read_text(encoding="utf-8")
    # one pass: what is put in is never read as a template again
    return re.sub(r"\{\{(\w+)\}\}", lambda slot: slots[slot[1]], page)


def verdict(motion: MotionData) -> tuple[list[str], str]:
    """What came out, for somebody who knows nothing about it.

    Returns:
        Ids of the people whose motion is usable, and a sentence.
    """
    people = motion.people
    usable = [p.id for p in people if is_usable(_quality(motion, p))]
    seconds = f"{_span(motion):.1f}\N{NO-BREAK SPACE}s"
    if not people:
        return usable, f"Nobody was found in {_count(len(motion), 'frame')}."
    follows = "was" if len(people) == 1 else "were"
    who = "One person" if len(people) == 1 else f"{_number(len(people)).capitalize()} people"
    parts = [f"{who} {follows} followed for {seconds}"]
    if not usable:
        return usable, f"{parts[0]}, but this is not usable motion."
    if len(usable) < len(people):
        bad = [p.id for p in people if p.id not in usable]
        parts.append(f"the motion of {_list(bad)} is not usable")
    guessed = sum(int((p.status == FILLED).sum() + unsure_frames(p).sum()) for p in people)
    there = sum(int(p.present.sum()) for p in people)
    if guessed == 0:
        parts.append("no frame is unsure")
    else:
        percent = f"{max(1, round(100 * guessed / max(there, 1)))}\N{NO-BREAK SPACE}%"
        parts.append(f"{percent} of the frames are unsure or filled in")
    return usable, "; ".join(parts) + "."


def _policy(style: str, script: str) -> str:
    """Content security policy: only this style and this script, nothing from anywhere else."""
    style_hash, script_hash = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (style, script)
    )
    return (
        f"default-src 'none'; style-src 'sha256-{style_hash}'; script-src 'sha256-{script_hash}'; "
        "media-src blob:; base-uri 'none'; form-action 'none'"
    )


def _json(data: Mapping[str, Any]) -> str:
    """JSON that can stand inside a script element, whatever its texts are."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _alarm(motion: MotionData, usable: Sequence[str], files: Sequence[str]) -> str:
    """The banner about people whose motion is not usable; empty if there are none."""
    place = "overlay.webm" if "overlay.webm" in files else "the 2D joints below"
    reasons = []
    for person in motion.people:
        quality, why = _quality(motion, person), []
        if person.id in usable:
            continue
        if quality.get("median_score", 1) < LOW_SCORE:
            why.append(f"the 2D joints are only {100 * quality['median_score']:.0f} % sure")
        before = "before smoothing " if "bone_variation_before" in quality else ""
        change = quality.get("bone_variation_before", quality.get("bone_variation", 0.0))
        if change > LOOSE_BONES:
            why.append(f"{before}the bones change their length by {100 * change:.0f} %")
        reasons.append(f"<small>{html.escape(f'{person.id}: {_list(why)}.')}</small>")
    if not reasons:
        return ""
    return (
        f'<div class="alarm" role="alert">This is not usable motion; look at {place}.'
        f"{''.join(reasons)}</div>"
    )


def _facts(motion: MotionData) -> str:
    """The line of facts under the verdict."""
    weights = _mapping(motion.facts, "weights")
    width, height = motion.size
    items = [
        (f"{_span(motion):.1f} s", f"in {_count(len(motion), 'frame')}"),
        (f"{motion.fps:.4g}", "frames per second"),
        (f"{width} \N{MULTIPLICATION SIGN} {height}", "pixels"),
    ]
    for key, label in (("estimator", "2D by"), ("lifter", "3D by")):
        name = _mapping(weights, key).get("class") or _mapping(weights, key).get("name")
        if name:
            items.append((str(name), label))
    return "".join(
        f"<li>{html.escape(label)} <b>{html.escape(value)}</b></li>"
        if label.endswith("by")
        else f"<li><b>{html.escape(value)}</b> {html.escape(label)}</li>"
        for value, label in items
    )


def _people(motion: MotionData) -> str:
    """The table of the people."""
    if not motion.people:
        return "<p>Nobody was found. Give boxes around the people, or lower the threshold.</p>"
    heads = "", "there", "filled in", "unsure", "2D joints", "height", "path on the floor", "speed"
    rows = [_row([*heads, "feet slide", "usable"], head=True)]
    for index, person in enumerate(motion.people):
        upright = person.positions.astype(np.float64) @ TO_UPRIGHT[motion.frame].T
        root = upright[:, motion.skeleton.root]
        speed = horizontal_speed(root, motion.times, person)
        slide = foot_slide(person, motion)
        usable = is_usable(_quality(motion, person))
        step = (
            np.where(np.isfinite(speed), speed, 0) * np.gradient(motion.times)
            if len(motion) > 1
            else np.zeros(1)
        )
        cells = [
            _badge(person, index),
            f"{_present_seconds(motion, person):.1f} s",
            _count(int((person.status == FILLED).sum()), "frame"),
            _count(int(unsure_frames(person).sum()), "frame"),
            f"{100 * person.mean_score:.0f} % sure",
            f"{person.height:.2f} m",
            f"{float(step.sum()):.1f} m",
            _speed_text(speed),
            "-" if slide is None else f"{100 * slide:.0f} cm",
            "yes" if usable else "no",
        ]
        rows.append(_row(cells, bad=not usable))
    table = f"<table>{''.join(rows)}</table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="People">{table}</div>'


def _row(cells: Sequence[str], *, head: bool = False, bad: bool = False) -> str:
    """A row of a table of cells that are HTML already."""
    if head:
        return f"<thead><tr>{''.join(f'<th scope=col>{cell}</th>' for cell in cells)}</tr></thead>"
    last = f'<td class="bad">{cells[-1]}</td>' if bad else f"<td>{cells[-1]}</td>"
    middle = "".join(f"<td>{cell}</td>" for cell in cells[1:-1])
    return f"<tr><th scope=row>{cells[0]}</th>{middle}{last}</tr>"


def _badge(person: PersonMotion, index: int) -> str:
    return f'<span class="badge" data-person="{index}">{html.escape(person.id)}</span>'


def _speed_text(speed: NDArray[np.float64]) -> str:
    known = speed[np.isfinite(speed)]
    if not known.size:
        return "-"
    return f"{known.mean():.1f} m/s, at most {np.quantile(known, 0.99):.1f}"


def _bones(motion: MotionData) -> str:
    """Bars of the lengths of the bones of each person."""
    figures = []
    for index, person in enumerate(motion.people):
        bones = measure_bones(person.joints3d, motion.skeleton)
        colour = "#{:02x}{:02x}{:02x}".format(*PERSON_COLOURS[index % len(PERSON_COLOURS)])
        rows = [
            f"<tr><th scope=row>{html.escape(bone.name)}</th><td>"
            '<svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
            f'<rect width="{min(100, 150 * bone.length):.1f}" height="10" rx="1" fill="{colour}"/>'
            f"</svg></td><td>{100 * bone.length:.0f} cm ± {100 * bone.change:.0f} %</td></tr>"
            for bone in bones
        ]
        head = f"<figcaption>{_badge(person, index)}</figcaption>"
        figures.append(f"<figure>{head}<table>{''.join(rows)}</table></figure>")
    return "".join(figures)


def _notes(motion: MotionData) -> str:
    """Assumptions, warnings and limits."""
    parts = [
        ("Assumed", _texts(motion.facts.get("assumptions"))),
        ("Warnings", _texts(motion.facts.get("warnings"))),
        ("Limits", list(LIMITS)),
    ]
    found = []
    for title, texts in parts:
        items = "".join(f"<li>{html.escape(text)}</li>" for text in texts)
        if items:
            found.append(f"<section><h2>{title}</h2><ul>{items}</ul></section>")
    return "".join(found)


def _files(files: Sequence[str]) -> str:
    """Links to the files beside the page; none of them can lead anywhere else."""
    if not files:
        return ""
    items = "".join(
        f'<li><a href="./{quote(name, safe="")}" download>{html.escape(name)}</a></li>'
        for name in files
    )
    return f'<section class="wide"><h2>Files</h2><ul class="files">{items}</ul></section>'


def _origin(motion: MotionData) -> str:
    """Command, source, networks and versions."""
    facts = motion.facts
    command = facts.get("command")
    parts = [f"<pre>{html.escape(str(command))}</pre>"] if command else []
    weights = _mapping(facts, "weights")
    groups: list[tuple[str, Any]] = [("Source", facts.get("source"))]
    groups += [(f"Network: {name}", weights[name]) for name in weights]
    groups += [
        (title, facts.get(key))
        for title, key in (("Smoothing", "smoothing"), ("Versions", "versions"))
    ]
    for title, content in groups:
        if isinstance(content, Mapping) and content:
            rows = "".join(
                f"<dt>{html.escape(str(key).replace('_', ' '))}</dt>"
                f"<dd>{html.escape(str(value))}</dd>"
                for key, value in content.items()
            )
            parts.append(
                f"<details><summary>{html.escape(title)}</summary><dl>{rows}</dl></details>"
            )
    return "".join(parts) or "<p>Nothing is known about it.</p>"


def _mapping(facts: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A group of facts; empty if there is none."""
    found = facts.get(key)
    return found if isinstance(found, Mapping) else {}


def _quality(motion: MotionData, person: PersonMotion) -> dict[str, float]:
    """Numbers about the quality of a person; other values, in files of strangers, are left out."""
    found = _mapping(_mapping(motion.facts, "quality"), person.id)
    return {key: x for key, x in found.items() if isinstance(x, int | float) and np.isfinite(x)}


def _texts(values: object) -> list[str]:
    return [str(value) for value in values] if isinstance(values, list | tuple) else []


def _span(motion: MotionData) -> float:
    """Length of the motion, seconds."""
    return float(motion.times[-1] - motion.times[0]) if len(motion) else 0.0


def _present_seconds(motion: MotionData, person: PersonMotion) -> float:
    return float(sum(motion.times[last] - motion.times[first] for first, last in person.spans))


def _number(count: int) -> str:
    return NUMBERS[count] if count < len(NUMBERS) else str(count)


def _count(count: int, noun: str) -> str:
    """A number with its noun.

    >>> _count(1, "frame"), _count(0, "frame")
    ('1 frame', '0 frames')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _list(names: Iterable[str]) -> str:
    """Names in a sentence.

    >>> _list(["A", "B", "C"])
    'A, B and C'
    """
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
