"""The gate forbids; empty samples are drawn again from new noise with more particles; the rest is abstained from."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from fk_reward.benchmarks.drawing import RunSettings, make_search, particle_generators
from fk_reward.benchmarks.image_results import ABSTAINED, ATTEMPTS
from fk_reward.benchmarks.safety.guarded import GatedReward, Guard, GuardedSearch, abstaining
from fk_reward.rewards import REWARDS, CallableReward
from fk_reward.sampling.trace import Cost
from fk_reward.search import BestOfN, FKSteeringConfig, Pruning
from tests.benchmarks.safety.stage import NAMES

GUARD = Guard(gate="greenness", above=0.5, retries=2, growth=2)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    for name, entry in NAMES.items():
        monkeypatch.setitem(REWARDS, name, entry)


def colored(*colors):
    return torch.tensor(colors)[:, :, None, None].expand(-1, -1, 8, 8).float()


def test_what_does_not_pass_is_forbidden():
    reward = GatedReward.load("redness + 0.5*blueness", GUARD)
    scores, parts = reward.score_with_parts(colored((0.2, 0.9, 0.4), (0.9, 0.5, 1.0)), "anything")
    assert scores.tolist() == [pytest.approx(0.4), -torch.inf], "0.5 is not above 0.5"
    assert set(parts) == {"redness", "blueness", "greenness"}
    assert reward.card.name == "redness + 0.5*blueness if greenness > 0.5 else forbidden"
    assert reward.for_previews() is reward and reward.at_noise(0.5) is reward
    assert reward.card.higher_is_better


def test_the_gate_stays_where_a_part_answers_with_another_judge(monkeypatch):
    reward = GatedReward.load("redness", GUARD)
    other = CallableReward(lambda images, prompts: torch.ones(len(images)), "other")
    monkeypatch.setattr(reward.parts["redness"], "at_noise", lambda level: other, raising=False)
    scores = reward.at_noise(0.5)(colored((0.2, 0.9, 0.4), (0.9, 0.5, 1.0)), "anything")
    assert scores.tolist() == [1.0, -torch.inf]


def test_a_gate_that_steers_too_is_asked_once():
    calls = []
    reward = GatedReward.load("0.5*redness + 0.5*greenness", GUARD)
    part = reward.parts["greenness"]
    original = part.fn
    part.fn = lambda images, prompts: calls.append(len(images)) or original(images, prompts)
    reward(colored((0.2, 0.9, 0.4)), "anything")
    assert calls == [1]


@pytest.mark.parametrize("search", [BestOfN(num_particles=4), FKSteeringConfig(num_particles=4), Pruning()])
def test_attempts_grow_and_abstain(search):
    attempts = GUARD.attempts(search, 20)
    sizes = [one.num_particles for one in attempts]
    assert all(one.abstain for one in attempts)
    assert sizes[0] == search.num_particles and sizes[0] < sizes[1] < sizes[2]
    if not isinstance(search, Pruning):
        assert sizes == [4, 8, 16]


def test_numbers_out_of_range_and_searches_that_cannot_abstain():
    for options, message in [({"retries": -1}, "--retries"), ({"growth": 0}, "--growth")]:
        with pytest.raises(ValueError, match=message):
            Guard(gate="a", above=0.0, **options)
    from dataclasses import make_dataclass

    with pytest.raises(ValueError, match="Mute cannot abstain"):
        abstaining(make_dataclass("Mute", [("num_particles", int, 4)])())


class Scripted(GuardedSearch):
    """Each sample passes at an attempt that a script names; what was asked for is written down."""

    def __init__(self, script, **settings):
        run = RunSettings(
            suite="safety", model="none", method="best-of-n", search=make_search("best-of-n", num_particles=2),
            num_steps=4, reward="redness", num_samples=len(script), **settings,
        )  # fmt: skip
        super().__init__(SimpleNamespace(reward=None), run, GUARD, reward=GatedReward.load("redness", GUARD))
        self.script, self.asked = script, []

    def _call(self, prompt, index, samples, *, search=None, offset=0):
        self.asked.append((tuple(samples), search.num_particles, offset))
        attempt = self.searches.index(search)
        nothing = torch.tensor([self.script[sample] != attempt for sample in samples])
        trace = SimpleNamespace(
            num_model_calls=4, num_model_rows=8 * len(samples), num_decode_calls=2, num_reward_calls=2, seconds=1.0,
            steps=(), num_steps=4, selected=torch.zeros(len(samples), 1, dtype=torch.int64),
            cost=Cost(sample_steps=8, denoiser_rows=8, decodes=2, reward_calls=2, seconds=1.0, previews=0),
        )  # fmt: skip
        images = [Image.new("RGB", (8, 8), (10 * attempt, sample, 0)) for sample in samples]
        return SimpleNamespace(images=images, abstained=nothing, trace=trace)


def test_only_what_is_empty_is_drawn_again():
    search = Scripted([0, 2, 99, 1])
    images, note = search.draw("a prompt", 7)
    assert search.asked == [((0, 1, 2, 3), 2, 0), ((1, 2, 3), 4, 2), ((1, 2), 8, 6)]
    assert note[ABSTAINED] == [False, False, True, False]
    assert note[ATTEMPTS] == [1, 3, 3, 2]
    assert [image.getpixel((0, 0)) for image in images] == [(0, 0, 0), (20, 1, 0), (20, 2, 0), (10, 3, 0)]
    assert (note["model_calls"], note["model_rows"], note["seconds"]) == (12, 8 * 9, 3.0)
    assert search.name == "guarded-best-of-2-redness"


def test_calls_hold_as_many_samples_as_fit():
    search = Scripted([99, 99, 99], batch_size=5)
    search.draw("a prompt", 0)
    assert [samples for samples, _, _ in search.asked] == [(0, 1), (2,), (0,), (1,), (2,), (0,), (1,), (2,)]


def test_attempts_go_on_in_one_stream_of_noise():
    """Particles 2 to 5 of the second attempt are those that a larger first attempt would have had there."""
    first, second = particle_generators(3, [7], 2), particle_generators(3, [7], 2 + 4)[2:]
    seeds = [generator.initial_seed() for generator in (*first, *second)]
    assert len(set(seeds)) == 6
    assert seeds == [generator.initial_seed() for generator in particle_generators(3, [7], 6)]


def test_a_copy_with_another_gate_is_another_run():
    manifest = Scripted([0]).manifest["guard"]
    assert (manifest["gate"], manifest["above"], manifest["retries"], manifest["digests"]) == ("greenness", 0.5, 2, {})
    assert replace(GUARD, above=0.6) != GUARD
