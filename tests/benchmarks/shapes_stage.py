"""What the tests of the shapes benchmark share: settings and rewards that need no trained model."""

from __future__ import annotations

from types import SimpleNamespace

from fk_reward import FKSteeringConfig
from fk_reward.benchmarks.overhead import mean_pixel
from fk_reward.benchmarks.shapes_runs import ShapesSettings
from fk_reward.rewards import CallableReward


def darkness(images, prompts):
    """The opposite of brightness: whoever takes one reward for the other chooses the worst."""
    return 1 - images.mean(dim=(1, 2, 3))


REWARDS = {"brightness": CallableReward(mean_pixel), "darkness": CallableReward(darkness)}
SETTINGS = ShapesSettings(
    model="tiny",
    rewards=("brightness", "darkness"),
    prompts="benchmark",
    num_prompts=6,
    num_particles=(2, 4),
    num_steps=5,
    guidance_scale=2.0,
    seed=0,
    num_seeds=1,
    steering=FKSteeringConfig(reward_scale=1000.0, ess_threshold=1.0),
)


def looks_bright(image, prompt):
    """Stand-in for the verifier, which takes long over pictures of a random model."""
    return SimpleNamespace(correct=bool(image.mean() > 0.5))
