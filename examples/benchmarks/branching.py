"""Where a tree should branch: how much of an image the first steps of a trajectory decide, by solver and step.

Some trunks of a prompt are drawn up to a step, and each becomes some branches, which are finished and scored. The share
of the variance of the reward within a prompt that lies between trunks is what was decided by then: 0, and branches of
one trunk differ as whole images do; 1, and they are all alike. `TreeSearch` wants a place where it is still small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray
from torch import Generator

from fk_reward.benchmarks.report import Column, show_table, write_json
from fk_reward.benchmarks.statistics import clustered_ratio
from fk_reward.cli import run_script
from fk_reward.cli.options import OutOption
from fk_reward.cli.record import chosen_samples
from fk_reward.output_folder import hold_folder
from fk_reward.search import TreeSearch
from fk_reward.terminal import say
from fk_reward.value_checks import parse_integers, whole_number

if TYPE_CHECKING:
    from fk_reward.pipelines import FKSteeringPipeline

Floats = NDArray[np.floating[Any]]

REWARDS = ("shapes-llava-reward-alignment", "shapes-imagereward", "shapes-clipscore", "shapes-verifier")
SOLVERS = ("sde-dpmsolver++-20", "ddim-50")
COLUMNS = (
    Column("solver"),
    Column("after", "steps before the branching", "{:d}"),
    Column("reward"),
    Column("share", "decided by the trunk", "{:.2f} [{:.2f}, {:.2f}]", ("low", "high")),
)


def variances(rewards: Floats) -> tuple[Floats, Floats]:
    """What the trunks explain of the variance within each prompt, and all of it, up to a common factor.

    The parts of the intraclass correlation of a one-way analysis of variance (Shrout and Fleiss 1979, ICC(1, 1)): the
    mean square between trunks less that within them, and the mean square between them plus M - 1 times that within.

    Args:
        rewards: `(P, trunks, M)`, at least two trunks and two branches.

    Returns:
        `(P,)` and `(P,)`. The first can be negative by chance.

    Example:
        >>> variances(np.array([[[1.0, 1.0], [3.0, 3.0]], [[1.0, 3.0], [1.0, 3.0]]]))
        (array([ 4., -2.]), array([4., 2.]))
    """
    branches = rewards.shape[2]
    between = branches * rewards.mean(axis=2).var(axis=1, ddof=1)
    within = rewards.var(axis=2, ddof=1).mean(axis=1)
    return between - within, between + (branches - 1) * within


def draw(
    pipe: FKSteeringPipeline, text: str, tree: TreeSearch, *, seed: int, arguments: Mapping[str, Any]
) -> dict[str, Floats]:
    """The rewards of all branches of a prompt's trunks: name -> `(trunks, branches)`."""
    trace = pipe(text, search=tree, generator=Generator().manual_seed(seed), **arguments).trace
    return {
        name: part[0].view(tree.num_particles, tree.num_branches).numpy()
        for name, part in trace.steps[-1].reward_parts.items()
    }


