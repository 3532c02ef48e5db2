"""Drawn images: every candidate kept and scored, chosen afterwards, the same after a restart."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from fk_reward.training.skills.images import Drawing, draw_images, read_images

PROMPTS = ["two cats", "three dogs", "four kites"]


class Pipe:
    """Draws images of one grey level, which is random."""

    def __init__(self, *, fails_after=None):
        self.calls, self.fails_after = [], fails_after

    def __call__(self, *, prompt, generator, output_type, **options):
        if self.fails_after is not None and len(self.calls) == self.fails_after:
            raise RuntimeError("the machine was needed")
        self.calls.append((list(prompt), options))
        levels = torch.stack([torch.rand((), generator=each) for each in generator])
        return SimpleNamespace(images=levels[:, None, None, None].expand(-1, 3, 8, 8))


def brightness(images, prompts):
    assert images.dtype == torch.float32
    return images.mean(dim=(1, 2, 3))


def draw(folder, pipe=None, reward=brightness, prompts=PROMPTS, **options):
    drawing = Drawing(**{"num_candidates": 3, "batch_size": 6} | options)
    return list(draw_images(pipe or Pipe(), reward, prompts, folder, drawing=drawing))


def rows(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_all_candidates_are_kept_and_the_best_is_chosen_later(tmp_path):
    assert draw(tmp_path) == [0, 2, 3]
    found = rows(tmp_path)
    assert [row["text"] for row in found] == [prompt for prompt in PROMPTS for _ in range(3)]
    for row in found:
        assert row["file_name"] == f"images/{row['index']:05d}-{row['candidate']:02d}.png"
    best = read_images(tmp_path)
    assert [image.prompt for image in best] == PROMPTS
    for index, image in enumerate(best):
        rewards = [row["reward"] for row in found if row["index"] == index]
        assert image.reward == max(rewards)
        assert abs(image.load().getpixel((0, 0))[0] / 255 - image.reward) < 1 / 255
    assert len(read_images(tmp_path, keep="all")) == 9
    first = read_images(tmp_path, keep="first")
    assert [image.path.name for image in first] == ["00000-00.png", "00001-00.png", "00002-00.png"]
    assert all(image.reward > 0.5 for image in read_images(tmp_path, keep="all", min_reward=0.5))


def test_several_images_of_a_prompt_are_kept(tmp_path):
    draw(tmp_path)
    best, first = (read_images(tmp_path, keep=keep, num_kept=2) for keep in ("best", "first"))
    assert len(best) == len(first) == 2 * len(PROMPTS)
    for index in range(len(PROMPTS)):
        rewards = sorted((row["reward"] for row in rows(tmp_path) if row["index"] == index), reverse=True)
        assert sorted((i.reward for i in best[2 * index : 2 * index + 2]), reverse=True) == rewards[:2]
        names = [image.path.name for image in first[2 * index : 2 * index + 2]]
        assert names == [f"{index:05d}-00.png", f"{index:05d}-01.png"]
    every = [image.path for image in read_images(tmp_path, keep="first", num_kept=9)]
    assert every == [image.path for image in read_images(tmp_path, keep="all")]


def test_neither_batches_nor_restarts_change_an_image(tmp_path):
    draw(tmp_path / "one")
    draw(tmp_path / "other", batch_size=1)
    with pytest.raises(RuntimeError, match="needed"):
        draw(tmp_path / "cut", Pipe(fails_after=1))
    assert not (tmp_path / "cut" / "metadata.jsonl").exists()
    with pytest.raises(FileNotFoundError, match="has not ended"):
        read_images(tmp_path / "cut")
    again = Pipe()
    assert draw(tmp_path / "cut", again) == [2, 3]
    assert again.calls[0][0] == ["four kites"] * 3
    assert rows(tmp_path / "one") == rows(tmp_path / "other") == rows(tmp_path / "cut")
    assert rows(tmp_path / "one")[0]["reward"] != rows(tmp_path / "one")[1]["reward"]


def test_settings_reach_the_pipeline(tmp_path):
    pipe = Pipe()
    draw(tmp_path, pipe, num_inference_steps=7, guidance_scale=3.0)
    assert pipe.calls[0][1] == {"num_inference_steps": 7, "guidance_scale": 3.0}


@pytest.mark.parametrize("change", [{"seed": 1}, {"prompts": PROMPTS[:2]}, {"num_candidates": 2}])
def test_two_drawings_are_not_mixed(tmp_path, change):
    draw(tmp_path)
    with pytest.raises(ValueError, match=f"images of other {next(iter(change))}"):
        draw(tmp_path, **change)


def test_without_a_reward_nothing_is_chosen(tmp_path):
    draw(tmp_path, reward=None)
    assert len(read_images(tmp_path, keep="all")) == 9
    with pytest.raises(ValueError, match="without a reward"):
        read_images(tmp_path)


def test_a_reward_without_a_score_is_told(tmp_path):
    with pytest.raises(ValueError, match="finite scores"):
        draw(tmp_path, reward=lambda images, prompts: torch.full((len(prompts),), float("nan")))


def test_refusals(tmp_path):
    draw(tmp_path)
    with pytest.raises(ValueError, match="keep must be one of best, all, first"):
        read_images(tmp_path, keep="some")
    with pytest.raises(ValueError, match="num_kept=2 goes with keep='best' or 'first'"):
        read_images(tmp_path, keep="all", num_kept=2)
    with pytest.raises(ValueError, match="num_kept should be at least 1"):
        read_images(tmp_path, num_kept=0)
    with pytest.raises(ValueError, match="No image .* is left"):
        read_images(tmp_path, min_reward=2.0)
    with pytest.raises(ValueError, match="no prompt"):
        draw(tmp_path / "x", prompts=[])
    with pytest.raises(ValueError, match="num_candidates should be at least 1"):
        Drawing(num_candidates=0)
