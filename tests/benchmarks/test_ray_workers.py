"""Ray actors: killed ten times they lose nothing and draw nothing twice; what they raise arrives; who is to blame."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fk_reward.benchmarks import ray_workers
from fk_reward.benchmarks.image_store import PromptFolder
from fk_reward.benchmarks.ray_workers import Batch, Bound, Worker, run_on_ray
from fk_reward.benchmarks.store import ResultStore
from tests.benchmarks.geneval.test_runs import finished, model, options, without_seconds  # noqa: F401 (fixtures)
from tests.benchmarks.image_stage import RECORDS, BareStore, Painter, finish_run, paint, task_of, tree
from tests.command_line import run_command_line
from tests.repository.layout import ROOT

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
MANY = RECORDS * 10
NUM_WORKERS, NUM_KILLS = 3, 10
_CHOSEN = np.random.default_rng(0).permutation(len(MANY))[:NUM_KILLS].tolist()
KILLED = dict.fromkeys(_CHOSEN[:5], "drawing") | dict.fromkeys(_CHOSEN[5:], "written")
"""Prompts over which an actor is killed once: while it draws, or when the prompt is there and nobody knows yet."""


def killed_once(root: Path, index: int, kind: str) -> None:
    """Kill this process where it was not killed before."""
    mark = root.parent / f"{index}-{kind}"
    if KILLED.get(index) == kind and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


class DeadlyStore(BareStore):
    """Kills the process that has just written."""

    def write(self, method, indices, samples, answers):
        super().write(method, indices, samples, answers)
        killed_once(self.out / method.name, indices[0], "written")


class ForgetfulStore(DeadlyStore):
    def missing(self, method, samples, indices):
        return list(indices)


def bind(root: Path, store=DeadlyStore) -> Bound:
    """A painter that notes each draw before it begins."""

    def draw(prompt, index):
        with open(root.parent / "draws", "a", encoding="utf-8") as file:
            finished = PromptFolder(root, index).is_finished(MANY[index])
            file.write(f"{index} {os.getpid()} {'again' if finished else 'first'}\n")
        killed_once(root, index, "drawing")
        return paint(prompt, index)

    return Bound(task_of(MANY), [Painter(root.name, draw)], store(root.parent))


@pytest.fixture(scope="module")
def cluster():
    """A machine of this process's own with a place for each worker."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    ray.init(num_cpus=NUM_WORKERS, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
    yield ray
    ray.shutdown()


def drawn(out):
    return [line.split() for line in (out / "draws").read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
@needs_ray
def test_ten_kills_of_actors(cluster, tmp_path):
    root = tmp_path / "run"
    steps = list(run_on_ray(partial(bind, root), num_workers=NUM_WORKERS))
    draws = drawn(tmp_path)
    marks = [path for path in tmp_path.iterdir() if path.name.endswith(("drawing", "written"))]
    assert len(marks) == NUM_KILLS
    assert [line for line in draws if line[2] == "again"] == [], "nothing that is finished is drawn again"
    assert len(draws) == len(MANY) + 5, "a kill costs the one prompt that was being drawn"
    assert len({pid for _, pid, _ in draws}) > NUM_WORKERS, "others have gone on"
    assert steps[-1] == ("run", len(MANY), len(MANY))
    finish_run(root, records=MANY)
    assert tree(root) == tree(finish_run(tmp_path / "alone" / "run", records=MANY))
    list(run_on_ray(partial(bind, root), num_workers=1))
    assert drawn(tmp_path) == draws, "a finished run draws nothing"


@pytest.mark.slow
@needs_ray
def test_actors_that_forget_would_be_noticed(cluster, tmp_path):
    list(run_on_ray(partial(bind, tmp_path / "run", ForgetfulStore), num_workers=NUM_WORKERS))
    assert any(again == "again" for *_, again in drawn(tmp_path))


@pytest.mark.slow
@needs_ray
def test_more_actors_than_places(cluster, tmp_path):
    """Two have no machine, as where some were taken away; the others do all of the work."""
    for index, kind in KILLED.items():
        (tmp_path / f"{index}-{kind}").touch()  # nobody is killed here
    assert list(run_on_ray(partial(bind, tmp_path / "run"), num_workers=NUM_WORKERS + 2))[-1].done == len(MANY)


def fail():
    raise ValueError("no such model")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def bind_deadly(folder):
    answer = lambda indices, samples: die()  # noqa: E731
    return Bound(task_of(), [SimpleNamespace(name="deadly", batch_size=2, answer=answer)], ResultStore(folder, {}))


@pytest.mark.slow
@needs_ray
def test_what_an_actor_raises_arrives(cluster):
    with pytest.raises(ValueError, match="no such model"):
        list(run_on_ray(fail, num_workers=2))


@pytest.mark.slow
@needs_ray
def test_samples_that_kill_every_actor_end_the_run(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_workers, "MOST_DEATHS", 2)
    with pytest.raises(RuntimeError, match="2 actors have died over deadly, samples 0, 1"):
        list(run_on_ray(partial(bind_deadly, tmp_path), num_workers=1))


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'fk-reward\[ray\]'"):
        list(run_on_ray(fail, num_workers=1))


def test_a_worker_answers_what_is_missing(tmp_path):
    asked = []

    def square(indices, samples):
        asked.append(list(indices))
        return [{"square": sample**2} for sample in samples]

    store = ResultStore(tmp_path, {})
    task = SimpleNamespace(samples=(3, 4, 5))
    worker = Worker(lambda: Bound(task, [SimpleNamespace(name="square", batch_size=2, answer=square)], store))
    assert worker.begin() == [("square", [Batch(0, (0, 1)), Batch(0, (2,))])]
    store.write(None, [1], [4], [{"square": 16}])
    worker.answer(Batch(0, (0, 1)))
    worker.answer(Batch(0, (0, 1)))
    assert asked == [[0]]
    assert worker.begin() == [("square", [Batch(0, (2,))])]


@pytest.mark.slow
@needs_ray
def test_the_command_on_ray_makes_what_one_process_makes(cluster, finished, options, tmp_path):  # noqa: F811
    result = run_command_line("geneval", "--out", tmp_path / "ray", *options, "--ray-workers", "2")
    assert result.exit_code == 0, result.output
    assert "fk-2-shapes-verifier: 5/5" in result.output
    assert without_seconds(tmp_path / "ray") == without_seconds(finished)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--ray-workers", "0"], "--ray-workers should be at least 1"),
        (["--ray-workers", "2", "--shard", "0/2", "--stage", "generate"], "without --shard"),
    ],
)
def test_what_is_refused(tmp_path, more, message):
    result = run_command_line("geneval", "--suite", "shapes", "--device", "cpu", "--out", tmp_path / "out", *more)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()
