"""API keys: who may call what."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from pathlib import Path

from jaxsgl.config import ConfigError, ServerConfig
from jaxsgl.interface import EngineError
from server.route import Access

MAX_KEY_LEN = 512


class Unauthorized(EngineError):
    status = 401
    kind = "authentication_error"


class Forbidden(EngineError):
    status = 403
    kind = "permission_error"


class Keys:
    """The keys of a server, as digests that nobody can make who does not run in this process.

    A route for everybody asks for nothing; one for users asks for an API key, if there are any; one
    for admins asks for an admin key if there are any, else for an API key like the others. An admin
    key opens everything.
    """

    def __init__(self, api_keys: tuple[str, ...] = (), admin_keys: tuple[str, ...] = ()) -> None:
        """Raises ConfigError for a key that no client could send."""
        self._secret = secrets.token_bytes(32)
        self._api_keys = [self._digest(_checked(key)) for key in api_keys]
        self._admin_keys = [self._digest(_checked(key)) for key in admin_keys]
        admins = {_name(key): f"admin-{n}" for n, key in enumerate(self._admin_keys, 1)}
        users = {_name(key): str(n) for n, key in enumerate(self._api_keys, 1)}
        self._labels = admins | users

    @classmethod
    def of(cls, config: ServerConfig) -> Keys:
        """Raises ConfigError, also for a file of keys that cannot be read or holds none."""
        api_keys = config.api_key
        if config.api_key_file is not None:
            api_keys += _read_keys(config.api_key_file)
        return cls(api_keys, config.admin_api_key)

    def tenant(self, access: Access, headers: Mapping[str, str]) -> str:
        """The name under which the holder of the key in `headers` has a cache and requests of his
        own: "" where users need no key. Raises Unauthorized, or Forbidden for the key of a mere
        user."""
        digest = self._digest(_key_in(headers))
        # Every key is looked at, each in constant time: how long it takes tells nothing of them.
        is_admin = sum(hmac.compare_digest(digest, key) for key in self._admin_keys) > 0
        is_user = sum(hmac.compare_digest(digest, key) for key in self._api_keys) > 0
        needs_admin = access == "admin" and self._admin_keys
        is_allowed = is_admin if needs_admin else is_user or is_admin
        if access == "open" or is_allowed or not (needs_admin or self._api_keys):
            return _name(digest) if self._api_keys and (is_user or is_admin) else ""
        if is_user:
            raise Forbidden("This route needs the admin key", code="admin_key_required")
        raise Unauthorized(
            "Send a valid API key as Authorization: Bearer KEY", code="invalid_api_key"
        )

    def reach(self, headers: Mapping[str, str]) -> list[str]:
        """The tenants whose requests the holder of the key in `headers`, whom `tenant` let in, may
        end: an admin everybody's, others their own."""
        digest = self._digest(_key_in(headers))
        if not self._api_keys:
            return [""]
        if sum(hmac.compare_digest(digest, key) for key in self._admin_keys) > 0:
            return [_name(key) for key in (*self._api_keys, *self._admin_keys)]
        return [_name(digest)]

    def label(self, tenant: str) -> str:
        """What metrics call a tenant: the number of his key in the order in which they were given,
        those of admins apart; "" for the tenant "". It tells nothing of the key."""
        return self._labels.get(tenant, "")

    def _digest(self, key: str) -> bytes:
        """Of equal length for all keys. Header bytes that are no UTF-8 arrive as surrogates."""
        return hmac.digest(self._secret, key.encode("utf-8", "surrogateescape"), "sha256")


def _name(digest: bytes) -> str:
    return digest.hex()[:16]


def _key_in(headers: Mapping[str, str]) -> str:
    """The key that a client sent, as OpenAI's or as Anthropic's clients do; "" if none."""
    scheme, _, key = headers.get("Authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("X-Api-Key", "")


def _checked(key: str) -> str:
    if not key.isascii() or not key.isprintable() or " " in key or not 0 < len(key) <= MAX_KEY_LEN:
        raise ConfigError(
            f"an API key is 1 to {MAX_KEY_LEN} printable ASCII characters without spaces"
        )
    return key


def _read_keys(path: str) -> tuple[str, ...]:
    """One key a line; blank lines and those that begin with # are none."""
    try:
        lines = [line.strip() for line in Path(path).read_text().splitlines()]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--api-key-file {path}: {error}") from None
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise ConfigError(f"--api-key-file {path} holds no key")
    return keys
