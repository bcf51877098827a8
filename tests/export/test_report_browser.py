"""report.html in a real browser; skipped where playwright or a Chromium is missing."""

import dataclasses
import functools
import shutil

import numpy as np
import pytest
from some_motions import some_motion

from pipeline.dashboard.media import write_video
from pipeline.export.motion import MISSING
from pipeline.export.report import write_report
from pipeline.export.small_video import SmallVideo, shrink_video

FRAMES, FPS = 50, 25.0


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("there is no Chromium on the PATH")
    with sync_api.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


def grey_level(index):
    return 30 + 4 * index


@functools.cache
def numbered_video(folder):
    """A video whose frames have the grey level of their number."""
    frames = (np.full((96, 128, 3), grey_level(i), np.uint8) for i in range(FRAMES))
    write_video(folder / "v.webm", frames, FPS)
    return shrink_video(folder / "v.webm", FPS, FRAMES)


def moving_motion(**changes):
    """Two people who are there in every frame but one, and who walk."""
    motion = some_motion(frames=FRAMES)
    for number, person in enumerate(motion.people):
        person.joints3d[:] = person.joints3d[0]
        person.root[:] = (0, 5, 1)
        person.root[:, 0] = np.linspace(0, 2, FRAMES) + number
        person.status[5] = 1
        missing = person.status == MISSING
        person.joints3d[missing], person.root[missing] = np.nan, np.nan
    return dataclasses.replace(motion, **changes)


@pytest.fixture
def open_page(browser, tmp_path, tmp_path_factory):
    """Open a report without a network; returns its tab and the errors that it logs."""
    contexts = []

    def open_report(motion=None, *, video=True, **options):
        chosen = numbered_video(tmp_path_factory.getbasetemp()) if video is True else video
        write_report(motion or moving_motion(), tmp_path / "report.html", video=chosen or None)
        options = {"viewport": {"width": 1200, "height": 800}, **options}
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        tab = context.new_page()
        errors = []
        tab.on("console", lambda line: errors.append(f"{line.type}: {line.text}"))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on(
            "request", lambda request: errors.append(request.url) if "http" in request.url else 0
        )
        tab.goto((tmp_path / "report.html").as_uri())
        if chosen:
            wait_until(tab, "document.body.dataset.video")
        wait_until(tab, "document.body.dataset.frame === '0'")
        return tab, errors

    yield open_report
    for context in contexts:
        context.close()


def wait_until(tab, expression):
    """Wait until an expression is true; playwright's own function needs eval, which is off."""
    for _ in range(600):
        if tab.evaluate(expression):
            return
        tab.wait_for_timeout(50)
    raise AssertionError(f"{expression} was not true within 30 s")


def on_network(request):
    return not request.url.startswith(("file:", "blob:", "data:"))


def frame_of(tab):
    return int(tab.evaluate("document.body.dataset.frame"))


def wait_for_frame(tab, frame):
    wait_until(tab, f"document.body.dataset.frame === '{frame}'")


def frame_in_video(tab):
    """Number of the frame that the video shows, from its grey level; VP8 makes it 2 or 3 darker."""
    grey = tab.evaluate("""() => {
        const canvas = document.createElement("canvas"), video = document.getElementById("video");
        canvas.width = 8; canvas.height = 8;
        const context = canvas.getContext("2d");
        context.drawImage(video, 0, 0, 8, 8);
        return context.getImageData(4, 4, 1, 1).data[0];
    }""")
    return round((grey + 2 - grey_level(0)) / 4)


def scrub(tab, frame):
    tab.evaluate(f"document.getElementById('scrubber').value = {frame}")
    tab.dispatch_event("#scrubber", "input")


def look_at(tab):
    """The image of the 3D view."""
    tab.wait_for_timeout(100)
    return tab.evaluate("document.getElementById('scene').toDataURL()")


def test_it_opens_from_a_file_without_a_network_and_without_errors(open_page):
    tab, errors = open_page()
    assert tab.evaluate("document.body.dataset.video") == "ready"
    assert tab.locator("h1").inner_text().startswith("Two people were followed")
    assert errors == []


def test_play_advances_and_space_stops(open_page):
    tab, errors = open_page()
    tab.click("[data-speed='0.25']")
    tab.click("#play")
    wait_until(tab, "Number(document.body.dataset.frame) > 8")
    assert tab.get_attribute("#play", "aria-label") == "Pause"
    tab.locator("#scene").focus()
    tab.keyboard.press(" ")
    wait_until(tab, "document.getElementById('video').paused")
    stopped = frame_of(tab)
    tab.wait_for_timeout(200)
    assert frame_of(tab) == stopped
    assert errors == []


def test_play_ends_at_the_last_frame_and_starts_again(open_page):
    tab, _ = open_page()
    scrub(tab, FRAMES - 4)
    wait_for_frame(tab, FRAMES - 4)
    tab.click("#play")
    wait_for_frame(tab, FRAMES - 1)
    wait_until(tab, "!document.body.classList.contains('playing')")
    tab.click("[data-speed='0.1']")
    tab.click("#play")
    wait_until(tab, "Number(document.body.dataset.frame) < 20")


def test_video_and_3d_show_the_same_frame_after_scrubbing(open_page):
    tab, _ = open_page()
    for frame in (31, 7, 49, 8, 0):
        scrub(tab, frame)
        wait_for_frame(tab, frame)
        assert frame_in_video(tab) == frame
        assert tab.evaluate("document.getElementById('scrubber').value") == str(frame)


