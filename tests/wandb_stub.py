"""A local stub of the W&B server: it answers the requests of a run, or fails in a chosen way."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time

RUN = {
    "id": "run",
    "name": "run",
    "displayName": "run",
    "config": "{}",
    "historyLineCount": 0,
    "project": {"id": "p", "name": "heatlift", "entity": {"id": "e", "name": "me"}},
}
ANSWERS = {
    "mutation UpsertBucket": {"upsertBucket": {"bucket": RUN, "inserted": True}},
    "mutation CreateRunFiles": {
        "createRunFiles": {"runID": "run", "uploadHeaders": [], "files": []}
    },
    "query RunResumeStatus": {"model": {"id": "p", "name": "heatlift", "bucket": None}},
    "viewer": {"viewer": {"id": "v", "entity": "me", "username": "me", "flags": "{}"}},
}
"""Text in the request -> data of the response; the first match is used."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *rest):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        server = self.server
        server.asked += 1
        if server.way == "hangs":
            server.ended.wait(60)
            self.close_connection = True
            return
        if server.way == "slow":
            server.ended.wait(10)
        status = {"401": 401, "500": 500}.get(server.way, 200)
        found = [answer for query, answer in ANSWERS.items() if query.encode() in body]
        text = json.dumps({"data": found[0] if found else {}}).encode()
        with contextlib.suppress(OSError):
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    do_GET = do_PUT = do_POST


class Server(http.server.ThreadingHTTPServer):
    """HTTP server; `way` is "well", "401", "500", "slow" (10 s per reply) or "hangs" (no reply)."""

    daemon_threads = True

    def __init__(self, way):
        super().__init__(("127.0.0.1", 0), Handler)
        self.way, self.asked, self.ended = way, 0, threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass

    def die(self):
        """Stop at once; later connections fail."""
        self.ended.set()
        self.shutdown()
        self.server_close()

    def until_asked(self, seconds=30):
        """Wait for the first request; return whether it came."""
        end = time.monotonic() + seconds
        while not self.asked and time.monotonic() < end:
            time.sleep(0.01)
        return self.asked > 0
