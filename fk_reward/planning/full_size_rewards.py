"""Rewards at their full size without their files: random weights, and tokenizers without a real vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from peft import LoraConfig
from tokenizers import AddedToken
from torch import nn
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForImageTextRetrieval,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    Gemma3ImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLImageProcessorPil,
    Qwen2VLModel,
    Qwen2VLProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    ShieldGemma2Config,
    ShieldGemma2ForImageClassification,
    ShieldGemma2Processor,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from fk_reward.models import resolve_model
from fk_reward.planning.published_models import (
    CLIP_H14,
    CLIP_L14,
    LLAVA_7B,
    QWEN2_VL_7B,
    QWEN3_VL_2B,
    QWEN3_VL_4B,
    QWEN3_VL_8B,
    SHIELDGEMMA_2_4B,
    SIGLIP_SO400M,
)
from fk_reward.rewards import BlipITM, CLIPScore, ImagePreprocessing, ImageReward, QAlign, Reward, VQAScore
from fk_reward.rewards.aesthetic import AestheticScore
from fk_reward.rewards.aesthetic_siglip import SiglipAesthetic
from fk_reward.rewards.answer_model import AnswerModel, without_video
from fk_reward.rewards.blip import with_blip_tokens
from fk_reward.rewards.cyclereward import MAX_TOKENS
from fk_reward.rewards.float32_layers import Float32Sequential
from fk_reward.rewards.hpsv3 import REWARD_TOKEN, HPSv3, HPSv3Words
from fk_reward.rewards.image_classifier import ImageClassifier
from fk_reward.rewards.imagereward_model import ImageRewardConfig, ImageRewardModel, ImageRewardSizes, make_mlp
from fk_reward.rewards.llava_reward.backbones.base import backbone_spec, byte_tokenizer, random_backbone
from fk_reward.rewards.llava_reward.backbones.qwen2_5_vl import QWEN2_5_VL
from fk_reward.rewards.llava_reward.checkpoint import RewardCheckpoint
from fk_reward.rewards.llava_reward.config import LlavaRewardConfig
from fk_reward.rewards.llava_reward.llava_reward import LlavaReward
from fk_reward.rewards.llava_reward.model import LlavaRewardModel
from fk_reward.rewards.perspectivevision import PerspectiveVision, UnsafeCategories
from fk_reward.rewards.preprocessing import PaddedPreprocessing
from fk_reward.rewards.q_align import LEVELS
from fk_reward.rewards.shieldgemma2 import ShieldGemma2
from fk_reward.rewards.unified_reward import UnifiedReward
from fk_reward.rewards.vlm_judge import MarkJudge, TransformersEngine, load_vlm_judge
from fk_reward.rewards.vlm_judge.mark_entries import SAFETY
from fk_reward.rewards.vqascore import LLAVA_QUESTION

DIMENSIONS = ("alignment", "fidelity", "safety")

_FULL_RANK, _TINY_RANK = 128, 8  # 128 is that of the official checkpoints


def random_reward(  # noqa: PLR0913 (what a model is made from)
    backbone: str,
    *,
    full_size: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    num_crops: int | None = None,
    dimensions: Sequence[str] = DIMENSIONS,
    seed: int = 0,
) -> LlavaReward:
    """Make the reward directly on the device; LoRA, projector and head of each dimension are random, too.

    As in the official checkpoints LoRA is on all linear layers of the language model, of rank 128 at full size, and
    there is a SkipCA but with LLaVA-NeXT. Of the weights only the heads are in float32 whatever the dtype.

    Args:
        backbone: a name of `BACKBONES`.
        full_size: as for `random_backbone`.
        dtype: floating, of the backbone and of LoRA.
        device: "meta" makes all of it but the numbers.
        num_crops: as for `random_backbone`.
        dimensions: their names.
        seed: of the weights.

    Example:
        >>> reward = random_reward("phi3_v", num_crops=1)
        >>> sorted(reward.score_dimensions(torch.rand(1, 3, 32, 32), ["a cat"]))
        ['alignment', 'fidelity', 'safety']
    """
    device = torch.device(device)
    with seeded_on(device, seed), default_dtype(dtype):
        model = LlavaRewardModel(random_backbone(backbone, full_size=full_size, num_crops=num_crops))
        lora_config = _lora_config(model.adapters.linear_modules, rank=_FULL_RANK if full_size else _TINY_RANK)
        for dimension in dimensions:
            model.attach(dimension, _untrained(dimension, backbone, lora_config))
    return LlavaReward(model, {dimension: dimension for dimension in dimensions})


def weight_sizes(backbone: str, *, full_size: bool, dtype: torch.dtype) -> tuple[int, int]:
    """Number of parameters of `random_reward` and the bytes that they take, without making them.

    Example:
        >>> count, size = weight_sizes("phi3_v", full_size=False, dtype=torch.bfloat16)
        >>> 2 * count < size < 4 * count
        True
    """
    reward = random_reward(backbone, full_size=full_size, dtype=dtype, device="meta")
    parameters = list(reward.model.parameters())
    return sum(p.numel() for p in parameters), sum(p.nbytes for p in parameters)


def _lora_config(modules: Sequence[str], *, rank: int) -> LoraConfig:
    # Random in both matrices: PEFT's default has zeros in one, and the adapter would change nothing.
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(modules), init_lora_weights=False)


def _untrained(dimension: str, backbone: str, lora_config: LoraConfig) -> RewardCheckpoint:
    """A dimension without weights: they are drawn when it is attached."""
    official = backbone_spec(backbone).official
    skip_ca = official is None or official.attends_to is not None
    config = LlavaRewardConfig(dimension=dimension, backbone=backbone, base_model="random", cross_attention=skip_ca)
    return RewardCheckpoint(config, lora_config, lora={}, projector={}, head={})


@contextmanager
def seeded_on(device: torch.device, seed: int) -> Iterator[None]:
    """Make new tensors on a device, from a seed; the global random state is put back afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), device:
        torch.manual_seed(seed)
        yield


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make new tensors in a floating dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


