"""A judge behind an OpenAI-compatible HTTP endpoint (vLLM, SGLang, llama.cpp, OpenAI, ...)."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import ModuleType
from typing import Any

from PIL import Image

from fk_reward.rewards.vlm_judge.answers import FlawedAnswer, JudgeEndpointError
from fk_reward.rewards.vlm_judge.engine import Messages, Sampling

_FLAWS = {"length": "it was cut off at {} tokens", "content_filter": "the endpoint filtered it"}


class OpenAIEngine:
    """Chat completions of an endpoint, through the `openai` package: `pip install 'fk-reward[judge]'`.

    Pictures go as PNG in base64 data URLs. Connection errors, time-outs, and statuses 408, 409, 429 and 5xx are tried
    again by the package, with growing pauses or the one that the endpoint asks for.

    Args:
        model: name of the model at the endpoint.
        base_url: address of the endpoint, such as "http://localhost:8000/v1"; None for the package's own default.
        api_key: None for `OPENAI_API_KEY` where `base_url` is None. An endpoint that is named gets no key but the one
            that is given here.
        timeout: seconds for each try.
        max_retries: further tries of a request.
        concurrency: requests at once.
        parameters: more fields of `chat.completions.create`; None leaves a field out. For instance
            `{"max_tokens": None, "max_completion_tokens": 2048}` for models that know the newer name only, or
            `{"temperature": None}`.

    Raises:
        ImportError: without the `openai` package.
        ValueError: when `concurrency` is less than 1.
        JudgeEndpointError: without an API key for the default endpoint.

    Example:
        >>> engine = OpenAIEngine("Qwen/Qwen3-VL-8B-Instruct", base_url="http://localhost:8000/v1")  # doctest: +SKIP
    """

    def __init__(  # noqa: PLR0913 (options of one engine)
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: float = 120.0,
        max_retries: int = 4,
        concurrency: int = 8,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, got {concurrency}.")
        self._openai = _import_openai()
        self.model = model
        self.concurrency = concurrency
        self.parameters = dict(parameters or {})
        key = api_key or (None if base_url is None else "none")
        try:
            self._client = self._openai.OpenAI(base_url=base_url, api_key=key, timeout=timeout, max_retries=max_retries)
        except self._openai.OpenAIError as error:
            raise JudgeEndpointError(f"The endpoint cannot be used: {error}") from error
        fields = json.dumps(self.parameters, sort_keys=True, default=repr)
        self.name = f"openai {self._client.base_url} {model} {fields}"

    def generate(
        self, images: Sequence[Sequence[Image.Image]], messages: Sequence[Messages], *, sampling: Sampling
    ) -> list[str]:
        """Answer conversations, at most `concurrency` at once; see `JudgeEngine.generate`.

        The first request that fails for good cancels those that have not begun.

        Raises:
            JudgeEndpointError: when the endpoint is down, too slow, refuses the request or answers with nonsense.
        """
        with ThreadPoolExecutor(max_workers=self.concurrency) as pool:
            return list(pool.map(partial(self._answer, sampling=sampling), images, messages))

    def _answer(self, images: Sequence[Image.Image], messages: Messages, sampling: Sampling) -> str:
        request = {"model": self.model, "messages": _with_images(messages, images), **self._fields(sampling)}
        try:
            completion = self._client.chat.completions.create(**request)
        except (self._openai.OpenAIError, json.JSONDecodeError) as error:
            raise JudgeEndpointError(
                f"{self._where} gave no answer: {type(error).__name__}: {error} (tried {self._client.max_retries + 1} "
                f"times at most, {self._client.timeout} s each). Is it running? Are base_url, model and api_key right?"
            ) from error
        return self._text(completion, sampling)

    def _fields(self, sampling: Sampling) -> dict[str, Any]:
        fields: dict[str, Any] = {"max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature}
        if sampling.temperature > 0:
            fields["seed"] = sampling.seed
        return {name: value for name, value in {**fields, **self.parameters}.items() if value is not None}

    def _text(self, completion: Any, sampling: Sampling) -> str:
        try:
            choice = completion.choices[0]
            content, refusal = choice.message.content, getattr(choice.message, "refusal", None)
        except (AttributeError, IndexError, TypeError) as error:
            raise JudgeEndpointError(
                f"{self._where} answered with something that is not a chat completion: {str(completion)[:500]!r}."
            ) from error
        if refusal:
            return FlawedAnswer(refusal, flaw="the model refused")
        if choice.finish_reason in _FLAWS:
            return FlawedAnswer(content or "", flaw=_FLAWS[choice.finish_reason].format(sampling.max_new_tokens))
        return content if content else FlawedAnswer("", flaw="it is empty")

    @property
    def _where(self) -> str:
        return f"The endpoint {self._client.base_url} (model {self.model})"


def _with_images(messages: Messages, images: Sequence[Image.Image]) -> Messages:
    """The messages with each `{"type": "image"}` replaced by the next picture."""
    urls = iter([_data_url(image) for image in images])
    return [{**message, "content": list(_parts(message["content"], urls))} for message in messages]


def _parts(content: Sequence[dict[str, Any]], urls: Iterator[str]) -> Iterator[dict[str, Any]]:
    for part in content:
        yield {"type": "image_url", "image_url": {"url": next(urls)}} if part["type"] == "image" else part


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _import_openai() -> ModuleType:
    try:
        import openai
    except ImportError as error:
        raise ImportError(
            "A judge behind an endpoint needs the openai package: pip install 'fk-reward[judge]'."
        ) from error
    return openai
