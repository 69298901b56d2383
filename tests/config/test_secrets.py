"""Whatever came from outside the file is shown nowhere."""

from __future__ import annotations

import logging
import pickle
import traceback
from pathlib import Path

import pytest

from headrace import cli
from headrace.config import Inspection, load
from headrace.config.explain.explain import explain
from headrace.errors import ConfigError
from support.configs import InspectText, LoadText

SECRET = "hunter2-Tr0ub4dor"
BASE = "upstreams:\n  billing:\n    base_url: https://billing.internal\n"


@pytest.mark.parametrize(
    "yaml",
    [
        pytest.param(BASE + "    mode: ${env:S}\n", id="word"),
        pytest.param(BASE + "    retry: {max_attempts: '${env:S}'}\n", id="integer"),
        pytest.param(BASE + "    retry: {max_attempts: '3${env:S}'}\n", id="part-of-a-value"),
        pytest.param(BASE + "    retry: {retry_on: ['${env:S}'], methods: ['${env:S}']}\n", id="list-items"),
        pytest.param(BASE + "    retry: '${env:S}'\n", id="instead-of-a-map"),
        pytest.param(BASE + "    timeouts: {attempt: '${env:S}'}\n", id="duration"),
        pytest.param(BASE + "    tls: {verify: '${env:S}', min_version: '${env:S}'}\n", id="tls-words"),
        pytest.param(BASE + "    tls: {ca: '${env:S}', key: '/x/${env:S}'}\n", id="paths"),
        pytest.param(BASE + "    extends: ${env:S}\n", id="extends"),
        pytest.param(BASE + '    headers: {X: "${env:S}\\n"}\n', id="header-value"),
        pytest.param(BASE + "    match: ['${env:S}', 'https://${env:S}:x@a.internal']\n", id="urls"),
        pytest.param(
            "upstreams:\n  a: {base_url: 'https://${env:S}.internal'}\n  b: {base_url: 'https://${env:S}.internal'}\n",
            id="two-claims",
        ),
        pytest.param(BASE + "    headers: {X: '${file:secret}${env:NOPE}'}\n", id="beside-an-unset-variable"),
        pytest.param(
            "version: ${env:S}\nservice: {request_id: {header: '${env:S} x'}}\n" + BASE, id="service"
        ),
    ],
)
def test_secret_is_in_no_error_text_problem_repr_or_traceback(
    load_text: LoadText, tmp_path: Path, yaml: str, caplog: pytest.LogCaptureFixture
) -> None:
    """failures.md 52."""
    (tmp_path / "secret").write_text(SECRET)
    with caplog.at_level(logging.DEBUG), pytest.raises(ConfigError) as caught:
        load_text(yaml, env={"S": SECRET})
    error = caught.value
    everything = [str(error), repr(error), repr(error.problems), caplog.text]
    everything += traceback.format_exception(error)
    everything.append(str(pickle.loads(pickle.dumps(error)).problems))
    seen: BaseException | None = error
    while seen is not None:  # what a crash reporter would print of the chain
        everything.append(repr(seen))
        seen = seen.__cause__ or seen.__context__
    assert SECRET.lower() not in "\n".join(everything).lower()


@pytest.mark.parametrize(
    "name", ["MODE", "RETRY__MAX_ATTEMPTS", "TIMEOUTS__ATTEMPT", "POOL", "RETRY__METHODS", "BASE_URL"]
)
@pytest.mark.parametrize("value", [SECRET, f"[{SECRET}", f"{{a: {SECRET}}}"])
def test_secret_in_the_wrong_variable_is_in_no_error(load_text: LoadText, name: str, value: str) -> None:
    """failures.md 52."""
    with pytest.raises(ConfigError) as caught:
        load_text(BASE, env={f"HEADRACE_UPSTREAMS__BILLING__{name}": value})
    assert SECRET not in str(caught.value) + repr(caught.value.problems)
    assert f"environment HEADRACE_UPSTREAMS__BILLING__{name}" in str(caught.value)


