"""LLaVA-NeXT against transformers' own processor and model, on tiny checkpoints in the hub's layout."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
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


def images_of_sizes(*, dtype: torch.dtype = torch.float32) -> list[Tensor]:
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
    inputs = tiny.backbone.prepare(images_of_sizes(), PROMPTS)
    expected = tiny.official_inputs(images_of_sizes(), PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        ids = inputs.input_ids[row][inputs.attention_mask[row]]
        assert torch.equal(ids, expected["input_ids"][row][expected["attention_mask"][row].bool()]), prompt
    assert inputs.num_visual_tokens == (expected["input_ids"] == tiny.processor.image_token_id).sum(dim=1).tolist()
    assert len(set(inputs.num_visual_tokens)) > 2
    assert not inputs.attention_mask[:, 1:].gt(inputs.attention_mask[:, :-1]).any(), "padding is on the right"


@pytest.mark.parametrize("number", range(len(SIZES)), ids=list(SIZES))
@torch.no_grad()
def test_hidden_states_agree_with_transformers(tiny: Tiny, number: int) -> None:
    images, prompts = images_of_sizes()[number : number + 1], PROMPTS[number : number + 1]
    hidden = hidden_states(tiny.backbone, tiny.backbone.prepare(images, prompts))
    outputs = tiny.oracle(**tiny.official_inputs(images, prompts), output_hidden_states=True)
    torch.testing.assert_close(hidden, outputs.hidden_states[-1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_last_states_agree_with_the_official_left_padded_batch(tiny: Tiny) -> None:
    outputs = tiny.oracle(**tiny.official_inputs(images_of_sizes(), PROMPTS), output_hidden_states=True)
    states = last_states(tiny.backbone, images_of_sizes(), PROMPTS)
    torch.testing.assert_close(states, outputs.hidden_states[-1][:, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch(vicuna: Tiny, attn_implementation: str) -> None:
    backbone = LlavaNextBackbone.from_pretrained(vicuna.folder, attn_implementation=attn_implementation)
    together = last_states(backbone, images_of_sizes(), PROMPTS)
    alone = torch.cat(
        [last_states(backbone, [image], [prompt]) for image, prompt in zip(images_of_sizes(), PROMPTS, strict=True)]
    )
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_padding_gives_no_nan(vicuna: Tiny) -> None:
    inputs = vicuna.backbone.prepare(images_of_sizes(), PROMPTS)
    assert not inputs.attention_mask.all()
    assert hidden_states(vicuna.backbone, inputs).isfinite().all()


@torch.no_grad()
def test_images_and_prompts_change_the_state(vicuna: Tiny) -> None:
    image, other = torch.full((3, 16, 16), 0.2), torch.full((3, 16, 16), 0.8)
    states = last_states(vicuna.backbone, [image, other, image], ["a cat", "a cat", "a dog"])
    assert (states[1:] - states[0]).abs().amax(dim=1).min() > 0.1


def check_visual_tokens(backbone: LlavaNextBackbone, expected: Tensor) -> None:
    tokens = visual_tokens(backbone, backbone.prepare(images_of_sizes(), PROMPTS))
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
    inputs = vicuna.official_inputs(images_of_sizes(), PROMPTS)
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
    inputs = vicuna.official_inputs(images_of_sizes(), PROMPTS)
    expected = whole.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output
    check_visual_tokens(backbone, torch.cat(expected))
    used = {-1: 3, -2: 2, 1: 1}.get(layers, 2) if isinstance(layers, int) else 2
    assert len(backbone.model.vision_tower.encoder.layers) == used, "layers behind the features are not kept"


def test_gradient_to_the_images_agrees_with_finite_differences(vicuna: Tiny) -> None:
    backbone = LlavaNextBackbone.from_pretrained(vicuna.folder, torch_dtype=torch.float64)
    images = images_of_sizes(dtype=torch.float64)[:3]
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
    states = last_states(backbone, images_of_sizes(), PROMPTS)
    assert backbone.dtype == states.dtype == torch.bfloat16
    similarity = torch.cosine_similarity(states.float(), last_states(vicuna.backbone, images_of_sizes(), PROMPTS))
    assert similarity.min() > 0.99


@torch.no_grad()
def test_neither_head_nor_cache(vicuna: Tiny) -> None:
    backbone = vicuna.backbone
    assert not any("lm_head" in name for name, _ in backbone.named_parameters())
    inputs = backbone.prepare(images_of_sizes()[:1], PROMPTS[:1])
    arguments = backbone.language_arguments(inputs, visual_tokens(backbone, inputs))
    assert backbone.language_model(**arguments).past_key_values is None


STD = (0.26862954, 0.26130258, 0.27577711)
PIL_ROUNDING = 1.25 / 255  # two passes of the resizing, each rounded to 8 bits
IMAGE_SIZES = {
    "square": (16, 16),
    "crop": (8, 8),
    "wide": (11, 40),
    "tall": (51, 14),
    "tiny": (5, 6),
    "sliver": (2, 60),
    "odd margin": (13, 17),
}


def config(crop_size: int) -> dict:
    grid = [[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]]
    return {
        "crop_size": {"height": crop_size, "width": crop_size},
        "size": {"shortest_edge": crop_size},
        "image_grid_pinpoints": [[crop_size * height, crop_size * width] for height, width in grid],
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": list(STD),
        "resample": 3,
    }


def smooth_image(size: tuple[int, int], *, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8, a gradient and noise, so that neighbouring crops differ."""
    rows, columns = np.meshgrid(np.linspace(0, 120, size[0]), np.linspace(0, 90, size[1]), indexing="ij")
    noise = np.random.default_rng(seed).integers(0, 40, size=(*size, 3))
    return ((rows + columns)[..., None] + noise).astype(np.uint8)


