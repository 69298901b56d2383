"""TLS refusals that the next attempt would meet again, and what to do about each (failures.md 71).

They are of the certificate kind: neither retried nor held against the upstream. Under TLS 1.2 they come during the
handshake. Under 1.3 the client has finished before its server has looked at the certificate. So
they come with the first read, or the first write fails and the alert is still to be read.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from types import MappingProxyType

from headrace.policy.frozen import frozen
from headrace.transport.standstill import GRACE_S

_REJECTED = "the server refuses the client certificate ({}): renew what tls.cert and tls.key name"


@frozen
class Refusal:
    """What one of OpenSSL's reasons stands for.

    Attributes:
        advice: What is wrong and what to do.
        presenting: The same where a client certificate is configured; None: no difference.
        only_amid_handshake: It counts during the handshake only: later, the same reason means a broken stream.
    """

    advice: str
    presenting: str | None = None
    only_amid_handshake: bool = False


_NOT_TLS = Refusal(
    "the server does not speak TLS on this port: write http:// in base_url, or the port of its TLS",
    only_amid_handshake=True,
)
_NO_VERSION = Refusal(
    "no TLS version in common: have the server offer at least tls.min_version, or lower that",
    only_amid_handshake=True,
)

REFUSALS: Mapping[str, Refusal] = MappingProxyType(
    {
        "TLSV13_ALERT_CERTIFICATE_REQUIRED": Refusal(
            "the server wants a client certificate: write tls.cert and tls.key",
            "the server has not taken the client certificate of tls.cert: give it one that it accepts",
        ),
        # TLS 1.2 has no reason of its own for a missing certificate. The other cause would not go away either.
        "SSLV3_ALERT_HANDSHAKE_FAILURE": Refusal(
            "the server refuses the handshake: it wants a client certificate (write tls.cert and tls.key), or has no "
            "cipher in common with us",
            "the server refuses the handshake: it does not take the client certificate of tls.cert, or has no cipher "
            "in common with us",
        ),
        "TLSV1_ALERT_UNKNOWN_CA": Refusal(
            "the server does not know the CA of the client certificate: have it trust that, or put one of its own, "
            "intermediates included, into tls.cert"
        ),
        "TLSV1_ALERT_ACCESS_DENIED": Refusal(_REJECTED.format("access denied")),
        "SSLV3_ALERT_BAD_CERTIFICATE": Refusal(
            "the server wants a client certificate that it accepts: write tls.cert and tls.key",
            _REJECTED.format("bad certificate"),
        ),
        "SSLV3_ALERT_CERTIFICATE_EXPIRED": Refusal(_REJECTED.format("expired")),
        "SSLV3_ALERT_CERTIFICATE_REVOKED": Refusal(_REJECTED.format("revoked")),
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN": Refusal(_REJECTED.format("unknown")),
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": Refusal(_REJECTED.format("unsupported")),
        "WRONG_VERSION_NUMBER": _NOT_TLS,
        "UNKNOWN_PROTOCOL": _NOT_TLS,
        "HTTP_REQUEST": _NOT_TLS,
        "TLSV1_ALERT_PROTOCOL_VERSION": _NO_VERSION,
        "UNSUPPORTED_PROTOCOL": _NO_VERSION,
        "NO_PROTOCOLS_AVAILABLE": _NO_VERSION,
        "VERSION_TOO_LOW": _NO_VERSION,
        "TLSV1_UNRECOGNIZED_NAME": Refusal(
            "the server does not know the name that it was asked for: write the one it has as tls.server_name",
            only_amid_handshake=True,
        ),
    }
)
"""By OpenSSL's reason, as in `ssl.SSLError.reason`."""

_CLOCK = "renew it there; or is the clock of this machine wrong?"
_NOT_TRUSTED = (
    "put it into what tls.ca names, or have the server present a certificate of a CA that is trusted"
)
_NO_ISSUER = Refusal(
    "the issuer of the server's certificate is not known here: have the server send the certificates of its "
    "intermediate CAs along, or put the CA into what tls.ca names"
)
_OTHER_NAME = Refusal(
    "the server's certificate is for another name: correct base_url, or write the name that it has as tls.server_name"
)

UNVERIFIED: Mapping[int, Refusal] = MappingProxyType(
    {
        2: _NO_ISSUER,  # X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT
        9: Refusal(f"a certificate of the server is not valid yet: {_CLOCK}"),  # …_CERT_NOT_YET_VALID
        10: Refusal(f"a certificate of the server has expired: {_CLOCK}"),  # …_CERT_HAS_EXPIRED
        18: Refusal(
            f"the server's certificate is signed by itself: {_NOT_TRUSTED}"
        ),  # …_DEPTH_ZERO_SELF_SIGNED_CERT
        19: Refusal(f"the server's chain ends in a CA that is not trusted: {_NOT_TRUSTED}"),  # …_IN_CHAIN
        20: _NO_ISSUER,  # …_UNABLE_TO_GET_ISSUER_CERT_LOCALLY
        21: _NO_ISSUER,  # …_UNABLE_TO_VERIFY_LEAF_SIGNATURE
        62: _OTHER_NAME,  # …_HOSTNAME_MISMATCH
        64: _OTHER_NAME,  # …_IP_ADDRESS_MISMATCH
    }
)
"""Certificates of servers that are not accepted, by OpenSSL's `X509_V_ERR_…`, as in `verify_code` of the error."""


def refusal_in(error: BaseException, *, amid_handshake: bool) -> Refusal | None:
    """The refusal that *error* stands for, or None."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return UNVERIFIED.get(getattr(error, "verify_code", 0))
    # Only OpenSSL's own errors have a reason: truststore and others make some in Python.
    reason = getattr(error, "reason", None) if isinstance(error, ssl.SSLError) else None
    found = REFUSALS.get(reason) if reason else None
    if found is None or (found.only_amid_handshake and not amid_handshake):
        return None
    return found


def alert_behind(sock: object) -> ssl.SSLError | None:
    """The refusal that the peer sent before it hung up, after a write to *sock* has failed. Blocks for at most GRACE_S.

    *sock* cannot be used any more. The alert came before the end, so it can be read.
    """
    if not isinstance(sock, ssl.SSLSocket):
        return None
    try:
        sock.settimeout(GRACE_S)
        sock.recv(1)
    except ssl.SSLError as alert:
        if refusal_in(alert, amid_handshake=False) is not None:
            return alert
    except (OSError, ValueError):
        pass
    return None
