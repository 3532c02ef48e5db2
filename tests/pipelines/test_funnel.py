"""A population that shrinks inside stock pipelines: conditions stay with their prompts, work is saved."""

from __future__ import annotations

import pytest
import torch

from fk_reward.pipelines import conditions
from fk_reward.pipelines.batching import BatchLayout
from tests import tiny
from tests.pipelines.calls import STEPS, generator, steered
from tests.pipelines.test_families import EXTRA, MAKERS, make

PROMPTS = ["a red circle", "two blue squares"]
FUNNEL = {
    "num_particles": 6,
    "final_particles": 2,
    "num_images_per_prompt": 2,
    "num_resamples": 2,
    "num_inference_steps": STEPS,
    "reward_scale": 1e4,
    "output_type": "pt",
}
TOLERANCE = 1e-5


def generators(first, number):
    return [torch.Generator().manual_seed(seed) for seed in range(first, first + number)]


def difference_between_together_and_alone(family):
    """Largest difference of pixels between two prompts in one call and each by itself."""
    pipe, extra = make(family), EXTRA.get(family, {})
    together = steered(pipe)(PROMPTS, generator=generators(0, 12), **FUNNEL, **extra)
    alone = [
        steered(pipe)(prompt, generator=generators(6 * place, 6), **FUNNEL, **extra)
        for place, prompt in enumerate(PROMPTS)
    ]
    assert all(step.ancestors is not None for step in together.trace.steps[:-1])
    return (together.images - torch.cat([out.images for out in alone])).abs().max()


@pytest.mark.parametrize("family", MAKERS)
def test_prompts_do_not_mix_when_their_populations_shrink(family):
    assert difference_between_together_and_alone(family) < TOLERANCE


def test_saboteur_the_first_rows_of_all_prompts_are_noticed(monkeypatch):
    def first_rows(num_blocks, num_particles):
        return BatchLayout(2, num_blocks // 2 * num_particles)

    take = BatchLayout.take

    def take_first(self, value, start, stop, *, name=""):
        return take(self, value, start, stop * len(PROMPTS), name=name)

    monkeypatch.setattr(conditions, "BatchLayout", first_rows)
    monkeypatch.setattr(BatchLayout, "take", take_first)
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        assert difference_between_together_and_alone("sd") < TOLERANCE


@pytest.mark.parametrize("sizes", [{}, {"particle_batch_size": 4}])
def test_the_trace_counts_what_was_left_out(sizes):
    out = steered(tiny.make_sd())(PROMPTS, generator=generator(), **FUNNEL, **sizes)
    assert [step.num_particles for step in out.trace.steps] == [6, 3, 2]
    steps = [step.step for step in out.trace.steps]
    rows = 6 * (steps[0] + 1) + 3 * (steps[1] - steps[0]) + 2 * (STEPS - steps[1] - 1)
    assert out.trace.num_model_rows == rows * 2 * len(PROMPTS)
    assert out.trace.num_model_calls == STEPS
    assert out.trace.num_decode_calls == out.trace.num_reward_calls == (6 + 3 + 2) * len(PROMPTS)
    assert out.trace.lineage().shape == (3, 2)
    assert "6 particles each (2 at the end)" in out.trace.summary()
    assert type(out.trace).from_json(out.trace.to_json()).steps[1].num_particles == 3
    out.trace.plot()


def test_micro_batches_give_the_same_images():
    pipe = tiny.make_sd()
    whole, split = (
        steered(pipe)(PROMPTS, generator=generator(), particle_batch_size=size, **FUNNEL) for size in (None, 4)
    )
    torch.testing.assert_close(split.images, whole.images, rtol=0, atol=TOLERANCE)


def test_the_reward_gains_by_a_funnel():
    """Twelve starts and two ends against the two starts that are finished without it."""
    pipe = tiny.make_sd()
    many = steered(pipe)("a red circle", generator=generators(0, 12), **FUNNEL | {"num_particles": 12})
    few = steered(pipe)(
        "a red circle",
        generator=generators(0, 2),
        **FUNNEL | {"num_particles": 2, "final_particles": None, "ess_threshold": 1.0},
    )
    assert many.rewards.max() > few.rewards.max()


def test_more_images_than_are_finished_are_refused():
    with pytest.raises(ValueError, match=r"\[1, final_particles = 2\], got 3"):
        steered(tiny.make_sd())("a star", **FUNNEL | {"num_images_per_prompt": 3})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"final_particles": 9}, "at most num_particles = 6"),
        ({"num_resamples": 0}, "needs a scoring step"),
        ({"reward_scale": 0}, "needs a scoring step"),
        ({"stop_reward": 0.5}, "exclude each other"),
        ({"final_particles": 0}, "at least 1"),
    ],
)
def test_settings_that_do_not_go_together(settings, message):
    with pytest.raises(ValueError, match=message):
        steered(tiny.make_sd())("a star", **FUNNEL | settings)


@pytest.mark.parametrize("threshold", [-1.0, 2.0])
def test_a_reward_that_ends_the_scoring(threshold):
    """Brightness is in [0, 1]: reached at once, or never."""
    arguments = {name: value for name, value in FUNNEL.items() if name != "final_particles"}
    out = steered(tiny.make_sd())(PROMPTS, generator=generator(), stop_reward=threshold, **arguments)
    assert len(out.trace.steps) == (2 if threshold < 0 else 3)
    assert (out.trace.steps[0].ancestors is None) == (threshold < 0)
