"""`fk-reward score`: the reward of image files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from PIL import Image

from fk_reward.cli.options import MEMORY, OUTPUT, DeviceOption, RewardOption
from fk_reward.image_files import read_image
from fk_reward.models import DEFAULT_EMBEDDED_REWARD
from fk_reward.terminal import TextTable, write_document
from fk_reward.text import require_text
from fk_reward.value_checks import whole_number


def score(
    images: list[Path],
    /,
    *,
    prompt: Annotated[list[str], Parameter(alias="-p")],
    reward: RewardOption = DEFAULT_EMBEDDED_REWARD,
    batch_size: Annotated[int, Parameter(group=MEMORY)] = 16,
    device: DeviceOption = "auto",
    as_json: Annotated[bool, Parameter(name="--json", group=OUTPUT)] = False,
) -> None:
    """Score image files with a reward.

    Args:
        images: Image files.
        prompt: Prompt of the images: one for all of them, or one for each in their order.
        reward: Reward of `fk-reward rewards`, or a composition of them.
        batch_size: Images that the reward sees at once.
        device: Device of the reward: auto (the GPU where there is one), cpu or cuda.
        as_json: Write JSON in place of a table.
    """
    whole_number("--batch-size", batch_size, minimum=1)
    prompts = _one_each(prompt, len(images))
    opened = [read_image(path) for path in images]
    rewards = _score(reward, opened, prompts, device=device, batch_size=batch_size)
    rows: list[dict[str, Any]] = [
        {"image": str(path), "prompt": text, "reward": value}
        for path, text, value in zip(images, prompts, rewards, strict=True)
    ]
    if as_json:
        for row in rows:
            row["reward"] = "-inf" if row["reward"] == -math.inf else row["reward"]  # JSON has no number for it
        write_document(json.dumps({"reward": reward, "scores": rows}, indent=2, allow_nan=False))
        return
    table = TextTable(reward)
    table.add_column("image")
    table.add_column("prompt")
    table.add_column("reward", right=True)
    for row in rows:
        table.add_row(row["image"], row["prompt"], f"{row['reward']:.4f}")
    table.print()


def _one_each(prompts: list[str], num_images: int) -> list[str]:
    if len(prompts) not in (1, num_images):
        raise ValueError(
            f"Give --prompt once for all images or once for each: got {len(prompts)} prompts for {num_images} images."
        )
    require_text(prompts, "--prompt")
    return prompts * num_images if len(prompts) == 1 else prompts


def _score(name: str, images: list[Image.Image], prompts: list[str], *, device: str, batch_size: int) -> list[float]:
    import torch

    from fk_reward.devices import resolve_device
    from fk_reward.rewards import load_reward

    reward = load_reward(name).to(resolve_device(device))
    reward.batch_size = batch_size
    with torch.no_grad():
        return reward(images, prompts).tolist()
