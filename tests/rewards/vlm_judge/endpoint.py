"""A fake OpenAI-compatible endpoint: answers by a script, keeps what it was sent."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def completion(content, *, finish_reason="stop", **message):
    """A chat completion as the endpoint sends it."""
    choice = {
        "index": 0,
        "finish_reason": finish_reason,
        "message": {"role": "assistant", "content": content, **message},
    }
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "judge", "choices": [choice]}


class Endpoint(ThreadingHTTPServer):
    """Serves `script`: for each request in turn `(status, body, seconds)`, the last one for all that follow.

    A body is a dict (sent as JSON), a text, or a function of the request that returns one of these.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = [(200, completion("<answer>1</answer>"), 0.0)]
        self.requests = []
        self.location = None
        self.headers = []
        self.busy = self.most_busy = 0
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def next_reply(self, request, headers):
        with self.lock:
            self.requests.append(request)
            self.headers.append(headers)
            return self.script.pop(0) if len(self.script) > 1 else self.script[0]

    def enter(self, change):
        with self.lock:
            self.busy += change
            self.most_busy = max(self.most_busy, self.busy)

    def handle_error(self, request, client_address):
        """A client that went away is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, body, seconds = self.server.next_reply({"path": self.path, **request}, self.headers)
        self.server.enter(1)
        time.sleep(seconds)
        self.server.enter(-1)
        body = body(request) if callable(body) else body
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Retry-After-Ms", "1")
        if self.server.location is not None:
            self.send_header("Location", self.server.location)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        """Tests are quiet."""
