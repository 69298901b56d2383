"""A token that is rotated under a running instance: headers follow its file, and nothing is loaded."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import headrace
from headrace.runtime.secrets import RACY_NS, Secrets
from support.faultserver import Answer, FaultServer
from support.forks import in_child
from support.governed import rules, running
from support.waiting import wait_until

QUICK = "reload: {debounce: 20ms, max_delay: 200ms, poll: 500ms, drain: 1s}\n"


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


def put(file: Path, content: bytes) -> None:
    """As Vault's agent does: rendered to a file of another name, which takes its place."""
    fresh = file.with_suffix(".rendered")
    fresh.write_bytes(content)
    os.replace(fresh, file)


def in_place(file: Path, content: bytes) -> None:
    file.write_bytes(content)


def gone_for_a_moment(file: Path, content: bytes) -> None:
    file.unlink()
    file.write_bytes(content)


def by_swap(file: Path, content: bytes) -> None:
    """As the kubelet does: `token` leads to `..data/token`, and `..data` to a directory with a time in its name."""
    folder = file.parent
    fresh = folder / f"..{len(list(folder.iterdir()))}"
    fresh.mkdir()
    (fresh / file.name).write_bytes(content)
    (folder / "..data_tmp").symlink_to(fresh.name)
    os.replace(folder / "..data_tmp", folder / "..data")
    if not file.is_symlink():
        file.unlink(missing_ok=True)
        file.symlink_to(Path("..data") / file.name)


def sent(hr: headrace.Headrace, server: FaultServer) -> str | None:
    hr.upstream("billing").get("/a")
    return server.requests[-1].header("Authorization")


def header_of(file: Path) -> str:
    return f"    headers: {{X-Fixed: a, Authorization: 'Bearer ${{file:{file}}}'}}\n"


