"""What of ours a happy call enters on its way, counted: a Python-level call is about a microsecond in situ."""

from __future__ import annotations

from pathlib import Path

from bench.calls import happy_calls
from support.faultserver import FaultServer
from support.governed import rules, running


def test_a_happy_call_enters_no_more_of_ours_on_its_way_to_the_socket(tmp_path: Path) -> None:
    """A bound that a change may lower, and must not raise unseen; `tests/bench/calls.py --list` names them."""
    with FaultServer() as server, running(tmp_path, rules(server.url)) as hr:
        found = happy_calls(server.url, hr, "billing")

    by_requests, by_handle = found["requests, from HTTPAdapter.send"], found["Handle.urlopen"]
    assert by_requests.to_socket <= 24, by_requests.ours
    assert len(by_requests.ours) <= 43, by_requests.ours
    assert by_requests.all <= 99, by_requests.ours  # it was 447 through stock's `send`
    assert by_handle.to_socket <= 12, by_handle.ours
    assert len(by_handle.ours) <= 19, by_handle.ours
    assert by_handle.all <= 20, by_handle.ours

    by_get, by_session = found["Handle.get"], found["hr.session()"]
    assert by_get.to_socket <= 20, by_get.ours
    assert len(by_get.ours) <= 30, by_get.ours
    assert by_session.to_socket <= 28, by_session.ours
    assert len(by_session.ours) <= 45, by_session.ours
    assert by_get.all <= 31  # it was 757 where requests carried the arguments on
    assert by_session.all <= 65
