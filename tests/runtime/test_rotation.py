"""Client certificates, keys and CAs whose files have other contents: followed without a failed call, or refused."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
import trustme

import headrace
from headrace.clock import monotonic
from support.faultserver import Answer, FaultServer, server_context
from support.governed import rules, running
from support.pairs import WAYS, Files, Pair, Volume, issue, seen_by
from support.powers import permissions_count
from support.rotations import rotate_under_traffic
from support.waiting import wait_until

ONCE = "    retry: {max_attempts: 1}\n"


@pytest.fixture
def server(authority: trustme.CA) -> Iterator[FaultServer]:
    """One that demands a client certificate of the authority."""
    with FaultServer(tls=server_context(authority, client_ca=authority)) as server:
        yield server


@pytest.fixture
def files(authority: trustme.CA, tmp_path: Path) -> Files:
    (tmp_path / "pair").mkdir()
    return Files(tmp_path / "pair", issue(authority))


def tls(files: Files, ca: Path, *more: str, body: str = ONCE) -> str:
    return f"    tls: {{ca: '{ca}', {files.yaml(*more)}}}\n{body}"


@contextmanager
def governed(tmp_path: Path, server: FaultServer, body: str, top: str = "") -> Iterator[headrace.Headrace]:
    with running(tmp_path, rules(server.url, body) + top) as hr:
        yield hr


def state(hr: headrace.Headrace) -> dict[str, object]:
    return hr.status()["upstreams"]["billing"]["tls"]  # type: ignore[no-any-return]


def counted(hr: headrace.Headrace) -> dict[str, int]:
    return hr.status()["upstreams"]["billing"]["rotations"]  # type: ignore[no-any-return]


def pool(hr: headrace.Headrace) -> dict[str, object]:
    return hr.status()["upstreams"]["billing"]["pool"]  # type: ignore[no-any-return]


def test_the_pool_follows_and_nothing_is_built_anew(
    tmp_path: Path, server: FaultServer, files: Files, ca: Path, authority: trustme.CA
) -> None:
    """failures.md 33."""
    first = Pair(files.cert.read_bytes(), files.key.read_bytes())
    with governed(tmp_path, server, tls(files, ca)) as hr:
        before = hr.snapshot.upstream("billing")
        assert requests.get(server.url).status_code == 200
        new = issue(authority)
        files.rename(new)
        hr.reload()
        assert requests.get(server.url).status_code == 200

        after = hr.snapshot.upstream("billing")
        assert seen_by(server) == [first.serial, new.serial]
        assert (after.endpoint, after.learned) == (before.endpoint, before.learned)
        assert pool(hr)["closed"] == {"rotated": 1}
        assert counted(hr) == {"taken": 1}


def test_a_connection_in_use_is_closed_when_it_comes_back_and_never_lent_again(
    tmp_path: Path, server: FaultServer, files: Files, ca: Path, authority: trustme.CA
) -> None:
    held = threading.Event()
    server.next(lambda _: Answer(200) if held.wait(20) else Answer(500))
    with governed(tmp_path, server, tls(files, ca)) as hr:
        found: list[int] = []
        call = threading.Thread(target=lambda: found.append(requests.get(server.url).status_code))
        call.start()
        server.wait_for(lambda: len(server.requests) == 1)
        new = issue(authority)
        files.rename(new)
        hr.reload()
        assert requests.get(server.url).status_code == 200
        held.set()
        call.join(20)

        assert found == [200]
        assert seen_by(server)[1:] == [new.serial]
        wait_until(lambda: pool(hr)["closed"] == {"rotated": 1})
        assert (pool(hr)["inuse"], pool(hr)["idle"]) == (0, 1)


def test_what_is_still_in_use_after_the_drain_is_broken_off_and_blamed_on_nobody(
    tmp_path: Path, server: FaultServer, files: Files, ca: Path, authority: trustme.CA
) -> None:
    held = threading.Event()
    server.next(lambda _: Answer(200) if held.wait(20) else Answer(500))
    body = tls(files, ca, "rotation_drain: 100ms")
    with governed(tmp_path, server, body) as hr:
        found: list[Exception] = []

        def call() -> None:
            try:
                requests.get(server.url)
            except requests.ConnectionError as error:
                found.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        server.wait_for(lambda: len(server.requests) == 1)
        files.rename(issue(authority))
        hr.reload()
        thread.join(20)
        held.set()

        assert len(found) == 1
        assert pool(hr)["closed"] == {"rotated": 1}
        assert hr.status()["upstreams"]["billing"]["circuit_breaker"]["failures"] == 0


@pytest.mark.parametrize("poll", [pytest.param(False, id="events"), pytest.param(True, id="polled")])
@pytest.mark.parametrize("way", [*WAYS])
def test_however_it_is_written_it_is_taken_within_a_moment_and_no_call_fails(
    tmp_path: Path,
    server: FaultServer,
    files: Files,
    ca: Path,
    authority: trustme.CA,
    way: str,
    poll: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if poll:
        monkeypatch.setattr("headrace.runtime.watch.watcher.Observer", None)
    files.pause_s = 0.3
    top = "reload: {debounce: 10ms, max_delay: 50ms, poll: 50ms}\n"
    with governed(tmp_path, server, tls(files, ca), top) as hr, traffic(server.url) as failed:
        for _ in range(2):
            new = issue(authority)
            WAYS[way](files, new)
            wait_until(lambda new=new: seen_by(server)[-1:] == [new.serial])  # type: ignore[misc]
        wait_until(lambda: state(hr)["refused"] is None)  # the reload that made it so may still be under way
    assert failed == []
    assert [one for one in caplog.records if one.levelno >= logging.ERROR] == []


def test_the_swap_of_a_volume_is_followed(
    tmp_path: Path, server: FaultServer, ca: Path, authority: trustme.CA
) -> None:
    volume = Volume(tmp_path / "volume", issue(authority))
    with governed(tmp_path, server, tls(volume, ca)), traffic(server.url) as failed:
        for _ in range(3):
            new = issue(authority)
            volume.swap(new)
            wait_until(lambda new=new: seen_by(server)[-1:] == [new.serial])  # type: ignore[misc]
    assert failed == []


@contextmanager
def traffic(url: str, threads: int = 2) -> Iterator[list[Exception]]:
    """Calls by requests, one after the other, in some threads; the errors that they end with."""
    over, failed = threading.Event(), []

    def call() -> None:
        with requests.Session() as session:
            while not over.is_set():
                try:
                    session.get(url).raise_for_status()
                except Exception as error:
                    failed.append(error)
                over.wait(0.005)

    running = [threading.Thread(target=call) for _ in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield failed
    finally:
        over.set()
        for thread in running:
            thread.join()


def break_with_other_key(files: Files, authority: trustme.CA) -> None:
    files.key.write_bytes(issue(authority).key)


def break_by_removal(files: Files, authority: trustme.CA) -> None:
    files.cert.unlink()


def break_by_expiry(files: Files, authority: trustme.CA) -> None:
    files.rename(issue(authority, days=-1))


def break_by_cutting(files: Files, authority: trustme.CA) -> None:
    files.key.write_bytes(files.key.read_bytes()[:60])


def break_by_permission(files: Files, authority: trustme.CA) -> None:
    files.key.chmod(0)


@pytest.mark.parametrize(
    ("breaks", "words"),
    [
        pytest.param(break_with_other_key, "does not belong", id="of two pairs"),
        pytest.param(break_by_removal, "does not exist", id="gone"),
        pytest.param(break_by_expiry, "has expired", id="expired"),
        pytest.param(break_by_cutting, "ends within", id="cut off"),
        pytest.param(break_by_permission, "may not be read by this user", id="not to be read any more"),
    ],
)
def test_what_cannot_be_taken_keeps_the_last_good_pair_while_the_rest_of_the_edit_takes_force(
    tmp_path: Path,
    server: FaultServer,
    files: Files,
    ca: Path,
    authority: trustme.CA,
    caplog: pytest.LogCaptureFixture,
    breaks: object,
    words: str,
) -> None:
    """failures.md 33, 35."""
    assert callable(breaks)
    first = Pair(files.cert.read_bytes(), files.key.read_bytes())
    with permissions_count(), governed(tmp_path, server, tls(files, ca)) as hr:
        requests.get(server.url)
        shown = state(hr)["certificate"]
        breaks(files, authority)
        Path(hr.files[0]).write_text(rules(server.url, tls(files, ca) + "    timeouts: {attempt: 3s}\n"))
        hr.reload()

        assert hr.snapshot.upstream("billing").plan.timeouts.attempt_s == 3.0
        assert hr.status()["rejected"] is None
        refused = state(hr)["refused"]
        assert isinstance(refused, dict)
        assert words in refused["reason"]
        assert state(hr)["certificate"] == shown
        assert requests.get(server.url).status_code == 200
        assert set(seen_by(server)) == {first.serial}
        assert pool(hr)["closed"] == {}, "nothing was rotated"
        assert [
            one for one in caplog.records if one.name == "headrace" and one.levelno >= logging.ERROR
        ] == []
        wait_until(lambda: any(one.levelno == logging.ERROR for one in caplog.records))
        (told,) = [one for one in caplog.records if one.levelno == logging.ERROR]
        assert counted(hr) == {"refused": 1}
        assert words in told.getMessage()
        assert str(shown) in told.getMessage()

        files.rename(new := issue(authority))
        wait_until(lambda: state(hr)["refused"] is None)
        requests.get(server.url)
        assert seen_by(server)[-1] == new.serial
        assert counted(hr) == {"refused": 1, "taken": 1}


def test_an_expired_pair_takes_the_place_of_one_that_has_expired_too(
    tmp_path: Path, files: Files, ca: Path, authority: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    files.rename(issue(authority, days=-2))
    with (
        FaultServer(tls=server_context(authority)) as server,
        governed(tmp_path, server, tls(files, ca)) as hr,
    ):
        assert "has expired on" in caplog.text
        before = state(hr)["certificate"]
        files.rename(issue(authority, days=-1))
        hr.reload()
        assert state(hr)["certificate"] != before
        assert state(hr)["refused"] is None


def test_new_paths_that_hold_nothing_good_are_refused_as_a_whole(
    tmp_path: Path, server: FaultServer, files: Files, ca: Path, authority: trustme.CA
) -> None:
    """failures.md 35."""
    with governed(tmp_path, server, tls(files, ca)) as hr:
        before = hr.snapshot
        (tmp_path / "other").mkdir()
        other = Files(tmp_path / "other", Pair(issue(authority).cert, issue(authority).key))
        Path(hr.files[0]).write_text(rules(server.url, tls(other, ca)))
        with pytest.raises(headrace.ConfigError, match="does not belong"):
            hr.reload()
        assert hr.snapshot is before


def test_a_ca_that_was_replaced_is_not_trusted_by_connections_made_under_it(
    tmp_path: Path, authority: trustme.CA, ca: Path
) -> None:
    stranger = trustme.CA()
    with FaultServer(tls=server_context(authority)) as server:
        with governed(tmp_path, server, f"    tls: {{ca: '{ca}'}}\n{ONCE}") as hr:
            assert requests.get(server.url).status_code == 200
            stranger.cert_pem.write_to_path(str(ca))
            hr.reload()
            assert pool(hr)["idle"] == 0
            with pytest.raises(requests.exceptions.SSLError):
                requests.get(server.url)
            ca.write_bytes(authority.cert_pem.bytes())
            hr.reload()
            assert requests.get(server.url).status_code == 200


def test_upstreams_with_one_policy_all_follow_with_one_context(
    tmp_path: Path, server: FaultServer, files: Files, ca: Path, authority: trustme.CA
) -> None:
    text = f"""version: 1
