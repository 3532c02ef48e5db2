"""Several workers on one folder: killed at random they lose nothing and draw nothing twice; nodes of unequal size."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest

from fk_reward.benchmarks.image_report import write_report
from fk_reward.benchmarks.image_store import PromptFolder
from fk_reward.output_folder import FolderInUseError, hold_folder
from tests.benchmarks.geneval.test_runs import finished, model, options_of, without_seconds  # noqa: F401 (fixtures)
from tests.benchmarks.image_stage import RECORDS, BareStore, draw_missing, finish_run, paint, tree
from tests.repository.layout import ROOT

NUM_WORKERS, NUM_KILLS = 3, 10
MANY = RECORDS * 12
fork = multiprocessing.get_context("fork") if hasattr(os, "fork") else None
needs_fork = pytest.mark.skipif(fork is None, reason="starts processes by fork, which is fast")


def work(root, log, shard, *, forgetful=False, gate=None):
    """A worker: its share of the prompts, each draw noted before it begins; the gate holds it in its draws."""
    if forgetful:
        BareStore.missing = lambda self, method, samples, indices: list(indices)

    def draw(prompt, index):
        with open(log, "a", encoding="utf-8") as file:
            finished = PromptFolder(root, index).is_finished(MANY[index])
            file.write(f"{index} {'again' if finished else 'first'}\n")  # a line at once, whoever else writes
        time.sleep(0.05)
        if gate is not None:
            gate.wait(60)
        return paint(prompt, index)

    with hold_folder(root, share=shard):
        list(draw_missing(draw, MANY, root, shard=shard))


class Crew:
    """Workers that are started again when they are killed, as a queue of jobs does."""

    def __init__(self, root, log, **how):
        self.start = lambda shard: fork.Process(target=work, args=(root, log, shard), kwargs=how)
        self.workers = {}
        for index in range(NUM_WORKERS):
            self.begin(index)

    def begin(self, index):
        self.workers[index] = self.start((index, NUM_WORKERS))
        self.workers[index].start()

    def kill(self, index):
        """End it at once, whatever it does; whether it was still at work."""
        worker = self.workers[index]
        worker.kill()
        worker.join(60)
        self.begin(index)
        return worker.exitcode == -signal.SIGKILL

    def wait(self):
        for worker in self.workers.values():
            worker.join(240)
            assert worker.exitcode == 0


def killed_run(root, log, *, seed, **how):
    """A run of three workers of which one at random is killed at random moments; how many were at work then."""
    random, crew, kills = np.random.default_rng(seed), Crew(root, log, **how), 0
    for _ in range(NUM_KILLS):
        time.sleep(random.uniform(0.05, 0.2))
        kills += crew.kill(int(random.integers(NUM_WORKERS)))
    crew.wait()
    return kills


def drawn(log):
    """Index and whether the prompt was finished already, for each draw that was begun."""
    return [line.split() for line in log.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
@needs_fork
def test_ten_kills_of_one_of_three_workers(tmp_path):
    root, log = tmp_path / "run", tmp_path / "draws"
    kills = killed_run(root, log, seed=0)
    draws = drawn(log)
    assert kills >= 5, "most of them should be at work"
    assert {int(index) for index, _ in draws} == set(range(len(MANY)))
    assert [line for line in draws if line[1] == "again"] == [], "nothing that is finished is drawn again"
    assert len(draws) - len(MANY) <= kills, "a kill costs the one prompt that was being drawn"
    finish_run(root, records=MANY)
    whole = finish_run(tmp_path / "alone" / "run", records=MANY)
    for folder in (root, whole):
        write_report(folder)
    assert tree(root) == tree(whole), "files and tables"


@pytest.mark.slow
@needs_fork
def test_a_worker_that_forgets_would_be_noticed(tmp_path):
    root, log = tmp_path / "run", tmp_path / "draws"
    kills = killed_run(root, log, seed=0, forgetful=True)
    draws = drawn(log)
    assert any(again == "again" for _, again in draws) or len(draws) - len(MANY) > kills


@pytest.mark.slow
@needs_fork
def test_two_runs_at_once_in_one_folder(tmp_path):
    """The second is refused while the first one runs, also with the share of the first, and goes when it has ended."""
    root, log = tmp_path / "run", tmp_path / "draws"
    gate = fork.Event()
    first = fork.Process(target=partial(work, root, log, (0, 1), gate=gate))
    first.start()
    deadline = time.monotonic() + 60
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    for shard in ((0, 1), (0, 2)):
        with pytest.raises(FolderInUseError, match=f"in use by process {first.pid}"):
            work(root, log, shard)
    gate.set()
    first.join(240)
    before = len(drawn(log))
    work(root, log, (0, 1))
    assert len(drawn(log)) == before == len(MANY)


PROCESSES = (2, 1)
"""Of each of two nodes: five prompts among three processes are 2, 2 and 1. A process that took its number on its node,
or that times the processes of its node, for its number among all would leave out a prompt or draw one twice."""


@pytest.fixture(scope="module")
def options(model):  # noqa: F811
    """Of one run: how all are made by several processes is a matter of test_runs.py."""
    return [*options_of(model), "--method", "fk"]


@pytest.mark.long
def test_two_nodes_of_unequal_size_make_what_one_process_makes(finished, options, tmp_path):  # noqa: F811
    """As `accelerate launch --num_machines 2` starts them, which hands over to this launcher for several nodes."""
    out = tmp_path / "nodes"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    place = [f"--nnodes={len(PROCESSES)}", "--master-addr=127.0.0.1", f"--master-port={port}"]
    command = ["-m", "fk_reward.cli", "geneval", "--out", str(out), *options]
    nodes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", *place),
                *(f"--node-rank={rank}", f"--nproc-per-node={number}", *command),
            ],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, number in enumerate(PROCESSES)
    ]
    printed = [node.communicate(timeout=540)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(text[-3000:] for text in printed)
    assert "fk-2-shapes-verifier: 2/2" in printed[0], "the first of three processes has two of five prompts"
    assert without_seconds(out) == without_seconds(finished)
