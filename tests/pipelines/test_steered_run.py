"""One steered call: a reward on a device of its own, and rewards that write to what they get."""

from __future__ import annotations

import threading

import pytest
import torch
from diffusers import DDIMScheduler

from fk_reward import FKSteeringConfig, FKSteeringPipeline, Reward, RewardCard, steer
from fk_reward.pipelines.steered_run import worker
from fk_reward.rewards import CallableReward, load_reward
from fk_reward.search import FKPopulation
from tests import tiny
from tests.pipelines.calls import BrightnessReward, generator, steered

PROMPTS = ["a red circle", "two blue squares"]
ARGUMENTS = {"num_particles": 3, "num_images_per_prompt": 3, "num_inference_steps": 3, "output_type": "pt"}
TOLERANCE = 1e-5
PATIENCE = 20.0
"""Seconds that a thread waits for another before the test fails."""


class MovedReward(BrightnessReward):
    """Notes where it is moved, and on which devices it is given images."""

    def __init__(self):
        self.places, self.sizes, self.threads = [], [], set()

    def to(self, device=None, dtype=None):
        self.places.append(str(device))
        return self

    def score(self, images, prompts):
        self.sizes.append((str(images.device), len(images)))
        self.threads.add(threading.current_thread().name)
        return super().score(images, prompts)


def call(pipe, **arguments):
    settings = ARGUMENTS | {"reward_scale": 1e4, "ess_threshold": 1.0} | arguments
    return pipe(PROMPTS, generator=generator(), **settings)


def test_the_reward_stays_where_the_pipeline_does_not():
    reward = MovedReward()
    pipe = FKSteeringPipeline(tiny.make_sd(), reward=reward, reward_device="cpu")
    assert pipe.reward_device == torch.device("cpu")
    pipe.to("meta")
    assert pipe.device == torch.device("meta")
    assert reward.places == ["cpu", "cpu"]
    pipe.reward = other = MovedReward()
    assert other.places == ["cpu"]
    pipe.reward_device = None
    pipe.to("meta")
    assert other.places == ["cpu", "meta"]


def test_without_a_device_of_its_own_the_reward_follows():
    reward = MovedReward()
    FKSteeringPipeline(tiny.make_sd(), reward=reward).to("meta")
    assert reward.places == ["meta"]


def test_from_pretrained_takes_it():
    pipe = FKSteeringPipeline.from_pretrained("shapes-sd", reward="shapes-clipscore", reward_device="cpu")
    assert pipe.reward_device == torch.device("cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cuda:one"])
def test_a_device_that_is_not_there(device):
    pipe = steered(tiny.make_sd(), BrightnessReward())
    with pytest.raises(ValueError, match=f"reward_device should be a device that PyTorch can use here.*'{device}'"):
        pipe.reward_device = device
    assert pipe.reward_device is None


def results(reward, **arguments):
    """Of a pipeline that scores aside, and of one that does not."""
    outs = []
    for device in ("cpu", None):
        pipe = steered(tiny.make_sd(), reward)
        pipe.reward_device = device
        outs.append(call(pipe, **arguments))
    return outs


