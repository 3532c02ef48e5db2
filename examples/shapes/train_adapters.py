"""Trains the adapters of `shapes-mllm`: each kind in `adapters/`, from several seeds, as `fk-reward train` does."""

from __future__ import annotations

import time
from pathlib import Path

import cyclopts
import torch

from fk_reward.rewards.llava_reward.checkpoint import CONFIG_FILE
from fk_reward.training.arguments import parse_arguments
from fk_reward.training.run import make_trainer, run_training
from fk_reward.value_checks import parse_shard

SETTINGS = Path(__file__).parent / "adapters"
KINDS = tuple(sorted(path.stem for path in SETTINGS.glob("*-*.yaml")))
"""Names `<dimension>-<skipca|plain>-<bt|gpm|binary>`, of a file of settings each."""


def is_finished(folder: Path) -> bool:
    """Whether a run has written its result, whose configuration comes last."""
    return (folder / CONFIG_FILE).is_file()


def train(kind: str, flags: list[str]) -> float:
    """Trains one adapter, from its last checkpoint where there is one; returns its accuracy on the validation set.

    Everything is loaded anew and seeded, so that a run does not depend on those before it.
    """
    reward, training = parse_arguments([str(SETTINGS / f"{kind}.yaml"), *flags, "--resume"])
    trainer = make_trainer(reward, training)
    return run_training(trainer, reward, training)["eval_accuracy"]


def run_flags(  # noqa: PLR0913 (a command's options)
    kind: str, *, seed: int, folder: Path, preferences: Path, backbone: str, max_steps: int | None
) -> list[str]:
    """What a run has besides the settings of its kind."""
    data = preferences / kind.partition("-")[0]
    flags = [f"--train_data={data / 'train.parquet'}", f"--validation_data={data / 'validation.parquet'}"]
    flags += [f"--backbone={backbone}", f"--output_dir={folder}", f"--seed={seed}"]
    flags += [] if max_steps is None else [f"--max_steps={max_steps}"]
    return flags if torch.cuda.is_available() else [*flags, "--use_cpu"]


def main(  # noqa: PLR0913, PLR0917 (a command's options)
    only: list[str] | None = None,
    seeds: str = "0,1,2",
    preferences: Path = Path("runs/preferences"),
    backbone: str | Path = "shapes-mllm",
    output_dir: Path = Path("runs/adapters"),
    max_steps: int | None = None,
    shard: str = "0/1",
) -> None:
    """Trains whatever is not finished: all kinds with the first seed, then with the next.

    `only` names a kind and may be repeated. `shard` i/n leaves to this process every n-th run from the i-th on.
    """
    if unknown := sorted(set(only or ()) - set(KINDS)):
        raise ValueError(f"--only should be of {', '.join(KINDS)}; got {', '.join(unknown)}.")
    (index, count), kinds = parse_shard(shard), only or KINDS
    runs = [(kind, int(seed)) for seed in seeds.split(",") for kind in kinds]
    for kind, seed in runs[index::count]:
        folder = output_dir / f"{kind}-seed{seed}"
        if is_finished(folder):
            print(f"{folder.name}: finished already")
            continue
        start = time.perf_counter()
        options = {"preferences": preferences, "backbone": str(backbone), "max_steps": max_steps}
        accuracy = train(kind, run_flags(kind, seed=seed, folder=folder, **options))
        minutes = (time.perf_counter() - start) / 60
        print(f"{folder.name}: accuracy {accuracy:.4f} on the validation set, {minutes:.1f} minutes", flush=True)


if __name__ == "__main__":
    cyclopts.run(main)
