"""Tiny models of the families that differ in what an answer model has to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fk_reward.rewards.answer_model import AnswerModel, load_answer_model
from tests.tiny import answer_models

FAMILIES = ("llava", "llava_next", "qwen3_vl", "blip2_t5", "instructblip")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folder of each family's checkpoint."""
    writers = {family: getattr(answer_models, f"write_{family}") for family in FAMILIES}
    return {family: write(tmp_path_factory.mktemp(family)) for family, write in writers.items()}


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def model(folders: dict[str, Path], family: str) -> AnswerModel:
    return load_answer_model(folders[family], torch_dtype=torch.float32)


@pytest.fixture(scope="session")
def llava(folders: dict[str, Path]) -> AnswerModel:
    return load_answer_model(folders["llava"], torch_dtype=torch.float32)


@pytest.fixture(scope="session")
def images() -> Tensor:
    """Three pictures that no processor leaves as they are: not square, not of the tower's size, with 8-bit values."""
    smooth = torch.rand(3, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    pictures = torch.nn.functional.interpolate(smooth, (40, 56), mode="bicubic").clamp(0, 1)
    return (pictures * 255).round() / 255
