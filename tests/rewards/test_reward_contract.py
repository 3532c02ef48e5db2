"""What every registered reward must do. One that needs a download has a line in `tests/tiny/registered_rewards.py`."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from fk_reward.rewards import REWARDS, CallableReward, Reward, RewardCard, load_reward, reward_card
from tests.tiny.registered_rewards import OPTIONS, build

EXEMPT = {  # name -> checks that do not hold, and are not meant to
    "aesthetic": {"prompts_matter"},  # marks the picture alone
    "aesthetic-v2.5": {"prompts_matter"},
    "image-classifier": {"prompts_matter"},  # names the picture alone
    "imageguard": {"prompts_matter"},  # judges the picture alone
    "nudenet": {"prompts_matter"},  # looks at the picture alone
    "q-align": {"prompts_matter"},  # rates the picture alone
    "perspectivevision": {"prompts_matter"},
    "shieldgemma-2": {"prompts_matter"},
    "vlm-judge-llavaguard": {"prompts_matter"},  # judges the picture alone
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
    assert "not stated" not in (registered.looks_at, registered.licence, registered.source)
    known = all(abs(bound) < float("inf") for bound in registered.typical_range)
    assert known == ("llava-reward" not in registered.name), "the ranges of LLaVA-Rewards are not measured"


@pytest.mark.parametrize("kind", ["tensor", "array", "list of tensors"])
def test_kinds_of_input_agree(reward, images, prompts, kind):
    tensor = images[:2]
    converted = {
        "tensor": tensor.double(),
        "array": tensor.permute(0, 2, 3, 1).numpy(),
        "list of tensors": list(tensor),
    }[kind]
    assert_close(reward(converted, prompts), reward(tensor, prompts), rtol=0, atol=1e-5)


def test_8_bit_images_agree(reward, images, pictures, prompts):
    """With each other, and, where the reward rounds while it resizes them, nearly with floats."""
    tensor = images[:2]
    array = (tensor.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    scores, exact = reward(pictures, prompts), reward(tensor, prompts)
    assert_close(reward(array, prompts), scores, rtol=0, atol=1e-5)
    rounding = 0.1 * float(reward(images, prompts * 2).std()) if reward.accepts_uint8 else 0.0
    assert_close(scores, exact, rtol=0, atol=1e-5 + rounding)


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


PROMPT = "a photo of a red circle"
BOUNDS = {  # what the definition of the score cannot leave; the typical range of the card is only a description
    "blip-itm": (0, 1),
    "clipscore": (-1, 1),
    "geneval": (0, 1),
    "hpsv2": (-1, 1),
    "hpsv2.1": (-1, 1),
    "image-classifier": (0, 1),
    "imageguard": (0, 1),
    "llava-score": (0, 1),
    "nudenet": (0, 1),
    "ocr": (0, 1),
    "q-align": (0, 1),
    "shapes-clipscore": (-1, 1),
    "shapes-verifier": (0, 1),
    "unified-reward": (1, 5),
    "vlm-judge": (1, 10),
    "vlm-judge-alignment": (0, 1),
    "vlm-judge-preference": (0, 1),
    "vlm-judge-evalalign": (0, 2),
    "vlm-judge-viescore": (0, 10),
    "vqascore": (0, 1),
}
WRONG_MODELS = {  # name -> options with files of another model in the place of its own
    "aesthetic": lambda tiny: {"model": tiny.blip_itm},
    "aesthetic-v2.5": lambda tiny: {"model": tiny.clip},
    "blip-itm": lambda tiny: {"model": tiny.clip},
    "clipscore": lambda tiny: {"model": tiny.blip_itm},
    "cyclereward": lambda tiny: {"weights": tiny.imagereward / "ImageReward.pt"},
    "hpsv2": lambda tiny: {"weights": tiny.imagereward / "ImageReward.pt"},
    "hpsv2.1": lambda tiny: {"weights": tiny.imagereward / "ImageReward.pt"},
    "hpsv3": lambda tiny: {"weights": f"{tiny.siglip}/model.safetensors"},
    "image-classifier": lambda tiny: {"model": tiny.clip},
    "imageguard": lambda tiny: {"words": tiny.words.viescore},
    "imagereward": lambda tiny: {"weights": tiny.cyclereward, "tokenizer": tiny.imagereward / "tokenizer"},
    "llava-score": lambda tiny: {"model": tiny.clip},
    "perspectivevision": lambda tiny: {"model": tiny.clip},
    "pickscore": lambda tiny: {"model": tiny.blip_itm},
    "q-align": lambda tiny: {"model": tiny.clip},
    "shieldgemma-2": lambda tiny: {"model": tiny.clip},
    "unified-reward": lambda tiny: {"model": tiny.clip},
    "vqascore": lambda tiny: {"model": tiny.clip},
    **{name: lambda tiny: {"backbone": tiny.clip} for name in OPTIONS if name.startswith("llava-reward")},
    **{name: lambda tiny: {"engine": None, "model": tiny.clip} for name in OPTIONS if name.startswith("vlm-judge")},
}


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def with_alpha():
    picture = Image.new("RGBA", (40, 30), (220, 40, 40, 128))
    picture.putpixel((3, 4), (0, 0, 0, 0))
    return picture


WHITE = Image.new("RGBA", (40, 30), (255, 255, 255, 255))
BYTES = (noise(3, 30, 40) * 255).to(torch.uint8)
ODD_PICTURES = {  # picture -> what it must score like; None where there is nothing to compare it with
    "one pixel": (noise(3, 1, 1), None),
    "one pixel, PIL": (Image.new("RGB", (1, 1), (200, 30, 30)), None),
    "one row": (noise(3, 1, 64), None),
    "one column": (noise(3, 64, 1), None),
    "grey": (Image.new("L", (40, 30), 99), Image.new("RGB", (40, 30), (99, 99, 99))),
    "transparent": (with_alpha(), Image.alpha_composite(WHITE, with_alpha()).convert("RGB")),
    "uint8": (BYTES, Image.fromarray(BYTES.movedim(0, 2).numpy())),
}


@pytest.mark.parametrize(("picture", "same"), ODD_PICTURES.values(), ids=ODD_PICTURES)
def test_odd_pictures(reward, picture, same):
    score = reward(picture, PROMPT)
    assert score.shape == (1,)
    assert score.isfinite().all()
    if same is not None:
        assert_close(score, reward(same, PROMPT), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "prompts", "message"),
    [
        (noise(2, 3, 32, 32), [], "0 prompts"),
        (noise(2, 3, 32, 32), [PROMPT], "1 prompt"),
        (noise(2, 3, 32, 32), [PROMPT] * 3, "3 prompts"),
        ([], [], "no images|at least one"),
        (noise(0, 3, 32, 32), PROMPT, "no images|at least one"),
    ],
)
def test_unequal_and_empty_lists_raise(reward, images, prompts, message):
    with pytest.raises(ValueError, match=message):
        reward(images, prompts)


def test_an_empty_prompt_has_a_score_or_raises_clearly(reward):
    if reward.card.name == "shapes-verifier":
        with pytest.raises(ValueError, match="not a sentence of the shapes world"):
            reward(noise(1, 3, 64, 64), "")
    elif reward.card.name in ("geneval", "vlm-judge-evalalign"):
        with pytest.raises(ValueError, match=r"no (record of|questions about) the prompt"):
            reward(noise(1, 3, 64, 64), "")
    elif reward.card.name == "ocr":
        with pytest.raises(ValueError, match="needs a prompt with the text in double quotes"):
            reward(noise(1, 3, 64, 64), "")
    else:
        assert reward(noise(1, 3, 64, 64), "").isfinite().all()


def test_scores_stay_within_what_the_definition_allows(reward, request):
    low, high = BOUNDS.get(request.node.callspec.params["reward"], (-torch.inf, torch.inf))
    scores = torch.cat([reward(noise(4, 3, 48, 48, seed=seed), PROMPT) for seed in range(2)])
    scores = torch.cat([scores, reward(torch.zeros(1, 3, 48, 48), PROMPT), reward(torch.ones(1, 3, 48, 48), PROMPT)])
    assert (scores >= low - 1e-6).all()
    assert (scores <= high + 1e-6).all()


READERS = (
    "torch.load",
    "safetensors.safe_open",
    "safetensors.torch.load_file",
    "huggingface_hub.hf_hub_download",
    "transformers.PreTrainedModel.from_pretrained",
    "transformers.PreTrainedTokenizerBase.from_pretrained",
)


def test_calls_read_no_files(reward, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a file is read anew")

    for reader in READERS:
        monkeypatch.setattr(reader, refuse)
    assert reward(noise(2, 3, 64, 64), PROMPT).isfinite().all()
    assert reward(noise(2, 3, 64, 64), PROMPT).isfinite().all()


def test_bounds_are_those_of_registered_rewards():
    assert set(BOUNDS) <= set(REWARDS)
    for name, (low, high) in BOUNDS.items():
        assert low <= reward_card(name).typical_range[0] < reward_card(name).typical_range[1] <= high


@pytest.mark.parametrize("name", REWARDS)
def test_half_weights_give_float32_scores_near_those_of_full_ones(name, tiny_files, pictures, prompts):
    full = build(name, tiny_files)
    if full.device is None:
        pytest.skip(f"{name} has no weights here")
    expected = full(pictures, prompts)
    half = build(name, tiny_files, torch_dtype=torch.bfloat16)
    scores = half(pictures, prompts)
    assert scores.dtype == torch.float32
    assert torch.bfloat16 in {weight.dtype for module in half._held_modules() for weight in module.parameters()}
    assert_close(scores, expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", REWARDS)
def test_all_that_a_reward_holds_moves(name, tiny_files):
    reward = build(name, tiny_files, **({"torch_dtype": torch.float64} if takes_dtype(name) else {}))  # shared by none
    if reward.device is None:
        pytest.skip(f"{name} has no weights here")
    assert reward.to("meta") is reward
    held = [tensor for module in reward._held_modules() for tensor in (*module.parameters(), *module.buffers())]
    loose = [value for value in vars(reward).values() if isinstance(value, torch.Tensor)]
    assert {tensor.device.type for tensor in held + loose} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", REWARDS)
def test_scores_on_a_gpu(name, tiny_files, pictures, prompts):
    expected = build(name, tiny_files)(pictures, prompts)
    moved = build(name, tiny_files).to("cuda")
    scores = moved(pictures, prompts)
    assert scores.device.type == "cpu", "that of the images"
    assert_close(scores, expected, rtol=1e-3, atol=1e-3)


def takes_dtype(name):
    return "torch_dtype" in inspect.signature(load_entry(name).build).parameters and not name.startswith("vlm-judge")


def load_entry(name):
    module, attribute = REWARDS[name].split(":")
    return getattr(__import__(module, fromlist=[attribute]), attribute)


WITHOUT_FILES = {"geneval", "nudenet", "ocr"}  # the engines come with a package, and scripts stand for them here


def test_every_reward_with_files_is_tried_with_wrong_ones():
    assert set(WRONG_MODELS) == set(OPTIONS) - WITHOUT_FILES


@pytest.mark.parametrize("name", WRONG_MODELS)
def test_files_of_another_model_raise(name, tiny_files):
    options = OPTIONS[name](name, tiny_files) | WRONG_MODELS[name](tiny_files)
    with pytest.raises(ValueError) as error:
        load_reward(name, **options)
    assert len(str(error.value)) < 1500, "short enough to be read"
