import base64
import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from some_motions import some_motion
from videos import write_mp4

from pipeline.dashboard.media import write_video
from pipeline.export.motion import SEEN, Motion
from pipeline.export.report import make_page, verdict, write_report
from pipeline.export.small_video import SmallVideo, shrink_video
from pipeline.skeleton import H36M17, Skeleton

EVIL = """"><script>alert(1)</script><img src=x onerror=alert(1)>'</script><!--{{motion}}&amp;"""
VOID = {"meta", "input", "br", "img", "link"}


class Reader(HTMLParser):
    """Elements of a page with their attributes, and the text of scripts and styles."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.raw, self.text, self.open = [], {}, [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        tag, attributes = self.open[-1] if self.open else ("", {})
        if tag in ("script", "style"):
            key = attributes.get("id", tag)
            self.raw[key] = self.raw.get(key, "") + data
        elif data.strip():
            self.text.append(" ".join(data.split()))

    def count(self, tag):
        return sum(name == tag for name, _ in self.elements)


def data_of(page):
    return json.loads(Reader(page).raw["motion"])


def decode(text, kind):
    return np.frombuffer(base64.b64decode(text), kind)


def positions_of(data, person):
    """Joints of a person in the page's data, metres, (T, J, 3)."""
    T, J = data["frames"], len(data["joints"])
    joints3d = decode(person["joints3d"], "<i2").astype(float).reshape(T, J, 3)
    root = decode(person["root"], "<i4").astype(float).reshape(T, 1, 3)
    joints3d[joints3d == -(2**15)] = np.nan
    root[root == -(2**31)] = np.nan
    return (joints3d + root) / 1000


@pytest.mark.parametrize("frame", ["camera", "world"])
def test_the_data_of_the_page_is_the_motion_to_a_millimetre(frame):
    motion = some_motion(frame=frame)
    data = data_of(make_page(motion))
    assert decode(data["times"], "<f8") == pytest.approx(motion.times)
    for person, entry in zip(motion.people, data["people"], strict=True):
        found = positions_of(data, entry)
        assert np.array_equal(np.isnan(found), np.isnan(person.positions))
        assert np.nanmax(np.abs(found - person.positions)) <= 0.00101
        joints2d = decode(entry["joints2d"], "<i2").astype(float) * data["step2d"]
        known = np.isfinite(person.joints2d.ravel())
        assert joints2d[known] == pytest.approx(person.joints2d.ravel()[known], abs=0.03)
        assert decode(entry["status"], "u1").tolist() == person.status.tolist()
        assert decode(entry["score"], "u1") / 255 == pytest.approx(person.score.ravel(), abs=0.003)


def test_the_view_of_a_level_camera_has_its_up_direction():
    upright = np.array(data_of(make_page(some_motion(frame="camera")))["upright"])
    assert (upright @ [0, -1, 0]).tolist() == [0, 0, 1]  # up
    assert (upright @ [0, 0, 1]).tolist() == [0, 1, 0]  # ahead
    assert np.linalg.det(upright) == pytest.approx(1)


def test_text_from_data_is_never_markup():
    skeleton = Skeleton(EVIL, ("root", f"left_{EVIL}", f"right_{EVIL}"), (-1, 0, 0))
    facts = {
        "source": {"name": EVIL, EVIL: EVIL},
        "command": EVIL,
        "assumptions": [EVIL],
        "warnings": [EVIL],
        "weights": {EVIL: {EVIL: EVIL}, "estimator": {"name": EVIL}, "lifter": {"class": EVIL}},
        "versions": {EVIL: EVIL},
        "quality": {EVIL: {"median_score": 0.1, "bone_variation_before": EVIL}},
    }
    page = make_page(some_motion((EVIL, "B"), skeleton=skeleton, **facts), files=[EVIL])
    plain = make_page(some_motion(("C", "B"), skeleton=H36M17, source={"name": "a"}))
    evil, harmless = Reader(page), Reader(plain)
    assert evil.count("script") == harmless.count("script") == 3
    assert evil.count("img") == 0
    for _, attributes in evil.elements:
        assert not [name for name in attributes if name.startswith("on")]
    assert not evil.open  # every element is closed by its own tag
    assert EVIL in data_of(page)["people"][0]["id"]
    assert any(EVIL in text for text in evil.text)


@pytest.mark.parametrize(
    "name", ["javascript:alert(1)", "//evil.example/x", "../../secret", 'a" b.npz', "a?b#c.npz"]
)
def test_links_lead_to_files_beside_the_page_alone(name):
    reader = Reader(make_page(some_motion(), files=[name]))
    (link,) = [attributes["href"] for tag, attributes in reader.elements if tag == "a"]
    assert re.fullmatch(r"\./[\w%.~-]+", link)
    assert name in reader.text


