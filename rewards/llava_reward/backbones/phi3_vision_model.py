"""Phi-3.5-vision without its language-model head, built from transformers' `Phi3Model` and `CLIPVisionModel`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, Phi3Config, Phi3Model
from transformers.models.phi3.modeling_phi3 import Phi3PreTrainedModel, Phi3RotaryEmbedding

from fk_reward.rewards.llava_reward.backbones.base import CLIP_LARGE

EMBEDDING_LAYER = {
    "embedding_cls": "image",
    "hd_transform_order": "sub_glb",
    "projection_cls": "mlp",
    "use_hd_transform": True,
    "with_learnable_separator": True,
}
"""`embd_layer` of the hub's config.json, the only way of embedding images that is implemented."""


class PhiVisionConfig(Phi3Config):
    """The `config.json` of `microsoft/Phi-3.5-vision-instruct`.

    The file says nothing of its CLIP tower but the name, so the sizes of ViT-L/14 at 336 pixels are built in; a key
    `vision_config` with settings of `CLIPVisionConfig` overrides them.

    Raises:
        ValueError: when the file configures another way of embedding images than the hub's.

    Example:
        >>> image = {"img_processor": {"image_dim_out": 1024}, "embd_layer": dict(EMBEDDING_LAYER)}
        >>> factors = {"type": "su", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
        >>> config = PhiVisionConfig(rope_scaling=factors, original_max_position_embeddings=4096, **image)
        >>> config.rope_parameters["rope_type"], config.rope_parameters["original_max_position_embeddings"]
        ('longrope', 4096)
        >>> config.vision_config.image_size, config.crop_tokens
        (336, 12)
    """

    model_type = "phi3_v"
    sub_configs: ClassVar[dict[str, type]] = {"vision_config": CLIPVisionConfig}

    img_processor: dict[str, Any] | None = None
    embd_layer: dict[str, Any] | None = None
    vision_config: Any = None

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.vision_config, CLIPVisionConfig):
            self.vision_config = CLIPVisionConfig(**{**CLIP_LARGE, **(self.vision_config or {})})
        super().__post_init__(**kwargs)
        self._check_image_embedding()

    def convert_rope_params_to_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Standardise `rope_scaling`, once more after transformers has renamed its type `su` to `longrope`."""
        kwargs = super().convert_rope_params_to_dict(*args, **kwargs)
        self.standardize_rope_params()
        return kwargs

    @property
    def crop_tokens(self) -> int:
        """Side of the square of visual tokens that a crop becomes: patches are merged two by two."""
        return self.vision_config.image_size // self.vision_config.patch_size // 2

    @property
    def feature_layer(self) -> int:
        """Number of layers of the CLIP tower whose output is read; the hub's `layer_idx` of -2 leaves out the last."""
        index = (self.img_processor or {}).get("layer_idx", -2)
        return index if index >= 0 else self.vision_config.num_hidden_layers + 1 + index

    def _check_image_embedding(self) -> None:
        embedding, processor = self.embd_layer or {}, self.img_processor or {}
        different = {key: embedding.get(key) for key, value in EMBEDDING_LAYER.items() if embedding.get(key) != value}
        if different:
            raise ValueError(f"config.json: embd_layer must be {EMBEDDING_LAYER}, got {different}.")
        if processor.get("type_feature", "patch") != "patch":
            raise ValueError(f"config.json: img_processor's type_feature must be 'patch', got {processor}.")
        if processor.get("image_dim_out") != self.vision_config.hidden_size:
            raise ValueError(
                "config.json: img_processor's image_dim_out must be the width of the CLIP tower, "
                f"{self.vision_config.hidden_size}, got {processor.get('image_dim_out')}."
            )


class RowwiseRotaryEmbedding(Phi3RotaryEmbedding):
    """LongRoPE whose short or long factors are chosen for each row, by the largest position in it.

    transformers chooses once for a batch, so that a long row would change the states of the short rows beside it.
    """

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, each (B, S, head_dim), for position_ids (B, S); of `x` only dtype and device count."""
        embed_row = super().forward
        cosines, sines = zip(*(embed_row(x, row[None]) for row in position_ids), strict=True)
        return torch.cat(cosines), torch.cat(sines)


class PhiLanguageModel(Phi3Model):
    """`Phi3Model` whose rows do not depend on each other's length."""

    def __init__(self, config: PhiVisionConfig) -> None:
        super().__init__(config)
        self.rotary_emb = RowwiseRotaryEmbedding(config)


