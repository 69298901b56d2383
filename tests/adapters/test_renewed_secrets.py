"""A 401, and the file of the token holds another one by now: the call is made once more, and nothing else happens."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3

import headrace
from support.faultserver import Answer, Break, FaultServer, Request
from support.governed import rules, running
from support.surfaces import (
    HANDLE,
    INSTALL,
    MANAGER,
    REQUESTS,
    SESSION,
    URLOPEN,
    Surface,
    across,
    body_of,
    read,
    retrying_adapter,
    retrying_manager,
    status_of,
)

DEAF = "reload: {debounce: 20s, max_delay: 30s, poll: 1m}\n"
"""The watcher is slower than any call here: what is seen is what the 401 does."""


class Guarded:
    """A server that takes one token, and a file that holds one: here not always the same."""

    def __init__(self, server: FaultServer, folder: Path) -> None:
        self.server = server
        self.file = folder / "token"
        self.taken = "new"
        self.put("old")
        server.always(self.answer)

    def put(self, token: str) -> None:
        """As Vault's agent does: rendered to a file of another name, which takes its place."""
        fresh = self.file.with_suffix(".rendered")
        fresh.write_text(token + "\n")
        os.replace(fresh, self.file)

    def answer(self, request: Request) -> Answer:
        is_good = request.header("Authorization") == f"Bearer {self.taken}"
        return Answer(200 if is_good else 401, body=b"here you are" if is_good else b"who are you?")

    @property
    def tokens(self) -> list[str | None]:
        return [request.header("Authorization") for request in self.server.requests]

    def rules(self, body: str = "", *, more: str = "") -> str:
        header = f"    headers: {{Authorization: 'Bearer ${{file:{self.file}}}'}}\n"
        return rules(self.server.url, header + body, more=DEAF + INSTALL + more)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture
def guarded(server: FaultServer, tmp_path: Path) -> Guarded:
    return Guarded(server, tmp_path)


ALL = (REQUESTS, SESSION, HANDLE, URLOPEN, MANAGER)


@across(*ALL)
@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
@pytest.mark.parametrize("parser", ["auto", "stdlib"])
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_a_401_is_followed_by_the_same_call_with_the_token_that_the_file_holds_now(
    tmp_path: Path, guarded: Guarded, call: Surface, stream: bool, parser: str, warm: bool
) -> None:
    with running(tmp_path, guarded.rules(f"    pool: {{parser: {parser}}}\n")) as hr:
        if warm:  # then a call by name goes the short way
            guarded.taken = "old"
            assert status_of(call(hr, guarded.server.url)) == 200
            guarded.taken = "new"
        guarded.put("new")
        seen = len(guarded.tokens)

        answer = call(hr, guarded.server.url, stream=stream)

        assert status_of(answer) == 200
        assert (read(answer) if stream else body_of(answer)) == b"here you are"
        assert guarded.tokens[seen:] == ["Bearer old", "Bearer new"]
        first, second = guarded.server.requests[seen:]
        assert (first.header("X-Retry-Seq"), second.header("X-Retry-Seq")) == (None, "1")
        assert first.header("X-Request-ID") == second.header("X-Request-ID")
        record = headrace.record_of(answer)
        (attempt,) = record.attempts
        assert (attempt.status, attempt.renewed, attempt.resent, attempt.retry_seq) == (200, True, False, 1)
        assert record.reason == "success"
        told = hr.status()["upstreams"]["billing"]
        assert told["retry"]["renewed"] == 1
        assert told["retry"]["retries"] == {}
        assert told["circuit_breaker"]["calls"] == 1 + warm
        assert told["circuit_breaker"]["failures"] == 0
        assert told["attempts"] == {"2xx": 1 + warm}
        assert guarded.server.connections == 1

        seen = len(guarded.tokens)
        assert status_of(call(hr, guarded.server.url)) == 200  # and the next call begins with it
        assert guarded.tokens[seen:] == ["Bearer new"]


