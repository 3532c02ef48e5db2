"""Trains a one-step `shapes-sd` for a reward, near its teacher by a score-based divergence: Diff-Instruct* in small.

Luo et al. (2024), Diff-Instruct*, arXiv 2410.20898, algorithm 1, and Score Implicit Matching (Luo et al. 2024, arXiv
2410.16794, theorem 3.1) for the divergence. Three networks: the generator, whose one call on noise makes an
image; the reference, which is the teacher with classifier-free guidance; and an online model that learns the scores of
what the generator makes. The generator begins as `distill.py` has left it.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import cyclopts
import torch
from diffusers import DDIMScheduler, LCMScheduler, StableDiffusionPipeline
from fit import FitConfig, fit, save_pipeline
from safetensors.torch import load_file
from scene_data import TensorsDataset
from torch import Tensor, nn
from torch.func import functional_call
from train_unet import caption_shares, encode_all, one_caption

from fk_reward import load_reward
from fk_reward.models import model_source
from fk_reward.shapes import all_prompts


def divergence_loss(x0: Tensor, online: Tensor, reference: Tensor, *, huber: float = 1e-3) -> Tensor:
    """A loss whose gradient is that of the mean of d(online - reference), d the pseudo-Huber distance.

    Score Implicit Matching, theorem 3.1, with scores written as predictions of x0. The parameters of `online` are held
    fixed; everything depends on the generator by the noisy samples at which the predictions were made.

    Args:
        x0: `(B, ...)`, what the generator made.
        online: predictions of x0 by the model of the generator's own scores.
        reference: predictions of x0 by the teacher.
        huber: c of sqrt(|x|^2 + c^2) - c for one entry; c grows with the root of the entries.
    """
    apart = (online - reference).flatten(1)
    scale = (apart.square().sum(1) + huber**2 * apart.shape[1]).sqrt()
    return -((apart * (online - x0).flatten(1)).sum(1) / scale).mean()


def first_timestep(pipe: StableDiffusionPipeline) -> int:
    """Where one step of LCMScheduler begins: at the last of the levels for which the model was distilled."""
    scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(1)
    return int(scheduler.timesteps[0])


class DiffInstructStar(nn.Module):
    """Both losses of a step: of the generator, and of the online model on what the generator makes."""

    def __init__(
        self,
        generator: StableDiffusionPipeline,
        teacher: StableDiffusionPipeline,
        reward: Any,
        *,
        reward_scale: float,
        guidance_scale: float,
    ) -> None:
        super().__init__()
        self.generator, self.online = generator.unet, copy.deepcopy(teacher.unet)
        self.reference = teacher.unet.requires_grad_(False)
        self.reward_scale, self.guidance_scale = reward_scale, guidance_scale
        self.texts = [prompt.text for prompt in all_prompts()]
        for module in [generator.vae, *reward.modules_to_compile()]:
            module.requires_grad_(False)
        self.frozen = (generator.vae, reward)  # in a tuple, so that checkpoints leave them out
        scheduler = DDIMScheduler.from_config(teacher.scheduler.config)
        self.last = first_timestep(generator)
        self.register_buffer("contexts", encode_all(teacher.text_encoder, teacher.tokenizer), persistent=False)
        self.register_buffer("shares", caption_shares(), persistent=False)
        self.register_buffer("alphas", scheduler.alphas_cumprod, persistent=False)

    def forward(self, latents: Tensor, prompts: Tensor) -> dict[str, Tensor]:
        """Both losses; no image is seen.

        Args:
            latents: `(B, C, H, W)`, of which only the shape is used.
            prompts: `(B, P)`, indices into the grammar of the prompts that are true of each scene, padded with -1.
        """
        rows = one_caption(prompts, self.shares)
        context, empty = self.contexts[rows], self.contexts[-1:].expand(len(rows), -1, -1)
        x0 = self.generate(torch.randn_like(latents, dtype=torch.float32), context)
        timesteps = torch.randint(20, self.last + 1, (len(x0),), device=x0.device)
        noise = torch.randn_like(x0)
        online = self._online_loss(x0.detach(), noise, timesteps, context)
        noisy = self._noised(x0, noise, timesteps)
        near = divergence_loss(
            x0, self._online_answer(noisy, timesteps, context), self._reference(noisy, timesteps, context, empty)
        )
        rewards = self._rewards(x0, [self.texts[row] for row in rows.tolist()])
        return {"loss": near - self.reward_scale * rewards.mean() + online}

    def generate(self, noise: Tensor, context: Tensor) -> Tensor:
        """One call, as LCMScheduler makes it of noise."""
        timesteps = torch.full((len(noise),), self.last, device=noise.device)
        return self._clean(self.generator, noise, timesteps, context)

    def _online_loss(self, x0: Tensor, noise: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """Denoising score matching on the generator's samples."""
        alpha, sigma = self._level(timesteps)
        velocity = alpha * noise - sigma * x0
        predicted = self.online(alpha * x0 + sigma * noise, timesteps, encoder_hidden_states=context).sample
        return (predicted - velocity).square().mean()

    def _online_answer(self, noisy: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """The online model's x0, with its parameters held fixed and the gradient of its input kept."""
        fixed = {name: value.detach() for name, value in self.online.named_parameters()}
        velocity = functional_call(self.online, fixed, (noisy, timesteps), {"encoder_hidden_states": context}).sample
        alpha, sigma = self._level(timesteps)
        return alpha * noisy - sigma * velocity

    def _reference(self, noisy: Tensor, timesteps: Tensor, context: Tensor, empty: Tensor) -> Tensor:
        conditional = self._clean(self.reference, noisy, timesteps, context)
        without = self._clean(self.reference, noisy, timesteps, empty)
        return without + self.guidance_scale * (conditional - without)

    def _rewards(self, x0: Tensor, prompts: list[str]) -> Tensor:
        vae, reward = self.frozen
        images = vae.decode(x0 / vae.config.scaling_factor).sample / 2 + 0.5
        return reward.score(images.clamp(0, 1), prompts)

    def _clean(self, unet: nn.Module, sample: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        alpha, sigma = self._level(timesteps)
        return alpha * sample - sigma * unet(sample, timesteps, encoder_hidden_states=context).sample

    def _noised(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        alpha, sigma = self._level(timesteps)
        return alpha * clean + sigma * noise

    def _level(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        level = self.alphas[timesteps].view(-1, 1, 1, 1)
        return level.sqrt(), (1 - level).sqrt()


def main(  # noqa: PLR0913, PLR0917 (a command's options)
    generator: str | Path = Path("runs/distilled/shapes-sd-lcm"),
    teacher: str | Path = "shapes-sd",
    reward: str = "shapes-clipscore",
    latents: Path = Path("runs/whitened/latents.safetensors"),
    output_dir: Path = Path("runs/diff-instruct-star"),
    reward_scale: float = 10.0,
    guidance_scale: float = 3.0,
    max_steps: int = 1200,
    batch_size: int = 32,
    learning_rate: float = 1e-5,
    online_learning_rate: float = 1e-4,
    seed: int = 0,
    save_steps: int = 250,
    resume: bool = False,
    smoke: bool = False,
) -> None:
    """Trains the generator and saves the pipeline in `shapes-sd-star`; `--smoke` makes two steps of a small batch.

    Of the latents only shape and prompts are used. Measure with `measure_few_steps.py --num-steps 1`, by the verifier
    and by a reward that was not trained for.
    """
    torch.manual_seed(seed)
    pipes = [StableDiffusionPipeline.from_pretrained(model_source(name, "a pipeline")) for name in (generator, teacher)]
    chosen = load_reward(reward)
    if not chosen.card.differentiable:
        raise ValueError(f"Reward {reward!r} has no gradient to follow: take another one.")
    options = {"reward_scale": reward_scale, "guidance_scale": guidance_scale}
    objective = DiffInstructStar(*pipes, chosen, **options)
    max_steps, batch_size, save_steps = (2, 4, 1) if smoke else (max_steps, batch_size, save_steps)
    config = FitConfig(
        output_dir=output_dir,
        max_steps=max_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        ema_decay=0.995,
        warmup_steps=min(50, max_steps // 4),
        save_steps=save_steps,
        weight_decay=0.0,
        resume=resume,
    )
    groups = [
        {"params": list(objective.generator.parameters())},
        {"params": list(objective.online.parameters()), "lr": online_learning_rate},
    ]
    if fit(objective, TensorsDataset(**load_file(latents)), config, groups):
        pipe = pipes[0]
        pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
        save_pipeline(pipe, output_dir / "shapes-sd-star")


if __name__ == "__main__":
    cyclopts.run(main)
