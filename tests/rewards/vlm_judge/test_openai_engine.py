"""The HTTP engine against a fake endpoint: what is sent, failures, further tries, concurrency."""

from __future__ import annotations

import base64
import io
import json
import sys

import pytest
import torch
from PIL import Image

from fk_reward.rewards import load_reward
from fk_reward.rewards.vlm_judge import JudgeAnswerError, JudgeEndpointError, OpenAIEngine, Sampling, VLMJudge
from fk_reward.rewards.vlm_judge.templates import PREFERENCE, RUBRIC
from tests.rewards.vlm_judge.endpoint import Endpoint, completion

GOOD = json.dumps({"alignment": 4, "quality": 9, "reason": "fine"})
IMAGES = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.0]).view(6, 1, 1, 1).expand(6, 3, 4, 4)


@pytest.fixture
def endpoint():
    with Endpoint() as server:
        yield server
        server.shutdown()


def engine(endpoint, **options):
    return OpenAIEngine("judge", base_url=endpoint.url, **{"timeout": 10.0, "max_retries": 0} | options)


def sent_picture(request, place=0):
    urls = [part["image_url"]["url"] for part in request["messages"][0]["content"] if part["type"] == "image_url"]
    assert urls[place].startswith("data:image/png;base64,")
    return Image.open(io.BytesIO(base64.b64decode(urls[place].split(",")[1])))


def test_what_is_sent(endpoint):
    picture = Image.effect_noise((5, 3), 50).convert("RGB")
    answers = engine(endpoint).generate([[picture]], [RUBRIC.messages("a cat")], sampling=Sampling(max_new_tokens=77))
    (request,) = endpoint.requests
    assert answers == ["<answer>1</answer>"]
    assert (request["path"], request["model"]) == ("/v1/chat/completions", "judge")
    assert (request["max_tokens"], request["temperature"]) == (77, 0.0)
    assert "seed" not in request
    assert "a cat" in request["messages"][0]["content"][1]["text"]
    assert sent_picture(request).tobytes() == picture.tobytes()


def test_two_pictures_keep_their_order(endpoint):
    first, second = Image.new("RGB", (2, 2), "red"), Image.new("RGB", (2, 2), "blue")
    engine(endpoint).generate([[first, second]], [PREFERENCE.messages("x")], sampling=Sampling(max_new_tokens=1))
    (request,) = endpoint.requests
    assert [sent_picture(request, place).getpixel((0, 0)) for place in (0, 1)] == [(255, 0, 0), (0, 0, 255)]


def test_a_second_try_has_temperature_and_seed(endpoint):
    endpoint.script = [(200, completion("hm"), 0.0), (200, completion(GOOD), 0.0)]
    judge = VLMJudge(engine(endpoint), on_unparsable="retry")
    assert judge(IMAGES[:1], "x").tolist() == [6.0]
    assert (endpoint.requests[1]["temperature"], endpoint.requests[1]["seed"]) == (0.7, 1)


def test_fields_can_be_added_replaced_and_left_out(endpoint):
    fields = {"max_tokens": None, "max_completion_tokens": 9, "temperature": None, "top_p": 0.5}
    engine(endpoint, parameters=fields).generate([[]], [[]], sampling=Sampling(max_new_tokens=1))
    (request,) = endpoint.requests
    assert (request["max_completion_tokens"], request["top_p"]) == (9, 0.5)
    assert not {"max_tokens", "temperature"} & set(request)


def by_brightness(request):
    grey = sent_picture(request).getpixel((0, 0))[0]
    return completion(json.dumps({"alignment": 1 + 9 * grey / 255, "quality": 1 + 9 * grey / 255}))


def check_answers_stay_with_their_images(endpoint, body):
    endpoint.script = [(200, body, 0.2), (200, body, 0.1), (200, body, 0.0)]  # the first comes last
    scores = VLMJudge(engine(endpoint, concurrency=3))(IMAGES, "grey")
    assert scores.tolist() == pytest.approx([1.0, 2.8, 4.6, 6.4, 8.2, 10.0])


def test_answers_stay_with_their_images(endpoint):
    check_answers_stay_with_their_images(endpoint, by_brightness)


def test_answers_of_two_images_swapped_are_noticed(endpoint):
    def swapped(request):
        grey = sent_picture(request).getpixel((0, 0))[0]
        mark = {0: 2.8, 51: 1.0}.get(grey, 1 + 9 * grey / 255)
        return completion(json.dumps({"alignment": mark, "quality": mark}))

    with pytest.raises(AssertionError):
        check_answers_stay_with_their_images(endpoint, swapped)


