"""What one load has made of each upstream's section, for the next load: a section that says the same is not read anew.

A file of a thousand upstreams is edited in one of them. To validate and to compile the others again is half of a
reload, and the calls that are under way wait for it. So `Sections` keeps, for each name, what its section said, the
validated model and the plan. What is checked between sections, and against files and the environment, is checked every
time: nothing but the section itself decides what its model is, and nothing but model, TLS plan and predicate what its
plan is.

Sections are compared by a digest of their complete content: with `defaults`, what they extend, and what variables and
files have put in. It is not kept as it stands, because it may hold secrets. A digest of the `repr` tells `1` from
`true`, and the order of headers, which a comparison of the values does not. Where nothing was merged into a section or
replaced in it, it is the very node that `Blocks` keeps, and nodes are never changed: then there is nothing to compare.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from headrace.config.source.blocks import Blocks
from headrace.config.source.tree import Node, Plain, plain

if TYPE_CHECKING:
    from headrace.config.check.predicates import Predicate
    from headrace.config.settings import Upstream
    from headrace.policy.plan import TlsPlan, UpstreamPlan

Models: TypeAlias = "Mapping[str, tuple[bytes, Upstream, Node | None]]"
"""By name: the digest of the section, its model, and the node, if `Blocks` keeps that one in any case."""

Plans: TypeAlias = "Mapping[str, tuple[Upstream, TlsPlan | None, Predicate | None, UpstreamPlan]]"
"""By name: all that the plan was compiled of, and the plan."""


class Sections:
    """What the last load that succeeded has made of its sections. An instance of headrace has one.

    Not guarded. `kept` is one reference, replaced as a whole: a load that reads the older one has more to do, and
    comes to the same.
    """

    __slots__ = ("blocks", "kept")

    def __init__(self) -> None:
        self.blocks: dict[str, Blocks] = {}  # by file, as it was read last, whatever has become of that load
        self.kept: tuple[Models, Plans] = ({}, {})


class Reading:
    """The sections of one load, as they are validated."""

    __slots__ = ("_asked", "_before")

    def __init__(self, before: Models) -> None:
        self._before = before
        self._asked: dict[str, tuple[bytes, Node]] = {}

    def model_or(self, name: str, node: Node) -> Plain | Upstream:
        """The model that *node* had at the load before, under the same *name*; else its values, to be validated."""
        before = self._before.get(name)
        if before is not None and before[2] is node:
            self._asked[name] = before[0], node
            return before[1]
        section = plain(node)
        digest = hashlib.sha256(repr(section).encode(errors="surrogatepass")).digest()
        self._asked[name] = digest, node
        return before[1] if before is not None and before[0] == digest else section

    def models(self, found: Mapping[str, Upstream], blocks: Iterable[Blocks]) -> Models:
        """*found*, which have come of the sections asked for last, to be kept beside *blocks*."""
        kept = {id(block.node) for one in blocks for block in one.values()}
        models = {}
        for name, model in found.items():
            digest, node = self._asked[name]
            models[name] = digest, model, node if id(node) in kept else None
        return models
