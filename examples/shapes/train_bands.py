"""Trains judges of noise bands for `shapes-llava-reward-alignment`: records, trains and exports.

    python examples/shapes/train_bands.py record     # predictions of training and of held-out prompts, two solvers
    python examples/shapes/train_bands.py reuse      # or what `sample_images.py` has drawn already
    python examples/shapes/train_bands.py rescore    # or the same images, judged by a reward of yours (`--models`)
    python examples/shapes/train_bands.py train      # each kind in `KINDS`, from several seeds
    python examples/shapes/train_bands.py export     # the bands of one seed into fk_reward/assets

Every stage goes on where it was stopped; `--shard i/n` leaves to a process of `record` every n-th prompt. `--smoke`
does all of it in a minute, and none of it well. `measure_bands.py` measures what came of it.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import cyclopts
import numpy as np
import torch
from check_adapters import halved
from check_predictions import read_draws
from sample_images import NUM_STEPS, STEPS
from torch import Tensor
from train_adapters import SETTINGS, is_finished

from fk_reward import FKSteeringPipeline
from fk_reward.benchmarks.drawing import indifferent_reward
from fk_reward.benchmarks.prediction_recording import levels_of_run, record_predictions, write_image
from fk_reward.benchmarks.recording import RecordRequest
from fk_reward.models import ASSETS, EMBEDDED_MODELS
from fk_reward.pipelines.loading import call_arguments
from fk_reward.pipelines.schedulers import resolve_solver
from fk_reward.rewards import Reward, load_reward
from fk_reward.rewards.llava_reward.checkpoint import load_own_checkpoint
from fk_reward.shapes import all_prompts, benchmark_prompts, train_prompts
from fk_reward.training.arguments import parse_arguments
from fk_reward.training.predictions import (
    FINISHED,
    IMAGE_FOLDER,
    PredictionRecords,
    image_name,
    is_recording,
    nearest_steps,
)
from fk_reward.training.run import make_trainer, run_training
from fk_reward.value_checks import parse_shard

app = cyclopts.App()

REWARD = "shapes-llava-reward-alignment"
TEACHERS = (REWARD, "shapes-imagereward", "shapes-verifier")
"""The first is distilled; the others are there to measure with."""
LEVELS = (0.999, 0.977, 0.934, 0.853, 0.724, 0.553, 0.346)
"""Noise levels after 20, 40, 50, 60, 70, 80 and 90 % of the steps, of the scheduler of `train_unet.py`."""
SOLVERS: dict[str, dict[str, Any]] = {
    "stochastic": {"solver": "ddim-50"},
    "deterministic": {"num_inference_steps": 20, "eta": 0.0},
}
KINDS: dict[str, dict[str, Any]] = {
    "0.6": {"noise_band": (0.45, 0.8)},
    "0.9": {"noise_band": (0.8, 0.96)},
    "0.98": {"noise_band": (0.96, 0.99)},  # above it nothing is to be read
    "all": {"noise_band": (0.45, 1.0), "level_in_prompt": True},
    "0.9-clean": {"noise_band": (0.8, 0.96), "clean_fraction": 1.0},
}
"""Adapters: a band each, one for all levels with the level in the prompt, and a control that sees finished images."""
BANDS = ("0.6", "0.9", "0.98")
"""What is measured together and ships."""


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes:
        num_train: training prompts, evenly spaced; 0 for all.
        num_heldout: held-out prompts, the tasks in turn.
        num_seeds: trajectories of a training prompt.
        num_heldout_seeds: those of a held-out one, and the states of `bound`.
        seeds: of the trainings.
        num_redraws: copies of a state of `bound`.
        levels: noise levels that are kept, and bounded.
        kinds: of `KINDS`.
        solvers: of `SOLVERS`, from whose predictions is learnt.
        num_pairs: of a training; that of `adapters/bands.yaml` if not given.
        num_steps: of every solver; each its own if not given.
        flags: further settings of a training.
    """

    num_train: int = 0
    num_heldout: int = 96
    num_seeds: int = 6
    num_heldout_seeds: int = 8
    seeds: Annotated[tuple[int, ...], cyclopts.Parameter(parse=False)] = (0, 1, 2)
    num_redraws: int = 8
    levels: tuple[float, ...] = LEVELS
    kinds: Annotated[tuple[str, ...], cyclopts.Parameter(parse=False)] = tuple(KINDS)
    solvers: tuple[str, ...] = tuple(SOLVERS)
    num_pairs: int | None = None
    num_steps: int | None = None
    flags: Annotated[tuple[str, ...], cyclopts.Parameter(parse=False)] = ()

    def prompts(self, split: str) -> list[str]:
        """Texts of a split."""
        if split == "heldout":
            return [prompt.text for prompt in benchmark_prompts(self.num_heldout)]
        texts = [prompt.text for prompt in train_prompts()]
        number = min(self.num_train or len(texts), len(texts))
        return [texts[place * len(texts) // number] for place in range(number)]  # they stand task by task


SMOKE = Size(
    num_train=6,
    num_heldout=4,
    num_seeds=2,
    num_heldout_seeds=3,
    seeds=(0,),
    num_redraws=2,
    levels=(0.98, 0.87, 0.55),  # one in each band
    kinds=("0.9", "0.9-clean"),
    solvers=("deterministic",),
    num_pairs=16,
    num_steps=10,
    flags=("--per_device_train_batch_size=4", "--validation_fraction=0.34"),
)
Sized = Annotated[Size | None, cyclopts.Parameter(name="*")]
"""Each size is an option of the command."""


def size_of(size: Size | None, smoke: bool) -> Size:
    """What was asked for; with `--smoke` the smallest."""
    return SMOKE if smoke else size or Size()


@contextmanager
def models_of(folders: Sequence[Path] | None) -> Iterator[None]:
    """Inside the block, names of models of the package stand for folders of the same names.

    Args:
        folders: such as `runs/unet-balanced/shapes-sd`; None for the models that ship.

    Raises:
        ValueError: a folder that has the name of no model of the package.
    """
    found = {folder.name: folder for folder in folders or ()}
    if unknown := sorted(found.keys() - EMBEDDED_MODELS.keys()):
        raise ValueError(f"--models should be folders called {', '.join(EMBEDDED_MODELS)}; got {', '.join(unknown)}.")
    before = dict(EMBEDDED_MODELS)
    EMBEDDED_MODELS.update(found)
    try:
        yield
    finally:
        EMBEDDED_MODELS.clear()
        EMBEDDED_MODELS.update(before)


def request_of(size: Size, solver: str, split: str) -> RecordRequest:
    """What is recorded of a split with a solver."""
    return RecordRequest(
        rewards=TEACHERS,
        num_seeds=size.num_heldout_seeds if split == "heldout" else size.num_seeds,
        seed=7000 if split == "heldout" else 6000,
        keep_predictions=size.levels,
        prediction_size=64,
        **SOLVERS[solver] | ({} if size.num_steps is None else {"num_inference_steps": size.num_steps}),
    )


def recorded(root: Path, solver: str, split: str) -> Path:
    """Folder of a recording."""
    return root / "recorded" / f"{split}-{solver}"


@app.command
def record(  # noqa: PLR0913, PLR0917 (a command's options)
    root: Path = Path("runs/bands"),
    smoke: bool = False,
    models: list[Path] | None = None,
    size: Sized = None,
    splits: tuple[str, ...] = ("train", "heldout"),
    shard: str | None = None,
) -> None:
    """Records predictions of training and held-out prompts with each solver.

    Args:
        root: Folder of the recordings and of what is trained.
        smoke: A few prompts, one solver.
        models: Folders of models in place of those of the package with the same names.
        size: How much of everything.
        splits: train, heldout.
        shard: i/n leaves to this process every n-th prompt.
    """
    size = size_of(size, smoke)
    part = {} if shard is None else {"shard": parse_shard(shard)}
    with models_of(models):
        for solver, split in itertools.product(size.solvers, splits):
            request, folder = request_of(size, solver, split), recorded(root, solver, split)
            record_predictions(size.prompts(split), request, folder, device="cpu", dtype=torch.float32, **part)


@app.command
def reuse(
    samples: Path = Path("runs/samples/train"),
    split: str = "train",
    root: Path = Path("runs/bands"),
    models: list[Path] | None = None,
    per_prompt: int = 8,
) -> None:
    """Makes a stochastic recording of what `sample_images.py` has drawn: the same trajectories are not drawn twice.

    Args:
        samples: Folder of its files, drawn with as many steps as it has by default.
        split: train or heldout.
        root: Folder of the recordings.
        models: Folders of models in place of those of the package with the same names.
        per_prompt: Images of a draw.
    """
    folder = recorded(root, "stochastic", split)
    with models_of(models):
        teachers = {name: load_reward(name) for name in TEACHERS}
        kept = kept_predictions("shapes-sd")
    draws = read_draws([samples], per_prompt)
    prompts = [all_prompts()[number].text for number in draws["prompts"].tolist()]
    scores: dict[str, list[list[float]]] = {name: [] for name in TEACHERS}
    for place, (prompt, numbers) in enumerate(zip(prompts, draws["images"], strict=True)):
        images = numbers / 255
        write_predictions(folder, place, images, kept)
        for name, teacher in teachers.items():
            scores[name].append(teacher(images[:, -1], prompt).tolist())
    tables = {name: np.array(table) for name, table in scores.items()}
    about = {"samples": samples.name, "solver": SOLVERS["stochastic"]["solver"]}
    index = PredictionRecords(folder, tuple(prompts), tuple(kept.values()), tables, "png", about).save()
    print(f"{index}: {len(prompts)} draws of {len(set(prompts))} prompts x {per_prompt}")


def write_predictions(folder: Path, place: int, images: Tensor, kept: Mapping[int, float]) -> None:
    """Writes the images of a prompt's place, `(K, S, 3, H, W)`: those that are kept, and the finished ones."""
    for index, level in [*kept.items(), (-1, FINISHED)]:
        for seed, image in enumerate(images[:, index]):
            write_image(folder / image_name(place, seed, level, "png"), image, longest_side=64)


@app.command
def rescore(source: Path, models: list[Path], root: Path = Path("runs/bands")) -> None:
    """Makes recordings of those of another folder: the same images, whose finished ones are scored by other models.

    Args:
        source: Folder of recordings; its images are linked to.
        root: Folder of the new ones.
        models: Folders of rewards in place of those of the package with the same names; scores of others are kept.
    """
    with models_of(models):
        teachers = {folder.name: load_reward(folder.name) for folder in models}
    for solver, split in itertools.product(SOLVERS, ("train", "heldout")):
        if not is_recording(recorded(source, solver, split)):
            continue
        records, folder = PredictionRecords.load(recorded(source, solver, split)), recorded(root, solver, split)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / IMAGE_FOLDER).exists():
            (folder / IMAGE_FOLDER).symlink_to((records.folder / IMAGE_FOLDER).resolve())
        scores = {name: finished_scores(records, teacher) for name, teacher in teachers.items()}
        print(dataclasses.replace(records, folder=folder, scores={**records.scores, **scores}).save(), flush=True)


def finished_scores(records: PredictionRecords, teacher: Reward) -> np.ndarray:
    """Scores `(P, S)` of the finished images of a recording."""
    prompts = enumerate(records.prompts)
    return np.stack([teacher(torch.stack(records.images(place, FINISHED)), text).numpy() for place, text in prompts])


def kept_predictions(model: str) -> dict[int, float]:
    """Which of the images of a sample of `sample_images.py` are predictions of `LEVELS`: their index -> noise level."""
    pipe = FKSteeringPipeline.from_pretrained(model, reward=indifferent_reward())
    pipe.set_progress_bar_config(disable=True)
    pipe.solver = resolve_solver(SOLVERS["stochastic"]["solver"])
    arguments = call_arguments(pipe, model, steps=None, guidance_scale=None)
    levels = levels_of_run(pipe, "a photo of a star", arguments)
    if len(levels) != NUM_STEPS - 1:
        raise ValueError(f"sample_images.py draws with {NUM_STEPS} steps, {model} with {len(levels) + 1}.")
    return nearest_steps([levels[step] for step in STEPS], LEVELS)


def run_flags(root: Path, kind: str, seed: int, size: Size) -> list[str]:
    """Settings of a training beside those of `adapters/bands.yaml`."""
    settings = dict(KINDS[kind])
    low, high = settings.pop("noise_band")
    data = ",".join(str(recorded(root, solver, "train")) for solver in size.solvers)
    return [
        *(f"--{name}={value}" for name, value in settings.items()),
        *(() if size.num_pairs is None else (f"--num_pairs={size.num_pairs}",)),
        f"--dimension=alignment@{kind}",
        "--noise_band",
        *(str(low), str(high)),
        f"--train_data={data}",
        f"--output_dir={trained(root, kind, seed)}",
        f"--seed={seed}",
        "--resume",
        *size.flags,
        *(() if torch.cuda.is_available() else ("--use_cpu",)),
    ]


def trained(root: Path, kind: str, seed: int) -> Path:
    """Folder of a trained adapter."""
    return root / "adapters" / f"seed{seed}" / kind


@app.command
def train(  # noqa: PLR0913, PLR0917 (a command's options)
    root: Path = Path("runs/bands"),
    smoke: bool = False,
    models: list[Path] | None = None,
    kinds: tuple[str, ...] | None = None,
    seeds: tuple[int, ...] | None = None,
    size: Sized = None,
) -> None:
    """Trains kinds of judges from several seeds, first all kinds of the first seed.

    Args:
        root: Folder of the recordings and of what is trained.
        smoke: A few pairs, two kinds, one seed.
        models: Folders of models in place of those of the package with the same names.
        kinds: Of `KINDS`; all if not given.
        seeds: 0, 1, 2 if not given.
        size: How much of everything.
    """
    size = size_of(size, smoke)
    with models_of(models):
        for seed, kind in itertools.product(seeds or size.seeds, kinds or size.kinds):
            train_one(root, kind, seed, size)


def train_one(root: Path, kind: str, seed: int, size: Size) -> None:
    """Trains one judge, or goes on with it."""
    folder, start = trained(root, kind, seed), time.perf_counter()
    reward, training = parse_arguments([str(SETTINGS / "bands.yaml"), *run_flags(root, kind, seed, size)])
    try:
        found: Any = run_training(make_trainer(reward, training), reward, training)
    except ValueError as error:  # a judge that has learnt nothing cannot be calibrated, which is a result
        if "learnt nothing" not in str(error) or not is_finished(folder):
            raise
        found = error
    print(f"{kind}, seed {seed}: {found}, {(time.perf_counter() - start) / 60:.1f} minutes", flush=True)


@app.command
def export(
    root: Path = Path("runs/bands"),
    seed: int = 0,
    kinds: tuple[str, ...] = BANDS,
    assets: Path = ASSETS,
    models: list[Path] | None = None,
) -> None:
    """Writes the adapters of a seed, in float16, to where `shapes-llava-reward-alignment@bands` finds them.

    Args:
        root: Folder of what was trained.
        seed: Of the training.
        kinds: Of `KINDS`.
        assets: The package's folder of models, or another one.
        models: Folders of models in place of those of the package with the same names.
    """
    target = assets / f"{REWARD}-bands"
    for kind in kinds:
        halved(load_own_checkpoint(trained(root, kind, seed))).save(target / kind)
    with models_of(models):
        reward = load_reward(REWARD, bands=target)
    print(f"{target}: {[reward.at_noise(high - 1e-6).judges for low, high in _intervals(kinds)]}")


def _intervals(kinds: Sequence[str]) -> list[tuple[float, float]]:
    return [KINDS[kind]["noise_band"] for kind in kinds]


@app.default
def main(root: Path = Path("runs/bands"), smoke: bool = False, models: list[Path] | None = None) -> None:
    """All stages but the export."""
    for stage in (record, train):
        stage(root, smoke=smoke, models=models)


if __name__ == "__main__":
    app()
