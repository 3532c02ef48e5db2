"""Q-Align's expectation over level words, against the definition and the model's own logits."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from fk_reward.rewards.answer_model import load_answer_model
from fk_reward.rewards.q_align import LEVELS, QAlign, expected_level
from tests.tiny.answer_models import write_llava


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_answer_model(write_llava(tmp_path_factory.mktemp("llava")), torch_dtype=torch.float32)


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def official_score(model, image, aspect):
    """Tokenised in one piece and read at the last position, as `q_align/evaluate/scorer.py` has it."""
    text = f"USER: How would you rate the {aspect} of this image?\n<image> ASSISTANT: The {aspect} of the image is"
    picture = (image * 255).round().byte().permute(1, 2, 0).numpy()
    logits = model.model(**model.processor(images=[picture], text=[text], return_tensors="pt")).logits[0, -1]
    words = ("excellent", "good", "fair", "poor", "bad")
    ids = [model.processor.tokenizer.convert_tokens_to_ids(f"▁{word}") for word in words]
    return logits[ids].softmax(-1) @ torch.tensor([1, 0.75, 0.5, 0.25, 0.0])


@torch.no_grad()
def check_official(reward, images, aspect):
    images = (images * 255).round() / 255
    expected = torch.stack([official_score(reward.model, image, aspect) for image in images])
    assert_close(reward(images, ["anything", "at all"]), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("aspect", ["quality", "aesthetics"])
def test_official_template_and_weights(model, images, aspect):
    check_official(QAlign(model, aspect=aspect), images, aspect)


class ImageFirst(QAlign):
    def score(self, images, prompts):
        logits = self.model(images, [self.question] * len(prompts), opening=self.opening)
        return expected_level(logits[:, self.tokens])


def test_the_image_before_the_question_is_noticed(model, images):
    with pytest.raises(AssertionError):
        check_official(ImageFirst(model), images, "quality")


def test_the_other_aspect_is_noticed(model, images):
    with pytest.raises(AssertionError):
        check_official(QAlign(model, aspect="aesthetics"), images, "quality")


def test_words_in_the_wrong_order_are_noticed(model, images):
    reward = QAlign(model)
    reward.tokens = reward.tokens[::-1]
    with pytest.raises(AssertionError):
        check_official(reward, images, "quality")


def test_pictures_change_the_score(model, images):
    scores = QAlign(model)(images, "")
    assert (scores[0] - scores[1]).abs() > 1e-4


def test_expectation_of_certain_words():
    assert_close(expected_level(100 * torch.eye(5)), torch.tensor(list(LEVELS.values())))


def test_logits_of_another_shape_raise():
    with pytest.raises(ValueError, match=r"\(B, 5\)"):
        expected_level(torch.zeros(2, 4))


def test_another_aspect_raises(model):
    with pytest.raises(ValueError, match="'quality', 'aesthetics'.*'taste'"):
        QAlign(model, aspect="taste")
