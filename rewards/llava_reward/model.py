"""LLaVA-Reward's network: one frozen backbone and, for each dimension, a LoRA adapter, a projector and a head."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from fk_reward.rewards.llava_reward.adapters import NO_ADAPTER, AdapterSet
from fk_reward.rewards.llava_reward.backbones.base import Backbone, BackboneInputs
from fk_reward.rewards.llava_reward.checkpoint import CheckpointMismatchError, RewardCheckpoint
from fk_reward.rewards.llava_reward.config import LlavaRewardConfig
from fk_reward.rewards.llava_reward.head import RewardHead
from fk_reward.rewards.preprocessing import unit_float
from fk_reward.rewards.prompt_limits import num_positions, require_positions


class LlavaRewardModel(nn.Module):
    """r(i, t) = g(SkipCA(e_h, e_v)) for any number of dimensions on one backbone (arXiv 2507.21391, section 3).

    Dimensions are kept under keys that the caller chooses. What they share, the backbone, is in memory once; switching
    is the adapter, the projector and the head together.

    Args:
        backbone: the multimodal LLM; frozen.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.projectors = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        self.configs: dict[str, LlavaRewardConfig] = {}
        self.origin: str | None = None  # files of the backbone, for checkpoints that belong to one backbone alone
        self.sources: dict[str, str] = {}  # file and revision of a dimension -> its key, so that none is attached twice
        self.adapters = AdapterSet(backbone.language_model)

    def attach(self, key: str, checkpoint: RewardCheckpoint) -> None:
        """Add a dimension.

        Args:
            key: a new name without dots.
            checkpoint: its weights. An empty projector starts from the backbone's, an empty LoRA or head from a new
                initialisation for training.

        Raises:
            ValueError: when the key is taken or the weights do not fit the backbone; it says which.
        """
        config = checkpoint.config
        if key in self.configs or "." in key:
            raise ValueError(
                f"Expected a new key without dots, got {key!r}; taken: {', '.join(self.configs) or 'none'}."
            )
        if config.backbone != self.backbone.model_type:
            raise ValueError(
                f"The adapter is for backbone {config.backbone!r} ({config.base_model}), but this backbone is "
                f"{self.backbone.model_type!r}."
            )
        # A copy: the official code trains the projector with each dimension, and the backbone must keep its own.
        projector = _loaded(copy.deepcopy(self.backbone.projector), checkpoint.projector, "projector")
        head = _loaded(_make_head(self.backbone, config), checkpoint.head, "head")
        if checkpoint.lora_config is not None:
            self.adapters.add(key, checkpoint.lora_config, checkpoint.lora or None)
        self.projectors[key] = projector.eval().requires_grad_(False)
        self.heads[key] = head.eval().requires_grad_(False).to(self.backbone.device)
        self.configs[key] = config

    def forward(
        self,
        images: Sequence[Tensor],
        prompts: Sequence[str],
        keys: Sequence[str],
        *,
        prepared_by: Backbone | None = None,
    ) -> list[Tensor]:
        """Read images and prompts in one pass for all dimensions named in `keys`; the vision tower runs once.

        Args:
            images: B tensors (3, H, W), float32 in [0, 1] or uint8, of any sizes.
            prompts: B strings.
            keys: D' dimensions, as attached.
            prepared_by: what `Backbone.with_options` made of the backbone; the backbone itself if not given.

        Returns:
            For each key (B, d) float32, the head's raw output.

        Raises:
            ValueError: when image and prompt have more tokens than the backbone has positions, and as
                `Backbone.prepare`.
        """
        inputs = (prepared_by or self.backbone).prepare(images_for(self.backbone, images), prompts)
        lengths = inputs.attention_mask.sum(dim=1).tolist()
        require_positions(lengths, prompts, num_positions(self.backbone.language_model.config))
        # The tower is frozen and the same for all dimensions: run it once.
        features = self.backbone.encode_images(inputs)
        visual = [self._project(features, inputs, key) for key in keys]
        hidden = self._last_hidden(inputs, visual, keys)
        padded = _padded(inputs, visual)
        return [self._read(key, states, *tokens) for key, states, tokens in zip(keys, hidden, padded, strict=True)]

    def _project(self, features: Tensor, inputs: BackboneInputs, key: str) -> Tensor:
        """(T, D) visual tokens, computed in the projector's dtype: one in training is wider than its backbone."""
        projector = self.projectors[key]
        dtype = next((weight.dtype for weight in projector.parameters() if weight.is_floating_point()), features.dtype)
        return self.backbone.project(features.to(dtype), inputs, projector)

    def _last_hidden(self, inputs: BackboneInputs, visual: list[Tensor], keys: Sequence[str]) -> Sequence[Tensor]:
        """For each key (B, D): the last layer's state at the last real token, all keys in one batch of rows."""
        arguments = stack_rows([self.backbone.language_arguments(inputs, tokens) for tokens in visual])
        batch = len(inputs.input_ids)
        names = [key if key in self.adapters.names else NO_ADAPTER for key in keys for _ in range(batch)]
        states = self.adapters(arguments, names).last_hidden_state
        rows = torch.arange(len(states), device=states.device)
        return states[rows, inputs.last_token.repeat(len(keys)).to(states.device)].split(batch)

    def _read(self, key: str, hidden: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        # The official Qwen rewards find no visual token (see `LlavaRewardConfig.attends_to`): so does an empty mask.
        if self.configs[key].attends_to == "nothing":
            mask = torch.zeros_like(mask)
        head = self.heads[key]
        device = next(head.parameters()).device  # with a device_map, the last layer may be on another GPU
        return head(hidden.to(device), tokens.to(device), mask.to(device))

    def train_dimension(self, key: str, *, projector: bool = True) -> None:
        """Let gradients reach one dimension's LoRA, head and projector; freeze everything else.

        Trained weights become float32, since bfloat16 cannot resolve the steps of an optimizer; the backbone keeps its
        dtype.

        Args:
            key: the dimension.
            projector: whether its projector is trained.
        """
        self.requires_grad_(False)
        if key in self.adapters.names:
            self.adapters.activate(key)
        trained = [*self.adapters.parameters_of(key).values(), *self.heads[key].parameters()]
        for weight in [*trained, *(self.projectors[key].parameters() if projector else ())]:
            # Through `.data`: PEFT and the optimizer hold references to the parameter itself.
            weight.data = weight.data.to(torch.promote_types(weight.dtype, torch.float32))
            weight.requires_grad_(True)

    def checkpoint(self, key: str, state_dict: Mapping[str, Tensor] | None = None) -> RewardCheckpoint:
        """The weights of one dimension, on the CPU, as `attach` takes them.

        Args:
            key: the dimension.
            state_dict: weights by their names in this module, such as those gathered from several processes; the
                module's own by default.
        """
        weights = self.state_dict() if state_dict is None else state_dict
        lora = self._lora_names(key)
        return RewardCheckpoint(
            config=self.configs[key],
            lora_config=self.adapters.config(key) if lora else None,
            lora=_detached({name: weights[path] for name, path in lora.items()}),
            projector=_detached(_below(weights, f"projectors.{key}.")),
            head=_detached(_below(weights, f"heads.{key}.")),
        )

    def restore(self, key: str, checkpoint: RewardCheckpoint) -> None:
        """Copy a checkpoint's weights into an attached dimension; dtypes and `requires_grad` stay as they are.

        Raises:
            CheckpointMismatchError: a ValueError, when the checkpoint has another configuration.
            ValueError: when it has other weights.
        """
        if checkpoint.config != self.configs[key]:
            raise CheckpointMismatchError(
                f"The checkpoint is of another kind: {checkpoint.config}, expected {self.configs[key]}."
            )
        own = self.adapters.parameters_of(key)
        if own.keys() != checkpoint.lora.keys():
            raise ValueError(f"The checkpoint's LoRA adapts other modules than dimension {key!r} does.")
        _loaded(self.projectors[key], checkpoint.projector, "projector")
        _loaded(self.heads[key], checkpoint.head, "head")
        with torch.no_grad():
            for name, weight in own.items():
                weight.copy_(checkpoint.lora[name])

    def _lora_names(self, key: str) -> dict[str, str]:
        """Map the names of an adapter's weights in a checkpoint to those in this module's state dict."""
        language_model = self.backbone.language_model
        # PEFT swaps layers inside the language model, so its own path in this module stays what it was.
        place = next(name for name, module in self.named_modules() if module is language_model)
        return {name: f"{place}.{path}" for name, path in self.adapters.parameter_names(key).items()}


def images_for(backbone: Backbone, images: Sequence[Tensor]) -> list[Tensor]:
    """Images as a backbone takes them: on its device, and floating where it does not take 8-bit ones.

    Args:
        backbone: that will read them.
        images: B tensors (3, H, W), float32 in [0, 1] or uint8, of any sizes.

    Example:
        >>> from fk_reward.rewards.llava_reward.backbones.base import random_backbone
        >>> [image.dtype for image in images_for(random_backbone("phi3_v"), [torch.zeros(3, 2, 2, dtype=torch.uint8)])]
        [torch.uint8]
    """
    moved = [image.to(backbone.device) for image in images]
    return moved if backbone.accepts_uint8 else [unit_float(image) for image in moved]


def stack_rows(arguments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join the keyword arguments of several calls of a language model into those of one call.

    Tensors are joined along the batch axis: the first one, except for `position_ids`, where it is the last but one,
    since rotary embeddings in three sections have (3, B, S). Anything else must be the same in all calls.

    Example:
        >>> call = {"attention_mask": torch.ones(2, 5), "position_ids": torch.ones(3, 2, 5), "use_cache": False}
        >>> {name: tuple(value.shape) for name, value in stack_rows([call, call]).items() if name != "use_cache"}
        {'attention_mask': (4, 5), 'position_ids': (3, 4, 5)}
    """
    first = arguments[0]
    if len(arguments) == 1:
        return dict(first)

    def join(name: str) -> Any:
        if not isinstance(first[name], Tensor):
            return first[name]
        axis = first[name].ndim - 2 if name == "position_ids" else 0
        return torch.cat([call[name] for call in arguments], dim=axis)

    return {name: join(name) for name in first}


def _make_head(backbone: Backbone, config: LlavaRewardConfig) -> RewardHead:
    return RewardHead(
        backbone.hidden_size,
        value_head_dim=config.value_head_dim,
        cross_attention=config.cross_attention,
        eps=backbone.norm_eps,
    )


def _padded(inputs: BackboneInputs, visual: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """For each dimension its visual tokens (B, N, D) and their mask (B, N), True at real ones."""
    counts = inputs.num_visual_tokens
    lengths = torch.tensor(counts, device=visual[0].device)
    mask = torch.arange(max(counts), device=lengths.device) < lengths[:, None]
    if len(set(counts)) == 1:  # images of one size: nothing to pad, so nothing to copy
        return [(tokens.unflatten(0, (len(counts), -1)), mask) for tokens in visual]
    return [(pad_sequence(list(tokens.split(counts)), batch_first=True), mask) for tokens in visual]


def _loaded(module: nn.Module, weights: Mapping[str, Tensor], what: str) -> nn.Module:
    """Copy weights into a module; an error says what is missing, unexpected or of another size."""
    if not weights:  # left empty: the module keeps its initial weights
        return module
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"The checkpoint's {what} does not fit this backbone: {error}") from error
    return module


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _detached(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # copy=True: weights on the CPU would otherwise go on changing with the training.
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in weights.items()}
