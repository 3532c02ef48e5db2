"""`fk-reward generate`: images of prompts, chosen by a search and a reward, with the record of how they were made."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from fk_reward.cli.early_checks import OFFLOADS, check_lora, check_prompts_file, check_scheduler_name, of_each, one_of
from fk_reward.cli.options import (
    MEMORY,
    MODEL,
    OUTPUT,
    REWARD,
    SEARCH,
    BatchSizeOptions,
    FieldOptions,
    ModelOption,
    OutOption,
    OverwriteOption,
    PlacementOptions,
    RewardOption,
    SamplingOptions,
    SearchOptions,
)
from fk_reward.cli.progress import PromptProgress
from fk_reward.cli.prompt_files import PromptRow, one_source
from fk_reward.durable_files import cosmetic, read_json, write_whole
from fk_reward.models import DEFAULT_EMBEDDED_REWARD
from fk_reward.output_folder import hold_folder, prepare_folder
from fk_reward.terminal import TextTable, quiet_loading, say
from fk_reward.value_checks import whole_number

if TYPE_CHECKING:
    from fk_reward.pipelines import FKSteeringOutput, FKSteeringPipeline

logger = logging.getLogger(__name__)

RESULT_FILE = "result.json"
_MADE = ("complete", "seconds", "results")
"""What `result.json` has beside the settings."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What of the model is not for every command.

    Attributes:
        scheduler: Diffusers scheduler by name, such as EulerAncestralDiscreteScheduler, with settings behind a colon
            if any (Name:setting=value,setting=value).
        lora: LoRA on the model: a file, a folder, a hub id or owner/name/file.safetensors, with =WEIGHT behind it if
            any; may be repeated.
        negative_prompt: What the images should not show.
        height: Height of the images in pixels; the model's own if not given.
        width: Width of the images in pixels; the model's own if not given.
        offload: Where weights wait: none (on the device), model (whole models on the CPU) or sequential (every module
            on the CPU, slow).
    """

    scheduler: Annotated[str | None, Parameter(validator=of_each(check_scheduler_name))] = None
    lora: Annotated[list[str] | None, Parameter(validator=of_each(check_lora))] = None
    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None
    offload: Annotated[str, Parameter(group=MEMORY, validator=one_of("--offload", OFFLOADS))] = "none"

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            value = getattr(self, name)
            if value is not None and whole_number(f"--{name}", value, minimum=8) % 8:
                raise ValueError(f"--{name} should be a multiple of 8, which the autoencoders want, got {value}.")


if TYPE_CHECKING:
    DrawingOptions = Drawing
else:
    DrawingOptions = Annotated[Any, FieldOptions(Drawing, MODEL)]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What one `fk-reward generate` asks for, beside its prompts; each field is an option.

    Attributes:
        out: Folder for the results.
        prompts_file: Prompts in place of those typed: a .txt (one a line), .csv or .jsonl (prompt, and negative_prompt
            and seed if any), or - for the standard input.
        search: who goes on.
        budget: Sample steps of a prompt, at most: sets the sizes of the search; those of its settings if not given.
        lookahead: What the reward is asked about on the way: the predicted image of the step (1), of m coarse steps
            from there (m), or of a consistency LoRA (adapter); each step beyond the first is a sample step more.
        num_images_per_prompt: Images to keep of the K, best first.
        seed: Particle k of each prompt starts from the noise of seed + k.
        model: Text-to-image model: shapes-sd (in the package), sd-2.1, sdxl, a hub id or a folder.
        sampling: how a trajectory is run.
        drawing: what else the model is given.
        placement: device and floating type.
        reward: Reward of `fk-reward rewards`, or a composition of them.
        reward_device: Device of the reward alone: cpu, cuda:1, ...; that of the model if not given.
        batch_sizes: how much is run at once.
        compile: Compile the blocks of model and reward by torch.compile.
        channels_last: Lay the convolutions of the model out with channels last.
        overwrite: Begin anew in a folder that is not empty.
    """

    out: OutOption
    prompts_file: Annotated[Path | None, Parameter(name="--prompts", validator=of_each(check_prompts_file))] = None
    search: SearchOptions
    budget: Annotated[int | None, Parameter(group=SEARCH)] = None
    lookahead: Annotated[int | str, Parameter(group=SEARCH)] = 1
    num_images_per_prompt: Annotated[int, Parameter(group=OUTPUT)] = 1
    seed: Annotated[int, Parameter(group=OUTPUT)] = 0
    model: ModelOption = "shapes-sd"
    sampling: SamplingOptions
    drawing: DrawingOptions
    placement: PlacementOptions
    reward: RewardOption = DEFAULT_EMBEDDED_REWARD
    reward_device: Annotated[str | None, Parameter(group=REWARD)] = None
    batch_sizes: BatchSizeOptions
    compile: Annotated[bool, Parameter(group=MEMORY)] = False
    channels_last: Annotated[bool, Parameter(group=MEMORY)] = False
    overwrite: OverwriteOption = False

    def __post_init__(self) -> None:
        if self.sampling.solver is not None and self.drawing.scheduler is not None:
            raise ValueError("A solver brings its scheduler: leave out --scheduler or --solver.")


