"""`headrace schema`: the JSON Schema, for editors."""

from __future__ import annotations

import argparse
import sys

from headrace.cli.printing import GOOD
from headrace.config.explain.schema import schema_text


def run(options: argparse.Namespace) -> int:
    """Print the schema, which is JSON in either format. Always good."""
    sys.stdout.write(schema_text())
    return GOOD
