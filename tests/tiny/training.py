"""A training in small: a tiny random backbone, a few pairs of images, a handful of steps."""

from __future__ import annotations

from pathlib import Path

import torch

from fk_reward.rewards.llava_reward.backbones.base import load_backbone
from fk_reward.rewards.llava_reward.config import LlavaRewardConfig
from fk_reward.rewards.llava_reward.model import LlavaRewardModel
from fk_reward.training import ImageSource, LabelledImage, PreferencePair, collate_preferences
from fk_reward.training.arguments import LlavaRewardTrainingArguments
from fk_reward.training.trainable import TrainableReward, new_dimension
from fk_reward.training.trainer import LlavaRewardTrainer

OPTIONS = {"phi3_v": {"num_crops": 1}, "qwen2_5_vl": {"max_pixels": 28 * 28 * 4}, "llava_next": {}}
PROMPTS = ("a red circle", "two squares", "a star", "a blue cross", "a", "three circles", "a dog", "a green star")


def make_model(folder, model_type="phi3_v", *, dtype=torch.float32, rank=4, dropout=0.05, projector=True, **config):
    backbone = load_backbone(folder, torch_dtype=dtype, **OPTIONS[model_type])
    network = LlavaRewardModel(backbone)
    settings = {"dimension": "alignment", "backbone": model_type, "base_model": str(folder)} | config
    settings |= {"backbone_options": backbone.options}
    key = new_dimension(
        network, LlavaRewardConfig(**settings), lora_rank=rank, lora_alpha=2 * rank, lora_dropout=dropout
    )
    return TrainableReward(network, key, projector=projector)


def image(seed, size=(28, 28)):
    """(3, H, W) in [0, 1], coarse random colours."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 2, 2, generator=generator)
    return torch.nn.functional.interpolate(coarse, size)[0]


def image_source(seed):
    return ImageSource.of((image(seed) * 255).round().byte().permute(1, 2, 0).numpy())


def pairs(num=8, *, swapped=False):
    """Pairs with margins of 1, 2 and 3."""
    made = []
    for i in range(num):
        chosen, rejected = (image_source(2 * i + k) for k in ((1, 0) if swapped else (0, 1)))
        made.append(PreferencePair(prompt=PROMPTS[i % 8], chosen=chosen, rejected=rejected, margin=1.0 + i % 3))
    return made


def labelled(num=8):
    """Labelled images, every second one true."""
    return [LabelledImage(prompt=PROMPTS[i % 8], image=image_source(i), label=i % 2 == 0) for i in range(num)]


def make_trainer(model, folder: Path, items, *, evaluation=None, callbacks=(), **settings):
    """A trainer on the CPU that neither evaluates nor saves, but for what `settings` says."""
    defaults = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    defaults |= {"per_device_train_batch_size": 4, "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    arguments = LlavaRewardTrainingArguments(output_dir=str(folder), **(defaults | settings))
    return LlavaRewardTrainer(
        model,
        arguments,
        data_collator=collate_preferences,
        train_dataset=items,
        eval_dataset=evaluation,
        callbacks=callbacks,
    )


def trained_weights(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def frozen_weights(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if not weight.requires_grad}
