"""The watcher on real files, with real inotify, in real time; nothing here sleeps."""

from __future__ import annotations

import ast
import errno
import logging
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace.policy.plan import ReloadPlan
from headrace.runtime.watch import watcher as watching
from headrace.runtime.watch.fingerprint import fingerprints
from headrace.runtime.watch.watcher import EventSource, ObserverEvents, OnEvent, Watcher
from support.volumes import ConfigMap

EVENTS_ONLY = ReloadPlan(debounce_s=0.1, max_delay_s=1.0, poll_s=600.0, drain_s=1.0)
"""A poll that no test lives to see: what is noticed was noticed by an event."""
POLLING = ReloadPlan(debounce_s=0.02, max_delay_s=1.0, poll_s=0.05, drain_s=1.0)
PATIENCE_S = 10.0


class Reader:
    """What the watcher calls: notes what the file held."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.held: list[str | None] = []
        self._news = threading.Condition()

    def __call__(self) -> None:
        try:
            content: str | None = self.file.read_text()
        except OSError:
            content = None
        with self._news:
            self.held.append(content)
            self._news.notify_all()

    def wait_for(self, predicate: Callable[[list[str | None]], bool]) -> None:
        with self._news:
            assert self._news.wait_for(lambda: predicate(self.held), PATIENCE_S), f"only saw {self.held}"

    def wait_until_it_held(self, content: str | None) -> None:
        self.wait_for(lambda held: bool(held) and held[-1] == content)


Watch = Callable[..., tuple[Watcher, Reader]]


@pytest.fixture
def watch() -> Iterator[Watch]:
    """Starts a watcher and returns once it has armed everything (its first report)."""
    before = set(threading.enumerate())
    started: list[Watcher] = []

    def start(file: Path, plan: ReloadPlan = EVENTS_ONLY, **options: object) -> tuple[Watcher, Reader]:
        reader = Reader(file)
        watcher = Watcher([str(file)], reader, plan, **options)  # type: ignore[arg-type]
        started.append(watcher)
        watcher.start()
        reader.wait_for(lambda held: len(held) == 1)
        return watcher, reader

    yield start
    for watcher in started:
        watcher.stop()
    assert set(threading.enumerate()) == before


# --- ways to edit ----------------------------------------------------------------------


def in_place(file: Path, content: str) -> None:
    file.write_text(content)


def atomic_rename(file: Path, content: str) -> None:
    temporary = file.with_name(".new")
    temporary.write_text(content)
    temporary.replace(file)


def vim(file: Path, content: str) -> None:
    backup = file.with_name(file.name + "~")
    file.rename(backup)
    file.write_text(content)
    backup.unlink()


def delete_and_recreate(file: Path, content: str) -> None:
    file.unlink()
    file.write_text(content)


def moved_in_from_elsewhere(file: Path, content: str) -> None:
    elsewhere = file.parent.parent / "elsewhere"
    elsewhere.write_text(content)
    elsewhere.replace(file)


def same_size_same_mtime(file: Path, content: str) -> None:
    status = file.stat()
    file.write_text(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def directory_recreated(file: Path, content: str) -> None:
    shutil.rmtree(file.parent)
    file.parent.mkdir()
    file.write_text(content)


def directory_swapped_by_rename(file: Path, content: str) -> None:
    other = file.parent.with_name("other")
    other.mkdir()
    (other / file.name).write_text(content)
    old = file.parent.with_name("old")
    file.parent.rename(old)
    other.rename(file.parent)
    shutil.rmtree(old)


EDITS = [
    in_place,
    atomic_rename,
    vim,
    delete_and_recreate,
    moved_in_from_elsewhere,
    same_size_same_mtime,
    directory_recreated,
    directory_swapped_by_rename,
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "conf" / "upstreams.yaml"
    path.parent.mkdir()
    path.write_text("0")
    return path


@pytest.mark.parametrize("edit", [pytest.param(edit, id=edit.__name__) for edit in EDITS])
def test_every_way_to_edit_a_file_is_seen_by_its_events_again_and_again(
    edit: Callable[[Path, str], None], file: Path, watch: Watch
) -> None:
    """failures.md 37."""
    _, reader = watch(file)
    for content in "123":
        edit(file, content)
        reader.wait_until_it_held(content)


def test_configmap_swaps_are_seen(tmp_path: Path, watch: Watch) -> None:
    """failures.md 37."""
    volume = ConfigMap(tmp_path / "volume")
    _, reader = watch(volume.file)
    for content in "123":
        volume.swap(content)
        reader.wait_until_it_held(content)


def test_that_a_file_was_read_is_no_event(file: Path) -> None:
    """Each reading of ours would ask for the next."""
    heard: list[str | None] = []
    last = threading.Event()

    def on_event(_directory: str, name: str | None) -> None:
        heard.append(name)
        if name == "last":
            last.set()

    events = ObserverEvents(on_event)
    try:
        events.arm(str(file.parent))
        file.read_text()
        (file.parent / "last").touch()
        assert last.wait(PATIENCE_S)
    finally:
        events.close()
    assert set(heard) == {"last"}


def test_of_watchdog_only_documented_modules_are_imported() -> None:
    source = Path(watching.__file__).parents[2]
    imported = {
        f"{node.module}"
        for file in source.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and f"{node.module}".startswith("watchdog")
    }
    assert imported == {"watchdog.events", "watchdog.observers"}


def test_a_link_from_outside_into_a_configmap_is_followed(tmp_path: Path, watch: Watch) -> None:
    """failures.md 37."""
    volume = ConfigMap(tmp_path / "volume")
    link = tmp_path / "app.yaml"
    link.symlink_to(volume.file)
    _, reader = watch(link)
    volume.swap("1")
    reader.wait_until_it_held("1")
    other = tmp_path / "other.yaml"
    other.write_text("2")
    link.unlink()
    link.symlink_to(other)
    reader.wait_until_it_held("2")
    other.write_text("3")
    reader.wait_until_it_held("3")


def test_a_dangling_link_is_awaited_and_its_loss_is_seen(tmp_path: Path, watch: Watch) -> None:
    """failures.md 37."""
    link, target = tmp_path / "link", tmp_path / "not" / "yet" / "f"
    link.symlink_to(target)
    _, reader = watch(link)
    assert reader.held == [None]
    target.parent.mkdir(parents=True)
    target.write_text("1")
    reader.wait_until_it_held("1")
    target.unlink()
    reader.wait_until_it_held(None)
    target.write_text("2")
    reader.wait_until_it_held("2")


def test_a_directory_that_stays_away_for_a_while_is_watched_again(file: Path, watch: Watch) -> None:
    """failures.md 37."""
    _, reader = watch(file)
    shutil.rmtree(file.parent)
    reader.wait_until_it_held(None)
    file.parent.mkdir()
    file.write_text("1")
    reader.wait_until_it_held("1")
    in_place(file, "2")
    reader.wait_until_it_held("2")


def test_other_files_of_the_directory_are_not_looked_at(file: Path, watch: Watch) -> None:
    watcher, reader = watch(file)
    for number in range(300):
        (file.parent / f"other-{number}").write_text("x")
    with watcher._lock:
        assert watcher._settling._first_poke_at is None
    in_place(file, "1")
    reader.wait_until_it_held("1")
    assert len(reader.held) == 2


def test_many_files_of_one_directory_take_one_watch_and_each_is_seen(tmp_path: Path) -> None:
    files = [tmp_path / f"f{number}" for number in range(50)]
    for path in files:
        path.write_text("0")
    reader = Reader(files[-1])
    known = fingerprints(str(path) for path in files)
    watcher = Watcher([str(path) for path in files], reader, EVENTS_ONLY, known=known)
    watcher.start()
    try:
        watcher.again(0.0)  # a report that says: armed
        reader.wait_for(lambda held: len(held) == 1)
        assert repr(watcher) == "<Watcher watching 50 files in 1 directories>"
        for count, path in enumerate((files[0], files[25], files[49]), 2):
            path.write_text("1")
            reader.wait_for(lambda held, count=count: len(held) == count)  # type: ignore[misc]
    finally:
        watcher.stop()


def test_an_edit_while_the_callback_runs_leads_to_another_call(file: Path) -> None:
    """failures.md 37."""
    entered, go_on = threading.Event(), threading.Event()
    reader = Reader(file)

    def changed() -> None:
        reader()
        entered.set()
        go_on.wait(PATIENCE_S)

    watcher = Watcher([str(file)], changed, EVENTS_ONLY)
    watcher.start()
    try:
        assert entered.wait(PATIENCE_S)
        in_place(file, "1")
        go_on.set()
        reader.wait_until_it_held("1")
    finally:
        go_on.set()
        watcher.stop()


def test_a_callback_that_raises_does_not_end_the_watching(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """failures.md 36."""
    reader = Reader(file)

    def changed() -> None:
        reader()
        raise RuntimeError("a bug in the reload")

    watcher = Watcher([str(file)], changed, EVENTS_ONLY)
    watcher.start()
    try:
        reader.wait_until_it_held("0")
        in_place(file, "1")
        reader.wait_until_it_held("1")
        in_place(file, "2")
        reader.wait_until_it_held("2")
    finally:
        watcher.stop()
    assert [record.exc_info[1].args for record in caplog.records if record.exc_info][:1] == [  # type: ignore[index, union-attr]
        ("a bug in the reload",)
    ]


def test_an_edit_between_the_load_and_the_start_is_reported(file: Path) -> None:
    known = fingerprints([str(file)])
    in_place(file, "1")
    reader = Reader(file)
    watcher = Watcher([str(file)], reader, EVENTS_ONLY, known=known)
    watcher.start()
    try:
        reader.wait_until_it_held("1")
    finally:
        watcher.stop()


def test_known_content_is_not_reported_and_a_touch_neither(file: Path) -> None:
    reader = Reader(file)
    watcher = Watcher([str(file)], reader, EVENTS_ONLY, known=fingerprints([str(file)]))
    watcher.start()
    try:
        os.utime(file)
        watcher.again(0.5)  # by then both have been looked at
        reader.wait_for(lambda held: bool(held))
        assert reader.held == ["0"]
        in_place(file, "1")
        reader.wait_until_it_held("1")
        assert reader.held == ["0", "1"]
    finally:
        watcher.stop()


def test_another_set_of_files_is_watched_from_then_on(file: Path, watch: Watch) -> None:
    watcher, reader = watch(file)
    certificate = file.parent.parent / "certs" / "tls.crt"
    certificate.parent.mkdir()
    certificate.write_text("old")
    watcher.set_files([str(file), str(certificate)])
    reader.wait_for(lambda held: len(held) == 2)  # new, so nobody knows what it held at the load
    certificate.write_text("new")
    reader.wait_for(lambda held: len(held) == 3)
    watcher.set_files([str(file)])
    watcher.again(0.0)
    reader.wait_for(lambda held: len(held) == 4)
    assert repr(watcher) == "<Watcher watching 1 files in 1 directories>"


def test_files_may_be_set_from_within_the_callback(file: Path) -> None:
    other = file.with_name("other")
    other.write_text("x")
    reader = Reader(file)
    watcher: Watcher

    def changed() -> None:
        watcher.set_files([str(file), str(other)], known=fingerprints([str(other)]), plan=EVENTS_ONLY)
        reader()

    watcher = Watcher([str(file)], changed, EVENTS_ONLY)
    watcher.start()
    try:
        reader.wait_for(lambda held: len(held) == 1)
        other.write_text("y")
        reader.wait_for(lambda held: len(held) == 2)
        in_place(file, "1")
        reader.wait_until_it_held("1")
        assert len(reader.held) == 3
    finally:
        watcher.stop()


# --- when there are no events -----------------------------------------------------------


def no_instances(on_event: OnEvent) -> EventSource:
    raise OSError(errno.EMFILE, "inotify instance limit reached")


class NoWatchesLeft(ObserverEvents):
    def arm(self, directory: str) -> object:
        raise OSError(errno.ENOSPC, "inotify watch limit reached")


@pytest.mark.parametrize(
    ("events", "text"),
    [
        pytest.param(no_instances, "inotify instance limit reached", id="EMFILE"),
        pytest.param(NoWatchesLeft, "inotify watch limit reached", id="ENOSPC"),
    ],
)
def test_without_inotify_files_are_polled_and_that_is_said_once(
    events: Callable[[OnEvent], EventSource],
    text: str,
    file: Path,
    watch: Watch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """failures.md 37."""
    watcher, reader = watch(file, POLLING, events=events)
    for number, edit in enumerate(EDITS, 1):
        edit(file, str(number))
        reader.wait_until_it_held(str(number))
    assert watcher.is_polling
    assert repr(watcher) == "<Watcher polling 1 files in 0 directories>"
    said = [record.getMessage() for record in caplog.records if "watch.degraded" in record.getMessage()]
    assert len(said) == 1
    assert text in said[0]


class Blind:
    """A file system without events: NFS, some bind mounts."""

    def __init__(self, on_event: OnEvent) -> None: ...

    def arm(self, directory: str) -> object:
        return directory

    def disarm(self, armed: object) -> None: ...

    def close(self) -> None: ...


def test_the_safety_poll_finds_what_events_missed(file: Path, watch: Watch) -> None:
    _, reader = watch(file, POLLING, events=Blind)
    for number, edit in enumerate(EDITS, 1):
        edit(file, str(number))
        reader.wait_until_it_held(str(number))


# --- life ---------------------------------------------------------------------------------


def test_nothing_runs_before_start_and_nothing_is_left_after_stop(file: Path) -> None:
    threads = set(threading.enumerate())
    descriptors = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    reader = Reader(file)
    watcher = Watcher([str(file)], reader, EVENTS_ONLY)
    assert set(threading.enumerate()) == threads
    for _ in range(3):
        watcher.start()
        watcher.start()
        seen = len(reader.held)
        watcher.again(0.0)
        reader.wait_for(lambda held, seen=seen: len(held) > seen)  # type: ignore[misc]
        assert "headrace-watch" in {thread.name for thread in threading.enumerate()}
        watcher.stop()
        watcher.stop()
        assert set(threading.enumerate()) == threads
    if descriptors:
        assert len(os.listdir("/proc/self/fd")) == len(descriptors)


def test_stop_from_within_the_callback_ends_the_thread_after_it(file: Path) -> None:
    ended = threading.Event()
    watcher: Watcher

    def changed() -> None:
        watcher.stop()
        ended.set()

    watcher = Watcher([str(file)], changed, EVENTS_ONLY)
    watcher.start()
    assert ended.wait(PATIENCE_S)
    watcher.stop()
    assert "headrace-watch" not in {thread.name for thread in threading.enumerate()}


def test_an_edit_reaches_the_callback_soon_after_the_debounce(file: Path, watch: Watch) -> None:
    """The best of a few: a busy machine may be late, a design that waits half a second is never early."""
    _, reader = watch(file)
    best_s = PATIENCE_S
    for number in range(1, 9):
        edit = (in_place, atomic_rename, vim, moved_in_from_elsewhere)[number % 4]
        began = time.monotonic()
        edit(file, str(number))
        reader.wait_until_it_held(str(number))
        best_s = min(best_s, time.monotonic() - began)
    assert best_s < 10 * EVENTS_ONLY.debounce_s


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_watches_anew_and_leaves_the_parent_watching(file: Path) -> None:
    script = """
        import os, sys, threading
        from headrace.policy.plan import ReloadPlan
        from headrace.runtime.watch.fingerprint import fingerprints
        from headrace.runtime.watch.watcher import Watcher

        file = sys.argv[1]
        news = threading.Semaphore(0)
        plan = ReloadPlan(debounce_s=0.02, max_delay_s=1.0, poll_s=600.0, drain_s=1.0)
        watcher = Watcher([file], news.release, plan)
        watcher.start()
        assert news.acquire(timeout=10)

        def edit(content):
            with open(file, "w") as out:
                out.write(content)

        child = os.fork()
        if child == 0:
            watcher.start()
            assert news.acquire(timeout=10)  # the parent's edit below
            os._exit(0)
        edit("1")
        assert news.acquire(timeout=10)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        edit("2")
        assert news.acquire(timeout=10)
        watcher.stop()
        print("both saw it")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "both saw it\n", done.stderr


def test_what_watchdog_logs_of_its_own_stop_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its thread may look once more after it was stopped; the application's log would show an error at a shutdown."""
    events = ObserverEvents(lambda directory, name: None)
    events.close()
    theirs = logging.getLogger("watchdog.observers.inotify")

    theirs.error("InotifyEmitter.queue_events() called when the thread is inactive")
    theirs.error("something else")

    assert caplog.messages == ["something else"]
