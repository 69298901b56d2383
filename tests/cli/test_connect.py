"""`headrace check --connect`: one upstream is dialled, and every way in which that fails has a text of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from headrace.cli import main
from support.authorities import ADDRESS, DNS, URI, server_of
from support.faultserver import FaultServer, server_context
from support.governed import rules
from support.holes import address_of, black_hole, closed_port, names
from support.interrupts import let_children_be_interrupted
from support.pairs import issue
from support.untrusted import UNTRUSTED, PlainServer, Untrusted, trusting

Captured = pytest.CaptureFixture[str]
V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
versions = pytest.mark.parametrize("version", [V12, V13], ids=["1.2", "1.3"])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("HEADRACE_")]:
        monkeypatch.delenv(name)
    return tmp_path


def write(folder: Path, url: str, tls: str = "", body: str = "", *, more: str = "") -> None:
    """The file; *tls* are keys of `tls`."""
    text = rules(url, (f"    tls: {{{tls}}}\n" if tls else "") + body)
    (folder / "upstreams.yaml").write_text(text + more)


def checked(capsys: Captured, *more: str) -> tuple[int, str, str]:
    """The exit code, what is on standard output, and what is on standard error."""
    code = main(["check", "--connect", "billing", *more])
    said = capsys.readouterr()
    return code, said.out, said.err


def line(output: str, head: str) -> str:
    """What the line that begins with *head* says."""
    return next(
        one.strip()[len(head) :].strip() for one in output.splitlines() if one.strip().startswith(head)
    )


def by_name(server: FaultServer) -> str:
    return server.url.replace("127.0.0.1", "localhost")


@contextlib.contextmanager
def secure(authority: trustme.CA, version: ssl.TLSVersion, client_ca: Any = None) -> Iterator[FaultServer]:
    context = server_context(authority, client_ca=client_ca)
    context.minimum_version = context.maximum_version = version
    with FaultServer(tls=context) as server:
        yield server


# --- What is good ---------------------------------------------------------------------------------------


@versions
def test_a_good_upstream_is_told_step_by_step_and_gets_no_request(
    folder: Path, authority: trustme.CA, ca: Path, version: ssl.TLSVersion, capsys: Captured
) -> None:
    with secure(authority, version) as server:
        write(folder, by_name(server), f"ca: '{ca}'")
        code, out, err = checked(capsys)
        assert (code, err) == (0, "")
        assert server.connections == 2  # the second asks whether it resumes
        assert server.requests == []
    assert "resolve 2s, connect 2s, tls_handshake 2s" in line(out, "limits")
    assert "localhost: 1 address" in line(out, "name")
    assert re.fullmatch(r"127\.0\.0\.1:\d+  connected, [\d.]+ ms", line(out, "addresses"))
    shaken = line(out, "handshake")
    assert "asked for localhost" in shaken
    assert f"TLSv1.{3 if version is V13 else 2}, " in shaken
    assert line(out, "resumption").startswith("yes, ")
    assert "issued by OU=Testing CA" in line(out, "chain")
    assert "; expires 3000-01-01 00:00 UTC, in " in line(out, "chain")
    assert line(out, "identity") == "localhost is verified; the certificate names localhost"
    assert line(out, "client") == "no certificate in tls.cert; not asked for"
    assert out.endswith("good: nothing was sent\n")


@versions
def test_a_client_certificate_is_told_with_its_print_and_its_end(
    folder: Path, authority: trustme.CA, ca: Path, version: ssl.TLSVersion, capsys: Captured
) -> None:
    pair = issue(authority, days=30)
    (folder / "cert.pem").write_bytes(pair.cert)
    (folder / "key.pem").write_bytes(pair.key)
    (folder / "key.pem").chmod(0o600)
    with secure(authority, version, authority) as server:
        write(folder, server.url, f"ca: '{ca}', cert: cert.pem, key: key.pem")
        code, out, _ = checked(capsys)
    assert code == 0
    own = line(out, "client")
    assert re.search(r"cert\.pem \(sha256 [0-9a-f]{16}…\), expires .*, in (29|30) days", own)
    assert own.endswith("asked for by the server")
    assert "PRIVATE KEY" not in out


def test_a_server_that_never_resumes_and_rules_that_want_no_sessions_are_told_apart(
    folder: Path, authority: trustme.CA, ca: Path, capsys: Captured
) -> None:
    context = server_context(authority)
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    with FaultServer(tls=context) as server:
        write(folder, server.url, f"ca: '{ca}'")
        code, out, _ = checked(capsys)
        assert (code, line(out, "resumption").split(",")[0]) == (
            0,
            "no: the server made a full handshake again",
        )
        write(folder, server.url, f"ca: '{ca}', session_resumption: false")
        code, out, _ = checked(capsys)
        assert (code, line(out, "resumption")) == (0, "off: tls.session_resumption is false")


def test_identities_are_told_in_the_place_of_the_host(
    folder: Path, authority: trustme.CA, ca: Path, capsys: Captured
) -> None:
    with secure(authority, V13) as server:
        write(folder, server.url, f"ca: '{ca}', identities: [localhost]")
        code, out, _ = checked(capsys)
    assert code == 0
    assert line(out, "identity").endswith("; tls.identities wants localhost")


def test_names_that_forge_a_line_or_are_no_text_are_told_and_keep_nothing_from_being_good(
    folder: Path, authority: trustme.CA, ca: Path, capsys: Captured
) -> None:
    here = (ADDRESS, bytes([127, 0, 0, 1]))
    for raw, shown in (
        ([here, (URI, b"\xff")], "something that is no text; issued by nobody; no dates"),
        ([here, (DNS, b"a\nFAILED: all")], "CN=x\\n    FAILED: all; issued by OU=Testing CA"),
    ):
        tls = server_of(authority, raw=raw, common_name="x\n    FAILED: all")
        with FaultServer(tls=tls) as server:
            write(folder, server.url, f"ca: '{ca}'")
            code, out, _ = checked(capsys)
        assert (code, line(out, "chain")[: len(shown)]) == (0, shown)
        assert not re.search(r"^ *FAILED", out, re.MULTILINE)


def test_what_is_not_verified_says_so(folder: Path, authority: trustme.CA, capsys: Captured) -> None:
    with secure(authority, V13) as server:
        write(folder, server.url, "verify: false, insecure_skip_verify: true")
        code, out, _ = checked(capsys)
    assert code == 0
    assert line(out, "identity").startswith("NOT verified: tls.verify is false")


def test_each_origin_is_a_block_and_http_has_no_handshake(folder: Path, capsys: Captured) -> None:
    with FaultServer() as first, FaultServer() as second:
        other = by_name(second)
        write(folder, f"{first.url}/v2", body=f"    match: ['{other}', '{first.url}/v3']\n")
        code, out, _ = checked(capsys)
        assert code == 0
        assert (first.requests, second.requests) == ([], [])
    blocks = re.findall(r"^http://.*", out, re.MULTILINE)
    assert blocks == [f"{first.url}/v2", other]
    assert "handshake  " not in out
    assert "chain" not in out


def test_only_that_upstream_is_dialled(folder: Path, capsys: Captured) -> None:
    with FaultServer() as server, FaultServer() as other:
        write(folder, server.url, more=f"  other: {{base_url: '{other.url}'}}\n")
        code, out, _ = checked(capsys)
        server.wait_for(lambda: server.connections == 1)
        assert (code, other.connections) == (0, 0)
    assert "other" not in out


def test_in_json_it_is_part_of_the_object_that_check_prints(
    folder: Path, authority: trustme.CA, ca: Path, capsys: Captured
) -> None:
    with secure(authority, V13) as server:
        write(folder, server.url, f"ca: '{ca}'")
        code, out, _ = checked(capsys, "--format", "json")
        server.refuse()
        failed, refused, _ = checked(capsys, "--format", "json")
    found = json.loads(out)
    assert (code, found["good"], found["problems"]) == (0, True, [])
    tried = found["connect"]
    assert (tried["name"], tried["good"]) == ("billing", True)
    assert tried["limits"] == {"resolve_s": 2, "connect_s": 2, "tls_handshake_s": 2}
    (origin,) = tried["origins"]
    assert origin["addresses"][0]["connected"] is True
    assert origin["handshake"]["protocol"] == "TLSv1.3"
    assert origin["handshake"]["client_certificate_asked_for"] is False
    assert origin["chain"][0]["not_after"] > time.time()
    assert origin["resumption"]["resumed"] is True
    assert failed == 1
    (origin,) = json.loads(refused)["connect"]["origins"]
    assert origin["failure"]["outcome"] == "connect_failure"
    assert "refused" in origin["addresses"][0]["problem"]


# --- What is not ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", UNTRUSTED.values(), ids=[*UNTRUSTED])
def test_a_certificate_that_is_not_accepted_is_told_with_its_chain_and_what_to_do(
    folder: Path, case: Untrusted, capsys: Captured
) -> None:
    """A call gets the same words: `tests/adapters/test_tls_refusals.py`."""
    with FaultServer(tls=case.makes(folder)) as server:
        write(folder, by_name(server), trusting(folder))
        code, out, _ = checked(capsys)
        assert server.requests == []
    assert code == 1
    assert line(out, "FAILED").startswith("certificate: ")
    assert case.says in line(out, "FAILED")
    assert case.advice in line(out, "what to do")
    assert "issued by" in line(out, "chain")
    assert "_ssl.c" not in out


def test_an_issuer_that_is_missing_is_told_from_one_that_is_not_trusted(
    folder: Path, capsys: Captured
) -> None:
    said = {}
    for name in ("missing intermediate", "unknown CA"):
        with FaultServer(tls=UNTRUSTED[name].makes(folder)) as server:
            write(folder, by_name(server), trusting(folder))
            said[name] = line(checked(capsys)[1], "FAILED")
    assert "the server sends this one certificate alone" in said["missing intermediate"]
    assert "the server sends 2 certificates, and the last is issued by OU=Testing CA" in said["unknown CA"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_another_host_is_told_with_the_names_that_the_certificate_has_but_not_of_a_secret_url(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured, form: str
) -> None:
    with FaultServer(tls=UNTRUSTED["wrong host"].makes(folder)) as server:
        write(folder, by_name(server), trusting(folder))
        code, out, _ = checked(capsys, "--format", form)
        assert (code, "is not valid for 'localhost'" in out, "; it names other.test" in out) == (
            1,
            True,
            True,
        )
        monkeypatch.setenv("URL", by_name(server))
        write(folder, "'${env:URL}'", trusting(folder))
        code, out, _ = checked(capsys, "--format", form)
        assert (code, "localhost" in out, "other.test" in out) == (1, False, False)
        assert "FAILED" in out or "failure" in out


def test_dates_that_do_not_hold_stand_in_the_chain(folder: Path, capsys: Captured) -> None:
    for name, word in (("expired", "EXPIRED 20"), ("not yet valid", "NOT VALID before 20")):
        with FaultServer(tls=UNTRUSTED[name].makes(folder)) as server:
            write(folder, by_name(server), trusting(folder))
            assert word in line(checked(capsys)[1], "chain")


@versions
def test_a_client_certificate_that_is_wanted_is_told_under_1_3_too_where_it_comes_after_the_handshake(
    folder: Path, authority: trustme.CA, ca: Path, version: ssl.TLSVersion, capsys: Captured
) -> None:
    with secure(authority, version, authority) as server:
        write(folder, server.url, f"ca: '{ca}'")
        code, out, _ = checked(capsys)
    assert code == 1
    assert "write tls.cert and tls.key" in line(out, "what to do")
    if version is V13:
        assert line(out, "client").endswith("asked for by the server")
    else:
        assert "the server asks for a client certificate" in line(out, "FAILED")


@versions
def test_a_client_certificate_of_another_ca_is_told(
    folder: Path, authority: trustme.CA, ca: Path, version: ssl.TLSVersion, capsys: Captured
) -> None:
    pair = issue(authority)
    (folder / "both.pem").write_bytes(pair.cert + pair.key)
    (folder / "both.pem").chmod(0o600)
    with secure(authority, version, trustme.CA()) as server:
        write(folder, server.url, f"ca: '{ca}', cert: both.pem")
        code, out, _ = checked(capsys)
    assert code == 1
    assert "the server does not know the CA of the client certificate" in line(out, "what to do")


def test_another_identity_is_told_with_what_was_offered_and_wanted(
    folder: Path, authority: trustme.CA, ca: Path, capsys: Captured
) -> None:
    with secure(authority, V13) as server:
        write(folder, server.url, f"ca: '{ca}', identities: ['spiffe://prod/billing']")
        code, out, _ = checked(capsys)
    assert code == 1
    assert "tls.identities accepts spiffe://prod/billing" in line(out, "FAILED")
    assert "the certificate of the server names localhost" in line(out, "FAILED")


def test_no_version_in_common_is_told(
    folder: Path, authority: trustme.CA, ca: Path, capsys: Captured
) -> None:
    with secure(authority, V12) as server:
        write(folder, server.url, f"ca: '{ca}', min_version: '1.3'")
        code, out, _ = checked(capsys)
    assert code == 1
    assert "no TLS version in common" in line(out, "what to do")


def test_plain_http_on_the_port_is_told(folder: Path, ca: Path, capsys: Captured) -> None:
    with PlainServer() as server:
        write(folder, server.url, f"ca: '{ca}'")
        code, out, _ = checked(capsys)
    assert code == 1
    assert "the server does not speak TLS on this port" in line(out, "what to do")


def test_a_server_that_hangs_in_the_handshake_is_told_within_the_limit(
    folder: Path, ca: Path, capsys: Captured
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        write(folder, url, f"ca: '{ca}'", "    timeouts: {tls_handshake: 200ms}\n")
        code, out, _ = checked(capsys)
    assert code == 1
    assert line(out, "FAILED").endswith("the handshake was not over within 0.2 s (timeouts.tls_handshake)")


def test_a_server_that_hangs_up_in_the_handshake_is_told(
    folder: Path, authority: trustme.CA, ca: Path, capsys: Captured
) -> None:
    with secure(authority, V13) as server:
        server.on_accept = "fin"
        write(folder, server.url, f"ca: '{ca}'")
        code, out, _ = checked(capsys)
    assert code == 1
    assert line(out, "FAILED").startswith("tls_failure: ")


def test_a_server_that_hangs_up_right_after_the_handshake_is_told(
    folder: Path, authority: trustme.CA, ca: Path, capsys: Captured
) -> None:
    context = server_context(authority)

    def serve(listener: socket.socket) -> None:
        with listener.accept()[0] as plain, contextlib.suppress(OSError):
            context.wrap_socket(plain, server_side=True).close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        write(folder, f"https://127.0.0.1:{listener.getsockname()[1]}", f"ca: '{ca}'")
        code, out, _ = checked(capsys)
        thread.join(20.0)
    assert code == 1
    assert line(out, "handshake")
    assert line(out, "FAILED").startswith("reset: ")


def test_a_closed_port_is_told(folder: Path, capsys: Captured) -> None:
    write(folder, f"http://127.0.0.1:{closed_port()}")
    code, out, _ = checked(capsys)
    assert code == 1
    assert line(out, "addresses").endswith("refused: nothing listens on this port")
    assert line(out, "FAILED") == (
        "connect_failure: no address connects: refused: nothing listens on this port"
    )


def test_an_address_that_swallows_everything_is_told_within_the_limit(folder: Path, capsys: Captured) -> None:
    with black_hole() as port:
        write(folder, f"http://127.0.0.1:{port}", body="    timeouts: {connect: 200ms, resolve: 100ms}\n")
        code, out, _ = checked(capsys)
    assert code == 1
    assert "timed out after 0.2 s (timeouts.connect)" in line(out, "addresses")


def test_each_address_is_told_and_one_that_answers_is_enough(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    with FaultServer() as server, black_hole() as hole, names(monkeypatch) as told:
        port = int(server.url.rsplit(":", 1)[1])
        told.known["many.test"] = [address_of(closed_port()), address_of(hole), address_of(port)]
        write(folder, f"http://many.test:{port}", body="    timeouts: {connect: 500ms}\n")
        code, out, _ = checked(capsys)
    assert code == 0
    addresses = [one for one in out.splitlines() if "127.0.0.1:" in one]
    assert ["refused" in addresses[0], "timed out" in addresses[1], "connected" in addresses[2]] == [True] * 3


def test_a_name_that_is_not_known_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    with names(monkeypatch):
        write(folder, "https://nowhere.test")
        code, out, _ = checked(capsys)
    assert code == 1
    assert line(out, "FAILED").startswith("dns_failure: nowhere.test could not be looked up: ")


def test_a_name_server_that_is_silent_is_told_within_the_limit(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    with names(monkeypatch) as told:
        told.hang("slow.test")
        write(folder, "https://slow.test", body="    timeouts: {resolve: 200ms}\n")
        code, out, _ = checked(capsys)
    assert code == 1
    assert (
        line(out, "FAILED") == "resolve_timeout: slow.test was not looked up within 0.2 s (timeouts.resolve)"
    )


# --- Usage, problems, secrets, Ctrl-C -------------------------------------------------------------------


def test_another_name_is_wrong_usage_and_says_which_there_are(folder: Path, capsys: Captured) -> None:
    write(folder, "http://127.0.0.1:1", more="  ledger: {base_url: 'http://127.0.0.1:2'}\n")
    assert main(["check", "--connect", "biling"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "no upstream 'biling'; did you mean billing? there are: billing, ledger" in said.err
    assert main(["check", "--connect", "billing", "--workers", "2"]) == 2
    assert "not allowed with" in capsys.readouterr().err


def test_a_file_with_problems_is_not_dialled(folder: Path, capsys: Captured) -> None:
    with FaultServer() as server:
        write(folder, server.url, body="    retry: {max_attempts: three}\n")
        code, _, err = checked(capsys)
        assert (code, server.connections) == (1, 0)
    assert "retry.max_attempts" in err


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_comes_from_a_secret_is_not_printed(
    folder: Path,
    authority: trustme.CA,
    ca: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
    form: str,
) -> None:
    with secure(authority, V13) as server:
        monkeypatch.setenv("URL", by_name(server))
        monkeypatch.setenv("TOKEN", "s3cr3t-token")
        body = "    headers: {Authorization: '${env:TOKEN}'}\n"
        write(folder, "'${env:URL}'", f"ca: '{ca}'", body)
        code, out, err = checked(capsys, "--format", form)
        assert code == 0
        for secret in ("s3cr3t", "localhost", "127.0.0.1", server.url.rsplit(":", 1)[1]):
            assert secret not in out + err
        server.refuse()
        code, out, err = checked(capsys, "--format", form)
        assert code == 1
        for secret in ("localhost", "127.0.0.1"):
            assert secret not in out + err


def test_ctrl_c_ends_it_at_once_with_a_line_that_says_in_what(folder: Path, ca: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60.0)
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        write(folder, url, f"ca: '{ca}'", "    timeouts: {tls_handshake: 40s, deadline: 5m, attempt: 60s}\n")
        let_children_be_interrupted()
        process = subprocess.Popen(
            [sys.executable, "-m", "headrace", "check", "--connect", "billing"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell that has put the tests into the background has them ignore it, and so what they start.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.recv(1)  # its hello: the handshake is under way
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
            assert time.monotonic() - began < 20.0
    assert process.returncode == 130
    assert err == f"headrace check: interrupted while shaking hands ({url})\n"
