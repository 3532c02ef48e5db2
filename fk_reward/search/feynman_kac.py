"""Feynman-Kac steering: particles are weighed by their rewards and resampled on the way (Singhal et al., 2025)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from fk_reward.search.base import SEARCH_STARTS, Forecast, step_at
from fk_reward.search.diversity import DIVERSE
from fk_reward.search.fkd_args import convert_fkd_args
from fk_reward.smc.particle_filter import ParticleFilter, grouped_rewards
from fk_reward.smc.potentials import CONSTANT, POTENTIALS, RISING, checked_weights
from fk_reward.smc.resampling import RESAMPLERS, moved_groups
from fk_reward.smc.reward_scale import AUTO, CARD
from fk_reward.value_checks import boolean, ordered_fractions, real_number, whole_number

if TYPE_CHECKING:
    from torch import Generator, Tensor

SELECTIONS = ("best", "sample", DIVERSE)


@dataclass(frozen=True, kw_only=True)
class FKSteeringConfig:
    """Settings of the Feynman-Kac particle sampler of Singhal et al. (2025), arXiv 2501.06848.

    The defaults are what estimates best where the answer is known (`examples/benchmarks/mixture.py`): differences of
    rewards that count more the less noise is left, at four late steps, each followed by systematic resampling. Those of
    the paper are `search="fk-paper"`.

    Attributes:
        num_particles: K, the particles of one prompt. At least 1.
        potential: what a scoring step adds to the log-weights: `"max"`, `"difference"`, `"sum"` or `"immediate"`
            (`fk_reward.smc.potentials`). Each targets `p(x) exp(reward_scale * r(x))`, because of the terminal
            correction.
        reward_weight: beta, how much the rewards of a scoring step count: `"constant"`, 1; `"rising"`, the share of the
            signal in the samples of the step, alpha² / (alpha² + sigma²), which is alpha-bar where the schedule
            preserves the variance: early predictions say little, and so should decide little; or a number for each of
            the `num_resamples` scoring steps, at least 0, as a tuple or as text (`"0.1,0.4,0.8,1"`). The target stays
            the same.
        reward_scale: lambda. It means something only relative to the scale of a reward: lambda times the spread of
            the reward among the particles of one prompt should be around 1 or a few. 0 turns steering off. `"card"` is
            1.5 divided by the spread that the reward's card states, and `"auto"` where it states none. `"auto"` chooses
            it for each prompt by bisection, such that the rewards of each scoring step, and the finished ones, leave an
            ESS of at least `target_ess`; it is bounded (`fk_reward.smc.reward_scale`), and `log_evidence` is then no
            estimate.
        resample_start: first scoring step, as a fraction of the trajectory in [0, 1].
        resample_stop: last scoring step, as a fraction of the trajectory in [resample_start, 1].
        num_resamples: number of scoring steps, evenly spaced between the two. 0: no resampling, which is best of K.
        ess_threshold: resample when the ESS of a prompt's particles is below this fraction of K, in [0, 1]. 1.0: at
            every scoring step at which the weights differ. Where nothing is resampled the weights are kept. The ESS is
            at least 1, so that two particles need a threshold above 0.5 to be resampled at all.
        resampling: scheme that draws the ancestors: `"systematic"`, `"stratified"`, `"residual"`, `"multinomial"` or
            `"ssp"` (`fk_reward.smc.resampling`).
        selection: which of the K final particles are returned: `"best"`, those of the highest reward, or `"sample"`,
            drawn by their weights with replacement, systematically (each image follows the tilted distribution, and
            images can repeat; `"best"` is biased towards its upper end), or `"diverse"`, a group of high rewards whose
            images differ (`fk_reward.search.diversity`).
        diversity_weight: with `"diverse"`, what a mean distance is worth in standard deviations of the reward.
        target_ess: with `reward_scale="auto"`, the ESS aimed at, as a fraction of K in (0, 1).
        final_particles: K', how many particles are left at the end, in [1, K]: the population is resampled to fewer
            and fewer, by the same factor at each scoring step, so that many starts are tried and few are finished.
            None for K throughout. Needs at least one scoring step.
        stop_reward: once a predicted sample of a prompt has at least this reward, the particles of that prompt are
            neither weighed nor resampled again before the end, and where this holds for all prompts nothing is scored
            until then. The stopping rule looks at the past only and the terminal correction is still made, so that
            the target stays the same. None for no such rule; not together with `final_particles`.
        abstain: return black images for a prompt of which every finished image is forbidden (a reward of -inf); False
            raises an error instead.

    Example:
        >>> FKSteeringConfig(num_particles=8).scoring_steps(100)
        (40, 57, 73, 90)
    """

    default_eta: ClassVar[float | None] = 1.0  # the paper's setting: DDIM with all of its noise
    proportional: ClassVar[tuple[str, ...]] = ("final_particles",)  # to num_particles, where a budget sets it

    num_particles: int = 4
    potential: str = "difference"
    reward_weight: Sequence[float] | str = RISING
    reward_scale: float | str = CARD
    resample_start: float = 0.4
    resample_stop: float = 0.9
    num_resamples: int = 4
    ess_threshold: float = 1.0
    resampling: str = "systematic"
    selection: str = "best"
    diversity_weight: float = 1.0
    target_ess: float = 0.5
    final_particles: int | None = None
    stop_reward: float | None = None
    abstain: bool = False

    def __post_init__(self) -> None:
        _check_choice("potential", self.potential, tuple(POTENTIALS))
        _check_choice("resampling", self.resampling, tuple(RESAMPLERS))
        _check_choice("selection", self.selection, SELECTIONS)
        boolean("abstain", self.abstain)
        numbers: dict[str, Any] = {
            "num_particles": self._whole("num_particles", minimum=1),
            "num_resamples": self._whole("num_resamples", minimum=0),
            **ordered_fractions(resample_start=self.resample_start, resample_stop=self.resample_stop),
            "ess_threshold": self._real("ess_threshold", low=0.0, high=1.0),
            "diversity_weight": self._real("diversity_weight", low=0.0),
            "target_ess": self._real("target_ess", low=1e-6, high=1.0 - 1e-6),
        }
        numbers["reward_weight"] = checked_weights(self.reward_weight, numbers["num_resamples"])
        if self.reward_scale not in (AUTO, CARD):
            numbers["reward_scale"] = self._real("reward_scale", low=0.0, note='or "card" or "auto"')
        if self.stop_reward is not None:
            numbers["stop_reward"] = self._real("stop_reward")
        if self.final_particles is not None:
            numbers["final_particles"] = self._whole("final_particles", minimum=1)
        vars(self).update(numbers)  # plain numbers, so that NumPy's go into JSON as well
        if self.final_particles is not None:
            self._check_funnel(self.final_particles)

    def _whole(self, name: str, *, minimum: int) -> int:
        return whole_number(name, getattr(self, name), minimum=minimum)

    def _real(self, name: str, *, low: float = -math.inf, high: float = math.inf, note: str = "") -> float:
        return real_number(name, getattr(self, name), low=low, high=high, note=note)

    def _check_funnel(self, final_particles: int) -> None:
        if final_particles > self.num_particles:
            raise ValueError(
                f"final_particles should be at most num_particles = {self.num_particles}, got {final_particles}."
            )
        if not self.resamples:
            raise ValueError("final_particles needs a scoring step: num_resamples and reward_scale should be above 0.")
        if self.stop_reward is not None:
            raise ValueError("final_particles and stop_reward exclude each other: give one of them.")

    @property
    def resamples(self) -> bool:
        """Whether particles can be resampled at all: several particles, at least one scoring step, a lambda above 0.

        Example:
            >>> FKSteeringConfig(num_resamples=0).resamples
            False
        """
        return self.num_particles > 1 and self.num_resamples > 0 and self.reward_scale != 0

    def scoring_steps(self, num_steps: int) -> tuple[int, ...]:
        """Indices of the scheduler steps before which the particles are scored.

        Index i stands for the state after i of the `num_steps` steps. The last step is never among them: it adds no
        noise, so that copies drawn before it would be identical in the end. A short trajectory can have fewer scoring
        steps than `num_resamples`, because equal indices count once.

        Args:
            num_steps: number of scheduler steps, at least 1.

        Returns:
            Ascending, each in [0, num_steps - 2].

        Example:
            >>> FKSteeringConfig().scoring_steps(10)
            (4, 6, 7, 8)
        """
        return tuple(sorted({index for index in self._places(num_steps) if index >= 0}))

    def _places(self, num_steps: int) -> list[int]:
        """The step of each of the `num_resamples` fractions, which can repeat; -1 where there is none."""
        whole_number("num_steps", num_steps, minimum=1)
        gaps = max(self.num_resamples - 1, 1)
        width = self.resample_stop - self.resample_start
        fractions = (self.resample_start + width * i / gaps for i in range(self.num_resamples))
        return [min(step_at(f, num_steps), num_steps - 2) for f in fractions]

    def step_weights(self, num_steps: int) -> dict[int, float] | None:
        """Scoring step -> beta; None for `"rising"`, which depends on the noise levels of the scheduler.

        Where several of the `num_resamples` fall on one step of a short trajectory, the last one counts.

        Example:
            >>> FKSteeringConfig(num_resamples=2, reward_weight=(0.25, 1.0)).step_weights(10)
            {4: 0.25, 8: 1.0}
        """
        if self.reward_weight == RISING:
            return None
        given = self.reward_weight
        weights = (1.0,) * self.num_resamples if isinstance(given, str) else given
        placed = dict(zip(self._places(num_steps), weights, strict=True))
        return {step: placed[step] for step in self.scoring_steps(num_steps)}

    def population_sizes(self, num_scoring_steps: int) -> tuple[int, ...]:
        """How many particles go on after each scoring step.

        Example:
            >>> FKSteeringConfig(num_particles=16, final_particles=2).population_sizes(3)
            (8, 4, 2)
            >>> FKSteeringConfig(num_particles=16).population_sizes(3)
            (16, 16, 16)
        """
        last = self.num_particles if self.final_particles is None else self.final_particles
        factors = ((last / self.num_particles) ** (i / num_scoring_steps) for i in range(1, num_scoring_steps + 1))
        return tuple(max(last, round(self.num_particles * factor)) for factor in factors)

    def population(
        self,
        num_groups: int = 1,
        generators: Generator | Sequence[Generator] | None = None,
        *,
        spread: float | None = None,
    ) -> FKPopulation:
        """The particles of one call; the arguments are those of `ParticleFilter`."""
        return FKPopulation(self, num_groups, generators, spread=spread)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary of all fields; `from_dict` turns it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FKSteeringConfig:
        """Config from a dictionary of fields.

        Raises:
            TypeError: when a key is not a field; the message lists the fields.

        Example:
            >>> FKSteeringConfig.from_dict({"num_particles": 2}) == FKSteeringConfig(num_particles=2)
            True
        """
        known = [field.name for field in fields(cls)]  # also those of a subclass
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise TypeError(f"Unknown setting {unknown}; the fields of {cls.__name__} are {known}.")
        return cls(**values)

    def to_json(self, path: str | Path | None = None) -> str:
        """JSON text of all fields, also written to `path` if one is given."""
        text = json.dumps(self.to_dict(), indent=2)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    @classmethod
    def from_json(cls, text_or_path: str | Path) -> FKSteeringConfig:
        """Config from JSON text or from a file of it.

        Example:
            >>> FKSteeringConfig.from_json(FKSteeringConfig(potential="sum").to_json()).potential
            'sum'
        """
        is_text = isinstance(text_or_path, str) and text_or_path.lstrip().startswith("{")
        text = text_or_path if is_text else Path(text_or_path).read_text(encoding="utf-8")
        try:
            return cls.from_dict(json.loads(str(text)))
        except RecursionError as error:
            raise ValueError("A config is one JSON object of plain values, got deeply nested JSON.") from error

    @classmethod
    def from_fkd_args(cls, fkd_args: Mapping[str, Any]) -> FKSteeringConfig:
        """Config from the `fkd_args` of the public FK-steering code; see `convert_fkd_args`.

        Example:
            >>> args = {"potential_type": "diff", "lmbda": 2.0, "num_particles": 8, "time_steps": 50}
            >>> args |= {"resampling_t_start": 5, "resampling_t_end": 45, "resample_frequency": 5}
            >>> FKSteeringConfig.from_fkd_args(args).num_resamples
            9
        """
        return cls(**convert_fkd_args(fkd_args))


class FKPopulation(ParticleFilter):
    """A `ParticleFilter` with the schedule of its config: what `steer` asks who goes on.

    Example:
        >>> population = FKSteeringConfig(num_particles=2, reward_weight="constant", reward_scale=10.0).population()
        >>> import torch
        >>> population.begin(10)
        >>> population.advance(torch.tensor([0.0, 5.0]), step=2)
        tensor([1, 1])
        >>> population.finish(torch.tensor([1.0, 2.0]))
        >>> population.select(1)
        tensor([[1]])
    """

    config: FKSteeringConfig  # type: ignore[assignment]

    def __init__(
        self,
        config: FKSteeringConfig,
        num_groups: int = 1,
        generator: Generator | Sequence[Generator] | None = None,
        *,
        spread: float | None = None,
    ) -> None:
        super().__init__(config, num_groups, generator, spread=spread)
        self.max_particles = config.num_particles
        self.copies = config.resamples
        self._sizes: dict[int, int] = {}
        self._weights: dict[int, float] | None = None
        self._signal: float | None = None
        self._recorded: dict[str, Tensor] = {}
        self._scored: list[Tensor] = []
        self._resampled = torch.zeros(num_groups, dtype=torch.bool)
        self._effect: str | None = None

    @property
    def needs_scores(self) -> bool:
        """False once `stop_reward` has excused every prompt."""
        return not bool(self.stopped.all())

    @property
    def reads_signal(self) -> bool:
        """Whether `at_signal` has to be told before `advance`."""
        return self.copies and self.config.reward_weight == RISING

    def at_signal(self, share: float) -> None:
        """Take the share of the signal in the samples that are scored next, from 0, pure noise, to 1, clean."""
        self._signal = real_number("share", share, low=0.0, high=1.0)

    def sizes(self, num_steps: int) -> dict[int, int]:
        """Scoring step -> K', the particles of a prompt that go on from there."""
        steps = self.config.scoring_steps(num_steps) if self.config.resamples else ()
        return dict(zip(steps, self.config.population_sizes(len(steps)), strict=True))

    def scoring_steps(self, num_steps: int) -> tuple[int, ...]:
        """Those of the config; none where nothing can be resampled."""
        return tuple(self.sizes(num_steps))

    def forecast(self, num_steps: int) -> Forecast:
        """Sizes of a complete run; with `stop_reward` what it scores at most."""
        return Forecast.of(num_steps, self.config.num_particles, self.sizes(num_steps))

    def begin(self, num_steps: int) -> str | None:
        """Place the scoring steps.

        Returns:
            A sentence where settings that ask for resampling cannot resample anything.

        Raises:
            ValueError: for `final_particles` on a trajectory without a scoring step.
        """
        self._sizes, self._weights = self.sizes(num_steps), self.config.step_weights(num_steps)
        config, number = self.config, self.config.num_particles
        if not config.resamples or config.final_particles is not None:
            if config.resamples and not self._sizes:
                raise ValueError(
                    f"final_particles needs a scoring step, and a trajectory of {num_steps} step has none."
                )
            return None
        if not self._sizes:
            return (
                f"A trajectory of {num_steps} step has no scoring step, so nothing will be resampled: this is best of "
                f"{number}. {SEARCH_STARTS}"
            )
        if self._threshold_is_idle:
            return (
                f"The ESS of {number} particles is never below {config.ess_threshold:g} of them, so nothing will be "
                f"resampled: this is best of {number}. Raise ess_threshold (1.0 resamples at every scoring step) or "
                "num_particles."
            )
        return None

    def advance(self, rewards: Tensor, *, step: int, log_ratio: Tensor | None = None) -> Tensor | None:
        """Weigh, then resample where the ESS asks for it; `final_particles` drops some at every scoring step."""
        if log_ratio is not None:
            self.correct(log_ratio)
        self.weigh(rewards, step=step, weight=self._weight(step))
        self._keep_weights()
        # Of several scoring steps that had to wait for a step with noise the last one says how many go on.
        due = [mark for mark in self._sizes if mark <= step]
        num_before = self.num_particles
        # a checked copy on the CPU: `rewards` may hold a graph, or be a buffer that the next step fills
        self._scored.append(grouped_rewards(rewards, self.num_groups, num_before, step=step))
        ancestors = self.resample(self._sizes[due[-1]] if due else None)
        if ancestors is not None:
            self._resampled |= moved_groups(ancestors.view(self.num_groups, -1), num_before)
        return ancestors

    def _weight(self, step: int) -> float:
        """Beta of a scoring step; of several that had to wait for a step with noise it is that of the last one."""
        if self.config.reward_weight == RISING:
            share, self._signal = self._signal, None  # of this step only
            if share is None:
                raise RuntimeError(
                    "reward_weight='rising' needs the share of the signal in the samples of each scoring step: steer() "
                    "says it; in a loop of your own call population.at_signal(share) before advance()."
                )
            return share
        due = [mark for mark in self._weights or () if mark <= step]
        return 1.0 if self._weights is None or not due else self._weights[due[-1]]

    def finish(self, rewards: Tensor, *, step: int | None = None, log_ratio: Tensor | None = None) -> str | None:
        """The terminal correction.

        Returns:
            A sentence where no prompt was resampled although the settings ask for it, unless `begin` has said so.
        """
        if log_ratio is not None:
            self.correct(log_ratio)
        self.weigh(rewards, final=True, step=step)
        self._keep_weights()
        self._recorded |= {"log_evidence": self.log_evidence.clone(), "reward_scale": self.reward_scale.clone()}
        self._effect = self._describe_effect()
        told = not self._scored or self._threshold_is_idle
        return None if told or self._resampled.any() or self.stopped.all() else self._effect

    @property
    def _threshold_is_idle(self) -> bool:
        """Whether the ESS, which is at least 1, is never below the threshold."""
        return self.config.ess_threshold * self.config.num_particles <= 1.0

    @property
    def notes(self) -> list[str]:
        """What `ParticleFilter` notes, and which prompts should have been resampled and were not."""
        return [*super().notes, *([self._effect] if self._effect else [])]

    def _describe_effect(self) -> str | None:
        """A sentence about prompts that should have been resampled and were not; None without such prompts."""
        kept = ~(self._resampled | self.stopped)
        if not self.config.resamples or not kept.any():
            return None
        num_resampled = int((~kept & ~self.stopped).sum())
        drawn = "best of {}" if self.config.selection == "best" else "a draw by weight from {} plain samples"
        rest = "; of the others, " if num_resampled else f": this was {drawn.format(self.num_particles)}; "
        return f"{num_resampled} of {len(kept)} prompts were resampled{rest}{self._why_not(kept)}."

    def _why_not(self, kept: Tensor) -> str:
        """Why the prompts `(G,)` were not resampled, and what would help.

        The rewards' spread is the mean, over these prompts and the scoring steps, of the standard deviation among the
        particles of a prompt. Log-weights that are normal with standard deviation s leave an ESS of about K exp(-s^2),
        which says what lambda would have done.
        """
        config, scale = self.config, float(self.reward_scale[kept].mean())
        if not self._scored:
            return "no scoring step was reached"
        if self._threshold_is_idle:
            return (
                f"the ESS of {config.num_particles} particles is never below {config.ess_threshold:g} of them; "
                "ess_threshold=1.0 resamples at every scoring step"
            )
        rows = [row[row.isfinite()] for rewards in self._scored for row in rewards[kept]]
        spread = float(torch.stack([row.std(correction=0) for row in rows if len(row) > 1] or [torch.zeros(())]).mean())
        if spread == 0:
            return "the rewards of a prompt's particles did not differ at the scoring steps"
        wanted = math.sqrt(-math.log(config.ess_threshold)) / spread if config.ess_threshold < 1 else 0.0
        remedy = f"reward_scale={wanted:.2g} would be about enough, and so would" if wanted > scale else "try"
        return (
            f"reward_scale x spread = {scale * spread:.2g} (rewards of a prompt's particles have a standard deviation "
            f"of {spread:.2g} at the scoring steps, reward_scale is {scale:.3g}): {remedy} reward_scale='auto'"
        )

    def _keep_weights(self) -> None:
        self._recorded = {"log_weights": self.log_weights.clone(), "ess": self.ess}

    def record(self) -> Mapping[str, Tensor]:
        """`log_weights` and `ess` before resampling; at the end `log_evidence` and `reward_scale`, too."""
        return self._recorded


def config_fields() -> tuple[str, ...]:
    """Names of the fields of `FKSteeringConfig`.

    Example:
        >>> config_fields()[0]
        'num_particles'
    """
    return tuple(f.name for f in fields(FKSteeringConfig))


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} should be one of {list(choices)}, got {value!r}.")


PAPER = FKSteeringConfig(
    num_particles=4,
    potential="max",
    reward_weight=CONSTANT,
    reward_scale=10.0,
    resample_start=0.2,
    resample_stop=0.8,
    num_resamples=4,
    ess_threshold=0.5,
    resampling="systematic",
    selection="best",
)
"""The settings of Singhal et al. (2025), whatever the defaults are."""
