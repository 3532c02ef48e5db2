"""Price lists: against counts by hand and by the planner, and what a cost is worth."""

import json
import re
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL

from fk_reward import FKSteeringPipeline
from fk_reward.planning import published_models
from fk_reward.planning.costs import ImageRequest, batch_costs
from fk_reward.planning.full_size_rewards import FULL_SIZE
from fk_reward.planning.planned_models import models_on_meta
from fk_reward.planning.prices import (
    BACKWARD,
    FULL_SIZE_PARTS,
    PRICES,
    REWARD_TERAFLOP,
    count_prices,
    reward_operations,
)
from fk_reward.rewards import REWARDS, load_reward
from fk_reward.sampling.trace import Cost
from tests import tiny
from tests.command_line import run_command_line

COST = Cost(sample_steps=80, denoiser_rows=160, decodes=12, reward_calls=12, seconds=9.0, previews=8)


ALIKE = {name: next(one for one in REWARD_TERAFLOP if FULL_SIZE[one] == FULL_SIZE[name]) for name in REWARD_TERAFLOP}
"""Name -> the first reward that is the same model at full size: dimensions differ in their weights alone."""


@pytest.mark.slow
@pytest.mark.parametrize("name", dict.fromkeys(ALIKE.values()))
def test_listed_prices_of_rewards_are_the_counts(name):
    counted = reward_operations(name) / 1e12
    for one in (one for one, first in ALIKE.items() if first == name):
        assert REWARD_TERAFLOP[one] == pytest.approx(counted, rel=1e-3)


def test_rewards_that_are_alike_are_dimensions_and_versions_of_one():
    same = {name: one for name, one in ALIKE.items() if name != one}
    assert len(ALIKE) - len(same) > 15
    for name, one in same.items():
        assert name.partition("@")[2] == one.partition("@")[2]
        assert name.startswith(("llava-reward-", "hpsv2."))


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_SIZE_PARTS)
def test_listed_prices_are_the_counts(name):
    counted, listed = count_prices(name, rewards=("clipscore",)), PRICES[name]
    for part in ("sample_step", "decode", "preview"):
        assert getattr(listed, part) == pytest.approx(getattr(counted, part), rel=1e-3)
    assert listed.rewards is REWARD_TERAFLOP, "all lists have the same rewards, which are counted below"
    assert counted.rewards == {"clipscore": pytest.approx(listed.rewards["clipscore"], rel=1e-3)}


def test_every_reward_of_known_size_has_a_price():
    answers_in_words = {name for name in FULL_SIZE if name.startswith("vlm-judge")}
    assert set(REWARD_TERAFLOP) == set(FULL_SIZE) - answers_in_words


def test_flux_has_its_published_number_of_parameters():
    with torch.device("meta"):
        vae = AutoencoderKL(**published_models.FLUX_AUTOENCODER)
    assert sum(weight.numel() for weight in vae.parameters()) == 83_819_683  # of its safetensors file
    assert 2 * 11.9e9 * 4096 * 0.5 < PRICES["flux.1-dev"].sample_step * 1e12 < 2 * 11.9e9 * 4608


def test_a_cost_in_each_price():
    assert PRICES["sample-steps"].price(COST) == 80
    sdxl = PRICES["sdxl"]
    by_hand = 80 * 13.52 + 4 * 10.47 + 8 * 0.5654 + 12 * 0.1378
    assert sdxl.price(COST, reward="imagereward") == pytest.approx(by_hand)
    assert sdxl.price(COST, reward="shapes-imagereward") == pytest.approx(by_hand)
    assert sdxl.price(COST, reward="shapes-verifier") == pytest.approx(by_hand - 12 * 0.1378)
    both = sdxl.price(COST, reward="0.5*imagereward + clipscore - 0.1*imagereward")
    assert both == pytest.approx(by_hand + 12 * 0.1641)
    assert sdxl.image(20, reward="clipscore") == pytest.approx(20 * 13.52 + 10.47 + 0.1641)


