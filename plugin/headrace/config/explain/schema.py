"""The JSON Schema of `upstreams.yaml`, for editors, generated from the models."""

from __future__ import annotations

import json
from types import NoneType
from typing import Any, get_args

from pydantic.json_schema import GenerateJsonSchema

from headrace.config.check.problems import Path
from headrace.config.explain.keys import Key, is_essential, root_key
from headrace.config.settings import Settings
from headrace.config.source.interpolate import REFERENCE_PATTERN

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SCHEMA_ID = "urn:headrace:upstreams:v1"
SCHEMA_FILE = "upstreams.v1.schema.json"
REFERENCE = {
    "title": "Reference",
    "description": "${env:NAME}, ${env:NAME:-default} or ${file:/run/secrets/x}; read when the file is loaded.",
    "type": "string",
    "pattern": REFERENCE_PATTERN,
}

ADVANCED = "(advanced)"
"""What the description of a key begins with that most files do not need."""

_BOUND_WORDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_TYPE_WORDS = ("type", "enum", "const", "pattern", *_BOUND_WORDS)
_BY_NAME = ("properties", "patternProperties", "$defs")


class _EditorSchema(GenerateJsonSchema):
    """pydantic's generator with the dialect named and one title per model instead of one per key."""

    schema_dialect = DIALECT

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False  # "Max Attempts" over the description of max_attempts is noise in an editor


def json_schema() -> dict[str, Any]:
    """The schema as a JSON object. Each value may also be a `${…}` reference."""
    generated = Settings.model_json_schema(schema_generator=_EditorSchema)
    generated.pop("title")
    body = _with_references(generated)
    definitions = body.pop("$defs")
    _in_order(root_key(), (), body, definitions)
    return {
        "$schema": DIALECT,
        "$id": SCHEMA_ID,
        "title": "headrace upstreams.yaml, version 1",
        **body,
        "$defs": {"Reference": REFERENCE, **definitions},
    }


def _in_order(key: Key, path: Path, schema: dict[str, Any], definitions: dict[str, Any]) -> None:
    """Put the properties of *schema*, that of *key*, into the file's order, and mark the advanced ones. Mutates."""
    properties = schema.get("properties", {})
    schema["properties"] = {name: properties[name] for name in key.children}
    for name, child in key.children.items():
        below = schema["properties"][name]
        if not is_essential((*path, name)) and not below.get("description", "").startswith(ADVANCED):
            below["description"] = f"{ADVANCED} {below.get('description', child.description)}"
        inner = child.item if child.item is not None and child.item.children else child
        if inner.children:
            # The keys of `defaults` are those of an upstream.
            further = ("upstreams", "<name>") if name in ("defaults", "upstreams") else (*path, name)
            (model,) = set(get_args(inner.annotation) or (inner.annotation,)) - {NoneType}
            _in_order(inner, further, definitions[model.__name__], definitions)


def schema_text() -> str:
    """The schema as the text of its file."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def _with_references(schema: dict[str, Any]) -> dict[str, Any]:
    """*schema* with a reference allowed wherever it wants a single value that is not any text."""
    changed: dict[str, Any] = {}
    for word, value in schema.items():
        if word in _BY_NAME:
            changed[word] = {name: _with_references(below) for name, below in value.items()}
        elif word == "anyOf":
            changed[word] = [_with_references(choice) for choice in value]
        elif word == "items":
            changed[word] = _with_references(value)
        elif word == "default":
            # A section's default repeats the defaults of its keys, and an editor would paste all of it.
            if not isinstance(value, dict) or not value:
                changed[word] = _as_whole(value)
        else:
            changed[word] = _as_whole(value)
    if "patternProperties" in changed:
        changed["additionalProperties"] = False
    if _wants_particular_value(schema):
        kept = {word: changed.pop(word) for word in _TYPE_WORDS if word in changed}
        changed["anyOf"] = [kept, {"$ref": "#/$defs/Reference"}]
    return changed


def _as_whole(value: Any) -> Any:
    """*value*, as an integer if it is a float without a fraction: versions of pydantic differ in which a bound is."""
    return int(value) if isinstance(value, float) and value == int(value) else value


def _wants_particular_value(schema: dict[str, Any]) -> bool:
    if "enum" in schema or "const" in schema or "pattern" in schema:
        return True
    return schema.get("type") in ("integer", "number", "boolean")


if (
    __name__ == "__main__"
):  # python -m headrace.config.explain.schema, which both copies of the file are made with
    print(schema_text(), end="")
