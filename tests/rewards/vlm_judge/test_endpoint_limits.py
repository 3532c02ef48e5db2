"""A call of an endpoint ends: in time, whatever the server does, and with a bounded reply."""

from __future__ import annotations

import socket
import threading
import time

import pytest
import torch

from fk_reward.rewards.vlm_judge import JudgeEndpointError, OpenAIEngine, VLMJudge
from fk_reward.rewards.vlm_judge.endpoint import MAX_ANSWER_BYTES
from tests.rewards.vlm_judge.endpoint import Endpoint, completion

IMAGES = torch.zeros(1, 3, 4, 4)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


class Server:
    """A socket that answers each connection with the pieces of `script`, and stops by itself after some seconds."""

    def __init__(self, script, *, seconds=8.0):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.socket.settimeout(seconds)
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/v1"
        self.script, self.end = script, time.monotonic() + seconds
        self.sent = 0
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        try:
            while True:
                connection, _ = self.socket.accept()
                threading.Thread(target=self.answer, args=(connection,), daemon=True).start()
        except OSError:
            self.socket.close()

    def answer(self, connection):
        with connection:
            try:
                connection.recv(65536)
                for piece in self.script():
                    if time.monotonic() > self.end:
                        return
                    connection.sendall(piece)
                    self.sent += len(piece)
            except OSError:
                return


def dribble(data, first=b""):
    """One byte after the other, each well within any time-out of a single read."""

    def script():
        yield first
        for byte in data * 1000:
            time.sleep(0.05)
            yield bytes([byte])

    return script


def silence():
    time.sleep(6)
    yield b""


@pytest.mark.parametrize(
    "script",
    [dribble(b"X-A: b\r\n", HEAD), dribble(b" ", HEAD + b"Content-Length: 100000\r\n\r\n"), dribble(b"H"), silence],
    ids=["headers", "body", "status", "silence"],
)
def test_a_dribbling_server_is_left_in_time(script):
    server = Server(script)
    judge = VLMJudge(OpenAIEngine("judge", base_url=server.url, timeout=0.6, max_retries=3))
    started = time.monotonic()
    with pytest.raises(JudgeEndpointError, match=r"(APITimeoutError|CallEndedError).*0\.6 s in all"):
        judge(IMAGES, "x")
    assert time.monotonic() - started < 2.0


def test_further_tries_and_their_pauses_count(monkeypatch):
    with Endpoint() as endpoint:
        endpoint.script = [(503, "busy", 0.2)]
        judge = VLMJudge(OpenAIEngine("judge", base_url=endpoint.url, timeout=0.7, max_retries=1000))
        started = time.monotonic()
        with pytest.raises(JudgeEndpointError, match="InternalServerError|APITimeoutError"):
            judge(IMAGES, "x")
        assert time.monotonic() - started < 2.0
        assert 2 <= len(endpoint.requests) <= 5
        endpoint.shutdown()


def test_a_pause_that_is_longer_than_the_time_is_not_begun():
    def script():
        yield b"HTTP/1.1 429 Too Many\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n"

    judge = VLMJudge(OpenAIEngine("judge", base_url=Server(script).url, timeout=30))
    started = time.monotonic()
    with pytest.raises(JudgeEndpointError, match="asks for a pause of 3600 s"):
        judge(IMAGES, "x")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("status", [200, 500])
def test_a_reply_without_end_is_not_read_on(status):
    def script():
        yield f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n\r\n".encode()
        for _ in range(2000):
            yield b" " * 2**16

    server = Server(script)
    judge = VLMJudge(OpenAIEngine("judge", base_url=server.url, timeout=20, max_retries=3))
    with pytest.raises(JudgeEndpointError, match=f"longer than {MAX_ANSWER_BYTES:,} bytes"):
        judge(IMAGES, "x")
    assert server.sent < 3 * MAX_ANSWER_BYTES


def test_a_compressed_reply_is_refused():
    """Some kilobytes of it could be gigabytes when they are unpacked."""

    def script():
        yield HEAD + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"

    with pytest.raises(JudgeEndpointError, match="compressed"):
        VLMJudge(OpenAIEngine("judge", base_url=Server(script).url))(IMAGES, "x")


def test_an_answer_within_the_limits_comes_through():
    body = completion('{"alignment": 4, "quality": 9}' + " " * 10_000)
    with Endpoint() as endpoint:
        endpoint.script = [(200, body, 0.3)]
        judge = VLMJudge(OpenAIEngine("judge", base_url=endpoint.url, timeout=20))
        assert judge(IMAGES, "x").tolist() == [6.0]
        endpoint.shutdown()


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_a_time_that_is_none(timeout):
    with pytest.raises(ValueError, match="timeout must be"):
        OpenAIEngine("judge", base_url="http://localhost:1/v1", timeout=timeout)
