"""Scenes satisfy their prompts, by a check of the scenes that shares no code with the sampler's placing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fk_reward.shapes import Scene, SceneObject, all_prompts, parse_prompt, render, sample_scene, true_prompts


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    prompts = [prompt for prompt in all_prompts() if prompt.task != "color_attr"] + list(
        all_prompts("color_attr")[::10]
    )
    return [(prompt, sample_scene(prompt, rng)) for prompt in prompts]


def test_scenes_satisfy_their_prompts(drawn):
    assert all(prompt in true_prompts(scene) for prompt, scene in drawn)


def test_truth_tells_neighbouring_prompts_apart(drawn):
    by_task = {}
    for prompt, scene in drawn:
        also = sum(other.task == prompt.task for other in true_prompts(scene)) - 1
        by_task.setdefault(prompt.task, []).append(also)
    assert set(by_task["counting"]) == set(by_task["colors"]) == {0}
    assert set(by_task["two_object"]) == set(by_task["color_attr"]) == {1}  # the other order of the pair


def test_objects_neither_touch_nor_leave_the_canvas(drawn):
    for _, scene in drawn:
        for obj in scene.objects:
            assert min(obj.x, obj.y, 1 - obj.x, 1 - obj.y) > obj.extent
        for a, b in itertools.combinations(scene.objects, 2):
            assert np.hypot(a.x - b.x, a.y - b.y) > a.extent + b.extent + 2 / 64


def test_same_seed_same_scene():
    prompt = parse_prompt("a photo of four stars")
    first, second, other = (sample_scene(prompt, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first == second != other


def test_left_is_left():
    scene = sample_scene(parse_prompt("a photo of a square left of a circle"), np.random.default_rng(0))
    assert scene.objects[0].shape == "square"
    assert scene.objects[0].x < scene.objects[1].x
    assert render([scene]).shape == (1, 3, 64, 64)


def test_a_mixed_scene_satisfies_no_prompt():
    objects = tuple(SceneObject(shape, "red", x=0.5, y=0.5, size=0.1) for shape in ("star", "circle", "cross"))
    assert not true_prompts(Scene(objects))
