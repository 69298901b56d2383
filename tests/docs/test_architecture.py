"""architecture.md holds to the code: paths and names on it exist, and no package and no lock is missing from it."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "plugin/headrace"
PAGE = PACKAGE / "docs/architecture.md"

WORDS = {
    "retry_on": "a key",
    "failure_on": "a key",
    "pop": "dict.pop",
    "emit": "observe.logs.emit",
    "EnvSettingsSource": "pydantic-settings'",
    "InitSettingsSource": "pydantic-settings'",
    "current_state": "of a source of pydantic-settings",
    "extends": "a key",
    "asyncio.Protocol": "asyncio's",
    "call_soon_threadsafe": "of asyncio's loops",
}
"""What is quoted on the page and is neither a path nor a name of the package, with what it is."""

LOCKS = frozenset({"Lock", "RLock", "Condition", "Semaphore", "BoundedSemaphore"})
GATES = frozenset({"gate", "_gate"})
"""Names of locks that are no mutexes: what one thread waits at until another opens it."""


def quoted() -> list[str]:
    return re.findall(r"`([^`]+)`", PAGE.read_text("utf-8"))


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for file in sorted(PACKAGE.rglob("*.py")):
        yield file, ast.parse(file.read_text("utf-8"))


def names_of(tree: ast.AST) -> Iterator[str]:
    """Whatever *tree* defines: classes, functions, variables, attributes."""
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name


def is_path(text: str) -> bool:
    return "/" in text or text.endswith((".py", ".md", ".toml", ".yaml"))


def test_every_path_on_it_exists() -> None:
    paths = [text for text in quoted() if is_path(text)]
    assert len(paths) > 30
    assert [path for path in paths if not (PACKAGE / path).exists() and not (ROOT / path).exists()] == []


def test_every_name_on_it_is_defined_in_the_package() -> None:
    defined = {file.stem for file, _ in trees()}
    for _, tree in trees():
        defined.update(names_of(tree))
    named = {text for text in quoted() if not is_path(text)} - WORDS.keys()
    assert len(named) > 40
    assert sorted(text for text in named if not defined.issuperset(text.split("."))) == []


def test_every_exception_to_that_is_on_it() -> None:
    assert WORDS.keys() - set(quoted()) == set()


def test_its_floors_are_those_of_the_import_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (layers,) = (one["layers"] for one in contracts if one["type"] == "layers")
    rows = (
        PAGE.read_text("utf-8")
        .partition("| room | what is done there |\n|---|---|\n")[2]
        .partition("\n\n")[0]
    )
    rooms = [re.findall(r"`(\w+)", row.split("|")[1]) for row in rows.splitlines()]
    assert [set(one) for one in rooms] == [set(one.split(" | ")) for one in layers]


def test_every_module_and_package_of_the_top_and_every_room_in_a_room_is_on_the_map() -> None:
    packages = (one.parent for one in PACKAGE.rglob("__init__.py") if one.parent != PACKAGE)
    rooms = {f"{one.relative_to(PACKAGE).as_posix()}/" for one in packages}
    modules = {one.name for one in PACKAGE.glob("*.py")} - {"__init__.py"}
    assert sorted((rooms | modules) - set(quoted())) == []


def locks_made() -> set[str]:
    """`Class.attribute` or `module.variable` of each mutex; one that is handed over, by the class that gets it."""
    found = set()
    for file, tree in trees():
        owner: dict[ast.AST, str] = {}
        for outer in ast.walk(tree):
            if isinstance(outer, ast.ClassDef):
                owner.update((inner, outer.name) for inner in ast.walk(outer))
        for node in ast.walk(tree):
            match node:
                case ast.Assign(targets=[ast.Attribute(value=ast.Name(id="self"), attr=name)], value=value):
                    where = f"{owner[node]}.{name}"
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    where = f"{file.stem}.{name}"
                case ast.Call(func=ast.Name(id=callee), keywords=keywords):
                    given = [one.value for one in keywords if one.arg == "lock" and is_lock(one.value)]
                    if given:
                        found.add(callee)
                    continue
                case _:
                    continue
            if is_lock(value) and name not in GATES:
                found.add(where)
    return found


def is_lock(value: ast.AST) -> bool:
    match value:
        case ast.Call(func=ast.Attribute(value=ast.Name(id="threading"), attr=name)):
            return name in LOCKS
        case ast.Call(func=ast.Name(id=name)):
            return name in LOCKS or name == "allocate_lock"
    return False


def test_every_lock_is_in_its_table_and_no_other() -> None:
    table = PAGE.read_text("utf-8").partition("| lock | guards |")[2].partition("\n\n")[0]
    listed = set(re.findall(r"^\| `([^`]+)` \|", table, flags=re.MULTILINE))
    made = locks_made()
    handed = {one for one in made if "." not in one}
    assert handed == {"Circuit", "RetryBudget", "UpstreamCounters"}
    by_class = {one for one in listed if one.partition(".")[0] in handed}
    assert sorted(made - handed) == sorted(listed - by_class)
    assert {one.partition(".")[0] for one in by_class} == handed
