"""A peer whose certificate is sound and names nobody whom the rules accept."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any

from headrace.policy.identities import Name, is_of, offered_by
from headrace.policy.printable import printable

NO_TEXT = "something that is no text"
"""What is said of a certificate with a name that Python cannot read, and so tells nothing of at all."""


class IdentityError(ssl.SSLCertVerificationError):
    """The peer is none of `tls.identities`.

    Attributes:
        offered: The URIs and DNS names of its certificate, fit to be printed; the first few.
        wanted: Those that are accepted.
        verify_message: What is wrong, as OpenSSL's errors of this class have it.
    """

    def __init__(self, offered: tuple[str, ...], wanted: tuple[str, ...]) -> None:
        # As OpenSSL's own are made: a number (SSL_ERROR_SSL), and the text.
        super().__init__(int(ssl.SSL_ERROR_SSL), in_words(offered, wanted))
        self.offered = offered
        self.wanted = wanted
        self.verify_code = 0
        self.verify_message = "the identity of the peer is not accepted"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.offered, self.wanted)


def in_words(offered: tuple[str, ...], wanted: tuple[str, ...]) -> str:
    """What was offered and what was wanted."""
    return (
        f"the certificate of the server names {', '.join(offered) or 'nobody'}; "
        f"tls.identities accepts {', '.join(wanted)}"
    )


def require_identity(peer: ssl.SSLSocket | ssl.SSLObject, accepted: frozenset[Name]) -> None:
    """Raise where the certificate of *peer* names none of *accepted*.

    Raises:
        IdentityError: It does not, there is none, or it cannot be read.
    """
    try:
        certificate: Mapping[str, Any] = peer.getpeercert() or {}
    except UnicodeDecodeError:  # what its CA has let through may be any bytes
        offered: tuple[str, ...] = (NO_TEXT,)
    else:
        if is_of(certificate, accepted):
            return
        offered = offered_by(certificate)
    raise IdentityError(offered, tuple(printable(value) for _, value in sorted(accepted)))
