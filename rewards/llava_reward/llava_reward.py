"""LLaVA-Reward as a reward: one scalar an image, preferences between images, several dimensions in one pass."""

from __future__ import annotations

import copy
import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from torch import Tensor

from fk_reward.rewards.base import Reward, RewardCard
from fk_reward.rewards.inputs import Images, in_order, prompt_list
from fk_reward.rewards.llava_reward.checkpoint import accepted_folder
from fk_reward.rewards.llava_reward.config import LlavaRewardConfig, card_of
from fk_reward.rewards.llava_reward.loading import Adapter, Bands, attach_adapter, attach_bands
from fk_reward.rewards.llava_reward.model import LlavaRewardModel
from fk_reward.rewards.llava_reward.objective import Objective, find_objective
from fk_reward.rewards.noise_bands import BANDS_SUFFIX, band_card, find_band, prompt_at_level, require_disjoint
from fk_reward.rewards.registry import load_reward

if TYPE_CHECKING:
    from huggingface_hub import ModelCard
    from typing_extensions import Self


_CARD = """---
{{ card_data }}
---

A dimension of [LLaVA-Reward](https://arxiv.org/abs/2507.21391): **{{ dimension }}**, trained as {{ objective }} on
`{{ base_model }}`. The backbone is not part of this repository.

```python
from fk_reward.rewards import load_reward

reward = load_reward("llava-reward", adapter="<this repository>").to("cuda")
reward(images, prompts)
```
"""


