"""The process of a reward worker: `python -m fk_reward.rewards.workers.serve`, started by `RewardWorkers`."""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fk_reward.rewards.base import CallableReward, Reward
from fk_reward.rewards.registry import load_reward
from fk_reward.rewards.workers.frames import read_message, write_message

_OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def load(settings: Mapping[str, Any]) -> Reward:
    """The reward that the first message asks for.

    Args:
        settings: `reward`, a name, a composition or "module:function"; `options` of `load_reward`; `device`;
            `batch_size`.
    """
    name = settings["reward"]
    if _OWN.fullmatch(name):
        module, _, attribute = name.partition(":")
        made = getattr(importlib.import_module(module), attribute)
        reward = made if isinstance(made, Reward) else CallableReward(made, name)
    else:
        reward = load_reward(name, **settings["options"])
    if settings["device"] is not None:
        reward = reward.to(settings["device"])
    if settings["batch_size"] is not None:
        reward.batch_size = settings["batch_size"]
    return reward


def serve(source: BinaryIO, target: BinaryIO) -> None:
    """Load the reward, then score until the other side ends.

    Whatever the reward raises is told to the process that asked, which raises; a future keeps it. After an error while
    scoring the worker goes on.
    """
    first = read_message(source)
    if first is None:
        return
    with ThreadPoolExecutor(max_workers=1) as thread:
        loading = thread.submit(load, first[0])
        if _told(loading, target):
            return
        reward = loading.result()
        write_message(target, {"kind": "ready", "compares_images": reward.compares_images})
        while (asked := read_message(source)) is not None:
            scoring = thread.submit(_score, reward, *asked)
            if not _told(scoring, target):
                write_message(target, {"kind": "scores"}, [scoring.result()])


def _score(reward: Reward, message: Mapping[str, Any], images: list[Tensor]) -> Tensor:
    pixels = [image.float().div(255) if image.dtype == torch.uint8 else image for image in images]
    with torch.no_grad():
        return reward(pixels, message["prompts"]).float()


def _told(work: Future[Any], target: BinaryIO) -> bool:
    """Tell the other side of an error, and whether there was one."""
    error = work.exception()
    if error is not None:
        told = "".join(traceback.format_exception(error))
        write_message(target, {"kind": "error", "error": f"{type(error).__name__}: {error}", "traceback": told})
    return error is not None


def main() -> None:
    """Serve on the standard streams; what libraries print goes to the error stream."""
    target = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with suppress(BrokenPipeError, EOFError):  # the process that asked has ended
        serve(sys.stdin.buffer, target)


if __name__ == "__main__":
    main()
