"""A page of images: the same prompts plain, as the best of N, and steered, from the same seeds.

    python examples/gallery.py                                             # shapes, on the CPU, offline
    python examples/gallery.py --model sdxl --device cuda --out docs       # SDXL; writes docs/gallery.md

No prompt is chosen after the images are seen and none is left out: they stand in `SDXL_PROMPTS`, or in a file of your
own. Plain is the first of the N images; best of N is the best of them by the reward that steers; steered is the search,
from the same starts. A second reward, which nobody chose by, judges all three.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fk_reward.cli import run_script
from fk_reward.durable_files import write_whole
from fk_reward.rewards import Reward, load_reward
from fk_reward.search.registry import search_class, search_fields
from fk_reward.terminal import say
from fk_reward.value_checks import whole_number

if TYPE_CHECKING:
    from fk_reward import FKSteeringPipeline

SDXL_PROMPTS = (
    "a green stop sign in a red field",
    "a photo of a blue banana on a wooden table",
    "three red apples and two green pears in a white bowl",
    "a black cat sitting to the left of a white dog",
    "an astronaut riding a horse on the moon, oil painting",
    "a cube made of brick, next to a sphere made of wool",
    "a yellow bicycle leaning against a purple wall",
    "a shop window with the word OPEN in red letters",
    "a fox in the snow wearing a striped scarf",
    "five hot air balloons over a lake at sunrise",
    "a glass of orange juice beside a closed book",
    "a robot painting a self-portrait in a sunlit studio",
)
"""What text-to-image models get wrong: colours that surprise, counts, places, writing; and three that they do not."""

SHAPES_PROMPTS = (
    "a photo of a red circle and a blue square",
    "a photo of three green triangles",
    "a photo of a yellow star",
    "a photo of a square left of a circle",
)

METHODS = ("plain", "best of N", "steered")


@dataclass(frozen=True)
class Settings:
    """What a gallery is made with where nothing else is said, by model.

    Attributes:
        reward: steers.
        judge: scores the finished images of all methods, and nothing else.
        prompts: to draw.
        steps: of the scheduler.
    """

    reward: str
    judge: str
    prompts: tuple[str, ...]
    steps: int


DEFAULTS = {
    "shapes-sd": Settings("shapes-llava-reward-alignment", "shapes-clipscore", SHAPES_PROMPTS, 12),
    "sdxl": Settings("imagereward", "hpsv2.1", SDXL_PROMPTS, 40),
}


@dataclass(frozen=True, eq=False)
class Row:
    """The images of one prompt, one for each method.

    Attributes:
        prompt: that was drawn.
        images: method -> `(3, H, W)` float32 in [0, 1].
        rewards: method -> of the reward that steers.
        judged: method -> of the other one.
    """

    prompt: str
    images: dict[str, Tensor]
    rewards: dict[str, float]
    judged: dict[str, float]


def draw(pipe: FKSteeringPipeline, judge: Reward, prompt: str, *, seeds: Sequence[int], calls: dict[str, Any]) -> Row:
    """One row of the gallery.

    Args:
        pipe: with the reward that steers.
        judge: scores the finished images.
        prompt: to draw.
        seeds: of the N starts.
        calls: `search`, the settings of the steered call, and `arguments`, those of every call.
    """

    def call(**options: Any) -> Any:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        number = {"num_particles": len(seeds)}
        return pipe(prompt, generator=generators, output_type="pt", **number, **calls["arguments"], **options)

    eta = _eta(pipe, calls["search"]["search"])
    starts, steered = call(search="best-of-n", num_images_per_prompt=len(seeds), **eta), call(**calls["search"])
    first = int((starts.trace.selected[0] == 0).nonzero()[0])
    chosen = {"plain": (starts, first), "best of N": (starts, 0), "steered": (steered, 0)}
    images = {method: out.images[place].float().cpu() for method, (out, place) in chosen.items()}
    rewards = {method: float(out.rewards[0, place]) for method, (out, place) in chosen.items()}
    scores = judge(torch.stack([images[method] for method in METHODS]).to(_device(judge)), prompt).tolist()
    return Row(prompt, images, rewards, dict(zip(METHODS, scores, strict=True)))


def _eta(pipe: FKSteeringPipeline, search: str) -> dict[str, float]:
    """The noise of the search's steps, for the images that are drawn without it: best of N alone would take none."""
    eta = search_class(search).default_eta
    takes = "eta" in inspect.signature(pipe.scheduler.step).parameters
    return {"eta": eta} if takes and eta is not None else {}


