"""Price lists: what a call's cost is worth, in sample steps or in operations of models of full size.

Two searches are compared at equal cost, and what costs the same depends on whose prices are paid: in a small model a
reward may cost as much as a step of the denoiser, in FLUX.1-dev a hundredth of one. A `PriceList` turns the cost in a
trace (`fk_reward.sampling.trace.Cost`) into one number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, FluxTransformer2DModel
from torch import Tensor

from fk_reward.planning import published_models as published
from fk_reward.planning.costs import PROMPT, watched
from fk_reward.planning.full_size_pipelines import FULL_SIZE_PIPELINES
from fk_reward.planning.full_size_rewards import default_dtype
from fk_reward.planning.meta_device import count_flops
from fk_reward.planning.planned_models import sized_reward
from fk_reward.rewards import reward_card
from fk_reward.rewards.composition.parser import is_composition, parse_expression
from fk_reward.rewards.noise_bands import BANDS_SUFFIX
from fk_reward.sampling.trace import Cost, SteeringTrace
from fk_reward.text import did_you_mean

TERA = 1e12

_SIDE = 1024
_DTYPE = torch.float16

BACKWARD = 1.0
"""A backward pass in forward passes of the same model, where the gradient is asked for at its input alone.

Of every matrix product of the forward pass the backward pass of a training makes two: for the gradient at the input of
a layer and for that of its weights, hence twice the operations (Kaplan et al. 2020, arXiv 2001.08361, section 2.1). A
guided step needs the first one only, and `torch.autograd.grad` makes no other. Counted on the meta device it is 0.87 to
0.98 of the forward pass, of SDXL's decoder with CLIPScore, ImageReward, LLaVA-Reward or VQAScore: rounded up to 1."""

RULES = ("none", "shapes-verifier", "shapes-verifier-graded")
"""Rewards without a model, which cost nothing here."""


@dataclass(frozen=True, kw_only=True)
class PriceList:
    """What the parts of a call cost, each in the same unit.

    Attributes:
        name: of the list.
        unit: of all prices.
        sample_step: one sample through one step of the denoiser, guidance included.
        decode: one image by the model's own decoder.
        preview: one image by its tiny decoder.
        rewards: name of a reward -> one image scored; None where rewards cost nothing. That of a model in the package
            (`shapes-clipscore`) is the price of the full-sized one (`clipscore`).
        backward: the backward pass of a decoding or scoring, as a share of its price; it is paid on top of that.

    Example:
        >>> from dataclasses import replace
        >>> cost = Cost(sample_steps=80, denoiser_rows=160, decodes=4, reward_calls=4, seconds=1.0, previews=0)
        >>> PRICES["sample-steps"].price(cost)
        80.0
        >>> round(PRICES["sdxl"].price(cost, reward="imagereward"), -1)
        1120.0
        >>> guided = replace(cost, decodes=16, reward_calls=16, gradients=12)
        >>> round(PRICES["sdxl"].price(guided, reward="imagereward"), -1)
        1380.0
    """

    name: str
    unit: str
    sample_step: float
    decode: float = 0.0
    preview: float = 0.0
    rewards: Mapping[str, float] | None = None
    backward: float = BACKWARD

    def price(self, cost: Cost, *, reward: str | None = None) -> float:
        """What a cost is worth, in `unit`, over all its prompts.

        Text encoders are left out: they run once a prompt, whatever the search.

        Args:
            cost: of a trace.
            reward: name of the reward, or a composition of names; not needed where rewards cost nothing.

        Raises:
            ValueError: for a reward without a price, or a cost of before sample steps, previews and backward passes
                were counted.
        """
        if cost.sample_steps is None or (self.decode and None in (cost.previews, cost.gradients)):
            raise ValueError(
                "This cost is of a trace that does not say how many sample steps, previews and backward passes there "
                "were: draw the images again."
            )
        previews, gradients = cost.previews or 0, cost.gradients or 0
        forward = self._scored(cost.decodes, previews, cost.reward_calls, reward)
        # a call with a preview decodes by it in all of its steps, in the guided ones, too
        backward = self._scored(gradients, min(gradients, previews), gradients, reward)
        return float(cost.sample_steps * self.sample_step + forward + self.backward * backward)

    def _scored(self, decodes: float, previews: float, reward_calls: float, reward: str | None) -> float:
        """Forward passes of decoder and reward; `previews` are among `decodes`."""
        decoded = (decodes - previews) * self.decode + previews * self.preview
        return decoded + reward_calls * self.reward_price(reward)

    def of(self, trace: SteeringTrace, *, reward: str | None = None) -> float:
        """What a run is worth, in `unit`, over all its prompts.

        Args:
            trace: of the run.
            reward: whose price is paid; None for the one that steered.

        Raises:
            ValueError: as `price`.
        """
        return self.price(trace.cost, reward=trace.reward_name if reward is None else reward)

    def image(self, num_steps: int, *, reward: str | None = None) -> float:
        """A plain image, drawn, decoded and scored: the unit in which `best of N` costs N.

        Example:
            >>> PRICES["sample-steps"].image(20)
            20.0
        """
        return num_steps * self.sample_step + self.decode + self.reward_price(reward)

    def reward_price(self, reward: str | None) -> float:
        """One image scored.

        Raises:
            ValueError: for a reward without a price; the message lists the known ones.

        Example:
            >>> PRICES["sdxl"].reward_price("clipscore + 0.5*imagereward") > PRICES["sdxl"].reward_price("clipscore")
            True
        """
        if self.rewards is None:
            return 0.0
        if reward is None:
            raise ValueError(f"The list {self.name!r} has prices of rewards: say which one, reward='clipscore'.")
        return sum(self._single_price(name) for name in _parts(reward))

    def _single_price(self, name: str) -> float:
        prices = self.rewards or {}
        known = name.removeprefix("shapes-").removesuffix(BANDS_SUFFIX)  # another adapter costs the same
        if name in RULES:
            return 0.0
        if known not in prices:
            raise ValueError(
                f"There is no price of reward {name!r}.{did_you_mean(known, prices)} Pass the name of the one whose "
                f"price is to be paid: {', '.join(prices)}."
            )
        return prices[known]


