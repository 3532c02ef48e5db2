"""The runs of the shapes benchmark: which populations are needed, what is written down of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from fk_reward.benchmarks.diversity import mean_pairwise_distance
from fk_reward.benchmarks.result_store import ResultStore
from fk_reward.config import FKSteeringConfig
from fk_reward.shapes import ShapesPrompt, benchmark_prompts, verify

if TYPE_CHECKING:
    from fk_reward.pipelines import FKSteeringOutput, FKSteeringPipeline

UNSTEERED, BEST, STEERED = "unsteered", "best", "steered"
_SEED_STRIDE = 1_000_003  # a prime far above the number of particles


@dataclass(frozen=True, kw_only=True)
class ShapesSettings:
    """Everything that the results depend on.

    Attributes:
        model: name or folder of the text-to-image model.
        reward: name of the reward that steers and selects.
        num_prompts: length of the list of held-out prompts.
        num_particles: the values of K.
        num_steps: scheduler steps.
        guidance_scale: of classifier-free guidance.
        seed: the first seed.
        num_seeds: runs of each prompt.
        steering: settings of the sampler but for `num_particles`.
    """

    model: str
    reward: str
    num_prompts: int
    num_particles: tuple[int, ...]
    num_steps: int
    guidance_scale: float
    seed: int
    num_seeds: int
    steering: FKSteeringConfig

    def to_dict(self) -> dict[str, Any]:
        """As JSON; K is listed apart from the settings of the sampler."""
        steering = self.steering.to_dict()
        del steering["num_particles"]
        return asdict(self) | {"num_particles": list(self.num_particles), "steering": steering}


@dataclass(frozen=True)
class Population:
    """K particles a prompt from one seed; where not `steered`, K plain pictures, which serve every smaller K too."""

    steered: bool
    num_particles: int
    seed: int


@dataclass(frozen=True, eq=False)
class PromptResult:
    """The final population of one prompt, in the order of its particles."""

    images: Tensor  # (K, 3, H, W)
    rewards: Tensor  # (K,)
    correct: Tensor  # (K,) bool
    num_ancestors: int


def particle_generators(seed: int, prompt_indices: Sequence[int], num_particles: int) -> list[Generator]:
    """One generator for each particle, from its seed, prompt and place alone: K particles are the first K of any more.

    Example:
        >>> few, many = particle_generators(0, [7], 2), particle_generators(0, [3, 7], 4)
        >>> few[1].initial_seed() == many[5].initial_seed()
        True
    """
    seeds = [
        ((seed * _SEED_STRIDE) + prompt) * _SEED_STRIDE + k for prompt in prompt_indices for k in range(num_particles)
    ]
    return [Generator().manual_seed(value) for value in seeds]


def list_populations(settings: ShapesSettings) -> list[Population]:
    """For each seed a plain population, as large as the largest K, and a steered one for each K."""
    seeds = range(settings.seed, settings.seed + settings.num_seeds)
    largest = max(settings.num_particles)
    return [
        population
        for seed in seeds
        for population in (
            Population(False, largest, seed),
            *(Population(True, size, seed) for size in settings.num_particles if size > 1),
        )
    ]


def run_missing(
    pipe: FKSteeringPipeline,
    settings: ShapesSettings,
    store: ResultStore,
    *,
    shard: tuple[int, int] = (0, 1),
    batch_size: int = 64,
) -> Iterator[tuple[Population, int, int]]:
    """Run what the store does not have, several prompts a call, and write it down after each call.

    Args:
        pipe: of `settings.model` and `settings.reward`.
        settings: what to run.
        store: results so far.
        shard: index and number of the processes that share the work; this one takes every n-th prompt.
        batch_size: particles a call, at least as many as the largest K.

    Yields:
        After each call: the population, how many of its prompts are done, how many there are to do.
    """
    prompts = benchmark_prompts(settings.num_prompts)
    done = {(r["population"], r["prompt_index"]) for r in store.load()}
    for population in list_populations(settings):
        todo = [i for i in range(shard[0], len(prompts), shard[1]) if (repr(population), i) not in done]
        chunk = max(1, batch_size // population.num_particles)
        for start in range(0, len(todo), chunk):
            indices = todo[start : start + chunk]
            results = run_population(pipe, settings, population, {i: prompts[i] for i in indices})
            store.append(results, writer=f"{shard[0]}-of-{shard[1]}")
            yield population, start + len(indices), len(todo)


def run_population(
    pipe: FKSteeringPipeline, settings: ShapesSettings, population: Population, prompts: Mapping[int, ShapesPrompt]
) -> list[dict[str, Any]]:
    """Run one population for some prompts in one call, and judge its pictures.

    Args:
        pipe: of `settings.model` and `settings.reward`.
        settings: of the benchmark.
        population: what to run.
        prompts: index in the list of the benchmark -> prompt.

    Returns:
        One dictionary for each method, K and prompt that this population decides.
    """
    steering = replace(settings.steering, num_particles=population.num_particles)
    if not population.steered:
        steering = replace(steering, num_resamples=0)
    output = pipe(
        [prompt.text for prompt in prompts.values()],
        steering=steering,
        generator=particle_generators(population.seed, list(prompts), population.num_particles),
        num_images_per_prompt=population.num_particles,
        num_inference_steps=settings.num_steps,
        guidance_scale=settings.guidance_scale,
        output_type="pt",
    )
    records = []
    for group, (index, prompt) in enumerate(prompts.items()):
        common = {"population": repr(population), "seed": population.seed, "prompt_index": index}
        common |= {"prompt": prompt.text, "task": prompt.task}
        result = _judge(output, group, prompt)
        for method, size in _decides(population, settings):
            cost = _cost(output, len(prompts), share=size / population.num_particles)
            records.append(common | {"method": method, "num_particles": size} | _outcome(result, size) | cost)
    return records


def _decides(population: Population, settings: ShapesSettings) -> list[tuple[str, int]]:
    """Methods and K whose result this population gives."""
    if population.steered:
        return [(STEERED, population.num_particles)]
    return [(UNSTEERED, 1), *((BEST, size) for size in settings.num_particles if size > 1)]


def _judge(output: FKSteeringOutput, group: int, prompt: ShapesPrompt) -> PromptResult:
    """Images and rewards of one prompt, put back from best first into the order of the particles."""
    order = output.trace.selected[group].argsort()
    images = output.images.float().cpu().unflatten(0, output.rewards.shape)[group][order]
    return PromptResult(
        images=images,
        rewards=output.rewards[group][order],
        correct=torch.tensor([verify(image, prompt).correct for image in images]),
        num_ancestors=len(output.trace.lineage(group)[0].unique()),
    )


def _outcome(result: PromptResult, size: int) -> dict[str, Any]:
    """What the first `size` particles give: the best of them by reward, judged, and how diverse they are."""
    best = int(result.rewards[:size].argmax())
    return {
        "correct": bool(result.correct[best]),
        "reward": float(result.rewards[best]),
        "share_correct": float(result.correct[:size].float().mean()),
        "num_ancestors": min(result.num_ancestors, size),
        "distance": mean_pairwise_distance(result.images[:size]) if size > 1 else None,
        "reward_spread": float(result.rewards[:size].std()) if size > 1 else None,
    }


def _cost(output: FKSteeringOutput, num_prompts: int, *, share: float) -> dict[str, float]:
    """Cost of one prompt, of a share of its population: rows through the denoiser, images decoded, seconds."""
    trace = output.trace
    return {
        "model_rows": trace.num_model_rows * share / num_prompts,
        "decoded": trace.num_decode_calls * share / num_prompts,
        "seconds": trace.seconds * share / num_prompts,
    }
