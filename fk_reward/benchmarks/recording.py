"""Recording: the rewards of every predicted image along plain trajectories, for `fk_reward.search.replay`.

A task of the engine: its samples are blocks of seeds of one prompt, so that a run can be stopped, resumed and shared
between processes; its judge puts the blocks together.

Letters of shapes: P prompts, S seeds of a prompt, K seeds of a block, T steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Generator, Tensor

from fk_reward.benchmarks.drawing import PACKAGES, describe_model, describe_preview, particle_generators
from fk_reward.benchmarks.runner import Share, Work, find_share, watch
from fk_reward.benchmarks.store import ResultStore, weights_digest
from fk_reward.benchmarks.task import Task
from fk_reward.benchmarks.works import run_works
from fk_reward.models import DEFAULT_EMBEDDED_REWARD
from fk_reward.pipelines.batch_sizes import BatchSizes
from fk_reward.rewards import Reward, load_reward
from fk_reward.search.base import PlainPopulation
from fk_reward.search.replay.records import RewardRecords
from fk_reward.terminal import open_console
from fk_reward.text import require_text
from fk_reward.value_checks import real_number, whole_number
from fk_reward.version import __version__

if TYPE_CHECKING:
    from fk_reward.pipelines import FKSteeringOutput, FKSteeringPipeline
    from fk_reward.rewards.inputs import Images

RECORDS_FILE = "records.npz"
FORMATS = ("png", "webp", "jpg")
"""Of kept images."""
_OF_PREDICTIONS = ("keep_predictions", "prediction_size", "prediction_format")
_BYTES = 4  # of a float32


@dataclass(frozen=True, kw_only=True)
class RecordRequest:
    """What is recorded.

    Attributes:
        rewards: names of rewards, each of which scores every image.
        num_seeds: S, trajectories of a prompt. Of 64 a budget of 8 images can be replayed, of 200 one of 16 or more.
        seed: trajectory j of prompt i starts from a seed that follows from this one, i and j.
        model: text-to-image model: shapes-sd (in the package), sd-2.1, sdxl, a hub id or a folder.
        solver: scheduler, steps and guidance of a published recipe; None for the model's own scheduler.
        num_inference_steps: scheduler steps; the solver's, or 50, if not given.
        guidance_scale: classifier-free guidance; the solver's, 3 for shapes-sd, or the pipeline's own, if not given.
        eta: noise of each step, of schedulers that take it; None for the solver's, or the pipeline's own, which is 0.
        preview: decoder of the predictions: auto, taesd, taesdxl, vae/2, a hub id or a folder; None for the model's
            own. The finished images are decoded by the model's own.
        batch_size: K, trajectories in one call.
        batch_sizes: how much the denoiser, the decoder and the reward take at once.
        keep_predictions: noise levels, from 0 (finished) to 1 (pure noise), whose predicted images are kept in place of
            their rewards, to train judges of noise bands on; the rewards are teachers then, of finished images alone.
        prediction_size: longest side of kept images in pixels; larger ones are made smaller.
        prediction_format: of kept images: png, or the smaller webp and jpg, which lose something.

    Raises:
        ValueError: no reward, one that is named twice, or a number out of range.
    """

    rewards: tuple[str, ...] = (DEFAULT_EMBEDDED_REWARD,)
    num_seeds: int = 64
    seed: int = 0
    model: str = "shapes-sd"
    solver: str | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    eta: float | None = None
    preview: str | None = None
    batch_size: int = 16
    batch_sizes: BatchSizes = field(default_factory=BatchSizes)
    keep_predictions: tuple[float, ...] = ()
    prediction_size: int = 336
    prediction_format: str = "png"

    def __post_init__(self) -> None:
        if self.prediction_format not in FORMATS:
            raise ValueError(
                f"prediction_format should be one of {', '.join(FORMATS)}, got {self.prediction_format!r}."
            )
        for level in self.keep_predictions:
            real_number("keep_predictions", level, low=0.0, high=1.0, note="a noise level")
        for name, minimum in (("num_seeds", 1), ("seed", 0), ("batch_size", 1), ("prediction_size", 8)):
            whole_number(name, getattr(self, name), minimum=minimum)
        if self.num_inference_steps is not None:
            whole_number("num_inference_steps", self.num_inference_steps, minimum=2)
        if self.eta is not None:
            real_number("eta", self.eta, low=0.0, high=1.0)
        if not self.rewards:
            raise ValueError("Name at least one reward.")
        if repeated := [name for name in self.rewards if self.rewards.count(name) > 1]:
            raise ValueError(f"The reward {repeated[0]!r} is named twice.")


@dataclass(frozen=True)
class Block:
    """Some seeds of a prompt, which are drawn in one call.

    Attributes:
        prompt: its text.
        place: of the prompt.
        first: of its seeds.
        size: how many.
    """

    prompt: str
    place: int
    first: int
    size: int


@dataclass(frozen=True, kw_only=True)
class ScoreAll:
    """A search that scores every prediction and changes nothing: the trajectories are those of the plain pipeline.

    Attributes:
        num_particles: trajectories of a prompt.
        steps: whose predictions are scored; None for all but the last, whose image is finished.

    Example:
        >>> ScoreAll(num_particles=8).population().forecast(4).scorings
        (8, 8, 8)
    """

    default_eta: ClassVar[float | None] = None

    num_particles: int = 16
    steps: tuple[int, ...] | None = None

    def population(
        self,
        num_groups: int = 1,
        generators: Generator | Sequence[Generator] | None = None,  # noqa: ARG002 (nothing is random)
        *,
        spread: float | None = None,  # noqa: ARG002
    ) -> PlainPopulation:
        """Particles that are scored and stay."""
        return _Watched(self, num_groups)


class _Watched(PlainPopulation):
    def __init__(self, config: ScoreAll, num_groups: int) -> None:
        super().__init__(config.num_particles, num_groups)
        self._steps = config.steps

    def sizes(self, num_steps: int) -> Mapping[int, int]:
        return dict.fromkeys(range(num_steps - 1) if self._steps is None else self._steps, self.first_particles)


class EachReward(Reward):
    """Several rewards at once: its score is that of the first, its parts are all of them.

    Args:
        rewards: name -> reward.

    Raises:
        ValueError: for one that compares the images of a call with each other: its scores are no property of an image.
    """

    def __init__(self, rewards: Mapping[str, Reward]) -> None:
        for name, reward in rewards.items():
            if reward.compares_images:
                raise ValueError(
                    f"{name} compares the images of a call with each other, so that what it says of one image in other "
                    "company cannot be recorded. Use a reward that scores each image by itself."
                )
        self.rewards = dict(rewards)
        self.card = next(iter(rewards.values())).card

    @classmethod
    def load(cls, names: Sequence[str], device: str) -> EachReward:
        """Those of these names, on a device.

        Raises:
            ValueError: an unknown name.
            OSError: a reward that cannot be found or fetched.
        """
        return cls({name: load_reward(name).to(device) for name in names})

    def at_noise(self, level: float) -> Reward:
        """Each reward's judge at this level."""
        return EachReward({name: reward.at_noise(level) for name, reward in self.rewards.items()})

    @property
    def judges(self) -> tuple[str, ...]:
        """Those of all."""
        return tuple(judge for reward in self.rewards.values() for judge in reward.judges)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """The first reward."""
        return next(iter(self.rewards.values())).score(images, prompts)

    def score_with_parts(self, images: Images, prompts: str | Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """The first reward, and all of them by name."""
        # each gets images of its own, which it may spoil
        parts = {name: reward(_copied(images), prompts) for name, reward in self.rewards.items()}
        return next(iter(parts.values())), parts


def _copied(images: Images) -> Images:
    return images.clone() if isinstance(images, Tensor) else images


def recording_task(prompts: Sequence[str], request: RecordRequest) -> Task[Block]:
    """The blocks to draw; the task's judge puts their answers together.

    Args:
        prompts: P texts.
        request: what is recorded.

    Example:
        >>> task = recording_task(["a photo of a star"], RecordRequest(num_seeds=24, batch_size=16))
        >>> [(block.first, block.size) for block in task.samples]
        [(0, 16), (16, 8)]
    """
    require_text(list(prompts), "prompts")
    blocks = [
        Block(prompt, place, first, min(request.batch_size, request.num_seeds - first))
        for place, prompt in enumerate(prompts)
        for first in range(0, request.num_seeds, request.batch_size)
    ]
    return Task("record", blocks, judge=assembled)


class Recorder:
    """A pipeline as a method of `runner.run`: it draws a block and says what every reward said at every step.

    Args:
        pipe: with all rewards, as `load_recorder` makes it.
        request: what is recorded.
        arguments: of the pipeline's call.
    """

    name = "record"
    batch_size = 1

    def __init__(self, pipe: FKSteeringPipeline, request: RecordRequest, arguments: Mapping[str, Any]) -> None:
        self.pipe, self.request, self.arguments = pipe, request, dict(arguments)

    def answer(self, _indices: Sequence[int], blocks: Sequence[Block], /) -> list[dict[str, Any]]:
        """Rewards of some blocks: name -> K lists of T numbers."""
        return [self._drawn(block) for block in blocks]

    def _drawn(self, block: Block) -> dict[str, Any]:
        generators = particle_generators(self.request.seed, [block.place], block.first + block.size)[block.first :]
        search = ScoreAll(num_particles=block.size)
        output = self.pipe(block.prompt, generator=generators, search=search, **self.arguments)
        found = {"place": block.place, "first": block.first, "rewards": _rewards_of(output)}
        return found | {"seconds": output.trace.seconds}


def _rewards_of(output: FKSteeringOutput) -> dict[str, list[list[float]]]:
    steps = output.trace.steps
    found = {name: torch.stack([step.reward_parts[name][0] for step in steps], dim=1) for name in steps[0].reward_parts}
    # the shortest decimals that are the same float32
    return {name: [[float(str(value)) for value in row] for row in rows.numpy()] for name, rows in found.items()}


def assembled(
    answers: Iterable[Mapping[str, Any]], prompts: Sequence[str], settings: Mapping[str, Any]
) -> RewardRecords:
    """The records of all blocks.

    Args:
        answers: of `Recorder`, of all blocks.
        prompts: P texts.
        settings: of the store.

    Raises:
        ValueError: a reward that is not finite, or trajectories of different lengths.

    Example:
        >>> blocks = [{"place": 0, "first": seed, "rewards": {"a": [[0.5 * seed, 1.0]]}} for seed in (1, 0)]
        >>> assembled(blocks, ["a star"], {}).of("a").tolist()
        [[[0.0, 1.0], [0.5, 1.0]]]
    """
    ordered = sorted(answers, key=lambda answer: (answer["place"], answer["first"]))
    found = {}
    for name in ordered[0]["rewards"]:
        rows = [row for answer in ordered for row in answer["rewards"][name]]
        found[name] = np.array(rows, dtype=np.float32).reshape(len(prompts), -1, len(rows[0]))
    return RewardRecords(found, tuple(prompts), dict(settings))


def load_recorder(
    request: RecordRequest, *, device: str, dtype: torch.dtype, kind: type[EachReward] = EachReward
) -> tuple[Recorder, dict[str, Any]]:
    """Model and rewards, and what the records depend on, as JSON.

    Args:
        request: what is recorded.
        device: of model and rewards.
        dtype: of the model.
        kind: what holds the rewards.

    Raises:
        ValueError: an unknown name, or a reward of which lower is better.
        OSError: a model or a reward that cannot be found or fetched.
    """
    from fk_reward.pipelines import FKSteeringPipeline
    from fk_reward.pipelines.loading import call_arguments
    from fk_reward.pipelines.schedulers import resolve_solver

    # Rewards first: a name with a typing error is refused before a large model is fetched.
    each = kind.load(request.rewards, device)
    pipe = FKSteeringPipeline.from_pretrained(
        request.model, reward=each, batch_sizes=request.batch_sizes, torch_dtype=dtype
    ).to(device)
    for reward in each.rewards.values():
        pipe.reward = reward  # refuses one that cannot choose, before anything is drawn
    pipe.reward = each
    pipe.set_progress_bar_config(disable=True)
    pipe.solver, pipe.preview = resolve_solver(request.solver), request.preview
    steps, guidance = request.num_inference_steps, request.guidance_scale
    arguments = call_arguments(pipe, request.model, steps=steps, guidance_scale=guidance)
    arguments |= {} if request.eta is None else {"eta": request.eta}
    return Recorder(pipe, request, arguments), _settings(pipe, request, each.rewards, arguments)


def _settings(
    pipe: FKSteeringPipeline, request: RecordRequest, rewards: Mapping[str, Reward], arguments: Mapping[str, Any]
) -> dict[str, Any]:
    asked = asdict(request)
    if not request.keep_predictions:
        asked = {name: value for name, value in asked.items() if name not in _OF_PREDICTIONS}
    return {
        **asked,
        "arguments": dict(arguments),
        "described": describe_model(pipe, eta=request.eta),
        "preview_weights": describe_preview(pipe),
        "reward_weights": {name: weights_digest([reward]) for name, reward in rewards.items()},
        "versions": {"fk_reward": __version__, **{name: metadata.version(name) for name in PACKAGES}},
    }


def announced(prompts: Sequence[str], request: RecordRequest, num_steps: int) -> str:
    """Size and cost of a recording, in a sentence.

    Example:
        >>> announced(["a star"] * 100, RecordRequest(num_seeds=200), 20)
        '100 prompts x 200 seeds x 20 steps: as many sample steps as 20,000 images of one prompt (400,000), ... 1.6 MB.'
    """
    trajectories = len(prompts) * request.num_seeds
    total = trajectories * num_steps
    size = total * _BYTES * len(request.rewards) / 1e6
    return (
        f"{len(prompts)} prompts x {request.num_seeds} seeds x {num_steps} steps: as many sample steps as "
        f"{trajectories:,} images of one prompt ({total:,}), and {total:,} images to decode and to score by "
        f"{', '.join(request.rewards)}. The records have {size:.1f} MB."
    )


def record(
    prompts: Sequence[str], request: RecordRequest, out: Path, *, device: str, dtype: torch.dtype,
    shard: tuple[int, int] | None = None, ray_workers: int | None = None,
) -> Path | None:  # fmt: skip
    """Draw what is missing in a folder, and write the records when nothing is.

    Args:
        prompts: P texts.
        request: what is recorded.
        out: folder; an unfinished one is resumed.
        device: of model and rewards.
        dtype: of the model.
        shard: index and number of processes that share the work by hand; None for those of `accelerate launch`.
        ray_workers: Ray actors that draw, see `run_on_ray`; None to draw in this process.

    Returns:
        The file of the records; None where other processes have yet to finish, or write it.

    Raises:
        ImportError: with `ray_workers`, Ray is not installed.
        ValueError: settings that do not fit, or a folder of other ones.
        OSError: a model or a reward that cannot be found or fetched.
    """
    task, share = recording_task(prompts, request), find_share(shard, device, ray_workers)
    console = open_console(quiet=not share.leads)
    with share.hold(out):
        watch(run_works(partial(_bind, prompts, request, out, device, dtype), share=share), console=console)
        return _finished(task, ResultStore(out), prompts, share=share)


def _bind(
    prompts: Sequence[str], request: RecordRequest, out: Path, device: str, dtype: torch.dtype, writer: str
) -> list[Work]:
    recorder, settings = load_recorder(request, device=device, dtype=dtype)
    store = ResultStore(out, {**settings, "prompts": list(prompts)}, writer=writer)
    return [Work(recording_task(prompts, request), [recorder], store)]


def _finished(task: Task[Block], store: ResultStore, prompts: Sequence[str], *, share: Share) -> Path | None:
    """Write the records where all blocks are there; of processes that wait for each other the first one does."""
    if share.launched and not share.leads:
        return None
    if store.missing(None, task.samples, range(len(task.samples))):
        return None
    settings = {name: value for name, value in store.settings.items() if name != "prompts"}
    records: RewardRecords = task.judge(store.answers(), prompts, settings)
    return records.save(store.folder / RECORDS_FILE)
