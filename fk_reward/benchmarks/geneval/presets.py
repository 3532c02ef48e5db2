"""Settings named after the papers whose experiments they repeat."""

from __future__ import annotations

from dataclasses import dataclass

from fk_reward.search.feynman_kac import FKSteeringConfig

FK_STEERING = FKSteeringConfig(
    num_particles=4, potential="max", reward_scale=10.0, resample_start=0.2, resample_stop=0.8, num_resamples=4
)
"""Four particles, scored at 20, 40, 60 and 80 of 100 steps."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings of a paper.

    Attributes:
        source: where they come from, and what the source leaves open.
        model: the first of the models that the paper steers.
        reward: the reward that steers.
        num_steps: scheduler steps.
        scheduler: DDIM, which runs with eta 1.
        num_samples: pictures of a prompt.
        steering: settings of the sampler.
    """

    source: str
    reward: str
    model: str = "sd-2.1"
    num_steps: int = 100
    scheduler: str = "ddim"
    num_samples: int = 4
    steering: FKSteeringConfig = FK_STEERING


PRESETS: dict[str, Preset] = {
    "fk-paper": Preset(
        source="Singhal et al. 2025, arXiv 2501.06848: text-to-image experiments. Four pictures of a prompt, as in "
        "GenEval's own script; resampled where the ESS falls below half of K.",
        reward="imagereward",
    ),
    "llava-reward-paper": Preset(
        source="Zhou et al. 2025, arXiv 2507.21391: inference-time scaling with FK steering's public code. Settings of "
        "the sampler are fk-paper's; lambda 10 is one over the temperature 0.1 that the reward was trained with.",
        reward="llava-reward-alignment",
    ),
}
"""Name -> settings."""


def find_preset(name: str) -> Preset:
    """The preset of a name.

    Raises:
        ValueError: unknown; the message lists the names.

    Example:
        >>> preset = find_preset("fk-paper")
        >>> preset.steering.scoring_steps(preset.num_steps), preset.steering.reward_scale, preset.steering.potential
        ((20, 40, 60, 80), 10.0, 'max')
    """
    if name not in PRESETS:
        raise ValueError(f"Unknown preset {name!r}; there are {', '.join(PRESETS)}.")
    return PRESETS[name]
