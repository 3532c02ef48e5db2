"""A judge behind an OpenAI-compatible HTTP endpoint (vLLM, SGLang, llama.cpp, OpenAI, ...)."""

from __future__ import annotations

import base64
import io
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count
from types import ModuleType
from typing import Any, NoReturn

from PIL import Image

from fk_reward.rewards.vlm_judge.endpoint import (
    Address,
    BoundedCall,
    CallEndedError,
    Credentials,
    make_client,
    make_transport,
    redact_text,
    settings_digest,
)
from fk_reward.rewards.vlm_judge.engine import (
    FlawedAnswer,
    JudgeEndpointError,
    Messages,
    Sampling,
    StoppedAnswer,
)
from fk_reward.rewards.vlm_judge.enough import Enough

_FLAWS = {"length": "it was cut off at {} tokens", "content_filter": "the endpoint filtered it"}
_AGAIN = (408, 409, 429)
"""Statuses, beside 5xx, after which a further try may help."""
_NO_KEY = "none"  # what an endpoint without a key is sent: the package insists on one
_DEFAULT_URL = "https://api.openai.com/v1"


class OpenAIEngine:
    """Chat completions of an endpoint, through the `openai` package: `pip install 'fk-reward[judge]'`.

    Images go as PNG in base64 data URLs. Connection errors and statuses 408, 409, 429 and 5xx are tried again, with
    growing pauses or the one that the endpoint asks for, while the time lasts.

    Keys are known to the connection alone, which adds them to what it sends to this endpoint and to no other: user,
    password and query of `base_url`, `api_key`, and `extra_headers` and `extra_query` among the parameters. Names,
    errors, logs and cached answers have the address without them; an engine is not pickled.

    Args:
        model: name of the model at the endpoint.
        base_url: address of the endpoint, such as "http://localhost:8000/v1"; None for `OPENAI_BASE_URL`, or OpenAI's.
        api_key: None for `OPENAI_API_KEY` where `base_url` is None. An endpoint that is named gets no key but the one
            that is given here.
        timeout: seconds for an answer in total: connecting, sending, reading, pauses and further tries.
        max_retries: further tries of a request.
        concurrency: requests at once.
        parameters: more fields of `chat.completions.create`; None leaves a field out. For instance
            `{"max_tokens": None, "max_completion_tokens": 2048}` for models that know the newer name only, or
            `{"temperature": None}`.
        stop_early: send the string before which an answer says enough, where its template has one, as `stop`. For
            models that write in the order of the form and do not think before: an endpoint looks for it in thoughts,
            too, and what was ended there cannot be read.

    Attributes:
        name: package, address, model and a digest of all other settings, by which cached answers are found; another
            key does not change it.

    Raises:
        ImportError: without the `openai` package.
        ValueError: when `concurrency` is less than 1, `timeout` is not positive, or `base_url` is not an address.
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
        timeout: float = 300.0,
        max_retries: int = 4,
        concurrency: int = 8,
        parameters: Mapping[str, Any] | None = None,
        stop_early: bool = False,
    ) -> None:
        _check_limits(timeout=timeout, max_retries=max_retries, concurrency=concurrency)
        self._openai = _import_openai()
        self.model, self.concurrency = model, concurrency
        self.timeout, self.max_retries, self.stop_early = timeout, max_retries, stop_early
        fields = dict(parameters or {})
        headers, query = (dict(fields.pop(name, None) or {}) for name in ("extra_headers", "extra_query"))
        address = Address.parse(base_url or os.environ.get("OPENAI_BASE_URL") or _DEFAULT_URL)
        key = api_key or (_default_key(address, headers) if base_url is None else _NO_KEY)
        self._parameters, self._address = fields, address
        self._credentials = Credentials(address, api_key=key, headers=headers, query=query)
        self._transport = make_transport(self._openai, address.url, self._credentials)
        self._client = self._openai.OpenAI(
            base_url=address.url, api_key=_NO_KEY, max_retries=0, http_client=make_client(self._openai, self._transport)
        )
        digest = settings_digest({**fields, **self._credentials.settings()})
        self.name = f"openai {address.shown} {redact_text(model)} {digest}"

    def __repr__(self) -> str:
        return f"OpenAIEngine({self.name!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "An OpenAIEngine cannot be pickled or copied, since it holds a key: create it again in that process."
        )

    def generate(
        self, images: Sequence[Sequence[Image.Image]], messages: Sequence[Messages], *, sampling: Sampling
    ) -> list[str]:
        """Answer conversations, at most `concurrency` at once.

        The first request that fails for good cancels those that have not begun.

        Raises:
            JudgeEndpointError: when the endpoint is down, too slow, refuses the request or answers with nonsense.
        """
        with ThreadPoolExecutor(max_workers=self.concurrency) as pool:
            return list(pool.map(partial(self._answer, sampling=sampling), images, messages))

    def _answer(self, images: Sequence[Image.Image], messages: Messages, sampling: Sampling) -> str:
        request = {"model": self.model, "messages": _with_images(messages, images), **self._fields(sampling)}
        with self._transport.call(self.timeout) as call:
            for attempt in count():
                completion, failure = self._try(request, call)
                if failure is None:
                    return self._text(completion, sampling)
                pause = self._pause(failure, attempt, call)
                if pause is None:
                    message = self._message(failure, call, attempt + 1)
                    break
                time.sleep(pause)
        # Raised here, and not where the package's error was caught: that one holds request and reply, which as its
        # context would go wherever this error goes.
        raise JudgeEndpointError(message)

    def _try(self, request: Mapping[str, Any], call: BoundedCall) -> tuple[Any, _Failure | None]:
        """A completion, or the failure of the request."""
        try:
            return self._client.chat.completions.create(**request), None
        except (self._openai.OpenAIError, json.JSONDecodeError, CallEndedError) as error:
            response = getattr(error, "response", None)
            return None, _Failure(
                kind=type(error).__name__,
                text=self._credentials.redact(call.problem or str(error)),
                status=getattr(response, "status_code", None),
                is_connection=isinstance(error, self._openai.APIConnectionError),
                wait=_requested_pause(getattr(response, "headers", {})),
            )

    def _pause(self, failure: _Failure, attempt: int, call: BoundedCall) -> float | None:
        """Seconds until the next try; None for no further try."""
        status = failure.status
        may_pass = failure.is_connection if status is None else status in _AGAIN or status >= 500
        if attempt == self.max_retries or not may_pass or call.problem is not None:
            return None
        pause = min(8.0, 0.5 * 2**attempt) if failure.wait is None else failure.wait
        return pause if pause < call.seconds_left else None

    def _message(self, failure: _Failure, call: BoundedCall, tries: int) -> str:
        late = call.is_over
        reason = "APITimeoutError: the deadline has passed" if late else f"{failure.kind}: {failure.text}"
        if failure.wait is not None and failure.wait >= call.seconds_left:
            reason += f" (it asks for a pause of {failure.wait:g} s)"
        return self._credentials.redact(
            f"{self._where} gave no answer: {reason} (tried {tries} times at most, {self.timeout:g} s in all). Is it "
            "running? Are base_url, model and api_key right?"
        )

    def _fields(self, sampling: Sampling) -> dict[str, Any]:
        fields: dict[str, Any] = {"max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature}
        if sampling.temperature > 0:
            fields["seed"] = sampling.seed
        if enough := self._early_end(sampling):
            fields["stop"] = list(enough.stop)
        return {name: value for name, value in {**fields, **self._parameters}.items() if value is not None}

    def _text(self, completion: Any, sampling: Sampling) -> str:
        try:
            choice = completion.choices[0]
            content, refusal = choice.message.content, getattr(choice.message, "refusal", None)
        except (AttributeError, IndexError, TypeError) as error:
            said = self._credentials.redact(str(completion)[:500])
            raise JudgeEndpointError(
                f"{self._where} answered with something that is not a chat completion: {said!r}."
            ) from error
        if refusal:
            return FlawedAnswer(refusal, flaw="the model refused")
        if choice.finish_reason in _FLAWS:
            return FlawedAnswer(content or "", flaw=_FLAWS[choice.finish_reason].format(sampling.max_new_tokens))
        if not content:
            return FlawedAnswer("", flaw="it is empty")
        enough = self._early_end(sampling)
        closed = enough.close(content) if enough else None
        return content if closed is None else StoppedAnswer(closed)

    def _early_end(self, sampling: Sampling) -> Enough | None:
        """What ends an answer here; None where answers are whole."""
        return sampling.enough if self.stop_early and sampling.enough and sampling.enough.stop else None

    @property
    def _where(self) -> str:
        return f"The endpoint {self._address.shown} (model {self.model})"


@dataclass(frozen=True, kw_only=True)
class _Failure:
    """What is needed of an error of the package, without the request and the reply that it holds."""

    kind: str
    text: str
    status: int | None
    is_connection: bool
    wait: float | None


def _check_limits(*, timeout: float, max_retries: int, concurrency: int) -> None:
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, got {concurrency}.")
    if max_retries < 0:
        raise ValueError(f"max_retries must not be negative, got {max_retries}.")
    if not 0 < timeout < threading.TIMEOUT_MAX:
        raise ValueError(f"timeout must be a positive number of seconds, got {timeout}.")


def _default_key(address: Address, headers: Mapping[str, str]) -> str:
    key = os.environ.get("OPENAI_API_KEY")
    if key:
        return key
    if address.user or any(name.lower() == "authorization" for name in headers):
        return _NO_KEY
    raise JudgeEndpointError(
        f"The endpoint {address.shown} cannot be used without a key: set OPENAI_API_KEY, or give api_key."
    )


def _requested_pause(headers: Mapping[str, str]) -> float | None:
    """Seconds that an endpoint asks to wait; None where it does not say so in a number."""
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            pause = float(headers.get(name, "")) * scale
        except ValueError:
            continue
        if 0 <= pause < threading.TIMEOUT_MAX:
            return pause
    return None


def _with_images(messages: Messages, images: Sequence[Image.Image]) -> Messages:
    """The messages with each `{"type": "image"}` replaced by the next image."""
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
