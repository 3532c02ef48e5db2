"""The judge that asks the questions of a record about its images, and the rules that turn answers into scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

from fk_reward.benchmarks.questions.answerers import Answered, Answerer, Asked
from fk_reward.benchmarks.questions.atoms import Atom, question_record, spellings
from fk_reward.benchmarks.task import KnownVerdict, Verdict, check_known_verdicts
from fk_reward.version import __version__

Answers = Sequence[tuple[Atom, Answered]]

_REASONS = 5  # wrong answers that a verdict lists; a prompt of DPG-Bench has up to thirty questions


def soft_tifa(answers: Answers) -> dict[str, float]:
    """Soft-TIFA: arithmetic and geometric mean over a prompt's atoms of the probabilities of the right answers.

    Kamath et al. 2025, arXiv 2512.16853: the first estimates how much of the atoms, the second how much of whole
    prompts a model gets right. A probability of 0 makes the geometric mean 0.

    Example:
        >>> atoms = [(Atom("a?"), Answered(p, True, "Yes")) for p in (0.25, 1.0)]
        >>> soft_tifa(atoms)
        {'Soft-TIFA AM': 0.625, 'Soft-TIFA GM': 0.5}
    """
    values = [answered.probability for _, answered in answers]
    mean = sum(values) / len(values)
    logs = [math.log(value) if value > 0 else -math.inf for value in values]
    return {"Soft-TIFA AM": mean, "Soft-TIFA GM": math.exp(sum(logs) / len(logs))}


def dpg(answers: Answers) -> dict[str, float]:
    """DPG-Bench's score: share of questions answered with yes, where those that depend on a no count as no.

    Hu et al. 2024, arXiv 2403.05135, as `compute_dpg_bench.py` has it: questions are gone through in the order of the
    file, and one that was made a no makes those no that depend on it and come later.

    Example:
        >>> said = {1: False, 2: True}
        >>> atoms = [Atom("a dog?"), Atom("Is the dog red?", number=2, parents=(1,))]
        >>> dpg([(atom, Answered(0.5, said[atom.number], "")) for atom in atoms])
        {'DPG': 0.0}
    """
    right = {atom.number: answered.right for atom, answered in answers}
    for atom, _ in answers:
        right[atom.number] = right[atom.number] and all(right[parent] for parent in atom.parents if parent)
    return {"DPG": sum(right.values()) / len(right)}


def vqascore(answers: Answers) -> dict[str, float]:
    """VQAScore: the probability that the answer to the one question is yes (Lin et al. 2024, arXiv 2404.01291)."""
    return {"VQAScore": sum(answered.probability for _, answered in answers) / len(answers)}


def product(answers: Answers) -> dict[str, float]:
    """Product of the probabilities: that of BLIP-VQA in T2I-CompBench (Huang et al. 2023, arXiv 2307.06350, eq. 1)."""
    return {"product": math.prod(answered.probability for _, answered in answers)}


def share(answers: Answers) -> dict[str, float]:
    """Share of the questions that are answered rightly: UniGenBench's test points, each met or not."""
    return {"test points": sum(answered.right for _, answered in answers) / len(answers)}


RULES: dict[str, Callable[[Answers], dict[str, float]]] = {
    "soft-tifa": soft_tifa,
    "dpg": dpg,
    "vqascore": vqascore,
    "product": product,
    "share": share,
}
"""Name -> function from a prompt's questions and answers to scores of an image; the last one is of the whole prompt."""

HARD = ("dpg", "share")
"""Rules that read whether an answer is right, not how probable it was."""


@dataclass(frozen=True)
class Style:
    """How a benchmark asks and scores.

    Attributes:
        name: of the benchmark.
        rule: name of a rule of `RULES`.
        suffix: what follows every question.
    """

    name: str
    rule: str = "soft-tifa"
    suffix: str = " Answer in one word."


SOFT_TIFA = Style("GenEval 2")


