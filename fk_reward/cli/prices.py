"""`fk-reward prices`: what a sample step, a decoded image and a scored image cost in models of full size."""

from __future__ import annotations

import json
from typing import Annotated

from cyclopts import Parameter

from fk_reward.cli.options import OUTPUT
from fk_reward.terminal import say, write_document


def prices(
    *,
    count: Annotated[bool, Parameter(group=OUTPUT)] = False,
    as_json: Annotated[bool, Parameter(name="--json", group=OUTPUT)] = False,
) -> None:
    """Print the price lists in which searches are compared: operations of SDXL, FLUX.1-dev and the rewards.

    Args:
        count: Count anew on the meta device, which takes minutes, instead of printing the counts of the package.
        as_json: Write JSON.
    """
    from fk_reward.planning.prices import BACKWARD, PRICES, count_prices

    lists = {name: one for name, one in PRICES.items() if one.rewards is not None}
    if count:
        lists = {name: count_prices(name) for name in lists}
    if as_json:
        write_document(json.dumps({name: vars(one) for name, one in lists.items()}, indent=2))
        return
    from fk_reward.benchmarks.report import Column, show_table

    names = ["sample_step", "decode", "preview", *(PRICES["sdxl"].rewards or {})]
    columns = [Column("what", "one image")]
    for name in lists:
        columns += [Column(name, f"{name}, TFLOP", "{:.3g}"), Column(f"{name} steps", "in steps", "{:.3f}")]
    rows = []
    for what in names:
        row: dict[str, object] = {"what": what.replace("_", " ")}
        for name, one in lists.items():
            price = (one.rewards or {}).get(what, getattr(one, what, 0.0))
            row |= {name: price, f"{name} steps": price / one.sample_step}
        rows.append(row)
    show_table("Prices of images of 1024 x 1024 pixels", columns, rows)
    say("A sample step of SDXL has guidance (two rows), one of FLUX.1-dev has not. In sample steps all else is free.")
    say(
        "Where a search takes the gradient of the reward (fk-gradient), decoding and scoring have a backward pass of "
        f"{BACKWARD:g} x their price on top."
    )
