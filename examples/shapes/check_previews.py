"""Prints whether a reward finds the same particles best when cheaper decoders show them, and what a decode takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Annotated

import torch
import typer
from drawn_pictures import NUM_STEPS, PREDICTIONS
from scipy.stats import spearmanr
from torch import Tensor

from fk_reward import FKSteeringPipeline
from fk_reward.benchmarks.drawing import indifferent_reward, particle_generators
from fk_reward.benchmarks.report import Column, show_table
from fk_reward.benchmarks.speed_measure import timed_on
from fk_reward.models import DEFAULT_EMBEDDED_REWARD
from fk_reward.pipelines.decoding import LatentDecoder, load_preview, preview_decoder
from fk_reward.pipelines.epilogue import DecodeFn
from fk_reward.rewards import Reward, load_reward
from fk_reward.shapes import ShapesPrompt, benchmark_prompts

VAE = "VAE"
COLUMNS = (
    Column("preview", "decoded by"),
    Column("step", "at step", "{:d}"),
    Column("rank", "rank correlation with the VAE", "{:.3f}"),
    Column("best", "same best particle", "{:.2f}"),
    Column("time", "time / VAE", "{:.2f}"),
)


class Recorder:
    """A preview that keeps the latents, as the scheduler sees them, and shows nothing."""

    def __init__(self) -> None:
        self.latents: list[Tensor] = []

    def __call__(self, latents: Tensor) -> Tensor:
        """Keeps `(B, 8, 8, 8)` latents; all pictures are grey."""
        self.latents.append(latents)
        return latents.new_full((len(latents), 3, 64, 64), 0.5)


def predicted_latents(
    model: str, prompts: dict[int, ShapesPrompt], *, per_prompt: int, seed: int
) -> tuple[FKSteeringPipeline, Tensor]:
    """The pipeline, and what it predicts at each scoring step: `(P, S, K, 8, 8, 8)`, K particles of each prompt."""
    pipe = FKSteeringPipeline.from_pretrained(model, reward=indifferent_reward(), steering=PREDICTIONS)
    pipe.set_progress_bar_config(disable=True)
    rows = []
    for index, prompt in prompts.items():
        pipe.preview = recorder = Recorder()
        pipe(
            prompt.text,
            num_particles=per_prompt,
            generator=particle_generators(seed, [index], per_prompt),
            num_inference_steps=NUM_STEPS,
            guidance_scale=3.0,
        )
        rows.append(torch.stack(recorder.latents))
    pipe.preview = None
    return pipe, torch.stack(rows)


@torch.no_grad()
def scores(reward: Reward, decode: DecodeFn, latents: Tensor, prompts: dict[int, ShapesPrompt]) -> Tensor:
    """Rewards `(P, S, K)` of latents `(P, S, K, ...)`, the particles of one prompt and one step in a call."""
    rows = [
        torch.stack([reward(decode(particles), prompt.text) for particles in steps])
        for steps, prompt in zip(latents, prompts.values(), strict=True)
    ]
    return torch.stack(rows)


def rank_correlation(ours: Tensor, theirs: Tensor) -> float:
    """Spearman's, of the particles `(P, K)` of each prompt, averaged over the prompts."""
    return statistics.fmean(float(spearmanr(a, b).statistic) for a, b in zip(ours.numpy(), theirs.numpy(), strict=True))


@torch.no_grad()
def relative_times(decoders: Mapping[str, DecodeFn], latents: Tensor, num_rounds: int) -> dict[str, float]:
    """Median over the rounds of a decode's time over the VAE's in the same round; all warm up first."""
    timed = timed_on(latents.device)
    rounds = []
    for i in range(-1, num_rounds):
        names = list(decoders) if i % 2 else list(decoders)[::-1]
        seconds = {name: timed(lambda name=name: decoders[name](latents)) for name in names}
        rounds.append({name: spent / seconds[VAE] for name, spent in seconds.items()})
    return {name: statistics.median(times[name] for times in rounds[1:]) for name in decoders}


def main(
    reward: Annotated[str, typer.Option(help="A reward's name, or a composition.")] = DEFAULT_EMBEDDED_REWARD,
    preview: Annotated[list[str], typer.Option(help="A preview's name or folder; may be repeated.")] = [  # noqa: B006
        "shapes-preview",
        "vae/2",
    ],
    model: str = "shapes-sd",
    num_prompts: Annotated[int, typer.Option(help="Held-out prompts, the tasks in turn.")] = 60,
    per_prompt: Annotated[int, typer.Option(help="Particles of each prompt.")] = 8,
    num_rounds: Annotated[int, typer.Option(help="Timed decodes.")] = 15,
    seed: int = 5000,
) -> None:
    """Draws held-out prompts once, decodes what was predicted by every preview, and compares the rewards."""
    start = time.perf_counter()
    prompts = dict(enumerate(benchmark_prompts(num_prompts)))
    pipe, latents = predicted_latents(model, prompts, per_prompt=per_prompt, seed=seed)
    decoders: dict[str, DecodeFn] = {VAE: LatentDecoder(pipe.pipe)}
    for name in preview:
        decoders[name] = preview_decoder(load_preview(name, pipe.pipe), pipe.pipe, height=None, width=None)
    judge = load_reward(reward)
    tables = {name: scores(judge, decode, latents, prompts) for name, decode in decoders.items()}
    times = relative_times(decoders, latents[0, 0], num_rounds)
    rows = [
        {
            "preview": name,
            "step": step,
            "rank": rank_correlation(tables[name][:, i], tables[VAE][:, i]),
            "best": float((tables[name][:, i].argmax(1) == tables[VAE][:, i].argmax(1)).float().mean()),
            "time": times[name],
        }
        for name in preview
        for i, step in enumerate(PREDICTIONS.scoring_steps(NUM_STEPS))
    ]
    show_table(f"{reward}: {num_prompts} prompts, {per_prompt} particles each; seed {seed}", COLUMNS, rows)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    typer.run(main)
