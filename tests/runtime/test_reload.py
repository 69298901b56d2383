"""Reload by hand and by watching: real files, real calls, the whole file or nothing."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from prometheus_client import CollectorRegistry

import headrace
from headrace.runtime import reload as reload_module
from support.faultserver import Answer, Endless, FaultServer
from support.governed import rules, running
from support.waiting import wait_until

QUICK = "reload: {debounce: 20ms, max_delay: 200ms, poll: 500ms, drain: 1s}\n"


def two(first: str, second: str, body: str = "") -> str:
    return (
        f"version: 1\n{QUICK}upstreams:\n"
        f"  billing: {{base_url: '{first}'{body}}}\n  inventory: {{base_url: '{second}'}}\n"
    )


def put(file: Path, text: str) -> None:
    """Replace *file* as editors and deployments do: atomically."""
    fresh = file.with_suffix(".new")
    fresh.write_text(text)
    os.replace(fresh, file)


def test_an_unchanged_upstream_keeps_the_very_same_objects_and_a_changed_one_gets_a_new_plan(
    tmp_path: Path,
) -> None:
    with running(tmp_path, two("http://a.test", "http://b.test")) as hr:
        before = hr.snapshot
        put(tmp_path / "upstreams.yaml", two("http://a.test", "http://b.test", ", timeouts: {attempt: 3s}"))

        assert hr.reload() == "applied"

        after = hr.snapshot
        assert after.upstream("inventory").plan is before.upstream("inventory").plan
        for name in ("inventory", "billing"):
            assert after.upstream(name).learned is before.upstream(name).learned
            assert after.upstream(name).endpoint is before.upstream(name).endpoint
        assert after.upstream("billing").plan.timeouts.attempt_s == 3
        assert before.upstream("billing").plan.timeouts.attempt_s == 4


def test_an_edit_is_in_force_without_asking(tmp_path: Path) -> None:
    """A reload that does reload.

    failures.md 41.
    """
    with running(tmp_path, two("http://a.test", "http://b.test")) as hr:
        put(tmp_path / "upstreams.yaml", two("http://a.test", "http://b.test", ", timeouts: {attempt: 3s}"))

        wait_until(lambda: hr.snapshot.upstream("billing").plan.timeouts.attempt_s == 3)


def test_a_bad_edit_changes_nothing_and_the_next_good_one_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The watching survives any number of bad files.

    failures.md 36.
    """
    file = tmp_path / "upstreams.yaml"
    with running(tmp_path, two("http://a.test", "http://b.test")) as hr:
        before = hr.snapshot
        for number in range(3):
            put(file, two("http://a.test", "http://b.test", f", timeouts: {{atempt: {number}s}}"))
            wait_until(lambda want=number + 1: hr.status()["reloads"].get("rejected") == want)
            assert hr.snapshot is before
        refused = hr.status()["rejected"]
        assert "upstreams.yaml:" in refused["problems"]
        assert "timeouts.atempt" in refused["problems"]
        assert "attempt" in refused["problems"]

        put(file, two("http://a.test", "http://b.test", ", timeouts: {attempt: 3s}"))
        wait_until(lambda: hr.snapshot is not before)

        assert hr.status()["rejected"] is None
        rejected = [record for record in caplog.records if getattr(record, "event", "") == "config.rejected"]
        assert len(rejected) == 3
        assert rejected[0].levelno == logging.ERROR


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda file: file.write_bytes(b""), id="empty"),
        pytest.param(lambda file: file.unlink(), id="missing"),
        pytest.param(lambda file: file.write_text(two("http://a.test", "http://b.test")[:-9]), id="torn"),
        pytest.param(lambda file: file.write_text("version: 1\n"), id="no upstreams"),
        pytest.param(lambda file: file.write_text("version: 1\nupstreams: {}\n"), id="empty upstreams"),
    ],
)
def test_a_damaged_file_is_a_failure_and_never_no_upstreams(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    """Nothing is dropped because a file was caught half written.

    failures.md 38.
    """
    with running(tmp_path, two("http://a.test", "http://b.test")) as hr:
        before = hr.snapshot
        damage(tmp_path / "upstreams.yaml")

        with pytest.raises(headrace.ConfigError) as caught:
            hr.reload()

        assert caught.value.problems
        assert hr.snapshot is before


def test_a_refused_edit_is_taken_as_soon_as_the_file_it_refers_to_arrives(tmp_path: Path) -> None:
    with running(tmp_path, two("http://a.test", "http://b.test")) as hr:
        secret = tmp_path / "token"
        put(
            tmp_path / "upstreams.yaml",
            two("http://a.test", "http://b.test", f", headers: {{X-Token: '${{file:{secret}}}'}}"),
        )
        wait_until(lambda: hr.status()["rejected"] is not None)

        secret.write_text("s3cret")

        wait_until(lambda: hr.snapshot.upstream("billing").plan.headers == (("X-Token", "s3cret"),))


def test_a_refused_reload_raises_by_hand_and_says_where(tmp_path: Path) -> None:
    with running(tmp_path, two("http://a.test", "http://b.test")) as hr:
        put(
            tmp_path / "upstreams.yaml",
            two("http://a.test", "http://b.test", ", retry: {max_attempts: three}"),
        )

        with pytest.raises(
            headrace.ConfigError, match=r"upstreams.yaml:4:\d+: upstreams.billing.retry.max_attempts"
        ):
            hr.reload()


def test_an_edit_of_only_a_comment_swaps_nothing_that_is_in_use(tmp_path: Path) -> None:
    with running(tmp_path, two("http://a.test", "http://b.test")) as hr:
        before = hr.snapshot.upstream("billing")
        put(tmp_path / "upstreams.yaml", two("http://a.test", "http://b.test") + "# a word\n")

        hr.reload()

        after = hr.snapshot.upstream("billing")
        assert after.learned is before.learned
        assert after.endpoint is before.endpoint


def test_a_file_that_drops_most_upstreams_has_to_stand_before_it_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload_module, "HOLD_S", 2.0)
    many = f"version: 1\n{QUICK}upstreams:\n" + "".join(
        f"  u{n}: {{base_url: 'http://u{n}.test'}}\n" for n in range(4)
    )
    one = f"version: 1\n{QUICK}upstreams:\n  u0: {{base_url: 'http://u0.test'}}\n"
    with running(tmp_path, many) as hr:
        began = time.monotonic()
        put(tmp_path / "upstreams.yaml", one)
        wait_until(lambda: hr.status()["held"])
        assert len(hr.snapshot.upstreams) == 4

        wait_until(lambda: len(hr.snapshot.upstreams) == 1)

        assert time.monotonic() - began >= 2.0
        assert not hr.status()["held"]


