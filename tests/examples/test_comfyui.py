"""The custom nodes for ComfyUI, on stand-ins with ComfyUI's signatures."""

from __future__ import annotations

import inspect
import json
import math
import sys

import pytest
import torch

from fk_reward.rewards import Reward, RewardCard
from tests.examples import comfyui_stage
from tests.examples.comfyui_stage import CONST, EPS, Guider

REACH = 40.0  # decoded numbers in [-20, 20] as grey values


class ReadsNumber(Reward):
    card = RewardCard(name="number", summary="the number that the grey value stands for", spread=1.0)

    def score(self, images, prompts):
        return (images.mean((1, 2, 3)) - 0.5) * REACH


class Vae:
    """Latents to `(B, H, W, 3)` in [0, 1], as ComfyUI's `VAE.decode`."""

    def decode(self, latents):
        return (latents.movedim(1, -1) / REACH + 0.5).clamp(0, 1).expand(-1, -1, -1, 3)


@pytest.fixture
def brought_back(monkeypatch):
    return comfyui_stage.install(monkeypatch)


@pytest.fixture
def nodes(monkeypatch, brought_back):
    return comfyui_stage.load_nodes(monkeypatch).NODE_CLASS_MAPPINGS


def make_sampler(nodes, **options):
    widgets = {"prompt": "a", "search": "fk", "num_images": 1, "steps": "stochastic", "settings": ""} | options
    (sampler,) = nodes["FKSteeredSampler"]().make(reward=ReadsNumber(), vae=Vae(), **widgets)
    return sampler


def run(sampler, *, rows, sampling=EPS, seed=0, num_steps=20, **options):
    """Latents of one number each; what comes out is the double, by `process_latent_out`."""
    guider = Guider(sampling())
    top = float(sampling.sigma_max)
    levels = torch.cat([torch.linspace(top ** (1 / 3), 0.03 ** (1 / 3), num_steps) ** 3, torch.zeros(1)])
    if sampling is CONST:
        levels = torch.linspace(1, 0, num_steps + 1)
    noise = torch.randn(rows, 1, 1, 1, generator=torch.Generator().manual_seed(seed))
    out = guider.sample(noise, torch.zeros_like(noise), sampler, levels, seed=seed, **options)
    return out, guider, levels


def ancestral_moments(levels):
    """Variance of what ancestral Euler steps make of exact denoised standard normals; linear, so exact."""
    levels = levels.double().tolist()
    variance = 1 + levels[0] ** 2
    for now, then in zip(levels, levels[1:], strict=False):
        up = math.sqrt(then**2 * (now**2 - then**2) / now**2)
        factor = 1 + (math.sqrt(then**2 - up**2) - now) * now / (1 + now**2)
        variance = factor**2 * variance + up**2
    return variance


@pytest.mark.parametrize(("scale", "holds"), [(0.5, True), (0.0, False)])
def test_inside_its_sampler_fk_reaches_the_tilted_law(nodes, scale, holds):
    """The reward is 2 x; p(x) exp(x) has the variance of p as its mean. Without a scale nothing is steered."""
    number = 20_000
    sampler = make_sampler(nodes, num_images=number, settings=f"reward_scale: {scale}\nselection: sample")
    out, _, levels = run(sampler, rows=number)
    variance = ancestral_moments(levels)
    error = abs(float(out.mean()) / 2 - variance)
    assert (error < 5 * math.sqrt(variance / 4000)) is holds


@pytest.mark.parametrize("sampling", [EPS, CONST])
def test_deterministic_steps_are_those_of_euler(nodes, sampling):
    """k-diffusion's Euler: x + (x - denoised) / sigma * (next - sigma), for both families."""
    out, _, levels = run(make_sampler(nodes, search="best-of-n", steps="deterministic"), rows=1, sampling=sampling)
    noise = torch.randn(1, 1, 1, 1, generator=torch.Generator().manual_seed(0)).double()
    model, levels = sampling(), levels.double()
    x = model.noise_scaling(levels[0], noise, torch.zeros_like(noise), True)
    for now, then in zip(levels, levels[1:], strict=False):
        x = x + (x - Guider(model)(x, now.expand(1))) / now * (then - now)
    torch.testing.assert_close(out.double(), 2 * x, rtol=1e-4, atol=1e-4)


def test_flow_models_are_drawn_by_a_scheduler_that_keeps_their_law(nodes):
    number = 20_000
    sampler = make_sampler(nodes, search="best-of-n", num_images=number)
    out, _, _ = run(sampler, rows=number, sampling=CONST, num_steps=40)
    # the second-order solver is off by less than 2 % at 40 steps; standard error of a standard deviation 0.5 %
    assert float(out.std()) / 2 == pytest.approx(1.0, abs=0.04)
    assert float(out.mean()) / 2 == pytest.approx(0.0, abs=5 / math.sqrt(number))


