"""Qwen2.5-VL against transformers' own processor and model, on a tiny random checkpoint."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fk_reward.rewards.kept_batches import KeptBatches
from fk_reward.rewards.llava_reward.backbones import qwen2_5_vl
from fk_reward.rewards.llava_reward.backbones.qwen2_5_vl import QwenVLBackbone
from fk_reward.rewards.qwen_patches import PatchTransform, smart_resize
from tests.tiny.qwen2_5_vl import CHAT_TEMPLATE, PREPROCESSOR, write_qwen2_5_vl, write_shards

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
    monkeypatch.setattr(backbone, "_known", KeptBatches(size=1))  # not the tokens of the right ending
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


MAX_DIFFERENCE = 1.25 / 255  # before normalisation: PIL rounds to 8 bits after each of its two passes
MEAN_DIFFERENCE = 0.35 / 255

SHAPES = {
    "tiny": (9, 13),
    "square": (200, 200),
    "wide": (61, 480),
    "tall": (333, 40),
    "exact": (84, 112),
    "one side fits": (140, 333),
}
LIMITS = [(3136, 12845056), (256 * 28**2, 1280 * 28**2), (3136, 16 * 28**2), (1, 28**2)]


def patterned(shape, kind):
    """Smooth colours, or noise of saturated pixels, the worst case for overshoot."""
    height, width = shape
    if kind == "noise":
        return (np.random.default_rng(0).integers(0, 2, (height, width, 3)) * 255).astype(np.uint8)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows / 31 + phase) * np.cos(columns / 17 + phase) for phase in (0.0, 1.0, 2.0)]
    return (127.5 + 127.5 * np.stack(waves, axis=-1)).astype(np.uint8)


def tensor(array):
    return torch.from_numpy(array).permute(2, 0, 1) / 255


def pil_oracle(array, config):
    from transformers import Qwen2VLImageProcessorPil

    output = Qwen2VLImageProcessorPil(**config)(Image.fromarray(array), return_tensors="pt")
    return output["pixel_values"], tuple(output["image_grid_thw"][0, 1:].tolist())


def differences(transform, array, config):
    """Largest and mean absolute difference of the patches in units of [0, 1], before normalisation."""
    patches, grid = transform(tensor(array))
    expected, expected_grid = pil_oracle(array, config)
    assert grid == expected_grid
    assert patches.shape == expected.shape
    std = torch.tensor(config["image_std"]).view(1, 3, 1)
    difference = ((patches - expected).unflatten(1, (3, -1)) * std).abs()
    return difference.max().item(), difference.mean().item()


@pytest.mark.parametrize(("min_pixels", "max_pixels"), LIMITS)
def test_smart_resize_is_transformers(min_pixels, max_pixels):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as expected

    settings = {"factor": 28, "min_pixels": min_pixels, "max_pixels": max_pixels}
    sides = [1, 7, 13, 14, 15, 28, 42, 70, 99, 196, 320, 333, 512, 1000, 1024, 3000, 5001]
    sizes = [(height, width) for height in sides for width in sides if max(height, width) <= 200 * min(height, width)]
    assert [smart_resize(*size, **settings) for size in sizes] == [expected(*size, **settings) for size in sizes]


@pytest.mark.parametrize("kind", ["smooth", "noise"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_agrees_with_the_pil_processor(shape, kind):
    largest, mean = differences(PatchTransform.from_config(PREPROCESSOR), patterned(shape, kind), PREPROCESSOR)
    assert largest <= MAX_DIFFERENCE
    assert mean <= MEAN_DIFFERENCE


@pytest.mark.parametrize("limits", [{"min_pixels": 256 * 28**2}, {"max_pixels": 12 * 28**2}], ids=str)
def test_overridden_limits_agree_with_the_pil_processor(limits):
    transform = PatchTransform.from_config(PREPROCESSOR, **limits)
    largest, _ = differences(transform, patterned((200, 150), "smooth"), PREPROCESSOR | limits)
    assert largest <= MAX_DIFFERENCE


def test_other_sizes_agree_too():
    config = PREPROCESSOR | {"patch_size": 8, "temporal_patch_size": 3, "merge_size": 3, "image_mean": [0.5, 0.4, 0.3]}
    largest, _ = differences(PatchTransform.from_config(config), patterned((100, 161), "smooth"), config)
    assert largest <= MAX_DIFFERENCE


class RowByRow(PatchTransform):
    """Patches in reading order, not square by square."""

    def _patches(self, pixels):
        tiles = pixels.unflatten(2, (-1, self.patch_size)).unflatten(1, (-1, self.patch_size)).permute(1, 3, 0, 2, 4)
        return tiles.unsqueeze(3).expand(-1, -1, -1, self.temporal_patch_size, -1, -1).flatten(2).flatten(0, 1)


class ColoursLast(PatchTransform):
    """The pixels of a patch before its colours."""

    def _patches(self, pixels):
        return super()._patches(pixels).unflatten(1, (3, -1)).transpose(1, 2).flatten(1)


@pytest.mark.parametrize("saboteur", [RowByRow, ColoursLast], ids=lambda saboteur: saboteur.__name__)
def test_a_wrong_order_is_noticed(saboteur):
    largest, _ = differences(saboteur.from_config(PREPROCESSOR), patterned((84, 112), "smooth"), PREPROCESSOR)
    assert largest > MAX_DIFFERENCE


def test_a_wrong_filter_is_noticed():
    transform = PatchTransform.from_config(PREPROCESSOR | {"resample": 2})
    largest, _ = differences(transform, patterned((200, 150), "noise"), PREPROCESSOR)
    assert largest > MAX_DIFFERENCE


def test_gradient_of_the_patches_agrees_with_finite_differences():
    transform = PatchTransform.from_config({"min_pixels": 1, "max_pixels": 64, "patch_size": 2})
    image = 0.3 + 0.4 * torch.rand(3, 6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda pixels: transform(pixels)[0], image.requires_grad_())


def test_dtype_is_kept():
    assert (
        PatchTransform.from_config(PREPROCESSOR)(torch.ones(3, 60, 60, dtype=torch.float64))[0].dtype == torch.float64
    )


@pytest.mark.parametrize(
    "config",
    [
        {"min_pixels": 784, "max_pixels": 78400},
        {"size": {"shortest_edge": 784, "longest_edge": 78400}},
        {"size": {"shortest_edge": 784, "longest_edge": 78400}, "min_pixels": None, "max_pixels": None},
        {"size": {"shortest_edge": 1, "longest_edge": 2}, "min_pixels": 784, "max_pixels": 78400},
    ],
    ids=["hub", "newer form", "newer form with nulls", "both"],
)
def test_reads_each_form_of_the_limits(config):
    transform = PatchTransform.from_config(config)
    assert (transform.min_pixels, transform.max_pixels) == (784, 78400)


def test_a_silent_configuration_has_the_library_s_limits():
    from transformers import Qwen2VLImageProcessorPil

    transform, size = PatchTransform.from_config({}), Qwen2VLImageProcessorPil().size
    assert (transform.min_pixels, transform.max_pixels) == (size["shortest_edge"], size["longest_edge"])


def test_reads_the_files_that_transformers_writes(tmp_path):
    from transformers import Qwen2VLImageProcessorPil

    Qwen2VLImageProcessorPil(**PREPROCESSOR).save_pretrained(tmp_path)
    expected = PatchTransform.from_config(PREPROCESSOR)
    assert PatchTransform.from_pretrained(tmp_path) == expected
    assert PatchTransform.from_pretrained(tmp_path, min_pixels=9).min_pixels == 9


def test_reads_a_nested_processor_config(tmp_path):
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": PREPROCESSOR}))
    assert PatchTransform.from_pretrained(tmp_path) == PatchTransform.from_config(PREPROCESSOR)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"do_resize": False}, "do_resize"),
        ({"do_rescale": False}, "1/255"),
        ({"resample": 0}, "resample"),
        ({"size": {"shortest_edge": 3136}}, "longest_edge"),
        ({"min_pixels": 28**2, "max_pixels": 1}, "min_pixels <= max_pixels"),
        ({"min_pixels": 0}, "0 < min_pixels"),
    ],
)
def test_unsupported_settings_raise(config, message):
    with pytest.raises(ValueError, match=message):
        PatchTransform.from_config(config)


def test_a_sliver_raises():
    transform = PatchTransform.from_config(PREPROCESSOR)
    assert transform(torch.ones(3, 2, 400))[1] == (2, 58)  # 28 x 812 pixels
    with pytest.raises(ValueError, match="factor of at most 200, got 2x401"):
        transform(torch.ones(3, 2, 401))


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory):
    return write_qwen2_5_vl(tmp_path_factory.mktemp("qwen2_5_vl"), num_shards=3)


@pytest.fixture
def files(hub_folder, tmp_path):
    """A copy of one's own."""
    return shutil.copytree(hub_folder, tmp_path / "checkpoint")