def test_a_token_that_has_not_changed_is_not_sent_again(
    tmp_path: Path, guarded: Guarded, call: Surface
) -> None:
    with running(tmp_path, guarded.rules()) as hr:
        answer = call(hr, guarded.server.url)

        assert status_of(answer) == 401
        assert body_of(answer) == b"who are you?"
        assert guarded.tokens == ["Bearer old"]
        (attempt,) = headrace.record_of(answer).attempts
        assert not attempt.renewed
        assert hr.status()["upstreams"]["billing"]["retry"]["renewed"] == 0


def test_it_is_sent_again_once_and_no_more(tmp_path: Path, guarded: Guarded, call: Surface) -> None:
    guarded.taken = "neither of them"
    with running(tmp_path, guarded.rules()) as hr:
        guarded.put("new")

        answer = call(hr, guarded.server.url)

        assert status_of(answer) == 401
        assert guarded.tokens == ["Bearer old", "Bearer new"]
        (attempt,) = headrace.record_of(answer).attempts
        assert attempt.renewed
        assert attempt.status == 401


def test_what_counts_is_what_was_sent_also_where_it_was_renewed_while_the_call_was_out(
    tmp_path: Path, guarded: Guarded, call: Surface
) -> None:
    with running(tmp_path, guarded.rules()) as hr:
        guarded.taken = "old"
        assert status_of(call(hr, guarded.server.url)) == 200  # from here on a call may go the short way

        def renewed_meanwhile(request: Request) -> Answer:
            guarded.taken = "new"
            guarded.put("new")
            assert hr.reload() == "unchanged"
            return guarded.answer(request)

        guarded.server.next(renewed_meanwhile)

        assert status_of(call(hr, guarded.server.url)) == 200
        assert guarded.tokens[1:] == ["Bearer old", "Bearer new"]


def test_a_header_that_the_call_has_set_itself_is_nobody_elses(
    tmp_path: Path, guarded: Guarded, call: Surface
) -> None:
    with running(tmp_path, guarded.rules()) as hr:
        guarded.put("new")

        answer = call(hr, guarded.server.url, headers={"authorization": "Bearer mine"})

        assert status_of(answer) == 401
        assert guarded.tokens == ["Bearer mine"]


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_a_body_that_can_be_replayed_is_sent_again_whatever_the_method(
    tmp_path: Path, guarded: Guarded, call: Surface, method: str
) -> None:
    """The upstream has said that it has done nothing. So it is no question of `retry.methods`."""
    with running(tmp_path, guarded.rules()) as hr:
        file = io.BytesIO(b"--the body")
        file.seek(2)

        for body, token in ((b"the body", "new"), (file, "newer")):
            guarded.put(token)
            guarded.taken = token
            assert status_of(call(hr, guarded.server.url, method, data=body)) == 200

        assert [request.body for request in guarded.server.requests] == [b"the body"] * 4


def test_a_body_that_can_be_sent_once_is_not_sent_again(
    tmp_path: Path, guarded: Guarded, call: Surface
) -> None:
    with running(tmp_path, guarded.rules()) as hr:
        guarded.put("new")

        answer = call(hr, guarded.server.url, "POST", data=iter([b"once"]))

        assert status_of(answer) == 401
        assert guarded.tokens == ["Bearer old"]


def test_it_is_not_charged_to_the_budget_and_leaves_the_attempts_as_they_are(
    tmp_path: Path, guarded: Guarded, call: Surface
) -> None:
    """Even where not one retry could be paid, or is allowed; and what is retried after it, is told of all that came."""
    body = (
        "    retry: {max_attempts: 2, budget: {ratio: 0, min_per_second: 1, ttl: 1s}, backoff: {base: 1ms}}\n"
    )
    with running(tmp_path, guarded.rules(body)) as hr:
        guarded.put("new")
        guarded.server.next(guarded.answer, Answer(503))

        answer = call(hr, guarded.server.url)

        assert status_of(answer) == 200
        first, second = headrace.record_of(answer).attempts
        assert (first.status, first.renewed, first.retry_seq) == (503, True, 1)
        assert (second.status, second.renewed, second.retry_seq) == (200, False, 2)
        assert [one.header("X-Retry-Seq") for one in guarded.server.requests] == [None, "1", "2"]
        assert hr.status()["upstreams"]["billing"]["retry"]["retries"] == {"5xx": 1}


