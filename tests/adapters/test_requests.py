"""Plain `requests` calls, governed by URL, against a real server."""

from __future__ import annotations

import gc
import io
import pickle
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest
import requests
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

import headrace
from support.faultserver import Answer, Break, FaultServer, Silence
from support.governed import reason_of, rules, running
from support.waiting import ends_within, is_about, wait_until

FAST = "    retry: {backoff: {base: 1ms, throttled: 1ms}}\n"


def test_a_plain_requests_call_is_governed_by_its_url(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(f"{server.url}/v2")) as hr:
        response = requests.get(f"{server.url}/v2/invoices/7", params={"full": "1"})

        assert (response.status_code, response.content) == (200, b"ok")
        assert response.headrace.upstream == "billing"
        assert [attempt.outcome for attempt in response.headrace.attempts] == ["2xx"]
        assert hr.status()["upstreams"]["billing"]["requests"] == {"2xx": 1}
        assert server.requests[0].target == "/v2/invoices/7?full=1"


def test_a_host_that_the_file_does_not_name_passes_through_untouched(tmp_path: Path) -> None:
    with FaultServer() as named, FaultServer() as other, running(tmp_path, rules(named.url)) as hr:
        response = requests.get(other.url)

        assert not hasattr(response, "headrace")
        assert other.requests[0].header("X-Request-ID") is None
        assert {"host": other.url.removeprefix("http://"), "calls": 1} in hr.status()["unknown_hosts"]


def test_a_sibling_path_of_the_prefix_passes_through(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(f"{server.url}/v2")):
        assert not hasattr(requests.get(f"{server.url}/v22/a"), "headrace")
        assert not hasattr(requests.get(f"{server.url}/v2/../v1/a"), "headrace")
        assert hasattr(requests.get(f"{server.url}/v2"), "headrace")


def test_connections_are_shared_by_all_sessions_of_the_process(tmp_path: Path) -> None:
    """`requests.get` closes its session each time (failures.md 24): the upstream's pool lives on.

    failures.md 24.
    """
    with FaultServer() as server, running(tmp_path, rules(server.url)) as hr:
        pool = hr.snapshot.upstream("billing").endpoint.pool
        for _ in range(5):
            requests.get(server.url)
        with requests.Session() as session:
            session.get(server.url)

        assert server.connections == 1
        assert hr.snapshot.upstream("billing").endpoint.pool is pool
        assert bool(pool)


def test_a_failed_get_is_retried_and_the_record_tells_the_story(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, FAST)) as hr:
        server.next(Answer(503, close=True), Break("request"))

        response = requests.get(server.url)

        assert response.status_code == 200
        assert [attempt.outcome for attempt in response.headrace.attempts] == ["5xx", "reset", "2xx"]
        assert len({request.header("X-Request-ID") for request in server.requests}) == 1
        assert hr.status()["upstreams"]["billing"]["retry"]["retries"] == {"5xx": 1, "reset": 1}


def test_the_last_answer_is_returned_when_attempts_run_out(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, FAST)):
        server.always(Answer(503, body=b"busy"))

        response = requests.get(server.url)

        assert (response.status_code, response.text, response.headrace.reason.value) == (
            503,
            "busy",
            "attempts",
        )
        assert len(server.requests) == 3


def test_the_last_exception_leaves_unwrapped_with_notes(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, FAST)):
        server.always(Break("request"))

        with pytest.raises(requests.ConnectionError) as caught:
            requests.get(server.url)

        assert type(caught.value) is requests.ConnectionError
        assert reason_of(caught.value) == "attempts"
        assert len([note for note in caught.value.__notes__ if "reset" in note]) == 3


def test_an_exception_is_a_new_one_each_time(tmp_path: Path) -> None:
    """A refusal shared by callers would grow its traceback for ever.

    failures.md 9.
    """
    with FaultServer() as server, running(tmp_path, rules(server.url, FAST)):
        server.always(Answer(503))
        for _ in range(5):
            requests.get(server.url)
        seen = []
        for _ in range(3):
            with pytest.raises(headrace.CircuitOpenError) as caught:
                requests.get(server.url)
            depth, trace = 0, caught.value.__traceback__
            while trace is not None:
                depth, trace = depth + 1, trace.tb_next
            seen.append((id(caught.value), depth))
            kept = caught.value  # noqa: F841 - alive, so that the next one cannot have its id

        assert len({depth for _, depth in seen}) == 1


