"""How many small mistakes in the pure core, the lease and the codec the tests of their own room would notice.

Run: python tests/bench/mutants.py [--only MODULE[:LINE] …] [--sample N] [--seed S] [--jobs J]

A mutant is one node of one module changed: a comparison or its boundary, a connective, an operand left out, a
`not`, an arithmetic sign, a constant, `return x`, a statement removed, the branches of an `if` swapped, min for max.
Each is written into a copy of the package that stands ahead of the real one on PYTHONPATH, and is killed when a test of
`ROOMS` fails, or hangs. What lives is printed with its line and text. Those of `EQUAL` are not counted: no test can
tell them, for the reason that stands beside them. Hypothesis draws the same few examples each time and does
not shrink, so two runs over the same source say the same.

Without --sample every mutant is run: some 3,000, hours on two cores. A sample is drawn evenly over all of the
chosen modules' mutants, so its score is that of all, give or take (200 mutants: three points).
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from compileall import compile_dir
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from py_compile import PycInvalidationMode
from queue import SimpleQueue
from types import MappingProxyType
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]

CALL: Final = (
    "tests/policy/test_exchange.py",
    "tests/policy/test_gate.py",
    "tests/policy/test_resend.py",
    "tests/policy/test_fallback.py",
    "tests/engine",
)
BREAKER: Final = (
    "tests/policy/test_circuit.py",
    "tests/policy/test_clock_steps.py",
    "tests/policy/test_circuit_threads.py",
    "tests/policy/test_circuit_machine.py",
)
LEASE: Final = (
    "tests/transport/test_lease.py",
    "tests/transport/test_lease_lifecycle.py",
    "tests/transport/test_lease_owners.py",
    "tests/transport/test_lease_faults.py",
    "tests/transport/test_lease_threads.py",
    "tests/transport/test_lease_collector.py",
    "tests/transport/test_lease_fork.py",
    "tests/transport/test_lease_shared.py",
    "tests/transport/test_lease_machine.py",
)
CODEC: Final = (
    "tests/transport/test_h1.py",
    "tests/transport/test_h1_compared.py",
    "tests/transport/test_wire_path.py",
)

ROOMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "policy.attempt_end": ("tests/policy/test_attempt_end.py", "tests/engine"),
        "policy.backoff": ("tests/policy/test_backoff.py", *CALL),
        "policy.blame": ("tests/policy/test_blame.py", *CALL),
        "policy.decision": CALL,
        "policy.exchange": CALL,
        "policy.fallback": ("tests/policy/test_fallback.py", *CALL),
        "policy.gate": (*CALL, "tests/policy/test_call_counts.py"),
        "policy.retry": ("tests/policy/test_retry.py", *CALL, "tests/policy/test_budget_properties.py"),
        "policy.breaker.circuit": BREAKER,
        "policy.breaker.half_open": BREAKER,
        "policy.breaker.permit": BREAKER,
        "policy.breaker.ramp": BREAKER,
        "policy.breaker.transition": ("tests/policy/test_trip.py", *BREAKER),
        "policy.breaker.trip": ("tests/policy/test_trip.py", *BREAKER),
        "policy.breaker.window": ("tests/policy/test_window.py", "tests/policy/test_retry.py", *BREAKER),
        "policy.sizing": (
            "tests/policy/test_sizing.py",
            "tests/policy/test_sizing_properties.py",
            "tests/policy/test_clock_steps.py",
        ),
        "transport.lease.collector": LEASE,
        "transport.lease.errors": LEASE,
        "transport.lease.place": LEASE,
        "transport.lease.pool": LEASE,
        "transport.lease.shared": ("tests/transport/test_lease_shared.py", *LEASE),
        "transport.lease.sizer": ("tests/transport/test_pool_sizer.py", *LEASE),
        "transport.lease.tally": LEASE,
        "transport.wire.h1": CODEC,
        "transport.wire.head": CODEC,
    }
)
"""Which tests are asked about which module, those that know it best first."""

_NO_GENERATION = (
    "no generation below 2 hears of a waived call: at 0 none is refused, and 1 is open to its end"
)
_A_NUMBER = "probes are told apart by it, and no more"
_SET_BY_SEND = "written by the Send that comes before every reading of it"
_EITHER = "where both are the same, either is the answer"
_NOT_SLOW = "the budget asks its window for calls and marks only"
_A_NUMBER = "they are told apart by it, and no more"
_WHOLE_WINDOWS = "silent windows are passed in whole windows, so they end when they did"
_NONE_OF_THEM = "None is the number of none of them"
_THE_SAME = "where both are equal, either answer is the same"
_LOOKS_AGAIN = "it only looks sooner than need be, and `advance` decides"
_EMPTY_ALREADY = "a slice that is emptied twice is empty"
_FOR_THE_TYPES = "said for the type checker: the rest implies it"
_LOOKS_INTO_NOTHING = "it saves a look into what is empty"
_SETTLED_SOON = "`_settle` does it as the lock is released"
_ENDED = "a token that is not in use ends nothing, and the connection is closed"
_HOLDS_NOTHING = "a lease that is on it holds neither a slot nor a place"
_MADE_EMPTY = "a list is made empty by `__new__`"
_LOOKS_SOONER = "what is kept is put away sooner than need be"
_COUNTS_SOONER = "headers are counted where they need not be"
_AS_FALSE = "the loop asks whether it is true"
_NO_INSTANT = "no instant lies below the zero of the clock"

EQUAL: Mapping[str, str] = MappingProxyType(
    {
        "policy.breaker.circuit : _WAIVED: Final = Permit(-1): -1 -> (1)": _NO_GENERATION,
        "policy.breaker.circuit : _WAIVED: Final = Permit(-1): 1 -> 2": _NO_GENERATION,
        "policy.breaker.circuit : _WAIVED: Final = Permit(-1): 1 -> 0": _NO_GENERATION,
        "policy.breaker.half_open HalfOpen.__init__: self._last_probe = 0: 0 -> 1": _A_NUMBER,
        "policy.breaker.half_open HalfOpen.__init__: self._last_probe = 0: 0 -> -1": _A_NUMBER,
        "policy.breaker.window CountWindow.advance: self._leaves_at = instants[at] + max_age_s"
        ": instants[at] + max_age_s -> (instants[at] - max_age_s)": "it may be earlier than need be, as is said of it",
        "policy.exchange Exchange.__init__: self._limit_s = 0.0: 0.0 -> 1.0": _SET_BY_SEND,
        "policy.exchange Exchange.__init__: self._limit_s = 0.0: 0.0 -> -1.0": _SET_BY_SEND,
        "policy.exchange Exchange.__init__: self._limit_s = 0.0: 0.0 -> None": _SET_BY_SEND,
        "policy.exchange Exchange.__init__: self._limit_s = 0.0: pass": _SET_BY_SEND,
        "policy.gate deadline_of: if inbound_at is not None and (own_s is None or inbound_at < began + own_s):"
        ": inbound_at < began + own_s -> (inbound_at <= began + own_s)": _EITHER,
        "policy.gate next_send: if left_s < timeout_s:: left_s < timeout_s -> (left_s <= timeout_s)": _EITHER,
        "policy.retry RetryBudget.try_withdraw: self._window.add(now, 1, 0, 0): 0 -> 1": _NOT_SLOW,
        "policy.retry RetryBudget.try_withdraw: self._window.add(now, 1, 0, 0): 0 -> -1": _NOT_SLOW,
        "policy.retry RetryBudget.try_withdraw: self._window.add(now, 1, 0, 0): 0 -> None": _NOT_SLOW,
        "transport.lease.pool LeasePool.forget_inherited: time.sleep(0.001): 0.001 -> 0": "how often it looks",
        "policy.breaker.half_open HalfOpen.__init__: self._window_ends_at = now + self._w"
        "indow_s: now + self._window_s -> (now - self._window_s)": _WHOLE_WINDOWS,
        "policy.breaker.half_open HalfOpen.lease: self._last_probe += 1: self._last_probe -= 1": _A_NUMBER,
        "policy.breaker.half_open HalfOpen.lease: self._last_probe += 1: 1 -> 2": _A_NUMBER,
        "policy.breaker.window TimeWindow.__init__: self._place = 0: 0 -> 1": _A_NUMBER,
        "policy.breaker.window TimeWindow.__init__: self._place = 0: 0 -> -1": _A_NUMBER,
        "policy.breaker.window TimeWindow.next_place: return self._place + 1: 1 -> 2": _A_NUMBER,
        "policy.breaker.half_open HalfOpen.give_back: if probe is None or self._probes.po"
        "p(probe, None) is None:: probe is None or self._probes.pop(probe, None) is None "
        "-> (self._probes.pop(probe, None) is None)": _NONE_OF_THEM,
        "policy.exchange Exchange.__init__: self._lost_answer_of = 0: 0 -> None": _NONE_OF_THEM,
        "policy.exchange Exchange.record: if outcome.duration_s > self._longest_s:: outco"
        "me.duration_s > self._longest_s -> (outcome.duration_s >= self._longest_s)": _THE_SAME,
        "policy.breaker.window TimeWindow.advance: if epoch <= self._epoch:: epoch <= sel"
        "f._epoch -> (epoch < self._epoch)": _THE_SAME,
        "policy.breaker.window CountWindow.add: elif now > self._newest:: now > self._new"
        "est -> (now >= self._newest)": _THE_SAME,
        "policy.breaker.window CountWindow.advance: if now > self._newest:: now > self._n"
        "ewest -> (now >= self._newest)": _THE_SAME,
        "policy.sizing Sizing._remember: while peaks and peaks[-1][1] <= load.inuse:: pea"
        "ks[-1][1] <= load.inuse -> (peaks[-1][1] < load.inuse)": _THE_SAME,
        "policy.breaker.window TimeWindow.__init__: self._late_from = -inf: -inf -> (inf)": _LOOKS_AGAIN,
        "policy.breaker.window TimeWindow._enter_slice: self._ends_at = (epoch + 1) * sel"
        "f.slice_s: pass": _LOOKS_AGAIN,
        "policy.breaker.window TimeWindow._enter_slice: self._ends_at = (epoch + 1) * sel"
        "f.slice_s: epoch + 1 -> (epoch - 1)": _LOOKS_AGAIN,
        "policy.breaker.window TimeWindow._enter_slice: self._ends_at = (epoch + 1) * sel"
        "f.slice_s: 1 -> 0": _LOOKS_AGAIN,
        "policy.breaker.window CountWindow.advance: self._late_from = self._newest - 10 *"
        " max_age_s - LATEST_S: self._newest - 10 * max_age_s - LATEST_S -> (self._newest"
        " - 10 * max_age_s + LATEST_S)": _LOOKS_AGAIN,
        "policy.breaker.window CountWindow.advance: self._late_from = self._newest - 10 *"
        " max_age_s - LATEST_S: self._newest - 10 * max_age_s -> (self._newest + 10 * max"
        "_age_s)": _LOOKS_AGAIN,
        "policy.breaker.window CountWindow.advance: self._late_from = self._newest - 10 *"
        " max_age_s - LATEST_S: 10 -> 9": _LOOKS_AGAIN,
        "policy.breaker.window CountWindow.advance: self._late_from = self._newest - 10 *"
        " max_age_s - LATEST_S: 10 -> 0": _LOOKS_AGAIN,
        "policy.breaker.window CountWindow.advance: self._leaves_at = instants[at] + max_"
        "age_s: pass": _LOOKS_AGAIN,
        "policy.breaker.window TimeWindow.advance: for passed in range(max(self._epoch + "
        "1, epoch - n_slices + 1), epoch + 1):: epoch - n_slices + 1 -> (epoch - n_slices"
        " - 1)": _EMPTY_ALREADY,
        "policy.breaker.window TimeWindow.advance: for passed in range(max(self._epoch + "
        "1, epoch - n_slices + 1), epoch + 1):: 1 -> 0 (3)": _EMPTY_ALREADY,
        "policy.breaker.circuit Circuit._admit_closed: if ramp is None or ramp_s is None "
        "or ramp.left_s(ramp_s, now) <= 0.0:: ramp is None or ramp_s is None or ramp.left"
        "_s(ramp_s, now) <= 0.0 -> (ramp_s is None or ramp.left_s(ramp_s, now) <= 0.0)": _FOR_THE_TYPES,
        "policy.breaker.window CountWindow.advance: if instants is None or max_age_s is N"
        "one:: instants is None or max_age_s is None -> (instants is None and max_age_s i"
        "s None)": _FOR_THE_TYPES,
        "policy.breaker.window CountWindow.advance: if instants is None or max_age_s is N"
        "one:: instants is None or max_age_s is None -> (instants is None)": _FOR_THE_TYPES,
        "policy.breaker.window CountWindow.advance: if instants is None or max_age_s is N"
        "one:: instants is None or max_age_s is None -> (max_age_s is None)": _FOR_THE_TYPES,
        "policy.exchange Exchange._renew_permit: if permit is not None and is_good and ci"
        "rcuit.still_holds(permit):: permit is not None and is_good and circuit.still_hol"
        "ds(permit) -> (is_good and circuit.still_holds(permit))": _FOR_THE_TYPES,
        "transport.lease.pool LeasePool.share: if token is not None and token in self._in"
        "use:: token is not None and token in self._inuse -> (token in self._inuse)": _FOR_THE_TYPES,
        "transport.lease.pool LeasePool._end_returned: if token is not None and self._has"
        "_place(lease):: token is not None and self._has_place(lease) -> (self._has_place"
        "(lease))": _FOR_THE_TYPES,
        "transport.lease.pool LeasePool.abort: if lease is not None and found:: lease is "
        "not None and found -> (found)": _FOR_THE_TYPES,
        "transport.lease.pool LeasePool.end: if lease is not None and found:: lease is no"
        "t None and found -> (found)": _FOR_THE_TYPES,
        "transport.lease.pool LeasePool._newest_owned_by: if not connection.is_shared and"
        " connection.owner is not None and connection.owner() is owner:: not connection.i"
        "s_shared and connection.owner is not None and connection.owner() is owner -> (no"
        "t connection.is_shared and connection.owner() is owner)": _FOR_THE_TYPES,
        "transport.lease.pool LeasePool.acquire: if self._apart and owner is not None and"
        " not fresh:: self._apart and owner is not None and not fresh -> (owner is not No"
        "ne and (not fresh))": _LOOKS_INTO_NOTHING,
        "transport.lease.pool LeasePool.end: self._process_returns(): pass (2)": _SETTLED_SOON,
        "transport.lease.pool LeasePool.retire: self._process_returns(): pass": _SETTLED_SOON,
        "transport.lease.pool LeasePool._settle: or (self._kept and (self._waiters or sel"
        "f._screens)): self._kept and (self._waiters or self._screens) -> (self._kept)": _LOOKS_SOONER,
        "transport.lease.pool LeasePool._end_returned: lease.token = None: pass (2)": _ENDED,
        "transport.lease.pool _no_connection: none.is_shared = False: False -> True": _HOLDS_NOTHING,
        "policy.retry RehearsedAllowance.__init__: super().__init__(): pass": _MADE_EMPTY,
        "transport.lease.tally LeaseTally.__init__: self.turn_at = 0.0: 0.0 -> -1.0": _NO_INSTANT,
        "transport.wire.h1 : _SHORTEST_LINE_BYTES: Final = 4: 4 -> 0": _COUNTS_SOONER,
        "transport.wire.h1 : _BEGINNING_BYTES: Final = 32: 32 -> 31": "how much of a size is looked at early",
        "transport.wire.h1 AnswerReader.take: if len(parts) == 1:: 1 -> None": "one part joined is that part",
        "transport.wire.h1 AnswerReader._read_head: self._skip(int(head[9:12])): 12 -> 13": "int() takes a blank, too",
        "transport.wire.h1 AnswerReader._read_chunk_size: return False: return None": _AS_FALSE,
        "transport.wire.h1 AnswerReader._read_chunk_data: return False: return None": _AS_FALSE,
        "transport.wire.h1 AnswerReader._read_chunk_end: return False: return None": _AS_FALSE,
        "transport.wire.h1 AnswerReader._read_whole_chunks: if not size or start - at > most or data[end : end + len"
        "(eol)] != eol:: start - at -> (start + at)": "what is not read there, the table reads",
        'transport.wire.head _is_other_protocol: return said.status == 101 or (said.method == "CONNECT" and 200 <= sai'
        "d.status <= 299): 200 -> 0": "what is below 200 was skipped",
        'transport.wire.head refuse_other_eol: is_mixed = head.find(b"\\r", start, end) >= 0: 0 -> 1': "none begins so",
    }
)
"""Mutants that no test can tell from the code, as they are printed, and why."""

EXAMPLES: Final = """\
from hypothesis import Phase, settings
phases = Phase.explicit, Phase.generate
settings.register_profile("mutants", settings.get_profile("ci"), max_examples=40, phases=phases)
settings.load_profile("mutants")
"""

PATIENCE: Final = 8
"""A hang is what takes this many times as long as the unchanged code: the machine may be busy."""
AT_LEAST_S: Final = 60.0
MEMORY_BYTES: Final = 4 << 30
"""Of one run: a loop that fills a list ends by it, not by the machine's own end."""

