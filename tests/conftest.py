"""Settings and fixtures that all tests share: no network, one thread, fixed seeds, tiny pipelines."""

from __future__ import annotations

import gc
import importlib.util
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from tests import tiny
from tests.repository.layout import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a mixture: an editable installation of another checkout stands behind folders that are mapped in here."""
    for name in ("pipelines", "rewards", "training"):
        spec = importlib.util.find_spec(f"fk_reward.{name}")
        found = Path(str(spec and spec.origin)).resolve()
        if not found.is_relative_to(ROOT.resolve()):
            raise pytest.UsageError(
                f"fk_reward.{name} is {found}, not that of {ROOT}. Install this checkout, or run "
                "`python scripts/link_packages.py` and `python -m pytest -o 'pythonpath=build/packages .'`."
            )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Workers begin with the files that take longest: one that comes last leaves all others idle for minutes."""
    if hasattr(config, "workerinput"):
        items[:] = slow_files_first(items)


def slow_files_first(items: list[pytest.Item]) -> list[pytest.Item]:
    """Files in their order, but those with tests that are marked as slow or long before the others."""
    slow = {item.path for item in items if any(map(item.get_closest_marker, ("slow", "long")))}
    return sorted(items, key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Let garbage collections pass over the millions of objects of the imports: they took a fifth of all time."""
    gc.freeze()


@pytest.fixture
def rng() -> np.random.Generator:
    """New for each test: the order of the tests changes no number."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session", autouse=True)
def _one_deterministic_thread() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)


@pytest.fixture(autouse=True)
def _fixed_global_seed() -> Iterator[None]:
    """Schedulers that ignore the generator they are given (flow matching) draw from the global one."""
    with torch.random.fork_rng(devices=[]):
        # where CUDA is not in use, `torch.manual_seed` writes down the whole stack: longer than most tests take
        torch.default_generator.manual_seed(0)
        if torch.cuda.is_available():
            torch.cuda.manual_seed_all(0)
        yield


@pytest.fixture(scope="session")
def tiny_sd() -> Callable[..., DiffusionPipeline]:
    """Factory of tiny Stable Diffusion pipelines; each call returns a fresh one."""
    return tiny.make_sd


@pytest.fixture(scope="session")
def tiny_sdxl() -> Callable[..., DiffusionPipeline]:
    """Factory of tiny SDXL pipelines."""
    return tiny.make_sdxl


@pytest.fixture(scope="session")
def tiny_sd3() -> Callable[..., DiffusionPipeline]:
    """Factory of tiny Stable Diffusion 3 pipelines."""
    return tiny.make_sd3


@pytest.fixture(scope="session")
def tiny_pixart() -> Callable[..., DiffusionPipeline]:
    """Factory of tiny PixArt-Sigma pipelines."""
    return tiny.make_pixart


@pytest.fixture(scope="session")
def tiny_flux() -> Callable[..., DiffusionPipeline]:
    """Factory of tiny Flux pipelines."""
    return tiny.make_flux


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium without a window; skips where Playwright or a browser is missing."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    from scripts.take_screenshots import headless_browser

    with ExitStack() as stack:
        try:
            opened = stack.enter_context(headless_browser())
        except sync_api.Error as error:
            pytest.skip(f"no Chromium: {str(error).splitlines()[0]}")
        yield opened
