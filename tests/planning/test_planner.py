"""Plans of the shapes world, of local folders and of calls that are really made; the command."""

from __future__ import annotations

import functools
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fk_reward import FKSteeringConfig, FKSteeringPipeline
from fk_reward.models import ASSETS
from fk_reward.pipelines import LatentDecoder, steered_run
from fk_reward.planning import plan, planner
from fk_reward.planning.costs import PHASES, PROMPT
from fk_reward.planning.memory import CUDA_CONTEXT_BYTES, GRADIENTS
from fk_reward.planning.meta_device import LiveBytes, flop_counter
from fk_reward.search import SEARCHES, ChosenByCall, load_search
from fk_reward.search.registry import search_name, settings_of
from tests.command_line import run_command_line
from tests.tiny.tiny_autoencoder import make_tiny_autoencoder

MB = 10**6
DOC = Path(__file__).parents[2] / "docs" / "performance.md"


@pytest.fixture(scope="module")
def shapes():
    return plan("shapes-sd", reward="shapes-clipscore", dtype="float32", tflops=2.0, memory="1GB")


def test_a_small_model_fits_all_at_once(shapes):
    assert shapes.fits
    assert shapes.settings.keywords(4) == {}
    assert "Nothing special" in shapes.advice[0]
    assert shapes.needed <= shapes.memory
    assert shapes.peak < 40 * MB


def test_weights_are_those_of_the_files(shapes):
    files = {"text": "text_encoder/model", "denoiser": "unet/diffusion_pytorch_model"}
    for part, name in files.items():
        numbers = sum(weight.numel() for weight in load_file(ASSETS / "shapes-sd" / f"{name}.safetensors").values())
        assert shapes.weights[part] == pytest.approx(4 * numbers, abs=4096)


def test_seconds_are_operations_over_operations_a_second(shapes):
    assert shapes.num_scorings == 5
    assert shapes.seconds == pytest.approx(sum(shapes.flops.values()) / 2e12)
    assert plan("shapes-sd", reward="shapes-verifier", num_particles=1).num_scorings == 1


def test_less_memory_means_smaller_batches_then_nothing(shapes):
    def planned(extra):
        return plan("shapes-sd", reward="shapes-clipscore", dtype="float32", memory=CUDA_CONTEXT_BYTES + extra)

    weights = sum(shapes.weights.values())
    batches = planned(weights + 4 * MB)
    assert batches.fits
    assert batches.settings.particle_batch_size < 4
    assert not batches.settings.model_offload
    assert "batch_size=" in batches.advice[0]
    nothing = planned(MB)
    assert not nothing.fits
    assert "does not fit" in nothing.advice[0]
    assert any("float16" in sentence for sentence in nothing.advice)


def test_a_folder(tiny_sdxl, tmp_path):
    tiny_sdxl().save_pretrained(tmp_path)
    made = plan(str(tmp_path), reward="shapes-verifier", num_particles=2, dtype="float32")
    numbers = sum(weight.numel() for weight in tiny_sdxl().unet.parameters())
    assert made.weights["denoiser"] == 4 * numbers
    assert made.weights["reward"] == 0


def test_parts_of_a_composition_add_up(shapes):
    made = plan("shapes-sd", reward="0.5*shapes-clipscore + 0.5*shapes-verifier", dtype="float32")
    assert made.weights == shapes.weights
    assert made.phases[3].activations >= shapes.phases[3].activations


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward": "llava-reward"}, "size of reward"),
        ({"reward": "vlm-judge"}, "answers in words"),
        ({"memory": "much"}, "24GB"),
        ({"tflops": "fast"}, "tflops"),
        ({"num_particles": 0}, "num_particles"),
        ({"final_particles": 9}, "final_particles"),
        ({"preview": "taesdxl"}, "would make noise"),
        ({"preview": "taesdlx"}, "taesdxl"),
        ({"solver": "lcm-5"}, "lcm-4"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ValueError, match=message):
        plan("shapes-sd", **{"reward": "shapes-verifier", **options})


