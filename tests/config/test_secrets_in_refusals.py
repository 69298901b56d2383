"""A refused file is reported with the locals of its frames: no secret is among them, and nothing breaks the report."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

import pytest

import headrace

BY_FILE, BY_ENVIRONMENT, INLINE = "secret-of-a-file-77", "secret-of-a-variable-77", "secret-in-the-text-77"

PROBLEMS = {
    "a word": "mode: nonsense",
    "a key": "nokey: 1",
    "two limits": "timeouts: {attempt: 30s, deadline: 1s}",
    "a certificate": "tls: {ca: /nowhere.pem}",
    "a variable": "match: ['${env:NOWHERE}']",
    "a fallback": "fallback: {upstream: nobody}",
    "a bracket": "[",
}


def report(error: BaseException) -> str:
    """What a crash reporter makes of it, less the frame of the test itself."""
    assert error.__traceback__ is not None
    below = error.__traceback__.tb_next
    return "".join(traceback.TracebackException(type(error), error, below, capture_locals=True).format())


def write(folder: Path, problem: str) -> str:
    (folder / "token").write_text(BY_FILE)
    file = folder / "u.yaml"
    headers = f"{{K: {INLINE}, L: '${{file:{folder}/token}}', M: '${{env:TOKEN}}'}}"
    file.write_text(f"upstreams:\n  a: {{base_url: 'https://a', headers: {headers}, {problem}}}\n")
    return str(file)


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_no_secret_is_among_the_locals_of_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    """failures.md 65: the whole environment was, and the repr of the instance that was being made raised."""
    monkeypatch.setenv("TOKEN", BY_ENVIRONMENT)
    file = write(tmp_path, problem)
    with pytest.raises(headrace.ConfigError) as caught:
        headrace.Headrace(file)
    text = report(caught.value)
    assert "self = <Headrace" in text  # the locals are there
    for secret in (BY_FILE, BY_ENVIRONMENT, INLINE):
        assert secret not in text, [line[:200] for line in text.splitlines() if secret in line]
    assert "TOKEN" in os.environ


def test_a_handle_whose_name_has_left_the_file_can_be_reported(tmp_path: Path) -> None:
    """failures.md 65: its repr raised during the report of just that."""
    file = tmp_path / "u.yaml"
    file.write_text("upstreams: {a: {base_url: 'http://a'}, b: {base_url: 'http://b'}}\n")
    with headrace.Headrace(file) as hr:
        handle = hr.upstream("a")
        file.write_text("upstreams: {b: {base_url: 'http://b'}}\n")
        hr.reload()
        with pytest.raises(headrace.UnknownUpstream) as caught:
            handle.get("/")
        assert "self = <Handle 'a', which is not in force>" in report(caught.value)
