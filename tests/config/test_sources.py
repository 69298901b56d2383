"""Source order, the names of variables and secret files, and what is said about misspelt ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.config import inspect, load, mode_override
from headrace.errors import ConfigError
from support.configs import InspectText, LoadText

BASE = "upstreams:\n  billing:\n    base_url: https://billing.internal\n"


def test_defaults_then_files_then_secrets_directory_then_environment(tmp_path: Path) -> None:
    (tmp_path / "u.yaml").write_text(
        BASE + "    retry: {max_attempts: 4}\n    pool: {max_connections: 4, max_waiting: 4}\n"
    )
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "upstreams__billing__pool__max_connections").write_text("5\n")
    (secrets / "HEADRACE_UPSTREAMS__BILLING__POOL__MAX_WAITING").write_text("5\n")
    env = {"HEADRACE_UPSTREAMS__BILLING__POOL__MAX_WAITING": "6"}
    plan = load("u.yaml", env=env, cwd=tmp_path, secrets_dir="secrets").upstreams["billing"]
    assert plan.timeouts.attempt_s == 4.0  # built in
    assert plan.retry.max_attempts == 4  # file
    assert plan.pool.max_connections == 5  # secrets directory
    assert plan.pool.max_waiting == 6  # environment
    again = load("u.yaml", env={**env, "HEADRACE_SECRETS_DIR": str(secrets)}, cwd=tmp_path).upstreams[
        "billing"
    ]
    assert again == plan


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        pytest.param(
            "UPSTREAMS__BILLING__MODE", "off", lambda c: c.upstreams["billing"].mode == "off", id="word"
        ),
        pytest.param(
            "UPSTREAMS__BILLING__RETRY__METHODS",
            "[GET]",
            lambda c: len(c.upstreams["billing"].retry.methods) == 1,
            id="list",
        ),
        pytest.param(
            "UPSTREAMS__BILLING__RETRY",
            "{max_attempts: 2}",
            lambda c: c.upstreams["billing"].retry.max_attempts == 2,
            id="map",
        ),
        pytest.param(
            "UPSTREAMS__BILLING__TIMEOUTS__DEADLINE",
            "null",
            lambda c: c.upstreams["billing"].timeouts.deadline_s is None,
            id="null",
        ),
        pytest.param(
            "UPSTREAMS__BILLING__TLS__MIN_VERSION",
            "1.3",
            lambda c: c.upstreams["billing"].tls.min_version == "1.3",
            id="text",
        ),
        pytest.param(
            "UPSTREAMS__BILLING__HEADERS__X_API_KEY",
            "0123",
            lambda c: ("X-Api-Key", "0123") in c.upstreams["billing"].headers,
            id="header-as-the-file-spells-it",
        ),
        pytest.param(
            "UPSTREAMS__BILLING__HEADERS__X_NEW",
            "a: [b",
            lambda c: ("X-NEW", "a: [b") in c.upstreams["billing"].headers,
            id="header-of-its-own",
        ),
        pytest.param(
            "SERVICE__REQUEST_ID__HEADER",
            "X-Rid",
            lambda c: c.service.request_id.header == "X-Rid",
            id="service",
        ),
        pytest.param("RELOAD__POLL", "5s", lambda c: c.reload.poll_s == 5.0, id="duration"),
        pytest.param("INSTALL__REQUESTS", "false", lambda c: c.install.requests is False, id="boolean"),
        pytest.param(
            "DEFAULTS__POOL__MAX_CONNECTIONS",
            "9",
            lambda c: c.upstreams["billing"].pool.max_connections == 9,
            id="defaults",
        ),
        pytest.param(
            "UPSTREAMS__NEW_ONE__BASE_URL",
            "http://new",
            lambda c: c.upstreams["new_one"].base.origin.host == "new",
            id="new",
        ),
    ],
)
def test_variable_overrides_the_file(load_text: LoadText, name: str, value: str, read: object) -> None:
    configuration = load_text(BASE + "    headers: {X-Api-Key: old}\n", env={f"HEADRACE_{name}": value})
    assert configuration.warnings == ()
    assert read(configuration)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        (
            "HEADRACE_UPSTREAMS__BILLING__RETRY__MAX_ATTEMPS",
            "did you mean HEADRACE_UPSTREAMS__BILLING__RETRY__MAX_ATTEMPTS?",
        ),
        ("HEADRACE_UPSTREAM__BILLING__MODE", "did you mean HEADRACE_UPSTREAMS__BILLING__MODE?"),
        ("HEADRACE_UPSTREAMS__BILING__MODE", "did you mean billing?"),
        ("HEADRACE_MODUS", "did you mean HEADRACE_MODE?"),
        ("HEADRACE_FILES", "did you mean HEADRACE_FILE?"),
        ("HEADRACE_UPSTREAMS__BILLING__MODE__X", "did you mean HEADRACE_UPSTREAMS__BILLING__MODE?"),
        ("HEADRACE_ZZZ", "unset it, or see the key reference for the names there are"),
    ],
)
def test_misspelt_variable_is_a_warning_with_the_name_that_was_meant(
    load_text: LoadText, name: str, fix: str
) -> None:
    """failures.md 50."""
    (warning,) = load_text(BASE, env={name: "1"}).warnings
    assert warning.startswith(f"environment {name}\n")
    assert warning.endswith(fix)


@pytest.mark.parametrize(
    "name",
    [
        "HEADRACE_SERVICE_HOST",
        "HEADRACE_SERVICE_PORT",
        "HEADRACE_SERVICE_PORT_HTTP",
        "HEADRACE_PORT",
        "HEADRACE_PORT_8080_TCP",
        "HEADRACE_PORT_8080_TCP_ADDR",
        "HEADRACE_ADMIN_SERVICE_HOST",
        "HEADRACE_ADMIN_PORT_80_TCP_PROTO",
        "HEADRACE_FILE",
        "HEADRACE_MODE",
        "PATH",
    ],
)
def test_variables_of_kubernetes_and_our_own_are_no_warning(load_text: LoadText, name: str) -> None:
    assert load_text(BASE, env={name: "observe"}).warnings == ()


def test_bad_value_in_a_variable_names_the_variable(load_text: LoadText) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(BASE, env={"HEADRACE_UPSTREAMS__BILLING__TIMEOUTS__ATTEMPT": "30s"})
    assert str(caught.value) == (
        "environment HEADRACE_UPSTREAMS__BILLING__TIMEOUTS__ATTEMPT: upstreams.billing.timeouts.attempt\n"
        "    *** is longer than the deadline 15s (the default), so it could never apply\n"
        "1 problem."
    )


def test_unset_reference_in_a_file_is_reported_even_beside_a_variable(load_text: LoadText) -> None:
    with pytest.raises(ConfigError, match="needs the environment variable NOPE"):
        load_text(BASE + "    mode: ${env:NOPE}\n", env={"HEADRACE_UPSTREAMS__BILLING__MODE": "off"})


def test_a_key_that_has_left_the_format_is_refused_with_the_reason_wherever_it_comes_from(
    tmp_path: Path,
) -> None:
    """failures.md 50: nobody may believe that it still does something."""
    (tmp_path / "u.yaml").write_text(BASE)
    env = {"HEADRACE_UPSTREAMS__BILLING__POOL__VALIDATION_BYPASS": "0s"}
    with pytest.raises(
        ConfigError, match=r"validation_bypass\n.*each idle connection is looked at before use"
    ):
        load("u.yaml", env=env, cwd=tmp_path)


def test_other_files_of_a_secrets_directory_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "u.yaml").write_text(BASE)
    secrets = tmp_path / "secrets"
    (secrets / "..data").mkdir(parents=True)
    for name in ("db_password", ".hidden__x", "other__thing"):
        (secrets / name).write_text("x")
    (secrets / "upstreams__billing__headers__Authorization").write_text("Bearer 1\n")
    (secrets / "upstreams__billing__retri").write_text("x")
    inspection = inspect("u.yaml", env={}, cwd=tmp_path, secrets_dir=secrets)
    assert inspection.configuration is not None
    assert inspection.configuration.upstreams["billing"].headers == (("Authorization", "Bearer 1"),)
    (warning,) = inspection.misspelt
    assert warning.file == str(secrets / "upstreams__billing__retri")
    assert warning.fix == "did you mean upstreams__billing__RETRY?"
    assert str(secrets / "upstreams__billing__headers__Authorization") in inspection.watched


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"x" * 2_000_000, "is longer than", id="too long"),
        pytest.param(b"\xff\xfd", "is not UTF-8 text", id="not UTF-8"),
        pytest.param(b"[GET, ", "begins like a YAML list or map but is not one", id="broken"),
    ],
)
def test_a_file_of_a_secrets_directory_that_cannot_be_used_is_named_and_not_quoted(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "u.yaml").write_text(BASE)
    secret = tmp_path / "secrets" / "upstreams__billing__retry__methods"
    secret.parent.mkdir()
    secret.write_bytes(content)
    (problem,) = inspect("u.yaml", env={}, cwd=tmp_path, secrets_dir=secret.parent).problems
    assert (problem.file, problem.path) == (str(secret), "upstreams.billing.retry.methods")
    assert message in problem.message


def test_missing_secrets_directory_is_an_error(tmp_path: Path) -> None:
    """failures.md 50."""
    (tmp_path / "u.yaml").write_text(BASE)
    with pytest.raises(ConfigError, match="the secrets directory cannot be read"):
        load("u.yaml", env={"HEADRACE_SECRETS_DIR": "nope"}, cwd=tmp_path)


@pytest.mark.parametrize(
    ("value", "mode"),
    [(None, None), ("", None), ("off", "off"), ("observe", "observe"), (" OFF ", "off"), ("enforce", None)],
)
def test_kill_switch(value: str | None, mode: str | None) -> None:
    assert mode_override({} if value is None else {"HEADRACE_MODE": value}) == mode


@pytest.mark.parametrize("value", ["on", "0", "offf", "disabled"])
def test_misspelt_kill_switch_is_an_error_not_ignored(inspect_text: InspectText, value: str) -> None:
    """failures.md 50."""
    with pytest.raises(ConfigError, match="must be off, observe or enforce"):
        mode_override({"HEADRACE_MODE": value})
    assert [p.path for p in inspect_text(BASE, env={"HEADRACE_MODE": value}).problems] == ["HEADRACE_MODE"]
