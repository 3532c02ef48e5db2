"""A run of MJ-Bench: the questions of a perspective as a task, a reward as the method that answers them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fk_reward.benchmarks.mjbench.questions import (
    BIAS,
    HUB_DATASET,
    HUB_REVISION,
    Question,
    QuestionTable,
    open_questions,
)
from fk_reward.benchmarks.mjbench.report import write_report
from fk_reward.benchmarks.mjbench.shapes import shapes_questions
from fk_reward.benchmarks.mjbench.summary import summarize_bias, summarize_pairs
from fk_reward.benchmarks.preferences import compares, has_comparing_part
from fk_reward.benchmarks.report import Report
from fk_reward.benchmarks.runner import Work, find_share, watch
from fk_reward.benchmarks.store import ResultStore, weights_digest
from fk_reward.benchmarks.task import Task
from fk_reward.benchmarks.works import run_works
from fk_reward.models import DEFAULT_EMBEDDED_REWARD
from fk_reward.rewards import Reward, load_reward
from fk_reward.rewards.llava_reward import LlavaReward
from fk_reward.rewards.vlm_judge import PreferenceJudge
from fk_reward.terminal import open_console
from fk_reward.value_checks import whole_number

OFFICIAL, SHAPES = "official", "shapes"


@dataclass(frozen=True, kw_only=True)
class MJBenchRequest:
    """Request of a user to the benchmark.

    Attributes:
        reward: name of a reward, or a composition of names; None for the adapter, or the embedded one for shapes.
        adapter: folder of a LLaVA-Reward, instead of `reward`.
        perspective: what is judged: alignment, safety, quality or bias.
        suite: name of the suite: official, or shapes: rendered images, without a network.
        data: dataset of the hub, or file or folder in its schema; of the official suite.
        revision: revision of a dataset of the hub; that of the paper's four perspectives if not given.
        num_pairs: number of questions of the suite shapes.
        seed: seed of the suite shapes.
        batch_size: questions in one call of the reward.
        out: folder of the results; an unfinished one is resumed.

    Raises:
        ValueError: a number out of range.
    """

    reward: str | None = None
    adapter: Path | None = None
    perspective: str = "alignment"
    suite: str = OFFICIAL
    data: str = HUB_DATASET
    revision: str | None = None
    num_pairs: int = 210
    seed: int = 0
    batch_size: int = 16
    out: Path | None = None

    def __post_init__(self) -> None:
        for name, minimum in (("num_pairs", 1), ("seed", 0), ("batch_size", 1)):
            whole_number(f"--{name.replace('_', '-')}", getattr(self, name), minimum=minimum)

    @property
    def folder(self) -> Path:
        """Folder of the results."""
        return self.out or Path("results") / "mjbench" / f"{self.suite}-{self.perspective}"

    def task(self) -> tuple[Task[Question], dict[str, Any]]:
        """The questions, judged by the figures of the perspective, and what they depend on.

        Raises:
            ValueError: an unknown suite, or an option of the other one.
        """
        if self.suite not in (OFFICIAL, SHAPES):
            raise ValueError(f"--suite should be {OFFICIAL} or {SHAPES}, got {self.suite!r}.")
        if self.suite == SHAPES:
            if self.data != HUB_DATASET or self.revision is not None:
                raise ValueError("--data and --revision are for the official suite; the images of shapes are rendered.")
            return mjbench_task(shapes_questions(self.perspective, self.num_pairs, seed=self.seed)), {"seed": self.seed}
        # The pinned commit is one of the official dataset; any other one is read at its default branch.
        revision = HUB_REVISION if self.revision is None and self.data == HUB_DATASET else self.revision
        questions = open_questions(self.data, self.perspective, revision=revision)
        return mjbench_task(questions), {"data": self.data, "revision": revision, "digest": questions.digest()}

    def load_reward(self, device: str) -> tuple[str, Reward]:
        """The reward and its name.

        Raises:
            ValueError: both a name and an adapter, or neither.
        """
        if self.reward is not None and self.adapter is not None:
            raise ValueError("Name a --reward or the folder of an --adapter, not both.")
        if self.reward is None and self.adapter is None and self.suite != SHAPES:
            raise ValueError("Name a --reward, or the folder of an --adapter.")
        if self.adapter is not None:
            return str(self.adapter), load_reward("llava-reward", adapter=self.adapter).to(device)
        name = self.reward or DEFAULT_EMBEDDED_REWARD
        return name, load_reward(name).to(device)


def mjbench_task(questions: QuestionTable) -> Task[Question]:
    """Questions of one perspective as a task; its judge turns all answers into the rows of a table.

    Example:
        >>> mjbench_task(shapes_questions("bias", 5)).name
        'mjbench-bias'
    """
    judge = summarize_bias if questions.perspective == BIAS else summarize_pairs
    return Task(f"mjbench-{questions.perspective}", questions, judge)


class RewardMethod:
    """A reward that answers questions, as a method of `runner.run`.

    Args:
        name: of the reward.
        reward: the reward.
        batch_size: questions a call of the reward.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from fk_reward.benchmarks.runner import run
        >>> brightness = RewardMethod("brightness", load_reward(lambda images, texts: images.mean(dim=(1, 2, 3))))
        >>> with TemporaryDirectory() as folder:
        ...     _ = list(run(mjbench_task(shapes_questions("bias", 2)), [brightness], ResultStore(folder, {})))
        ...     [sorted(answer) for answer in ResultStore(folder).answers()]
        [['caption', 'index', 'label', 'scores', 'subset'], ['caption', 'index', 'label', 'scores', 'subset']]
    """

    def __init__(self, name: str, reward: Reward, *, batch_size: int = 16) -> None:
        self.name, self.reward, self.batch_size = name, reward, batch_size

    def answer(self, _indices: Sequence[int], questions: Sequence[Question], /) -> list[dict[str, Any]]:
        """Scores of the images of some questions, with what the judge needs to know of each question."""
        scores = score_questions(self.reward, questions)
        return [
            {"caption": question.caption, "subset": question.subset, "label": question.label, "scores": found}
            for question, found in zip(questions, scores, strict=True)
        ]


def run_request(
    request: MJBenchRequest,
    *,
    device: str,
    shard: tuple[int, int] | None = None,
    ray_workers: int | None = None,
    tie_threshold: float | None = None,
    thresholds: Sequence[float] | None = None,
) -> Report | None:
    """Answer what is missing in the folder and report.

    Args:
        request: what to do.
        device: of the reward.
        shard: index and number of processes that share the work by hand; None for those of `accelerate launch`.
        ray_workers: Ray actors that score, see `run_on_ray`; None to score in this process.
        tie_threshold: see `mjbench.report.summarize`.
        thresholds: of the sweep, likewise.

    Returns:
        The report, where this process has written one.

    Raises:
        ImportError: with `ray_workers`, Ray is not installed.
        ValueError: a file that cannot be used, or a folder of other settings.
        OSError: missing files or models.
    """
    share = find_share(shard, device, ray_workers)
    with share.hold(request.folder):  # before anything is loaded: a second run on the folder ends at once
        watch(
            run_works(partial(bind_request, request, device), share=share), console=open_console(quiet=not share.leads)
        )
        if not share.leads:
            return None
        return write_report(ResultStore(request.folder), tie_threshold=tie_threshold, thresholds=thresholds)


def bind_request(request: MJBenchRequest, device: str, writer: str = "0") -> list[Work]:
    """Load the questions of a request and the reward that answers them.

    Args:
        request: what to do.
        device: of the reward.
        writer: name of this process, see `ResultStore`.
    """
    task, source = request.task()
    name, reward = request.load_reward(device)
    settings = {"reward": name, "perspective": request.perspective, "num_questions": len(task.samples)}
    settings |= {"suite": request.suite, **source, "compares": compares(reward)}
    settings["weights"] = weights_digest([reward])
    store = ResultStore(request.folder, settings, writer=writer)
    return [Work(task, [RewardMethod(name, reward, batch_size=request.batch_size)], store)]


@torch.no_grad()
def score_questions(reward: Reward, questions: Sequence[Question]) -> list[list[float]]:
    """Let a reward judge some questions in one call.

    The reward is given captions and images, nothing else. One that compares images (`compares`) is asked for the
    probability p that the first image is preferred, and the scores are p and 1 - p. A composition that has such a
    part is asked for each question by itself, as the score of an image would change with the other questions.

    Args:
        reward: the reward.
        questions: of one perspective.

    Returns:
        For each question the scores of its images; higher is better, also where the reward's card says otherwise.

    Raises:
        ValueError: an image that cannot be read, or single images for a reward that compares.

    Example:
        >>> from PIL import Image
        >>> from fk_reward.benchmarks.mjbench.questions import parse_question
        >>> from fk_reward.rewards import load_reward
        >>> red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
        >>> row = {"caption": "red", "image0": blue, "image1": red, "label": 1}
        >>> redness = load_reward(lambda images, captions: images[:, 0].mean(dim=(1, 2)))
        >>> score_questions(redness, [parse_question(row, "alignment", origin="1")])
        [[0.0, 1.0]]
    """
    images = [question.load(keep_uint8=True) for question in questions]
    captions = [question.caption for question in questions]
    if compares(reward):
        return _probabilities(reward, images, captions)
    if has_comparing_part(reward):
        rows = zip(images, captions, strict=True)
        return [_scores(reward, [pair], [caption])[0] for pair, caption in rows]
    return _scores(reward, images, captions)


def _scores(reward: Reward, images: list[list[Tensor]], captions: list[str]) -> list[list[float]]:
    sizes = [len(group) for group in images]
    texts = [caption for caption, size in zip(captions, sizes, strict=True) for _ in range(size)]
    scores = reward([image for group in images for image in group], texts)
    sign = 1.0 if reward.card.higher_is_better else -1.0
    return [(sign * part).tolist() for part in scores.cpu().split(sizes)]


def _probabilities(
    reward: LlavaReward | PreferenceJudge, images: list[list[Tensor]], captions: list[str]
) -> list[list[float]]:
    if any(len(group) != 2 for group in images):
        raise ValueError(f"{reward.card.name} compares images; it cannot score one by itself, which bias needs.")
    first, second = ([group[place] for group in images] for place in (0, 1))
    chances = reward.preference(first, second, captions).double().tolist()
    return [[chance, 1 - chance] for chance in chances]
