"""Methods that draw: a search with its sampling settings, the images of a prompt, and what they cost."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Generator, Tensor

from fk_reward.benchmarks.image_store import records_digest
from fk_reward.benchmarks.statistics import mean_pairwise_distance
from fk_reward.benchmarks.store import weights_digest
from fk_reward.pipelines.batch_sizes import BatchSizes
from fk_reward.rewards import CallableReward, Reward
from fk_reward.rewards.inputs import in_order
from fk_reward.sampling.stochasticity import noise_levels, takes_argument
from fk_reward.search import SEARCHES, BestOfN, ChosenByCall, SearchConfig, load_search, search_class, search_fields
from fk_reward.search.base import forecast, num_finished
from fk_reward.version import __version__

if TYPE_CHECKING:
    from fk_reward.benchmarks.task import Task
    from fk_reward.pipelines import FKSteeringOutput, FKSteeringPipeline
    from fk_reward.sampling.trace import SteeringTrace

logger = logging.getLogger(__name__)

UNSTEERED, BEST, STEERED = "unsteered", "best-of-n", "fk"
METHODS = (UNSTEERED, BEST, STEERED)
"""The methods that are compared unless others are named; every other search of `SEARCHES` is one, too."""

LINEAGE = "lineage"
"""Of the note of a prompt: for each sample how its image came about, see `lineage_of`."""
SCHEDULERS = ("auto", "ddim")
PACKAGES = ("torch", "diffusers", "transformers")
_SEED_STRIDE = 1_000_003  # a prime far above the number of particles


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """One way to make the images of a suite.

    Attributes:
        suite: name of the suite.
        model: name, hub id or folder of the text-to-image model.
        revision: revision of the model on the hub; None for the newest.
        method: `"unsteered"`, or a name of `fk_reward.search.SEARCHES`: `"best-of-n"` draws K independent images,
            `"fk"` steers K particles, ... Of each population the image that its search selects first is kept.
        search: settings of the search, K among them; see `make_search`.
        reward: steers and selects; None if and only if unsteered.
        scheduler: `"auto"`, the model's own where it can be steered, else a stochastic one; or `"ddim"`.
        solver: name of a solver that draws all images; None for the scheduler.
        preview: name of the decoder of the scoring steps; None for the model's own.
        lookahead: what the reward is asked about on the way: the prediction of the step (1), of m coarse steps from
            there (m), or of a consistency LoRA ("adapter"), for searches that score predictions.
        eta: noise of each step, of schedulers that take it; None for the solver's, or 1. It is that of every method, so
            that their images start and move by the same noise. 0 is for searches that copy nothing.
        num_steps: scheduler steps; the preset's, the solver's, or 50, if not given.
        guidance_scale: classifier-free guidance; None for the solver's, or the pipeline's default.
        num_samples: images of each prompt, each from a population of its own.
        seed: seed of the first sample; sample s is the first one of seed + s.
        batch_size: most particles in one call, the samples of a prompt together.
        batch_sizes: most particles, latents and images that the denoiser, the decoder and the reward take at once.
        diversity: whether to measure how different the finished particles of a population are, for which all of their
            images are fetched.

    Raises:
        ValueError: a setting out of range, or settings that do not go together.

    Example:
        >>> options = {"suite": "shapes", "model": "shapes-sd", "num_steps": 50}
        >>> run = RunSettings(**options, method="fk", search=make_search("fk", num_particles=8), reward="clipscore")
        >>> run.name, run.unsteered().name
        ('fk-8-clipscore', 'unsteered')
    """

    suite: str
    model: str
    method: str
    search: SearchConfig
    num_steps: int
    reward: str | None = None
    revision: str | None = None
    scheduler: str = "auto"
    solver: str | None = None
    preview: str | None = None
    lookahead: int | str = 1
    eta: float | None = None
    guidance_scale: float | None = None
    num_samples: int = 4
    seed: int = 0
    batch_size: int = 16
    batch_sizes: BatchSizes = field(default_factory=BatchSizes)
    diversity: bool = False

    def __post_init__(self) -> None:
        check_method(self.method)
        if self.scheduler not in SCHEDULERS:
            raise ValueError(f"scheduler should be one of {', '.join(SCHEDULERS)}, got {self.scheduler!r}.")
        for name in ("num_steps", "num_samples", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} should be at least 1, got {getattr(self, name)}.")
        if self.seed < 0:
            raise ValueError(f"seed should be at least 0, got {self.seed}.")
        if self.solver is not None and self.scheduler != "auto":
            raise ValueError(f"A solver brings its scheduler: leave out scheduler={self.scheduler!r} or the solver.")
        if (self.method == UNSTEERED) != (self.reward is None):
            raise ValueError(f"A reward goes with every method but {UNSTEERED}; got {self.reward!r} for {self.method}.")
        self._check_particles()

    def _check_particles(self) -> None:
        # one particle can make proposals, or be drawn in several rounds
        if (self.method == UNSTEERED) != (forecast(self.search, self.num_steps).num_scored == 1):
            raise ValueError(
                f"{UNSTEERED} has one particle, other methods more; got {self.search.num_particles} of "
                f"{self.num_steps} steps: {self.method}. Raise budget or number of particles, or take fewer steps."
            )
        if self.batch_size < self.max_particles:
            raise ValueError(
                f"batch_size should hold a sample's {self.max_particles} particles, got {self.batch_size}."
            )

    @property
    def max_particles(self) -> int:
        """The most particles of a sample at any step."""
        return self.search.population(1).max_particles

    @property
    def name(self) -> str:
        """Name of the run's folder: method, K (of a search that chooses its candidates) and reward."""
        if self.reward is None:
            return self.method
        slug = re.sub(r"[^\w.@-]+", "_", self.reward).strip("_")
        # Two compositions may differ in their signs alone; cut, as most file systems allow 255 bytes for a name.
        if slug != self.reward:
            slug = f"{slug[:60]}-{hashlib.sha256(self.reward.encode()).hexdigest()[:6]}"
        # of a search that chooses the candidates that were asked for: a tree has them at its branching alone
        chooses = issubclass(search_class(self.method), ChosenByCall)
        size = self.max_particles if chooses else self.search.num_particles
        return f"{self.method.removesuffix('-n')}-{size}-{slug}"

    def unsteered(self) -> RunSettings:
        """The unsteered run to compare this one with: the first particle of each of its populations."""
        return replace(self, method=UNSTEERED, reward=None, search=make_search(UNSTEERED))

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return json.loads(json.dumps(asdict(self)))  # tuples become lists, as in a manifest that is read back