class QuestionJudge:
    """Asks about each image the questions of its record.

    An image is correct where every answer is right. The scores of the rule are the verdict's figures, and each atom has
    its own, so that a report can say how well each skill does.

    Args:
        answerer: answers.
        style: how the benchmark asks and scores.
        known: images with records whose verdicts are known, for the self-test; drawn ones if not given.

    Example:
        >>> from fk_reward.benchmarks.questions.shapes import ShapesAnswerer, question_records
        >>> judge = QuestionJudge(ShapesAnswerer(), Style("a test"))
        >>> (verdict,) = judge.judge_images(question_records(1), [Image.new("RGB", (64, 64), "white")])
        >>> verdict.correct, verdict.figures["Soft-TIFA GM"], verdict.reason.split("; ")[0]
        (False, 0.0, 'How many circles are in the image? zero, not one')
    """

    def __init__(self, answerer: Answerer, style: Style, *, known: Sequence[KnownVerdict] | None = None) -> None:
        if style.rule not in RULES:
            raise ValueError(f"rule should be one of {', '.join(RULES)}, got {style.rule!r}.")
        self.answerer, self.style, self.known = answerer, style, known
        self.identity: dict[str, Any] = {
            "judge": "questions",
            **answerer.identity,
            "rule": style.rule,
            "suffix": style.suffix,
            "fk_reward": __version__,
        }

    def judge_images(self, records: Sequence[Mapping[str, Any]], images: Sequence[Image.Image]) -> list[Verdict]:
        """Judge images, all their questions in one call of the answerer.

        Args:
            records: one for each image, with `atoms`.
            images: of any sizes.

        Raises:
            ValueError: the counts differ, or a question that the judge cannot read or answer.
        """
        if len(records) != len(images):
            raise ValueError(f"There should be a record for each of {len(images)} images, got {len(records)}.")
        atoms = [[Atom.of(fields) for fields in record["atoms"]] for record in records]
        asked = [
            Asked(place, atom.question + self.style.suffix, spellings(atom.question, atom.answer))
            for place, group in enumerate(atoms)
            for atom in group
        ]
        answers = iter(self.answerer.answer(images, asked) if asked else ())
        return [self._verdict([(atom, next(answers)) for atom in group]) for group in atoms]

    def _verdict(self, answers: Answers) -> Verdict:
        wrong = [
            f"{atom.question} {answered.said}, not {atom.answer}" for atom, answered in answers if not answered.right
        ]
        hard = self.style.rule in HARD
        marks = [
            {
                "skills": list(atom.skills),
                "score": float(answered.right) if hard else answered.probability,
            }
            for atom, answered in answers
        ]
        more = [f"and {len(wrong) - _REASONS} more"] if len(wrong) > _REASONS else []
        reason = "; ".join([*wrong[:_REASONS], *more])
        return Verdict(not wrong, reason, figures=RULES[self.style.rule](answers), atoms=marks)

    def self_test(self) -> None:
        """Judge images whose verdicts are known.

        Raises:
            SelfTestError: a verdict is not as it should be.
        """
        check_known_verdicts(self, drawn_verdicts() if self.known is None else self.known)


def drawn_verdicts(*, size: int = 448) -> list[KnownVerdict]:
    """A drawing of one red circle on white, with a record that is true of it and two that are not.

    Example:
        >>> [case.correct for case in drawn_verdicts(size=32)]
        [True, False, False]
    """
    image = Image.new("RGB", (size, size), "white")
    ImageDraw.Draw(image).ellipse((size // 4, size // 4, 3 * size // 4, 3 * size // 4), fill=(210, 20, 30))
    asked = {
        "a red circle": ["Is there a circle in the image?", "Is the circle red?"],
        "a green triangle": ["Is there a green triangle in the image?"],
        "a dog": ["Is there a dog in the image?"],
    }
    records = [question_record(prompt, _numbered(texts), tag="drawn") for prompt, texts in asked.items()]
    return [KnownVerdict(record, image, place == 0) for place, record in enumerate(records)]


def _numbered(texts: Sequence[str]) -> list[Atom]:
    return [Atom(text, number=number) for number, text in enumerate(texts, start=1)]