def test_no_more_than_so_many_requests_at_once(endpoint):
    endpoint.script = [(200, completion(GOOD), 1.0)]
    VLMJudge(engine(endpoint, concurrency=2))(IMAGES, "x")
    assert endpoint.most_busy == 2


def test_too_many_requests_are_tried_again(endpoint):
    busy = (429, {"error": {"message": "slow down"}}, 0.0)
    endpoint.script = [busy, busy, (200, completion(GOOD), 0.0)]
    assert VLMJudge(engine(endpoint, max_retries=2))(IMAGES[:1], "x").tolist() == [6.0]
    assert len(endpoint.requests) == 3


def test_too_many_requests_for_too_long_raise(endpoint):
    endpoint.script = [(429, {"error": {"message": "slow down"}}, 0.0)]
    with pytest.raises(JudgeEndpointError, match=r"model judge\) gave no answer: RateLimitError.*slow down.*tried 2"):
        VLMJudge(engine(endpoint, max_retries=1))(IMAGES[:1], "x")
    assert len(endpoint.requests) == 2


def test_a_slow_endpoint_times_out(endpoint):
    endpoint.script = [(200, completion(GOOD), 3.0)]
    with pytest.raises(JudgeEndpointError, match=r"APITimeoutError.*0\.2 s in all"):
        VLMJudge(engine(endpoint, timeout=0.2))(IMAGES[:1], "x")


def test_an_endpoint_that_is_down(endpoint):
    down = engine(endpoint)
    endpoint.shutdown()
    endpoint.server_close()
    with pytest.raises(JudgeEndpointError, match=r"127\.0\.0\.1.*APIConnectionError.*Is it running\?"):
        VLMJudge(down)(IMAGES[:1], "x")


@pytest.mark.parametrize(
    "body", ["", '{"choices": [', "<html>gateway</html>", "[]", "{}", '{"choices": []}', '{"choices": [{"index": 0}]}']
)
def test_a_reply_that_is_no_completion_raises(endpoint, body):
    endpoint.script = [(200, body, 0.0)]
    with pytest.raises(JudgeEndpointError, match="gave no answer|not a chat completion"):
        VLMJudge(engine(endpoint))(IMAGES[:1], "x")


@pytest.mark.parametrize(
    ("status", "name"), [(401, "AuthenticationError"), (404, "NotFoundError"), (400, "BadRequest")]
)
def test_refused_requests_are_not_tried_again(endpoint, status, name):
    endpoint.script = [(status, {"error": {"message": "because"}}, 0.0)]
    with pytest.raises(JudgeEndpointError, match=f"{name}.*because"):
        VLMJudge(engine(endpoint, max_retries=3))(IMAGES[:1], "x")
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (completion(GOOD, finish_reason="length"), "cut off at 256 tokens"),
        (completion(GOOD, finish_reason="content_filter"), "filtered"),
        (completion(None, refusal="I will not judge that."), "refused.*I will not judge that"),
        (completion(None), "it is empty"),
        (completion(""), "it is empty"),
    ],
)
def test_cut_filtered_refused_and_empty_answers_raise(endpoint, reply, message):
    endpoint.script = [(200, completion(GOOD), 0.0), (200, reply, 0.0)]
    with pytest.raises(JudgeAnswerError, match=f"image 1, prompt 'x': .*{message}"):
        VLMJudge(engine(endpoint, concurrency=1))(IMAGES[:2], "x")


def test_a_named_endpoint_does_not_get_the_key_of_another(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    for options, key in (({}, "none"), ({"api_key": "own"}, "own")):
        made = engine(endpoint, **options)
        made.generate([[]], [[]], sampling=Sampling(max_new_tokens=1))
        assert endpoint.headers[-1]["Authorization"] == f"Bearer {key}"
        assert "secret" not in made.name


def test_without_a_key_the_default_endpoint_says_so(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(JudgeEndpointError, match="OPENAI_API_KEY"):
        OpenAIEngine("judge")


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"pip install 'fk-reward\[judge\]'"):
        load_reward("vlm-judge", base_url="http://localhost:1/v1", model="m")


def test_by_name_and_address(endpoint, tmp_path):
    endpoint.script = [(200, completion(GOOD), 0.0)]
    for _ in range(2):
        judge = load_reward("vlm-judge", base_url=endpoint.url, model="judge", cache=tmp_path)
        assert judge(IMAGES[:2], "x").tolist() == [6.0, 6.0]
    assert len(endpoint.requests) == 2  # the second time from the cache
    assert judge.card.weights == "judge"


def test_zero_requests_at_once_raise():
    with pytest.raises(ValueError, match="concurrency"):
        OpenAIEngine("judge", base_url="http://localhost:1/v1", concurrency=0)
