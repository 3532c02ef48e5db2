"""Official checkpoints: every backbone's layout, how their folders are found, and what must be refused."""

from __future__ import annotations

import dataclasses
import logging
from fnmatch import fnmatch

import pytest
import torch
import yaml
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from peft import LoraConfig
from safetensors.torch import load_file

from fk_reward.rewards.llava_reward import official_checkpoint
from fk_reward.rewards.llava_reward.checkpoint import load_own_checkpoint
from fk_reward.rewards.llava_reward.official_checkpoint import (
    download_official,
    find_official_folder,
    load_official_checkpoint,
    official_layouts,
)
from tests.tiny.llava_next import write_llava_next
from tests.tiny.official_reward import rewrite_tensors, write_official_reward
from tests.tiny.phi3_vision import write_phi3_vision
from tests.tiny.qwen2_5_vl import write_qwen2_5_vl

WRITERS = {"phi3_v": write_phi3_vision, "qwen2_5_vl": write_qwen2_5_vl, "llava_next": write_llava_next}
PREFIXES = {"phi3_v": "model.", "qwen2_5_vl": "model.", "llava_next": "language_model.model."}
PROJECTORS = {
    "phi3_v": "model.vision_embed_tokens.img_projection.",
    "qwen2_5_vl": "visual.merger.",
    "llava_next": "multi_modal_projector.",
}


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    return {name: write(tmp_path_factory.mktemp(name)) for name, write in WRITERS.items()}


@pytest.fixture
def write(backbones, tmp_path):
    def write(model_type="phi3_v", **settings):
        return write_official_reward(tmp_path, backbone=backbones[model_type], model_type=model_type, **settings)

    return write


def load(folder, backbone="phi3_v", **options):
    return load_official_checkpoint(folder, backbone=backbone, dimension="safety", base_model="a/base", **options)


def edit_yaml(folder, **changes):
    path = folder / "reward_config.yaml"
    settings = yaml.safe_load(path.read_text()) | changes
    path.write_text(yaml.safe_dump({key: value for key, value in settings.items() if value is not None}))


@pytest.mark.parametrize("model_type", WRITERS)
def test_every_layout(write, model_type):
    folder = write(model_type)
    checkpoint = load(folder, model_type)
    tensors, lora = torch.load(folder / "pytorch_model.bin", weights_only=True), checkpoint.lora
    official_lora = load_file(folder / "lora" / "adapter_model.safetensors")
    prefix = f"base_model.model.{PREFIXES[model_type]}"
    assert {prefix + key for key in lora} == set(official_lora)
    assert all(torch.equal(lora[key.removeprefix(prefix)], tensor) for key, tensor in official_lora.items())
    names = {"skip_ca.norm.": "ca_layernorm.", "skip_ca.": ""}
    expected = {PROJECTORS[model_type] + key: tensor for key, tensor in checkpoint.projector.items()}
    for key, tensor in checkpoint.head.items():
        ours = next((name for name in names if key.startswith(name)), "")
        expected[key.replace(ours, names.get(ours, ""))] = tensor
    assert expected.keys() == tensors.keys()
    assert all(torch.equal(expected[key], tensor) and tensor.dtype == torch.bfloat16 for key, tensor in tensors.items())
    assert tuple(checkpoint.projector) == official_layouts()[model_type].projector_keys


@pytest.mark.parametrize("model_type", WRITERS)
def test_the_adapter_is_for_the_language_model_alone(write, model_type):
    checkpoint = load(write(model_type), model_type)
    config = checkpoint.lora_config
    assert config.target_modules == set(checkpoint.lora_modules)
    assert all(module.startswith("layers.") for module in config.target_modules)
    assert (config.r, config.lora_alpha, config.inference_mode) == (4, 8, True)
    assert (config.base_model_name_or_path, config.auto_mapping) == ("a/base", None)


@pytest.mark.parametrize("model_type", WRITERS)
def test_conversion_keeps_everything(write, model_type, tmp_path):
    official = load(write(model_type), model_type)
    own = load_own_checkpoint(official.save(tmp_path / "own"))
    assert own.config == official.config
    for part in ("lora", "projector", "head"):
        tensors, others = getattr(official, part), getattr(own, part)
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensor, others[key]) for key, tensor in tensors.items())


