"""A new TLS connection for each call: resumed against full, and against urllib3 and requests. Wall and client CPU.

    python tests/bench/reconnect.py [rounds]

nginx closes each connection after its answer. urllib3 has one context for all (stock's default would load the bundle
each time, as requests does). Sides are measured in turn; a ratio is the median over the rounds of a / b.
"""

from __future__ import annotations

import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from shutil import which
from typing import Any

import requests
import trustme
import urllib3
from interleaved import ratio
from prometheus_client import CollectorRegistry

import headrace
from headrace.policy.identities import is_of, names_of

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.nginx import Nginx

SERVER = "keepalive_timeout 0;\naccess_log off;\nlocation / { return 200 fine; }\n"
TURNS = 40
SIDES = ("resumed", "full", "identity", "urllib3", "requests")


def rules(url: str, ca: Path) -> str:
    upstreams = {
        "resumed": "",
        "full": ", session_resumption: false",
        "identity": ", session_resumption: false, identities: [localhost]",
    }
    lines = [
        f"  {name}: {{base_url: '{url}/{name}', tls: {{ca: '{ca}'{more}}}}}"
        for name, more in upstreams.items()
    ]
    return "\n".join(["version: 1", "install: {requests: false}", "upstreams:", *lines, ""])


def by_name(hr: headrace.Headrace, name: str) -> Callable[[], object]:
    one = hr.upstream(name)
    return lambda: one.urlopen("GET", "/").data


def measure(act: Callable[[], object], turns: int) -> tuple[float, float]:
    """Microseconds per turn: wall, and CPU of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(turns):
        act()
    return (time.perf_counter() - wall) / turns * 1e6, (time.process_time() - cpu) / turns * 1e6


def compare(folder: Path, program: str, version: str, kind: trustme.KeyType, rounds: int) -> None:
    folder.mkdir()
    authority = trustme.CA(key_type=kind)

    class Issuer:
        def issue_cert(self, *names: str) -> Any:
            return authority.issue_cert(*names, key_type=kind)

    ca = folder / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    tls = f"ssl_protocols TLSv{version};\nssl_session_tickets on;\n"
    with ExitStack() as stack:
        nginx = stack.enter_context(Nginx(folder / "nginx", program, SERVER, ca=Issuer(), tls=tls))
        context = ssl.create_default_context(cafile=str(ca))
        pool = urllib3.HTTPSConnectionPool(nginx.host, nginx.port, ssl_context=context)
        file = folder / "upstreams.yaml"
        file.write_text(rules(nginx.url, ca))
        hr = stack.enter_context(headrace.Headrace(file, registry=CollectorRegistry()))
        bundle = folder / "bundle.pem"  # requests' default loads one like it for each connection
        bundle.write_bytes(Path(requests.certs.where()).read_bytes() + ca.read_bytes())
        acts: dict[str, Callable[[], object]] = {
            **{name: by_name(hr, name) for name in SIDES[:3]},
            "urllib3": lambda: pool.request("GET", "/", retries=False).data,
            "requests": lambda: requests.get(nginx.url, verify=str(bundle), timeout=10).content,
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in SIDES}
        for name in SIDES:
            acts[name]()
        for turn in range(rounds):
            for name in (*SIDES[turn % 5 :], *SIDES[: turn % 5]):
                found[name].append(measure(acts[name], 8 if name == "requests" else TURNS))
    words = [f"{version} {kind.name:5}"]
    for name in SIDES:
        wall, cpu = (statistics.median(one[at] for one in found[name]) for at in (0, 1))
        words.append(f"{name} {wall:.0f}/{cpu:.0f}")
    for one, other in (
        ("resumed", "full"),
        ("resumed", "urllib3"),
        ("resumed", "requests"),
        ("identity", "full"),
    ):
        ratios = [ratio([it[at] for it in found[one]], [it[at] for it in found[other]]) for at in (0, 1)]
        words.append(f"{one}:{other} {ratios[0]:.2f}/{ratios[1]:.2f}")
    print(" | ".join(words), flush=True)


def compare_identity() -> None:
    """The comparison by itself; `getpeercert()` is what CPython takes to read the certificate."""
    names = tuple(("DNS", f"n{number}.internal") for number in range(5))
    certificate = {"subjectAltName": (("URI", "spiffe://prod/billing"), *names)}
    accepted = names_of(("spiffe://prod/billing", "billing.internal"))
    wall, _ = measure(lambda: is_of(certificate, accepted), 100_000)
    print(f"identity: the comparison {wall:.2f} us")


if __name__ == "__main__":
    program = which("nginx")
    if program is None:
        sys.exit("needs nginx")
    n_rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    compare_identity()
    with tempfile.TemporaryDirectory() as place:
        for one in ("1.2", "1.3"):
            for key in (trustme.KeyType.ECDSA, trustme.KeyType.RSA):
                compare(Path(place) / f"{one}{key.name}", program, one, key, n_rounds)
