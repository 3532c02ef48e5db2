"""What a reward says to questions of MJ-Bench: a score for each picture, or the probability that it is preferred."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fk_reward.benchmarks.comparisons import compares, has_comparing_part
from fk_reward.benchmarks.mjbench.questions import Question
from fk_reward.rewards import Reward
from fk_reward.rewards.llava_reward import LlavaReward
from fk_reward.rewards.vlm_judge import PreferenceJudge


@torch.no_grad()
def score_questions(reward: Reward, questions: Sequence[Question]) -> list[list[float]]:
    """Let a reward judge some questions in one call.

    The reward is given captions and pictures, nothing else. One that compares pictures (`compares`) is asked for the
    probability p that the first picture is preferred, and the scores are p and 1 - p. A composition that has such a
    part is asked for each question by itself, as the score of a picture would change with the other questions.

    Args:
        reward: the reward.
        questions: of one perspective.

    Returns:
        For each question the scores of its pictures; higher is better, also where the reward's card says otherwise.

    Raises:
        ValueError: for a picture that cannot be read, and for single pictures under a reward that compares.

    Example:
        >>> from PIL import Image
        >>> from fk_reward.benchmarks.mjbench.questions import parse_question
        >>> from fk_reward.rewards import load_reward
        >>> red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
        >>> row = {"caption": "red", "image0": blue, "image1": red, "label": 1}
        >>> redness = load_reward(lambda images, captions: images[:, 0].mean(dim=(1, 2)))
        >>> score_questions(redness, [parse_question(row, "alignment", origin="1")])
        [[0.0, 1.0]]
    """
    pictures = [question.load() for question in questions]
    captions = [question.caption for question in questions]
    if compares(reward):
        return _probabilities(reward, pictures, captions)
    if has_comparing_part(reward):
        rows = zip(pictures, captions, strict=True)
        return [_scores(reward, [images], [caption])[0] for images, caption in rows]
    return _scores(reward, pictures, captions)


def _scores(reward: Reward, pictures: list[list[Tensor]], captions: list[str]) -> list[list[float]]:
    sizes = [len(images) for images in pictures]
    texts = [caption for caption, size in zip(captions, sizes, strict=True) for _ in range(size)]
    scores = reward([image for images in pictures for image in images], texts)
    sign = 1.0 if reward.card.higher_is_better else -1.0
    return [(sign * part).tolist() for part in scores.cpu().split(sizes)]


def _probabilities(
    reward: LlavaReward | PreferenceJudge, pictures: list[list[Tensor]], captions: list[str]
) -> list[list[float]]:
    if any(len(images) != 2 for images in pictures):
        raise ValueError(f"{reward.card.name} compares pictures; it has no score of one by itself, as bias needs it.")
    first, second = ([images[place] for images in pictures] for place in (0, 1))
    chances = reward.preference(first, second, captions).double().tolist()
    return [[chance, 1 - chance] for chance in chances]
