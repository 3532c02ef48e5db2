"""The manifest of a run: everything that its pictures depend on, by which an unfinished run is known again."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fk_reward.benchmarks.geneval.settings import RunSettings
from fk_reward.benchmarks.store import settings_changes, weights_digest
from fk_reward.durable_files import read_json, write_whole
from fk_reward.rewards import Reward
from fk_reward.sampling.stochasticity import takes_argument
from fk_reward.version import __version__

if TYPE_CHECKING:
    from fk_reward.pipelines import FKSteeringPipeline

NAME = "manifest.json"
PACKAGES = ("torch", "diffusers", "transformers")
OF_ALL_RUNS = ("suite", "model", "num_samples", "seed", "num_steps", "guidance_scale")
"""What the runs in one folder have in common, so that they can be compared prompt by prompt."""


def make_manifest(
    settings: RunSettings, *, records: Sequence[Mapping[str, Any]], model: Mapping[str, Any], reward: Reward | None
) -> dict[str, Any]:
    """What a run depends on, as JSON.

    Args:
        settings: of the run.
        records: of the suite.
        model: of `describe_model`.
        reward: the one that steers.
    """
    weights = None if reward is None else weights_digest([reward])
    versions = {name: metadata.version(name) for name in PACKAGES}
    return {
        "settings": settings.to_dict(),
        "suite": {"name": settings.suite, "num_prompts": len(records), "digest": records_digest(records)},
        "model": dict(model),
        "reward": {"name": settings.reward, "weights": weights},
        "versions": {"fk_reward": __version__, **versions},
    }


def describe_model(pipe: FKSteeringPipeline) -> dict[str, Any]:
    """Classes, weights, precision and place of a pipeline; its commit on the hub where it comes from there."""
    return {
        "pipeline": type(pipe.pipe).__name__,
        "scheduler": type(pipe.scheduler).__name__,
        "eta": 1.0 if takes_argument(pipe.scheduler, "eta") else None,
        "commit": hub_commit(pipe),
        "weights": weights_digest([dict(pipe.components)]),
        "dtype": str(pipe.dtype),
        "device": pipe.device.type,
    }


def hub_commit(pipe: FKSteeringPipeline) -> str | None:
    """Commit of a pipeline on the hub, whose cache names its folders after commits; None for one of another source."""
    configs = [getattr(part, "config", None) for part in pipe.components.values()]
    sources = [str(getattr(config, "_name_or_path", "")) for config in configs]
    found = [match[1] for source in sources if (match := re.search(r"snapshots/([0-9a-f]{40})", source))]
    return found[0] if found else None


def records_digest(records: Sequence[Mapping[str, Any]]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a suite.

    Example:
        >>> records_digest([{"prompt": "a"}]) == records_digest([{"prompt": "b"}])
        False
    """
    lines = "".join(json.dumps(record, sort_keys=True) + "\n" for record in records)
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def open_run(folder: Path, manifest: Mapping[str, Any], *, about: Mapping[str, Any]) -> None:
    """Begin a run, or go on with one that depends on the same.

    Args:
        folder: of the run.
        manifest: of `make_manifest`.
        about: written beside it when the run begins, without being compared: the command, the preset.

    Raises:
        ValueError: the folder holds a run of other settings, runs beside it are of another suite or model, or it
            holds files that are of no run.
    """
    for other in read_manifests(folder.parent):
        _refuse_differences(folder.parent, _common(other), _common(manifest))
    if not (folder / NAME).exists():
        if folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise ValueError(f"{folder} holds files but no {NAME}: it is no run of this command. Name another folder.")
        write_whole(folder / NAME, json.dumps({**manifest, **about}, indent=2) + "\n")
    found = read_manifest(folder)
    _refuse_differences(folder, {name: found.get(name) for name in manifest}, manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no JSON object.
    """
    path = folder / NAME
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no run: {NAME} is missing.")
    found = read_json(path, remedy="Put back a copy of it, or name a new folder.")
    if not isinstance(found.get("settings"), dict):
        raise ValueError(f"{path} is not the manifest of a run.")
    return found


def read_manifests(folder: Path) -> Iterator[dict[str, Any]]:
    """The manifests of all runs in a folder."""
    for path in sorted(folder.glob(f"*/{NAME}")):
        yield read_manifest(path.parent)


def refuse_mixed_runs(folder: Path) -> None:
    """Refuse a folder whose runs cannot be compared.

    Raises:
        ValueError: they are of different suites, models, seeds or numbers of steps.
    """
    commons = [_common(manifest) for manifest in read_manifests(folder)]
    for common in commons[1:]:
        _refuse_differences(folder, commons[0], common)


def _common(manifest: Mapping[str, Any]) -> dict[str, Any]:
    known = {**manifest["settings"], **{name: manifest[name] for name in ("suite", "model")}}
    return {name: known[name] for name in OF_ALL_RUNS}


def _refuse_differences(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if changes := settings_changes(found, wanted):
        raise ValueError(f"{folder} holds a run of other settings ({changes}); name a new folder.")
