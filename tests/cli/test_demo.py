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
    CHOSEN_PROMPTS,
    METHODS,
    ONE,
    STEERED,
    DemoImage,
    DemoResult,
    demo_prompts,
    draw_demo,
    headline,
    reasons,
    run_demo,
    sign_test,
    summarise,
    to_record,
)
from fk_reward.pipelines import FKSteeringPipeline
from fk_reward.search import Pruning
from fk_reward.shapes import benchmark_prompts, is_heldout, verify
from tests.sampling.random_traces import make_trace

SEEDS = (3, 5)


@pytest.fixture(scope="module")
def result(tiny_sd):
    """A demo of random images: brightness chooses."""
    search = Pruning(num_particles=4, keep=(2,), at=(0.5,))
    pipe = FKSteeringPipeline(tiny_sd(), reward=lambda images, prompts: images.mean(dim=(1, 2, 3)), search=search)
    return run_demo(pipe, benchmark_prompts(4), seeds=SEEDS, num_particles=3, steps=6, arguments={})


def test_prompts_differ_and_none_was_trained_on():
    prompts = demo_prompts(40)
    assert len(set(prompts)) == 40 and all(map(is_heldout, prompts))
    assert [prompt.text for prompt in prompts[: len(CHOSEN_PROMPTS)]] == list(CHOSEN_PROMPTS)


def test_one_image_is_the_stock_image_of_its_seed(result, tiny_sd):
    for place, seed in enumerate(SEEDS):
        for index, prompt in enumerate(result.prompts):
            generator = torch.Generator().manual_seed(1000 * seed + index)
            options = {"num_inference_steps": 6, "generator": generator, "output_type": "pt"}
            stock = tiny_sd()(prompt.text, **options).images[0]
            torch.testing.assert_close(result.images[ONE][place][index].image, stock, rtol=0, atol=1e-5)


def test_best_of_k_is_never_worse_than_one_image_by_the_reward(result):
    pairs = zip(result.all_images(ONE), result.all_images(BEST), strict=True)
    assert all(best.reward >= one.reward for one, best in pairs)


def test_the_steered_images_cost_no_more(result):
    assert result.trace.cost.sample_steps <= 3 * 6


def test_rewards_and_judgements_belong_to_the_images(result):
    for method in METHODS:
        for prompt, image in zip(result.prompts * len(SEEDS), result.all_images(method), strict=True):
            assert image.reward == pytest.approx(image.image.mean().item(), abs=1e-5)
            assert image.correct == verify(image.image, prompt).correct


@pytest.fixture
def invented():
    """Four prompts, one seed, judgements by hand: steered alone right on two, best of K alone on one."""

    def images(marks, rewards):
        return (
            tuple(
                DemoImage(torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)), r, m, "because")
                for m, r in zip(marks, rewards, strict=True)
            ),
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
        trace=make_trace(groups=1),
    )


def test_summary_counts(invented):
    assert summarise(invented, STEERED) == {"mean_reward": pytest.approx(0.35), "num_correct": 3, "seconds": 1.5}


def test_headline_does_not_boast(invented):
    text = headline(invented)
    assert text.startswith("Steered, 3 of 4 are right.")
    assert "Against one image: 3 are right only when steered, 0 only otherwise; chance alone could do this" in text
    assert "Against best of 4, which cost the same: 2 are right only when steered, 1 only otherwise" in text
    assert "chance alone could do this (sign test, p = 1)" in text
    swapped = {**invented.images, BEST: invented.images[STEERED], STEERED: invented.images[BEST]}
    worse = dataclasses.replace(invented, images=swapped)
    assert "1 are right only when steered, 2 only otherwise" in headline(worse)
    many = {method: images * 3 for method, images in invented.images.items()}
    assert "9 are right only when steered, 0 only otherwise; chance alone would rarely" in headline(
        dataclasses.replace(invented, images=many)
    )


def test_every_wrong_image_has_its_reason_and_none_has_none(invented):
    assert list(reasons(invented))[1:] == [f"  {invented.prompts[0].text}: because"]
    right = dataclasses.replace(invented, images={**invented.images, STEERED: invented.images[STEERED][:0]})
    assert list(reasons(right)) == []


def test_the_record_has_every_seed(result):
    record = to_record(result)
    assert all(len(values) == 2 for row in record["rows"] for of in row["methods"].values() for values in of.values())
    assert record["search"] == "pruning"


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (5, 0), (6, 0), (0, 6), (7, 2), (4, 4), (30, 12)])
def test_sign_test_agrees_with_scipy(wins, losses):
    expected = binomtest(wins, wins + losses, 0.5).pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(expected)


@pytest.mark.parametrize("num_prompts", [1, 4])
def test_image_shows_every_image_with_its_mark(invented, num_prompts):
    few = dataclasses.replace(
        invented,
        prompts=invented.prompts[:num_prompts],
        images={method: (images[0][:num_prompts],) for method, images in invented.images.items()},
    )
    figure = draw_demo(few)
    drawn = [shown for axes in figure.axes for shown in axes.images]
    assert len(drawn) == 3 * num_prompts
    captions = [text.get_text() for axes in figure.axes for text in axes.texts if text.get_text()[0] in "✓✗"]
    expected = [f"{'✓' if p.correct else '✗'} {p.reward:.3f}" for ps in few.images.values() for p in ps[0]]
    assert sorted(captions) == sorted(expected)


def test_command_writes_images_and_numbers_and_can_be_repeated(run, model, tmp_path):
    sizes = ["--num-prompts", 2, "--num-seeds", 2, "-k", 2, "--steps", 4]
    for _ in range(2):
        outcome = run("demo", "--model", model, "-r", "brightness", "-o", tmp_path, *sizes)
        assert outcome.exit_code == 0, outcome.output
    assert "right" in outcome.stdout and "What to try next" in outcome.stdout
    assert "side-by-side.png (the first seed), lineage.png, demo.json" in outcome.stdout
    record = json.loads((tmp_path / "demo.json").read_text())
    assert len(record["rows"]) == 2 and record["seeds"] == [0, 1]
    assert set(record["rows"][0]["methods"]) == set(METHODS)
    for name in ("side-by-side.png", "lineage.png"):
        assert Image.open(tmp_path / name).size[0] > 300
