"""One TLS context per distinct TLS policy: all upstreams with that policy share it.

What they hold is a `TlsClient`, which lets nobody change it. A context with a bundle of CAs takes 16 to 40 ms and
0.6 MB.

`ssl.SSLContext` is looked up when a context is made: truststore and others put their own class there, to trust the
store of the operating system. Where the file names a CA, that alone is trusted, as written. So Python's own class is
taken: truststore's would trust the system's store as well, and load it anew for each handshake (23 ms, on Linux).
"""

from __future__ import annotations

import _ssl
import os
import re
import ssl
import sys
import threading
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

from headrace.policy.plan import TlsPlan
from headrace.policy.printable import printable
from headrace.transport.dial.files import TlsChanged as TlsChanged
from headrace.transport.dial.files import TlsError as TlsError
from headrace.transport.dial.files import held, read, reason_of
from headrace.transport.dial.pair import present
from headrace.transport.standstill import patient_over

_MINIMUM = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_HASHED_NAME = re.compile(r"[0-9a-f]{8}\.\d+")  # what OpenSSL looks for in a CA directory


def _class_for(plan: TlsPlan) -> Any:
    """The class of a context for *plan*: that of `ssl`, unless it would add to what *plan* trusts."""
    found = ssl.SSLContext
    if plan.verify and plan.ca is None:
        return found
    kinds = (*found.__mro__, *_ssl._SSLContext.__subclasses__())  # one put there may be no subclass of it
    return next((kind for kind in kinds if is_own(kind)), found)


def is_own(kind: type) -> bool:
    """Whether *kind* verifies as OpenSSL does: Python's own, or gevent's, which differs in how it waits."""
    return kind.__module__.partition(".")[0] in ("ssl", "gevent")


def _put(context: ssl.SSLContext, name: str, value: Any) -> None:
    """Set *name* of *context*.

    The setters of Python's class end in those of whatever `ssl.SSLContext` is now. A class put there calls them again.
    """
    owner = next(kind for kind in type(context).__mro__ if name in vars(kind))
    if owner.__module__ == "ssl":
        getattr(_ssl._SSLContext, name).__set__(context, value)
    else:
        setattr(context, name, value)


_Key: TypeAlias = tuple[type, bool, bool, str | None, str | None, str | None, str, str]

_contexts: WeakValueDictionary[_Key, ssl.SSLContext] = WeakValueDictionary()
_contexts_lock = threading.Lock()  # held while building, so that equal plans never make two contexts


def _forget_inherited() -> None:
    """Make a new lock in a forked child: the thread that may have held the old one does not exist here."""
    global _contexts_lock
    _contexts_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_inherited)


def context_for(plan: TlsPlan) -> ssl.SSLContext:
    """The context of *plan*: one object for all plans that trust and present the same, while anybody refers to it.

    Blocks (reads files, 40 ms). A rotated file makes an unequal plan (its
    fingerprint differs) and so a new context. The old one is never reloaded in
    place (failures.md 33). Don't change it: others have it, too.

    Raises:
        TlsError: A file is missing or unreadable, does not parse, or the pair
            does not match. There is no fall-back to default TLS (failures.md 35).
        TlsChanged: A file was written since *plan* was made.
    """
    with _contexts_lock:
        kind = _class_for(plan)
        names_host = not plan.identities
        key = kind, plan.verify, names_host, plan.ca, plan.cert, plan.key, plan.min_version, plan.fingerprint
        context = _contexts.get(key)
        if context is None:
            context = _contexts[key] = _build(plan, kind)
        return context


def stock_context() -> ssl.SSLContext:
    """A context that trusts whatever requests or urllib3 trust by themselves: certifi, the system store, the bundles.

    Blocks (reads files, 40 ms). It is the caller's alone.
    """
    import certifi  # requests needs it, so it is there; rarely needed here

    context = _open_context(ssl.SSLContext)  # truststore's, where that was put there: then stock goes by it
    context.load_default_certs()  # SSL_CERT_FILE, too
    bundles = (os.environ.get("REQUESTS_CA_BUNDLE"), os.environ.get("CURL_CA_BUNDLE"))
    for bundle in (certifi.where(), *filter(None, bundles)):
        try:
            context.load_verify_locations(**{"capath" if os.path.isdir(bundle) else "cafile": bundle})
        except OSError:
            pass  # requests would refuse to go by it, and that is no matter of ours
    return context


def issuer_of(certificate: Mapping[str, Any]) -> str:
    """Who issued *certificate*, which is as `getpeercert()` has it: `CN=R11, O=Let's Encrypt`; "" where it says not.

    Fit to be printed.
    """
    return _name_of(certificate.get("issuer", ()))


