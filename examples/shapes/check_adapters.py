"""Compares the trained adapters on held-out preferences, and exports the best ones into the package."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import cyclopts
import torch
from torch import Tensor

from fk_reward.benchmarks.preferences import OVERALL, Answers, answer_rows, ask_reward, is_label_logit
from fk_reward.benchmarks.report import Column, markdown_table, show_table, write_json
from fk_reward.benchmarks.statistics import clustered_bootstrap
from fk_reward.rewards import Reward, load_reward
from fk_reward.rewards.llava_reward.checkpoint import CONFIG_FILE, RewardCheckpoint, load_own_checkpoint, read_config
from fk_reward.rewards.llava_reward.objective import find_objective
from fk_reward.training import read_preferences

app = cyclopts.App()


Row = dict[str, Any]

HELDOUT = {
    "alignment": ("heldout-captions", "heldout-scenes", "heldout-samples", "heldout-predictions"),
    "fidelity": ("heldout",),
    "safety": ("heldout-pairs", "heldout"),
}
"""Dimension -> files of preferences, of which the last one of safety has labels."""

MEASURES = ("accuracy", "accuracy_without_ties", "ties", "auc")
COLUMNS = (
    Column("reward"),
    Column("seeds"),
    Column("file"),
    Column("num", "rows"),
    Column("accuracy_text", "accuracy"),
    Column("low", "95 % interval", "{:.3f} to {:.3f}", ("high",)),
    Column("accuracy_without_ties_text", "without ties"),
    Column("ties_text", "ties"),
    Column("auc_text", "AUC"),
)


def find_runs(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Yields dimension, kind and folder of the finished runs `<dimension>-<...>-seed<k>`."""
    for run in sorted(folder.glob("*-seed*")):
        found = re.fullmatch(r"(([a-z]+)-.+)-seed\d+", run.name)
        if found and (run / CONFIG_FILE).is_file():
            yield found[2], found[1], run


def check(reward: Reward, files: dict[str, list], *, batch_size: int) -> tuple[dict[str, Answers], list[Row]]:
    """The answers of one reward to each file, and a row of measures for each and for all pairs."""
    answers = {name: ask_reward(reward, items, batch_size=batch_size) for name, items in files.items()}
    return answers, answer_rows(reward.card.name, answers, label_logits=is_label_logit(reward))


def over_seeds(name: str, runs: Sequence[tuple[dict[str, Answers], list[Row]]]) -> list[Row]:
    """One row a file for all seeds of a kind: means, standard deviations over seeds, and intervals over prompts.

    The interval is that of the mean over seeds and says how far other prompts would move it.
    """
    return [
        _summary(name, [rows[place] for _, rows in runs], [answers for answers, _ in runs])
        for place in range(len(runs[0][1]))
    ]


def _summary(name: str, rows: list[Row], answers: list[dict[str, Answers]]) -> Row:
    row: Row = {"reward": name, "seeds": len(rows), **{key: rows[0][key] for key in ("file", "num", "num_prompts")}}
    for measure in MEASURES:
        values = [value for found in rows if (value := found.get(measure)) is not None]
        if values:
            row |= {measure: mean(values), f"{measure}_sd": stdev(values) if len(values) > 1 else None}
            row[f"{measure}_text"] = _text(row[measure], row[f"{measure}_sd"])
    if "accuracy" in row:
        right = torch.stack([_right(found, row["file"]) for found in answers]).mean(dim=0)
        interval = clustered_bootstrap(right.tolist(), _prompts(answers[0], row["file"]))
        row |= {"low": interval.low, "high": interval.high}
    return row


def _text(value: float, deviation: float | None) -> str:
    return f"{value:.3f}" if deviation is None else f"{value:.3f} ± {deviation:.3f}"


def _parts(answers: dict[str, Answers], file: str) -> list[Answers]:
    return [part for part in answers.values() if not part.is_labelled] if file == OVERALL else [answers[file]]


def _right(answers: dict[str, Answers], file: str) -> torch.Tensor:
    return torch.cat([part.right for part in _parts(answers, file)]).double()


def _prompts(answers: dict[str, Answers], file: str) -> list[str]:
    return [prompt for part in _parts(answers, file) for prompt in part.prompts]


