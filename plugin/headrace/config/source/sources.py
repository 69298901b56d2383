"""Where a configuration comes from, weakest first: files, the secrets directory, `HEADRACE_…__…` variables.

Each is a source of pydantic-settings and gives a marked tree; `Settings(strongest, …, weakest)` lays them on each
other. Nodes go through that as values do, so what comes out still knows where it was written. The weakest source of
all is in `inherit`: what upstreams take over from `defaults` and from each other.

It begins with the two strongest. So a map of a variable is laid on the map of a file also where the secrets directory
has null or another single value between them: that says less, as within one source.

A source reads when it is made, files first: the names of the stronger ones are matched with what stands below.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, ClassVar, Literal, TypeAlias, cast

from pydantic.fields import FieldInfo
from pydantic_settings import EnvSettingsSource, InitSettingsSource

from headrace.config.check.problems import Problem, did_you_mean, refusal
from headrace.config.explain.keys import GONE, Key, key_at, root_key
from headrace.config.settings import Settings
from headrace.config.source.blocks import Blocks
from headrace.config.source.document import MAX_DOCUMENT_BYTES, DocumentError, read_document, read_flow
from headrace.config.source.files import MAX_SECRET_BYTES, Reader, ReadingError, text_of_secret
from headrace.config.source.interpolate import Interpolation
from headrace.config.source.renames import new_name, settled
from headrace.config.source.tree import Mark, Node, Table, merge, node_at, plain, problem_at
from headrace.policy.printable import printable

PREFIX = "HEADRACE_"
FILE_VARIABLE = "HEADRACE_FILE"
MODE_VARIABLE = "HEADRACE_MODE"
SECRETS_VARIABLE = "HEADRACE_SECRETS_DIR"
KNOWN_VARIABLES = (FILE_VARIABLE, MODE_VARIABLE, SECRETS_VARIABLE)
DEFAULT_FILE = "upstreams.yaml"
_LEVEL = "\0"  # no name holds it, while a header's may hold the double underscore
_NO_SETTING = "is not a setting of headrace; it is ignored"
Names: TypeAlias = tuple[str, ...]

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


class Documents(InitSettingsSource):
    """The files, later ones over earlier ones, with their references replaced.

    One source, not one per file: a reference that a later file replaces is never looked up. Stock's
    `YamlConfigSettingsSource` passes over a missing file, reads YAML 1.1 without a limit, and knows no positions.
    What could be read of a file with problems is in: the rest of it is checked in the same run.

    Args:
        kept: What the files have said before (`blocks`); None: nothing is kept.

    Attributes:
        tree: What they say.
        was_read: Whether at least one could be read.
        problems: What could not be read.
        unresolved: References that lead nowhere; null stands in the tree for them.
        made_of_files: As `Interpolation` has it.
    """

    def __init__(
        self,
        names: Sequence[str],
        env: Mapping[str, str],
        reader: Reader,
        kept: dict[str, Blocks] | None = None,
    ) -> None:
        super().__init__(Settings, {})
        self.tree = Table({}, {}, Mark("headrace"))
        self.was_read = False
        self.problems: list[Problem] = []
        for name in names:
            tree: Table | None = None
            try:
                tree = read_document(reader.read(name, limit_bytes=MAX_DOCUMENT_BYTES), name, kept)
            except ReadingError as error:
                fix = "check the path, and who may read the file"
                if name == DEFAULT_FILE:
                    fix += "; to begin with one: headrace init"
                self.problems.append(problem_at(Mark(name), "", str(error), fix))
            except DocumentError as error:
                self.problems.extend(error.problems)
                tree = error.tree
            if tree is not None:
                self.tree = _table(merge(self.tree, tree)) if self.was_read else tree
                self.was_read = True
        interpolation = Interpolation(env, reader)
        self.tree = _table(interpolation.resolve_tree(self.tree))
        self.unresolved = interpolation.problems
        self.made_of_files = interpolation.made_of_files

    def __call__(self) -> Table:
        """The tree. Its root goes on to be that of `current_state`."""
        return self.tree


class Named(EnvSettingsSource):
    """Values under names with a double underscore for each level: variables, and the files of a directory.

    pydantic-settings makes maps of the names. Nodes take the place of texts in that, so each value keeps the name that
    it came under. What stock does before stands aside: it reads values as JSON (they are YAML here), lower-cases names
    (not those of headers), and is silent about a name that means nothing. A map that a name holds is filled by the
    longer names; until the tree is made nobody else has it.

    Attributes:
        tree: What they say.
        problems: Values that cannot be read.
        misspelt: Names that mean nothing.
    """

    advice: ClassVar[str]
    """What to do about a misspelt name that is like none."""

    def __init__(self, below: Sequence[Table]) -> None:
        super().__init__(Settings, case_sensitive=True, env_prefix="", env_nested_delimiter=_LEVEL)
        self.problems: list[Problem] = []
        self.misspelt: list[Problem] = []
        self._below = below
        self._values: dict[Names, Node] = {}

    def next_field(
        self, field: FieldInfo | Any | None, key: str, case_sensitive: bool | None = None
    ) -> FieldInfo | None:
        """None: its type would only decide whether to read JSON."""
        return None

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """*value*, a node: it has been read."""
        return value

    def __call__(self) -> Table:
        """The tree."""
        return self.tree

    def _take(self, label: str, bare: str, prefix: str, read: Callable[[], str]) -> None:
        """The value that *read* answers, under what *bare* means; a problem or a misspelling at *label*."""
        path, near = _path_of(bare, self._below, prefix)
        if path is None:
            return self._misspell(label, near)
        problem = partial(problem_at, Mark(label), path)
        try:
            self._values[path] = read_flow(read(), label, key_at(settled(path)))
        except ReadingError as error:
            self.problems.append(problem(str(error), "check who may read the file"))
        except UnicodeDecodeError:
            self.problems.append(problem("is not UTF-8 text"))
        except DocumentError as error:
            self.problems += [problem(one.message, one.fix) for one in error.problems]

    def _misspell(self, label: str, near: str | None, message: str = _NO_SETTING, advice: str = "") -> None:
        fix = f"did you mean {near}?" if near else advice or self.advice
        self.misspelt.append(problem_at(Mark(label), "", message, fix))

    def _hand_over(self) -> None:
        """Let pydantic-settings make the tree of what was taken, but for upstreams that nobody declares: misspelt."""
        tables = [tree["upstreams"] for tree in self._below if "upstreams" in tree]
        declared = {name for table in tables if isinstance(table, Table) for name in table}
        declared |= {path[1] for path in self._values if path[0] == "upstreams" and path[2:] == ("base_url",)}
        paths: list[Names] = []
        for path, node in sorted(self._values.items(), key=itemgetter(0)):
            if len(path) > 2 and path[0] == "upstreams" and path[1] not in declared:
                near = did_you_mean(path[1], sorted(declared))
                message = f'names the upstream "{path[1]}", which no file declares; it is not applied'
                self._misspell(
                    node.mark.file, near, message, "declare the upstream with its base_url, or unset it"
                )
                continue
            if paths and path[: len(paths[-1])] == paths[-1] and plain(self._values[paths[-1]]) is None:
                paths.pop()  # names below that of a null would vanish in it
            paths.append(path)
        named: Any = {_LEVEL.join(path): self._values[path] for path in paths}
        self.env_vars = named
        self.tree = _table(_marked(super().__call__(), Mark("environment")))


class Environment(Named):
    """The `HEADRACE_…__…` variables.

    Args:
        below: The trees that it will be laid on, the weakest first: header names are matched with theirs.
    """

    advice = "unset it, or see the key reference for the names there are"

    def __init__(self, env: Mapping[str, str], below: Sequence[Table], reader: Reader) -> None:
        super().__init__(below)
        for name in sorted(env):
            bare, label = name.removeprefix(PREFIX), f"environment {printable(name)}"
            if bare == name or name in KNOWN_VARIABLES:
                continue
            if "__" in name:
                self._take(label, bare, PREFIX, partial(reader.note, name, env[name]))
            elif not _KUBERNETES.fullmatch(name):
                # Compared without the prefix. With it, any two of our names would look alike.
                near = did_you_mean(bare, [known.removeprefix(PREFIX) for known in KNOWN_VARIABLES])
                self._misspell(label, near and PREFIX + near)
        self._hand_over()


class SecretsDirectory(Named):
    """A secrets directory: one file per key, named as the variable would be, `HEADRACE_` or not.

    Other files are left alone: everything in a container shares `/run/secrets`. Stock's `SecretsSettingsSource` knows
    no nested names, strips passwords, and refuses symlinks that lead out of the directory. Its nested one strips and
    refuses, too; in kind it is what this is, an `EnvSettingsSource` over files.
    """

    advice = "rename it after a key, such as upstreams__billing__headers__Authorization"

    paths: dict[str, str]
    """Where each file that was taken is, by what the marks of its values call it."""

    def __init__(self, directory: str, below: Sequence[Table], reader: Reader) -> None:
        super().__init__(below)
        self.paths = {}
        folder = reader.absolute(directory)

        def read(name: str) -> str:
            path = os.path.join(folder, name)
            return text_of_secret(reader.read(path, limit_bytes=MAX_SECRET_BYTES, known_by=name))

        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            names = []
            message = f"the secrets directory cannot be read ({os.strerror(error.errno or 0)})"
            self.problems.append(problem_at(Mark(directory), "", message, "check the path"))
        for name in names:
            prefix = PREFIX if name.upper().startswith(PREFIX) else ""
            bare = name[len(prefix) :]
            if name.startswith(".") or "__" not in bare:
                continue
            if prefix or bare.partition("__")[0].lower() in root_key().children:
                label = os.path.join(directory, name)
                self.paths[label] = os.path.join(folder, name)
                self._take(label, bare, prefix, partial(read, name))
        self._hand_over()


def _path_of(name: str, below: Sequence[Table], prefix: str) -> tuple[Names | None, str | None]:
    """The path that *name* with its double underscores means, or None and the nearest name that means one."""
    key: Key | None = root_key()
    path: list[str] = []
    spelt: list[str] = []
    parts = name.split("__")
    for position, part in enumerate(parts):
        if key is None or not key.is_map or not part:
            return None, prefix + "__".join(spelt) if spelt else None
        if key.children:
            word = part.lower()
            known = new_name(settled(tuple(path)), word)
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
        spelt.append(part)
        key = key.child(known)
    return tuple(path), None


def _header_name(part: str, path: Names, below: Sequence[Table], *, from_variable: bool) -> str:
    """The header that *part* names, spelt as in the file if the file has it. In a variable `_` stands for `-`."""
    word = part.replace("_", "-") if from_variable else part
    known = (name for tree in below if isinstance(headers := node_at(tree, path), Table) for name in headers)
    return next(
        (name for name in known if name.lower().replace("_", "-") == word.lower().replace("_", "-")), word
    )


def _marked(node: Any, mark: Mark) -> Node:
    """*node* with tables for the maps that only names have made: each is where its first value is, else at *mark*."""
    if not isinstance(node, dict):
        return cast("Node", node)
    entries = {name: _marked(child, mark) for name, child in node.items()}
    if isinstance(node, Table):
        return Table(entries, node.key_marks, node.mark)
    return Table(entries, {}, next((child.mark for child in entries.values()), mark))


def _table(node: Node) -> Table:
    assert isinstance(node, Table)
    return node
