"""Whether a tag can be released: python scripts/check_release.py v1.2.3 [folder of the built packages].

The version of the tag is that of the package, of the newest heading of the changelog, which has a date, and of
CITATION.cff; the packages, where there are any, are of that version and under the limit of size.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 42_000_000
"""Bytes of a wheel or source archive."""


def release_mistakes(tag: str, root: Path = ROOT) -> list[str]:
    """What speaks against releasing a tag.

    Args:
        tag: "v" and the version.
        root: of the checkout.
    """
    version = tag.removeprefix("v")
    if re.fullmatch(r"v\d+\.\d+\.\d+((a|b|rc)\d+)?", tag) is None:
        return [f"{tag} is no tag of a release, such as v1.2.3 or v1.2.3rc1."]
    mistakes = []
    own = _found(root / "fk_reward" / "version.py", r'__version__ = "([^"]+)"')
    if own != version:
        mistakes.append(f"fk_reward/version.py says {own}.")
    heading = _found(root / "CHANGELOG.md", r"^## (.+)$")
    if re.fullmatch(rf"\[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d", heading) is None:
        mistakes.append(f"The newest heading of CHANGELOG.md is {heading!r}; expected [{version}] - and a date.")
    cited = _found(root / "CITATION.cff", r"^version: (\S+)$")
    if cited != version:
        mistakes.append(f"CITATION.cff says {cited}.")
    return mistakes


def package_mistakes(version: str, folder: Path) -> list[str]:
    """What speaks against publishing built packages.

    Args:
        version: of the release.
        folder: with a wheel and a source archive.
    """
    found = {suffix: list(folder.glob(f"*{suffix}")) for suffix in (".whl", ".tar.gz")}
    mistakes = [f"{folder} has {len(files)} {suffix} files." for suffix, files in found.items() if len(files) != 1]
    for path in (path for files in found.values() for path in files):
        if f"-{version}" not in path.name:
            mistakes.append(f"{path.name} is not of version {version}.")
        if path.stat().st_size > LARGEST:
            mistakes.append(f"{path.name} has {path.stat().st_size / 1e6:.1f} MB; at most {LARGEST / 1e6:.0f} MB.")
    return mistakes


def _found(path: Path, pattern: str) -> str:
    match = re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
    return match[1] if match else "nothing"


def main(arguments: Sequence[str] | None = None) -> int:
    """Say what is wrong; the exit code is 1 then."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tag")
    parser.add_argument("packages", nargs="?", type=Path)
    asked = parser.parse_args(arguments)
    mistakes = release_mistakes(asked.tag)
    if asked.packages is not None:
        mistakes += package_mistakes(asked.tag.removeprefix("v"), asked.packages)
    sys.stderr.writelines(f"{mistake}\n" for mistake in mistakes)
    return int(bool(mistakes))


if __name__ == "__main__":
    raise SystemExit(main())
