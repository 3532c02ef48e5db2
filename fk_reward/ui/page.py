"""The page, made with Gradio. It binds to this machine, loads nothing from elsewhere and sends nothing anywhere."""

from __future__ import annotations

import html
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

# Before Gradio is imported, which reads it then: neither its reports nor its question for a newer release.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

from fk_reward.models import ALIASES, DEFAULT_EMBEDDED_REWARD
from fk_reward.rewards import available_rewards
from fk_reward.search import SEARCHES, load_search
from fk_reward.search.base import for_one_image
from fk_reward.ui.lineage import lineage_svg
from fk_reward.ui.studio import Progress, Request, Studio, snippet

if TYPE_CHECKING:
    import gradio

HOST = "127.0.0.1"
MISTAKES = (ValueError, TypeError, OSError, ImportError, RuntimeError)
"""Shown on the page as text; anything else is a defect, which Gradio reports and the terminal explains."""

_CSS = (
    ".fk-status{font-weight:600;min-height:1.5em}.fk-error{color:#c0392b;white-space:pre-wrap;font-weight:600}"
    ".fk-lineage{padding:4px 0}#best img,#plain img{width:100%;height:100%;object-fit:contain}"
)
_BUTTONS = ["download", "fullscreen"]
_INTRODUCTION = (
    "# fk-reward\n"
    "K images are drawn together. A reward scores what each of them will become, and the search lets the better ones "
    "go on. Everything runs on this machine."
)


@dataclass(frozen=True)
class Defaults:
    """What the form begins with.

    Attributes:
        model: of the form.
        reward: of the form.
        prompt: of the form.
        num_inference_steps: of the form.
    """

    model: str = "shapes-sd"
    reward: str = DEFAULT_EMBEDDED_REWARD
    prompt: str = "a photo of a red circle and a blue square"
    num_inference_steps: int = 50


def import_gradio() -> Any:
    """Import Gradio.

    Raises:
        ImportError: it is not installed; the message says how.
    """
    try:
        import gradio
    except ImportError as error:
        raise ImportError("The page needs Gradio: pip install 'fk-reward[ui]'.") from error
    return gradio


def build_page(studio: Studio, defaults: Defaults | None = None) -> gradio.Blocks:
    """The page on a studio.

    Args:
        studio: runs what is asked for.
        defaults: of the form.

    Raises:
        ImportError: Gradio is not installed.
    """
    gr = import_gradio()
    start = defaults or Defaults()

    def draw(*values: Any) -> Iterator[tuple[Any, ...]]:  # no lambda: Gradio looks for a generator function
        yield from _draw(studio, values)

    with gr.Blocks(title="fk-reward", analytics_enabled=False) as page:
        gr.Markdown(_INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                inputs = _form(gr, start)
                with gr.Row():
                    run = gr.Button("Run", variant="primary", elem_id="run")
                    stop = gr.Button("Stop", elem_id="stop")
            with gr.Column(scale=2):
                outputs = _results(gr)
        running = run.click(draw, inputs, outputs, concurrency_limit=None, show_progress="hidden")
        stop.click(lambda: _status("stopped"), None, outputs[:1], cancels=[running])
        search, particles = inputs[3], inputs[4]
        search.change(_particles_of, [search], [particles], show_progress="hidden")
    return page  # type: ignore[no-any-return]


def _form(gr: Any, start: Defaults) -> list[Any]:
    """In the order of the values of `_request`."""
    models, first = ["shapes-sd", *ALIASES], "fk"
    prompt = gr.Textbox(start.prompt, label="Prompt", lines=2, elem_id="prompt")
    model = gr.Dropdown(
        models,
        value=start.model,
        label="Model",
        info="or a hub id, or a folder",
        allow_custom_value=True,
        elem_id="model",
    )
    reward = gr.Dropdown(
        available_rewards(),
        value=start.reward,
        label="Reward",
        info="or a composition, such as 0.5*clipscore + pickscore",
        allow_custom_value=True,
        elem_id="reward",
    )
    search = gr.Dropdown(list(SEARCHES), value=first, label="Search", elem_id="search")
    with gr.Row():
        particles = gr.Number(_particles_of(first), label="Particles (K)", precision=0, elem_id="particles")
        scale = gr.Textbox("", label="λ", placeholder="the search's own", elem_id="scale")
    with gr.Row():
        steps = gr.Number(start.num_inference_steps, label="Steps", precision=0, elem_id="steps")
        guidance = gr.Textbox("", label="Guidance", placeholder="the model's own", elem_id="guidance")
        seed = gr.Number(0, label="Seed", precision=0, elem_id="seed")
    compare = gr.Checkbox(True, label="Compare with plain images of the same seeds", elem_id="compare")
    return [prompt, model, reward, search, particles, scale, steps, guidance, seed, compare]


def _results(gr: Any) -> list[Any]:
    """In the order of `_shown`."""
    status = gr.HTML(elem_id="status")
    with gr.Row():
        # without the button that would share them with others
        shown = {"type": "pil", "interactive": False, "height": 300, "buttons": _BUTTONS}
        best = gr.Image(label="Best image", elem_id="best", **shown)
        plain = gr.Image(label="Best plain image of the same seeds", elem_id="plain", **shown)
    lineage = gr.HTML(label="Particles", elem_id="lineage")
    with gr.Accordion("All images, best first", open=False):
        all_best = gr.Gallery(label="Search", columns=4, height=220, elem_id="all-best", buttons=_BUTTONS)
        all_plain = gr.Gallery(label="Plain", columns=4, height=220, elem_id="all-plain", buttons=_BUTTONS)
    code = gr.Code(label="The same call in Python", language="python", elem_id="code")
    trace = gr.DownloadButton("Download the trace (JSON)", elem_id="trace", interactive=False)
    return [status, best, plain, lineage, all_best, all_plain, code, trace]


def _particles_of(search: str) -> int:
    """K of a search where nobody chooses another."""
    return for_one_image(load_search(search)).num_particles


def _request(values: tuple[Any, ...]) -> Request:
    """What the form says.

    Raises:
        ValueError: a value that cannot be read.
    """
    prompt, model, reward, search, particles, scale, steps, guidance, seed, compare = values
    return Request(
        prompt=prompt or "",
        model=(model or "").strip(),
        reward=(reward or "").strip(),
        search=search,
        num_particles=None if particles is None else int(particles),
        reward_scale=_scale(scale or ""),
        num_inference_steps=int(steps or 0),
        guidance_scale=_number("guidance", guidance or ""),
        seed=int(seed or 0),
        compare=bool(compare),
    )


def _scale(text: str) -> float | str | None:
    return text.strip() if text.strip() in ("auto", "card") else _number("λ", text)


def _number(name: str, text: str) -> float | None:
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"{name} should be a number, got {text.strip()!r}.") from error


