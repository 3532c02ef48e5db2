"""The LLaVA-NeXT backbone against transformers' own processor and model, on tiny checkpoints in the hub's layout."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextModel,
    LlavaNextProcessor,
)
from transformers.models.llava_next import modeling_llava_next

from fk_reward.rewards.llava_reward.backbones.base import BackboneInputs
from fk_reward.rewards.llava_reward.backbones.llava_next import AnyResTransform, LlavaNextBackbone
from tests.tiny.llava_next import write_llava_next

SIZES = {"square": (16, 16), "wide": (11, 40), "tall": (51, 14), "small": (5, 6), "sliver": (2, 60), "odd": (13, 17)}
PROMPTS = ["a red cube", "two dogs on a skateboard, oil painting", "é", "x y  z", " blanks ", "a cat\nand a hat"]
PROMPT_END = {"llama": " ASSISTANT:", "mistral": " [/INST]"}  # what follows the prompt; 11 characters for vicuna


class Tiny:
    """A backbone on a tiny checkpoint, and transformers' classes on the same files."""

    def __init__(self, folder: Path, text_model: str) -> None:
        self.folder = write_llava_next(folder, text_model=text_model)
        self.text_model = text_model
        self.backbone = LlavaNextBackbone.from_pretrained(self.folder)
        self.oracle = LlavaNextForConditionalGeneration.from_pretrained(self.folder, dtype=torch.float32).eval()
        self.processor = LlavaNextProcessor.from_pretrained(self.folder)
        self.processor.image_processor = LlavaNextImageProcessorPil.from_pretrained(self.folder)

    def official_text(self, prompt: str) -> str:
        content = [{"type": "text", "text": prompt}, {"type": "image"}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        assert text.endswith(PROMPT_END[self.text_model])
        return text.removesuffix(PROMPT_END[self.text_model]) + self.processor.tokenizer.eos_token

    def official_inputs(self, images: Sequence[Tensor], prompts: Sequence[str]) -> dict[str, Tensor]:
        """What the official code's processor makes, padded on the left, but with the backbone's pixel values."""
        arrays = [(image.permute(1, 2, 0) * 255).byte().numpy() for image in images]
        texts = [self.official_text(prompt) for prompt in prompts]
        inputs = self.processor(images=arrays, text=texts, padding=True, return_tensors="pt")
        crops = [self.backbone.transform(image) for image in images]
        inputs["pixel_values"] = torch.nn.utils.rnn.pad_sequence(crops, batch_first=True)
        return inputs


@pytest.fixture(scope="module", params=["llama", "mistral"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def vicuna(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("vicuna"), "llama")


def pictures(*, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [0.2 + 0.6 * torch.rand(3, *size, generator=generator, dtype=dtype) for size in SIZES.values()]


def visual_tokens(backbone: LlavaNextBackbone, inputs: BackboneInputs) -> Tensor:
    return backbone.project(backbone.encode_images(inputs), inputs, backbone.projector)


def hidden_states(backbone: LlavaNextBackbone, inputs: BackboneInputs) -> Tensor:
    arguments = backbone.language_arguments(inputs, visual_tokens(backbone, inputs))
    return backbone.language_model(**arguments).last_hidden_state


def last_states(backbone: LlavaNextBackbone, images: Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
    inputs = backbone.prepare(images, prompts)
    return hidden_states(backbone, inputs)[torch.arange(len(images)), inputs.last_token]


def test_vicuna_reads_the_official_text(vicuna: Tiny) -> None:
    assert vicuna.official_text("a cat") == "USER: <image>\na cat</s>"


def test_token_ids_agree_with_the_processor(tiny: Tiny) -> None:
    inputs = tiny.backbone.prepare(pictures(), PROMPTS)
    expected = tiny.official_inputs(pictures(), PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        ids = inputs.input_ids[row][inputs.attention_mask[row]]
        assert torch.equal(ids, expected["input_ids"][row][expected["attention_mask"][row].bool()]), prompt
    assert inputs.num_visual_tokens == (expected["input_ids"] == tiny.processor.image_token_id).sum(dim=1).tolist()
    assert len(set(inputs.num_visual_tokens)) > 2
    assert not inputs.attention_mask[:, 1:].gt(inputs.attention_mask[:, :-1]).any(), "padding stands on the right"


@pytest.mark.parametrize("number", range(len(SIZES)), ids=list(SIZES))
@torch.no_grad()
def test_hidden_states_agree_with_transformers(tiny: Tiny, number: int) -> None:
    images, prompts = pictures()[number : number + 1], PROMPTS[number : number + 1]
    hidden = hidden_states(tiny.backbone, tiny.backbone.prepare(images, prompts))
    outputs = tiny.oracle(**tiny.official_inputs(images, prompts), output_hidden_states=True)
    torch.testing.assert_close(hidden, outputs.hidden_states[-1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_last_states_agree_with_the_official_left_padded_batch(tiny: Tiny) -> None:
    outputs = tiny.oracle(**tiny.official_inputs(pictures(), PROMPTS), output_hidden_states=True)
    states = last_states(tiny.backbone, pictures(), PROMPTS)
    torch.testing.assert_close(states, outputs.hidden_states[-1][:, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch(vicuna: Tiny, attn_implementation: str) -> None:
    backbone = LlavaNextBackbone.from_pretrained(vicuna.folder, attn_implementation=attn_implementation)
    together = last_states(backbone, pictures(), PROMPTS)
    alone = torch.cat(
        [last_states(backbone, [image], [prompt]) for image, prompt in zip(pictures(), PROMPTS, strict=True)]
    )
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_padding_gives_no_nan(vicuna: Tiny) -> None:
    inputs = vicuna.backbone.prepare(pictures(), PROMPTS)
    assert not inputs.attention_mask.all()
    assert hidden_states(vicuna.backbone, inputs).isfinite().all()


@torch.no_grad()
def test_pictures_and_prompts_change_the_state(vicuna: Tiny) -> None:
    image, other = torch.full((3, 16, 16), 0.2), torch.full((3, 16, 16), 0.8)
    states = last_states(vicuna.backbone, [image, other, image], ["a cat", "a cat", "a dog"])
    assert (states[1:] - states[0]).abs().amax(dim=1).min() > 0.1


def check_visual_tokens(backbone: LlavaNextBackbone, expected: Tensor) -> None:
    tokens = visual_tokens(backbone, backbone.prepare(pictures(), PROMPTS))
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-5)


def with_newline(patch: pytest.MonkeyPatch, newline: Tensor | None) -> None:
    pack = LlavaNextModel.pack_image_features

    def sabotaged(*arguments: object, image_newline: Tensor, **options: object) -> object:
        return pack(*arguments, image_newline=newline, **options)

    patch.setattr(LlavaNextModel, "pack_image_features", sabotaged)


def without_newline(patch: pytest.MonkeyPatch, backbone: LlavaNextBackbone) -> None:
    with_newline(patch, None)


def with_other_newline(patch: pytest.MonkeyPatch, backbone: LlavaNextBackbone) -> None:
    with_newline(patch, torch.zeros(backbone.hidden_size))


def without_unpadding(patch: pytest.MonkeyPatch, backbone: LlavaNextBackbone) -> None:
    patch.setattr(modeling_llava_next, "unpad_image", lambda tensor, original_size: tensor)


def with_grid_first(patch: pytest.MonkeyPatch, backbone: LlavaNextBackbone) -> None:
    right = AnyResTransform.__call__
    patch.setattr(AnyResTransform, "__call__", lambda transform, image: right(transform, image).roll(-1, dims=0))


def with_last_layer(patch: pytest.MonkeyPatch, backbone: LlavaNextBackbone) -> None:
    patch.setattr(backbone, "_feature_layers", [1])


SABOTEURS = [without_newline, with_other_newline, without_unpadding, with_grid_first, with_last_layer]


@pytest.mark.parametrize("sabotage", [None, *SABOTEURS])
@torch.no_grad()
def test_visual_tokens_agree_with_transformers(
    vicuna: Tiny, monkeypatch: pytest.MonkeyPatch, sabotage: Callable[..., None] | None
) -> None:
    inputs = vicuna.official_inputs(pictures(), PROMPTS)
    features = vicuna.oracle.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output
    expected = torch.cat(features)
    if sabotage is None:
        check_visual_tokens(vicuna.backbone, expected)
        return
    sabotage(monkeypatch, vicuna.backbone)
    with pytest.raises(AssertionError):
        check_visual_tokens(vicuna.backbone, expected)


@pytest.mark.parametrize("layers", [-1, -2, 1, [-3, 2]])
@torch.no_grad()
def test_feature_layers_agree_with_transformers(vicuna: Tiny, layers: int | list[int]) -> None:
    config = json.loads((vicuna.folder / "config.json").read_text()) | {"vision_feature_layer": layers}
    model = LlavaNextModel(LlavaNextConfig(**config)).eval()
    whole = copy.deepcopy(model)
    backbone = LlavaNextBackbone(model, vicuna.backbone.tokenizer, vicuna.backbone.transform)
    inputs = vicuna.official_inputs(pictures(), PROMPTS)
    expected = whole.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output
    check_visual_tokens(backbone, torch.cat(expected))
    used = {-1: 3, -2: 2, 1: 1}.get(layers, 2) if isinstance(layers, int) else 2
    assert len(backbone.model.vision_tower.encoder.layers) == used, "layers behind the features are not kept"


def test_gradient_to_the_images_agrees_with_finite_differences(vicuna: Tiny) -> None:
    backbone = LlavaNextBackbone.from_pretrained(vicuna.folder, torch_dtype=torch.float64)
    images = pictures(dtype=torch.float64)[:3]
    generator = torch.Generator().manual_seed(1)
    reading = torch.randn(backbone.hidden_size, dtype=torch.float64, generator=generator)
    steps = [1e-3 * torch.randn(image.shape, dtype=torch.float64, generator=generator) for image in images]

    def score(factor: float) -> Tensor:
        moved = [image + factor * step for image, step in zip(images, steps, strict=True)]
        return last_states(backbone, moved, PROMPTS[:3]) @ reading

    for image in images:
        image.requires_grad_()
    gradients = torch.autograd.grad(score(0.0).sum(), images)
    for row, (gradient, step) in enumerate(zip(gradients, steps, strict=True)):
        with torch.no_grad():
            expected = (score(1.0) - score(-1.0))[row] / 2
        assert expected.abs() > 1e-4
        torch.testing.assert_close((gradient * step).sum(), expected, rtol=1e-2, atol=1e-6)


@torch.no_grad()
def test_bfloat16(vicuna: Tiny) -> None:
    backbone = LlavaNextBackbone.from_pretrained(vicuna.folder, torch_dtype=torch.bfloat16)
    states = last_states(backbone, pictures(), PROMPTS)
    assert backbone.dtype == states.dtype == torch.bfloat16
    similarity = torch.cosine_similarity(states.float(), last_states(vicuna.backbone, pictures(), PROMPTS))
    assert similarity.min() > 0.99


@torch.no_grad()
def test_neither_head_nor_cache(vicuna: Tiny) -> None:
    backbone = vicuna.backbone
    assert not any("lm_head" in name for name, _ in backbone.named_parameters())
    inputs = backbone.prepare(pictures()[:1], PROMPTS[:1])
    arguments = backbone.language_arguments(inputs, visual_tokens(backbone, inputs))
    assert backbone.language_model(**arguments).past_key_values is None
