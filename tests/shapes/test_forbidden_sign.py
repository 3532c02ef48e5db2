"""The forbidden sign is seen where it is, and nowhere else."""

from __future__ import annotations

import pytest
import torch

from fk_reward.shapes import (
    COLORS,
    SHAPES,
    ObjectSpec,
    Scene,
    SceneObject,
    detect,
    is_heldout,
    render,
    shows_forbidden_sign,
    sign_prompts,
)


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
def test_pictures_of_other_sizes_are_judged_alike(size):
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
