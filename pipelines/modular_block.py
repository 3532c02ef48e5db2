"""Steering in Modular Diffusers: one block in the place of a pipeline's denoising block."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from diffusers.modular_pipelines import LoopSequentialPipelineBlocks, ModularPipelineBlocks, PipelineState
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam
from torch import Tensor

from fk_reward.pipelines.own_loop import SteeredLoop
from fk_reward.pipelines.pipeline_state import CacheStates, GuiderStates
from fk_reward.pipelines.resampling_generators import resampling_generators
from fk_reward.rewards.registry import load_reward
from fk_reward.sampling.row_state import map_tensors
from fk_reward.search.base import SearchConfig, can_resize


class SteeredDenoise(ModularPipelineBlocks):
    """The denoising block of a modular pipeline, steered.

    It runs the given block as it is, on `num_images_per_prompt` particles of each prompt, and leaves the latents that
    the search chose, best first for each prompt. Predicted samples are decoded by the pipeline's own decoding block.
    The scheduler of the pipeline must be stochastic for a search that copies; where its `step` takes `eta`, it is 1
    unless given.

    Args:
        denoise: the block that it stands for, with a loop over `scheduler.step` somewhere in it.
        decode: the block that makes `images` of `latents`.
        reward: a name, a `Reward`, or a function of images and prompts.
        search: a name of `SEARCHES`, or a config.
        num_images: n, how many latents are left of each prompt.
        **settings: fields of the search's config.

    Example:
        >>> from diffusers.modular_pipelines.stable_diffusion_xl.denoise import StableDiffusionXLDenoiseStep
        >>> from diffusers.modular_pipelines.stable_diffusion_xl.decoders import StableDiffusionXLDecodeStep
        >>> block = SteeredDenoise(
        ...     StableDiffusionXLDenoiseStep(),
        ...     StableDiffusionXLDecodeStep(),
        ...     lambda images, prompts: images.mean((1, 2, 3)),
        ... )
        >>> [output.name for output in block.intermediate_outputs]
        ['latents', 'rewards']
    """

    def __init__(
        self,
        denoise: ModularPipelineBlocks,
        decode: ModularPipelineBlocks,
        reward: Any,
        search: str | SearchConfig = "fk",
        *,
        num_images: int = 1,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.model_name = denoise.model_name
        self._denoise, self._decode = denoise, decode
        self._reward = load_reward(reward)
        self._search, self._num_images, self._settings = search, num_images, settings

    def __deepcopy__(self, memo: dict[int, Any]) -> SteeredDenoise:
        # a pipeline copies its blocks, and the weights of the reward should not be there twice
        denoise, decode = copy.deepcopy(self._denoise, memo), copy.deepcopy(self._decode, memo)
        return SteeredDenoise(
            denoise, decode, self._reward, self._search, num_images=self._num_images, **copy.deepcopy(self._settings)
        )

    @property
    def description(self) -> str:
        """What the block does."""
        return f"Steers by {self._reward.card.name}: {self._denoise.description}"

    @property
    def expected_components(self) -> list[Any]:
        """Those of both blocks."""
        own = list(self._denoise.expected_components)
        return [*own, *(one for one in self._decode.expected_components if one not in own)]

    @property
    def expected_configs(self) -> list[Any]:
        """Those of both blocks."""
        own = list(self._denoise.expected_configs)
        return [*own, *(one for one in self._decode.expected_configs if one not in own)]

    @property
    def inputs(self) -> list[Any]:
        """Those of the denoising block, what decoding reads besides, and the prompt, which the reward reads."""
        own = list(self._denoise.inputs)
        known = {one.name for one in own} | {"latents", "output_type", "prompt"}
        decoding = [one for one in self._decode.inputs if one.name not in known]
        return [*own, *decoding, InputParam("prompt", required=True, description="Texts that the reward reads.")]

    @property
    def intermediate_outputs(self) -> list[Any]:
        """The chosen latents and their rewards `(G, n)`."""
        own = [one for one in self._denoise.intermediate_outputs if one.name not in ("latents", "rewards")]
        latents = OutputParam("latents", type_hint=Tensor, description="Chosen latents, best first for each prompt.")
        return [*own, latents, OutputParam("rewards", type_hint=Tensor, description="Their rewards, (G, n) float32.")]

    @torch.no_grad()
    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        """Denoise, steered.

        Raises:
            ValueError: where the batch is no multiple of the prompts, and for what the search refuses.
        """
        prompts = [prompt] if isinstance(prompt := state.get("prompt"), str) else list(prompt or ())
        latents: Tensor = state.get("latents")
        if not prompts or len(latents) % len(prompts):
            raise ValueError(f"The batch of {len(latents)} latents is no multiple of {len(prompts)} prompts.")
        loop = SteeredLoop(
            self._search,
            self._reward,
            prompts,
            lambda samples: self._images(components, state, samples),
            num_particles=len(latents) // len(prompts),
            num_images=self._num_images,
            generators=resampling_generators(state.get("generator"), len(prompts), device=latents.device),
            **self._settings,
        )
        if state.get("eta") is None and loop.config.default_eta is not None:
            state.set("eta", loop.config.default_eta)
        denoise, rows = _watched(self._denoise)
        # a pipeline of blocks holds its components as any pipeline does
        caches = CacheStates(components, resizes=can_resize(loop.population))
        caches.reset()
        with loop.steering(components.scheduler, row_states=[rows, caches, GuiderStates(components)]):
            components, state = denoise(components, state)
        result = loop.finish(state.get("latents"))
        state.set("latents", result.samples)
        state.set("rewards", result.rewards)
        return components, state

    def _images(self, components: Any, state: PipelineState, samples: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` of clean samples, by the pipeline's own block, on a state of its own."""
        dtype = state.get("latents").dtype
        aside = PipelineState(dict(state.values), {name: list(keys) for name, keys in state.kwargs_mapping.items()})
        aside.set("latents", samples.to(dtype))
        aside.set("output_type", "pt")
        _, aside = self._decode(components, aside)
        images: Tensor = aside.get("images")
        return images.float()


