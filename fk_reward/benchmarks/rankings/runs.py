"""A run over rankings: each benchmark a task, each reward a method, and one table of all."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fk_reward.benchmarks.preferences import compares, has_comparing_part
from fk_reward.benchmarks.rankings.formats import READERS, RankedImages, rankings_digest
from fk_reward.benchmarks.rankings.summary import summarize_rankings
from fk_reward.benchmarks.report import Column, Report, Table, write_tables
from fk_reward.benchmarks.runner import Work, find_share, watch
from fk_reward.benchmarks.store import SETTINGS_FILE, ResultStore, weights_digest
from fk_reward.benchmarks.task import Task
from fk_reward.benchmarks.works import run_works
from fk_reward.models import DEFAULT_EMBEDDED_REWARD
from fk_reward.rewards import Reward, load_reward
from fk_reward.rewards.llava_reward import LlavaReward
from fk_reward.rewards.vlm_judge import PreferenceJudge
from fk_reward.terminal import open_console
from fk_reward.value_checks import whole_number

COLUMNS = (
    Column("reward"),
    Column("benchmark"),
    Column("num_prompts", "prompts", "{:d}"),
    Column("num", "pairs", "{:d}"),
    Column("human_ties", "tied by people", "{:d}"),
    Column("accuracy", style="{:.3f}"),
    Column("low", "95 % interval", "{:.3f} to {:.3f}", ("high",)),
    Column("ties", "tied by reward", "{:.3f}"),
    Column("accuracy_without_ties", "without ties", "{:.3f}"),
    Column("calibrated", "with people's ties", "{:.3f}"),
    Column("tie_threshold", "tie threshold", "{:.4g}"),
    Column("own", "its own rule", "{:.3f}"),
)


@dataclass(frozen=True, kw_only=True)
class RankingRequest:
    """Request of a user.

    Attributes:
        data: benchmarks, as NAME=PATH of your copy: hpdv2, hpdv3, imagereward, pickapic, genai-bench, mmrb2; or shapes,
            which is rendered.
        reward: names of rewards, or compositions of names; the embedded one if not given.
        adapter: folders of LLaVA-Rewards of one's own.
        batch_size: prompts in one call of a reward, each with all of its images.
        out: folder of the results; an unfinished one is resumed.

    Raises:
        ValueError: no benchmark, one that is named twice or not known, or a number out of range.
    """

    data: Mapping[str, Path]
    reward: tuple[str, ...] = ()
    adapter: tuple[Path, ...] = ()
    batch_size: int = 8
    out: Path = Path("results/pair-accuracy")

    def __post_init__(self) -> None:
        whole_number("--batch-size", self.batch_size, minimum=1)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the rewards, in the order of the table."""
        return (*self.reward, *map(str, self.adapter)) or (DEFAULT_EMBEDDED_REWARD,)

    def load(self, name: str, device: str) -> Reward:
        """One of the rewards."""
        if name in map(str, self.adapter):
            return load_reward("llava-reward", adapter=Path(name)).to(device)
        return load_reward(name).to(device)

    def tasks(self) -> list[Task[RankedImages]]:
        """The benchmarks.

        Raises:
            ValueError: a file that cannot be used, or has no rankings.
            OSError: a missing file.
        """
        return [_task(name, path) for name, path in self.data.items()]

    def folder(self, reward: str, benchmark: str) -> Path:
        """Where the answers of a reward about a benchmark are."""
        slug = re.sub(r"[^\w.@-]+", "_", reward).strip("_")
        if slug != reward:  # compositions may differ in their signs alone
            slug = f"{slug[:60]}-{hashlib.sha256(reward.encode()).hexdigest()[:6]}"
        return self.out / slug / benchmark


def parse_data(texts: Sequence[str]) -> dict[str, Path]:
    """Benchmarks as typed: `hpdv2=/data/HPDv2`.

    Raises:
        ValueError: another form, an unknown name, or one that is named twice.

    Example:
        >>> parse_data(["mmrb2=MMRB2/benchmark", "shapes"])
        {'mmrb2': PosixPath('MMRB2/benchmark'), 'shapes': PosixPath('.')}
    """
    found: dict[str, Path] = {}
    for text in texts:
        name, _, path = text.partition("=")
        if name not in READERS:
            raise ValueError(f"--data: there is no benchmark {name!r}; there are {', '.join(READERS)}.")
        if name in found:
            raise ValueError(f"--data: {name} is named twice.")
        if not path and name != "shapes":
            raise ValueError(f"--data: name your copy of {name}, --data {name}=PATH.")
        found[name] = Path(path)
    if not found:
        raise ValueError(f"Name a benchmark: --data NAME=PATH, of {', '.join(READERS)}.")
    return found


class RankingMethod:
    """A reward that scores the images of prompts, as a method of `runner.run`.

    Args:
        name: of the reward.
        reward: the reward.
        batch_size: prompts a call.
    """

    def __init__(self, name: str, reward: Reward, *, batch_size: int = 8) -> None:
        self.name, self.reward, self.batch_size = name, reward, batch_size

    @torch.no_grad()
    def answer(self, _indices: Sequence[int], rankings: Sequence[RankedImages], /) -> list[dict[str, Any]]:
        """Scores, or margins of all pairs, of the images of some prompts, beside what people say."""
        images = [ranking.load() for ranking in rankings]
        prompts = [ranking.prompt for ranking in rankings]
        if compares(self.reward):
            found: list[dict[str, Any]] = [{"margins": one} for one in _margins(self.reward, images, prompts)]
        else:
            found = [{"scores": scores} for scores in self._scores(images, prompts)]
        return [
            {"prompt": ranking.prompt, "order": list(ranking.order), **answer}
            for ranking, answer in zip(rankings, found, strict=True)
        ]

    def _scores(self, images: Sequence[list[Tensor]], prompts: Sequence[str]) -> list[list[float]]:
        sign = 1.0 if self.reward.card.higher_is_better else -1.0
        if has_comparing_part(self.reward):  # an image's score depends on the others of the call
            pairs = zip(images, prompts, strict=True)
            return [(sign * self.reward(group, prompt)).tolist() for group, prompt in pairs]
        texts = [prompt for prompt, group in zip(prompts, images, strict=True) for _ in group]
        scores = self.reward([image for group in images for image in group], texts).cpu()
        return [(sign * part).tolist() for part in scores.split([len(group) for group in images])]


