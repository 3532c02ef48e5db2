"""Compiled blocks and channels-last convolutions: really used, the same images, bounded compilations, undone."""

from __future__ import annotations

import shutil

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from peft import LoraConfig
from torch import nn

from fk_reward.pipelines import Compilation, speed_up
from fk_reward.pipelines.acceleration import repeated_blocks
from fk_reward.pipelines.hooks import main_denoiser
from fk_reward.rewards import CallableReward, load_reward
from tests import tiny
from tests.pipelines.calls import BrightnessReward, generator, steered
from tests.pipelines.test_families import make
from tests.tiny.tiny_autoencoder import make_tiny_autoencoder

PROMPT = "a red circle"
TOLERANCE = 1e-5
"""Of pixels in [0, 1] and of rewards: what another order of float32 sums changes."""
ARGUMENTS = {"num_inference_steps": 2, "num_resamples": 1, "ess_threshold": 1.0, "output_type": "pt"}
MOST_GRAPHS = 3
"""For each kind of block: the first batch size, any other, and a single row."""


@pytest.fixture(autouse=True)
def _no_compiled_code_of_other_tests():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class CountingBackend:
    """Runs what it is given as it is, and counts what it is given and how often that runs."""

    def __init__(self):
        self.compiled, self.called = 0, 0

    def __call__(self, graph, inputs):
        self.compiled += 1

        def run(*args):
            self.called += 1
            return graph.forward(*args)

        return run

    def clear(self):
        self.compiled, self.called = 0, 0


def call(pipe, num_particles=4, **arguments):
    settings = ARGUMENTS | {"num_particles": num_particles, "num_images_per_prompt": num_particles} | arguments
    return pipe(PROMPT, generator=generator(), **settings)


def assert_same(out, expected):
    torch.testing.assert_close(out.images, expected.images, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(out.rewards, expected.rewards, rtol=0, atol=TOLERANCE)


def compiled(pipe, **settings):
    """The pipeline compiled by a backend that counts, which is returned."""
    backend = CountingBackend()
    speed_up(pipe, compile=Compilation(backend=backend, **settings))
    backend.clear()  # of the trial
    return backend


def test_same_images_by_compiled_code_that_is_compiled_a_few_times_for_all_batch_sizes():
    pipe = steered(tiny.make_sd(), load_reward("shapes-clipscore"))
    plain = {num_particles: call(pipe, num_particles) for num_particles in (4, 2, 3)}
    unet, names = pipe.unet, list(pipe.unet.state_dict())
    backend = compiled(pipe)
    for num_particles, expected in plain.items():
        backend.called = 0
        assert_same(call(pipe, num_particles), expected)
        assert backend.called > 0
    call(pipe, 5, particle_batch_size=2)
    blocks = [*repeated_blocks(unet), *repeated_blocks(pipe.reward.model.vision_model)]
    kinds = {type(block) for block in blocks}
    assert len(kinds) < backend.compiled <= MOST_GRAPHS * len(kinds)
    assert pipe.unet is unet
    assert list(pipe.unet.state_dict()) == names
    speed_up(pipe, compile=False)
    backend.clear()
    assert torch.equal(call(pipe).images, plain[4].images)
    assert backend.called == 0


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="needs a C++ compiler")
def test_the_default_backend_draws_the_same():
    pipe = steered(tiny.make_sd(), load_reward("shapes-clipscore"))
    plain = call(pipe)
    speed_up(pipe, compile=True)
    assert_same(call(pipe), plain)


def test_a_shrinking_population_is_compiled_as_rarely_and_draws_the_same():
    settings = {"num_particles": 8, "final_particles": 2, "num_images_per_prompt": 2, "num_resamples": 3}
    settings |= {"num_inference_steps": 6, "resample_start": 0.2, "resample_stop": 0.8}
    pipe = steered(tiny.make_sd(), load_reward("shapes-clipscore"))
    plain = call(pipe, **settings)
    backend = compiled(pipe)
    out = call(pipe, **settings)
    assert len({step.num_particles for step in out.trace.steps}) == 4
    assert_same(out, plain)
    blocks = [*repeated_blocks(pipe.unet), *repeated_blocks(pipe.reward.model.vision_model)]
    assert 0 < backend.compiled <= MOST_GRAPHS * len({type(block) for block in blocks})


def test_saboteur_sizes_that_are_compiled_one_by_one_are_noticed():
    pipe = steered(tiny.make_sd())
    backend = compiled(pipe, dynamic=False)
    for num_particles in (2, 3, 4, 5):
        call(pipe, num_particles, num_inference_steps=1, num_resamples=0)
    assert backend.compiled > MOST_GRAPHS


def test_denoiser_and_reward_are_both_compiled():
    pipe = steered(tiny.make_sd(), load_reward("shapes-clipscore"))
    backend = compiled(pipe)
    images = torch.rand(2, 3, 64, 64, generator=generator())
    with torch.no_grad():
        pipe.reward(images, PROMPT)
        of_reward = backend.called
        assert of_reward == len(repeated_blocks(pipe.reward.model.vision_model))
        pipe.pipe(PROMPT, num_inference_steps=1)
    assert backend.called > of_reward


def test_a_whole_denoiser_in_one_piece():
    pipe = steered(tiny.make_sd())
    plain = call(pipe)
    backend = compiled(pipe, whole_denoiser=True)
    out = call(pipe, particle_batch_size=2)
    assert_same(out, plain)
    assert backend.called == 2 * out.trace.num_steps