class PhiImageEmbedding(nn.Module):
    """CLIP tower, learnt separators and projector; attributes are named as the hub's weights.

    Does what `Phi3ImageEmbedding` in the hub's `modeling_phi3_v.py` does up to the projector, which is called apart.
    """

    def __init__(self, config: PhiVisionConfig) -> None:
        super().__init__()
        clip_config = copy.deepcopy(config.vision_config)
        clip_config.num_hidden_layers = config.feature_layer  # later layers are never read
        width = 4 * clip_config.hidden_size
        self.crop_tokens = config.crop_tokens
        self.img_processor = CLIPVisionModel(clip_config)
        self.glb_GN = nn.Parameter(torch.zeros(1, 1, width))
        self.sub_GN = nn.Parameter(torch.zeros(1, 1, 1, width))
        self.img_projection = nn.Sequential(
            nn.Linear(width, config.hidden_size), nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)
        )

    def forward(self, crops: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
        """Encode all crops at once and lay out each image's features as the projector reads them.

        Args:
            crops: (N, 3, crop_size, crop_size), for each image the global crop and then rows * columns others.
            grids: rows and columns of each image.

        Returns:
            (T, 4C): for each image its crops as one image, line by line with a separator after each; a separator; the
            global crop in the same way.

        Of an image of one crop the global crop is the same image, and goes through the tower once.

        N: crops of all images, P: patches of a crop, T: visual tokens of all images, C: width of the CLIP tower.
        """
        distinct, order = _distinct_crops(grids)
        if len(distinct) == len(order):
            return self.lay_out(self.encode(crops), grids)
        return self.lay_out(self.encode(crops[distinct])[order], grids)

    def encode(self, crops: Tensor) -> Tensor:
        """(N, 3, crop_size, crop_size) -> (N, P, C), the tower's features of the patches of each crop."""
        return self.img_processor(crops.to(self.glb_GN)).last_hidden_state[:, 1:]  # without the class token

    def lay_out(self, patches: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
        """(N, P, C) features of patches -> (T, 4C) in the projector's order; `forward` has the rest."""
        images = patches.split([1 + rows * columns for rows, columns in grids])
        parts: list[Tensor] = []
        for image, (rows, columns) in zip(images, grids, strict=True):
            parts += [self._lines(image[1:], rows, columns), self.glb_GN[0], self._lines(image[:1], 1, 1)]
        return torch.cat(parts)

    def num_tokens(self, rows: int, columns: int) -> int:
        """Number of visual tokens of an image of rows * columns crops besides the global one."""
        # Patches, merged 2 x 2, of all crops; a separator for each line of the two images; one between the images.
        side = self.crop_tokens
        return (rows * columns + 1) * side**2 + (rows + 1) * side + 1

    def _lines(self, patches: Tensor, rows: int, columns: int) -> Tensor:
        """(rows * columns, (2 side)^2, C) -> (rows * side * (columns * side + 1), 4C), 2 x 2 patches to a token."""
        side = self.crop_tokens
        blocks = patches.reshape(rows, columns, side, 2, side, 2, -1).permute(0, 2, 1, 4, 3, 5, 6)
        lines = blocks.reshape(rows * side, columns * side, -1)
        return torch.cat([lines, self.sub_GN[0].expand(rows * side, 1, -1)], dim=1).flatten(0, 1)


def _distinct_crops(grids: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Places of the crops that differ, and for each crop of all images which of these it is.

    Example:
        >>> _distinct_crops([(1, 1), (1, 2)])
        ([0, 2, 3, 4], [0, 0, 1, 2, 3])
    """
    distinct: list[int] = []
    order: list[int] = []
    for rows, columns in grids:
        place, crops = len(order), 1 + rows * columns
        different = 1 if crops == 2 else crops  # a single crop and the global crop show the same pixels
        order += [len(distinct) + min(crop, different - 1) for crop in range(crops)]
        distinct += range(place, place + different)
    return distinct, order


class PhiVisionModel(Phi3PreTrainedModel):
    """The two halves of the model, held together for loading, placement and quantisation; it has no forward.

    Load it with `key_mapping=PhiVisionModel.hub_keys`. Not loaded are the language-model head, the CLIP layers after
    the one that is read, and `wte`, a second name of the token embedding in some checkpoints.
    """

    config_class = PhiVisionConfig
    # Phi3's prefix, "model", names the attribute that holds the base model; here none does.
    base_model_prefix = ""
    _no_split_modules: ClassVar[list[str]] = ["Phi3DecoderLayer", "PhiImageEmbedding"]
    hub_keys: ClassVar[dict[str, str]] = {
        r"^model\.vision_embed_tokens\.img_processor\.vision_model\.": "vision_embed_tokens.img_processor.",
        r"^model\.vision_embed_tokens\.": "vision_embed_tokens.",
        r"^model\.": "language_model.",
    }

    def __init__(self, config: PhiVisionConfig) -> None:
        super().__init__(config)
        self.language_model = PhiLanguageModel(config)
        self.vision_embed_tokens = PhiImageEmbedding(config)
        unread = range(config.feature_layer, config.vision_config.num_hidden_layers)
        unread_layers = [rf"^vision_embed_tokens\.img_processor\.encoder\.layers\.{layer}\." for layer in unread]
        self._keys_to_ignore_on_load_unexpected = [r"^lm_head\.", r"^vision_embed_tokens\.wte\.", *unread_layers]
        self.post_init()
