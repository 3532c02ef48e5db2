"""One steered call: scores predicted images, counts the work and collects the trace."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from fk_reward.pipelines.batching import MicroBatches, batch_rows
from fk_reward.pipelines.conditions import Conditions, fit_conditions
from fk_reward.pipelines.epilogue import DecodeFn
from fk_reward.pipelines.hooks import main_denoiser, wrap_forward, wrap_method
from fk_reward.pipelines.lookahead import PipelineLookAhead
from fk_reward.pipelines.pipeline_state import kept_rows
from fk_reward.pipelines.reward_checks import require_reward
from fk_reward.pipelines.running_call import RunningCall
from fk_reward.pipelines.schedulers import unchanged
from fk_reward.pipelines.watching import tell
from fk_reward.rewards import NonFiniteScoreError, Reward
from fk_reward.sampling.particle_exchange import ParticleExchange
from fk_reward.sampling.records import SteeringRecord, SteeringRecords, recorded_weights
from fk_reward.sampling.row_state import RowState
from fk_reward.sampling.steering import steer
from fk_reward.sampling.trace import Provenance, SteeringTrace, TraceStep
from fk_reward.sampling.x0_prediction import scheduler_name
from fk_reward.search.base import Population, SearchConfig, can_move, can_resize
from fk_reward.search.contract import record_of
from fk_reward.search.diversity import DIVERSE
from fk_reward.search.moves import MovingSearch
from fk_reward.search.registry import search_name, settings_of

logger = logging.getLogger(__name__)
T = TypeVar("T")
Submit: TypeAlias = Callable[..., Callable[[], T]]
"""Arguments of a piece of work, to a function that gives its result."""

_COUNTED = ("calls", "rows", "decoded", "previews", "scored", "gradients", "sample_steps")

_THUMBNAIL_SIZE = 96  # pixels; a trace keeps one of each particle and scoring step


@dataclass
class SteeredRun:
    """What one call of `FKSteeringPipeline` does besides calling the wrapped pipeline.

    Attributes:
        reward: the reward.
        prompts: G texts that the reward reads.
        config: settings of the search.
        population: who goes on, in this call.
        decode: latents to images in [0, 1].
        batches: how much the reward gets at once.
        exchange: where the particles are; images and scores of this class are those of this process's own.
        call: the wrapped pipeline's call, of which the scoring steps run the end.
        arguments: of that call, for this process's own particles.
        step_defaults: arguments for `scheduler.step` that the wrapped pipeline does not pass.
        lookahead: what the scoring steps ask the reward about; None for the predicted clean sample of the step.
        reward_device: where the reward gets its images; None for the device that they are on. Where it is given,
            images that are decoded in batches are scored in a thread, one batch while the next is decoded.
        provenance: what runs, for the trace.
        previewed: whether `decode` is a preview, and not the wrapped pipeline's own decoder.
        notes: sentences for the trace, in plain words, about what the user must know of this run.
        num_steps: steps of the scheduler that have run.
        predicted: `(G * K, ...)`, predicted clean samples of a run that has ended with noise left; None otherwise.
        finished_images: `(G * K, 3, H, W)`, kept where `selection="diverse"` compares them; None without it.
    """

    reward: Reward
    prompts: list[str]
    config: SearchConfig
    population: Population
    decode: DecodeFn
    batches: MicroBatches
    exchange: ParticleExchange
    call: RunningCall
    arguments: dict[str, Any]
    step_defaults: dict[str, Any]
    lookahead: PipelineLookAhead | None = None
    reward_device: torch.device | None = None
    provenance: Provenance | None = None
    previewed: bool = False
    notes: list[str] = field(default_factory=list)
    num_steps: int = 0
    predicted: Tensor | None = None
    finished_images: Tensor | None = None
    _steps: list[TraceStep] = field(default_factory=list)
    _measured: dict[str, Any] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTED, 0))
    _log_ratio: Tensor | None = None
    _bar: Any = None
    _announced_steps: int | None = None
    _started: float = field(default_factory=time.perf_counter)

    def complete(self, pipe: Any, finish: Callable[[SteeredRun, Any], T]) -> T:
        """Run the call and what makes a result of it, with pipeline and scheduler as before afterwards.

        Args:
            pipe: the wrapped pipeline.
            finish: gets this run and what the wrapped pipeline returned.
        """
        # splitting comes first and so lies innermost: all other hooks see the batches of the wrapped pipeline
        with unchanged(pipe.scheduler), self.batches.splitting(pipe):
            result = finish(self, self.steer(pipe))
            self.call.close()
        return result

    def steer(self, pipe: Any) -> Any:
        """Call the wrapped pipeline with its scheduler steered; returns what it returns."""
        defaults = dict(self.step_defaults)
        if self.arguments.get("generator") is not None:
            defaults["generator"] = self.arguments["generator"]  # the calls of SD3 and Flux do not pass theirs on
        hooks: dict[str, Any] = {"step_defaults": defaults, "callback": self.record, "exchange": self.exchange}
        hooks["num_steps"] = lambda: self._announced_steps
        require_reward(self.config, self.reward)
        if isinstance(self.config, MovingSearch):
            hooks["transition"] = self.config.transition(self.population)
        lookahead = self.lookahead or PipelineLookAhead(pipe, 1)
        hooks |= {"prediction": lookahead.prediction, "denoise": lookahead.denoise}
        _check_denoising_end(pipe, self.arguments)
        with ExitStack() as stack:
            stack.enter_context(self.watch(pipe))
            kept = stack.enter_context(self._kept_rows(pipe))
            hooks["row_states"] = [*kept, stack.enter_context(self._conditions(pipe))]
            records = stack.enter_context(steer(pipe.scheduler, self.population, _LevelScore(self), **hooks))
            # after `steer`, outside its step: the call goes on with what `steer` made of the sample
            stack.enter_context(lookahead.watching())
            stack.enter_context(self.call.watching())
            out = pipe(**self.arguments)
        self._close(pipe, records)
        return out

    def _kept_rows(self, pipe: Any) -> AbstractContextManager[list[RowState]]:
        if not can_move(self.population):
            return nullcontext([])
        return kept_rows(pipe, resizes=can_resize(self.population))

    def _conditions(self, pipe: Any) -> AbstractContextManager[Conditions]:
        sizes = {"num_groups": len(self.prompts), "num_particles": self._num_own}
        return Conditions(pipe, **sizes, resizes=can_resize(self.population)).following()

    def _close(self, pipe: Any, records: SteeringRecords) -> None:
        self.notes += records.notes
        self.num_steps, self._log_ratio = records.num_steps, records.log_ratio
        self._counts["sample_steps"] = records.sample_steps
        if can_move(self.population) and records.num_steps == 0:
            raise RuntimeError(
                f"{type(pipe).__name__} never called the step of its scheduler ({type(pipe.scheduler).__name__}), so "
                "that nothing was steered: it uses another scheduler, or a copy, or strength leaves no step to make."
            )
        if records.holds_noise and scheduler_name(pipe.scheduler) is not None:
            self.predicted = records.last_x0_pred()

    def score(self, x0_pred: Tensor, level: float | None = None) -> Tensor:
        """Rewards `(G * K,)` of the predicted clean samples, made from samples of a noise level; for `steer`."""
        batches: tuple[Tensor, ...] = (x0_pred,)
        if self.reward_device is not None and not self.reward.compares_images:
            batches = self.batches.decoded_together(x0_pred)
        self._counts["decoded"] += len(x0_pred)
        self._counts["previews"] += len(x0_pred) if self.previewed else 0
        decoded = map(self.decode, batches)
        reward = (self.reward if level is None else self.reward.at_noise(level)).for_previews()
        scores = self._score_batches(decoded, reward, since=_clock(x0_pred), in_thread=len(batches) > 1)
        if scores.requires_grad:  # of a transition that may take a gradient; what it does take is counted
            scores.register_hook(lambda _: self._counts.update(gradients=self._counts["gradients"] + len(x0_pred)))
        return scores

    def score_images(self, images: Tensor) -> Tensor:
        """Rewards `(G * K,)` of images `(G * K, 3, H, W)`; names prompt and particle of one that is not finite."""
        return self._score_batches([images], self.reward, since=_clock(images))

    def _score_batches(
        self, batches: Iterable[Tensor], reward: Reward, *, since: float, in_thread: bool = False
    ) -> Tensor:
        """Rewards of all images of batches, which are decoded as they are taken; in a thread, while the next is."""
        images: list[Tensor] = []
        results = []
        place = self.reward_device
        rewards_of = functools.partial(self._rewards_of, reward)
        with worker(rewards_of, in_thread=in_thread, device_type="cpu" if place is None else place.type) as score:
            for batch in batches:
                results.append(score(batch if place is None else batch.to(place), sum(map(len, images))))
                images.append(batch)
            decoded = _clock(images[-1])
            rewards, parts = zip(*(result() for result in results), strict=True)
        self._counts["scored"] += sum(map(len, images))
        scores = torch.cat(rewards).to(images[-1].device)
        self._measured = {
            "judges": reward.judges,
            "decode_seconds": decoded - since,
            "reward_seconds": _clock(scores) - decoded,
            "thumbnails": torch.cat([self._thumbnails(batch) for batch in images]),
            "reward_parts": {name: torch.cat([part[name] for part in parts]) for name in parts[0]},
        }
        return scores

    def _rewards_of(self, reward: Reward, images: Tensor, first: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Rewards of some of this process's images, the first of which has this place among all of them."""
        bad = (~torch.isfinite(images.flatten(1)).all(1)).nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                f"The decoded image of {self._name(first + bad[0])} holds NaN or infinite pixels, and its latents were "
                "finite: the autoencoder overflowed. Run it in float32 (pipe.vae.to(torch.float32)) or bfloat16."
            )
        prompts = [prompt for prompt in self.prompts for _ in range(self._num_own)]
        try:
            # Reward.__call__ copies the images; that of a subclass may write to those that are returned to the user
            own = images if type(reward).__call__ is Reward.__call__ else images.clone()
            return self.batches.score(reward, own, prompts[first : first + len(images)])
        except NonFiniteScoreError as error:
            raise ValueError(f"The reward of {self._name(first + error.index)} is {error.score}: {error}") from error

    def score_finished(self, returned: Any, flags: Tensor | None) -> Tensor:
        """Rewards `(G * K,)` of the finished images, from what the wrapped pipeline returned.

        Where noise is left in them (`predicted`), the rewards are those of the predicted clean samples.

        Args:
            returned: images or latents.
            flags: `(B,)` bool, images that were blacked out.
        """
        if self.predicted is not None:
            self._note_noise(is_latent=self.call.output_type == "latent")

        def score(own: Tensor) -> Tensor:
            images = self.call.finished(returned, predicted=self.predicted)
            self._counts["decoded"] += len(images)
            if getattr(self.config, "selection", None) == DIVERSE:
                self.finished_images = images
            return self.score_images(images if flags is None else images * ~flags.to(images.device).view(-1, 1, 1, 1))

        return self.exchange.gather_scores(score, torch.empty(self.population.num_groups * self._num_own))

    def _note_noise(self, *, is_latent: bool) -> None:
        returned = "latents" if is_latent else "images"
        self.notes.append(
            f"The run ended after {self.num_steps} steps, before the scheduler's last: the {returned} that are "
            "returned still hold noise, and the final rewards are those of the predicted clean images."
        )
        if not is_latent:  # latents are what the next pipeline takes; noisy images are of no use
            logger.warning("%s Ask for output_type='latent' to go on with them.", self.notes[-1])

    def record(self, record: SteeringRecord) -> None:
        """Keep the record with what was measured, and show it in the progress bar; the callback of `steer`."""
        self._steps.append(TraceStep(**vars(record), **self._measures()))
        tell(self._steps[-1])
        if self._bar is not None:
            best, ess = record.rewards.amax(1).mean(), record.ess.mean()
            self._bar.set_postfix(reward=f"{best:.3f}", ess=f"{ess:.1f}", refresh=False)

    def finish(self, rewards: Tensor) -> None:
        """Give the population the rewards `(G * K,)` of the finished images and close the record."""
        warning = self.population.finish(rewards, step=self.num_steps, log_ratio=self._log_ratio)
        if warning is not None and self.exchange.process == 0:
            logger.warning(warning)
        grouped = self._grouped(rewards)
        log_weights, ess = recorded_weights(record_of(self.population, grouped.shape[1]), grouped, final=True)
        self._steps.append(
            TraceStep(
                step=self.num_steps,
                timestep=0.0,
                rewards=grouped,
                log_weights=log_weights,
                ess=ess,
                ancestors=None,
                final=True,
                level=0.0,
                **self._measures(),
            )
        )
        tell(self._steps[-1])

    def trace(self, selected: Tensor) -> SteeringTrace:
        """The trace of the finished run; `selected` is `(G, n)`. Counts are those of all processes together."""
        counts = {name: count * self.exchange.num_processes for name, count in self._counts.items()}
        recorded = self.population.record()
        return SteeringTrace(
            prompts=tuple(self.prompts),
            search=search_name(self.config),
            config=settings_of(self.config),
            reward_name=self.reward.card.name,
            reward_scale=recorded.get("reward_scale"),
            steps=tuple(self._steps),
            log_evidence=recorded.get("log_evidence"),
            selected=selected,
            num_steps=self._steps[-1].step,
            num_model_calls=counts["calls"],
            num_model_rows=counts["rows"],
            sample_steps=counts["sample_steps"],
            num_decode_calls=counts["decoded"],
            num_preview_calls=counts["previews"],
            num_reward_calls=counts["scored"],
            num_gradient_calls=counts["gradients"],
            seconds=time.perf_counter() - self._started,
            notes=(*self.population.notes, *self.notes),
            provenance=self.provenance,
        )

    @contextmanager
    def watch(self, pipe: Any) -> Iterator[None]:
        """Count the denoiser's calls and catch the progress bar of the wrapped pipeline, for one call.

        A call counts once with all its rows, whether or not it is split into micro-batches further inside. Where the
        population shrinks or grows, the calls are brought to its size.
        """
        denoiser = main_denoiser(pipe)
        with ExitStack() as stack:
            if can_resize(self.population):
                stack.enter_context(fit_conditions(pipe, self.population))
            if denoiser is not None:
                stack.enter_context(wrap_forward(denoiser, self._count_call))
            # Diffusers never clears it: it would be the number of an earlier call until this one sets its own
            earlier = vars(pipe).pop("_num_timesteps", None)
            stack.enter_context(wrap_method(pipe, "progress_bar", functools.partial(self._watch_bar, pipe)))
            yield
            if earlier is not None:
                vars(pipe).setdefault("_num_timesteps", earlier)

    def _count_call(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._counts["calls"] += 1
        self._counts["rows"] += batch_rows(args, kwargs)
        return call(*args, **kwargs)

    def _watch_bar(self, pipe: Any, progress_bar: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._bar = progress_bar(*args, **kwargs)
        self._announced_steps = _announced_steps(pipe, *args, **kwargs)
        return self._bar

    @property
    def _num_own(self) -> int:
        """Particles of a prompt that this process holds at the moment."""
        return self.exchange.share(self.population.num_particles)

    def _measures(self) -> dict[str, Any]:
        """What was measured of the last scores, of all processes; not before all of them have scores."""
        parts, thumbnails = self._measured["reward_parts"], self.exchange.gather(self._measured["thumbnails"])
        sizes = (self.population.num_groups, -1)
        return {
            **self._measured,
            "thumbnails": thumbnails.unflatten(0, sizes),
            "reward_parts": {name: self._grouped(self.exchange.gather(part)) for name, part in parts.items()},
        }

    def _grouped(self, scores: Tensor) -> Tensor:
        """(G * K,) to (G, K) float32 on the CPU."""
        return scores.detach().to("cpu", torch.float32).view(self.population.num_groups, -1)

    def _name(self, index: int) -> str:
        group, particle = divmod(index, self._num_own)
        return f"prompt {group}, particle {self.exchange.process * self._num_own + particle}"

    def _thumbnails(self, images: Tensor) -> Tensor:
        scale = min(1.0, _THUMBNAIL_SIZE / max(images.shape[-2:]))
        if scale < 1.0:
            images = torch.nn.functional.interpolate(images, scale_factor=scale, mode="area")
        return (images * 255).round().to("cpu", torch.uint8)


@dataclass(frozen=True)
class _LevelScore:
    """The score of a run at a noise level, for `steer`."""

    run: SteeredRun
    level: float | None = None

    def __call__(self, x0_pred: Tensor) -> Tensor:
        return self.run.score(x0_pred, self.level)

    def at_noise(self, level: float) -> _LevelScore:
        return _LevelScore(self.run, level)


def _clock(after: Tensor) -> float:
    """Seconds, once the work that made this tensor is done."""
    if after.is_cuda:
        torch.cuda.synchronize(after.device)
    return time.perf_counter()


def _check_denoising_end(pipe: Any, arguments: dict[str, Any]) -> None:
    """Refuse to return noise that cannot be scored: SDXL's base stops early with `denoising_end`."""
    end, scheduler = arguments.get("denoising_end"), pipe.scheduler
    if end is not None and 0 < end < 1 and scheduler_name(scheduler) is None:
        raise ValueError(
            f"With denoising_end={end} the final rewards are those of the predicted clean images, which the step of "
            f"{type(scheduler).__name__} does not tell: use another scheduler, such as DDIMScheduler, or leave "
            "denoising_end out."
        )


def _announced_steps(pipe: Any, iterable: Any = None, total: int | None = None, **_: Any) -> int | None:
    """How many steps a pipeline that opens a progress bar will make; None where that is not known.

    `total` is the number that the user asked for, which schedulers of second order make twice; `_num_timesteps`, which
    most pipelines set just before, counts the timesteps that are left after `strength`, `denoising_end`, ...
    """
    if hasattr(iterable, "__len__"):
        return len(iterable)
    num_steps = vars(pipe).get("_num_timesteps")
    if num_steps is None and getattr(pipe.scheduler, "order", 1) == 1:
        num_steps = total
    return num_steps


@contextmanager
def worker(work: Callable[..., T], *, in_thread: bool, device_type: str = "cpu") -> Iterator[Submit[T]]:
    """Do pieces of work one after the other, in a thread beside the caller's or when their results are asked for.

    A thread of its own lets the work wait for its device, or for a server, while the caller goes on. Gradient,
    inference and autocast modes, which belong to a thread, are the caller's.

    Args:
        work: the function.
        in_thread: False to begin a piece of work when its result is asked for, in the caller's thread.
        device_type: where the work is done, `"cpu"`, `"cuda"`, ...

    Yields:
        What takes the arguments of a piece of work and returns a function without arguments: the result, or the error
        that the work ended with. On leaving, what has not begun is dropped.

    Example:
        >>> with worker(lambda x: 2 * x, in_thread=True) as submit:
        ...     results = [submit(x) for x in (1, 2)]
        ...     [result() for result in results]
        [2, 4]
    """
    if not in_thread:
        yield lambda *args: functools.partial(work, *args)
        return
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fk-reward")
    in_modes = _in_modes_of_caller(work, device_type)
    try:
        yield lambda *args: executor.submit(in_modes, *args).result
    finally:
        executor.shutdown(cancel_futures=True)


def _in_modes_of_caller(work: Callable[..., T], device_type: str) -> Callable[..., T]:
    gradient, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    autocast = torch.is_autocast_enabled(device_type)
    dtype = torch.get_autocast_dtype(device_type) if autocast else None

    def run(*args: Any) -> T:
        with ExitStack() as modes:
            modes.enter_context(torch.inference_mode(inference))
            modes.enter_context(torch.set_grad_enabled(gradient))
            if autocast:
                modes.enter_context(torch.autocast(device_type, dtype=dtype))
            return work(*args)

    return run
