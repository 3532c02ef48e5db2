"""Trains the vision tower of `shapes-mllm` to say, of each patch, which object it shows and where its centre is."""

from __future__ import annotations

from pathlib import Path

import cyclopts
import torch
from fit import FitConfig, fit
from safetensors.torch import load_file
from scene_data import TensorsDataset
from torch import Tensor, nn
from torch.nn import functional as F
from train_clip import EMPTY, NUM_CLASSES, UNKNOWN, degraded
from transformers import CLIPVisionConfig, CLIPVisionModel

from fk_reward.rewards.llava_reward.backbones.phi3_vision import CLIP_MEAN, CLIP_STD
from fk_reward.shapes import COLORS, SHAPES
from fk_reward.shapes.scene import EXTENTS

TOWER = {
    "hidden_size": 192,
    "intermediate_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "image_size": 64,
    "patch_size": 8,
    "projection_dim": 64,
    "hidden_act": "quick_gelu",
}


def patch_centers(side: int, device: torch.device) -> Tensor:
    """Centres of the patches of a grid, `(side^2, 2)` as x and y in [0, 1], in reading order."""
    line = (torch.arange(side, device=device) + 0.5) / side
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)


def patch_targets(objects: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """What each patch of an image shows.

    Args:
        objects: `(B, 4, 6)`, the table of `scene_data.py`.
        side: Patches along a side of the image.

    Returns:
        covered: `(B, side^2)` class of the object that covers the centre of a patch (`shape * colours + colour`),
            `EMPTY` where no object touches the patch, `UNKNOWN` between.
        centered: `(B, side^2)` class of the object whose centre lies in the patch, `EMPTY` where there is none.
        geometry: `(B, side^2, 3)`, for the latter patches the offset of that centre from its own and the size
            of the object, all in patches.
    """
    batch = len(objects)
    shape, color, x, y, size, _ = objects.unbind(-1)
    there = shape >= 0
    classes = torch.where(there, shape * len(COLORS) + color, EMPTY).long()
    place = torch.stack([x, y], dim=-1)
    patches = patch_centers(side, objects.device)
    distance = (patches[None, :, None] - place[:, None]).norm(dim=-1).masked_fill(~there[:, None], torch.inf)
    extent = torch.tensor([EXTENTS[name] for name in SHAPES], device=objects.device)[shape.long().clamp(min=0)] * size
    half_diagonal = 0.5**0.5 / side
    outside = (distance > extent[:, None] + half_diagonal).all(-1)
    nearest, which = (distance / size[:, None].clamp(min=1e-3)).min(-1)
    # `size` is the radius of the disk of the same area: within 0.5 of it all six shapes are filled.
    covered = torch.where(nearest < 0.5, classes.gather(1, which), torch.where(outside, EMPTY, UNKNOWN))
    cell = ((place * side).long().clamp(0, side - 1) * torch.tensor([1, side], device=objects.device)).sum(-1)
    centered = torch.full((batch, side**2), EMPTY, device=objects.device)
    geometry = torch.zeros(batch, side**2, 3, device=objects.device)
    rows, columns = there.nonzero(as_tuple=True)
    cells = cell[rows, columns]
    centered[rows, cells] = classes[rows, columns]
    offset = (place[rows, columns] - patches[cells]) * side
    geometry[rows, cells] = torch.cat([offset, size[rows, columns, None] * side], dim=-1)
    return covered, centered, geometry


def patch_places(objects: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Where the objects are that patches show.

    Args:
        objects: `(B, 4, 6)`, the table of `scene_data.py`.
        side: Patches along a side of the image.

    Returns:
        places: `(B, side^2, 2)`, x and y of the centre of the object nearest to each patch, in patches.
        shown: `(B, side^2)` bool, whether the patch shows that object.
    """
    there = objects[..., 0] >= 0
    place, size = objects[..., 2:4], objects[..., 4].clamp(min=1e-3)
    distance = (patch_centers(side, objects.device)[None, :, None] - place[:, None]).norm(dim=-1)
    nearest, which = (distance / size[:, None]).masked_fill(~there[:, None], torch.inf).min(-1)
    return place.gather(1, which[..., None].expand(-1, -1, 2)) * side, nearest < 1


class TowerObjective(nn.Module):
    """Cross-entropy of what covers a patch and of whose centre is in it, and the distance to that centre.

    Images are degraded as for the CLIP, so that the tower reads what is not finished, too.
    """

    def __init__(self, tower: CLIPVisionModel) -> None:
        super().__init__()
        self.tower = tower
        tower.post_layernorm.requires_grad_(False)  # is for CLIP's class token, nothing here reads it
        width = tower.config.hidden_size
        self.covered, self.centered = nn.Linear(width, NUM_CLASSES), nn.Linear(width, NUM_CLASSES)
        self.geometry = nn.Linear(width, 3)
        self.register_buffer("mean", torch.tensor(CLIP_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD)[:, None, None], persistent=False)

    def read(self, images: Tensor) -> Tensor:
        """`(B, P, C)` features of the patches of images in [0, 1]."""
        return self.tower((images - self.mean) / self.std).last_hidden_state[:, 1:]

    def forward(self, images: Tensor, objects: Tensor) -> dict[str, Tensor]:
        """Loss of `(B, 3, 64, 64)` uint8 images with their objects, `(B, 4, 6)`."""
        features = self.read(degraded(images / 255))
        side = self.tower.config.image_size // self.tower.config.patch_size
        covered, centered, geometry = patch_targets(objects, side)
        has_center = centered != EMPTY
        by_class = F.cross_entropy(self.covered(features).mT, covered, ignore_index=UNKNOWN)
        by_center = F.cross_entropy(self.centered(features).mT, centered)
        by_distance = F.l1_loss(self.geometry(features)[has_center], geometry[has_center])
        return {"loss": by_class + 4 * by_center + by_distance}


@torch.no_grad()
def recall(objective: TowerObjective, images: Tensor, objects: Tensor) -> tuple[float, float]:
    """Share of the images whose patches are all classified right: by what covers them, by whose centre is in them."""
    covered, centered, _ = patch_targets(objects, 8)
    features = objective.read(images / 255)
    seen, found = objective.covered(features).argmax(-1), objective.centered(features).argmax(-1)
    by_class = ((seen == covered) | (covered == UNKNOWN)).all(1).float().mean()
    return float(by_class), float((found == centered).all(1).float().mean())


def main(  # noqa: PLR0913, PLR0917 (a command's options)
    scenes: Path = Path("runs/mixed_scenes.safetensors"),
    output_dir: Path = Path("runs/tower"),
    max_steps: int = 4000,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    seed: int = 0,
    save_steps: int = 200,
    num_tested: int = 1000,
    resume: bool = False,
) -> None:
    """Trains a `CLIPVisionModel` on all but the last `num_tested` scenes that `make_scenes.py mixed` wrote."""
    torch.manual_seed(seed)
    data = load_file(scenes)
    objective = TowerObjective(CLIPVisionModel(CLIPVisionConfig(**TOWER)))
    config = FitConfig(
        output_dir=output_dir,
        max_steps=max_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        ema_decay=0.998,
        warmup_steps=min(200, max_steps // 4),
        decay_steps=max_steps // 2,
        save_steps=save_steps,
        resume=resume,
    )
    dataset = TensorsDataset(**{name: tensor[:-num_tested] for name, tensor in data.items()})
    if fit(objective, dataset, config):
        by_class, by_center = recall(objective.eval(), data["images"][-num_tested:], data["objects"][-num_tested:])
        print(f"all patches of an image right: {by_class:.3f} by their objects, {by_center:.3f} by their centres")
        objective.tower.save_pretrained(output_dir)


if __name__ == "__main__":
    cyclopts.run(main)