def test_the_page_needs_nothing_from_anywhere():
    page = make_page(some_motion(), video=SmallVideo(b"x", 25.0, 12, False), files=["motion.npz"])
    reader = Reader(page)
    assert not re.search(r"(https?:)?//\w", page.replace(reader.raw["motion"], ""))
    assert not re.search(
        r"@import|url\(|\bimport\b\s*[({'\"]|fetch\(|XMLHttpRequest|WebSocket", page
    )
    assert {tag for tag, _ in reader.elements} & {
        "link",
        "img",
        "iframe",
        "object",
        "form",
    } == set()
    assert all("src" not in attributes for _, attributes in reader.elements)


def test_only_the_style_and_the_script_of_the_page_are_allowed_by_its_policy():
    page = make_page(some_motion())
    reader = Reader(page)
    (policy,) = [a["content"] for tag, a in reader.elements if a.get("http-equiv")]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    for kind in ("style", "script"):
        digest = hashlib.sha256(reader.raw[kind].encode()).digest()
        assert f"{kind}-src 'sha256-{base64.b64encode(digest).decode()}'" in policy
    assert all("style" not in attributes for _, attributes in reader.elements)


def test_every_button_and_image_has_a_name():
    reader = Reader(make_page(some_motion()))
    for tag, attributes in reader.elements:
        if tag in ("canvas", "video", "input") or attributes.get("role") in (
            "img",
            "group",
            "region",
        ):
            assert attributes.get("aria-label"), (tag, attributes)
    page = make_page(some_motion())
    for attributes, content in re.findall(r"<button([^>]*)>(.*?)</button>", page, re.S):
        assert "aria-label" in attributes or re.sub(r"<.*?>", "", content).strip()
    assert '<html lang="en">' in page


GOOD = {"median_score": 0.9, "bone_variation_before": 0.1}
LOW = {"median_score": 0.3, "bone_variation_before": 0.1}
LOOSE = {"median_score": 0.9, "bone_variation_before": 0.27}


@pytest.mark.parametrize(
    ("quality", "usable", "sentence"),
    [
        ({"A": GOOD}, ["A"], "One person was followed for 0.4 s; 9 % of the frames are unsure or "),
        ({"A": GOOD, "B": GOOD}, ["A", "B"], "Two people were followed for 0.4 s; 9 % of the "),
        ({"A": GOOD, "B": LOW}, ["A"], "Two people were followed for 0.4 s; the motion of B is "),
        ({"A": LOOSE, "B": LOW}, [], "Two people were followed for 0.4 s, but this is not usable"),
        ({}, [], "Nobody was found in 12 frames."),
    ],
)
def test_the_verdict_is_a_sentence(quality, usable, sentence):
    motion = some_motion(tuple(quality), quality=quality)
    assert verdict(motion)[0] == usable
    assert verdict(motion)[1].replace("\N{NO-BREAK SPACE}", " ").startswith(sentence)


def test_a_motion_without_gaps_has_no_unsure_frame():
    motion = some_motion(("A",))
    motion.people[0].status[:] = SEEN
    motion.people[0].score[:] = 0.9
    assert verdict(motion)[1].endswith("; no frame is unsure.")


def test_a_banner_tells_why_a_motion_is_not_usable_and_where_to_look():
    motion = some_motion(quality={"A": LOW, "B": LOOSE})
    text = " ".join(Reader(make_page(motion, files=["overlay.webm"])).text)
    assert "This is not usable motion; look at overlay.webm." in text
    assert "A: the 2D joints are only 30 % sure." in text
    assert "B: before smoothing the bones change their length by 27 %." in text
    assert "look at the 2D joints below" in make_page(motion)
    live = {"median_score": 0.9, "bone_variation": 0.31}  # bones are not held constant
    assert "A: the bones change their length by 31 %." in make_page(
        some_motion(quality={"A": live})
    )
    assert "not usable" not in make_page(some_motion(quality={"A": GOOD, "B": GOOD}))


def test_the_page_has_no_jargon():
    text = " ".join(Reader(make_page(some_motion(quality={"A": LOW}))).text)
    assert not re.search(r"MPJPE|PCK|keypoint|landmark", text, re.IGNORECASE)


def test_what_was_assumed_and_where_it_comes_from_are_on_the_page():
    facts = {
        "assumptions": ["height 1.70 m (--height)"],
        "warnings": ["the file states 144 frames; 100 can be decoded"],
        "command": "heatlift predict 'a b.mp4'",
        "weights": {"lifter": {"name": "best.ckpt", "digest": "0d1e2f", "licence": "Apache-2.0"}},
        "versions": {"torch": "2.13.0"},
    }
    text = Reader(make_page(some_motion(**facts), files=["motion.npz"])).text
    expected = [*facts["assumptions"], *facts["warnings"], facts["command"], "0d1e2f"]
    for part in [*expected, "Apache-2.0", "2.13.0", "motion.npz"]:
        assert part in text
    assert any("hidden limbs are guesses" in line for line in text)


