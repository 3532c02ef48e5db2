"""Cost of each reward: parameters, memory and operations, counted without weights; seconds, measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fk_reward.benchmarks.report import markdown_table, show_table, write_json
from fk_reward.benchmarks.rewards.costs import COST_COLUMNS, TIME_COLUMNS, TimeSettings, cost_row, time_rows
from fk_reward.cli import run_script
from fk_reward.cli.options import OutOption
from fk_reward.devices import resolve_device
from fk_reward.durable_files import write_whole
from fk_reward.output_folder import hold_folder
from fk_reward.rewards import REWARDS
from fk_reward.terminal import say, write_document
from fk_reward.value_checks import parse_integers, whole_number


def report(costs: Sequence[dict[str, Any]], times: Sequence[dict[str, Any]]) -> str:
    """The tables in Markdown, the second one if something was measured.

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
    reward: list[str] | None = None,
    measure: bool = False,
    full_size: bool = False,
    batch_size: str = "1,8",
    num_repetitions: int = 7,
    device: str = "cpu",
    seed: int = 0,
    markdown: bool = False,
    out: OutOption = Path("results/reward-costs"),
) -> None:
    """Count what each reward costs, without its weights, and time what can be; write `reward_costs.json` and `.md`.

    Args:
        reward: Name of a reward; may be repeated. All by default.
        measure: Time the rewards that come with the package.
        full_size: With --measure: the others, too, with random weights of their size.
        batch_size: Images in a call, separated by commas.
        num_repetitions: Timed calls, at least 2.
        device: Where to time: auto, cpu or cuda.
        seed: Seed of random weights.
        markdown: Print Markdown and nothing else.
        out: Folder of the results.
    """
    whole_number("--num-repetitions", num_repetitions, minimum=2)
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
        write_document(report(costs, times))
        return
    show_table("Costs, counted", COST_COLUMNS, costs)
    if times:
        show_table(f"Times, measured on {settings.device}", TIME_COLUMNS, times)
    say(f"Results: {path}")


if __name__ == "__main__":
    run_script(main)
