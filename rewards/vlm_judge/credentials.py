"""What opens an endpoint, kept apart from everything that is shown, logged, raised or written to disk."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import parse_qsl, quote, unquote, urlsplit

HIDDEN = "***"
_SECRET_NAME = re.compile(r"key|token|auth|secret|passw|cookie|credential|signature|\bsig\b", re.IGNORECASE)
_PATTERNS = (
    (re.compile(r"(?<=//)[^/\s@'\"]+@"), f"{HIDDEN}@"),
    (re.compile(r"([?&][\w.-]*(?:key|token|auth|secret|passw|sig)[\w.-]*=)[^&\s'\"]+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"\b(bearer|basic) +[\w.~+/=-]{4,}", re.IGNORECASE), rf"\1 {HIDDEN}"),
    (re.compile(r"\b(?:sk|pk|rk|hf|gh[opsur]|xox[abps])[-_][\w-]{8,}"), HIDDEN),
)
_SHORTEST_IN_ERRORS, _SHORTEST_IN_ANSWERS = 3, 6


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
            ValueError: it is none of `http://` or `https://` with a host.

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
        """The address for people: without anything in its path that looks like a key."""
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
        """Hide the secrets of this endpoint in what it sends, before anybody reads it: it may echo them.

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
        raise TypeError("The key of an endpoint is neither pickled nor copied: make the engine anew in that process.")


def settings_digest(settings: Mapping[str, Any]) -> str:
    """First 12 hexadecimal digits of the SHA-256 of settings: they are told apart, and none of them can be read.

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
