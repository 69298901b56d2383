"""Children made by other means than `os.fork`: multiprocessing, and fork(2) behind Python's back."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from support.faultserver import FaultServer, server_context
from support.governed import rules

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

PRELUDE = """
    import ctypes, multiprocessing, os, pathlib, signal, sys, time
    import requests
    import headrace

    URL = os.environ["URL"]

    def call(who):
        assert requests.get(f"{URL}/{who}").headrace.upstream == "billing"
        assert headrace.current().upstream("billing").urlopen("GET", f"/{who}").status == 200
"""


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FaultServer]:
    """With the file for it in `tmp_path`."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with FaultServer(tls=server_context(ca) if request.param == "https" else None) as server:
        tls = "    tls: {ca: ca.pem}\n" if server.tls else ""
        (tmp_path / "upstreams.yaml").write_text(rules(server.url, tls))
        yield server


def run(folder: Path, server: FaultServer, code: str, *arguments: str) -> None:
    """Run *code* after the prelude, as the main module of a process of its own; it has to succeed."""
    (folder / "main.py").write_text(textwrap.dedent(PRELUDE) + textwrap.dedent(code))
    done = subprocess.run(
        [sys.executable, "main.py", *arguments],
        cwd=folder,
        env={**os.environ, "URL": server.url},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def connections(server: FaultServer, who: str) -> set[int]:
    return {one.connection for one in server.requests if one.target == f"/{who}"}


@pytest.mark.parametrize(
    ("server", "method"),
    [("http", "fork"), ("https", "fork"), ("http", "spawn"), ("http", "forkserver")],
    indirect=["server"],
)
def test_a_child_of_multiprocessing_has_connections_of_its_own(
    tmp_path: Path, server: FaultServer, method: str
) -> None:
    """failures.md 26. Forked, it is governed as its parent is; spawned, it installs for itself."""
    run(
        tmp_path,
        server,
        """
        def child(number, inherits):
            if inherits:
                call(f"child{number}")
            else:
                with headrace.install():
                    call(f"child{number}")

        if __name__ == "__main__":
            method = sys.argv[1]
            context = multiprocessing.get_context(method)
            with headrace.install():
                call("before")
                children = [context.Process(target=child, args=(n, method == "fork")) for n in range(2)]
                for one in children:
                    one.start()
                call("meanwhile")
                for one in children:
                    one.join(30)
                assert [one.exitcode for one in children] == [0, 0]
                call("after")
        """,
        method,
    )

    parents = [connections(server, who) for who in ("before", "meanwhile", "after")]
    assert parents == [{1}] * 3
    assert {1} & connections(server, "child0") == set()
    assert {1} & connections(server, "child1") == set()
    assert connections(server, "child0") & connections(server, "child1") == set()


@pytest.mark.parametrize("server", ["http", "https"], indirect=True)
def test_a_child_of_a_bare_fork_has_connections_of_its_own(tmp_path: Path, server: FaultServer) -> None:
    """failures.md 26: fork(2) called from C, as uWSGI does: none of Python's hooks runs, the pid tells."""
    run(
        tmp_path,
        server,
        """
        fork = ctypes.PyDLL(None).fork  # PyDLL keeps the GIL: another thread could have it in the child for good
        # Nor may another thread have asked for the GIL: in the child CPython would hand it over to a thread that does
        # not exist, and wait until it is taken (FORCE_SWITCHING in ceval_gil). A fork from C cannot clear that.
        sys.setswitchinterval(1000)

        def switches():  # of every other thread; elsewhere than on Linux it is just the pause that helps
            try:
                return {
                    task.name: (task / "status").read_text().partition("voluntary_ctxt_switches")[2]
                    for task in pathlib.Path("/proc/self/task").glob("*")
                    if task.name != str(os.getpid())
                }
            except OSError:
                return object()  # one has ended meanwhile

        def in_child(act):
            # Nor may one wait for the GIL, as threads that have just begun do: glibc's condition has a waiter then who
            # does not exist in the child either, and its first signal waits for that one. So all others have to rest.
            for _ in range(100):
                before = switches()
                time.sleep(0.1)
                if switches() == before:
                    break
            pid = fork()
            if pid == 0:
                status = 1
                try:
                    signal.alarm(10)
                    act()
                    status = 0
                except BaseException:
                    sys.excepthook(*sys.exc_info())
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

        with headrace.install() as hr:
            call("before")
            in_child(lambda: [call("child0") for _ in range(3)])
            in_child(lambda: call("child1"))
            call("between")
            in_child(hr.close)
            in_child(lambda: in_child(lambda: call("grandchild")))
            call("after")
            assert hr.status()["upstreams"]["billing"]["attempts"] == {"2xx": 6}
            # A response that the parent is reading is nobody else's to end.
            with requests.get(f"{URL}/streamed", stream=True) as answer:
                in_child(lambda: (answer.close(), call("child2")))
                assert answer.content == b"ok"
        """,
    )

    for who in ("before", "between", "after", "streamed"):
        assert connections(server, who) == {1}, who
    children = [connections(server, who) for who in ("child0", "child1", "child2", "grandchild")]
    assert [len(each) for each in children] == [1] * 4
    assert len({1}.union(*children)) == 5
