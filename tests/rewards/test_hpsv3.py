"""HPSv3 against transformers' own model, fed as the authors' code feeds it, and a head from the file's tensors."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torch.testing import assert_close
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessorPil

from fk_reward.rewards import load_reward
from fk_reward.rewards.answer_model import load_processor
from fk_reward.rewards.hpsv3 import NUM_PIXELS, REWARD_TOKEN, HPSv3Words
from fk_reward.rewards.inputs import to_pil
from tests.tiny.hpsv3 import ENDING, INSTRUCTION, write_hpsv3
from tests.tiny.qwen2_5_vl import PREPROCESSOR


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_hpsv3(tmp_path_factory.mktemp("hpsv3"))


@pytest.fixture(scope="module")
def reward(files):
    return load(files)


def load(files, **options):
    return load_reward(
        "hpsv3",
        **{"weights": files.weights, "words": files.words, "model": files.base, "torch_dtype": torch.float32} | options,
    )


def official_outputs(files, images, prompts, *, text_positions=True):
    """(B, 2) by the whole text, a mask, the official image processor, and the state at the reward token."""
    tensors = load_file(files.weights)
    config = Qwen2VLConfig.from_pretrained(files.base)
    config.text_config.vocab_size = len(tensors["model.embed_tokens.weight"])
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith("rm_head.")}
    model = Qwen2VLForConditionalGeneration.from_pretrained(None, config=config, state_dict=rest, dtype=torch.float32)
    processor = load_processor(files.base)
    limits = {"shortest_edge": NUM_PIXELS, "longest_edge": NUM_PIXELS}
    processor.image_processor = Qwen2VLImageProcessorPil(
        **{**PREPROCESSOR, "size": limits, "min_pixels": None, "max_pixels": None}
    )
    processor.tokenizer.padding_side = "right"
    processor.tokenizer.add_special_tokens({"additional_special_tokens": [REWARD_TOKEN]})
    turns = [
        [
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": INSTRUCTION.format(text_prompt=p) + ENDING}],
            }
        ]
        for p in prompts
    ]
    texts = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=texts, images=[[image] for image in to_pil(images)], padding=True, return_tensors="pt")
    if text_positions:
        inputs["position_ids"] = torch.arange(inputs["input_ids"].shape[1]).expand(3, len(prompts), -1)
    states = model.model(**inputs).last_hidden_state[
        inputs["input_ids"] == processor.tokenizer.convert_tokens_to_ids(REWARD_TOKEN)
    ]
    for place in (0, 3, 5):
        states = functional.linear(states, *(tensors[f"rm_head.{place}.{kind}"] for kind in ("weight", "bias")))
        states = functional.relu(states) if place < 5 else states
    return states


PROMPTS = ["a red circle", "two blue squares left of a green star", "a", "a red circle in a box"]


@pytest.fixture(scope="module")
def eight_bit(smooth):
    return (smooth * 255).round().to(torch.uint8)


def test_equals_the_whole_text_with_a_mask(reward, files, eight_bit):
    with torch.no_grad():
        expected = official_outputs(files, eight_bit, PROMPTS)
    assert expected[:, 0].std() > 0.1
    assert_close(reward(eight_bit, PROMPTS), expected[:, 0], rtol=1e-5, atol=1e-5)
    mean, deviation = reward.uncertainty(eight_bit, PROMPTS)
    assert_close(mean, expected[:, 0], rtol=1e-5, atol=1e-5)
    assert_close(deviation.log(), expected[:, 1], rtol=1e-5, atol=1e-5)


def test_qwens_own_positions_would_be_noticed(reward, files, eight_bit):
    """The authors' code gives the model no grid, so that positions of images count on as those of text."""
    with torch.no_grad():
        other = official_outputs(files, eight_bit, PROMPTS, text_positions=False)[:, 0]
    assert (reward(eight_bit, PROMPTS) - other).abs().min() > 1e-3


def test_both_generations_of_names(reward, eight_bit, tmp_path):
    newer = write_hpsv3(tmp_path, old_names=False)
    assert_close(load(newer)(eight_bit, PROMPTS), reward(eight_bit, PROMPTS), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda tensors: tensors.pop("rm_head.5.bias"), "HPSv3's head"),
        (lambda tensors: tensors.pop("model.norm.weight"), "norm.weight"),
        (lambda tensors: tensors.update({"model.more.weight": torch.ones(1)}), "more.weight"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.ones(3)}), "norm.weight"),
        (
            lambda tensors: tensors.update({"rm_head.5.weight": torch.ones(1, 8), "rm_head.5.bias": torch.ones(1)}),
            "outputs",
        ),
    ],
)
def test_other_tensors_raise(files, tmp_path, broken, message):
    tensors = load_file(files.weights)
    broken(tensors)
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=message):
        load(files, weights=tmp_path / "a.safetensors")


def test_a_tokenizer_of_another_model_raises(files, tmp_path):
    tensors = load_file(files.weights)
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:-1].clone()
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].clone()
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="not of the same checkpoint"):
        load(files, weights=tmp_path / "a.safetensors")


def test_another_model_and_missing_files_raise(files, tmp_path, tiny_clip):
    with pytest.raises(ValueError, match="qwen2_vl"):
        load(files, model=tiny_clip)
    with pytest.raises(FileNotFoundError, match="no such file"):
        load(files, weights=tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="data_collator_qwen"):
        load(files, words=tmp_path / "none.py")


def test_the_words_of_the_installed_package_are_found_and_not_run(files, tmp_path, monkeypatch):
    package = tmp_path / "hpsv3"
    (package / "dataset").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit")
    (package / "dataset" / "data_collator_qwen.py").write_text(files.words.read_text())
    monkeypatch.syspath_prepend(str(tmp_path))
    assert HPSv3Words.read().ending == ENDING
    assert HPSv3Words.read(tmp_path) == HPSv3Words.read(files.words)


def test_words_without_their_places_raise():
    with pytest.raises(ValueError, match="text_prompt"):
        HPSv3Words("no place", ENDING)
    with pytest.raises(ValueError, match="Reward"):
        HPSv3Words(INSTRUCTION, "no token")


def test_the_reward_token_in_a_prompt_raises(reward, eight_bit):
    with pytest.raises(ValueError, match="control token"):
        reward(eight_bit[:1], f"a {REWARD_TOKEN} cat")