defaults:
  retry: {{max_attempts: 1}}
  tls: {{ca: '{ca}', {files.yaml()}}}
upstreams:
  one: {{base_url: '{server.url}/one'}}
  two: {{base_url: '{server.url}/two'}}
  plain: {{base_url: 'http://plain.test'}}
"""
    with running(tmp_path, text) as hr:
        for path in ("one", "two"):
            requests.get(f"{server.url}/{path}")
        files.rename(new := issue(authority))
        hr.reload()
        for path in ("one", "two"):
            requests.get(f"{server.url}/{path}")
        assert seen_by(server)[2:] == [new.serial] * 2
        materials = [hr.snapshot.upstream(name).material for name in ("one", "two")]
        assert materials[0] is not None
        assert materials[1] is not None
        assert materials[0].context is materials[1].context
        assert hr.status()["upstreams"]["plain"]["tls"] is None


def test_a_call_under_an_old_snapshot_dials_with_the_new_certificate(
    tmp_path: Path, server: FaultServer, files: Files, ca: Path, authority: trustme.CA
) -> None:
    """Its pool may even be one that drains, since the same edit has given the upstream another."""
    with governed(tmp_path, server, tls(files, ca)) as hr:
        old = hr.snapshot.upstream("billing")
        requests.get(server.url)
        files.rename(new := issue(authority))
        keepalive = "    pool: {tcp_keepalive: {idle: 60s, interval: 10s, count: 3}}\n"
        Path(hr.files[0]).write_text(rules(server.url, tls(files, ca) + keepalive))
        hr.reload()
        assert hr.snapshot.upstream("billing").endpoint.pool is not old.endpoint.pool
        old.endpoint.pool.urlopen("GET", "/", retries=False)
        files.rename(newest := issue(authority))
        hr.reload()
        old.endpoint.pool.urlopen("GET", "/", retries=False)
        assert seen_by(server)[1:] == [new.serial, newest.serial]


def test_a_start_after_a_close_with_a_broken_pair_goes_on_with_the_last_good_one(
    tmp_path: Path, server: FaultServer, files: Files, ca: Path, authority: trustme.CA
) -> None:
    with governed(tmp_path, server, tls(files, ca)) as hr:
        requests.get(server.url)
        hr.close()
        break_with_other_key(files, authority)
        hr.start()
        assert requests.get(server.url).status_code == 200
        assert state(hr)["refused"] is not None
        files.rename(new := issue(authority))
        hr.reload()
        requests.get(server.url)
        assert seen_by(server)[-1] == new.serial


def test_a_suspended_instance_takes_what_was_rotated_meanwhile(
    tmp_path: Path, server: FaultServer, files: Files, ca: Path, authority: trustme.CA
) -> None:
    with governed(tmp_path, server, tls(files, ca)) as hr:
        requests.get(server.url)
        hr.suspend()
        files.rename(new := issue(authority))
        hr.start()
        requests.get(server.url)
        assert seen_by(server)[-1] == new.serial


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_rotates_by_itself_and_leaves_the_parents_connections_alone(
    tmp_path: Path, server: FaultServer, files: Files, ca: Path, authority: trustme.CA
) -> None:
    """failures.md 26, 33."""
    with governed(tmp_path, server, tls(files, ca)) as hr:
        requests.get(server.url)
        new = issue(authority)
        child = os.fork()
        if child == 0:
            try:
                files.rename(new)
                hr.reload()
                code = requests.get(server.url).status_code
            finally:
                os._exit(0 if code == 200 else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert seen_by(server)[-1] == new.serial
        wait_until(lambda: counted(hr) == {"taken": 1})
        requests.get(server.url)
        assert seen_by(server)[-1] == new.serial


def test_a_pair_written_without_end_is_never_half_taken(
    tmp_path: Path, server: FaultServer, files: Files, ca: Path, authority: trustme.CA
) -> None:
    """What OpenSSL has loaded is what was read before, whoever writes in between."""
    pairs = [issue(authority) for _ in range(2)]
    over = threading.Event()

    def write() -> None:
        while not over.is_set():
            for pair in pairs:
                files.rename(pair)

    with governed(tmp_path, server, tls(files, ca)) as hr:
        writer = threading.Thread(target=write)
        writer.start()
        try:
            looked_at = 0
            while looked_at < 20:
                hr.reload()
                client = hr.snapshot.upstream("billing").endpoint.tls
                assert client is not None
                plan = client.plan
                assert requests.get(server.url, headers={"Connection": "close"}).status_code == 200
                if client.plan is plan:  # the watcher reloads, too, and the client is the first that follows
                    serials = [one.serial for one in pairs if _digest(one.cert) == plan.cert_digest]
                    assert serials in (
                        [],
                        seen_by(server)[-1:],
                    )  # none: the very first pair is still in force
                    looked_at += 1
        finally:
            over.set()
            writer.join()
        hr.reload()
        requests.get(server.url)
        assert seen_by(server)[-1] == pairs[1].serial


def _digest(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


def test_rotations_under_traffic_cost_no_call_and_leave_nothing(tmp_path: Path) -> None:
    """failures.md 33. A slice; the whole is tests/bench/rotations.py."""
    out = rotate_under_traffic(tmp_path, rotations=4, threads=7, seed=1)
    assert (out.failed, out.late, out.left, out.resent) == ([], [], [], 0)
    assert out.closed.keys() <= {"rotated", "surplus", "retired"}
    assert out.closed["rotated"] >= out.rotations


def test_a_refusal_is_told_once_for_each_reason_and_not_before_it_has_stood(
    tmp_path: Path, files: Files, ca: Path, authority: trustme.CA
) -> None:
    file = tmp_path / "upstreams.yaml"
    file.write_text(rules("https://billing.test", tls(files, ca)))
    hr = headrace.Headrace(file)  # not started, so nobody but this test looks
    reloader = hr._reloader

    def told(after_s: float) -> list[str]:
        now = monotonic() + after_s
        return [one.reason for one in reloader.rotations.due(now, reloader.snapshot.upstreams.values())]

    assert not reloader.rotations.is_pending
    break_with_other_key(files, authority)
    hr.reload()
    assert reloader.rotations.is_pending
    assert told(-1.0) == []
    assert ["does not belong" in one for one in told(2.0)] == [True]
    assert told(100.0) == []
    assert not reloader.rotations.is_pending
    files.cert.unlink()
    hr.reload()
    assert ["does not exist" in one for one in told(2.0)] == [True]
    files.rename(issue(authority))
    hr.reload()
    assert told(100.0) == []
    break_with_other_key(files, authority)
    hr.reload()
    files.rename(issue(authority))
    hr.reload()
    assert not reloader.rotations.is_pending, "it did not stand for long"
    assert counted(hr) == {"refused": 2, "taken": 2}


@pytest.mark.parametrize("mode", ["observe", "off"])
def test_where_nothing_is_enforced_a_call_by_name_dials_with_the_new_certificate(
    tmp_path: Path, server: FaultServer, files: Files, ca: Path, authority: trustme.CA, mode: str
) -> None:
    """Its connections are the stock library's, and nobody closes those: until the peer does, they are as they were."""
    with governed(tmp_path, server, tls(files, ca) + f"    mode: {mode}\n") as hr:
        assert hr.upstream("billing").get("/", headers={"Connection": "close"}).status_code == 200
        files.rename(new := issue(authority))
        hr.reload()
        assert hr.upstream("billing").get("/").status_code == 200
        assert seen_by(server)[-1] == new.serial


