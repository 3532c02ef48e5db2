"""A reward that is computed in other processes, whose Python, packages and GPU may differ from those of this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import IO, Any

import torch
from torch import Tensor

from fk_reward.rewards.inputs import Images, in_order, prompt_list
from fk_reward.rewards.workers.frames import read_message, write_message
from fk_reward.value_checks import real_number, whole_number

_LAST_WORDS = 2000  # characters of a worker's error stream in an error
_PATIENCE = 5.0  # seconds that a worker has to end by itself


class RewardWorkerError(RuntimeError):
    """A worker has died, has not answered in time, could not load its reward, or its reward raised.

    Attributes:
        worker: its number.
        remote_traceback: where the reward raised, in the worker; an empty text for a worker that has died.
    """

    def __init__(self, message: str, *, worker: int, remote_traceback: str = "") -> None:
        self.worker, self.remote_traceback = worker, remote_traceback
        super().__init__(message + (f"\n\nIn the worker:\n{remote_traceback}" if remote_traceback else ""))


class RewardWorkers:
    """A callable `(images, prompts) -> (B,) scores` that other processes compute.

    For trainers whose environment lacks what a reward needs, whose GPU has no room for it, or that go on drawing while
    rewards are computed (`submit`). The scores are those of the reward in this process: images travel as float32.
    Workers end with this process, with `close()`, or at the end of a `with` block.

    A worker that dies, and a reward that raises, raise here, at the call that needs them: there is no other score, no
    second try, and no silent return to fewer workers.

    Args:
        reward: name or composition for `load_reward`, or "module:function" of a function `(images, prompts)` or a
            `Reward` that the worker can import.
        num_workers: processes; a call is shared among them.
        devices: device of each worker's reward, in turn; None to leave it where it loads (the CPU).
        python: interpreter of the workers, perhaps of another environment, in which fk_reward is installed.
        environment: variables that are set for the workers, such as `{"CUDA_VISIBLE_DEVICES": "1"}`.
        options: keywords of `load_reward`, of plain values.
        batch_size: images that a reward sees at once; None for its own.
        timeout: seconds for an answer, after which the worker is killed; None to wait.
        eight_bit: send images as 8-bit numbers, a quarter of the bytes, and what files would hold.

    Attributes:
        name: of the reward.

    Raises:
        RewardWorkerError: when a worker cannot be started, or cannot load the reward.
        TypeError: for options that are not plain values.
        ValueError: for a number out of range.

    Example:
        >>> with RewardWorkers("shapes-clipscore", num_workers=2) as reward:  # doctest: +SKIP
        ...     reward(torch.rand(4, 3, 64, 64), "a photo of a star").shape
        torch.Size([4])
    """

    def __init__(  # noqa: PLR0913 (options of one pool)
        self,
        reward: str,
        *,
        num_workers: int = 1,
        devices: Sequence[str] | None = None,
        python: str | os.PathLike[str] | None = None,
        environment: Mapping[str, str] | None = None,
        options: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        timeout: float | None = None,
        eight_bit: bool = False,
    ) -> None:
        whole_number("num_workers", num_workers, minimum=1)
        if timeout is not None:
            real_number("timeout", timeout, low=0.0)
        if batch_size is not None:
            whole_number("batch_size", batch_size, minimum=1)
        self.name, self.eight_bit = reward, eight_bit
        settings = {"reward": reward, "options": dict(options or {}), "batch_size": batch_size}
        command = [os.fspath(python or sys.executable), "-m", "fk_reward.rewards.workers.serve"]
        variables = {**os.environ, **(environment or {})}
        self._workers: list[_Worker] = []
        weakref.finalize(self, _end_all, self._workers)  # also when the program ends
        try:
            for number in range(num_workers):
                worker = _Worker(number, command, variables, timeout=timeout, name=reward)
                self._workers.append(worker)
                worker.send({**settings, "device": devices[number % len(devices)] if devices else None})
            ready = [worker.answer()[0] for worker in self._workers]  # they load at the same time
        except BaseException:
            self.close()
            raise
        self._closed = False
        self._compares = bool(ready[0]["compares_images"])
        self._threads = ThreadPoolExecutor(max_workers=num_workers, thread_name_prefix="reward-worker")
        self._calls = ThreadPoolExecutor(max_workers=num_workers, thread_name_prefix="reward-call")

    @property
    def compares_images(self) -> bool:
        """Whether the reward compares the images of a prompt: then those of one prompt go to one worker."""
        return self._compares

    def __call__(self, images: Images, prompts: str | Sequence[str]) -> Tensor:
        """Score images.

        Args:
            images: B images, as for `Reward.__call__`.
            prompts: B strings, or one string for all images.

        Returns:
            (B,) float32 on the images' device (CPU for PIL images and arrays), without gradients.

        Raises:
            RewardWorkerError: a worker has died, or the reward has raised; it says which and why.
            ValueError: when the numbers of images and prompts differ, and after `close`.
        """
        if self._closed:
            raise ValueError(f"The workers of {self.name!r} are closed: make new ones.")
        found = list(in_order(images))
        texts = prompt_list(prompts, len(found))
        sent = [(image * 255).round().to(torch.uint8) if self.eight_bit else image.float() for image in found]
        parts = self._shares(texts)
        jobs = [
            self._threads.submit(worker.score, [sent[i] for i in part], [texts[i] for i in part])
            for worker, part in zip(self._workers, parts, strict=False)
        ]
        scores = torch.empty(len(found))
        for part, job in zip(parts, jobs, strict=True):
            scores[part] = job.result()
        return scores.to(found[0].device)

    def submit(self, images: Images, prompts: str | Sequence[str]) -> Future[Tensor]:
        """Start scoring and come back at once; `result()` gives the scores, or raises as a call does."""
        return self._calls.submit(self, images, prompts)

    def close(self) -> None:
        """End the workers; a call after it raises."""
        self._closed = True
        _end_all(self._workers)

    def __enter__(self) -> RewardWorkers:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _shares(self, prompts: Sequence[str]) -> list[list[int]]:
        """Images of each worker: neighbours, and of a reward that compares all those of a prompt."""
        groups: dict[Any, list[int]] = {}
        for index, prompt in enumerate(prompts):
            groups.setdefault(prompt if self._compares else index, []).append(index)
        most = -(-len(prompts) // len(self._workers))
        shares: list[list[int]] = [[]]
        for group in groups.values():
            if len(shares[-1]) >= most and len(shares) < len(self._workers):
                shares.append([])
            shares[-1] += group
        return shares


class _Worker:
    """One process."""

    def __init__(
        self, number: int, command: list[str], variables: Mapping[str, str], *, timeout: float | None, name: str
    ) -> None:
        self.number, self.timeout, self.name = number, timeout, name
        self._lock = threading.Lock()
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (until the worker ends)
        self._late = False
        try:
            self.process = subprocess.Popen(  # noqa: S603 (the interpreter that the caller names)
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=dict(variables)
            )
        except OSError as error:
            raise RewardWorkerError(f"Worker {number} cannot be started: {error}", worker=number) from error

    def score(self, images: Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
        """Scores (B,), on the CPU."""
        with self._lock:  # calls from several threads wait for one another
            self.send({"prompts": list(prompts)}, images)
            _, (scores,) = self.answer()
        return scores

    def send(self, message: Mapping[str, Any], tensors: Iterable[Tensor] = ()) -> None:
        """Write a message."""
        if self.process.poll() is not None:
            raise self._death()
        try:
            write_message(self.process.stdin, message, list(tensors))  # type: ignore[arg-type]  # it is a pipe
        except (OSError, ValueError) as error:  # ValueError: the pipe is closed
            raise self._death() from error

    def answer(self) -> tuple[dict[str, Any], list[Tensor]]:
        """Read a message."""
        timer = None if self.timeout is None else threading.Timer(self.timeout, self._give_up)
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            found = read_message(self.process.stdout)  # type: ignore[arg-type]  # it is a pipe
        except (EOFError, OSError, ValueError):
            found = None
        finally:
            if timer is not None:
                timer.cancel()
        if found is None:
            raise self._death()
        if found[0]["kind"] == "error":
            raise RewardWorkerError(
                f"Worker {self.number}, reward {self.name!r}: {found[0]['error']}",
                worker=self.number,
                remote_traceback=found[0]["traceback"],
            )
        return found

    def end(self) -> None:
        """Let the process end, by the end of its input."""
        with suppress(OSError):  # it has died with a message half read
            self.process.stdin.close()  # type: ignore[union-attr]
        try:
            self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _give_up(self) -> None:
        self._late = True
        self.process.kill()

    def _death(self) -> RewardWorkerError:
        """What is known of a worker that is no more."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_PATIENCE)
        why = f"gave no answer in {self.timeout:g} s and was ended" if self._late else f"has died ({self._code()})"
        self._errors.seek(0)
        words = self._errors.read().decode(errors="replace").strip()[-_LAST_WORDS:]
        told = f" Its last words were:\n{words}" if words else " It said nothing."
        return RewardWorkerError(
            f"Worker {self.number}, reward {self.name!r}, {why}; its scores are missing.{told}", worker=self.number
        )

    def _code(self) -> str:
        code = self.process.returncode
        if code is None:
            return "its connection is closed"
        if code >= 0:
            return f"exit code {code}"
        known = {int(item): item.name for item in signal.Signals}
        return f"signal {known.get(-code, -code)}"


def _end_all(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.end()