def test_settings_of_the_config(write):
    config = load(write(value_head_dim=2)).config  # ignored by the official code without general preference
    assert (config.objective, config.value_head_dim, config.temperature) == ("bradley-terry", 1, 0.1)
    assert (config.backbone, config.dimension, config.base_model) == ("phi3_v", "safety", "a/base")
    assert (config.cross_attention, config.attends_to, config.backbone_options) == (True, "visual", {"num_crops": 16})
    assert load(write(), objective="binary").config.objective == "binary"
    config = load(write(is_general_preference=True, value_head_dim=4, add_cross_attention=False)).config
    assert (config.objective, config.value_head_dim, config.cross_attention) == ("general-preference", 4, False)
    assert load(write(is_general_preference=True, value_head_dim=1)).config.objective == "binary"


def test_qwen_attends_to_nothing_and_says_so(write, caplog):
    assert load(write("qwen2_5_vl"), "qwen2_5_vl").config.attends_to == "nothing"
    assert "padding token" in caplog.text
    caplog.clear()
    assert load(write("qwen2_5_vl", add_cross_attention=False), "qwen2_5_vl").config.attends_to == "visual"
    assert caplog.text == ""


@pytest.mark.parametrize("wrapper", ["module.", "base_model.model.", ""])
def test_wrappers_before_the_names(write, wrapper):
    folder = write()
    expected = load(folder)
    rewrite_tensors(folder / "pytorch_model.bin", lambda tensors: {wrapper + key: tensors[key] for key in tensors})
    loaded = load(folder)
    assert all(torch.equal(loaded.head[key], tensor) for key, tensor in expected.head.items())
    assert loaded.projector.keys() == expected.projector.keys()


@pytest.mark.parametrize("asked", WRITERS)
@pytest.mark.parametrize("made_for", WRITERS)
def test_another_backbone_is_recognised(write, made_for, asked):
    folder = write(made_for, add_cross_attention=False)
    if asked == made_for:
        assert load(folder, asked).config.backbone == asked
        return
    with pytest.raises(ValueError, match=f"checkpoint for {made_for}, not {asked}"):
        load(folder, asked)


@pytest.mark.parametrize(("made_for", "asked"), [("phi3_v", "qwen2_5_vl"), ("qwen2_5_vl", "phi3_v")])
def test_another_backbone_is_recognised_by_lora_alone(write, made_for, asked, caplog):
    folder = write(made_for, add_cross_attention=False)
    rewrite_tensors(folder / "pytorch_model.bin", lambda t: {"value_head.weight": t["value_head.weight"]})
    with pytest.raises(ValueError, match=f"another backbone than {asked}: LoRA adapts q"):
        load(folder, asked)
    assert load(folder, made_for).projector == {}
    assert "base model's own projector" in caplog.text


@pytest.mark.parametrize(
    "name", ["reward_config.yaml", "pytorch_model.bin", "lora/adapter_config.json", "lora/adapter_model.safetensors"]
)
def test_an_absent_file_is_named(write, name):
    folder = write()
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name.replace("safetensors", "bin")):
        load(folder)


