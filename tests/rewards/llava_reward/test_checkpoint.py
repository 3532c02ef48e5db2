"""Our own format: bit for bit, read by PEFT, and never half of a checkpoint."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
from peft import LoHaConfig, LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaModel, Phi3Config, Phi3Model

from fk_reward.rewards.llava_reward import checkpoint as checkpoint_module
from fk_reward.rewards.llava_reward.checkpoint import RewardCheckpoint, load_own_checkpoint
from fk_reward.rewards.llava_reward.config import LlavaRewardConfig
from fk_reward.rewards.llava_reward.head import RewardHead

WIDTH = 16
SIZES = {"hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"vocab_size": 32, "num_key_value_heads": 2, "pad_token_id": 0}


def language_model(kind="phi3"):
    torch.manual_seed(0)
    config, model = {"phi3": (Phi3Config, Phi3Model), "llama": (LlamaConfig, LlamaModel)}[kind]
    return model(config(**SIZES)).eval()


def adapted(kind="phi3"):
    """PEFT's model with random LoRA, as training would leave it."""
    targets = ["qkv_proj", "down_proj"] if kind == "phi3" else ["q_proj", "down_proj"]
    model = get_peft_model(language_model(kind), LoraConfig(r=2, lora_alpha=4, target_modules=targets))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def make(model=None, *, cross_attention=True, projector=True, dtype=torch.float32, **settings):
    settings = {"dimension": "safety", "backbone": "phi3_v", "base_model": "a/base"} | settings
    config = LlavaRewardConfig(cross_attention=cross_attention, **settings)
    head = RewardHead(WIDTH, value_head_dim=config.value_head_dim, cross_attention=cross_attention, eps=1e-5)
    lora = get_peft_model_state_dict(model) if model is not None else {}
    return RewardCheckpoint(
        config=config,
        lora_config=copy.deepcopy(model.peft_config["default"]) if model is not None else None,
        lora={key.removeprefix("base_model.model."): tensor.to(dtype) for key, tensor in lora.items()},
        projector={"0.weight": torch.randn(4, 3).to(dtype), "0.bias": torch.randn(4)} if projector else {},
        head={key: tensor.to(dtype) for key, tensor in head.state_dict().items()},
    )


def assert_same(one, other):
    assert one.config == other.config
    assert (one.lora_config is None) == (other.lora_config is None)
    for part in ("lora", "projector", "head"):
        tensors, others = getattr(one, part), getattr(other, part)
        assert tensors.keys() == others.keys()
        for key, tensor in tensors.items():
            assert tensor.dtype == others[key].dtype
            assert torch.equal(tensor, others[key]), key


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def trained():
    return make(adapted())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_round_trip_bit_for_bit(tmp_path, dtype):
    checkpoint = make(adapted(), dtype=dtype, backbone_options={"num_crops": 4})
    loaded = load_own_checkpoint(checkpoint.save(tmp_path / "new" / "folder"))
    assert_same(checkpoint, loaded)
    assert (loaded.lora_config.r, loaded.lora_config.lora_alpha) == (2, 4)
    broken = dataclasses.replace(loaded, head={key: tensor * 1.01 for key, tensor in loaded.head.items()})
    with pytest.raises(AssertionError):
        assert_same(checkpoint, broken)


@pytest.mark.parametrize("cross_attention", [True, False])
def test_without_lora_and_projector(tmp_path, cross_attention):
    checkpoint = make(cross_attention=cross_attention, projector=False)
    loaded = load_own_checkpoint(checkpoint.save(tmp_path))
    assert_same(checkpoint, loaded)
    assert loaded.lora_modules == []
    assert files(tmp_path) == {"reward.safetensors", "reward_config.json"}


