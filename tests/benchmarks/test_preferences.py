"""Accuracy on preference data: by hand, against scipy, with the reward's own preference, and with broken rewards."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from scipy.stats import mannwhitneyu

from fk_reward.benchmarks.preferences import (
    Answers,
    accuracy_rows,
    area_under_curve,
    ask_reward,
    is_label_logit,
    join_answers,
    measure_rewards,
    summarize_answers,
)
from fk_reward.rewards import RewardCard, load_reward
from fk_reward.rewards.llava_reward import LlavaReward
from fk_reward.rewards.vlm_judge import PreferenceJudge
from fk_reward.training import read_preferences
from tests.tiny.phi3_vision import write_phi3_vision
from tests.tiny.scripted_judge import ScriptedEngine
from tests.tiny.training import make_model


def brightness(images, prompts):
    return images.mean(dim=(1, 2, 3))


def grey(level):
    return Image.new("RGB", (28, 28), (level, level, level))


def pairs(*levels):
    """Pairs of grey images, chosen and rejected; each prompt stands twice."""
    rows = [
        {"prompt": f"prompt {i // 2}", "chosen_path": grey(chosen), "reject_path": grey(rejected)}
        for i, (chosen, rejected) in enumerate(levels)
    ]
    return read_preferences(rows)


RIGHT, WRONG = (200, 100), (50, 150)


def test_by_hand():
    tie = read_preferences([{"prompt": ["light", "dark"], "chosen_path": grey(9), "reject_path": grey(9)}])
    files = {"first": [*pairs(RIGHT, WRONG, RIGHT), *tie], "second": pairs(RIGHT, RIGHT)}
    first, second, overall = accuracy_rows(load_reward(brightness), files, batch_size=2)
    assert (first["num"], first["num_prompts"], first["accuracy"], first["ties"]) == (4, 3, 0.5, 0.25)
    assert first["accuracy_without_ties"] == pytest.approx(2 / 3)
    assert first["low"] < 0.5 < first["high"]
    assert (second["accuracy"], second["low"], second["high"]) == (1, 1, 1)
    assert (overall["file"], overall["num"], overall["accuracy"]) == ("overall", 6, pytest.approx(4 / 6))
    assert all("auc" not in row for row in (first, second, overall))


def test_a_reversed_reward_is_found_out_and_a_card_that_says_so_helps():
    items = pairs(RIGHT, RIGHT, WRONG)
    reversed_reward = load_reward(lambda images, prompts: -brightness(images, prompts))
    reversed_reward.card = RewardCard(name="darkness", summary="lower is better", higher_is_better=False)
    wrong = load_reward(lambda images, prompts: -brightness(images, prompts))
    accuracies = [summarize_answers(ask_reward(reward, items))["accuracy"] for reward in (reversed_reward, wrong)]
    assert accuracies == pytest.approx([2 / 3, 1 / 3])


def test_each_picture_is_scored_under_its_own_prompt():
    rows = [{"prompt": ["true", "false"], "chosen_path": grey(9), "reject_path": grey(9)}]
    reward = load_reward(lambda images, prompts: torch.tensor([float(prompt == "true") for prompt in prompts]))
    assert ask_reward(reward, read_preferences(rows)).right.all()


def test_batches_change_nothing():
    items = pairs(RIGHT, WRONG, RIGHT, RIGHT, WRONG)
    first, second = (ask_reward(load_reward(brightness), items, batch_size=size) for size in (2, 64))
    assert torch.equal(first.logits, second.logits)


def test_area_under_curve_is_that_of_mann_and_whitney():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (40,), generator=generator).float()  # with many ties
    labels = torch.rand(40, generator=generator) < 0.4
    expected = mannwhitneyu(scores[labels], scores[~labels]).statistic / (labels.sum() * (~labels).sum())
    assert area_under_curve(scores, labels) == pytest.approx(float(expected))
    assert area_under_curve(scores, torch.ones(40, dtype=torch.bool)) is None


def labelled():
    rows = [{"prompt": "", "path": grey(level), "label": label} for level, label in ((9, 0), (99, 1), (50, 0), (40, 1))]
    return read_preferences(rows)


def test_labels_are_ordered_and_have_no_border_unless_the_reward_has_one():
    (row,) = accuracy_rows(load_reward(brightness), {"labels": labelled()})
    assert row["auc"] == 0.75
    assert "accuracy" not in row
    logits = torch.tensor([-1.0, 2.0, 1.0, 0.5])
    answers = Answers(logits, torch.tensor([False, True, False, True]), ("a", "b", "c", "d"), is_labelled=True)
    assert summarize_answers(answers, label_logits=True)["accuracy"] == 0.75


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return write_phi3_vision(tmp_path_factory.mktemp("phi"))


def llava_reward(backbone, **config):
    model = make_model(backbone, **config)
    return LlavaReward(model.network.eval(), {"alignment": model.key})


def test_a_general_preference_answers_as_it_prefers(backbone):
    reward = llava_reward(backbone, objective="general-preference", value_head_dim=4)
    items = pairs(RIGHT, WRONG, RIGHT)
    answers = ask_reward(reward, items, batch_size=2)
    images = [[getattr(item, name).load() for item in items] for name in ("chosen", "rejected")]
    probabilities = reward.preference(*images, [item.prompt for item in items]).double()
    torch.testing.assert_close(answers.logits.sigmoid(), probabilities, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="cannot judge labelled"):
        ask_reward(reward, labelled())


def test_a_composition_with_a_general_preference_is_asked_pair_by_pair(backbone):
    """In one call its scores would depend on the other pairs of the batch."""
    mixed = llava_reward(backbone, objective="general-preference", value_head_dim=4) + load_reward(brightness)
    items = pairs(RIGHT, WRONG, RIGHT)
    together, alone = (ask_reward(mixed, items, batch_size=size).logits for size in (3, 1))
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    assert together.abs().min() > 0.01
    with pytest.raises(ValueError, match="cannot judge labelled"):
        ask_reward(mixed, labelled())


def test_a_judge_of_pairs_is_asked_for_its_preference():
    judge = PreferenceJudge(ScriptedEngine())
    row = {
        "prompt": "a",
        "chosen_path": Image.new("RGB", (8, 8), "red"),
        "reject_path": Image.new("RGB", (8, 8), "blue"),
    }
    assert ask_reward(judge, read_preferences([row])).logits.tolist() == [0.5]
    with pytest.raises(ValueError, match="two images of one prompt"):
        ask_reward(judge, read_preferences([row | {"prompt": ["a", "b"]}]))


def test_the_border_of_labels_is_for_binary_rewards(backbone):
    assert is_label_logit(llava_reward(backbone, objective="binary"))
    assert not is_label_logit(llava_reward(backbone))
    assert not is_label_logit(load_reward(brightness))


def test_pairs_and_labels_are_not_joined():
    parts = [ask_reward(load_reward(brightness), items) for items in (pairs(RIGHT), labelled())]
    with pytest.raises(ValueError, match="cannot be joined"):
        join_answers(parts)
    with pytest.raises(ValueError, match="at least one"):
        ask_reward(load_reward(brightness), [])


def test_two_forbidden_images_are_a_tie():
    """-inf less -inf is NaN, which would count as a wrong answer and not as a tie."""

    def dark_forbidden(images, prompts):
        return brightness(images, prompts).masked_fill(brightness(images, prompts) < 0.3, -torch.inf)

    answers = ask_reward(load_reward(dark_forbidden), pairs((10, 20), (200, 10), (10, 200), (200, 100)))
    assert answers.logits[:3].tolist() == [0.0, torch.inf, -torch.inf]
    assert summarize_answers(answers)["ties"] == 0.25
    scores, labels = torch.tensor([-torch.inf, -torch.inf, 1.0]), torch.tensor([True, False, False])
    assert area_under_curve(scores, labels) == 0.25


class Unconvinced:
    """A listener that would have chosen the second image in every third case."""

    name = "unconvinced"

    def __init__(self):
        self.num_asked = 0

    def weigh(self, images, messages, *, openings, candidates, ending):
        places = range(self.num_asked, self.num_asked + len(openings))
        self.num_asked += len(openings)
        return [[-2.0, -1.0] if place % 3 == 2 else [-1.0, -2.0] for place in places]


def test_contradictions_of_a_listener_stand_in_the_report(tmp_path):
    engine = ScriptedEngine()  # prefers what is redder: always the chosen image, which comes first
    judge = PreferenceJudge(engine, listener=Unconvinced(), both_orders=False)
    files = {"one": pairs(RIGHT, RIGHT, RIGHT), "two": pairs(RIGHT, RIGHT, RIGHT)}
    report = measure_rewards({"judge": judge, "plain": load_reward(brightness)}, files, tmp_path, batch_size=3)
    found = {(row["reward"], row["file"]): row.get("contradicted") for row in report.tables[0].rows}
    assert found["judge", "one"] == found["judge", "two"] == found["judge", "overall"] == pytest.approx(1 / 3)
    assert found["plain", "one"] is None
    assert judge.contradiction_rate == pytest.approx(1 / 3)
    assert "contradicted by the listener" in (tmp_path / "preferences.md").read_text()
    measure_rewards({"plain": load_reward(brightness)}, files, tmp_path)
    assert "listener" not in (tmp_path / "preferences.md").read_text()
