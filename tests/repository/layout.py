"""What the repository holds: its files, its Python packages and its documents."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from configparser import ConfigParser
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARY_FOLDERS = ("fk_reward", "pipelines", "rewards", "training")


def setup_config() -> ConfigParser:
    """The parsed setup.cfg."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


def packages() -> list[str]:
    """The packages that setup.cfg installs."""
    return setup_config()["options"]["packages"].split()


@cache
def tracked_files() -> tuple[Path, ...]:
    """Files that git tracks or would track, relative to the root; outside a checkout, all but what .gitignore names."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, capture_output=True, check=False) if (ROOT / ".git").exists() else None
    if listing is None or listing.returncode != 0:
        return tuple(sorted(_not_ignored(ROOT)))
    names = listing.stdout.decode().split("\0")
    return tuple(Path(name) for name in names if name and (ROOT / name).is_file())


def _not_ignored(folder: Path) -> Iterator[Path]:
    ignored = [".git", *(line.strip("/") for line in (ROOT / ".gitignore").read_text().split())]
    for entry in folder.iterdir():
        if any(entry.match(pattern) for pattern in ignored):
            continue
        if entry.is_dir():
            yield from _not_ignored(entry)
        else:
            yield entry.relative_to(ROOT)


def python_files(*folders: str) -> list[Path]:
    """Tracked Python files below the folders, relative to the root."""
    return [path for path in tracked_files() if path.suffix == ".py" and path.parts[0] in folders]


def documents() -> list[Path]:
    """README and the pages of docs/, those in its folders too."""
    pages = ((ROOT / path) for path in tracked_files() if path.parts[0] == "docs" and path.suffix == ".md")
    return [ROOT / "README.md", *sorted(pages)]