_CONTROL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<image>")
_CONTENT = (
    "{{% for part in message['content'] %}}{{% if part['type'] == 'image' %}}{image}{{% else %}}"
    "{{{{ part['text'] }}}}{{% endif %}}{{% endfor %}}"
)
_QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    + _CONTENT.format(image="<|vision_start|><|image_pad|><|vision_end|>")
    + "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    + _CONTENT.format(image="<image>\n")
    + " {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def llava() -> AnswerModel:
    """LLaVA-1.5-7B."""
    tokenizer = _tokenizer(_LLAVA_TEMPLATE, space_before_answer=True)
    config = LlavaConfig(**LLAVA_7B | {"image_token_index": tokenizer.convert_tokens_to_ids("<image>")})
    side = config.vision_config.image_size
    images = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=side)
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token of the vision tower
        chat_template=_LLAVA_TEMPLATE,
    )
    return AnswerModel(LlavaForConditionalGeneration(config), processor)


def qwen3_vl_2b() -> AnswerModel:
    """Qwen3-VL-2B."""
    return _qwen3_vl(QWEN3_VL_2B)


def qwen3_vl_4b() -> AnswerModel:
    """Qwen3-VL-4B."""
    return _qwen3_vl(QWEN3_VL_4B)


def qwen3_vl_8b() -> AnswerModel:
    """Qwen3-VL-8B."""
    return _qwen3_vl(QWEN3_VL_8B)


def qwen2_5_vl_7b() -> AnswerModel:
    """Qwen2.5-VL-7B."""
    tokenizer = _tokenizer(_QWEN_TEMPLATE)
    config = Qwen2_5_VLConfig(**dict(QWEN2_5_VL.full_size) | {"tie_word_embeddings": False} | _qwen_ids(tokenizer))
    return _qwen(Qwen2_5_VLForConditionalGeneration(config), Qwen2_5_VLProcessor, tokenizer)


def _qwen3_vl(sizes: dict[str, Any]) -> AnswerModel:
    tokenizer = _tokenizer(_QWEN_TEMPLATE)
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**sizes, **_qwen_ids(tokenizer)))
    return _qwen(model, Qwen3VLProcessor, tokenizer)


def _qwen(model: PreTrainedModel, processor: type[ProcessorMixin], tokenizer: PreTrainedTokenizerFast) -> AnswerModel:
    images = Qwen2VLImageProcessorPil(patch_size=model.config.vision_config.patch_size)
    return AnswerModel(model, without_video(processor)(images, tokenizer, chat_template=_QWEN_TEMPLATE))


