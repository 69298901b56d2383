"""A process of its own that makes calls while it is made to stand still.

with Nursery() as nursery, Standing(nursery, tmp_path, rules(...), threads=6) as child:
    server.wait_for(lambda: len(server.requests) == 6)
    child.stop(1.8)                  # or child.hold_gil(1.8)
    report = child.report()          # {"ended": [...], "state": "closed", "calls": 6}
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Self

Surface = Literal["requests", "requests-stream", "urlopen", "urlopen-stream"]


class Nursery:
    """A process that has imported what the children need, and forks them: the imports take longer than most tests.

    It has no thread and no headrace of its own, so that a child is what a process of its own would be. Use `with`.
    """

    def __init__(self) -> None:
        paths = [str(Path(__file__).parents[1]), *sys.path]
        self._door, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "support.standing", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            )

    def fork(self, arguments: list[Any], *, reads: int, writes: int) -> int:
        """The pid of a child that makes calls by *arguments*, with these as its stdin and stdout. Blocks."""
        socket.send_fds(self._door, [json.dumps(arguments).encode()], [reads, writes])
        return int(self._door.recv(100))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._door.close()  # it reads that, and ends
        self._process.wait(60)


class Standing:
    """The child, started. Its calls begin when it is made; use `with`."""

    def __init__(
        self, nursery: Nursery, folder: Path, text: str, *, surface: Surface = "requests", threads: int = 6
    ) -> None:
        file = folder / "upstreams.yaml"
        file.write_text(text)
        reads, told = os.pipe()
        said, writes = os.pipe()
        self._told, self._said = os.fdopen(told, "w"), os.fdopen(said)
        self._pid = nursery.fork([str(file), surface, threads], reads=reads, writes=writes)
        os.close(reads)
        os.close(writes)

    def stop(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after *seconds*. Blocks."""
        os.kill(self._pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(self._pid, signal.SIGCONT)

    def hold_gil(self, seconds: float) -> None:
        """Have a C call of the child hold the GIL for *seconds*."""
        self._told.write(f"{seconds}\n")
        self._told.flush()

    def report(self) -> dict[str, Any]:
        """What became of its calls. Blocks until all have ended."""
        killer = threading.Timer(60, self._kill)
        killer.start()
        try:
            return json.loads(self._said.read())  # type: ignore[no-any-return]
        finally:
            killer.cancel()
            killer.join()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._kill()
        self._told.close()
        self._said.close()


def _hold_gil_when_told() -> None:
    for line in sys.stdin:
        ctypes.PyDLL(None).usleep(int(float(line) * 1e6))  # PyDLL keeps the GIL


def _call(surface: str, hr: Any, base: str) -> tuple[int, int]:
    import requests

    handle = hr.upstream("billing")
    match surface:
        case "requests":
            response = requests.post(base, data=b"x")
            return response.status_code, len(response.content)
        case "requests-stream":
            response = requests.post(base, data=b"x", stream=True)
            return response.status_code, len(response.content)
        case "urlopen":
            answer = handle.urlopen("POST", "/", body=b"x")
            return answer.status, len(answer.data)
        case _:
            answer = handle.urlopen("POST", "/", body=b"x", preload_content=False)
            return answer.status, len(answer.read())


def _main(file: str, surface: str, threads: int) -> None:
    import headrace

    with headrace.install(file) as hr:
        upstream = hr.snapshot.upstreams["billing"]
        base = f"{upstream.endpoint.pool.scheme}://127.0.0.1:{upstream.endpoint.pool.port}/"

        def call() -> str:
            try:
                status, length = _call(surface, hr, base)
                return f"{status} {length}"
            except Exception as error:
                traceback.print_exception(error)  # for the reader of a failed test
                verdicts = [one.verdict for one in error.headrace.attempts]  # type: ignore[attr-defined]
                return f"{type(error).__name__} {' '.join(verdicts)}"

        threading.Thread(target=_hold_gil_when_told, daemon=True).start()
        with ThreadPoolExecutor(threads) as pool:
            calls = [pool.submit(call) for _ in range(threads)]
            ended = [one.result() for one in calls]
        view = upstream.learned.circuit.view(time.monotonic())
        print(
            json.dumps(
                {"ended": ended, "state": view.state.value, "calls": view.calls, "failures": view.failures}
            )
        )


def _serve(door: socket.socket) -> None:
    """In the nursery: forks whom it is asked for, until nobody is there to ask."""
    import requests  # noqa: F401

    from headrace import install  # noqa: F401 - a bare `import headrace` imports nearly nothing

    while True:
        message, descriptors, _, _ = socket.recv_fds(door, 4096, 2)
        if not message:
            return
        with contextlib.suppress(
            ChildProcessError
        ):  # only now: until then nobody else gets the number of one
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        pid = os.fork()
        if pid == 0:
            door.close()
            for standard, descriptor in enumerate(descriptors):
                os.dup2(descriptor, standard)
                os.close(descriptor)
            try:
                _main(*json.loads(message))
                sys.stdout.flush()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)
        door.send(str(pid).encode())


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as _door:
        _serve(_door)