class LlavaReward(  # type: ignore[call-arg]  # huggingface_hub's names come lazily, unseen by mypy
    # PyTorchModelHubMixin would upload every weight of a module, the backbone's billions among them, and build the
    # class from a JSON of its arguments. Its base leaves to us what a checkpoint is, and does the rest.
    ModelHubMixin,
    Reward,
    library_name="fk-reward",
    tags=["reward-model", "llava-reward"],
    paper_url="https://arxiv.org/abs/2507.21391",
    model_card_template=_CARD,
):
    """A multimodal LLM's hidden states as a reward, switched between dimensions by LoRA adapters.

    Bradley-Terry checkpoints give the scalar, binary ones the logit. General-preference checkpoints give vectors; the
    reward of an image is then its mean preference logit against the other images of the same prompt in the same call,
    so that it depends on these, and is 0 for an image that is alone.

    Differentiable with respect to image tensors that require a gradient. `load_reward("llava-reward", ...)` makes one
    from files; `push_to_hub` and `from_pretrained` are huggingface_hub's, for checkpoints in our format.

    Args:
        model: the network, with the dimensions attached.
        dimensions: names of dimensions to their keys in `model`; the first is active.
        batch_size: number of images that the backbone sees at once; None for all of a call.
        offload: keep the weights on the CPU and move them to the device only while scoring.
        preview_options: options of the backbone's preprocessing for predictions on the way of a sampler, such as
            `{"num_crops": 4}`; None to read them like finished images.
        card: facts about the weights of the first dimension.

    Raises:
        TypeError: for preview options that the backbone does not have.
        ValueError: when `dimensions` is empty, or names a key that the model does not have.

    Example:
        >>> reward = load_reward("llava-reward-alignment", num_crops=4).to("cuda")  # doctest: +SKIP
        >>> reward(images, "a red circle")  # doctest: +SKIP
    """

    # What the mixin writes as config.json. Our own config says all that loading needs; this file makes the hub count
    # downloads, and transformers say what the folder is not.
    _hub_mixin_config: ClassVar[dict[str, str]] = {"model_type": "llava-reward"}

    def __init__(
        self,
        model: LlavaRewardModel,
        dimensions: Mapping[str, str],
        *,
        batch_size: int | None = 8,
        offload: bool = False,
        preview_options: Mapping[str, Any] | None = None,
        card: RewardCard | None = None,
    ) -> None:
        unknown = [key for key in dimensions.values() if key not in model.configs]
        if unknown or not dimensions:
            raise ValueError(f"dimensions must name keys of the model ({', '.join(model.configs)}), got {dimensions}.")
        self.model = model
        self.batch_size = batch_size
        self.offload = offload
        self.accepts_uint8 = model.backbone.accepts_uint8
        self.preview_options = dict(preview_options or {})
        if self.preview_options:
            model.backbone.with_options(**self.preview_options)  # raises now rather than at the first scoring step
        self._prepare_options: dict[str, Any] = {}
        self._prompt_level: float | None = None  # that stands before the prompts which an adapter for noise bands reads
        self._band_keys: dict[str, tuple[str, ...]] = {}  # dimension -> the keys of its adapters for noise bands
        self._keys = dict(dimensions)
        self._execution_device = model.backbone.device
        self._cards = {name: card_of(name) for name in dimensions}
        if card is not None:
            self._cards[next(iter(dimensions))] = card
        self.set_dimension(next(iter(dimensions)))

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Names of the loaded dimensions."""
        return tuple(self._keys)

    @property
    def config(self) -> LlavaRewardConfig:
        """Configuration of the active dimension."""
        return self.model.configs[self._keys[self.dimension]]

    @property
    def objective(self) -> Objective:
        """What the active dimension was trained for: how its raw outputs are scored and compared."""
        return find_objective(self.config.objective)

    @property
    def device(self) -> torch.device:
        """Where images are scored; with `offload` the weights rest on the CPU between calls."""
        return self._execution_device if self.offload else self.model.backbone.device

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move the weights, in place, for all rewards that share them; with `offload` name the device to score on."""
        if self.offload and device is not None:
            self._execution_device = torch.device(device)
            device = "cpu"
        return super().to(device, dtype)

    def set_dimension(self, dimension: str) -> Self:
        """Make a dimension the active one and return the reward itself.

        Raises:
            ValueError: for a dimension that was not loaded.
        """
        self._key(dimension)
        self.dimension = dimension
        self.card = self._cards[dimension]
        return self

    def add_dimension(self, adapter: Adapter, *, dimension: str | None = None, revision: str = "main") -> Self:
        """Load another checkpoint onto the same backbone, and return the reward itself; the active one stays.

        Args:
            adapter: as for `load_reward("llava-reward", adapter=...)`.
            dimension: which dimension; None for what a checkpoint in our format says.
            revision: branch, tag or commit of a hub repository.

        Raises:
            ValueError: when the dimension is there already, or the checkpoint does not fit the backbone.
        """
        name, key = attach_adapter(self.model, adapter, dimension=dimension, revision=revision)
        if self._keys.setdefault(name, key) != key:
            raise ValueError(f"Dimension {name!r} is already loaded, from another checkpoint.")
        self._cards.setdefault(name, card_of(name))
        return self

    def add_bands(self, bands: Bands, *, revision: str = "main") -> Self:
        """Load adapters that judge predictions instead of finished images, and return the reward itself.

        Args:
            bands: a checkpoint whose dimension names a band ("alignment@0.5"), a folder with several of them, or a
                list of such; folders, or hub repositories.
            revision: branch, tag or commit of a hub repository.

        Raises:
            ValueError: for an adapter of no band, or of a dimension that is not loaded; for bands that overlap, a
                dimension that compares images, or an adapter that is merged into the backbone.
        """
        if self.model.adapters.merged is not None:
            raise ValueError("Adapters for noise bands are switched, which merge_lora=True excludes: leave it out.")
        keys = attach_bands(self.model, bands, revision=revision)
        found: dict[str, tuple[str, ...]] = dict(self._band_keys)
        for key in keys:
            judged = self.model.configs[key].judged
            if find_objective(self.model.configs[self._key(judged)].objective).compares_images:
                raise ValueError(f"Dimension {judged!r} compares images; noise bands are for scores of single ones.")
            found[judged] = tuple(dict.fromkeys((*found.get(judged, ()), key)))
        for of_dimension in found.values():
            require_disjoint([band for key in of_dimension if (band := self.model.configs[key].band) is not None])
        self._band_keys = found
        return self

    def at_noise(self, level: float) -> LlavaReward:
        """This reward with the adapter of the level's band active, on the same weights; itself where there is none."""
        bands = {band: key for key in self.band_keys if (band := self.model.configs[key].band) is not None}
        band = find_band(list(bands), level)
        if band is None:
            return self
        other, config = copy.copy(self), self.model.configs[bands[band]]
        # one dimension alone: the others have no prompt with the level in it
        other._keys, other._band_keys = {config.dimension: bands[band]}, {}
        other._cards = {config.dimension: band_card(self.card, band.name)}
        other._prompt_level = level if config.level_in_prompt else None
        loaded = self.model.backbone.options
        other._prepare_options = {k: v for k, v in config.backbone_options.items() if loaded.get(k) != v}
        return other.set_dimension(config.dimension)

    @property
    def band_keys(self) -> tuple[str, ...]:
        """Keys in the model of the active dimension's adapters for noise bands."""
        return self._band_keys.get(self.dimension, ())

    @property
    def judges(self) -> tuple[str, ...]:
        """The name of the active adapter."""
        return (self.card.name.removesuffix(BANDS_SUFFIX),)

    @property
    def uncalibrated(self) -> tuple[str, ...]:
        """Names of the active dimension's adapters for noise bands without a calibration."""
        configs = (self.model.configs[key] for key in self.band_keys)
        return tuple(config.dimension for config in configs if config.calibration is None)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> str | None:
        """Write the active dimension as a checkpoint in fk-reward's format; the backbone is named, not copied.

        Args:
            save_directory: folder, new or empty or with an older checkpoint.
            options: of `huggingface_hub.ModelHubMixin.save_pretrained`, such as `push_to_hub` and `repo_id`.

        Raises:
            FileExistsError: when the folder holds something else.
        """
        # Before the mixin, which first deletes a config.json: it may belong to another model.
        accepted_folder(Path(save_directory))
        return super().save_pretrained(Path(save_directory), **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        self.model.checkpoint(self._keys[self.dimension]).save(save_directory)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **options: Any,
    ) -> LlavaReward:
        """Fetch the checkpoint's files and load them; options are those of `load_llava_reward`."""
        # Downloaded here and not by load_reward, which has no options for cache, token and offline use.
        folder = model_id
        if not os.path.isdir(model_id):
            folder = snapshot_download(
                model_id,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
        return cast("LlavaReward", load_reward("llava-reward", adapter=folder, **options))

    def generate_model_card(self, *args: Any, **options: Any) -> ModelCard:
        """The README.md of a repository: what the dimension judges, on which backbone, and how to load it."""
        facts = {name: getattr(self.config, name) for name in ("dimension", "objective", "base_model")}
        card = super().generate_model_card(*args, **facts, **options)
        if not Path(self.config.base_model).exists():  # a folder on this machine says nothing on the hub
            card.data.base_model = self.config.base_model
        return card

    def __call__(self, images: Images, prompts: str | Sequence[str]) -> Tensor:
        """Score images as `Reward.__call__` does; a general preference is relative to the images of the same prompt."""
        if not self.compares_images:
            return super().__call__(images, prompts)
        # The base class scores one batch of one size at a time; here all images of a prompt must be seen together.
        vectors = self.embed(images, prompts)
        prompts = prompt_list(prompts, len(vectors))
        return self._checked_scores(vectors, prompts)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score one batch of images of one size; shapes as in `Reward.score`."""
        vectors = self._run(list(images), prompts, [self._key(self.dimension)])[0]
        return self._scores(self.dimension, vectors, prompts)

    def embed(self, images: Images, prompts: str | Sequence[str]) -> Tensor:
        """Read images and prompts with the active dimension; images of unequal sizes share a batch.

        Args:
            images: as for `Reward.__call__`.
            prompts: B strings, or one string for all images.

        Returns:
            (B, d) float32, the head's raw output; d is 1 unless the objective is a general preference.
        """
        ordered = list(in_order(images, keep_uint8=True))
        return self._run(ordered, prompt_list(prompts, len(ordered)), [self._key(self.dimension)])[0]

    def score_dimensions(
        self, images: Images, prompts: str | Sequence[str], dimensions: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Score several dimensions in one pass: the vision tower runs once, the adapters share the batch.

        Args:
            images: as for `Reward.__call__`.
            prompts: B strings, or one string for all images.
            dimensions: names; all that are loaded by default.

        Returns:
            For each dimension (B,) float32, what calling the reward with that dimension active gives.
        """
        dimensions = list(self.dimensions if dimensions is None else dimensions)
        ordered = list(in_order(images, keep_uint8=True))
        texts = prompt_list(prompts, len(ordered))
        vectors = self._run(ordered, texts, [self._key(name) for name in dimensions])
        scores = {name: self._scores(name, rows, texts) for name, rows in zip(dimensions, vectors, strict=True)}
        for values in scores.values():
            self._check_scores(values, tuple(range(len(texts))), texts)
        return scores

    @property
    def compares_images(self) -> bool:
        """Whether the active dimension is a general preference."""
        return self.objective.compares_images

    def for_previews(self) -> LlavaReward:
        """This reward with `preview_options`, on the same weights; itself where there are none."""
        if not self.preview_options:
            return self
        other = copy.copy(self)
        other._prepare_options = {**self._prepare_options, **self.preview_options}
        return other

    @property
    def shared_pass(self) -> Hashable:
        """Rewards with one model that score on one device and prepare images alike share a pass."""
        read_as = (tuple(sorted(self._prepare_options.items())), self._prompt_level)
        return self.model, self.offload, self.device, read_as

    def score_together(self, others: Sequence[Reward], images: Images, prompts: str | Sequence[str]) -> list[Tensor]:
        """Score the active dimensions of this and other rewards on one model in one pass; see `Reward.score_together`.

        The smallest of their batch sizes applies.

        Raises:
            ValueError: for a reward on another model.
        """
        rewards = [self, *(reward for reward in others if isinstance(reward, LlavaReward))]
        if len(rewards) <= len(others) or any(reward.shared_pass != self.shared_pass for reward in rewards):
            raise ValueError("Only LLaVA-Rewards on one model and device can be scored together.")
        ordered = list(in_order(images, keep_uint8=True))
        texts = prompt_list(prompts, len(ordered))
        keys = [reward._key(reward.dimension) for reward in rewards]
        size = min(reward._checked_batch_size() or len(texts) for reward in rewards)
        vectors = self._run(ordered, texts, keys, batch_size=size)
        return [reward._checked_scores(rows, texts) for reward, rows in zip(rewards, vectors, strict=True)]

    def preference(self, images_a: Images, images_b: Images, prompts: str | Sequence[str]) -> Tensor:
        """Probability that image a is preferred to image b for its prompt, by the active dimension.

        sigmoid((r_a - r_b) / tau) for Bradley-Terry, sigmoid of the difference of the logits for a binary objective,
        sigmoid of the preference logit for a general preference.

        Args:
            images_a: B images, as for `Reward.__call__`.
            images_b: B images.
            prompts: B strings, or one string for all pairs.

        Returns:
            (B,) float32 in [0, 1].

        Raises:
            ValueError: when the numbers of images differ.
        """
        first, second = (list(in_order(images, keep_uint8=True)) for images in (images_a, images_b))
        if len(first) != len(second):
            raise ValueError(f"Expected as many images b as images a, got {len(first)} and {len(second)}.")
        texts = prompt_list(prompts, len(first))
        a, b = self._run(first + second, texts * 2, [self._key(self.dimension)])[0].split(len(first))
        return torch.sigmoid(self.objective.preference_logits(a, b, temperature=self.config.temperature))

    def _scores(self, dimension: str, vectors: Tensor, prompts: list[str]) -> Tensor:
        config = self.model.configs[self._key(dimension)]
        scores = find_objective(config.objective).score(vectors, prompts, temperature=config.temperature)
        return config.calibrated(scores)

    def _checked_scores(self, vectors: Tensor, prompts: list[str]) -> Tensor:
        scores = self._scores(self.dimension, vectors, prompts)
        self._check_scores(scores, tuple(range(len(vectors))), prompts)
        return scores

    def _run(
        self, images: list[Tensor], prompts: list[str], keys: Sequence[str], *, batch_size: int | None = None
    ) -> list[Tensor]:
        """For each key the head's output (B, d), on the images' device."""
        if self._prompt_level is not None:
            prompts = [prompt_at_level(prompt, self._prompt_level) for prompt in prompts]
        size = batch_size or self._checked_batch_size() or len(images)
        backbone = self.model.backbone
        prepared_by = backbone.with_options(**self._prepare_options) if self._prepare_options else backbone
        # Weights get no gradient here: without one to an image, a graph would only hold memory.
        with_gradient = torch.is_grad_enabled() and any(image.requires_grad for image in images)
        with torch.set_grad_enabled(with_gradient), self._loaded(with_gradient):
            batches = [
                self.model(images[i : i + size], prompts[i : i + size], keys, prepared_by=prepared_by)
                for i in range(0, len(images), size)
            ]
            return [torch.cat(parts).to(images[0].device) for parts in zip(*batches, strict=True)]

    @contextmanager
    def _loaded(self, with_gradient: bool) -> Iterator[None]:
        """Keep the weights on the device to score on; with `offload`, only inside the context."""
        if not self.offload:
            yield
            return
        if with_gradient:
            raise ValueError(
                "offload=True moves the weights to the CPU before a gradient is computed: load the reward without it."
            )
        self.model.to(self._execution_device)
        try:
            yield
        finally:
            self.model.to("cpu")

    def _key(self, dimension: str) -> str:
        if dimension not in self._keys:
            raise ValueError(f"Dimension {dimension!r} is not loaded; loaded: {', '.join(self._keys)}.")
        return self._keys[dimension]
