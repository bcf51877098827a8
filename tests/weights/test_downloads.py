"""Downloads from a local server that drops, stalls, redirects, lies and serves other bytes."""

from __future__ import annotations

import fcntl
import hashlib
import http.server
import resource
import threading

import numpy as np
import pytest

from pipeline.errors import DataError, StorageError
from pipeline.weights.downloads import MAX_REDIRECTS, download

CONTENT = np.random.default_rng(7).bytes(300_007)
SIZE = len(CONTENT)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers each request by the next step of the test, and at the end honestly."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Range")))
        step = self.server.steps.pop(0) if self.server.steps else honest
        try:
            step(self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def answer(self, status, content=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(content)

    def start(self):
        """First byte that was asked for."""
        return int((self.headers.get("Range") or "bytes=0-")[len("bytes=") : -1])

    def log_message(self, *_):
        """Nothing: the test has its own record."""


def part(handler, content=CONTENT, begin=None, total=SIZE):
    begin = handler.start() if begin is None else begin
    rest = content[begin:]
    span = f"bytes {begin}-{len(content) - 1}/{total}"
    handler.answer(206, rest, Content_Length=len(rest), Content_Range=span)


def honest(handler):
    if handler.start():
        part(handler)
    else:
        handler.answer(200, CONTENT, Content_Length=len(CONTENT))


def without_ranges(handler):
    handler.answer(200, CONTENT, Content_Length=len(CONTENT))


def drops_at(count):
    """Claims all that was asked for and closes after some bytes."""

    def step(handler):
        begin = handler.start()
        span = f"bytes {begin}-{len(CONTENT) - 1}/{len(CONTENT)}"
        headers = {"Content_Range": span} if begin else {}
        rest = CONTENT[begin:]
        handler.answer(206 if begin else 200, rest[:count], Content_Length=len(rest), **headers)

    return step


def stalls_at(count):
    def step(handler):
        drops_at(count)(handler)
        handler.wfile.flush()
        handler.server.over.wait(20)

    return step


def other_rest(handler):
    part(handler, bytes(byte ^ 0x55 for byte in CONTENT))


def wrong_begin(handler):
    part(handler, begin=handler.start() - 5)


def redirects_to(place):
    return lambda handler: handler.answer(302, Location=place, Content_Length=0)


def answers(status, content=b"", **headers):
    return lambda handler: handler.answer(status, content, **headers)


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.steps, server.over = [], [], threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}/net.onnx"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


def get(server, path, *steps, url=None, size=SIZE, digest=DIGEST, timeout=20.0):
    server.steps[:] = steps
    download(url or server.url, path, size=size, digest=digest, timeout=timeout, pause=0.001)


def ranges(server):
    return [asked for _, asked in server.asked]


def unfinished(path):
    return [file.stat().st_size for file in path.parent.glob(".*.download")]


GOOD = {
    "honest": ([], [None]),
    "drops twice": ([drops_at(70_001), drops_at(90_002)], [None, "bytes=70001-", "bytes=160003-"]),
    "ignores ranges": ([drops_at(70_001), without_ranges], [None, "bytes=70001-"]),
    "busy": ([answers(503), answers(429)], [None, None, None]),
    "another part": ([drops_at(50_000), wrong_begin], [None, "bytes=50000-", None]),
    "other bytes on resume": ([drops_at(50_000), other_rest], [None, "bytes=50000-", None]),
    "no such range": ([drops_at(50_000), answers(416)], [None, "bytes=50000-", None]),
    "no length": ([answers(200, CONTENT)], [None]),
    "redirects": ([redirects_to("/a?b=c"), redirects_to("/net.onnx")], [None] * 3),
    "redirected resume": (
        [drops_at(50_000), redirects_to("/a")],
        [None, "bytes=50000-", "bytes=50000-"],
    ),
}


@pytest.mark.parametrize("case", GOOD)
def test_a_file_comes_whole_whatever_the_server_does_on_the_way(case, server, tmp_path):
    steps, asked = GOOD[case]
    get(server, tmp_path / "new" / "net.onnx", *steps)
    assert (tmp_path / "new" / "net.onnx").read_bytes() == CONTENT
    assert ranges(server) == asked
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["net.onnx"]


def test_a_stalled_server_is_left_and_the_download_resumed(server, tmp_path):
    get(server, tmp_path / "net.onnx", stalls_at(100_003), timeout=1.0)
    assert (tmp_path / "net.onnx").read_bytes() == CONTENT
    assert ranges(server)[1] == "bytes=100003-"


PAGE = b"\n<!DOCTYPE html><title>Sign in</title>"
BAD = {
    "missing": ([answers(404)], r"net.onnx: no such file \(HTTP 404\)"),
    "closed": ([answers(403)], r"is not open \(HTTP 403\)"),
    "busy": ([answers(503)] * 9, r"the server is busy or has an error \(HTTP 503\)"),
    "page": ([answers(200, PAGE, Content_Type="text/html")], "gives a web page instead"),
    "page without a type": ([answers(200, PAGE)], "gives a web page instead"),
    "page to a file": (
        [redirects_to("/login"), answers(200, PAGE, Content_Type="text/html; charset=utf-8")],
        "gives a web page instead",
    ),
    "longer": ([answers(200, CONTENT, Content_Length=300_008)], "has 300,008 bytes there"),
    "shorter": ([answers(200, CONTENT, Content_Length=99)], "has 99 bytes there, and .* 300,007"),
    "longer total": ([drops_at(9000), lambda h: part(h, total=300_009)], "has 300,009 bytes"),
    "more than the length": ([answers(200, CONTENT + b"more")], "sends more than the 300,007"),
    "other bytes": ([answers(200, CONTENT[::-1])], "is not the published file"),
    "no content": ([answers(204)], "answers with HTTP 204"),
    "always another part": ([drops_at(9000), wrong_begin] * 9, "sends other parts than"),
    "loop": ([redirects_to("/net.onnx")] * 99, "redirects more than 5 times, or to itself"),
    "chain": ([redirects_to(f"/{n}") for n in range(99)], "redirects more than 5 times"),
    "local file": ([redirects_to("file:///etc/passwd")], "to another place: file:.*no http"),
    "ftp": ([redirects_to("ftp://127.0.0.1/net.onnx")], "is no http or https address"),
    "data": ([redirects_to("data:,weights")], "is no http or https address"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_is_not_the_published_one_is_one_line_and_leaves_nothing(
    case, server, tmp_path
):
    steps, text = BAD[case]
    with pytest.raises(DataError, match=text) as error:
        get(server, tmp_path / "net.onnx", *steps)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "net.onnx").exists()
    assert len(server.asked) <= max(10, MAX_REDIRECTS + 1)
    assert unfinished(tmp_path / "net.onnx") in ([], [9000])


@pytest.mark.parametrize("step", [drops_at(0), stalls_at(0)])
def test_a_server_that_never_sends_is_given_up(step, server, tmp_path):
    with pytest.raises(DataError, match=r"the connection broke at byte 0|sent nothing for 0.1 s"):
        get(server, tmp_path / "net.onnx", *[step] * 9, timeout=0.1)
    assert len(server.asked) == 4
    assert not [*tmp_path.iterdir()]


def test_a_download_that_was_given_up_is_resumed_by_the_next_call(server, tmp_path):
    path = tmp_path / "net.onnx"
    with pytest.raises(DataError, match="100 kB of 300 kB are kept: run the command again"):
        get(server, path, drops_at(100_004), *[drops_at(0)] * 9)
    assert not path.exists()
    assert unfinished(path) == [100_004]
    server.asked.clear()
    get(server, path)
    assert ranges(server) == ["bytes=100004-"]
    assert path.read_bytes() == CONTENT
    assert not unfinished(path)


def test_a_damaged_unfinished_file_is_downloaded_again(server, tmp_path):
    (tmp_path / f".net.onnx.{DIGEST[:12]}.download").write_bytes(b"x" * 1000)
    get(server, tmp_path / "net.onnx")
    assert ranges(server) == ["bytes=1000-", None]
    assert (tmp_path / "net.onnx").read_bytes() == CONTENT


def test_an_older_file_stays_until_the_new_one_is_whole(server, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"older")
    with pytest.raises(DataError):
        get(server, path, answers(200, CONTENT[::-1]))
    assert path.read_bytes() == b"older"
    get(server, path)
    get(server, path)
    assert path.read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_a_full_disk_is_told_before_the_download_and_in_it(server, tmp_path):
    with pytest.raises(StorageError, match="disk full: needs 1e\\+06 TB"):
        get(server, tmp_path / "net.onnx", size=10**18)
    assert not server.asked
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"net.onnx: cannot be written"):
            get(server, tmp_path / "net.onnx")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [*tmp_path.iterdir()]


def test_two_processes_do_not_write_into_one_download(server, tmp_path):
    path = tmp_path / f".net.onnx.{DIGEST[:12]}.download"
    with path.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="another process downloads it"):
            get(server, tmp_path / "net.onnx")
    get(server, tmp_path / "net.onnx")


def test_the_proxy_of_the_environment_is_used(server, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url.removesuffix("/net.onnx"))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    get(server, tmp_path / "net.onnx", url="http://weights.invalid/net.onnx")
    assert server.asked == [("http://weights.invalid/net.onnx", None)]


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://a/b", "net.onnx", "http://", "//a/b"])
def test_only_http_addresses_are_opened(url, tmp_path):
    with pytest.raises(DataError, match="is no http or https address"):
        download(url, tmp_path / "net.onnx", size=5, digest=DIGEST)


def test_a_key_in_an_address_is_not_printed(server, tmp_path):
    with pytest.raises(DataError) as error:
        get(server, tmp_path / "net.onnx", answers(404), url=f"{server.url}?X-Key=abc")
    assert "abc" not in str(error.value)
