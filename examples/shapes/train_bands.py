"""Trains judges of noise bands for `shapes-llava-reward-alignment`: records, trains, measures, bounds and exports.

    python examples/shapes/train_bands.py record     # predictions of training and of held-out prompts, two solvers
    python examples/shapes/train_bands.py train      # each kind in `KINDS`, from several seeds
    python examples/shapes/train_bands.py measure    # held-out prompts: plain against bands, against the verifier
    python examples/shapes/train_bands.py bound      # what a perfect judge would know: redraws from the same state
    python examples/shapes/train_bands.py export     # the bands of one seed into fk_reward/assets

Every stage goes on where it was stopped. `--smoke` does all of it in a minute, and none of it well.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import cyclopts
import numpy as np
import torch
from check_adapters import halved
from train_adapters import SETTINGS, is_finished

from fk_reward import FKSteeringPipeline
from fk_reward.benchmarks.drawing import particle_generators
from fk_reward.benchmarks.noise_accuracy import (
    LevelScores,
    accuracy_row,
    accuracy_rows,
    scored_predictions,
    write_accuracy,
)
from fk_reward.benchmarks.prediction_recording import levels_of_run, record_predictions
from fk_reward.benchmarks.recording import EachReward, RecordRequest
from fk_reward.benchmarks.report import RANGE, Column, show_report, show_table, write_json
from fk_reward.benchmarks.runner import watch
from fk_reward.models import ASSETS, EMBEDDED_MODELS
from fk_reward.pipelines.loading import call_arguments
from fk_reward.pipelines.schedulers import resolve_solver
from fk_reward.rewards import load_reward
from fk_reward.rewards.llava_reward.checkpoint import load_own_checkpoint
from fk_reward.search import PlainPopulation
from fk_reward.shapes import benchmark_prompts, train_prompts
from fk_reward.terminal import open_console
from fk_reward.training.arguments import parse_arguments
from fk_reward.training.predictions import PredictionRecords, nearest_steps
from fk_reward.training.run import make_trainer, run_training

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
    "0.98": {"noise_band": (0.96, 1.0)},
    "all": {"noise_band": (0.45, 1.0), "level_in_prompt": True},
    "0.9-clean": {"noise_band": (0.8, 0.96), "clean_fraction": 1.0},
}
"""Adapters: a band each, one for all levels with the level in the prompt, and a control that sees finished images."""
BANDS = ("0.6", "0.9", "0.98")
"""What is measured together and ships."""


@dataclass(frozen=True)
class Size:
    """How much of everything; `num_steps` replaces those of the solvers that are recorded."""

    num_train: int = 0
    num_heldout: int = 96
    num_seeds: int = 4
    num_heldout_seeds: int = 8
    seeds: tuple[int, ...] = (0, 1, 2)
    num_redraws: int = 8
    levels: tuple[float, ...] = LEVELS
    kinds: tuple[str, ...] = tuple(KINDS)
    solvers: tuple[str, ...] = tuple(SOLVERS)
    num_steps: int | None = None
    flags: tuple[str, ...] = ()

    def prompts(self, split: str) -> list[str]:
        """Texts of a split; 0 training prompts are all of them."""
        if split == "heldout":
            return [prompt.text for prompt in benchmark_prompts(self.num_heldout)]
        return [prompt.text for prompt in train_prompts()][: self.num_train or None]


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
    num_steps=10,
    flags=("--num_pairs=16", "--per_device_train_batch_size=4", "--validation_fraction=0.34"),
)


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
def record(root: Path = Path("runs/bands"), smoke: bool = False, models: list[Path] | None = None) -> None:
    """Records predictions of training and held-out prompts with each solver."""
    size = SMOKE if smoke else Size()
    with models_of(models):
        for solver, split in ((solver, split) for solver in size.solvers for split in ("train", "heldout")):
            request, folder = request_of(size, solver, split), recorded(root, solver, split)
            record_predictions(size.prompts(split), request, folder, device="cpu", dtype=torch.float32)


def run_flags(root: Path, kind: str, seed: int, size: Size) -> list[str]:
    """Settings of a training beside those of `adapters/bands.yaml`."""
    settings = dict(KINDS[kind])
    low, high = settings.pop("noise_band")
    data = ",".join(str(recorded(root, solver, "train")) for solver in size.solvers)
    return [
        *(f"--{name}={value}" for name, value in settings.items()),
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
def train(
    root: Path = Path("runs/bands"),
    smoke: bool = False,
    models: list[Path] | None = None,
    kinds: tuple[str, ...] | None = None,
    seeds: tuple[int, ...] | None = None,
) -> None:
    """Trains kinds of judges from several seeds, first all kinds of the first seed.

    Args:
        root: Folder of the recordings and of what is trained.
        smoke: A few pairs, two kinds, one seed.
        models: Folders of models in place of those of the package with the same names.
        kinds: Of `KINDS`; all if not given.
        seeds: 0, 1, 2 if not given.
    """
    size = SMOKE if smoke else Size()
    with models_of(models):
        for seed, kind in ((seed, kind) for seed in seeds or size.seeds for kind in kinds or size.kinds):
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
def measure(root: Path = Path("runs/bands"), smoke: bool = False, models: list[Path] | None = None) -> None:
    """Held-out prompts: pairs and rank correlations by level, of the plain adapter, the bands, and the others."""
    size = SMOKE if smoke else Size()
    for solver in size.solvers:
        records = PredictionRecords.load(recorded(root, solver, "heldout"))
        found: list[LevelScores] = []
        for seed in size.seeds:
            with models_of(models):
                rewards = _trained_rewards(root, seed, size)
            watch(scored_predictions(records, rewards, found=found), console=open_console())
        rows = accuracy_rows(records, _distinct(found))
        show_report(write_accuracy(root / "measured" / solver, records, rows), "Results")


def _trained_rewards(root: Path, seed: int, size: Size) -> dict[str, Any]:
    """The bands together, and each of the others."""
    groups = {"bands": [kind for kind in size.kinds if kind in BANDS]}
    groups |= {kind: [kind] for kind in size.kinds if kind not in BANDS}
    folders = {name: [trained(root, kind, seed) for kind in kinds] for name, kinds in groups.items()}
    return {f"{name}, seed {seed}": load_reward(REWARD, bands=paths) for name, paths in folders.items()}


def _distinct(found: Sequence[LevelScores]) -> list[LevelScores]:
    """The plain adapter once, and each other judge with the run that it is of."""
    kept: dict[tuple[str, float], LevelScores] = {}
    for one in found:
        judge = one.judge if one.judge == REWARD else f"{one.judge} ({one.reward})"
        kept.setdefault((judge, one.level), replace(one, judge=judge))
    return list(kept.values())


@dataclass(frozen=True, kw_only=True)
class Redraw:
    """Copies every particle before one step and lets the copies go on by themselves.

    Attributes:
        num_particles: K, states.
        num_redraws: R, copies of each.
        step: before which they part.
    """

    default_eta: ClassVar[float | None] = 1.0

    num_particles: int
    num_redraws: int
    step: int

    def population(
        self,
        num_groups: int = 1,
        generators: Any = None,  # noqa: ARG002 (nothing is drawn)
        *,
        spread: float | None = None,  # noqa: ARG002
    ) -> PlainPopulation:
        """The particles of one call."""
        return _Redrawn(self, num_groups)


class _Redrawn(PlainPopulation):
    copies = True

    def __init__(self, config: Redraw, num_groups: int) -> None:
        total = config.num_particles * config.num_redraws
        super().__init__(config.num_particles, num_groups, max_particles=total)
        self.config = config

    def sizes(self, num_steps: int) -> Mapping[int, int]:  # noqa: ARG002
        return {self.config.step: self.max_particles}

    def advance(self, rewards: torch.Tensor, *, step: int, log_ratio: Any = None) -> torch.Tensor:
        self.refuse_ratio(log_ratio)
        self.grouped(rewards, step=step)
        copies = torch.arange(self.num_particles).repeat_interleave(self.config.num_redraws)
        return self.moved(copies.expand(self.num_groups, -1))


def bound_row(rewards: np.ndarray, prompts: Sequence[str]) -> dict[str, Any]:
    """How well the mean of other redraws foretells one redraw: what no judge of the state can surpass, from below.

    The best that can be known of a finished score is its mean given the state. R - 1 redraws estimate this mean with
    noise, so that the bound itself lies a little higher.

    Args:
        rewards: (P, K, R), finished scores of R redraws of each state.
        prompts: P texts.
    """
    num_redraws = rewards.shape[2]
    others = (rewards.sum(axis=2, keepdims=True) - rewards) / (num_redraws - 1)
    # each redraw in turn is what is to be foretold; all of them are of one prompt
    flat = [np.moveaxis(table, 2, 1).reshape(-1, rewards.shape[1]) for table in (others, rewards)]
    return accuracy_row(*flat, [prompt for prompt in prompts for _ in range(num_redraws)])


BOUND_COLUMNS = (
    Column("level", "noise level", "{:.3f}"),
    Column("reward", "finished by"),
    Column("pairs", "pairs in order [95 %]", RANGE, ("pairs_low", "pairs_high")),
    Column("rank", "rank correlation [95 %]", RANGE, ("rank_low", "rank_high")),
)


@app.command
def bound(root: Path = Path("runs/bands"), smoke: bool = False, models: list[Path] | None = None) -> None:
    """Redraws held-out states with the stochastic solver: what remains to be drawn bounds every judge."""
    size = SMOKE if smoke else Size()
    solver = resolve_solver(SOLVERS["stochastic"]["solver"])
    with models_of(models):
        teachers = EachReward({name: load_reward(name) for name in TEACHERS})
        pipe = FKSteeringPipeline.from_pretrained("shapes-sd", reward=teachers)
    pipe.set_progress_bar_config(disable=True)
    pipe.solver = solver
    arguments = call_arguments(pipe, "shapes-sd", steps=8 if smoke else None, guidance_scale=None)
    prompts = size.prompts("heldout")
    rows = []
    for step, level in nearest_steps(levels_of_run(pipe, prompts[0], arguments), size.levels).items():
        search = Redraw(num_particles=size.num_heldout_seeds, num_redraws=size.num_redraws, step=step)
        found: dict[str, list[np.ndarray]] = {name: [] for name in TEACHERS}
        for place, prompt in enumerate(prompts):
            # a generator for all, which copies share: each draws numbers of its own from it
            (generator,) = particle_generators(8000, [place], 1)
            trace = pipe(prompt, generator=generator, search=search, **arguments).trace
            for name, part in trace.steps[-1].reward_parts.items():
                found[name].append(part[0].double().view(-1, size.num_redraws).numpy())
        rows += [{"level": level, "reward": name} | bound_row(np.stack(f), prompts) for name, f in found.items()]
    write_json(root / "measured" / "bound.json", rows)
    show_table(f"{len(prompts)} held-out prompts, {size.num_redraws} redraws of each state", BOUND_COLUMNS, rows)


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
    for stage in (record, train, measure, bound):
        stage(root, smoke, models)


if __name__ == "__main__":
    app()
