"""HPS v2 against a plain OpenCLIP: a tiny checkpoint in the official layout, the official preprocessing and padding."""

from __future__ import annotations

import logging

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from fk_reward.rewards import load_reward, reward_card
from fk_reward.rewards.clipscore import clean_prompt
from fk_reward.rewards.inputs import in_order
from fk_reward.rewards.open_clip import clip_from_open_clip
from tests.tiny.open_clip import FULL, OpenClip, tiny_open_clip, write_hps

PROMPTS = ["a red circle", "blue square", "a red circle", "two green stars and 3 crosses"]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_hps(tmp_path_factory.mktemp("hps") / "HPS_v2.1_compressed.pt")


@pytest.fixture(scope="module")
def reward(weights, tiny_clip):
    return load_reward("hpsv2.1", weights=weights, tokenizer=tiny_clip)


@pytest.fixture(scope="module")
def images():
    """(4, 3, 42, 70): wider than high, so that borders appear."""
    return torch.rand(4, 3, 42, 70, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def tensors():
    return tiny_open_clip().state_dict()


def official_pixels(images):
    resized = functional.interpolate(images, (34, 56), mode="bicubic", antialias=True)  # 42 * 56 / 70 is 33.6
    square = functional.pad(resized, (0, 0, 11, 11))
    return (square - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def official_ids(tokenizer, prompts, context=32):
    """Padded with zeros to the whole context, cut to it with the end of text in the last place."""
    ids = torch.zeros(len(prompts), context, dtype=torch.long)
    for row, prompt in zip(ids, prompts, strict=True):
        tokens = tokenizer(prompt, verbose=False)["input_ids"]
        tokens = tokens if len(tokens) <= context else [*tokens[: context - 1], tokenizer.eos_token_id]
        row[: len(tokens)] = torch.tensor(tokens)
    return ids


def check_equals_open_clip(score, reward, images, prompts=PROMPTS, *, tolerance=1e-5):
    with torch.no_grad():
        expected = tiny_open_clip()(official_pixels(images), official_ids(reward.tokenizer, prompts)).diagonal()
    assert_close(score(images, prompts), expected, rtol=0, atol=tolerance)


def test_equals_open_clip(reward, images):
    assert reward(images, PROMPTS).std() > 0.02  # the tolerance means something
    check_equals_open_clip(reward, reward, images)


def test_a_cut_prompt_equals_open_clip(reward, images, caplog):
    prompts = ["red " * 39 + "red", "red " * 30, "", "red"]
    with caplog.at_level(logging.WARNING, logger="fk_reward.rewards.prompt_limits"):
        check_equals_open_clip(reward, reward, images, prompts)
    assert [record.getMessage() for record in caplog.records] == [
        f"hpsv2.1 reads 32 tokens; 10 were cut from {prompts[0]!r}."
    ]


MENDED = {
    "the dog\u2019s red ball": "the dog's red ball",
    "red &amp; blue": "red & blue",
    "red &amp;lt; blue": "red < blue",
    "a red cafÃ©": "a red café",
    "\u201cred\u201d  ": '"red"',
}


@pytest.mark.parametrize(("prompt", "mended"), MENDED.items())
def test_prompts_are_mended_as_open_clip_does(reward, images, prompt, mended):
    assert clean_prompt(prompt) == mended
    assert_close(reward(images[:1], prompt), reward(images[:1], mended), rtol=0, atol=0)
    assert reward.tokenizer(prompt)["input_ids"] != reward.tokenizer(mended)["input_ids"]


def test_prompts_are_mended_only_where_the_authors_do(tiny_clip):
    assert load_reward("clipscore", model=tiny_clip, hessel=True).clean
    assert not load_reward("clipscore", model=tiny_clip).clean
    assert not load_reward("pickscore", model=tiny_clip, processor=tiny_clip).clean


def test_golden_scores(weights, tiny_clip, pictures, prompts):
    reward = load_reward("hpsv2", weights=weights, tokenizer=tiny_clip)
    pictures = in_order(pictures)
    assert_close(reward(pictures, prompts), torch.tensor(GOLDEN), rtol=0, atol=1e-4)
    assert_close(reward(pictures, prompts[::-1]), torch.tensor(GOLDEN_SWAPPED), rtol=0, atol=1e-4)


GOLDEN, GOLDEN_SWAPPED = [-0.080633, 0.010950], [0.000343, -0.051373]


def swapped(tensors, first, second):
    return tensors | {first: tensors[second], second: tensors[first]}


def without(tensors, *keys):
    return {key: tensor for key, tensor in tensors.items() if key not in keys}


def queries_and_keys_swapped(tensors):
    key = "visual.transformer.resblocks.1.attn.in_proj_weight"
    q, k, v = tensors[key].chunk(3)
    return tensors | {key: torch.cat([k, q, v])}


WRONG_MAPPINGS = {
    "projection not transposed": lambda t: t | {"text_projection": t["text_projection"].T},
    "queries and keys": queries_and_keys_swapped,
    "layers": lambda t: swapped(t, *(f"transformer.resblocks.{i}.mlp.c_fc.weight" for i in (0, 1))),
    "norms of the picture": lambda t: swapped(t, "visual.ln_pre.weight", "visual.ln_post.weight"),
    "norms of a block": lambda t: swapped(t, *(f"transformer.resblocks.0.ln_{i}.bias" for i in (1, 2))),
}


@pytest.mark.parametrize("change", WRONG_MAPPINGS.values(), ids=WRONG_MAPPINGS)
def test_a_wrong_mapping_is_noticed(change, reward, images, tensors, monkeypatch):
    monkeypatch.setattr(reward, "model", clip_from_open_clip(change(tensors)).eval())
    with pytest.raises(AssertionError, match="not close"):
        check_equals_open_clip(reward, reward, images)


@pytest.mark.parametrize(
    "saboteur",
    [
        lambda reward, images: reward(images, PROMPTS[1:] + PROMPTS[:1]),
        lambda reward, images: reward(images.flip(1), PROMPTS),
        lambda reward, images: reward(images[..., 14:56], PROMPTS),
        lambda reward, images: 100 * reward(images, PROMPTS),
    ],
    ids=["prompts", "channels", "cropped", "scaled"],
)
def test_a_wrong_score_is_noticed(saboteur, reward, images):
    with pytest.raises(AssertionError, match="not close"):
        check_equals_open_clip(lambda images, prompts: saboteur(reward, images), reward, images)


def test_another_activation_is_noticed(reward, images, tensors, monkeypatch):
    from transformers.activations import QuickGELUActivation

    model = clip_from_open_clip(tensors).eval()
    for layer in model.vision_model.encoder.layers:
        layer.mlp.activation_fn = QuickGELUActivation()
    monkeypatch.setattr(reward, "model", model)
    with pytest.raises(AssertionError, match="not close"):
        check_equals_open_clip(reward, reward, images)


def test_the_full_size_has_the_published_number_of_parameters():
    with torch.device("meta"):
        tensors = OpenClip(**FULL).state_dict()
    model = clip_from_open_clip(tensors)
    assert sum(parameter.numel() for parameter in model.parameters()) == 986_109_441
    vision, text = model.config.vision_config, model.config.text_config
    assert (vision.image_size, vision.num_attention_heads, text.num_attention_heads) == (224, 16, 16)


def test_every_tensor_is_used(tensors):
    model = clip_from_open_clip(tensors)
    assert sum(p.numel() for p in model.parameters()) == sum(t.numel() for t in tensors.values())


@pytest.mark.long
def test_each_tensor_is_needed(tensors):
    for key in tensors:
        with pytest.raises(ValueError, match="complete OpenCLIP ViT-H-14"):
            clip_from_open_clip(without(tensors, key))


def other_width(tensors):
    return {key: tensor[:96] if key == "visual.conv1.weight" else tensor for key, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"score_predictor.weight": torch.ones(1)}, "it has score_predictor.weight"),
        (lambda t: t | {"visual.transformer.resblocks.0.ls_1.gamma": torch.ones(1)}, "it has visual.*ls_1.gamma"),
        (lambda t: without(t, *(key for key in t if ".resblocks.1." in key and "visual" not in key)) | {}, None),
        (other_width, "96 wide, no multiple of 80"),
        (lambda t: t | {"ln_final.weight": torch.ones(7)}, "size mismatch for text_model.final_layer_norm.weight"),
        (lambda t: {"vision_model.embeddings.class_embedding": torch.ones(7)}, "it has vision_model"),
        (lambda t: {}, "it lacks 'visual.conv1.weight'"),
    ],
    ids=["head", "layer scale", "fewer layers", "other model", "other size", "transformers", "nothing"],
)
def test_other_weights(change, message, tensors):
    if message is None:
        assert clip_from_open_clip(change(tensors)).config.text_config.num_hidden_layers == 1
        return
    with pytest.raises(ValueError, match=message):
        clip_from_open_clip(change(tensors))


