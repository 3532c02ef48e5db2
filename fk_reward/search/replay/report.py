"""Replay: what would have beaten best of N on recorded rewards, and the settings to use.

A policy is chosen on half of the prompts and reported on the other half. Nothing is drawn, so that a search on real
models is planned in seconds; what is to be recorded, and by which command, is said in `docs/searches.md`.

Letters of shapes: P prompts, S seeds of a prompt, T steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fk_reward.search.base import SearchConfig
from fk_reward.search.feynman_kac import FKSteeringConfig
from fk_reward.search.registry import search_name, settings_of
from fk_reward.search.replay.choice import MIN_CORRELATION, Choice, choose_policy
from fk_reward.search.replay.policies import Policy, Prices, Replayer, best_of_n
from fk_reward.search.replay.records import (
    Floats,
    Knowledge,
    RewardRecords,
    knowledge,
    mean_interval,
    standardized,
)
from fk_reward.value_checks import whole_number

DEFAULT_PRICES = Prices()
TILT = 1.5
"""lambda times the spread of a reward within a prompt: 1.5 standard deviations weigh e times as much as none."""
KNOWS, SETTLED = 0.5, 0.9
"""Rank correlations between which FK steering is advised to score: before, it listens to noise; after, there is nothing
left to learn, and copies have no time to become different images."""
_NUM_SCORINGS = 4
_SUBSETS_OF_CHOICE, _SUBSETS_OF_REPORT = 256, 1000
_MIN_CLUSTERS = 4


@dataclass(frozen=True)
class Gain:
    """A policy against best of N, in standard deviations of a reward within a prompt, over the reported prompts.

    Attributes:
        best_of_n: mean of best of N; 0 is a random image.
        policy: mean of the policy.
        gain: their paired difference.
        interval: of the gain: 95 %, over prompts (`mean_interval`; prompts of one text together).
    """

    best_of_n: float
    policy: float
    gain: float
    interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What was found.

    Attributes:
        reward: that chooses.
        budget_images: N.
        num_steps: T.
        own: gain in the reward that chooses.
        held_out: gains in the other recorded rewards, of the same images: what it costs or brings elsewhere.
        equals_best_of: how many whole images best of N would have needed for as much; a real number, as the curve of
            best of 1, 2, ... is read between its points.
        search: the settings to use.
        choice: what they were chosen by; None for a search that was given.
        cost: of the search, and of best of N, in the prices given.
        knowledge: how early the reward knows, of the prompts of the choice.
        fk: settings of FK steering by what was measured; they cannot be replayed.
        spread: root mean square of the standard deviations of the finished reward within a prompt.
        chosen_on: places of the prompts of the choice.
        reported_on: places of the others.
        notes: sentences that a reader must know.
    """

    reward: str
    budget_images: int
    num_steps: int
    own: Gain
    held_out: Mapping[str, Gain]
    equals_best_of: float
    search: SearchConfig
    choice: Choice | None
    cost: tuple[float, float]
    knowledge: Sequence[Knowledge]
    fk: FKSteeringConfig
    spread: float
    chosen_on: tuple[int, ...]
    reported_on: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @property
    def advice(self) -> str:
        """The search, to paste: `pipe(prompt, search=...)`."""
        return paste(self.search)

    @property
    def fk_advice(self) -> str:
        """FK steering, to paste."""
        return paste(self.fk)

    def to_dict(self) -> dict[str, Any]:
        """As JSON: the figures of the reported prompts, then everything else."""
        names = ("reward", "budget_images", "num_steps", "spread", "chosen_on", "reported_on", "notes")
        return {
            **asdict(self.own),
            "equals_best_of": self.equals_best_of,
            "held_out": {name: asdict(gain) for name, gain in self.held_out.items()},
            "advice": self.advice,
            "search": {"name": search_name(self.search), **settings_of(self.search)},
            "fk": {"advice": self.fk_advice, **settings_of(self.fk)},
            "cost": {"policy": self.cost[0], "best_of_n": self.cost[1]},
            "cross_validated": None if self.choice is None else {"gain": self.choice.gain, "error": self.choice.error},
            "knowledge": [step._asdict() for step in self.knowledge],
            **{name: getattr(self, name) for name in names},
        }


