"""A connection whose calls end: by a deadline for the whole call, and by a limit on the size of what comes back.

The time-outs of HTTP clients bound one read each: a server that sends a byte now and then is never too slow for them.
"""

from __future__ import annotations

import contextlib
import importlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from fk_reward.rewards.vlm_judge.credentials import Credentials

MAX_ANSWER_BYTES = 8 * 2**20
"""Bytes of a reply, headers excepted, above which it is not read on: far beyond any judgement in words."""


class CallEndedError(Exception):
    """A call was ended from this side; the message says why."""


class BoundedCall:
    """One call with its deadline; when that has passed, the connection is shut, wherever its thread is waiting.

    Args:
        seconds: for everything: connecting, sending, reading, pauses and further tries.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._shut)
        self._timer.daemon = True
        self.problem: str | None = None

    @property
    def seconds_left(self) -> float:
        """Until the deadline; negative after it."""
        return self._end - time.monotonic()

    @property
    def is_over(self) -> bool:
        """Whether the deadline has passed."""
        return self.seconds_left <= 0

    def watch(self, name: str, info: dict[str, Any]) -> None:
        """Hear from httpcore what it does, and keep the sockets of new connections."""
        stream = info.get("return_value") if name.endswith((".connect_tcp.complete", ".start_tls.complete")) else None
        found = None if stream is None else stream.get_extra_info("socket")
        if found is not None:
            self._sockets.append(found)
            if self.is_over:
                self._shut()

    def check(self) -> None:
        """Raise after the deadline."""
        if self.is_over:
            raise CallEndedError("the time is over")

    def start(self) -> None:
        """Begin to watch the deadline."""
        self._timer.start()

    def close(self) -> None:
        """End watching the deadline."""
        self._timer.cancel()

    def _shut(self) -> None:
        for found in self._sockets:
            with contextlib.suppress(OSError):  # it was closed meanwhile
                found.shutdown(socket.SHUT_RDWR)


class BoundedTransport:
    """Stands between an HTTP client and the network: adds the credentials, keeps to deadline and size.

    The client itself never sees a key, so that nothing it raises, logs or shows can hold one. Other hosts than the
    endpoint's get none either.

    Args:
        inner: transport of the client's package.
        url: of the endpoint.
        credentials: of the endpoint.
    """

    def __init__(self, inner: Any, url: str, credentials: Credentials) -> None:
        self._inner = inner
        self._origin = _origin(url)
        self._credentials = credentials
        self._calls = threading.local()

    @contextmanager
    def call(self, seconds: float) -> Iterator[BoundedCall]:
        """Bound what this thread sends from here on."""
        call = self._calls.current = BoundedCall(seconds)
        call.start()
        try:
            yield call
        finally:
            call.close()
            del self._calls.current

    def handle_request(self, request: Any) -> Any:
        """Send one request; called by the client."""
        call: BoundedCall = self._calls.current
        call.check()
        limits = dict.fromkeys(("connect", "read", "write", "pool"), max(call.seconds_left, 0.001))
        request.extensions = {**request.extensions, "timeout": limits, "trace": call.watch}
        try:
            with contextlib.closing(self._inner.handle_request(self._opened(request))) as response:
                refused = response.status_code >= 300
                body = self._credentials.redact_reply(_body(response, call), refused=refused)
                return type(response)(response.status_code, headers=_own_headers(response, len(body)), content=body)
        except CallEndedError as error:
            call.problem = str(error)
            raise

    def close(self) -> None:
        """Close all connections."""
        self._inner.close()

    def __enter__(self) -> BoundedTransport:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _opened(self, request: Any) -> Any:
        """The request with the credentials, a new one: the client's own ends up in its errors."""
        headers = {**dict(request.headers), "accept-encoding": "identity"}  # so that bytes read are bytes held
        url = request.url
        if _origin(str(url)) == self._origin:
            given = self._credentials.headers
            headers = {name: value for name, value in headers.items() if name not in {key.lower() for key in given}}
            headers |= given
            for name, value in self._credentials.query:
                url = url.copy_add_param(name, value)
        return type(request)(
            request.method, url, headers=headers, content=request.read(), extensions=request.extensions
        )


def make_client(openai: ModuleType, transport: BoundedTransport) -> Any:
    """An HTTP client of the package that `openai` uses, over a bounded transport; it follows no redirections."""
    return openai.DefaultHttpxClient(transport=transport, follow_redirects=False)


def make_transport(openai: ModuleType, url: str, credentials: Credentials) -> BoundedTransport:
    """The bounded transport to an endpoint, through the proxy that the environment names for it.

    Args:
        openai: the package, whose HTTP package is used: httpx, or its successor httpx2.
        url: of the endpoint.
        credentials: of the endpoint.
    """
    roots = [cls.__module__.partition(".")[0] for cls in openai.DefaultHttpxClient.__mro__]
    httpx = importlib.import_module(next(name for name in roots if name.startswith("httpx")))
    # A connection for each call: of one that was opened earlier the deadline would not know the socket.
    limits = httpx.Limits(max_keepalive_connections=0)
    return BoundedTransport(httpx.HTTPTransport(proxy=_proxy(url), limits=limits), url, credentials)


def _body(response: Any, call: BoundedCall) -> bytes:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise CallEndedError("the reply is compressed, though that was not asked for")
    parts, size = [], 0
    for part in response.stream:
        call.check()
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise CallEndedError(f"the reply is longer than {MAX_ANSWER_BYTES:,} bytes")
    return b"".join(parts)


def _own_headers(response: Any, length: int) -> list[tuple[str, str]]:
    """Headers of a reply that has been read whole."""
    of_transfer = ("content-length", "transfer-encoding")
    kept = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in of_transfer]
    return [*kept, ("content-length", str(length))]


def _origin(url: str) -> tuple[str, str | None, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def _proxy(url: str) -> str | None:
    parts = urlsplit(url)
    if proxy_bypass(parts.hostname or ""):
        return None
    proxies = getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")
