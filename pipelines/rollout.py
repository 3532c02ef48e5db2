"""Whole trajectories of a pipeline, for searches over starts: each pass is a call of the wrapped pipeline."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor

from fk_reward.pipelines.call_arguments import SteeredCall
from fk_reward.pipelines.call_budget import num_inference_steps
from fk_reward.pipelines.call_record import seeds_of
from fk_reward.pipelines.output import FKSteeringOutput, finish, scored_images, selected_output
from fk_reward.pipelines.resampling_generators import resampling_generators
from fk_reward.pipelines.steered_run import SteeredRun
from fk_reward.pipelines.trajectory import Randomness, Trajectory, level_of, require_cut
from fk_reward.sampling.process_link import ProcessLink
from fk_reward.sampling.records import recorded_weights
from fk_reward.sampling.stochasticity import require_matching_steps, require_stochastic
from fk_reward.sampling.trace import SteeringTrace, TraceStep
from fk_reward.search.base import SearchConfig
from fk_reward.search.best_of_n import BestOfN
from fk_reward.search.contract import make_population, selected_images
from fk_reward.search.registry import search_name, settings_of
from fk_reward.search.starts import Scored, StartSearch
from fk_reward.smc.resampling import flat_indices
from fk_reward.value_checks import whole_number

logger = logging.getLogger(__name__)

_COUNTS = (
    *("num_steps", "num_model_calls", "num_model_rows", "sample_steps"),
    *("num_decode_calls", "num_preview_calls", "num_reward_calls", "num_gradient_calls"),
)


def run_call(
    pipe: Any,
    call: SteeredCall,
    *,
    prepare: Callable[[SteeredCall, ProcessLink | None], SteeredRun],
    link: ProcessLink | None = None,
) -> FKSteeringOutput:
    """Run a call: in one pass of the pipeline, or in those that a search over starts asks for.

    Args:
        pipe: the wrapped pipeline.
        call: sorted and checked.
        prepare: makes what runs one pass.
        link: to the other processes of `spread=True`.

    Raises:
        ValueError: for a search over starts in several processes, or of a pipeline that takes no starts.
    """
    if not isinstance(call.config, StartSearch):
        select = functools.partial(finish, num_images_per_prompt=call.num_images_per_prompt)
        return prepare(call, link).complete(pipe, select)
    if link is not None:
        name = type(call.config).__name__
        raise ValueError(f"{name} draws whole trajectories in several passes, which does not go with spread=True.")
    rollout = PipelineRollout(pipe, call, prepare=prepare)
    return rollout.output(call.config.run(rollout, num_groups=len(call.prompts), generators=rollout.generators))


class PipelineRollout:
    """The `Rollout` of a pipeline.

    Every pass is the wrapped pipeline's own call, with all checks of a steered one (finite latents, images and
    rewards), from the same state of the caller's generators: without a start it draws what a plain call draws, bit for
    bit, and with that start given again, and all particles, the same images once more. Afterwards the generators are
    where the last pass has left them.

    Starts are the `latents` of the pipeline's call: noise before the scheduler's scale. `from_step` above 0 begins
    inside the trajectory, from samples at the level of that step, with every scheduler of one denoiser call a step that
    can be begun anywhere: DDIM, DDPM, and those with `set_begin_index` (Euler, DPM-Solver++, UniPC, flow matching,
    ...). A solver of several steps begins there without a history, at first order, as Diffusers' image-to-image
    pipelines do. Heun, KDPM2 and PNDM are refused. Finished samples can be noised to that level (`noise`), with the
    alpha and sigma of the pass before, and drawn on with new numbers (`fresh_noise`).

    Not there, and refused by name: pipelines whose call takes no `latents` (DeepFloyd IF, most image-to-image ones), or
    whose own noise cannot be found in what `prepare_latents` draws; particles in several processes.

    Args:
        pipe: the wrapped pipeline.
        call: sorted and checked.
        prepare: makes what runs one pass.
    """

    def __init__(
        self, pipe: Any, call: SteeredCall, *, prepare: Callable[[SteeredCall, ProcessLink | None], SteeredRun]
    ) -> None:
        _require_starts(pipe)
        self.num_steps = num_inference_steps(pipe, call.arguments)
        self._pipe, self._call, self._prepare = pipe, call, prepare
        generator = call.arguments.get("generator")
        self._randomness = Randomness(generator, pipe._execution_device)
        device = "cpu" if generator is not None else pipe._execution_device
        # of their own: with those of the first pass, decisions between passes would repeat the numbers of those in it
        self.generators = resampling_generators(generator, len(call.prompts), device=device, purpose="passes")
        self._passes: list[_Pass] = []
        self._schedulers: dict[int, Any] = {}  # steps of a pass -> the scheduler with its timesteps set
        self._notes: list[str] = []
        self._started = time.perf_counter()

    def __call__(  # noqa: PLR0913 (those of `Rollout`)
        self,
        start: Tensor | None = None,
        *,
        from_step: int = 0,
        num_particles: int,
        num_steps: int | None = None,
        particles: Tensor | None = None,
        noise: Tensor | None = None,
        fresh_noise: bool = False,
        search: SearchConfig | None = None,
    ) -> Scored:
        """Draw, finish and score; arguments as of `Rollout`.

        Raises:
            ValueError: for a start or particles of another shape, a number of steps that cannot be set, or a scheduler
                that cannot begin at `from_step`.
        """
        whole_number("num_particles", num_particles, minimum=1)
        whole_number("from_step", from_step, minimum=0)
        self._check_start(start, num_particles, from_step)
        steps = num_steps or self.num_steps
        if noise is not None:
            start = self._renoised(start, noise, from_step, steps)
        places = self._places(particles, num_particles)
        if not fresh_noise:
            self._randomness.reset()  # before generators are copied for particles that are drawn twice
        arguments = self._arguments(start, places, num_steps)
        one = replace(
            self._call,
            # forbidden drafts are no error: the search that asked for them decides
            config=BestOfN(num_particles=num_particles, abstain=True) if search is None else search,
            arguments=arguments,
            num_images_per_prompt=num_particles,
        )
        run = self._prepare(one, None)
        watch = Trajectory(self._pipe, start, from_step, arguments.get("generator"))
        with watch.watching():
            scored, trace = run.complete(self._pipe, lambda run, out: _scored(run, out, watch))
        self._passes.append(_Pass(trace, places, scored))
        self._schedulers[steps] = watch.scheduler
        self._notes += [note for note in run.notes if note not in self._notes]
        self._note_noise(arguments, places)
        return scored

    def note(self, sentence: str) -> None:
        """As `Rollout`."""
        self._notes += [sentence] if sentence not in self._notes else []

    def output(self, scored: Scored) -> FKSteeringOutput:
        """Select among the images that a search returned.

        Raises:
            TypeError: for what is no `Scored`.
            ValueError: for another number of images than the search's population has, or none of which is allowed.
        """
        call, config = self._call, self._call.config
        if not isinstance(scored, Scored) or not self._passes:
            got = type(scored).__name__
            raise TypeError(f"{type(config).__name__}.run should return Scored, of passes of the rollout, got {got}.")
        population = make_population(config, len(call.prompts), self.generators)
        if warning := population.finish(scored.rewards):
            logger.warning(warning)
        selected = selected_images(population, call.num_images_per_prompt)
        rows = flat_indices(selected, population.num_particles)
        taken = scored.take(rows)
        trace = self._trace(scored, selected, notes=(*population.notes, *scored.notes, *self._notes))
        return selected_output(taken.images, taken.rewards, taken.flagged, trace=trace)

    def _trace(self, scored: Scored, selected: Tensor, *, notes: Sequence[str]) -> SteeringTrace:
        """One trace of all passes: those that the search decided by, and the images of the end."""
        last, total = self._passes[-1].trace, sum(one.trace.num_steps for one in self._passes)
        counts = {name: sum(getattr(one.trace, name) for one in self._passes) for name in _COUNTS}
        generator = self._call.arguments.get("generator")
        provenance = None if last.provenance is None else replace(last.provenance, seeds=seeds_of(generator))
        rewards = scored.rewards.view(len(last.prompts), -1)
        log_weights, ess = recorded_weights({}, rewards, final=True)
        final = replace(
            last.steps[-1],
            step=total,
            rewards=rewards,
            log_weights=log_weights,
            ess=ess,
            thumbnails=None if scored.thumbnails is None else scored.thumbnails.unflatten(0, (len(rewards), -1)),
            reward_parts={name: part.view(rewards.shape) for name, part in scored.reward_parts.items()},
        )
        return replace(
            last,
            **counts,
            search=search_name(self._call.config),
            config=settings_of(self._call.config),
            steps=(*self._decisions(scored), final),
            selected=selected,
            seconds=time.perf_counter() - self._started,
            notes=tuple(notes),
            provenance=provenance,
        )

    def _decisions(self, scored: Scored) -> Iterator[TraceStep]:
        """A record of each pass, at its last step; none of the last one where its images are those of the end."""
        # rows of several passes have no single pass that they come from: then the last one is recorded as well
        passes = self._passes[:-1] if scored is self._passes[-1].scored else self._passes
        followers = [one.places for one in self._passes[1:]]
        num_steps = 0
        for number, one in enumerate(passes):
            num_steps += one.trace.num_steps
            step = one.trace.steps[-1]
            log_weights, ess = recorded_weights({}, step.rewards)
            ancestors = _slots(followers[number], one.places) if number < len(followers) else None
            yield replace(step, step=num_steps - 1, log_weights=log_weights, ess=ess, ancestors=ancestors, final=False)

    def _check_start(self, start: Tensor | None, num_particles: int, from_step: int) -> None:
        if start is None:
            if from_step:
                raise ValueError(f"from_step={from_step} needs a start: samples at the level of this step.")
            return
        expected = len(self._call.prompts) * num_particles
        if len(start) != expected or not torch.isfinite(start).all():
            raise ValueError(
                f"A start should be {expected} finite rows, one for each of {len(self._call.prompts)} prompts x "
                f"{num_particles} particles, got a tensor {tuple(start.shape)}."
            )

    def _renoised(self, start: Tensor | None, noise: Tensor, from_step: int, num_steps: int) -> Tensor:
        """Finished samples at the level of a step."""
        scheduler = self._schedulers.get(num_steps)
        if start is None or start.shape != noise.shape or from_step < 1 or scheduler is None:
            got = None if start is None else tuple(start.shape)
            raise ValueError(
                "noise needs finished samples of its shape, a from_step of at least 1, and a pass of as many steps "
                f"before, which tells the levels; got noise {tuple(noise.shape)}, start {got}, from_step={from_step} "
                f"and {num_steps} steps after passes of {sorted(self._schedulers)}."
            )
        require_cut(scheduler, from_step)
        require_matching_steps(scheduler)
        alpha, sigma = level_of(scheduler, from_step)
        return (alpha * start.to(torch.float32) + sigma * noise.to(start.device)).to(start.dtype)

    def _places(self, particles: Tensor | None, num_particles: int) -> Tensor:
        """`(G, K)`, the call's own particles of each prompt that the rows are."""
        num_groups, most = len(self._call.prompts), self._call.config.num_particles
        if particles is None:
            places = torch.arange(num_particles).expand(num_groups, -1)
        else:
            if len(particles) != num_groups * num_particles:
                raise ValueError(f"particles should have {num_groups} x {num_particles} entries, got {len(particles)}.")
            places = particles.view(num_groups, -1) - most * torch.arange(num_groups)[:, None]
        if places.min() < 0 or places.max() >= most:
            raise ValueError(
                f"A row of a pass should be one of its prompt's {most} particles (num_particles of "
                f"{type(self._call.config).__name__}), got {places.tolist()}."
            )
        if self._passes:
            _slots(places, self._passes[-1].places)  # refuses before anything is drawn
        return places

    def _arguments(self, start: Tensor | None, places: Tensor, num_steps: int | None) -> dict[str, Any]:
        arguments = dict(self._call.arguments)
        if num_steps is not None and num_steps != self.num_steps:
            given = next((name for name in ("timesteps", "sigmas") if arguments.get(name) is not None), None)
            if given is not None:
                raise ValueError(
                    f"{type(self._call.config).__name__} draws with num_inference_steps={num_steps} in one of its "
                    f"passes, which {given}=... excludes: leave {given} out."
                )
            arguments["num_inference_steps"] = whole_number("num_steps", num_steps, minimum=1)
        rows = flat_indices(places, self._call.config.num_particles)
        if isinstance(arguments.get("generator"), list):
            arguments["generator"] = _separate([arguments["generator"][row] for row in rows.tolist()])
        if arguments.get("latents") is not None:
            arguments["latents"] = arguments["latents"][rows] if start is None else start
        return arguments

    def _note_noise(self, arguments: dict[str, Any], places: Tensor) -> None:
        """Say that other rows draw other noise from a single generator, which their starts alone would not."""
        own = torch.arange(self._call.config.num_particles).expand(len(places), -1)
        if torch.equal(places, own) or isinstance(arguments.get("generator"), list):
            return
        with contextlib.suppress(ValueError):
            require_stochastic(self._pipe.scheduler, eta=arguments.get("eta", self._call.step_defaults.get("eta")))
            note = (
                f"{type(self._pipe.scheduler).__name__} adds noise, and one generator draws other noise for fewer or "
                "other particles: pass generator=[...], one for each particle, for passes that follow their starts."
            )
            self._notes += [note] if note not in self._notes else []


