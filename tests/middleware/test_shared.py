"""What both middlewares do alike."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from headrace.runtime.inbound import Inbound, inbound_var
from support.gateways import FakeHeadrace, FakeSnapshot, Handler, Headers, Seen, configured

from .conftest import ERRORS, SECRET_URL, Serve, with_record


def ok(_: Seen) -> tuple[int, Headers, list[bytes]]:
    return 200, [], [b"fine"]


# --- request id -------------------------------------------------------------------------

SANE = [
    pytest.param("0190f0f7-8a3c-7e6b-b1c7-3c2f6c0a9e11", id="uuid"),
    pytest.param("01ARZ3NDEKTSV4RRFFQ69G5FAV", id="ulid"),
    pytest.param("Root=1-67891233-abcdef012345678912345678;Sampled=1", id="aws"),
    pytest.param("a", id="one character"),
    pytest.param("!\"#$%&'()*+,/:;<=>?@[\\]^_`{|}~", id="punctuation"),
    pytest.param("x" * 200, id="200 characters"),
]

INSANE = [
    pytest.param("", id="empty"),
    pytest.param("x" * 201, id="201 characters"),
    pytest.param("two words", id="space"),
    pytest.param("a\r\nSet-Cookie: b", id="CR LF"),
    pytest.param("a\nb", id="LF"),
    pytest.param("a\n", id="trailing LF"),
    pytest.param("a\tb", id="tab"),
    pytest.param("a\x00b", id="NUL"),
    pytest.param("a\x7fb", id="DEL"),
    pytest.param("\xfcber", id="not ASCII"),
]


@pytest.mark.parametrize("sent", SANE)
def test_a_sane_request_id_of_any_format_is_taken_as_it_is(sent: str, serve: Serve) -> None:
    """failures.md 45."""
    seen: list[Inbound | None] = []

    def handler(_: Seen) -> tuple[int, Headers, list[bytes]]:
        seen.append(inbound_var.get())
        return ok(_)

    answer = serve(handler, FakeHeadrace()).request({"X-Request-ID": sent})
    assert answer.all("X-Request-ID") == [sent]
    assert seen[0] is not None
    assert seen[0].request_id == sent


@pytest.mark.parametrize("sent", INSANE)
def test_a_request_id_that_could_hurt_a_header_or_a_log_is_replaced(sent: str, serve: Serve) -> None:
    """failures.md 45."""
    (made,) = serve(ok, FakeHeadrace()).request({"X-Request-ID": sent}).all("X-Request-ID")
    assert made != sent
    assert len(made) == 32
    assert set(made) <= set("0123456789abcdef")


def test_each_request_without_an_id_gets_its_own(serve: Serve) -> None:
    gateway = serve(ok, FakeHeadrace())
    ids = [gateway.request().all("X-Request-ID") for _ in range(3)]
    assert len({one for (one,) in ids}) == 3


def test_a_callers_id_is_not_taken_when_the_file_says_so(serve: Serve) -> None:
    headrace = FakeHeadrace(configured(accept=False))
    (made,) = serve(ok, headrace).request({"X-Request-ID": "theirs"}).all("X-Request-ID")
    assert made != "theirs"


def test_the_header_of_the_file_is_the_one_that_counts(serve: Serve) -> None:
    gateway = serve(ok, FakeHeadrace(configured(header="Correlation-Id")))
    answer = gateway.request({"Correlation-Id": "mine", "X-Request-ID": "other"})
    assert answer.all("Correlation-Id") == ["mine"]
    assert answer.all("X-Request-ID") == []


def test_a_reloaded_header_name_is_in_force_with_the_next_request(serve: Serve) -> None:
    headrace = FakeHeadrace()
    gateway = serve(ok, headrace)
    assert gateway.request({"X-Request-ID": "1"}).all("X-Request-ID") == ["1"]
    headrace.snapshot = FakeSnapshot(configured(header="X-Trace"))
    assert gateway.request({"X-Trace": "2"}).all("X-Trace") == ["2"]


def test_an_id_that_the_application_set_stays_the_only_one(serve: Serve) -> None:
    def handler(_: Seen) -> tuple[int, Headers, list[bytes]]:
        return 200, [("x-request-ID", "the application's")], [b""]

    answer = serve(handler, FakeHeadrace()).request({"X-Request-ID": "ours"})
    assert answer.all("X-Request-ID") == ["the application's"]


# --- what the handler finds ---------------------------------------------------------------


def test_the_handler_finds_the_headrace_and_is_bound_to_the_snapshot_it_began_with(serve: Serve) -> None:
    headrace = FakeHeadrace()
    first = headrace.snapshot
    seen: list[Any] = []

    def handler(request: Seen) -> tuple[int, Headers, Iterator[bytes]]:
        headrace.snapshot = FakeSnapshot(configured())  # a reload in the middle of the request
        seen.append(request.headrace)
        seen.append(inbound_var.get())

        def body() -> Iterator[bytes]:
            seen.append(inbound_var.get())
            yield b"late"

        return 200, [], body()

    answer = serve(handler, headrace).request()
    assert answer.body == b"late"
    assert seen[0] is headrace
    assert seen[1] is seen[2]
    assert seen[1].headrace is headrace
    assert seen[1].snapshot is first
    assert inbound_var.get() is None


def test_an_error_leaves_no_binding_behind(serve: Serve) -> None:
    def handler(_: Seen) -> tuple[int, Headers, list[bytes]]:
        raise LookupError("bug")

    with pytest.raises(LookupError):
        serve(handler, FakeHeadrace()).request()
    assert inbound_var.get() is None


def test_a_request_is_over_once_its_answer_is(serve: Serve) -> None:
    """A task that it leaves behind asks: the deadline and the retries end with the request."""
    seen: list[Inbound] = []

    def handler(_: Seen) -> tuple[int, Headers, Iterator[bytes]]:
        inbound = inbound_var.get()
        assert inbound is not None
        seen.append(inbound)

        def body() -> Iterator[bytes]:
            assert not inbound.is_over
            yield b"late"

        return 200, [], body()

    assert serve(handler, FakeHeadrace()).request().body == b"late"
    assert seen[0].is_over


def test_the_first_request_starts_and_the_second_does_not(serve: Serve) -> None:
    headrace = FakeHeadrace()
    gateway = serve(ok, headrace)
    assert headrace.log == []
    gateway.request()
    gateway.request()
    assert headrace.log == ["headrace.start"]


def test_a_start_that_fails_is_tried_again(serve: Serve) -> None:
    headrace = FakeHeadrace()
    headrace.start_error = RuntimeError("another instance claims this URL")
    gateway = serve(ok, headrace)
    with pytest.raises(RuntimeError, match="another instance"):
        gateway.request()
    headrace.start_error = None
    assert gateway.request().status == 200


# --- counting -------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 302, 404, 503])
def test_each_served_request_is_counted_once_with_its_status(status: int, serve: Serve) -> None:
    headrace = FakeHeadrace()
    serve(lambda _: (status, [], [b"a", b"b"]), headrace).request()
    ((counted, duration_s),) = headrace.service.calls
    assert counted == status
    assert 0 < duration_s < 60


def test_served_requests_are_not_counted_when_the_file_says_so(serve: Serve) -> None:
    headrace = FakeHeadrace(configured(served_requests=False))
    serve(ok, headrace).request()
    assert headrace.service.calls == []


def test_an_exception_is_counted_as_the_500_that_the_server_makes_of_it(serve: Serve) -> None:
    headrace = FakeHeadrace()

    def handler(_: Seen) -> tuple[int, Headers, list[bytes]]:
        raise LookupError("bug")

    with pytest.raises(LookupError):
        serve(handler, headrace).request()
    assert headrace.service.statuses == [500]


def test_a_body_that_breaks_off_is_counted_with_the_status_that_was_sent(serve: Serve) -> None:
    headrace = FakeHeadrace()

    def body() -> Iterator[bytes]:
        yield b"some"
        raise LookupError("bug")

    with pytest.raises(LookupError):
        serve(lambda _: (200, [], body()), headrace).request()
    assert headrace.service.statuses == [200]


# --- error_responses: map ----------------------------------------------------------------------


def raising(make: Callable[[], Exception], **record: Any) -> Handler:
    def handler(_: Seen) -> tuple[int, Headers, list[bytes]]:
        raise with_record(make(), **record)

    return handler


@pytest.mark.parametrize(("make", "status", "word", "retry_after"), ERRORS)
def test_an_error_of_a_governed_call_is_answered_as_a_problem(
    make: Callable[[], Exception],
    status: int,
    word: str,
    retry_after: str | None,
    serve: Serve,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "headrace")
    headrace = FakeHeadrace(configured(error_responses="map"))
    answer = serve(raising(make), headrace).request({"X-Request-ID": "inbound"})
    assert answer.status == status
    assert answer.all("Content-Type") == ["application/problem+json"]
    assert answer.all("Content-Length") == [str(len(answer.body))]
    assert answer.all("X-Request-ID") == ["inbound"]
    assert answer.all("Retry-After") == ([] if retry_after is None else [retry_after])
    body = json.loads(answer.body)
    assert body["status"] == status
    assert body["type"] == f"urn:headrace:problem:{word}"
    assert body["upstream"] == "billing"
    assert body["request_id"] == "of-the-call"
    assert headrace.service.statuses == [status]
    (record,) = caplog.records
    assert record.getMessage().startswith("error.mapped: ")
    assert "billing" in record.getMessage()


@pytest.mark.parametrize(("make", "status", "word", "retry_after"), ERRORS)
def test_neither_the_answer_nor_the_log_repeats_the_text_of_the_exception(
    make: Callable[[], Exception],
    status: int,
    word: str,
    retry_after: str | None,
    serve: Serve,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """failures.md 52."""
    caplog.set_level(logging.INFO, "headrace")
    answer = serve(raising(make), FakeHeadrace(configured(error_responses="map"))).request()
    assert "hunter2" in SECRET_URL
    assert b"hunter2" not in answer.body
    assert "hunter2" not in caplog.text


def test_the_answer_to_a_call_without_an_id_names_the_inbound_one(serve: Serve) -> None:
    handler = raising(lambda: ConnectionError("x"), request_id=None)
    headrace = FakeHeadrace(configured(error_responses="map"))
    answer = serve(handler, headrace).request({"X-Request-ID": "inbound"})
    assert json.loads(answer.body)["request_id"] == "inbound"


def test_head_gets_the_headers_of_a_problem_only(serve: Serve) -> None:
    headrace = FakeHeadrace(configured(error_responses="map"))
    answer = serve(raising(lambda: ConnectionError("x")), headrace).request(method="HEAD")
    assert (answer.status, answer.body) == (502, b"")
    assert int(answer.all("Content-Length")[0]) > 0


@pytest.mark.parametrize("error_responses", ["map", "propagate"])
def test_an_error_without_a_record_propagates(error_responses: str, serve: Serve) -> None:
    def handler(_: Seen) -> tuple[int, Headers, list[bytes]]:
        raise ConnectionError("not ours")

    with pytest.raises(ConnectionError, match="not ours"):
        serve(handler, FakeHeadrace(configured(error_responses=error_responses))).request()


def test_nothing_is_mapped_unless_the_file_says_so(serve: Serve) -> None:
    with pytest.raises(ConnectionError):
        serve(raising(lambda: ConnectionError("x")), FakeHeadrace()).request()


def test_an_error_after_the_response_has_started_propagates(serve: Serve) -> None:
    headrace = FakeHeadrace(configured(error_responses="map"))

    def body() -> Iterator[bytes]:
        yield b"some"
        raise with_record(ConnectionError("late"))

    with pytest.raises(ConnectionError, match="late"):
        serve(lambda _: (200, [], body()), headrace).request()
    assert headrace.service.statuses == [200]


def test_context_variables_set_outside_are_visible_inside(serve: Serve) -> None:
    """failures.md 43."""
    outside: ContextVar[str] = ContextVar("outside", default="unset")
    seen: list[str] = []

    def handler(_: Seen) -> tuple[int, Headers, list[bytes]]:
        seen.append(outside.get())
        return ok(_)

    token = outside.set("set")
    try:
        serve(handler, FakeHeadrace()).request()
    finally:
        outside.reset(token)
    assert seen == ["set"]
