"""`FKSteeringConfig`: every setting of the Feynman-Kac sampler, validated, with a JSON round trip."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fk_reward.smc.potentials import POTENTIALS
from fk_reward.smc.resampling import RESAMPLERS
from fk_reward.value_checks import real_number, whole_number

SELECTIONS = ("best", "sample")
AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class FKSteeringConfig:
    """Settings of the Feynman-Kac particle sampler of Singhal et al. (2025), arXiv 2501.06848.

    The defaults are the paper's: four particles, the max potential, lambda 10, resampling at 20, 40, 60 and 80 % of
    the trajectory.

    Attributes:
        num_particles: K, the particles of one prompt. At least 1.
        potential: what a scoring step adds to the log-weights: `"max"`, `"difference"`, `"sum"` or `"immediate"`
            (`fk_reward.smc.potentials`). Each targets `p(x) exp(reward_scale * r(x))`, because of the terminal
            correction.
        reward_scale: lambda. It means something only relative to the scale of a reward: lambda times the spread of
            the reward among the particles of one prompt should be around 1 or a few. 0 turns steering off. `"auto"`
            chooses it for each prompt by bisection, such that the rewards of each scoring step, and the finished ones,
            leave an ESS of at least `target_ess`; it is bounded (`fk_reward.smc.reward_scale`), and `log_evidence`
            is then no estimate.
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
            images can repeat; `"best"` is biased towards its upper end).
        target_ess: with `reward_scale="auto"`, the ESS aimed at, as a fraction of K in (0, 1).
        final_particles: K', how many particles are left at the end, in [1, K]: the population is resampled to fewer
            and fewer, by the same factor at each scoring step, so that many starts are tried and few are finished.
            None for K throughout. Needs at least one scoring step.
        stop_reward: once a predicted sample of a prompt has at least this reward, the particles of that prompt are
            neither weighed nor resampled again before the end, and where this holds for all prompts nothing is scored
            until then. The stopping rule looks at the past only and the terminal correction is still made, so that
            the target stays the same. None for no such rule; not together with `final_particles`.

    Example:
        >>> FKSteeringConfig(num_particles=8).scoring_steps(100)
        (20, 40, 60, 80)
    """

    num_particles: int = 4
    potential: str = "max"
    reward_scale: float | str = 10.0
    resample_start: float = 0.2
    resample_stop: float = 0.8
    num_resamples: int = 4
    ess_threshold: float = 0.5
    resampling: str = "systematic"
    selection: str = "best"
    target_ess: float = 0.5
    final_particles: int | None = None
    stop_reward: float | None = None
    abstain: bool = False

    def __post_init__(self) -> None:
        _check_choice("potential", self.potential, tuple(POTENTIALS))
        _check_choice("resampling", self.resampling, tuple(RESAMPLERS))
        _check_choice("selection", self.selection, SELECTIONS)
        if not isinstance(self.abstain, bool):
            raise TypeError(f"abstain should be True or False, got {self.abstain!r}.")
        numbers: dict[str, Any] = {
            "num_particles": self._whole("num_particles", minimum=1),
            "num_resamples": self._whole("num_resamples", minimum=0),
            "resample_start": self._real("resample_start", low=0.0, high=1.0),
            "resample_stop": self._real("resample_stop", low=0.0, high=1.0),
            "ess_threshold": self._real("ess_threshold", low=0.0, high=1.0),
            "target_ess": self._real("target_ess", low=1e-6, high=1.0 - 1e-6),
        }
        if self.reward_scale != AUTO:
            numbers["reward_scale"] = self._real("reward_scale", low=0.0, note='or "auto"')
        if self.stop_reward is not None:
            numbers["stop_reward"] = self._real("stop_reward")
        if self.final_particles is not None:
            numbers["final_particles"] = self._whole("final_particles", minimum=1)
        vars(self).update(numbers)  # plain numbers, so that NumPy's go into JSON as well
        if self.resample_start > self.resample_stop:
            raise ValueError(
                f"resample_stop should be in [resample_start = {self.resample_start:g}, 1], got {self.resample_stop}."
            )
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
            >>> FKSteeringConfig().scoring_steps(4)
            (1, 2)
        """
        whole_number("num_steps", num_steps, minimum=1)
        gaps = max(self.num_resamples - 1, 1)
        width = self.resample_stop - self.resample_start
        fractions = (self.resample_start + width * i / gaps for i in range(self.num_resamples))
        indices = {min(math.floor(f * num_steps + 0.5), num_steps - 2) for f in fractions}
        return tuple(sorted(index for index in indices if index >= 0))

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
        unknown = sorted(set(values) - set(config_fields()))
        if unknown:
            raise TypeError(f"Unknown setting {unknown}; the fields of FKSteeringConfig are {list(config_fields())}.")
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
        """Config from the `fkd_args` of the public FK-steering code; see `fk_reward.search.fkd_args.convert_fkd_args`.

        Example:
            >>> args = {"potential_type": "diff", "lmbda": 2.0, "num_particles": 8, "time_steps": 50}
            >>> args |= {"resampling_t_start": 5, "resampling_t_end": 45, "resample_frequency": 5}
            >>> FKSteeringConfig.from_fkd_args(args).num_resamples
            9
        """
        from fk_reward.search.fkd_args import convert_fkd_args  # noqa: PLC0415 (the converter imports nothing of this module)

        return cls(**convert_fkd_args(fkd_args))


def config_fields() -> tuple[str, ...]:
    """Names of the fields of `FKSteeringConfig`.

    Example:
        >>> config_fields()[0]
        'num_particles'
    """
    return tuple(f.name for f in fields(FKSteeringConfig))


def parse_reward_scale(text: str) -> float | str:
    """Lambda as typed: a number, or "auto".

    Raises:
        ValueError: anything else.

    Example:
        >>> parse_reward_scale("10")
        10.0
    """
    if text == AUTO:
        return text
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"reward_scale should be a number or auto, got {text!r}.") from error


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} should be one of {list(choices)}, got {value!r}.")