def generate(prompts: list[str] | None = None, /, *, request: Annotated[Request, FieldOptions(Request)]) -> None:
    """Generate images, steered by a reward.

    Writes the images (000-00.png is the best of the first prompt), and for each prompt trace-000.json and
    lineage-000.png; result.json sums up. An interrupted command goes on when it is started again.

    Args:
        prompts: One or more prompts, each in quotes; or --prompts FILE.
        request: All other settings.

    Raises:
        ValueError: unusable settings, an unknown name, a folder with results of other settings, ...
        OSError: a model or a reward that cannot be found or fetched, a folder that is not empty or is in use.
    """
    rows = one_source(prompts or (), request.prompts_file)  # before PyTorch is imported, and a model loaded
    from fk_reward.pipelines.loading import call_arguments
    from fk_reward.pipelines.lookahead import checked_lookahead
    from fk_reward.search import load_search

    checked_lookahead(request.lookahead)
    load_search(request.search)  # tries what it makes
    asked = _asked_of_rows(rows) | _asked(request)
    with hold_folder(request.out) as folder:
        record = GenerateRecord.open(folder, asked, overwrite=request.overwrite)
        missing = record.missing(len(rows))
        if missing:
            if record.results:
                say(f"{len(record.results)} of {len(rows)} prompts are finished; going on.")
            pipe = _load(request)
            arguments = call_arguments(pipe, request.model, **_trajectory(request))
            record.begin(asked | {"arguments": arguments} | _environment(pipe, request.model))
            _draw(pipe, request, {index: rows[index] for index in missing}, record=record, arguments=arguments)
        else:
            say("All prompts are finished: nothing to do.")
        _show([record.results[index] for index in sorted(record.results)], folder)


def _draw(
    pipe: FKSteeringPipeline,
    request: Request,
    rows: Mapping[int, PromptRow],
    *,
    record: GenerateRecord,
    arguments: Mapping[str, Any],
) -> None:
    """Make the images of some of the prompts; each prompt is taken down when its files are written."""
    from fk_reward.search import ChosenByCall

    search, number = request.search, request.num_images_per_prompt
    if isinstance(search, ChosenByCall):
        search = search.for_call(number, pipe.scheduler)
    if request.budget is not None:
        search = pipe.search_within(request.budget, search, **arguments)
    num_particles = search.num_particles
    of_all = {**arguments, "budget": request.budget, "num_images_per_prompt": number}
    progress = PromptProgress(len(record.settings["prompts"]), len(record.settings["prompts"]) - len(rows))
    with progress.watch(pipe):
        for index, row in rows.items():
            started = time.perf_counter()
            first = request.seed if row.seed is None else row.seed
            seeds = [first + particle for particle in range(num_particles)]
            with progress.prompt(index + 1, row.prompt):
                output = _sample(pipe, row.prompt, seeds, of_all | _negative(row, request))
                result = {"prompt": row.prompt, "seeds": seeds} | _save(record.folder, index, output)
                record.add(index, result, seconds=time.perf_counter() - started)


def _negative(row: PromptRow, request: Request) -> dict[str, str]:
    text = row.negative_prompt or request.drawing.negative_prompt
    return {} if text is None else {"negative_prompt": text}