@pytest.mark.parametrize(("family", "dtype"), [("tiny_sd", "torch.float16"), ("tiny_sdxl", "torch.float32")])
def test_an_autoencoder_counts_as_float32_where_the_pipeline_widens_it(family, dtype, request):
    pipe = request.getfixturevalue(family)().to(torch.float16)
    assert pipe.vae.config.force_upcast
    assert planner._decoder_dtype(pipe) == dtype


def test_a_folder_that_was_saved_in_float32(tiny_sdxl, tmp_path):
    tiny_sdxl().save_pretrained(tmp_path)
    made = plan(str(tmp_path), reward="shapes-verifier", dtype="float16", num_particles=1, steps=2)
    assert set(made.flops) == {"float16", "float32"}  # the autoencoder is widened


def test_a_preview_that_would_save_is_named(shapes):
    previewed = plan("shapes-sd", reward="shapes-clipscore", dtype="float32", tflops=2.0, preview="auto")
    saved = shapes.seconds - previewed.seconds
    assert saved > 0.01 * shapes.seconds
    assert f"about {saved:.2g} of {shapes.seconds:.3g} s" in shapes.advice[-1]
    assert not any("preview" in sentence for sentence in previewed.advice)
    assert shapes.weights["preview"] == 0 < previewed.weights["preview"]


def test_a_preview_lowers_the_peak_of_a_shrinking_population():
    options = {"reward": "shapes-verifier", "dtype": "float32", "num_particles": 8, "final_particles": 1, "steps": 4}
    whole, previewed = (plan("shapes-sd", **options, preview=preview) for preview in (None, "vae/2"))
    assert previewed.phases[-2].phase == "decode"
    assert previewed.phases[-2].batch_size == 1
    assert previewed.peak < whole.peak


def test_a_solver_brings_its_steps_and_guidance():
    made = plan("shapes-sd", reward="shapes-verifier", solver="lcm-4", guidance_scale=None)
    assert (made.steps, made.image.guidance_scale) == (4, 1.0)
    typed = plan("shapes-sd", reward="shapes-verifier", solver="lcm-4", guidance_scale=2.0, steps=3)
    assert (typed.steps, typed.image.guidance_scale) == (3, 2.0)


def test_settings_of_the_sampler():
    steering = FKSteeringConfig(num_particles=2, stop_reward=0.9, resample_start=0.5, num_resamples=3)
    made = plan("shapes-sd", reward="shapes-verifier", search=steering, steps=10)
    assert made.search == steering
    assert made.population.scorings == (2, 2, 2)
    assert "the most that a call takes" in made.advice[-1]
    assert json.loads(json.dumps(made.to_dict()))["config"]["resample_start"] == 0.5


@pytest.mark.parametrize("name", list(SEARCHES))
def test_every_search_can_be_planned(name):
    reward = "shapes-clipscore" if name == "fk-gradient" else "shapes-verifier"  # the verifier has no gradient
    made = plan("shapes-sd", reward=reward, search=name, dtype="float32", steps=10)
    config = load_search(name)
    config = config.for_call(1) if isinstance(config, ChosenByCall) else config
    assert made.population == config.population(1).forecast(10)
    assert json.loads(json.dumps(made.to_dict()))["config"] == json.loads(json.dumps(settings_of(config)))


def test_a_population_that_grows_is_planned_for_its_most_particles():
    options = {"reward": "shapes-verifier", "dtype": "float32", "steps": 30}  # enough to outweigh what is decoded
    grown = plan("shapes-sd", search="beam", num_particles=2, num_proposals=3, **options)
    whole = plan("shapes-sd", search="best-of-n", num_particles=6, **options)
    assert (grown.num_particles, grown.max_particles) == (2, 6)
    assert grown.peak == whole.peak
    assert grown.flops["float32"] < whole.flops["float32"]


