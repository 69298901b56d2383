"""The command line: arguments come in, text and an exit code go out. Nothing is taken into force, no call is made.

One module per command, with a `run(options)` that answers with the exit code. `arguments` says which commands there
are and what each takes, `main` imports the module of the one that was asked for, and `printing` is how all of them
write. Imports are the cost of a start: configuration and plans take half a second to import, so `main`, `arguments`
and `printing` import nothing of the package at their head, and `--help` and `--version` are there in a tenth of that
(`tests/cli/test_start_up.py` holds which modules are loaded).
"""

from headrace.cli.main import main

__all__ = ["main"]
