"""What is said of the files of `tls`, and of the passphrase, which is never shown."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from headrace.cli.main import main
from headrace.config.load import inspect, load
from headrace.config.reuse import Sections
from headrace.errors import ConfigError
from support.pairs import Files, issue


@pytest.fixture
def files(authority: trustme.CA, tmp_path: Path) -> Files:
    return Files(tmp_path, issue(authority))


def write(tmp_path: Path, tls: str, more: str = "") -> Path:
    file = tmp_path / "upstreams.yaml"
    file.write_text(
        f"version: 1\nupstreams:\n  billing:\n    base_url: https://billing.test\n    tls: {{{tls}}}\n{more}"
    )
    return file


def test_a_passphrase_is_read_from_a_file_without_its_newline_and_shown_nowhere(
    tmp_path: Path, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pass").write_text("hunter2\n")
    for said in (f"'${{file:{tmp_path}/pass}}'", "hunter2", '"hunter2\\n"', "!!str hunter2"):
        file = write(tmp_path, files.yaml(f"key_passphrase: {said}"))
        found = inspect(file)
        if said.startswith("!!"):
            assert "hunter2" not in " ".join(map(str, found.problems))
            continue
        assert found.configuration is not None, found.problems
        plan = found.configuration.upstreams["billing"].tls
        assert plan is not None
        assert plan.key_passphrase == "hunter2"
        assert "hunter2" not in repr(plan) + repr(found.configuration) + repr(found.settings)
        main(["explain", str(file), "https://billing.test/"])
        main(["check", str(file)])
        assert "hunter2" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("said", ["1234567", "[hunter2]", "{hunter2: 1}", "''", "true"])
def test_what_is_no_passphrase_is_refused_without_being_shown(
    tmp_path: Path, files: Files, said: str
) -> None:
    found = inspect(write(tmp_path, files.yaml(f"key_passphrase: {said}")))
    text = " ".join(map(str, found.problems))
    assert "upstreams.billing.tls.key_passphrase" in text
    assert "1234567" not in text
    assert "hunter2" not in text.replace("hunter2: 1", "")


def test_a_passphrase_that_openssl_does_not_take_is_refused(tmp_path: Path, files: Files) -> None:
    found = inspect(write(tmp_path, files.yaml(f"key_passphrase: {'w' * 1025}")))
    (problem,) = found.problems
    assert "has 1025 bytes, and OpenSSL takes no passphrase of more than 1024" in problem.message
    assert "www" not in str(problem)
    assert inspect(write(tmp_path, files.yaml(f"key_passphrase: {'w' * 1024}"))).problems == ()


def test_a_passphrase_without_a_certificate_is_refused(tmp_path: Path) -> None:
    (problem,) = inspect(write(tmp_path, "key_passphrase: one")).problems
    assert problem.message == "is a passphrase without a key"


def test_files_that_were_read_before_are_no_problem_of_the_next_load_and_one_of_check_always(
    tmp_path: Path, files: Files
) -> None:
    file, sections = write(tmp_path, files.yaml()), Sections()
    first = load(file, sections=sections).upstreams["billing"].tls
    files.cert.unlink()
    second = load(file, sections=sections)
    assert second.upstreams["billing"].tls == first
    assert "cert.pem does not exist" in second.tls_refused["billing"]
    assert str(files.cert) in second.watched
    with pytest.raises(ConfigError, match="does not exist"):
        load(file)
    assert inspect(file).problems != ()


def test_other_files_that_are_not_there_are_a_problem(tmp_path: Path, files: Files) -> None:
    file, sections = write(tmp_path, files.yaml()), Sections()
    load(file, sections=sections)
    with pytest.raises(ConfigError, match=r"other\.pem"):
        load(write(tmp_path, f"cert: {tmp_path}/other.pem, key: '{files.key}'"), sections=sections)


def test_an_expired_certificate_is_a_finding_and_no_problem(
    tmp_path: Path, files: Files, authority: trustme.CA
) -> None:
    files.rename(issue(authority, days=-1))
    found = inspect(write(tmp_path, files.yaml()))
    assert found.problems == ()
    (finding,) = [one for one in found.findings if one.path.endswith("tls.cert")]
    assert "has expired on 20" in finding.message


def test_check_says_of_a_pair_what_the_start_would_say(
    tmp_path: Path, files: Files, authority: trustme.CA, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, files.yaml())
    assert main(["check", str(file)]) == 0
    files.key.write_bytes(issue(authority).key)
    capsys.readouterr()
    assert main(["check", str(file)]) == 1
    told = capsys.readouterr()
    assert "upstreams.billing.tls.key" in told.err
    assert f"{file}:5:" in told.err
    assert "does not belong to the certificate" in told.err
    assert told.out == ""
