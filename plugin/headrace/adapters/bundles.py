"""Whether a CA bundle that a call, an adapter or a manager names is what the rule trusts anyway.

Many callers write down what holds without a word: `verify=certifi.where()`, a copy of the company's bundle. They have
no trust of their own. So the content counts, not the path. Who names a bundle wants a check: a rule that makes none has
no bundle, and what it names as `ca` beside `verify: false` is in nobody's force.
"""

from __future__ import annotations

import hashlib
import os
import ssl
import stat
import time

import certifi

from headrace.policy.plan import TlsPlan

_LARGEST_BYTES = 8 << 20  # as for the bundles that the file names
_MOST_KEPT = 64
_SETTLED_S = 2.0
"""A file that was changed less than this ago may change again under the same time stamps (FAT has 2 s)."""

_Identity = tuple[int, int, int, int, int]
_digests: dict[str, tuple[_Identity, str]] = {}


def is_bundle_of(tls: TlsPlan, ca: str | os.PathLike[str]) -> bool:
    """Whether *ca* is what the rule trusts.

    May read the file; where it has not changed since the last time, one stat is all.
    """
    if not tls.verify:
        return False
    path = os.fspath(ca)
    if path == tls.ca:
        return True
    if tls.ca is not None:
        return tls.ca_digest is not None and _digest_of(path) == tls.ca_digest
    # The rule trusts public roots. These are their usual names.
    default = ssl.get_default_verify_paths()
    usual = [name for name in (certifi.where(), default.cafile, default.capath) if name]
    if path in usual:
        return True
    digest = _digest_of(path)
    return digest is not None and any(_digest_of(name) == digest for name in usual)


def is_bundle_of_environment(ca: str | os.PathLike[str]) -> bool:
    """Whether *ca* is what a Session puts in the place of `verify=True`, and so need not be the call's own wish.

    That is requests alone: urllib3 reads no such variable. A call of requests that names the same path cannot be told
    from one that names none.
    """
    return os.fspath(ca) in (os.environ.get("REQUESTS_CA_BUNDLE"), os.environ.get("CURL_CA_BUNDLE"))


def _digest_of(path: str) -> str | None:
    """SHA-256 of the bytes of *path*, hex; None: it is no file that can be read. Thread-safe."""
    try:
        known = _digests.get(path)
        if known is not None and known[0] == _identity(os.stat(path)):
            return known[1]
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST_BYTES:
                return None
            digest = hashlib.sha256(file.read(_LARGEST_BYTES)).hexdigest()
    except (OSError, ValueError):  # ValueError: a null byte; the library will say what is wrong
        return None
    if abs(time.time() - status.st_ctime) > _SETTLED_S:
        if len(_digests) >= _MOST_KEPT:
            _digests.clear()
        _digests[path] = _identity(status), digest
    return digest


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
