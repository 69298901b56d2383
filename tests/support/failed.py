"""A pytest plug-in: a test that has failed lets go of what it had.

Its traceback is kept, and with it an answer that nobody reads any more. The collector may meet the answer's socket
first, and then warns of it (of stock urllib3's as well) in whatever test it runs in: one failure makes two of it.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield  # what failed is in there
    if call.excinfo is None or item.config.getoption("usepdb"):
        return report
    error: BaseException | None = call.excinfo.value
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            with contextlib.suppress(RuntimeError):  # it runs
                frame.clear()
            frame.f_locals  # noqa: B018 - before Python 3.13 a copy, which pytest has asked for: so it is emptied, too
        error = error.__cause__ or error.__context__
    return report
