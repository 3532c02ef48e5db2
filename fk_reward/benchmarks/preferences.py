"""How often a reward is right on preference data: pairs decided, labelled images ordered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from fk_reward.benchmarks.report import Column, Report, Table, markdown_table, write_json
from fk_reward.benchmarks.statistics import clustered_bootstrap
from fk_reward.durable_files import write_whole
from fk_reward.rewards import Reward
from fk_reward.rewards.composition.composite import CompositeReward
from fk_reward.rewards.llava_reward import LlavaReward
from fk_reward.rewards.vlm_judge import PreferenceJudge
from fk_reward.training.metrics import answer_metrics
from fk_reward.training.preference_data import LabelledImage, PreferenceItem


def compares(reward: Reward) -> TypeGuard[LlavaReward | PreferenceJudge]:
    """Whether a reward compares images and has no score of a single one: a general preference, a judge of pairs.

    Example:
        >>> from fk_reward.rewards import load_reward
        >>> compares(load_reward("shapes-verifier"))
        False
    """
    if isinstance(reward, LlavaReward):
        return reward.compares_images
    return isinstance(reward, PreferenceJudge)


def has_comparing_part(reward: Reward) -> bool:
    """Whether a composition has such a part, so that an image's score depends on the others of the call.

    Example:
        >>> from fk_reward.rewards import load_reward
        >>> has_comparing_part(2 * load_reward("shapes-verifier"))
        False
    """
    return isinstance(reward, CompositeReward) and any(compares(part) for part in reward.parts.values())


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers of one reward to N questions.

    Attributes:
        logits: (N,) float64. Of a pair: above 0 prefers the chosen image, 0 is a tie. Of a labelled image: its
            score, which is a logit of the label only if the reward was trained as one.
        truths: (N,) bool, the labels; for pairs all True.
        prompts: N prompts, for a pair the chosen image's.
        is_labelled: whether the questions are labelled images.
        num_heard: answers that the listener of a `PreferenceJudge` has read; 0 without one.
        num_contradicted: those of them that did not convince it.

    N: number of pairs or of labelled images.
    """

    logits: Tensor
    truths: Tensor
    prompts: tuple[str, ...]
    is_labelled: bool
    num_heard: int = 0
    num_contradicted: int = 0

    @property
    def right(self) -> Tensor:
        """(N,) bool, which answers are right; a tie is not."""
        return (self.logits != 0) & ((self.logits > 0) == self.truths)


@torch.no_grad()
def ask_reward(reward: Reward, items: Sequence[PreferenceItem], *, batch_size: int = 64) -> Answers:
    """Let a reward judge preference data.

    A pair is decided by the difference of the scores of its two rows, where lower is better if the card says so. A
    general preference, which has no score of a single image, is asked for its preference logit; a judge of pairs for
    the probability, less a half; a composition with such a part is asked pair by pair.

    Args:
        reward: the reward.
        items: pairs, or labelled images, as `read_preferences` gives them.
        batch_size: pairs or labelled images that are decoded and scored at a time.

    Raises:
        ValueError: without items; for labelled images under a reward that compares; for pairs of two prompts under a
            judge of pairs.

    Example:
        >>> from PIL import Image
        >>> from fk_reward.rewards import load_reward
        >>> from fk_reward.training import read_preferences
        >>> red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
        >>> pairs = read_preferences([{"prompt": "red", "chosen_path": red, "reject_path": blue}])
        >>> ask_reward(load_reward(lambda images, prompts: images[:, 0].mean(dim=(1, 2))), pairs).right
        tensor([True])
    """
    if not items:
        raise ValueError("Expected at least one pair or labelled image, got none.")
    is_labelled = isinstance(items[0], LabelledImage)
    if is_labelled and (compares(reward) or has_comparing_part(reward)):
        raise ValueError(f"{reward.card.name} compares images; it cannot judge labelled ones by themselves.")
    batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    before = _heard(reward)
    logits = torch.cat([_logits(reward, batch) for batch in batches]).double().cpu()
    num_heard, num_contradicted = (now - then for now, then in zip(_heard(reward), before, strict=True))
    return Answers(
        logits=logits,
        truths=torch.tensor([item.label if isinstance(item, LabelledImage) else True for item in items]),
        prompts=tuple(item.prompts[0] for item in items),
        is_labelled=is_labelled,
        num_heard=num_heard,
        num_contradicted=num_contradicted,
    )


