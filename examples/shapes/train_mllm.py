"""Trains `shapes-mllm`, a small Phi-3-vision on the tower of `train_tower.py`, to answer questions about images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cyclopts
import numpy as np
import torch
from fit import FitConfig, fit
from safetensors.torch import load_file, save_file
from scene_data import MAX_OBJECTS, from_table
from scene_questions import Dialogue, Match, dialogue, dialogue_about_drawn, match
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from train_clip import degraded
from train_tokenizer import ASSISTANT, END, END_OF_TEXT, ROLES, USER, save_mllm_tokenizer, train_mllm_tokenizer
from train_tower import patch_places
from transformers import CLIPVisionModel, PreTrainedTokenizerFast

from fk_reward.rewards.llava_reward.backbones.base import BackboneInputs
from fk_reward.rewards.llava_reward.backbones.phi3_vision import CLIP_MEAN, CLIP_STD, PhiVisionBackbone
from fk_reward.rewards.llava_reward.backbones.phi3_vision_model import EMBEDDING_LAYER, PhiVisionConfig, PhiVisionModel
from fk_reward.shapes import COLORS, SHAPES, ObjectSpec, ShapesPrompt, all_prompts, train_prompts

SIZES = {
    "hidden_size": 160,
    "intermediate_size": 448,
    "num_hidden_layers": 4,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
}
IGNORED = -100
FOLDER, WEIGHTS = "shapes-mllm", "weights.safetensors"
"""What a training leaves in its folder: the model in float16, and all that a further training begins with."""
MAX_TEXT_TOKENS = 64
"""Questions of a dialogue that do not fit are left out, so that rows are of about one length."""


def hub_config(tower: dict, tokenizer: PreTrainedTokenizerFast) -> dict:
    """The config.json of the hub's Phi-3.5-vision in other sizes; all layers of the tower are read."""
    factors = [1.0] * (SIZES["hidden_size"] // SIZES["num_attention_heads"] // 2)
    return {
        "architectures": ["Phi3VForCausalLM"],
        "model_type": "phi3_v",
        **SIZES,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "embd_layer": dict(EMBEDDING_LAYER),
        "img_processor": {"image_dim_out": tower["hidden_size"], "layer_idx": -1, "name": "clip_vision_model"},
        "hidden_act": "silu",
        "initializer_range": 0.08,
        "max_position_embeddings": 512,
        "original_max_position_embeddings": 512,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"type": "su", "short_factor": factors, "long_factor": factors},
        "rope_theta": 10000.0,
        "sliding_window": 512,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "vision_config": tower,
    }


def make_model(config: dict, tower: CLIPVisionModel) -> PhiVisionModel:
    """The model with a vision tower that can see already and the rest untrained."""
    model = PhiVisionModel(PhiVisionConfig.from_dict(config))
    model.vision_embed_tokens.img_processor.load_state_dict(tower.state_dict())
    for separator in (model.vision_embed_tokens.glb_GN, model.vision_embed_tokens.sub_GN):
        nn.init.normal_(separator, std=0.02)
    return model


