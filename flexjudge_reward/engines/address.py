"""Where a server is and how it is reached: address, login, key, headers, proxy and certificates of the environment.

Keys, passwords, header values and whatever else is secret in them appear in no message: `clean` removes them.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from flexjudge_reward.errors import ConfigError

if TYPE_CHECKING:
    import yarl

_SHOWN = 300  # characters of a server's message that a failure quotes


class Address:
    """One server."""

    def __init__(self, base_url: str, key: str = "", headers: Mapping[str, str] | None = None) -> None:
        """
        Args:
            base_url: up to and with the version; the path is /v1 where none is given. May hold a login and a query.
            key: sent as a bearer token.
            headers: of every request; a value such as "$NAME" is that of an environment variable.

        Raises ConfigError for an address that is not http(s), and a variable that is not set.
        """
        try:
            parts = urlsplit(base_url)
            right = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:  # such as port 99999
            right = False
        if not right:
            raise ConfigError("base_url must be an address such as http://localhost:8000/v1, and it is not http(s)")
        login = (unquote(parts.username or ""), unquote(parts.password or "")) if "@" in parts.netloc else None
        path = parts.path.rstrip("/") or "/v1"
        self._parts = parts._replace(netloc=parts.netloc.rpartition("@")[2], path=path, fragment="")
        self.shown = self._parts._replace(query="").geturl()
        """The address without login or query, for messages."""
        own = {name: _value(name, value) for name, value in (headers or {}).items()}
        basic = base64.b64encode(":".join(login).encode()).decode() if login else None
        authorization = f"Bearer {key}" if key else f"Basic {basic}" if basic else None
        self.headers = {"Content-Type": "application/json"}
        self.headers |= ({"Authorization": authorization} if authorization else {}) | own
        self.proxy = _proxy(self._parts.scheme, self._parts.hostname or "")
        values = [value for _, value in parse_qsl(parts.query) if len(value) > 7]  # shorter: a version, a switch
        proxy = urlsplit(self.proxy or "")
        secrets = (key, basic, *(login or ()), parts.query, *values, *own.values(), proxy.username, proxy.password)
        self._secrets = sorted({secret for secret in secrets if secret}, key=len, reverse=True)

    @property
    def port(self) -> int:
        """The port, 80 where none is given."""
        return self._parts.port or 80

    def url(self, path: str) -> yarl.URL:
        """The address of one of the server's functions."""
        import yarl

        return yarl.URL(self._parts._replace(path=f"{self._parts.path}/{path}").geturl(), encoded=True)

    def tls(self) -> dict[str, Any]:
        """Options of a connector: the certificates that the environment names, beside those of the system."""
        bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
        if self._parts.scheme != "https" or not bundle:
            return {}
        import ssl

        context = ssl.create_default_context()  # reads SSL_CERT_FILE and SSL_CERT_DIR
        try:
            context.load_verify_locations(**({"capath": bundle} if os.path.isdir(bundle) else {"cafile": bundle}))
        except OSError as error:
            raise ConfigError(f"REQUESTS_CA_BUNDLE names {bundle!r}, which cannot be read: {error}") from None
        return {"ssl": context}

    def clean(self, message: object) -> str:
        """A message, short, printable and without secrets."""
        text = str(message) or type(message).__name__
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return printable(text)


def printable(message: object) -> str:
    """A message, short and printable."""
    return "".join(char if char.isprintable() else " " for char in str(message)[:_SHOWN])


def _value(name: str, value: str) -> str:
    if not value.startswith("$"):
        return value
    if not (found := os.environ.get(value[1:])):
        raise ConfigError(f"headers: {name} names the environment variable {value[1:]!r}, which is not set")
    return found


def _proxy(scheme: str, host: str) -> str | None:
    """The proxy that the environment names for an address, as other clients read it."""
    from urllib.request import getproxies, proxy_bypass

    proxies = getproxies()
    return None if proxy_bypass(host) else proxies.get(scheme) or proxies.get("all")
