"""The page of a GenEval report, as a Jinja template. Its content policy forbids scripts and anything from elsewhere."""

from __future__ import annotations

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid #888; font-weight: 600; }
.numbers td { font-variant-numeric: tabular-nums; white-space: nowrap; }
.wide { overflow-x: auto; }
.pictures img { display: block; width: {{ width }}px; border: 3px solid; image-rendering: {{ rendering }}; }
.right img { border-color: #2a7d4f; }
.wrong img { border-color: #b5172f; }
.pictures td { max-width: {{ width + 30 }}px; font-size: 13px; }
.pictures small { white-space: pre-line; color: #555; }
pre { background: #f5f5f2; padding: .7rem; overflow-x: auto; font-size: 12px; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>{{ facts }}</p>
{% for table in tables %}
<h2>{{ table.title }}</h2>
<div class="wide"><table class="numbers">
<tr>{% for column in table.columns %}<th>{{ column.heading() }}</th>{% endfor %}</tr>
{% for row in table.rows %}
<tr>{% for column in table.columns %}<td>{{ column.cell(row) }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% endfor %}
<h2>Accuracy against K and cost</h2>
<p>{% for name, source in plots.items() %}<img src="{{ source }}" alt="Accuracy against {{ name }}"> {% endfor %}</p>
<h2>Pictures</h2>
<p>The first picture of the first prompts of each task: {{ num_shown }} of {{ num_prompts }} prompts. A green border
is a picture that the judge calls correct.</p>
{% for task, prompts in gallery.items() %}
<h3>{{ task.replace("_", " ") }}</h3>
<div class="wide"><table class="pictures">
<tr><th>prompt</th>{% for name in names %}<th>{{ name }}</th>{% endfor %}</tr>
{% for prompt, cells in prompts %}
<tr><td>{{ prompt }}</td>
{% for cell in cells %}
<td class="{{ 'right' if cell.correct else 'wrong' }}"><img src="{{ cell.source }}" alt="{{ prompt }}">
<small>{{ "correct" if cell.correct else cell.reason or "wrong" }}
{% for name, score in cell.scores.items() %}{{ name }} {{ "%.3f"|format(score) }}
{% endfor %}</small></td>
{% endfor %}
</tr>
{% endfor %}
</table></div>
{% endfor %}
<h2>Settings</h2>
{% for name, text in manifests.items() %}
<details><summary>{{ name }}</summary><pre>{{ text }}</pre></details>
{% endfor %}
</body>
</html>
"""
