"""Steered calls in two processes, of which rank 1 does something wrong; each writes what it met with."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from accelerate import PartialState

from fk_reward.pipelines import particle_share
from fk_reward.sampling.process_link import Patience, ProcessLink
from tests.pipelines import spread_call


def fail(*args, **kwargs):
    raise MemoryError("of rank 1")


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def spoil(pipe, kind):
    """What rank 1 does in place of the call that rank 0 makes; returns arguments that differ."""
    if kind == "prompts":
        return {"prompt": ["a red circle", "two blue triangles"]}
    if kind == "decoder":
        pipe.vae.decode = fail
    elif kind in ("denoiser", "killed"):
        pipe.unet.forward = fail if kind == "denoiser" else die
    elif kind == "callback":
        return {"callback_on_step_end": fail}
    return {}


def main(out: str, *kinds: str) -> None:
    state = PartialState(cpu=True)
    impatient = Patience(notice=0.5, silence=3.0, total=60.0, beat=0.5, parting=2.0)
    particle_share.ProcessLink = lambda *places: ProcessLink(*places, patience=impatient)
    for kind in kinds:
        pipe = spread_call.make()
        arguments = spoil(pipe, kind) if state.process_index else {}
        if kind == "callback" and not state.process_index:
            arguments = {"callback_on_step_end": lambda pipe, step, timestep, tensors: tensors}
        started = time.monotonic()
        try:
            spread_call.call(pipe, **arguments)
            error = "nothing"
        except Exception as caught:  # noqa: BLE001 (it is what the test wants to know)
            error = f"{type(caught).__name__}: {caught}"
        Path(out, f"{kind}-{state.process_index}.txt").write_text(f"{time.monotonic() - started:.1f} {error}")
    os._exit(0)  # the process group of a rank that was killed cannot be closed


if __name__ == "__main__":
    main(*sys.argv[1:])
