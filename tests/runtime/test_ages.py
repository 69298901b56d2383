"""Dates of certificates and secrets: the gauges, the status, and each warning once."""

from __future__ import annotations

import datetime
import os
import time
from pathlib import Path
from typing import Any

import pytest
import trustme
from prometheus_client import CollectorRegistry

import headrace
from headrace.config import load
from headrace.runtime.ages import DAY_S, LOOK_S, Ages
from support.governed import rules
from support.pairs import Files, Pair, issue
from support.waiting import wait_until

NOW = time.time()


def put(file: Path, content: bytes) -> Path:
    fresh = file.with_suffix(".rendered")
    fresh.write_bytes(content)
    os.replace(fresh, file)
    return file


def pair(folder: Path, ca: trustme.CA, *, ends_in_s: float, lives_s: float = 90 * DAY_S) -> tuple[Path, Path]:
    ends = datetime.datetime.fromtimestamp(NOW + ends_in_s, datetime.UTC)
    cert = ca.issue_cert("billing", not_before=ends - datetime.timedelta(seconds=lives_s), not_after=ends)
    pem = b"".join(blob.bytes() for blob in cert.cert_chain_pems)
    return put(folder / "client.pem", pem), put(folder / "client.key", cert.private_key_pem.bytes())


def ca_file(folder: Path, *cas: trustme.CA) -> Path:
    return put(folder / "ca.pem", b"".join(ca.cert_pem.bytes() for ca in cas))


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


class Scene:
    def __init__(self, folder: Path, text: str, **env: str) -> None:
        (folder / "upstreams.yaml").write_text(text)
        self.folder, self.env = folder, env
        self.clock = Clock()
        self.ages = Ages(self.clock)
        self.reload()

    def reload(self) -> None:
        self.configuration = load("upstreams.yaml", env=self.env, cwd=self.folder)
        self.plan = next(iter(self.configuration.upstreams.values()))

    def warned(self, after_s: float = 0.0) -> list[Any]:
        self.clock.now += after_s
        told: list[Any] = []
        self.ages.warn(
            self.configuration.upstreams.values(),
            max_age_s=self.configuration.secrets.max_age_s,
            tell=told.append,
        )
        return told


def mtls(folder: Path, ca: trustme.CA, *, more: str = "", **dates: float) -> Scene:
    cert, key = pair(folder, ca, **dates)
    body = f"    tls: {{ca: '{ca_file(folder, ca)}', cert: '{cert}', key: '{key}'}}\n"
    return Scene(folder, rules("https://billing.internal", body, more=more))


def test_a_certificate_is_warned_of_7_days_and_1_day_ahead_and_when_it_has_ended(tmp_path: Path) -> None:
    scene = mtls(tmp_path, trustme.CA(), ends_in_s=8 * DAY_S)
    assert scene.warned() == []
    (week,) = scene.warned(1.5 * DAY_S)
    assert (week.kind, week.upstreams) == ("client", ("billing",))
    assert "ends in 6 days" in week.line or "ends in 7 days" in week.line
    assert scene.warned(60) == scene.warned(DAY_S) == []
    (day,) = scene.warned(4.7 * DAY_S)
    assert "hours" in day.line
    assert scene.warned(3600) == []
    (over,) = scene.warned(DAY_S)
    assert "has ended" in over.line
    assert scene.warned(DAY_S) == []


def test_a_certificate_that_is_met_on_its_last_day_is_told_once(tmp_path: Path) -> None:
    assert len(mtls(tmp_path, trustme.CA(), ends_in_s=3600).warned()) == 1


def test_a_rotated_certificate_is_another_one(tmp_path: Path) -> None:
    ca = trustme.CA()
    scene = mtls(tmp_path, ca, ends_in_s=3600)
    assert len(scene.warned()) == 1
    pair(tmp_path, ca, ends_in_s=40 * DAY_S)
    scene.reload()
    assert scene.warned(60) == []
    assert scene.ages.certificates(scene.plan)["client"] == pytest.approx(NOW + 40 * DAY_S, abs=2)
    pair(tmp_path, ca, ends_in_s=7200)
    scene.reload()
    assert len(scene.warned(60)) == 1


