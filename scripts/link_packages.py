"""Link the four package folders into `build/packages/fk_reward`, the way an installed wheel lays them out.

mypy and pytest's doctests find modules by folder, not by the `package_dir` of setup.cfg; here they see one package.
"""

from __future__ import annotations

import os
import shutil
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "build" / "packages" / "fk_reward"


def mapped_packages() -> dict[str, Path]:
    """Names below `fk_reward` that live in a top-level folder, and these folders."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = config["options"]["package_dir"].strip().splitlines()
    folders = dict(line.replace(" ", "").split("=") for line in lines)
    return {name.split(".")[1]: ROOT / folder for name, folder in folders.items() if "." in name}


def link_packages() -> Path:
    """Make the link farm anew and return the folder to put on the module path."""
    shutil.rmtree(PACKAGE, ignore_errors=True)
    PACKAGE.mkdir(parents=True)
    for entry in (ROOT / "fk_reward").iterdir():
        if entry.name != "__pycache__":
            _link(PACKAGE / entry.name, entry)
    for name, folder in mapped_packages().items():
        _link(PACKAGE / name, folder)
    return PACKAGE.parent


def _link(link: Path, target: Path) -> None:
    link.symlink_to(os.path.relpath(target, link.parent), target_is_directory=target.is_dir())


if __name__ == "__main__":
    link_packages()
