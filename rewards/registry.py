"""Names of rewards: one dict for those of the package, an entry-point group for those of other packages."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from fk_reward.models import ASSETS
from fk_reward.registration import Registrations
from fk_reward.rewards.base import CallableReward, Reward, RewardCard
from fk_reward.rewards.composition.composite import CompositeReward, composite_card
from fk_reward.rewards.composition.parser import is_composition, parse_expression
from fk_reward.rewards.noise_bands import BANDS_SUFFIX
from fk_reward.text import did_you_mean

ENTRY_POINT_GROUP = "fk_reward.rewards"
"""Entry-point group in which other packages register a `RewardEntry`."""

REWARDS: dict[str, str] = {
    "aesthetic": "fk_reward.rewards.aesthetic:AESTHETIC",
    "aesthetic-v2.5": "fk_reward.rewards.aesthetic_siglip:AESTHETIC_V2_5",
    "blip-itm": "fk_reward.rewards.blip_itm:BLIP_ITM",
    "clipscore": "fk_reward.rewards.clipscore:CLIPSCORE",
    "cyclereward": "fk_reward.rewards.cyclereward:CYCLEREWARD",
    "geneval": "fk_reward.benchmarks.geneval.reward:GENEVAL",
    "hpsv2": "fk_reward.rewards.hps:HPSV2",
    "hpsv2.1": "fk_reward.rewards.hps:HPSV2_1",
    "hpsv3": "fk_reward.rewards.hpsv3:HPSV3",
    "image-classifier": "fk_reward.rewards.image_classifier:IMAGE_CLASSIFIER",
    "imageguard": "fk_reward.rewards.vlm_judge.imageguard:IMAGEGUARD",
    "imagereward": "fk_reward.rewards.imagereward:IMAGEREWARD",
    "llava-reward": "fk_reward.rewards.llava_reward.entries:LLAVA_REWARD",
    "llava-reward-alignment": "fk_reward.rewards.llava_reward.entries:ALIGNMENT",
    "llava-reward-alignment@qwen": "fk_reward.rewards.llava_reward.entries:ALIGNMENT_QWEN",
    "llava-reward-fidelity": "fk_reward.rewards.llava_reward.entries:FIDELITY",
    "llava-reward-fidelity@qwen": "fk_reward.rewards.llava_reward.entries:FIDELITY_QWEN",
    "llava-reward-safety": "fk_reward.rewards.llava_reward.entries:SAFETY",
    "llava-reward-safety@qwen": "fk_reward.rewards.llava_reward.entries:SAFETY_QWEN",
    "llava-reward-overall": "fk_reward.rewards.llava_reward.entries:OVERALL",
    "llava-reward-overall@qwen": "fk_reward.rewards.llava_reward.entries:OVERALL_QWEN",
    "llava-score": "fk_reward.rewards.vqascore:LLAVA_SCORE",
    "nudenet": "fk_reward.rewards.nudenet:NUDENET",
    "ocr": "fk_reward.rewards.ocr:OCR",
    "perspectivevision": "fk_reward.rewards.perspectivevision:PERSPECTIVEVISION",
    "pickscore": "fk_reward.rewards.pickscore:PICKSCORE",
    "q-align": "fk_reward.rewards.q_align:Q_ALIGN",
    "shapes-clipscore": "fk_reward.rewards.clipscore:SHAPES_CLIPSCORE",
    "shapes-imagereward": "fk_reward.rewards.imagereward:SHAPES_IMAGEREWARD",
    "shapes-llava-reward-alignment": "fk_reward.rewards.llava_reward.entries:SHAPES_ALIGNMENT",
    "shapes-llava-reward-fidelity": "fk_reward.rewards.llava_reward.entries:SHAPES_FIDELITY",
    "shapes-llava-reward-safety": "fk_reward.rewards.llava_reward.entries:SHAPES_SAFETY",
    "shapes-verifier": "fk_reward.rewards.shapes_verifier:SHAPES_VERIFIER",
    "shieldgemma-2": "fk_reward.rewards.shieldgemma2:SHIELDGEMMA_2",
    "unified-reward": "fk_reward.rewards.unified_reward:UNIFIED_REWARD",
    "vlm-judge": "fk_reward.rewards.vlm_judge.entries:VLM_JUDGE",
    "vlm-judge-alignment": "fk_reward.rewards.vlm_judge.entries:VLM_JUDGE_ALIGNMENT",
    "vlm-judge-evalalign": "fk_reward.rewards.vlm_judge.mark_entries:VLM_JUDGE_EVALALIGN",
    "vlm-judge-llavaguard": "fk_reward.rewards.vlm_judge.mark_entries:VLM_JUDGE_LLAVAGUARD",
    "vlm-judge-preference": "fk_reward.rewards.vlm_judge.entries:VLM_JUDGE_PREFERENCE",
    "vlm-judge-safety": "fk_reward.rewards.vlm_judge.mark_entries:VLM_JUDGE_SAFETY",
    "vlm-judge-viescore": "fk_reward.rewards.vlm_judge.mark_entries:VLM_JUDGE_VIESCORE",
    "vqascore": "fk_reward.rewards.vqascore:VQASCORE",
}
"""Name -> "module:attribute" of a `RewardEntry`. A module is imported only when its name is used."""


class RewardLoadError(ImportError):
    """A registered reward cannot be imported, or what it names is not a `RewardEntry`."""


_REGISTERED = Registrations(REWARDS, ENTRY_POINT_GROUP, ("reward", "rewards"), RewardLoadError)


@dataclass(frozen=True)
class RewardEntry:
    """A registered reward.

    Attributes:
        card: readable without weights; keep heavy imports out of the module that holds the entry.
        build: makes the reward. Its keyword parameters are the options of `load_reward`.

    Example:
        >>> def build(*, channel: int = 0) -> Reward:
        ...     return CallableReward(lambda images, prompts: images[:, channel].mean(dim=(1, 2)), "channel")
        >>> RewardEntry(RewardCard(name="channel", summary="mean of one channel"), build).build(channel=2).card.name
        'channel'
    """

    card: RewardCard
    build: Callable[..., Reward]


def available_rewards() -> list[str]:
    """List the names that `load_reward` knows, sorted, without importing any of them.

    Example:
        >>> "clipscore" in available_rewards()
        True
    """
    return sorted(_REGISTERED.entry_points())


def check_reward_name(name: str) -> None:
    """Raise for a name that is not registered, without importing any reward; compositions are read when loaded.

    Raises:
        ValueError: the message suggests close names and lists all.

    Example:
        >>> check_reward_name("clipscore")
        >>> check_reward_name("clip-score")
        Traceback (most recent call last):
        ValueError: Unknown reward 'clip-score'. Did you mean 'clipscore'? ...
    """
    if not is_composition(name):
        _known_entry_point(name)


def reward_card(name: str) -> RewardCard:
    """Read the card of a registered reward or of a composition; nothing is downloaded and no weights are loaded.

    Raises:
        ValueError: for an unknown name, or a composition that cannot be read.
        RewardLoadError: when the registered reward cannot be imported.

    Example:
        >>> from fk_reward.rewards import reward_card
        >>> reward_card("clipscore").weights
        'openai/clip-vit-large-patch14'
    """
    if is_composition(name) and name not in _REGISTERED.entry_points():
        return composite_card(*parse_expression(name, reward_card))
    return _find_entry(name).card


OWN_BANDS = "FK_REWARD_BANDS"
"""Name of the environment's variable with a folder of noise bands: NAME-bands in it is taken by NAME@bands."""