def test_a_refusal_leaves_no_cycle_behind(tmp_path: Path) -> None:
    """Only our own path: urllib3's `urlopen` keeps its exception in a local, which is a cycle of its own."""
    with FaultServer() as server, running(tmp_path, rules(server.url, FAST)):
        server.always(Answer(503))
        for _ in range(5):
            requests.get(server.url)

        def refuse() -> weakref.ref[BaseException]:
            try:  # pytest.raises would be a cycle of its own
                requests.get(server.url)
            except headrace.CircuitOpenError as error:
                return weakref.ref(error)
            raise AssertionError("not refused")

        gc.disable()
        try:
            assert refuse()() is None
        finally:
            gc.enable()


def test_an_open_circuit_refuses_in_requests_family_and_says_when_to_come_back(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, FAST)):
        server.always(Answer(503))
        for _ in range(5):
            requests.get(server.url)
        before = len(server.requests)

        with pytest.raises(requests.ConnectionError) as caught:
            requests.get(server.url)

        error = caught.value
        assert isinstance(error, headrace.CircuitOpenError)
        assert 0 < error.retry_after_s <= 5.5
        assert 'upstream "billing": circuit open for' in str(error)
        assert error.request is not None
        assert len(server.requests) == before == 15


def test_a_refusal_pickles_with_its_record(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, FAST)):
        server.always(Answer(503))
        for _ in range(5):
            requests.get(server.url)
        with pytest.raises(headrace.CircuitOpenError) as caught:
            requests.get(server.url)

        again = pickle.loads(pickle.dumps(caught.value))

        assert type(again) is type(caught.value)
        assert (again.upstream, again.retry_after_s) == ("billing", caught.value.retry_after_s)
        assert again.headrace.reason.value == "circuit_open"
        assert str(again) == str(caught.value)


def test_a_full_pool_is_caught_by_except_request_exception(tmp_path: Path) -> None:
    """urllib3's EmptyPoolError escapes requests; ours is of its family.

    failures.md 30.
    """
    body = "    pool: {max_connections: 1}\n    timeouts: {acquire: 50ms}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)):
        with requests.get(server.url, stream=True):  # holds the only connection: its body is not read
            with pytest.raises(requests.RequestException) as caught:
                requests.get(server.url)
            assert isinstance(caught.value, headrace.PoolTimeout)
            assert reason_of(caught.value) == "pool_timeout"
            assert "1 in use, 0 idle, 0 waiting, max 1" in str(caught.value)

        assert requests.get(server.url).status_code == 200  # closing the first one freed the slot


def test_a_refused_lease_takes_no_slot_from_anybody(tmp_path: Path) -> None:
    """Whatever comes out of the pool, the slot that was never taken is not given back.

    failures.md 23.
    """
    body = "    pool: {max_connections: 1, when_full: reject}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        leases = hr.snapshot.upstream("billing").endpoint.pool.leases
        with requests.get(server.url, stream=True):
            for _ in range(3):
                with pytest.raises(headrace.PoolRejected):
                    requests.get(server.url)
            assert leases.view().inuse == 1
        assert leases.view().inuse == 0
        assert requests.get(server.url).status_code == 200
        assert leases.view().idle == 1


def test_the_slot_is_free_while_a_failed_call_waits_for_its_next_attempt(tmp_path: Path) -> None:
    """The failed response is kept, its connection is not held while sleeping.

    failures.md 14.
    """
    body = (
        "    pool: {max_connections: 1}\n    retry: {max_attempts: 9, backoff: {base: 600ms, max: 600ms}}\n"
        "    timeouts: {acquire: 500ms, deadline: 60s}\n"
    )
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        leases = hr.snapshot.upstream("billing").endpoint.pool.leases
        server.at("/failing", lambda request: Answer(503, headers=(("Retry-After", "1"),), body=b"x" * 1000))
        answers = []
        caller = threading.Thread(
            target=lambda: answers.append(requests.get(f"{server.url}/failing", stream=True))
        )
        caller.start()
        server.wait_for(lambda: len(server.requests) == 1)
        wait_until(lambda: leases.view().inuse == 0)

        assert requests.get(f"{server.url}/other").status_code == 200  # the only slot is free

        server.at("/failing", Answer(200))
        caller.join(10)
        assert answers[0].status_code == 200
        answers[0].close()
        assert server.connections == 1  # the failed answer was drained, its connection kept


