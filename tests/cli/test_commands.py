"""The commands as they are typed: which files they read, what they print where, in which form, and how they end."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.cli import main
from headrace.cli.arguments import COMMANDS
from headrace.config import inspect
from headrace.config.explain.starter import starter
from headrace.config.source.tree import leaves

Captured = pytest.CaptureFixture[str]

GOOD = (
    "upstreams: {billing: {base_url: 'https://billing.internal:8443/v2', match: ['https://api.example']}}\n"
)
BAD = "upstreams: {a: {base_url: 'https://billing.internal', retry: {max_attempts: 3.5}, timeouts: {attempt: 4}}}\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("HEADRACE_")]:
        monkeypatch.delenv(name)
    return tmp_path


# --- Which files ----------------------------------------------------------------------------------------


def test_without_a_file_check_and_explain_read_what_an_application_would(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    (folder / "upstreams.yaml").write_text(GOOD)
    assert main(["check"]) == 0
    assert "billing  https://billing.internal:8443/v2" in capsys.readouterr().out
    assert main(["explain", "https://api.example/x"]) == 0
    assert "upstream billing, by match[0]" in capsys.readouterr().out

    (folder / "a.yaml").write_text("upstreams: {other: {base_url: 'http://other.internal'}}")
    (folder / "b.yaml").write_text("defaults: {mode: observe}")
    monkeypatch.setenv("HEADRACE_FILE", os.pathsep.join(["a.yaml", "", "b.yaml"]))
    assert main(["check"]) == 0
    assert "other  http://other.internal  observe:" in capsys.readouterr().out
    assert main(["explain", "http://other.internal"]) == 0
    assert "mode observe (defaults, b.yaml:1)" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["standard input", "a pipe by name", "a pipe of the shell"])
def test_a_linter_reads_what_is_no_file(folder: Path, how: str) -> None:
    """`headrace check -` and `headrace check <(sops -d upstreams.yaml)`; positions are told all the same."""
    (folder / "good").write_text(GOOD)
    (folder / "bad").write_text(BAD)

    def headrace(command: str, *, content: str) -> subprocess.CompletedProcess[str]:
        line = f"{shlex.quote(sys.executable)} -m headrace {command}"
        line = {
            "standard input": f"cat {content} | {line.replace('FILE', '-')}",
            "a pipe by name": f"rm -f pipe; mkfifo pipe; cat {content} > pipe & {line.replace('FILE', 'pipe')}",
            "a pipe of the shell": line.replace("FILE", f"<(cat {content})"),
        }[how]
        return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, timeout=60)

    checked = headrace("check FILE", content="good")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert checked.stdout.startswith("billing  https://billing.internal:8443/v2")
    explained = headrace("explain FILE https://api.example/x", content="good")
    assert explained.returncode == 0
    assert "upstream billing, by match[0]" in explained.stdout
    refused = headrace("check FILE", content="bad")
    assert refused.returncode == 1
    name = {"standard input": "<stdin>", "a pipe by name": "pipe", "a pipe of the shell": "/dev/fd/"}[how]
    assert refused.stderr.startswith(name)
    assert ":1:77: upstreams.a.retry.max_attempts" in refused.stderr


def test_a_closed_standard_input_is_a_problem_and_no_trace(folder: Path) -> None:
    line = f"{shlex.quote(sys.executable)} -m headrace check - <&-"
    refused = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, timeout=60)
    assert refused.returncode == 1
    assert refused.stderr.startswith("<stdin>\n")
    assert "Traceback" not in refused.stderr


def test_what_is_no_file_has_the_digest_of_the_file(folder: Path) -> None:
    (folder / "a.yaml").write_text(GOOD)
    (folder / "b.yaml").write_text("defaults: {mode: observe}")
    digests = {
        inspect(["a.yaml", name], env={}, given=given).configuration.digest  # type: ignore[union-attr]
        for name, given in (("b.yaml", {}), ("<stdin>", {"<stdin>": (folder / "b.yaml").read_bytes()}))
    }
    assert len(digests) == 1


def test_where_there_is_none_it_is_said_how_to_begin(capsys: Captured) -> None:
    assert main(["check"]) == 1
    assert "; to begin with one: headrace init\n" in capsys.readouterr().err


def test_explain_takes_several_files_and_options_between_them(folder: Path, capsys: Captured) -> None:
    (folder / "a.yaml").write_text(GOOD)
    (folder / "b.yaml").write_text("upstreams: {billing: {timeouts: {attempt: 1s}}}")

    assert (
        main(["explain", "a.yaml", "--method", "GET", "b.yaml", "--status=503", "https://api.example"]) == 0
    )

    text = capsys.readouterr().out
    assert "GET answered with 503" in text
    assert "b.yaml:1" in next(line for line in text.splitlines() if "timeouts.attempt" in line)


# --- Why no upstream claims a URL -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://billing.internal:8443/v2", ["its scheme is https, not http"]),
        ("https://billing.internal/v2", ["its port is 8443, not 443 (that of https)"]),
        (
            "http://api.example/x",
            ["its scheme is https, not http"],
        ),  # and so its port: that is one difference
        ("https://billing.internal:8443/v3/x", ["its paths begin with /v2, and this one is /v3/x"]),
        ("https://billing.internal:8443/v2x", ["its paths begin with /v2, and this one is /v2x"]),
        ("https://biling.internal:8443/v2", ["its host is billing.internal, not biling.internal"]),
        ("https://eu.billing.internal:8443/v2", ["its host is billing.internal, not eu.billing.internal"]),
        (
            "http://billing.internal",
            [
                "its scheme is https, not http",
                "its port is 8443, not 80 (that of http)",
                "its paths begin with /v2, and this one is /",
            ],
        ),
    ],
)
def test_explain_says_what_keeps_the_nearest_upstream_from_claiming_a_url(
    url: str, said: list[str], folder: Path, capsys: Captured
) -> None:
    (folder / "upstreams.yaml").write_text(GOOD)

    assert main(["explain", url]) == 0

    first, second, third, *reasons = capsys.readouterr().out.splitlines()
    assert first == url
    assert second == "  no upstream claims it: the call passes through ungoverned"
    assert third.startswith("  nearest is upstream billing, by ")
    assert third.endswith(" (upstreams.yaml:1)")
    assert [line.strip() for line in reasons] == said


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://elsewhere.org", "no upstream has this host, or one like it"),
        ("ftp://billing.internal/v2", "rules govern http and https, and this is ftp"),
        ("https://billing.internal:8443@evil@x/v2", "programs disagree about the host"),
    ],
)
def test_explain_says_why_where_no_upstream_is_near(
    url: str, said: str, folder: Path, capsys: Captured
) -> None:
    (folder / "upstreams.yaml").write_text(GOOD)

    assert main(["explain", url]) == 0

    text = capsys.readouterr().out
    assert said in text
    assert "nearest" not in text


def test_a_secret_url_is_not_told_as_the_nearest(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("URL", "https://hidden.internal")
    (folder / "upstreams.yaml").write_text("upstreams: {a: {base_url: '${env:URL}'}}")

    assert main(["explain", "https://hiden.internal"]) == 0

    assert "hidden" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "text", ["nonsense", "upstreams.yaml", "billing.internal/v2", "https://", "://a", "https:///v2", ""]
)
def test_what_is_no_url_is_wrong_usage(text: str, folder: Path, capsys: Captured) -> None:
    (folder / "upstreams.yaml").write_text(GOOD)

    assert main(["explain", text]) == 2

    assert f"{text!r} is not a URL" in capsys.readouterr().err


# --- JSON, colours, exit codes --------------------------------------------------------------------------


def test_explain_in_json_says_the_same(folder: Path, capsys: Captured) -> None:
    (folder / "upstreams.yaml").write_text(GOOD)

    assert main(["explain", "--format", "json", "https://api.example", "--status", "503"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["good"], answer["upstream"], answer["by"]) == (True, "billing", "match[0]")
    assert {"key": "timeouts.attempt", "value": "4s", "where": "built-in default"} in answer["values"]
    assert answer["order"][0]["name"] == "snapshot"
    assert answer["verdict"][0] == "GET answered with 503"

    assert main(["explain", "--format", "json", "http://api.example"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["upstream"], answer["nearest"]) == (None, "billing")
    assert answer["unclaimed"] == ["its scheme is https, not http"]


def test_problems_come_in_json_from_explain_as_from_check(folder: Path, capsys: Captured) -> None:
    (folder / "upstreams.yaml").write_text(BAD)

    assert main(["explain", "--format", "json", "https://billing.internal"]) == 1
    explained = json.loads(capsys.readouterr().out)
    assert main(["check", "--format", "json"]) == 1
    assert explained["problems"] == json.loads(capsys.readouterr().out)["problems"]
    assert explained["good"] is False


def at_a_terminal(*arguments: str, **env: str) -> str:
    """What a process writes that has a terminal as its output."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "headrace", *arguments],
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", **env},
    )
    os.close(theirs)
    written = b""
    try:
        while part := os.read(ours, 4096):
            written += part
    except OSError:  # the other side is closed
        pass
    os.close(ours)
    assert process.wait(60) in (0, 1)
    return written.decode().replace("\r\n", "\n")


