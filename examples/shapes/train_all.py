"""Trains every embedded model, stage by stage, from the settings in `train_all.yaml`; goes on where it was stopped."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import cyclopts
import yaml

from fk_reward.models import EMBEDDED_MODELS

SETTINGS = Path(__file__).with_suffix(".yaml")
RECORD = "stages.json"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A call of one of the scripts.

    Attributes:
        name: of the stage.
        run: the function, as `script.function`.
        options: its arguments; paths are relative to the folder of the runs, and may have wildcards.
        needs: names of the stages whose files it reads.
        makes: files and folders that it writes.
        minutes: what it took on two cores, for the estimate of what is left.
        smoke: options that make it a matter of seconds.
    """

    name: str
    run: str
    makes: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    minutes: float = 0.0
    smoke: Mapping[str, Any] = field(default_factory=dict)

    def call(self, runs: Path, *, smoke: bool) -> None:
        """Call the function; a training that was stopped goes on from its last checkpoint."""
        module, _, function = self.run.rpartition(".")
        call = getattr(importlib.import_module(module), function)
        given = {**self.options, **(self.smoke if smoke else {})}
        if "resume" in inspect.signature(call).parameters:
            given["resume"] = True
        kinds = get_type_hints(call)
        call(**{name: _as_given(value, kinds[name], runs) for name, value in given.items()})

    def key(self, record: Mapping[str, Any], *, smoke: bool) -> str:
        """Checksum of the stage's settings and of the files it reads."""
        read = {need: record.get(need, {}).get("files") for need in self.needs}
        return _digest(json.dumps([self.run, dict(self.options), dict(self.smoke) if smoke else None, read]).encode())


def _as_given(value: Any, kind: Any, runs: Path) -> Any:
    """A value of the settings as the function takes it."""
    if "Path" not in str(kind) or value is None:
        return value
    if "list" not in str(kind):
        is_name = kind == str | Path and value in EMBEDDED_MODELS
        return value if is_name else runs / value
    found = {pattern: sorted(runs.glob(pattern)) for pattern in value}
    if missing := [pattern for pattern, paths in found.items() if not paths]:
        raise FileNotFoundError(f"No file in {runs} is called {', '.join(missing)}; run the stages before this one.")
    return [path for paths in found.values() for path in paths]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def checksum(path: Path) -> str:
    """Checksum of a file, or of all files of a folder but the checkpoints of a training."""
    if path.is_file():
        return _digest(path.read_bytes())
    files = sorted(found for found in path.rglob("*") if found.is_file() and "checkpoints" not in found.parts)
    return _digest("".join(f"{found.relative_to(path)} {checksum(found)}\n" for found in files).encode())


def read_stages(path: Path) -> list[Stage]:
    """The stages of a file of settings, in order.

    Raises:
        ValueError: where a stage needs one that does not come before it.
    """
    stages: list[Stage] = []
    for name, settings in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        lists = {key: tuple(settings.get(key, ())) for key in ("needs", "makes")}
        stage = Stage(name=name, **{**settings, **lists})
        if missing := set(stage.needs) - {before.name for before in stages}:
            raise ValueError(f"{path}: {name} needs {', '.join(sorted(missing))}, which should stand before it.")
        stages.append(stage)
    return stages


@dataclass
class Record:
    """What has been made, with checksums, in the file `stages.json` of the runs."""

    folder: Path
    made: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> Record:
        """The record of a folder; empty in a new one."""
        path = folder / RECORD
        return cls(folder, json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {})

    def is_done(self, stage: Stage, *, smoke: bool) -> bool:
        """Whether a stage was run with these settings on these files, and what it made is still there, unchanged."""
        made = self.made.get(stage.name)
        if made is None or made["key"] != stage.key(self.made, smoke=smoke):
            return False
        return all((self.folder / name).exists() for name in stage.makes) and made["files"] == self._files(stage)

    def keep(self, stage: Stage, *, smoke: bool, minutes: float) -> None:
        """Note that a stage is done."""
        missing = [name for name in stage.makes if not (self.folder / name).exists()]
        if missing:
            raise FileNotFoundError(f"{stage.name} ({stage.run}) should have made {', '.join(missing)}, and did not.")
        key = stage.key(self.made, smoke=smoke)
        self.made[stage.name] = {"key": key, "files": self._files(stage), "minutes": round(minutes, 2)}
        text = json.dumps(self.made, indent=2) + "\n"
        scratch = self.folder / f"{RECORD}.part"
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(self.folder / RECORD)

    def _files(self, stage: Stage) -> dict[str, str]:
        return {name: checksum(self.folder / name) for name in stage.makes}


