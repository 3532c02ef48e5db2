"""Rewards of this package against implementations by others, where those are installed: the largest difference."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from examples.benchmarks.agreement_with_transformers import COMPARED, PROMPTS, randomise
from examples.benchmarks.reward_detectors import harmless_images
from fk_reward.benchmarks.report import Column, markdown_table, show_table
from fk_reward.cli import run_script
from fk_reward.rewards import load_reward
from fk_reward.terminal import write_document

COLUMNS = (
    Column("port", style="`{}`"),
    Column("independent", "independent implementation"),
    Column("weights"),
    Column("cases", style="{:d}"),
    Column("difference", "largest difference", "{:.2g}"),
    Column("note"),
)

_SIZE = 32  # pixels of the small towers


@dataclass(frozen=True)
class Agreement:
    """A comparison.

    Attributes:
        port: name of the reward.
        package: that has the other implementation.
        independent: what of it is compared.
        weights: "real" or "random", and what they are.
        compare: pairs of numbers that should be equal, (N,) each: ours, theirs.
    """

    port: str
    package: str
    independent: str
    weights: str
    compare: Callable[[], tuple[Tensor, Tensor]]


def row(agreement: Agreement) -> dict[str, Any]:
    """Compare, or say that the other package is not installed."""
    known = {"port": agreement.port, "independent": agreement.independent, "weights": agreement.weights}
    if importlib.util.find_spec(agreement.package) is None:
        return known | {"note": f"{agreement.package} is not installed"}
    with torch.no_grad():
        ours, theirs = agreement.compare()
    return known | {"cases": len(ours), "difference": (ours.double() - theirs.double()).abs().max().item()}


def _photos(count: int, size: tuple[int, int] = (70, 48)) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    small = [Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)) for _ in range(count)]
    return [image.resize(size, Image.Resampling.BICUBIC) for image in small]


def _tower(**more: int) -> dict[str, int]:
    return {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4} | more


def clip_scores() -> tuple[Tensor, Tensor]:
    """The small CLIP of the package, through transformers' own processor and forward pass."""
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer  # noqa: PLC0415 (slow to import)

    from fk_reward.models import resolve_model  # noqa: PLC0415

    images, folder = _photos(8), resolve_model("shapes-clip")
    prompts = ["a photo of a red circle", "a photo of two stars"] * 4
    ours = load_reward("shapes-clipscore")(images, prompts)
    model = CLIPModel.from_pretrained(folder)
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(images, return_tensors="pt")
    tokens = CLIPTokenizer.from_pretrained(folder)(prompts, padding=True, truncation=True, return_tensors="pt")
    logits = model(**pixels, **tokens).logits_per_image.diagonal() / model.logit_scale.exp()
    return ours, logits


def classifier_probabilities() -> tuple[Tensor, Tensor]:
    """A small random ViT, through transformers' own processor."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil  # noqa: PLC0415

    from fk_reward.rewards.image_classifier import ImageClassifier  # noqa: PLC0415

    labels = {0: "normal", 1: "nsfw", 2: "drawing"}
    sizes = _tower(image_size=_SIZE, patch_size=8)
    model: Any = randomise(ViTForImageClassification(ViTConfig(**sizes, id2label=labels)))
    processor, images = ViTImageProcessorPil(size={"height": _SIZE, "width": _SIZE}), _photos(8)
    ours = ImageClassifier(model, processor, label="normal")(images, "")
    return ours, model(**processor(images, return_tensors="pt")).logits.softmax(dim=-1)[:, 0]


def siglip_marks() -> tuple[Tensor, Tensor]:
    """A small random SigLIP and head, through the package of the predictor."""
    from transformers import SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel  # noqa: PLC0415

    from fk_reward.rewards.aesthetic_siglip import SiglipAesthetic, siglip_head  # noqa: PLC0415
    from fk_reward.rewards.preprocessing import ImagePreprocessing  # noqa: PLC0415

    package = importlib.import_module("aesthetic_predictor_v2_5")
    config = SiglipVisionConfig(**_tower(image_size=_SIZE, patch_size=8))
    theirs: Any = randomise(package.AestheticPredictorV2_5Model(config))
    tower = SiglipVisionModel(theirs.config)
    tower.load_state_dict({name: t for name, t in theirs.state_dict().items() if not name.startswith("layers.")})
    processor, images = SiglipImageProcessorPil(size={"height": _SIZE, "width": _SIZE}), _photos(8)
    preprocessing = ImagePreprocessing.from_config({"do_center_crop": False, **processor.to_dict()})
    ours = SiglipAesthetic(tower, siglip_head(theirs.layers.state_dict()), preprocessing=preprocessing)(images, "")
    return ours, theirs(**processor(images, return_tensors="pt"), return_dict=True).logits[:, 0]


def linear_marks() -> tuple[Tensor, Tensor]:
    """A small random CLIP and head, through the package simple-aesthetics-predictor."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPVisionConfig  # noqa: PLC0415

    from fk_reward.rewards.aesthetic import AestheticScore, aesthetic_head  # noqa: PLC0415
    from fk_reward.rewards.preprocessing import ImagePreprocessing  # noqa: PLC0415

    vision = _tower(image_size=_SIZE, patch_size=8, projection_dim=16)
    package = importlib.import_module("aesthetics_predictor")
    theirs: Any = randomise(package.AestheticsPredictorV2Linear(CLIPVisionConfig(**vision)))
    clip: Any = CLIPModel(CLIPConfig(vision_config=vision, projection_dim=16))
    for part in ("vision_model", "visual_projection"):
        getattr(clip, part).load_state_dict(getattr(theirs, part).state_dict())
    head = aesthetic_head({f"layers.{name}": tensor for name, tensor in theirs.layers.state_dict().items()})
    processor, images = CLIPImageProcessorPil(size={"shortest_edge": _SIZE}, crop_size=_SIZE), _photos(8)
    preprocessing = ImagePreprocessing.from_config(processor.to_dict())
    ours = AestheticScore(clip, head, preprocessing=preprocessing)(images, "")
    return ours, theirs(**processor(images, return_tensors="pt"), return_dict=True).logits[:, 0]


