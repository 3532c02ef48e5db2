"""The page of all images: everything is in it, nothing of a prompt runs, and in a browser it filters and enlarges."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from types import SimpleNamespace

import pytest
import torch

from fk_reward.benchmarks.drawing import LINEAGE, lineage_of
from fk_reward.benchmarks.gallery import PAGE_FILE, kept_line, lineage_drawing
from fk_reward.benchmarks.image_report import write_report
from fk_reward.benchmarks.image_store import MADE, prompt_folders
from tests.benchmarks.image_stage import RECORDS, SETTINGS, write_run, write_two_runs

FIRST = {"step": 3, "rewards": [0.1, 0.9, None, 0.2], "ancestors": [1, 1, 3, 1]}
SECOND = {"step": 6, "rewards": [0.5, 0.4, 0.3, 0.6], "ancestors": None}
LAST = {"step": 9, "rewards": [0.5, 0.4, 0.7, 0.6], "ancestors": None}
LINE = {"selected": 2, "num_steps": 10, "steps": [FIRST, SECOND, LAST]}
HOSTILE = '<script>alert(1)</script> " onerror="alert(2)'


def add_lineage(root):
    """As the engine writes it beside the images."""
    for folder in prompt_folders(root):
        note = folder.read_note(MADE)
        folder.write_note(MADE, {**note, LINEAGE: [LINE] * len(folder.image_paths())})


@pytest.fixture
def out(tmp_path):
    write_two_runs(tmp_path)
    add_lineage(tmp_path / SETTINGS.name)
    write_report(tmp_path)
    return tmp_path


def test_everything_is_in_the_page(out):
    text = (out / PAGE_FILE).read_text()
    assert text.count("<figure") == 2 * 2 * len(RECORDS)
    assert text.count("<svg") == 2 * len(RECORDS), "of the steered run"
    for shown in ("fk-reward geneval", "torch", "a photo of a red cow", "Accuracy", "denoiser calls", "model rows"):
        assert shown in text
    assert re.findall(r"<option>([^<]*)</option>", text) == [
        *("single_object", "colors", "unsteered", "fk-4-brightness", "wrong", "correct")
    ]


def test_one_script_runs_and_nothing_is_loaded(out):
    text = (out / PAGE_FILE).read_text()
    policy = re.search(r'content="(default-src[^"]*)"', text)[1]
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert (
        html.unescape(policy)
        == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )
    assert not re.search(r"\bhttps?://|@import|url\(|\son\w+=", text)


def test_prompts_are_text(tmp_path):
    records = tuple({**record, "prompt": f"{record['prompt']} {HOSTILE}"} for record in RECORDS)
    write_run(tmp_path, SETTINGS.unsteered(), records=records)
    write_report(tmp_path)
    text = (tmp_path / PAGE_FILE).read_text(encoding="utf-8")
    assert text.count("<script") == 1 and HOSTILE not in text
    assert text.count(html.escape(HOSTILE).replace("&quot;", "&#34;")) >= 2 * len(RECORDS)


def test_the_same_number_of_prompts_of_each_task(tmp_path):
    write_two_runs(tmp_path)
    write_report(tmp_path, num_shown=2)
    text = (tmp_path / PAGE_FILE).read_text()
    assert text.count('<section class="prompt">') == 2
    assert "Images of 2 of 4 prompts are shown." in text


def test_the_line_of_an_image():
    assert kept_line(LINE) == [3, 2, 2]
    drawing = lineage_drawing(LINE)
    assert drawing.count("<circle") == 12 and drawing.count('class="edge') == 8
    assert drawing.count('class="kept"') == 3 and drawing.count('class="edge kept"') == 2
    assert "step 4/10" in drawing and "finished" in drawing and ">-inf<" in drawing


def test_a_population_that_shrinks_and_one_that_grows():
    fewer = {"selected": 1, "num_steps": 9, "steps": [FIRST | {"ancestors": [3, 0]}, {**LAST, "rewards": [1, 2]}]}
    assert kept_line(fewer) == [0, 1]
    assert lineage_drawing(fewer).count('class="edge') == 2
    more = {"selected": 0, "num_steps": 9, "steps": [{**LAST, "rewards": [1], "ancestors": [0]}, LAST]}
    assert lineage_drawing(more).count('class="edge') == 1


def test_what_is_kept_of_a_trace_is_json():
    steps = [
        SimpleNamespace(
            step=2, rewards=torch.tensor([[0.0, 1.0], [0.25, -torch.inf]]), ancestors=torch.tensor([[0, 0], [1, 0]])
        ),
        SimpleNamespace(step=4, rewards=torch.tensor([[0.0, 1.0], [0.123456789, 2.0]]), ancestors=None),
    ]
    trace = SimpleNamespace(steps=steps, selected=torch.tensor([[1], [0]]), num_steps=5)
    found = json.loads(json.dumps(lineage_of(trace, 1), allow_nan=False))
    assert found == {
        "selected": 0,
        "num_steps": 5,
        "steps": [
            {"step": 2, "rewards": [0.25, None], "ancestors": [1, 0]},
            {"step": 4, "rewards": [0.12346, 2.0], "ancestors": None},
        ],
    }


def visible(page):
    return page.locator("figure:visible").count()


@pytest.mark.slow
def test_in_a_browser(out, browser):
    said, asked = [], []
    page = browser.new_page()
    page.set_default_timeout(120_000)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((out / PAGE_FILE).resolve().as_uri())
    widths = page.evaluate("[...document.images].map(image => image.complete ? image.naturalWidth : 0)")
    assert len(widths) == 16 and min(widths) > 0
    assert page.locator("#left").inner_text() == "16 of 16 images"
    page.fill("input[name=prompt]", "RED")
    assert visible(page) == 4 and page.locator("section.prompt:visible").count() == 1
    page.click("button[type=reset]")
    page.locator("#left", has_text="16 of 16 images").wait_for()
    for name, value, left in (("task", "colors", 8), ("method", "unsteered", 4), ("verdict", "wrong", 1)):
        page.select_option(f"select[name={name}]", value)
        assert visible(page) == left, (name, value)
    page.click("button[type=reset]")
    page.locator("#left", has_text="16 of 16 images").wait_for()
    page.select_option("select[name=method]", SETTINGS.name)
    page.locator("figure:visible button").first.click()
    dialog = page.locator("dialog[open]")
    assert dialog.locator("svg circle").count() == 12 and dialog.locator("svg circle.kept").count() == 3
    assert "a photo of a cow" in dialog.inner_text() and "cost of the prompt's images" in dialog.inner_text()
    assert dialog.locator("img").bounding_box()["width"] >= 256
    dialog.locator("> button").click()
    assert page.locator("dialog[open]").count() == 0
    assert said == []
    assert {url.split(":")[0] for url in asked} <= {"file", "data"}


@pytest.mark.slow
def test_a_hostile_prompt_runs_nothing_in_a_browser(tmp_path, browser):
    records = tuple({**record, "prompt": f"{record['prompt']} {HOSTILE}"} for record in RECORDS)
    write_run(tmp_path, SETTINGS.unsteered(), records=records)
    write_report(tmp_path)
    said = []
    page = browser.new_page()
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.goto((tmp_path / PAGE_FILE).resolve().as_uri())
    page.locator("figure button").first.click()
    assert HOSTILE in page.locator("dialog[open]").inner_text()
    # what the policy is for: a script of somebody else in the page does not run
    page.evaluate(
        "() => { const one = document.createElement('script'); one.textContent = 'window.ran = 1';"
        " document.body.append(one) }"
    )
    assert page.evaluate("window.ran") is None
    assert said == []
