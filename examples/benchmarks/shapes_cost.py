"""Accuracy at equal cost on the shapes model: methods, solvers and numbers of particles against seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch

from examples.benchmarks.shapes_cost_report import ONE, Method, Point, VariantResults, cost_table, summarize_costs
from examples.benchmarks.shapes_populations import (
    BEST,
    PROMPT_LISTS,
    RESULT_KEY,
    STEERED,
    UNSTEERED,
    Population,
    ShapesSettings,
    generate,
    list_populations,
    load_models,
    one_of,
    open_store,
    trajectory,
)
from examples.benchmarks.shapes_unit_costs import PREVIEW, UnitCosts, Work, population_work, time_units
from fk_reward.benchmarks.report import Column, markdown_report, show_table, write_json
from fk_reward.benchmarks.store import ResultStore, weights_digest
from fk_reward.cli import run_script
from fk_reward.cli.options import SEARCH, OutOption, TypedFields
from fk_reward.devices import resolve_device
from fk_reward.durable_files import cosmetic, read_json, write_whole
from fk_reward.models import DEFAULT_EMBEDDED_REWARD
from fk_reward.output_folder import hold_folder
from fk_reward.search.feynman_kac import FKSteeringConfig
from fk_reward.terminal import say
from fk_reward.value_checks import parse_integers, parse_shard, whole_number

if TYPE_CHECKING:
    from fk_reward.pipelines import FKSteeringPipeline
    from fk_reward.rewards import Reward


@dataclass(frozen=True, kw_only=True)
class ShapesVariant:
    """A solver with changes of the steering.

    Attributes:
        name: of the variant and of its folder.
        solver: name of the solver.
        num_particles: values of K.
        preview: name of the decoder of the scoring steps; None for the model's own.
        final_particles: how many of the K are finished; None for all.
        guidance_scale: of classifier-free guidance; None for the solver's, or the benchmark's default.
    """

    name: str
    solver: str
    num_particles: tuple[int, ...]
    preview: str | None = None
    final_particles: int | None = None
    guidance_scale: float | None = None

    @property
    def has_plain(self) -> bool:
        """Whether it draws plain images: those of a preview or a shrinking population are the solver's."""
        return self.preview is None and self.final_particles is None


VARIANTS: dict[str, ShapesVariant] = {
    variant.name: variant
    for variant in (
        ShapesVariant(name="ddim-50", solver="ddim-50", num_particles=(2, 4, 8)),
        ShapesVariant(name="ddim-100", solver="ddim-100", num_particles=(2, 4)),
        ShapesVariant(name="sde-dpmsolver++-20", solver="sde-dpmsolver++-20", num_particles=(2, 4, 8, 16)),
        ShapesVariant(name="lcm-8-guided", solver="lcm-8", num_particles=(4, 8), guidance_scale=3.0),
        ShapesVariant(name="ddim-50-preview", solver="ddim-50", num_particles=(4,), preview="shapes-preview"),
        ShapesVariant(
            name="sde-dpmsolver++-20-preview",
            solver="sde-dpmsolver++-20",
            num_particles=(4, 8),
            preview="shapes-preview",
        ),
        ShapesVariant(name="ddim-50-funnel", solver="ddim-50", num_particles=(6, 8), final_particles=2),
        ShapesVariant(
            name="sde-dpmsolver++-20-funnel", solver="sde-dpmsolver++-20", num_particles=(8, 16), final_particles=2
        ),
        ShapesVariant(
            name="sde-dpmsolver++-20-preview-funnel",
            solver="sde-dpmsolver++-20",
            num_particles=(8, 16),
            preview="shapes-preview",
            final_particles=2,
        ),
    )
}
"""The compared variants, in the order of the table. To add one, add a row."""


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """What all variants share, so that their results can be paired.

    Attributes:
        model: of the shapes world.
        reward: name of the reward that steers and selects.
        prompts: which prompts, a key of `PROMPT_LISTS`.
        num_prompts: length of the list of prompts.
        seed: the first seed.
        num_seeds: runs of each prompt.
        steps: scheduler steps of every variant; None for those of its solver.
        guidance_scale: of classifier-free guidance, of every variant; None for the variant's.
        steering: settings of the sampler but for the numbers of particles.
    """

    model: str
    reward: str
    prompts: str
    num_prompts: int
    seed: int
    num_seeds: int
    steps: int | None = None
    guidance_scale: float | None = None
    steering: FKSteeringConfig = field(default_factory=FKSteeringConfig)

    def to_dict(self) -> dict[str, Any]:
        """As JSON; the numbers of particles are those of the variants."""
        steering = self.steering.to_dict()
        del steering["num_particles"], steering["final_particles"]
        return asdict(self) | {"steering": steering}

    def of_variant(self, variant: ShapesVariant, num_particles: Sequence[int] | None = None) -> ShapesSettings:
        """The settings of the shapes benchmark for one variant.

        Args:
            variant: the variant.
            num_particles: values of K instead of its own.

        Raises:
            ValueError: K is smaller than the number of finished particles.
        """
        sizes = tuple(num_particles or variant.num_particles)
        guidance_scale = variant.guidance_scale if self.guidance_scale is None else self.guidance_scale
        smallest = min((size for size in sizes if size > 1), default=1)
        return ShapesSettings(
            model=self.model,
            rewards=(self.reward,),
            prompts=self.prompts,
            num_prompts=self.num_prompts,
            num_particles=sizes,
            seed=self.seed,
            num_seeds=self.num_seeds,
            steering=replace(self.steering, num_particles=smallest, final_particles=variant.final_particles),
            preview=variant.preview,
            **trajectory(variant.solver, self.steps, guidance_scale),
        )