def good(inspect_text: InspectText, tmp_path: Path) -> Inspection:
    (tmp_path / "secret").write_text(SECRET)
    return inspect_text(
        "upstreams:\n  billing:\n    base_url: https://${env:S}.internal\n"
        "    headers: {Authorization: 'Bearer ${env:S}', X-File: '${file:secret}', X-Plain: written-in-the-file}\n"
        "    tls: {server_name: '${env:S}'}\n    timeouts: {attempt: '${env:T}'}\n",
        env={"S": SECRET, "T": "3s", "HEADRACE_UPSTREAMS__BILLING__HEADERS__X_ENV": SECRET},
    )


def test_secret_is_in_no_repr_of_a_good_configuration(inspect_text: InspectText, tmp_path: Path) -> None:
    """failures.md 52: headers are not in a plan's repr, and trees mask what came from outside."""
    inspection = good(inspect_text, tmp_path)
    assert inspection.configuration is not None
    plan = inspection.configuration.upstreams["billing"]
    assert dict(plan.headers)["Authorization"] == f"Bearer {SECRET}"
    assert dict(plan.headers)["X-ENV"] == SECRET
    assert SECRET not in repr(plan.retry) + repr(plan.timeouts) + repr(inspection.written)
    assert f"Bearer {SECRET}" not in repr(plan)
    assert SECRET not in repr(inspection)


def test_secret_is_not_explained(inspect_text: InspectText, tmp_path: Path) -> None:
    """failures.md 52."""
    inspection = good(inspect_text, tmp_path)
    url = f"https://{SECRET}.internal/x"
    text = explain(inspection, url, method="POST", status=503, env={}).text()
    assert text.startswith(url)
    body = text.removeprefix(url)
    assert SECRET.lower() not in body.lower()
    assert "written-in-the-file" not in body
    assert "timeouts.attempt" in body
    assert " 3s" not in body  # interpolated, however harmless
    assert body.count("***") >= 6


def test_password_in_the_url_to_explain_is_not_repeated(inspect_text: InspectText) -> None:
    """failures.md 52."""
    inspection = inspect_text("upstreams: {a: {base_url: http://a}}")
    for host in ("a", "b"):
        assert "pw" not in str(explain(inspection, f"http://user:pw@{host}/x", env={}))


def test_secret_is_not_checked_aloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """failures.md 52."""
    (tmp_path / "u.yaml").write_text(
        "upstreams:\n  billing: {base_url: 'https://${env:S}.internal', headers: {X: '${env:S}'}}\n"
    )
    monkeypatch.setenv("S", SECRET)
    monkeypatch.chdir(tmp_path)
    for arguments in (["check", "u.yaml"], ["check", "u.yaml", "--format", "json"]):
        assert cli.main(arguments) == 0
        captured = capsys.readouterr()
        assert SECRET.lower() not in (captured.out + captured.err).lower()
        assert "***" in captured.out


def test_password_written_into_a_base_url_is_not_repeated(load_text: LoadText) -> None:
    """failures.md 52."""
    with pytest.raises(ConfigError) as caught:
        load_text("upstreams: {a: {base_url: 'https://user:p@ss/w0rd@a.internal/x'}}")
    assert "w0rd" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "counts"),
    [
        pytest.param("fallback: {body: '${file:secret}'}", True, id="a load"),
        pytest.param("headers: {X: '${file:secret}'}", False, id="headers follow it without one"),
    ],
)
def test_file_with_secrets_is_watched_and_part_of_the_digest_where_its_change_is_a_load(
    tmp_path: Path, key: str, counts: bool
) -> None:
    (tmp_path / "u.yaml").write_text(f"upstreams: {{a: {{base_url: http://a, {key}}}}}")
    digests = []
    for content in ("one", "two"):
        (tmp_path / "secret").write_text(content)
        configuration = load("u.yaml", env={}, cwd=tmp_path)
        digests.append(configuration.digest)
        assert configuration.watched == (str(tmp_path / "u.yaml"), str(tmp_path / "secret"))
    assert (digests[0] != digests[1]) is counts
