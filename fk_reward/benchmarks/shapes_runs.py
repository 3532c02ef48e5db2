"""The runs of the shapes benchmark: which populations are needed, and who is chosen from each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from fk_reward.benchmarks.drawing import indifferent_reward, particle_generators
from fk_reward.benchmarks.shapes_judge import cost, judge, outcome
from fk_reward.benchmarks.store import ResultStore
from fk_reward.rewards import Reward
from fk_reward.search.feynman_kac import FKSteeringConfig
from fk_reward.shapes import ShapesPrompt, benchmark_prompts, sign_prompts

if TYPE_CHECKING:
    from fk_reward.pipelines import FKSteeringOutput, FKSteeringPipeline

UNSTEERED, BEST, STEERED = "unsteered", "best", "steered"
PROMPT_LISTS: dict[str, Callable[[int], tuple[ShapesPrompt, ...]]] = {
    "benchmark": benchmark_prompts,
    "sign": sign_prompts,
    "validation": partial(benchmark_prompts, split="validation"),
    "sign-validation": partial(sign_prompts, split="validation"),
}
"""Name -> function from a number to as many prompts, the tasks in turn: held-out ones, or training prompts."""
PLAIN = FKSteeringConfig(num_resamples=0, reward_scale=0.0)
"""No steering: the pictures depend on no reward and on no setting of the sampler."""
RESULT_KEY = ("population", "prompt_index", "method", "reward", "num_particles")
"""Fields that say what a result is of."""


@dataclass(frozen=True, kw_only=True)
class ShapesSettings:
    """Everything that the results depend on.

    Attributes:
        model: name or folder of the text-to-image model.
        rewards: names of the rewards that steer and select, the one that others are compared with first.
        prompts: which prompts, a key of `PROMPT_LISTS`.
        num_prompts: length of the list of prompts.
        num_particles: the values of K.
        num_steps: scheduler steps.
        guidance_scale: of classifier-free guidance.
        seed: the first seed.
        num_seeds: runs of each prompt.
        steering: settings of the sampler but for `num_particles`.
        solver: name of the solver that draws all pictures; None for the model's own scheduler.
        preview: name of the decoder of the scoring steps; None for the model's own.
    """

    model: str
    rewards: tuple[str, ...]
    prompts: str
    num_prompts: int
    num_particles: tuple[int, ...]
    num_steps: int
    guidance_scale: float
    seed: int
    num_seeds: int
    steering: FKSteeringConfig
    solver: str | None = None
    preview: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON; K is listed apart from the settings of the sampler."""
        steering = self.steering.to_dict()
        del steering["num_particles"]
        lists = {"rewards": list(self.rewards), "num_particles": list(self.num_particles)}
        return {**asdict(self), **lists, "steering": steering}

    def prompt_list(self) -> tuple[ShapesPrompt, ...]:
        """The prompts."""
        return PROMPT_LISTS[self.prompts](self.num_prompts)


@dataclass(frozen=True)
class Population:
    """K particles a prompt from one seed, steered by a reward; by none: plain pictures, which serve every reward and K.

    Attributes:
        reward: name of the reward that steers, or None.
        num_particles: K.
        seed: the seed.
    """

    reward: str | None
    num_particles: int
    seed: int


def list_populations(settings: ShapesSettings) -> list[Population]:
    """For each seed a plain population, as large as the largest K, and a steered one for each reward and K."""
    largest = max(settings.num_particles)
    populations = []
    for seed in range(settings.seed, settings.seed + settings.num_seeds):
        populations.append(Population(None, largest, seed))
        sizes = [size for size in settings.num_particles if size > 1]
        populations += [Population(reward, size, seed) for reward in settings.rewards for size in sizes]
    return populations


