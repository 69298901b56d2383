"""Which commands there are, and what each takes.

A parser is made for the arguments that were given, and only the command among them is asked what it takes: that may
need modules that no other command needs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

from headrace.policy.printable import printable_lines


class Command(NamedTuple):
    """One command; its module is `headrace.cli.<name>`.

    Attributes:
        help: One line for the list of commands.
        description: What `headrace <name> --help` begins with, or "".
        add_arguments: Tells a parser what the command takes.
    """

    help: str
    description: str
    add_arguments: Callable[[argparse.ArgumentParser], None]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Print what is wrong with the arguments, which may hold anything."""
        super().error(printable_lines(message))


class _Version(argparse.Action):
    """Looks the version up when it is asked for: reading the metadata takes longer than all the rest of a `--help`."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        from importlib.metadata import version

        print(f"headrace {version('headrace')}")
        parser.exit()


def parser_for(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """A parser that knows every command by name, and all about the one that *arguments* ask for."""
    parser = _Parser(
        prog="headrace",
        description="Look at an upstreams.yaml before it is taken into force.",
        epilog="Exit codes: 0 good, 1 problems in the configuration, 2 wrong usage.",
    )
    parser.add_argument("--version", action=_Version, help="show program's version number and exit")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")
    # Neither option before a command takes a value, so the first argument that is none is the command.
    wanted = next((one for one in arguments if not one.startswith("-")), None)
    for name, command in COMMANDS.items():
        one = commands.add_parser(name, help=command.help, description=command.description)
        if name == wanted:
            command.add_arguments(one)
    return parser


def _check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="json: one object, for machines"
    )
    parser.add_argument(
        "--workers",
        type=_count,
        metavar="N",
        help="also print totals over N processes (limits are per process)",
    )


def _schema(parser: argparse.ArgumentParser) -> None:
    pass


def _explain(parser: argparse.ArgumentParser) -> None:
    from headrace.policy.outcome import Fault

    parser.add_argument("file", metavar="FILE")
    parser.add_argument("url", metavar="URL")
    parser.add_argument(
        "--method", metavar="M", type=_method, help="when is this HTTP method retried? (default: GET)"
    )
    ends = parser.add_mutually_exclusive_group()
    ends.add_argument(
        "--status", type=_status, metavar="S", help="would this answer be retried, is it a failure?"
    )
    ends.add_argument(
        "--error",
        type=_fault,
        metavar="WORD",
        help=f"the same of an attempt without an answer: {', '.join(Fault)}",
    )


def _help(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "topic", nargs="?", metavar="TOPIC", help="a page, a key, a metric, an event, an error …"
    )


COMMANDS: Mapping[str, Command] = MappingProxyType(
    {
        "check": Command(
            "say everything that is wrong with a file, or what it amounts to",
            "Read, merge and validate FILE… as an application would: later files win, then the secrets directory "
            "(HEADRACE_SECRETS_DIR), then HEADRACE_…__… variables. A misspelt HEADRACE_ variable is a problem.",
            _check,
        ),
        "schema": Command("print the JSON Schema of upstreams.yaml, for editors", "", _schema),
        "explain": Command(
            "say what the rules make of a call to a URL, and which line says so",
            "Print the upstream that URL belongs to, the order of a call, and where each value comes from.",
            _explain,
        ),
        "help": Command(
            "print a page of the documentation, or all about a key",
            "Without TOPIC, print the contents.",
            _help,
        ),
    }
)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 100000")
    return int(text)


def _status(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 100 <= int(text[:9]) <= 599:
        raise argparse.ArgumentTypeError(f"{text!r} is not a status code from 100 to 599")
    return int(text)


def _fault(text: str) -> str:
    from headrace.config.check.problems import did_you_mean
    from headrace.policy.outcome import Fault

    try:
        return Fault(text.lower())
    except ValueError:
        near = did_you_mean(text, list(Fault))
        fix = f"did you mean {near}?" if near else f"there are {', '.join(Fault)}"
        raise argparse.ArgumentTypeError(f"{text!r} is no error of an attempt; {fix}") from None


def _method(text: str) -> str:
    if not text.isascii() or not text.replace("-", "").replace("_", "").isalpha():
        raise argparse.ArgumentTypeError(f"{text!r} is no HTTP method")
    return text.upper()