def test_a_held_file_that_is_put_right_again_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload_module, "HOLD_S", 60.0)
    many = f"version: 1\n{QUICK}upstreams:\n" + "".join(
        f"  u{n}: {{base_url: 'http://u{n}.test'}}\n" for n in range(4)
    )
    with running(tmp_path, many) as hr:
        before = hr.snapshot
        put(
            tmp_path / "upstreams.yaml",
            f"version: 1\n{QUICK}upstreams:\n  u0: {{base_url: 'http://u0.test'}}\n",
        )
        wait_until(lambda: hr.status()["held"])
        put(tmp_path / "upstreams.yaml", many)

        wait_until(lambda: not hr.status()["held"])

        assert hr.snapshot is before


def test_no_call_fails_while_the_file_is_edited_under_load(tmp_path: Path) -> None:
    with FaultServer() as a, FaultServer() as b, running(tmp_path, two(a.url, b.url)) as hr:
        failures: list[BaseException] = []
        ended = threading.Event()

        def work(url: str) -> None:
            with requests.Session() as session:
                while not ended.is_set():
                    try:
                        session.get(url).raise_for_status()
                    except Exception as error:
                        failures.append(error)
                        return

        threads = [threading.Thread(target=work, args=(url,)) for url in (a.url, b.url) for _ in range(4)]
        for thread in threads:
            thread.start()
        for turn in range(1, 21):
            put(
                tmp_path / "upstreams.yaml",
                two(a.url, b.url, f", timeouts: {{attempt: {20 + turn % 2}s, deadline: 60s}}"),
            )
            hr.reload()  # or the watcher was faster
            time.sleep(0.02)
        ended.set()
        for thread in threads:
            thread.join(10)

        assert failures == []
        assert b.connections <= 4  # the unchanged upstream kept its warm connections