def write_gallery(out: Path, rows: Sequence[Row], *, about: str, names: tuple[str, str]) -> Path:
    """Write the images to `images/gallery/`, and the page `gallery.md` beside that.

    Args:
        out: the folder, such as `docs`.
        rows: of the gallery.
        about: what was run, in a sentence.
        names: of the reward that steers and of the judge.
    """
    folder = out / "images" / "gallery"
    folder.mkdir(parents=True, exist_ok=True)
    table = ["| " + " | ".join(("prompt", *METHODS)) + " |", "| --- | --- | --- | --- |"]
    for number, row in enumerate(rows):
        cells = [f"`{row.prompt}`"]
        for method in METHODS:
            name = f"{number:02d}-{method.replace(' ', '-').lower()}.jpg"
            _save(row.images[method], folder / name)
            scores = f"{row.rewards[method]:.2f} · {row.judged[method]:.2f}"
            cells.append(f"![{method}](images/gallery/{name})<br>{scores}")
        table.append("| " + " | ".join(cells) + " |")
    page = "\n".join(["# Gallery", "", f"{about} {_verdict(rows, names)}", "", *table, ""])
    write_whole(out / "gallery.md", page)
    return out / "gallery.md"


def _verdict(rows: Sequence[Row], names: tuple[str, str]) -> str:
    """How often the judge prefers steered to the best of N: a gallery is no benchmark, but it can count."""
    more = sum(row.judged["steered"] > row.judged["best of N"] for row in rows)
    less = sum(row.judged["steered"] < row.judged["best of N"] for row in rows)
    return (
        f"Under each image: {names[0]}, which steered and chose, and {names[1]}, which did neither. Of {len(rows)} "
        f"prompts, all of which are shown, {names[1]} prefers steered to best of N on {more}, and best of N on {less}. "
        "So few say little; [benchmarks](geneval.md) say more."
    )


def _save(image: Tensor, path: Path) -> None:
    from PIL import Image  # noqa: PLC0415 (beside its only use)

    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1).numpy()
    picture = Image.fromarray(pixels)
    if picture.width < 256:
        picture = picture.resize((256, 256 * picture.height // picture.width), Image.Resampling.NEAREST)
    picture.thumbnail((512, 512))
    picture.save(path, quality=90)


def _device(reward: Reward) -> torch.device | str:
    return getattr(reward, "device", None) or "cpu"


def main(  # noqa: PLR0913 (one parameter for each option)
    *,
    model: str = "shapes-sd",
    reward: str | None = None,
    judge: str | None = None,
    prompts: Path | None = None,
    search: str = "fk",
    reward_scale: float | str = "card",
    num_particles: int = 4,
    steps: int | None = None,
    seed: int = 0,
    device: str = "auto",
    out: Path = Path("gallery"),
) -> None:
    """Draw the gallery and write its page.

    Args:
        model: Name, folder or hub id of the text-to-image model.
        reward: Steers; imagereward for full-size models.
        judge: Scores the finished images; hpsv2.1 for full-size models.
        prompts: Text file with a prompt a line; the ones in this file if not given.
        search: Search of the steered images.
        reward_scale: Lambda, a number, `card` or `auto`; of searches that have one.
        num_particles: N, for best of N and for the search.
        steps: Scheduler steps.
        seed: Image k of prompt i starts from seed + 1000 * i + k.
        device: auto, cpu, cuda, cuda:1, mps.
        out: Folder for gallery.md and images/gallery/; `docs` for the page of the documentation.
    """
    from fk_reward import FKSteeringPipeline  # noqa: PLC0415 (slow to import)
    from fk_reward.devices import resolve_device  # noqa: PLC0415

    whole_number("--num-particles", num_particles, minimum=2)
    usual = DEFAULTS.get(model, DEFAULTS["sdxl"])
    steps = usual.steps if steps is None else whole_number("--steps", steps, minimum=1)
    place = resolve_device(device)
    precision = {"torch_dtype": torch.float16} if str(place) != "cpu" else {}
    pipe = FKSteeringPipeline.from_pretrained(model, reward=reward or usual.reward, **precision).to(place)
    pipe.set_progress_bar_config(disable=True)
    judging = load_reward(judge or usual.judge).to(place)
    texts = usual.prompts if prompts is None else tuple(filter(None, map(str.strip, prompts.read_text().splitlines())))
    scale = {"reward_scale": reward_scale} if "reward_scale" in search_fields(search) else {}
    calls = {
        "search": {"search": search, **scale},
        "arguments": {"num_inference_steps": steps} | ({"guidance_scale": 3.0} if model == "shapes-sd" else {}),
    }
    rows = []
    for index, text in enumerate(texts):
        seeds = range(seed + 1000 * index, seed + 1000 * index + num_particles)
        rows.append(draw(pipe, judging, text, seeds=seeds, calls=calls))
        say(f"{index + 1}/{len(texts)} {text}")
    names = (pipe.reward.card.name, judging.card.name)
    about = (
        f"Made by `python examples/gallery.py --model {model}`: {model}, {steps} steps, N = "
        f"{num_particles}, {search}, the same seeds in each row."
    )
    say(f"Page: {write_gallery(out, rows, about=about, names=names)}")


if __name__ == "__main__":
    run_script(main)