def dimension_table(
    dimension: str, runs: Sequence[tuple[str, Path]], preferences: Path, *, rewards: Sequence[str], batch_size: int
) -> list[Row]:
    """Rows of all runs of a dimension, by kind, and of other rewards."""
    files = {name: read_preferences(preferences / dimension / f"{name}.parquet") for name in HELDOUT[dimension]}
    found = defaultdict(list)
    for kind, folder in runs:
        adapter = load_reward("llava-reward", adapter=folder, torch_dtype=torch.float32, batch_size=batch_size)
        found[kind].append(check(adapter, files, batch_size=batch_size))
    rows = [row for kind, seeds in found.items() for row in over_seeds(kind, seeds)]
    for name in rewards:
        answered = check(load_reward(name), files, batch_size=batch_size)
        rows += [{**row, "seeds": None} for row in over_seeds(name, [answered])]
    return rows


@app.command(name="compare")
def compare_adapters(
    adapters: Path = Path("runs/adapters"),
    preferences: Path = Path("runs/preferences"),
    reward: list[str] | None = None,
    output: Path = Path("runs/adapters-check"),
    batch_size: int = 64,
) -> None:
    """Compares all runs in `adapters`, and each `reward` (shapes-clipscore by default), on the held-out files."""
    runs, tables = defaultdict(list), {}
    for dimension, kind, folder in find_runs(adapters):
        runs[dimension].append((kind, folder))
    for dimension, found in runs.items():
        others = ["shapes-clipscore"] if reward is None else reward
        tables[dimension] = dimension_table(dimension, found, preferences, rewards=others, batch_size=batch_size)
        show_table(f"{dimension}, held-out prompts", COLUMNS, tables[dimension])
    write_json(output / "adapters.json", tables)
    text = "\n\n".join(f"## {name}\n\n{markdown_table(COLUMNS, rows)}" for name, rows in tables.items())
    (output / "adapters.md").write_text(text + "\n", encoding="utf-8")
    print(f"written: {output / 'adapters.json'}, {output / 'adapters.md'}")


BASE_MODEL = "shapes-mllm"


def validation_result(run: Path) -> tuple[float, float]:
    """Accuracy and loss."""
    results = json.loads((run / "all_results.json").read_text(encoding="utf-8"))
    return results["eval_accuracy"], results["eval_loss"]


def best_run(runs: list[Path]) -> Path:
    """The first seed of the kind that is best on average over its seeds: what ships is no lucky seed.

    By the loss, since the accuracy of 600 pairs has a standard error of .01, more than kinds differ by. Only kinds that
    score single images: a general preference compares them, and exact SMC needs a score.
    """
    kinds: dict[str, list[Path]] = {}
    for run in sorted(runs):
        if not find_objective(read_config(run / CONFIG_FILE).objective).compares_images:
            kinds.setdefault(run.name.rpartition("-seed")[0], []).append(run)
    if not kinds:
        raise ValueError(f"None of {', '.join(run.name for run in runs)} scores single images.")
    return min(kinds.values(), key=_mean_loss)[0]


def _mean_loss(runs: list[Path]) -> float:
    return mean(validation_result(run)[1] for run in runs)


def _halved(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.half() for name, weight in weights.items()}


def halved(checkpoint: RewardCheckpoint) -> RewardCheckpoint:
    """The checkpoint in float16, on the backbone by its name in the package; it loads as float32."""
    return dataclasses.replace(
        checkpoint,
        config=dataclasses.replace(checkpoint.config, base_model=BASE_MODEL),
        lora=_halved(checkpoint.lora),
        projector=_halved(checkpoint.projector),
        head=_halved(checkpoint.head),
    )


@app.command(name="export")
def export_adapters(adapters: Path = Path("runs/adapters"), output_dir: Path = Path("fk_reward/assets")) -> None:
    """Writes `shapes-llava-reward-<dimension>` for each dimension that has finished runs."""
    runs: dict[str, list[Path]] = {}
    for dimension, _, run in find_runs(adapters):
        runs.setdefault(dimension, []).append(run)
    for dimension, found in runs.items():
        chosen = best_run(found)
        folder = halved(load_own_checkpoint(chosen)).save(output_dir / f"shapes-llava-reward-{dimension}")
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        accuracy = validation_result(chosen)[0]
        print(f"{folder}: {chosen.name}, accuracy {accuracy:.4f} on the validation set, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    app()
