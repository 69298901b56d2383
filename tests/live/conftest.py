"""A real nginx per test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest

from support.nginx import TLS, Nginx


class MakeNginx(Protocol):
    def __call__(self, server: str, *, http: str = "", ca: Any = None, tls: str = TLS) -> Nginx: ...


@pytest.fixture
def nginx(tmp_path: Path, require_program: Callable[[str], str]) -> Iterator[MakeNginx]:
    """Starts an nginx with these directives; it ends with the test."""
    program = require_program("nginx")
    with ExitStack() as running:
        made = 0

        def make(server: str, *, http: str = "", ca: Any = None, tls: str = TLS) -> Nginx:
            nonlocal made
            made += 1
            folder = tmp_path / f"nginx{made}"
            return running.enter_context(Nginx(folder, program, server, http=http, ca=ca, tls=tls))

        yield make