def replay(
    records: RewardRecords,
    reward: str,
    *,
    budget_images: int,
    prices: Prices = DEFAULT_PRICES,
    search: SearchConfig | None = None,
    seed: int = 0,
) -> Replay:
    """Choose a policy on half of the prompts, and report it on the others.

    The candidates are best of N and successive cuts (`Pruning`) of at most its cost: as many starts as the budget pays
    for, the denoiser's steps, the decodes and the reward calls of the cuts included. Cuts are chosen only where their
    cross-validated gain over best of N is sure; else the answer is best of N.

    Args:
        records: of plain trajectories.
        reward: name of the one that chooses.
        budget_images: N: what N whole images cost is the budget.
        prices: of a step and of a reward call with its decode.
        search: a `Pruning` or `BestOfN` to report instead of choosing one; it need not keep to the budget, and a note
            says where it does not.
        seed: of the halves, and of the subsets.

    Returns:
        What was found.

    Raises:
        ValueError: an unknown reward; a budget above the recorded seeds; too few prompts; a search that cannot be
            replayed, such as FK steering, whose copies would have gone on as no record says.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> noise = np.linspace(2.0, 0.0, 10) * rng.standard_normal((40, 60, 10))
        >>> records = RewardRecords({"clipscore": rng.standard_normal((40, 60, 1)) + noise})
        >>> found = replay(records, "clipscore", budget_images=4)
        >>> found.own.gain > 0, found.equals_best_of > 4
        (True, True)
    """
    values = records.of(reward)
    whole_number("budget_images", budget_images, minimum=1, maximum=records.shape[1])
    policy = None if search is None else Policy.of(search, records.shape[2])
    chosen_on, reported_on = halves(records.clusters, seed)
    known = knowledge(values[chosen_on], records.clusters[chosen_on])
    budget = budget_images * prices.of(Policy(1), records.shape[2])
    choice = None
    if policy is None:
        steps = [step.step for step in known[:-1] if step.low > MIN_CORRELATION]
        replayer = Replayer(standardized(values[chosen_on]), num_subsets=_SUBSETS_OF_CHOICE, seed=seed)
        clusters = records.clusters[chosen_on]
        choice = choose_policy(replayer, budget, prices=prices, steps=steps, clusters=clusters)
        policy = choice.policy
    gains, equal = _report(records, reward, policy, budget_images, rows=reported_on, seed=seed + 1)
    finished, cost = values[:, :, -1], prices.of(policy, records.shape[2])
    return Replay(
        reward=reward,
        budget_images=budget_images,
        num_steps=records.shape[2],
        own=gains.pop("own"),
        held_out=gains,
        equals_best_of=equal,
        search=policy.config(records.shape[2]) if search is None else search,
        choice=choice,
        cost=(cost, budget),
        knowledge=known,
        fk=fk_settings(known, spread=_mean_spread(finished[chosen_on]), num_particles=budget_images),
        spread=_mean_spread(finished),
        chosen_on=tuple(chosen_on.tolist()),
        reported_on=tuple(reported_on.tolist()),
        notes=tuple(_notes(finished, policy, over=cost - budget)),
    )