def test_a_streamed_failure_too_large_to_keep_is_closed_and_retried(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, FAST)) as hr:
        server.next(Answer(503, body=b"x" * 200_000))

        with requests.get(server.url, stream=True) as response:
            assert response.content == b"ok"

        assert hr.snapshot.upstream("billing").endpoint.pool.leases.view().inuse == 0
        assert server.connections == 2


def test_a_streamed_failure_that_drips_is_closed_and_not_waited_for(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, FAST)):
        server.next(Answer(503, body=b"x" * 1000, drip_body_s=0.1))
        with ends_within(0.5), requests.get(server.url, stream=True) as response:  # not 100
            assert response.content == b"ok"


def test_a_kept_streamed_failure_is_what_the_caller_gets(tmp_path: Path) -> None:
    body = FAST + "    circuit_breaker: {consecutive_failures: 1}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)):
        server.always(Answer(503, delay_s=1.1, body=b"busy"))

        with requests.get(server.url, stream=True) as response:
            assert (response.status_code, response.text) == (503, "busy")
            assert response.headrace.reason.value == "circuit_opened"


@pytest.mark.parametrize(
    ("timeout", "rule", "limit_s"),
    [
        pytest.param(0.1, "20s", 0.1, id="one number"),
        pytest.param((5, 0.1), "20s", 0.1, id="a pair"),
        pytest.param(None, "200ms", 0.2, id="the rule's"),
    ],
)
def test_the_timeout_of_the_call_replaces_the_rules_up_or_down(
    tmp_path: Path, timeout: object, rule: str, limit_s: float
) -> None:
    body = f"    timeouts: {{attempt: {rule}, read: {rule}, deadline: 60s}}\n    retry: {{max_attempts: 1}}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)):
        server.always(Silence())

        with pytest.raises(requests.ReadTimeout) as caught:
            requests.get(server.url, timeout=timeout)  # type: ignore[arg-type]

        (attempt,) = caught.value.headrace.attempts  # type: ignore[attr-defined]
        assert attempt.outcome == "timeout"
        assert is_about(attempt.duration_s, limit_s)


def test_a_longer_timeout_of_the_call_is_honoured(tmp_path: Path) -> None:
    """An adapter that swallows `timeout`, `verify`, `cert` or `proxies`: see also the tests of TLS and proxies.

    failures.md 44.
    """
    body = "    timeouts: {read: 100ms, connect: 100ms}\n    retry: {max_attempts: 1}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)):
        server.always(Answer(delay_s=0.3))

        assert requests.get(server.url, timeout=20).status_code == 200
        server.always(Silence())  # whoever comes late to its limit finds no answer
        with pytest.raises(requests.Timeout):
            requests.get(server.url)


def test_the_deadline_ends_the_whole_call(tmp_path: Path) -> None:
    body = FAST + "    timeouts: {deadline: 1500ms, attempt: 1s}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)):
        server.always(Silence())
        with ends_within(1.5, not_before=1.4), pytest.raises(requests.Timeout) as caught:
            requests.get(server.url)

        assert isinstance(caught.value, headrace.DeadlineExceeded)
        assert caught.value.deadline_s == 1.5
        assert len(caught.value.attempts) == 2


def test_a_proxied_call_passes_through_and_is_counted(tmp_path: Path) -> None:
    with FaultServer() as proxy, running(tmp_path, rules("http://billing.internal")) as hr:
        response = requests.get("http://billing.internal/a", proxies={"http": proxy.url})

        assert response.status_code == 200
        assert proxy.requests[0].target == "http://billing.internal/a"
        assert not hasattr(response, "headrace")
        assert hr.status()["ungoverned"] == {"proxy": 1}


def test_a_body_that_cannot_be_read_again_is_sent_once(tmp_path: Path) -> None:
    body = "    retry: {backoff: {base: 1ms, throttled: 1ms}, methods: [GET, POST]}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)):
        server.always(Answer(503))

        generated = requests.post(server.url, data=(part for part in (b"a", b"b")))
        from_file = requests.post(server.url, data=io.BytesIO(b"file"))

        assert generated.headrace.reason.value == "not_replayable"
        assert from_file.headrace.reason.value in ("attempts", "circuit_opened")
        assert [request.body for request in server.requests] == [b"ab", b"file", b"file", b"file"]


