"""Findings about what others can read: on the wire, and on this machine.

A plain `http` upstream that is sent no secret is a hint of `headrace check`, and no finding: inside a cluster, where a
proxy beside the application does the TLS, it is meant, and each start would log it. One that is sent a secret is a
finding wherever it is.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from typing import Final, Literal

from headrace.config.check.problems import Path, Problem
from headrace.config.settings import Settings, Upstream
from headrace.config.source.tree import Mark
from headrace.config.source.written import Written
from headrace.policy.plan import FilePart

_CREDENTIALS: Final = frozenset({"authorization", "cookie", "x-api-key", "proxy-authorization"})
_MOUNTED: Final = ("/run/secrets/", "/var/run/secrets/")
"""Docker and Kubernetes put secrets there, readable by all in the container: that is who may read them."""


def in_the_clear(settings: Settings, written: Written) -> Iterator[Problem]:
    """Upstreams beyond this machine that are sent a secret by plain http."""
    for path, is_secret in _plain(settings, written):
        if is_secret:
            yield written.problem(
                path,
                "http: whoever is on the way can read the secrets in headers, and change what is answered",
                "write https",
            )


def plain_hints(settings: Settings, written: Written) -> Iterator[Problem]:
    """Upstreams beyond this machine that are called by plain http, and are sent no secret of the file."""
    for path, is_secret in _plain(settings, written):
        if not is_secret:
            yield written.problem(
                path, "http: whoever is on the way can read and change what is sent", "write https"
            )


def _plain(settings: Settings, written: Written) -> Iterator[tuple[Path, bool]]:
    for name, upstream in settings.upstreams.items():
        base: Path = ("upstreams", name)
        if upstream.mode == "off":
            continue
        places = [((*base, "base_url"), upstream.base_url)]
        places += [((*base, "match", index), prefix) for index, prefix in enumerate(upstream.match)]
        is_secret = any(
            header.lower() in _CREDENTIALS or written.is_secret((*base, "headers", header))
            for header in upstream.headers
        )
        for path, prefix in places:
            if prefix.origin.scheme == "http" and not _is_loopback(prefix.origin.host):
                yield path, is_secret
                break


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def without_pair(settings: Settings, written: Written) -> Iterator[Problem]:
    """Upstreams over https that have no client certificate, where `defaults` give one."""
    if not written.is_given(("defaults", "tls", "cert")) or settings.defaults.tls.cert is None:
        return
    for name, upstream in settings.upstreams.items():
        if upstream.tls.cert is None and has_https(upstream):
            yield written.problem(
                ("upstreams", name, "tls", "cert"),
                "null: it is called without the client certificate that defaults.tls gives to the others",
                "remove it, to present that one; write defaults: {tls: {require_client_certificate: true}} to have "
                "this refused",
            )


def has_https(upstream: Upstream) -> bool:
    """Whether one of its URLs is https."""
    return any(prefix.origin.scheme == "https" for prefix in (upstream.base_url, *upstream.match))


def secrets_of(name: str, upstream: Upstream) -> Iterator[tuple[Literal["header", "key_passphrase"], Path]]:
    """By kind, where the secrets of upstream *name* are written that may be made of files."""
    base: Path = ("upstreams", name)
    for header in upstream.headers:
        yield "header", (*base, "headers", header)
    if upstream.tls.key_passphrase is not None and has_https(upstream):
        yield "key_passphrase", (*base, "tls", "key_passphrase")


def readable(
    settings: Settings,
    written: Written,
    absolute: Mapping[str, str],
    made_of_files: Mapping[Mark, tuple[str | FilePart, ...]],
) -> Iterator[Problem]:
    """Files of keys, and of secrets in headers and passphrases, that others on this machine may read.

    Asks the file system.

    Args:
        absolute: Of each file that `tls` names, its path.
        made_of_files: The parts of headers' values and of passphrases, by where they are written.
    """
    if os.name == "nt":
        return  # what may be read is not in the mode there
    asked = _Asked()
    told: set[tuple[Mark, str]] = set()
    for name, upstream in settings.upstreams.items():
        base: Path = ("upstreams", name)
        tls = upstream.tls
        key, role = (tls.key, "key") if tls.key is not None else (tls.cert, "cert")
        if key is not None and has_https(upstream):
            path = (*base, "tls", role)
            who = asked.who_reads(absolute.get(key, key), is_key=True)
            if who is not None:
                shown = written.shown(path, key)
                yield written.problem(
                    path, f"{who} on this machine may read the key in {shown}", f"chmod 600 {shown}"
                )
        if not made_of_files:
            continue
        for _, path in secrets_of(name, upstream):
            mark = written.mark(path)
            for part in made_of_files.get(mark, ()):
                # What all inherit is written in one place, and told once.
                if not isinstance(part, FilePart) or (mark, part.path) in told:
                    continue
                told.add((mark, part.path))
                if (who := asked.who_reads(part.path, is_key=False)) is not None:
                    yield written.problem(
                        path, f"{who} on this machine may read {part.path}", f"chmod 640 {part.path}"
                    )


class _Asked:
    """Who reads which file, each asked once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, bool], str | None] = {}

    def who_reads(self, path: str, *, is_key: bool) -> str | None:
        """As `_who_reads`."""
        if (path, is_key) not in self._known:
            self._known[path, is_key] = _who_reads(path, is_key=is_key)
        return self._known[path, is_key]


def _who_reads(path: str, *, is_key: bool) -> str | None:
    """Who else may read *path*; None: nobody, it cannot be told, or that is how its secret is handed out.

    The group of a file that belongs to root is how it is handed out: Kubernetes' fsGroup, Debian's ssl-cert. A secret
    that Docker or Kubernetes has mounted may be read by all in the container, and these are nobody else.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    if found.st_mode & stat.S_IROTH:
        is_mounted = path.startswith(_MOUNTED) or f"{os.sep}..data{os.sep}" in _led_through(path)
        return None if is_mounted and not is_key else "everybody"
    if is_key and found.st_mode & stat.S_IRGRP and found.st_uid != 0:
        return "the group of the file"
    return None


def _led_through(path: str) -> str:
    try:
        target = os.readlink(path)
    except (OSError, ValueError):
        target = ""
    return os.sep + os.path.join(path, target) + os.sep
