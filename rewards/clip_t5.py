"""CLIP-FlanT5, the model of VQAScore's paper, from transformers' T5 and CLIP, and its processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    BatchFeature,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    T5Config,
)
from transformers import T5ForConditionalGeneration as T5
from transformers.modeling_outputs import Seq2SeqLMOutput

from fk_reward.rewards.preprocessing import ImagePreprocessing, SquarePreprocessing
from fk_reward.rewards.t5_tokenizer import load_t5_tokenizer
from fk_reward.rewards.weights import WRAPPED_NAMES, check_complete

IMAGE_TOKEN = "<image>"  # noqa: S105 (no password)
IMAGE_ID = -200
"""Placeholder of a visual token in `input_ids`; not an id of the vocabulary."""

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""Message that the official code puts before the question ("t5_chat" of `linzhiqiu/t2v_metrics`)."""


class ClipT5(T5):
    """T5 whose encoder reads the patches of a CLIP tower, through two linear layers, in the midst of the text.

    Lin et al. 2024 (arXiv 2404.01291). The features are those of the tower's last layer but one, without class token.

    Args:
        config: T5's configuration with `mm_vision_config`, the keyword arguments of `CLIPVisionConfig`, and
            `mm_vision_select_layer`.
    """

    def __init__(self, config: T5Config) -> None:
        super().__init__(config)
        vision = CLIPVisionConfig(**config.mm_vision_config)
        self.vision_tower = CLIPVisionModel(vision)
        self.mm_projector = nn.Sequential(
            nn.Linear(vision.hidden_size, config.d_model), nn.GELU(), nn.Linear(config.d_model, config.d_model)
        )
        self.post_init()

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor,
        pixel_values: Tensor,
        decoder_input_ids: Tensor,
        use_cache: bool = False,
    ) -> Seq2SeqLMOutput:
        """Put the visual tokens where `input_ids` has `IMAGE_ID`, and run T5.

        Args:
            input_ids: (B, S), with as many `IMAGE_ID` in each row as the tower has patches.
            attention_mask: (B, S), 1 at real tokens.
            pixel_values: (B, 3, P, P), preprocessed.
            decoder_input_ids: (B, T).
            use_cache: whether to keep keys and values.

        B: number of images, S, T: lengths of the texts, P: side of the tower's input.
        """
        states = self.vision_tower(pixel_values, output_hidden_states=True).hidden_states
        visual = self.mm_projector(states[self.config.mm_vision_select_layer][:, 1:])
        embeddings = self.shared(input_ids.clamp(min=0))  # IMAGE_ID is negative; its rows are overwritten below
        mask = (input_ids == IMAGE_ID).unsqueeze(-1).expand_as(embeddings)
        return super().forward(
            inputs_embeds=embeddings.masked_scatter(mask, visual.to(embeddings)),
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            use_cache=use_cache,
        )


