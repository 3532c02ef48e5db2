"""What FKSteeringPipeline shows of the wrapped pipeline: attributes, copies, and errors for from_pipe."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)

from fk_reward import BatchSizes, FKSteeringConfig, FKSteeringPipeline
from fk_reward.pipelines.batching import batch_size_fields
from fk_reward.search.feynman_kac import config_fields
from tests import tiny
from tests.pipelines.calls import BrightnessReward, generator, steered


@pytest.fixture(scope="module")
def pipe():
    return steered(tiny.make_sd())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        *((field, rf"pipe\.steering = dataclasses\.replace\(pipe\.steering, {field}=") for field in config_fields()),
        *((field, rf"replace\(pipe\.batch_sizes, {field}=") for field in batch_size_fields()),
        ("num_particels", "has an attribute 'num_particels'. Did you mean 'num_particles'"),
        ("schedular", "Did you mean 'scheduler'"),
        ("guidance_scale", r"an argument of the call: pipe\(prompt, guidance_scale="),
        ("num_inference_steps", r"an argument of the call: pipe\(prompt, num_inference_steps="),
        ("output_type", r"an argument of the call"),
        ("my_own_mark", r"write pipe\.pipe\.my_own_mark ="),
    ],
)
def test_what_cannot_be_written_says_what_to_write(pipe, name, message):
    before = dict(vars(pipe)), dict(vars(pipe.pipe))
    with pytest.raises(AttributeError, match=message):
        setattr(pipe, name, 16)
    assert (dict(vars(pipe)), dict(vars(pipe.pipe))) == before


@pytest.mark.parametrize("field", [*config_fields(), *batch_size_fields()])
def test_a_setting_cannot_be_read_as_an_attribute(pipe, field):
    with pytest.raises(AttributeError, match=rf"pipe\.(steering|batch_sizes)\.{field} reads it"):
        getattr(pipe, field)


def test_what_the_message_says_works():
    pipe = steered(tiny.make_sd())
    pipe.steering = replace(pipe.steering, num_particles=2)
    pipe.batch_sizes = replace(pipe.batch_sizes, decode_batch_size=1)
    assert pipe("x", num_inference_steps=3).trace.steps[-1].num_particles == 2
    assert pipe("x", num_inference_steps=3, num_particles=3).trace.steps[-1].num_particles == 3
    assert pipe.batch_sizes == BatchSizes(decode_batch_size=1)


def test_existing_attributes_are_written_through():
    pipe = steered(tiny.make_sd())
    for name in ("unet", "image_encoder"):
        mark = torch.nn.Linear(1, 1)
        setattr(pipe, name, mark)
        assert getattr(pipe.pipe, name) is mark
    pipe.pipe.my_own_mark = 1
    pipe.my_own_mark = 2
    assert pipe.pipe.my_own_mark == 2
    del pipe.my_own_mark
    assert not hasattr(pipe.pipe, "my_own_mark")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steering", {"num_particles": 4}, r"write FKSteeringConfig\(\*\*"),
        ("steering", None, "steering should be of class FKSteeringConfig, got NoneType"),
        ("steering", FKSteeringConfig, "got the class FKSteeringConfig"),
        ("batch_sizes", {"decode_batch_size": 4}, r"write BatchSizes\(\*\*"),
        ("batch_sizes", 4, "batch_sizes should be of class BatchSizes, got int"),
        ("spread", 1, "spread should be of class bool, got int"),
        ("scheduler", DDIMScheduler, "got the class DDIMScheduler"),
        ("scheduler", "ddim", "should be a Diffusers scheduler, got 'ddim'"),
        ("scheduler", None, "should be a Diffusers scheduler, got None"),
        ("pipe", StableDiffusionPipeline, r"pass StableDiffusionPipeline\.from_pretrained"),
        ("pipe", "sdxl", r"got str\. FKSteeringPipeline\.from_pretrained loads one"),
        ("reward", BrightnessReward, "Got the class BrightnessReward; pass an instance"),
    ],
)
def test_own_attributes_of_the_wrong_kind_are_refused(pipe, name, value, message):
    before = dict(vars(pipe))
    with pytest.raises(TypeError, match=message):
        setattr(pipe, name, value)
    assert dict(vars(pipe)) == before


def test_wrapping_twice_is_refused(pipe):
    with pytest.raises(TypeError, match=r"wrapped already: pass its \.pipe"):
        FKSteeringPipeline(pipe, reward=BrightnessReward())


def test_dir_lists_both(pipe):
    assert {"steering", "reward", "pipe", "unet", "load_lora_weights", "enable_model_cpu_offload"} <= set(dir(pipe))
    assert dir(pipe) == sorted(set(dir(pipe)))


@pytest.mark.parametrize(
    "kind",
    [
        StableDiffusionImg2ImgPipeline,
        StableDiffusionPipeline,
        DiffusionPipeline,
        AutoPipelineForText2Image,
        AutoPipelineForImage2Image,
        AutoPipelineForInpainting,
    ],
)
def test_from_pipe_says_what_to_pass(pipe, kind):
    with pytest.raises(TypeError, match=r"pass pipe\.pipe, which it wraps"):
        kind.from_pipe(pipe)
    assert pipe.config is pipe.pipe.config


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])  # noqa: S301
def test_copies_are_steered_pipelines(duplicate):
    pipe = steered(tiny.make_sd())
    pipe.solver = "ddim-50"
    again = duplicate(pipe)
    assert type(again) is FKSteeringPipeline
    assert again.steering == pipe.steering
    assert again.solver is not None
    call = {"num_inference_steps": 3, "output_type": "pt"}
    expected = pipe("a red circle", generator=generator(), **call).images
    assert torch.equal(again("a red circle", generator=generator(), **call).images, expected)


def test_a_deep_copy_shares_nothing():
    pipe = steered(tiny.make_sd())
    again = copy.deepcopy(pipe)
    again.solver = "lcm-4"
    again.steering = replace(again.steering, num_particles=2)
    assert pipe.solver is None
    assert isinstance(pipe.scheduler, DDIMScheduler)
    assert pipe.steering.num_particles == 4
    assert again.unet is not pipe.unet


def test_repr_names_scheduler_and_what_it_replaced(tmp_path):
    pipe = steered(tiny.make_sd())
    assert "scheduler=DDIMScheduler, reward='brightness'" in repr(pipe)
    pipe.solver = "lcm-4"
    assert "scheduler=LCMScheduler (in place of DDIMScheduler)" in repr(pipe)
