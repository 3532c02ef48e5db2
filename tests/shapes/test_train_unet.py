"""What the UNet of `shapes-sd` is asked for beside the velocity: relations told from their opposites."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import CLIPTextModel

from fk_reward.shapes import all_prompts, is_heldout

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
SAME = 0.02 * math.log(2)  # the margin's softplus where both errors are equal


def placed():
    """Indices of the prompts that have an opposite to train on."""
    from train_unet import opposite_prompts

    return [index for index, other in enumerate(opposite_prompts().tolist()) if other >= 0]


class Constant(nn.Module):
    """Predicts one value for the rows of true captions and another for those of reversed ones."""

    def __init__(self, true, reversed_):
        super().__init__()
        self.values = (true, reversed_)

    def forward(self, noisy, steps, encoder_hidden_states):
        assert len(noisy) == len(steps) == len(encoder_hidden_states)
        halves = [torch.full_like(half, value) for half, value in zip(noisy.chunk(2), self.values, strict=True)]
        return SimpleNamespace(sample=torch.cat(halves))


def contrast(true, reversed_, rows=None):
    from train_unet import DiffusionObjective, PositionEmphasis, make_text_config

    tokens = torch.randint(3, 20, (len(all_prompts()) + 1, 12), generator=torch.Generator().manual_seed(0))
    words = SimpleNamespace(model_max_length=12, bos_token_id=1, eos_token_id=2, pad_token_id=2)
    config = make_text_config(type("Words", (), vars(words) | {"__len__": lambda self: 20})())
    objective = DiffusionObjective(Constant(true, reversed_), CLIPTextModel(config), tokens, PositionEmphasis())
    rows = torch.tensor(placed()[:4] if rows is None else rows)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return float(objective.contrast(torch.zeros(len(rows), 4, 16, 16), rows))


def test_opposites_are_the_same_objects_the_other_way_and_none_is_held_out():
    from train_unet import opposite_prompts

    prompts, opposites = all_prompts(), opposite_prompts().tolist()
    assert opposites[-1] == -1 and len(opposites) == len(prompts) + 1
    for index in placed():
        one, other = prompts[index], prompts[opposites[index]]
        assert (other.objects, other.relation) == (one.objects, OPPOSITE[one.relation])
        assert not is_heldout(other)
    left_out = [p for p, other in zip(prompts, opposites, strict=False) if p.relation and other < 0]
    assert left_out, "some opposites are held out, and are not trained on"


def test_a_caption_is_one_of_those_that_are_true_and_trained_on():
    """By the shares of their tasks, and never one that is held out: 4 of 6 draws take a position, 2 a count."""
    from train_unet import caption_shares, one_caption

    prompts = all_prompts()
    position, counting = (
        next(i for i, p in enumerate(prompts) if p.task == task and not is_heldout(p))
        for task in ("position", "counting")
    )
    heldout = next(i for i, p in enumerate(prompts) if is_heldout(p))
    shares, draws = caption_shares(), 3000
    rows = torch.tensor([[heldout, counting, position, -1]], dtype=torch.int16).repeat(draws, 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = one_caption(rows, shares)
    assert set(found.tolist()) == {position, counting}
    assert float((found == position).float().mean()) == pytest.approx(4 / 6, abs=4 * (2 / 9 / draws) ** 0.5)


@pytest.mark.parametrize(("reversed_", "expected"), [(0.0, SAME), (9.0, 0.0)])
def test_the_contrast_is_nothing_where_the_caption_explains_the_scene_better(reversed_, expected):
    assert contrast(0.0, reversed_) == pytest.approx(expected, abs=1e-6)


def test_a_model_that_reads_relations_the_wrong_way_is_noticed():
    assert contrast(9.0, 0.0) > 10


def test_captions_without_a_relation_are_not_contrasted():
    assert contrast(9.0, 0.0, rows=[len(all_prompts())]) == 0.0
