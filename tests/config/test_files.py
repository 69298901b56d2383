"""Files that are not there, are not files, are too long, or come in several."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from headrace.config import load
from headrace.errors import ConfigError
from support.configs import LoadText
from support.powers import permissions_count

GOOD = "upstreams: {billing: {base_url: https://billing.internal}}\n"


def refused(files: object, folder: Path, **rest: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load(files, cwd=folder, **{"env": {}, **rest})  # type: ignore[arg-type]
    return str(caught.value)


def test_missing_file_is_an_error_that_says_where_it_looked(tmp_path: Path) -> None:
    """failures.md 50. And it is watched, for it may appear."""
    with pytest.raises(ConfigError) as caught:
        load("nope.yaml", env={}, cwd=tmp_path)
    assert str(caught.value).startswith(
        f"nope.yaml\n    does not exist (looked for {tmp_path / 'nope.yaml'})\n"
    )
    assert caught.value.watched == (str(tmp_path / "nope.yaml"),)


def test_a_home_of_nobody_is_a_name_like_any_other(tmp_path: Path) -> None:
    assert "does not exist" in refused("~nobody_has_this_name/u.yaml", tmp_path)
    (tmp_path / "~nobody_has_this_name").mkdir()
    (tmp_path / "~nobody_has_this_name" / "u.yaml").write_text(GOOD)
    assert load("~nobody_has_this_name/u.yaml", env={}, cwd=tmp_path).upstreams.keys() == {"billing"}


def test_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "upstreams.yaml").mkdir()
    assert "is a directory" in refused("upstreams.yaml", tmp_path)


def test_fifo_without_a_writer_is_refused_at_once_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in refused("pipe", tmp_path)


def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "upstreams.yaml").write_text(GOOD)
    (tmp_path / "upstreams.yaml").chmod(0)
    with permissions_count():
        assert "may not be read by this user" in refused("upstreams.yaml", tmp_path)


def test_fifty_megabytes_are_refused_without_being_read(tmp_path: Path) -> None:
    with (tmp_path / "big.yaml").open("wb") as file:
        file.truncate(50 << 20)  # a hole: takes no space, and reading it all would show in the peak
    tracemalloc.start()
    try:
        assert "is longer than 4 MiB" in refused("big.yaml", tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("upstreams: {" + "a, " * 30_000 + "}", id="duplicate-keys"),
        pytest.param("".join(f"k{n}:\n" for n in range(10_000)), id="unknown-keys"),
        pytest.param("upstreams: {" + ",".join(f"u{n}: x" for n in range(8_000)) + "}", id="bad-upstreams"),
        pytest.param("upstreams: {a: {base_url: http://a, match: [" + "x, " * 30_000 + "]}}", id="bad-items"),
    ],
)
def test_file_full_of_mistakes_is_refused_with_a_report_that_can_be_read(
    load_text: LoadText, text: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(text)
    assert 0 < len(caught.value.problems) <= 1001


def test_name_with_a_null_byte_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in refused("a\0b", tmp_path)


def test_no_file_at_all_is_an_error(tmp_path: Path) -> None:
    assert "no file was named" in refused([], tmp_path)
    assert "upstreams.yaml\n    does not exist" in refused(None, tmp_path)


def test_headrace_file_is_the_fallback(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    configuration = load(None, env={"HEADRACE_FILE": "a.yaml"}, cwd=tmp_path)
    assert configuration.watched == (str(tmp_path / "a.yaml"),)


def test_later_file_wins_maps_merge_lists_replace(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "upstreams: {billing: {base_url: https://billing.internal, retry: {max_attempts: 2, methods: [GET, HEAD]}}}"
    )
    (tmp_path / "b.yaml").write_text("upstreams: {billing: {retry: {methods: [PUT], backoff: {base: 50ms}}}}")
    retry = load(["a.yaml", "b.yaml"], env={}, cwd=tmp_path).upstreams["billing"].retry
    assert (retry.max_attempts, retry.methods, retry.backoff.base_s) == (2, frozenset({"PUT"}), 0.05)


def test_problems_of_several_files_come_in_one_report(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("upstreams: {billing: {base_url: https://billing.internal, mode: of}}")
    (tmp_path / "b.yaml").write_text("upstreams: {billing: {pool: {max_connections: many}}}\nzzz: 1\n")
    text = refused(["a.yaml", "b.yaml", "c.yaml"], tmp_path)
    assert "a.yaml:1:65: upstreams.billing.mode" in text
    assert "b.yaml:1:47: upstreams.billing.pool.max_connections" in text
    assert "b.yaml:2:1: zzz" in text
    assert text.endswith("4 problems.")


def test_windows_line_ends_and_a_byte_order_mark_are_read(load_text: LoadText) -> None:
    configuration = load_text(
        b"\xef\xbb\xbf" + b"upstreams:\r\n  billing:\r\n    base_url: https://billing.internal\r\n"
    )
    assert list(configuration.upstreams) == ["billing"]


def test_relative_paths_are_relative_to_the_working_directory_not_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "ca.pem").write_text("-")
    (tmp_path / "conf" / "u.yaml").write_text(
        "upstreams: {a: {base_url: https://a.internal, tls: {ca: ca.pem}, headers: {X: '${file:ca.pem}'}}}"
    )
    configuration = load("conf/u.yaml", env={}, cwd=tmp_path)
    tls = configuration.upstreams["a"].tls
    assert tls is not None
    assert tls.ca == str(tmp_path / "ca.pem")
    assert configuration.watched == (str(tmp_path / "conf" / "u.yaml"), str(tmp_path / "ca.pem"))


def test_digest_follows_every_byte_read_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "u.yaml"
    text = (
        "upstreams: {a: {base_url: http://a.internal, fallback: {body: '${file:y}'}, "
        "headers: {X: '${env:X}', Y: '${file:y}', Z: 'Bearer ${file:z}'}}}"
    )
    file.write_text(text)
    (tmp_path / "y").write_text("1")
    (tmp_path / "z").write_text("1")

    def digest(**env: str) -> str:
        return load("u.yaml", env=env, cwd=tmp_path).digest

    first = digest(X="1")
    assert digest(X="1", UNRELATED="2") == first
    changed = {digest(X="2"), digest(X="1", HEADRACE_UPSTREAMS__A__MODE="off")}
    (tmp_path / "y").write_text("2")
    changed.add(digest(X="1"))
    file.write_text(text + " ")
    changed.add(digest(X="1"))
    assert len(changed | {first}) == 5

    last = digest(X="1")
    (tmp_path / "z").write_text("2")  # a header follows it without a load, so it tells no two workers apart
    assert digest(X="1") == last


def test_digest_does_not_tell_where_a_file_lies(tmp_path: Path) -> None:
    """A release lies in another folder on each host, and CI checks it in a third: same bytes, same digest."""
    text = "upstreams: {a: {base_url: https://a.internal, tls: {ca: ca.pem}, headers: {Y: '${file:y}'}}}"
    digests = set()
    for folder, name in (("z", "upstreams.yaml"), ("a", "production.yaml")):
        (tmp_path / folder / "secrets").mkdir(parents=True)
        (tmp_path / folder / name).write_text(text)
        (tmp_path / folder / "y").write_text("1")
        (tmp_path / folder / "ca.pem").write_text("-")
        (tmp_path / folder / "secrets" / "upstreams__a__headers__Z").write_text("s")
        digests.add(load(name, env={}, cwd=tmp_path / folder, secrets_dir="secrets").digest)

    assert len(digests) == 1


def test_digest_tells_which_of_two_files_is_read_first(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("upstreams: {a: {base_url: http://a}}")
    (tmp_path / "b.yaml").write_text("upstreams: {a: {base_url: http://b}}")

    assert (
        load(["a.yaml", "b.yaml"], env={}, cwd=tmp_path).digest
        != load(["b.yaml", "a.yaml"], env={}, cwd=tmp_path).digest
    )


@pytest.mark.parametrize("folder", ["secrets", "ca"])
def test_digest_tells_a_name_that_means_something(tmp_path: Path, folder: str) -> None:
    """Which key a secret is for; and the hash by which OpenSSL finds a certificate."""
    (tmp_path / "u.yaml").write_text("upstreams: {a: {base_url: https://a.internal, tls: {ca: ca}}}")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "ca").mkdir()
    (tmp_path / "secrets" / "upstreams__a__headers__X").write_text("s")
    (tmp_path / "ca" / "one.pem").write_text("-")
    first = load("u.yaml", env={}, cwd=tmp_path, secrets_dir="secrets").digest

    (one,) = (tmp_path / folder).iterdir()
    one.rename(one.with_name("upstreams__a__headers__Y" if folder == "secrets" else "9d66eef0.0"))

    assert load("u.yaml", env={}, cwd=tmp_path, secrets_dir="secrets").digest != first
