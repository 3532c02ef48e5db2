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

from fk_reward.benchmarks import batch_queue, ray_workers
from fk_reward.benchmarks.batch_queue import Batch, answer_batch, open_batches
from fk_reward.benchmarks.image_store import PromptFolder
from fk_reward.benchmarks.ray_workers import run_on_ray
from fk_reward.benchmarks.runner import Work
from fk_reward.benchmarks.store import ResultStore
from tests.benchmarks.geneval.test_runs import finished, model, options, without_seconds  # noqa: F401 (fixtures)
from tests.benchmarks.image_stage import RECORDS, BareStore, Painter, finish_run, paint, task_of, tree
from tests.benchmarks.ray_in_process import Killed, ray_in_process
from tests.command_line import run_command_line
from tests.repository.layout import LIBRARY_FOLDERS, ROOT

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
MANY = RECORDS * 10
NUM_WORKERS, NUM_KILLS = 3, 10
_CHOSEN = np.random.default_rng(0).permutation(len(MANY))[:NUM_KILLS].tolist()
KILLED = dict.fromkeys(_CHOSEN[:5], "drawing") | dict.fromkeys(_CHOSEN[5:], "written")
"""Prompts over which an actor is killed once: while it draws, or when the prompt is there and nobody knows yet."""


def end():
    """Kill the process of an actor; where it is none, see `in_process`."""
    os.kill(os.getpid(), signal.SIGKILL)


def end_in_process():
    raise Killed


def killed_once(root: Path, index: int, kind: str) -> None:
    """Kill this process where it was not killed before."""
    mark = root.parent / f"{index}-{kind}"
    if KILLED.get(index) == kind and not mark.exists():
        mark.touch()
        end()


class DeadlyStore(BareStore):
    """Kills the process that has just written."""

    def write(self, method, indices, samples, answers):
        super().write(method, indices, samples, answers)
        killed_once(self.out / method.name, indices[0], "written")


class ForgetfulStore(DeadlyStore):
    def missing(self, method, samples, indices):
        return list(indices)


def bind(root: Path, store, writer: str) -> list[Work]:
    """A painter that notes each draw before it begins."""

    def draw(prompt, index):
        with open(root.parent / "draws", "a", encoding="utf-8") as file:
            finished = PromptFolder(root, index).is_finished(MANY[index])
            file.write(f"{index} {writer} {'again' if finished else 'first'}\n")
        killed_once(root, index, "drawing")
        return paint(prompt, index)

    return [Work(task_of(MANY), [Painter(root.name, draw)], store(root.parent))]


