"""A tiny LLaVA-NeXT checkpoint with random weights, in the layout that `llava-hf/llava-v1.6-*-hf` has on the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models, normalizers, processors
from torch import Tensor
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

CROP_SIZE = 8
PATCH_SIZE = 4
GRID = [[8, 16], [16, 8], [16, 16], [24, 8], [8, 24]]
WEIGHT_STD = 0.15

_OLD_NAMES = {  # transformers 5 -> the names of 4.39, which the hub's files have
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.": "",
    "lm_head.": "language_model.lm_head.",
}
_IMAGE_FIRST = (
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
)
_TEXTS = "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
CHAT_TEMPLATES = {
    "llama": "{% for message in messages %}{{ message['role'].upper() + ': ' }}" + _IMAGE_FIRST + _TEXTS
    + "{{ content['text'] + ' ' }}{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
    "mistral": "{% for message in messages %}{{ '[INST] ' }}" + _IMAGE_FIRST + _TEXTS
    + "{{ content['text'] }}{% endfor %}{{ ' [/INST]' }}{% endfor %}",
}  # fmt: skip


def write_llava_next(folder: Path, *, seed: int = 0, num_shards: int = 2, text_model: str = "llama") -> Path:
    """Write the checkpoint; `text_model` is "llama" (vicuna 7b and 13b) or "mistral"."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = _write_tokenizer(folder)
    config = _config(vocab_size, text_model=text_model)
    _write_json(folder / "config.json", config)
    _write_json(folder / "preprocessor_config.json", _PREPROCESSOR)
    _write_json(folder / "processor_config.json", _PROCESSOR)
    _write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATES[text_model]})
    _write_weights(folder, _old_names(_random_weights(config, seed=seed)), num_shards=num_shards)
    return folder


_PREPROCESSOR: dict[str, Any] = {
    "aspect_ratio_setting": "anyres",
    "crop_size": {"height": CROP_SIZE, "width": CROP_SIZE},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "image_grid_pinpoints": GRID,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "LlavaNextImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "processor_class": "LlavaNextProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": CROP_SIZE},
}
_PROCESSOR: dict[str, Any] = {
    "image_token": "<image>",
    "num_additional_image_tokens": 1,
    "patch_size": PATCH_SIZE,
    "processor_class": "LlavaNextProcessor",
    "vision_feature_select_strategy": "default",
}


def _config(vocab_size: int, *, text_model: str) -> dict[str, Any]:
    text = {
        "architectures": ["LlamaForCausalLM" if text_model == "llama" else "MistralForCausalLM"],
        "hidden_size": 32,
        "intermediate_size": 48,
        "max_position_embeddings": 4096,
        "model_type": text_model,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4 if text_model == "llama" else 2,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": vocab_size,
    }
    if text_model == "mistral":
        text |= {"rope_theta": 1000000.0, "sliding_window": None}
    return {
        "architectures": ["LlavaNextForConditionalGeneration"],
        "ignore_index": -100,
        "image_grid_pinpoints": GRID,
        "image_token_index": vocab_size - 1,
        "model_type": "llava_next",
        "projector_hidden_act": "gelu",
        "text_config": text,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.39.0.dev0",
        "use_image_newline_parameter": True,
        "vision_config": _VISION,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }


_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "image_size": CROP_SIZE,
    "intermediate_size": 32,
    "model_type": "clip_vision_model",
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "patch_size": PATCH_SIZE,
    "projection_dim": 8,
    "vocab_size": 32000,
}


def _write_tokenizer(folder: Path) -> int:
    """Llama's way of spelling, without merges: letters, bytes for the rest. Returns the size of the vocabulary."""
    specials = ["<unk>", "<s>", "</s>"]
    letters = ["▁", "\n", *map(chr, range(33, 127))]
    pieces = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=specials[0], fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in [*specials, "<image>"]])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"}
    _write_json(folder / "special_tokens_map.json", names)
    settings = {"add_bos_token": True, "legacy": False, "padding_side": "left", "tokenizer_class": "LlamaTokenizer"}
    _write_json(folder / "tokenizer_config.json", names | settings | {"processor_class": "LlavaNextProcessor"})
    return tokenizer.get_vocab_size()


def _random_weights(config: dict[str, Any], *, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        state = LlavaNextForConditionalGeneration(LlavaNextConfig(**config)).state_dict()
    noise = {name: torch.randn(value.shape, generator=generator) * WEIGHT_STD for name, value in state.items()}
    return {name: value + ("norm" in name and name.endswith("weight")) for name, value in noise.items()}


def _old_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    def rename(name: str) -> str:
        new = next(new for new in _OLD_NAMES if name.startswith(new))
        return _OLD_NAMES[new] + name.removeprefix(new)

    return {rename(name): value.contiguous() for name, value in weights.items()}


def _write_weights(folder: Path, weights: dict[str, Tensor], *, num_shards: int) -> None:
    weight_map = {
        name: f"model-{1 + index * num_shards // len(weights):05d}-of-{num_shards:05d}.safetensors"
        for index, name in enumerate(weights)
    }
    for file in sorted(set(weight_map.values())):
        shard = {name: value for name, value in weights.items() if weight_map[name] == file}
        save_file(shard, folder / file, metadata={"format": "pt"})
    total = sum(value.nbytes for value in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2))
