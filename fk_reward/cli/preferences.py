"""`fk-reward benchmark preferences`: how often rewards are right on preference data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fk_reward.devices import resolve_device
from fk_reward.output_folder import NAMED_PATH, hold_folder

if TYPE_CHECKING:
    from fk_reward.rewards import Reward


def main(  # noqa: PLR0913 (one parameter for each option)
    *,
    data: Annotated[list[Path], typer.Option(help="File with pairs or labelled images; may be repeated.")],
    reward: Annotated[list[str], typer.Option(help="Name of a reward; may be repeated.")] = [],  # noqa: B006
    adapter: Annotated[list[Path], typer.Option(help="Folder of a LLaVA-Reward of one's own; may be repeated.")] = [],  # noqa: B006
    dimension: Annotated[str | None, typer.Option(help="With ImageRewardDB: which rating decides.")] = None,
    image_root: Annotated[Path | None, typer.Option(help="Folder that paths of images start from.")] = None,
    batch_size: Annotated[int, typer.Option(help="Pairs or labelled images at a time.", min=1)] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder of the results.", **NAMED_PATH)] = Path("results/preferences"),
) -> None:
    """Measure how often rewards prefer what preference data say, and how well they order labelled images."""
    from fk_reward.benchmarks.preferences import measure_rewards
    from fk_reward.benchmarks.report import show_report
    from fk_reward.training import read_preferences

    with hold_folder(out):
        rewards = _load_rewards(reward, adapter, resolve_device(device))
        files = {str(path): read_preferences(path, image_root=image_root, dimension=dimension) for path in data}
        show_report(measure_rewards(rewards, files, out, batch_size=batch_size), "Results")


def _load_rewards(names: Sequence[str], adapters: Sequence[Path], device: str) -> dict[str, Reward]:
    from fk_reward.rewards import load_reward

    rewards = {name: load_reward(name) for name in names}
    rewards |= {str(folder): load_reward("llava-reward", adapter=folder) for folder in adapters}
    if not rewards:
        raise ValueError("Name at least one --reward, or the folder of an --adapter.")
    return {name: reward.to(device) for name, reward in rewards.items()}
