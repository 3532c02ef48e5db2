"""HPSv3: a multimodal LLM with a head that reads how people would rank the image for its prompt."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fk_reward.rewards.base import Reward, RewardCard
from fk_reward.rewards.float32_layers import Float32Sequential
from fk_reward.rewards.prompt_limits import (
    control_tokens,
    num_positions,
    refuse_control_tokens,
    require_positions,
)
from fk_reward.rewards.registry import RewardEntry

if TYPE_CHECKING:
    from transformers import ProcessorMixin, Qwen2VLModel

REWARD_TOKEN = "<|Reward|>"  # noqa: S105 (no password)
"""Added to the tokenizer; the head reads the state at its place."""

NUM_PIXELS = 256 * 28 * 28
"""Area to which every image is resized, nearly: `min_pixels` and `max_pixels` of `hpsv3/config/HPSv3_7B.yaml`."""

_REPOSITORY, _FILE = "MizzenAI/HPSv3", "HPSv3.safetensors"
_BASE = "Qwen/Qwen2-VL-7B-Instruct"
_WORDS_PLACE = ("hpsv3", "dataset", "data_collator_qwen.py")
_WORDS_NAMES = ("INSTRUCTION", "prompt_with_special_token")
_HEAD_LAYERS = (0, 3, 5)  # places of the linear layers: ReLU and dropout stand between them

_CARD = RewardCard(
    name="hpsv3",
    summary="HPSv3: how people would rank the image for its prompt; Qwen2-VL-7B trained on a million comparisons",
    typical_range=(-5.0, 15.0),  # means of models from -0.2 (SD 2.0) to 10.6 (Kolors) in its README
    differentiable=True,
    looks_at="the whole image, resized to about 448 x 448 pixels",
    licence="MIT (weights and code); Apache-2.0 (Qwen2-VL-7B)",
    source="Ma et al. 2025, arXiv 2508.03789; hpsv3/inference.py and hpsv3/model/ of github.com/MizzenAI/HPSv3",
    weights=f"{_FILE} of {_REPOSITORY}; configuration and tokenizer of {_BASE}",
    memory="15.5 GB in bfloat16",
)


@dataclasses.dataclass(frozen=True)
class HPSv3Words:
    """What the model is asked, in the words of its authors.

    Attributes:
        instruction: with "{text_prompt}" where the prompt goes.
        ending: what follows it, with the reward token.

    Raises:
        ValueError: when one of the two places is missing.

    Example:
        >>> HPSv3Words("How good? {text_prompt}", " Mark: <|Reward|>").question("a cat")
        'How good? a cat Mark: <|Reward|>'
    """

    instruction: str
    ending: str

    def __post_init__(self) -> None:
        if "{text_prompt}" not in self.instruction or self.ending.count(REWARD_TOKEN) != 1:
            raise ValueError(
                f"HPSv3's instruction must have {{text_prompt}} in it and its ending one {REWARD_TOKEN}, got "
                f"{self.instruction[-60:]!r} and {self.ending!r}."
            )

    @classmethod
    def read(cls, path: str | os.PathLike[str] | None = None) -> HPSv3Words:
        """Read `data_collator_qwen.py`, which is parsed and never run.

        Args:
            path: the file, or a folder that holds the repository; None for that of the installed package `hpsv3`.

        Raises:
            FileNotFoundError: when there is no such file, or `hpsv3` is not installed.
            ValueError: when the file lacks one of the texts.
        """
        from fk_reward.rewards.vlm_judge.author_templates import python_strings

        texts = python_strings(_words_file(path), _WORDS_NAMES)
        return cls(*(texts[name] for name in _WORDS_NAMES))

    def question(self, prompt: str) -> str:
        """The text after the image."""
        return self.instruction.replace("{text_prompt}", prompt) + self.ending


class HPSv3(Reward):
    """Mean of the normal law that the head gives at the reward token (Ma et al. 2025, arXiv 2508.03789).

    As in the authors' code the language model gets positions of text for all tokens, those of the image included,
    although Qwen2-VL has positions of three dimensions. What follows the reward token is left out: attention is causal,
    so that it cannot change the score.

    Args:
        model: transformers' `Qwen2VLModel`; put into evaluation mode and frozen, in place.
        head: from a state (B, D) to mean and logarithm of the deviation, (B, 2); kept in float32.
        processor: its processor; limits of its images, the padding and the reward token of its tokenizer are set, in
            place.
        words: what is asked.
        batch_size: number of images that go through the model at once; None for all of one size.
        card: facts about the weights.

    Raises:
        ValueError: when the model has no embedding for the reward token.

    Example:
        >>> from fk_reward.rewards import load_reward
        >>> reward = load_reward("hpsv3")  # doctest: +SKIP
        >>> scores = reward(images, "a red cube on a blue cube")  # doctest: +SKIP
    """

    accepts_uint8 = True

    def __init__(  # noqa: PLR0913 (what a model is made from)
        self,
        model: Qwen2VLModel,
        head: nn.Module,
        processor: ProcessorMixin,
        *,
        words: HPSv3Words,
        batch_size: int | None = 8,
        card: RewardCard = _CARD,
    ) -> None:
        from fk_reward.rewards.answer_inputs import PromptInputs
        from fk_reward.rewards.batched_windows import batch_windows
        from fk_reward.rewards.processor_pixels import pixel_transform
        from fk_reward.rewards.question_texts import QuestionTexts

        _prepare(processor, num_embeddings=model.get_input_embeddings().num_embeddings)
        transform: Any = pixel_transform(processor.image_processor)
        batch_windows(model.visual)
        self.model = model.eval().requires_grad_(False)
        self.head = head.eval().requires_grad_(False)
        self.processor = processor
        self.words = words
        self.batch_size = batch_size
        self.card = card
        self._transform = transform
        self._inputs = PromptInputs(processor, transform)
        self._texts = QuestionTexts(processor)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Mean for each image."""
        return self._outputs(images, prompts)[:, 0]

    def uncertainty(self, images: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each score.

        In training, image a is preferred to b as often as sigmoid(z) says on average, z normal with mean m_a - m_b and
        variance s_a^2 + s_b^2.

        Args:
            images: (B, 3, H, W), floating in [0, 1] or uint8.
            prompts: B strings.

        Returns:
            Two tensors (B,), float32.

        B: number of images, H, W: height and width.
        """
        mean, log_deviation = self._outputs(images, prompts).unbind(dim=1)
        return mean, log_deviation.exp()

    def _outputs(self, images: Tensor, prompts: list[str]) -> Tensor:
        """(B, 2) float32."""
        tokenizer = self.processor.tokenizer
        refuse_control_tokens(dict.fromkeys(prompts), control_tokens(tokenizer, self.processor.image_token))
        height, width = images.shape[-2:]
        inputs = self._inputs([self._text(prompt) for prompt in prompts], (height, width))
        lengths = inputs["attention_mask"].sum(dim=1)
        require_positions(lengths.tolist(), prompts, num_positions(self.model.config))
        device, language = self.model.device, self.model.language_model
        pixels = self._transform(images).to(device, self.model.dtype)
        visual = self.model.visual(pixels, grid_thw=inputs["image_grid_thw"].to(device)).pooler_output
        ids = inputs["input_ids"].to(device)
        embedded = language.embed_tokens(ids)
        places = (ids == self.model.config.image_token_id).unsqueeze(-1).expand_as(embedded)
        embedded = embedded.masked_scatter(places, visual.to(embedded.dtype))
        # Padded on the right, so that the causal kernel needs no mask. Without position ids they count 0, 1, 2, ...
        states = language(inputs_embeds=embedded, use_cache=False).last_hidden_state
        return self.head(states[torch.arange(len(states), device=device), lengths.to(device) - 1])

    def _text(self, prompt: str) -> str:
        text = self._texts(self.words.question(prompt))
        return text[: text.index(REWARD_TOKEN) + len(REWARD_TOKEN)]


def _prepare(processor: ProcessorMixin, *, num_embeddings: int) -> None:
    """Set what the authors set: one area for all images, padding on the right, one more token."""
    from tokenizers import AddedToken

    limits = {"min_pixels": NUM_PIXELS, "max_pixels": NUM_PIXELS}
    processor.image_processor.size = {"shortest_edge": NUM_PIXELS, "longest_edge": NUM_PIXELS}
    for name, value in limits.items():
        if getattr(processor.image_processor, name, None) is not None:
            setattr(processor.image_processor, name, value)
    tokenizer = processor.tokenizer
    tokenizer.padding_side = "right"
    tokenizer.add_tokens([AddedToken(REWARD_TOKEN, special=True, normalized=False)], special_tokens=True)
    token = tokenizer.convert_tokens_to_ids(REWARD_TOKEN)
    if token >= num_embeddings:
        raise ValueError(
            f"The tokenizer has {token} as the id of {REWARD_TOKEN}, the model has {num_embeddings} embeddings: they "
            "are not of the same checkpoint."
        )


def _words_file(path: str | os.PathLike[str] | None) -> Path:
    if path is not None:
        places = [Path(path), Path(path).joinpath(*_WORDS_PLACE)]
    else:
        found = importlib.util.find_spec(_WORDS_PLACE[0])  # of a package at the top level: nothing is imported
        folders = [] if found is None else list(found.submodule_search_locations or ())
        places = [Path(folder).joinpath(*_WORDS_PLACE[1:]) for folder in folders]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(
        f"HPSv3's instructions are its authors' and not part of this package{_looked_in(path, places)}. Install their "
        "package, pip install --no-deps hpsv3, or give words=<data_collator_qwen.py of github.com/MizzenAI/HPSv3>."
    )


def _looked_in(path: object, places: list[Path]) -> str:
    return "" if path is None else f"; no file {' or '.join(map(str, places))}"


def reward_head(tensors: Mapping[str, Tensor]) -> nn.Module:
    """The head of `rm_head.*`: linear layers with ReLU between them, dropout left out.

    Args:
        tensors: without the prefix: "0.weight", "0.bias", "3.weight", ...

    Raises:
        ValueError: for other names or shapes.

    Example:
        >>> from math import prod
        >>> shapes = {"0.weight": (4, 8), "0.bias": (4,), "3.weight": (3, 4), "3.bias": (3,)}
        >>> shapes |= {"5.weight": (2, 3), "5.bias": (2,)}
        >>> reward_head({name: torch.ones(shape) for name, shape in shapes.items()})(torch.ones(1, 8)).detach()
        tensor([[112., 112.]])
    """
    names = [f"{place}.{kind}" for place in _HEAD_LAYERS for kind in ("weight", "bias")]
    if sorted(tensors) != sorted(names):
        raise ValueError(f"HPSv3's head has rm_head.{', rm_head.'.join(names)}; got {sorted(tensors) or 'none'}.")
    layers: list[nn.Module] = []
    for place in _HEAD_LAYERS:
        weight, bias = tensors[f"{place}.weight"], tensors[f"{place}.bias"]
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight.float(), "bias": bias.float()})
        layers += [layer, nn.ReLU()]
    if layers[-2].out_features != 2:
        raise ValueError(f"HPSv3's head ends in a mean and a deviation, got {layers[-2].out_features} outputs.")
    return Float32Sequential(*layers[:-1])


def module_name(name: str) -> str:
    """Translate a name of the file into that of `Qwen2VLModel`; files have those of transformers 4.45 or of 5.

    Example:
        >>> module_name("model.layers.0.mlp.up_proj.weight"), module_name("model.visual.merger.ln_q.bias")
        ('language_model.layers.0.mlp.up_proj.weight', 'visual.merger.ln_q.bias')
        >>> module_name("model.language_model.norm.weight"), module_name("visual.merger.ln_q.bias")
        ('language_model.norm.weight', 'visual.merger.ln_q.bias')
    """
    inner = re.sub(r"^model\.(?=visual\.|language_model\.)", "", name)
    return re.sub(r"^model\.", "language_model.", inner)


def load_hpsv3(  # noqa: PLR0913 (options of one reward)
    *,
    weights: str | os.PathLike[str] | None = None,
    words: str | os.PathLike[str] | None = None,
    model: str | os.PathLike[str] = _BASE,
    torch_dtype: torch.dtype = torch.bfloat16,
    attn_implementation: str = "sdpa",
    device_map: str | dict[str, Any] | None = None,
    revision: str = "main",
    batch_size: int | None = 8,
) -> HPSv3:
    """Load HPSv3: what `load_reward("hpsv3", ...)` calls.

    Args:
        weights: the file `HPSv3.safetensors`; None for that of the hub.
        words: the authors' `data_collator_qwen.py`, or a folder with their repository; None for the installed package
            `hpsv3` (`pip install --no-deps hpsv3`), which is read and never run.
        model: hub id or folder with configuration, tokenizer and processor of the Qwen2-VL that was fine-tuned; its
            weights are not read.
        torch_dtype: floating dtype of the model; the head stays in float32.
        attn_implementation: "sdpa", "eager", "flash_attention_2", ...
        device_map: as in `PreTrainedModel.from_pretrained`.
        revision: branch, tag or commit of the hub repository of the weights.
        batch_size: number of images that go through the model at once; None for all of one size.

    Raises:
        FileNotFoundError: when there is no file of weights, or of words.
        OSError: when files of `model` are missing.
        ValueError: for weights that are not exactly those of an HPSv3 on this model.
    """
    from transformers import Qwen2VLModel

    from fk_reward.rewards.answer_model import load_processor
    from fk_reward.rewards.weights import check_complete

    asked = HPSv3Words.read(words)
    config = _config(model)
    tensors, head = _read_tensors(Path(weights) if weights is not None else _download(revision))
    config.text_config.vocab_size = len(tensors["language_model.embed_tokens.weight"])
    network, info = Qwen2VLModel.from_pretrained(
        None,
        config=config,
        state_dict=tensors,
        dtype=torch_dtype,
        attn_implementation=attn_implementation,
        device_map=device_map,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported with all others
    )
    source = weights or _REPOSITORY
    check_complete(source, info)
    if wrong := sorted([*info["unexpected_keys"], *(name for name, *_ in info["mismatched_keys"])]):
        raise ValueError(f"{source} does not fit the configuration of {model}: {', '.join(map(str, wrong[:5]))}.")
    card = _CARD if weights is None else dataclasses.replace(_CARD, weights=os.fspath(weights))
    return HPSv3(network, head, load_processor(model), words=asked, batch_size=batch_size, card=card)


def _config(model: str | os.PathLike[str]) -> Any:
    from transformers import PreTrainedConfig, Qwen2VLConfig

    found, _ = PreTrainedConfig.get_config_dict(model)
    if found.get("model_type") != Qwen2VLConfig.model_type:
        raise ValueError(f"{model} is a model of type {found.get('model_type')!r}; HPSv3 is a 'qwen2_vl'.")
    return Qwen2VLConfig.from_pretrained(model)


def _download(revision: str) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(_REPOSITORY, _FILE, revision=revision))


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], nn.Module]:
    """Tensors of the model under its own names, and the head."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from fk_reward.rewards.weights import unwrapped_names

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of HPSv3.")
    try:
        tensors = unwrapped_names(load_file(path), source=path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged, or no safetensors file: {error}") from error
    prefix = "rm_head."
    head = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    rest = {module_name(n): t for n, t in tensors.items() if not n.startswith((prefix, "lm_head."))}
    if "language_model.embed_tokens.weight" not in rest:
        raise ValueError(f"{path} is not an HPSv3: it lacks model.embed_tokens.weight.")
    return rest, reward_head(head)


HPSV3 = RewardEntry(_CARD, load_hpsv3)