def is_label_logit(reward: Reward) -> bool:
    """Whether 0 is the reward's own border between the two labels: it was trained with the binary objective."""
    return isinstance(reward, LlavaReward) and not reward.objective.takes_pairs


def summarize_answers(answers: Answers, *, label_logits: bool = False) -> dict[str, Any]:
    """Measures of one set of answers, as a row of a table.

    Args:
        answers: of one reward.
        label_logits: whether the scores of labelled images are logits, see `is_label_logit`; if not, there is no
            border between the labels, and only the order of the images is judged.

    Returns:
        `num`, `num_prompts`; for pairs and label logits `accuracy` (a tie is wrong) with its 95 % bootstrap interval
        `low`, `high` over distinct prompts, `accuracy_without_ties` and `ties`; for labelled images `auc`; where a
        listener read the answers `contradicted`, the share that did not convince it.

    Example:
        >>> prompts = ("a star", "a dog")
        >>> row = summarize_answers(Answers(torch.tensor([0.5, 0.0]), torch.ones(2, dtype=torch.bool), prompts, False))
        >>> row["accuracy"], row["accuracy_without_ties"], row["ties"]
        (0.5, 1.0, 0.5)
    """
    row: dict[str, Any] = {"num": len(answers.prompts), "num_prompts": len(set(answers.prompts))}
    if label_logits or not answers.is_labelled:
        metrics = answer_metrics(answers.logits, answers.truths)
        interval = clustered_bootstrap(answers.right.double().tolist(), answers.prompts)
        row |= {name: metrics[name] for name in ("accuracy", "accuracy_without_ties", "ties")}
        row |= {"low": interval.low, "high": interval.high}
    if answers.is_labelled:
        row["auc"] = area_under_curve(answers.logits, answers.truths)
    if answers.num_heard:
        row["contradicted"] = answers.num_contradicted / answers.num_heard
    return row


def area_under_curve(scores: Tensor, labels: Tensor) -> float | None:
    """Probability that an image of label 1 scores higher than one of label 0, ties counted half.

    The area under the ROC curve by the statistic of Mann and Whitney (Hanley and McNeil 1982, Radiology 143).

    Args:
        scores: (N,) floating.
        labels: (N,) bool.

    Returns:
        In [0, 1]; None where a label does not occur.

    Example:
        >>> area_under_curve(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([False, False, True, True]))
        0.875

    N: number of images.
    """
    positive, negative = scores[labels].double(), scores[~labels].double()
    if not len(positive) or not len(negative):
        return None
    order = (positive[:, None] > negative).double() - (positive[:, None] < negative).double()  # -inf ties with -inf
    return (0.5 + 0.5 * order.mean()).item()


def join_answers(parts: Sequence[Answers]) -> Answers:
    """The answers of one reward to several sets of questions of one kind, as answers to all of them.

    Raises:
        ValueError: when some are of pairs and others of labelled images.
    """
    if len({part.is_labelled for part in parts}) != 1:
        raise ValueError("Pairs and labelled images have different measures and cannot be joined.")
    return Answers(
        logits=torch.cat([part.logits for part in parts]),
        truths=torch.cat([part.truths for part in parts]),
        prompts=tuple(prompt for part in parts for prompt in part.prompts),
        is_labelled=parts[0].is_labelled,
        num_heard=sum(part.num_heard for part in parts),
        num_contradicted=sum(part.num_contradicted for part in parts),
    )


def _heard(reward: Reward) -> tuple[int, int]:
    """Answers that a listener has read, and those that did not convince it."""
    judge = reward if isinstance(reward, PreferenceJudge) else None
    return (0, 0) if judge is None else (judge.num_heard, judge.num_contradicted)


def _logits(reward: Reward, items: Sequence[PreferenceItem]) -> Tensor:
    places = range(len(items[0].images))
    columns = [
        ([item.images[i].load(keep_uint8=True) for item in items], [item.prompts[i] for item in items]) for i in places
    ]
    if compares(reward):
        return _comparison_logits(reward, columns)
    sign = 1.0 if reward.card.higher_is_better else -1.0
    if has_comparing_part(reward):
        pairs = zip(*columns[0], *columns[1], strict=True)
        rows = [reward([chosen, rejected], [one, other]) for chosen, one, rejected, other in pairs]
        scores = torch.stack(rows).unbind(dim=1)
    else:
        scores = tuple(reward(images, prompts) for images, prompts in columns)
    if len(scores) == 1:
        return sign * scores[0]
    return sign * (scores[0] - scores[1]).masked_fill(scores[0] == scores[1], 0.0)  # -inf less -inf would be NaN