class Loads:
    """Counts the loads of one instance."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, hr: headrace.Headrace) -> None:
        self.made = 0
        load = hr._reloader._load

        def counted():  # type: ignore[no-untyped-def]
            self.made += 1
            return load()

        monkeypatch.setattr(hr._reloader, "_load", counted)


@pytest.mark.parametrize("write", [put, in_place, by_swap, gone_for_a_moment])
@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"], ids=["bare", "LF", "CRLF"])
def test_a_rotated_token_is_sent_and_nothing_is_loaded(
    tmp_path: Path,
    server: FaultServer,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path, bytes], None],
    ending: bytes,
) -> None:
    (tmp_path / "secrets").mkdir()
    token = tmp_path / "secrets" / "token"
    (by_swap if write is by_swap else in_place)(token, b"1" + ending)
    with running(tmp_path, rules(server.url, header_of(token), more=QUICK)) as hr:
        loads, before = Loads(monkeypatch, hr), hr.snapshot
        circuit, leases = before.upstream("billing").learned.circuit, before.upstream("billing").endpoint.pool
        assert sent(hr, server) == "Bearer 1"
        for number in (b"2", b"3"):
            write(token, number + ending)
            wait_until(lambda number=number: sent(hr, server) == f"Bearer {number.decode()}")  # type: ignore[misc]

        if write is not gone_for_a_moment:  # a look may fall into that moment
            assert loads.made == 0
        assert hr.snapshot is before
        assert hr.snapshot.upstream("billing").learned.circuit is circuit
        assert hr.snapshot.upstream("billing").endpoint.pool is leases
        assert server.connections == 1
        assert server.requests[-1].header("X-Fixed") == "a"


def test_a_thousand_upstreams_follow_one_file_without_a_load(
    tmp_path: Path, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    put(token, b"1")
    others = "".join(f"  other{n}: {{base_url: 'http://other{n}.test'}}\n" for n in range(999))
    text = (
        f"version: 1\n{QUICK}defaults: {{headers: {{Authorization: 'Bearer ${{file:{token}}}'}}}}\n"
        f"upstreams:\n  billing: {{base_url: '{server.url}'}}\n{others}"
    )
    with running(tmp_path, text) as hr:
        loads = Loads(monkeypatch, hr)
        assert sent(hr, server) == "Bearer 1"
        put(token, b"2")
        wait_until(lambda: sent(hr, server) == "Bearer 2")
        assert loads.made == 0
        headers = {upstream.headers for upstream in hr.snapshot.upstreams.values()}
        assert headers == {(("Authorization", "Bearer 2"),)}
        assert "2" not in repr(headers)


def test_a_file_that_is_gone_or_torn_keeps_the_last_token_and_is_told_once(
    tmp_path: Path, server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    token = tmp_path / "token"
    put(token, b"1")
    with (
        running(tmp_path, rules(server.url, header_of(token), more=QUICK)) as hr,
        caplog.at_level(logging.INFO, "headrace"),
    ):
        token.unlink()
        wait_until(lambda: hr.status()["rejected"])
        assert "needs the file" in str(hr.status()["rejected"])
        assert sent(hr, server) == "Bearer 1"
        put(token, b"two\nlines")
        wait_until(lambda: "needs the file" not in str(hr.status()["rejected"]))
        assert sent(hr, server) == "Bearer 1"
        put(token, b"3")
        wait_until(lambda: sent(hr, server) == "Bearer 3")
        wait_until(lambda: not hr.status()["rejected"])
    rejected = [line for line in caplog.messages if line.startswith("config.rejected")]
    assert len(rejected) == 2  # once for each of the two
    assert not any("applied" in line for line in caplog.messages)
    assert "two" not in caplog.text


def a_pipe(token: Path) -> None:
    token.unlink()
    os.mkfifo(token)


def a_folder(token: Path) -> None:
    token.unlink()
    token.mkdir()


def a_gigabyte(token: Path) -> None:
    with token.open("r+b") as file:
        file.truncate(1 << 30)  # a hole


@pytest.mark.parametrize(
    "becomes",
    [
        a_pipe,
        a_folder,
        a_gigabyte,
        pytest.param(b"2\r\nX-Forged: yes", id="another header"),
        pytest.param(b"2\nX-Forged: yes\n", id="another header, after a bare LF"),
        pytest.param(b"2\rX-Forged: yes", id="another header, after a bare CR"),
        pytest.param(b"2\0", id="NUL"),
        pytest.param(b"2\n\n", id="an empty line"),
        pytest.param(b"\xff\xfe2", id="half of UTF-16"),
        pytest.param(b"2\xff", id="no UTF-8"),
        pytest.param("2€".encode(), id="no Latin-1"),
        pytest.param(b"\r\n", id="a line break alone"),
        pytest.param(b"2" * (64 << 10) + b"2", id="a byte too long"),
    ],
)
def test_what_no_header_may_hold_keeps_the_last_token_and_holds_up_nobody(
    tmp_path: Path, server: FaultServer, becomes: Any
) -> None:
    """failures.md 92: a token that is rotated may be anything, by mistake or by malice."""
    token = tmp_path / "token"
    put(token, b"1\r\n")
    server.always(lambda request: Answer(401 if request.header("Authorization") == "Bearer 1" else 200))
    with running(tmp_path, rules(server.url, header_of(token), more=QUICK)) as hr:
        assert sent(hr, server) == "Bearer 1"
        if callable(becomes):
            becomes(token)
        else:
            put(token, becomes)
        began = time.monotonic()
        for _ in range(3):  # each is answered 401, and looks at the file
            assert sent(hr, server) == "Bearer 1"
        wait_until(lambda: hr.status()["rejected"])
        assert time.monotonic() - began < 20
        assert all(request.header("X-Forged") is None for request in server.requests)
        shutil.rmtree(token) if token.is_dir() else token.unlink()
        put(token, b"3\r\n")
        wait_until(lambda: sent(hr, server) == "Bearer 3")


def test_a_load_takes_the_token_with_it_and_an_upstream_that_says_the_same_stays_what_it_is(
    tmp_path: Path, server: FaultServer
) -> None:
    token, file = tmp_path / "token", tmp_path / "upstreams.yaml"
    put(token, b"1")
    slow = "reload: {debounce: 20s, max_delay: 30s, poll: 1m}\n"
    with running(tmp_path, rules(server.url, header_of(token), more=slow)) as hr:
        plan = hr.snapshot.upstream("billing").plan
        put(token, b"2")
        assert hr.reload() == "unchanged"  # the configuration is; the token is not a part of it
        assert sent(hr, server) == "Bearer 2"

        put(token, b"3")
        file.write_text(file.read_text() + "  more: {base_url: http://more.test}\n")
        assert hr.reload() == "applied"
        assert hr.snapshot.upstream("billing").plan is plan
        assert sent(hr, server) == "Bearer 3"

        file.write_text(file.read_text().replace("X-Fixed: a", "X-Fixed: b"))
        put(token, b"4")
        assert hr.reload() == "applied"
        assert hr.snapshot.upstream("billing").plan is not plan
        assert sent(hr, server) == "Bearer 4"
        assert server.requests[-1].header("X-Fixed") == "b"


def test_another_file_with_the_same_content_is_another_secret(tmp_path: Path, server: FaultServer) -> None:
    token, other, file = tmp_path / "token", tmp_path / "other", tmp_path / "upstreams.yaml"
    put(token, b"1")
    put(other, b"1")
    with running(tmp_path, rules(server.url, header_of(token), more=QUICK)) as hr:
        file.write_text(file.read_text().replace(str(token), str(other)))
        wait_until(lambda: str(other) in hr.snapshot.configuration.secret_texts)
        put(other, b"2")
        wait_until(lambda: sent(hr, server) == "Bearer 2")


def test_a_file_that_something_else_holds_as_well_is_loaded_as_a_whole(
    tmp_path: Path, server: FaultServer
) -> None:
    token = tmp_path / "token"
    put(token, b"1")
    body = header_of(token) + f"    fallback: {{body: '${{file:{token}}}'}}\n"
    with running(tmp_path, rules(server.url, body, more=QUICK)) as hr:
        before = hr.snapshot
        put(token, b"2")
        wait_until(lambda: hr.snapshot is not before)
        assert sent(hr, server) == "Bearer 2"


def test_a_call_that_has_begun_with_rules_that_are_gone_keeps_their_token(
    tmp_path: Path, server: FaultServer
) -> None:
    token = tmp_path / "token"
    put(token, b"1")
    with running(tmp_path, rules(server.url, header_of(token), more=QUICK)) as hr:
        before = hr.snapshot.upstream("billing")
        (tmp_path / "upstreams.yaml").write_text(rules(server.url, more=QUICK))
        wait_until(lambda: hr.snapshot.upstream("billing").live is None)
        assert dict(before.headers)["Authorization"] == "Bearer 1"


def test_a_forked_child_follows_the_file_by_itself(tmp_path: Path, server: FaultServer) -> None:
    token = tmp_path / "token"
    put(token, b"1")
    with running(tmp_path, rules(server.url, header_of(token), more=QUICK)) as hr:
        assert sent(hr, server) == "Bearer 1"
        # A thread of the parent's that is reading just now: it does not exist in the child, and ends nothing there.
        hr._reloader.secrets._readings[str(token)] = threading.Event()

        def child() -> None:
            put(token, b"2")
            hr.start()
            wait_until(lambda: dict(hr.snapshot.upstream("billing").headers)["Authorization"] == "Bearer 2")
            assert hr.upstream("billing").get("/a").text == "ok"

        assert in_child(child) == 0


def test_a_file_that_stands_is_read_once_and_one_that_has_just_changed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An edit of the same size within the same tick of the clock is seen (failures.md 37)."""
    import headrace.runtime.secrets as module

    token, reads = tmp_path / "token", []
    real = module.read_secret

    def counted(path: str) -> str:
        reads.append(path)
        return real(path)

    monkeypatch.setattr(module, "read_secret", counted)
    token.write_text("a")
    secrets = Secrets()
    secrets.adopt({str(token): "a"}, tell=lambda event: None)
    stamp = token.stat()
    token.write_text("b")
    os.utime(token, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert secrets.look([str(token)])
    assert secrets.texts[str(token)] == "b"

    monkeypatch.setattr(module, "_mark_of", lambda path: (1, 1, 1, time.time_ns(), 1))
    secrets.look([str(token)])
    token.write_text("c")
    mark = (1, 1, 1, time.time_ns(), 1)  # a file system with coarse times: as it was before
    monkeypatch.setattr(module, "_mark_of", lambda path: mark)
    secrets.look([str(token)])
    token.write_text("d")
    secrets.look([str(token)])
    assert secrets.texts[str(token)] == "d"
    monkeypatch.undo()
    monkeypatch.setattr(module, "read_secret", counted)

    old = stamp.st_mtime_ns - 2 * RACY_NS
    os.utime(token, ns=(old, old))
    secrets.look([str(token)])
    reads.clear()
    for _ in range(3):
        assert secrets.look([str(token)])
    assert reads == []


def test_who_knows_an_older_secret_than_the_one_of_now_reads_nothing(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a")
    secrets = Secrets()
    secrets.adopt({str(token): "a"}, tell=lambda event: None)
    seen = secrets.texts
    token.write_text("b")
    secrets.look([str(token)])
    token.write_text("c")

    assert secrets.look([str(token)], seen=seen)
    assert (
        secrets.texts[str(token)] == "b"
    )  # another thread has been there since, and the caller has that to send
    assert secrets.look([str(token)], seen=secrets.texts)
    assert secrets.texts[str(token)] == "c"
