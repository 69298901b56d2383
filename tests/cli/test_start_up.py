"""What the command line imports before it answers. How long that takes is measured elsewhere, never by a test."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import headrace

FRAME = {
    "headrace",
    "headrace.cli",
    "headrace.cli.arguments",
    "headrace.cli.main",
    "headrace.cli.printing",
    "headrace.policy",
    "headrace.policy.printable",
}
"""What any start of the command line may load of the package."""

LOADED = (
    "import sys; from headrace.cli import main; code = main(sys.argv[1:]); print('\\0', code, *sys.modules)"
)


def loaded_by(*arguments: str) -> tuple[str, set[str]]:
    """What was printed, and the modules that a process has loaded which ran the command line with *arguments*."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    said, _, rest = done.stdout.partition("\0")
    code, *modules = rest.split()
    assert code == "0", done.stderr
    return said, set(modules)


@pytest.mark.parametrize(
    ("arguments", "more"),
    [
        (["--help"], ()),
        (["--version"], ()),
        (["check", "--help"], ()),
        (["schema", "--help"], ()),
        (["explain", "--help"], ("headrace.policy.frozen", "headrace.policy.outcome")),
        (["help", "--help"], ()),
    ],
    ids=" ".join,  # of no set: each process has an order of its own, and xdist then refuses the whole run
)
def test_help_and_version_load_what_they_show(arguments: list[str], more: tuple[str, ...]) -> None:
    said, modules = loaded_by(*arguments)

    assert said
    assert {name for name in modules if name.split(".")[0] == "headrace"} == FRAME.union(more)
    assert modules.isdisjoint({"pydantic", "requests", "urllib3", "yaml", "ssl", "asyncio", "starlette"})


def test_the_package_alone_loads_nothing_of_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import headrace, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert [name for name in done.stdout.split() if name.startswith("headrace")] == ["headrace"]


ADDED = "import sys; from headrace import {}; print(*(name for name in sys.modules if name.startswith('headrace.')))"


@pytest.mark.parametrize("name", ["ASGIMiddleware", "WSGIMiddleware"])
def test_an_application_that_adds_the_middleware_loads_no_more_than_it_needs(name: str) -> None:
    """What only a refusal, a command or an option needs is not there; the number is a bound."""
    command = [sys.executable, "-c", ADDED.format(name)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    modules = set(done.stdout.split())
    rooms = {one.removeprefix("headrace.").partition(".")[0] for one in modules}

    assert rooms.isdisjoint({"cli", "testing"})
    assert len(modules) <= 230
    assert modules.isdisjoint(
        {
            "headrace.config.check.foreign",
            "headrace.config.check.hints",
            "headrace.config.check.proposals",
            "headrace.config.explain.explain",
            "headrace.config.explain.schema",
            "headrace.observe.tracing.otel",
            "headrace.transport.trial",
            "headrace.engine.aio",
            "headrace.transport.lease.shelf",
        }
    )


def test_a_public_name_is_what_a_type_checker_takes_it_for() -> None:
    tree = ast.parse(Path(headrace.__file__).read_text("utf-8"))
    (guarded,) = (node for node in tree.body if isinstance(node, ast.If))
    declared = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    assert sorted(declared) == headrace.__all__
    assert declared == headrace._WHERE  # type: ignore[attr-defined]
    for name, (module, its_name) in declared.items():
        assert getattr(headrace, name) is getattr(sys.modules[str(module)], its_name)
    assert set(headrace.__all__) <= set(dir(headrace))


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'headrace' has no attribute 'instal'"):
        headrace.instal  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError):
        from headrace import instal  # type: ignore[attr-defined]  # noqa: F401


@pytest.mark.parametrize("module", ["headrace", "headrace.cli"])
def test_it_can_be_run_as_a_module(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--version"], capture_output=True, text=True, timeout=60
    )

    assert (done.returncode, done.stdout) == (0, f"headrace {metadata.version('headrace')}\n")
