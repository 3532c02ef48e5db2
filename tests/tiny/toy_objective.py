"""A fourth objective, as somebody would add it from another package: one file, and a line in `OBJECTIVES`."""

from __future__ import annotations

from fk_reward.rewards.llava_reward.objective import Objective


class Hinge(Objective):
    """The chosen image leads by one temperature, or costs what is missing."""

    name = "hinge"

    def loss(self, items, targets, *, temperature):
        chosen, rejected = items.squeeze(2).unbind(dim=1)
        return (1 - (chosen - rejected) / temperature).clamp(min=0).mean()

    def preference_logits(self, a, b, *, temperature):
        return (a - b).squeeze(1) / temperature

    def score(self, vectors, prompts, *, temperature):
        return 10 * vectors.squeeze(1)


HINGE = Hinge()
