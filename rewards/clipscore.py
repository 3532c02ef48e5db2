"""CLIPScore: cosine between the CLIP embeddings of image and prompt."""

from __future__ import annotations

import dataclasses
import html
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from fk_reward.models import resolve_model
from fk_reward.rewards.base import Reward, RewardCard
from fk_reward.rewards.kept_batches import KeptBatches
from fk_reward.rewards.known_biases import BAG_OF_WORDS, READS_TEXT
from fk_reward.rewards.precision import in_loaded_dtype
from fk_reward.rewards.preprocessing import ImagePreprocessing
from fk_reward.rewards.prompt_limits import TruncationLog
from fk_reward.rewards.registry import RewardEntry
from fk_reward.rewards.text_cache import TextCache
from fk_reward.rewards.weights import load_complete

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer

HESSEL_PREFIX = "A photo depicts "
"""What Hessel et al. put before each caption; their public code has it with the space."""

_HESSEL_WEIGHT = 2.5

_CARD = RewardCard(
    name="clipscore",
    summary="cosine of CLIP ViT-L/14 image and text embeddings",
    typical_range=(0.1, 0.35),
    spread=0.02,
    spread_source="an order of magnitude from common experience with ViT-L/14, not measured",
    differentiable=True,
    max_prompt_tokens=77,
    looks_at="the central square",
    blind_to=("edges",),
    biases=(BAG_OF_WORDS, READS_TEXT),
    licence="MIT (github.com/openai/CLIP)",
    source="Hessel et al. 2021, arXiv 2104.08718, without its factor 2.5 and clipping at 0",
    weights="openai/clip-vit-large-patch14",
    memory="1.7 GB in float32, 0.9 GB in float16",
)

_OTHER_CARD = RewardCard(
    name="clipscore",
    summary="cosine of CLIP image and text embeddings",
    typical_range=(-1.0, 1.0),
    differentiable=True,
    weights="given by the caller",
    memory="that of the model",
)

_SHAPES_CARD = RewardCard(
    name="shapes-clipscore",
    summary="cosine of a small CLIP trained on 64x64 scenes of coloured shapes",
    typical_range=(-1.0, 1.0),
    spread=0.07,
    spread_source="among eight finished images of a held-out prompt: examples/shapes/check_predictions.py early",
    differentiable=True,
    max_prompt_tokens=16,
    looks_at="the central square",
    blind_to=("edges",),
    licence="Apache-2.0",
    source="trained by the scripts in examples/shapes",
    weights="in the package",
    memory="5 MB in float32",
)


def clean_prompt(prompt: str) -> str:
    """Mend a prompt as OpenAI's and OpenCLIP's tokenizers do before they split it (`basic_clean` in both).

    Broken encodings and curly quotes are mended by ftfy, HTML entities are resolved twice, blanks at the ends removed.
    transformers' tokenizer does none of this.

    Example:
        >>> clean_prompt(" the dog\u2019s bone &amp;amp; a cafÃ© ")
        "the dog's bone & a café"
    """
    import ftfy

    return html.unescape(html.unescape(ftfy.fix_text(prompt))).strip()


def clip_score(image_embeddings: Tensor, text_embeddings: Tensor, *, scale: float = 1.0) -> Tensor:
    """Cosine similarity of paired embeddings times `scale`, computed in float32.

    Args:
        image_embeddings: (B, D), any length.
        text_embeddings: (B, D), any length.
        scale: factor on the cosine.

    Returns:
        (B,) float32 in [-scale, scale].

    Example:
        >>> clip_score(torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 2.0], [3.0, 4.0]]), scale=100.0)
        tensor([  0., 100.])

    B: number of pairs, D: dimension of the embeddings.
    """
    # In float32, after half-precision towers: images of one prompt differ by hundredths.
    image_embeddings, text_embeddings = (
        functional.normalize(x.float(), dim=-1) for x in (image_embeddings, text_embeddings)
    )
    return scale * (image_embeddings * text_embeddings).sum(dim=-1)


