"""Group selection: against all groups, at its limits, and in a pipeline."""

import itertools

import pytest
import torch

from fk_reward import FKSteeringConfig, FKSteeringPipeline
from fk_reward.rewards import Reward, RewardCard
from fk_reward.search import BestOfN, Pruning, diverse_group
from fk_reward.search.diversity import feature_distances
from tests import tiny


def example(num=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, generator=generator), torch.randn(num, 5, generator=generator)


def value(group, rewards, distances, weight):
    """As the docstring says it, by hand."""
    quality = (rewards - rewards.mean()) / rewards.std(correction=0)
    num = len(rewards)
    mean = sum(float(distances[i, j]) for i in range(num) for j in range(i)) / (num * (num - 1) / 2)
    pairs = list(itertools.combinations(group, 2))
    return float(quality[list(group)].mean()) + weight * sum(float(distances[i, j]) for i, j in pairs) / mean / len(
        pairs
    )


@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_best_of_all_groups(weight, seed):
    rewards, features = example(seed=seed)
    distances = feature_distances(features, angular=False)
    found, exact = diverse_group(rewards, distances, 4, weight=weight)
    best = max(itertools.combinations(range(9), 4), key=lambda group: value(group, rewards, distances, weight))
    assert exact
    assert set(found.tolist()) == set(best)
    assert rewards[found].tolist() == sorted(rewards[found].tolist(), reverse=True)


@pytest.mark.parametrize("angular", [True, False])
def test_greedy_groups_are_nearly_as_good(angular):
    """A greedy group has at least half of the value above the worst group (Borodin et al.); here it has 90 %."""
    for seed in range(5):
        rewards, features = example(seed=seed)
        distances = feature_distances(features, angular=angular)
        greedy, exact = diverse_group(rewards, distances, 4, most_groups=10)
        values = [value(group, rewards, distances, 1.0) for group in itertools.combinations(range(9), 4)]
        assert not exact
        share = (value(greedy.tolist(), rewards, distances, 1.0) - min(values)) / (max(values) - min(values))
        assert share > 0.9


def test_without_weight_the_best_are_taken_and_copies_are_left_out_with_it():
    rewards = torch.tensor([1.0, 1.0, 1.0, 0.5, 0.2])
    features = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    distances = feature_distances(features, angular=False)
    assert diverse_group(rewards, distances, 3, weight=0.0)[0].tolist() == [0, 1, 2]
    assert diverse_group(rewards, distances, 3, weight=10.0)[0].tolist() == [0, 3, 4]


def test_a_selection_that_ignores_distances_fails_the_same_check():
    rewards, features = example()
    distances = feature_distances(features, angular=False)
    best = rewards.argsort(descending=True)[:4].tolist()
    found, _ = diverse_group(rewards, distances, 4, weight=3.0)
    assert value(best, rewards, distances, 3.0) < value(found.tolist(), rewards, distances, 3.0) - 0.1


def test_forbidden_images_are_left_out():
    rewards = torch.tensor([-torch.inf, 0.0, 1.0])
    assert diverse_group(rewards, torch.zeros(3, 3), 2)[0].tolist() == [2, 1]
    with pytest.raises(ValueError, match="got 2 allowed of 3"):
        diverse_group(rewards, torch.zeros(3, 3), 3)


def test_equal_rewards_and_equal_images():
    assert diverse_group(torch.zeros(3), torch.zeros(3, 3), 2)[0].tolist() == [0, 1]
    assert diverse_group(torch.zeros(1), torch.zeros(1, 1), 1)[0].tolist() == [0]


class Brightness(Reward):
    card = RewardCard(name="brightness", summary="mean of all pixels", typical_range=(0, 1))

    def score(self, images, prompts):
        return images.mean(dim=(1, 2, 3))


class Embedding(Brightness):
    """With an embedding of its own, the mean colours."""

    def embed_images(self, images):
        return images.mean(dim=(2, 3))


SEARCHES = [
    BestOfN(num_particles=6, selection="diverse", diversity_weight=5.0),
    Pruning(num_particles=8, keep=(6,), at=(0.5,), selection="diverse", diversity_weight=5.0),
    FKSteeringConfig(num_particles=6, num_resamples=1, selection="diverse", diversity_weight=5.0),
]


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: type(search).__name__)
@pytest.mark.parametrize("reward", [Brightness(), Embedding()], ids=["latents", "embedding"])
def test_in_a_pipeline(search, reward):
    pipe = FKSteeringPipeline(tiny.make_sd(), reward=reward)
    arguments = {"num_inference_steps": 4, "output_type": "latent"}
    out = pipe(["a dog", "a cat"], search=search, num_images_per_prompt=3, generator=generator(), **arguments)
    every = pipe(["a dog", "a cat"], search=search, num_images_per_prompt=6, generator=generator(), **arguments)
    kind = "embedding of Embedding" if isinstance(reward, Embedding) else "latents"
    assert f"Selected by reward and by distances of {kind}: all groups of 3 of 6 were compared." in out.trace.notes
    for group in range(2):
        rewards, latents = every.rewards[group], every.images.view(2, 6, -1)[group]
        features = latents
        if isinstance(reward, Embedding):
            vae, own = pipe.pipe.vae, every.images[6 * group : 6 * group + 6]
            decoded = vae.decode(own / vae.config.scaling_factor).sample.detach()
            features = reward.embed_images((decoded / 2 + 0.5).clamp(0, 1))
        distances = feature_distances(features, angular=isinstance(reward, Embedding))
        places, _ = diverse_group(rewards, distances, 3, weight=5.0)
        torch.testing.assert_close(out.rewards[group], rewards[places])


def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("kind", [BestOfN, Pruning, FKSteeringConfig])
def test_wrong_settings(kind):
    with pytest.raises(ValueError, match="selection should be one of"):
        kind(selection="various")
    with pytest.raises(ValueError, match="diversity_weight"):
        kind(selection="diverse", diversity_weight=-1.0)
