"""Recording of predictions: images of chosen noise levels, small, with the scores of what became of them.

The trajectories are those of `recording`; nothing is scored on the way: at a kept step the reward is asked for its
judge at that level, and a judge answers that keeps the images.

Letters of shapes: P prompts, S seeds of a prompt, K seeds of a block, L levels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fk_reward.benchmarks.drawing import particle_generators
from fk_reward.benchmarks.recording import (
    Block,
    EachReward,
    Recorder,
    RecordRequest,
    ScoreAll,
    load_recorder,
    recording_task,
)
from fk_reward.benchmarks.runner import Work, find_share, watch
from fk_reward.benchmarks.store import ResultStore
from fk_reward.benchmarks.works import run_works
from fk_reward.durable_files import write_whole
from fk_reward.planning import plan
from fk_reward.rewards import Reward
from fk_reward.terminal import open_console
from fk_reward.training.predictions import FINISHED, PredictionRecords, image_name, nearest_steps

if TYPE_CHECKING:
    from fk_reward.pipelines import FKSteeringPipeline
    from fk_reward.rewards.inputs import Images

BYTES_PER_PIXEL = {"png": 1.6, "webp": 0.25, "jpg": 0.4}
"""Format -> bytes of a pixel, at most on average: of photographs; drawings and blurred predictions take less."""
_QUALITY = 95  # of the formats that lose something


class KeepingReward(EachReward):
    """Scores finished images by every teacher, and keeps predictions without scoring them.

    Args:
        rewards: name -> teacher.

    Attributes:
        kept: noise level -> batches of images of the run so far.
    """

    def __init__(self, rewards: Mapping[str, Reward]) -> None:
        super().__init__(rewards)
        self.kept: dict[float, list[Tensor]] = {}

    def at_noise(self, level: float) -> Reward:
        """What keeps the images of this level."""
        return _Keeper(self, level)

    def score_with_parts(self, images: Images, prompts: str | Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """The teachers' scores; the images are kept, too."""
        found = super().score_with_parts(images, prompts)
        self.keep(FINISHED, images)  # afterwards: where memory runs out, fewer are scored once more
        return found

    def keep(self, level: float, images: Images) -> None:
        """Put images with those of their level."""
        if not isinstance(images, Tensor):
            raise TypeError(f"A pipeline's images are a tensor, got {type(images).__name__}.")
        self.kept.setdefault(level, []).append(images.detach().to("cpu", copy=True))

    def taken(self) -> dict[float, Tensor]:
        """Level -> (K, 3, H, W), what was kept; it is gone afterwards."""
        found = {level: torch.cat(batches) for level, batches in self.kept.items()}
        self.kept = {}
        return found


