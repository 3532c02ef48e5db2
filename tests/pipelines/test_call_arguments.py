"""Wrong arguments of the call and of the constructor: errors at once, in words that say what to write."""

from __future__ import annotations

import inspect
import math
import re

import numpy as np
import pytest
import torch

from fk_reward import BatchSizes, FKSteeringConfig, FKSteeringPipeline
from fk_reward.pipelines.call_arguments import check_arguments
from fk_reward.search.registry import BUILT_IN
from tests import tiny
from tests.pipelines.calls import STEPS, BrightnessReward, generator, steered

PROMPTS = ["a red circle", "a blue square"]


class Spent(Exception):
    """Something was spent on a call that should have been refused."""


def spend(*args, **kwargs):
    raise Spent


@pytest.fixture(scope="module")
def guarded():
    """A pipeline of which nothing may run: neither text encoder nor denoiser nor decoder."""
    pipe = steered(tiny.make_sd())
    for module in (pipe.unet, pipe.text_encoder, pipe.vae):
        module.forward = spend
    pipe.vae.decode = spend
    return pipe


def some_generators(number):
    return [torch.Generator().manual_seed(seed) for seed in range(number)]


ROWS = torch.zeros(8, 4, 8, 8)

WRONG = [
    ({"generator": 0}, TypeError, r"generator should be a torch.Generator, got 0: write .*manual_seed\(0\)"),
    ({"generator": "0"}, TypeError, "generator should be a torch.Generator, got '0'"),
    ({"generator": some_generators(2)}, ValueError, r"each of the 2 x 4 = 8 particles, .* a list of 2"),
    ({"generator": []}, ValueError, "a list of 0"),
    ({"generator": [*some_generators(7), 7]}, TypeError, "holds 7"),
    ({"latents": ROWS[:1]}, ValueError, "latents should have 8 rows, .* 2 prompts x 4 particles, .* got 1"),
    ({"latents": ROWS[:2]}, ValueError, r"got 2. latents.repeat_interleave\(K, 0\)"),
    ({"latents": torch.tensor(0.0)}, ValueError, "got a single number"),
    ({"latents": ROWS.numpy()}, TypeError, "latents should be a (floating )?tensor, got ndarray"),
    ({"latents": ROWS.int()}, TypeError, "latents should be a floating tensor, got torch.int32"),
    ({"latents": ROWS * math.nan}, ValueError, "latents should be finite"),
    ({"steering": {"num_particles": 4}}, TypeError, r"steering should be .*got dict: write FKSteeringConfig\(\*\*"),
    ({"steering": FKSteeringConfig}, TypeError, "got the class FKSteeringConfig"),
    ({"steering": 4}, TypeError, "steering should be of class FKSteeringConfig, got int"),
    *(({"num_inference_steps": n}, ValueError, f"num_inference_steps should be at least 1, got {n}") for n in (0, -3)),
    ({"num_inference_steps": 2.5}, TypeError, "num_inference_steps should be an int, got 2.5"),
    ({"num_inference_steps": 50.0}, TypeError, "num_inference_steps should be an int, got 50.0: write 50"),
    ({"num_inference_steps": "50"}, TypeError, "num_inference_steps should be an int, got '50'"),
    ({"num_inference_steps": True}, TypeError, "num_inference_steps should be an int, got True"),
    *(({"eta": eta}, ValueError, r"eta should be in \[0, 1\], got") for eta in (2.0, -0.5, math.nan, math.inf)),
    ({"eta": "1"}, TypeError, "eta should be a number, got '1'"),
    ({"eta": 0.0}, ValueError, "Pass eta=1.0"),
    ({"guidance_scale": math.nan}, ValueError, "guidance_scale should be a finite number, got nan"),
    ({"guidance_scale": "7.5"}, TypeError, "guidance_scale should be a number, got '7.5'"),
    ({"guidance_rescale": 1.5}, ValueError, r"guidance_rescale should be in \[0, 1\]"),
    ({"height": 100.5}, TypeError, "height should be an int, got 100.5"),
    ({"width": 0}, ValueError, "width should be at least 1, got 0"),
    ({"clip_skip": -1}, ValueError, "clip_skip should be at least 0, got -1"),
    ({"timesteps": []}, ValueError, "timesteps should be a list of at least one number"),
    ({"timesteps": 5}, TypeError, "timesteps should be a list of numbers, got int"),
    ({"sigmas": [1.0, math.nan]}, ValueError, r"sigmas\[1\] should be a finite number, got nan"),
    ({"negative_prompt": ["a", "b", "c"]}, ValueError, "negative_prompt should be one text, or 2 texts, .* got 3"),
    ({"negative_prompt": 5}, TypeError, "negative_prompt should be a string or a list of strings, got int"),
    ({"prompt_embeds": ROWS}, ValueError, "prompt_embeds should have 2 rows, one for each prompt"),
    ({"callback_on_step_end": 5}, TypeError, "callback_on_step_end should be a function, got int"),
    ({"cross_attention_kwargs": 5}, TypeError, "cross_attention_kwargs should be a dictionary, got int"),
    ({"num_images_per_prompt": 0}, ValueError, "num_images_per_prompt should be at least 1, got 0"),
    ({"num_images_per_prompt": 1.5}, TypeError, "num_images_per_prompt should be an int, got 1.5"),
    ({"num_images_per_prompt": 5}, ValueError, "num_particles = 4"),
    ({"output_type": "PIL"}, ValueError, "got 'PIL'. Did you mean 'pil'"),
    ({"output_type": "tensor"}, ValueError, "output_type should be one of"),
    ({"output_type": None}, ValueError, "output_type should be one of"),
    ({"return_dict": "no"}, TypeError, "return_dict should be of class bool"),
    ({"num_particles": 2**70}, ValueError, "num_particles should be at most"),
    ({"num_resamples": 2**70}, ValueError, "num_resamples should be at most"),
    *(({"num_particles": k}, TypeError, "num_particles should be an int") for k in (True, 1.0, "4")),
    ({"reward_scale": math.nan}, ValueError, "reward_scale should be a finite number of at least 0"),
    ({"decode_batch_size": 2**70}, ValueError, "decode_batch_size should be at most"),
    ({"reward_batch_size": 1.5}, TypeError, "reward_batch_size should be an int"),
    ({"prompt": []}, ValueError, "prompt is an empty list"),
    ({"prompt": 5}, TypeError, "prompt should be a string or a list of strings, got int"),
    ({"prompt": ["a", None]}, TypeError, "got None at place 1"),
    ({"prompt": {"a": "b"}}, TypeError, "prompt should be a string or a list of strings, got dict"),
    ({"reward_prompts": 5}, TypeError, "reward_prompts should be a string or a list"),
    ({"reward_prompts": ["a"]}, ValueError, "should get 2 texts, one for each prompt, got 1"),
    ({"num_particels": 8}, TypeError, "Did you mean num_particles"),
    ({"solver": "ddim-50"}, TypeError, "It belongs to the pipeline: pipe.solver ="),
]