def save_mllm(model: PhiVisionModel, tokenizer: PreTrainedTokenizerFast, config: dict, folder: Path) -> None:
    """Writes the hub's layout, weights in float16 under the hub's names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {"language_model.": "model.", "vision_embed_tokens.": "model.vision_embed_tokens."}
    tower = "model.vision_embed_tokens.img_processor."
    weights = {}
    for name, tensor in model.state_dict().items():
        prefix = next(prefix for prefix in names if name.startswith(prefix))
        hub_name = (names[prefix] + name.removeprefix(prefix)).replace(tower, tower + "vision_model.")
        weights[hub_name] = tensor.half().contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    processor = {"image_processor_type": "Phi3VImageProcessor", "num_crops": 1}
    processor |= {"image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD)}
    for name, content in (("config.json", config), ("preprocessor_config.json", processor)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    save_mllm_tokenizer(tokenizer.backend_tokenizer, folder)


def corpus(objects: Tensor, *, seed: int) -> list[str]:
    """Texts with every word that the model will meet."""
    rng = np.random.default_rng(seed)
    dialogues = [dialogue(from_table(row), rng) for row in objects]
    texts = [text for turns in dialogues for turn in turns for text in turn] + [p.text for p in train_prompts()]
    return [f"\n{text}" for text in texts]


def learned_tokenizer(scenes: dict[str, Tensor]) -> PreTrainedTokenizerFast:
    """A token for each word that is said about the scenes."""
    return PreTrainedTokenizerFast(
        tokenizer_object=train_mllm_tokenizer(corpus(scenes["objects"][::20], seed=0)), **ROLES
    )


def known_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """That of an earlier training: learned anew from other questions, the same word could be another token."""
    return PreTrainedTokenizerFast.from_pretrained(folder / FOLDER, **ROLES)


def row_texts(turns: Dialogue | Match) -> list[tuple[str, str, str]]:
    """What is asked, what is to be said, and what opens the next turn."""
    if isinstance(turns, Match):
        return [(f"\n{turns.caption}{END_OF_TEXT}", turns.answer, "")]
    return [(f"\n{question}{END}\n{ASSISTANT}\n", f"{answer}{END}", f"\n{USER}") for question, answer in turns]


def tokenize(
    tokenizer: PreTrainedTokenizerFast, turns: Dialogue | Match, visual_tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens of a row (0 in the visual tokens' places), which are visual, and the token to be said next in answers."""
    texts = [text for turn in row_texts(turns) for text in turn]
    opening, *parts = tokenizer([f"{USER}\n", *texts]).input_ids
    ids = [*opening, *[0] * visual_tokens]
    answered = [False] * len(ids)
    image_mask = torch.arange(len(ids)) >= len(opening)
    for asked, said, next_turn in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        if len(ids) + len(asked) + len(said) > len(image_mask) + MAX_TEXT_TOKENS:
            break
        ids += [*asked, *said, *next_turn]
        answered += [False] * len(asked) + [True] * len(said) + [False] * len(next_turn)
    labels = [token if answer else IGNORED for token, answer in zip(ids[1:], answered[1:], strict=True)]
    padded = F.pad(image_mask, (0, len(ids) - len(image_mask)))
    return torch.tensor(ids), padded, torch.tensor([*labels, IGNORED])


def answer_batch(
    backbone: PhiVisionBackbone, images: Tensor, dialogues: Sequence[Dialogue | Match]
) -> dict[str, Tensor]:
    """`images` `(B, 3, 64, 64)` as given, `input_ids`, `image_mask`, `attention_mask` and `labels`, each `(B, S)`."""
    visual_tokens = backbone.model.vision_embed_tokens.num_tokens(1, 1)
    rows = [tokenize(backbone.tokenizer, turns, visual_tokens) for turns in dialogues]
    return {
        "images": images,
        "input_ids": pad_sequence([ids for ids, _, _ in rows], batch_first=True),
        "image_mask": pad_sequence([mask for _, mask, _ in rows], batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(mask) for _, mask, _ in rows], batch_first=True),
        "labels": pad_sequence([labels for _, _, labels in rows], batch_first=True, padding_value=IGNORED),
    }


class Dialogues(Dataset):
    """Images with dialogues, drawn anew for each index, the same for the same seed; batches of `answer_batch`.

    `sources` are what `make_scenes.py mixed` and `make_scenes.py drawn` wrote, from which images are taken equally.
    """

    def __init__(
        self,
        sources: Sequence[dict[str, Tensor]],
        backbone: PhiVisionBackbone,
        *,
        length: int,
        seed: int,
        place_weight: float = 0.0,
        match_share: float = 0.0,
    ) -> None:
        self.sources, self.backbone, self.length, self.seed = sources, backbone, length, seed
        self.place_weight, self.match_share = place_weight, match_share

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        images, objects, dialogues = zip(*map(self.draw, indices), strict=True)
        return answer_batch(self.backbone, torch.stack(images), dialogues) | {"objects": torch.stack(objects)}

    def draw(self, index: int) -> tuple[Tensor, Tensor, Dialogue | Match]:
        """An image `(3, 64, 64)` uint8, its objects and what is asked; for `match_share` of them a caption alone."""
        rng = np.random.default_rng((self.seed, index))
        source = self.sources[rng.integers(len(self.sources))]
        row = int(rng.integers(len(source["objects"])))
        turns = self.ask(source, row, rng)
        caption_alone = self.match_share and rng.random() < self.match_share
        return source["images"][row], source["objects"][row], (caption_alone and match(turns)) or turns

    def ask(self, source: dict[str, Tensor], row: int, rng: np.random.Generator) -> Dialogue:
        """A dialogue about an image of a source."""
        scene = from_table(source["objects"][row])
        if "prompts" not in source:
            return dialogue(scene, rng, place_weight=self.place_weight)
        prompt, correct = all_prompts()[source["prompts"][row]], bool(source["correct"][row])
        return dialogue_about_drawn(scene, prompt, rng, correct=correct, place_weight=self.place_weight)


