"""Tiny image-text-to-text models with random weights and whole processors, saved as the hub has them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.tiny.llava_next import CHAT_TEMPLATES
from tests.tiny.qwen2_5_vl import CHAT_TEMPLATE as QWEN_TEMPLATE
from tests.tiny.qwen2_5_vl import SPECIAL_TOKENS as QWEN_SPECIALS

WORDS = ("Yes", "No", "yes", "no", "excellent", "good", "fair", "poor", "bad")
_CORPUS = [f"{left}{word}" for word in WORDS for left in ("\n", ": ", "is ")] * 9
_QWEN_NAMES = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
_VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
_TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_TEXT |= {"num_key_value_heads": 2, "max_position_embeddings": 4096}
_LLAVA_TEMPLATE = CHAT_TEMPLATES["llama"].replace(
    "{{ message['role'].upper() + ': ' }}",
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}",
)


def write_llava(folder: Path, *, seed: int = 0, words: tuple[str, ...] = ()) -> Path:
    """LLaVA-1.5: CLIP tower of 32 pixels, Llama; `llava-hf/llava-1.5-7b-hf` in small, with more words as tokens."""
    tokenizer = _sentencepiece_like(["<pad>", "<s>", "</s>", "<image>"], words=words)
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **_VISION, "image_size": 32, "patch_size": 8},
        text_config={"model_type": "llama", **_TEXT, "vocab_size": len(tokenizer), "pad_token_id": 0},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_LLAVA_TEMPLATE,
    )
    return _write(folder, LlavaForConditionalGeneration, config, processor, seed=seed)


def write_llava_next(folder: Path, *, seed: int = 0) -> Path:
    """LLaVA-1.6, whose image processor cuts crops: one that is not reproduced on tensors."""
    tokenizer = _sentencepiece_like(["<pad>", "<s>", "</s>", "<image>"])
    grid = [[32, 64], [64, 32], [64, 64]]
    config = LlavaNextConfig(
        vision_config={"model_type": "clip_vision_model", **_VISION, "image_size": 32, "patch_size": 8},
        text_config={"model_type": "llama", **_TEXT, "vocab_size": len(tokenizer), "pad_token_id": 0},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
    )
    processor = LlavaNextProcessor(
        LlavaNextImageProcessorPil(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=grid
        ),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_LLAVA_TEMPLATE,
    )
    return _write(folder, LlavaNextForConditionalGeneration, config, processor, seed=seed)


def write_qwen3_vl(folder: Path, *, seed: int = 0) -> Path:
    """`Qwen/Qwen3-VL-2B-Instruct` in small: byte-level tokens, multimodal rotary positions, deepstack."""
    tokenizer = byte_level(QWEN_SPECIALS)
    text = {**_TEXT, "vocab_size": len(tokenizer), "head_dim": 16, "pad_token_id": tokenizer.pad_token_id}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 8}
    vision |= {"out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}_pad|>") for name in ("image", "video")}
    ids |= {f"vision_{x}_token_id": tokenizer.convert_tokens_to_ids(f"<|vision_{x}|>") for x in ("start", "end")}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **ids)
    size = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    images = Qwen2VLImageProcessorPil(
        patch_size=8, size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3, temporal_patch_size=2, merge_size=2
    )
    _write(folder, Qwen3VLForConditionalGeneration, config, None, seed=seed)
    tokenizer.chat_template = QWEN_TEMPLATE
    tokenizer.save_pretrained(folder)
    images.save_pretrained(folder)
    return folder


def write_blip2_t5(folder: Path, *, seed: int = 0) -> Path:
    """`Salesforce/blip2-flan-t5-xl` in small: an encoder-decoder without chat template."""
    tokenizer = _sentencepiece_like(["<pad>", "</s>", "<unk>", "<image>"], bos=None)
    text = {"model_type": "t5", "vocab_size": len(tokenizer), "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2}
    text |= {"num_heads": 4, "decoder_start_token_id": 0, "tie_word_embeddings": False, "bos_token_id": 0}
    config = Blip2Config(
        vision_config={**_VISION, "image_size": 32, "patch_size": 8},
        qformer_config={**_VISION, "encoder_hidden_size": 32, "vocab_size": 32},
        text_config=text,
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    images = BlipImageProcessorPil(size={"height": 32, "width": 32})
    processor = Blip2Processor(images, tokenizer, num_query_tokens=4)
    return _write(folder, Blip2ForConditionalGeneration, config, processor, seed=seed)


def write_instructblip(folder: Path, *, seed: int = 0) -> Path:
    """`Salesforce/instructblip-flan-t5-xl` in small: as BLIP-2, but the Q-Former reads the question, too."""
    tokenizer = _sentencepiece_like(["<pad>", "</s>", "<unk>", "<image>"], bos=None)
    text = {"model_type": "t5", "vocab_size": len(tokenizer), "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2}
    text |= {"num_heads": 4, "decoder_start_token_id": 0, "tie_word_embeddings": False, "bos_token_id": 0}
    config = InstructBlipConfig(
        vision_config={**_VISION, "image_size": 32, "patch_size": 8},
        qformer_config={**_VISION, "encoder_hidden_size": 32, "vocab_size": len(tokenizer)},
        text_config=text,
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    images = BlipImageProcessorPil(size={"height": 32, "width": 32})
    qformer_tokenizer = _sentencepiece_like(["<pad>", "</s>", "<unk>"], bos=None)
    processor = InstructBlipProcessor(images, tokenizer, qformer_tokenizer, num_query_tokens=4)
    return _write(folder, InstructBlipForConditionalGeneration, config, processor, seed=seed)


def write_clip_t5(folder: Path, *, seed: int = 0) -> Path:
    """`zhiqiulin/clip-flant5-xl` in small: its names and its config.json; the CLIP tower's settings in a folder."""
    tower = {**_VISION, "image_size": 32, "patch_size": 8}
    CLIPConfig(vision_config=tower).save_pretrained(folder / "tower")
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder / "tower")
    tokenizer = _sentencepiece_like(["<pad>", "</s>", "<unk>"], bos=None)
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.eos_token_id)]
    )
    tokenizer.save_pretrained(folder)
    config = {"model_type": "t5", "architectures": ["CLIPT5ForConditionalGeneration"], "is_encoder_decoder": True}
    config |= {"vocab_size": len(tokenizer) + 7, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    config |= {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0}
    with torch.random.fork_rng(devices=[]):
        parts = T5ForConditionalGeneration(T5Config(**config)), CLIPVisionModel(CLIPVisionConfig(**tower))
        projector = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32))
    modules = {"": parts[0], "vision_tower.vision_tower.vision_model.": parts[1], "mm_projector.": projector}
    state = {}
    for number, (prefix, module) in enumerate(modules.items()):
        randomise(module, torch.Generator().manual_seed(seed + number))
        state |= {prefix + name: tensor.clone() for name, tensor in module.state_dict().items()}
    torch.save(state, folder / "pytorch_model.bin")
    config |= {"mm_vision_tower": str(folder / "tower"), "mm_hidden_size": 32, "mm_projector_type": "mlp2x_gelu"}
    config |= {"mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "use_mm_proj": True}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _write(folder: Path, cls, config, processor, *, seed: int) -> Path:
    with torch.random.fork_rng(devices=[]):
        model = cls(config)
    randomise(model, torch.Generator().manual_seed(seed))
    model.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return folder


def randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Weights large enough for pictures and words to change the answer."""
    for name, parameter in model.named_parameters():
        scale = 0.4 if "lm_head" in name else 0.25
        noise = torch.randn(parameter.shape, generator=generator) * scale
        parameter.data = noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)


def byte_level(specials: tuple[str, ...], **names) -> PreTrainedTokenizerFast:
    """A tokenizer with a token for each byte, and for the answers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    _train(tokenizer, specials, alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names or _QWEN_NAMES)


def _sentencepiece_like(
    specials: list[str], *, bos: str | None = "<s>", words: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    """Llama's and T5's way of spelling: a space is part of the word that follows it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
    _train(tokenizer, specials, alphabet=["▁", "\n", *map(chr, range(33, 127))], words=words)
    names = {"bos_token": bos, "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **names)


def _train(tokenizer: Tokenizer, specials, *, alphabet: list[str], words: tuple[str, ...] = ()) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=alphabet,
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in specials],
        show_progress=False,
    )
    tokenizer.train_from_iterator([*_CORPUS, *(f": {word}" for word in words for _ in range(9))], trainer)