OTHER_POOL = ", pool: {tcp_keepalive: {idle: 30s}}"  # a pool that exists cannot follow it


def test_a_stream_over_a_replaced_pool_is_read_to_its_end_and_the_pool_stopped_after_the_drain(
    tmp_path: Path,
) -> None:
    with FaultServer() as server, running(tmp_path, two(server.url, "http://b.test")) as hr:
        server.always(Answer(body=b"x" * 100_000))
        old = hr.snapshot.upstream("billing").endpoint.pool.leases
        with requests.get(server.url, stream=True) as response:
            put(tmp_path / "upstreams.yaml", two(server.url, "http://b.test", OTHER_POOL))
            hr.reload()
            assert old.retired
            assert not old.stopped
            assert len(response.content) == 100_000
        assert (old.view().inuse, old.view().idle) == (0, 0)  # closed when it came back
        wait_until(lambda: old.stopped)


def test_the_streams_of_an_upstream_that_did_not_change_outlive_the_drains_of_the_others(
    tmp_path: Path,
) -> None:
    """failures.md 42."""
    with FaultServer() as server, FaultServer() as other:
        text = f"version: 1\n{QUICK.replace('drain: 1s', 'drain: 50ms')}upstreams:\n"
        text += f"  billing: {{base_url: '{server.url}'}}\n  inventory: {{base_url: '{other.url}'%s}}\n"
        with running(tmp_path, text % "") as hr:
            server.always(
                Endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", pause_s=0.02)
            )
            with requests.get(server.url, stream=True) as stream:
                pieces = stream.iter_content(1)
                for more in (OTHER_POOL, ""):
                    replaced = hr.snapshot.upstream("inventory").endpoint.pool.leases
                    put(tmp_path / "upstreams.yaml", text % more)
                    assert hr.reload() == "applied"
                    wait_until(lambda leases=replaced: leases.stopped)  # type: ignore[misc]
                    assert hr.snapshot.upstream("billing").endpoint.pool.leases.view().inuse == 1
                    before = time.monotonic()
                    while time.monotonic() < before + 0.2:  # longer than what has arrived can last
                        assert next(pieces) == b"x"


def test_a_stream_that_outlives_the_drain_is_cut(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, two(server.url, "http://b.test")) as hr:
        server.always(Answer(body=b"x" * 9, drip_body_s=2.0))
        with requests.get(server.url, stream=True) as response:
            put(tmp_path / "upstreams.yaml", two(server.url, "http://b.test", OTHER_POOL))
            hr.reload()

            with pytest.raises(requests.exceptions.ChunkedEncodingError):
                response.content  # noqa: B018


def test_a_handle_follows_reloads_and_says_when_its_name_has_left(tmp_path: Path) -> None:
    with FaultServer() as a, FaultServer() as b, running(tmp_path, two(a.url, b.url)) as hr:
        handle = hr.upstream("inventory")
        assert handle.get("/x").status_code == 200
        put(tmp_path / "upstreams.yaml", rules(a.url))
        hr.reload()

        with pytest.raises(
            headrace.UnknownUpstream, match='"inventory" is not in the configuration in force'
        ):
            handle.get("/x")


def test_counters_of_a_changed_upstream_go_on(tmp_path: Path) -> None:
    with FaultServer() as server, running(tmp_path, two(server.url, "http://b.test")) as hr:
        requests.get(server.url)
        put(tmp_path / "upstreams.yaml", two(server.url, "http://b.test", ", timeouts: {attempt: 3s}"))
        hr.reload()
        requests.get(server.url)

        assert hr.status()["upstreams"]["billing"]["requests"] == {"2xx": 2}


