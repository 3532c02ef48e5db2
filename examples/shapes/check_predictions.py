"""Prints what a reward knows of images that are not finished: by the step, and by the decoder."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import cyclopts
import torch
from safetensors.torch import load_file
from sample_images import NUM_STEPS, PREDICTIONS, STEPS
from scipy.stats import spearmanr
from torch import Tensor
from torch.utils.benchmark import timer

from fk_reward import FKSteeringPipeline
from fk_reward.benchmarks.drawing import indifferent_reward, particle_generators
from fk_reward.benchmarks.report import Column, show_table
from fk_reward.benchmarks.statistics import clustered_bootstrap
from fk_reward.models import DEFAULT_EMBEDDED_REWARD
from fk_reward.pipelines.decoding import LatentDecoder, load_preview, preview_decoder
from fk_reward.pipelines.epilogue import DecodeFn
from fk_reward.rewards import Reward, load_reward
from fk_reward.shapes import ShapesPrompt, all_prompts, benchmark_prompts

app = cyclopts.App()


EARLY_COLUMNS = (
    Column("name", "scored"),
    Column("with_own", "correlation with its final score", "{:.2f}"),
    Column("with_verifier", "with the verifier", "{:.2f}"),
    Column("spread", "spread within a prompt", "{:.3f}"),
    Column("pairwise", "pairs foreseen [95 %]", "{:.3f} [{:.3f}, {:.3f}]", ("low", "high")),
)


def within_prompt_correlation(first: Tensor, second: Tensor) -> float:
    """Correlation of two (P, K) tables after the mean of each row is removed; not a number where one has no spread."""
    first, second = (table - table.mean(dim=1, keepdim=True) for table in (first.double(), second.double()))
    return float((first * second).sum() / (first.square().sum() * second.square().sum()).sqrt())


def foreseen(scores: Tensor, correct: Tensor) -> float:
    """Of the pairs of a right and a wrong image, the share in which the right one scores higher; ties count half."""
    difference = scores[correct][:, None] - scores[~correct]
    return float((difference > 0).double().mean() + 0.5 * (difference == 0).double().mean())


def read_draws(paths: Sequence[Path], per_prompt: int) -> dict[str, Tensor]:
    """The files of `sample_images.py`, by draw: images (D, K, S, 3, 64, 64) uint8, prompts (D,), correct (D, K)."""
    found = [one for path in paths for one in (sorted(path.glob("*.safetensors")) if path.is_dir() else [path])]
    if not found:
        raise FileNotFoundError(f"No file of sample_images.py in {', '.join(map(str, paths))}.")
    files = [load_file(path) for path in found]
    tensors = {
        name: torch.cat([file[name] for file in files]).unflatten(0, (-1, per_prompt))
        for name in ("images", "prompts", "correct")
    }
    if (tensors["prompts"] != tensors["prompts"][:, :1]).any():
        raise ValueError(f"Images of different prompts stand among {per_prompt}: --per-prompt is another number.")
    return tensors | {"prompts": tensors["prompts"][:, 0]}


@torch.no_grad()
def score_draws(reward: Reward, draws: dict[str, Tensor]) -> Tensor:
    """Scores (S, D, K): the K images of one draw and one step share a call."""
    texts = [all_prompts()[index].text for index in draws["prompts"].tolist()]
    rows = [
        torch.stack([reward(images[:, step] / 255, text) for step in range(images.shape[1])])
        for images, text in zip(draws["images"], texts, strict=True)
    ]
    return torch.stack(rows, dim=1)


def rows_by_step(scores: Tensor, draws: dict[str, Tensor], names: list[str], *, seed: int) -> list[dict[str, object]]:
    """One row for each scoring step; the interval is by bootstrap over distinct prompts."""
    correct, prompts = draws["correct"], draws["prompts"].tolist()
    mixed = [i for i, verdicts in enumerate(correct) if 0 < verdicts.sum() < len(verdicts)]
    rows = []
    for name, table in zip(names, scores, strict=True):
        pairs = [foreseen(table[i], correct[i]) for i in mixed]
        interval = clustered_bootstrap(pairs, [prompts[i] for i in mixed], seed=seed)
        rows.append(
            {
                "name": name,
                "with_own": within_prompt_correlation(table, scores[-1]),
                "with_verifier": within_prompt_correlation(table, correct),
                "spread": float(table.std(dim=1).mean()),
                "pairwise": interval.estimate,
                "low": interval.low,
                "high": interval.high,
            }
        )
    return rows


@app.command(name="early")
def check_early_rewards(
    reward: str = DEFAULT_EMBEDDED_REWARD,
    samples: Sequence[Path] = (Path("runs/samples/heldout"),),
    num_draws: int = 0,
    per_prompt: int = 8,
    seed: int = 0,
) -> None:
    """Scores every image and what it was predicted to become, and compares within draws of one prompt.

    Args:
        reward: A reward's name, or a composition.
        samples: Files of sample_images.py, or folders of them; may be repeated.
        num_draws: How many draws to score, chosen by the seed; 0: all.
        per_prompt: Images a draw in the files.
        seed: Of the choice and of the bootstrap.
    """
    start = time.perf_counter()
    draws = read_draws(samples, per_prompt)
    order = torch.randperm(len(draws["prompts"]), generator=torch.Generator().manual_seed(seed))
    chosen = order[: num_draws or None].sort().values
    draws = {name: tensor[chosen] for name, tensor in draws.items()}
    scores = score_draws(load_reward(reward), draws)
    names = [f"step {step}" for step in STEPS] + ["finished"]
    rows = rows_by_step(scores, draws, names, seed=seed)
    mixed = (draws["correct"].any(1) & ~draws["correct"].all(1)).sum()
    title = f"{reward}: {len(chosen)} draws of {per_prompt} images, {mixed} with right and wrong ones; seed {seed}"
    show_table(title, EARLY_COLUMNS, rows)
    print(f"{time.perf_counter() - start:.0f} s")


VAE = "VAE"
PREVIEW_COLUMNS = (
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
        """Keeps `(B, C, H, W)` latents; all images are grey."""
        self.latents.append(latents)
        return latents.new_full((len(latents), 3, 64, 64), 0.5)


def predicted_latents(
    model: str, prompts: dict[int, ShapesPrompt], *, per_prompt: int, seed: int
) -> tuple[FKSteeringPipeline, Tensor]:
    """The pipeline, and what it predicts at each scoring step: `(P, S, K, C, H, W)`, K particles of each prompt."""
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
def preview_scores(reward: Reward, decode: DecodeFn, latents: Tensor, prompts: dict[int, ShapesPrompt]) -> Tensor:
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
    rounds = []
    for i in range(-1, num_rounds):
        names = list(decoders) if i % 2 else list(decoders)[::-1]
        seconds = {name: _seconds(decoders[name], latents) for name in names}
        rounds.append({name: spent / seconds[VAE] for name, spent in seconds.items()})
    return {name: statistics.median(times[name] for times in rounds[1:]) for name in decoders}


def _seconds(decoder: DecodeFn, latents: Tensor) -> float:
    started = timer()
    decoder(latents)
    return timer() - started


@app.command(name="previews")
def check_previews(
    reward: str = DEFAULT_EMBEDDED_REWARD,
    preview: Sequence[str] = (
        "shapes-preview",
        "vae/2",
    ),
    model: str = "shapes-sd",
    num_prompts: int = 60,
    per_prompt: int = 8,
    num_rounds: int = 15,
    seed: int = 5000,
) -> None:
    """Draws held-out prompts once, decodes what was predicted by every preview, and compares the rewards.

    Args:
        reward: A reward's name, or a composition.
        preview: A preview's name or folder; may be repeated.
        model: Name or folder of a pipeline.
        num_prompts: Held-out prompts, the tasks in turn.
        per_prompt: Particles of each prompt.
        num_rounds: Timed decodes.
        seed: Of the particles.
    """
    start = time.perf_counter()
    prompts = dict(enumerate(benchmark_prompts(num_prompts)))
    pipe, latents = predicted_latents(model, prompts, per_prompt=per_prompt, seed=seed)
    decoders: dict[str, DecodeFn] = {VAE: LatentDecoder(pipe.pipe)}
    for name in preview:
        decoders[name] = preview_decoder(load_preview(name, pipe.pipe), pipe.pipe, height=None, width=None)
    judge = load_reward(reward)
    tables = {name: preview_scores(judge, decode, latents, prompts) for name, decode in decoders.items()}
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
    show_table(f"{reward}: {num_prompts} prompts, {per_prompt} particles each; seed {seed}", PREVIEW_COLUMNS, rows)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    app()