def test_post_is_sent_once_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, FAST)):
        server.always(Answer(503))

        response = requests.post(server.url, data=b"order")

        assert (response.status_code, response.headrace.reason.value) == (503, "method")
        assert len(server.requests) == 1


def test_headers_of_the_rule_are_added_unless_the_call_set_them(tmp_path: Path) -> None:
    with (
        FaultServer() as server,
        running(tmp_path, rules(server.url, "    headers: {X-Team: orders, Accept: application/json}\n")),
    ):
        requests.get(server.url)
        requests.get(server.url, headers={"x-team": "mine", "Accept": "text/csv"})

        assert [request.header("X-Team") for request in server.requests] == ["orders", "mine"]
        # requests always sets Accept itself, and the call did not ask for that.
        assert [request.header("Accept") for request in server.requests] == ["application/json", "text/csv"]


def test_the_request_of_the_caller_is_not_written_to(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url)), requests.Session() as session:
        prepared = session.prepare_request(requests.Request("GET", server.url))
        before = dict(prepared.headers)

        session.send(prepared)
        session.send(prepared)

        assert dict(prepared.headers) == before
        ids = [request.header("X-Request-ID") for request in server.requests]
        assert len(set(ids)) == 2
        assert None not in ids


def test_redirects_are_followed_and_each_hop_is_governed_by_its_own_url(tmp_path: Path) -> None:
    with FaultServer() as server, FaultServer() as elsewhere, running(tmp_path, rules(server.url)):
        server.next(Answer(302, headers=(("Location", f"{elsewhere.url}/there"),)))

        response = requests.get(server.url)

        assert response.url == f"{elsewhere.url}/there"
        assert response.history[0].headrace.upstream == "billing"
        assert not hasattr(response, "headrace")


def test_a_callers_own_retries_are_kept_and_ours_stand_back(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, rules(server.url, FAST)), requests.Session() as session:
        session.mount(
            "http://", HTTPAdapter(max_retries=Retry(total=1, status_forcelist=[503], backoff_factor=0))
        )
        server.always(Answer(503))

        with pytest.raises(requests.exceptions.RetryError):
            session.get(server.url)

        assert len(server.requests) == 2  # not 2 x 3


def test_a_subclass_of_the_adapter_still_sees_its_calls(tmp_path: Path) -> None:
    class Signing(HTTPAdapter):
        def send(self, request, *args, **kw):  # type: ignore[no-untyped-def]
            request.headers["X-Signature"] = "s"
            return super().send(request, *args, **kw)

    with FaultServer() as server, running(tmp_path, rules(server.url)), requests.Session() as session:
        session.mount("http://", Signing())

        response = session.get(server.url)

        assert response.headrace.upstream == "billing"
        assert server.requests[0].header("X-Signature") == "s"


def test_a_nested_call_made_during_an_attempt_is_governed_by_its_own_rules(tmp_path: Path) -> None:
    with FaultServer() as first, FaultServer() as second:
        text = (
            "version: 1\nupstreams:\n"
            f"  orders: {{base_url: '{first.url}'}}\n  tokens: {{base_url: '{second.url}'}}\n"
        )

        class Refreshing(HTTPAdapter):
            def add_headers(self, request, **kw):  # type: ignore[no-untyped-def]
                request.headers["X-Token-By"] = requests.get(second.url).headrace.upstream

        with running(tmp_path, text), requests.Session() as session:
            session.mount("http://", Refreshing())
            response = session.get(first.url)

            assert response.headrace.upstream == "orders"
            assert first.requests[0].header("X-Token-By") == "tokens"
            assert (first.connections, second.connections) == (1, 1)


def test_the_patch_is_undone_with_the_last_instance(tmp_path: Path) -> None:
    stock = HTTPAdapter.send, HTTPAdapter.get_connection_with_tls_context
    with FaultServer() as one, FaultServer() as two:
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        with running(tmp_path / "a", rules(one.url)):
            patched = HTTPAdapter.send
            with running(tmp_path / "b", rules(two.url, name="inventory")):
                assert HTTPAdapter.send is patched
                assert requests.get(two.url).headrace.upstream == "inventory"
                with pytest.raises(LookupError):
                    headrace.current()
            assert requests.get(one.url).headrace.upstream == "billing"
            assert not hasattr(requests.get(two.url), "headrace")
        assert (HTTPAdapter.send, HTTPAdapter.get_connection_with_tls_context) == stock