def test_a_setting_of_another_search_is_refused():
    with pytest.raises(TypeError, match="'potential' is no setting of Pruning"):
        plan("shapes-sd", reward="shapes-verifier", search="pruning", potential="max")


def test_a_preview_without_scoring_steps_does_nothing():
    options = {"reward": "shapes-verifier", "num_resamples": 0}
    assert plan("shapes-sd", preview="vae/2", **options).phases == plan("shapes-sd", **options).phases


def test_a_preview_of_a_folder(tiny_sd, tmp_path):
    tiny_sd().save_pretrained(tmp_path / "sd")
    autoencoder = make_tiny_autoencoder()
    autoencoder.save_pretrained(tmp_path / "mine")
    made = plan(
        str(tmp_path / "sd"), reward="shapes-verifier", dtype="float32", preview=str(tmp_path / "mine"), steps=4
    )
    assert made.weights["preview"] == 4 * sum(weight.numel() for weight in autoencoder.parameters())


@pytest.mark.slow
def test_sdxl_with_llava_reward():
    made = plan("sdxl", reward="llava-reward-alignment", num_particles=4, memory="24GB")
    assert made.weights["denoiser"] == pytest.approx(2 * 2_567_463_684, rel=1e-3)
    assert made.weights["decoder"] == pytest.approx(2 * 83_653_863, rel=1e-3)
    assert made.settings.keywords(4) == {"decode_batch_size": 2}
    assert f"Needed on the GPU: {made.needed / 1e9:.1f} GB of 24.0 GB" in DOC.read_text(encoding="utf-8")


def run(*arguments, code=0):
    result = run_command_line("plan", "--model", "shapes-sd", "--reward", "shapes-verifier", *arguments)
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.output


def test_the_command_prints_a_table_and_sentences():
    text = run("--memory", "1GB", "--tflops", "1")
    assert "denoise" in text
    assert "Peak of PyTorch's allocator" in text
    assert "an estimate" in text


def test_the_command_writes_json():
    content = json.loads(run("--json", "--memory", "1GB"))
    assert content["fits"] is True
    assert content["settings"]["particle_batch_size"] == 4
    assert content["peak"] == max(phase["peak"] for phase in content["phases"])
    assert content["image"]["guidance_scale"] == 3.0


def test_the_command_takes_preview_solver_and_a_shrinking_population():
    options = ["--preview", "vae/2", "--solver", "lcm-8", "--final-particles", "2", "--num-resamples", "1", "-k", "8"]
    content = json.loads(run("--json", *options))
    assert (content["preview"], content["solver"], content["steps"]) == ("vae/2", "lcm-8", 8)
    assert content["image"]["guidance_scale"] == 1.0
    course = {"steps": [8, 8, 8, 8, *[2] * 4], "scorings": [8], "finished": 2, "extra_steps": 0, "guided": []}
    assert content["population"] == course
    assert [phase["phase"] for phase in content["phases"]] == [one for one in PHASES if one not in GRADIENTS]
    text = " ".join(run(*options).split())
    assert "K = 8 to 2, 8 steps of lcm-8, preview vae/2" in text
    assert "8 previews and 2 finished images decoded and scored" in text


def test_the_command_fails_where_nothing_fits():
    assert "does not fit" in run("--memory", "10MB", code=1)


def test_mistakes_on_the_command_line():
    assert "--dtype" in run("--dtype", "int8", code=2)


def test_a_check_needs_a_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "GPU" in run("--check", code=2)


def test_rates_are_measured_on_a_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(planner, "measured_tflops", lambda device, dtype: 4.0)
    assert planner._rates(None, {"float16": 10, "float32": 0}) == {"float16": 4.0}