def test_no_folder():
    with pytest.raises(FileNotFoundError, match=r"lacks reward_config\.yaml.*it is not a folder"):
        load("nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value_head_dim": None}, "lacks value_head_dim"),
        ({"value_head_dim": "2"}, "value_head_dim must be of type int, got '2'"),
        ({"value_head_dim": True}, "value_head_dim must be of type int"),
        ({"is_general_preference": 1}, "is_general_preference must be of type bool"),
        ({"general_preference_tau": "1e-1"}, "general_preference_tau must be of type number"),
        ({"general_preference_tau": 0}, "temperature must be positive"),
        ({"is_general_preference": True, "value_head_dim": 3}, "must be even for general preferences, got 3"),
        ({"is_general_preference": True, "value_head_dim": 4}, r"\(1, \d+\), expected \(4, \d+\)"),
        ({"add_cross_attention": False}, "does not have: W_q.weight, W_k.weight"),
    ],
)
def test_wrong_settings(write, changes, message):
    folder = write()
    edit_yaml(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load(folder)


@pytest.mark.parametrize("text", ["[1, 2]", "", "a: b: c"])
def test_no_mapping(write, text):
    folder = write()
    (folder / "reward_config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"reward_config\.yaml"):
        load(folder)


def test_skip_ca_that_the_official_code_cannot_have(write):
    folder = write("llava_next")
    edit_yaml(folder, add_cross_attention=True)
    with pytest.raises(ValueError, match="no SkipCA for llava_next"):
        load(folder, "llava_next")


@pytest.mark.parametrize(
    "key", ["value_head.weight", "W_k.weight", "ca_layernorm.weight", "model.vision_embed_tokens.img_projection.2.bias"]
)
def test_an_absent_tensor_is_named(write, key):
    folder = write()
    rewrite_tensors(folder / "pytorch_model.bin", lambda t: {name: tensor for name, tensor in t.items() if name != key})
    with pytest.raises(ValueError, match=f"pytorch_model.bin lacks {key.removeprefix('model.vision_embed_tokens.')}"):
        load(folder)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"W_q.weight": torch.zeros(8, 8)}, r"W_q\.weight has shape \(8, 8\)"),
        ({"module.W_q.weight": torch.zeros(8, 8)}, "'W_q.weight' and 'module.W_q.weight', which are both 'W_q.weight'"),
        ({"reward.W_q.weight": torch.zeros(8, 8)}, "several tensors of one name: W_q.weight, reward.W_q.weight"),
        ({"value_head.bias": torch.zeros(1)}, "does not have: value_head.bias"),
        ({"img_projection.0.lora_A.default.weight": torch.zeros(1)}, "does not have: img_projection.0.lora_A"),
    ],
)
def test_tensors_that_do_not_fit(write, tensors, message):
    folder = write()
    rewrite_tensors(folder / "pytorch_model.bin", lambda others: others | tensors)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_what_the_official_code_does_not_read_is_told(write, caplog):
    folder = write()
    edit_yaml(folder, layer_id=32)
    rewrite_tensors(folder / "pytorch_model.bin", lambda others: others | {"prompt_head.weight": torch.zeros(1)})
    with caplog.at_level(logging.WARNING):
        assert "prompt_head.weight" not in load(folder).head
    assert "layer_id" in caplog.text and "prompt_head.weight" in caplog.text


class Trap:
    def __reduce__(self):
        return print, ("this must never run",)