def halves(clusters: NDArray[np.int64], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of the prompts of the choice, and of the others; no text is on both sides.

    Args:
        clusters: `(P,)`, as `RewardRecords.clusters`.
        seed: of the draw.

    Raises:
        ValueError: fewer than four different prompts.

    Example:
        >>> [part.tolist() for part in halves(np.array([0, 1, 2, 3, 0]), seed=0)]
        [[0, 2, 4], [1, 3]]
    """
    names = np.unique(clusters)
    if len(names) < _MIN_CLUSTERS:
        raise ValueError(
            f"A replay needs at least {_MIN_CLUSTERS} different prompts, one half to choose and one to report; the "
            f"records have {len(names)}."
        )
    first = np.random.default_rng(seed).permutation(names)[: len(names) // 2]
    inside = np.isin(clusters, first)
    return np.flatnonzero(inside), np.flatnonzero(~inside)


def _report(
    records: RewardRecords, reward: str, policy: Policy, size: int, *, rows: NDArray[np.int64], seed: int
) -> tuple[dict[str, Gain], float]:
    """Gains in all rewards by name, the choosing one as `"own"`, and how many whole images are worth as much."""
    own = standardized(records.of(reward)[rows])
    finished, clusters = own[:, :, -1], records.clusters[rows]
    worth = {name: standardized(records.of(name)[rows])[:, :, -1] for name in _others(records, reward)}
    if policy.num_particles > own.shape[1]:
        raise ValueError(
            f"The search begins with {policy.num_particles} particles, and {own.shape[1]} seeds were recorded."
        )
    replayer = Replayer(own, worth=worth, num_subsets=_SUBSETS_OF_REPORT, seed=seed)
    found, plain = replayer.worth(policy), replayer.worth(Policy(size))
    gains = {}
    for name, part in {"own": finished, **worth}.items():
        # the same subsets for both, so that their difference is exact to a few thousandths; best of N is known exactly
        gain, base = found[name] - plain[name], best_of_n(finished, size, part).mean()
        gains[name] = Gain(float(base), float(base + gain.mean()), float(gain.mean()), mean_interval(gain, clusters))
    equal = float(size) if policy == Policy(size) else _equal_size(finished, gains["own"].policy)
    return gains, equal


def _others(records: RewardRecords, reward: str) -> list[str]:
    """Rewards that say something else of the finished images: some differ in what they say of predictions alone."""
    kept = [reward]
    for name, values in records.rewards.items():
        if not any(np.array_equal(values[:, :, -1], records.of(other)[:, :, -1]) for other in kept):
            kept.append(name)
    return kept[1:]


def _equal_size(finished: Floats, value: float) -> float:
    """N of the best of N that is worth so much, between whole numbers by a straight line."""
    sizes = np.arange(1, finished.shape[1] + 1)
    return float(np.interp(value, [best_of_n(finished, int(size)).mean() for size in sizes], sizes))


def _mean_spread(finished: Floats) -> float:
    spread = finished.astype(np.float64).std(axis=1, ddof=1) if finished.shape[1] > 1 else np.zeros(1)
    return float(np.sqrt((spread**2).mean()))


def _notes(finished: Floats, policy: Policy, *, over: float) -> list[str]:
    notes = []
    if alike := int((finished == finished[:, :1]).all(axis=1).sum()):
        notes.append(f"The finished images of {alike} prompts have one reward for all seeds: nothing can gain there.")
    if 2 * policy.num_particles > finished.shape[1]:
        notes.append(
            f"The search begins with {policy.num_particles} of {finished.shape[1]} recorded seeds, so that its subsets "
            "hardly differ: the intervals are too short. Record more seeds."
        )
    if over > 1e-6:
        notes.append(f"The search costs {over:.4g} more than the best of N that it is compared with.")
    return notes


def fk_settings(known: Sequence[Knowledge], *, spread: float, num_particles: int) -> FKSteeringConfig:
    """Settings of FK steering by what was measured.

    lambda is 1.5 over the spread within a prompt. Scored is between the step at which the rank correlation with the
    finished reward passes 0.5 and the one at which it passes 0.9, and each step weighs as much as the regression of the
    finished reward says. These are rules, not results of a replay: records of
    plain trajectories do not say how copies would have gone on. With noise in every step the finished image is open for
    longer than the records of a deterministic sampler say.

    Args:
        known: how early the reward knows.
        spread: standard deviation of the finished reward within a prompt.
        num_particles: K.

    Example:
        >>> known = [Knowledge(step, step / 9, 0.0, 1.0, step / 9) for step in range(10)]
        >>> found = fk_settings(known, spread=0.5, num_particles=4)
        >>> found.scoring_steps(10), found.reward_weight, found.reward_scale
        ((5, 6, 7, 8), (0.56, 0.67, 0.78, 0.89), 3.0)
    """
    num_steps = len(known)
    latest = max(num_steps - 2, 0)  # later there is no noise left, so that copies would stay equal
    start = next((step.step for step in known[:latest] if step.correlation >= KNOWS), latest)
    stop = next((step.step for step in known[start:latest] if step.correlation >= SETTLED), latest)
    scale = TILT / spread if spread > 0 else 0.0
    config = FKSteeringConfig(
        num_particles=num_particles,
        potential="difference",
        reward_scale=float(f"{scale:.3g}"),
        resample_start=round(start / num_steps, 3),
        resample_stop=round(stop / num_steps, 3),
        num_resamples=min(_NUM_SCORINGS, stop - start + 1),
    )
    weights = tuple(round(known[step].weight, 2) for step in config.scoring_steps(num_steps))
    return replace(config, reward_weight=weights)


def paste(config: SearchConfig) -> str:
    """A config as Python code, with the fields that say how many, how often and where, and those that are no defaults.

    Example:
        >>> from fk_reward.search import BestOfN, Pruning
        >>> paste(Pruning()), paste(BestOfN(num_particles=3))
        ('Pruning(num_particles=12, keep=(7, 4), at=(0.4, 0.55))', 'BestOfN(num_particles=3)')
    """
    always = {"num_particles", "keep", "at", "reward_scale"}
    shown: list[str] = []
    for field in fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if field.init and (field.name in always or field.default is MISSING or value != field.default):
            shown.append(f"{field.name}={value!r}")
    return f"{type(config).__name__}({', '.join(shown)})"
