"""Which commands there are, and what each takes.

Only the command that is given is asked what it takes: that may need modules that no other command needs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

from headrace.cli.printing import EXIT_CODES
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


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """What *arguments* ask for; `command` is the name of the command.

    Raises:
        SystemExit: All is said: with --help and --version 0, after wrong usage 2.
    """
    name = arguments[0] if arguments else ""
    command = COMMANDS.get(name)
    if command is None:
        return _parser().parse_args(arguments)
    parser = _Parser(prog=f"headrace {name}", description=command.description, epilog=EXIT_CODES)
    command.add_arguments(parser)
    # Intermixed: in `explain a.yaml --method GET URL` the file is not the URL.
    options = parser.parse_intermixed_args(arguments[1:])
    options.command = name
    return options


def _parser() -> argparse.ArgumentParser:
    """For all that does not begin with a command: it lists them."""
    parser = _Parser(
        prog="headrace",
        description="Look at an upstreams.yaml before it is taken into force.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--version", action=_Version, help="show program's version number and exit")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.help)
    return parser


def _files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="later ones win; -: standard input; without any, what an application would read: HEADRACE_FILE, else "
        "upstreams.yaml",
    )


def _format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="json: one object, for machines"
    )


def _check(parser: argparse.ArgumentParser) -> None:
    _files(parser)
    _format(parser)
    more = parser.add_mutually_exclusive_group()
    more.add_argument(
        "--workers",
        type=_count,
        metavar="N",
        help="also print totals over N processes (limits are per process)",
    )
    more.add_argument(
        "--connect",
        metavar="NAME",
        help="connect to this upstream, and say what comes of it: addresses, handshake, certificates; sends no request",
    )


def _schema(parser: argparse.ArgumentParser) -> None:
    _format(parser)


def _init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", metavar="FILE", help="where to write it (default: upstreams.yaml)")
    _format(parser)


def _explain(parser: argparse.ArgumentParser) -> None:
    from headrace.policy.outcome import Fault

    _files(parser)
    parser.add_argument("url", metavar="URL", type=_url)
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
    _format(parser)


def _help(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "topic", nargs="?", metavar="TOPIC", help="a page, a key, a metric, an event, an error …"
    )
    _format(parser)


COMMANDS: Mapping[str, Command] = MappingProxyType(
    {
        "check": Command(
            "say everything that is wrong with a file, or what it amounts to",
            "Read, merge and validate FILE … as an application would: later files win, then the secrets directory "
            "(HEADRACE_SECRETS_DIR), then HEADRACE_…__… variables. A misspelt HEADRACE_ variable is a problem. "
            "With --connect NAME an upstream that cannot be reached is one, too.",
            _check,
        ),
        "init": Command(
            "write an upstreams.yaml to begin with, which observes and changes nothing",
            "Write a commented starter file. What is there already is never overwritten.",
            _init,
        ),
        "schema": Command("print the JSON Schema of upstreams.yaml, for editors", "", _schema),
        "explain": Command(
            "say what the rules make of a call to a URL, and which line says so",
            "Print the upstream that URL belongs to, the order of a call, and where each value comes from; "
            "or why no upstream claims it.",
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


def _url(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    if not separator or not scheme or not rest or rest[0] in "/?#":
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a URL: one begins with http:// or https:// and a host"
        )
    return text


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
