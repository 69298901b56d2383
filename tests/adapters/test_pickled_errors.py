"""Every error of ours pickles, as it leaves a real call: what a task queue or a process pool does with it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import urllib3

import headrace
from headrace.policy.retry import RetryAllowance
from headrace.runtime.cancellation import Cancellation
from headrace.runtime.inbound import Inbound, inbound_var
from support.faultserver import FaultServer, Silence
from support.governed import rules, running
from support.surfaces import INSTALL, MANAGER, SURFACES, Surface, across, retrying_call

ENDS = {
    "CircuitOpenError": "    circuit_breaker: {mode: forced_open}\n",
    "DeadlineExceeded": "    timeouts: {deadline: 200ms, attempt: 150ms, connect: 100ms, read: 150ms, acquire: 50ms}\n",
    "PoolRejected": "    pool: {max_connections: 1, when_full: reject}\n",
    "PoolTimeout": "    pool: {max_connections: 1}\n    timeouts: {acquire: 20ms}\n",
    "CallCancelled": "",
}


def cancelled(hr: headrace.Headrace, call: Callable[[], Any]) -> Any:
    cancellation = Cancellation()
    cancellation.cancel()
    inbound = Inbound(hr, hr.snapshot, "mine", RetryAllowance([None] * 10), cancellation=cancellation)
    token = inbound_var.set(inbound)
    try:
        return call()
    finally:
        inbound_var.reset(token)


@across(*SURFACES, retrying_call(urllib3.Retry(2, backoff_factor=0)))
@pytest.mark.parametrize("end", ENDS)
def test_an_error_of_a_real_call_pickles(tmp_path: Path, end: str, call: Surface) -> None:
    body = "    retry: {backoff: {base: 1ms, max: 2ms}}\n" + ENDS[end]
    with (
        FaultServer() as server,
        running(tmp_path, rules(server.url, body, more=INSTALL)) as hr,
    ):
        held = None
        if end.startswith("Pool"):
            held = hr.upstream("billing").urlopen("GET", "/", preload_content=False)
        elif end == "DeadlineExceeded":
            server.always(Silence())
        with pytest.raises(getattr(headrace, end)) as caught:
            cancelled(hr, lambda: call(hr, server.url)) if end == "CallCancelled" else call(hr, server.url)
        if held is not None:
            held.close()
        error = caught.value

        again = pickle.loads(pickle.dumps(error))

        assert type(again) is type(error)
        assert (str(again), again.upstream, again.request_id) == (
            str(error),
            error.upstream,
            error.request_id,
        )
        assert again.headrace == error.headrace
        assert again.attempts == error.attempts
        assert again.__notes__ == error.__notes__
        if call is MANAGER:
            assert error.pool is not None  # it stays on the one that was raised
        assert getattr(again, "pool", None) is None
        assert type(pickle.loads(pickle.dumps(again))) is type(error)
