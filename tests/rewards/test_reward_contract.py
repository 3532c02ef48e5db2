"""What every registered reward must do. One that needs a download has a line in `tests/tiny/registered_rewards.py`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fk_reward.rewards import REWARDS, CallableReward, Reward, RewardCard, reward_card
from tests.tiny.registered_rewards import build

EXEMPT = {  # name -> checks that do not hold, and are not meant to
    "aesthetic": {"prompts_matter"},  # marks the picture alone
    "q-align": {"prompts_matter"},  # rates the picture alone
    "vlm-judge-preference": {"batch_invariance", "prompts_matter", "batches"},  # compares the images of one prompt
    "vlm-judge-safety": {"prompts_matter"},  # judges the picture alone
}


@pytest.fixture(scope="module", params=REWARDS)
def reward(request, tiny_files):
    return build(request.param, tiny_files)


@pytest.fixture(scope="module")
def images(pictures):
    """Four different pictures (4, 3, 64, 64): circle, square, and both mixed with grey."""
    pair = torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255 for picture in pictures])
    return torch.cat([pair, 0.8 * pair + 0.1])


def check_form(reward, images, prompts):
    scores = reward(images, prompts * 2)
    assert scores.shape == (4,)
    assert scores.dtype == torch.float32
    assert scores.device == images.device
    assert scores.isfinite().all()
    assert reward(images[:1], prompts[:1]).shape == (1,)


def check_batch_invariance(reward, images, prompts):
    together = reward(images, prompts * 2)
    alone = torch.cat([reward(images[i : i + 1], (prompts * 2)[i]) for i in range(4)])
    assert_close(together, alone, rtol=0, atol=1e-5)


def check_order_of_images(reward, images, prompts):
    order = [1, 2, 0, 3]
    expected = reward(images, prompts * 2)[order]
    assert_close(reward(images[order], [(prompts * 2)[i] for i in order]), expected, rtol=0, atol=1e-5)


def check_prompts_matter(reward, images, prompts):
    straight, swapped = reward(images[:2], prompts), reward(images[:2], prompts[::-1])
    assert ((straight - swapped).abs() > 1e-4).all()


def check_pictures_matter(reward, images, prompts):
    scores = reward(images[:2], prompts[0])
    assert (scores[0] - scores[1]).abs() > 1e-4


def check_one_prompt_for_many(reward, images, prompts):
    assert_close(reward(images, prompts[0]), reward(images, [prompts[0]] * 4), rtol=0, atol=0)


def check_determinism(reward, images, prompts):
    assert_close(reward(images, prompts * 2), reward(images, prompts * 2), rtol=0, atol=0)


def check_input_untouched(reward, images, prompts):
    before = images.clone()
    reward(images, prompts * 2)
    assert_close(images, before, rtol=0, atol=0)


CHECKS = {
    check.__name__.removeprefix("check_"): check
    for check in (
        check_form,
        check_batch_invariance,
        check_order_of_images,
        check_prompts_matter,
        check_pictures_matter,
        check_one_prompt_for_many,
        check_determinism,
        check_input_untouched,
    )
}


def skip_exempt(reward, check):
    if check in EXEMPT.get(reward.card.name, ()):
        pytest.skip(f"{reward.card.name} is exempt from {check}")


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_contract(check, reward, images, prompts):
    skip_exempt(reward, check.__name__.removeprefix("check_"))
    check(reward, images, prompts)


def test_card_is_complete(reward, request):
    registered = reward_card(request.node.callspec.params["reward"])
    assert registered.name in REWARDS
    assert "not stated" not in (registered.licence, registered.source)
    known = all(abs(bound) < float("inf") for bound in registered.typical_range)
    assert known == ("llava-reward" not in registered.name), "the ranges of LLaVA-Rewards are not measured"


@pytest.mark.parametrize("kind", ["tensor", "pil", "array", "uint8 array", "list of tensors"])
def test_kinds_of_input_agree(reward, images, pictures, prompts, kind):
    tensor = images[:2]
    converted = {
        "tensor": tensor.double(),
        "pil": pictures,
        "array": tensor.permute(0, 2, 3, 1).numpy(),
        "uint8 array": (tensor.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy(),
        "list of tensors": list(tensor),
    }[kind]
    assert_close(reward(converted, prompts), reward(tensor, prompts), rtol=0, atol=1e-5)


def test_batches_change_nothing(reward, images, prompts, monkeypatch):
    skip_exempt(reward, "batches")
    expected = reward(images, prompts * 2)
    sizes = []
    score = reward.score
    monkeypatch.setattr(reward, "score", lambda images, prompts: sizes.append(len(images)) or score(images, prompts))
    monkeypatch.setattr(reward, "batch_size", 3)
    assert_close(reward(images, prompts * 2), expected, rtol=0, atol=1e-5)
    assert sizes == [3, 1]


def test_gradient_if_the_card_claims_it(reward, images, prompts):
    if not reward.card.differentiable:
        pytest.skip("the card claims no gradient")
    images = images.clone().requires_grad_()
    reward(images, prompts * 2)[0].backward()
    assert images.grad[0].isfinite().all()
    assert images.grad[0].abs().max() > 0
    assert images.grad[1:].abs().max() == 0  # the score of one image does not depend on the others


def test_wrong_range_raises(reward, images, prompts):
    with pytest.raises(ValueError, match=r"\[0, 1\].*images / 2 \+ 0\.5"):
        reward(images * 2 - 1, prompts * 2)


class Brightness(Reward):
    """A reward that keeps every rule but those about prompts, as a base for the saboteurs."""

    card = RewardCard(name="brightness", summary="mean of all pixels")

    def score(self, images, prompts):
        return images.mean(dim=(1, 2, 3)) + torch.tensor([float(len(prompt)) for prompt in prompts])


class RelativeToTheBatch(Brightness):
    def score(self, images, prompts):
        scores = super().score(images, prompts)
        return scores - scores.mean()


class PromptBlind(Brightness):
    def score(self, images, prompts):
        return images.mean(dim=(1, 2, 3))


class PictureBlind(Brightness):
    def score(self, images, prompts):
        return torch.tensor([float(len(prompt)) for prompt in prompts])


class Reversed(Brightness):
    def score(self, images, prompts):
        return super().score(images, prompts).flip(0)


class PromptsSorted(Brightness):
    def score(self, images, prompts):
        return super().score(images, sorted(prompts))


class Counting(Brightness):
    calls = 0

    def score(self, images, prompts):
        self.calls += 1
        return super().score(images, prompts) + self.calls


class InPlace(Brightness):
    """Past the base class's call, whose `score` gets a copy."""

    def __call__(self, images, prompts):
        return super().__call__(images.mul_(0.5), prompts)


class Squeezed(Brightness):
    def score(self, images, prompts):
        return super().score(images, prompts).squeeze()


SABOTEURS = [
    (RelativeToTheBatch, check_batch_invariance),
    (PromptBlind, check_prompts_matter),
    (PictureBlind, check_pictures_matter),
    (Reversed, check_order_of_images),
    (PromptsSorted, check_order_of_images),
    (Counting, check_determinism),
    (InPlace, check_input_untouched),
    (Squeezed, check_form),
]


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_an_honest_reward_passes(check, images, prompts):
    check(Brightness(), images, prompts)
    check(CallableReward(Brightness().score, "brightness"), images, prompts)


@pytest.mark.parametrize(("saboteur", "check"), SABOTEURS)
def test_a_broken_reward_is_noticed(saboteur, check, images, prompts):
    with pytest.raises((AssertionError, ValueError)):
        check(saboteur(), images.clone(), prompts)
