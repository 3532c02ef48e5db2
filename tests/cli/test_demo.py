"""`fk-reward demo` on a tiny random model, and what it says."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from PIL import Image
from scipy.stats import binomtest

from fk_reward.cli.demo_comparison import (
    BEST,
    METHODS,
    ONE,
    STEERED,
    DemoImage,
    DemoResult,
    draw_demo,
    headline,
    run_demo,
    sign_test,
    summarise,
)
from fk_reward.pipelines import FKSteeringPipeline
from fk_reward.search.feynman_kac import FKSteeringConfig
from fk_reward.shapes import benchmark_prompts, verify
from tests.sampling.random_traces import make_trace


@pytest.fixture(scope="module")
def result(tiny_sd):
    """A demo of random images: brightness steers."""
    steering = FKSteeringConfig(num_particles=3, reward_scale=200.0)
    pipe = FKSteeringPipeline(tiny_sd(), reward=lambda images, prompts: images.mean(dim=(1, 2, 3)), steering=steering)
    return run_demo(pipe, benchmark_prompts(7), seed=3, arguments={"num_inference_steps": 6})


def test_one_image_is_the_stock_image_of_the_first_seed(result, tiny_sd):
    for index, prompt in enumerate(result.prompts):
        generator = torch.Generator().manual_seed(3 + 3 * index)
        options = {"num_inference_steps": 6, "eta": 1.0, "generator": generator, "output_type": "pt"}
        stock = tiny_sd()(prompt.text, **options).images[0]
        torch.testing.assert_close(result.images[ONE][index].image, stock, rtol=0, atol=1e-5)


def test_best_of_k_is_never_worse_than_one_image_by_the_reward(result):
    assert all(b.reward >= a.reward for a, b in zip(result.images[ONE], result.images[BEST], strict=True))


def test_rewards_and_judgements_belong_to_the_images(result):
    for method in METHODS:
        for prompt, image in zip(result.prompts, result.images[method], strict=True):
            assert image.reward == pytest.approx(image.image.mean().item(), abs=1e-5)
            assert image.correct == verify(image.image, prompt).correct


def test_steering_resamples_and_its_prompt_is_found(result):
    survivors = [len(result.trace.lineage(i)[0].unique()) for i in range(7)]
    assert min(survivors) < 3
    assert survivors[result.most_resampled] == min(survivors)


@pytest.fixture
def invented():
    """Four prompts, judgements by hand: steered alone right on two, best of K alone on one."""

    def images(marks, rewards):
        return tuple(
            DemoImage(torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)), r, m, "because")
            for m, r in zip(marks, rewards, strict=True)
        )

    return DemoResult(
        prompts=benchmark_prompts(4),
        images={
            ONE: images([False] * 4, [0.0] * 4),
            BEST: images([True, False, False, True], [0.1, 0.2, 0.3, 0.4]),
            STEERED: images([False, True, True, True], [0.2, 0.1, 0.5, 0.6]),
        },
        num_particles=4,
        seconds={ONE: None, BEST: 1.0, STEERED: 1.5},
        trace=make_trace(groups=4),
    )


def test_summary_counts(invented):
    assert summarise(invented, STEERED) == {"mean_reward": pytest.approx(0.35), "num_correct": 3, "seconds": 1.5}


def test_headline_does_not_boast(invented):
    text = headline(invented)
    assert "helped here: of 4 prompts, 2 are right only with steered, 1 only with best of 4." in text
    assert "Chance alone could do this (sign test, p = 1)" in text
    assert "changed by +0.100 (higher for 3 of 4)" in text
    swapped = {**invented.images, BEST: invented.images[STEERED], STEERED: invented.images[BEST]}
    worse = dataclasses.replace(invented, images=swapped)
    assert "hurt here: of 4 prompts, 1 are right only" in headline(worse)
    assert "changed by -0.100" in headline(worse)
    same = dataclasses.replace(invented, images={**invented.images, BEST: invented.images[STEERED]})
    assert "made no difference here: of 4 prompts, 0 are" in headline(same)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (5, 0), (6, 0), (0, 6), (7, 2), (4, 4), (30, 12)])
def test_sign_test_agrees_with_scipy(wins, losses):
    expected = binomtest(wins, wins + losses, 0.5).pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(expected)


@pytest.mark.parametrize("num_prompts", [1, 4])
def test_image_shows_every_image_with_its_mark(invented, num_prompts):
    few = dataclasses.replace(
        invented,
        prompts=invented.prompts[:num_prompts],
        images={method: images[:num_prompts] for method, images in invented.images.items()},
    )
    figure = draw_demo(few)
    drawn = [shown for axes in figure.axes for shown in axes.images]
    assert len(drawn) == 3 * num_prompts
    captions = [text.get_text() for axes in figure.axes for text in axes.texts if text.get_text()[0] in "✓✗"]
    expected = [f"{'✓' if p.correct else '✗'} {p.reward:.3f}" for ps in few.images.values() for p in ps]
    assert sorted(captions) == sorted(expected)


def test_command_writes_images_and_numbers_and_can_be_repeated(run, model, tmp_path):
    arguments = [
        "demo",
        "--model",
        model,
        "-r",
        "brightness",
        "-o",
        tmp_path,
        "--num-prompts",
        2,
        "-k",
        2,
        "--steps",
        4,
    ]
    for _ in range(2):
        outcome = run(*arguments)
        assert outcome.exit_code == 0, outcome.output
    assert "verifier: right" in outcome.stdout
    assert "side-by-side.png, lineage.png, demo.json" in outcome.stdout
    record = json.loads((tmp_path / "demo.json").read_text())
    assert [row["task"] for row in record["rows"]] == ["single_object", "two_object"]
    assert set(record["rows"][0]["methods"]) == set(METHODS)
    for name in ("side-by-side.png", "lineage.png"):
        assert Image.open(tmp_path / name).size[0] > 300
