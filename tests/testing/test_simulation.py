"""The rules of a file on a virtual clock: what is played, what is refused, and that it is the truth."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

import headrace
from headrace.policy.decision import EndReason
from headrace.policy.outcome import Fault
from headrace.testing import ScriptExhausted, SimulatedUpstream, Simulation
from support.faultserver import Answer, Break, FaultServer
from support.governed import rules, running

Simulate = Callable[..., Simulation]
BASE = "https://billing.internal"


@pytest.fixture
def simulate(tmp_path: Path) -> Simulate:
    """A simulation of a file with one upstream, billing; the text is its further keys."""

    def make(body: str = "", *, more: str = "", seed: int | None = None) -> Simulation:
        file = tmp_path / "upstreams.yaml"
        file.write_text(rules(BASE, body, more=more))
        return Simulation(file, seed=seed)

    return make


@pytest.fixture
def billing(simulate: Simulate) -> SimulatedUpstream:
    """Billing, with every rule at its default."""
    return simulate().upstream("billing")


def test_a_circuit_opens_refuses_and_recovers_at_instants_that_the_file_tells(simulate: Simulate) -> None:
    simulation = simulate()
    billing = simulation.upstream("billing")
    billing.answers("reset", times=5, takes="80ms")
    billing.always(200)

    for _ in range(5):
        billing.call("POST")
    assert billing.circuit == "open"
    assert billing.call("POST").reason == "circuit_open"
    simulation.advance("2s")
    for _ in range(3):
        assert billing.call("POST").status == 200

    assert billing.transitions == [(0.4, "open"), (2.4, "half_open"), (2.4, "closed")]
    assert billing.timeline == [
        (0.08, "attempt 1: reset"),
        (0.08, "no further attempt: method"),
        (0.16, "attempt 1: reset"),
        (0.16, "no further attempt: method"),
        (0.24, "attempt 1: reset"),
        (0.24, "no further attempt: method"),
        (0.32, "attempt 1: reset"),
        (0.32, "no further attempt: method"),
        (0.4, "attempt 1: reset"),
        (0.4, "circuit open for 2s (5 failed calls in a row)"),
        (0.4, "no further attempt: method"),
        (0.4, "refused: circuit open for 2.0 s more (5 failed calls in a row)"),
        (2.4, "circuit half_open (open_for elapsed)"),
        (2.4, "attempt 1: 200"),
        (2.4, "attempt 1: 200"),
        (2.4, "attempt 1: 200"),
        (2.4, "circuit closed (probes succeeded)"),
    ]


def test_the_record_of_a_call_is_the_one_that_a_real_call_carries(billing: SimulatedUpstream) -> None:
    billing.answers(500, "reset", 200, takes="100ms")

    result = billing.call()

    record = result.headrace
    assert (record.upstream, record.reason, result.reason, result.status) == (
        "billing",
        EndReason.SUCCESS,
        EndReason.SUCCESS,
        200,
    )
    assert [(one.outcome, one.verdict, one.started_s) for one in record.attempts] == [
        ("5xx", "failure", 0.0),
        ("reset", "failure", pytest.approx(0.1125)),
        ("2xx", "success", pytest.approx(0.2375)),
    ]
    assert result.pauses_s == (0.0125, 0.025)
    assert (result.began_s, result.took_s) == (0.0, pytest.approx(0.3375))
    assert (
        str(result).splitlines()[-1]
        == 'headrace: upstream "billing" ended with an answer that retry.retry_on does not name (success)'
    )


LIMITS = """\
    timeouts: {deadline: 10s, attempt: 4s, connect: 2s, tls_handshake: 1500ms, read: 3s, acquire: 500ms, resolve: 1s}
    retry: {max_attempts: 1}
