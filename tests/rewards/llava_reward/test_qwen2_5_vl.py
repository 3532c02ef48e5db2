"""The Qwen2.5-VL backbone against transformers' own processor and model, on a tiny random checkpoint."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from fk_reward.rewards.llava_reward.backbones import qwen2_5_vl
from fk_reward.rewards.llava_reward.backbones.qwen2_5_vl import PatchTransform, QwenVLBackbone
from tests.tiny.qwen2_5_vl import CHAT_TEMPLATE, write_qwen2_5_vl

SYSTEM_TURN, ASSISTANT_TURN = 58, 23  # letters that the official dataset code cuts from the full template
SIZES = [(100, 150), (20, 31), (50, 300), (190, 60)]  # as (height, width): several windows, tiny, wide, tall
PROMPTS = ["a red horse on the use of 12 stars", "x", "", 'two\nlines, {braces}, "quotes" and Ünïcödé 星  ']


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_qwen2_5_vl(tmp_path_factory.mktemp("qwen2_5_vl"))


@pytest.fixture(scope="module")
def backbone(folder):
    return QwenVLBackbone.from_pretrained(folder)


@pytest.fixture(scope="module")
def oracle(folder):
    """Transformers' own model, loaded by its own mapping of names."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


@pytest.fixture(scope="module")
def images(arrays):
    return [torch.from_numpy(array).permute(2, 0, 1) / 255 for array in arrays]


@pytest.fixture(scope="module")
def expected_inputs(folder, backbone, arrays):
    """What the official dataset code passes on: transformers' processor on the template without its outer turns."""
    from transformers import ProcessorMixin, Qwen2_5_VLProcessor, Qwen2VLImageProcessorPil

    class ImageProcessor(Qwen2_5_VLProcessor):
        """Without the part for videos, which needs torchvision."""

        def __init__(self, image_processor, tokenizer):
            self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
            self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
            self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
            ProcessorMixin.__init__(self, image_processor, tokenizer)

    processor = ImageProcessor(Qwen2VLImageProcessorPil.from_pretrained(folder), backbone.tokenizer)
    texts = [official_text(processor.tokenizer, prompt) for prompt in PROMPTS]
    return processor(text=texts, images=[Image.fromarray(a) for a in arrays], padding=True, return_tensors="pt")


def official_text(tokenizer, prompt):
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], chat_template=CHAT_TEMPLATE, tokenize=False, add_generation_prompt=True
    )
    return text[SYSTEM_TURN:-ASSISTANT_TURN].strip()


def states(backbone, inputs):
    """Visual tokens, and hidden states of all real tokens one row after the other."""
    visual_tokens = backbone.project(backbone.encode_images(inputs), inputs, backbone.projector)
    output = backbone.language_model(**backbone.language_arguments(inputs, visual_tokens))
    assert output.last_hidden_state.isfinite().all()
    assert output.past_key_values is None
    return visual_tokens, output.last_hidden_state[inputs.attention_mask]


def last_states(backbone, images, prompts):
    inputs = backbone.prepare(images, prompts)
    hidden = states(backbone, inputs)[1]
    return hidden[inputs.attention_mask.sum(dim=1).cumsum(dim=0) - 1]


@torch.no_grad()
def check_tokens(backbone, images, expected):
    inputs = backbone.prepare(images, PROMPTS)
    assert torch.equal(inputs.input_ids, expected["input_ids"])
    assert torch.equal(inputs.attention_mask, expected["attention_mask"].bool())
    assert torch.equal(inputs.image_mask, expected["mm_token_type_ids"] == 1)
    assert torch.equal(inputs.extras["grid_thw"], expected["image_grid_thw"])
    ends = inputs.input_ids[torch.arange(len(images)), inputs.last_token]
    assert backbone.tokenizer.convert_ids_to_tokens(ends.tolist()) == ["<|im_end|>"] * len(images)


@torch.no_grad()
def check_states(backbone, images, oracle, expected):
    """Pixel values are the oracle's, so that nothing but the model is compared."""
    inputs = dataclasses.replace(backbone.prepare(images, PROMPTS), pixel_values=expected["pixel_values"])
    visual_tokens, hidden = states(backbone, inputs)
    features = oracle.model.get_image_features(expected["pixel_values"], expected["image_grid_thw"])
    torch.testing.assert_close(visual_tokens, torch.cat(features.pooler_output), atol=1e-5, rtol=0)
    output = oracle.model(**expected).last_hidden_state[expected["attention_mask"].bool()]
    torch.testing.assert_close(hidden, output, atol=1e-5, rtol=0)


