"""The gallery: which image is which, the page, and a run on the tiny pipeline."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from examples import gallery
from fk_reward import FKSteeringPipeline
from fk_reward.rewards import CallableReward
from tests.examples.scripts import invoke

BRIGHT = CallableReward(lambda images, prompts: images.mean((1, 2, 3)), "brightness")
RED = CallableReward(lambda images, prompts: images[:, 0].mean((1, 2)), "redness")


@pytest.fixture
def pipe(tiny_sd):
    wrapped = FKSteeringPipeline(tiny_sd(), reward=BRIGHT)
    wrapped.set_progress_bar_config(disable=True)
    return wrapped


def test_plain_is_the_first_start_and_best_the_brightest(pipe):
    calls = {"search": {"search": "fk", "reward_scale": 0.0}, "arguments": {"num_inference_steps": 4}}
    row = gallery.draw(pipe, RED, "a dog", seeds=range(5, 8), calls=calls)
    stock = pipe.pipe(
        ["a dog"] * 3,
        generator=[torch.Generator().manual_seed(seed) for seed in range(5, 8)],
        num_inference_steps=4,
        output_type="pt",
        eta=1.0,
    ).images
    best = int(stock.mean((1, 2, 3)).argmax())
    torch.testing.assert_close(row.images["best of N"], stock[best], rtol=0, atol=1e-4)
    torch.testing.assert_close(row.images["plain"], stock[0], rtol=0, atol=1e-4)
    # with a lambda of 0 nothing is resampled, and the best of the same three is chosen
    torch.testing.assert_close(row.images["steered"], stock[best], rtol=0, atol=1e-4)
    assert row.rewards["best of N"] == pytest.approx(float(stock[best].mean()), abs=1e-4)
    assert row.judged["plain"] == pytest.approx(float(stock[0, 0].mean()), abs=1e-4)


def test_the_page_counts_what_the_judge_prefers(tmp_path):
    def row(best, steered):
        images = {method: torch.full((3, 64, 64), 0.5) for method in gallery.METHODS}
        judged = {"plain": 0.0, "best of N": best, "steered": steered}
        return gallery.Row("a | dog", images, dict.fromkeys(gallery.METHODS, 1.0), judged)

    page = gallery.write_gallery(tmp_path, [row(1, 2), row(2, 1), row(1, 1)], about="Made.", names=("a", "b"))
    text = page.read_text()
    assert "Of 3 prompts, all of which are shown, b prefers steered to best of N on 1, and best of N on 1." in text
    assert Image.open(tmp_path / "images" / "gallery" / "02-best-of-n.jpg").size == (256, 256)
    assert text.count("images/gallery/") == 9


def test_main_on_the_tiny_pipeline(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(FKSteeringPipeline, "from_pretrained", lambda *args, **options: pipe)
    monkeypatch.setattr(gallery, "load_reward", lambda name: RED)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a dog\n\na cat\n")
    small = ["--prompts", prompts, "--steps", 3, "--num-particles", 2, "--reward-scale", "10", "--device", "cpu"]
    output = invoke(gallery.main, *small, "--out", tmp_path / "out")
    assert "2/2 a cat" in output
    assert (tmp_path / "out" / "gallery.md").read_text().count("brightness") == 1


def test_prompts_of_sdxl_do_not_repeat():
    assert len(set(gallery.SDXL_PROMPTS)) == len(gallery.SDXL_PROMPTS) == 12
