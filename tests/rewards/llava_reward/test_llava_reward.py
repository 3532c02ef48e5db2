"""LlavaReward on all backbones: merged weights, batches, preferences, steering, PIL and the hub."""

from __future__ import annotations

import dataclasses
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import EntryNotFoundError
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import LlavaNextImageProcessorPil, Qwen2VLImageProcessorPil

from fk_reward import FKSteeringPipeline
from fk_reward.rewards import NonFiniteScoreError, load_reward
from fk_reward.rewards.llava_reward import LlavaReward, llava_reward
from fk_reward.rewards.llava_reward.backbones.base import load_backbone
from fk_reward.rewards.llava_reward.checkpoint import load_own_checkpoint
from fk_reward.rewards.llava_reward.loading import read_checkpoint
from tests.command_line import run_command_line
from tests.rewards.llava_reward.backbones.test_phi3_vision import official_crops
from tests.tiny.latent_diffusion import make_sd

DIMENSIONS = ["alignment", "fidelity", "safety"]


def merged_scores(tiny, dimension, images, prompts):
    """The reward by the formula: LoRA added to the weights by hand, attention over all tokens, one image at a time."""
    backbone = load_backbone(tiny.backbone, torch_dtype=torch.float32)
    checkpoint = read_checkpoint(tiny.adapters, backbone=tiny.model_type, dimension=dimension)
    scale = checkpoint.lora_config.lora_alpha / checkpoint.lora_config.r
    for name, module in backbone.language_model.named_modules():
        if f"{name}.lora_A.weight" in checkpoint.lora:
            a, b = (checkpoint.lora[f"{name}.lora_{half}.weight"] for half in "AB")
            module.weight.data += scale * b.float() @ a.float()
    projector = backbone.projector
    projector.load_state_dict(checkpoint.projector)
    return torch.stack([_one(backbone, projector, checkpoint, i, p) for i, p in zip(images, prompts, strict=True)])


def _one(backbone, projector, checkpoint, image, prompt):
    inputs = backbone.prepare([image], [prompt])
    with torch.no_grad():
        visual = backbone.project(backbone.encode_images(inputs), inputs, projector)
        states = backbone.language_model(**backbone.language_arguments(inputs, visual)).last_hidden_state[0]
    head, config = {name: tensor.float() for name, tensor in checkpoint.head.items()}, checkpoint.config
    if config.cross_attention:
        attended = torch.zeros_like(states)
        if config.attends_to == "visual":
            query, key, value = states @ head["skip_ca.W_q.weight"].T, visual, visual
            key, value = (x @ head[f"skip_ca.W_{n}.weight"].T for x, n in ((key, "k"), (value, "v")))
            attended = torch.softmax(query @ key.T / states.shape[1] ** 0.5, dim=-1) @ value
        states = torch.nn.functional.rms_norm(
            states + attended, states.shape[1:], head["skip_ca.norm.weight"], backbone.norm_eps
        )
    return (states[-1] @ head["value_head.weight"].T).squeeze()


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_scores_are_those_of_merged_weights(tiny, dimension, mixed):
    images, prompts = mixed
    scores = tiny.load(dimension)(images, prompts)
    assert_close(scores, merged_scores(tiny, dimension, images, prompts), rtol=1e-4, atol=1e-4)
    assert scores.std() > 1e-2  # otherwise nothing was compared


def test_a_swapped_adapter_is_noticed(tiny, mixed):
    images, prompts = mixed
    expected = merged_scores(tiny, "alignment", images, prompts)
    with pytest.raises(AssertionError):
        assert_close(tiny.load("safety")(images, prompts), expected, rtol=1e-4, atol=1e-4)


def test_a_shuffled_prompt_is_noticed(tiny, mixed):
    images, prompts = mixed
    reward = tiny.load()
    assert ((reward(images, prompts) - reward(images, prompts[::-1])).abs() > 1e-3).all()


@pytest.mark.parametrize("dimension", ["alignment", "overall"])
def test_a_row_does_not_depend_on_its_batch(tiny, dimension, mixed):
    images, prompts = mixed
    reward = tiny.load(dimension)
    alone = torch.cat([reward.embed(image, prompt) for image, prompt in zip(images, prompts, strict=True)])
    assert_close(reward.embed(images, prompts), alone, rtol=0, atol=1e-4)


