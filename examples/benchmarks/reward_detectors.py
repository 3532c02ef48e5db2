"""What the rewards with real weights in a package do here: `ocr` on rendered words, `nudenet` on harmless images."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from fk_reward.benchmarks.report import Column, markdown_table, show_table
from fk_reward.benchmarks.timing import quartiles
from fk_reward.cli import run_script
from fk_reward.rewards import load_reward
from fk_reward.rewards.inputs import to_pil
from fk_reward.rewards.nudenet import REPORTED
from fk_reward.shapes import benchmark_prompts, render, sample_scene
from fk_reward.terminal import write_document

OCR_COLUMNS = (
    Column("condition"),
    Column("exact", "all right", "{:.3f}"),
    Column("score", "mean score", "{:.3f}"),
    Column("swapped", "with another text", "{:.3f}"),
    Column("seconds", "CPU s a batch of 8", "{:.2f} [{:.2f}, {:.2f}]", ("seconds_low", "seconds_high")),
)
NUDENET_COLUMNS = (
    Column("images"),
    Column("count", "number", "{:d}"),
    Column("alarms", "false alarms", "{:.3f}"),
    Column("lowest", "lowest score", "{:.3f}"),
    Column("mean", "mean score", "{:.3f}"),
)

_WORDS = (
    "open closed market river station garden bakery coffee winter summer library museum harbour bridge paint wood "
    "quick brown silver golden paper stone light music north south fresh bread hotel street tower island forest"
).split()
_SKIN = ((236, 196, 166), (198, 150, 116), (141, 96, 66), (92, 60, 42))
_BATCH = 8


def rendered_text(number: int, rng: np.random.Generator) -> tuple[Image.Image, str]:
    """An image of 320 x 96 pixels with one to three words or a number on it, and the text."""
    text = " ".join(rng.choice(_WORDS, size=rng.integers(1, 4)))
    text = (text.title(), text.upper(), text, f"{text.title()} {rng.integers(1, 2000)}")[number % 4]
    ground = rng.integers(130, 256, 3)
    ink = ground - rng.integers(90, 130)
    size = int(rng.integers(16, 31))
    font = ImageFont.load_default(size)
    while font.getlength(text) > 300:
        size -= 1
        font = ImageFont.load_default(size)
    image = Image.new("RGB", (320, 96), tuple(ground.tolist()))
    place = (rng.integers(4, 317 - int(font.getlength(text))), rng.integers(6, 54))
    ImageDraw.Draw(image).text(tuple(map(int, place)), text, fill=tuple(ink.tolist()), font=font)
    return image, text


def worsened(image: Image.Image, condition: str, rng: np.random.Generator) -> Image.Image:
    """The image "clean", "blurred N" by a Gaussian of that radius, or "noised N" by that deviation in 8-bit levels."""
    kind, _, amount = condition.partition(" ")
    if kind == "blurred":
        return image.filter(ImageFilter.GaussianBlur(float(amount)))
    if kind == "noised":
        noise = rng.normal(0, float(amount), (image.height, image.width, 3))
        return Image.fromarray((np.asarray(image) + noise).round().clip(0, 255).astype(np.uint8))
    return image


CONDITIONS = ("clean", "blurred 1.5", "blurred 2.5", "blurred 4", "noised 25", "noised 50", "noised 100")
"""Of the rendered texts."""


def ocr_rows(num_texts: int, *, num_threads: int | None, seed: int) -> Iterator[dict[str, Any]]:
    """Score the same texts in each condition, with their own text and with the next one's.

    Args:
        num_texts: at least 16, so that there are times of two batches.
        num_threads: of the recogniser.
        seed: of texts, colours, places and noise.
    """
    reward = load_reward("ocr", num_threads=num_threads)
    rng = np.random.default_rng(seed)
    images, texts = zip(*(rendered_text(number, rng) for number in range(num_texts)), strict=True)
    prompts = [f'a sign that says "{text}"' for text in texts]
    for condition in CONDITIONS:
        changed = [worsened(image, condition, rng) for image in images]
        scores = reward(changed, prompts)
        swapped = reward(changed[:50], prompts[1:51] if num_texts > 50 else [*prompts[1:], prompts[0]][:50])
        batches = [changed[i : i + _BATCH] for i in range(0, min(num_texts, 5 * _BATCH), _BATCH)]
        times = [_cpu_seconds(lambda batch=batch: reward(batch, prompts[0])) for batch in batches]
        yield {
            "condition": condition,
            "exact": (scores == 1).float().mean().item(),
            "score": scores.mean().item(),
            "swapped": swapped.mean().item(),
            **quartiles("seconds", times),
        }


def _cpu_seconds(run: Callable[[], object]) -> float:
    """The process's own time, which does not depend on what else the machine does."""
    start = time.process_time()
    run()
    return time.process_time() - start


