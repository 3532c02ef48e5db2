"""Trains `shapes-imagereward`, an ImageReward in small, on the preferences of the adapters for alignment."""

from __future__ import annotations

import dataclasses
import string
from pathlib import Path

import cyclopts
import torch
from fit import FitConfig, fit
from scene_data import TensorsDataset
from torch import Tensor, nn
from transformers import BertTokenizer, BlipVisionModel, CLIPModel

from fk_reward.models import resolve_model
from fk_reward.rewards import ImageReward
from fk_reward.rewards.blip import PromptTokens, with_blip_tokens
from fk_reward.rewards.imagereward_model import ImageRewardConfig, ImageRewardModel, ImageRewardSizes
from fk_reward.rewards.preprocessing import TorchvisionPreprocessing
from fk_reward.shapes import train_prompts
from fk_reward.training import PreferencePair, bradley_terry_loss, read_preferences

LAYER_MODULES = {
    "layer_norm1": "layer_norm1",
    "layer_norm2": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "self_attn.out_proj": "self_attn.projection",
}


@torch.no_grad()
def start_from_clip(tower: BlipVisionModel, clip: CLIPModel, pixels: Tensor) -> None:
    """Gives `tower` the weights of CLIP's, as nearly as its architecture allows.

    BLIP has no layer norm before its layers. Its centring, scale and shift go into the embeddings; for the deviation of
    each patch, by which it divides, stands the mean deviation in the images `pixels`, `(B, 3, S, S)`, normalised. The
    activations differ, too: GELU, not its approximation.
    """
    theirs = {name.removeprefix("vision_model."): tensor for name, tensor in clip.state_dict().items()}
    deviation = clip.vision_model.embeddings(pixels).std(dim=-1).mean()
    tower.load_state_dict(_embeddings(theirs, deviation) | _layers(theirs, tower.config.num_hidden_layers))


def _embeddings(theirs: dict[str, Tensor], deviation: Tensor) -> dict[str, Tensor]:
    scale, shift = theirs["pre_layrnorm.weight"] / deviation, theirs["pre_layrnorm.bias"]
    cls, positions, kernel = (
        theirs[f"embeddings.{name}"]
        for name in ("class_embedding", "position_embedding.weight", "patch_embedding.weight")
    )
    return {
        "embeddings.class_embedding": (scale * (cls - cls.mean()))[None, None],
        "embeddings.position_embedding": (scale * (positions - positions.mean(1, keepdim=True)) + shift)[None],
        "embeddings.patch_embedding.weight": scale[:, None, None, None] * (kernel - kernel.mean(0)),
        "embeddings.patch_embedding.bias": torch.zeros_like(shift),
    }


