"""Distils `shapes-sd` into a model of one to four steps: consistency distillation with a target that lags behind.

Luo et al. (2023), Latent Consistency Models, arXiv 2310.04378, algorithm 1: a step of DDIM by the teacher with
classifier-free guidance leads from a noisy latent to a less noisy one, and the student's answer at the first should be
that of an average of its earlier weights at the second. Here the guidance is one number, that of the teacher, and not
an input of the network. Calls of the student need no guidance and the LCM scheduler: `solver="lcm-4"`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import cyclopts
import torch
from diffusers import DDIMScheduler, LCMScheduler, StableDiffusionPipeline
from fit import FitConfig, fit, save_pipeline
from safetensors.torch import load_file
from scene_data import TensorsDataset
from torch import Tensor, nn
from train_unet import caption_shares, encode_all, one_caption

from fk_reward.models import model_source

SIGMA_DATA, TIMESTEP_SCALING = 0.5, 10.0
"""Of the boundary scaling of LCMScheduler, whose answer is the sample itself at timestep 0."""


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """What is distilled.

    Attributes:
        guidance_scale: of the teacher, w in u + w (c - u).
        num_levels: timesteps of the teacher's DDIM, N of the paper's (N - 1) / k, from which the student's are taken.
        target_decay: of the average that the student follows.
        huber: c of the pseudo-Huber distance sqrt(x^2 + c^2) - c.
    """

    guidance_scale: float = 3.0
    num_levels: int = 16
    target_decay: float = 0.95
    huber: float = 1e-3


class ConsistencyObjective(nn.Module):
    """Distance of the student's answer from the target's, a step of the teacher further on."""

    def __init__(self, pipe: StableDiffusionPipeline, settings: Distillation) -> None:
        super().__init__()
        self.settings, self.scheduler = settings, DDIMScheduler.from_config(pipe.scheduler.config)
        self.student = pipe.unet
        self.teacher = copy.deepcopy(pipe.unet).requires_grad_(False)
        self.target = copy.deepcopy(pipe.unet).requires_grad_(False)
        self.register_buffer("contexts", encode_all(pipe.text_encoder, pipe.tokenizer), persistent=False)
        self.register_buffer("shares", caption_shares(), persistent=False)
        self.register_buffer("alphas", self.scheduler.alphas_cumprod, persistent=False)

    def forward(self, latents: Tensor, prompts: Tensor) -> dict[str, Tensor]:
        """Loss of clean latents.

        Args:
            latents: `(B, C, H, W)`, of scenes.
            prompts: `(B, P)`, indices into the grammar of the prompts that are true of each scene, padded with -1.
        """
        if self.training:
            self._follow()
        latents, batch = latents.float(), len(latents)
        context, empty = self.contexts[one_caption(prompts, self.shares)], self.contexts[-1:].expand(batch, -1, -1)
        apart = self.scheduler.config.num_train_timesteps // self.settings.num_levels
        level = torch.randint(1, self.settings.num_levels + 1, (batch,), device=latents.device)
        start = level * apart - 1
        end = (start - apart).clamp(min=0)
        noisy = self._noised(latents, torch.randn_like(latents), start)
        with torch.no_grad():
            moved = self._teacher_step(noisy, start, end, context, empty)
            wanted = self.answer(self.target, moved, end, context)
        error = self.answer(self.student, noisy, start, context) - wanted
        huber = self.settings.huber
        return {"loss": ((error.square() + huber**2).sqrt() - huber).mean()}

    @torch.no_grad()
    def _follow(self) -> None:
        """Moves the target towards the student, once a step."""
        for kept, new in zip(self.target.parameters(), self.student.parameters(), strict=True):
            kept.lerp_(new, 1 - self.settings.target_decay)

    def answer(self, unet: nn.Module, sample: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """The clean latents that a consistency model answers: f(x, t) = c_skip x + c_out x0."""
        scaled = (timesteps * TIMESTEP_SCALING).view(-1, 1, 1, 1)
        c_skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
        c_out = scaled / (scaled**2 + SIGMA_DATA**2).sqrt()
        velocity = unet(sample, timesteps, encoder_hidden_states=context).sample
        return c_skip * sample + c_out * self._clean(sample, velocity, timesteps)

    def _teacher_step(self, noisy: Tensor, start: Tensor, end: Tensor, context: Tensor, empty: Tensor) -> Tensor:
        """One step of DDIM with guidance."""
        twice, steps = torch.cat([noisy, noisy]), torch.cat([start, start])
        both = self.teacher(twice, steps, encoder_hidden_states=torch.cat([empty, context])).sample
        without, conditional = both.chunk(2)
        velocity = without + self.settings.guidance_scale * (conditional - without)
        clean = self._clean(noisy, velocity, start)
        alpha, sigma = self._level(start)
        noise = (noisy - alpha * clean) / sigma
        return self._noised(clean, noise, end)

    def _level(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        level = self.alphas[timesteps].view(-1, 1, 1, 1)
        return level.sqrt(), (1 - level).sqrt()

    def _noised(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        alpha, sigma = self._level(timesteps)
        return alpha * clean + sigma * noise

    def _clean(self, sample: Tensor, velocity: Tensor, timesteps: Tensor) -> Tensor:
        """x0 of a prediction of velocity, which is what `shapes-sd` predicts."""
        alpha, sigma = self._level(timesteps)
        return alpha * sample - sigma * velocity


def main(  # noqa: PLR0913, PLR0917 (a command's options)
    model: str | Path = "shapes-sd",
    latents: Path = Path("runs/whitened/latents.safetensors"),
    output_dir: Path = Path("runs/distilled"),
    max_steps: int = 4000,
    batch_size: int = 32,
    learning_rate: float = 6e-4,
    seed: int = 0,
    guidance_scale: float = 3.0,
    num_levels: int = 16,
    target_decay: float = 0.95,
    save_steps: int = 250,
    resume: bool = False,
    smoke: bool = False,
) -> None:
    """Trains on the latents that `make_scenes.py latents` wrote, and saves the pipeline in `shapes-sd-lcm`.

    `--smoke` makes two steps of a small batch.
    """
    torch.manual_seed(seed)
    pipe = StableDiffusionPipeline.from_pretrained(model_source(model, "a pipeline"))
    if pipe.scheduler.config.prediction_type != "v_prediction":
        raise ValueError(f"{model} predicts {pipe.scheduler.config.prediction_type}, and the recipe is for velocities.")
    own = Distillation(guidance_scale=guidance_scale, num_levels=num_levels, target_decay=target_decay)
    objective = ConsistencyObjective(pipe, own)
    max_steps, batch_size, save_steps = (2, 4, 1) if smoke else (max_steps, batch_size, save_steps)
    config = FitConfig(
        output_dir=output_dir,
        max_steps=max_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        ema_decay=0.999,
        save_steps=save_steps,
        weight_decay=0.0,
        resume=resume,
    )
    if fit(objective, TensorsDataset(**load_file(latents)), config):
        pipe.unet = objective.student
        pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config, original_inference_steps=num_levels)
        save_pipeline(pipe, output_dir / "shapes-sd-lcm")


if __name__ == "__main__":
    cyclopts.run(main)