@pytest.mark.parametrize("contents", [Trap(), {"value_head.weight": Trap()}, [torch.zeros(1)], {"a": 1.0}])
def test_pickles_are_not_run(write, contents, capsys):
    folder = write()
    torch.save(contents, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin"):
        load(folder)
    assert "never" not in capsys.readouterr().out
    (folder / "pytorch_model.bin").write_bytes(b"no tensors at all")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is damaged"):
        load(folder)


@pytest.mark.parametrize(
    ("settings", "asked", "message"),
    [
        ({"is_general_preference": True, "value_head_dim": 2}, "binary", "must be general-preference"),
        ({"is_general_preference": True}, "bradley-terry", "must be binary"),
        ({}, "general-preference", "must be bradley-terry or binary"),
    ],
)
def test_an_objective_that_it_cannot_have(write, settings, asked, message):
    folder = write(**settings)
    with pytest.raises(ValueError, match=message):
        load(folder, objective=asked)


def test_an_unknown_backbone(write):
    with pytest.raises(ValueError, match="'clip', only for phi3_v"):
        load(write(), "clip")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return write_phi3_vision(tmp_path_factory.mktemp("phi"))


@pytest.fixture
def write_lora(backbone, tmp_path):
    return lambda **settings: write_official_reward(tmp_path, backbone=backbone, model_type="phi3_v", **settings)


def load_lora(folder):
    return load_official_checkpoint(folder, backbone="phi3_v", dimension="safety", base_model="a/base")


@pytest.mark.parametrize(
    "rename",
    [
        lambda key: key.removeprefix("base_model.model."),
        lambda key: key.replace(".weight", ".default.weight"),
        lambda key: key.replace("base_model.model.model.", "base_model.model.model.language_model."),
    ],
    ids=["without PEFT's prefix", "with the adapter's name", "names of transformers 5"],
)
@pytest.mark.parametrize("pickled", [True, False])
def test_other_names_of_lora(write_lora, rename, pickled):
    folder = write_lora(pickled_lora=pickled)
    expected = load_lora(folder).lora
    file = folder / "lora" / ("adapter_model.bin" if pickled else "adapter_model.safetensors")
    rewrite_tensors(file, lambda tensors: {rename(key): tensor for key, tensor in tensors.items()})
    loaded = load_lora(folder).lora
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize(
    "key",
    [
        "base_model.model.model.vision_embed_tokens.img_processor.vision_model.encoder.layers.0.mlp.fc1.lora_A.weight",
        "base_model.model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.visual.blocks.0.attn.qkv.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.o_proj.lora_magnitude_vector",
    ],
)
def test_lora_elsewhere_is_refused(write_lora, key):
    folder = write_lora()
    rewrite_tensors(folder / "lora" / "adapter_model.safetensors", lambda tensors: tensors | {key: torch.zeros(4, 4)})
    with pytest.raises(ValueError, match="is not a LoRA matrix of the language model"):
        load_lora(folder)


def test_two_adapters_in_one_file_are_refused(write_lora):
    folder = write_lora()

    def double(tensors):
        return tensors | {key.replace(".weight", ".other.weight"): tensor.clone() for key, tensor in tensors.items()}

    rewrite_tensors(folder / "lora" / "adapter_model.safetensors", double)
    with pytest.raises(ValueError, match="must hold one adapter"):
        load_lora(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 8}, "the configuration says 8"),
        ({"rank_pattern": {"o_proj": 2}}, "rank_pattern is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save=.* is not plain LoRA"),
    ],
)
def test_lora_configurations_that_do_not_fit(write_lora, changes, message):
    folder = write_lora()
    config = dataclasses.replace(LoraConfig.from_pretrained(str(folder / "lora")), **changes)
    config.save_pretrained(str(folder / "lora"))
    with pytest.raises(ValueError, match=message):
        load_lora(folder)


PARTS = ("reward_config.yaml", "pytorch_model.bin", "lora/adapter_config.json", "lora/adapter_model.safetensors")
OTHERS = ("tokenizer.json", "config.json", "global_step9/optimizer.pt")


def listing(*folders):
    return ["README.md", ".gitattributes", *(f"{folder}/{part}" for folder in folders for part in (*PARTS, *OTHERS))]


PHI = "alignment/llavareward_phi_alignment"
WILD = (
    PHI,
    "alignment/llavareward_qwen_alignment",
    "alignment/llavareward_llava_alignment",
    "Fidelity/LLaVA-Reward-Phi3.5v",
    "safety/llava_reward-qwen2.5vl/epoch_1",
    "general/phi35_[gpm]",
)


@pytest.mark.parametrize(
    ("backbone", "dimension", "folder"),
    [
        ("phi3_v", "alignment", PHI),
        ("qwen2_5_vl", "alignment", "alignment/llavareward_qwen_alignment"),
        ("llava_next", "alignment", "alignment/llavareward_llava_alignment"),
        ("phi3_v", "fidelity", "Fidelity/LLaVA-Reward-Phi3.5v"),
        ("qwen2_5_vl", "safety", "safety/llava_reward-qwen2.5vl/epoch_1"),
        ("phi3_v", "overall", "general/phi35_[gpm]"),
    ],
)
def test_names_in_the_wild(backbone, dimension, folder):
    assert find_official_folder(listing(*WILD), backbone=backbone, dimension=dimension) == folder