def _layers(theirs: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    ours = {f"post_layernorm.{kind}": theirs[f"post_layernorm.{kind}"] for kind in ("weight", "bias")}
    for layer in (f"encoder.layers.{index}" for index in range(count)):
        for kind in ("weight", "bias"):
            parts = [theirs[f"{layer}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            ours[f"{layer}.self_attn.qkv.{kind}"] = torch.cat(parts)
            ours |= {f"{layer}.{new}.{kind}": theirs[f"{layer}.{old}.{kind}"] for old, new in LAYER_MODULES.items()}
    return ours


SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONFIG = ImageRewardConfig(head_size=32, max_tokens=16)
SIZES = ImageRewardSizes(
    image_size=64,
    patch_size=8,
    vision_width=128,
    vision_mlp_width=256,
    vision_layers=4,
    vocab_size=0,  # that of the tokenizer
    max_positions=CONFIG.max_tokens,
    text_width=128,
    text_mlp_width=256,
    text_layers=4,
    mlp_widths=(128, 128, 64, 32, 16),
)


def make_tokenizer() -> BertTokenizer:
    """Every word of the grammar is one token; other words fall back to letters."""
    words = sorted({word for prompt in train_prompts() for word in prompt.text.split()})
    letters = string.ascii_lowercase + string.digits
    pieces = [*SPECIAL_TOKENS, *words, *letters, *(f"##{letter}" for letter in letters)]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    return with_blip_tokens(BertTokenizer(vocab=vocab, model_max_length=CONFIG.max_tokens))


def tensors_of(pairs: list[PreferencePair], tokenizer: BertTokenizer) -> dict[str, Tensor]:
    """Images `(N, 2, 3, H, W)` uint8 and tokens `(N, 2, L)` of N pairs, the chosen one first."""
    tokenize = PromptTokens(tokenizer, max_tokens=CONFIG.max_tokens, name="shapes-imagereward")
    tokens = tokenize([prompt for pair in pairs for prompt in pair.prompts])
    images = [torch.stack([(image.load() * 255).round().byte() for image in pair.images]) for pair in pairs]
    return {"images": torch.stack(images), **{name: ids.view(len(pairs), 2, -1) for name, ids in tokens.items()}}


class PreferenceObjective(nn.Module):
    """The Bradley-Terry loss of the raw scores, as ImageReward has it: without a temperature or a margin."""

    def __init__(self, model: ImageRewardModel) -> None:
        super().__init__()
        self.model = model
        self.preprocessing = TorchvisionPreprocessing.of_clip(model.sizes.image_size)

    def forward(self, images: Tensor, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Takes rows of `tensors_of`."""
        chosen, rejected = self.scores(images, input_ids, attention_mask).unbind(1)
        return {"loss": bradley_terry_loss(chosen, rejected, temperature=1.0)}

    def scores(self, images: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Raw scores `(B, 2)`, of the chosen and of the rejected side."""
        pixels = self.preprocessing(images.flatten(0, 1) / 255)
        return self.model(pixels, input_ids.flatten(0, 1), attention_mask.flatten(0, 1)).view(len(images), 2)


@torch.no_grad()
def score_all(objective: PreferenceObjective, data: dict[str, Tensor], batch_size: int = 100) -> Tensor:
    """Raw scores `(N, 2)`, without dropout."""
    objective.eval()
    device = next(objective.parameters()).device
    starts = range(0, len(data["images"]), batch_size)
    batches = ({name: rows[i : i + batch_size].to(device) for name, rows in data.items()} for i in starts)
    return torch.cat([objective.scores(**batch) for batch in batches])


def make_model(tokenizer: BertTokenizer, clip: CLIPModel | None, pixels: Tensor) -> ImageRewardModel:
    """The network, its image tower that of `clip`, fitted by images, where there is one; otherwise untrained."""
    sizes = dataclasses.replace(SIZES, vocab_size=len(tokenizer))
    model = ImageRewardModel(sizes, head_size=CONFIG.head_size)
    if clip is not None:
        start_from_clip(model.vision, clip, pixels)
    return model


def main(  # noqa: PLR0913, PLR0917 (a command's options)
    preferences: Path = Path("runs/preferences/alignment"),
    clip: str | Path | None = "shapes-clip",
    output_dir: Path = Path("runs/imagereward"),
    max_steps: int = 3000,
    batch_size: int = 64,
    learning_rate: float = 5e-4,
    seed: int = 0,
    save_steps: int = 250,
    resume: bool = False,
) -> None:
    """Trains on `train.parquet`, standardises by the scores of `validation.parquet`, saves `shapes-imagereward`."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    train, validation = (
        tensors_of(read_preferences(preferences / f"{name}.parquet"), tokenizer) for name in ("train", "validation")
    )
    preprocessing = TorchvisionPreprocessing.of_clip(SIZES.image_size)
    pixels = preprocessing(train["images"][:100, 0] / 255)
    tower = None if clip is None else CLIPModel.from_pretrained(resolve_model(str(clip)))
    objective = PreferenceObjective(make_model(tokenizer, tower, pixels))
    config = FitConfig(
        output_dir=output_dir,
        max_steps=max_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=0.05,
        seed=seed,
        ema_decay=0.998,
        save_steps=save_steps,
        resume=resume,
        bf16=True,
    )
    if fit(objective, TensorsDataset(**train), config):
        save(objective, tokenizer, score_all(objective, validation), output_dir / "shapes-imagereward")


def save(objective: PreferenceObjective, tokenizer: BertTokenizer, scores: Tensor, folder: Path) -> None:
    """Prints the share of pairs that raw `scores` `(N, 2)` get right, and saves in float16, standardised by them."""
    print(f"accuracy {(scores[:, 0] > scores[:, 1]).double().mean():.4f} on the validation set")
    config = dataclasses.replace(CONFIG, mean=scores.mean().item(), std=scores.std().item())
    ImageReward(objective.model, tokenizer, config=config).to(dtype=torch.float16).save_pretrained(folder)


if __name__ == "__main__":
    cyclopts.run(main)
