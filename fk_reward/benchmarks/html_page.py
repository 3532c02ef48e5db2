"""What the HTML pages of reports have in common: one file that loads nothing, its policy, tables and images.

Jinja escapes prompts. Should that fail, the policy keeps the browser from running or loading anything: the only script
that runs is the page's own, which the policy names by its digest.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from PIL import Image

from fk_reward.benchmarks.image_results import ImageResult, RunResult
from fk_reward.benchmarks.image_store import read_sample
from fk_reward.benchmarks.report import Table

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid #888; font-weight: 600; }
.numbers td { font-variant-numeric: tabular-nums; white-space: nowrap; }
.wide { overflow-x: auto; }
pre { background: #f5f5f2; padding: .7rem; overflow-x: auto; font-size: 12px; }
{% block style %}{% endblock %}
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for fact in facts %}
<p>{{ fact }}</p>
{% endfor %}
{% block content %}{% endblock %}
{% if script %}
<script>{{ script|safe }}</script>
{% endif %}
</body>
</html>
"""
_TABLES = """{% for table in tables %}
<h2>{{ table.title }}</h2>
<div class="wide"><table class="numbers">
<tr>{% for column in table.columns %}<th>{{ column.heading() }}</th>{% endfor %}</tr>
{% for row in table.rows %}
<tr>{% for column in table.columns %}<td>{{ column.cell(row) }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% endfor %}
"""


def render_page(
    template: str,
    *,
    title: str,
    facts: Sequence[str],
    tables: Sequence[Table],
    script: str | None = None,
    **values: Any,
) -> str:
    """The page of a template that begins with `{% extends "page" %}` and fills the blocks `style` and `content`.

    Args:
        template: Jinja; `{% include "tables" %}` where the tables go.
        title: heading.
        facts: sentences below it, a paragraph each.
        tables: figures.
        script: of the page; None for no script at all.
        **values: of the template.

    Example:
        >>> body = '{% extends "page" %}{% block content %}<p>{{ prompt }}</p>{% endblock %}'
        >>> page = render_page(body, title="Images", facts=(), tables=(), prompt="<b>")
        >>> "<p>&lt;b&gt;</p>" in page, "<script" in page
        (True, False)
    """
    # Strict: a misspelt name in a template raises instead of printing nothing.
    environment = Environment(
        loader=DictLoader({"page": _PAGE, "tables": _TABLES}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    given = {"title": title, "facts": facts, "tables": tables, "script": script, "policy": _policy(script)}
    return environment.from_string(template).render(**given, **values)


def _policy(script: str | None) -> str:
    rules = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    if script is None:
        return rules
    return f"{rules}; script-src 'sha256-{_base64(hashlib.sha256(script.encode()).digest())}'"


def first_prompts(run: RunResult, number: int) -> dict[str, list[ImageResult]]:
    """The first prompts of each task, the same number of each: task -> the first image of each prompt.

    Args:
        run: of the benchmark.
        number: of prompts, over all tasks; one of a task at least.
    """
    tasks: dict[str, list[ImageResult]] = {}
    for image in run.images:
        if image.sample == 0:
            tasks.setdefault(image.tag, []).append(image)
    of_each = max(1, number // len(tasks))
    return {task: images[:of_each] for task, images in tasks.items()}


def rendering_of(path: Path, *, max_side: int) -> str:
    """How a browser should enlarge images like this one: `pixelated` where they are small."""
    return "pixelated" if read_sample(path).width < max_side else "auto"


def embedded_image(path: Path, *, max_side: int) -> str:
    """An image as a data URI: as it is where it is small, else as a JPEG file.

    Args:
        path: of a PNG.
        max_side: in pixels.

    Raises:
        ValueError: a damaged file.
    """
    image = read_sample(path)
    if max(image.size) <= max_side:
        return data_uri(path.read_bytes(), "png")
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return data_uri(buffer.getvalue(), "jpeg")


def data_uri(content: bytes, kind: str) -> str:
    """The content of an image file as an address.

    Example:
        >>> data_uri(b"abc", "png")
        'data:image/png;base64,YWJj'
    """
    return f"data:image/{kind};base64,{_base64(content)}"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
