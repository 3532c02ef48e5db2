"""A tiny random Phi-3.5-vision in the hub's layout: its config, key names, shards, tokenizer and processor files."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

TEXT_TOKENS = ("<unk>", "<s>", "</s>")
SPECIAL_TOKENS = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|' + message['role'] + '|>' + '\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}{{- '<|assistant|>\n' -}}{% endif %}"
)
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
    "projection_dim": 8,
}
CONFIG: dict[str, Any] = {
    "_name_or_path": "Phi-3.5-vision-instruct",
    "architectures": ["Phi3VForCausalLM"],
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_phi3_v.Phi3VConfig",
        "AutoModelForCausalLM": "modeling_phi3_v.Phi3VForCausalLM",
    },
    "bos_token_id": 1,
    "embd_layer": {
        "embedding_cls": "image",
        "hd_transform_order": "sub_glb",
        "projection_cls": "mlp",
        "use_hd_transform": True,
        "with_learnable_separator": True,
    },
    "embd_pdrop": 0.0,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 32,
    "img_processor": {
        "image_dim_out": VISION["hidden_size"],
        "model_name": "openai/clip-vit-large-patch14-336",
        "name": "clip_vision_model",
        "num_img_tokens": 4,
    },
    "initializer_range": 0.02,
    "intermediate_size": 64,
    "max_position_embeddings": 1024,
    "model_type": "phi3_v",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "original_max_position_embeddings": 64,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"long_factor": [1.1, 3.2, 12.2, 57.6], "short_factor": [1.1, 1.3, 2.0, 4.2], "type": "su"},
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.38.1",
    "use_cache": True,
    "vision_config": VISION,
    "_attn_implementation": "flash_attention_2",
}
PROCESSOR = {
    "auto_map": {
        "AutoProcessor": "processing_phi3_v.Phi3VProcessor",
        "AutoImageProcessor": "image_processing_phi3_v.Phi3VImageProcessor",
    },
    "num_crops": 4,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "Phi3VImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "processor_class": "Phi3VProcessor",
    "num_img_tokens": 144,
}


def write_phi3_vision(folder: Path, *, seed: int = 0, num_shards: int = 2, **changes: Any) -> Path:
    """Write the checkpoint; `changes` replace entries of its config.json.

    Besides what the hub's config has, it has `vision_config` with the sizes of the CLIP tower.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = write_tokenizer(folder)
    config = {**CONFIG, "vocab_size": vocab_size, "pad_token_id": vocab_size - len(SPECIAL_TOKENS), **changes}
    _write_json(folder / "config.json", config)
    _write_json(folder / "preprocessor_config.json", PROCESSOR)
    write_shards(folder, random_weights(config, seed=seed), num_shards=num_shards)
    return folder


def random_weights(config: dict[str, Any], *, seed: int) -> dict[str, torch.Tensor]:
    """Weights by the hub's names, in the order of its index; large enough for pictures and prompts to be told apart."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {**_language_shapes(config), **_vision_shapes(config)}
    weights = {name: 0.15 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name in weights:
        if "norm" in name and name.endswith("weight"):  # pre_layrnorm, too
            weights[name] += 1
    return weights


def write_shards(folder: Path, weights: dict[str, torch.Tensor], *, num_shards: int) -> None:
    """Write safetensors files and their index."""
    names, place = list(weights), {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
        chosen = names[shard::num_shards]
        save_file({name: weights[name] for name in chosen}, folder / file, metadata={"format": "pt"})
        place.update(dict.fromkeys(chosen, file))
    total = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": place})


def write_tokenizer(folder: Path) -> int:
    """Write a Llama-like byte-fallback BPE over letters that opens texts with `<s>`; return its vocabulary's size."""
    pieces = [*TEXT_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *string.ascii_letters, "▁a", "re"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = [("▁", "a"), ("r", "e")]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token=TEXT_TOKENS[0], fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    specials = [*TEXT_TOKENS, *SPECIAL_TOKENS]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(tokenizer))
    roles = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<unk>"}
    _write_json(folder / "special_tokens_map.json", roles)
    return tokenizer.get_vocab_size()


def _tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    tokens = (*TEXT_TOKENS, *SPECIAL_TOKENS)
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {str(tokenizer.token_to_id(token)): {"content": token, **flags} for token in tokens},
        "additional_special_tokens": ["<|system|>", "<|end|>", "<|user|>", "<|end|>"],
        "auto_map": {"AutoProcessor": "processing_phi3_v.Phi3VProcessor"},
        "bos_token": "<s>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "legacy": False,
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "padding_side": "right",
        "processor_class": "Phi3VProcessor",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    }


def _language_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head = width // config["num_attention_heads"]
    shapes: dict[str, tuple[int, ...]] = {"lm_head.weight": (vocab, width), "model.embed_tokens.weight": (vocab, width)}
    shapes["model.norm.weight"] = (width,)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.input_layernorm.weight"] = (width,)
        shapes[f"{prefix}.mlp.down_proj.weight"] = (width, inner)
        shapes[f"{prefix}.mlp.gate_up_proj.weight"] = (2 * inner, width)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (width,)
        shapes[f"{prefix}.self_attn.o_proj.weight"] = (width, width)
        shapes[f"{prefix}.self_attn.qkv_proj.weight"] = (width + 2 * config["num_key_value_heads"] * head, width)
    return shapes


def _vision_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    vision, width = config["vision_config"], config["hidden_size"]
    channels, patch = vision["hidden_size"], vision["patch_size"]
    root, tower = "model.vision_embed_tokens", "model.vision_embed_tokens.img_processor.vision_model"
    shapes: dict[str, tuple[int, ...]] = {
        f"{root}.glb_GN": (1, 1, 4 * channels),
        f"{root}.sub_GN": (1, 1, 1, 4 * channels),
        f"{tower}.embeddings.class_embedding": (channels,),
        f"{tower}.embeddings.patch_embedding.weight": (channels, 3, patch, patch),
        f"{tower}.embeddings.position_embedding.weight": ((vision["image_size"] // patch) ** 2 + 1, channels),
        **_affine(f"{root}.img_projection.0", width, 4 * channels),
        **_affine(f"{root}.img_projection.2", width, width),
        **_affine(f"{tower}.pre_layrnorm", channels),
        **_affine(f"{tower}.post_layernorm", channels),
    }
    for layer in range(vision["num_hidden_layers"]):
        prefix = f"{tower}.encoder.layers.{layer}"
        for name in ("layer_norm1", "layer_norm2"):
            shapes.update(_affine(f"{prefix}.{name}", channels))
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes.update(_affine(f"{prefix}.self_attn.{name}", channels, channels))
        shapes.update(_affine(f"{prefix}.mlp.fc1", vision["intermediate_size"], channels))
        shapes.update(_affine(f"{prefix}.mlp.fc2", channels, vision["intermediate_size"]))
    return shapes


def _affine(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
