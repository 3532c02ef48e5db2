"""A benchmark as a value: what is asked (`Task`), what answers it (`Method`), and what judges images (`Judge`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from PIL import Image

from fk_reward.value_checks import whole_number

Sample = TypeVar("Sample")
SampleIn = TypeVar("SampleIn", contravariant=True)
AnswerOut = TypeVar("AnswerOut", covariant=True)


@dataclass(frozen=True)
class Task(Generic[Sample]):
    """A benchmark.

    Attributes:
        name: of the benchmark.
        samples: what each method answers, one after the other: prompts with what their images must show, questions
            about pairs of images, ...
        judge: turns answers into verdicts. Answers are stored before they are judged, so that a judge with models of
            its own is loaded after the models that answered are gone, and another threshold costs no second answer.
            For images a function of the device that loads a `Judge`.
        second_judge: likewise, for images that are to be judged twice: how far two judges differ is reported.

    Example:
        >>> task = Task("squares", (1, 2, 3), judge=lambda sample, answer: answer == sample**2)
        >>> [task.judge(*pair) for pair in zip(task.samples, [1, 4, 8])]
        [True, True, False]
    """

    name: str
    samples: Sequence[Sample]
    judge: Callable[..., Any]
    second_judge: Callable[..., Any] | None = None


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Options of a task of images.

    Attributes:
        prompts: a file of prompts in the suite's format; of the official suite instead of its 553 records.
        questions: a file of questions about the prompts; for suites whose prompts come without.
        num_prompts: how many prompts, the tasks in turn; for the shapes world.
        detector: hub id or folder of the judge's Mask2Former; None for GenEval's own. For the official suite.
        clip: hub id or folder of the judge's CLIP; None for GenEval's own. For the official suite.
        judge: hub id or folder of the model that answers questions; None for Qwen3-VL-8B. For suites of questions.
        judge_url: address of an OpenAI-compatible endpoint with that model; None for a local one.
        second_judge: hub id or folder of a model that judges the images once more, by GenEval 2's questions, or
            "verifier" for the shapes world; None for no second judge. For the suites of GenEval.
        judge_batch_size: questions that the judge answers at once.

    Raises:
        ValueError: no prompts, or a judge that answers nothing at a time.
    """

    prompts: Path | None = None
    questions: Path | None = None
    num_prompts: int | None = None
    detector: str | None = None
    clip: str | None = None
    judge: str | None = None
    judge_url: str | None = None
    second_judge: str | None = None
    judge_batch_size: int = 16

    def __post_init__(self) -> None:
        if self.num_prompts is not None:
            whole_number("--num-prompts", self.num_prompts, minimum=1)
        whole_number("--judge-batch-size", self.judge_batch_size, minimum=1)


class Method(Protocol[SampleIn, AnswerOut]):
    """Answers the samples of a task: a search with its sampling settings, a reward.

    Attributes:
        name: of the method, unique in a run.
        batch_size: samples that it answers in one call.
    """

    name: str
    batch_size: int

    def answer(self, indices: Sequence[int], samples: Sequence[SampleIn], /) -> Sequence[AnswerOut]:
        """Answer some samples; `indices` are their places in the task, from which random seeds follow."""


@dataclass(frozen=True)
class Verdict:
    """Verdict of a judge on an image.

    Attributes:
        correct: whether it shows what its sample asks for.
        reason: what is missing or wrong, a line each; empty where it is correct.
        details: class -> x0, y0, x1, y1 and score of each object that counted, as GenEval's results have them.
        flags: what else the judge looked for, such as forbidden content, and whether it was found.
        figures: name of a score -> score, of judges that give some; the last one is of the whole prompt.
        atoms: for each question that was asked, the `skills` that it tests and its `score`.
    """

    correct: bool
    reason: str
    details: Mapping[str, list[list[float]]] = field(default_factory=dict)
    flags: Mapping[str, bool] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)
    atoms: Sequence[Mapping[str, Any]] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON, with GenEval's keys; of the others those that say something."""
        known: dict[str, Any] = {"correct": self.correct, "reason": self.reason, "details": dict(self.details)}
        more = {"flags": dict(self.flags), "figures": dict(self.figures), "atoms": [dict(one) for one in self.atoms]}
        return known | {name: value for name, value in more.items() if value}


class Judge(Protocol):
    """Decides which images show what their samples ask for.

    Attributes:
        identity: what its verdicts depend on, as JSON; verdicts of another identity do not count.
    """

    identity: dict[str, Any]

    def judge_images(self, samples: Sequence[Any], images: Sequence[Image.Image], /) -> Sequence[Verdict]:
        """Give a verdict for each image; `samples` has one for each image, too."""

    def self_test(self) -> None:
        """Raise a `SelfTestError` unless images with known verdicts get them."""


NOBODY = "none"
"""Name of the judge where there is none; reports leave its verdicts out."""


class SelfTestError(RuntimeError):
    """A judge gives a wrong verdict on an image whose verdict is known."""


@dataclass(frozen=True)
class KnownVerdict:
    """An image made for a self-test.

    Attributes:
        sample: what it is judged by, with a `prompt`.
        image: the image.
        correct: what a judge must say.
    """

    sample: Mapping[str, Any]
    image: Image.Image
    correct: bool


def check_known_verdicts(judge: Any, known: Sequence[KnownVerdict]) -> None:
    """Test a judge on images whose verdicts are known.

    Args:
        judge: under test, of which `judge_images` is called.
        known: at least one image.

    Raises:
        SelfTestError: a verdict differs; the message names each of these.

    Example:
        >>> class Kind:
        ...     def judge_images(self, samples, images):
        ...         return [Verdict(True, "") for _ in images]
        >>> case = KnownVerdict({"prompt": "a cow"}, Image.new("RGB", (8, 8)), correct=False)
        >>> check_known_verdicts(Kind(), [case])
        Traceback (most recent call last):
        fk_reward.benchmarks.task.SelfTestError: The judge fails its self-test on 1 of 1 images, so its scores would \
mean nothing: 'a cow' should be wrong. Check the weights that it was loaded from, and its dtype.
    """
    verdicts = judge.judge_images([case.sample for case in known], [case.image for case in known])
    pairs = zip(known, verdicts, strict=True)
    mistakes = [_mistake(case, verdict) for case, verdict in pairs if verdict.correct != case.correct]
    if mistakes:
        raise SelfTestError(
            f"The judge fails its self-test on {len(mistakes)} of {len(known)} images, so its scores would mean "
            f"nothing: {'; '.join(mistakes)}. Check the weights that it was loaded from, and its dtype."
        )


def _mistake(case: KnownVerdict, verdict: Verdict) -> str:
    reason = f" ({verdict.reason})" if verdict.reason else ""
    return f"{case.sample['prompt']!r} should be {'correct' if case.correct else 'wrong'}{reason}"
