"""Rewards on published architectures against transformers' own processors and forward passes, on small random weights.

What could differ is everything around the network: pixels, tokens, positions, padding, and which logits are read. So
the other side gets images as PIL images through transformers' processor, texts through the chat template, one image at
a time, and a network of its own with the same weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from fk_reward.planning.full_size_rewards import FULL_SIZE
from fk_reward.rewards import load_reward

PROMPTS = ("a red circle", "two blue squares left of a green star", "a", "a photo of a {cat}")
"""Of different lengths, so that a batch is padded."""

Pair = tuple[Tensor, Tensor]

_SHORT_TEXT = {"hidden_size": 256, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
_SHORT_TEXT |= {"num_key_value_heads": 1}
_TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
_QWEN3_TOWER = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 256}
_QWEN3_TOWER |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
_QWEN2_TOWER = {"depth": 2, "embed_dim": 32, "hidden_size": 256, "num_heads": 2}
_LEVELS = {"excellent": 1.0, "good": 0.75, "fair": 0.5, "poor": 0.25, "bad": 0.0}
_GRAY = tuple(int(255 * value) for value in (0.48145466, 0.4578275, 0.40821073))  # CLIP's mean colour


def randomise(model: nn.Module, *, std: float = 0.15) -> nn.Module:
    """Draw weights large enough that images and texts change the answer, in place; return the model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            is_scale = "norm" in name.lower() and name.endswith("weight")
            nn.init.normal_(parameter, mean=float(is_scale), std=std)
    return model.eval()


def small(config: Any, *, text: dict[str, Any], vision: dict[str, Any]) -> Any:
    """A published configuration with other sizes.

    Args:
        config: with a `text_config` and a `vision_config`; left alone.
        text: what is changed of the first.
        vision: of the second.
    """
    config = copy.deepcopy(config)
    for part, sizes in ((config.text_config, text), (config.vision_config, vision)):
        for name, value in sizes.items():
            setattr(part, name, value)
        if isinstance(getattr(part, "layer_types", None), list):
            part.layer_types = part.layer_types[: part.num_hidden_layers]
    return config


def chat(processor: Any, *parts: str) -> str:
    """The text of a turn before its answer; "" stands for the image."""
    content = [{"type": "text", "text": part} if part else {"type": "image"} for part in parts]
    turns = [{"role": "user", "content": content}]
    return processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def next_logits(model: nn.Module, processor: Any, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
    """(B, V): what a model says next, asked one by one."""
    rows = [
        model(**processor(images=[image], text=[text], return_tensors="pt")).logits[0, -1]
        for image, text in zip(images, texts, strict=True)
    ]
    return torch.stack(rows)


@cache
def _qwen3_vl() -> tuple[Any, nn.Module]:
    """A small Qwen3-VL as rewards read it, and its twin."""
    from transformers import Qwen3VLForConditionalGeneration  # noqa: PLC0415 (slow to import)

    from fk_reward.rewards.answer_model import AnswerModel  # noqa: PLC0415

    published = FULL_SIZE["vqascore"].make().model
    text = _SHORT_TEXT | {"vocab_size": len(published.processor.tokenizer)}
    config = small(published.model.config, text=text, vision=_QWEN3_TOWER)
    twin = randomise(Qwen3VLForConditionalGeneration(config))
    return AnswerModel(copy.deepcopy(twin), published.processor), twin


@cache
def _llava() -> tuple[Any, nn.Module]:
    """The same of LLaVA-1.5."""
    from transformers import LlavaForConditionalGeneration  # noqa: PLC0415

    from fk_reward.rewards.answer_model import AnswerModel  # noqa: PLC0415

    published = FULL_SIZE["llava-score"].make().model
    text = _SHORT_TEXT | {"vocab_size": len(published.processor.tokenizer), "head_dim": 128}
    config = small(published.model.config, text=text, vision=_TOWER)
    twin = randomise(LlavaForConditionalGeneration(config))
    return AnswerModel(copy.deepcopy(twin), published.processor), twin


def yes_of_qwen(images: Sequence[Image.Image]) -> Pair:
    """VQAScore: P("Yes")."""
    from fk_reward.rewards import VQAScore  # noqa: PLC0415

    model, twin = _qwen3_vl()
    asked = [f'Does this figure show "{prompt}"? Please answer yes or no.' for prompt in PROMPTS]
    logits = next_logits(twin, model.processor, images, [chat(model.processor, "", text) for text in asked])
    yes = model.processor.tokenizer.convert_tokens_to_ids("Yes")
    return VQAScore(model)(images, list(PROMPTS)).logit(), logits.softmax(dim=-1)[:, yes].logit()


def yes_of_llava(images: Sequence[Image.Image]) -> Pair:
    """LLaVA-score: the share of "Yes", of images that were padded to a square before the processor."""
    from fk_reward.rewards import VQAScore  # noqa: PLC0415
    from fk_reward.rewards.vqascore import LLAVA_QUESTION  # noqa: PLC0415

    model, twin = _llava()
    texts = [f"USER: <image>\n{LLAVA_QUESTION.replace('{prompt}', prompt)} ASSISTANT:" for prompt in PROMPTS]
    logits = next_logits(twin, model.processor, [squared(image) for image in images], texts)
    yes, no = (logits[:, model.processor.tokenizer.convert_tokens_to_ids(word)] for word in ("Yes", "No"))
    ours = VQAScore(model, question=LLAVA_QUESTION, against="No")(images, list(PROMPTS))
    return ours.logit(), yes - no


def squared(image: Image.Image) -> Image.Image:
    """The image in the middle of a square of CLIP's mean colour, as LLaVA's own code pads."""
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), _GRAY)
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def levels_of_qwen(images: Sequence[Image.Image]) -> Pair:
    """Q-Align: the question before the image, and the expectation over five words."""
    from fk_reward.rewards import QAlign  # noqa: PLC0415

    model, twin = _qwen3_vl()
    question = chat(model.processor, "How would you rate the quality of this image?\n", "")
    text = f"{question}The quality of the image is"
    logits = next_logits(twin, model.processor, images, [text] * len(images))
    ids = [model.processor.tokenizer.convert_tokens_to_ids(level) for level in _LEVELS]
    return QAlign(model)(images, ""), logits[:, ids].softmax(dim=-1) @ torch.tensor(list(_LEVELS.values()))


