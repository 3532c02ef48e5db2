"""Parts on one LLaVA-Reward backbone are scored in one pass of the vision tower and the language model."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from fk_reward.planning.full_size_rewards import random_reward
from fk_reward.rewards.llava_reward.checkpoint import RewardCheckpoint
from fk_reward.rewards.llava_reward.config import LlavaRewardConfig
from fk_reward.rewards.llava_reward.llava_reward import LlavaReward
from tests.rewards.composition.scripted import Channel

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
