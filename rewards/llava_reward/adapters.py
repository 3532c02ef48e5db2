"""LoRA adapters of one language model, held by PEFT: switched for a whole batch, or mixed row by row."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import peft
import torch
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

NO_ADAPTER = "__base__"
"""PEFT's name for the language model without adapter."""


class AdapterSet:
    """The adapters that have been put into a language model.

    PEFT wraps the linear layers that an adapter names, in place; their own weights are changed by `merge` alone, which
    keeps them and puts them back.

    Args:
        language_model: transformers model whose forward takes keyword arguments.
    """

    def __init__(self, language_model: nn.Module) -> None:
        self.language_model = language_model
        # Taken before PEFT wraps anything: afterwards each LoRA matrix and each base layer would be a Linear, too.
        self._sizes = {
            name: (module.in_features, module.out_features)
            for name, module in language_model.named_modules()
            if isinstance(module, nn.Linear)
        }
        self._peft: PeftModel | None = None
        self._merged: str | None = None
        self._kept: dict[nn.Parameter, Tensor] = {}  # weight of a layer -> its values before the merge, on the CPU

    @property
    def linear_modules(self) -> tuple[str, ...]:
        """Full names of all linear layers of the language model, which are those that LLaVA-Reward adapts."""
        return tuple(self._sizes)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters, in the order in which they were added."""
        return tuple(self._peft.peft_config) if self._peft is not None else ()

    def add(self, name: str, config: LoraConfig, weights: Mapping[str, Tensor] | None) -> None:
        """Put an adapter into the language model, frozen and not yet active.

        Args:
            name: new name.
            config: rank, scale and the full names of the modules.
            weights: "layers.0.self_attn.o_proj.lora_A.weight" and so on; None for PEFT's initialisation.

        Raises:
            ValueError: when the weights do not fit the language model or the configuration, or the configuration would
                change the language model's own weights; it says which.
        """
        self._refuse_merged("another adapter cannot be added")
        check_lora_settings(config.to_dict())
        if weights is not None:
            self._check_fit(weights)
        config = copy.deepcopy(config)  # PEFT rewrites target_modules in place
        if weights is not None:
            config.init_lora_weights = False  # skip an initialisation that the weights would overwrite
        # autocast_adapter_dtype=False: PEFT would widen bfloat16 adapters to float32 and so change scores and memory.
        if self._peft is None:
            with warnings.catch_warnings():
                # PEFT asks models for `is_gradient_checkpointing`, of which transformers 5 warns; it is up to PEFT.
                warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
                self._peft = PeftModel(self.language_model, config, adapter_name=name, autocast_adapter_dtype=False)
        else:
            self._peft.add_adapter(name, config, autocast_adapter_dtype=False)
        if weights is not None:
            self._load(name, weights)
            self._peft.peft_config[name].init_lora_weights = True  # False would be saved with the adapter
        # All dimensions share these weights: only `train_dimension` enables gradients, and only for its own.
        self._peft.requires_grad_(False)
        self._peft.train(self.language_model.training)  # PEFT adds modules in training mode, with dropout active

    def __call__(self, arguments: Mapping[str, Any], names: Sequence[str]) -> Any:
        """Run the language model, each row with its own adapter.

        Args:
            arguments: keyword arguments of the language model's forward, B rows.
            names: B names, or `NO_ADAPTER`. PEFT allows different names in one call in evaluation only.
        """
        if self._peft is None:
            return self.language_model(**arguments)
        if self._merged is not None:
            if set(names) != {self._merged}:
                self._refuse_merged(f"rows of {', '.join(sorted(set(names)))} cannot be run")
            return self.language_model(**arguments)
        if len(set(names)) > 1:
            with torch.compiler.set_stance("force_eager"):  # PEFT mixes by forward hooks, which compiled blocks skip
                return self._peft(**arguments, adapter_names=list(names))
        # One adapter for all rows: switching is faster than mixing, works while training, and keeps compiled blocks.
        if names[0] != NO_ADAPTER:
            self.activate(names[0])
        with self._peft.disable_adapter() if names[0] == NO_ADAPTER else nullcontext():
            return self._peft(**arguments)

    @property
    def merged(self) -> str | None:
        """Name of the adapter that is merged into the language model; None if none is."""
        return self._merged

    def merge(self, name: str) -> None:
        """Add an adapter to the weights of the language model, which saves two products a layer and call.

        W becomes W + scale * B A, computed in float32 and rounded once to the dtype of W. The weights from before are
        kept on the CPU.

        Args:
            name: of the adapter; until `unmerge`, rows of no other one can be run.

        Raises:
            KeyError: when there is no such adapter.
            ValueError: when one is merged already, or a layer is quantised.
        """
        _check_known(name, self.names)
        self._refuse_merged("another one cannot be merged")
        layers = self._layers_of(name)
        for path, layer in layers.items():
            weight = layer.get_base_layer().weight
            if not weight.is_floating_point() or hasattr(weight, "quant_state"):
                raise ValueError(f"{path} is quantised ({weight.dtype}): an adapter cannot be merged into it.")
        for layer in layers.values():
            self._merge_layer(layer, name)
        self._merged = name

    @torch.no_grad()
    def _merge_layer(self, layer: LoraLayer, name: str) -> None:
        weight = layer.get_base_layer().weight
        factors = (layer.lora_B[name].weight, layer.lora_A[name].weight)
        b, a = (factor.to(weight.device, torch.float32) for factor in factors)
        self._kept[weight] = weight.data.to("cpu")
        # A new tensor: the old one may be the file itself, mapped into memory, or is the copy that is kept.
        weight.data = (weight.float() + layer.scaling[name] * (b @ a)).to(weight.dtype)
        layer._disable_adapters = True  # without PEFT's method, which resets requires_grad

    def unmerge(self) -> None:
        """Put the weights from before `merge` back, bit for bit; nothing happens where no adapter is merged.

        Where the weights were converted to another dtype meanwhile, they are what they would be without the merge.
        """
        for weight, kept in self._kept.items():
            weight.data = kept.to(weight.device, weight.dtype)
        for layer in self._layers_of(self._merged).values() if self._merged is not None else ():
            layer._disable_adapters = False
        self._kept, self._merged = {}, None

    def _layers_of(self, name: str) -> dict[str, LoraLayer]:
        modules = self.language_model.named_modules()
        return {path: layer for path, layer in modules if isinstance(layer, LoraLayer) and name in layer.lora_A}

    def _refuse_merged(self, what: str) -> None:
        if self._merged is not None:
            raise ValueError(
                f"Adapter {self._merged!r} is merged into the language model, so {what}: call unmerge() first, or load "
                "the reward without merge_lora=True."
            )

    def activate(self, name: str) -> None:
        """Make an adapter the active one; `requires_grad` of all weights stays as it is.

        Raises:
            KeyError: when there is no such adapter.
            ValueError: when one is merged.
        """
        _check_known(name, self.names)
        self._refuse_merged("none can be made active")
        # set_adapter resets requires_grad of every adapter, also of one that is being trained: restore it.
        if self._peft is not None and self._peft.active_adapter != name:
            trainable = [parameter for parameter in self._peft.parameters() if parameter.requires_grad]
            self._peft.set_adapter(name, inference_mode=True)
            for parameter in trainable:
                parameter.requires_grad_(True)

    def config(self, name: str) -> LoraConfig:
        """The adapter's configuration."""
        _check_known(name, self.names)
        return copy.deepcopy(self._peft.peft_config[name])  # type: ignore[union-attr]

    def parameters_of(self, name: str) -> dict[str, nn.Parameter]:
        """The adapter's weights by their names in a checkpoint."""
        return {key: self.language_model.get_parameter(path) for key, path in self.parameter_names(name).items()}

    def parameter_names(self, name: str) -> dict[str, str]:
        """Map the names of the adapter's weights in a checkpoint to those in the language model's state dict."""
        marker = f".{name}.weight"
        return {
            path.removesuffix(marker) + ".weight": path
            for path, _ in self.language_model.named_parameters()
            if path.endswith(marker) and ".lora_" in path
        }

    def _load(self, name: str, weights: Mapping[str, Tensor]) -> None:
        state = {f"base_model.model.{key}": tensor for key, tensor in weights.items()}
        result = set_peft_model_state_dict(self._peft, state, adapter_name=name)
        missing = sorted(self.parameters_of(name).keys() - weights.keys())
        if missing or result.unexpected_keys:
            self._peft.delete_adapter(name)  # type: ignore[union-attr]  # else the name stays taken
            raise ValueError(
                f"The LoRA weights of {name!r} do not match their configuration: missing {missing[:4]}, "
                f"not expected {sorted(result.unexpected_keys)[:4]}."
            )

    def _check_fit(self, weights: Mapping[str, Tensor]) -> None:
        for key, tensor in weights.items():
            module, _, kind = key.removesuffix(".weight").rpartition(".")
            if module not in self._sizes:
                raise ValueError(
                    f"The adapter holds weights for {module!r}, which {type(self.language_model).__name__} does not "
                    "have: it belongs to another backbone, or to a larger model of the same family."
                )
            axis, size = (1, self._sizes[module][0]) if kind == "lora_A" else (0, self._sizes[module][1])
            if tensor.shape[axis] != size:
                raise ValueError(
                    f"The adapter's {key} has shape {tuple(tensor.shape)}, but {module} of this backbone needs {size} "
                    f"on axis {axis}: the adapter belongs to a backbone of another size."
                )