class ClipT5Processor:
    """The interface of a processor that `AnswerModel` uses, for CLIP-FlanT5.

    Args:
        tokenizer: T5's.
        pixels: preprocessing of the CLIP tower, to squares.
        num_patches: number of visual tokens of an image.
    """

    image_token = IMAGE_TOKEN
    chat_template = "t5_chat"
    reads_whole_answers = True  # its authors' score: the geometric mean of P("Yes") and P(end)

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pixels: ImagePreprocessing, *, num_patches: int) -> None:
        self.tokenizer = tokenizer
        self.pixels = pixels
        self.num_patches = num_patches

    def apply_chat_template(
        self, turns: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool, tokenize: bool
    ) -> str:
        """Write system message, image and question as the official code does; both flags as `AnswerModel` has them.

        Raises:
            ValueError: for `tokenize=True`, or a text without generation prompt.
        """
        if tokenize or not add_generation_prompt:
            raise ValueError("CLIP-FlanT5's template only writes a text that ends in the generation prompt.")
        parts = {turn["role"]: [entry.get("text", IMAGE_TOKEN) for entry in turn["content"]] for turn in turns}
        system = "".join(parts.get("system", [SYSTEM]))
        image_first = parts["user"][0] == IMAGE_TOKEN
        user = ("\n" if image_first else "").join(parts["user"])
        return f"{system} USER: {user} ASSISTANT: "

    def pixel_transform(self, images: Tensor) -> Tensor:
        """Pad to a square of CLIP's mean colour, as LLaVA does, resize and normalise.

        Args:
            images: (B, 3, H, W), floating in [0, 1] or uint8.

        Returns:
            (B, 3, P, P).
        """
        return SquarePreprocessing(self.pixels)(images)

    def __call__(
        self, *, images: Sequence[Sequence[Image.Image]], text: Sequence[str], padding: bool, return_tensors: str
    ) -> BatchFeature:
        """Tokenise the texts before and after the image, each with its end of sequence, as the official code does.

        Args:
            images: one image for each text, which is not read: `pixel_transform` makes the pixels.
            text: B texts with one "<image>" each.
            padding: True.
            return_tensors: "pt".
        """
        rows = [torch.tensor(self._token_ids(x)) for x in text]
        input_ids = pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
        return BatchFeature({"input_ids": input_ids, "attention_mask": mask})

    def _token_ids(self, text: str) -> list[int]:
        before, after = (self.tokenizer(part)["input_ids"] for part in text.split(IMAGE_TOKEN))
        return [*before, *[IMAGE_ID] * self.num_patches, *after]


_SETTINGS = {"mm_projector_type": "mlp2x_gelu", "mm_vision_select_feature": "patch"}
"""Settings of the published checkpoints, the only ones that are supported."""

_NAMES = {r"^vision_tower\.vision_tower\.(vision_model\.)?": "vision_tower."}
"""Names of the files -> names of `ClipT5`."""


def is_clip_t5(config: Mapping[str, Any]) -> bool:
    """Whether the content of a config.json is that of a CLIP-FlanT5, which calls itself "t5" on the hub.

    Example:
        >>> is_clip_t5({"model_type": "t5"}), is_clip_t5({"model_type": "t5", "mm_vision_tower": "openai/clip"})
        (False, True)
    """
    return config.get("model_type") in ("t5", "clip_t5") and "mm_vision_tower" in config


def load_clip_t5(path: str, *, revision: str = "main", **options: Any) -> tuple[ClipT5, ClipT5Processor]:
    """Load model and tokenizer, and the settings of the CLIP tower that the configuration names.

    Args:
        path: hub id or folder.
        revision: branch, tag or commit of the hub repository.
        options: as in `PreTrainedModel.from_pretrained`.

    Raises:
        OSError: when files are missing.
        ValueError: for another projector than the published one, or a checkpoint that lacks weights.
    """
    config, vision = _read_config(path, revision=revision)
    model, info = ClipT5.from_pretrained(
        path,
        config=config,
        revision=revision,
        key_mapping={**WRAPPED_NAMES, **_NAMES},
        output_loading_info=True,
        **options,
    )
    check_complete(path, info)
    tokenizer = load_t5_tokenizer(path, revision=revision)
    if len(tokenizer) < config.vocab_size:  # the official code cuts the rows that no token has, before any softmax
        model.resize_token_embeddings(len(tokenizer))
    pixels = ImagePreprocessing.from_pretrained(config.mm_vision_tower)
    num_patches = (vision.image_size // vision.patch_size) ** 2
    return model, ClipT5Processor(tokenizer, pixels, num_patches=num_patches)


def _read_config(path: str, *, revision: str) -> tuple[T5Config, CLIPVisionConfig]:
    raw, _ = PreTrainedConfig.get_config_dict(path, revision=revision)
    for name, expected in _SETTINGS.items():
        if raw.get(name, expected) != expected:
            raise ValueError(f"{path}: {name} must be {expected!r}, got {raw[name]!r}.")
    vision = CLIPVisionConfig.from_pretrained(raw["mm_vision_tower"])
    settings = {"mm_vision_select_layer": -2, **raw, "model_type": "t5", "mm_vision_config": vision.to_dict()}
    return T5Config.from_dict(settings), vision