def test_tokens_are_those_of_the_official_processor(backbone, images, expected_inputs):
    check_tokens(backbone, images, expected_inputs)
    assert not expected_inputs["attention_mask"].all(), "the batch should have padding"


def test_pixel_values_are_those_of_the_official_processor(backbone, images, expected_inputs):
    pixel_values = backbone.prepare(images, PROMPTS).pixel_values
    std = torch.tensor(backbone.transform.pixels.std).view(1, 3, 1)
    difference = ((pixel_values - expected_inputs["pixel_values"]).unflatten(1, (3, -1)) * std).abs()
    assert difference.max() <= 1.25 / 255  # as the tests of the preprocessing explain
    assert difference.mean() <= 0.35 / 255


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_states_are_those_of_transformers(folder, images, oracle, expected_inputs, attn_implementation):
    backbone = QwenVLBackbone.from_pretrained(folder, attn_implementation=attn_implementation)
    assert backbone.model.visual.config._attn_implementation == attn_implementation
    assert backbone.language_model.config._attn_implementation == attn_implementation
    check_states(backbone, images, oracle, expected_inputs)


def test_states_depend_on_image_and_prompt(backbone, images):
    alone = last_states(backbone, [images[0], images[3], images[0]], ["a star", "a star", "a tree"])
    assert (alone[0] - alone[1]).abs().max() > 0.1
    assert (alone[0] - alone[2]).abs().max() > 0.1