def _load(request: Request) -> FKSteeringPipeline:
    from fk_reward.pipelines.loading import LoRA, accelerate, load_pipeline

    quiet_loading()
    loras = [LoRA.parse(text) for text in request.drawing.lora or ()]
    say(f"Loading {request.model} with {request.reward} ...", stderr=True)
    pipe = load_pipeline(
        request.model,
        reward=request.reward,
        search=request.search,
        device=request.placement.device,
        dtype=request.placement.dtype,
        batch_sizes=request.batch_sizes,
        reward_device=request.reward_device,
        scheduler=request.drawing.scheduler,
        loras=loras,
        offload=request.drawing.offload,
    )
    pipe.solver = request.sampling.solver  # type: ignore[assignment]
    pipe.preview = request.sampling.preview  # type: ignore[assignment]
    pipe.lookahead = request.lookahead
    accelerate(pipe, compiled=request.compile, channels_last=request.channels_last)
    return pipe


def _trajectory(request: Request) -> dict[str, Any]:
    sampling = request.sampling
    size = {"height": request.drawing.height, "width": request.drawing.width}
    return {"steps": sampling.num_inference_steps, "guidance_scale": sampling.guidance_scale, "size": size}


def _asked_of_rows(rows: Sequence[PromptRow]) -> dict[str, Any]:
    """Prompts, and what some of them have of their own; None where none has."""
    asked: dict[str, Any] = {"prompts": [row.prompt for row in rows]}
    for name in ("negative_prompt", "seed"):
        values = [getattr(row, name) for row in rows]
        asked[f"{name}s"] = values if any(value is not None for value in values) else None
    return asked


def _asked(request: Request) -> dict[str, Any]:
    """The settings that are known before a model is loaded."""
    from fk_reward.search.registry import search_name, settings_of

    names = ["model", "reward", "seed", "budget", "num_images_per_prompt", "reward_device", "compile", "channels_last"]
    asked = {name: getattr(request, name) for name in names}
    asked |= {"solver": request.sampling.solver, "preview": request.sampling.preview, "lookahead": request.lookahead}
    drawing = request.drawing
    asked |= {"negative_prompt": drawing.negative_prompt, "loras": drawing.lora, "asked_scheduler": drawing.scheduler}
    asked |= {"search": search_name(request.search), "config": settings_of(request.search)}
    return asked | {"batch_sizes": asdict(request.batch_sizes)}


def _sample(pipe: FKSteeringPipeline, prompt: str, seeds: list[int], arguments: dict[str, Any]) -> FKSteeringOutput:
    """One prompt at a time, so that its images do not depend on the other prompts and memory does not grow."""
    import torch

    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(prompt, generator=generators, **arguments)


def _save(folder: Path, index: int, output: FKSteeringOutput) -> dict[str, Any]:
    names = [f"{index:03d}-{rank:02d}.png" for rank in range(len(output.images))]
    for name, image in zip(names, output.images, strict=True):
        write_whole(folder / name, partial(image.save, format="PNG"))
    trace, lineage = f"trace-{index:03d}.json", f"lineage-{index:03d}.png"
    output.trace.to_json(folder / trace, thumbnails=True)
    with cosmetic(f"drawing {lineage}"):
        output.trace.plot(folder / lineage)
    return {
        "images": names,
        "rewards": output.rewards[0].tolist(),
        "trace": trace,
        "lineage": lineage,
        "seconds": output.trace.seconds,
    }


def _environment(pipe: FKSteeringPipeline, model: str) -> dict[str, Any]:
    """What the images depend on beside what was typed; an unfinished folder is not continued with another."""
    import diffusers
    import torch
    import transformers

    from fk_reward.version import __version__

    versions = {"fk_reward": __version__, "torch": torch.__version__}
    versions |= {"diffusers": diffusers.__version__, "transformers": transformers.__version__}
    scheduler = type(pipe.scheduler).__name__
    environment = {"scheduler": scheduler, "device": str(pipe.device), "dtype": str(pipe.dtype)}
    return environment | {"versions": versions, "model_files": _model_files(pipe, model)}


def _model_files(pipe: FKSteeringPipeline, model: str) -> str | None:
    """What tells the files of a model from others of the same name; None for the models of the package."""
    from fk_reward.benchmarks.drawing import hub_commit
    from fk_reward.models import EMBEDDED_MODELS, file_state

    return None if model in EMBEDDED_MODELS else hub_commit(pipe) or file_state(model)