def harmless_images(kind: str, count: int, rng: np.random.Generator) -> list[Image.Image]:
    """Images without a naked person: "shapes", "landscapes", "faces" of a few strokes, "figures" or "noise".

    Args:
        kind: of the images.
        count: how many.
        rng: of everything in them.
    """
    if kind == "shapes":
        prompts = benchmark_prompts(count)
        return to_pil(render([sample_scene(prompt, rng) for prompt in prompts], image_size=256))
    return [_DRAWN[kind](rng) for _ in range(count)]


def _landscape(rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (256, 256), _colour(rng, (90, 140, 200), 30))
    pen, horizon = ImageDraw.Draw(image), int(rng.integers(100, 180))
    for _ in range(3):
        peak, width = int(rng.integers(0, 256)), int(rng.integers(40, 120))
        ends = [(peak - width, horizon), (peak, int(rng.integers(30, horizon))), (peak + width, horizon)]
        pen.polygon(ends, fill=_colour(rng, (120, 110, 110), 30))
    pen.rectangle((0, horizon, 256, 256), fill=_colour(rng, (70, 140, 60), 30))
    return image


def _face(rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (256, 256), _colour(rng, (120, 120, 130), 80))
    pen, skin = ImageDraw.Draw(image), _SKIN[rng.integers(len(_SKIN))]
    x, y, r = (int(value) for value in (rng.integers(100, 156), rng.integers(100, 156), rng.integers(40, 80)))
    pen.ellipse((x - r, y - int(1.25 * r), x + r, y + int(1.25 * r)), fill=skin)
    for side in (-1, 1):
        pen.ellipse((x + side * r // 2 - 6, y - 14, x + side * r // 2 + 6, y - 4), fill=(30, 30, 30))
    pen.arc((x - r // 2, y, x + r // 2, y + r // 2), 20, 160, fill=(120, 40, 40), width=4)
    return image


def _figure(rng: np.random.Generator) -> Image.Image:
    """A person in a shirt and trousers."""
    image = Image.new("RGB", (256, 256), _colour(rng, (170, 170, 160), 60))
    pen, skin, x = ImageDraw.Draw(image), _SKIN[rng.integers(len(_SKIN))], int(rng.integers(90, 166))
    shirt, trousers = _colour(rng, (128, 128, 128), 110), _colour(rng, (60, 60, 90), 50)
    pen.ellipse((x - 18, 20, x + 18, 66), fill=skin)
    for side in (-1, 1):
        pen.line((x + side * 30, 80, x + side * 48, 150), fill=skin, width=12)
        pen.rectangle((x + side * 15 - 12, 150, x + side * 15 + 12, 235), fill=trousers)
    pen.rounded_rectangle((x - 32, 68, x + 32, 158), radius=10, fill=shirt)
    return image


def _noise(rng: np.random.Generator) -> Image.Image:
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return small.resize((256, 256), Image.Resampling.BICUBIC)


def _colour(rng: np.random.Generator, mean: tuple[int, int, int], width: int) -> tuple[int, ...]:
    return tuple(int(level) for level in (np.array(mean) + rng.integers(-width, width + 1, 3)).clip(0, 255))


_DRAWN = {"landscapes": _landscape, "faces": _face, "figures": _figure, "noise": _noise}


def nudenet_rows(num_images: int, *, num_threads: int | None, seed: int) -> Iterator[dict[str, Any]]:
    """Score harmless images of each kind; an alarm is a score at which NudeNet reports a detection."""
    reward = load_reward("nudenet", num_threads=num_threads)
    rng = np.random.default_rng(seed)
    for kind in ("shapes", *_DRAWN):
        scores = reward(harmless_images(kind, num_images, rng), "")
        yield {
            "images": kind,
            "count": num_images,
            "alarms": (scores <= 1 - REPORTED).float().mean().item(),
            "lowest": scores.min().item(),
            "mean": scores.mean().item(),
        }


def main(
    *, num_texts: int = 200, num_images: int = 100, num_threads: int = 1, seed: int = 0, markdown: bool = False
) -> None:
    """Print accuracy and time of `ocr` by condition, and false alarms of `nudenet`; skip what is not installed.

    Args:
        num_texts: Rendered texts; the same ones in each condition.
        num_images: Harmless images of each kind.
        num_threads: Threads of the CPU.
        seed: Seed of texts and images.
        markdown: Print Markdown and nothing else.
    """
    parts = (
        ("rapidocr", OCR_COLUMNS, lambda: ocr_rows(num_texts, num_threads=num_threads, seed=seed)),
        ("nudenet", NUDENET_COLUMNS, lambda: nudenet_rows(num_images, num_threads=num_threads, seed=seed)),
    )
    with torch.inference_mode():
        for package, columns, rows in parts:
            if importlib.util.find_spec(package) is None:
                write_document(f"{package} is not installed.\n")
            elif markdown:
                write_document(markdown_table(columns, list(rows())) + "\n")
            else:
                show_table(package, columns, list(rows()))


if __name__ == "__main__":
    run_script(main)
