"""Before any score: pictures whose verdicts are known pass through the whole judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from fk_reward.benchmarks.geneval.judge import Verdict


class SelfTestError(RuntimeError):
    """A judge says other than what is known of a picture."""


class ImageJudge(Protocol):
    """Whatever judges pictures by their records."""

    def judge_images(self, records: Sequence[Mapping[str, Any]], images: Sequence[Image.Image]) -> list[Verdict]:
        """One verdict for each picture."""


@dataclass(frozen=True)
class KnownVerdict:
    """A picture made for a test.

    Attributes:
        record: what it is judged by.
        image: the picture.
        correct: what a judge must say.
    """

    record: Mapping[str, Any]
    image: Image.Image
    correct: bool


def check_known_verdicts(judge: ImageJudge, known: Sequence[KnownVerdict]) -> None:
    """Judge the pictures.

    Args:
        judge: under test.
        known: at least one picture.

    Raises:
        SelfTestError: a verdict differs; the message names each of these.

    Example:
        >>> class Kind:
        ...     def judge_images(self, records, images):
        ...         return [Verdict(True, "") for _ in images]
        >>> case = KnownVerdict({"prompt": "a cow"}, Image.new("RGB", (8, 8)), correct=False)
        >>> check_known_verdicts(Kind(), [case])
        Traceback (most recent call last):
        fk_reward.benchmarks.geneval.self_test.SelfTestError: The judge fails its self-test on 1 of 1 pictures, so its \
scores would mean nothing: 'a cow' should be wrong. Check the weights that it was loaded from, and its dtype.
    """
    verdicts = judge.judge_images([case.record for case in known], [case.image for case in known])
    pairs = zip(known, verdicts, strict=True)
    mistakes = [_mistake(case, verdict) for case, verdict in pairs if verdict.correct != case.correct]
    if mistakes:
        raise SelfTestError(
            f"The judge fails its self-test on {len(mistakes)} of {len(known)} pictures, so its scores would mean "
            f"nothing: {'; '.join(mistakes)}. Check the weights that it was loaded from, and its dtype."
        )


def _mistake(case: KnownVerdict, verdict: Verdict) -> str:
    reason = f" ({verdict.reason})" if verdict.reason else ""
    return f"{case.record['prompt']!r} should be {'correct' if case.correct else 'wrong'}{reason}"