def answer_weights(labels: Tensor) -> Tensor:
    """`(A,)` weights of the answer tokens of `labels`, `(B, S)`, such that all answers count the same.

    By the mean over tokens a list of objects would count twenty times as much as a yes or no.

    Example:
        >>> answer_weights(torch.tensor([[-100, 4, 5, -100], [-100, -100, 6, -100]]))
        tensor([0.2500, 0.2500, 0.5000])
    """
    said = F.pad(labels != IGNORED, (1, 0))
    answer = ((said[:, 1:] & ~said[:, :-1]).flatten().cumsum(0) - 1)[said[:, 1:].flatten()]
    lengths = answer.bincount()
    return 1 / (lengths[answer] * len(lengths))


class Named(NamedTuple):
    """What is true of the objects that tokens name.

    Attributes:
        rows, columns: `(N,)`, places of the tokens in a batch.
        count: `(N,)`, how many objects of the shape are there.
        color: `(N,)`, of the object where it is alone in its shape.
        center: `(N, 2)`, x and y of its centre, likewise.
        said: `(N,)`, the colour that the word before says, -1 where it says none.
    """

    rows: Tensor
    columns: Tensor
    count: Tensor
    color: Tensor
    center: Tensor
    said: Tensor


def named_objects(input_ids: Tensor, objects: Tensor, shape_tokens: Tensor, color_tokens: Tensor) -> Named:
    """The tokens that name a shape, and what is true of its objects.

    Args:
        input_ids: `(B, S)`.
        objects: `(B, 4, 6)`, the table of `scene_data.py`. Of images without objects, which could not be read, no token
            is taken.
        shape_tokens: `(6, F)`, the tokens of each of `SHAPES`, F forms.
        color_tokens: `(7,)`, those of `COLORS`.
    """
    of_shape = objects[:, None, :, 0] == torch.arange(len(shape_tokens), device=objects.device)[None, :, None]
    names = (input_ids[..., None, None] == shape_tokens).any(-1) & (objects[..., 0] >= 0).any(1)[:, None, None]
    rows, columns, shapes = names.nonzero(as_tuple=True)
    summed = (of_shape[..., None] * objects[:, None, :, 1:4]).sum(2)[rows, shapes]
    before = input_ids[rows, columns - 1, None] == color_tokens  # a shape is never the first token
    said = torch.where(before.any(-1), before.long().argmax(-1), -1)
    return Named(rows, columns, of_shape.sum(-1)[rows, shapes], summed[:, 0].long(), summed[:, 1:], said)


