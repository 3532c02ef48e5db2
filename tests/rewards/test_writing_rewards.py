"""A reward that writes to its images, or to its prompts, changes nothing but its own copy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fk_reward.rewards import CallableReward, Reward, RewardCard, maximum
from tests.tiny.registered_rewards import build

PROMPTS = ["a red circle", "a blue square", "a star"]


def images():
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def red(pictures, prompts):
    return pictures[:, 0].mean(dim=(1, 2))


def normalising(pictures, prompts):
    """As torchvision's `normalize(inplace=True)` does; and a prompt template, written into the list."""
    prompts[0] = "a photo"
    pictures.sub_(0.5).div_(0.1)
    return pictures[:, 0].mean(dim=(1, 2)) * 0.1 + 0.5


class Comparing(Reward):
    """Takes all images of a call, without the base class between."""

    card = RewardCard(name="comparing", summary="compares")

    def score(self, images, prompts):
        raise NotImplementedError

    def __call__(self, images, prompts):
        images.mul_(0)
        return torch.zeros(len(images))


def as_pil(pictures):
    return [Image.fromarray((255 * p).byte().permute(1, 2, 0).numpy()) for p in pictures]


FORMS = {
    "batch": lambda x: x,
    "one of the batch": lambda x: x[1:2],
    "expanded": lambda x: x[:1].expand(3, 3, 8, 8),
    "list": list,
    "float64": lambda x: x.double(),
    "array": lambda x: x.permute(0, 2, 3, 1).numpy(),
    "PIL": as_pil,
}


def numbers(form):
    return np.stack([np.asarray(image) for image in form])


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("batch_size", [None, 2])
def test_the_images_and_prompts_of_the_caller_stay(form, batch_size):
    given, prompts = form(images()), PROMPTS[: len(form(images()))]
    before, named = numbers(form(images())), list(prompts)
    scores = CallableReward(normalising, "n", batch_size=batch_size)(given, prompts)
    assert np.array_equal(numbers(given), before)
    assert prompts == named
    torch.testing.assert_close(scores, CallableReward(red)(form(images()), prompts))


COMPOSED = {
    "sum": lambda a, b: a + b,
    "three": lambda a, b: a + 0.5 * b + CallableReward(red, "third"),
    "maximum": maximum,
}


@pytest.mark.parametrize("compose", COMPOSED.values(), ids=COMPOSED)
@pytest.mark.parametrize("mixed_sizes", [False, True])
def test_the_neighbours_in_a_composition_read_the_images_that_were_given(compose, mixed_sizes):
    given = list(images()) + ([torch.rand(3, 4, 4)] if mixed_sizes else [])
    spoiling, plain = CallableReward(normalising, "n"), CallableReward(red, "r")
    _, parts = compose(spoiling, plain).score_with_parts(given, "x")
    torch.testing.assert_close(parts["r"], plain(given, "x"))
    torch.testing.assert_close(parts["n"], plain(given, "x"))


def test_a_part_with_a_call_of_its_own_cannot_spoil_them_either():
    given = images()
    _, parts = (Comparing() + CallableReward(red, "r")).score_with_parts(given, "x")
    assert torch.equal(given, images())
    torch.testing.assert_close(parts["r"], CallableReward(red)(images(), "x"))


@pytest.mark.parametrize("name", ["llava-reward-overall", "vlm-judge-preference", "imagereward", "hpsv2.1"])
def test_rewards_of_the_package_leave_what_they_are_given(name, tiny_files):
    """Those that take all images of a call past the base class as well."""
    given = torch.rand(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    before = given.clone()
    reward = build(name, tiny_files)
    reward(given, "a star")
    (reward + CallableReward(red, "r"))(given, "a star")
    assert torch.equal(given, before)


def test_the_gradient_goes_through_the_copy():
    given = images().requires_grad_()
    CallableReward(normalising, "n")(given, "x").sum().backward()
    expected = images().requires_grad_()
    red(expected, []).sum().backward()
    torch.testing.assert_close(given.grad, expected.grad)


def test_a_buffer_that_the_reward_fills_again_does_not_change_earlier_scores():
    buffer = torch.zeros(3)
    reward = CallableReward(lambda pictures, prompts: buffer.copy_(red(pictures, prompts)), "b")
    first = reward(images(), "x")
    kept = first.clone()
    reward(1 - images(), "x")
    assert torch.equal(first, kept)
