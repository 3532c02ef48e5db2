"""The options of commands and benchmarks that are settings of the sampler: what each says and shows as its default.

The default itself stands at each command: None where a preset may fill it in, else that of `FKSteeringConfig`, which is
not imported here, since `--help` should not wait for PyTorch; a test compares the two.
"""

from __future__ import annotations

from typing import Any

import typer


def _option(text: str, default: str) -> Any:
    return typer.Option(help=text, show_default=default)


POTENTIAL = _option("max, difference, sum or immediate.", "max")
REWARD_SCALE = _option("Lambda, or auto.", "10")
RESAMPLE_START = _option("First scoring step, as a fraction of the trajectory.", "0.2")
RESAMPLE_STOP = _option("Last scoring step, as a fraction of the trajectory.", "0.8")
NUM_RESAMPLES = _option("Scoring steps before the end; 0: plain best of K.", "4")
ESS_THRESHOLD = _option("Resample below this fraction of K; 1: always.", "0.5")
RESAMPLING = _option("systematic, stratified, residual, multinomial or ssp.", "systematic")
SELECTION = _option("best, or sample (by weight).", "best")
TARGET_ESS = _option("With lambda auto: the ESS aimed at, as a fraction of K.", "0.5")
FINAL_PARTICLES = _option("How many of the K are finished.", "all")
STOP_REWARD = _option("A reward that ends the scoring of a prompt.", "none")
