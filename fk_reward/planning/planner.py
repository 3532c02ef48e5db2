"""`plan`: memory and time of a steered call, and settings that fit, before anything is downloaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from fk_reward.pipelines import ReducedResolution
from fk_reward.pipelines.call_budget import choose_search
from fk_reward.pipelines.decoding import widens_to_float32
from fk_reward.pipelines.lookahead import LookAheadSetting, checked_lookahead
from fk_reward.pipelines.reward_checks import require_gradients
from fk_reward.pipelines.schedulers import resolve_solver
from fk_reward.planning.advice import (
    GRADIENT_ADVICE,
    STOP_ADVICE,
    advice_for,
    estimated_seconds,
    measured_tflops,
    parse_tflops,
    preview_advice,
)
from fk_reward.planning.costs import ImageRequest, batch_costs
from fk_reward.planning.memory import (
    MemoryModel,
    PhaseNeed,
    Settings,
    fitting_settings,
    parse_memory,
    smallest_settings,
)
from fk_reward.planning.planned_models import PlannedModels, models_on_meta, weight_bytes
from fk_reward.search import ChosenByCall, Forecast, SearchConfig, load_search
from fk_reward.search.base import forecast
from fk_reward.search.budget import check_typed_sizes, fit_budget, sample_steps
from fk_reward.search.moves import MovingSearch
from fk_reward.search.registry import search_class, search_name, settings_of


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a steered call of one prompt needs. Bytes are counted from shapes; seconds are an estimate.

    Attributes:
        model: as given.
        reward: as given.
        search: who goes on.
        image: height, width and guidance scale, None for the pipeline's own.
        dtype: of the pipeline.
        steps: scheduler steps.
        preview: as given.
        solver: as given.
        lookahead: as given.
        memory: bytes of the GPU; None for no limit.
        fits: whether `settings` fit.
        settings: those to use; the smallest ones if nothing fits.
        phases: bytes at the peak of each phase, under these settings.
        weights: bytes of text encoders, denoiser, decoder, other parts of the pipeline, preview, and reward.
        flops: floating-point operations of a call, by dtype; with `stop_reward` at most.
        tflops: 10¹² operations a second, by dtype; empty if they were neither given nor measured.
        seconds: operations over operations a second; None without `tflops`. Moving weights is not included, nor is what
            a model loses against plain matrix products.
        advice: what to write or to change, a sentence each.
    """

    model: str
    reward: str
    search: SearchConfig
    image: ImageRequest
    dtype: str
    steps: int
    preview: str | None = None
    solver: str | None = None
    lookahead: LookAheadSetting = 1
    memory: int | None
    fits: bool
    settings: Settings
    phases: tuple[PhaseNeed, ...]
    weights: Mapping[str, int]
    flops: Mapping[str, int]
    tflops: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    advice: tuple[str, ...] = ()

    @property
    def num_particles(self) -> int:
        """K, particles at the beginning."""
        return self.search.num_particles

    @property
    def max_particles(self) -> int:
        """The most particles at once."""
        return most_particles(self.population)

    @property
    def population(self) -> Forecast:
        """Particles at each step, scoring and end of the call."""
        return forecast(self.search, self.steps)

    @property
    def num_scorings(self) -> int:
        """How often images are scored: at the scoring steps, in guided steps, and at the end."""
        return num_scorings(self.population)

    @property
    def peak(self) -> int:
        """Most bytes that PyTorch's allocator will hold, as `torch.cuda.max_memory_allocated` reports."""
        return max(phase.peak for phase in self.phases)

    @property
    def needed(self) -> int:
        """Bytes that the GPU should have: the peak, the CUDA context, and what the allocator cannot reuse."""
        return max(phase.needed for phase in self.phases)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data, for JSON."""
        phases = [asdict(phase) | {"peak": phase.peak, "needed": phase.needed} for phase in self.phases]
        derived = {name: getattr(self, name) for name in ("num_particles", "num_scorings", "peak", "needed")}
        derived |= {"search": search_name(self.search), "config": settings_of(self.search)}
        return asdict(self) | {"phases": phases, "population": asdict(self.population)} | derived


def flops_by_dtype(models: PlannedModels, model: MemoryModel, expected: Forecast) -> dict[str, int]:
    """Count the operations of a call, by dtype.

    Args:
        models: the pipeline, the reward and the preview.
        model: costs of the phases, and whether the scoring steps have a preview.
        expected: the particles of the call.
    """
    pipe_dtype, vae_dtype = str(models.denoiser.dtype), _decoder_dtype(models.pipe)
    decode, score = ("preview", "preview reward") if model.previewed else ("decode", "reward")
    by_own_decoder = not model.previewed or isinstance(models.preview, ReducedResolution)
    flops: Counter[str] = Counter()
    flops[pipe_dtype] += model.all.flops["text"] + sum(model.flops("denoise", n) for n in expected.steps)
    flops[pipe_dtype] += expected.extra_steps * model.flops("denoise", 1)
    flops[vae_dtype if by_own_decoder else pipe_dtype] += sum(model.flops(decode, n) for n in expected.scorings)
    flops[vae_dtype] += model.flops("decode", expected.finished)
    gradient = "preview gradient" if model.previewed else "gradient"
    flops[vae_dtype if by_own_decoder else pipe_dtype] += sum(
        model.flops(f"{gradient} decode", n) for n in expected.guided
    )
    reward_dtype = _reward_dtype(models)
    if reward_dtype is not None:
        scored = [model.flops(score, n) for n in expected.scorings]
        scored += [model.flops(f"{gradient} reward", n) for n in expected.guided]
        flops[reward_dtype] += sum(scored) + model.flops("reward", expected.finished)
    return {dtype.removeprefix("torch."): count for dtype, count in flops.items()}


def _decoder_dtype(pipe: Any) -> str:
    """Dtype of the autoencoder, or float32 if the pipeline widens it."""
    vae: Any = getattr(pipe, "vae", None)
    dtype = str(getattr(vae, "dtype", "torch.float32"))
    return "torch.float32" if vae is not None and widens_to_float32(pipe, vae) else dtype


def _reward_dtype(models: PlannedModels) -> str | None:
    """Dtype of the largest weight, in which nearly all work is done; None for a rule without weights."""
    weights = [tensor for tensor in models.reward_weights() if tensor.is_floating_point()]
    return str(max(weights, key=lambda tensor: tensor.numel()).dtype) if weights else None


@dataclass(frozen=True)
class CallCosts:
    """Costs of a call.

    Attributes:
        model: memory of the call.
        flops: its operations, by dtype.
        flops_with_preview: the same with the preview of the model's family, if there is one and none was requested.
        num_scorings: how often images are scored, the finished ones included.
        can_offload_reward: whether the reward can stay on the CPU between its calls.
    """

    model: MemoryModel
    flops: dict[str, int]
    flops_with_preview: dict[str, int] | None
    num_scorings: int
    can_offload_reward: bool

    @property
    def weights(self) -> dict[str, int]:
        """Bytes by purpose; those of a preview only if it is used."""
        return self.model.weights | ({} if self.model.previewed else {"preview": 0})


def call_costs(models: PlannedModels, image: ImageRequest, expected: Forecast, *, previewed: bool) -> CallCosts:
    """Run each phase on one image, and on as many as there are particles at most.

    Args:
        models: the pipeline, the reward and a preview.
        image: what is drawn.
        expected: the particles of the call.
        previewed: whether the preview is used.
    """
    num_particles, guided = most_particles(expected), bool(expected.guided)
    one = batch_costs(models, image, batch_size=1, guided=guided)
    on_the_way = bool(expected.scorings or expected.guided)
    model = MemoryModel(
        num_particles=num_particles,
        weights=_weights(models),
        one=one,
        all=one if num_particles == 1 else batch_costs(models, image, batch_size=num_particles, guided=guided),
        previewed=previewed and on_the_way,  # the finished images have no preview
        num_finished=expected.finished,
        num_guided=max(expected.guided, default=0),
    )
    other = None
    if models.preview is not None and on_the_way and not previewed:
        other = flops_by_dtype(models, replace(model, previewed=True), expected)
    return CallCosts(
        model=model,
        flops=flops_by_dtype(models, model, expected),
        flops_with_preview=other,
        num_scorings=num_scorings(expected),
        # its weights would be on the CPU again when the backward pass comes: such rewards refuse it
        can_offload_reward=models.can_offload_reward and not guided,
    )


def _weights(models: PlannedModels) -> dict[str, int]:
    parts = models.pipeline_weights()
    parts |= {"preview": models.preview_weights(), "reward": models.reward_weights()}
    return {name: weight_bytes(tensors) for name, tensors in parts.items()}


def most_particles(expected: Forecast) -> int:
    """The most particles at once: a population may grow on the way.

    Example:
        >>> most_particles(Forecast(steps=(2, 6, 6), scorings=(2, 6), finished=2))
        6
    """
    return max(*expected.steps, *expected.scorings, expected.finished)


def num_scorings(expected: Forecast) -> int:
    """How often the particles are scored, the finished ones and those of guided steps included.

    Example:
        >>> num_scorings(Forecast(steps=(2, 2, 2), scorings=(2,), finished=2, guided=(2, 2)))
        4
    """
    return len(expected.scorings) + len(expected.guided) + 1


DEFAULT_STEPS = 50
"""Scheduler steps, unless the caller or a solver sets another number."""


def plan(  # noqa: PLR0913 (what a call is made from)
    model: str,
    *,
    reward: str,
    search: str | SearchConfig = "fk",
    budget: int | None = None,
    memory: int | str | None = None,
    height: int | None = None,
    width: int | None = None,
    dtype: str | torch.dtype = torch.float16,
    steps: int | None = None,
    guidance_scale: float | None = None,
    preview: str | None = None,
    solver: str | None = None,
    lookahead: LookAheadSetting = 1,
    tflops: float | str | None = None,
    **settings: Any,
) -> Plan:
    """Predict memory and time of a steered call, and choose settings that fit.

    The modules are run on PyTorch's meta device: every tensor has its shape and no numbers, so that a laptop can plan
    for any GPU. Takes seconds, for SDXL with a reward of billions of parameters, too.

    Args:
        model: `sd-2.1`, `sd-2.1-base` (512 pixels) or `sdxl`, of which nothing is downloaded; an embedded model, a
            folder or a hub id, of which the configurations are read.
        reward: registered name, or a composition of names.
        search: who goes on: a name of `SEARCHES`, or a config. With `stop_reward` operations and time are the most
            that a call takes.
        budget: sample steps of a prompt, at most: sets the sizes of the search, as for `FKSteeringPipeline`.
        memory: of the GPU, in bytes or as `"24GB"` (10⁹ bytes) or `"24GiB"`; None for no limit.
        height: in pixels, None for the pipeline's default.
        width: the same.
        dtype: of the pipeline; the reward has that of its own loader.
        steps: scheduler steps, None for the solver's, or 50.
        guidance_scale: None for the solver's, or the pipeline's default; 1 halves the work.
        preview: decodes at the scoring steps, by name as for `FKSteeringPipeline`; a published tiny autoencoder needs
            no file. None for the pipeline's own autoencoder.
        solver: name of `SOLVERS`. None for the pipeline's scheduler, one call of the denoiser for each step.
        lookahead: of the scoring steps, as for `FKSteeringPipeline`; its steps are counted with guidance, which an
            adapter has not.
        tflops: 10¹² operations a second that the GPU reaches, or `"float16=400,float32=40"`; None to measure them if
            there is a GPU.
        **settings: fields of the search, such as `num_particles`.

    Raises:
        TypeError: a setting that the search does not have.
        ValueError: a reward of unknown size or without the gradient that the search follows, an unknown solver, a
            preview of other latents than the pipeline's, an amount of memory that cannot be parsed, ...

    Example:
        >>> result = plan("shapes-sd", reward="shapes-clipscore", memory="1GB", dtype="float32")
        >>> result.fits, result.settings.particle_batch_size
        (True, 4)
    """
    floating = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    limit, preset = parse_memory(memory), resolve_solver(solver)
    asked, settings = _asked_search(search, settings, budget=budget)
    lookahead = checked_lookahead(lookahead)
    with models_on_meta(model, reward, dtype=floating, preview=preview, solver=preset) as models:
        defaults = {} if preset is None else preset.arguments(models.pipe)
        num_steps = defaults.get("num_inference_steps", DEFAULT_STEPS) if steps is None else steps
        config = choose_search(asked, settings, 1, models.pipe.scheduler, budget=budget).with_settings(settings)
        if budget is not None:
            config = fit_budget(config, budget, num_steps, lookahead=lookahead)
        if isinstance(config, MovingSearch):
            for part in models.rewards:
                require_gradients(config, part)
        guidance = defaults.get("guidance_scale") if guidance_scale is None else guidance_scale
        image = ImageRequest(height, width, guidance)
        costs = call_costs(models, image, _expected(config, num_steps, lookahead), previewed=preview is not None)
    request = {
        "model": model,
        "reward": reward,
        "search": config,
        "image": image,
        "dtype": str(floating).removeprefix("torch."),
        "steps": num_steps,
        "preview": preview,
        "solver": solver,
        "lookahead": lookahead,
        "memory": limit,
    }
    return _planned(costs, request, _rates(tflops, costs.flops))


def _asked_search(
    search: str | SearchConfig, settings: dict[str, Any], *, budget: int | None
) -> tuple[SearchConfig, dict[str, Any]]:
    """The search, with its settings where it is the one that runs; else these wait for the choice."""
    if issubclass(search_class(search) if isinstance(search, str) else type(search), ChosenByCall):
        return load_search(search), settings
    config = load_search(search, **settings)
    if budget is not None:
        check_typed_sizes(config, settings, budget=f"budget={budget}")
    return config, {}


def _expected(config: SearchConfig, num_steps: int, lookahead: LookAheadSetting) -> Forecast:
    """The particles of a call, with the sample steps of its look-aheads."""
    expected = forecast(config, num_steps)
    ahead = sample_steps(config, num_steps, lookahead=lookahead) - sample_steps(config, num_steps)
    return replace(expected, extra_steps=expected.extra_steps + ahead)


def _planned(costs: CallCosts, asked: dict[str, Any], rates: dict[str, float]) -> Plan:
    """Choose settings and describe them; `asked` are the fields of the plan that the caller gave."""
    memory, search, model = asked["memory"], asked["search"], costs.model
    can_offload = costs.can_offload_reward
    settings = fitting_settings(model, memory, can_offload_reward=can_offload, num_scorings=costs.num_scorings)
    chosen = settings or smallest_settings(can_offload_reward=can_offload)
    needs = model.needs(chosen)
    request = (asked["reward"], model.num_particles, getattr(torch, asked["dtype"]))
    advice = (
        *advice_for(chosen, needs, None if settings else memory, request=request),
        *_preview_advice(costs, chosen, rates),
        *((GRADIENT_ADVICE,) if model.num_guided else ()),
        *(() if getattr(search, "stop_reward", None) is None else (STOP_ADVICE,)),
    )
    return Plan(
        **asked,
        fits=settings is not None,
        settings=chosen,
        phases=needs,
        weights=costs.weights,
        flops=costs.flops,
        tflops=rates,
        seconds=estimated_seconds(costs.flops, rates) if rates else None,
        advice=advice,
    )


def _preview_advice(costs: CallCosts, settings: Settings, rates: dict[str, float]) -> tuple[str, ...]:
    if costs.flops_with_preview is None:
        return ()
    models = (costs.model, replace(costs.model, previewed=True))
    peaks = [max(need.peak for need in model.needs(settings)) for model in models]
    return preview_advice(costs.flops, costs.flops_with_preview, rates=rates, peaks=(peaks[0], peaks[1]))


def _rates(tflops: float | str | None, flops: Mapping[str, int]) -> dict[str, float]:
    if tflops is not None:
        return parse_tflops(str(tflops))
    if not torch.cuda.is_available():
        return {}
    return {dtype: measured_tflops("cuda", getattr(torch, dtype)) for dtype, count in flops.items() if count}
