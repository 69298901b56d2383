"""A certificate authority of the tests' own, its certificate as a file, and a server that it vouches for. Fixtures.

`tests/conftest.py` hands them to every test.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from support.faultserver import FaultServer, server_context


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """One for the whole run: making it takes longer than most tests."""
    return trustme.CA()


@pytest.fixture
def ca(authority: trustme.CA, tmp_path: Path) -> Path:
    """Its certificate, in a file that the test may write to."""
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture
def secure(authority: trustme.CA) -> Iterator[FaultServer]:
    """A server over TLS with a certificate of *authority*."""
    with FaultServer(tls=server_context(authority)) as server:
        yield server