"""


@pytest.mark.parametrize(
    ("what", "takes", "label", "sent", "took_s", "verdict"),
    [
        pytest.param(200, "1s", "2xx", 1, 1.0, "success", id="an answer in time"),
        pytest.param(200, "3.5s", "timeout", 1, 3.0, "failure", id="an answer after more silence than read"),
        pytest.param("timeout", None, "timeout", 1, 3.0, "failure", id="silence"),
        pytest.param("timeout", "100ms", "timeout", 1, 0.1, "ignored", id="cut before blame_after"),
        pytest.param("reset", "1s", "reset", 1, 1.0, "failure", id="reset"),
        pytest.param("reset", "1h", "timeout", 1, 3.0, "failure", id="a reset that comes too late"),
        pytest.param("dns_failure", "500ms", "dns_failure", 0, 0.5, "failure", id="no such name"),
        pytest.param("dns_failure", "1h", "resolve_timeout", 0, 1.0, "failure", id="a name that hangs"),
        pytest.param("resolve_timeout", None, "resolve_timeout", 0, 1.0, "failure", id="no name in time"),
        pytest.param("resolve_timeout", "100ms", "resolve_timeout", 0, 0.1, "ignored", id="… cut early"),
        pytest.param("connect_failure", None, "connect_failure", 0, 0.0, "failure", id="refused"),
        pytest.param("connect_failure", "1h", "connect_failure", 0, 2.0, "failure", id="no route"),
        pytest.param("tls_failure", "1s", "tls_failure", 0, 1.0, "failure", id="a broken handshake"),
        pytest.param("certificate", None, "certificate", 0, 0.0, "ignored", id="another certificate"),
        pytest.param("certificate", "1h", "tls_failure", 0, 1.5, "failure", id="a handshake without an end"),
        pytest.param("protocol_error", None, "protocol_error", 1, 0.0, "failure", id="no HTTP"),
        pytest.param("pool_timeout", None, "pool_timeout", 0, 0.5, "ignored", id="pool full, waited"),
        pytest.param("pool_rejected", None, "pool_rejected", 0, 0.0, "ignored", id="pool full, not waited"),
        pytest.param("local_error", None, "local_error", 0, 0.0, "ignored", id="no request of ours"),
    ],
)
def test_an_attempt_is_cut_where_the_limits_of_the_file_would_cut_it(
    what: int | str, takes: str | None, label: str, sent: int, took_s: float, verdict: str, simulate: Simulate
) -> None:
    billing = simulate(LIMITS).upstream("billing")
    billing.answers(what, takes=takes)

    result = billing.call()

    (attempt,) = result.headrace.attempts
    assert (attempt.outcome, attempt.verdict) == (label, verdict)
    assert result.took_s == pytest.approx(took_s)
    assert billing.arrived == sent


def test_every_word_for_a_fault_can_be_scripted(simulate: Simulate) -> None:
    for fault in Fault:
        billing = simulate("    retry: {max_attempts: 1}\n").upstream("billing")
        billing.answers(fault.value)
        result = billing.call()
        assert (result.reason == "cancelled") == (fault is Fault.CANCELLED)
        assert billing.timeline[0].what == f"attempt 1: {fault.value}"


def test_the_last_attempt_is_cut_by_the_deadline_and_no_pause_goes_beyond_it(simulate: Simulate) -> None:
    body = "    timeouts: {deadline: 5s, attempt: 4s}\n    circuit_breaker: {mode: disabled}\n"
    billing = simulate(body).upstream("billing")
    billing.always("timeout")

    result = billing.call()

    assert result.took_s == pytest.approx(5.0)
    assert result.reason == "deadline"


def test_a_cancelled_probe_gives_its_place_back(simulate: Simulate) -> None:
    simulation = simulate("    retry: {max_attempts: 1}\n")
    billing = simulation.upstream("billing")
    billing.answers(503, times=5)
    billing.answers("cancelled", takes="1s")
    for _ in range(5):
        billing.call()
    simulation.advance("5s")

    result = billing.call()

    assert (result.reason, result.status, result.took_s) == ("cancelled", None, 1.0)
    assert (billing.circuit_view.probes_in_flight, billing.circuit_view.verdicts) == (0, 0)


def test_retry_after_is_waited_and_the_budget_spent(simulate: Simulate) -> None:
    body = "    retry: {budget: {ratio: 0, min_per_second: 0.1}}\n"
    billing = simulate(body).upstream("billing")
    billing.answers(429, retry_after="2s")
    billing.answers(200, 503)
    assert billing.budget_tokens == 1

    assert billing.call().pauses_s == (2.0,)
    assert billing.call().reason == "budget"
    assert billing.budget_tokens == 0
    assert billing.timeline[-1] == (2.0, "no further attempt: budget")


def test_an_outage_may_be_a_function_of_the_time(simulate: Simulate) -> None:
    simulation = simulate("    retry: {max_attempts: 1}\n")
    billing = simulation.upstream("billing")
    billing.always(lambda at_s: "connect_failure" if 10 <= at_s < 40 else 200)

    for _ in range(600):
        billing.call()
        simulation.advance("100ms")

    opened = [moment for moment in billing.transitions if moment.what == "open"]
    assert opened[0].at_s == pytest.approx(14.9)  # half of the calls of the last 10 s
    assert billing.transitions[-1].what == "closed"
    assert billing.transitions[-1].at_s > 40


def test_calls_of_one_inbound_request_share_its_retries_and_its_deadline(simulate: Simulate) -> None:
    simulation = simulate(more="service: {max_retries_per_request: 3}\n")
    billing = simulation.upstream("billing")
    billing.always(429)

    with simulation.request():
        reasons = [billing.call().reason.value for _ in range(3)]
    assert reasons == ["attempts", "request_retries", "request_retries"]
    assert billing.call().reason == "attempts"

    with simulation.request(deadline="1s"):
        simulation.advance("1s")
        assert billing.call().reason == "deadline"
    assert billing.timeline[-1].what == "not sent: deadline"


def test_an_inbound_request_has_the_deadline_that_the_file_gives_it(simulate: Simulate) -> None:
    more = "service: {deadline: {header: X-Timeout, default: 2s, max: 3s}}\n"
    simulation = simulate(more=more)
    billing = simulation.upstream("billing")
    billing.always("timeout")

    def left_s(deadline: str | None) -> float:
        with simulation.request(deadline=deadline):
            return billing.call("POST").took_s

    assert [left_s(one) for one in (None, "1s", "3s", "1h")] == [2.0, 1.0, 3.0, 3.0]


def test_retry_after_is_read_where_a_real_call_reads_it(simulate: Simulate) -> None:
    """RFC 9110 §10.2.3 gives it a meaning with 3xx, 429 and 503; with an answer that went well it has none."""
    billing = simulate().upstream("billing")
    billing.answers(200, 404, 301, retry_after="7s")

    assert [billing.call().headrace.retry_after_s for _ in range(3)] == [None, 7.0, 7.0]


def test_a_refused_call_gets_the_fallback_of_the_file(simulate: Simulate) -> None:
    body = "    retry: {max_attempts: 1}\n    fallback: {status: 203}\n"
    billing = simulate(body).upstream("billing")
    billing.answers(503, times=5)
    for _ in range(5):
        billing.call()

    result = billing.call()

    assert (result.status, result.reason, result.headrace.fallback_for) == (203, "circuit_open", "billing")
    assert billing.timeline[-1].what == "fallback: 203"


def test_a_fallback_to_another_upstream_is_a_call_there(simulate: Simulate) -> None:
    body = "    fallback: {upstream: spare}\n  spare: {base_url: https://spare.internal}\n"
    simulation = simulate(body)
    billing, spare = simulation.upstream("billing"), simulation.upstream("spare")
    billing.answers(500, times=15)
    spare.answers(500, 200)
    for _ in range(5):
        billing.call()

    result = billing.call()

    assert (result.status, result.headrace.upstream, result.headrace.fallback_for) == (
        200,
        "spare",
        "billing",
    )
    assert billing.timeline[-1].what == 'fallback: upstream "spare"'
    assert [moment.what for moment in spare.timeline] == ["attempt 1: 500", "pause 0.0125s", "attempt 2: 200"]


def test_what_stands_in_for_refused_calls_of_a_traffic_is_not_theirs(simulate: Simulate) -> None:
    body = "    retry: {max_attempts: 1}\n    circuit_breaker: {mode: forced_open}\n    fallback: {status: 203}\n"
    billing = simulate(body).upstream("billing")

    found = billing.traffic(every="10ms", times=3)

    assert (found.calls, found.refused, found.failed, billing.arrived) == (3, 3, 0, 0)


def test_the_predicate_of_the_file_judges_the_body(
    simulate: Simulate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "judges.py").write_text(
        "def says_error(response):\n    return b'error' in response.content\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    billing = simulate("    circuit_breaker: {failure_if: 'judges:says_error'}\n").upstream("billing")
    billing.answers(200, body=b"an error", times=5)
    for _ in range(5):
        assert billing.call().status == 200

    assert billing.circuit == "open"


def test_a_predicate_that_raises_leaves_the_status_to_count_as_in_a_real_call(
    simulate: Simulate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "strict_judges.py").write_text(
        "def says_error(response):\n    return 'error' in response.json()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    billing = simulate("    circuit_breaker: {failure_if: 'strict_judges:says_error'}\n").upstream("billing")
    billing.answers(503, 200, 200, body=b"no JSON")

    first, second = billing.call(), billing.call()

    assert [one.verdict for one in first.headrace.attempts] == ["failure", "success"]
    assert [one.verdict for one in second.headrace.attempts] == ["success"]
    told = [words for _, words in billing.timeline if "failure_if" in words]
    # Not asked about the 503: its status has said it.
    assert told == ["failure_if raised JSONDecodeError: the answer counts by its status alone"] * 2


def test_an_answer_kept_is_what_the_caller_gets_when_no_connection_comes_free_for_another(
    billing: SimulatedUpstream,
) -> None:
    billing.answers(503, "pool_timeout")

    result = billing.call()

    assert (result.status, result.reason) == (503, "pool_timeout")


def test_an_idempotency_key_of_the_file_or_of_the_call_unlocks_post(simulate: Simulate) -> None:
    for body, keyed in (
        ("", True),
        ("    retry: {idempotency_key: {}}\n", False),
        ("    retry: {idempotency_key: {header: X-Key, methods: []}}\n", True),
        ("    headers: {idempotency-key: always}\n", False),
    ):
        billing = simulate(body).upstream("billing")
        billing.answers("reset", 200)
        assert billing.call("post", keyed=keyed).status == 200

    billing.answers("reset")
    assert billing.call("POST", replayable=False).reason == "not_replayable"


def test_upstreams_share_the_clock_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "upstreams.yaml"
    file.write_text(rules(BASE) + "  stock: {base_url: https://stock.internal}\n")
    simulation = Simulation(file)
    billing, stock = simulation.upstream("billing"), simulation.upstream("stock")
    billing.answers("reset", times=5, takes="1s")
    stock.answers(200)

    for _ in range(5):
        billing.call("POST")
    stock.call()

    assert (billing.circuit, stock.circuit) == ("open", "closed")
    assert stock.timeline == [(5.0, "attempt 1: 200")]
    assert simulation.now_s == 5.0


def test_a_mode_does_not_matter_but_that_of_the_breaker_does(simulate: Simulate) -> None:
    observed = simulate("    mode: observe\n", more="defaults: {retry: {max_attempts: 1}}\n").upstream(
        "billing"
    )
    disabled = simulate("    circuit_breaker: {mode: disabled}\n    retry: {max_attempts: 1}\n").upstream(
        "billing"
    )
    for upstream in (observed, disabled):
        upstream.answers(500, times=9)
        for _ in range(9):
            upstream.call() if upstream.unplayed else None

    assert (observed.circuit, observed.arrived) == ("open", 5)
    assert (disabled.circuit, disabled.arrived) == ("closed", 9)


def test_slow_calls_open_the_circuit_and_a_breaker_that_observes_says_what_it_would_do(
    simulate: Simulate,
) -> None:
    slow = "minimum_calls: 4, slow_call: {duration: 1s, rate_threshold: 0.5}"
    billing = simulate(f"    circuit_breaker: {{mode: observe, {slow}}}\n").upstream("billing")
    billing.always(200, takes="1s")

    for _ in range(5):
        assert billing.call().status == 200

    assert billing.transitions == [(4.0, "open")]
    assert billing.timeline[-2].what.startswith("would be refused: circuit open for 2.0 s more")
    assert billing.timeline[-1] == (5.0, "attempt 1: 200")


def test_the_environment_is_what_the_test_gives_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "upstreams.yaml"
    file.write_text(rules("${env:BILLING_URL}"))
    monkeypatch.setenv("BILLING_URL", BASE)
    monkeypatch.setenv("HEADRACE_UPSTREAMS__BILLING__RETRY__MAX_ATTEMPTS", "7")

    with pytest.raises(headrace.ConfigError, match="BILLING_URL"):
        Simulation(file)
    simulation = Simulation(
        file, env={"BILLING_URL": BASE, "HEADRACE_UPSTREAMS__BILLING__RETRY__MAX_ATTEMPTS": "2"}
    )
    billing = simulation.upstream("billing")
    billing.always(503)

    assert len(billing.call().headrace.attempts) == 2


@given(
    script=st.lists(st.sampled_from([200, 404, 429, 503, *(fault.value for fault in Fault)]), max_size=30),
    seed=st.none() | st.integers(0, 9),
)
@settings(deadline=None, max_examples=30)
def test_the_same_script_and_seed_make_the_same_timeline(
    script: list[int | str], seed: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "same.yaml"
    file.write_text(rules(BASE))
    timelines = []
    for chance in (1, 2):
        random.seed(chance)
        simulation = Simulation(file, seed=seed)
        billing = simulation.upstream("billing")
        if script:
            billing.answers(*script, takes=None)
        billing.always(200)
        while billing.unplayed:
            result = billing.call()
            assert len(result.headrace.attempts) <= 3
            assert result.took_s <= 15 + 1e-9
            simulation.advance("1s")
        timelines.append(billing.timeline)

    assert timelines[0] == timelines[1]
    assert [moment.at_s for moment in timelines[0]] == sorted(moment.at_s for moment in timelines[0])


# Words that are none


@pytest.mark.parametrize(
    ("what", "says"),
    [
        pytest.param("timeoutt", "did you mean 'timeout'", id="misspelt"),
        pytest.param("wat", "known here: a status code, dns_failure", id="unknown"),
        pytest.param(99, "99 is no status code", id="below"),
        pytest.param(600, "600 is no status code", id="above"),
        pytest.param(True, "not what an upstream can do", id="truth"),
        pytest.param(None, "not what an upstream can do", id="nothing"),
    ],
)
def test_a_word_that_is_none_is_refused_at_once(
    what: int | str, says: str, billing: SimulatedUpstream
) -> None:
    with pytest.raises(ValueError, match=says):
        billing.answers(what)
    with pytest.raises(ValueError, match=says):
        billing.always(what)
    billing.always(lambda at_s: what)
    with pytest.raises(ValueError, match=says):
        billing.call()


def test_durations_are_written_as_in_the_file(simulate: Simulate) -> None:
    simulation = simulate()
    billing = simulation.upstream("billing")
    for bad, fix in ((5, "write '5s'"), ("5", "write '5s'"), ("5 sec", "write '5s'"), ("soon", "'250ms'")):
        for refused in (
            lambda bad=bad: simulation.advance(bad),
            lambda bad=bad: billing.answers(200, takes=bad),
            lambda bad=bad: billing.answers(429, retry_after=bad),
        ):
            with pytest.raises(ValueError, match=fix):
                refused()


def test_options_that_do_not_go_with_the_word_are_refused(billing: SimulatedUpstream) -> None:
    with pytest.raises(ValueError, match="takes= does not go with 'pool_timeout'"):
        billing.answers("pool_timeout", takes="1s")
    with pytest.raises(ValueError, match="retry_after= belongs to an answer"):
        billing.answers("reset", retry_after="1s")
    with pytest.raises(ValueError, match="body= belongs to an answer"):
        billing.answers("reset", body=b"x")
    with pytest.raises(ValueError, match="nothing to answer"):
        billing.answers()
    with pytest.raises(ValueError, match="nothing to answer"):
        billing.answers(200, times=0)
    assert billing.unplayed == 0


def test_a_script_that_is_played_out_says_where_and_what_to_write(billing: SimulatedUpstream) -> None:
    billing.answers(500)

    with pytest.raises(ScriptExhausted) as raised:
        billing.call()

    text = str(raised.value)
    assert 'upstream "billing": attempt 2 of a GET at 0.0125 s meets nothing' in text
    assert "0.000000 s  attempt 1: 500" in text
    billing.answers(200)
    assert billing.call().status == 200, "the permit of the attempt that met nothing came back"


def test_an_unknown_upstream_is_named_with_the_nearest(simulate: Simulate) -> None:
    with pytest.raises(headrace.UnknownUpstream, match='"biling" is not in the file; did you mean billing'):
        simulate().upstream("biling")
    with pytest.raises(headrace.UnknownUpstream, match="it has: billing"):
        simulate().upstream("zzz")


def test_timelines_read_as_tuples_and_as_lines(billing: SimulatedUpstream) -> None:
    assert str(billing.timeline) == "nothing happened"
    billing.answers(500, 200)
    billing.call()

    assert repr(billing.timeline) == (
        "[(0.0, 'attempt 1: 500'), (0.0, 'pause 0.0125s'), (0.0125, 'attempt 2: 200')]"
    )
    assert str(billing.timeline).splitlines()[2] == "    0.012500 s  attempt 2: 200"
    assert repr(billing) == (
        '<upstream "billing" at 0.0125 s: circuit closed, 2 attempts arrived, 0 scripted replies left>'
    )


# It is the truth


@pytest.mark.parametrize(
    "script",
    [
        pytest.param([200], id="success"),
        pytest.param([503, 200], id="one retry"),
        pytest.param(["reset", 503, 200], id="two retries"),
        pytest.param([503] * 3, id="attempts run out"),
        pytest.param([404], id="an answer that is no failure"),
        pytest.param([501], id="an answer that no rule names"),
        pytest.param([503] * 5 + [200], id="the failure that opens ends its call, the next is refused"),
        pytest.param(["timeout", 200], id="a timeout"),
    ],
)
def test_real_calls_against_a_real_server_come_to_the_same(script: list[int | str], tmp_path: Path) -> None:
    retry = "    retry: {backoff: {base: 1ms, throttled: 1ms}}\n"
    body = f"    timeouts: {{attempt: 500ms}}\n{retry}    circuit_breaker: {{blame_after: 0s}}\n"
    replies = {"reset": Break(), "timeout": Answer(delay_s=1.5)}
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        server.next(*(replies[one] if isinstance(one, str) else Answer(one) for one in script))
        simulated = Simulation(tmp_path / "upstreams.yaml").upstream("billing")
        simulated.answers(*script)
        simulated.always(200)

        for _ in range(3):
            record = None
            with contextlib.suppress(requests.RequestException):
                try:
                    record = hr.upstream("billing").get("/").headrace  # type: ignore[attr-defined]
                except requests.RequestException as error:
                    record = error.headrace  # type: ignore[union-attr]
                    raise
            assert record is not None
            played = simulated.call().headrace
            assert played.reason is record.reason
            assert [(one.outcome, one.verdict, one.status) for one in played.attempts] == [
                (one.outcome, one.verdict, one.status) for one in record.attempts
            ]
        assert hr.status()["upstreams"]["billing"]["circuit_breaker"]["state"] == simulated.circuit
        assert len(server.requests) == simulated.arrived