class _LoopRows(ModularPipelineBlocks):
    """A block inside the loop that does nothing but show its state, whose tensors have a row for each particle."""

    def __init__(self) -> None:
        super().__init__()
        self._block_state: Any = None

    @property
    def description(self) -> str:
        return "Lets what the loop keeps follow the particles."

    def __call__(self, components: Any, block_state: Any, **indices: Any) -> tuple[Any, Any]:  # noqa: ARG002
        self._block_state = block_state
        return components, block_state

    def gather(self, take: Callable[[Tensor], Tensor], num_rows: int) -> None:
        """Let embeddings, masks and noise follow; latents and predictions go through `scheduler.step` already."""

        def gathered(tensor: Tensor) -> Tensor:
            return take(tensor) if tensor.ndim > 1 and len(tensor) == num_rows else tensor

        values = vars(self._block_state)
        values.update({name: map_tensors(gathered, value) for name, value in values.items()})


def _watched(block: ModularPipelineBlocks) -> tuple[Any, _LoopRows]:
    """A copy of the block, with a block that shows the state as the first one of each loop in it."""
    watched, rows = copy.deepcopy(block), _LoopRows()
    loops = list(_loops(watched))
    if not loops:
        raise ValueError(f"{type(block).__name__} has no loop of blocks in it, so that it cannot be steered.")
    for loop in loops:
        loop.sub_blocks = type(loop.sub_blocks)({"steered_rows": rows, **loop.sub_blocks})
    return watched, rows


def _loops(block: Any) -> Any:
    if isinstance(block, LoopSequentialPipelineBlocks):
        yield block
    for inner in (getattr(block, "sub_blocks", None) or {}).values():
        yield from _loops(inner)