def test_compiling_again_compiles_nothing_anew():
    pipe = steered(tiny.make_sd())
    backend = compiled(pipe)
    call(pipe)
    assert backend.compiled > 0
    speed_up(pipe, compile=False)
    speed_up(pipe, compile=Compilation(backend=backend))
    backend.clear()
    call(pipe)
    assert backend.called > 0
    assert backend.compiled == 0


def test_lora_that_comes_later_is_seen():
    pipe = steered(tiny.make_sd())
    compiled(pipe)
    plain = call(pipe)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    with_lora = call(pipe)
    assert not torch.allclose(with_lora.images, plain.images, atol=100 * TOLERANCE)
    speed_up(pipe, compile=False)
    assert_same(with_lora, call(pipe))


@pytest.mark.parametrize("family", ["sd", "sd3", "pixart", "flux"])
def test_blocks_of_each_family(family):
    names = {type(block).__name__ for block in repeated_blocks(main_denoiser(make(family)))}
    assert names
    assert all(name.endswith("TransformerBlock") for name in names)


def test_parts_of_a_composition_give_their_towers_without_text():
    first, second = load_reward("shapes-clipscore"), load_reward("shapes-clipscore")
    towers = (0.5 * first + second).modules_to_compile()
    assert towers == [first.model.vision_model, second.model.vision_model]
    assert BrightnessReward().modules_to_compile() == []


def test_a_reward_without_blocks_is_told(caplog):
    pipe = steered(tiny.make_sd())
    pipe.reward = CallableReward(nn.Bilinear(3, 3, 1), "bilinear")
    speed_up(pipe, compile=Compilation(backend="eager"))
    assert "has no repeated blocks and is not compiled" in caplog.text


def test_a_compiler_that_is_missing_is_told_at_once_with_what_to_do():
    def broken(graph, inputs):
        raise RuntimeError("g++ is not here")

    pipe = steered(tiny.make_sd())
    with pytest.raises(RuntimeError, match=r"(?s)g\+\+ is not here.*needs a C\+\+ compiler.*leave compile out"):
        speed_up(pipe, compile=Compilation(backend=broken))
    assert all(module._compiled_call_impl is None for module in pipe.unet.modules())
    with pytest.raises(RuntimeError, match="does not work with backend 'inductr'"):
        speed_up(pipe, compile=Compilation(backend="inductr"))


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune", "fast"])
def test_modes_with_cuda_graphs_are_refused(mode):
    with pytest.raises(ValueError, match="mode should be one of 'default', 'max-autotune-no-cudagraphs'"):
        Compilation(mode=mode)


def test_weights_that_come_and_go_are_refused():
    pipe, settings = steered(tiny.make_sd()), {"backend": "eager"}
    add_hook_to_module(pipe.unet, ModelHook())
    speed_up(pipe, compile=Compilation(**settings))  # the model moves as a whole, outside its blocks
    with pytest.raises(ValueError, match="come and go"):
        speed_up(pipe, compile=Compilation(whole_denoiser=True, **settings))
    add_hook_to_module(repeated_blocks(pipe.unet)[0].attn1.to_q, ModelHook())
    with pytest.raises(ValueError, match="come and go"):
        speed_up(pipe, compile=Compilation(**settings))


def test_a_pipeline_without_blocks_is_told():
    pipe = steered(tiny.make_sd())
    pipe.unet = nn.Conv2d(4, 4, 1)
    with pytest.raises(ValueError, match="Conv2d has no repeated blocks"):
        speed_up(pipe, compile=True)
    pipe.unet = None
    with pytest.raises(ValueError, match="has no unet and no transformer"):
        speed_up(pipe, compile=True)


def formats(pipe):
    """Whether what a convolution in the middle of each network gives is channels-last, in one call."""
    seen = {}

    def watch(name):
        def look(module, args, out):
            seen[name] = out.is_contiguous(memory_format=torch.channels_last)

        return look

    places = {"unet": pipe.unet.mid_block.resnets[0].conv1, "vae": pipe.vae.decoder.mid_block.resnets[0].conv1}
    hooks = [module.register_forward_hook(watch(name)) for name, module in places.items()]
    out = call(pipe)
    for hook in hooks:
        hook.remove()
    return seen, out


def test_channels_last_is_in_effect_with_the_same_images_and_can_be_taken_back():
    pipe = steered(tiny.make_sd())
    plain_formats, plain = formats(pipe)
    assert plain_formats == {"unet": False, "vae": False}
    speed_up(pipe, channels_last=True)
    last_formats, last = formats(pipe)
    assert last_formats == {"unet": True, "vae": True}
    assert_same(last, plain)
    pipe.to(torch.float64).to(torch.float32)
    assert formats(pipe)[0] == last_formats, "another precision keeps the layout"
    speed_up(pipe, channels_last=False)
    back_formats, back = formats(pipe)
    assert back_formats == plain_formats
    assert torch.equal(back.images, plain.images)


def test_channels_last_reaches_the_preview():
    pipe = steered(tiny.make_sd())
    pipe.preview = make_tiny_autoencoder()
    speed_up(pipe, channels_last=True)
    weights = [weight for weight in pipe.preview.parameters() if weight.ndim == 4 and min(weight.shape[1:]) > 1]
    assert weights
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def test_weights_that_are_not_in_memory_have_no_layout():
    pipe = steered(tiny.make_sd())
    pipe.vae.to("meta")
    with pytest.raises(ValueError, match="before enable_sequential_cpu_offload"):
        speed_up(pipe, channels_last=True)


def test_nothing_asked_nothing_changed():
    pipe = steered(tiny.make_sd())
    backend = compiled(pipe)
    speed_up(pipe)
    speed_up(pipe, channels_last=True)
    call(pipe)
    assert backend.called > 0
