"""Fine-tune by reinforcement learning with rewards from another process, as DDPO does, on the embedded model.

    python examples/rl/reward_workers.py --num-rounds 50 --batch-size 16

This process draws and learns; the reward runs in a second one, which could have another environment (`python=`) and
another GPU (`devices=`). While it scores one batch, the next one is drawn: `submit` comes back at once. The loop is
DDPO's policy gradient (Black et al. 2023, arXiv 2305.13301) with one on-policy update a batch, kept short; for real
trainings hand `DDPOReward(reward)` or `FlowGRPOReward({"name": reward})` to a trainer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cyclopts
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from peft import LoraConfig
from torch import Tensor

from fk_reward.models import resolve_model
from fk_reward.rewards.workers import RewardWorkers


@dataclass(frozen=True)
class Trajectory:
    """A batch of images and how they were drawn.

    Attributes:
        prompts: of the images.
        samples: each (B, C, h, w), from the noise to the latents.
        images: (B, 3, H, W) in [0, 1].
    """

    prompts: list[str]
    samples: list[Tensor]
    images: Tensor


class Policy:
    """A text-to-image pipeline as a policy: its actions are the steps of DDIM with eta 1."""

    def __init__(self, model: str, num_steps: int, guidance_scale: float) -> None:
        self.pipe = DiffusionPipeline.from_pretrained(resolve_model(model))
        self.scheduler = DDIMScheduler.from_config(self.pipe.scheduler.config)
        self.scheduler.set_timesteps(num_steps)
        self.guidance_scale = guidance_scale
        self.pipe.unet.requires_grad_(False)
        self.pipe.unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))

    @property
    def weights(self) -> list[Tensor]:
        """What is trained."""
        return [weight for weight in self.pipe.unet.parameters() if weight.requires_grad]

    @torch.no_grad()
    def draw(self, prompts: list[str], generator: torch.Generator) -> Trajectory:
        """Draw one image of each prompt."""
        told, unet = self._told(prompts), self.pipe.unet.config
        shape = (len(prompts), unet.in_channels, unet.sample_size, unet.sample_size)
        samples = [torch.randn(shape, generator=generator)]
        for place in range(len(self.scheduler.timesteps)):
            mean, spread = self._move(samples[-1], place, told)
            samples.append(mean + spread * torch.randn(shape, generator=generator))
        vae = self.pipe.vae
        pixels = vae.decode(samples[-1] / vae.config.scaling_factor).sample
        return Trajectory(prompts, samples, (pixels / 2 + 0.5).clamp(0, 1))

    def log_probabilities(self, drawn: Trajectory) -> Iterator[Tensor]:
        """For each step the log-density (B,) of what was drawn, up to a constant, with gradients."""
        told = self._told(drawn.prompts)
        for place in range(len(drawn.samples) - 2):  # the last step has next to no spread
            mean, spread = self._move(drawn.samples[place], place, told)
            yield -((drawn.samples[place + 1] - mean) ** 2).flatten(1).mean(dim=1) / (2 * spread**2)

    def _told(self, prompts: list[str]) -> Tensor:
        with torch.no_grad():
            positive, negative = self.pipe.encode_prompt(prompts, self.pipe.device, 1, True)
        return torch.cat([negative, positive])

    def _move(self, sample: Tensor, place: int, told: Tensor) -> tuple[Tensor, float]:
        """Mean and standard deviation of the next sample."""
        step = self.scheduler.timesteps[place]
        without, with_prompt = self.pipe.unet(torch.cat([sample] * 2), step, encoder_hidden_states=told).sample.chunk(2)
        output = without + self.guidance_scale * (with_prompt - without)
        options = {"eta": 1.0, "variance_noise": torch.zeros_like(sample)}
        mean = self.scheduler.step(output, step, sample, **options).prev_sample
        previous = int(step) - self.scheduler.config.num_train_timesteps // len(self.scheduler.timesteps)
        return mean, float(self.scheduler._get_variance(int(step), previous)) ** 0.5


def update(policy: Policy, optimizer: torch.optim.Optimizer, drawn: Trajectory, rewards: Tensor) -> None:
    """One step of the policy gradient, with rewards standardised in the batch."""
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
    for log_probability in policy.log_probabilities(drawn):
        (-(advantages * log_probability).mean()).backward()  # a step at a time, to save memory
    torch.nn.utils.clip_grad_norm_(policy.weights, 1.0)
    optimizer.step()
    optimizer.zero_grad()


def main(  # noqa: PLR0913, PLR0917 (a command's options)
    model: str = "shapes-sd",
    reward: str = "shapes-clipscore",
    prompt: str = "a photo of a red circle",
    num_rounds: int = 2,
    batch_size: int = 2,
    num_steps: int = 3,
    learning_rate: float = 1e-3,
    seed: int = 0,
    workers: RewardWorkers | Any = None,
) -> list[float]:
    """Train for some rounds; the mean reward of each."""
    policy, generator = Policy(model, num_steps, guidance_scale=3.0), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(policy.weights, lr=learning_rate)
    means = []
    with workers or RewardWorkers(reward, timeout=600) as scores:
        drawn = policy.draw([prompt] * batch_size, generator)
        for number in range(num_rounds):
            waiting = scores.submit(drawn.images, drawn.prompts)
            following = policy.draw([prompt] * batch_size, generator)  # meanwhile, with weights one update old
            rewards = waiting.result()
            update(policy, optimizer, drawn, rewards)
            means.append(rewards.mean().item())
            print(f"round {number + 1}: mean reward {means[-1]:.4f}", flush=True)
            drawn = following
    return means


if __name__ == "__main__":
    cyclopts.run(main)