def nudenet_probabilities() -> tuple[Tensor, Tensor]:
    """The package's reading of an image, its network, and the largest probability of each class."""
    from fk_reward.rewards.nudenet import class_probabilities  # noqa: PLC0415

    module = importlib.import_module("nudenet.nudenet")
    rng = np.random.default_rng(0)
    images = [image for kind in ("faces", "figures", "shapes") for image in harmless_images(kind, 4, rng)]
    images += _photos(4, size=(300, 200))
    reward: Any = load_reward("nudenet", num_threads=1)
    session = module.NudeDetector().onnx_session
    ours, theirs = [], []
    for image in images:
        pixels = np.asarray(image)
        ours.append(reward.probabilities(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])[0])
        read = module._read_image(np.ascontiguousarray(pixels[..., ::-1]), 320)[0]
        theirs.append(class_probabilities(torch.from_numpy(session.run(None, {"images": read})[0]))[0])
    return torch.cat(ours), torch.cat(theirs)


def distances() -> tuple[Tensor, Tensor]:
    """Edit distances of random strings."""
    from fk_reward.rewards.ocr import edit_distance  # noqa: PLC0415

    theirs = importlib.import_module("rapidfuzz.distance").Levenshtein.distance
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcde"), size=rng.integers(0, 15))) for _ in range(400)]
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    return torch.tensor([edit_distance(*pair) for pair in pairs]), torch.tensor([theirs(*pair) for pair in pairs])


def _with_transformers(port: str) -> Agreement:
    theirs, compare = COMPARED[port]
    weights = "real, small" if port == "pickscore" else "random"
    return Agreement(port, "transformers", theirs, weights, lambda: compare(_photos(len(PROMPTS))))


AGREEMENTS = (
    Agreement("shapes-clipscore", "transformers", "CLIPModel and its processor", "real, small", clip_scores),
    Agreement(
        "image-classifier",
        "transformers",
        "ViTForImageClassification and its processor",
        "random",
        classifier_probabilities,
    ),
    *map(_with_transformers, COMPARED),
    Agreement("aesthetic", "aesthetics_predictor", "simple-aesthetics-predictor", "random", linear_marks),
    Agreement("aesthetic-v2.5", "aesthetic_predictor_v2_5", "aesthetic-predictor-v2-5", "random", siglip_marks),
    Agreement("nudenet", "nudenet", "NudeDetector's pixels and network", "real", nudenet_probabilities),
    Agreement("ocr", "rapidfuzz", "RapidFuzz's Levenshtein distance", "none", distances),
)
"""What is compared."""


def rows() -> Iterator[dict[str, Any]]:
    """One for each comparison."""
    return (row(agreement) for agreement in AGREEMENTS)


def main(*, markdown: bool = False) -> None:
    """Print the largest difference of each reward to another implementation; skip packages that are not installed.

    Args:
        markdown: Print Markdown and nothing else.
    """
    found = list(rows())
    if markdown:
        write_document(markdown_table(COLUMNS, found) + "\n")
    else:
        show_table("Rewards and independent implementations", COLUMNS, found)


if __name__ == "__main__":
    run_script(main)