def _show(results: list[dict[str, Any]], folder: Path) -> None:
    table = TextTable(f"Results in {folder}")
    table.add_column("prompt")
    table.add_column("image")
    table.add_column("reward", right=True)
    table.add_column("seconds", right=True)
    for result in results:
        rows = zip(result["images"], result["rewards"], strict=True)
        for rank, (name, reward) in enumerate(rows):
            first = (result["prompt"], f"{result['seconds']:.1f}") if rank == 0 else ("", "")
            table.add_row(first[0], name, f"{reward:.4f}", first[1])
    table.print()


class GenerateRecord:
    """Settings and finished prompts of a folder; the file is replaced in one step, so that it can always be read.

    Args:
        folder: of the results.
        content: of the file; None to begin anew.

    Attributes:
        results: index of a prompt -> what was made of it, of those that are finished.
    """

    def __init__(self, folder: Path, content: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.settings: dict[str, Any] = {name: value for name, value in (content or {}).items() if name not in _MADE}
        self.results: dict[int, dict[str, Any]] = {}
        self._seconds = float((content or {}).get("seconds", 0.0))
        for result in (content or {}).get("results", ()):
            if self._is_whole(result):
                self.results[result["index"]] = result

    @classmethod
    def open(cls, folder: Path, settings: Mapping[str, Any], *, overwrite: bool) -> GenerateRecord:
        """Begin a folder, or go on with one that was begun with the same settings.

        Args:
            folder: of the results, which this process holds.
            settings: those that are known before a model is loaded.
            overwrite: begin anew, whatever the folder holds.

        Raises:
            FileExistsError: it holds something that is not of this command.
            ValueError: it was begun with other settings, which are named, or its `result.json` is damaged.
        """
        path = folder / RESULT_FILE
        if overwrite or not path.exists():
            prepare_folder(folder, overwrite=overwrite)
            return cls(folder)
        content = read_json(path, remedy="Name another folder, or add --overwrite to begin anew.")
        if not isinstance(content.get("results"), list):
            raise ValueError(f"{path} was not written by this command. Name another folder, or add --overwrite.")
        record = cls(folder, content)
        record.check(settings)
        return record

    def check(self, settings: Mapping[str, Any]) -> None:
        """Refuse settings that differ from those that the folder was begun with; some of them may be left out.

        Raises:
            ValueError: they differ; the message names the differences.
        """
        from fk_reward.benchmarks.store import settings_changes

        if not self.settings:
            return
        changes = settings_changes({name: self.settings.get(name) for name in settings}, settings)
        if changes:
            raise ValueError(
                f"{self.folder} holds results of other settings ({changes}). Name another folder, or add --overwrite "
                "to begin anew."
            )

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Take all settings down, before the first prompt is drawn."""
        self.check(settings)
        self.settings = dict(settings)
        self._write()

    def missing(self, num_prompts: int) -> list[int]:
        """Indices of the prompts that are not finished."""
        return [index for index in range(num_prompts) if index not in self.results]

    def add(self, index: int, result: Mapping[str, Any], *, seconds: float) -> None:
        """Take a finished prompt down, whose files are written.

        Args:
            index: of the prompt.
            result: what was made of it; with `images`, `trace` and `lineage`.
            seconds: that it took.
        """
        files = {name: _digest(self.folder / name) for name in _needed(result)}
        self.results[index] = {"index": index, **result, "files": files}
        self._seconds += seconds
        self._write()

    def _write(self) -> None:
        results = [self.results[index] for index in sorted(self.results)]
        complete = len(results) == len(self.settings["prompts"])
        content = {**self.settings, "complete": complete, "seconds": self._seconds, "results": results}
        write_whole(self.folder / RESULT_FILE, json.dumps(content, indent=2) + "\n")

    def _is_whole(self, result: Any) -> bool:
        """Whether what was made of a prompt is there, as it was when it was taken down."""
        if not (isinstance(result, dict) and isinstance(result.get("files"), dict) and "index" in result):
            return False
        changed = [name for name, digest in result["files"].items() if _digest(self.folder / name) != digest]
        if changed:
            names = ", ".join(changed)
            logger.warning("%s: missing or changed since it was made; prompt %d is made again.", names, result["index"])
        return not changed


def _needed(result: Mapping[str, Any]) -> Iterable[str]:
    """Files without which a prompt is not finished; the lineage is an ornament."""
    return (*result["images"], result["trace"])


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else None