def _parts(reward: str) -> tuple[str, ...]:
    """The names in a composition, each once: a part that stands twice is asked once."""
    return tuple(parse_expression(reward, reward_card)[0].names) if is_composition(reward) else (reward,)


REWARD_TERAFLOP: dict[str, float] = {
    "aesthetic": 0.162,
    "aesthetic-v2.5": 0.6703,
    "blip-itm": 0.135,
    "clipscore": 0.1641,
    "cyclereward": 0.1574,
    "hpsv2": 0.3419,
    "hpsv2.1": 0.3419,
    "hpsv3": 13.09,
    "image-classifier": 0.03513,
    "imagereward": 0.1378,
    **dict.fromkeys((f"llava-reward-{one}" for one in ("alignment", "fidelity", "safety", "overall")), 28.44),
    **dict.fromkeys((f"llava-reward-{one}@qwen" for one in ("alignment", "fidelity", "safety", "overall")), 27.94),
    "llava-score": 9.743,
    "perspectivevision": 15.50,
    "pickscore": 0.3419,
    "q-align": 7.206,
    "shieldgemma-2": 15.16,
    "unified-reward": 7.978,
    "vqascore": 7.269,
}
"""Name -> 10¹² operations to score one image of 1024 x 1024 pixels."""

PRICES: dict[str, PriceList] = {
    "sample-steps": PriceList(name="sample-steps", unit="sample steps", sample_step=1.0),
    "sdxl": PriceList(
        name="sdxl", unit="TFLOP", sample_step=13.52, decode=10.47, preview=0.5654, rewards=REWARD_TERAFLOP
    ),
    "flux.1-dev": PriceList(
        name="flux.1-dev", unit="TFLOP", sample_step=74.38, decode=10.47, preview=0.5656, rewards=REWARD_TERAFLOP
    ),
}
"""Name -> prices; those in TFLOP are for images of 1024 x 1024 pixels, and were counted by `count_prices`.

SDXL runs with classifier-free guidance, two rows a sample; FLUX.1-dev reads its guidance as a number, one row. A
multiplication and an addition are two operations. `fk-reward prices --count` counts them again."""


