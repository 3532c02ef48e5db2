"""ImageGuard behind an endpoint: safe or unsafe in nine categories, in its authors' words and read as they read it."""

from __future__ import annotations

import ast
import dataclasses
import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from fk_reward.rewards.registry import RewardEntry
from fk_reward.rewards.vlm_judge.answer_cache import AnswerCache
from fk_reward.rewards.vlm_judge.author_templates import file_in, python_strings
from fk_reward.rewards.vlm_judge.engine import JudgeEngine
from fk_reward.rewards.vlm_judge.enough import Enough, close_match
from fk_reward.rewards.vlm_judge.openai_engine import OpenAIEngine
from fk_reward.rewards.vlm_judge.templates import JudgeTemplate
from fk_reward.rewards.vlm_judge.vlm_judge import VLMJudge, judge_card

_WEIGHTS = "OpenSafetyLab/ImageGuard"
_PLACE = "utils/conv_utils.py"
_TEXTS = ("SAFE_INSTRUCTION", "START_SAFE_SYS", "END_SAFE_SYS", "START_INST", "END_INST")
_CATEGORIES = "safe_cat_mapping"
_FIRST_LINE = re.compile(r"\S[^\n]*(?=\n)")


def imageguard_template(path: str | os.PathLike[str]) -> JudgeTemplate:
    """ImageGuard's question about toxicity and privacy, as its `safe_query` puts it together.

    Args:
        path: `utils/conv_utils.py` of the hub repository `OpenSafetyLab/ImageGuard` (Apache-2.0), or a folder with the
            repository; it is parsed, never run.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it lacks one of the texts, or the categories.
    """
    file = file_in(path, _PLACE)
    texts = python_strings(file, _TEXTS)
    definitions = _categories(file)
    listed = "".join(f"O{place}: {name} - {text}\n" for place, (name, text) in enumerate(definitions.items(), start=1))
    instruction = f"{texts['SAFE_INSTRUCTION']}{texts['START_SAFE_SYS']}{listed}{texts['END_SAFE_SYS']}"
    return _template(f"{texts['START_INST']} {instruction}{texts['END_INST']}")


def imageguard_score(answer: str) -> float:
    r"""1 for "safe" in the first line, 0 for "unsafe"; the second line has the categories.

    Raises:
        ValueError: for any other first line.

    Example:
        >>> imageguard_score("unsafe\n violence"), imageguard_score("safe")
        (0.0, 1.0)
    """
    first = answer.strip().partition("\n")[0].strip().lower()
    if first not in ("safe", "unsafe"):
        raise ValueError(f'the first line must be "safe" or "unsafe", got {first!r}')
    return 1.0 if first == "safe" else 0.0


def _categories(file: Path) -> Mapping[str, str]:
    """Name -> definition, from a literal at the top level of the file."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == _CATEGORIES for target in node.targets
        ):
            found = ast.literal_eval(node.value)
            if isinstance(found, dict) and found and all(isinstance(text, str) for text in found.values()):
                return found
    raise ValueError(f"{file} lacks {_CATEGORIES}, the definitions of its categories.")


def _template(text: str) -> JudgeTemplate:
    return JudgeTemplate(
        name="imageguard",
        summary="1 if ImageGuard finds the image safe, 0 if not; through an endpoint: transformers lacks its model",
        text=text,
        parse=imageguard_score,
        score_range=(0.0, 1.0),
        max_new_tokens=64,
        source=f"Li et al. 2025, arXiv 2501.12612 (T2ISafety); {_PLACE} of {_WEIGHTS}",
        blind_to=("prompt", "quality"),
        enough=Enough(close=partial(close_match, pattern=_FIRST_LINE)),
    )


_CARD = dataclasses.replace(
    judge_card(_template("read from the user's copy"), weights=_WEIGHTS), name="imageguard", licence="Apache-2.0"
)


def load_imageguard(  # noqa: PLR0913 (options of one reward)
    *,
    words: str | os.PathLike[str] | None = None,
    base_url: str | None = None,
    model: str = _WEIGHTS,
    engine: JudgeEngine | None = None,
    cache: AnswerCache | str | os.PathLike[str] | None = None,
    batch_size: int | None = 8,
) -> VLMJudge:
    """Load ImageGuard: what `load_reward("imageguard", ...)` calls.

    It is an InternLM-XComposer2-VL, which transformers does not have, and code that comes with a checkpoint is never
    run here: serve it by its own code behind an OpenAI-compatible address.

    Args:
        words: as for `imageguard_template`.
        base_url: address of the endpoint.
        model: its name there.
        engine: a custom engine instead.
        cache: folder or `AnswerCache` of answers that could be read.
        batch_size: number of questions at once.

    Raises:
        FileNotFoundError: when there is no file of words.
        ImportError: for an endpoint without the `openai` package.
        ValueError: without `words`, without endpoint or engine, and as `imageguard_template`.
    """
    if words is None:
        raise ValueError(
            f"The question is its authors' and not part of this package: fetch {_PLACE} of {_WEIGHTS}, and give "
            "words=<file or folder>."
        )
    if engine is None and base_url is None:
        raise ValueError(
            "ImageGuard is an InternLM-XComposer2-VL, which transformers does not have: serve it by its own code and "
            "give base_url='http://...', or an engine."
        )
    template = imageguard_template(words)
    chosen = engine if engine is not None else OpenAIEngine(model, base_url=base_url)
    return VLMJudge(chosen, template, cache=cache, batch_size=batch_size, card=_CARD)


IMAGEGUARD = RewardEntry(_CARD, load_imageguard)
