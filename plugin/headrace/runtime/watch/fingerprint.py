"""What a file holds, and what its path depends on.

Functions only: they read the file system, change nothing, keep nothing, and never raise.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from itertools import islice

from headrace.bounded import MAX_TRUST_FILE_BYTES
from headrace.config.check.trust import MAX_DIRECTORY_FILES

MAX_SYMLINKS = 40
"""Linux' own limit (path_resolution(7)); beyond it open() says ELOOP."""

MOST_BYTES = MAX_TRUST_FILE_BYTES
"""The most bytes that any file of a configuration may have. The loader refuses a longer one, whatever is in it."""
MOST_ENTRIES = MAX_DIRECTORY_FILES
"""The most entries that a directory of a configuration may have."""

# Windows has neither of the two in the middle, and would give text where it is not told otherwise.
_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_PIECE_BYTES = 1 << 18
_TOO_LONG = b"no content: longer than a configuration's files are"

Prints = Mapping[str, bytes]
"""What each file held when it was read: a digest, or words for why there is none."""


def fingerprint(path: str) -> bytes:
    """What *path* holds now, as a value that is equal only for equal content.

    The whole file is read each time: size and mtime miss an edit of the same size within the clock's granularity
    (failures.md 37). A directory stands for the names, sizes and times of its entries.

    A file that is missing, unreadable, irregular or longer than the loader takes has a value, too. So its loss is a
    change, and so is a file that was too long and has become shorter. A log file that is named by mistake makes no
    change with each of its lines.

    Never raises, never blocks on a FIFO, reads at most one byte more than MOST_BYTES.
    """
    try:
        fd = os.open(path, _FLAGS)
    except (OSError, ValueError) as error:
        return _no_content(error)
    try:
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode):
            return _TOO_LONG if status.st_size > MOST_BYTES else _file_print(fd)
        if stat.S_ISDIR(status.st_mode):
            return _directory_print(path)
        return f"no content: file type {stat.S_IFMT(status.st_mode):o}".encode()
    except (OSError, ValueError) as error:
        return _no_content(error)
    finally:
        os.close(fd)


def fingerprints(files: Iterable[str]) -> dict[str, bytes]:
    """`fingerprint` of each of *files*, by path.

    Take it *before* a load and give it to `Watcher`: then an edit between the load and the start of the watching is
    seen.
    """
    return {file: fingerprint(file) for file in files}


def _no_content(error: Exception) -> bytes:
    # ValueError: the path has a NUL, or characters that the encoding of the file system does not have.
    return f"no content: {f'errno {error.errno}' if isinstance(error, OSError) else 'not a path'}".encode()


def _file_print(fd: int) -> bytes:
    digest, left = hashlib.sha256(), MOST_BYTES + 1  # it may have grown since fstat(2), and /proc says 0
    while left and (piece := os.read(fd, min(_PIECE_BYTES, left))):
        digest.update(piece)
        left -= len(piece)
    return digest.digest() if left else _TOO_LONG


def _directory_print(path: str) -> bytes:
    digest = hashlib.sha256(b"directory")
    with os.scandir(path) as entries:
        found = list(islice(entries, MOST_ENTRIES + 1))
        if len(found) > MOST_ENTRIES:
            return _TOO_LONG
        for entry in sorted(found, key=lambda entry: entry.name):
            try:
                status = entry.stat()
                facts = (status.st_ino, status.st_size, status.st_mtime_ns)
            except (OSError, ValueError):
                facts = (0, 0, 0)
            digest.update(os.fsencode(entry.name) + b"\0" + repr(facts).encode())
    return digest.digest()


def lookups(path: str) -> set[tuple[str, str]]:
    """Every (directory, name) whose change can make *path* mean another file.

    The directories are physical: there is no symlink in them. The walk ends at the first name that does not exist,
    where the file or its directory will appear. Plain directories on the way are left out: to watch all of `/` and
    `/tmp` for the rename of a parent is not worth the events, and the poll notices it. Never raises.
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
        except (OSError, ValueError):  # ValueError: no file can have this name, so none will appear
            found.add((directory, name))
            return found
        if stat.S_ISLNK(mode):
            found.add((directory, name))
            symlinks += 1
            if symlinks > MAX_SYMLINKS:
                return found
            try:
                target = os.readlink(entry)
            except (OSError, ValueError):
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
