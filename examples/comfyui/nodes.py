"""The nodes. ComfyUI reads the two mappings at the end."""

from __future__ import annotations

import dataclasses
from typing import Any

import comfy.model_management
import comfy.model_sampling
import comfy.samplers
import yaml
from torch import Tensor

from fk_reward import load_reward
from fk_reward.pipelines import loop_searches

from .steered_sampling import STEPS, Steering, sample_steered

REWARD = "FK_REWARD"
_PROMPT = (
    "STRING",
    {"multiline": True, "default": "", "tooltip": "What the reward reads; usually the positive prompt."},
)


class LoadReward:
    """A reward by its name, or an expression of several."""

    RETURN_TYPES = (REWARD,)
    FUNCTION = "load"
    CATEGORY = "fk_reward"
    DESCRIPTION = "imagereward, hpsv2.1, pickscore, llava-reward-alignment, 0.7*imagereward + 0.3*aesthetic, ..."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        """Widgets."""
        return {"required": {"name": ("STRING", {"default": "imagereward"})}}

    def load(self, name: str) -> tuple[Any]:
        """Load it onto ComfyUI's device."""
        return (load_reward(name.strip()).to(comfy.model_management.get_torch_device()),)


class SteeredSampler:
    """A sampler for SamplerCustom and SamplerCustomAdvanced that steers the whole batch of one prompt."""

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "make"
    CATEGORY = "fk_reward"
    DESCRIPTION = "The batch size of the latents is the number of particles; num_images of them come back, best first."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """Widgets."""
        settings = "Settings of the search, one a line, such as reward_scale: 10"
        return {
            "required": {
                "reward": (REWARD,),
                "vae": ("VAE",),
                "prompt": _PROMPT,
                "search": (list(loop_searches()), {"default": "fk"}),
                "num_images": ("INT", {"default": 1, "min": 1, "max": 4096}),
                "steps": (list(STEPS), {"default": STEPS[0], "tooltip": "Searches that copy need stochastic steps."}),
                "settings": ("STRING", {"multiline": True, "default": "", "tooltip": settings}),
            }
        }

    def make(  # noqa: PLR0913 (one parameter for each widget)
        self, reward: Any, vae: Any, prompt: str, search: str, num_images: int, steps: str, settings: str
    ) -> tuple[Any]:
        """The sampler; it runs when a sampling node calls it."""
        if not prompt.strip():
            raise ValueError("The reward needs a prompt: write the positive prompt into the sampler node, too.")
        steering = Steering(
            reward=reward,
            prompt=prompt,
            decode=vae.decode,
            search=search,
            settings=_parsed(settings),
            num_images=num_images,
            steps=steps,
        )
        return (comfy.samplers.KSAMPLER(_sample, {"steering": steering}),)


class ScoreImages:
    """Rewards of images, as text and as the order in which the images come out."""

    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("best_first", "rewards")
    FUNCTION = "score"
    CATEGORY = "fk_reward"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """Widgets."""
        return {"required": {"reward": (REWARD,), "images": ("IMAGE",), "prompt": _PROMPT}}

    def score(self, reward: Any, images: Tensor, prompt: str) -> tuple[Tensor, str]:
        """Score `(B, H, W, 3)`, and sort them."""
        rewards = reward(images.movedim(-1, 1).clamp(0, 1), prompt).cpu()
        order = rewards.argsort(descending=True, stable=True)
        return images[order.to(images.device)], "\n".join(f"{value:.4f}" for value in rewards[order].tolist())


def _sample(model: Any, x: Tensor, sigmas: Tensor, **options: Any) -> Tensor:
    """`sample_steered` with what only ComfyUI knows: the kind of the model, and where its weights are."""
    guider = model.inner_model
    is_flow = isinstance(guider.inner_model.model_sampling, comfy.model_sampling.CONST)
    patcher = getattr(guider, "model_patcher", None)

    def bring_back() -> None:
        """Decoding may have moved the model off a small device; nothing happens where it stayed."""
        if patcher is not None:
            comfy.model_management.load_models_gpu([patcher])

    steering = dataclasses.replace(options.pop("steering"), after_scoring=bring_back)
    return sample_steered(model, x, sigmas, steering=steering, is_flow=is_flow, **options)


def _parsed(settings: str) -> dict[str, Any]:
    """Settings, one a line, as `name: value`.

    Raises:
        ValueError: for anything else.
    """
    found = yaml.safe_load(settings) if settings.strip() else {}
    if not isinstance(found, dict):
        raise ValueError(f"settings should be lines such as `reward_scale: 10`, got {settings!r}.")
    return {str(name): tuple(value) if isinstance(value, list) else value for name, value in found.items()}


NODE_CLASS_MAPPINGS = {
    "FKLoadReward": LoadReward,
    "FKSteeredSampler": SteeredSampler,
    "FKScoreImages": ScoreImages,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "FKLoadReward": "Load Reward (fk-reward)",
    "FKSteeredSampler": "Steered Sampler (fk-reward)",
    "FKScoreImages": "Score Images (fk-reward)",
}