class _Keeper(Reward):
    """Keeps images and says nothing of them."""

    def __init__(self, owner: KeepingReward, level: float) -> None:
        self.owner, self.level, self.card = owner, level, owner.card

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:  # noqa: ARG002 (as all rewards)
        """Zeros."""
        return images.new_zeros(len(images))

    def score_with_parts(self, images: Images, prompts: str | Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Zeros, and nothing by the teachers."""
        self.owner.keep(self.level, images)
        zeros = torch.zeros(len(prompts))
        return zeros, {name: zeros for name in self.owner.rewards}


class PredictionRecorder(Recorder):
    """Draws a block, writes its images and answers with the teachers' scores.

    Args:
        pipe: with a `KeepingReward`.
        request: what is recorded.
        arguments: of the pipeline's call.
        steps: step -> noise level, of the predictions to keep.
        folder: where the images go.
    """

    def __init__(
        self,
        pipe: FKSteeringPipeline,
        request: RecordRequest,
        arguments: Mapping[str, Any],
        *,
        steps: Mapping[int, float],
        folder: Path,
    ) -> None:
        super().__init__(pipe, request, arguments)
        self.steps, self.folder = dict(steps), folder

    def _drawn(self, block: Block) -> dict[str, Any]:
        keeper = self.pipe.reward
        if not isinstance(keeper, KeepingReward):
            raise TypeError(f"Expected a pipeline with a KeepingReward, got {type(keeper).__name__}.")
        keeper.taken()  # of a block that failed
        generators = particle_generators(self.request.seed, [block.place], block.first + block.size)[block.first :]
        search = ScoreAll(num_particles=block.size, steps=tuple(self.steps))
        output = self.pipe(block.prompt, generator=generators, search=search, **self.arguments)
        scores = {name: part[0].tolist() for name, part in output.trace.steps[-1].reward_parts.items()}
        # the levels that ran, not those that were asked for: they are what the index says
        for level, images in keeper.taken().items():
            self._write(block, level, images)
        return {
            "place": block.place,
            "first": block.first,
            "scores": scores,
            "levels": [step.level for step in output.trace.steps[:-1]],
            "seconds": output.trace.seconds,
        }

    def _write(self, block: Block, level: float, images: Tensor) -> None:
        for offset, image in enumerate(images):
            name = image_name(block.place, block.first + offset, level, self.request.prediction_format)
            write_image(self.folder / name, image, longest_side=self.request.prediction_size)


def write_image(path: Path, image: Tensor, *, longest_side: int) -> None:
    """Write an image, made smaller where it is larger; the format is that of the name.

    Args:
        path: of the file; its folder is made.
        image: (3, H, W) in [0, 1].
        longest_side: in pixels, at most.
    """
    height, width = image.shape[-2:]
    scale = min(1.0, longest_side / max(height, width))
    if scale < 1:
        size = [max(1, round(height * scale)), max(1, round(width * scale))]
        image = torch.nn.functional.interpolate(image[None].float(), size, mode="bicubic", antialias=True)[0]
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {"jpg": "JPEG"}.get(path.suffix[1:], path.suffix[1:].upper())
    lossy: dict[str, Any] = {} if kind == "PNG" else {"quality": _QUALITY}
    lossy |= {"subsampling": 0} if kind == "JPEG" else {}
    write_whole(path, lambda file: Image.fromarray(pixels).save(file, format=kind, **lossy))


def levels_of_run(pipe: FKSteeringPipeline, prompt: str, arguments: Mapping[str, Any]) -> list[float]:
    """Noise level of each step at which predictions are made, by a trajectory that is thrown away.

    Raises:
        ValueError: where the levels of the scheduler are not known.
    """
    with _without_decoding(pipe):
        generators = particle_generators(0, [0], 1)
        trace = pipe(prompt, generator=generators, search=ScoreAll(num_particles=1), **arguments).trace
    found = [step.level for step in trace.steps[:-1]]
    if any(level is None for level in found):
        raise ValueError(
            f"The noise levels of {type(pipe.scheduler).__name__} are not known: record with another solver."
        )
    return [level for level in found if level is not None]


@contextmanager
def _without_decoding(pipe: FKSteeringPipeline) -> Iterator[None]:
    """Let a cheap function stand for the decoder of predictions, and a constant for the rewards."""
    from fk_reward.benchmarks.drawing import indifferent_reward

    preview, reward = pipe.preview, pipe.reward
    try:
        pipe.preview, pipe.reward = _grey, indifferent_reward()
        yield
    finally:
        pipe.preview, pipe.reward = preview, reward


def _grey(latents: Tensor) -> Tensor:
    return latents.new_full((len(latents), 3, 8, 8), 0.5)


def kept_steps(
    pipe: FKSteeringPipeline, request: RecordRequest, prompt: str, arguments: Mapping[str, Any]
) -> dict[int, float]:
    """Step -> noise level, of the predictions to keep.

    Raises:
        ValueError: for levels that are not known, or two that have the same step.
    """
    return nearest_steps(levels_of_run(pipe, prompt, arguments), request.keep_predictions)


def assembled_predictions(
    answers: Iterable[Mapping[str, Any]], prompts: Sequence[str], settings: Mapping[str, Any], folder: Path
) -> PredictionRecords:
    """The index of all blocks.

    Args:
        answers: of `PredictionRecorder`, of all blocks.
        prompts: P texts.
        settings: of the store.
        folder: of the images.

    Raises:
        ValueError: blocks of other levels, or a score that is not finite.
    """
    ordered = sorted(answers, key=lambda answer: (answer["place"], answer["first"]))
    levels = ordered[0]["levels"]
    if other := next((answer for answer in ordered if answer["levels"] != levels), None):
        raise ValueError(f"The blocks have predictions of different levels: {levels} and {other['levels']}.")
    scores = {
        name: np.array([value for answer in ordered for value in answer["scores"][name]], dtype=np.float64)
        for name in ordered[0]["scores"]
    }
    shaped = {name: values.reshape(len(prompts), -1) for name, values in scores.items()}
    return PredictionRecords(
        folder, tuple(prompts), tuple(levels), shaped, settings["prediction_format"], dict(settings)
    )


def predictions_announced(prompts: Sequence[str], request: RecordRequest, num_steps: int) -> str:
    """Size and cost of a recording of predictions, in a sentence.

    Example:
        >>> request = RecordRequest(num_seeds=4, keep_predictions=(0.8, 0.5), prediction_size=64)
        >>> predictions_announced(["a star"] * 1000, request, 20)
        '1000 prompts x 4 seeds x 20 steps: 80,000 sample steps; 12,000 images to decode, 2 predictions of each ... GB.'
    """
    trajectories, kept = len(prompts) * request.num_seeds, len(request.keep_predictions)
    images = trajectories * (kept + 1)
    size = images * request.prediction_size**2 * BYTES_PER_PIXEL[request.prediction_format] / 1e9
    return (
        f"{len(prompts)} prompts x {request.num_seeds} seeds x {num_steps} steps: {trajectories * num_steps:,} sample "
        f"steps; {images:,} images to decode, {kept} predictions of each trajectory and the finished one; "
        f"{trajectories:,} images to score by {', '.join(request.rewards)}. The images take at most {size:.2f} GB."
    )


def expected_seconds(request: RecordRequest, num_prompts: int, num_steps: int, tflops: str | None) -> float | None:
    """Time of a recording on one GPU, by the operations of `fk-reward plan` over the GPU's speed.

    Args:
        request: what is recorded.
        num_prompts: P.
        num_steps: of a trajectory.
        tflops: speed as `fk-reward plan --tflops` takes it; None to measure that of the GPU at hand.

    Returns:
        Seconds; None without a speed and a GPU.

    Raises:
        ValueError: a model or a reward whose size is not known.
    """
    if tflops is None and not torch.cuda.is_available():
        return None

    def seconds(reward: str, steps: tuple[int, ...]) -> float:
        search = ScoreAll(num_particles=1, steps=steps)
        settings = {"solver": request.solver, "guidance_scale": request.guidance_scale, "preview": request.preview}
        made = plan(request.model, reward=reward, search=search, steps=num_steps, tflops=tflops, **settings)  # type: ignore[arg-type]
        return made.seconds or 0.0

    scored = () if request.keep_predictions else tuple(range(num_steps - 1))
    first, *others = request.rewards
    whole = seconds(first, scored)
    free = seconds(_FREE, ())  # a trajectory whose reward costs nothing
    rewards = sum(seconds(other, scored) - seconds(_FREE, scored) for other in others)
    decoded = len(request.keep_predictions) * (seconds(_FREE, (0,)) - free)  # kept, and not scored
    return num_prompts * request.num_seeds * (whole + rewards + decoded)


_FREE = "shapes-verifier"
"""A reward that costs no operations."""


def record_predictions(
    prompts: Sequence[str], request: RecordRequest, out: Path, *, device: str, dtype: torch.dtype,
    shard: tuple[int, int] | None = None, ray_workers: int | None = None,
) -> Path | None:  # fmt: skip
    """Draw what is missing in a folder, and write its index when nothing is.

    Args:
        prompts: P texts.
        request: what is recorded; with `keep_predictions`.
        out: folder; an unfinished one is resumed.
        device: of model and rewards.
        dtype: of the model.
        shard: index and number of processes that share the work by hand; None for those of `accelerate launch`.
        ray_workers: Ray actors that draw, see `run_on_ray`; None to draw in this process.

    Returns:
        The folder; None where other processes have yet to finish, or write its index.

    Raises:
        ImportError: with `ray_workers`, Ray is not installed.
        ValueError: settings that do not fit, or a folder of other ones.
        OSError: a model or a reward that cannot be found or fetched.
    """
    task, share = recording_task(prompts, request), find_share(shard, device, ray_workers)
    console = open_console(quiet=not share.leads)
    with share.hold(out):
        watch(run_works(partial(_bind, prompts, request, out, device, dtype), share=share), console=console)
        store = ResultStore(out)
        if (share.launched and not share.leads) or store.missing(None, task.samples, range(len(task.samples))):
            return None
        kept = {name: value for name, value in store.settings.items() if name != "prompts"}
        return assembled_predictions(store.answers(), prompts, kept, out).save().parent


def _bind(
    prompts: Sequence[str], request: RecordRequest, out: Path, device: str, dtype: torch.dtype, writer: str
) -> list[Work]:
    recorder, settings = load_recorder(request, device=device, dtype=dtype, kind=KeepingReward)
    steps = kept_steps(recorder.pipe, request, prompts[0], recorder.arguments)
    keeper = PredictionRecorder(recorder.pipe, request, recorder.arguments, steps=steps, folder=out)
    settings |= {"prompts": list(prompts), "kept_levels": list(steps.values())}
    return [Work(recording_task(prompts, request), [keeper], ResultStore(out, settings, writer=writer))]
