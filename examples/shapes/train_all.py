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

from fk_reward.durable_files import write_whole
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
        reads: further files of settings, relative to this script; they may have wildcards.
        makes: files and folders that it writes.
        minutes: what it took on two cores, for the estimate of what is left.
        smoke: options that make it a matter of seconds.
    """

    name: str
    run: str
    makes: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    minutes: float = 0.0
    smoke: Mapping[str, Any] = field(default_factory=dict)

    def call(self, runs: Path, *, smoke: bool) -> None:
        """Call the function; a training that was stopped goes on from its last checkpoint.

        Raises:
            ValueError: where the function has no parameter of the name of an option.
        """
        module, _, function = self.run.rpartition(".")
        call = getattr(importlib.import_module(module), function)
        given = {**self.options, **(self.smoke if smoke else {})}
        parameters = inspect.signature(call).parameters
        if unknown := sorted(given.keys() - parameters.keys()):
            raise ValueError(f"{self.name}: {self.run} takes {', '.join(parameters)}; got {', '.join(unknown)}.")
        if "resume" in parameters:
            given["resume"] = True
        kinds = get_type_hints(call)
        call(**{name: _as_given(value, kinds[name], runs) for name, value in given.items()})

    def key(self, files: Mapping[str, str], *, smoke: bool) -> str:
        """Checksum of the stage's settings and of what it reads, of which `files` are the checksums."""
        found = {pattern: sorted(SETTINGS.parent.glob(pattern)) for pattern in self.reads}
        if missing := [pattern for pattern, paths in found.items() if not paths]:
            raise FileNotFoundError(f"{self.name} reads {', '.join(missing)}, which {SETTINGS.parent} does not have.")
        read = {path.name: checksum(path) for paths in found.values() for path in paths}
        settings = [self.run, dict(self.options), dict(self.smoke) if smoke else None, read, dict(files)]
        return _digest(json.dumps(settings).encode())

    def found(self, runs: Path) -> list[Path]:
        """What the stage has made so far, and the checkpoints of its training."""
        trained = [f"{self.options['output_dir']}/checkpoints"] if "output_dir" in self.options else []
        return [runs / name for name in (*self.makes, *trained) if (runs / name).exists()]


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
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()[:16]
    names = sorted(found.relative_to(path) for found in path.rglob("*") if found.is_file())
    kept = [name for name in names if "checkpoints" not in name.parts]
    return _digest("".join(f"{name} {checksum(path / name)}\n" for name in kept).encode())


def read_stages(path: Path) -> list[Stage]:
    """The stages of a file of settings, in order.

    Raises:
        ValueError: where a stage needs one that does not come before it.
    """
    stages: list[Stage] = []
    for name, settings in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        lists = {key: tuple(settings.get(key, ())) for key in ("needs", "reads", "makes")}
        stage = Stage(name=name, **{**settings, **lists})
        if missing := set(stage.needs) - {before.name for before in stages}:
            raise ValueError(f"{path}: {name} needs {', '.join(sorted(missing))}, which should stand before it.")
        stages.append(stage)
    return stages


@dataclass
class Record:
    """What has been made, with checksums, in the file `stages.json` of the runs.

    Attributes:
        folder: of the runs.
        stages: all, by name.
        made: name of a stage -> `key` and `smoke` of the run that was begun last, and once it is done its `files` and
            `minutes`.
    """

    folder: Path
    stages: Mapping[str, Stage]
    made: dict[str, dict[str, Any]]
    _known: dict[str, str] = field(default_factory=dict)  # each file is read once; many stages need the same

    @classmethod
    def read(cls, folder: Path, stages: Sequence[Stage]) -> Record:
        """The record of a folder; empty in a new one."""
        path = folder / RECORD
        made = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return cls(folder, {stage.name: stage for stage in stages}, made)

    def key(self, stage: Stage, *, smoke: bool) -> str:
        """Checksum of a stage's settings and of the files that it reads.

        Raises:
            FileNotFoundError: where a stage that it needs has not run.
        """
        names = [(need, name) for need in stage.needs for name in self.stages[need].makes]
        if missing := sorted({need for need, name in names if not (self.folder / name).exists()}):
            raise FileNotFoundError(f"{stage.name} needs {', '.join(missing)}: run that before, without --only.")
        return stage.key({name: self._checksum(name) for _, name in names}, smoke=smoke)

    def is_done(self, stage: Stage, *, smoke: bool) -> bool:
        """Whether a stage was run with these settings on these files, and what it made is still there, unchanged."""
        made = self.made.get(stage.name, {})
        if "files" not in made or made["key"] != self.key(stage, smoke=smoke):
            return False
        return all((self.folder / name).exists() for name in stage.makes) and made["files"] == self._files(stage)

    def begin(self, stage: Stage, *, smoke: bool, anew: bool) -> None:
        """Note what a stage is begun with; where that is something else than before, remove what it has made.

        Trainings and drawings go on with what they find. Of other settings or files, it would be kept for good.
        """
        key = self.key(stage, smoke=smoke)
        if anew or self.made.get(stage.name, {"key": key})["key"] != key:
            for path in stage.found(self.folder):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)  # gone with its folder
        self._forget_checksums(stage)
        self.made[stage.name] = {"key": key, "smoke": smoke}
        self._write()

    def keep(self, stage: Stage, *, minutes: float) -> None:
        """Note that a stage is done."""
        missing = [name for name in stage.makes if not (self.folder / name).exists()]
        if missing:
            raise FileNotFoundError(f"{stage.name} ({stage.run}) should have made {', '.join(missing)}, and did not.")
        self._forget_checksums(stage)
        self.made[stage.name] |= {"files": self._files(stage), "minutes": round(minutes, 2)}
        self._write()

    def _files(self, stage: Stage) -> dict[str, str]:
        return {name: self._checksum(name) for name in stage.makes}

    def _checksum(self, name: str) -> str:
        if name not in self._known:
            self._known[name] = checksum(self.folder / name)
        return self._known[name]

    def _forget_checksums(self, stage: Stage) -> None:
        for name in stage.makes:
            self._known.pop(name, None)

    def _write(self) -> None:
        write_whole(self.folder / RECORD, json.dumps(self.made, indent=2) + "\n")