class CLIPScore(Reward):
    """Cosine similarity of image and prompt under a CLIP model, times `scale`.

    Plain cosine (`scale=1`) is the convention of Singhal et al. 2025 (arXiv 2501.06848) and the unit of the
    cards; `scale=100` gives the figures that torchmetrics and many tables print. `hessel=True` is the definition of
    Hessel et al. 2021 (arXiv 2104.08718): 2.5 max(cosine, 0), with "A photo depicts " before each prompt; theirs is of
    ViT-B/32. Differentiable with respect to the images (where that maximum is not 0); the weights are frozen.

    Args:
        model: transformers' `CLIPModel`; put into evaluation mode and frozen, in place.
        tokenizer: its tokenizer.
        preprocessing: resizing, crop and normalisation of its image tower: images (B, 3, H, W) in [0, 1] to its input;
            also uint8 images where it has a true attribute `accepts_uint8`.
        scale: factor on the score, positive; the card's range and spread are multiplied by it.
        hessel: use the published definition instead of the plain cosine.
        clean: whether prompts go through `clean_prompt`; None for what the authors did: with `hessel` only.
        batch_size: number of images scored at once; None for all of one size.
        card: facts about the weights, in the unit of the plain cosine.

    Attributes:
        text_cache: embeddings of the texts that were read last, for the next calls.

    Raises:
        ValueError: when `scale` is not positive.

    Example:
        >>> reward = CLIPScore.from_pretrained("openai/clip-vit-base-patch32", scale=100.0)  # doctest: +SKIP
        >>> scores = reward(images, "a photo of a cat")  # doctest: +SKIP
    """

    half_dtype = torch.float16

    def __init__(  # noqa: PLR0913 (options of one reward)
        self,
        model: CLIPModel,
        tokenizer: CLIPTokenizer,
        *,
        preprocessing: Callable[[Tensor], Tensor],
        scale: float = 1.0,
        hessel: bool = False,
        clean: bool | None = None,
        batch_size: int | None = None,
        card: RewardCard | None = None,
    ) -> None:
        if not scale > 0:
            raise ValueError(f"scale must be positive, got {scale}.")
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.preprocessing = preprocessing
        self.accepts_uint8 = getattr(preprocessing, "accepts_uint8", False)
        self.scale = scale
        self.hessel = hessel
        self.clean = hessel if clean is None else clean
        self.batch_size = batch_size
        self.max_tokens: int = model.config.text_config.max_position_embeddings
        card = dataclasses.replace(card or _OTHER_CARD, max_prompt_tokens=self.max_tokens)
        self.card = scale_card(_hessel_card(card) if hessel else card, scale)
        self.text_cache = TextCache()
        self._truncation = TruncationLog(tokenizer, max_tokens=self.max_tokens, name=self.card.name)
        self._tokens = KeptBatches()

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        *,
        torch_dtype: torch.dtype | None = None,
        scale: float = 1.0,
        hessel: bool = False,
        batch_size: int | None = None,
        revision: str = "main",
        card: RewardCard | None = None,
    ) -> CLIPScore:
        """Load model, tokenizer and preprocessing from a hub repository or folder in the layout of transformers.

        Args:
            model: hub id or folder.
            torch_dtype: dtype of the weights; None for float32, which becomes float16 on a CUDA device.
            scale: as for the class.
            hessel: as for the class.
            batch_size: as for the class.
            revision: branch, tag or commit of the hub repository.
            card: facts about the weights; by default a card that names the model and leaves its spread open.

        Raises:
            OSError: when files are missing.
            ValueError: for a checkpoint of another architecture or without all weights, and when the image processor
                does something that `ImagePreprocessing` does not reproduce.
        """
        from transformers import CLIPModel, CLIPTokenizer

        reward = cls(
            load_complete(CLIPModel, model, dtype=torch_dtype or torch.float32, revision=revision),
            CLIPTokenizer.from_pretrained(model, revision=revision),
            preprocessing=ImagePreprocessing.from_pretrained(model, revision=revision),
            scale=scale,
            hessel=hessel,
            batch_size=batch_size,
            card=card or dataclasses.replace(_OTHER_CARD, weights=str(model)),
        )
        return in_loaded_dtype(reward, torch_dtype)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Encode each image, and each distinct prompt unless it was encoded before."""
        distinct = list(dict.fromkeys(prompts))  # particles share a prompt: encode it once
        rows = torch.tensor([distinct.index(prompt) for prompt in prompts], device=images.device)
        scores = clip_score(self.embed_images(images), self._embed_prompts(distinct)[rows], scale=self.scale)
        return _HESSEL_WEIGHT * scores.clamp(min=0) if self.hessel else scores

    def modules_to_compile(self) -> list[nn.Module]:
        """The image tower."""
        return [self.model.vision_model]

    def embed_images(self, images: Tensor) -> Tensor:
        """CLIP's embeddings `(B, D)` of images `(B, 3, H, W)` in [0, 1]; `selection="diverse"` compares them."""
        pixel_values = self.preprocessing(images).to(self.model.dtype)
        return self.model.get_image_features(pixel_values=pixel_values).pooler_output

    def _embed_prompts(self, prompts: list[str]) -> Tensor:
        # What the tokens depend on, as far as a caller may change it.
        key = (tuple(prompts), self.hessel, self.clean, self.max_tokens)
        tokens = self._tokens.get(key, lambda: self._tokenize(prompts))
        towers = [self.model.text_model, self.model.text_projection]
        return self.text_cache.get(tokens, self._encode, towers=towers)

    def _tokenize(self, prompts: list[str]) -> dict[str, Tensor]:
        prompts = [HESSEL_PREFIX + prompt for prompt in prompts] if self.hessel else prompts
        prompts = [clean_prompt(prompt) for prompt in prompts] if self.clean else prompts
        options = {"padding": True, "truncation": True, "max_length": self.max_tokens, "return_tensors": "pt"}
        # "<|endoftext|>" in a prompt is text: as a token, it would silently end the prompt there.
        tokens = self.tokenizer(prompts, split_special_tokens=True, **options)
        self._truncation.check(prompts, tokens["attention_mask"])
        return dict(tokens)

    def _encode(self, tokens: Mapping[str, Tensor]) -> Tensor:
        ids, mask = (tokens[name].to(self.model.device) for name in ("input_ids", "attention_mask"))
        return self.model.get_text_features(ids, attention_mask=mask).pooler_output


