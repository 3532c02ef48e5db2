"""The judges that give marks, in the registry, and their loader; importing this module loads no model."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from fk_reward.rewards.registry import RewardEntry
from fk_reward.rewards.vlm_judge.answer_cache import AnswerCache
from fk_reward.rewards.vlm_judge.author_templates import AUTHOR_TEMPLATES, rating_template
from fk_reward.rewards.vlm_judge.engine import JudgeEngine
from fk_reward.rewards.vlm_judge.entries import given, load_vlm_judge
from fk_reward.rewards.vlm_judge.mark_judge import READINGS, MarkJudge, mark_card
from fk_reward.rewards.vlm_judge.marks import MarkTemplate, WeighingEngine
from fk_reward.rewards.vlm_judge.openai_engine import OpenAIEngine
from fk_reward.rewards.vlm_judge.templates import CATEGORIES
from fk_reward.rewards.vlm_judge.templates import SAFETY as SAFETY_IN_WORDS
from fk_reward.rewards.vlm_judge.transformers_engine import TransformersEngine
from fk_reward.rewards.vlm_judge.vlm_judge import DEFAULT_MODEL, VLMJudge

if TYPE_CHECKING:
    import torch

    from fk_reward.rewards.base import RewardCard

LLAVAGUARD = "AIML-TUDA/LlavaGuard-v1.2-7B-OV-hf"
"""LlavaGuard in the layout of transformers."""

SAFETY = rating_template(
    "safety",
    SAFETY_IN_WORDS.text,
    categories=tuple(CATEGORIES),
    opening='{"rating": "',
    licence="Apache-2.0",
    source=SAFETY_IN_WORDS.source,
)
"""The package's own policy, as log-odds."""


def load_mark_judge(  # noqa: PLR0913 (options of one reward)
    *,
    template: str | MarkTemplate,
    words: str | os.PathLike[str] | None = None,
    model: str | os.PathLike[str] = DEFAULT_MODEL,
    base_url: str | None = None,
    engine: JudgeEngine | WeighingEngine | None = None,
    reading: str = "logits",
    batch_size: int | None = 8,
    torch_dtype: torch.dtype | None = None,
    revision: str = "main",
) -> MarkJudge:
    """Load a judge that gives marks: what `load_reward("vlm-judge-viescore", ...)` calls.

    Args:
        template: "viescore", "evalalign", "llavaguard" or a `MarkTemplate`.
        words: for a name, the authors' file (or repository) with their wording, see `AUTHOR_TEMPLATES`.
        model: hub id or folder of a local model, or a model's name at the endpoint.
        base_url: address of an OpenAI-compatible endpoint, which needs `reading="text"`; None for a local model.
        engine: a custom engine instead.
        reading: "logits" or "text", as for `MarkJudge`.
        batch_size: number of images that are asked about at once.
        torch_dtype: floating dtype of a local model, bfloat16 by default.
        revision: branch, tag or commit of the hub repository.

    Raises:
        FileNotFoundError: when there is no such file.
        TypeError: for `reading="logits"` with an engine that gives none.
        ValueError: for an unknown template, or a name without `words`.
    """
    found = template if isinstance(template, MarkTemplate) else _template(template, words)
    if engine is not None:
        return MarkJudge(engine, found, reading=reading, batch_size=batch_size)
    if base_url is not None:
        chosen: JudgeEngine = OpenAIEngine(str(model), base_url=base_url)
    else:
        options: dict[str, Any] = {} if torch_dtype is None else {"torch_dtype": torch_dtype}
        chosen = TransformersEngine.from_pretrained(model, revision=revision, **options)
    card = mark_card(found, weights=os.fspath(model), reading=reading)
    return MarkJudge(chosen, found, reading=reading, batch_size=batch_size, card=card)


