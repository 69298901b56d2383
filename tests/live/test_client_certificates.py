"""Client certificates against nginx, by its own account of who has called."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme

from headrace.cli import main
from support.governed import rules, running
from support.nginx import Nginx
from support.pairs import Files, Rendered, Volume, issue
from support.rotations import demanding, nginx_of, rotate_under_traffic

MakeNginx = Callable[..., Nginx]
ONE_EACH = (
    "keepalive_timeout 0;\nlocation / { return 200 fine; }\n"  # each request has a connection of its own
)
VERSIONS = ("1.2", "1.3")
versions = pytest.mark.parametrize("version", VERSIONS)


def volume(folder: Path, first: Any) -> Files:
    return Volume(folder / "volume", first)


@pytest.fixture
def files(authority: trustme.CA, tmp_path: Path) -> Files:
    (tmp_path / "pair").mkdir()
    made = Files(tmp_path / "pair", issue(authority))
    made.key.chmod(0o600)
    return made


@versions
@pytest.mark.parametrize(
    "store",
    [
        pytest.param(Files, id="two files, in all ways"),
        pytest.param(volume, id="a volume of Kubernetes"),
        pytest.param(Rendered, id="rendered by an agent"),
    ],
)
def test_rotations_under_traffic_cost_no_call_and_nginx_sees_no_old_certificate_after_each(
    tmp_path: Path, require_program: Callable[[str], str], version: str, store: Any
) -> None:
    """failures.md 33."""
    server = nginx_of(require_program("nginx"), version)
    out = rotate_under_traffic(tmp_path, rotations=3, threads=7, seed=2, server_of=server, store=store)
    assert (out.failed, out.late, out.left, out.resent) == ([], [], [], 0)
    assert out.rotations == 3
    assert out.closed["rotated"] >= 3


@versions
def test_within_one_certificate_connections_resume_and_none_goes_on_with_a_session_of_the_old_one(
    tmp_path: Path, nginx: MakeNginx, authority: trustme.CA, ca: Path, files: Files, version: str
) -> None:
    """failures.md 33: a resumed connection would bring the old identity with it, whatever was loaded since."""
    server = nginx(ONE_EACH, ca=authority, tls=f"ssl_protocols TLSv{version};\n" + demanding(ca))
    with running(tmp_path, rules(server.url, f"    tls: {{ca: '{ca}', {files.yaml()}}}\n")) as hr:
        serials = []
        for nth in range(3):
            if nth:
                files.rename(new := issue(authority))
                serials.append(new.serial)
                hr.reload()
            for _ in range(3):
                assert requests.get(server.url).status_code == 200
    lines = server.settled()
    assert [line.client for line in lines[3:]] == [serial for serial in serials for _ in range(3)]
    assert len({line.client for line in lines[:3]}) == 1
    assert [line.resumed for line in lines] == [False, True, True] * 3
    assert len({line.connection for line in lines}) == 9


@versions
def test_check_tells_that_nginx_wants_a_client_certificate_and_that_it_got_one(
    tmp_path: Path,
    nginx: MakeNginx,
    authority: trustme.CA,
    ca: Path,
    files: Files,
    version: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """nginx ends the handshake without one, and refuses the request: nobody who sends none hears of it."""
    monkeypatch.chdir(tmp_path)
    server = nginx(ONE_EACH, ca=authority, tls=f"ssl_protocols TLSv{version};\n" + demanding(ca))

    def client_of(pair: str) -> str:
        (tmp_path / "upstreams.yaml").write_text(rules(server.url, f"    tls: {{ca: '{ca}'{pair}}}\n"))
        assert main(["check", "--connect", "billing"]) == 0
        out = capsys.readouterr().out
        assert re.search(r"resumption +yes", out)
        _, _, said = out.partition("    client")
        return " ".join(said.partition("resumption")[0].split())

    own = client_of(f", {files.yaml()}")
    assert own.endswith("asked for by the server")
    assert "sha256" in own
    without = client_of("")
    assert without.startswith("no certificate in tls.cert; asked for by the server some servers")
    assert "(nginx: 400); then write tls.cert and tls.key" in without
    assert server.settled() == []  # check sends no request

    with running(tmp_path, rules(server.url, f"    tls: {{ca: '{ca}'}}\n")):
        refused = requests.get(server.url)
    assert (refused.status_code, "No required SSL certificate" in refused.text) == (400, True)
