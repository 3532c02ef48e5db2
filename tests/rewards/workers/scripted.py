"""A reward that does in its worker what the prompt says."""

from __future__ import annotations

import os

import torch


def scripted(images, prompts):
    if "raise" in prompts:
        raise ValueError("no such thing")
    if "print" in prompts:
        print("a library talks on the standard output")
    scores = images.mean(dim=(1, 2, 3))
    return torch.where(torch.tensor([prompt == "pid" for prompt in prompts]), float(os.getpid()), scores)
