"""GenEval's own judge as a reward, strict as in the benchmark, or graded."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fk_reward.benchmarks.geneval.colors import CLIP
from fk_reward.benchmarks.geneval.detector import DETECTOR
from fk_reward.benchmarks.geneval.judge import ColorOf, Detection, judge, relative_position, select_detections
from fk_reward.benchmarks.geneval.official_judge import GenEvalJudge, refuse_unknown_names
from fk_reward.benchmarks.geneval.prompts import geneval_records, read_records
from fk_reward.rewards.base import Reward, RewardCard
from fk_reward.rewards.inputs import to_pil
from fk_reward.rewards.registry import RewardEntry

_CARD = RewardCard(
    name="geneval",
    summary="how much of its prompt an image shows by GenEval's judge, 1 exactly if GenEval calls it correct",
    typical_range=(0.0, 1.0),
    looks_at="the whole image, by a detector; colours by the crops of the objects",
    blind_to=("quality",),
    biases=("an image that it steered is no longer judged by it: GenEval needs another judge then (by construction)",),
    licence="MIT (GenEval's rules, Mask2Former, CLIP)",
    source="Ghosh et al. 2023, arXiv 2310.11513; the grading is our own",
    weights=f"{DETECTOR} and {CLIP}",
    memory="0.9 GB for the detector and 1.7 GB for CLIP",
)


class GenEvalReward(Reward):
    """Judges images of GenEval's prompts; an image steered by this reward must be judged by something else.

    Args:
        judge: detector and classifier of colours.
        records: of the prompts that it can be asked about, in the form of `evaluation_metadata.jsonl`.
        strict: 1 for a correct image, 0 for any other; else the mean of the graded conditions, `graded_score`.
        batch_size: images whose masks are held at a time.
        card: facts about the models.

    Raises:
        ValueError: for a record that the judge cannot judge.

    Example:
        >>> from fk_reward.benchmarks.geneval.prompts import counting_record
        >>> two_clocks = lambda images: [{"clock": [Detection((0, 0, 4, 4), 0.99)] * 2} for _ in images]
        >>> judge = GenEvalJudge(two_clocks, color_classifier=lambda *_: [])
        >>> reward = GenEvalReward(judge, [counting_record("clock", 2), counting_record("clock", 4)])
        >>> reward(torch.rand(2, 3, 8, 8), ["a photo of two clocks", "a photo of four clocks"])
        tensor([1.0000, 0.7500])
    """

    accepts_uint8 = True

    def __init__(
        self,
        judge: GenEvalJudge,
        records: Sequence[Mapping[str, Any]],
        *,
        strict: bool = False,
        batch_size: int | None = 8,
        card: RewardCard = _CARD,
    ) -> None:
        refuse_unknown_names(records)
        self.judge = judge
        self.records = {record["prompt"]: record for record in records}
        self.strict = strict
        self.batch_size = batch_size
        self.card = card

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Detect the objects of each image and hold them against the record of its prompt.

        Raises:
            ValueError: for a prompt without a record.
        """
        records = [self._record(prompt) for prompt in prompts]
        pil_images = to_pil(images)
        found = self.judge.detector(pil_images)
        rule = _strict_score if self.strict else graded_score
        scores = [
            rule(record, select_detections(objects, record["tag"]), partial(self.judge.color_classifier, image))
            for record, image, objects in zip(records, pil_images, found, strict=True)
        ]
        return torch.tensor(scores, dtype=torch.float32, device=images.device)

    def _record(self, prompt: str) -> Mapping[str, Any]:
        if prompt not in self.records:
            raise ValueError(
                f"There is no record of the prompt {prompt!r} among {len(self.records)}: GenEval's judge needs to know "
                "what to look for. Give records in prompts=<file>, in the form of evaluation_metadata.jsonl."
            )
        return self.records[prompt]

    def _held_modules(self) -> Iterator[nn.Module]:
        parts = (self.judge.detector, self.judge.color_classifier)
        held = itertools.chain.from_iterable(getattr(part, "__dict__", {}).values() for part in parts)
        return (value for value in held if isinstance(value, nn.Module))