@pytest.mark.parametrize(
    ("arguments", "error", "message"), WRONG, ids=[f"{i}-{next(iter(row[0]))}" for i, row in enumerate(WRONG)]
)
def test_nothing_is_spent_on_a_wrong_call(guarded, arguments, error, message):
    with pytest.raises(error, match=message):
        guarded(**({"prompt": PROMPTS, "num_inference_steps": STEPS} | arguments))


def test_the_guard_notices_a_call_that_runs(guarded):
    with pytest.raises(Spent):
        guarded(PROMPTS, num_inference_steps=STEPS)


def test_every_plain_argument_of_the_pipeline_refuses_an_object_of_no_use(guarded):
    """So that an argument of a new Diffusers cannot go unchecked: all but images, whose kinds the pipeline knows."""
    parameters = inspect.signature(guarded.pipe.__call__).parameters
    names = [n for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD and not re.search("ip_adapter|inputs$", n)]
    for name in names:
        with pytest.raises((TypeError, ValueError), match=name):
            guarded(**({"prompt": PROMPTS} | {name: object()}))


def test_numpy_numbers_are_numbers():
    pipe = steered(tiny.make_sd())
    call = {"num_inference_steps": np.int64(3), "guidance_scale": np.float32(2.0), "height": np.int32(32)}
    out = pipe("a red circle", num_particles=np.int64(2), reward_scale=np.float32(3.0), generator=generator(), **call)
    assert out.trace.config == FKSteeringConfig(num_particles=2, reward_scale=3.0).to_dict()
    assert out.trace.provenance.arguments["num_inference_steps"] == 3
    out.trace.to_json()
    kinds = {
        type(value)
        for value in FKSteeringConfig(num_resamples=np.int8(2), ess_threshold=np.float16(0.5)).to_dict().values()
    }
    assert kinds <= {int, float, str, bool, type(None)}
    assert type(BatchSizes(decode_batch_size=np.int64(4)).decode_batch_size) is int


def test_tuples_are_lists(guarded):
    """Diffusers looks for lists; a tuple of generators went through as one object."""
    pipe = steered(tiny.make_sd())
    call = {"num_inference_steps": 3, "output_type": "pt", "num_particles": 2}
    expected = pipe(PROMPTS, generator=some_generators(4), negative_prompt=["x", "y"], **call)
    tuples = pipe(tuple(PROMPTS), generator=tuple(some_generators(4)), negative_prompt=("x", "y"), **call)
    assert torch.equal(tuples.images, expected.images)


@pytest.mark.parametrize(
    ("search", "name", "others"),
    [
        ("fk", "keep", "search='pruning' and of search='tree'"),
        ("pruning", "final_particles", "search='fk' and of search='fk-gradient'"),
        ("best-of-n", "resampling", "search='fk' and of search='fk-gradient' and of search='particle-metropolis'"),
    ],
)
def test_a_setting_of_another_search_says_of_which(guarded, search, name, others):
    with pytest.raises(TypeError, match=rf"'{name}' is an argument neither of .* It is a setting of {others}\."):
        guarded("a red circle", search=search, **{name: 1})


