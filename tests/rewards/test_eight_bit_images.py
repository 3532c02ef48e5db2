"""8-bit images, PIL's or uint8, are read as the processors of transformers read them; floating ones are not rounded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from fk_reward.rewards import CallableReward, ImagePreprocessing, load_reward
from fk_reward.rewards.answer_model import pixel_transform
from fk_reward.rewards.inputs import group_by_size, in_order, to_pil
from fk_reward.rewards.llava_reward.backbones.llava_next import AnyResTransform
from fk_reward.rewards.llava_reward.backbones.phi3_vision import CLIP_MEAN, CLIP_STD, HDTransform
from fk_reward.rewards.preprocessing import SquarePreprocessing, TorchvisionPreprocessing, pad_to_square
from fk_reward.rewards.qwen_patches import PatchTransform
from tests.rewards.llava_reward.backbones.test_phi3_vision import official_crops
from tests.tiny.imagereward_reference import pil_pixels
from tests.tiny.registered_rewards import build

EXACT = 2e-6  # float32 in another order of the same two operations
GRID = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
SHAPES = {
    "landscape": (300, 480),
    "portrait": (511, 333),
    "square": (512, 512),
    "small": (40, 57),
    "wide": (180, 703),
    "no resizing": (224, 224),
    "thin": (600, 30),
}


def noise(shape, seed=0):
    """(H, W, 3), saturated blocks: their hard edges overshoot, and their averages lie everywhere."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (shape[0] // 3 + 1, shape[1] // 3 + 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(blocks.repeat(3, axis=0).repeat(3, axis=1)[: shape[0], : shape[1]])


def as_uint8(array):
    return torch.from_numpy(array).permute(2, 0, 1)


def by_processor(processor, array):
    output = processor(Image.fromarray(array), return_tensors="pt")["pixel_values"]
    return output[0] if output.ndim == 5 else output


def processors():
    import transformers

    return {
        "CLIP": transformers.CLIPImageProcessorPil(),
        "CLIP, odd crop": transformers.CLIPImageProcessorPil(size={"shortest_edge": 65}, crop_size=62),
        "CLIP, bilinear": transformers.CLIPImageProcessorPil(resample=2),
        "BLIP": transformers.BlipImageProcessorPil(),
        "SigLIP": transformers.SiglipImageProcessorPil(),
        "LLaVA-1.5": transformers.LlavaImageProcessorPil(do_pad=True),
        "Qwen": transformers.Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 784 * 300}),
    }


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", processors())
def test_pixels_are_those_of_the_processor(name, shape):
    processor, array = processors()[name], noise(shape)
    if name == "CLIP, odd crop" and min(shape) < 62:
        pytest.skip("a crop that does not fit is refused")
    got = pixel_transform(processor)(as_uint8(array)[None])
    assert_close(got, by_processor(processor, array), rtol=0, atol=EXACT)


@pytest.mark.parametrize("name", [name for name in processors() if name != "SigLIP"])
def test_without_the_rounding_the_check_fails(name):
    processor, array = processors()[name], noise((300, 480))
    got = pixel_transform(processor)(as_uint8(array)[None] / 255)
    difference = (got - by_processor(processor, array)).abs().max().item()
    assert 1e-3 < difference < 2 / 255 / min(processor.image_std)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("num_crops", "size"), [(4, 336), (16, 112)])
def test_crops_of_phi_are_those_of_the_official_processor(num_crops, size, shape):
    array = noise(shape)
    got = HDTransform(num_crops=num_crops, crop_size=size)(as_uint8(array))
    expected = official_crops(array, num_crops=num_crops, size=size)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    # The global crop is shrunk after normalisation there and before it in the oracle: float32 rounds otherwise.
    assert_close(got * std + mean, expected, rtol=0, atol=2e-5)