def test_the_files_hold_no_pickles_and_do_not_change(tmp_path, trained):
    names = {"reward.safetensors", "reward_config.json", "adapter/adapter_config.json"}
    for folder in ("a", "b"):
        trained.save(tmp_path / folder)
        assert files(tmp_path / folder) == names | {"adapter/adapter_model.safetensors"}
    for name in files(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    adapter = json.loads((tmp_path / "a" / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "a/base"
    assert adapter["target_modules"] == [
        f"layers.{layer}.{module}" for layer in (0, 1) for module in ("mlp.down_proj", "self_attn.qkv_proj")
    ]


@pytest.mark.parametrize("kind", ["phi3", "llama"])
def test_peft_reads_the_adapter(tmp_path, kind):
    model = adapted(kind)
    folder = make(model).save(tmp_path)
    tokens = torch.arange(6).view(1, 6)
    expected = model(input_ids=tokens).last_hidden_state
    again = PeftModel.from_pretrained(language_model(kind), str(folder / "adapter")).eval()
    assert torch.equal(again(input_ids=tokens).last_hidden_state, expected)
    assert not torch.equal(language_model(kind)(input_ids=tokens).last_hidden_state, expected)


def test_shared_and_transposed_tensors(tmp_path):
    tied = torch.randn(4, 3)
    checkpoint = dataclasses.replace(make(), projector={"a": tied, "b": tied, "c": tied.T, "d": tied[1]})
    loaded = load_own_checkpoint(checkpoint.save(tmp_path))
    assert_same(checkpoint, loaded)


def test_saving_does_not_change_the_checkpoint(tmp_path, trained):
    before = trained.lora_config.to_dict()
    trained.save(tmp_path)
    assert trained.lora_config.to_dict() == before


def test_other_peoples_folders_are_refused(tmp_path, trained):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"holds thesis\.tex"):
        trained.save(tmp_path)
    with pytest.raises(NotADirectoryError, match="is a file"):
        trained.save(tmp_path / "thesis.tex")
    assert files(tmp_path) == {"thesis.tex"}
    assert_same(trained, load_own_checkpoint(trained.save(tmp_path, overwrite=True)))
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_older_checkpoint_is_replaced_whole(tmp_path, trained):
    trained.save(tmp_path)
    plain = make(cross_attention=False, projector=False)
    assert_same(plain, load_own_checkpoint(plain.save(tmp_path)))
    assert "adapter/adapter_model.safetensors" not in files(tmp_path)


@pytest.mark.parametrize("num_files", [0, 1])
def test_an_interrupted_save_does_not_load(tmp_path, trained, monkeypatch, num_files):
    trained.save(tmp_path)
    written = []

    def full_disk(tensors, path, metadata):
        if len(written) == num_files:
            raise OSError("no space left")
        written.append(path)
        save_file(tensors, path, metadata=metadata)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "save_file", full_disk)
        with pytest.raises(OSError, match="no space"):
            trained.save(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"reward_config\.json"):
        load_own_checkpoint(tmp_path)
    assert_same(trained, load_own_checkpoint(trained.save(tmp_path)))


@pytest.mark.parametrize(
    "name",
    ["reward_config.json", "reward.safetensors", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"],
)
def test_an_absent_file_is_named(tmp_path, trained, name):
    (trained.save(tmp_path) / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        load_own_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["reward_config.json", "reward.safetensors", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"],
)
def test_a_damaged_file_is_named(tmp_path, trained, name):
    path = trained.save(tmp_path) / name
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=name):
        load_own_checkpoint(tmp_path)


def rewrite(path, change, **metadata):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=metadata)


def test_files_that_do_not_fit_together(tmp_path, trained):
    tensors = trained.save(tmp_path) / "reward.safetensors"
    rewrite(tensors, lambda t: t.update({"optimizer.step": torch.zeros(1)}), adapter="lora")
    with pytest.raises(ValueError, match=r"head\.\* and projector\.\* only"):
        load_own_checkpoint(tmp_path)
    rewrite(tensors, lambda t: [t.pop("optimizer.step"), t.pop("head.skip_ca.W_k.weight")], adapter="lora")
    with pytest.raises(ValueError, match=r"skip_ca\.W_k\.weight is missing"):
        load_own_checkpoint(tmp_path)
    rewrite(tensors, lambda t: None)
    with pytest.raises(ValueError, match="does not say whether there is an adapter"):
        load_own_checkpoint(tmp_path)


def test_settings_of_wrong_types_and_another_kind_of_adapter(tmp_path, trained):
    folder = trained.save(tmp_path)
    LoHaConfig(r=2).save_pretrained(folder / "adapter")
    with pytest.raises(ValueError, match="expected LoRA"):
        load_own_checkpoint(folder)
    settings = trained.config.to_dict() | {"cross_attention": "yes"}
    (folder / "reward_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"reward_config\.json: cross_attention must be of type bool, got 'yes'"):
        load_own_checkpoint(folder)


def without(tensors, *keys):
    return {key: tensor for key, tensor in tensors.items() if key not in keys}


GPM = {"objective": "general-preference", "value_head_dim": 4}
A = "layers.0.self_attn.qkv_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: {"head": without(c.head, "value_head.weight")}, "value_head.weight is missing"),
        (lambda c: {"head": without(c.head, "skip_ca.norm.weight")}, "skip_ca.norm.weight is missing"),
        (lambda c: {"head": c.head | {"prompt_head.weight": torch.zeros(1)}}, "prompt_head.weight is not expected"),
        (lambda c: {"head": c.head | {"value_head.weight": torch.zeros(4, WIDTH)}}, r"\(4, 16\), expected \(1, 16\)"),
        (lambda c: {"head": c.head | {"skip_ca.W_v.weight": torch.zeros(8, 8)}}, r"\(8, 8\), expected \(16, 16\)"),
        (lambda c: {"config": dataclasses.replace(c.config, **GPM)}, "value_head_dim=4"),
        (lambda c: {"config": dataclasses.replace(c.config, cross_attention=False)}, "cross_attention=False"),
        (lambda c: {"lora_config": None}, "no lora_config"),
        (lambda c: {"lora": without(c.lora, A)}, f"{A} is missing"),
        (lambda c: {"lora": c.lora | {A: torch.zeros(3, WIDTH)}}, r"ranks \(3, 2\), the configuration says 2"),
        (lambda c: {"lora_config": LoraConfig(r=8)}, r"ranks \(2, 2\), the configuration says 8"),
    ],
)
def test_contradictions_are_told(trained, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(trained, **change(trained))


def test_a_checkpoint_before_training_cannot_be_saved(tmp_path, trained):
    for empty in ({"head": {}}, {"lora": {}}):
        with pytest.raises(ValueError, match="no weights yet"):
            dataclasses.replace(trained, **empty).save(tmp_path / "new")
    assert not (tmp_path / "new").exists()
