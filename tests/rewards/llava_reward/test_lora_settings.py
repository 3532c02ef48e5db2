"""Whatever an adapter's configuration says: the backbone that all dimensions share stays as it is, bit for bit."""

from __future__ import annotations

import json
import shutil
import typing
from dataclasses import fields

import peft
import pytest
import torch
from peft import LoraConfig

from fk_reward.models import resolve_model
from fk_reward.rewards import load_reward
from fk_reward.rewards.llava_reward.adapters import CHANGE_THE_BASE, LEAVE_THE_BASE

PROMPT = "a photo of a cross"


def words_of(annotation):
    """All values of the `Literal` in a type hint."""
    arguments = typing.get_args(annotation)
    return [a for a in arguments if isinstance(a, str)] + [word for a in arguments for word in words_of(a)]


INITIALISATIONS = [
    *(True, False, "PiSSA", "pissa_niter_4", "lora_ga"),  # the last is not in PEFT's type hint, but in its code
    *(word for word in words_of(typing.get_type_hints(LoraConfig)["init_lora_weights"]) if "[" not in word),
]
MORE_THAN_LORA = {
    "lora_bias": True,
    "use_dora": True,
    "modules_to_save": ["norm"],
    "layer_replication": [[0, 2], [1, 2]],
    "bias": "all",
    "target_parameters": ["layers.0.mlp.down_proj.weight"],
    "alora_invocation_tokens": [1, 2],
    "trainable_token_indices": [1, 2],
    "ensure_weight_tying": True,
    "use_qalora": True,
    "kasa_config": {},
    "megatron_config": {"a": 1},
    "an_option_of_a_newer_peft": 3,
}


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def alignment():
    return load("shapes-llava-reward-alignment")


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(resolve_model("shapes-llava-reward-safety"), tmp_path / "safety")


def load(adapter):
    return load_reward("llava-reward", adapter=adapter, torch_dtype=torch.float32)


def set_fields(folder, **settings):
    path = folder / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def own_weights(reward):
    """The backbone's own weights by their names without PEFT's `base_layer`."""
    return {
        name.replace(".base_layer", ""): tensor.clone()
        for name, tensor in reward.model.backbone.state_dict().items()
        if ".lora_" not in name
    }


def check_unchanged(reward, before):
    after = own_weights(reward)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("value", INITIALISATIONS, ids=str)
def test_the_backbone_is_the_same_after_every_initialisation_that_peft_knows(alignment, folder, images, value):
    before, scores = own_weights(alignment), alignment(images, PROMPT)
    set_fields(folder, init_lora_weights=value, **({"loftq_config": {"loftq_bits": 4}} if value == "loftq" else {}))
    if isinstance(value, str) and value.lower().startswith(CHANGE_THE_BASE):
        with pytest.raises(ValueError, match=rf"adapter_config.json: init_lora_weights='{value}'.*plain LoRA"):
            load(folder)
    else:
        added = load(folder)
        assert added.model is alignment.model
        assert torch.equal(added(images, PROMPT), load("shapes-llava-reward-safety")(images, PROMPT))
    check_unchanged(alignment, before)
    assert torch.equal(alignment(images, PROMPT), scores)


def test_every_initialisation_of_peft_is_sorted():
    """A newer PEFT may have more: decide for each whether it changes the base."""
    named = {value.partition("_niter_")[0] for value in INITIALISATIONS if isinstance(value, str)}
    assert {name.lower() for name in named} == {*LEAVE_THE_BASE, *CHANGE_THE_BASE}


@pytest.mark.parametrize("name", [name for name in CHANGE_THE_BASE if name in ("pissa", "olora")])
def test_those_initialisations_do_change_a_base(name):
    """PEFT itself, on one layer."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    weight = model[0].weight.detach().clone()
    peft.get_peft_model(model, LoraConfig(r=2, target_modules=["0"], init_lora_weights=name))
    assert not torch.equal(model[0].base_layer.weight, weight)


@pytest.mark.parametrize("name", MORE_THAN_LORA)
def test_what_is_more_than_lora_is_refused_by_name(alignment, folder, name):
    before = own_weights(alignment)
    set_fields(folder, **{name: MORE_THAN_LORA[name] or {"r": 2}})
    with pytest.raises(ValueError, match=rf"adapter_config.json: {name}="):
        load(folder)
    with pytest.raises(ValueError, match=rf"adapter_config.json: {name}="):
        alignment.add_dimension(folder)
    check_unchanged(alignment, before)


def test_every_field_of_peft_at_its_default_is_plain_lora(alignment, folder):
    """An adapter saved by this PEFT, with all of its fields written out."""
    LoraConfig(r=4).save_pretrained(folder / "elsewhere")
    written = json.loads((folder / "elsewhere" / "adapter_config.json").read_text())
    assert written.keys() >= {field.name for field in fields(LoraConfig)} - {"runtime_config"}
    own = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    set_fields(folder, **{**written, **{name: own[name] for name in ("r", "lora_alpha", "target_modules")}})
    assert load(folder).model is alignment.model


def test_an_adapter_that_starts_untrained_is_checked_as_well(alignment):
    before = own_weights(alignment)
    target = alignment.model.adapters.linear_modules[:1]
    with pytest.raises(ValueError, match="init_lora_weights='olora'"):
        alignment.model.adapters.add("new", LoraConfig(target_modules=list(target), init_lora_weights="olora"), None)
    check_unchanged(alignment, before)


def test_it_is_saved_as_what_it_has_become(folder, tmp_path):
    """Not as PiSSA or EVA, which PEFT would run again, and not as an adapter that starts at random."""
    set_fields(folder, init_lora_weights="eva")
    load(folder).save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "adapter" / "adapter_config.json").read_text())
    assert saved["init_lora_weights"] is True