def summarize(drawn: Sequence[Mapping[str, Floats]], prompts: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each reward; intervals by drawing prompts (those of one text together).

    Args:
        drawn: of each prompt, as `draw` has it.
        prompts: their texts.
    """
    rows = []
    for name in drawn[0]:
        explained, total = variances(np.stack([one[name] for one in drawn]).astype(np.float64))
        share = clustered_ratio(explained.tolist(), total.tolist(), prompts)
        if share is None:
            raise ValueError(f"All images of a prompt have one reward of {name}: there is nothing to decide.")
        rows.append({"reward": name, "share": share.estimate, "low": share.low, "high": share.high})
    return rows


def main(  # noqa: PLR0913 (one parameter for each option)
    prompts: list[str] | None = None,
    /,
    *,
    prompts_from: Path | None = None,
    suite: str | None = None,
    num_prompts: int = 48,
    model: str = "shapes-sd",
    solver: list[str] | None = None,
    steps: int | None = 20,
    reward: Annotated[list[str] | None, Parameter(alias="-r")] = None,
    num_trunks: int = 3,
    num_branches: int = 4,
    after: str = "8,10,12,14",
    guidance_scale: float | None = None,
    seed: int = 0,
    device: str = "auto",
    out: OutOption = Path("results/branching"),
) -> None:
    """Measure how much of an image is decided when a trajectory branches; writes `branching.json`.

    Where the share is small a tree branches well. After n of N steps is branch_at=(n - 1) / N of TreeSearch.

    Args:
        prompts: Prompts, each in quotes; those of --suite shapes-validation if none are given.
        prompts_from: Text file with a prompt a line.
        suite: Prompts of a suite of fk-reward geneval.
        num_prompts: Of a suite.
        model: Text-to-image model: shapes-sd, sd-2.1, sdxl, a hub id or a folder.
        solver: Solvers, the option repeated; SDE-DPM-Solver++ and DDIM with eta 1 if not given.
        steps: Scheduler steps.
        reward: Rewards of the finished images, the option repeated; those of the shapes world if not given.
        num_trunks: Trunks of each prompt.
        num_branches: Branches of each trunk.
        after: Numbers of steps before the trunks branch, with commas.
        guidance_scale: Classifier-free guidance; the solver's or the model's if not given.
        seed: Of the first prompt.
        device: Device: auto, cpu or cuda.
        out: Folder of the results.
    """
    from fk_reward.pipelines.loading import call_arguments  # noqa: PLC0415 (slow to import)

    for name, number in (("--num-trunks", num_trunks), ("--num-branches", num_branches)):
        whole_number(name, number, minimum=2)
    places = parse_integers("--after", after)
    named = suite or (None if prompts or prompts_from else "shapes-validation")
    samples, _ = chosen_samples(prompts or (), prompts_from, named, num_prompts if named else None)
    texts = [sample["prompt"] for sample in samples]
    rewards, solvers = tuple(reward or REWARDS), tuple(solver or SOLVERS)
    with hold_folder(out):
        pipe, found = _load(model, rewards, device), []
        for name in solvers:
            pipe.solver = name
            arguments = call_arguments(pipe, model, steps=steps, guidance_scale=guidance_scale)
            for place in places:
                tree = tree_at(place, arguments["num_inference_steps"], trunks=num_trunks, branches=num_branches)
                drawn = [draw(pipe, text, tree, seed=seed + i, arguments=arguments) for i, text in enumerate(texts)]
                found += [{"solver": name, "after": place, **row} for row in summarize(drawn, texts)]
        show_table(f"{model}, {len(texts)} prompts x {num_trunks} trunks x {num_branches} branches", COLUMNS, found)
        settings = {"model": model, "num_prompts": len(texts), "distinct_prompts": len(set(texts)), "seed": seed}
        settings |= {"num_trunks": num_trunks, "num_branches": num_branches}
        say(f"Results: {write_json(out / 'branching.json', {'settings': settings, 'rows': found})}")


def tree_at(after: int, num_steps: int, *, trunks: int, branches: int) -> TreeSearch:
    """A tree that branches after so many steps and drops nothing.

    Example:
        >>> tree_at(3, 6, trunks=3, branches=4).population().forecast(6).steps
        (3, 3, 3, 12, 12, 12)
    """
    whole_number("--after", after, minimum=1, maximum=num_steps - 2)
    place = (after - 1) / num_steps  # of the last step of the trunks
    return TreeSearch(num_particles=trunks, num_branches=branches, branch_at=place, keep=(), at=())


def _load(model: str, rewards: Sequence[str], device: str) -> FKSteeringPipeline:
    from fk_reward.benchmarks.recording import EachReward  # noqa: PLC0415 (slow to import)
    from fk_reward.devices import resolve_device  # noqa: PLC0415
    from fk_reward.pipelines import FKSteeringPipeline  # noqa: PLC0415

    place = resolve_device(device)
    pipe = FKSteeringPipeline.from_pretrained(model, reward=EachReward.load(rewards, place)).to(place)
    pipe.set_progress_bar_config(disable=True)
    return pipe


if __name__ == "__main__":
    run_script(main)