def chosen_stages(
    stages: Sequence[Stage], *, only: Sequence[str], until: str | None, redo: Sequence[str]
) -> list[Stage]:
    """Those that are named, or one with all that it needs, or all.

    Raises:
        ValueError: for an unknown name, for both kinds of choice, and for a stage to redo that is not chosen.
    """
    names = [stage.name for stage in stages]
    if unknown := sorted({*only, *redo, *([until] if until else [])} - set(names)):
        raise ValueError(f"{', '.join(unknown)}: no such stage; there are {', '.join(names)}.")
    if only and until:
        raise ValueError("--only names stages, and --until one with all that it needs: give one of them.")
    wanted = set(only or ([until] if until else names))
    for stage in reversed(stages):
        if until and stage.name in wanted:
            wanted |= set(stage.needs)
    if left_out := sorted(set(redo) - wanted):
        raise ValueError(f"--redo {', '.join(left_out)}: not among the stages that were chosen.")
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
        if stage.name not in (*record.made, *redo) and stage.found(record.folder):
            yield f"{head}: goes on with files that {RECORD} does not know; --redo {stage.name} removes them"
        record.begin(stage, smoke=smoke, anew=stage.name in redo)
        start = time.perf_counter()
        stage.call(record.folder, smoke=smoke)
        minutes = (time.perf_counter() - start) / 60
        record.keep(stage, minutes=minutes)
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
    its last checkpoint. Where settings or files have changed, what the stage made before is removed, checkpoints
    included, and it begins anew. A change of a script is not noticed: name the stage with `--redo`.

    Args:
        runs: Where everything is written.
        settings: The stages and every number in them.
        only: Run these stages alone. Repeat it for several.
        until: Run this stage and those that it needs.
        redo: Run this stage anew though it is done or begun. Repeat it for several.
        smoke: A few steps of everything, to see that it runs; in a folder of its own.
    """
    stages = read_stages(settings)
    chosen = chosen_stages(stages, only=only or [], until=until, redo=redo or [])
    record = Record.read(runs, stages)
    if any(made["smoke"] != smoke for made in record.made.values()):
        raise ValueError(f"{runs} holds a {'whole' if smoke else '--smoke'} training: name another folder with --runs.")
    runs.mkdir(parents=True, exist_ok=True)
    for line in run_stages(chosen, record, smoke=smoke, redo=redo or []):
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
    found = {pattern: sorted(runs.glob(pattern)) for pattern in SHIPPED}
    if missing := [pattern for pattern, folders in found.items() if not folders]:
        raise FileNotFoundError(f"{runs} has no {', '.join(missing)}: run the stages that make them.")
    folders = {folder.name: folder for paths in found.values() for folder in paths}
    kept = [file for path in assets.glob("*") if path.name not in folders for file in _files_of(path)]
    total = sum(file.stat().st_size for file in [*kept, *(f for folder in folders.values() for f in _files_of(folder))])
    if total > MAX_BYTES:
        raise ValueError(f"The embedded models should take {MAX_BYTES / 1e6:.0f} MB at most, got {total / 1e6:.1f} MB.")
    for name, folder in folders.items():
        shutil.rmtree(assets / name, ignore_errors=True)
        shutil.copytree(folder, assets / name)
        print(f"{assets / name}: {sum(file.stat().st_size for file in _files_of(folder)) / 1e6:.2f} MB")
    print(f"all embedded models: {total / 1e6:.1f} MB")


def _files_of(path: Path) -> list[Path]:
    return [file for file in (path, *path.rglob("*")) if file.is_file()]


if __name__ == "__main__":
    app()
