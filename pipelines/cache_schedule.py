"""Caching schedules: which parts of a denoiser are computed at which step, in memory and as JSON files of ECAD.

ECAD (Aggarwal, Shrivastava & Gwilliam 2025, arXiv 2506.15682, section 3.1) writes a schedule as a binary tensor of
steps, blocks and components: true where a component is computed, false where what it returned last is taken instead.
Their files (`schedules/schedules_in_paper` of github.com/aniaggarwal/ecad) are read and written here; those of UNets,
which they do not treat, have the same form with other names of blocks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from fk_reward.durable_files import read_json, write_whole
from fk_reward.value_checks import whole_number

Component: TypeAlias = tuple[str, str]
"""Block and component: `("0", "attn1")`, `("single_3", "single_proj_out")`, `("down_blocks.0.resnets.1", "resnet")`."""

SINGLE = "single_"
"""How the names of Flux's blocks with one stream begin, which ECAD counts by themselves."""

_REMEDY = "Take a schedule that fk-reward cache evolve or ECAD has written."


@dataclass(frozen=True, kw_only=True)
class CacheSchedule:
    """Which components of a denoiser are computed at which step.

    Attributes:
        components: C pairs of block and component, in the model's order.
        steps: T rows of C values: True to compute the component, False to take what it returned last. A component that
            has returned nothing yet is computed whatever its value.
        name: of the schedule.
        metrics: what was measured with it, such as its operations.
        attributes: ECAD's counts; kept as they are.
        config: what ECAD's files say about the model (resolution, guidance); kept and not read.

    Raises:
        ValueError: for no step, no component, a component that stands twice, or rows of another length.
        TypeError: for a value that is neither True nor False.

    Example:
        >>> schedule = CacheSchedule.every([("0", "attn1"), ("0", "ff")], num_steps=4, interval=2)
        >>> schedule.steps
        ((True, True), (False, False), (True, True), (False, False))
        >>> schedule.share
        0.5
    """

    components: tuple[Component, ...]
    steps: tuple[tuple[bool, ...], ...]
    name: str = "schedule"
    metrics: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what is no table."""
        if not self.components or not self.steps:
            raise ValueError("A schedule should have at least one step and one component.")
        if len(set(self.components)) < len(self.components):
            raise ValueError("A schedule should name each component once.")
        for step, row in enumerate(self.steps):
            if len(row) != len(self.components):
                raise ValueError(f"Step {step} should have {len(self.components)} values, got {len(row)}.")
            if wrong := [value for value in row if not isinstance(value, bool)]:
                raise TypeError(f"Values of a schedule should be True or False, got {wrong[0]!r} at step {step}.")

    @classmethod
    def every(
        cls,
        components: Iterable[Component],
        *,
        num_steps: int,
        interval: int,
        first: int = 0,
        only: Iterable[str] | None = None,
    ) -> CacheSchedule:
        """Compute at every `interval`-th step, as FORA does (Selvaraju et al. 2024, arXiv 2407.01425).

        Args:
            components: of the model (`cache_components`).
            num_steps: T.
            interval: 1 to compute at every step.
            first: step before which everything is computed, and from which on the interval counts.
            only: names of the components that are cached; the others are computed at every step. None for all.

        Example:
            >>> CacheSchedule.every([("0", "attn1"), ("0", "ff")], num_steps=3, interval=2, only=["ff"]).steps
            ((True, True), (True, False), (True, True))
        """
        components = tuple(components)
        whole_number("interval", interval, minimum=1)
        whole_number("num_steps", num_steps, minimum=1)
        cached = {name for _, name in components} if only is None else set(only)

        def computed(step: int, component: Component) -> bool:
            return step <= first or (step - first) % interval == 0 or component[1] not in cached

        steps = tuple(tuple(computed(step, one) for one in components) for step in range(num_steps))
        of_some = "" if only is None else "-" + "-".join(sorted(cached))
        from_step = f"-from-{first}" if first else ""
        return cls(components=components, steps=steps, name=f"every-{interval}{of_some}{from_step}")

    @property
    def num_steps(self) -> int:
        """T, the steps of the scheduler that it is for."""
        return len(self.steps)

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the blocks, in the model's order."""
        return tuple(dict.fromkeys(block for block, _ in self.components))

    @property
    def share(self) -> float:
        """Share of the table that is computed, in (0, 1]; operations weigh components by their cost."""
        return sum(map(sum, self.steps)) / (self.num_steps * len(self.components))

    def computed(self) -> CacheSchedule:
        """The same with True where nothing can be taken yet: at the first step."""
        first = (True,) * len(self.components)
        return self.replace(steps=(first, *self.steps[1:]))

    def replace(self, **changes: Any) -> CacheSchedule:
        """The same with other fields."""
        return CacheSchedule(**{**vars(self), **changes})

    def to_dict(self) -> dict[str, Any]:
        """As ECAD's JSON has it.

        Example:
            >>> schedule = CacheSchedule(components=(("0", "ff"),), steps=((True,), (False,)))
            >>> schedule.to_dict()["cache_schedule"]["schedule"]["001"]
            {'0': {'ff': False}}
        """
        blocks = self.blocks
        num_single = sum(block.startswith(SINGLE) for block in blocks)
        single = {"num_single_blocks": num_single} if num_single else {}
        schedule = {
            "num_blocks": len(blocks) - num_single,
            "num_inference_steps": self.num_steps,
            "name": self.name,
            "attributes": dict(self.attributes),
            "schedule": {f"{step:03}": self._row(row) for step, row in enumerate(self.steps)},
            **single,
        }
        return {"cache_schedule": schedule, "config": dict(self.config), "metrics": dict(self.metrics)}

    def _row(self, row: Sequence[bool]) -> dict[str, dict[str, bool]]:
        made: dict[str, dict[str, bool]] = {block: {} for block in self.blocks}
        for (block, component), value in zip(self.components, row, strict=True):
            made[block][component] = value
        return made

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CacheSchedule:
        """Read what `to_dict` makes, or ECAD.

        Raises:
            ValueError: for another form, steps that are missing, or blocks that differ from step to step.
        """
        inner = data.get("cache_schedule")
        if not isinstance(inner, Mapping) or not isinstance(inner.get("schedule"), Mapping):
            raise ValueError('A schedule should hold {"cache_schedule": {"schedule": {"000": {block: {component: ...')
        table = _numbered_steps(inner)
        components = _components_of(table[0])
        return cls(
            components=components,
            steps=tuple(_values(row, components, step) for step, row in enumerate(table)),
            name=str(inner.get("name", "schedule")),
            attributes=dict(inner.get("attributes") or {}),
            metrics=dict(data.get("metrics") or {}),
            config=dict(data.get("config") or {}),
        )

    def save(self, path: str | Path) -> Path:
        """Write the JSON file."""
        return write_whole(path, json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> CacheSchedule:
        """Read a JSON file.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or no schedule; the message names it.
        """
        data = read_json(path, remedy=_REMEDY)
        try:
            return cls.from_dict(data)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error} {_REMEDY}") from error


def _numbered_steps(inner: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    numbered = {int(step): row for step, row in inner["schedule"].items()}
    number = inner.get("num_inference_steps", len(numbered))
    if sorted(numbered) != list(range(number)) or not numbered:
        raise ValueError(f"A schedule of {number} steps should have the steps 0 to {number - 1}, each once.")
    return [numbered[step] for step in range(number)]


def _components_of(row: Mapping[str, Any]) -> tuple[Component, ...]:
    for block, parts in row.items():
        if custom := [name for name in parts if name.startswith("custom_")]:
            raise ValueError(f"Block {block} asks for {custom[0]!r}, a function of ECAD's code that is not known here.")
    return tuple((block, name) for block, parts in row.items() for name in parts)


def _values(row: Mapping[str, Any], components: Sequence[Component], step: int) -> tuple[bool, ...]:
    if set(_components_of(row)) != set(components):
        raise ValueError(f"Step {step} names other blocks or components than step 0.")
    return tuple(row[block][name] for block, name in components)
