"""A random Mask2Former and a random CLIP, both tiny, in the layout of the official repositories."""

from __future__ import annotations

import json

import torch

from fk_reward.benchmarks.geneval.prompts import COLORS, OBJECT_NAMES
from tests.tiny.tokenizers import make_clip_tokenizer

COCO_NAMES = [name.removeprefix("computer ").removeprefix("tv ") for name in OBJECT_NAMES]
"""As in the `id2label` of the hub's files: mouse, remote and keyboard have one word."""

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def write_mask2former(folder, *, names=COCO_NAMES, seed=0) -> str:
    """Write a Mask2Former of ten queries whose answers are firm, as those of a trained one are."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    stages = {"out_features": ["stage1", "stage2", "stage3", "stage4"], "drop_path_rate": 0.0}
    backbone = SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, image_size=64, **stages
    )
    sizes = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32}
    sizes |= {"encoder_feedforward_dim": 16, "dim_feedforward": 16, "num_attention_heads": 2}
    config = Mask2FormerConfig(
        backbone_config=backbone,
        encoder_layers=1,
        decoder_layers=3,
        num_queries=10,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
        **sizes,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = Mask2FormerForUniversalSegmentation(config)
        model.class_predictor.weight.mul_(120)
        for name, parameter in model.named_parameters():
            if "mask_embedder" in name and name.endswith("weight"):
                parameter.mul_(8)
    model.save_pretrained(folder)
    processor = {"image_processor_type": "Mask2FormerImageProcessor", "size": {"height": 384, "width": 384}, **IMAGENET}
    processor |= {"_max_size": 1333, "do_normalize": True, "do_rescale": True, "do_resize": True, "resample": 2}
    processor |= {"num_labels": 80, "ignore_index": 255, "reduce_labels": False, "size_divisor": 32}
    processor |= {"rescale_factor": 0.00392156862745098}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return str(folder)


def write_clip(folder) -> str:
    """Write a CLIP for 32 x 32 images and 77 tokens, its preprocessor file in the hub's older form."""
    from transformers import CLIPConfig, CLIPModel

    tokenizer = make_clip_tokenizer()
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(
        text_config={**tower, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 77},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(config)
        for parameter in model.parameters():  # the default initialisation makes all embeddings alike
            torch.nn.init.normal_(parameter, std=0.2)
        _spread(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 32, "resample": 3}
    processor |= {"do_resize": True, "do_center_crop": True, "do_normalize": True, **IMAGENET}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return str(folder)


@torch.no_grad()
def _spread(model, tokenizer) -> None:
    """Take out of both embeddings what they have in common, so that not all images are nearest to one text."""
    texts = tokenizer([f"a photo of a {color} object" for color in COLORS], padding=True, return_tensors="pt")
    images = torch.randn(32, 3, 1, 1) + 0.5 * torch.randn(32, 3, 32, 32)
    for projection, states in (
        (model.text_projection, model.text_model(**texts).pooler_output),
        (model.visual_projection, model.vision_model(images).pooler_output),
    ):
        common = torch.nn.functional.normalize(states.mean(dim=0), dim=0)
        projection.weight.sub_(torch.outer(projection.weight @ common, common))
