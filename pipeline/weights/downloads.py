"""Downloads by URL: resumed, checked by size and SHA-256, under their name only when whole."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any

from pipeline.errors import DataError, StorageError
from pipeline.files.digests import file_digest
from pipeline.files.writing import flush_path, format_bytes, storage_errors
from pipeline.training.console import count_progress, print_status

TIMEOUT = 30.0
"""Seconds without `SLOWEST` bytes after which a server counts as stalled."""

SLOWEST = 16 * 2**10
"""Bytes that a server must send within the timeout."""

ATTEMPTS = 4
"""Attempts in turn that bring nothing new before a download is given up."""

MAX_REDIRECTS = 5

_CHUNK = 2**18
_MIN_GAIN = 100  # an attempt counts as progress if it brings 1/100 of the file
_RETRIED = {408, 425, 429, 500, 502, 503, 504}
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)").fullmatch


class _InterruptedError(Exception):
    """A connection that broke or stalled, or a busy server; another attempt may help."""


class _RestartError(Exception):
    """The server cannot go on where the file ends; it is downloaded from its first byte."""


@dataclass(frozen=True)
class _Source:
    """What is downloaded.

    Args:
        url: Address.
        size: Size in bytes.
        timeout: Seconds; see `TIMEOUT`.
        pause: Seconds before the second attempt; doubled with each one.
    """

    url: str
    size: int
    timeout: float
    pause: float

    @property
    def shown(self) -> str:
        """The address for messages, without a query: it may have a key in it."""
        return self.url.partition("?")[0]


def download(
    url: str, path: Path, *, size: int, digest: str, timeout: float = TIMEOUT, pause: float = 1.0
) -> None:
    """Download a file that is known by its size and SHA-256.

    The unfinished file is hidden beside `path`, and kept if the connection breaks for good or the
    user stops: the next call resumes it. It is removed if its content is wrong or the disk is full.
    Proxies are taken from the environment (`https_proxy`, `no_proxy`).

    Args:
        url: Address, http or https; so must be the addresses that it redirects to.
        path: Where the file is written; a file with this digest is left as it is.
        size: Size, bytes.
        digest: SHA-256.
        timeout: Seconds; see `TIMEOUT`.
        pause: Seconds before the second attempt; doubled with each one.

    Raises:
        DataError: If the server cannot be reached, stalls, does not have the file, or has another.
        StorageError: If the file cannot be written, or another process downloads it.
    """
    source = _Source(url, size, timeout, pause)
    _check_address(url, source.shown)
    if path.is_file() and file_digest(path) == digest:
        return
    part = path.with_name(f".{path.name}.{digest[:12]}.download")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(part) as file:
            try:
                _check_space(part, size - os.fstat(file.fileno()).st_size)
                _fill_whole(source, part, file, digest)
            except BaseException as error:
                if isinstance(error, OSError) or not os.fstat(file.fileno()).st_size:
                    part.unlink(missing_ok=True)
                raise
            flush_path(part)
            part.replace(path)
        flush_path(path.parent)


@contextlib.contextmanager
def _locked(part: Path) -> Iterator[IO[bytes]]:
    """An unfinished file, opened for this process alone; a lock of the kernel ends with it."""
    with part.open("ab", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            same = part.exists() and os.path.samestat(os.fstat(file.fileno()), part.stat())
        except BlockingIOError:
            same = False
        if not same:
            raise StorageError(f"{part}: another process downloads it; wait until it is done")
        yield file


def _check_space(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise StorageError(
            f"{part.parent}: disk full: needs {format_bytes(needed)}, {format_bytes(free)} free; "
            "free disk space or choose another folder"
        )


def _fill_whole(source: _Source, part: Path, file: IO[bytes], digest: str) -> None:
    """Download until the file is whole; a resumed file with a wrong digest starts again once."""
    if os.fstat(file.fileno()).st_size > source.size:
        file.truncate(0)
    pieces = _fill(source, file)
    if file_digest(part) != digest and pieces > 1:
        print_status(f"{source.shown}: its parts do not fit together; downloaded again")
        file.truncate(0)
        pieces = _fill(source, file)
    if (found := file_digest(part)) != digest:
        part.unlink(missing_ok=True)
        raise DataError(
            f"{source.shown}: is not the published file (SHA-256 {found[:12]}… instead of "
            f"{digest[:12]}…); nothing is kept"
        )


def _fill(source: _Source, file: IO[bytes]) -> int:
    """Download what is missing of a file, in several attempts.

    Returns:
        Number of pieces that the file is made of: parts of an earlier call, and attempts.
    """
    have = os.fstat(file.fileno()).st_size
    pieces, failures, restarts = int(have > 0), 0, 0
    name = source.shown.rpartition("/")[2]
    with count_progress(name, source.size, "bytes") as advance:
        if have:
            advance(have)
        while have < source.size:
            pieces += 1
            try:
                _continue(source, file, have, advance)
            except _RestartError:
                restarts += 1
                if restarts == ATTEMPTS:
                    raise DataError(
                        f"{source.shown}: the server sends other parts than it is asked for; "
                        "fetch the file in another way"
                    ) from None
                file.truncate(0)
                pieces = 0
            except _InterruptedError as error:
                gained = os.fstat(file.fileno()).st_size - have
                failures = 1 if gained * _MIN_GAIN >= source.size else failures + 1
                if failures == ATTEMPTS:
                    raise DataError(_explain_loss(source, file, error)) from error
                time.sleep(source.pause * 2 ** (failures - 1))
            have = os.fstat(file.fileno()).st_size
    return pieces


def _explain_loss(source: _Source, file: IO[bytes], error: Exception) -> str:
    have = os.fstat(file.fileno()).st_size
    kept = (
        f"; {format_bytes(have)} of {format_bytes(source.size)} are kept: run the command again "
        "to go on"
        if have
        else "; check the network and the proxy, and try again"
    )
    return f"{source.shown}: {error}{kept}"


def _continue(
    source: _Source, file: IO[bytes], have: int, advance: Callable[[int], object]
) -> None:
    """Ask for the rest of a file and append what comes."""
    with _opened(source, have) as response:
        _check_response(source, response, have)
        if response.status != HTTPStatus.PARTIAL_CONTENT and have:
            file.truncate(0)  # the server cannot resume, and sends the whole file
            have = 0
        for chunk in _chunks(source, response):
            if not have and chunk.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
                raise _web_page(source)
            have += len(chunk)
            if have > source.size:
                file.truncate(0)
                raise DataError(
                    f"{source.shown}: sends more than the {source.size:,} bytes of the published "
                    "file; it is another file"
                )
            rest = memoryview(chunk)
            while rest:
                rest = rest[file.write(rest) :]
            advance(len(chunk))
    if have < source.size:
        raise _InterruptedError(f"the connection broke at byte {have:,} of {source.size:,}")


def _chunks(source: _Source, response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Content of a response as it comes; errors of the connection become `_InterruptedError`."""
    last, count = time.monotonic(), 0
    stalled = f"the server sent nothing for {source.timeout:g} s"
    while True:
        try:
            chunk = response.read1(_CHUNK)
        except TimeoutError:
            raise _InterruptedError(stalled) from None
        except (OSError, http.client.HTTPException) as error:
            raise _InterruptedError(f"the connection broke ({_one_line(error)})") from None
        if not chunk:
            return
        yield chunk
        count += len(chunk)
        now = time.monotonic()
        if count >= SLOWEST:
            last, count = now, 0
        elif now - last > source.timeout:
            raise _InterruptedError(f"the server sent {count} bytes in {now - last:.0f} s")


