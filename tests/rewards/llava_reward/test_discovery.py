"""Finding an official checkpoint among the files of a repository; the hub is a stand-in."""

from __future__ import annotations

from fnmatch import fnmatch

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects

from fk_reward.rewards.llava_reward import official_checkpoint
from fk_reward.rewards.llava_reward.official_checkpoint import download_official, find_official_folder

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


def test_an_unknown_backbone():
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
