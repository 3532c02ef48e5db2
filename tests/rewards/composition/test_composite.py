"""A composition keeps the rules of every reward, and does with its parts what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fk_reward.planning.full_size_rewards import random_reward
from fk_reward.rewards import (
    CompositeReward,
    NonFiniteScoreError,
    Reward,
    RewardCard,
    gate,
    load_reward,
    maximum,
    minimum,
    reward_card,
    standardize,
)
from fk_reward.rewards.llava_reward.checkpoint import RewardCheckpoint
from fk_reward.rewards.llava_reward.config import LlavaRewardConfig
from fk_reward.rewards.llava_reward.llava_reward import LlavaReward
from tests.rewards.composition.scripted import Channel, WithPrompt, pixels
from tests.rewards.test_reward_contract import CHECKS

SCORES = [(1.0, 2.0, -1.0), (-2.0, 0.5, 3.0), (0.0, -4.0, 0.25)]
IMAGES = pixels(*SCORES)


def rewards():
    return Channel(0), Channel(1), Channel(2)


def scores_of(reward):
    return reward(IMAGES, "anything").tolist()


@pytest.mark.parametrize(
    ("compose", "name", "expected"),
    [
        (lambda a, b, c: 0.75 * a + 0.25 * b, "0.75*a + 0.25*hps-v2.1", [1.25, -1.375, -1.0]),
        (lambda a, b, c: 0.25 * (a + 2 * (b - c)), "0.25*a + 0.5*hps-v2.1 - 0.5*safe@q", [1.75, -1.75, -2.125]),
        (lambda a, b, c: sum([a, b, c]), "a + hps-v2.1 + safe@q", [2.0, 1.5, -3.75]),
        (lambda a, b, c: 1 - a / 2, "-0.5*a + 1", [0.5, 2.0, 1.0]),
        (lambda a, b, c: -a + np.float64(2), "-a + 2", [1.0, 4.0, 2.0]),
        (lambda a, b, c: minimum(a, 0.5, b), "min(a, 0.5, hps-v2.1)", [0.5, -2.0, -4.0]),
        (lambda a, b, c: maximum(a - 1, c), "max(a - 1, safe@q)", [0.0, 3.0, 0.25]),
        (lambda a, b, c: standardize(a), "z(a, mean=0, spread=0.5)", [2.0, -4.0, 0.0]),
        (lambda a, b, c: standardize(a, mean=1, spread=2), "z(a, mean=1, spread=2)", [0.0, -1.5, -0.5]),
        (lambda a, b, c: gate(a, c, above=0), "a if safe@q > 0 else -4", [-4.0, -2.0, 0.0]),
        (lambda a, b, c: gate(a, c, below=0.25, otherwise=b), "a if safe@q < 0.25 else hps-v2.1", [1.0, 0.5, -4.0]),
    ],
)
@pytest.mark.usefixtures("scripted")
def test_objects_and_texts_give_the_arithmetic_by_hand(compose, name, expected):
    reward = compose(*rewards())
    assert reward.card.name == name
    assert scores_of(reward) == expected
    assert scores_of(load_reward(name)) == expected


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
@pytest.mark.parametrize(
    "compose",
    [
        lambda a, b: 0.7 * a + 0.3 * b,
        lambda a, b: minimum(a, b, 30),
        lambda a, b: gate(standardize(a, mean=3, spread=2), b, above=-90, otherwise=0),
    ],
)
def test_contract(check, compose, pictures, prompts):
    pair = torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255 for picture in pictures])
    check(compose(WithPrompt(0), WithPrompt(2)), torch.cat([pair, 0.8 * pair + 0.1]), prompts)


def test_each_part_is_scored_once_a_call():
    a, b, c = rewards()
    (minimum(a, 2 * a + b) + gate(a, b, above=0, otherwise=b) + a)(IMAGES, "x")
    assert (a.calls, b.calls, c.calls) == ([3], [3], [])


@pytest.mark.usefixtures("scripted")
def test_each_name_is_loaded_once():
    reward = load_reward("min(a, 2*a) + a*3 + safe@q")
    assert list(reward.parts) == ["a", "safe@q"]
    scores, parts = reward.score_with_parts(IMAGES, "x")
    assert {name: values.tolist() for name, values in parts.items()} == {"a": [1, -2, 0], "safe@q": [-1, 3, 0.25]}
    assert scores.tolist() == [3.0, -7.0, 0.25]


def test_other_rewards_have_no_parts():
    scores, parts = Channel(0).score_with_parts(IMAGES, "x")
    assert scores.tolist() == [1.0, -2.0, 0.0]
    assert parts == {}


def test_pictures_of_several_sizes_keep_their_order():
    images = [torch.full((3, size, size), size / 8) for size in (1, 4, 2, 4)]
    assert_close((Channel(0) * 2)(images, "x"), 2 * Channel(0)(images, "x"))


def test_gradients_come_through():
    a, b, c = rewards()
    images = IMAGES.clone().requires_grad_()
    (3 * a + gate(minimum(a, b), c, above=0, otherwise=0))(images, "x").sum().backward()
    assert images.grad[:, :, 0, 0].tolist() == [[24, 0, 0], [32, 0, 0], [24, 8, 0]]


def test_batch_size_reaches_the_parts():
    a, b, _ = rewards()
    reward = a + b
    assert reward.batch_size is None
    reward.batch_size = 2
    assert scores_of(reward) == [3.0, -1.5, -4.0]
    assert (a.calls, b.calls, reward.batch_size) == ([2, 1], [2, 1], 2)
    b.batch_size = 1
    assert reward.batch_size is None


class Weighted(Channel):
    def __init__(self, *args, **card):
        super().__init__(*args, **card)
        self.layer = nn.Linear(1, 1)


def test_moving_reaches_the_parts():
    plain, held, other = Channel(0), Weighted(1), Weighted(2)
    reward = plain + held - other
    assert reward.device == torch.device("cpu")
    assert (plain * 2).device is None
    assert reward.to("meta", torch.float16) is reward
    assert {part.layer.weight.dtype for part in (held, other)} == {torch.float16}
    assert reward.device == other.device == torch.device("meta")


def test_rewards_of_one_name_are_kept_apart():
    first, second = Channel(0), Channel(1, "a")
    reward = (first + 2 * second) + (0.5 * second - first)
    assert reward.card.name == "0*a + 2.5*a#2"
    assert scores_of(reward) == [5.0, 1.25, -10.0]


def test_a_score_that_is_not_finite_is_named():
    for weight, name in ((1e300, r"1e\+300\*a' gave inf"), (-1e300, r"-1e\+300\*a' gave -inf")):
        with pytest.raises(NonFiniteScoreError, match=rf"'{name} for image 0"):
            scores_of(weight * Channel(0))

    class Broken(Channel):
        def score(self, images, prompts):
            return super().score(images, prompts).log()

    with pytest.raises(NonFiniteScoreError, match=r"Reward 'a' gave nan for image 1, prompt 'q'") as caught:
        (Broken(0) + Channel(1))(IMAGES, ["p", "q", "r"])
    assert caught.value.index == 1


class Guard(Channel):
    """Forbids the first of the three images."""

    def score(self, images, prompts):
        return super().score(images, prompts).masked_fill(torch.tensor([True, False, False]), -torch.inf)


def test_a_part_that_forbids_an_image_forbids_it_for_the_composition():
    plain, guard = Channel(0), Guard(1)
    allowed = scores_of(plain + guard)[1:]
    assert scores_of(plain + guard) == [-torch.inf, *allowed]
    assert scores_of(minimum(plain, guard))[0] == scores_of(standardize(guard, mean=0.0, spread=2.0))[0] == -torch.inf
    assert scores_of(maximum(plain, guard))[0] == scores_of(plain)[0]
    assert scores_of(gate(plain, guard, above=-5.0, otherwise=-7.0))[0] == -7.0


def test_a_part_of_weight_zero_is_only_watched():
    """0 * -inf is NaN in floating point."""
    assert scores_of(Channel(0) + 0 * Guard(1)) == scores_of(Channel(0))
    assert scores_of(0 * Guard(1)) == [0.0, 0.0, 0.0]


def test_minus_what_forbids_is_an_error():
    with pytest.raises(NonFiniteScoreError, match="gave inf for image 0"):
        scores_of(Channel(0) - Guard(1))
    with pytest.raises(NonFiniteScoreError, match="gave nan for image 0"):
        scores_of(Guard(0, "b") - Guard(1))


def test_a_part_of_weight_zero_keeps_the_gradient_of_a_sum():
    images = IMAGES.clone().requires_grad_()
    (0 * Channel(0))(images, "p").sum().backward()
    assert images.grad.abs().max() == 0


def test_a_part_that_changed_is_refused():
    part = Channel(0)
    reward = 2 * part
    part.card = Channel(1).card
    with pytest.raises(ValueError, match=r"a has become hps-v2.1 since 2\*a was composed"):
        scores_of(reward)


def test_what_cannot_be_composed():
    a, b, _ = rewards()
    for wrong in (lambda: a * b, lambda: a + "clipscore", lambda: a / b, lambda: torch.ones(1) * a):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(TypeError, match="Expected rewards and numbers, got str"):
        minimum(a, "clipscore")
    with pytest.raises(ValueError, match="must be finite, got inf"):
        float("inf") * a
    with pytest.raises(ValueError, match="exactly one of above and below"):
        gate(a, b)
    with pytest.raises(ValueError, match="at least one reward"):
        minimum(1, 2)


def test_lower_is_better():
    harm, a = Channel(2, "harm", higher_is_better=False), Channel(0)
    assert not (2 * harm).card.higher_is_better
    assert (a - 0.5 * harm).card.higher_is_better
    assert (-minimum(harm, 1)).card.higher_is_better
    assert (-(harm - a)).card.higher_is_better
    assert gate(a, harm, below=0).card.higher_is_better
    with pytest.raises(ValueError, match="Lower is better for harm, higher for a.*Write a minus before harm"):
        a + 0.1 * harm
    with pytest.raises(ValueError, match="Write a minus before harm"):
        gate(a, a, above=0, otherwise=harm)


def test_card():
    facts = {"licence": "MIT", "memory": "1 GB", "source": "tests"}
    a = Channel(0, **facts, max_prompt_tokens=77)
    b = Channel(1, **(facts | {"licence": "Apache-2.0"}), max_prompt_tokens=16, typical_range=(0.0, 1.0))
    card = (2 * a - 4 * b).card
    assert card.name == "2*a - 4*hps-v2.1"
    assert card.summary == "composition of a, hps-v2.1"
    assert (card.typical_range, card.spread, card.max_prompt_tokens) == ((-12.0, 8.0), None, 16)
    assert (card.licence, card.memory, card.differentiable) == ("a: MIT; hps-v2.1: Apache-2.0", "1 GB", True)
    assert not (a + Channel(1, differentiable=False)).card.differentiable
    assert (-3 * a + 1).card.spread == 1.5
    assert standardize(0.1 * a).card.spread == 1.0
    assert minimum(a, b).card.typical_range == (-4.0, 1.0)
    assert (0 * a).card.typical_range == RewardCard.typical_range
    assert (a + Channel(1, typical_range=RewardCard.typical_range)).card.typical_range == RewardCard.typical_range


@pytest.mark.usefixtures("scripted")
def test_the_card_of_a_text_needs_no_weights(monkeypatch):
    monkeypatch.setattr(Channel, "__init__", None)
    card = reward_card("clipscore/2 + 0.5*llava-reward-safety@qwen")
    assert card.name == "0.5*clipscore + 0.5*llava-reward-safety@qwen"


def test_a_gate_without_otherwise_says_what_it_does(caplog):
    reward = gate(Channel(0), Channel(2), above=0)
    assert "Images for which safe@q > 0 fails get -4, the low end" in caplog.text
    assert isinstance(reward, CompositeReward)
    with pytest.raises(ValueError, match="write else and a number"):
        gate(Channel(0, typical_range=RewardCard.typical_range), Channel(2), above=0)


class GroupDependent(Reward):
    """Relative to the other images of the call, as a general preference is."""

    card = RewardCard(name="relative", summary="the score minus the mean of the call")

    def __call__(self, images, prompts):
        return self.score(images, prompts)

    def score(self, images, prompts):
        scores = images[:, 0].mean(dim=(1, 2))
        return scores - scores.mean()


def test_parts_see_all_images_of_a_call():
    reward = GroupDependent() * 8
    reward.batch_size = 1
    assert_close(reward(IMAGES, "x"), torch.tensor([4.0, -5.0, 1.0]) / 3)


PROMPTS = ["a red circle", "two squares", "a red circle", "a red circle"]


@pytest.fixture(scope="module")
def model():
    """Alignment, fidelity, safety, and a general preference without an adapter."""
    model = random_reward("phi3_v", num_crops=1).model
    objective = {"objective": "general-preference", "value_head_dim": 4}
    config = LlavaRewardConfig(
        dimension="overall", backbone="phi3_v", base_model="random", cross_attention=False, **objective
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.attach("overall", RewardCheckpoint(config, None, lora={}, projector={}, head={}))
    return model


@pytest.fixture
def dimension(model):
    return lambda name, **options: LlavaReward(model, {name: name}, **options)


@pytest.fixture
def images():
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def passes(model, monkeypatch):
    """Calls of the vision tower and of the language model, with their numbers of rows."""
    calls = {"vision": [], "language": []}
    encode = model.backbone.encode_images

    def counted(inputs):
        calls["vision"].append(len(inputs.input_ids))
        return encode(inputs)

    monkeypatch.setattr(model.backbone, "encode_images", counted)

    def count(module, args, kwargs, output):
        calls["language"].append(len(output.last_hidden_state))

    hook = model.backbone.language_model.register_forward_hook(count, with_kwargs=True)
    yield calls
    hook.remove()


def test_one_pass_for_all_dimensions(dimension, images, passes):
    reward = 0.7 * dimension("alignment") + 0.3 * dimension("safety") - dimension("overall") + Channel(0)
    scores, parts = reward.score_with_parts(images, PROMPTS)
    assert passes == {"vision": [4], "language": [12]}
    alone = [dimension(name)(images, PROMPTS) for name in ("alignment", "safety", "overall")]
    assert passes == {"vision": [4] * 4, "language": [12, 4, 4, 4]}  # what it would cost otherwise
    assert list(parts) == ["llava-reward-alignment", "llava-reward-safety", "llava-reward-overall", "a"]
    for name, expected in zip(parts, alone, strict=False):
        assert_close(parts[name], expected, rtol=0, atol=1e-5)
    expected = 0.7 * alone[0] + 0.3 * alone[1] - alone[2] + Channel(0)(images, PROMPTS)
    assert_close(scores, expected, rtol=0, atol=1e-5)


def test_a_general_preference_compares_the_images_of_a_prompt(dimension, images, passes):
    reward = 2 * dimension("overall") + dimension("alignment")
    reward.batch_size = 3
    parts = reward.score_with_parts(images, PROMPTS)[1]
    assert passes == {"vision": [3, 1], "language": [6, 2]}
    preference = parts["llava-reward-overall"]
    assert_close(preference[[0, 2, 3]].sum(), torch.tensor(0.0), rtol=0, atol=1e-4)
    assert preference[[0, 2, 3]].abs().min() > 0
    assert preference[1] == 0  # alone with its prompt


def test_the_smallest_batch_size_holds(dimension, images, passes):
    (dimension("alignment", batch_size=3) + dimension("safety", batch_size=None))(images, PROMPTS)
    assert passes["vision"] == [3, 1]


def test_another_model_is_another_pass(dimension, images, passes):
    other = random_reward("phi3_v", num_crops=1, seed=1)
    reward = dimension("alignment") + other
    assert list(reward.parts) == ["llava-reward-alignment", "llava-reward-alignment#2"]
    reward(images, PROMPTS)
    assert passes["vision"] == [4]
    with pytest.raises(ValueError, match="on one model"):
        other.score_together([dimension("alignment")], images, PROMPTS)


def test_a_switched_dimension_is_refused(model, images):
    part = LlavaReward(model, {"alignment": "alignment", "safety": "safety"})
    reward = 2 * part
    part.set_dimension("safety")
    with pytest.raises(ValueError, match="llava-reward-alignment has become llava-reward-safety"):
        reward(images, PROMPTS)


def test_the_gradient_of_the_sum(dimension, images):
    images = images.requires_grad_()
    (dimension("alignment") + dimension("safety"))(images, PROMPTS)[0].backward()
    assert images.grad[0].abs().max() > 0
    assert images.grad[1:].abs().max() == 0
