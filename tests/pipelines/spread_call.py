"""One steered call in each of several processes; the first writes what came out."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import PartialState

from fk_reward import FKSteeringPipeline
from tests import tiny
from tests.pipelines.calls import BrightnessReward

PROMPTS = ["a red circle", "two blue squares"]
ARGUMENTS = {
    "num_particles": 4,
    "num_images_per_prompt": 2,
    "num_inference_steps": 6,
    "reward_scale": 1e4,
    "ess_threshold": 1.0,
    "output_type": "pt",
}


def make():
    pipe = FKSteeringPipeline(tiny.make_sd(), reward=BrightnessReward(), spread=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(pipe=None, **arguments):
    return (pipe or make())(**{"prompt": PROMPTS, **ARGUMENTS, "generator": generators(), **arguments})


def generators():
    return [torch.Generator().manual_seed(seed) for seed in range(8)]


def main(out: str) -> None:
    state = PartialState(cpu=True)
    result = call()
    trace = result.trace
    content = {
        "images": result.images,
        "rewards": result.rewards,
        "ancestors": [step.ancestors for step in trace.steps],
        "thumbnails": [step.thumbnails for step in trace.steps],
        "counts": [trace.num_model_rows, trace.num_decode_calls, trace.num_reward_calls],
    }
    torch.save(content, Path(out) / f"{state.process_index}-of-{state.num_processes}.pt")


if __name__ == "__main__":
    main(sys.argv[1])