def check_method(method: str) -> None:
    """Raise for a name that is neither `"unsteered"` nor a search.

    Raises:
        ValueError: with the known names.
    """
    known = dict.fromkeys((*METHODS, *SEARCHES))
    if method not in known:
        raise ValueError(f"method should be one of {', '.join(known)}, got {method!r}.")


def make_search(method: str, *, solver: str | None = None, **settings: Any) -> SearchConfig:
    """The search of a method.

    Args:
        method: as in `RunSettings`.
        solver: as in `RunSettings`, for a search that chooses by the scheduler.
        **settings: fields of its config; those that belong to other searches only are left out.

    Raises:
        ValueError: an unknown method, or settings out of range.

    Example:
        >>> make_search("best-of-n", num_particles=8, potential="max").num_particles
        8
    """
    check_method(method)
    if method == UNSTEERED:
        return BestOfN(num_particles=1)  # of one particle nothing is selected
    config = load_search(method, **{name: settings[name] for name in search_fields(method) if name in settings})
    if not isinstance(config, ChosenByCall):
        return config
    from fk_reward.pipelines.schedulers import resolve_solver

    return config.for_call(1, resolve_solver(solver))  # each population returns one image


@dataclass(frozen=True)
class Cost:
    """What the images of one prompt cost.

    Attributes:
        model_calls: forward passes of the denoiser.
        model_rows: rows of their batches; guidance doubles them.
        decodes: images decoded, predictions among them.
        reward_calls: images scored by the reward that steers or selects.
        seconds: wall clock.
    """

    model_calls: int = 0
    model_rows: int = 0
    decodes: int = 0
    reward_calls: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, note: Mapping[str, Any]) -> Cost:
        """The cost in a note of a prompt."""
        return cls(**{name: note[name] for name in cls.__dataclass_fields__})

    def __add__(self, other: Cost) -> Cost:
        """The cost of both."""
        return Cost(*(ours + theirs for ours, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))


PRICED_BESIDES = ("sample_steps", "previews", "gradients")
"""What price lists read of the `Cost` of a trace, and a note of a prompt has beside its `Cost`."""


