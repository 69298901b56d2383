"""A process of its own that makes calls while it is made to stand still.

with Standing(tmp_path, rules(...), path="/", threads=6) as child:
    server.wait_for(lambda: len(server.requests) == 6)
    child.stop(1.8)                  # or child.hold_gil(1.8)
    report = child.report()          # {"ended": [...], "state": "closed", "calls": 6}
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Self

Surface = Literal["requests", "requests-stream", "urlopen", "urlopen-stream"]


class Standing:
    """The child, started. Its calls begin when it is made; use `with`."""

    def __init__(self, folder: Path, text: str, *, surface: Surface = "requests", threads: int = 6) -> None:
        file = folder / "upstreams.yaml"
        file.write_text(text)
        paths = [str(Path(__file__).parents[1]), *sys.path]
        self._child = subprocess.Popen(
            [sys.executable, "-m", "support.standing", str(file), surface, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )

    def stop(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after *seconds*. Blocks."""
        os.kill(self._child.pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(self._child.pid, signal.SIGCONT)

    def hold_gil(self, seconds: float) -> None:
        """Have a C call of the child hold the GIL for *seconds*."""
        assert self._child.stdin is not None
        self._child.stdin.write(f"{seconds}\n")
        self._child.stdin.flush()

    def report(self) -> dict[str, Any]:
        """What became of its calls. Blocks until all have ended."""
        out, _ = self._child.communicate(timeout=60)
        return json.loads(out)  # type: ignore[no-any-return]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._child.kill()
        self._child.communicate()


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


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