def _strict_score(record: Mapping[str, Any], objects: Mapping[str, Sequence[Detection]], color_of: ColorOf) -> float:
    return float(judge(record, objects, color_of).correct)


def graded_score(record: Mapping[str, Any], objects: Mapping[str, Sequence[Detection]], color_of: ColorOf) -> float:
    """Mean of the conditions of a record, each in [0, 1]; 1 exactly where GenEval's rules call the image correct.

    Of a class that should be there, the share of the objects that are; of a colour, the share of the objects that have
    it; of a position, the share of the pairs that stand so (0 without its target); of a class that should not be there
    so often, 1 minus what is too much over what is allowed.

    Args:
        record: of the suite.
        objects: class -> detections that count, the surest first.
        color_of: names colours; called only if the record names one and an object of the class was found.

    Example:
        >>> record = {"include": [{"class": "cow", "count": 2}], "exclude": [{"class": "cow", "count": 3}]}
        >>> [graded_score(record, {"cow": [Detection((0, 0, 8, 8), 0.9)] * n}, color_of=None) for n in (0, 1, 2, 3)]
        [0.5, 0.75, 1.0, 0.75]
    """
    conditions: list[float] = []
    groups: list[Sequence[Detection] | None] = []
    for wanted in record.get("include", ()):
        found = list(objects.get(wanted["class"], ()))[: wanted["count"]]
        own = [len(found) / wanted["count"]]
        if "color" in wanted:
            own.append(_share_of_color(wanted, found, color_of))
        if "position" in wanted:
            own.append(_share_in_place(wanted, found, groups))
        groups.append(found if min(own) == 1 else None)  # as in the rules: a failed clause is no target of a position
        conditions += own
    conditions += [_share_allowed(unwanted, objects) for unwanted in record.get("exclude", ())]
    return sum(conditions) / len(conditions)


def _share_of_color(wanted: Mapping[str, Any], found: Sequence[Detection], color_of: ColorOf) -> float:
    colors = Counter(color_of(wanted["class"], found)) if found else Counter()
    return min(colors[wanted["color"]] / wanted["count"], 1.0)


def _share_in_place(
    wanted: Mapping[str, Any], found: Sequence[Detection], groups: Sequence[Sequence[Detection] | None]
) -> float:
    relation, target = wanted["position"]
    pairs = list(itertools.product(found, groups[target] or ()))
    if not pairs:
        return 0.0
    return sum(relation in relative_position(one.box, other.box) for one, other in pairs) / len(pairs)


def _share_allowed(unwanted: Mapping[str, Any], objects: Mapping[str, Sequence[Detection]]) -> float:
    """From 1 for fewer than `count` down to 0."""
    too_many = max(len(objects.get(unwanted["class"], ())) - (unwanted["count"] - 1), 0)
    return max(1 - too_many / max(unwanted["count"] - 1, 1), 0.0)


def load_geneval_reward(  # noqa: PLR0913 (options of one reward)
    *,
    detector: str | os.PathLike[str] = DETECTOR,
    clip: str | os.PathLike[str] = CLIP,
    prompts: str | os.PathLike[str] | None = None,
    strict: bool = False,
    torch_dtype: torch.dtype = torch.float32,
    batch_size: int | None = 8,
    judge: GenEvalJudge | None = None,
) -> GenEvalReward:
    """Load the judge: what `load_reward("geneval", ...)` calls.

    Args:
        detector: hub id or folder of a Mask2Former trained on COCO's instances.
        clip: hub id or folder of a CLIP, for the colours.
        prompts: file of records; None for GenEval's 553.
        strict: 1 or 0 instead of a graded score.
        torch_dtype: of the weights.
        batch_size: images at a time.
        judge: detector and classifier of your own instead.

    Raises:
        OSError: when files are missing.
        ValueError: for records that cannot be judged.
    """
    records = geneval_records() if prompts is None else read_records(prompts)
    made = judge or GenEvalJudge.from_pretrained(detector, clip, torch_dtype=torch_dtype)
    return GenEvalReward(made, records, strict=strict, batch_size=batch_size)


GENEVAL = RewardEntry(_CARD, load_geneval_reward)