def chosen_stages(stages: Sequence[Stage], *, only: Sequence[str], until: str | None) -> list[Stage]:
    """Those that are named, or all up to one of them.

    Raises:
        ValueError: for an unknown name.
    """
    names = [stage.name for stage in stages]
    if unknown := sorted({*only, *([until] if until else [])} - set(names)):
        raise ValueError(f"{', '.join(unknown)}: no such stage; there are {', '.join(names)}.")
    wanted = only or names[: names.index(until) + 1 if until else None]
    return [stage for stage in stages if stage.name in wanted]


def run_stages(stages: Sequence[Stage], record: Record, *, smoke: bool, redo: Sequence[str]) -> Iterator[str]:
    """Run what is not done; yield a line before and after each stage."""
    for place, stage in enumerate(stages):
        head = f"[{place + 1}/{len(stages)}] {stage.name}"
        if stage.name not in redo and record.is_done(stage, smoke=smoke):
            yield f"{head}: done before, in {record.made[stage.name]['minutes']:.1f} minutes"
            continue
        left = sum(later.minutes for later in stages[place:]) / 60
        yield f"{head}: {stage.run}; about {stage.minutes:.0f} minutes, {left:.1f} hours to the end"
        start = time.perf_counter()
        stage.call(record.folder, smoke=smoke)
        minutes = (time.perf_counter() - start) / 60
        record.keep(stage, smoke=smoke, minutes=minutes)
        yield f"{head}: {minutes:.1f} minutes"


app = cyclopts.App(help=__doc__)


@app.default
def train_all(  # noqa: PLR0913 (a command's options)
    runs: Path = Path("runs"),
    settings: Path = SETTINGS,
    *,
    only: list[str] | None = None,
    until: str | None = None,
    redo: list[str] | None = None,
    smoke: bool = False,
) -> None:
    """Train every embedded model.

    A stage that was run with the same settings on the same files is not run again. One that was stopped goes on from
    its last checkpoint. A change of a script is not noticed: remove the stage's folder and name it with `--redo`.

    Args:
        runs: Where everything is written.
        settings: The stages and every number in them.
        only: Run these stages alone. Repeat it for several.
        until: Run the stages up to this one.
        redo: Run this stage though it is done. Repeat it for several.
        smoke: A few steps of everything, to see that it runs.
    """
    runs.mkdir(parents=True, exist_ok=True)
    stages = chosen_stages(read_stages(settings), only=only or [], until=until)
    for line in run_stages(stages, Record.read(runs), smoke=smoke, redo=redo or []):
        print(line, flush=True)


SHIPPED = ("unet-balanced/shapes-sd", "preview/shapes-preview", "clip/shapes-clip", "mllm/shapes-mllm")
SHIPPED += ("imagereward/shapes-imagereward", "rewards/shapes-llava-reward-*")
SHIPPED += ("distilled/shapes-sd-lcm", "bands/shipped/shapes-llava-reward-*-bands")
MAX_BYTES = 36e6


@app.command
def install(runs: Path = Path("runs"), assets: Path = Path("fk_reward/assets")) -> None:
    """Copy the trained models into the package.

    Args:
        runs: Where they were trained.
        assets: The package's folder of models.
    """
    folders = [folder for pattern in SHIPPED for folder in sorted(runs.glob(pattern))]
    for folder in folders:
        shutil.rmtree(assets / folder.name, ignore_errors=True)
        shutil.copytree(folder, assets / folder.name)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        print(f"{assets / folder.name}: {size / 1e6:.2f} MB")
    total = sum(file.stat().st_size for file in assets.rglob("*") if file.is_file())
    print(f"all embedded models: {total / 1e6:.1f} MB")
    if total > MAX_BYTES:
        raise ValueError(f"The embedded models should take {MAX_BYTES / 1e6:.0f} MB at most, got {total / 1e6:.1f} MB.")


if __name__ == "__main__":
    app()