@torch.no_grad()
def check_invariance(backbone, images):
    together = last_states(backbone, images, PROMPTS)
    alone = torch.cat([last_states(backbone, [i], [p]) for i, p in zip(images, PROMPTS, strict=True)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


def test_a_state_does_not_depend_on_the_batch(backbone, images):
    check_invariance(backbone, images)


@torch.no_grad()
def test_nothing_is_remembered_between_calls(backbone, images):
    before = last_states(backbone, images[:2], PROMPTS[:2])
    last_states(backbone, images[2:], PROMPTS[2:])
    assert backbone.model.rope_deltas is None
    assert torch.equal(last_states(backbone, images[:2], PROMPTS[:2]), before)


class TextPositions(QwenVLBackbone):
    """What transformers falls back to without `mm_token_type_ids`."""

    def language_arguments(self, inputs, visual_tokens):
        return super().language_arguments(inputs, visual_tokens) | {"position_ids": None}


class WindowOrder(QwenVLBackbone):
    """Visual tokens in the order of the attention windows."""

    def encode_images(self, inputs):
        output = self.model.visual(inputs.pixel_values, grid_thw=inputs.extras["grid_thw"])
        return self.model.visual.merger(output.last_hidden_state)


class GridsOfOthers(QwenVLBackbone):
    """The grids of the images in the opposite order."""

    def prepare(self, images, prompts):
        inputs = super().prepare(images, prompts)
        grid = inputs.extras["grid_thw"].flip(0)
        return dataclasses.replace(inputs, extras={**inputs.extras, "grid_thw": grid})


@pytest.mark.parametrize("saboteur", [TextPositions, WindowOrder, GridsOfOthers], ids=lambda cls: cls.__name__)
def test_wrong_states_are_noticed(folder, images, oracle, expected_inputs, saboteur):
    with pytest.raises(AssertionError, match="not close"):
        check_states(saboteur.from_pretrained(folder), images, oracle, expected_inputs)


def test_a_batch_in_disorder_is_noticed(folder, images):
    with pytest.raises(AssertionError, match="not close"):
        check_invariance(GridsOfOthers.from_pretrained(folder), images)


@pytest.mark.parametrize("ending", ["", "<|im_end|>\n", "<|im_end|>\n<|im_start|>assistant\n"])
def test_a_wrong_ending_is_noticed(monkeypatch, backbone, images, expected_inputs, ending):
    monkeypatch.setattr(qwen2_5_vl, "TEMPLATE", qwen2_5_vl.TEMPLATE.removesuffix("<|im_end|>") + ending)
    with pytest.raises(AssertionError):
        check_tokens(backbone, images, expected_inputs)


def directional_derivatives(score, image):
    """Derivative along the gradient: by autograd, and by central differences."""
    (gradient,) = torch.autograd.grad(score(image.requires_grad_()), image)
    direction = gradient / gradient.norm()
    with torch.no_grad():
        difference = (score(image + 1e-3 * direction) - score(image - 1e-3 * direction)) / 2e-3
    return (gradient * direction).sum().item(), difference.item()


def test_gradient_agrees_with_finite_differences(folder):
    """In double precision but for transformers' norms and rotations, which compute in single."""
    backbone = QwenVLBackbone.from_pretrained(folder, torch_dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    image = 0.3 + 0.4 * torch.rand(3, 70, 100, generator=generator, dtype=torch.float64)
    weights = torch.randn(backbone.hidden_size, generator=generator, dtype=torch.float64)
    derivative, difference = directional_derivatives(
        lambda pixels: last_states(backbone, [pixels], ["a red star"])[0] @ weights, image
    )
    assert derivative > 0.1
    assert difference == pytest.approx(derivative, rel=1e-2)
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_bfloat16_is_that_of_transformers(folder, images, oracle, expected_inputs):
    backbone = QwenVLBackbone.from_pretrained(folder, torch_dtype=torch.bfloat16)
    inputs = dataclasses.replace(backbone.prepare(images, PROMPTS), pixel_values=expected_inputs["pixel_values"])
    hidden = states(backbone, inputs)[1]
    half = copy.deepcopy(oracle).to(torch.bfloat16)
    half.model.visual.rotary_pos_emb, half.model.language_model.rotary_emb = (
        oracle.model.visual.rotary_pos_emb,  # `to` would round its frequencies, which loading in bfloat16 does not
        oracle.model.language_model.rotary_emb,
    )
    expected = half.model(**expected_inputs).last_hidden_state[expected_inputs["attention_mask"].bool()]
    assert hidden.dtype == torch.bfloat16
    assert torch.equal(hidden, expected)


def test_a_projector_of_one_s_own_replaces_the_model_s(backbone, images):
    inputs = backbone.prepare(images, PROMPTS)
    features = backbone.encode_images(inputs)
    doubled = copy.deepcopy(backbone.projector)
    doubled.mlp[2].weight.data *= 2
    doubled.mlp[2].bias.data *= 2
    visual_tokens = backbone.project(features, inputs, backbone.projector)
    assert visual_tokens.shape == (sum(inputs.num_visual_tokens), backbone.hidden_size)
    torch.testing.assert_close(backbone.project(features, inputs, doubled), 2 * visual_tokens)
    assert not any("merger" in name for name, _ in backbone.model.named_parameters())


def test_everything_is_frozen(backbone):
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(module.training for module in backbone.modules())
    assert "lm_head" not in dict(backbone.named_modules())


def test_a_prompt_with_an_image_token_raises(backbone, images):
    with pytest.raises(ValueError, match="must not contain"):
        backbone.prepare(images[:1], ["a <|image_pad|> star"])


def test_unequal_counts_raise(backbone, images):
    with pytest.raises(ValueError, match="zip"):
        backbone.prepare(images[:2], ["a star"])


def test_a_model_serves_one_backbone(backbone):
    with pytest.raises(ValueError, match="already belongs"):
        QwenVLBackbone(backbone.model, backbone.tokenizer, transform=backbone.transform)


def test_parts_of_different_checkpoints_raise(folder, oracle):
    model = copy.deepcopy(oracle.model)
    transform = PatchTransform.from_pretrained(folder)
    tokenizer = qwen_tokenizer(folder)
    with pytest.raises(ValueError, match="vision tower reads patches"):
        QwenVLBackbone(model, tokenizer, transform=dataclasses.replace(transform, patch_size=16))
    model.config.image_token_id += 1
    with pytest.raises(ValueError, match="image_token_id"):
        QwenVLBackbone(model, tokenizer, transform=transform)


def qwen_tokenizer(folder):
    from transformers import Qwen2Tokenizer

    return Qwen2Tokenizer.from_pretrained(folder)