def test_a_damaged_file_raises(tmp_path, tiny_clip):
    (tmp_path / "hps.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="damaged"):
        load_reward("hpsv2", weights=tmp_path / "hps.pt", tokenizer=tiny_clip)
    torch.save({"state_dict": {"a": 1}}, tmp_path / "hps.pt")
    with pytest.raises(ValueError, match="mapping of names to tensors"):
        load_reward("hpsv2", weights=tmp_path / "hps.pt", tokenizer=tiny_clip)
    with pytest.raises(FileNotFoundError):
        load_reward("hpsv2", weights=tmp_path / "nowhere.pt", tokenizer=tiny_clip)


def test_code_in_a_file_is_refused(tmp_path, tiny_clip):
    torch.save({"state_dict": print}, tmp_path / "hps.pt")
    with pytest.raises(ValueError, match="refused"):
        load_reward("hpsv2", weights=tmp_path / "hps.pt", tokenizer=tiny_clip)


def test_the_tokenizer_of_another_model_raises(weights, tiny_clip, tmp_path):
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(tiny_clip)
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="ends prompts with token 76, the weights expect 75"):
        load_reward("hpsv2", weights=weights, tokenizer=tmp_path)


@pytest.mark.parametrize(("name", "file"), [("hpsv2", "HPS_v2_compressed.pt"), ("hpsv2.1", "HPS_v2.1_compressed.pt")])
def test_without_a_file_the_hub_is_asked(name, file, weights, tiny_clip, monkeypatch):
    asked = []

    def download(repository, filename, *, revision):
        asked.append((repository, filename, revision))
        return str(weights)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    reward = load_reward(name, tokenizer=tiny_clip, revision="v7")
    assert asked == [("xswu/HPSv2", file, "v7")]
    assert reward.card.weights == reward_card(name).weights == f"{file} of xswu/HPSv2"


def test_options(weights, tiny_clip, reward, images):
    half = load_reward("hpsv2.1", weights=weights, tokenizer=tiny_clip, torch_dtype=torch.bfloat16, batch_size=2)
    assert (half.model.dtype, half.batch_size) == (torch.bfloat16, 2)
    assert half.card.weights == str(weights)
    assert_close(half(images, PROMPTS), reward(images, PROMPTS), rtol=0, atol=0.05)
    aliased = load_reward("hpsv2.1", weights=weights, tokenizer=tiny_clip, antialias=False)
    assert (aliased(images, PROMPTS) - reward(images, PROMPTS)).abs().max() > 1e-4


def test_weights_are_read_once(tmp_path, tiny_clip, images):
    path = write_hps(tmp_path / "hps.pt")
    reward = load_reward("hpsv2.1", weights=path, tokenizer=tiny_clip)
    path.unlink()
    first = reward(images, PROMPTS)
    assert_close(reward(images, PROMPTS), first, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(1, 1), (56, 9), (3, 200)])
def test_any_shape_is_scored(reward, shape):
    assert reward(torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0)), "red").isfinite().all()