class ImageSearch:
    """A search on a pipeline, as a method of `runner.run`: it answers a prompt with images.

    Particle k of sample s starts from a seed of (seed + s, index of the prompt, k) alone. So images depend neither on
    the other prompts nor on how they are divided among processes, and `unsteered` is the first of `best-of-n`.

    Args:
        pipe: of `settings.model`, as `load_pipe` gives it.
        settings: of the run.
        reward: the one named there; None where none is.
        manifest: of `make_manifest`.
    """

    batch_size = 1

    def __init__(
        self,
        pipe: FKSteeringPipeline,
        settings: RunSettings,
        *,
        reward: Reward | None,
        manifest: Mapping[str, Any] | None = None,
    ) -> None:
        self.pipe, self.settings, self.reward = pipe, settings, reward
        self.name, self.manifest = settings.name, dict(manifest or {})

    def answer(
        self, indices: Sequence[int], samples: Sequence[Mapping[str, Any]]
    ) -> list[tuple[list[Image.Image], dict[str, Any]]]:
        """Draw the images of some prompts; with those of each goes a note: their cost, and the populations' figures."""
        return [self.draw(sample["prompt"], index) for index, sample in zip(indices, samples, strict=True)]

    def draw(self, prompt: str, index: int) -> tuple[list[Image.Image], dict[str, Any]]:
        """Draw the images of one prompt.

        Args:
            prompt: the prompt.
            index: its place in the suite.
        """
        settings = self.settings
        self.pipe.reward = indifferent_reward() if self.reward is None else self.reward
        images: list[Image.Image] = []
        cost, populations = Cost(), []
        lines: list[dict[str, Any]] = []
        more = dict.fromkeys(PRICED_BESIDES, 0)
        for samples in self._in_calls(range(settings.num_samples), settings.search):
            output = self._call(prompt, index, samples)
            # The first of each population: its images come together, best first.
            images += output.images[:: len(output.images) // len(samples)]
            cost += self._cost(output)
            spent = output.trace.cost
            more = {name: number + (getattr(spent, name) or 0) for name, number in more.items()}
            populations += self._populations(output)
            lines += [lineage_of(output.trace, group) for group in range(len(samples))]
        return images, {**asdict(cost), **more, **_means(populations), LINEAGE: lines}

    def _in_calls(self, samples: Sequence[int], search: SearchConfig) -> list[Sequence[int]]:
        """The samples of each call."""
        # a search whose draws differ from prompt to prompt takes one at a time
        alone = getattr(search, "one_prompt", False)
        size = 1 if alone else max(1, self.settings.batch_size // search.population(1).max_particles)
        return [samples[first : first + size] for first in range(0, len(samples), size)]

    def _call(
        self,
        prompt: str,
        index: int,
        samples: Sequence[int],
        *,
        search: SearchConfig | None = None,
        offset: int = 0,
    ) -> FKSteeringOutput:
        """Call the pipeline for some samples.

        Args:
            prompt: the prompt.
            index: its place in the suite.
            samples: their numbers.
            search: another than that of the settings.
            offset: number of the first particle of each sample.
        """
        settings, search = self.settings, search or self.settings.search
        arguments: dict[str, Any] = {"search": search, "num_inference_steps": settings.num_steps}
        if (eta := noise_of_steps(self.pipe, settings)) is not None:
            arguments["eta"] = eta
        if settings.guidance_scale is not None:  # else the solver's, or the pipeline's
            arguments["guidance_scale"] = settings.guidance_scale
        size = offset + search.num_particles
        generators = [particle_generators(settings.seed + sample, [index], size)[offset:] for sample in samples]
        output = self.pipe(
            [prompt] * len(samples),
            generator=[generator for group in generators for generator in group],
            num_images_per_prompt=num_finished(search) if settings.diversity else 1,
            **arguments,
        )
        if output.nsfw_content_detected is not None and any(output.nsfw_content_detected):
            logger.warning("Prompt %d: the safety checker has blackened an image, which will be judged.", index)
        return output

    def _cost(self, output: FKSteeringOutput) -> Cost:
        trace = output.trace
        return Cost(
            model_calls=trace.num_model_calls,
            model_rows=trace.num_model_rows,
            decodes=trace.num_decode_calls,
            reward_calls=0 if self.reward is None else trace.num_reward_calls,  # the indifferent reward is free
            seconds=trace.seconds,
        )

    def _populations(self, output: FKSteeringOutput) -> list[dict[str, float]]:
        """Figures of the population of each sample."""
        trace, figures = output.trace, []
        for group, rewards in enumerate(trace.steps[-1].rewards):
            figure = {"num_ancestors": float(len(trace.lineage(group)[0].unique()))}
            if self.reward is not None and len(rewards) > 1 and rewards.isfinite().all():
                figure["reward_spread"] = float(rewards.std())
            if self.settings.diversity and len(rewards) > 1:
                images = output.images[group * len(rewards) : (group + 1) * len(rewards)]
                figure["distance"] = mean_pairwise_distance(torch.stack([*in_order(images)]))
            figures.append(figure)
        return figures


def lineage_of(trace: SteeringTrace, group: int) -> dict[str, Any]:
    """How the image of a population came about, as JSON: small enough to be kept beside every image.

    Args:
        trace: of the call.
        group: place of the population in the call.

    Returns:
        `selected`, the slot of the image among the finished particles, and `steps`: of each scoring step its number,
        the rewards (None for -inf), and the slot that each particle after it came from (None where all stayed).
    """
    steps = [
        {
            "step": step.step,
            "rewards": [round(value, 5) if math.isfinite(value) else None for value in step.rewards[group].tolist()],
            "ancestors": None if step.ancestors is None else step.ancestors[group].tolist(),
        }
        for step in trace.steps
    ]
    return {"selected": int(trace.selected[group, 0]), "num_steps": trace.num_steps, "steps": steps}


def _means(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of what every population has."""
    names = [name for name in figures[0] if all(name in figure for figure in figures)]
    return {name: sum(figure[name] for figure in figures) / len(figures) for name in names}


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
    return [Generator().manual_seed(value) for value in seeds]  # on the CPU: the same noise for every device


def indifferent_reward() -> CallableReward:
    """Make a reward without a preference, for images that no reward steers.

    Example:
        >>> indifferent_reward()(torch.rand(2, 3, 8, 8), "anything")
        tensor([0., 0.])
    """
    return CallableReward(_zeros, "none")


def _zeros(images: Tensor, prompts: list[str]) -> Tensor:  # noqa: ARG001 (the signature of all rewards)
    return torch.zeros(len(images), device=images.device)


def load_pipe(settings: RunSettings, *, device: str, dtype: torch.dtype) -> FKSteeringPipeline:
    """The model of a run, with its scheduler or solver, its preview and without progress bars.

    Raises:
        ValueError: DDIM for a model that was not trained on a noise schedule, such as a flow-matching one.
    """
    from fk_reward.pipelines import FKSteeringPipeline
    from fk_reward.pipelines.schedulers import resolve_solver

    pipe = FKSteeringPipeline.from_pretrained(
        settings.model, reward=indifferent_reward(), torch_dtype=dtype, revision=settings.revision
    )
    if settings.scheduler == "ddim":
        # As published for Stable Diffusion: configs of other schedulers lack both, and DDIM clips latents by default.
        ddim = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False, set_alpha_to_one=False)
        own, levels = noise_levels(pipe.scheduler), noise_levels(ddim)
        if own is None or levels is None or not own.equal(levels):  # flow models may have betas in their config, too
            raise ValueError(f"{settings.model} has no noise schedule that DDIM could follow; choose scheduler auto.")
        pipe.scheduler = ddim
    pipe.set_progress_bar_config(disable=True)
    pipe = pipe.to(device)
    pipe.solver, pipe.preview = resolve_solver(settings.solver), settings.preview
    pipe.batch_sizes, pipe.lookahead = settings.batch_sizes, settings.lookahead
    return pipe


def make_manifest(
    settings: RunSettings,
    *,
    task: Task[Mapping[str, Any]],
    model: Mapping[str, Any],
    reward: Reward | None,
    preview: str | None = None,
) -> dict[str, Any]:
    """Describe all that the images of a run depend on, as JSON.

    Args:
        settings: of the run.
        task: whose prompts are drawn.
        model: from `describe_model`.
        reward: the one that steers.
        preview: from `describe_preview`.
    """
    weights = None if reward is None else weights_digest([reward])
    versions = {name: metadata.version(name) for name in PACKAGES}
    return {
        "settings": settings.to_dict(),
        "suite": {"name": task.name, "num_prompts": len(task.samples), "digest": records_digest(task.samples)},
        "model": dict(model),
        "preview": preview,
        "reward": {"name": settings.reward, "weights": weights},
        "versions": {"fk_reward": __version__, **versions},
    }


def noise_of_steps(pipe: FKSteeringPipeline, settings: RunSettings) -> float | None:
    """Eta of all methods of a run; None if the scheduler has no such argument."""
    if not takes_argument(pipe.scheduler, "eta"):
        return None
    of_solver = None if pipe.solver is None else pipe.solver.eta
    return next(eta for eta in (settings.eta, of_solver, 1.0) if eta is not None)


def describe_model(pipe: FKSteeringPipeline, *, eta: float | None = None) -> dict[str, Any]:
    """Classes, weights, precision and place of a pipeline; its commit on the hub where it comes from there."""
    return {
        "pipeline": type(pipe.pipe).__name__,
        "scheduler": type(pipe.scheduler).__name__,
        "eta": eta,
        "commit": hub_commit(pipe),
        "weights": weights_digest([dict(pipe.components)]),
        "dtype": str(pipe.dtype),
        "device": pipe.device.type,
    }


def describe_preview(pipe: FKSteeringPipeline) -> str | None:
    """Digest of the weights that decode at the scoring steps; None for the pipeline's own."""
    return None if pipe.preview is None else weights_digest([pipe.preview])


def hub_commit(pipe: FKSteeringPipeline) -> str | None:
    """Commit of a pipeline on the hub; None for one of another source."""
    # Diffusers keeps no commit, but the hub's cache names its folders after commits.
    configs = [getattr(part, "config", None) for part in pipe.components.values()]
    sources = [str(getattr(config, "_name_or_path", "")) for config in configs]
    found = [match[1] for source in sources if (match := re.search(r"snapshots/([0-9a-f]{40})", source))]
    return found[0] if found else None
