"""A recording of predictions in small: images of one grey each, blurred towards the middle the noisier the level."""

from __future__ import annotations

import numpy as np
import torch

from fk_reward.benchmarks.prediction_recording import write_image
from fk_reward.training.predictions import FINISHED, PredictionRecords, image_name

LEVELS = (0.9, 0.6, 0.3)


def write_recording(folder, *, num_prompts=6, num_seeds=4, levels=LEVELS, seed=0, words="a star"):
    """Finished greys are drawn alike; a prediction at level l is (1 - l) of the way from the middle to the finished."""
    rng = np.random.default_rng(seed)
    greys = rng.uniform(0, 1, size=(num_prompts, num_seeds))
    for place in range(num_prompts):
        for number in range(num_seeds):
            for level in (*levels, FINISHED):
                grey = 0.5 + (1 - level) * (greys[place, number] - 0.5)
                image = torch.full((3, 28, 28), float(grey))
                write_image(folder / image_name(place, number, level, "png"), image, longest_side=28)
    prompts = tuple(f"{words} {place}" for place in range(num_prompts))
    scores = {"grey": 3 * greys + 1, "dark": -greys}
    records = PredictionRecords(folder, prompts, tuple(levels), scores)
    records.save()
    return records
