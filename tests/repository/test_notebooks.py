"""Notebooks: they open, hold no outputs, can be opened in Colab, and run from the first cell to the last."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.repository.layout import ROOT, setup_config, tracked_files

NOTEBOOKS = sorted(ROOT / path for path in tracked_files() if path.suffix == ".ipynb")


def cells(path, kind):
    """The sources of the cells of a kind."""
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def repository():
    """owner/name of the code host, which setup.cfg says and nobody else."""
    (line,) = setup_config()["metadata"]["project_urls"].split("\n")[1:]
    return line.removeprefix("Source = https://github.com/")


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == ["first_image", "own_reward", "train_a_reward"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_form(path):
    """Version 4.5 of the format: cells have ids; outputs are not kept, so that a diff shows what was written."""
    notebook = json.loads(path.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_opens_in_colab_and_links_to_notebooks_that_exist(path):
    first = cells(path, "markdown")[0]
    assert f"https://colab.research.google.com/github/{repository()}/blob/main/notebooks/{path.name})" in first
    for text in cells(path, "markdown"):
        for part in text.split("](")[1:]:
            target = part.partition(")")[0]
            assert target.startswith("https://") or (path.parent / target).exists(), target


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=() if path.stem == "first_image" else pytest.mark.long) for path in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_its_cells_run(path, tmp_path):
    """All cells in one namespace of a fresh interpreter, as a kernel runs them; no Jupyter is needed for that."""
    script = "\n\n".join(cells(path, "code"))
    (tmp_path / "notebook.py").write_text(script)
    result = subprocess.run(
        [sys.executable, "notebook.py"], cwd=tmp_path, env=_environment(), capture_output=True, text=True, timeout=1800
    )
    assert result.returncode == 0, result.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_in_jupyter(path, tmp_path, monkeypatch):
    """In a kernel, where nbclient and ipykernel are installed."""
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    import nbformat  # noqa: PLC0415 (comes with nbclient)

    for name, value in _environment().items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(path, as_version=4)
    client.NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()


def _environment():
    # this process's own path: an installed package may be another checkout
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
