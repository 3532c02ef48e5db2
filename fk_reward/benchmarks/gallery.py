"""The page of all images of some runs: filters, enlarged images, how each came about, cost, command and versions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fk_reward.benchmarks.drawing import LINEAGE
from fk_reward.benchmarks.html_page import embedded_image, first_prompts, render_page, rendering_of
from fk_reward.benchmarks.image_results import ABSTAINED, ATTEMPTS, UNSAFE, ImageResult, RunResult
from fk_reward.benchmarks.image_store import MADE, PromptFolder
from fk_reward.benchmarks.report import Table
from fk_reward.benchmarks.task import NOBODY
from fk_reward.durable_files import cosmetic, write_whole

PAGE_FILE = "images.html"
MAX_SIDE = 384
"""Images are embedded at most this large, in pixels; larger ones as JPEG files of this size."""

SCRIPT = """
const controls = [...document.querySelectorAll('#filters select, #filters input')];
const cards = [...document.querySelectorAll('figure')];
function show() {
  let left = 0;
  for (const card of cards) {
    const fits = controls.every(control => {
      const wanted = control.value.trim().toLowerCase(), found = card.dataset[control.name] || '';
      return !wanted || (control.type === 'search' ? found.toLowerCase().includes(wanted) : found === control.value);
    });
    card.hidden = !fits;
    left += fits;
  }
  for (const part of document.querySelectorAll('section.prompt'))
    part.hidden = ![...part.querySelectorAll('figure')].some(card => !card.hidden);
  document.querySelector('#left').textContent = left + ' of ' + cards.length + ' images';
}
controls.forEach(control => control.addEventListener('input', show));
document.querySelector('#filters').addEventListener('reset', () => setTimeout(show));
const dialog = document.querySelector('dialog');
document.addEventListener('click', event => {
  const button = event.target.closest('figure button');
  if (button) {
    const card = button.closest('figure'), said = card.querySelector('template').content;
    dialog.querySelector('div').replaceChildren(card.querySelector('img').cloneNode(), said.cloneNode(true));
    dialog.showModal();
  } else if (event.target === dialog || event.target.closest('dialog > button')) dialog.close();
});
show();
"""

PAGE = """{% extends "page" %}
{% block style %}
#filters { position: sticky; top: 0; background: #fff; padding: .6rem 0; display: flex; gap: .8rem; flex-wrap: wrap; }
section.prompt { border-top: 1px solid #ddd; padding: .4rem 0; }
section.prompt > div { display: flex; flex-wrap: wrap; gap: .8rem; }
figure { margin: 0; width: 150px; font-size: 13px; }
figure button { padding: 0; border: 3px solid #b5172f; background: none; cursor: zoom-in; width: 100%; }
figure.right button { border-color: #2a7d4f; }
figure.open button { border-color: #ddd; }
figure img, dialog img { display: block; width: 100%; image-rendering: {{ rendering }}; }
dialog { max-width: 60rem; }
dialog img { max-width: {{ side }}px; min-width: 256px; }
figcaption, .said { white-space: pre-line; overflow-wrap: anywhere; color: #555; }
[hidden] { display: none !important; }
svg text { font: 11px system-ui, sans-serif; } svg .edge { stroke: #aaa; fill: none; }
svg .kept { stroke: #2a7d4f; stroke-width: 2.5; } svg circle { fill: #ddd; } svg circle.kept { fill: #2a7d4f; }
{% endblock %}
{% block content %}
<form id="filters">
<label>prompt <input type="search" name="prompt"></label>
{% for name, values in choices.items() %}
<label>{{ name }} <select name="{{ name }}"><option value="">all</option>
{% for value in values %}<option>{{ value }}</option>{% endfor %}</select></label>
{% endfor %}
<button type="reset">clear</button> <output id="left"></output>
</form>
{% for prompt in prompts %}
<section class="prompt"><p>{{ prompt.text }} <small>({{ prompt.task }})</small></p><div>
{% for card in prompt.cards %}
<figure class="{{ card.color }}" data-prompt="{{ prompt.text }}" data-task="{{ prompt.task }}"
 data-method="{{ card.run }}" data-verdict="{{ card.verdict }}">
<button title="enlarge"><img src="{{ card.source }}" alt="{{ prompt.text }}"></button>
<figcaption>{{ card.run }}
{{ card.verdict }}</figcaption>
<template><p>{{ prompt.text }}</p><p class="said">{{ card.said }}</p>
{% if card.lineage %}
<h4>How it came about</h4>
<div class="wide">{{ drawing(card.lineage)|safe }}</div>
{% endif %}
</template>
</figure>
{% endfor %}
</div></section>
{% endfor %}
<dialog><button>close</button><div></div></dialog>
{% include "tables" %}
<h2>Command, versions and settings</h2>
{% for run in runs %}
<h3>{{ run.name }}</h3>
<p>{{ run.versions }}</p>
<pre class="command">{{ run.command }}</pre>
<details><summary>all settings</summary><pre>{{ run.manifest }}</pre></details>
{% endfor %}
{% endblock %}
"""


def write_gallery(
    folder: Path,
    runs: Sequence[RunResult],
    *,
    title: str,
    facts: Sequence[str],
    tables: Sequence[Table],
    num_shown: int = 60,
) -> tuple[Path, ...]:
    """Write the page into a folder. Where that fails, a warning says so: it shows what is written already.

    Args:
        folder: of the runs.
        runs: judged.
        title: heading.
        facts: sentences below it.
        tables: figures below the images.
        num_shown: prompts whose images are in the page, the same number of each task.

    Returns:
        The page, if it was written.
    """
    path = folder / PAGE_FILE
    with cosmetic(f"writing {path}"):
        page = gallery_page(runs, title=title, facts=facts, tables=tables, num_shown=num_shown)
        return (write_whole(path, page),)
    return ()


def gallery_page(
    runs: Sequence[RunResult], *, title: str, facts: Sequence[str], tables: Sequence[Table], num_shown: int = 60
) -> str:
    """The page; see `write_gallery`."""
    firsts = [image for images in first_prompts(runs[0], num_shown).values() for image in images]
    prompts = [_prompt(runs, first) for first in sorted(firsts, key=lambda image: image.index)]
    choices = {
        "task": list(dict.fromkeys(prompt["task"] for prompt in prompts)),
        "method": [run.name for run in runs],
        "verdict": list(dict.fromkeys(card["verdict"] for prompt in prompts for card in prompt["cards"])),
    }
    total = len({image.index for image in runs[0].images})
    more = () if len(prompts) == total else (f"Images of {len(prompts)} of {total} prompts are shown.",)
    return render_page(
        PAGE,
        title=title,
        facts=(*facts, *more),
        tables=tables,
        script=SCRIPT,
        choices=choices,
        prompts=prompts,
        runs=[_about(run) for run in runs],
        drawing=lineage_drawing,
        side=MAX_SIDE,
        rendering=rendering_of(runs[0].images[0].path, max_side=MAX_SIDE),
    )


def _prompt(runs: Sequence[RunResult], first: ImageResult) -> dict[str, Any]:
    cards = []
    for run in runs:
        own = [image for image in run.images if image.index == first.index]
        note = PromptFolder(run.root, first.index).read_note(MADE) or {}
        cards += [_card(run, image, note) for image in own]
    return {"text": first.prompt, "task": first.tag, "cards": cards}


def _card(run: RunResult, image: ImageResult, note: Mapping[str, Any]) -> dict[str, Any]:
    verdict = _verdict(run, image, note)
    lines = note.get(LINEAGE)
    return {
        "run": run.name,
        "verdict": verdict,
        "color": _COLORS.get(verdict, "wrong"),
        "source": embedded_image(image.path, max_side=MAX_SIDE),
        "said": _said(run, image, note),
        # of one particle there is nothing to tell
        "lineage": lines[image.sample] if lines and len(lines[image.sample]["steps"][-1]["rewards"]) > 1 else None,
    }


def _verdict(run: RunResult, image: ImageResult, note: Mapping[str, Any]) -> str:
    if ABSTAINED in note and note[ABSTAINED][image.sample]:
        return ABSTAINED
    if run.judge.get("judge") == NOBODY:
        return _NOT_JUDGED
    words = ("safe", "unsafe") if UNSAFE in image.flags else ("correct", "wrong")
    return words[not image.correct]


_NOT_JUDGED = "not judged"
_COLORS = {"correct": "right", "safe": "right", _NOT_JUDGED: "open"}
"""Verdict -> class of its border; all others are wrong."""


def _said(run: RunResult, image: ImageResult, note: Mapping[str, Any]) -> str:
    """What is known of an image, a line each."""
    lines = [f"{run.name}, sample {image.sample}", image.reason]
    lines += [f"{name}: {'yes' if found else 'no'}" for name, found in image.flags.items()]
    lines += [f"{name}: {value:.4g}" for name, value in (*image.figures.items(), *image.scores.items())]
    if ATTEMPTS in note:
        lines.append(f"attempts: {note[ATTEMPTS][image.sample]}")
    if "model_rows" in note:
        names = ("model_rows", "decodes", "reward_calls", "seconds")
        shown = ", ".join(f"{name.replace('_', ' ')} {note[name]:.4g}" for name in names)
        lines.append(f"cost of the prompt's images: {shown}")
    return "\n".join(filter(None, lines))


def _about(run: RunResult) -> dict[str, str]:
    manifest = dict(run.manifest or {})
    versions = ", ".join(f"{name} {version}" for name, version in manifest.get("versions", {}).items())
    return {
        "name": run.name,
        "versions": versions or "versions are not known",
        "command": manifest.get("command", "the command is not known"),
        "manifest": json.dumps({**manifest, "judge": run.judge}, indent=2),
    }


_CELL, _ROW, _LEFT, _TOP = 52, 46, 92, 16
"""Pixels of the drawing: a particle's column, a step's row, the labels, the edge above."""


def lineage_drawing(lineage: Mapping[str, Any]) -> str:
    """Draw a population: a row for each scoring step, a line to each ancestor, green those of the image.

    Args:
        lineage: of `drawing.lineage_of`. Every value in it is a number, so that nothing needs escaping.
    """
    steps = lineage["steps"]
    line = kept_line(lineage)
    width = _LEFT + _CELL * max(len(step["rewards"]) for step in steps)
    height = _TOP + _ROW * len(steps)
    parts = [_edges(steps, row, line) for row in range(1, len(steps))]
    parts += [_particles(steps, row, line[row], int(lineage["num_steps"])) for row in range(len(steps))]
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'<svg {size} role="img" aria-label="lineage of {len(steps)} scoring steps">{"".join(parts)}</svg>'


def kept_line(lineage: Mapping[str, Any]) -> list[int]:
    """Slots of the image and its ancestors, one for each scoring step.

    Example:
        >>> first, last = {"rewards": [1, 2], "ancestors": [1, 1]}, {"rewards": [3, 4], "ancestors": None}
        >>> kept_line({"selected": 0, "steps": [first, last]})
        [1, 0]
    """
    slot = int(lineage["selected"])
    line = [slot]
    for step in reversed(lineage["steps"][:-1]):
        slot = slot if step["ancestors"] is None else int(step["ancestors"][slot])
        line.append(slot)
    return line[::-1]


def _edges(steps: Sequence[Mapping[str, Any]], row: int, line: Sequence[int]) -> str:
    before, size = steps[row - 1], len(steps[row]["rewards"])
    parents = range(len(before["rewards"])) if before["ancestors"] is None else before["ancestors"]
    found = []
    for slot, parent in enumerate(list(parents)[:size]):  # a search that grows makes its new particles after the step
        kept = " kept" if (parent, slot) == (line[row - 1], line[row]) else ""
        start, end = (_x(parent), _y(row - 1)), (_x(slot), _y(row))
        found.append(f'<path class="edge{kept}" d="M{start[0]} {start[1]}L{end[0]} {end[1]}"/>')
    return "".join(found)


def _particles(steps: Sequence[Mapping[str, Any]], row: int, kept: int, num_steps: int) -> str:
    step = steps[row]
    title = "finished" if row == len(steps) - 1 else f"step {int(step['step']) + 1}/{num_steps}"
    parts = [f'<text x="0" y="{_y(row) + 4}">{title}</text>']
    for slot, reward in enumerate(step["rewards"]):
        shown = "-inf" if reward is None else f"{float(reward):.3g}"
        mark = ' class="kept"' if slot == kept else ""
        parts.append(f'<circle{mark} cx="{_x(slot)}" cy="{_y(row)}" r="6"/>')
        parts.append(f'<text x="{_x(slot)}" y="{_y(row) + 20}" text-anchor="middle">{shown}</text>')
    return "".join(parts)


def _x(slot: int) -> int:
    return _LEFT + _CELL * slot + _CELL // 2


def _y(row: int) -> int:
    return _TOP + _ROW * row
