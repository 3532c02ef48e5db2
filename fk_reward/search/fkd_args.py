"""Settings of the public FK-steering code, translated."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)

_POTENTIALS = {"diff": "difference", "max": "max", "add": "sum", "rt": "immediate"}
_REQUIRED = ("num_particles", "lmbda", "time_steps", "resampling_t_start", "resampling_t_end", "resample_frequency")
_OPTIONAL = ("potential_type", "adaptive_resampling", "use_smc")
_ELSEWHERE = {
    "guidance_reward_fn": 'the reward is an argument of the pipeline: reward="imagereward"',
    "metric_to_chase": "the reward is an argument of the pipeline",
    "reward_fn": "the reward is an argument of the pipeline",
    "latent_to_decode_fn": "FKSteeringPipeline(pipe, preview=...)",
    "device": "the pipeline's device is used",
    "reward_min_value": "there is no lowest reward: weights are kept in the log domain",
}


def convert_fkd_args(fkd_args: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `FKSteeringConfig` for an `fkd_args` dictionary of the public FK-steering code.

    Two differences remain, on purpose. That code resamples after the scheduler's move and once more at the last step;
    here particles are resampled before the move, and the last step is the terminal correction with the selection of
    the images. And its adaptive mode drops the weights of the steps that do not resample, which here are kept.

    Args:
        fkd_args: `num_particles`, `lmbda`, `time_steps`, `resampling_t_start`, `resampling_t_end`,
            `resample_frequency`, and optionally `potential_type` (`"diff"`, `"max"`, `"add"`, `"rt"`; that code's
            scripts default to `"diff"`), `adaptive_resampling` and `use_smc`. What that code keeps here and this one
            elsewhere (`guidance_reward_fn`, `latent_to_decode_fn`, ...) is left out, with a warning that says where it
            belongs.

    Raises:
        ValueError: for a missing setting, an unknown potential, or an empty interval.
        TypeError: for an unknown setting.

    Example:
        >>> args = dict(num_particles=4, lmbda=10.0, time_steps=100, resampling_t_start=20, resampling_t_end=80,
        ...             resample_frequency=20, potential_type="max", adaptive_resampling=False)
        >>> fields = convert_fkd_args(args)
        >>> fields["resample_start"], fields["resample_stop"], fields["num_resamples"], fields["ess_threshold"]
        (0.2, 0.8, 4, 1.0)
    """
    _check_names(fkd_args)
    potential = fkd_args.get("potential_type", "diff")
    if potential not in _POTENTIALS:
        raise ValueError(f"potential_type should be one of {list(_POTENTIALS)}, got {potential!r}.")
    num_steps, start, stop = (int(fkd_args[k]) for k in ("time_steps", "resampling_t_start", "resampling_t_end"))
    frequency = int(fkd_args["resample_frequency"])
    if not (0 <= start <= stop < num_steps) or frequency < 1:
        raise ValueError(
            "fkd_args should have 0 <= resampling_t_start <= resampling_t_end < time_steps and "
            f"resample_frequency >= 1, got {start}, {stop}, {num_steps} and {frequency}."
        )
    steps = range(start, stop + 1, frequency)
    return {
        "num_particles": int(fkd_args["num_particles"]),
        "potential": _POTENTIALS[potential],
        "reward_weight": "constant",
        "reward_scale": float(fkd_args["lmbda"]),
        "resample_start": start / num_steps,
        "resample_stop": steps[-1] / num_steps,
        "num_resamples": len(steps) if fkd_args.get("use_smc", True) else 0,
        "ess_threshold": 0.5 if fkd_args.get("adaptive_resampling", True) else 1.0,
        "resampling": "multinomial",
    }


def _check_names(fkd_args: Mapping[str, Any]) -> None:
    for name in fkd_args:
        if name in _ELSEWHERE and fkd_args[name] is not None:
            logger.warning("fkd_args[%r] is left out, it is no setting of the sampler: %s.", name, _ELSEWHERE[name])
        if name not in (*_REQUIRED, *_OPTIONAL, *_ELSEWHERE):
            raise TypeError(f"Unknown fkd_args setting {name!r}; known are {[*_REQUIRED, *_OPTIONAL]}.")
    missing = [name for name in _REQUIRED if name not in fkd_args]
    if missing:
        raise ValueError(f"fkd_args should have {list(_REQUIRED)}; missing: {missing}.")
