"""The rewards at their full size without their files: random weights, and tokenizers without a real vocabulary.

What a reward costs is decided by its architecture, so that memory and operations can be counted, and speed be measured,
before anything is downloaded. The scores mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval, CLIPConfig, CLIPModel, CLIPTokenizer

from fk_reward.benchmarks import full_size_answer_models as answer_models
from fk_reward.benchmarks.published_sizes import CLIP_H14, CLIP_L14
from fk_reward.benchmarks.random_reward import default_dtype, random_reward, seeded_on
from fk_reward.models import resolve_model
from fk_reward.rewards import BlipITM, CLIPScore, ImagePreprocessing, ImageReward, QAlign, Reward, VQAScore
from fk_reward.rewards.aesthetic import AestheticScore
from fk_reward.rewards.answer_model import AnswerModel
from fk_reward.rewards.blip import with_blip_tokens
from fk_reward.rewards.imagereward_model import ImageRewardConfig, ImageRewardModel, ImageRewardSizes, make_mlp
from fk_reward.rewards.preprocessing import PaddedPreprocessing
from fk_reward.rewards.vlm_judge import TransformersEngine, load_vlm_judge
from fk_reward.rewards.vqascore import LLAVA_QUESTION

_BERT_WORDS = 30522
_CLIP = ImagePreprocessing.from_config({})
_BLIP = ImagePreprocessing.from_config({"do_center_crop": False, "size": {"height": 384, "width": 384}})


@dataclass(frozen=True)
class FullSize:
    """How to make a reward at full size.

    Attributes:
        build: makes it on PyTorch's default device and in its default dtype.
        dtype: of the weights, as the reward's own loader has it by default.

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


def _aesthetic() -> AestheticScore:
    clip = _clip(CLIP_L14)
    del clip.text_model, clip.text_projection
    return AestheticScore(clip, make_mlp((768, 1024, 128, 64, 16)), preprocessing=_CLIP)


def _bert_tokenizer() -> BertTokenizer:
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    words = (*special, *(f"word{index}" for index in range(_BERT_WORDS - len(special))))
    return with_blip_tokens(BertTokenizer(vocab={word: index for index, word in enumerate(words)}))


def _imagereward() -> ImageReward:
    return ImageReward(ImageRewardModel(ImageRewardSizes.official()), _bert_tokenizer(), config=ImageRewardConfig())


def _blip_itm() -> BlipITM:
    config = BlipConfig(text_config={"num_attention_heads": 12})  # transformers' defaults are BLIP base but for this
    return BlipITM(BlipForImageTextRetrieval(config), _bert_tokenizer(), preprocessing=_BLIP)


def _llava_reward(backbone: str) -> Reward:
    here, dtype = torch.get_default_device(), torch.get_default_dtype()
    return random_reward(backbone, full_size=True, dtype=dtype, device=here, dimensions=("alignment",))


def _asking(reward: Callable[..., Reward], model: Callable[[], AnswerModel], **options: str) -> Reward:
    """A reward tries its question when it is made, which needs the numbers of the tokens."""
    made = model()
    with torch.device("cpu"):
        return reward(made, **options)


def _judge(model: Callable[[], AnswerModel], template: str) -> Reward:
    return load_vlm_judge(template=template, engine=TransformersEngine(model(), name="random"))


_PHI = FullSize(partial(_llava_reward, "phi3_v"), torch.bfloat16)
_QWEN = FullSize(partial(_llava_reward, "qwen2_5_vl"), torch.bfloat16)
_PICTURE_JUDGE = answer_models.qwen3_vl_4b

FULL_SIZE: dict[str, FullSize] = {
    "aesthetic": FullSize(_aesthetic),
    "blip-itm": FullSize(_blip_itm),
    "clipscore": FullSize(partial(_clipscore, CLIP_L14)),
    "hpsv2": FullSize(_hps),
    "hpsv2.1": FullSize(_hps),
    "imagereward": FullSize(_imagereward),
    **{f"llava-reward-{dimension}": _PHI for dimension in ("alignment", "fidelity", "safety", "overall")},
    **{f"llava-reward-{dimension}@qwen": _QWEN for dimension in ("alignment", "fidelity", "safety", "overall")},
    "llava-score": FullSize(
        partial(_asking, VQAScore, answer_models.llava, question=LLAVA_QUESTION, against="No"), torch.float16
    ),
    "pickscore": FullSize(partial(_clipscore, CLIP_H14)),
    "q-align": FullSize(partial(_asking, QAlign, answer_models.qwen3_vl_2b), torch.bfloat16),
    "vlm-judge": FullSize(partial(_judge, _PICTURE_JUDGE, "rubric"), torch.bfloat16),
    "vlm-judge-alignment": FullSize(partial(_judge, _PICTURE_JUDGE, "alignment"), torch.bfloat16),
    "vlm-judge-preference": FullSize(partial(_judge, answer_models.qwen2_5_vl_7b, "preference"), torch.bfloat16),
    "vlm-judge-safety": FullSize(partial(_judge, _PICTURE_JUDGE, "safety"), torch.bfloat16),
    "vqascore": FullSize(partial(_asking, VQAScore, answer_models.qwen3_vl_2b), torch.bfloat16),
}
"""Name of a reward whose weights do not come with the package -> how to make it at full size."""
