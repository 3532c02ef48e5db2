"""Tiny random models in the layouts of the official repositories, and images that every reward can tell apart."""

from __future__ import annotations

import json
import string
from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageDraw

from fk_reward.rewards import load_reward
from tests.tiny.aesthetic import mlp_tensors, write_head
from tests.tiny.answer_models import write_llava, write_qwen3_vl
from tests.tiny.author_words import write_author_words
from tests.tiny.blip_itm import write_blip_itm
from tests.tiny.hpsv3 import write_hpsv3
from tests.tiny.imagereward import write_cyclereward, write_imagereward
from tests.tiny.llava_lora import write_llava_lora, write_unsafe_words
from tests.tiny.llava_reward import write_tiny
from tests.tiny.open_clip import write_hps
from tests.tiny.scripted_detectors import write_geneval_records
from tests.tiny.shieldgemma2 import write_shieldgemma2
from tests.tiny.vision_models import siglip_head_tensors, write_classifier, write_siglip

SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def write_tokenizer(folder) -> int:
    """Write the files of a byte-level BPE with two merges; return the size of its vocabulary."""
    letters = string.ascii_lowercase + string.digits
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "re", "red</w>", *SPECIAL]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    config = {"tokenizer_class": "CLIPTokenizer", "bos_token": SPECIAL[0], "eos_token": SPECIAL[1]}
    config |= {"unk_token": SPECIAL[1], "pad_token": SPECIAL[1], "model_max_length": 32}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(tokens)


def tiny_clip_config(vocab_size):
    from transformers import CLIPConfig

    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": vocab_size - 2, "eos_token_id": vocab_size - 1, "pad_token_id": vocab_size - 1}
    return CLIPConfig(
        text_config={**tower, **ids, "vocab_size": vocab_size, "max_position_embeddings": 32, "projection_dim": 16},
        vision_config={**tower, "image_size": 32, "patch_size": 8, "projection_dim": 16},
        projection_dim=16,
    )


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory):
    """Folder of a random CLIPModel for 32x32 images and 32 tokens, its preprocessor file in the hub's older form."""
    from transformers import CLIPModel

    folder = tmp_path_factory.mktemp("tiny-clip")
    config = tiny_clip_config(write_tokenizer(folder))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(config)
        for parameter in model.parameters():  # the default initialisation is so small that all embeddings look alike
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    processor = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 32, "resample": 3}
    processor |= {"do_resize": True, "do_center_crop": True, "do_normalize": True}
    processor |= {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return str(folder)


@pytest.fixture(scope="session")
def tiny_files(tiny_clip, tmp_path_factory):
    """Files with which the registered rewards can be built offline."""
    phi, qwen = (
        write_tiny(tmp_path_factory.mktemp(model_type), model_type, general_preference=())
        for model_type in ("phi3_v", "qwen2_5_vl")
    )
    guard_llava = write_llava(tmp_path_factory.mktemp("guard-llava"), words=("Safe", "Unsafe"))
    clip_family = tmp_path_factory.mktemp("clip-family")
    return SimpleNamespace(
        aesthetic_head=write_head(clip_family / "aesthetic.pth", mlp_tensors(16)),
        blip_itm=str(write_blip_itm(tmp_path_factory.mktemp("blip-itm"))),
        classifier=write_classifier(tmp_path_factory.mktemp("classifier")),
        clip=tiny_clip,
        cyclereward=write_cyclereward(clip_family / "CycleReward-Combo.pth"),
        geneval_records=write_geneval_records(clip_family / "geneval.jsonl"),
        hps=write_hps(clip_family / "hps.pt"),
        hpsv3=write_hpsv3(tmp_path_factory.mktemp("hpsv3")),
        imagereward=write_imagereward(tmp_path_factory.mktemp("imagereward")),
        guard_llava=guard_llava,
        llava=write_llava(tmp_path_factory.mktemp("llava")),
        llava_lora=write_llava_lora(tmp_path_factory.mktemp("llava-lora"), guard_llava),
        phi=phi,
        qwen=qwen,
        qwen3_vl=write_qwen3_vl(tmp_path_factory.mktemp("qwen3-vl")),
        shieldgemma2=write_shieldgemma2(tmp_path_factory.mktemp("shieldgemma2")),
        siglip=write_siglip(tmp_path_factory.mktemp("siglip")),
        siglip_head=write_head(clip_family / "aesthetic_predictor_v2_5.pth", siglip_head_tensors()),
        unsafe_words=write_unsafe_words(tmp_path_factory.mktemp("unsafe-words")),
        words=write_author_words(tmp_path_factory.mktemp("words")),
    )


@pytest.fixture(scope="session")
def pictures():
    """A red circle and a blue square, 64x64, as PIL images."""
    circle, square = (Image.new("RGB", (64, 64), (244, 244, 240)) for _ in range(2))
    ImageDraw.Draw(circle).ellipse((20, 20, 44, 44), fill=(220, 40, 40))
    ImageDraw.Draw(square).rectangle((20, 20, 42, 42), fill=(50, 80, 220))
    return [circle, square]


@pytest.fixture(scope="session")
def prompts():
    """What `pictures` show."""
    return ["a photo of a red circle", "a photo of a blue square"]


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
