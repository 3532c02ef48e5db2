"""`fk-reward score`: the reward of image files, of folders of them, and of tables that name images and prompts."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from fk_reward.cli.early_checks import of_each
from fk_reward.cli.options import MEMORY, OUTPUT, DeviceOption, RewardOption, named_path
from fk_reward.cli.scored_images import ScoredImage, find_images
from fk_reward.durable_files import write_whole
from fk_reward.models import DEFAULT_EMBEDDED_REWARD
from fk_reward.terminal import TextTable, open_console, progress_bars, say, write_document
from fk_reward.value_checks import whole_number

if TYPE_CHECKING:
    from fk_reward.rewards import Reward

OUTPUTS = (".csv", ".json", ".jsonl")


def check_output(path: Path) -> None:
    """Raise for a file of results whose kind is unknown.

    Raises:
        ValueError: the message lists the kinds.

    Example:
        >>> check_output(Path("scores.csv"))
    """
    if path.suffix.lower() not in OUTPUTS:
        raise ValueError(f"--out {path}: the kind of file is told by its end: {', '.join(OUTPUTS)}.")


def score(
    images: list[Path],
    /,
    *,
    prompt: Annotated[list[str] | None, Parameter(alias="-p")] = None,
    reward: RewardOption = DEFAULT_EMBEDDED_REWARD,
    batch_size: Annotated[int, Parameter(group=MEMORY)] = 16,
    device: DeviceOption = "auto",
    out: Annotated[
        Path | None, Parameter(alias="-o", group=OUTPUT, converter=named_path, validator=of_each(check_output))
    ] = None,
    as_json: Annotated[bool, Parameter(name="--json", group=OUTPUT)] = False,
) -> None:
    """Score image files with a reward.

    Prompts are typed, or stand in a table (.csv or .jsonl with image and prompt), in the result.json of a folder that
    fk-reward generate wrote, or beside each image in a .txt of the same name.

    Args:
        images: Image files, folders of them (with all below), or tables with the columns image and prompt.
        prompt: Prompt of the images: one for all of them, or one for each in their order.
        reward: Reward of `fk-reward rewards`, or a composition of them.
        batch_size: Images that the reward sees at once.
        device: Device of the reward: auto (the GPU where there is one), cpu, cuda, cuda:1, ... or mps.
        out: File for the scores: .csv, .json or .jsonl. A .csv keeps the other columns of the tables.
        as_json: Write JSON on the standard output in place of a table.
    """
    whole_number("--batch-size", batch_size, minimum=1)
    asked = find_images(images, prompt or ())
    rewards = _score(reward, asked, device=device, batch_size=batch_size)
    rows = [{**each.columns, "image": str(each.path), "prompt": each.prompt} for each in asked]
    scored = [row | {"reward": value} for row, value in zip(rows, rewards, strict=True)]
    if out is not None:
        write_whole(out, _document(scored, out.suffix.lower(), reward))
        say(f"{len(scored)} scores in {out}", stderr=as_json)
    if as_json:
        write_document(_document(scored, ".json", reward))
    elif out is None:
        _show(scored, reward)


def _score(name: str, asked: Sequence[ScoredImage], *, device: str, batch_size: int) -> list[float]:
    """Rewards in order; only one batch of images is in memory."""
    import torch

    from fk_reward.devices import resolve_device
    from fk_reward.rewards import load_reward
    from fk_reward.terminal import quiet_loading

    quiet_loading()
    reward = load_reward(name).to(resolve_device(device))
    reward.batch_size = batch_size
    with torch.no_grad():
        return [value for batch in _watched(asked, name, batch_size) for value in _score_batch(reward, batch)]


def _score_batch(reward: Reward, batch: Sequence[ScoredImage]) -> list[float]:
    from fk_reward.image_files import read_image

    values: list[float] = reward([read_image(each.path) for each in batch], [each.prompt for each in batch]).tolist()
    return values


def _watched(asked: Sequence[ScoredImage], name: str, size: int) -> Iterable[Sequence[ScoredImage]]:
    """Batches, with a bar on a terminal where there are several."""
    batches = [asked[start : start + size] for start in range(0, len(asked), size)]
    console = open_console(stderr=True)
    if len(batches) == 1 or not console.is_terminal:
        yield from batches
        return
    with progress_bars(console) as bars:
        task = bars.add_task(name, total=len(asked))
        for batch in batches:
            yield batch
            bars.advance(task, len(batch))


def _document(rows: Sequence[dict[str, Any]], kind: str, reward: str) -> str:
    if kind == ".csv":
        columns = list(dict.fromkeys(column for row in rows for column in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()
    # JSON has no number for -inf, the reward of a forbidden image
    plain = [row | {"reward": "-inf"} if row["reward"] == -math.inf else row for row in rows]
    if kind == ".jsonl":
        return "".join(json.dumps(row, allow_nan=False) + "\n" for row in plain)
    return json.dumps({"reward": reward, "scores": plain}, indent=2, allow_nan=False) + "\n"


def _show(rows: Sequence[dict[str, Any]], reward: str) -> None:
    table = TextTable(reward)
    table.add_column("image")
    table.add_column("prompt")
    table.add_column("reward", right=True)
    for row in rows:
        table.add_row(row["image"], row["prompt"], f"{row['reward']:.4f}")
    table.print()