def run_missing(
    pipe: FKSteeringPipeline,
    settings: ShapesSettings,
    *,
    rewards: Mapping[str, Reward],
    store: ResultStore,
    shard: tuple[int, int] = (0, 1),
    batch_size: int = 64,
    populations: Sequence[Population] | None = None,
) -> Iterator[tuple[Population, int, int]]:
    """Run what the store does not have, several prompts a call, and write it down after each call.

    Args:
        pipe: of `settings.model`.
        settings: what to run.
        rewards: those of `settings.rewards`, by name.
        store: results so far.
        shard: index and number of the processes that share the work; this one takes every n-th prompt.
        batch_size: particles a call, at least as many as the largest K.
        populations: which of `list_populations` to run; all when missing.

    Yields:
        After each call: the population, how many of its prompts are done, how many there are to do.
    """
    prompts = settings.prompt_list()
    done = Counter((r["population"], r["prompt_index"]) for r in store.load(RESULT_KEY))
    for population in list_populations(settings) if populations is None else populations:
        needed = len(_decides(population, settings))  # fewer: the write of a population's results was cut off
        todo = [i for i in range(shard[0], len(prompts), shard[1]) if done[repr(population), i] < needed]
        chunk = max(1, batch_size // population.num_particles)
        for start in range(0, len(todo), chunk):
            indices = todo[start : start + chunk]
            chosen = {i: prompts[i] for i in indices}
            results = run_population(pipe, population, settings=settings, rewards=rewards, prompts=chosen)
            store.append(results, writer=f"{shard[0]}-of-{shard[1]}")
            yield population, start + len(indices), len(todo)


def run_population(
    pipe: FKSteeringPipeline,
    population: Population,
    *,
    settings: ShapesSettings,
    rewards: Mapping[str, Reward],
    prompts: Mapping[int, ShapesPrompt],
) -> list[dict[str, Any]]:
    """Run one population for some prompts in one call, and judge its pictures.

    Args:
        pipe: of `settings.model`; it is left with the reward of this population.
        population: what to run.
        settings: of the benchmark.
        rewards: those of `settings.rewards`, by name.
        prompts: index in the list of the benchmark -> prompt.

    Returns:
        One dictionary for each method, reward, K and prompt that this population decides.
    """
    if population.reward is None:
        pipe.reward, steering = indifferent_reward(), PLAIN
    else:
        pipe.reward, steering = rewards[population.reward], settings.steering
    output = _draw(pipe, population, settings=settings, steering=steering, prompts=prompts)
    records = []
    for group, (index, prompt) in enumerate(prompts.items()):
        result = judge(output, group, prompt, rewards=rewards, steered_by=population.reward)
        common = {"population": repr(population), "seed": population.seed, "prompt_index": index}
        common |= {"prompt": prompt.text, "task": prompt.task}
        for method, reward, size in _decides(population, settings):
            share = size / population.num_particles
            price = cost(output, len(prompts), share=share)
            if reward is not None:
                price["seconds"] += result.scoring_seconds[reward] * share
            choice = {"method": method, "reward": reward, "num_particles": size}
            records.append(common | choice | outcome(result, size, selected_by=reward) | price)
    return records


def _draw(
    pipe: FKSteeringPipeline,
    population: Population,
    *,
    settings: ShapesSettings,
    steering: FKSteeringConfig,
    prompts: Mapping[int, ShapesPrompt],
) -> FKSteeringOutput:
    """All K pictures of each prompt."""
    return pipe(
        [prompt.text for prompt in prompts.values()],
        steering=replace(steering, num_particles=population.num_particles),
        generator=particle_generators(population.seed, list(prompts), population.num_particles),
        num_images_per_prompt=steering.final_particles or population.num_particles,
        num_inference_steps=settings.num_steps,
        guidance_scale=settings.guidance_scale,
        output_type="pt",
    )


def _decides(population: Population, settings: ShapesSettings) -> list[tuple[str, str | None, int]]:
    """Methods, rewards and K whose result this population gives."""
    if population.reward is not None:
        return [(STEERED, population.reward, population.num_particles)]
    sizes = [size for size in settings.num_particles if size > 1]
    return [(UNSTEERED, None, 1), *((BEST, reward, size) for reward in settings.rewards for size in sizes)]
