"""A call of an endpoint ends: in time, whatever the server does, and with a bounded reply."""

from __future__ import annotations

import base64
import copy
import json
import logging
import pickle
import socket
import stat
import threading
import time
import traceback

import pytest
import torch

from fk_reward.rewards import load_reward
from fk_reward.rewards.vlm_judge import AnswerCache, JudgeEndpointError, OpenAIEngine, Sampling, VLMJudge
from fk_reward.rewards.vlm_judge.endpoint import MAX_ANSWER_BYTES, Address, redact_text
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


SECRET_IMAGES = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
GOOD = json.dumps({"alignment": 4, "quality": 9, "reason": "fine"})
SECRETS = ("hunter2", "q-secret", "k-secret-k-secret", "h-secret", "t-secret", "e-secret")


@pytest.fixture
def endpoint():
    with Endpoint() as server:
        yield server
        server.shutdown()


def secretive(endpoint, **options):
    """An engine with a secret in each place that takes one."""
    url = endpoint.url.replace("//", "//me:hunter2@") + "?api_key=q-secret&version=7"
    parameters = {"extra_headers": {"X-Api-Key": "h-secret"}, "extra_query": {"token": "t-secret"}, "top_p": 0.5}
    options = {"timeout": 10.0, "max_retries": 0, "api_key": "k-secret-k-secret", "parameters": parameters} | options
    return OpenAIEngine("judge", base_url=url, **options)


def assert_clean(*texts):
    for text in texts:
        for secret in (*SECRETS, base64.b64encode(b"me:hunter2").decode()):
            assert secret not in text, secret


def everything_about(error):
    """All that a logger or a debugger writes of an error: message, chain, and the variables of each frame."""
    texts = []
    while error is not None:
        told = traceback.TracebackException.from_exception(error, capture_locals=True)
        told.stack[:] = [frame for frame in told.stack if frame.filename != __file__]
        texts += ["".join(told.format(chain=False)), repr(error), repr(vars(error))]
        error = error.__cause__ or error.__context__
    return texts


def test_the_endpoint_gets_what_opens_it(endpoint):
    secretive(endpoint).generate([[]], [[]], sampling=Sampling(max_new_tokens=1))
    (request,), (headers,) = endpoint.requests, endpoint.headers
    assert headers["Authorization"] == "Basic " + base64.b64encode(b"me:hunter2").decode()
    assert headers["X-Api-Key"] == "h-secret"
    assert request["path"] == "/v1/chat/completions?api_key=q-secret&version=7&token=t-secret"
    assert request["top_p"] == 0.5
    assert not {"extra_headers", "extra_query"} & set(request)


def test_names_and_representations(endpoint):
    engine = secretive(endpoint)
    judge = VLMJudge(engine)
    assert_clean(engine.name, repr(engine), repr(vars(engine)), str(judge.card), repr(vars(judge)))
    assert engine.name.startswith(f"openai {endpoint.url} judge ")
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        pickle.dumps(engine)
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        copy.deepcopy(engine)


def test_the_name_tells_settings_apart_and_keys_not(endpoint):
    def name(**changes):
        options = {"api_key": "one-key-one-key", "parameters": {"top_p": 0.5}} | changes
        return OpenAIEngine("judge", base_url=options.pop("base_url", endpoint.url), **options).name

    same = [
        name(api_key="another-key"),
        name(base_url=endpoint.url.replace("//", "//me:word@")),
        name(base_url=endpoint.url + "?api_key=3"),
        name(parameters={"top_p": 0.5, "extra_headers": {"X-Api-Key": "1", "Authorization": "Bearer 2"}}),
    ]
    others = [
        name(parameters={"top_p": 0.6}),
        name(parameters={"top_p": 0.5, "extra_headers": {"X-Deployment": "b"}}),
        name(parameters={"top_p": 0.5, "extra_query": {"version": "2"}}),
        name(base_url=endpoint.url + "/other"),
    ]
    assert set(same) == {name()}
    assert len({name(), *others}) == 5


@pytest.mark.parametrize("status", [200, 301, 400, 401, 429, 500])
def test_an_endpoint_that_echoes_keys(endpoint, caplog, status):
    caplog.set_level(logging.DEBUG)
    said = " ".join([*SECRETS[:-1], base64.b64encode(b"me:hunter2").decode(), "Bearer k-secret-k-secret"])
    endpoint.script = [(status, {"error": {"message": f"Incorrect API key: {said}"}}, 0.0)]
    with pytest.raises(JudgeEndpointError, match="Incorrect API key") as failure:
        VLMJudge(secretive(endpoint, max_retries=1))(SECRET_IMAGES, "x")
    assert_clean(*everything_about(failure.value), caplog.text)


