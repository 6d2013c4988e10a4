"""API keys of a server, and the one reading of a request's headers."""

import hashlib
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ghosttrace.serving.error_responses import RefusedRequestError


def read_header(scope: Mapping[str, Any], name: bytes) -> bytes | None:
    """Return the value of a header of an ASGI request; None if the request does not have it.

    Raises:
        RefusedRequestError: if the request has the header several times, because two readers could use different ones.
    """
    values = [value for header, value in scope["headers"] if header.lower() == name]
    if len(values) > 1:
        raise RefusedRequestError(400, f"the request has {len(values)} {name.decode()} headers: send one")
    return values[0] if values else None


@dataclass(frozen=True)
class ApiKeys:
    """Keys of which a client must send one; only their hashes are stored.

    Attributes:
        digests: SHA-256 of each key in hexadecimal; empty if clients need no key.
    """

    digests: tuple[str, ...] = ()

    @classmethod
    def from_keys(cls, keys: Iterable[str]) -> "ApiKeys":
        """Return the hashes of all keys that are not empty."""
        return cls(tuple(hashlib.sha256(key.encode()).hexdigest() for key in keys if key))

    def check(self, scope: Mapping[str, Any]) -> None:
        """Raise an error unless the request has one of the keys as its bearer token.

        Raises:
            RefusedRequestError: with status 401, if it has none of them.
        """
        if not self.digests:
            return
        scheme, _, key = (read_header(scope, b"authorization") or b"").partition(b" ")
        received = hashlib.sha256(key).hexdigest()
        matches = [secrets.compare_digest(received, digest) for digest in self.digests]
        if scheme.lower() != b"bearer" or not any(matches):
            raise RefusedRequestError(401, "the request has no valid key: send the header Authorization: Bearer KEY")
