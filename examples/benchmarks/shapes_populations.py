"""Populations on the shapes model: those of the cost curve, their results and their costs.

Plain populations are drawn once, at the largest K, and serve every reward and every smaller K; `fk-reward geneval
--suite shapes` draws each of its runs by itself.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fk_reward.benchmarks.drawing import indifferent_reward, particle_generators
from fk_reward.benchmarks.statistics import mean_pairwise_distance
from fk_reward.benchmarks.store import ResultStore, weights_digest
from fk_reward.rewards import Reward, load_reward
from fk_reward.search.feynman_kac import FKSteeringConfig
from fk_reward.shapes import (
    FORBIDDEN_SIGN,
    ShapesPrompt,
    benchmark_prompts,
    shows_forbidden_sign,
    sign_prompts,
    verify,
)
from fk_reward.terminal import say

if TYPE_CHECKING:
    from fk_reward.pipelines import FKSteeringOutput, FKSteeringPipeline

DEFAULT_STEPS, DEFAULT_GUIDANCE = 50, 3.0

UNSTEERED, BEST, STEERED = "unsteered", "best", "steered"
PROMPT_LISTS: dict[str, Callable[[int], tuple[ShapesPrompt, ...]]] = {
    "benchmark": benchmark_prompts,
    "sign": sign_prompts,
    "validation": partial(benchmark_prompts, split="validation"),
    "sign-validation": partial(sign_prompts, split="validation"),
}
"""Name -> function from a number to as many prompts, the tasks in turn: held-out ones, or training prompts."""
PLAIN = FKSteeringConfig(num_resamples=0, reward_scale=0.0)
"""No steering: the images depend neither on a reward nor on settings of the sampler."""
RESULT_KEY = ("population", "prompt_index", "method", "reward", "num_particles")
"""Fields that identify a result."""


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
        solver: name of the solver that draws all images; None for the model's own scheduler.
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
    """K particles of each prompt from one seed, steered by a reward; or plain images, which serve every reward and K.

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
    """Run what the store lacks, several prompts in a call, and store the results after each call.

    Args:
        pipe: of `settings.model`.
        settings: what to run.
        rewards: those of `settings.rewards`, by name.
        store: results so far.
        shard: index and number of the processes that share the work; this one takes every n-th prompt.
        batch_size: particles in a call, at least as many as the largest K.
        populations: those of `list_populations` to run; None for all.

    Yields:
        After each call: the population, how many of its prompts are done, how many there are to do.
    """
    prompts = settings.prompt_list()
    done = Counter((r["population"], r["prompt_index"]) for r in store.load(RESULT_KEY))
    for population in list_populations(settings) if populations is None else populations:
        needed = len(_decides(population, settings))  # with fewer, a write was cut off: the prompt is run again
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
    """Run one population for some prompts in one call, and judge its images.

    Args:
        pipe: of `settings.model`; it is left with the reward of this population.
        population: what to run.
        settings: of the benchmark.
        rewards: those of `settings.rewards`, by name.
        prompts: index in the list of the benchmark -> prompt.

    Returns:
        A dictionary for each method, reward, K and prompt whose result this population gives.
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
            if reward is not None:  # 0 for the reward that steers, which is in the time of the call
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
    """All K images of each prompt."""
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
    """Put the images of a prompt, which come best first, back into the order of the particles, and score them.

    Args:
        output: of a call that returned all particles that it finished.
        group: place of the prompt in the call.
        prompt: the prompt.
        rewards: names -> rewards.
        steered_by: name of the reward that steered the call and has scored its images; None for none.
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


def load_models(settings: ShapesSettings, device: str) -> tuple[FKSteeringPipeline, dict[str, Reward]]:
    """The pipeline with its solver and preview, without progress bars, and the rewards by name, checked to steer."""
    from fk_reward.pipelines import FKSteeringPipeline
    from fk_reward.pipelines.schedulers import resolve_solver

    rewards = {name: load_reward(name).to(device) for name in settings.rewards}
    pipe = FKSteeringPipeline.from_pretrained(settings.model, reward=rewards[settings.rewards[0]]).to(device)
    pipe.set_progress_bar_config(disable=True)
    pipe.solver, pipe.preview = resolve_solver(settings.solver), settings.preview
    for reward in rewards.values():
        pipe.reward = reward  # raises for one that cannot steer, before anything is drawn
    return pipe, rewards


def open_store(
    folder: Path, settings: ShapesSettings, *, pipe: FKSteeringPipeline, rewards: Mapping[str, Reward]
) -> ResultStore:
    """Open the store of these settings and of the weights of the model, its preview and all rewards.

    Raises:
        ValueError: the folder holds results of others.
    """
    digest = weights_digest([dict(pipe.components), pipe.preview, rewards])
    return ResultStore(folder, settings.to_dict() | {"weights": digest})


def generate(
    pipe: FKSteeringPipeline,
    settings: ShapesSettings,
    *,
    rewards: Mapping[str, Reward],
    store: ResultStore,
    shard: tuple[int, int],
    batch_size: int,
    populations: Sequence[Population] | None = None,
) -> None:
    """Run what the store lacks, with a line on the terminal after each call. Arguments: `run_missing`."""
    started = time.perf_counter()
    options: dict[str, Any] = {"shard": shard, "batch_size": batch_size, "populations": populations}
    for population, done, todo in run_missing(pipe, settings, rewards=rewards, store=store, **options):
        kind = "plain" if population.reward is None else f"steered by {population.reward}"
        elapsed, size = time.perf_counter() - started, population.num_particles
        say(f"{elapsed:7.0f} s  seed {population.seed}, {kind}, K = {size}: {done}/{todo} prompts")


def trajectory(solver: str | None, steps: int | None, guidance_scale: float | None) -> dict[str, Any]:
    """Steps and guidance: what was typed, else the solver's, else the defaults of the benchmark."""
    from fk_reward.pipelines.schedulers import resolve_solver

    chosen = resolve_solver(solver)
    if chosen is not None:
        steps = chosen.num_inference_steps if steps is None else steps
        guidance_scale = chosen.guidance_scale if guidance_scale is None else guidance_scale
    return {
        "solver": solver,
        "num_steps": DEFAULT_STEPS if steps is None else steps,
        "guidance_scale": DEFAULT_GUIDANCE if guidance_scale is None else guidance_scale,
    }


def one_of(name: str, text: str, choices: Sequence[str]) -> str:
    """Check what was typed for an option; a ValueError if it is not one of the choices."""
    if text not in choices:
        raise ValueError(f"{name} should be one of {', '.join(choices)}, got {text!r}.")
    return text