def started(ray, *, path, attempts=4):
    """Start Ray, again where it has given up: a busy machine takes longer than the 15 seconds that Ray waits."""
    for left in reversed(range(attempts)):
        try:
            ray.init(num_cpus=NUM_WORKERS, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
        except Exception:  # noqa: BLE001, PERF203 (Ray raises no kind of its own)
            ray.shutdown()
            if not left:
                raise
        else:
            return


@pytest.fixture(scope="module")
def one_machine(tmp_path_factory):
    """A machine of this process's own with a place for each worker, which finds the modules that are found here.

    Ray puts the folder that it is started from before all others. In a checkout that is mapped into `build/packages`
    its `fk_reward` would lack the packages that lie beside it, so that Ray is started elsewhere.
    """
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.chdir(tmp_path_factory.mktemp("ray"))
        started(ray, path=os.pathsep.join(filter(None, [*sys.path, str(ROOT)])))
    yield ray
    ray.shutdown()


@pytest.fixture
def in_process(monkeypatch):
    """Ray as it is in this process."""
    made = ray_in_process()
    monkeypatch.setitem(sys.modules, "ray", made)
    monkeypatch.setattr(sys.modules[__name__], "end", end_in_process)
    return made


@pytest.fixture(params=["in_process", pytest.param("one_machine", marks=[pytest.mark.slow, needs_ray])])
def cluster(request):
    return request.getfixturevalue(request.param)


def drawn(out):
    return [line.split() for line in (out / "draws").read_text(encoding="utf-8").splitlines()]


def found_packages(_writer):
    """Where an actor finds the packages of the library; as an error, which is all that it can say here."""
    import fk_reward.pipelines
    import fk_reward.rewards
    import fk_reward.training

    raise LookupError(
        " ".join(module.__file__ for module in (fk_reward.pipelines, fk_reward.rewards, fk_reward.training))
    )


@pytest.mark.slow
@needs_ray
def test_actors_find_the_packages_of_this_checkout(one_machine):
    with pytest.raises(LookupError) as said:
        list(run_on_ray(found_packages, num_workers=1))
    found = [Path(name).resolve().parent for name in str(said.value).split() if name.endswith("__init__.py")]
    assert found == [ROOT / name for name in LIBRARY_FOLDERS[1:]]


def test_ten_kills_of_actors(cluster, tmp_path):
    root = tmp_path / "run"
    steps = list(run_on_ray(partial(bind, root, DeadlyStore), num_workers=NUM_WORKERS))
    draws = drawn(tmp_path)
    marks = [path for path in tmp_path.iterdir() if path.name.endswith(("drawing", "written"))]
    assert len(marks) == NUM_KILLS
    assert [line for line in draws if line[2] == "again"] == [], "nothing that is finished is drawn again"
    assert len(draws) == len(MANY) + 5, "a kill costs the one prompt that was being drawn"
    assert steps[-1] == ("run", len(MANY), len(MANY))
    finish_run(root, records=MANY)
    assert tree(root) == tree(finish_run(tmp_path / "alone" / "run", records=MANY))
    list(run_on_ray(partial(bind, root, DeadlyStore), num_workers=1))
    assert drawn(tmp_path) == draws, "a finished run draws nothing"


def test_actors_begin_again_and_are_ended(in_process, tmp_path):
    list(run_on_ray(partial(bind, tmp_path / "run", DeadlyStore), num_workers=NUM_WORKERS, num_gpus=1.0))
    assert in_process.asked == [{"max_restarts": -1, "num_cpus": 1, "num_gpus": 1.0}]
    assert [actor.num_starts > 1 for actor in in_process.actors].count(True) >= 2
    assert sum(actor.num_starts for actor in in_process.actors) == NUM_WORKERS + NUM_KILLS
    assert in_process.killed == in_process.actors


def test_actors_that_forget_would_be_noticed(in_process, tmp_path):
    list(run_on_ray(partial(bind, tmp_path / "run", ForgetfulStore), num_workers=NUM_WORKERS))
    assert any(again == "again" for *_, again in drawn(tmp_path))


@pytest.mark.slow
@needs_ray
def test_more_actors_than_places(one_machine, tmp_path):
    """Two have no machine, as where some were taken away; the others do all of the work."""
    for index, kind in KILLED.items():
        (tmp_path / f"{index}-{kind}").touch()  # nobody is killed here
    steps = run_on_ray(partial(bind, tmp_path / "run", DeadlyStore), num_workers=NUM_WORKERS + 2)
    assert list(steps)[-1].done == len(MANY)


def fail(_writer):
    raise ValueError("no such model")


def deadly(indices, samples):
    end()


def bind_deadly(folder, writer):
    method = SimpleNamespace(name="deadly", batch_size=2, answer=deadly)
    return [Work(task_of(), [method], ResultStore(folder, {}, writer=writer), "first")]


def bind_nothing(_writer):
    end()


def test_what_an_actor_raises_arrives(cluster):
    with pytest.raises(ValueError, match="no such model"):
        list(run_on_ray(fail, num_workers=2))


def test_samples_that_kill_every_actor_end_the_run(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_queue, "MOST_LOSSES", 2)
    with pytest.raises(RuntimeError, match="2 workers have died over first: deadly, samples 0, 1"):
        list(run_on_ray(partial(bind_deadly, tmp_path), num_workers=1))


def test_actors_that_die_while_they_load_end_the_run(in_process):
    with pytest.raises(RuntimeError, match="again and again before it has loaded"):
        list(run_on_ray(bind_nothing, num_workers=2))
    assert in_process.killed == in_process.actors


def test_ray_takes_under_a_hundred_lines():
    """The bound that it was built under; what knows nothing of Ray is in `batch_queue`."""
    assert len(Path(ray_workers.__file__).read_text(encoding="utf-8").splitlines()) < 100


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'fk-reward\[ray\]'"):
        list(run_on_ray(fail, num_workers=1))


def test_only_what_is_missing_is_answered(tmp_path):
    asked = []

    def square(indices, samples):
        asked.append(list(indices))
        return [{"square": sample**2} for sample in samples]

    store = ResultStore(tmp_path, {})
    task = SimpleNamespace(samples=(3, 4, 5))
    works = [Work(task, [SimpleNamespace(name="square", batch_size=2, answer=square)], store)]
    assert open_batches(works) == [Batch(0, 0, "square", (0, 1)), Batch(0, 0, "square", (2,))]
    store.write(None, [1], [4], [{"square": 16}])
    answer_batch(works, Batch(0, 0, "square", (0, 1)))
    answer_batch(works, Batch(0, 0, "square", (0, 1)))
    assert asked == [[0]]
    assert open_batches(works) == [Batch(0, 0, "square", (2,))]


@pytest.mark.slow
@needs_ray
def test_the_command_on_ray_makes_what_one_process_makes(one_machine, finished, options, tmp_path):  # noqa: F811
    result = run_command_line("geneval", "--out", tmp_path / "ray", *options, "--ray-workers", "2")
    assert result.exit_code == 0, result.output
    assert "fk-2-shapes-verifier: 5/5" in result.output
    assert without_seconds(tmp_path / "ray") == without_seconds(finished)
