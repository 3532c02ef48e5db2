"""Small random image classifiers and SigLIPs in the layouts of transformers."""

from __future__ import annotations

import json
from pathlib import Path

import torch

SIZE = 32


def _randomise(model, *, std: float) -> None:
    """The default initialisation is so small that all images look alike."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=std)


def _write_processor(folder: Path, kind: str) -> None:
    settings = {
        "image_processor_type": kind,
        "size": {"height": SIZE, "width": SIZE},
        "resample": 2 if "ViT" in kind else 3,
    }
    settings |= {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}
    settings |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def write_classifier(folder: Path, labels=("normal", "nsfw", "drawing")) -> str:
    """A ViT with three labels, as `Falconsai/nsfw_image_detection` but for its size and the third."""
    from transformers import ViTConfig, ViTForImageClassification

    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    names = dict(enumerate(labels))
    config = ViTConfig(
        **tower, image_size=SIZE, patch_size=8, id2label=names, label2id={n: i for i, n in names.items()}
    )
    model = ViTForImageClassification(config)
    _randomise(model, std=0.15)
    model.save_pretrained(folder)
    _write_processor(folder, "ViTImageProcessor")
    return str(folder)


def write_siglip(folder: Path) -> str:
    """A SigLIP with both towers, as on the hub."""
    from transformers import SiglipConfig, SiglipModel

    tower = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = SiglipConfig(
        text_config={**tower, "vocab_size": 40}, vision_config={**tower, "image_size": SIZE, "patch_size": 8}
    )
    model = SiglipModel(config)
    _randomise(model, std=0.15)
    model.save_pretrained(folder)
    _write_processor(folder, "SiglipImageProcessor")
    return str(folder)


def siglip_head_tensors(width: int = 24, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """In the layout of `aesthetic_predictor_v2_5.pth`, narrower inside."""
    generator = torch.Generator().manual_seed(seed)
    widths = (width, 20, 12, 8, 6, 1)
    tensors = {}
    for index, inputs, outputs in zip((0, 2, 4, 6, 8), widths[:-1], widths[1:], strict=True):
        tensors[f"scoring_head.{index}.weight"] = torch.randn(outputs, inputs, generator=generator) * 1.5 * inputs**-0.5
        tensors[f"scoring_head.{index}.bias"] = torch.randn(outputs, generator=generator) * 0.2
    return tensors
