"""The connection to an endpoint: its credentials stay here, and every call ends, by a deadline and a size limit."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NoReturn
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

HIDDEN = "***"
_SECRET_NAME = re.compile(r"key|token|auth|secret|passw|cookie|credential|signature|\bsig\b", re.IGNORECASE)
_PATTERNS = (
    (re.compile(r"(?<=//)[^/\s@'\"]+@"), f"{HIDDEN}@"),
    (re.compile(r"([?&][\w.-]*(?:key|token|auth|secret|passw|sig)[\w.-]*=)[^&\s'\"]+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"\b(bearer|basic) +[\w.~+/=-]{4,}", re.IGNORECASE), rf"\1 {HIDDEN}"),
    (re.compile(r"\b(?:sk|pk|rk|hf|gh[opsur]|xox[abps])[-_][\w-]{8,}"), HIDDEN),
)
_SHORTEST_IN_ERRORS, _SHORTEST_IN_ANSWERS = 3, 6  # letters of a secret that is looked for

MAX_ANSWER_BYTES = 8 * 2**20
"""Bytes of a reply, headers excepted, above which it is not read on: far beyond any judgement in words."""


def redact_text(text: str) -> str:
    """Hide what looks like a key: in addresses, their queries, `Authorization` values, and tokens of known forms.

    Example:
        >>> redact_text("GET https://me:secret@host/v1?api_key=abc&n=2 with hf_abcdefghijkl")
        'GET https://***@host/v1?api_key=***&n=2 with ***'
    """
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


@dataclass(frozen=True)
class Address:
    """An address without what opens it.

    Attributes:
        url: scheme, host, port and path.
        user: user and password in front of the host, or an empty text; not shown.
        query: names and values of the query; not shown.
    """

    url: str
    user: str
    query: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, text: str) -> Address:
        """Take an address apart.

        Raises:
            ValueError: for an address that is not `http://` or `https://` with a host.

        Example:
            >>> Address.parse("https://me:secret@host:8000/v1?api_key=abc")
            Address(url='https://host:8000/v1')
        """
        parts = urlsplit(text.strip())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url should be http://host/path or https://..., got {redact_text(text)!r}.")
        user, _, host = parts.netloc.rpartition("@")
        query = tuple(parse_qsl(parts.query, keep_blank_values=True))
        return cls(f"{parts.scheme}://{host}{parts.path.rstrip('/')}", user, query)

    @property
    def shown(self) -> str:
        """The address for messages: without anything in its path that looks like a key."""
        return redact_text(self.url)

    def __repr__(self) -> str:
        return f"Address(url={self.shown!r})"


class Credentials:
    """Headers and query fields that open an endpoint; known to the connection alone, which adds them to each request.

    Args:
        address: perhaps with user, password and query fields.
        api_key: of the `Authorization` header; None for none.
        headers: more headers.
        query: more query fields.
    """

    def __init__(
        self, address: Address, *, api_key: str | None, headers: Mapping[str, str], query: Mapping[str, Any]
    ) -> None:
        self._headers = dict(headers)
        self._query = (*address.query, *((name, str(value)) for name, value in query.items()))
        user = unquote(address.user)
        if user:
            self._headers.setdefault("Authorization", f"Basic {base64.b64encode(user.encode()).decode()}")
        elif api_key is not None:
            self._headers.setdefault("Authorization", f"Bearer {api_key}")
        for name, value in self._headers.items():
            _check_header(name, value)
        self._secrets = tuple(sorted(_spellings(self._values(user, api_key)), key=len, reverse=True))

    @property
    def headers(self) -> dict[str, str]:
        """For the connection."""
        return dict(self._headers)

    @property
    def query(self) -> tuple[tuple[str, str], ...]:
        """For the connection."""
        return self._query

    def redact(self, text: str) -> str:
        """Hide every secret of this endpoint in a text, such as an error, and what looks like one."""
        for secret in self._secrets:
            if len(secret) >= _SHORTEST_IN_ERRORS:
                text = text.replace(secret, HIDDEN)
        return redact_text(text)

    def redact_reply(self, body: bytes, *, refused: bool) -> bytes:
        """Hide the secrets of this endpoint in its reply, which may echo them.

        Args:
            body: of a reply.
            refused: whether it is an error. An answer may hold any word, so short secrets are left alone there.
        """
        for secret in self._secrets:
            if len(secret) >= (_SHORTEST_IN_ERRORS if refused else _SHORTEST_IN_ANSWERS):
                body = body.replace(secret.encode(), HIDDEN.encode())
        return body

    def settings(self) -> dict[str, Any]:
        """Headers and query fields on which an answer may depend: those whose name is not that of a secret."""
        fields = {**self._headers, **{f"?{name}": value for name, value in self._query}}
        return {name: value for name, value in fields.items() if not _SECRET_NAME.search(name)}

    def _values(self, user: str, api_key: str | None) -> Iterable[str]:
        for name, value in (*self._query, *self._headers.items()):
            if _SECRET_NAME.search(name) or len(value) > _SHORTEST_IN_ANSWERS:
                yield from (value, value.partition(" ")[2])
        yield from (user, user.partition(":")[2], api_key or "")

    def __repr__(self) -> str:
        return f"Credentials({HIDDEN})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("The key of an endpoint cannot be pickled or copied: create the engine again in that process.")


def settings_digest(settings: Mapping[str, Any]) -> str:
    """First 12 hexadecimal digits of the SHA-256 of settings: differs where they differ, and reveals none.

    Example:
        >>> settings_digest({"top_p": 0.5}) == settings_digest({"top_p": 0.6})
        False
    """
    text = json.dumps(settings, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _check_header(name: str, value: object) -> None:
    """Refuse what HTTP cannot carry here: its errors quote the value."""
    if not (isinstance(value, str) and value.isascii() and value.isprintable()):
        what = "api_key" if name == "Authorization" else f"The header {name}"
        raise ValueError(f"{what} should be a text of printable ASCII characters; a line break at its end, perhaps?")


def _spellings(secrets: Iterable[str]) -> set[str]:
    """Secrets as they may be echoed: as they are, in an address, in base64."""
    found = {secret for secret in secrets if secret}
    return found | {quote(secret, safe="") for secret in found} | {_base64(secret) for secret in found}


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode().rstrip("=")


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
        self._timer.daemon = True  # must not keep a process alive that ends before the deadline
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
            if self.is_over:  # the timer fired while this connection was being made
                self._shut()

    def check(self) -> None:
        """Raise after the deadline."""
        if self.is_over:
            raise CallEndedError("the deadline has passed")

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
    """Transport between an HTTP client and the network: adds the credentials, enforces deadline and size limit.

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
        raise CallEndedError("the reply is compressed, although no compression was requested")
    parts, size = [], 0
    for part in response.stream:
        call.check()
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise CallEndedError(f"the reply is longer than {MAX_ANSWER_BYTES:,} bytes")
    return b"".join(parts)


def _own_headers(response: Any, length: int) -> list[tuple[str, str]]:
    """Headers of a reply whose body has been read completely."""
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