def test_a_renewed_request_over_a_connection_that_has_died_is_resent_as_any_other(
    tmp_path: Path, guarded: Guarded, call: Surface
) -> None:
    with running(tmp_path, guarded.rules()) as hr:
        guarded.put("new")
        guarded.server.next(guarded.answer, Break(at="request"))

        answer = call(hr, guarded.server.url)

        assert status_of(answer) == 200
        (attempt,) = headrace.record_of(answer).attempts
        assert attempt.renewed
        assert attempt.resent
        assert guarded.tokens == ["Bearer old", "Bearer new", "Bearer new"]


def test_the_second_request_is_within_the_deadline_of_the_call(
    tmp_path: Path, guarded: Guarded, call: Surface
) -> None:
    body = "    timeouts: {attempt: 2s, deadline: 2s}\n    retry: {max_attempts: 1}\n"
    with running(tmp_path, guarded.rules(body)) as hr:
        guarded.put("new")
        guarded.server.next(guarded.answer, Answer(200, delay_s=60))

        with pytest.raises(headrace.DeadlineExceeded) as caught:
            call(hr, guarded.server.url)

        (attempt,) = headrace.record_of(caught.value).attempts
        assert attempt.renewed
        assert attempt.outcome == "timeout"


@across(HANDLE, URLOPEN, REQUESTS, MANAGER)
def test_a_storm_of_401s_reads_the_file_once(tmp_path: Path, guarded: Guarded, call: Surface) -> None:
    """All threads have sent the old token before the first hears that it is not taken."""
    together, opened = threading.Barrier(24), []
    path = str(guarded.file)

    def count(event: str, args: tuple[Any, ...]) -> None:
        if event != "open" or args[0] != path or not watched:
            return
        if threading.current_thread().name != "headrace-watch":  # which takes its own look once, as it starts
            opened.append(args)

    def answer(request: Request) -> Answer:
        if request.header("Authorization") == "Bearer old":
            together.wait(30)
        return guarded.answer(request)

    guarded.server.always(answer)
    watched = False
    sys.addaudithook(count)
    with running(tmp_path, guarded.rules("    pool: {max_connections: 24}\n")) as hr:
        guarded.put("new")
        watched = True
        with ThreadPoolExecutor(24) as threads:
            answers = list(threads.map(lambda _: call(hr, guarded.server.url), range(24)))
        watched = False

    assert [status_of(answer) for answer in answers] == [200] * 24
    assert len(opened) == 1
    assert guarded.tokens.count("Bearer old") == guarded.tokens.count("Bearer new") == 24


@across(REQUESTS, MANAGER)
def test_what_is_only_observed_is_not_sent_again(tmp_path: Path, guarded: Guarded, call: Surface) -> None:
    with running(tmp_path, guarded.rules("    mode: observe\n")) as hr:
        guarded.put("new")
        assert status_of(call(hr, guarded.server.url)) == 401
        assert len(guarded.tokens) == 1


@across(HANDLE, URLOPEN)
def test_by_name_an_observed_call_is_sent_with_the_token_of_now(
    tmp_path: Path, guarded: Guarded, call: Surface
) -> None:
    """There the rules' headers are a part of the call, whatever the mode. It follows the file, and repeats nothing."""
    with running(tmp_path, guarded.rules("    mode: observe\n")) as hr:
        assert status_of(call(hr, guarded.server.url)) == 401
        guarded.put("new")
        assert hr.reload() == "unchanged"
        assert status_of(call(hr, guarded.server.url)) == 200
        assert guarded.tokens == ["Bearer old", "Bearer new"]


