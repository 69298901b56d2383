"""What of ours a happy call enters on its way, counted: a Python-level call is about a microsecond in situ."""

from __future__ import annotations

from pathlib import Path

from bench.calls import happy_calls, happy_calls_as_written
from bench.interleaved import python_calls
from support.faultserver import Answer, FaultServer
from support.governed import rules, running


def test_a_happy_call_enters_no_more_of_ours_on_its_way_to_the_socket(tmp_path: Path) -> None:
    """A bound that a change may lower, and must not raise unseen; `tests/bench/calls.py --list` names them."""
    with FaultServer() as server, running(tmp_path, rules(server.url)) as hr:
        found = happy_calls(server.url, hr, "billing")

    by_requests, by_handle = found["requests, from HTTPAdapter.send"], found["Handle.urlopen"]
    assert by_requests.to_socket <= 20, by_requests.ours
    assert len(by_requests.ours) <= 36, by_requests.ours
    assert by_requests.all <= 60, by_requests.ours  # it was 447 through stock's `send`
    assert by_handle.to_socket <= 7, by_handle.ours
    assert len(by_handle.ours) <= 12, by_handle.ours
    assert by_handle.all <= 13, by_handle.ours

    by_get, by_session = found["Handle.get"], found["hr.session()"]
    assert by_get.to_socket <= 14, by_get.ours
    assert len(by_get.ours) <= 22, by_get.ours
    assert by_session.to_socket <= 23, by_session.ours
    assert len(by_session.ours) <= 33, by_session.ours
    assert by_get.all <= 23  # it was 757 where requests carried the arguments on
    assert by_session.all <= 54


def test_nor_does_one_with_a_limit_of_its_own(tmp_path: Path) -> None:
    """What the libraries themselves enter is counted, too: for those calls the long way is 150 more."""
    text = "install: {urllib3: true}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, more=text)):
        found = happy_calls_as_written(server.url)

    assert found["Session.get"].all <= 53  # through requests they are 600, and 900 where nothing is governed
    assert found["Session.post(json=…)"].all <= 60
    by_session = found["Session.get(timeout=…)"]
    assert by_session.to_socket <= 30, by_session.ours
    assert len(by_session.ours) <= 40, by_session.ours
    assert by_session.all <= 55
    by_manager = found["PoolManager(timeout=…).request"]
    assert by_manager.to_socket <= 16, by_manager.ours
    assert len(by_manager.ours) <= 21, by_manager.ours
    assert by_manager.all <= 25, by_manager.ours  # stock's own are 239
    assert found["PoolManager.request(json=…)"].all <= 45
    assert found["urllib3.request"].all <= 25


def test_nor_does_a_new_connection_that_goes_on_with_a_tls_session(
    tmp_path: Path, secure: FaultServer, ca: Path
) -> None:
    """All that Python enters, `ssl` and enums included; through urllib3's own way to secure one it was 212."""
    secure.always(Answer(200, headers=(("Connection", "close"),)))
    with running(tmp_path, rules(secure.url, f"    tls: {{ca: '{ca}'}}\n")) as hr:
        one = hr.upstream("billing")
        found = [python_calls(lambda: one.urlopen("GET", "/")) for _ in range(5)]
        handshakes = hr.status()["upstreams"]["billing"]["pool"]["tls_handshakes"]
    assert handshakes == {"no": 1, "yes": 9}  # each is made twice, once to be warm
    assert min(found) <= 185, found
