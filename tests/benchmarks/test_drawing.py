"""What is drawn: seeds, methods and costs of the images, and the settings that say so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fk_reward import FKSteeringConfig, FKSteeringPipeline
from fk_reward.benchmarks.drawing import (
    Cost,
    ImageSearch,
    RunSettings,
    make_search,
    noise_of_steps,
    particle_generators,
)
from tests.benchmarks.image_stage import BRIGHTNESS, NUM_SAMPLES

SETTINGS = RunSettings(
    suite="shapes",
    model="tiny",
    method="best-of-n",
    reward="brightness",
    search=make_search("best-of-n", num_particles=3),
    num_steps=4,
    num_samples=NUM_SAMPLES,
    seed=5,
)
STEERED = replace(SETTINGS, method="fk", search=FKSteeringConfig(num_particles=3, reward_scale=1e4, ess_threshold=1.0))


@pytest.fixture(scope="module")
def pipe(tiny_sd):
    pipe = FKSteeringPipeline(tiny_sd(), reward=BRIGHTNESS)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_draw(pipe, settings, *, reward):
    """The images of a prompt, and what they cost."""
    search = ImageSearch(pipe, settings, reward=reward)

    def draw(prompt, index):
        images, note = search.draw(prompt, index)
        return images, Cost.of(note)

    return draw


def arrays(images):
    return np.stack([np.asarray(image, dtype=np.int16) for image in images])


def test_best_of_k_is_the_best_of_k_stock_pictures_and_unsteered_the_first(pipe):
    best, cost = make_draw(pipe, SETTINGS, reward=BRIGHTNESS)("a cow", 7)
    single, single_cost = make_draw(pipe, SETTINGS.unsteered(), reward=None)("a cow", 7)
    for sample in range(NUM_SAMPLES):
        stock = pipe.pipe(
            ["a cow"] * 3,
            generator=particle_generators(5 + sample, [7], 3),
            num_inference_steps=4,
            eta=1.0,
        ).images
        brightest = max(stock, key=lambda image: arrays([image]).mean())
        assert np.abs(arrays([best[sample]]) - arrays([brightest])).max() <= 1
        assert np.abs(arrays([single[sample]]) - arrays([stock[0]])).max() <= 1
    assert replace(cost, seconds=0.0) == Cost(model_calls=4, model_rows=48, decodes=6, reward_calls=6)
    assert replace(single_cost, seconds=0.0) == Cost(model_calls=4, model_rows=16, decodes=2, reward_calls=0)


def test_steering_uses_the_settings_of_the_sampler(pipe):
    steered = STEERED
    images, cost = make_draw(pipe, steered, reward=BRIGHTNESS)("a cow", 7)
    plain, _ = make_draw(pipe, SETTINGS, reward=BRIGHTNESS)("a cow", 7)
    num_scored = len(steered.search.scoring_steps(4)) + 1
    assert (cost.reward_calls, cost.decodes) == (6 * num_scored, 6 * num_scored)
    assert (arrays(images) != arrays(plain)).any()


def test_a_picture_depends_on_its_prompt_and_sample_alone(pipe):
    draw = make_draw(pipe, STEERED, reward=BRIGHTNESS)
    first, _ = draw("a cow", 7)
    draw("a dog", 8)
    again, _ = draw("a cow", 7)
    other, _ = draw("a cow", 8)
    assert (arrays(first) == arrays(again)).all()
    assert (arrays(first) != arrays(other)).any(), "the seed depends on the place of the prompt"
    assert (arrays(first[:1]) != arrays(first[1:])).any()
    later, _ = make_draw(pipe, replace(STEERED, seed=6, num_samples=1), reward=BRIGHTNESS)("a cow", 7)
    assert np.abs(arrays(later) - arrays(first[1:])).max() <= 1, "sample s of seed n is the first of seed n + s"


def test_a_large_sample_goes_through_several_calls(pipe):
    whole, cost = make_draw(pipe, SETTINGS, reward=BRIGHTNESS)("a cow", 7)
    parts, parts_cost = make_draw(pipe, replace(SETTINGS, batch_size=5), reward=BRIGHTNESS)("a cow", 7)
    assert np.abs(arrays(whole) - arrays(parts)).max() <= 1
    assert (parts_cost.model_calls, parts_cost.model_rows) == (2 * cost.model_calls, cost.model_rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "steered"}, "method should be one of"),
        ({"scheduler": "euler"}, "scheduler should be one of"),
        ({"reward": None}, "A reward goes with every method but unsteered"),
        ({"method": "unsteered"}, "A reward goes with every method but unsteered"),
        ({"method": "unsteered", "reward": None}, "unsteered has one particle"),
        ({"search": FKSteeringConfig(num_particles=1)}, "unsteered has one particle"),
        ({"batch_size": 2}, "batch_size should hold"),
        ({"num_samples": 0}, "num_samples should be at least 1"),
        ({"seed": -1}, "seed should be at least 0"),
    ],
)
def test_settings_that_do_not_go_together(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **changes)


def test_names_of_folders_tell_compositions_apart():
    rewards = ("clipscore", "a + b", "a - b", "min(a, 0.5*b)", "llava-reward-safety@qwen")
    names = [replace(SETTINGS, reward=reward).name for reward in rewards]
    assert (names[0], names[-1]) == ("best-of-3-clipscore", "best-of-3-llava-reward-safety@qwen")
    assert len(set(names)) == len(names)
    assert all(set("/+*() ").isdisjoint(name) for name in names)


def test_what_a_method_does_not_use_is_not_in_its_settings():
    plain, other = (make_search("best-of-n", num_particles=3, potential=name) for name in ("max", "sum"))
    assert replace(SETTINGS, search=plain).to_dict() == replace(SETTINGS, search=other).to_dict()
    steered = (make_search("fk", num_particles=3, potential=name) for name in ("max", "sum"))
    first, second = (replace(STEERED, search=search).to_dict() for search in steered)
    assert first != second


def test_populations_are_measured(pipe):
    _, best = ImageSearch(pipe, replace(SETTINGS, diversity=True), reward=BRIGHTNESS).draw("a cow", 7)
    _, steered = ImageSearch(pipe, replace(STEERED, diversity=True), reward=BRIGHTNESS).draw("a cow", 7)
    _, plain = ImageSearch(pipe, STEERED, reward=BRIGHTNESS).draw("a cow", 7)
    assert best["num_ancestors"] == 3 > steered["num_ancestors"] >= 1
    assert 0 < best["distance"] < 1 and steered["distance"] < best["distance"]
    assert best["reward_spread"] > 0
    assert "distance" not in plain and plain["reward_spread"] == pytest.approx(steered["reward_spread"], rel=1e-3)


def test_the_first_image_is_the_same_whether_populations_are_measured_or_not(pipe):
    """All finished images are fetched, and the one that was selected first is kept."""
    for settings in (SETTINGS, STEERED):
        measured, _ = ImageSearch(pipe, replace(settings, diversity=True), reward=BRIGHTNESS).draw("a cow", 7)
        plain, _ = ImageSearch(pipe, settings, reward=BRIGHTNESS).draw("a cow", 7)
        assert np.abs(arrays(measured) - arrays(plain)).max() <= 1


def test_a_solver_and_a_scheduler_exclude_each_other():
    with pytest.raises(ValueError, match="A solver brings its scheduler"):
        replace(SETTINGS, solver="ddim-50", scheduler="ddim")


def test_every_search_draws_from_the_same_starts(pipe):
    """With one particle's share of the noise each; pruning returns one of the images that best of N draws."""
    keep = {"keep": (2,), "at": (0.5,)}
    pruning = replace(SETTINGS, method="pruning", search=make_search("pruning", num_particles=3, **keep), num_samples=1)
    (pruned,), cost = make_draw(pipe, pruning, reward=BRIGHTNESS)("a cow", 7)
    stock = pipe.pipe(["a cow"] * 3, generator=particle_generators(5, [7], 3), num_inference_steps=4, eta=1.0).images
    assert min(np.abs(arrays([pruned]) - arrays([image])).max() for image in stock) <= 1
    assert cost.model_rows < 2 * 4 * 3, "guidance doubles the rows; one particle is dropped on the way"
    assert pruning.name == "pruning-3-brightness"


def test_eta_is_one_for_every_method_unless_another_is_asked_for(pipe):
    assert noise_of_steps(pipe, SETTINGS) == 1.0
    assert noise_of_steps(pipe, replace(SETTINGS, eta=0.0)) == 0.0
    drawn = make_draw(pipe, replace(SETTINGS.unsteered(), eta=0.0), reward=None)("a cow", 7)[0]
    stock = pipe.pipe("a cow", generator=particle_generators(5, [7], 1), num_inference_steps=4).images
    assert np.abs(arrays(drawn[:1]) - arrays(stock)).max() <= 1
    with pytest.raises(ValueError, match="eta"):
        make_draw(pipe, replace(STEERED, eta=0.0), reward=BRIGHTNESS)("a cow", 7)