def scale_card(card: RewardCard, factor: float) -> RewardCard:
    """Say of `factor` times a score what a card says of the score.

    Example:
        >>> scale_card(RewardCard(name="cosine", summary="a cosine", typical_range=(0.1, 0.3)), 10.0).typical_range
        (1.0, 3.0)
    """
    low, high = card.typical_range
    spread = None if card.spread is None else card.spread * factor
    return dataclasses.replace(card, typical_range=(low * factor, high * factor), spread=spread)


def _hessel_card(card: RewardCard) -> RewardCard:
    low, high = card.typical_range
    clipped = dataclasses.replace(
        card,
        summary=f"2.5 times the {card.summary}, at least 0",
        typical_range=(max(low, 0.0), high),
        source="Hessel et al. 2021, arXiv 2104.08718",
    )
    return scale_card(clipped, _HESSEL_WEIGHT)


def _build_clipscore(
    *,
    model: str = _CARD.weights,
    torch_dtype: torch.dtype | None = None,
    scale: float = 1.0,
    hessel: bool = False,
    batch_size: int | None = None,
    revision: str = "main",
) -> CLIPScore:
    card = _CARD if model == _CARD.weights else dataclasses.replace(_CARD, weights=str(model))
    return CLIPScore.from_pretrained(
        model,
        torch_dtype=torch_dtype,
        scale=scale,
        hessel=hessel,
        batch_size=batch_size,
        revision=revision,
        card=card,
    )


def _build_shapes_clipscore(
    *, torch_dtype: torch.dtype = torch.float32, scale: float = 1.0, batch_size: int | None = None
) -> CLIPScore:
    model = resolve_model("shapes-clip")
    return CLIPScore.from_pretrained(
        model, torch_dtype=torch_dtype, scale=scale, batch_size=batch_size, card=_SHAPES_CARD
    )


CLIPSCORE = RewardEntry(_CARD, _build_clipscore)
SHAPES_CLIPSCORE = RewardEntry(_SHAPES_CARD, _build_shapes_clipscore)
