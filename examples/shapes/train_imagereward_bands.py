"""Trains judges of noise bands for `shapes-imagereward`, on what `train_bands.py record` has recorded.

A band has weights of its own here: the seam is `Reward.at_noise`, and adapters are one way to answer.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import cyclopts
import torch
from torch import Tensor
from train_bands import BANDS, KINDS, SOLVERS, models_of, recorded

from fk_reward.rewards import ImageReward, load_reward
from fk_reward.rewards.noise_bands import NoiseBand, fit_calibration, write_band
from fk_reward.training import PreferencePair
from fk_reward.training.curriculum import Curriculum, held_out, training_pairs, validation_pairs
from fk_reward.training.predictions import PredictionRecords

REWARD = "shapes-imagereward"


def scores_of(reward: ImageReward, pairs: Sequence[PreferencePair]) -> Tensor:
    """Scores `(B, 2)` of the chosen and the rejected image of B pairs."""
    images = torch.stack([image.load() for pair in pairs for image in pair.images])
    return reward.score(images, [prompt for pair in pairs for prompt in pair.prompts]).view(-1, 2)


def losses(reward: ImageReward, pairs: Sequence[PreferencePair], *, batch_size: int) -> Iterator[Tensor]:
    """Cross-entropy of each batch, in the order of the curriculum: a gap of one spread is worth odds of e."""
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        chosen, rejected = scores_of(reward, batch).unbind(1)
        wanted = torch.sigmoid(torch.tensor([pair.margin or 0.0 for pair in batch]))
        yield torch.nn.functional.binary_cross_entropy_with_logits(chosen - rejected, wanted)


@torch.no_grad()
def accuracy(reward: ImageReward, pairs: Sequence[PreferencePair], *, batch_size: int) -> float:
    """Share of held-out pairs in order."""
    reward.model.eval()
    batches = (pairs[start : start + batch_size] for start in range(0, len(pairs), batch_size))
    scores = torch.cat([scores_of(reward, batch) for batch in batches])
    return float((scores[:, 0] > scores[:, 1]).double().mean())


@torch.no_grad()
def calibrated(
    reward: ImageReward, recordings: Sequence[PredictionRecords], curriculum: Curriculum, *, without: set[str]
) -> ImageReward:
    """The reward in the unit of finished scores: mean and deviation, by which it divides, are the affine map."""
    reward.model.eval()
    tables: list[tuple[Tensor, Tensor]] = []
    for records in recordings:
        for level in curriculum.levels(records):
            for place, prompt in enumerate(records.prompts):
                if prompt not in without:
                    images = torch.stack(records.images(place, level))
                    tables.append((reward(images, prompt), torch.as_tensor(records.of(curriculum.teacher)[place])))
    found = fit_calibration(*zip(*tables, strict=True))
    std = reward.config.std / found.scale
    config = dataclasses.replace(reward.config, std=std, mean=reward.config.mean - found.offset * std)
    return ImageReward(reward.model, reward.prompts.tokenizer, config=config, card=reward.card)


def main(  # noqa: PLR0913, PLR0917 (a command's options)
    root: Path = Path("runs/bands"),
    kinds: tuple[str, ...] = BANDS,
    solvers: tuple[str, ...] = tuple(SOLVERS),
    num_pairs: int = 24_000,
    batch_size: int = 32,
    learning_rate: float = 1e-4,
    held_out_fraction: float = 0.1,
    seed: int = 0,
    models: list[Path] | None = None,
) -> None:
    """Trains one ImageReward a band, from the plain one, and writes `runs/bands/imagereward/seed0/0.9`, ..."""
    recordings = [PredictionRecords.load(recorded(root, solver, "train")) for solver in solvers]
    texts = [text for records in recordings for text in records.prompts]
    without = held_out(texts, fraction=held_out_fraction, seed=seed)
    for kind in kinds:
        start = time.perf_counter()
        torch.manual_seed(seed)
        band = NoiseBand(*KINDS[kind]["noise_band"], name=kind)
        curriculum = Curriculum(band=band, teacher=REWARD, num_pairs=num_pairs, ramp=0.4, seed=seed)
        with models_of(models):
            reward = load_reward(REWARD)
        validation = validation_pairs(recordings, curriculum, only=without)
        before = accuracy(reward, validation, batch_size=batch_size)
        train(reward, training_pairs(recordings, curriculum, without=without), learning_rate, batch_size=batch_size)
        after = accuracy(reward, validation, batch_size=batch_size)
        folder = root / "imagereward" / f"seed{seed}" / kind
        calibrated(reward, recordings, curriculum, without=without).save_pretrained(folder)
        write_band(folder, band)
        minutes = (time.perf_counter() - start) / 60
        print(f"{kind}: held-out pairs {before:.4f} -> {after:.4f}, {minutes:.1f} minutes, {folder}", flush=True)


def train(reward: ImageReward, pairs: Sequence[PreferencePair], learning_rate: float, *, batch_size: int) -> None:
    """One pass over the pairs in their order, the rate falling to zero along a cosine."""
    reward.model.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(reward.model.parameters(), lr=learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, -(-len(pairs) // batch_size))
    for loss in losses(reward, pairs, batch_size=batch_size):
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reward.model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    reward.model.requires_grad_(False).eval()


if __name__ == "__main__":
    cyclopts.run(main)