def test_connections_made_ahead_of_need_are_made_anew(
    tmp_path: Path, server: FaultServer, files: Files, ca: Path, authority: trustme.CA
) -> None:
    with governed(tmp_path, server, tls(files, ca) + "    pool: {min_idle: 3}\n") as hr:
        wait_until(lambda: pool(hr)["idle"] == 3)
        files.rename(new := issue(authority))
        hr.reload()
        wait_until(lambda: pool(hr)["idle"] == 3 and server.connections >= 6)
        for _ in range(3):
            requests.get(server.url)
        assert set(seen_by(server)) == {new.serial}
        assert pool(hr)["closed"]["rotated"] >= 3  # type: ignore[index]


def test_a_chain_that_has_become_shorter_is_told(
    tmp_path: Path, files: Files, ca: Path, authority: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    """It loads, and a peer that does not know the issuer refuses it."""
    first, issuer = issue(authority), authority.cert_pem.bytes()
    files.rename(Pair(first.cert + issuer, first.key))
    caplog.set_level(logging.INFO, "headrace")
    with (
        FaultServer(tls=server_context(authority)) as server,
        governed(tmp_path, server, tls(files, ca)) as hr,
    ):
        files.rename(issue(authority))
        hr.reload()
        wait_until(lambda: "tls.rotated" in caplog.text)
        assert "its file has 1 certificate, and had 2" in caplog.text
