"""From file to plans: defaults, every key, URLs, TLS files, and how long a thousand upstreams take."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from headrace.config import load
from headrace.config.check.trust import MAX_DIRECTORY_FILES
from headrace.errors import ConfigError
from headrace.policy.outcome import condition
from headrace.policy.plan import (
    AdaptivePlan,
    BackoffPlan,
    BudgetPlan,
    CircuitPlan,
    CountWindowPlan,
    HalfOpenPlan,
    InboundDeadlinePlan,
    OpenForPlan,
    Origin,
    PoolPlan,
    PropagatePlan,
    RetryAfterHeader,
    RetryAfterPlan,
    RetryPlan,
    SlowCallPlan,
    TimeoutPlan,
    TimeWindowPlan,
    UpstreamPlan,
    UrlPrefix,
)
from support.configs import LoadText


def test_file_with_only_a_base_url_gets_the_defaults_of_the_design_and_no_finding(
    load_text: LoadText,
) -> None:
    configuration = load_text("upstreams: {billing: {base_url: http://billing.internal}}")
    assert configuration.warnings == ()
    assert configuration.upstreams["billing"] == UpstreamPlan(
        name="billing",
        base=UrlPrefix(Origin("http", "billing.internal", 80), ()),
        match=(),
        mode="enforce",
        headers=(),
        propagate=PropagatePlan(request_id=True, retry_sequence=True),
        timeouts=TimeoutPlan(
            deadline_s=15.0,
            attempt_s=4.0,
            resolve_s=2.0,
            connect_s=2.0,
            tls_handshake_s=2.0,
            read_s=4.0,
            write_s=4.0,
            acquire_s=0.5,
        ),
        pool=PoolPlan(
            max_connections=200,
            min_idle=0,
            max_idle=200,
            when_full="wait",
            max_waiting=1024,
            idle_timeout_s=60.0,
            max_lifetime_s=300.0,
            max_lifetime_grace_s=None,
            max_requests_per_connection=None,
            max_response_body_bytes=None,
            leak_detection_threshold_s=None,
            parser="auto",
            tcp_keepalive=None,
            heartbeat=None,
        ),
        tls=None,
        retry=RetryPlan(
            max_attempts=3,
            retry_on=condition(["network", "5xx", 408, 429]),
            methods=frozenset({"GET", "HEAD", "OPTIONS"}),
            backoff=BackoffPlan(base_s=0.025, multiplier=2.0, max_s=1.0, jitter="full", throttled_s=1.0),
            retry_after=RetryAfterPlan(headers=(RetryAfterHeader("Retry-After", "auto"),), max_s=30.0),
            budget=BudgetPlan(ratio=0.2, min_per_second=3.0, ttl_s=10.0),
        ),
        circuit_breaker=CircuitPlan(
            mode="enforce",
            window=TimeWindowPlan(size_s=10.0),
            minimum_calls=20,
            failure_rate_threshold=0.5,
            consecutive_failures=5,
            slow_call=SlowCallPlan(duration_s=None, rate_threshold=1.0),
            failure_on=condition(["network", "5xx"]),
            blame_after_s=0.5,
            open_for=OpenForPlan(base_s=2.0, multiplier=2.0, max_s=60.0, jitter=0.1),
            half_open=HalfOpenPlan(
                max_probes=3, success_rate_threshold=0.9, window_s=60.0, probe_timeout_s=15.0, ramp_s=None
            ),
        ),
    )
    assert (configuration.service.request_id.header, configuration.service.request_id.accept) == (
        "X-Request-ID",
        True,
    )
    assert configuration.service.error_responses == "propagate"
    assert configuration.install.requests
    assert (configuration.telemetry.served_requests, configuration.telemetry.tracing) == (True, "annotate")
    assert dataclasses.astuple(configuration.reload) == (0.1, 1.0, 2.0, 30.0)
    assert len(configuration.digest) == 64


def test_the_inbound_side(load_text: LoadText) -> None:
    text = "upstreams: {a: {base_url: http://a}, b: {base_url: http://b, propagate: {%s}}}\nservice: {%s}"
    service = load_text(text % ("", "")).service
    assert (service.deadline, service.cancel_on_disconnect, service.request_id.is_trace_id) == (
        None,
        False,
        False,
    )
    configuration = load_text(
        text
        % (
            "deadline: true, traceparent: false",
            "deadline: {header: X-T, max: 5s}, cancel_on_disconnect: true, request_id: {from: trace}",
        )
    )
    service = configuration.service
    assert service.deadline == InboundDeadlinePlan(header="X-T", default_s=None, max_s=5.0)
    assert service.cancel_on_disconnect
    assert service.request_id.is_trace_id
    a, b = (upstream.propagate for upstream in configuration.upstreams.values())
    assert (a.deadline, a.traceparent, b.deadline, b.traceparent) == (False, True, True, False)
    alone = load_text(text % ("", "deadline: {default: 5s}")).service.deadline
    assert alone == InboundDeadlinePlan(header=None, default_s=5.0, max_s=60.0)


def test_a_key_that_is_a_word_of_python_may_come_from_the_environment(load_text: LoadText) -> None:
    text = "upstreams: {a: {base_url: http://a}}\nservice: {request_id: {from: '${env:SOURCE}'}}"
    assert load_text(text, env={"SOURCE": "trace"}).service.request_id.is_trace_id
    assert load_text(
        "upstreams: {a: {base_url: http://a}}", env={"HEADRACE_SERVICE__REQUEST_ID__FROM": "trace"}
    ).service.request_id.is_trace_id


def test_plans_hold_plain_floats(load_text: LoadText) -> None:
    timeouts = (
        load_text("upstreams: {a: {base_url: http://a, timeouts: {deadline: 9s}}}").upstreams["a"].timeouts
    )
    assert {type(value) for name, value in dataclasses.asdict(timeouts).items() if name.endswith("_s")} == {
        float
    }
    assert (timeouts.deadline_is_written, timeouts.asked) == (True, None)


def test_equal_files_make_equal_plans_and_unequal_ones_do_not(load_text: LoadText) -> None:
    text = "upstreams: {a: {base_url: https://a, retry: {max_attempts: 2}}, b: {base_url: https://b}}"
    first, second = load_text(text), load_text(text)
    changed = load_text(text.replace("max_attempts: 2", "max_attempts: 4"))
    assert first == second
    assert first.upstreams["a"] != changed.upstreams["a"]
    assert first.upstreams["b"] == changed.upstreams["b"]


def test_a_default_is_cut_to_the_limit_around_it_that_was_written(load_text: LoadText) -> None:
    upstreams = load_text(
        "upstreams:\n"
        "  a: {base_url: http://a, timeouts: {attempt: 1s}}\n"
        "  b: {base_url: http://b, timeouts: {deadline: 300ms}}\n"
    ).upstreams
    a, b = upstreams["a"].timeouts, upstreams["b"].timeouts
    assert (a.attempt_s, a.connect_s, a.tls_handshake_s, a.write_s, a.acquire_s) == (1.0, 1.0, 1.0, 1.0, 0.5)
    assert (b.attempt_s, b.connect_s, b.tls_handshake_s, b.write_s, b.acquire_s) == (0.3, 0.3, 0.3, 0.3, 0.3)


def test_an_adaptive_pool_gets_the_thresholds_of_the_design_unless_others_are_written(
    load_text: LoadText,
) -> None:
    upstreams = load_text(
        "defaults: {pool: {adaptive: {shrink_after: 10s}}}\n"
        "upstreams:\n"
        "  a: {base_url: http://a}\n"
        "  b: {base_url: http://b, pool: {adaptive: {min: 3, grow_when_rate: 0, connections_per_rps: 1}}}\n"
        "  c: {base_url: http://c, pool: {adaptive: null}}\n"
        "  d: {base_url: http://d, pool: {max_connections: 4}}\n"
    ).upstreams
    assert upstreams["a"].pool.adaptive == AdaptivePlan(
        min=10,
        grow_when_waiting=0.3,
        grow_when_rate=1.5,
        shrink_when_rate=0.7,
        shrink_after_s=10.0,
        rate_window_s=60.0,
        connections_per_rps=0.1,
    )
    b, d = upstreams["b"].pool.adaptive, upstreams["d"].pool.adaptive
    assert b is not None
    assert (b.min, b.grow_when_rate, b.connections_per_rps, b.shrink_after_s) == (3, 0.0, 1.0, 10.0)
    assert type(b.grow_when_rate) is float
    assert upstreams["c"].pool.adaptive is None
    assert d is not None
    assert d.min == 4  # the default, cut


def test_backoff_and_the_headers_of_retry_after_are_taken_from_file_and_environment(
    load_text: LoadText,
) -> None:
    text = (
        "defaults: {retry: {backoff: {jitter: equal}, retry_after: {headers: [{name: X-Wait}], max: 5s}}}\n"
        "upstreams:\n"
        "  a: {base_url: http://a}\n"
        "  b: {base_url: http://b, retry: {backoff: {jitter: none}, retry_after: {headers: []}}}\n"
    )
    variable = "HEADRACE_UPSTREAMS__A__RETRY__RETRY_AFTER__HEADERS"
    upstreams = load_text(text).upstreams
    a, b = upstreams["a"].retry, upstreams["b"].retry
    assert (a.backoff.jitter, b.backoff.jitter) == ("equal", "none")
    assert a.retry_after == RetryAfterPlan((RetryAfterHeader("X-Wait", "auto"),), 5.0)
    assert b.retry_after == RetryAfterPlan((), 5.0)  # a list replaces the one it inherits
    set_outside = load_text(text, env={variable: "[{name: X-Reset, format: unix_timestamp}]"})
    assert set_outside.upstreams["a"].retry.retry_after.headers == (
        RetryAfterHeader("X-Reset", "unix_timestamp"),
    )


def test_the_windows_of_the_breaker_and_its_slow_calls(load_text: LoadText) -> None:
    upstreams = load_text(
        "upstreams:\n"
        "  a: {base_url: http://a, circuit_breaker: {window: {type: count}}}\n"
        "  b: {base_url: http://b, circuit_breaker: {window: {type: count, size: 8192, max_age: 1s}}}\n"
        "  c: {base_url: http://c, circuit_breaker: {window: {type: time, size: 30s}, slow_call: {duration: 2s}}}\n"
        "  d: {base_url: http://d, circuit_breaker: {half_open: {ramp: 30s}, slow_call: {rate_threshold: 0.5}}}\n"
    ).upstreams
    a, b, c, d = (upstreams[name].circuit_breaker for name in "abcd")
    assert a.window == CountWindowPlan(size=100, max_age_s=None)
    assert b.window == CountWindowPlan(size=8192, max_age_s=1.0)
    assert (c.window, c.slow_call) == (TimeWindowPlan(size_s=30.0), SlowCallPlan(2.0, 1.0))
    assert (d.half_open.ramp_s, d.slow_call) == (30.0, SlowCallPlan(None, 0.5))


def test_the_default_minimum_of_calls_is_cut_to_a_window_of_fewer(load_text: LoadText) -> None:
    upstreams = load_text(
        "upstreams:\n"
        "  a: {base_url: http://a, circuit_breaker: {window: {type: count, size: 10}}}\n"
        "  b: {base_url: http://b, circuit_breaker: {window: {type: count, size: 10}, minimum_calls: 4}}\n"
    ).upstreams
    assert [plan.circuit_breaker.minimum_calls for plan in upstreams.values()] == [10, 4]


def test_a_probe_may_take_as_long_as_its_call_unless_its_limit_is_given(load_text: LoadText) -> None:
    """`attempt` ends with the head: less would fail the probe that reads a long good body."""
    upstreams = load_text(
        "upstreams:\n  a: {base_url: http://a, timeouts: {attempt: 3s, deadline: 20s}}\n"
        "  b: {base_url: http://b, timeouts: {attempt: 3s, deadline: null}}\n"
        "  c: {base_url: http://c, timeouts: {attempt: 3s, deadline: 4s}}\n"
        "  d: {base_url: http://d, circuit_breaker: {half_open: {probe_timeout: 5s}}}\n"
    ).upstreams
    limits = [plan.circuit_breaker.half_open.probe_timeout_s for plan in upstreams.values()]
    assert limits == [20.0, 6.0, 6.0, 5.0]


def tls_file(folder: Path, tls: str) -> str:
    (folder / "u.yaml").write_text(f"upstreams: {{a: {{base_url: https://a, tls: {tls}}}}}")
    return "u.yaml"


def test_fingerprint_follows_the_bytes_of_the_tls_files(tmp_path: Path) -> None:
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (tmp_path / name).write_text(name)
    file = tls_file(tmp_path, "{ca: ca.pem, cert: cert.pem, key: key.pem}")
    fingerprints = []
    for name in (None, "ca.pem", "cert.pem", "key.pem"):
        if name is not None:
            (tmp_path / name).write_text("rotated")
        configuration = load(file, env={}, cwd=tmp_path)
        tls = configuration.upstreams["a"].tls
        assert tls is not None
        fingerprints.append(tls.fingerprint)
        assert configuration.watched == tuple(
            str(tmp_path / name) for name in ("u.yaml", "ca.pem", "cert.pem", "key.pem")
        )
    assert len(set(fingerprints)) == 4


def test_ca_may_be_a_directory(tmp_path: Path) -> None:
    (tmp_path / "cas").mkdir()
    (tmp_path / "cas" / "one.pem").write_text("1")
    file = tls_file(tmp_path, "{ca: cas}")
    one = load(file, env={}, cwd=tmp_path).upstreams["a"].tls
    (tmp_path / "cas" / "two.pem").write_text("2")
    two = load(file, env={}, cwd=tmp_path).upstreams["a"].tls
    assert one is not None
    assert two is not None
    assert one.ca == str(tmp_path / "cas")
    assert one.fingerprint != two.fingerprint


@pytest.mark.parametrize(
    ("env", "ca"),
    [
        ({}, None),
        ({"SSL_CERT_FILE": "c"}, "c"),
        ({"SSL_CERT_FILE": "c", "CURL_CA_BUNDLE": "b"}, "b"),
        ({"SSL_CERT_FILE": "c", "CURL_CA_BUNDLE": "b", "REQUESTS_CA_BUNDLE": "a"}, "a"),
        ({"REQUESTS_CA_BUNDLE": ""}, None),
    ],
    ids=["none", "ssl", "curl", "requests", "empty"],
)
def test_ca_null_follows_the_variables_that_requests_and_openssl_know(
    tmp_path: Path, env: dict[str, str], ca: str | None
) -> None:
    for name in "abc":
        (tmp_path / name).write_text(name)
    tls = load(tls_file(tmp_path, "{}"), env=env, cwd=tmp_path).upstreams["a"].tls
    assert tls is not None
    assert tls.ca == (None if ca is None else str(tmp_path / ca))


def test_variable_that_names_no_bundle_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^environment REQUESTS_CA_BUNDLE\n    names the CA bundle nope, which does not"
    ):
        load(tls_file(tmp_path, "{}"), env={"REQUESTS_CA_BUNDLE": "nope"}, cwd=tmp_path)


def test_given_ca_wins_over_the_variables(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("-")
    tls = (
        load(tls_file(tmp_path, "{ca: ca.pem}"), env={"REQUESTS_CA_BUNDLE": "nope"}, cwd=tmp_path)
        .upstreams["a"]
        .tls
    )
    assert tls is not None
    assert tls.ca == str(tmp_path / "ca.pem")


def test_a_directory_of_cas_is_read_without_what_lies_below_it_and_has_its_limit(tmp_path: Path) -> None:
    (tmp_path / "cas" / "below").mkdir(parents=True)
    (tmp_path / "cas" / "ca.pem").write_text("a")
    file = tls_file(tmp_path, "{ca: cas}")
    first = load(file, env={}, cwd=tmp_path)
    (tmp_path / "cas" / "below" / "other.pem").write_text("b")
    assert load(file, env={}, cwd=tmp_path).upstreams == first.upstreams

    for number in range(MAX_DIRECTORY_FILES):
        (tmp_path / "cas" / f"{number}.pem").touch()
    with pytest.raises(ConfigError, match=f"has more than {MAX_DIRECTORY_FILES} files"):
        load(file, env={}, cwd=tmp_path)


def test_ever_so_many_lists_of_words_are_each_compiled_to_their_own_outcomes(load_text: LoadText) -> None:
    upstreams = "".join(
        f"  u{status}: {{base_url: 'http://u{status}', retry: {{retry_on: [{status}]}}}}\n"
        for status in range(100, 600)
    )
    for plan in load_text(f"upstreams:\n{upstreams}").upstreams.values():
        assert plan.retry.retry_on == condition([int(plan.name[1:])])


def test_defaults_for_tls_do_not_hurt_http_upstreams(load_text: LoadText) -> None:
    upstreams = load_text(
        "defaults: {tls: {min_version: '1.3'}}\nupstreams: {a: {base_url: http://a}, b: {base_url: https://b}}"
    ).upstreams
    assert upstreams["a"].tls is None
    assert upstreams["b"].tls is not None


def test_python_work_grows_by_a_few_calls_per_value_not_more(tmp_path: Path) -> None:
    """A thousand upstreams compile in about a second; counted here, for time on a busy machine proves nothing."""

    def calls(upstreams: int) -> int:
        one = (
            "  u{0}:\n    base_url: https://u{0}.internal/v2\n    timeouts: {{deadline: 10s, attempt: 3s}}\n"
            "    retry: {{max_attempts: 2, retry_on: [network, 503]}}\n    pool: {{max_connections: 50}}"
        )
        text = "\n".join(["upstreams:", *(one.format(number) for number in range(upstreams))])
        (tmp_path / "u.yaml").write_text(text)
        count = 0

        def profile(frame: object, event: str, argument: object) -> None:
            nonlocal count
            count += event == "call"

        sys.setprofile(profile)
        try:
            load("u.yaml", env={}, cwd=tmp_path)
        finally:
            sys.setprofile(None)
        return count

    calls(1)  # what is built once in a process
    few, many = calls(20), calls(120)
    assert (many - few) / 100 < 640  # 3.11 counts comprehensions, too: 602 there
