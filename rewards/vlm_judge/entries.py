"""The judges in the registry, and their loader; importing this module loads no model."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from fk_reward.rewards.registry import RewardEntry
from fk_reward.rewards.vlm_judge.answer_cache import AnswerCache
from fk_reward.rewards.vlm_judge.endpoint import redact_text
from fk_reward.rewards.vlm_judge.engine import JudgeEngine
from fk_reward.rewards.vlm_judge.marks import WeighingEngine
from fk_reward.rewards.vlm_judge.openai_engine import OpenAIEngine
from fk_reward.rewards.vlm_judge.preference_judge import PreferenceJudge
from fk_reward.rewards.vlm_judge.templates import ALIGNMENT, PREFERENCE, RUBRIC, JudgeTemplate, find_template
from fk_reward.rewards.vlm_judge.transformers_engine import TransformersEngine
from fk_reward.rewards.vlm_judge.vlm_judge import DEFAULT_MODEL, REASONER, VLMJudge, judge_card

if TYPE_CHECKING:
    import torch


def default_model(template: JudgeTemplate) -> str:
    """The default model for a template.

    Example:
        >>> from fk_reward.rewards.vlm_judge.templates import RUBRIC
        >>> default_model(RUBRIC)
        'Qwen/Qwen3-VL-4B-Instruct'
    """
    return REASONER if template.pairwise else DEFAULT_MODEL


def load_vlm_judge(  # noqa: PLR0913 (options of one reward)
    *,
    template: str | JudgeTemplate = "rubric",
    model: str | os.PathLike[str] | None = None,
    base_url: str | None = None,
    engine: JudgeEngine | None = None,
    cache: AnswerCache | str | os.PathLike[str] | None = None,
    on_unparsable: str = "raise",
    num_retries: int = 2,
    max_new_tokens: int | None = None,
    batch_size: int | None = 8,
    torch_dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
    listener: WeighingEngine | None = None,
    both_orders: bool | None = None,
    num_rounds: int | None = None,
) -> VLMJudge:
    """Load a judge: what `load_reward("vlm-judge", ...)` calls.

    Args:
        template: "rubric", "alignment", "safety", "preference" or a `JudgeTemplate`.
        model: hub id or folder of a local model, or a model's name at the endpoint.
        base_url: address of an OpenAI-compatible endpoint; None for a local model.
        engine: a custom engine, or an `OpenAIEngine` with its options, instead of `model` and `base_url`.
        cache: folder or `AnswerCache` of answers that could be read.
        on_unparsable: "raise" or "retry".
        num_retries: how often to ask again; counts only with "retry".
        max_new_tokens: length that an answer may have.
        batch_size: number of questions at once.
        torch_dtype: floating dtype of a local model.
        attn_implementation: "sdpa", "eager", "flash_attention_2", ...
        device_map: as in `PreTrainedModel.from_pretrained`.
        revision: branch, tag or commit of the hub repository.
        listener: engine that reads the reasons of a `PreferenceJudge`.
        both_orders: whether a `PreferenceJudge` asks each comparison in both orders.
        num_rounds: comparisons of K images are K * num_rounds.

    Raises:
        ImportError: for an endpoint without the `openai` package.
        OSError: when files are missing.
        TypeError: for options that do not go together.
        ValueError: as `VLMJudge`.

    Example:
        >>> load_vlm_judge(model="Qwen/Qwen3-VL-4B-Instruct", cache="answers")  # doctest: +SKIP
        >>> load_vlm_judge(model="judge", base_url="http://localhost:8000/v1", template="safety")  # doctest: +SKIP
    """
    found = find_template(template)
    comparing = given(listener=listener, both_orders=both_orders, num_rounds=num_rounds)
    if comparing and not found.pairwise:
        raise TypeError(f"{', '.join(comparing)}: only for templates that compare, which {found.name!r} does not.")
    local = given(
        torch_dtype=torch_dtype, attn_implementation=attn_implementation, device_map=device_map, revision=revision
    )
    chosen, weights = _engine_of(found, engine, model, base_url, local)
    cls = PreferenceJudge if found.pairwise else VLMJudge
    return cls(
        chosen,
        found,
        cache=cache,
        on_unparsable=on_unparsable,
        num_retries=num_retries,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        card=judge_card(found, weights=weights),
        **comparing,
    )


def _engine_of(
    found: JudgeTemplate,
    engine: JudgeEngine | None,
    model: str | os.PathLike[str] | None,
    base_url: str | None,
    local: dict[str, Any],
) -> tuple[JudgeEngine, str]:
    """The engine, and the name of its model."""
    if engine is not None:
        mixed = [*given(model=model, base_url=base_url), *local]
        if mixed:
            raise TypeError(f"{', '.join(mixed)}: set these up in the engine that you pass.")
        return engine, engine.name
    if base_url is not None:
        if model is None or local:
            what = f"{', '.join(local)}: only for local models" if local else "name the model that the endpoint serves"
            raise TypeError(f"An endpoint was given ({redact_text(base_url)}); {what}.")
        return OpenAIEngine(str(model), base_url=base_url), str(model)
    name = default_model(found) if model is None else model
    return TransformersEngine.from_pretrained(name, **local), str(name)


def given(**options: Any) -> dict[str, Any]:
    """The options that are not None.

    Example:
        >>> given(model="a", cache=None)
        {'model': 'a'}
    """
    return {name: value for name, value in options.items() if value is not None}


def _entry(template: JudgeTemplate) -> RewardEntry:
    card = judge_card(template, weights=default_model(template))
    return RewardEntry(card, partial(load_vlm_judge, template=template))


VLM_JUDGE = _entry(RUBRIC)
VLM_JUDGE_ALIGNMENT = _entry(ALIGNMENT)
VLM_JUDGE_PREFERENCE = _entry(PREFERENCE)