MODEL, REWARD = "shapes-sd", "shapes-clipscore"
FUNNEL = {"num_particles": 8, "final_particles": 2, "num_resamples": 2}
GUIDED = {"search": "fk-gradient", "num_particles": 4, "num_resamples": 2, "gradient_stop": 0.6}
CALLS = {
    "plain": {"num_particles": 8, "num_resamples": 2, "steps": 5},
    "tiny preview": {"num_particles": 8, "num_resamples": 2, "steps": 5, "preview": "shapes-preview"},
    "reduced preview": {"num_particles": 8, "num_resamples": 2, "steps": 5, "preview": "vae/2"},
    "funnel": {**FUNNEL, "steps": 5},
    "funnel with preview": {**FUNNEL, "steps": 5, "preview": "auto"},
    "more scoring steps": {"num_particles": 8, "num_resamples": 4, "resample_start": 0.0, "steps": 5},
    "guided": {**GUIDED, "steps": 5},
    "guided with preview": {**GUIDED, "steps": 5, "preview": "shapes-preview"},
    "solver": {"num_particles": 2, "solver": "sde-dpmsolver++-20", "steps": 6},
    "solver without guidance": {"num_particles": 8, "solver": "lcm-4", "num_resamples": 2},
}


@dataclass(frozen=True)
class Taken:
    """What a call took: bytes above the weights at its peak and in its first decoding, operations, and counts."""

    peak: int
    first_decoding: int
    flops: int
    counts: tuple[int, int, int, int]


def guidance(name):
    """Few-step solvers bring their own guidance scale, which turns guidance off."""
    return {} if CALLS[name].get("solver") == "lcm-4" else {"guidance_scale": 3.0}


@functools.cache
def plan_of(name):
    options = CALLS[name]
    return plan(MODEL, reward=REWARD, dtype="float32", **guidance(name), **options)


@functools.cache
def real_call(name):
    """The call, with thumbnails of a single pixel: they are never on the GPU."""
    options = dict(CALLS[name])
    names = {"steps": "num_inference_steps"}
    settings = {key: options.pop(key) for key in ("preview", "solver") if key in options}
    pipe = FKSteeringPipeline.from_pretrained(MODEL, reward=REWARD, **settings)
    pipe.set_progress_bar_config(disable=True)
    arguments = {names.get(key, key): value for key, value in options.items()}
    decode, decodings = LatentDecoder.__call__, []
    with pytest.MonkeyPatch.context() as patch, flop_counter() as counter, LiveBytes() as tracker:

        def watched(decoder, latents):
            before = tracker.peak
            tracker.restart()
            images = decode(decoder, latents)
            if not latents.requires_grad:  # those of guided steps wait for their backward pass
                decodings.append(tracker.peak)
            tracker.peak = max(before, tracker.peak)
            return images

        patch.setattr(LatentDecoder, "__call__", watched)
        patch.setattr(steered_run, "_THUMBNAIL_SIZE", 1)
        trace = pipe(PROMPT, **guidance(name), **arguments).trace
    counts = (trace.num_model_rows, trace.num_decode_calls, trace.num_reward_calls, trace.num_gradient_calls)
    return Taken(tracker.peak, decodings[0], counter.get_total_flops(), counts)


def check(made, call):
    """That the plan is of this call."""
    rows = 1 if made.solver == "lcm-4" else 2
    forecast = made.population
    scored = forecast.num_scored
    assert call.counts == (rows * sum(forecast.steps), scored, scored, sum(forecast.guided))
    assert sum(made.flops.values()) == pytest.approx(call.flops, rel=1e-3)
    assert made.peak - sum(made.weights.values()) == pytest.approx(call.peak, rel=0.03)
    phases = {phase.phase: phase for phase in made.phases}
    decoding = phases.get("preview", phases["decode"])
    assert decoding.kept + decoding.activations == pytest.approx(call.first_decoding, rel=0.05)


@pytest.mark.parametrize("name", CALLS)
def test_a_real_call_takes_what_the_plan_says(name):
    check(plan_of(name), real_call(name))


