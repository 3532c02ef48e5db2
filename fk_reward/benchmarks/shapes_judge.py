"""What is written down of a population of the shapes benchmark: scores by all rewards, verdicts, diversity, cost."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fk_reward.benchmarks.statistics import mean_pairwise_distance
from fk_reward.rewards import Reward
from fk_reward.shapes import FORBIDDEN_SIGN, ShapesPrompt, shows_forbidden_sign, verify

if TYPE_CHECKING:
    from fk_reward.pipelines import FKSteeringOutput


@dataclass(frozen=True, eq=False)
class PromptResult:
    """The final population of one prompt, in the order of its particles.

    Attributes:
        images: `(K, 3, H, W)`.
        scores: reward -> `(K,)`.
        correct: `(K,)` bool, by the verifier.
        forbidden: `(K,)` bool, which show the forbidden sign; None where the prompt asks for it.
        num_ancestors: distinct first ancestors of the particles.
        scoring_seconds: reward -> wall clock of its scores; 0 for the reward that steered.
    """

    images: Tensor
    scores: Mapping[str, Tensor]
    correct: Tensor
    forbidden: Tensor | None
    num_ancestors: int
    scoring_seconds: Mapping[str, float]


def judge(
    output: FKSteeringOutput, group: int, prompt: ShapesPrompt, *, rewards: Mapping[str, Reward], steered_by: str | None
) -> PromptResult:
    """Pictures of one prompt, put back from best first into the order of the particles, scored by every reward.

    Args:
        output: of a call that returned all particles that it finished.
        group: place of the prompt in the call.
        prompt: the prompt.
        rewards: names -> rewards.
        steered_by: name of the reward that steered the call and has scored its pictures; None for none.
    """
    order = output.trace.selected[group].argsort()
    images = output.images.unflatten(0, output.rewards.shape)[group][order.to(output.images.device)].float()
    scores, seconds = {}, dict.fromkeys(rewards, 0.0)
    for name, reward in rewards.items():
        if name == steered_by:
            scores[name] = output.rewards[group][order]
        else:
            scores[name], seconds[name] = _timed_scores(reward, images, prompt.text)
    images = images.cpu()
    return PromptResult(
        images=images,
        scores=scores,
        correct=torch.tensor([verify(image, prompt).correct for image in images]),
        forbidden=_forbidden(images, prompt),
        num_ancestors=len(output.trace.lineage(group)[0].unique()),
        scoring_seconds=seconds,
    )


@torch.no_grad()
def _timed_scores(reward: Reward, images: Tensor, prompt: str) -> tuple[Tensor, float]:
    started = time.perf_counter()
    scores = reward(images, prompt).cpu()
    return scores, time.perf_counter() - started


def _forbidden(images: Tensor, prompt: ShapesPrompt) -> Tensor | None:
    if FORBIDDEN_SIGN in prompt.objects:
        return None
    return torch.tensor([shows_forbidden_sign(image) for image in images])


def outcome(result: PromptResult, size: int, *, selected_by: str | None) -> dict[str, Any]:
    """What the first `size` particles give: the best of them by a reward, judged, and how diverse they are.

    Args:
        result: the population.
        size: K, at most that of the population.
        selected_by: the reward that chooses; None for the first particle.
    """
    values = None if selected_by is None else result.scores[selected_by][:size]
    chosen = 0 if values is None else int(values.argmax())
    signs = result.forbidden
    return {
        "correct": bool(result.correct[chosen]),
        "scores": {name: float(scores[chosen]) for name, scores in result.scores.items()},
        "share_correct": float(result.correct[:size].float().mean()),
        "forbidden": None if signs is None else bool(signs[chosen]),
        "share_forbidden": None if signs is None else float(signs[:size].float().mean()),
        "num_ancestors": min(result.num_ancestors, size),
        "distance": mean_pairwise_distance(result.images[:size]) if len(result.images[:size]) > 1 else None,
        "reward_spread": None if values is None or len(values) < 2 else float(values.std()),
    }


def cost(output: FKSteeringOutput, num_prompts: int, *, share: float) -> dict[str, float]:
    """Cost of one prompt, of a share of its population: rows through the denoiser, images decoded, seconds."""
    trace = output.trace
    return {
        "model_rows": trace.num_model_rows * share / num_prompts,
        "decoded": trace.num_decode_calls * share / num_prompts,
        "seconds": trace.seconds * share / num_prompts,
    }
