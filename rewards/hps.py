"""HPS v2 and v2.1: OpenCLIP ViT-H-14 fine-tuned to tell which of two images people prefer for a prompt."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass

import torch

from fk_reward.rewards.base import RewardCard
from fk_reward.rewards.clipscore import CLIPScore
from fk_reward.rewards.known_biases import ARTEFACTS
from fk_reward.rewards.open_clip import clip_from_open_clip
from fk_reward.rewards.precision import in_loaded_dtype
from fk_reward.rewards.preprocessing import ImagePreprocessing, PaddedPreprocessing
from fk_reward.rewards.registry import RewardEntry
from fk_reward.rewards.weights import read_state_dict

_REPOSITORY = "xswu/HPSv2"
_TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # of the model that HPS was fine-tuned from; xswu/HPSv2 has none


@dataclass(frozen=True)
class _HpsLoader:
    """Loads the weights of one version.

    Attributes:
        card: facts about the version.
        file: its name in the hub repository.
    """

    card: RewardCard
    file: str

    def __call__(
        self,
        *,
        weights: str | os.PathLike[str] | None = None,
        tokenizer: str | os.PathLike[str] = _TOKENIZER,
        antialias: bool = True,
        torch_dtype: torch.dtype | None = None,
        batch_size: int | None = None,
        revision: str = "main",
    ) -> CLIPScore:
        """Load the reward.

        Args:
            weights: file in the layout of the official one; None for the one on the hub.
            tokenizer: hub id or folder of the `CLIPTokenizer`.
            antialias: as for `PaddedPreprocessing`.
            torch_dtype: dtype of the weights; None for float32, which becomes float16 on a CUDA device.
            batch_size: number of images scored at once; None for all of one size.
            revision: branch, tag or commit of the weights on the hub.

        Raises:
            OSError: when files are missing.
            ValueError: when the weights are not a ViT-H-14, or the tokenizer is that of another model.
        """
        from transformers import CLIPTokenizer

        model = clip_from_open_clip(read_state_dict(weights or self._download(revision)))
        model = model.to(torch_dtype or torch.float32)
        text_config, clip_tokenizer = model.config.text_config, CLIPTokenizer.from_pretrained(tokenizer)
        # CLIP reads the state at the end token: with another id, it would read that of a wrong position.
        if clip_tokenizer.eos_token_id != text_config.eos_token_id:
            raise ValueError(
                f"The tokenizer {tokenizer} ends prompts with token {clip_tokenizer.eos_token_id}, "
                f"the weights expect {text_config.eos_token_id}, the last of their vocabulary."
            )
        preprocessing = _preprocessing(model.config.vision_config.image_size, antialias=antialias)
        card = self.card if weights is None else dataclasses.replace(self.card, weights=str(weights))
        # Its authors' OpenCLIP mends prompts before it splits them.
        reward = CLIPScore(
            model, clip_tokenizer, preprocessing=preprocessing, clean=True, batch_size=batch_size, card=card
        )
        return in_loaded_dtype(reward, torch_dtype)

    def _download(self, revision: str) -> str:
        from huggingface_hub import hf_hub_download

        return hf_hub_download(_REPOSITORY, self.file, revision=revision)


def _preprocessing(size: int, *, antialias: bool) -> PaddedPreprocessing:
    clip = ImagePreprocessing.from_config({})
    return PaddedPreprocessing(size=size, mean=clip.mean, std=clip.std, antialias=antialias)


def _entry(name: str, file: str, *, trained_on: str) -> RewardEntry:
    card = RewardCard(
        name=name,
        summary=f"how people would rank the image for its prompt; a CLIP ViT-H/14 trained on {trained_on}",
        typical_range=(0.15, 0.35),  # models average 0.233 to 0.279 in the table of its README.md
        spread=0.008,
        spread_source="mean of 100 prompts with 200 finished images each: 0.0074 on SDXL, 0.0080 on FLUX.1-dev, by the "
        "scores that github.com/TerrysLearning/TTSnap publishes as hpsv2, without saying of which version",
        differentiable=True,
        max_prompt_tokens=77,
        looks_at="the whole image, padded to a square",
        biases=(ARTEFACTS,),
        licence="Apache-2.0 (github.com/tgxs002/HPSv2)",
        source="Wu et al. 2023, arXiv 2306.09341; hpsv2/img_score.py of github.com/tgxs002/HPSv2",
        weights=f"{file} of {_REPOSITORY}",
        memory="3.9 GB in float32, 2.0 GB in float16",
    )
    return RewardEntry(card, _HpsLoader(card, file))


HPSV2 = _entry("hpsv2", "HPS_v2_compressed.pt", trained_on="HPD v2")
HPSV2_1 = _entry("hpsv2.1", "HPS_v2.1_compressed.pt", trained_on="data of higher quality than HPD v2")
