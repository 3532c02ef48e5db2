"""`fk-reward noise-accuracy`: what rewards know of predictions, by noise level."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fk_reward.cli.options import OUTPUT, REWARD, DeviceOption, OutOption


def noise_accuracy(  # noqa: PLR0913 (one parameter for each option)
    data: Path,
    /,
    *,
    reward: Annotated[list[str] | None, Parameter(alias="-r", group=REWARD, allow_leading_hyphen=True)] = None,
    bands: Annotated[list[Path] | None, Parameter(group=REWARD)] = None,
    reference: Annotated[list[str] | None, Parameter(group=OUTPUT)] = None,
    device: DeviceOption = "auto",
    out: OutOption = Path("results/noise-accuracy"),
) -> None:
    """Measure what rewards know of predictions, against the finished scores: pairs in order and rank correlation.

    Each level is judged by the reward as it stands and, where it has one, by its judge for the level. For an honest
    number the prompts must be held out from the training of the bands.

    Args:
        data: Folder of fk-reward record --keep-predictions.
        reward: Reward of fk-reward rewards, or a composition; may be repeated. The embedded one if not given.
        bands: Folder of adapters for noise bands that the reward gets; may be repeated. Goes with one reward.
        reference: Recorded reward whose finished scores count; may be repeated. All recorded ones if not given.
        device: Device of the rewards: auto (the GPU where there is one), cpu or cuda.
        out: Folder of the table.
    """
    from fk_reward.benchmarks.noise_accuracy import LevelScores, accuracy_rows, scored_predictions, write_accuracy
    from fk_reward.benchmarks.report import show_report
    from fk_reward.benchmarks.runner import watch
    from fk_reward.devices import resolve_device
    from fk_reward.models import DEFAULT_EMBEDDED_REWARD
    from fk_reward.output_folder import hold_folder
    from fk_reward.rewards import load_reward
    from fk_reward.terminal import open_console
    from fk_reward.training.predictions import PredictionRecords

    names = tuple(dict.fromkeys(reward or (DEFAULT_EMBEDDED_REWARD,)))
    if bands and len(names) > 1:
        raise ValueError("--bands are those of one reward: name one, or take names with @bands.")
    options = {"bands": bands[0] if len(bands) == 1 else bands} if bands else {}
    place = resolve_device(device)
    with hold_folder(out):
        records = PredictionRecords.load(data)
        for name in reference or ():
            records.of(name)  # before anything is scored
        rewards = {name: load_reward(name, **options).to(place) for name in names}
        found: list[LevelScores] = []
        watch(scored_predictions(records, rewards, found=found), console=open_console())
        show_report(write_accuracy(out, records, accuracy_rows(records, found, reference or ())), "Results")
