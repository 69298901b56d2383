"""The client certificate and its key: loaded into a context, or a text that says which file is at fault, and the fix.

OpenSSL says "PEM lib" of a key that is encrypted, cut off, empty or in DER form, and of a wrong passphrase. So what is
wrong is found by looking into the files.
"""

from __future__ import annotations

import ssl
from typing import Final

from headrace.policy.certificate import certificates_in
from headrace.policy.plan import TlsPlan
from headrace.transport.dial.files import PRIVATE_KEY, TlsError, held, read, reason_of

# KEY_TYPE_MISMATCH: OpenSSL 3.2 and newer. Older ones leave the certificate aside when a key of another kind comes.
_OTHER_KIND: Final = frozenset({"NO_CERTIFICATE_ASSIGNED", "KEY_TYPE_MISMATCH"})
_OPENSSH: Final = b"-----BEGIN OPENSSH PRIVATE KEY-----"
_DER: Final = b"\x30"  # a SEQUENCE: certificates, keys and PKCS#12 alike begin with it
_AS_PEM: Final = {"certificate": "openssl x509 -inform DER", "private key": "openssl pkey -inform DER"}


def present(context: ssl.SSLContext, plan: TlsPlan) -> None:
    """Have *context* present the client certificate of *plan*, which has one. Blocks: reads the files.

    Raises:
        TlsError: That is not possible.
        TlsChanged: A file was written since *plan* was made.
    """
    cert = plan.cert
    assert cert is not None
    key = plan.key or cert
    certificate = read(cert, "the client certificate", plan.cert_digest)
    private = certificate if plan.key is None else read(key, "the client key", plan.key_digest)
    was_asked = False

    def passphrase() -> str:
        nonlocal was_asked
        was_asked = True
        if plan.key_passphrase is None:
            raise TlsError(
                f"{key}: the client key is encrypted, and there is nobody to ask for its passphrase\n"
                f"    write: key_passphrase: ${{file:…}} beside key:, or have the key unencrypted, readable by the "
                f"service only: openssl pkey -in {key} -out …"
            )
        return plan.key_passphrase

    try:
        # Without the callback OpenSSL would ask at the terminal.
        with held(certificate, cert) as cert_file, held(private, key) as key_file:
            context.load_cert_chain(cert_file, key_file, passphrase)
    except TlsError:
        raise
    except (ssl.SSLError, OSError, ValueError) as error:  # ValueError: a passphrase of more than 1024 bytes
        raise TlsError(_what_is_wrong(plan, certificate, private, error, was_asked=was_asked)) from error


def _what_is_wrong(
    plan: TlsPlan, certificate: bytes, private: bytes, error: Exception, *, was_asked: bool
) -> str:
    cert, key = str(plan.cert), str(plan.key or plan.cert)
    reason = getattr(error, "reason", None)
    if reason == "KEY_VALUES_MISMATCH":
        return (
            f"{key}: this key does not belong to the certificate {cert}\n"
            f"    put the two that were issued together in place; a change of either file is noticed"
        )
    if reason in _OTHER_KIND:
        return (
            f"{key}: this key does not belong to the certificate {cert}: it is of another kind (RSA, EC)\n"
            f"    put the two that were issued together in place; a change of either file is noticed"
        )
    if not certificates_in(certificate):
        return _no_pem(cert, certificate, "certificate", error)
    if _ends_within_a_block(certificate, b"CERTIFICATE"):
        return f"{cert}: ends within a certificate\n    it was cut off, or is still being written"
    if was_asked and not isinstance(error, OSError):
        return f"{key}: its passphrase is too long: OpenSSL takes at most 1024 bytes"
    if was_asked:
        return (
            f"{key}: the passphrase in tls.key_passphrase is not the one that this key is encrypted with\n"
            f"    try: openssl pkey -in {key} -noout"
        )
    if plan.key is None and not PRIVATE_KEY.search(private):
        return f"{cert}: holds no private key in PEM form, and `key` is not given"
    return _no_pem(key, private, "private key", error)


def _no_pem(path: str, content: bytes, what: str, error: Exception) -> str:
    """Why there is no *what* to be found in *content*, which is that of *path*."""
    block = b"CERTIFICATE" if what == "certificate" else b"PRIVATE KEY"
    known_as = "client certificate" if what == "certificate" else what
    if not content.strip():
        return f"{path}: is empty, and holds no {known_as}\n    it is perhaps still being written"
    if content.startswith(_DER) and b"-----BEGIN" not in content:
        return (
            f"{path}: holds no {known_as} in PEM form; it looks like DER, or PKCS#12\n"
            f"    run: {_AS_PEM[what]} -in {path} -out … (of PKCS#12: openssl pkcs12 -in {path} -out …)"
        )
    if _OPENSSH in content:
        return (
            f"{path}: holds no private key in PEM form; it has one in OpenSSH's form\n"
            f"    run: ssh-keygen -p -m PEM -f {path}"
        )
    if _ends_within_a_block(content, block):
        return f"{path}: ends within a {what}\n    it was cut off, or is still being written"
    return f"{path}: holds no {known_as} in PEM form ({reason_of(error)})"


def _ends_within_a_block(content: bytes, name: bytes) -> bool:
    begin, end = content.rfind(b"-----BEGIN "), content.rfind(b"-----END ")
    last = content[begin:].partition(b"\n")[0]
    # The line of the end may itself be cut.
    return begin >= 0 and name in last and (end < begin or not content[end + 8 :].partition(b"-----")[1])