def marks_of_qwen(images: Sequence[Image.Image]) -> Pair:
    """UnifiedReward: marks as expectations, by a loop over digits."""
    from fk_reward.rewards.unified_reward import UnifiedReward  # noqa: PLC0415

    model, twin = _qwen3_vl()
    question = "Mark the image for its caption: {prompt}"
    theirs = [
        _looped_marks(twin, model.processor, image, chat(model.processor, "", question.replace("{prompt}", prompt)))
        for image, prompt in zip(images, PROMPTS, strict=True)
    ]
    found = UnifiedReward(model, question=question).marks(_tensors(images), list(PROMPTS))
    return torch.stack(list(found.values()), dim=1).flatten(), torch.tensor(theirs).flatten()


def _looped_marks(model: nn.Module, processor: Any, image: Image.Image, text: str) -> list[float]:
    def shares(begun: str, digits: str) -> list[float]:
        ids = [processor.tokenizer.convert_tokens_to_ids(digit) for digit in digits]
        return next_logits(model, processor, [image], [begun])[0, ids].softmax(dim=-1).tolist()

    marks = []
    for label in ("Alignment", "Coherence", "Style"):
        text += f"{label} Score (1-5): "
        whole = shares(text, "12345")
        likely = sorted(range(5), key=lambda place: -whole[place])[:2]
        tenths = {place: shares(f"{text}{place + 1}.", "0123456789") for place in likely}
        values = {p: min(p + 1 + sum(d * share for d, share in enumerate(tenths[p])) / 10, 5.0) for p in likely}
        marks.append(sum(whole[p] * values[p] for p in likely) / sum(whole[p] for p in likely))
        text += f"{likely[0] + 1}.{max(range(10), key=tenths[likely[0]].__getitem__)}\n"
    return marks


def states_of_hpsv3(images: Sequence[Image.Image]) -> Pair:
    """HPSv3: the whole text with its mask, positions of text, and the head on the state at the reward token."""
    from transformers import Qwen2VLModel  # noqa: PLC0415

    from fk_reward.rewards.hpsv3 import REWARD_TOKEN, HPSv3, HPSv3Words  # noqa: PLC0415

    published = FULL_SIZE["hpsv3"].make()
    processor, words = published.processor, HPSv3Words("How good? {text_prompt}\n", f"Mark: {REWARD_TOKEN}. Thanks!")
    text = _SHORT_TEXT | {"vocab_size": len(processor.tokenizer)}
    twin = randomise(Qwen2VLModel(small(published.model.config, text=text, vision=_QWEN2_TOWER)))
    head = randomise(nn.Sequential(nn.Linear(256, 12), nn.ReLU(), nn.Linear(12, 2)))
    ours = HPSv3(copy.deepcopy(twin), head, processor, words=words)(images, list(PROMPTS))
    texts = [chat(processor, "", words.question(prompt)) for prompt in PROMPTS]
    inputs = processor(images=[[image] for image in images], text=texts, padding=True, return_tensors="pt")
    inputs["position_ids"] = torch.arange(inputs["input_ids"].shape[1]).expand(3, len(texts), -1)
    states = twin(**inputs).last_hidden_state
    return ours, head(states[inputs["input_ids"] == processor.tokenizer.convert_tokens_to_ids(REWARD_TOKEN)])[:, 0]


