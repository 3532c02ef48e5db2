"""A made-up checkout for the tests of what is measured and of the gates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

LONG = "".join(f"NUMBER_{index} = {index}\n" for index in range(120))
TREE = {
    "fk_reward/__init__.py": "",
    "fk_reward/files.py": LONG,
    "fk_reward/smc/__init__.py": "from fk_reward.smc.weights import ess\n",
    "fk_reward/smc/weights.py": LONG + "from fk_reward import files\ndef ess(): return files.NUMBER_0\n",
    "fk_reward/search/__init__.py": "",
    "fk_reward/search/beam.py": LONG + "from fk_reward.smc import ess\nfrom fk_reward import files\n",
    "fk_reward/tests/inner.py": "import fk_reward.files\n",
    "pipelines/__init__.py": "",
    "pipelines/run.py": LONG + "from fk_reward.search.beam import Beam\nfrom fk_reward.rewards.base import Reward\n",
    "rewards/__init__.py": "",
    "rewards/base.py": LONG + "from fk_reward import files\ndef ess(): return files.NUMBER_0\n",
    "training/__init__.py": "",
    "training/run.py": LONG + "from fk_reward.rewards import base\n",
    "examples/own.py": "import fk_reward.files\n",
}
"""Files and what they hold; nothing in them is against the rules."""


def write_tree(root: Path, changes: Mapping[str, str] | None = None) -> Path:
    """Write the files below `root`, those of `changes` in place of or beside the others."""
    for name, text in {**TREE, **(changes or {})}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root
