"""Runs of the page: one at a time on each model, in a thread that hands out what it knows so far."""

from __future__ import annotations

import queue
import tempfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fk_reward.models import DEFAULT_EMBEDDED_REWARD
from fk_reward.pipelines import FKSteeringOutput, FKSteeringPipeline, watch_steps
from fk_reward.pipelines.loading import default_guidance, load_pipeline
from fk_reward.rewards.registry import check_reward_name
from fk_reward.sampling.trace import TraceStep
from fk_reward.search import SearchConfig
from fk_reward.search.base import for_one_image, num_finished
from fk_reward.search.registry import load_search
from fk_reward.text import require_text
from fk_reward.value_checks import whole_number

PLAIN_SEARCH = "best-of-n"
"""Draws the K plain images of the same seeds, and orders them by the reward."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the form says.

    Attributes:
        prompt: one prompt.
        model: as `FKSteeringPipeline.from_pretrained` takes it.
        reward: name of a reward, or a composition.
        search: name of a search.
        num_particles: K; None for that of the search.
        reward_scale: lambda, for searches that have one: a number, "auto" or "card"; None for that of the search.
        num_inference_steps: scheduler steps.
        guidance_scale: None for the model's.
        seed: particle k starts from the noise of seed + k.
        compare: draw the plain images of the same seeds, too.

    Raises:
        ValueError: a value out of range, by its name on the page.
    """

    prompt: str
    model: str = "shapes-sd"
    reward: str = DEFAULT_EMBEDDED_REWARD
    search: str = "fk"
    num_particles: int | None = None
    reward_scale: float | str | None = None
    num_inference_steps: int = 50
    guidance_scale: float | None = None
    seed: int = 0
    compare: bool = True

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise ValueError("Write a prompt.")
        require_text([self.prompt], "prompt")
        whole_number("steps", self.num_inference_steps, minimum=1)
        whole_number("seed", self.seed, minimum=0)

    def config(self) -> SearchConfig:
        """The search with its settings.

        Raises:
            ValueError: an unknown search, a value that it refuses, or a lambda for a search that has none.
        """
        typed = {"num_particles": self.num_particles, "reward_scale": self.reward_scale}
        try:
            config = load_search(self.search, **{name: value for name, value in typed.items() if value is not None})
        except TypeError as error:
            raise ValueError(str(error)) from error
        return for_one_image(config)

    def seeds(self) -> list[int]:
        """Of the K particles."""
        return [self.seed + particle for particle in range(self.config().num_particles)]

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the pipeline's call, beside the search and its generators."""
        guidance = default_guidance(self.model, self.guidance_scale)
        return {"num_inference_steps": self.num_inference_steps, **guidance}


@dataclass(frozen=True)
class Progress:
    """What is known of a run.

    Attributes:
        stage: what runs, in words.
        steps: scoring steps so far.
        output: of the search, once it has ended.
        plain: of the plain images of the same seeds.
        trace_file: the trace as JSON.
    """

    stage: str
    steps: tuple[TraceStep, ...] = ()
    output: FKSteeringOutput | None = None
    plain: FKSteeringOutput | None = None
    trace_file: Path | None = None

    @property
    def best(self) -> Image.Image | None:
        """The best image of the search."""
        return None if self.output is None else self.output.images[0]


class _LeftError(Exception):
    """The page was closed, or another run begun on it."""


@dataclass
class _Loaded:
    """A model, the name of its reward, and who may use it now: a pipeline runs one call at a time."""

    pipe: FKSteeringPipeline
    reward: str
    free: threading.Lock = field(default_factory=threading.Lock)