def variant_populations(variant: ShapesVariant, settings: ShapesSettings) -> list[Population]:
    """List the populations of a variant whose images no other population gives.

    Not drawn are plain images of another variant, and steered ones that are never resampled, which equal the plain
    ones: the effective sample size of K particles is at least 1, so that a threshold of 1/K or less (K = 2 with
    one of 0.5) never resamples.

    Example:
        >>> sweep = SweepSettings(model="shapes-sd", reward="x", prompts="sign", num_prompts=1, seed=0, num_seeds=1)
        >>> variant = VARIANTS["ddim-50"]
        >>> [p.num_particles for p in variant_populations(variant, sweep.of_variant(variant))]
        [8, 2, 4, 8]
    """

    def is_needed(population: Population) -> bool:
        if population.reward is None:
            return variant.has_plain
        size = population.num_particles
        return (variant.final_particles or size) < size or settings.steering.ess_threshold * size > 1.0

    return [population for population in list_populations(settings) if is_needed(population)]


UNIT_COSTS = "unit_costs.json"
WORK_COLUMNS = (
    Column("variant"),
    Column("particles", "K"),
    Column("model_rows", "denoiser rows", "{:,.0f}"),
    Column("decodes", style="{:,.0f}"),
    Column("previews", style="{:,.0f}"),
    Column("scored", "rewards", "{:,.0f}"),
)


def parse_reference(text: str, reward: str) -> Point:
    """Variant, method and K as typed: `"ddim-50 steered 4"`.

    Raises:
        ValueError: for anything else.

    Example:
        >>> print(parse_reference("ddim-50 steered 4", "clipscore"))
        ddim-50, steered of 4 by clipscore
        >>> print(parse_reference("ddim-100 unsteered 1", "clipscore"))
        ddim-100, unsteered
    """
    words = text.split()
    is_known = len(words) == 3 and words[0] in VARIANTS and words[1] in (UNSTEERED, BEST, STEERED)
    if not (is_known and words[2].isdecimal()):
        raise ValueError(
            f"reference should be a variant, a method ({UNSTEERED}, {BEST}, {STEERED}) and K, as in "
            f"'ddim-50 steered 4'; got {text!r}. Variants are {', '.join(VARIANTS)}."
        )
    variant, method, size = words
    return Point(variant, ONE if method == UNSTEERED else Method(method, reward, int(size)))


def show_work(settings: Mapping[str, ShapesSettings]) -> dict[str, Work]:
    """Print the work of the complete run, with all shards and finished parts, and return it by variant."""
    works = {}
    for name, one in settings.items():
        parts = [population_work(population, one) for population in variant_populations(VARIANTS[name], one)]
        works[name] = Work.total(parts).times(one.num_prompts)
    named = works | {"all": Work.total(works.values())}
    particles = {name: ", ".join(map(str, one.num_particles)) for name, one in settings.items()}
    rows = [{"variant": name, "particles": particles.get(name, "")} | vars(work) for name, work in named.items()]
    show_table("Work of the complete run", WORK_COLUMNS, rows)
    return works


