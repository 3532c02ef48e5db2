"""`fk-reward replay`: what would have beaten best of N on recorded rewards, and the settings to use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from fk_reward.cli.options import OUTPUT, REWARD, SEARCH, FieldOptions, NamedPath
from fk_reward.terminal import say
from fk_reward.value_checks import whole_number

if TYPE_CHECKING:
    from fk_reward.search import SearchConfig
    from fk_reward.search.replay.report import Gain, Replay

PRUNING = "pruning"


@dataclass(frozen=True, kw_only=True)
class GivenSearch:
    """The search that is replayed.

    Attributes:
        search: pruning or best-of-n; searches that copy particles cannot be replayed.
        num_particles: Report a search of so many starts instead of choosing one.
        keep: With it, how many particles of a prompt go on after each cut.
        at: With it, where the cuts are, as fractions of the trajectory.
    """

    search: str = PRUNING
    num_particles: int | None = None
    keep: tuple[int, ...] | None = None
    at: tuple[float, ...] | None = None

    def config(self, budget_images: int) -> SearchConfig | None:
        """The search to report; None where one is to be chosen.

        Raises:
            ValueError: a search that cannot be replayed, or cuts of another search.
        """
        from fk_reward.search import BestOfN, Pruning, load_search
        from fk_reward.search.replay.policies import Policy

        given = {name: value for name, value in vars(self).items() if name != "search" and value is not None}
        if self.search == PRUNING:
            if given and len(given) < len(vars(self)) - 1:
                raise ValueError("--num-particles, --keep and --at go together; with none of them cuts are chosen.")
            return Pruning(**given) if given else None
        Policy.of(load_search(self.search), num_steps=1)  # refuses by name
        if set(given) - {"num_particles"}:
            raise ValueError("--keep and --at are settings of --search pruning.")
        return BestOfN(num_particles=given.get("num_particles", budget_images))


def replay(  # noqa: PLR0913 (one parameter for each option)
    file: Path,
    /,
    *,
    reward: Annotated[str | None, Parameter(alias="-r", group=REWARD, allow_leading_hyphen=True)] = None,
    budget_images: int = 4,
    step_cost: float = 9.9,
    reward_cost: float = 1.2,
    given: Annotated[GivenSearch, FieldOptions(GivenSearch, SEARCH)],
    seed: int = 0,
    json_file: Annotated[NamedPath | None, Parameter(name="--json", group=OUTPUT)] = None,
) -> None:
    """Find cuts that beat best of N at equal cost on recorded rewards, and say what to use.

    Chosen on half of the prompts, reported on the other half, in standard deviations of the reward within a prompt.
    Where nothing surely beats best of N, the answer is best of N. Record with fk-reward record.

    Args:
        file: Records: of fk-reward record, or any .npz with an array (prompts, seeds, steps) for each reward, whose
            last step is the finished image.
        reward: Recorded reward that chooses; the only one if not given.
        budget_images: What a search may cost, in whole images of one prompt.
        step_cost: Price of one sample through one step of the denoiser.
        reward_cost: Price of one image that is decoded and scored, in the same unit.
        given: What is replayed.
        seed: Of the halves and of the random subsets of recorded seeds.
        json_file: File for the figures.
    """
    from fk_reward.benchmarks.report import write_json
    from fk_reward.search.replay.policies import Prices
    from fk_reward.search.replay.records import RewardRecords
    from fk_reward.search.replay.report import replay as find

    whole_number("--budget-images", budget_images, minimum=1)
    search = given.config(budget_images)
    records = RewardRecords.load(file)
    found = find(
        records,
        _named(reward, list(records.rewards)),
        budget_images=budget_images,
        prices=Prices(step=step_cost, reward=reward_cost),
        search=search,
        seed=seed,
    )
    _show(found)
    if json_file is not None:
        write_json(json_file, found.to_dict())
        say(f"Written: {json_file}")


def _named(reward: str | None, known: list[str]) -> str:
    if reward is None and len(known) > 1:
        raise ValueError(f"Name the --reward that chooses: {', '.join(known)}.")
    return known[0] if reward is None else reward


def _show(found: Replay) -> None:
    from fk_reward.benchmarks.report import CHANGE, Column, show_table

    known = (
        Column("step"),
        Column("done", "of the trajectory", "{:.0%}"),
        Column("correlation", "rank correlation with the finished reward", "{:.2f} [{:.2f}, {:.2f}]", ("low", "high")),
        Column("weight", "weight", "{:.2f}"),
    )
    title = f"How early {found.reward} knows, within a prompt ({len(found.chosen_on)} prompts)"
    rows = [step._asdict() | {"done": (step.step + 1) / found.num_steps} for step in found.knowledge]
    show_table(title, known, rows)
    columns = (
        Column("reward"),
        Column("best_of_n", f"best of {found.budget_images}", "{:.3f}"),
        Column("policy", "search", "{:.3f}"),
        Column("gain", "gain", CHANGE, ("low", "high")),
    )
    title = f"{found.advice} on the other {len(found.reported_on)} prompts, in standard deviations within a prompt"
    show_table(title, columns, [_row(name, gain) for name, gain in {found.reward: found.own, **found.held_out}.items()])
    for line in _sentences(found):
        say(line)


def _row(name: str, gain: Gain) -> dict[str, Any]:
    low, high = gain.interval
    return {"reward": name, **vars(gain), "low": low, "high": high}


def _sentences(found: Replay) -> list[str]:
    cost, budget = found.cost
    size = found.budget_images
    lines = [f"It costs {cost:.4g}, best of {size} costs {budget:.4g}, and it is worth a best of "
             f"{found.equals_best_of:.1f}."]  # fmt: skip
    if found.choice is not None and not found.choice.policy.cuts:
        lines.append(f"No cut is surely better than best of {size} for this reward and budget.")
    lines += found.notes
    return [
        *lines,
        "To use it, for one best image:",
        f"    pipe(prompt, search={found.advice})",
        f"FK steering cannot be replayed. By the spread ({found.spread:.3g}) and the first table its settings are:",
        f"    pipe(prompt, search={found.fk_advice})",
    ]
