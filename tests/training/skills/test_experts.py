"""Experts of tiny pipelines: what is trained, what is written, and that a resumed training is the same one."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image

from fk_reward.training.skills.adapter_files import read_adapter
from fk_reward.training.skills.denoising import encode_latents, find_denoising
from fk_reward.training.skills.experts import ExpertConfig, batch_rows, train_expert
from fk_reward.training.skills.images import DrawnImage
from tests.tiny.latent_diffusion import make_sd, make_sdxl
from tests.tiny.transformers_family import make_pixart, make_sd3

MAKERS = {"sd": make_sd, "sdxl": make_sdxl, "sd3": make_sd3}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    found = []
    for number, colour in enumerate(("red", "blue", "green")):
        path = folder / f"{number}.png"
        Image.new("RGB", (64, 64), colour).save(path)
        found.append(DrawnImage(path, f"a {colour} square", 0.5))
    return found


def train(pipe, images, folder, *, resume=False, **options):
    config = ExpertConfig(
        **{"rank": 2, "lora_alpha": 4, "max_steps": 2, "batch_size": 2, "learning_rate": 1e-2} | options
    )
    return list(train_expert(pipe, images, folder, config=config, resume=resume))


def state(pipe):
    names = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2")
    return {
        f"{name}.{key}": value.clone()
        for name in names
        if getattr(pipe, name, None) is not None
        for key, value in getattr(pipe, name).state_dict().items()
    }


@pytest.mark.parametrize("encoders", [False, True])
@pytest.mark.parametrize("family", MAKERS)
def test_an_expert_of_each_family(tmp_path, images, family, encoders):
    pipe = MAKERS[family]()
    before = state(pipe)
    steps = train(pipe, images, tmp_path, train_text_encoders=encoders)
    assert [step.step for step in steps] == [1, 2]
    assert all(math.isfinite(step.loss) for step in steps)
    after = state(pipe)
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    adapter = read_adapter(tmp_path)
    denoiser = "transformer" if family == "sd3" else "unet"
    expected = {denoiser} | ({"text_encoder", *(["text_encoder_2"] if family != "sd" else [])} if encoders else set())
    assert {name.partition(".")[0] for name in adapter} == expected
    assert {layer.scale for layer in adapter.values()} == {2.0}
    for part in expected:
        assert any(layer.delta().abs().sum() > 0 for name, layer in adapter.items() if name.startswith(f"{part}."))
    pipe.load_lora_weights(str(tmp_path))
    assert len(pipe.get_active_adapters()) == 1


def test_a_resumed_training_is_the_same(tmp_path, images):
    whole = train(make_sd(), images, tmp_path / "whole", max_steps=4, save_steps=2, gradient_accumulation_steps=2)
    train(make_sd(), images, tmp_path / "cut", max_steps=2, save_steps=2, gradient_accumulation_steps=2)
    rest = train(
        make_sd(), images, tmp_path / "cut", max_steps=4, save_steps=2, gradient_accumulation_steps=2, resume=True
    )
    assert (rest[0].step, math.isnan(rest[0].loss)) == (2, True)
    assert [step.loss for step in rest[1:]] == [step.loss for step in whole[2:]]
    one, other = read_adapter(tmp_path / "whole"), read_adapter(tmp_path / "cut")
    assert all(
        torch.equal(layer.b, other[name].b) and torch.equal(layer.a, other[name].a) for name, layer in one.items()
    )


def test_it_learns(tmp_path, images):
    """On one image with one caption, the loss on fixed noise falls."""
    pipe = make_sd()
    model = find_denoising(pipe)(pipe)
    latents = encode_latents(pipe, torch.ones(1, 3, 64, 64) * torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1))
    latents = latents.repeat(32, 1, 1, 1)

    @torch.no_grad()
    def loss():
        return model(latents, ["a red square"] * 32, torch.Generator().manual_seed(7)).item()

    before = loss()
    train(pipe, images[:1], tmp_path, max_steps=25, batch_size=8, rank=4, learning_rate=2e-2, caption_dropout=0.0)
    pipe.load_lora_weights(str(tmp_path))
    assert loss() < before - 0.01


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_loss_of_a_perfect_denoiser_is_zero(prediction):
    """What is asked for is what Diffusers' own scheduler takes for it: x0 comes back."""
    pipe = make_sd(prediction_type=prediction)
    model = find_denoising(pipe)(pipe, snr_gamma=5.0)
    latents, noise = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    for step in (10, 500, 990):
        steps = torch.full((3,), step)
        noisy = model.schedule.add_noise(latents, noise, steps)
        target = model._target(latents, noise, steps)
        pipe.scheduler.set_timesteps(1000)
        x0 = pipe.scheduler.step(target, step, noisy).pred_original_sample
        torch.testing.assert_close(x0, latents, rtol=1e-3, atol=2e-3)