@pytest.mark.parametrize(("name", "other"), list(itertools.permutations(CALLS, 2)))
def test_the_plan_of_another_call_is_noticed(name, other):
    with pytest.raises(AssertionError):
        check(plan_of(other), real_call(name))


def test_the_command_plans_another_search():
    options = ["--search", "pruning", "-k", "6", "--keep", "3", "2", "--at", ".4", ".6"]
    assert "pruning, K = 6 to 2" in " ".join(run(*options).split())
    said = " ".join(run(*options, "--potential", "sum", code=2).split())
    assert "Search 'pruning' has no setting --potential; fk, fk-gradient, fk-paper, " in said


def test_a_search_along_the_gradient_is_planned_for():
    options = {"reward": "shapes-clipscore", "num_particles": 2, "steps": 10, "dtype": "float32"}
    plain, guided = (plan("shapes-sd", search=name, **options) for name in ("fk", "fk-gradient"))
    assert (plain.num_scorings, guided.num_scorings) == (5, 11)
    assert guided.to_dict()["population"]["guided"] == (2,) * 6
    assert sum(guided.flops.values()) > 1.5 * sum(plain.flops.values())
    assert guided.peak > 1.5 * plain.peak and "one graph of all particles" in guided.advice[-1]
    least = plan("shapes-sd", search="fk-gradient", memory=2**20, **options).needed
    small = plan("shapes-sd", search="fk-gradient", memory=least - 1, **options)
    assert plan("shapes-sd", search="fk", memory=least - 1, **options).fits and not small.fits
    assert any("gradient needs" in sentence for sentence in small.advice)


def test_a_reward_without_the_gradient_that_is_followed_is_refused_by_the_plan():
    with pytest.raises(ValueError, match="'shapes-verifier' is not differentiable, as its card says"):
        plan("shapes-sd", reward="shapes-clipscore + shapes-verifier", search="fk-gradient", steps=10)


def test_weights_are_not_taken_away_before_the_backward_pass():
    plain, guided = (
        plan("sdxl", reward="llava-reward-alignment", search=name, num_particles=1, memory="1GB", height=64, width=64)
        for name in ("fk", "fk-gradient")
    )
    assert plain.settings.reward_offload and not guided.settings.reward_offload


def test_a_look_ahead_costs_steps_of_the_denoiser():
    options = {"reward": "shapes-clipscore", "search": "pruning", "steps": 10, "dtype": "float32"}
    plain, ahead = (plan("shapes-sd", lookahead=steps, **options) for steps in (1, 3))
    step = sum(plain.flops.values()) - sum(plan("shapes-sd", **(options | {"steps": 9})).flops.values())
    assert ahead.flops["float32"] > plain.flops["float32"] + step
    assert ahead.peak == plain.peak
    cheaper = plan("shapes-sd", lookahead=3, budget=100, **options).num_particles
    assert cheaper < plan("shapes-sd", budget=100, **options).num_particles
    with pytest.raises(ValueError, match="lookahead should be a whole number"):
        plan("shapes-sd", lookahead="far", **options)


@pytest.mark.parametrize(("solver", "chosen"), [("sde-dpmsolver++-20", "tree"), (None, "pruning")])
def test_what_is_recommended_is_planned_as_a_call_has_it(solver, chosen):
    result = plan("shapes-sd", reward="shapes-clipscore", search="recommended", budget=80, solver=solver, steps=20)
    assert search_name(result.search) == chosen
    assert sum(result.population.steps) <= 80


def test_a_budget_sets_the_sizes():
    planned = plan("shapes-sd", reward="shapes-clipscore", search="best-of-n", budget=130, steps=20, dtype="float32")
    assert (planned.num_particles, sum(planned.population.steps)) == (6, 120)
    with pytest.raises(ValueError, match="num_particles=4 says it, too"):
        plan("shapes-sd", reward="shapes-clipscore", search="best-of-n", budget=130, num_particles=4)
