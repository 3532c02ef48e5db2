"""`fk-reward doctor`: probes of a reward before its scores are trusted."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from fk_reward.cli.options import MODEL, OUTPUT, REWARD, DeviceOption
from fk_reward.devices import resolve_device
from fk_reward.terminal import TextTable, say, styled, write_document
from fk_reward.text import did_you_mean
from fk_reward.value_checks import whole_number

if TYPE_CHECKING:
    from fk_reward.rewards import Reward
    from fk_reward.rewards.doctor import Diagnosis, Probe, Specimens

_STYLES = {"pass": "green", "fail": "bold red", "not applicable": "dim"}


def doctor(  # noqa: PLR0913 (options of a command)
    reward: str,
    /,
    *,
    backbone: Annotated[str | None, Parameter(group=REWARD)] = None,
    adapter: Annotated[str | None, Parameter(group=REWARD)] = None,
    dimension: Annotated[str | None, Parameter(group=REWARD)] = None,
    option: Annotated[list[str] | None, Parameter(group=REWARD)] = None,
    image: list[Path] | None = None,
    prompt: Annotated[list[str] | None, Parameter(alias="-p")] = None,
    worse: list[Path] | None = None,
    size: int | None = None,
    probe: list[str] | None = None,
    device: DeviceOption = "auto",
    dtype: Annotated[str, Parameter(group=MODEL)] = "auto",
    as_json: Annotated[bool, Parameter(name="--json", group=OUTPUT)] = False,
) -> None:
    """Load a reward and probe whether its scores mean anything; exit code 1 where a probe fails.

    Args:
        reward: Reward of `fk-reward rewards`, or a composition of them.
        backbone: Hub id or folder of the backbone of a LLaVA-Reward.
        adapter: Hub id or folder of its adapter.
        dimension: Which dimension of the adapter: alignment, fidelity, safety, overall.
        option: Further option of the reward, as NAME=VALUE (num_crops=4); may be repeated.
        image: Image file in place of the drawn ones, at least two; may be repeated, all of one size.
        prompt: Prompt of each image, in their order; no prompt may be true of another image.
        worse: For each image one that deserves a lower score for its prompt.
        size: Side of the drawn images in pixels; 64 for rewards of the shapes world, 512 for others, if not given.
        probe: Probe to run; may be repeated. All of them if none is given.
        device: Device of the reward: auto (the GPU where there is one), cpu or cuda.
        dtype: Floating type of its weights: auto (the reward's own), float32, float16 or bfloat16.
        as_json: Write JSON in place of a table.
    """
    probes = _named(probe or [])
    specimens = _specimens(image or [], prompt or [], worse or [], size)
    given = {"backbone": backbone, "adapter": adapter, "dimension": dimension}
    options = {name: value for name, value in given.items() if value is not None} | _options(option or [])
    diagnosis = _examined(reward, options, device=device, dtype=dtype, specimens=specimens, probes=probes)
    if as_json:
        write_document(json.dumps(diagnosis.to_dict(), indent=2, allow_nan=False))
    else:
        _show(diagnosis)
    if not diagnosis.is_healthy:
        raise SystemExit(1)


def _examined(name: str, options: dict[str, Any], *, device: str, dtype: str, **settings: Any) -> Diagnosis:
    from fk_reward.rewards.doctor import examine

    return examine(_loaded(name, options, device=device, dtype=dtype), **settings)


def _loaded(name: str, options: dict[str, Any], *, device: str, dtype: str) -> Reward:
    from fk_reward.devices import resolve_dtype
    from fk_reward.rewards import load_reward

    place = resolve_device(device)
    try:
        loaded = load_reward(name, **options)
    except TypeError as error:  # an option that the reward does not have
        raise ValueError(str(error)) from error
    return loaded.to(place) if dtype == "auto" else loaded.to(place, resolve_dtype(dtype, place))


def _options(typed: Sequence[str]) -> dict[str, Any]:
    """What was typed as NAME=VALUE; a value that is no Python literal is text."""
    options = {}
    for text in typed:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--option should be NAME=VALUE, such as num_crops=4, got {text!r}.")
        try:
            options[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            options[name] = value
    return options


def _named(names: Sequence[str]) -> dict[str, Probe] | None:
    from fk_reward.rewards.doctor import PROBES

    for name in names:
        if name not in PROBES:
            raise ValueError(f"Unknown probe {name!r}.{did_you_mean(name, PROBES)} Known probes: {', '.join(PROBES)}.")
    return {name: PROBES[name] for name in names} or None


def _specimens(
    images: Sequence[Path], prompts: Sequence[str], worse: Sequence[Path], size: int | None
) -> Specimens | None:
    from fk_reward.image_files import read_image
    from fk_reward.rewards.doctor import Specimens, drawn_specimens

    if images:
        if size is not None:
            raise ValueError("--size is for drawn images: leave it out with --image.")
        opened = [[read_image(path) for path in paths] for paths in (images, worse)]
        return Specimens.of(opened[0], list(prompts), worse=opened[1] or None)
    if prompts or worse:
        raise ValueError("--prompt and --worse go with --image.")
    return None if size is None else drawn_specimens(whole_number("--size", size, minimum=16))


def _show(diagnosis: Diagnosis) -> None:
    table = TextTable(f"Doctor: {diagnosis.reward}", show_lines=True)
    for heading in ("probe", "outcome", "what was observed, and what to do"):
        table.add_column(heading, no_wrap=heading != "what was observed, and what to do")
    for name, finding in diagnosis.findings.items():
        outcome = finding.outcome.value
        text = f"{finding.observed}\n{finding.remedy}" if finding.remedy else finding.observed
        table.add_row(name, styled((outcome, _STYLES[outcome])), text)
    table.print()
    failures = diagnosis.failures
    say(f"Failed: {', '.join(failures)}." if failures else "No probe failed.")
