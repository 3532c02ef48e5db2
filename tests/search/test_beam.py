"""Beam search: a population that grows and shrinks."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from fk_reward import FKSteeringPipeline
from fk_reward.search import BeamSearch
from tests import tiny
from tests.sampling.scheduler_cases import initial_sample, toy_model
from tests.search.growing_runs import toy_run

CONFIG = BeamSearch(num_particles=2, num_proposals=3, num_branchings=3)


def redness(images, prompts):
    return images[:, 0].float().mean(dim=(1, 2))


def test_grows_to_k_times_m_and_shrinks_to_k():
    _, records, sizes = toy_run(CONFIG, num_groups=2, generator=torch.Generator().manual_seed(0))
    assert [record.step for record in records] == [2, 5, 8]
    assert sizes == [4, 4, 12, 12, 12, 12, 12, 12, 4, 4]
    assert records[0].ancestors.tolist() == [[0, 0, 0, 1, 1, 1]] * 2


def test_the_best_copy_of_each_particle_goes_on():
    _, records, _ = toy_run(CONFIG, generator=torch.Generator().manual_seed(0))
    for record in records[1:]:
        best = [int(row.argmax()) + 3 * i for i, row in enumerate(record.rewards.view(2, 3))]
        copies = record.ancestors.shape[1] // 2
        assert record.ancestors[0].tolist() == [place for place in best for _ in range(copies)]


def test_scheduler_history_grows_with_the_particles():
    scheduler = DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", solver_order=2)
    sample, _, _ = toy_run(CONFIG, scheduler=scheduler, generator=torch.Generator().manual_seed(0))
    assert len(sample) == 2
    assert len(scheduler.model_outputs[-1]) == 2


def test_one_particle_with_one_proposal_is_plain():
    config = BeamSearch(num_particles=1, num_proposals=1)
    steered, records, _ = toy_run(config, generator=torch.Generator().manual_seed(7))
    assert (list(records), config.population().copies) == ([], False)
    scheduler, generator = DDIMScheduler(clip_sample=False), torch.Generator().manual_seed(7)
    scheduler.set_timesteps(10)
    sample = initial_sample(scheduler, 1)
    for timestep in scheduler.timesteps:
        sample = scheduler.step(toy_model(sample, timestep), timestep, sample, eta=1.0, generator=generator).prev_sample
    assert torch.equal(steered, sample)


def test_one_generator_for_each_particle_is_continued_for_its_copies():
    def run():
        noise = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
        return toy_run(CONFIG, generator=noise)

    (first, records, _), (second, _, _) = run(), run()
    assert torch.equal(first, second)
    assert len(records[1].rewards.unique()) == 6  # no two copies drew the same noise


@pytest.mark.parametrize(
    "batch_sizes", [{}, {"particle_batch_size": 2, "decode_batch_size": 2, "reward_batch_size": 1}]
)
def test_in_a_pipeline_with_several_prompts_and_micro_batches(batch_sizes):
    pipe = tiny.make_sd()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    wrapped = FKSteeringPipeline(pipe, reward=redness, search=CONFIG)
    wrapped.set_progress_bar_config(disable=True)
    out = wrapped(
        ["a star", "a square"],
        num_inference_steps=6,
        output_type="pt",
        generator=torch.Generator().manual_seed(0),
        **batch_sizes,
    )
    assert [step.num_particles for step in out.trace.steps] == [2, 6, 6, 2]
    assert (
        out.trace.num_model_rows
        == 2 * 2 * sum(CONFIG.population().forecast(6).steps)
        == 2 * out.trace.cost.sample_steps
    )
    assert out.trace.search == "beam"
    assert out.trace.lineage().shape == (4, 2)
    assert {"lineage", "reward"} <= {axes.get_label() for axes in out.trace.plot().axes}


def test_a_pipeline_with_one_particle_equals_the_stock_pipeline():
    pipe = tiny.make_sd()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    shared = {"num_inference_steps": 4, "output_type": "pt"}
    stock = pipe("a star", eta=1.0, generator=torch.Generator().manual_seed(0), **shared).images
    wrapped = FKSteeringPipeline(pipe, reward=redness)
    search = BeamSearch(num_particles=1, num_proposals=1)
    out = wrapped("a star", search=search, generator=torch.Generator().manual_seed(0), **shared)
    assert torch.equal(out.images, stock)


def test_deterministic_schedulers_are_refused():
    wrapped = FKSteeringPipeline(tiny.make_sd(), reward=redness)
    wrapped.scheduler = EulerDiscreteScheduler.from_config(wrapped.scheduler.config)
    with pytest.raises(ValueError, match="EulerDiscreteScheduler cannot be steered"):
        wrapped("a star", search="beam")


def test_no_room_for_two_branchings_is_said(caplog):
    population = CONFIG.population()
    assert "no room for two branchings" in population.begin(1)
    assert population.forecast(1).steps == (2,)


def test_the_last_place_may_be_the_last_step_and_the_others_may_not():
    population = BeamSearch(num_particles=2, num_proposals=3, num_branchings=3, stop=1.0).population()
    assert population.scoring_steps(10) == (2, 6, 9)
    assert population.scoring_steps(2) == (0, 1)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_particles": 0}, ValueError, "num_particles should be at least 1"),
        ({"num_proposals": 0}, ValueError, "num_proposals should be at least 1"),
        ({"num_branchings": 1}, ValueError, "num_branchings should be at least 2"),
        ({"start": 0.9, "stop": 0.1}, ValueError, r"stop should be in \[start = 0.9, 1\]"),
        ({"start": -0.1}, ValueError, "start should be in"),
        ({"abstain": 1}, TypeError, "abstain should be True or False"),
    ],
)
def test_settings_are_checked(settings, error, message):
    with pytest.raises(error, match=message):
        BeamSearch(**settings)
