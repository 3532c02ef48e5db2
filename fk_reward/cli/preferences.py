"""`fk-reward preferences`: how often rewards are right on preference data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from fk_reward.cli.options import MEMORY, REWARD, DeviceOption, OutOption
from fk_reward.devices import resolve_device
from fk_reward.output_folder import hold_folder
from fk_reward.value_checks import whole_number

if TYPE_CHECKING:
    from fk_reward.rewards import Reward


def preferences(  # noqa: PLR0913 (one parameter for each option)
    *,
    data: list[Path],
    reward: Annotated[list[str] | None, Parameter(alias="-r", group=REWARD, allow_leading_hyphen=True)] = None,
    adapter: Annotated[list[Path] | None, Parameter(group=REWARD)] = None,
    dimension: str | None = None,
    image_root: Path | None = None,
    batch_size: Annotated[int, Parameter(group=MEMORY)] = 32,
    device: DeviceOption = "auto",
    out: OutOption = Path("results/preferences"),
) -> None:
    """Measure how often rewards prefer what preference data say, and how well they order labelled images.

    Args:
        data: File with pairs or labelled images; may be repeated.
        reward: Reward of `fk-reward rewards`, or a composition of them; may be repeated.
        adapter: Folder of a LLaVA-Reward of one's own; may be repeated.
        dimension: With ImageRewardDB: which rating decides.
        image_root: Folder that paths of images start from.
        batch_size: Pairs or labelled images at a time.
        device: Device of the rewards: auto (the GPU where there is one), cpu, cuda, cuda:1, ... or mps.
        out: Folder of the results.
    """
    whole_number("--batch-size", batch_size, minimum=1)
    from fk_reward.benchmarks.preferences import measure_rewards
    from fk_reward.benchmarks.report import show_report
    from fk_reward.training import read_preferences

    with hold_folder(out):
        rewards = _load_rewards(reward or (), adapter or (), resolve_device(device))
        files = {str(path): read_preferences(path, image_root=image_root, dimension=dimension) for path in data}
        show_report(measure_rewards(rewards, files, out, batch_size=batch_size), "Results")


def _load_rewards(names: Sequence[str], adapters: Sequence[Path], device: str) -> dict[str, Reward]:
    from fk_reward.rewards import load_reward

    rewards = {name: load_reward(name) for name in names}
    rewards |= {str(folder): load_reward("llava-reward", adapter=folder) for folder in adapters}
    if not rewards:
        raise ValueError("Name at least one --reward, or the folder of an --adapter.")
    return {name: reward.to(device) for name, reward in rewards.items()}