def read_weights(files):
    return {name: tensor for shard in files.glob("model-*.safetensors") for name, tensor in load_file(shard).items()}


def rewrite(files, weights, *, num_shards=2):
    for shard in files.glob("model-*.safetensors"):
        shard.unlink()
    write_shards(files, weights, num_shards=num_shards)


def new_name(name):
    """The name that transformers 5 gives to a weight of the hub."""
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1)


def assert_loaded(backbone, weights):
    """Every weight but the head's is in the backbone, under the name that follows from the hub's."""
    state = {f"model.{name}": tensor for name, tensor in backbone.model.state_dict().items()}
    state |= {f"model.visual.merger.{name}": tensor for name, tensor in backbone.projector.state_dict().items()}
    expected = {new_name(name): tensor for name, tensor in weights.items() if name != "lm_head.weight"}
    assert set(state) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name


def test_the_hub_s_names_and_shards(hub_folder):
    weights = read_weights(hub_folder)
    assert len(list(hub_folder.glob("model-*.safetensors"))) == 3
    assert {name.split(".")[0] for name in weights} == {"visual", "model", "lm_head"}
    assert_loaded(QwenVLBackbone.from_pretrained(hub_folder), weights)


def test_the_names_of_transformers_5(files):
    weights = read_weights(files)
    rewrite(files, {new_name(name): tensor for name, tensor in weights.items()}, num_shards=1)
    assert_loaded(QwenVLBackbone.from_pretrained(files), weights)