def matches_of_blip(images: Sequence[Image.Image]) -> Pair:
    """BLIP's matching head, without padding."""
    from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval, BlipImageProcessorPil  # noqa: PLC0415

    from fk_reward.rewards import BlipITM  # noqa: PLC0415
    from fk_reward.rewards.preprocessing import ImagePreprocessing  # noqa: PLC0415

    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *" ".join(PROMPTS).replace("{cat}", "{ cat }").split())
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(dict.fromkeys(words))})
    ids = {"vocab_size": len(tokenizer), "bos_token_id": 2, "sep_token_id": 3, "max_position_embeddings": 40}
    vision = _TOWER | {"image_size": 32, "patch_size": 8}
    config = BlipConfig(text_config=_TOWER | ids, vision_config=vision, image_text_hidden_size=16)
    twin = randomise(BlipForImageTextRetrieval(config), std=0.3)
    processor = BlipImageProcessorPil(size={"height": 32, "width": 32})
    preprocessing = ImagePreprocessing.from_config({"do_center_crop": False, **processor.to_dict()})
    ours = BlipITM(copy.deepcopy(twin), tokenizer, preprocessing=preprocessing)(images, list(PROMPTS))
    theirs = []
    for image, prompt in zip(images, PROMPTS, strict=True):
        tokens = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        theirs.append(twin(**processor(image, return_tensors="pt"), **tokens).itm_score.softmax(dim=-1)[0, 1])
    return ours, torch.stack(theirs)


def policies_of_shieldgemma(images: Sequence[Image.Image]) -> Pair:
    """ShieldGemma 2: probabilities of "Yes" of each policy."""
    from transformers import ShieldGemma2ForImageClassification  # noqa: PLC0415

    from fk_reward.planning.full_size_rewards import shieldgemma2_processor  # noqa: PLC0415
    from fk_reward.rewards.shieldgemma2 import ShieldGemma2  # noqa: PLC0415

    published, processor = FULL_SIZE["shieldgemma-2"].make(), shieldgemma2_processor()
    config = small(published.model.config, text=_SHORT_TEXT | {"vocab_size": len(processor.tokenizer)}, vision=_TOWER)
    # A tokenizer of bytes has no words: letters stand for "Yes" and "No".
    config.yes_token_index, config.no_token_index = processor.tokenizer.convert_tokens_to_ids(["Y", "N"])
    twin = randomise(ShieldGemma2ForImageClassification(config))
    found = ShieldGemma2(copy.deepcopy(twin), processor).violations(_tensors(images))
    theirs = [twin(**processor(images=[image], return_tensors="pt")).probabilities[:, 0] for image in images]
    return torch.stack(list(found.values()), dim=1).flatten(), torch.cat(theirs)


def pick_scores(images: Sequence[Image.Image]) -> Pair:
    """PickScore's published snippet, on the small CLIP of the package."""
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer  # noqa: PLC0415

    from fk_reward.models import resolve_model  # noqa: PLC0415

    folder = resolve_model("shapes-clip")
    ours = load_reward("pickscore", model=folder, processor=folder)(images, list(PROMPTS))
    model = CLIPModel.from_pretrained(folder).eval()
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(list(images), return_tensors="pt")
    tokens = CLIPTokenizer.from_pretrained(folder)(list(PROMPTS), padding=True, truncation=True, return_tensors="pt")
    image, text = model.get_image_features(**pixels).pooler_output, model.get_text_features(**tokens).pooler_output
    image, text = (x / torch.norm(x, dim=-1, keepdim=True) for x in (image, text))
    return ours, (model.logit_scale.exp() * (text @ image.T)).diagonal()


def _tensors(images: Sequence[Image.Image]) -> Tensor:
    from fk_reward.rewards.inputs import group_by_size  # noqa: PLC0415

    (group,) = group_by_size(list(images), keep_uint8=True)
    return group.images


COMPARED: dict[str, tuple[str, Callable[[Sequence[Image.Image]], Pair]]] = {
    "vqascore": ("Qwen3VLForConditionalGeneration and its processor, log-odds", yes_of_qwen),
    "llava-score": ("LlavaForConditionalGeneration and its processor, log-odds", yes_of_llava),
    "q-align": ("Qwen3VLForConditionalGeneration and its processor", levels_of_qwen),
    "unified-reward": ("Qwen3VLForConditionalGeneration and its processor, digit by digit", marks_of_qwen),
    "hpsv3": ("Qwen2VLModel and its processor", states_of_hpsv3),
    "shieldgemma-2": ("ShieldGemma2ForImageClassification and its processor", policies_of_shieldgemma),
    "blip-itm": ("BlipForImageTextRetrieval and its processor", matches_of_blip),
    "pickscore": ("CLIPModel and its processor, as its authors' snippet", pick_scores),
}
"""Reward -> what of transformers it is compared with, and the scores of `PROMPTS` by both."""
