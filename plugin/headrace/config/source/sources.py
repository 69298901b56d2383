"""Where a configuration comes from, weakest first: files, the secrets directory, `HEADRACE_…__…` variables.

Each source becomes a marked tree; `tree.merge` lays one on the other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from headrace.config.check.problems import Path, Problem, did_you_mean, refusal
from headrace.config.explain.keys import GONE, Key, root_key
from headrace.config.source.document import MAX_DOCUMENT_BYTES, DocumentError, read_document, read_flow
from headrace.config.source.files import Reader, ReadingError, text_of
from headrace.config.source.interpolate import MAX_SECRET_BYTES
from headrace.config.source.renames import new_name
from headrace.config.source.tree import Mark, Node, Table, merge, node_at, problem_at
from headrace.policy.printable import printable

PREFIX = "HEADRACE_"
FILE_VARIABLE = "HEADRACE_FILE"
MODE_VARIABLE = "HEADRACE_MODE"
SECRETS_VARIABLE = "HEADRACE_SECRETS_DIR"
KNOWN_VARIABLES = (FILE_VARIABLE, MODE_VARIABLE, SECRETS_VARIABLE)
DEFAULT_FILE = "upstreams.yaml"

_OVERRIDES = {
    "off": "no call is governed",
    "observe": "no call is changed, what the rules would do is counted",
}

# Kubernetes sets these for a service named headrace. Every setting of ours has a double underscore.
_KUBERNETES = re.compile(r"HEADRACE_(?:[A-Z0-9_]+_)?(?:SERVICE|PORT)(?:_[A-Z0-9_]+)?")


def default_files(env: Mapping[str, str]) -> list[str]:
    """The files that are read where none is named: those of HEADRACE_FILE, separated as in PATH, else DEFAULT_FILE."""
    named = [name for name in env.get(FILE_VARIABLE, "").split(os.pathsep) if name]
    return named or [DEFAULT_FILE]  # an empty value counts as not set


def mode_override(env: Mapping[str, str]) -> Literal["off", "observe"] | None:
    """What HEADRACE_MODE asks for, or None when it is unset, empty or `enforce`.

    Raises:
        ConfigError: Any other value. A kill switch that is misspelt must not be ignored.
    """
    problem = mode_problem(env)
    if problem is not None:
        raise refusal([problem])
    value = _mode_of(env)
    if value == "off":
        return "off"
    return "observe" if value == "observe" else None


def mode_problem(env: Mapping[str, str]) -> Problem | None:
    """What is wrong with HEADRACE_MODE, or None."""
    value = _mode_of(env)
    if value in ("", "enforce", "off", "observe"):
        return None
    near = did_you_mean(value, ["off", "observe", "enforce"])
    return problem_at(
        Mark("environment"),
        MODE_VARIABLE,
        f'must be off, observe or enforce; found the text "{printable(value[:40])}"',
        f"did you mean {near}?" if near else "set it to off, observe or enforce, or unset it",
    )


def override_note(env: Mapping[str, str]) -> Problem | None:
    """What HEADRACE_MODE overrides, for those who check a file where it is set; None where it overrides nothing."""
    value = _mode_of(env)
    if value not in _OVERRIDES:
        return None
    return problem_at(
        Mark("environment"),
        MODE_VARIABLE,
        f"is set to {value} here and overrides every mode of the file: {_OVERRIDES[value]}",
        "unset it to end that",
    )


def _mode_of(env: Mapping[str, str]) -> str:
    return env.get(MODE_VARIABLE, "").strip().lower()


def read_files(files: Sequence[str], reader: Reader) -> tuple[Table | None, list[Problem]]:
    """All *files* merged, later ones over earlier ones; None when not one could be read.

    A file with problems of its own is merged with what could be read of it: the rest is checked in the same run.
    """
    merged: Table | None = None
    problems: list[Problem] = []
    for file in files:
        tree: Table | None = None
        try:
            tree = read_document(reader.read(file, limit_bytes=MAX_DOCUMENT_BYTES), file)
        except ReadingError as error:
            fix = "check the path, and who may read the file"
            if file == DEFAULT_FILE:
                fix += "; to begin with one: headrace init"
            problems.append(problem_at(Mark(file), "", str(error), fix))
        except DocumentError as error:
            problems.extend(error.problems)
            tree = error.tree
        if tree is not None:
            below = merged
            merged = tree if below is None else _table(merge(below, tree))
    return merged, problems


def read_environment(
    env: Mapping[str, str], below: Table, reader: Reader
) -> tuple[Table | None, list[Problem], list[Problem]]:
    """The tree of the `HEADRACE_…__…` variables, its problems, and warnings for those that mean nothing.

    Args:
        below: The tree that the result will be laid on. Header names are matched with it.
    """
    values: dict[Path, Node] = {}
    problems: list[Problem] = []
    warnings: list[Problem] = []
    for name in sorted(env):
        if not name.startswith(PREFIX) or name in KNOWN_VARIABLES:
            continue
        if "__" not in name:
            if not _KUBERNETES.fullmatch(name):
                # Compared without the prefix. With it, any two of our names would look alike.
                near = did_you_mean(
                    name.removeprefix(PREFIX), [known.removeprefix(PREFIX) for known in KNOWN_VARIABLES]
                )
                warnings.append(_misspelt(name, near and PREFIX + near))
            continue
        path, near = _path_of(name.removeprefix(PREFIX), below, PREFIX)
        if path is None:
            warnings.append(_misspelt(name, near))
            continue
        reader.note(f"env:{name}", env[name].encode(errors="surrogateescape"))
        try:
            values[path] = read_flow(env[name], f"environment {name}")
        except DocumentError as error:
            problems.extend(
                problem_at(Mark(f"environment {name}"), path, p.message, p.fix) for p in error.problems
            )
    return _tree_of_declared(values, below, warnings), problems, warnings


def read_secrets(
    directory: str, below: Table, reader: Reader
) -> tuple[Table | None, list[Problem], list[Problem]]:
    """The tree of a secrets directory: one file per key, named as the variable would be, `HEADRACE_` or not.

    Other files are left alone: everything in a container shares `/run/secrets`.
    """
    values: dict[Path, Node] = {}
    problems: list[Problem] = []
    warnings: list[Problem] = []
    folder = reader.absolute(directory)
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        where = problem_at(
            Mark(directory),
            "",
            f"the secrets directory cannot be read ({os.strerror(error.errno or 0)})",
            "check the path",
        )
        return None, [where], []
    for name in names:
        ours = name.upper().startswith(PREFIX)
        bare = name[len(PREFIX) :] if ours else name
        if name.startswith(".") or "__" not in bare:
            continue
        if not ours and bare.partition("__")[0].lower() not in root_key().children:
            continue
        path, near = _path_of(bare, below, PREFIX if ours else "")
        label = os.path.join(directory, name)
        if path is None:
            warnings.append(_misspelt_file(label, near))
            continue
        try:
            path_of_it = os.path.join(folder, name)
            content = text_of(reader.read(path_of_it, limit_bytes=MAX_SECRET_BYTES, known_by=name))
        except ReadingError as error:
            problems.append(problem_at(Mark(label), path, str(error), "check who may read the file"))
            continue
        except UnicodeDecodeError:
            problems.append(problem_at(Mark(label), path, "is not UTF-8 text"))
            continue
        try:
            values[path] = read_flow(content.removesuffix("\n").removesuffix("\r"), label)
        except DocumentError as error:
            problems.extend(problem_at(Mark(label), path, p.message, p.fix) for p in error.problems)
    return _tree_of_declared(values, below, warnings), problems, warnings


def _path_of(name: str, below: Table, prefix: str) -> tuple[Path | None, str | None]:
    """The path that *name* with its double underscores means, or None and the nearest name that means one."""
    key: Key | None = root_key()
    path: list[str] = []
    settled: list[str] = []  # the same by the new names
    spelt: list[str] = []
    parts = name.split("__")
    for position, part in enumerate(parts):
        if key is None or not key.is_map or not part:
            return None, prefix + "__".join(spelt) if spelt else None
        if key.children:
            word = part.lower()
            known = new_name(tuple(settled), word)
            if known not in key.children and (key.name, word) not in GONE:  # refused later, with its reason
                near = did_you_mean(word, list(key.children))
                return None, prefix + "__".join(
                    [*spelt, near.upper(), *parts[position + 1 :]]
                ) if near else None
        elif key.name == "headers":
            word = known = _header_name(part, tuple(path), below, from_variable=bool(prefix))
        else:
            word = known = part.lower()
        path.append(word)
        settled.append(known)
        spelt.append(part)
        key = key.child(known)
    return tuple(path), None


def _header_name(part: str, path: Path, below: Table, *, from_variable: bool) -> str:
    """The header that *part* names, spelt as in the file if the file has it. In a variable `_` stands for `-`."""
    word = part.replace("_", "-") if from_variable else part
    headers = node_at(below, path)
    known = headers.entries if isinstance(headers, Table) else {}
    return next(
        (name for name in known if name.lower().replace("_", "-") == word.lower().replace("_", "-")), word
    )


def _tree_of_declared(values: dict[Path, Node], below: Table, warnings: list[Problem]) -> Table | None:
    """The tree of *values*, without those for an upstream that no file declares: their names are misspelt."""
    upstreams = below.entries.get("upstreams")
    declared = set(upstreams.entries) if isinstance(upstreams, Table) else set()
    declared |= {
        str(path[1]) for path in values if len(path) == 3 and path[0] == "upstreams" and path[2] == "base_url"
    }
    root: Table | None = None
    for path, node in values.items():
        if len(path) > 2 and path[0] == "upstreams" and path[1] not in declared:
            near = did_you_mean(str(path[1]), sorted(declared))
            warnings.append(
                problem_at(
                    node.mark,
                    "",
                    f'names the upstream "{path[1]}", which no file declares; it is not applied',
                    f"did you mean {near}?"
                    if near
                    else "declare the upstream with its base_url, or unset it",
                )
            )
            continue
        branch = node
        for part in reversed(path):
            branch = Table({str(part): branch}, {str(part): node.mark}, Mark(node.mark.file))
        root = _table(branch if root is None else merge(root, branch))
    return root


def _misspelt(name: str, near: str | None) -> Problem:
    fix = f"did you mean {near}?" if near else "unset it, or see the key reference for the names there are"
    return problem_at(
        Mark(f"environment {printable(name)}"), "", "is not a setting of headrace; it is ignored", fix
    )


def _misspelt_file(label: str, near: str | None) -> Problem:
    fix = (
        f"did you mean {near}?"
        if near
        else "rename it after a key, such as upstreams__billing__headers__Authorization"
    )
    return problem_at(Mark(label), "", "is not a setting of headrace; it is ignored", fix)


def _table(node: Node) -> Table:
    assert isinstance(node, Table)
    return node
