"""What stands where nothing is written is not validated as the models are made: here it is."""

from __future__ import annotations

import subprocess
import sys

import pytest

from headrace.config import settings
from headrace.config.settings import Section

SECTIONS = [
    one
    for one in vars(settings).values()
    if isinstance(one, type)
    and issubclass(one, Section)
    and not any(field.is_required() for field in one.model_fields.values())
]


@pytest.mark.parametrize("section", SECTIONS)
def test_what_is_built_in_is_what_validation_makes_of_nothing(section: type[Section]) -> None:
    validated = section.model_validate({})
    assert section.built_in() == validated
    assert section.built_in().model_fields_set == validated.model_fields_set == set()
    written = section.built_in().model_dump(by_alias=True, mode="json")
    assert section.model_validate(written).model_dump(by_alias=True, mode="json") == written


def test_an_import_builds_no_validator_and_the_first_load_one() -> None:
    code = (
        "from headrace.config.settings import Retry, Settings\n"
        "print(Retry.__pydantic_complete__, Settings.__pydantic_complete__)\n"
        "from headrace.config import inspect\n"
        "inspect('upstreams.yaml', given={'upstreams.yaml': b'upstreams: {a: {base_url: http://a.example}}'})\n"
        "print(Retry.__pydantic_complete__, Settings.__pydantic_complete__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split("\n")[:2] == ["False False", "False True"]
