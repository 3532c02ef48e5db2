"""`fk-reward demo`: one picture, best of K and steered, side by side, offline and judged by rules."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fk_reward.cli.demo_report import demo_table, headline, to_record
from fk_reward.durable_files import cosmetic, write_whole
from fk_reward.models import DEFAULT_EMBEDDED_REWARD
from fk_reward.output_folder import NAMED_PATH, hold_folder
from fk_reward.terminal import say


def demo(  # noqa: PLR0913 (one parameter for each option)
    *,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the results; old ones are replaced.", **NAMED_PATH)
    ] = Path("outputs/demo"),
    num_prompts: Annotated[int, typer.Option(help="Held-out prompts, the six tasks in turn.", min=1, max=24)] = 12,
    num_particles: Annotated[int, typer.Option("--num-particles", "-k", help="K.", min=2)] = 4,
    steps: Annotated[int, typer.Option(help="Scheduler steps.", min=1)] = 50,
    reward: Annotated[str, typer.Option("--reward", "-r", help="The reward that steers.")] = DEFAULT_EMBEDDED_REWARD,
    reward_scale: Annotated[str, typer.Option(help="Lambda, or auto.")] = "30",
    model: Annotated[str, typer.Option("--model", "-m", help="A model of the shapes world.")] = "shapes-sd",
    seed: Annotated[int, typer.Option(help="Seed of the first particle of the first prompt.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Steer the model that ships in the package, and say honestly what it gained.

    For prompts of the shapes world that no model was trained on: one picture, the best of K by the reward, and K
    steered particles, all from the same seeds. A rule-based verifier judges them; the default reward learned from what
    it says of pictures of other prompts.
    """
    from fk_reward.cli.demo_picture import draw_demo
    from fk_reward.cli.demo_run import STEERING, run_demo
    from fk_reward.pipelines.loading import default_guidance, load_pipeline
    from fk_reward.search.feynman_kac import parse_reward_scale
    from fk_reward.shapes import benchmark_prompts

    steering = replace(STEERING, num_particles=num_particles, reward_scale=parse_reward_scale(reward_scale))
    arguments = {"num_inference_steps": steps, **default_guidance(model, None)}
    with hold_folder(out):
        pipe = load_pipeline(model, reward=reward, steering=steering, device=device, dtype="float32")
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