class UprightAsTheyAre(HDTransform):
    """Does not turn upright images on their side before PIL resizes them."""

    @staticmethod
    def _resize_by_pil(images, shape):
        turned = Image.fromarray(images[0].permute(1, 2, 0).numpy()).resize(shape[::-1], Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(turned)).permute(2, 0, 1)[None]


def test_the_order_of_the_passes_is_noticed():
    array = noise((511, 333))
    expected = official_crops(array, num_crops=4, size=336)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    difference = (UprightAsTheyAre(num_crops=4)(as_uint8(array)) * std + mean - expected).abs().max()
    assert difference > 0.9 / 255


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_crops_of_llava_next_are_those_of_the_processor(shape):
    from transformers import LlavaNextImageProcessorPil

    config = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}, "image_grid_pinpoints": GRID}
    array = noise(shape)
    expected = by_processor(LlavaNextImageProcessorPil(**config), array)
    assert_close(AnyResTransform.from_config(config)(as_uint8(array)), expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_torchvision_on_pil_images(shape):
    preprocessing = TorchvisionPreprocessing(size=224, crop_size=(224, 224), mean=(0.0,) * 3, std=(1.0,) * 3)
    array = noise(shape)
    assert_close(preprocessing(as_uint8(array)[None])[0], pil_pixels(Image.fromarray(array), 224), rtol=0, atol=0)


def test_images_of_one_dtype_stay_of_one_dtype():
    images = as_uint8(noise((9, 12)))
    for transform in (HDTransform(num_crops=1, crop_size=8), PatchTransform.from_config({}), pixels_of(8)):
        for given in (images, images / 255):
            output = transform(given if not isinstance(transform, ImagePreprocessing) else given[None])
            assert (output[0] if isinstance(output, tuple) else output).dtype == torch.float32


def pixels_of(size):
    return ImagePreprocessing.from_config({"size": size, "crop_size": size})


# LLaVA-1.5's square.


@pytest.mark.parametrize("shape", [(192, 336), (511, 300), (7, 4), (5, 5)])
def test_the_square_has_the_mean_colour_and_the_image_in_its_middle(shape):
    array = noise(shape)
    side, colour = max(shape), tuple(int(mean * 255) for mean in CLIP_MEAN)
    square = Image.new("RGB", (side, side), colour)
    square.paste(Image.fromarray(array), ((side - shape[1]) // 2, (side - shape[0]) // 2))
    expected = as_uint8(np.array(square))[None]
    assert torch.equal(pad_to_square(as_uint8(array)[None], CLIP_MEAN), expected)
    assert_close(pad_to_square(as_uint8(array)[None] / 255, CLIP_MEAN), expected / 255, rtol=0, atol=1e-7)


def test_every_part_of_the_image_is_read_once_it_is_padded():
    images = torch.rand(1, 3, 64, 192, generator=torch.Generator().manual_seed(0)).requires_grad_()
    padded, cropped = SquarePreprocessing(pixels_of(32)), pixels_of(32)
    read, unread = (torch.autograd.grad(f(images).square().sum(), images)[0].abs() for f in (padded, cropped))
    assert (read[..., :50].sum() > 0) and (read[..., -50:].sum() > 0)
    assert (unread[..., :50].sum() == 0) and (unread[..., -50:].sum() == 0)


def test_padding_where_there_is_no_clip_is_refused():
    from transformers import Qwen2VLImageProcessorPil

    with pytest.raises(ValueError, match="pad_to_square is for image processors like CLIP's"):
        pixel_transform(Qwen2VLImageProcessorPil(), pad_to_square=True)


# On the way from the caller to the preprocessing.

KINDS = {
    "PIL images": lambda arrays: [Image.fromarray(array) for array in arrays],
    "uint8 tensor": lambda arrays: torch.stack([as_uint8(array) for array in arrays]),
    "uint8 arrays": np.stack,
    "mixed": lambda arrays: [Image.fromarray(arrays[0]), as_uint8(arrays[1])],
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_8_bit_images_stay_8_bit_where_asked(kind):
    arrays = [noise((6, 9)), noise((6, 9), seed=1)]
    kept, divided = group_by_size(kind(arrays), keep_uint8=True), group_by_size(kind(arrays))
    assert [group.images.dtype for group in kept] == [torch.uint8]
    assert [group.images.dtype for group in divided] == [torch.float32]
    assert_close(divided[0].images, kept[0].images / 255, rtol=0, atol=0)
    assert [image.tobytes() for image in to_pil(kept[0].images)] == [array.tobytes() for array in arrays]


def test_floating_and_8_bit_images_of_one_size_are_groups_apart():
    images = [Image.fromarray(noise((6, 9))), torch.rand(3, 6, 9), as_uint8(noise((6, 9)))]
    assert [group.indices for group in group_by_size(images, keep_uint8=True)] == [(0, 2), (1,)]
    assert [group.indices for group in group_by_size(images)] == [(0, 1, 2)]
    assert [image.dtype for image in in_order(images, keep_uint8=True)] == [torch.uint8, torch.float32, torch.uint8]
    assert in_order(images).shape == (3, 3, 6, 9)


def test_a_function_still_gets_floating_images():
    seen = []
    reward = CallableReward(lambda images, prompts: seen.append(images.dtype) or images.mean(dim=(1, 2, 3)))
    (reward + 0.0)([Image.fromarray(noise((6, 9)))], "a")
    reward(as_uint8(noise((6, 9))), "a")
    assert seen == [torch.float32, torch.float32]


READS_AS_PIL = ["aesthetic", "blip-itm", "clipscore", "imagereward", "llava-reward-alignment", "llava-score"]
READS_AS_PIL += ["llava-reward-alignment@qwen", "pickscore", "q-align", "shapes-clipscore", "vqascore"]


@pytest.mark.parametrize("name", READS_AS_PIL)
def test_rewards_get_8_bit_images_and_leave_floating_ones_unrounded(name, tiny_files):
    reward, arrays = build(name, tiny_files), [noise((90, 130), seed) for seed in (0, 1)]
    given = {}
    score = reward.score
    reward.score = lambda images, prompts: given.setdefault(images.dtype, score(images, prompts))
    by_pil = reward([Image.fromarray(array) for array in arrays], "a red circle")
    tensors = torch.stack([as_uint8(array) for array in arrays])
    assert list(given) == [torch.uint8]
    assert_close(reward(tensors, "a red circle"), by_pil, rtol=0, atol=0)
    floating = (tensors / 255).requires_grad_()
    unrounded = reward(floating, "a red circle")
    assert list(given) == [torch.uint8, torch.float32]
    assert not torch.equal(unrounded.detach(), by_pil)  # the rounding of the resizing
    unrounded.sum().backward()
    assert floating.grad.abs().amax(dim=(1, 2, 3)).min() > 0


def test_a_composition_passes_8_bit_images_on(tiny_files):
    image = Image.fromarray(noise((90, 130)))
    reward = build("clipscore", tiny_files)
    assert_close((2 * reward)([image], "a cat"), 2 * reward([image], "a cat"), rtol=0, atol=1e-7)


def test_the_scores_of_a_real_pass_through_the_processor(tiny_clip):
    """CLIPScore on PIL images against transformers' own processor and model, digit for digit."""
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    images, prompts = [Image.fromarray(noise((90, 130), seed)) for seed in (0, 1)], ["a cat", "two dogs"]
    model = CLIPModel.from_pretrained(tiny_clip).eval()
    pixels = CLIPImageProcessorPil.from_pretrained(tiny_clip)(images, return_tensors="pt")["pixel_values"]
    tokens = CLIPTokenizer.from_pretrained(tiny_clip)(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(pixel_values=pixels, **tokens).logits_per_image.diagonal() / model.logit_scale.exp()
    assert_close(load_reward("clipscore", model=tiny_clip)(images, prompts), expected, rtol=0, atol=1e-6)
