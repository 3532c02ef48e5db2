"""`fk-reward ui`: a page in the browser."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from fk_reward.cli.options import OUTPUT, ModelOption, PlacementOptions, RewardOption
from fk_reward.models import DEFAULT_EMBEDDED_REWARD
from fk_reward.terminal import say
from fk_reward.value_checks import whole_number


def ui(
    *,
    model: ModelOption = "shapes-sd",
    reward: RewardOption = DEFAULT_EMBEDDED_REWARD,
    placement: PlacementOptions,
    port: Annotated[int | None, Parameter(group=OUTPUT)] = None,
    open_browser: Annotated[bool, Parameter(name="--open", group=OUTPUT)] = False,
) -> None:
    """Open a page on this machine: a prompt, a search, its particles as they are scored, and what came of it.

    The page is served to this machine alone, and sends nothing anywhere. Needs pip install 'fk-reward[ui]'.

    Args:
        model: Text-to-image model that the form begins with.
        reward: Reward that the form begins with.
        placement: device and floating type.
        port: Port of the page; the first free one from 7860 if not given.
        open_browser: Show it in the browser.
    """
    if port is not None:
        whole_number("--port", port, minimum=1, maximum=65535)
    from fk_reward.ui.page import Defaults, build_page, import_gradio, launch
    from fk_reward.ui.studio import Studio

    import_gradio()
    page = build_page(Studio(device=placement.device, dtype=placement.dtype), Defaults(model=model, reward=reward))
    address = launch(page, port=port, open_browser=open_browser, block=False)
    say(f"The page is at {address} (Ctrl+C ends it).")
    page.block_thread()
