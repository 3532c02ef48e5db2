"""A tiny image-text matching BLIP with random weights in the layout of the hub."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import BlipConfig, BlipForImageTextRetrieval

from tests.tiny.imagereward import NUM_TOKENS, write_bert_tokenizer

IMAGE_SIZE, MAX_POSITIONS = 32, 40
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
PROCESSOR = {
    "image_processor_type": "BlipImageProcessor",
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
}
"""`preprocessor_config.json` of the hub, for smaller pictures."""


def write_blip_itm(folder: Path) -> Path:
    """Write model, tokenizer and processor; return the folder."""
    write_bert_tokenizer(folder)
    text = {"vocab_size": NUM_TOKENS, "max_position_embeddings": MAX_POSITIONS, "bos_token_id": 1, "sep_token_id": 3}
    vision = {"image_size": IMAGE_SIZE, "patch_size": 8}
    config = BlipConfig(text_config=TOWER | text, vision_config=TOWER | vision, image_text_hidden_size=16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BlipForImageTextRetrieval(config)
        for name, parameter in model.named_parameters():
            if "norm" not in name.lower():  # as they are, all pictures look alike
                torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder
