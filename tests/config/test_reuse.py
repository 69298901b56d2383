"""A section that says the same as at the load before: its model and its plan stay, and nothing else does."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.config import Sections, load
from headrace.errors import ConfigError
from headrace.runtime.watch.fingerprint import fingerprint

TEXT = """\
version: 1
defaults: {timeouts: {deadline: 9s}}
upstreams:
  billing:
    base_url: https://billing.internal
    headers: {X-A: "1", X-B: "${env:B}"}
    pool: {max_connections: 1}
    tls: {ca: CA}
  search: {base_url: http://search.internal, extends: base, headers: {X-C: "${file:secret}"}}
  base: {base_url: http://base.internal, retry: {max_attempts: 2}}
  apart: {base_url: http://apart.internal, circuit_breaker: {failure_if: "predicates:is_error"}}
"""


class Scene:
    """One file under one `Sections`, in a folder of its own."""

    def __init__(self, folder: Path, ca: str) -> None:
        self.folder = folder
        self.env = {"B": "b"}
        self.sections = Sections()
        (folder / "secret").write_text("hush")
        (folder / "ca.pem").write_text(ca)
        self.write(TEXT.replace("CA", str(folder / "ca.pem")))

    def write(self, text: str) -> None:
        self.text = text
        (self.folder / "upstreams.yaml").write_text(text)

    def edit(self, old: str, new: str) -> None:
        assert old in self.text
        self.write(self.text.replace(old, new))

    def load(self, *, anew: bool = False):  # type: ignore[no-untyped-def]
        """The plans; *anew*: as if nothing were known."""
        return load(
            "upstreams.yaml", env=self.env, cwd=self.folder, sections=Sections() if anew else self.sections
        )


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    import trustme

    (tmp_path / "predicates.py").write_text("def is_error(response): return False\n")
    monkeypatch.syspath_prepend(tmp_path)
    return Scene(tmp_path, trustme.CA().cert_pem.bytes().decode())


def edit_secret(scene: Scene) -> None:
    (scene.folder / "secret").write_text("hush now")


def edit_ca(scene: Scene) -> None:
    import trustme

    (scene.folder / "ca.pem").write_bytes(trustme.CA().cert_pem.bytes())


def edit_env(scene: Scene) -> None:
    scene.env = {"B": "c"}


def override(scene: Scene) -> None:
    scene.env = {**scene.env, "HEADRACE_UPSTREAMS__BASE__RETRY__MAX_ATTEMPTS": "4"}


ALL = {"billing", "search", "base", "apart"}


@pytest.mark.parametrize(
    ("edit", "changed"),
    [
        pytest.param(lambda one: None, set(), id="nothing"),
        pytest.param(lambda one: one.edit("version: 1", "version: 1  # a comment\n"), set(), id="a comment"),
        pytest.param(lambda one: one.edit("max_connections: 1", "max_connections: 2"), {"billing"}, id="one"),
        pytest.param(
            lambda one: one.edit('X-A: "1", X-B: "${env:B}"', 'X-B: "${env:B}", X-A: "1"'),
            {"billing"},
            id="the order of headers",
        ),
        pytest.param(
            lambda one: one.edit("max_attempts: 2", "max_attempts: 4"), {"base", "search"}, id="extended"
        ),
        pytest.param(lambda one: one.edit("deadline: 9s", "deadline: 8s"), ALL, id="defaults"),
        pytest.param(
            lambda one: one.edit("defaults:", "service: {max_retries_per_request: 3}\ndefaults:"),
            set(),
            id="no upstream",
        ),
        pytest.param(edit_secret, {"search"}, id="a secret"),
        pytest.param(edit_env, {"billing"}, id="a variable in a value"),
        pytest.param(override, {"base", "search"}, id="a variable over the file"),
        pytest.param(edit_ca, {"billing"}, id="the bytes of a certificate"),
    ],
)
def test_the_plans_of_sections_that_say_the_same_stay_the_very_same(
    scene: Scene, edit: Callable[[Scene], None], changed: set[str]
) -> None:
    before = scene.load().upstreams

    edit(scene)
    after = scene.load().upstreams

    assert {name for name, plan in after.items() if plan is not before[name]} == changed
    assert {name for name, plan in after.items() if plan != before[name]} == changed
    assert dict(after) == dict(scene.load(anew=True).upstreams)


def test_what_compares_equal_and_is_of_another_type_is_refused_all_the_same(scene: Scene) -> None:
    """`1 == True == 1.0`, and the file's types are strict."""
    scene.load()
    for wrong in ("true", "1.0", "'1'"):
        scene.write(TEXT.replace("max_connections: 1", f"max_connections: {wrong}").replace("{ca: CA}", "{}"))
        with pytest.raises(ConfigError) as refused:
            scene.load()
        with pytest.raises(ConfigError) as anew:
            scene.load(anew=True)
        assert str(refused.value) == str(anew.value)
        assert "max_connections" in str(refused.value)


def test_a_refused_file_changes_nothing_of_what_is_known(scene: Scene) -> None:
    before, text = scene.load().upstreams, scene.text
    scene.edit("max_attempts: 2", "max_attempts: none at all")
    with pytest.raises(ConfigError):
        scene.load()
    scene.write(text)
    after = scene.load().upstreams
    assert all(after[name] is plan for name, plan in before.items())


def test_between_sections_everything_is_checked_every_time(scene: Scene) -> None:
    """The section of billing is as it was; what it claims is now claimed twice."""
    scene.load()
    scene.edit("http://apart.internal", "https://billing.internal")
    with pytest.raises(ConfigError, match="billing"):
        scene.load()


def test_names_that_change_places_get_each_others_rules(scene: Scene) -> None:
    """What is known is known by name: a section under another name is read anew."""
    scene.load()
    scene.edit("  apart:", "  other:")
    scene.edit("  base: {base_url: http://base", "  apart: {base_url: http://base")
    scene.edit("extends: base", "extends: apart")
    after = scene.load().upstreams
    assert dict(after) == dict(scene.load(anew=True).upstreams)
    assert {name: plan.name for name, plan in after.items()} == {name: name for name in after}


def test_any_row_of_edits_comes_to_what_one_load_comes_to(scene: Scene) -> None:
    rng = random.Random(12)
    numbers = {"deadline": "9s", "max_connections": "1", "max_attempts": "2"}
    for _ in range(60):
        key = rng.choice(sorted(numbers))
        new = rng.choice(["1", "2", "3", "7", "true", "7s", "8s", "null", "nonsense"])
        scene.edit(f"{key}: {numbers[key]}", f"{key}: {new}")
        numbers[key] = new
        outcomes = []
        for anew in (False, True):
            try:
                outcomes.append(dict(scene.load(anew=anew).upstreams))
            except ConfigError as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1]


def test_the_load_takes_a_file_for_what_the_watcher_takes_it_for(scene: Scene) -> None:
    """Then the watcher need not have it loaded once more to learn that nothing has changed."""
    configuration = scene.load()
    assert set(configuration.prints) == set(configuration.watched)
    assert {path: fingerprint(path) for path in configuration.watched} == configuration.prints
    (scene.folder / "secret").unlink()
    with pytest.raises(ConfigError):
        scene.load()
