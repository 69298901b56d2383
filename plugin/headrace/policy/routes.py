"""Which rules govern a URL: parsed origin and path segments, longest prefix wins. Pure.

Prefixes are never compared as strings: `http://api.example.com` must not claim
`http://api.example.com.evil.org` or `http://api.example.com@evil.org`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv6Address
from typing import Final, Generic, Literal, TypeVar
from urllib.parse import urlsplit

from headrace.policy.paths import BAD_PERCENT, is_one_segment, normalised, segments_of
from headrace.policy.plan import Origin, UrlPrefix

V = TypeVar("V")

DEFAULT_PORT: dict[str, int] = {"http": 80, "https": 443}

# Characters that a URL never has raw when it is sent; urlsplit and urllib3 disagree on what they mean.
_FORBIDDEN = re.compile(r"[\x00-\x20\\\x7f]")
_UP_TO_PATH = re.compile(r"[^/?#]*//[^/?#]*")
# An authority that needs more than lower-casing before it is looked up (port, user, IPv6, final dot, IDNA, …).
_ODD_AUTHORITY = re.compile(r"[^a-z0-9._-]|\.$", re.ASCII)
_ROOTED = re.compile(r"[^0-9.][^.]*\.(?::\d*)?$")  # not an IPv4 address, for which DNS is not asked
_HOST = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?:\.(?!-)[a-z0-9_-]{1,63})*", re.ASCII)
_IPV6 = re.compile(r"([0-9a-f:.]+)(%25[0-9a-z._~-]+)?", re.ASCII)


class UrlError(ValueError):
    """A URL that cannot be an origin with a path; the text begins with "must …" or "has …"."""


def parse_prefix(url: str) -> UrlPrefix:
    """*url* as the prefix of an upstream: strict, because people write it.

    Scheme and host are lower-cased, the host is put into its ASCII form, the
    port is filled in, trailing slashes are dropped, and percent-encoding is
    normalised (unreserved characters decoded, RFC 3986 §6.2.2.2), so `%2e` is a dot.

    Raises:
        UrlError: Not http(s), or with user, query, fragment, dot segments, an
            empty segment, or an invalid host or port. The text does not hold *url*.
    """
    if _FORBIDDEN.search(url):
        raise UrlError("must not hold spaces, control characters or backslashes")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise UrlError("must be a URL such as https://billing.internal:8443/v2") from None
    if parts.scheme not in DEFAULT_PORT or not url[len(parts.scheme) :].startswith("://"):
        raise UrlError("must begin with http:// or https://")
    if "@" in parts.netloc:
        raise UrlError("must not hold a user or password; send them with headers")
    if "?" in url or "#" in url:
        raise UrlError("must not hold a query or fragment")
    if BAD_PERCENT.search(parts.path):
        raise UrlError("has a % that is not followed by two hex digits")
    origin = _origin(parts.scheme, parts.netloc)
    segments = tuple(normalised(segment) for segment in parts.path.split("/")[1:])
    while segments and not segments[-1]:
        segments = segments[:-1]
    if "" in segments:
        raise UrlError("must not hold an empty path segment (//)")
    if "." in segments or ".." in segments:
        raise UrlError("must not hold the path segments . or ..")
    if not all(map(is_one_segment, segments)):
        raise UrlError("has a path segment that some servers take for ..")
    return UrlPrefix(origin, segments, _ROOTED.search(parts.netloc) is not None)


def target_of(url: str) -> UrlPrefix | None:
    """Origin and path segments that a request for *url* is certain to go to, or None when the origin is not certain.

    Lenient, because programs send it: a user, query or fragment is ignored, characters that HTTP libraries encode
    are encoded, dot segments are resolved (as the server will). Servers read some paths differently
    (`..%2f`, `..;`, `\\`). Of such a path the segments are those that all readings begin with. None for anything
    but http(s) and for origins that URL parsers disagree about; such a call is not ours.
    """
    found = _read(url)
    if found is None:
        return None
    origin, segments, certain = found
    return UrlPrefix(origin, segments[:certain])


def url_of(prefix: UrlPrefix) -> str:
    """*prefix* as a URL, without the default port and without a trailing slash."""
    return _origin_url(prefix.origin) + "".join(f"/{segment}" for segment in prefix.segments)


def moved(url: str, prefixes: Iterable[UrlPrefix], *, to: UrlPrefix) -> str | None:
    """*url* with the longest of *prefixes* that matches it replaced by *to*, its query kept.

    None where it is not certain that *url* is below any of *prefixes*.
    """
    found = _read(url)
    if found is None:
        return None
    origin, segments, certain = found
    depths = [
        len(prefix.segments)
        for prefix in prefixes
        if prefix.origin == origin and segments[:certain][: len(prefix.segments)] == prefix.segments
    ]
    if not depths:
        return None
    rest = "".join(f"/{segment}" for segment in segments[max(depths) :])
    query = urlsplit(url).query
    return url_of(to) + rest + (f"?{query}" if query else "")


class RouteTable(Generic[V]):
    """From URL to value. Immutable once built; safe to read from any thread.

    Raises:
        ValueError: Two values claim one prefix.
    """

    __slots__ = ("_by_authority", "_by_origin")

    def __init__(self, routes: Iterable[tuple[UrlPrefix, V]]) -> None:
        self._by_origin: dict[Origin, _Paths[V]] = {}
        # The same, under (scheme, authority) as URLs spell it: most calls need only this look-up.
        self._by_authority: dict[tuple[str, str], _Paths[V]] = {}
        for prefix, value in routes:
            origin = prefix.origin
            paths = self._by_origin.get(origin)
            if paths is None:
                paths = self._by_origin[origin] = _Paths()
                host = f"[{origin.host}]" if ":" in origin.host else origin.host
                self._by_authority[origin.scheme, f"{host}:{origin.port}"] = paths
                if DEFAULT_PORT[origin.scheme] == origin.port:
                    self._by_authority[origin.scheme, host] = paths
            paths.add(prefix, value)

    def match(self, origin: Origin, segments: tuple[str, ...]) -> tuple[UrlPrefix, V] | None:
        """The longest prefix of *origin* and *segments* and its value, or None."""
        paths = self._by_origin.get(origin)
        return None if paths is None else paths.longest(segments)

    def match_url(self, url: str) -> tuple[UrlPrefix, V] | None:
        """The longest prefix that *url* goes to and its value, or None: not ours.

        A host that no route names costs one urlsplit and one dict look-up.
        """
        # urlsplit removes tabs and newlines, so this has to come first.
        if _FORBIDDEN.search(url) and not _is_origin_certain(url):
            return None
        try:
            scheme, authority, path, _, _ = urlsplit(url)
        except ValueError:
            return None
        paths = self._by_authority.get((scheme, authority))
        if paths is None:
            authority = authority.lower()
            if scheme not in DEFAULT_PORT or not _ODD_AUTHORITY.search(authority):
                paths = self._by_authority.get((scheme, authority))
            else:
                target = target_of(url)
                paths = None if target is None else self._by_origin.get(target.origin)
            if paths is None:
                return None
        if paths.longest_first == _ROOT_ALONE:
            return paths.values[()]
        segments, certain = segments_of(path)
        return paths.longest(segments if certain == len(segments) else segments[:certain])

    def names_origin(self, scheme: str, host: str, port: int) -> bool:
        """Whether any prefix has this origin. One dict look-up for nearly every host.

        Args:
            host: Lower-case, an IPv6 address without brackets.
        """
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if (scheme, authority) in self._by_authority:
            return True
        return _ODD_AUTHORITY.search(host) is not None and self.of_origin(scheme, host, port) is not None

    def of_origin(self, scheme: str, host: str, port: int) -> V | None:
        """The value of this origin's shortest prefix, or None; arguments as for `names_origin`."""
        target = target_of(f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}")
        paths = None if target is None else self._by_origin.get(target.origin)
        return None if paths is None else paths.values[min(paths.values, key=len)][1]

    def __len__(self) -> int:
        return sum(len(paths.values) for paths in self._by_origin.values())

    def __bool__(self) -> bool:
        return True  # an empty table is a table (failures.md 24: a falsy __len__)


