"""Trains judges of noise bands for `shapes-llava-reward-alignment`: records, trains, measures, bounds and exports.

    python examples/shapes/train_bands.py record     # predictions of training and of held-out prompts, two solvers
    python examples/shapes/train_bands.py train      # each kind in `KINDS`, from several seeds
    python examples/shapes/train_bands.py measure    # held-out prompts: plain against bands, against the verifier
    python examples/shapes/train_bands.py bound      # what a perfect judge would know: redraws from the same state
    python examples/shapes/train_bands.py export     # the bands of one seed into fk_reward/assets

Every stage goes on where it was stopped. `--smoke` does all of it in a minute, and none of it well.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import cyclopts
import numpy as np
import torch
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
from fk_reward.models import ASSETS
from fk_reward.pipelines.loading import call_arguments
from fk_reward.pipelines.schedulers import resolve_solver
from fk_reward.rewards import load_reward
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
LEVELS = (0.98, 0.92, 0.85, 0.76, 0.64, 0.5, 0.32)
"""Noise levels after 20, 40, 50, 60, 70, 80 and 90 % of the steps."""
SOLVERS: dict[str, dict[str, Any]] = {
    "stochastic": {"solver": "ddim-50"},
    "deterministic": {"num_inference_steps": 20, "eta": 0.0},
}
KINDS: dict[str, dict[str, Any]] = {
    "0.5": {"noise_band": (0.4, 0.7)},
    "0.8": {"noise_band": (0.7, 0.89)},
    "0.95": {"noise_band": (0.89, 1.0)},
    "all": {"noise_band": (0.4, 1.0), "level_in_prompt": True},
    "0.8-clean": {"noise_band": (0.7, 0.89), "clean_fraction": 1.0},
}
"""Adapters: a band each, one for all levels with the level in the prompt, and a control that sees finished images."""
BANDS = ("0.5", "0.8", "0.95")
"""What is measured together and ships."""


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    num_train: int = 0
    num_heldout: int = 96
    num_seeds: int = 4
    num_heldout_seeds: int = 8
    seeds: tuple[int, ...] = (0, 1, 2)
    num_redraws: int = 8
    levels: tuple[float, ...] = LEVELS
    kinds: tuple[str, ...] = tuple(KINDS)
    solvers: tuple[str, ...] = tuple(SOLVERS)
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
    levels=(0.76, 0.5),
    kinds=("0.8", "0.8-clean"),
    solvers=("deterministic",),
    flags=("--num_pairs=16", "--per_device_train_batch_size=4", "--validation_fraction=0.34"),
)


def request_of(size: Size, solver: str, split: str) -> RecordRequest:
    """What is recorded of a split with a solver."""
    return RecordRequest(
        rewards=TEACHERS,
        num_seeds=size.num_heldout_seeds if split == "heldout" else size.num_seeds,
        seed=7000 if split == "heldout" else 6000,
        keep_predictions=size.levels,
        prediction_size=64,
        **SOLVERS[solver],
    )


def recorded(root: Path, solver: str, split: str) -> Path:
    """Folder of a recording."""
    return root / "recorded" / f"{split}-{solver}"


@app.command
def record(root: Path = Path("runs/bands"), smoke: bool = False) -> None:
    """Records predictions of training and held-out prompts with each solver."""
    size = SMOKE if smoke else Size()
    for solver in size.solvers:
        for split in ("train", "heldout"):
            request = request_of(size, solver, split)
            record_predictions(
                size.prompts(split), request, recorded(root, solver, split), device="cpu", dtype=torch.float32
            )


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
def train(root: Path = Path("runs/bands"), smoke: bool = False) -> None:
    """Trains every kind from every seed, first all kinds of the first seed."""
    size = SMOKE if smoke else Size()
    for seed in size.seeds:
        for kind in size.kinds:
            folder, start = trained(root, kind, seed), time.perf_counter()
            reward, training = parse_arguments([str(SETTINGS / "bands.yaml"), *run_flags(root, kind, seed, size)])
            try:
                found = run_training(make_trainer(reward, training), reward, training)
            except ValueError as error:  # a judge that has learnt nothing cannot be calibrated, which is a result
                if "learnt nothing" not in str(error) or not is_finished(folder):
                    raise
                print(f"{kind}, seed {seed}: {error}", flush=True)
                continue
            minutes = (time.perf_counter() - start) / 60
            print(f"{kind}, seed {seed}: {found}, {minutes:.1f} minutes", flush=True)


@app.command
def measure(root: Path = Path("runs/bands"), smoke: bool = False) -> None:
    """Held-out prompts: pairs and rank correlations by level, of the plain adapter, the bands, and the others."""
    size = SMOKE if smoke else Size()
    for solver in size.solvers:
        records = PredictionRecords.load(recorded(root, solver, "heldout"))
        found: list[LevelScores] = []
        for seed in size.seeds:
            groups = {"bands": [kind for kind in size.kinds if kind in BANDS]}
            groups |= {kind: [kind] for kind in size.kinds if kind not in BANDS}
            folders = {name: [trained(root, kind, seed) for kind in kinds] for name, kinds in groups.items()}
            rewards = {f"{name}, seed {seed}": load_reward(REWARD, bands=paths) for name, paths in folders.items()}
            watch(scored_predictions(records, rewards, found=found), console=open_console())
        rows = accuracy_rows(records, _distinct(found))
        show_report(write_accuracy(root / "measured" / solver, records, rows), "Results")


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
def bound(root: Path = Path("runs/bands"), smoke: bool = False) -> None:
    """Redraws held-out states with the stochastic solver: what remains to be drawn bounds every judge."""
    size = SMOKE if smoke else Size()
    solver = resolve_solver(SOLVERS["stochastic"]["solver"])
    pipe = FKSteeringPipeline.from_pretrained("shapes-sd", reward=EachReward({n: load_reward(n) for n in TEACHERS}))
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
    root: Path = Path("runs/bands"), seed: int = 0, kinds: tuple[str, ...] = BANDS, assets: Path = ASSETS
) -> None:
    """Copies the adapters of a seed to where `shapes-llava-reward-alignment@bands` finds them."""
    target = assets / f"{REWARD}-bands"
    for kind in kinds:
        folder = trained(root, kind, seed)
        for part in ("adapter", "reward.safetensors", "reward_config.json"):
            source, place = folder / part, target / kind / part
            place.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, place, dirs_exist_ok=True)
            else:
                shutil.copy(source, place)
    reward = load_reward(REWARD, bands=target)
    print(f"{target}: {[reward.at_noise(high - 1e-6).judges for low, high in _intervals(kinds)]}")


def _intervals(kinds: Sequence[str]) -> list[tuple[float, float]]:
    return [KINDS[kind]["noise_band"] for kind in kinds]


@app.default
def main(root: Path = Path("runs/bands"), smoke: bool = False) -> None:
    """All stages but the export."""
    for stage in (record, train, measure, bound):
        stage(root, smoke)


if __name__ == "__main__":
    app()
