"""Conversion and checks of images and prompts, and of what a reward returns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.testing import assert_close

from fk_reward.rewards import CallableReward, Reward, RewardCard
from fk_reward.rewards.inputs import to_pil


class Mean(Reward):
    """Mean of each image; remembers what it was given."""

    card = RewardCard(name="mean", summary="mean of all pixels", differentiable=True)

    def __init__(self):
        self.seen = []

    def score(self, images, prompts):
        self.seen.append((images, prompts))
        return images.mean(dim=(1, 2, 3))


def uniform(value, size=(8, 6), mode="RGB"):
    return Image.new(mode, size, value)


def test_a_float_tensor_arrives_as_it_is():
    images = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    reward = Mean()
    reward(images, ["a", "b"])
    assert torch.equal(reward.seen[0][0], images)  # no rounding
    assert reward.seen[0][0].data_ptr() != images.data_ptr()  # a copy, which a reward may write to
    assert reward.seen[0][1] == ["a", "b"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_score_always_gets_float32(dtype):
    reward = Mean()
    scores = reward(torch.full((1, 3, 4, 4), 0.5, dtype=dtype), "a")
    assert reward.seen[0][0].dtype == torch.float32
    assert_close(scores, torch.tensor([0.5]))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (uniform((255, 0, 0)), [1, 0, 0]),
        (uniform(51, mode="L"), [0.2, 0.2, 0.2]),
        (uniform(1, mode="1"), [1, 1, 1]),
        (uniform((255, 0, 0, 0), mode="RGBA"), [1, 1, 1]),  # invisible red: white, where dropping alpha gives red
        (uniform((255, 0, 0, 255), mode="RGBA"), [1, 0, 0]),
        (uniform((0, 0, 0, 51), mode="RGBA"), [0.8, 0.8, 0.8]),
        (uniform((0, 255), mode="LA"), [0, 0, 0]),
        (uniform((0, 0, 0, 0), mode="CMYK"), [1, 1, 1]),
        (uniform((0, 0, 255)).quantize(4), [0, 0, 1]),
        (np.full((8, 6, 3), 51, dtype=np.uint8), [0.2, 0.2, 0.2]),
        (np.full((8, 6, 3), 0.25), [0.25, 0.25, 0.25]),
        (torch.full((3, 8, 6), 51, dtype=torch.uint8), [0.2, 0.2, 0.2]),
    ],
)
def test_single_images(image, expected):
    reward = Mean()
    scores = reward(image, "a")
    assert scores.shape == (1,)
    assert_close(reward.seen[0][0].mean(dim=(0, 2, 3)), torch.tensor(expected, dtype=torch.float32))


def test_channels_and_rows_keep_their_places():
    array = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    reward = Mean()
    reward(array, "a")
    assert_close(reward.seen[0][0][1, 2, 3, 4].item(), array[1, 3, 4, 2] / 255)


def test_a_palette_with_a_transparent_entry_lies_over_white():
    image = uniform((0, 0, 255)).quantize(4)
    image.info["transparency"] = image.getpixel((0, 0))
    assert_close(Mean()(image, "a"), torch.ones(1))


def test_flipped_and_read_only_arrays():
    array = np.linspace(0, 1, 48).reshape(4, 4, 3)[::-1]
    array.flags.writeable = False
    assert Mean()(array, "a").shape == (1,)


def test_unequal_sizes_come_back_in_order():
    images = [uniform((v, v, v), size) for v, size in ((0, (4, 4)), (51, (8, 4)), (102, (4, 4)), (255, (4, 8)))]
    reward = Mean()
    assert_close(reward(images, list("abcd")), torch.tensor([0.0, 0.2, 0.4, 1.0]))
    assert [prompts for _, prompts in reward.seen] == [["a", "c"], ["b"], ["d"]]


def test_unequal_sizes_in_batches():
    reward = Mean()
    reward.batch_size = 2
    images = [torch.full((3, 4, 4 + i % 2), i / 10) for i in range(7)]
    assert_close(reward(tuple(images), "a"), torch.arange(7) / 10)
    assert [len(images) for images, _ in reward.seen] == [2, 2, 2, 1]


def test_the_gradient_passes_through_lists_and_batches():
    image = torch.full((3, 4, 4), 0.5, requires_grad=True)
    reward = Mean()
    reward.batch_size = 1
    reward([image, torch.zeros(3, 2, 2)], "a").sum().backward()
    assert_close(image.grad, torch.full((3, 4, 4), 1 / 48))


def misread(to_pictures):
    """Of all 8-bit values, those that do not come back from tensors a little beside them."""
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).repeat(3, 1, 1)
    values[1:] = values[1:].flip(-1)
    images = torch.stack([values / 255 - 1e-3, values / 255 + 1e-3])
    pictures = [*to_pictures(images), *to_pictures([images[0, :, :4]])]
    expected = [values, values, values[:, :4]]
    pairs = ((np.asarray(picture), x.permute(1, 2, 0).numpy()) for picture, x in zip(pictures, expected, strict=True))
    return {int(value) for found, wanted in pairs for value in wanted[found != wanted]}


def test_pictures_have_the_nearest_bytes():
    assert misread(to_pil) == set()


def test_cutting_in_place_of_rounding_is_found_out():
    def cut(images):
        return [(image.clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0) for image in images]

    assert len(misread(cut)) > 100


def test_rounding_just_outside_the_range_is_accepted():
    assert_close(Mean()(torch.full((1, 3, 4, 4), 1.0005), "a"), torch.tensor([1.0005]))


GOOD = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(2, 4, 4), ValueError, r"\(2, 4, 4\)"),
        (torch.zeros(2, 4, 4, 3), ValueError, r"\(2, 4, 4, 3\)"),
        (torch.zeros(2, 1, 4, 4), ValueError, r"\(2, 1, 4, 4\)"),
        (torch.zeros(2, 3, 0, 4), ValueError, r"\(2, 3, 0, 4\)"),
        (torch.zeros(0, 3, 4, 4), ValueError, "empty"),
        ([], ValueError, "empty"),
        (np.zeros((2, 3, 4, 4)), ValueError, "channels first"),
        (np.zeros((4, 4)), ValueError, r"\(4, 4\)"),
        ([GOOD], ValueError, r"images\[0\].*single"),
        (GOOD.long(), TypeError, "int64"),
        (GOOD.bool(), TypeError, "bool"),
        (np.zeros((4, 4, 3), dtype=np.int32), TypeError, "int32"),
        (uniform(3, mode="F"), ValueError, "'F'"),
        (uniform(3, mode="I;16"), ValueError, "I;16"),
        ("picture.png", TypeError, "str"),
        ([None], TypeError, "NoneType"),
        (GOOD - 1, ValueError, "images / 2"),
        (GOOD + 255, ValueError, "images / 255"),
        (GOOD + 1.002, ValueError, r"\[0, 1\]"),
        (torch.cat([GOOD, torch.full((1, 3, 4, 4), torch.nan)]), ValueError, r"images\[2\].*not finite"),
        ([GOOD[0], torch.zeros(3, 2, 2), torch.full((3, 2, 2), torch.inf)], ValueError, r"images\[2\].*not finite"),
    ],
)
def test_wrong_images_raise(images, error, message):
    with pytest.raises(error, match=message):
        Mean()(images, "a")


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        ([], ValueError, "0 prompts"),
        (["a"], ValueError, "plain string"),
        (["a"] * 3, ValueError, "3 prompts"),
        (["a", None], TypeError, r"prompts\[1\]"),
        (None, TypeError, "NoneType"),
        ({"a", "b"}, TypeError, "set"),
    ],
)
def test_wrong_prompts_raise(prompts, error, message):
    with pytest.raises(error, match=message):
        Mean()(GOOD, prompts)


@pytest.mark.parametrize(
    ("fn", "error", "message"),
    [
        (lambda images, prompts: images.mean(), ValueError, r"\(2,\).*\(\)"),
        (lambda images, prompts: images.mean(dim=(2, 3))[:, :1], ValueError, r"\(2, 1\)"),
        (lambda images, prompts: torch.zeros(3), ValueError, r"\(3,\)"),
        (lambda images, prompts: torch.zeros(2, dtype=torch.int64), TypeError, "int64"),
        (lambda images, prompts: [0.0, 0.0], TypeError, "list"),
        (lambda images, prompts: torch.tensor([0.0, torch.nan]), ValueError, "'broken' gave nan for image 1.*'b'"),
        (lambda images, prompts: torch.tensor([torch.inf, 0.0]), ValueError, "gave inf for image 0.*'a'"),
        (lambda images, prompts: torch.tensor([-1e300, 0.0], dtype=torch.float64), ValueError, "gave -1e\\+300 for"),
    ],
)
def test_wrong_scores_raise(fn, error, message):
    with pytest.raises(error, match=message):
        CallableReward(fn, "broken")(GOOD, ["a", "b"])


def test_minus_infinity_is_a_score_that_forbids():
    reward = CallableReward(lambda images, prompts: torch.tensor([-torch.inf, 0.0]), "guard")
    assert reward(GOOD, "a").tolist() == [-torch.inf, 0.0]


def test_a_broken_score_is_named_by_its_place_in_the_call():
    reward = CallableReward(lambda images, prompts: (images[:, 0, 0, 0] - 0.5).log(), "log", batch_size=2)
    images = torch.ones(5, 3, 2, 2)
    images[3] = 0
    with pytest.raises(ValueError, match="image 3, prompt 'd'"):
        reward(images, list("abcde"))


@pytest.mark.parametrize("batch_size", [0, -1, 1.5])
def test_wrong_batch_size_raises(batch_size):
    with pytest.raises(ValueError, match="batch_size"):
        CallableReward(lambda images, prompts: images.mean(dim=(1, 2, 3)), batch_size=batch_size)(GOOD, "a")


def test_half_scores_become_float32():
    scores = CallableReward(lambda images, prompts: images.half().mean(dim=(1, 2, 3)))(GOOD, "a")
    assert scores.dtype == torch.float32


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, images, prompts):
        return (images.to(self.weight.dtype).mean(dim=(2, 3)) * self.weight).sum(dim=1)


def test_modules_are_found_and_moved():
    reward = CallableReward(Linear())
    assert reward.card.name == "Linear"
    assert reward.device == torch.device("cpu")
    assert reward.to(dtype=torch.float64) is reward
    assert reward.fn.weight.dtype == torch.float64
    assert reward(GOOD, "a").dtype == torch.float32
    assert reward.to("meta").device == torch.device("meta")


def test_a_reward_without_weights_has_no_device():
    assert Mean().device is None
    assert Mean().to("cpu", torch.float16).device is None


def test_a_callable_must_be_callable():
    with pytest.raises(TypeError, match="str"):
        CallableReward("clipscore")


def test_score_is_abstract():
    with pytest.raises(TypeError, match="score"):
        Reward()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_images_come_to_the_weights_and_scores_to_the_images():
    scores = CallableReward(Linear())(GOOD.cuda(), "a")
    assert scores.device.type == "cuda"
    assert CallableReward(Linear()).to("cuda")(GOOD, "a").device.type == "cpu"