_ROOT_ALONE: Final = (0,)
"""The lengths of the prefixes of an origin that is one upstream's, whatever the path."""


class _Paths(Generic[V]):
    """The prefixes of one origin."""

    __slots__ = ("longest_first", "values")

    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], tuple[UrlPrefix, V]] = {}
        self.longest_first: tuple[int, ...] = ()

    def add(self, prefix: UrlPrefix, value: V) -> None:
        if prefix.segments in self.values:
            raise ValueError(f"two routes claim {url_of(prefix)}")
        self.values[prefix.segments] = (prefix, value)
        self.longest_first = tuple(sorted({len(segments) for segments in self.values}, reverse=True))

    def longest(self, segments: tuple[str, ...]) -> tuple[UrlPrefix, V] | None:
        for length in self.longest_first:
            if length <= len(segments):
                found = self.values.get(segments[:length])
                if found is not None:
                    return found
        return None


def _read(url: str) -> tuple[Origin, tuple[str, ...], int] | None:
    """Origin of *url*, its path's segments and how many of them are certain; None: the origin is not certain."""
    if _FORBIDDEN.search(url) and not _is_origin_certain(url):
        return None
    try:
        parts = urlsplit(url)
        scheme = parts.scheme
        if scheme not in DEFAULT_PORT or parts.netloc.count("@") > 1:
            return None
        origin = _origin(scheme, parts.netloc.rpartition("@")[2])
    except ValueError:
        return None
    return origin, *segments_of(parts.path)


