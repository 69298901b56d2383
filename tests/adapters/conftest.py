"""What the tests of the adapters share: the surfaces that a call is made on."""

from __future__ import annotations

import pytest

from support.surfaces import SURFACES, Surface


@pytest.fixture(params=SURFACES, ids=repr)
def call(request: pytest.FixtureRequest) -> Surface:
    """Each surface in turn, to call with `call(hr, server.url)`."""
    return request.param  # type: ignore[no-any-return]
