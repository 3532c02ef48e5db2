"""`fk-reward demo`: one image, best of K and steered, side by side, offline and judged by rules."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fk_reward.cli.options import SEARCH, DeviceOption, ModelOption, OutOption, RewardOption
from fk_reward.durable_files import cosmetic, write_whole
from fk_reward.models import DEFAULT_EMBEDDED_REWARD
from fk_reward.output_folder import hold_folder
from fk_reward.terminal import say
from fk_reward.value_checks import whole_number


def demo(  # noqa: PLR0913 (one parameter for each option)
    *,
    out: OutOption = Path("outputs/demo"),
    num_prompts: int = 12,
    num_particles: Annotated[int, Parameter(alias="-k", group=SEARCH)] = 4,
    num_inference_steps: Annotated[int, Parameter(alias="--steps")] = 50,
    reward: RewardOption = DEFAULT_EMBEDDED_REWARD,
    reward_scale: Annotated[float | str, Parameter(group=SEARCH)] = 30.0,
    model: ModelOption = "shapes-sd",
    seed: int = 0,
    device: DeviceOption = "auto",
) -> None:
    """Steer the model that ships in the package, and show what it gained.

    For prompts of the shapes world that no model was trained on: one image, the best of K by the reward, and K steered
    particles, all from the same seeds. A rule-based verifier judges them; the default reward was trained on what it
    says of images of other prompts.

    Args:
        out: Folder for the results; old ones are replaced.
        num_prompts: Held-out prompts, 1 to 24, the six tasks in turn.
        num_particles: K, the particles of one prompt; at least 2.
        num_inference_steps: Scheduler steps.
        reward: Reward that steers.
        reward_scale: Lambda, or auto.
        model: Model of the shapes world.
        seed: Seed of the first particle of the first prompt.
        device: Device of the models: auto (the GPU where there is one), cpu, cuda, cuda:1, ... or mps.
    """
    whole_number("--num-prompts", num_prompts, minimum=1, maximum=24)
    whole_number("--num-particles", num_particles, minimum=2)
    whole_number("--num-inference-steps", num_inference_steps, minimum=1)
    from fk_reward.cli.demo_comparison import STEERING, demo_table, draw_demo, headline, run_demo, to_record
    from fk_reward.pipelines.loading import default_guidance, load_pipeline
    from fk_reward.shapes import benchmark_prompts

    steering = replace(STEERING, num_particles=num_particles, reward_scale=reward_scale)
    arguments = {"num_inference_steps": num_inference_steps, **default_guidance(model, None)}
    with hold_folder(out):
        pipe = load_pipeline(model, reward=reward, search=steering, device=device, dtype="float32")
        result = run_demo(pipe, benchmark_prompts(num_prompts), seed=seed, arguments=arguments)
        record = {"model": model, "reward": reward, "seed": seed, "arguments": arguments, **to_record(result)}
        write_whole(out / "demo.json", json.dumps(record, indent=2) + "\n")
        with cosmetic("drawing side-by-side.png"):
            draw_demo(result, out / "side-by-side.png")
        with cosmetic("drawing lineage.png"):
            result.trace.plot(out / "lineage.png", prompt_index=result.most_resampled)
    demo_table(result).print()
    say(headline(result))
    say("")
    say(f"Written to {out}: side-by-side.png, lineage.png, demo.json")
