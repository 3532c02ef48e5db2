"""`fk-reward skills`: prompts, images, experts and their merge."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from fk_reward.cli.options import (
    MODEL,
    DeviceOption,
    FieldOptions,
    ModelOption,
    NamedPath,
    OutOption,
    OverwriteOption,
    RewardOption,
)
from fk_reward.models import DEFAULT_EMBEDDED_REWARD
from fk_reward.terminal import open_console, progress_bars, say

if TYPE_CHECKING:
    from fk_reward.training.skills import DistinctPrompts, Drawing, ExpertConfig, TrainedStep

    DrawingOptions = Drawing
    ExpertOptions = ExpertConfig
else:
    DrawingOptions = Annotated[Any, FieldOptions("fk_reward.training.skills.images:Drawing", MODEL)]
    ExpertOptions = Annotated[Any, FieldOptions("fk_reward.training.skills.experts:ExpertConfig")]

NO_REWARD = "none"
DTYPE = Annotated[str, Parameter(group=MODEL)]


def skills_prompts(  # noqa: PLR0913 (one parameter for each option)
    out: NamedPath,
    /,
    *,
    templates: Path | None = None,
    shapes: str | None = None,
    llm: str | None = None,
    base_url: str | None = None,
    description: str | None = None,
    examples: Path | None = None,
    num_prompts: int | None = None,
    max_similarity: float | None = None,
    seed: int = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """Write prompts of a skill, near-duplicates dropped: by templates, by the shapes grammar, or by a language model.

    Args:
        out: Text file to write, a prompt a line.
        templates: File of lists (colour = red | blue) and sentences with slots (a photo of {a colour} cat).
        shapes: Task of the shapes world: counting, colors, position, color_attr, ...; held-out prompts are left out.
        llm: Name of a model behind an OpenAI-compatible endpoint; needs --description and --examples.
        base_url: Address of the endpoint, such as http://localhost:8000/v1; OPENAI_BASE_URL or OpenAI's if not given.
        description: With --llm: the skill in a sentence.
        examples: With --llm: text file with at least one prompt that shows it, three are good.
        num_prompts: How many; all if not given, 1000 with --llm.
        max_similarity: Largest ROUGE-L of two prompts; 0.8 with --llm, else 1, which drops equal ones alone.
        seed: Seed of the choice.
        overwrite: Replace the output file.
    """
    if sum(source is not None for source in (templates, shapes, llm)) != 1:
        raise ValueError("Give one source of prompts: --templates FILE, --shapes TASK or --llm MODEL.")
    if llm is None and (base_url is not None or description is not None or examples is not None):
        raise ValueError("--base-url, --description and --examples go with --llm.")
    if out.exists() and not overwrite:
        raise FileExistsError(f"The output file {out} exists; choose another name or add --overwrite.")
    from fk_reward.training.skills import Templates, prompts_by_rules, prompts_of_shapes
    from fk_reward.training.skills.prompts import write_prompts

    if templates is not None:
        limit = 1.0 if max_similarity is None else max_similarity
        found = prompts_by_rules(Templates.read(templates), num_prompts, max_similarity=limit, seed=seed)
    elif shapes is not None:
        found = prompts_of_shapes(shapes, num_prompts, seed=seed)
    else:
        found = _written(llm or "", base_url, description, examples, num_prompts, max_similarity, seed)
    write_prompts(out, found.prompts)
    say(f"{len(found.prompts)} prompts in {out}; {found.num_dropped} were dropped as near-duplicates.")


def _written(  # noqa: PLR0913, PLR0917 (what was typed)
    llm: str,
    base_url: str | None,
    description: str | None,
    examples: Path | None,
    num_prompts: int | None,
    max_similarity: float | None,
    seed: int,
) -> DistinctPrompts:
    """Prompts by a language model."""
    if description is None or examples is None:
        raise ValueError("--llm needs --description TEXT and --examples FILE.")
    from fk_reward.rewards.vlm_judge import OpenAIEngine
    from fk_reward.training.skills import PromptWriter
    from fk_reward.training.skills.prompts import read_prompt_lines

    more: dict[str, Any] = {} if max_similarity is None else {"max_similarity": max_similarity}
    engine = OpenAIEngine(llm, base_url=base_url)
    shown = read_prompt_lines(examples)
    writer = PromptWriter(engine=engine, description=description, examples=shown, seed=seed, **more)
    return writer.write(1000 if num_prompts is None else num_prompts)


def skills_draw(
    prompts: Path,
    /,
    *,
    out: OutOption,
    model: ModelOption = "shapes-sd",
    reward: RewardOption = DEFAULT_EMBEDDED_REWARD,
    drawing: DrawingOptions,
    device: DeviceOption = "auto",
    dtype: DTYPE = "auto",
) -> None:
    """Draw training images of a skill with the model itself, several of each prompt, and score them with a reward.

    All are kept with their scores; fk-reward skills train chooses. An interrupted command is simply started again.
    Several processes share the prompts: accelerate launch -m fk_reward.cli skills draw ...

    Args:
        prompts: Text file with a prompt a line.
        out: Folder of the images and metadata.jsonl.
        model: Text-to-image model: an embedded one, an alias, a hub id or a folder.
        reward: Reward of fk-reward rewards, or a composition of them; none to draw without one.
        drawing: How they are drawn.
        device: Device of the models: auto (the GPU where there is one), cpu, cuda, cuda:1, ... or mps.
        dtype: Floating type of the model: auto (float16 on a GPU), float32, float16 or bfloat16.
    """
    from accelerate import PartialState

    from fk_reward.devices import resolve_device
    from fk_reward.output_folder import hold_folder_together
    from fk_reward.rewards import load_reward
    from fk_reward.training.skills import draw_images
    from fk_reward.training.skills.prompts import read_prompt_lines

    state = PartialState()
    with hold_folder_together(out, state):  # raises now rather than after everything is loaded
        texts = read_prompt_lines(prompts)
    place = str(state.device) if state.num_processes > 1 else resolve_device(device)
    pipe = _load(model, place, dtype)
    scores = None if reward == NO_REWARD else load_reward(reward).to(place)
    numbers = draw_images(pipe, scores, texts, out, drawing=_suited(drawing, model), names=(model, reward))
    done = _watch(numbers, total=-(-len(texts) // state.num_processes), text="drawing", shown=state.is_main_process)
    if state.is_main_process:
        command = f"fk-reward skills train {shlex.quote(str(out))} --model {shlex.quote(model)}"
        say(f"{done} prompts in {out}. Next: {command}")


def _suited(drawing: Drawing, model: str) -> Drawing:
    """The settings with the guidance that suits the embedded model, where none was typed."""
    from dataclasses import replace

    from fk_reward.pipelines.loading import default_guidance

    guidance: dict[str, Any] = default_guidance(model, drawing.guidance_scale)
    return replace(drawing, **guidance)


def skills_train(  # noqa: PLR0913 (one parameter for each option)
    images: Path,
    /,
    *,
    out: OutOption,
    model: ModelOption = "shapes-sd",
    keep: str = "best",
    num_kept: int = 1,
    min_reward: float | None = None,
    config: ExpertOptions,
    dtype: DTYPE = "auto",
    resume: bool = False,
) -> None:
    """Train a LoRA expert of a text-to-image model (Stable Diffusion, SDXL, SD3) on images of a skill.

    The result is what load_lora_weights of a Diffusers pipeline reads. Several GPUs: accelerate launch -m
    fk_reward.cli skills train ...

    Args:
        images: Folder that fk-reward skills draw has filled, or one with a metadata.jsonl of file_name and text.
        out: Folder of the adapter.
        model: Text-to-image model: an embedded one, an alias, a hub id or a folder.
        keep: Images of each prompt: best (by the reward), all, or first (those that nothing has chosen).
        num_kept: How many of each prompt best and first keep.
        min_reward: Leave out images with a lower reward.
        config: How it is trained.
        dtype: Floating type of the frozen weights: auto (float16 on a GPU), float32, float16 or bfloat16.
        resume: Go on from the checkpoint in --out, if there is one.
    """
    from accelerate import PartialState

    from fk_reward.output_folder import hold_folder_together
    from fk_reward.training.skills import read_images, train_expert

    state = PartialState()
    with hold_folder_together(out, state):  # raises now rather than after everything is loaded
        chosen = read_images(images, keep=keep, num_kept=num_kept, min_reward=min_reward)
    pipe = _load(model, str(state.device), dtype)
    if state.is_main_process:
        say(f"{len(chosen)} images of {len({image.prompt for image in chosen})} prompts.")
    steps = train_expert(pipe, chosen, out, config=config, resume=resume)
    losses: list[float] = []
    _watch(_counted(steps, losses), total=config.max_steps, text="training", shown=state.is_main_process)
    if state.is_main_process:
        last = losses[-100:]
        told = f"; mean loss of the last {len(last)} steps: {sum(last) / len(last):.4f}" if last else ""
        say(f"Written: {out}{told}.")


def _counted(steps: Iterator[TrainedStep], losses: list[float]) -> Iterator[int]:
    """Numbers of the steps; their losses go into the list."""
    for step in steps:
        if step.loss == step.loss:  # NaN stands for the checkpoint that a training goes on from
            losses.append(step.loss)
        yield step.step


def skills_merge(  # noqa: PLR0913 (one parameter for each option)
    adapters: list[Path],
    /,
    *,
    out: OutOption,
    weight: list[float] | None = None,
    rank: int | None = None,
    into_weights: bool = False,
    model: ModelOption = "shapes-sd",
    dimension: str = "overall",
    overwrite: OverwriteOption = False,
) -> None:
    """Merge experts into one adapter, or into the weights of their model; or dimensions of LLaVA-Reward into one.

    The update of a layer is the sum of weight x alpha / rank x B A over the experts: PEFT's combination type cat.

    Args:
        adapters: Folders of LoRA adapters of one model, or checkpoints of LLaVA-Reward on one backbone.
        out: Folder of the result.
        weight: Weight of an adapter, in their order; may be repeated. One over their number each if not given.
        rank: Rank of the result, which then is the nearest one; the sum of theirs, which is exact, if not given.
        into_weights: Add the result to the weights of --model and write the whole pipeline.
        model: With --into-weights: the text-to-image model.
        dimension: Of LLaVA-Reward: name of the merged dimension.
        overwrite: Write into a folder that is not empty.
    """
    from fk_reward.models import resolve_model
    from fk_reward.output_folder import hold_folder, prepare_folder
    from fk_reward.rewards.llava_reward.checkpoint import CONFIG_FILE
    from fk_reward.training.skills import merge_rewards

    with hold_folder(out):
        prepare_folder(out, overwrite=overwrite)
        folders = [Path(resolve_model(str(adapter))) for adapter in adapters]
        rewards = [(folder / CONFIG_FILE).is_file() for folder in folders]
        if any(rewards) != all(rewards):
            raise ValueError("Some are checkpoints of LLaVA-Reward and others are not: they cannot be merged.")
        if not all(rewards):
            _merge_experts(folders, out, weight, rank, model if into_weights else None)
    if all(rewards):  # not within: a checkpoint refuses a folder with other files, such as the lock
        merge_rewards(folders, out, weights=weight, rank=rank, dimension=dimension)
    say(f"Written: {out}")


def _merge_experts(
    folders: list[Path], out: Path, weights: list[float] | None, rank: int | None, model: str | None
) -> None:
    """The merged adapter; with a model, its pipeline with the adapter in its weights."""
    from fk_reward.training.skills import fuse, merge_adapters
    from fk_reward.training.skills.adapter_files import adapter_file

    lost = merge_adapters(folders, out, weights=weights, rank=rank)
    if rank is not None:
        say(f"Rank {rank} loses {lost:.1%} of the sum.")
    if model is not None:
        fuse(_load(model, "cpu", "float32"), out).save_pretrained(str(out))
        adapter_file(out).unlink()  # beside weights that have it already, it would be added twice


def _load(model: str, device: str, dtype: str) -> Any:
    """The plain pipeline of Diffusers."""
    from diffusers import DiffusionPipeline

    from fk_reward.devices import resolve_dtype
    from fk_reward.models import check_source, resolve_model
    from fk_reward.terminal import quiet_loading

    quiet_loading()
    source = resolve_model(model)
    check_source(source, "a text-to-image pipeline")
    pipe = DiffusionPipeline.from_pretrained(source, torch_dtype=resolve_dtype(dtype, device)).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _watch(numbers: Iterator[int], *, total: int, text: str, shown: bool) -> int:
    """Go through numbers of things that are done, with a bar; the last one."""
    done = 0
    with progress_bars(open_console(stderr=True, quiet=not shown)) as progress:
        task = progress.add_task(text, total=total)
        for done in numbers:
            progress.update(task, completed=done)
    return done
