"""The host's time for a batch of images at full size, where networks return what they returned before.

Images and weights have shapes and no numbers (PyTorch's meta device), as if they were on a GPU that answers at once.
What is left is Python, tokens and positions. Operations on tensors without numbers are counted and not timed: PyTorch
derives their shapes in Python, where a GPU's kernel is started in some microseconds. The shapes are derived once and
kept, as what derives them would throw all else out of the processor's caches.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from fk_reward.benchmarks.report import Column
from fk_reward.planning.full_size_rewards import FULL_SIZE, FullSize
from fk_reward.planning.meta_device import MetaTensors, Operations, without_weights
from fk_reward.planning.planned_models import is_at_hand
from fk_reward.rewards import Reward, load_reward, reward_card
from fk_reward.rewards.vlm_judge import MarkJudge, VLMJudge

HOST_COLUMNS = (
    Column("reward", style="`{}`"),
    Column("gflops", "GFLOP an image", "{:,.1f}"),
    Column("attention_calls", "attention calls", "{:,d}"),
    Column("launches", "operations outside", "{:,d}"),
    Column("new", "host, ms, new prompts", "{:.2f}"),
    Column("one", "host, ms, one new prompt", "{:.2f}"),
    Column("known", "host, ms, known prompts", "{:.2f}"),
    Column("note"),
)


def host_row(name: str, num_images: int, side: int, *, repeats: int) -> dict[str, Any]:
    """What a batch costs at full size, and the host's time for it without the networks.

    Args:
        name: of a reward.
        num_images: square images, each with another prompt.
        side: in pixels.
        repeats: timed calls; the shortest counts.

    Returns:
        `gflops` an image; of the batch `attention_calls`, `launches` of operations outside the networks, and the host's
        milliseconds for `new` prompts, for `one` new prompt of all images, as particles have it, and for `known` ones,
        those of an earlier call. Only a `note` for what has no networks of PyTorch, or an unknown number of passes.

    Example:
        >>> host_row("shapes-verifier", 1, 64, repeats=1)
        {'reward': 'shapes-verifier', 'note': 'no network of PyTorch'}
    """
    if name in FULL_SIZE:
        row = _full_size_row(FULL_SIZE[name], num_images, side, repeats)
    elif is_at_hand(name):
        row = _row(load_reward(name), num_images, side, repeats)
    else:
        row = {"note": f"not computed: {reward_card(name).memory}"}
    return {"reward": name, **row}


@cache  # several names share one entry, such as the dimensions of LLaVA-Reward
def _full_size_row(entry: FullSize, num_images: int, side: int, repeats: int) -> dict[str, Any]:
    return _row(entry.make(), num_images, side, repeats)


def _row(reward: Reward, num_images: int, side: int, repeats: int) -> dict[str, Any]:
    if isinstance(reward, VLMJudge | MarkJudge):
        return {"note": "images go to the engine as 8-bit ones, by its processor"}
    if not list(reward._held_modules()):
        return {"note": "no network of PyTorch"}
    images = torch.empty(num_images, 3, side, side, device="meta")
    with without_weights(reward), torch.no_grad():
        counts, new, known = _timed(reward, images, _prompts, repeats)
        _, one, _ = _timed(reward, images, _one_prompt, repeats)
    counts["gflops"] /= num_images
    return counts | {"new": _shortest(new), "one": _shortest(one), "known": _shortest(known), "note": ""}


def _timed(
    reward: Reward, images: Tensor, prompts: Callable[[int, int], list[str]], repeats: int
) -> tuple[dict[str, Any], list[HostTime], list[HostTime]]:
    """Counts of a call, and the times of calls with new prompts and with known ones."""
    networks, kept = ReplayedNetworks(), KeptOperations()

    def timed(call: int) -> HostTime:
        with HostTime(kept) as host:
            networks.replay(reward.score, images, prompts(len(images), call))
        return host

    with networks:
        with Operations() as operations, MetaTensors(), CountedAttention() as attention:
            reward.score(images, prompts(len(images), 0))
        timed(1)  # warms up
        new = [timed(call + 2) for call in range(repeats)]
        known = [timed(repeats + 1) for _ in range(repeats)]
    counts = {"gflops": operations.total / 1e9, "attention_calls": attention.calls, "launches": known[0].launches}
    return counts, new, known


def _prompts(num_images: int, call: int) -> list[str]:
    """Others in each call, all of one length in any tokenizer: networks are replayed in the shapes that they had."""
    return [f"a photo of cat {call:03d} {place:03d}" for place in range(num_images)]


def _one_prompt(num_images: int, call: int) -> list[str]:
    """One for all images, another in each call, of one length with `_prompts` but none of those."""
    return [f"a photo of dog {call:03d} 000"] * num_images


def _shortest(times: Sequence[HostTime]) -> float:
    return min(1000 * one.seconds for one in times)


class _Watch:
    """Runs while the host works, and stands still while something is done that does not count."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started = 0.0

    def run(self) -> None:
        self._started = time.process_time()

    def stop(self) -> None:
        self.seconds += time.process_time() - self._started


