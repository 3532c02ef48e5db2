"""A tiny HPSv3 with random weights: the base model's folder, the file of the weights, the authors' file of words."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file
from torch import nn

from tests.tiny.qwen2_5_vl import CHAT_TEMPLATE, PREPROCESSOR, randomise, write_json, write_qwen_tokenizer

INSTRUCTION = "\nHow would people like this image for its text?\nTextual prompt - {text_prompt}\n\n"
ENDING = "\nThe mark: <|Reward|>\n\nEND\n"
WORDS = f'INSTRUCTION = """{INSTRUCTION}"""\n\nprompt_with_special_token = """{ENDING}"""\n\nraise SystemExit\n'


def write_hpsv3(folder: Path, *, seed: int = 0, old_names: bool = True) -> SimpleNamespace:
    """Write all files; return `base`, `weights` and `words`.

    Args:
        folder: where.
        seed: of the weights.
        old_names: those of transformers 4.45, with which it was trained, or those of transformers 5.
    """
    base = folder / "base"
    base.mkdir(parents=True, exist_ok=True)
    ids = write_qwen_tokenizer(base)
    write_json(base / "config.json", _config(ids))
    write_json(base / "preprocessor_config.json", PREPROCESSOR | {"processor_class": "Qwen2VLProcessor"})
    write_json(base / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    save_file(_weights(base, len(ids) + 1, seed, old_names), folder / "HPSv3.safetensors", metadata={"format": "pt"})
    (folder / "data_collator_qwen.py").write_text(WORDS)
    return SimpleNamespace(
        base=base, weights=folder / "HPSv3.safetensors", words=folder / "data_collator_qwen.py", folder=folder
    )


def _config(ids: dict[str, int]) -> dict:
    """The hub's config.json of Qwen2-VL, small; its vocabulary is larger than the tokenizer's."""
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "hidden_act": "quick_gelu", "mlp_ratio": 2}
    vision |= {"num_heads": 2, "in_channels": 3, "in_chans": 3, "patch_size": 14, "spatial_merge_size": 2}
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.02,
        "intermediate_size": 96,
        "max_position_embeddings": 32768,
        "max_window_layers": 2,
        "model_type": "qwen2_vl",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vision_config": vision | {"spatial_patch_size": 14, "temporal_patch_size": 2},
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "vocab_size": len(ids) + 8,
    }


def _weights(base: Path, num_embeddings: int, seed: int, old_names: bool) -> dict[str, torch.Tensor]:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    config = Qwen2VLConfig.from_pretrained(base)
    config.text_config.vocab_size = num_embeddings  # cut to the tokenizer's and the reward token, as by its authors
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        model = Qwen2VLForConditionalGeneration(config).float()
        head = nn.Sequential(
            nn.Linear(64, 12), nn.ReLU(), nn.Dropout(0.05), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2)
        )
    randomise(model, generator)
    randomise(head, generator)
    tensors = dict(model.state_dict())
    if old_names:
        renamed = (("model.visual.", "visual."), ("model.language_model.", "model."))
        for new, old in renamed:
            tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
    tensors |= {f"rm_head.{name}": 2 * tensor for name, tensor in head.state_dict().items()}
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
