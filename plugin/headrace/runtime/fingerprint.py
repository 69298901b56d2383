"""What a file holds, and what its path depends on. Reads the file system, changes nothing, never raises."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping

MAX_SYMLINKS = 40
"""Linux' own limit (path_resolution(7)); beyond it open() says ELOOP."""

Prints = Mapping[str, bytes]
"""What each file held when it was read: a hash, or a word for why there is none."""


def fingerprint(path: str) -> bytes:
    """What *path* holds now, as a value that is equal only for equal content.

    Reads the whole file each time: size and mtime miss a same-size edit within
    the clock's granularity (Pitfall 37). A directory stands for the names, sizes
    and times of its entries. Missing, unreadable and irregular are values too, so
    that losing a file counts as a change. Never raises, never blocks on a FIFO.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        return f"no content: errno {error.errno}".encode()
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISREG(mode):
            with open(fd, "rb", buffering=0, closefd=False) as file:
                return hashlib.file_digest(file, "sha256").digest()
        if stat.S_ISDIR(mode):
            return _directory_print(path)
        return f"no content: file type {stat.S_IFMT(mode):o}".encode()
    except OSError as error:
        return f"no content: errno {error.errno}".encode()
    finally:
        os.close(fd)


def fingerprints(files: Iterable[str]) -> dict[str, bytes]:
    """`fingerprint` of each of *files*, by path.

    Taken *before* a load and given to `Watcher`, it makes an edit between the
    load and the start of the watching visible.
    """
    return {file: fingerprint(file) for file in files}


def _directory_print(path: str) -> bytes:
    digest = hashlib.sha256(b"directory")
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            try:
                status = entry.stat()
                facts = (status.st_ino, status.st_size, status.st_mtime_ns)
            except OSError:
                facts = (0, 0, 0)
            digest.update(os.fsencode(entry.name) + b"\0" + repr(facts).encode())
    return digest.digest()


def lookups(path: str) -> set[tuple[str, str]]:
    """Every (directory, name) whose change can make *path* mean another file.

    Directories are physical (no symlink in them). The walk ends at the first name
    that does not exist, which is where the file, or its directory, will appear.
    A plain directory on the way is not a look-up of ours: watching all of `/` and
    `/tmp` for a rename of a parent is not worth its events; `poll` notices it.
    """
    found: set[tuple[str, str]] = set()
    directory = "/"
    parts = [part for part in reversed(os.path.abspath(path).split(os.sep)) if part]
    symlinks = 0
    while parts:
        name = parts.pop()
        if name == ".":
            continue
        if name == "..":
            directory = os.path.dirname(directory)
            continue
        entry = os.path.join(directory, name)
        try:
            mode = os.lstat(entry).st_mode
        except OSError:
            found.add((directory, name))
            return found
        if stat.S_ISLNK(mode):
            found.add((directory, name))
            symlinks += 1
            if symlinks > MAX_SYMLINKS:
                return found
            try:
                target = os.readlink(entry)
            except OSError:
                return found
            if target.startswith(os.sep):
                directory = "/"
            parts.extend(part for part in reversed(target.split(os.sep)) if part)
        elif parts:
            directory = entry
        else:
            found.add((directory, name))
            if stat.S_ISDIR(mode):
                found.add((entry, ""))  # "": any name in it
    return found
