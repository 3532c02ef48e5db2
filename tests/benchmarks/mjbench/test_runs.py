"""What a reward answers, and runs that are stopped, resumed and shared."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from fk_reward.benchmarks import runner
from fk_reward.benchmarks.mjbench.runs import RewardMethod, mjbench_task, score_questions
from fk_reward.benchmarks.preferences import compares
from fk_reward.benchmarks.runner import Share
from fk_reward.benchmarks.store import ResultStore
from fk_reward.rewards import CallableReward
from fk_reward.rewards.llava_reward import LlavaReward
from fk_reward.rewards.vlm_judge import PreferenceJudge
from tests.benchmarks.mjbench.stage import BRIGHTNESS, Counting, grey, pair_rows, table
from tests.tiny.phi3_vision import write_phi3_vision
from tests.tiny.training import make_model

LEVELS = ((200, 100), (50, 150), (90, 30))


def test_scores_in_the_order_of_the_pictures():
    scores = score_questions(BRIGHTNESS, table(pair_rows(*LEVELS)))
    expected = [[200, 100], [150, 50], [90, 30]]
    torch.testing.assert_close(torch.tensor(scores) * 255, torch.tensor(expected, dtype=torch.float32))
    assert not compares(BRIGHTNESS)


def test_the_reward_sees_the_caption_and_no_template():
    counting = Counting()
    score_questions(CallableReward(counting), table(pair_rows(*LEVELS)))
    assert counting.asked == ["caption 0"] * 4 + ["caption 1"] * 2


def test_a_reward_of_which_lower_is_better_is_turned_round():
    darkness = CallableReward(lambda images, captions: images.mean(dim=(1, 2, 3)), "errors")
    darkness.card = replace(darkness.card, higher_is_better=False)
    straight, turned = (score_questions(reward, table(pair_rows(*LEVELS))) for reward in (BRIGHTNESS, darkness))
    assert (-torch.tensor(turned)).tolist() == straight


@pytest.fixture(scope="module")
def general_preference(tmp_path_factory):
    folder = write_phi3_vision(tmp_path_factory.mktemp("phi"))
    model = make_model(folder, objective="general-preference", value_head_dim=4)
    return LlavaReward(model.network.eval(), {"alignment": model.key})


def official_probability(reward, question):
    """sigmoid of (c_0 r_1 - c_1 r_0 + ...) / tau, as the public evaluation of LLaVA-Reward writes it."""
    chosen, rejected = reward.embed([image.load() for image in question.images], question.caption)
    product = sum(chosen[i] * rejected[i + 1] - chosen[i + 1] * rejected[i] for i in range(0, len(chosen), 2))
    return torch.sigmoid(product / reward.config.temperature).item()


def test_a_general_preference_is_asked_for_its_probability(general_preference):
    questions = table(pair_rows(*LEVELS))
    scores = score_questions(general_preference, questions)
    expected = [official_probability(general_preference, question) for question in questions]
    assert [row[0] for row in scores] == pytest.approx(expected, abs=1e-5)
    assert [sum(row) for row in scores] == pytest.approx([1.0] * 3)
    assert compares(general_preference)


def test_scores_of_a_general_preference_would_depend_on_the_other_questions(general_preference):
    """Why it is asked for probabilities: its scores compare all images of a caption in the call."""
    images, captions = zip(
        *((image.load(), q.caption) for q in table(pair_rows(*LEVELS)) for image in q.images), strict=True
    )
    together = general_preference(list(images), list(captions))
    alone = general_preference(list(images[:2]), list(captions[:2]))
    assert not torch.allclose(together[:2], alone, atol=1e-4)


def test_a_composition_with_a_general_preference_does_not_depend_on_the_batch(general_preference):
    questions = table(pair_rows(*LEVELS))
    mixed = 0.5 * general_preference + 0.5 * BRIGHTNESS
    together = score_questions(mixed, questions)
    alone = [score_questions(mixed, [question])[0] for question in questions]
    torch.testing.assert_close(torch.tensor(together), torch.tensor(alone), atol=1e-5, rtol=0)


class PrefersBright:
    """An engine that answers by brightness; a language model's place in a judge of pairs."""

    name = "prefers bright"

    def generate(self, images, messages, *, sampling):
        means = [[np.asarray(image).mean() for image in group] for group in images]
        return [f"<answer>{1 if first > second else 2}</answer>" for first, second in means]


