"""`fk-reward score`: the reward of image files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

from fk_reward.image_files import read_image
from fk_reward.models import DEFAULT_EMBEDDED_REWARD
from fk_reward.terminal import TextTable
from fk_reward.text import require_text


def score(
    images: Annotated[list[Path], typer.Argument(help="Image files.", show_default=False)],
    *,
    prompt: Annotated[
        list[str], typer.Option("--prompt", "-p", help="One for all images, or one for each in their order.")
    ],
    reward: Annotated[
        str, typer.Option("--reward", "-r", help="A reward of `fk-reward rewards`, or a composition of them.")
    ] = DEFAULT_EMBEDDED_REWARD,
    batch_size: Annotated[int, typer.Option(help="Images that the reward sees at once.", min=1)] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON in place of a table.")] = False,
) -> None:
    """Score image files with a reward."""
    prompts = _one_each(prompt, len(images))
    pictures = [read_image(path) for path in images]
    rewards = _score(reward, pictures, prompts, device=device, batch_size=batch_size)
    rows: list[dict[str, Any]] = [
        {"image": str(path), "prompt": text, "reward": value}
        for path, text, value in zip(images, prompts, rewards, strict=True)
    ]
    if as_json:
        for row in rows:
            row["reward"] = "-inf" if row["reward"] == -math.inf else row["reward"]  # JSON has no number for it
        typer.echo(json.dumps({"reward": reward, "scores": rows}, indent=2, allow_nan=False))
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
