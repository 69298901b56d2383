"""Files as editors and shells of other systems write them: read where YAML says so, else told what they are."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from headrace.config import inspect

TEXT = (
    "version: 1\n"
    "upstreams:\n"
    "  billing:\n"
    "    base_url: https://billing.internal\n"
    "    retry: {max_attempts: x}\n"
    "    fallback:\n"
    "      body: |\n"
    "        zürich\n"
    "        bern\n"
)
MARK_UTF8, MARK_16, MARK_32 = codecs.BOM_UTF8, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE


def said_of(content: bytes, folder: Path) -> list[str]:
    (folder / "u.yaml").write_bytes(content)
    return [str(problem) for problem in inspect("u.yaml", env={}, cwd=folder).problems]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(TEXT.encode(), id="as it should be"),
        pytest.param(TEXT.replace("\n", "\r\n").encode(), id="lines of Windows"),
        pytest.param(TEXT.replace("\n", "\r").encode(), id="lines of an old Mac"),
        pytest.param(MARK_UTF8 + TEXT.encode(), id="a mark"),
        pytest.param(MARK_UTF8 + TEXT.replace("\n", "\r\n").encode(), id="a mark, and lines of Windows"),
        pytest.param(TEXT.replace("\n", "\r\n").encode("utf-16"), id="PowerShell's >"),
        pytest.param(MARK_16 + TEXT.encode("utf-16-be"), id="UTF-16, the other way round"),
        pytest.param(TEXT.encode("utf-32"), id="UTF-32"),
        pytest.param(MARK_32 + TEXT.encode("utf-32-be"), id="UTF-32, the other way round"),
        pytest.param(TEXT.replace(": https", ":\thttps").encode(), id="a tab behind a colon"),
        pytest.param(TEXT.replace("internal\n", "internal\t# tab\n").encode(), id="a tab before a comment"),
    ],
)
def test_it_is_read_the_same_and_lines_and_columns_are_right(content: bytes, tmp_path: Path) -> None:
    (problem,) = said_of(content, tmp_path)
    assert problem.startswith("u.yaml:5:27: upstreams.billing.retry.max_attempts\n")

    good = content.replace(b"max_attempts: x", b"max_attempts: 3")
    for encoding in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
        good = good.replace("max_attempts: x".encode(encoding), "max_attempts: 3".encode(encoding))
    (tmp_path / "u.yaml").write_bytes(good)
    settings = inspect("u.yaml", env={}, cwd=tmp_path).settings
    assert settings is not None
    assert settings.upstreams["billing"].fallback is not None
    assert settings.upstreams["billing"].fallback.body == "zürich\nbern\n"


@pytest.mark.parametrize(
    ("content", "place", "message", "fix"),
    [
        (TEXT.encode("utf-16-le"), "1:1", "is UTF-16 without a byte order mark", "save the file as UTF-8"),
        (b"upstreams: {}".decode().encode("utf-16-be"), "1:1", "is UTF-16 without a byte order mark", "save"),
        (codecs.BOM_UTF16_LE + b"cut", "1:1", "begins as UTF-16", "save the file as UTF-8"),
        (TEXT.encode("latin-1"), "8:10", "is not UTF-8; found the byte 0xfc", "save the file as UTF-8"),
        (MARK_UTF8 + b"# \xfc\n", "1:3", "is not UTF-8; found the byte 0xfc", "save the file as UTF-8"),
        (TEXT.replace("  billing", "\tbilling").encode(), "3:1", "is not YAML", "indent with spaces, not with tabs"),
        (TEXT.replace("    base", "  \tbase").encode(), "4:3", "is not YAML", "indent with spaces, not with tabs"),
        (TEXT.replace("    base", "\u00a0" * 4 + "base").encode(), "5:10", "is not YAML", "a U+00A0 where a plain"),
        (TEXT.replace("url: ", "url:\u3000").encode(), "5:10", "is not YAML", "a U+3000 where a plain space"),
        (TEXT.encode() + b"\x1a", "10:1", "has the character U+001A", "remove it"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told_by_its_name(
    content: bytes, place: str, message: str, fix: str, tmp_path: Path
) -> None:
    (problem,) = said_of(content, tmp_path)
    first, second, third = problem.split("\n")
    assert first == f"u.yaml:{place}"
    assert message in second
    assert fix in third


@pytest.mark.parametrize(
    "content",
    [
        b"hunter2\r\n",
        codecs.BOM_UTF8 + b"hunter2\n",
        "hunter2\r\n".encode("utf-16"),
    ],
    ids=["lines of Windows", "a mark", "PowerShell's >"],
)
def test_a_secret_is_read_as_the_file_is(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(content)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/upstreams__a__headers__X-Own").write_bytes(content)
    (tmp_path / "u.yaml").write_text(
        "upstreams: {a: {base_url: 'http://a', headers: {X-Token: '${file:"
        + str(tmp_path / "token")
        + "}'}}}"
    )

    found = inspect("u.yaml", env={}, cwd=tmp_path, secrets_dir=tmp_path / "secrets")

    assert found.problems == ()
    assert found.settings is not None
    assert found.settings.upstreams["a"].headers == {"X-Token": "hunter2", "X-Own": "hunter2"}
