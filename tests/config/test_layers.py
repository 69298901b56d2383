"""pydantic-settings builds the settings: ours are sources of its kind, and its merge is the only one between them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from pydantic_settings import BaseSettings, EnvSettingsSource, InitSettingsSource, PydanticBaseSettingsSource

from headrace.config import inspect, load
from headrace.config.settings import Settings
from headrace.config.source.files import Reader
from headrace.config.source.inherit import Inheritance
from headrace.config.source.sources import Documents, Environment, Named, SecretsDirectory
from headrace.config.source.tree import Node, merge, plain
from headrace.errors import ConfigError
from support.configs import LoadText
from support.trees import NODES, table

BASE = "upstreams:\n  billing:\n    base_url: https://billing.internal\n"
VARIABLE = "HEADRACE_UPSTREAMS__BILLING__"


def sources_of(
    folder: Path, text: str, env: Mapping[str, str], **secrets: str
) -> tuple[Named, Named, Documents]:
    """Environment, secrets directory and file, made as a load makes them."""
    (folder / "u.yaml").write_text(text)
    (folder / "secrets").mkdir()
    for name, content in secrets.items():
        (folder / "secrets" / name).write_text(content)
    reader = Reader(folder)
    documents = Documents(["u.yaml"], env, reader)
    directory = SecretsDirectory("secrets", [documents.tree], reader)
    return Environment(env, [documents.tree, directory.tree], reader), directory, documents


def test_precedence_is_the_order_in_which_settings_get_their_sources(tmp_path: Path) -> None:
    environment, secrets, documents = sources_of(
        tmp_path,
        BASE
        + "    pool: {max_connections: 1, max_waiting: 1, max_idle: 1}\n    retry: {methods: [GET, PUT]}\n",
        {f"{VARIABLE}POOL__MAX_CONNECTIONS": "3", f"{VARIABLE}RETRY__METHODS": "[POST]"},
        upstreams__billing__pool__max_connections="2",
        upstreams__billing__pool__max_waiting="2",
    )
    pool = Settings(environment, secrets, documents, Inheritance(Settings, {})).upstreams["billing"].pool
    assert (pool.max_connections, pool.max_waiting, pool.max_idle) == (3, 2, 1)

    turned = Settings(documents, secrets, environment, Inheritance(Settings, {})).upstreams["billing"]
    assert (turned.pool.max_connections, turned.pool.max_waiting) == (1, 1)
    assert turned.retry.methods == ["GET", "PUT"]  # lists replace


def test_a_single_value_between_two_maps_parts_them_not(tmp_path: Path) -> None:
    environment, secrets, documents = sources_of(
        tmp_path,
        BASE + "    pool: {heartbeat: {interval: 5s}}\n",
        {f"{VARIABLE}POOL__HEARTBEAT__PATH": "/healthz"},
        upstreams__billing__pool__heartbeat="null",
    )
    both = (
        Settings(environment, secrets, documents, Inheritance(Settings, {}))
        .upstreams["billing"]
        .pool.heartbeat
    )
    assert both is not None
    assert (both.interval, both.path) == (5.0, "/healthz")
    without = Settings(secrets, documents, Inheritance(Settings, {})).upstreams["billing"].pool
    assert without.heartbeat is None


def test_each_source_is_one_of_pydantic_settings_and_hooked_in_where_it_says(tmp_path: Path) -> None:
    sources = sources_of(tmp_path, BASE, {f"{VARIABLE}MODE": "off"})
    environment, secrets, documents = sources
    assert isinstance(environment, EnvSettingsSource)
    assert isinstance(secrets, EnvSettingsSource)
    assert isinstance(documents, InitSettingsSource)
    stock = EnvSettingsSource(Settings)
    given = InitSettingsSource(Settings, {"sources": sources})
    assert Settings.settings_customise_sources(Settings, given, stock, stock, stock) == sources
    assert plain(environment()) == {"upstreams": {"billing": {"mode": "off"}}}


def test_the_process_s_environment_is_not_read_behind_the_callers_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """failures.md 50."""
    (tmp_path / "u.yaml").write_text(BASE)
    expected = load("u.yaml", env={}, cwd=tmp_path)
    for name, value in {
        "VERSION": "7",
        "UPSTREAMS": "{}",
        f"{VARIABLE}MODE": "off",
        "upstreams__x__mode": "off",
    }.items():
        monkeypatch.setenv(name, value)
    assert load("u.yaml", env={}, cwd=tmp_path) == expected


class Anything(BaseSettings):
    """Takes its sources as Settings does, and whatever they say."""

    r: Any = None

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, **others: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return tuple(init_settings()["sources"])


@given(NODES, NODES)
def test_what_pydantic_settings_makes_of_two_sources_is_what_defaults_and_an_upstream_make(
    weaker: Node, stronger: Node
) -> None:
    """Maps merge, lists and single values replace; in both places."""
    below, above = table({"r": weaker}), table({"r": stronger})
    before = plain(below), plain(above)
    sources = InitSettingsSource(Anything, above), InitSettingsSource(Anything, below)  # type: ignore[arg-type]
    merged = merge(below, above)
    assert isinstance(merged, dict)
    assert plain(Anything(sources=sources).r) == plain(merged["r"])
    assert (plain(below), plain(above)) == before


@pytest.mark.parametrize(
    ("names", "retry"),
    [
        pytest.param(
            {"RETRY": "{max_attempts: 2, methods: [GET]}", "RETRY__METHODS": "[PUT]"}, (2, ["PUT"]), id="map"
        ),
        pytest.param(
            {"RETRY__METHODS": "[PUT]", "retry": "{max_attempts: 2}"}, (2, ["PUT"]), id="map, small letters"
        ),
        pytest.param({"RETRY": "null", "RETRY__METHODS": "[PUT]"}, (3, ["PUT"]), id="single value"),
        pytest.param({"RETRY": "{}", "RETRY__MAX_ATTEMPTS": "2"}, (2, None), id="empty map"),
    ],
)
def test_a_name_below_another_says_more(
    tmp_path: Path, names: Mapping[str, str], retry: tuple[int, list[str] | None]
) -> None:
    (tmp_path / "u.yaml").write_text(BASE)
    settings = inspect(
        "u.yaml", env={VARIABLE + name: value for name, value in names.items()}, cwd=tmp_path
    ).settings
    assert settings is not None
    of = settings.upstreams["billing"].retry
    assert (of.max_attempts, of.methods if "methods" in of.model_fields_set else None) == retry


@pytest.mark.parametrize("above", ["POOL", "pool"])
def test_a_name_below_a_value_that_is_no_map_does_not_hide_it(load_text: LoadText, above: str) -> None:
    """failures.md 50."""
    with pytest.raises(ConfigError) as caught:
        load_text(BASE, env={VARIABLE + above: "5", f"{VARIABLE}POOL__MAX_IDLE": "5"})
    assert str(caught.value).startswith(
        f"environment {VARIABLE}{above}: upstreams.billing.pool\n    must be a map of keys; found ***"
    )


def test_a_name_that_is_not_applied_hides_nothing(load_text: LoadText) -> None:
    """failures.md 50."""
    unknown = "HEADRACE_UPSTREAMS__SHIPPING"
    with pytest.raises(ConfigError, match=f"environment {unknown}: upstreams.shipping"):
        load_text(BASE, env={unknown: "null", f"{unknown}__MODE": "off"})


def test_a_header_may_have_two_underscores_in_a_row(load_text: LoadText) -> None:
    env = {f"{VARIABLE}HEADERS__X--KEY": "new"}
    configuration = load_text(BASE + "    headers: {X__Key: old}\n", env=env)
    assert configuration.upstreams["billing"].headers == (("X__Key", "new"),)


@pytest.mark.parametrize(
    "name", ["sources", "_build_sources", "__pydantic_self__", "settings_cls", "Version"]
)
def test_a_key_of_the_file_is_no_argument_of_pydantic_settings(load_text: LoadText, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(f"{name}: 1\n" + BASE)
    (problem,) = caught.value.problems
    assert (problem.line, problem.column, problem.path) == (1, 1, name)
    assert problem.message == "is not a known key"


def test_a_secret_is_taken_as_it_stands_from_wherever_a_symlink_leads(tmp_path: Path) -> None:
    """Kubernetes mounts keys as symlinks, and a subPath or a CSI driver leads them out of the directory."""
    (tmp_path / "u.yaml").write_text(BASE)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "body").write_text(" p w \n")
    data = tmp_path / "secrets" / "..2026"
    data.mkdir(parents=True)
    (data / "upstreams__billing__headers__X-Key").write_text("0123\r\n")
    (tmp_path / "secrets" / "..data").symlink_to("..2026")
    for name in ("upstreams__billing__headers__X-Key",):
        (tmp_path / "secrets" / name).symlink_to(f"..data/{name}")
    (tmp_path / "secrets" / "upstreams__billing__fallback__body").symlink_to("../elsewhere/body")
    settings = inspect("u.yaml", env={}, cwd=tmp_path, secrets_dir="secrets").settings
    assert settings is not None
    billing = settings.upstreams["billing"]
    assert billing.headers == {"X-Key": "0123"}
    assert billing.fallback is not None
    assert billing.fallback.body == " p w "


@pytest.mark.parametrize("wrong", ["", "    mode: sideways\n"], ids=["good", "refused"])
def test_nothing_of_a_value_is_in_what_pydantic_settings_logs_for_debugging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    """failures.md 52: PYDANTIC_SETTINGS_DEBUG prints what each source said."""
    monkeypatch.setenv("PYDANTIC_SETTINGS_DEBUG", "1")
    (tmp_path / "u.yaml").write_text(BASE + "    headers: {X-A: in-the-file-w0rd, X-B: '${env:S}'}\n" + wrong)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "upstreams__billing__headers__X-C").write_text("in-a-secret-w0rd")
    env = {"S": "interpolated-w0rd", f"{VARIABLE}HEADERS__X_D": "in-a-variable-w0rd"}
    with caplog.at_level(logging.DEBUG):
        inspection = inspect("u.yaml", env=env, cwd=tmp_path, secrets_dir="secrets")
    assert (inspection.configuration is None) == bool(wrong)
    assert "w0rd" not in caplog.text
