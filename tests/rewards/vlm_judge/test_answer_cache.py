"""Answers on disk: what they are found by, damaged files, several processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import time

import pytest
import torch
from PIL import Image

from fk_reward.rewards.vlm_judge import AnswerCache, JudgeAnswerError, PreferenceJudge, Sampling, VLMJudge
from fk_reward.rewards.vlm_judge.answer_cache import answer_key
from tests.tiny.scripted_judge import ScriptedEngine

IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LENGTH = 20_000
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="starts processes by fork, which is fast")


class Silent(ScriptedEngine):
    """Must not be asked."""

    def answer(self, pictures, text):
        raise AssertionError("the judge was asked")


class Nonsense(ScriptedEngine):
    def answer(self, pictures, text):
        return "nonsense"


def in_another_process(function, *arguments):
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


def test_a_second_judge_asks_nothing(tmp_path):
    scores = VLMJudge(ScriptedEngine(), cache=tmp_path)(IMAGES, "a cat")
    assert torch.equal(VLMJudge(Silent(), cache=AnswerCache(tmp_path))(IMAGES, "a cat"), scores)
    assert torch.equal(VLMJudge(Silent(), cache=tmp_path)(IMAGES.flip(0), "a cat"), scores.flip(0))


def test_comparisons_are_kept_in_both_orders(tmp_path):
    scores = PreferenceJudge(ScriptedEngine(), cache=tmp_path)(IMAGES, "a cat")
    assert len(list(tmp_path.glob("*/*.json"))) == 6
    assert torch.equal(PreferenceJudge(Silent(), cache=tmp_path)(IMAGES, "a cat"), scores)


@pytest.mark.parametrize(
    "changed",
    [
        {"prompt": "a dog"},
        {"engine": Silent("another")},
        {"template": "alignment"},
        {"max_new_tokens": 7},
        {"images": IMAGES.flip(3)},
    ],
)
def test_anything_else_is_asked(tmp_path, changed):
    VLMJudge(ScriptedEngine(), cache=tmp_path)(IMAGES, "a cat")
    settings = {"prompt": "a cat", "engine": Silent(), "images": IMAGES} | changed
    prompt, engine, images = (settings.pop(name) for name in ("prompt", "engine", "images"))
    with pytest.raises(AssertionError, match="the judge was asked"):
        VLMJudge(engine, cache=tmp_path, **settings)(images, prompt)


def test_pictures_of_equal_bytes_and_other_shape_differ():
    settings = {"engine": "e", "template": "t", "sampling": Sampling(max_new_tokens=1)}
    wide, tall = (Image.new("RGB", size) for size in ((4, 2), (2, 4)))
    assert answer_key([wide], [], **settings) != answer_key([tall], [], **settings)
    assert answer_key([wide, tall], [], **settings) != answer_key([tall, wide], [], **settings)


def test_unreadable_answers_are_not_kept_and_good_ones_beside_them_are(tmp_path):
    class Half(ScriptedEngine):
        def answer(self, pictures, text):
            return "nonsense" if "a dog" in text else super().answer(pictures, text)

    with pytest.raises(JudgeAnswerError, match="image 1"):
        VLMJudge(Half(), cache=tmp_path)(IMAGES, ["a cat", "a dog", "a cat"])
    engine = ScriptedEngine()
    VLMJudge(engine, cache=tmp_path)(IMAGES, ["a cat", "a dog", "a cat"])
    assert [len(call) for call in engine.calls] == [1]


@pytest.mark.parametrize("damage", ["", '{"key": "', "[]", '{"key": "other", "answer": "8"}', "\x00" * 64])
def test_a_damaged_file_counts_as_absent_and_is_replaced(tmp_path, damage, caplog):
    scores = VLMJudge(ScriptedEngine(), cache=tmp_path)(IMAGES[:1], "a cat")
    file = next(tmp_path.glob("*/*.json"))
    whole = file.read_text(encoding="utf-8")
    file.write_text(damage, encoding="utf-8")
    engine = ScriptedEngine()
    assert torch.equal(VLMJudge(engine, cache=tmp_path)(IMAGES[:1], "a cat"), scores)
    assert len(engine.calls) == 1
    assert "does not hold a complete answer" in caplog.text
    assert file.read_text(encoding="utf-8") == whole


def test_an_answer_on_file_that_cannot_be_read_any_more_is_asked_for_again(tmp_path):
    VLMJudge(ScriptedEngine(), cache=tmp_path)(IMAGES[:1], "a cat")
    file = next(tmp_path.glob("*/*.json"))
    file.write_text(json.dumps(json.loads(file.read_text()) | {"answer": "nonsense"}))
    engine = ScriptedEngine()
    VLMJudge(engine, cache=tmp_path)(IMAGES[:1], "a cat")
    assert len(engine.calls) == 1


def test_a_file_says_what_was_asked(tmp_path):
    VLMJudge(ScriptedEngine(), cache=tmp_path)(IMAGES[:1], "a cat")
    record = json.loads(next(tmp_path.glob("*/*.json")).read_text())
    assert (record["prompt"], record["template"], record["engine"]) == ("a cat", "rubric", "scripted")


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(source, target):
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        AnswerCache(tmp_path).put("0123", "answer", about={})
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@needs_fork
def test_another_process_asks_nothing(tmp_path):
    process = in_another_process(lambda: VLMJudge(ScriptedEngine(), cache=tmp_path)(IMAGES, "a cat"))
    process.join()
    assert process.exitcode == 0
    assert VLMJudge(Silent(), cache=tmp_path)(IMAGES, "a cat").shape == (3,)


def write_often(put, letter):
    for _ in range(15):
        put("00", letter * LENGTH, about={})


def put_in_place(self, key, answer, *, about):
    """A saboteur: writes to the file itself, so that a reader may find half of it."""
    path = self._path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        file.write(f'{{"key": "{key}", "answer": "')
        file.flush()
        time.sleep(0.005)
        file.write(answer + '"}')


def check_readers_find_whole_answers(folder, put, caplog):
    cache = AnswerCache(folder)
    writers = [in_another_process(write_often, put.__get__(cache), letter) for letter in "ab"]
    found = {cache.get("00")}
    while any(writer.is_alive() for writer in writers):
        found.add(cache.get("00"))
        time.sleep(0.0002)  # leaves the processor to the writers
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    found.add(cache.get("00"))
    only_whole = found <= {None, "a" * LENGTH, "b" * LENGTH}  # a name, since pytest would compare the texts at length
    quiet = not caplog.records
    assert only_whole
    assert quiet
    assert len(found) > 1


@needs_fork
def test_two_writers_and_a_reader(tmp_path, caplog):
    check_readers_find_whole_answers(tmp_path, AnswerCache.put, caplog)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["00.json"]


@needs_fork
def test_writing_in_place_is_noticed(tmp_path, caplog):
    with pytest.raises(AssertionError):
        check_readers_find_whole_answers(tmp_path, put_in_place, caplog)