def subject_of(certificate: Mapping[str, Any]) -> str:
    """Whose *certificate* is, as `issuer_of` has it; "" where it says not, as many do that have other names."""
    return _name_of(certificate.get("subject", ()))


def _name_of(parts: Iterable[Iterable[tuple[str, str]]]) -> str:
    named = [(name, value) for part in parts for name, value in part]
    short = {"commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU"}
    return printable(
        ", ".join(f"{short[name]}={value}" for name, value in reversed(named) if name in short)[:200]
    )


class _Undaunted(ssl.SSLObject):
    """TLS for an event loop. asyncio reads the certificate by itself, and an error of that would end the connection."""

    def getpeercert(self, binary_form: bool = False) -> Any:
        try:
            return super().getpeercert(binary_form)
        except UnicodeDecodeError:  # a name in it is no text: what is certain is that it names nobody
            return {}


def _open_context(kind: Any) -> ssl.SSLContext:
    context: ssl.SSLContext = kind(ssl.PROTOCOL_TLS_CLIENT)
    context.sslsocket_class = patient_over(kind.sslsocket_class)
    if kind.sslobject_class is ssl.SSLObject:
        context.sslobject_class = _Undaunted
    return context


def _build(plan: TlsPlan, kind: Any) -> ssl.SSLContext:
    context = _open_context(kind)
    _put(context, "minimum_version", _MINIMUM[plan.min_version])
    _put(context, "options", context.options | ssl.OP_NO_COMPRESSION)  # CRIME
    context.hostname_checks_common_name = False
    # For TLS 1.3 servers that ask for the client certificate later. urllib3 sets it, too.
    context.post_handshake_auth = True
    context.set_alpn_protocols(["http/1.1"])
    if sys.version_info >= (3, 13):
        # As ssl.create_default_context() and urllib3 do there.
        flags = context.verify_flags | ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_STRICT
        _put(context, "verify_flags", flags)
    key_log = os.environ.get("SSLKEYLOGFILE")
    if key_log:
        context.keylog_filename = key_log
    if plan.verify:
        if plan.identities:  # they take the place of the host's name
            context.check_hostname = False
        _trust(context, plan.ca, plan.ca_digest)
    else:
        context.check_hostname = False
        _put(context, "verify_mode", ssl.CERT_NONE)
    if plan.cert is not None:
        present(context, plan)
    elif plan.key is not None:
        raise TlsError(f"{plan.key}: a key without a certificate\n    write: cert: beside key:")
    return context


def _trust(context: ssl.SSLContext, ca: str | None, digest: str | None) -> None:
    if ca is None:
        _trust_system_store(context)
    elif os.path.isdir(ca):
        _trust_directory(context, ca)
    else:
        content = read(ca, "the CA file", digest)
        try:
            with held(content, ca) as file:
                context.load_verify_locations(cafile=file)  # `cadata` would hold the GIL all the while
        except (ssl.SSLError, OSError) as error:
            raise TlsError(f"{ca}: holds no CA certificate in PEM form ({reason_of(error)})") from error


def _trust_directory(context: ssl.SSLContext, ca: str) -> None:
    try:
        names = os.listdir(ca)
    except OSError as error:
        raise TlsError(f"{ca}: cannot read the CA directory ({reason_of(error)})") from error
    hashed = list(filter(_HASHED_NAME.fullmatch, names))
    for name in hashed:
        path = os.path.join(ca, name)  # one that leads nowhere is common, and OpenSSL passes it over
        if os.path.exists(path) and not os.path.isfile(path):
            # OpenSSL opens it amid a handshake, and nothing would end its wait for somebody who writes to a FIFO.
            raise TlsError(f"{path}: is not a regular file\n    remove it, or put the certificate there")
    if not hashed:
        # OpenSSL would accept the directory silently, and then no handshake could succeed.
        raise TlsError(
            f"{ca}: no CA certificate under a hashed name in this directory\n    run: openssl rehash {ca}"
        )
    context.load_verify_locations(capath=ca)


def _trust_system_store(context: ssl.SSLContext) -> None:
    """The system store, or certifi's where there is none (slim containers, python.org's macOS builds)."""
    context.load_default_certs()
    try:
        if context.cert_store_stats()["x509_ca"]:
            return
    except NotImplementedError:  # truststore asks the operating system, certificate by certificate
        return
    directory = ssl.get_default_verify_paths().capath  # each certificate is read only when it is needed
    if directory and any(map(_HASHED_NAME.fullmatch, os.listdir(directory))):
        return
    import certifi  # requests needs it, so it is there; rarely needed here

    context.load_verify_locations(cafile=certifi.where())
