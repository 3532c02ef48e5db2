"""Reading a folder in the hub's layout: shards, dtypes, what is missing or does not fit, and no code of the folder."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from fk_reward.rewards.llava_reward.backbones.phi3_vision import PhiVisionBackbone
from fk_reward.rewards.llava_reward.backbones.phi3_vision_model import PhiVisionConfig, PhiVisionModel
from tests.tiny.phi3_vision import CONFIG, random_weights, write_phi3_vision, write_shards

TOWER = "model.vision_embed_tokens.img_processor.vision_model"
NEEDED = (
    "model.embed_tokens.weight",
    "model.norm.weight",
    "model.layers.1.self_attn.qkv_proj.weight",
    "model.vision_embed_tokens.glb_GN",
    "model.vision_embed_tokens.img_projection.2.bias",
    f"{TOWER}.embeddings.class_embedding",
    f"{TOWER}.encoder.layers.1.mlp.fc2.weight",
)


@torch.no_grad()
def last_state(backbone):
    image = torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(0))
    inputs = backbone.prepare([image], ["a red cat"])
    visual = backbone.project(backbone.encode_images(inputs), inputs, backbone.projector)
    return backbone.language_model(**backbone.language_arguments(inputs, visual)).last_hidden_state[0, -1]


def rewrite(folder, change, *, seed=0):
    """Write the weights again after `change` was applied to them."""
    config = json.loads((folder / "config.json").read_text())
    weights = random_weights(config, seed=seed)
    change(weights)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    write_shards(folder, weights, num_shards=2)
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_phi3_vision(tmp_path_factory.mktemp("original"))


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "copy")


@pytest.fixture(scope="module")
def state(original):
    return last_state(PhiVisionBackbone.from_pretrained(original))


@pytest.mark.parametrize("num_shards", [1, 5])
def test_shards(tmp_path, num_shards, state):
    backbone = PhiVisionBackbone.from_pretrained(write_phi3_vision(tmp_path, num_shards=num_shards))
    torch.testing.assert_close(last_state(backbone), state, atol=0, rtol=0)


def test_everything_is_frozen_and_nothing_is_left_over(original):
    backbone = PhiVisionBackbone.from_pretrained(original)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(module.training for module in backbone.modules())
    assert not any("lm_head" in name for name, _ in backbone.named_parameters())
    assert len(backbone.model.vision_embed_tokens.img_processor.encoder.layers) == 2  # the third is not read
    assert (backbone.model_type, backbone.norm_eps, backbone.options) == ("phi3_v", 1e-5, {"num_crops": 16})
    assert (backbone.hidden_size, backbone.dtype) == (32, torch.float32)


def test_the_report_of_transformers_is_clean(original):
    options = {"key_mapping": PhiVisionModel.hub_keys, "attn_implementation": "sdpa", "output_loading_info": True}
    _, report = PhiVisionModel.from_pretrained(original, **options)
    assert not any(report.values())


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_weight_is_an_error(folder, name):
    rewrite(folder, lambda weights: weights.pop(name))
    with pytest.raises(ValueError, match=rf"lacks weights: \S*{name.split('.')[-1]}\.$"):
        PhiVisionBackbone.from_pretrained(folder)


def test_a_weight_that_is_not_known_is_an_error(folder):
    rewrite(folder, lambda weights: weights.update({"model.layers.0.self_attn.qkv_proj.bias": torch.ones(96)}))
    with pytest.raises(ValueError, match=r"PhiVisionModel does not have: .*qkv_proj\.bias"):
        PhiVisionBackbone.from_pretrained(folder)


def test_a_second_name_of_the_embedding_is_not_read(folder, state):
    name = "model.vision_embed_tokens.wte.weight"
    rewrite(folder, lambda weights: weights.update({name: weights["model.embed_tokens.weight"].clone()}))
    torch.testing.assert_close(last_state(PhiVisionBackbone.from_pretrained(folder)), state, atol=0, rtol=0)


@pytest.mark.parametrize("name", ["lm_head.weight", f"{TOWER}.encoder.layers.2.mlp.fc2.weight"])
def test_a_weight_that_is_not_read_may_be_missing(folder, state, name):
    rewrite(folder, lambda weights: weights.pop(name))
    torch.testing.assert_close(last_state(PhiVisionBackbone.from_pretrained(folder)), state, atol=0, rtol=0)


def test_a_weight_of_another_size_is_an_error(folder):
    rewrite(folder, lambda weights: weights.update({"model.norm.weight": torch.ones(31)}))
    with pytest.raises(ValueError, match=r"other sizes .*language_model\.norm\.weight \(31,\) for \(32,\)"):
        PhiVisionBackbone.from_pretrained(folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(original, state, dtype):
    backbone = PhiVisionBackbone.from_pretrained(original, torch_dtype=dtype)
    assert {parameter.dtype for parameter in backbone.parameters()} == {dtype}
    half = last_state(backbone)
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), state, atol=0.1, rtol=0.1)


def test_a_projector_of_another_dtype_is_served(original):
    backbone = PhiVisionBackbone.from_pretrained(original, torch_dtype=torch.bfloat16)
    projector = PhiVisionBackbone.from_pretrained(original).projector
    inputs = backbone.prepare([torch.rand(3, 30, 30)], ["a cat"])
    assert backbone.project(backbone.encode_images(inputs), inputs, projector).dtype == torch.float32


def test_no_code_of_the_folder_is_run(folder, monkeypatch):
    for name in ("configuration_phi3_v", "modeling_phi3_v", "processing_phi3_v", "image_processing_phi3_v"):
        (folder / f"{name}.py").write_text("raise RuntimeError('remote code was run')\n")

    def refuse(*arguments, **options):
        pytest.fail("transformers was asked for code of the folder")

    monkeypatch.setattr("transformers.dynamic_module_utils.get_class_from_dynamic_module", refuse)
    monkeypatch.setattr("transformers.dynamic_module_utils.resolve_trust_remote_code", refuse)
    PhiVisionBackbone.from_pretrained(folder)


def test_the_normalisation_of_the_folder_is_used(folder, state):
    path = folder / "preprocessor_config.json"
    processor = json.loads(path.read_text()) | {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    path.write_text(json.dumps(processor))
    backbone = PhiVisionBackbone.from_pretrained(folder)
    assert (backbone.hd_transform.mean, backbone.hd_transform.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert not torch.allclose(last_state(backbone), state, atol=1e-2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embd_layer": {**CONFIG["embd_layer"], "hd_transform_order": "glb_sub"}}, "hd_transform_order"),
        ({"embd_layer": None}, "embd_layer must be"),
        ({"img_processor": {**CONFIG["img_processor"], "image_dim_out": 24}}, "width of the CLIP tower, 16, got 24"),
        ({"img_processor": {**CONFIG["img_processor"], "type_feature": "cls"}}, "type_feature must be 'patch'"),
    ],
)
def test_another_way_of_embedding_images_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PhiVisionConfig(**{**CONFIG, **changes})


def test_the_hub_configuration_is_understood():
    hub = {key: value for key, value in CONFIG.items() if key != "vision_config"}
    config = PhiVisionConfig(**{**hub, "img_processor": {**hub["img_processor"], "image_dim_out": 1024}})
    vision = config.vision_config
    assert (vision.num_hidden_layers, vision.image_size, vision.patch_size) == (24, 336, 14)
    assert vision.hidden_act == "quick_gelu"
    assert (config.feature_layer, config.crop_tokens) == (23, 12)
    assert config.rope_parameters["rope_type"] == "longrope"
    assert config.rope_parameters["original_max_position_embeddings"] == CONFIG["original_max_position_embeddings"]


def test_a_tokenizer_without_end_of_text_is_refused(original):
    backbone = PhiVisionBackbone.from_pretrained(original)
    backbone.tokenizer.eos_token = None
    with pytest.raises(ValueError, match="must have an eos_token"):
        PhiVisionBackbone(backbone.model, backbone.tokenizer)


@pytest.mark.parametrize(
    ("name", "error"),
    [("config.json", OSError), ("preprocessor_config.json", OSError), ("model.safetensors.index.json", OSError)],
)
def test_a_missing_file_is_an_error(folder, name, error):
    (folder / name).unlink()
    with pytest.raises(error, match=name.split(".")[0]):
        PhiVisionBackbone.from_pretrained(folder)


def test_unequal_counts_are_refused(original):
    with pytest.raises(ValueError, match="zip"):
        PhiVisionBackbone.from_pretrained(original).prepare([torch.rand(3, 30, 30)], ["a cat", "a dog"])


@pytest.mark.parametrize("opens", [True, False])
def test_the_tokenizer_s_settings_say_whether_a_text_is_opened(tmp_path, opens):
    folder = write_phi3_vision(tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"add_bos_token": opens}))
    row = PhiVisionBackbone.from_pretrained(folder).prepare([torch.rand(3, 32, 32)], ["a star"]).input_ids[0]
    assert (row == 1).sum() == (2 if opens else 0)  # before the image and after it
