"""The files of TLS: read once, and given to OpenSSL as they were read.

OpenSSL opens files by itself. One that is written twice in between may hold the same before and after, and something
else when OpenSSL reads it. So OpenSSL gets a name that nobody else writes to.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from headrace.bounded import MAX_TRUST_FILE_BYTES, ReadingError, read_bounded

PRIVATE_KEY: Final = re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----")

# Where descriptors have names. Linux has both, unless a container leaves one out; BSD and macOS have the second.
_NAMES: Final = ("/proc/self/fd", "/dev/fd")


class TlsError(ValueError):
    """TLS files that cannot be used; the text names the file, what is wrong and how to fix it."""


class TlsChanged(TlsError):
    """A file was written after its plan was made: to read it again may help."""


def read(path: str, what: str, digest: str | None = None) -> bytes:
    """The content of *path*. OpenSSL's error would only hint at the file. Blocks for the disk.

    Args:
        digest: SHA-256 of what it must hold, in hex; None: anything.

    Raises:
        TlsError: It cannot be read.
        TlsChanged: It holds something else.
    """
    try:
        content = read_bounded(path, MAX_TRUST_FILE_BYTES)
    except ReadingError as error:
        raise TlsError(f"{path}: cannot read {what}: it {error}") from error
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise _changed(path)
    return content


@contextmanager
def held(content: bytes, path: str) -> Iterator[str]:
    """A name under which OpenSSL finds *content*, the first time that it opens it, whoever writes to *path* meanwhile.

    That is a file in memory; a pipe, where the system has no such files (BSD, macOS); a file that this user alone may
    read, for what is longer than a pipe holds and has no key in it. Windows has names for neither of the first two, and
    a private key is never written to a disk. So there the name of a file with a key is *path*, and what it holds is
    looked at again. A key that was another one in between is found out: it does not belong to its certificate.

    Raises:
        TlsChanged: *path* has been written meanwhile, and that counts.
    """
    for make in (_in_memory, _in_pipe):
        descriptor = make(content)
        if descriptor is None:
            continue
        try:
            name = _name_of(descriptor)
            if name is not None:
                yield name
                return
        finally:
            os.close(descriptor)
    folder = None if PRIVATE_KEY.search(content) else _folder_with(content)
    try:
        yield path if folder is None else os.path.join(folder, "pem")
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
    if folder is None and read(path, "it again") != content:
        raise _changed(path)


def _in_memory(content: bytes) -> int | None:
    """The descriptor of a file that holds *content*; None: the system has none of those."""
    try:
        descriptor = os.memfd_create("headrace-tls")
    except (AttributeError, OSError):
        return None
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    return descriptor


def _in_pipe(content: bytes) -> int | None:
    """The end to read of a pipe that *content* is in, all of it; None: it does not fit, or there is none."""
    if not any(map(os.path.isdir, _NAMES)):
        return None
    try:
        descriptor, end = os.pipe()
    except OSError:
        return None
    try:
        os.set_blocking(end, False)
        if os.write(end, content) == len(content):
            return descriptor
    except OSError:
        pass
    finally:
        os.close(end)
    os.close(descriptor)
    return None


def _folder_with(content: bytes) -> str | None:
    """A folder that this user alone may enter, with a file `pem` that holds *content*; None: there is no place."""
    folder = None
    try:
        folder = tempfile.mkdtemp(prefix="headrace-tls-")
        with open(os.path.join(folder, "pem"), "xb") as file:
            file.write(content)
    except OSError:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        return None
    return folder


def _name_of(descriptor: int) -> str | None:
    """The name of what *descriptor* leads to; None: it has none."""
    names = (f"{folder}/{descriptor}" for folder in _NAMES)
    return next(filter(os.path.exists, names), None)


def _changed(path: str) -> TlsChanged:
    return TlsChanged(f"{path}: was written while it was being loaded\n    load it again")


def reason_of(error: Exception) -> str:
    """*error* in a word or two."""
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
    return str(reason).replace("_", " ").lower()
