"""Judging the images of a run: whose verdicts count, and what is refused before any verdict."""

from __future__ import annotations

import pytest

from fk_reward.benchmarks.image_report import write_report
from fk_reward.benchmarks.image_store import complete_folders, prompt_folders
from tests.benchmarks.image_stage import RECORDS, SETTINGS, StubJudge, write_run


def test_the_self_test_comes_before_any_verdict(tmp_path):
    class Broken(StubJudge):
        def self_test(self):
            raise RuntimeError("a known image is judged wrongly")

    with pytest.raises(RuntimeError, match="known image"):
        write_run(tmp_path, judge=Broken())
    assert not list(tmp_path.rglob("verdicts.json"))
    judge = StubJudge()
    write_run(tmp_path, judge=judge)
    write_run(tmp_path, judge=judge)
    assert (judge.num_tests, len(judge.seen)) == (1, 2 * len(RECORDS))


def test_verdicts_of_another_judge_do_not_count(tmp_path):
    write_run(tmp_path)
    judge = StubJudge({"judge": "another"})
    write_run(tmp_path, SETTINGS.unsteered(), judge=judge)
    with pytest.raises(ValueError, match="different judges"):
        write_report(tmp_path)
    write_run(tmp_path, judge=judge)
    assert len(judge.seen) == 4 * len(RECORDS)
    write_report(tmp_path)


def test_too_few_verdicts_are_noticed(tmp_path):
    class Lazy(StubJudge):
        def judge_images(self, records, images):
            return super().judge_images(records, images)[:-1]

    with pytest.raises(ValueError, match="1 verdicts on 2 images"):
        write_run(tmp_path, judge=Lazy())


def test_pictures_without_verdicts_are_refused(tmp_path):
    root = write_run(tmp_path)
    (root / "00001" / "verdicts.json").unlink()
    with pytest.raises(ValueError, match="00001 are not judged"):
        write_report(tmp_path)


@pytest.mark.parametrize("damage", ["missing prompt", "surplus prompt", "no images", "other suite"])
def test_a_folder_that_is_not_the_suite_is_refused(tmp_path, damage):
    root, records = write_run(tmp_path), list(RECORDS)
    if damage == "missing prompt":
        prompt_folders(root)[2].path.rename(root / "gone")
    elif damage == "surplus prompt":
        records.pop()
    elif damage == "no images":
        (root / "00001" / "samples").rename(root / "00001" / "elsewhere")
    else:
        records[2] = RECORDS[0]
    messages = {
        "missing prompt": "3 of the suite's 4 prompts, 00002 is missing",
        "surplus prompt": "00003 is beyond the suite's 3 prompts",
        "no images": "00001.samples holds no image",
        "other suite": "00002 was made for 'a photo of a dog'",
    }
    with pytest.raises((ValueError, FileNotFoundError), match=messages[damage]):
        complete_folders(root, records)
