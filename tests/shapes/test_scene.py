"""The renderer against shapely-free oracles: areas, distances, colours and places known in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from fk_reward.shapes import BACKGROUND, COLORS, SHAPES, Scene, SceneObject, render
from fk_reward.shapes.scene import OUTLINES, signed_distance

BACKGROUND_COLOR = torch.tensor(BACKGROUND) / 255


def coverage(image, color):
    """Share of each pixel covered, read off an image of one object."""
    paint = torch.tensor(COLORS[color]) / 255 - BACKGROUND_COLOR
    return ((image - BACKGROUND_COLOR[:, None, None]) * paint[:, None, None]).sum(0) / paint.square().sum()


@pytest.mark.parametrize("shape", SHAPES)
def test_area_and_centroid_are_those_asked_for(shape):
    size, place = 0.2, (0.4, 0.55)
    scene = Scene((SceneObject(shape, "blue", x=place[0], y=place[1], size=size, rotation=8.0),))
    covered = coverage(render([scene], image_size=128)[0], "blue")
    assert covered.mean().item() == pytest.approx(math.pi * size**2, rel=0.01)
    ticks = (torch.arange(128) + 0.5) / 128
    centroid = ((covered * ticks).sum() / covered.sum(), (covered * ticks[:, None]).sum() / covered.sum())
    assert [c.item() for c in centroid] == pytest.approx(place, abs=0.003)


@pytest.mark.parametrize("shape", OUTLINES)
def test_signed_distance_to_a_polygon_agrees_with_matplotlib_inside_test_and_dense_outline(shape):
    path = pytest.importorskip("matplotlib.path").Path(OUTLINES[shape])
    points = torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) * 4 - 2
    distance = signed_distance(points[:, 0], points[:, 1], shape)
    inside = torch.tensor(path.contains_points(points.numpy()))
    assert torch.equal(distance < 0, inside)
    vertices = torch.tensor(OUTLINES[shape])
    steps = torch.linspace(0, 1, 400)[:, None, None]
    outline = (vertices + steps * (vertices.roll(-1, 0) - vertices)).flatten(0, 1)
    torch.testing.assert_close(distance.abs(), torch.cdist(points, outline).amin(1), atol=5e-3, rtol=0)


def test_rotation_is_clockwise():
    scene = Scene((SceneObject("triangle", "red", x=0.5, y=0.5, size=0.2, rotation=90.0),))
    covered = coverage(render([scene])[0], "red").sum(0)
    assert covered.nonzero().max() - 32 > 32 - covered.nonzero().min()  # the tip of the triangle points right


def test_every_colour_is_drawn_as_named_and_the_rest_is_background():
    scenes = [Scene((SceneObject("square", color, x=0.5, y=0.5, size=0.2),)) for color in COLORS]
    images = (render(scenes) * 255).round()
    assert images[:, :, 32, 32].tolist() == [list(map(float, rgb)) for rgb in COLORS.values()]
    assert images[:, :, 2, 2].tolist() == [list(map(float, BACKGROUND))] * len(COLORS)


def test_an_image_does_not_depend_on_its_batch():
    scenes = [
        Scene(
            (SceneObject("star", "red", x=0.3, y=0.3, size=0.1), SceneObject("circle", "blue", x=0.7, y=0.7, size=0.1))
        ),
        Scene((SceneObject("cross", "green", x=0.5, y=0.5, size=0.2),)),
        Scene(()),
    ]
    torch.testing.assert_close(render(scenes), torch.cat([render([scene]) for scene in scenes]))


@pytest.mark.parametrize(("shape", "color"), [("hexagon", "red"), ("star", "pink")])
def test_unknown_names_raise(shape, color):
    with pytest.raises(ValueError, match="must be one of"):
        SceneObject(shape, color, x=0.5, y=0.5, size=0.1)