def _draw(studio: Studio, values: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """What the page shows, again and again until the run has ended."""
    try:
        request = _request(values)
        code = snippet(request)
        for progress in studio.run(request):
            yield _shown(progress, request, code)
    except MISTAKES as error:
        gr = import_gradio()
        yield (_failure(error), *(gr.skip() for _ in range(7)))


def _shown(progress: Progress, request: Request, code: str) -> tuple[Any, ...]:
    gr = import_gradio()
    found, plain = progress.output, progress.plain
    return (
        _status(_sentence(progress)),
        progress.best,
        None if plain is None else plain.images[0],
        lineage_svg(progress.steps, num_steps=request.num_inference_steps),
        None if found is None else _captioned(found),
        None if plain is None else _captioned(plain),
        code,
        gr.DownloadButton(
            value=None if progress.trace_file is None else str(progress.trace_file),
            interactive=progress.trace_file is not None,
        ),
    )


def _captioned(output: Any) -> list[tuple[Any, str]]:
    rewards = output.rewards[0].tolist()
    return [(image, f"{reward:.4f}") for image, reward in zip(output.images, rewards, strict=True)]


def _sentence(progress: Progress) -> str:
    if progress.plain is None or progress.output is None:
        last = progress.steps[-1].step if progress.steps else None
        return progress.stage if last is None or progress.output is not None else f"{progress.stage}: step {last + 1}"
    best, plain = float(progress.output.rewards[0, 0]), float(progress.plain.rewards[0, 0])
    cost, of_plain = progress.output.trace.cost.sample_steps, progress.plain.trace.cost.sample_steps
    return (
        f"done: reward {best:.4f}; best of the plain images {plain:.4f} "
        f"({cost} and {of_plain} sample steps; one prompt proves nothing)"
    )


def _status(text: str) -> str:
    return f'<div class="fk-status">{html.escape(text)}</div>'


def _failure(error: Exception) -> str:
    return f'<div class="fk-error" role="alert">Error: {html.escape(str(error) or type(error).__name__)}</div>'


def launch(page: gradio.Blocks, *, port: int | None = None, open_browser: bool = False, block: bool = True) -> str:
    """Serve the page to this machine alone, until the process ends.

    Args:
        page: from `build_page`.
        port: None for the first free one from 7860.
        open_browser: show it.
        block: wait until the process is interrupted.

    Returns:
        The address.
    """
    gr = import_gradio()
    # Fonts of the system: the default theme loads its own from Google.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    _, address, _ = page.queue(default_concurrency_limit=None).launch(
        server_name=HOST,
        server_port=port,
        share=False,
        inbrowser=open_browser,
        prevent_thread_lock=True,
        quiet=True,
        footer_links=[],
        ssr_mode=False,
        enable_monitoring=False,
        theme=theme,
        css=_CSS,
    )
    if block:
        page.block_thread()
    return str(address)