def _with_bands(entry: RewardEntry, name: str) -> RewardEntry:
    """The entry under its name with "@bands" behind it: with the noise bands of `band_folder`.

    Raises:
        ValueError: for a reward without the option `bands`.
    """
    if "bands" not in inspect.signature(entry.build).parameters:
        raise ValueError(f"Reward {name!r} has no noise bands; write {name.removesuffix(BANDS_SUFFIX)!r}.")
    card = dataclasses.replace(entry.card, name=name, summary=f"{entry.card.summary}; predictions by noise bands")

    def build(**options: Any) -> Reward:
        return entry.build(**{"bands": band_folder(name), "card": card} | options)

    build.__signature__ = inspect.signature(entry.build)  # type: ignore[attr-defined]
    return RewardEntry(card, build)


def band_folder(name: str) -> Path:
    """Where the noise bands of a reward are: in the folder that `FK_REWARD_BANDS` names, or in the package.

    Read from the environment, which reaches every command, and the workers of a reward, without an option of each.

    Args:
        name: with "@bands" behind it, or without.

    Raises:
        FileNotFoundError: in neither.
    """
    plain = name.removesuffix(BANDS_SUFFIX)
    own = os.environ.get(OWN_BANDS)
    places = [Path(own) / f"{plain}-bands"] if own else []
    places.append(ASSETS / f"{plain}-bands")
    found = next((folder for folder in places if folder.is_dir()), None)
    if found is None:
        raise FileNotFoundError(
            f"The package holds no noise bands of {plain!r} (expected {' or '.join(map(str, places))}): train them, as "
            f"docs/noise_aware.md shows, and set {OWN_BANDS} to the folder in which {plain}-bands is, or pass "
            f"load_reward({plain!r}, bands=<folder>)."
        )
    return found


