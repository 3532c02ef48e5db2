"""VQAScore and LLaVA-score as rewards: what they ask, what they read, and which mistakes are noticed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from fk_reward.rewards import load_reward, reward_card
from fk_reward.rewards.answer_model import AnswerModel
from fk_reward.rewards.vqascore import LLAVA_QUESTION, LLAVA_SYSTEM, VQAScore, answer_probability
from tests.rewards.answer_models.test_answer_model import generated_logits

PROMPTS = ["a red cat", "two dogs on a skateboard", "{prompt}"]


def check_probability_of_yes(reward: VQAScore, images: Tensor) -> None:
    """Against the definition, word by word, on the model's own generation."""
    tokenizer, images = reward.model.processor.tokenizer, images[..., :32, :32]
    pictures = [(image * 255).round().byte().permute(1, 2, 0).numpy() for image in images]
    yes = tokenizer.convert_tokens_to_ids("▁Yes")
    questions = [f'Does this figure show "{prompt}"? Please answer yes or no.' for prompt in PROMPTS]
    expected = [
        generated_logits(reward.model, picture, question).softmax(-1)[0, yes]
        for picture, question in zip(pictures, questions, strict=True)
    ]
    scores = reward(images, PROMPTS)
    assert_close(scores.log(), torch.stack(expected).log(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("family", ["llava", "blip2_t5"], indirect=True)
def test_probability_of_yes(model: AnswerModel, images: Tensor) -> None:
    check_probability_of_yes(VQAScore(model), images)


class WrongToken(VQAScore):
    """Reads "Yes" as a tokenizer spells it at the beginning of a text, without what stands before it."""

    def __init__(self, model: AnswerModel) -> None:
        super().__init__(model)
        self.tokens = model.answer_tokens(["yes"])


class AnswersSorted(VQAScore):
    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return super().score(images, prompts).sort().values


@pytest.mark.parametrize("saboteur", [WrongToken, AnswersSorted])
def test_a_wrong_reading_is_noticed(saboteur, llava: AnswerModel, images: Tensor) -> None:
    with pytest.raises(AssertionError):
        check_probability_of_yes(saboteur(llava), images)


def test_against_no_is_the_share_of_both(llava: AnswerModel, images: Tensor) -> None:
    yes, no = (VQAScore(llava, answer=answer)(images, PROMPTS) for answer in ("Yes", "No"))
    assert_close(VQAScore(llava, against="No")(images, PROMPTS), yes / (yes + no))


def test_swapped_prompts_change_the_scores(llava: AnswerModel, images: Tensor) -> None:
    reward = VQAScore(llava, against="No")
    straight, swapped = reward(images[:2], PROMPTS[:2]), reward(images[:2], PROMPTS[1::-1])
    assert ((straight - swapped).abs() > 1e-3).all()


def test_llava_score_asks_as_its_paper(folders: dict[str, Path], images: Tensor) -> None:
    reward = load_reward("llava-score", model=folders["llava"], torch_dtype=torch.float32)
    asked = reward.model._text(LLAVA_QUESTION.replace("{prompt}", "a cat"), LLAVA_SYSTEM, "")
    assert asked.startswith("A chat between a curious human and an artificial intelligence assistant. The assistant")
    assert asked.endswith(
        "to the human's questions. USER: <image>\n"
        "Does this image match the following caption: a cat?\nAnswer Yes/No directly. ASSISTANT:"
    )
    questions = [LLAVA_QUESTION.replace("{prompt}", prompt) for prompt in PROMPTS]
    logits = reward.model(images, questions, system=LLAVA_SYSTEM)
    yes, no = (logits[:, reward.model.processor.tokenizer.convert_tokens_to_ids(name)] for name in ("▁Yes", "▁No"))
    assert_close(reward(images, PROMPTS), (yes - no).sigmoid())


def test_rewards_on_one_model_share_it(folders: dict[str, Path]) -> None:
    names = ("vqascore", "llava-score", "q-align")
    rewards = [load_reward(name, model=folders["llava"], torch_dtype=torch.float32) for name in names]
    assert len({id(reward.model) for reward in rewards}) == 1


def test_one_pass_for_a_batch(llava: AnswerModel, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, reward, forward = [], VQAScore(llava), llava.model.forward

    def counted(**inputs):
        calls.append(len(inputs["input_ids"]))
        return forward(**inputs)

    monkeypatch.setattr(llava.model, "forward", counted)
    reward(images, PROMPTS)
    assert calls == [3]


def test_a_question_without_place_for_the_prompt_raises(llava: AnswerModel) -> None:
    with pytest.raises(ValueError, match=r"must have \{prompt\}"):
        VQAScore(llava, question="Is it good?")


def test_equal_answers_raise(llava: AnswerModel) -> None:
    with pytest.raises(ValueError, match="same token"):
        VQAScore(llava, against="Yes")


@pytest.mark.parametrize("name", ["vqascore", "llava-score", "q-align"])
def test_the_card_names_the_model(name: str, folders: dict[str, Path]) -> None:
    reward = load_reward(name, model=folders["llava_next"], torch_dtype=torch.float32)
    expected = dataclasses.replace(
        reward_card(name),
        weights=str(folders["llava_next"]),
        memory="that of the model",
        licence="that of the model",
        differentiable=False,
    )
    assert reward.card == expected


def test_probability_by_hand() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]]).log_softmax(-1) + 5
    assert_close(answer_probability(logits, [1]), torch.tensor([torch.e / (1 + torch.e + torch.e**2)]))
    assert_close(answer_probability(logits, [1, 0]), torch.tensor([torch.e / (1 + torch.e)]))