def check_against_pil(transform: AnyResTransform, size: tuple[int, int]) -> None:
    image = smooth_image(size)
    processor = LlavaNextImageProcessorPil(**config(transform.crop_size))
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    pixel_values = transform(torch.from_numpy(image).permute(2, 0, 1).float() / 255)
    scale = torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(pixel_values * scale, expected * scale, atol=PIL_ROUNDING, rtol=0)


@pytest.mark.parametrize("size", IMAGE_SIZES.values(), ids=IMAGE_SIZES)
def test_pixels_agree_with_pil(size: tuple[int, int]) -> None:
    check_against_pil(AnyResTransform.from_config(config(8)), size)


@pytest.mark.parametrize("size", [(512, 512), (200, 900)])
def test_pixels_agree_with_pil_at_the_real_crop_size(size: tuple[int, int]) -> None:
    check_against_pil(AnyResTransform.from_config(config(336)), size)


class ColumnMajor(AnyResTransform):
    def _cut(self, canvas: torch.Tensor) -> torch.Tensor:
        return super()._cut(canvas.transpose(1, 2)).transpose(2, 3)


class MarginAtTheEnd(AnyResTransform):
    def _fit(self, image: torch.Tensor) -> torch.Tensor:
        canvas = super()._fit(image)
        return torch.roll(canvas, shifts=(-1, -1), dims=(1, 2))


class Distorted(AnyResTransform):
    def _fit(self, image: torch.Tensor) -> torch.Tensor:
        return self._resize(image, tuple(super()._fit(image).shape[-2:]))


class GridFirst(AnyResTransform):
    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return super().__call__(image).roll(-1, dims=0)


@pytest.mark.parametrize("saboteur", [ColumnMajor, MarginAtTheEnd, Distorted, GridFirst])
def test_the_comparison_sees_what_is_wrong(saboteur: type[AnyResTransform]) -> None:
    right = AnyResTransform.from_config(config(8))
    wrong = saboteur(crop_size=8, grid_pinpoints=right.grid_pinpoints, pixels=right.pixels)
    check_against_pil(right, IMAGE_SIZES["odd margin"])
    with pytest.raises(AssertionError):
        check_against_pil(wrong, IMAGE_SIZES["odd margin"])


def test_margins_are_black_before_normalisation() -> None:
    transform = AnyResTransform.from_config(config(8))
    crops = transform(torch.ones(3, 8, 40))  # 3 crops side by side, of which 24 x 5 pixels are image
    black = -torch.tensor(transform.pixels.mean) / torch.tensor(transform.pixels.std)
    assert len(crops) == 4
    torch.testing.assert_close(crops[1:, :, 0], black.view(1, 3, 1).expand(3, 3, 8))
    torch.testing.assert_close(crops[1:, :, -2:], black.view(1, 3, 1, 1).expand(3, 3, 2, 8))