def test_a_judge_of_pairs_is_asked_for_its_preference():
    assert score_questions(PreferenceJudge(PrefersBright()), table(pair_rows(*LEVELS))) == [[1, 0], [1, 0], [1, 0]]


def test_single_pictures_cannot_be_compared(general_preference):
    rows = [{"caption": "a nurse", "image0": grey(9)}]
    assert score_questions(BRIGHTNESS, table(rows, "bias"))[0] == pytest.approx([9 / 255])
    with pytest.raises(ValueError, match="cannot score one by itself"):
        score_questions(general_preference, table(rows, "bias"))


MANY_LEVELS = np.random.default_rng(0).permutation(120).reshape(-1, 2).tolist()
ROWS = [
    {"caption": f"caption {i}", "image0": grey(a), "image1": grey(b), "label": i % 2}
    for i, (a, b) in enumerate(MANY_LEVELS)
]


def answer(reward, rows, store, *, shard=(0, 1), batch_size=16):
    method, share = RewardMethod("brightness", reward, batch_size=batch_size), Share(shard)
    steps = runner.run(mjbench_task(table(rows)), [method], store, share=share)
    return [(step.done, step.todo) for step in steps]


def run(folder, reward=BRIGHTNESS, *, shard=(0, 1), **options):
    store = ResultStore(folder, {"reward": "brightness"}, writer=Share(shard).name)
    return answer(reward, ROWS, store, shard=shard, **options), store


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"))[1].answers()


def test_results(expected):
    assert [result["index"] for result in expected] == list(range(60))
    assert expected[3]["scores"] == pytest.approx([level / 255 for level in MANY_LEVELS[3]])
    assert expected[3] | {"scores": None} == {
        "index": 3,
        "caption": "caption 3",
        "subset": "",
        "label": 1,
        "scores": None,
    }


def test_killed_ten_times(tmp_path, expected):
    counting = Counting(killed_at=np.random.default_rng(1).choice(np.arange(1, 41), 10, replace=False).tolist())
    num_kills = 0
    while True:
        try:
            run(tmp_path, CallableReward(counting), batch_size=2)
            break
        except KeyboardInterrupt:
            num_kills += 1
    assert num_kills == 10
    assert ResultStore(tmp_path).answers() == expected
    assert Counter(counting.asked) == {row["caption"]: 2 for row in ROWS}, "a question has two images, scored once"


def test_a_run_that_forgets_what_is_done_is_noticed(tmp_path):
    counting = Counting()
    for _ in range(2):
        store = ResultStore(tmp_path / str(counting.calls), {})
        answer(CallableReward(counting), ROWS, store)
    assert Counter(counting.asked) != {row["caption"]: 2 for row in ROWS}


@pytest.mark.parametrize("share", [0.1, 0.5, 0.93])
def test_a_line_cut_by_a_kill_is_scored_again(tmp_path, expected, share):
    _, store = run(tmp_path)
    (path,) = tmp_path.glob("results-*.jsonl")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    ((_, num_left),) = run(tmp_path, batch_size=100)[0]
    assert 0 < num_left < 60
    assert store.answers() == expected


def test_shards_share_the_work(tmp_path, expected):
    counting = Counting()
    for index in (2, 0):
        run(tmp_path, CallableReward(counting), shard=(index, 3), batch_size=7)
    assert len(ResultStore(tmp_path).answers()) == 40
    steps, store = run(tmp_path, CallableReward(counting), batch_size=16)
    assert steps == [(16, 20), (20, 20)], "whoever comes later does the rest, whatever the shards were"
    assert store.answers() == expected
    assert set(Counter(counting.asked).values()) == {2}


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_batches_change_nothing(tmp_path, expected, batch_size):
    assert run(tmp_path, batch_size=batch_size)[1].answers() == expected


def test_no_results_yet(tmp_path):
    with pytest.raises(ValueError, match="no results yet"):
        ResultStore(tmp_path, {}).answers()


def test_a_broken_picture_stops_the_run_and_keeps_what_is_done(tmp_path):
    rows = [*ROWS[:2], {**ROWS[2], "image1": b"no image"}]
    store = ResultStore(tmp_path, {})
    with pytest.raises(ValueError, match="rows:3: image of 8 bytes cannot be read"):
        answer(BRIGHTNESS, rows, store, batch_size=1)
    assert len(store.load()) == 2