@pytest.mark.parametrize("sizes", [{}, {"decode_batch_size": 4}, {"decode_batch_size": 4, "reward_batch_size": 3}])
def test_same_images_rewards_ancestors_and_counts(sizes):
    aside, plain = results(0.5 * load_reward("shapes-clipscore") + BrightnessReward(), **sizes)
    torch.testing.assert_close(aside.images, plain.images, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(aside.rewards, plain.rewards, rtol=0, atol=TOLERANCE)
    assert any(step.ancestors is not None for step in plain.trace.steps)
    for mine, other in zip(aside.trace.steps, plain.trace.steps, strict=True):
        assert (mine.ancestors is None) == (other.ancestors is None)
        assert mine.ancestors is None or torch.equal(mine.ancestors, other.ancestors)
        assert torch.equal(mine.thumbnails, other.thumbnails)
        assert mine.reward_parts.keys() == other.reward_parts.keys() != set()
        assert mine.decode_seconds >= 0 <= mine.reward_seconds
    for name in ("num_model_calls", "num_decode_calls", "num_reward_calls"):
        assert getattr(aside.trace, name) == getattr(plain.trace, name)


def test_batches_are_those_of_the_decoder_and_only_with_a_device():
    for device, batches in (("cpu", [4, 2]), (None, [6])):
        reward = MovedReward()
        pipe = steered(tiny.make_sd(), reward)
        pipe.reward_device = device
        call(pipe, num_resamples=1, decode_batch_size=4)
        assert reward.sizes == [("cpu", size) for size in [*batches, 6]], "the finished images come at once"
        assert len(reward.threads) == (1 if device is None else 2)


def overlaps(pipe, patience):
    """Whether the second batch is decoded while the first is scored: its reward waits for just that."""
    second = threading.Event()
    decoded, waited = [], []

    def decode(latents):
        decoded.append(len(latents))
        if len(decoded) == 2:
            second.set()
        return latents[:, :3].sigmoid()

    def score(images, prompts):
        waited.append(second.wait(patience))
        return images.mean(dim=(1, 2, 3))

    pipe.preview, pipe.reward = decode, score
    call(pipe, num_resamples=1, decode_batch_size=3)
    return waited[0] and decoded[:2] == [3, 3]


def test_the_next_batch_is_decoded_while_one_is_scored(monkeypatch):
    pipe = steered(tiny.make_sd())
    pipe.reward_device = "cpu"
    assert overlaps(pipe, PATIENCE)


def test_saboteur_scoring_after_each_decode_is_noticed(monkeypatch):
    def at_once(work, *, in_thread, device_type):
        class Hand:
            def __enter__(self):
                return lambda *args: (lambda result: lambda: result)(work(*args))

            def __exit__(self, *error):
                return None

        return Hand()

    monkeypatch.setattr("fk_reward.pipelines.steered_run.worker", at_once)
    pipe = steered(tiny.make_sd())
    pipe.reward_device = "cpu"
    assert not overlaps(pipe, 0.05)


def test_a_reward_that_compares_gets_all_images_of_a_step():
    class Comparing(MovedReward):
        compares_images = True

    reward = Comparing()
    pipe = steered(tiny.make_sd(), reward)
    pipe.reward_device = "cpu"
    call(pipe, decode_batch_size=2)
    assert {size for _, size in reward.sizes} == {6}


@pytest.mark.parametrize("broken", ["reward", "pixels"])
def test_what_is_not_finite_is_named_by_prompt_and_particle(broken):
    """The fifth of six images: prompt 1, particle 1; the first of the third batch of two."""
    pipe, decoded = steered(tiny.make_sd()), []

    def decode(latents):
        decoded.append(len(latents))
        images = latents[:, :3].sigmoid()
        return images.fill_(torch.nan) if broken == "pixels" and len(decoded) == 3 else images

    def score(images, prompts):
        values = images.mean(dim=(1, 2, 3))
        return values.log().mul(torch.nan) if broken == "reward" and len(decoded_at_score(images)) else values

    seen = []

    def decoded_at_score(images):
        seen.append(len(images))
        return [True] if len(seen) == 3 else []

    pipe.preview, pipe.reward, pipe.reward_device = decode, CallableReward(score, "mean"), "cpu"
    with pytest.raises(ValueError, match="At step .*prompt 1, particle 1"):
        call(pipe, num_resamples=1, decode_batch_size=2)


def test_an_error_of_the_decoder_ends_the_call_and_the_thread():
    pipe = steered(tiny.make_sd())
    pipe.reward_device, calls = "cpu", []

    def decode(latents):
        calls.append(1)
        return latents[:, :3].sigmoid() if len(calls) < 2 else 1 / 0

    pipe.preview = decode
    with pytest.raises(ZeroDivisionError):
        call(pipe, decode_batch_size=2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fk-reward")]


@pytest.mark.parametrize("in_thread", [True, False])
def test_modes_of_the_caller_hold_in_the_thread_of_the_work(in_thread):
    def modes():
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")

    def seen():
        with worker(modes, in_thread=in_thread) as submit:
            return submit()()

    assert seen() == (True, False, False)
    with torch.no_grad():
        assert seen() == (False, False, False)
    with torch.inference_mode():
        assert seen() == modes()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert seen() == (True, False, True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("reward_device", ["cpu", "cuda:0"])
def test_on_a_gpu(reward_device):
    reward = load_reward("shapes-clipscore")
    pipe = steered(tiny.make_sd(), reward)
    pipe.reward_device = reward_device
    pipe.to("cuda")
    assert reward.device == torch.device(reward_device)
    out = pipe(PROMPTS, generator=generator(), decode_batch_size=2, **ARGUMENTS)
    expected = reward.to("cuda")(out.images, [prompt for prompt in PROMPTS for _ in range(3)]).view(2, 3)
    torch.testing.assert_close(out.rewards, expected.cpu(), rtol=1e-3, atol=1e-4)


CALL = {"num_particles": 4, "num_inference_steps": 4, "num_images_per_prompt": 4, "ess_threshold": 1.0}


def plain(images, prompts):
    return (images - 0.5)[:, 0].mean((1, 2))


def writing(images, prompts):
    prompts.clear()
    return images.sub_(0.5)[:, 0].mean((1, 2))


class OwnCall(Reward):
    """Does without the base class's call."""

    card = RewardCard(name="own", summary="own call")

    def score(self, images, prompts):
        raise NotImplementedError

    def __call__(self, images, prompts):
        return writing(images, list(prompts))


REWARDS = {
    "function": lambda: writing,
    "own call": OwnCall,
    "composition": lambda: CallableReward(writing, "a") + 0 * CallableReward(writing, "b"),
}


@pytest.fixture(scope="module", params=["epsilon", "sample"])
def pipe(request):
    return steered(tiny.make_sd(prediction_type=request.param))


def same_images(pipe, first, second, **options):
    out = []
    for reward, preview in (first, second):
        pipe.reward, pipe.preview = reward, preview
        out.append(pipe("a star", generator=generator(), **CALL, **options))
    torch.testing.assert_close(out[0].images, out[1].images, rtol=0, atol=0)
    torch.testing.assert_close(out[0].rewards, out[1].rewards)
    for step, other in zip(out[0].trace.steps, out[1].trace.steps, strict=True):
        assert torch.equal(step.thumbnails, other.thumbnails)
    assert any(step.ancestors is not None for step in out[0].trace.steps)


@pytest.mark.parametrize("make", REWARDS.values(), ids=REWARDS)
def test_a_writing_reward(pipe, make):
    same_images(pipe, (plain, None), (make(), None), output_type="pt", reward_scale=30.0)


def test_a_writing_reward_on_a_device_of_its_own(pipe):
    pipe.reward_device = "cpu"
    same_images(pipe, (plain, None), (writing, None), output_type="pt", reward_scale=30.0, decode_batch_size=2)
    pipe.reward_device = None


@pytest.mark.parametrize("output_type", ["pt", "latent"])
def test_a_writing_preview(pipe, output_type):
    """Where the model predicts the sample, what is shown to the preview may be the model's output itself."""

    def pixels(latents):
        return (latents[:, :3] / 4 + 0.5).clamp(0, 1)

    def writing_pixels(latents):
        return latents.div_(4).add_(0.5).clamp_(0, 1)[:, :3]

    same_images(pipe, (plain, pixels), (plain, writing_pixels), output_type=output_type, reward_scale=30.0)


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon"])
def test_a_writing_score_of_steer(prediction_type):
    def end(score):
        scheduler = DDIMScheduler(clip_sample=False, prediction_type=prediction_type)
        scheduler.set_timesteps(5)
        particle_filter = FKPopulation(FKSteeringConfig(num_particles=4, num_resamples=2, ess_threshold=1.0))
        sample = torch.randn(4, 1, 2, 2, generator=generator(3))
        with steer(scheduler, particle_filter, score):
            for t in scheduler.timesteps:
                sample = scheduler.step(0.5 * sample, t, sample, eta=1.0, generator=generator(int(t))).prev_sample
        return sample

    def mean(x0):
        return x0.mean((1, 2, 3))

    def writing_mean(x0):
        scores = mean(x0)
        x0.zero_()
        return scores

    assert torch.equal(end(mean), end(writing_mean))