@contextlib.contextmanager
def _opened(source: _Source, have: int) -> Iterator[http.client.HTTPResponse]:
    """The response of the server to a request for the rest of the file."""
    headers = {"User-Agent": "heatlift", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(source.url, headers=headers)
    opener = urllib.request.OpenerDirector()  # without the handlers of file: and ftp:
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    try:
        response = opener.open(request, timeout=source.timeout)
    except urllib.error.HTTPError as error:
        with error:
            raise _answer(source, error.code) from None
    except TimeoutError:
        raise _InterruptedError(f"no answer for {source.timeout:g} s") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise DataError(
                f"{source.shown}: its certificate is not valid here ({_one_line(reason)}); behind "
                "a proxy, set SSL_CERT_FILE to its certificates"
            ) from None
        if isinstance(reason, TimeoutError):
            raise _InterruptedError(f"no answer for {source.timeout:g} s") from None
        raise _InterruptedError(f"cannot be reached ({_one_line(reason)})") from None
    with response:
        yield response


def _answer(source: _Source, code: int) -> Exception:
    """The error for a status code of the server."""
    if code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return _RestartError()
    if code in _RETRIED:
        return _InterruptedError(f"the server is busy or has an error (HTTP {code})")
    if 300 <= code < 400:
        return DataError(f"{source.shown}: redirects more than {MAX_REDIRECTS} times, or to itself")
    reasons = {401: "needs an account", 403: "is not open", 404: "no such file", 410: "is gone"}
    return DataError(
        f"{source.shown}: {reasons.get(code, 'the server rejects the request')} (HTTP {code}); "
        "fetch the file in another way"
    )


def _check_response(source: _Source, response: http.client.HTTPResponse, have: int) -> None:
    """Raise if a response is not the file that was asked for, as far as its headers tell."""
    kind = response.headers.get_content_type() if response.headers.get("Content-Type") else ""
    if kind in ("text/html", "application/xhtml+xml"):
        raise _web_page(source)
    length = response.headers.get("Content-Length", "")
    if response.status == HTTPStatus.PARTIAL_CONTENT:
        found = _CONTENT_RANGE(response.headers.get("Content-Range", ""))
        if not found or int(found[1]) != have:
            raise _RestartError
        total = source.size if found[3] == "*" else int(found[3])
    elif response.status == HTTPStatus.OK:
        total = int(length) if re.fullmatch(r"\d{1,18}", length) else source.size
    else:
        raise DataError(f"{source.shown}: answers with HTTP {response.status} instead of a file")
    if total != source.size:
        raise DataError(
            f"{source.shown}: has {total:,} bytes there, and the published file has "
            f"{source.size:,}; it is another file"
        )


def _web_page(source: _Source) -> DataError:
    return DataError(
        f"{source.shown}: gives a web page instead of the file (a login, or a proxy?); "
        "open the address in a browser"
    )


def _check_address(url: str, shown: str) -> None:
    """Raise if an address is not of http or https."""
    try:
        parts = urllib.parse.urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and url.isprintable()
    except ValueError:
        valid = False
    if not valid:
        raise DataError(f"{shown}: is no http or https address")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Redirects to http and https alone, and not many of them."""

    max_redirections = MAX_REDIRECTS
    max_repeats = 2

    def http_error_302(
        self,
        req: urllib.request.Request,
        fp: Any,
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
    ) -> Any:
        """Follow a redirect, if its address is one of http or https."""
        target = headers.get("location") or headers.get("uri") or ""
        address = urllib.parse.urljoin(req.full_url, target)
        shown = req.full_url.partition("?")[0]
        try:
            _check_address(address, address.partition("?")[0][:100])
        except DataError as error:
            fp.close()
            raise DataError(f"{shown}: redirects to another place: {error}") from None
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _one_line(error: object) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:160]