def run_variants(
    settings: Mapping[str, ShapesSettings],
    sweep: SweepSettings,
    *,
    out: Path,
    shard: tuple[int, int],
    batch_size: int,
    num_repetitions: int,
    device: str,
) -> None:
    """Run what is missing, each variant in its own folder; the first shard times the units of cost."""
    from fk_reward.pipelines.schedulers import resolve_solver  # noqa: PLC0415 (slow to import, not needed for a report)

    works = show_work(settings)
    first = next(iter(settings.values()))
    pipe, rewards = load_models(first, device)
    ResultStore(out, sweep.to_dict() | {"weights": weights_digest([dict(pipe.components), rewards])})
    if shard[0] == 0:  # on one machine, so that all ratios are of the same one
        options = {"batch_size": batch_size, "num_repetitions": num_repetitions}
        units = unit_costs(pipe, rewards[sweep.reward], settings=settings, out=out, **options)
        rows = sum(units.cost(work, settings[name].preview) for name, work in works.items())
        minutes = rows * units.row_seconds / 60
        say(f"{rows:,.0f} rows with decodes and rewards: about {minutes:,.0f} minutes of one such process.")
    for name, one in settings.items():
        say(f"{name}:")
        pipe.solver, pipe.preview = resolve_solver(one.solver), one.preview
        store = open_store(out / name, one, pipe=pipe, rewards=rewards)
        populations = variant_populations(VARIANTS[name], one)
        share: dict[str, Any] = {"shard": shard, "batch_size": batch_size, "populations": populations}
        generate(pipe, one, rewards=rewards, store=store, **share)


def unit_costs(
    pipe: FKSteeringPipeline,
    reward: Reward,
    *,
    settings: Mapping[str, ShapesSettings],
    out: Path,
    batch_size: int,
    num_repetitions: int,
) -> UnitCosts:
    """Read `unit_costs.json`; if it is missing or lacks a preview, time the units and write it."""
    path = out / UNIT_COSTS
    content = _read_units(path) if path.exists() else {"rounds": {}}
    previews = {one.preview for one in settings.values() if one.preview is not None}
    known = {name.removeprefix(PREVIEW) for name in content["rounds"] if name.startswith(PREVIEW)}
    if not content["rounds"] or not previews <= known:
        guidance = next(iter(settings.values())).guidance_scale
        options: dict[str, Any] = {"batch_size": batch_size, "num_repetitions": num_repetitions}
        options["guidance_scale"] = guidance
        rounds = time_units(pipe, reward, previews=sorted(previews | known), **options)
        machine = torch.cuda.get_device_name() if pipe.device.type == "cuda" else pipe.device.type
        environment = {"machine": machine, "threads": torch.get_num_threads(), "torch": torch.__version__}
        content = {"settings": options, "environment": environment, "rounds": rounds}
        write_json(path, content | {"units": UnitCosts.of_rounds(rounds).to_dict()})
    return UnitCosts.of_rounds(content["rounds"])


def _read_units(path: Path) -> dict[str, Any]:
    return read_json(path, remedy="Delete it and run shard 0 again, which times them anew.")


def show_report(out: Path, names: Sequence[str], *, reference: str, figure: Path) -> list[dict[str, Any]]:
    """Print the table of all results, write `shapes_cost.json`, `shapes_cost.md` and the figure, return the rows."""
    from examples.benchmarks.shapes_cost_report import plot_costs  # noqa: PLC0415 (slow to import)

    sweep = ResultStore(out).settings
    if not (out / UNIT_COSTS).exists():
        raise FileNotFoundError(f"{out} has no {UNIT_COSTS}: run shard 0, which times what a decode and a reward cost.")
    timing = _read_units(out / UNIT_COSTS)
    found = {name: ResultStore(out / name) for name in names if (out / name / "settings.json").exists()}
    variants = {name: VariantResults(store.settings, store.load(RESULT_KEY)) for name, store in found.items()}
    point = parse_reference(reference, sweep["reward"])
    rows = summarize_costs(variants, UnitCosts.of_rounds(timing["rounds"]), reference=point)
    content = {"settings": sweep, "reference": str(point), "unit_costs": timing, "rows": rows}
    table = cost_table(rows)
    show_table(*table)
    for line in _notes(rows, point, timing["units"]):
        say(line)
    write_json(out / "shapes_cost.json", content)
    write_whole(out / "shapes_cost.md", markdown_report([table]))
    with cosmetic(f"drawing {figure}"):
        write_whole(figure, partial(plot_costs(rows).savefig, format=figure.suffix[1:] or "png"))
    return rows