@pytest.mark.slow
def test_video_and_3d_show_the_same_frame_when_playing_stops(open_page):
    tab, _ = open_page()
    tab.click("[data-speed='0.5']")
    for least in (5, 15, 30):
        tab.click("#play")
        wait_until(tab, f"Number(document.body.dataset.frame) >= {least}")
        tab.click("#play")
        wait_until(tab, "!document.body.classList.contains('playing')")
        tab.wait_for_timeout(300)
        assert frame_in_video(tab) == frame_of(tab)


@pytest.mark.slow
def test_uneven_times_are_played_in_step(open_page):
    times = np.arange(FRAMES) / FPS
    times[20:] += 0.7  # the camera paused
    motion = moving_motion(times=times, fps=(FRAMES - 1) / times[-1])
    tab, errors = open_page(motion)
    tab.click("[data-speed='0.5']")
    tab.click("#play")
    wait_until(tab, "Number(document.body.dataset.frame) > 24")
    tab.keyboard.press("Home")
    wait_for_frame(tab, 0)
    tab.keyboard.press("ArrowRight")
    wait_for_frame(tab, 1)
    assert "0.04 s" in tab.inner_text("#clock")
    scrub(tab, 20)
    wait_for_frame(tab, 20)
    assert "1.50 s" in tab.inner_text("#clock")
    assert errors == []


def test_keys_go_frame_by_frame_and_to_the_ends(open_page):
    tab, _ = open_page()
    expected = 0
    for key, frame in [("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 49),
                       ("ArrowRight", 49), ("ArrowLeft", 48), ("Home", 0)]:  # fmt: skip
        tab.keyboard.press(key)
        wait_for_frame(tab, frame)
        expected = frame
    for _ in range(5):  # faster than the video seeks
        tab.keyboard.press("ArrowRight")
    wait_for_frame(tab, expected + 5)


def test_drag_turns_wheel_zooms_and_buttons_choose_the_view(open_page):
    tab, _ = open_page(reduced_motion="reduce")
    box = tab.locator("#scene").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    seen = [look_at(tab)]
    tab.mouse.move(x, y)
    tab.mouse.down()
    tab.mouse.move(x + 120, y + 30, steps=4)
    tab.mouse.up()
    assert float(tab.evaluate("document.body.dataset.azimuth")) != pytest.approx(-0.55, abs=0.2)
    seen.append(look_at(tab))
    tab.mouse.wheel(0, -200)
    wait_until(tab, "Number(document.body.dataset.zoom) < 0.95")
    seen.append(look_at(tab))
    for name in ("front", "side", "top"):
        tab.click(f"[data-view='{name}']")
        assert tab.get_attribute(f"[data-view='{name}']", "aria-pressed") == "true"
        seen.append(look_at(tab))
    assert len(set(seen)) == len(seen)


def test_a_click_on_a_timeline_seeks(open_page):
    tab, _ = open_page()
    canvas = tab.locator("#timelines canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    tab.mouse.click(box["x"] + 6 + 0.5 * (box["width"] - 12), box["y"] + 20)
    wait_until(tab, "Math.abs(Number(document.body.dataset.frame) - 24.5) < 1")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_horizontal_scrolling(open_page, scheme):
    phone = {"width": 390, "height": 844}
    tab, errors = open_page(viewport=phone, color_scheme=scheme, has_touch=True)
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    tab.locator("#play").tap()
    wait_until(tab, "Number(document.body.dataset.frame) > 3")
    assert errors == []


def test_without_a_video_the_2d_joints_are_drawn_and_everything_else_works(open_page):
    tab, errors = open_page(video=None)
    assert tab.locator("#drawing").is_visible()
    assert not tab.locator("#video").is_visible()
    first = tab.evaluate("document.getElementById('drawing').toDataURL()")
    tab.click("#play")
    wait_until(tab, "Number(document.body.dataset.frame) > 8")
    assert tab.evaluate("document.getElementById('drawing').toDataURL()") != first
    assert errors == []


def test_a_video_that_cannot_be_played_is_replaced_by_the_drawing(open_page):
    tab, _ = open_page(video=SmallVideo(b"no video", FPS, FRAMES, False))
    wait_until(tab, "document.body.dataset.video === 'failed'")
    assert tab.locator("#drawing").is_visible()
    tab.keyboard.press("End")
    wait_for_frame(tab, FRAMES - 1)


@pytest.mark.parametrize("frames", [0, 1])
def test_nobody_and_a_single_frame_are_shown_without_errors(open_page, frames):
    empty = some_motion((), frames=max(frames, 1))
    empty = dataclasses.replace(empty, times=empty.times[:frames])
    tab, errors = open_page(empty, video=None)
    tab.keyboard.press("ArrowRight")
    tab.click("#play")
    assert errors == []


def test_a_script_in_a_name_does_not_run(open_page):
    evil = '<img src=x onerror="document.title=1"><script>document.title=1</script>'
    motion = some_motion((evil, "B"), frames=FRAMES, source={"name": evil}, command=evil)
    tab, errors = open_page(motion, video=None)
    tab.wait_for_timeout(100)
    assert tab.title() == f"{evil}: motion"
    assert errors == []


def test_the_3d_view_shows_both_people_in_their_colours(open_page):
    tab, _ = open_page()
    count = """(colour) => {
        const canvas = document.getElementById("scene"), c = canvas.getContext("2d");
        const data = c.getImageData(0, 0, canvas.width, canvas.height).data;
        let found = 0;
        for (let i = 0; i < data.length; i += 4)
            if (colour.every((x, k) => Math.abs(data[i + k] - x) < 12)) found++;
        return found;
    }"""
    tab.wait_for_timeout(100)
    for colour in ([213, 94, 0], [0, 114, 178]):
        assert tab.evaluate(count, colour) > 100
