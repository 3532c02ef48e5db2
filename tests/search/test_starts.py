"""What searches over starts are made of: rows of passes, and the sizes of passes."""

import numpy as np
import pytest
import torch

from fk_reward.search import BestOfN, DraftRefine, Forecast, Passes, Scored, SearchConfig, StartSearch
from fk_reward.search.base import can_move, num_finished
from fk_reward.search.contract import make_population


def rows(*numbers, images):
    values = torch.tensor(numbers)
    return Scored(
        noise=values[:, None],
        latents=-values[:, None],
        rewards=values,
        images=images(numbers),
        flagged=values > 2,
        reward_parts={"part": 2 * values},
    )


@pytest.mark.parametrize("images", [list, np.array, torch.tensor], ids=["list", "array", "tensor"])
def test_rows_of_several_passes(images):
    joined = Scored.join([rows(0.0, 1.0, images=images), rows(2.0, 3.0, 4.0, images=images)])
    taken = joined.take(torch.tensor([4, 0, 3]))
    assert list(map(float, taken.images)) == taken.rewards.tolist() == [4.0, 0.0, 3.0]
    assert taken.noise.flatten().tolist() == (-taken.latents).flatten().tolist() == [4.0, 0.0, 3.0]
    assert taken.flagged.tolist() == [True, False, True]
    assert taken.reward_parts["part"].tolist() == [8.0, 0.0, 6.0]
    assert taken.thumbnails is None


def test_sizes_of_passes():
    population = Passes(lambda steps: ((4, 2), (3, steps), (1, 1)), 2, finished=1, abstain=True)
    assert population.forecast(3) == Forecast((4, 4, 3, 3, 3, 1), (4, 3), 1)
    assert (population.max_particles, population.num_particles, population.copies) == (4, 1, False)
    assert not can_move(population)


def test_a_search_over_starts_is_told_from_others():
    assert isinstance(DraftRefine(), StartSearch)
    assert isinstance(DraftRefine(), SearchConfig)
    assert not isinstance(BestOfN(), StartSearch)
    assert num_finished(DraftRefine(num_particles=6, num_refined=3)) == 3


def test_a_search_with_passes_says_so():
    class Silent(DraftRefine):
        """Makes a population of one pass."""

        def population(self, num_groups=1, generators=None, *, spread=None):
            return BestOfN(num_particles=8).population(num_groups)

    with pytest.raises(TypeError, match="Silent.population made PlainPopulation: a search with a method run makes"):
        make_population(Silent())
    with pytest.raises(ValueError, match="Passes begins with 8 particles of a prompt, and Other says"):
        make_population(Other())


class Other(DraftRefine):
    """Says another number of particles than its first pass has."""

    def population(self, num_groups=1, generators=None, *, spread=None):
        return Passes(lambda steps: ((8, 1), (2, steps)), num_groups, finished=2)

    def __init__(self):
        super().__init__(num_particles=4)