def test_two_instances_cannot_claim_one_prefix(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with (
        running(tmp_path, rules("https://billing.internal/v2")),
        pytest.raises(
            headrace.ConfigError, match=r"https://billing.internal/v2 is already claimed"
        ) as caught,
        running(tmp_path / "a", rules("https://billing.internal/v2", name="twin")),
    ):
        raise AssertionError("unreachable")
    (problem,) = caught.value.problems
    assert (problem.file, problem.path) == (str(tmp_path / "a" / "upstreams.yaml"), "upstreams.twin")
    assert "already claimed" in problem.message


def test_with_install_requests_off_only_sessions_and_handles_are_governed(tmp_path: Path) -> None:
    stock = HTTPAdapter.send
    with (
        FaultServer() as server,
        running(tmp_path, rules(server.url, more="install: {requests: false}\n")) as hr,
    ):
        assert HTTPAdapter.send is stock
        assert not hasattr(requests.get(server.url), "headrace")
        with hr.session() as session:
            assert session.get(server.url).headrace.upstream == "billing"
        assert hr.upstream("billing").get("/").headrace.upstream == "billing"


def test_thirty_threads_open_no_more_connections_than_the_rule_allows(tmp_path: Path) -> None:
    body = "    pool: {max_connections: 2}\n    timeouts: {acquire: 20s, deadline: 60s}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        server.always(Answer(delay_s=0.01))
        threads = [threading.Thread(target=requests.get, args=(server.url,)) for _ in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)

        assert len(server.requests) == 30
        assert server.connections <= 2
        pool = hr.status()["upstreams"]["billing"]["pool"]
        assert (pool["inuse"], pool["waiting"]) == (0, 0)
        assert sum(pool["acquires"].values()) == 30


def test_a_happy_governed_call_makes_at_most_forty_python_calls_more_than_stock_urllib3(
    tmp_path: Path,
) -> None:
    import urllib3

    def calls(work) -> int:  # type: ignore[no-untyped-def]
        for _ in range(3):
            work()
        made = 0

        def count(frame, event, arg):  # type: ignore[no-untyped-def]
            nonlocal made
            made += event == "call"

        least = sys.maxsize
        for _ in range(
            5
        ):  # now and then one finds the deadline thread awake, or begins a second of the tallies
            time.sleep(0.02)
            made = 0
            sys.setprofile(count)
            try:
                work()
            finally:
                sys.setprofile(None)
            least = min(least, made)
        return least

    with FaultServer() as server, running(tmp_path, rules(server.url)) as hr:
        host, port = server.url.removeprefix("http://").split(":")
        handle = hr.upstream("billing")
        with urllib3.HTTPConnectionPool(host, int(port)) as pool:
            stock = calls(lambda: pool.urlopen("GET", "/a"))
        governed = calls(lambda: handle.urlopen("GET", "/a"))

        with requests.Session() as session:
            governed_session = calls(lambda: session.get(f"{server.url}/a"))
        hr.close()
        with requests.Session() as session:
            stock_session = calls(lambda: session.get(f"{server.url}/a"))

    assert governed - stock <= 40, (governed, stock)
    assert governed_session - stock_session <= 40, (governed_session, stock_session)

    # By URL through a PoolManager stock's whole `urlopen` is around each hop, for redirects and `retries=`.
    with (
        FaultServer() as server,
        running(tmp_path, rules(server.url, more="install: {urllib3: true}\n")) as hr,
    ):
        with urllib3.PoolManager() as manager:
            governed_manager = calls(lambda: manager.request("GET", f"{server.url}/a"))
        hr.close()
        with urllib3.PoolManager() as manager:
            stock_manager = calls(lambda: manager.request("GET", f"{server.url}/a"))
    # The lowest urllib3 allowed parses a URL once more, which it is given whole.
    most = 80 if urllib3.__version__.startswith("2.6.") else 75
    assert governed_manager - stock_manager <= most, (governed_manager, stock_manager)
