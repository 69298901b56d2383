"""What the scripts install is pinned, so that nothing published tomorrow can redden a clean clone."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
NEWEST, LOWEST = "constraints.txt", "constraints-lowest.txt"
RENEW = "renew it with: ./.ci/renew-constraints"


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def run_time() -> list[Requirement]:
    """The dependencies, and those of the extras."""
    extras = project()["project"]["optional-dependencies"].values()
    texts = [*project()["project"]["dependencies"], *(text for extra in extras for text in extra)]
    return list(map(Requirement, texts))


def of_group(name: str) -> list[Requirement]:
    found: list[Requirement] = []
    for entry in project()["dependency-groups"][name]:
        found += [Requirement(entry)] if isinstance(entry, str) else of_group(entry["include-group"])
    return found


def pins(file: str, python: str) -> dict[str, Version]:
    """Name to version, as pip reads them on that *python*."""
    environment = {**default_environment(), "python_version": python, "python_full_version": f"{python}.1"}
    found: dict[str, Version] = {}
    for line in (ROOT / ".ci" / file).read_text("utf-8").splitlines():
        if line.startswith("#"):
            continue
        pin = Requirement(line)
        if pin.marker is not None and not pin.marker.evaluate(environment):
            continue
        (exact,) = pin.specifier
        assert exact.operator == "==", line
        assert found.setdefault(canonicalize_name(pin.name), Version(exact.version)) == Version(exact.version)
    return found


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_everything_that_the_scripts_install_is_pinned_within_its_bounds(python: str) -> None:
    """failures.md 74."""
    pinned = pins(NEWEST, python)
    groups = [group for group in project()["dependency-groups"] if group != "test-lowest"]
    asked = [*run_time(), *map(Requirement, project()["build-system"]["requires"])]
    for group in groups:
        asked += of_group(group)
    for requirement in asked:
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} has no pin; {RENEW}"
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement}: {version}; {RENEW}"
    assert pinned["pip"] >= Version("25.1"), "older ones know no dependency groups"


def test_the_lowest_leg_installs_the_lowest_that_the_project_allows() -> None:
    """failures.md 74. A bound that nothing was ever tried with is a guess."""
    pinned = pins(LOWEST, "3.11")
    for requirement in run_time():
        (bound,) = [part.version for part in requirement.specifier if part.operator == ">="]
        assert pinned[canonicalize_name(requirement.name)] == Version(bound), f"{requirement}; {RENEW}"
    for requirement in of_group("test-lowest"):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)], prereleases=True)


@pytest.mark.parametrize("file", [NEWEST, LOWEST])
def test_pins_name_no_place_and_say_how_they_are_renewed(file: str) -> None:
    lines = (ROOT / ".ci" / file).read_text("utf-8").splitlines()
    command = re.search(r"Renew it with: (\S+)", "\n".join(lines[:2]))
    assert command is not None
    assert (ROOT / command[1]).is_file()
    strange = [line for line in lines[2:] if not re.fullmatch(r"[a-z0-9-]+==[0-9a-z.]+( ; [^/:@]+)?", line)]
    assert strange == []


def test_only_what_users_install_is_an_extra() -> None:
    assert list(project()["project"]["optional-dependencies"]) == ["otel"]


def settings(script: str) -> str:
    """What a shell that has sourced the scripts' common part prints."""
    done = subprocess.run(
        ["bash", "-c", f'set -eu; root="{ROOT}"; . "$root/.ci/environment.sh"; {script}'],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"PATH": "/usr/bin:/bin"},
    )
    return done.stdout.strip()


def test_an_edit_of_the_pins_makes_the_environment_anew(tmp_path: Path) -> None:
    """failures.md 74. The stamp of an environment holds all that it was made of."""
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho Python 3.11.0\n")
    fake.chmod(0o755)
    script = f"""
        new_venv() {{ echo made >>"{tmp_path}/made"; mkdir -p "$2/bin"; cp "$1" "$2/bin/python"; }}
        install_into() {{ :; }}
        constraints() {{ echo "{tmp_path}/pins"; }}
        for pins in a==1 a==1 a==2; do
            echo "$pins" >"{tmp_path}/pins"
            make_venv "{fake}" "{tmp_path}/venv" test
        done"""
    settings(script)
    assert (tmp_path / "made").read_text().splitlines() == ["made", "made"]


def test_what_is_installed_and_built_follows_the_pins_whatever_the_folder_is_called(tmp_path: Path) -> None:
    """failures.md 74. pip splits its variables at blanks."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exec "{sys.executable}" "$@"\n'
        'echo "$PIP_CONSTRAINT $PIP_BUILD_CONSTRAINT $*"\n'
    )
    python.chmod(0o755)
    printed = settings(
        f'root="/a b"; install_into "{tmp_path}" flask; LOWEST=1 install_into "{tmp_path}" flask'
    )
    newest, lowest = (f"file:///a%20b/.ci/{file}" for file in (NEWEST, LOWEST))
    assert [line.split()[:2] for line in printed.splitlines()] == [[newest] * 2, [lowest] * 2]
    assert all(line.endswith("flask") for line in printed.splitlines())
