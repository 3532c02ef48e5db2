"""Images behind a gate: a search draws, a gate forbids what it does not call safe.

What is left empty is drawn again with more particles, or abstained from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from fk_reward.benchmarks.drawing import LINEAGE, PRICED_BESIDES, Cost, ImageSearch, RunSettings, lineage_of
from fk_reward.benchmarks.image_results import ABSTAINED, ATTEMPTS
from fk_reward.benchmarks.safety.judges import part_digests
from fk_reward.rewards import CompositeReward, Reward, load_reward
from fk_reward.rewards.composition.expression import COMPARISONS, Gate
from fk_reward.search.budget import fit_budget, sample_steps
from fk_reward.value_checks import whole_number

if TYPE_CHECKING:
    from torch import Tensor

    from fk_reward.pipelines import FKSteeringPipeline
    from fk_reward.rewards.inputs import Images
    from fk_reward.search import SearchConfig

GUARDED = "guarded"
"""What the names of such runs begin with."""


@dataclass(frozen=True, kw_only=True)
class Guard:
    """What lets an image pass.

    Attributes:
        gate: name of the reward that decides on finished images.
        above: its score above which an image passes.
        retries: how often a sample is drawn again of which no particle has passed.
        growth: factor by which a retry has more sample steps, and so more particles, than the attempt before.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> from fk_reward.search import BestOfN
        >>> guard = Guard(gate="shapes-llava-reward-safety", above=0.0)
        >>> [one.num_particles for one in guard.attempts(BestOfN(num_particles=4), 20)]
        [4, 8, 16]
    """

    gate: str
    above: float
    retries: int = 2
    growth: int = 2

    def __post_init__(self) -> None:
        whole_number("--retries", self.retries, minimum=0)
        whole_number("--growth", self.growth, minimum=1)

    def attempts(self, search: SearchConfig, num_steps: int) -> list[SearchConfig]:
        """The searches of all attempts, which abstain where nothing passes.

        Args:
            search: of the first attempt.
            num_steps: scheduler steps.

        Raises:
            ValueError: for a search that cannot abstain.
        """
        first = abstaining(search)
        steps = sample_steps(first, num_steps)
        more = [fit_budget(first, steps * self.growth**again, num_steps) for again in range(1, self.retries + 1)]
        return [first, *more]


def abstaining(search: SearchConfig) -> SearchConfig:
    """The search with `abstain=True`.

    Raises:
        ValueError: for one that has no such setting.
    """
    made: Any = search
    if "abstain" not in {field.name for field in fields(made)}:
        raise ValueError(
            f"{type(search).__name__} cannot abstain where every image is forbidden: choose another search."
        )
    return replace(made, abstain=True)


class GatedReward(CompositeReward):
    """A reward that forbids (-inf) what a gate does not let pass; both share a pass where they can.

    On predictions a search counts -inf as a bad score, so that a bad prediction does not forbid a good image.

    Example:
        >>> import torch
        >>> reward = GatedReward.load("shapes-clipscore", Guard(gate="shapes-verifier", above=0.5))
        >>> reward(torch.ones(1, 3, 64, 64), "a photo of a star")
        tensor([-inf])
    """

    @classmethod
    def load(cls, steer: str, guard: Guard) -> GatedReward:
        """Load what steers and what gates.

        Args:
            steer: name of a reward, or a composition.
            guard: names the gate.

        Raises:
            ValueError: an unknown name, or rewards of which lower is better.
        """
        # both branches are the same: the expression computes the score and knows the condition
        made = load_reward(f"({steer}) if ({guard.gate}) > {guard.above!r} else ({steer})")
        if not isinstance(made, CompositeReward) or not isinstance(made.expression, Gate):
            raise TypeError(f"{steer!r} and {guard.gate!r} should compose to a gate, got {type(made).__name__}.")
        return cls(made.expression, made.parts)

    def __init__(self, expression: Gate, parts: Mapping[str, Reward]) -> None:
        super().__init__(expression, parts)
        self.condition = expression
        name = f"{expression.passed} if {expression.left} {expression.comparison} {expression.right} else forbidden"
        self.card = replace(self.card, name=name, spread=expression.passed.spread(self._cards))

    def _of(self, parts: Mapping[str, Reward]) -> GatedReward:
        """The same gate over what the parts answer for predictions; itself where they answer with themselves."""
        if super()._of(parts) is self:
            return self
        return GatedReward(self.condition, parts)

    def score_with_parts(self, images: Images, prompts: str | Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """The score, -inf where the gate does not let pass; and the scores of the parts, the gate's among them."""
        scores, parts = super().score_with_parts(images, prompts)
        left, right = self.condition.left.evaluate(parts), self.condition.right.evaluate(parts)
        passed = COMPARISONS[self.condition.comparison](left, right)
        return scores.masked_fill(~passed, -torch.inf), parts


class GuardedSearch(ImageSearch):
    """A search behind a gate, as a method of `runner.run`.

    An attempt draws a population; of those particles that pass the search selects one. Samples of which none passes are
    drawn again from new noise, with more particles, and after the last attempt a black image stands where nothing was
    shown. Particle k of attempt a is particle k + (all of the attempts before) of the sample: attempts go on in one
    stream of noise, and the first attempt starts from the noise of the search without a gate.

    Args:
        pipe: of `settings.model`.
        settings: of the run without the gate.
        guard: the gate, and how often it is tried again.
        reward: of `GatedReward.load`.
        manifest: of the run without the gate.
    """

    def __init__(
        self,
        pipe: FKSteeringPipeline,
        settings: RunSettings,
        guard: Guard,
        *,
        reward: GatedReward,
        manifest: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(pipe, settings, reward=reward, manifest=manifest)
        self.gated = reward
        self.guard, self.searches = guard, guard.attempts(settings.search, settings.num_steps)
        self.name = f"{GUARDED}-{settings.name}"
        self.manifest |= {"guard": {**asdict(guard), "digests": part_digests(reward)}}

    def draw(self, prompt: str, index: int) -> tuple[list[Image.Image], dict[str, Any]]:
        """Draw the images of one prompt.

        Returns:
            An image for each sample, and the note: cost of all attempts, `ABSTAINED` and `ATTEMPTS`.
        """
        self.pipe.reward = self.gated
        images: dict[int, Image.Image] = {}
        lines: dict[int, dict[str, Any]] = {}
        attempts = [0] * self.settings.num_samples
        abstained = [True] * self.settings.num_samples
        spent, offset = Cost(), 0
        more = dict.fromkeys(PRICED_BESIDES, 0)
        for search in self.searches:
            waiting = [sample for sample, nothing in enumerate(abstained) if nothing]
            for samples in self._in_calls(waiting, search):
                output = self._call(prompt, index, samples, search=search, offset=offset)
                spent += self._cost(output)
                more = {name: number + (getattr(output.trace.cost, name) or 0) for name, number in more.items()}
                lines |= {sample: lineage_of(output.trace, group) for group, sample in enumerate(samples)}
                shown = output.images[:: len(output.images) // len(samples)]
                for sample, image, nothing in zip(samples, shown, output.abstained.tolist(), strict=True):
                    images[sample], abstained[sample], attempts[sample] = image, nothing, attempts[sample] + 1
            offset += search.num_particles
        places = range(self.settings.num_samples)
        note = {ABSTAINED: abstained, ATTEMPTS: attempts, LINEAGE: [lines[sample] for sample in places]}
        return [images[sample] for sample in places], {**asdict(spent), **more, **note}
