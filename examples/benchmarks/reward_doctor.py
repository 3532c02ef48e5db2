"""The doctor on every reward of the package, and on rewards that were broken on purpose: each has to be found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fk_reward.benchmarks.report import Column, markdown_table, show_table
from fk_reward.cli import run_script
from fk_reward.planning.planned_models import is_at_hand
from fk_reward.rewards import REWARDS, Reward, load_reward
from fk_reward.rewards.doctor import PROBES, Diagnosis, Outcome, Specimens, examine
from fk_reward.shapes import Scene, SceneObject, render
from fk_reward.terminal import say, write_document

COLUMNS = (
    Column("reward", style="`{}`"),
    Column("defect"),
    Column("meant", "meant for"),
    Column("passed", style="{:d}"),
    Column("failed"),
    Column("not_applicable", "not applicable", "{:d}"),
    Column("verdict"),
)

_CLIP, _LLAVA, _SAFETY = "shapes-clipscore", "shapes-llava-reward-alignment", "shapes-llava-reward-safety"


class Broken(Reward):
    """A reward with something wrong.

    Args:
        base: the sound one.
        spoil: makes scores of it, images and prompts.
    """

    accepts_uint8 = True

    def __init__(self, base: Reward, spoil: Callable[[Reward, Tensor, list[str]], Tensor]) -> None:
        self.base, self.spoil, self.card = base, spoil, base.card
        self.networks = torch.nn.ModuleList(base._held_modules())  # the doctor converts them

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """What is left of the base's scores."""
        return self.spoil(self.base, images, prompts)


def _cropped(reward: Reward, images: Tensor, prompts: list[str]) -> Tensor:
    side = min(images.shape[-2:])
    top, left = ((length - side) // 2 for length in images.shape[-2:])
    return reward(images[..., top : top + side, left : left + side], prompts)


def _shuffled(reward: Reward, images: Tensor, prompts: list[str]) -> Tensor:
    known = sorted(set(prompts))
    return reward(images, [known[known.index(prompt) - 1] for prompt in prompts] if len(known) > 1 else prompts)


def _darkness(reward: Reward, images: Tensor, prompts: list[str]) -> Tensor:
    brightness = images.float().mean(dim=(1, 2, 3)) / (255 if images.dtype == torch.uint8 else 1)
    return reward(images, prompts) - 20 * brightness


def _swapped_channels(reward: Reward, images: Tensor, prompts: list[str]) -> Tensor:
    return reward(images.flip(1) if images.dtype == torch.uint8 else images, prompts)


def _coarse(reward: Reward, images: Tensor, prompts: list[str]) -> Tensor:
    return (200 + reward(images, prompts)).to(torch.bfloat16).float()


@contextmanager
def adapter_of_zeros(reward: Any) -> Iterator[None]:
    """Empty the second factors of a LLaVA-Reward's LoRA inside a `with` block; rewards of one model share it."""
    weights = reward.model.adapters.parameters_of(reward._key(reward.dimension))
    factors = [weight for name, weight in weights.items() if ".lora_B." in name]
    kept = [factor.detach().clone() for factor in factors]
    try:
        for factor in factors:
            factor.data.zero_()
        yield
    finally:
        for factor, values in zip(factors, kept, strict=True):
            factor.data.copy_(values)


DEFECTS: dict[str, tuple[str, str, Callable[[Reward, Tensor, list[str]], Tensor]]] = {
    "images cropped to the centre": (_LLAVA, "crop", _cropped),
    "captions shuffled": (_CLIP, "prompt", _shuffled),
    "captions not read": (_CLIP, "prompt", lambda reward, images, prompts: reward(images, "a photo of a red circle")),
    "upside down": (_CLIP, "prompt", lambda reward, images, prompts: -reward(images, prompts)),
    "loves darkness": (_CLIP, "blank", _darkness),
    "less the mean of the batch": (
        _CLIP,
        "batch",
        lambda reward, images, prompts: reward(images, prompts) - reward(images, prompts).mean(),
    ),
    "another score each time": (
        _CLIP,
        "repeat",
        lambda reward, images, prompts: reward(images, prompts) + torch.randn(len(images)),
    ),
    "8-bit images as BGR": (_CLIP, "kinds", _swapped_channels),
    "head in bfloat16": (_CLIP, "dtype", _coarse),
    "no gradient": (_CLIP, "gradient", lambda reward, images, prompts: reward(images, prompts).detach()),
}
"""What is wrong -> the sound reward, the probe that is meant for it, and how the scores are spoilt."""


def embedded_rows() -> Iterator[dict[str, Any]]:
    """Each reward whose weights come with the package."""
    for name in filter(is_at_hand, REWARDS):
        diagnosis = examine(load_reward(name))
        verdict = "healthy" if diagnosis.is_healthy else "ill"
        yield {"reward": name, "defect": "none", "meant": "-", **_counts(diagnosis), "verdict": verdict}


def broken_rows() -> Iterator[dict[str, Any]]:
    """One defect after the other, by all probes."""
    reward = load_reward(_LLAVA)
    with adapter_of_zeros(reward):
        yield _broken_row(_LLAVA, "adapter of zeros", "adapter", examine(reward))
    for defect, (name, probe, spoil) in DEFECTS.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield _broken_row(name, defect, probe, examine(Broken(load_reward(name), spoil)))
    exchanged = examine(-load_reward(_SAFETY), specimens=signs())
    yield _broken_row(_SAFETY, "labels exchanged", "polarity", exchanged)


def signs() -> Specimens:
    """Scenes without the forbidden sign of the shapes world, a red cross, and the same with it."""
    drawn = (("circle", "green"), ("square", "blue"), ("star", "yellow"), ("triangle", "purple"))
    things = [SceneObject(shape, color, x=0.3, y=0.3, size=0.14) for shape, color in drawn]
    sign, other = (SceneObject("cross", color, x=0.7, y=0.7, size=0.14) for color in ("red", "blue"))
    images, worse = (render([Scene((thing, last)) for thing in things]) for last in (other, sign))
    return Specimens.of(images, [f"a photo of a {color} {shape}" for shape, color in drawn], worse=worse)


def _broken_row(name: str, defect: str, probe: str, diagnosis: Diagnosis) -> dict[str, Any]:
    verdict = "found" if probe in diagnosis.failures else "missed"
    return {"reward": name, "defect": defect, "meant": probe, **_counts(diagnosis), "verdict": verdict}


def _counts(diagnosis: Diagnosis) -> dict[str, Any]:
    outcomes = [finding.outcome for finding in diagnosis.findings.values()]
    return {
        "passed": outcomes.count(Outcome.PASS),
        "failed": ", ".join(diagnosis.failures) or "-",
        "not_applicable": outcomes.count(Outcome.NOT_APPLICABLE),
    }


def main(*, markdown: bool = False) -> None:
    """Examine the rewards of the package, and one of them with one defect after the other; exit code 1 on a surprise.

    Args:
        markdown: Print Markdown and nothing else.
    """
    found = [*embedded_rows(), *broken_rows()]
    if markdown:
        write_document(markdown_table(COLUMNS, found) + "\n")
    else:
        show_table(f"The doctor's {len(PROBES)} probes", COLUMNS, found)
    surprises = [row for row in found if row["verdict"] in ("ill", "missed")]
    if surprises:
        say(f"Not as expected: {', '.join(row['reward'] + ', ' + row['defect'] for row in surprises)}.")
        raise SystemExit(1)


if __name__ == "__main__":
    run_script(main)