def load_safety_judge(  # noqa: PLR0913 (options of one reward)
    *,
    reading: str = "logits",
    model: str | os.PathLike[str] | None = None,
    base_url: str | None = None,
    engine: JudgeEngine | WeighingEngine | None = None,
    batch_size: int | None = 8,
    torch_dtype: torch.dtype | None = None,
    revision: str | None = None,
    cache: AnswerCache | str | os.PathLike[str] | None = None,
    on_unparsable: str | None = None,
    num_retries: int | None = None,
    max_new_tokens: int | None = None,
) -> MarkJudge | VLMJudge:
    """Load the package's safety judge: what `load_reward("vlm-judge-safety", ...)` calls.

    Args:
        reading: "logits" for the log-odds of "Safe" at the first word of the answer, in one pass; "text" for 1 or 0,
            read from an answer with category and rationale.
        model: as for `load_mark_judge`.
        base_url: as for `load_mark_judge`.
        engine: as for `load_mark_judge`.
        batch_size: number of questions at once.
        torch_dtype: as for `load_mark_judge`.
        revision: as for `load_mark_judge`.
        cache: as for `load_vlm_judge`; for "text" only, and so are the following.
        on_unparsable: "raise" or "retry".
        num_retries: how often to ask again.
        max_new_tokens: length that an answer may have.

    Raises:
        TypeError: for options of the other reading, and for "logits" with an engine that gives none.
        ValueError: for another reading.
    """
    if reading not in READINGS:
        raise ValueError(f"reading must be one of {READINGS}, got {reading!r}.")
    common = given(model=model, base_url=base_url, engine=engine, torch_dtype=torch_dtype, revision=revision)
    written = given(cache=cache, on_unparsable=on_unparsable, num_retries=num_retries, max_new_tokens=max_new_tokens)
    if reading == "text":
        return load_vlm_judge(template="safety", batch_size=batch_size, **common, **written)
    if written:
        raise TypeError(f"{', '.join(written)}: only for answers in words, reading='text'.")
    return load_mark_judge(template=SAFETY, batch_size=batch_size, **common)


def _template(name: str, words: str | os.PathLike[str] | None) -> MarkTemplate:
    if name not in AUTHOR_TEMPLATES:
        raise ValueError(f"Unknown template {name!r}. Known: {', '.join(AUTHOR_TEMPLATES)}; or pass a MarkTemplate.")
    if words is None:
        raise ValueError(
            f"The wording of {name!r} is its authors' and not part of this package: fetch {_ORIGINS[name]}, and give "
            "words=<file or folder>."
        )
    return AUTHOR_TEMPLATES[name](words)


_ORIGINS = {
    "evalalign": "configs/test_alignment_prompt.json of github.com/SAIS-FUXI/EvalAlign",
    "llavaguard": "README.md of github.com/ml-research/LlavaGuard",
    "viescore": "viescore/vie_prompts.py of github.com/TIGER-AI-Lab/VIEScore",
}
_CARDS = {  # without the wording, which the entries do not have yet
    "evalalign": ("mean mark, 0 to 2, of EvalAlign's questions about the prompt", (0.0, 2.0), "2406.16562"),
    "llavaguard": ('log-odds of "Safe" by LlavaGuard\'s policy; blind to the prompt', (-10.0, 10.0), "2406.05113"),
    "viescore": ("VIEScore: sqrt of the lowest marks for consistency and quality", (0.0, 10.0), "2312.14867"),
}


def _entry(name: str, model: str) -> RewardEntry:
    summary, score_range, paper = _CARDS[name]
    template = MarkTemplate(
        name=name,
        summary=summary,
        questions=lambda prompt: (),
        combine=lambda marks: 0.0,
        score_range=score_range,
        reads_prompt=name != "llavaguard",
        licence="that of the user's copy",
        source=f"arXiv {paper}; {_ORIGINS[name]}",
    )
    card: RewardCard = mark_card(template, weights=model)
    return RewardEntry(card, partial(load_mark_judge, template=name, model=model))


VLM_JUDGE_EVALALIGN = _entry("evalalign", DEFAULT_MODEL)
VLM_JUDGE_LLAVAGUARD = _entry("llavaguard", LLAVAGUARD)
VLM_JUDGE_VIESCORE = _entry("viescore", DEFAULT_MODEL)
VLM_JUDGE_SAFETY = RewardEntry(mark_card(SAFETY, weights=DEFAULT_MODEL), load_safety_judge)
