"""How often is a reward right on preference data? Pairwise accuracy and the order of labelled pictures, by file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fk_reward.benchmarks.preference_answers import (
    Answers,
    ask_reward,
    is_label_logit,
    join_answers,
    summarize_answers,
)
from fk_reward.benchmarks.reports import Column, markdown_table, show_table, write_json
from fk_reward.cli.output_folder import NAMED_PATH
from fk_reward.durable_files import write_whole
from fk_reward.folder_lock import hold_folder
from fk_reward.rewards import Reward, load_reward
from fk_reward.training.preference_data import PreferenceItem
from fk_reward.training.readers import read_preferences

OVERALL = "overall"
"""Name of the row for all files with pairs together."""

COLUMNS = (
    Column("reward"),
    Column("file"),
    Column("num", "rows", "{:d}"),
    Column("num_prompts", "prompts", "{:d}"),
    Column("accuracy", style="{:.3f}"),
    Column("low", "95 % interval", "{:.3f} to {:.3f}", ("high",)),
    Column("accuracy_without_ties", "without ties", "{:.3f}"),
    Column("ties", style="{:.3f}"),
    Column("auc", "AUC", "{:.3f}"),
)


def accuracy_rows(
    reward: Reward, files: Mapping[str, Sequence[PreferenceItem]], *, batch_size: int = 64
) -> list[dict[str, Any]]:
    """Measures of one reward on sets of preference data, and on all pairs together where there are several sets.

    Args:
        reward: the reward.
        files: name of a set to its pairs or labelled pictures.
        batch_size: pairs or labelled pictures scored at a time.

    Returns:
        A row each, with `reward`, `file` and what `summarize_answers` gives; the last one is `OVERALL`.

    Example:
        >>> from PIL import Image
        >>> red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
        >>> pairs = read_preferences([{"prompt": "red", "chosen_path": red, "reject_path": blue}])
        >>> redness = load_reward(lambda images, prompts: images[:, 0].mean(dim=(1, 2)))
        >>> [(row["file"], row["accuracy"]) for row in accuracy_rows(redness, {"a": pairs, "b": pairs})]
        [('a', 1.0), ('b', 1.0), ('overall', 1.0)]
    """
    answers = {name: ask_reward(reward, items, batch_size=batch_size) for name, items in files.items()}
    return answer_rows(reward.card.name, answers, label_logits=is_label_logit(reward))


def answer_rows(reward: str, answers: Mapping[str, Answers], *, label_logits: bool) -> list[dict[str, Any]]:
    """The rows of `accuracy_rows` from answers that are there.

    Args:
        reward: its name.
        answers: name of a set to the answers.
        label_logits: as for `summarize_answers`.
    """
    pairs = [part for part in answers.values() if not part.is_labelled]
    joined = {OVERALL: join_answers(pairs)} if len(pairs) > 1 else {}
    return [
        {"reward": reward, "file": name, **summarize_answers(part, label_logits=label_logits)}
        for name, part in {**answers, **joined}.items()
    ]


def _load_rewards(names: Sequence[str], adapters: Sequence[Path], device: str) -> dict[str, Reward]:
    from fk_reward.cli.loading import resolve_device  # noqa: PLC0415 (only the command has a device to name)

    rewards = {name: load_reward(name) for name in names}
    rewards |= {str(folder): load_reward("llava-reward", adapter=folder) for folder in adapters}
    if not rewards:
        raise ValueError("Name at least one --reward, or the folder of an --adapter.")
    return {name: reward.to(resolve_device(device)) for name, reward in rewards.items()}


def main(  # noqa: PLR0913 (one parameter for each option)
    *,
    data: Annotated[list[Path], typer.Option(help="File with pairs or labelled pictures; may be repeated.")],
    reward: Annotated[list[str], typer.Option(help="Name of a reward; may be repeated.")] = [],  # noqa: B006
    adapter: Annotated[list[Path], typer.Option(help="Folder of a LLaVA-Reward of one's own; may be repeated.")] = [],  # noqa: B006
    dimension: Annotated[str | None, typer.Option(help="With ImageRewardDB: which rating decides.")] = None,
    image_root: Annotated[Path | None, typer.Option(help="Folder that paths of pictures start from.")] = None,
    batch_size: Annotated[int, typer.Option(help="Pairs or labelled pictures at a time.", min=1)] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder of the results.", **NAMED_PATH)] = Path("results/preferences"),
) -> None:
    """Measure how often rewards prefer what preference data say, and how well they order labelled pictures."""
    with hold_folder(out):
        rewards = _load_rewards(reward, adapter, device)
        files = {str(path): read_preferences(path, image_root=image_root, dimension=dimension) for path in data}
        rows = [
            {**row, "reward": name}
            for name, judge in rewards.items()
            for row in accuracy_rows(judge, files, batch_size=batch_size)
        ]
        show_table("Preferences", COLUMNS, rows)
        write_json(out / "preferences.json", {"rewards": list(rewards), "data": list(files), "rows": rows})
        write_whole(out / "preferences.md", markdown_table(COLUMNS, rows) + "\n")
    typer.echo(f"Results: {out / 'preferences.json'}, {out / 'preferences.md'}")
