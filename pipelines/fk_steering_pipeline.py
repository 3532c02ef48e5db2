"""`FKSteeringPipeline`: a Diffusers text-to-image pipeline, steered by a reward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from fk_reward.devices import reward_place
from fk_reward.models import model_source
from fk_reward.pipelines.batch_sizes import BatchSizes, batch_size_fields
from fk_reward.pipelines.batching import MicroBatches
from fk_reward.pipelines.call_arguments import (
    SteeredCall,
    check_arguments,
    check_kind,
    check_output,
    check_rows,
    chosen_search,
    complete_eta,
    resolve_prompts,
    split_arguments,
    takes_prompt,
)
from fk_reward.pipelines.call_budget import SearchChoice, choose_search, search_within_budget, with_budget, with_choice
from fk_reward.pipelines.call_record import describe_call
from fk_reward.pipelines.decoding import Preview, load_preview, watched_decoding
from fk_reward.pipelines.lookahead import LookAheadSetting, PipelineLookAhead, checked_lookahead, chosen_lookahead
from fk_reward.pipelines.output import FKSteeringOutput
from fk_reward.pipelines.particle_share import call_identity, call_link, find_exchange, own_arguments
from fk_reward.pipelines.resampling_generators import resampling_generators
from fk_reward.pipelines.rollout import run_call
from fk_reward.pipelines.schedulers import InstalledSolver, Solver, resolve_solver, steerable_if_known
from fk_reward.pipelines.steered_run import SteeredRun
from fk_reward.pipelines.wrapped_pipeline import (
    PipelineProxy,
    check_pipeline,
    check_scheduler,
    set_scheduler,
    with_dtype,
)
from fk_reward.rewards import Reward
from fk_reward.rewards.registry import steering_reward
from fk_reward.sampling.process_link import ProcessLink
from fk_reward.sampling.trace import Provenance
from fk_reward.search.base import Population, SearchConfig
from fk_reward.search.contract import config_for_spread, make_population
from fk_reward.search.feynman_kac import FKSteeringConfig
from fk_reward.search.registry import load_search, search_fields, settings_of
from fk_reward.search.rollover import Proposing


class FKSteeringPipeline(PipelineProxy):
    """Any Diffusers text-to-image pipeline, steered by a reward with the Feynman-Kac sampler of Singhal et al. (2025).

    The wrapped pipeline runs its own `__call__` on K particles a prompt; its scheduler's `step` is intercepted for
    the time of the call (`fk_reward.steer`). With one particle, or with `reward_scale=0`, the images are those of the
    wrapped pipeline at the same `eta`, bit for bit; of Stable Diffusion 3 and Flux where no `generator` is given, which
    they do not pass to their scheduler.

    Every attribute that is not named here (`unet`, `scheduler`, `load_lora_weights`, `enable_model_cpu_offload`, ...)
    is read from and written to the wrapped pipeline; a name that neither of the two has cannot be written. It is no
    `DiffusionPipeline` itself: `isinstance` and Diffusers' `from_pipe` want `pipe.pipe`.

    Args:
        pipe: a pipeline in memory, whose scheduler is kept: a deterministic one is refused when the pipeline is called.
        reward: name or composition of names, `Reward`, or a function `(images, prompts) -> (B,) tensor`.
        search: how the calls search: a name of `fk_reward.search.SEARCHES` (`"fk"`, the default, `"best-of-n"`,
            `"pruning"`, `"beam"`), or a config.
        steering: the older word for `search=FKSteeringConfig(...)`.
        preview: a cheaper decoder for the scoring steps: `"auto"`, `"taesd"` or another name of `PREVIEWS`, `"vae/2"`
            for half the resolution, a hub id or a folder of an `AutoencoderTiny`, one in memory, or a function from
            predicted latents to images `(B, 3, H, W)` in [0, 1], which also serves pipelines whose latents are not
            known here. It follows the pipeline's device and precision. The finished images, and so the final rewards,
            are always the wrapped pipeline's own.
        lookahead: what the reward is asked about on the way: 1 for the predicted clean sample of the step, m for the
            one that m coarse deterministic steps lead to, at the cost of m - 1 more sample steps a particle and
            scoring step; `"adapter"` for the answer of a consistency LoRA that is on for one call (`"adapter:NAME"`
            where several are loaded), at the cost of one. Stable Diffusion, SDXL, SD3, Flux and PixArt.
        solver: name of `SOLVERS` or a `Solver`: replaces the scheduler, and gives the number of steps, eta and guidance
            of calls that do not name them. Writing `pipe.solver` does the same later; None, or a new `pipe.scheduler`,
            ends it.
        batch_sizes: default limits of the batches of denoiser, decoder and reward; sizes that `"auto"` finds are
            kept for later calls, until the attribute is set again.
        spread: share the particles of each prompt out to the processes that `accelerate launch` started. All of them
            make the same calls and get the same result, that of one process; K should be a multiple of their number,
            and `generator` a list with one for each particle.
        reward_device: where the reward is, and stays; None for the pipeline's device. With a `decode_batch_size` the
            reward reads one batch while the next is decoded.

    Example:
        >>> pipe = FKSteeringPipeline.from_pretrained("shapes-sd", reward="shapes-llava-reward-alignment")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> out = pipe("a photo of a red circle", num_particles=2, num_inference_steps=4)
        >>> out.images[0].size, tuple(out.rewards.shape)
        ((64, 64), (1, 1))
    """

    _reward: Reward
    _search: SearchConfig
    _preview: Preview | None
    _lookahead: LookAheadSetting
    _batch_sizes: BatchSizes
    _spread: bool
    _reward_device: torch.device | None
    _installed: InstalledSolver | None
    _found_sizes: dict[str, int]  # where "auto" arrived, by field of `BatchSizes`
    _stand_in: tuple[Any, str] | None  # a scheduler that was not the user's choice, and the class that it replaces

    def __init__(  # noqa: PLR0913 (one parameter for each option)
        self,
        pipe: DiffusionPipeline,
        *,
        reward: str | Reward | Callable[[Tensor, list[str]], Tensor],
        search: str | SearchConfig | None = None,
        steering: FKSteeringConfig | None = None,
        preview: str | Path | Preview | None = None,
        lookahead: LookAheadSetting = 1,
        solver: str | Solver | None = None,
        batch_sizes: BatchSizes | None = None,
        spread: bool = False,
        reward_device: str | torch.device | None = None,
    ) -> None:
        self._reward_device = reward_place(reward_device)
        self._preview = None  # read when the pipeline is written
        self.pipe = pipe
        self.reward = reward
        self._search = chosen_search(search, steering, FKSteeringConfig())
        self.batch_sizes = BatchSizes() if batch_sizes is None else batch_sizes
        self.spread = spread
        self.preview = preview
        self.lookahead = lookahead
        self.solver = solver

    @property
    def pipe(self) -> Any:
        """The wrapped pipeline. A new one keeps reward, settings and preview, and its own scheduler."""
        return self._pipe

    @pipe.setter
    def pipe(self, value: DiffusionPipeline) -> None:
        check_pipeline(value)
        load_preview(self._preview, value)  # refuses one of other latents
        if "_pipe" in vars(self):
            self.solver = None  # gives the old pipeline its scheduler back
        self._pipe, self._installed, self._stand_in, self._found_sizes = value, None, None, {}

    @property
    def scheduler(self) -> Any:
        """The wrapped pipeline's scheduler. Writing it ends the `solver`."""
        return self.pipe.scheduler

    @scheduler.setter
    def scheduler(self, value: Any) -> None:
        check_scheduler(value)
        self.solver = None
        set_scheduler(self.pipe, value)

    @property
    def reward(self) -> Reward:
        """The reward; a name, a composition or a function can be written as well."""
        return self._reward

    @reward.setter
    def reward(self, value: str | Reward | Callable[[Tensor, list[str]], Tensor]) -> None:
        reward = steering_reward(value)
        if self.reward_device is not None:
            reward.to(self.reward_device)
        self._reward = reward

    @property
    def reward_device(self) -> torch.device | None:
        """Where the reward is, and stays; None for the pipeline's device."""
        return self._reward_device

    @reward_device.setter
    def reward_device(self, value: str | torch.device | None) -> None:
        device = reward_place(value)
        if device is not None:
            self.reward.to(device)
        self._reward_device = device

    @property
    def search(self) -> SearchConfig:
        """Search of the calls that name none; the name of one can be written as well."""
        return self._search

    @search.setter
    def search(self, value: str | SearchConfig) -> None:
        self._search = load_search(value)

    @property
    def steering(self) -> Any:
        """The older word for `search`; only an `FKSteeringConfig` can be written."""
        return self._search

    @steering.setter
    def steering(self, value: FKSteeringConfig) -> None:
        check_kind("steering", value, FKSteeringConfig)
        self._search = value

    @property
    def batch_sizes(self) -> BatchSizes:
        """Default limits of the batches. Writing them forgets the sizes that `"auto"` has found."""
        return self._batch_sizes

    @batch_sizes.setter
    def batch_sizes(self, value: BatchSizes) -> None:
        check_kind("batch_sizes", value, BatchSizes)
        self._batch_sizes, self._found_sizes = value, {}

    @property
    def spread(self) -> bool:
        """Whether the particles of each prompt are shared out to the processes of `accelerate launch`."""
        return self._spread

    @spread.setter
    def spread(self, value: bool) -> None:
        check_kind("spread", value, bool)
        self._spread = value

    @property
    def preview(self) -> Preview | None:
        """What decodes at the scoring steps, None for the wrapped pipeline's decoder; a name can be written as well."""
        return self._preview

    @preview.setter
    def preview(self, value: str | Path | Preview | None) -> None:
        self._preview = load_preview(value, self.pipe)

    @property
    def lookahead(self) -> LookAheadSetting:
        """Look-ahead of the calls whose search scores on the way, and that name none."""
        return self._lookahead

    @lookahead.setter
    def lookahead(self, value: LookAheadSetting) -> None:
        self._lookahead = checked_lookahead(value)

    @property
    def solver(self) -> Solver | None:
        """The solver whose scheduler runs; None once the wrapped pipeline's own `scheduler` was written."""
        installed = self._installed
        return installed.solver if installed is not None and self.pipe.scheduler is installed.scheduler else None

    @solver.setter
    def solver(self, value: str | Solver | None) -> None:
        solver = resolve_solver(value)
        own = self.pipe.scheduler if self._installed is None or self.solver is None else self._installed.replaced
        built = own if solver is None else solver.build(own)
        self._installed = None if solver is None else InstalledSolver(solver, scheduler=built, replaced=own)
        set_scheduler(self.pipe, built)

    @property
    def _replaced_scheduler(self) -> str | None:
        """Class of the scheduler in whose place the present one runs: a solver's, or the stand-in of a model's own."""
        before = self.pipe.scheduler if self.solver is None else self._installed.replaced  # type: ignore[union-attr]
        if self._stand_in is not None and before is self._stand_in[0]:
            return self._stand_in[1]
        return None if self.solver is None else type(before).__name__

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        reward: str | Reward | Callable[[Tensor, list[str]], Tensor],
        **arguments: Any,
    ) -> FKSteeringPipeline:
        """Load a pipeline as `DiffusionPipeline.from_pretrained` does, and wrap it.

        Where no `scheduler` is given and the repository's own cannot be steered, it is replaced by one that can, at the
        same noise levels (`stochastic_scheduler`), and a warning says so. Where none is known it is kept for calls that
        resample nothing.

        Args:
            name_or_path: hub id, folder, embedded model (`"shapes-sd"`) or alias (`"sd-2.1"`, `"sdxl"`).
            reward: name or composition of names, `Reward`, or a function.
            **arguments: options of this class (`search`, `preview`, `lookahead`, `solver`, `batch_sizes`, `spread`,
                `reward_device`); the others go to `DiffusionPipeline.from_pretrained` (`torch_dtype`, `variant`,
                `scheduler`, ...).
        """
        source = model_source(name_or_path, "a pipeline")
        options = {name: arguments.pop(name) for name in OPTIONS if name in arguments}
        solver = options.pop("solver", None)
        loaded_reward = steering_reward(reward)  # first: a misspelt name should not cost the loading of a pipeline
        pipe = DiffusionPipeline.from_pretrained(source, **with_dtype(arguments))
        own = pipe.scheduler
        if "scheduler" not in arguments:
            set_scheduler(pipe, steerable_if_known(own))
        wrapped = cls(pipe, reward=loaded_reward, **options)
        wrapped._stand_in = None if pipe.scheduler is own else (pipe.scheduler, type(own).__name__)
        wrapped.solver = solver
        return wrapped

    def to(self, *args: Any, **kwargs: Any) -> FKSteeringPipeline:
        """Move the wrapped pipeline as `DiffusionPipeline.to` does, reward and preview to its device. Returns itself.

        A reward with a `reward_device` stays there. It keeps its own precision; `pipe.reward.to(dtype=...)` changes it.
        A tiny autoencoder takes that of the pipeline's autoencoder when it decodes.
        """
        self.pipe.to(*args, **kwargs)
        self.reward.to(self.reward_device or self.pipe.device)
        if isinstance(self.preview, torch.nn.Module):
            self.preview.to(self.pipe.device)
        return self

    @torch.no_grad()
    def __call__(  # noqa: PLR0913 (one parameter for each option)
        self,
        prompt: str | list[str] | None = None,
        *,
        search: str | SearchConfig | None = None,
        budget: int | None = None,
        num_images_per_prompt: int = 1,
        steering: FKSteeringConfig | None = None,
        lookahead: LookAheadSetting | None = None,
        reward_prompts: str | Sequence[str] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **arguments: Any,
    ) -> FKSteeringOutput:
        """Generate with K particles a prompt and return the best of them.

        Args:
            prompt: one prompt or a list; prompts never exchange particles.
            search: instead of the pipeline's `search`: a name of `fk_reward.search.SEARCHES`, or a config.
            budget: sample steps of a prompt (one sample through one step of the scheduler, guidance or not), at most:
                sets the sizes of the search, in the proportions that it has.
            num_images_per_prompt: n, how many of the finished particles are returned.
            steering: the older word for `search=FKSteeringConfig(...)`.
            lookahead: instead of the pipeline's `lookahead`.
            reward_prompts: texts that the reward reads, where they should differ from `prompt` or where only
                `prompt_embeds` are given.
            output_type: `"pil"`, `"np"`, `"pt"` or `"latent"`.
            return_dict: False for a tuple (images, rewards, trace, nsfw flags).
            **arguments: fields of the search's config (`num_particles=8`) and of `BatchSizes`
                (`particle_batch_size=4`), and arguments of the wrapped pipeline's call;
                `generator` takes one generator, or a list of one for each of the G * K particles. `eta` is 1.0 unless
                given, for a search that copies particles.

        Raises:
            TypeError: for an unknown argument.
            ValueError: for a deterministic scheduler under a search that copies, more images than particles, a
                look-ahead of a pipeline that has none, an image or a reward that is not finite, ...
        """
        with call_link(spread=self.spread) as link:
            check_kind("return_dict", return_dict, bool)
            asked, scheduler = chosen_search(search, steering, self.search), self.pipe.scheduler
            call = self._parse(
                prompt,
                arguments,
                choice=choose_search(asked, arguments, num_images_per_prompt, scheduler, budget=budget),
                limits=(budget, lookahead),
                reward_prompts=reward_prompts,
                num_images_per_prompt=num_images_per_prompt,
                output_type=output_type,
            )
            output = run_call(self.pipe, call, prepare=self._prepare, link=link)
            output.trace = with_choice(with_budget(output.trace, budget, call.config), asked, call.config)
        # not `to_tuple`, which leaves out what is None
        as_tuple: Any = tuple(getattr(output, name) for name in FKSteeringOutput.__annotations__)
        return output if return_dict else as_tuple

    def _parse(
        self,
        prompt: Any,
        arguments: dict[str, Any],
        *,
        choice: SearchChoice,
        limits: tuple[int | None, LookAheadSetting | None],
        reward_prompts: Any,
        num_images_per_prompt: int,
        output_type: str,
    ) -> SteeredCall:
        """Sort and check the arguments of a call, before anything is spent on it."""
        budget, lookahead = limits
        options: dict[str, Any] = {"batch_sizes": self.batch_sizes, "attributes": (*OPTIONS, "scheduler")}
        with choice.told():
            config, sizes, arguments = split_arguments(self.pipe, arguments, search=choice.config, **options)
        arguments = arguments if self.solver is None else self.solver.complete(self.pipe, arguments)
        config = config_for_spread(config, self.reward.card.spread)
        lookahead = chosen_lookahead(self.pipe, lookahead, self.lookahead, config)
        config = search_within_budget(self.pipe, config, budget, arguments, lookahead=lookahead)
        check_output(self.pipe, output_type, num_images_per_prompt, config)
        arguments = check_arguments(self.pipe, arguments | ({"prompt": prompt} if takes_prompt(self.pipe) else {}))
        prompts = resolve_prompts(self.pipe, prompt, arguments, reward_prompts)
        arguments = check_rows(arguments, num_prompts=len(prompts), num_particles=config.num_particles)
        step_defaults = complete_eta(self.pipe, config, arguments)
        return SteeredCall(
            prompts=prompts,
            config=config,
            batch_sizes=sizes,
            arguments=arguments,
            step_defaults=step_defaults,
            num_images_per_prompt=num_images_per_prompt,
            output_type=output_type,
            lookahead=lookahead,
        )

    def search_within(self, budget: int, search: str | SearchConfig | None = None, **arguments: Any) -> SearchConfig:
        """The search that a budget pays for, as a call with the same arguments has it: for its sizes, before the call.

        Args:
            budget: sample steps of a prompt.
            search: as of a call.
            **arguments: of a call, `num_inference_steps` among them.

        Raises:
            ValueError: for a budget that buys nothing.
        """
        arguments = arguments if self.solver is None else self.solver.complete(self.pipe, arguments)
        asked, number = chosen_search(search, None, self.search), arguments.pop("num_images_per_prompt", 1)
        choice = choose_search(asked, arguments, number, self.pipe.scheduler, budget=budget)
        config = choice.with_settings({n: arguments.pop(n) for n in search_fields(choice.config) if n in arguments})
        lookahead = chosen_lookahead(self.pipe, arguments.pop("lookahead", None), self.lookahead, config)
        return search_within_budget(self.pipe, config, budget, arguments, lookahead=lookahead)

    def _prepare(self, call: SteeredCall, link: ProcessLink | None) -> SteeredRun:
        """Everything that runs a call, on this process's share of its particles."""
        population = self._population(call)
        exchange = find_exchange(population, link=link, reward=self.reward)
        batches = MicroBatches(
            call.batch_sizes,
            num_particles=lambda: len(call.prompts) * exchange.share(population.num_particles),
            found=self._found_sizes,
        )
        watched, decode = watched_decoding(
            self.pipe, call, batches, population=population, preview=self.preview, aside=self.reward_device is not None
        )
        provenance = describe_call(
            self.pipe,
            call.arguments,
            step_defaults=call.step_defaults,
            replaced_scheduler=self._replaced_scheduler,
            lookahead=call.lookahead,
        )
        own = own_arguments(call.arguments, exchange)
        if link is not None:
            link.agree(self._identity(call, provenance))
        return SteeredRun(
            reward=self.reward,
            prompts=call.prompts,
            config=call.config,
            population=population,
            decode=decode,
            batches=batches,
            exchange=exchange,
            call=watched,
            arguments={**own, "num_images_per_prompt": exchange.num_own, "output_type": call.output_type},
            step_defaults=call.step_defaults,
            lookahead=PipelineLookAhead(self.pipe, call.lookahead, draws_again=isinstance(population, Proposing)),
            reward_device=self.reward_device,
            provenance=provenance,
            previewed=self.preview is not None,
        )

    def _population(self, call: SteeredCall) -> Population:
        generator, num_groups = call.arguments.get("generator"), len(call.prompts)
        device = "cpu" if generator is not None else self.pipe._execution_device  # which walks through all modules
        generators = resampling_generators(generator, num_groups, device=device)
        return make_population(call.config, num_groups, generators, spread=self.reward.card.spread)

    def _identity(self, call: SteeredCall, provenance: Provenance) -> dict[str, Any]:
        """What has to be the same in all processes that share a call."""
        return call_identity(
            provenance,
            call.arguments,
            prompts=call.prompts,
            search=type(call.config).__name__,
            steering=settings_of(call.config),
            reward=self.reward.card.name,
            preview=type(self.preview).__name__,
            model=str(self.pipe.config.get("_name_or_path")),
            output_type=call.output_type,
            num_images_per_prompt=call.num_images_per_prompt,
        )

    def _settings(self) -> dict[str, tuple[str, ...]]:
        word = "steering" if isinstance(self.search, FKSteeringConfig) else "search"
        return {word: tuple(search_fields(self.search)), "batch_sizes": batch_size_fields()}

    def __repr__(self) -> str:
        word = "steering" if isinstance(self.search, FKSteeringConfig) else "search"
        replaced = "" if self._replaced_scheduler is None else f" (in place of {self._replaced_scheduler})"
        return (
            f"FKSteeringPipeline({type(self.pipe).__name__}, scheduler={type(self.scheduler).__name__}{replaced}, "
            f"reward={self.reward.card.name!r}, {word}={self.search})"
        )


OPTIONS = tuple(inspect.signature(FKSteeringPipeline).parameters)[1:]
"""Names of the options of `FKSteeringPipeline`, each of which is an attribute, too."""
