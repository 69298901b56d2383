"""What can come of each step of a trial: facts, fit to be printed."""

from __future__ import annotations

from typing import TypeAlias

from headrace.policy.frozen import frozen


@frozen
class LookedUp:
    """The name has addresses."""

    took_s: float
    addresses: tuple[str, ...]


@frozen
class Tried:
    """What came of one address.

    Attributes:
        problem: Why it is not connected; None: it is.
    """

    address: str
    took_s: float
    problem: str | None


@frozen
class Connected:
    """All addresses were tried, in the order in which a call would; at least one has answered."""

    tried: tuple[Tried, ...]


@frozen
class Certificate:
    """One of a chain.

    Attributes:
        names: Its URIs and DNS names, the first few.
        not_before, not_after: Epoch seconds.
    """

    subject: str
    issuer: str
    names: tuple[str, ...]
    not_before: float
    not_after: float


@frozen
class Secured:
    """The handshake is over. Under TLS 1.3 the server may still refuse us.

    Attributes:
        address: The one that it was made with.
        server_name: What the server was asked for.
        chain: As presented, the server's own first; () where Python does not tell.
        asked_for_certificate: The server wanted a client certificate; None: that cannot be told.
    """

    address: str
    took_s: float
    protocol: str
    cipher: str
    server_name: str
    chain: tuple[Certificate, ...]
    asked_for_certificate: bool | None


@frozen
class Again:
    """A second handshake, on another connection.

    Attributes:
        resumed: Whether it went on with the session of the first; None: the rules want none.
    """

    resumed: bool | None
    took_s: float


@frozen
class Failed:
    """No connection that a call could use. The last step.

    Attributes:
        outcome: The word that a record has for it.
        text: What has happened.
        advice: What to do, in the words of calls; None: that depends.
        tried: The addresses, where it was they that failed.
        chain: The certificates of a server whose own was refused, as presented.
    """

    outcome: str
    text: str
    advice: str | None = None
    tried: tuple[Tried, ...] = ()
    chain: tuple[Certificate, ...] = ()


Step: TypeAlias = LookedUp | Connected | Secured | Again | Failed
