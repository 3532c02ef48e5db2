"""`fk-reward demo`: one image, best of K and steered, side by side, offline and judged by rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from fk_reward.cli import early_checks
from fk_reward.cli.options import SEARCH, DeviceOption, ModelOption, OutOption, RewardOption
from fk_reward.durable_files import cosmetic, write_whole
from fk_reward.models import DEFAULT_EMBEDDED_REWARD
from fk_reward.output_folder import hold_folder
from fk_reward.terminal import say
from fk_reward.value_checks import whole_number

_BEGINNING = """Each of {num_prompts} prompts that no model was trained on is drawn from {num_seeds} seeds: one image;
the best of {num_particles} by the reward; and "{search}", which spends as many sample steps on the
starts that promise most. Rules that look at the pixels judge (✓ ✗); the reward learned by them, on other prompts."""

_END = """What to try next:
  fk-reward generate "a photo of two stars" --search tree --solver sde-dpmsolver++-20 --out outputs/stars     your own
  fk-reward doctor {reward}     what the reward can and cannot tell
  fk-reward scaling --suite shapes --out results/scaling     searches at several budgets, with intervals
  docs/tutorials/first_image.md     the same in Python, then SDXL"""


def demo(  # noqa: PLR0913 (one parameter for each option)
    *,
    out: OutOption = Path("outputs/demo"),
    num_prompts: int = 8,
    num_seeds: int = 3,
    num_particles: Annotated[int, Parameter(alias="-k", group=SEARCH)] = 4,
    search: Annotated[str, Parameter(group=SEARCH)] = "tree",
    solver: Annotated[str, Parameter(validator=early_checks.SOLVER)] = "sde-dpmsolver++-20",
    num_inference_steps: Annotated[int, Parameter(alias="--steps")] = 20,
    reward: RewardOption = DEFAULT_EMBEDDED_REWARD,
    model: ModelOption = "shapes-sd",
    seed: int = 0,
    device: DeviceOption = "auto",
) -> None:
    """Steer the model that ships in the package, and show what it gained.

    For prompts of the shapes world that no model was trained on: one image, the best of K by the reward, and steered
    ones for the same number of sample steps, all from the same seeds. A rule-based verifier judges them; the default
    reward was trained on what it says of images of other prompts.

    Args:
        out: Folder for the results; old ones are replaced.
        num_prompts: Different held-out prompts, 1 to 40.
        num_seeds: Seeds of each.
        num_particles: K of best of K, at least 2; the steered images cost as much.
        search: Name of the search that steers.
        solver: Of all three, by name; a tree needs a stochastic one.
        num_inference_steps: Scheduler steps.
        reward: Reward that chooses.
        model: Model of the shapes world.
        seed: The first seed.
        device: Device of the models: auto (the GPU where there is one), cpu, cuda, cuda:1, ... or mps.
    """
    whole_number("--num-prompts", num_prompts, minimum=1, maximum=40)
    whole_number("--num-seeds", num_seeds, minimum=1)
    whole_number("--num-particles", num_particles, minimum=2)
    whole_number("--num-inference-steps", num_inference_steps, minimum=1)
    sizes = {"num_prompts": num_prompts, "num_seeds": num_seeds, "num_particles": num_particles, "search": search}
    for line in _BEGINNING.format(**sizes).splitlines():
        say(line, stderr=True)
    from fk_reward.cli.demo_comparison import (
        demo_prompts,
        demo_table,
        draw_demo,
        headline,
        reasons,
        run_demo,
        to_record,
    )
    from fk_reward.pipelines.loading import default_guidance, load_pipeline
    from fk_reward.pipelines.schedulers import resolve_solver

    settings: dict[str, Any] = {
        "num_particles": num_particles,
        "steps": num_inference_steps,
        "arguments": default_guidance(model, None),
    }
    with hold_folder(out):
        pipe = load_pipeline(model, reward=reward, search=search, device=device, dtype="float32")
        pipe.solver = resolve_solver(solver)
        seeds = range(seed, seed + num_seeds)
        result = run_demo(pipe, demo_prompts(num_prompts), seeds=seeds, **settings)
        asked = {"model": model, "reward": reward, "solver": solver, "seeds": list(seeds)}
        write_whole(out / "demo.json", json.dumps({**asked, **settings, **to_record(result)}, indent=2) + "\n")
        with cosmetic("drawing side-by-side.png"):
            draw_demo(result, out / "side-by-side.png")
        with cosmetic("drawing lineage.png"):
            result.trace.plot(out / "lineage.png")
    demo_table(result).print()
    say(headline(result))
    for line in ["", *reasons(result), *_END.format(reward=reward).splitlines()]:
        say(line)
    say(f"Written to {out}: side-by-side.png (the first seed), lineage.png, demo.json")
