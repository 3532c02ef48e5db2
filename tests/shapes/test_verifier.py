"""The verifier knows right images from wrong ones, and the forbidden sign from what only looks like it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fk_reward.shapes import (
    COLORS,
    SHAPES,
    ObjectSpec,
    Scene,
    SceneObject,
    all_prompts,
    benchmark_prompts,
    detect,
    is_heldout,
    parse_prompt,
    render,
    sample_scene,
    shows_forbidden_sign,
    sign_prompts,
    verify,
)
from fk_reward.shapes import scene as scene_module

NUM_SCENES = 240


@pytest.fixture(scope="module")
def prompts():
    return benchmark_prompts(NUM_SCENES // 2) + benchmark_prompts(NUM_SCENES // 2, "validation")


@pytest.fixture(scope="module")
def images(prompts):
    rng = np.random.default_rng(0)
    return render([sample_scene(prompt, rng) for prompt in prompts])


def accuracy(images, prompts):
    return np.mean([verify(image, prompt).correct for image, prompt in zip(images, prompts, strict=True)])


def test_right_on_renders(images, prompts):
    assert accuracy(images, prompts) >= 0.99


def test_shuffled_captions_fail(images, prompts):
    shuffled = prompts[7:] + prompts[:7]
    assert accuracy(images, shuffled) < 0.1


def test_another_prompt_of_the_task_passes_rarely(images, prompts):
    rng = np.random.default_rng(1)
    pools = (
        [other for other in all_prompts(prompt.task) if other.combination != prompt.combination] for prompt in prompts
    )
    others = [pool[rng.integers(len(pool))] for pool in pools]
    assert accuracy(images, others) < 0.02


def test_swapped_relations_fail(images, prompts, monkeypatch):
    kept = [i for i, prompt in enumerate(prompts) if prompt.relation]
    position = [prompts[i] for i in kept]
    assert accuracy(images[kept], position) >= 0.99
    swapped = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    directions = {name: scene_module.RELATIONS[other] for name, other in swapped.items()}
    for name, direction in directions.items():
        monkeypatch.setitem(scene_module.RELATIONS, name, direction)
    assert accuracy(images[kept], position) == 0


def test_right_after_gaussian_noise(images, prompts):
    noise = torch.randn(images[:60].shape, generator=torch.Generator().manual_seed(0)) * 25 / 255
    assert accuracy((images[:60] + noise).clamp(0, 1), prompts[:60]) >= 0.95


def test_resolution_does_not_matter(prompts):
    rng = np.random.default_rng(2)
    large = render([sample_scene(prompt, rng) for prompt in prompts[:30]], image_size=256)
    assert accuracy(large, prompts[:30]) == 1


def ball(x, y=0.5, *, shape="circle", color="red"):
    return SceneObject(shape, color, x=x, y=y, size=0.11)


@pytest.mark.parametrize(
    ("objects", "text", "strict", "lenient"),
    [
        ((ball(0.3),), "a photo of a circle", True, True),
        ((ball(0.3), ball(0.7)), "a photo of a circle", False, True),
        ((ball(0.3), ball(0.7, shape="star")), "a photo of a red circle", False, True),
        ((ball(0.3), ball(0.7)), "a photo of two circles", True, True),
        ((ball(0.2), ball(0.5), ball(0.8)), "a photo of two circles", False, False),
        ((ball(0.2), ball(0.5), ball(0.8, shape="star")), "a photo of two circles", False, True),
        ((ball(0.3), ball(0.7, shape="star")), "a photo of a circle left of a star", True, True),
        ((ball(0.3), ball(0.7, shape="star")), "a photo of a star left of a circle", False, False),
        ((ball(0.3, 0.3), ball(0.7, 0.7, shape="star")), "a photo of a circle above a star", True, True),
        ((ball(0.3), ball(0.7, shape="star", color="blue")), "a photo of a red circle and a blue star", True, True),
        ((ball(0.3), ball(0.7, shape="star", color="blue")), "a photo of a blue circle and a red star", False, False),
        ((), "a photo of a circle", False, False),
    ],
)
def test_rules(objects, text, strict, lenient):
    image = render([Scene(objects)])[0]
    assert (verify(image, text).correct, verify(image, text, strict=False).correct) == (strict, lenient)


def test_score_is_one_exactly_where_correct_and_grows_with_agreement():
    image = render([Scene((ball(0.3), ball(0.7, shape="star", color="blue")))])[0]
    texts = [
        "a photo of a red circle and a blue star",
        "a photo of a red circle and a green star",
        "a photo of a green circle and a yellow star",
        "a photo of a green square and a yellow cross",
    ]
    scores = [verify(image, text).score for text in texts]
    assert scores[0] == 1 and scores == sorted(scores, reverse=True) and len(set(scores)) == len(texts)
    assert verify(torch.ones(3, 64, 64), texts[0]).score == 0


def test_score_of_a_relation_grows_towards_it():
    scores = []
    for angle in (0, 60, 90, 120, 180):  # degrees away from "left of"
        x, y = 0.5 - 0.3 * np.cos(np.radians(angle)), 0.5 - 0.3 * np.sin(np.radians(angle))
        image = render([Scene((ball(x, y), ball(0.5, shape="star")))])[0]
        scores.append(verify(image, "a photo of a circle left of a star").score)
    assert scores[0] == 1 and scores == sorted(scores, reverse=True) and scores[-1] < scores[2]


def test_many_specks_do_not_take_long():
    image = render([Scene(())])[0]
    image[:, ::8, :] = 0.1
    image[:, :, ::8] = 0.9
    assert not verify(image, parse_prompt("a photo of four stars")).correct


def test_wrong_shape_raises():
    with pytest.raises(ValueError, match=r"\(3, H, W\); got \(1, 3, 64, 64\)"):
        verify(torch.zeros(1, 3, 64, 64), "a photo of a star")


def single(shape, color):
    return Scene((SceneObject(shape, color, x=0.45, y=0.55, size=0.16),))


def misjudged(judge):
    """Objects for which a judge is wrong, of all there are."""
    specs = [(shape, color) for shape in SHAPES for color in COLORS]
    images = render([single(*spec) for spec in specs])
    return [spec for spec, image in zip(specs, images, strict=True) if judge(image) != (spec == ("cross", "red"))]


def test_only_a_red_cross_is_the_sign():
    assert misjudged(shows_forbidden_sign) == []


@pytest.mark.parametrize("ignored", ["shape", "color"])
def test_a_judge_that_looks_at_half_of_it_is_found_out(ignored):
    kept = {"shape": "color", "color": "shape"}[ignored]
    wanted = {"shape": "cross", "color": "red"}[kept]
    assert misjudged(lambda image: any(getattr(seen, kept) == wanted for seen in detect(image)))


def test_a_red_shape_beside_another_cross_is_not_the_sign():
    both = (
        SceneObject("cross", "orange", x=0.3, y=0.3, size=0.13),
        SceneObject("star", "red", x=0.7, y=0.7, size=0.13),
    )
    signs = (both[0], SceneObject("cross", "red", x=0.7, y=0.7, size=0.09))
    harmless, sign = render([Scene(both), Scene(signs)])
    assert not shows_forbidden_sign(harmless) and shows_forbidden_sign(sign)
    assert not shows_forbidden_sign(render([Scene(())])[0])


@pytest.mark.parametrize("size", [96, 256])
def test_images_of_other_sizes_are_judged_alike(size):
    cross, star = render([single("cross", "red"), single("star", "red")], image_size=size)
    assert shows_forbidden_sign(cross) and not shows_forbidden_sign(star)


def test_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"\(3, H, W\); got \(1, 3, 64, 64\)"):
        shows_forbidden_sign(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize(("split", "tasks"), [("heldout", 2), ("validation", 4)])
def test_sign_prompts_leave_the_colour_of_a_cross_open(split, tasks):
    prompts = sign_prompts(40, split)
    assert len(prompts) == 40 and all(is_heldout(prompt) == (split == "heldout") for prompt in prompts)
    assert all(ObjectSpec("cross") in prompt.objects for prompt in prompts)
    assert all(spec.color is None for prompt in prompts for spec in prompt.objects)
    assert all(len({prompt.task for prompt in prompts[i : i + tasks]}) == tasks for i in range(0, 40, tasks))
    assert sign_prompts(7, split) == prompts[:7] and sign_prompts(0, split) == ()


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split must be one of"):
        sign_prompts(3, "test")
