"""Connected components and colours against scipy, and the splitting of two-coloured regions."""

from __future__ import annotations

import pytest
import torch

from fk_reward.shapes import COLORS, SHAPES, Scene, SceneObject, detect, render
from fk_reward.shapes.recognition import components, segments


@pytest.mark.parametrize("density", [0.2, 0.4, 0.6])
def test_components_are_scipy_s(density):
    label = pytest.importorskip("scipy.ndimage").label
    mask = torch.rand(40, 50, generator=torch.Generator().manual_seed(1)) < density
    expected, count = label(mask.numpy(), structure=[[1] * 3] * 3)
    found = list(components(mask))
    assert len(found) == count
    assert {frozenset(part.flatten().nonzero()[:, 0].tolist()) for part in found} == {
        frozenset((expected.flatten() == i + 1).nonzero()[0].tolist()) for i in range(count)
    }


def test_a_long_winding_component_is_one():
    snake = torch.zeros(41, 41, dtype=torch.bool)
    snake[::2] = True
    snake[1::4, -1] = snake[3::4, 0] = True
    for mask in (snake, snake.T, snake.flip(0), snake.T.flip(1)):
        assert [part.equal(mask) for part in components(mask)] == [True]


def test_components_come_in_reading_order_and_can_be_asked_to_be_large():
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[0, 6:], mask[2, 2], mask[4:, :3], mask[4:, 5:7] = True, True, True, True
    assert [int(part.sum()) for part in components(mask)] == [2, 1, 12, 8]
    assert [int(part.sum()) for part in components(mask, min_area=8)] == [12, 8]
    assert [int(part.sum()) for part in components(mask, min_area=9)] == [12]


def test_an_empty_mask_has_no_components():
    assert not list(components(torch.zeros(4, 4, dtype=torch.bool)))


@pytest.mark.parametrize("color", COLORS)
def test_colours_survive_blur_at_the_edges(color):
    scene = Scene((SceneObject("star", color, x=0.5, y=0.5, size=0.12),))
    image = torch.nn.functional.avg_pool2d(render([scene])[0], 3, 1, 1, count_include_pad=False)
    assert [segment.color for segment in segments(image)] == [color]


def test_a_component_of_two_colours_is_split():
    image = render([Scene((SceneObject("square", "red", x=0.5, y=0.5, size=0.2),))])[0]
    image[:, :, 32:] = render([Scene((SceneObject("square", "blue", x=0.5, y=0.5, size=0.2),))])[0][:, :, 32:]
    assert {segment.color for segment in segments(image)} == {"red", "blue"}


def test_specks_are_ignored():
    image = render([Scene(())])[0]
    image[:, 10:14, 10:14] = 0.0
    assert not segments(image)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_recognised_small_large_and_turned(shape):
    objects = [
        SceneObject(shape, "green", x=0.5, y=0.5, size=size, rotation=angle)
        for size in (0.09, 0.13, 0.24)
        for angle in (-10.0, -5.0, 0.0, 10.0)
    ]
    found = [detect(image) for image in render([Scene((obj,)) for obj in objects])]
    assert [[seen.shape for seen in objects] for objects in found] == [[shape]] * len(objects)


def test_a_blob_is_no_shape():
    image = render([Scene(())])[0]
    image[:, 20:30, 10:54] = 0.1
    assert [seen.shape for seen in detect(image)] == [None]
