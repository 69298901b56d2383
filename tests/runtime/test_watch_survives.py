"""The watching goes on whatever comes: paths that are none, no thread to be had, bugs, files of any length."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from prometheus_client import CollectorRegistry

import headrace
from headrace.policy.plan import ReloadPlan
from headrace.runtime.watch import fingerprint as fingerprints
from headrace.runtime.watch import watcher as watch
from headrace.runtime.watch.fingerprint import MOST_BYTES, MOST_ENTRIES, fingerprint, lookups
from headrace.runtime.watch.watcher import Watcher
from support.governed import rules, running
from support.waiting import wait_until

POLLING = ReloadPlan(debounce_s=0.02, max_delay_s=1.0, poll_s=0.05, drain_s=1.0)
QUICK = "reload: {debounce: 20ms, poll: 100ms}\n"

NO_PATHS = [
    pytest.param("/run/token\0", id="NUL"),
    pytest.param("/run/a\0b/token", id="NUL-in-it"),
    pytest.param("/run/\udfff\ud800", id="lone-surrogates"),
    pytest.param("/run/" + "x" * 5000, id="too-long"),
    pytest.param("/run/" + "x/" * 5000, id="too-deep"),
]


@pytest.mark.parametrize("path", NO_PATHS)
def test_what_is_no_path_has_a_print_and_lookups_like_any_other(path: str) -> None:
    """failures.md 60."""
    assert fingerprint(path).startswith(b"no content: ")
    assert lookups(path)


@pytest.mark.parametrize("path", NO_PATHS)
def test_a_watcher_that_is_given_what_is_no_path_hears_the_edits_of_the_others(
    path: str, tmp_path: Path
) -> None:
    """failures.md 60."""
    file, heard = tmp_path / "file", threading.Event()
    file.write_text("0")
    watcher = Watcher([path, str(file)], heard.set, POLLING)
    watcher.start()
    try:
        for content in "123":
            assert heard.wait(10)
            heard.clear()
            file.write_text(content)
        assert heard.wait(10)
    finally:
        watcher.stop()


@pytest.mark.parametrize(
    "reference",
    [
        pytest.param(r'headers: {A: "${file:token\0}"}', id="a-secret"),
        pytest.param(r'tls: {ca: "ca\0.pem"}', id="tls.ca"),
        pytest.param(r'tls: {cert: "a\0", key: "b\0"}', id="tls.cert"),
        pytest.param("headers: {A: '${file:~nobody-of-that-name/token}'}", id="no-such-home"),
        pytest.param(r'headers: {A: "${file:~a\0b/token}"}', id="no-such-home-either"),
    ],
)
def test_after_a_refused_path_that_is_none_the_next_edit_is_heard(tmp_path: Path, reference: str) -> None:
    """failures.md 36. failures.md 60. It is refused as any other, and costs no edit after it."""
    good = QUICK + rules("https://u.invalid")
    with running(tmp_path, good) as hr:
        file = Path(hr.files[0])
        for number in (1, 2):
            refused = hr.status()["reloads"].get("rejected", 0)
            file.write_text(f"# {number}\n{good}    {reference}\n")
            wait_until(
                lambda before=refused: hr.status()["reloads"].get("rejected", 0) > before, timeout_s=20
            )  # type: ignore[misc]
            applied = hr.snapshot
            file.write_text(f"{good}    timeouts: {{attempt: {number}s}}\n")
            wait_until(lambda before=applied: hr.snapshot is not before, timeout_s=20)  # type: ignore[misc]
        assert hr.status()["threads"]["headrace-watch"]["alive"]


def test_no_thread_for_inotify_means_polling_and_no_descriptor_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """failures.md 60: once, at a container's limit of processes."""
    start = threading.Thread.start

    def refuse_inotify(self: threading.Thread) -> None:
        if self.name != "headrace-watch":
            raise RuntimeError("can't start new thread")
        start(self)

    file, heard = tmp_path / "file", threading.Event()
    file.write_text("0")
    watcher = Watcher([str(file)], heard.set, POLLING)
    before = set(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(threading.Thread, "start", refuse_inotify)
    watcher.start()
    try:
        for content in "12":
            assert heard.wait(10)
            heard.clear()
            file.write_text(content)
        assert heard.wait(10)
        life = watcher.life()
        assert (life["alive"], life["polling"]) == (True, True)
        assert set(os.listdir("/proc/self/fd")) == before
    finally:
        watcher.stop()
    said = [line for line in caplog.text.splitlines() if "can't start new thread" in line]
    assert len(said) == 1
    assert "watch.degraded" in said[0]


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(UnicodeEncodeError("ascii", "ä", 0, 1, "ordinal not in range"), id="UnicodeEncodeError"),
        pytest.param(RuntimeError("a bug"), id="RuntimeError"),
        pytest.param(MemoryError(), id="MemoryError"),
    ],
)
@pytest.mark.parametrize("place", ["fingerprint", "lookups", "take", "judge", "due_at"])
def test_whatever_a_look_raises_the_next_edit_is_heard(
    place: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """failures.md 60."""
    monkeypatch.setattr(watch, "STUMBLE_PAUSE_S", 0.01)
    file, heard = tmp_path / "file", threading.Event()
    file.write_text("0")
    watcher = Watcher([str(file)], heard.set, POLLING)
    watcher.start()
    try:
        assert heard.wait(10)
        owner = watch if place in ("fingerprint", "lookups") else watch.Settling
        sound, raised = getattr(owner, place), threading.Event()

        def raises(*_: object, **__: object) -> object:
            raised.set()
            raise error

        monkeypatch.setattr(owner, place, raises)
        watcher.poke()
        assert raised.wait(10)
        monkeypatch.setattr(owner, place, sound)
        heard.clear()
        file.write_text("1")
        assert heard.wait(10)
        assert watcher.life()["alive"]
    finally:
        watcher.stop()


def test_a_look_that_always_raises_is_said_once_and_takes_no_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """failures.md 60."""

    class OfThisTest(Exception):
        pass

    raised = []

    def raises(*_: object) -> None:
        raised.append(time.monotonic())
        raise OfThisTest

    monkeypatch.setattr(watch, "STUMBLE_PAUSE_S", 0.05)
    monkeypatch.setattr(watch.Settling, "due_at", raises)
    watcher = Watcher([str(tmp_path / "file")], lambda: None, POLLING)
    watcher.start()
    try:
        wait_until(lambda: len(raised) >= 5, timeout_s=30)
    finally:
        watcher.stop()
    assert raised[4] - raised[0] >= 4 * 0.05 * 0.9
    assert caplog.text.count("could not look at the watched files") == 1


# --- files of any length ---------------------------------------------------------------


@pytest.fixture
def sparse(tmp_path: Path) -> Callable[[int], Path]:
    def make(size: int) -> Path:
        file = tmp_path / "sparse"
        file.touch()
        os.truncate(file, size)
        return file

    return make


def test_a_file_longer_than_any_of_a_configuration_is_not_read(
    sparse: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """failures.md 60: a watcher that reads 6 GiB at each poll is deaf."""
    read = []
    real = os.read

    def counted(fd: int, length: int) -> bytes:
        found = real(fd, length)
        read.append(len(found))
        return found

    monkeypatch.setattr(fingerprints.os, "read", counted)
    too_long = fingerprint(str(sparse(6 << 30)))
    assert sum(read) == 0
    assert fingerprint(str(sparse(7 << 30))) == too_long  # a log file that grows is no change for each line
    whole = fingerprint(str(sparse(MOST_BYTES)))
    assert sum(read) == MOST_BYTES
    assert whole != too_long
    assert fingerprint(str(sparse(MOST_BYTES + 1))) == too_long


def test_what_grows_while_it_is_read_is_read_to_the_limit_and_one_byte(
    sparse: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """failures.md 60."""
    monkeypatch.setattr(fingerprints, "MOST_BYTES", 1 << 40)
    long = str(sparse(6 << 30))
    status = os.stat(str(sparse(6 << 30)))
    assert status.st_size == 6 << 30
    monkeypatch.setattr(fingerprints, "MOST_BYTES", 4096)
    monkeypatch.setattr(
        fingerprints.os, "fstat", lambda fd: os.stat("/proc/self/status")
    )  # size 0, a regular file
    assert fingerprint(long) == b"no content: longer than a configuration's files are"


def test_a_directory_with_more_entries_than_the_loader_takes_is_not_listed_whole(tmp_path: Path) -> None:
    for number in range(MOST_ENTRIES):
        (tmp_path / str(number)).touch()
    whole = fingerprint(str(tmp_path))
    (tmp_path / "one more").touch()
    too_many = fingerprint(str(tmp_path))
    (tmp_path / "and another").touch()
    assert fingerprint(str(tmp_path)) == too_many != whole


@pytest.mark.parametrize("what", ["the configuration", "a secret", "tls.ca"])
def test_a_file_of_six_gigabytes_is_refused_and_its_becoming_small_again_is_heard(
    tmp_path: Path, what: str
) -> None:
    """failures.md 60."""
    secret, ca = tmp_path / "secret", tmp_path / "ca.pem"
    secret.write_text("token")
    ca.write_bytes(trustme.CA().cert_pem.bytes())
    body = f"    headers: {{A: '${{file:{secret}}}'}}\n    tls: {{ca: {ca}}}\n"
    good = QUICK + rules("https://u.invalid", body)
    with running(tmp_path, good) as hr:
        named = {"the configuration": Path(hr.files[0]), "a secret": secret, "tls.ca": ca}[what]

        def refused() -> object:  # of a CA: by its upstream alone
            status = hr.status()
            return status["rejected"] or status["upstreams"]["billing"]["tls"]["refused"]

        content = named.read_text()
        before = hr.snapshot
        os.truncate(named, 6 << 30)
        wait_until(refused, timeout_s=20)
        more = {"the configuration": "    timeouts: {attempt: 1s}\n", "a secret": "2", "tls.ca": "\n"}[what]
        named.write_text(content + more)
        wait_until(lambda: not refused(), timeout_s=20)
        if what == "a secret":  # headers follow it, and there is nothing to load
            assert hr.snapshot.upstream("billing").headers == (("A", "token2"),)
        else:
            wait_until(lambda: hr.snapshot is not before, timeout_s=20)


def test_close_does_not_wait_for_the_hashing_of_many_large_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """failures.md 60."""
    hashing, go_on, hashed = threading.Event(), threading.Event(), []

    def slow(path: str) -> bytes:
        hashed.append(path)
        hashing.set()
        go_on.wait(10)
        return b""

    monkeypatch.setattr(watch, "fingerprint", slow)
    watcher = Watcher([f"/tmp/{number}" for number in range(100)], lambda: None, POLLING)
    watcher.start()
    assert hashing.wait(10)

    def goes_on_once_it_is_stopped() -> None:
        wait_until(lambda: watcher._stopping)
        go_on.set()

    thread = threading.Thread(target=goes_on_once_it_is_stopped)
    thread.start()
    watcher.stop()
    thread.join()
    assert not watcher.life()["alive"]
    assert len(hashed) == 1


# --- signs of life ---------------------------------------------------------------------


def test_the_status_tells_of_each_thread_whether_it_lives_and_when_it_last_looked(tmp_path: Path) -> None:
    """failures.md 60."""
    file = tmp_path / "upstreams.yaml"
    file.write_text(QUICK + rules("http://u.invalid"))
    hr = headrace.Headrace(file, registry=CollectorRegistry())
    own = {name: life for name, life in hr.status()["threads"].items() if name != "headrace-deadline"}
    assert not any(life["alive"] for life in own.values())
    with hr:
        wait_until(lambda: hr.status()["threads"]["headrace-watch"]["looked_ago"] is not None, timeout_s=30)
        wait_until(
            lambda: hr.status()["threads"]["headrace-housekeeping"]["looked_ago"] is not None, timeout_s=30
        )
        threads = json.loads(json.dumps(hr.status()["threads"]))
        assert set(threads) == {
            "headrace-watch",
            "headrace-housekeeping",
            "headrace-deadline",
            "headrace-warmup",
            "headrace-heartbeat",
            "headrace-foretell",
        }
        for name in ("headrace-watch", "headrace-housekeeping"):
            assert threads[name]["alive"]
            assert 0.0 <= threads[name]["looked_ago"] < 10.0
        assert threads["headrace-watch"]["polling"] is False
        assert threads["headrace-warmup"] == {"alive": False, "looked_ago": None}
    for name in ("headrace-watch", "headrace-housekeeping"):
        assert hr.status()["threads"][name]["alive"] is False


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    names = ("headrace-watch", "headrace-housekeeping")
    wait_until(lambda: not [one for one in threading.enumerate() if one.name in names], timeout_s=30)
