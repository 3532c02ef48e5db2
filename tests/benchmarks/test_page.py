"""The HTML page of a report stands by itself: nothing from elsewhere, no script, every image opens."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from fk_reward.benchmarks import image_report as report_module
from fk_reward.benchmarks.html_page import embedded_image
from fk_reward.benchmarks.image_report import write_report
from fk_reward.benchmarks.image_store import complete_folders
from fk_reward.benchmarks.judging import judge_missing
from fk_reward.benchmarks.page import MAX_SIDE
from tests.benchmarks.image_stage import (
    RECORDS,
    SETTINGS,
    StubJudge,
    finish_run,
    write_run,
    write_two_runs,
)
from tests.repository.layout import ROOT

EXAMPLES = sorted((ROOT / "docs").glob("*.html"))


@pytest.fixture
def out(tmp_path):
    return write_two_runs(tmp_path)


class Page(HTMLParser):
    """Every address on a page, and whether it holds scripts."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.scripts, self.policy, self.open = [], 0, None, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        known = dict(attributes)
        self.scripts += tag == "script" or any(name.startswith("on") for name in known)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "srcset", "data", "action", "poster")]
        if known.get("http-equiv") == "Content-Security-Policy":
            self.policy = known["content"]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check_page(text):
    """No address leaves the page, each image opens, nothing runs."""
    page = Page(text)
    assert page.open == []
    assert page.scripts == 0
    assert "default-src 'none'" in page.policy
    assert not re.search(r"@import|url\(", text)
    assert page.addresses
    for address in page.addresses:
        kind, _, content = address.partition(";base64,")
        assert kind in ("data:image/png", "data:image/jpeg")
        Image.open(io.BytesIO(base64.b64decode(content, validate=True))).load()
    return page


def test_the_page_stands_by_itself(out):
    write_report(out)
    text = (out / "report.html").read_text()
    page = check_page(text)
    num_plots = 3
    assert len(page.addresses) == 2 * len(RECORDS) + num_plots
    assert "<script" not in text
    for shown in ("a photo of a red cow", "wanted 1 of cow, found 0", "fk-4-brightness", "0123456789abcdef", "a stub"):
        assert shown in text


@pytest.mark.parametrize(
    "addition",
    [
        "<script>1</script>",
        '<img src="https://example.org/a.png">',
        '<img src="data:image/png;base64,aaaa">',
        '<p onclick="go()">a</p>',
        "<style>@import 'a.css'</style>",
        "<div>",
    ],
)
def test_a_page_that_does_not_would_be_noticed(out, addition):
    write_report(out)
    text = (out / "report.html").read_text().replace("</body>", f"{addition}</body>")
    with pytest.raises((AssertionError, OSError)):
        check_page(text)


@pytest.mark.parametrize("page", EXAMPLES, ids=lambda path: path.name)
def test_the_example_stands_by_itself(page):
    check_page(page.read_text())


@pytest.mark.slow
def test_a_browser_opens_the_page(out, browser):
    write_report(out)
    for path in [out / "report.html", *EXAMPLES]:
        check_in_browser(browser.new_page(), path)


def check_in_browser(page, path):
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.resolve().as_uri())
    widths = page.evaluate("[...document.images].map(image => image.complete ? image.naturalWidth : 0)")
    assert widths and min(widths) > 0
    assert said == []
    assert {url.split(":")[0] for url in asked} <= {"file", "data"}
    assert [url for url in asked if url.startswith("file")] == [path.resolve().as_uri()]


def test_large_pictures_are_embedded_small(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (600, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "0000.png")
    kind, _, content = embedded_image(tmp_path / "0000.png", max_side=MAX_SIDE).partition(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert (kind, image.size) == ("data:image/jpeg", (round(MAX_SIDE * 400 / 600), MAX_SIDE))


def test_the_same_number_of_prompts_of_each_task_is_shown(out):
    write_report(out, num_shown=2)
    text = (out / "report.html").read_text()
    assert text.count('alt="a photo of a cow"') == text.count('alt="a photo of a red cow"') == 2
    assert "a photo of a dog" not in text
    assert "2 of 4 prompts" in text


def test_pictures_of_something_else_are_judged_and_reported(tmp_path):
    root = finish_run(tmp_path / "others")
    for path in root.glob("0*/made.json"):
        path.unlink()
    folders = complete_folders(root, RECORDS)
    list(judge_missing(folders, StubJudge()))
    report = write_report(root)
    (row,) = json.loads((root / "report.json").read_text())["runs"]
    assert (row["method"], row["reward"], row["num_particles"], row["cost"]) == ("other", None, None, None)
    assert [table.title for table in report.tables] == ["Accuracy", "Mean rewards"]
    check_page((root / "report.html").read_text())


HOSTILE = 'a $_$ cow [/x] <b>&amp;</b> | *x* \x1b[31m \u202e 猫 " onerror="x'


def test_prompts_are_text_on_the_page_and_in_markdown(tmp_path):
    records = tuple({**record, "prompt": f"{record['prompt']} {HOSTILE}"} for record in RECORDS)
    write_run(tmp_path, SETTINGS.unsteered(), records=records)
    report = write_report(tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    check_page(text)
    assert html.escape(HOSTILE, quote=False).replace('"', "&#34;") in text
    assert [path.name for path in report.files] == [
        "report.json",
        "report.md",
        "report.tex",
        "report.html",
        "images.html",
    ]


def test_a_page_that_cannot_be_made_does_not_take_the_figures_with_it(out, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("no font")

    monkeypatch.setattr(report_module, "html_report", fail)
    report = write_report(out)
    assert [path.name for path in report.files] == ["report.json", "report.md", "report.tex", "images.html"]
    assert json.loads((out / "report.json").read_text())["runs"] and (out / "report.md").read_text()
    assert not (out / "report.html").exists()
    assert "report.html failed, and was left out: RuntimeError: no font" in caplog.text