def test_latents_are_those_that_the_decoder_undoes():
    pipe = make_sd3()
    pixels = torch.rand(2, 3, 64, 64)
    expected = (
        pipe.vae.encode(pixels * 2 - 1).latent_dist.mean - pipe.vae.config.shift_factor
    ) * pipe.vae.config.scaling_factor
    torch.testing.assert_close(encode_latents(pipe, pixels), expected.detach())


def test_a_wide_posterior_adds_no_noise_to_the_latents(tmp_path, images):
    """A denoiser that has learnt from the means of a small VAE forgets to draw clean images where draws are taken."""
    losses = []
    for log_variance in (-10.0, 5.0):
        pipe = make_sd()
        with torch.no_grad():
            pipe.vae.quant_conv.weight[4:].zero_()
            pipe.vae.quant_conv.bias[4:] = log_variance
        losses.append([step.loss for step in train(pipe, images, tmp_path / str(log_variance))])
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("scheduler", "last"), [("constant", 1.0), ("linear", 0.0), ("cosine", 0.0)])
def test_the_learning_rate_ends_where_it_should(tmp_path, images, scheduler, last):
    train(make_sd(), images, tmp_path, max_steps=3, gradient_accumulation_steps=2, lr_scheduler=scheduler)
    state = torch.load(tmp_path / "checkpoint" / "optimizer.pt", weights_only=True)
    assert state["optimizer"]["param_groups"][0]["lr"] == pytest.approx(1e-2 * last)
    if scheduler != "constant":  # its end is part of the training
        with pytest.raises(ValueError, match="begun with other max_steps"):
            train(make_sd(), images, tmp_path, max_steps=4, lr_scheduler=scheduler, resume=True,
                  gradient_accumulation_steps=2)  # fmt: skip


def test_every_epoch_has_every_row_once():
    rows = [row for start in range(0, 30, 3) for row in batch_rows(5, start, 3, seed=1)]
    for epoch in range(6):
        assert sorted(rows[5 * epoch : 5 * epoch + 5]) == list(range(5))
    assert rows[:5] != rows[5:10]


def test_folders_are_not_overwritten(tmp_path, images):
    pipe = make_sd()
    train(pipe, images, tmp_path, max_steps=1)
    with pytest.raises(FileExistsError, match="holds an expert already"):
        train(pipe, images, tmp_path, max_steps=1)
    with pytest.raises(ValueError, match="begun with other learning_rate"):
        train(pipe, images, tmp_path, max_steps=1, learning_rate=0.5, resume=True)


def test_refusals(tmp_path, images):
    with pytest.raises(ValueError, match="StableDiffusion3Pipeline; got a PixArtSigmaPipeline"):
        train(make_pixart(), images, tmp_path / "a")
    with pytest.raises(ValueError, match="no image"):
        train(make_sd(), [], tmp_path / "b")
    Image.new("RGB", (32, 64)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="must be of one size"):
        train(make_sd(), [*images, DrawnImage(tmp_path / "x.png", "x", None)], tmp_path / "c")
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        train(make_sd(), images, tmp_path / "d", learning_rate=1e30, max_steps=3)
    with pytest.raises(ValueError, match="mixed_precision"):
        ExpertConfig(mixed_precision="fp8")
