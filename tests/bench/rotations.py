"""Rotations of a client certificate under mTLS traffic: no call fails, and the server sees no old one after each.

    python tests/bench/rotations.py [--rotations 100] [--threads 16] [--seed 1] [--nginx 1.3]

With `--nginx` the server is nginx, of that TLS version, and what it saw is what it logged. Prints each rotation and
what came of it; exits 1 where anything is not as it should be.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from shutil import which

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.rotations import fault_server, nginx_of, rotate_under_traffic


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rotations", type=int, default=100)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--nginx", choices=("1.2", "1.3"))
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="headrace-rotations-") as folder:
        out = rotate_under_traffic(
            Path(folder),
            rotations=given.rotations,
            threads=given.threads,
            seed=given.seed,
            server_of=fault_server
            if given.nginx is None
            else nginx_of(which("nginx") or "nginx", given.nginx),
            say=print,
        )
    print(
        f"{out.rotations} rotations, {out.calls} calls by {given.threads} threads in "
        f"{time.monotonic() - began:.0f} s: {len(out.failed)} failed, {out.resent} sent twice, "
        f"{len(out.late)} seen with an old certificate, closed {out.closed}, left: {out.left or 'nothing'}"
    )
    for failure in out.failed[:20]:
        print(failure)
    return 1 if out.failed or out.late or out.left or out.resent else 0


if __name__ == "__main__":
    sys.exit(main())
