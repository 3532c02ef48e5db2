"""The scripts that distil a small decoder for `shapes-sd` and compare previews."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderTiny
from torch import nn

from fk_reward import FKSteeringPipeline
from fk_reward.models import DEFAULT_EMBEDDED_REWARD, resolve_model
from tests.tiny.components import make_vae


@pytest.fixture(scope="module")
def preview(tmp_path_factory):
    """Folder of a decoder that was hardly trained."""
    import train_preview

    folder = tmp_path_factory.mktemp("runs")
    train_preview.main(output_dir=folder, num_scenes=24, max_steps=2, batch_size=4)
    return folder / "shapes-preview"


def test_the_decoder_is_small_and_previews_the_embedded_model(preview):
    autoencoder = AutoencoderTiny.from_pretrained(preview)
    assert sum(parameter.numel() for parameter in autoencoder.decoder.parameters()) < 50_000
    assert "_name_or_path" not in (preview / "config.json").read_text()
    pipe = FKSteeringPipeline.from_pretrained("shapes-sd", reward=lambda images, prompts: images.mean((1, 2, 3)))
    pipe.set_progress_bar_config(disable=True)
    pipe.preview = preview
    out = pipe("a photo of a star", num_inference_steps=3, num_particles=2)
    assert out.trace.steps[0].thumbnails.shape[-2:] == (64, 64)


class Perfect(nn.Module):
    """Decodes latents of a scaling factor as the VAE does."""

    def __init__(self, vae, factor):
        super().__init__()
        self.vae, self.factor, self.encoder = vae, factor, nn.Identity()

    def decode(self, latents):
        return SimpleNamespace(sample=self.vae.decode(latents / self.factor).sample.clamp(-1, 1))


@pytest.mark.parametrize(("factor", "is_right"), [(0.5, True), (1.0, False)])
def test_the_target_is_the_vaes_image_of_the_schedulers_latents(factor, is_right):
    from train_preview import PreviewObjective

    vae = make_vae(latent_channels=4, scaling_factor=0.5)
    objective = PreviewObjective(Perfect(vae, factor), vae)
    loss = objective(torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(0)))["loss"]
    assert (float(loss) < 1e-6) == is_right


def test_only_the_decoder_learns():
    from train_preview import PreviewObjective, make_preview

    objective = PreviewObjective(make_preview(), make_vae(latent_channels=4))
    learning = {name.split(".")[1] for name, value in objective.named_parameters() if value.requires_grad}
    assert learning == {"decoder"}


def test_half_of_the_latents_are_scenes_but_for_noise():
    from train_preview import like_predictions

    latents = 100.0 * torch.arange(64.0).view(64, 1, 1, 1).expand(64, 4, 16, 16)
    changed = (like_predictions(latents) - latents).abs().amax((1, 2, 3)) > 10
    assert 16 < changed.sum() < 48


def test_rank_correlation_is_within_prompts():
    from check_predictions import rank_correlation

    ours = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
    assert rank_correlation(ours, torch.tensor([[5.0, 6.0, 70.0], [1.0, 2.0, 9.0]])) == pytest.approx(1.0)
    assert rank_correlation(ours, torch.tensor([[1.0, 2.0, 3.0], [30.0, 20.0, 10.0]])) == pytest.approx(0.0)


def test_the_vae_agrees_with_itself_and_its_opposite_does_not(monkeypatch):
    import check_predictions
    from diffusers import AutoencoderKL

    from fk_reward.pipelines import LatentDecoder
    from fk_reward.rewards import CallableReward
    from fk_reward.shapes import benchmark_prompts

    vae = AutoencoderKL.from_pretrained(resolve_model("shapes-sd"), subfolder="vae").eval()
    decode = LatentDecoder(SimpleNamespace(vae=vae))
    latents = torch.randn(2, 1, 4, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    prompts = dict(enumerate(benchmark_prompts(2)))
    reward = CallableReward(lambda images, prompts: images.mean((1, 2, 3)), "brightness")
    same = check_predictions.preview_scores(reward, decode, latents, prompts)
    negative = check_predictions.preview_scores(reward, lambda x: 1 - decode(x), latents, prompts)
    assert same.shape == (2, 1, 4)
    assert check_predictions.rank_correlation(same[:, 0], same[:, 0]) == pytest.approx(1.0)
    assert check_predictions.rank_correlation(negative[:, 0], same[:, 0]) == pytest.approx(-1.0)


def test_check_previews_prints_its_table(preview, monkeypatch, capsys):
    import check_predictions

    monkeypatch.setattr(check_predictions, "NUM_STEPS", 10)
    check_predictions.check_previews(preview=[str(preview), "vae/2"], num_prompts=2, per_prompt=4, num_rounds=1)
    printed = capsys.readouterr().out
    assert f"{DEFAULT_EMBEDDED_REWARD}: 2 prompts, 4 particles each" in printed
    assert "vae/2" in printed
    assert "same best particle" in printed
