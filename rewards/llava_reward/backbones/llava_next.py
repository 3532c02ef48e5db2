"""LLaVA-NeXT (LLaVA 1.6) as a backbone: its preprocessing, transformers' own model without head, and its spec."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from fk_reward.rewards.llava_reward.backbones.base import (
    CLIP_LARGE,
    CLIP_TINY,
    TEXT_TINY,
    Backbone,
    BackboneInputs,
    BackboneSpec,
    OfficialLayout,
    byte_tokenizer,
)
from fk_reward.rewards.preprocessing import ImagePreprocessing
from fk_reward.rewards.prompt_limits import control_tokens, refuse_control_tokens
from fk_reward.rewards.weights import load_headless

if TYPE_CHECKING:
    from transformers import LlavaNextConfig, LlavaNextModel, PreTrainedTokenizerBase

_PLACEHOLDER = "{prompt}"


@dataclass(frozen=True, kw_only=True)
class AnyResTransform:
    """What transformers' `LlavaNextImageProcessor` does to a PIL image, done to a tensor.

    The resolution of the grid that fits the image best is chosen; the image is resized into it with its aspect
    kept, centred on black, and cut into square crops, row by row. Before them comes the complete image, squeezed into
    one crop. 8-bit tensors give what PIL images give; for floating ones see `ImagePreprocessing`.

    Attributes:
        crop_size: side of a crop in pixels, the input size of the vision tower.
        grid_pinpoints: resolutions (height, width) of the grid, multiples of `crop_size`.
        pixels: filter of the resizing and normalisation; its sizes are None.

    Example:
        >>> pixels = ImagePreprocessing(size=None, crop_size=None, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> transform = AnyResTransform(crop_size=4, grid_pinpoints=((4, 8), (8, 4)), pixels=pixels)
        >>> transform(torch.ones(3, 5, 10)).shape  # the whole image, the left and the right half
        torch.Size([3, 3, 4, 4])
    """

    crop_size: int
    grid_pinpoints: tuple[tuple[int, int], ...]
    pixels: ImagePreprocessing

    def __post_init__(self) -> None:
        """Refuse a grid that cannot be cut into crops."""
        sides = [side for resolution in self.grid_pinpoints for side in resolution]
        if not sides or any(side <= 0 or side % self.crop_size for side in sides):
            raise ValueError(
                f"grid_pinpoints must be resolutions (height, width) in multiples of crop_size={self.crop_size}, "
                f"got {self.grid_pinpoints}."
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> AnyResTransform:
        """Read the content of a `preprocessor_config.json`.

        Raises:
            ValueError: when `size` and `crop_size` are not one square, there is no grid, or as
                `ImagePreprocessing.from_config`.

        Example:
            >>> config = {"size": {"shortest_edge": 336}, "crop_size": 336, "image_grid_pinpoints": [[336, 672]]}
            >>> AnyResTransform.from_config(config).grid_pinpoints
            ((336, 672),)
        """
        pixels = ImagePreprocessing.from_config(config)
        side = pixels.crop_size[0] if pixels.crop_size else 0
        if pixels.crop_size != (side, side) or pixels.size not in (side, (side, side)):
            raise ValueError(f"size and crop_size must be one square, got {pixels.size} and {pixels.crop_size}.")
        return cls(
            crop_size=side,
            grid_pinpoints=tuple((height, width) for height, width in config.get("image_grid_pinpoints", ())),
            pixels=dataclasses.replace(pixels, size=None, crop_size=None),
        )

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], *, revision: str = "main") -> AnyResTransform:
        """Read the settings of a hub repository or folder, through transformers' own lookup.

        Raises:
            OSError: when there is no `preprocessor_config.json`.
            ValueError: as `from_config`.
        """
        from transformers import ImageProcessingMixin

        config, _ = ImageProcessingMixin.get_image_processor_dict(path, revision=revision)
        return cls.from_config(config)

    def __call__(self, image: Tensor) -> Tensor:
        """Cut an image into crops and normalise them.

        Args:
            image: (3, H, W), floating in [0, 1] or uint8.

        Returns:
            (N, 3, P, P) of the same dtype (float32 for uint8) and device: the whole image, then the crops row by row.

        H, W: height and width, P: `crop_size`, N: 1 + number of crops in the chosen resolution.
        """
        whole = self._resize(image, (self.crop_size, self.crop_size))
        return self.pixels(torch.cat([whole.unsqueeze(0), self._cut(self._fit(image))]))

    def _fit(self, image: Tensor) -> Tensor:
        """(3, h, w), the image in the middle of the best resolution; an odd margin is wider at the end."""
        from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
        from transformers.image_utils import ChannelDimension

        resolution = select_best_resolution(tuple(image.shape[-2:]), list(self.grid_pinpoints))
        shape = get_patch_output_size(image, resolution, input_data_format=ChannelDimension.FIRST)
        vertical, horizontal = (total - part for total, part in zip(resolution, shape, strict=True))
        left, top = horizontal // 2, vertical // 2
        return functional.pad(self._resize(image, shape), (left, horizontal - left, top, vertical - top))

    def _cut(self, canvas: Tensor) -> Tensor:
        """(N - 1, 3, P, P), row by row."""
        side = self.crop_size
        return canvas.unflatten(2, (-1, side)).unflatten(1, (-1, side)).permute(1, 3, 0, 2, 4).flatten(0, 1)

    def _resize(self, image: Tensor, shape: tuple[int, int]) -> Tensor:
        return dataclasses.replace(self.pixels, size=shape).resize(image.unsqueeze(0)).squeeze(0)


class LlavaNextBackbone(Backbone):
    """`llava-hf/llava-v1.6-vicuna-13b-hf` and its siblings (vicuna 7b, mistral 7b).

    A prompt is read as the official code of LLaVA-Reward writes it (`GeneralRewardDataset_llava` in
    `llava_reward/datasets/reward_dataset.py` of `sjz5202/LLaVA-Reward`): the user's turn of the checkpoint's chat
    template, image first, cut right after the prompt, then the end-of-sequence token. For vicuna that is
    "USER: <image>", a line break, the prompt and "</s>". The official code pads on the left; with rotary positions the
    states of the real tokens are the same.

    Layers of the vision tower behind the last one whose features are used are dropped.

    Args:
        model: transformers' model; put into evaluation mode and frozen, in place.
        tokenizer: its tokenizer, with a chat template.
        transform: preprocessing of its images.

    Raises:
        ValueError: when tokenizer or transform do not fit the model; it says in what.

    Example:
        >>> backbone = LlavaNextBackbone.from_pretrained("llava-hf/llava-v1.6-vicuna-13b-hf")  # doctest: +SKIP
        >>> inputs = backbone.prepare([image], ["a red cube"])  # doctest: +SKIP
        >>> tokens = backbone.project(backbone.encode_images(inputs), inputs, backbone.projector)  # doctest: +SKIP
        >>> backbone.language_model(**backbone.language_arguments(inputs, tokens))  # doctest: +SKIP
    """

    model_type: ClassVar[str] = "llava_next"
    norm_eps: ClassVar[float] = 1e-5
    accepts_uint8: ClassVar[bool] = True
    model: LlavaNextModel

    def __init__(self, model: LlavaNextModel, tokenizer: PreTrainedTokenizerBase, transform: AnyResTransform) -> None:
        super().__init__()
        _check_fit(model.config, transform)
        self.model = model
        self.tokenizer = tokenizer
        self.transform = transform
        self._prefix = _prompt_prefix(tokenizer, model.config.image_token_id)
        self._feature_layers = _feature_layers(model.config)
        encoder = model.vision_tower.encoder  # layers after the last one that is read would only cost time
        encoder.layers = encoder.layers[: max(self._feature_layers)]
        self.freeze()

    @classmethod
    def from_pretrained(  # type: ignore[override]  # names its options
        cls,
        path: str | os.PathLike[str],
        *,
        torch_dtype: torch.dtype = torch.float32,
        attn_implementation: str = "sdpa",
        device_map: str | dict[str, Any] | None = None,
        quantization_config: Any = None,
        revision: str = "main",
    ) -> LlavaNextBackbone:
        """Load a hub repository or folder, whose weights may have the names of before transformers 5.

        It has no preprocessing options: the grid is part of the checkpoint.
        """
        from transformers import LlavaNextModel

        model = load_headless(
            LlavaNextModel,
            path,
            revision=revision,
            dtype=torch_dtype,
            attn_implementation=attn_implementation,
            device_map=device_map,
            quantization_config=quantization_config,
        )
        transform = AnyResTransform.from_pretrained(path, revision=revision)
        return cls(model, _load_tokenizer(path, revision=revision), transform)

    @property
    def language_model(self) -> nn.Module:
        """The Llama or Mistral transformer."""
        return self.model.language_model

    @property
    def projector(self) -> nn.Module:
        """Linear-GELU-Linear on each patch."""
        return self.model.multi_modal_projector

    @property
    def options(self) -> dict[str, Any]:
        """Empty: the grid is part of the checkpoint."""
        return {}

    def prepare(self, images: Sequence[Tensor], prompts: Sequence[str]) -> BackboneInputs:
        """Cut the images into crops and tokenise the prompts, with as many image tokens as the crops will give.

        Args:
            images: B tensors (3, H, W), floating in [0, 1] or uint8, of any sizes.
            prompts: B strings.

        Returns:
            `pixel_values` (N, 3, P, P), the crops of all images one after the other; `extras` has `image_sizes`, B
            times (H, W), and `num_crops`, B numbers.

        Raises:
            ValueError: when a prompt contains a control token, or there are not as many prompts as images.

        B: number of images, N: number of crops of all of them, P: side of a crop.
        """
        refuse_control_tokens(prompts, control_tokens(self.tokenizer))
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        rows = [self._tokenize(prompt, self._num_tokens(size)) for prompt, size in zip(prompts, sizes, strict=True)]
        input_ids = pad_sequence(rows, batch_first=True).to(self.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        crops = [self.transform(image) for image in images]
        return BackboneInputs(
            input_ids=input_ids,
            attention_mask=torch.arange(input_ids.shape[1], device=self.device) < lengths[:, None],
            image_mask=input_ids == self.model.config.image_token_id,
            pixel_values=torch.cat(crops),
            extras={"image_sizes": sizes, "num_crops": [len(crop) for crop in crops]},
        )

    def encode_images(self, inputs: BackboneInputs) -> Tensor:
        """Run the vision tower once over all crops.

        Returns:
            (N, L, C), the features of the L patches of each crop from the layers that the configuration names.
        """
        tower = self.model.vision_tower
        states = tower(inputs.pixel_values.to(tower.dtype), output_hidden_states=True).hidden_states
        features = torch.cat([states[layer] for layer in self._feature_layers], dim=-1)
        return features[:, 1:] if self.model.config.vision_feature_select_strategy == "default" else features

    def project(self, features: Tensor, inputs: BackboneInputs, projector: nn.Module) -> Tensor:
        """Project each patch; put the crops of an image together, without its margins, a newline after each row."""
        packed, _ = self.model.pack_image_features(
            projector(features).split(inputs.extras["num_crops"]),
            inputs.extras["image_sizes"],
            vision_feature_select_strategy=self.model.config.vision_feature_select_strategy,
            image_newline=self.model.image_newline,
        )
        return torch.cat(packed)

    def language_arguments(self, inputs: BackboneInputs, visual_tokens: Tensor) -> dict[str, Any]:
        """Embeddings without cache and mask."""
        # Padding is on the right, which causal attention never sees; without a mask, faster kernels can be used.
        return {"inputs_embeds": self.embed_tokens(inputs, visual_tokens), "use_cache": False}

    def _num_tokens(self, size: tuple[int, int]) -> int:
        """Visual tokens of an image: those of the complete image, and rows without margins, with a newline each."""
        from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

        config = self.model.config
        side = config.vision_config.image_size // config.vision_config.patch_size
        grid = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, config.vision_config.image_size)
        # Only its shape counts: `unpad_image` removes the margins as it will from the features.
        canvas = torch.empty(1, grid[0] * side, grid[1] * side, device="meta")
        rows, columns = unpad_image(canvas, size).shape[1:]
        return side * side + rows * (columns + 1)

    def _tokenize(self, prompt: str, num_visual_tokens: int) -> Tensor:
        """(S,) token ids of the user's turn, the one image token repeated."""
        image_token = self.model.config.image_token_id
        ids: list[int] = self.tokenizer(self._prefix + prompt + self.tokenizer.eos_token)["input_ids"]
        if ids.count(image_token) != 1:
            name = self.tokenizer.convert_ids_to_tokens(image_token)
            raise ValueError(f"A prompt must not contain {name!r}, the placeholder of the image; got {prompt!r}.")
        place = ids.index(image_token)
        return torch.tensor([*ids[:place], *[image_token] * num_visual_tokens, *ids[place + 1 :]])


def _check_fit(config: LlavaNextConfig, transform: AnyResTransform) -> None:
    """Refuse a transform that belongs to another model."""
    expected = config.vision_config.image_size, tuple(tuple(resolution) for resolution in config.image_grid_pinpoints)
    if (transform.crop_size, transform.grid_pinpoints) != expected:
        raise ValueError(
            "The image processor does not fit the model: crop size and grid must be "
            f"{expected}, got {(transform.crop_size, transform.grid_pinpoints)}."
        )


def _prompt_prefix(tokenizer: PreTrainedTokenizerBase, image_token_id: int) -> str:
    """What the chat template writes before the prompt, the image token included."""
    if tokenizer.chat_template is None:
        raise ValueError("The tokenizer has no chat template; the checkpoint needs a chat_template.json or .jinja.")
    content = [{"type": "text", "text": _PLACEHOLDER}, {"type": "image"}]
    turn = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    prefix, found, _ = turn.partition(_PLACEHOLDER)
    image_token = tokenizer.convert_ids_to_tokens(image_token_id)
    if not found or image_token is None or prefix.count(image_token) != 1:
        raise ValueError(
            f"The chat template must write the image token (id {image_token_id}: {image_token!r}) once and then the "
            f"prompt, got {turn!r}."
        )
    return prefix


def _load_tokenizer(path: str | os.PathLike[str], *, revision: str) -> PreTrainedTokenizerBase:
    """The tokenizer with the chat template of the checkpoint's processor, where that has one."""
    from transformers import AutoTokenizer, LlavaNextProcessor

    tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
    processor, _ = LlavaNextProcessor.get_processor_dict(path, revision=revision)
    tokenizer.chat_template = processor.get("chat_template") or tokenizer.chat_template
    return tokenizer


def _feature_layers(config: LlavaNextConfig) -> list[int]:
    """Indices of the features among the tower's hidden states; number 0 is the input of the first layer."""
    layers = config.vision_feature_layer
    layers = [layers] if isinstance(layers, int) else layers
    return [layer % (config.vision_config.num_hidden_layers + 1) for layer in layers]


def _random(sizes: Mapping[str, Any]) -> LlavaNextBackbone:
    from transformers import LlavaNextConfig, LlavaNextModel

    image_token = "<image>"  # noqa: S105 (no password)
    texts = "{% for part in messages[0]['content'] if part['type'] == 'text' %}{{ part['text'] }} {% endfor %}"
    tokenizer = byte_tokenizer(image_token, chat_template=f"USER: {image_token}\n{texts}")
    side = sizes["vision_config"]["image_size"]
    grid = [[rows * side, columns * side] for rows, columns in _HUB_GRID]
    config = LlavaNextConfig(
        **sizes, image_token_id=tokenizer.convert_tokens_to_ids(image_token), image_grid_pinpoints=grid
    )
    processor = {"size": {"shortest_edge": side}, "crop_size": side, "image_grid_pinpoints": grid}
    return LlavaNextBackbone(LlavaNextModel(config), tokenizer, AnyResTransform.from_config(processor))


_HUB_GRID = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
"""`image_grid_pinpoints` of the hub's checkpoint, height and width in crops."""

LLAVA_NEXT = BackboneSpec(
    backbone=LlavaNextBackbone,
    hub_id="llava-hf/llava-v1.6-vicuna-13b-hf",
    memory="27 GB in bfloat16",
    official=OfficialLayout(
        folder_word="llava",
        projector="multi_modal_projector",
        projector_keys=("linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias"),
        query="q_proj",
        attends_to=None,
    ),
    full_size={
        "text_config": {
            "model_type": "llama",
            "hidden_size": 5120,
            "intermediate_size": 13824,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
            "num_key_value_heads": 40,
            "vocab_size": 32064,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
        },
        "vision_config": CLIP_LARGE,
    },
    tiny={"text_config": TEXT_TINY | {"model_type": "llama"}, "vision_config": CLIP_TINY},
    build=_random,
)
