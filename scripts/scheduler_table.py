"""How well each scheduler keeps a model's distribution: `docs/schedulers.md` is written by this script.

The model is exact: the denoiser of a mixture of two Gaussians in one dimension, modes at -2 and 2, standard deviation
0.3. It is asked as a network is, by the timestep alone. What is left of a scheduler's error is its own: the spread
within a mode, against 0.3, and the share of samples in the upper mode, against one half.

    python scripts/scheduler_table.py            # writes the table
    python scripts/scheduler_table.py --check    # says whether it is up to date
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMDPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    KDPM2AncestralDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
)
from torch import Tensor

from fk_reward.sampling.flow_match_glass import FlowMatchGLASSScheduler
from fk_reward.sampling.flow_match_sde import FlowMatchSDEScheduler
from fk_reward.sampling.step_checks import bounded_variance

PAGE = Path(__file__).resolve().parent.parent / "docs" / "schedulers.md"
MODE, SPREAD = 2.0, 0.3
NUM_STEPS = (20, 50, 200)
NUM_SAMPLES = 100_000

EPSILON, V, SAMPLE, FLOW = "epsilon", "v_prediction", "sample", "flow_prediction"
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}  # Stable Diffusion's
_SDE = {"algorithm_type": "sde-dpmsolver++"}
_ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@dataclass(frozen=True)
class Row:
    """A scheduler with its settings.

    Attributes:
        scheduler: its class.
        config: settings that the table names.
        kinds: prediction types; None where the scheduler has only one.
        base: settings that go without saying.
        step: arguments of its step.
        timesteps: arguments of `set_timesteps`, besides the number of steps.
    """

    scheduler: type[Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    kinds: tuple[str | None, ...] = (EPSILON,)
    base: Mapping[str, Any] = field(default_factory=dict)
    step: Mapping[str, Any] = field(default_factory=dict)
    timesteps: Mapping[str, Any] = field(default_factory=dict)

    def build(self, kind: str | None) -> Any:
        """A fresh scheduler."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "sde-dpmsolver" is deprecated
            return self.scheduler(**self.base, **self.config, **({"prediction_type": kind} if kind else {}))

    def settings(self) -> str:
        """What the table says of it."""
        named = {**self.config, **self.step, **self.timesteps}
        return ", ".join(f"`{name}={value!r}`".replace("'", '"') for name, value in named.items())