def _notes(rows: Sequence[Mapping[str, Any]], reference: Point, units: Mapping[str, Any]) -> list[str]:
    previews = "".join(f", a decode by {name} {ratio:.2f}" for name, ratio in units["previews"].items())
    notes = [f"In rows of the denoiser: a decode {units['decode']:.2f}{previews}, a reward {units['reward']:.2f}."]
    if all(row["to_reference"] is None for row in rows):
        notes.append(f"There are no results of the reference ({reference}).")
    if len({row["num_results"] for row in rows}) > 1:
        notes.append("Not everything is finished: accuracies and front are of different prompts, differences are not.")
    return notes


_STEERING = ("potential", "reward_scale", "resample_start", "resample_stop", "num_resamples", "ess_threshold")
SteeringOptions = Annotated[dict[str, Any], TypedFields(FKSteeringConfig, SEARCH, names=_STEERING)]


def main(  # noqa: PLR0913 (one parameter for each option)
    *,
    variant: list[str] | None = None,
    reward: str = DEFAULT_EMBEDDED_REWARD,
    model: str = "shapes-sd",
    prompts: str = "benchmark",
    num_prompts: int = 108,
    num_seeds: int = 2,
    seed: int = 0,
    num_particles: str | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    steering: SteeringOptions,
    reference: str = "ddim-50 steered 4",
    num_repetitions: int = 15,
    batch_size: int = 64,
    device: str = "cpu",
    shard: str = "0/1",
    report: bool = False,
    figure: Path | None = None,
    out: OutOption = Path("results/shapes-cost"),
) -> None:
    """Accuracy against cost of solvers, previews and shrinking populations, on the same prompts and seeds.

    Args:
        variant: One of the ways to draw; may be repeated; all if not given.
        reward: Steers and selects.
        model: A model of the shapes world, by name or folder.
        prompts: Prompts of the shapes world: benchmark, validation or test.
        num_prompts: Prompts, the tasks in turn.
        num_seeds: Runs of each prompt.
        seed: The first seed.
        num_particles: Values of K, separated by commas; the variant's if not given.
        steps: Scheduler steps; the solver's if not given.
        guidance_scale: Classifier-free guidance; the solver's, or 3 if not given.
        steering: Settings of the sampler.
        reference: Variant, method (unsteered, best, steered) and K to compare with.
        num_repetitions: Rounds in which the units of cost are timed.
        batch_size: Particles a call.
        device: Device: cpu or cuda.
        shard: i/n: this process takes every n-th prompt.
        report: Only report what is in the folder.
        figure: PNG of the curve; shapes_cost.png in --out if not given.
        out: Folder of the results; an unfinished run is resumed.
    """
    whole_number("--num-prompts", num_prompts, minimum=1)
    whole_number("--num-seeds", num_seeds, minimum=1)
    whole_number("--seed", seed, minimum=0)
    if steps is not None:
        whole_number("--steps", steps, minimum=2)
    whole_number("--num-repetitions", num_repetitions, minimum=1)
    whole_number("--batch-size", batch_size, minimum=1)
    names, part = [one_of("variant", name, list(VARIANTS)) for name in variant or VARIANTS], parse_shard(shard)
    parse_reference(reference, reward)
    if not report:
        sweep = SweepSettings(
            model=model,
            reward=reward,
            prompts=one_of("prompts", prompts, list(PROMPT_LISTS)),
            num_prompts=num_prompts,
            seed=seed,
            num_seeds=num_seeds,
            steps=steps,
            guidance_scale=guidance_scale,
            steering=FKSteeringConfig(**steering),
        )
        sizes = None if num_particles is None else parse_integers("num_particles", num_particles)
        settings = {name: sweep.of_variant(VARIANTS[name], sizes) for name in names}
        options: dict[str, Any] = {"batch_size": batch_size, "num_repetitions": num_repetitions}
        with hold_folder(out, share=part):
            run_variants(settings, sweep, out=out, shard=part, device=resolve_device(device), **options)
    if report or part[1] == 1:
        show_report(out, names, reference=reference, figure=figure or out / "shapes_cost.png")
        say(f"Results: {out / 'shapes_cost.json'}, {out / 'shapes_cost.md'}, the figure beside them")


if __name__ == "__main__":
    run_script(main)