class Studio:
    """Models that are loaded once, and runs on them.

    Args:
        device: one of `fk_reward.devices.DEVICES`.
        dtype: one of `fk_reward.devices.DTYPES`.

    Example:
        >>> studio = Studio(device="cpu")
        >>> request = Request(prompt="a photo of a circle", num_particles=2, num_inference_steps=2, compare=False)
        >>> *_, last = studio.run(request)
        >>> last.stage, last.best.size
        ('done', (64, 64))
    """

    def __init__(self, *, device: str = "auto", dtype: str = "auto") -> None:
        self._device, self._dtype = device, dtype
        self._loaded: dict[str, _Loaded] = {}
        self._loading = threading.Lock()
        self._files = tempfile.TemporaryDirectory(prefix="fk-reward-ui-")

    def run(self, request: Request) -> Iterator[Progress]:
        """Run a request, and yield what is known whenever there is more; closing the iterator stops the run.

        Raises:
            ValueError: what the library refuses.
            OSError: a model that cannot be found or fetched.
        """
        config = request.config()  # before a model is loaded
        told: queue.Queue[Progress | None] = queue.Queue()
        left = threading.Event()
        with ThreadPoolExecutor(max_workers=1) as worker:
            work = worker.submit(self._work, request, config, told, left)
            try:
                while (news := told.get()) is not None:
                    yield news
                work.result()  # raises what the run has raised
            finally:
                left.set()

    def _work(self, request: Request, config: SearchConfig, told: queue.Queue[Any], left: threading.Event) -> None:
        try:
            for progress in self._stages(request, config, told, left):
                told.put(progress)
        finally:
            told.put(None)

    def _stages(
        self, request: Request, config: SearchConfig, told: queue.Queue[Any], left: threading.Event
    ) -> Iterator[Progress]:
        yield Progress(f"loading {request.model} with {request.reward}")
        loaded = self._load(request)
        if loaded.free.locked():
            yield Progress("waiting for another run on this model")
        with ExitStack() as stack:
            _acquire(loaded.free, left, stack)
            if loaded.reward != request.reward:
                yield Progress(f"loading {request.reward}")
                loaded.pipe.reward = request.reward
                loaded.pipe.reward.to(loaded.pipe.device)
                loaded.reward = request.reward
            now = Progress("drawing")
            yield now
            steps: list[TraceStep] = []

            def watch(step: TraceStep) -> None:
                if left.is_set():
                    raise _LeftError
                steps.append(step)
                told.put(replace(now, stage="drawing", steps=tuple(steps)))

            with watch_steps(watch):
                output = _call(loaded.pipe, request, config)
            now = Progress("drawing plain images" if request.compare else "done", tuple(output.trace.steps), output)
            now = replace(now, trace_file=self._write(output))
            yield now
            if request.compare:
                with watch_steps(lambda _: _stop_if(left)):
                    of_plain = load_search(PLAIN_SEARCH, num_particles=config.num_particles)
                    # plain images start and move by the same noise
                    provenance = output.trace.provenance
                    plain = _call(loaded.pipe, request, of_plain, eta=provenance.eta if provenance else None)
                yield replace(now, stage="done", plain=plain)

    def _load(self, request: Request) -> _Loaded:
        check_reward_name(request.reward)
        with self._loading:
            if request.model not in self._loaded:
                pipe = load_pipeline(
                    request.model,
                    reward=request.reward,
                    search=load_search(PLAIN_SEARCH),
                    device=self._device,
                    dtype=self._dtype,
                )
                pipe.set_progress_bar_config(disable=True)
                self._loaded.clear()  # one model at a time fits on most GPUs; a run that goes on keeps its own
                self._loaded[request.model] = _Loaded(pipe, request.reward)
            return self._loaded[request.model]

    def _write(self, output: FKSteeringOutput) -> Path:
        folder = Path(tempfile.mkdtemp(dir=self._files.name))
        path = folder / "trace.json"
        output.trace.to_json(path, thumbnails=True)
        return path


def _stop_if(left: threading.Event) -> None:
    if left.is_set():
        raise _LeftError


def _acquire(lock: threading.Lock, left: threading.Event, stack: ExitStack) -> None:
    while not lock.acquire(timeout=0.2):
        _stop_if(left)
    stack.callback(lock.release)


def _call(
    pipe: FKSteeringPipeline, request: Request, config: SearchConfig, *, eta: float | None = None
) -> FKSteeringOutput:
    generators = [torch.Generator().manual_seed(seed) for seed in request.seeds()]
    number = num_finished(config)  # all of them, best first
    arguments = request.arguments() | ({} if eta is None else {"eta": eta})
    return pipe(request.prompt, search=config, num_images_per_prompt=number, generator=generators, **arguments)


def snippet(request: Request) -> str:
    """Python that makes the same call.

    Example:
        >>> print(snippet(Request(prompt="a star", num_particles=8)))
        import torch
        from fk_reward import FKSteeringPipeline
        <BLANKLINE>
        pipe = FKSteeringPipeline.from_pretrained("shapes-sd", reward="shapes-llava-reward-alignment")
        out = pipe(
            'a star',
            search='fk',
            num_particles=8,
            num_inference_steps=50,
            guidance_scale=3.0,
            generator=[torch.Generator().manual_seed(seed) for seed in range(0, 8)],
        )
        out.images[0].save("best.png")
    """
    settings: Mapping[str, Any] = {
        "search": request.search,
        "num_particles": request.num_particles,
        "reward_scale": request.reward_scale,
        **request.arguments(),
    }
    lines = [f"    {name}={value!r}," for name, value in settings.items() if value is not None]
    last = request.seed + request.config().num_particles
    return "\n".join(
        (
            "import torch",
            "from fk_reward import FKSteeringPipeline",
            "",
            f"pipe = FKSteeringPipeline.from_pretrained({_quoted(request.model)}, reward={_quoted(request.reward)})",
            "out = pipe(",
            f"    {request.prompt!r},",
            *lines,
            f"    generator=[torch.Generator().manual_seed(seed) for seed in range({request.seed}, {last})],",
            ")",
            'out.images[0].save("best.png")',
        )
    )


def _quoted(text: str) -> str:
    return f'"{text}"' if '"' not in text and "\\" not in text else repr(text)