def test_the_name_of_the_project_is_no_backbone():
    with pytest.raises(FileNotFoundError, match="names llava_next and alignment"):
        find_official_folder(listing(PHI), backbone="llava_next", dimension="alignment")


@pytest.mark.parametrize("folder", ["alignment/llavareward_graphic", "alignment/sapphire"])
def test_a_word_inside_another_is_none(folder):
    with pytest.raises(FileNotFoundError, match=folder):
        find_official_folder(listing(folder), backbone="phi3_v", dimension="alignment")


def test_other_words_count_only_without_the_name_itself():
    files = listing("overall/phi", "general/phi")
    assert find_official_folder(files, backbone="phi3_v", dimension="overall") == "overall/phi"


def test_none_lists_all_candidates():
    with pytest.raises(FileNotFoundError) as error:
        find_official_folder(listing(*WILD), backbone="phi3_v", dimension="safety")
    assert all(folder in str(error.value) for folder in WILD)
    with pytest.raises(FileNotFoundError, match="there are: none"):
        find_official_folder(["README.md", "phi_safety/model.bin"], backbone="phi3_v", dimension="safety")


def test_several_lists_them():
    files = listing(PHI, "alignment/llavareward_phi_alignment_v2", "safety/phi")
    with pytest.raises(ValueError, match=f"{PHI}, {PHI}_v2. Pass the path"):
        find_official_folder(files, backbone="phi3_v", dimension="alignment")


def test_no_folder_for_an_unknown_backbone():
    with pytest.raises(ValueError, match="'clip', only for phi3_v, qwen2_5_vl, llava_next"):
        find_official_folder(listing(PHI), backbone="clip", dimension="alignment")


class Hub:
    """A repository of which a snapshot holds what the patterns ask for, as the hub's client makes it."""

    def __init__(self, root, files):
        self.root, self.files, self.offline = root, files, False
        self.asked = []

    def snapshot_download(self, repo, *, revision, allow_patterns):
        self.asked.append((repo, revision))
        if self.offline and not self.root.exists():
            raise LocalEntryNotFoundError("not in the cache")
        for name in [] if self.offline else self.files:
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                (self.root / name).touch()
        return str(self.root)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub(tmp_path / "snapshot", listing(*WILD))
    monkeypatch.setattr(official_checkpoint, "snapshot_download", hub.snapshot_download)
    return hub


def test_only_one_checkpoint_is_downloaded(hub):
    folder = download_official("some/repo", backbone="phi3_v", dimension="alignment", revision="v1")
    assert folder == hub.root / PHI
    files = {path.relative_to(hub.root).as_posix() for path in hub.root.rglob("*") if path.is_file()}
    assert files == {f"{PHI}/{part}" for part in PARTS} | {f"{other}/reward_config.yaml" for other in WILD}
    assert hub.asked == [("some/repo", "v1")] * 2


def test_brackets_in_a_name_are_no_pattern(hub):
    folder = download_official("some/repo", backbone="phi3_v", dimension="overall")
    assert (folder / "pytorch_model.bin").is_file()


def test_offline_the_cache_is_used(hub):
    online = download_official("some/repo", backbone="phi3_v", dimension="alignment")
    hub.offline = True
    assert download_official("some/repo", backbone="phi3_v", dimension="alignment") == online


def test_offline_without_a_cache(hub):
    hub.offline = True
    with pytest.raises(LocalEntryNotFoundError):
        download_official("some/repo", backbone="phi3_v", dimension="alignment")


def test_no_fitting_folder_in_a_repository(hub):
    with pytest.raises(FileNotFoundError, match=PHI):
        download_official("some/repo", backbone="phi3_v", dimension="safety")
    assert len(hub.asked) == 1


def test_the_patterns_mean_the_same_to_the_hub():
    found = list(filter_repo_objects(listing(*WILD), allow_patterns=["*reward_config.yaml"]))
    assert found == [f"{folder}/reward_config.yaml" for folder in WILD]
    found = list(filter_repo_objects(listing(PHI), allow_patterns=[f"{PHI}/lora/*"]))
    assert found == [f"{PHI}/{part}" for part in PARTS[2:]]