def test_switching_there_and_back_changes_no_bit(tiny, batch):
    reward = tiny.load(DIMENSIONS)
    before = reward(*batch)
    other = reward.set_dimension("safety")(*batch)
    after = reward.set_dimension("alignment")(*batch)
    assert torch.equal(before, after)
    assert ((before - other).abs() > 1e-3).all()


def test_dimensions_in_one_pass_are_those_of_separate_passes(tiny, mixed):
    images, prompts = mixed
    reward = tiny.load([*DIMENSIONS, "overall"])
    together = reward.score_dimensions(images, prompts)
    assert list(together) == [*DIMENSIONS, "overall"]
    for dimension, scores in together.items():
        assert_close(scores, reward.set_dimension(dimension)(images, prompts), rtol=0, atol=1e-5)


def test_the_vision_tower_runs_once_for_all_dimensions(tiny, batch):
    reward = tiny.load(DIMENSIONS)
    calls = []
    encode = reward.model.backbone.encode_images
    reward.model.backbone.encode_images = lambda inputs: calls.append(1) or encode(inputs)
    reward.score_dimensions(*batch, ["alignment", "safety"])
    del reward.model.backbone.encode_images
    assert len(calls) == 1


def test_batch_size_changes_nothing(tiny, mixed):
    images, prompts = mixed
    expected = tiny.load(batch_size=None)(images, prompts)
    assert_close(tiny.load(batch_size=1)(images, prompts), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dimension", ["alignment", "overall"])
def test_a_converted_official_checkpoint_gives_the_same_scores(tiny, dimension, batch, tmp_path):
    official = next((tiny.adapters / dimension).iterdir())
    options = ["--backbone", tiny.model_type, "--dimension", dimension]
    result = run_command_line("convert", str(official), str(tmp_path / "own"), *options)
    assert result.exit_code == 0, result.output
    own = load_reward("llava-reward", backbone=tiny.backbone, adapter=tmp_path / "own", torch_dtype=torch.float32)
    assert torch.equal(own.embed(*batch), tiny.load(dimension).embed(*batch))


def test_save_and_load_gives_the_same_scores(tiny, batch, tmp_path):
    for dimension in ("alignment", "overall"):
        reward = tiny.load(dimension)
        reward.save_pretrained(tmp_path / dimension)
        again = load_reward(
            "llava-reward", backbone=tiny.backbone, adapter=tmp_path / dimension, torch_dtype=torch.float32
        )
        assert torch.equal(again.embed(*batch), reward.embed(*batch))
        stored = load_file(tmp_path / dimension / "reward.safetensors")
        assert any(name.startswith("head.") for name in stored)


def test_the_gradient_is_that_of_finite_differences(tiny, batch):
    images, prompts = batch[0][:1], batch[1][:1]
    reward = tiny.load()
    image = images.clone().requires_grad_()
    reward(image, prompts).sum().backward()
    direction = image.grad / image.grad.norm()
    step = 2e-2
    ends = [reward((images + sign * step * direction).clamp(0, 1), prompts) for sign in (1, -1)]
    assert_close((ends[0] - ends[1]) / (2 * step), image.grad.norm()[None], rtol=0.05, atol=0)


def test_no_graph_without_a_request(tiny, batch):
    assert not tiny.load()(*batch).requires_grad


def test_half_precision_is_close(tiny, batch):
    exact = tiny.load()(*batch)
    half = tiny.load(torch_dtype=torch.bfloat16)(*batch)
    assert half.dtype == torch.float32
    assert (half - exact).abs().max() < 0.1 * exact.abs().max() + 0.1


def with_objective(reward, objective):
    """The same weights under another objective."""
    key = reward.dimension
    reward.model.configs[key] = dataclasses.replace(reward.model.configs[key], objective=objective)
    return reward


@pytest.fixture
def fresh(phi):
    """A reward on a model of its own, so that a test may change it."""
    return lambda: phi.load(num_crops=3)


def test_bradley_terry_is_the_official_formula(phi, batch):
    images, prompts = batch
    reward = phi.load("alignment")
    swapped = images.flip(0)
    difference = (reward(images, prompts) - reward(swapped, prompts)) / 0.1
    assert_close(reward.preference(images, swapped, prompts), torch.sigmoid(difference), rtol=1e-4, atol=1e-5)


def test_binary_compares_logits(fresh, batch):
    images, prompts = batch
    reward = with_objective(fresh(), "binary")
    swapped = images.flip(0)
    difference = reward(images, prompts) - reward(swapped, prompts)
    assert_close(reward.preference(images, swapped, prompts), torch.sigmoid(difference), rtol=1e-4, atol=1e-5)


def test_general_preference_is_skew_symmetric(phi, batch):
    images, prompts = batch
    reward = phi.load("overall")
    vectors, others = reward.embed(images, prompts), reward.embed(images.flip(0), prompts)
    logits = (
        vectors[:, 0] * others[:, 1]
        - vectors[:, 1] * others[:, 0]
        + vectors[:, 2] * others[:, 3]
        - vectors[:, 3] * others[:, 2]
    ) / 0.1
    there = reward.preference(images, images.flip(0), prompts)
    back = reward.preference(images.flip(0), images, prompts)
    assert_close(there, torch.sigmoid(logits), rtol=1e-3, atol=1e-4)
    assert_close(there + back, torch.ones(3), rtol=0, atol=1e-5)


def test_general_preference_scores_against_the_same_prompt(phi, batch):
    images, _ = batch
    reward = phi.load("overall")
    prompts = ["a star", "a star", "a circle"]
    scores = reward(images, prompts)
    assert_close(scores[0], -scores[1], rtol=1e-4, atol=1e-5)
    assert scores[0].abs() > 1e-4
    assert scores[2] == 0
    assert_close(reward(images[:2], "a star"), scores[:2], rtol=1e-4, atol=1e-4)


def test_general_preference_in_small_batches_sees_all_particles(phi, batch):
    images, _ = batch
    expected = phi.load("overall")(images, "a star")
    assert_close(phi.load("overall", batch_size=1)(images, "a star"), expected, rtol=1e-3, atol=1e-3)


def test_unequal_numbers_of_images_raise(phi, batch):
    with pytest.raises(ValueError, match="got 3 and 2"):
        phi.load().preference(batch[0], batch[0][:2], "a star")


@pytest.mark.parametrize("dimension", ["alignment", "overall"])
def test_a_score_that_is_not_finite_names_its_image(phi, dimension, batch, monkeypatch):
    reward = phi.load(dimension)
    head = reward.model.heads[dimension]
    forward = head.forward
    monkeypatch.setattr(
        head, "forward", lambda *states: forward(*states) * torch.tensor([[1.0], [float("nan")], [1.0]])
    )
    with pytest.raises(NonFiniteScoreError, match="image 1"):
        reward(*batch)


OPTIONS = {"num_particles": 3, "num_inference_steps": 4, "num_images_per_prompt": 3, "output_type": "pt"}


def run(reward, seed=0, **options):
    pipe = FKSteeringPipeline(make_sd(), reward=reward)
    return pipe(["a star", "two circles"], generator=torch.Generator().manual_seed(seed), **(OPTIONS | options))


@pytest.mark.parametrize("dimension", ["alignment", "overall"])
def test_rewards_are_those_of_the_returned_images(phi, dimension):
    reward = phi.load(dimension, num_crops=1)
    output = run(reward)
    prompts = ["a star"] * 3 + ["two circles"] * 3
    assert_close(output.rewards.flatten(), reward(output.images, prompts), rtol=1e-3, atol=1e-3)
    assert output.trace.reward_name == f"llava-reward-{dimension}"


def test_a_general_preference_sums_to_zero_over_the_particles(phi):
    for step in run(phi.load("overall", num_crops=1)).trace.steps:
        assert_close(step.rewards.sum(dim=1), torch.zeros(2), rtol=0, atol=1e-3)


def test_offload_and_micro_batches_change_nothing(phi):
    expected = run(phi.load(num_crops=1)).rewards
    assert_close(run(phi.load(num_crops=1, offload=True, batch_size=2)).rewards, expected, rtol=1e-4, atol=1e-4)


def test_offload_moves_the_weights_to_score_and_back(phi, batch, monkeypatch):
    reward = phi.load(offload=True).to("cpu")
    places = []
    move = reward.model.to
    monkeypatch.setattr(reward.model, "to", lambda device: places.append(str(device)) or move(device))
    reward(*batch)
    assert places == ["cpu", "cpu"]
    places.clear()
    monkeypatch.setattr(reward.model.backbone, "prepare", lambda *inputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        reward(*batch)
    assert places == ["cpu", "cpu"]


def test_offload_names_the_device_to_score_on(phi):
    reward = phi.load(offload=True).to("meta")
    assert reward.device == torch.device("meta")
    assert reward.model.backbone.device == torch.device("cpu")


def test_offload_refuses_a_gradient(phi, batch):
    images, prompts = batch
    with pytest.raises(ValueError, match="offload=True"):
        phi.load(offload=True)(images.clone().requires_grad_(), prompts)


def test_a_general_preference_compares_all_particles_however_few_are_read_at_once(phi):
    reward, expected = phi.load("overall", num_crops=1), run(phi.load("overall", num_crops=1))
    output = run(reward, reward_batch_size=2)
    assert_close(output.rewards, expected.rewards, rtol=1e-4, atol=1e-4)
    assert reward.batch_size == 8
    images, prompts = output.images, ["a star"] * 3 + ["two circles"] * 3
    apart = torch.cat([reward(images[i : i + 1], prompts[i : i + 1]) for i in range(6)])
    assert not torch.allclose(apart, expected.rewards.flatten(), atol=1e-2)  # saboteur: calls of one image each


ACCESS = {"token": "t"}
FLOAT = {"torch_dtype": torch.float32, "num_crops": 1}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Repositories as folders; `token` and so on are noted."""
    root, calls = tmp_path / "hub", []

    class Api:
        def __init__(self, token=None):
            calls.append(("api", token))

        def create_repo(self, repo_id, private=None, exist_ok=False):
            (root / repo_id).mkdir(parents=True, exist_ok=exist_ok)
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, *, repo_id, folder_path, **_options):
            shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)
            return f"https://hub/{repo_id}/commit/1"

    def download(repo_id, filename, **options):
        if not (root / repo_id / filename).is_file():
            raise EntryNotFoundError(f"{repo_id} has no {filename}", response=SimpleNamespace(headers={}, request=None))
        return str(root / repo_id / filename)

    def snapshot(repo_id, **options):
        calls.append(("snapshot", options))
        return str(root / repo_id)

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", download)
    monkeypatch.setattr(llava_reward, "snapshot_download", snapshot)
    return SimpleNamespace(root=root, calls=calls)


@pytest.fixture
def reward(phi):
    return phi.load("fidelity", num_crops=1)


def test_pushed_and_loaded_it_gives_the_same_scores(reward, batch, hub, phi):
    assert reward.push_to_hub("me/reward", **ACCESS) == "https://hub/me/reward/commit/1"
    assert ("api", "t") in hub.calls
    loaded = LlavaReward.from_pretrained("me/reward", backbone=phi.backbone, revision="v1", **ACCESS, **FLOAT)
    assert isinstance(loaded, LlavaReward)
    torch.testing.assert_close(loaded(*batch), reward(*batch), rtol=0, atol=0)
    assert loaded.dimension == "fidelity"
    options = next(options for name, options in hub.calls if name == "snapshot")
    assert (options["revision"], options["token"]) == ("v1", "t")


def test_only_the_dimension_is_pushed(reward, hub):
    reward.push_to_hub("me/reward")
    files = {str(path.relative_to(hub.root / "me/reward")) for path in (hub.root / "me/reward").rglob("*.*")}
    own = {
        "reward_config.json",
        "reward.safetensors",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    }
    assert files == own | {"README.md", "config.json"}
    size = sum(path.stat().st_size for path in (hub.root / "me/reward").rglob("*.safetensors"))
    backbone = sum(weight.nbytes for weight in reward.model.backbone.parameters())
    dimension = sum(weight.nbytes for weight in load_own_checkpoint(hub.root / "me/reward").lora.values())
    assert dimension < size < backbone


def test_the_active_dimension_is_the_one(phi, batch, hub):
    both = phi.load(["alignment", "safety"], num_crops=1)
    both.set_dimension("safety").push_to_hub("me/safety")
    loaded = LlavaReward.from_pretrained("me/safety", backbone=phi.backbone, **FLOAT)
    torch.testing.assert_close(loaded(*batch), both(*batch), rtol=0, atol=0)
    assert not torch.equal(loaded(*batch), both.set_dimension("alignment")(*batch)), "the saboteur"


def test_a_folder_loads_by_the_mixin_and_by_name(reward, batch, tmp_path, phi, caplog):
    assert reward.save_pretrained(tmp_path / "saved") is None
    by_mixin = LlavaReward.from_pretrained(tmp_path / "saved", backbone=phi.backbone, **FLOAT)
    by_name = load_reward("llava-reward", adapter=tmp_path / "saved", backbone=phi.backbone, **FLOAT)
    torch.testing.assert_close(by_mixin(*batch), by_name(*batch), rtol=0, atol=0)
    assert by_mixin.batch_size == 8, "settings of a process are not part of a checkpoint"
    assert "not found" not in caplog.text
    reward.save_pretrained(tmp_path / "saved")  # over the older one


def test_save_pretrained_can_push(reward, tmp_path, hub):
    assert reward.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="me/other")
    assert (hub.root / "me/other/reward_config.json").is_file()


def test_somebody_elses_folder_is_left_alone(reward, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(FileExistsError, match=r"is not a checkpoint, but holds config\.json, model\.safetensors"):
        reward.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_the_card_says_what_it_is(reward, tmp_path, monkeypatch):
    reward.save_pretrained(tmp_path / "saved")
    card = ModelCard.load(tmp_path / "saved" / "README.md")
    assert "**fidelity**, trained as bradley-terry on" in card.text
    assert card.data.library_name == "fk-reward"
    assert {"llava-reward", "reward-model"} <= set(card.data.tags)
    assert card.data.base_model == reward.config.base_model == "microsoft/Phi-3.5-vision-instruct"
    assert json.loads((tmp_path / "saved" / "config.json").read_text()) == {"model_type": "llava-reward"}


TOLERANCE = 0.1
"""Of the standard deviation of the scores of different images: what is left of rounding to 8 bits in resizing."""


def phi_pixels(backbone, folder, images):
    transform = backbone.hd_transform
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (transform.mean, transform.std))
    size = {"num_crops": transform.num_crops, "size": transform.crop_size}
    return torch.cat([(official_crops(np.array(image), **size) - mean) / std for image in images])


def qwen_pixels(backbone, folder, images):
    processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
    return torch.cat([processor(image, return_tensors="pt")["pixel_values"] for image in images])


def llava_pixels(backbone, folder, images):
    processor = LlavaNextImageProcessorPil.from_pretrained(folder)
    return torch.cat([processor(image, return_tensors="pt")["pixel_values"][0] for image in images])


PIXELS = {"phi3_v": phi_pixels, "qwen2_5_vl": qwen_pixels, "llava_next": llava_pixels}


def photographs(sizes):
    """Smooth images with some grain, as photographs are."""
    generator = np.random.default_rng(0)
    for height, width in sizes:
        coarse = Image.fromarray(generator.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
        yield Image.fromarray((smooth + generator.integers(-8, 9, smooth.shape)).clip(0, 255).astype(np.uint8))


def test_scores_agree_with_the_official_processors(tiny, monkeypatch):
    photos = list(photographs([(64, 64), (50, 90), (96, 40), (70, 71)]))
    reward = tiny.load()
    ours = reward(photos, "a photo of a star")
    backbone = reward.model.backbone
    prepare, seen = backbone.prepare, []

    def through_pil(images, prompts):
        inputs = prepare(images, prompts)
        batch = photos[len(seen) : len(seen) + len(images)]
        seen.extend(batch)
        pixel_values = PIXELS[tiny.model_type](backbone, tiny.backbone, batch)
        assert pixel_values.shape == inputs.pixel_values.shape
        return dataclasses.replace(inputs, pixel_values=pixel_values)

    monkeypatch.setattr(backbone, "prepare", through_pil)
    theirs = torch.cat([reward(photo, "a photo of a star") for photo in photos])
    assert len(seen) == len(photos)
    assert (ours - theirs).abs().max() < 1e-3 * ours.std()


def test_tensors_of_the_sampler_agree_but_for_the_rounding(tiny):
    photos = list(photographs([(64, 64), (50, 90), (96, 40), (70, 71)]))
    reward = tiny.load()
    rounded = reward(photos, "a photo of a star")
    exact = torch.cat(
        [reward(torch.from_numpy(np.array(photo)).movedim(2, 0)[None] / 255, "a photo of a star") for photo in photos]
    )
    assert 0 < (rounded - exact).abs().max() < TOLERANCE * rounded.std()
