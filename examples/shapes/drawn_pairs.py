"""Pairs of pictures that a model drew, ranked by what the verifier says of the finished ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from alignment_pairs import pick
from drawn_pictures import STEPS, Draw, balanced
from preference_files import Pair
from prompt_sides import neighbours

from fk_reward.shapes import ShapesPrompt, verify

MIN_GAP = 0.15
"""Least difference of the verifier's scores of a pair."""

MAX_PAIRS = 6
"""Of one draw."""

MAX_CAPTION_PAIRS = 3
"""Of one draw, for pairs of captions."""

CAPTION_SHARE = 0.3
"""Of the pairs of finished pictures: one picture with its prompt and with a false one."""

STEP_SHARES = (0.04, *[0.96 / (len(STEPS) - 1)] * (len(STEPS) - 1))
"""How often each step's predictions are chosen; those of the first show little yet."""


def ranked_pairs(draw: Draw, rng: np.random.Generator, *, at_most: int = MAX_PAIRS) -> list[tuple[int, int]]:
    """Better and worse pictures of a draw; first those of which one is right and one wrong, else in random order."""
    gaps = draw.scores[:, None] - draw.scores
    found = rng.permutation((gaps >= MIN_GAP).nonzero().numpy()).tolist()
    found.sort(key=lambda pair: not draw.correct[pair[0]])
    return [(better, worse) for better, worse in found[:at_most]]


def _pair(draw: Draw, pair: tuple[int, int], stage: int, kind: str) -> Pair:
    better, worse = (draw.images[row, stage] for row in pair)
    return Pair(prompt=draw.prompt, rejected_prompt=draw.prompt, chosen=better, rejected=worse, kind=kind)


def prediction_pairs(number: int, draws: Sequence[Draw], rng: np.random.Generator) -> list[Pair]:
    """Two pictures of a draw as they were predicted at one earlier step, ranked by what became of them."""
    found = [[(draw, pair) for pair in ranked_pairs(draw, rng)] for draw in draws]
    chosen = balanced(draws, found)[:number]
    stages = rng.choice(len(STEPS), len(chosen), p=STEP_SHARES).tolist()
    rows = zip(chosen, stages, strict=True)
    return [_pair(draw, pair, stage, f"predictions/{STEPS[stage]}") for (draw, pair), stage in rows]


def _false_caption(draw: Draw, row: int, side: str, rng: np.random.Generator) -> tuple[str, ShapesPrompt] | None:
    """Kind and prompt of a caption that the verifier finds false of a finished picture."""
    kinds = neighbours(draw.prompt, side)
    for kind in rng.permutation(list(kinds)).tolist():
        prompt = pick(kinds[kind], rng)
        if not verify(draw.images[row, -1] / 255, prompt).correct:
            return kind, prompt
    return None


def _caption_pairs(number: int, side: str, draws: Sequence[Draw], rng: np.random.Generator) -> list[Pair]:
    right = [rng.permutation(draw.correct.nonzero()[:, 0].numpy())[:MAX_CAPTION_PAIRS].tolist() for draw in draws]
    found = [[(draw, row) for row in rows] for draw, rows in zip(draws, right, strict=True)]
    pairs = []
    for draw, row in balanced(draws, found)[:number]:
        false = _false_caption(draw, row, side, rng)
        if false is not None:
            kind, prompt, image = f"samples/caption {false[0]}", false[1], draw.images[row, -1]
            pairs.append(Pair(prompt=draw.prompt, rejected_prompt=prompt, chosen=image, rejected=image, kind=kind))
    return pairs


def sample_pairs(number: int, side: str, draws: Sequence[Draw], rng: np.random.Generator) -> list[Pair]:
    """Two finished pictures of a draw; and, for `CAPTION_SHARE` of the pairs, a right one with a false caption too."""
    found = [[(draw, pair) for pair in ranked_pairs(draw, rng)] for draw in draws]
    chosen = balanced(draws, found)[: number - round(CAPTION_SHARE * number)]
    pairs = [_pair(draw, pair, -1, "samples/drawn") for draw, pair in chosen]
    return pairs + _caption_pairs(number - len(pairs), side, draws, rng)
