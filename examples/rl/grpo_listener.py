"""Train a reasoner about image preferences by GRPO, in TRL, with the reward of a listener.

    pip install trl
    python examples/rl/grpo_listener.py                                      # two steps of a tiny model: that it runs
    python examples/rl/grpo_listener.py --model Qwen/Qwen2.5-VL-3B-Instruct --listener Qwen/Qwen2.5-VL-7B-Instruct \
        --data pairs.json --num-steps 500                                    # for results

`ListenerReward` is a function as TRL's `GRPOTrainer` calls it (Gambashidze et al. 2025, arXiv 2506.22832): reasons that
can be read, the right answer, and how far the reasons convince a frozen second model of it. The tiny model knows ten
words and sees no image; what it writes is noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cyclopts
from datasets import Dataset
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from fk_reward.rewards.vlm_judge import TEMPLATES, ListenerReward, TransformersEngine
from fk_reward.training import read_preferences

WORDS = ("<end>", "<pad>", "<answer>", "</answer>", "1", "2", "better", "first", "second", "cat")
END, PAD, UNKNOWN = WORDS[0], WORDS[1], WORDS[-1]
TINY = "tiny"


class KnowingListener:
    """Stands in for a model: prefers the image that the reasons name."""

    name = "knowing"

    def weigh(
        self,
        images: Sequence[Any],
        messages: Sequence[Any],
        *,
        openings: Sequence[str],
        candidates: Any,
        ending: str = "",
    ) -> list[list[float]]:
        """Log-probabilities of "1" and "2"."""
        chances = [0.5 + 0.1 * (("first" in opening) - ("second" in opening)) for opening in openings]
        return [[math.log(chance), math.log(1 - chance)] for chance in chances]


def tiny_model() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A language model of a few thousand weights and its tokenizer."""
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token=END, pad_token=PAD, unk_token=UNKNOWN, padding_side="left"
    )
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, eos_token_id=0, pad_token_id=1, bos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config), tokenizer


def tiny_rows(number: int) -> Dataset:
    """Pairs of a red and a blue image as files would be: TRL reads a column `images` itself, for models that see."""
    return Dataset.from_list(
        [
            {"prompt": "cat better", "caption": "a red cat", "pair": ["red", "blue"], "preferred": 1}
            for _ in range(number)
        ]
    )


def seen_rows(path: Path) -> Dataset:
    """Pairs of a preference file in the form that TRL has for models that see; chosen first and second in turn."""
    template, rows = TEMPLATES["preference"], []
    for number, pair in enumerate(read_preferences(path)):
        images = [Image.fromarray((image.load() * 255).byte().permute(1, 2, 0).numpy()) for image in pair.images]
        turned = number % 2 == 1
        text = template.messages(pair.prompts[0])[0]["content"][-1]["text"]
        rows.append(
            {
                "prompt": [{"role": "user", "content": text}],
                "images": images[::-1] if turned else images,
                "caption": pair.prompts[0],
                "preferred": 2 if turned else 1,
            }
        )
    return Dataset.from_list(rows)


class Colours:
    """A listener's reward for the tiny rows, whose images are names of colours."""

    __name__ = "listener_reward"

    def __init__(self, reward: ListenerReward) -> None:
        self.reward = reward

    def __call__(self, completions: Sequence[Any], *, pair: Sequence[Sequence[str]], **columns: Any) -> list[float]:
        """Make the images, and score."""
        images = [[Image.new("RGB", (8, 8), colour) for colour in colours] for colours in pair]
        return self.reward(completions, images=images, **columns)


def main(  # noqa: PLR0913, PLR0917 (a command's options)
    model: str = TINY,
    listener: str | None = None,
    data: Path | None = None,
    num_steps: int = 2,
    batch_size: int = 4,
    out: Path = Path("runs/grpo"),
    seed: int = 0,
) -> list[dict[str, float]]:
    """Train; what TRL logged, step by step."""
    config = GRPOConfig(
        output_dir=str(out), max_steps=num_steps, per_device_train_batch_size=batch_size, num_generations=batch_size,
        max_completion_length=8 if model == TINY else 512, logging_steps=1, report_to="none", seed=seed,
        use_cpu=model == TINY, bf16=model != TINY, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    if model == TINY:
        reward = Colours(ListenerReward(KnowingListener()))
        network, tokenizer = tiny_model()
        options = {"model": network, "processing_class": tokenizer, "train_dataset": tiny_rows(2 * batch_size)}
    else:
        if listener is None or data is None:
            raise ValueError("A real training needs --listener MODEL and --data FILE.")
        reward = ListenerReward(TransformersEngine.from_pretrained(listener))
        options = {"model": model, "train_dataset": seen_rows(data)}
    trainer = GRPOTrainer(reward_funcs=[reward], args=config, **options)
    trainer.train()
    return trainer.state.log_history


if __name__ == "__main__":
    cyclopts.run(main)