def test_searches_that_cannot_be_imported_do_not_hide_the_message(guarded, monkeypatch):
    monkeypatch.setitem(BUILT_IN, "broken", "nowhere_at_all:Search")
    with pytest.raises(TypeError, match=r"It is a setting of search='pruning'"):
        guarded("a red circle", keep=(1,))


@pytest.mark.parametrize(
    ("prompt", "one", "other"),
    [(PROMPTS, "x", ["x", "x"]), ("a red circle", ["x"], "x"), (["a red circle"], "x", ["x"])],
)
def test_negative_texts_take_the_form_of_the_prompt(prompt, one, other):
    """Stable Diffusion refuses a text beside a list of prompts, in the middle of its call."""
    pipe = steered(tiny.make_sd())
    call = {"num_inference_steps": 2, "num_particles": 2, "num_resamples": 0, "output_type": "pt"}
    expected = pipe(prompt, negative_prompt=other, generator=generator(), **call).images
    assert torch.equal(pipe(prompt, negative_prompt=one, generator=generator(), **call).images, expected)


def test_one_second_prompt_stands_for_all():
    pipe = steered(tiny.make_sdxl())
    call = {"num_inference_steps": 2, "num_particles": 2, "num_resamples": 0, "output_type": "pt"}
    expected = pipe(PROMPTS, prompt_2=["x", "x"], generator=generator(), **call).images
    assert torch.equal(pipe(PROMPTS, prompt_2="x", generator=generator(), **call).images, expected)


@pytest.mark.parametrize(
    "make", [tiny.make_sd, tiny.make_sdxl, tiny.make_sd3, tiny.make_flux, tiny.make_pixart, tiny.make_if]
)
def test_defaults_of_the_families_pass(make):
    pipe = make()
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(pipe.__call__).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD and name not in ("prompt", "num_images_per_prompt")
    }
    assert check_arguments(pipe, defaults) == defaults


def one_parameter(images):
    return images.mean(dim=(1, 2, 3))


def three_parameters(images, prompts, model):
    return images.mean(dim=(1, 2, 3))


class OneInput(torch.nn.Module):
    def forward(self, images):
        return images.mean(dim=(1, 2, 3))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steering": {"num_particles": 4}}, TypeError, r"write FKSteeringConfig\(\*\*"),
        ({"batch_sizes": {"decode_batch_size": 4}}, TypeError, r"write BatchSizes\(\*\*"),
        ({"batch_sizes": 4}, TypeError, "batch_sizes should be of class BatchSizes"),
        ({"spread": "yes"}, TypeError, "spread should be of class bool"),
        ({"solver": 5}, TypeError, "solver should be"),
        ({"preview": 5}, TypeError, "preview should be"),
        ({"reward_device": "gpu"}, ValueError, "reward_device should be a device"),
        ({"reward": BrightnessReward}, TypeError, "the class BrightnessReward; pass an instance"),
        ({"reward": None}, TypeError, "Expected the name of a reward"),
        ({"reward": one_parameter}, TypeError, r"one_parameter\(images\) .* too many positional"),
        ({"reward": three_parameters}, TypeError, "three_parameters.* missing a required argument: 'model'"),
        ({"reward": lambda: 0}, TypeError, "too many positional"),
        ({"reward": OneInput()}, TypeError, r"OneInput\(images\)"),
    ],
)
def test_wrong_options_of_the_constructor(options, error, message):
    with pytest.raises(error, match=message):
        FKSteeringPipeline(tiny.make_sd(), **{"reward": BrightnessReward(), **options})


@pytest.mark.parametrize(
    "fn", [lambda images, prompts, extra=1: 0, lambda *args: 0, max, lambda images, prompts, **rest: 0]
)
def test_functions_that_can_be_called_with_two_are_taken(fn):
    FKSteeringPipeline(tiny.make_sd(), reward=fn)


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (
            lambda images: images.mean(dim=(1, 2, 3)).numpy(),
            TypeError,
            r"got ndarray: return torch.as_tensor\(scores\)",
        ),
        (lambda images: [0.5] * len(images), TypeError, r"got list: return torch.as_tensor"),
        (lambda images: 0.5, TypeError, "got float"),
        (lambda images: None, TypeError, "got NoneType"),
        (
            lambda images: torch.ones(len(images), dtype=torch.int64),
            TypeError,
            r"got torch.int64: return scores.float\(\)",
        ),
        (lambda images: torch.ones(len(images), 1), ValueError, r"got \(4, 1\): return scores.squeeze\(1\)"),
        (lambda images: torch.tensor(1.0), ValueError, r"shape \(4,\), one score per image, got \(\)"),
    ],
)
def test_a_wrong_result_of_a_reward_is_named(result, error, message):
    with pytest.raises(error, match=message):
        steered(tiny.make_sd(), reward=lambda images, prompts: result(images))("x", num_inference_steps=STEPS)
