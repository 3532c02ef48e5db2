"""What the tower of the MLLM is taught is what the pixels show."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fk_reward.shapes import BACKGROUND, COLORS, SHAPES, Scene, SceneObject, render


@pytest.fixture(scope="module")
def scenes():
    from scene_data import mixed_scene

    rng = np.random.default_rng(0)
    return [mixed_scene(rng) for _ in range(100)]


def colors_agree(targets, images):
    """Whether a patch of a class has its colour in its middle, and an empty one nothing but background."""
    from train_clip import EMPTY, UNKNOWN

    palette = torch.tensor([*COLORS.values()]) / 255
    middle = images[:, :, 3::8, 3::8].flatten(2).mT
    known = (targets != UNKNOWN) & (targets != EMPTY)
    right = torch.allclose(middle[known], palette[targets[known] % len(COLORS)], atol=0.02)
    patches = images.unfold(2, 8, 8).unfold(3, 8, 8).flatten(2, 3)
    background = torch.tensor(BACKGROUND)[None, :, None, None, None] / 255
    touched = ((patches - background).abs() > 0.02).flatten(3).any(-1).any(1)
    return right and not touched[targets == EMPTY].any() and known.sum() > 2 * len(images)


def test_patches_have_the_class_of_what_covers_them(scenes):
    from scene_data import to_table
    from train_tower import patch_targets

    covered, centered, _ = patch_targets(to_table(scenes), 8)
    images = render(scenes)
    assert colors_agree(covered, images)
    assert not colors_agree(covered.unflatten(1, (8, 8)).mT.flatten(1), images), "x and y swapped"
    assert not colors_agree(covered[:, torch.arange(63, -1, -1)], images)


def test_each_object_is_found_once_by_its_centre(scenes):
    from scene_data import to_table
    from train_clip import EMPTY
    from train_tower import patch_centers, patch_targets

    _, centered, geometry = patch_targets(to_table(scenes), 8)
    centers = patch_centers(8, centered.device)
    for scene, classes, places in zip(scenes, centered, geometry, strict=True):
        cells = (classes != EMPTY).nonzero().flatten()
        kinds = [(SHAPES[c // len(COLORS)], tuple(COLORS)[c % len(COLORS)]) for c in classes[cells].tolist()]
        found = (centers[cells] + places[cells, :2] / 8).tolist()
        expected = sorted((obj.x, obj.y, obj.shape, obj.color) for obj in scene.objects)
        for (x, y, *kind), seen in zip(expected, sorted(zip(found, kinds, strict=True)), strict=True):
            assert tuple(kind) == seen[1] and seen[0] == pytest.approx([x, y], abs=1e-5)


def test_a_star_by_hand():
    from scene_data import to_table
    from train_clip import EMPTY
    from train_tower import patch_targets

    obj = SceneObject("star", "red", x=0.3, y=0.7, size=0.2)
    covered, centered, geometry = patch_targets(to_table([Scene((obj,))]), 8)
    (cell,) = (centered[0] != EMPTY).nonzero().flatten().tolist()
    assert (cell % 8, cell // 8) == (2, 5)
    assert geometry[0, cell].tolist() == pytest.approx([0.3 * 8 - 2.5, 0.7 * 8 - 5.5, 0.2 * 8], abs=1e-5)
    assert covered[0, cell] == centered[0, cell]


def test_the_centre_of_what_a_patch_shows():
    """Patches of the left object point left, those of the right one right; other patches are not asked."""
    from scene_data import to_table
    from train_tower import patch_places

    left, right = (SceneObject("square", "red", x=x, y=0.5, size=0.15) for x in (0.25, 0.75))
    places, shown = patch_places(to_table([Scene((left, right))]), 8)
    columns = torch.arange(64) % 8
    assert torch.equal(places[0, shown[0], 0], torch.where(columns[shown[0]] < 4, 2.0, 6.0))
    assert (places[0, shown[0], 1] == 4).all() and 8 <= shown.sum() <= 16
    nothing = to_table([Scene((left,))])
    nothing[:, :, 0] = -1
    assert not patch_places(nothing, 8)[1].any()
