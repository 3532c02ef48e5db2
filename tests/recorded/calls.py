"""Six calls of tiny pipelines with everything that they gave, so that a change of the code cannot change them unseen.

Same seed, same images, rewards and traces: whoever moves code around has to keep that. What is recorded, of each call:
the returned images (uint8), their rewards and weights, and from the trace every number that does not depend on the
clock: rewards, log-weights, ESS and ancestors of each scoring step, the lineage, `reward_scale`, `log_evidence`,
`selected` and the counts of steps, calls and rows. The calls go different ways through the sampler:

- `sd`: Stable Diffusion with DDIM, max potential, systematic resampling;
- `sdxl`: SDXL, whose deterministic scheduler is replaced by a solver; difference potential, SSP resampling;
- `funnel`: a population that shrinks from six particles to two; residual resampling;
- `prompts`: two prompts, `reward_scale="auto"`, images drawn by weight, and a reward that forbids some images;
- `image_to_image`: DDPM from an initial image, which runs fewer steps than were asked for; sum potential;
- `micro_batches`: denoiser, decoder and reward in batches, one generator for each particle, `stop_reward`.

The numbers are in `calls.npz`, the notes of the traces in `notes.json`. A note may be reworded: then edit `notes.json`.
The numbers are only written anew for a change that is meant to give other images, and the changelog says so.

    python -m tests.recorded.calls --check    # compares bit for bit, a line for each call
    python -m tests.recorded.calls --write    # records; not to be done by who only moves code

Bits are those of one machine and one build of PyTorch. The test beside this module allows what other kernels round
differently: one level of an image, 1e-5 of a float, 1e-4 of what is computed from `exp(reward_scale * reward)`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoPipelineForImage2Image, DDPMScheduler, DiffusionPipeline
from PIL import Image

from fk_reward import FKSteeringPipeline
from tests import tiny

NUMBERS = Path(__file__).with_name("calls.npz")
NOTES = Path(__file__).with_name("notes.json")
PROMPT, PROMPTS = "a red circle", ["a red circle", "two blue squares"]

STEP_FIELDS = ("step", "timestep", "rewards", "log_weights", "ess", "ancestors")
TRACE_FIELDS = (
    "reward_scale",
    "log_evidence",
    "selected",
    "best_so_far",
    "num_particles",
    "num_steps",
    "num_model_calls",
    "num_model_rows",
    "num_decode_calls",
    "num_reward_calls",
)
TOLERANCES = {"log_weights": 1e-4, "ess": 1e-4, "log_evidence": 1e-4, "weights": 1e-4, "reward_scale": 1e-4}
USUAL_TOLERANCE = 1e-5

Numbers = dict[str, np.ndarray]
Reward = Callable[[torch.Tensor, list[str]], torch.Tensor]


def redness(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """Mean of the red channel against the others, or of the blue one where the prompt says blue."""
    means = images.float().mean(dim=(2, 3))
    wanted = torch.tensor([2 if "blue" in prompt else 0 for prompt in prompts], device=images.device)
    return means.gather(1, wanted[:, None]).squeeze(1) - means.mean(dim=1)


def strict_redness(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """The same, and bright images are forbidden."""
    bright = images.float().mean(dim=(1, 2, 3)) > 0.531
    return redness(images, prompts).masked_fill(bright, -torch.inf)


def _generators(number: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + index) for index in range(number)]


def _image_to_image() -> DiffusionPipeline:
    pipe = tiny.make_sd()
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe = AutoPipelineForImage2Image.from_pipe(pipe)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _initial_image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


@dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        make: the pipeline.
        prompt: what it is called with.
        options: the keywords of the call, made anew for each, because generators have a state.
        reward: the reward.
        wrapping: keywords of `FKSteeringPipeline`.
    """

    make: Callable[[], DiffusionPipeline]
    prompt: str | list[str]
    options: Callable[[], dict[str, object]]
    reward: Reward = redness
    wrapping: dict[str, object] = field(default_factory=dict)

    def run(self) -> tuple[Numbers, list[str]]:
        """The numbers and the notes that it gives."""
        torch.set_num_threads(1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pipe = FKSteeringPipeline(self.make(), reward=self.reward, **self.wrapping)
            pipe.set_progress_bar_config(disable=True)
            options = {"search": "fk-paper", "generator": torch.Generator().manual_seed(1)} | self.options()
            out = pipe(self.prompt, **options)
        return _numbers(out), list(out.trace.notes)


CALLS = {
    "sd": Call(
        tiny.make_sd,
        PROMPT,
        lambda: {"num_particles": 4, "num_images_per_prompt": 4, "num_inference_steps": 10, "reward_scale": 100.0},
    ),
    "sdxl": Call(
        tiny.make_sdxl,
        PROMPT,
        lambda: {
            **{"num_particles": 4, "num_images_per_prompt": 2, "reward_scale": 300.0, "ess_threshold": 0.9},
            **{"potential": "difference", "resampling": "ssp", "num_inference_steps": 6},
        },
        wrapping={"solver": "sde-dpmsolver++-20"},
    ),
    "funnel": Call(
        tiny.make_sd,
        PROMPT,
        lambda: {
            **{"num_particles": 6, "final_particles": 2, "num_images_per_prompt": 2, "num_resamples": 2},
            **{"reward_scale": 100.0, "resampling": "residual", "num_inference_steps": 6},
        },
    ),
    "prompts": Call(
        tiny.make_sd,
        PROMPTS,
        lambda: {
            **{"num_particles": 4, "num_images_per_prompt": 2, "reward_scale": "auto", "ess_threshold": 0.9},
            **{"selection": "sample", "resampling": "stratified", "num_inference_steps": 6},
        },
        reward=strict_redness,
    ),
    "image_to_image": Call(
        _image_to_image,
        PROMPT,
        lambda: {
            **{"image": _initial_image(), "strength": 0.6, "num_inference_steps": 12, "potential": "sum"},
            **{"num_particles": 4, "num_images_per_prompt": 2, "reward_scale": 300.0, "resampling": "multinomial"},
        },
    ),
    "micro_batches": Call(
        tiny.make_sd,
        PROMPTS,
        lambda: {
            **{"particle_batch_size": 4, "decode_batch_size": 2, "reward_batch_size": 3, "generator": _generators(6)},
            **{"num_particles": 3, "num_images_per_prompt": 2, "num_inference_steps": 6, "reward_scale": 300.0},
            **{"ess_threshold": 1.0, "stop_reward": 0.0165},
        },
    ),
}


def _numbers(out: object) -> Numbers:
    """Everything of an output that is recorded, by name."""
    trace = out.trace
    found = {"images": np.stack([np.asarray(image) for image in out.images])}
    found |= {"rewards": out.rewards, "weights": out.weights}
    found |= {f"trace.{name}": getattr(trace, name) for name in TRACE_FIELDS}
    found |= {f"trace.lineage.{index}": trace.lineage(index) for index in range(len(trace.prompts))}
    for index, step in enumerate(trace.steps):
        values = {name: getattr(step, name) for name in STEP_FIELDS}
        found |= {f"trace.steps.{index}.{name}": value for name, value in values.items() if value is not None}
    return {name: np.asarray(value) for name, value in found.items()}


def differences(made: Numbers, recorded: Numbers, *, exact: bool) -> list[str]:
    """What differs, a sentence each: bit for bit, or beyond what other kernels round differently."""
    names = [f"{name}: only in one of the two" for name in made.keys() ^ recorded.keys()]
    common = sorted(made.keys() & recorded.keys())
    return names + [line for name in common if (line := _difference(name, made[name], recorded[name], exact=exact))]


def _difference(name: str, made: np.ndarray, recorded: np.ndarray, *, exact: bool) -> str:
    if (made.dtype, made.shape) != (recorded.dtype, recorded.shape):
        return f"{name}: {made.dtype} {made.shape} instead of {recorded.dtype} {recorded.shape}"
    if np.array_equal(made, recorded):
        return ""
    with np.errstate(invalid="ignore"):
        distance = np.abs(made.astype(np.float64) - recorded.astype(np.float64))
    greatest = float(np.where(made == recorded, 0.0, distance).max())  # infinity minus infinity is NaN
    return f"{name}: off by up to {greatest:.3g}" if exact or not greatest <= _allowed(name, recorded) else ""


def _allowed(name: str, recorded: np.ndarray) -> float:
    if name == "images":
        return 1.0
    if recorded.dtype.kind != "f":
        return 0.0
    finite = np.abs(recorded[np.isfinite(recorded)])
    # the reward is a small difference of channels, whose error is that of the channels
    return TOLERANCES.get(name.split(".")[-1], USUAL_TOLERANCE) * max(float(finite.max(initial=0.0)), 0.1)


def load_recorded() -> tuple[dict[str, Numbers], dict[str, list[str]]]:
    """The recorded numbers and notes, by the names of the calls."""
    calls: dict[str, Numbers] = {name: {} for name in CALLS}
    with np.load(NUMBERS) as archive:
        for key in archive.files:
            name, _, number = key.partition("/")
            calls[name][number] = archive[key]
    return calls, json.loads(NOTES.read_text(encoding="utf-8"))


def write() -> None:
    """Record all calls."""
    made = {name: call.run() for name, call in CALLS.items()}
    numbers = {f"{name}/{number}": value for name, (values, _) in made.items() for number, value in values.items()}
    np.savez_compressed(NUMBERS, **numbers)
    notes = {name: notes for name, (_, notes) in made.items()}
    NOTES.write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8")


def check() -> int:
    """Compare all calls bit for bit and print a line for each; the number of those that differ."""
    numbers, notes = load_recorded()
    failed = 0
    for name, call in CALLS.items():
        made, said = call.run()
        found = differences(made, numbers[name], exact=True)
        found += [f"notes: {said} instead of {notes[name]}"] if said != notes[name] else []
        print(f"{name}: " + ("; ".join(found) or f"the same, {len(made)} arrays bit for bit"))
        failed += bool(found)
    return failed


def main() -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(description="Recorded calls of tiny pipelines.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true", help="compare bit for bit; exit with 1 where a call differs")
    action.add_argument("--write", action="store_true", help="record the calls anew")
    if parser.parse_args().write:
        write()
        return 0
    return min(check(), 1)


if __name__ == "__main__":
    raise SystemExit(main())