def count_prices(name: str, *, rewards: tuple[str, ...] = ()) -> PriceList:
    """Count a price list anew, on the meta device: nothing is computed and nothing is downloaded.

    Args:
        name: `"sdxl"` or `"flux.1-dev"`.
        rewards: those to count; all of `REWARD_TERAFLOP` if none are named. A minute for all.

    Raises:
        ValueError: for another list, or a reward whose size is not known.
    """
    if name not in FULL_SIZE_PARTS:
        raise ValueError(f"Lists that can be counted are {', '.join(FULL_SIZE_PARTS)}; got {name!r}.")
    step, decode, preview = (count / TERA for count in FULL_SIZE_PARTS[name]())
    counted = {one: reward_operations(one) / TERA for one in rewards or tuple(REWARD_TERAFLOP)}
    return PriceList(name=name, unit="TFLOP", sample_step=step, decode=decode, preview=preview, rewards=counted)


def sdxl_parts() -> tuple[int, int, int]:
    """Operations of SDXL for one image of 1024 pixels: a step with guidance, the decoder, its tiny decoder."""
    pipe = FULL_SIZE_PIPELINES["sdxl"].make(dtype=_DTYPE)
    text = {"encoder_hidden_states": _empty(2, 77, 2048)}
    added = {"text_embeds": _empty(2, 1280), "time_ids": _empty(2, 6)}
    step = _operations(pipe.unet, _empty(2, 4, 128, 128), _empty(2), **text, added_cond_kwargs=added)
    return step, *_decoders(pipe.vae, latent_channels=4)


def flux_parts() -> tuple[int, int, int]:
    """Operations of FLUX.1-dev for one image of 1024 pixels: a step, the decoder, its tiny decoder."""
    num_patches, num_tokens = (_SIDE // 16) ** 2, published.FLUX_TEXT_TOKENS
    with torch.device("meta"), default_dtype(_DTYPE):
        transformer = FluxTransformer2DModel(**published.FLUX_TRANSFORMER)
        vae = AutoencoderKL(**published.FLUX_AUTOENCODER)
    step = _operations(
        transformer,
        hidden_states=_empty(1, num_patches, 64),
        encoder_hidden_states=_empty(1, num_tokens, 4096),
        pooled_projections=_empty(1, 768),
        timestep=_empty(1),
        img_ids=_empty(num_patches, 3),
        txt_ids=_empty(num_tokens, 3),
        guidance=_empty(1),
    )
    return step, *_decoders(vae, latent_channels=16)


FULL_SIZE_PARTS: dict[str, Callable[[], tuple[int, int, int]]] = {"sdxl": sdxl_parts, "flux.1-dev": flux_parts}
"""Name of a model -> what counts the operations of one sample step, one decoding and one preview."""


def reward_operations(name: str) -> int:
    """Operations of a reward of full size for one image of 1024 pixels and a short prompt.

    Args:
        name: registered name of a reward whose size is known.

    Raises:
        ValueError: for any other.

    Example:
        >>> round(reward_operations("clipscore") / 1e12, 2)
        0.16
    """
    return count_flops(sized_reward(name, device="meta"), _SIDE, PROMPT)


def _decoders(vae: AutoencoderKL, *, latent_channels: int) -> tuple[int, int]:
    latents = _empty(1, latent_channels, _SIDE // 8, _SIDE // 8)
    with torch.device("meta"), default_dtype(_DTYPE):
        tiny = AutoencoderTiny(latent_channels=latent_channels)
    return _operations(vae.decode, latents), _operations(tiny.decode, latents)


@torch.no_grad()
def _operations(run: Callable[..., Any], *args: Tensor, **kwargs: Any) -> int:
    with watched([]) as watch:
        run(*args, **kwargs)
    return watch.flops


def _empty(*shape: int, dtype: torch.dtype = _DTYPE) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
