"""Write a reward of your own and steer with it: here, images with more colour.

Run it with `python examples/custom_reward.py --prompt "a photo of three stars"`; it needs no network and no GPU.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fk_reward.cli import run_script
from fk_reward.pipelines import FKSteeringPipeline
from fk_reward.rewards import Reward, RewardCard


class Colourfulness(Reward):
    """Hasler and Suesstrunk 2003, "Measuring colourfulness in natural images", for pixels in [0, 1]."""

    card = RewardCard(
        name="colourfulness",
        summary="spread and strength of the opponent colours red-green and yellow-blue",
        typical_range=(0.0, 0.5),
        source="Hasler and Suesstrunk 2003, for pixels in [0, 1] instead of 0..255",
    )

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score (B, 3, H, W) in [0, 1]; the prompts play no part."""
        red, green, blue = images.flatten(2).unbind(1)
        opponents = torch.stack([red - green, (red + green) / 2 - blue])
        spread = opponents.std(dim=-1, correction=0).norm(dim=0)
        strength = opponents.mean(dim=-1).norm(dim=0)
        return spread + 0.3 * strength


def main(
    prompt: str = "a photo of three stars",
    num_particles: int = 4,
    steps: int = 20,
    seed: int = 0,
    out: Path = Path("custom_reward.png"),
) -> Tensor:
    """Write the most colourful of the steered images and print the rewards of all, best first.

    Args:
        prompt: What to draw.
        num_particles: K.
        steps: Scheduler steps.
        seed: Seed of the images.
        out: File to write.
    """
    pipe = FKSteeringPipeline.from_pretrained("shapes-sd", reward=Colourfulness())
    result = pipe(
        prompt,
        num_particles=num_particles,
        num_images_per_prompt=num_particles,
        num_inference_steps=steps,
        reward_scale="auto",
        generator=torch.Generator().manual_seed(seed),
    )
    result.images[0].save(out)
    print(f"{out}: rewards of the final particles, best first: {result.rewards[0].tolist()}")
    return result.rewards


if __name__ == "__main__":
    run_script(main)