def _is_origin_certain(url: str) -> bool:
    """Whether the odd characters in *url* come after its authority, and do not move the end of the authority."""
    found = _UP_TO_PATH.match(url)
    return found is not None and not _FORBIDDEN.search(found.group())


def _origin(scheme: str, authority: str) -> Origin:
    if authority.startswith("["):
        host, closing, rest = authority[1:].partition("]")
        host = host.lower()
        host = _ipv6(host) if closing else ""
        if not host:
            raise UrlError("has an IPv6 address that is none")
    else:
        host, colon, port_text = authority.partition(":")
        rest = colon + port_text
        host = _ascii_host(host)
    port = DEFAULT_PORT[scheme]
    if rest not in ("", ":"):
        digits = rest[1:]
        if rest[0] != ":" or not (digits.isascii() and digits.isdigit()) or len(digits) > 5:
            raise UrlError("has a port that is none")
        port = int(digits)
        if not 1 <= port <= 65535:
            raise UrlError("has a port that is not in 1..65535")
    kind: Literal["http", "https"] = "https" if scheme == "https" else "http"
    return Origin(kind, host, port)


def server_host(text: str) -> str:
    """The one spelling of *text*, the host that a server is asked for: lower-case ASCII, an address without brackets.

    Raises:
        UrlError: It is none: TLS would refuse it at each call.
    """
    if ":" not in text:
        return _ascii_host(text)
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    host = "" if "%" in bare else _ipv6(bare.lower())
    if not host:
        raise UrlError("has an IPv6 address that is none")
    return host


def _ascii_host(host: str) -> str:
    if not host:
        raise UrlError("has no host")
    if host.isascii():
        host = host.lower()
    else:
        import idna  # its tables are large, and few hosts need them

        try:
            # As urllib3 and requests do: IDNA 2008, each label lower-cased by itself (a sigma may be a final one).
            host = idna.encode(".".join(map(str.lower, host.split("."))), uts46=True).decode("ascii")
        except idna.IDNAError:
            raise UrlError("has a host that is no IDNA name") from None
    host = host.removesuffix(".")
    if len(host) > 253 or not _HOST.fullmatch(host):
        raise UrlError("has a host that is no host name")
    return host


def _ipv6(text: str) -> str:
    """The one spelling of an address, lower-case (RFC 5952); empty when *text* is no address."""
    found = _IPV6.fullmatch(text)
    if found is None:
        return ""
    try:
        return IPv6Address(found[1]).compressed + (found[2] or "")
    except ValueError:
        return ""


def _origin_url(origin: Origin) -> str:
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    return f"{origin.scheme}://{host}" + (
        "" if DEFAULT_PORT[origin.scheme] == origin.port else f":{origin.port}"
    )