_COMPARISONS: Mapping[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = MappingProxyType(
    {
        ast.Lt: (ast.LtE, ast.GtE),
        ast.LtE: (ast.Lt, ast.Gt),
        ast.Gt: (ast.GtE, ast.LtE),
        ast.GtE: (ast.Gt, ast.Lt),
        ast.Eq: (ast.NotEq,),
        ast.NotEq: (ast.Eq,),
        ast.Is: (ast.IsNot,),
        ast.IsNot: (ast.Is,),
        ast.In: (ast.NotIn,),
        ast.NotIn: (ast.In,),
    }
)
_SIGNS: Mapping[type[ast.operator], type[ast.operator]] = MappingProxyType(
    {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}
)
_EXTREMES: Mapping[str, str] = MappingProxyType({"min": "max", "max": "min"})


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one module.

    Attributes:
        scope: Function or class that it is in; empty at the top of the module.
        line: Where it begins, from 1.
        text: That line, without its comment.
        start, end: Where, in bytes of the module.
        old, new: What stands there, and what stands there instead.
        nth: Which of the places in its scope with that same text and change, from 1.
    """

    module: str
    scope: str
    line: int
    text: str
    start: int
    end: int
    old: str
    new: str
    nth: int

    @property
    def name(self) -> str:
        """What it is called in `EQUAL`: without its line, which moves."""
        old, new = (" ".join(text.split()) for text in (self.old, self.new))
        change = new if old.startswith(self.text) else f"{old} -> {new}"
        nth = "" if self.nth == 1 else f" ({self.nth})"
        return f"{self.module} {self.scope}: {self.text}: {change}{nth}"

    def of(self, source: bytes) -> bytes:
        """The whole module, changed."""
        return source[: self.start] + self.new.encode() + source[self.end :]


def path_of(module: str) -> Path:
    """Where *module* stands below the folder that the package is in."""
    return Path("headrace", *module.split(".")).with_suffix(".py")


def mutants_of(module: str, source: bytes) -> Iterator[Mutant]:
    """Every mutant of *module*, each text once."""
    lines = source.splitlines(keepends=True)
    starts = [0, *accumulate(map(len, lines))]
    known = {source}
    same: Counter[tuple[str, str, str, str]] = Counter()
    for node, scope in _nodes(ast.parse(source), ""):
        at = node.test if isinstance(node, ast.If) else node  # its branches keep their lines
        assert at.end_lineno is not None
        assert at.end_col_offset is not None
        start = starts[at.lineno - 1] + at.col_offset  # both count bytes
        end = starts[at.end_lineno - 1] + at.end_col_offset
        text = lines[at.lineno - 1].decode().partition("  # ")[0].strip()
        old = source[start:end].decode()
        for new in _changes(node):
            same[scope, text, old, new] += 1
            nth = same[scope, text, old, new]
            mutant = Mutant(module, scope, at.lineno, text, start, end, old, new, nth)
            if mutant.of(source) not in known:
                known.add(mutant.of(source))
                yield mutant


def _nodes(node: ast.AST, scope: str) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    """What may be changed below *node*, with its scope: no annotation, no decorator, no text for people."""
    for field, value in ast.iter_fields(node):
        if field in {"annotation", "returns", "decorator_list", "type_params"}:
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or _is_unreachable(child):
                continue
            inner = scope
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                inner = f"{scope}.{child.name}".lstrip(".")
            if isinstance(child, ast.expr | ast.stmt):
                yield child, inner
            if not isinstance(child, ast.JoinedStr | ast.Raise):
                yield from _nodes(child, inner)


def _is_unreachable(node: ast.AST) -> bool:
    match node:
        case ast.Expr(ast.Call(ast.Name("assert_never"))) | ast.If(ast.Name("TYPE_CHECKING")):
            return True
        case _:
            return False


def _changes(node: ast.expr | ast.stmt) -> Iterator[str]:
    """The texts that *node* is replaced by, one at a time."""
    match node:
        case ast.Compare(left, [op], right):
            for other in _COMPARISONS[type(op)]:
                yield _text(ast.Compare(left, [other()], right))
        case ast.Compare(left, ops, rights):
            for at, op in enumerate(ops):
                for other in _COMPARISONS[type(op)]:
                    yield _text(ast.Compare(left, [*ops[:at], other(), *ops[at + 1 :]], rights))
        case ast.BoolOp(op, values):
            yield _text(ast.BoolOp(ast.And() if isinstance(op, ast.Or) else ast.Or(), values))
            for at in range(len(values)):
                others = [*values[:at], *values[at + 1 :]]
                yield _text(ast.BoolOp(op, others) if len(others) > 1 else others[0])
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield _text(operand)
        case ast.BinOp(left, op, right) if type(op) in _SIGNS:
            yield _text(ast.BinOp(left, _SIGNS[type(op)](), right))
        case ast.Constant(bool() as value):
            yield repr(not value)
        case ast.Constant(int() | float() as value):
            yield from (repr(other) for other in (value + 1, value - 1, 0, None) if other != value)
        case ast.Call(ast.Name(name), args, keywords) if name in _EXTREMES:
            yield _text(ast.Call(ast.Name(_EXTREMES[name]), args, keywords))
        case ast.IfExp(test, body, orelse):
            yield _text(ast.IfExp(test, orelse, body))
        case ast.If(test) if not isinstance(test, ast.Compare | ast.UnaryOp):
            # A comparison and a `not` are turned round above.
            yield _text(ast.UnaryOp(ast.Not(), test))
        case ast.Return(ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield "return None"
        case ast.AugAssign(target, op, value) if type(op) in _SIGNS:
            yield "pass"
            yield ast.unparse(ast.AugAssign(target, _SIGNS[type(op)](), value))
        case (
            ast.Assign([ast.Attribute() | ast.Subscript(), *_])
            | ast.Expr(ast.Call())
            | ast.Raise()
            | ast.Delete()
        ):
            yield "pass"
        case _:
            pass


def _text(node: ast.expr) -> str:
    return f"({ast.unparse(ast.fix_missing_locations(node))})"


class Bench:
    """A copy of the package in *folder* that mutants are tried in, one at a time."""

    def __init__(self, folder: Path) -> None:
        self._plugin = folder / "plugin"
        shutil.copytree(ROOT / "plugin", self._plugin, ignore=shutil.ignore_patterns("__pycache__"))
        (self._plugin / "few_examples.py").write_text(EXAMPLES)
        # By the source's hash: by its time, a mutant of the same second and size would pass for the one before it.
        compile_dir(self._plugin, quiet=1, invalidation_mode=PycInvalidationMode.CHECKED_HASH)

    def baseline_s(self, tests: tuple[str, ...]) -> float:
        """How long *tests* take over the unchanged copy, seconds.

        Raises:
            SystemExit: They fail, or test another package than the copy.
        """
        where = self._python("-c", "import headrace; print(headrace.__file__)", timeout_s=60.0)
        if not where.startswith(str(self._plugin)):
            raise SystemExit(f"the tests would not import the copy but {where or 'nothing'}")
        began = time.monotonic()
        if self._fails(tests, timeout_s=600.0):
            raise SystemExit(f"the tests fail without any mutant: {' '.join(tests)}")
        return time.monotonic() - began

    def verdict(self, mutant: Mutant, timeout_s: float) -> str:
        """`killed`, `timeout` or `lived`."""
        path = self._plugin / path_of(mutant.module)
        source = path.read_bytes()
        path.write_bytes(mutant.of(source))
        try:
            return self._fails(ROOMS[mutant.module], timeout_s) or "lived"
        finally:
            path.write_bytes(source)

    def _fails(self, tests: tuple[str, ...], timeout_s: float) -> str:
        options = ("-x", "-q", "-p", "no:cacheprovider", "-p", "few_examples", "--no-header", "--tb=no")
        try:
            self._python("-m", "pytest", *options, *tests, timeout_s=timeout_s)
        except subprocess.TimeoutExpired:
            return "timeout"
        except subprocess.CalledProcessError:
            return "killed"
        return ""

    def _python(self, *arguments: str, timeout_s: float) -> str:
        environment = {**os.environ, "PYTHONPATH": str(self._plugin), "PYTHONDONTWRITEBYTECODE": "1"}
        with subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            process_group=0,
            preexec_fn=_be_modest,
        ) as process:
            try:
                output, _ = process.communicate(timeout=timeout_s)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)  # with the processes that the tests have started
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, arguments)
        return output


def _be_modest() -> None:
    os.nice(10)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def chosen(only: list[str], sample: int | None, seed: int) -> list[Mutant]:
    """The mutants to run, by module and line; all of *only* (`MODULE` or `MODULE:LINE`), or *sample* of them."""
    wanted = [name.partition(":") for name in only or ROOMS]
    found: list[Mutant] = []
    for module in sorted({name for name, _, _ in wanted}):
        lines = {int(line) for name, _, line in wanted if name == module and line}
        source = (ROOT / "plugin" / path_of(module)).read_bytes()
        found += (mutant for mutant in mutants_of(module, source) if not lines or mutant.line in lines)
    if sample is not None and sample < len(found):
        kept = sorted(random.Random(seed).sample(range(len(found)), sample))
        found = [found[at] for at in kept]
    return found


def run(mutants: list[Mutant], jobs: int, tell: Callable[[Mutant, str], None]) -> dict[Mutant, str]:
    """What became of each of *mutants*: `killed`, `timeout`, `lived` or `equal`."""
    verdicts = {mutant: "equal" for mutant in mutants if mutant.name in EQUAL}
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        idle: SimpleQueue[Bench] = SimpleQueue()
        benches = [Bench(Path(folder, str(nth))) for nth in range(jobs)]
        for bench in benches:
            idle.put(bench)

        @contextmanager
        def a_bench() -> Iterator[Bench]:
            bench = idle.get()
            try:
                yield bench
            finally:
                idle.put(bench)

        def limit_s(tests: tuple[str, ...]) -> float:
            with a_bench() as bench:
                return max(AT_LEAST_S, PATIENCE * bench.baseline_s(tests))

        def verdict(mutant: Mutant) -> str:
            with a_bench() as bench:
                verdict = bench.verdict(mutant, limits_s[ROOMS[mutant.module]])
            tell(mutant, verdict)
            return verdict

        to_run = [mutant for mutant in mutants if mutant not in verdicts]
        rooms = {ROOMS[mutant.module] for mutant in to_run}
        with ThreadPoolExecutor(jobs) as pool:
            limits_s = dict(zip(rooms, pool.map(limit_s, rooms), strict=True))
            verdicts.update(zip(to_run, pool.map(verdict, to_run), strict=True))
    return verdicts


def table(verdicts: Mapping[Mutant, str]) -> str:
    """A row a module and one for all: of the mutants that are not equal, which share was killed."""
    rows: dict[str, Counter[str]] = {}
    for mutant, verdict in verdicts.items():
        rows.setdefault(mutant.module, Counter())[verdict] += 1
        rows.setdefault("all", Counter())
    rows["all"] = sum((counts for counts in rows.values()), Counter())
    lines = [f"{'module':28}{'mutants':>8}{'killed':>8}{'timeout':>8}{'lived':>8}{'equal':>8}{'score':>8}"]
    for module, counts in sorted(rows.items(), key=lambda row: (row[0] == "all", row[0])):
        dead = counts["killed"] + counts["timeout"]
        judged = dead + counts["lived"]
        score = f"{dead / judged:.1%}" if judged else "-"
        numbers = (counts.total(), counts["killed"], counts["timeout"], counts["lived"], counts["equal"])
        lines.append(f"{module:28}" + "".join(f"{number:8}" for number in numbers) + f"{score:>8}")
    return "\n".join(lines)


def main() -> int:
    """Run the chosen mutants; 1 where one lives that is not known to be equal."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="MODULE[:LINE]", help=" ".join(ROOMS))
    parser.add_argument("--sample", type=int, metavar="N", help="so many of them, by chance")
    parser.add_argument("--seed", type=int, default=1, metavar="S")
    parser.add_argument("--jobs", type=int, default=2, metavar="J", help="at a time")
    parser.add_argument("--list", action="store_true", help="print them and run none")
    options = parser.parse_args()
    if unknown := {name.partition(":")[0] for name in options.only} - set(ROOMS):
        parser.error(f"no such module: {', '.join(sorted(unknown))}")
    every = {mutant.name for mutant in chosen([], None, 0)}
    if stale := set(EQUAL) - every:
        parser.error("EQUAL has rows that are no mutants any more:\n" + "\n".join(sorted(stale)))

    mutants = chosen(options.only, options.sample, options.seed)
    if options.list:
        print(*(f"{path_of(mutant.module)}:{mutant.line}: {mutant.name}" for mutant in mutants), sep="\n")
        return 0

    def tell(mutant: Mutant, verdict: str) -> None:
        if verdict != "killed":
            print(f"{verdict}: {path_of(mutant.module)}:{mutant.line}: {mutant.name}", flush=True)

    verdicts = run(mutants, options.jobs, tell)
    print(table(verdicts))
    return int("lived" in verdicts.values())


if __name__ == "__main__":
    sys.exit(main())
