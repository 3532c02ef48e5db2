"""A fourth backbone, as somebody would add it from another package: one file, and a line in `BACKBONES`."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaModel, PreTrainedModel

from fk_reward.rewards.llava_reward.backbones.base import Backbone, BackboneInputs, BackboneSpec
from fk_reward.rewards.weights import load_headless

SIDE, PATCH = 16, 8
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 257,
    "max_position_embeddings": 256,
}


class ToyConfig(LlamaConfig):
    model_type = "toy_vl"


class ToyModel(PreTrainedModel):
    config_class = ToyConfig
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        self.patches = nn.Linear(3 * PATCH**2, config.hidden_size)
        self.projector = nn.Linear(config.hidden_size, config.hidden_size)
        self.language_model = LlamaModel(config)
        self.post_init()


class ToyBackbone(Backbone):
    """Four patches of an image shrunk to 16 x 16, then the bytes of the prompt."""

    model_type = "toy_vl"
    norm_eps = 1e-5

    def __init__(self, model, *, brightness=1.0):
        super().__init__()
        self.model, self.brightness = model, brightness
        self.freeze()

    @classmethod
    def from_pretrained(
        cls,
        path,
        *,
        torch_dtype=torch.float32,
        attn_implementation="sdpa",
        device_map=None,
        quantization_config=None,
        revision="main",
        brightness=1.0,
    ):
        model = load_headless(
            ToyModel, path, dtype=torch_dtype, attn_implementation=attn_implementation, revision=revision
        )
        return cls(model, brightness=brightness)

    @property
    def language_model(self):
        return self.model.language_model

    @property
    def projector(self):
        return self.model.projector

    @property
    def options(self):
        return {"brightness": self.brightness}

    def prepare(self, images, prompts):
        num_patches = (SIDE // PATCH) ** 2
        rows = [torch.tensor([256] * num_patches + list(prompt.encode())) for prompt in prompts]
        input_ids = pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        small = [nn.functional.adaptive_avg_pool2d(image, SIDE) for image in images]
        return BackboneInputs(
            input_ids=input_ids,
            attention_mask=torch.arange(input_ids.shape[1]) < lengths[:, None],
            image_mask=input_ids == 256,
            pixel_values=torch.stack(small) * self.brightness,
        )

    def encode_images(self, inputs):
        tiles = nn.functional.unfold(inputs.pixel_values, PATCH, stride=PATCH).mT
        return self.model.patches(tiles.to(self.dtype)).flatten(0, 1)

    def project(self, features, inputs, projector):
        return projector(features)

    def language_arguments(self, inputs, visual_tokens):
        return {"inputs_embeds": self.embed_tokens(inputs, visual_tokens), "use_cache": False}


def build(sizes, *, brightness=1.0):
    return ToyBackbone(ToyModel(ToyConfig(**sizes)), brightness=brightness)


TOY = BackboneSpec(backbone=ToyBackbone, hub_id="somebody/toy-vl", tiny=SIZES, build=build)
