"""Tree search: trunks branch once, and the best branches go on."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from fk_reward import FKSteeringPipeline, steer
from fk_reward.search import BestOfN, Pruning, TreeSearch, fit_budget, sample_steps
from tests import tiny
from tests.search.growing_runs import score, toy_run

CONFIG = TreeSearch(num_particles=2, num_branches=3, branch_at=0.3, keep=(4, 1), at=(0.5, 0.8))


def redness(images, prompts):
    return images[:, 0].float().mean(dim=(1, 2))


def test_trunks_branch_and_the_best_branches_go_on():
    _, records, sizes = toy_run(CONFIG, num_groups=2, generator=torch.Generator().manual_seed(0))
    assert sizes == [4, 4, 4, 12, 12, 8, 8, 8, 2, 2]
    assert [record.step for record in records] == [3, 5, 8]
    assert records[0].ancestors.tolist() == [[0, 0, 0, 1, 1, 1]] * 2
    for record, kept in zip(records[1:], (4, 1), strict=True):
        for rewards, ancestors in zip(record.rewards, record.ancestors, strict=True):
            assert ancestors.tolist() == sorted(rewards.topk(kept).indices.tolist())


def signal(scheduler, timestep):
    """Cumulative alpha of a step and of the one after it."""
    before = int(timestep) - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    after = scheduler.alphas_cumprod[before] if before >= 0 else scheduler.final_alpha_cumprod
    return float(scheduler.alphas_cumprod[int(timestep)]), float(after)


def correlation_of_branches(scheduler, branching):
    """In closed form, of data from N(0, 1): the share of the finished variance that the trunk decides.

    The ideal denoiser answers sqrt(1 - a) x, and equations 12 and 16 of Song et al. (2021, DDIM) with eta 1 make each
    step x -> c x + s z.
    """
    decided, drawn = 1.0, 0.0
    for index, timestep in enumerate(scheduler.timesteps):
        a, b = signal(scheduler, timestep)
        variance = (1 - b) / (1 - a) * (1 - a / b)
        factor = math.sqrt(a * b) + math.sqrt(max(1 - b - variance, 0.0)) * math.sqrt(1 - a)
        into_trunk = index < branching  # branches part by the noise of the step at which they are made
        decided = factor**2 * decided + variance * into_trunk
        drawn = factor**2 * drawn + variance * (not into_trunk)
    return decided / (decided + drawn)


@pytest.mark.parametrize("branch_at", [0.4, 0.5, 0.6])
def test_branches_are_as_alike_as_a_closed_form_says(branch_at):
    scheduler, num_groups = DDIMScheduler(clip_sample=False, set_alpha_to_one=False), 4000
    scheduler.set_timesteps(10)
    population = TreeSearch(num_branches=2, branch_at=branch_at, keep=(), at=()).population(num_groups)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(num_groups, 1, 1, 1, generator=generator)
    with steer(scheduler, population, score):
        for timestep in scheduler.timesteps:
            noise = math.sqrt(1 - signal(scheduler, timestep)[0]) * sample
            sample = scheduler.step(noise, timestep, sample, eta=1.0, generator=generator).prev_sample
    found = torch.corrcoef(sample.view(num_groups, 2).T)[0, 1].item()
    expected = correlation_of_branches(scheduler, round(10 * branch_at))
    assert found == pytest.approx(expected, abs=4 * (1 - expected**2) / math.sqrt(num_groups))
    # other places are told apart, so that the comparison can fail
    for wrong in (round(10 * branch_at) - 2, round(10 * branch_at) + 1):
        other = correlation_of_branches(scheduler, wrong)
        assert abs(found - other) > 4 * (1 - other**2) / math.sqrt(num_groups)


def test_one_branch_is_pruning_or_best_of_k():
    for keep, at in (((), ()), ((2,), (0.5,))):
        tree = TreeSearch(num_particles=4, num_branches=1, keep=keep, at=at)
        plain = Pruning(num_particles=4, keep=keep, at=at) if keep else BestOfN(num_particles=4)
        runs = [toy_run(search, generator=torch.Generator().manual_seed(7)) for search in (tree, plain)]
        assert torch.equal(runs[0][0], runs[1][0])
        assert runs[0][2] == runs[1][2]
        assert not tree.population().copies


def test_scheduler_history_grows_with_the_branches():
    scheduler = DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", solver_order=2)
    sample, _, _ = toy_run(CONFIG, scheduler=scheduler, generator=torch.Generator().manual_seed(0))
    assert len(sample) == len(scheduler.model_outputs[-1]) == 1


def steered(search, prompts="a star", **call):
    pipe = tiny.make_sd()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    wrapped = FKSteeringPipeline(pipe, reward=redness, search=search)
    wrapped.set_progress_bar_config(disable=True)
    return wrapped(prompts, output_type="pt", generator=torch.Generator().manual_seed(0), **call)


@pytest.mark.parametrize(
    "batch_sizes", [{}, {"particle_batch_size": 2, "decode_batch_size": 2, "reward_batch_size": 1}]
)
def test_in_a_pipeline_with_several_prompts_and_micro_batches(batch_sizes):
    search = TreeSearch(num_branches=4, branch_at=0.4, keep=(2,), at=(0.7,))
    out = steered(search, ["a star", "a square"], num_inference_steps=6, num_images_per_prompt=2, **batch_sizes)
    assert out.trace.search == "tree"
    assert [step.num_particles for step in out.trace.steps] == [1, 4, 2]
    assert out.trace.cost.sample_steps == 2 * sum(search.population().forecast(6).steps) == 2 * sample_steps(search, 6)
    for prompt, rewards in enumerate(out.rewards):
        assert rewards.tolist() == sorted(out.trace.steps[-1].rewards[prompt].tolist(), reverse=True)
    assert "lineage" in {axes.get_label() for axes in out.trace.plot().axes}


def test_branches_differ():
    out = steered(TreeSearch(num_branches=3, keep=(), at=()), num_images_per_prompt=3, num_inference_steps=6)
    assert len(out.images.flatten(1).unique(dim=0)) == 3


def test_deterministic_schedulers_are_refused():
    wrapped = FKSteeringPipeline(tiny.make_sd(), reward=redness)
    wrapped.scheduler = EulerDiscreteScheduler.from_config(wrapped.scheduler.config)
    with pytest.raises(ValueError, match="EulerDiscreteScheduler cannot be steered"):
        wrapped("a star", search="tree")


@pytest.mark.parametrize(
    ("config", "budget", "branches", "keep"),
    [
        (TreeSearch(), 80, 12, (2,)),  # 9 + 1 for the trunk, 12 x 5 for the branches, 2 x 5 for those that are left
        (TreeSearch(), 160, 26, (4,)),
        (TreeSearch(), 25, 2, (1,)),
        (TreeSearch(num_particles=2, num_branches=6), 100, 7, (2,)),
    ],
)
def test_a_budget_sets_the_branches(config, budget, branches, keep):
    fitted = fit_budget(config, budget, 20)
    assert (fitted.num_branches, fitted.keep, fitted.num_particles) == (branches, keep, config.num_particles)
    assert sample_steps(fitted, 20) <= budget < sample_steps(fitted.with_branches(branches + 1), 20)


def test_a_small_budget_draws_fewer_trunks_and_too_small_a_one_is_refused():
    fitted = fit_budget(TreeSearch(num_particles=4), 45, 20)
    assert (fitted.num_particles, fitted.num_branches) == (2, 1)
    with pytest.raises(ValueError, match="needs at least 20"):
        fit_budget(TreeSearch(), 19, 20)


def test_fewer_trunks_keep_as_large_a_part_of_their_branches():
    half = TreeSearch(num_particles=8, num_branches=2, keep=(8,))
    three = fit_budget(half, 60, 20)
    assert (three.num_particles, three.num_branches, three.keep) == (3, 1, (2,))
    assert sample_steps(three, 20) == 3 * 15 + 2 * 5  # the cut is after 15 of 20 steps
    five = fit_budget(half, 100, 20)
    assert (five.num_particles, five.keep, sample_steps(five, 20)) == (5, (3,), 5 * 15 + 3 * 5)
    assert sample_steps(TreeSearch(num_particles=6, num_branches=1, keep=(3,)), 20) > 100


@pytest.mark.parametrize("num_steps", [1, 2, 3, 6, 20])
@pytest.mark.parametrize(
    "config",
    [
        TreeSearch(),
        TreeSearch(num_particles=8, num_branches=2, keep=(8,)),
        TreeSearch(num_particles=3, num_branches=4, keep=(12, 5), at=(0.6, 0.8)),
        TreeSearch(num_particles=5, num_branches=1, keep=(4, 3, 1), at=(0.5, 0.7, 0.9)),
        TreeSearch(num_particles=4, num_branches=3, keep=(), at=()),
        TreeSearch(num_particles=2, num_branches=2, branch_at=0.0, keep=(1,), at=(1.0,)),
    ],
    ids=repr,
)
def test_every_budget_from_a_whole_image_up_buys_something_and_more_buys_no_less(config, num_steps):
    costs = []
    for budget in range(num_steps, 12 * num_steps):
        fitted = fit_budget(config, budget, num_steps)
        costs.append(sample_steps(fitted, num_steps))
        assert costs[-1] <= budget, fitted
        of_all = config.num_particles * config.num_branches
        candidates = fitted.num_particles * fitted.num_branches
        shares = [kept * candidates / of_all for kept in config.keep]
        assert all(one == max(1, math.floor(share + 0.5)) for one, share in zip(fitted.keep, shares, strict=True))
    assert costs == sorted(costs)
    assert costs[0] == num_steps, "one whole image"


@pytest.mark.parametrize(
    ("number", "trunks", "branches", "keep"), [(12, 4, 3, (6,)), (13, 4, 3, (6,)), (3, 3, 1, (2,)), (1, 1, 1, (1,))]
)
def test_candidates_are_the_branches_of_all_trunks(number, trunks, branches, keep):
    tree = TreeSearch(num_particles=4, num_branches=2, keep=(4,)).with_candidates(number)
    assert (tree.num_particles, tree.num_branches, tree.keep) == (trunks, branches, keep)


def test_short_trajectories():
    assert TreeSearch().population().forecast(2).steps == (1, 12)
    assert "no room for a branching" in TreeSearch().population().begin(1)
    assert TreeSearch(num_branches=1, keep=(), at=()).population().begin(1) is None
    # cuts that fall on the branching move behind it
    assert TreeSearch(branch_at=0.5, at=(0.51,)).population().scoring_steps(4) == (2, 3)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_particles": 0}, ValueError, "num_particles should be at least 1"),
        ({"num_branches": 0}, ValueError, "num_branches should be at least 1"),
        ({"branch_at": 1.0}, ValueError, "branch_at should be in"),
        ({"branch_at": 0.8}, ValueError, "at should lie behind branch_at = 0.8"),
        ({"keep": (13,)}, ValueError, "keep should descend from num_particles = 12"),
        ({"keep": ()}, ValueError, "one number for each cut"),
        ({"abstain": 1}, TypeError, "abstain should be True or False"),
        ({"selection": "worst"}, ValueError, "selection should be"),
    ],
)
def test_settings_are_checked(settings, error, message):
    with pytest.raises(error, match=message):
        TreeSearch(**settings)
