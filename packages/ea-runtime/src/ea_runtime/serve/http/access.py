"""Who may talk to the server: its names (Host), pages that may write (Origin), and the token.

DNS rebinding makes a browser send a stranger's name to this machine, so a request must name the server as it is
known. A page elsewhere that makes a browser send something is known by Origin and Sec-Fetch-Site.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from ea_runtime.errors import UserError
from ea_runtime.serve.http.errors import ApiError

COOKIE = "ea_token"
#: shorter ones can be guessed
MIN_TOKEN = 16
_TOKEN = re.compile(rf"[A-Za-z0-9._~-]{{{MIN_TOKEN},256}}")
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_READS = ("GET", "HEAD")
#: without a token: what a load balancer asks
_OPEN = ("/healthz",)


@dataclass(frozen=True, slots=True)
class Access:
    """The rules.

    token: asked of every request but /healthz; None: of none. hosts: names in the Host header, lower case, besides
    loopback's and the address that a connection came in at.
    """

    token: str | None = None
    hosts: frozenset[str] = field(default_factory=frozenset)

    def check(
        self, method: str, path: str, headers: Headers, query_token: str | None, local: str | None
    ) -> None:
        """Raises ApiError for a request that may not be answered. local: the address that it came in at."""
        if len(headers.getlist("content-length")) + len(headers.getlist("transfer-encoding")) > 1:
            # programs in front of this one may disagree about where such a request ends
            raise ApiError(
                400, "a request has one Content-Length, or Transfer-Encoding: chunked", code="bad_framing"
            )
        name = self.check_host(headers, local)
        self.check_page(method, path, headers, name)
        if self.token is not None and path not in _OPEN:
            self.check_token(headers, query_token if path == "/" else None)

    def check_host(self, headers: Headers, local: str | None) -> str:
        """The Host header, which must be a name of this server. Raises ApiError."""
        found = headers.getlist("host")
        match = _HOST.fullmatch(found[0]) if len(found) == 1 else None
        if match is None:
            raise ApiError(400, "a request must name one host in its Host header", code="bad_host")
        name = match["name"].lower().removesuffix(".")
        if name in _LOOPBACK or name in self.hosts or (local is not None and name == host_name(local)):
            return found[0]
        raise ApiError(
            403,
            f"this server is not called {name[:80]!r}; start it with --allowed-host NAME if it should be",
            code="host_not_allowed",
        )

    def check_page(self, method: str, path: str, headers: Headers, host: str) -> None:
        """Raises ApiError for what a page from elsewhere makes a browser send."""
        origins = headers.getlist("origin")
        if origins and not (len(origins) == 1 and _is_same(origins[0], host)):
            raise ApiError(403, "pages from elsewhere may not use this server", code="origin_not_allowed")
        site = headers.get("sec-fetch-site", "none")
        is_visit = method in _READS and path == "/" and headers.get("sec-fetch-mode") == "navigate"
        if site not in ("none", "same-origin") and not is_visit:
            raise ApiError(403, "pages from elsewhere may not use this server", code="origin_not_allowed")

    def check_token(self, headers: Headers, query_token: str | None) -> None:
        """Raises ApiError unless the request carries the token: as bearer, cookie, or in the page's first address."""
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = [bearer.strip()] if scheme.lower() == "bearer" else []
        given += [one for one in (_cookie(headers), query_token) if one is not None]
        if not any(self._matches(one) for one in given):
            raise ApiError(
                401,
                "this server asks for a token: open the link that it printed, or send Authorization: Bearer TOKEN",
                code="invalid_token" if given else "missing_token",
                headers={"WWW-Authenticate": 'Bearer realm="ea"'},
            )

    def _matches(self, given: str) -> bool:
        assert self.token is not None
        return hmac.compare_digest(given.encode(), self.token.encode())


def check_token_text(token: str) -> str:
    """A token as it is given on the command line. Raises UserError."""
    if not _TOKEN.fullmatch(token):
        raise UserError(
            f"`token` must be at least {MIN_TOKEN} letters, digits, or . _ ~ -, got {len(token)} characters; "
            "leave it out and one is made"
        )
    return token


def allowed_hosts(bound: str, more: Iterable[str]) -> frozenset[str]:
    """Names of the server in Host headers: the address it is bound to and those of --allowed-host. Raises UserError."""
    names = [] if is_wildcard(bound) else [host_name(bound)]
    for name in more:
        match = _HOST.fullmatch(host_name(name))
        if match is None:
            raise UserError(f"`allowed-host` must be a name or address such as gpu.lan, got {name[:80]!r}")
        names.append(match["name"].lower().removesuffix("."))
    return frozenset(names)


def host_name(address: str) -> str:
    """An address as Host headers have it: IPv6 in brackets, lower case."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address.lower()
    mapped = getattr(parsed, "ipv4_mapped", None)
    return str(mapped or parsed) if mapped or parsed.version == 4 else f"[{parsed}]"


def is_wildcard(address: str) -> bool:
    """True for an address that stands for all of the machine's: 0.0.0.0 and ::."""
    try:
        return ipaddress.ip_address(address).is_unspecified
    except ValueError:
        return False


def is_loopback(address: str) -> bool:
    """True for an address that only this machine reaches."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address.lower() == "localhost"


def _is_same(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    is_bare = not (parts.path or parts.query or parts.fragment)
    return is_bare and parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()


def _cookie(headers: Headers) -> str | None:
    jar = SimpleCookie()
    try:
        jar.load(headers.get("cookie", ""))
    except CookieError:
        return None
    return jar[COOKIE].value if COOKIE in jar else None