def test_a_backward_pass_costs_a_forward_pass_more():
    """By hand: of twelve decoded and scored images three had a gradient, by the preview where there was one."""
    sdxl, guided = PRICES["sdxl"], replace(COST, gradients=3)
    more = sdxl.price(guided, reward="imagereward") - sdxl.price(COST, reward="imagereward")
    assert more == pytest.approx(3 * (0.5654 + 0.1378))
    unseen = replace(guided, previews=0)
    more = sdxl.price(unseen, reward="imagereward") - sdxl.price(replace(unseen, gradients=0), reward="imagereward")
    assert more == pytest.approx(3 * (10.47 + 0.1378))
    dearer = replace(sdxl, backward=2.0)
    assert dearer.price(unseen, reward="none") - sdxl.price(unseen, reward="none") == pytest.approx(3 * 10.47)
    assert PRICES["sample-steps"].price(guided) == 80
    unknown = replace(COST, gradients=None)
    assert PRICES["sample-steps"].price(unknown) == 80
    with pytest.raises(ValueError, match="backward passes there were: draw the images again"):
        sdxl.price(unknown, reward="imagereward")


@pytest.mark.parametrize("reward", ["clipscore", "imagereward"])
def test_the_backward_pass_is_what_is_counted(reward):
    """Twice the forward pass is that of a training, with gradients of the weights."""
    with models_on_meta("sdxl", reward, dtype=torch.float16) as models:
        costs = batch_costs(models, ImageRequest(), batch_size=1, guided=True)
    for part in ("decode", "reward"):
        assert costs.flops[f"gradient {part}"] / costs.flops[part] - 1 == pytest.approx(BACKWARD, abs=0.15)


def test_best_of_n_costs_n_images():
    four = Cost(sample_steps=80, denoiser_rows=160, decodes=4, reward_calls=4, seconds=1.0, previews=0)
    for prices in PRICES.values():
        assert prices.price(four, reward="pickscore") == pytest.approx(4 * prices.image(20, reward="pickscore"))


@pytest.mark.parametrize("name", [name for name in REWARDS if name.startswith("shapes-")])
def test_rewards_of_the_package_have_a_price(name):
    assert PRICES["sdxl"].reward_price(name) >= 0


def test_what_has_no_price_is_refused():
    with pytest.raises(
        ValueError, match=re.escape("There is no price of reward 'imagerewrd'. Did you mean 'imagereward'?")
    ):
        PRICES["sdxl"].price(COST, reward="imagerewrd")
    with pytest.raises(ValueError, match="say which one"):
        PRICES["flux.1-dev"].price(COST)
    old = Cost(sample_steps=None, denoiser_rows=160, decodes=4, reward_calls=4, seconds=1.0)
    for prices in PRICES.values():
        with pytest.raises(ValueError, match="does not say how many"):
            prices.price(old, reward="clipscore")
    with pytest.raises(ValueError, match=re.escape("sdxl, flux.1-dev; got 'sd-2.1'")):
        count_prices("sd-2.1")


def test_a_trace_has_a_price():
    pipe = FKSteeringPipeline(tiny.make_sd(), reward=load_reward("shapes-clipscore"))
    pipe.set_progress_bar_config(disable=True)
    trace = pipe("a red circle", search="best-of-n", num_particles=2, num_inference_steps=2).trace
    assert PRICES["sample-steps"].of(trace) == 4
    assert PRICES["sdxl"].of(trace) == pytest.approx(2 * PRICES["sdxl"].image(2, reward="clipscore"))
    assert PRICES["sdxl"].of(trace, reward="pickscore") > PRICES["sdxl"].of(trace)


def test_the_command_prints_the_list():
    table = run_command_line("prices")
    assert table.exit_code == 0, table.output
    assert all(word in table.stdout for word in ("sample step", "preview", "imagereward", "flux.1-dev"))
    record = json.loads(run_command_line("prices", "--json").stdout)
    assert record["sdxl"]["sample_step"] == 13.52
    assert record["flux.1-dev"]["rewards"]["clipscore"] == REWARD_TERAFLOP["clipscore"]