def _check_known(name: str, names: Sequence[str]) -> None:
    if name not in names:
        raise KeyError(f"No adapter {name!r}; there are: {', '.join(names) or 'none'}.")


BASE_PRESERVING = ("gaussian", "eva", "orthogonal", "mica")
"""Values of `init_lora_weights` that initialise the adapter alone; so do True and False."""

BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values, or their beginnings (`pissa_niter_16`), with which PEFT also changes the base weights."""

_PLAIN_LORA_FIELDS = frozenset(
    (
        *("peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "task_type"),
        *("inference_mode", "runtime_config", "r", "lora_alpha", "lora_dropout", "use_rslora", "fan_in_fan_out"),
        *(
            "target_modules",
            "exclude_modules",
            "layers_to_transform",
            "layers_pattern",
            "rank_pattern",
            "alpha_pattern",
        ),
        *("init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    )
)
"""Fields of `LoraConfig` that may have any value: an adapter stays plain LoRA whatever they are."""


def check_lora_settings(settings: Mapping[str, Any]) -> None:
    """Refuse an adapter that is more than plain LoRA, or whose weights belong to a changed base model.

    Args:
        settings: fields of a `LoraConfig`, as its `to_dict` or `adapter_config.json` has them.

    Raises:
        ValueError: it names the setting, and says what to do.

    Example:
        >>> check_lora_settings({"peft_type": "LORA", "r": 8, "init_lora_weights": "eva", "bias": "none"})
        >>> check_lora_settings({"use_dora": True})
        Traceback (most recent call last):
        ValueError: use_dora=True is not plain LoRA, which is all that a LLaVA-Reward is made of.
    """
    _check_initialisation(settings.get("init_lora_weights", True))
    defaults = LoraConfig().to_dict()
    for name, value in settings.items():
        # Empty or default: PEFT writes every field that it knows, older versions fewer and newer ones more.
        if name in _PLAIN_LORA_FIELDS or not value or value == defaults.get(name):
            continue
        if name not in defaults:
            raise ValueError(f"{name}={value!r} is not known to PEFT {peft.__version__}: it may need a newer version.")
        raise ValueError(f"{name}={value!r} is not plain LoRA, which is all that a LLaVA-Reward is made of.")


def _check_initialisation(value: Any) -> None:
    name = value.lower() if isinstance(value, str) else value  # PEFT ignores the case of some of them
    if isinstance(name, bool) or name in BASE_PRESERVING:
        return
    if isinstance(name, str) and name.startswith(BASE_CHANGING):
        raise ValueError(
            f"init_lora_weights={value!r}: such an adapter is trained on a base model that PEFT has changed, and "
            "adding it would change the backbone that all dimensions share. Save it as plain LoRA, with "
            "PeftModel.save_pretrained(..., path_initial_model_for_weight_conversion=<the adapter as it began>), or "
            "merge it into its own backbone (the only way for LoftQ)."
        )
    known = ", ".join(map(repr, BASE_PRESERVING))
    raise ValueError(f"init_lora_weights should be True, False or one of {known}, got {value!r}.")
