"""Adapters: whatever their settings, the shared backbone stays as it is, bit for bit; compiled blocks, too."""

from __future__ import annotations

import contextlib
import json
import shutil
import typing
from dataclasses import fields

import peft
import pytest
import torch
from peft import LoraConfig

from fk_reward.models import resolve_model
from fk_reward.pipelines.acceleration import repeated_blocks
from fk_reward.rewards import load_reward
from fk_reward.rewards.llava_reward.adapters import BASE_CHANGING, BASE_PRESERVING

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
    if isinstance(value, str) and value.lower().startswith(BASE_CHANGING):
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
    assert {name.lower() for name in named} == {*BASE_PRESERVING, *BASE_CHANGING}


@pytest.mark.parametrize("name", [name for name in BASE_CHANGING if name in ("pissa", "olora")])
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


DIMENSIONS = ("alignment", "safety")
TOLERANCE = 1e-5


@pytest.fixture
def reward(tiny):
    torch._dynamo.reset()
    loaded = tiny.load("alignment").add_dimension(tiny.adapters, dimension="safety")
    yield loaded
    for module in loaded.model.modules():
        module._compiled_call_impl = None
    torch._dynamo.reset()


def scores(reward, images, prompts):
    """Of each dimension by itself, for two sizes of batches, then of both in one pass, then of the first again.

    After two sizes the compiled code takes any, so that what it does not look for is not compiled anew.
    """
    alone = [
        reward.set_dimension(name)(images[:size], prompts[:size]) for size in (len(images), 2) for name in DIMENSIONS
    ]
    together = reward.score_dimensions(images, prompts, DIMENSIONS)
    return [*alone, *(together[name] for name in DIMENSIONS), reward.set_dimension("alignment")(images, prompts)]


def compile_blocks(reward):
    """Compile with a backend that runs things as they are; returns what it ran."""
    ran = []

    def backend(graph, inputs):
        def run(*args):
            ran.append(graph)
            return graph.forward(*args)

        return run

    blocks = [block for module in reward.modules_to_compile() for block in repeated_blocks(module)]
    for block in blocks:
        block.compile(backend=backend)
    return ran, {type(block) for block in blocks}


@pytest.mark.long
def test_same_scores(reward, batch):
    with torch.no_grad():
        expected = scores(reward, *batch)
        ran, kinds = compile_blocks(reward)
        torch.testing.assert_close(scores(reward, *batch), expected, rtol=0, atol=TOLERANCE)
    assert len(kinds) == 2, "of the vision tower and of the language model"
    assert ran
    assert (expected[0] - expected[1]).abs().min() > 100 * TOLERANCE, "the dimensions differ"


def test_saboteur_mixed_adapters_in_compiled_blocks_are_noticed(phi, batch, monkeypatch):
    torch._dynamo.reset()
    reward = phi.load("alignment", num_crops=3).add_dimension(phi.adapters, dimension="safety")
    with torch.no_grad():
        expected = scores(reward, *batch)
        compile_blocks(reward)
        monkeypatch.setattr(torch.compiler, "set_stance", lambda stance: contextlib.nullcontext())
        with pytest.raises(AssertionError):
            torch.testing.assert_close(scores(reward, *batch), expected, rtol=0, atol=TOLERANCE)
    torch._dynamo.reset()