def test_the_best_come_back_first_and_pruning_finishes_few(nodes, brought_back):
    sampler = make_sampler(nodes, search="pruning", num_images=2, settings="keep: [6, 3]\nat: [0.3, 0.6]")
    seen = []
    out, guider, _ = run(sampler, rows=8, callback=lambda step, x0, x, total: seen.append((step, len(x0), total)))
    assert out.shape == (2, 1, 1, 1)
    assert float(out[0]) >= float(out[1])
    assert guider.rows[:2] == [8, 8]
    assert guider.rows[-1] == 3
    assert [step for step, _, _ in seen] == list(range(20))
    assert {total for _, _, total in seen} == {20}
    assert {patcher.name for patcher in brought_back} == {"the model"}  # decoding may have pushed it off the GPU


def test_the_seed_of_the_node_decides(nodes):
    first, again, other = (run(make_sampler(nodes), rows=6, seed=seed)[0] for seed in (3, 3, 4))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, other)


def test_searches_that_ask_the_model_again(nodes):
    out, guider, _ = run(make_sampler(nodes, search="rollover"), rows=4)
    assert out.shape == (1, 1, 1, 1)
    assert len(guider.rows) >= 20


def test_known_regions_follow_their_particles(nodes):
    """Outside the mask the image stays, whoever was copied over whom."""
    rows, known = 4, torch.full((4, 1, 2, 1), 3.0)
    sampler = make_sampler(nodes, num_images=4, settings="reward_scale: 50\nselection: sample")
    guider = Guider(EPS())
    noise = torch.randn(rows, 1, 2, 1, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([1.0, 0.0]).view(1, 1, 2, 1).expand(rows, -1, -1, -1)
    levels = torch.tensor([10.0, 5.0, 2.0, 1.0, 0.5, 0.2, 0.0])
    out = guider.sample(noise, known, sampler, levels, denoise_mask=mask, seed=0)
    torch.testing.assert_close(out[:, :, 1], torch.full((4, 1, 1), 6.0))
    model = sys.modules["custom_nodes_fk_reward.steered_sampling"]._ModelRows
    state = comfyui_stage._InpaintModel(guider, torch.arange(3.0)[:, None], torch.arange(3.0)[:, None])
    given = {"denoise_mask": torch.arange(3.0)[:, None]}
    model(state, given).gather(lambda tensor: tensor[[2, 2]], 3)
    assert state.noise.flatten().tolist() == given["denoise_mask"].flatten().tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": " "}, "The reward needs a prompt"),
        ({"settings": "reward_scale 10"}, "settings should be lines such as"),
        ({"settings": "reward_sale: 10"}, "Did you mean 'reward_scale'"),
        ({"search": "draft-refine"}, "draws whole trajectories"),
        ({"steps": "deterministic"}, "fk copies particles"),
        ({"num_images": 5}, "num_images should be at most 4"),
    ],
)
def test_what_cannot_work_is_said(nodes, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        run(make_sampler(nodes, **options), rows=4)


def test_split_sigmas_are_refused(nodes):
    sampler = make_sampler(nodes)
    with pytest.raises(ValueError, match="do not split the sigmas"):
        Guider(EPS()).sample(torch.randn(4, 1, 1, 1), torch.zeros(4, 1, 1, 1), sampler, torch.tensor([9.0, 3.0, 1.0]))


def test_a_reward_is_loaded_and_images_are_scored(nodes):
    (reward,) = nodes["FKLoadReward"]().load(" shapes-verifier ")
    assert reward.card.name == "shapes-verifier"
    images = torch.tensor([0.2, 0.7]).view(2, 1, 1, 1).expand(-1, 4, 4, 3)
    best, text = nodes["FKScoreImages"]().score(ReadsNumber(), images, "a")
    assert best[:, 0, 0, 0].tolist() == pytest.approx([0.7, 0.2])
    assert text == "8.0000\n-12.0000"


def test_nodes_have_what_comfyui_reads(nodes):
    for node in nodes.values():
        widgets = node.INPUT_TYPES()
        names = [name for group in widgets.values() for name in group]
        assert names == list(inspect.signature(getattr(node, node.FUNCTION)).parameters)[1:]
        assert isinstance(node.RETURN_TYPES, tuple)
        assert node.CATEGORY == "fk_reward"


def test_the_workflow_names_inputs_that_the_nodes_have(nodes):
    """The workflow in the folder is of ComfyUI's API format: node id -> class and inputs, links as [id, output]."""
    workflow = json.loads((comfyui_stage.FOLDER / "workflow_api.json").read_text(encoding="utf-8"))
    ours = {place: node for place, node in workflow.items() if node["class_type"] in nodes}
    assert {node["class_type"] for node in ours.values()} == {"FKLoadReward", "FKSteeredSampler"}
    for node in ours.values():
        assert set(node["inputs"]) == set(nodes[node["class_type"]].INPUT_TYPES()["required"])
    for node in workflow.values():
        for value in node["inputs"].values():
            if isinstance(value, list):
                assert value[0] in workflow
