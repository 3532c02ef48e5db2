"""`FKSteeringPipeline`: a Diffusers text-to-image pipeline, steered by a reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from fk_reward.models import model_source
from fk_reward.pipelines.batching import BatchSizes, MicroBatches
from fk_reward.pipelines.call_arguments import (
    check_arguments,
    check_kind,
    check_output,
    check_rows,
    complete_eta,
    resolve_prompts,
    split_arguments,
    takes_prompt,
)
from fk_reward.pipelines.call_record import describe_call
from fk_reward.pipelines.decoding import LatentDecoder, Preview, load_preview, preview_decoder
from fk_reward.pipelines.epilogue import DecodeFn
from fk_reward.pipelines.output import FKSteeringOutput, finish
from fk_reward.pipelines.particle_share import call_identity, call_link, find_exchange, own_arguments
from fk_reward.pipelines.running_call import RunningCall
from fk_reward.pipelines.schedulers import InstalledSolver, Solver, resolve_solver, steerable_if_known, unchanged
from fk_reward.pipelines.steered_run import SteeredRun, resampling_generators
from fk_reward.pipelines.wrapped_pipeline import PipelineProxy, check_pipeline, check_scheduler, set_scheduler
from fk_reward.rewards import Reward, load_reward
from fk_reward.sampling.particle_exchange import ParticleExchange
from fk_reward.sampling.trace import Provenance
from fk_reward.search.feynman_kac import FKSteeringConfig
from fk_reward.smc.particle_filter import ParticleFilter


def steering_reward(reward: str | Reward | Callable[[Tensor, list[str]], Tensor]) -> Reward:
    """Load a reward as `load_reward` does.

    Raises:
        ValueError: for one of which lower is better.

    Example:
        >>> steering_reward(lambda images, prompts: images.mean(dim=(1, 2, 3))).device is None
        True
    """
    loaded = load_reward(reward)
    if not loaded.card.higher_is_better:
        raise ValueError(
            f"Of reward {loaded.card.name!r} lower is better, and steering looks for the highest: write a minus before "
            "it, in the name or before the object."
        )
    return loaded


def reward_place(device: str | torch.device | None) -> torch.device | None:
    """The device that a reward is to be put on; None for the pipeline's.

    Raises:
        ValueError: for a name that is none, or a device that is not there.

    Example:
        >>> reward_place("cpu")
        device(type='cpu')
        >>> reward_place("gpu")
        Traceback (most recent call last):
        ValueError: reward_device should be a device that PyTorch can use here, such as 'cpu' or 'cuda:1', got ...
    """
    if device is None:
        return None
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"reward_device should be a device that PyTorch can use here, such as 'cpu' or 'cuda:1', got "
            f"{str(device)!r}: {reason}"
        ) from error


def put_on(reward: Reward | None, device: torch.device | None) -> None:
    """Move a reward to a device; nothing where one of the two is not there.

    Example:
        >>> put_on(None, torch.device("cpu"))
    """
    if reward is not None and device is not None:
        reward.to(device)


class FKSteeringPipeline(PipelineProxy):
    """Any Diffusers text-to-image pipeline, steered by a reward with the Feynman-Kac sampler of Singhal et al. (2025).

    The wrapped pipeline runs its own `__call__` on K particles a prompt; its scheduler's `step` is intercepted for
    the time of the call (`fk_reward.steer`). With one particle, or with `reward_scale=0`, the images are those of the
    wrapped pipeline at the same `eta`, bit for bit; of Stable Diffusion 3 and Flux where no `generator` is given, which
    they do not hand on to their scheduler.

    Every attribute that is not named here (`unet`, `scheduler`, `load_lora_weights`, `enable_model_cpu_offload`, ...)
    is read from and written to the wrapped pipeline; a name that neither of the two has cannot be written. It is no
    `DiffusionPipeline` itself: `isinstance` and Diffusers' `from_pipe` want `pipe.pipe`.

    Args:
        pipe: a pipeline in memory, whose scheduler is kept: a deterministic one is refused when the pipeline is called.
        reward: name or composition of names, `Reward`, or a function `(images, prompts) -> (B,) tensor`.
        steering: default settings of the calls.
        preview: a cheaper decoder for the scoring steps: `"auto"`, `"taesd"` or another name of `PREVIEWS`, `"vae/2"`
            for half the resolution, a hub id or a folder of an `AutoencoderTiny`, one in memory, or a function from
            predicted latents to images `(B, 3, H, W)` in [0, 1], which also serves pipelines whose latents are not
            known here. It follows the pipeline's device and precision. The finished images, and so the final rewards,
            are always the wrapped pipeline's own.
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

    _own = frozenset(
        {
            *("_pipe", "_reward", "_steering", "_preview", "_batch_sizes", "_spread", "_reward_device"),
            *("_installed", "_found_sizes", "_stand_in"),
        }
    )
    _installed: InstalledSolver | None
    _found_sizes: dict[str, int]
    _stand_in: tuple[Any, str] | None  # a scheduler that was not the user's choice, and the class that it replaces

    def __init__(  # noqa: PLR0913 (one parameter for each option)
        self,
        pipe: DiffusionPipeline,
        *,
        reward: str | Reward | Callable[[Tensor, list[str]], Tensor],
        steering: FKSteeringConfig | None = None,
        preview: str | Path | Preview | None = None,
        solver: str | Solver | None = None,
        batch_sizes: BatchSizes | None = None,
        spread: bool = False,
        reward_device: str | torch.device | None = None,
    ) -> None:
        self._reward_device = reward_place(reward_device)
        self._preview: Preview | None = None
        self.pipe = pipe
        self.reward = reward
        self.steering = FKSteeringConfig() if steering is None else steering
        self.batch_sizes = BatchSizes() if batch_sizes is None else batch_sizes
        self.spread = spread
        self.preview = preview
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
        put_on(reward, self.reward_device)
        self._reward = reward

    @property
    def reward_device(self) -> torch.device | None:
        """Where the reward is, and stays; None for the pipeline's device."""
        return self._reward_device

    @reward_device.setter
    def reward_device(self, value: str | torch.device | None) -> None:
        device = reward_place(value)
        put_on(self.reward, device)
        self._reward_device = device

    @property
    def steering(self) -> FKSteeringConfig:
        """Default settings of the calls."""
        return self._steering

    @steering.setter
    def steering(self, value: FKSteeringConfig) -> None:
        check_kind("steering", value, FKSteeringConfig)
        self._steering = value

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
    def solver(self) -> Solver | None:
        """The solver whose scheduler runs; None once somebody has written the wrapped pipeline's own `scheduler`."""
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
    def from_pretrained(  # noqa: PLR0913 (one parameter for each option)
        cls,
        name_or_path: str | Path,
        *,
        reward: str | Reward | Callable[[Tensor, list[str]], Tensor],
        steering: FKSteeringConfig | None = None,
        preview: str | Path | Preview | None = None,
        solver: str | Solver | None = None,
        batch_sizes: BatchSizes | None = None,
        spread: bool = False,
        reward_device: str | torch.device | None = None,
        **diffusers_arguments: Any,
    ) -> FKSteeringPipeline:
        """Load a pipeline as `DiffusionPipeline.from_pretrained` does, and wrap it.

        Where no `scheduler` is given and the repository's own cannot be steered, it is replaced by one that can, at the
        same noise levels (`stochastic_scheduler`), and a warning says so. Where none is known it is kept for calls that
        resample nothing.

        Args:
            name_or_path: hub id, folder, embedded model (`"shapes-sd"`) or alias (`"sd-2.1"`, `"sdxl"`).
            reward: see the class.
            steering: see the class.
            preview: see the class.
            solver: see the class.
            batch_sizes: see the class.
            spread: see the class.
            reward_device: see the class.
            **diffusers_arguments: go to `DiffusionPipeline.from_pretrained` (`torch_dtype`, `variant`, `scheduler`,
            ...).
        """
        source = model_source(name_or_path, "a pipeline")
        loaded_reward = steering_reward(reward)
        pipe = DiffusionPipeline.from_pretrained(source, **diffusers_arguments)
        own = pipe.scheduler
        if "scheduler" not in diffusers_arguments:
            set_scheduler(pipe, steerable_if_known(own))
        wrapped = cls(
            pipe,
            reward=loaded_reward,
            steering=steering,
            preview=preview,
            batch_sizes=batch_sizes,
            spread=spread,
            reward_device=reward_device,
        )
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
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        num_images_per_prompt: int = 1,
        steering: FKSteeringConfig | None = None,
        reward_prompts: str | Sequence[str] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **arguments: Any,
    ) -> FKSteeringOutput:
        """Generate with K particles a prompt and return the best of them.

        Args:
            prompt: one prompt or a list; prompts never exchange particles.
            num_images_per_prompt: n, how many of the K particles are returned, at most K.
            steering: settings of this call, in place of the pipeline's.
            reward_prompts: texts that the reward reads, where they should differ from `prompt` or where only
                `prompt_embeds` are given.
            output_type: `"pil"`, `"np"`, `"pt"` or `"latent"`.
            return_dict: False for a tuple (images, rewards, trace, nsfw flags).
            **arguments: fields of `FKSteeringConfig` (`num_particles=8`) and of `BatchSizes`
                (`particle_batch_size=4`), and arguments of the wrapped pipeline's call;
                `generator` takes one generator, or a list of one for each of the G * K particles. `eta` is 1.0 unless
                given.

        Raises:
            TypeError: for an unknown argument.
            ValueError: for a deterministic scheduler, more images than particles, an image or a reward that is not
                finite, ...
        """
        with call_link(spread=self.spread) as link:
            check_kind("return_dict", return_dict, bool)
            config, sizes, arguments = self._settings(steering, arguments)
            check_output(self.pipe, output_type, num_images_per_prompt, config)
            own_prompt = {"prompt": prompt} if takes_prompt(self.pipe) else {}
            arguments = check_arguments(self.pipe, arguments | own_prompt)
            texts = resolve_prompts(self.pipe, prompt, arguments, reward_prompts)
            arguments = check_rows(arguments, num_prompts=len(texts), num_particles=config.num_particles)
            step_defaults = complete_eta(self.pipe, config, arguments)
            exchange = find_exchange(config, len(texts), link=link, reward=self.reward)
            run = self._run(texts, config, sizes, {**arguments, "output_type": output_type}, exchange)
            provenance = describe_call(
                self.pipe, arguments, step_defaults=step_defaults, replaced_scheduler=self._replaced_scheduler
            )
            run.provenance = provenance
            own = own_arguments(arguments, exchange)
            asked: dict[str, Any] = {"output_type": output_type, "num_images_per_prompt": num_images_per_prompt}
            if link is not None:
                link.agree(self._identity(run, provenance, arguments) | asked)
            output = self._generate(run, own, step_defaults, **asked)
        as_tuple: Any = tuple(getattr(output, name) for name in FKSteeringOutput.__annotations__)
        return output if return_dict else as_tuple

    def _settings(
        self, steering: FKSteeringConfig | None, arguments: dict[str, Any]
    ) -> tuple[FKSteeringConfig, BatchSizes, dict[str, Any]]:
        """The settings of a call, and the arguments of the wrapped pipeline, with the solver's where none are given."""
        defaults = self.steering if steering is None else steering
        config, sizes, rest = split_arguments(self.pipe, arguments, steering=defaults, batch_sizes=self.batch_sizes)
        own = {} if self.solver is None else self.solver.arguments(self.pipe)
        return config, sizes, rest | {name: value for name, value in own.items() if rest.get(name) is None}

    def _run(
        self,
        texts: list[str],
        config: FKSteeringConfig,
        sizes: BatchSizes,
        arguments: dict[str, Any],
        exchange: ParticleExchange,
    ) -> SteeredRun:
        generator = arguments.get("generator")
        device = "cpu" if generator is not None else self.pipe._execution_device  # which walks through all modules
        generators = resampling_generators(generator, len(texts), device=device)
        particle_filter = ParticleFilter(config, len(texts), generators, spread=self.reward.card.spread)

        def num_own() -> int:
            return len(texts) * exchange.share(particle_filter.num_particles)

        batches = MicroBatches(sizes, num_particles=num_own, found=self._found_sizes)
        rows = [len(texts) * (config.final_particles or exchange.num_own)]
        if self.reward_device is not None and sizes.decode_batch_size is not None:
            rows.append(1)  # decoded a few at a time, each batch through the whole end of the call
        call, decode = self._decoding(rows, batches, config, arguments)
        return SteeredRun(
            reward=self.reward,
            prompts=texts,
            particle_filter=particle_filter,
            decode=decode,
            batches=batches,
            exchange=exchange,
            call=call,
            reward_device=self.reward_device,
        )

    def _identity(self, run: SteeredRun, provenance: Provenance, arguments: dict[str, Any]) -> dict[str, Any]:
        """What has to be the same in all processes that share this call."""
        return call_identity(
            provenance,
            arguments,
            prompts=run.prompts,
            steering=run.particle_filter.config.to_dict(),
            reward=self.reward.card.name,
            preview=type(self.preview).__name__,
            model=str(self.pipe.config.get("_name_or_path")),
        )

    def _generate(
        self,
        run: SteeredRun,
        arguments: dict[str, Any],
        step_defaults: dict[str, Any],
        num_images_per_prompt: int,
        output_type: str,
    ) -> FKSteeringOutput:
        """Run the wrapped pipeline on this process's share, score what it returns, and select."""
        if arguments.get("generator") is not None:
            step_defaults["generator"] = arguments["generator"]  # SD3 and Flux do not hand it on
        arguments["num_images_per_prompt"] = run.exchange.num_own
        arguments["output_type"] = output_type
        with unchanged(self.pipe.scheduler), run.batches.splitting(self.pipe):
            out = run.steer(self.pipe, arguments, step_defaults)
            output = finish(run, out, num_images_per_prompt=num_images_per_prompt)
            run.call.close()
        return output

    def _decoding(
        self, rows: Sequence[int], batches: MicroBatches, config: FKSteeringConfig, arguments: dict[str, Any]
    ) -> tuple[RunningCall, DecodeFn]:
        """The watch over a call, whose end decodes, and the decoder of its scoring steps."""
        decode = self._decoder(arguments)
        of_user = None if isinstance(decode, LatentDecoder) else batches.decoder(decode)
        call = RunningCall(
            self.pipe, output_type=arguments["output_type"], sizes=rows, decodes=config.resamples, preview=of_user
        )
        return call, of_user or self._decoder(arguments, call=call, batched=batches.decoder)

    def _decoder(self, arguments: dict[str, Any], **options: Any) -> DecodeFn:
        height, width = arguments.get("height"), arguments.get("width")
        return preview_decoder(self.preview, self.pipe, height=height, width=width, **options)

    def __repr__(self) -> str:
        replaced = "" if self._replaced_scheduler is None else f" (in place of {self._replaced_scheduler})"
        return (
            f"FKSteeringPipeline({type(self.pipe).__name__}, scheduler={type(self.scheduler).__name__}{replaced}, "
            f"reward={self.reward.card.name!r}, steering={self.steering})"
        )
