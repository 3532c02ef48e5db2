"""A tiny ImageReward and a tiny BLIP in the layouts of their authors, and smooth pictures."""

from __future__ import annotations

import pytest
import torch

from fk_reward.rewards import load_reward
from tests.tiny.blip_itm import write_blip_itm
from tests.tiny.imagereward import write_imagereward


@pytest.fixture(scope="session")
def imagereward_folder(tmp_path_factory):
    """Folder with `ImageReward.pt` and the folder `tokenizer`."""
    return write_imagereward(tmp_path_factory.mktemp("imagereward"))


@pytest.fixture(scope="session")
def imagereward(imagereward_folder):
    return load_reward(
        "imagereward", weights=imagereward_folder / "ImageReward.pt", tokenizer=imagereward_folder / "tokenizer"
    )


@pytest.fixture(scope="session")
def itm_folder(tmp_path_factory):
    return str(write_blip_itm(tmp_path_factory.mktemp("blip-itm")))


@pytest.fixture(scope="session")
def smooth():
    """(4, 3, 48, 65) smooth random colours, so that PIL's rounding is all that differs."""
    coarse = torch.rand(4, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, (48, 65), mode="bilinear")


@pytest.fixture(scope="session")
def texts():
    return ["a red circle", "blue square", "a red circle", "a photo of two green stars"]