_ALL = (EPSILON, V, SAMPLE)
_CLEAN = {**_BETAS, "clip_sample": False}
_DDIM = {**_CLEAN, "set_alpha_to_one": False, "steps_offset": 1}
_DPM = {**_BETAS, **_SDE}
ACCEPTED = (
    Row(DDIMScheduler, kinds=_ALL, base=_DDIM, step={"eta": 1.0}),
    Row(DDIMScheduler, base=_DDIM, step={"eta": 0.5}),
    Row(DDIMScheduler, {"timestep_spacing": "trailing"}, base=_CLEAN, step={"eta": 1.0}),
    Row(DDIMScheduler, _ZERO_SNR, kinds=(V,), base=_CLEAN, step={"eta": 1.0}),
    Row(DDPMScheduler, kinds=_ALL, base=_CLEAN),
    Row(DDPMScheduler, {"variance_type": "fixed_small_log"}, base=_CLEAN),
    Row(DDPMScheduler, {"variance_type": "fixed_large"}, base=_CLEAN),
    Row(DDPMScheduler, _ZERO_SNR, kinds=(V,), base=_CLEAN),
    Row(EulerAncestralDiscreteScheduler, kinds=(EPSILON, V), base=_BETAS),
    Row(EulerAncestralDiscreteScheduler, _ZERO_SNR, kinds=(V,), base=_BETAS),
    Row(KDPM2AncestralDiscreteScheduler, kinds=(EPSILON, V), base=_BETAS),
    Row(DPMSolverMultistepScheduler, kinds=_ALL, base=_DPM),
    Row(DPMSolverMultistepScheduler, {"use_karras_sigmas": True}, kinds=_ALL, base=_DPM),
    Row(DPMSolverMultistepScheduler, {"use_exponential_sigmas": True}, base=_DPM),
    Row(DPMSolverMultistepScheduler, {"use_lu_lambdas": True}, base=_DPM),
    Row(DPMSolverMultistepScheduler, {"solver_order": 1}, base=_DPM),
    Row(DPMSolverMultistepScheduler, {"solver_type": "heun"}, base=_DPM),
    Row(DPMSolverMultistepScheduler, {"final_sigmas_type": "sigma_min"}, base=_DPM),
    Row(DPMSolverMultistepScheduler, {"final_sigmas_type": "sigma_min", "euler_at_final": True}, base=_DPM),
    Row(DPMSolverMultistepScheduler, _ZERO_SNR, kinds=(V,), base=_DPM),
    Row(
        DPMSolverMultistepScheduler,
        {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"},
        kinds=(EPSILON, V),
        base=_BETAS,
    ),
    Row(DPMSolverMultistepScheduler, {"use_flow_sigmas": True, "flow_shift": 3.0}, kinds=(FLOW,), base=_SDE),
    Row(DPMSolverSinglestepScheduler, kinds=_ALL, base=_DPM),
    Row(DPMSolverSinglestepScheduler, {"use_karras_sigmas": True}, base=_DPM),
    Row(DPMSolverSinglestepScheduler, {"solver_order": 1}, base=_DPM),
    Row(DPMSolverSinglestepScheduler, {"solver_order": 3}, base=_DPM),
    Row(DPMSolverSinglestepScheduler, {"use_flow_sigmas": True, "flow_shift": 3.0}, kinds=(FLOW,), base=_SDE),
    Row(EDMDPMSolverMultistepScheduler, kinds=(EPSILON, V), base=_SDE),
    Row(EDMDPMSolverMultistepScheduler, {"sigma_schedule": "exponential"}, base=_SDE),
    Row(EDMDPMSolverMultistepScheduler, {"solver_order": 1}, base=_SDE),
    Row(CogVideoXDPMScheduler, {"snr_shift_scale": 3.0}, kinds=_ALL),
    Row(CogVideoXDPMScheduler, {"snr_shift_scale": 1.0, **_ZERO_SNR}, kinds=(V,)),
    Row(FlowMatchSDEScheduler, {"shift": 1.0}, kinds=(None,)),
    Row(FlowMatchSDEScheduler, {"shift": 3.0}, kinds=(None,)),
    Row(FlowMatchSDEScheduler, {"shift": 6.0}, kinds=(None,)),
    Row(FlowMatchSDEScheduler, {"use_dynamic_shifting": True}, kinds=(None,), timesteps={"mu": 1.15}),
    Row(FlowMatchSDEScheduler, {"shift": 3.0, "use_karras_sigmas": True}, kinds=(None,)),
    Row(FlowMatchGLASSScheduler, {"shift": 3.0, "correlation": 0.2}, kinds=(None,)),
    Row(FlowMatchGLASSScheduler, {"shift": 3.0, "correlation": 0.4}, kinds=(None,)),
    Row(FlowMatchGLASSScheduler, {"shift": 3.0, "correlation": 0.8}, kinds=(None,)),
    Row(FlowMatchGLASSScheduler, {"shift": 3.0, "correlation": "ddpm"}, kinds=(None,)),
    Row(FlowMatchGLASSScheduler, {"shift": 1.0}, kinds=(None,)),
    Row(FlowMatchGLASSScheduler, {"use_dynamic_shifting": True}, kinds=(None,), timesteps={"mu": 1.15}),
)
"""Samplers that a steered run accepts."""

DISTILLED = (
    Row(TCDScheduler, kinds=_ALL, base={**_BETAS, "original_inference_steps": 1000}, step={"eta": 0.3}),
    Row(LCMScheduler, kinds=_ALL, base={**_CLEAN, "original_inference_steps": 1000}),
    Row(FlowMatchLCMScheduler, {"shift": 3.0}, kinds=(None,)),
)
"""Consistency samplers: accepted for who chooses them, because the model is then said to be distilled."""

REFUSED = (
    Row(FlowMatchEulerDiscreteScheduler, {"shift": 3.0, "stochastic_sampling": True}, kinds=(None,)),
    Row(DPMSolverMultistepScheduler, {"solver_order": 3}, base=_DPM),
    Row(DPMSolverMultistepScheduler, {"use_beta_sigmas": True}, base=_DPM),
)
"""Stochastic settings that a steered run refuses."""


def posterior_mean(sample: Tensor, alpha: float, sigma: float) -> Tensor:
    """E[x0 | alpha x0 + sigma noise = sample] of the mixture, in closed form."""
    variance = (alpha * SPREAD) ** 2 + sigma**2
    upper = torch.sigmoid(2 * alpha * MODE * sample / variance)
    gain = alpha * SPREAD**2 / variance
    return MODE * (2 * upper - 1) * (1 - gain * alpha) + gain * sample


def training_level(scheduler: Any, timestep: Tensor) -> tuple[float, float]:
    """(alpha, sigma) of the samples that a network was trained on at a timestep; between two, as Diffusers does it."""
    config, time = scheduler.config, float(timestep)
    if isinstance(scheduler, EDMDPMSolverMultistepScheduler):
        return 1.0, float(np.exp(4 * time))
    if "FlowMatch" in type(scheduler).__name__ or config.get("use_flow_sigmas"):
        sigma = time / config.num_train_timesteps
        return 1 - sigma, sigma
    alpha_bars = scheduler.alphas_cumprod.double().numpy()
    if time == int(time):
        alpha_bar = alpha_bars[int(time)]
        return alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    ratios = 0.5 * np.log((1 - alpha_bars) / alpha_bars)
    ratio = np.exp(np.interp(time, np.arange(len(ratios)), ratios))
    return (1 + ratio**2) ** -0.5, ratio * (1 + ratio**2) ** -0.5


def exact_output(scheduler: Any, model_input: Tensor, timestep: Tensor) -> Tensor:
    """What a perfect network of the scheduler's prediction type answers."""
    alpha, sigma = training_level(scheduler, timestep)
    kind = scheduler.config.get("prediction_type", FLOW)
    if isinstance(scheduler, EDMDPMSolverMultistepScheduler):
        data = scheduler.config.sigma_data
        norm = (sigma**2 + data**2) ** 0.5
        sample = model_input * norm
        residual = posterior_mean(sample, alpha, sigma) - sample * (data / norm) ** 2
        return residual * norm / (sigma * data) * (-1 if kind == V else 1)
    x0 = posterior_mean(model_input, alpha, sigma)
    if kind == FLOW:
        return (model_input - x0) / sigma
    noise = (model_input - alpha * x0) / sigma
    return {EPSILON: noise, SAMPLE: x0, V: alpha * noise - sigma * x0}[kind]


def trajectory(
    row: Row, kind: str | None, num_steps: int, *, size: int = NUM_SAMPLES
) -> Iterator[tuple[Any, Tensor, Tensor, Tensor]]:
    """The loop of a pipeline. Yields scheduler, model output, timestep and sample before each step; at last the end."""
    scheduler, history = row.build(kind), None
    scheduler.set_timesteps(num_steps, **row.timesteps)
    if isinstance(scheduler, DPMSolverMultistepScheduler):
        scheduler.set_begin_index(0)  # of equal timesteps it would take the second as the first
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(size, 1, 1, 1, generator=generator)
    sample = start * float(getattr(scheduler, "init_noise_sigma", 1.0))
    scale = getattr(scheduler, "scale_model_input", lambda sample, timestep: sample)
    timesteps = list(scheduler.timesteps)
    for index, timestep in enumerate(timesteps):
        output = exact_output(scheduler, scale(sample, timestep), timestep)
        yield scheduler, output, timestep, sample
        if isinstance(scheduler, CogVideoXDPMScheduler):
            before = timesteps[index - 1] if index else None
            sample, history = scheduler.step(output, history, timestep, before, sample, generator=generator)
        else:
            with bounded_variance(scheduler, row.step.get("eta")):  # as a steered run does
                moved = scheduler.step(output, timestep, sample, generator=generator, return_dict=False, **row.step)
            sample = moved[0]
    yield scheduler, sample, timesteps[-1], sample


def law(row: Row, kind: str | None, num_steps: int, *, size: int = NUM_SAMPLES) -> tuple[float, float]:
    """Relative error of the spread within a mode, and the share of the upper mode.

    The first has a standard error of 0.22 % from the default size, the second one of 0.16 %.
    """
    for *_, sample in trajectory(row, kind, num_steps, size=size):
        final = sample
    above = final > 0
    within = torch.cat([final[above] - final[above].mean(), final[~above] - final[~above].mean()])
    return float(within.std()) / SPREAD - 1, float(above.float().mean())


def cell(row: Row, kind: str | None, num_steps: int) -> str:
    """One cell: the error of the spread."""
    return f"{100 * law(row, kind, num_steps)[0]:+.1f} %"


def heading() -> list[str]:
    """The first two lines of a table."""
    columns = ["scheduler", "settings", "prediction", *(f"{num_steps} steps" for num_steps in NUM_STEPS)]
    return [f"| {' | '.join(columns)} |", f"|{' --- |' * 3}{' ---: |' * len(NUM_STEPS)}"]


def label(row: Row, kind: str | None) -> str:
    """The first three cells of a line, by which a test finds it."""
    return f"| `{row.scheduler.__name__}` | {row.settings()} | {kind or FLOW} |"


def table(rows: tuple[Row, ...]) -> str:
    """Markdown, a line for each row and prediction type."""
    lines = [
        " ".join([label(row, kind), *(f"{cell(row, kind, num_steps)} |" for num_steps in NUM_STEPS)])
        for row in rows
        for kind in row.kinds
    ]
    return "\n".join([*heading(), *lines])


def written(page: str) -> str:
    """The page with its tables made anew."""
    for name, rows in (("accepted", ACCEPTED), ("distilled", DISTILLED), ("refused", REFUSED)):
        begin, end = f"<!-- {name}: written by scripts/scheduler_table.py -->\n", f"\n<!-- end of {name} -->"
        before, rest = page.split(begin)
        page = before + begin + table(rows) + end + rest.split(end)[1]
    return page


def main() -> int:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description="Write the tables of docs/schedulers.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a table would change")
    page = PAGE.read_text(encoding="utf-8")
    new = written(page)
    if parser.parse_args().check:
        return int(new != page)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