def test_one_that_lives_for_hours_is_not_warned_of_days_ahead(tmp_path: Path) -> None:
    """A SPIFFE workload's lives for an hour, and is renewed at half of it: it would be a warning at each renewal."""
    scene = mtls(tmp_path, trustme.CA(), ends_in_s=3600, lives_s=3600)
    assert scene.warned() == []
    assert len(scene.warned(3601)) == 1


def test_of_a_ca_file_the_root_that_ends_first_counts_and_a_bundle_does_not(tmp_path: Path) -> None:
    ca = trustme.CA()
    scene = mtls(tmp_path, ca, ends_in_s=40 * DAY_S)
    far = scene.ages.certificates(scene.plan)["ca"]
    assert far > NOW + 300 * DAY_S

    soon, _ = pair(tmp_path, ca, ends_in_s=DAY_S / 2)
    put(tmp_path / "ca.pem", ca.cert_pem.bytes() + soon.read_bytes())
    scene.reload()
    assert scene.ages.certificates(scene.plan)["ca"] == pytest.approx(NOW + DAY_S / 2, abs=2)

    put(tmp_path / "ca.pem", ca.cert_pem.bytes() * 16)
    scene.reload()
    assert scene.ages.certificates(scene.plan)["ca"] == far
    put(tmp_path / "ca.pem", ca.cert_pem.bytes() * 17)
    scene.reload()
    assert "ca" not in scene.ages.certificates(scene.plan)
    for nothing in (b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        put(tmp_path / "ca.pem", nothing)
        scene.reload()
        assert "ca" not in scene.ages.certificates(scene.plan)
    (tmp_path / "client.key").unlink()
    scene.clock.now += LOOK_S + 1
    assert "key" not in scene.ages.secrets(scene.plan)
    scene.warned()


def test_a_secret_older_than_max_age_is_warned_of_once_for_each_that_is_written(tmp_path: Path) -> None:
    token = put(tmp_path / "token", b"1")
    os.utime(token, (NOW, NOW))
    text = (
        f"version: 1\nsecrets: {{max_age: 72h}}\ndefaults: {{headers: {{A: '${{file:{token}}}'}}}}\n"
        "upstreams: {one: {base_url: http://one}, two: {base_url: http://two}}\n"
    )
    scene = Scene(tmp_path, text)
    assert scene.warned(72 * 3600 - 10) == []
    (old,) = scene.warned(20)
    assert (old.kind, old.upstreams, old.file) == ("header", ("one", "two"), str(token))
    assert "3 days" in old.line
    assert scene.warned(DAY_S) == []
    assert scene.ages.secrets(scene.plan)["header"] == pytest.approx(4 * DAY_S, abs=60)

    put(token, b"2")
    os.utime(token, (scene.clock.now, scene.clock.now))
    assert scene.warned(60) == []
    assert len(scene.warned(4 * DAY_S)) == 1


def test_without_max_age_no_secret_is_too_old(tmp_path: Path) -> None:
    token = put(tmp_path / "token", b"1")
    scene = Scene(tmp_path, rules("http://one", f"    headers: {{A: '${{file:{token}}}'}}\n"))
    assert scene.warned(1000 * DAY_S) == []


def test_gauges_and_status_tell_them_by_upstream_and_kind_and_name_no_path(tmp_path: Path) -> None:
    ca = trustme.CA()
    token = put(tmp_path / "token", b"1")
    os.utime(token, (NOW - 3600, NOW - 3600))
    cert, key = pair(tmp_path, ca, ends_in_s=30 * DAY_S)
    body = (
        f"    tls: {{ca: '{ca_file(tmp_path, ca)}', cert: '{cert}', key: '{key}'}}\n"
        f"    headers: {{Authorization: 'Bearer ${{file:{token}}}'}}\n"
    )
    (tmp_path / "upstreams.yaml").write_text(rules("https://billing.internal", body))
    registry = CollectorRegistry()
    with headrace.Headrace(tmp_path / "upstreams.yaml", registry=registry) as hr:
        told = hr.status()["upstreams"]["billing"]
        assert set(told["certificates"]) == {"client", "ca"}
        assert told["certificates"]["client"] == pytest.approx(NOW + 30 * DAY_S, abs=2)
        assert set(told["secrets"]) == {"header", "key"}
        assert 3600 <= told["secrets"]["header"] < 3600 + 600
        assert str(tmp_path) not in str(told)

        def gauge(name: str, kind: str) -> float | None:
            return registry.get_sample_value(name, {"upstream": "billing", "kind": kind})

        expiry = gauge("headrace_tls_certificate_expiry_timestamp_seconds", "client")
        assert expiry == told["certificates"]["client"]
        assert gauge("headrace_tls_certificate_expiry_timestamp_seconds", "ca") == told["certificates"]["ca"]
        age_s = gauge("headrace_secret_age_seconds", "header")
        assert age_s is not None
        assert 3600 <= age_s < 3600 + 600


def test_a_running_instance_warns_in_its_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cert, key = pair(tmp_path, trustme.CA(), ends_in_s=5 * DAY_S)
    (tmp_path / "upstreams.yaml").write_text(
        rules("https://billing.internal", f"    tls: {{cert: '{cert}', key: '{key}'}}\n")
    )
    with headrace.Headrace(tmp_path / "upstreams.yaml", registry=CollectorRegistry()):
        wait_until(lambda: "tls.expires" in caplog.text)
    assert caplog.text.count("tls.expires") == 1


def break_with_another_key(files: Files, newer: Pair, authority: trustme.CA) -> None:
    files.rename(Pair(newer.cert, issue(authority).key))


def break_by_expiry(files: Files, newer: Pair, authority: trustme.CA) -> None:
    files.rename(issue(authority, days=-1))


def break_by_removal(files: Files, newer: Pair, authority: trustme.CA) -> None:
    files.rename(newer)
    files.key.unlink()


@pytest.mark.parametrize("breaks", [break_with_another_key, break_by_expiry, break_by_removal])
def test_what_is_told_is_the_certificate_in_force_and_not_the_one_that_was_refused(
    tmp_path: Path, breaks: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """failures.md 33: whoever watches the gauge would believe that the rotation had worked."""
    authority, registry = trustme.CA(), CollectorRegistry()
    (tmp_path / "pair").mkdir()
    files = Files(tmp_path / "pair", issue(authority, days=5))
    ca = ca_file(tmp_path, authority)
    text = rules("https://billing.internal", f"    tls: {{ca: '{ca}', {files.yaml()}}}\n")

    def told(kind: str) -> float | None:
        return registry.get_sample_value(
            "headrace_tls_certificate_expiry_timestamp_seconds", {"upstream": "billing", "kind": kind}
        )

    (tmp_path / "upstreams.yaml").write_text(text)
    with headrace.Headrace(tmp_path / "upstreams.yaml", registry=registry) as hr:
        wait_until(lambda: "tls.expires" in caplog.text)
        before = {kind: told(kind) for kind in ("client", "ca")}
        assert before["client"] == pytest.approx(time.time() + 5 * DAY_S, abs=60)
        breaks(files, issue(authority, days=90), authority)
        put(
            ca, authority.cert_pem.bytes() + issue(authority, days=1).cert
        )  # of one generation: not taken either
        hr.reload()
        assert hr.status()["upstreams"]["billing"]["tls"]["refused"] is not None
        assert {kind: told(kind) for kind in ("client", "ca")} == before
        assert hr.status()["upstreams"]["billing"]["certificates"] == before
        ages, said = Ages(), list[Any]()
        ages.warn([hr.snapshot.upstream("billing").plan], max_age_s=None, tell=said.append)
        (one,) = said
        assert "in force" in one.line
        assert one.left_s == pytest.approx(5 * DAY_S, abs=120)

        files.rename(issue(authority, days=90))
        hr.reload()
        assert told("client") == pytest.approx(time.time() + 90 * DAY_S, abs=60)
        assert told("ca") == pytest.approx(time.time() + DAY_S, abs=60)


def test_the_file_of_a_passphrase_has_an_age_and_so_has_what_the_secrets_directory_holds(
    tmp_path: Path,
) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    passphrase = put(tmp_path / "pass", b"a word\n")
    cert, key = pair(tmp_path, trustme.CA(), ends_in_s=90 * DAY_S)
    ages = {
        "upstreams__one__headers__Authorization": 5 * DAY_S,
        "HEADRACE_UPSTREAMS__TWO__TLS__KEY_PASSPHRASE": 6 * DAY_S,
        "defaults__headers__X-Key": 2 * DAY_S,
        "upstreams__one__timeouts__attempt": 50 * DAY_S,  # no secret
    }
    contents = {"upstreams__one__timeouts__attempt": b"5s"}
    for name, age_s in ages.items():
        file = put(secrets / name, contents.get(name, b"a word\n"))
        os.utime(file, (NOW - age_s, NOW - age_s))
    os.utime(passphrase, (NOW - 4 * DAY_S, NOW - 4 * DAY_S))
    text = (
        "version: 1\nsecrets: {max_age: 72h}\nupstreams:\n"
        f"  one: {{base_url: https://one, tls: {{cert: '{cert}', key: '{key}', "
        f"key_passphrase: '${{file:{passphrase}}}'}}}}\n"
        "  two: {base_url: https://two, extends: one}\n"
        "  three: {base_url: http://three}\n"
    )
    scene = Scene(tmp_path, text, HEADRACE_SECRETS_DIR=str(secrets))
    plans = scene.configuration.upstreams
    found = {name: scene.ages.secrets(plan) for name, plan in plans.items()}

    assert set(found["one"]) == {"header", "key", "key_passphrase"}
    assert found["one"]["header"] == pytest.approx(5 * DAY_S)
    assert found["one"]["key_passphrase"] == pytest.approx(4 * DAY_S)
    assert found["two"]["key_passphrase"] == pytest.approx(6 * DAY_S)
    assert found["three"] == {"header": pytest.approx(2 * DAY_S)}
    said = {(Path(one.file).name, one.kind): one.upstreams for one in scene.warned()}
    assert said == {
        ("upstreams__one__headers__Authorization", "header"): ("one",),
        ("HEADRACE_UPSTREAMS__TWO__TLS__KEY_PASSPHRASE", "key_passphrase"): ("two",),
        ("pass", "key_passphrase"): ("one",),
    }


def test_a_thousand_upstreams_that_share_a_certificate_cost_one_look_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = pair(tmp_path, trustme.CA(), ends_in_s=5 * DAY_S)
    upstreams = "".join(f"  u{n}: {{base_url: 'https://u{n}.internal'}}\n" for n in range(1000))
    scene = Scene(
        tmp_path,
        f"version: 1\ndefaults: {{tls: {{cert: '{cert}', key: '{key}'}}}}\nupstreams:\n{upstreams}",
    )
    looks: list[Any] = []
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **kw: (looks.append(path), real(path, **kw))[1])
    for plan in scene.configuration.upstreams.values():
        scene.ages.certificates(plan)
        scene.ages.secrets(plan)
    (said,) = scene.warned()
    assert len(said.upstreams) == 1000
    assert "and 992 more" in said.line
    assert looks.count(str(cert)) + looks.count(str(key)) <= 4