@pytest.mark.parametrize("frames", [0, 1, 2])
@pytest.mark.parametrize("ids", [(), ("A",)])
def test_short_and_empty_motions_have_a_page(frames, ids):
    motion = some_motion(ids, frames=12)
    people = tuple(
        dataclasses.replace(
            person,
            **{
                name: getattr(person, name)[:frames]
                for name in ("joints3d", "root", "joints2d", "score", "status")
            },
        )
        for person in motion.people
    )
    page = make_page(dataclasses.replace(motion, people=people, times=motion.times[:frames]))
    assert data_of(page)["frames"] == frames


def test_facts_of_a_stranger_with_other_types_do_not_stop_the_page():
    facts = {"quality": {"A": {"median_score": "x"}}, "source": 3, "weights": [1], "warnings": 5}
    assert "Two people" in make_page(some_motion(**facts))


def test_a_motion_is_saved_as_a_page(tmp_path):
    motion = some_motion()
    assert motion.save(tmp_path / "x.html") == [tmp_path / "x.html"]
    assert data_of((tmp_path / "x.html").read_text())["video"] is None


def test_a_minute_of_two_people_is_less_than_a_megabyte_and_a_half_beside_the_video():
    motion = some_motion(frames=1800)
    assert len(make_page(motion).encode()) < 1_500_000


def noise_video(path, frames=5, size=(288, 512)):
    generator = np.random.default_rng(3)
    images = (generator.integers(0, 255, (*size, 3)).astype(np.uint8) for _ in range(frames))
    write_video(path, images, 25.0)
    return path.stat().st_size


def test_a_small_video_is_taken_as_it_is(tmp_path):
    noise_video(tmp_path / "a.webm", 3)
    video = shrink_video(tmp_path / "a.webm", 25.0, 3)
    assert video == SmallVideo((tmp_path / "a.webm").read_bytes(), 25.0, 3, False)


def test_a_large_video_is_made_smaller_with_the_same_frames(tmp_path):
    size = noise_video(tmp_path / "a.webm")
    video = shrink_video(tmp_path / "a.webm", 25.0, 5, largest=round(0.6 * size))
    assert len(video.data) <= 0.6 * size
    assert video.frames == 5
    (tmp_path / "b.webm").write_bytes(video.data)
    capture = cv2.VideoCapture(str(tmp_path / "b.webm"))
    count = sum(1 for _ in iter(lambda: capture.read()[0], False))
    assert (count, capture.get(cv2.CAP_PROP_FPS)) == (5, 25)


def test_a_video_that_would_be_tiny_is_left_out(tmp_path):
    size = noise_video(tmp_path / "a.webm", 4)
    assert shrink_video(tmp_path / "a.webm", 25.0, 4, largest=size // 20) is None


def test_the_video_is_in_the_page(tmp_path):
    write_report(some_motion(), tmp_path / "r.html", video=SmallVideo(b"\x1a\x45", 25.0, 12, True))
    reader = Reader((tmp_path / "r.html").read_text())
    assert base64.b64decode(reader.raw["video-data"]) == b"\x1a\x45"
    assert data_of((tmp_path / "r.html").read_text())["video"] == {
        "fps": 25.0, "frames": 12, "soft": True,
    }  # fmt: skip


def test_the_command_writes_the_report_after_the_videos_and_lists_it(tmp_path, monkeypatch, capsys):
    from pipeline.cli import predict
    from pipeline.predict import heatlift

    motion = some_motion(frame="camera", quality={"A": GOOD, "B": GOOD}, weights={})
    fake = SimpleNamespace(predict=lambda text, stop, **flags: motion)
    monkeypatch.setattr(heatlift.Heatlift, "load", lambda *a, **k: fake)
    clip = write_mp4(tmp_path / "clip.mp4", 3)
    predict.run([str(clip), "-o", str(tmp_path / "out"), "--no_video", "--height", "1.8"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"motion.npz", "report.html"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert Motion.load(tmp_path / "out" / "motion.npz").frame == "camera"
    assert np.array(data_of(page)["upright"]).tolist() == np.eye(3).tolist()  # it stands upright
    printed = capsys.readouterr().out
    last = printed.splitlines()[-1].split()
    assert last == [str(tmp_path / "out" / "motion.npz"), "report.html"]
    predict.run([str(clip), "-o", str(tmp_path / "no"), "--no_video", "--no_report"])
    assert [path.name for path in (tmp_path / "no").iterdir()] == ["motion.npz"]