def load_reward(reward: str | Reward | Callable[..., Any], **options: Any) -> Reward:
    """Turn a name, a reward or a function into a reward.

    Args:
        reward: a registered name, or a composition of such names, as in "0.5*shapes-clipscore + shapes-verifier"; a
            `Reward`, which is returned unchanged; or a function `(images, prompts) -> (B,) tensor`.
        options: passed to the factory of a registered reward, whose signature decides what is accepted.

    Raises:
        TypeError: for an option that the factory does not have, options without a name or with a composition, or
            anything else than these.
        ValueError: for an unknown name, or a composition that cannot be read (`ExpressionError`).
        RewardLoadError: when the registered reward cannot be imported.

    Example:
        >>> load_reward(lambda images, prompts: images.mean(dim=(1, 2, 3))).card.name
        '<lambda>'
    """
    if isinstance(reward, str):
        composed = is_composition(reward) and reward not in _REGISTERED.entry_points()
        return _compose(reward, options) if composed else _build(reward, options)
    if options:
        raise TypeError(
            f"Options {sorted(options)} only go with a registered name; set up the reward before passing it."
        )
    if isinstance(reward, type):
        raise TypeError(f"Got the class {reward.__name__}; pass an instance of it.")
    if isinstance(reward, Reward):
        if not isinstance(getattr(reward, "card", None), RewardCard):
            raise TypeError(
                f"{type(reward).__name__} has no card; set `card = RewardCard(name=..., summary=...)` in the class."
            )
        return reward
    if callable(reward):
        return CallableReward(reward)
    raise TypeError(f"Expected the name of a reward, a Reward or a function, got {type(reward).__name__}.")


def steering_reward(reward: str | Reward | Callable[..., Any]) -> Reward:
    """Load a reward of which a search is to find the highest, as `load_reward` does.

    Raises:
        ValueError: for one of which lower is better.

    Example:
        >>> steering_reward(lambda images, prompts: images.mean(dim=(1, 2, 3))).device is None
        True
    """
    loaded = load_reward(reward)
    if not loaded.card.higher_is_better:
        raise ValueError(
            f"Of reward {loaded.card.name!r} lower is better, and steering looks for the highest: write a minus before "
            "it, in the name or before the object."
        )
    return loaded


def _compose(text: str, options: dict[str, Any]) -> CompositeReward:
    """Load each reward that a composition names, once, and compose them."""
    if options:
        raise TypeError(
            f"Options {sorted(options)} cannot be given to a composition: load the parts with their options and "
            "compose the objects, as in 0.5 * load_reward('clipscore', scale=100.0) + 0.5 * load_reward('...')."
        )
    expression, cards = parse_expression(text, reward_card)
    composite_card(expression, cards)  # raises before weights are read what CompositeReward would raise after
    return CompositeReward(expression, {name: load_reward(name) for name in expression.names})


def _build(name: str, options: dict[str, Any]) -> Reward:
    entry = _find_entry(name)
    signature = inspect.signature(entry.build)
    try:
        signature.bind(**options)
    except TypeError as error:
        accepted = ", ".join(signature.parameters) or "none"
        raise TypeError(f"Reward {name!r}: {error}. Options that it accepts: {accepted}.") from error
    reward = entry.build(**options)
    if not isinstance(reward, Reward):
        raise TypeError(f"The factory of reward {name!r} must return a Reward, got {type(reward).__name__}.")
    return reward


def _find_entry(name: str) -> RewardEntry:
    entry = _import_entry(_known_entry_point(name))
    return _with_bands(entry, name) if _asks_for_bands(name) else entry


def _asks_for_bands(name: str) -> bool:
    entry_points = _REGISTERED.entry_points()
    return name not in entry_points and name.endswith(BANDS_SUFFIX) and name.removesuffix(BANDS_SUFFIX) in entry_points


def _known_entry_point(name: str) -> metadata.EntryPoint:
    entry_points = _REGISTERED.entry_points()
    if _asks_for_bands(name):
        return entry_points[name.removesuffix(BANDS_SUFFIX)]
    if name not in entry_points:
        hint = did_you_mean(name, entry_points, limit=1)
        if any(name[:i] in entry_points for i, letter in enumerate(name) if letter == "-"):
            hint += " If this is a minus, put spaces around it."
        raise ValueError(f"Unknown reward {name!r}.{hint} Known rewards: {', '.join(sorted(entry_points))}.")
    return entry_points[name]


def _import_entry(entry_point: metadata.EntryPoint) -> RewardEntry:
    entry = _REGISTERED.load(entry_point)
    if not isinstance(entry, RewardEntry):
        raise RewardLoadError(f"{_REGISTERED.describe(entry_point)} must be a RewardEntry, got {type(entry).__name__}.")
    return entry
