"""The keys that a user needs first come first: in the models, the reference and the schema. The others are advanced."""

from __future__ import annotations

from collections.abc import Iterator

from headrace.config.check.problems import Path
from headrace.config.explain.keys import Key, is_essential, root_key
from headrace.config.explain.reference import key_reference
from headrace.config.explain.schema import ADVANCED, json_schema
from headrace.config.settings import ESSENTIAL


def sections(key: Key, path: Path = ()) -> Iterator[tuple[Path, Key]]:
    yield path, key
    for name, child in key.children.items():
        if name == "defaults":  # its keys are those of an upstream
            continue
        below = child.item if child.item is not None and child.item.children and child.is_map else child
        assert below is not None
        if below.children:
            yield from sections(below, (*path, name, "<name>") if below is not child else (*path, name))


def test_they_are_few_and_exist() -> None:
    known = {(*path, name) for path, key in sections(root_key()) for name in key.children}
    assert set(ESSENTIAL) <= known
    assert 15 <= len(ESSENTIAL) <= 20


def test_in_every_section_they_come_first() -> None:
    for path, key in sections(root_key()):
        essential = [is_essential((*path, name)) for name in key.children]
        assert essential == sorted(essential, reverse=True), path


def test_the_schema_has_the_order_of_the_file_and_marks_the_others() -> None:
    schema = json_schema()
    upstream, timeouts = schema["$defs"]["Upstream"]["properties"], schema["$defs"]["Timeouts"]["properties"]
    assert [*schema["properties"]] == [*root_key().children]
    assert next(iter(upstream)) == "base_url"
    assert not upstream["timeouts"].get("description", "").startswith(ADVANCED)
    assert not timeouts["deadline"]["description"].startswith(ADVANCED)
    assert timeouts["tls_handshake"]["description"] == f"{ADVANCED} TLS handshake, after TCP has connected."
    assert upstream["propagate"]["description"] == f"{ADVANCED} What of the inbound context travels on."
    assert schema["$defs"]["Rules"]["properties"]["propagate"]["description"].startswith(ADVANCED)
    for name, definition in schema["$defs"].items():
        for key, below in definition.get("properties", {}).items():
            assert not below.get("description", "").startswith(f"{ADVANCED} {ADVANCED}"), (name, key)


def test_the_reference_is_two_tables_of_every_key() -> None:
    first, others = key_reference(essential=True).splitlines(), key_reference(essential=False).splitlines()
    assert first[:2] == others[:2]
    assert sorted([*first[2:], *others[2:]]) == sorted(key_reference().splitlines()[2:])
    assert len(first) < 25
    assert any("`upstreams.<name>.timeouts.deadline`" in line for line in first)
