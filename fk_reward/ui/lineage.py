"""Ancestry as it is drawn while a run goes on: a row of previews for each scoring step, lines to their ancestors."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from fk_reward.sampling.trace import TraceStep

_CELL, _IMAGE, _ROW, _LEFT, _TOP = 84, 72, 128, 92, 14
"""Pixels of the drawing: a particle's column, its preview, a step's row, the labels, the edge above."""

_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:currentColor}"
    ".edge{fill:none;stroke:#8a8f98;stroke-width:1.5;opacity:.7}.edge.kept{stroke:#2a9d5c;stroke-width:2.5;opacity:1}"
    ".particle{transition:opacity .6s}.dropped{opacity:.22}.best rect{stroke:#2a9d5c;stroke-width:3}"
    "rect{fill:none;stroke:#8a8f98}"
)


def lineage_svg(steps: Sequence[TraceStep], *, num_steps: int) -> str:
    """Draw the steps of one prompt, the latest at the bottom.

    Particles that nobody descends from fade; the line of the best one of the last row is green up to its start.

    Args:
        steps: of the run so far, with thumbnails, of one prompt.
        num_steps: scheduler steps of the run, for the labels.

    Returns:
        A `<div>` with an SVG that refers to nothing outside of it; empty text where nothing was scored yet.

    Raises:
        ValueError: for steps of several prompts.
    """
    if not steps:
        return ""
    if any(step.num_prompts != 1 for step in steps):
        raise ValueError("A lineage is drawn of one prompt.")
    line = best_line(steps)
    width = _LEFT + _CELL * max(step.num_particles for step in steps) + 8
    parts = [_edges(steps, row, line) for row in range(1, len(steps))]
    parts += [_step(steps, row, line[row], num_steps) for row in range(len(steps))]
    height = _TOP + _ROW * len(steps)
    return (
        f'<div class="fk-lineage" role="img" aria-label="{len(steps)} scoring steps" style="overflow-x:auto">'
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        f"<style>{_STYLE}</style>{''.join(parts)}</svg></div>"
    )


def ancestors_of(step: TraceStep) -> list[int]:
    """Slot that each particle after a step came from, of the first prompt.

    Where nobody moved, everyone is their own ancestor.
    """
    return list(range(step.num_particles)) if step.ancestors is None else step.ancestors[0].tolist()


def best_line(steps: Sequence[TraceStep]) -> list[int]:
    """Slots of the best particle of the last step and its ancestors, one for each step."""
    slot = int(steps[-1].rewards[0].argmax())
    line = [slot]
    for step in reversed(steps[:-1]):
        slot = ancestors_of(step)[slot]
        line.append(slot)
    return line[::-1]


def survivors(step: TraceStep) -> set[int]:
    """Slots of a step that somebody goes on from."""
    return set(range(step.num_particles)) if step.final else set(ancestors_of(step))


def _edges(steps: Sequence[TraceStep], row: int, line: Sequence[int]) -> str:
    paths = []
    # a search that grows makes its new particles after the step: those have the ancestor of their slot, if any
    before = ancestors_of(steps[row - 1])
    for slot, parent in enumerate(before[: steps[row].num_particles]):
        x0, x1 = _center(parent), _center(slot)
        y0, y1 = _TOP + _ROW * (row - 1) + _IMAGE, _TOP + _ROW * row
        kept = " kept" if (parent, slot) == (line[row - 1], line[row]) else ""
        middle = (y0 + 18 + y1) / 2
        paths.append(f'<path class="edge{kept}" d="M{x0} {y0 + 18}C{x0} {middle} {x1} {middle} {x1} {y1}"/>')
    return "".join(paths)


def _step(steps: Sequence[TraceStep], row: int, best: int, num_steps: int) -> str:
    step, alive, top = steps[row], survivors(steps[row]), _TOP + _ROW * row
    title = "finished" if step.final else f"step {step.step + 1}/{num_steps}"
    labels = [f'<text x="0" y="{top + 20}">{title}</text>']
    if not step.final or float(step.ess[0]) > 0:
        labels.append(f'<text x="0" y="{top + 38}">ESS {float(step.ess[0]):.1f}</text>')
    cells = [
        _particle(step, slot, top, dropped=slot not in alive, best=slot == best) for slot in range(step.num_particles)
    ]
    return f'<g class="step">{"".join(labels)}{"".join(cells)}</g>'


def _particle(step: TraceStep, slot: int, top: int, *, dropped: bool, best: bool) -> str:
    x, reward = _center(slot) - _IMAGE // 2, float(step.rewards[0, slot])
    classes = "particle" + (" dropped" if dropped else "") + (" best" if best else "")
    image = "" if step.thumbnails is None else data_uri(step.thumbnails[0, slot])
    shown = f'<image href="{image}" x="{x}" y="{top}" width="{_IMAGE}" height="{_IMAGE}"/>' if image else ""
    return (
        f'<g class="{classes}">{shown}<rect x="{x}" y="{top}" width="{_IMAGE}" height="{_IMAGE}"/>'
        f'<text x="{_center(slot)}" y="{top + _IMAGE + 14}" text-anchor="middle">{reward:.3f}</text></g>'
    )


def data_uri(pixels: Tensor) -> str:
    """An 8-bit image `(3, H, W)` as a PNG inside of an address.

    Example:
        >>> import torch
        >>> data_uri(torch.zeros(3, 2, 2, dtype=torch.uint8))[:22]
        'data:image/png;base64,'
    """
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _center(slot: int) -> int:
    return _LEFT + _CELL * slot + _CELL // 2