def test_a_rotated_certificate_file_is_followed_and_a_broken_one_is_told(tmp_path: Path) -> None:
    import trustme

    ca = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(ca))
    text = two("https://a.test", "http://b.test", f", tls: {{ca: '{ca}'}}")
    with running(tmp_path, text) as hr:
        before = hr.snapshot.upstream("billing").endpoint
        trustme.CA().cert_pem.write_to_path(str(tmp_path / "new.pem"))
        os.replace(tmp_path / "new.pem", ca)

        def told() -> dict[str, Any]:
            return hr.status()["upstreams"]["billing"]["tls"]  # type: ignore[no-any-return]

        wait_until(lambda: hr.status()["upstreams"]["billing"]["rotations"] == {"taken": 1})
        assert hr.snapshot.upstream("billing").endpoint is before

        ca.write_text("not a certificate")
        wait_until(lambda: told()["refused"] is not None)
        assert "ca.pem" in told()["refused"]["reason"]
        assert hr.status()["rejected"] is None


def test_what_is_wrong_with_a_certificate_is_a_problem_as_any_other(tmp_path: Path) -> None:
    """It comes to light when the pools are built: the file itself is good."""
    import trustme

    pairs = [trustme.CA().issue_cert("a.test") for _ in range(2)]
    pairs[0].cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    pairs[1].private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    file = tmp_path / "upstreams.yaml"
    tls = f", tls: {{cert: '{tmp_path}/cert.pem', key: '{tmp_path}/key.pem'}}"
    file.write_text(two("https://a.test", "http://b.test", tls))

    with pytest.raises(headrace.ConfigError) as caught:
        headrace.Headrace(file)

    (problem,) = caught.value.problems
    assert (problem.file, problem.line, problem.path) == (str(file), 0, "")
    assert problem.message == str(caught.value)
    assert "key.pem" in problem.message


def test_the_constructor_starts_nothing_and_a_bad_file_stops_the_boot(tmp_path: Path) -> None:
    file = tmp_path / "upstreams.yaml"
    file.write_text(two("http://a.test", "http://b.test"))
    threads = threading.active_count()
    send = requests.adapters.HTTPAdapter.send

    headrace.Headrace(file)

    assert threading.active_count() == threads
    assert requests.adapters.HTTPAdapter.send is send
    file.write_text("upstreams: [")
    with pytest.raises(headrace.ConfigError):
        headrace.Headrace(file)


def test_a_closed_instance_starts_over_from_its_files(tmp_path: Path) -> None:
    with FaultServer() as server:
        (tmp_path / "upstreams.yaml").write_text(rules(server.url))
        hr = headrace.Headrace(tmp_path / "upstreams.yaml", registry=CollectorRegistry())
        for _ in range(2):
            with hr:
                assert requests.get(server.url).headrace.upstream == "billing"
            assert not hasattr(requests.get(server.url), "headrace")
            with pytest.raises(headrace.HeadraceError, match="closed"):
                hr.upstream("billing").get("/")


@pytest.mark.parametrize("mode", ["off", "observe"])
def test_headrace_mode_overrides_every_rule_loudly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    monkeypatch.setenv("HEADRACE_MODE", mode)
    body = "    timeouts: {attempt: 100ms, read: 100ms, connect: 100ms}\n    retry: {max_attempts: 1}\n"
    with FaultServer() as server, running(tmp_path, rules(server.url, body)) as hr:
        server.always(Answer(delay_s=0.2))

        assert requests.get(server.url).status_code == 200  # longer than the rule allows

        assert hr.status()["mode_override"] == mode
        assert [
            record for record in caplog.records if getattr(record, "event", "") == "headrace.mode_overridden"
        ]
        seen = hr.status()["upstreams"]["billing"]["observed"]
        assert seen == ({"timed_out": 1} if mode == "observe" else {})
