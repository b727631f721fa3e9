"""Names of the server: requests that name another host, or come from another site's page, are refused."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from seqrec.errors import InputError
from seqrec.serving.answers import RefusedError

ANY = "*"
CLOSE = {"Connection": "close"}


class Hosts:
    """Decides whether a request is meant for this server: it may name `localhost`, IP addresses and `names`; `*` allows
    all.

    A web page whose name is made to point to the server's address (DNS rebinding) could otherwise use it from the
    browser of someone who can reach it. Such a request has the page's name as its `Host`. IP addresses are always
    allowed, since they are not names that could be made to point elsewhere.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        self._names = frozenset(name.lower() for name in names) | {"localhost"}

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Raise a `RefusedError` if a request's `Host` or `Origin` is not allowed.

        A request without `Host` is from no browser, and allowed.
        """
        if ANY in self._names:
            return
        authority = headers.get(b"host", b"").decode("latin-1").lower()
        host = name_of(authority)
        if host and host not in self._names and _address(host) is None:
            raise RefusedError(421, f"host {host!r} is not served here; the server's --allowed_hosts lists it", CLOSE)
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        if origin and not self._allows_origin(origin, authority):
            raise RefusedError(403, f"web pages of {origin!r} may not use this server", CLOSE)

    def _allows_origin(self, origin: str, authority: str) -> bool:
        own = origin.partition("://")[2]
        host = name_of(own)
        return bool(own) and (own == authority or host in self._names or is_loopback(host))


def host_names(text: str) -> list[str]:
    """Return the names of a list that is separated by commas.

    Raises:
        InputError: if an entry is not a name.
    """
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    for name in names:
        if name != ANY and name_of(name) != name:
            raise InputError(
                f"allowed_hosts={name} must be a name, such as recs.example.org, without http:// or a port"
            )
    return names


def name_of(authority: str) -> str:
    """Return the host of `host:port`, without the port and the brackets of IPv6."""
    try:
        return (urlsplit(f"//{authority}").hostname or "").rstrip(".")
    except ValueError:
        return authority


def is_loopback(host: str) -> bool:
    """Return whether a name or an address is of this machine alone."""
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def is_address(host: str) -> bool:
    """Return whether a text is an IP address."""
    return _address(host) is not None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
