"""What is used where nothing is named: what ships in the package and needs no download."""

from __future__ import annotations

DEFAULT_EMBEDDED_REWARD = "shapes-llava-reward-alignment"
"""The reward that steers the embedded model by default, on the command line and in the first snippets of the docs."""
