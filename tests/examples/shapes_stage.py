"""What the tests of the shapes benchmark share: settings and rewards that need no trained model."""

from __future__ import annotations

from types import SimpleNamespace

from examples.benchmarks.overhead import mean_pixel
from examples.benchmarks.shapes_populations import ShapesSettings
from fk_reward import FKSteeringConfig
from fk_reward.rewards import CallableReward
from fk_reward.shapes import benchmark_prompts


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
    """Stand-in for the verifier, which takes long over images of a random model."""
    return SimpleNamespace(correct=bool(image.mean() > 0.5))


FIRST, SECOND = "first", "second"


def made_up(method, reward, size, index, correct, *, seed=0, forbidden=False):
    """A record of the shapes benchmark that nobody has drawn."""
    prompt = benchmark_prompts(12)[index]
    return {
        "method": method,
        "reward": reward,
        "num_particles": size,
        "prompt_index": index,
        "seed": seed,
        "prompt": prompt.text,
        "task": prompt.task,
        "correct": correct,
        "scores": {FIRST: float(index), SECOND: 0.5},
        "share_correct": 0.5,
        "forbidden": forbidden,
        "share_forbidden": None if forbidden is None else 0.25,
        "num_ancestors": size,
        "distance": None if size == 1 else 0.1,
        "reward_spread": None if size == 1 else 0.02,
        "model_rows": 1.0,
        "decoded": 1.0,
        "seconds": 1.0,
    }
