"""What does each reward cost? Parameters, memory and operations, counted without weights; seconds, measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from fk_reward.benchmarks.full_size_rewards import FULL_SIZE, FullSize
from fk_reward.benchmarks.hollow import count_flops
from fk_reward.benchmarks.report import Column, markdown_table, show_table, write_json
from fk_reward.benchmarks.reward_times import PROMPT, TIME_COLUMNS, TimeSettings, image_size, is_at_hand, time_rows
from fk_reward.devices import DEVICES, resolve_device
from fk_reward.durable_files import write_whole
from fk_reward.output_folder import NAMED_PATH, hold_folder
from fk_reward.rewards import REWARDS, Reward, load_reward, reward_card
from fk_reward.rewards.vlm_judge import VLMJudge
from fk_reward.value_checks import parse_integers

COST_COLUMNS = (
    Column("reward", style="`{}`"),
    Column("parameters", "parameters, million", "{:,.1f}"),
    Column("gigabytes", "weights, GB", "{:.3g}"),
    Column("dtype"),
    Column("gflops", "GFLOP an image", "{:,.1f}"),
    Column("note"),
)


def cost_row(name: str, *, flops: bool = True) -> dict[str, Any]:
    """Count what a reward costs, without its weights.

    Args:
        name: a registered name.
        flops: whether operations are counted, too, which takes seconds.

    Returns:
        `reward`, `parameters` in millions, `gigabytes` (10⁹ bytes) and `dtype` as the reward is loaded by default,
        `gflops` (10⁹ operations) of one image and prompt, and a `note`. What is not counted is not there.

    Example:
        >>> cost_row("clipscore", flops=False)["parameters"]
        427.616513
        >>> cost_row("llava-reward")
        {'reward': 'llava-reward', 'note': 'not computed: that of the backbone'}
    """
    if name in FULL_SIZE:
        costs = _full_size_costs(FULL_SIZE[name], flops=flops)
    elif is_at_hand(name):
        costs = _costs(load_reward(name), image_size(name), flops=flops)
    else:
        costs = {"note": f"not computed: {reward_card(name).memory}"}
    return {"reward": name, **costs}


@cache
def _full_size_costs(entry: FullSize, *, flops: bool) -> dict[str, Any]:
    return _costs(entry.make(), image_size(), flops=flops)


def _costs(reward: Reward, size: int, *, flops: bool) -> dict[str, Any]:
    weights = list(dict.fromkeys(weight for module in reward._held_modules() for weight in module.parameters()))
    if not weights:
        return {"note": "no weights"}
    costs: dict[str, Any] = {
        "parameters": sum(weight.numel() for weight in weights) / 1e6,
        "gigabytes": sum(weight.nbytes for weight in weights) / 1e9,
        "dtype": str(weights[0].dtype).removeprefix("torch."),
    }
    if isinstance(reward, VLMJudge):
        return costs | {"note": "as many passes as the answer has tokens"}
    return costs | ({"gflops": count_flops(reward, size, PROMPT) / 1e9} if flops else {})


def report(costs: Sequence[dict[str, Any]], times: Sequence[dict[str, Any]]) -> str:
    """The tables in Markdown, the second one where something was measured.

    Example:
        >>> print(report([{"reward": "a", "note": "no weights"}], []))
        | reward | parameters, million | weights, GB | dtype | GFLOP an image | note |
        | --- | --- | --- | --- | --- | --- |
        | `a` | - | - | - | - | no weights |
    """
    tables = [markdown_table(COST_COLUMNS, costs)]
    return "\n\n".join(tables + ([markdown_table(TIME_COLUMNS, times)] if times else []))


def main(  # noqa: PLR0913 (one parameter for each option)
    *,
    reward: Annotated[list[str] | None, typer.Option(help="Name of a reward; may be repeated. All by default.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Time the rewards that come with the package.")] = False,
    full_size: Annotated[
        bool, typer.Option("--full-size", help="With --measure: the others, too, with random weights of their size.")
    ] = False,
    batch_size: Annotated[str, typer.Option(help="Images in a call, separated by commas.")] = "1,8",
    num_repetitions: Annotated[int, typer.Option(help="Timed calls, at least 2.", min=2)] = 7,
    device: Annotated[str, typer.Option(help=f"Where to time: {', '.join(DEVICES)}.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Seed of random weights.")] = 0,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown and nothing else.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the results.", **NAMED_PATH)] = Path("results/reward-costs"),
) -> None:
    """Count what each reward costs, without its weights, and time what can be; write `reward_costs.json` and `.md`."""
    settings = TimeSettings(
        batch_sizes=parse_integers("batch_size", batch_size),
        full_size=full_size,
        num_repetitions=num_repetitions,
        device=resolve_device(device),
        seed=seed,
    )
    names = reward or list(REWARDS)
    with hold_folder(out):
        costs = [cost_row(name) for name in names]
        times = list(time_rows(names, settings)) if measure else []
        content = {"settings": asdict(settings), "costs": costs, "times": times}
        path = write_json(out / "reward_costs.json", content)
        write_whole(path.with_suffix(".md"), report(costs, times) + "\n")
    if markdown:
        typer.echo(report(costs, times))
        return
    show_table("Costs, counted", COST_COLUMNS, costs)
    if times:
        show_table(f"Times, measured on {settings.device}", TIME_COLUMNS, times)
    typer.echo(f"Results: {path}")