def test_an_endpoint_that_is_down(endpoint, caplog):
    caplog.set_level(logging.DEBUG)
    engine = secretive(endpoint)
    endpoint.shutdown()
    endpoint.server_close()
    with pytest.raises(JudgeEndpointError) as failure:
        VLMJudge(engine)(SECRET_IMAGES, "x")
    assert_clean(*everything_about(failure.value), caplog.text)


def test_answers_and_their_files(endpoint, tmp_path):
    said = GOOD.replace("fine", "your key is k-secret-k-secret")
    endpoint.script = [(200, completion(said), 0.0)]
    judge = VLMJudge(secretive(endpoint), cache=tmp_path / "answers")
    assert "***" in judge.verdicts(SECRET_IMAGES, "x")[0].answer
    (file,) = tmp_path.rglob("*.json")
    assert_clean(file.read_text())
    assert json.loads(file.read_text())["engine"] == judge.engine.name


def test_a_key_goes_to_no_other_host(endpoint):
    with Endpoint() as other:
        endpoint.script = [(307, "", 0.0)]
        endpoint.location = other.url + "/chat/completions"
        with pytest.raises(JudgeEndpointError):
            VLMJudge(secretive(endpoint))(SECRET_IMAGES, "x")
        assert other.requests == []
        other.shutdown()


@pytest.mark.parametrize("key", ["k-secret\n", "k-s\u00e9cret"])
def test_a_key_that_cannot_be_sent_is_refused_without_being_shown(key):
    with pytest.raises(ValueError, match="api_key should be a text of printable ASCII") as refusal:
        OpenAIEngine("judge", base_url="http://localhost:1/v1", api_key=key)
    assert key.strip() not in str(refusal.value)


@pytest.mark.parametrize(
    "url", ["localhost:8000/v1", "ftp://me:hunter2@host", "http://", "http:///v1?api_key=q-secret"]
)
def test_what_is_no_address(url):
    with pytest.raises(ValueError, match="base_url should be") as refusal:
        OpenAIEngine("judge", base_url=url)
    assert_clean(str(refusal.value))


def test_options_that_do_not_go_together_are_told_without_the_key():
    with pytest.raises(TypeError, match="An endpoint was given") as refusal:
        load_reward("vlm-judge", base_url="https://me:hunter2@host/v1?api_key=q-secret", revision="main", model="m")
    assert_clean(str(refusal.value))


def test_the_key_of_the_environment(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "e-secret")
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
    engine = OpenAIEngine("judge")
    engine.generate([[]], [[]], sampling=Sampling(max_new_tokens=1))
    assert endpoint.headers[-1]["Authorization"] == "Bearer e-secret"
    assert_clean(engine.name, repr(vars(engine)))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:pass@host/v1", "https://***@host/v1"),
        ("host/v1?a=1&api-key=x&b=2", "host/v1?a=1&api-key=***&b=2"),
        ("Authorization: Bearer abcd.efgh", "Authorization: Bearer ***"),
        ("key sk-proj-abc_def-123456", "key ***"),
        ("--token hf_abcdefghijk end", "--token *** end"),
        ("a task-like word, sk-8, me@host.org", "a task-like word, sk-8, me@host.org"),
    ],
)
def test_what_looks_like_a_key_is_hidden(text, shown):
    assert redact_text(text) == shown


def test_an_address_is_taken_apart():
    address = Address.parse(" https://a%40b:c@[::1]:8000/v1/?x=1&api_key=&y=#z ")
    assert (address.url, address.user) == ("https://[::1]:8000/v1", "a%40b:c")
    assert address.query == (("x", "1"), ("api_key", ""), ("y", ""))


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_cache_is_for_its_owner_alone(tmp_path, monkeypatch, caplog):
    folder = tmp_path / "new" / "answers"
    AnswerCache(folder).put("0123", "an answer", about={})
    assert [mode(path) for path in (folder, folder / "01", folder / "01" / "0123.json")] == [0o700, 0o700, 0o600]
    for path in (folder, folder / "01"):
        path.chmod(0o755)
    AnswerCache(folder).put("0124", "another", about={})
    assert [mode(path) for path in (folder, folder / "01")] == [0o700, 0o700]
    assert caplog.text == ""


def test_a_folder_that_holds_other_things_keeps_its_mode_and_is_told(tmp_path, caplog):
    (tmp_path / "mine.txt").write_text("not an answer")
    tmp_path.chmod(0o755)
    cache = AnswerCache(tmp_path)
    for key in ("0123", "4567", "0124"):
        cache.put(key, "an answer", about={})
    assert (mode(tmp_path), mode(tmp_path / "01")) == (0o755, 0o700)
    assert "holds files other than answers" in caplog.text
