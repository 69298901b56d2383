"""What one load has made of each upstream's section, for the next load: a section that says the same is not read anew.

A file of a thousand upstreams is edited in one of them. To validate and to compile the others again is half of a
reload, and the calls that are under way wait for it. So `Sections` keeps, for each name, what its section said, the
validated model and the plan. What is checked between sections, and against files and the environment, is checked every
time: nothing but the section itself decides what its model is, and nothing but model, TLS plan and predicate what its
plan is.

Sections are compared by a digest of their complete content: with `defaults`, what they extend, and what variables and
files have put in. It is not kept as it stands, because it may hold secrets. A digest of the `repr` tells `1` from
`true`, and the order of headers, which a comparison of the values does not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from headrace.config.source.blocks import Blocks
from headrace.config.source.tree import Plain

if TYPE_CHECKING:
    from headrace.config.check.predicates import Predicate
    from headrace.config.settings import Upstream
    from headrace.policy.plan import TlsPlan, UpstreamPlan

Models: TypeAlias = "Mapping[str, tuple[bytes, Upstream]]"
"""By name: the digest of the section, and its model."""

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

    __slots__ = ("_before", "_digests")

    def __init__(self, before: Models) -> None:
        self._before = before
        self._digests: dict[str, bytes] = {}

    def model_or(self, name: str, section: Plain) -> Plain | Upstream:
        """The model that *section* had at the load before, under the same *name*; else *section*, to be validated."""
        digest = self._digests[name] = hashlib.sha256(repr(section).encode(errors="surrogatepass")).digest()
        before = self._before.get(name)
        return before[1] if before is not None and before[0] == digest else section

    def models(self, found: Mapping[str, Upstream]) -> Models:
        """*found*, which have come of the sections asked for last, to be kept."""
        return {name: (self._digests[name], model) for name, model in found.items()}
