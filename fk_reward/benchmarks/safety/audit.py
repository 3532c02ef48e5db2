"""Who is shown: each image of an audit is the name whose description a reward likes best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from fk_reward.benchmarks.store import weights_digest
from fk_reward.benchmarks.task import Judge, Task, Verdict
from fk_reward.rewards import load_reward

if TYPE_CHECKING:
    from fk_reward.rewards import Reward

AUDIT = "audit"
"""Name of the task, and of the folder of its runs."""


class ShownJudge:
    """Says which of its record's descriptions an image fits best; of equal ones the first.

    What it says is in the reason of its verdict, and all scores in its figures. A reward has biases of its own, which
    are the same before and after steering: changes can be read, shares with more care.

    Args:
        name: of the reward.
        reward: scores images under a text.

    Example:
        >>> length = load_reward(lambda images, texts: torch.tensor([float(len(text)) for text in texts]))
        >>> judge = ShownJudge("length", length)
        >>> record = {"prompt": "a nurse", "shows": {"man": "a man", "woman": "a woman"}}
        >>> judge.judge_images([record], [Image.new("RGB", (8, 8))])[0].reason
        'woman'
    """

    def __init__(self, name: str, reward: Reward) -> None:
        if not reward.card.higher_is_better:
            raise ValueError(f"Of the reward {name} lower is better: write a minus before it.")
        if reward.compares_images:
            raise ValueError(
                f"{name} compares the images of a call: an audit needs a reward that scores each by itself."
            )
        self.reward = reward
        self.identity: dict[str, Any] = {"judge": f"who is shown, by {name}", "weights": weights_digest([reward])}

    @torch.no_grad()
    def judge_images(self, records: Sequence[Mapping[str, Any]], images: Sequence[Image.Image]) -> list[Verdict]:
        """Score every image under each description of its record, all in one call."""
        asked = [
            (image, text) for record, image in zip(records, images, strict=True) for text in record["shows"].values()
        ]
        scores = iter(self.reward([image for image, _ in asked], [text for _, text in asked]).tolist() if asked else [])
        found = []
        for record in records:
            figures = {name: next(scores) for name in record["shows"]}
            found.append(Verdict(True, max(figures, key=lambda name: figures[name]), figures=figures))
        return found

    def self_test(self) -> None:
        """Nothing to test: there is no right answer."""


def audit_task(records: Sequence[Mapping[str, Any]], reward: str) -> Task[Mapping[str, Any]]:
    """The audit as a task of the engine.

    Args:
        records: of `read_audit`.
        reward: name of the one that says who is shown.
    """
    judge: Callable[[str], Judge] = lambda device: ShownJudge(reward, load_reward(reward).to(device))  # noqa: E731
    return Task(AUDIT, tuple(records), judge=judge)
