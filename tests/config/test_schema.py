"""The JSON Schema and the key reference: generated, shipped, published, and in agreement with the loader."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from headrace.config.explain.keys import Key, root_key
from headrace.config.explain.reference import key_reference
from headrace.config.explain.schema import SCHEMA_FILE, json_schema, schema_text
from headrace.config.source.document import read_document
from headrace.config.source.tree import plain
from support.configs import LoadText

HERE = Path(__file__).parent
PUBLISHED = HERE.parents[1] / "schemas" / SCHEMA_FILE


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json_schema())


def test_shipped_and_published_schema_are_what_the_models_generate() -> None:
    shipped = files("headrace.config").joinpath(SCHEMA_FILE).read_text(encoding="utf-8")
    assert shipped == schema_text(), "write both anew: python -m headrace.config.explain.schema"
    assert PUBLISHED.read_text(encoding="utf-8") == schema_text()


def test_schema_is_valid_and_names_no_host() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"].startswith("urn:")


def test_every_key_has_a_description_and_every_map_is_closed() -> None:
    definitions = json_schema()["$defs"]

    def check(schema: dict[str, Any], where: str) -> None:
        assert schema.get("additionalProperties") is False, where
        for name, below in schema.get("properties", {}).items():
            target = definitions[below["$ref"].rpartition("/")[2]] if "$ref" in below else below
            assert below.get("description") or target.get("description"), f"{where}.{name}"
            assert "$ref" in below or {"default", "examples"} & set(below), f"{where}.{name}"

    check(json_schema(), "")
    for name, definition in definitions.items():
        if definition.get("type") == "object":
            check(definition, name)


@pytest.mark.parametrize("file", sorted((HERE / "accepts").glob("*.yaml")), ids=lambda file: file.stem)
def test_what_the_schema_accepts_the_loader_accepts(
    validator: jsonschema.Draft202012Validator, load_text: LoadText, file: Path
) -> None:
    content = file.read_bytes()
    validator.validate(plain(read_document(content, file.name)))
    load_text(
        content, env={"TOKEN": "t", "ATTEMPTS": "2", "ATTEMPT": "2s", "VERIFY": "true", "MODE": "observe"}
    )


# What no schema can say: positions of the text, sums over the file, other files, the environment.
_BEYOND_A_SCHEMA = re.compile(
    "empty$|comments|not-a-map|not-utf8|control|torn|tab-|several|duplicate|not-text|merge|alias|tags|nested|"
    "durations-out|two-upstreams|extends|longer|shorter|below|above|false-said|skip-verify|key-without|tls-|"
    "environment|secret|references|unquoted|another-scheme|connection-header"
)
_SEEN_BY_A_SCHEMA = [
    file for file in sorted((HERE / "rejects").glob("*.yaml")) if not _BEYOND_A_SCHEMA.search(file.stem)
]


@pytest.mark.parametrize("file", _SEEN_BY_A_SCHEMA, ids=lambda file: file.stem)
def test_schema_shows_the_mistake_in_the_editor_already(
    validator: jsonschema.Draft202012Validator, file: Path
) -> None:
    tree = plain(read_document(file.read_bytes(), file.name))
    assert list(validator.iter_errors(tree))


@pytest.mark.parametrize(
    ("path", "good", "bad"),
    [
        (
            ("timeouts", "attempt"),
            ["250ms", "1.5s", "${env:A}", "${env:A:-2s}"],
            [4, "4", "4 s", "${vault:x}", None],
        ),
        (("timeouts", "deadline"), ["2s", None, "${file:/run/x}"], [True, "soon"]),
        (("retry", "max_attempts"), [1, "${env:N}"], [0, "3", 1.5, "${env:}"]),
        (("retry", "retry_on"), [["network", 503, "${env:W}"], []], ["network", ["netwrok"], [99]]),
        (("tls", "verify"), [True, "${env:V}"], ["on", 1]),
        (("headers",), [{"X-A": "b"}, {}], [{"X A": "b"}, {"X": 1}, []]),
        (
            ("base_url",),
            ["https://a.b:8/c", "http://a", "${env:U}", "https://${env:H}/x"],
            ["ftp://a", "a", "https://a?b"],
        ),
        (("nope",), [], [1]),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else None,
)
def test_schema_knows_each_kind_of_value(
    validator: jsonschema.Draft202012Validator, path: tuple[str, ...], good: list[object], bad: list[object]
) -> None:
    def errors(value: object) -> list[object]:
        upstream: dict[str, Any] = {"base_url": "http://a"}
        at = upstream
        for part in path[:-1]:
            at = at.setdefault(part, {})
        at[path[-1]] = value
        return list(validator.iter_errors({"upstreams": {"a": upstream}}))

    for value in good:
        assert not errors(value), value
    for value in bad:
        assert errors(value), value


def test_key_reference_has_a_row_for_every_key_with_its_default() -> None:
    table = key_reference()

    def walk(key: Key, path: str) -> None:
        for name, child in key.children.items():
            full = f"{path}.{name}" if path else name
            if full == "defaults" or not child.children:
                assert f"| `{full}` |" in table
            else:
                walk(child, full)
            if child.item is not None and child.item.children:
                walk(child.item, f"{full}.<name>" if child.is_map else f"{full}[]")

    walk(root_key(), "")
    assert (
        "| `upstreams.<name>.timeouts.attempt` | duration | `4s` | 1ms to 720h | One attempt, to the head"
        in table
    )
    assert all(line.count("|") - line.count("\\|") == 6 for line in table.splitlines())


def test_schema_text_is_json_with_a_final_newline() -> None:
    assert schema_text().endswith("}\n")
    assert json.loads(schema_text()) == json_schema()
