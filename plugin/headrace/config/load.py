"""From file names to a configuration: read, merge, validate, cross-check, compile. Whole or not at all.

**The order of the stages, and why it is this one.** Each stage needs what the one before it has made.

1. The files are read and merged, later ones over earlier ones. Without a tree there is nothing to check, so `inspect`
   ends here. A file whose YAML could be read to its end has one, whatever is refused in it: its other problems are told
   in the same run.
2. References are replaced, before the secrets directory and the variables are there. What those two hold is taken as
   it stands: the characters `${` in a password are no reference.
3. The secrets directory is read, then the variables. Each is given the trees below it, since its names are matched with
   the headers and the upstreams of the files. Old names of keys are replaced by the new ones in each: all are read by
   then, so two that say a key by two names are found.
4. pydantic-settings lays the sources on each other, as `Settings` is made. `defaults` and `extends` are the weakest
   source, the one that it asks last. All others are in by then, so a variable that sets a default reaches every
   upstream. `Written` keeps the tree from before beside the complete one: a problem is reported where the value was
   written, not at each heir.
5. Single values are validated. A refused value is replaced by its default and its path is remembered. The stages that
   follow can therefore run, and they leave out what rests on a refused value.
6. The problems of step 2 are added only now, because what validation says about the null that an unresolved reference
   left is an echo, and is dropped; so is what it says at a place that step 1 has refused.
7. Cross-checks, TLS files, fallbacks and predicates all run, whatever the others have found: their author sees all
   problems at once. Only here is the application's code imported (`find_predicates`).
8. Lint runs on a configuration without problems. A doubt about one that is refused anyway would be noise.
9. Plans are compiled. This stage refuses nothing. The digest is taken at the same moment, when the reader has seen
   every file, secret and variable that the plans rest on.

Every stage adds to the same lists, and one `Reader` reads each file once: the content that was checked is the content
that the digest is of. No lock is needed. Each load has a reader and a tree of its own. A section that says the same as
at the load before is neither validated nor compiled again (`config.reuse`), and in a long file its text is not parsed
again (`config.source.blocks`); everything else is done every time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path as FilePath
from typing import TypeAlias

from headrace.config.check.checks import cross_check
from headrace.config.check.exposure import readable, secrets_of
from headrace.config.check.fallbacks import check_fallbacks
from headrace.config.check.lint import lint
from headrace.config.check.predicates import find_predicates
from headrace.config.check.problems import Problem, refusal
from headrace.config.check.trust import Trust
from headrace.config.check.validate import validate
from headrace.config.compile import compile_settings
from headrace.config.reuse import Reading, Sections
from headrace.config.settings import Settings
from headrace.config.source.files import Reader
from headrace.config.source.renames import with_new_names
from headrace.config.source.sources import (
    SECRETS_VARIABLE,
    Documents,
    Environment,
    Named,
    SecretsDirectory,
    default_files,
    mode_problem,
)
from headrace.config.source.tree import Mark, node_at, problem_at
from headrace.config.source.written import Written
from headrace.policy.frozen import frozen
from headrace.policy.plan import Configuration, FileHeader, FilePart, SecretFile, TlsPlan

Files: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None


@frozen
class Inspection:
    """Everything there is to say about a configuration.

    Attributes:
        configuration: None when there are problems.
        settings: The validated values; None when there are problems.
        written: Where each value comes from; None when no file could be read.
        problems: What keeps it from being taken into force, sorted.
        misspelt: Variables and secret files that name no key, sorted.
        findings: Lint, sorted.
        watched: Absolute paths of everything that was read, or should have been.
    """

    configuration: Configuration | None = field(repr=False)  # a host or a server name may be a secret too
    settings: Settings | None = field(repr=False)
    written: Written | None = field(repr=False)
    problems: tuple[Problem, ...]
    misspelt: tuple[Problem, ...]
    findings: tuple[Problem, ...]
    watched: tuple[str, ...]


def load(
    files: Files = None,
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    secrets_dir: str | os.PathLike[str] | None = None,
    sections: Sections | None = None,
) -> Configuration:
    """The configuration of *files*, ready to be taken into force. Reads files; changes nothing.

    Args:
        files: One file, or several of which later ones win; None: HEADRACE_FILE
            (several separated as in PATH), else `upstreams.yaml`.
        env: Environment to read; None: the process's.
        cwd: What relative paths are relative to; None: the working directory.
        secrets_dir: Secrets directory; None: HEADRACE_SECRETS_DIR, if set.
        sections: What the load before has made, for those that say the same; it will have what this one makes. TLS
            files that cannot be read are then no problem where that load has read the same ones
            (`Configuration.tls_refused`).

    Raises:
        ConfigError: With every problem found, sorted by file and line.
    """
    inspection = inspect(files, env=env, cwd=cwd, secrets_dir=secrets_dir, sections=sections)
    if inspection.configuration is None:
        env = None  # crash reporters ship the locals of a frame, and this one is the whole environment
        raise refusal(inspection.problems, watched=inspection.watched)
    return inspection.configuration


def inspect(
    files: Files = None,
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    secrets_dir: str | os.PathLike[str] | None = None,
    given: Mapping[str, bytes] | None = None,
    sections: Sections | None = None,
) -> Inspection:
    """As `load`, but never raises for what is wrong: `check` and `explain` print it.

    Args:
        given: Contents of those of *files* that were read already, by name: of what can be read only once.
    """
    env = os.environ if env is None else env
    reader = Reader(FilePath.cwd() if cwd is None else FilePath(cwd).absolute(), given)
    problems: list[Problem] = []
    misspelt: list[Problem] = []
    if (wrong := mode_problem(env)) is not None:
        problems.append(wrong)

    names = _names(files, env)
    if not names:
        problems.append(
            problem_at(Mark("headrace"), "", "no file was named", "name one, or leave it to headrace which")
        )
    documents = Documents(names, env, reader, None if sections is None else sections.blocks)
    problems += documents.problems
    if not documents.was_read:
        return _refused(problems, misspelt, reader)

    named: list[Named] = []
    paths: dict[str, str] = {}  # of the secrets directory
    folder = os.fspath(secrets_dir) if secrets_dir is not None else env.get(SECRETS_VARIABLE)
    if folder:
        directory = SecretsDirectory(folder, [documents.tree], reader)
        named.append(directory)
        paths = directory.paths
    named.append(Environment(env, [documents.tree, *(weaker.tree for weaker in named)], reader))
    for one in named:
        problems += one.problems
        misspelt += one.misspelt

    sources: list[Documents | Named] = [*reversed(named), documents]
    trees = [source.tree for source in sources]
    deprecated: list[Problem] = []
    for source in sources:
        source.tree, found, old = with_new_names(source.tree, trees)
        problems += found
        deprecated += old

    sections = Sections() if sections is None else sections
    models, plans = sections.kept
    reading = Reading(models)
    validated = validate(*sources, reading=reading)
    settings, written = validated.settings, validated.written
    problems += documents.unresolved
    # A reference or an alias that leads nowhere has left null behind, a key that is no text has left its text. What
    # validation says about those is an echo.
    told = (*documents.problems, *documents.unresolved)
    echoes = {(one.file, one.line, one.column) for one in told if one.line}
    problems += [said for said in validated.problems if (said.file, said.line, said.column) not in echoes]
    if settings is None:
        return _refused(problems, misspelt, reader, written)
    problems += cross_check(settings, written)
    trust = Trust(
        env, reader, written, before={name: one[1] for name, one in plans.items() if one[1] is not None}
    )
    tls: dict[str, TlsPlan | None] = {name: trust.plan(name, one) for name, one in settings.upstreams.items()}
    problems += trust.problems
    problems += check_fallbacks(settings, written)
    predicates, found = find_predicates(settings, written)
    problems += found
    if problems:
        return _refused(problems, misspelt, reader, written)
    secrets = reader.in_headers_only()
    file_headers = _file_headers(settings, written, documents.made_of_files, secrets)
    absolute = {
        name: reader.absolute(name)
        for one in settings.upstreams.values()
        for name in (one.tls.key, one.tls.cert)
        if name is not None
    }
    exposed = readable(settings, written, absolute, documents.made_of_files)
    findings = sorted({*deprecated, *lint(settings, written), *exposed, *trust.findings})
    misspelt = sorted(set(misspelt))
    watched = tuple(reader.watched)
    configuration = compile_settings(
        settings,
        tls=tls,
        predicates=predicates,
        file_headers=file_headers,
        secret_files=_secret_files(settings, written, documents.made_of_files, paths),
        known=plans,
        digest=reader.digest(),
        watched=watched,
        warnings=tuple(map(str, sorted([*misspelt, *findings]))),
        prints=reader.prints(),
        tls_refused=trust.refused,
        secret_texts=secrets,
    )
    sections.kept = (
        reading.models(settings.upstreams, sections.blocks.values()),
        {
            name: (upstream, tls[name], predicates.get(name), configuration.upstreams[name])
            for name, upstream in settings.upstreams.items()
        },
    )
    return Inspection(configuration, settings, written, (), tuple(misspelt), tuple(findings), watched)


def _file_headers(
    settings: Settings,
    written: Written,
    made: Mapping[Mark, tuple[str | FilePart, ...]],
    secrets: Mapping[str, str],
) -> dict[str, tuple[FileHeader, ...]]:
    """The headers of each upstream that follow files: all files in them hold nothing but headers. By name."""
    if not made:
        return {}
    found = {}
    for name, upstream in settings.upstreams.items():
        headers = []
        for header in upstream.headers:
            node = node_at(written.tree, ("upstreams", name, "headers", header))
            parts = () if node is None else made.get(node.mark, ())
            if parts and all(part.path in secrets for part in parts if isinstance(part, FilePart)):
                headers.append(FileHeader(header, parts))
        if headers:
            found[name] = tuple(headers)
    return found


def _secret_files(
    settings: Settings,
    written: Written,
    made: Mapping[Mark, tuple[str | FilePart, ...]],
    paths: Mapping[str, str],
) -> dict[str, tuple[SecretFile, ...]]:
    """Where the headers and the passphrase of each upstream come from, as far as they are in files. By name.

    Args:
        paths: Those of the secrets directory, by what marks call them.
    """
    if not made and not paths:
        return {}
    found = {}
    for name, upstream in settings.upstreams.items():
        files: dict[SecretFile, None] = {}
        for kind, path in secrets_of(name, upstream):
            node = node_at(written.tree, path)
            if node is None:
                continue
            from_directory = paths.get(node.mark.file)
            if from_directory is not None:
                files[SecretFile(kind, from_directory)] = None
            for part in made.get(node.mark, ()):
                if isinstance(part, FilePart):
                    files[SecretFile(kind, part.path)] = None
        if files:
            found[name] = tuple(files)
    return found


def _refused(
    problems: list[Problem], misspelt: list[Problem], reader: Reader, written: Written | None = None
) -> Inspection:
    watched = tuple(reader.watched)
    return Inspection(
        None, None, written, tuple(sorted(set(problems))), tuple(sorted(set(misspelt))), (), watched
    )


def _names(files: Files, env: Mapping[str, str]) -> list[str]:
    if files is None:
        return default_files(env)
    if isinstance(files, str | os.PathLike):
        return [os.fspath(files)]
    return [os.fspath(file) for file in files]