def test_a_checkpoint_without_head(files):
    """Small models on the hub tie the head to the embeddings."""
    weights = read_weights(files)
    del weights["lm_head.weight"]
    rewrite(files, weights)
    assert_loaded(QwenVLBackbone.from_pretrained(files), weights)


def test_a_wrong_weight_is_noticed(hub_folder):
    backbone = QwenVLBackbone.from_pretrained(hub_folder)
    backbone.projector.mlp[0].bias.data[0] += 1e-3
    with pytest.raises(AssertionError, match=r"merger\.mlp\.0\.bias"):
        assert_loaded(backbone, read_weights(hub_folder))


@pytest.mark.parametrize(
    "name", ["visual.merger.mlp.0.weight", "visual.blocks.1.attn.qkv.bias", "model.layers.1.self_attn.q_proj.weight"]
)
def test_a_missing_weight_raises(files, name):
    weights = read_weights(files)
    del weights[name]
    rewrite(files, weights)
    with pytest.raises(ValueError, match=rf"lacks weights: {new_name(name).removeprefix('model.')}\.$"):
        QwenVLBackbone.from_pretrained(files)


def test_a_foreign_weight_raises(files):
    rewrite(files, read_weights(files) | {"model.layers.1.self_attn.q_proj.lora_A": torch.ones(2)})
    with pytest.raises(ValueError, match=r"Qwen2_5_VLModel does not have: .*lora_A"):
        QwenVLBackbone.from_pretrained(files)


def test_a_weight_of_another_size_raises(files):
    weights = read_weights(files)
    weights["model.norm.weight"] = torch.ones(32)
    rewrite(files, weights)
    with pytest.raises(ValueError, match=r"other sizes .*norm\.weight \(32,\)"):
        QwenVLBackbone.from_pretrained(files)


@pytest.mark.parametrize("file", ["preprocessor_config.json", "config.json"])
def test_a_missing_file_raises(files, file):
    (files / file).unlink()
    with pytest.raises(OSError, match=file.split(".")[0]):
        QwenVLBackbone.from_pretrained(files)


def test_another_model_type_raises(files):
    config = json.loads((files / "config.json").read_text())
    (files / "config.json").write_text(json.dumps(config | {"model_type": "qwen2_vl"}))
    with pytest.raises(ValueError, match="'qwen2_vl', where one of type 'qwen2_5_vl'"):
        QwenVLBackbone.from_pretrained(files)


def test_pixel_limits_are_the_folder_s_unless_given(files):
    assert QwenVLBackbone.from_pretrained(files).options == {"min_pixels": 3136, "max_pixels": 12845056}
    backbone = QwenVLBackbone.from_pretrained(files, min_pixels=4 * 784, max_pixels=6 * 784)
    assert backbone.options == {"min_pixels": 4 * 784, "max_pixels": 6 * 784}
    inputs = backbone.prepare([torch.ones(3, 500, 500), torch.ones(3, 20, 20)], ["a", "b"])
    assert inputs.num_visual_tokens == [4, 4]
    (files / "preprocessor_config.json").write_text(json.dumps({"min_pixels": 784, "max_pixels": 1568}))
    assert QwenVLBackbone.from_pretrained(files, max_pixels=7840).options == {
        "min_pixels": 784,
        "max_pixels": 7840,
    }


def test_dtype(files):
    backbone = QwenVLBackbone.from_pretrained(files, torch_dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.bfloat16}
    assert backbone.dtype == torch.bfloat16
    assert (backbone.model_type, backbone.norm_eps, backbone.hidden_size) == ("qwen2_5_vl", 1e-6, 64)


def test_device_map(hub_folder):
    backbone = QwenVLBackbone.from_pretrained(hub_folder, device_map={"": "cpu"})
    assert_loaded(backbone, read_weights(hub_folder))
    assert backbone.prepare([torch.ones(3, 60, 60)], ["a"]).pixel_values.device == backbone.device


def test_the_same_seed_gives_the_same_checkpoint(hub_folder, tmp_path):
    again, other = write_qwen2_5_vl(tmp_path / "again"), write_qwen2_5_vl(tmp_path / "other", seed=1)
    name = "visual.merger.mlp.0.weight"
    assert torch.equal(read_weights(hub_folder)[name], read_weights(again)[name])
    assert not torch.equal(read_weights(hub_folder)[name], read_weights(other)[name])