def _comparison_logits(
    reward: LlavaReward | PreferenceJudge, columns: Sequence[tuple[list[Tensor], list[str]]]
) -> Tensor:
    (chosen, prompts), (rejected, other_prompts) = columns
    if isinstance(reward, LlavaReward):
        embedded = (reward.embed(images, texts) for images, texts in columns)
        return reward.objective.preference_logits(*embedded, temperature=reward.config.temperature)
    if prompts != other_prompts:
        raise ValueError(f"{reward.card.name} compares two images of one prompt; some pairs have a prompt each.")
    return reward.preference(chosen, rejected, prompts) - 0.5


OVERALL = "overall"
"""Name of the row for all files with pairs together."""

COLUMNS = (
    Column("reward"),
    Column("file"),
    Column("num", "rows", "{:d}"),
    Column("num_prompts", "prompts", "{:d}"),
    Column("accuracy", style="{:.3f}"),
    Column("low", "95 % interval", "{:.3f} to {:.3f}", ("high",)),
    Column("accuracy_without_ties", "without ties", "{:.3f}"),
    Column("ties", style="{:.3f}"),
    Column("auc", "AUC", "{:.3f}"),
)
CONTRADICTED = Column("contradicted", "contradicted by the listener", "{:.3f}")
"""Column of the table where a `PreferenceJudge` has a listener."""


def accuracy_rows(
    reward: Reward, files: Mapping[str, Sequence[PreferenceItem]], *, batch_size: int = 64
) -> list[dict[str, Any]]:
    """Measures of one reward on sets of preference data, and on all pairs together where there are several sets.

    Args:
        reward: the reward.
        files: name of a set to its pairs or labelled images.
        batch_size: pairs or labelled images scored at a time.

    Returns:
        A row each, with `reward`, `file` and what `summarize_answers` gives; the last one is `OVERALL`.

    Example:
        >>> from PIL import Image
        >>> from fk_reward.rewards import load_reward
        >>> from fk_reward.training import read_preferences
        >>> red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
        >>> pairs = read_preferences([{"prompt": "red", "chosen_path": red, "reject_path": blue}])
        >>> redness = load_reward(lambda images, prompts: images[:, 0].mean(dim=(1, 2)))
        >>> [(row["file"], row["accuracy"]) for row in accuracy_rows(redness, {"a": pairs, "b": pairs})]
        [('a', 1.0), ('b', 1.0), ('overall', 1.0)]
    """
    answers = {name: ask_reward(reward, items, batch_size=batch_size) for name, items in files.items()}
    return answer_rows(reward.card.name, answers, label_logits=is_label_logit(reward))


def answer_rows(reward: str, answers: Mapping[str, Answers], *, label_logits: bool) -> list[dict[str, Any]]:
    """The rows of `accuracy_rows` from answers that are there.

    Args:
        reward: its name.
        answers: name of a set to the answers.
        label_logits: as for `summarize_answers`.
    """
    pairs = [part for part in answers.values() if not part.is_labelled]
    joined = {OVERALL: join_answers(pairs)} if len(pairs) > 1 else {}
    return [
        {"reward": reward, "file": name, **summarize_answers(part, label_logits=label_logits)}
        for name, part in {**answers, **joined}.items()
    ]


def measure_rewards(
    rewards: Mapping[str, Reward], files: Mapping[str, Sequence[PreferenceItem]], out: Path, *, batch_size: int = 32
) -> Report:
    """Measure several rewards, and write `preferences.json` and `preferences.md`.

    Args:
        rewards: by the name that the table has.
        files: as for `accuracy_rows`.
        out: folder of the results.
        batch_size: as for `accuracy_rows`.
    """
    rows = [
        {**row, "reward": name}
        for name, reward in rewards.items()
        for row in accuracy_rows(reward, files, batch_size=batch_size)
    ]
    columns = (*COLUMNS, CONTRADICTED) if any("contradicted" in row for row in rows) else COLUMNS
    content = {"rewards": list(rewards), "data": list(files), "rows": rows}
    written = (
        write_json(out / "preferences.json", content),
        write_whole(out / "preferences.md", markdown_table(columns, rows) + "\n"),
    )
    return Report("Preferences", [Table("", columns, rows)], written)