def test_there_is_colour_at_a_terminal_and_nowhere_else(folder: Path, capsys: Captured) -> None:
    (folder / "upstreams.yaml").write_text(BAD)

    coloured = at_a_terminal("check")
    plain = at_a_terminal("check", NO_COLOR="1")
    assert main(["check"]) == 1

    assert "\x1b[32m    write: attempt: 4s\x1b[0m" in coloured
    assert capsys.readouterr().err == plain
    assert "\x1b" not in plain + at_a_terminal("check", TERM="dumb") + at_a_terminal(
        "check", "--format", "json"
    )


def test_what_a_file_says_colours_nothing(folder: Path) -> None:
    (folder / "upstreams.yaml").write_text('upstreams: {a: {base_url: "http://a", mode: "\\e[31mred"}}\n')

    assert "\x1b[31m" not in at_a_terminal("check")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_tells_its_exit_codes_and_speaks_to_machines(command: str, capsys: Captured) -> None:
    assert main([command, "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "Exit codes: 0 good, 1 problems in the configuration, 2 wrong usage." in told
    assert "--format {text,json}" in told


# --- A file to begin with -------------------------------------------------------------------------------


def test_init_writes_a_file_that_observes_and_passes_the_check(folder: Path, capsys: Captured) -> None:
    assert main(["init"]) == 0
    assert capsys.readouterr().out.endswith("    headrace check\n")

    assert main(["check"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("example  https://api.example.com  observe:")
    assert captured.err == ""


def test_init_overwrites_nothing(folder: Path, capsys: Captured) -> None:
    (folder / "upstreams.yaml").write_text("mine")
    (folder / "link.yaml").symlink_to(folder / "nowhere.yaml")

    for arguments in (
        ["init"],
        ["init", "link.yaml"],
        ["init", "no/such/folder.yaml"],
        ["init", "--format", "json"],
    ):
        assert main(arguments) == 1

    assert (folder / "upstreams.yaml").read_text() == "mine"
    assert not (folder / "nowhere.yaml").exists()
    captured = capsys.readouterr()
    assert "upstreams.yaml is there already, and stays as it is" in captured.err
    assert json.loads(captured.out)["good"] is False


def test_init_writes_where_it_is_told_to(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("HEADRACE_FILE", "rules.yaml")
    assert main(["init"]) == 0
    assert main(["init", "other.yaml", "--format", "json"]) == 0
    assert (folder / "rules.yaml").read_text() == starter("rules.yaml")
    assert (folder / "other.yaml").read_text() == starter("other.yaml")
    assert '"file": "other.yaml"' in capsys.readouterr().out


def test_the_commands_in_its_comments_are_for_this_file(folder: Path, capsys: Captured) -> None:
    """Where it has another name than the one that they look for, they are told with it, fit for a shell."""
    name = "my rules\n.yaml"
    assert main(["init", name]) == 0
    text = (folder / name).read_text()
    assert "#   headrace check 'my rules\\n.yaml'  " in text
    assert "#   headrace explain 'my rules\\n.yaml' URL  " in text
    assert main(["check", name]) == 0

    assert main(["init"]) == 0
    assert "#   headrace check          says" in (folder / "upstreams.yaml").read_text()
    assert main(["init", "conf.yaml"]) == 0
    capsys.readouterr()
    line = next(one for one in (folder / "conf.yaml").read_text().splitlines() if "headrace check" in one)
    (folder / "upstreams.yaml").unlink()
    assert main(line.split()[2:4]) == 0


def test_what_is_commented_out_in_it_holds_already_and_loads_without_a_finding(folder: Path) -> None:
    """Whoever takes the signs away gets what he had, key by key."""
    lines = starter().splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("    base_url"))
    opened = [
        line.replace("# ", "", 1)
        if number > begin and line.lstrip().startswith("# ") and ":" in line
        else line
        for number, line in enumerate(lines)
    ]
    opened = [line for line in opened if not line.lstrip().startswith("Each value")]
    (folder / "as_it_is.yaml").write_text(starter())
    (folder / "opened.yaml").write_text("\n".join(opened))

    as_it_is, all_open = inspect("as_it_is.yaml", env={}), inspect("opened.yaml", env={})

    assert (all_open.problems, all_open.findings, as_it_is.findings) == ((), (), ())
    assert all_open.settings == as_it_is.settings
    assert all_open.written is not None
    told = {path[2:] for path, _ in leaves(all_open.written.original) if path[0] == "upstreams"}
    assert {("timeouts", "attempt"), ("retry", "retry_on", 0), ("tls", "ca")} <= told
    assert all_open.written.is_given(("install", "urllib3"))


def test_no_line_of_the_starter_is_an_instruction_to_an_editor_yet() -> None:
    # yaml-language-server takes such a comment anywhere in the file, and the schema is not there.
    assert not re.search(r"^#\s+yaml-language-server\s*:", starter(), re.MULTILINE)


def test_init_takes_a_dash_for_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "-"]) == 1
    assert list(tmp_path.iterdir()) == []