@across(
    retrying_adapter(urllib3.Retry(3, status_forcelist=[503], backoff_factor=0)),
    retrying_manager(urllib3.Retry(3, status_forcelist=[503], backoff_factor=0)),
)
def test_it_is_no_try_of_a_caller_that_retries_by_itself_and_happens_once_in_all_of_them(
    tmp_path: Path, guarded: Guarded, call: Surface
) -> None:
    with running(tmp_path, guarded.rules()) as hr:
        guarded.put("new")
        guarded.server.next(guarded.answer, Answer(503))

        answer = call(hr, guarded.server.url)

        assert status_of(answer) == 200
        assert guarded.tokens == ["Bearer old", "Bearer new", "Bearer new"]
        assert [one.renewed for one in headrace.record_of(answer).attempts] == [True, False]


@across(REQUESTS, SESSION, HANDLE, MANAGER)
def test_each_hop_of_a_redirect_is_a_call_of_its_own(tmp_path: Path, guarded: Guarded, call: Surface) -> None:
    def answer(request: Request) -> Answer:
        met = guarded.answer(request)
        if met.status == 200 and request.target == "/a":
            guarded.taken = "newer"
            guarded.put("newer")
            return Answer(302, headers=(("Location", "/b"),))
        return met

    guarded.server.always(answer)
    with running(tmp_path, guarded.rules()) as hr:
        guarded.put("new")

        assert status_of(call(hr, guarded.server.url)) == 200

        assert guarded.tokens == ["Bearer old", "Bearer new", "Bearer new", "Bearer newer"]


def test_on_the_thread_of_an_event_loop_it_works_likewise(
    tmp_path: Path, guarded: Guarded, call: Surface
) -> None:
    with running(tmp_path, guarded.rules()) as hr:
        guarded.put("new")

        async def main() -> Any:
            return call(hr, guarded.server.url)

        assert status_of(asyncio.run(main())) == 200


def test_a_file_that_is_gone_changes_nothing_of_the_answer(
    tmp_path: Path, guarded: Guarded, call: Surface
) -> None:
    with running(tmp_path, guarded.rules()) as hr:
        guarded.file.unlink()
        assert status_of(call(hr, guarded.server.url)) == 401
        for torn in (b"", b"\xff\xfe\x00", b"two\nlines\n"):
            guarded.file.write_bytes(torn)
            assert status_of(call(hr, guarded.server.url)) == 401
        assert set(guarded.tokens) == {"Bearer old"}
        guarded.put("new")
        assert status_of(call(hr, guarded.server.url)) == 200


def test_it_is_logged_by_the_name_of_the_file_and_without_what_it_holds(
    tmp_path: Path, guarded: Guarded, call: Surface, caplog: pytest.LogCaptureFixture
) -> None:
    with running(tmp_path, guarded.rules()) as hr, caplog.at_level(logging.INFO, "headrace"):
        guarded.put("token-2")
        call(hr, guarded.server.url)

    (line,) = [record.getMessage() for record in caplog.records if "has changed" in record.getMessage()]
    assert str(guarded.file) in line
    assert "billing" in line
    assert "token-2" not in line


def test_a_streamed_401_too_large_to_keep_costs_the_call_its_connection_and_no_more(
    tmp_path: Path, guarded: Guarded, call: Surface
) -> None:
    guarded.server.next(Answer(401, body=b"x" * 1_000_000))
    with running(tmp_path, guarded.rules()) as hr:
        guarded.put("new")
        answer = call(hr, guarded.server.url, stream=True)
        assert status_of(answer) == 200
        assert read(answer) == b"here you are"


def test_without_a_file_in_its_headers_a_401_is_an_answer(
    tmp_path: Path, server: FaultServer, call: Surface
) -> None:
    server.always(Answer(401))
    text = rules(server.url, "    headers: {Authorization: Bearer old}\n", more=DEAF + INSTALL)
    with running(tmp_path, text) as hr:
        assert status_of(call(hr, server.url)) == 401
        assert len(server.requests) == 1
        assert isinstance(call(hr, server.url, stream=True), requests.Response | urllib3.BaseHTTPResponse)