def shape_tokens(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """`(6, 2)`: one and many of each of `SHAPES`."""
    single = [f"a {shape}" for shape in SHAPES]
    several = [ShapesPrompt("counting", (ObjectSpec(shape),) * 2).text for shape in SHAPES]
    return torch.tensor(
        [[tokenizer(text).input_ids[-1] for text in pair] for pair in zip(single, several, strict=True)]
    )


def color_tokens(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """`(7,)`: those of `COLORS`, as they stand before a shape."""
    return torch.tensor([tokenizer(f"a {color} {SHAPES[0]}").input_ids[-2] for color in COLORS])


NAMED = ("place", "color", "count", "bound")
"""What can be read off a token that names a shape."""


def _mean(losses: Tensor) -> Tensor:
    """Their mean, 0 of none: a batch may show no object, or name none."""
    return losses.sum() / max(losses.numel(), 1)


class DialogueObjective(nn.Module):
    """Mean cross-entropy of the answers, and where the objects are; images are degraded as for the CLIP.

    A tower that names what is in each patch need not say where the patch is: a linear read-out of the centres left
    .8 of their variance, and questions of colour were answered while those of place were not.

    Args:
        backbone: The model.
        place_loss: Weight of the mean distance, in patches, of the centres that are read off the tower's patches.
        named_loss: Weight of what is read off the tokens that name a shape, half of the layers up, so that those above
            can compare it with the rest of the sentence.
        named: What that is, of `NAMED`: the place (distance in patches) and the colour (cross-entropy) of an object
            that is alone in its shape, the number of objects (cross-entropy), and, a layer above, whether the colour
            is the one that the word before says (binary cross-entropy).
    """

    def __init__(
        self,
        backbone: PhiVisionBackbone,
        *,
        place_loss: float = 0.0,
        named_loss: float = 0.0,
        named: Sequence[str] = NAMED,
    ) -> None:
        super().__init__()
        self.backbone, self.place_loss, self.named_loss = backbone.requires_grad_(True), place_loss, named_loss
        self.named = tuple(named)
        tower = backbone.model.vision_embed_tokens.img_processor
        width = backbone.language_model.config.hidden_size
        self.place = nn.Linear(tower.config.hidden_size, 2)
        self.named_place, self.named_color = nn.Linear(width, 2), nn.Linear(width, len(COLORS))
        self.named_count, self.named_bound = nn.Linear(width, MAX_OBJECTS + 1), nn.Linear(width, 1)
        self.register_buffer("shape_tokens", shape_tokens(backbone.tokenizer), persistent=False)
        self.register_buffer("color_tokens", color_tokens(backbone.tokenizer), persistent=False)
        tower.post_layernorm.requires_grad_(False)  # is for CLIP's class token, nothing here reads it
        self.register_buffer("mean", torch.tensor(CLIP_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD)[:, None, None], persistent=False)

    def parameter_groups(self, tower_learning_rate: float) -> list[dict]:
        """The vision tower learns slowly: at the pace of the rest it unlearns shapes before they are of any use."""
        tower = list(self.backbone.model.vision_embed_tokens.img_processor.parameters())
        known = set(map(id, tower))
        rest = [parameter for parameter in self.parameters() if id(parameter) not in known]
        return [{"params": rest}, {"params": [p for p in tower if p.requires_grad], "lr": tower_learning_rate}]

    def patches(self, images: Tensor) -> Tensor:
        """`(B, P, C)` features of the patches of images in [0, 1]."""
        return self.backbone.model.vision_embed_tokens.encode((images - self.mean) / self.std)

    def features(self, patches: Tensor) -> Tensor:
        """What `backbone.encode_images` gives, where an image is its own overview and its only crop."""
        twice = patches.repeat_interleave(2, dim=0)
        return self.backbone.model.vision_embed_tokens.lay_out(twice, [(1, 1)] * len(patches))

    def states(self, patches: Tensor, **text: Tensor) -> tuple[Tensor, ...]:
        """`(B, S, D)` states of the tokens after each layer, given the patches of the images."""
        backbone = self.backbone
        inputs = BackboneInputs(pixel_values=patches, **text)
        visual = backbone.project(self.features(patches), inputs, backbone.projector)
        arguments = backbone.language_arguments(inputs, visual)
        return backbone.language_model(**arguments, output_hidden_states=True).hidden_states

    def logits(self, last_states: Tensor, labels: Tensor) -> Tensor:
        """Logits `(A, V)` of the A answer tokens, in the order of the rows."""
        return last_states[labels != IGNORED] @ self.backbone.language_model.get_input_embeddings().weight.T

    def distance(self, patches: Tensor, objects: Tensor) -> Tensor:
        """Mean distance along an axis between the centres of objects `(B, 4, 6)` and those read off their patches."""
        places, shown = patch_places(objects, round(patches.shape[1] ** 0.5))
        return _mean(F.l1_loss(self.place(patches)[shown], places[shown], reduction="none"))

    def misnamed(self, states: Sequence[Tensor], found: Named, side: int) -> Tensor:
        """Sum over `named` of how far off it is what the states of tokens that name a shape say.

        What is compared with the sentence can only be read off above what it is compared with.
        """
        here, above = (layer[found.rows, found.columns] for layer in states[len(states) // 2 :][:2])
        alone = found.count == 1
        colored = alone & (found.said >= 0)
        true_color = (found.said == found.color)[colored].float()
        read = {
            "place": lambda: F.l1_loss(self.named_place(here[alone]), found.center[alone] * side, reduction="none"),
            "color": lambda: F.cross_entropy(self.named_color(here[alone]), found.color[alone], reduction="none"),
            "count": lambda: F.cross_entropy(self.named_count(here), found.count, reduction="none"),
            "bound": lambda: F.binary_cross_entropy_with_logits(
                self.named_bound(above[colored])[:, 0], true_color, reduction="none"
            ),
        }
        return torch.stack([_mean(read[name]()) for name in self.named]).sum()

    def forward(  # noqa: PLR0913, PLR0917 (the names of a batch)
        self,
        images: Tensor,
        input_ids: Tensor,
        image_mask: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        objects: Tensor,
    ) -> dict[str, Tensor]:
        """Loss of a batch of `Dialogues`."""
        patches = self.patches(degraded(images / 255))
        states = self.states(patches, input_ids=input_ids, image_mask=image_mask, attention_mask=attention_mask)
        surprise = F.cross_entropy(self.logits(states[-1], labels), labels[labels != IGNORED], reduction="none")
        loss = (answer_weights(labels) * surprise).sum()
        if self.place_loss:
            loss = loss + self.place_loss * self.distance(patches, objects)
        if self.named_loss:
            found = named_objects(input_ids, objects, self.shape_tokens, self.color_tokens)
            side = round(patches.shape[1] ** 0.5)
            loss = loss + self.named_loss * self.misnamed(states, found, side)
        return {"loss": loss}


def main(  # noqa: PLR0913, PLR0917 (a command's options)
    scenes: Path = Path("runs/mixed_scenes.safetensors"),
    drawn: Path | None = None,
    tower: Path = Path("runs/tower"),
    start_from: Path | None = None,
    output_dir: Path = Path("runs/mllm"),
    max_steps: int = 7000,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    tower_learning_rate: float = 3e-4,
    place_weight: float = 2.0,
    match_share: float = 0.4,
    place_loss: float = 0.0,
    named_loss: float = 0.0,
    named: list[str] | None = None,
    seed: int = 0,
    save_steps: int = 200,
    decay_steps: int | None = None,
    resume: bool = False,
) -> None:
    """Trains on the scenes that `make_scenes.py mixed` wrote and saves the model in `shapes-mllm`.

    Args:
        scenes: Of any objects.
        drawn: What `make_scenes.py drawn` wrote. Half of the images are taken from it.
        tower: Folder of the vision tower, as `train_tower.py` left it.
        start_from: `output_dir` of an earlier training, with whose weights and tokens this one begins.
        output_dir: Where to write.
        max_steps: Of the training.
        batch_size: Images of a step.
        learning_rate: Of all but the tower.
        tower_learning_rate: Of the tower.
        place_weight: How much oftener questions about places are asked.
        match_share: Share of the images of which only a caption is judged.
        place_loss: Weight of the distance between objects and where the tower's patches say that they are.
        named_loss: Weight of what the tokens that name a shape say of its objects.
        named: What they are asked for, of place, color, count and bound; all unless given.
        seed: Of the weights and the questions.
        save_steps: Between two checkpoints.
        decay_steps: At the end, in which the learning rate falls; a quarter of all unless given.
        resume: Go on from the last checkpoint.
    """
    torch.manual_seed(seed)
    data, vision = load_file(scenes), CLIPVisionModel.from_pretrained(tower)
    tokenizer = learned_tokenizer(data) if start_from is None else known_tokenizer(start_from)
    config = hub_config(vision_config(vision), tokenizer)
    model = make_model(config, vision)
    read_off = {"place_loss": place_loss, "named_loss": named_loss, "named": NAMED if named is None else named}
    objective = DialogueObjective(PhiVisionBackbone(model, tokenizer, num_crops=1), **read_off)
    if start_from is not None:
        objective.load_state_dict({**objective.state_dict(), **load_file(start_from / WEIGHTS)})
    sources = [data] if drawn is None else [data, load_file(drawn)]
    asked = {"place_weight": place_weight, "match_share": match_share}
    dataset = Dialogues(sources, objective.backbone, length=10_000_000, seed=seed, **asked)
    settings = FitConfig(
        output_dir=output_dir,
        max_steps=max_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        ema_decay=0.998,
        warmup_steps=min(200, max_steps // 4),
        decay_steps=decay_steps,
        save_steps=save_steps,
        resume=resume,
    )
    if fit(objective, dataset, settings, objective.parameter_groups(tower_learning_rate)):
        save_file(dict(objective.named_parameters()), output_dir / WEIGHTS)
        save_mllm(model, tokenizer, config, output_dir / FOLDER)


def vision_config(tower: CLIPVisionModel) -> dict:
    """The sizes of a vision tower."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("image_size", "patch_size", "projection_dim", "hidden_act")
    return {name: getattr(tower.config, name) for name in names}


if __name__ == "__main__":
    cyclopts.run(main)
