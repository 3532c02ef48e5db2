"""Reward workers: the same scores as here, shared work, and loud deaths."""

from __future__ import annotations

import os
import stat
import sys
import textwrap
import time

import numpy as np
import pytest
import torch

from fk_reward.rewards.workers import RewardWorkerError, RewardWorkers
from tests.rewards.workers.scripted import scripted

PATHS = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
STUB = """
    import json, os, struct, sys, time

    def read():
        start = sys.stdin.buffer.read(8)
        if len(start) < 8:
            sys.exit()
        header = json.loads(sys.stdin.buffer.read(struct.unpack("<Q", start)[0]))
        for shape in header["shapes"]:
            size = 4
            for side in shape:
                size *= side
            sys.stdin.buffer.read(size)
        return header

    def write(message, numbers=()):
        shapes, dtypes = ([[len(numbers)]], ["float32"]) if numbers else ([], [])
        header = json.dumps({**message, "shapes": shapes, "dtypes": dtypes}).encode()
        out = struct.pack("<Q", len(header)) + header + struct.pack(f"<{len(numbers)}f", *numbers)
        os.write(1, out)

    settings = read()
    write({"kind": "ready", "compares_images": settings["options"].get("compares", False)})
    while True:
        asked = read()
        word = asked["prompts"][0]
        if word == "die":
            sys.stderr.write("out of memory, perhaps")
            sys.stderr.flush()
            os.kill(os.getpid(), 9)
        if word == "half":
            os.write(1, b"\\0\\0\\0")
            sys.exit(7)
        if word == "hang":
            time.sleep(60)
        write({"kind": "scores"}, [float(len(asked["prompts"]))] * len(asked["prompts"]))
"""


@pytest.fixture(scope="module")
def stub(tmp_path_factory):
    """A worker without PyTorch, which starts at once: each score is the number of images that it was sent."""
    folder = tmp_path_factory.mktemp("stub")
    (folder / "stub.py").write_text(textwrap.dedent(STUB))
    script = folder / "python"
    script.write_text(f"#!/bin/sh\nexec {sys.executable} -S {folder / 'stub.py'}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script


def images(number):
    return torch.rand(number, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
def test_two_real_workers():
    name = "tests.rewards.workers.scripted:scripted"
    with RewardWorkers(name, num_workers=2, environment=PATHS, batch_size=2) as reward:
        pixels, prompts = images(5), ["a", "b", "c", "d", "e"]
        assert torch.equal(reward(pixels, prompts), scripted(pixels, prompts))
        assert torch.equal(reward(pixels, "print"), scripted(pixels, ["print"] * 5))
        assert torch.equal(reward.submit(pixels, prompts).result(), scripted(pixels, prompts))
        array = np.zeros((8, 8, 3), dtype=np.uint8)
        assert reward([array, array], "x").tolist() == [0.0, 0.0]
        pids = reward(pixels, "pid").tolist()
        assert len(set(pids)) == 2 and os.getpid() not in pids and pids == sorted(pids, key=pids.index)
        with pytest.raises(RewardWorkerError, match="ValueError: no such thing") as error:
            reward(pixels, ["a", "b", "c", "d", "raise"])
        assert error.value.worker == 1 and "scripted.py" in error.value.remote_traceback
        assert torch.equal(reward(pixels, prompts), scripted(pixels, prompts))  # it goes on
    with pytest.raises(ValueError, match="are closed"):
        reward(pixels, prompts)


@pytest.mark.slow
def test_a_reward_that_cannot_be_loaded():
    with pytest.raises(RewardWorkerError, match="clipscore") as error:
        RewardWorkers("clipscor", environment=PATHS)
    assert error.value.remote_traceback


def test_the_work_is_shared(stub):
    with RewardWorkers("x", num_workers=3, python=stub) as reward:
        assert reward(images(7), "a").tolist() == [3, 3, 3, 3, 3, 3, 1]
        assert reward(images(2), "a").tolist() == [1, 1]
    with RewardWorkers("x", num_workers=2, python=stub, options={"compares": True}) as reward:
        assert reward.compares_images
        scores = reward(images(6), ["a", "b", "a", "a", "a", "b"])
        assert scores.tolist() == [4, 2, 4, 4, 4, 2]


def test_many_images_do_not_block_a_pipe(stub):
    with RewardWorkers("x", python=stub) as reward:
        assert reward(torch.rand(4, 3, 256, 256), "a").tolist() == [4.0] * 4


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("die", r"Worker 0, reward 'x', has died \(signal SIGKILL\); .*\n?out of memory, perhaps"),
        ("half", r"has died \(exit code 7\); its scores are missing\. It said nothing\."),
    ],
)
def test_a_worker_that_dies_is_told_at_once_and_ever_after(stub, word, message):
    with RewardWorkers("x", num_workers=2, python=stub) as reward:
        with pytest.raises(RewardWorkerError, match=message):
            reward(images(2), [word, "a"])
        with pytest.raises(RewardWorkerError, match="has died"):
            reward(images(2), "a")
        with pytest.raises(RewardWorkerError, match="has died"):
            reward.submit(images(2), "a").result()


def test_a_worker_that_hangs_is_ended(stub):
    with RewardWorkers("x", python=stub, timeout=1.0) as reward:
        start = time.monotonic()
        with pytest.raises(RewardWorkerError, match="gave no answer in 1 s and was ended"):
            reward(images(1), "hang")
        assert time.monotonic() - start < 30


def test_workers_that_cannot_start(tmp_path):
    with pytest.raises(RewardWorkerError, match="Worker 0 cannot be started"):
        RewardWorkers("x", python=tmp_path / "none")
    with pytest.raises(RewardWorkerError, match=r"has died \(exit code 1\)"):
        RewardWorkers("x", python="/bin/false")


def test_workers_end_with_their_owner(stub):
    reward = RewardWorkers("x", python=stub)
    process = reward._workers[0].process
    assert process.poll() is None
    del reward
    assert process.wait(10) == 0


@pytest.mark.parametrize("options", [{"num_workers": 0}, {"timeout": -1.0}, {"batch_size": 0}])
def test_bad_settings(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        RewardWorkers("x", **options)


def test_options_are_plain_values(stub):
    with pytest.raises(TypeError, match="JSON"):
        RewardWorkers("x", python=stub, options={"dtype": torch.float32})
