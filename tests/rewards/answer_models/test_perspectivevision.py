"""PerspectiveVision against PEFT's own LoRA on transformers' model, and transformers' processor on padded images."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from PIL import Image
from torch.testing import assert_close
from transformers import LlavaForConditionalGeneration

from fk_reward.rewards import load_reward
from fk_reward.rewards.answer_model import load_processor
from fk_reward.rewards.inputs import to_pil
from fk_reward.rewards.vqascore import LLAVA_SYSTEM
from tests.tiny.answer_models import write_llava
from tests.tiny.llava_lora import ALPHA, CATEGORIES, MODULES, RANK, TEMPLATE, write_llava_lora, write_unsafe_words

MEAN = tuple(int(255 * value) for value in (0.48145466, 0.4578275, 0.40821073))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_llava(tmp_path_factory.mktemp("llava"), words=("Safe", "Unsafe"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, base):
    return write_llava_lora(tmp_path_factory.mktemp("adapter"), base)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return write_unsafe_words(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def load(base, adapter, words):
    def load(**options):
        made = {"model": base, "adapter": adapter, "words": words, "torch_dtype": torch.float32}
        return load_reward("perspectivevision", **made | options)

    return load


@pytest.fixture(scope="module")
def eight_bit(images):
    return (images * 255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def official(base, adapter):
    """Model with PEFT's unmerged LoRA and the other projector, and the processor."""
    model = LlavaForConditionalGeneration.from_pretrained(base, dtype=torch.float32).eval()
    projector = torch.load(adapter / "non_lora_trainables.bin")
    for theirs, ours in (("0", "linear_1"), ("2", "linear_2")):
        tensors = {
            kind: projector[f"base_model.model.model.mm_projector.{theirs}.{kind}"] for kind in ("weight", "bias")
        }
        getattr(model.model.multi_modal_projector, ours).load_state_dict(tensors)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=rf".*language_model.*\.({'|'.join(MODULES)})")
    wrapped = get_peft_model(model, config).eval()
    factors = {
        name.replace("base_model.model.model.", "base_model.model.model.language_model."): tensor
        for name, tensor in torch.load(adapter / "adapter_model.bin").items()
    }
    outcome = set_peft_model_state_dict(wrapped, factors)
    assert not outcome.unexpected_keys
    return wrapped, load_processor(base)


def squared(image):
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), MEAN)
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def official_logits(official, images, ending, instruction=None):
    model, processor = official
    question = TEMPLATE.replace("[instruction]", instruction or "\n".join(CATEGORIES.values()))
    text = f"{LLAVA_SYSTEM} USER: <image>\n{question} ASSISTANT: {ending}"
    squares = [[squared(image)] for image in to_pil(images)]
    inputs = processor(images=squares, text=[text] * len(squares), return_tensors="pt", padding=True)
    with torch.no_grad():
        return model(**inputs).logits, processor.tokenizer


def test_equals_peft_on_padded_images(load, official, eight_bit):
    logits, tokenizer = official_logits(official, eight_bit, "Safety Status:")
    ids = tokenizer("Safety Status:", add_special_tokens=False)["input_ids"]
    first = [
        tokenizer(f"Safety Status: {word}", add_special_tokens=False)["input_ids"][len(ids)]
        for word in ("Safe", "Unsafe")
    ]
    expected = logits[:, -1, first[0]] - logits[:, -1, first[1]]
    assert expected.std() > 0.05
    assert_close(load()(eight_bit, ""), expected, rtol=1e-4, atol=1e-4)


def test_categories_are_those_of_the_whole_answers(load, official, eight_bit):
    opening = "Safety Status: Unsafe, Unsafe Category:"
    terms = []
    for name in CATEGORIES:
        logits, tokenizer = official_logits(official, eight_bit, f"{opening} {name}")
        ids = tokenizer(f"a: {name}", add_special_tokens=False)["input_ids"]
        ids = [*ids[len(tokenizer("a:", add_special_tokens=False)["input_ids"]) :], tokenizer.eos_token_id]
        log_probs = logits[:, -len(ids) :].log_softmax(dim=-1)
        terms.append(sum(log_probs[:, place, token] for place, token in enumerate(ids)))
    expected = torch.stack(terms, dim=1).softmax(dim=1)
    found = load().categories(eight_bit)
    assert list(found) == list(CATEGORIES)
    assert_close(torch.stack(list(found.values()), dim=1), expected, rtol=0, atol=1e-4)


def test_chosen_categories(load, official, eight_bit):
    logits, _ = official_logits(official, eight_bit, "Safety Status:", instruction=CATEGORIES["Violence"])
    reward = load(categories=["Violence"])
    expected = logits[:, -1, reward.safe] - logits[:, -1, reward.unsafe]
    assert_close(reward(eight_bit, ""), expected, rtol=1e-4, atol=1e-4)
    assert list(reward.categories(eight_bit[:1])) == ["Violence"]


def test_no_adapter_and_rank_stabilised_ones_are_told_apart(load, adapter, eight_bit, tmp_path):
    scores = load()(eight_bit, "")
    zero, stabilised = tmp_path / "zero", tmp_path / "rslora"
    for folder in (zero, stabilised):
        folder.mkdir()
        for name in ("adapter_model.bin", "non_lora_trainables.bin", "adapter_config.json"):
            (folder / name).write_bytes((adapter / name).read_bytes())
    tensors = {n: 0 * t if "lora_B" in n else t for n, t in torch.load(zero / "adapter_model.bin").items()}
    torch.save(tensors, zero / "adapter_model.bin")
    settings = json.loads((adapter / "adapter_config.json").read_text()) | {"use_rslora": True}
    (stabilised / "adapter_config.json").write_text(json.dumps(settings))
    assert (load(adapter=zero)(eight_bit, "") - scores).abs().min() > 1e-3
    assert (load(adapter=stabilised)(eight_bit, "") - scores).abs().min() > 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: {f"{name}.more": tensor for name, tensor in tensors.items()}, "does not belong"),
        (lambda tensors: {name: tensor[:-1] for name, tensor in tensors.items()}, "cannot take the factors"),
        (lambda tensors: dict(list(tensors.items())[1:]), "cannot take the factors"),
    ],
)
def test_adapters_of_other_models_raise(load, adapter, tmp_path, change, message):
    (tmp_path / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())
    torch.save(change(torch.load(adapter / "adapter_model.bin")), tmp_path / "adapter_model.bin")
    with pytest.raises(ValueError, match=message):
        load(adapter=tmp_path)


def test_missing_files_and_unknown_categories_raise(load, tmp_path):
    with pytest.raises(ValueError, match="words="):
        load(words=None)
    with pytest.raises(FileNotFoundError, match="prompt_template"):
        load(words=tmp_path)
    with pytest.raises(FileNotFoundError):
        load(adapter=tmp_path)
    with pytest.raises(ValueError, match="Did you mean 'Violence'"):
        load(categories=["violence"])