def _qwen_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    tokens = {"image": "<|image_pad|>", "vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
    return {f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}


def _tokenizer(template: str, *, space_before_answer: bool = False) -> PreTrainedTokenizerFast:
    """Make a tokenizer that spells byte by byte, but has a token for each answer, after a space if models write one."""
    tokenizer = byte_tokenizer(*_CONTROL_TOKENS)
    words = ("Yes", "No", "Safe", "Unsafe", *LEVELS)
    tokenizer.add_tokens([AddedToken(word, lstrip=space_before_answer or word in LEVELS) for word in words])
    tokenizer.chat_template = template
    return tokenizer


_BERT_WORDS = 30522
_CLIP = ImagePreprocessing.from_config({})
_SIGLIP = ImagePreprocessing.from_config(
    {"do_center_crop": False, "size": {"height": 384, "width": 384}, "image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}
)
_BLIP = ImagePreprocessing.from_config({"do_center_crop": False, "size": {"height": 384, "width": 384}})


@dataclass(frozen=True)
class FullSize:
    """How to make a reward at full size.

    Attributes:
        build: makes it on PyTorch's default device and in its default dtype.
        dtype: of the weights on a GPU, as the reward's own loader has it by default.

    Example:
        >>> sum(weight.numel() for weight in FULL_SIZE["clipscore"].make().model.parameters())
        427616513
    """

    build: Callable[[], Reward]
    dtype: torch.dtype = torch.float32

    def make(self, *, device: torch.device | str = "meta", seed: int = 0) -> Any:
        """Make the reward with random weights.

        Args:
            device: "meta" makes all of it but the numbers.
            seed: of the weights.
        """
        with seeded_on(torch.device(device), seed), default_dtype(self.dtype):
            return self.build()


def _clip(sizes: dict[str, Any]) -> CLIPModel:
    return CLIPModel(CLIPConfig(**sizes))


def _clipscore(sizes: dict[str, Any], preprocessing: Callable[[torch.Tensor], torch.Tensor] = _CLIP) -> CLIPScore:
    tokenizer = CLIPTokenizer.from_pretrained(resolve_model("shapes-clip"))  # a word a token, as in the real one
    return CLIPScore(_clip(sizes), tokenizer, preprocessing=preprocessing)


def _hps() -> CLIPScore:
    return _clipscore(CLIP_H14, PaddedPreprocessing(size=224, mean=_CLIP.mean, std=_CLIP.std))


def _hpsv3() -> HPSv3:
    tokenizer = _tokenizer(_QWEN_TEMPLATE)
    processor = without_video(Qwen2VLProcessor)(Qwen2VLImageProcessorPil(), tokenizer, chat_template=_QWEN_TEMPLATE)
    model = Qwen2VLModel(Qwen2VLConfig(**QWEN2_VL_7B, **_qwen_ids(tokenizer)))
    layers = nn.Linear(3584, 1024), nn.ReLU(), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
    # The official instruction has about as many tokens.
    words = HPSv3Words("x" * 560 + "{text_prompt}", REWARD_TOKEN)
    with torch.device("cpu"):  # token ids are read
        return HPSv3(model, Float32Sequential(*layers), processor, words=words)


def _aesthetic() -> AestheticScore:
    clip = _clip(CLIP_L14)
    # The predictor sees images only.
    del clip.text_model, clip.text_projection
    return AestheticScore(clip, make_mlp((768, 1024, 128, 64, 16)), preprocessing=_CLIP)


def _bert_tokenizer() -> BertTokenizer:
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    words = (*special, *(f"word{index}" for index in range(_BERT_WORDS - len(special))))
    return with_blip_tokens(BertTokenizer(vocab={word: index for index, word in enumerate(words)}))


def _imagereward() -> ImageReward:
    return ImageReward(ImageRewardModel(ImageRewardSizes.official()), _bert_tokenizer(), config=ImageRewardConfig())


def _cyclereward() -> ImageReward:
    sizes = replace(ImageRewardSizes.official(), mlp_gelu=True)
    config = ImageRewardConfig(max_tokens=MAX_TOKENS, mean=0.0, std=1.0)
    return ImageReward(ImageRewardModel(sizes), _bert_tokenizer(), config=config)


def _siglip_aesthetic() -> SiglipAesthetic:
    widths = (1152, 1024, 128, 64, 16, 1)
    head = nn.Sequential(*(nn.Linear(into, out) for into, out in pairwise(widths)))
    tower = SiglipVisionModel(SiglipVisionConfig(**SIGLIP_SO400M))
    return SiglipAesthetic(tower, head, preprocessing=_SIGLIP)


def _image_classifier() -> ImageClassifier:
    labels = {0: "normal", 1: "nsfw"}
    return ImageClassifier(ViTForImageClassification(ViTConfig(id2label=labels)), ViTImageProcessorPil(), label=0)


def _blip_itm() -> BlipITM:
    config = BlipConfig(text_config={"num_attention_heads": 12})  # transformers' defaults are BLIP base but for this
    return BlipITM(BlipForImageTextRetrieval(config), _bert_tokenizer(), preprocessing=_BLIP)


def _llava_reward(backbone: str) -> Reward:
    here, dtype = torch.get_default_device(), torch.get_default_dtype()
    return random_reward(backbone, full_size=True, dtype=dtype, device=here, dimensions=("alignment",))


def _asking(reward: Callable[..., Reward], model: Callable[[], AnswerModel], **options: Any) -> Reward:
    made = model()
    with torch.device("cpu"):  # a reward tests its question when it is made, which reads the ids of tokens
        return reward(made, **options)


def _judge(model: Callable[[], AnswerModel], template: str) -> Reward:
    return load_vlm_judge(template=template, engine=TransformersEngine(model(), name="random"))


def _mark_judge(model: Callable[[], AnswerModel]) -> Reward:
    return MarkJudge(TransformersEngine(model(), name="random"), SAFETY)


# Questions of authors that are not in this package, a byte for each token that theirs have, or about as many.
_UNIFIED_QUESTION = "x" * 180 + "{prompt}"
_UNSAFE_WORDS = UnsafeCategories("x" * 60 + "[instruction]", {f"{number:02d}": "x" * 25 for number in range(11)})

_GEMMA_TOKENS = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
_GEMMA_TEMPLATE = "{% for message in messages %}" + _CONTENT.format(image="<start_of_image>") + "{% endfor %}\n"


def shieldgemma2_processor() -> ShieldGemma2Processor:
    """ShieldGemma 2's processor, with a tokenizer of bytes.

    Its policies byte by byte are about as long as policies and instructions are in the real tokens.
    """
    written = byte_tokenizer(*_GEMMA_TOKENS.values())
    end = written.eos_token
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=written.backend_tokenizer, eos_token=end, pad_token=end, extra_special_tokens=_GEMMA_TOKENS
    )
    side = SHIELDGEMMA_2_4B["vision_config"]["image_size"]
    images = Gemma3ImageProcessorPil(size={"height": side, "width": side})
    num_tokens = SHIELDGEMMA_2_4B["mm_tokens_per_image"]
    return ShieldGemma2Processor(images, tokenizer, chat_template=_GEMMA_TEMPLATE, image_seq_length=num_tokens)


def _shieldgemma2() -> ShieldGemma2:
    processor = shieldgemma2_processor()
    ids = {
        f"{name.removesuffix('_token')}_token_index": processor.tokenizer.convert_tokens_to_ids(token)
        for name, token in _GEMMA_TOKENS.items()
    }
    config = ShieldGemma2Config(**SHIELDGEMMA_2_4B, **ids)
    return ShieldGemma2(ShieldGemma2ForImageClassification(config), processor)


_PHI = FullSize(partial(_llava_reward, "phi3_v"), torch.bfloat16)
_QWEN = FullSize(partial(_llava_reward, "qwen2_5_vl"), torch.bfloat16)
_IMAGE_JUDGE = qwen3_vl_4b

FULL_SIZE: dict[str, FullSize] = {
    "aesthetic": FullSize(_aesthetic, torch.float16),
    "aesthetic-v2.5": FullSize(_siglip_aesthetic),
    "blip-itm": FullSize(_blip_itm, torch.float16),
    "clipscore": FullSize(partial(_clipscore, CLIP_L14), torch.float16),
    "cyclereward": FullSize(_cyclereward),
    "hpsv2": FullSize(_hps, torch.float16),
    "hpsv2.1": FullSize(_hps, torch.float16),
    "hpsv3": FullSize(_hpsv3, torch.bfloat16),
    "image-classifier": FullSize(_image_classifier),
    "imagereward": FullSize(_imagereward, torch.float16),
    **{f"llava-reward-{dimension}": _PHI for dimension in ("alignment", "fidelity", "safety", "overall")},
    **{f"llava-reward-{dimension}@qwen": _QWEN for dimension in ("alignment", "fidelity", "safety", "overall")},
    "llava-score": FullSize(partial(_asking, VQAScore, llava, question=LLAVA_QUESTION, against="No"), torch.float16),
    "perspectivevision": FullSize(partial(_asking, PerspectiveVision, llava, words=_UNSAFE_WORDS), torch.float16),
    "pickscore": FullSize(partial(_clipscore, CLIP_H14), torch.float16),
    "q-align": FullSize(partial(_asking, QAlign, qwen3_vl_2b), torch.bfloat16),
    "shieldgemma-2": FullSize(_shieldgemma2, torch.bfloat16),
    "unified-reward": FullSize(
        partial(_asking, UnifiedReward, qwen3_vl_2b, question=_UNIFIED_QUESTION), torch.bfloat16
    ),
    "vlm-judge": FullSize(partial(_judge, _IMAGE_JUDGE, "rubric"), torch.bfloat16),
    "vlm-judge-alignment": FullSize(partial(_judge, _IMAGE_JUDGE, "alignment"), torch.bfloat16),
    "vlm-judge-preference": FullSize(partial(_judge, qwen2_5_vl_7b, "preference"), torch.bfloat16),
    "vlm-judge-safety": FullSize(partial(_mark_judge, _IMAGE_JUDGE), torch.bfloat16),
    "vlm-judge-evalalign": FullSize(partial(_mark_judge, _IMAGE_JUDGE), torch.bfloat16),
    "vlm-judge-viescore": FullSize(partial(_mark_judge, _IMAGE_JUDGE), torch.bfloat16),
    "vqascore": FullSize(partial(_asking, VQAScore, qwen3_vl_2b), torch.bfloat16),
}
"""Name of a reward whose weights do not come with the package -> how to make it at full size."""