def test_gradient_agrees_with_finite_differences() -> None:
    transform = AnyResTransform.from_config(config(4))
    image = 0.3 + 0.4 * torch.rand(3, 5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(transform, (image.requires_grad_(),))


@pytest.mark.parametrize("changes", [
    {"crop_size": {"height": 8, "width": 16}},
    {"size": {"shortest_edge": 16}},
    {"do_center_crop": False},
    {"do_resize": False},
    {"do_rescale": False},
])  # fmt: skip
def test_a_processor_that_does_something_else_is_refused(changes: dict) -> None:
    with pytest.raises(ValueError, match="size|rescale"):
        AnyResTransform.from_config(config(8) | changes)


@pytest.mark.parametrize("grid", [(), ((8, 12),), ((0, 8),)])
def test_a_grid_that_cannot_be_cut_is_refused(grid: tuple) -> None:
    transform = AnyResTransform.from_config(config(8))
    with pytest.raises(ValueError, match="multiples of crop_size=8"):
        dataclasses.replace(transform, grid_pinpoints=grid)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava_next(tmp_path_factory.mktemp("llava-next"))


def write_changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """A checkpoint to whose weights `change` was applied."""
    write_llava_next(folder, num_shards=1)
    file = folder / "model-00001-of-00001.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, file.name)}))
    return folder


@pytest.fixture(scope="module")
def backbone(folder: Path) -> LlavaNextBackbone:
    return LlavaNextBackbone.from_pretrained(folder)


def test_everything_is_frozen(backbone: LlavaNextBackbone) -> None:
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_old_names_are_all_read(folder: Path) -> None:
    names = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(names.values())) == 2, "the checkpoint is sharded"
    assert {"language_model.model.norm.weight", "image_newline", "multi_modal_projector.linear_1.bias"} <= names.keys()
    assert "vision_tower.vision_model.embeddings.class_embedding" in names
    _, info = LlavaNextModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] | info["mismatched_keys"]
    assert info["unexpected_keys"] == {"language_model.lm_head.weight"}


@pytest.mark.parametrize(
    "name",
    [
        "image_newline",
        "multi_modal_projector.linear_1.bias",
        "language_model.model.layers.1.mlp.up_proj.weight",
        "vision_tower.vision_model.pre_layrnorm.weight",
    ],
)
def test_a_missing_weight_is_an_error(tmp_path: Path, name: str) -> None:
    folder = write_changed(tmp_path, lambda weights: weights.pop(name))
    with pytest.raises(ValueError, match=f"lacks weights: .*{name.rpartition('.')[2]}"):
        LlavaNextBackbone.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("language_model.model.norm.weight", r"other sizes .*norm\.weight \(3,\)"),
        ("language_model.model.layers.0.self_attn.q_proj.bias", r"LlavaNextModel does not have: .*q_proj\.bias"),
    ],
)
def test_a_weight_of_another_architecture_is_an_error(tmp_path: Path, name: str, message: str) -> None:
    folder = write_changed(tmp_path, lambda weights: weights.update({name: torch.ones(3)}))
    with pytest.raises(ValueError, match=message):
        LlavaNextBackbone.from_pretrained(folder)


def test_a_folder_without_a_configuration_is_an_error(tmp_path: Path) -> None:
    folder = write_llava_next(tmp_path)
    (folder / "config.json").unlink()
    with pytest.raises(OSError, match=r"has no config\.json"):
        LlavaNextBackbone.from_pretrained(folder)


def test_a_prompt_with_the_image_token_is_refused(backbone: LlavaNextBackbone) -> None:
    with pytest.raises(ValueError, match="must not contain '<image>'"):
        backbone.prepare([torch.zeros(3, 8, 8)], ["a cat <image>"])


def test_as_many_prompts_as_images(backbone: LlavaNextBackbone) -> None:
    with pytest.raises(ValueError, match="zip"):
        backbone.prepare([torch.zeros(3, 8, 8)] * 2, ["a cat"])


def test_a_transform_of_another_model_is_refused(backbone: LlavaNextBackbone) -> None:
    other = AnyResTransform(crop_size=8, grid_pinpoints=((8, 16),), pixels=backbone.transform.pixels)
    with pytest.raises(ValueError, match="does not fit the model"):
        LlavaNextBackbone(backbone.model, backbone.tokenizer, other)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, "has no chat template"),
        ("{{ messages[0]['content'][0]['text'] }}", "once and then the prompt"),
        ("{{ messages[0]['content'][0]['text'] }}<image>", "once and then the prompt"),
        ("<image>", "once and then the prompt"),
    ],
)
def test_a_chat_template_without_the_image_is_refused(
    backbone: LlavaNextBackbone, template: str | None, reason: str
) -> None:
    tokenizer = copy.deepcopy(backbone.tokenizer)
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=reason):
        LlavaNextBackbone(backbone.model, tokenizer, backbone.transform)
