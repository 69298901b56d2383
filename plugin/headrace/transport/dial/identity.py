"""A peer whose certificate is sound and names nobody whom the rules accept."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any

from headrace.policy.identities import Name, is_of, offered_by
from headrace.policy.printable import printable


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


def require_identity(certificate: Mapping[str, Any] | None, accepted: frozenset[Name]) -> None:
    """Raise where *certificate* (`getpeercert()`) names none of *accepted*.

    Raises:
        IdentityError: It does not, or there is none.
    """
    if not certificate or not is_of(certificate, accepted):
        wanted = tuple(printable(value) for _, value in sorted(accepted))
        raise IdentityError(offered_by(certificate or {}), wanted)