class _Pass:
    """A pass that has ended: its trace, the particles `(G, K)` of its rows, and what the search got."""

    def __init__(self, trace: SteeringTrace, places: Tensor, scored: Scored) -> None:
        self.trace, self.places, self.scored = trace, places, scored


def _scored(run: SteeredRun, out: Any, watch: Trajectory) -> tuple[Scored, SteeringTrace]:
    images, rewards, flags = scored_images(run, out)
    run.finish(rewards)
    sizes = (run.population.num_groups, run.population.num_particles)
    trace = run.trace(torch.arange(sizes[1]).repeat(sizes[0], 1))
    last = trace.steps[-1]
    scored = Scored(
        noise=watch.start,
        latents=run.call.last_sample,
        rewards=rewards.detach().to("cpu", torch.float32),
        images=images,
        flagged=flags,
        thumbnails=None if last.thumbnails is None else last.thumbnails.flatten(0, 1),
        reward_parts={name: part.flatten() for name, part in last.reward_parts.items()},
        log_weights=None if trace.log_evidence is None else last.log_weights.flatten(),
        log_evidence=None if trace.log_evidence is None else trace.log_evidence.repeat_interleave(sizes[1]),
    )
    return scored, trace


def _slots(places: Tensor, before: Tensor) -> Tensor:
    """`(G, K')`, where the particles of a pass stood in the pass before, whose particles are `(G, K)`.

    Raises:
        ValueError: for a particle that was not there.
    """
    same = places[:, :, None] == before[:, None, :]
    if not same.any(2).all():
        raise ValueError(
            f"A pass should draw particles of the pass before it, {before.tolist()} of each prompt, got "
            f"{places.tolist()}."
        )
    return same.to(torch.int64).argmax(2)


def _separate(generators: list[Generator]) -> list[Generator]:
    """Generators of which none is in the list twice: rows of the same particle draw the same noise, not one's more."""
    separate: list[Generator] = []
    for one in generators:
        again = any(one is other for other in separate)
        separate.append(one.clone_state() if again else one)
    return separate


def _require_starts(pipe: Any) -> None:
    """Refuse pipelines that take no starts, by name."""
    name = type(pipe).__name__
    own = getattr(pipe, "prepare_latents", None)
    for what, function in (("call", pipe.__call__), ("prepare_latents", own)):
        if function is None or "latents" not in inspect.signature(function).parameters:
            raise ValueError(
                f"A search over starts gives the pipeline its noise, and the {what} of {name} takes no latents: use a "
                "search inside one trajectory, such as best-of-n, pruning or fk."
            )
    if "num_inference_steps" not in inspect.signature(pipe.__call__).parameters:
        raise ValueError(f"A search over starts sets num_inference_steps, which the call of {name} does not take.")
