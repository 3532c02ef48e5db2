"""Screenshots of the page of `fk-reward ui` and of the documentation, for the documentation.

    pip install -c constraints-ui.txt ".[ui,docs]" playwright      # and a Chromium of the system
    make docs && python scripts/take_screenshots.py                # or one of the names in `PICTURES`

Each is written to docs/images, in a palette of 128 colours; one over 120 kB is refused.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
SITE = ROOT / "build" / "docs"
LARGEST = 120_000
"""Bytes of a picture."""
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    "--disable-sync",
)
"""Of Chromium: it asks nothing of other machines."""
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
SIZE = {"width": 1280, "height": 860}


@contextmanager
def headless_browser() -> Iterator[Browser]:
    """A Chromium of the system without a window, or Playwright's own where there is none."""
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(QUIET))
        try:
            yield browser
        finally:
            browser.close()


def compressed(png: bytes, *, width: int = 1000, colours: int = 128) -> bytes:
    """A screenshot in a palette, and no wider than a page of the documentation.

    Args:
        png: of the browser.
        width: in pixels; a narrower one stays as it is.
        colours: of the palette.

    Raises:
        ValueError: it has more than 120 kB all the same.
    """
    image = Image.open(io.BytesIO(png)).convert("RGB")
    if image.width > width:
        image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.quantize(colours, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    if len(out.getvalue()) > LARGEST:
        raise ValueError(f"a picture has {len(out.getvalue())} bytes; at most {LARGEST}: show less of the page")
    return out.getvalue()


def ui(page: Page) -> Iterator[tuple[str, bytes]]:
    """The page of `fk-reward ui` while it draws, and when it is done."""
    from fk_reward.ui.page import Defaults, build_page, launch
    from fk_reward.ui.studio import Studio

    blocks = build_page(Studio(device="cpu"), Defaults(num_inference_steps=20))
    page.goto(launch(blocks, block=False))
    page.click("#run")
    page.wait_for_function("document.querySelectorAll('#lineage svg g.step').length >= 3")
    page.evaluate("scrollTo(0, 0)")
    yield "ui-drawing", page.screenshot()
    page.wait_for_function("document.querySelector('#status')?.innerText.startsWith('done')")
    page.wait_for_selector("#plain img")
    page.wait_for_timeout(1000)  # the last images fade in
    yield "ui-done", page.screenshot(full_page=True)
    blocks.close()


def docs(page: Page) -> Iterator[tuple[str, bytes]]:
    """The first page of the site, and an answer of its search."""
    if not (SITE / "index.html").exists():
        raise FileNotFoundError(f"{SITE}: no site is there; run make docs first")
    page.goto((SITE / "tutorials" / "first_image.html").as_uri())
    yield "site", page.screenshot()
    page.goto((SITE / "search.html").as_uri() + "?q=reward_scale")
    page.wait_for_selector("#search-results li")
    page.wait_for_timeout(1000)  # summaries are read one after the other
    yield "site-search", page.screenshot()


PICTURES = {"ui": ui, "docs": docs}


def main(arguments: Sequence[str] | None = None) -> None:
    """Take the screenshots that are asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which; all of {', '.join(PICTURES)} if not given")
    parser.add_argument("--out", type=Path, default=IMAGES)
    parser.add_argument("--patience", type=float, default=240, help="seconds that a step may take; 240 if not given")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(PICTURES):
        parser.error(f"expected {', '.join(PICTURES)}, got {', '.join(sorted(unknown))}")
    with headless_browser() as browser:
        for name in options.names or PICTURES:
            page = browser.new_page(viewport=SIZE)
            page.set_default_timeout(1000 * options.patience)
            for picture, png in PICTURES[name](page):
                (options.out / f"{picture}.png").write_bytes(compressed(png))
                sys.stdout.write(f"{options.out / picture}.png\n")


if __name__ == "__main__":
    main()
