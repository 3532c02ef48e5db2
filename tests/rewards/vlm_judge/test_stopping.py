"""The end of answers in transformers' own loop: a tiny Qwen2.5-VL that writes what a script says."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from transformers import LogitsProcessor

from fk_reward.rewards.vlm_judge import (
    TEMPLATES,
    FlawedAnswer,
    MarkJudge,
    OpenAIEngine,
    Sampling,
    StoppedAnswer,
    TransformersEngine,
    VLMJudge,
    stopping,
)
from fk_reward.rewards.vlm_judge.mark_entries import SAFETY
from tests.rewards.vlm_judge.endpoint import Endpoint, completion
from tests.tiny.qwen2_5_vl import write_qwen2_5_vl

REASONS = "I see a red one and use my eyes. "
ANSWERS = [
    json.dumps({"rating": "Safe", "category": "NA: none", "rationale": REASONS}),
    json.dumps({"rationale": REASONS, "rating": "Unsafe", "category": "O2: b"}) + REASONS,  # in another order
    '{"rating": "Safe", "category": "NA"}',
]
IMAGES = torch.rand(3, 3, 56, 56)


class Script(LogitsProcessor):
    """Lets each row of a batch write its answer and the end of its turn, whatever the network says; counts tokens."""

    def __init__(self, tokenizer, answers):
        self.rows = [tokenizer(answer + "<|im_end|>")["input_ids"] for answer in answers]
        self.num_steps = 0

    def __call__(self, input_ids, scores):
        forced = torch.full_like(scores, -torch.inf)
        for place, row in enumerate(self.rows):
            forced[place, row[min(self.num_steps, len(row) - 1)]] = 0.0
        self.num_steps += 1
        return forced


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = write_qwen2_5_vl(tmp_path_factory.mktemp("judge") / "qwen")
    return TransformersEngine.from_pretrained(folder, torch_dtype=torch.float32)


@pytest.fixture
def written(engine, monkeypatch):
    """What one call of `generate` wrote: (script, token ids)."""
    generate, calls = engine.model.model.generate, []

    def scripted(input_ids, **settings):
        script = Script(engine.model.processor.tokenizer, ANSWERS[: len(input_ids)])
        tokens = generate(input_ids=input_ids, logits_processor=[script], **settings)
        calls.append((script, tokens[:, input_ids.shape[1] :]))
        return tokens

    monkeypatch.setattr(engine.model.model, "generate", scripted)
    return calls


def check_rows_end_by_themselves(engine, written, num_rows):
    judge = VLMJudge(engine, "safety")
    scores = judge(IMAGES[:num_rows], "x").tolist()
    verdicts = judge.verdicts(IMAGES[:num_rows], "x")
    assert scores == [verdict.score for verdict in verdicts]
    assert [verdict.answer for verdict in verdicts] == ANSWERS[:num_rows]
    (script, tokens), (whole, _) = written
    pad = engine.model.processor.tokenizer.pad_token_id
    kept = [(row != pad).sum().item() for row in tokens]
    decode = engine.model.processor.batch_decode
    for place, length in enumerate(kept):  # each as long as it needs, whatever the others write
        assert TEMPLATES["safety"].enough.close(decode([tokens[place, :length]])[0]) is not None
        assert TEMPLATES["safety"].enough.close(decode([tokens[place, : length - 1]])[0]) is None
        assert tokens[place, :length].tolist() == script.rows[place][:length]
    return kept, script.num_steps, whole.num_steps


def test_each_row_ends_by_itself_and_the_scores_are_those_of_whole_answers(engine, written):
    kept, num_steps, whole = check_rows_end_by_themselves(engine, written, 3)
    assert num_steps == max(kept) == kept[1] < whole
    assert kept[0] < kept[1]


def test_a_batch_is_as_long_as_its_longest_need(engine, written):
    _, num_steps, whole = check_rows_end_by_themselves(engine, written, 1)
    assert num_steps < whole - len(REASONS) / 4


def test_rows_that_end_each_other_are_noticed(engine, written, monkeypatch):
    call = stopping.EnoughSaid.__call__
    monkeypatch.setattr(stopping.EnoughSaid, "__call__", lambda *args, **kwargs: call(*args, **kwargs).any().expand(3))
    with pytest.raises((AssertionError, ValueError)):
        check_rows_end_by_themselves(engine, written, 3)


def test_the_seed_of_a_drawn_answer_counts_as_before(engine):
    """Stopping does not change what other rows draw: the network itself writes, and every second row is ended."""
    pictures = [[Image.new("RGB", (56, 56), color)] for color in ("red", "blue")]
    messages = [TEMPLATES["safety"].messages(prompt) for prompt in ("a", "b")]

    def draw(enough):
        sampling = Sampling(max_new_tokens=8, temperature=2.0, seed=3, enough=enough)
        return engine.generate(pictures, messages, sampling=sampling)

    whole = draw(None)
    first = whole[0][:2]
    stopped = draw(TEMPLATES["safety"].enough.__class__(close=lambda text: "end" if text.startswith(first) else None))
    assert stopped == ["end", whole[1]]
    assert [type(answer) for answer in stopped] == [StoppedAnswer, FlawedAnswer]


def test_marks_in_words_stop_too(engine, written):
    assert MarkJudge(engine, SAFETY, reading="text")(IMAGES, "x").tolist() == [1, 0, 1]
    assert written[0][0].num_steps < max(map(len, written[0][0].rows))


def test_the_cache_serves_whole_answers_for_both_and_stopped_ones_for_scores(engine, written, tmp_path):
    judge = VLMJudge(engine, "safety", cache=tmp_path)
    first = judge(IMAGES, "x")
    assert torch.equal(judge(IMAGES, "x"), first)
    assert len(written) == 1
    assert [verdict.answer for verdict in judge.verdicts(IMAGES, "x")] == ANSWERS
    judge.verdicts(IMAGES, "x")
    assert len(written) == 2, "verdicts are whole, and kept"
    (tmp_path / "all").mkdir()
    other = VLMJudge(engine, "safety", cache=tmp_path / "all")
    other.verdicts(IMAGES, "x")
    assert torch.equal(other(IMAGES, "x"), first)
    assert len(written) == 3, "a whole answer gives its score, too"


def test_an_endpoint_stops_only_where_it_is_told_to(tmp_path):
    cut = '{"rating": "Unsafe", "category": "O2: b", '
    with Endpoint() as server:
        server.script = [(200, completion(ANSWERS[0]), 0.0), (200, completion(cut), 0.0)]
        options = {"base_url": server.url, "max_retries": 0}
        assert VLMJudge(OpenAIEngine("judge", **options), "safety")(IMAGES[:1], "x").tolist() == [1]
        early = VLMJudge(OpenAIEngine("judge", stop_early=True, **options), "safety", cache=tmp_path)
        assert early(IMAGES[:1], "x").tolist() == [0]
        assert early(IMAGES[:1], "x").tolist() == [0]  # from the cache
        with pytest.raises(ValueError, match="broken"):
            early.verdicts(IMAGES[:1], "x")  # asks for all of it, which this endpoint does not give
        first, second, third = server.requests
        server.shutdown()
    assert "stop" not in first
    assert second["stop"] == ['"rationale"']
    assert "stop" not in third
