"""What a command reads that is no file: standard input by `-`, and a pipe (`check <(sops -d upstreams.yaml)`).

An application reads neither. They can be read once, and by waiting for who writes them, so a start refuses them.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence

from headrace.config.source.document import MAX_DOCUMENT_BYTES

STDIN = "<stdin>"
"""Standard input in what is printed."""


def read_streams(files: Sequence[str]) -> tuple[list[str], dict[str, bytes]]:
    """*files* by the names to print, and the contents of those that are no files. Blocks until their writers end.

    What cannot be read is left out: the configuration says why.
    """
    names: list[str] = []
    contents: dict[str, bytes] = {}
    for file in files:
        name = STDIN if file == "-" else file
        names.append(name)
        if name in contents:
            continue
        try:
            if file == "-":
                contents[name] = sys.stdin.buffer.read(MAX_DOCUMENT_BYTES + 1)
            elif stat.S_ISFIFO(os.stat(file).st_mode):
                with open(file, "rb") as pipe:
                    contents[name] = pipe.read(MAX_DOCUMENT_BYTES + 1)
        except (OSError, ValueError, AttributeError):  # closed; AttributeError: there is none
            pass
    return names, contents
