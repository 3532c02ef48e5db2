"""The page in a headless Chromium: from the form to the image, errors as text, two users at once, nothing leaves.

Skipped where Gradio, Playwright or a browser is missing: `pip install 'fk-reward[ui]' playwright`, and a Chromium of
the system or `playwright install chromium`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="pip install 'fk-reward[ui]'")
pytest.importorskip("playwright.sync_api", reason="pip install playwright")

from fk_reward.ui.page import Defaults, build_page, launch  # noqa: E402
from fk_reward.ui.studio import Studio  # noqa: E402

pytestmark = pytest.mark.slow
PATIENCE = 240_000  # milliseconds: a loaded machine draws slowly
SHOTS = os.environ.get("FK_REWARD_SCREENSHOTS")
"""Folder for screenshots, for whoever wants to look at the page."""


@pytest.fixture(scope="module")
def address():
    page = build_page(
        Studio(device="cpu"),
        Defaults(reward="shapes-verifier", prompt="a photo of a red circle", num_inference_steps=6),
    )
    yield launch(page, block=False)
    page.close()


@pytest.fixture
def visit(browser, address):
    """Open the page as a new user; what it asks of other machines fails the test."""
    contexts, foreign = [], []

    def open_page():
        contexts.append(browser.new_context(viewport={"width": 1400, "height": 1100}))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: foreign.append(request.url) if is_foreign(request.url) else None)
        page.goto(address)
        page.wait_for_selector("#run")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert foreign == [], "the page asks other machines"


def is_foreign(url):
    return not url.startswith(("http://127.0.0.1:", "http://localhost:", "ws://127.0.0.1:", "data:", "blob:", "about:"))


def shoot(page, name):
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=True)


def fill(page, name, value):
    page.locator(f"#{name} textarea, #{name} input").first.fill(value)


def run(page):
    page.click("#run")
    page.wait_for_function("document.querySelector('#status')?.innerText.startsWith('done')")


def image_source(page, name):
    return page.locator(f"#{name} img").first.get_attribute("src")


def test_from_the_form_to_the_image(visit, address, tmp_path):
    assert address.startswith("http://127.0.0.1:")
    page = visit()
    shoot(page, "form")
    fill(page, "particles", "3")
    page.click("#run")
    page.wait_for_selector("#lineage svg g.particle")
    shoot(page, "drawing")
    page.wait_for_function("document.querySelector('#status')?.innerText.startsWith('done')")
    assert page.locator("#lineage svg g.step").count() >= 2
    assert page.locator("#lineage svg g.step").last.locator("g.particle").count() == 3
    assert page.locator("#lineage svg path.kept").count() >= 1
    for name in ("best", "plain"):
        page.wait_for_selector(f"#{name} img")
    assert page.locator("button[aria-label*='hare']").count() == 0, "nothing offers to share an image"
    assert "FKSteeringPipeline.from_pretrained" in page.locator("#code").inner_text()
    with page.expect_download() as download:
        page.click("#trace")
    download.value.save_as(tmp_path / "trace.json")
    assert json.loads((tmp_path / "trace.json").read_text())["prompts"] == ["a photo of a red circle"]
    shoot(page, "done")


def test_an_error_is_shown_as_text_and_the_next_run_works(visit):
    page = visit()
    fill(page, "scale", "strong <b>")
    page.click("#run")
    page.wait_for_selector("#status .fk-error")
    assert page.locator("#status").inner_text() == "Error: λ should be a number, got 'strong <b>'."
    shoot(page, "error")
    fill(page, "scale", "")
    fill(page, "prompt", "")
    page.click("#run")
    page.wait_for_function("document.querySelector('#status')?.innerText.includes('Write a prompt')")
    fill(page, "prompt", "a photo of a star")
    fill(page, "particles", "2")
    run(page)
    page.wait_for_selector("#best img")


def test_two_users_at_once_get_their_own_images(visit):
    pages = [visit(), visit()]
    for page, seed in zip(pages, ("1", "2"), strict=True):
        fill(page, "seed", seed)
        fill(page, "particles", "2")
        page.click("#run")
    for page in pages:
        page.wait_for_function("document.querySelector('#status')?.innerText.startsWith('done')")
        page.wait_for_selector("#best img")
    codes = [page.locator("#code").inner_text() for page in pages]
    assert "range(1, 3)" in codes[0] and "range(2, 4)" in codes[1]
    assert image_source(pages[0], "best") != image_source(pages[1], "best")