def _margins(
    reward: LlavaReward | PreferenceJudge, images: Sequence[list[Tensor]], prompts: Sequence[str]
) -> list[list[list[float]]]:
    """For each prompt i, j and the preference probability of image i over j, less a half."""
    places = [(g, i, j) for g, group in enumerate(images) for i in range(len(group)) for j in range(i + 1, len(group))]
    first, second = [images[g][i] for g, i, _ in places], [images[g][j] for g, _, j in places]
    chances = reward.preference(first, second, [prompts[g] for g, _, _ in places]).double().cpu() - 0.5
    found: list[list[list[float]]] = [[] for _ in images]
    for (group, i, j), chance in zip(places, chances.tolist(), strict=True):
        found[group].append([i, j, chance])
    return found


def run_request(
    request: RankingRequest, *, device: str, shard: tuple[int, int] | None = None, ray_workers: int | None = None
) -> Report | None:
    """Answer what is missing in the folder and report.

    Args:
        request: what to do.
        device: of the rewards.
        shard: index and number of processes that share the work by hand; None for those of `accelerate launch`.
        ray_workers: Ray actors that score, see `run_on_ray`; None to score in this process.

    Returns:
        The report, where this process has written one.

    Raises:
        ImportError: with `ray_workers`, Ray is not installed.
        ValueError: a file that cannot be used, or a folder of other settings.
        OSError: missing files or models.
    """
    share = find_share(shard, device, ray_workers)
    console = open_console(quiet=not share.leads)
    with share.hold(request.out):
        tasks = request.tasks()  # first: a wrong path is reported before a model is loaded
        for name in request.names:  # one after the other, as all of them may be too many for a GPU
            # Images may be bytes of a table, which actors read for themselves.
            own = tasks if share.ray_workers is None else None
            watch(run_works(partial(bind_reward, request, name, device, own), share=share), console=console)
        return write_report(request.out) if share.leads else None


def _task(name: str, path: Path) -> Task[RankedImages]:
    rankings = READERS[name](path)
    if not rankings:
        raise ValueError(f"{path} has no rankings.")
    return Task(name, rankings, summarize_rankings)


def bind_reward(
    request: RankingRequest,
    name: str,
    device: str,
    tasks: Sequence[Task[RankedImages]] | None = None,
    writer: str = "0",
) -> list[Work]:
    """Load a reward of a request, which answers all of its benchmarks.

    Args:
        request: what to do.
        name: of the reward.
        device: of the reward.
        tasks: the benchmarks, where they have been read.
        writer: name of this process, see `ResultStore`.
    """
    reward = request.load(name, device)
    return [_work(request, name, reward, task, writer=writer) for task in tasks or request.tasks()]


def _work(request: RankingRequest, name: str, reward: Reward, task: Task[RankedImages], *, writer: str) -> Work:
    settings = {"reward": name, "benchmark": task.name, "num_rankings": len(task.samples)}
    settings |= {"digest": rankings_digest(task.samples), "weights": weights_digest([reward])}
    store = ResultStore(request.folder(name, task.name), settings, writer=writer)
    return Work(task, [RankingMethod(f"{name}: {task.name}", reward, batch_size=request.batch_size)], store)


def write_report(out: Path) -> Report:
    """Write `pair_accuracy.json`, `.md` and `.tex` from all answers in a folder.

    Args:
        out: of `run_request`.

    Raises:
        FileNotFoundError: no answers.
    """
    rows = [_row(path.parent) for path in sorted(out.glob(f"*/*/{SETTINGS_FILE}"))]
    if not rows:
        raise FileNotFoundError(f"{out} holds no results.")
    order = list(READERS)
    rows.sort(key=lambda row: (row["reward"], order.index(row["benchmark"])))
    tables = [_matrix(rows), Table("Ties and rules", COLUMNS, rows)]
    title = "Pair accuracy of rewards on human preferences"
    return Report(title, tables, write_tables(out / "pair_accuracy", title, tables, content={"rows": rows}))


def _row(folder: Path) -> dict[str, Any]:
    store = ResultStore(folder)
    settings, answers = store.settings, store.answers()
    known = {"reward": settings["reward"], "benchmark": settings["benchmark"], "num_rankings": settings["num_rankings"]}
    figures = summarize_rankings(answers, settings["benchmark"])
    return {**known, "num_done": len(answers), **figures}


def _matrix(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rewards against benchmarks; a benchmark that is not finished says how far it is."""
    names = list(dict.fromkeys(row["benchmark"] for row in rows))
    columns = (Column("reward"), *(Column(name, f"{name} [95 %], reward's ties") for name in names))
    lines: dict[str, dict[str, Any]] = {}
    for row in rows:
        cell = "{accuracy:.3f} [{low:.3f}, {high:.3f}], {ties:.3f}".format(**row)
        if row["num_done"] < row["num_rankings"]:
            cell += f" ({row['num_done']} of {row['num_rankings']})"
        lines.setdefault(row["reward"], {"reward": row["reward"]})[row["benchmark"]] = cell
    return Table("Pair accuracy", columns, list(lines.values()))
