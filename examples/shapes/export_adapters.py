"""Writes the adapters that ship in the package: of each dimension the kind that is best on its validation set."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import mean

import typer
from check_adapters import find_runs
from torch import Tensor

from fk_reward.rewards.llava_reward.checkpoint import CONFIG_FILE, RewardCheckpoint, load_own_checkpoint, read_config
from fk_reward.rewards.llava_reward.objective import find_objective

BASE_MODEL = "shapes-mllm"


def validation_result(run: Path) -> tuple[float, float]:
    """Accuracy, and the negative of the loss, which decides between equal accuracies."""
    results = json.loads((run / "all_results.json").read_text(encoding="utf-8"))
    return results["eval_accuracy"], -results["eval_loss"]


def best_run(runs: list[Path]) -> Path:
    """The first seed of the kind that is best on average over its seeds: what ships is no lucky seed.

    Only kinds that score single pictures: a general preference compares them, and exact SMC needs a score.
    """
    kinds: dict[str, list[Path]] = {}
    for run in sorted(runs):
        if not find_objective(read_config(run / CONFIG_FILE).objective).compares_images:
            kinds.setdefault(run.name.rpartition("-seed")[0], []).append(run)
    if not kinds:
        raise ValueError(f"None of {', '.join(run.name for run in runs)} scores single pictures.")
    return max(kinds.values(), key=_mean_result)[0]


def _mean_result(runs: list[Path]) -> tuple[float, ...]:
    return tuple(mean(values) for values in zip(*map(validation_result, runs), strict=True))


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


def main(adapters: Path = Path("runs/adapters"), output_dir: Path = Path("fk_reward/assets")) -> None:
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
    typer.run(main)
