"""`${…}` in values: what is put in, how it is typed, where it fails."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.config import load
from headrace.errors import ConfigError
from support.configs import LoadText

UPSTREAM = "upstreams:\n  billing:\n    base_url: https://billing.internal\n"


def header(load_text: LoadText, value: str, **env: str) -> str:
    return dict(load_text(f"{UPSTREAM}    headers: {{X: {value}}}\n", env=env).upstreams["billing"].headers)[
        "X"
    ]


def test_whole_plain_value_is_typed_after_interpolation(load_text: LoadText) -> None:
    configuration = load_text(
        UPSTREAM
        + "    retry:\n      max_attempts: ${env:N}\n      retry_on: ['${env:WORD}', 429]\n"
        + "    timeouts:\n      deadline: ${env:D}\n    circuit_breaker:\n      consecutive_failures: ${env:NONE}\n",
        env={"N": "5", "D": "20s", "WORD": "5xx", "NONE": "null"},
    )
    plan = configuration.upstreams["billing"]
    assert plan.retry.max_attempts == 5
    assert plan.timeouts.deadline_s == 20.0
    assert plan.circuit_breaker.consecutive_failures is None
    assert 500 in plan.retry.retry_on.statuses


@pytest.mark.parametrize("value", ["007", "1e5", "true", "null", "0x10", "", "~", "1.50"])
def test_password_that_looks_like_something_else_stays_text(load_text: LoadText, value: str) -> None:
    assert header(load_text, "'${env:T}'", T=value) == value
    configuration = load_text(f"{UPSTREAM}    headers:\n      X: ${{env:T}}\n", env={"T": value})
    assert dict(configuration.upstreams["billing"].headers)["X"] == value


def test_parts_and_several_references_are_put_together(load_text: LoadText) -> None:
    assert header(load_text, '"Basic ${env:A}-${env:B}"', A="x", B="y") == "Basic x-y"


def test_default_is_used_when_unset_or_empty(load_text: LoadText) -> None:
    assert header(load_text, '"${env:A:-dflt}"') == "dflt"
    assert header(load_text, '"${env:A:-dflt}"', A="") == "dflt"
    assert header(load_text, '"${env:A:-dflt}"', A="x") == "x"
    assert header(load_text, '"${env:A:-a:b-c}"') == "a:b-c"


def test_doubled_dollar_is_the_characters_themselves(load_text: LoadText) -> None:
    assert header(load_text, '"$${env:A}"') == "${env:A}"
    assert header(load_text, '"$5 $$ {a}"') == "$5 $$ {a}"


def test_value_of_outside_is_not_interpolated_again(load_text: LoadText) -> None:
    assert header(load_text, '"${env:A}"', A="${env:B}", B="no") == "${env:B}"


@pytest.mark.parametrize(
    ("content", "value"),
    [(b"s3cret", "s3cret"), (b"s3cret\n", "s3cret"), (b"s3cret\r\n", "s3cret"), (b"12345\n", "12345")],
)
def test_file_gives_its_text_less_one_newline(
    load_text: LoadText, tmp_path: Path, content: bytes, value: str
) -> None:
    (tmp_path / "secret").write_bytes(content)
    assert header(load_text, '"${file:secret}"') == value
    assert header(load_text, f'"${{file:{tmp_path}/secret}}"') == value


def test_two_newlines_at_the_end_of_a_secret_are_an_error_not_repaired(
    load_text: LoadText, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("x\n\n")
    with pytest.raises(ConfigError, match="must be text for a header"):
        header(load_text, '"${file:secret}"')


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"\xff\xfd", "is not UTF-8 text"), (b"x" * 70_000, "is longer than 64 KiB"), (None, "does not exist")],
    ids=["binary", "long", "missing"],
)
def test_file_that_cannot_be_a_secret_is_refused_at_its_position(
    load_text: LoadText, tmp_path: Path, content: bytes | None, why: str
) -> None:
    if content is not None:
        (tmp_path / "secret").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        header(load_text, '"${file:secret}"')
    (problem,) = caught.value.problems
    assert (problem.line, problem.column, problem.path) == (4, 18, "upstreams.billing.headers.X")
    assert why in problem.message
    assert str(tmp_path / "secret") in caught.value.watched


@given(st.text(alphabet="${}env:file-ABC/x ", max_size=40))
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_no_text_with_references_does_anything_but_load_or_refuse(tmp_path: Path, value: str) -> None:
    quoted = value.replace("'", "''")
    (tmp_path / "u.yaml").write_text(f"{UPSTREAM}    headers: {{X: '{quoted}'}}\n")
    with contextlib.suppress(ConfigError):
        load("u.yaml", env={"A": "1"}, cwd=tmp_path)
