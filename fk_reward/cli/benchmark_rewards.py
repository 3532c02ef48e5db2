"""`fk-reward benchmark rewards`: what rewards cost, counted at full size and timed on this device."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from cyclopts import Parameter

from fk_reward.cli.options import OUTPUT, DeviceOption
from fk_reward.devices import resolve_device
from fk_reward.terminal import say, write_document
from fk_reward.value_checks import parse_integers, whole_number


def benchmark_rewards(  # noqa: PLR0913 (options of a command)
    *,
    reward: Annotated[list[str] | None, Parameter(alias="-r")] = None,
    full_size: bool = False,
    measure: bool = False,
    batch_size: str = "1,8",
    side: int = 1024,
    num_repetitions: int = 5,
    seed: int = 0,
    device: DeviceOption = "auto",
    markdown: Annotated[bool, Parameter(group=OUTPUT)] = False,
    as_json: Annotated[bool, Parameter(name="--json", group=OUTPUT)] = False,
) -> None:
    """Count what rewards cost, time what the host does beside their networks, and time whole calls on this device.

    Nothing is downloaded: rewards whose weights do not come with the package are counted on tensors without numbers,
    and timed with random weights of their size, which take as long as real ones.

    Args:
        reward: Name of a reward; may be repeated. Those that come with the package if none is given.
        full_size: All rewards; those of other weights are timed on a GPU, with random ones.
        measure: Time rewards with random weights on a CPU, too, which takes minutes a call.
        batch_size: Images in a call, separated by commas; the host's work is that of the largest.
        side: Height and width of the images in pixels; 64 for rewards of the shapes world.
        num_repetitions: Timed calls, at least 2.
        seed: Seed of random weights.
        device: Device of the timed calls: auto (the GPU where there is one), cpu or cuda.
        markdown: Write Markdown.
        as_json: Write JSON.
    """
    if markdown and as_json:
        raise ValueError("Choose one of --markdown and --json.")
    whole_number("--num-repetitions", num_repetitions, minimum=2)
    whole_number("--side", side, minimum=28)
    sizes = parse_integers("batch_size", batch_size)
    place = resolve_device(device)
    names = _names(reward, full_size=full_size)
    from fk_reward.benchmarks.rewards.costs import TimeSettings, time_rows

    counted = list(_counted(names, max(sizes), side, repeats=num_repetitions))
    settings = TimeSettings(
        batch_sizes=sizes,
        full_size=measure or place.startswith("cuda"),
        num_repetitions=num_repetitions,
        device=place,
        seed=seed,
        side=side,
    )
    _write(counted, list(time_rows(names, settings)), settings, markdown=markdown, as_json=as_json)


def _names(typed: Sequence[str] | None, *, full_size: bool) -> list[str]:
    from fk_reward.planning.planned_models import is_at_hand
    from fk_reward.rewards import REWARDS, reward_card

    for name in typed or ():
        reward_card(name)  # an unknown name is told with the known ones
    return list(typed or [name for name in REWARDS if full_size or is_at_hand(name)])


def _counted(names: Sequence[str], num_images: int, side: int, *, repeats: int) -> Iterator[dict[str, Any]]:
    """Sizes, operations and the host's time of each reward."""
    from fk_reward.benchmarks.rewards.costs import cost_row, image_size
    from fk_reward.benchmarks.rewards.host_time import host_row

    for name in names:
        host = host_row(name, num_images, image_size(name, side), repeats=repeats)
        yield cost_row(name, flops=False) | {key: value for key, value in host.items() if value != ""}


def _write(
    counted: list[dict[str, Any]], timed: list[dict[str, Any]], settings: Any, *, markdown: bool, as_json: bool
) -> None:
    from fk_reward.benchmarks.report import markdown_table, show_table
    from fk_reward.benchmarks.rewards.costs import COST_COLUMNS, TIME_COLUMNS
    from fk_reward.benchmarks.rewards.host_time import HOST_COLUMNS

    sizes = [column for column in COST_COLUMNS if column.key not in ("gflops", "note")]
    columns = [*sizes, *(column for column in HOST_COLUMNS if column.key != "reward")]
    if as_json:
        about = {"device": settings.device, "side": settings.side, "batch_sizes": settings.batch_sizes}
        write_document(json.dumps({"settings": about, "counted": counted, "timed": timed}, indent=2, allow_nan=False))
    elif markdown:
        tables = [markdown_table(columns, counted)] + ([markdown_table(TIME_COLUMNS, timed)] if timed else [])
        write_document("\n\n".join(tables) + "\n")
    else:
        show_table(f"Counted, {max(settings.batch_sizes)} images of {settings.side} pixels", columns, counted)
        if timed:
            show_table(f"Timed on {settings.device}", TIME_COLUMNS, timed)
        say("Operations outside and the host's milliseconds are those of a batch, without the networks.")
