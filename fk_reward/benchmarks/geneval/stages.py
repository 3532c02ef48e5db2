"""The stages of a benchmark, each shared by all processes that `accelerate launch` starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from accelerate import PartialState
from diffusers import DDIMScheduler

from fk_reward.benchmarks.geneval.generation import generate_missing, make_draw
from fk_reward.benchmarks.geneval.manifest import NAME, describe_model, make_manifest, open_run, read_manifest
from fk_reward.benchmarks.geneval.results import find_runs
from fk_reward.benchmarks.geneval.scoring import (
    complete_folders,
    judge_missing,
    read_scores,
    score_missing,
    write_results,
)
from fk_reward.benchmarks.geneval.settings import RunSettings
from fk_reward.benchmarks.geneval.suites import load_judge
from fk_reward.benchmarks.indifferent_reward import indifferent_reward
from fk_reward.rewards import load_reward
from fk_reward.sampling.stochasticity import noise_levels

if TYPE_CHECKING:
    import torch

    from fk_reward.pipelines import FKSteeringPipeline

Records = Sequence[Mapping[str, Any]]


class Step(NamedTuple):
    """A piece of work that is done.

    Attributes:
        label: what is being worked at.
        done: pieces that this process has done of it.
        todo: pieces that it had to do.
    """

    label: str
    done: int
    todo: int


def load_pipe(settings: RunSettings, *, device: str, dtype: torch.dtype) -> FKSteeringPipeline:
    """The model of a run, with its scheduler and without progress bars.

    Raises:
        ValueError: DDIM for a model that was not trained on a noise schedule, such as a flow-matching one.
    """
    from fk_reward.pipelines import FKSteeringPipeline

    pipe = FKSteeringPipeline.from_pretrained(
        settings.model, reward=indifferent_reward(), torch_dtype=dtype, revision=settings.revision
    )
    if settings.scheduler == "ddim":
        ddim = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False, set_alpha_to_one=False)
        own, levels = noise_levels(pipe.scheduler), noise_levels(ddim)
        if own is None or levels is None or not own.equal(levels):  # flow models may have betas in their config, too
            raise ValueError(f"{settings.model} has no noise schedule that DDIM could follow; choose scheduler auto.")
        pipe.scheduler = ddim
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def generate_runs(
    out: Path,
    runs: Sequence[RunSettings],
    *,
    records: Records,
    state: PartialState,
    device: str,
    dtype: torch.dtype,
    about: Mapping[str, Any],
) -> Iterator[Step]:
    """Make the pictures of all runs that are not there yet.

    Args:
        out: each run gets a folder in it.
        runs: of one model.
        records: of the suite.
        state: of the processes that share the work.
        device: of the model and the rewards.
        dtype: of the model.
        about: for the manifests.

    Raises:
        ValueError: before anything is made, when `out` holds runs of other settings.
    """
    pipe = load_pipe(runs[0], device=device, dtype=dtype)
    rewards = {name: load_reward(name).to(device) for name in dict.fromkeys(run.reward for run in runs) if name}
    model = describe_model(pipe)
    for run in runs:
        manifest = make_manifest(run, records=records, model=model, reward=rewards.get(run.reward or ""))
        with state.main_process_first():
            open_run(out / run.name, manifest, about=about)
    for run in runs:
        draw = make_draw(pipe, run, reward=rewards.get(run.reward or ""))
        share = {"rank": state.process_index, "num_ranks": state.num_processes}
        for done, todo in generate_missing(draw, records, out / run.name, **share):
            yield Step(f"{run.name}: pictures", done, todo)
    state.wait_for_everyone()


def judge_runs(
    out: Path,
    *,
    suite: str,
    records: Records,
    state: PartialState,
    device: str,
    models: Mapping[str, str | None],
    self_test: bool = True,
) -> Iterator[Step]:
    """Judge the pictures of all runs that are not judged yet, and write `results.jsonl` of each.

    Args:
        out: holds the runs, or is itself a folder of pictures in GenEval's layout.
        suite: name of the suite.
        records: of the suite.
        state: of the processes that share the work.
        device: of the judge.
        models: of the judge, see `load_judge`.
        self_test: whether the judge must pass its self-test; where not, its verdicts say so.

    Raises:
        FileNotFoundError: no runs, or files of them are missing.
        ValueError: pictures of another suite, unfinished runs, damaged pictures.
        SelfTestError: the judge has not passed its self-test.
    """
    runs = {root: complete_folders(root, records) for root in find_runs(out)}
    judge, identity = load_judge(suite, device=device, models=models)
    identity |= {} if self_test else {"self-test": "skipped"}
    for root, folders in runs.items():
        own = folders[state.process_index :: state.num_processes]
        for done, todo in judge_missing(own, judge, identity=identity, self_test=self_test):
            yield Step(f"{root.name}: verdicts", done, todo)
    state.wait_for_everyone()
    if state.is_main_process:
        for root in runs:
            write_results(root)


def score_runs(
    out: Path, names: Sequence[str], *, records: Records, state: PartialState, device: str
) -> Iterator[Step]:
    """Score the pictures of all runs by rewards that have not scored them yet, one reward in memory at a time.

    Args:
        out: as for `judge_runs`.
        names: of held-out rewards; those that steer or select some run are added.
        records: of the suite.
        state: of the processes that share the work.
        device: of the rewards.
    """
    runs = {root: complete_folders(root, records) for root in find_runs(out)}
    manifests = [read_manifest(root) for root in runs if (root / NAME).exists()]
    used = [manifest["settings"]["reward"] for manifest in manifests]
    for name in dict.fromkeys(name for name in [*used, *names] if name is not None):
        own = {root: folders[state.process_index :: state.num_processes] for root, folders in runs.items()}
        if any(name not in read_scores(folder) for folders in own.values() for folder in folders):
            reward = load_reward(name).to(device)
            for root, folders in own.items():
                for done, todo in score_missing(folders, name, reward):
                    yield Step(f"{root.name}: {name}", done, todo)
    state.wait_for_everyone()