class HostTime(TorchFunctionMode):
    """Mixes tensors of shapes and of numbers, and measures what is not an operation on tensors without numbers.

    One watch runs while the host works. It stands still in what this class itself does around each operation, and in
    operations on tensors without numbers; a function of PyTorch that turns out to have called some of these is as if it
    had taken no time. What PyTorch takes to hand a function and an operation over is measured once, and taken off.

    Args:
        kept: results of operations on tensors without numbers, of calls before this one; they are derived if missing.

    Example:
        >>> x = torch.ones(3, device="meta")
        >>> with HostTime() as host:
        ...     _ = (x + torch.arange(3)).relu()
        >>> host.launches
        2
    """

    def __init__(self, kept: KeptOperations | None = None) -> None:
        super().__init__()
        self._watch = _Watch()
        self._tensors = _CountedMetaTensors(self._watch, kept or KeptOperations())
        self._calls = 0

    @property
    def seconds(self) -> float:
        """The process's own time in the block, however busy the machine is."""
        handing_over = self._calls * _seconds_of_a_call() + self._tensors.computed * _seconds_of_an_operation()
        return self._watch.seconds - handing_over

    @property
    def measured(self) -> tuple[float, int, int]:
        """Seconds of the watch, and the calls of functions and the computed operations that they hold."""
        return self._watch.seconds, self._calls, self._tensors.computed

    @property
    def launches(self) -> int:
        """Operations on tensors without numbers: on a GPU a kernel or a view each."""
        return self._tensors.operations

    def __enter__(self) -> HostTime:
        self._tensors.__enter__()
        super().__enter__()
        self._watch.run()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._watch.stop()
        super().__exit__(kind, error, traceback)
        self._tensors.__exit__(kind, error, traceback)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._watch.stop()
        seconds, launches = self._watch.seconds, self.launches
        self._watch.run()
        result = func(*args, **(kwargs or {}))
        self._watch.stop()
        if self.launches > launches:
            self._watch.seconds = seconds
        self._calls += 1
        if func is functional.interpolate:  # one kernel on a GPU, a hundred operations without numbers
            self._tensors.operations = min(self.launches, launches + 1)
        self._watch.run()
        return result


@cache
def _seconds_of_a_call() -> float:
    """What the watch shows of a function that does nothing but an operation on a tensor without numbers."""
    tensor, found = torch.empty(1, device="meta"), []
    for _ in range(5):
        with HostTime() as host:
            for _ in range(200):
                tensor.neg()
        seconds, calls, _ = host.measured
        found.append(seconds / calls)
    return min(found)


@cache
def _seconds_of_an_operation() -> float:
    """By how much the watch exaggerates an operation on a tensor with numbers, beside what a function takes."""
    tensor, number, alone, watched = torch.ones(1), 50, [], []
    for _ in range(40):  # the shortest of many: of a busy machine rather too little is taken off than too much
        started = time.process_time()
        for _ in range(number):
            tensor.neg()
        alone.append(time.process_time() - started)
        with HostTime() as host:
            for _ in range(number):
                tensor.neg()
        seconds, calls, _ = host.measured
        watched.append(seconds - calls * _seconds_of_a_call())
    return max(min(watched) - min(alone), 0.0) / number


