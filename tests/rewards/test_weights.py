"""Names that DDP, torch.compile, FSDP and activation checkpointing leave in checkpoints; all readers of weights."""

from __future__ import annotations

import itertools
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.testing import assert_close

from fk_reward.models import resolve_model
from fk_reward.rewards import load_reward
from fk_reward.rewards.weights import read_state_dict, unwrapped_names
from tests.tiny.llava_reward import write_tiny
from tests.tiny.registered_rewards import build

MARKS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
PREFIXES = [
    "",
    *(".".join(marks) + "." for size in (1, 2) for marks in itertools.permutations(MARKS, size)),
    "module.module._orig_mod.",
]


def first_place(name):
    return "module._orig_mod." + name


def everywhere(name):
    """A mark before the last part as well, and two in the middle of what has a middle."""
    *outer, last = name.split(".")
    outer = [part for place in outer for part in (place, "_fsdp_wrapped_module", "_checkpoint_wrapped_module")]
    return ".".join(["_orig_mod", "module", *outer, last])


WRAPPINGS = {"before": first_place, "everywhere": everywhere}


def rewrite(path, wrap):
    """Rename all tensors of a file, or of all files of tensors in a folder."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.suffix in (".safetensors", ".bin", ".pt")]
    assert files
    for file in files:
        if file.suffix == ".safetensors":
            with_metadata = {"format": "pt"}
            if file.name == "reward.safetensors":
                with_metadata = {"adapter": "lora"}
            save_file({wrap(name): t for name, t in load_file(file).items()}, file, metadata=with_metadata)
        else:
            content = torch.load(file, weights_only=True)
            renamed = {wrap(name): t for name, t in content.get("state_dict", content).items()}
            torch.save({**content, "state_dict": renamed} if "state_dict" in content else renamed, file)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_any_order_and_depth(prefix):
    assert list(unwrapped_names({f"{prefix}proj.weight": torch.ones(1)}, source="x")) == ["proj.weight"]


def test_what_torch_itself_writes():
    """torch.compile around DataParallel around a module with checkpointed and compiled layers."""
    inner = torch.nn.ModuleDict(
        {
            "module": torch.nn.Linear(2, 2),  # a module may be called so
            "blocks": torch.nn.Sequential(checkpoint_wrapper(torch.nn.Linear(2, 2)), torch.compile(torch.nn.ReLU())),
            "deep": torch.nn.Sequential(torch.compile(torch.nn.Sequential(torch.compile(torch.nn.Linear(2, 2))))),
        }
    )
    expected = {
        *(f"net.module.{kind}" for kind in ("weight", "bias")),
        *(f"net.blocks.0.{kind}" for kind in ("weight", "bias")),
        *(f"net.deep.0.0.{kind}" for kind in ("weight", "bias")),
    }
    model = torch.nn.ModuleDict({"net": inner})
    wrapped = torch.compile(torch.nn.DataParallel(torch.nn.Sequential(model)))
    names = {name.removeprefix("0.") for name in unwrapped_names(dict(wrapped.state_dict()), source="x")}
    assert names == expected


def test_two_tensors_of_one_name_are_an_error(tmp_path):
    names = ["module.proj.weight", "_orig_mod.proj.weight"]
    with pytest.raises(ValueError, match=r"'module.proj.weight' and '_orig_mod.proj.weight', which are both"):
        unwrapped_names(dict.fromkeys(names, torch.ones(1)), source="x")
    torch.save({"state_dict": dict.fromkeys(names, torch.ones(1))}, tmp_path / "epoch_1.pt")
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "epoch_1.pt"))):
        read_state_dict(tmp_path / "epoch_1.pt")


READERS = {  # name of a reward -> the option that names its files, and which these are
    "hpsv2.1": ("weights", "hps"),
    "imagereward": ("weights", "imagereward"),
    "aesthetic": ("weights", "aesthetic_head"),
    "clipscore": ("model", "clip"),
    "blip-itm": ("model", "blip_itm"),
    "vqascore": ("model", "llava"),
}


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
@pytest.mark.parametrize("name", READERS)
def test_readers_of_one_checkpoint(name, wrap, tiny_files, tmp_path, images):
    option, files = READERS[name]
    source = Path(getattr(tiny_files, files))
    copy = tmp_path / source.name
    if source.is_dir():
        shutil.copytree(source, copy)
    else:
        shutil.copy(source, copy)
    rewrite(copy, wrap)
    wrapped, plain = build(name, tiny_files, **{option: copy}), build(name, tiny_files)
    assert_close(wrapped(images, "red"), plain(images, "red"), rtol=0, atol=1e-6)


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
def test_a_llava_reward_in_our_format(wrap, tmp_path, images):
    folder = shutil.copytree(resolve_model("shapes-llava-reward-safety"), tmp_path / "safety")
    rewrite(folder, wrap)
    reward = load_reward("llava-reward", adapter=folder, torch_dtype=torch.float32)
    expected = load_reward("shapes-llava-reward-safety")(images, "a photo of a star")
    assert_close(reward(images, "a photo of a star"), expected)


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
def test_an_official_llava_reward_and_its_backbone(wrap, tmp_path, images):
    tiny = write_tiny(tmp_path / "tiny", "phi3_v")
    expected = tiny.load("safety")(images, "a star")
    rewrite(tiny.adapters, wrap)
    rewrite(tiny.backbone, wrap)
    assert_close(tiny.load("safety")(images, "a star"), expected)


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