class KeptOperations:
    """What operations returned, in their order: a later call that makes the same ones gets the same results.

    Example:
        >>> kept = KeptOperations()
        >>> for x in (1, 2):
        ...     kept.begin()
        ...     print(kept.result("double", lambda: 2 * x))
        2
        2
    """

    def __init__(self) -> None:
        self._results: list[tuple[Any, Any]] = []
        self._next = 0

    def begin(self) -> None:
        """A call begins."""
        self._next = 0

    def result(self, key: Any, make: Callable[[], Any]) -> Any:
        """That of the next operation, as it was, or made anew from where this call is another one.

        Args:
            key: what the shape of the result depends on.
            make: does it.
        """
        place = self._next
        self._next += 1
        if place >= len(self._results) or self._results[place][0] != key:
            self._results[place:] = [(key, make())]
        return tree_map_only(Tensor, _shaped_alike, self._results[place][1])


def _shaped_alike(tensor: Tensor) -> Tensor:
    """Another one: PyTorch makes a view of what an operation returns only once."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)


class _CountedMetaTensors(MetaTensors):
    """Counts operations on tensors without numbers, and lets a watch run in the others alone."""

    def __init__(self, watch: _Watch, kept: KeptOperations) -> None:
        super().__init__()
        self.operations = self.computed = 0
        self._watch, self._kept = watch, kept
        kept.begin()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self._watch.stop()
        leaves = tree_leaves((args, kwargs))
        without_numbers = any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in leaves)
        self.operations += without_numbers
        self.computed += not without_numbers
        do = super().__torch_dispatch__
        try:
            if not without_numbers:
                return do(self._watched(func), types, args, kwargs)
            key = (func, *(leaf.shape if isinstance(leaf, Tensor) else leaf for leaf in leaves))
            return self._kept.result(key, lambda: do(func, types, args, kwargs))
        finally:
            self._watch.run()

    def _watched(self, func: Any) -> Any:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self._watch.run()
            try:
                return func(*args, **kwargs)
            finally:
                self._watch.stop()

        return watched


class CountedAttention(TorchFunctionMode):
    """Counts calls of `scaled_dot_product_attention`.

    Example:
        >>> q = torch.empty(1, 2, 5, 8)
        >>> with CountedAttention() as attention:
        ...     _ = functional.scaled_dot_product_attention(q, q, q)
        >>> attention.calls
        1
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += func is functional.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


class ReplayedNetworks:
    """In a `with` block, remembers what each network returns; in a replay, returns it without running the network.

    A network is a module that no other one has called; modules of this package hold networks, and are run.

    Example:
        >>> network = nn.Linear(2, 2)
        >>> with ReplayedNetworks() as networks:
        ...     first = network(torch.ones(2))
        ...     again = networks.replay(network, torch.zeros(2))
        >>> again is first
        True
    """

    def __init__(self) -> None:
        self._outputs: dict[nn.Module, list[Any]] = defaultdict(list)
        self._replayed: dict[nn.Module, Iterator[Any]] | None = None
        self._depth = 0

    def __enter__(self) -> ReplayedNetworks:
        self._own = nn.Module.__call__
        networks = self

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return networks._call(module, *args, **kwargs)

        nn.Module.__call__ = call  # type: ignore[method-assign]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        nn.Module.__call__ = self._own  # type: ignore[method-assign]

    def replay(self, work: Callable[..., Any], *args: Any) -> Any:
        """Do work in which each network is called at most as often as it was in all remembered calls together.

        Raises:
            LookupError: for a network that is called more often.
        """
        self._replayed = {network: iter(outputs) for network, outputs in self._outputs.items()}
        try:
            return work(*args)
        finally:
            self._replayed = None

    def _call(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self._depth or type(module).__module__.startswith("fk_reward."):
            return self._own(module, *args, **kwargs)
        if self._replayed is not None:
            try:
                return next(self._replayed[module])
            except (KeyError, StopIteration):
                raise LookupError(f"{type(module).__name__} is called more often than before.") from None
        self._depth += 1
        try:
            output = self._own(module, *args, **kwargs)
        finally:
            self._depth -= 1
        self._outputs[module].append(output)
        return output
